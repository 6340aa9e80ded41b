//! The agent as it ships: a process with a configuration of its own, read through its outputs alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::free_port;
use super::guard::Process;

/// Loading eBPF programs on an emulated machine takes its time.
const START: Duration = Duration::from_mins(1);
/// The contract's longest shutdown.
const STOP: Duration = Duration::from_secs(5);

/// Have the `X-Id` of every response exported: what the server said this response answers.
pub const EXPORT_ID: &str = "export:\n  responseHeaders: [x-id]\n";

/// What a test wants different.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Further arguments of `weir run`.
    pub args: Vec<String>,
    /// Appended to the configuration, which has the key `admin` only.
    pub config_extra: String,
    /// Environment variables; those of OpenTelemetry that the tests run under are removed before.
    pub env: Vec<(String, String)>,
}

impl Options {
    /// Options with this much more configuration.
    pub fn config(extra: &str) -> Self {
        Self { config_extra: extra.to_owned(), ..Self::default() }
    }
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    admin_port: u16,
    dir: TempDir,
}

/// What a stopped agent left.
#[derive(Debug)]
pub struct Stopped {
    pub calls: Vec<Value>,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
    /// From the signal to the end of the process.
    pub took: Duration,
}

/// The program under test.
pub fn binary() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/weir");
    std::env::var_os("WEIR_BIN").map_or_else(|| PathBuf::from(default), PathBuf::from)
}

/// `weir` with these arguments, without the OpenTelemetry variables of the tests' own environment.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command
}

impl Agent {
    /// Start it and wait until it observes.
    pub fn start(options: &Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let admin_port = free_port();
        let (config, calls) = (dir.path().join("weir.yaml"), dir.path().join("calls.jsonl"));
        let socket = dir.path().join("weir.sock");
        let text = format!(
            "admin:\n  address: \"127.0.0.1:{admin_port}\"\n  socket: {}\n{}",
            socket.display(),
            options.config_extra
        );
        fs::write(&config, text).unwrap();
        let mut command = command(&["run", "--config", config.to_str().unwrap()]);
        command.arg("--export").arg(format!("jsonl:{}", calls.display()));
        command.args(&options.args).envs(options.env.iter().map(|(name, value)| (name, value)));
        let mut process = Process::spawn(&mut command);
        process.wait_for_stderr("ready", START);
        Self { process, admin_port, dir }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its directory: configuration `weir.yaml`, calls, control socket, token.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("weir.yaml")
    }

    pub fn socket_path(&self) -> PathBuf {
        self.dir.path().join("weir.sock")
    }

    pub fn admin_port(&self) -> u16 {
        self.admin_port
    }

    pub fn stdout(&self) -> Vec<String> {
        self.process.stdout()
    }

    pub fn stderr(&self) -> Vec<String> {
        self.process.stderr()
    }

    /// All calls written so far.
    pub fn calls(&self) -> Vec<Value> {
        read_calls(&self.dir.path().join("calls.jsonl"))
    }

    /// The calls, once they satisfy `enough`. Panics with all of them when they do not within `limit`.
    pub fn wait_for(&self, enough: impl Fn(&[Value]) -> bool, limit: Duration) -> Vec<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let calls = self.calls();
            if enough(&calls) {
                return calls;
            }
            if Instant::now() > deadline {
                let listed: Vec<_> = calls.iter().rev().take(60).map(brief).collect();
                panic!(
                    "{} calls are not what was waited for; the newest first: {listed:#?}\nstderr: {:#?}\n{}",
                    calls.len(),
                    self.stderr(),
                    self.losses()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The metrics page.
    pub fn metrics(&self) -> String {
        self.get("/metrics")
    }

    /// Sum of the series of one metric that have these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.metrics();
        let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let has = |(label, value): &(&str, &str)| rest.contains(&format!("{label}=\"{value}\""));
            (found == name && labels.iter().all(has)).then(|| value.parse::<f64>().unwrap())
        });
        series.sum()
    }

    /// `/api/v1/status`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.get("/api/v1/status")).unwrap()
    }

    /// Body of the answer to a GET through the control socket.
    pub fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.socket_path()).unwrap();
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let (response, _) = super::client::parse_response(&answer, false).expect("a whole response");
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        response.text()
    }

    /// Resident memory, bytes.
    pub fn rss_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The counters of losses that are not 0, for the messages of failing tests.
    pub fn losses(&self) -> String {
        let names = ["weir_lost_total", "weir_incomplete_total", "weir_evicted_total", "weir_kernel_total"];
        let text = self.metrics();
        let lines = text.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        lines.filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>().join("\n")
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGTERM; it must end well and in time.
    pub fn stop(self) -> Stopped {
        self.stop_within(STOP)
    }

    /// As [`Agent::stop`], where the machine is too busy for that.
    pub fn stop_within(mut self, limit: Duration) -> Stopped {
        let start = Instant::now();
        self.signal(Signal::SIGTERM);
        let status = self.process.wait(limit);
        let took = start.elapsed();
        let (stdout, stderr) = (self.process.stdout(), self.process.stderr());
        let status = status.unwrap_or_else(|| panic!("still there {limit:?} after SIGTERM; stderr {stderr:#?}"));
        assert!(status.success(), "{status}; stderr {stderr:#?}");
        Stopped { calls: self.calls(), stdout, stderr, took }
    }

    /// SIGKILL: no drain, no goodbye. The kernel must detach everything.
    pub fn kill(self) {
        self.kill_within(STOP);
    }

    /// As [`Agent::kill`], where the machine is too busy for that. How long the kernel took to detach everything.
    pub fn kill_within(mut self, limit: Duration) -> Duration {
        let start = Instant::now();
        self.signal(Signal::SIGKILL);
        assert!(self.process.wait(limit).is_some(), "still there {limit:?} after SIGKILL");
        start.elapsed()
    }
}

/// Parse a file of calls; a last line that is not whole yet is left out.
pub fn read_calls(path: &Path) -> Vec<Value> {
    let bytes = whole_lines(path);
    parse_lines(std::str::from_utf8(&bytes).expect("calls are UTF-8"))
}

/// A file without the part behind its last line break; empty when there is no file.
pub(super) fn whole_lines(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap_or_default();
    let end = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or_default();
    bytes.truncate(end);
    bytes
}

pub(super) fn parse_lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(parse).collect()
}

/// Readable access to one call.
pub trait Call {
    /// A string attribute, empty when absent.
    fn text(&self, key: &str) -> &str;
    /// A number attribute.
    fn number(&self, key: &str) -> Option<u64>;
    fn path(&self) -> &str {
        self.text("url.path")
    }
    fn status(&self) -> Option<u64> {
        self.number("http.response.status_code")
    }
    fn is_server(&self) -> bool {
        self.text("span_kind") == "server"
    }
    fn is_client(&self) -> bool {
        self.text("span_kind") == "client"
    }
    /// `X-Id` of the response, with [`EXPORT_ID`].
    fn id(&self) -> Option<&str>;
}

impl Call for Value {
    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Self::as_str).unwrap_or_default()
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(Self::as_u64)
    }

    fn id(&self) -> Option<&str> {
        self.get("http.response.header.x-id")?.get(0)?.as_str()
    }
}

/// One call in one line, for messages.
pub fn brief(call: &Value) -> String {
    let mut facts = BTreeMap::new();
    for key in ["thread.id", "process.pid", "weir.incomplete", "http.request.body.size", "http.response.body.size"] {
        if let Some(value) = call.get(key) {
            facts.insert(key, value);
        }
    }
    format!(
        "{} {} {} -> {:?} {} {facts:?}",
        call.text("span_kind"),
        call.text("http.request.method"),
        call.path(),
        call.status(),
        call.text("error.type"),
    )
}
