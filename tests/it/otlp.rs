//! What arrives at OpenTelemetry receivers that are not ours: a collector, by both protocols, and Jaeger's query API. And
//! that the agent does not observe its own exports, nor feed on what the receiver does with them.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, Options};
use weir_tests::harness::client::Http;
use weir_tests::harness::guard::Process;
use weir_tests::harness::{PATIENCE, free_port, python_with_packages, server, skip, wait_until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    server::tcp(listener, server::echo());
    port
}

/// The collector's program, in the environment that `cargo xtask setup` made.
pub(crate) fn rotel() -> Option<PathBuf> {
    let python = python_with_packages()?;
    let script = "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))";
    let output = Command::new(python).args(["-c", script]).output().ok()?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    path.is_file().then_some(path)
}

/// A collector that prints everything it receives, its gRPC and its HTTP port.
pub(crate) fn collector(program: &Path) -> (Process, u16, u16) {
    let (grpc, http) = (free_port(), free_port());
    let mut command = Command::new(program);
    command.args(["start", "--exporter", "blackhole", "--debug-log", "traces", "--debug-log", "metrics"]);
    command.args(["--debug-log-verbosity", "detailed", "--batch-timeout", "100ms"]);
    command.args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")]);
    command.args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")]);
    let mut process = Process::spawn(&mut command);
    let listens = wait_until(
        || {
            let ended = process.wait(Duration::ZERO);
            assert!(ended.is_none(), "{ended:?} {:#?} {:#?}", process.stdout(), process.stderr());
            [grpc, http].iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok())
        },
        PATIENCE,
    );
    assert!(listens, "the collector does not listen: {:#?}", process.stderr());
    (process, grpc, http)
}

/// An agent that exports calls of one port.
pub(crate) fn to_collector(protocol: &str, port: u16, target: u16) -> Options {
    Options {
        args: ["--otlp-endpoint", &format!("http://127.0.0.1:{port}"), "--otlp-protocol", protocol]
            .map(str::to_owned)
            .to_vec(),
        config_extra: format!(
            "targets: [\"port:{target}\"]\notlp:\n  traces: {{ delay: 100ms }}\n  metrics: {{ interval: 500ms }}\n"
        ),
        env: Vec::new(),
    }
}

/// One call with a trace context of its caller.
fn call(port: u16) {
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("traceparent", parent.as_str()), ("User-Agent", "weir-test/1")];
    let response = Http::tcp(("127.0.0.1", port)).request("GET", "/orders/otlp-1?page=2", &headers, b"");
    assert_eq!(response.status, 200);
}

fn a_collector_receives(name: &str, protocol: &str) {
    let Some(program) = rotel() else { return skip(name, "rotel is not installed: cargo xtask setup") };
    let (collector, grpc, http) = collector(&program);
    let port = serve();
    let agent = Agent::start(&to_collector(protocol, if protocol == "grpc" { grpc } else { http }, port));
    call(port);
    let calls = agent.wait_for(|calls| calls.len() >= 2, PATIENCE);
    let server = calls.iter().find(|call| call.is_server()).unwrap();
    let printed = || {
        let mut lines = collector.stdout();
        lines.extend(collector.stderr());
        lines.join("\n")
    };
    let wanted = [
        format!("-> service.name: Str({})", server.text("service.name")),
        format!("-> process.pid: Int({})", std::process::id()),
        // One span, head to tail.
        format!(
            "Trace ID       : {TRACE}\n    Parent ID      : {PARENT}\n    ID             : {}\n    \
             Name           : GET /orders/otlp-1\n    Kind           : SPAN_KIND_SERVER",
            server.text("span_id")
        ),
        "Kind           : SPAN_KIND_CLIENT".to_owned(),
        "-> http.request.method: Str(GET)".to_owned(),
        "-> http.response.status_code: Int(200)".to_owned(),
        "-> url.path: Str(/orders/otlp-1)".to_owned(),
        "-> user_agent.original: Str(weir-test/1)".to_owned(),
        "http.server.request.duration".to_owned(),
        "weir_calls_total".to_owned(),
    ];
    let missing = || {
        let text = printed();
        wanted.iter().filter(|word| !text.contains(word.as_str())).cloned().collect::<Vec<_>>()
    };
    assert!(wait_until(|| missing().is_empty(), PATIENCE), "{:?} did not arrive: {}", missing(), printed());
    assert_eq!(server.text("trace_id"), TRACE);
    assert_eq!(server.text("parent_span_id"), PARENT);
    let lost = agent.metric("weir_lost_total", &[("stage", "otlp")]);
    assert!(lost.abs() < f64::EPSILON, "{lost} spans lost");
    agent.stop();
}

#[test]
fn a_collector_receives_spans_and_metrics_by_grpc() {
    a_collector_receives("a_collector_receives_spans_and_metrics_by_grpc", "grpc");
}

#[test]
fn a_collector_receives_spans_and_metrics_by_http() {
    a_collector_receives("a_collector_receives_spans_and_metrics_by_http", "http/protobuf");
}

#[test]
fn exporting_to_this_machine_does_not_feed_on_itself() {
    let name = "exporting_to_this_machine_does_not_feed_on_itself";
    let Some(program) = rotel() else { return skip(name, "rotel is not installed: cargo xtask setup") };
    let (_collector, _, http) = collector(&program);
    let port = serve();
    // The collector's own side of the exports is traffic like any other, were it not the agent's.
    let mut options = to_collector("http/protobuf", http, port);
    options.config_extra =
        options.config_extra.replace(&format!("\"port:{port}\""), &format!("\"port:{port}\", \"port:{http}\""));
    let agent = Agent::start(&options);
    call(port);
    agent.wait_for(|calls| calls.len() >= 2, PATIENCE);
    // The agent exports metrics twice a second: each export would be a call, and each call a span to export.
    let until = Instant::now() + Duration::from_secs(3);
    wait_until(|| Instant::now() > until, PATIENCE);
    assert!(agent.metric("weir_exported_total", &[("exporter", "otlp")]) >= 2.0, "{}", agent.metrics());
    let at_export = agent.calls().iter().filter(|call| call.number("server.port") == Some(u64::from(http))).count();
    assert_eq!(at_export, 0, "the agent reports its own exports");
    agent.stop();
}

/// The Jaeger of the demo, killed at the end.
struct Jaeger(Child);

impl Drop for Jaeger {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Jaeger, and its ports for OTLP and for queries; `None` where it was not built.
fn jaeger() -> Option<(Jaeger, u16, u16)> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/weir-demo-jaeger");
    let path = option_env!("CARGO_BIN_EXE_weir-demo-jaeger").unwrap_or(default);
    let path = Path::new(path);
    if !path.is_file() {
        return None;
    }
    let mut child =
        Command::new(path).args(["127.0.0.1:0", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().expect("Jaeger");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ports: Vec<u16> = line.split_whitespace().filter_map(|word| word.rsplit_once(':')?.1.parse().ok()).collect();
    let [otlp, page] = ports.as_slice() else { panic!("{line}") };
    Some((Jaeger(child), *otlp, *page))
}

#[test]
fn jaeger_shows_the_same_traces() {
    let Some((_jaeger, otlp, page)) = jaeger() else {
        return skip("jaeger_shows_the_same_traces", "weir-demo-jaeger is not built");
    };
    let port = serve();
    let agent = Agent::start(&to_collector("grpc", otlp, port));
    call(port);
    let calls = agent.wait_for(|calls| calls.len() >= 2, PATIENCE);
    let service = calls[0].text("service.name").to_owned();
    assert!(!service.is_empty());
    let ask = |path: &str| -> Value {
        let response = Http::tcp(("127.0.0.1", page)).get(path);
        serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {}", response.text()))
    };
    let spans = || -> Vec<Value> {
        let found = ask(&format!("/api/traces/{TRACE}"));
        found["data"][0]["spans"].as_array().cloned().unwrap_or_default()
    };
    assert!(wait_until(|| spans().len() >= calls.len(), PATIENCE), "{:#?}", spans());
    let spans = spans();
    assert_eq!(spans.len(), calls.len());
    for call in &calls {
        let span = spans.iter().find(|span| span.text("spanID") == call.text("span_id")).unwrap();
        assert_eq!(span.text("traceID"), call.text("trace_id"));
        let tags = span["tags"].as_array().unwrap();
        let tag = |key: &str| tags.iter().find(|tag| tag.text("key") == key).map(|tag| tag["value"].clone());
        let wanted = call.text("parent_span_id");
        let parents = span["references"].as_array().into_iter().flatten().map(|parent| parent.text("spanID"));
        assert_eq!(parents.collect::<Vec<_>>(), Vec::from_iter((!wanted.is_empty()).then_some(wanted)));
        assert_eq!(tag("http.request.method").as_ref().and_then(Value::as_str), Some("GET"));
    }
    let services = ask("/api/services");
    assert!(services["data"].as_array().unwrap().iter().any(|name| *name == service.as_str()), "{services}");
    agent.stop();
}
