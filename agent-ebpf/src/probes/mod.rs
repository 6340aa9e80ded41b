//! Programs, one module per attach family. Each finds the connection and its bytes and calls [`crate::stream`].

mod connection;
mod process;
mod socket;
mod sys_exit;
mod tls;
