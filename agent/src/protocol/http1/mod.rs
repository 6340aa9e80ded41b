//! HTTP/1.0 and 1.1: both directions of one connection in, paired exchanges out (RFC 9112).
//!
//! Responses answer requests in order, so what was not seen matters as much as what was: wherever the number of
//! requests or responses in unseen bytes is open, what is outstanding is given up with its reason. Never a guess which
//! request a response answers.
//!
//! Pairing takes up again when the client begins a request while nothing known is outstanding and its peer has
//! answered since. That is exact for every client that waits for a response before its next request. For one that is
//! seen to pipeline it is not, so there pairing rests until the connection was quiet for the time limit.

mod body;
mod head;
mod messages;
mod upgrade;
mod websocket;

#[cfg(test)]
mod llhttp;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use self::body::{Content, Framing, GapProgress};
use self::head::{Head, Method, Parsed, Reading, RequestLead};
pub use self::head::{Start, looks_like_start};
use self::messages::Readers;
use super::progress::Due;
use super::{Done, End, Event, Limits, Operation, Protocol, RequestHead, Segment};
use crate::model::{Body, Direction, Incomplete, Outcome, Request, Response, Timestamp, Timing, Version};

/// Longest piece that is copied from an operation's end after a gap.
const TAIL_BYTES: usize = 8;
/// Shortest request there can be (`GET / HTTP/1.0`, two bare line feeds): less cannot hide a whole one.
const SHORTEST_REQUEST: u64 = 16;
/// A head that came in pieces leaves its buffer for the next one, up to this size.
const BUFFER_KEPT: usize = 4096;
/// Below this a head in pieces is looked at again with each piece, so that other protocols are dropped early.
const START_LOOKS: usize = 64;
/// Exchanges in turn after which a client that once pipelined counts as one that waits.
const TURNS_TO_TRUST: u32 = 64;
/// Overlaps just after pairing took up again, after which the client counts as one that pipelines.
const DOUBTS_TO_DISTRUST: u32 = 3;
/// A stream of messages may be silent for so many times the limit of other responses.
const STREAM_PATIENCE: u64 = 12;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    /// The direction of requests, once a start-line told.
    requests: Option<Direction>,
    receive: Stream,
    send: Stream,
    /// Exchanges whose response has not ended (or whose request has not), oldest first.
    known: VecDeque<Entry>,
    /// Behind all of `known`: requests that were not seen may await responses.
    unknown: Option<Unknown>,
    /// Key of the next exchange.
    next: u64,
    /// The protocol was left: what follows is not HTTP/1.
    tunnel: bool,
    /// What is spoken from then on, if that can be read.
    after: Option<Box<dyn Protocol>>,
    /// A request began while another awaited its response.
    pipelined: bool,
    /// Exchanges in turn since then.
    turns: u32,
    /// Pairing has just taken up again, for this reason there was none: it stands when one exchange went in turn.
    probation: Option<Incomplete>,
    doubts: u32,
    /// Last byte in any direction.
    last: Timestamp,
}

/// One direction.
#[derive(Debug)]
struct Stream {
    state: State,
    /// A head in pieces, from its first byte.
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no end of a head.
    scanned: usize,
    /// Where the head in `buffer` began.
    begun: Begun,
    /// The operation that the last bytes came from.
    last_bytes: Option<Operation>,
    /// The gap just before.
    after_gap: Option<Gap>,
}

#[derive(Clone, Copy, Debug)]
struct Gap {
    operation: Operation,
    /// Bytes of the same operation came before it.
    within: bool,
}

#[derive(Debug)]
enum State {
    /// Not in step: wait for a start-line at the start of an operation.
    Seek,
    /// In step: the next byte begins a message.
    Start,
    /// `loose`: a start-line at the start of an operation ends it, because its length is in doubt.
    Content { content: Content, loose: bool },
}

#[derive(Clone, Copy, Debug, Default)]
struct Begun {
    position: u64,
    operation: Operation,
}

/// An exchange, or what keeps the place of one.
#[derive(Debug)]
struct Entry {
    /// `None` when it was reported already: it still has to take its response.
    done: Option<Box<Done>>,
    method: Method,
    request_open: bool,
    phase: Phase,
    interim: u16,
    /// Last byte of either message.
    last: Timestamp,
    /// What is read of the content.
    readers: Option<Box<Readers>>,
    told: Due,
}

/// Where the response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Awaited,
    Moving,
    /// Its head was not seen whole; bytes may go on.
    Lost,
    Complete,
}

/// Requests that were not seen.
#[derive(Clone, Copy, Debug)]
struct Unknown {
    reason: Incomplete,
    /// The other side has sent something since.
    turned: bool,
    /// Final responses that came for it.
    finals: u32,
    /// The request may have more bytes to come: they are no sign of another request.
    may_continue: bool,
    /// A client that waits has nothing outstanding when it begins a request, whether or not a response was seen.
    settles_at_once: bool,
    operation: Operation,
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
        if let Some(after) = &mut self.after {
            return after.on_segment(direction, position, segment, operation, out);
        }
        if self.tunnel {
            return;
        }
        self.last = self.last.max(operation.time);
        match segment {
            Segment::Bytes([]) | Segment::Gap(0) => {}
            Segment::Bytes(bytes) => self.on_bytes(direction, position, bytes, operation, out),
            Segment::Gap(len) => self.on_gap(direction, len, operation, out),
        }
    }

    fn on_boundary(&mut self, direction: Direction) {
        if let Some(after) = &mut self.after {
            after.on_boundary(direction);
        }
    }

    fn on_loss(&mut self, time: Timestamp, out: &mut Vec<Event>) {
        if let Some(after) = &mut self.after {
            return after.on_loss(time, out);
        }
        self.last = self.last.max(time);
        if self.tunnel {
            return;
        }
        self.give_up_all(Incomplete::RecordsLost, Operation { time, ..Operation::default() }, out);
        if let Some(unknown) = &mut self.unknown {
            unknown.settles_at_once = true;
            unknown.may_continue = true;
        }
        self.receive.lose();
        self.send.lose();
    }

    fn on_end(&mut self, end: End, time: Timestamp, out: &mut Vec<Event>) {
        if let Some(after) = &mut self.after {
            return after.on_end(end, time, out);
        }
        match end {
            End::Direction(direction) if self.requests == Some(direction) => {
                if !self.tunnel {
                    self.end_request(false, time, out);
                    self.stream(direction).lose();
                }
            }
            End::Direction(direction) if self.requests.is_some() => {
                self.close(Outcome::ConnectionClosed, time, out);
                self.stream(direction).lose();
            }
            End::Direction(direction) => self.stream(direction).lose(),
            End::Closed => self.close(Outcome::ConnectionClosed, time, out),
            End::Reset => self.close(Outcome::ConnectionReset, time, out),
        }
        if !matches!(end, End::Direction(_)) {
            *self = Self::new(self.limits);
        }
    }

    fn on_tick(&mut self, now: Timestamp, out: &mut Vec<Event>) {
        if let Some(after) = &mut self.after {
            return after.on_tick(now, out);
        }
        let limit = self.limits.response_timeout_ns;
        // Whoever waits in line behind a response that moves is not late.
        let mut moving = Timestamp(0);
        let mut index = 0;
        while let Some(entry) = self.known.get_mut(index) {
            moving = moving.max(entry.last);
            let patience = if entry.is_stream() { STREAM_PATIENCE } else { 1 };
            if now.since(moving) < limit.saturating_mul(patience) {
                entry.progress(now, out);
                index += 1;
                continue;
            }
            let phase = entry.phase;
            if let Some(mut done) = entry.take() {
                if phase == Phase::Complete {
                    done.outcome = Outcome::Complete;
                } else {
                    done.outcome = Outcome::Timeout;
                    done.incomplete = done.incomplete.or(Some(Incomplete::Abandoned));
                    done.timing.end = if done.response.is_some() { done.timing.end } else { now };
                }
                out.push(Event::Done(done));
            }
            // A late response must still find its place taken.
            if matches!(phase, Phase::Awaited | Phase::Moving) {
                index += 1;
            } else {
                drop(self.known.remove(index));
            }
        }
        if now.since(self.last) >= limit && self.known.is_empty() {
            self.unknown = None;
            self.pipelined = false;
        }
    }

    fn memory(&self) -> usize {
        let entries: usize = self.known.iter().map(Entry::memory).sum();
        size_of::<Self>()
            + self.receive.buffer.capacity()
            + self.send.buffer.capacity()
            + self.known.capacity() * size_of::<Entry>()
            + entries
            + self.after.as_ref().map_or(0, |after| after.memory())
    }

    fn is_idle(&self) -> bool {
        if let Some(after) = &self.after {
            return after.is_idle();
        }
        let open = self.known.iter().any(|entry| entry.done.is_some());
        self.tunnel || !(open || !self.receive.buffer.is_empty() || !self.send.buffer.is_empty())
    }
}

impl Connection {
    /// A connection of which nothing is known: bytes before the first start-line are skipped.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            requests: None,
            receive: Stream::new(),
            send: Stream::new(),
            known: VecDeque::new(),
            unknown: None,
            next: 0,
            tunnel: false,
            after: None,
            pipelined: false,
            turns: 0,
            probation: None,
            doubts: 0,
            last: Timestamp(0),
        }
    }

    /// A connection that is older than its first segment: requests not seen may await responses. Without this, a
    /// client that pipelines could be paired wrongly at the moment the agent meets its connection.
    pub fn joined(limits: Limits) -> Self {
        let unknown = Unknown {
            settles_at_once: true,
            may_continue: true,
            ..Unknown::new(Incomplete::JoinedMidExchange, Operation::default())
        };
        Self { unknown: Some(unknown), ..Self::new(limits) }
    }

    fn stream(&mut self, direction: Direction) -> &mut Stream {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        }
    }

    fn on_bytes(
        &mut self,
        direction: Direction,
        position: u64,
        bytes: &[u8],
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        let stream = self.stream(direction);
        let mut at_start = match stream.after_gap.take() {
            // Of one operation: what was copied of it, what was not, a tail. Or a hole before it, and its first bytes.
            Some(gap) if gap.operation == operation => !gap.within && bytes.len() > TAIL_BYTES,
            _ => true,
        };
        stream.last_bytes = Some(operation);
        if at_start && matches!(stream.state, State::Content { .. }) {
            self.cut_content(direction, bytes, operation, out);
        }
        let mut rest = bytes;
        while !rest.is_empty() && !self.tunnel {
            let position = position.wrapping_add((bytes.len() - rest.len()) as u64);
            let used = match self.stream(direction).state {
                State::Content { .. } => self.on_content(direction, rest, operation, out),
                State::Seek | State::Start => {
                    let begun = Begun { position, operation };
                    self.on_head_bytes(direction, rest, begun, at_start, out)
                }
            };
            at_start = false;
            rest = rest.get(used..).unwrap_or_default();
        }
        if let Some(after) = &mut self.after
            && !rest.is_empty()
        {
            let position = position.wrapping_add((bytes.len() - rest.len()) as u64);
            after.on_segment(direction, position, Segment::Bytes(rest), operation, out);
        }
    }

    /// Content of doubtful length ends where the next message evidently begins.
    fn cut_content(&mut self, direction: Direction, bytes: &[u8], operation: Operation, out: &mut Vec<Event>) {
        let answered = self.known.front().is_some_and(|entry| entry.phase == Phase::Complete);
        let is_request = self.requests == Some(direction);
        let State::Content { loose, .. } = self.stream(direction).state else {
            return;
        };
        // After a final response a client may leave its request's content out (RFC 9110 section 10.1.1).
        let may_be_left_out = is_request && answered;
        if !(loose || may_be_left_out) {
            return;
        }
        let expected = if is_request { Start::Request } else { Start::Response };
        if looks_like_start(bytes) != expected {
            return;
        }
        self.stream(direction).state = State::Seek;
        if is_request {
            self.end_request(false, operation.time, out);
        } else {
            self.end_response(false, out);
        }
    }

    fn on_content(&mut self, direction: Direction, bytes: &[u8], operation: Operation, out: &mut Vec<Event>) -> usize {
        let is_request = self.requests == Some(direction);
        let entry = if is_request {
            self.known.iter_mut().rev().find(|entry| entry.request_open)
        } else {
            self.known.front_mut().filter(|entry| entry.phase == Phase::Moving)
        };
        let stream = match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        };
        let State::Content { content, .. } = &mut stream.state else {
            return bytes.len();
        };
        let progress = if let Some(entry) = entry {
            entry.touch(is_request, operation.time);
            content.push(bytes, &self.limits, &mut |payload| entry.on_payload(is_request, payload))
        } else {
            content.push(bytes, &self.limits, &mut |_| {})
        };
        let Ok(progress) = progress else {
            self.lose_framing(direction, Incomplete::Malformed, operation, out);
            // The rest is read without framing.
            return 0;
        };
        if progress.ended {
            let inferred = matches!(content, Content::Inferred { .. });
            stream.state = if inferred { State::Seek } else { State::Start };
            if is_request {
                self.end_request(!inferred, operation.time, out);
            } else {
                self.end_response(!inferred, out);
            }
        }
        progress.consumed
    }

    fn on_gap(&mut self, direction: Direction, len: u64, operation: Operation, out: &mut Vec<Event>) {
        let is_request = self.requests == Some(direction);
        let stream = self.stream(direction);
        let within = stream.last_bytes == Some(operation);
        stream.after_gap = Some(Gap { operation, within });
        let State::Content { content, .. } = &mut stream.state else {
            self.lose_head(direction, len, operation, out);
            return;
        };
        let inferred = matches!(content, Content::Inferred { .. });
        let progress = content.gap(len);
        let (payload, beyond) = match progress {
            GapProgress::FramingLost => {
                self.lose_framing(direction, Incomplete::ChunkedBeyondBudget, operation, out);
                (0, None)
            }
            GapProgress::Inside if inferred => (0, None),
            GapProgress::Inside => (len, None),
            GapProgress::Ended { payload, beyond } => (payload, Some(beyond)),
        };
        if let Some(entry) = self.entry(is_request) {
            entry.touch(is_request, operation.time);
            entry.on_payload_gap(is_request, payload);
        }
        if let Some(beyond) = beyond {
            self.stream(direction).state = State::Start;
            if is_request {
                self.end_request(true, operation.time, out);
            } else {
                self.end_response(true, out);
            }
            if beyond > 0 {
                self.lose_head(direction, beyond, operation, out);
            }
        }
    }

    /// The exchange whose request, or whose response, is on its way.
    fn entry(&mut self, is_request: bool) -> Option<&mut Entry> {
        if is_request {
            self.known.iter_mut().rev().find(|entry| entry.request_open)
        } else {
            self.known.front_mut().filter(|entry| entry.phase == Phase::Moving)
        }
    }

    fn lose_framing(&mut self, direction: Direction, reason: Incomplete, operation: Operation, out: &mut Vec<Event>) {
        let is_request = self.requests == Some(direction);
        self.stream(direction).state = State::Content { content: Content::inferred(), loose: true };
        if let Some(entry) = self.entry(is_request) {
            if let Some(readers) = &mut entry.readers {
                readers.on_loss(is_request);
            }
            if let Some(done) = &mut entry.done {
                done.incomplete = done.incomplete.or(Some(reason));
            }
        }
        if is_request {
            // The next request may begin unseen.
            let unknown = Unknown { may_continue: true, ..Unknown::new(reason, operation) };
            self.unknown.get_or_insert(unknown);
        } else if self.known.len() > 1 {
            // Whole responses may go by unseen.
            for entry in self.known.drain(1..) {
                entry.report(Outcome::Complete, Some(reason), operation.time, out);
            }
            self.unknown.get_or_insert(Unknown::new(reason, operation));
        }
    }

    /// Bytes where a head is expected. Returns how many were taken, at least one.
    fn on_head_bytes(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        begun: Begun,
        at_start: bool,
        out: &mut Vec<Event>,
    ) -> usize {
        let stream = self.stream(direction);
        if matches!(stream.state, State::Seek)
            && at_start
            && matches!(looks_like_start(bytes), Start::Request | Start::Response)
            && !head::continues_line(&stream.buffer, bytes)
        {
            // What was kept was content that could have become a start-line.
            stream.buffer.clear();
        }
        if !stream.buffer.is_empty() {
            return self.on_head_piece(direction, bytes, begun.operation, out);
        }
        if !at_start && matches!(stream.state, State::Seek) {
            self.pass(direction, Incomplete::ResponseHeadGap, begun.operation, out);
            return bytes.len();
        }
        if bytes.starts_with(upgrade::PREFACE) && self.known.is_empty() {
            // Its first bytes came in pieces too small to tell.
            self.tunnel = true;
            self.after = Some(upgrade::prior_knowledge(self.limits, self.next));
            return 0;
        }
        // RFC 9112 section 2.2: empty lines before a request-line are ignored.
        let skipped = bytes.iter().take_while(|&&byte| matches!(byte, b'\r' | b'\n')).count();
        let head = bytes.get(skipped..).unwrap_or_default();
        if head.is_empty() {
            return bytes.len();
        }
        let begun = Begun { position: begun.position.wrapping_add(skipped as u64), ..begun };
        if let Some(used) = self.whole_head(direction, head, begun, begun.operation, out) {
            return skipped + used;
        }
        let start = looks_like_start(head);
        if start == Start::No || !self.agrees(direction, start, begun.operation, out) {
            self.unrecognised(direction, begun.operation, out);
            return bytes.len();
        }
        if let Some(end) = head::head_end(head, 0) {
            self.odd_head(direction, head.get(..end).unwrap_or_default(), begun, begun.operation, out);
            return skipped + end;
        }
        let most = self.limits.head_bytes;
        let stream = self.stream(direction);
        stream.begun = begun;
        stream.buffer.extend_from_slice(head.get(..head.len().min(most + 1)).unwrap_or_default());
        stream.scanned = stream.buffer.len();
        if stream.buffer.len() > most {
            self.head_too_long(direction, begun.operation, out);
        }
        bytes.len()
    }

    /// More of a head that began in an earlier segment.
    fn on_head_piece(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        operation: Operation,
        out: &mut Vec<Event>,
    ) -> usize {
        let most = self.limits.head_bytes;
        let stream = self.stream(direction);
        let old = stream.buffer.len();
        let taken = bytes.len().min((most + 1).saturating_sub(old)).max(1);
        stream.buffer.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        let end = head::head_end(&stream.buffer, stream.scanned);
        let first_line = memchr::memchr(b'\n', stream.buffer.get(old..).unwrap_or_default()).is_some();
        let begun = stream.begun;
        let Some(end) = end else {
            stream.scanned = stream.buffer.len();
            if stream.buffer.len() > most {
                self.head_too_long(direction, operation, out);
                return bytes.len();
            }
            let line_end = memchr::memchr(b'\n', stream.buffer.get(..old).unwrap_or_default());
            if old < START_LOOKS || (first_line && line_end.is_none()) {
                let start = looks_like_start(&stream.buffer);
                if start == Start::No || !self.agrees(direction, start, operation, out) {
                    self.unrecognised(direction, operation, out);
                    return bytes.len();
                }
            }
            return taken;
        };
        let mut buffer = std::mem::take(&mut stream.buffer);
        let head = buffer.get(..end).unwrap_or_default();
        if self.whole_head(direction, head, begun, operation, out).is_none() {
            let start = looks_like_start(head);
            if matches!(start, Start::Request | Start::Response) && self.agrees(direction, start, operation, out) {
                self.odd_head(direction, head, begun, operation, out);
            } else {
                self.unrecognised(direction, operation, out);
                return bytes.len();
            }
        }
        if buffer.capacity() <= BUFFER_KEPT {
            buffer.clear();
            self.stream(direction).buffer = buffer;
        }
        end.saturating_sub(old).max(1)
    }

    /// Read the head at the front of `head`, if it is whole and in order.
    fn whole_head(
        &mut self,
        direction: Direction,
        head: &[u8],
        begun: Begun,
        operation: Operation,
        out: &mut Vec<Event>,
    ) -> Option<usize> {
        let is_request = match self.requests {
            Some(requests) => requests == direction,
            None => !head.starts_with(b"HTTP/"),
        };
        if is_request {
            match head::request(head, head, self.limits.headers, Reading::Usual) {
                Parsed::Whole(_, len) if len > self.limits.head_bytes => None,
                Parsed::Whole(request, len) => {
                    self.on_request(direction, request, begun, operation, out);
                    Some(len)
                }
                Parsed::Partial | Parsed::Invalid => None,
            }
        } else {
            match head::response(head, self.limits.headers, Reading::Usual, begun.operation.time) {
                Parsed::Whole(_, len) if len > self.limits.head_bytes => None,
                Parsed::Whole(response, len) => {
                    self.on_response(direction, response, begun, operation, out);
                    Some(len)
                }
                Parsed::Partial | Parsed::Invalid => None,
            }
        }
    }

    /// A whole head that is not in order: folded lines, bytes no peer should send, fields that are not.
    fn odd_head(
        &mut self,
        direction: Direction,
        head: &[u8],
        begun: Begun,
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        let most = self.limits.head_bytes;
        if head.len() > most {
            let stream = self.stream(direction);
            stream.begun = begun;
            stream.buffer = head.get(..most).unwrap_or_default().to_vec();
            self.head_too_long(direction, operation, out);
            return;
        }
        let is_request = match self.requests {
            Some(requests) => requests == direction,
            None => !head.starts_with(b"HTTP/"),
        };
        if is_request {
            if let Some(request) = self.odd_request(head) {
                self.on_request(direction, request, begun, operation, out);
                return;
            }
        } else if let Some(response) = self.odd_response(head, begun.operation.time) {
            self.on_response(direction, response, begun, operation, out);
            return;
        }
        self.unrecognised(direction, operation, out);
    }

    fn odd_request(&self, head: &[u8]) -> Option<Head<RequestLead>> {
        let unfolded = head::unfold(head);
        let wire = unfolded.as_deref().unwrap_or(head);
        let masked = head::mask(wire);
        let scan = masked.as_deref().unwrap_or(wire);
        for reading in [Reading::Usual, Reading::Salvage] {
            if let Parsed::Whole(request, _) = head::request(scan, wire, self.limits.headers, reading) {
                return Some(request);
            }
        }
        let request = head::request_line_only(head)?;
        let method = head::method_kind(&request.method);
        let message = RequestLead { request, traceparent: None, exports_otlp: false, method };
        Some(Head { message, framing: Framing::Unknown, malformed: true })
    }

    fn odd_response(&self, head: &[u8], first_byte: Timestamp) -> Option<Head<Response>> {
        let unfolded = head::unfold(head);
        let wire = unfolded.as_deref().unwrap_or(head);
        for reading in [Reading::Usual, Reading::Salvage] {
            if let Parsed::Whole(response, _) = head::response(wire, self.limits.headers, reading, first_byte) {
                return Some(response);
            }
        }
        None
    }

    /// Whether a start-line of that kind may come in that direction. The direction was learned from bytes that may
    /// have been content: until one exchange went through whole, a clear start-line says otherwise.
    fn agrees(&mut self, direction: Direction, start: Start, operation: Operation, out: &mut Vec<Event>) -> bool {
        let (Some(requests), Start::Request | Start::Response) = (self.requests, start) else {
            return true;
        };
        let expected = if requests == direction { Start::Request } else { Start::Response };
        if start == expected {
            return true;
        }
        if self.turns > 0 || self.pipelined || !matches!(self.stream(direction).state, State::Seek) {
            return false;
        }
        self.give_up_all(Incomplete::JoinedMidExchange, operation, out);
        self.unknown = None;
        self.probation = Some(Incomplete::JoinedMidExchange);
        self.requests = None;
        self.stream(direction.opposite()).lose();
        self.stream(direction).buffer.is_empty()
    }

    /// Bytes in the place of a start-line that are none.
    fn unrecognised(&mut self, direction: Direction, operation: Operation, out: &mut Vec<Event>) {
        let stream = self.stream(direction);
        let in_step = matches!(stream.state, State::Start);
        stream.lose();
        if in_step && self.requests == Some(direction) {
            let unknown = Unknown { may_continue: true, ..Unknown::new(Incomplete::Malformed, operation) };
            self.unknown.get_or_insert(unknown);
        } else if in_step && self.requests.is_some() {
            self.lose_response_head(None, Incomplete::Malformed, operation, out);
        } else {
            self.pass(direction, Incomplete::Malformed, operation, out);
        }
    }

    /// Bytes or a gap went by while not in step.
    fn pass(&mut self, direction: Direction, reason: Incomplete, operation: Operation, out: &mut Vec<Event>) {
        if self.requests == Some(direction) {
            if let Some(unknown) = &self.unknown
                && !unknown.turned
                && !unknown.may_continue
                && unknown.operation != operation
            {
                self.pipelined = true;
            }
        } else if self.requests.is_some() {
            // Of a response that is awaited: the client began its request after all others had ended.
            self.lose_response_head(None, reason, operation, out);
            if let Some(entry) = self.known.front_mut().filter(|entry| entry.phase == Phase::Lost) {
                entry.touch(false, operation.time);
            }
        }
    }

    fn head_too_long(&mut self, direction: Direction, operation: Operation, out: &mut Vec<Event>) {
        self.lose_head_for(direction, u64::MAX, Incomplete::HeadTooLong, operation, out);
    }

    fn lose_head(&mut self, direction: Direction, len: u64, operation: Operation, out: &mut Vec<Event>) {
        let is_request = self.requests == Some(direction);
        let reason = if is_request { Incomplete::RequestHeadGap } else { Incomplete::ResponseHeadGap };
        self.lose_head_for(direction, len, reason, operation, out);
    }

    /// `len` bytes from where a head was expected, or in one, are not known.
    fn lose_head_for(
        &mut self,
        direction: Direction,
        len: u64,
        reason: Incomplete,
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        let stream = self.stream(direction);
        let in_step = matches!(stream.state, State::Start) || !stream.buffer.is_empty();
        let begun = stream.begun;
        let cut = std::mem::take(&mut stream.buffer);
        stream.lose();
        let lines = head::whole_lines(&cut).filter(|lines| match looks_like_start(lines) {
            Start::Request => self.requests.is_none_or(|requests| requests == direction),
            Start::Response => self.requests.is_none_or(|requests| requests != direction),
            Start::Partial | Start::No => false,
        });
        if self.requests.is_none() {
            match lines.as_deref().map(looks_like_start) {
                Some(Start::Request) => self.requests = Some(direction),
                Some(Start::Response) => self.requests = Some(direction.opposite()),
                _ => return,
            }
        }
        let reason = match reason {
            Incomplete::ResponseHeadGap if self.requests == Some(direction) => Incomplete::RequestHeadGap,
            other => other,
        };
        if self.requests != Some(direction) {
            let response = lines.and_then(|lines| self.odd_response(&lines, begun.operation.time));
            if in_step {
                self.lose_response_head(response.map(|head| head.message), reason, operation, out);
            } else {
                self.pass(direction, reason, operation, out);
            }
            return;
        }
        let lead = lines.and_then(|lines| self.odd_request(&lines)).map(|head| head.message);
        let hides_more = len >= SHORTEST_REQUEST || lead.is_none();
        let may_continue = lead.as_ref().is_some_and(|lead| !matches!(lead.method, Method::Get | Method::Head));
        match lead {
            Some(lead) => self.on_cut_request(direction, lead, reason, begun, operation, out),
            None if !in_step => self.pass(direction, reason, operation, out),
            None => {}
        }
        if in_step {
            let unknown = Unknown { may_continue, settles_at_once: !hides_more, ..Unknown::new(reason, operation) };
            self.unknown.get_or_insert(unknown);
        }
    }

    /// A request whose head is known in part: it keeps its place in the order.
    fn on_cut_request(
        &mut self,
        direction: Direction,
        lead: RequestLead,
        reason: Incomplete,
        begun: Begun,
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        self.requests = Some(direction);
        let paired = self.begin_request(operation, out);
        let mut request = lead.request;
        request.headers.truncated = true;
        let mut entry = self.open(direction, request, lead.method, begun, operation);
        if let Some(done) = &mut entry.done {
            done.incomplete = Some(reason);
        }
        entry.request_open = false;
        self.place(entry, paired, operation, out);
    }

    /// A response whose head is not known, or in part.
    fn lose_response_head(
        &mut self,
        partial: Option<Response>,
        reason: Incomplete,
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        if let Some(unknown) = &mut self.unknown {
            unknown.turned = true;
        }
        let several = self.known.len() > 1 || self.pipelined;
        let Some(entry) = self.known.front_mut().filter(|entry| entry.phase == Phase::Awaited) else {
            return;
        };
        entry.phase = Phase::Lost;
        entry.touch(false, operation.time);
        if let Some(done) = &mut entry.done {
            done.incomplete = done.incomplete.or(Some(reason));
            // A cut interim response says nothing about the final one.
            if let Some(mut response) = partial.filter(|response| !is_interim(response.status)) {
                response.headers.truncated = true;
                response.interim = entry.interim;
                done.version = response.version;
                done.timing.response_start = Some(response.first_byte);
                done.response = Some(response);
            }
        }
        if several {
            self.give_up_all(reason, operation, out);
            if let Some(unknown) = &mut self.unknown {
                unknown.turned = true;
            }
        }
    }

    /// Report everything outstanding; what comes for it is unknown from here on.
    fn give_up_all(&mut self, reason: Incomplete, operation: Operation, out: &mut Vec<Event>) {
        for entry in self.known.drain(..) {
            entry.report(Outcome::Complete, Some(reason), operation.time, out);
        }
        self.unknown = Some(Unknown::new(reason, operation));
    }

    /// A request begins: settle what that says about the responses before it. Returns whether it will be known which
    /// response answers it.
    fn begin_request(&mut self, operation: Operation, out: &mut Vec<Event>) -> bool {
        self.end_request(false, operation.time, out);
        let (front_phase, front_method) =
            self.known.front().map_or((Phase::Complete, Method::Other), |entry| (entry.phase, entry.method));
        let responses = self.requests.map_or(Direction::Send, Direction::opposite);
        let loose = matches!(self.stream(responses).state, State::Content { loose: true, .. });
        let doubtful = front_phase == Phase::Lost || (front_phase == Phase::Moving && loose);
        if doubtful && !self.pipelined && self.known.len() == 1 {
            // A client that waits has had its response.
            self.stream(responses).lose();
            self.end_response(false, out);
        }
        if self.known.iter().any(|entry| entry.phase != Phase::Complete) {
            self.turns = 0;
            if let Some(reason) = self.probation {
                self.doubts += 1;
                self.pipelined |= self.doubts >= DOUBTS_TO_DISTRUST;
                self.give_up_all(reason, operation, out);
                self.stream(responses).lose();
            } else {
                self.pipelined = true;
                if doubtful || front_method == Method::Unknown {
                    self.unknown.get_or_insert(Unknown::new(Incomplete::ResponseHeadGap, operation));
                }
            }
        } else if let Some(unknown) = self.unknown {
            let settles = unknown.turned || unknown.settles_at_once;
            if settles && !self.pipelined {
                self.unknown = None;
                self.probation = Some(unknown.reason);
            } else if !settles && !unknown.may_continue {
                self.pipelined = true;
            }
        }
        if self.known.len() >= self.limits.pipeline {
            self.give_up_all(Incomplete::Abandoned, operation, out);
            self.stream(responses).lose();
        }
        self.unknown.is_none()
    }

    fn open(
        &mut self,
        direction: Direction,
        request: Request,
        method: Method,
        begun: Begun,
        operation: Operation,
    ) -> Entry {
        let exchange = self.next;
        self.next = self.next.wrapping_add(1);
        let start = begun.operation.time;
        let done = Box::new(Done {
            exchange,
            request_direction: direction,
            version: request.version,
            request: Some(request),
            response: None,
            timing: Timing { start, request_end: None, response_start: None, end: operation.time },
            outcome: Outcome::Complete,
            incomplete: None,
            operation,
        });
        let phase = Phase::Awaited;
        let (readers, told) = (None, Due::default());
        Entry { done: Some(done), method, request_open: true, phase, interim: 0, last: operation.time, readers, told }
    }

    fn place(&mut self, entry: Entry, paired: bool, operation: Operation, out: &mut Vec<Event>) {
        if paired {
            self.known.push_back(entry);
        } else {
            let reason = self.unknown.map(|unknown| unknown.reason);
            entry.report(Outcome::Complete, reason, operation.time, out);
        }
    }

    fn on_request(
        &mut self,
        direction: Direction,
        head: Head<RequestLead>,
        begun: Begun,
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        self.requests = Some(direction);
        let paired = self.begin_request(operation, out);
        let Head { message: lead, framing, malformed } = head;
        let mut entry = self.open(direction, lead.request, lead.method, begun, operation);
        if let Some(done) = &mut entry.done {
            done.incomplete = malformed.then_some(Incomplete::Malformed);
            out.push(Event::RequestHead(RequestHead {
                exchange: done.exchange,
                direction,
                position: begun.position,
                start: begun.operation.time,
                operation,
                traceparent: lead.traceparent,
                exports_otlp: lead.exports_otlp,
            }));
        }
        let content = Content::new(framing);
        if content.is_some() {
            entry.read_request(&self.limits);
        }
        if content.is_none() {
            entry.end_request(framing != Framing::Unknown, operation.time);
        }
        self.place(entry, paired, operation, out);
        if let Some(content) = content {
            self.stream(direction).state = State::Content { content, loose: false };
        } else if framing == Framing::Unknown {
            self.stream(direction).state = State::Seek;
            let unknown = Unknown { may_continue: true, ..Unknown::new(Incomplete::Malformed, operation) };
            self.unknown.get_or_insert(unknown);
        } else {
            self.stream(direction).state = State::Start;
        }
    }

    fn on_response(
        &mut self,
        direction: Direction,
        head: Head<Response>,
        begun: Begun,
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        self.requests = Some(direction.opposite());
        self.stream(direction).state = State::Start;
        let Head { message: mut response, framing, malformed } = head;
        if self.known.front().is_some_and(|entry| entry.phase == Phase::Lost) {
            // Either this one answers it or the one that was lost did.
            self.give_up_all(Incomplete::ResponseHeadGap, operation, out);
        }
        if is_interim(response.status) {
            if let Some(entry) = self.known.front_mut().filter(|entry| entry.phase == Phase::Awaited) {
                entry.interim = entry.interim.saturating_add(1);
                entry.last = operation.time;
            }
            return;
        }
        if self.known.front().is_some_and(|entry| entry.phase == Phase::Awaited) {
            if let Some(unknown) = &mut self.unknown {
                unknown.turned = true;
            }
        } else {
            let orphan = self.orphan(direction, response.version, begun);
            self.known.push_front(orphan);
        }
        let Some(entry) = self.known.front_mut() else {
            return;
        };
        let method = entry.method;
        entry.phase = Phase::Moving;
        entry.last = operation.time;
        response.interim = entry.interim;
        let upgraded = response.status == 101 || (method == Method::Connect && matches!(response.status, 200..=299));
        let framing = if method == Method::Head || upgraded { Framing::None } else { framing };
        if let Some(done) = &mut entry.done {
            done.timing.response_start = Some(begun.operation.time);
            done.timing.end = operation.time;
            done.version = response.version;
            if malformed {
                done.incomplete = done.incomplete.or(Some(Incomplete::Malformed));
            }
            done.response = Some(response);
        }
        if upgraded {
            self.upgrade(operation, out);
            return;
        }
        // Without the request's method it is not known whether there is content at all (RFC 9112 section 6.3).
        let doubtful = method == Method::Unknown || framing == Framing::Unknown;
        let framing = if framing == Framing::Unknown { Framing::UntilClose } else { framing };
        match Content::new(framing) {
            Some(content) => {
                entry.read_response(&self.limits);
                self.stream(direction).state = State::Content { content, loose: doubtful };
            }
            None => self.end_response(true, out),
        }
    }

    /// The place of a response whose request is not known.
    fn orphan(&mut self, direction: Direction, version: Version, begun: Begun) -> Entry {
        let reason = if let Some(unknown) = &mut self.unknown {
            unknown.turned = true;
            unknown.finals = unknown.finals.saturating_add(1);
            self.pipelined |= unknown.finals > 1;
            unknown.reason
        } else {
            // A server may answer before a request is whole (408), or answer bytes that are none (400). Or two
            // threads of the client raced, and the request is still to be told of: hence the probation.
            let cut = looks_like_start(&self.stream(direction.opposite()).buffer) == Start::Request;
            let request_seen = self.next > 0 || cut;
            let reason = if request_seen { Incomplete::Malformed } else { Incomplete::JoinedMidExchange };
            self.probation = Some(reason);
            reason
        };
        let exchange = self.next;
        self.next = self.next.wrapping_add(1);
        let time = begun.operation.time;
        let done = Box::new(Done {
            exchange,
            request_direction: direction.opposite(),
            version,
            request: None,
            response: None,
            timing: Timing { start: time, request_end: None, response_start: None, end: time },
            outcome: Outcome::Complete,
            incomplete: Some(reason),
            operation: begun.operation,
        });
        Entry {
            done: Some(done),
            method: Method::Unknown,
            request_open: false,
            phase: Phase::Awaited,
            interim: 0,
            last: time,
            readers: None,
            told: Due::default(),
        }
    }

    fn upgrade(&mut self, operation: Operation, out: &mut Vec<Event>) {
        self.tunnel = true;
        for (index, mut entry) in self.known.drain(..).enumerate() {
            if index == 0 {
                entry.finish_body(false, true);
                self.after = upgrade::after(&mut entry.done, self.limits, self.next, operation.time, out);
                entry.report(Outcome::Upgraded, None, operation.time, out);
            } else {
                entry.report(Outcome::Complete, Some(Incomplete::Abandoned), operation.time, out);
            }
        }
        self.unknown = None;
        self.receive = Stream::new();
        self.send = Stream::new();
    }

    /// The request on its way is over, `seen` whole or not.
    fn end_request(&mut self, seen: bool, time: Timestamp, out: &mut Vec<Event>) {
        let Some(entry) = self.known.iter_mut().rev().find(|entry| entry.request_open) else {
            return;
        };
        entry.end_request(seen, time);
        self.report_finished(out);
    }

    /// The response on its way is over, its end seen or inferred.
    fn end_response(&mut self, seen: bool, out: &mut Vec<Event>) {
        let Some(entry) = self.known.front_mut() else {
            return;
        };
        let lost = entry.phase == Phase::Lost;
        entry.phase = Phase::Complete;
        entry.finish_body(false, seen && !lost);
        let clean = entry.method != Method::Unknown && !lost && seen;
        // A request whose end cannot be seen is over when it is answered.
        let requests = self.requests.unwrap_or(Direction::Receive);
        let endless = matches!(self.stream(requests).state, State::Content { loose: true, .. });
        if let Some(entry) = self.known.front_mut().filter(|entry| entry.request_open && endless) {
            entry.request_open = false;
            entry.finish_body(true, false);
        }
        if clean && self.known.len() == 1 {
            self.turns = self.turns.saturating_add(1);
            self.probation = None;
            self.doubts = 0;
            self.pipelined &= self.turns < TURNS_TO_TRUST;
        }
        self.report_finished(out);
    }

    fn report_finished(&mut self, out: &mut Vec<Event>) {
        let over = |entry: &mut Entry| entry.phase == Phase::Complete && !entry.request_open;
        while let Some(mut entry) = self.known.pop_front_if(over) {
            if let Some(done) = entry.take() {
                out.push(Event::Done(done));
            }
        }
    }

    /// No response can come any more.
    fn close(&mut self, outcome: Outcome, time: Timestamp, out: &mut Vec<Event>) {
        let responses = self.requests.map_or(Direction::Send, Direction::opposite);
        let (until_close, inferred) = match &self.stream(responses).state {
            State::Content { content: Content::UntilClose, .. } => (true, false),
            State::Content { content: Content::Inferred { .. }, .. } => (false, true),
            _ => (false, false),
        };
        for (index, mut entry) in self.known.drain(..).enumerate() {
            let ends_so = index == 0 && outcome == Outcome::ConnectionClosed && (until_close || inferred);
            if entry.phase == Phase::Complete || (ends_so && entry.phase == Phase::Moving) {
                if entry.phase == Phase::Moving {
                    entry.finish_body(false, until_close);
                }
                entry.report(Outcome::Complete, None, time, out);
            } else {
                entry.report(outcome, None, time, out);
            }
        }
        self.unknown = None;
    }
}

impl Entry {
    /// Payload of a message's content.
    fn on_payload(&mut self, of_request: bool, payload: &[u8]) {
        let (Some(body), readers) = self.content(of_request) else { return };
        body.seen = body.seen.saturating_add(payload.len() as u64);
        if let Some(readers) = readers {
            readers.on_bytes(of_request, body, payload);
        }
    }

    /// Payload that was not seen.
    fn on_payload_gap(&mut self, of_request: bool, len: u64) {
        let (Some(body), readers) = self.content(of_request) else { return };
        body.seen = body.seen.saturating_add(len);
        if let Some(readers) = readers {
            readers.on_gap(of_request, len);
        }
    }

    fn content(&mut self, of_request: bool) -> (Option<&mut Body>, Option<&mut Readers>) {
        let body = self.done.as_mut().and_then(|done| {
            if of_request {
                done.request.as_mut().map(|request| &mut request.body)
            } else {
                done.response.as_mut().map(|response| &mut response.body)
            }
        });
        (body, self.readers.as_deref_mut())
    }

    fn read_request(&mut self, limits: &Limits) {
        let request = self.done.as_ref().and_then(|done| done.request.as_ref());
        self.readers = request.and_then(|request| Readers::of_request(&request.headers, limits.body_prefix));
    }

    fn read_response(&mut self, limits: &Limits) {
        let Some(done) = &self.done else { return };
        let request = done.request.as_ref().map(|request| &request.body);
        if let Some(response) = &done.response {
            Readers::on_response(&mut self.readers, &response.headers, request, limits.body_prefix);
        }
    }

    /// Its response is a series of messages.
    fn is_stream(&self) -> bool {
        self.phase == Phase::Moving && self.readers.as_ref().is_some_and(|readers| readers.is_stream())
    }

    /// Tell of it before its end.
    fn progress(&mut self, now: Timestamp, out: &mut Vec<Event>) {
        if let Some(done) = &self.done
            && self.told.take(now.since(done.timing.start))
        {
            let mut done = done.clone();
            self.summarize(&mut done);
            done.timing.end = now;
            out.push(Event::Progress(done));
        }
    }

    /// What there is to say of it, once.
    fn take(&mut self) -> Option<Box<Done>> {
        let mut done = self.done.take()?;
        self.summarize(&mut done);
        Some(done)
    }

    fn summarize(&self, done: &mut Done) {
        if let Some(readers) = &self.readers {
            readers.summarize(done.request.as_mut().map(|request| &mut request.body), done.response.as_mut());
        }
    }

    fn touch(&mut self, of_request: bool, time: Timestamp) {
        self.last = time;
        if let Some(done) = self.done.as_mut().filter(|_| !of_request) {
            done.timing.end = time;
        }
    }

    fn end_request(&mut self, seen: bool, time: Timestamp) {
        self.request_open = false;
        self.finish_body(true, seen);
        if let Some(done) = self.done.as_mut().filter(|_| seen) {
            done.timing.request_end = Some(time);
        }
    }

    fn finish_body(&mut self, of_request: bool, seen: bool) {
        if let Some(body) = self.content(of_request).0 {
            body.complete = seen;
            body.size = seen.then_some(body.seen);
        }
    }

    /// Tell of it now, whatever is missing. `time` is the end where no response says otherwise.
    fn report(mut self, outcome: Outcome, incomplete: Option<Incomplete>, time: Timestamp, out: &mut Vec<Event>) {
        let Some(mut done) = self.take() else {
            return;
        };
        done.outcome = outcome;
        done.incomplete = done.incomplete.or(incomplete);
        let cut = matches!(outcome, Outcome::ConnectionClosed | Outcome::ConnectionReset);
        if cut || done.response.is_none() {
            done.timing.end = time;
        }
        out.push(Event::Done(done));
    }

    fn memory(&self) -> usize {
        let readers = self.readers.as_ref().map_or(0, |readers| readers.memory());
        self.done.as_ref().map_or(0, |done| done.memory()) + readers
    }
}

impl Stream {
    fn new() -> Self {
        Self {
            state: State::Seek,
            buffer: Vec::new(),
            scanned: 0,
            begun: Begun::default(),
            last_bytes: None,
            after_gap: None,
        }
    }

    /// Out of step.
    fn lose(&mut self) {
        self.state = State::Seek;
        self.buffer = Vec::new();
        self.scanned = 0;
    }
}

impl Unknown {
    const fn new(reason: Incomplete, operation: Operation) -> Self {
        Self { reason, turned: false, finals: 0, may_continue: false, settles_at_once: false, operation }
    }
}

/// RFC 9110 section 15.2; 101 is the last response of HTTP/1 on its connection.
const fn is_interim(status: u16) -> bool {
    matches!(status, 100 | 102..=199)
}
