//! One call as it leaves the agent: everything in it is already safe to print.

use std::sync::Arc;

use super::{Application, Backend, Handshake, Incomplete, Messages, Role, TraceContext, Transport, Version, Workload};

/// One call, redacted. Built only by `redact`, read by every exporter, the store and the page; fields follow
/// the OpenTelemetry semantic conventions for HTTP spans, and `None` means not known.
#[derive(Clone, Debug)]
pub struct CallReport {
    /// Wall clock at the first request byte, nanoseconds since the Unix epoch.
    pub start_unix_ns: u64,
    pub duration_ns: u64,
    /// From the first request byte to the first byte of the final response.
    pub time_to_first_byte_ns: Option<u64>,
    pub role: Role,
    pub trace: TraceContext,
    /// A registered method, or `_OTHER`.
    pub method: Option<Arc<str>>,
    /// The method as sent, when it is `_OTHER` or differs in case; bounded.
    pub method_original: Option<Arc<str>>,
    /// `http` | `https`.
    pub scheme: &'static str,
    pub path: Option<Arc<str>>,
    /// Redacted.
    pub query: Option<Arc<str>>,
    /// Low-cardinality template.
    pub route: Option<Arc<str>>,
    pub status: Option<u16>,
    pub request_body_size: Option<u64>,
    pub response_body_size: Option<u64>,
    /// Messages within the request's content, or sent by the client of an upgraded connection.
    pub request_messages: Option<Messages>,
    /// Those of the other direction.
    pub response_messages: Option<Messages>,
    /// What the call is above HTTP. Names that look like secrets or personal data are absent.
    pub application: Option<Application>,
    /// From the Host header for a client, the local address for a server; without the port.
    pub server_address: Option<Arc<str>>,
    pub server_port: Option<u16>,
    pub client_address: Option<Arc<str>>,
    pub client_port: Option<u16>,
    /// Address of the peer socket.
    pub peer_address: Option<Arc<str>>,
    pub peer_port: Option<u16>,
    pub version: Version,
    pub transport: Transport,
    /// What the handshake of its connection said; `None` when that is not TLS. Its texts are bounded and printable.
    pub tls: Option<Arc<Handshake>>,
    pub user_agent: Option<Arc<str>>,
    /// `error.type`: the status code where it is an error, else why the exchange failed.
    pub error_type: Option<Arc<str>>,
    pub pid: u32,
    pub tid: u32,
    pub workload: Arc<Workload>,
    pub backend: Backend,
    pub incomplete: Option<Incomplete>,
    /// The call goes on: sizes, counts and duration are those so far. Such a report is for looking at; it is never
    /// exported nor counted.
    pub in_progress: bool,
    /// Allow-listed headers, masked: `("http.request.header.x-id", value)`.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// `weir.auth.scheme`: how the caller identified itself, by the header's shape alone.
    pub auth_scheme: Option<&'static str>,
}
