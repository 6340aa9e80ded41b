//! What rides on HTTP, between real libraries: the agent tells what each call is and how many messages it had.

use serde_json::{Value, json};
use weir_tests::harness::agent::{Agent, Call as _, Options};
use weir_tests::harness::http2::{Caller, Client, Kind, Server, rpcs};
use weir_tests::harness::tls::Certificates;
use weir_tests::harness::{PATIENCE, skip};

/// These attributes, and no other value of them.
fn assert_has(call: &Value, wanted: &Value) {
    for (key, value) in wanted.as_object().unwrap() {
        let found = call.get(key).cloned().unwrap_or(Value::Null);
        assert_eq!(found, *value, "{key} of {call:#}");
    }
}

#[test]
fn kinds_of_grpc_have_their_status_and_messages() {
    const EACH: usize = 100;
    let name = "kinds_of_grpc_have_their_status_and_messages";
    let started = || {
        let certificates = Certificates::make()?;
        let server = Server::start(Kind::Grpcio, false, &certificates)?;
        let client = Client::start(Caller::Grpcio, &server, &rpcs(1, EACH), 20, &certificates)?;
        Ok::<_, String>((certificates, server, client))
    };
    let agent = Agent::start(&Options::default());
    let (_certificates, server, mut client) = match started() {
        Ok(started) => started,
        Err(why) => return skip(name, &why),
    };
    client.run();
    let port = Some(u64::from(server.port()));
    let of_side = |calls: &[Value], side: &str| -> Vec<Value> {
        let ours = |call: &&Value| call.text("span_kind") == side && call.number("server.port") == port;
        calls.iter().filter(ours).cloned().collect()
    };
    let all = |calls: &[Value]| ["server", "client"].iter().all(|side| of_side(calls, side).len() >= EACH);
    let calls = agent.wait_for(all, PATIENCE);
    for side in ["server", "client"] {
        let calls = of_side(&calls, side);
        assert_eq!(calls.len(), EACH, "{side}");
        for (method, sent, received, status, streaming) in [
            ("Unary", Some(1), Some(1), 0, Some("unary")),
            ("ServerStream", Some(1), Some(5), 0, Some("server_stream")),
            ("ClientStream", Some(3), Some(1), 0, Some("client_stream")),
            ("BidiStream", Some(3), Some(3), 0, Some("bidi_stream")),
            // Trailers alone: a status, and no message.
            ("Missing", Some(1), None, 5, None),
        ] {
            let of_method: Vec<_> = calls.iter().filter(|call| call.path().ends_with(method)).collect();
            assert_eq!(of_method.len(), EACH / 5, "{side} {method}");
            for call in of_method {
                let mut wanted = json!({
                    "rpc.system": "grpc", "rpc.service": "weir.test.Echo", "rpc.method": method,
                    "rpc.grpc.status_code": status, "weir.request.messages": sent, "weir.messages.kind": "grpc",
                    "http.response.status_code": 200, "weir.incomplete": null,
                });
                if let (Some(received), Some(streaming)) = (received, streaming) {
                    wanted["weir.response.messages"] = json!(received);
                    wanted["weir.rpc.streaming"] = json!(streaming);
                }
                assert_has(call, &wanted);
            }
        }
    }
    agent.stop();
}
