//! Real servers and clients of HTTP/2, in the clear and over TLS, and what they themselves say about the calls they made.
//! Loopback only; nothing comes from the network at run time.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{PipeWriter, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::agent::{Call as _, read_calls};
use super::guard::Process;
use super::tls::programs::{self, go_http2};
use super::tls::{Certificates, Planned};
use super::{PATIENCE, find, free_port, python_with_packages, wait_until};

mod proxy;

/// Where the scripts, configurations and sources are.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/http2");
/// Bytes of `/bytes/N/ID`: more than one frame holds.
pub const BYTES: usize = 20_000;
/// The files that nghttpd serves, by their sizes: nothing, little, and more than the windows of a stream let through at once.
pub const SIZES: [usize; 4] = [0, 10, 6_010, 90_001];

/// A stack in the role of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nghttpd,
    Nginx,
    Go,
    Node,
    /// hypercorn: python-h2 on asyncio.
    Hypercorn,
    Grpcio,
    /// hyper under axum.
    Hyper,
    /// Envoy in front of Node.
    Envoy,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nghttpd => "nghttpd",
            Self::Nginx => "nginx",
            Self::Go => "Go net/http",
            Self::Node => "Node http2",
            Self::Hypercorn => "hypercorn",
            Self::Grpcio => "Python grpcio",
            Self::Hyper => "axum, hyper",
            Self::Envoy => "Envoy",
        }
    }

    /// Where no symbol names the functions of its TLS library: what the path of that file has in it.
    pub fn searched(self) -> Option<&'static str> {
        match self {
            Self::Grpcio => Some("cygrpc"),
            Self::Envoy => Some("envoy"),
            _ => None,
        }
    }
}

/// A stack in the role of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A process a connection.
    H2load,
    /// A process a connection, transfers in parallel.
    Curl,
    Httpx,
    Go,
    Node,
    Grpcio,
    /// hyper under reqwest.
    Reqwest,
    /// curl_cffi: the TLS and the frames of a browser, another for each connection.
    Browser,
    /// Begins with `Upgrade: h2c`; a process a connection.
    CurlUpgrade,
    /// Begins with `Upgrade: h2c`, then makes all calls of a connection at once; a process a connection.
    Nghttp,
    /// Passes on what others call: it is started as [`Kind::Envoy`].
    Envoy,
}

impl Caller {
    pub fn name(self) -> &'static str {
        match self {
            Self::H2load => "h2load",
            Self::Curl | Self::CurlUpgrade => "curl",
            Self::Httpx => "httpx",
            Self::Go => "Go net/http",
            Self::Node => "Node http2",
            Self::Grpcio => "Python grpcio",
            Self::Reqwest => "reqwest, hyper",
            Self::Browser => "curl_cffi as Chrome, Firefox, Safari",
            Self::Nghttp => "nghttp",
            Self::Envoy => "Envoy",
        }
    }

    /// Does it make calls other than GET?
    pub fn is_mixed(self) -> bool {
        !matches!(self, Self::H2load | Self::CurlUpgrade | Self::Nghttp)
    }

    /// Does it ask in HTTP/1.1 to go on in HTTP/2?
    pub fn upgrades(self) -> bool {
        matches!(self, Self::CurlUpgrade | Self::Nghttp)
    }

    /// Where nobody else has its TLS library, which is read once it is mapped: what the path of that file has in it.
    pub fn library(self) -> Option<&'static str> {
        (self == Self::Browser).then_some("curl_cffi")
    }
}

/// Calls of `connections` connections, each with a path of its own; `mixed`: not only GET.
pub fn plan(prefix: &str, connections: usize, each: usize, mixed: bool) -> Vec<Planned> {
    let one = |connection, index| {
        let id = format!("{prefix}-{connection}-{index}");
        let (method, path, status, body) = match (connection + index) % 4 {
            1 if mixed => ("POST", format!("/id/{id}"), 200, 100),
            2 => ("GET", format!("/status/404/{id}"), 404, 0),
            3 => ("GET", format!("/bytes/{BYTES}/{id}"), 200, 0),
            _ => ("GET", format!("/id/{id}"), 200, 0),
        };
        Planned { connection, method, path, status, body }
    };
    (0..connections).flat_map(|connection| (0..each).map(move |index| one(connection, index))).collect()
}

/// Remote procedure calls of each kind, and some that fail.
pub fn rpcs(connections: usize, each: usize) -> Vec<Planned> {
    const NAMES: [&str; 5] = ["Unary", "ServerStream", "ClientStream", "BidiStream", "Missing"];
    let one = |connection, name: &str| {
        let path = format!("/weir.test.Echo/{name}");
        Planned { connection, method: "POST", path, status: 200, body: 0 }
    };
    let all =
        (0..connections).flat_map(|connection| NAMES.iter().cycle().take(each).map(move |name| (connection, name)));
    all.map(|(connection, name)| one(connection, name)).collect()
}

/// One request in a server's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub pid: u32,
    /// The client's port; 0 where the server does not say.
    pub peer: u64,
    pub method: String,
    pub path: String,
    pub status: u64,
    /// What the response bore as `X-Id`.
    pub id: String,
    /// Streams that were open on the connection; 0 where the server does not say.
    pub streams: u64,
}

impl Served {
    fn read(line: &Value, own: u32) -> Self {
        let path = line.text("path").to_owned();
        let last = path.rsplit('/').next().unwrap_or_default().to_owned();
        Self {
            pid: line.number("pid").map_or(own, |pid| pid as u32),
            peer: line.number("peer").unwrap_or_default(),
            method: line.text("method").to_owned(),
            status: line.number("status").unwrap_or_default(),
            id: line.get("id").and_then(Value::as_str).map_or(last, ToOwned::to_owned),
            streams: line.number("streams").unwrap_or_default(),
            path,
        }
    }
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    pub kind: Kind,
    pub encrypted: bool,
    process: Process,
    port: u16,
    dir: TempDir,
    /// What it passes its calls on to.
    backend: Option<Box<Self>>,
}

impl Server {
    /// Start it and wait until it listens.
    ///
    /// # Errors
    /// What it needs is not here.
    pub fn start(kind: Kind, encrypted: bool, certificates: &Certificates) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let python = || python_with_packages().ok_or("no python3 with the tests' packages");
        let fixture = |name: &str| Path::new(FIXTURES).join(name);
        let mut backend = None;
        let (process, port) = match kind {
            Kind::Nghttpd => nghttpd(dir.path(), encrypted, certificates)?,
            Kind::Nginx => nginx(dir.path(), encrypted, certificates)?,
            Kind::Go => scripted(&go_http2()?, &[Path::new("serve")], encrypted, certificates, dir.path()),
            Kind::Node => {
                let node = find("node").ok_or("no node")?;
                scripted(&node, &[&fixture("h2.js"), Path::new("serve")], encrypted, certificates, dir.path())
            }
            Kind::Hypercorn => scripted(python()?, &[&fixture("asgi.py")], encrypted, certificates, dir.path()),
            Kind::Grpcio => {
                scripted(python()?, &[&fixture("rpc.py"), Path::new("serve")], encrypted, certificates, dir.path())
            }
            Kind::Hyper => {
                let first = [Path::new("http2"), Path::new("serve")];
                scripted(&programs::rustls()?, &first, encrypted, certificates, dir.path())
            }
            Kind::Envoy => {
                let behind = Self::start(Kind::Node, encrypted, certificates)?;
                let started = proxy::envoy(dir.path(), encrypted, behind.port, certificates)?;
                backend = Some(Box::new(behind));
                started
            }
        };
        Ok(Self { kind, encrypted, process, port, dir, backend })
    }

    /// What it passes its calls on to: its own calls are served there.
    pub fn backend(&self) -> Option<&Self> {
        self.backend.as_deref()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http{}://127.0.0.1:{}", if self.encrypted { "s" } else { "" }, self.port)
    }

    /// What it says to have answered.
    pub fn log(&self) -> Vec<Served> {
        read_calls(&self.dir.path().join("log.jsonl")).iter().map(|line| Served::read(line, self.pid())).collect()
    }

    /// The requests whose path or id has `prefix`, once there are this many.
    pub fn wait_log(&self, prefix: &str, count: usize) -> Vec<Served> {
        let ours = || -> Vec<_> {
            let all = self.log().into_iter();
            all.filter(|served| served.path.contains(prefix) || served.id.contains(prefix)).collect()
        };
        let there = wait_until(|| ours().len() >= count, PATIENCE);
        let log = ours();
        assert!(there, "{:?} logged {} requests of {prefix}, not {count}", self.kind, log.len());
        log
    }

    /// Bytes of its answer to a path, where they are fixed.
    pub fn size_of(&self, path: &str) -> Option<u64> {
        let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
        match *parts.first()? {
            "bytes" => parts.get(1)?.parse().ok(),
            "status" if self.kind == Kind::Nginx => Some("nothing\n".len() as u64),
            "status" if self.kind == Kind::Hyper => Some(("status \n".len() + parts.get(1)?.len()) as u64),
            "id" | "status" => Some(("hello \n".len() + parts.last()?.len()) as u64),
            _ => None,
        }
    }

    /// It has not ended.
    pub fn assert_lives(&mut self) {
        let ended = self.process.wait(Duration::ZERO);
        assert!(ended.is_none(), "{:?} ended: {ended:?} {:#?}", self.kind, self.process.stderr());
    }
}

/// A program that takes kind, certificate, key and log, and says on which port it listens.
fn scripted(
    program: &Path,
    first: &[&Path],
    encrypted: bool,
    certificates: &Certificates,
    dir: &Path,
) -> (Process, u16) {
    let mut command = Command::new(program);
    command.args(first).arg(if encrypted { "tls" } else { "clear" });
    command.arg(certificates.certificate()).arg(certificates.key()).arg(dir.join("log.jsonl"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("GRPC_VERBOSITY", "ERROR");
    let mut process = Process::spawn(&mut command);
    let port = process.wait_for_stdout("ready", PATIENCE).parse().unwrap();
    (process, port)
}

fn nghttpd(dir: &Path, encrypted: bool, certificates: &Certificates) -> Result<(Process, u16), String> {
    let program = find("nghttpd").ok_or("no nghttpd")?;
    let port = free_port();
    let mut command = Command::new(program);
    command.args(["--address", "127.0.0.1", "--htdocs"]).arg(dir);
    if encrypted {
        command.arg(port.to_string()).arg(certificates.key()).arg(certificates.certificate());
    } else {
        command.args(["--no-tls", &port.to_string()]);
    }
    Ok((listening(&mut command, port), port))
}

fn nginx(dir: &Path, encrypted: bool, certificates: &Certificates) -> Result<(Process, u16), String> {
    let program = find("nginx").ok_or("no nginx")?;
    fs::create_dir(dir.join("root")).unwrap();
    fs::write(dir.join("root/bytes"), vec![b'x'; BYTES]).unwrap();
    let port = free_port();
    let mut text = fs::read_to_string(Path::new(FIXTURES).join("nginx.conf")).unwrap();
    let ssl = if encrypted { " ssl" } else { "" };
    text = text.replace("LISTEN", &format!("listen 127.0.0.1:{port}{ssl} http2 backlog=1024;"));
    let (key, certificate) = (certificates.key(), certificates.certificate());
    for (word, path) in [("PRIVATE_KEY", key.as_path()), ("CERTIFICATE", &certificate), ("DIR", dir)] {
        text = text.replace(word, &path.display().to_string());
    }
    let conf = dir.join("nginx.conf");
    fs::write(&conf, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-p").arg(dir).arg("-c").arg(&conf).arg("-e").arg(dir.join("error.log"));
    Ok((listening(&mut command, port), port))
}

fn listening(command: &mut Command, port: u16) -> Process {
    let mut process = Process::spawn(command);
    let up = || {
        let ended = process.wait(Duration::ZERO);
        assert!(ended.is_none(), "{command:?}: {ended:?} {:#?}", process.stderr());
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    };
    assert!(wait_until(up, PATIENCE), "{command:?} does not listen");
    process
}

impl Server {
    /// Files for nghttpd to serve: one of each of [`SIZES`]. Their paths.
    pub fn files(&self, prefix: &str) -> Vec<String> {
        fs::create_dir_all(self.dir.path().join(prefix)).unwrap();
        let write = |size: &usize| {
            let path = format!("/{prefix}/{size}");
            fs::write(self.dir.path().join(&path[1..]), vec![b'x'; *size]).unwrap();
            path
        };
        SIZES.iter().map(write).collect()
    }
}

/// A client that is ready; its processes are killed when dropped.
#[derive(Debug)]
pub struct Client {
    driver: Driver,
    calls: Vec<Planned>,
    /// Ids of its processes by connection.
    pids: HashMap<usize, u32>,
    _dir: TempDir,
}

#[derive(Debug)]
enum Driver {
    /// One process for all connections, which waits for a line.
    One { process: Process, go: PipeWriter },
    /// One process for each connection.
    Many(Vec<(usize, Command)>),
}

impl Client {
    /// Start it; it makes no call yet. `streams`: how many at a time on a connection.
    ///
    /// # Errors
    /// What it needs is not here.
    pub fn start(
        caller: Caller,
        server: &Server,
        calls: &[Planned],
        streams: usize,
        certificates: &Certificates,
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let streams = streams.to_string();
        let driver = match caller {
            Caller::H2load => {
                let program = find("h2load").ok_or("no h2load")?;
                each(calls, |connection, calls| {
                    let list = dir.path().join(connection.to_string());
                    let uris: Vec<_> = calls.iter().map(|call| format!("{}{}\n", server.url(), call.path)).collect();
                    fs::write(&list, uris.concat()).unwrap();
                    let mut command = Command::new(&program);
                    command.args(["-c", "1", "-m", &streams, "-n", &calls.len().to_string(), "-i"]).arg(list);
                    command
                })
            }
            Caller::Curl => {
                let program = find("curl").ok_or("no curl")?;
                let version = if server.encrypted { "--http2" } else { "--http2-prior-knowledge" };
                each(calls, |_, calls| curl(&program, version, server, calls, &streams, certificates))
            }
            Caller::CurlUpgrade => {
                let program = find("curl").ok_or("no curl")?;
                each(calls, |_, calls| curl(&program, "--http2", server, calls, "1", certificates))
            }
            Caller::Nghttp => {
                let program = find("nghttp").ok_or("no nghttp")?;
                each(calls, |_, calls| {
                    let mut command = Command::new(&program);
                    command.args(["--upgrade", "--null-out", "--timeout=20"]);
                    command.args(calls.iter().map(|call| format!("{}{}", server.url(), call.path)));
                    command
                })
            }
            Caller::Envoy => return Err("it calls nobody by itself".to_owned()),
            Caller::Httpx | Caller::Go | Caller::Node | Caller::Grpcio | Caller::Reqwest | Caller::Browser => {
                let file = dir.path().join("plan");
                let mut text = String::new();
                for call in calls {
                    let url = server.url() + &call.path;
                    writeln!(text, "{} {} {url} {}", call.connection, call.method, call.body).unwrap();
                }
                fs::write(&file, text).unwrap();
                let mut command = scripted_caller(caller, "call")?;
                command.arg(&file).arg(certificates.authority()).arg(&streams);
                let (process, go) = waiting(command);
                Driver::One { process, go }
            }
        };
        Ok(Self { driver, calls: calls.to_vec(), pids: HashMap::new(), _dir: dir })
    }

    /// Make all calls. Panics when one is not answered, or wrongly.
    pub fn run(&mut self) {
        match &mut self.driver {
            Driver::One { process, go } => {
                go.write_all(b"go\n").unwrap();
                let answered = process.wait_for_stdout("answered", PATIENCE);
                assert_eq!(answered, self.calls.len().to_string(), "{:#?}", process.stderr());
                self.pids.extend(self.calls.iter().map(|call| (call.connection, process.pid())));
            }
            Driver::Many(commands) => {
                let processes: Vec<_> =
                    commands.iter_mut().map(|(connection, command)| (*connection, Process::spawn(command))).collect();
                for (connection, mut process) in processes {
                    let status = process.wait(PATIENCE).expect("it does not end");
                    assert!(status.success(), "{status} {:#?}", process.stderr());
                    self.pids.insert(connection, process.pid());
                }
            }
        }
    }

    /// The process that made the calls of a connection.
    pub fn pid_of(&self, connection: usize) -> Option<u32> {
        self.pids.get(&connection).copied()
    }
}

/// A process for the calls of each connection.
fn each(calls: &[Planned], command: impl Fn(usize, &[&Planned]) -> Command) -> Driver {
    let connections = calls.iter().map(|call| call.connection + 1).max().unwrap_or(0);
    let of = |number| calls.iter().filter(|call| call.connection == number).collect::<Vec<_>>();
    Driver::Many((0..connections).map(|number| (number, command(number, &of(number)))).collect())
}

fn curl(
    program: &Path,
    version: &str,
    server: &Server,
    calls: &[&Planned],
    streams: &str,
    certificates: &Certificates,
) -> Command {
    let mut command = Command::new(program);
    if streams != "1" {
        command.args(["--parallel", "--parallel-max", streams]);
    }
    for (index, call) in calls.iter().enumerate() {
        if index > 0 {
            command.arg("--next");
        }
        // Most options are one transfer's.
        command
            .args([version, "--silent", "--show-error", "--max-time", "20", "--output", "/dev/null", "--cacert"])
            .arg(certificates.authority());
        if call.body > 0 {
            command.args(["--data-binary", &"b".repeat(call.body)]);
        }
        command.args(["--request", call.method]).arg(format!("{}{}", server.url(), call.path));
    }
    command
}

fn scripted_caller(caller: Caller, mode: &str) -> Result<Command, String> {
    let python = || python_with_packages().ok_or("no python3 with the tests' packages");
    let fixture = |name: &str| Path::new(FIXTURES).join(name);
    let (program, script): (PathBuf, Option<PathBuf>) = match caller {
        Caller::Go => (go_http2()?, None),
        Caller::Reqwest => (programs::rustls()?, Some("http2".into())),
        Caller::Node => (find("node").ok_or("no node")?, Some(fixture("h2.js"))),
        Caller::Httpx => (python()?.clone(), Some(fixture("by_httpx.py"))),
        Caller::Grpcio => (python()?.clone(), Some(fixture("rpc.py"))),
        Caller::Browser => (python()?.clone(), Some(fixture("by_browser.py"))),
        Caller::H2load | Caller::Curl | Caller::CurlUpgrade | Caller::Nghttp | Caller::Envoy => {
            return Err("it is no program of ours".to_owned());
        }
    };
    let mut command = Command::new(program);
    command.args(script).arg(mode).env("PYTHONDONTWRITEBYTECODE", "1").env("GRPC_VERBOSITY", "ERROR");
    Ok(command)
}

/// Start a program that says that it is ready and then waits for its standard input.
fn waiting(mut command: Command) -> (Process, PipeWriter) {
    let (input, go) = std::io::pipe().unwrap();
    let mut process = Process::spawn(command.stdin(input));
    process.wait_for_stdout("ready", PATIENCE);
    (process, go)
}

/// One connection on which calls are made without end, some at a time; their ids are `PREFIX-NUMBER`.
#[derive(Debug)]
pub struct Load {
    process: Process,
    input: Option<PipeWriter>,
}

impl Load {
    /// Start it and wait until its connection has been used.
    ///
    /// # Errors
    /// What it needs is not here.
    pub fn start(
        caller: Caller,
        server: &Server,
        prefix: &str,
        streams: usize,
        certificates: &Certificates,
    ) -> Result<Self, String> {
        let mut command = scripted_caller(caller, "load")?;
        command.arg(server.url()).arg(certificates.authority()).arg(streams.to_string()).arg(prefix);
        let (process, input) = waiting(command);
        Ok(Self { process, input: Some(input) })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stop; how many calls were answered. Panics when one was not.
    pub fn stop(mut self) -> u64 {
        self.input = None;
        self.process.wait_for_stdout("answered", PATIENCE).parse().unwrap()
    }
}
