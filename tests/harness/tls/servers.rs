//! Servers over TLS. All answer the same paths, whose last segment is the call's id and comes back as `X-Id`, and log each
//! request with the port it came from.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::programs::{self, Go, version_of};
use super::{BYTES, CONNECTIONS, Certificates, FIXTURES, Logged};
use crate::harness::guard::Process;
use crate::harness::{PATIENCE, find, python, python_with_packages, wait_until};

/// A stack in the role of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Python's `ssl` over sockets, a thread a connection.
    PythonBlocking,
    /// uvicorn on asyncio: the library sees memory only.
    Uvicorn,
    Nginx,
    Node,
    Go(Go),
    /// axum over tokio-rustls.
    Rustls,
    /// The same program without symbols.
    RustlsStripped,
    /// Envoy in front of a server in the clear.
    Envoy,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::PythonBlocking => "Python ssl, threads",
            Self::Uvicorn => "uvicorn, asyncio",
            Self::Nginx => "nginx",
            Self::Node => "Node https",
            Self::Go(Go::Current | Go::Distribution) => "Go net/http",
            Self::Go(Go::Stripped) => "Go net/http, -s -w",
            Self::Rustls => "axum, rustls",
            Self::RustlsStripped => "axum, rustls, stripped",
            Self::Envoy => "Envoy",
        }
    }

    /// What `weir.capture.backend` has to be.
    pub fn backend(self) -> &'static str {
        match self {
            Self::PythonBlocking | Self::Uvicorn | Self::Nginx | Self::Node => "openssl",
            Self::Go(_) => "go",
            Self::Rustls | Self::RustlsStripped => "rustls",
            Self::Envoy => "boringssl",
        }
    }

    /// Of the TLS library where it has one of its own, else of the program.
    pub fn version(self) -> String {
        match self {
            Self::PythonBlocking => python().map_or_else(String::new, |python| openssl_of(python)),
            Self::Uvicorn => python_with_packages().map_or_else(String::new, |python| openssl_of(python)),
            Self::Nginx => "nginx's OpenSSL".to_owned(),
            Self::Node => node_version(),
            Self::Go(go) => go.version(),
            Self::Rustls | Self::RustlsStripped => programs::rustls_version(),
            Self::Envoy => envoy_version(),
        }
    }
}

pub(super) fn openssl_of(python: &Path) -> String {
    let text = version_of(python, &["-c", "import ssl; print(ssl.OPENSSL_VERSION)"]);
    text.split(' ').nth(1).unwrap_or_default().to_owned()
}

pub(super) fn node_version() -> String {
    find("node").map_or_else(String::new, |node| {
        version_of(&node, &["-p", "process.versions.node + ', ' + process.versions.openssl"])
    })
}

pub(super) fn envoy_version() -> String {
    let text = programs::envoy().map_or_else(|_| String::new(), |envoy| version_of(&envoy, &["--version"]));
    // .. version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL
    text.rsplit("version: ").next().and_then(|rest| rest.split('/').nth(1)).unwrap_or_default().to_owned()
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
    /// Where it speaks TLS.
    ports: Vec<u16>,
    plain_port: u16,
    log: PathBuf,
    dir: TempDir,
    /// What it passes its calls on to.
    backend: Option<Box<Self>>,
}

impl Server {
    /// Start it and wait until it listens.
    ///
    /// # Errors
    /// What it needs is not here.
    pub fn start(kind: Kind, certificates: &Certificates) -> Result<Self, String> {
        let fixture = |name: &str| Path::new(FIXTURES).join(name);
        let scripted =
            |program: &Path, args: &[&Path]| Ok(Self::scripted(Command::new(program).args(args), certificates));
        let serve = Path::new("serve");
        match kind {
            Kind::PythonBlocking => scripted(python().ok_or("no python3")?, &[&fixture("blocking.py")]),
            Kind::Uvicorn => scripted(python_with_packages().ok_or("no python3 with uvicorn")?, &[&fixture("asgi.py")]),
            Kind::Nginx => Self::nginx(certificates),
            Kind::Node => scripted(&find("node").ok_or("no node")?, &[&fixture("https.js"), serve]),
            Kind::Go(go) => scripted(&go.program()?, &[serve]),
            Kind::Rustls => scripted(&programs::rustls()?, &[serve]),
            Kind::RustlsStripped => scripted(&programs::rustls_stripped()?, &[serve]),
            Kind::Envoy => Self::envoy(certificates),
        }
    }

    /// A program that takes certificate, key and log, and says on which port it listens.
    pub fn scripted(command: &mut Command, certificates: &Certificates) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.jsonl");
        command.arg(certificates.certificate()).arg(certificates.key()).arg(&log);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let mut process = Process::spawn(command);
        let port = process.wait_for_stdout("ready", PATIENCE).parse().unwrap();
        Self { process, ports: vec![port], plain_port: 0, log, dir, backend: None }
    }

    fn nginx(certificates: &Certificates) -> Result<Self, String> {
        let program = find("nginx").ok_or("no nginx")?;
        let dir = tempfile::tempdir().unwrap();
        let mut ports = free_ports(CONNECTIONS + 1);
        let plain_port = ports.pop().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("root/bytes"), vec![b'x'; BYTES]).unwrap();
        let listen: Vec<_> = ports.iter().map(|port| format!("listen 127.0.0.1:{port} ssl backlog=1024;")).collect();
        let text = filled("nginx.conf", dir.path(), certificates, &[("PLAIN_PORT", plain_port)]);
        let text = text.replace("LISTEN", &listen.join("\n        "));
        let conf = dir.path().join("nginx.conf");
        fs::write(&conf, text).unwrap();
        let mut command = Command::new(program);
        command.arg("-p").arg(dir.path()).arg("-c").arg(&conf).arg("-e").arg(dir.path().join("error.log"));
        let process = listening(&mut command, ports[0]);
        Ok(Self { process, ports, plain_port, log: dir.path().join("access.jsonl"), dir, backend: None })
    }

    fn envoy(certificates: &Certificates) -> Result<Self, String> {
        let program = programs::envoy()?;
        let backend = Self::nginx(certificates)?;
        let dir = tempfile::tempdir().unwrap();
        let [port, plain_port] = free_ports(2)[..] else { unreachable!() };
        let ports = [("TLS_PORT", port), ("PLAIN_PORT", plain_port), ("BACKEND_PLAIN", backend.plain_port)];
        let conf = dir.path().join("envoy.yaml");
        let endpoint = |port: &u16| {
            format!("- endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}")
        };
        let endpoints: Vec<_> = backend.ports.iter().map(endpoint).collect();
        let text = filled("envoy.yaml", dir.path(), certificates, &ports);
        fs::write(&conf, text.replace("# ENDPOINTS", &endpoints.join("\n              "))).unwrap();
        let mut command = Command::new(program);
        command.arg("-c").arg(&conf).args(["--concurrency", "2", "--disable-hot-restart", "--log-level", "error"]);
        command.args(["--file-flush-interval-msec", "50"]);
        let process = listening(&mut command, port);
        Ok(Self {
            process,
            ports: vec![port],
            plain_port,
            log: dir.path().join("access.jsonl"),
            dir,
            backend: Some(Box::new(backend)),
        })
    }

    /// That of the process that was started; nginx serves from its workers.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where it speaks TLS.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Where the calls of one connection go: nginx has a port for each, so that a client's peers can be told apart.
    pub fn url_of(&self, connection: usize) -> String {
        format!("https://127.0.0.1:{}", self.ports[connection % self.ports.len()])
    }

    /// Where it takes calls in the clear, of those that do.
    pub fn plain_port(&self) -> u16 {
        self.plain_port
    }

    /// What Envoy passes calls on to: its own calls over TLS are served there.
    pub fn backend(&self) -> Option<&Self> {
        self.backend.as_deref()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.url_of(0)
    }

    /// The log of requests whose path has `prefix`, once there are this many.
    pub fn wait_log(&self, prefix: &str, count: usize) -> Vec<Logged> {
        super::wait_log(&self.log, self.pid(), prefix, count)
    }

    /// It runs, and has not said anything on its standard error.
    pub fn assert_sound(&mut self) {
        let ended = self.process.wait(Duration::ZERO);
        assert!(ended.is_none(), "the server ended: {ended:?} {:#?}", self.process.stderr());
    }
}

/// Ports of 127.0.0.1 that nobody listens on now, each another.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn listening(command: &mut Command, port: u16) -> Process {
    let mut process = Process::spawn(command);
    let up = wait_until(
        || {
            let ended = process.wait(Duration::ZERO);
            assert!(ended.is_none(), "{command:?}: {ended:?} {:#?}", process.stderr());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        },
        PATIENCE,
    );
    assert!(up, "{command:?} does not listen: {:#?}", process.stderr());
    process
}

/// A configuration with our paths and ports in it.
fn filled(name: &str, dir: &Path, certificates: &Certificates, ports: &[(&str, u16)]) -> String {
    let mut text = fs::read_to_string(Path::new(FIXTURES).join(name)).unwrap();
    for (word, port) in ports {
        text = text.replace(word, &port.to_string());
    }
    let log = dir.join("access.jsonl");
    for (word, path) in [
        ("LOG", log.as_path()),
        ("AUTHORITY", &certificates.authority()),
        ("PRIVATE_KEY", &certificates.key()),
        ("CERTIFICATE", &certificates.certificate()),
        ("DIR", dir),
    ] {
        text = text.replace(word, &path.display().to_string());
    }
    text
}
