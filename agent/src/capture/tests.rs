//! The core from record bytes to exchanges, by scripts that write what the kernel would say of both ends.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::event::tests::encode;
use crate::event::{self, Association, Exec};
use crate::model::{Backend, Outcome, SpanId, TraceId};

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// One end of a scripted connection.
#[derive(Clone, Debug)]
struct End {
    conn: ConnId,
    process: ProcessRef,
    tid: u32,
    local: SocketAddress,
    remote: SocketAddress,
    /// Receive, send.
    seq: [u32; 2],
    position: [u64; 2],
}

/// What the kernel says, in order.
#[derive(Default)]
struct Script {
    time: u64,
    records: Vec<Vec<u8>>,
}

/// Both ends of one connection.
struct Wire([End; 2]);

fn process(pid: u32) -> ProcessRef {
    ProcessRef { pid, start_ns: u64::from(pid) * 1000 }
}

fn comm(name: &str) -> Comm {
    let mut comm = [0; 16];
    comm[..name.len()].copy_from_slice(name.as_bytes());
    Comm(comm)
}

impl Script {
    fn push(&mut self, event: &KernelEvent<'_>) {
        self.records.push(encode(event));
    }

    fn now(&mut self) -> Timestamp {
        self.time += 1000;
        Timestamp(self.time)
    }

    /// A connection between two processes of this machine, described at both ends.
    fn connect(&mut self, number: u64, client: u32, server: u32) -> Wire {
        let near = SocketAddress::Ip(SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 40_000)));
        let far = SocketAddress::Ip("10.1.0.1:80".parse().unwrap());
        // The sequence numbers of one direction agree modulo 2^32.
        let (up, down) = (number * 7919 % (1 << 32), number * 104_729 % (1 << 32));
        let end = |conn, pid, local: &SocketAddress, remote: &SocketAddress, position| End {
            conn: ConnId(conn),
            process: process(pid),
            tid: pid,
            local: local.clone(),
            remote: remote.clone(),
            seq: [0; 2],
            position,
        };
        let wire = Wire([
            end(number * 2 + 1, client, &near, &far, [1 << 32 | down, 1 << 32 | up]),
            end(number * 2 + 2, server, &far, &near, [1 << 32 | up, 1 << 32 | down]),
        ]);
        for end in &wire.0 {
            self.open(end, FirstBytes::Http1);
        }
        wire
    }

    fn open(&mut self, end: &End, protocol: FirstBytes) {
        let time = self.now();
        self.push(&KernelEvent::Open(Open {
            conn: end.conn,
            time,
            backend: Backend::SockTracepoint,
            tid: end.tid,
            protocol,
            transport: Transport::Tcp,
            local: end.local.clone(),
            remote: end.remote.clone(),
            netns: 1,
            uid: 0,
            process: end.process,
            cgroup: 1,
            comm: comm("app"),
            joined: false,
            socket: None,
            association: Association::None,
        }));
    }

    /// The plaintext above `socket`, met now; `known`: its socket is.
    fn open_stream(&mut self, stream: &End, socket: &End, known: bool, protocol: FirstBytes) {
        self.open_above(stream, known.then_some(socket), known, protocol);
    }

    /// With a socket that is known, or only supposed.
    fn open_above(&mut self, stream: &End, socket: Option<&End>, known: bool, protocol: FirstBytes) {
        let time = self.now();
        self.push(&KernelEvent::Open(Open {
            conn: stream.conn,
            time,
            backend: Backend::Openssl,
            tid: stream.tid,
            protocol,
            transport: Transport::Tcp,
            local: SocketAddress::Unknown,
            remote: SocketAddress::Unknown,
            netns: 0,
            uid: 0,
            process: stream.process,
            cgroup: 1,
            comm: comm("app"),
            joined: false,
            socket: socket.map(|socket| socket.conn),
            association: if known { Association::Random } else { Association::None },
        }));
    }

    /// One operation of one end; `head` and `tail` of it copied.
    fn moved(&mut self, end: &mut End, direction: Direction, head: &[u8], skipped: u32, tail: &[u8]) {
        let time = self.now();
        let at = usize::from(direction == Direction::Send);
        let len = head.len() as u32 + skipped + tail.len() as u32;
        self.push(&KernelEvent::Data(Data {
            conn: end.conn,
            time,
            backend: Backend::SockTracepoint,
            pid: end.process.pid,
            tid: end.tid,
            direction,
            seq: end.seq[at],
            position: end.position[at],
            len,
            head,
            tail,
            opaque: head.is_empty(),
            unreadable: false,
            frame: false,
        }));
        end.seq[at] = end.seq[at].wrapping_add(1);
        end.position[at] += u64::from(len);
    }

    /// `from` sends and the other end receives.
    fn send(&mut self, wire: &mut Wire, from: usize, bytes: &[u8]) {
        self.moved(&mut wire.0[from], Direction::Send, bytes, 0, b"");
        self.moved(&mut wire.0[1 - from], Direction::Receive, bytes, 0, b"");
    }

    fn exchange(&mut self, wire: &mut Wire, id: u32) {
        self.send(wire, CLIENT, &request(id, ""));
        self.send(wire, SERVER, &response(id));
    }

    fn close(&mut self, end: &End, receive: bool, send: bool, reset: bool) {
        let time = self.now();
        self.push(&KernelEvent::Close(Close {
            conn: end.conn,
            time,
            backend: Backend::SockTracepoint,
            receive,
            send,
            reset,
        }));
    }

    fn play(&self) -> Played {
        play(self.records.iter().map(Vec::as_slice), Settings { seed: 1, ..Settings::default() })
    }
}

struct Played {
    capture: Capture,
    out: Vec<Output>,
}

impl Played {
    fn exchanges(&self) -> Vec<&Exchange> {
        self.out
            .iter()
            .filter_map(|output| match output {
                Output::Exchange(exchange) => Some(&**exchange),
                _ => None,
            })
            .collect()
    }

    /// The exchange of that path and role.
    fn of(&self, id: u32, role: Role) -> &Exchange {
        let path = format!("/{id}");
        let all = self.exchanges();
        let mut found = all.into_iter().filter(|exchange| {
            exchange.role == role && exchange.request.as_ref().is_some_and(|request| request.target == path.as_bytes())
        });
        let one = found.next().unwrap_or_else(|| panic!("no {} exchange of {path}", role.name()));
        assert!(found.next().is_none(), "{path} was put out twice");
        one
    }

    fn processes(&self) -> Vec<&ProcessSeen> {
        self.out
            .iter()
            .filter_map(|output| match output {
                Output::Process(seen) => Some(seen),
                _ => None,
            })
            .collect()
    }
}

fn play<'a>(records: impl Iterator<Item = &'a [u8]>, settings: Settings) -> Played {
    let mut played = Played { capture: Capture::new(settings), out: Vec::new() };
    feed_all(&mut played, records);
    played
}

fn feed_all<'a>(played: &mut Played, records: impl Iterator<Item = &'a [u8]>) {
    for record in records {
        played.capture.on_event(event::decode(record).unwrap(), &mut played.out);
    }
}

fn request(id: u32, field: &str) -> Vec<u8> {
    format!("GET /{id} HTTP/1.1\r\nHost: a\r\n{field}\r\n").into_bytes()
}

fn response(id: u32) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nContent-Length: 4\r\n\r\nbody").into_bytes()
}

fn traceparent(trace: u8, parent: u8) -> String {
    format!("traceparent: 00-{}-{}-01\r\n", format!("{trace:02x}").repeat(16), format!("{parent:02x}").repeat(8))
}

/// Records carry the time at which they were emitted.
fn restamp(records: &mut [Vec<u8>]) {
    for (at, record) in records.iter_mut().enumerate() {
        let field = std::mem::offset_of!(agent_common::event::Header, time_ns);
        record[field..field + 8].copy_from_slice(&(1000 * (at as u64 + 1)).to_ne_bytes());
    }
}

/// The response of every exchange answers its request.
fn assert_right_pairs(played: &Played, what: &str) {
    for exchange in played.exchanges() {
        if let (Some(request), Some(response)) = (&exchange.request, &exchange.response) {
            // Absent only from a head that was seen in part.
            let Some(id) = response.headers.get("x-id") else {
                assert!(exchange.incomplete.is_some(), "{what}: {exchange:?}");
                continue;
            };
            assert_eq!(request.target[1..], *id, "{what}: {exchange:?}");
        }
    }
}

#[test]
fn both_ends_of_a_connection_tell_the_same_call_and_share_its_trace() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    for id in 0..3 {
        script.exchange(&mut wire, id);
    }
    let played = script.play();
    for id in 0..3 {
        let (client, server) = (played.of(id, Role::Client), played.of(id, Role::Server));
        assert_eq!((client.outcome, client.incomplete), (Outcome::Complete, None));
        assert_eq!((server.outcome, server.incomplete), (Outcome::Complete, None));
        assert_eq!(client.trace.trace_id, server.trace.trace_id);
        assert_eq!(server.trace.parent, Some(client.trace.span_id));
        assert_eq!(client.trace.parent, None);
        assert_eq!((client.pid, server.pid), (100, 200));
        assert_eq!((client.connection.process, server.connection.process), (process(100), process(200)));
        assert_eq!(client.connection.remote, server.connection.local);
        assert!(client.timing.start < server.timing.start && server.timing.end > server.timing.start);
    }
    let traces: std::collections::HashSet<_> = played.exchanges().iter().map(|one| one.trace.trace_id).collect();
    assert_eq!(traces.len(), 3);
    let want = Counts { exchanges: 6, connections: 2, linked_connection: 3, roots: 3, ..Counts::default() };
    assert_eq!(*played.capture.counts(), want);
}

#[test]
fn the_trace_is_shared_although_the_server_was_heard_first() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    for id in 0..2 {
        script.exchange(&mut wire, id);
        // The receiver on another processor may end its operation before the sender does.
        let len = script.records.len();
        script.records.swap(len - 4, len - 3);
    }
    restamp(&mut script.records);
    let played = script.play();
    for id in 0..2 {
        let (client, server) = (played.of(id, Role::Client), played.of(id, Role::Server));
        assert_eq!(client.trace.trace_id, server.trace.trace_id);
        assert_eq!((server.trace.parent, client.trace.parent), (Some(client.trace.span_id), None));
    }
    assert_eq!((played.capture.counts().linked_connection, played.capture.counts().roots), (2, 2));
}

#[test]
fn records_lost_anywhere_never_make_a_wrong_pair_and_are_counted() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    for id in 0..4 {
        script.exchange(&mut wire, id);
    }
    // Two requests before their responses, and a message in pieces.
    script.send(&mut wire, CLIENT, &request(4, ""));
    script.send(&mut wire, CLIENT, &request(5, ""));
    script.send(&mut wire, SERVER, &response(4));
    script.send(&mut wire, SERVER, &response(5));
    let (head, rest) = (request(6, ""), response(6));
    script.send(&mut wire, CLIENT, &head[..9]);
    script.send(&mut wire, CLIENT, &head[9..]);
    script.send(&mut wire, SERVER, &rest[..20]);
    script.send(&mut wire, SERVER, &rest[20..]);
    for id in 7..10 {
        script.exchange(&mut wire, id);
    }
    let opens = 2;
    // Loss shows at the next record of the same connection and direction; the last four have none.
    let last = script.records.len() - 4;
    for from in 0..script.records.len() {
        for len in 1..=6 {
            let lost = from..from + len;
            if lost.end > script.records.len() {
                continue;
            }
            let kept = script.records.iter().enumerate().filter(|(at, _)| !lost.contains(at));
            let played = play(kept.map(|(_, record)| record.as_slice()), Settings::default());
            let what = format!("{lost:?} lost");
            assert_right_pairs(&played, &what);
            if from >= opens && lost.end <= last {
                assert_eq!(played.capture.counts().records_lost, len as u64, "{what}");
            }
        }
    }
}

#[test]
fn records_lost_at_random_never_make_a_wrong_pair() {
    let mut script = Script::default();
    let mut wires = [script.connect(1, 100, 200), script.connect(2, 101, 200)];
    for id in 0..60 {
        let wire = &mut wires[(id % 2) as usize];
        if id % 5 == 0 {
            script.send(wire, CLIENT, &[request(1000 + id, ""), request(2000 + id, "")].concat());
            script.send(wire, SERVER, &response(1000 + id));
            script.send(wire, SERVER, &response(2000 + id));
        }
        script.exchange(wire, id);
    }
    let mut random = 1_u64;
    for round in 0..300 {
        let keep: Vec<&[u8]> = script
            .records
            .iter()
            .filter(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % 10 >= round % 5
            })
            .map(Vec::as_slice)
            .collect();
        assert_right_pairs(&play(keep.into_iter(), Settings::default()), &format!("round {round}"));
    }
}

#[test]
fn operations_told_out_of_order_make_no_wrong_pair() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    for id in 0..6 {
        script.exchange(&mut wire, id);
    }
    // From the second exchange on: how much is missing before the first record of a direction cannot be known.
    for at in 6..script.records.len() - 4 {
        let mut records = script.records.clone();
        // The next record of the same connection and direction comes first.
        records.swap(at, at + 4);
        restamp(&mut records);
        let played = play(records.iter().map(Vec::as_slice), Settings::default());
        assert_right_pairs(&played, &format!("{at} came late"));
    }
}

#[test]
fn a_response_told_before_its_request_makes_no_wrong_pair() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    for id in 0..6 {
        script.exchange(&mut wire, id);
    }
    for (sent, received) in (0..5).flat_map(|id| [(2 + 4 * id, 5 + 4 * id), (3 + 4 * id, 4 + 4 * id)]) {
        let mut records = script.records.clone();
        // A client that writes and reads on two threads, the writer interrupted before it was heard.
        let record = records.remove(sent);
        records.insert(received, record);
        restamp(&mut records);
        let played = play(records.iter().map(Vec::as_slice), Settings::default());
        assert_right_pairs(&played, &format!("{sent} after {received}"));
    }
}

#[test]
fn a_record_that_comes_late_is_not_counted_as_lost_twice() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    let end = &mut wire.0[SERVER];
    for id in 0..4 {
        script.moved(end, Direction::Receive, &request(id, ""), 0, b"");
    }
    let first = script.records.len() - 4;
    script.records.swap(first + 1, first + 2);
    let played = script.play();
    assert_eq!(played.capture.counts().records_lost, 1);
    assert_eq!(played.capture.counts().overlaps, 1);
}

#[test]
fn bytes_that_were_not_copied_are_counted_and_framing_goes_on_behind_them() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    let [_, server] = &mut wire.0;
    for id in 0..2 {
        script.moved(server, Direction::Receive, &request(id, ""), 0, b"");
        let head = format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nContent-Length: 100000\r\n\r\n");
        script.moved(server, Direction::Send, head.as_bytes(), 50_000, b"copied..");
        // sendfile: no user buffer.
        script.moved(server, Direction::Send, b"", 49_992, b"");
    }
    let played = script.play();
    for id in 0..2 {
        let exchange = played.of(id, Role::Server);
        assert_eq!((exchange.outcome, exchange.incomplete), (Outcome::Complete, None));
        assert_eq!(exchange.response.as_ref().unwrap().body.size, Some(100_000));
    }
    assert_right_pairs(&played, "gaps");
    assert_eq!(played.capture.counts().gap_bytes, 2 * (50_000 + 49_992));
}

#[test]
fn a_jump_of_the_position_is_a_gap() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    let server = &mut wire.0[SERVER];
    script.moved(server, Direction::Receive, b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n", 0, b"");
    // Spliced away by the process: no hook saw them.
    server.position[0] += 500;
    script.moved(server, Direction::Send, &response(1), 0, b"");
    script.moved(server, Direction::Receive, &request(2, ""), 0, b"");
    script.moved(server, Direction::Send, &response(2), 0, b"");
    let played = script.play();
    assert_right_pairs(&played, "jump");
    assert_eq!(played.of(2, Role::Server).incomplete, None);
    assert_eq!((played.capture.counts().gap_bytes, played.capture.counts().records_lost), (500, 0));
}

#[test]
fn a_connection_whose_description_was_lost_is_followed_without_addresses() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    script.records.clear();
    script.exchange(&mut wire, 1);
    script.exchange(&mut wire, 2);
    let mut played = script.play();
    assert_eq!(played.capture.counts().orphans, 2);
    let exchange = played.of(2, Role::Server);
    assert_eq!((&exchange.connection.local, exchange.pid), (&SocketAddress::Unknown, 200));
    assert_eq!(exchange.connection.process, ProcessRef { pid: 200, start_ns: 0 });
    // The kernel describes it again as soon as it can.
    let mut later = Script { time: script.time, ..Script::default() };
    later.open(&wire.0[SERVER], FirstBytes::Http1);
    later.exchange(&mut wire, 3);
    feed_all(&mut played, later.records.iter().map(Vec::as_slice));
    let exchange = played.of(3, Role::Server);
    assert_eq!((&exchange.connection.local, exchange.incomplete), (&wire.0[SERVER].local, None));
    assert_eq!(exchange.connection.process, process(200));
}

#[test]
fn a_connection_met_again_after_any_number_of_records_has_lost_none() {
    for seq in [[5, 7], [5, 3_000_000_000], [3_000_000_000, 5], [u32::MAX, u32::MAX - 2]] {
        let mut script = Script::default();
        let mut wire = script.connect(1, 100, 200);
        script.records.clear();
        let server = &mut wire.0[SERVER];
        server.seq = seq;
        for id in 0..2 {
            script.moved(server, Direction::Receive, &request(id, ""), 0, b"");
            script.moved(server, Direction::Send, &response(id), 0, b"");
        }
        let played = script.play();
        assert_right_pairs(&played, &format!("{seq:?}"));
        assert_eq!(played.of(1, Role::Server).outcome, Outcome::Complete);
        assert_eq!((played.capture.counts().records_lost, played.capture.counts().overlaps), (0, 0), "{seq:?}");
    }
}

#[test]
fn a_socket_handed_to_another_process_changes_owner_in_the_middle_of_an_exchange() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    script.exchange(&mut wire, 1);
    let [_, server] = &mut wire.0;
    script.moved(server, Direction::Receive, &request(2, "")[..10], 0, b"");
    server.process = process(201);
    server.tid = 201;
    script.open(server, FirstBytes::Http1);
    script.moved(server, Direction::Receive, &request(2, "")[10..], 0, b"");
    script.moved(server, Direction::Send, &response(2), 0, b"");
    let played = script.play();
    let (first, second) = (played.of(1, Role::Server), played.of(2, Role::Server));
    assert_eq!((first.connection.process, first.pid), (process(200), 200));
    assert_eq!((second.connection.process, second.pid, second.incomplete), (process(201), 201, None));
    assert_eq!(played.capture.connections(), 2);
}

#[test]
fn a_call_made_while_a_thread_serves_is_caused_by_what_it_serves() {
    let mut script = Script::default();
    let mut front = script.connect(1, 100, 200);
    let mut back = script.connect(2, 200, 300);
    script.send(&mut front, CLIENT, &request(1, ""));
    script.exchange(&mut back, 2);
    script.send(&mut front, SERVER, &response(1));
    // The request is answered: this is on the process's own account.
    script.exchange(&mut back, 3);
    let played = script.play();
    let chain = [(1, Role::Client), (1, Role::Server), (2, Role::Client), (2, Role::Server)];
    let contexts = chain.map(|(id, role)| played.of(id, role).trace);
    for (parent, child) in contexts.iter().zip(&contexts[1..]) {
        assert_eq!((child.trace_id, child.parent), (parent.trace_id, Some(parent.span_id)));
    }
    let own = played.of(3, Role::Client).trace;
    assert_eq!(own.parent, None);
    assert_ne!(own.trace_id, contexts[0].trace_id);
    assert_eq!(played.capture.counts().linked_thread, 1);
}

#[test]
fn a_thread_that_serves_several_requests_at_once_causes_nothing_and_is_counted() {
    let mut script = Script::default();
    let mut fronts = [script.connect(1, 100, 200), script.connect(3, 101, 200)];
    let mut back = script.connect(2, 200, 300);
    for (id, front) in fronts.iter_mut().enumerate() {
        script.send(front, CLIENT, &request(id as u32, ""));
    }
    script.exchange(&mut back, 7);
    for (id, front) in fronts.iter_mut().enumerate() {
        script.send(front, SERVER, &response(id as u32));
    }
    let played = script.play();
    assert_eq!(played.of(7, Role::Client).trace.parent, None);
    assert_eq!((played.capture.counts().linked_ambiguous, played.capture.counts().linked_thread), (1, 0));
}

#[test]
fn a_traceparent_passed_on_chains_every_hop() {
    let mut script = Script::default();
    let mut front = script.connect(1, 100, 200);
    let mut back = script.connect(2, 200, 300);
    // An event loop: another request is open on the same thread, so only the header tells.
    let mut other = script.connect(3, 101, 200);
    script.send(&mut other, CLIENT, &request(9, ""));
    script.send(&mut front, CLIENT, &request(1, &traceparent(0xaa, 0xbb)));
    script.send(&mut back, CLIENT, &request(2, &traceparent(0xaa, 0xbb)));
    script.send(&mut back, SERVER, &response(2));
    script.send(&mut front, SERVER, &response(1));
    let played = script.play();
    let contexts = [(1, Role::Client), (1, Role::Server), (2, Role::Client), (2, Role::Server)]
        .map(|(id, role)| played.of(id, role).trace);
    assert!(contexts.iter().all(|context| context.trace_id == TraceId([0xaa; 16])));
    // The caller made the header: its span is the one the header names.
    assert_eq!(contexts[0].span_id, SpanId([0xbb; 8]));
    for (parent, child) in contexts.iter().zip(&contexts[1..]) {
        assert_eq!(child.parent, Some(parent.span_id));
    }
}

#[test]
fn ends_on_other_machines_and_unix_sockets_are_not_joined() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    let name = SocketAddress::Unix("/run/app.sock".into());
    for end in &mut wire.0 {
        (end.local, end.remote) = (name.clone(), name.clone());
    }
    script.records.clear();
    for end in &wire.0 {
        script.open(end, FirstBytes::Http1);
    }
    script.exchange(&mut wire, 1);
    let played = script.play();
    assert_eq!(played.of(1, Role::Server).trace.parent, None);
    assert_eq!((played.capture.counts().roots, played.capture.counts().linked_connection), (2, 0));
}

#[test]
fn the_end_of_a_connection_ends_its_exchanges_as_it_ended() {
    for (receive, send, reset, want) in
        [(true, true, false, Outcome::ConnectionClosed), (true, true, true, Outcome::ConnectionReset)]
    {
        let mut script = Script::default();
        let mut wire = script.connect(1, 100, 200);
        script.send(&mut wire, CLIENT, &request(1, ""));
        script.close(&wire.0[SERVER], receive, send, reset);
        let played = script.play();
        let exchange = played.of(1, Role::Server);
        assert_eq!((exchange.outcome, exchange.timing.end), (want, Timestamp(script.time)));
        assert_eq!(played.capture.connections(), 1);
    }
}

#[test]
fn a_request_without_response_is_given_up_in_time() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    script.send(&mut wire, CLIENT, &request(1, ""));
    let mut played = script.play();
    let limit = Limits::default().response_timeout_ns;
    let tick = |played: &mut Played, after| played.capture.on_tick(Timestamp(script.time + after), &mut played.out);
    tick(&mut played, limit - 10_000);
    assert!(played.exchanges().is_empty());
    tick(&mut played, limit + 10_000);
    assert_eq!(played.of(1, Role::Server).outcome, Outcome::Timeout);
    assert_eq!(played.of(1, Role::Client).outcome, Outcome::Timeout);
    assert!(played.capture.memory() > 0);
    // And idle connections are forgotten in the end.
    tick(&mut played, Settings::default().idle_timeout_ns + limit);
    assert_eq!(played.capture.connections(), 0);
}

#[test]
fn the_connection_idle_for_longest_goes_first_and_its_exchange_is_put_out_abandoned() {
    let mut script = Script::default();
    let mut wires: Vec<Wire> = (1..3).map(|number| script.connect(number, 100, 200)).collect();
    for (id, wire) in wires.iter_mut().enumerate() {
        script.send(wire, CLIENT, &request(id as u32, ""));
    }
    // The first one is used again, so that the second is the oldest.
    script.send(&mut wires[0], SERVER, &response(0)[..10]);
    script.connect(9, 100, 200);
    let settings = Settings { max_connections: 4, ..Settings::default() };
    let played = play(script.records.iter().map(Vec::as_slice), settings);
    assert_eq!(played.capture.connections(), 4);
    assert_eq!(played.exchanges().len(), 2);
    for role in [Role::Client, Role::Server] {
        assert_eq!(played.of(1, role).incomplete, Some(Incomplete::Abandoned));
    }
    let counts = played.capture.counts();
    assert_eq!((counts.connections_evicted, counts.exchanges_evicted), (2, 2));
}

#[test]
fn shrinking_gives_memory_back_and_puts_open_exchanges_out() {
    let mut script = Script::default();
    let mut wires: Vec<Wire> = (0..100).map(|number| script.connect(number, 100, 200)).collect();
    for (id, wire) in wires.iter_mut().enumerate() {
        script.send(wire, CLIENT, &request(id as u32, ""));
    }
    let mut played = script.play();
    played.capture.on_tick(Timestamp(script.time), &mut played.out);
    let before = played.capture.memory();
    played.capture.shrink(before / 2, &mut played.out);
    assert!(played.capture.memory() <= before / 2);
    assert!(played.capture.connections() > 0 && played.capture.connections() < 200);
    played.capture.shrink(0, &mut played.out);
    assert_eq!(played.capture.connections(), 0);
    assert_eq!(played.exchanges().len(), 200);
    assert!(played.exchanges().iter().all(|exchange| exchange.incomplete == Some(Incomplete::Abandoned)));
}

#[test]
fn hundreds_of_thousands_of_connections_need_no_more_than_the_table_holds() {
    let settings = Settings { max_connections: 1000, ..Settings::default() };
    let mut played = play(std::iter::empty(), settings);
    let mut most = 0;
    for block in 0..400_u64 {
        let mut script = Script { time: block * 1_000_000, ..Script::default() };
        for number in 0..500 {
            let mut wire = script.connect(block * 500 + number, 100, 200);
            script.send(&mut wire, CLIENT, &request(1, "")[..20]);
        }
        feed_all(&mut played, script.records.iter().map(Vec::as_slice));
        played.out.clear();
        played.capture.on_tick(Timestamp(script.time), &mut played.out);
        most = most.max(played.capture.memory());
    }
    assert_eq!(played.capture.connections(), 1000);
    assert_eq!(played.capture.counts().connections, 400_000);
    assert_eq!(played.capture.counts().connections_evicted, 399_000);
    assert!(most < 8 << 20, "{most} bytes");
}

#[test]
fn protocols_that_cannot_be_read_leave_nothing() {
    let mut script = Script::default();
    let wire = script.connect(1, 100, 200);
    script.records.clear();
    script.open(&wire.0[SERVER], FirstBytes::Other);
    let played = script.play();
    assert_eq!(played.capture.connections(), 0);
    assert!(played.exchanges().is_empty());
}

/// A socket that carries TLS, and the stream above it.
fn tls(script: &mut Script, number: u64) -> (Wire, Wire) {
    let sockets = script.connect(number, 100, 200);
    script.records.clear();
    let mut streams = script.connect(number, 100, 200);
    script.records.clear();
    for end in &mut streams.0 {
        end.conn.0 |= 1 << 63;
        end.position = [1 << 32; 2];
    }
    for end in &sockets.0 {
        script.open(end, FirstBytes::Tls);
    }
    (sockets, streams)
}

#[test]
fn plaintext_of_a_tls_library_has_the_peers_of_its_socket_and_one_trace() {
    let mut script = Script::default();
    let (mut sockets, mut streams) = tls(&mut script, 1);
    let hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03";
    script.send(&mut sockets, CLIENT, hello);
    for at in [CLIENT, SERVER] {
        script.open_stream(&streams.0[at], &sockets.0[at], true, FirstBytes::Http1);
    }
    script.exchange(&mut streams, 1);
    let played = script.play();
    let (client, server) = (played.of(1, Role::Client), played.of(1, Role::Server));
    assert_eq!(client.connection.remote, sockets.0[CLIENT].remote);
    assert_eq!(server.connection.remote, sockets.0[CLIENT].local);
    assert!(client.connection.tls.is_some() && client.connection.backend == Backend::Openssl);
    assert_eq!(server.trace.parent, Some(client.trace.span_id));
    let uses = played.capture.tls_uses();
    assert_eq!(uses.len(), 2);
    assert!(uses.iter().all(|used| (used.sockets, used.read) == (1, 1)), "{uses:?}");
}

#[test]
fn of_many_processes_with_tls_or_quic_the_last_are_kept_and_the_others_counted() {
    const FIRST: u32 = 1_000;
    const MANY: u32 = 1_200;
    const MOST: u32 = 1_024;
    /// Sorted process numbers of those that are kept, and how many are not.
    type Kept = fn(&Capture) -> (Vec<u32>, u64);
    let tls: Kept = |capture| {
        let kept = capture.tls_uses().iter().map(|used| used.process.pid).collect();
        (kept, capture.counts().tls_processes_evicted)
    };
    let quic: Kept = |capture| {
        let kept = capture.http3_uses().iter().map(|used| used.process.pid).collect();
        (kept, capture.http3.evicted())
    };
    for (protocol, kept) in [(FirstBytes::Tls, tls), (FirstBytes::Quic, quic)] {
        let mut script = Script::default();
        for number in 0..MANY / 2 {
            // Each end in a process of its own.
            let (client, server) = (FIRST + 2 * number, FIRST + 2 * number + 1);
            let sockets = script.connect(u64::from(number) + 1, client, server);
            script.records.truncate(script.records.len() - 2);
            for end in &sockets.0 {
                script.open(end, protocol);
            }
        }
        let (mut pids, evicted) = kept(&script.play().capture);
        pids.sort_unstable();
        assert_eq!(pids, (FIRST + MANY - MOST..FIRST + MANY).collect::<Vec<_>>(), "{protocol:?}");
        assert_eq!(evicted, u64::from(MANY - MOST), "{protocol:?}");
    }
}

#[test]
fn an_exchange_waits_for_its_socket_and_no_longer_than_told() {
    for known_later in [true, false] {
        let mut script = Script::default();
        let (sockets, mut streams) = tls(&mut script, 1);
        script.open_stream(&streams.0[SERVER], &sockets.0[SERVER], false, FirstBytes::Http1);
        script.exchange(&mut streams, 1);
        script.records.retain(|record| {
            let event = event::decode(record).unwrap();
            event.conn() != Some(streams.0[CLIENT].conn)
        });
        let mut played = script.play();
        assert!(played.exchanges().is_empty(), "it waits");
        if known_later {
            let mut rest = Script { time: script.time, records: Vec::new() };
            rest.open_stream(&streams.0[SERVER], &sockets.0[SERVER], true, FirstBytes::Http1);
            feed_all(&mut played, rest.records.iter().map(Vec::as_slice));
        } else {
            played.capture.on_tick(Timestamp(script.time + 1_000_000), &mut played.out);
            assert!(played.exchanges().is_empty(), "a millisecond is not long");
            played.capture.on_tick(Timestamp(script.time + 3_000_000_000), &mut played.out);
        }
        let exchange = played.of(1, Role::Server);
        if known_later {
            assert_eq!((exchange.incomplete, &exchange.connection.remote), (None, &sockets.0[SERVER].remote));
        } else {
            assert_eq!(exchange.incomplete, Some(Incomplete::PeerUnknown));
            assert_eq!(exchange.connection.remote, SocketAddress::Unknown);
        }
        assert_eq!(played.capture.counts().peer_unknown, u64::from(!known_later));
    }
}

#[test]
fn an_object_that_moves_in_memory_keeps_its_exchange() {
    for same_socket in [true, false] {
        let mut script = Script::default();
        let (sockets, mut streams) = tls(&mut script, 1);
        let socket = &sockets.0[SERVER];
        let before = streams.0[SERVER].clone();
        let mut after = End { conn: ConnId(before.conn.0 + 100), ..before.clone() };
        let mut before = before;
        let supposed = if same_socket { socket } else { &sockets.0[CLIENT] };
        script.open_above(&before, Some(supposed), false, FirstBytes::Http1);
        script.moved(&mut before, Direction::Receive, &request(1, ""), 0, b"");
        // Its next address begins to count anew.
        script.open_above(&after, None, false, FirstBytes::Http1);
        script.moved(&mut after, Direction::Send, &response(1), 0, b"");
        script.open_above(&after, Some(socket), true, FirstBytes::Http1);
        script.moved(&mut after, Direction::Receive, &request(2, ""), 0, b"");
        script.moved(&mut after, Direction::Send, &response(2), 0, b"");
        streams.0.reverse();
        let played = script.play();
        let second = played.of(2, Role::Server);
        assert_eq!((second.incomplete, &second.connection.remote), (None, &socket.remote));
        if same_socket {
            let first = played.of(1, Role::Server);
            assert_eq!((first.incomplete, &first.connection.remote), (None, &socket.remote));
            assert_eq!(first.response.as_ref().map(|response| response.status), Some(200));
            assert_eq!(played.exchanges().len(), 2);
        } else {
            assert!(played.exchanges().iter().all(|exchange| {
                exchange.response.is_none() || exchange.request.as_ref().is_none_or(|request| request.target != "/1")
            }));
        }
    }
}

#[test]
fn the_end_of_a_socket_ends_the_plaintext_above_it() {
    let mut script = Script::default();
    let (sockets, mut streams) = tls(&mut script, 1);
    script.open_stream(&streams.0[CLIENT], &sockets.0[CLIENT], true, FirstBytes::Http1);
    script.moved(&mut streams.0[CLIENT], Direction::Send, &request(1, ""), 0, b"");
    script.moved(&mut streams.0[CLIENT], Direction::Receive, b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 0, b"");
    script.close(&sockets.0[CLIENT], true, false, false);
    script.close(&sockets.0[CLIENT], false, true, false);
    let played = script.play();
    assert_eq!(played.of(1, Role::Client).outcome, Outcome::Complete);
    assert_eq!(played.capture.connections(), 1, "the other socket is left");
    assert_eq!(played.capture.counts().tls_unread, 0);
}

#[test]
fn a_socket_whose_plaintext_nobody_yields_is_a_blind_spot() {
    let mut script = Script::default();
    let (sockets, streams) = tls(&mut script, 1);
    // The server's library yields something that is no HTTP: read, if not understood.
    script.open_stream(&streams.0[SERVER], &sockets.0[SERVER], true, FirstBytes::Other);
    for end in &sockets.0 {
        script.close(end, true, true, false);
    }
    let played = script.play();
    assert_eq!(played.capture.counts().tls_sockets, 2);
    assert_eq!(played.capture.counts().tls_unread, 1);
    let unread: Vec<_> =
        played.capture.tls_uses().into_iter().filter(|used| used.read == 0).map(|used| used.process).collect();
    assert_eq!(unread, [sockets.0[CLIENT].process]);
}

#[test]
fn bytes_that_are_no_http_after_all_are_given_up_once() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    let server = &mut wire.0[SERVER];
    for _ in 0..40 {
        script.moved(server, Direction::Receive, &[0xfe; 8192], 0, b"");
        script.moved(server, Direction::Send, &[0xfd; 8192], 0, b"");
    }
    // The verdict stays.
    script.moved(server, Direction::Receive, &request(1, ""), 0, b"");
    script.moved(server, Direction::Send, &response(1), 0, b"");
    let played = script.play();
    assert_eq!((played.capture.counts().not_http, played.exchanges().len()), (1, 0));
    assert_eq!(played.capture.connections(), 2);
}

#[test]
fn a_long_body_is_not_taken_for_something_else() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    let server = &mut wire.0[SERVER];
    script.moved(server, Direction::Receive, &request(1, ""), 0, b"");
    script.moved(server, Direction::Send, b"HTTP/1.1 200 OK\r\nX-Id: 1\r\nContent-Length: 1073741824\r\n\r\n", 0, b"");
    for _ in 0..1024 {
        script.moved(server, Direction::Send, &[b'x'; 32], (1 << 20) - 32, b"");
    }
    script.moved(server, Direction::Receive, &request(2, ""), 0, b"");
    script.moved(server, Direction::Send, &response(2), 0, b"");
    let played = script.play();
    assert_eq!(played.of(1, Role::Server).response.as_ref().unwrap().body.size, Some(1 << 30));
    assert_eq!(played.of(2, Role::Server).incomplete, None);
    assert_eq!(played.capture.counts().not_http, 0);
}

#[test]
fn a_process_is_told_of_once_again_after_exec_and_again_when_asked() {
    let mut script = Script::default();
    script.connect(1, 100, 200);
    script.connect(2, 100, 200);
    let time = script.now();
    let exec = |pid, name: &str| {
        let filename = format!("/usr/bin/{name}").into();
        KernelEvent::Exec(Exec { time, process: process(pid), cgroup: 5, comm: comm(name), filename })
    };
    script.push(&exec(200, "nginx"));
    script.push(&exec(201, "curl"));
    script.connect(3, 201, 200);
    let mut played = script.play();
    let seen: Vec<_> = played
        .processes()
        .iter()
        .map(|seen| (seen.process.pid, seen.comm.to_string(), seen.filename.as_deref().map(str::to_owned)))
        .collect();
    let want = [
        (100, "app", None),
        (200, "app", None),
        (200, "nginx", Some("/usr/bin/nginx")),
        (201, "curl", Some("/usr/bin/curl")),
    ];
    assert_eq!(seen, want.map(|(pid, comm, file)| (pid, comm.to_owned(), file.map(str::to_owned))));
    played.out.clear();
    played.capture.announce_again();
    let mut later = Script::default();
    later.connect(4, 100, 200);
    feed_all(&mut played, later.records.iter().map(Vec::as_slice));
    assert_eq!(played.processes().len(), 2);
}

#[test]
fn a_client_that_exports_spans_is_told_of() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    script.send(
        &mut wire,
        CLIENT,
        b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-protobuf\r\nContent-Length: 2\r\n\r\nab",
    );
    let played = script.play();
    let told: Vec<_> = played.out.iter().filter(|output| matches!(output, Output::SelfInstrumented(_))).collect();
    assert_eq!(told, [&Output::SelfInstrumented(process(100))], "the collector at the other end is none");
}

#[test]
fn a_websocket_is_told_of_at_once_and_holds_no_thread() {
    let mut script = Script::default();
    let mut socket = script.connect(1, 100, 200);
    let mut back = script.connect(2, 200, 300);
    script.send(&mut socket, CLIENT, b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n");
    script.send(&mut socket, SERVER, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n");
    // The thread that took the upgrade calls someone for another reason.
    script.exchange(&mut back, 2);
    script.send(&mut socket, SERVER, b"\x81\x02hi");
    for end in &socket.0 {
        script.close(end, true, true, false);
    }
    let played = script.play();
    assert_eq!(played.of(2, Role::Client).trace.parent, None);
    let told: Vec<_> = played
        .out
        .iter()
        .filter_map(|output| match output {
            Output::Progress(exchange) => Some(exchange),
            _ => None,
        })
        .collect();
    let ended: Vec<_> =
        played.exchanges().into_iter().filter(|exchange| exchange.outcome == Outcome::Upgraded).collect();
    assert_eq!((told.len(), ended.len()), (2, 2));
    for (told, ended) in told.iter().zip(&ended) {
        let counts = |exchange: &Exchange| exchange.response.as_ref().unwrap().body.messages.map(|it| it.count);
        assert_eq!((counts(told), counts(ended)), (Some(0), Some(1)));
    }
    let spans = |all: &[&Exchange]| {
        all.iter().map(|exchange| exchange.trace.span_id.0).collect::<std::collections::BTreeSet<_>>()
    };
    let told: Vec<&Exchange> = told.iter().map(|exchange| &***exchange).collect();
    assert_eq!(spans(&told), spans(&ended));
    assert_eq!(played.capture.counts().exchanges, 4);
}

#[test]
fn a_forgotten_connection_leaves_nothing_open() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    let mut back = script.connect(2, 200, 300);
    script.send(&mut wire, CLIENT, &request(1, ""));
    let mut played = script.play();
    played.capture.forget(wire.0[SERVER].conn);
    assert_eq!((played.capture.connections(), played.capture.counts().exchanges_evicted), (3, 1));
    let mut later = Script { time: script.time, ..Script::default() };
    later.exchange(&mut back, 2);
    feed_all(&mut played, later.records.iter().map(Vec::as_slice));
    assert_eq!(played.of(2, Role::Client).trace.parent, None);
}

#[test]
fn a_socket_used_for_another_connection_leaves_no_address_behind() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    let mut first = wire.0[CLIENT].clone();
    // Disconnected and connected again, and the end of the first connection was lost.
    wire.0[CLIENT].local = SocketAddress::Ip("10.0.9.9:41000".parse().unwrap());
    script.open(&wire.0[CLIENT], FirstBytes::Http1);
    let mut played = script.play();
    played.capture.shrink(0, &mut played.out);
    std::mem::swap(&mut first.local, &mut first.remote);
    let mirrored = Connection {
        id: ConnId(77),
        transport: Transport::Tcp,
        local: first.local,
        remote: first.remote,
        backend: Backend::SockTracepoint,
        tls: None,
        process: first.process,
        comm: Arc::from(""),
        cgroup: 0,
        uid: 0,
        netns: 0,
        first_seen: Timestamp(0),
    };
    assert_eq!(played.capture.table.mirror_of(&mirrored), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_shuffled_and_repeated_records_never_panic_and_are_bounded(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..40),
        swaps in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40),
    ) {
        let mut script = Script::default();
        let mut wires = [script.connect(1, 100, 200), script.connect(2, 200, 300)];
        for id in 0..10 {
            script.exchange(&mut wires[(id % 2) as usize], id);
        }
        for end in &wires[0].0 {
            script.close(end, true, true, false);
        }
        let mut records = script.records;
        for (record, at, value) in edits {
            let len = records.len();
            let record = &mut records[record.index(len)];
            let at = at.index(record.len());
            record[at] = value;
        }
        for (one, other) in swaps {
            let len = records.len();
            records.swap(one.index(len), other.index(len));
        }
        let settings = Settings { max_connections: 3, ..Settings::default() };
        let mut capture = Capture::new(settings);
        let mut out = Vec::new();
        for (at, record) in records.iter().enumerate() {
            if let Ok(event) = event::decode(record) {
                capture.on_event(event, &mut out);
            }
            if at % 7 == 0 {
                capture.on_tick(Timestamp(at as u64 * 1_000_000_000_000), &mut out);
            }
        }
        capture.shrink(0, &mut out);
        let exchanges = out.iter().filter(|output| matches!(output, Output::Exchange(_))).count();
        prop_assert_eq!(exchanges as u64, capture.counts().exchanges);
        prop_assert!(exchanges <= 60);
    }
}

#[test]
fn quic_and_the_offer_of_http3_are_noted_by_process_and_port() {
    let mut script = Script::default();
    let mut wire = script.connect(1, 100, 200);
    script.send(&mut wire, CLIENT, &request(1, ""));
    let answer = b"HTTP/1.1 200 OK\r\nAlt-Svc: h3=\":443\"; ma=86400\r\nX-Id: 1\r\nContent-Length: 0\r\n\r\n";
    script.send(&mut wire, SERVER, answer);
    let offering = wire.0[SERVER].process;
    let mut datagrams = script.connect(2, 300, 400);
    let quic = &mut datagrams.0[SERVER];
    quic.conn = ConnId(99);
    let quic = quic.clone();
    script.open(&quic, FirstBytes::Quic);
    script.open(&quic, FirstBytes::Quic);
    let played = script.play();
    let uses = played.capture.http3_uses();
    let told: Vec<_> = uses.iter().map(|used| (used.process, used.sockets, used.offers.len())).collect();
    assert_eq!(told, [(offering, 0, 1), (quic.process, 2, 0)], "the client of an offer offers nothing");
    let [offer, spoken] = &uses[..] else { panic!("{uses:?}") };
    assert!(offer.blind_spot().contains("offers HTTP/3 (Alt-Svc on TCP port"), "{}", offer.blind_spot());
    assert!(spoken.blind_spot().contains("speaks QUIC"), "{}", spoken.blind_spot());
}
