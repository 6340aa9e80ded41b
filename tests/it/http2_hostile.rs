//! Hostile HTTP/2: floods, broken frames, broken header compression and games with its table. Nothing of it makes the agent
//! panic, guess or exceed its memory, and every call of everybody else is reported as it was made.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use agent_common::http2::{FRAME_HEADER, FrameHeader, PREFACE, flags, kind};
use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, Options, brief};
use weir_tests::harness::http2::{Caller, Kind, Load, Server};
use weir_tests::harness::tls::Certificates;
use weir_tests::harness::{PATIENCE, skip, wait_until};

const MEMORY: u64 = 256 << 20;
/// Frames of a flood.
const FLOOD: usize = 20_000;
/// Senders at a time.
const SENDERS: usize = 4;

const END_STREAM: u8 = flags::END_STREAM;
const END_HEADERS: u8 = flags::END_HEADERS;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    announced(payload.len(), kind, flags, stream, payload)
}

/// A frame whose header says another length than it has.
fn announced(len: usize, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (len as u32).to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// An integer of RFC 7541 section 5.1.
fn integer(first: u8, prefix_bits: u32, value: usize) -> Vec<u8> {
    let most = (1_usize << prefix_bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let (mut bytes, mut rest) = (vec![first | most as u8], value - most);
    while rest >= 128 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [integer(0, 7, bytes.len()), bytes.to_vec()].concat()
}

/// A field that is not indexed (`first` 0) or is put into the table (0x40).
fn field(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![first], text(name), text(value)].concat()
}

/// `:method: GET` and `:scheme: http` of the static table, a path and an authority.
fn block(path: &[u8]) -> Vec<u8> {
    [vec![0x82, 0x86], field(0, b":path", path), field(0, b":authority", b"h")].concat()
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &block(path.as_bytes()))
}

fn headers(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, block)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

fn settings(payload: &[u8]) -> Vec<u8> {
    frame(kind::SETTINGS, 0, 0, payload)
}

/// A connection that begins well.
fn begun(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE.to_vec(), settings(&[]), frames.concat()].concat()
}

/// Frames that are wrong by themselves.
fn broken_frames() -> Vec<Vec<u8>> {
    let padded = |payload: &[u8]| begun(&[frame(kind::HEADERS, END_HEADERS | flags::PADDED, 1, payload)]);
    let prioritised = |payload: &[u8]| begun(&[frame(kind::HEADERS, END_HEADERS | flags::PRIORITY, 1, payload)]);
    vec![
        PREFACE[..10].to_vec(),
        [PREFACE.to_vec(), PREFACE.to_vec()].concat(),
        [b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(), settings(&[])].concat(),
        begun(&[settings(&[0; 5])]),
        begun(&[frame(kind::SETTINGS, flags::ACK, 0, &[0; 6])]),
        begun(&[frame(kind::SETTINGS, 0, 1, &[])]),
        begun(&[frame(kind::PING, 0, 0, &[0; 7]), frame(kind::PING, 0, 3, &[0; 8])]),
        begun(&[frame(kind::RST_STREAM, 0, 1, &[0; 3])]),
        begun(&[frame(kind::RST_STREAM, 0, 0, &[0; 4])]),
        begun(&[frame(kind::GOAWAY, 0, 0, &[])]),
        begun(&[frame(kind::GOAWAY, 0, 0, &[0xff; 8]), get(1, "/id/behind-goaway")]),
        begun(&[frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4])]),
        begun(&[get(1, "/id/window"), frame(kind::WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]).repeat(2)]),
        begun(&[frame(kind::DATA, END_STREAM, 0, b"data")]),
        begun(&[frame(kind::DATA, END_STREAM, 1, b"before its headers")]),
        begun(&[get(0, "/id/zero")]),
        begun(&[get(2, "/id/even")]),
        begun(&[get(5, "/id/five"), get(3, "/id/three"), get(5, "/id/five-again")]),
        begun(&[get(0x7fff_ffff, "/id/the-highest"), get(1, "/id/after-the-highest")]),
        begun(&[frame(kind::HEADERS, END_HEADERS | END_STREAM, 0x8000_0001, &block(b"/id/reserved-bit"))]),
        begun(&[frame(kind::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82])]),
        begun(&[frame(kind::CONTINUATION, END_HEADERS, 1, &block(b"/id/continued-from-nothing"))]),
        begun(&[frame(kind::HEADERS, 0, 1, &block(b"/id/cut")), get(3, "/id/inside-a-block")]),
        begun(&[frame(kind::HEADERS, 0, 1, &[0x82]), frame(kind::CONTINUATION, END_HEADERS, 3, &[0x86])]),
        begun(&[frame(kind::HEADERS, END_STREAM, 1, &block(b"/id/never-ended"))]),
        padded(&[]),
        padded(&[200, 0x82]),
        padded(&[1, 0]),
        padded(&[255; 256]),
        prioritised(&[0; 4]),
        prioritised(&[[0, 0, 0, 1, 0].to_vec(), block(b"/id/on-itself")].concat()),
        begun(&[frame(kind::DATA, flags::PADDED, 1, &[9, 1])]),
        begun(&[announced(0x00ff_ffff, kind::DATA, 0, 1, &[7; 50_000])]),
        begun(&[announced(0x00ff_ffff, kind::HEADERS, END_HEADERS, 1, &[0x82; 50_000])]),
        begun(&[announced(5, kind::HEADERS, END_HEADERS, 1, &block(b"/id/longer-than-said"))]),
        begun(&[(0..=255).cycle().take(100_000).collect()]),
        begun(&[vec![0xff; 100_000]]),
        begun(&[vec![0; 100_000]]),
    ]
}

/// Header compression that is wrong, excessive, or plays with its table.
fn broken_compression() -> Vec<Vec<u8>> {
    let one = |block: &[u8]| begun(&[headers(1, block), get(3, "/id/after-it")]);
    let start = [0x82, 0x86];
    let with = |rest: &[u8]| one(&[&start[..], rest].concat());
    let entry = field(0x40, b"x-large", &[b'l'; 3900]);
    let bomb = [block(b"/id/bomb"), entry, vec![0xbe; 12_000]].concat();
    let insert = |index: usize| field(0x40, format!("x-{index}").as_bytes(), b"v");
    let churn: Vec<_> = (0..3000).flat_map(insert).collect();
    let resize = |size: usize| integer(0x20, 5, size);
    let games = (0..200_u32).flat_map(|index| {
        let limit = if index % 2 == 0 { 0 } else { 65_536 };
        let sizes = [resize(0), resize(4096)].concat();
        [
            settings(&setting(1, limit)),
            headers(2 * index + 1, &[sizes, field(0x40, b"x-game", &index.to_be_bytes()), block(b"/id/game")].concat()),
        ]
    });
    let pseudo = |name: &[u8], value: &[u8]| with(&[field(0, b":path", b"/id/pseudo"), field(0, name, value)].concat());
    vec![
        one(&[0x80]),
        one(&[0xff; 40]),
        one(&integer(0x80, 7, 62)),
        one(&integer(0x80, 7, usize::MAX >> 1)),
        with(&[0x40]),
        with(&[&[0][..], &integer(0, 7, 100_000), b"short"].concat()),
        with(&[&[0x04][..], &integer(0x80, 7, 4), &[0xff; 4]].concat()),
        with(&[&[0x04][..], &integer(0x80, 7, 1), &[0]].concat()),
        with(&resize(4097)),
        with(&resize(usize::MAX >> 8)),
        with(&[field(0, b":path", b"/id/resized-behind-a-field"), resize(0)].concat()),
        one(&resize(0).repeat(5000)),
        one(&bomb),
        one(&[block(b"/id/churn"), churn].concat()),
        begun(&games.collect::<Vec<_>>()),
        begun(&[settings(&setting(1, u32::MAX)), get(1, "/id/a-table-without-end")]),
        begun(&[settings(&[setting(5, 0), setting(4, u32::MAX), setting(99, 7)].concat())]),
        pseudo(b":path", b"/id/another"),
        pseudo(b":unheard", b"of"),
        pseudo(b"Upper-Case", b"name"),
        pseudo(b"", b""),
        pseudo(b"transfer-encoding", b"chunked"),
        pseudo(b"content-length", b"99999999999999999999999"),
        with(&field(0, b":path", b"")),
        with(&field(0, b":path", b"no slash")),
        with(&field(0, b":path", &[0xff; 300])),
        with(&field(0, b":path", b"/id/\0\r\nX-Injected: 1\r\n")),
        one(&[0x86]),
        one(&[]),
        begun(&[headers(1, &[block(b"/id/status-in-a-request"), vec![0x88]].concat())]),
    ]
}

/// A great deal of what is allowed one by one.
fn floods() -> Vec<Vec<u8>> {
    let odd = |index: usize| 2 * index as u32 + 1;
    let many = |frame: Vec<u8>| begun(&[frame.repeat(FLOOD)]);
    let resets: Vec<_> = (0..FLOOD / 4)
        .map(|index| [get(odd(index), "/id/reset"), frame(kind::RST_STREAM, 0, odd(index), &[0, 0, 0, 8])].concat())
        .collect();
    let open: Vec<_> =
        (0..2000).map(|index| frame(kind::HEADERS, END_HEADERS, odd(index), &block(b"/id/open"))).collect();
    let piece = field(0, b"x-flood", &[b'f'; 16_000]);
    let continued = [
        vec![frame(kind::HEADERS, 0, 1, &block(b"/id/continued"))],
        vec![frame(kind::CONTINUATION, 0, 1, &piece); 300],
    ];
    let empty = [
        vec![frame(kind::HEADERS, 0, 1, &block(b"/id/empty"))],
        vec![frame(kind::CONTINUATION, 0, 1, &[]); FLOOD],
        vec![frame(kind::CONTINUATION, END_HEADERS, 1, &[])],
    ];
    let posted = frame(kind::HEADERS, END_HEADERS, 1, &block(b"/id/posted"));
    vec![
        many(settings(&[])),
        many(settings(&setting(1, 0))),
        many(frame(kind::PING, 0, 0, &[1; 8])),
        many(frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 9])),
        many(frame(0xee, 0xff, 1, b"unknown")),
        begun(&[posted.clone(), frame(kind::DATA, 0, 1, &[]).repeat(FLOOD)]),
        begun(&[posted, frame(kind::DATA, flags::PADDED, 1, &[3, 0, 0, 0]).repeat(FLOOD)]),
        begun(&resets),
        begun(&open),
        begun(&continued.concat()),
        begun(&empty.concat()),
        begun(&(0..500).map(|index| headers(odd(index), &block(&[b'u'; 16_000]))).collect::<Vec<_>>()),
    ]
}

/// Send these bytes, take whatever comes back until the server ends or has nothing more to say, and close.
fn throw(port: u16, bytes: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    // A server may refuse at any point.
    _ = stream.write_all(bytes);
    let (mut chunk, mut taken) = (vec![0; 1 << 16], 0);
    while let Ok(len @ 1..) = stream.read(&mut chunk) {
        taken += len;
        if taken > 64 << 20 {
            break;
        }
    }
}

/// Several at a time, each in one piece and then cut anew at odd places.
fn throw_all(port: u16, messages: &[Vec<u8>]) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| {
                while let Some(message) = messages.get(next.fetch_add(1, Ordering::Relaxed)) {
                    throw(port, message);
                }
            });
        }
    });
}

/// The calls of the well-behaved client are reported by both sides as they were made, the agent is well, and nobody but the
/// server decides what was a call.
fn hold_against_hostile(name: &str, kind: Kind) {
    let started = || {
        let certificates = Certificates::make()?;
        // One gets what is hostile, the other is elsewhere.
        let servers = [Server::start(kind, false, &certificates)?, Server::start(kind, false, &certificates)?];
        Ok::<_, String>((certificates, servers))
    };
    let (certificates, mut servers) = match started() {
        Ok(started) => started,
        Err(why) => return skip(name, &why),
    };
    let [port, elsewhere] = [servers[0].port(), servers[1].port()];
    // All floods at once fit, however rarely the agent gets its turn: what is lost where they do not is counted, but lost.
    let config = format!(
        "targets: [\"port:{port}\", \"port:{elsewhere}\"]\nexport:\n  responseHeaders: [x-id]\nmemoryLimit: 256MiB\n\
         capture:\n  ringBuffer: 64MiB\n"
    );
    let agent = Agent::start(&Options::config(&config));
    let load = |server| Load::start(Caller::Node, server, "sane", 5, &certificates);
    let loads = match servers.iter().map(load).collect::<Result<Vec<_>, _>>() {
        Ok(loads) => loads,
        Err(why) => return skip(name, &why),
    };
    for messages in [broken_frames(), broken_compression(), floods()] {
        throw_all(port, &messages);
        assert!(agent.rss_bytes() < MEMORY, "{} bytes resident", agent.rss_bytes());
    }
    servers[0].assert_lives();
    let answered: Vec<u64> = loads.into_iter().map(Load::stop).collect();
    for (server, answered) in servers.iter().zip(answered) {
        assert_sane(&agent, server, answered as usize);
    }
    assert_known(&agent.calls(), &servers[0]);
    assert!(agent.metric("weir_lost_total", &[("reason", "panic")]).abs() < f64::EPSILON, "{}", agent.losses());
    let stopped = agent.stop();
    assert!(!stopped.stderr.iter().any(|line| line.contains("panic")), "{:#?}", stopped.stderr);
}

/// Every one of so many calls of the well-behaved client is there, once for each side, right.
fn assert_sane(agent: &Agent, server: &Server, answered: usize) {
    assert!(answered > 100, "{answered} calls were made");
    let log = server.wait_log("/sane-", answered);
    let sane: HashMap<_, _> = log.iter().map(|served| (served.path.as_str(), served)).collect();
    assert_eq!(sane.len(), answered);
    let port = Some(u64::from(server.port()));
    for side in ["server", "client"] {
        let of_side = |calls: &[Value]| {
            let ours = calls.iter().filter(|call| call.text("span_kind") == side && call.number("server.port") == port);
            ours.filter(|call| sane.contains_key(call.path())).cloned().collect::<Vec<_>>()
        };
        wait_until(|| of_side(&agent.calls()).len() >= sane.len(), PATIENCE);
        let calls = of_side(&agent.calls());
        let paths: HashSet<_> = calls.iter().map(Value::path).collect();
        assert_eq!((calls.len(), paths.len()), (sane.len(), sane.len()), "{side}: {}", agent.losses());
        for call in &calls {
            let served = sane[call.path()];
            let facts = (call.text("http.request.method"), call.status(), call.id());
            let right = (served.method.as_str(), Some(served.status), Some(served.id.as_str()));
            assert_eq!(facts, right, "{call:#}\n{}", agent.losses());
            assert!(call.get("weir.incomplete").is_none(), "{}", brief(call));
        }
    }
}

/// What is reported as answered well, the server answered well.
fn assert_known(calls: &[Value], server: &Server) {
    let log = server.log();
    let known: HashSet<_> = log.iter().map(|served| (served.path.as_str(), served.status)).collect();
    let port = Some(u64::from(server.port()));
    let of_server = calls.iter().filter(|call| call.is_server() && call.number("server.port") == port);
    for call in of_server.filter(|call| call.status() == Some(200) && call.get("url.path").is_some()) {
        assert!(known.contains(&(call.path(), 200)), "the server knows nothing of {}", brief(call));
    }
}

#[test]
fn hostile_frames_to_nginx_disturb_no_other_connection() {
    hold_against_hostile("hostile_frames_to_nginx_disturb_no_other_connection", Kind::Nginx);
}

#[test]
fn hostile_frames_to_go_disturb_no_other_connection() {
    hold_against_hostile("hostile_frames_to_go_disturb_no_other_connection", Kind::Go);
}

/// What the messages are made of is what it says.
#[test]
fn frames_and_integers_are_made_as_the_standards_say() {
    let made = frame(kind::HEADERS, END_HEADERS, 3, &[0; 300]);
    let header = FrameHeader::parse(made[..FRAME_HEADER].try_into().unwrap());
    assert_eq!((header.len, header.kind, header.flags, header.stream), (300, kind::HEADERS, END_HEADERS, 3));
    // RFC 7541, appendix C.1.
    assert_eq!(integer(0, 5, 10), [0b01010]);
    assert_eq!(integer(0, 5, 1337), [0b11111, 0b1001_1010, 0b1010]);
    assert_eq!(integer(0, 8, 42), [42]);
}
