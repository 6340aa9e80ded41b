//! Connections: identity, addresses, and the process that uses them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Handshake, Timestamp};

/// One end of a connection: the kernel's socket cookie. Two processes that share a socket share it; the two ends of a
/// loopback connection have one each. The plaintext side of a TLS connection has one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Direction of bytes, seen from the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Receive,
    Send,
}

/// Which side of HTTP the observed process plays (`SpanKind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Server,
    Client,
}

/// `network.transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Unix,
}

/// Where bytes were seen (`weir.capture.backend`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    SockTracepoint,
    SysExit,
    Openssl,
    Boringssl,
    Go,
    Gnutls,
    Rustls,
    Nss,
}

/// An address of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SocketAddress {
    /// IPv4-mapped IPv6 addresses are stored as IPv4.
    Ip(SocketAddr),
    /// The path of a Unix socket; empty when the socket is unnamed. An abstract name begins with `@`.
    Unix(Box<str>),
    Unknown,
}

/// Tells a process apart from another that later gets the same pid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProcessRef {
    pub pid: u32,
    /// `start_boottime`, nanoseconds; 0 when not known.
    pub start_ns: u64,
}

/// What is known of one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub id: ConnId,
    pub transport: Transport,
    pub local: SocketAddress,
    pub remote: SocketAddress,
    pub backend: Backend,
    /// What its handshake said; `None` when the connection is not TLS.
    pub tls: Option<Arc<Handshake>>,
    pub process: ProcessRef,
    /// Command name of the thread that first used the connection.
    pub comm: Arc<str>,
    /// Inode of the cgroup v2 directory; 0 when not known.
    pub cgroup: u64,
    pub uid: u32,
    /// Network namespace (inode number); 0 when not known.
    pub netns: u32,
    pub first_seen: Timestamp,
}

impl Backend {
    pub const fn name(self) -> &'static str {
        match self {
            Self::SockTracepoint => "sock_tracepoint",
            Self::SysExit => "sys_exit",
            Self::Openssl => "openssl",
            Self::Boringssl => "boringssl",
            Self::Go => "go",
            Self::Gnutls => "gnutls",
            Self::Rustls => "rustls",
            Self::Nss => "nss",
        }
    }

    /// The bytes are a socket's own, not the plaintext of a TLS library.
    pub const fn is_socket(self) -> bool {
        matches!(self, Self::SockTracepoint | Self::SysExit)
    }
}

impl Role {
    /// The direction in which this role moves requests.
    pub const fn request_direction(self) -> Direction {
        match self {
            Self::Server => Direction::Receive,
            Self::Client => Direction::Send,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

impl Direction {
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Receive => Self::Send,
            Self::Send => Self::Receive,
        }
    }
}

impl Transport {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

impl SocketAddress {
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(address) => Some(address.port()),
            Self::Unix(_) | Self::Unknown => None,
        }
    }
}

/// The host part: an IP address, or `unix:` and the path.
impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.ip().fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Unknown => Ok(()),
        }
    }
}
