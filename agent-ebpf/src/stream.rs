//! The shared path of all sources: `(connection, direction, bytes)` to records.
//!
//! A source (socket hook, descriptor walk, TLS library) finds the connection's state and says where the bytes are; everything else, from classification to the budget, is here and only here.

use agent_common::classify::{Start, classify, classify_word, is_extension_method};
use agent_common::config::paused;
use agent_common::counters::Counter;
use agent_common::event::{Close, Data, Header, Open, data_flags, direction, kind, open_flags, protocol};
use agent_common::http2::may_begin;
use agent_common::limits::{
    BURST_THRESHOLD, CLASSIFY_TURNS, PREFIX_AFTER_BUDGET, RECORD_PAYLOAD_MAX, RECORDS_PER_OPERATION, TAIL,
    UNIX_PATH_MAX, WHOLE_AFTER_BUDGET,
};
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_task_btf, bpf_ktime_get_ns};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};

use crate::arch::{Kind, Source};
use crate::emit::{count, count_all, output};
use crate::kernel::{self, load};
use crate::maps::{CONFIG, ConnState, Locals, MUTED, OPEN_SCRATCH, OWN_ADDRESSES, SCRATCH, Scratch, forget, slot};
use crate::socket::Socket;
use crate::{copy, http2, socket, tls};

/// [`ConnState::verdict`] values.
pub(crate) mod verdict {
    /// Not recognised yet: looked at again at the next direction change.
    pub(crate) const UNDECIDED: u8 = 0;
    /// HTTP/1: followed.
    pub(crate) const HTTP1: u8 = 1;
    /// HTTP/2: followed.
    pub(crate) const HTTP2: u8 = 2;
    /// A socket that carries TLS: its handshake is reported, and who uses it is noted.
    pub(crate) const TLS: u8 = 3;
    /// The same, of a process or peer that is excluded: nothing is reported, and the TLS object above is left alone.
    pub(crate) const TLS_EXCLUDED: u8 = 4;
    /// Left alone for good.
    pub(crate) const SETTLED: u8 = 5;
    /// The agent's own: left alone, and its address is in `OWN_ADDRESSES`.
    pub(crate) const OWN: u8 = 6;
    /// A socket that carries TLS whose plaintext is found: left alone but for its end.
    pub(crate) const TLS_BOUND: u8 = 7;
}

/// [`ConnState::flags`] bits.
pub(crate) mod flag {
    /// The agent has the Open record.
    pub(crate) const OPENED: u8 = 1;
    /// Requests follow each other without waiting.
    pub(crate) const BURST: u8 = 2;
    /// The last operation began with a request-line.
    pub(crate) const REQUEST_START: u8 = 4;
    /// TLS socket: the header of a record was received alone, its body is next.
    pub(crate) const HEADER: u8 = 8;
    /// TLS socket: its ClientHello was found, or will not be.
    pub(crate) const HELLO: u8 = 16;
    /// TLS object: the agent knows that it yields bytes, whatever they are.
    pub(crate) const YIELDS: u8 = 32;
}

/// One operation that moved bytes.
#[derive(Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) direction: u8,
    pub(crate) len: u32,
    pub(crate) backend: u8,
    /// Buffers and counters to use.
    pub(crate) slot: u32,
}

impl Moved {
    /// An operation of a socket.
    #[inline(always)]
    pub(crate) fn by_socket(direction: u8, len: u32, backend: u8) -> Self {
        const _: () = assert!(slot::RECEIVE == direction::RECEIVE as u32 && slot::SEND == direction::SEND as u32);
        Self { direction, len, backend, slot: u32::from(direction) }
    }
}

/// No connection is to be met now.
#[inline(always)]
pub(crate) fn is_paused() -> bool {
    CONFIG.get(0).is_none_or(|config| config.paused != paused::NO)
}

/// Ends of the connection are of interest.
#[inline(always)]
pub(crate) fn is_reported(state: &ConnState) -> bool {
    matches!(state.verdict, verdict::HTTP1 | verdict::HTTP2 | verdict::TLS | verdict::TLS_BOUND)
}

/// Follow one operation of a connection, whose bytes are at `source`.
///
/// # Safety
/// `state` points to a map value.
#[inline(always)]
pub(crate) unsafe fn observe<S: Socket>(state: *mut ConnState, socket: S, source: Source, moved: &Moved) {
    let Some(scratch) = SCRATCH.get_ptr_mut(moved.slot) else { return };
    // SAFETY: map values, for as long as the program runs.
    let (state, kept) = unsafe { (&mut *state, &raw mut (*scratch).locals.source) };
    forget(kept, source);
    // SAFETY: as above.
    let source = unsafe { &*kept };
    if state.verdict == verdict::UNDECIDED {
        if !decide(state, socket, moved, source) {
            advance(state, socket, moved);
            return;
        }
    } else if state.verdict >= verdict::SETTLED {
        return;
    }
    if S::IS_SOCKET && state.verdict >= verdict::TLS {
        tls::carry(state, socket, moved, scratch);
        return;
    }
    if state.verdict == verdict::HTTP2 {
        http2::follow(state, socket, moved, scratch);
        return;
    }
    follow(state, socket, moved, scratch);
}

/// Move the position of a direction over bytes that are not reported; returns where they began.
#[inline(never)]
pub(crate) fn advance<S: Socket>(state: &mut ConnState, socket: S, moved: &Moved) -> u64 {
    let known = position(state, moved.direction);
    let mut start = known;
    if let Some(end) = socket.sequence_end(moved.direction) {
        let begin = end.wrapping_sub(moved.len);
        if known == 0 {
            // One 2^32 up, so that 0 keeps meaning "not met yet" whatever the initial sequence number.
            start = (1 << 32) | u64::from(begin);
        } else {
            let ahead = begin.wrapping_sub(known as u32) as i32;
            // Reading the peer's FIN together with data takes one sequence number more: no byte is missing.
            let fin = moved.direction == direction::RECEIVE && ahead == 1;
            if ahead > 0 && !fin {
                // Bytes that no hook saw (spliced away): the jump tells the agent.
                start = known + ahead as u64;
            }
        }
    } else if known == 0 {
        start = 1 << 32;
    }
    set_position(state, moved.direction, start + u64::from(moved.len));
    start
}

#[inline(always)]
pub(crate) fn position(state: &ConnState, direction: u8) -> u64 {
    if direction == direction::SEND { state.position[1] } else { state.position[0] }
}

#[inline(always)]
fn set_position(state: &mut ConnState, direction: u8, position: u64) {
    if direction == direction::SEND { state.position[1] = position } else { state.position[0] = position }
}

/// Look at the first bytes of a direction. True: the operation is to be reported.
#[inline(never)]
fn decide<S: Socket>(state: &mut ConnState, socket: S, moved: &Moved, source: &Source) -> bool {
    let turned = state.last != moved.direction + 1;
    let index = usize::from(moved.direction == direction::SEND);
    let pending = state.partial_len[index];
    if !turned && pending == 0 {
        return false;
    }
    if turned && state.last != 0 {
        state.turns = state.turns.saturating_add(1);
    }
    state.last = moved.direction + 1;
    if kernel::AGENT_TGID.load() == (bpf_get_current_pid_tgid() >> 32) as u32 {
        own(state, socket, moved.slot);
        return false;
    }
    let Some((word, len)) = copy::first_word(source, moved.len) else {
        // Nothing to judge by: neither this nor that.
        state.partial_len[index] = 0;
        not_recognised(state, socket, moved);
        return false;
    };
    let (word, len) = if pending == 0 || pending >= 8 {
        (word, len)
    } else {
        (state.partial[index] | word << (8 * pending), if len + pending > 8 { 8 } else { len + pending })
    };
    let mut start = if len >= 8 { classify_word(word) } else { classify(word, len) };
    if let Start::Other = start
        && pending == 0
        && source.kind == Kind::Buffer
        && moved.len >= 16
        && let Some(first) = copy::user::<[u8; 16]>(source.base)
        && is_extension_method(&first)
    {
        start = Start::Request { bodyless: false };
    }
    state.partial_len[index] = 0;
    if start == Start::Other && pending == 0 && len >= 8 && may_begin(word) && http2::begins(moved.slot, moved.len) {
        start = Start::Http2;
    }
    match start {
        Start::Request { .. } | Start::Response => {
            if is_excluded(socket, state, moved.slot) {
                return false;
            }
            state.verdict = verdict::HTTP1;
            // A message begins, also when its first bytes came in pieces before: it has a budget.
            state.last = 0;
            count(moved.slot, Counter::ConnectionsHttp1, 1);
            true
        }
        Start::Partial => {
            state.partial[index] = word;
            state.partial_len[index] = len;
            !is_excluded(socket, state, moved.slot)
        }
        Start::Tls if S::IS_SOCKET => {
            let excluded = is_excluded(socket, state, moved.slot);
            count(moved.slot, Counter::ConnectionsTls, 1);
            tls::begin(state, socket, excluded);
            true
        }
        Start::Http2 => {
            if is_excluded(socket, state, moved.slot) {
                return false;
            }
            http2::begin(state, moved.slot, index == 1, pending);
            true
        }
        Start::Other | Start::Tls => {
            not_recognised(state, socket, moved);
            false
        }
    }
}

/// Not recognised this time. A connection met in mid-stream, or behind a PROXY or CONNECT line, gets more looks.
#[inline(always)]
fn not_recognised<S: Socket>(state: &mut ConnState, socket: S, moved: &Moved) {
    if !S::IS_SOCKET && state.flags & flag::YIELDS == 0 {
        state.flags |= flag::YIELDS;
        open(state, socket, moved, protocol::OTHER, now());
    }
    if state.turns >= CLASSIFY_TURNS {
        state.verdict = verdict::SETTLED;
        count(moved.slot, Counter::ConnectionsOther, 1);
    }
}

/// A socket of the agent.
#[inline(never)]
fn own<S: Socket>(state: &mut ConnState, socket: S, slot: u32) {
    state.verdict = verdict::OWN;
    count(slot, Counter::ConnectionsOwn, 1);
    if let Some(scratch) = OPEN_SCRATCH.get_ptr_mut(slot) {
        // SAFETY: a per-CPU map value.
        unsafe {
            socket.describe(&raw mut (*scratch).open);
            let key = socket::address_key(&(*scratch).open.local, (*scratch).open.local_port);
            if (*scratch).open.local_port != 0 {
                // Kept to delete the entry by: when the socket closes its port is already given back.
                state.position[0] = key;
                // Full maps evict; without the entry a span of the exporter's peer is reported, no more.
                _ = OWN_ADDRESSES.insert(key, 1_u8, 0);
            }
        }
    }
}

/// The far end is the agent, or the process is excluded by the agent's filters: leave the connection alone.
#[inline(never)]
pub(crate) fn is_excluded<S: Socket>(socket: S, state: &mut ConnState, slot: u32) -> bool {
    let mut excluded = false;
    if let Some(scratch) = OPEN_SCRATCH.get_ptr_mut(slot) {
        // SAFETY: a per-CPU map value.
        unsafe {
            socket.describe(&raw mut (*scratch).open);
            let key = socket::address_key(&(*scratch).open.remote, (*scratch).open.remote_port);
            excluded = OWN_ADDRESSES.get_ptr(&key).is_some();
        }
    }
    if !excluded && let Some(config) = CONFIG.get(0) {
        let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        excluded = config.paused != paused::NO || (config.filters != 0 && MUTED.get_ptr(&tgid).is_some());
    }
    if excluded {
        state.verdict = verdict::SETTLED;
    }
    excluded
}

#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Report one operation of an HTTP/1 connection.
#[inline(always)]
fn follow<S: Socket>(state: &mut ConnState, socket: S, moved: &Moved, scratch: *mut Scratch) {
    let now = now();
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if state.flags & flag::OPENED == 0 || state.tgid != tgid {
        open(state, socket, moved, protocol::HTTP1, now);
    }
    let start = advance(state, socket, moved);
    let turned = state.last != moved.direction + 1;
    state.last = moved.direction + 1;
    spend(state, scratch, moved, turned);
    begin_data(state, moved, scratch, now, pid_tgid);
    // SAFETY: a per-CPU map value.
    let locals = unsafe { &mut (*scratch).locals };
    let mut more = record(state, scratch, moved, start, true);
    for _ in 1..RECORDS_PER_OPERATION {
        if !more {
            break;
        }
        more = record(state, scratch, moved, start, false);
    }
    note_burst(state, turned, locals.begins);
    tally(moved, locals);
    if locals.begins == begins::PREFACE {
        // After `Upgrade: h2c`.
        http2::begin(state, moved.slot, false, 0);
    }
}

/// What all records of an operation have in common.
#[inline(always)]
pub(crate) fn begin_data(state: &ConnState, moved: &Moved, scratch: *mut Scratch, now: u64, pid_tgid: u64) {
    // SAFETY: a per-CPU map value.
    let (data, locals) = unsafe { (&mut (*scratch).data, &mut (*scratch).locals) };
    data.header = Header {
        kind: kind::DATA,
        direction: moved.direction,
        flags: 0,
        backend: moved.backend,
        seq: 0,
        conn: state.id,
        time_ns: now,
        pid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
    };
    locals.done = 0;
    locals.copied = 0;
}

/// Report the first `wanted` bytes of an operation of a TLS socket, as one record.
#[inline(never)]
pub(crate) fn report_handshake<S: Socket>(
    state: &mut ConnState,
    socket: S,
    moved: &Moved,
    scratch: *mut Scratch,
    wanted: u32,
) {
    let now = now();
    let start = advance(state, socket, moved);
    // SAFETY: a per-CPU map value.
    unsafe { (*scratch).locals.wanted = u64::from(wanted) };
    begin_data(state, moved, scratch, now, bpf_get_current_pid_tgid());
    record(state, scratch, moved, start, true);
}

/// Decide how many bytes of the operation to copy, and charge the budget.
#[inline(never)]
fn spend(state: &mut ConnState, scratch: *mut Scratch, moved: &Moved, turned: bool) {
    let Some(config) = CONFIG.get(0) else { return };
    // SAFETY: a per-CPU map value.
    let locals = unsafe { &mut (*scratch).locals };
    locals.begins = begins::NEITHER;
    let renewed = if state.flags & flag::BURST != 0 { config.budget_burst } else { config.budget };
    if turned {
        state.budget = renewed;
    }
    if state.budget < moved.len
        && let Some((word, 8)) = copy::first_word(&locals.source, moved.len)
    {
        // The budget would cut this operation: is it the start of a message, which has a budget of its own?
        let start = classify_word(word);
        locals.begins = begins::of(start);
        if locals.begins != begins::NEITHER {
            state.budget = renewed;
        }
        if matches!(start, Start::Request { bodyless: true }) && moved.len > BURST_THRESHOLD {
            state.flags |= flag::BURST;
            state.budget = config.budget_burst;
        }
    }
    let mut wanted = if state.budget < moved.len { state.budget } else { moved.len };
    state.budget -= wanted;
    if wanted < moved.len && moved.len <= WHOLE_AFTER_BUDGET {
        wanted = moved.len;
    } else if wanted < PREFIX_AFTER_BUDGET {
        wanted = if moved.len < PREFIX_AFTER_BUDGET { moved.len } else { PREFIX_AFTER_BUDGET };
    }
    locals.wanted = u64::from(wanted);
}

/// Build and emit the first or a further record of the operation. True: another follows. Only a buffer has further ones:
/// the rest of a gathered operation is left as a gap.
#[inline(never)]
fn record(state: &mut ConnState, scratch: *mut Scratch, moved: &Moved, start: u64, first: bool) -> bool {
    // SAFETY: a per-CPU map value.
    let (data, locals) = unsafe { (&mut (*scratch).data, &mut (*scratch).locals) };
    let (done, wanted) = (locals.done as u32, locals.wanted as u32);
    let part = if wanted > RECORD_PAYLOAD_MAX as u32 { RECORD_PAYLOAD_MAX as u32 } else { wanted };
    let rest = moved.len.wrapping_sub(done);
    let mut flags = 0;
    let (mut head, mut tail) = (0, 0);
    let mut more = false;
    if locals.source.kind == Kind::Opaque {
        flags = data_flags::OPAQUE;
    } else {
        head = if first {
            copy::head(scratch, &locals.source, part)
        } else {
            copy::further(scratch, locals.source.base.wrapping_add(u64::from(done)), part)
        };
        more = head == part && wanted > part && locals.source.kind == Kind::Buffer;
        if head == 0 {
            flags = data_flags::UNREADABLE;
            count(moved.slot, Counter::Unreadable, 1);
        } else if more {
            flags = data_flags::CONTINUES;
        } else {
            tail = copy::tail(scratch, &locals.source, head, rest, done);
        }
        if first && head >= 8 {
            // SAFETY: the payload of a per-CPU map value begins at a multiple of eight.
            locals.begins = begins::of(classify_word(unsafe { (&raw const (*scratch).payload).cast::<u64>().read() }));
        }
    }
    data.header.flags = flags;
    data.position = start + u64::from(done);
    data.len = if more { part } else { rest };
    data.head = head as u16;
    data.tail = tail as u16;
    let payload = head + tail;
    locals.copied += u64::from(payload);
    locals.done = u64::from(done + part);
    locals.wanted = u64::from(wanted - part);
    let payload = forget(&raw mut locals.at, u64::from(payload)) as u32;
    let seq = if moved.direction == direction::SEND { &mut state.seq[1] } else { &mut state.seq[0] };
    if !emit_data(seq, scratch, payload, moved.slot) && first && locals.begins == begins::REQUEST {
        count(moved.slot, Counter::RequestsLost, 1);
    }
    more
}

/// `Locals::begins`: what the operation begins with, as a number.
mod begins {
    use agent_common::classify::Start;

    pub(super) const NEITHER: u64 = 0;
    pub(super) const REQUEST: u64 = 1;
    pub(super) const RESPONSE: u64 = 2;
    pub(super) const PREFACE: u64 = 3;

    #[inline(always)]
    pub(super) fn of(start: Start) -> u64 {
        match start {
            Start::Request { .. } => REQUEST,
            Start::Response => RESPONSE,
            Start::Http2 => PREFACE,
            _ => NEITHER,
        }
    }
}

/// Two operations in the same direction that begin with a request-line: the peer does not wait for responses.
#[inline(always)]
fn note_burst(state: &mut ConnState, turned: bool, begins: u64) {
    if begins == begins::REQUEST {
        if !turned && state.flags & flag::REQUEST_START != 0 {
            state.flags |= flag::BURST;
        }
        state.flags |= flag::REQUEST_START;
    } else if turned {
        state.flags &= !flag::REQUEST_START;
    }
}

/// Count the operation: one look-up for all.
#[inline(always)]
fn tally(moved: &Moved, locals: &Locals) {
    let is_opaque = locals.source.kind == Kind::Opaque;
    count_all(
        moved.slot,
        [
            (Counter::Operations, 1),
            (Counter::Requests, u64::from(locals.begins == begins::REQUEST)),
            (Counter::Bytes, u64::from(moved.len)),
            (Counter::BytesOpaque, if is_opaque { u64::from(moved.len) } else { 0 }),
            (Counter::BytesCopied, locals.copied),
        ],
    );
}

#[inline(always)]
pub(crate) fn emit_data(seq: &mut u32, scratch: *mut Scratch, payload: u32, slot: u32) -> bool {
    const LIMIT: u32 = (RECORD_PAYLOAD_MAX + TAIL) as u32;
    // SAFETY: a per-CPU map value longer than any record.
    unsafe {
        (*scratch).data.header.seq = *seq;
        *seq = seq.wrapping_add(1);
        let payload = copy::clamp(payload, LIMIT);
        output(slot, (&raw const (*scratch).data).cast(), size_of::<Data>() as u64 + u64::from(payload))
    }
}

/// Tell the agent about the connection and its process.
#[inline(never)]
pub(crate) fn open<S: Socket>(state: &mut ConnState, socket: S, moved: &Moved, protocol: u8, now: u64) {
    let Some(scratch) = OPEN_SCRATCH.get_ptr_mut(moved.slot) else { return };
    if state.id == 0 {
        state.id = socket.id(now);
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: a per-CPU map value.
    unsafe {
        let record = &mut (*scratch).open;
        record.header = Header {
            kind: kind::OPEN,
            direction: moved.direction,
            flags: if state.flags & flag::OPENED == 0 && socket.is_older(moved.direction, moved.len) {
                open_flags::JOINED
            } else {
                0
            },
            backend: moved.backend,
            seq: 0,
            conn: state.id,
            time_ns: now,
            pid: (pid_tgid >> 32) as u32,
            tid: pid_tgid as u32,
        };
        socket.describe(record);
        record.protocol = protocol;
        record.peer_named = 0;
        (record.socket, record.association) = socket.below();
        record.padding = [0; 7];
        record.uid = bpf_get_current_uid_gid() as u32;
        record.process_start_ns = process_start();
        record.cgroup = bpf_get_current_cgroup_id();
        record.comm = bpf_get_current_comm().unwrap_or_default();
        let name = copy::clamp(socket.unix_name(scratch), UNIX_PATH_MAX as u32);
        if output(moved.slot, scratch.cast::<u8>().cast_const(), size_of::<Open>() as u64 + u64::from(name))
            && protocol != protocol::OTHER
        {
            state.flags |= flag::OPENED;
            state.tgid = (pid_tgid >> 32) as u32;
        }
    }
}

/// When the current process (its first thread) started, nanoseconds of boot time.
#[inline(always)]
pub(crate) fn process_start() -> u64 {
    // SAFETY: the helper returns a typed pointer; `group_leader` is one of the same type.
    unsafe {
        let task = bpf_get_current_task_btf().cast::<u8>().cast_const();
        let leader: *const u8 = load(task, &kernel::TASK_GROUP_LEADER);
        if leader.is_null() { 0 } else { load(leader, &kernel::TASK_START_BOOTTIME) }
    }
}

/// Tell the agent that one or both directions of a followed connection ended.
#[inline(always)]
pub(crate) fn close(state: &ConnState, flags: u8, backend: u8, process: bool) {
    if state.flags & flag::OPENED == 0 {
        return;
    }
    let pid_tgid = if process { bpf_get_current_pid_tgid() } else { 0 };
    let record = Close {
        header: Header {
            kind: kind::CLOSE,
            direction: 0,
            flags,
            backend,
            seq: 0,
            conn: state.id,
            time_ns: now(),
            pid: (pid_tgid >> 32) as u32,
            tid: pid_tgid as u32,
        },
    };
    // SAFETY: a record on our stack, as long as said.
    unsafe {
        output(slot::EVENT, (&raw const record).cast(), size_of::<Close>() as u64);
    }
}
