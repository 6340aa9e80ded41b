//! The kernel floor: one binary, so that it can be copied into a VM as one file.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "real servers run on the real clock")]

mod bad_input;
mod cli;
mod finder;
mod http2;
mod http2_frames;
mod http2_hostile;
mod http2_late;
mod http3;
mod late;
mod lifecycle;
mod load;
mod otlp;
mod plaintext;
mod riders;
mod sockets;
mod tls;
mod tls_facts;
mod tls_files;
mod tls_forms;
mod tls_safety;
mod trace;
