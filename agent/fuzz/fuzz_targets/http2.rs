//! Frames and any bytes, gaps, losses and ends in both directions: no panic, bounded memory, every request told of is
//! done once.
#![no_main]

use std::collections::HashSet;

use agent::model::{Direction, Timestamp};
use agent::protocol::http2::Connection;
use agent::protocol::{End, Event, Limits, Operation, Protocol, Segment};
use libfuzzer_sys::fuzz_target;

/// Room for what a connection holds under the limits below: both compression tables with what they reserve, and the
/// fields of a block.
const MEMORY: usize = 1024 * 1024;

// A step is one byte of kind and direction, one of length, and for segments and frames that many bytes.
fuzz_target!(|input: &[u8]| {
    let [joined, rest @ ..] = input else { return };
    let limits = Limits { head_bytes: 512, headers: 16, streams: 8, body_prefix: 32, ..Limits::default() };
    let mut connection = if joined & 1 == 0 { Connection::new(limits) } else { Connection::joined(limits) };
    let mut events = Vec::new();
    let mut positions = [0_u64; 2];
    let mut now = 0;
    let mut rest = rest;
    while let [kind, len, after @ ..] = rest {
        rest = after;
        let direction = if kind & 1 == 0 { Direction::Receive } else { Direction::Send };
        now += u64::from(kind & 2) * 500_000;
        let time = Timestamp(now);
        let operation = Operation { time, pid: 1, tid: 1 };
        let position = &mut positions[usize::from(kind & 1)];
        let mut frame;
        let segment = match kind >> 2 {
            60 => {
                connection.on_loss(time, &mut events);
                continue;
            }
            61 => {
                now += u64::from(*len) * 2_000_000_000;
                connection.on_tick(Timestamp(now), &mut events);
                continue;
            }
            62 => {
                let end = match len % 8 {
                    0 => End::Closed,
                    1 => End::Reset,
                    _ => End::Direction(direction),
                };
                connection.on_end(end, time, &mut events);
                continue;
            }
            63 => {
                connection.on_boundary(direction);
                continue;
            }
            50..=59 => Segment::Gap(u64::from(*len) << ((kind >> 2) - 50)),
            // A whole frame, of a known or unknown type and a low stream.
            0..=39 => {
                let (bytes, after) = rest.split_at(usize::from(*len).min(rest.len()));
                rest = after;
                let (flags, payload) = bytes.split_first().unwrap_or((&5, &[]));
                let stream = if matches!((kind >> 2) % 11, 4 | 6 | 7) { 0 } else { kind >> 5 | 1 };
                frame = vec![0, 0, payload.len() as u8, (kind >> 2) % 11, *flags, 0, 0, 0, stream];
                frame.extend_from_slice(payload);
                Segment::Bytes(&frame)
            }
            _ => {
                let (bytes, after) = rest.split_at(usize::from(*len).min(rest.len()));
                rest = after;
                Segment::Bytes(bytes)
            }
        };
        connection.on_segment(direction, *position, segment, operation, &mut events);
        *position += match segment {
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::Gap(len) => len,
        };
        assert!(connection.memory() < MEMORY);
    }
    connection.on_end(End::Closed, Timestamp(now), &mut events);
    let mut open = HashSet::new();
    let mut done = HashSet::new();
    for event in &events {
        match event {
            Event::RequestHead(head) => assert!(open.insert(head.exchange)),
            Event::Progress(exchange) => assert!(!done.contains(&exchange.exchange)),
            Event::Done(exchange) => assert!(done.insert(exchange.exchange)),
        }
    }
    assert!(open.is_subset(&done));
});
