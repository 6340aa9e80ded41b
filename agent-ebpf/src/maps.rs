//! Every map in one place: what it keeps, who writes, who reads, why this size.

use agent_common::config::Config;
use agent_common::counters::Counter;
use agent_common::event::{Data, Open};
use agent_common::limits::{LAYOUTS, RECORD_PAYLOAD_MAX, RING_BYTES, TLS_SLOTS, UNIX_PATH_MAX};
use agent_common::tls::Watched;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, RingBuf};

use crate::arch::Source;
use crate::tls::Yield;

/// Records to the agent. One for all CPUs: it keeps their order. Resized by the loader.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Settings; written by the agent at any time.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Which of a CPU's buffers and counters a program works on, so that it never meets another half done with them.
pub(crate) mod slot {
    use super::TLS_SLOTS;

    /// Socket operations run to their end once begun: one for each direction.
    pub(crate) const RECEIVE: u32 = 0;
    pub(crate) const SEND: u32 = 1;
    /// Programs on TLS libraries may be preempted by their own kind: each takes one that is free.
    pub(crate) const TLS: u32 = 2;
    /// Buffers.
    pub(crate) const COUNT: u32 = TLS + TLS_SLOTS;
    /// For counters alone: programs that interrupt the others.
    pub(crate) const EVENT: u32 = COUNT;
}

/// Counters of `agent_common::counters` by [`slot`], all in one value: one look-up an operation. The agent adds them up.
#[map]
pub(crate) static COUNTERS: PerCpuArray<[u64; Counter::ALL.len()]> = PerCpuArray::with_max_entries(slot::EVENT + 1, 0);

/// Where records are built, by [`slot`].
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(slot::COUNT, 0);

/// Where [`Open`] records are built, by [`slot`]: the BPF stack is 512 bytes.
#[map]
pub(crate) static OPEN_SCRATCH: PerCpuArray<OpenScratch> = PerCpuArray::with_max_entries(slot::COUNT, 0);

/// State of a connection, kept by its socket and freed with it. Created at the first data, not at connect.
#[btf_map]
pub(crate) static SOCKETS: SkStorage<ConnState> = SkStorage::new();

/// The same for the backend without a trusted socket. The LRU forgets sockets that are gone.
#[map]
pub(crate) static WALKED_SOCKETS: LruHashMap<WalkedKey, ConnState> = LruHashMap::with_max_entries(65_536, 0);

/// Addresses of the agent's own sockets: the far end of its connections is left alone too, else exporting a span
/// would make a span. Deleted when the socket closes.
#[map]
pub(crate) static OWN_ADDRESSES: LruHashMap<u64, u8> = LruHashMap::with_max_entries(1024, 0);

/// Processes (tgid) that the agent's filters exclude; looked at when a connection is classified.
#[map]
pub(crate) static MUTED: LruHashMap<u32, u8> = LruHashMap::with_max_entries(16_384, 0);

/// Sockets that carry TLS, by their identity; for programs that have no socket in hand. The LRU forgets those gone.
#[map]
pub(crate) static TLS_SOCKETS: LruHashMap<u64, TlsSocket> = LruHashMap::with_max_entries(65_536, 0);

/// `ClientHello`s, by the process that sent or received it: read by the call that first moves bytes of the TLS object. By
/// process, because one that passes bytes on (a proxy of TCP, a tunnel) sends the client's hello again.
#[map]
pub(crate) static HELLOS: LruHashMap<HelloKey, Hello> = LruHashMap::with_max_entries(32_768, 0);

/// TLS objects, by process and address. An address that is used again is recognised by its binding.
#[map]
pub(crate) static TLS_STREAMS: LruHashMap<StreamKey, TlsState> = LruHashMap::with_max_entries(65_536, 0);

/// Threads (pid and tgid) that use TLS: what they are in the middle of.
#[map]
pub(crate) static THREADS: LruHashMap<u64, Thread> = LruHashMap::with_max_entries(16_384, 0);

/// Calls in progress of goroutines, which change threads.
#[map]
pub(crate) static GOROUTINES: LruHashMap<StreamKey, Call> = LruHashMap::with_max_entries(16_384, 0);

/// Watched libraries, by the index in the attachment's cookie. Written by the agent before it attaches.
#[map]
pub(crate) static LIBRARIES: Array<Watched> = Array::with_max_entries(LAYOUTS, 0);

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsSocket {
    /// When its ClientHello was seen; 0: it is older than the agent.
    pub(crate) hello_ns: u64,
    /// Not 0: the object above is known for certain, what threads do with the socket is of no interest any more.
    pub(crate) bound: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct HelloKey {
    /// The first half.
    pub(crate) random: [u64; 2],
    pub(crate) tgid: u64,
}

/// Ends of the connection that a ClientHello was seen on by one process; 0: not by this one.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Hello {
    pub(crate) client: u64,
    pub(crate) server: u64,
}

/// An address in a process.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct StreamKey {
    pub(crate) object: u64,
    pub(crate) tgid: u64,
}

/// A TLS object. All zero means new.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TlsState {
    pub(crate) stream: ConnState,
    /// The socket below, see `agent_common::event::Open::socket`.
    pub(crate) socket: u64,
    /// The socket that the votes are for.
    pub(crate) candidate: u64,
    /// First bytes of the ClientHello.random that the object holds.
    pub(crate) random: u64,
    pub(crate) votes: u8,
    /// One of `agent_common::event::association`.
    pub(crate) association: u8,
    pub(crate) backend: u8,
    pub(crate) padding: [u8; 5],
    /// When its library came under watch.
    pub(crate) since_ns: u64,
    /// Its address in the process.
    pub(crate) address: u64,
}
const _: () = assert!(size_of::<TlsState>() == size_of::<ConnState>() + 48);

/// Arguments of a call of a TLS library.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Call {
    /// 0: no call.
    pub(crate) object: u64,
    pub(crate) buffer: u64,
    pub(crate) len: u64,
    /// Address of the number of bytes moved, where the call has one.
    pub(crate) moved: u64,
    /// The stack pointer at its beginning; 0: of no interest.
    pub(crate) stack: u64,
}

/// What a thread did last.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Thread {
    pub(crate) call: Call,
    /// The call that `call` is made by: of an object whose records another object carries, as to an HTTPS proxy.
    pub(crate) above: Call,
    /// TLS socket used inside `call`; 0: none.
    pub(crate) nested: u64,
    /// TLS socket received from last.
    pub(crate) received: u64,
    /// The one object that this speaks for; 0: none yet.
    pub(crate) received_by: u64,
    /// The object written to since the last send of a TLS socket, and how much at first; 0: none.
    pub(crate) written: u64,
    pub(crate) written_len: u64,
}

#[repr(C)]
pub(crate) struct Scratch {
    /// Not zero: taken, see [`crate::tls`]. Of no use for socket operations.
    pub(crate) busy: u64,
    pub(crate) locals: Locals,
    pub(crate) walk: Walk,
    pub(crate) data: Data,
    /// Room for an offset and a piece, see `RECORD_PAYLOAD_MAX`.
    pub(crate) payload: [u8; 2 * RECORD_PAYLOAD_MAX],
}
const _: () = assert!(size_of::<Scratch>() <= 32 * 1024);

/// Variables that the verifier is to know nothing of, see [`forget`].
#[repr(C)]
pub(crate) struct Locals {
    pub(crate) source: Source,
    pub(crate) at: u64,
    pub(crate) wanted: u64,
    pub(crate) done: u64,
    pub(crate) begins: u64,
    pub(crate) copied: u64,
    /// Of a TLS library. Here because kernels up to 6.1 have no stack left for it.
    pub(crate) yielded: Yield,
}

/// A walk through the frames of an operation, see [`crate::http2`]. Numbers are bytes where not said otherwise.
#[repr(C)]
pub(crate) struct Walk {
    /// Of the operation: passed, and all.
    pub(crate) at: u64,
    pub(crate) total: u64,
    /// Stream position of the operation.
    pub(crate) start: u64,
    /// Where [`Self::at`] is in memory, and how much of its vector is left.
    pub(crate) address: u64,
    pub(crate) available: u64,
    /// Index of the next vector.
    pub(crate) next: u64,
    /// What is at [`Self::at`].
    pub(crate) mode: u64,
    /// Of the frame: what is to come, and how much of that is wanted.
    pub(crate) left: u64,
    pub(crate) wanted: u64,
    /// Of a frame header: the number of its bytes that are there, and the bytes: eight and the ninth. What is behind is
    /// room that the verifier wants.
    pub(crate) have: u64,
    pub(crate) word: u64,
    pub(crate) last: u64,
    pub(crate) room: u64,
    /// The record in progress: its first byte in the operation, its bytes, those in the payload.
    pub(crate) begin: u64,
    pub(crate) len: u64,
    pub(crate) filled: u64,
    /// Those not in the payload yet: address and number.
    pub(crate) piece: u64,
    pub(crate) piece_len: u64,
    /// Its flags, and the streams that it opens.
    pub(crate) flags: u64,
    pub(crate) requests: u64,
    /// All records of the operation: streams opened, their number, bytes copied.
    pub(crate) all_requests: u64,
    pub(crate) records: u64,
    pub(crate) copied: u64,
    pub(crate) slot: u64,
    /// Not zero: the operation is a send.
    pub(crate) send: u64,
}

/// Store a value in map memory and load it back. The verifier follows each value of a register or stack slot apart,
/// but not of a map: paths that differ only in this value become one, where they would multiply.
#[inline(always)]
pub(crate) fn forget<T: Copy>(slot: *mut T, value: T) -> T {
    // SAFETY: callers pass a field of a map value.
    unsafe {
        slot.write_volatile(value);
        slot.read_volatile()
    }
}

#[repr(C)]
pub(crate) struct OpenScratch {
    pub(crate) open: Open,
    /// Longer than a path: LLVM adds the lengths of the record (a power of two) and of the path with OR, of which the
    /// verifier only knows the bits.
    pub(crate) path: [u8; UNIX_PATH_MAX.next_power_of_two()],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct WalkedKey {
    pub(crate) socket: u64,
    /// Addresses of `struct sock` are reused within seconds; the remote port tells most of those apart. Not the local
    /// one: it is given back before the state becomes TCP_CLOSE.
    pub(crate) remote_port: u64,
}

/// What is known of a connection. All zero means new.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ConnState {
    pub(crate) verdict: u8,
    /// Direction of the last operation plus one; 0 before the first.
    pub(crate) last: u8,
    /// Direction changes seen while not recognised. HTTP/2: operations since a frame boundary was known.
    pub(crate) turns: u8,
    pub(crate) flags: u8,
    /// Budget left for the message in progress.
    pub(crate) budget: u32,
    /// Process of the last Open record.
    pub(crate) tgid: u32,
    /// HTTP/2: the highest number of a stream that a client opened.
    pub(crate) highest_stream: u32,
    pub(crate) id: u64,
    /// By direction.
    pub(crate) seq: [u32; 2],
    pub(crate) position: [u64; 2],
    /// First bytes of a direction that came in pieces, and their number. HTTP/2: where the frames stand, see
    /// [`crate::http2`].
    pub(crate) partial: [u64; 2],
    pub(crate) partial_len: [u32; 2],
}
const _: () = assert!(size_of::<ConnState>() == 72);
