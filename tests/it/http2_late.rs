//! An agent that comes when connections of HTTP/2 have long been in use, and one that comes back: what it reports is right
//! or absent, stream by stream, and whole on every connection that is opened later.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options, brief};
use weir_tests::harness::http2::{Caller, Kind, Load, Served, Server};
use weir_tests::harness::tls::Certificates;
use weir_tests::harness::{PATIENCE, skip, wait_until};

/// Calls that are waited for in each state of the agent.
const CALLS: usize = 150;
/// Calls at a time on the one connection.
const STREAMS: usize = 5;
/// Those that may have begun before the agent could see them.
const UNDER_WAY: usize = 2 * STREAMS;

/// A server and a client in use.
struct Busy {
    server: Server,
    /// Until it is stopped.
    load: Option<Load>,
    /// How paths of this client are to be known: its encoder puts them where a late observer cannot read them, or not.
    indexes: bool,
    name: String,
}

/// Who is looked at: every encoder, in the clear and over TLS.
const PAIRS: [(Kind, Caller); 6] = [
    (Kind::Nginx, Caller::Node),
    (Kind::Node, Caller::Node),
    (Kind::Go, Caller::Go),
    (Kind::Hyper, Caller::Reqwest),
    (Kind::Hypercorn, Caller::Httpx),
    (Kind::Grpcio, Caller::Grpcio),
];

fn busy(certificates: &Certificates, prefix: &str) -> Result<Vec<Busy>, String> {
    let mut all = Vec::new();
    for (kind, caller) in PAIRS {
        for encrypted in [false, true] {
            // The TLS library of grpcio has no symbols.
            if encrypted && kind == Kind::Grpcio {
                continue;
            }
            let server = Server::start(kind, encrypted, certificates)?;
            let load = Some(Load::start(caller, &server, prefix, STREAMS, certificates)?);
            let name = format!("{} to {}, {}", caller.name(), kind.name(), if encrypted { "TLS" } else { "clear" });
            // grpcio's encoder has names that were used before in its table.
            all.push(Busy { server, load, indexes: kind == Kind::Grpcio, name });
        }
    }
    Ok(all)
}

impl Busy {
    /// Lines of the server's log so far.
    fn logged(&self) -> usize {
        self.server.log().len()
    }

    fn wait_for_more(&self, from: usize) {
        assert!(wait_until(|| self.logged() >= from + CALLS, PATIENCE), "{} does not go on", self.name);
    }

    /// End the client, so that the log is of all that was reported.
    fn stop(&mut self) {
        let answered = self.load.take().map_or(0, Load::stop) as usize;
        assert!(wait_until(|| self.logged() >= answered, PATIENCE), "{} logged too little", self.name);
    }
}

/// What one side was reported to have done at one server.
fn of_side<'a>(calls: &'a [Value], side: &str, port: u16) -> Vec<&'a Value> {
    let ours = |call: &&Value| call.text("span_kind") == side && call.number("server.port") == Some(u64::from(port));
    calls.iter().filter(ours).collect()
}

/// What the reports of one side are worth.
#[derive(Debug, Default)]
struct Worth {
    seen: usize,
    with_path: usize,
    with_status: usize,
    wrong: Vec<String>,
}

fn worth(calls: &[&Value], log: &[Served], by_id: bool) -> Worth {
    let key = |served: &Served| if by_id { served.id.clone() } else { served.path.clone() };
    let truth: HashMap<String, &Served> = log.iter().map(|served| (key(served), served)).collect();
    let paths: HashSet<&str> = log.iter().map(|served| served.path.as_str()).collect();
    let mut worth = Worth { seen: calls.len(), ..Worth::default() };
    for call in calls {
        let path = Some(call.path()).filter(|path| !path.is_empty());
        // The response's own word on which call it answers; absent where its name is not known.
        let id = call.id().filter(|id| !id.is_empty());
        let of_path = path.and_then(|path| if by_id { None } else { truth.get(path) });
        let of_id = id.and_then(|id| log.iter().find(|served| served.id == id));
        let served = of_path.copied().or(of_id);
        let right = path.is_none_or(|path| paths.contains(path))
            && id.is_none_or(|_| of_id.is_some())
            && of_id.is_none_or(|served| path.is_none_or(|path| path == served.path))
            && served.is_none_or(|served| {
                let method = call.text("http.request.method");
                (method.is_empty() || method == "_OTHER" || method == served.method)
                    && call.status().is_none_or(|status| status == served.status)
                    && (!call.is_server()
                        || served.peer == 0
                        || call.number("network.peer.port").is_none_or(|port| port == served.peer))
            });
        if !right {
            worth.wrong.push(format!("{} id {id:?}, served {served:?}", brief(call)));
        }
        worth.with_path += usize::from(path.is_some());
        worth.with_status += usize::from(call.status().is_some());
    }
    worth
}

/// A path that was used for the first time behind so many lines of the log was put into the table before the agent's eyes:
/// it is known of every call, the later ones that only point there too.
fn fresh_paths_are_known(calls: &[&Value], log: &[Served], from: usize) -> bool {
    let old: HashSet<&str> = log.iter().take(from).map(|served| served.path.as_str()).collect();
    let fresh = |path: &str| !path.is_empty() && !old.contains(path);
    let made = log.iter().filter(|served| fresh(&served.path)).count();
    made > 0 && calls.iter().filter(|call| fresh(call.path())).count() == made
}

/// One line of the table.
fn line(busy: &Busy, side: &str, worth: &Worth) -> String {
    let share = |part: usize| 100.0 * part as f64 / worth.seen.max(1) as f64;
    format!(
        "| {} | {side} | {} | {:.1} % | {:.1} % | {} |\n",
        busy.name,
        worth.seen,
        share(worth.with_path),
        share(worth.with_status),
        worth.wrong.len()
    )
}

fn print(lines: &str) {
    let head =
        "| Client and server | Side | Calls seen | Path known | Status known | Wrong |\n|---|---|---|---|---|---|\n";
    _ = write!(std::io::stderr(), "\n{head}{lines}");
}

/// Hold what this agent reports against all that the servers logged: nothing wrong, nothing of what came after `from` lines
/// of their logs missing, and every path known where the encoder lets it be.
fn hold(all: &[Busy], agent: &Agent, from: &[usize]) {
    let (mut lines, mut faults) = (String::new(), String::new());
    for (busy, from) in all.iter().zip(from) {
        let port = busy.server.port();
        let log = busy.server.log();
        let least = log.len().saturating_sub(from + UNDER_WAY);
        let enough = || ["server", "client"].iter().all(|side| of_side(&agent.calls(), side, port).len() >= least);
        // What is missing is told below.
        wait_until(enough, PATIENCE / 4);
        let calls = agent.calls();
        for side in ["server", "client"] {
            let worth = worth(&of_side(&calls, side, port), &log, busy.indexes);
            let line = line(busy, side, &worth);
            lines += &line;
            // Those whose request went by before the agent came have no path.
            let known = busy.indexes || worth.with_path + UNDER_WAY >= worth.seen;
            let again = !busy.indexes || fresh_paths_are_known(&of_side(&calls, side, port), &log, from + UNDER_WAY);
            let answered = worth.with_status + UNDER_WAY >= worth.seen;
            if !worth.wrong.is_empty() || worth.seen < least || !known || !again || !answered {
                let some: Vec<_> = worth.wrong.iter().take(8).collect();
                let unknown = of_side(&calls, side, port);
                let unknown: Vec<_> = unknown.iter().filter(|call| call.path().is_empty()).take(4).collect();
                writeln!(faults, "{line}at least {least} were made; {some:#?}, without path: {unknown:#?}").unwrap();
            }
        }
    }
    print(&lines);
    assert!(faults.is_empty(), "\n{faults}\n{}", agent.losses());
}

/// Calls of new connections to the same servers: each is whole.
fn hold_new_connections(all: &[Busy], agent: &Agent, certificates: &Certificates) {
    for (busy, (_, caller)) in all.iter().zip(PAIRS.iter().flat_map(|pair| [pair; 2])) {
        let load = Load::start(*caller, &busy.server, "later", STREAMS, certificates).unwrap();
        let answered = load.stop() as usize;
        let log = busy.server.wait_log("later", answered);
        let port = busy.server.port();
        for side in ["server", "client"] {
            let ours = |calls: &[Value]| -> Vec<Value> {
                let of_side = of_side(calls, side, port).into_iter();
                let later = |call: &&Value| {
                    call.path().contains("/later-") || call.id().is_some_and(|id| id.starts_with("later-"))
                };
                of_side.filter(later).cloned().collect()
            };
            // What fails in gRPC without a message bears no id.
            let count = log.iter().filter(|served| !served.path.ends_with("/Missing")).count();
            let calls = ours(&agent.wait_for(|calls| ours(calls).len() >= count, PATIENCE));
            assert_eq!(calls.len(), count, "{side} calls: {}", busy.name);
            for call in &calls {
                let served = log.iter().find(|served| Some(served.id.as_str()) == call.id());
                let facts = served.map(|served| (served.path.as_str(), served.method.as_str(), Some(served.status)));
                let seen = Some((call.path(), call.text("http.request.method"), call.status()));
                assert_eq!(seen, facts, "{}: {}", busy.name, brief(call));
                assert!(call.get("weir.incomplete").is_none(), "{}: {}", busy.name, brief(call));
            }
        }
    }
}

#[test]
fn connections_of_http2_older_than_the_agent_give_no_wrong_value() {
    let name = "connections_of_http2_older_than_the_agent_give_no_wrong_value";
    let started =
        Certificates::make().and_then(|certificates| busy(&certificates, "busy").map(|all| (certificates, all)));
    let (certificates, mut all) = match started {
        Ok(started) => started,
        Err(why) => return skip(name, &why),
    };
    let agent = Agent::start(&Options::config(EXPORT_ID));
    let from: Vec<_> = all.iter().map(Busy::logged).collect();
    for (busy, from) in all.iter_mut().zip(&from) {
        busy.wait_for_more(*from);
        busy.stop();
    }
    hold(&all, &agent, &from);
    hold_new_connections(&all, &agent, &certificates);
    agent.stop();
}

#[test]
fn an_agent_that_comes_back_goes_on_with_the_connections_it_knew() {
    let name = "an_agent_that_comes_back_goes_on_with_the_connections_it_knew";
    let certificates = match Certificates::make() {
        Ok(certificates) => certificates,
        Err(why) => return skip(name, &why),
    };
    let first = Agent::start(&Options::config(EXPORT_ID));
    let mut all = match busy(&certificates, "going") {
        Ok(all) => all,
        Err(why) => return skip(name, &why),
    };
    // Killed, not stopped: nothing is handed over.
    first.kill();
    let agent = Agent::start(&Options::config(EXPORT_ID));
    let from: Vec<_> = all.iter().map(Busy::logged).collect();
    for (busy, from) in all.iter_mut().zip(&from) {
        busy.wait_for_more(*from);
        busy.stop();
    }
    hold(&all, &agent, &from);
    agent.stop();
}
