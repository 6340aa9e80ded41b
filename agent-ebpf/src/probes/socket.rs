//! Backend `sock_tracepoint`: the tracepoints at the end of every socket send and receive.

use agent_common::counters::Counter;
use agent_common::event::{backend, close_flags, direction};
use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::arch::{Source, current_call};
use crate::emit::count;
use crate::maps::{ConnState, SOCKETS, slot};
use crate::quic;
use crate::socket::Trusted;
use crate::stream::{self, Moved, verdict};

/// A copy that leaves the bytes in the queue: they will be seen again.
const MSG_PEEK: i32 = 0x2;
const MSG_OOB: i32 = 0x1;
/// The bytes are discarded, not copied.
const MSG_TRUNC: i32 = 0x20;
/// Not from the stream.
const MSG_ERRQUEUE: i32 = 0x2000;

/// `tp_btf/sock_send_length`: `void (struct sock *sk, int ret, int flags)`, Linux 6.3 (untested below 6.12).
/// Runs in the sender's context after the copy. Emits Open, Data. Costs one storage look-up for sockets left alone.
#[btf_tracepoint(function = "sock_send_length")]
pub(crate) fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    let moved: i32 = ctx.arg(1);
    if moved > 0 && ctx.arg::<i32>(2) & MSG_OOB == 0 {
        operation(ctx.arg(0), direction::SEND, moved as u32, false);
    }
    0
}

/// `tp_btf/sock_recv_length`: `void (struct sock *sk, int ret, int flags)`, Linux 6.3 (untested below 6.12).
/// Runs in the receiver's context after the copy. Emits Open, Data, and Close at end-of-file.
#[btf_tracepoint(function = "sock_recv_length")]
pub(crate) fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    let moved: i32 = ctx.arg(1);
    let flags: i32 = ctx.arg(2);
    if moved < 0 || flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE) != 0 {
        return 0;
    }
    if moved > 0 {
        operation(ctx.arg(0), direction::RECEIVE, moved as u32, flags & MSG_TRUNC != 0);
    } else {
        end_of_file(ctx.arg(0));
    }
    0
}

/// State of the socket; with `create`, made if there is none.
#[inline(always)]
pub(crate) fn state(socket: *const u8, create: bool) -> *mut ConnState {
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    // SAFETY: the map's address and a trusted socket; a new value is zero.
    unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            socket.cast_mut().cast(),
            core::ptr::null_mut(),
            flags,
        )
        .cast()
    }
}

#[inline(always)]
fn operation(sk: *const u8, direction: u8, len: u32, discarded: bool) {
    let socket = Trusted(sk);
    if !socket.is_stream() {
        if len >= quic::INITIAL_MIN && !discarded {
            datagram(sk, direction, len);
        }
        return;
    }
    let mut found = state(sk, false);
    if found.is_null() {
        if !socket.is_wanted() || stream::is_paused() {
            return;
        }
        found = state(sk, true);
        if found.is_null() {
            count(slot::EVENT, Counter::StateFull, 1);
            return;
        }
    }
    // SAFETY: a map value, not null.
    if unsafe { (*found).verdict } >= verdict::SETTLED {
        return;
    }
    let source = if discarded { Source::OPAQUE } else { current_call().source() };
    // SAFETY: a map value, not null.
    unsafe { stream::observe(found, socket, source, &Moved::by_socket(direction, len, backend::SOCK_TRACEPOINT)) }
}

/// A large datagram, or an operation of another socket that has no stream.
#[inline(never)]
fn datagram(sk: *const u8, direction: u8, len: u32) {
    let socket = Trusted(sk);
    let mut found = state(sk, false);
    if found.is_null() {
        if !socket.is_datagram() || stream::is_paused() {
            return;
        }
        found = state(sk, true);
        if found.is_null() {
            count(slot::EVENT, Counter::StateFull, 1);
            return;
        }
    }
    // SAFETY: a map value, not null.
    let state = unsafe { &mut *found };
    if state.verdict < verdict::SETTLED && quic::is_due(state) {
        let source = current_call().datagram();
        quic::look(state, socket, &source, &Moved::by_socket(direction, len, backend::SOCK_TRACEPOINT));
    }
}

#[inline(always)]
fn end_of_file(sk: *const u8) {
    if !Trusted(sk).is_stream() {
        return;
    }
    let found = state(sk, false);
    // SAFETY: a map value, not null.
    if !found.is_null() && stream::is_reported(unsafe { &*found }) {
        // SAFETY: as above.
        stream::close(unsafe { &*found }, close_flags::RECEIVE, backend::SOCK_TRACEPOINT, true);
    }
}
