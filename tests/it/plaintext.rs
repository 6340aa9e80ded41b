//! HTTP/1 in the clear, between real servers and real clients: what the agent reports is what the servers logged, call
//! by call, and every response is paired with the request that it answers.

use std::process::Command;
use std::thread;

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options, brief};
use weir_tests::harness::client::{Http, curl, request};
use weir_tests::harness::guard::Process;
use weir_tests::harness::servers::{BIG, Logged, Nginx, Script, Scripted, TEXT};
use weir_tests::harness::{PATIENCE, find, python_with_packages, skip};

/// Calls of a server's or a client's side at one server port.
fn at<'a>(calls: &'a [Value], side: &str, port: u16) -> Vec<&'a Value> {
    let wanted = Some(u64::from(port));
    calls.iter().filter(|call| call.text("span_kind") == side && call.number("server.port") == wanted).collect()
}

/// The agent, asked to tell which id every response bears.
fn observe() -> Agent {
    Agent::start(&Options::config(EXPORT_ID))
}

/// Wait until both sides of `count` calls at `port` are reported.
fn both_sides(agent: &Agent, port: u16, count: usize) -> Vec<Value> {
    let enough = |calls: &[Value]| ["server", "client"].iter().all(|side| at(calls, side, port).len() >= count);
    agent.wait_for(enough, PATIENCE)
}

/// What a call and a log entry have in common.
type Facts = (String, String, Option<u64>, u64, u64, Option<String>);

fn of_log(entry: &Logged) -> Facts {
    (
        entry.method.clone(),
        entry.path.clone(),
        Some(entry.status),
        entry.request_bytes,
        entry.response_bytes,
        Some(entry.id.clone()),
    )
}

/// A body that is absent has size 0 in the logs and no size in a call.
fn of_call(call: &Value) -> Facts {
    (
        call.text("http.request.method").to_owned(),
        call.path().to_owned(),
        call.status(),
        call.number("http.request.body.size").unwrap_or(0),
        call.number("http.response.body.size").unwrap_or(0),
        call.id().map(str::to_owned),
    )
}

/// Facts of a call. Where a chunked upload outgrew the budget its framing is not seen: the call says so, and then it may
/// not claim a size; the log's stands for it.
fn known(call: &Value, log: &[Logged]) -> Facts {
    let mut facts = of_call(call);
    if call.text("weir.incomplete") == "chunked_beyond_budget" && call.get("http.request.body.size").is_none() {
        let entry = log.iter().find(|entry| Some(entry.id.as_str()) == call.id());
        facts.3 = entry.map_or(0, |entry| entry.request_bytes);
        assert!(facts.3 > 4096, "the budget was not spent: {}", brief(call));
    }
    facts
}

/// Both sides of all calls at `port` are exactly those that the server logged, whole, and by the right processes.
fn assert_same(calls: &[Value], port: u16, log: &[Logged]) {
    let mut wanted: Vec<Facts> = log.iter().map(of_log).collect();
    wanted.sort();
    for side in ["server", "client"] {
        let seen = at(calls, side, port);
        let mut facts: Vec<Facts> = seen.iter().map(|call| known(call, log)).collect();
        facts.sort();
        assert_eq!(facts.len(), wanted.len(), "{side} calls");
        for (fact, want) in facts.iter().zip(&wanted) {
            assert_eq!(fact, want, "{side}");
        }
        for call in &seen {
            let beyond_budget = call.text("weir.incomplete") == "chunked_beyond_budget";
            assert!(beyond_budget || call.get("weir.incomplete").is_none(), "{}", brief(call));
            assert_eq!(call.id(), call.path().rsplit('/').next(), "paired with another's response: {}", brief(call));
        }
    }
    for call in at(calls, "server", port) {
        let entry = log.iter().find(|entry| Some(entry.id.as_str()) == call.id()).unwrap();
        assert_eq!(call.number("process.pid"), Some(u64::from(entry.pid)), "{}", brief(call));
        if entry.tid != 0 {
            assert_eq!(call.number("thread.id"), Some(u64::from(entry.tid)), "{}", brief(call));
        }
    }
}

/// `threads` connections at a time, kept alive for `each` GETs; `path` is made from a unique id.
fn busy(port: u16, threads: usize, each: usize, path: impl Fn(usize, String) -> String + Sync) {
    thread::scope(|scope| {
        for thread in 0..threads {
            let path = &path;
            scope.spawn(move || {
                let mut http = Http::tcp(("127.0.0.1", port));
                for index in 0..each {
                    let id = format!("t{thread}-{index}");
                    let response = http.get(&path(index, id.clone()));
                    assert_eq!(response.header("x-id"), Some(id.as_str()));
                }
            });
        }
    });
}

#[test]
fn threads_of_python_are_reported_as_they_logged() {
    let Some(server) = Scripted::python(&Script::default()) else {
        return skip("threads_of_python_are_reported_as_they_logged", "no python3");
    };
    let agent = observe();
    busy(server.port(), 8, 40, |index, id| match index % 4 {
        0 => format!("/id/{id}"),
        1 => format!("/bytes/{}/{id}", index * 997),
        2 => format!("/chunked/{}/{id}", index * 31),
        _ => format!("/status/404/{id}"),
    });
    let calls = both_sides(&agent, server.port(), 320);
    assert_same(&calls, server.port(), &server.wait_log(320));
    let own = u64::from(std::process::id());
    assert!(at(&calls, "client", server.port()).iter().all(|call| call.number("process.pid") == Some(own)));
    agent.stop();
}

#[test]
fn every_kind_of_message_has_its_method_status_and_sizes() {
    let Some(server) = Scripted::python(&Script::default()) else {
        return skip("every_kind_of_message_has_its_method_status_and_sizes", "no python3");
    };
    let agent = observe();
    let mut http = Http::tcp(("127.0.0.1", server.port()));
    let large = vec![b'u'; 300_000];
    for (method, path, body) in [
        ("GET", "/id/a", &b""[..]),
        ("HEAD", "/bytes/5000/b", b""),
        ("GET", "/status/204/c", b""),
        ("GET", "/status/304/d", b""),
        ("GET", "/status/500/e", b""),
        ("POST", "/id/f", b"twelve bytes"),
        ("PUT", "/bytes/100000/g", &large),
        ("DELETE", "/id/h", b""),
        ("PATCH", "/status/404/i", b"{}"),
        ("OPTIONS", "/id/j", b""),
        ("GET", "/chunked/0/k", b""),
        ("GET", "/bytes/0/l", b""),
    ] {
        http.request(method, path, &[], body);
    }
    http.send(b"POST /id/m HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n");
    assert_eq!(http.read_response(false).status, 200);
    assert_eq!(http.get("/close/7000/n").body.len(), 7000);
    let calls = both_sides(&agent, server.port(), 14);
    assert_same(&calls, server.port(), &server.wait_log(14));
    agent.stop();
}

#[test]
fn nginx_workers_are_reported_as_they_logged() {
    let Some(server) = Nginx::start(None) else {
        return skip("nginx_workers_are_reported_as_they_logged", "no nginx");
    };
    let agent = observe();
    busy(server.port(), 8, 60, |index, id| match index % 10 {
        0 => format!("/status/204/{id}"),
        1 => format!("/status/404/{id}"),
        2 => format!("/status/500/{id}"),
        3 => format!("/big/{id}"),
        _ => format!("/id/{id}"),
    });
    let mut http = Http::tcp(("127.0.0.1", server.port()));
    http.request("HEAD", "/big/head", &[], b"");
    let tag = http.get("/big/tagged").header("etag").unwrap().to_owned();
    assert_eq!(http.request("GET", "/big/same", &[("If-None-Match", &tag)], b"").status, 304);
    assert_eq!(http.request("POST", "/id/posted", &[], &vec![b'p'; 200_000]).status, 200);
    let calls = both_sides(&agent, server.port(), 484);
    let log = server.wait_log(484);
    assert_eq!(log.iter().filter(|entry| entry.response_bytes == BIG as u64).count(), 49);
    assert_same(&calls, server.port(), &log);
    let servers = at(&calls, "server", server.port());
    assert!(servers.iter().all(|call| call.text("process.executable.name") == "nginx"), "{}", brief(servers[0]));
    agent.stop();
}

#[test]
fn compressed_and_chunked_content_has_its_size_as_transferred() {
    let Some(server) = Nginx::start(None) else {
        return skip("compressed_and_chunked_content_has_its_size_as_transferred", "no nginx");
    };
    let agent = observe();
    let mut http = Http::tcp(("127.0.0.1", server.port()));
    let mut sizes = Vec::new();
    for id in 0..10 {
        let response = http.request("GET", &format!("/text/{id}"), &[("Accept-Encoding", "gzip")], b"");
        assert_eq!(response.header("content-encoding"), Some("gzip"));
        assert_eq!(response.header("transfer-encoding"), Some("chunked"));
        sizes.push(response.body.len() as u64);
        assert_eq!(http.get(&format!("/text/plain{id}")).body.len(), TEXT);
        sizes.push(TEXT as u64);
    }
    let calls = both_sides(&agent, server.port(), 20);
    for side in ["server", "client"] {
        let calls = at(&calls, side, server.port());
        let seen: Vec<_> = calls.iter().map(|call| call.number("http.response.body.size").unwrap_or(0)).collect();
        assert_eq!(seen, sizes, "{side}");
        assert!(calls.iter().all(|call| call.get("weir.incomplete").is_none()), "{}", brief(calls[0]));
    }
    agent.stop();
}

#[test]
fn node_is_reported_as_it_logged() {
    let Some(server) = Scripted::node(&Script::default()) else {
        return skip("node_is_reported_as_it_logged", "no node");
    };
    let agent = observe();
    busy(server.port(), 8, 40, |index, id| match index % 4 {
        0 => format!("/id/{id}"),
        1 => format!("/bytes/{}/{id}", index * 997),
        2 => format!("/chunked/{}/{id}", index * 31),
        _ => format!("/status/404/{id}"),
    });
    let mut http = Http::tcp(("127.0.0.1", server.port()));
    http.request("POST", "/id/posted", &[], &vec![b'p'; 100_000]);
    let calls = both_sides(&agent, server.port(), 321);
    assert_same(&calls, server.port(), &server.wait_log(321));
    agent.stop();
}

#[test]
fn curl_is_reported_whatever_way_it_sends() {
    let name = "curl_is_reported_whatever_way_it_sends";
    let Some(server) = Scripted::python(&Script::default()) else { return skip(name, "no python3") };
    if find("curl").is_none() {
        return skip(name, "no curl");
    }
    let agent = observe();
    let file = agent.dir().join("upload");
    std::fs::write(&file, vec![b'u'; 1_500_000]).unwrap();
    let (url, file) = (server.url(), file.display().to_string());
    let data = format!("@{file}");
    for args in [
        &["-d", "a=b", &format!("{url}/id/form")][..],
        &["-T", &file, &format!("{url}/id/put")],
        &["-T", &file, "-H", "Transfer-Encoding: chunked", &format!("{url}/id/chunked")],
        &["-H", "Expect: 100-continue", "--data-binary", &data, &format!("{url}/id/expected")],
        &["-I", &format!("{url}/bytes/700/head")],
        &[&format!("{url}/id/one"), &format!("{url}/id/two")],
        &["--http1.0", &format!("{url}/id/old")],
        &["-X", "DELETE", &format!("{url}/status/404/gone")],
    ] {
        let output = curl(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let calls = both_sides(&agent, server.port(), 9);
    assert_same(&calls, server.port(), &server.wait_log(9));
    for call in at(&calls, "client", server.port()) {
        assert_eq!(call.text("process.executable.name"), "curl", "{}", brief(call));
        assert!(call.text("user_agent.original").starts_with("curl/"), "{call}");
    }
    agent.stop();
}

#[test]
fn requests_of_python_are_reported_as_the_server_logged() {
    let name = "requests_of_python_are_reported_as_the_server_logged";
    let Some(python) = python_with_packages() else { return skip(name, "no python3 with the package requests") };
    let Some(server) = Scripted::python(&Script::default()) else { return skip(name, "no python3") };
    let agent = observe();
    let script = "import sys, requests\n\
                  s = requests.Session()\n\
                  for i in range(30):\n\
                  \x20   assert s.get(f'{sys.argv[1]}/bytes/{i * 50}/s{i}', timeout=20).headers['X-Id'] == f's{i}'\n\
                  s.post(sys.argv[1] + '/id/json', json={'a': list(range(1000))}, timeout=20)\n\
                  s.post(sys.argv[1] + '/id/generated', data=(b'x' * 1000 for _ in range(5)), timeout=20)\n\
                  requests.head(sys.argv[1] + '/bytes/100/head', timeout=20)\n";
    let mut client = Process::spawn(Command::new(python).args(["-c", script, &server.url()]));
    let status = client.wait(PATIENCE);
    assert!(status.is_some_and(|status| status.success()), "{:#?}", client.stderr());
    let calls = both_sides(&agent, server.port(), 33);
    assert_same(&calls, server.port(), &server.wait_log(33));
    let pid = Some(u64::from(client.pid()));
    assert!(at(&calls, "client", server.port()).iter().all(|call| call.number("process.pid") == pid));
    agent.stop();
}

#[test]
fn pipelined_requests_get_the_responses_in_order() {
    let Some(server) = Nginx::start(None) else {
        return skip("pipelined_requests_get_the_responses_in_order", "no nginx");
    };
    let agent = observe();
    let mut http = Http::tcp(("127.0.0.1", server.port()));
    for batch in 0..20 {
        let paths: Vec<String> = (0..16).map(|index| format!("/id/p{batch}-{index}")).collect();
        let bytes: Vec<u8> = paths.iter().flat_map(|path| request("GET", path, &[], b"")).collect();
        http.send(&bytes);
        for path in &paths {
            assert_eq!(http.read_response(false).header("x-id"), path.rsplit('/').next());
        }
    }
    let calls = both_sides(&agent, server.port(), 320);
    assert_same(&calls, server.port(), &server.wait_log(320));
    agent.stop();
}

#[test]
fn a_client_that_sends_byte_by_byte_makes_one_call_a_request() {
    let Some(server) = Scripted::python(&Script::default()) else {
        return skip("a_client_that_sends_byte_by_byte_makes_one_call_a_request", "no python3");
    };
    let agent = observe();
    let mut http = Http::tcp(("127.0.0.1", server.port()));
    for id in ["a", "b", "c"] {
        http.send_slowly(&request("POST", &format!("/id/{id}"), &[("X-Long", &"l".repeat(200))], b"slowly said"));
        assert_eq!(http.read_response(false).header("x-id"), Some(id));
    }
    let calls = both_sides(&agent, server.port(), 3);
    assert_same(&calls, server.port(), &server.wait_log(3));
    agent.stop();
}

#[test]
fn a_server_on_a_unix_socket_is_reported_with_its_path() {
    let name = "a_server_on_a_unix_socket_is_reported_with_its_path";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let script = Script { unix: Some(path.clone()), ..Script::default() };
    let Some(server) = Scripted::python(&script) else { return skip(name, "no python3") };
    let agent = observe();
    let mut http = Http::unix(&path);
    for index in 0..25 {
        let response = http.request("POST", &format!("/bytes/{}/u{index}", index * 100), &[], b"over a file");
        assert_eq!(response.status, 200);
    }
    let log = server.wait_log(25);
    let own = Some(u64::from(std::process::id()));
    let pid = Some(u64::from(server.pid()));
    let of = |calls: &[Value], side: &str, pid| -> Vec<Value> {
        let unix = calls.iter().filter(|call| call.text("network.transport") == "unix");
        let side = unix.filter(|call| call.text("span_kind") == side && call.number("process.pid") == pid);
        side.filter(|call| call.path().starts_with("/bytes/")).cloned().collect()
    };
    let enough = |calls: &[Value]| of(calls, "server", pid).len() >= 25 && of(calls, "client", own).len() >= 25;
    let calls = agent.wait_for(enough, PATIENCE);
    let wanted: Vec<Facts> = log.iter().map(of_log).collect();
    for (side, pid) in [("server", pid), ("client", own)] {
        let seen = of(&calls, side, pid);
        assert_eq!(seen.iter().map(of_call).collect::<Vec<_>>(), wanted, "{side}");
    }
    let address = format!("unix:{}", path.display());
    for call in of(&calls, "server", pid) {
        assert_eq!(call.text("server.address"), address, "{call}");
    }
    agent.stop();
}

#[test]
fn ipv6_is_reported_like_ipv4() {
    let name = "ipv6_is_reported_like_ipv4";
    let script = Script { host: Some("::1".to_owned()), ..Script::default() };
    let Some(server) = Scripted::python(&script) else { return skip(name, "no python3") };
    let agent = observe();
    let mut http = Http::tcp(("::1", server.port()));
    for index in 0..20 {
        http.get(&format!("/bytes/{}/v{index}", index * 300));
    }
    let calls = both_sides(&agent, server.port(), 20);
    assert_same(&calls, server.port(), &server.wait_log(20));
    for call in at(&calls, "server", server.port()) {
        assert_eq!(call.text("client.address"), "::1", "{call}");
        assert_eq!(call.text("network.peer.address"), "::1", "{call}");
    }
    agent.stop();
}
