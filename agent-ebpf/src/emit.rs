//! Records to the ring buffer, and counting what does not fit.

use agent_common::counters::Counter;
use aya_ebpf::helpers::generated::bpf_ringbuf_output;

use crate::maps::{COUNTERS, RECORDS};

/// Add to a counter of this CPU and [`crate::maps::slot`].
#[inline(always)]
pub(crate) fn count(slot: u32, counter: Counter, by: u64) {
    count_all(slot, [(counter, by)]);
}

/// Add to several counters of this CPU and [`crate::maps::slot`].
#[inline(always)]
pub(crate) fn count_all<const N: usize>(slot: u32, counts: [(Counter, u64); N]) {
    if let Some(counters) = COUNTERS.get_ptr_mut(slot) {
        let counters = counters.cast::<u64>();
        for (counter, by) in counts {
            // SAFETY: a per-CPU value of a slot that no other program is using.
            unsafe {
                let slot = counters.add(counter as usize);
                *slot = (*slot).wrapping_add(by);
            }
        }
    }
}

/// Hand `len` bytes at `record` to the agent. Flags stay 0 everywhere: a record sent with `BPF_RB_NO_WAKEUP` and left
/// unread would stop all later wake-ups.
///
/// # Safety
/// `len` bytes at `record` are readable: the verifier checks it.
#[inline(always)]
pub(crate) unsafe fn output(slot: u32, record: *const u8, len: u64) -> bool {
    // SAFETY: as above.
    let status =
        unsafe { bpf_ringbuf_output((&raw const RECORDS).cast_mut().cast(), record.cast_mut().cast(), len, 0) };
    if status == 0 {
        count(slot, Counter::Records, 1);
        true
    } else {
        count(slot, Counter::RingFull, 1);
        false
    }
}
