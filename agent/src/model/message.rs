//! HTTP messages: heads, headers, and what is known of their content. Protocol-neutral: HTTP/1 and HTTP/2 fill it.

use std::fmt;

use bytes::Bytes;

use super::Timestamp;

/// `network.protocol.version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

/// Header fields in wire order: ranges into one buffer, so that a head costs two allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    raw: Bytes,
    fields: Box<[Field]>,
    /// Fields beyond the parser's limit were dropped.
    pub truncated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: (u32, u32),
    pub value: (u32, u32),
}

/// Content of a message.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Body {
    /// Payload bytes as transferred, framing excluded (`http.*.body.size`); `None` when it cannot be known.
    pub size: Option<u64>,
    /// Payload bytes seen so far or skipped with known length; equals `size` when that is known.
    pub seen: u64,
    /// First bytes, up to the configured prefix, of content that may name a call; else empty. Never leaves the process.
    pub prefix: Vec<u8>,
    /// The message's end was seen, not inferred.
    pub complete: bool,
    /// What travels within, where the content is a series of messages of its own.
    pub messages: Option<Messages>,
}

/// Messages within the content of one HTTP message, or in one direction of an upgraded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Messages {
    pub kind: MessageKind,
    /// Messages whose last byte has gone by; never more than there were.
    pub count: u64,
    /// `count` is all of them; otherwise some may have gone by unseen.
    pub exact: bool,
    /// The code of a WebSocket's close frame (RFC 6455 section 7.4); 1005 where it has none.
    pub close_code: Option<u16>,
}

/// How messages are set apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    Grpc,
    GrpcWeb,
    /// Server-Sent Events.
    EventStream,
    WebSocket,
}

/// A request as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method token as sent, of any case and kind; empty: not known.
    pub method: Bytes,
    /// The request-target as sent (RFC 9112 section 3.2; `:path` of HTTP/2), query included; empty: not known.
    pub target: Bytes,
    pub version: Version,
    pub headers: Headers,
    pub body: Body,
}

/// The final response (1xx are not final, RFC 9110 section 15.2; 101 is, for HTTP/1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 0: not known.
    pub status: u16,
    pub version: Version,
    pub headers: Headers,
    /// Fields behind the content (RFC 9110 section 6.5), of HTTP/2; those that gRPC-Web sends within its content, too. Apart,
    /// because few responses have them.
    pub trailers: Option<Box<Headers>>,
    pub body: Body,
    /// Interim responses (1xx) that came before.
    pub interim: u16,
    pub first_byte: Timestamp,
}

impl fmt::Debug for Body {
    /// Without the prefix: what was said is nobody's to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, seen, prefix, complete, messages } = self;
        f.debug_struct("Body")
            .field("size", size)
            .field("seen", seen)
            .field("prefix", &format_args!("{} bytes", prefix.len()))
            .field("complete", complete)
            .field("messages", messages)
            .finish()
    }
}

impl Response {
    /// Bytes held by its header and trailer fields, about.
    pub fn heads_memory(&self) -> usize {
        self.headers.memory() + self.trailers.as_ref().map_or(0, |trailers| size_of::<Headers>() + trailers.memory())
    }
}

impl Version {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
        }
    }
}

impl MessageKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::GrpcWeb => "grpc_web",
            Self::EventStream => "event_stream",
            Self::WebSocket => "websocket",
        }
    }
}

impl Headers {
    /// `fields` are ranges into `raw`; a range outside of it reads as empty.
    pub fn new(raw: Bytes, fields: Box<[Field]>) -> Self {
        Self { raw, fields, truncated: false }
    }

    pub fn len(&self) -> usize {
        self.fields.len()
    }

    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Bytes held, about.
    pub fn memory(&self) -> usize {
        self.raw.len() + self.fields.len() * size_of::<Field>()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| (self.slice(field.name), self.slice(field.value)))
    }

    /// The first field of that name, compared without case (RFC 9110 section 5.1).
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(field, _)| field.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    fn slice(&self, (start, end): (u32, u32)) -> &[u8] {
        self.raw.get(start as usize..end as usize).unwrap_or_default()
    }
}
