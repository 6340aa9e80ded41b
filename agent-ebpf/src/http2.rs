//! HTTP/2: walks the frames of an operation and copies what the agent needs of each. Looks at frame headers only, and
//! never at more of an operation than its bounds allow.
//!
//! Header blocks must all arrive, or the agent cannot decode those behind them; content is worth its first bytes. So a
//! download costs its frame headers, wherever in an operation a header block comes.

use core::ffi::c_void;

use agent_common::classify::{Start, classify_word};
use agent_common::counters::Counter;
use agent_common::event::{data_flags, direction, protocol};
use agent_common::http2::{FRAME_HEADER, FrameHeader, Interest, PREFACE, flags, kind};
use agent_common::limits::{
    CONTENT_GLANCE, CONTENT_RECORDS, CONTENT_SLACK, FRAME_STEPS, FRAMES_BYTES, PREFIX_AFTER_BUDGET, RECORD_PAYLOAD_MAX,
    RESYNC_OPERATIONS,
};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_loop;

use crate::arch::{Kind, Vector};
use crate::copy::{self, clamp, user};
use crate::emit::{count, count_all};
use crate::maps::{CONFIG, ConnState, SCRATCH, Scratch, Walk, forget};
use crate::socket::Socket;
use crate::stream::{self, Moved, flag};

/// Vectors looked at for two headers: what comes in between, and each piece, may be one.
const CHAIN_VECTORS: u64 = 8;
const HEADER: u32 = FRAME_HEADER as u32;

/// [`Walk::mode`] values; the first three are kept between operations.
mod mode {
    /// Frame boundaries are not known.
    pub(super) const LOST: u64 = 0;
    /// In a frame header, or in front of it.
    pub(super) const HEADER: u64 = 1;
    /// In a frame.
    pub(super) const FRAME: u64 = 2;
}

/// [`ConnState::partial_len`] holds the mode above this bit, and below it the bytes left of the frame, or those there
/// of its header. [`ConnState::partial`] holds how many of the bytes left are wanted, or the bytes.
const MODE_SHIFT: u32 = 30;
const COUNT_MASK: u32 = (1 << MODE_SHIFT) - 1;

/// What a step needs; on the stack, because the verifier knows pointers there.
#[repr(C)]
struct Pass {
    state: *mut ConnState,
    scratch: *mut Scratch,
}

/// From now on the connection is HTTP/2. Where its frames are is not known, but that `preface` bytes of one went by before
/// the operation.
#[inline(always)]
pub(crate) fn begin(state: &mut ConnState, slot: u32, is_send: bool, preface: u32) {
    state.verdict = stream::verdict::HTTP2;
    state.turns = 0;
    state.budget = 0;
    state.highest_stream = 0;
    state.partial = [0; 2];
    state.partial_len = [0; 2];
    if preface != 0 {
        let left = (PREFACE.len() as u32).saturating_sub(preface);
        let at = if is_send { 1 } else { 0 };
        state.partial_len[at] = (mode::FRAME as u32) << MODE_SHIFT | left;
        state.partial[at] = u64::from(left);
    }
    count(slot, Counter::ConnectionsHttp2, 1);
}

/// Report one operation of a connection.
#[inline(never)]
pub(crate) fn follow<S: Socket>(state: &mut ConnState, socket: S, moved: &Moved, scratch: *mut Scratch) {
    let now = stream::now();
    let pid_tgid = bpf_get_current_pid_tgid();
    if state.flags & flag::OPENED == 0 || state.tgid != (pid_tgid >> 32) as u32 {
        stream::open(state, socket, moved, protocol::HTTP2, now);
    }
    let before = stream::position(state, moved.direction);
    let start = stream::advance(state, socket, moved);
    stream::begin_data(state, moved, scratch, now, pid_tgid);
    let unseen = if before == 0 { 0 } else { start - before };
    resume(state, scratch, moved, start, unseen);
    let mut pass = Pass { state, scratch };
    // SAFETY: the callback takes what is passed.
    unsafe {
        bpf_loop(FRAME_STEPS, step as *const () as *mut c_void, (&raw mut pass).cast(), 0);
    }
    finish(state, scratch, moved);
}

/// Take up the walk where the last operation of this direction left it.
#[inline(never)]
fn resume(state: &mut ConnState, scratch: *mut Scratch, moved: &Moved, start: u64, unseen: u64) {
    // SAFETY: a per-CPU map value.
    let (walk, source) = unsafe { (&mut (*scratch).walk, &(*scratch).locals.source) };
    walk.at = 0;
    walk.total = u64::from(moved.len);
    walk.start = start;
    walk.slot = u64::from(moved.slot);
    walk.send = u64::from(moved.direction == direction::SEND);
    walk.next = 0;
    walk.begin = 0;
    walk.len = 0;
    walk.filled = 0;
    walk.piece = 0;
    walk.piece_len = 0;
    walk.flags = 0;
    walk.requests = 0;
    walk.all_requests = 0;
    walk.records = 0;
    walk.copied = 0;
    (walk.address, walk.available) = match source.kind {
        Kind::Buffer => (source.base, u64::from(moved.len)),
        _ => (0, 0),
    };
    let (packed, kept) = if moved.direction == direction::SEND {
        (state.partial_len[1], state.partial[1])
    } else {
        (state.partial_len[0], state.partial[0])
    };
    let number = u64::from(packed & COUNT_MASK);
    walk.mode = u64::from(packed >> MODE_SHIFT);
    walk.have = 0;
    walk.left = 0;
    walk.wanted = 0;
    if walk.mode == mode::HEADER {
        walk.have = number;
        walk.word = kept;
    } else {
        walk.left = number;
        walk.wanted = kept;
    }
    if unseen != 0 {
        pass_over(walk, unseen);
    }
    if walk.mode == mode::LOST && source.kind != Kind::Opaque && is_chain(scratch, moved.len, true) {
        walk.mode = mode::HEADER;
        walk.have = 0;
    }
    if walk.mode == mode::LOST {
        state.turns = state.turns.saturating_add(1);
        lose(state, walk);
    } else {
        state.turns = 0;
    }
}

/// Bytes go by that cannot be read: within a frame it does not matter.
#[inline(always)]
fn pass_over(walk: &mut Walk, unseen: u64) {
    if walk.mode != mode::FRAME || unseen > walk.left {
        walk.mode = mode::LOST;
        return;
    }
    walk.left -= unseen;
    walk.wanted = walk.wanted.saturating_sub(unseen);
    if walk.left == 0 {
        walk.mode = mode::HEADER;
        walk.have = 0;
    }
}

/// Frame boundaries are not known from here to the end of the operation: its first bytes are worth the budget, as long as
/// there is hope.
#[inline(always)]
fn lose(state: &ConnState, walk: &mut Walk) {
    let budget = match CONFIG.get(0) {
        Some(config) if state.turns < RESYNC_OPERATIONS => config.budget,
        _ => PREFIX_AFTER_BUDGET,
    };
    walk.mode = mode::LOST;
    walk.left = walk.total - walk.at;
    walk.wanted = u64::from(budget);
}

/// One step of the walk: a vector, a frame header, wanted or unwanted bytes of a frame, or a record. Everything it works
/// on is in map memory, so that the verifier sees all steps as one.
extern "C" fn step(_index: u64, pass: *mut Pass) -> u64 {
    const GO_ON: u64 = 0;
    const DONE: u64 = 1;
    // SAFETY: `follow` passed it.
    let (state, scratch) = unsafe { (&mut *(*pass).state, (*pass).scratch) };
    // SAFETY: a per-CPU map value.
    let walk = unsafe { &mut (*scratch).walk };
    if walk.at >= walk.total || walk.copied > FRAMES_BYTES as u64 {
        return DONE;
    }
    if walk.available == 0 {
        // SAFETY: a per-CPU map value.
        return if commit(scratch) && next_vector(walk, unsafe { &(*scratch).locals.source }) { GO_ON } else { DONE };
    }
    let is_header = walk.mode == mode::HEADER;
    let mut n;
    let mut wanted = true;
    if is_header {
        n = HEADER as u64 - walk.have;
        n = if n < walk.available { n } else { walk.available };
        if !read_header(scratch, n, walk.address) {
            return DONE;
        }
        if walk.have == 0 && n == HEADER as u64 && walk.records >= u64::from(CONTENT_RECORDS) {
            let header = FrameHeader::from_word(walk.word, walk.last as u8);
            wanted = header.kind != kind::DATA || header.has(flags::END_STREAM);
        }
    } else {
        n = if walk.left < walk.available { walk.left } else { walk.available };
        wanted = walk.wanted != 0;
        if wanted && walk.wanted < n {
            n = walk.wanted;
        }
    }
    if wanted {
        let room = RECORD_PAYLOAD_MAX as u64 - walk.len;
        if walk.len != 0 && (walk.begin + walk.len != walk.at || room < if is_header { n } else { 1 }) {
            return if flush(state, scratch, data_flags::CONTINUES) { GO_ON } else { DONE };
        }
        n = if n < room { n } else { room };
        extend(walk, n, is_header);
    }
    walk.at += n;
    walk.address += n;
    walk.available -= n;
    if is_header {
        walk.have += n;
        if walk.have == HEADER as u64 {
            enter(state, walk);
        }
    } else {
        walk.left -= n;
        walk.wanted -= if wanted { n } else { 0 };
        if walk.left == 0 && walk.mode == mode::FRAME {
            walk.mode = mode::HEADER;
            walk.have = 0;
        }
    }
    GO_ON
}

/// The record in progress goes on, or begins, with `n` bytes from here.
#[inline(always)]
fn extend(walk: &mut Walk, n: u64, is_header: bool) {
    if walk.len == 0 {
        walk.begin = walk.at;
        walk.flags = if is_header && walk.have == 0 { u64::from(data_flags::FRAME) } else { 0 };
    }
    if walk.piece_len == 0 {
        walk.piece = walk.address;
    }
    walk.piece_len += n;
    walk.len += n;
}

/// The header of a frame is there.
#[inline(always)]
fn enter(state: &mut ConnState, walk: &mut Walk) {
    let header = FrameHeader::from_word(walk.word, walk.last as u8);
    walk.have = 0;
    if classify_word(walk.word) == Start::Http2 {
        walk.mode = mode::FRAME;
        walk.left = (PREFACE.len() - FRAME_HEADER) as u64;
        walk.wanted = walk.left;
        return;
    }
    if !header.is_lawful() {
        lose(state, walk);
        return;
    }
    let mut wanted = header.len;
    match header.interest() {
        Interest::Whole => {
            if header.kind == kind::HEADERS {
                state.budget = CONFIG.get(0).map_or(0, |config| config.budget);
                // Streams that clients open have odd numbers, each higher than those before (section 5.1.1).
                if header.stream & 1 == 1 && header.stream > state.highest_stream {
                    state.highest_stream = header.stream;
                    walk.requests += 1;
                }
            }
        }
        Interest::Content => {
            let budget = state.budget;
            wanted = at_most(header.len, if budget > CONTENT_GLANCE { budget } else { CONTENT_GLANCE });
            state.budget = budget.saturating_sub(wanted);
        }
        Interest::Glance => wanted = at_most(header.len, CONTENT_GLANCE),
    }
    if walk.records >= u64::from(CONTENT_RECORDS) && header.kind == kind::DATA {
        wanted = 0;
    }
    walk.mode = if header.len == 0 { mode::HEADER } else { mode::FRAME };
    walk.left = u64::from(header.len);
    walk.wanted = u64::from(wanted);
}

/// The first `limit` bytes of `len`; all, if the rest is not worth a gap.
#[inline(always)]
fn at_most(len: u32, limit: u32) -> u32 {
    if len > limit + CONTENT_SLACK { limit } else { len }
}

/// Read `n` bytes of a frame header behind those that are there.
#[inline(always)]
fn read_header(scratch: *mut Scratch, n: u64, address: u64) -> bool {
    // SAFETY: a per-CPU map value; nine bytes behind at most eight are still the header's room.
    unsafe {
        let walk = &mut (*scratch).walk;
        let have = clamp(walk.have as u32, HEADER - 1);
        copy::bytes((&raw mut walk.word).cast::<u8>().add(have as usize), n as u32, HEADER, address)
    }
}

/// Go to the next vector: as many as there are, Node writes a frame as two and dozens of frames at once; the steps of the walk
/// bound them. False: there is none.
#[inline(always)]
fn next_vector(walk: &mut Walk, source: &crate::arch::Source) -> bool {
    if source.kind != Kind::Vectors || walk.next >= source.count {
        return false;
    }
    let Some(vector) = user::<Vector>(source.base.wrapping_add(walk.next * size_of::<Vector>() as u64)) else {
        return false;
    };
    walk.next += 1;
    walk.address = vector.base;
    let rest = walk.total - walk.at;
    walk.available = if vector.len < rest { vector.len } else { rest };
    true
}

/// Copy the piece that is wanted of the current vector to the payload. False: it cannot be read.
#[inline(never)]
fn commit(scratch: *mut Scratch) -> bool {
    // SAFETY: a per-CPU map value.
    let walk = unsafe { &mut (*scratch).walk };
    let (at, len) = (walk.filled, walk.piece_len);
    walk.piece_len = 0;
    if len == 0 {
        return true;
    }
    let is_read = copy::piece(scratch, at as u32, len as u32, walk.piece);
    if is_read {
        walk.filled = at + len;
    }
    is_read
}

/// Emit the record in progress, with all bytes up to the next one as its share. False: it could not be read whole.
#[inline(never)]
fn flush(state: &mut ConnState, scratch: *mut Scratch, more: u8) -> bool {
    let is_read = commit(scratch);
    // SAFETY: a per-CPU map value.
    let (walk, data) = unsafe { (&mut (*scratch).walk, &mut (*scratch).data) };
    let slot = walk.slot as u32;
    let mut flags = walk.flags as u8 | if is_read { more } else { 0 };
    if walk.filled == 0 && !is_read {
        flags |= data_flags::UNREADABLE;
        count(slot, Counter::Unreadable, 1);
    }
    let end = if more != 0 && is_read { walk.at } else { walk.total };
    data.header.flags = flags;
    data.position = walk.start + walk.begin;
    data.len = (end - walk.begin) as u32;
    data.head = walk.filled as u16;
    data.tail = 0;
    walk.copied += walk.filled;
    walk.records += 1;
    let payload = forget(&raw mut walk.filled, walk.filled) as u32;
    let seq = if walk.send != 0 { &mut state.seq[1] } else { &mut state.seq[0] };
    if !stream::emit_data(seq, scratch, payload, slot) && walk.requests != 0 {
        count(slot, Counter::RequestsLost, walk.requests);
    }
    walk.all_requests += walk.requests;
    walk.requests = 0;
    walk.len = 0;
    walk.filled = 0;
    walk.flags = 0;
    // What was not read is told with this record.
    walk.begin = end;
    is_read
}

/// Emit the last record of the operation, and keep where the walk stands.
#[inline(never)]
fn finish(state: &mut ConnState, scratch: *mut Scratch, moved: &Moved) {
    // SAFETY: a per-CPU map value.
    let (walk, source) = unsafe { (&mut (*scratch).walk, &(*scratch).locals.source) };
    let is_opaque = source.kind == Kind::Opaque;
    if is_opaque {
        walk.flags = u64::from(data_flags::OPAQUE);
    }
    if walk.begin < walk.total {
        flush(state, scratch, 0);
    }
    let rest = walk.total - walk.at;
    if rest != 0 {
        // Vectors without end, or memory that could not be read.
        pass_over(walk, rest);
    }
    let number = if walk.mode == mode::HEADER { walk.have } else { walk.left };
    let packed = if walk.mode == mode::LOST { 0 } else { (walk.mode as u32) << MODE_SHIFT | number as u32 };
    let kept = if walk.mode == mode::HEADER { walk.word } else { walk.wanted };
    if moved.direction == direction::SEND {
        state.partial_len[1] = packed;
        state.partial[1] = kept;
    } else {
        state.partial_len[0] = packed;
        state.partial[0] = kept;
    }
    count_all(
        moved.slot,
        [
            (Counter::Operations, 1),
            (Counter::Requests, walk.all_requests),
            (Counter::Bytes, u64::from(moved.len)),
            (Counter::BytesOpaque, if is_opaque { u64::from(moved.len) } else { 0 }),
            (Counter::BytesCopied, walk.copied),
        ],
    );
}

/// The operation begins with the preface, or with a plausible frame behind which it ends or another plausible one begins.
/// Of random bytes one operation in 10^10 does; what other protocols begin with is in the tests of `agent_common::http2`.
/// `known`: the connection is HTTP/2, and some read the header of a frame apart.
#[inline(never)]
pub(crate) fn is_chain(scratch: *mut Scratch, len: u32, known: bool) -> bool {
    if len < HEADER || !header_at(scratch, 0) {
        return false;
    }
    // SAFETY: a per-CPU map value.
    let walk = unsafe { &mut (*scratch).walk };
    if classify_word(walk.word) == Start::Http2 {
        return true;
    }
    let first = FrameHeader::from_word(walk.word, walk.last as u8);
    if !first.is_plausible() {
        return false;
    }
    let total = first.total();
    if total == len || (known && len == HEADER) {
        return true;
    }
    if total + HEADER > len || !header_at(scratch, total) {
        return false;
    }
    FrameHeader::from_word(walk.word, walk.last as u8).is_plausible()
}

/// As [`is_chain`], for a connection of which nothing is known.
#[inline(always)]
pub(crate) fn begins(slot: u32, len: u32) -> bool {
    match SCRATCH.get_ptr_mut(slot) {
        Some(scratch) => is_chain(scratch, len, false),
        None => false,
    }
}

/// Read nine bytes of the operation, `offset` bytes in, as the header.
#[inline(never)]
fn header_at(scratch: *mut Scratch, offset: u32) -> bool {
    // SAFETY: a per-CPU map value.
    let (walk, source) = unsafe { (&mut (*scratch).walk, &(*scratch).locals.source) };
    walk.have = 0;
    if source.kind == Kind::Buffer {
        return read_header(scratch, HEADER as u64, source.base.wrapping_add(u64::from(offset)));
    }
    let mut skip = forget(&raw mut walk.left, u64::from(offset));
    for index in 0..CHAIN_VECTORS {
        if index >= source.count || source.kind != Kind::Vectors {
            return false;
        }
        let Some(vector) = user::<Vector>(source.base.wrapping_add(index * size_of::<Vector>() as u64)) else {
            return false;
        };
        if vector.len <= skip {
            skip = forget(&raw mut walk.left, skip - vector.len);
            continue;
        }
        let missing = HEADER as u64 - walk.have;
        let n = if vector.len - skip < missing { vector.len - skip } else { missing };
        if !read_header(scratch, n, vector.base.wrapping_add(skip)) {
            return false;
        }
        walk.have += n;
        if walk.have >= HEADER as u64 {
            walk.have = 0;
            return true;
        }
        skip = forget(&raw mut walk.left, 0);
    }
    false
}
