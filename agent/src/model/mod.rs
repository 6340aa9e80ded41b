//! Domain types: data and invariants, nothing that needs a kernel, a clock, a file or a network.
//!
//! Not serializable on purpose: the JSON line, the admin API and OTLP have their own types, so that renaming a field
//! here breaks no user.

pub mod application;
pub mod conn;
pub mod exchange;
#[cfg(test)]
pub(crate) mod fixture;
pub mod message;
pub mod report;
pub mod time;
pub mod tls;
pub mod trace;
pub mod workload;

pub use application::{Application, Batch, Graphql, Grpc, GrpcStatus, JsonRpc, Mcp, OperationType, Streaming};
pub use conn::{Backend, ConnId, Connection, Direction, ProcessRef, Role, SocketAddress, Transport};
pub use exchange::{Exchange, Incomplete, Outcome, Timing};
pub use message::{Body, Field, Headers, MessageKind, Messages, Request, Response, Version};
pub use report::CallReport;
pub use time::Timestamp;
pub use tls::Handshake;
pub use trace::{SpanId, TraceContext, TraceId};
pub use workload::Workload;
