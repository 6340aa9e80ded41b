//! Which socket carries which TLS object.
//!
//! Exact where the object itself tells: by the ClientHello.random that it keeps, or by its file descriptor. Else by what
//! one thread does: a socket used inside a call on the object, or operations that follow each other, more than once.
//! Wrong is worse than unknown: evidence that could speak for two objects speaks for none.

use core::arch::asm;
use core::mem::zeroed;

use agent_common::classify::{is_tls_application_data, is_tls_expansion, is_tls_record};
use agent_common::config::paused;
use agent_common::counters::Counter;
use agent_common::event::{Open, association, direction, protocol};
use agent_common::limits::{HANDSHAKE_BUDGET, TLS_SLOTS, VOTES};
use agent_common::tls::{Cookie, Layout, UNKNOWN};
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;

use crate::arch::{Kind, Source};
use crate::copy::{self, user};
use crate::emit::count;
use crate::kernel::{self, probe};
use crate::maps::{
    CONFIG, ConnState, HELLOS, Hello, HelloKey, LIBRARIES, MUTED, OpenScratch, SCRATCH, Scratch, StreamKey, THREADS,
    TLS_SOCKETS, TLS_STREAMS, Thread, TlsSocket, TlsState, WALKED_SOCKETS, WalkedKey, forget, slot,
};
use crate::socket::{Socket, of_descriptor};
use crate::stream::{self, Moved, flag, verdict};

/// In place of a socket's identity: one whose process or peer is excluded.
const EXCLUDED: u64 = u64::MAX;
/// [`Thread::written`]: several objects wrote, so that the next send speaks for none.
const SEVERAL: u64 = 1;
/// Marks identities of TLS objects, which are no socket cookies.
const STREAM_ID: u64 = 1 << 63;

/// `ContentType handshake` (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
/// `HandshakeType client_hello` (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: u32 = 5;
/// Bytes of a ClientHello before its random: type, length, legacy version.
const BEFORE_RANDOM: u32 = 6;

/// The plaintext side of a TLS connection.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Object(
    /// A map value.
    *const TlsState,
);

impl Socket for Object {
    const IS_SOCKET: bool = false;

    #[inline(always)]
    fn id(self, now: u64) -> u64 {
        // SAFETY: a map value.
        let address = unsafe { (*self.0).address };
        (now ^ address.rotate_left(17)) | STREAM_ID
    }

    #[inline(always)]
    fn sequence_end(self, _direction: u8) -> Option<u32> {
        None
    }

    /// Unless the whole connection was watched, bytes may have moved before.
    #[inline(always)]
    fn is_older(self, _direction: u8, _len: u32) -> bool {
        // SAFETY: a map value.
        let state = unsafe { &*self.0 };
        let socket = if state.socket == 0 { state.candidate } else { state.socket };
        // SAFETY: read only; a value that changes meanwhile is a newer one.
        match unsafe { TLS_SOCKETS.get(&socket) } {
            Some(found) => found.hello_ns < state.since_ns,
            None => true,
        }
    }

    /// The socket below has the addresses.
    #[inline(always)]
    fn describe(self, open: *mut Open) {
        // SAFETY: a per-CPU map value.
        unsafe {
            (*open).family = 0;
            (*open).local_port = 0;
            (*open).remote_port = 0;
            (*open).netns = 0;
            (&raw mut (*open).local).cast::<[u64; 2]>().write([0; 2]);
            (&raw mut (*open).remote).cast::<[u64; 2]>().write([0; 2]);
        }
    }

    #[inline(always)]
    fn unix_name(self, _scratch: *mut OpenScratch) -> u32 {
        0
    }

    #[inline(always)]
    fn below(self) -> (u64, u8) {
        // SAFETY: a map value.
        let state = unsafe { &*self.0 };
        let socket = if state.association == association::NONE { state.candidate } else { state.socket };
        (socket, state.association)
    }
}

/// The state of a socket whose first bytes are a TLS record.
#[inline(always)]
pub(crate) fn begin<S: Socket>(state: &mut ConnState, socket: S, excluded: bool) {
    state.verdict = if excluded { verdict::TLS_EXCLUDED } else { verdict::TLS };
    // From now on: bytes of the handshake that are still wanted, by direction.
    state.partial_len = [HANDSHAKE_BUDGET; 2];
    if state.id == 0 {
        state.id = socket.id(stream::now());
    }
    let known = TlsSocket { hello_ns: 0, bound: 0 };
    // Full maps evict; without the entry the connection counts as met late.
    _ = TLS_SOCKETS.insert(identity(state), known, BPF_NOEXIST.into());
}

/// What the objects above know the socket by.
#[inline(always)]
fn identity(state: &ConnState) -> u64 {
    if state.verdict == verdict::TLS_EXCLUDED { EXCLUDED } else { state.id }
}

/// One operation of a socket that carries TLS.
#[inline(never)]
pub(crate) fn carry<S: Socket>(state: &mut ConnState, socket: S, moved: &Moved, scratch: *mut Scratch) {
    // SAFETY: a per-CPU map value.
    let source = unsafe { &(*scratch).locals.source };
    let word = match copy::first_word(source, moved.len) {
        Some((word, len)) if len >= RECORD_HEADER => word,
        _ => 0,
    };
    let bound = note(identity(state), moved, word);
    if !bound.is_null() {
        // Called here and not there: kernels up to 6.1 have no stack for one more frame.
        announce(bound, moved);
    }
    if state.verdict == verdict::TLS && state.flags & flag::OPENED == 0 {
        // Also when the handshake is long over: the plaintext above has no addresses of its own.
        stream::open(state, socket, moved, protocol::TLS, stream::now());
    }
    let index = usize::from(moved.direction == direction::SEND);
    let left = if index == 1 { state.partial_len[1] } else { state.partial_len[0] };
    if left == 0 {
        // SAFETY: read only.
        if unsafe { TLS_SOCKETS.get(&state.id) }.is_some_and(|known| known.bound != 0) && state.verdict == verdict::TLS
        {
            state.verdict = verdict::TLS_BOUND;
        }
        return;
    }
    // From here on all is encrypted, which the header of the record proves; nothing behind it is of use.
    let is_over = is_tls_application_data(word);
    if !is_over && state.flags & flag::HELLO == 0 {
        hello(state, moved, source, word);
    }
    let most = if is_over { RECORD_HEADER } else { left };
    let wanted = if moved.len < most { moved.len } else { most };
    set_left(state, index, if is_over { 0 } else { left - wanted });
    if state.verdict == verdict::TLS {
        stream::report_handshake(state, socket, moved, scratch, wanted);
    }
}

#[inline(always)]
fn set_left(state: &mut ConnState, index: usize, left: u32) {
    if index == 1 { state.partial_len[1] = left } else { state.partial_len[0] = left }
}

/// Look for the ClientHello. A library may read the record's header apart from its body.
#[inline(never)]
fn hello(state: &mut ConnState, moved: &Moved, source: &Source, word: u64) {
    let behind_header = state.flags & flag::HEADER != 0;
    if !behind_header && moved.len == RECORD_HEADER && word as u8 == HANDSHAKE {
        state.flags |= flag::HEADER;
        return;
    }
    state.flags |= flag::HELLO;
    let (kind, at) = if behind_header {
        (word as u8, BEFORE_RANDOM)
    } else if word as u8 == HANDSHAKE {
        ((word >> (8 * RECORD_HEADER)) as u8, RECORD_HEADER + BEFORE_RANDOM)
    } else {
        return;
    };
    if kind != CLIENT_HELLO || moved.len < at + 32 {
        return;
    }
    let address = if source.kind == Kind::Vectors {
        match user::<crate::arch::Vector>(source.base) {
            Some(vector) if vector.len >= u64::from(at) + 32 => vector.base,
            _ => return,
        }
    } else {
        source.base
    };
    if let Some(random) = user::<[u64; 2]>(address.wrapping_add(u64::from(at))) {
        register(&random, identity(state), moved.direction);
    }
}

/// Make a ClientHello known to the objects of this process.
#[inline(always)]
fn register(random: &[u64; 2], socket: u64, direction: u8) {
    let key = hello_key(random);
    let is_client = direction == direction::SEND;
    let fresh = if is_client { Hello { client: socket, server: 0 } } else { Hello { client: 0, server: socket } };
    // Where both ends are in one process they may come at once: who comes second adds to the other's.
    if HELLOS.insert(key, fresh, BPF_NOEXIST.into()).is_err()
        && let Some(found) = HELLOS.get_ptr_mut(key)
    {
        // SAFETY: a map value; each end writes its own half.
        let found = unsafe { &mut *found };
        if is_client {
            found.client = socket;
        } else {
            found.server = socket;
        }
    }
    let seen = TlsSocket { hello_ns: stream::now(), bound: 0 };
    // As in `begin`.
    _ = TLS_SOCKETS.insert(socket, seen, 0);
}

#[inline(always)]
fn hello_key(random: &[u64; 2]) -> HelloKey {
    HelloKey { random: *random, tgid: bpf_get_current_pid_tgid() >> 32 }
}

/// The process is excluded by the agent's filters: its calls cost this look-up and no more.
#[inline(always)]
pub(crate) fn is_muted() -> bool {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    CONFIG.get(0).is_some_and(|config| config.filters != 0) && MUTED.get_ptr(&tgid).is_some()
}

/// What the current thread is in the middle of; made when there is nothing yet.
#[inline(always)]
pub(crate) fn thread() -> Option<&'static mut Thread> {
    if let Some(known) = known_thread() {
        return Some(known);
    }
    // SAFETY: all zero is a thread that did nothing.
    let fresh: Thread = unsafe { zeroed() };
    // Full maps evict; if not even that, there is no evidence.
    _ = THREADS.insert(bpf_get_current_pid_tgid(), fresh, BPF_NOEXIST.into());
    known_thread()
}

/// The same where there is something already.
#[inline(always)]
pub(crate) fn known_thread() -> Option<&'static mut Thread> {
    // SAFETY: a map value that only this thread uses.
    THREADS.get_ptr_mut(bpf_get_current_pid_tgid()).map(|found| unsafe { &mut *found })
}

/// A thread used a TLS socket. Returns the object that is bound to it now, if that is news; else null.
#[inline(never)]
fn note(socket: u64, moved: &Moved, word: u64) -> *mut TlsState {
    let none = core::ptr::null_mut();
    let Some(thread) = thread() else { return none };
    if thread.call.object != 0 {
        thread.nested = socket;
    }
    if moved.direction == direction::RECEIVE {
        thread.received = socket;
        thread.received_by = 0;
        return none;
    }
    if thread.call.object != 0 {
        return none;
    }
    let (object, plain) = (thread.written, thread.written_len);
    thread.written = 0;
    if object <= SEVERAL || !is_record_of(word, plain) {
        return none;
    }
    let key = StreamKey { object, tgid: bpf_get_current_pid_tgid() >> 32 };
    let Some(found) = TLS_STREAMS.get_ptr_mut(&key) else { return none };
    // SAFETY: a map value.
    if vote(unsafe { &mut *found }, socket, moved.slot) { found } else { none }
}

/// The binding of a stream that the agent knows already changed: tell it now, its next bytes may be long in coming.
#[inline(never)]
fn announce(found: *mut TlsState, moved: &Moved) {
    // SAFETY: a map value, not null.
    let state = unsafe { &mut *found };
    let object = Object(found);
    let said = Moved { direction: moved.direction, len: 0, backend: state.backend, slot: moved.slot };
    let protocol = match state.stream.verdict {
        verdict::HTTP1 => protocol::HTTP1,
        verdict::HTTP2 => protocol::HTTP2,
        _ => return,
    };
    if state.socket != EXCLUDED {
        stream::open(&mut state.stream, object, &said, protocol, stream::now());
    }
}

/// A socket might be the one below an object. True: it is, and was not known to be.
#[inline(always)]
fn vote(state: &mut TlsState, socket: u64, slot: u32) -> bool {
    if state.association != association::NONE {
        if state.association != association::LEARNED || state.socket == socket {
            return false;
        }
        // The object's address is used again, or the binding was wrong: either way what comes now is another stream.
        count(slot, Counter::Unbound, 1);
        restart(state);
    }
    if state.candidate != socket {
        if state.candidate != 0 {
            // An address that several objects had before they moved on (rustls' are values, on the stack at first).
            restart(state);
        }
        state.candidate = socket;
        state.votes = 0;
    }
    state.votes = state.votes.saturating_add(1);
    if state.votes < VOTES {
        return false;
    }
    bind(state, socket, association::LEARNED, slot);
    true
}

/// A socket that carries TLS is gone.
#[inline(always)]
pub(crate) fn ended(state: &ConnState) {
    // Not there is as good.
    _ = TLS_SOCKETS.remove(&state.id);
}

/// What comes next is not the continuation of what came.
#[inline(always)]
fn restart(state: &mut TlsState) {
    // SAFETY: all zero is a new connection.
    state.stream = unsafe { zeroed() };
    state.socket = 0;
    state.candidate = 0;
    state.votes = 0;
    state.association = association::NONE;
}

/// The socket below is known.
#[inline(always)]
fn bind(state: &mut TlsState, socket: u64, how: u8, slot: u32) {
    if state.socket == socket && state.association != association::NONE {
        return;
    }
    if state.association != association::NONE {
        restart(state);
    }
    state.socket = socket;
    state.association = how;
    if matches!(how, association::RANDOM | association::DESCRIPTOR)
        && let Some(known) = TLS_SOCKETS.get_ptr_mut(&socket)
    {
        // SAFETY: a map value.
        unsafe { (*known).bound = 1 };
    }
    state.stream.flags &= !flag::OPENED;
    let counter = match how {
        association::RANDOM => Counter::BoundRandom,
        association::DESCRIPTOR => Counter::BoundDescriptor,
        association::NESTED => Counter::BoundNested,
        _ => Counter::BoundLearned,
    };
    count(slot, counter, 1);
}

/// A call on a TLS object moved bytes.
#[derive(Clone, Copy)]
pub(crate) struct Yield {
    pub(crate) cookie: Cookie,
    pub(crate) object: u64,
    pub(crate) len: u64,
    /// Evidence of the thread is worth something: the library runs on it from socket to plaintext.
    pub(crate) threaded: bool,
    /// The socket that the object names; 0: it does not.
    pub(crate) named: u64,
    /// Where the bytes are, if they are in one piece.
    pub(crate) base: u64,
}

/// Report the bytes that a call moved.
#[inline(always)]
pub(crate) fn report(moved: &Yield, source: Source) {
    if moved.object == 0 || moved.len == 0 {
        return;
    }
    if moved.len > i32::MAX as u64 {
        count(slot::EVENT, Counter::TlsHuge, 1);
        return;
    }
    if CONFIG.get(0).is_none_or(|config| config.paused == paused::STOP) {
        return;
    }
    let Some((slot, scratch)) = claim() else {
        count(slot::EVENT, Counter::TlsBusy, 1);
        return;
    };
    // SAFETY: a field of a map value that nobody else has.
    let kept = unsafe { &mut (*scratch).locals.yielded };
    *kept = *moved;
    yielded(kept, source, slot);
    release(slot);
}

/// State of an object that is new; null if there is no room. Apart to keep the stack low, as for sockets.
#[inline(never)]
fn meet(key: &StreamKey, backend: u8, since_ns: u64, slot: u32) -> *mut TlsState {
    // SAFETY: all zero is a new object.
    let mut fresh: TlsState = unsafe { zeroed() };
    fresh.backend = backend;
    fresh.since_ns = since_ns;
    fresh.address = key.object;
    if TLS_STREAMS.insert(key, &fresh, 0).is_err() {
        count(slot, Counter::StateFull, 1);
        return core::ptr::null_mut();
    }
    count(slot, Counter::TlsStreams, 1);
    TLS_STREAMS.get_ptr_mut(key).unwrap_or(core::ptr::null_mut())
}

#[inline(always)]
fn yielded(moved: &Yield, source: Source, slot: u32) {
    count(slot, Counter::TlsCalls, 1);
    let key = StreamKey { object: moved.object, tgid: bpf_get_current_pid_tgid() >> 32 };
    let Some(attached) = LIBRARIES.get(u32::from(moved.cookie.layout)) else { return };
    let found = match TLS_STREAMS.get_ptr_mut(&key) {
        Some(found) => found,
        None => {
            if stream::is_paused() {
                return;
            }
            let found = meet(&key, moved.cookie.backend, attached.since_ns, slot);
            if found.is_null() {
                return;
            }
            found
        }
    };
    // SAFETY: a map value.
    let state = unsafe { &mut *found };
    identify(state, moved, &attached.layout, slot);
    if state.socket == EXCLUDED {
        state.stream.verdict = verdict::SETTLED;
    }
    if state.stream.verdict >= verdict::SETTLED {
        return;
    }
    let object = Object(found);
    let said = Moved { direction: moved.cookie.direction, len: moved.len as u32, backend: moved.cookie.backend, slot };
    // SAFETY: a field of a map value.
    unsafe { stream::observe(&raw mut (*found).stream, object, source, &said) }
}

/// Find the socket below, by the strongest means there is.
#[inline(never)]
fn identify(state: &mut TlsState, moved: &Yield, layout: &Layout, slot: u32) {
    if moved.named != 0 {
        bind(state, moved.named, association::DESCRIPTOR, slot);
    }
    if matches!(state.association, association::NESTED | association::LEARNED) && !is_open(state) {
        // Its connection is gone: another object has its address.
        restart(state);
    }
    if let Some(random) = random(moved.object, layout)
        && random[0] != 0
    {
        let is_news = state.random != random[0];
        if is_news || state.association != association::RANDOM {
            // SAFETY: read only; its halves are written once.
            let hello = unsafe { HELLOS.get(hello_key(&random)) };
            if is_news {
                // Memory that was freed and used again; unless its socket lives on, where a new handshake within the old one
                // (TLS 1.2) had a hello that nobody can see.
                if state.random != 0 && (hello.is_some() || !is_open(state)) {
                    restart(state);
                }
                state.random = random[0];
            }
            if state.association != association::RANDOM
                && let Some(hello) = hello
            {
                let socket = side(hello, moved.object, layout);
                if socket != 0 {
                    bind(state, socket, association::RANDOM, slot);
                }
            }
        }
    }
    if moved.threaded {
        evidence(state, moved, slot);
    }
}

/// The first half of the ClientHello.random that the object keeps.
#[inline(always)]
fn random(object: u64, layout: &Layout) -> Option<[u64; 2]> {
    if layout.random == UNKNOWN {
        return None;
    }
    let base = if layout.random_base == UNKNOWN {
        object
    } else {
        user::<u64>(object.wrapping_add(u64::from(layout.random_base)))?
    };
    user::<[u64; 2]>(base.wrapping_add(u64::from(layout.random)))
}

/// The object is bound to a socket that is not gone.
#[inline(always)]
fn is_open(state: &TlsState) -> bool {
    // SAFETY: only asked whether it is there.
    state.association != association::NONE && unsafe { TLS_SOCKETS.get(&state.socket) }.is_some()
}

/// Which end of the connection the object is; 0: it cannot be told.
#[inline(always)]
fn side(hello: &Hello, object: u64, layout: &Layout) -> u64 {
    if layout.server != UNKNOWN {
        let Some(byte) = user::<u8>(object.wrapping_add(u64::from(layout.server))) else { return 0 };
        return if byte & layout.server_mask != 0 { hello.server } else { hello.client };
    }
    if hello.client == 0 {
        hello.server
    } else if hello.server == 0 {
        hello.client
    } else {
        0
    }
}

/// What the thread did around the call.
#[inline(always)]
fn evidence(state: &mut TlsState, moved: &Yield, slot: u32) {
    let Some(thread) = thread() else { return };
    let nested = thread.nested;
    if thread.call.object == 0 {
        // Else the call goes on above, and the socket is below that object, too.
        thread.nested = 0;
    }
    let exact = state.association == association::RANDOM || state.association == association::DESCRIPTOR;
    if nested != 0 && !exact {
        bind(state, nested, association::NESTED, slot);
    }
    let wants = state.association == association::NONE || state.association == association::LEARNED;
    if moved.cookie.direction == direction::RECEIVE {
        if thread.received_by == 0 {
            thread.received_by = moved.object;
            if wants && thread.received != 0 {
                vote(state, thread.received, slot);
            }
        }
    } else if thread.written == 0 {
        if wants {
            thread.written = moved.object;
            thread.written_len = moved.len;
        }
    } else if thread.written != moved.object {
        let (above, plain) = (thread.written, thread.written_len);
        thread.written = SEVERAL;
        if above != SEVERAL && exact {
            carries(above, plain, moved, state.socket, slot);
        }
    }
}

/// The object that was written to before may be one whose record this write carries: TLS within TLS. Then the socket is
/// below both.
#[inline(always)]
fn carries(above: u64, plain: u64, moved: &Yield, socket: u64, slot: u32) {
    let Some(word) = user::<u64>(moved.base) else { return };
    if !is_tls_record(word) || !is_record_of(word, plain) {
        return;
    }
    let key = StreamKey { object: above, tgid: bpf_get_current_pid_tgid() >> 32 };
    let Some(found) = TLS_STREAMS.get_ptr_mut(key) else { return };
    // SAFETY: a map value.
    let state = unsafe { &mut *found };
    if state.association == association::NONE {
        bind(state, socket, association::NESTED, slot);
    }
}

/// The record at the start of a word holds this much plaintext.
#[inline(always)]
fn is_record_of(word: u64, plain: u64) -> bool {
    let encrypted = u64::from((word >> 24) as u8) << 8 | u64::from((word >> 32) as u8);
    is_tls_application_data(word) && is_tls_expansion(plain, encrypted)
}

/// The socket behind a file descriptor of this process, as it is known to the socket programs; 0: none that carries TLS.
#[inline(always)]
pub(crate) fn named(fd: i32) -> u64 {
    if kernel::PROBE_READ_KERNEL.load() == 0 || fd < 0 {
        return 0;
    }
    let sk = of_descriptor(fd as u32).unwrap_or(0);
    if sk == 0 {
        return 0;
    }
    let remote_port: u16 = probe(sk, &kernel::SKC_DPORT).unwrap_or(0);
    let id = match WALKED_SOCKETS.get_ptr(&WalkedKey { socket: sk, remote_port: u64::from(remote_port) }) {
        // SAFETY: a map value.
        Some(found) => identity(unsafe { &*found }),
        None => probe(sk, &kernel::SKC_COOKIE).unwrap_or(0),
    };
    // SAFETY: only asked whether it is there.
    if unsafe { TLS_SOCKETS.get(&id) }.is_some() { id } else { 0 }
}

/// A buffer of this CPU that no other program works on.
#[inline(always)]
fn claim() -> Option<(u32, *mut Scratch)> {
    for at in slot::TLS..slot::TLS + TLS_SLOTS {
        let scratch = SCRATCH.get_ptr_mut(at)?;
        // SAFETY: a field of a map value.
        if unsafe { exchange(&raw mut (*scratch).busy, 1) } == 0 {
            // SAFETY: as above. The verifier is to know it as any number, not to try each.
            return Some((forget(unsafe { &raw mut (*scratch).locals.at }, u64::from(at)) as u32, scratch));
        }
    }
    None
}

#[inline(always)]
fn release(slot: u32) {
    if let Some(scratch) = SCRATCH.get_ptr_mut(slot) {
        // SAFETY: a field of a map value.
        unsafe { exchange(&raw mut (*scratch).busy, 0) };
    }
}

/// Atomically replace a value (`BPF_XCHG`, Linux 5.12); this target's `AtomicU64` has no such operation.
///
/// # Safety
/// `at` points into a map value.
#[inline(always)]
unsafe fn exchange(at: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: as above; the instruction reads and writes these eight bytes.
    unsafe { asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) value, in(reg) at) };
    value
}
