//! What rides on HTTP, between real libraries: gRPC, server-sent events, WebSockets, GraphQL, JSON-RPC, the Model Context
//! Protocol and coded content. The agent tells what each call is and how many messages it had; what they say stays here.

use std::collections::BTreeMap;
use std::io::{PipeWriter, Write as _};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use weir_tests::harness::agent::{Agent, Call as _, Options, brief};
use weir_tests::harness::guard::Process;
use weir_tests::harness::http2::{Caller, Client, Kind, Server, rpcs};
use weir_tests::harness::tls::Certificates;
use weir_tests::harness::{PATIENCE, python_with_packages, skip, wait_until};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/riders");
/// In every value that must not leave.
const SECRET: &str = "s3cr3t";

/// The server of `serve.py`, the client of `call.py`, and an agent that came after the server.
struct Riders {
    agent: Agent,
    _server: Process,
    client: Process,
    input: PipeWriter,
    port: u16,
    mcp_port: u16,
}

impl Riders {
    fn start() -> Result<Self, String> {
        let python = python_with_packages().ok_or("no python3 with the tests' packages")?;
        let command = |script: &str| {
            let mut command = Command::new(python);
            command.arg(Path::new(FIXTURES).join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
            command
        };
        let mut server = Process::spawn(&mut command("serve.py"));
        let ready = server.wait_for_stdout("ready", PATIENCE);
        let ports: Vec<u16> = ready.split(' ').map(|port| port.parse().unwrap()).collect();
        let agent = Agent::start(&Options::default());
        let (input, go) = std::io::pipe().unwrap();
        let mut client = command("call.py");
        client.args(ready.split(' ')).stdin(input);
        let mut client = Process::spawn(&mut client);
        client.wait_for_stdout("ready", PATIENCE);
        Ok(Self { agent, _server: server, client, input: go, port: ports[0], mcp_port: ports[1] })
    }

    fn say(&mut self, line: &str, answer: &str) {
        writeln!(self.input, "{line}").unwrap();
        self.client.wait_for_stdout(answer, PATIENCE);
    }

    /// The calls of a group as the server made them and as the client did, `count` of each whose path begins so, in order.
    fn group(&mut self, name: &str, path: &str, count: usize) -> [Vec<Value>; 2] {
        self.say(name, &format!("done {name}"));
        self.calls(path, count)
    }

    fn calls(&self, path: &str, count: usize) -> [Vec<Value>; 2] {
        let ports = [self.port, self.mcp_port].map(u64::from);
        let of_side = |calls: &[Value], side: &str| -> Vec<Value> {
            let ours = |call: &&Value| {
                call.text("span_kind") == side
                    && call.path().starts_with(path)
                    && call.number("server.port").is_some_and(|port| ports.contains(&port))
            };
            calls.iter().filter(ours).cloned().collect()
        };
        let enough = |calls: &[Value]| ["server", "client"].iter().all(|side| of_side(calls, side).len() >= count);
        let calls = self.agent.wait_for(enough, PATIENCE);
        ["server", "client"].map(|side| {
            let of_side = of_side(&calls, side);
            let listed: Vec<_> = of_side.iter().map(brief).collect();
            assert_eq!(of_side.len(), count, "{side}: {listed:#?}");
            of_side
        })
    }

    /// Nothing that was said between the two has left the agent by any way.
    fn end(self) {
        let shown = self.agent.get("/api/v1/calls") + &self.agent.metrics() + &self.agent.status().to_string();
        assert!(!shown.contains(SECRET), "the API shows what was said");
        let stopped = self.agent.stop();
        for call in &stopped.calls {
            assert!(!call.to_string().contains(SECRET), "{call:#}");
        }
        let said = stopped.stderr.join("\n") + &stopped.stdout.join("\n");
        assert!(!said.contains(SECRET), "{said}");
    }
}

/// These attributes, and no other value of them.
fn assert_has(call: &Value, wanted: &Value) {
    for (key, value) in wanted.as_object().unwrap() {
        let found = call.get(key).cloned().unwrap_or(Value::Null);
        assert_eq!(found, *value, "{key} of {call:#}");
    }
}

/// A call by the last segment of its path.
fn by_name(calls: &[Value]) -> BTreeMap<&str, &Value> {
    calls.iter().map(|call| (call.path().rsplit('/').next().unwrap_or_default(), call)).collect()
}

/// The calls of each side, in the order in which they were made, have these attributes.
fn assert_all(sides: &[Vec<Value>; 2], wanted: &[Value]) {
    for side in sides {
        for (call, wanted) in side.iter().zip(wanted) {
            assert_has(call, wanted);
        }
    }
}

#[test]
fn events_of_a_stream_are_counted() {
    let name = "events_of_a_stream_are_counted";
    let mut riders = match Riders::start() {
        Ok(riders) => riders,
        Err(why) => return skip(name, &why),
    };
    for calls in riders.group("events", "/events/", 4) {
        for (call, count) in calls.iter().zip([0, 1, 7, 300]) {
            assert_has(call, &json!({ "http.response.status_code": 200, "weir.messages.kind": "event_stream" }));
            let counted = call.number("weir.response.messages");
            // Whoever receives many events at once beyond what is copied of a message is told of those that were seen.
            if count == 300 && call.text("span_kind") == "client" && call.get("weir.response.messages_exact").is_some()
            {
                assert_eq!(call["weir.response.messages_exact"], false);
                assert!(counted.is_some_and(|counted| (1..300).contains(&counted)), "{call:#}");
                continue;
            }
            assert_eq!(counted, Some(count), "{call:#}");
            assert_has(call, &json!({ "weir.response.messages_exact": null, "weir.incomplete": null }));
        }
    }
    riders.end();
}

#[test]
fn messages_of_a_websocket_are_counted_both_ways_with_its_close_code() {
    let name = "messages_of_a_websocket_are_counted_both_ways_with_its_close_code";
    let mut riders = match Riders::start() {
        Ok(riders) => riders,
        Err(why) => return skip(name, &why),
    };
    for calls in riders.group("sockets", "/socket/", 3) {
        let calls = by_name(&calls);
        for (name, sent, received, code) in
            [("client-closes", 5, 5, 1000), ("server-closes", 4, 3, 4001), ("nothing-said", 0, 0, 1000)]
        {
            let wanted = json!({
                "http.response.status_code": 101, "weir.messages.kind": "websocket", "weir.request.messages": sent,
                "weir.response.messages": received, "weir.websocket.close_code": code,
            });
            assert_has(calls[name], &wanted);
        }
    }
    riders.end();
}

#[test]
fn streams_are_visible_before_they_end() {
    let name = "streams_are_visible_before_they_end";
    let mut riders = match Riders::start() {
        Ok(riders) => riders,
        Err(why) => return skip(name, &why),
    };
    riders.say("held", "open held");
    let shown = |path: &str| riders.agent.get("/api/v1/calls/open").contains(path);
    let visible = wait_until(|| shown("/events/1000/0.2/held") && shown("/socket/held"), PATIENCE);
    assert!(visible, "{}", riders.agent.get("/api/v1/calls/open"));
    // A span ends when its stream does.
    let exported = riders.agent.calls().iter().any(|call| call.path().ends_with("held"));
    assert!(!exported, "exported before its end");
    riders.say("", "done held");
    let events = riders.calls("/events/", 1);
    let sockets = riders.calls("/socket/", 1);
    for call in events.iter().flatten() {
        // The client reads the first event and then nothing, which is all that it received.
        let least = if call.text("span_kind") == "server" { 5 } else { 1 };
        assert!(call.number("weir.response.messages").is_some_and(|count| count >= least), "{call:#}");
        assert!(
            call.number("duration_ns").is_some_and(|long| long >= 2_000_000_000),
            "open for less than it was: {call:#}"
        );
    }
    for call in sockets.iter().flatten() {
        assert_has(call, &json!({ "weir.request.messages": 1, "weir.response.messages": 1 }));
    }
    riders.end();
}

#[test]
fn operations_of_graphql_are_named() {
    let name = "operations_of_graphql_are_named";
    let mut riders = match Riders::start() {
        Ok(riders) => riders,
        Err(why) => return skip(name, &why),
    };
    let operation = |name: Option<&str>, kind: &str, batch: Option<u64>| {
        json!({
            "graphql.operation.name": name, "graphql.operation.type": kind, "weir.graphql.batch_size": batch,
            "graphql.document": null, "http.response.status_code": 200,
        })
    };
    let wanted = [
        operation(Some("ReadOrder"), "query", None),
        operation(Some("PlaceOrder"), "mutation", None),
        operation(None, "query", None),
        json!({ "weir.graphql.batch_size": 2 }),
        operation(Some("ByAddress"), "query", None),
    ];
    let sides = riders.group("graphql", "/graphql", wanted.len());
    assert_all(&sides, &wanted);
    riders.end();
}

#[test]
fn methods_of_json_rpc_are_named() {
    let name = "methods_of_json_rpc_are_named";
    let mut riders = match Riders::start() {
        Ok(riders) => riders,
        Err(why) => return skip(name, &why),
    };
    let wanted = [
        json!({ "rpc.system": "jsonrpc", "rpc.method": "orders.sum", "rpc.jsonrpc.error_code": null }),
        json!({ "rpc.system": "jsonrpc", "rpc.method": "orders.missing", "rpc.jsonrpc.error_code": -32601 }),
        json!({ "rpc.system": "jsonrpc", "rpc.method": "orders.notice", "weir.jsonrpc.notification": true }),
        json!({ "rpc.system": "jsonrpc", "weir.jsonrpc.batch_size": 3 }),
    ];
    let sides = riders.group("jsonrpc", "/rpc", wanted.len());
    assert_all(&sides, &wanted);
    riders.end();
}

#[test]
fn coded_content_is_read_through_its_coding() {
    let name = "coded_content_is_read_through_its_coding";
    let mut riders = match Riders::start() {
        Ok(riders) => riders,
        Err(why) => return skip(name, &why),
    };
    for calls in riders.group("coded", "/coded/", 4) {
        let calls = by_name(&calls);
        for coding in ["gzip", "deflate", "br", "zstd"] {
            let wanted = json!({ "rpc.system": "jsonrpc", "rpc.method": format!("coded.{coding}") });
            assert_has(calls[format!("c-{coding}").as_str()], &wanted);
        }
    }
    riders.end();
}

#[test]
fn tools_of_the_model_context_protocol_are_named() {
    let name = "tools_of_the_model_context_protocol_are_named";
    let mut riders = match Riders::start() {
        Ok(riders) => riders,
        Err(why) => return skip(name, &why),
    };
    riders.say("mcp", "done mcp");
    let tool = |call: &Value| call.text("gen_ai.tool.name").to_owned();
    let both = |calls: &[Value]| {
        let called =
            |side: &str, name: &str| calls.iter().any(|call| call.text("span_kind") == side && tool(call) == name);
        ["server", "client"].iter().all(|side| called(side, "add") && called(side, "fail"))
    };
    let calls = riders.agent.wait_for(both, PATIENCE);
    for call in calls.iter().filter(|call| !tool(call).is_empty()) {
        let wanted = json!({
            "rpc.system": "jsonrpc", "rpc.method": "tools/call", "mcp.method.name": "tools/call",
            "gen_ai.operation.name": "execute_tool", "http.response.status_code": 200,
        });
        assert_has(call, &wanted);
    }
    for side in ["server", "client"] {
        let listed = |call: &Value| call.text("span_kind") == side && call.text("mcp.method.name") == "tools/list";
        assert!(calls.iter().any(listed), "{side} listed no tools");
    }
    riders.end();
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
