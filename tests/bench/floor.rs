//! The floor: programs that return at once, at the tracepoints and in the library functions that Weir uses. What any observer
//! there costs at least.
//! Loaded by system calls of their own: an object file for two instructions would have to be built and shipped.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use agent::tls_targets::{Program, Target};
use anyhow::{Context as _, Result, ensure};

/// Where Weir attaches for sockets.
const TRACEPOINTS: [&str; 2] = ["sock_send_length", "sock_recv_length"];

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_RAW_TP: u32 = 23;
// include/uapi/linux/perf_event.h
const PERF_EVENT_IOC_SET_BPF: libc::Ioctl = 0x4004_2408;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::Ioctl = 0x2400;
/// `r0 = 0; exit`
const EMPTY: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
const LICENSE: &CStr = c"GPL";

/// `union bpf_attr` of `BPF_PROG_LOAD`, as far as `attach_btf_id`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach: u32,
    btf: u32,
    func_info_size: u32,
    func_info: u64,
    func_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
}

/// `union bpf_attr` of `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
#[derive(Default)]
struct Open {
    name: u64,
    program: u32,
    padding: u32,
}

/// Attached while it lives.
pub(crate) struct Floor {
    descriptors: Vec<OwnedFd>,
}

impl Floor {
    /// Load and attach an empty program at each tracepoint.
    pub(crate) fn attach() -> Result<Self> {
        let btf = fs::read("/sys/kernel/btf/vmlinux").context("this kernel has no BTF")?;
        let mut descriptors = Vec::new();
        for tracepoint in TRACEPOINTS {
            let id = typedef(&btf, &format!("btf_trace_{tracepoint}"))
                .with_context(|| format!("this kernel has no tracepoint {tracepoint}"))?;
            let load = Load {
                kind: BPF_PROG_TYPE_TRACING,
                instruction_count: EMPTY.len() as u32,
                instructions: EMPTY.as_ptr() as u64,
                license: LICENSE.as_ptr() as u64,
                expected_attach: BPF_TRACE_RAW_TP,
                attach_btf_id: id,
                ..Load::default()
            };
            let program = bpf(BPF_PROG_LOAD, &load).context("the empty program was refused")?;
            let open = Open { program: std::os::fd::AsRawFd::as_raw_fd(&program) as u32, ..Open::default() };
            descriptors.push(bpf(BPF_RAW_TRACEPOINT_OPEN, &open).context("the empty program cannot be attached")?);
            descriptors.push(program);
        }
        Ok(Self { descriptors })
    }

    /// The same, and an empty program at each probe of a library.
    pub(crate) fn attach_library(path: &Path, target: &Target) -> Result<Self> {
        let mut floor = Self::attach()?;
        let load = Load {
            kind: BPF_PROG_TYPE_KPROBE,
            instruction_count: EMPTY.len() as u32,
            instructions: EMPTY.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            ..Load::default()
        };
        let program = bpf(BPF_PROG_LOAD, &load).context("the empty program was refused")?;
        let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").context("no uprobes here")?;
        let kind: u64 = kind.trim().parse().context("the type of uprobes is no number")?;
        let path = CString::new(path.as_os_str().as_bytes())?;
        for probe in &target.probes {
            let event = uprobe(kind, &path, probe.offset, probe.program == Program::Return)?;
            let program = std::os::fd::AsRawFd::as_raw_fd(&program);
            // SAFETY: both descriptors are open; the calls take numbers.
            let failed = unsafe {
                let event = std::os::fd::AsRawFd::as_raw_fd(&event);
                libc::ioctl(event, PERF_EVENT_IOC_SET_BPF, program) != 0
                    || libc::ioctl(event, PERF_EVENT_IOC_ENABLE, 0) != 0
            };
            ensure!(!failed, std::io::Error::last_os_error());
            floor.descriptors.push(event);
        }
        floor.descriptors.push(program);
        Ok(floor)
    }
}

/// An event for all processes at an instruction of a file, or at the returns of the function there.
fn uprobe(kind: u64, path: &CStr, offset: u64, is_return: bool) -> Result<OwnedFd> {
    /// `struct perf_event_attr` by words: type and size, config, .., config1 (path), config2 (offset).
    const WORDS: usize = 16;
    let mut attributes = [0_u64; WORDS];
    attributes[0] = kind | (size_of_val(&attributes) as u64) << 32;
    attributes[1] = u64::from(is_return);
    attributes[7] = path.as_ptr() as u64;
    attributes[8] = offset;
    // SAFETY: the attributes and the path live through the call; the kernel copies them.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1, 0, -1, PERF_FLAG_FD_CLOEXEC) };
    ensure!(fd >= 0, std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A command of bpf(2) that returns a descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: the attributes are of the command's own type and length; the kernel copies them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    ensure!(fd >= 0, std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Number of a typedef in BTF (Documentation/bpf/btf.rst).
fn typedef(btf: &[u8], name: &str) -> Option<u32> {
    let word = |at: usize| Some(u32::from_ne_bytes(btf.get(at..at + 4)?.try_into().ok()?));
    let header = word(4)? as usize;
    let (types, len, strings) = (header + word(8)? as usize, word(12)? as usize, header + word(16)? as usize);
    let (mut at, mut id) = (types, 0);
    while at < types + len {
        id += 1;
        let (string, info) = (strings + word(at)? as usize, word(at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == 8 && btf.get(string..)?.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
            return Some(id);
        }
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => members * 12,
                6 | 13 => members * 8,
                _ => 0,
            };
    }
    None
}
