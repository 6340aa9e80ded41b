//! HTTP/2: both directions of one connection in, one exchange for each stream out (RFC 9113).
//!
//! A response belongs to its request by the number of their stream, so that nothing is ever paired by order. What was not
//! seen is an input: inside of DATA it costs nothing; where it hides a header block, or where frames begin, the
//! compression state of that direction (RFC 7541) is taken for unknown until entries are inserted anew. A field is right
//! or absent.

mod frame;
pub mod hpack;
mod message;
mod pairing;
mod stream;

#[cfg(test)]
mod tests;

use agent_common::http2::{FRAME_HEADER, FrameHeader, PREFACE, flags, kind};
use rustc_hash::FxHashMap;

use self::{
    frame::Frame,
    hpack::{Decoder, Fields},
    stream::{Side, Stream},
};
use super::{Done, End, Event, Limits, Operation, Protocol, Segment};
use crate::model::{Direction, Incomplete, Outcome, Timestamp};

/// Longest SETTINGS or GOAWAY payload that is looked at: two dozen parameters.
const CONTROL_BYTES: usize = 256;
/// A client may go on sending for a moment when its response has ended (RFC 9113 section 8.1).
const AFTER_RESPONSE_NS: u64 = 1_000_000_000;
/// A stream whose end may have been lost is given up after this long without a byte.
const DOUBTFUL_NS: u64 = 10_000_000_000;
/// A block in pieces leaves its buffer for the next one, up to this size.
const BUFFER_KEPT: usize = 4096;

/// `SETTINGS_HEADER_TABLE_SIZE`.
const HEADER_TABLE_SIZE: u16 = 1;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    /// The direction of requests, once the preface or a field told.
    requests: Option<Direction>,
    receive: Half,
    send: Half,
    /// Open streams by their number.
    streams: FxHashMap<u32, Stream>,
    /// The highest number of a request so far: what is above is new.
    highest: u32,
    /// The last request that the server looks at, once it said so (GOAWAY).
    last: Option<u32>,
    /// Key of the next exchange.
    next: u64,
    /// Requests may be on their way that were not seen, and why.
    unseen: Option<Incomplete>,
    /// Frames were read: this is HTTP/2 for certain.
    recognised: bool,
    /// Kept to save its allocations.
    fields: Fields,
}

/// One direction.
#[derive(Debug)]
struct Half {
    state: State,
    decoder: Decoder,
    block: Option<Block>,
    /// The compressed bytes of `block`, or the payload of a control frame.
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The connection's first byte is next; that many bytes of the preface went by.
    Start(usize),
    /// Out of step, until somebody says where a frame begins: content may be anything, frames included.
    Seek,
    /// A frame header, of which that many bytes are here.
    Header {
        bytes: [u8; FRAME_HEADER],
        len: usize,
        begun: Begun,
    },
    Payload(Frame, Begun),
}

/// Where something began.
#[derive(Clone, Copy, Debug, Default)]
struct Begun {
    position: u64,
    operation: Operation,
}

/// A header block on its way.
#[derive(Clone, Copy, Debug)]
struct Block {
    stream: u32,
    begun: Begun,
    end_stream: bool,
    /// Of a PUSH_PROMISE.
    promise: bool,
    /// Why its rest is not there.
    broken: Option<Incomplete>,
}

const IN_STEP: State = State::Header { bytes: [0; FRAME_HEADER], len: 0, begun: Begun::NONE };

impl Begun {
    const NONE: Self = Self { position: 0, operation: Operation { time: Timestamp(0), pid: 0, tid: 0 } };
}

impl Half {
    fn new(state: State, decoder: Decoder) -> Self {
        Self { state, decoder, block: None, buffer: Vec::new() }
    }

    /// Frames went by unseen.
    fn lose(&mut self) {
        self.state = State::Seek;
        self.decoder.lose();
        self.block = None;
        self.buffer.clear();
    }
}

impl Protocol for Connection {
    fn on_segment(
        &mut self,
        direction: Direction,
        position: u64,
        segment: Segment<'_>,
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        match segment {
            Segment::Bytes([]) | Segment::Gap(0) => {}
            Segment::Bytes(bytes) => self.on_bytes(direction, bytes, Begun { position, operation }, out),
            Segment::Gap(len) => self.on_gap(direction, len, operation, out),
        }
    }

    fn on_boundary(&mut self, direction: Direction) {
        match self.half(direction).state {
            State::Start(0) | State::Header { len: 0, .. } => return,
            State::Seek => {}
            // Whoever says so walked from frame to frame; what was taken for the rest of one was none.
            State::Start(_) | State::Header { .. } | State::Payload(..) => self.lose(direction),
        }
        // The description of a connection can be lost, and its first bytes be here.
        self.half(direction).state = State::Start(0);
    }

    fn on_loss(&mut self, _time: Timestamp, _out: &mut Vec<Event>) {
        for direction in [Direction::Receive, Direction::Send] {
            self.lose(direction);
        }
        self.unseen = Some(Incomplete::RecordsLost);
        for stream in self.streams.values_mut() {
            stream.doubtful = true;
        }
    }

    fn on_end(&mut self, end: End, time: Timestamp, out: &mut Vec<Event>) {
        let outcome = match end {
            // A client that will say no more may still read.
            End::Direction(direction) if self.requests.is_none_or(|requests| requests == direction) => return,
            End::Direction(_) | End::Closed => Outcome::ConnectionClosed,
            End::Reset => Outcome::ConnectionReset,
        };
        let last = self.last.unwrap_or(u32::MAX);
        for (number, mut stream) in drained(&mut self.streams, |_, _| true) {
            stream.leave();
            stream.report(if number > last { pairing::REFUSED } else { outcome }, time, out);
        }
    }

    fn on_tick(&mut self, now: Timestamp, out: &mut Vec<Event>) {
        let limit = self.limits.response_timeout_ns;
        let due = |_: u32, stream: &Stream| {
            let idle = now.since(stream.last);
            idle >= limit
                || (stream.is_answered() && idle >= AFTER_RESPONSE_NS)
                || (stream.doubtful && idle >= DOUBTFUL_NS)
        };
        for (_, mut stream) in drained(&mut self.streams, due) {
            if !stream.is_answered() {
                stream.incomplete(if stream.doubtful { Incomplete::RecordsLost } else { Incomplete::Abandoned });
            }
            let end = if stream.done.response.is_some() { stream.last } else { now };
            stream.report(Outcome::Timeout, end, out);
        }
        for stream in self.streams.values_mut() {
            stream.progress(now, out);
        }
    }

    fn memory(&self) -> usize {
        let halves = [&self.receive, &self.send].map(|half| half.decoder.memory() + half.buffer.capacity());
        let streams: usize = self.streams.values().map(Stream::memory).sum();
        let table = self.streams.capacity() * size_of::<(u32, Stream)>();
        let fields = self.fields.raw.capacity() + self.fields.fields.capacity() * size_of::<hpack::Field>();
        size_of::<Self>() + halves.iter().sum::<usize>() + table + streams + fields
    }

    fn is_idle(&self) -> bool {
        // A connection that is known for what it is has nothing to prove, however long it only pings.
        self.streams.is_empty() && !self.recognised
    }
}

/// Take out the streams that `pick` wants, oldest first.
fn drained(streams: &mut FxHashMap<u32, Stream>, pick: impl Fn(u32, &Stream) -> bool) -> Vec<(u32, Stream)> {
    let mut picked: Vec<_> = streams.extract_if(|number, stream| pick(*number, stream)).collect();
    picked.sort_unstable_by_key(|(number, _)| *number);
    picked
}

impl Connection {
    /// A connection from its first byte.
    pub fn new(limits: Limits) -> Self {
        Self::with(limits, State::Start(0), Decoder::new)
    }

    /// A connection that is older than its first segment: entries of the compression tables are not known, and streams
    /// are open whose requests were not seen.
    pub fn joined(limits: Limits) -> Self {
        Self { unseen: Some(Incomplete::JoinedMidExchange), ..Self::with(limits, State::Seek, Decoder::joined) }
    }

    /// What an HTTP/1.1 connection becomes behind `101 Switching Protocols`: the request that asked for it is the first
    /// stream, and its response is still to come (RFC 7540 section 3.2).
    pub fn upgraded(limits: Limits, mut done: Box<Done>, next: u64, time: Timestamp) -> Self {
        let mut connection = Self::new(limits);
        connection.requests = Some(done.request_direction);
        connection.next = next;
        connection.highest = 1;
        // `HTTP2-Settings` may have said any size; the encoder says which it uses.
        connection.half(done.request_direction.opposite()).decoder.set_limit(u32::MAX);
        let body = done.request.as_mut().map(|request| std::mem::take(&mut request.body)).unwrap_or_default();
        let mut stream = Stream::of(done);
        stream.last = time;
        stream.request = Side::ended(body);
        connection.streams.insert(1, stream);
        connection
    }

    fn with(limits: Limits, state: State, decoder: fn() -> Decoder) -> Self {
        Self {
            limits,
            requests: None,
            receive: Half::new(state, decoder()),
            send: Half::new(state, decoder()),
            streams: FxHashMap::default(),
            highest: 0,
            last: None,
            next: 0,
            unseen: None,
            recognised: false,
            fields: Fields::default(),
        }
    }

    /// Keys of exchanges continue from another parser's.
    #[must_use]
    pub fn counting_from(self, next: u64) -> Self {
        Self { next, ..self }
    }

    fn half(&mut self, direction: Direction) -> &mut Half {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        }
    }

    /// Frames of a direction went by unseen.
    fn lose(&mut self, direction: Direction) {
        self.half(direction).lose();
        let is_request = self.requests == Some(direction);
        self.unseen.get_or_insert(Incomplete::RequestHeadGap);
        for stream in self.streams.values_mut() {
            (if is_request { &mut stream.request } else { &mut stream.response }).lose();
            stream.doubtful |= !is_request;
        }
    }

    fn on_bytes(&mut self, direction: Direction, bytes: &[u8], begun: Begun, out: &mut Vec<Event>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = Begun { position: begun.position.wrapping_add((bytes.len() - rest.len()) as u64), ..begun };
            let used = match self.half(direction).state {
                State::Start(matched) => self.on_preface(direction, matched, rest),
                State::Seek => return,
                State::Header { bytes, len, begun } => {
                    let begun = if len == 0 { at } else { begun };
                    self.on_header(direction, bytes, len, begun, rest, out)
                }
                State::Payload(frame, begun) => self.on_payload(direction, frame, begun, rest, at.operation, out),
            };
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    /// Returns the bytes used, as all of the following do.
    fn on_preface(&mut self, direction: Direction, matched: usize, bytes: &[u8]) -> usize {
        let want = PREFACE.get(matched..).unwrap_or_default();
        let len = want.len().min(bytes.len());
        if bytes.get(..len) != want.get(..len) {
            // A server's first frame; or no HTTP/2 at all, which its header will tell.
            self.half(direction).state = if matched == 0 { IN_STEP } else { State::Seek };
            return if matched == 0 { 0 } else { bytes.len() };
        }
        let matched = matched + len;
        if matched < PREFACE.len() {
            self.half(direction).state = State::Start(matched);
            return len;
        }
        self.recognised = true;
        self.requests = Some(direction);
        *self.half(direction) = Half::new(IN_STEP, Decoder::new());
        len
    }

    fn on_header(
        &mut self,
        direction: Direction,
        mut header: [u8; FRAME_HEADER],
        len: usize,
        begun: Begun,
        bytes: &[u8],
        out: &mut Vec<Event>,
    ) -> usize {
        let used = (FRAME_HEADER - len).min(bytes.len());
        if let (Some(target), Some(source)) = (header.get_mut(len..len + used), bytes.get(..used)) {
            target.copy_from_slice(source);
        }
        if len + used < FRAME_HEADER {
            self.half(direction).state = State::Header { bytes: header, len: len + used, begun };
            return used;
        }
        let Ok(frame) = Frame::new(FrameHeader::parse(&header)) else {
            self.lose(direction);
            return bytes.len();
        };
        let open = self.half(direction).block;
        let continues =
            open.is_some_and(|block| frame.header.kind == kind::CONTINUATION && frame.header.stream == block.stream);
        if open.is_some() != continues {
            // Nothing may come between the frames of a block (RFC 9113 section 6.10); or one continues nothing, whose
            // beginning went by unseen.
            let half = self.half(direction);
            half.block = None;
            half.buffer.clear();
            half.decoder.lose();
        }
        let end_stream = frame.header.has(flags::END_STREAM);
        let block = |promise: bool| Block {
            stream: frame.header.stream,
            begun,
            end_stream: end_stream && !promise,
            promise,
            broken: None,
        };
        let half = self.half(direction);
        match frame.header.kind {
            kind::HEADERS => half.block = Some(block(false)),
            kind::PUSH_PROMISE => half.block = Some(block(true)),
            kind::SETTINGS | kind::GOAWAY | kind::RST_STREAM => half.buffer.clear(),
            _ => {}
        }
        half.state = State::Payload(frame, begun);
        if frame.is_over() {
            self.on_frame_end(direction, frame, begun.operation, out);
        }
        used
    }

    fn on_payload(
        &mut self,
        direction: Direction,
        mut frame: Frame,
        begun: Begun,
        bytes: &[u8],
        operation: Operation,
        out: &mut Vec<Event>,
    ) -> usize {
        let Ok(step) = frame.take(bytes) else {
            self.lose(direction);
            return bytes.len();
        };
        let limit = self.limits.head_bytes;
        match frame.header.kind {
            kind::DATA => self.on_content(direction, frame.header.stream, operation, Ok(step.content)),
            kind::HEADERS | kind::CONTINUATION | kind::PUSH_PROMISE => {
                let whole = frame.is_over() && frame.header.has(flags::END_HEADERS);
                let half = self.half(direction);
                // What is behind a hole does not continue what is before it.
                let is_sound = half.block.is_some_and(|block| block.broken.is_none());
                if whole && is_sound && half.buffer.is_empty() && step.content.len() <= limit {
                    half.state = IN_STEP;
                    self.on_block(direction, step.content, operation, out);
                    return step.used;
                }
                if is_sound && half.buffer.len() + step.content.len() <= limit {
                    half.buffer.extend_from_slice(step.content);
                } else if let Some(block) = &mut half.block {
                    block.broken.get_or_insert(Incomplete::HeadTooLong);
                }
            }
            kind::SETTINGS | kind::GOAWAY | kind::RST_STREAM => {
                let half = self.half(direction);
                let room = CONTROL_BYTES.saturating_sub(half.buffer.len()).min(step.content.len());
                half.buffer.extend_from_slice(step.content.get(..room).unwrap_or_default());
            }
            _ => {}
        }
        self.half(direction).state = State::Payload(frame, begun);
        if frame.is_over() {
            self.on_frame_end(direction, frame, operation, out);
        }
        step.used
    }

    fn on_gap(&mut self, direction: Direction, len: u64, operation: Operation, out: &mut Vec<Event>) {
        let State::Payload(mut frame, begun) = self.half(direction).state else {
            return self.lose(direction);
        };
        let step = frame.skip(len);
        match frame.header.kind {
            kind::DATA => self.on_content(direction, frame.header.stream, operation, Err(step.content)),
            kind::HEADERS | kind::CONTINUATION | kind::PUSH_PROMISE => {
                let is_request = self.requests == Some(direction);
                if let Some(block) = &mut self.half(direction).block {
                    let reason = if is_request { Incomplete::RequestHeadGap } else { Incomplete::ResponseHeadGap };
                    block.broken.get_or_insert(reason);
                }
            }
            kind::SETTINGS | kind::GOAWAY | kind::RST_STREAM => self.half(direction).buffer.clear(),
            _ => {}
        }
        self.half(direction).state = State::Payload(frame, begun);
        if frame.is_over() {
            self.on_frame_end(direction, frame, operation, out);
        }
        if step.used as u64 != len {
            self.lose(direction);
        }
    }

    fn on_frame_end(&mut self, direction: Direction, frame: Frame, operation: Operation, out: &mut Vec<Event>) {
        self.recognised = true;
        let half = self.half(direction);
        half.state = IN_STEP;
        let number = frame.header.stream;
        match frame.header.kind {
            kind::DATA => {
                if frame.unsure {
                    self.lose_content(direction, number);
                }
                if frame.header.has(flags::END_STREAM) {
                    self.end_message(direction, number, operation.time, out);
                }
            }
            kind::HEADERS | kind::CONTINUATION | kind::PUSH_PROMISE if frame.header.has(flags::END_HEADERS) => {
                let mut block = std::mem::take(&mut half.buffer);
                self.on_block(direction, &block, operation, out);
                if block.capacity() <= BUFFER_KEPT {
                    block.clear();
                    self.half(direction).buffer = block;
                }
            }
            kind::SETTINGS if !frame.header.has(flags::ACK) => self.on_settings(direction),
            kind::RST_STREAM => {
                if let Some(code) = word(&half.buffer, 0) {
                    self.on_reset(direction, number, code, operation.time, out);
                }
            }
            kind::GOAWAY => {
                if let Some(last) = word(&half.buffer, 0) {
                    self.on_goaway(direction, last & 0x7fff_ffff, operation.time, out);
                }
            }
            _ => {}
        }
        if matches!(frame.header.kind, kind::SETTINGS | kind::GOAWAY | kind::RST_STREAM) {
            self.half(direction).buffer.clear();
        }
    }

    /// What one side lets the other keep: the table of the blocks that travel the other way.
    fn on_settings(&mut self, direction: Direction) {
        let (parameters, _) = self.half(direction).buffer.as_chunks::<6>();
        let sizes: Vec<u32> = parameters
            .iter()
            .filter(|parameter| u16::from_be_bytes([parameter[0], parameter[1]]) == HEADER_TABLE_SIZE)
            .map(|&[_, _, a, b, c, d]| u32::from_be_bytes([a, b, c, d]))
            .collect();
        let decoder = &mut self.half(direction.opposite()).decoder;
        for size in sizes {
            decoder.set_limit(size);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
