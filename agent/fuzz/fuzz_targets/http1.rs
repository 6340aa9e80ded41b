//! Any bytes, gaps, losses and ends in both directions: no panic, bounded memory, every request told of is done once.
#![no_main]

use std::collections::HashSet;

use agent::model::{Direction, Timestamp};
use agent::protocol::http1::Connection;
use agent::protocol::{End, Event, Limits, Operation, Protocol, Segment};
use libfuzzer_sys::fuzz_target;

/// Room for what a connection holds under the limits below.
const MEMORY: usize = 64 * 1024;

// A step is one byte of kind and direction, one of length, and for segments that many bytes.
fuzz_target!(|input: &[u8]| {
    let limits = Limits { head_bytes: 512, headers: 16, pipeline: 8, body_prefix: 32, ..Limits::default() };
    let mut connection = Connection::new(limits);
    let mut events = Vec::new();
    let mut positions = [0_u64; 2];
    let mut now = 0;
    let mut rest = input;
    let mut ended = false;
    while let [kind, len, after @ ..] = rest {
        rest = after;
        let direction = if kind & 1 == 0 { Direction::Receive } else { Direction::Send };
        // Some segments share their operation with the one before.
        now += u64::from(kind & 2) * 500_000;
        let time = Timestamp(now);
        let operation = Operation { time, pid: 1, tid: 1 };
        let position = &mut positions[usize::from(kind & 1)];
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
                ended |= !matches!(end, End::Direction(_));
                connection.on_end(end, time, &mut events);
                continue;
            }
            50..=59 => Segment::Gap(u64::from(*len) << ((kind >> 2) - 50)),
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
    assert!(connection.is_idle());
    // Keys begin anew with the connection.
    if !ended {
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
    }
});
