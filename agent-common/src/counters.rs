//! Kernel counters: one per-CPU array, an index each.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal;)+) => {
        /// Index into the per-CPU array of kernel counters.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// All counters, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Closed-set label of metrics and of `weir doctor`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

counters! {
    /// Records handed to the ring buffer.
    Records = "records";
    /// Records lost because the ring buffer was full.
    RingFull = "ring_full";
    /// Operations that begin with a request-line, and streams that HTTP/2 clients open: calls, as far as the kernel can
    /// count them, on each end.
    Requests = "requests";
    /// Of these, the ones whose record was lost.
    RequestsLost = "requests_lost";
    /// Operations of connections that are followed.
    Operations = "operations";
    /// Payload bytes of followed connections, copied or not.
    Bytes = "bytes";
    /// Payload bytes copied to the agent.
    BytesCopied = "bytes_copied";
    /// Bytes without a user buffer.
    BytesOpaque = "bytes_opaque";
    /// Operations whose user memory could not be read.
    Unreadable = "unreadable";
    /// Connections whose state could not be stored.
    StateFull = "state_full";
    /// Connections classified as HTTP/1.
    ConnectionsHttp1 = "connections_http1";
    /// Connections classified as HTTP/2, by the preface or by their frames.
    ConnectionsHttp2 = "connections_http2";
    /// Connections classified as TLS.
    ConnectionsTls = "connections_tls";
    /// UDP sockets that carry QUIC.
    SocketsQuic = "sockets_quic";
    /// Connections left alone as none of these.
    ConnectionsOther = "connections_other";
    /// Connections of the agent itself, left alone.
    ConnectionsOwn = "connections_own";
    /// Calls of TLS libraries that moved bytes.
    TlsCalls = "tls_calls";
    /// Of these, the ones passed over because a processor had no scratch buffer left.
    TlsBusy = "tls_busy";
    /// Calls of TLS libraries that moved more than 2 GiB: passed over.
    TlsHuge = "tls_huge";
    /// TLS objects whose first bytes were seen.
    TlsStreams = "tls_streams";
    /// TLS objects whose connection was found, by how.
    BoundRandom = "bound_random";
    /// By their file descriptor.
    BoundDescriptor = "bound_descriptor";
    /// By a socket used inside the call.
    BoundNested = "bound_nested";
    /// By operations that followed each other.
    BoundLearned = "bound_learned";
    /// Bindings given up because later operations spoke against them.
    Unbound = "unbound";
    /// File descriptor walks that failed (`sys_exit` backend).
    WalkFailed = "walk_failed";
}
