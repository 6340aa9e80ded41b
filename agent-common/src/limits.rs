//! Every size and capacity that both sides must agree on.

/// Most payload bytes one record carries. A longer operation that is copied whole yields several records.
/// Twice this and a header must fit a per-CPU map value (32 KiB, `PCPU_MIN_UNIT_SIZE`): gathering vectors writes at
/// an offset below the bound a piece below the bound, which is all the verifier can prove.
pub const RECORD_PAYLOAD_MAX: usize = 12 * 1024;

/// Records at most emitted for one operation of a connection with the burst budget.
pub const RECORDS_PER_OPERATION: usize = 4;

/// Default budget of bytes copied per message; the direction turning, or a message starting, renews it.
pub const BUDGET_DEFAULT: u32 = 4 * 1024;

/// Budget while a connection pipelines: its later heads are in the middle of the operation.
pub const BUDGET_BURST: u32 = (RECORD_PAYLOAD_MAX * RECORDS_PER_OPERATION) as u32;

/// A body-less request (GET, HEAD, ..) in an operation longer than this is taken for a pipelined burst.
pub const BURST_THRESHOLD: u32 = 4 * 1024;

/// Bytes copied from the start of an operation when the budget is spent: a chunk-size line fits (RFC 9112 section 7.1).
pub const PREFIX_AFTER_BUDGET: u32 = 32;

/// An operation of at most this many bytes is copied whole when the budget is spent: its record costs more than they do, and
/// it is likely a message of its own (a server-sent event, a WebSocket frame).
pub const WHOLE_AFTER_BUDGET: u32 = 512;

/// Bytes copied from the end of an operation when the budget is spent: `CRLF 0 CRLF CRLF` ends a chunked body.
pub const TAIL: usize = 8;

/// Bytes copied of a frame's content when the budget is spent: the prefixes of a few gRPC messages.
pub const CONTENT_GLANCE: u32 = 32;

/// Content that is this much longer than what is wanted of it is copied whole: a gap costs a record, which is as long.
pub const CONTENT_SLACK: u32 = 96;

/// Records of an operation after which frames of content are passed over, but for the last of a message: with frames of
/// 16 KiB, the smallest that may be refused, 4 MiB.
pub const CONTENT_RECORDS: u32 = 256;

/// Bytes of one operation's frames copied: ten times what a socket buffer holds of header blocks, a fraction of the ring.
pub const FRAMES_BYTES: u32 = 512 * 1024;

/// Steps of a walk through the frames of an operation. A frame takes three (header, wanted bytes, others), a vector one:
/// 64 KiB of the shortest frames have 7,300 headers without payload, of header blocks 2,000.
pub const FRAME_STEPS: u32 = 8192;

/// Operations of an HTTP/2 connection without a frame boundary after which there is little hope of finding one.
pub const RESYNC_OPERATIONS: u8 = 64;

/// Large datagrams of a UDP socket that are looked at for QUIC, before only each of that many is. A power of two below 128.
pub const DATAGRAM_LOOKS: u8 = 32;

/// Vectors of a `writev`, `readv`, `sendmsg` or `recvmsg` that are gathered; later ones are a gap. Node writes a chunk
/// as three.
pub const IOVEC_MAX: usize = 32;

/// Direction changes after which a connection that never looked like a known protocol is left alone for good.
pub const CLASSIFY_TURNS: u8 = 8;

/// Longest Unix socket path (`sun_path`) and longest executable path carried by a record.
pub const UNIX_PATH_MAX: usize = 108;
pub const FILENAME_MAX: usize = 256;

/// Bytes of the ring buffer.
pub const RING_BYTES: u32 = 8 * 1024 * 1024;

/// Bytes copied of each direction of a TLS connection: its handshake in the clear, up to the server's certificate.
pub const HANDSHAKE_BUDGET: u32 = 8 * 1024;

/// Agreeing observations after which a TLS object is taken to belong to a socket, where nothing exact tells.
pub const VOTES: u8 = 2;

/// Scratch buffers a CPU has for the programs on TLS libraries, which may be preempted by one another.
pub const TLS_SLOTS: u32 = 4;

/// Different layouts of TLS objects (about one for each library file) that can be attached at once.
pub const LAYOUTS: u32 = 1024;
