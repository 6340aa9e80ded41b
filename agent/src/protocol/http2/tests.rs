//! Connections written frame by frame, cut anywhere, with holes anywhere.

mod holes;
mod pcap;
mod world;

use proptest::prelude::*;

use super::Connection;
use crate::{
    model::{Direction, Incomplete, Outcome, Timestamp},
    protocol::{Done, End, Event, Limits, Operation, Protocol, RequestHead, Segment},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const CLIENT: Direction = Direction::Receive;
const SERVER: Direction = Direction::Send;
const SECOND: u64 = 1_000_000_000;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Literal fields; `indexed` ones are inserted in the table.
fn block(indexed: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(if indexed { 0x40 } else { 0 });
        for text in [name, value] {
            assert!(text.len() < 127);
            bytes.push(text.len() as u8);
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

fn request(stream: u32, path: &str, end: bool) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", path), ("x-id", path)];
    frame(1, 4 | u8::from(end), stream, &block(false, &fields))
}

fn response(stream: u32, status: &str, end: bool) -> Vec<u8> {
    frame(1, 4 | u8::from(end), stream, &block(false, &[(":status", status), ("content-type", "text/plain")]))
}

fn data(stream: u32, payload: &[u8], end: bool) -> Vec<u8> {
    frame(0, u8::from(end), stream, payload)
}

/// A connection and what came of it.
struct Feed {
    connection: Connection,
    events: Vec<Event>,
    time: u64,
    position: [u64; 2],
}

impl Feed {
    fn of(connection: Connection) -> Self {
        Self { connection, events: Vec::new(), time: SECOND, position: [100; 2] }
    }

    fn new() -> Self {
        let mut feed = Self::of(Connection::new(Limits::default()));
        feed.bytes(CLIENT, &[PREFACE, &frame(4, 0, 0, b"")].concat());
        feed.bytes(SERVER, &frame(4, 0, 0, b""));
        feed
    }

    fn segment(&mut self, direction: Direction, segment: Segment<'_>, len: u64) {
        self.time += 1000;
        let operation = Operation { time: Timestamp(self.time), pid: 7, tid: 8 };
        let position = &mut self.position[usize::from(direction == SERVER)];
        self.connection.on_segment(direction, *position, segment, operation, &mut self.events);
        *position += len;
    }

    fn bytes(&mut self, direction: Direction, bytes: &[u8]) {
        self.segment(direction, Segment::Bytes(bytes), bytes.len() as u64);
    }

    fn gap(&mut self, direction: Direction, len: u64) {
        self.segment(direction, Segment::Gap(len), len);
    }

    /// Whoever copies says that a frame begins here.
    fn boundary(&mut self, direction: Direction) {
        self.connection.on_boundary(direction);
    }

    fn end(&mut self, end: End) {
        self.connection.on_end(end, Timestamp(self.time), &mut self.events);
    }

    fn tick(&mut self, after: u64) {
        self.time += after;
        self.connection.on_tick(Timestamp(self.time), &mut self.events);
    }

    fn done(&self) -> Vec<&Done> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Done(done) => Some(&**done),
                Event::RequestHead(_) | Event::Progress(_) => None,
            })
            .collect()
    }

    fn heads(&self) -> Vec<&RequestHead> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::RequestHead(head) => Some(head),
                Event::Done(_) | Event::Progress(_) => None,
            })
            .collect()
    }

    /// Method, path, status, response body.
    fn lines(&self) -> Vec<String> {
        self.done().into_iter().map(line).collect()
    }
}

fn line(done: &Done) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let request = done
        .request
        .as_ref()
        .map_or("- -".to_owned(), |request| format!("{} {}", text(&request.method), text(&request.target)));
    let response = done.response.as_ref().map_or("-".to_owned(), |response| {
        let size = response.body.size.map_or("?".to_owned(), |size| size.to_string());
        format!("{} {size}", response.status)
    });
    format!("{request} {response}")
}

#[test]
fn responses_belong_to_their_streams_in_whatever_order_they_come() {
    let mut feed = Feed::new();
    feed.bytes(CLIENT, &[request(1, "/a", true), request(3, "/b", true), request(5, "/c", true)].concat());
    feed.bytes(SERVER, &[response(5, "200", false), response(3, "404", true)].concat());
    feed.bytes(SERVER, &[data(5, b"12", false), response(1, "201", false), data(1, b"x", true)].concat());
    feed.bytes(SERVER, &data(5, b"345", true));
    assert_eq!(feed.lines(), ["GET /b 404 0", "GET /a 201 1", "GET /c 200 5"]);
    let exchanges: Vec<u64> = feed.done().iter().map(|done| done.exchange).collect();
    assert_eq!(exchanges, [1, 0, 2]);
    let positions: Vec<u64> = feed.heads().iter().map(|head| head.position - 100 - 33).collect();
    let len = request(1, "/a", true).len() as u64;
    assert_eq!(positions, [0, len, 2 * len]);
    let done = feed.done()[1].clone();
    let request = done.request.unwrap();
    assert_eq!(request.headers.get("host"), Some(&b"a.test"[..]));
    assert_eq!(request.headers.get("x-id"), Some(&b"/a"[..]));
    assert!(request.headers.get(":path").is_none() && !request.headers.truncated);
    assert!(done.timing.start < done.timing.response_start.unwrap() && done.timing.request_end.is_some());
    assert_eq!((done.outcome, done.incomplete), (Outcome::Complete, None));
}

/// What a whole conversation says, whatever pieces it comes in.
fn conversation() -> Vec<(Direction, Vec<u8>)> {
    let split = block(false, &[(":method", "POST"), (":path", "/up"), (":scheme", "http"), ("te", "trailers")]);
    let (first, rest) = split.split_at(9);
    let padded = [&[2, 0, 0, 0, 0, 15][..], &block(true, &[(":status", "200")]), &[0, 0]].concat();
    vec![
        (CLIENT, [PREFACE, &frame(4, 0, 0, &[0, 1, 0, 0, 16, 0])].concat()),
        (SERVER, frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])),
        (CLIENT, [frame(1, 0, 1, first), frame(9, 0, 1, &rest[..4]), frame(9, 4, 1, &rest[4..])].concat()),
        (CLIENT, [data(1, b"abc", false), frame(6, 0, 0, &[0; 8]), request(3, "/c", true)].concat()),
        (SERVER, [frame(8, 0, 1, &[0, 0, 1, 0]), response(1, "103", false)].concat()),
        (CLIENT, [frame(0, 9, 1, b"\x03de\0\0\0"), frame(2, 0, 3, &[0; 5]), frame(0x55, 0xff, 9, b"what")].concat()),
        (SERVER, [frame(1, 4 | 8 | 0x20, 1, &padded), data(1, b"", false)].concat()),
        (SERVER, [frame(1, 4, 3, &[0xbe]), data(1, b"ok", false), data(3, b"12345", true)].concat()),
        (SERVER, [frame(5, 4, 1, &[&[0, 0, 0, 2][..], &block(false, &[(":method", "GET")])].concat())].concat()),
        (SERVER, [frame(1, 5, 1, &block(false, &[("grpc-status", "0")]))].concat()),
    ]
}

fn check_conversation(feed: &Feed) {
    assert_eq!(feed.lines(), ["GET /c 200 5", "POST /up 200 2"]);
    let last = feed.done()[1];
    let (request, response) = (last.request.as_ref().unwrap(), last.response.as_ref().unwrap());
    assert_eq!((request.body.size, response.interim), (Some(5), 1));
    assert_eq!(response.trailers.as_ref().unwrap().get("grpc-status"), Some(&b"0"[..]));
    assert!(feed.done().iter().all(|done| done.incomplete.is_none() && done.outcome == Outcome::Complete));
}

#[test]
fn every_cut_gives_the_same_exchanges() {
    let script = conversation();
    for size in 1..40 {
        let mut feed = Feed::of(Connection::new(Limits::default()));
        for (direction, bytes) in &script {
            for piece in bytes.chunks(size) {
                feed.bytes(*direction, piece);
            }
        }
        check_conversation(&feed);
    }
}

#[test]
fn holes_in_content_cost_nothing() {
    let mut feed = Feed::new();
    feed.bytes(CLIENT, &request(1, "/big", true));
    feed.bytes(SERVER, &response(1, "200", false));
    for _ in 0..3 {
        feed.bytes(SERVER, &frame(0, 0, 1, &[0; 16384])[..50]);
        feed.gap(SERVER, 16384 + 9 - 50);
    }
    feed.bytes(SERVER, &data(1, b"end", true));
    assert_eq!(feed.lines(), ["GET /big 200 49155"]);
    assert_eq!(feed.done()[0].incomplete, None);
}

#[test]
fn a_hole_in_a_block_makes_what_is_behind_it_unknown_and_nothing_wrong() {
    let named = |stream, path: &str| {
        frame(1, 5, stream, &block(true, &[(":method", "GET"), (":path", path), ("x-secret", path)]))
    };
    let mut feed = Feed::new();
    feed.bytes(CLIENT, &named(1, "/a"));
    let cut = named(3, "/b");
    feed.bytes(CLIENT, &cut[..9 + 13 + 4]);
    feed.gap(CLIENT, (cut.len() - 9 - 13 - 4) as u64);
    // Dynamic entries 62 (newest) to 64 could be of either request.
    feed.bytes(CLIENT, &frame(1, 5, 5, &[0x82, 0xbf, 0xbe]));
    feed.bytes(CLIENT, &named(7, "/d"));
    feed.bytes(CLIENT, &frame(1, 5, 9, &[0x82, 0xbf, 0xbe]));
    feed.bytes(SERVER, &[1, 3, 5, 7, 9].map(|stream| response(stream, "200", true)).concat());
    assert_eq!(feed.lines(), ["GET /a 200 0", "GET  200 0", "GET  200 0", "GET /d 200 0", "GET /d 200 0"]);
    let reasons: Vec<_> = feed.done().iter().map(|done| done.incomplete).collect();
    let (gap, table) = (Some(Incomplete::RequestHeadGap), Some(Incomplete::HeaderTableUnknown));
    assert_eq!(reasons, [None, gap, table, None, None]);
    assert!(feed.done()[2].request.as_ref().unwrap().headers.truncated, "any field may be missing");
}

#[test]
fn a_connection_met_late_is_read_from_its_next_frame() {
    let mut feed = Feed::of(Connection::joined(Limits::default()));
    feed.bytes(SERVER, &[b"the middle of a frame, which could be anything", &response(5, "404", true)[..]].concat());
    feed.bytes(SERVER, &response(5, "404", true));
    feed.boundary(SERVER);
    feed.bytes(SERVER, &[response(7, "200", false), data(7, b"x", true)].concat());
    feed.boundary(CLIENT);
    feed.bytes(CLIENT, &frame(1, 5, 9, &[0x82, 0xbf, 0x87]));
    feed.bytes(CLIENT, &request(11, "/new", true));
    feed.bytes(SERVER, &[response(11, "200", true), response(9, "500", true)].concat());
    assert_eq!(feed.lines(), ["- - 200 1", "GET /new 200 0", "GET  500 0"]);
    let reasons: Vec<_> = feed.done().iter().map(|done| done.incomplete).collect();
    assert_eq!(reasons, [Some(Incomplete::JoinedMidExchange), None, Some(Incomplete::HeaderTableUnknown)]);
    // Trailers of a stream that nobody saw begin are no request.
    feed.bytes(CLIENT, &frame(1, 5, 5, &block(false, &[("x-end", "1")])));
    assert_eq!(feed.heads().len(), 2);
}

#[test]
fn resets_and_goaway_are_outcomes() {
    let mut feed = Feed::new();
    let paths = ["/cancelled", "/whole", "/early", "/served", "/refused"];
    let requests = paths.iter().zip([1, 3, 5, 7, 9]);
    feed.bytes(CLIENT, &requests.map(|(path, stream)| request(stream, path, false)).collect::<Vec<_>>().concat());
    feed.bytes(CLIENT, &frame(3, 0, 1, &8_u32.to_be_bytes()));
    feed.bytes(SERVER, &[response(3, "200", true), frame(3, 0, 3, &0_u32.to_be_bytes())].concat());
    feed.bytes(SERVER, &[response(5, "413", true)].concat());
    feed.bytes(SERVER, &frame(7, 0, 0, &[0, 0, 0, 7, 0, 0, 0, 0]));
    feed.tick(2 * SECOND);
    feed.end(End::Reset);
    let outcomes: Vec<_> = feed.done().iter().map(|done| (line(done), done.outcome)).collect();
    let want = [
        ("GET /cancelled -", Outcome::StreamReset(8)),
        ("GET /whole 200 0", Outcome::Complete),
        ("GET /refused -", Outcome::StreamReset(7)),
        ("GET /early 413 0", Outcome::Complete),
        ("GET /served -", Outcome::ConnectionReset),
    ];
    assert_eq!(outcomes, want.map(|(line, outcome)| (line.to_owned(), outcome)));
    assert_eq!(Outcome::StreamReset(8).error_type(), Some("cancel"));
    assert_eq!(Outcome::StreamReset(0xdead).error_type(), Some("stream_reset"));
}

#[test]
fn a_client_that_leaves_with_all_that_was_announced_has_its_answer() {
    let announced =
        |stream, len: &str| frame(1, 4, stream, &block(false, &[(":status", "200"), ("content-length", len)]));
    for (leaves, whole, cut) in [
        (None, Outcome::Complete, Outcome::ConnectionReset),
        (Some(CLIENT), Outcome::Complete, Outcome::StreamReset(8)),
        (Some(SERVER), Outcome::StreamReset(8), Outcome::StreamReset(8)),
    ] {
        let mut feed = Feed::new();
        feed.bytes(CLIENT, &[1, 3, 5].map(|stream| request(stream, "/a", true)).concat());
        feed.bytes(SERVER, &[announced(1, "5"), announced(3, "6"), announced(5, "+5")].concat());
        feed.bytes(SERVER, &[1, 3, 5].map(|stream| data(stream, b"hello", false)).concat());
        let last = feed.time;
        feed.tick(SECOND);
        if let Some(direction) = leaves {
            feed.bytes(direction, &[1, 3, 5].map(|stream| frame(3, 0, stream, &8_u32.to_be_bytes())).concat());
        }
        feed.end(End::Reset);
        let outcomes: Vec<_> = feed.done().iter().map(|done| done.outcome).collect();
        // A length is digits alone.
        assert_eq!(outcomes, [whole, cut, cut], "{leaves:?}");
        if whole == Outcome::Complete {
            assert_eq!(feed.lines()[0], "GET /a 200 5");
            assert_eq!(feed.done()[0].timing.end, Timestamp(last));
        }
    }
}

#[test]
fn lost_records_leave_open_streams_their_names() {
    let mut feed = Feed::new();
    feed.bytes(CLIENT, &[request(1, "/a", true), request(3, "/b", true)].concat());
    feed.connection.on_loss(Timestamp(feed.time), &mut feed.events);
    feed.boundary(SERVER);
    feed.bytes(SERVER, &response(1, "200", true));
    feed.tick(11 * SECOND);
    assert_eq!(feed.lines(), ["GET /a 200 ?", "GET /b -"]);
    assert_eq!(feed.done()[1].incomplete, Some(Incomplete::RecordsLost));
    assert!(feed.connection.streams.is_empty());
}

#[test]
fn what_no_peer_may_send_harms_nothing() {
    let nothing = block(false, &[(":method", "GET"), (":path", "/x")]);
    for (name, bytes) in [
        ("another frame within a block", [frame(1, 1, 1, &nothing), data(1, b"x", false)].concat()),
        ("another stream's continuation", [frame(1, 1, 1, &nothing), frame(9, 4, 3, &nothing)].concat()),
        ("a continuation of nothing", frame(9, 4, 1, &nothing)),
        ("headers on the connection", frame(1, 5, 0, &nothing)),
        ("padding longer than the frame", frame(1, 5 | 8, 1, &[200, 0, 0])),
        ("data on an idle stream", data(9, b"x", true)),
        ("a reset of an idle stream", frame(3, 0, 9, &[0; 4])),
        ("settings of a strange length", frame(4, 0, 0, &[0; 7])),
        ("a block of nonsense", frame(1, 5, 1, &[0xff; 40])),
        ("an empty block", frame(1, 5, 1, b"")),
        ("a response from the client", frame(1, 5, 1, &block(false, &[(":status", "200")]))),
        ("an unknown frame", frame(0xfe, 0xff, 77, &[1; 100])),
    ] {
        let mut feed = Feed::new();
        feed.bytes(CLIENT, &bytes);
        feed.connection.on_boundary(CLIENT);
        feed.bytes(CLIENT, &request(101, "/after", true));
        feed.bytes(SERVER, &response(101, "200", true));
        assert_eq!(feed.lines().last().map(String::as_str), Some("GET /after 200 0"), "{name}");
        assert_eq!(feed.done().last().unwrap().incomplete, None, "{name}");
    }
}

#[test]
fn floods_are_bounded() {
    let limits = Limits { streams: 16, head_bytes: 1000, ..Limits::default() };
    let mut feed = Feed::of(Connection::new(limits));
    feed.bytes(CLIENT, PREFACE);
    for stream in 0..10_000 {
        feed.bytes(CLIENT, &request(stream * 2 + 1, "/open", false));
        feed.bytes(CLIENT, &frame(9, 0, stream * 2 + 1, &[0; 2000]));
    }
    feed.bytes(CLIENT, &frame(1, 0, 20_001, &block(false, &[(":method", "GET"), (":path", "/long")])));
    for _ in 0..1000 {
        feed.bytes(CLIENT, &frame(9, 0, 20_001, &[0x82; 1000]));
    }
    feed.bytes(CLIENT, &frame(9, 4, 20_001, &[0x82; 10]));
    assert_eq!(feed.connection.streams.len(), 16);
    assert!(feed.connection.memory() < 200_000, "{}", feed.connection.memory());
    feed.bytes(SERVER, &response(20_001, "200", true));
    feed.tick(0);
    let last = feed.connection.streams.get(&20_001).unwrap();
    assert_eq!(last.done.incomplete, Some(Incomplete::HeadTooLong));
    assert_eq!(feed.heads().len(), 10_001);
}

#[test]
fn an_upgraded_request_is_answered_by_the_first_stream() {
    let mut connection = crate::protocol::http1::Connection::new(Limits::default());
    let mut events = Vec::new();
    let operation = Operation { time: Timestamp(5), pid: 1, tid: 1 };
    let ask = b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    let mut feed = |direction, bytes: &[u8]| {
        connection.on_segment(direction, 0, Segment::Bytes(bytes), operation, &mut events);
    };
    feed(CLIENT, ask);
    let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    feed(SERVER, &[switched, &frame(4, 0, 0, b"")[..], &response(1, "200", false), &data(1, b"hello", true)].concat());
    feed(CLIENT, &[PREFACE, &frame(4, 0, 0, b""), &request(3, "/more", true)].concat());
    feed(SERVER, &response(3, "204", true));
    let done: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Done(done) => Some((done.exchange, done.version.name(), line(done), done.incomplete)),
            _ => None,
        })
        .collect();
    assert_eq!(done, [(0, "2", "GET /up 200 5".to_owned(), None), (1, "2", "GET /more 204 0".to_owned(), None)]);
}

proptest! {
    #[test]
    fn no_bytes_break_it(segments in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..60), 0..40_u64, any::<bool>()), 0..40)) {
        let mut feed = Feed::new();
        for (client, bytes, gap, boundary) in segments {
            let direction = if client { CLIENT } else { SERVER };
            if boundary {
                feed.connection.on_boundary(direction);
            }
            feed.bytes(direction, &bytes);
            feed.gap(direction, gap);
        }
        feed.tick(400 * SECOND);
        prop_assert!(feed.connection.streams.is_empty());
    }

    /// With any part of the conversation unseen, what is still said of method, path and status is the truth.
    #[test]
    fn holes_never_make_a_wrong_value(holes in prop::collection::vec((0..10_usize, 0..120_usize, 1..60_usize), 0..4), joined: bool) {
        let connection = if joined { Connection::joined(Limits::default()) } else { Connection::new(Limits::default()) };
        let mut feed = Feed::of(connection);
        for (index, (direction, bytes)) in conversation().iter().enumerate() {
            let mut at = 0;
            for (_, start, len) in holes.iter().filter(|hole| hole.0 == index) {
                let (start, end) = ((*start).clamp(at, bytes.len()), (start + len).clamp(at, bytes.len()));
                feed.bytes(*direction, &bytes[at..start]);
                feed.gap(*direction, (end - start) as u64);
                at = end;
            }
            feed.bytes(*direction, &bytes[at..]);
        }
        feed.end(End::Closed);
        for done in feed.done() {
            let request = done.request.as_ref().map(|request| (&*request.method, &*request.target));
            let known = request.is_none_or(|(method, path)| {
                (method == b"GET" || method.is_empty()) && (path == b"/c" || path.is_empty())
                    || (method == b"POST" || method.is_empty()) && (path == b"/up" || path.is_empty())
            });
            prop_assert!(known, "{}", line(done));
            let status = done.response.as_ref().map(|response| response.status);
            prop_assert!(matches!(status, None | Some(0 | 200)), "{}", line(done));
            if let Some(size) = done.response.as_ref().and_then(|response| response.body.size) {
                prop_assert!(size == 5 || size == 2, "{}", line(done));
            }
        }
    }
}
