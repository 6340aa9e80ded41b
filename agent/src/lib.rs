//! Weir's agent: a synchronous pure core inside an asynchronous shell.
//!
//! ```text
//! kernel programs -> ring buffer -> event -> capture (conn, protocol, trace) -> Exchange
//!     -> assess (workloads, route, filter, redact) -> CallReport -> store, metrics, exporters
//! ```
//!
//! `capture` and `assess` do no I/O and read no clock; `bpf`, `enrich`, `export`, `admin`, `config` and `record` are the
//! edges; `pipeline`, `run` and `commands` wire them. `ARCHITECTURE.md` has the map and the invariants.

pub mod admin;
pub mod application;
pub mod assess;
pub mod bpf;
pub mod capture;
pub mod cli;
pub mod clock;
pub mod coding;
pub mod commands;
pub mod config;
pub mod conn;
pub mod discover;
pub mod doctor;
pub mod enrich;
pub mod event;
pub mod export;
pub mod filter;
pub mod handshake;
pub mod inventory;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod pipeline;
pub mod protocol;
pub mod record;
pub mod redact;
pub mod run;
pub mod tls_targets;
pub mod trace;
pub mod workloads;
