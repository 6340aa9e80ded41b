//! Exchanges that go on: Server-Sent Events, WebSockets, and what is told of them before their end. Tests only.

use super::*;
use crate::model::{MessageKind, Messages};

const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n";

/// `hi`, masked by zero, and `hi` from a server; a close frame with 1000 from either.
const HI_MASKED: &[u8] = b"\x81\x82\0\0\0\0hi";
const HI: &[u8] = b"\x81\x02hi";
const CLOSE_MASKED: &[u8] = b"\x88\x82\0\0\0\0\x03\xe8";
const CLOSE: &[u8] = b"\x88\x02\x03\xe8";

fn messages(feed: &Feed) -> (Option<Messages>, Option<Messages>) {
    let done: Vec<_> = feed.done().collect();
    assert_eq!(done.len(), 1);
    let request = done[0].request.as_ref().and_then(|request| request.body.messages);
    (request, done[0].response.as_ref().and_then(|response| response.body.messages))
}

fn progress(feed: &Feed) -> Vec<(u64, Outcome, Option<u64>)> {
    let told = feed.events.iter().filter_map(|event| match event {
        Event::Progress(done) => Some(done),
        _ => None,
    });
    told.map(|done| {
        let messages = done.response.as_ref().and_then(|response| response.body.messages);
        (done.timing.end.0 / 1_000_000_000, done.outcome, messages.map(|messages| messages.count))
    })
    .collect()
}

#[test]
fn a_stream_of_events_is_one_exchange_that_ends_with_it_and_is_told_of_before() {
    let feed = whole(&[
        bytes(R, GET_A),
        bytes(S, EVENTS),
        bytes(S, "9\r\ndata: a\n\n\r\n"),
        Step::Tick(3),
        bytes(S, "6\r\ndata: \r\n"),
        Step::Tick(4),
        bytes(S, "3\r\nb\n\n\r\n"),
        Step::Tick(1000),
        bytes(S, "0\r\n\r\n"),
        bytes(R, GET_A),
    ]);
    assert_eq!(feed.lines(), ["GET /a 0 > 200 18"]);
    assert_eq!(
        messages(&feed),
        (None, Some(Messages { kind: MessageKind::EventStream, count: 2, exact: true, close_code: None }))
    );
    let told = progress(&feed);
    assert_eq!(
        told,
        [(3, Outcome::Complete, Some(1)), (7, Outcome::Complete, Some(1)), (1007, Outcome::Complete, Some(2))]
    );
    assert_eq!(feed.done().next().unwrap().timing.end.0 / 1_000_000_000, 1007);
}

#[test]
fn events_are_counted_however_a_stream_is_cut() {
    let events = format!("{EVENTS}9\r\ndata: a\n\n\r\n6\r\ndata: \r\n3\r\nb\n\n\r\n0\r\n\r\n");
    for cut in 0..events.len() {
        let (before, after) = events.split_at(cut);
        let feed = whole(&[bytes(R, GET_A), bytes(S, before), bytes(S, after)]);
        let (_, events) = messages(&feed);
        assert_eq!(events.map(|events| (events.count, events.exact)), Some((2, true)), "{cut}");
    }
}

#[test]
fn lost_chunk_framing_never_counts_too_many_events() {
    let stream = b"8\r\ndata: a\n\r\n8\r\ndata: b\n\r\n1\r\n\n\r\n0\r\n\r\n";
    for start in 0..stream.len() {
        for end in start + 1..=stream.len() {
            let mut feed = whole(&[bytes(R, GET_A), bytes(S, EVENTS), Step::Bytes(S, &stream[..start])]);
            feed.step(Step::Gap(S, (end - start) as u64));
            feed.step(Step::Bytes(S, &stream[end..]));
            feed.step(Step::End(End::Closed));
            let events = messages(&feed).1.unwrap();
            assert!(events.count <= 1 && (!events.exact || events.count == 1), "{start}..{end}: {events:?}");
        }
    }
}

#[test]
fn a_websocket_goes_on_until_both_sides_have_closed_it() {
    for with_head in [false, true] {
        let mut switched = SWITCHED.as_bytes().to_vec();
        let mut steps = vec![bytes(R, UPGRADE)];
        if with_head {
            switched.extend_from_slice(HI);
        }
        steps.push(Step::Bytes(S, &switched));
        if !with_head {
            steps.push(Step::Bytes(S, HI));
        }
        for step in [HI_MASKED, HI_MASKED] {
            steps.push(Step::Bytes(R, step));
        }
        steps.extend([Step::Tick(5), Step::Bytes(R, CLOSE_MASKED), Step::Bytes(S, CLOSE), Step::End(End::Closed)]);
        let feed = whole(&steps);
        assert_eq!(feed.lines(), ["GET /chat 0 > 101 0 Upgraded"]);
        let of = |count| Messages { kind: MessageKind::WebSocket, count, exact: true, close_code: Some(1000) };
        assert_eq!(messages(&feed), (Some(of(2)), Some(of(1))));
        assert_eq!(progress(&feed).len(), 2, "at the upgrade, and after a while");
        assert_eq!(feed.done().next().unwrap().timing.end.0 / 1_000_000_000, 5);
        assert!(feed.connection.is_idle());
    }
}

#[test]
fn a_websocket_ends_with_its_connection() {
    for (end, closed, outcome, code) in [
        (Step::End(End::Closed), false, Outcome::Upgraded, None),
        (Step::End(End::Reset), false, Outcome::ConnectionReset, None),
        (Step::End(End::Reset), true, Outcome::Upgraded, Some(1000)),
    ] {
        let mut feed = whole(&[bytes(R, UPGRADE), bytes(S, SWITCHED), Step::Bytes(R, HI_MASKED)]);
        if closed {
            feed.step(Step::Bytes(R, CLOSE_MASKED));
        }
        assert!(!feed.connection.is_idle() && feed.done().next().is_none());
        feed.step(Step::End(end_of(end)));
        assert_eq!(feed.done().next().unwrap().outcome, outcome);
        let client = messages(&feed).0.unwrap();
        assert_eq!((client.count, client.exact, client.close_code), (1, true, code));
    }
}

fn end_of(step: Step<'_>) -> End {
    match step {
        Step::End(end) => end,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_lost_of_a_websocket_makes_counts_lower_bounds() {
    for step in [Step::Loss, Step::Gap(R, 3)] {
        let mut feed = whole(&[bytes(R, UPGRADE), bytes(S, SWITCHED), Step::Bytes(R, HI_MASKED), Step::Bytes(S, HI)]);
        feed.step(step);
        feed.step(Step::Bytes(R, HI_MASKED));
        feed.step(Step::End(End::Closed));
        let client = messages(&feed).0.unwrap();
        assert_eq!((client.count, client.exact), (1, false));
    }
}

#[test]
fn other_upgrades_end_with_the_head_as_ever() {
    let feed = whole(&[
        bytes(R, "GET /a HTTP/1.1\r\nHost: h\r\nUpgrade: foo\r\n\r\n"),
        bytes(S, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\n\r\nGET /b HTTP/1.1\r\n\r\n"),
        Step::Tick(9),
    ]);
    assert_eq!(feed.lines(), ["GET /a 0 > 101 0 Upgraded"]);
    assert!(progress(&feed).is_empty());
}

#[test]
fn a_request_that_waits_for_long_is_told_of_too() {
    let feed = whole(&[bytes(R, GET_A), Step::Tick(2), Step::Tick(1), bytes(S, OK_5)]);
    assert_eq!(progress(&feed), [(2, Outcome::Complete, None)]);
    assert_eq!(feed.lines(), ["GET /a 0 > 200 5"]);
}
