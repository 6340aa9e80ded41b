//! HTTP/1 over TLS, between real servers and clients of each stack: what the agent reports is what was called, by the
//! process that called, between the peers whose connection it was. Every test prints its rows of the matrix.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options, brief};
use weir_tests::harness::client::Http;
use weir_tests::harness::tls::clients::{self, Client, curl_once};
use weir_tests::harness::tls::programs::Go;
use weir_tests::harness::tls::servers::{self, Server};
use weir_tests::harness::tls::{CONNECTIONS, Certificates, Logged, Plan};
use weir_tests::harness::{PATIENCE, find, skip, wait_until};

/// The agent, asked to tell which id every response bears.
fn observe() -> Agent {
    Agent::start(&Options::config(EXPORT_ID))
}

/// Which of a pair the row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Server,
    Client,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// What was there first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// The program; its connections come after the agent.
    Program,
    Agent,
    /// The program and its connections.
    Connections,
}

impl First {
    fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Agent => "agent",
            Self::Connections => "connections",
        }
    }
}

/// A server and a client of which one is looked at.
#[derive(Clone, Copy, Debug)]
struct Pair {
    role: Role,
    server: servers::Kind,
    client: clients::Kind,
}

impl Pair {
    /// Of this server, called by requests.
    fn server(server: servers::Kind) -> Self {
        Self { role: Role::Server, server, client: clients::Kind::Requests }
    }

    /// Of this client, calling nginx; Envoy calls its own backend, which is one.
    fn client(client: clients::Kind) -> Self {
        let server = if client == clients::Kind::Envoy { servers::Kind::Envoy } else { servers::Kind::Nginx };
        Self { role: Role::Client, server, client }
    }
}

/// A pair that is up.
struct Running {
    pair: Pair,
    prefix: String,
    plan: Plan,
    server: Server,
    client: Client,
}

impl Running {
    fn start(pair: Pair, certificates: &Certificates, first: First) -> Result<Self, String> {
        let name = match pair.role {
            Role::Server => format!("{:?}", pair.server),
            Role::Client => format!("{:?}", pair.client),
        };
        let letters = name.replace(|c: char| !c.is_ascii_alphanumeric(), "").to_lowercase();
        let prefix = format!("{letters}-{}-{}", pair.role.name(), first.name());
        let plan = Plan::new(&prefix, pair.client.is_mixed());
        let server = Server::start(pair.server, certificates)?;
        let warm = first == First::Connections;
        let client = Client::start(pair.client, &server, &plan, certificates, warm)?;
        Ok(Self { pair, prefix, plan, server, client })
    }

    /// Where no symbol names the library's functions, the agent looks through the code once the process has been seen to
    /// speak TLS: what is called until then it misses. Let that be over.
    fn be_found(&self, agent: &Agent, certificates: &Certificates) {
        if self.pair.server != servers::Kind::Envoy {
            return;
        }
        match self.pair.role {
            Role::Server => assert!(curl_once(&self.server.url(), "/id/early", certificates).1),
            Role::Client => {
                assert_eq!(Http::tcp(("127.0.0.1", self.server.plain_port())).get("/id/early").status, 200);
            }
        }
        let found = || {
            let status = agent.status();
            let libraries = status["tls"]["libraries"].as_array().cloned().unwrap_or_default();
            libraries.iter().any(|library| library["backend"] == "boringssl")
        };
        assert!(wait_until(found, SEARCHED), "the agent does not find it: {:#}", agent.status()["tls"]);
    }

    /// The server that the calls over TLS reach.
    fn called(&self) -> &Server {
        match self.pair.role {
            Role::Client => self.server.backend().unwrap_or(&self.server),
            Role::Server => &self.server,
        }
    }

    /// What the server itself says, which has to be what was planned.
    fn truth(&self) -> HashMap<String, Logged> {
        let log = self.called().wait_log(&self.prefix, self.plan.calls.len());
        let truth: HashMap<_, _> = log.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
        assert_eq!(truth.len(), self.plan.calls.len(), "{:?}", self.pair);
        for call in &self.plan.calls {
            let entry = truth.get(&call.path).unwrap_or_else(|| panic!("{} was not served", call.path));
            assert_eq!((entry.method.as_str(), entry.status), (call.method, call.status), "{}", call.path);
        }
        let peers: BTreeSet<u16> = truth.values().map(|entry| entry.peer).collect();
        assert!(
            // A proxy opens some more to its backend than its clients have.
            (2..=4 * CONNECTIONS).contains(&peers.len()),
            "{:?}: {} connections are not kept alive",
            self.pair,
            peers.len()
        );
        truth
    }

    /// Is this call one of ours, seen by the side that is looked at?
    fn is_ours(&self, call: &Value) -> bool {
        call.text("span_kind") == self.pair.role.name()
            && call.text("url.scheme") == "https"
            && call.path().contains(&self.prefix)
    }

    fn row(&self, calls: &[Value], first: First) -> Row {
        let truth = self.truth();
        let ours: Vec<&Value> = calls.iter().filter(|call| self.is_ours(call)).collect();
        let (version, name, backend) = match self.pair.role {
            Role::Server => (self.pair.server.version(), self.pair.server.name(), self.pair.server.backend()),
            Role::Client => (self.pair.client.version(), self.pair.client.name(), self.pair.client.backend()),
        };
        let mut row = Row {
            stack: name,
            role: self.pair.role,
            version,
            first,
            sent: self.plan.calls.len(),
            seen: 0,
            whole: 0,
            peers: 0,
            strangers: 0,
            process: 0,
            more: 0,
            backends: ours.iter().map(|call| call.text("weir.capture.backend").to_owned()).collect(),
            backend,
            faults: Vec::new(),
        };
        let mut found: HashMap<&str, &Value> = HashMap::new();
        for call in ours {
            if !truth.contains_key(call.path()) || found.insert(call.path(), call).is_some() {
                row.more += 1;
                row.faults.push(format!("one too many: {}", brief(call)));
            }
        }
        for planned in &self.plan.calls {
            let Some(call) = found.get(planned.path.as_str()) else {
                row.faults.push(format!("not seen: {} {}", planned.method, planned.path));
                continue;
            };
            row.seen += 1;
            let entry = &truth[&planned.path];
            let whole = call.text("http.request.method") == planned.method
                && call.status() == Some(planned.status)
                && call.id() == planned.path.rsplit('/').next()
                && (call.get("weir.incomplete").is_none()
                    || first == First::Connections && call.text("weir.incomplete") == "peer_unknown");
            let served_at = u64::from(entry.port.unwrap_or_else(|| self.called().port()));
            let ports = (call.number("client.port"), call.number("server.port"), call.number("network.peer.port"));
            // A client's own port is no fact of its calls.
            let right = match self.pair.role {
                Role::Server => (Some(u64::from(entry.peer)), Some(served_at), Some(u64::from(entry.peer))),
                Role::Client => (None, Some(served_at), Some(served_at)),
            };
            let peers = ports == right;
            // The port of a `Host` header is no peer.
            let stranger = ports.2.is_some() && ports.2 != right.2;
            let pid = match self.pair.role {
                Role::Server => Some(entry.pid),
                Role::Client => self.client.pid_of(&planned.path),
            };
            let process = pid.is_some() && call.number("process.pid") == pid.map(u64::from);
            row.whole += usize::from(whole);
            row.peers += usize::from(peers);
            row.strangers += usize::from(stranger);
            row.process += usize::from(process);
            if !(whole && peers && process) {
                row.faults.push(format!(
                    "{} {ports:?}, planned {planned:?}, pid {pid:?}, served {entry:?} at {served_at}",
                    brief(call)
                ));
            }
        }
        row
    }
}

/// One line of the matrix.
struct Row {
    stack: &'static str,
    role: Role,
    version: String,
    first: First,
    sent: usize,
    seen: usize,
    /// With the right method, path, status and response, and nothing missing.
    whole: usize,
    peers: usize,
    /// With a peer that is not theirs: worse than none.
    strangers: usize,
    process: usize,
    /// Reports beyond one for each call.
    more: usize,
    backends: BTreeSet<String>,
    backend: &'static str,
    /// What is wrong, call by call.
    faults: Vec<String>,
}

impl Row {
    const HEAD: &str = "| Stack | Role | Version | First | Seen/sent | Whole | Peers right | Process right | Backend |\n\
                        |---|---|---|---|---|---|---|---|---|\n";

    fn line(&self) -> String {
        let backends: Vec<_> = self.backends.iter().map(String::as_str).collect();
        format!(
            "| {} | {} | {} | {} | {}/{} | {} | {} | {} | {} |\n",
            self.stack,
            self.role.name(),
            self.version,
            self.first.name(),
            self.seen,
            self.sent,
            self.whole,
            self.peers,
            self.process,
            backends.join(", ")
        )
    }

    fn is_right(&self) -> bool {
        let all = [self.seen, self.whole, self.peers, self.process].iter().all(|count| *count == self.sent);
        all && self.more == 0 && self.backends.iter().eq([self.backend])
    }
}

/// Straight to the descriptor, because the test runner swallows what the macros print; and to the file that
/// `WEIR_TEST_MATRIX` names, for the documentation.
fn print(rows: &[Row]) {
    let lines: String = rows.iter().map(Row::line).collect();
    _ = write!(std::io::stderr(), "\n{}{lines}", Row::HEAD);
    if let Some(path) = std::env::var_os("WEIR_TEST_MATRIX") {
        let text = fs::read_to_string(&path).unwrap_or_else(|_| Row::HEAD.to_owned());
        fs::write(path, text + &lines).unwrap();
    }
}

/// Make the calls of all pairs, and compare what was reported with what was called.
fn rows(pairs: &[Pair], first: First) -> Result<(Vec<Row>, String), String> {
    let certificates = Certificates::make()?;
    let start =
        || pairs.iter().map(|pair| Running::start(*pair, &certificates, first)).collect::<Result<Vec<_>, String>>();
    let (mut running, agent) = if first == First::Agent {
        let agent = observe();
        (start()?, agent)
    } else {
        (start()?, observe())
    };
    for pair in &mut running {
        pair.be_found(&agent, &certificates);
        pair.client.run();
        // What is missing here is told by the rows.
        wait_until(|| agent.calls().iter().filter(|call| pair.is_ours(call)).count() >= pair.plan.calls.len(), SETTLED);
    }
    let losses = agent.losses();
    let calls = agent.stop().calls;
    Ok((running.iter().map(|pair| pair.row(&calls, first)).collect(), losses))
}

/// How long calls may take from their end to the file.
const SETTLED: Duration = Duration::from_secs(5);
/// How long the search of a hundred megabytes of code may take, by an agent that was not optimised.
const SEARCHED: Duration = Duration::from_secs(30);

/// Every call of every pair, whoever was there first: seen once, whole, with the right peers and process.
fn all_are_seen(name: &str, pairs: &[Pair]) {
    let mut wrong = String::new();
    for first in [First::Program, First::Agent] {
        let can = |pair: &&Pair| first == First::Agent || pair.role == Role::Server || pair.client.lives_long();
        let pairs: Vec<Pair> = pairs.iter().filter(can).copied().collect();
        let (rows, losses) = match rows(&pairs, first) {
            Ok(rows) => rows,
            Err(why) => return skip(name, &why),
        };
        print(&rows);
        for row in rows.iter().filter(|row| !row.is_right()) {
            let some: Vec<_> = row.faults.iter().take(12).collect();
            write!(wrong, "{}{} faults: {some:#?}\n{losses}\n", row.line(), row.faults.len()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{}{wrong}", Row::HEAD);
}

fn servers_are_seen(name: &str, kinds: &[servers::Kind]) {
    all_are_seen(name, &kinds.iter().map(|kind| Pair::server(*kind)).collect::<Vec<_>>());
}

fn clients_are_seen(name: &str, kinds: &[clients::Kind]) {
    all_are_seen(name, &kinds.iter().map(|kind| Pair::client(*kind)).collect::<Vec<_>>());
}

#[test]
fn servers_on_openssl_are_seen() {
    use servers::Kind::{Nginx, PythonBlocking, Uvicorn};
    servers_are_seen("servers_on_openssl_are_seen", &[PythonBlocking, Uvicorn, Nginx]);
}

#[test]
fn clients_on_openssl_are_seen() {
    use clients::Kind::{Aiohttp, Curl, Requests};
    clients_are_seen("clients_on_openssl_are_seen", &[Requests, Aiohttp, Curl]);
}

#[test]
fn a_server_of_node_is_seen() {
    servers_are_seen("a_server_of_node_is_seen", &[servers::Kind::Node]);
}

#[test]
fn clients_of_node_are_seen() {
    clients_are_seen("clients_of_node_are_seen", &[clients::Kind::NodeAgent, clients::Kind::NodeFetch]);
}

const GO: [Go; 3] = [Go::Current, Go::Stripped, Go::Distribution];

#[test]
fn servers_of_go_are_seen() {
    servers_are_seen("servers_of_go_are_seen", &GO.map(servers::Kind::Go));
}

#[test]
fn clients_of_go_are_seen() {
    clients_are_seen("clients_of_go_are_seen", &GO.map(clients::Kind::Go));
}

#[test]
fn clients_on_gnutls_are_seen() {
    clients_are_seen("clients_on_gnutls_are_seen", &[clients::Kind::Wget, clients::Kind::CurlGnutls]);
}

#[test]
fn a_server_on_rustls_is_seen() {
    servers_are_seen("a_server_on_rustls_is_seen", &[servers::Kind::Rustls]);
}

#[test]
fn a_client_on_rustls_is_seen() {
    clients_are_seen("a_client_on_rustls_is_seen", &[clients::Kind::Reqwest]);
}

#[test]
fn envoy_is_seen_where_it_ends_tls() {
    servers_are_seen("envoy_is_seen_where_it_ends_tls", &[servers::Kind::Envoy]);
}

#[test]
fn envoy_is_seen_where_it_begins_tls() {
    clients_are_seen("envoy_is_seen_where_it_begins_tls", &[clients::Kind::Envoy]);
}

/// No handshake was seen, so that the peers come from what was learned since, or stay unknown.
#[test]
fn connections_older_than_the_agent_are_never_given_another_peer() {
    let name = "connections_older_than_the_agent_are_never_given_another_peer";
    let pairs: Vec<_> = [
        Pair { role: Role::Server, server: servers::Kind::Nginx, client: clients::Kind::Requests },
        Pair { role: Role::Server, server: servers::Kind::Uvicorn, client: clients::Kind::Aiohttp },
        Pair { role: Role::Server, server: servers::Kind::Node, client: clients::Kind::NodeAgent },
        Pair { role: Role::Server, server: servers::Kind::Go(Go::Current), client: clients::Kind::Go(Go::Current) },
        Pair { role: Role::Server, server: servers::Kind::Rustls, client: clients::Kind::Reqwest },
    ]
    .into_iter()
    .flat_map(|pair| [pair, Pair { role: Role::Client, ..pair }])
    .collect();
    let (rows, losses) = match rows(&pairs, First::Connections) {
        Ok(rows) => rows,
        Err(why) => return skip(name, &why),
    };
    print(&rows);
    for row in rows {
        let some: Vec<_> = row.faults.iter().take(12).collect();
        let told = format!("{}{}{some:#?}\n{losses}", Row::HEAD, row.line());
        assert_eq!(row.strangers, 0, "{told}");
        assert_eq!((row.seen, row.whole, row.process), (row.sent, row.sent, row.sent), "{told}");
    }
}

/// Calls of processes that live for one call each: `count` of them, as `start` starts them.
fn short_lived(agent: &Agent, server: &Server, prefix: &str, count: usize, start: impl Fn(&str) -> (u32, bool) + Sync) {
    let next = AtomicUsize::new(0);
    let pids: HashMap<String, u32> = thread::scope(|scope| {
        let (start, next) = (&start, &next);
        let eight = (0..8).map(|_| {
            scope.spawn(move || {
                let mut pids = HashMap::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return pids;
                    }
                    let path = format!("/id/{prefix}-{index}");
                    let (pid, good) = start(&path);
                    assert!(good, "{path}");
                    pids.insert(path, pid);
                }
            })
        });
        // All are started before one is waited for.
        eight.collect::<Vec<_>>().into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let truth = server.wait_log(prefix, count);
    let ours = |call: &&Value| call.text("url.scheme") == "https" && call.path().contains(prefix);
    let calls = agent.wait_for(|calls| calls.iter().filter(ours).count() >= 2 * count, PATIENCE);
    assert_eq!(calls.iter().filter(ours).count(), 2 * count);
    for entry in &truth {
        for (side, pid, client_port) in [("server", entry.pid, Some(entry.peer)), ("client", pids[&entry.path], None)] {
            let of_side = calls.iter().find(|call| call.path() == entry.path && call.text("span_kind") == side);
            let call = of_side.unwrap_or_else(|| panic!("no {side} call {}", entry.path));
            let peer = client_port.or(entry.port).map(u64::from);
            let facts = (call.status(), call.number("network.peer.port"), call.number("process.pid"));
            assert_eq!(facts, (Some(200), peer, Some(u64::from(pid))), "{}", brief(call));
        }
    }
}

#[test]
fn processes_that_live_for_one_call_are_seen() {
    let name = "processes_that_live_for_one_call_are_seen";
    if find("curl").is_none() {
        return skip(name, "no curl");
    }
    let started = Certificates::make().and_then(|c| Server::start(servers::Kind::Nginx, &c).map(|server| (c, server)));
    let (certificates, server) = match started {
        Ok(started) => started,
        Err(why) => return skip(name, &why),
    };
    let agent = observe();
    let one_at_a_time = std::sync::Mutex::new(());
    short_lived(&agent, &server, "alone", 50, |path| {
        let _turn = one_at_a_time.lock().unwrap();
        curl_once(&server.url(), path, &certificates)
    });
    short_lived(&agent, &server, "eight", 50, |path| curl_once(&server.url(), path, &certificates));
    agent.stop();
}

/// Calls that the agent said at its end to have missed or dropped.
fn said_lost(stderr: &[String]) -> u64 {
    let number = |line: &str| -> u64 {
        line.split(|c: char| !c.is_ascii_digit()).rfind(|part| !part.is_empty()).unwrap().parse().unwrap()
    };
    let find = |what: &str| stderr.iter().find_map(|line| line.split_once(what)).map_or(0, |(_, rest)| number(rest));
    find("lost: calls unseen:") + find("lost: jsonl queue_full:")
}

/// Open descriptors of a process.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn fifty_new_tls_processes_a_second_are_seen_or_counted_and_leave_nothing() {
    const RATE: usize = 50;
    let name = "fifty_new_tls_processes_a_second_are_seen_or_counted_and_leave_nothing";
    if find("curl").is_none() {
        return skip(name, "no curl");
    }
    let started = Certificates::make().and_then(|c| Server::start(servers::Kind::Nginx, &c).map(|server| (c, server)));
    let (certificates, server) = match started {
        Ok(started) => started,
        Err(why) => return skip(name, &why),
    };
    let seconds: usize = if std::env::var_os("WEIR_TEST_LONG").is_some() { 60 } else { 10 };
    // What is kept for the page has a bound of its own, which so few calls do not reach.
    let agent = Agent::start(&Options::config(&format!("{EXPORT_ID}store:\n  calls: 100\n")));
    let churn = |prefix: &str, seconds: usize| {
        let (next, start) = (AtomicUsize::new(0), Instant::now());
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= RATE * seconds {
                            return;
                        }
                        // Pace: each has its time.
                        let due = start + Duration::from_secs(1) * index as u32 / RATE as u32;
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        let path = format!("/id/{prefix}-{index}");
                        assert!(curl_once(&server.url(), &path, &certificates).1, "{path}");
                    }
                });
            }
        });
        let rate = (RATE * seconds) as f64 / start.elapsed().as_secs_f64();
        _ = writeln!(std::io::stderr(), "\n{rate:.1} new processes a second for {seconds} s");
    };
    // What the agent needs once, it has after the first seconds.
    let settle = seconds.div_ceil(3);
    churn("settle", settle);
    let (fds, rss) = (descriptors(agent.pid()), agent.rss_bytes());
    churn("churn", seconds);
    let few = wait_until(|| descriptors(agent.pid()) <= fds + 8, PATIENCE);
    assert!(few, "{} descriptors after {fds}", descriptors(agent.pid()));
    let grown = agent.rss_bytes().saturating_sub(rss);
    let sent = RATE * (seconds + settle);
    assert_eq!(server.wait_log("/id/", sent).len(), sent);
    let losses = agent.losses();
    let stopped = agent.stop();
    let seen =
        stopped.calls.iter().filter(|call| call.text("url.scheme") == "https" && call.path().starts_with("/id/"));
    let (seen, lost) = (seen.count() as u64, said_lost(&stopped.stderr));
    _ = writeln!(std::io::stderr(), "{seen} seen, {lost} counted of {} by both sides; {grown} bytes more", 2 * sent);
    assert_eq!(seen + lost, 2 * sent as u64, "{seen} seen, {lost} counted\n{losses}");
    assert!(grown < 32 << 20, "{grown} bytes more");
}

/// The ids of processes that use TLS of which the agent reads nothing, and what it says about them.
fn blind_spots(agent: &Agent) -> Vec<(u64, String)> {
    let status = agent.status();
    let processes = status["tls"]["processes"].as_array().cloned().unwrap_or_default();
    let blind = processes.iter().filter(|process| process["connections_read"] == 0);
    blind.map(|process| (process["pid"].as_u64().unwrap_or_default(), process["reasons"].to_string())).collect()
}

#[test]
fn a_process_whose_tls_cannot_be_read_is_named() {
    let name = "a_process_whose_tls_cannot_be_read_is_named";
    let pair = Pair::server(servers::Kind::RustlsStripped);
    let agent = observe();
    let started = Certificates::make().and_then(|c| Running::start(pair, &c, First::Agent).map(|running| (c, running)));
    let (_certificates, mut running) = match started {
        Ok(started) => started,
        Err(why) => return skip(name, &why),
    };
    running.client.run();
    let pid = u64::from(running.server.pid());
    let is_named = |(blind, reasons): &(u64, String)| *blind == pid && reasons != "[]";
    let named = wait_until(|| blind_spots(&agent).iter().any(is_named), PATIENCE);
    assert!(named, "pid {pid} is not among {:?}\n{:#}", blind_spots(&agent), agent.status());
    let told = agent.status()["blind_spots"].to_string();
    assert!(told.contains(&format!("(pid {pid})")), "{told}");
    // The client, over OpenSSL, is read.
    let client = running.client.pid().map(u64::from);
    let is_read = || blind_spots(&agent).iter().all(|(blind, _)| Some(*blind) != client);
    assert!(wait_until(is_read, PATIENCE), "{:?}", blind_spots(&agent));
    agent.stop();
}
