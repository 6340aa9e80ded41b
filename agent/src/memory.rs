//! The memory of this process: how much is resident, and that what is freed goes back. Never anybody else's.

use std::fs;

/// Allocations of this many bytes and more are mappings of their own.
const MAPPED_FROM: i32 = 1 << 20;

/// Let what is freed go back to the system at once, if it was large. By itself glibc learns from the first large table
/// that is freed to keep the next ones (`M_MMAP_THRESHOLD` in mallopt(3)): reading one large executable would leave the
/// process larger by it for good. Call before there are other threads.
pub fn return_what_is_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's; there is no other thread yet.
    let done = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM) } == 1;
    #[cfg(not(target_env = "gnu"))]
    let done = true;
    if !done {
        tracing::debug!("the allocator keeps large memory that is freed");
    }
}

/// Resident bytes of this process.
pub fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or_default();
    pages * rustix::param::page_size() as u64
}
