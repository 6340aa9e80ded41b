//! Load: every call is exported, or counted as lost; none is paired wrongly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options};
use weir_tests::harness::client::Http;
use weir_tests::harness::servers::Nginx;
use weir_tests::harness::skip;

const CONNECTIONS: u64 = 16;

/// Seconds of load: short by default, `WEIR_TEST_LONG=1` for the figures of a release.
fn seconds() -> Duration {
    Duration::from_secs(if std::env::var_os("WEIR_TEST_LONG").is_some() { 20 } else { 4 })
}

/// Keep nginx busy on sixteen connections, each request with an id of its own, at `rate` requests a second or as fast as
/// it goes. Returns how many were answered.
fn drive(port: u16, round: &'static str, duration: Duration, rate: Option<u64>) -> u64 {
    let (total, start) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|client| {
            let total = Arc::clone(&total);
            thread::spawn(move || {
                let mut http = Http::tcp(("127.0.0.1", port));
                let mut sent = 0_u64;
                while start.elapsed() < duration {
                    if let Some(rate) = rate {
                        // Pace: this client's share of what should have been sent by now.
                        let due = start.elapsed().as_micros() as u64 * rate / CONNECTIONS / 1_000_000;
                        if sent >= due {
                            thread::sleep(Duration::from_micros(200));
                            continue;
                        }
                    }
                    let id = format!("{round}-{client}-{sent}");
                    let response = http.get(&format!("/id/{id}"));
                    assert_eq!(response.header("x-id"), Some(id.as_str()), "the server itself");
                    sent += 1;
                }
                total.fetch_add(sent, Ordering::Relaxed);
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    total.load(Ordering::Relaxed)
}

/// Calls of both ends of the connections to `port`. A lone response, whose request was lost, is a fragment and no call.
fn calls_at(calls: &[Value], port: u16) -> Vec<&Value> {
    let at = |call: &&Value| call["server.port"] == port && call.get("http.request.method").is_some();
    calls.iter().filter(at).collect()
}

/// What the agent said at its end: calls it knows to have missed, and calls its file export dropped.
fn said_lost(stderr: &[String]) -> (u64, u64) {
    let number =
        |line: &str| line.split(|c: char| !c.is_ascii_digit()).rfind(|part| !part.is_empty()).unwrap().parse().unwrap();
    let find = |what: &str| stderr.iter().find_map(|line| line.split_once(what)).map_or(0, |(_, rest)| number(rest));
    (find("lost: calls unseen:"), find("lost: jsonl queue_full:"))
}

/// Both sides of one call are there and do not belong together.
fn assert_paired(calls: &[Value]) {
    for call in calls {
        if let (Some(id), path) = (call.id(), call.path())
            && !path.is_empty()
            && path.starts_with("/id/")
        {
            assert_eq!(path, format!("/id/{id}"), "a wrong pair: {call}");
        }
    }
}

fn every_call_is_accounted_for(name: &str, rate: Option<u64>) {
    let Some(nginx) = Nginx::start(None) else {
        skip(name, "nginx is not installed");
        return;
    };
    let agent = Agent::start(&Options::config(EXPORT_ID));
    let answered = drive(nginx.port(), "only", seconds(), rate);
    let logged = nginx.wait_log(answered as usize).len() as u64;
    assert_eq!(logged, answered, "nginx's own count");
    let losses = agent.losses();
    let stopped = agent.stop();
    assert_paired(&stopped.calls);
    let seen = calls_at(&stopped.calls, nginx.port()).len() as u64;
    let (lost, dropped) = said_lost(&stopped.stderr);
    // Both ends are this machine's: each call is seen, or lost, twice.
    assert_eq!(seen + lost + dropped, 2 * logged, "{seen} exported, {lost} counted lost, {dropped} dropped\n{losses}");
    if rate.is_some() {
        assert_eq!((lost, dropped), (0, 0), "of {logged}\n{losses}");
    }
}

#[test]
fn ten_thousand_requests_a_second_are_all_exported() {
    every_call_is_accounted_for("ten_thousand_requests_a_second_are_all_exported", Some(10_000));
}

#[test]
fn at_saturation_every_call_is_exported_or_counted() {
    every_call_is_accounted_for("at_saturation_every_call_is_exported_or_counted", None);
}

#[test]
fn what_a_stopped_agent_misses_is_counted_exactly_and_nothing_is_paired_wrongly() {
    let name = "what_a_stopped_agent_misses_is_counted_exactly_and_nothing_is_paired_wrongly";
    let Some(nginx) = Nginx::start(None) else {
        skip(name, "nginx is not installed");
        return;
    };
    // The smallest ring buffer, and an agent that stands still while it fills.
    let agent = Agent::start(&Options::config(&format!("{EXPORT_ID}capture:\n  ringBuffer: 256KiB\n")));
    drive(nginx.port(), "before", Duration::from_millis(500), Some(2_000));
    agent.signal(Signal::SIGSTOP);
    drive(nginx.port(), "during", Duration::from_millis(1_500), None);
    agent.signal(Signal::SIGCONT);
    let after = drive(nginx.port(), "after", Duration::from_secs(1), Some(2_000));
    let logged = nginx.log().len() as u64;
    let full = agent.metric("weir_lost_total", &[("stage", "kernel"), ("reason", "ring_full")]);
    assert!(full > 0.0, "the ring buffer never filled: the test shows nothing");
    let losses = agent.losses();
    let stopped = agent.stop();
    let calls = stopped.calls;
    assert_paired(&calls);
    let seen = calls_at(&calls, nginx.port()).len() as u64;
    let (lost, dropped) = said_lost(&stopped.stderr);
    assert_eq!(seen + lost + dropped, 2 * logged, "{seen} exported, {lost} counted lost, {dropped} dropped\n{losses}");
    // After the gap calls are whole again.
    let recovered: Vec<_> = calls.iter().filter(|call| call.path().starts_with("/id/after-")).collect();
    assert_eq!(recovered.len() as u64, 2 * after, "after the standstill nothing is missing");
    for call in recovered {
        assert!(call.get("weir.incomplete").is_none() && call.id().is_some(), "{call}");
    }
}
