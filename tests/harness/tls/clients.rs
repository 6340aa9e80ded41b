//! Clients over TLS: each makes the calls of a plan on connections kept alive, and checks every response itself.

use std::collections::HashMap;
use std::fs;
use std::io::{PipeWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use tempfile::TempDir;

use super::programs::{self, Go, version_of};
use super::servers::{self, Server};
use super::{Certificates, FIXTURES, Plan, Planned};
use crate::harness::client::Http;
use crate::harness::guard::Process;
use crate::harness::{PATIENCE, find, python, python_with_packages};

/// A stack in the role of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// requests: urllib3 and `ssl` over sockets.
    Requests,
    /// aiohttp on asyncio: the library sees memory only.
    Aiohttp,
    /// One process a connection.
    Curl,
    /// `https.request` with an agent that keeps alive.
    NodeAgent,
    NodeFetch,
    Go(Go),
    /// One process a connection.
    Wget,
    /// libcurl over GnuTLS, in a Python process.
    CurlGnutls,
    /// reqwest over rustls.
    Reqwest,
    /// Envoy as a client of a server over TLS, driven by clients in the clear.
    Envoy,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Aiohttp => "aiohttp, asyncio",
            Self::Curl => "curl",
            Self::NodeAgent => "Node https",
            Self::NodeFetch => "Node fetch",
            Self::Go(Go::Current | Go::Distribution) => "Go net/http",
            Self::Go(Go::Stripped) => "Go net/http, -s -w",
            Self::Wget => "wget",
            Self::CurlGnutls => "libcurl, GnuTLS",
            Self::Reqwest => "reqwest, rustls",
            Self::Envoy => "Envoy",
        }
    }

    /// What `weir.capture.backend` has to be.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Requests | Self::Aiohttp | Self::Curl | Self::NodeAgent | Self::NodeFetch => "openssl",
            Self::Go(_) => "go",
            Self::Wget | Self::CurlGnutls => "gnutls",
            Self::Reqwest => "rustls",
            Self::Envoy => "boringssl",
        }
    }

    /// Of the TLS library where the program tells it, else of the program.
    pub fn version(self) -> String {
        let word = |program: &str, args: &[&str], word: usize| {
            let text = find(program).map_or_else(String::new, |program| version_of(&program, args));
            text.split(' ').nth(word).unwrap_or_default().to_owned()
        };
        match self {
            Self::Requests | Self::Aiohttp => {
                python_with_packages().map_or_else(String::new, |p| servers::openssl_of(p))
            }
            // curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1 OpenSSL/3.0.19 ..
            Self::Curl => word("curl", &["--version"], 4).trim_start_matches("OpenSSL/").to_owned(),
            Self::NodeAgent | Self::NodeFetch => servers::node_version(),
            Self::Go(go) => go.version(),
            Self::Wget => word("wget", &["--version"], 2),
            Self::CurlGnutls => gnutls_version(),
            Self::Reqwest => programs::rustls_version(),
            Self::Envoy => servers::envoy_version(),
        }
    }

    /// Can it be there before the agent is? A process for each connection cannot.
    pub fn lives_long(self) -> bool {
        !matches!(self, Self::Curl | Self::Wget)
    }

    /// Does it make calls other than GET?
    pub fn is_mixed(self) -> bool {
        self != Self::Wget
    }
}

const LIBCURL_GNUTLS: &str = "libcurl-gnutls.so.4";

fn gnutls_version() -> String {
    let script = format!(
        "import ctypes; c = ctypes.CDLL('{LIBCURL_GNUTLS}'); c.curl_version.restype = ctypes.c_char_p; \
         print(c.curl_version().decode())"
    );
    let text = python().map_or_else(String::new, |python| version_of(python, &["-c", &script]));
    let found = text.split(' ').find_map(|word| word.strip_prefix("GnuTLS/"));
    found.unwrap_or_default().to_owned()
}

/// A client that is ready; its processes are killed when dropped.
#[derive(Debug)]
pub struct Client {
    plan: Plan,
    driver: Driver,
    /// Ids of its processes by path, known once it made its calls.
    pids: HashMap<String, u32>,
    _dir: TempDir,
}

#[derive(Debug)]
enum Driver {
    /// One process for all connections, which waits for a line.
    One { process: Process, go: PipeWriter },
    /// One process for each connection.
    Many(Vec<Command>),
    /// Calls in the clear to this port; a process of this id passes them on.
    Proxy { port: u16, pid: u32 },
}

impl Client {
    /// Start it; it makes no call yet unless `warm`: then one on each connection, `/id/warm-CONNECTION`.
    ///
    /// # Errors
    /// What it needs is not here.
    pub fn start(
        kind: Kind,
        server: &Server,
        plan: &Plan,
        certificates: &Certificates,
        warm: bool,
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plan");
        let url = |call: &Planned| format!("{}{}", server.url_of(call.connection), call.path);
        plan.write(&file, url);
        let fixture = |name: &str| Path::new(FIXTURES).join(name);
        let python = || python_with_packages().ok_or("no python3 with the tests' packages");
        let one = |program: &Path, first: &[&Path]| -> Result<Driver, String> {
            let mut command = Command::new(program);
            command.args(first).arg(&file).arg(certificates.authority());
            command.args(warm.then_some("warm")).env("PYTHONDONTWRITEBYTECODE", "1");
            command.env("NODE_EXTRA_CA_CERTS", certificates.authority()).env("LIBCURL", LIBCURL_GNUTLS);
            let (input, go) = std::io::pipe().unwrap();
            let mut process = Process::spawn(command.stdin(input));
            process.wait_for_stdout("ready", PATIENCE);
            Ok(Driver::One { process, go })
        };
        let many = |program: &str, arguments: &dyn Fn(&mut Command, &str, &mut dyn Iterator<Item = &Planned>)| {
            let program = find(program).ok_or_else(|| format!("no {program}"))?;
            let connections = plan.calls.iter().map(|call| call.connection + 1).max().unwrap_or(0);
            let command = |connection| {
                let mut command = Command::new(&program);
                arguments(&mut command, &server.url_of(connection), &mut plan.of(connection));
                command
            };
            Ok::<_, String>(Driver::Many((0..connections).map(command).collect()))
        };
        let driver = match kind {
            Kind::Requests => one(python()?, &[&fixture("by_requests.py")])?,
            Kind::Aiohttp => one(python()?, &[&fixture("by_aiohttp.py")])?,
            Kind::NodeAgent => one(&find("node").ok_or("no node")?, &[&fixture("https.js"), Path::new("call")])?,
            Kind::NodeFetch => one(&find("node").ok_or("no node")?, &[&fixture("https.js"), Path::new("fetch")])?,
            Kind::Go(go) => one(&go.program()?, &[Path::new("call")])?,
            Kind::Reqwest => one(&programs::rustls()?, &[Path::new("call")])?,
            Kind::CurlGnutls => {
                let python = super::super::python().ok_or("no python3")?;
                if gnutls_version().is_empty() {
                    return Err(format!("no {LIBCURL_GNUTLS}"));
                }
                one(python, &[&fixture("by_libcurl.py")])?
            }
            Kind::Curl => many("curl", &|command, url, calls| curl(command, url, certificates, calls))?,
            Kind::Wget => many("wget", &|command, url, calls| wget(command, url, certificates, calls))?,
            Kind::Envoy => Driver::Proxy { port: server.plain_port(), pid: server.pid() },
        };
        Ok(Self { plan: plan.clone(), driver, pids: HashMap::new(), _dir: dir })
    }

    /// The id of its process, when it has one already.
    pub fn pid(&self) -> Option<u32> {
        match &self.driver {
            Driver::One { process, .. } => Some(process.pid()),
            Driver::Many(_) => None,
            Driver::Proxy { pid, .. } => Some(*pid),
        }
    }

    /// Make all calls. Panics when one is not answered, or wrongly.
    pub fn run(&mut self) {
        let plan = &self.plan;
        let of_one = |pid: u32| plan.calls.iter().map(|call| (call.path.clone(), pid)).collect();
        self.pids = match &mut self.driver {
            Driver::One { process, go } => {
                go.write_all(b"go\n").unwrap();
                let answered = process.wait_for_stdout("answered", PATIENCE);
                assert_eq!(answered, plan.calls.len().to_string(), "{:#?}", process.stderr());
                of_one(process.pid())
            }
            Driver::Many(commands) => {
                let processes: Vec<_> = commands.iter_mut().map(Process::spawn).collect();
                let mut pids = HashMap::new();
                for (connection, mut process) in processes.into_iter().enumerate() {
                    let status = process.wait(PATIENCE).expect("it does not end");
                    // wget's for a response of status 404.
                    let good = status.success() || status.code() == Some(8);
                    assert!(good, "{status} {:#?}", process.stderr());
                    pids.extend(plan.of(connection).map(|call| (call.path.clone(), process.pid())));
                }
                pids
            }
            Driver::Proxy { port, pid } => {
                let port = *port;
                thread::scope(|scope| {
                    for connection in 0..super::CONNECTIONS {
                        scope.spawn(move || {
                            let mut http = Http::tcp(("127.0.0.1", port));
                            for call in plan.of(connection) {
                                let response = http.request(call.method, &call.path, &[], &vec![b'b'; call.body]);
                                assert_eq!(u64::from(response.status), call.status, "{}", call.path);
                            }
                        });
                    }
                });
                of_one(*pid)
            }
        };
    }

    /// Which process made the call of this path.
    pub fn pid_of(&self, path: &str) -> Option<u32> {
        self.pids.get(path).copied()
    }
}

fn curl(command: &mut Command, url: &str, certificates: &Certificates, calls: &mut dyn Iterator<Item = &Planned>) {
    for (index, call) in calls.enumerate() {
        if index > 0 {
            command.arg("--next");
        }
        // Most options are one transfer's.
        command.args(["--silent", "--show-error", "--http1.1", "--max-time", "20", "--output", "/dev/null"]);
        command.arg("--cacert").arg(certificates.authority());
        if call.body > 0 {
            command.args(["--data-binary", &"b".repeat(call.body)]);
        }
        command.args(["--request", call.method]).arg(format!("{url}{}", call.path));
    }
}

fn wget(command: &mut Command, url: &str, certificates: &Certificates, calls: &mut dyn Iterator<Item = &Planned>) {
    command.args(["--quiet", "--no-hsts", "--no-config", "--no-proxy", "--tries=1", "--timeout=20", "-O", "/dev/null"]);
    command.arg("--ca-certificate").arg(certificates.authority());
    command.args(calls.map(|call| format!("{url}{}", call.path)));
}

/// Calls without end on connections kept alive, by Go's client; see `main.go`.
#[derive(Debug)]
pub struct Load {
    process: Process,
    input: Option<PipeWriter>,
}

impl Load {
    /// # Errors
    /// Go is not here.
    pub fn start(url: &str, certificates: &Certificates, connections: usize) -> Result<Self, String> {
        let program: PathBuf = Go::Current.program()?;
        let (reader, input) = std::io::pipe().unwrap();
        let mut command = Command::new(program);
        command.args(["load", url]).arg(certificates.authority()).arg(connections.to_string()).stdin(reader);
        let mut process = Process::spawn(&mut command);
        process.wait_for_stdout("ready", PATIENCE);
        Ok(Self { process, input: Some(input) })
    }

    /// Stop; how many calls were answered. Panics when one was not.
    pub fn stop(mut self) -> u64 {
        self.input = None;
        let answered = self.process.wait_for_stdout("answered", PATIENCE);
        answered.parse().unwrap()
    }
}

/// One call by a curl of its own; its process and how it ended.
pub fn curl_once(url: &str, path: &str, certificates: &Certificates) -> (u32, bool) {
    let program = find("curl").expect("curl");
    let call = Planned { connection: 0, method: "GET", path: path.to_owned(), status: 200, body: 0 };
    let mut command = Command::new(program);
    curl(&mut command, url, certificates, &mut std::iter::once(&call));
    let mut child = command.spawn().unwrap();
    (child.id(), child.wait().unwrap().success())
}

/// Give `program` this name in `dir`, for a test that replaces it.
pub fn copy_into(dir: &Path, program: &Path) -> PathBuf {
    let to = dir.join(program.file_name().unwrap());
    fs::copy(program, &to).unwrap();
    to
}
