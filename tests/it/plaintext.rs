//! HTTP/1 in the clear, between real servers and real clients: what the agent reports is what the servers logged.

use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options};
use weir_tests::harness::client::Http;
use weir_tests::harness::servers::{Script, Scripted};
use weir_tests::harness::{PATIENCE, skip};

#[test]
fn a_python_server_is_seen_from_both_sides() {
    let Some(server) = Scripted::python(&Script::default()) else {
        return skip("a_python_server_is_seen_from_both_sides", "no python3");
    };
    let agent = Agent::start(&Options::config(EXPORT_ID));
    let response = Http::tcp(("127.0.0.1", server.port())).get("/id/a1");
    assert_eq!(response.header("x-id"), Some("a1"));
    let of_server = |calls: &[serde_json::Value]| {
        calls.iter().filter(|call| call.number("server.port") == Some(u64::from(server.port()))).count()
    };
    agent.wait_for(|calls| of_server(calls) == 2, PATIENCE);
    agent.stop();
}
