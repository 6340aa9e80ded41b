//! New programs: what a process ran, told before it can be gone.

use agent_common::event::{Exec, Header, kind};
use agent_common::limits::FILENAME_MAX;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_ktime_get_ns, bpf_probe_read_kernel_str,
};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::BtfTracePointContext;

use crate::copy::clamp;
use crate::emit::output;
use crate::kernel::{self, load};
use crate::maps::slot;
use crate::stream::process_start;

#[repr(C)]
pub(crate) struct ExecScratch {
    exec: Exec,
    filename: [u8; FILENAME_MAX],
}

/// Where [`Exec`] records are built.
#[map]
static EXEC_SCRATCH: PerCpuArray<ExecScratch> = PerCpuArray::with_max_entries(1, 0);

/// `tp_btf/sched_process_exec`: `void (struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, Linux 3.4.
/// Emits Exec for every successful execve. Optional: without it a process that ends at once may lack its executable.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let Some(scratch) = EXEC_SCRATCH.get_ptr_mut(0) else { return 0 };
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: a per-CPU map value; `bprm` is the program's argument; the helper bounds what it writes.
    unsafe {
        let bprm: *const u8 = ctx.arg(2);
        let filename: *const u8 = load(bprm, &kernel::BPRM_FILENAME);
        let exec = &mut (*scratch).exec;
        exec.header = Header {
            kind: kind::EXEC,
            time_ns: bpf_ktime_get_ns(),
            pid: (pid_tgid >> 32) as u32,
            tid: pid_tgid as u32,
            ..Header::default()
        };
        exec.process_start_ns = process_start();
        exec.cgroup = bpf_get_current_cgroup_id();
        bpf_get_current_comm((&raw mut exec.comm).cast(), exec.comm.len() as u32);
        let len =
            bpf_probe_read_kernel_str((&raw mut (*scratch).filename).cast(), FILENAME_MAX as u32, filename.cast());
        // The helper counts the NUL.
        let len = if len > 0 { len as u32 - 1 } else { 0 };
        output(
            slot::EVENT,
            scratch.cast::<u8>().cast_const(),
            size_of::<Exec>() as u64 + u64::from(clamp(len, FILENAME_MAX as u32)),
        );
    }
    0
}
