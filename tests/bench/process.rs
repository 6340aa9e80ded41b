//! Servers and agents that a measurement starts: found, waited for, measured from outside, and ended.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weir_tests::harness::{PATIENCE, find, free_port, wait_until};

use crate::driver::pin;

/// A process of ours; it ends with the value.
pub(crate) struct Running(Child);

/// A server on loopback.
pub(crate) struct Server {
    process: Running,
    pub(crate) port: u16,
    /// Another process of it serves.
    has_worker: bool,
    _dir: tempfile::TempDir,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// CPU time of all its threads so far, seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.pid())
    }

    /// A memory figure of `/proc/PID/status`, KiB.
    pub(crate) fn memory_kib(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse().context("not a number")
    }

    /// Ask it to end, and wait.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM)?;
        let mut status = None;
        wait_until(
            || {
                status = self.0.try_wait().ok().flatten();
                status.is_some()
            },
            PATIENCE,
        );
        ensure!(status.is_some_and(|status| status.success()), "ended with {status:?}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already is as good.
        _ = kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM);
        if !wait_until(|| matches!(self.0.try_wait(), Ok(Some(_))), Duration::from_secs(6)) {
            _ = self.0.kill();
            _ = self.0.wait();
        }
    }
}

/// CPU time of all threads of a process so far, seconds: nanoseconds from the scheduler, not ticks.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let nanoseconds: f64 = text.split(' ').next().unwrap_or_default().parse()?;
        sum += nanoseconds / 1e9;
    }
    Ok(sum)
}

/// The agent's program: `WEIR_BIN`, else the release build.
pub(crate) fn weir() -> Result<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/weir");
    let path = PathBuf::from(std::env::var("WEIR_BIN").unwrap_or_else(|_| default.to_owned()));
    ensure!(path.is_file(), "{} is not there: cargo xtask build --release", path.display());
    Ok(path)
}

/// Start the agent and wait until it says this.
pub(crate) fn agent(arguments: &[&str], ready: &str) -> Result<Running> {
    let mut child = Command::new(weir()?)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the agent")?;
    let stderr = child.stderr.take().context("no pipe")?;
    let running = Running(child);
    let mut lines = BufReader::new(stderr).lines();
    let mut said = String::new();
    for line in lines.by_ref() {
        let line = line?;
        if line.contains(ready) {
            // Read on, or the agent would block on its log.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(running);
        }
        said += &line;
        said.push('\n');
    }
    bail!("the agent ended:\n{said}")
}

/// Files of a server's own.
struct Certificate {
    key: PathBuf,
    certificate: PathBuf,
}

/// Make them in a directory.
fn certificate(dir: &Path) -> Result<Certificate> {
    let made = Certificate { key: dir.join("key.pem"), certificate: dir.join("certificate.pem") };
    let status = Command::new(find("openssl").context("openssl is not installed")?)
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout"])
        .arg(&made.key)
        .arg("-out")
        .arg(&made.certificate)
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "openssl made no certificate");
    Ok(made)
}

impl Certificate {
    fn for_nginx(&self) -> String {
        format!("ssl_certificate {}; ssl_certificate_key {};", self.certificate.display(), self.key.display())
    }
}

impl Server {
    /// nginx with one worker, kept on one CPU, that answers `/item` with 600 bytes of JSON.
    pub(crate) fn nginx(cpu: usize) -> Result<Self> {
        Self::nginx_at(cpu, tempfile::tempdir()?, "", "")
    }

    /// The same over TLS, with a certificate of its own.
    pub(crate) fn nginx_tls(cpu: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let files = certificate(dir.path())?.for_nginx();
        Self::nginx_at(cpu, dir, " ssl", &files)
    }

    /// The same over HTTP/2, which clients in the clear have to know before.
    pub(crate) fn nginx_http2(cpu: usize, encrypted: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        if !encrypted {
            return Self::nginx_at(cpu, dir, " http2", "");
        }
        let files = certificate(dir.path())?.for_nginx();
        Self::nginx_at(cpu, dir, " ssl http2", &files)
    }

    /// nghttpd, kept on one CPU, with a file of that size and name.
    pub(crate) fn nghttpd(cpu: usize, encrypted: bool) -> Result<Self> {
        let program = find("nghttpd").context("nghttpd is not installed")?;
        let (dir, port) = (tempfile::tempdir()?, free_port());
        fs::write(dir.path().join("item"), "x".repeat(600))?;
        let mut command = Command::new(program);
        command.args(["--address", "127.0.0.1", "--htdocs"]).arg(dir.path());
        if encrypted {
            let certificate = certificate(dir.path())?;
            command.arg(port.to_string()).arg(certificate.key).arg(certificate.certificate);
        } else {
            command.args(["--no-tls", &port.to_string()]);
        }
        let child = command.stdout(Stdio::null()).spawn()?;
        let server = Self::up(child, port, dir)?;
        pin(server.process.pid() as i32, cpu)?;
        Ok(server)
    }

    fn nginx_at(cpu: usize, dir: tempfile::TempDir, listen: &str, files: &str) -> Result<Self> {
        let program = find("nginx").context("nginx is not installed")?;
        let port = free_port();
        let at = dir.path().display();
        let body = format!("{{\\\"id\\\":4711,\\\"name\\\":\\\"{}\\\"}}", "x".repeat(576));
        let conf = format!(
            "worker_processes 1; daemon off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 100000000; default_type application/json;\n\
             client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
             uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             server {{ listen 127.0.0.1:{port}{listen}; {files} location / {{ return 200 \"{body}\"; }} }} }}\n"
        );
        let path = dir.path().join("nginx.conf");
        fs::write(&path, conf)?;
        let child = Command::new(program).arg("-c").arg(&path).arg("-e").arg(dir.path().join("error.log")).spawn()?;
        let server = Self { has_worker: true, ..Self::up(child, port, dir)? };
        pin(server.worker()? as i32, cpu)?;
        Ok(server)
    }

    /// FastAPI under uvicorn; the interpreter that has them is `WEIR_PYTHON`, else the one of `cargo xtask setup`.
    pub(crate) fn fastapi(cpu: usize) -> Result<Self> {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/python/bin/python3");
        let python = std::env::var("WEIR_PYTHON").unwrap_or_else(|_| default.to_owned());
        let dir = tempfile::tempdir()?;
        let port = free_port();
        fs::write(dir.path().join("app.py"), include_str!("app.py"))?;
        let child = Command::new(Path::new(&python))
            .args(["-m", "uvicorn", "app:app", "--host", "127.0.0.1", "--log-level", "warning", "--port"])
            .arg(port.to_string())
            .current_dir(dir.path())
            .spawn()
            .with_context(|| format!("cannot start {python}"))?;
        let server = Self::up(child, port, dir)?;
        pin(server.process.pid() as i32, cpu)?;
        Ok(server)
    }

    fn up(child: Child, port: u16, dir: tempfile::TempDir) -> Result<Self> {
        let server = Self { process: Running(child), port, has_worker: false, _dir: dir };
        let listens = wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), PATIENCE);
        ensure!(listens, "the server does not listen");
        Ok(server)
    }

    /// The process that serves: nginx's worker, or the server itself.
    pub(crate) fn worker(&self) -> Result<u32> {
        let pid = self.process.pid();
        if !self.has_worker {
            return Ok(pid);
        }
        let mut worker = None;
        wait_until(
            || {
                let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
                worker = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
                worker.is_some()
            },
            PATIENCE,
        );
        worker.context("nginx has no worker")
    }
}
