//! Packets of real services (tests/fixtures/pcap/README.md), most of them captured in the middle of a connection.

use std::fs;

use super::line;
use crate::model::{Direction, Incomplete, Timestamp};
use crate::protocol::{Done, End, Event, Limits, Operation, Segment, Wire, start};

const CAPTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/pcap");

/// The TCP payloads in order, and whether the first one's sender sent them: Ethernet, IPv4, no options that matter.
fn payloads(name: &str) -> Vec<(bool, Vec<u8>)> {
    let file = fs::read(format!("{CAPTURES}/{name}.pcap")).expect("the fixtures are there");
    let mut rest = &file[24..];
    let mut first = None;
    let mut payloads = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let ip = &rest[16 + 14..16 + len];
        rest = &rest[16 + len..];
        let total = usize::from(u16::from_be_bytes(ip[2..4].try_into().unwrap()));
        let tcp = &ip[usize::from(ip[0] & 15) * 4..total];
        let port = u16::from_be_bytes(tcp[..2].try_into().unwrap());
        let data = &tcp[usize::from(tcp[12] >> 4) * 4..];
        payloads.push((port == *first.get_or_insert(port), data.to_vec()));
    }
    payloads
}

/// What comes of a capture; `name` also says the path of what it holds.
fn exchanges(name: &str, wire: Wire, joined: bool) -> Vec<Done> {
    let mut connection = start(wire, joined, Limits::default());
    let mut events = Vec::new();
    let mut positions = [0_u64; 2];
    for (number, (is_client, bytes)) in payloads(name).into_iter().enumerate() {
        let direction = if is_client { Direction::Receive } else { Direction::Send };
        let operation = Operation { time: Timestamp(number as u64), pid: 1, tid: 1 };
        connection.on_boundary(direction);
        let position = &mut positions[usize::from(is_client)];
        connection.on_segment(direction, *position, Segment::Bytes(&bytes), operation, &mut events);
        *position += bytes.len() as u64;
    }
    connection.on_end(End::Closed, Timestamp(99), &mut events);
    events
        .into_iter()
        .filter_map(|event| match event {
            Event::Done(done) => Some(*done),
            Event::RequestHead(_) | Event::Progress(_) => None,
        })
        .collect()
}

#[test]
fn captures_of_others_say_what_they_say_of_them() {
    for (name, wire, joined, want) in [
        (
            "grpc-unary",
            Wire::Http2,
            true,
            &[("POST /agent.Synchronizer/Sync 200 ?", Some("10.1.23.21:30035"), None)][..],
        ),
        (
            "h2c_ascii",
            Wire::Http2,
            true,
            &[("POST /hipstershop.CartService/GetCart 200 21", Some("cartservice:7070"), None)],
        ),
        // Its paths are in entries of the table from before: nobody who joined here can know them.
        (
            "http2-multi",
            Wire::Http2,
            true,
            &[
                ("POST  200 150", None, Some(Incomplete::HeaderTableUnknown)),
                ("POST  200 148", None, Some(Incomplete::HeaderTableUnknown)),
            ],
        ),
        ("httpv1", Wire::Http1, false, &[("POST /query?1590632942 200 54", Some("rq.cct.cloud.duba.net"), None)]),
    ] {
        let done = exchanges(name, wire, joined);
        let found: Vec<_> = done
            .iter()
            .map(|done| {
                let host = done.request.as_ref().unwrap().headers.get("host");
                (line(done), host.map(|host| String::from_utf8_lossy(host).into_owned()), done.incomplete)
            })
            .collect();
        let want: Vec<_> =
            want.iter().map(|(line, host, reason)| ((*line).to_owned(), host.map(str::to_owned), *reason)).collect();
        assert_eq!(found, want, "{name}");
    }
}
