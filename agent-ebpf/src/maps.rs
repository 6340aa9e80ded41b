//! Every map in one place: what it keeps, who writes, who reads, why this size.

use agent_common::config::Config;
use agent_common::counters::Counter;
use agent_common::event::{Data, Open};
use agent_common::limits::{RECORD_PAYLOAD_MAX, RING_BYTES, UNIX_PATH_MAX};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, RingBuf};

use crate::arch::Source;

/// Records to the agent. One for all CPUs: it keeps their order. Resized by the loader.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Settings; written by the agent at any time.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Counters of `agent_common::counters`, all in one value: one look-up an operation.
#[map]
pub(crate) static COUNTERS: PerCpuArray<[u64; Counter::ALL.len()]> = PerCpuArray::with_max_entries(1, 0);

/// Where records are built; one for each direction of [`crate::stream`], so that a program never meets its own.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(2, 0);

/// Where [`Open`] records are built: the BPF stack is 512 bytes.
#[map]
pub(crate) static OPEN_SCRATCH: PerCpuArray<OpenScratch> = PerCpuArray::with_max_entries(2, 0);

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

#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) locals: Locals,
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
    pub(crate) path: [u8; UNIX_PATH_MAX + 4],
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
    /// Direction changes seen while not recognised.
    pub(crate) turns: u8,
    pub(crate) flags: u8,
    /// Budget left for the message in progress.
    pub(crate) budget: u32,
    /// Process of the last Open record.
    pub(crate) tgid: u32,
    pub(crate) padding: u32,
    pub(crate) id: u64,
    /// By direction.
    pub(crate) seq: [u32; 2],
    pub(crate) position: [u64; 2],
    /// First bytes of a direction that came in pieces, and their number.
    pub(crate) partial: [u64; 2],
    pub(crate) partial_len: [u32; 2],
}
const _: () = assert!(size_of::<ConnState>() == 72);
