//! Records of the ring buffer, kernel to agent.
//!
//! Every record starts with [`Header`]; `kind` says which struct the header opens. [`Data`], [`Open`] and [`Exec`] are
//! followed by bytes, whose number the record's own length (known from the ring buffer) bounds.

/// [`Header::kind`] values.
pub mod kind {
    /// [`super::Data`]: bytes moved by one socket operation.
    pub const DATA: u8 = 1;
    /// [`super::Open`]: a connection and its process, before its first data, whenever its process changes, and again
    /// when the record was lost.
    pub const OPEN: u8 = 2;
    /// [`super::Close`]: one or both directions ended.
    pub const CLOSE: u8 = 3;
    /// [`super::Exec`]: a process began a new program.
    pub const EXEC: u8 = 4;
}

/// [`Header::direction`] values, seen from the process that did the operation.
pub mod direction {
    pub const RECEIVE: u8 = 0;
    pub const SEND: u8 = 1;
}

/// [`Header::flags`] of a [`Data`](super::Data) record.
pub mod data_flags {
    /// The bytes had no user buffer (sendfile, splice, io_uring, several messages in one call): a gap by nature.
    pub const OPAQUE: u8 = 1;
    /// The user memory could not be read.
    pub const UNREADABLE: u8 = 2;
    /// Further records of the same operation follow.
    pub const CONTINUES: u8 = 4;
    /// HTTP/2: the record's first byte begins a frame, or the connection preface.
    pub const FRAME: u8 = 8;
}

/// [`Header::flags`] of an [`Open`](super::Open) record.
pub mod open_flags {
    /// Bytes had moved before the first record: the connection is older than the agent, or was recognised late.
    pub const JOINED: u8 = 1;
}

/// [`Header::flags`] of a [`Close`](super::Close) record.
pub mod close_flags {
    /// The process read end-of-file, or will read no more.
    pub const RECEIVE: u8 = 1;
    /// The process shut its sending side, or closed the socket.
    pub const SEND: u8 = 2;
    /// The connection was reset, by either side.
    pub const RESET: u8 = 4;
}

/// [`Header::backend`] values: where the bytes were seen (`weir.capture.backend`).
pub mod backend {
    pub const SOCK_TRACEPOINT: u8 = 1;
    pub const SYS_EXIT: u8 = 2;
    pub const OPENSSL: u8 = 3;
    pub const BORINGSSL: u8 = 4;
    pub const GO: u8 = 5;
    pub const GNUTLS: u8 = 6;
    pub const RUSTLS: u8 = 7;
    pub const NSS: u8 = 8;
}

/// [`Open::association`] values: how the connection below a TLS object was found, strongest first.
pub mod association {
    /// This is a socket, or the object's connection is not known.
    pub const NONE: u8 = 0;
    /// The object holds the `ClientHello.random` that was seen on the socket.
    pub const RANDOM: u8 = 1;
    /// The object names its file descriptor.
    pub const DESCRIPTOR: u8 = 2;
    /// The socket was used inside a call on the object.
    pub const NESTED: u8 = 3;
    /// Calls on the object and operations of the socket followed each other on one thread, more than once.
    pub const LEARNED: u8 = 4;
}

/// [`Open::protocol`] values: what the first bytes looked like.
pub mod protocol {
    pub const UNKNOWN: u8 = 0;
    pub const HTTP1: u8 = 1;
    pub const HTTP2: u8 = 2;
    pub const TLS: u8 = 3;
    pub const OTHER: u8 = 4;
    /// QUIC, on a UDP socket: nothing else is told of it.
    pub const QUIC: u8 = 5;
}

/// [`Open::family`] values (`sa_family_t`).
pub mod family {
    pub const UNIX: u16 = 1;
    pub const INET: u16 = 2;
    pub const INET6: u16 = 10;
}

/// Start of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub direction: u8,
    pub flags: u8,
    pub backend: u8,
    /// [`Data`]: records emitted for this connection and direction before this one, lost ones included, modulo 2^32:
    /// a jump is a loss. Counted apart by direction, because two threads may send and receive at once. Others: 0.
    pub seq: u32,
    /// Identity of the connection as this process sees it: the socket cookie; for plaintext of a TLS object a number
    /// with the highest bit set. 0 for [`Exec`].
    pub conn: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds, when the operation ended.
    pub time_ns: u64,
    /// Process (thread group) and thread, host namespace. 0 in [`Close`] records that come from an interrupt.
    pub pid: u32,
    pub tid: u32,
}
const _: () = assert!(size_of::<Header>() == 32);

/// Bytes moved by one operation. Followed by `head` bytes from its start, then `tail` bytes from its end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Data {
    pub header: Header,
    /// Stream position of the first byte. TCP: the sequence number, extended to 64 bits by counting (the sender's
    /// and the receiver's agree modulo 2^32). Others: bytes since first seen. A jump over the previous end is a gap.
    pub position: u64,
    /// Bytes the operation moved (of this record's share of it); the bytes between head and tail were not copied.
    pub len: u32,
    pub head: u16,
    pub tail: u16,
}
const _: () = assert!(size_of::<Data>() == 48);

/// A connection and the process that uses it. Followed by the `sun_path` of a Unix socket, if either end has one.
///
/// The plaintext side of a TLS connection is a connection of its own, with the backend of its library, without
/// addresses, and with `socket` naming the one below.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    pub header: Header,
    pub family: u16,
    /// Host byte order.
    pub local_port: u16,
    pub remote_port: u16,
    pub protocol: u8,
    /// Non-zero: the `sun_path` is the peer's, this end is unnamed.
    pub peer_named: u8,
    /// Inode number of the network namespace.
    pub netns: u32,
    pub uid: u32,
    /// IPv4 addresses occupy the first four bytes.
    pub local: [u8; 16],
    pub remote: [u8; 16],
    /// `start_boottime` of the process, nanoseconds: tells reused pids apart.
    pub process_start_ns: u64,
    /// Inode of the cgroup v2 directory.
    pub cgroup: u64,
    pub comm: [u8; 16],
    /// Plaintext of a TLS object: [`Header::conn`] of the socket below; 0 when it is not known (yet). With
    /// [`association::NONE`] no more than a supposition.
    pub socket: u64,
    pub association: u8,
    pub padding: [u8; 7],
}
const _: () = assert!(size_of::<Open>() == 128);

/// End of one or both directions, see [`close_flags`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Close {
    pub header: Header,
}
const _: () = assert!(size_of::<Close>() == 32);

/// A process began a new program. Followed by the file name as given to `execve` (no NUL).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    pub header: Header,
    pub process_start_ns: u64,
    pub cgroup: u64,
    pub comm: [u8; 16],
}
const _: () = assert!(size_of::<Exec>() == 64);
