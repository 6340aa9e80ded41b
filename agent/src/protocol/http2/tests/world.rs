//! Conversations made at random, by encoders that index as they like, and what is true of each of their streams.

use std::collections::VecDeque;

use super::{CLIENT, PREFACE, SERVER, frame};
use crate::model::{Direction, Headers};
use crate::protocol::Done;

type Pair = (String, String);

/// Deterministic numbers.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % most.max(1)
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// One direction's compression, with a table of a few entries so that they are evicted.
#[derive(Default)]
struct Encoder {
    entries: VecDeque<Pair>,
    begun: bool,
}

const TABLE_BYTES: usize = 400;
/// What these encoders use of the static table.
const STATIC: [(usize, &str, &str); 7] = [
    (1, ":authority", ""),
    (2, ":method", "GET"),
    (3, ":method", "POST"),
    (4, ":path", "/"),
    (6, ":scheme", "http"),
    (8, ":status", "200"),
    (13, ":status", "404"),
];

impl Encoder {
    fn block(&mut self, fields: &[Pair], random: &mut Random) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.begun {
            self.begun = true;
            integer(&mut bytes, 0x20, 5, TABLE_BYTES);
        }
        for pair in fields {
            let index = |at: usize| 62 + at;
            if let Some(at) = self.entries.iter().position(|entry| entry == pair)
                && !random.one_in(8)
            {
                integer(&mut bytes, 0x80, 7, index(at));
                continue;
            }
            if let Some((at, ..)) = STATIC.iter().find(|entry| (entry.1, entry.2) == (&pair.0, &pair.1)) {
                integer(&mut bytes, 0x80, 7, *at);
                continue;
            }
            let inserts = !random.one_in(4);
            let (first, bits) = if inserts { (0x40, 6) } else { (0x10, 4) };
            let known = STATIC.iter().find(|entry| entry.1 == pair.0).map(|entry| entry.0);
            if let Some(at) = known.or_else(|| self.entries.iter().position(|entry| entry.0 == pair.0).map(index)) {
                integer(&mut bytes, first, bits, at);
            } else {
                bytes.push(first);
                string(&mut bytes, &pair.0);
            }
            string(&mut bytes, &pair.1);
            if inserts {
                let size = |(name, value): &Pair| name.len() + value.len() + 32;
                self.entries.push_front(pair.clone());
                while self.entries.iter().map(size).sum::<usize>() > TABLE_BYTES {
                    self.entries.pop_back();
                }
            }
        }
        bytes
    }
}

fn integer(bytes: &mut Vec<u8>, first: u8, bits: u8, value: usize) {
    let most = (1 << bits) - 1;
    bytes.push(first | value.min(most) as u8);
    if value >= most {
        let mut rest = value - most;
        while rest > 127 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
}

fn string(bytes: &mut Vec<u8>, text: &str) {
    integer(bytes, 0, 7, text.len());
    bytes.extend(text.as_bytes());
}

/// What is true of a stream.
#[derive(Clone, Debug)]
pub(super) struct Truth {
    pub(super) stream: u32,
    method: &'static str,
    path: String,
    request: Vec<Pair>,
    request_size: u64,
    status: u16,
    interim: u16,
    response: Vec<Pair>,
    response_size: u64,
    trailers: Vec<Pair>,
}

/// Frames that travel together.
pub(super) struct Moved {
    pub(super) direction: Direction,
    pub(super) frames: Vec<Vec<u8>>,
}

impl Moved {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.frames.concat()
    }
}

pub(super) struct World {
    pub(super) moves: Vec<Moved>,
    pub(super) truths: Vec<Truth>,
}

fn pair(name: &str, value: &str) -> Pair {
    (name.to_owned(), value.to_owned())
}

/// HEADERS with what may come before the block and behind it, and CONTINUATION.
fn head(stream: u32, block: &[u8], end: bool, random: &mut Random) -> Vec<Vec<u8>> {
    let pieces = if random.one_in(4) { 1 + random.below(3) } else { 0 };
    let mut cuts: Vec<usize> = (0..pieces).map(|_| random.below(block.len())).collect();
    cuts.sort_unstable();
    let mut frames = Vec::new();
    let mut start = 0;
    for (number, end_of_piece) in cuts.iter().copied().chain([block.len()]).enumerate() {
        let piece = &block[start..end_of_piece];
        start = end_of_piece;
        let end_headers = if end_of_piece == block.len() && number == cuts.len() { 4 } else { 0 };
        if number > 0 {
            frames.push(frame(9, end_headers, stream, piece));
            continue;
        }
        let (mut flags, mut payload) = (end_headers | u8::from(end), Vec::new());
        let padding = if random.one_in(3) { random.below(9) } else { 0 };
        if padding > 0 {
            flags |= 8;
            payload.push(padding as u8);
        }
        if random.one_in(3) {
            flags |= 0x20;
            payload.extend([0, 0, 0, 0, 16]);
        }
        payload.extend(piece);
        payload.extend(vec![0; padding]);
        frames.push(frame(1, flags, stream, &payload));
    }
    frames
}

fn content(stream: u32, size: u64, end: bool, random: &mut Random) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut left = size as usize;
    loop {
        let piece = if random.one_in(3) { random.below(left + 1) } else { left };
        left -= piece;
        let flags = u8::from(end && left == 0);
        // Content looks like frames.
        let mut payload = frame(1, 5, 4001, &[0x82, 0x84, 0x88]).repeat(piece / 12 + 1);
        payload.truncate(piece);
        if random.one_in(3) {
            let padding = random.below(20);
            payload.insert(0, padding as u8);
            payload.extend(vec![0; padding]);
            frames.push(frame(0, flags | 8, stream, &payload));
        } else {
            frames.push(frame(0, flags, stream, &payload));
        }
        if left == 0 {
            return frames;
        }
    }
}

impl World {
    pub(super) fn new(seed: u64, streams: usize) -> Self {
        let mut random = Random(seed | 1);
        let (mut client, mut server) = (Encoder::default(), Encoder::default());
        let mut world = Self { moves: Vec::new(), truths: Vec::new() };
        world.push(CLIENT, vec![PREFACE.to_vec(), frame(4, 0, 0, &[0, 1, 0, 0, 16, 0])]);
        world.push(SERVER, vec![frame(4, 0, 0, &[0, 1, 0, 0, 16, 0]), frame(4, 1, 0, b"")]);
        // Requests on their way, whose answers may come in any order.
        let mut open: Vec<Truth> = Vec::new();
        let mut next = 1;
        while world.truths.len() < streams || !open.is_empty() {
            let mut frames = Vec::new();
            if world.truths.len() < streams && (open.is_empty() || open.len() < 5 && random.one_in(2)) {
                let truth = truth(next, &mut random);
                next += 2;
                let mut fields =
                    vec![pair(":method", truth.method), pair(":scheme", "http"), pair(":path", &truth.path)];
                fields.push(pair(":authority", &truth.request[0].1));
                fields.extend_from_slice(&truth.request[1..]);
                let block = client.block(&fields, &mut random);
                frames.extend(head(truth.stream, &block, truth.request_size == 0, &mut random));
                if truth.request_size > 0 {
                    frames.extend(content(truth.stream, truth.request_size, true, &mut random));
                }
                open.push(truth.clone());
                world.truths.push(truth);
                extra(&mut frames, &mut random);
                world.push(CLIENT, frames);
                continue;
            }
            let truth = open.remove(random.below(open.len()));
            for _ in 0..truth.interim {
                let block = server.block(&[pair(":status", "103"), pair("link", "/style")], &mut random);
                frames.extend(head(truth.stream, &block, false, &mut random));
            }
            if random.one_in(6) {
                let fields = [pair(":method", "GET"), pair(":path", "/pushed"), pair("x-pushed", "1")];
                let payload = [&[0, 0, 0, 2][..], &server.block(&fields, &mut random)].concat();
                frames.push(frame(5, 4, truth.stream, &payload));
                let block = server.block(&[pair(":status", "299"), pair("x-pushed", "2")], &mut random);
                frames.extend(head(2, &block, true, &mut random));
            }
            let mut fields = vec![pair(":status", &truth.status.to_string())];
            fields.extend(truth.response.clone());
            let block = server.block(&fields, &mut random);
            let (no_content, no_trailers) = (truth.response_size == 0, truth.trailers.is_empty());
            frames.extend(head(truth.stream, &block, no_content && no_trailers, &mut random));
            if !no_content {
                frames.extend(content(truth.stream, truth.response_size, no_trailers, &mut random));
            }
            if !no_trailers {
                let block = server.block(&truth.trailers, &mut random);
                frames.extend(head(truth.stream, &block, true, &mut random));
            }
            extra(&mut frames, &mut random);
            world.push(SERVER, frames);
        }
        world
    }

    fn push(&mut self, direction: Direction, frames: Vec<Vec<u8>>) {
        self.moves.push(Moved { direction, frames });
    }

    /// The stream that all of this is true of.
    pub(super) fn explain(&self, done: &Done) -> Option<&Truth> {
        self.truths.iter().find(|truth| truth.allows(done))
    }
}

/// Frames that say nothing of streams.
fn extra(frames: &mut Vec<Vec<u8>>, random: &mut Random) {
    match random.below(8) {
        0 => frames.push(frame(6, 0, 0, &[1; 8])),
        1 => frames.push(frame(8, 0, 0, &[0, 0, 255, 0])),
        2 => frames.push(frame(0xf0, 0xff, 5, &[7; 33])),
        3 => frames.push(frame(2, 0, 1, &[0; 5])),
        4 => frames.push(frame(4, 0, 0, &[0, 3, 0, 0, 0, 100, 0, 1, 0, 0, 32, 0])),
        _ => {}
    }
}

fn truth(stream: u32, random: &mut Random) -> Truth {
    let mut fields = |side: &str| {
        let mut fields = vec![pair("x-stream", &format!("{side}{stream}"))];
        for name in ["x-some", "x-other", "cookie"] {
            if random.one_in(2) {
                fields.push(pair(name, &format!("{side}{}", stream * 10 + random.below(2) as u32)));
            }
        }
        if random.one_in(2) {
            fields.push(pair("x-same", "of all"));
        }
        fields
    };
    let mut request = vec![pair("host", &format!("host{}.test", stream % 3))];
    request.extend(fields("q"));
    let (response, trailers) = (fields("p"), fields("t"));
    let trailers = if random.one_in(2) { trailers } else { Vec::new() };
    let mut size = || if random.one_in(3) { 0 } else { 1 + random.below(200) as u64 };
    let (request_size, response_size) = (size(), size());
    Truth {
        stream,
        method: ["GET", "POST", "PATCH"][random.below(3)],
        path: format!("/path/{stream}"),
        request,
        request_size,
        status: [200, 201, 404, 500][random.below(4)],
        interim: u16::from(random.one_in(5)),
        response,
        response_size,
        trailers,
    }
}

/// No field that was not sent; all, unless some are said to be missing.
fn allows_fields(truth: &[Pair], headers: &Headers) -> bool {
    let sent = |name: &[u8], value: &[u8]| truth.iter().any(|(n, v)| (n.as_bytes(), v.as_bytes()) == (name, value));
    headers.iter().all(|(name, value)| sent(name, value)) && (headers.truncated || headers.len() == truth.len())
}

impl Truth {
    fn allows(&self, done: &Done) -> bool {
        let any = done.incomplete.is_some();
        let request = done.request.as_ref().is_none_or(|request| {
            let (method, target) = (&request.method[..], &request.target[..]);
            (method == self.method.as_bytes() || any && method.is_empty())
                && (target == self.path.as_bytes() || any && target.is_empty())
                && (allows_fields(&self.request, &request.headers) || any && request.headers.is_empty())
                && request.body.size.is_none_or(|size| size == self.request_size)
        });
        let response = done.response.as_ref().is_none_or(|response| {
            (response.status == self.status || any && response.status == 0)
                && (allows_fields(&self.response, &response.headers) || any && response.headers.truncated)
                && response.interim <= self.interim
                && response.trailers.as_ref().is_none_or(|trailers| {
                    allows_fields(&self.trailers, trailers)
                        || trailers.is_empty()
                        // Behind a hole nobody can tell them from a response without content.
                        || response.status == 0 && allows_fields(&self.response, trailers)
                })
                && response.body.size.is_none_or(|size| size == self.response_size)
        });
        request && response
    }

    /// All that was sent is known.
    pub(super) fn is_told(&self, done: &Done) -> bool {
        let (Some(request), Some(response)) = (&done.request, &done.response) else { return false };
        self.allows(done)
            && done.incomplete.is_none()
            && request.body.size == Some(self.request_size)
            && response.body.size == Some(self.response_size)
            && response.interim == self.interim
            && response.trailers.as_ref().map_or(0, |trailers| trailers.len()) == self.trailers.len()
    }
}
