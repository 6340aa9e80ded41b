//! An agent that starts when everything else has long been running: connections kept alive and busy are understood from
//! the next message on, and nothing is paired wrongly.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options, brief};
use weir_tests::harness::client::Http;
use weir_tests::harness::servers::Nginx;
use weir_tests::harness::{PATIENCE, skip, wait_until};

const CONNECTIONS: usize = 100;

/// Ends the clients however the test ends.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn busy_connections_older_than_the_agent_are_understood_from_the_next_message() {
    let name = "busy_connections_older_than_the_agent_are_understood_from_the_next_message";
    let Some(server) = Nginx::start(None) else { return skip(name, "no nginx") };
    let (stop, last_round) = (AtomicBool::new(false), AtomicBool::new(false));
    let (calls, last) = thread::scope(|scope| {
        // A test that fails must not wait for its own clients for ever.
        let stopping = StopOnDrop(&stop);
        let clients: Vec<_> = (0..4)
            .map(|thread| {
                let (stop, last_round, server) = (&stop, &last_round, &server);
                scope.spawn(move || {
                    let connect = |_| Http::tcp(("127.0.0.1", server.port()));
                    let mut connections: Vec<Http> = (0..CONNECTIONS / 4).map(connect).collect();
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // The agent's start must not be the pause in which every connection rests.
                        let kind = if last_round.load(Ordering::Relaxed) { "last" } else { "busy" };
                        for (index, http) in connections.iter_mut().enumerate() {
                            let id = format!("{kind}-{thread}-{index}-{round}");
                            let path = if round % 5 == 4 { format!("/text/{id}") } else { format!("/id/{id}") };
                            assert_eq!(http.get(&path).header("x-id"), Some(id.as_str()));
                        }
                        round += 1;
                    }
                })
            })
            .collect();
        assert!(wait_until(|| server.log().len() > 2 * CONNECTIONS, PATIENCE), "the clients are not busy");
        let agent = Agent::start(&Options::config(EXPORT_ID));
        last_round.store(true, Ordering::Relaxed);
        let lasts = || server.log().iter().filter(|entry| entry.id.starts_with("last-")).count();
        let done = wait_until(|| lasts() >= 3 * CONNECTIONS, PATIENCE);
        drop(stopping);
        for client in clients {
            client.join().unwrap();
        }
        assert!(done, "the clients did not go on");
        let last: Vec<_> = server.log().into_iter().filter(|entry| entry.id.starts_with("last-")).collect();
        let seen = |calls: &[Value]| {
            let of_server = calls.iter().filter(|call| call.is_server());
            of_server.filter(|call| call.id().is_some_and(|id| id.starts_with("last-"))).count()
        };
        agent.wait_for(|calls| seen(calls) >= last.len(), PATIENCE);
        (agent.stop().calls, last)
    });
    let port = Some(u64::from(server.port()));
    for side in ["server", "client"] {
        let of_side = calls.iter().filter(|call| call.text("span_kind") == side && call.number("server.port") == port);
        let mut whole = 0;
        for call in of_side {
            // A response whose request was sent before the agent came has no path to compare with.
            if !call.path().is_empty()
                && let Some(id) = call.id()
            {
                assert_eq!(call.path().rsplit('/').next(), Some(id), "wrongly paired: {}", brief(call));
            }
            if call.path().contains("/last-") {
                assert_eq!(call.status(), Some(200), "{}", brief(call));
                assert!(call.get("weir.incomplete").is_none(), "{}", brief(call));
                whole += 1;
            }
        }
        assert_eq!(whole, last.len(), "{side} calls of connections that the agent met in use");
    }
}
