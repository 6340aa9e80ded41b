//! The floor: programs that return at once, at the tracepoints that Weir uses. What any observer there costs at least.
//! Loaded by system calls of their own: an object file for two instructions would have to be built and shipped.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};

/// Where Weir attaches for sockets.
const TRACEPOINTS: [&str; 2] = ["sock_send_length", "sock_recv_length"];

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_RAW_TP: u32 = 23;
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
    _descriptors: Vec<OwnedFd>,
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
        Ok(Self { _descriptors: descriptors })
    }
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
