//! Every way to move bytes through a socket, seen once and with the right identity. Runs in a bare machine too.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, EXPORT_ID, Options};
use weir_tests::harness::client::{Http, request};
use weir_tests::harness::{PATIENCE as SOON, find, server, skip, wait_until};

/// The best backend of this kernel, and the one that every kernel has.
fn backends() -> [Options; 2] {
    [Options::default(), Options::config("capture:\n  backend: sys_exit\n")]
}

/// Calls of one side at one server port.
fn at<'a>(calls: &'a [Value], kind: &str, port: u16) -> Vec<&'a Value> {
    calls.iter().filter(|call| call.text("span_kind") == kind && call["server.port"] == port).collect()
}

fn paths<'a>(calls: &[&'a Value]) -> Vec<&'a str> {
    calls.iter().map(|call| call.path()).collect()
}

/// A port with the small server behind it.
fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    server::tcp(listener, server::echo());
    port
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn opaque(agent: &Agent) -> f64 {
    agent.metric("weir_kernel_total", &[("kind", "bytes_opaque")])
}

/// A system call that sends or receives.
type Move = fn(i32, &mut [u8]) -> isize;

fn iovecs(bytes: &mut [u8]) -> [libc::iovec; 3] {
    let third = bytes.len() / 3;
    let base = bytes.as_mut_ptr().cast::<libc::c_void>();
    let part = |from: usize, to: usize| libc::iovec { iov_base: base.wrapping_byte_add(from), iov_len: to - from };
    [part(0, third), part(third, third), part(third, bytes.len())]
}

fn header(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len() as _;
    header
}

/// An array of system calls by name; in each, the descriptor is open, and pointers and lengths are those of live buffers.
macro_rules! calls {
    ($($name:literal => |$fd:ident, $bytes:ident| $call:expr;)+) => {
        [$(($name, |$fd, $bytes| {
            // SAFETY: as said above.
            unsafe { $call }
        })),+]
    };
}

const SENDS: [(&str, Move); 6] = calls! {
    "write" => |fd, bytes| libc::write(fd, bytes.as_ptr().cast(), bytes.len());
    "send" => |fd, bytes| libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0);
    "writev" => |fd, bytes| libc::writev(fd, iovecs(bytes).as_ptr(), 3);
    "pwritev2" => |fd, bytes| {
        libc::syscall(libc::SYS_pwritev2, i64::from(fd), iovecs(bytes).as_ptr(), 3_i64, -1_i64, -1_i64, 0_i64) as isize
    };
    "sendmsg" => |fd, bytes| {
        let mut vectors = iovecs(bytes);
        let message = header(&mut vectors);
        libc::sendmsg(fd, &raw const message, 0)
    };
    "sendmmsg" => |fd, bytes| {
        let mut vectors = iovecs(bytes);
        let mut message = libc::mmsghdr { msg_hdr: header(&mut vectors), msg_len: 0 };
        if libc::sendmmsg(fd, &raw mut message, 1, 0) == 1 { message.msg_len as isize } else { -1 }
    };
};

const RECEIVES: [(&str, Move); 5] = calls! {
    "read" => |fd, bytes| libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len());
    "recv" => |fd, bytes| libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0);
    "readv" => |fd, bytes| libc::readv(fd, iovecs(bytes).as_ptr(), 3);
    "recvmsg" => |fd, bytes| {
        let mut vectors = iovecs(bytes);
        let mut message = header(&mut vectors);
        libc::recvmsg(fd, &raw mut message, 0)
    };
    "peek then recv" => |fd, bytes| {
        libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_PEEK);
        libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0)
    };
};

/// One exchange over `connection`, both ends moving bytes by the given calls.
fn exchange(client: i32, server: i32, send: Move, receive: Move, id: &str) {
    let mut buffer = vec![0; 4096];
    let mut pass = |from: i32, to: i32, message: &mut Vec<u8>| {
        assert_eq!(send(from, message), message.len() as isize, "send");
        let mut got = 0;
        while got < message.len() {
            let read = receive(to, &mut buffer);
            assert!(read > 0, "receive: {}", std::io::Error::last_os_error());
            got += read as usize;
        }
    };
    pass(client, server, &mut request("GET", &format!("/form/{id}"), &[], b""));
    pass(server, client, &mut format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Id: {id}\r\n\r\nhello").into_bytes());
}

#[test]
fn every_form_of_send_and_receive_is_seen_once_on_both_ends() {
    for options in backends() {
        let agent = Agent::start(&options);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = connect(port);
        let server = listener.accept().unwrap().0;
        let mut wanted = Vec::new();
        for (send, send_call) in SENDS {
            for (receive, receive_call) in RECEIVES {
                let id = format!("{send}-{}", receive.replace(' ', "-"));
                exchange(client.as_raw_fd(), server.as_raw_fd(), send_call, receive_call, &id);
                wanted.push(format!("/form/{id}"));
            }
        }
        let calls = agent.wait_for(|calls| at(calls, "server", port).len() >= wanted.len(), SOON);
        for kind in ["server", "client"] {
            assert_eq!(paths(&at(&calls, kind, port)), wanted, "{kind} {:?}", options.config_extra);
        }
        for call in at(&calls, "server", port) {
            assert_eq!(call["http.response.status_code"], 200);
            assert_eq!(call["http.response.body.size"], 5);
            assert_eq!(call["process.pid"], std::process::id());
            assert_eq!(call["client.port"], client.local_addr().unwrap().port());
            assert!(call.get("weir.incomplete").is_none(), "{call}");
        }
        agent.stop();
    }
}

#[test]
fn several_messages_in_one_call_are_counted_and_their_content_left_unknown() {
    for options in backends() {
        let agent = Agent::start(&options);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = connect(listener.local_addr().unwrap().port());
        let mut server = listener.accept().unwrap().0;
        // The connection is known to speak HTTP before.
        exchange(client.as_raw_fd(), server.as_raw_fd(), SENDS[0].1, RECEIVES[0].1, "before");
        let before = opaque(&agent);
        let mut request = request("GET", "/two", &[], b"");
        let (first, second) = request.split_at_mut(10);
        let mut vectors =
            [first, second].map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
        let [a, b] = &mut vectors;
        let mut messages =
            [a, b].map(|vector| libc::mmsghdr { msg_hdr: header(std::slice::from_mut(vector)), msg_len: 0 });
        // SAFETY: both messages point to live buffers.
        assert_eq!(unsafe { libc::sendmmsg(client.as_raw_fd(), messages.as_mut_ptr(), 2, 0) }, 2);
        let mut buffer = vec![0; request.len()];
        server.read_exact(&mut buffer).unwrap();
        assert!(
            wait_until(|| opaque(&agent) >= before + request.len() as f64, SOON),
            "{} bytes opaque",
            opaque(&agent)
        );
        agent.stop();
    }
}

#[test]
fn a_body_sent_by_sendfile_has_its_size_and_is_counted_opaque() {
    const SIZE: usize = 3_000_000;
    for options in backends() {
        let agent = Agent::start(&options);
        let path = agent.dir().join("file");
        std::fs::write(&path, vec![b'x'; SIZE]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            let (mut stream, mut buffer) = (listener.accept().unwrap().0, Vec::new());
            while let Ok(Some(_)) = server::request(&mut stream, &mut buffer) {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").unwrap();
                send_file(&File::open(&path).unwrap(), &stream, SIZE);
            }
        });
        let mut client = Http::tcp(("127.0.0.1", port));
        for round in 0..3 {
            assert_eq!(client.get(&format!("/file/{round}")).body.len(), SIZE);
        }
        let calls = agent.wait_for(|calls| at(calls, "server", port).len() == 3, SOON);
        for call in at(&calls, "server", port).iter().chain(&at(&calls, "client", port)) {
            assert_eq!(call["http.response.body.size"], SIZE, "{call}");
            assert!(call.get("weir.incomplete").is_none(), "{call}");
        }
        assert!(opaque(&agent) >= 3.0 * SIZE as f64, "{} bytes opaque", opaque(&agent));
        drop(client);
        serving.join().unwrap();
        agent.stop();
    }
}

fn send_file(file: &File, stream: &TcpStream, size: usize) {
    let mut sent = 0;
    while sent < size {
        // SAFETY: both descriptors are open.
        let moved = unsafe { libc::sendfile(stream.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), size - sent) };
        assert!(moved > 0, "sendfile: {}", std::io::Error::last_os_error());
        sent += moved as usize;
    }
}

#[test]
fn ipv6_and_ipv4_mapped_addresses_are_right() {
    let Ok(listener) = TcpListener::bind("[::]:0") else {
        skip("ipv6_and_ipv4_mapped_addresses_are_right", "this machine has no IPv6");
        return;
    };
    for options in backends() {
        let agent = Agent::start(&options);
        let port = listener.local_addr().unwrap().port();
        server::tcp(listener.try_clone().unwrap(), server::echo());
        Http::tcp(("::1", port)).get("/six");
        Http::tcp(("127.0.0.1", port)).get("/four");
        let calls = agent.wait_for(|calls| at(calls, "server", port).len() == 2, SOON);
        for call in at(&calls, "server", port) {
            let want = if call.path() == "/six" { "::1" } else { "127.0.0.1" };
            assert_eq!(call.text("client.address"), want, "{call}");
        }
        agent.stop();
    }
}

#[test]
fn unix_sockets_are_seen_with_their_path() {
    for options in backends() {
        let agent = Agent::start(&options);
        let path = agent.dir().join("api.sock");
        let log = server::unix(UnixListener::bind(&path).unwrap(), server::echo());
        let mut client = Http::unix(&path);
        for id in 0..5 {
            client.get(&format!("/unix/{id}"));
        }
        let of = |calls: &[Value], kind: &str| {
            calls
                .iter()
                .filter(|call| call["span_kind"] == kind && call.path().starts_with("/unix/"))
                .cloned()
                .collect::<Vec<_>>()
        };
        let calls = agent.wait_for(|calls| of(calls, "server").len() == 5 && of(calls, "client").len() == 5, SOON);
        assert_eq!(log.lock().unwrap().len(), 5);
        let address = format!("unix:{}", path.display());
        for call in of(&calls, "server").iter().chain(&of(&calls, "client")) {
            assert_eq!(call.text("network.transport"), "unix");
            assert_eq!(call.text("server.address"), address, "{call}");
            assert!(call.get("client.address").is_none(), "the client is unnamed: {call}");
        }
        agent.stop();
    }
}

#[test]
fn a_connection_older_than_the_agent_is_seen_from_its_next_request() {
    let port = serve();
    let mut streams: Vec<TcpStream> = (0..100).map(|_| connect(port)).collect();
    let clients: Vec<u16> = streams.iter().map(|stream| stream.local_addr().unwrap().port()).collect();
    let mut clients_http: Vec<Http> = streams.drain(..).map(Http::over).collect();
    for client in &mut clients_http {
        client.get("/early");
    }
    for options in backends() {
        let agent = Agent::start(&options);
        for (index, client) in clients_http.iter_mut().enumerate() {
            client.get(&format!("/late/{index}"));
        }
        let calls = agent.wait_for(|calls| at(calls, "server", port).len() == 100, SOON);
        let seen = at(&calls, "server", port);
        for (index, client_port) in clients.iter().enumerate() {
            let call = seen.iter().find(|call| call.path() == format!("/late/{index}")).unwrap();
            assert_eq!(call["client.port"], *client_port);
            assert_eq!(call.status(), Some(200));
            assert!(call.get("weir.incomplete").is_none(), "{call}");
        }
        agent.stop();
    }
}

#[test]
fn a_client_of_one_byte_at_a_time_is_one_call() {
    for options in backends() {
        let agent = Agent::start(&options);
        let port = serve();
        let mut client = Http::tcp(("127.0.0.1", port));
        for id in ["a", "b"] {
            client.send_slowly(&request("GET", &format!("/slow/{id}"), &[("X-Long", "0123456789")], b""));
            assert_eq!(client.read_response(false).status, 200);
        }
        let calls = agent.wait_for(|calls| at(calls, "client", port).len() == 2, SOON);
        for kind in ["server", "client"] {
            assert_eq!(paths(&at(&calls, kind, port)), ["/slow/a", "/slow/b"], "{kind}");
        }
        agent.stop();
    }
}

#[test]
fn a_request_whose_first_bytes_come_alone_is_seen_whole() {
    for options in backends() {
        let agent = Agent::start(&options);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = connect(port);
        let mut server = listener.accept().unwrap().0;
        let body = vec![b'b'; 1500];
        let request = request("POST", "/pieces", &[], &body);
        let mut buffer = vec![0; request.len()];
        for (from, to) in [(0, 1), (1, 4), (4, request.len())] {
            client.write_all(&request[from..to]).unwrap();
            server.read_exact(&mut buffer[from..to]).unwrap();
        }
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        assert!(client.read(&mut buffer).unwrap() > 0);
        let calls =
            agent.wait_for(|calls| at(calls, "server", port).len() + at(calls, "client", port).len() == 2, SOON);
        for kind in ["server", "client"] {
            let seen = at(&calls, kind, port);
            assert_eq!(paths(&seen), ["/pieces"], "{kind}");
            assert_eq!(seen[0]["http.request.body.size"], body.len(), "{}", seen[0]);
            assert!(seen[0].get("weir.incomplete").is_none(), "{}", seen[0]);
        }
        agent.stop();
    }
}

#[test]
fn pipelined_requests_are_paired_in_order() {
    let agent = Agent::start(&Options::config(EXPORT_ID));
    let port = serve();
    let mut client = Http::tcp(("127.0.0.1", port));
    for batch in 0..10 {
        let requests: Vec<u8> =
            (0..20).flat_map(|id| request("GET", &format!("/pipe/{batch}-{id}"), &[], b"")).collect();
        client.send(&requests);
        for _ in 0..20 {
            assert_eq!(client.read_response(false).status, 200);
        }
    }
    let calls = agent.wait_for(|calls| at(calls, "server", port).len() == 200, SOON);
    for (index, call) in at(&calls, "server", port).iter().enumerate() {
        let id = format!("{}-{}", index / 20, index % 20);
        assert_eq!(call.path(), format!("/pipe/{id}"));
        assert_eq!(call.id(), Some(id.as_str()), "{call}");
    }
    agent.stop();
}

#[test]
fn duplicated_passed_on_and_inherited_descriptors_keep_their_connection() {
    let agent = Agent::start(&Options::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = connect(port);
    let server = listener.accept().unwrap().0;
    let call = |server: i32, id: &str| exchange(client.as_raw_fd(), server, SENDS[0].1, RECEIVES[0].1, id);
    call(server.as_raw_fd(), "first");
    let duplicate = server.try_clone().unwrap();
    call(duplicate.as_raw_fd(), "dup");
    // Through SCM_RIGHTS, and the original closed.
    let passed = pass_on(server.into_raw_fd());
    call(passed.as_raw_fd(), "passed");
    // Answered by another process, which inherited it.
    let client_port = client.local_addr().unwrap().port();
    let mut stream = Http::over(client);
    stream.send(&request("GET", "/form/inherited", &[], b""));
    let script = "read line; while read header && [ ${#header} -gt 1 ]; do :; done; \
                  printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok'";
    let mut child = Command::new(find("sh").unwrap())
        .args(["-c", script])
        .stdin(Stdio::from(passed.try_clone().unwrap()))
        .stdout(Stdio::from(passed))
        .spawn()
        .unwrap();
    let heir = child.id();
    assert_eq!(stream.read_response(false).body, b"ok");
    child.wait().unwrap();
    let calls = agent.wait_for(|calls| at(calls, "server", port).len() == 4, SOON);
    let seen = at(&calls, "server", port);
    assert_eq!(paths(&seen), ["/form/first", "/form/dup", "/form/passed", "/form/inherited"]);
    for (index, call) in seen.iter().enumerate() {
        assert_eq!(call["client.port"], client_port);
        let pid = if index == 3 { heir } else { std::process::id() };
        assert_eq!(call["process.pid"], pid, "{call}");
    }
    agent.stop();
}

/// Send a descriptor through a Unix socket to ourselves.
fn pass_on(fd: i32) -> OwnedFd {
    let (from, to) = UnixStream::pair().unwrap();
    let mut control = [0_u64; 8];
    let mut byte = [1_u8];
    let mut vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut message = header(std::slice::from_mut(&mut vector));
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the control buffer is larger than one descriptor needs, aligned, and lives through both calls.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let part = libc::CMSG_FIRSTHDR(&raw const message);
        (*part).cmsg_level = libc::SOL_SOCKET;
        (*part).cmsg_type = libc::SCM_RIGHTS;
        (*part).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(part).cast::<i32>().write_unaligned(fd);
        assert_eq!(libc::sendmsg(from.as_raw_fd(), &raw const message, 0), 1);
        libc::close(fd);
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        assert_eq!(libc::recvmsg(to.as_raw_fd(), &raw mut message, 0), 1);
        let received = libc::CMSG_DATA(libc::CMSG_FIRSTHDR(&raw const message)).cast::<i32>().read_unaligned();
        OwnedFd::from_raw_fd(received)
    }
}

#[test]
fn what_is_not_http_over_a_stream_is_left_alone() {
    let agent = Agent::start(&Options::default());
    // UDP with an HTTP-like payload.
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.send_to(b"GET /udp HTTP/1.1\r\n\r\n", udp.local_addr().unwrap()).unwrap();
    udp.recv(&mut [0; 64]).unwrap();
    // A text protocol.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = connect(listener.local_addr().unwrap().port());
    let mut server = listener.accept().unwrap().0;
    let mut buffer = [0; 64];
    for _ in 0..10 {
        client.write_all(b"EHLO example.org and more\r\n").unwrap();
        assert!(server.read(&mut buffer).unwrap() > 0);
        server.write_all(b"250-example.org and more\r\n").unwrap();
        assert!(client.read(&mut buffer).unwrap() > 0);
    }
    let other = || agent.metric("weir_kernel_total", &[("kind", "connections_other")]);
    assert!(wait_until(|| other() >= 2.0, SOON), "{} connections left alone", other());
    let port = client.peer_addr().unwrap().port();
    let stopped = agent.stop();
    assert!(!stopped.calls.iter().any(|call| call.path() == "/udp" || call["server.port"] == port));
}

#[test]
fn methods_of_extensions_are_seen_as_sent() {
    let agent = Agent::start(&Options::default());
    let port = serve();
    assert_eq!(Http::tcp(("127.0.0.1", port)).request("PROPFIND", "/dav/1", &[], b"").status, 200);
    let calls = agent.wait_for(|calls| at(calls, "server", port).len() == 1, SOON);
    let call = at(&calls, "server", port)[0];
    assert_eq!(call.text("http.request.method"), "_OTHER");
    assert_eq!(call.text("http.request.method_original"), "PROPFIND");
    agent.stop();
}

#[test]
fn a_client_that_closed_its_half_gets_its_response_before_the_connection_ends() {
    for options in backends() {
        let agent = Agent::start(&options);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = connect(port);
        client.write_all(&request("GET", "/half", &[], b"")).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut server = listener.accept().unwrap().0;
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        server.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end").unwrap();
        drop(server);
        // Both ends are closed for the kernel now, and the response is not read yet.
        let closed = || std::fs::read_to_string("/proc/net/tcp").unwrap().lines().any(|line| is_gone(line, &client));
        assert!(wait_until(closed, SOON), "the client's end is not in TIME_WAIT");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        drop(client);
        let calls = agent.wait_for(|calls| at(calls, "client", port).len() == 1, SOON);
        for side in ["server", "client"] {
            let call = at(&calls, side, port)[0];
            assert_eq!((call.status(), call.text("error.type")), (Some(200), ""), "{call}");
            assert_eq!(call["http.response.body.size"], 13, "{call}");
        }
        agent.stop();
    }
}

/// The line of `/proc/net/tcp` is the client's, in TIME_WAIT.
fn is_gone(line: &str, client: &TcpStream) -> bool {
    const TIME_WAIT: &str = "06";
    let local = format!("0100007F:{:04X}", client.local_addr().unwrap().port());
    let mut fields = line.split_whitespace().skip(1);
    fields.next() == Some(&local) && fields.nth(1) == Some(TIME_WAIT)
}
