//! What the agent tells the kernel programs at run time, in a one-element array map.

/// Read by every operation of a followed connection; written by the agent, whole, at any time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes copied per message.
    pub budget: u32,
    /// Bytes copied per message while a connection pipelines.
    pub budget_burst: u32,
    /// One of [`paused`].
    pub paused: u32,
    /// Non-zero: the filter maps are in use.
    pub filters: u32,
}
const _: () = assert!(size_of::<Config>() == 16);

/// [`Config::paused`] values.
pub mod paused {
    pub const NO: u32 = 0;
    /// Meet no connection; those followed already go on. Set until all programs are attached.
    pub const MEET_NONE: u32 = 1;
    /// Report nothing of TLS libraries, whose probes take a while to detach.
    pub const STOP: u32 = 2;
}

impl Default for Config {
    fn default() -> Self {
        Self { budget: crate::limits::BUDGET_DEFAULT, budget_burst: crate::limits::BUDGET_BURST, paused: 0, filters: 0 }
    }
}

// SAFETY: `repr(C)` of four `u32`: no padding, every bit pattern valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Config {}
