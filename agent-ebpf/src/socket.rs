//! What the shared path asks of a socket, answered by a trusted pointer (direct loads) or by a walked one (probe reads).

use agent_common::event::{Open, association, direction, family};
use agent_common::limits::UNIX_PATH_MAX;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_skc_to_tcp_sock, bpf_skc_to_unix_sock,
};

use crate::kernel::{self, load, load_at, probe};
use crate::maps::OpenScratch;

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
pub(crate) const SOCK_STREAM: u16 = 1;
const SOCK_DGRAM: u16 = 2;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;
const IPPROTO_MPTCP: u16 = 262;

/// One end of a connection.
pub(crate) trait Socket: Copy {
    /// This is a socket, not the plaintext side of a TLS connection.
    const IS_SOCKET: bool = true;
    /// Identity for as long as the socket lives; `now` where the kernel has none to offer.
    fn id(self, now: u64) -> u64;
    /// TCP sequence number behind the last byte of the operation, if this is TCP.
    fn sequence_end(self, direction: u8) -> Option<u32>;
    /// Bytes moved in either direction before this operation of `len` bytes.
    fn is_older(self, direction: u8, len: u32) -> bool;
    /// Family, addresses, ports and network namespace.
    fn describe(self, open: *mut Open);
    /// Name of a Unix socket or of its peer behind the record; returns its length.
    fn unix_name(self, scratch: *mut OpenScratch) -> u32;

    /// The socket below and how it was found, see `agent_common::event::Open::socket`.
    #[inline(always)]
    fn below(self) -> (u64, u8) {
        (0, association::NONE)
    }
}

/// A socket that the verifier trusts: an argument of the program.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Trusted(pub(crate) *const u8);

/// A socket found by walking the descriptor table.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Walked(pub(crate) u64);

/// A stream socket of a family that carries HTTP.
#[inline(always)]
fn wanted(family: u16, kind: u16, protocol: u16) -> bool {
    kind == SOCK_STREAM
        && match family {
            family::INET | family::INET6 => protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP,
            family::UNIX => true,
            _ => false,
        }
}

/// A socket that may carry QUIC.
#[inline(always)]
fn is_datagram(family: u16, kind: u16, protocol: u16) -> bool {
    kind == SOCK_DGRAM && protocol == IPPROTO_UDP && (family == family::INET || family == family::INET6)
}

/// Folds an address and a port into a key of `OWN_ADDRESSES`.
#[inline(always)]
pub(crate) fn address_key(address: &[u8; 16], port: u16) -> u64 {
    // SAFETY: sixteen bytes, read unaligned.
    let [low, high] = unsafe { address.as_ptr().cast::<[u64; 2]>().read_unaligned() };
    (low ^ high.rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (port as u64) << 48 ^ port as u64
}

/// What the counters of `struct tcp_sock` say of the bytes before an operation. A SYN or FIN may count as one.
#[inline(always)]
fn moved_before(counters: Counters, direction: u8, len: u32) -> bool {
    let unread = counters.rcv_nxt.wrapping_sub(counters.copied_seq);
    let unacknowledged = counters.write_seq.wrapping_sub(counters.snd_una);
    let received = counters.bytes_received.wrapping_sub(u64::from(unread));
    let sent = counters.bytes_acked.wrapping_add(u64::from(unacknowledged));
    let (received, sent) = if direction == direction::SEND {
        (received, sent.wrapping_sub(u64::from(len)))
    } else {
        (received.wrapping_sub(u64::from(len)), sent)
    };
    // A count below zero is a FIN that was counted on one side only.
    (received as i64) > 1 || (sent as i64) > 1
}

struct Counters {
    copied_seq: u32,
    rcv_nxt: u32,
    write_seq: u32,
    snd_una: u32,
    bytes_received: u64,
    bytes_acked: u64,
}

impl Trusted {
    #[inline(always)]
    pub(crate) fn is_stream(self) -> bool {
        // SAFETY: `self.0` is the `struct sock` argument of the program.
        unsafe { load::<u16>(self.0, &kernel::SK_TYPE) == SOCK_STREAM }
    }

    /// Bytes were received that the process has not read. (A FIN counts as one.)
    #[inline(always)]
    pub(crate) fn has_unread(self) -> bool {
        // SAFETY: the helper takes a trusted socket and returns a typed pointer or null.
        unsafe {
            let tcp = bpf_skc_to_tcp_sock(self.0.cast_mut().cast()).cast::<u8>().cast_const();
            if tcp.is_null() {
                return false;
            }
            let (received, read): (u32, u32) = (load(tcp, &kernel::TCP_RCV_NXT), load(tcp, &kernel::TCP_COPIED_SEQ));
            received.wrapping_sub(read) > 1
        }
    }

    /// A UDP socket.
    #[inline(always)]
    pub(crate) fn is_datagram(self) -> bool {
        // SAFETY: as above.
        unsafe {
            is_datagram(
                load(self.0, &kernel::SKC_FAMILY),
                load(self.0, &kernel::SK_TYPE),
                load(self.0, &kernel::SK_PROTOCOL),
            )
        }
    }

    #[inline(always)]
    pub(crate) fn is_wanted(self) -> bool {
        // SAFETY: as above.
        unsafe {
            wanted(
                load(self.0, &kernel::SKC_FAMILY),
                load(self.0, &kernel::SK_TYPE),
                load(self.0, &kernel::SK_PROTOCOL),
            )
        }
    }
}

impl Socket for Trusted {
    #[inline(always)]
    fn id(self, _now: u64) -> u64 {
        // SAFETY: the helper takes a trusted socket.
        unsafe { bpf_get_socket_cookie(self.0.cast_mut().cast()) }
    }

    #[inline(always)]
    fn sequence_end(self, direction: u8) -> Option<u32> {
        // SAFETY: the helper takes a trusted socket and returns a typed pointer or null.
        unsafe {
            let tcp = bpf_skc_to_tcp_sock(self.0.cast_mut().cast()).cast::<u8>().cast_const();
            if tcp.is_null() {
                return None;
            }
            Some(if direction == direction::SEND {
                load(tcp, &kernel::TCP_WRITE_SEQ)
            } else {
                load(tcp, &kernel::TCP_COPIED_SEQ)
            })
        }
    }

    #[inline(always)]
    fn is_older(self, direction: u8, len: u32) -> bool {
        // SAFETY: the helper takes a trusted socket and returns a typed pointer or null.
        unsafe {
            let tcp = bpf_skc_to_tcp_sock(self.0.cast_mut().cast()).cast::<u8>().cast_const();
            if tcp.is_null() {
                return false;
            }
            let counters = Counters {
                copied_seq: load(tcp, &kernel::TCP_COPIED_SEQ),
                rcv_nxt: load(tcp, &kernel::TCP_RCV_NXT),
                write_seq: load(tcp, &kernel::TCP_WRITE_SEQ),
                snd_una: load(tcp, &kernel::TCP_SND_UNA),
                bytes_received: load(tcp, &kernel::TCP_BYTES_RECEIVED),
                bytes_acked: load(tcp, &kernel::TCP_BYTES_ACKED),
            };
            moved_before(counters, direction, len)
        }
    }

    #[inline(always)]
    fn describe(self, open: *mut Open) {
        // SAFETY: typed loads; `open` is a per-CPU map value.
        unsafe {
            let family: u16 = load(self.0, &kernel::SKC_FAMILY);
            (*open).family = family;
            (*open).local_port = 0;
            (*open).remote_port = 0;
            let local = (&raw mut (*open).local).cast::<u64>();
            let remote = (&raw mut (*open).remote).cast::<u64>();
            local.write(0);
            local.add(1).write(0);
            remote.write(0);
            remote.add(1).write(0);
            if family == family::INET || family == family::INET6 {
                (*open).local_port = load(self.0, &kernel::SKC_NUM);
                (*open).remote_port = u16::from_be(load(self.0, &kernel::SKC_DPORT));
            }
            if family == family::INET {
                local.cast::<u32>().write(load(self.0, &kernel::SKC_RCV_SADDR));
                remote.cast::<u32>().write(load(self.0, &kernel::SKC_DADDR));
            } else if family == family::INET6 {
                local.write(load(self.0, &kernel::SKC_V6_RCV_SADDR));
                local.add(1).write(load_at(self.0, &kernel::SKC_V6_RCV_SADDR, 8));
                remote.write(load(self.0, &kernel::SKC_V6_DADDR));
                remote.add(1).write(load_at(self.0, &kernel::SKC_V6_DADDR, 8));
            }
            let net: *const u8 = load(self.0, &kernel::SKC_NET);
            (*open).netns = if net.is_null() { 0 } else { load(net, &kernel::NET_INUM) };
        }
    }

    #[inline(always)]
    fn unix_name(self, scratch: *mut OpenScratch) -> u32 {
        if kernel::PROBE_READ_KERNEL.load() == 0 {
            return 0;
        }
        // SAFETY: the helper takes a trusted socket and returns a typed pointer or null.
        let socket = unsafe { bpf_skc_to_unix_sock(self.0.cast_mut().cast()) };
        if socket.is_null() { 0 } else { unix_name(self.0 as u64, scratch) }
    }
}

impl Walked {
    /// A UDP socket.
    #[inline(always)]
    pub(crate) fn is_datagram(self) -> bool {
        let family = probe(self.0, &kernel::SKC_FAMILY).unwrap_or(0);
        let kind = probe(self.0, &kernel::SK_TYPE).unwrap_or(0);
        is_datagram(family, kind, probe(self.0, &kernel::SK_PROTOCOL).unwrap_or(0))
    }

    #[inline(always)]
    pub(crate) fn is_wanted(self) -> bool {
        let family = probe(self.0, &kernel::SKC_FAMILY).unwrap_or(0);
        let kind = probe(self.0, &kernel::SK_TYPE).unwrap_or(0);
        wanted(family, kind, probe(self.0, &kernel::SK_PROTOCOL).unwrap_or(0))
    }
}

impl Socket for Walked {
    #[inline(always)]
    fn id(self, now: u64) -> u64 {
        // The kernel gives a cookie only to those who may ask; the first sight of the socket is as unique.
        now ^ self.0.rotate_left(17)
    }

    #[inline(always)]
    fn sequence_end(self, direction: u8) -> Option<u32> {
        let family: u16 = probe(self.0, &kernel::SKC_FAMILY)?;
        let protocol: u16 = probe(self.0, &kernel::SK_PROTOCOL)?;
        if family == family::UNIX || protocol != IPPROTO_TCP {
            return None;
        }
        // `struct tcp_sock` begins with its `struct sock`.
        if direction == direction::SEND {
            probe(self.0, &kernel::TCP_WRITE_SEQ)
        } else {
            probe(self.0, &kernel::TCP_COPIED_SEQ)
        }
    }

    #[inline(always)]
    fn is_older(self, direction: u8, len: u32) -> bool {
        if self.sequence_end(direction).is_none() {
            return false;
        }
        let word = |field| probe::<u32>(self.0, field).unwrap_or(0);
        let counters = Counters {
            copied_seq: word(&kernel::TCP_COPIED_SEQ),
            rcv_nxt: word(&kernel::TCP_RCV_NXT),
            write_seq: word(&kernel::TCP_WRITE_SEQ),
            snd_una: word(&kernel::TCP_SND_UNA),
            bytes_received: probe(self.0, &kernel::TCP_BYTES_RECEIVED).unwrap_or(0),
            bytes_acked: probe(self.0, &kernel::TCP_BYTES_ACKED).unwrap_or(0),
        };
        moved_before(counters, direction, len)
    }

    #[inline(always)]
    fn describe(self, open: *mut Open) {
        let family: u16 = probe(self.0, &kernel::SKC_FAMILY).unwrap_or(0);
        let (mut local, mut remote, mut ports) = ([0_u64; 2], [0_u64; 2], (0_u16, 0_u16));
        if family == family::INET || family == family::INET6 {
            ports.0 = probe(self.0, &kernel::SKC_NUM).unwrap_or(0);
            ports.1 = u16::from_be(probe(self.0, &kernel::SKC_DPORT).unwrap_or(0));
        }
        if family == family::INET {
            local[0] = probe::<u32>(self.0, &kernel::SKC_RCV_SADDR).unwrap_or(0) as u64;
            remote[0] = probe::<u32>(self.0, &kernel::SKC_DADDR).unwrap_or(0) as u64;
        } else if family == family::INET6 {
            local = probe(self.0, &kernel::SKC_V6_RCV_SADDR).unwrap_or([0; 2]);
            remote = probe(self.0, &kernel::SKC_V6_DADDR).unwrap_or([0; 2]);
        }
        let net: u64 = probe(self.0, &kernel::SKC_NET).unwrap_or(0);
        // SAFETY: `open` is a per-CPU map value.
        unsafe {
            (*open).family = family;
            (*open).local_port = ports.0;
            (*open).remote_port = ports.1;
            (&raw mut (*open).local).cast::<[u64; 2]>().write(local);
            (&raw mut (*open).remote).cast::<[u64; 2]>().write(remote);
            (*open).netns = probe(net, &kernel::NET_INUM).unwrap_or(0);
        }
    }

    #[inline(always)]
    fn unix_name(self, scratch: *mut OpenScratch) -> u32 {
        if probe::<u16>(self.0, &kernel::SKC_FAMILY) == Some(family::UNIX) { unix_name(self.0, scratch) } else { 0 }
    }
}

/// `sun_path` of the socket itself (an accepted socket has its listener's) or, unnamed, of its peer.
#[inline(always)]
fn unix_name(socket: u64, scratch: *mut OpenScratch) -> u32 {
    let mut address: u64 = probe(socket, &kernel::UNIX_ADDR).unwrap_or(0);
    if address == 0 {
        let peer: u64 = probe(socket, &kernel::UNIX_PEER).unwrap_or(0);
        if peer == 0 {
            return 0;
        }
        address = probe(peer, &kernel::UNIX_ADDR).unwrap_or(0);
        // SAFETY: a per-CPU map value.
        unsafe { (*scratch).open.peer_named = 1 };
    }
    if address == 0 {
        return 0;
    }
    /// `sa_family_t`, which `len` includes.
    const SUN_PATH: u32 = 2;
    let len: u32 = probe(address, &kernel::UNIX_ADDRESS_LEN).unwrap_or(0);
    if len <= SUN_PATH {
        return 0;
    }
    let len = len - SUN_PATH;
    let len = if len > UNIX_PATH_MAX as u32 { UNIX_PATH_MAX as u32 } else { len };
    let from = address.wrapping_add(u64::from(kernel::UNIX_ADDRESS_NAME.load() + SUN_PATH));
    // SAFETY: at most as many bytes as the buffer has; the name was allocated with that length.
    let status = unsafe { bpf_probe_read_kernel((&raw mut (*scratch).path).cast(), len, from as *const _) };
    if status == 0 { len } else { 0 }
}

/// The `struct sock` behind a descriptor of the current process, 0 if it is no socket.
#[inline(always)]
pub(crate) fn of_descriptor(fd: u32) -> Option<u64> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task_btf() } as u64;
    let files: u64 = probe(task, &kernel::TASK_FILES)?;
    let table: u64 = probe(files, &kernel::FILES_FDT)?;
    let size: u32 = probe(table, &kernel::FDT_MAX_FDS)?;
    if fd >= size {
        return None;
    }
    let entries: u64 = probe(table, &kernel::FDT_FD)?;
    let file: u64 = copy_pointer(entries.wrapping_add(u64::from(fd) * 8))?;
    let inode: u64 = probe(file, &kernel::FILE_INODE)?;
    let mode: u16 = probe(inode, &kernel::INODE_MODE)?;
    if mode & S_IFMT != S_IFSOCK {
        return Some(0);
    }
    let socket: u64 = probe(file, &kernel::FILE_PRIVATE_DATA)?;
    probe(socket, &kernel::SOCKET_SK)
}

#[inline(always)]
fn copy_pointer(address: u64) -> Option<u64> {
    let zero = aya_ebpf::Global::new(0);
    probe(address, &zero)
}
