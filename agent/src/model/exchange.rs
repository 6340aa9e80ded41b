//! A request and its response on one connection, seen from one process.

use std::sync::Arc;

use super::{Connection, Request, Response, Role, Timestamp, TraceContext, Version};

/// Kernel times of one exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// First byte of the request.
    pub start: Timestamp,
    /// Last byte of the request, if seen.
    pub request_end: Option<Timestamp>,
    /// First byte of the final response, if seen.
    pub response_start: Option<Timestamp>,
    /// Last byte of the response; without one, or where it was cut short, the moment the exchange was given up.
    pub end: Timestamp,
}

/// Why something about an exchange is not known (`weir.incomplete`). First cause wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Incomplete {
    /// Bytes of the request's head were not seen.
    RequestHeadGap,
    /// Bytes of the response's head were not seen.
    ResponseHeadGap,
    /// The connection was met in the middle of this exchange.
    JoinedMidExchange,
    /// Chunk framing passed through bytes that were not copied: the end was inferred, the size is not known.
    ChunkedBeyondBudget,
    /// The head is longer than the parser keeps.
    HeadTooLong,
    /// The bytes do not follow RFC 9112.
    Malformed,
    /// Kernel records of this connection were lost.
    RecordsLost,
    /// No response was seen before the time limit or before eviction.
    Abandoned,
    /// Header fields named entries of a compression table (RFC 7541) that were made before the agent saw the connection.
    HeaderTableUnknown,
    /// Plaintext of a TLS library whose connection could not be told: who the peer is, is not known.
    PeerUnknown,
}

/// How an exchange ended (`error.type` where it is an error and not a status code).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The response ended as its framing says.
    Complete,
    /// The connection closed before the response ended.
    ConnectionClosed,
    /// The connection was reset.
    ConnectionReset,
    /// No response within the time limit.
    Timeout,
    /// The stream was reset with this error code (RFC 9113 section 7), or refused by GOAWAY.
    StreamReset(u32),
    /// The protocol was left (101, successful CONNECT); the exchange ends with the response's head, or that of a
    /// WebSocket with the WebSocket.
    Upgraded,
}

/// One request and its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub connection: Arc<Connection>,
    pub role: Role,
    pub version: Version,
    /// `None` only with an [`Incomplete`] reason.
    pub request: Option<Request>,
    pub response: Option<Response>,
    pub timing: Timing,
    pub outcome: Outcome,
    pub incomplete: Option<Incomplete>,
    /// Process and thread of the operation that moved the request's last head byte.
    pub pid: u32,
    pub tid: u32,
    pub trace: TraceContext,
}

impl Exchange {
    /// Bytes of content that are kept.
    pub fn content_bytes(&self) -> usize {
        let request = self.request.as_ref().map_or(0, |request| request.body.prefix.capacity());
        request + self.response.as_ref().map_or(0, |response| response.body.prefix.capacity())
    }

    /// Lets go of them.
    pub fn forget_content(&mut self) {
        let request = self.request.as_mut().map(|request| &mut request.body);
        let response = self.response.as_mut().map(|response| &mut response.body);
        for body in request.into_iter().chain(response) {
            body.prefix = Vec::new();
        }
    }
}

impl Incomplete {
    pub const ALL: [Self; 10] = [
        Self::RequestHeadGap,
        Self::ResponseHeadGap,
        Self::JoinedMidExchange,
        Self::ChunkedBeyondBudget,
        Self::HeadTooLong,
        Self::Malformed,
        Self::RecordsLost,
        Self::Abandoned,
        Self::HeaderTableUnknown,
        Self::PeerUnknown,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestHeadGap => "request_head_gap",
            Self::ResponseHeadGap => "response_head_gap",
            Self::JoinedMidExchange => "joined_mid_exchange",
            Self::ChunkedBeyondBudget => "chunked_beyond_budget",
            Self::HeadTooLong => "head_too_long",
            Self::Malformed => "malformed",
            Self::RecordsLost => "records_lost",
            Self::Abandoned => "abandoned",
            Self::HeaderTableUnknown => "header_table_unknown",
            Self::PeerUnknown => "peer_unknown",
        }
    }
}

impl Outcome {
    /// `error.type`, or `None` where the exchange itself did not fail.
    pub const fn error_type(self) -> Option<&'static str> {
        match self {
            Self::Complete | Self::Upgraded => None,
            Self::ConnectionClosed => Some("connection_closed"),
            Self::ConnectionReset => Some("connection_reset"),
            Self::Timeout => Some("timeout"),
            Self::StreamReset(code) => Some(stream_error(code)),
        }
    }
}

/// Error codes of HTTP/2 (RFC 9113 section 7), as `error.type`.
const fn stream_error(code: u32) -> &'static str {
    match code {
        0x0 => "no_error",
        0x1 => "protocol_error",
        0x2 => "internal_error",
        0x3 => "flow_control_error",
        0x4 => "settings_timeout",
        0x5 => "stream_closed",
        0x6 => "frame_size_error",
        0x7 => "refused_stream",
        0x8 => "cancel",
        0x9 => "compression_error",
        0xa => "connect_error",
        0xb => "enhance_your_calm",
        0xc => "inadequate_security",
        0xd => "http_1_1_required",
        _ => "stream_reset",
    }
}
