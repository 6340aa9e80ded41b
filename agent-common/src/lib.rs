//! The contract between the kernel programs and the agent: record layouts, counters, limits.
//!
//! Layout rules: `repr(C)`, explicit padding, fixed-width integers only (no `bool`, `usize`, pointers or enums with
//! data), native byte order, and an assertion on the size beside each type, which both sides compile.
#![no_std]
#![expect(clippy::inline_always, reason = "a BPF program is one function: a call costs verifier state and stack")]

pub mod classify;
pub mod config;
pub mod counters;
pub mod event;
pub mod http2;
pub mod limits;
pub mod offsets;
pub mod quic;
pub mod tls;
