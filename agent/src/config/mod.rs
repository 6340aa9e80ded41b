//! Configuration: one YAML file, `OTEL_*` variables and flags become one validated [`Config`], or all errors at once.
//!
//! Reads nothing itself: file text and environment are passed in. Never shows a secret, in errors or in `Debug`.

mod keys;
mod raw;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::assess::Deduplicate;
use crate::filter::Filter;
use crate::redact::RedactionConfig;

pub use keys::reference;
use keys::{KEYS, Value};

/// Everything the agent is told, checked. See `agent/docs/configuration.md` for meaning, default and unit of each key.
#[derive(Clone, Debug)]
pub struct Config {
    pub mode: Mode,
    pub filter: Filter,
    /// Bytes.
    pub memory_limit: u64,
    /// Cores.
    pub cpu_limit: f64,
    pub otlp: Otlp,
    pub export: Export,
    pub admin: Admin,
    pub capture: Capture,
    pub limits: Limits,
    /// Recent calls kept for the page.
    pub store_calls: usize,
    /// What was ignored, and why: variables that OpenTelemetry demands to ignore when they are wrong.
    pub warnings: Vec<String>,
    /// The value of each key, in the order of the table; for [`diff`].
    values: Vec<Value>,
}

/// The most the agent may do (`mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    #[default]
    Observe,
    Audit,
    Enforce,
}

/// OTLP export; a signal that is not exported is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    pub traces: Option<OtlpSignal>,
    pub metrics: Option<OtlpSignal>,
    /// Spans that wait for export.
    pub queue: usize,
    /// Most spans in one request.
    pub batch: usize,
    /// Longest wait for a batch to fill.
    pub delay: Duration,
    /// Longest time for one batch with its retries.
    pub batch_timeout: Duration,
    /// Between exports of metrics.
    pub interval: Duration,
}

/// Where and how one signal is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpSignal {
    /// The whole URL: with `/v1/traces` or `/v1/metrics` for HTTP, the endpoint for gRPC.
    pub url: String,
    pub protocol: OtlpProtocol,
    pub headers: Vec<(String, Secret)>,
    pub timeout: Duration,
    pub gzip: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    Grpc,
    HttpProtobuf,
}

/// A value that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Exporters besides OTLP, and what leaves through all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    pub console: bool,
    pub jsonl: Option<PathBuf>,
    pub deduplicate: Deduplicate,
    pub sampler: Sampler,
    pub redaction: RedactionConfig,
}

/// Which calls become spans (`OTEL_TRACES_SAMPLER`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Follow the `sampled` flag of an incoming `traceparent`.
    pub parent_based: bool,
    /// Share of other traces kept: 0.0 none, 1.0 all.
    pub ratio: f64,
}

/// The admin server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `None`: off.
    pub address: Option<SocketAddr>,
    /// `None`: off.
    pub socket: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    pub hosts: Vec<String>,
    pub open_metrics: bool,
}

/// The kernel side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Bytes copied of each message.
    pub budget: u32,
    /// First bytes of content looked at; 0: none.
    pub body_prefix: usize,
    pub backend: Backend,
    /// Bytes; a power of two.
    pub ring_buffer: u32,
    /// Probe TLS libraries.
    pub tls: bool,
    /// Between two looks at who maps them.
    pub tls_sweep: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Auto,
    SockTracepoint,
    SysExit,
}

/// Bounds of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub connections: usize,
    pub processes: usize,
    pub routes: usize,
    pub routes_per_service: usize,
    pub metric_series: usize,
    /// Bytes.
    pub head: usize,
    pub response_timeout: Duration,
}

/// What the command line says; each as written. `None` and empty: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub mode: Option<String>,
    pub otlp_endpoint: Option<String>,
    pub otlp_protocol: Option<String>,
    /// `console` or `jsonl:PATH`.
    pub export: Vec<String>,
    pub admin: Option<String>,
    pub targets: Vec<String>,
    pub exclude: Vec<String>,
}

/// Where a wrong value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File { name: String, line: usize, column: usize },
    Flag(&'static str),
}

/// One thing that is wrong: where, in which key, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub source: Source,
    /// Dotted path of the key; empty for the file as a whole.
    pub key: String,
    pub message: String,
}

/// A key whose value differs between two configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: &'static str,
    /// It takes effect only when the agent starts again.
    pub restart: bool,
}

impl Config {
    /// The configuration from a file (its name and text), the environment and flags; later ones win. All errors at
    /// once, in the order of the file.
    pub fn load(
        file: Option<(&str, &str)>,
        env: &dyn Fn(&str) -> Option<String>,
        overrides: &Overrides,
    ) -> Result<Self, Vec<ConfigError>> {
        validate::load(file, env, overrides)
    }
}

/// The keys in which `new` differs from `old`.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    KEYS.iter()
        .zip(old.values.iter().zip(&new.values))
        .filter(|(_, (old, new))| old != new)
        .map(|(spec, _)| Change { key: spec.path, restart: spec.restart })
        .collect()
}

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Audit => "audit",
            Self::Enforce => "enforce",
        }
    }
}

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `file:line:column: path.to.key: what is wrong; what to do`.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File { name, line, column } => write!(f, "{name}:{line}:{column}: ")?,
            Source::Flag(flag) => write!(f, "{flag}: ")?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests;
