//! Who caused whom: by `traceparent`, by the two ends of one connection, by the thread that serves; and no parent at all
//! where none is certain.

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options, brief};
use weir_tests::harness::client::Http;
use weir_tests::harness::servers::{Nginx, Script, Scripted};
use weir_tests::harness::{PATIENCE, skip, wait_until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn observe() -> Agent {
    Agent::start(&Options::config(EXPORT_ID))
}

fn parent(call: &Value) -> &str {
    call.text("parent_span_id")
}

/// The one call of a side at a port with this path.
fn only<'a>(calls: &'a [Value], side: &str, port: u16, path: &str) -> &'a Value {
    let at = calls.iter().filter(|call| call.number("server.port") == Some(u64::from(port)) && call.path() == path);
    let found: Vec<&Value> = at.filter(|call| call.text("span_kind") == side).collect();
    assert_eq!(found.len(), 1, "{side} {path}: {:?}", calls.iter().map(brief).collect::<Vec<_>>());
    found[0]
}

/// Wait for this many calls, of both sides together, at these ports.
fn calls(agent: &Agent, ports: &[u16], count: usize) -> Vec<Value> {
    let here = |call: &&Value| ports.iter().any(|port| call.number("server.port") == Some(u64::from(*port)));
    agent.wait_for(|calls| calls.iter().filter(here).count() >= count, PATIENCE)
}

/// `child` was caused by `cause`, in one trace.
fn assert_caused(child: &Value, cause: &Value) {
    assert_eq!(child.text("trace_id"), cause.text("trace_id"), "{child} by {cause}");
    assert_eq!(parent(child), cause.text("span_id"), "{child} by {cause}");
}

#[test]
fn both_ends_of_a_connection_are_joined_without_any_header() {
    let name = "both_ends_of_a_connection_are_joined_without_any_header";
    let Some(server) = Scripted::python(&Script::default()) else { return skip(name, "no python3") };
    let agent = observe();
    let mut http = Http::tcp(("127.0.0.1", server.port()));
    for index in 0..10 {
        http.get(&format!("/id/j{index}"));
    }
    let calls = calls(&agent, &[server.port()], 20);
    let mut traces = std::collections::BTreeSet::new();
    for index in 0..10 {
        let path = format!("/id/j{index}");
        let client = only(&calls, "client", server.port(), &path);
        assert_eq!(parent(client), "", "{client}");
        assert_caused(only(&calls, "server", server.port(), &path), client);
        traces.insert(client.text("trace_id").to_owned());
    }
    assert_eq!(traces.len(), 10, "requests that have nothing to do with each other");
    agent.stop();
}

#[test]
fn a_traceparent_is_honoured_on_both_sides() {
    let name = "a_traceparent_is_honoured_on_both_sides";
    let Some(server) = Scripted::python(&Script::default()) else { return skip(name, "no python3") };
    let agent = observe();
    let header = format!("00-{TRACE}-{SPAN}-01");
    let mut http = Http::tcp(("127.0.0.1", server.port()));
    http.request("GET", "/id/good", &[("traceparent", &header)], b"");
    http.request("GET", "/id/bad", &[("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01")], b"");
    let calls = calls(&agent, &[server.port()], 4);
    let (client, served) =
        (only(&calls, "client", server.port(), "/id/good"), only(&calls, "server", server.port(), "/id/good"));
    // What a client sends names the client's own span.
    assert_eq!((client.text("trace_id"), client.text("span_id")), (TRACE, SPAN), "{client}");
    assert_caused(served, client);
    let (client, served) =
        (only(&calls, "client", server.port(), "/id/bad"), only(&calls, "server", server.port(), "/id/bad"));
    assert_eq!(parent(client), "", "an invalid value names nobody: {client}");
    assert_caused(served, client);
    agent.stop();
}

#[test]
fn a_call_made_while_serving_has_the_served_request_as_parent() {
    let name = "a_call_made_while_serving_has_the_served_request_as_parent";
    let Some(behind) = Scripted::python(&Script::default()) else { return skip(name, "no python3") };
    let front = Scripted::python(&Script { upstream: Some(behind.url()), ..Script::default() }).unwrap();
    let agent = observe();
    // Several at a time: each has a thread of its own.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let port = front.port();
            scope.spawn(move || {
                let mut http = Http::tcp(("127.0.0.1", port));
                for index in 0..5 {
                    http.get(&format!("/call/c{thread}-{index}"));
                }
            });
        }
    });
    let calls = calls(&agent, &[front.port(), behind.port()], 80);
    for thread in 0..4 {
        for index in 0..5 {
            let (outer, inner) = (format!("/call/c{thread}-{index}"), format!("/id/c{thread}-{index}"));
            let served = only(&calls, "server", front.port(), &outer);
            let made = only(&calls, "client", behind.port(), &inner);
            assert_caused(served, only(&calls, "client", front.port(), &outer));
            assert_caused(made, served);
            assert_caused(only(&calls, "server", behind.port(), &inner), made);
        }
    }
    agent.stop();
}

#[test]
fn a_proxy_that_passes_the_traceparent_on_is_in_the_chain() {
    let name = "a_proxy_that_passes_the_traceparent_on_is_in_the_chain";
    let Some(behind) = Scripted::python(&Script::default()) else { return skip(name, "no python3") };
    let Some(proxy) = Nginx::start(Some(&behind.url())) else { return skip(name, "no nginx") };
    let agent = observe();
    let mut http = Http::tcp(("127.0.0.1", proxy.port()));
    http.request("GET", "/call/x1", &[("traceparent", &format!("00-{TRACE}-{SPAN}-01"))], b"");
    let calls = calls(&agent, &[proxy.port(), behind.port()], 4);
    let client = only(&calls, "client", proxy.port(), "/call/x1");
    let served = only(&calls, "server", proxy.port(), "/call/x1");
    let made = only(&calls, "client", behind.port(), "/id/x1");
    let answered = only(&calls, "server", behind.port(), "/id/x1");
    for call in [client, served, made, answered] {
        assert_eq!(call.text("trace_id"), TRACE, "{call}");
    }
    assert_eq!(client.text("span_id"), SPAN, "{client}");
    assert_caused(served, client);
    assert_caused(made, served);
    assert_caused(answered, made);
    agent.stop();
}

#[test]
fn a_thread_that_serves_two_requests_at_a_time_names_no_parent() {
    let name = "a_thread_that_serves_two_requests_at_a_time_names_no_parent";
    let Some(behind) = Scripted::python(&Script::default()) else { return skip(name, "no python3") };
    let script = Script { upstream: Some(behind.url()), ..Script::default() };
    let Some(front) = Scripted::node(&script) else { return skip(name, "no node") };
    let agent = observe();
    std::thread::scope(|scope| {
        for index in 0..2 {
            let port = front.port();
            // Neither is answered before both are being served.
            scope.spawn(move || Http::tcp(("127.0.0.1", port)).get(&format!("/gather/2/g{index}")));
        }
    });
    let calls = calls(&agent, &[front.port(), behind.port()], 8);
    for index in 0..2 {
        let made = only(&calls, "client", behind.port(), &format!("/id/g{index}"));
        assert_eq!(parent(made), "", "which of two requests caused it cannot be known: {made}");
        assert_caused(only(&calls, "server", behind.port(), &format!("/id/g{index}")), made);
        let outer = format!("/gather/2/g{index}");
        assert_caused(only(&calls, "server", front.port(), &outer), only(&calls, "client", front.port(), &outer));
    }
    let counted = || agent.metric("weir_unlinked_total", &[("reason", "ambiguous")]) >= 2.0;
    assert!(wait_until(counted, PATIENCE), "calls without a parent are not counted");
    agent.stop();
}
