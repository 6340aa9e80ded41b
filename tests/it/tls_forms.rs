//! OpenSSL in the forms that few applications use: early data, peeking, writes that are tried again, objects used again,
//! TLS within TLS, connections that change hands. Each call is reported once by each end, with what was called and between
//! whom.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, Options, brief};
use weir_tests::harness::tls::clients::{self, Client};
use weir_tests::harness::tls::forms::{self, Linked, Made};
use weir_tests::harness::tls::servers::Server;
use weir_tests::harness::tls::{Certificates, FIXTURES, Plan};
use weir_tests::harness::{PATIENCE, python, skip, wait_until};

/// What is wrong with the reports of one process, call by call; nothing if nothing is.
fn faults(calls: &[Value], pid: u32, made: &[Made]) -> Vec<String> {
    let of_process = |call: &&Value| call.number("process.pid") == Some(u64::from(pid));
    let mut reported: HashMap<(&str, &str, &str), Vec<&Value>> = HashMap::new();
    for call in calls.iter().filter(of_process) {
        // Towards the proxy, which is a process of its own.
        if call.text("http.request.method") == "CONNECT" {
            continue;
        }
        let key = (call.text("span_kind"), call.text("http.request.method"), call.path());
        reported.entry(key).or_default().push(call);
    }
    let mut faults = Vec::new();
    for call in made {
        for side in ["server", "client"] {
            let found = reported.remove(&(side, call.method.as_str(), call.path.as_str())).unwrap_or_default();
            let [report] = found.as_slice() else {
                faults.push(format!("{} reports by the {side} of {} {}", found.len(), call.method, call.path));
                continue;
            };
            let far = match side {
                "server" => call.client_port,
                _ => call.proxy_port.unwrap_or(call.server_port),
            };
            let told = (
                report.status(),
                report.text("url.scheme"),
                report.number("http.request.body.size").unwrap_or_default(),
                report.number("http.response.body.size").unwrap_or_default(),
                report.number("network.peer.port"),
                report.get("weir.incomplete"),
            );
            let right = (Some(call.status), "https", call.request_bytes, call.response_bytes, Some(far), None);
            if told != right {
                faults.push(format!("{}: {told:?}, not {right:?}", brief(report)));
            }
        }
    }
    faults.extend(reported.values().flatten().map(|report| format!("one too many: {}", brief(report))));
    faults
}

#[rustfmt::skip]
const FORMS: [&str; 13] = [
    "ex", "tiny", "peeked", "large", "retried", "partial", "early", "reused", "renegotiated", "nested", "relayed",
    "interleaved", "sendfile",
];

/// Each form in a process of its own, and all of them in one.
fn every_form_is_reported_once(name: &str, linked: Linked) {
    let built = Certificates::make().and_then(|c| forms::program(linked).map(|program| (c, program)));
    let (certificates, program) = match built {
        Ok(built) => built,
        Err(why) => return skip(name, &why),
    };
    let agent = Agent::start(&Options::default());
    // A program that nobody ran before is only probed while it runs.
    let warm = || {
        let status = agent.status();
        let libraries = status["tls"]["libraries"].as_array().cloned().unwrap_or_default();
        let known = |path: &str| libraries.iter().any(|library| library["path"].as_str().is_some_and(|p| p == path));
        if linked == Linked::Static && !known(program.to_str().unwrap()) {
            forms::make(&program, &certificates, &["tiny"]);
            return false;
        }
        true
    };
    assert!(wait_until(warm, PATIENCE), "the agent does not find it: {:#}", agent.status()["tls"]);
    let mut made: Vec<(String, u32, Vec<Made>)> = Vec::new();
    for form in FORMS {
        let (pid, calls) = forms::make(&program, &certificates, &[form]);
        made.push((form.to_owned(), pid, calls));
    }
    let (pid, calls) = forms::make(&program, &certificates, &FORMS);
    made.push(("all".to_owned(), pid, calls));
    let (pid, calls) = forms::make(&program, &certificates, &["tls1.2", "ex", "peeked", "retried", "reused", "nested"]);
    made.push(("TLS 1.2".to_owned(), pid, calls));
    let all_are_there = || {
        let calls = agent.calls();
        made.iter().all(|(_, pid, made)| faults(&calls, *pid, made).is_empty())
    };
    // What is missing is told below.
    wait_until(all_are_there, Duration::from_secs(6));
    let losses = agent.losses();
    let calls = agent.stop().calls;
    let mut wrong = String::new();
    for (form, pid, made) in &made {
        let faults = faults(&calls, *pid, made);
        if !faults.is_empty() {
            let some: Vec<_> = faults.iter().take(10).collect();
            writeln!(wrong, "{form}, process {pid}: {} faults {some:#?}", faults.len()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}\n{losses}");
}

#[test]
fn every_form_of_call_is_reported_once_of_a_shared_library() {
    every_form_is_reported_once("every_form_of_call_is_reported_once_of_a_shared_library", Linked::Shared);
}

#[test]
fn every_form_of_call_is_reported_once_of_a_program_that_holds_the_library() {
    let name = "every_form_of_call_is_reported_once_of_a_program_that_holds_the_library";
    every_form_is_reported_once(name, Linked::Static);
}

/// A connection that is accepted by one process and served by another: with the object that a child inherits, whose address
/// is the same in all of them, or with the socket alone.
#[test]
fn connections_that_change_hands_are_given_to_who_serves_them() {
    let name = "connections_that_change_hands_are_given_to_who_serves_them";
    let Some(python) = python() else { return skip(name, "no python3") };
    let certificates = match Certificates::make() {
        Ok(certificates) => certificates,
        Err(why) => return skip(name, &why),
    };
    let agent = Agent::start(&Options::default());
    for way in ["fork", "socket"] {
        let mut command = Command::new(python);
        command.arg(Path::new(FIXTURES).join("forking.py")).arg(way);
        let server = Server::scripted(&mut command, &certificates);
        let plan = Plan::new(&format!("{way}ed"), true);
        let mut client = match Client::start(clients::Kind::Curl, &server, &plan, &certificates, false) {
            Ok(client) => client,
            Err(why) => return skip(name, &why),
        };
        client.run();
        let truth = server.wait_log(&format!("{way}ed"), plan.calls.len());
        let ours = |call: &&Value| call.is_server() && call.path().contains(&format!("{way}ed-"));
        // What is missing is told below.
        wait_until(|| agent.calls().iter().filter(ours).count() >= truth.len(), Duration::from_secs(6));
        let calls = agent.calls();
        let calls: Vec<_> = calls.iter().filter(ours).collect();
        for call in &calls {
            let served = truth.iter().find(|served| served.path == call.path()).unwrap();
            let facts = (call.number("process.pid"), call.status(), call.number("network.peer.port"));
            let right = (Some(u64::from(served.pid)), Some(served.status), Some(u64::from(served.peer)));
            assert_eq!(facts, right, "{way}: {}", brief(call));
        }
        assert_eq!(calls.len(), truth.len(), "{way}: {}", agent.losses());
    }
    agent.stop();
}
