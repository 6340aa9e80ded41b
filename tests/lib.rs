//! What the kernel tests are built from: the agent as a process, real servers and clients around it, and bounded
//! waiting. Never part of the agent; nothing here may sleep instead of waiting for a condition.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "real servers run on the real clock")]

pub mod harness;
