//! The container test: the agent as an OCI container with few capabilities and a read-only root, which watches a process
//! outside of it. Needs runc alone: no image, no daemon.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{setup, shell, vm};

/// What observing needs: load tracing programs, and read facts about processes of others.
const CAPABILITIES: &[&str] = &["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"];

const DEADLINE: Duration = Duration::from_secs(30);

/// Run the agent in a container, call a server outside, and find the call in what the agent wrote.
///
/// # Errors
/// The container did not start, or the call was not seen with the server's process id.
pub(crate) fn run() -> Result<String> {
    setup::ensure(setup::Purpose::Test)?;
    let agent = vm::static_program("weir", false)?;
    let bundle = shell::target_dir().join("container");
    let out = bundle.join("out");
    for dir in ["rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs/tmp", "rootfs/run", "rootfs/out", "out"] {
        fs::create_dir_all(bundle.join(dir)).with_context(|| format!("cannot make {dir} of the container"))?;
    }
    fs::copy(&agent, bundle.join("rootfs/weir")).context("cannot put the agent into the container")?;
    let calls = out.join("calls.jsonl");
    shell::run(shell::as_root("rm")?.arg("-f").arg(&calls))?;
    let name = format!("weir-test-{}", std::process::id());
    let config = serde_json::to_string_pretty(&config(&name, &out)).context("cannot write the container's config")?;
    fs::write(bundle.join("config.json"), config).context("cannot write the container's config")?;

    let mut server = server(&out)?;
    let seen = watch(&name, &bundle, &server, &calls);
    server.child.kill().context("cannot stop the server")?;
    server.child.wait().context("cannot stop the server")?;
    seen
}

/// A server outside of the container.
struct Server {
    child: Child,
    port: u16,
}

fn server(dir: &Path) -> Result<Server> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).context("no free port")?.port();
    let mut command = shell::bound("python3");
    command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]).arg(dir).arg(port.to_string());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start python3")?;
    let start = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(start.elapsed() < DEADLINE, "the server outside of the container does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Server { child, port })
}

fn watch(name: &str, bundle: &Path, server: &Server, calls: &Path) -> Result<String> {
    let runc = shell::find("runc").context("no runc")?;
    let state = bundle.join("state");
    let command = || -> Result<Command> {
        let mut command = shell::as_root(&runc)?;
        command.arg("--root").arg(&state);
        Ok(command)
    };
    let mut container =
        command()?.args(["run", "--bundle"]).arg(bundle).arg(name).stderr(Stdio::piped()).spawn().context("runc")?;
    let stderr = container.stderr.take().context("no pipe to the container")?;
    // Read until the end: the agent must not find its output closed.
    let lines = shell::lines(stderr);
    let result = call_and_find(&lines, server, calls);
    // Also after a failure: no container is left.
    drop(command()?.args(["kill", name, "TERM"]).status());
    let start = Instant::now();
    while container.try_wait().context("cannot wait for runc")?.is_none() {
        if start.elapsed() > DEADLINE {
            drop(command()?.args(["delete", "--force", name]).status());
            bail!("the container did not stop on SIGTERM");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    result
}

fn call_and_find(lines: &Receiver<String>, server: &Server, calls: &Path) -> Result<String> {
    loop {
        let line = lines.recv_timeout(DEADLINE).context("the agent in the container did not become ready")?;
        println!("container: {line}");
        if line == "ready" {
            break;
        }
    }
    let url = format!("http://127.0.0.1:{}/seen-from-a-container", server.port);
    // The status is 404, which is as good.
    let mut curl = Command::new("curl");
    shell::run(curl.args(["--silent", "--output", "/dev/null", "--max-time", "10", &url]))?;
    let start = Instant::now();
    let is_call = |call: &Value| {
        call["span_kind"] == "server"
            && call["url.path"] == "/seen-from-a-container"
            && call["process.pid"] == server.child.id()
    };
    while start.elapsed() < DEADLINE {
        let mut text = String::new();
        // Not there before the first call.
        if let Ok(mut file) = fs::File::open(calls) {
            file.read_to_string(&mut text).context("cannot read what the container wrote")?;
        }
        if let Some(call) = text.lines().filter_map(|line| serde_json::from_str(line).ok()).find(is_call) {
            let executable = call["process.executable.name"].as_str().unwrap_or_default();
            ensure!(executable.starts_with("python"), "the process outside is `{executable}` to the agent: {call}");
            return Ok(format!("saw {executable}, pid {}", server.child.id()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("the agent in the container did not see the call of pid {} outside", server.child.id())
}

/// The OCI configuration: the host's processes and network, a mount table of its own, and nothing writable but `/out`.
fn config(name: &str, out: &Path) -> Value {
    let bind = |at: &str, from: &Path, options: &[&str]| {
        json!({
            "destination": at, "type": "bind", "source": from, "options": options,
        })
    };
    json!({
        "ociVersion": "1.0.2",
        "hostname": "agent",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "args": ["/weir", "run", "--admin", "off", "--export", "jsonl:/out/calls.jsonl"],
            "env": ["PATH=/"],
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/run", "type": "tmpfs", "source": "tmpfs" },
            bind("/sys", Path::new("/sys"), &["rbind", "ro"]),
            bind("/out", out, &["bind", "rw"]),
        ],
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "uts" }, { "type": "ipc" }],
            "cgroupsPath": format!("/{name}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_not_privileged_and_writes_nowhere_but_out() {
        let config = config("x", Path::new("/w/out"));
        assert_eq!(config["root"]["readonly"], true);
        assert_eq!(config["process"]["noNewPrivileges"], true);
        let bounding = config["process"]["capabilities"]["bounding"].to_string();
        assert!(!bounding.contains("SYS_ADMIN"), "{bounding}");
        let mounts = config["mounts"].as_array().unwrap();
        let writable = mounts.iter().filter(|mount| mount["options"].to_string().contains("\"rw\""));
        assert_eq!(writable.map(|mount| &mount["destination"]).collect::<Vec<_>>(), ["/out"]);
    }
}
