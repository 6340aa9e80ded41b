//! Ends of TCP connections.

use agent_common::event::{backend, close_flags};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::kernel::{self, load};
use crate::maps::{ConnState, OWN_ADDRESSES, WALKED_SOCKETS, WalkedKey};
use crate::probes::socket;
use crate::socket::Trusted;
use crate::stream::{self, verdict};
use crate::tls;

// include/net/tcp_states.h, user ABI.
const TCP_ESTABLISHED: i32 = 1;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_LAST_ACK: i32 = 9;

/// `tp_btf/inet_sock_set_state`: `void (const struct sock *sk, const int oldstate, const int newstate)`, Linux 4.16.
/// May run in an interrupt: says nothing about the process. Emits Close for followed connections; creates nothing.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    if let Some(flags) = ended(Trusted(ctx.arg(0)), ctx.arg(1), ctx.arg(2)) {
        let sk: *const u8 = ctx.arg(0);
        let found = socket::state(sk, false);
        if !found.is_null() {
            // SAFETY: a map value, not null.
            let state = unsafe { &*found };
            if stream::is_reported(state) {
                stream::close(state, flags, backend::SOCK_TRACEPOINT, false);
                forget_tls(state, flags);
            } else if state.verdict == verdict::OWN && flags & close_flags::RECEIVE != 0 {
                forget_own(state);
            }
        }
    }
    0
}

/// The same for backend `sys_exit`, whose state is kept by address.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state_walked(ctx: BtfTracePointContext) -> i32 {
    if let Some(flags) = ended(Trusted(ctx.arg(0)), ctx.arg(1), ctx.arg(2)) {
        let sk: *const u8 = ctx.arg(0);
        // SAFETY: the `struct sock` argument.
        let remote_port: u16 = unsafe { load(sk, &kernel::SKC_DPORT) };
        let key = WalkedKey { socket: sk as u64, remote_port: u64::from(remote_port) };
        if let Some(found) = WALKED_SOCKETS.get_ptr(&key) {
            // SAFETY: a map value.
            let state = unsafe { &*found };
            if stream::is_reported(state) {
                stream::close(state, flags, backend::SYS_EXIT, false);
                forget_tls(state, flags);
            } else if state.verdict == verdict::OWN && flags & close_flags::RECEIVE != 0 {
                forget_own(state);
            }
            if flags & close_flags::RECEIVE != 0 {
                // Not there any more is as good.
                _ = WALKED_SOCKETS.remove(&key);
            }
        }
    }
    0
}

/// Which directions end with this change of state. The peer's FIN alone (CLOSE_WAIT) ends nothing: what it sent may be
/// unread. A connection that was open and is closed at once was reset, by either side. After a half-close the state is
/// CLOSE while the response is still unread: then reading its end will tell.
#[inline(always)]
fn ended(socket: Trusted, old: i32, new: i32) -> Option<u8> {
    match (old, new) {
        (_, TCP_FIN_WAIT1 | TCP_LAST_ACK) => Some(close_flags::SEND),
        (TCP_ESTABLISHED | TCP_CLOSE_WAIT, TCP_CLOSE) => {
            Some(close_flags::SEND | close_flags::RECEIVE | close_flags::RESET)
        }
        (_, TCP_CLOSE) if socket.has_unread() => Some(close_flags::SEND),
        (_, TCP_CLOSE) => Some(close_flags::SEND | close_flags::RECEIVE),
        _ => None,
    }
}

/// Objects of a library that had this connection have another next.
#[inline(always)]
fn forget_tls(state: &ConnState, flags: u8) {
    if !matches!(state.verdict, verdict::HTTP1 | verdict::HTTP2)
        && flags & close_flags::SEND != 0
        && flags & close_flags::RECEIVE != 0
    {
        tls::ended(state);
    }
}

/// The address may be somebody else's next.
#[inline(always)]
fn forget_own(state: &ConnState) {
    // Not there is as good.
    _ = OWN_ADDRESSES.remove(&state.position[0]);
}
