//! HTTP/2 between real servers and clients, in the clear and over TLS: what the agent reports is what was called, stream by
//! stream, by the process that called. Every test prints its rows of the matrix.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options, brief};
use weir_tests::harness::http2::{Caller, Client, Kind, SIZES, Server, plan, rpcs};
use weir_tests::harness::tls::{Certificates, Planned};
use weir_tests::harness::{skip, wait_until};

/// How long calls may take from their end to the file.
const SETTLED: Duration = Duration::from_secs(5);

/// How long the search of a hundred megabytes of code may take, by an agent that was not optimised.
const SEARCHED: Duration = Duration::from_secs(30);

/// The gRPC status.
const NOT_FOUND: u64 = 5;

/// The agent, asked to tell which id every response bears.
fn observe() -> Agent {
    Agent::start(&Options::config(EXPORT_ID))
}

/// What calls of one path have to look like.
#[derive(Clone, Debug, Default)]
struct Wanted {
    method: &'static str,
    status: u64,
    count: usize,
    /// Bytes of the bodies, where they are fixed.
    request: Option<u64>,
    response: Option<u64>,
    pids: HashSet<u32>,
    /// The client's port, where the server told it.
    peer: Option<u64>,
    /// What the response bears as `X-Id`, if anything.
    id: Option<String>,
    /// The gRPC status of remote procedure calls.
    rpc: Option<u64>,
}

/// One line of the matrix.
#[derive(Debug)]
struct Row {
    peer: String,
    role: &'static str,
    scheme: &'static str,
    concurrency: String,
    sent: usize,
    seen: usize,
    /// With the right method, path, status, sizes, version and response, and nothing missing.
    whole: usize,
    process: usize,
    /// What is wrong, call by call.
    faults: Vec<String>,
}

impl Row {
    const HEAD: &str = "| Peer | Role | Transport | Connections x streams | Seen/sent | Whole | Process right |\n\
                        |---|---|---|---|---|---|---|\n";

    /// Hold the calls of one side against what was wanted.
    fn of(leg: &Leg<'_>, role: &'static str, wanted: &BTreeMap<String, Wanted>, calls: &[Value], prefix: &str) -> Self {
        let pair = leg.pair;
        let name = if role == "server" { pair.server.name() } else { pair.caller.name() };
        let mut row = Self {
            peer: format!("{name} ({})", if role == "server" { pair.caller.name() } else { pair.server.name() }),
            role,
            scheme: pair.transport(),
            concurrency: pair.concurrency(),
            sent: wanted.values().map(|wanted| wanted.count).sum(),
            seen: 0,
            whole: 0,
            process: 0,
            faults: Vec::new(),
        };
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for call in leg.ours(calls, role, prefix) {
            let count = seen.entry(call.path()).or_default();
            *count += 1;
            let wanted = wanted.get(call.path()).filter(|wanted| *count <= wanted.count);
            let Some(wanted) = wanted else {
                row.faults.push(format!("one too many: {}", brief(call)));
                continue;
            };
            row.seen += 1;
            let fault = fault(call, wanted, role);
            let process = call.number("process.pid").is_some_and(|pid| wanted.pids.contains(&(pid as u32)));
            row.whole += usize::from(fault.is_none());
            row.process += usize::from(process);
            if fault.is_some() || !process {
                row.faults.push(format!("{fault:?} process {process}: {} wanted {wanted:?}", brief(call)));
            }
        }
        for (path, wanted) in wanted {
            let seen = seen.get(path.as_str()).copied().unwrap_or_default();
            if seen < wanted.count {
                row.faults.push(format!("{path}: {seen} of {} seen", wanted.count));
            }
        }
        row
    }

    fn line(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {}/{} | {} | {} |\n",
            self.peer, self.role, self.scheme, self.concurrency, self.seen, self.sent, self.whole, self.process
        )
    }

    fn is_right(&self) -> bool {
        let all = [self.seen, self.whole, self.process].iter().all(|count| *count == self.sent);
        all && self.sent > 0 && self.faults.is_empty()
    }
}

/// What is wrong with a call, beside its process.
fn fault(call: &Value, wanted: &Wanted, role: &str) -> Option<&'static str> {
    let id = call.id().map(ToOwned::to_owned);
    let peer = if role == "server" { wanted.peer } else { None };
    let rpc = call.number("rpc.grpc.status_code");
    let checks = [
        ("method", call.text("http.request.method") == wanted.method),
        ("status", call.status() == Some(wanted.status)),
        ("version", call.text("network.protocol.version") == "2"),
        ("incomplete", call.get("weir.incomplete").is_none()),
        ("request size", wanted.request.is_none_or(|size| call.number("http.request.body.size") == Some(size))),
        ("response size", wanted.response.is_none_or(|size| call.number("http.response.body.size") == Some(size))),
        ("peer", peer.is_none_or(|peer| call.number("network.peer.port") == Some(peer))),
        ("id", wanted.id.is_none() || wanted.id == id),
        ("rpc status", wanted.rpc.is_none() || wanted.rpc == rpc && call.text("rpc.service") == "weir.test.Echo"),
    ];
    checks.iter().find(|(_, right)| !right).map(|(what, _)| *what)
}

/// Straight to the descriptor, because the test runner swallows what the macros print; and to the file that
/// `WEIR_TEST_MATRIX_HTTP2` names, for the documentation.
fn print(rows: &[Row]) {
    let lines: String = rows.iter().map(Row::line).collect();
    _ = write!(std::io::stderr(), "\n{}{lines}", Row::HEAD);
    if let Some(path) = std::env::var_os("WEIR_TEST_MATRIX_HTTP2") {
        let text = fs::read_to_string(&path).unwrap_or_else(|_| Row::HEAD.to_owned());
        fs::write(path, text + &lines).unwrap();
    }
}

/// Print the rows, and fail with what is wrong in them.
fn assert_right(rows: &[Row], losses: &str) {
    print(rows);
    let mut wrong = String::new();
    for row in rows.iter().filter(|row| !row.is_right()) {
        let some: Vec<_> = row.faults.iter().take(12).collect();
        write!(wrong, "{}{} faults: {some:#?}\n{losses}\n", row.line(), row.faults.len()).unwrap();
    }
    assert!(wrong.is_empty(), "\n{}{wrong}", Row::HEAD);
}

/// Who calls whom, and how.
#[derive(Clone, Copy, Debug)]
struct Pair {
    server: Kind,
    caller: Caller,
    encrypted: bool,
    connections: usize,
    streams: usize,
    /// Calls on each connection.
    each: usize,
}

impl Pair {
    fn scheme(&self) -> &'static str {
        if self.encrypted { "https" } else { "http" }
    }

    fn transport(&self) -> &'static str {
        match (self.encrypted, self.caller.upgrades()) {
            (true, _) => "TLS",
            (false, false) => "clear",
            (false, true) => "Upgrade: h2c",
        }
    }

    fn concurrency(&self) -> String {
        match self.caller {
            Caller::Envoy => "its own".to_owned(),
            _ => format!("{} x {}", self.connections, self.streams),
        }
    }

    /// Both, in the clear and over TLS.
    fn both(server: Kind, caller: Caller, connections: usize, streams: usize, each: usize) -> [Self; 2] {
        [false, true].map(|encrypted| Self { server, caller, encrypted, connections, streams, each })
    }

    /// In the paths of its calls, and only there.
    fn prefix(&self) -> String {
        if self.caller == Caller::Grpcio {
            return "/weir.test.Echo/".to_owned();
        }
        format!("{:?}-{:?}-{}-{}s", self.server, self.caller, self.scheme(), self.streams).to_lowercase()
    }

    fn calls(&self) -> Vec<Planned> {
        if self.caller == Caller::Grpcio {
            return rpcs(self.connections, self.each);
        }
        let mut calls = plan(&self.prefix(), self.connections, self.each, self.caller.is_mixed());
        if self.server == Kind::Nginx {
            // It answers before it has read any content, and says so by a reset, which clients take for an error.
            for call in calls.iter_mut().filter(|call| call.body > 0) {
                (call.method, call.body) = ("DELETE", 0);
            }
        }
        calls
    }
}

/// One hop of the calls of a pair: its own, or that from the proxy which it calls.
struct Leg<'a> {
    pair: Pair,
    server: &'a Server,
    /// The process that called, where it is one for all connections.
    caller: Option<u32>,
}

impl Leg<'_> {
    /// The reports of one side about calls of ours.
    fn ours<'a>(
        &self,
        calls: &'a [Value],
        role: &'static str,
        prefix: &'a str,
    ) -> impl Iterator<Item = &'a Value> + use<'a> {
        let (scheme, port) = (self.pair.scheme(), u64::from(self.server.port()));
        calls.iter().filter(move |call| {
            let is_of_hop = call.text("url.scheme") == scheme && call.number("server.port") == Some(port);
            is_of_hop && call.text("span_kind") == role && call.path().contains(prefix)
        })
    }
}

/// A pair's server, which is up, and its client, once that made its calls.
struct Running {
    pair: Pair,
    prefix: String,
    calls: Vec<Planned>,
    server: Server,
    client: Option<Client>,
}

impl Running {
    fn start(pair: Pair, certificates: &Certificates) -> Result<Self, String> {
        let server = Server::start(pair.server, pair.encrypted, certificates)?;
        let mut calls = pair.calls();
        let prefix = pair.prefix();
        if pair.server == Kind::Nghttpd {
            // It serves files, and has no log.
            let files = server.files(&prefix);
            for (call, file) in calls.iter_mut().zip(files.iter().cycle()) {
                (call.path, call.status) = (file.clone(), 200);
            }
        }
        Ok(Self { pair, prefix, calls, server, client: None })
    }

    /// The pair itself, and the proxy that it calls with what is behind that.
    fn legs(&self) -> Vec<Leg<'_>> {
        let own = Leg { pair: self.pair, server: &self.server, caller: None };
        let behind = self.server.backend().map(|server| Leg {
            pair: Pair { server: server.kind, caller: Caller::Envoy, ..self.pair },
            server,
            caller: Some(self.server.pid()),
        });
        [Some(own), behind].into_iter().flatten().collect()
    }

    /// Where no symbol names the library's functions, the agent looks through the code once the process has been seen to
    /// speak TLS: what is called until then it misses. Let that be over.
    fn be_found(&self, agent: &Agent, certificates: &Certificates) -> Result<(), String> {
        let Some(name) = self.pair.server.searched().filter(|_| self.pair.encrypted) else { return Ok(()) };
        let other = if self.pair.caller == Caller::Grpcio { "/weir.test.Early/" } else { "early" };
        let mut early: Vec<_> = self.calls.iter().take(1).cloned().collect();
        for call in &mut early {
            call.path = call.path.replace(&self.prefix, other);
        }
        Client::start(self.pair.caller, &self.server, &early, 1, certificates)?.run();
        self.be_read(agent, name);
        Ok(())
    }

    /// Until the agent reads a library whose path has this in it.
    fn be_read(&self, agent: &Agent, name: &str) {
        let is_read = || {
            let libraries = agent.status()["tls"]["libraries"].as_array().cloned().unwrap_or_default();
            libraries.iter().any(|library| library.text("path").contains(name))
        };
        assert!(wait_until(is_read, SEARCHED), "{:?}: {name} is not read: {:#}", self.pair, agent.status()["tls"]);
    }

    /// Make the calls on connections that the agent sees from their beginning, and wait until it has reported so many.
    fn run(&mut self, agent: &Agent, certificates: &Certificates) -> Result<(), String> {
        let pair = self.pair;
        self.be_found(agent, certificates)?;
        let mut client = Client::start(pair.caller, &self.server, &self.calls, pair.streams, certificates)?;
        if let Some(name) = pair.caller.library() {
            self.be_read(agent, name);
        }
        client.run();
        self.client = Some(client);
        // What is missing here is told by the rows.
        wait_until(
            || {
                let calls = agent.calls();
                let all = |leg: &Leg<'_>, role| leg.ours(&calls, role, &self.prefix).count() >= self.calls.len();
                self.legs().iter().all(|leg| ["server", "client"].iter().all(|role| all(leg, role)))
            },
            SETTLED,
        );
        Ok(())
    }

    /// The calls by path, as this role has to report them.
    fn wanted(&self, leg: &Leg<'_>, role: &str) -> BTreeMap<String, Wanted> {
        let server = leg.server;
        let has_log = server.kind != Kind::Nghttpd;
        let log = if has_log { server.wait_log(&self.prefix, self.calls.len()) } else { Vec::new() };
        if has_log {
            assert_eq!(log.len(), self.calls.len(), "{:?}", self.pair);
        }
        let is_rpc = self.pair.caller == Caller::Grpcio;
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        for call in &self.calls {
            let one = wanted.entry(call.path.clone()).or_default();
            (one.method, one.status, one.count) = (call.method, call.status, one.count + 1);
            if role == "client" {
                let of_client = || self.client.as_ref().and_then(|client| client.pid_of(call.connection));
                one.pids.extend(leg.caller.or_else(of_client));
            } else if !has_log {
                one.pids.insert(server.pid());
            }
            if is_rpc {
                one.rpc = Some(if call.path.ends_with("/Missing") { NOT_FOUND } else { 0 });
            } else {
                one.request = Some(call.body as u64);
                let size = || call.path.rsplit('/').next()?.parse().ok();
                one.response = if has_log { server.size_of(&call.path) } else { size() };
                one.id = has_log.then(|| call.path.rsplit('/').next().unwrap_or_default().to_owned());
            }
        }
        for served in &log {
            let one = wanted.get_mut(&served.path).unwrap_or_else(|| panic!("{served:?} was not planned"));
            assert_eq!((served.method.as_str(), served.status), (one.method, one.status), "{served:?}");
            if role == "server" {
                one.pids.insert(served.pid);
                one.peer = (served.peer > 0 && one.count == 1).then_some(served.peer);
            }
        }
        // Where the server tells how many streams were open, there were several.
        let most = log.iter().map(|served| served.streams).max().unwrap_or_default();
        assert!(most != 1 || self.pair.streams == 1, "{:?}: never two streams at a time", self.pair);
        wanted
    }

    fn rows(&self, calls: &[Value]) -> Vec<Row> {
        let row = |leg: &Leg<'_>, role| Row::of(leg, role, &self.wanted(leg, role), calls, &self.prefix);
        self.legs().iter().flat_map(|leg| ["server", "client"].map(|role| row(leg, role))).collect()
    }
}

/// Every call of every pair: seen once by each side, whole, with the right process.
fn all_are_seen(name: &str, pairs: &[Pair]) {
    match rows(pairs) {
        Ok((rows, losses)) => assert_right(&rows, &losses),
        Err(why) => skip(name, &why),
    }
}

fn rows(pairs: &[Pair]) -> Result<(Vec<Row>, String), String> {
    let certificates = Certificates::make()?;
    let start = pairs.iter().map(|pair| Running::start(*pair, &certificates));
    let mut running = start.collect::<Result<Vec<_>, String>>()?;
    let agent = observe();
    for pair in &mut running {
        pair.run(&agent, &certificates)?;
    }
    let losses = agent.losses();
    let calls = agent.stop().calls;
    Ok((running.iter().flat_map(|pair| pair.rows(&calls)).collect(), losses))
}

#[test]
fn concurrent_streams_of_nghttp2_are_each_a_call() {
    let pairs: Vec<_> = [1, 2, 10, 50]
        .into_iter()
        .flat_map(|streams| Pair::both(Kind::Nghttpd, Caller::H2load, 1, streams, 100 * SIZES.len()))
        .collect();
    all_are_seen("concurrent_streams_of_nghttp2_are_each_a_call", &pairs);
}

#[test]
fn nginx_is_reported_as_it_logged_over_http2() {
    let mut pairs: Vec<_> = [Caller::Curl, Caller::H2load, Caller::Httpx]
        .into_iter()
        .flat_map(|caller| Pair::both(Kind::Nginx, caller, 2, 20, 100))
        .collect();
    // Some versions of curl take an answer on a connection in the clear that they use again for an error.
    for pair in pairs.iter_mut().filter(|pair| pair.caller == Caller::Curl && !pair.encrypted) {
        (pair.connections, pair.streams, pair.each) = (40, 1, 1);
    }
    all_are_seen("nginx_is_reported_as_it_logged_over_http2", &pairs);
}

#[test]
fn go_is_reported_as_it_logged_over_http2() {
    all_are_seen("go_is_reported_as_it_logged_over_http2", &Pair::both(Kind::Go, Caller::Go, 2, 20, 100));
}

#[test]
fn node_is_reported_as_it_logged_over_http2() {
    all_are_seen("node_is_reported_as_it_logged_over_http2", &Pair::both(Kind::Node, Caller::Node, 2, 20, 100));
}

#[test]
fn python_h2_is_reported_as_it_logged() {
    all_are_seen("python_h2_is_reported_as_it_logged", &Pair::both(Kind::Hypercorn, Caller::Httpx, 2, 20, 100));
}

#[test]
fn rust_is_reported_as_it_logged_over_http2() {
    all_are_seen("rust_is_reported_as_it_logged_over_http2", &Pair::both(Kind::Hyper, Caller::Reqwest, 2, 20, 100));
}

#[test]
fn calls_as_browsers_make_them_are_reported() {
    let pairs = [Kind::Nginx, Kind::Node].map(|server| Pair {
        server,
        caller: Caller::Browser,
        encrypted: true,
        connections: 3,
        streams: 20,
        each: 80,
    });
    all_are_seen("calls_as_browsers_make_them_are_reported", &pairs);
}

#[test]
fn connections_upgraded_from_http1_are_reported() {
    let pairs = [(Caller::CurlUpgrade, 20, 1), (Caller::Nghttp, 2, 40)].map(|(caller, connections, each)| Pair {
        server: Kind::Hypercorn,
        caller,
        encrypted: false,
        connections,
        streams: each,
        each,
    });
    all_are_seen("connections_upgraded_from_http1_are_reported", &pairs);
}

#[test]
fn envoy_is_reported_on_both_of_its_sides() {
    all_are_seen("envoy_is_reported_on_both_of_its_sides", &Pair::both(Kind::Envoy, Caller::Go, 2, 20, 100));
}

#[test]
fn rpcs_of_grpcio_are_reported_with_their_method() {
    let name = "rpcs_of_grpcio_are_reported_with_their_method";
    all_are_seen(name, &Pair::both(Kind::Grpcio, Caller::Grpcio, 2, 20, 100));
}
