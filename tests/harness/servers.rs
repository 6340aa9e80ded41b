//! Real servers on loopback, each with a log of its own to hold the agent against. All answer the same paths, whose last
//! segment is the call's id and comes back as `X-Id`; see `fixtures/servers`.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::guard::Process;
use super::{PATIENCE, find, free_port, python, wait_until};

/// Bytes of nginx's `/big/ID`.
pub const BIG: usize = 3_000_001;
/// Bytes of nginx's `/text/ID`, before compression.
pub const TEXT: usize = 60_000;

/// One request in a server's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub pid: u32,
    /// 0 where the server does not say.
    pub tid: u32,
    pub method: String,
    pub path: String,
    pub status: u64,
    /// Payload, as the server counts it.
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub id: String,
}

/// What scripted servers are asked for.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Listen on this Unix socket instead of a port.
    pub unix: Option<PathBuf>,
    /// Instead of 127.0.0.1.
    pub host: Option<String>,
    /// Where `/call/ID` asks: `http://HOST:PORT`.
    pub upstream: Option<String>,
}

/// Python's `ThreadingHTTPServer` or Node's `http`.
#[derive(Debug)]
pub struct Scripted {
    process: Process,
    port: u16,
    log: PathBuf,
    _dir: TempDir,
}

/// nginx with two workers.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    port: u16,
    dir: TempDir,
}

impl Scripted {
    /// `None`: there is no Python here.
    pub fn python(script: &Script) -> Option<Self> {
        Some(Self::start(python()?, "echo.py", include_str!("../fixtures/servers/echo.py"), script))
    }

    /// `None`: there is no Node here.
    pub fn node(script: &Script) -> Option<Self> {
        Some(Self::start(&find("node")?, "echo.js", include_str!("../fixtures/servers/echo.js"), script))
    }

    fn start(program: &Path, name: &str, text: &str, script: &Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join(name), dir.path().join("log.jsonl"));
        fs::write(&file, text).unwrap();
        let mut command = Command::new(program);
        command.arg(&file).env("LOG", &log);
        for (name, value) in [
            ("LISTEN_UNIX", script.unix.as_ref().map(|path| path.display().to_string())),
            ("LISTEN_HOST", script.host.clone()),
            ("UPSTREAM", script.upstream.clone()),
        ] {
            command.env_remove(name).envs(value.map(|value| (name, value)));
        }
        let mut process = Process::spawn(&mut command);
        let port = process.wait_for_stdout("ready", PATIENCE).parse().unwrap();
        Self { process, port, log, _dir: dir }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> Vec<Logged> {
        read_log(&self.log)
    }

    /// The log, once it has this many requests.
    pub fn wait_log(&self, count: usize) -> Vec<Logged> {
        wait_log(&self.log, count)
    }
}

impl Nginx {
    /// `None`: there is no nginx here. With `upstream` (`http://HOST:PORT`), `/call/ID` is passed on to it.
    pub fn start(upstream: Option<&str>) -> Option<Self> {
        let program = find("nginx")?;
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("big"), vec![b'b'; BIG]).unwrap();
        let line = "All lines are alike, and so they compress well.\n";
        fs::write(root.join("text"), line.repeat(TEXT / line.len() + 1).get(..TEXT).unwrap()).unwrap();
        let conf = dir.path().join("nginx.conf");
        fs::write(&conf, nginx_conf(dir.path(), port, upstream)).unwrap();
        let mut command = Command::new(program);
        command.arg("-p").arg(dir.path()).arg("-c").arg(&conf).arg("-e").arg(dir.path().join("error.log"));
        let mut process = Process::spawn(&mut command);
        let up = wait_until(
            || {
                let ended = process.wait(Duration::ZERO);
                assert!(ended.is_none(), "nginx: {ended:?} {:#?}", process.stderr());
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            },
            PATIENCE,
        );
        assert!(up, "nginx does not listen");
        Some(Self { process, port, dir })
    }

    /// The master process; requests are served by its workers.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> Vec<Logged> {
        read_log(&self.dir.path().join("access.jsonl"))
    }

    /// The log, once it has this many requests.
    pub fn wait_log(&self, count: usize) -> Vec<Logged> {
        wait_log(&self.dir.path().join("access.jsonl"), count)
    }
}

fn wait_log(path: &Path, count: usize) -> Vec<Logged> {
    assert!(
        wait_until(|| read_log(path).len() >= count, PATIENCE),
        "the server logged {} requests, not {count}",
        read_log(path).len()
    );
    read_log(path)
}

fn read_log(path: &Path) -> Vec<Logged> {
    // nginx logs the bytes of a target as they came.
    let bytes = super::agent::whole_lines(path);
    super::agent::parse_lines(&String::from_utf8_lossy(&bytes)).iter().map(logged).collect()
}

fn logged(line: &Value) -> Logged {
    let number = |key: &str| line.get(key).and_then(Value::as_u64).unwrap_or_default();
    let text = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Logged {
        pid: number("pid") as u32,
        tid: number("tid") as u32,
        method: text("method"),
        path: text("path"),
        status: number("status"),
        request_bytes: number("request_bytes"),
        response_bytes: number("response_bytes"),
        id: text("id"),
    }
}

fn nginx_conf(dir: &Path, port: u16, upstream: Option<&str>) -> String {
    let upstream = upstream.map_or_else(String::new, |url| {
        format!(
            "location /call/ {{
                rewrite ^/call/(.*)$ /id/$1 break;
                proxy_pass {url};
                proxy_http_version 1.1;
                proxy_set_header Connection '';
                proxy_hide_header X-Id;
            }}"
        )
    });
    include_str!("../fixtures/servers/nginx.conf")
        .replace("DIR", &dir.display().to_string())
        .replace("PORT", &port.to_string())
        .replace("#upstream", &upstream)
}
