//! The system call in progress: its number, and where its arguments say the user's bytes are.
//!
//! Arguments are read from the saved registers at the *end* of the operation, when the pages are present: reading at
//! the start fails on pages never touched before.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};

/// Where the bytes of an operation are in user memory. Not an enum with data: the verifier refuses the undefined
/// payload that one would leave in a register.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub(crate) kind: Kind,
    /// Address of the buffer, or of a `struct iovec` array.
    pub(crate) base: u64,
    /// Vectors in the array.
    pub(crate) count: u64,
}

#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One buffer.
    Buffer,
    Vectors,
    /// Nowhere that can be read.
    Opaque,
}

/// `struct iovec`, and the same fields of `struct user_msghdr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Vector {
    pub(crate) base: u64,
    pub(crate) len: u64,
}

impl Source {
    pub(crate) const OPAQUE: Self = Self { kind: Kind::Opaque, base: 0, count: 0 };
}

/// The saved registers that matter.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) args: [u64; 4],
    /// A native (64-bit) system call is being served right now.
    pub(crate) native: bool,
}

/// The registers of user code at a probe: the context of a uprobe.
#[derive(Clone, Copy)]
pub(crate) struct Registers(pub(crate) *const u8);

impl Registers {
    /// Integer argument `index` (below 5) of the C calling convention, at the function's entry.
    #[inline(always)]
    pub(crate) fn argument(&self, index: usize) -> u64 {
        // SAFETY: the verifier knows the context as `struct pt_regs`.
        unsafe { word(self.0, registers::ARGUMENTS[index]) }
    }

    /// The result of the C calling convention.
    #[inline(always)]
    pub(crate) fn result(&self) -> u64 {
        // SAFETY: as above.
        unsafe { word(self.0, registers::RESULT) }
    }

    /// Integer argument or result `index` (below 3) of Go's ABIInternal.
    #[inline(always)]
    pub(crate) fn go_argument(&self, index: usize) -> u64 {
        // SAFETY: as above.
        unsafe { word(self.0, registers::GO_ARGUMENTS[index]) }
    }

    /// The current goroutine (`g`).
    #[inline(always)]
    pub(crate) fn goroutine(&self) -> u64 {
        // SAFETY: as above.
        unsafe { word(self.0, registers::GOROUTINE) }
    }

    /// The stack pointer.
    #[inline(always)]
    pub(crate) fn stack(&self) -> u64 {
        // SAFETY: as above.
        unsafe { word(self.0, registers::STACK) }
    }

    /// The registers that a call gives back.
    #[inline(always)]
    pub(crate) fn kept(&self) -> Kept {
        // SAFETY: as above.
        Kept(registers::KEPT.map(|(_, offset)| unsafe { word(self.0, offset) }))
    }

    /// The conditional branch "below or equal" under the probe will be taken.
    #[inline(always)]
    pub(crate) fn branches(&self) -> bool {
        // SAFETY: as above.
        registers::below_or_equal(unsafe { word(self.0, registers::FLAGS) })
    }
}

/// What they hold.
pub(crate) struct Kept([u64; registers::KEPT.len()]);

impl Kept {
    /// By the number that instructions have for the register.
    #[inline(always)]
    pub(crate) fn get(&self, number: u16) -> Option<u64> {
        let mut value = None;
        let mut at = 0;
        while at < registers::KEPT.len() {
            if registers::KEPT[at].0 == number {
                value = Some(self.0[at]);
            }
            at += 1;
        }
        value
    }
}

#[cfg(bpf_target_arch = "x86_64")]
mod registers {
    use super::{Call, word};

    // Offsets in `struct pt_regs`, arch/x86/include/asm/ptrace.h: user ABI, fixed.
    const R10: usize = 56;
    const AX: usize = 80;
    const DX: usize = 96;
    const SI: usize = 104;
    const DI: usize = 112;
    const ORIG_AX: usize = 120;
    const CS: usize = 136;

    /// Numbers and offsets of rbx, rbp, r12 to r15.
    pub(super) const KEPT: [(u16, usize); 6] = [(3, 40), (5, 32), (12, 24), (13, 16), (14, 8), (15, 0)];
    /// rdi, rsi, rdx, rcx, r8.
    pub(super) const ARGUMENTS: [usize; 5] = [DI, SI, DX, 88, 72];
    pub(super) const RESULT: usize = AX;
    /// rax, rbx, rcx.
    pub(super) const GO_ARGUMENTS: [usize; 3] = [AX, 40, 88];
    /// r14.
    pub(super) const GOROUTINE: usize = 8;
    pub(super) const FLAGS: usize = 144;
    pub(super) const STACK: usize = 152;

    /// CF or ZF.
    #[inline(always)]
    pub(super) const fn below_or_equal(flags: u64) -> bool {
        flags & 0x41 != 0
    }

    /// `__USER_CS`: a 32-bit task (`__USER32_CS`) numbers its calls differently, a kernel thread has neither.
    const USER_CS: u64 = 0x33;
    /// The entry code stores -ENOSYS as result until the call returns. Another value means that the bytes are moved by
    /// task work on the way out (io_uring), when the arguments are those of an unrelated call.
    const ENOSYS: u64 = (-38_i64) as u64;

    /// # Safety
    /// `regs` comes from `bpf_task_pt_regs` or from the `sys_exit` tracepoint.
    #[inline(always)]
    pub(crate) unsafe fn call(regs: *const u8, returned: bool) -> Call {
        // SAFETY: the verifier knows `regs` as `struct pt_regs`.
        unsafe {
            Call {
                number: word(regs, ORIG_AX),
                args: [word(regs, DI), word(regs, SI), word(regs, DX), word(regs, R10)],
                native: word(regs, CS) == USER_CS && (returned || word(regs, AX) == ENOSYS),
            }
        }
    }

    pub(crate) const READ: u64 = 0;
    pub(crate) const WRITE: u64 = 1;
    pub(crate) const READV: u64 = 19;
    pub(crate) const WRITEV: u64 = 20;
    pub(crate) const SENDTO: u64 = 44;
    pub(crate) const RECVFROM: u64 = 45;
    pub(crate) const SENDMSG: u64 = 46;
    pub(crate) const RECVMSG: u64 = 47;
    pub(crate) const SENDFILE: u64 = 40;
    pub(crate) const RECVMMSG: u64 = 299;
    pub(crate) const SENDMMSG: u64 = 307;
    pub(crate) const PREADV2: u64 = 327;
    pub(crate) const PWRITEV2: u64 = 328;
}

#[cfg(bpf_target_arch = "aarch64")]
mod registers {
    use super::{Call, word};

    // Offsets in `struct pt_regs`, arch/arm64/include/asm/ptrace.h: x0..x30, sp, pc, pstate, orig_x0, syscallno.
    const X1: usize = 8;
    const X2: usize = 16;
    const X3: usize = 24;
    const PSTATE: usize = 264;
    const ORIG_X0: usize = 272;
    const SYSCALLNO: usize = 280;
    /// Numbers and offsets of x19 to x28.
    pub(super) const KEPT: [(u16, usize); 10] =
        [(19, 152), (20, 160), (21, 168), (22, 176), (23, 184), (24, 192), (25, 200), (26, 208), (27, 216), (28, 224)];
    pub(super) const ARGUMENTS: [usize; 5] = [0, X1, X2, X3, 32];
    pub(super) const RESULT: usize = 0;
    pub(super) const GO_ARGUMENTS: [usize; 3] = [0, X1, X2];
    /// x28.
    pub(super) const GOROUTINE: usize = 224;
    pub(super) const FLAGS: usize = PSTATE;
    pub(super) const STACK: usize = 248;

    /// C clear or Z set.
    #[inline(always)]
    pub(super) const fn below_or_equal(flags: u64) -> bool {
        flags & (1 << 29) == 0 || flags & (1 << 30) != 0
    }

    /// `PSR_MODE_MASK | PSR_MODE32_BIT`: zero in 64-bit user mode.
    const MODE: u64 = 0x1f;

    /// # Safety
    /// `regs` comes from `bpf_task_pt_regs` or from the `sys_exit` tracepoint.
    #[inline(always)]
    pub(crate) unsafe fn call(regs: *const u8, _returned: bool) -> Call {
        // SAFETY: the verifier knows `regs` as `struct pt_regs`.
        unsafe {
            let number = word(regs, SYSCALLNO) as u32;
            Call {
                number: u64::from(number),
                args: [word(regs, ORIG_X0), word(regs, X1), word(regs, X2), word(regs, X3)],
                // NO_SYSCALL is -1: set when no call is in progress.
                native: word(regs, PSTATE) & MODE == 0 && number != u32::MAX,
            }
        }
    }

    pub(crate) const READ: u64 = 63;
    pub(crate) const WRITE: u64 = 64;
    pub(crate) const READV: u64 = 65;
    pub(crate) const WRITEV: u64 = 66;
    pub(crate) const SENDFILE: u64 = 71;
    pub(crate) const SENDTO: u64 = 206;
    pub(crate) const RECVFROM: u64 = 207;
    pub(crate) const SENDMSG: u64 = 211;
    pub(crate) const RECVMSG: u64 = 212;
    pub(crate) const RECVMMSG: u64 = 243;
    pub(crate) const SENDMMSG: u64 = 269;
    pub(crate) const PREADV2: u64 = 286;
    pub(crate) const PWRITEV2: u64 = 287;
}

pub(crate) use registers::{
    PREADV2, PWRITEV2, READ, READV, RECVFROM, RECVMMSG, RECVMSG, SENDFILE, SENDMMSG, SENDMSG, SENDTO, WRITE, WRITEV,
    call,
};

/// # Safety
/// The verifier knows `regs` as `struct pt_regs`.
#[inline(always)]
unsafe fn word(regs: *const u8, offset: usize) -> u64 {
    // SAFETY: as above.
    unsafe { read_volatile(regs.add(offset).cast::<u64>()) }
}

/// The system call that the current task is in.
#[inline(always)]
pub(crate) fn current_call() -> Call {
    // SAFETY: both helpers return BTF pointers that the verifier knows.
    unsafe { call(bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8, false) }
}

/// `struct user_msghdr`: msg_name 8, msg_namelen 4 (+4), msg_iov 8, msg_iovlen 8.
const MSG_IOV: u64 = 16;

impl Call {
    /// Where the operation's bytes are.
    #[inline(always)]
    pub(crate) fn source(&self) -> Source {
        if !self.native {
            return Source::OPAQUE;
        }
        let [_, buffer, count, _] = self.args;
        match self.number {
            READ | WRITE | SENDTO | RECVFROM => Source { kind: Kind::Buffer, base: buffer, count: 0 },
            READV | WRITEV | PREADV2 | PWRITEV2 => vectors(buffer, count),
            SENDMSG | RECVMSG => message(buffer),
            // Which of several messages this is, the registers do not tell.
            SENDMMSG | RECVMMSG if count == 1 => message(buffer),
            _ => Source::OPAQUE,
        }
    }
}

impl Call {
    /// As [`Call::source`]; of several datagrams the first.
    #[inline(always)]
    pub(crate) fn datagram(&self) -> Source {
        if self.native && matches!(self.number, SENDMMSG | RECVMMSG) { message(self.args[1]) } else { self.source() }
    }
}

/// A single vector is a buffer: most messages have one.
#[inline(always)]
fn vectors(base: u64, count: u64) -> Source {
    if count == 1 {
        let vector: Vector = crate::copy::user(base).unwrap_or_default();
        return Source { kind: Kind::Buffer, base: vector.base, count: 0 };
    }
    Source { kind: Kind::Vectors, base, count }
}

/// The vectors of a `struct msghdr` in user memory.
#[inline(always)]
fn message(header: u64) -> Source {
    let vector: Vector = crate::copy::user(header.wrapping_add(MSG_IOV)).unwrap_or_default();
    vectors(vector.base, vector.len)
}
