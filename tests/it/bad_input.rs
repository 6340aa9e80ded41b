//! Hostile and excessive traffic: nothing makes the agent panic, guess, or exceed its memory, and what it gives up is
//! counted.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, Options, brief};
use weir_tests::harness::client::{Http, request};
use weir_tests::harness::servers::{Logged, Nginx, Script, Scripted};
use weir_tests::harness::{PATIENCE, find, server, skip, wait_until};

const MEMORY: u64 = 256 << 20;
const GIB: u64 = 1 << 30;

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// An agent that reports what concerns `port`, and which id every response bears.
fn observe(port: u16, more: &str) -> Agent {
    Agent::start(&Options::config(&format!(
        "targets: [\"port:{port}\"]\nexport:\n  responseHeaders: [x-id]\nmemoryLimit: 256MiB\n{more}"
    )))
}

fn side<'a>(calls: &'a [Value], kind: &str) -> Vec<&'a Value> {
    calls.iter().filter(|call| call.text("span_kind") == kind).collect()
}

/// Whatever came in, the agent is well: within its memory, without a panic, and able to end.
fn assert_well(agent: Agent) {
    assert!(agent.rss_bytes() < MEMORY, "{} bytes resident", agent.rss_bytes());
    assert!(agent.metric("weir_lost_total", &[("reason", "panic")]).abs() < f64::EPSILON, "{}", agent.losses());
    let stopped = agent.stop();
    assert!(!stopped.stderr.iter().any(|line| line.contains("panic")), "{:#?}", stopped.stderr);
}

/// No response is attributed to a request that it does not answer.
fn assert_paired(calls: &[Value]) {
    for call in calls.iter().filter(|call| call.get("url.path").is_some() && call.id().is_some_and(|id| !id.is_empty()))
    {
        assert_eq!(call.id(), call.path().rsplit('/').next(), "another's response: {}", brief(call));
    }
}

/// Heads that are wrong, excessive, or meant to be understood differently by two readers. Each is one connection.
fn malformed() -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = [
        "GET\r\n\r\n",
        "GET /id/a HTTP/9.9\r\nHost: h\r\n\r\n",
        "GET /id/b HTTP/1.1\r\nHost h\r\n\r\n",
        "GET /id/c HTTP/1.1\r\n folded: first\r\nHost: h\r\n\r\n",
        "GET /id/d HTTP/1.1\nHost: h\n\n",
        "GET  /id/e  HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /id/f HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        "GET /id/g HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "POST /id/h HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        "POST /id/i HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
        "POST /id/j HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled/1 HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /id/k HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 44\r\n\r\n\
         bodyGET /smuggled/2 HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /id/l HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n\
         0\r\n\r\nGET /smuggled/3 HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /id/m HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n\
         bodyGET /smuggled/4 HTTP/1.1\r\nHost: h\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "\r\n\r\n\r\n\r\nGET /id/n HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /id/o\0\u{1}\u{7f} HTTP/1.1\r\nHost: h\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /id/cut HTTP/1.1\r\nHost: h\r\nX-Cut: no e",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    let field = format!("X-Flood: {}\r\n", "f".repeat(80));
    messages.push(format!("GET /id/p HTTP/1.1\r\nHost: h\r\n{}\r\n", field.repeat(5_000)).into_bytes());
    messages.push(format!("GET /id/q HTTP/1.1\r\nHost: h\r\n{}\r\n", "A:\r\n".repeat(20_000)).into_bytes());
    messages.push(format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "u".repeat(200_000)).into_bytes());
    messages.push(format!("GET /id/r HTTP/1.1\r\nHost: {}\r\n\r\n", "h".repeat(200_000)).into_bytes());
    messages.push([b"GET /id/".to_vec(), vec![0xff; 300], b"/s HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()].concat());
    messages.push((0..=255).cycle().take(100_000).collect());
    messages
}

/// Send these bytes, take whatever comes back until the server ends or has nothing more to say, and close; a server may
/// refuse at any point.
fn throw(port: u16, bytes: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    _ = stream.write_all(bytes);
    _ = stream.read_to_end(&mut Vec::new());
}

/// Only what the server took for a request is reported by its side with a status of success.
fn hold_against_malformed(port: u16, log: &dyn Fn() -> Vec<Logged>) {
    let agent = observe(port, "");
    for message in malformed() {
        throw(port, &message);
        assert_eq!(Http::tcp(("127.0.0.1", port)).get("/id/sane").status, 200);
    }
    let last = "/id/the-last";
    Http::tcp(("127.0.0.1", port)).get(last);
    let calls = agent.wait_for(
        |calls| ["server", "client"].iter().all(|kind| side(calls, kind).iter().any(|call| call.path() == last)),
        PATIENCE,
    );
    assert_paired(&calls);
    let sane = side(&calls, "server").iter().filter(|call| call.path() == "/id/sane").count();
    assert_eq!(sane, malformed().len(), "well-formed calls between the others");
    // The server logs after it answers: its own last line comes last.
    assert!(wait_until(|| log().iter().any(|entry| entry.path == last), PATIENCE));
    let log = log();
    for call in
        side(&calls, "server").iter().filter(|call| call.get("url.path").is_some() && call.status() == Some(200))
    {
        let known = log.iter().any(|entry| {
            entry.status == 200
                && Some(entry.id.as_str()) == call.path().rsplit('/').next()
                && entry.method == call.text("http.request.method")
        });
        assert!(known, "the server knows nothing of {}", brief(call));
    }
    // By RFC 9112 section 6.1 chunks end the first request, so what follows was sent as one; that the server refused both
    // shows in the absence of any answer.
    for call in calls.iter().filter(|call| call.path().starts_with("/smuggled")) {
        let taken = log.iter().any(|entry| entry.path == call.path());
        assert_eq!(call.status().is_some(), taken, "{}", brief(call));
        assert!(taken || call.text("error.type") == "connection_closed", "{}", brief(call));
    }
    // Where a length contradicts another, nothing after it is taken for a request.
    assert!(!calls.iter().any(|call| call.path() == "/smuggled/2"), "the lengths of this body contradict each other");
    assert_well(agent);
}

#[test]
fn malformed_messages_to_nginx_are_not_taken_for_calls() {
    let Some(nginx) = Nginx::start(None) else {
        return skip("malformed_messages_to_nginx_are_not_taken_for_calls", "no nginx");
    };
    hold_against_malformed(nginx.port(), &|| nginx.log());
}

#[test]
fn malformed_messages_to_python_are_not_taken_for_calls() {
    let Some(python) = Scripted::python(&Script::default()) else {
        return skip("malformed_messages_to_python_are_not_taken_for_calls", "no python3");
    };
    hold_against_malformed(python.port(), &|| python.log());
}

/// Send a whole file through the kernel.
fn send_file(to: &impl std::os::fd::AsFd, file: &File, len: u64) {
    let mut offset = 0;
    while (offset as u64) < len {
        let count = usize::try_from(len - offset as u64).unwrap();
        assert!(sendfile(to, file, Some(&mut offset), count).unwrap() > 0);
    }
}

#[test]
fn bodies_of_a_gibibyte_are_counted_not_copied() {
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(GIB).unwrap();
    let (listener, port) = listen();
    let served = sparse.try_clone().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = Vec::new();
        server::request(&mut stream, &mut buffer).unwrap().unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\nX-Id: down\r\n\r\n").unwrap();
        send_file(&stream, &served, GIB);
        let upload = server::request(&mut stream, &mut buffer).unwrap().unwrap();
        stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nX-Id: up\r\n\r\n").unwrap();
        upload.body as u64
    });
    let agent = observe(port, "");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&request("GET", "/big/down", &[], b"")).unwrap();
    let (mut chunk, mut head) = (vec![0; 1 << 20], Vec::new());
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let mut left = GIB;
    while left > 0 {
        let want = chunk.len().min(left as usize);
        let read = stream.read(&mut chunk[..want]).unwrap();
        assert!(read > 0);
        left -= read as u64;
    }
    write!(stream, "PUT /big/up HTTP/1.1\r\nHost: h\r\nContent-Length: {GIB}\r\n\r\n").unwrap();
    send_file(&stream, &sparse, GIB);
    assert!(stream.read(&mut chunk).unwrap() > 0);
    assert_eq!(server.join().unwrap(), GIB);
    drop(stream);
    let calls = agent.wait_for(|calls| calls.len() >= 4, PATIENCE);
    assert_paired(&calls);
    for kind in ["server", "client"] {
        let of = |path: &str| *side(&calls, kind).iter().find(|call| call.path() == path).unwrap();
        assert_eq!(of("/big/down").number("http.response.body.size"), Some(GIB), "{kind}");
        assert_eq!(of("/big/up").number("http.request.body.size"), Some(GIB), "{kind}");
        assert_eq!((of("/big/down").status(), of("/big/up").status()), (Some(200), Some(201)), "{kind}");
    }
    let copied = agent.metric("weir_kernel_total", &[("kind", "bytes_copied")]);
    assert!(copied < GIB as f64, "{copied} bytes copied");
    assert_well(agent);
}

#[test]
fn fifty_new_processes_a_second_are_each_named() {
    let name = "fifty_new_processes_a_second_are_each_named";
    let Some(curl) = find("curl") else { return skip(name, "no curl") };
    let seconds = if std::env::var_os("WEIR_TEST_LONG").is_some() { 60 } else { 10 };
    let (listener, port) = listen();
    server::tcp(listener, server::echo());
    let agent = observe(port, "");
    let (start, mut pids, mut running) = (Instant::now(), HashMap::new(), Vec::new());
    for index in 0..seconds * 50_u64 {
        let due = start + Duration::from_millis(20) * index as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let url = format!("http://127.0.0.1:{port}/churn/c{index}");
        let mut command = Command::new(&curl);
        let child = command.args(["--silent", "--max-time", "20", "--output", "/dev/null", &url]).spawn().unwrap();
        pids.insert(format!("/churn/c{index}"), child.id());
        running.push(child);
    }
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let all = |calls: &[Value]| side(calls, "client").len() >= pids.len() && side(calls, "server").len() >= pids.len();
    let calls = agent.wait_for(all, PATIENCE);
    assert_paired(&calls);
    let clients = side(&calls, "client");
    assert_eq!(clients.len(), pids.len());
    for call in clients {
        let full = call.text("url.full");
        let path = if call.path().is_empty() { &full[full.find("/churn").unwrap()..] } else { call.path() };
        assert_eq!(call.number("process.pid"), pids.get(path).map(|pid| u64::from(*pid)), "{}", brief(call));
        assert_eq!(call.text("process.executable.name"), "curl", "{}", brief(call));
    }
    assert_well(agent);
}

/// A connection to `port` from this address of the loopback network: one address has too few ports.
fn connect_from(last: u8, port: u16) -> TcpStream {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let at = |text: String| {
        SockaddrIn::from(match text.parse().unwrap() {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(_) => unreachable!("an IPv4 address"),
        })
    };
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &at(format!("127.0.0.{last}:0"))).unwrap();
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &at(format!("127.0.0.1:{port}"))).unwrap();
    fd.into()
}

/// Open 10,000 connections, or as many as have both ends within the limit of open files, and call twice on each.
fn many_connections(more: &str) -> (Agent, usize) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limit = hard.min(soft.max(21_000));
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
    let count = 10_000.min((limit as usize - 500) / 2);
    let (listener, port) = listen();
    let agent = observe(port, more);
    let mut ends: Vec<(TcpStream, TcpStream)> = (0..count)
        .map(|index| {
            let client = connect_from(2 + (index % 8) as u8, port);
            (client, listener.accept().unwrap().0)
        })
        .collect();
    let mut buffer = [0; 4096];
    for round in 0..2 {
        for (index, (client, server)) in ends.iter_mut().enumerate() {
            client.write_all(&request("GET", &format!("/many/{round}-{index}"), &[], b"")).unwrap();
            assert!(server.read(&mut buffer).unwrap() > 0);
            write!(server, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Id: {round}-{index}\r\n\r\n").unwrap();
            assert!(client.read(&mut buffer).unwrap() > 0);
        }
    }
    (agent, count)
}

#[test]
fn thousands_of_connections_are_followed_at_a_time() {
    let (agent, count) = many_connections("");
    let calls = agent.wait_for(|calls| calls.len() >= count * 4, PATIENCE * 2);
    assert_eq!(calls.len(), count * 4, "{}", agent.losses());
    assert_paired(&calls);
    assert!(calls.iter().all(|call| call.status() == Some(200) && call.get("weir.incomplete").is_none()));
    assert_well(agent);
}

#[test]
fn connections_beyond_the_limit_are_given_up_and_counted() {
    let (agent, _) = many_connections("limits: { connections: 1000 }\n");
    let evicted = || agent.metric("weir_evicted_total", &[("table", "connections")]);
    assert!(wait_until(|| evicted() > 1000.0, PATIENCE), "{}", agent.losses());
    assert_paired(&agent.calls());
    assert_well(agent);
}

#[test]
fn descriptors_reused_across_threads_belong_to_their_connections() {
    const THREADS: usize = 8;
    const EACH: usize = 150;
    let (listener, port) = listen();
    server::tcp(listener, server::echo());
    let agent = observe(port, "");
    let null = Arc::new(File::open("/dev/null").unwrap());
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let null = Arc::clone(&null);
            scope.spawn(move || {
                for index in 0..EACH {
                    // Numbers that were another thread's socket a moment ago are files now, and sockets again next.
                    let files: Vec<File> = (0..index % 4).map(|_| null.try_clone().unwrap()).collect();
                    let mut http = Http::tcp(("127.0.0.1", port));
                    drop(files);
                    let other = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    for step in 0..2 {
                        let id = format!("s{thread}-{index}-{step}");
                        assert_eq!(http.get(&format!("/storm/{id}")).header("x-id"), Some(id.as_str()));
                    }
                    drop(other);
                }
            });
        }
    });
    let count = THREADS * EACH * 2;
    let calls = agent.wait_for(|calls| calls.len() >= count * 2, PATIENCE);
    assert_eq!((side(&calls, "server").len(), side(&calls, "client").len()), (count, count), "{}", agent.losses());
    assert_paired(&calls);
    assert!(calls.iter().all(|call| call.id().is_some() && call.get("weir.incomplete").is_none()));
    assert_well(agent);
}
