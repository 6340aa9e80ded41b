//! What the kernel programs copy of HTTP/2, frame by frame: header blocks whole wherever they come in an operation,
//! content in its first bytes, and frame boundaries found again. Exact patterns from a peer of our own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;

use agent::model::Direction;
use agent_common::event::protocol;
use agent_common::http2::{FRAME_HEADER, PREFACE, flags, kind};
use agent_common::limits::{CONTENT_GLANCE, CONTENT_RECORDS};
use weir_tests::harness::recording::{Moved, Opened, Recorded, Recorder};

/// Bytes of one direction, and where its frames are.
#[derive(Clone, Default)]
struct Wire {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    at: usize,
    kind: u8,
    flags: u8,
    len: usize,
}

impl Wire {
    /// A client's: preface and SETTINGS.
    fn client() -> Self {
        let mut wire = Self { bytes: PREFACE.to_vec(), frames: Vec::new() };
        wire.frame(kind::SETTINGS, 0, 0, 18);
        wire
    }

    /// A frame whose payload tells its place, so that no two are alike.
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, len: usize) -> &mut Self {
        let at = self.bytes.len();
        self.frames.push(Frame { at, kind, flags, len });
        self.bytes.extend(&(len as u32).to_be_bytes()[1..]);
        self.bytes.extend([kind, flags]);
        self.bytes.extend(stream.to_be_bytes());
        self.bytes.extend((0..len).map(|index| ((at + index).wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80));
        self
    }

    fn headers(&mut self, stream: u32) -> &mut Self {
        self.frame(kind::HEADERS, flags::END_HEADERS, stream, 40 + stream as usize % 50)
    }

    fn is_boundary(&self, at: usize) -> bool {
        at == 0 || self.frames.iter().any(|frame| frame.at == at)
    }
}

/// A connection of this process to itself.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(weir_tests::harness::PATIENCE)).unwrap();
        }
        Self { client, server }
    }

    /// Send `bytes` in operations of these lengths, over and over; the other end reads at most `reads` at a time.
    fn pass(&self, bytes: &[u8], writes: &[usize], reads: usize) {
        thread::scope(|scope| {
            let mut server = &self.server;
            scope.spawn(move || drain(&mut server, bytes.len(), reads));
            let (mut at, mut client) = (0, &self.client);
            for len in writes.iter().cycle() {
                if at == bytes.len() {
                    break;
                }
                let end = bytes.len().min(at + len);
                client.write_all(&bytes[at..end]).unwrap();
                at = end;
            }
        });
    }

    /// What was recorded of the sender and of the receiver.
    fn ends(&self, recorded: &Recorded) -> [(Opened, Direction); 2] {
        let (client, server) = (self.client.local_addr().unwrap().port(), self.server.local_addr().unwrap().port());
        let end = |local, remote| recorded.between(local, remote).unwrap_or_else(|| panic!("{local} to {remote}"));
        [(end(client, server), Direction::Send), (end(server, client), Direction::Receive)]
    }
}

fn drain(stream: &mut &TcpStream, total: usize, reads: usize) {
    let (mut buffer, mut got) = (vec![0; reads], 0);
    while got < total {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "closed after {got} of {total} bytes");
        got += read;
    }
}

/// Which bytes of `wire` the records hold; that they are the right ones, and that no flag claims a frame where none
/// begins. `before`: bytes of the direction that moved before the first record.
fn covered(wire: &Wire, records: &[&Moved], before: usize) -> Vec<bool> {
    let mut known = vec![false; wire.bytes.len()];
    let Some(first) = records.first() else { return known };
    let base = first.position - before as u64;
    let mut end = first.position;
    for record in records {
        let at = (record.position - base) as usize;
        assert!(record.position >= end, "records overlap at {at}");
        end = record.position + u64::from(record.len);
        assert!(record.head.len() <= record.len as usize);
        assert_eq!(record.head, &wire.bytes[at..at + record.head.len()], "bytes at {at}");
        assert!(!record.frame || wire.is_boundary(at), "no frame begins at {at}");
        known[at..at + record.head.len()].fill(true);
    }
    assert_eq!(end - base, wire.bytes.len() as u64, "the last record reaches the end");
    known
}

/// All that the agent needs of `wire` from its byte `from` on is there: blocks and the like whole, the rest in part.
fn assert_needed(wire: &Wire, known: &[bool], from: usize) {
    for frame in wire.frames.iter().filter(|frame| frame.at >= from) {
        let glance = if (1..=9).contains(&frame.kind) { frame.len } else { frame.len.min(CONTENT_GLANCE as usize) };
        let needed = &known[frame.at..frame.at + FRAME_HEADER + glance];
        assert!(needed.iter().all(|known| *known), "{frame:?} is not there");
    }
}

fn copied(records: &[&Moved]) -> usize {
    records.iter().map(|record| record.head.len()).sum()
}

/// Pass a wire through a new connection, and check what both ends' records hold of it.
fn check(name: &str, recorded: &Recorded, pair: &Pair, wire: &Wire) {
    for (open, direction) in pair.ends(recorded) {
        // The first bytes of a preface might be those of a POST.
        assert!(open.protocol == protocol::HTTP2 || name.starts_with("pieces"), "{name}");
        assert!(!open.joined, "{name}");
        let records = recorded.of(open.conn, direction);
        let known = covered(wire, &records, 0);
        assert_needed(wire, &known, 0);
    }
}

#[test]
fn blocks_are_copied_whole_wherever_an_operation_is_cut() {
    let mut wire = Wire::client();
    for stream in (1..60).step_by(2) {
        wire.headers(stream);
        match stream % 8 {
            1 => wire.frame(kind::DATA, 0, stream, 16_384).frame(kind::DATA, flags::END_STREAM, stream, 3000),
            3 => wire.frame(kind::WINDOW_UPDATE, 0, stream, 4).frame(kind::DATA, flags::END_STREAM, stream, 0),
            5 => wire.frame(0xbe, 0xff, 0, 700).frame(kind::DATA, 0, stream, 9000),
            _ => wire.frame(kind::CONTINUATION, flags::END_HEADERS, stream, 20_000).frame(kind::PING, 0, 0, 8),
        };
    }
    // Below nine bytes: headers come in pieces; primes: at every offset.
    let cuts: [(&[usize], usize); 8] = [
        (&[usize::MAX], 1 << 20),
        (&[100_000], 4096),
        (&[1021], 8192),
        (&[97, 3, 7001], 997),
        (&[16_393], 16_384),
        (&[24, 27, 9, 45], 64),
        (&[4, 5, 8192], 9),
        (&[30_000, 1, 2, 3, 4, 5, 6, 7, 8], 65_536),
    ];
    let recorder = Recorder::start();
    let pairs: Vec<Pair> = cuts.iter().map(|_| Pair::new()).collect();
    for (pair, (writes, reads)) in pairs.iter().zip(cuts) {
        pair.pass(&wire.bytes, writes, reads);
    }
    let recorded = recorder.stop();
    for (pair, cut) in pairs.iter().zip(cuts) {
        let name = if cut.0[0] < 8 || cut.1 < 8 { "pieces" } else { "whole" };
        check(&format!("{name} {cut:?}"), &recorded, pair, &wire);
    }
}

#[test]
fn a_block_behind_a_large_body_of_the_same_operation_is_there_and_the_body_costs_little() {
    const FRAMES: usize = 200;
    let mut wire = Wire::client();
    wire.headers(1);
    for _ in 0..FRAMES {
        wire.frame(kind::DATA, 0, 1, 16_384);
    }
    wire.headers(3).frame(kind::HEADERS, flags::END_HEADERS | flags::END_STREAM, 1, 60);
    let recorder = Recorder::start();
    let pair = Pair::new();
    pair.pass(&wire.bytes, &[usize::MAX], 1 << 20);
    let recorded = recorder.stop();
    check("large", &recorded, &pair, &wire);
    for (open, direction) in pair.ends(&recorded) {
        let records = recorded.of(open.conn, direction);
        assert!(copied(&records) < 4096 + FRAMES * 60, "{} of {} bytes copied", copied(&records), wire.bytes.len());
        assert!(records.len() < 2 * FRAMES, "{} records", records.len());
    }
}

#[test]
fn content_without_end_is_passed_over_and_the_message_still_ends() {
    let frames = 3 * CONTENT_RECORDS as usize;
    let mut wire = Wire::client();
    wire.headers(1);
    for _ in 0..frames {
        wire.frame(kind::DATA, 0, 1, 1000);
    }
    wire.frame(kind::DATA, flags::END_STREAM, 1, 1000).headers(3);
    let recorder = Recorder::start();
    let pair = Pair::new();
    pair.pass(&wire.bytes, &[usize::MAX], 1 << 20);
    let recorded = recorder.stop();
    let (open, direction) = pair.ends(&recorded)[0];
    let records = recorded.of(open.conn, direction);
    let known = covered(&wire, &records, 0);
    let first_passed = wire.frames.iter().position(|frame| !known[frame.at]).expect("some are passed over");
    assert!(first_passed >= CONTENT_RECORDS as usize, "{first_passed}");
    let there = |frame: &Frame| known[frame.at..frame.at + FRAME_HEADER].iter().all(|known| *known);
    for frame in wire.frames.iter().filter(|frame| frame.kind != kind::DATA || frame.flags == flags::END_STREAM) {
        assert!(there(frame), "{frame:?}");
    }
    let behind = records.iter().filter(|record| record.frame).count();
    assert!(behind > 2, "the agent is told where frames begin behind the gap");
}

#[test]
fn a_burst_of_small_blocks_is_copied_whole() {
    let mut wire = Wire::client();
    for stream in (1..3000).step_by(2) {
        wire.headers(stream).frame(kind::WINDOW_UPDATE, 0, stream, 4);
    }
    let recorder = Recorder::start();
    let pair = Pair::new();
    pair.pass(&wire.bytes, &[usize::MAX], 1 << 20);
    let recorded = recorder.stop();
    check("burst", &recorded, &pair, &wire);
    let (open, direction) = pair.ends(&recorded)[0];
    assert_eq!(copied(&recorded.of(open.conn, direction)), wire.bytes.len());
}

#[test]
fn vectors_are_walked_like_one_buffer() {
    let mut wire = Wire::client();
    wire.headers(1).frame(kind::DATA, 0, 1, 9000).headers(3).frame(kind::DATA, flags::END_STREAM, 3, 200).headers(5);
    let recorder = Recorder::start();
    let mut pairs = Vec::new();
    // Cuts between vectors: in headers, in payloads, at boundaries, empty ones.
    for cuts in [[24, 24, 33, 60], [9, 9, 28, 9100], [51, 60, 9200, 9204], [8, 30, 32, 34]] {
        let pair = Pair::new();
        let mut parts = Vec::new();
        let mut at = 0;
        for end in cuts.into_iter().chain([wire.bytes.len()]) {
            parts.push(std::io::IoSlice::new(&wire.bytes[at..end]));
            at = end;
        }
        assert_eq!((&pair.client).write_vectored(&parts).unwrap(), wire.bytes.len());
        let (mut first, mut second, mut third) = (vec![0; 30], vec![0; 9050], vec![0; 20_000]);
        let mut got = 0;
        while got < wire.bytes.len() {
            let mut parts = [&mut first, &mut second, &mut third].map(|part| std::io::IoSliceMut::new(part));
            got += (&pair.server).read_vectored(&mut parts).unwrap();
        }
        pairs.push((cuts, pair));
    }
    let recorded = recorder.stop();
    for (cuts, pair) in &pairs {
        check(&format!("{cuts:?}"), &recorded, pair, &wire);
    }
}

#[test]
fn a_body_sent_by_sendfile_leaves_the_frames_behind_it_in_step() {
    const SIZE: usize = 16_000;
    let mut wire = Wire::client();
    wire.headers(1).frame(kind::DATA, 0, 1, SIZE);
    let file_at = wire.bytes.len() - SIZE;
    wire.headers(3).frame(kind::DATA, 0, 3, 300).headers(5);
    let recorder = Recorder::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("body");
    std::fs::write(&path, &wire.bytes[file_at..file_at + SIZE]).unwrap();
    let pair = Pair::new();
    thread::scope(|scope| {
        let mut server = &pair.server;
        let total = wire.bytes.len();
        scope.spawn(move || drain(&mut server, total, 4096));
        let mut client = &pair.client;
        client.write_all(&wire.bytes[..file_at]).unwrap();
        let file = File::open(&path).unwrap();
        let mut sent = 0;
        while sent < SIZE {
            let left = SIZE - sent;
            // SAFETY: both descriptors are open.
            let moved = unsafe { libc::sendfile(client.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), left) };
            assert!(moved > 0, "sendfile: {}", std::io::Error::last_os_error());
            sent += moved as usize;
        }
        client.write_all(&wire.bytes[file_at + SIZE..]).unwrap();
    });
    let recorded = recorder.stop();
    let [(open, direction), receiver] = pair.ends(&recorded);
    let known = covered(&wire, &recorded.of(open.conn, direction), 0);
    assert_needed(&wire, &known, file_at + SIZE);
    let known = covered(&wire, &recorded.of(receiver.0.conn, receiver.1), 0);
    assert_needed(&wire, &known, 0);
}

#[test]
fn a_connection_older_than_the_recording_is_joined_at_an_operation_that_begins_with_frames() {
    let mut early = Wire::client();
    early.headers(1).frame(kind::DATA, flags::END_STREAM, 1, 30_000);
    let mut answer = Wire::default();
    answer.headers(1).frame(kind::DATA, flags::END_STREAM, 1, 10_000);
    let pairs: Vec<Pair> = (0..20).map(|_| Pair::new()).collect();
    for pair in &pairs {
        pair.pass(&early.bytes, &[usize::MAX], 65_536);
    }
    let recorder = Recorder::start();
    let mut late = Wire::default();
    late.headers(3).frame(kind::DATA, 0, 3, 20_000).frame(kind::HEADERS, 5, 3, 30).headers(5);
    for pair in &pairs {
        (&pair.server).write_all(&answer.bytes).unwrap();
        drain(&mut &pair.client, answer.bytes.len(), 65_536);
        pair.pass(&late.bytes, &[usize::MAX], 65_536);
    }
    let recorded = recorder.stop();
    for pair in &pairs {
        for (open, direction) in pair.ends(&recorded) {
            assert_eq!(open.protocol, protocol::HTTP2);
            assert!(open.joined);
            let records = recorded.of(open.conn, direction);
            assert!(records[0].frame, "the first record begins a frame");
            assert_needed(&late, &covered(&late, &records, 0), 0);
        }
    }
}

#[test]
fn frame_boundaries_are_found_again_after_bytes_that_no_frame_explains() {
    let mut wire = Wire::client();
    wire.headers(1);
    let garbage_at = wire.bytes.len();
    // A PING of the wrong length: nothing behind it can be trusted.
    wire.frame(kind::PING, 0, 0, 7).frame(kind::DATA, 0, 1, 6000);
    let again_at = wire.bytes.len();
    wire.headers(3).frame(kind::DATA, 0, 3, 20_000).headers(5);
    let recorder = Recorder::start();
    let pair = Pair::new();
    pair.pass(&wire.bytes[..again_at], &[again_at], 1 << 20);
    pair.pass(&wire.bytes[again_at..], &[usize::MAX], 1 << 20);
    let recorded = recorder.stop();
    for (open, direction) in pair.ends(&recorded) {
        let known = covered(&wire, &recorded.of(open.conn, direction), 0);
        assert!(known[..garbage_at + FRAME_HEADER].iter().all(|known| *known), "all up to what is wrong");
        assert_needed(&wire, &known, again_at);
    }
}

#[test]
fn a_connection_upgraded_from_http1_is_followed_frame_by_frame() {
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
        HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let mut wire = Wire { bytes: request.to_vec(), frames: Vec::new() };
    wire.bytes.extend(PREFACE);
    wire.frame(kind::SETTINGS, 0, 0, 18);
    let preface_end = wire.bytes.len();
    wire.frame(kind::SETTINGS, flags::ACK, 0, 0).headers(3).frame(kind::DATA, 0, 3, 60_000).headers(5);
    let recorder = Recorder::start();
    let pair = Pair::new();
    pair.pass(&wire.bytes[..request.len()], &[usize::MAX], 65_536);
    (&pair.server)
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        .unwrap();
    drain(&mut &pair.client, 71, 65_536);
    pair.pass(&wire.bytes[request.len()..preface_end], &[usize::MAX], 65_536);
    pair.pass(&wire.bytes[preface_end..], &[usize::MAX], 1 << 20);
    let recorded = recorder.stop();
    for (open, direction) in pair.ends(&recorded) {
        assert_eq!(open.protocol, protocol::HTTP1);
        let known = covered(&wire, &recorded.of(open.conn, direction), 0);
        assert!(known[..preface_end].iter().all(|known| *known), "the preface is told");
        assert_needed(&wire, &known, preface_end);
    }
}
