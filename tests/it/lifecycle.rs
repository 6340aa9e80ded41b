//! The agent's own life: it leaves nothing behind, however it ends, and disturbs nobody.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, Options, command};
use weir_tests::harness::client::Http;
use weir_tests::harness::guard::Process;
use weir_tests::harness::{PATIENCE, find, server, skip, wait_until};

const PROGRAMS: [&str; 4] = ["sock_send_lengt", "sock_recv_lengt", "inet_sock_set_s", "sched_process_e"];
const MAPS: [&str; 4] = ["RECORDS", "COUNTERS", "SOCKETS", "SCRATCH"];

fn serve() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    server::tcp(listener, server::echo());
    port
}

/// Programs, maps and links of ours that the kernel holds; `None` without bpftool.
fn held() -> Option<usize> {
    let list = |kind: &str| -> Option<Vec<Value>> {
        let output = Command::new(find("bpftool")?).args(["-j", kind, "show"]).output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    };
    let named = |kind: &str, names: &[&str]| -> Option<usize> {
        Some(list(kind)?.iter().filter(|item| names.iter().any(|name| item.text("name").starts_with(name))).count())
    };
    Some(named("prog", &PROGRAMS)? + named("map", &MAPS)?)
}

/// As [`held`], when it no longer changes: the kernel frees what an agent before us had a moment after its end.
fn settled() -> Option<usize> {
    let (mut last, mut same) = (held()?, 0);
    wait_until(
        || {
            let now = held().unwrap_or_default();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same == 20
        },
        PATIENCE,
    );
    Some(last)
}

#[test]
fn killed_it_leaves_nothing_in_the_kernel_and_traffic_goes_on() {
    let Some(before) = settled() else {
        skip("killed_it_leaves_nothing_in_the_kernel_and_traffic_goes_on", "bpftool is not installed");
        return;
    };
    let port = serve();
    let mut client = Http::tcp(("127.0.0.1", port));
    let agent = Agent::start(&Options::default());
    assert_eq!(client.get("/1").status, 200);
    assert!(held().unwrap() >= before + PROGRAMS.len() + MAPS.len(), "the test does not see the agent's programs");
    agent.kill();
    for id in 0..100 {
        assert_eq!(client.get(&format!("/{id}")).status, 200);
    }
    assert!(wait_until(|| held() == Some(before), PATIENCE), "{:?} programs and maps, before {before}", held());
    let pinned = fs::read_dir("/sys/fs/bpf").map_or(0, Iterator::count);
    assert_eq!(pinned, 0, "something is pinned");
}

#[test]
fn it_starts_again_after_each_end_and_sees_the_same_connection() {
    let port = serve();
    let mut client = Http::tcp(("127.0.0.1", port));
    for round in 0..3 {
        let agent = Agent::start(&Options::default());
        client.get(&format!("/round/{round}"));
        let seen =
            |calls: &[Value]| calls.iter().any(|call| call.is_server() && call.path() == format!("/round/{round}"));
        agent.wait_for(seen, PATIENCE);
        let stopped = agent.stop();
        assert!(stopped.stderr.iter().any(|line| line.contains("coverage 100")), "{:#?}", stopped.stderr);
    }
}

#[test]
fn it_ends_by_itself_after_the_duration() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::spawn(
        command(&["run", "--admin", "off", "--duration", "1s"])
            .arg("--export")
            .arg(format!("jsonl:{}", folder.path().join("calls").display())),
    );
    process.wait_for_stderr("ready", Duration::from_mins(1));
    let status = process.wait(Duration::from_secs(10)).expect("it did not end");
    assert!(status.success(), "{status} {:#?}", process.stderr());
}

#[test]
fn a_changed_configuration_takes_effect_and_a_wrong_one_does_not() {
    let port = serve();
    let mut client = Http::tcp(("127.0.0.1", port));
    let agent = Agent::start(&Options::default());
    let good = fs::read_to_string(agent.config_path()).unwrap();
    let seen = |path: &str| agent.calls().iter().any(|call| call.is_server() && call.path() == path);

    fs::write(agent.config_path(), format!("{good}nonsense: 1\n")).unwrap();
    agent.signal(Signal::SIGHUP);
    let told = || agent.stderr().iter().any(|line| line.contains("weir.yaml:4:1") && line.contains("nonsense"));
    assert!(wait_until(told, PATIENCE), "the error is not told: {:#?}", agent.stderr());
    client.get("/still");
    assert!(wait_until(|| seen("/still"), PATIENCE), "the last good configuration is not in force");

    // By the change of the file alone.
    fs::write(agent.config_path(), format!("{good}exclude: [\"port:{port}\"]\n")).unwrap();
    let mut id = 0;
    let excluded = || {
        id += 1;
        client.get(&format!("/excluded/{id}"));
        // A later call of another port tells that this one has passed.
        let other = serve();
        Http::tcp(("127.0.0.1", other)).get("/marker");
        let marked =
            wait_until(|| agent.calls().iter().any(|call| call.is_server() && call["server.port"] == other), PATIENCE);
        marked && !seen(&format!("/excluded/{id}"))
    };
    assert!(wait_until(excluded, PATIENCE), "the exclusion is not in force");
    agent.stop();
}

#[test]
fn a_second_agent_on_the_same_address_says_what_is_in_the_way() {
    let first = Agent::start(&Options::default());
    let address = format!("127.0.0.1:{}", first.admin_port());
    let mut second = Process::spawn(&mut command(&["run", "--admin", &address]));
    let status = second.wait(Duration::from_secs(30)).expect("it runs on");
    assert_eq!(status.code(), Some(1));
    let told = second.stderr().join("\n");
    assert!(told.contains(&address), "{told}");
    first.stop();
}
