//! Calls of TLS libraries. User space: these run in the context of the calling process and may be preempted.
//!
//! What each attachment means is in its cookie (`agent_common::tls`). x86-64 and arm64 calling conventions.

use agent_common::tls::{Cookie, REGISTER, UNKNOWN, form};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use crate::arch::{Kept, Kind, Registers, Source};
use crate::copy::user;
use crate::maps::{Call, GOROUTINES, LIBRARIES, StreamKey};
use crate::tls::{self, Yield};

/// `ContentType application_data` (RFC 8446 section 5.1).
const APPLICATION_DATA: u8 = 23;
/// Records that OpenSSL makes together at most (`SSL_MAX_PIPELINES`).
const PIPELINES: u64 = 32;

const NO_CALL: Call = Call { object: 0, buffer: 0, len: 0, moved: 0, stack: 0 };

#[inline(always)]
fn cookie(ctx: *mut core::ffi::c_void) -> Cookie {
    // SAFETY: the program's context.
    Cookie::from_word(unsafe { bpf_get_attach_cookie(ctx) })
}

/// The beginning of a call whose result says what it moved: keeps the arguments.
#[uprobe]
pub(crate) fn tls_enter(ctx: ProbeContext) -> u32 {
    if tls::is_muted() {
        return 0;
    }
    let registers = Registers(ctx.as_ptr().cast());
    // Both are read first: the verifier takes no context at an offset that depends.
    let (fourth, fifth) = (registers.argument(3), registers.argument(4));
    let cookie = cookie(ctx.as_ptr());
    let moved = match cookie.form {
        form::OUT4 => fourth,
        form::OUT5 => fifth,
        _ => 0,
    };
    let (object, second, stack) = (registers.argument(0), registers.argument(1), registers.stack());
    let call = if cookie.form == form::CHUNKS {
        // `OutboundChunks`: 0, pointer, length; or pointer and number of slices, start, end. Read now: the struct is the
        // callee's to change, what it points to is not.
        let Some(words) = user::<[u64; 4]>(second) else { return 0 };
        if words[0] == 0 {
            Call { object, buffer: words[1], len: 0, moved: 0, stack }
        } else {
            Call { object, buffer: words[0], len: words[2], moved: words[1], stack }
        }
    } else {
        Call { object, buffer: second, len: registers.argument(2), moved, stack }
    };
    if let Some(thread) = tls::thread() {
        // A call whose stack begins above ours has not returned yet.
        thread.above = if thread.call.stack > stack { thread.call } else { NO_CALL };
        thread.call = call;
        thread.nested = 0;
    }
    0
}

/// The end of such a call.
#[uretprobe]
pub(crate) fn tls_return(ctx: RetProbeContext) -> u32 {
    returned(Registers(ctx.as_ptr().cast()), cookie(ctx.as_ptr()));
    0
}

/// The same, at an instruction where the result is in its register.
#[uprobe]
pub(crate) fn tls_return_at(ctx: ProbeContext) -> u32 {
    returned(Registers(ctx.as_ptr().cast()), cookie(ctx.as_ptr()));
    0
}

#[inline(always)]
fn returned(registers: Registers, cookie: Cookie) {
    let Some(thread) = tls::known_thread() else { return };
    let call = thread.call;
    // A return whose beginning was not seen has nothing to tell.
    if call.object == 0 {
        return;
    }
    thread.call = thread.above;
    thread.above = NO_CALL;
    let result = registers.result();
    let moved = match cookie.form {
        form::INT => i64::from(result as i32),
        form::OUT4 | form::OUT5 => {
            if result as i32 == 1 {
                user::<u64>(call.moved).unwrap_or(0) as i64
            } else {
                0
            }
        }
        _ => result as i64,
    };
    if moved <= 0 {
        return;
    }
    let source = match cookie.form {
        form::NO_BUFFER => Source::OPAQUE,
        // Slices, of which the first bytes were accepted. A slice is a pointer and a length, as `struct iovec` is.
        form::CHUNKS if call.moved != 0 && call.len == 0 => {
            Source { kind: Kind::Vectors, base: call.buffer, count: call.moved }
        }
        form::CHUNKS if call.moved != 0 => Source::OPAQUE,
        _ => Source { kind: Kind::Buffer, base: call.buffer, count: 0 },
    };
    let base = source.base;
    tls::report(&Yield { cookie, object: call.object, len: moved as u64, threaded: true, named: 0, base }, source);
}

/// A place where the registers, and what they lead to, are all there is to know: rustls, and OpenSSL's records.
#[uprobe]
pub(crate) fn tls_push(ctx: ProbeContext) -> u32 {
    if tls::is_muted() {
        return 0;
    }
    let registers = Registers(ctx.as_ptr().cast());
    let cookie = cookie(ctx.as_ptr());
    let [first, second, third, fourth, fifth] = [0, 1, 2, 3, 4].map(|index| registers.argument(index));
    let pushed = match cookie.form {
        form::READ_COPY => read_copy(cookie, registers, second, third),
        form::RECORDS if second as u8 == APPLICATION_DATA => {
            Some(Pushed { object: first, base: third, len: lengths(fourth, fifth) })
        }
        // `Payload`: a tag or capacity, pointer, length.
        form::PAYLOAD => user::<[u64; 3]>(second).map(|[_, base, len]| Pushed { object: first, base, len }),
        _ => None,
    };
    if let Some(Pushed { object, base, len }) = pushed {
        let source = Source { kind: Kind::Buffer, base, count: 0 };
        tls::report(&Yield { cookie, object, len, threaded: true, named: 0, base }, source);
    }
    0
}

struct Pushed {
    object: u64,
    base: u64,
    len: u64,
}

/// OpenSSL gives content of a record to its caller, which asked for application data and not just to peek.
#[inline(always)]
fn read_copy(cookie: Cookie, registers: Registers, source: u64, len: u64) -> Option<Pushed> {
    let layout = &LIBRARIES.get(u32::from(cookie.layout))?.layout;
    let kept = registers.kept();
    let at = |place| held(&kept, registers.stack(), place);
    if at(layout.content_type)? as u8 != APPLICATION_DATA || at(layout.peek)? as u32 != 0 {
        return None;
    }
    Some(Pushed { object: at(layout.object)?, base: source, len })
}

/// What lies at a place of [`agent_common::tls::Layout`].
#[inline(always)]
fn held(kept: &Kept, stack: u64, place: u16) -> Option<u64> {
    if place & REGISTER == 0 {
        return user(stack.wrapping_add(u64::from(place)));
    }
    kept.get(place & !REGISTER)
}

/// The sum of `count` lengths, of records that are made together.
#[inline(always)]
fn lengths(array: u64, count: u64) -> u64 {
    let mut sum = 0_u64;
    for index in 0..PIPELINES {
        if index >= count {
            break;
        }
        sum = sum.wrapping_add(user::<u64>(array.wrapping_add(index * 8)).unwrap_or(0));
    }
    sum
}

/// `crypto/tls.(*Conn).Read` of Go begins. At the branch of its stack check: taken, the function will begin again.
#[uprobe]
pub(crate) fn go_enter(ctx: ProbeContext) -> u32 {
    let registers = Registers(ctx.as_ptr().cast());
    if registers.branches() {
        return 0;
    }
    let (object, buffer) = (registers.go_argument(0), registers.go_argument(1));
    let call = Call { object, buffer, len: 0, moved: 0, stack: 0 };
    // Full maps evict; without the entry the bytes are missing.
    _ = GOROUTINES.insert(goroutine(&registers), call, 0);
    0
}

/// Go copies plaintext to the reader, or writes.
#[uprobe]
pub(crate) fn go_push(ctx: ProbeContext) -> u32 {
    if tls::is_muted() {
        return 0;
    }
    let registers = Registers(ctx.as_ptr().cast());
    let cookie = cookie(ctx.as_ptr());
    let object = if cookie.form == form::GO_WRITE {
        if registers.branches() {
            return 0;
        }
        registers.go_argument(0)
    } else if let Some(object) = kept_on_stack(cookie, &registers) {
        object
    } else {
        let key = goroutine(&registers);
        // SAFETY: copied at once.
        match unsafe { GOROUTINES.get(&key) } {
            Some(call) => call.object,
            None => return 0,
        }
    };
    go_report(cookie, object, registers.go_argument(1), registers.go_argument(2));
    0
}

/// The object, where the function keeps it: also when the call began before we were attached.
#[inline(always)]
fn kept_on_stack(cookie: Cookie, registers: &Registers) -> Option<u64> {
    let offset = LIBRARIES.get(u32::from(cookie.layout))?.layout.object;
    if offset == UNKNOWN { None } else { user(registers.stack().wrapping_add(u64::from(offset))) }
}

/// `crypto/tls.(*Conn).Read` returns.
#[uprobe]
pub(crate) fn go_return(ctx: ProbeContext) -> u32 {
    let registers = Registers(ctx.as_ptr().cast());
    let key = goroutine(&registers);
    // SAFETY: copied at once.
    let Some(call) = (unsafe { GOROUTINES.get(&key) }) else { return 0 };
    let call = *call;
    // Not there any more is as good.
    _ = GOROUTINES.remove(&key);
    let moved = registers.go_argument(0);
    if (moved as i64) > 0 {
        go_report(cookie(ctx.as_ptr()), call.object, call.buffer, moved);
    }
    0
}

#[inline(always)]
fn goroutine(registers: &Registers) -> StreamKey {
    StreamKey { object: registers.goroutine(), tgid: bpf_get_current_pid_tgid() >> 32 }
}

/// Goroutines change threads at any call: only the descriptor tells their connection.
#[inline(never)]
fn go_report(cookie: Cookie, object: u64, buffer: u64, len: u64) {
    let source = Source { kind: Kind::Buffer, base: buffer, count: 0 };
    let named = go_descriptor(object).map_or(0, tls::named);
    tls::report(&Yield { cookie, object, len, threaded: false, named, base: buffer }, source);
}

/// `tls.Conn.conn`, an interface: type, then a pointer to `net.TCPConn`, which begins with a pointer to `net.netFD`,
/// whose `poll.FD` begins with a mutex of 16 bytes and the descriptor (the same from Go 1.17 to 1.27).
#[inline(always)]
fn go_descriptor(object: u64) -> Option<i32> {
    let conn: u64 = user(object.wrapping_add(8))?;
    let fd: u64 = user(conn)?;
    user(fd.wrapping_add(16))
}
