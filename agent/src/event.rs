//! Bytes of a ring-buffer record to a [`KernelEvent`], and back for recordings and tests. Total: never panics, never
//! trusts a length.

use std::fmt;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent_common::event as raw;

use crate::model::{Backend, ConnId, Direction, ProcessRef, SocketAddress, Timestamp, Transport};

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent<'a> {
    Open(Open),
    Data(Data<'a>),
    Close(Close),
    Exec(Exec),
}

/// What the first bytes of a connection looked like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    Unknown,
    Http1,
    Http2,
    Tls,
    /// A UDP socket; no data is told of it.
    Quic,
    Other,
}

/// A connection and the process that uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub conn: ConnId,
    pub time: Timestamp,
    pub backend: Backend,
    pub tid: u32,
    pub protocol: FirstBytes,
    pub transport: Transport,
    pub local: SocketAddress,
    pub remote: SocketAddress,
    pub netns: u32,
    pub uid: u32,
    pub process: ProcessRef,
    pub cgroup: u64,
    pub comm: Comm,
    /// Bytes had moved before the first record.
    pub joined: bool,
    /// Plaintext of a TLS object: the socket below, if it is known; with [`Association::None`] no more than supposed.
    pub socket: Option<ConnId>,
    pub association: Association,
}

/// How the socket below a TLS object was found, strongest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Association {
    /// Not at all, or this is a socket.
    #[default]
    None,
    /// The object holds the ClientHello.random that was seen on the socket.
    Random,
    /// The object names its descriptor.
    Descriptor,
    /// The socket was used inside a call on the object.
    Nested,
    /// One thread's operations on both followed each other, more than once.
    Learned,
}

/// Bytes moved by one operation, or by one record's share of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    pub conn: ConnId,
    pub time: Timestamp,
    pub backend: Backend,
    pub pid: u32,
    pub tid: u32,
    pub direction: Direction,
    /// Records of this connection and direction before this one, modulo 2^32.
    pub seq: u32,
    /// Stream position of the first byte.
    pub position: u64,
    /// Bytes moved.
    pub len: u32,
    /// The first of them.
    pub head: &'a [u8],
    /// The last of them, when the ones between were not copied.
    pub tail: &'a [u8],
    /// There was no user buffer.
    pub opaque: bool,
    /// There was one, and it could not be read.
    pub unreadable: bool,
    /// The first byte begins an HTTP/2 frame, or the preface.
    pub frame: bool,
}

/// One or both directions ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    pub conn: ConnId,
    pub time: Timestamp,
    pub backend: Backend,
    pub receive: bool,
    pub send: bool,
    pub reset: bool,
}

/// A process began a new program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    pub time: Timestamp,
    pub process: ProcessRef,
    pub cgroup: u64,
    pub comm: Comm,
    pub filename: Box<str>,
}

/// A command name (`TASK_COMM_LEN`), NUL-padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Comm(pub [u8; 16]);

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than the record's kind has.
    Short,
    /// `kind` is none of ours.
    Kind(u8),
    /// The payload is shorter than the record says.
    Payload,
    /// A field has a value that it cannot have.
    Field,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the record is cut short"),
            Self::Kind(kind) => write!(f, "record kind {kind} is not known"),
            Self::Payload => f.write_str("the record's payload is shorter than it says"),
            Self::Field => f.write_str("a field of the record has an impossible value"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl Comm {
    /// The name, invalid UTF-8 replaced, control characters escaped.
    pub fn to_text(self) -> String {
        let name = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        printable(name)
    }
}

impl KernelEvent<'_> {
    /// The connection it is about.
    pub fn conn(&self) -> Option<ConnId> {
        match self {
            Self::Open(open) => Some(open.conn),
            Self::Data(data) => Some(data.conn),
            Self::Close(close) => Some(close.conn),
            Self::Exec(_) => None,
        }
    }
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.chars().any(char::is_control) { text.escape_debug().collect() } else { text.into_owned() }
}

/// Fields of a record by offset; `Short` when it has fewer bytes.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(self, at: usize) -> Result<[u8; N], DecodeError> {
        self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).ok_or(DecodeError::Short)
    }

    fn u8(self, at: usize) -> Result<u8, DecodeError> {
        self.0.get(at).copied().ok_or(DecodeError::Short)
    }

    fn u16(self, at: usize) -> Result<u16, DecodeError> {
        self.array(at).map(u16::from_ne_bytes)
    }

    fn u32(self, at: usize) -> Result<u32, DecodeError> {
        self.array(at).map(u32::from_ne_bytes)
    }

    fn u64(self, at: usize) -> Result<u64, DecodeError> {
        self.array(at).map(u64::from_ne_bytes)
    }

    fn behind(self, size: usize) -> Result<&'a [u8], DecodeError> {
        self.0.get(size..).ok_or(DecodeError::Short)
    }

    fn conn(self) -> Result<ConnId, DecodeError> {
        self.u64(offset_of!(raw::Header, conn)).map(ConnId)
    }

    fn time(self) -> Result<Timestamp, DecodeError> {
        self.u64(offset_of!(raw::Header, time_ns)).map(Timestamp)
    }

    fn backend(self) -> Result<Backend, DecodeError> {
        match self.u8(offset_of!(raw::Header, backend))? {
            raw::backend::SOCK_TRACEPOINT => Ok(Backend::SockTracepoint),
            raw::backend::SYS_EXIT => Ok(Backend::SysExit),
            raw::backend::OPENSSL => Ok(Backend::Openssl),
            raw::backend::BORINGSSL => Ok(Backend::Boringssl),
            raw::backend::GO => Ok(Backend::Go),
            raw::backend::GNUTLS => Ok(Backend::Gnutls),
            raw::backend::RUSTLS => Ok(Backend::Rustls),
            raw::backend::NSS => Ok(Backend::Nss),
            _ => Err(DecodeError::Field),
        }
    }
}

/// The record that `bytes` hold.
pub fn decode(bytes: &[u8]) -> Result<KernelEvent<'_>, DecodeError> {
    let fields = Fields(bytes);
    match fields.u8(offset_of!(raw::Header, kind))? {
        raw::kind::DATA => decode_data(fields).map(KernelEvent::Data),
        raw::kind::OPEN => decode_open(fields).map(KernelEvent::Open),
        raw::kind::CLOSE => decode_close(fields).map(KernelEvent::Close),
        raw::kind::EXEC => decode_exec(fields).map(KernelEvent::Exec),
        other => Err(DecodeError::Kind(other)),
    }
}

fn decode_data(fields: Fields<'_>) -> Result<Data<'_>, DecodeError> {
    let flags = fields.u8(offset_of!(raw::Header, flags))?;
    let (head_len, tail_len) = (fields.u16(offset_of!(raw::Data, head))?, fields.u16(offset_of!(raw::Data, tail))?);
    let len = fields.u32(offset_of!(raw::Data, len))?;
    let payload = fields.behind(size_of::<raw::Data>())?;
    let (head, rest) = payload.split_at_checked(usize::from(head_len)).ok_or(DecodeError::Payload)?;
    let tail = rest.get(..usize::from(tail_len)).ok_or(DecodeError::Payload)?;
    if u32::from(head_len) + u32::from(tail_len) > len {
        return Err(DecodeError::Field);
    }
    Ok(Data {
        conn: fields.conn()?,
        time: fields.time()?,
        backend: fields.backend()?,
        pid: fields.u32(offset_of!(raw::Header, pid))?,
        tid: fields.u32(offset_of!(raw::Header, tid))?,
        direction: match fields.u8(offset_of!(raw::Header, direction))? {
            raw::direction::RECEIVE => Direction::Receive,
            raw::direction::SEND => Direction::Send,
            _ => return Err(DecodeError::Field),
        },
        seq: fields.u32(offset_of!(raw::Header, seq))?,
        position: fields.u64(offset_of!(raw::Data, position))?,
        len,
        head,
        tail,
        opaque: flags & raw::data_flags::OPAQUE != 0,
        unreadable: flags & raw::data_flags::UNREADABLE != 0,
        frame: flags & raw::data_flags::FRAME != 0,
    })
}

fn decode_open(fields: Fields<'_>) -> Result<Open, DecodeError> {
    let path = fields.behind(size_of::<raw::Open>())?;
    let family = fields.u16(offset_of!(raw::Open, family))?;
    let address = |at: usize, port: usize| -> Result<SocketAddress, DecodeError> {
        let bytes: [u8; 16] = fields.array(at)?;
        let ip = match family {
            raw::family::INET => {
                let [a, b, c, d, ..] = bytes;
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            raw::family::INET6 => Ipv6Addr::from(bytes).to_canonical(),
            raw::family::UNIX => return Ok(SocketAddress::Unix(Box::default())),
            _ => return Ok(SocketAddress::Unknown),
        };
        Ok(SocketAddress::Ip(SocketAddr::new(ip, fields.u16(port)?)))
    };
    let mut local = address(offset_of!(raw::Open, local), offset_of!(raw::Open, local_port))?;
    let mut remote = address(offset_of!(raw::Open, remote), offset_of!(raw::Open, remote_port))?;
    if family == raw::family::UNIX {
        let name = SocketAddress::Unix(unix_name(path));
        if fields.u8(offset_of!(raw::Open, peer_named))? == 0 {
            local = name;
        } else {
            remote = name;
        }
    }
    Ok(Open {
        conn: fields.conn()?,
        time: fields.time()?,
        backend: fields.backend()?,
        tid: fields.u32(offset_of!(raw::Header, tid))?,
        protocol: match fields.u8(offset_of!(raw::Open, protocol))? {
            raw::protocol::UNKNOWN => FirstBytes::Unknown,
            raw::protocol::HTTP1 => FirstBytes::Http1,
            raw::protocol::HTTP2 => FirstBytes::Http2,
            raw::protocol::TLS => FirstBytes::Tls,
            raw::protocol::OTHER => FirstBytes::Other,
            raw::protocol::QUIC => FirstBytes::Quic,
            _ => return Err(DecodeError::Field),
        },
        transport: if family == raw::family::UNIX { Transport::Unix } else { Transport::Tcp },
        local,
        remote,
        netns: fields.u32(offset_of!(raw::Open, netns))?,
        uid: fields.u32(offset_of!(raw::Open, uid))?,
        process: ProcessRef {
            pid: fields.u32(offset_of!(raw::Header, pid))?,
            start_ns: fields.u64(offset_of!(raw::Open, process_start_ns))?,
        },
        cgroup: fields.u64(offset_of!(raw::Open, cgroup))?,
        comm: Comm(fields.array(offset_of!(raw::Open, comm))?),
        joined: fields.u8(offset_of!(raw::Header, flags))? & raw::open_flags::JOINED != 0,
        socket: Some(fields.u64(offset_of!(raw::Open, socket))?).filter(|id| *id != 0).map(ConnId),
        association: match fields.u8(offset_of!(raw::Open, association))? {
            raw::association::NONE => Association::None,
            raw::association::RANDOM => Association::Random,
            raw::association::DESCRIPTOR => Association::Descriptor,
            raw::association::NESTED => Association::Nested,
            raw::association::LEARNED => Association::Learned,
            _ => return Err(DecodeError::Field),
        },
    })
}

/// A `sun_path`: a path up to its NUL, or an abstract name, which begins with one.
fn unix_name(path: &[u8]) -> Box<str> {
    match path.split_first() {
        Some((0, name)) => {
            let end = name.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            format!("@{}", printable(name.get(..end).unwrap_or_default())).into()
        }
        _ => printable(path.split(|byte| *byte == 0).next().unwrap_or_default()).into(),
    }
}

fn decode_close(fields: Fields<'_>) -> Result<Close, DecodeError> {
    fields.behind(size_of::<raw::Close>())?;
    let flags = fields.u8(offset_of!(raw::Header, flags))?;
    Ok(Close {
        conn: fields.conn()?,
        time: fields.time()?,
        backend: fields.backend()?,
        receive: flags & raw::close_flags::RECEIVE != 0,
        send: flags & raw::close_flags::SEND != 0,
        reset: flags & raw::close_flags::RESET != 0,
    })
}

fn decode_exec(fields: Fields<'_>) -> Result<Exec, DecodeError> {
    Ok(Exec {
        time: fields.time()?,
        process: ProcessRef {
            pid: fields.u32(offset_of!(raw::Header, pid))?,
            start_ns: fields.u64(offset_of!(raw::Exec, process_start_ns))?,
        },
        cgroup: fields.u64(offset_of!(raw::Exec, cgroup))?,
        comm: Comm(fields.array(offset_of!(raw::Exec, comm))?),
        filename: printable(fields.behind(size_of::<raw::Exec>())?).into(),
    })
}

#[cfg(test)]
pub(crate) mod tests;
