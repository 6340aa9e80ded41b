//! Which files the agent probes: those of containers, whose paths lead elsewhere for everybody else, each file once whatever
//! it is reached by, and none that nobody uses any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agent::bpf;
use agent::discover::Discovery;
use agent_common::config::Config;
use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options, brief, command};
use weir_tests::harness::tls::clients::curl_once;
use weir_tests::harness::tls::servers::Server;
use weir_tests::harness::tls::{Certificates, FIXTURES};
use weir_tests::harness::{PATIENCE, find, python, skip, wait_until};

use crate::tls_safety::libraries;

/// Where a container has its library from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// A file system of its own. In two of them the same file has the same inode number.
    Copy,
    /// A layer that it shares with others.
    Layer,
}

/// A control group of a name by which a container is known; gone when dropped.
struct Group {
    path: PathBuf,
    id: String,
}

impl Group {
    fn make(number: usize) -> Self {
        let id = format!("{:032x}{:032x}", std::process::id(), number);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let fields = |line: &str| line.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        let root = mounts.lines().map(fields).find(|fields| fields[2] == "cgroup2").map(|fields| fields[1].clone());
        let path = PathBuf::from(root.expect("a hierarchy of cgroup v2")).join(format!("docker-{id}.scope"));
        fs::create_dir(&path).unwrap();
        Self { path, id }
    }

    /// The processes in it, as the machine numbers them.
    fn processes(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Once its processes are gone.
        wait_until(|| fs::remove_dir(&self.path).is_ok(), PATIENCE);
    }
}

/// A server in a container.
struct Contained {
    server: Server,
    group: Group,
    prefix: String,
}

impl Contained {
    fn start(from: From, number: usize, dir: &Path, library: &Path, certificates: &Certificates) -> Self {
        let group = Group::make(number);
        let (how, own) = match from {
            From::Copy => ("copy", dir.join(number.to_string())),
            From::Layer => ("layer", dir.to_owned()),
        };
        fs::create_dir_all(dir.join("lower")).unwrap();
        if !dir.join("lower/file").exists() {
            fs::copy(library, dir.join("lower/file")).unwrap();
        }
        let mut command = Command::new(find("unshare").unwrap());
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh"]);
        command.arg(Path::new(FIXTURES).join("container.sh")).arg(how).arg(library).arg(own).arg(&group.path);
        command.arg(python().unwrap()).arg(Path::new(FIXTURES).join("blocking.py"));
        let server = Server::scripted(&mut command, certificates);
        let prefix = format!("{how}-{number}-");
        Self { server, group, prefix }
    }

    /// Calls of this container, each reported once by each end: also those of a layer that is reached by several mounts.
    fn calls_are_seen(&self, agent: &Agent, library: &Path, certificates: &Certificates, count: usize) {
        // A file that nobody used before is only probed while it is used.
        let pids = self.group.processes();
        let [pid] = pids[..] else { panic!("{pids:?}") };
        let warm = || {
            assert!(curl_once(&self.server.url(), &format!("/id/first-{}", self.prefix), certificates).1);
            let calls = agent.calls();
            calls.iter().any(|call| call.is_server() && call.number("process.pid") == Some(pid))
        };
        assert!(wait_until(warm, PATIENCE), "{}: nothing is read: {:#}", self.prefix, agent.status()["tls"]);
        for index in 0..count {
            let path = format!("/id/{}{index}", self.prefix);
            assert!(curl_once(&self.server.url(), &path, certificates).1, "{path}");
        }
        let name = format!("/id/{}", self.prefix);
        let log = self.server.wait_log(&name, count);
        let of_side = |calls: &[Value], server: bool| -> Vec<Value> {
            let ours = |call: &&Value| call.is_server() == server && call.path().starts_with(&name);
            calls.iter().filter(ours).cloned().collect()
        };
        let there = |calls: &[Value]| [true, false].iter().all(|server| of_side(calls, *server).len() >= count);
        let calls = agent.wait_for(there, PATIENCE);
        let (served, called) = (of_side(&calls, true), of_side(&calls, false));
        assert_eq!((served.len(), called.len()), (count, count), "{}: not each once", self.prefix);
        let ports: BTreeMap<_, _> = log.iter().map(|entry| (entry.path.as_str(), u64::from(entry.peer))).collect();
        for call in &served {
            let facts = (call.text("url.scheme"), call.text("container.id"), call.number("process.pid"));
            assert_eq!(facts, ("https", self.group.id.as_str(), Some(pid)), "{}", brief(call));
            assert_eq!(call.number("client.port"), ports.get(call.path()).copied(), "{}", brief(call));
        }
        assert!(called.iter().all(|call| call.text("container.id").is_empty()), "curl is in no container");
        // By the name that the process itself knows it by.
        let source = format!("openssl {}", library.display());
        let told = || {
            let status = agent.status();
            let processes = status["tls"]["processes"].as_array().cloned().unwrap_or_default();
            processes.iter().any(|process| {
                let sources = process["sources"].as_array().into_iter().flatten();
                process["pid"] == pid && sources.into_iter().any(|known| *known == *source)
            })
        };
        assert!(wait_until(told, PATIENCE), "{pid} by {source}: {:#}", agent.status()["tls"]);
    }
}

/// Two containers of each kind, of which one is there before the agent.
#[test]
fn servers_in_containers_are_read_by_the_files_that_are_theirs() {
    let name = "servers_in_containers_are_read_by_the_files_that_are_theirs";
    let Some(python) = python() else { return skip(name, "no python3") };
    if let Some(missing) = ["curl", "unshare", "pivot_root"].into_iter().find(|program| find(program).is_none()) {
        return skip(name, &format!("no {missing}"));
    }
    let certificates = match Certificates::make() {
        Ok(certificates) => certificates,
        Err(why) => return skip(name, &why),
    };
    let files = libraries(python);
    let Some(library) = files.iter().find(|file| file.to_string_lossy().contains("libssl")) else {
        return skip(name, "Python has its own OpenSSL");
    };
    let dir = tempfile::tempdir().unwrap();
    let contain = |from, number| Contained::start(from, number, dir.path(), library, &certificates);
    let before = [contain(From::Copy, 0), contain(From::Layer, 1)];
    let agent = Agent::start(&Options::config(EXPORT_ID));
    let after = [contain(From::Copy, 2), contain(From::Layer, 3)];
    for container in before.iter().chain(&after) {
        container.calls_are_seen(&agent, library, &certificates, 5);
    }
    agent.stop();
}

/// A library of its own in `dir`, as processes that are told to look there load it.
struct Own {
    dir: PathBuf,
    file: PathBuf,
}

impl Own {
    fn make(dir: &Path, libraries: &[PathBuf]) -> Self {
        fs::create_dir(dir).unwrap();
        for library in libraries {
            fs::copy(library, dir.join(library.file_name().unwrap())).unwrap();
        }
        let is_ssl = |library: &&PathBuf| library.to_string_lossy().contains("libssl");
        let name = libraries.iter().find(is_ssl).and_then(|library| library.file_name()).unwrap();
        Self { dir: dir.to_owned(), file: dir.join(name) }
    }

    fn server(&self, certificates: &Certificates) -> Server {
        let mut command = Command::new(python().unwrap());
        command.arg(Path::new(FIXTURES).join("blocking.py")).env("LD_LIBRARY_PATH", &self.dir);
        Server::scripted(&mut command, certificates)
    }

    fn is_probed(&self, agent: &Agent) -> bool {
        let status = agent.status();
        let libraries = status["tls"]["libraries"].as_array().cloned().unwrap_or_default();
        libraries.iter().any(|library| library["path"] == self.file.to_str().unwrap())
    }

    fn wait(&self, agent: &Agent, probed: bool) {
        let there = wait_until(|| self.is_probed(agent) == probed, PATIENCE);
        assert!(there, "{}, probed: not {probed}: {:#}", self.file.display(), agent.status()["tls"]);
    }
}

/// Calls to a server, each reported once by its end.
fn calls_are_seen(agent: &Agent, server: &Server, certificates: &Certificates, prefix: &str) {
    const COUNT: usize = 5;
    for index in 0..COUNT {
        assert!(curl_once(&server.url(), &format!("/id/{prefix}-{index}"), certificates).1);
    }
    let ours = |call: &&Value| call.is_server() && call.path().contains(prefix);
    let calls = agent.wait_for(|calls| calls.iter().filter(ours).count() >= COUNT, PATIENCE);
    assert_eq!(calls.iter().filter(ours).count(), COUNT, "{prefix}: not each once");
}

/// `weir doctor` says by which file the process is read.
fn is_told_by_doctor(pid: u32, own: &Own) {
    let output = command(&["doctor", "--json"]).output().unwrap();
    let diagnosis: Value = serde_json::from_slice(&output.stdout).unwrap();
    let processes = diagnosis["tls_processes"].as_array().unwrap();
    let told = processes.iter().find(|process| process["pid"] == pid).unwrap_or_else(|| panic!("{diagnosis:#}"));
    let source = format!("openssl {}", own.file.display());
    assert!(told["sources"].as_array().unwrap().iter().any(|known| *known == *source), "{told:#}");
    assert_eq!(told["reasons"], serde_json::json!([]));
}

#[test]
fn probes_of_a_library_go_with_its_last_user_and_come_with_the_next() {
    let name = "probes_of_a_library_go_with_its_last_user_and_come_with_the_next";
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
    let (kept, left) = (Own::make(&dir.path().join("kept"), &files), Own::make(&dir.path().join("left"), &files));
    let agent = Agent::start(&Options::config("capture:\n  tlsSweep: 1s\n"));
    let (first, second, third) = (kept.server(&certificates), kept.server(&certificates), left.server(&certificates));
    for own in [&kept, &left] {
        own.wait(&agent, true);
    }
    let detached = || agent.status()["tls"]["discovery"]["detached"].as_u64().unwrap();
    let before = detached();
    calls_are_seen(&agent, &first, &certificates, "first");
    for (server, own) in [(&first, &kept), (&second, &kept), (&third, &left)] {
        is_told_by_doctor(server.pid(), own);
    }
    // One library loses its only user and one of two users.
    drop((first, third));
    left.wait(&agent, false);
    assert_eq!(detached(), before + 1);
    // As long without that user as the other was without any.
    assert!(kept.is_probed(&agent), "{:#}", agent.status()["tls"]);
    calls_are_seen(&agent, &second, &certificates, "second");
    drop(second);
    kept.wait(&agent, false);
    assert_eq!(detached(), before + 2);
    let again = kept.server(&certificates);
    kept.wait(&agent, true);
    calls_are_seen(&agent, &again, &certificates, "again");
    agent.stop();
}

/// Sleeping processes, ended when dropped.
struct Sleepers(Vec<Child>);

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// Bytes that this process has read.
fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// Seconds of processor time that this process has used.
fn seconds_used() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

#[test]
fn a_look_at_many_processes_reads_each_file_once_and_of_each_process_its_mappings() {
    const COUNT: usize = 200;
    let name = "a_look_at_many_processes_reads_each_file_once_and_of_each_process_its_mappings";
    let Some(python) = python() else { return skip(name, "no python3") };
    let dir = tempfile::tempdir().unwrap();
    let script = "import ssl, sys; print(flush=True); sys.stdin.read()";
    let start = |_| {
        let mut command = Command::new(python);
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut sleepers = Sleepers((0..COUNT).map(start).collect());
    let (mut files, mut maps_len) = (BTreeSet::new(), 0);
    for child in &mut sleepers.0 {
        // It has loaded all that it will.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let pid = child.id();
        symlink(format!("/proc/{pid}"), dir.path().join(pid.to_string())).unwrap();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        maps_len += maps.len() as u64;
        let fields = maps.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let executed = fields.filter(|fields| fields[1].contains('x') && fields[4] != "0");
        files.extend(executed.map(|fields| (fields[3].to_owned(), fields[4].to_owned())));
    }
    let features = bpf::detect();
    let plan = bpf::plan(&features, bpf::Wanted::Auto).unwrap();
    let (mut attached, _ring) = bpf::attach(&features, &plan, bpf::Settings::new(1 << 20, Config::default())).unwrap();
    let mut discovery = Discovery::new(attached.uprobes().unwrap(), dir.path());
    let used = seconds_used();
    discovery.scan();
    assert_eq!(discovery.counts().processes, COUNT as u64);
    assert_eq!(discovery.counts().files, files.len() as u64, "{files:#?}");
    let (first, used) = (seconds_used() - used, seconds_used());
    let read = bytes_read();
    discovery.sweep();
    let read = bytes_read() - read;
    let again = seconds_used() - used;
    _ = writeln!(std::io::stderr(), "\n{COUNT} processes, {} files: {first:.2} s, and {again:.2} s again", files.len());
    assert_eq!(discovery.counts().files, files.len() as u64, "a file is looked at again");
    assert!(read < maps_len + 64 * 1024, "{read} bytes read of {maps_len} of mappings");
}
