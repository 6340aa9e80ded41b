//! The admin server over real sockets, and the store by itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::api::{self, Loss, Probe};
use super::store::{Bounds, EndpointKey, Filter, StatusFilter, Store};
use super::*;
use crate::model::{CallReport, Role, SpanId, TraceContext, TraceId, Workload, fixture};

const TRACE: &str = "0000000000000000000000000000002a";
/// No test waits longer for what has to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A call of `shop`, GET `/items/1`, 200 in 1 ms.
fn call() -> CallReport {
    CallReport {
        start_unix_ns: 1_700_000_000_000_000_000,
        duration_ns: 1_000_000,
        trace: TraceContext {
            trace_id: TraceId(42_u128.to_be_bytes()),
            span_id: SpanId([1; 8]),
            parent: None,
            parent_remote: false,
            sampled: None,
        },
        path: Some("/items/1".into()),
        route: Some("/items/{id}".into()),
        pid: 7,
        tid: 7,
        workload: Arc::new(Workload { service_name: Some("shop".into()), ..Workload::default() }),
        ..fixture::minimal(Role::Server)
    }
}

fn at(path: &str) -> Arc<CallReport> {
    Arc::new(CallReport { path: Some(path.into()), ..call() })
}

fn paths(page: &store::Page) -> Vec<String> {
    page.calls.iter().map(|kept| kept.report.path.as_deref().unwrap_or_default().to_owned()).collect()
}

fn json(report: &CallReport) -> String {
    serde_json::json!({
        "timestamp": "2026-11-24T22:31:05.123456789Z",
        "duration_ns": report.duration_ns,
        "span_kind": report.role.name(),
        "trace_id": TRACE,
        "service.name": report.workload.service_name.as_deref(),
        "http.request.method": report.method.as_deref(),
        "http.response.status_code": report.status,
        "url.path": report.path.as_deref(),
        "client.address": "::1",
        "client.port": 4000,
    })
    .to_string()
}

fn status(readiness: Readiness) -> Status {
    Status {
        version: "0.0.0".into(),
        uptime_seconds: 1.0,
        mode: "observe".into(),
        readiness,
        probes: vec![Probe { name: "send".into(), attached: false, reason: Some("no BTF".into()) }],
        losses: vec![Loss { stage: "kernel".into(), reason: "ring_full".into(), count: 3 }],
        blind_spots: Vec::new(),
        tls: api::Tls::default(),
        coverage_ratio: None,
        cpu_seconds: 0.0,
        memory_bytes: 1,
        memory_limit_bytes: 2,
        exporters: Vec::new(),
    }
}

/// A server on sockets of its own; `config` gets its addresses changed.
struct Server {
    address: SocketAddr,
    socket: PathBuf,
    token: String,
    store: Arc<Store>,
    directory: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    async fn start() -> Self {
        Self::with(AdminConfig::default(), Readiness::Ready, Bounds::default()).await
    }

    async fn with(config: AdminConfig, readiness: Readiness, bounds: Bounds) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let token_out = directory.path().join("run/token");
        let config = AdminConfig {
            tcp: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            socket: Some(directory.path().join("run/weir.sock")),
            token_out: Some(token_out.clone()),
            ..config
        };
        let store = Store::new(bounds);
        let admin = bind(config, state(&store, readiness)).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let address = admin.address().unwrap();
        let socket = admin.socket_path().unwrap().to_owned();
        let task = tokio::spawn(admin.serve(async {
            stopped.await.unwrap_or_default();
        }));
        let token = std::fs::read_to_string(&token_out).unwrap().trim().to_owned();
        Self { address, socket, token, store, directory, stop, task }
    }

    async fn send(&self, request: &str) -> Answer {
        let host = self.address.to_string();
        let lines = if request.to_ascii_lowercase().contains("\nhost:") {
            request.to_owned()
        } else {
            format!("{request}\nHost: {host}")
        };
        let raw = lines.replace("{token}", &self.token).replace("{host}", &host).replace('\n', "\r\n");
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(format!("{raw}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\nAuthorization: Bearer {{token}}")).await
    }

    fn target(&self) -> client::Target {
        client::Target::Socket(self.socket.clone())
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn state(store: &Arc<Store>, readiness: Readiness) -> AdminState {
    AdminState {
        store: Arc::clone(store),
        status: Arc::new(move || status(readiness)),
        metrics: Arc::new(|| "weir_calls_total 1\n".into()),
        call_json: Arc::new(json),
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
}

// === store

#[test]
fn the_ring_keeps_the_newest_calls_within_its_bound() {
    let store = Store::new(Bounds { calls: 3, ..Bounds::default() });
    for path in ["/1", "/2", "/3", "/4", "/5"] {
        store.append(&at(path));
    }
    let page = store.query(&Filter::default(), None, 10);
    assert_eq!(paths(&page), ["/3", "/4", "/5"]);
    assert_eq!((page.next, page.missed, page.reset), (5, 0, false));
    let counters = store.counters();
    assert_eq!((counters.appended, counters.kept, counters.evicted), (5, 3, 2));
}

#[test]
fn the_ring_keeps_its_bound_in_bytes_and_shrinks_when_told() {
    let store = Store::new(Bounds { bytes: 100_000, ..Bounds::default() });
    for _ in 0..100 {
        store.append(&at(&"x".repeat(4_000)));
    }
    let counters = store.counters();
    assert!(counters.kept_bytes <= 100_000 && counters.kept_bytes > 90_000, "{counters:?}");
    store.set_bytes_limit(20_000);
    assert!(store.counters().kept_bytes <= 20_000 && store.counters().kept > 0);
    store.append(&at(&"x".repeat(50_000)));
    let counters = store.counters();
    assert_eq!((counters.kept, counters.kept_bytes, counters.appended), (0, 0, 101));
    assert!(store.query(&Filter::default(), None, 10).calls.is_empty());
}

#[test]
fn a_cursor_gives_every_call_once_and_says_what_was_missed() {
    let store = Store::new(Bounds { calls: 4, ..Bounds::default() });
    assert_eq!(store.query(&Filter::default(), Some(0), 10).next, 0);
    for path in ["/1", "/2", "/3"] {
        store.append(&at(path));
    }
    let first = store.query(&Filter::default(), Some(0), 2);
    assert_eq!((paths(&first), first.next), (vec!["/1".into(), "/2".into()], 2));
    for path in ["/4", "/5", "/6", "/7"] {
        store.append(&at(path));
    }
    let second = store.query(&Filter::default(), Some(first.next), 10);
    assert_eq!((paths(&second).len(), second.next, second.missed), (4, 7, 1));
    assert!(store.query(&Filter::default(), Some(7), 10).calls.is_empty());
    let other_run = store.query(&Filter::default(), Some(1_000), 10);
    assert_eq!((other_run.calls.len(), other_run.next, other_run.reset), (4, 7, true));
}

#[test]
fn a_filtered_cursor_goes_on_behind_what_it_looked_at() {
    let store = Store::new(Bounds::default());
    for n in 0..5_000 {
        store.append(&at(if n == 4_321 { "/needle" } else { "/hay" }));
    }
    let filter = Filter { path_prefix: Some("/needle".into()), ..Filter::default() };
    let page = store.query(&filter, Some(10), 10);
    assert_eq!((paths(&page), page.next), (vec!["/needle".into()], 5_000));
    assert_eq!(paths(&store.query(&filter, None, 10)), ["/needle"]);
}

#[test]
fn each_filter_lets_its_calls_pass_and_no_other() {
    let failed = CallReport { status: None, error_type: Some("timeout".into()), ..call() };
    let refused = CallReport { status: Some(503), error_type: Some("503".into()), role: Role::Client, ..call() };
    let some = |filter: Filter| [call(), failed.clone(), refused.clone()].map(|report| filter.matches(&report));
    let status = |text: &str| Filter { status: StatusFilter::parse(text), ..Filter::default() };
    let table = [
        (Filter::default(), [true, true, true]),
        (status("2xx"), [true, false, false]),
        (status("5xx"), [false, false, true]),
        (status("503"), [false, false, true]),
        (status("error"), [false, true, true]),
        (Filter { role: Some(Role::Client), ..Filter::default() }, [false, false, true]),
        (Filter { service: Some("shop".into()), ..Filter::default() }, [true, true, true]),
        (Filter { service: Some("sho".into()), ..Filter::default() }, [false, false, false]),
        (Filter { method: Some("get".into()), ..Filter::default() }, [true, true, true]),
        (Filter { method: Some("PUT".into()), ..Filter::default() }, [false, false, false]),
        (Filter { path_prefix: Some("/items".into()), ..Filter::default() }, [true, true, true]),
        (Filter { path_prefix: Some("items".into()), ..Filter::default() }, [false, false, false]),
        (Filter { trace_id: Some(TraceId([9; 16])), ..Filter::default() }, [false, false, false]),
        (Filter { pid: Some(7), ..Filter::default() }, [true, true, true]),
    ];
    for (filter, expected) in table {
        assert_eq!(some(filter.clone()), expected, "{filter:?}");
    }
    for text in ["", "2", "2xxx", "x2x", "20x", "099", "2000", "ERROR"] {
        assert_eq!(StatusFilter::parse(text), None, "{text}");
    }
}

#[test]
fn endpoints_count_calls_and_errors_and_estimate_quantiles_within_a_sixteenth() {
    let store = Store::new(Bounds::default());
    for ms in 1..=1_000_u64 {
        let error_type = (ms % 10 == 0).then(|| "500".into());
        store.append(&Arc::new(CallReport { duration_ns: ms * 1_000_000, error_type, ..call() }));
    }
    let (endpoints, overflow) = store.endpoints();
    let [endpoint] = endpoints.as_slice() else { panic!("{endpoints:?}") };
    assert_eq!((endpoint.calls, endpoint.errors, overflow), (1_000, 100, 0));
    let key = EndpointKey {
        service: Some("shop".into()),
        role: Role::Server,
        method: Some("GET".into()),
        route: Some("/items/{id}".into()),
    };
    assert_eq!(endpoint.key, key);
    for (estimate, exact) in [(endpoint.p50_ns, 500e6), (endpoint.p95_ns, 950e6), (endpoint.p99_ns, 990e6)] {
        assert!((estimate as f64 / exact - 1.0).abs() < 1.0 / 16.0, "{estimate} for {exact}");
    }
}

#[test]
fn latencies_of_any_size_have_a_place() {
    let store = Store::new(Bounds::default());
    for duration_ns in [0, 1, 999, 1_024, u64::MAX] {
        let route = Some(duration_ns.to_string().into());
        store.append(&Arc::new(CallReport { duration_ns, route, ..call() }));
    }
    let (endpoints, _) = store.endpoints();
    assert!(endpoints.iter().all(|endpoint| endpoint.p50_ns >= 1_024 && endpoint.p50_ns < 1 << 40), "{endpoints:?}");
    assert!(store.memory() < 100_000);
}

#[test]
fn endpoints_beyond_the_bound_are_only_counted() {
    let store = Store::new(Bounds { endpoints: 2, ..Bounds::default() });
    for route in ["/a", "/b", "/c", "/a", "/d"] {
        store.append(&Arc::new(CallReport { route: Some(route.into()), ..call() }));
    }
    let (endpoints, overflow) = store.endpoints();
    assert_eq!((endpoints.len(), overflow), (2, 2));
    assert_eq!(endpoints.iter().map(|endpoint| endpoint.calls).sum::<u64>(), 3);
}

/// A call that goes on.
fn going_on(span: u8, path: &str, duration_ns: u64) -> Arc<CallReport> {
    let trace = TraceContext { span_id: SpanId([span; 8]), ..call().trace };
    Arc::new(CallReport { trace, path: Some(path.into()), duration_ns, in_progress: true, ..call() })
}

#[test]
fn a_call_that_goes_on_is_shown_until_its_end_and_counted_nowhere() {
    let store = Store::new(Bounds { open: 2, ..Bounds::default() });
    let shown = |filter: &Filter| -> Vec<_> {
        store.open(filter, 10).iter().map(|call| (call.path.clone().unwrap(), call.duration_ns)).collect()
    };
    let all = Filter::default();
    store.show(&going_on(1, "/a", 2));
    store.show(&going_on(2, "/b", 2));
    store.show(&going_on(1, "/a", 4));
    store.show(&going_on(3, "/c", 2));
    assert_eq!(shown(&all), [("/a".into(), 4), ("/b".into(), 2)]);
    assert_eq!(shown(&Filter { path_prefix: Some("/b".into()), ..all.clone() }), [("/b".into(), 2)]);
    let counters = store.counters();
    assert_eq!((counters.open, counters.open_overflow, counters.appended, counters.endpoints), (2, 1, 0, 0));
    let trace = TraceContext { span_id: SpanId([1; 8]), ..call().trace };
    store.append(&Arc::new(CallReport { trace, ..call() }));
    assert_eq!(shown(&all), [("/b".into(), 2)]);
    assert_eq!((store.counters().open, store.counters().appended), (1, 1));
    store.expire_open(call().start_unix_ns + 2);
    assert_eq!(store.counters().open, 1);
    store.expire_open(call().start_unix_ns + 3);
    assert!(shown(&all).is_empty() && store.counters().open == 0);
}

#[tokio::test]
async fn a_slow_subscriber_loses_calls_that_are_counted_and_the_writer_never_waits() {
    let store = Store::new(Bounds { subscriber_queue: 4, subscribers: 2, ..Bounds::default() });
    let mut slow = store.subscribe(Filter::default()).unwrap();
    let picky = store.subscribe(Filter { pid: Some(1), ..Filter::default() }).unwrap();
    assert!(store.subscribe(Filter::default()).is_none());
    for _ in 0..10 {
        store.append(&at("/"));
    }
    let mut calls = Vec::new();
    assert_eq!(slow.receive(&mut calls, 64).await, 4);
    assert_eq!(calls.iter().map(|kept| kept.cursor).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!((slow.take_dropped(), slow.take_dropped(), picky.take_dropped()), (6, 0, 0));
    assert_eq!((store.counters().subscribers, store.counters().subscriber_dropped), (2, 6));
    drop(picky);
    assert!(store.subscribe(Filter::default()).is_some());
}

// === who may ask

#[tokio::test]
async fn only_who_shows_the_token_or_the_cookie_sees_traffic() {
    let server = Server::start().await;
    server.store.append(&at("/secret"));
    let session =
        server.send("POST /api/v1/session HTTP/1.1\nAuthorization: Bearer {token}\nOrigin: http://{host}").await;
    assert_eq!(session.status, 204);
    let cookie = session.header("set-cookie").unwrap().to_owned();
    assert!(cookie.ends_with("; HttpOnly; SameSite=Strict") && !cookie.contains(&server.token), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();

    let traffic = [
        "/api/v1/calls",
        "/api/v1/calls/stream",
        "/api/v1/endpoints",
        "/api/v1/status",
        "/metrics",
        "/api/v1/none",
        "//",
        "/ui",
        &format!("/api/v1/traces/{TRACE}"),
    ];
    let wrong = [
        String::new(),
        "\nAuthorization: Bearer".into(),
        "\nAuthorization: Bearer ".into(),
        "\nAuthorization: Bearer wrong".into(),
        format!("\nAuthorization: Bearer {}", server.token.replace(|c| c != '0', "0")),
        "\nAuthorization: Bearer {token}0".into(),
        "\nAuthorization: Basic {token}".into(),
        "\nAuthorization: {token}".into(),
        "\nAuthorization: Bearer {token}\nAuthorization: Bearer wrong".into(),
        "\nCookie: weir_session=x".into(),
        format!("\nCookie: {cookie}0"),
        format!("\nCookie: weir_session_{}={{token}}", server.address.port()),
        format!("\nCookie: {cookie}\nAuthorization: Bearer wrong"),
    ];
    for path in traffic {
        for credentials in &wrong {
            let answer = server.send(&format!("GET {path} HTTP/1.1{credentials}")).await;
            assert_eq!(answer.status, 401, "{path} {credentials}");
            assert!(!answer.body.contains("secret") && answer.json()["error"].is_string(), "{}", answer.body);
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"weir\""));
        }
    }
    let right = [
        "\nAuthorization: Bearer {token}".to_owned(),
        "\nAuthorization: bearer {token}".into(),
        format!("\nCookie: {cookie}"),
        format!("\nCookie: a=b; {cookie}; c=d"),
    ];
    for credentials in right {
        let answer = server.send(&format!("GET /api/v1/calls HTTP/1.1{credentials}")).await;
        assert_eq!(answer.status, 200, "{credentials}");
        assert_eq!(answer.json()["calls"][0]["url.path"], "/secret");
    }
    // The cookie cannot be made to last by itself.
    let renewal = server.send(&format!("POST /api/v1/session HTTP/1.1\nCookie: {cookie}")).await;
    assert_eq!(renewal.status, 401);
    server.end().await;
}

#[tokio::test]
async fn a_foreign_host_or_page_is_refused_even_with_the_token() {
    let config = AdminConfig { hosts: vec!["weir.example".into()], ..AdminConfig::default() };
    let server = Server::with(config, Readiness::Ready, Bounds::default()).await;
    let port = server.address.port();
    let table = [
        (format!("Host: 127.0.0.1:{port}"), 200),
        (format!("Host: localhost:{port}"), 200),
        ("Host: LOCALHOST".into(), 200),
        ("Host: [::1]:9464".into(), 200),
        ("Host: weir.example".into(), 200),
        ("Host: evil.example".into(), 421),
        ("Host: 127.0.0.1.evil.example".into(), 421),
        ("Host: localhost.evil.example".into(), 421),
        ("Host: 10.0.0.1".into(), 421),
        ("Host: evil.example@127.0.0.1".into(), 421),
        ("Host: ".into(), 421),
        ("Host: 127.0.0.1\nHost: evil.example".into(), 421),
        ("Host: {host}\nSec-Fetch-Site: same-origin".into(), 200),
        ("Host: {host}\nSec-Fetch-Site: none".into(), 200),
        ("Host: {host}\nSec-Fetch-Site: same-site".into(), 403),
        ("Host: {host}\nSec-Fetch-Site: cross-site".into(), 403),
        ("Host: {host}\nOrigin: http://{host}".into(), 200),
        ("Host: {host}\nOrigin: http://127.0.0.1:1".into(), 403),
        ("Host: {host}\nOrigin: null".into(), 403),
    ];
    for (lines, expected) in table {
        let answer =
            server.send(&format!("GET /api/v1/calls HTTP/1.1\nAuthorization: Bearer {{token}}\n{lines}")).await;
        assert_eq!(answer.status, expected, "{lines}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let proxy = "GET http://evil.example/api/v1/calls HTTP/1.1\nAuthorization: Bearer {token}";
    assert_eq!(server.send(proxy).await.status, 421);
    // A link to the page is no request of another page.
    assert_eq!(server.send("GET / HTTP/1.1\nSec-Fetch-Site: cross-site").await.status, 200);
    assert_eq!(server.send("GET / HTTP/1.1\nHost: evil.example").await.status, 421);
    assert_eq!(server.send("OPTIONS /api/v1/calls HTTP/1.1\nOrigin: http://evil.example").await.status, 403);
    server.end().await;
}

#[tokio::test]
async fn health_is_open_and_says_no_more_than_a_word_without_the_token() {
    for (readiness, code, word) in [
        (Readiness::Ready, 200, "ready"),
        (Readiness::Degraded, 200, "degraded"),
        (Readiness::Starting, 503, "starting"),
        (Readiness::Blind, 503, "blind"),
    ] {
        let server = Server::with(AdminConfig::default(), readiness, Bounds::default()).await;
        let open = server.send("GET /readyz HTTP/1.1").await;
        assert_eq!((open.status, open.body.as_str()), (code, format!("{{\"status\":\"{word}\"}}").as_str()));
        let full = server.get("/readyz").await;
        assert_eq!(full.status, code);
        assert_eq!(full.json()["probes"][0]["reason"], "no BTF");
        assert_eq!(full.json()["losses"][0]["count"], 3);
        assert_eq!(server.send("GET /livez HTTP/1.1").await.status, 200);
        server.end().await;
    }
}

#[tokio::test]
async fn metrics_need_the_token_unless_opened() {
    let server = Server::start().await;
    assert_eq!(server.send("GET /metrics HTTP/1.1").await.status, 401);
    let answer = server.get("/metrics").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "weir_calls_total 1\n"));
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    server.end().await;
    let config = AdminConfig { open_metrics: true, ..AdminConfig::default() };
    let server = Server::with(config, Readiness::Ready, Bounds::default()).await;
    assert_eq!(server.send("GET /metrics HTTP/1.1").await.status, 200);
    assert_eq!(server.send("GET /metrics HTTP/1.1\nSec-Fetch-Site: cross-site").await.status, 403);
    server.end().await;
}

#[tokio::test]
async fn every_answer_carries_the_security_headers() {
    let server = Server::start().await;
    for request in ["GET / HTTP/1.1", "GET /api/v1/calls HTTP/1.1", "GET /livez HTTP/1.1", "PUT / HTTP/1.1"] {
        let answer = server.send(request).await;
        for (name, value) in SECURITY_HEADERS {
            assert_eq!(answer.header(name), Some(value), "{request}");
        }
        assert!(answer.header("cache-control").is_some());
    }
    server.end().await;
}

#[tokio::test]
async fn the_page_is_whole_and_has_nothing_inline_or_foreign() {
    let server = Server::start().await;
    let page = server.send("GET / HTTP/1.1").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(!page.body.contains("style=") && !page.body.contains("<style") && !page.body.contains("http"));
    let mut linked = 0;
    for piece in page.body.split('"').filter(|piece| piece.starts_with("/ui/")) {
        assert_eq!(server.send(&format!("GET {piece} HTTP/1.1")).await.status, 200, "{piece}");
        linked += 1;
    }
    assert!(linked >= 3);
    for script in ["app", "client", "calls", "endpoints", "open", "trace"] {
        let file = server.send(&format!("GET /ui/{script}.js HTTP/1.1")).await;
        assert_eq!(file.header("content-type"), Some("text/javascript; charset=utf-8"));
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!file.body.contains(sink), "{script}: {sink}");
        }
    }
    server.end().await;
}

#[tokio::test]
async fn a_token_from_a_file_is_used_and_bad_files_are_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine");
    std::fs::write(&path, "  0123456789abcdef0123456789abcdef\n").unwrap();
    let config = AdminConfig { token_file: Some(path.clone()), ..AdminConfig::default() };
    let socket = directory.path().join("s");
    let config = AdminConfig { tcp: Some(SocketAddr::from(([127, 0, 0, 1], 0))), socket: Some(socket), ..config };
    let admin = bind(config, state(&Store::new(Bounds::default()), Readiness::Ready)).await.unwrap();
    assert!(admin.page_url().unwrap().ends_with("/#token=0123456789abcdef0123456789abcdef"));
    let error = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        format!("{:#}", Token::read(&path).unwrap_err())
    };
    assert!(error("short", 0o600).contains("openssl rand"));
    assert!(error(&"long".repeat(2_000), 0o600).contains("longer than"));
    assert!(error("0123456789abcdef 0123456789abcdef", 0o600).contains("HTTP header"));
    assert!(error("0123456789abcdef0123456789abcdef", 0o666).contains("chmod go-w"));
    assert!(format!("{:#}", Token::read(&directory.path().join("none")).unwrap_err()).contains("none"));
    assert_eq!(format!("{:?}", Token::generate().unwrap()), "Token(..)");
    assert_ne!(Token::generate().unwrap().reveal(), Token::generate().unwrap().reveal());
}

// === the API

#[tokio::test]
async fn calls_are_listed_filtered_and_followed_by_cursor() {
    let server = Server::start().await;
    for path in ["/a", "/b", "/c"] {
        server.store.append(&at(path));
    }
    let listed = |answer: &Answer| -> Vec<String> {
        let calls = answer.json()["calls"].as_array().unwrap().clone();
        calls.iter().map(|call| call["url.path"].as_str().unwrap().to_owned()).collect()
    };
    let answer = server.get("/api/v1/calls?limit=2").await;
    assert_eq!((listed(&answer), answer.json()["next"].as_u64()), (vec!["/b".into(), "/c".into()], Some(3)));
    assert_eq!(listed(&server.get("/api/v1/calls?since=1&limit=1").await), ["/b"]);
    assert_eq!(listed(&server.get("/api/v1/calls?path=%2Fc&service=shop&role=server&status=2xx").await), ["/c"]);
    assert!(listed(&server.get("/api/v1/calls?role=client").await).is_empty());
    assert!(listed(&server.get("/api/v1/calls?since=3").await).is_empty());

    server.store.show(&going_on(9, "/stream", 5));
    assert_eq!(listed(&server.get("/api/v1/calls/open").await), ["/stream"]);
    assert!(listed(&server.get("/api/v1/calls/open?path=%2Fc").await).is_empty());
    assert_eq!(listed(&server.get("/api/v1/calls?limit=9").await), ["/a", "/b", "/c"]);
    assert_eq!(server.get("/api/v1/calls/open?limit=x").await.status, 400);
    let trace = server.get(&format!("/api/v1/traces/{TRACE}")).await;
    assert_eq!(listed(&trace), ["/a", "/b", "/c", "/stream"]);
    let mut end = CallReport::clone(&going_on(9, "/stream", 7));
    end.in_progress = false;
    server.store.append(&Arc::new(end));
    assert!(listed(&server.get("/api/v1/calls/open").await).is_empty());

    let trace = server.get(&format!("/api/v1/traces/{}", TRACE.to_uppercase())).await;
    assert_eq!((listed(&trace).len(), trace.json()["trace_id"].as_str()), (4, Some(TRACE)));
    let endpoints = server.get("/api/v1/endpoints").await.json();
    assert_eq!(endpoints["endpoints"][0]["http.route"], "/items/{id}");
    assert_eq!(endpoints["endpoints"][0]["calls"], 4);
    let status = server.get("/api/v1/status").await.json();
    assert_eq!((&status["mode"], &status["store"]["kept"]), (&"observe".into(), &4.into()));
    server.end().await;
}

#[tokio::test]
async fn a_bad_request_is_refused_with_a_reason() {
    let server = Server::start().await;
    for (path, code) in [
        ("/api/v1/calls?limit=x", 400),
        ("/api/v1/calls?colour=red", 400),
        ("/api/v1/calls?status=20x", 400),
        ("/api/v1/calls?role=both", 400),
        ("/api/v1/calls?trace_id=zz", 400),
        ("/api/v1/traces/+000000000000000000000000000002a", 400),
        ("/api/v1/traces/00000000000000000000000000000001", 404),
        ("/api/v1/nothing", 404),
    ] {
        assert_eq!(server.get(path).await.status, code, "{path}");
    }
    let post = server.send("POST /api/v1/calls HTTP/1.1\nAuthorization: Bearer {token}").await;
    assert_eq!(post.status, 405);
    server.end().await;
}

#[tokio::test]
async fn the_stream_replays_from_the_cursor_then_follows_and_ends_with_the_server() {
    let server = Server::start().await;
    server.store.append(&at("/old"));
    server.store.append(&at("/before"));
    let (mut sender, _) = connect(server.address).await;
    let request = hyper::Request::get("/api/v1/calls/stream")
        .header("host", server.address.to_string())
        .header("authorization", format!("Bearer {}", server.token))
        .header("last-event-id", "1")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut text = String::new();
    read_until(&mut body, &mut text, "/before").await;
    assert!(!text.contains("/old"));
    server.store.append(&at("/live"));
    read_until(&mut body, &mut text, "/live").await;
    assert!(text.contains("id: 2\nevent: call\ndata: {") && text.contains("id: 3\n"), "{text}");
    server.end().await;
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap() {
        frame.unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_stops_loses_calls_is_told_and_is_dropped_without_harm() {
    let bounds = Bounds { subscriber_queue: 8, ..Bounds::default() };
    let limits = Limits { write_timeout: Duration::from_millis(300), ..Limits::default() };
    let config = AdminConfig { limits, ..AdminConfig::default() };
    let server = Server::with(config, Readiness::Ready, bounds).await;
    let mut stuck = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "GET /api/v1/calls/stream HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
        server.address, server.token
    );
    stuck.write_all(head.as_bytes()).await.unwrap();
    let store = Arc::clone(&server.store);
    until(|| store.counters().subscribers == 1).await;
    let big = at(&format!("/{}", "x".repeat(60_000)));
    until(|| {
        store.append(&big);
        let counters = store.counters();
        counters.subscribers == 0 && counters.subscriber_dropped > 0
    })
    .await;
    // The others are served as before.
    assert_eq!(server.get("/api/v1/status").await.status, 200);
    server.end().await;
}

#[tokio::test]
async fn a_stream_that_was_too_slow_says_how_many_calls_it_left_out() {
    let bounds = Bounds { subscriber_queue: 1, ..Bounds::default() };
    let server = Server::with(AdminConfig::default(), Readiness::Ready, bounds).await;
    let (mut sender, _) = connect(server.address).await;
    let request = authorized(&server, "/api/v1/calls/stream");
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let mut text = String::new();
    read_until(&mut body, &mut text, "open").await;
    // On this one thread the stream cannot run in between.
    for _ in 0..5 {
        server.store.append(&at("/burst"));
    }
    read_until(&mut body, &mut text, "/burst").await;
    assert!(text.contains("event: lost\ndata: {\"dropped\":4}\n\n"), "{text}");
    server.end().await;
}

#[tokio::test]
async fn a_replay_longer_than_a_batch_gives_every_call_once() {
    let server = Server::start().await;
    for n in 1..=300 {
        server.store.append(&at(&format!("/{n}")));
    }
    let (mut sender, _) = connect(server.address).await;
    let request = authorized(&server, "/api/v1/calls/stream?since=20");
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let mut text = String::new();
    read_until(&mut body, &mut text, "\"/300\"").await;
    server.store.append(&at("/301"));
    read_until(&mut body, &mut text, "\"/301\"").await;
    let ids: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert_eq!(ids, (21..=301).collect::<Vec<_>>());
    server.end().await;
}

#[tokio::test]
async fn a_stream_with_a_rate_is_a_sample_that_says_what_it_left_out() {
    let server = Server::start().await;
    let (mut sender, _) = connect(server.address).await;
    let request = authorized(&server, "/api/v1/calls/stream?rate=3");
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let mut text = String::new();
    read_until(&mut body, &mut text, "open").await;
    let store = Arc::clone(&server.store);
    let feed = tokio::spawn(async move {
        loop {
            store.append(&at("/"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    read_until(&mut body, &mut text, "dropped\":").await;
    let (before, after) = text.split_once("event: lost\ndata: {\"dropped\":").unwrap();
    assert_eq!(before.matches("event: call").count(), 3, "{text}");
    assert!(after.split('}').next().unwrap().parse::<u64>().unwrap() > 0, "{text}");
    feed.abort();
    server.end().await;
}

// === limits

#[tokio::test]
async fn large_heads_bodies_and_slow_heads_are_cut_off() {
    let limits = Limits { head_timeout: Duration::from_millis(200), ..Limits::default() };
    let config = AdminConfig { limits, ..AdminConfig::default() };
    let server = Server::with(config, Readiness::Ready, Bounds::default()).await;
    let long = server.send(&format!("GET /livez HTTP/1.1\nX: {}", "x".repeat(20_000))).await;
    assert_eq!(long.status, 431);
    let many = server.send(&format!("GET /livez HTTP/1.1{}", "\nX: y".repeat(100))).await;
    assert_eq!(many.status, 431);
    let body = "GET /api/v1/calls HTTP/1.1\nAuthorization: Bearer {token}\nContent-Length: 5";
    assert_eq!(server.send(body).await.status, 413);
    let chunked = "POST /api/v1/session HTTP/1.1\nAuthorization: Bearer {token}\nTransfer-Encoding: chunked";
    assert_eq!(server.send(chunked).await.status, 413);

    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nHost: x").await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, slow.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    server.end().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_and_leave_the_control_socket_alone() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let config = AdminConfig { limits, ..AdminConfig::default() };
    let server = Server::with(config, Readiness::Ready, Bounds::default()).await;
    let (mut first, _one) = connect(server.address).await;
    let (mut second, _two) = connect(server.address).await;
    for sender in [&mut first, &mut second] {
        let answer = sender.send_request(authorized(&server, "/livez")).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    let (mut third, _three) = connect(server.address).await;
    let request = authorized(&server, "/livez");
    let waiting = tokio::spawn(async move { third.send_request(request).await.unwrap().status() });
    assert!(client::get(&server.target(), "/api/v1/status").await.is_ok());
    assert!(!waiting.is_finished());
    drop(first);
    assert_eq!(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap(), 200);
    server.end().await;
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused_with_the_way_out() {
    let bounds = Bounds { subscribers: 1, ..Bounds::default() };
    let server = Server::with(AdminConfig::default(), Readiness::Ready, bounds).await;
    let kept = server.store.subscribe(Filter::default()).unwrap();
    let refused = server.get("/api/v1/calls/stream").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert!(refused.body.contains("/api/v1/calls?since=N"));
    drop(kept);
    server.end().await;
}

// === sockets

#[tokio::test]
async fn the_control_socket_and_the_token_are_for_the_owner_only_and_go_with_the_server() {
    let server = Server::start().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    let run = server.socket.parent().unwrap().to_owned();
    let token = run.join("token");
    assert_eq!((mode(&run), mode(&server.socket), mode(&token)), (0o700, 0o600, 0o600));
    assert!(client::get(&server.target(), "/api/v1/calls").await.is_ok());
    let (socket, _directory) = (server.socket.clone(), tempfile::tempdir().unwrap());
    server.stop.send(()).unwrap();
    server.task.await.unwrap().unwrap();
    assert!(!socket.exists() && !token.exists() && run.exists());
    drop(server.directory);
}

#[tokio::test]
async fn a_socket_that_nobody_answers_is_replaced_and_any_other_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weir.sock");
    let config = AdminConfig { tcp: None, socket: Some(path.clone()), ..AdminConfig::default() };
    let store = Store::new(Bounds::default());
    // A dead process leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let admin = bind(config.clone(), state(&store, Readiness::Ready)).await.unwrap();
    assert_eq!((admin.address(), admin.page_url()), (None, None));
    UnixStream::connect(&path).await.unwrap();

    let error = bind(config.clone(), state(&store, Readiness::Ready)).await.err().unwrap().to_string();
    let pid = std::process::id();
    assert!(error.contains(&format!("another agent (pid {pid}) answers at the control socket")), "{error}");
    drop(admin);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    let error = bind(config.clone(), state(&store, Readiness::Ready)).await.err().unwrap().to_string();
    assert!(error.contains("is not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    std::fs::remove_file(&path).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = bind(config, state(&store, Readiness::Ready)).await.err().unwrap().to_string();
    assert!(error.contains("can be written by other users"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_names_its_holder_and_the_way_out() {
    let server = Server::start().await;
    let config = AdminConfig { tcp: Some(server.address), socket: None, token_out: None, ..AdminConfig::default() };
    let error = bind(config, state(&server.store, Readiness::Ready)).await.err().unwrap().to_string();
    assert!(error.contains(&server.address.to_string()) && error.contains("--admin HOST:PORT"), "{error}");
    assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    server.end().await;
}

// === client

/// A writer that keeps what it gets, for a task of its own.
#[derive(Clone, Default)]
struct Written(Arc<std::sync::Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// What `weir tail` prints for these calls.
async fn tailed(server: &Server, target: client::Target, filter: client::TailFilter, calls: &[CallReport]) -> String {
    let options = client::TailOptions { limit: Some(calls.len() as u64), ..client::TailOptions::default() };
    let mut out = Written::default();
    let written = out.clone();
    let tail = tokio::spawn(async move { client::tail(&target, &filter, options, &mut out).await });
    let store = Arc::clone(&server.store);
    until(|| store.counters().subscribers == 1).await;
    for call in calls {
        store.append(&Arc::new(call.clone()));
    }
    tokio::time::timeout(PATIENCE, tail).await.unwrap().unwrap().unwrap();
    until(|| store.counters().subscribers == 0).await;
    written.text()
}

#[tokio::test]
async fn tail_prints_one_aligned_line_per_call_without_control_characters() {
    let server = Server::start().await;
    let hostile = CallReport {
        path: Some("/\u{1b}[31m\n\u{9b}\u{202e}x".into()),
        workload: Arc::new(Workload { service_name: Some("a-service-with-a-long-name".into()), ..Workload::default() }),
        duration_ns: 12_345_678,
        ..call()
    };
    let text = tailed(&server, server.target(), client::TailFilter::default(), &[call(), hostile]).await;
    let expected = "22:31:05.123 server 200 GET       1.00 ms shop               /items/1 <- [::1]:4000 trace=00000000\n\
                    22:31:05.123 server 200 GET       12.3 ms a-service-with-a-… /\\u{1b}[31m\\n\\u{9b}\\u{202e}x <- [::1]:4000 trace=00000000\n";
    assert_eq!(text, expected);
    server.end().await;
}

#[tokio::test]
async fn tail_over_tcp_shows_the_token_and_filters_at_the_server() {
    let server = Server::start().await;
    let url = format!("http://{}", server.address);
    let target = client::Target::http(&url, Some(&server.socket.with_file_name("token"))).unwrap();
    let filter = client::TailFilter { path_prefix: Some("/a b&c".into()), ..client::TailFilter::default() };
    let wanted = CallReport { path: Some("/a b&c=d".into()), ..call() };
    server.store.append(&Arc::new(call()));
    let text = tailed(&server, target, filter, &[wanted]).await;
    assert!(text.contains("/a b&c=d"), "{text}");

    let nobody = client::Target::http(&url, None).unwrap();
    let error = format!("{:#}", client::get(&nobody, "/api/v1/calls").await.unwrap_err());
    assert!(error.contains("a token is needed"), "{error}");
    server.end().await;
}

#[tokio::test]
async fn the_client_says_what_to_do_when_no_agent_answers() {
    let directory = tempfile::tempdir().unwrap();
    let target = client::Target::Socket(directory.path().join("none"));
    let error = format!("{:#}", client::get(&target, "/livez").await.unwrap_err());
    assert!(error.contains("is `weir run` running"), "{error}");
    for url in ["https://127.0.0.1:9464", "127.0.0.1:9464", "http://127.0.0.1", "nonsense"] {
        assert!(client::Target::http(url, None).is_err(), "{url}");
    }
}

async fn connect(address: SocketAddr) -> (SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn authorized(server: &Server, path: &str) -> hyper::Request<Empty<Bytes>> {
    hyper::Request::get(path)
        .header("host", server.address.to_string())
        .header("authorization", format!("Bearer {}", server.token))
        .body(Empty::new())
        .unwrap()
}

async fn read_until(body: &mut hyper::body::Incoming, text: &mut String, wanted: &str) {
    while !text.contains(wanted) {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
}
