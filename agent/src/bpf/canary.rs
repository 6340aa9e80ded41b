//! A test before any other process is touched: does a uretprobe survive a process that filters its system calls? Kernels
//! from 6.11 return from uretprobes by a system call of their own; until that was exempted from seccomp(2) a strict
//! filter killed whoever was probed.

use std::fs;
use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeScope};

/// Argument that makes this binary be the canary.
pub const ARGUMENT: &str = "__canary";

const EXECUTABLE: &str = "/proc/self/exe";

/// The function that is probed.
#[inline(never)]
extern "C" fn probed(value: i64) -> i64 {
    std::hint::black_box(value).wrapping_add(1)
}

/// Be the canary: wait for a byte, allow nothing but read, write and exit, call the probed function, end.
pub fn run() -> ! {
    // SAFETY: plain system calls on our own process; the buffer is one byte long. In this mode any other call, such as
    // the one that ends a whole process, would kill it.
    unsafe {
        let mut go = 0_u8;
        libc::read(0, (&raw mut go).cast(), 1);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT, 0, 0, 0);
        libc::syscall(libc::SYS_exit, probed(41) - 42);
    }
    loop {
        std::hint::spin_loop();
    }
}

/// Try it with a loaded uretprobe `program`.
///
/// # Errors
/// The canary was killed, or the test could not be made; says which.
pub(super) fn test(program: &mut UProbe) -> Result<()> {
    let offset = offset().context("the test of uretprobes cannot find its own code")?;
    let mut canary = Command::new(EXECUTABLE)
        .arg(ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("the test of uretprobes cannot start")?;
    let scope = NonZeroU32::new(canary.id()).map_or(UProbeScope::CallingProcess, UProbeScope::OneProcess);
    let attached = program.attach(UProbeAttachLocation::AbsoluteOffset(offset), EXECUTABLE, scope);
    // Without its byte it reads end-of-file, and ends all the same.
    _ = canary.stdin.take().map(|mut stdin| stdin.write_all(b"\n"));
    let status = canary.wait().context("the test of uretprobes was lost")?;
    let link = attached.context("the kernel refuses uretprobes, for which newer ones want CAP_SYS_ADMIN")?;
    program.detach(link)?;
    if status.signal().is_none() && !status.success() {
        bail!("the test of uretprobes could not be made: {EXECUTABLE} {ARGUMENT} ended with {status}");
    }
    if !status.success() {
        bail!(
            "on this kernel a uretprobe kills processes that filter their system calls (tested: {status}); \
             libraries that need one are not read. Linux 6.14, and 6.12 and 6.13 as maintained, are safe"
        );
    }
    Ok(())
}

/// Where in our executable's file the probed function is.
fn offset() -> Option<u64> {
    let address = probed as *const () as u64;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        let offset = number(fields.nth(1)?)?;
        (start..end).contains(&address).then(|| address - start + offset)
    })
}
