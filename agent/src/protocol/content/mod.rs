//! Readers of message content: which messages travel within one body, or on one upgraded connection. They count and
//! never keep what a message says.
//!
//! What was not seen is an input like any other: a gap inside the known length of a message costs nothing, one that
//! hides where messages begin makes the count a lower bound. The count is never higher than the truth, and is called
//! exact only where it is equal. Messages count when their last byte has gone by.

mod event_stream;
mod grpc;
mod prefix;
mod websocket;

#[cfg(test)]
mod tests;

use self::event_stream::EventStream;
use self::grpc::{Grpc, Web};
pub use self::prefix::{is_json, media_type, request_prefix, response_prefix};
use self::websocket::WebSocket;
use crate::model::{Headers, MessageKind, Messages};

/// Reads the content of one message, or one direction of a WebSocket, in order and once. Its memory is its size, but
/// for the trailers of gRPC-Web, which are bounded.
#[derive(Clone, Debug)]
pub struct Reader(State);

#[derive(Clone, Debug)]
enum State {
    Grpc(Grpc),
    Web(Box<Web>),
    EventStream(EventStream),
    WebSocket(WebSocket),
}

/// What content is, by its `content-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Grpc,
    GrpcWeb,
    GrpcWebText,
    EventStream,
}

impl Reader {
    /// For the content of a request with these fields; `None` for content that is not a series of messages.
    pub fn for_request(headers: &Headers) -> Option<Self> {
        match kind(headers.get("content-type")?)? {
            Kind::Grpc => Some(Self(State::Grpc(Grpc::default()))),
            Kind::GrpcWeb => Some(Self(State::Web(Box::new(Web::new(false))))),
            Kind::GrpcWebText => Some(Self(State::Web(Box::new(Web::new(true))))),
            Kind::EventStream => None,
        }
    }

    /// For the content of a response with these fields.
    pub fn for_response(headers: &Headers) -> Option<Self> {
        if kind(headers.get("content-type")?)? != Kind::EventStream {
            return Self::for_request(headers);
        }
        let coded = headers.get_all("content-encoding").any(|coding| !coding.eq_ignore_ascii_case(b"identity"));
        Some(Self(State::EventStream(if coded { EventStream::unreadable() } else { EventStream::default() })))
    }

    /// For one direction of a connection after its upgrade (RFC 6455), or of a stream after an extended CONNECT (RFC
    /// 8441).
    pub fn websocket() -> Self {
        Self(State::WebSocket(WebSocket::default()))
    }

    /// The next bytes of the content, framing of the protocol below excluded.
    pub fn on_bytes(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Grpc(grpc) => grpc.on_bytes(bytes),
            State::Web(web) => web.on_bytes(bytes),
            State::EventStream(events) => events.on_bytes(bytes),
            State::WebSocket(socket) => socket.on_bytes(bytes),
        }
    }

    /// That many bytes of the content went by unseen.
    pub fn on_gap(&mut self, len: u64) {
        if len == 0 {
            return;
        }
        match &mut self.0 {
            State::Grpc(grpc) => grpc.on_gap(len),
            State::Web(web) => web.on_gap(len),
            State::EventStream(events) => events.on_gap(),
            State::WebSocket(socket) => socket.on_gap(len),
        }
    }

    /// An unknown number of bytes went by unseen.
    pub fn on_loss(&mut self) {
        match &mut self.0 {
            State::Grpc(grpc) => grpc.lose(),
            State::Web(web) => web.lose(),
            State::EventStream(events) => events.on_gap(),
            State::WebSocket(socket) => socket.lose(),
        }
    }

    /// The messages so far.
    pub fn summary(&self) -> Messages {
        let (kind, tally, close_code) = match &self.0 {
            State::Grpc(grpc) => (MessageKind::Grpc, grpc.tally(), None),
            State::Web(web) => (MessageKind::GrpcWeb, web.tally(), None),
            State::EventStream(events) => (MessageKind::EventStream, events.tally(), None),
            State::WebSocket(socket) => (MessageKind::WebSocket, socket.tally(), socket.close_code()),
        };
        Messages { kind, count: tally.count, exact: tally.exact, close_code }
    }

    /// The trailers that gRPC-Web sends within its content, once they are whole.
    pub fn trailers(&self) -> Option<Headers> {
        match &self.0 {
            State::Web(web) => web.trailers(),
            _ => None,
        }
    }

    /// A WebSocket's close frame has gone by whole: this direction says nothing more.
    pub const fn is_closed(&self) -> bool {
        matches!(&self.0, State::WebSocket(socket) if socket.is_closed())
    }

    /// Bytes of memory held beside its own size.
    pub fn memory(&self) -> usize {
        match &self.0 {
            State::Web(web) => web.memory(),
            _ => 0,
        }
    }
}

/// Messages counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    count: u64,
    exact: bool,
}

impl Default for Tally {
    fn default() -> Self {
        Self { count: 0, exact: true }
    }
}

impl Tally {
    fn add(&mut self) {
        self.count = self.count.saturating_add(1);
    }
}

/// Most content is of none of these kinds and is out after one comparison.
fn kind(content_type: &[u8]) -> Option<Kind> {
    const GRPC: &[u8] = b"application/grpc";
    const EVENTS: &[u8] = b"text/event-stream";
    let essence = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(EVENTS) {
        return Some(Kind::EventStream);
    }
    let (start, rest) = essence.split_at_checked(GRPC.len())?;
    if !start.eq_ignore_ascii_case(GRPC) {
        return None;
    }
    // `+proto` and others name the coding of the messages.
    let rest = rest.split(|&byte| byte == b'+').next().unwrap_or_default();
    match rest.to_ascii_lowercase().as_slice() {
        b"" => Some(Kind::Grpc),
        b"-web" => Some(Kind::GrpcWeb),
        b"-web-text" => Some(Kind::GrpcWebText),
        _ => None,
    }
}
