//! The only place that reads a clock.

use rustix::time::{ClockId, clock_gettime};

use crate::model::Timestamp;

/// `CLOCK_MONOTONIC`: the kernel's timestamps.
pub fn now() -> Timestamp {
    Timestamp(read(ClockId::Monotonic))
}

/// Wall clock, nanoseconds since the Unix epoch.
pub fn unix_now_ns() -> u64 {
    read(ClockId::Realtime)
}

/// Processor time of this process, nanoseconds.
pub fn cpu_ns() -> u64 {
    read(ClockId::ProcessCPUTime)
}

/// Nanoseconds to add to a kernel time for the wall clock. The wall clock may be set; ask again now and then.
pub fn wall_offset_ns() -> u64 {
    let before = read(ClockId::Monotonic);
    let wall = read(ClockId::Realtime);
    let after = read(ClockId::Monotonic);
    wall.wrapping_sub(before / 2 + after / 2)
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}
