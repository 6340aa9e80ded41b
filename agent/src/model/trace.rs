//! Trace identity (W3C Trace Context).

/// 16 bytes, never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// 8 bytes, never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

/// Where a span stands in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    pub parent: Option<SpanId>,
    /// The parent is in another process or was named by a header (OTLP `is_remote`).
    pub parent_remote: bool,
    /// The `sampled` flag of the incoming or outgoing `traceparent`; `None` without one.
    pub sampled: Option<bool>,
}
