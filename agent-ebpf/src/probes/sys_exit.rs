//! Backend `sys_exit`: the end of every system call, the socket found through the descriptor table. For kernels
//! without the socket tracepoints. Sees neither splice nor io_uring.

use agent_common::counters::Counter;
use agent_common::event::{backend, close_flags, direction};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::arch::{self, Call, Source};
use crate::copy;
use crate::emit::count;
use crate::kernel::{self, probe};
use crate::maps::{ConnState, SCRATCH, Scratch, WALKED_SOCKETS, WalkedKey, forget, slot};
use crate::quic;
use crate::socket::{Walked, of_descriptor};
use crate::stream::{self, Moved, verdict};

const MSG_PEEK: u64 = 0x2;
const MSG_OOB: u64 = 0x1;
const MSG_TRUNC: u64 = 0x20;
const MSG_ERRQUEUE: u64 = 0x2000;

/// `tp_btf/sys_exit`: `void (struct pt_regs *regs, long ret)`, Linux 5.5.
/// Runs at the end of every system call; leaves at once unless it may have moved bytes of a socket. Emits Open, Data,
/// and Close at end-of-file.
#[btf_tracepoint(function = "sys_exit")]
pub(crate) fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let regs: *const u8 = ctx.arg(0);
    let moved: i64 = ctx.arg(1);
    if moved < 0 {
        return 0;
    }
    let scratch = prepare(regs, moved as u32);
    if !scratch.is_null() {
        // SAFETY: fields of a map value.
        let locals = unsafe { &(*scratch).locals };
        let moved = Moved::by_socket(locals.at as u8, locals.done as u32, backend::SYS_EXIT);
        operation(locals.wanted as u32, &moved, locals.source);
    }
    0
}

/// Leave in map memory what the call did: descriptor, direction, number and place of the bytes. What follows is verified
/// once, not once for every system call, and has the stack to itself. Null: it moved none of a socket's stream.
#[inline(never)]
fn prepare(regs: *const u8, returned: u32) -> *mut Scratch {
    // SAFETY: the registers are the program's argument.
    let call = unsafe { arch::call(regs, true) };
    // The `sys_exit` tracepoint fires after the result is stored, in the same task: a native call is known by its mode.
    let Some((direction, discarded)) = transfer(&call) else { return core::ptr::null_mut() };
    let Some(len) = length(&call, returned) else { return core::ptr::null_mut() };
    let Some(scratch) = SCRATCH.get_ptr_mut(slot::RECEIVE) else { return core::ptr::null_mut() };
    let source = if discarded { Source::OPAQUE } else { call.source() };
    // SAFETY: fields of a map value.
    unsafe {
        let locals = &raw mut (*scratch).locals;
        forget(&raw mut (*locals).at, u64::from(direction));
        forget(&raw mut (*locals).done, u64::from(len));
        forget(&raw mut (*locals).wanted, call.args[0]);
        forget(&raw mut (*locals).source, source);
    }
    scratch
}

/// Messages of one `sendmmsg` or `recvmmsg` whose lengths are added up; the position of the next operation tells what
/// further ones moved.
const MESSAGES_MAX: u64 = 16;

/// Bytes that the call moved. `sendmmsg` and `recvmmsg` return a number of messages, whose lengths are in user memory.
#[inline(always)]
fn length(call: &Call, returned: u32) -> Option<u32> {
    /// `struct mmsghdr`: a `struct user_msghdr` (56 bytes), `msg_len`, padding.
    const MSG_LEN: u64 = 56;
    const STRIDE: u64 = 64;
    if call.number != arch::SENDMMSG && call.number != arch::RECVMMSG {
        return Some(returned);
    }
    let mut len = 0_u32;
    for index in 0..MESSAGES_MAX {
        if index >= u64::from(returned) {
            break;
        }
        len = len.wrapping_add(copy::user::<u32>(call.args[1].wrapping_add(index * STRIDE + MSG_LEN))?);
    }
    Some(len)
}

/// The direction of the call's bytes, and whether they were thrown away; `None` if it moves none of a socket's stream.
#[inline(always)]
fn transfer(call: &Call) -> Option<(u8, bool)> {
    let (direction, flags) = match call.number {
        arch::READ | arch::READV | arch::PREADV2 => (direction::RECEIVE, 0),
        arch::WRITE | arch::WRITEV | arch::PWRITEV2 | arch::SENDFILE => (direction::SEND, 0),
        arch::SENDTO => (direction::SEND, call.args[3]),
        arch::SENDMSG => (direction::SEND, call.args[2]),
        arch::RECVFROM => (direction::RECEIVE, call.args[3]),
        arch::RECVMSG => (direction::RECEIVE, call.args[2]),
        arch::SENDMMSG => (direction::SEND, call.args[3]),
        arch::RECVMMSG => (direction::RECEIVE, call.args[3]),
        _ => return None,
    };
    if !call.native || flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE) != 0 {
        return None;
    }
    Some((direction, direction == direction::RECEIVE && flags & MSG_TRUNC != 0))
}

/// State of a socket that is new; null if there is no room. Apart, because what it puts on the stack is not needed further
/// down: kernels up to 6.1 add up the frames of a chain of calls in steps of 32 bytes.
#[inline(never)]
fn meet(key: &WalkedKey) -> *mut ConnState {
    // SAFETY: all zero is a new connection.
    let fresh: ConnState = unsafe { core::mem::zeroed() };
    if WALKED_SOCKETS.insert(key, &fresh, 0).is_err() {
        count(slot::EVENT, Counter::StateFull, 1);
        return core::ptr::null_mut();
    }
    WALKED_SOCKETS.get_ptr_mut(key).unwrap_or(core::ptr::null_mut())
}

#[inline(always)]
fn operation(fd: u32, moved: &Moved, source: Source) {
    let sk = match of_descriptor(fd) {
        Some(0) => return,
        Some(sk) => sk,
        None => {
            count(slot::EVENT, Counter::WalkFailed, 1);
            return;
        }
    };
    let socket = Walked(sk);
    let remote_port: u16 = probe(sk, &kernel::SKC_DPORT).unwrap_or(0);
    let key = WalkedKey { socket: sk, remote_port: u64::from(remote_port) };
    let found = if let Some(found) = WALKED_SOCKETS.get_ptr_mut(&key) {
        found
    } else {
        if moved.len == 0 || stream::is_paused() {
            return;
        }
        if !socket.is_wanted() {
            if moved.len >= quic::INITIAL_MIN && socket.is_datagram() {
                datagram(socket, moved, &source);
            }
            return;
        }
        let found = meet(&key);
        if found.is_null() {
            return;
        }
        found
    };
    // SAFETY: a map value.
    let state = unsafe { &*found };
    if state.verdict >= verdict::SETTLED {
        return;
    }
    if moved.len == 0 {
        if stream::is_reported(state) && moved.direction == direction::RECEIVE {
            stream::close(state, close_flags::RECEIVE, backend::SYS_EXIT, true);
        }
        return;
    }
    // SAFETY: a map value, not null.
    unsafe { stream::observe(found, socket, source, moved) }
}

/// A large datagram. Of several received in one call the first may be a small one: they are not looked at.
#[inline(never)]
fn datagram(socket: Walked, moved: &Moved, source: &Source) {
    // A stream socket at the same address is another one.
    let key = WalkedKey { socket: socket.0, remote_port: u64::MAX };
    let found = match WALKED_SOCKETS.get_ptr_mut(&key) {
        Some(found) => found,
        None => meet(&key),
    };
    if found.is_null() {
        return;
    }
    // SAFETY: a map value, not null.
    let state = unsafe { &mut *found };
    if state.verdict < verdict::SETTLED && quic::is_due(state) {
        quic::look(state, socket, source, moved);
    }
}
