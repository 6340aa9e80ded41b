//! Kernel structures: members by offset, read either through BTF-typed pointers or by `bpf_probe_read_kernel`.

use core::ptr::read_volatile;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

macro_rules! globals {
    ($($name:ident)+) => {
        $(
            #[doc = "Byte offset, see `agent_common::offsets`."]
            #[unsafe(no_mangle)]
            pub(crate) static $name: Global<u32> = Global::new(0);
        )+
    };
}
agent_common::for_each_offset!(globals);

/// Process of the agent: its own sockets are left alone.
#[unsafe(no_mangle)]
pub(crate) static AGENT_TGID: Global<u32> = Global::new(0);

/// 1 where `bpf_probe_read_kernel` may be called; with 0 the verifier drops the branches that do.
#[unsafe(no_mangle)]
pub(crate) static PROBE_READ_KERNEL: Global<u32> = Global::new(0);

/// Read a member through a pointer whose type the verifier knows.
///
/// # Safety
/// `base` must come from a program argument, a helper that returns a BTF pointer, or such a load, and `offset` be a
/// member of its type: the verifier checks both.
#[inline(always)]
pub(crate) unsafe fn load<T: Copy>(base: *const u8, offset: &Global<u32>) -> T {
    // SAFETY: checked by the verifier, see above.
    unsafe { read_volatile(base.add(offset.load() as usize).cast::<T>()) }
}

/// As [`load`], `extra` bytes further.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn load_at<T: Copy>(base: *const u8, offset: &Global<u32>, extra: usize) -> T {
    // SAFETY: checked by the verifier, see `load`.
    unsafe { read_volatile(base.add(offset.load() as usize).add(extra).cast::<T>()) }
}

/// Read a member of a structure at an address the verifier knows nothing of; `None` if the address faults.
#[inline(always)]
pub(crate) fn probe<T: Copy + Default>(base: u64, offset: &Global<u32>) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the destination is ours and as long as said; the helper checks the source.
    let status = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            base.wrapping_add(u64::from(offset.load())) as *const _,
        )
    };
    (status == 0).then_some(value)
}
