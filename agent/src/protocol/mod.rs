//! Protocols: bytes of one connection in, exchanges out.
//!
//! A protocol is one file (or folder) here and one line in [`start`]. It sees segments and times, never a process, a
//! pod, a policy or a span.

pub mod content;
pub mod http1;
pub mod http2;
pub mod progress;

use std::fmt;

use crate::model::{Direction, Incomplete, Outcome, Request, Response, Timestamp, Timing, Version};

/// A piece of one direction's byte stream, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    Bytes(&'a [u8]),
    /// That many bytes went by that were not copied.
    Gap(u64),
}

/// The operation a segment came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    pub time: Timestamp,
    pub pid: u32,
    pub tid: u32,
}

/// Which side of HTTP moves its requests in which direction is known from the bytes, not from the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process read end-of-file in `Receive`, or shut down its sending side in `Send`.
    Direction(Direction),
    /// The connection is gone.
    Closed,
    /// The connection is gone by RST.
    Reset,
}

/// What a protocol tells about one exchange, in this order: `RequestHead` (as soon as the head is whole, so that
/// causality can be decided in time), any number of `Progress`, then `Done`. An exchange whose request was never seen
/// has only the last two.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    RequestHead(RequestHead),
    /// An exchange that has been open for long ([`progress::Due`]), as it stands: bodies have no size yet, and its end
    /// is the time of this.
    Progress(Box<Done>),
    Done(Box<Done>),
}

impl Event {
    /// The exchange whose request's head this is.
    pub const fn request(&self) -> Option<u64> {
        match self {
            Self::RequestHead(head) => Some(head.exchange),
            Self::Progress(_) | Self::Done(_) => None,
        }
    }
}

/// A request's head is complete.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Key of the exchange within its connection; also in [`Done`].
    pub exchange: u64,
    pub direction: Direction,
    /// Position (as fed) of the request's first byte.
    pub position: u64,
    pub start: Timestamp,
    /// The operation that completed the head.
    pub operation: Operation,
    /// `traceparent` as sent, if there is exactly one such field.
    pub traceparent: Option<[u8; 55]>,
    /// `POST .../v1/traces` with an OTLP content type: the process exports spans itself.
    pub exports_otlp: bool,
}

/// An exchange is over, or was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub exchange: u64,
    /// The direction requests travel in.
    pub request_direction: Direction,
    pub version: Version,
    pub request: Option<Request>,
    pub response: Option<Response>,
    pub timing: Timing,
    pub outcome: Outcome,
    pub incomplete: Option<Incomplete>,
    /// The operation that completed the request's head; without one, that began the response.
    pub operation: Operation,
}

impl Done {
    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        let request = self.request.as_ref().map_or(0, |request| {
            let line = request.method.len() + request.target.len();
            line + request.headers.memory() + request.body.prefix.capacity()
        });
        let response =
            self.response.as_ref().map_or(0, |response| response.heads_memory() + response.body.prefix.capacity());
        size_of::<Self>() + request + response
    }
}

/// Bounds on what a peer can make us keep or do; each has its reason beside its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest head kept. nginx takes 4 x 8 KiB by default, Node 16 KiB, Apache 8 KiB a field.
    pub head_bytes: usize,
    /// Most header fields kept (Apache's limit is 100, nginx has none).
    pub headers: usize,
    /// Requests waiting for their response on one HTTP/1 connection.
    pub pipeline: usize,
    /// Streams of one HTTP/2 connection that are open at once. Servers allow 100 to 250 by default.
    pub streams: usize,
    /// Longest chunk-size line, extensions included.
    pub chunk_line: usize,
    /// Longest trailer section.
    pub trailer_bytes: usize,
    /// First bytes that are kept of content which may tell what a call is ([`content::request_prefix`]); 0 keeps none.
    pub body_prefix: usize,
    /// A request without response is given up after this long.
    pub response_timeout_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 * 1024,
            headers: 128,
            pipeline: 256,
            streams: 2048,
            chunk_line: 4 * 1024,
            trailer_bytes: 16 * 1024,
            body_prefix: 0,
            response_timeout_ns: 300_000_000_000,
        }
    }
}

/// What a connection speaks, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Http1,
    Http2,
}

/// The registry: what reads a connection. `joined`: bytes had moved before, so that a response may answer a request that
/// nobody saw.
pub fn start(wire: Wire, joined: bool, limits: Limits) -> Box<dyn Protocol> {
    match (wire, joined) {
        (Wire::Http1, false) => Box::new(http1::Connection::new(limits)),
        (Wire::Http1, true) => Box::new(http1::Connection::joined(limits)),
        (Wire::Http2, false) => Box::new(http2::Connection::new(limits)),
        (Wire::Http2, true) => Box::new(http2::Connection::joined(limits)),
    }
}

/// One connection's worth of a protocol. Never panics, whatever the bytes; memory is bounded by [`Limits`].
pub trait Protocol: Send + fmt::Debug {
    /// The next segment of `direction`, at `position` in that direction's stream.
    fn on_segment(
        &mut self,
        direction: Direction,
        position: u64,
        segment: Segment<'_>,
        operation: Operation,
        out: &mut Vec<Event>,
    );

    /// The next segment of `direction` begins where the protocol's frames do; whoever copied it walked there.
    fn on_boundary(&mut self, _direction: Direction) {}

    /// Kernel records of this connection were lost: what is in the middle cannot be trusted; resynchronise.
    fn on_loss(&mut self, time: Timestamp, out: &mut Vec<Event>);

    fn on_end(&mut self, end: End, time: Timestamp, out: &mut Vec<Event>);

    /// Give up what has waited too long. Called about once a second.
    fn on_tick(&mut self, now: Timestamp, out: &mut Vec<Event>);

    /// Bytes of memory held, for the ceiling.
    fn memory(&self) -> usize;

    /// No exchange is open: the state can be dropped without losing one.
    fn is_idle(&self) -> bool;
}
