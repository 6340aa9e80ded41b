//! What a call is above HTTP.

use std::sync::Arc;

/// A call of a protocol that rides on HTTP. Names in it are identifiers by charset and length, or absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Application {
    Grpc(Grpc),
    Graphql(Graphql),
    JsonRpc(JsonRpc),
}

/// A gRPC or gRPC-Web call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grpc {
    /// Full name of the service, its package included.
    pub service: Option<Arc<str>>,
    pub method: Option<Arc<str>>,
    pub status: Option<GrpcStatus>,
    pub streaming: Option<Streaming>,
}

/// `grpc-status`: a number that need not be one of the 17 known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrpcStatus(pub u16);

/// Who sent more than one message, as far as the counts tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Streaming {
    Unary,
    Client,
    Server,
    Bidirectional,
}

/// A GraphQL request. The document itself is never kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graphql {
    pub operation_name: Option<Arc<str>>,
    pub operation_type: Option<OperationType>,
    /// `None` when it is not a batch.
    pub batch: Option<Batch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationType {
    Query,
    Mutation,
    Subscription,
}

/// A JSON-RPC 2.0 request, and what its response says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonRpc {
    /// Of a batch, where all of it calls the same.
    pub method: Option<Arc<str>>,
    /// Without an `id`: no response is wanted.
    pub notification: bool,
    pub error_code: Option<i64>,
    /// `None` when it is not a batch.
    pub batch: Option<Batch>,
    /// It is a call of the Model Context Protocol.
    pub mcp: Option<Mcp>,
}

/// What the Model Context Protocol adds. Session, resource and prompt are left out: they may tell of people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mcp {
    /// Of `tools/call`.
    pub tool: Option<Arc<str>>,
    /// The tool was called, and said that it failed.
    pub tool_failed: bool,
    pub protocol_version: Option<Arc<str>>,
}

/// Requests that travel as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub size: u32,
    /// The batch was seen to its end; otherwise it may be larger.
    pub exact: bool,
}

impl Application {
    /// `rpc.system.name` and `rpc.system`, where it is a remote procedure call.
    pub const fn rpc_system(&self) -> Option<&'static str> {
        match self {
            Self::Grpc(_) => Some("grpc"),
            Self::JsonRpc(_) => Some("jsonrpc"),
            Self::Graphql(_) => None,
        }
    }
}

impl Grpc {
    /// Service and method: there are as many as the server has methods. `None` for those it has not, for a peer could
    /// name any.
    pub fn route(&self) -> Option<Arc<str>> {
        let known = self.status != Some(GrpcStatus::UNIMPLEMENTED);
        let (service, method) = self.service.as_ref().zip(self.method.as_ref()).filter(|_| known)?;
        Some(format!("/{service}/{method}").into())
    }
}

impl GrpcStatus {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    /// The server does not have the method.
    pub const UNIMPLEMENTED: Self = Self(12);

    /// As gRPC reads it: a number that is not known is `UNKNOWN`.
    pub fn name(self) -> &'static str {
        Self::NAMES.get(usize::from(self.0)).copied().unwrap_or("UNKNOWN")
    }

    /// A server is not at fault for what the client asked (semantic conventions, gRPC).
    pub const fn is_error(self, server: bool) -> bool {
        match self.0 {
            0 => false,
            1 | 3 | 5..=11 | 16 => !server,
            _ => true,
        }
    }
}

impl Streaming {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Client => "client_stream",
            Self::Server => "server_stream",
            Self::Bidirectional => "bidi_stream",
        }
    }
}

impl OperationType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Mutation => "mutation",
            Self::Subscription => "subscription",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_an_error_by_the_side_it_is_seen_from() {
        for (code, name, client, server) in [
            (0, "OK", false, false),
            (1, "CANCELLED", true, false),
            (2, "UNKNOWN", true, true),
            (3, "INVALID_ARGUMENT", true, false),
            (4, "DEADLINE_EXCEEDED", true, true),
            (5, "NOT_FOUND", true, false),
            (11, "OUT_OF_RANGE", true, false),
            (12, "UNIMPLEMENTED", true, true),
            (13, "INTERNAL", true, true),
            (14, "UNAVAILABLE", true, true),
            (15, "DATA_LOSS", true, true),
            (16, "UNAUTHENTICATED", true, false),
            (17, "UNKNOWN", true, true),
            (u16::MAX, "UNKNOWN", true, true),
        ] {
            let status = GrpcStatus(code);
            assert_eq!((status.name(), status.is_error(false), status.is_error(true)), (name, client, server));
        }
    }
}
