//! What the agent does to processes that use TLS, which is nothing: confined ones, ones whose library was upgraded, busy
//! ones while it comes, goes or dies.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options, brief};
use weir_tests::harness::guard::Process;
use weir_tests::harness::tls::clients::{Load, curl_once};
use weir_tests::harness::tls::programs::Go;
use weir_tests::harness::tls::servers::{Kind, Server};
use weir_tests::harness::tls::{Certificates, FIXTURES};
use weir_tests::harness::{PATIENCE, find, python, skip, wait_until};

fn observe() -> Agent {
    Agent::start(&Options::config(EXPORT_ID))
}

/// Calls to `server` by curl, each seen by the server's side with the server's process.
fn calls_are_seen(agent: &Agent, server: &Server, certificates: &Certificates, prefix: &str, count: usize) {
    for index in 0..count {
        let path = format!("/id/{prefix}-{index}");
        assert!(curl_once(&server.url(), &path, certificates).1, "{path}");
    }
    let log = server.wait_log(prefix, count);
    let ours = |call: &&serde_json::Value| call.is_server() && call.path().contains(prefix);
    let calls = agent.wait_for(|calls| calls.iter().filter(ours).count() >= count, PATIENCE);
    for entry in log {
        let call = calls.iter().find(|call| call.is_server() && call.path() == entry.path).unwrap();
        let facts = (call.text("url.scheme"), call.number("client.port"), call.number("process.pid"));
        assert_eq!(facts, ("https", Some(u64::from(entry.peer)), Some(u64::from(entry.pid))), "{}", brief(call));
    }
}

#[test]
fn a_process_confined_to_a_list_of_system_calls_lives_on() {
    let name = "a_process_confined_to_a_list_of_system_calls_lives_on";
    let Some(python) = python() else { return skip(name, "no python3") };
    if find("curl").is_none() {
        return skip(name, "no curl");
    }
    let certificates = match Certificates::make() {
        Ok(certificates) => certificates,
        Err(why) => return skip(name, &why),
    };
    let mut command = Command::new(python);
    command.arg(Path::new(FIXTURES).join("confined.py"));
    let mut server = Server::scripted(&mut command, &certificates);
    assert!(curl_once(&server.url(), "/id/before", &certificates).1);
    for round in 0..3 {
        let agent = observe();
        calls_are_seen(&agent, &server, &certificates, &format!("with{round}"), 10);
        agent.stop();
        assert!(curl_once(&server.url(), &format!("/id/without{round}"), &certificates).1);
        server.assert_sound();
    }
}

/// The files behind what Python's `ssl` loads.
pub(crate) fn libraries(python: &Path) -> Vec<PathBuf> {
    let script =
        "import ssl; print(*{l.split()[-1] for l in open('/proc/self/maps') if 'libssl' in l or 'libcrypto' in l})";
    let output = Command::new(python).args(["-c", script]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(PathBuf::from).collect()
}

#[test]
fn a_library_upgraded_under_a_running_process_is_still_read() {
    let name = "a_library_upgraded_under_a_running_process_is_still_read";
    let Some(python) = python() else { return skip(name, "no python3") };
    if find("curl").is_none() {
        return skip(name, "no curl");
    }
    let certificates = match Certificates::make() {
        Ok(certificates) => certificates,
        Err(why) => return skip(name, &why),
    };
    let files = libraries(python);
    if files.len() != 2 {
        return skip(name, "Python has its own OpenSSL");
    }
    let dir = tempfile::tempdir().unwrap();
    let copies: Vec<PathBuf> = files.iter().map(|file| dir.path().join(file.file_name().unwrap())).collect();
    for (file, copy) in files.iter().zip(&copies) {
        fs::copy(file, copy).unwrap();
    }
    let mut command = Command::new(python);
    command.arg(Path::new(FIXTURES).join("blocking.py")).env("LD_LIBRARY_PATH", dir.path());
    let mut server = Server::scripted(&mut command, &certificates);
    // As package managers do: the new file beside the old, then renamed over it.
    for (file, copy) in files.iter().zip(&copies) {
        let new = copy.with_extension("new");
        fs::copy(file, &new).unwrap();
        fs::rename(&new, copy).unwrap();
    }
    let maps = fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
    let replaced = |line: &str| line.contains(&copies[0].display().to_string()) && line.ends_with("(deleted)");
    assert!(maps.lines().any(replaced), "the test shows nothing: {maps}");
    let agent = observe();
    calls_are_seen(&agent, &server, &certificates, "upgraded", 20);
    // And again under the agent's eyes: the process keeps what it mapped.
    for (file, copy) in files.iter().zip(&copies) {
        let new = copy.with_extension("newer");
        fs::copy(file, &new).unwrap();
        fs::rename(&new, copy).unwrap();
    }
    calls_are_seen(&agent, &server, &certificates, "again", 20);
    agent.stop();
    assert!(curl_once(&server.url(), "/id/after", &certificates).1);
    server.assert_sound();
}

/// How long an end may take while all libraries are busy: the kernel waits for each call that a probe is about to return
/// from. No application waits for it.
const DETACHED: Duration = Duration::from_mins(1);

/// Servers of every way to be probed, each under load of connections kept alive.
struct Busy {
    servers: Vec<Server>,
    loads: Vec<Load>,
    _certificates: Certificates,
}

impl Busy {
    fn start() -> Result<Self, String> {
        let certificates = Certificates::make()?;
        let kinds = [Kind::Nginx, Kind::Uvicorn, Kind::Node, Kind::Go(Go::Current), Kind::Rustls, Kind::Envoy];
        let servers: Vec<_> =
            kinds.iter().map(|kind| Server::start(*kind, &certificates)).collect::<Result<_, String>>()?;
        let loads =
            servers.iter().map(|server| Load::start(&server.url(), &certificates, 2)).collect::<Result<_, _>>()?;
        Ok(Self { servers, loads, _certificates: certificates })
    }

    /// Every request was answered: a client stops at the first that was not.
    fn stop(mut self) {
        let answered: Vec<u64> = self.loads.drain(..).map(Load::stop).collect();
        assert!(answered.iter().all(|count| *count > 100), "hardly any load: {answered:?}");
        for server in &mut self.servers {
            server.assert_sound();
        }
    }
}

#[test]
fn an_agent_killed_in_the_middle_of_a_load_disturbs_no_request() {
    let name = "an_agent_killed_in_the_middle_of_a_load_disturbs_no_request";
    let busy = match Busy::start() {
        Ok(busy) => busy,
        Err(why) => return skip(name, &why),
    };
    for _ in 0..3 {
        let agent = observe();
        // Envoy's comes when its code has been searched, if it lives so long.
        let backends = ["openssl", "go", "rustls"];
        let seen = || {
            let calls = agent.calls();
            backends.iter().all(|name| calls.iter().any(|call| call.text("weir.capture.backend") == *name))
        };
        assert!(wait_until(seen, PATIENCE), "not all of {backends:?} are read\n{}", agent.losses());
        let took = agent.kill_within(DETACHED);
        _ = writeln!(std::io::stderr(), "\ngone {took:.1?} after SIGKILL");
    }
    busy.stop();
}

#[test]
fn attaching_and_detaching_under_load_disturbs_no_request() {
    let name = "attaching_and_detaching_under_load_disturbs_no_request";
    let busy = match Busy::start() {
        Ok(busy) => busy,
        Err(why) => return skip(name, &why),
    };
    let rounds = if std::env::var_os("WEIR_TEST_LONG").is_some() { 1_000 } else { 20 };
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let agent = Agent::start(&Options::default());
        // The probes meet the load at another moment each time.
        thread::sleep(Duration::from_millis(round * 37 % 200));
        slowest = slowest.max(agent.stop_within(DETACHED).took);
    }
    _ = writeln!(std::io::stderr(), "\n{rounds} times attached and detached, at most {slowest:.1?} for an end");
    busy.stop();
}

#[test]
fn reading_a_large_executable_leaves_its_memory_free() {
    let Some(node) = find("node") else {
        return skip("reading_a_large_executable_leaves_its_memory_free", "no node");
    };
    let size = fs::metadata(&node).unwrap().len();
    assert!(size > 64 << 20, "{} is too small to tell: {size} bytes", node.display());
    let agent = observe();
    let before = agent.rss_bytes();
    let mut node = Process::spawn(Command::new(node).args(["-e", "console.log('ready'); setInterval(() => {}, 1000)"]));
    node.wait_for_stdout("ready", PATIENCE);
    let is_read = || agent.status()["tls"]["libraries"].to_string().contains("node");
    assert!(wait_until(is_read, PATIENCE), "{:#}", agent.status()["tls"]);
    let grown = agent.rss_bytes().saturating_sub(before);
    agent.stop();
    assert!(grown < 8 << 20, "{grown} bytes more");
}
