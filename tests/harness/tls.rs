//! Real servers and clients over TLS, one of each stack that the agent reads: what they are, where they come from, and what
//! they themselves say about the calls they made. Loopback and HTTP/1.1 only; nothing comes from the network at run time.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::{find, wait_until};

pub mod clients;
pub mod forms;
pub mod programs;
pub mod servers;

/// Where the scripts, configurations and sources are.
pub const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tls");
/// Concurrent connections of a plan, and calls on each.
pub const CONNECTIONS: usize = 20;
pub const CALLS_EACH: usize = 10;
/// Bytes of `/bytes/N/ID`: more than one TLS record holds.
pub const BYTES: usize = 20_000;

/// An authority and a certificate of 127.0.0.1 by it; gone when dropped.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// Make them.
    ///
    /// # Errors
    /// There is no openssl here.
    pub fn make() -> Result<Self, String> {
        let openssl = find("openssl").ok_or("no openssl")?;
        let dir = tempfile::tempdir().unwrap();
        let run = |args: &[&str]| {
            let mut command = Command::new(&openssl);
            command.current_dir(dir.path()).args(args);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let authority =
            ["req", "-x509", "-days", "2", "-subj", "/CN=Weir tests", "-keyout", "ca.key", "-out", "ca.pem"];
        run(&[&authority[..], &curve].concat());
        let request = ["req", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request.pem"];
        run(&[&request[..], &curve].concat());
        let names =
            "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n";
        fs::write(dir.path().join("names"), names).unwrap();
        let sign = ["x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        run(&[&sign[..], &["-days", "2", "-extfile", "names", "-out", "certificate.pem"]].concat());
        Ok(Self { dir })
    }

    /// What clients trust.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }
}

/// A call to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub connection: usize,
    pub method: &'static str,
    pub path: String,
    pub status: u64,
    /// Bytes of the request's body.
    pub body: usize,
}

/// The calls that a client makes, each with a path of its own.
#[derive(Clone, Debug)]
pub struct Plan {
    pub calls: Vec<Planned>,
}

impl Plan {
    /// [`CALLS_EACH`] calls on [`CONNECTIONS`] connections; `mixed`: not only GET.
    pub fn new(prefix: &str, mixed: bool) -> Self {
        let mut calls = Vec::new();
        for connection in 0..CONNECTIONS {
            for index in 0..CALLS_EACH {
                let id = format!("{prefix}-{connection}-{index}");
                let (method, path, status, body) = match index % 4 {
                    1 if mixed => ("POST", format!("/id/{id}"), 200, 100),
                    2 => ("GET", format!("/status/404/{id}"), 404, 0),
                    3 => ("GET", format!("/bytes/{BYTES}/{id}"), 200, 0),
                    _ => ("GET", format!("/id/{id}"), 200, 0),
                };
                calls.push(Planned { connection, method, path, status, body });
            }
        }
        Self { calls }
    }

    /// For the clients: with the URL of each call.
    pub(crate) fn write(&self, file: &Path, url: impl Fn(&Planned) -> String) {
        let mut text = String::new();
        for call in &self.calls {
            writeln!(text, "{} {} {} {}", call.connection, call.method, url(call), call.body).unwrap();
        }
        fs::write(file, text).unwrap();
    }

    /// The calls of one connection, in order.
    pub(crate) fn of(&self, connection: usize) -> impl Iterator<Item = &Planned> {
        self.calls.iter().filter(move |call| call.connection == connection)
    }
}

/// One request in a server's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub pid: u32,
    /// The client's port, as the server's socket has it.
    pub peer: u16,
    /// Its own, where it listens on several.
    pub port: Option<u16>,
    pub method: String,
    pub path: String,
    pub status: u64,
}

/// A server's log, once it has `count` requests whose path has `prefix`. `own`: its process, where the log does not say.
pub(crate) fn wait_log(path: &Path, own: u32, prefix: &str, count: usize) -> Vec<Logged> {
    let read = || -> Vec<Logged> {
        let bytes = super::agent::whole_lines(path);
        let lines = super::agent::parse_lines(&String::from_utf8_lossy(&bytes));
        lines.iter().map(|line| logged(line, own)).filter(|entry| entry.path.contains(prefix)).collect()
    };
    let there = wait_until(|| read().len() >= count, super::PATIENCE);
    let log = read();
    assert!(there, "the server logged {} requests of {prefix}, not {count}", log.len());
    log
}

fn logged(line: &Value, own: u32) -> Logged {
    let number = |key: &str| line.get(key).and_then(Value::as_u64);
    let text = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Logged {
        pid: number("pid").map_or(own, |pid| pid as u32),
        peer: number("peer").unwrap_or_default() as u16,
        port: number("port").map(|port| port as u16),
        method: text("method"),
        path: text("path"),
        status: number("status").unwrap_or_default(),
    }
}
