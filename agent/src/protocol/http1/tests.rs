//! Tables, cuts, gaps and arbitrary input for HTTP/1. Tests only.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

mod streams;

const GET_A: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const OK_5: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

use Direction::{Receive as R, Send as S};

/// One step of a conversation.
#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Bytes(Direction, &'a [u8]),
    Gap(Direction, u64),
    End(End),
    Loss,
    /// Seconds pass.
    Tick(u64),
}

fn bytes(direction: Direction, text: &str) -> Step<'_> {
    Step::Bytes(direction, text.as_bytes())
}

/// Feeds steps; the n-th operation happens at n milliseconds.
struct Feed {
    connection: Connection,
    events: Vec<Event>,
    positions: [u64; 2],
    time: u64,
}

impl Feed {
    fn new(limits: Limits) -> Self {
        Self { connection: Connection::new(limits), events: Vec::new(), positions: [0; 2], time: 0 }
    }

    fn operation(&mut self) -> Operation {
        self.time += 1_000_000;
        Operation { time: Timestamp(self.time), pid: 7, tid: 8 }
    }

    fn segment(&mut self, direction: Direction, segment: Segment<'_>, operation: Operation) {
        let position = &mut self.positions[usize::from(direction == S)];
        let at = *position;
        *position += match segment {
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::Gap(len) => len,
        };
        self.connection.on_segment(direction, at, segment, operation, &mut self.events);
    }

    fn step(&mut self, step: Step<'_>) {
        match step {
            Step::Bytes(direction, bytes) => {
                let operation = self.operation();
                self.segment(direction, Segment::Bytes(bytes), operation);
            }
            Step::Gap(direction, len) => {
                let operation = self.operation();
                self.segment(direction, Segment::Gap(len), operation);
            }
            Step::End(end) => {
                let time = self.operation().time;
                self.connection.on_end(end, time, &mut self.events);
            }
            Step::Loss => {
                let time = self.operation().time;
                self.connection.on_loss(time, &mut self.events);
            }
            Step::Tick(seconds) => {
                self.time += seconds * 1_000_000_000;
                self.connection.on_tick(Timestamp(self.time), &mut self.events);
            }
        }
    }

    fn done(&self) -> impl Iterator<Item = &Done> {
        self.events.iter().filter_map(|event| match event {
            Event::Done(done) => Some(&**done),
            Event::RequestHead(_) | Event::Progress(_) => None,
        })
    }

    fn lines(&self) -> Vec<String> {
        self.done().map(line).collect()
    }
}

/// `GET /a 0 > 200 5`, then what is not as usual.
fn line(done: &Done) -> String {
    let mut line = String::new();
    let size = |body: &Body| body.size.map_or_else(|| format!("?{}", body.seen), |size| size.to_string());
    match &done.request {
        Some(request) => {
            let method = String::from_utf8_lossy(&request.method);
            let target = String::from_utf8_lossy(&request.target);
            write!(line, "{method} {target} {}", size(&request.body)).unwrap();
        }
        None => line.push('-'),
    }
    match &done.response {
        Some(response) => write!(line, " > {} {}", response.status, size(&response.body)).unwrap(),
        None => line.push_str(" > -"),
    }
    if done.outcome != Outcome::Complete {
        write!(line, " {:?}", done.outcome).unwrap();
    }
    if let Some(incomplete) = done.incomplete {
        write!(line, " {}", incomplete.name()).unwrap();
    }
    line
}

fn whole(steps: &[Step<'_>]) -> Feed {
    let mut feed = Feed::new(Limits::default());
    for &step in steps {
        feed.step(step);
    }
    feed
}

/// The conversation gives `expected` when fed whole, with each operation cut at every byte, and byte by byte.
#[track_caller]
fn check(steps: &[Step<'_>], expected: &[&str]) {
    assert_eq!(whole(steps).lines(), expected, "whole");
    for (cut_step, step) in steps.iter().enumerate() {
        let Step::Bytes(direction, cut_bytes) = *step else { continue };
        for cut in 1..cut_bytes.len() {
            let mut feed = Feed::new(Limits::default());
            for (index, &step) in steps.iter().enumerate() {
                if index == cut_step {
                    let (left, right) = cut_bytes.split_at(cut);
                    feed.step(Step::Bytes(direction, left));
                    feed.step(Step::Bytes(direction, right));
                } else {
                    feed.step(step);
                }
            }
            assert_eq!(feed.lines(), expected, "step {cut_step} cut at byte {cut}");
        }
    }
    let mut feed = Feed::new(Limits::default());
    for &step in steps {
        match step {
            Step::Bytes(direction, bytes) => bytes.chunks(1).for_each(|byte| feed.step(Step::Bytes(direction, byte))),
            other => feed.step(other),
        }
    }
    assert_eq!(feed.lines(), expected, "byte by byte");
}

/// The conversation gives `expected`; where operations begin matters.
#[track_caller]
fn check_whole(steps: &[Step<'_>], expected: &[&str]) {
    assert_eq!(whole(steps).lines(), expected);
}

#[test]
fn a_request_and_its_response_are_one_exchange_in_either_role() {
    for (request, response) in [(R, S), (S, R)] {
        check(&[bytes(request, GET_A), bytes(response, OK_5)], &["GET /a 0 > 200 5"]);
    }
}

#[test]
fn messages_that_servers_accept_are_read_as_they_read_them() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for (request, expected) in [
        ("POST /p HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "POST /p 3 > 200 0"),
        ("POST /p HTTP/1.1\r\nContent-Length: 3, 3\r\nContent-Length: 3\r\n\r\nabc", "POST /p 3 > 200 0"),
        ("POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "POST /p 3 > 200 0"),
        (
            "POST /p HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n1;x=\"y\"\r\na\r\n0A \r\n0123456789\r\n000;z\r\nT: 1\r\nU: 2\r\n\r\n",
            "POST /p 11 > 200 0",
        ),
        ("POST /p HTTP/1.1\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n", "POST /p 3 > 200 0"),
        (
            "POST /p HTTP/1.1\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            "POST /p 2 > 200 0 malformed",
        ),
        ("\r\n\n\r\nGET /a HTTP/1.0\r\n\r\n", "GET /a 0 > 200 0"),
        ("GET   /a   HTTP/1.1\r\n\r\n", "GET /a 0 > 200 0"),
        ("brew-TEA coffee://pot?x=1#f HTTP/1.1\r\n\r\n", "brew-TEA coffee://pot?x=1#f 0 > 200 0"),
        ("OPTIONS * HTTP/1.1\r\nX: a\r\n\tb\r\n c\r\nEmpty:\r\n\r\n", "OPTIONS * 0 > 200 0"),
        ("POST /p HTTP/1.1\r\nContent-Length:\r\n 3\r\n\r\nabc", "POST /p 3 > 200 0"),
        ("GET /\u{e4} HTTP/1.1\r\n\r\n", "GET /\u{e4} 0 > 200 0"),
    ] {
        check(&[bytes(R, request), bytes(S, ok)], &[expected]);
    }
    // Not UTF-8, which httparse would refuse.
    check(
        &[Step::Bytes(R, b"POST /\xe4\xff HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"), bytes(S, ok)],
        &["POST /\u{fffd}\u{fffd} 1 > 200 0"],
    );
}

#[test]
fn responses_end_as_their_framing_says() {
    for (request, response, expected) in [
        ("GET /a", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "GET /a 0 > 200 2"),
        ("HEAD /a", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "HEAD /a 0 > 200 0"),
        ("HEAD /a", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD /a 0 > 200 0"),
        ("GET /a", "HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n", "GET /a 0 > 204 0"),
        ("GET /a", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "GET /a 0 > 304 0"),
        ("GET /a", "HTTP/1.0 200\r\nContent-Length : 1\r\n\r\nx", "GET /a 0 > 200 1"),
        ("GET /a", "HTTP/1.1  200  OK\r\nContent-Length: 1\r\nX: a\r\n b\r\n\r\nx", "GET /a 0 > 200 1"),
        (
            "GET /a",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
            "GET /a 0 > 200 5",
        ),
        (
            "GET /a",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "GET /a 0 > 200 0",
        ),
        ("GET /a", "HTTP/1.1 101 Switching\r\nUpgrade: w\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "GET /a 0 > 101 0 Upgraded"),
        (
            "CONNECT a:1",
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "CONNECT a:1 0 > 200 0 Upgraded",
        ),
        ("CONNECT a:1", "HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno", "CONNECT a:1 0 > 407 2"),
    ] {
        let request = format!("{request} HTTP/1.1\r\n\r\n");
        check(&[bytes(R, &request), bytes(S, response)], &[expected]);
    }
}

#[test]
fn a_response_without_length_ends_with_the_connection() {
    for head in ["", "Transfer-Encoding: gzip\r\n", "Transfer-Encoding: chunked, gzip\r\n"] {
        let response = format!("HTTP/1.1 200 OK\r\n{head}\r\nhello");
        let steps = [bytes(R, GET_A), bytes(S, &response)];
        check(&steps, &[]);
        for (end, expected) in [
            (End::Direction(S), "GET /a 0 > 200 5"),
            (End::Closed, "GET /a 0 > 200 5"),
            (End::Reset, "GET /a 0 > 200 ?5 ConnectionReset"),
        ] {
            check(&[steps[0], steps[1], Step::End(end)], &[expected]);
        }
    }
}

#[test]
fn what_is_open_when_the_connection_goes_is_told_as_far_as_it_came() {
    for (steps, expected) in [
        (vec![bytes(R, GET_A)], "GET /a 0 > - ConnectionClosed"),
        (vec![bytes(R, GET_A), Step::Bytes(S, &OK_5.as_bytes()[..40])], "GET /a 0 > 200 ?2 ConnectionClosed"),
        (vec![bytes(R, "POST /p HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")], "POST /p ?3 > - ConnectionClosed"),
        (vec![bytes(R, "POST /p HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"), bytes(S, OK_5)], "POST /p ?3 > 200 5"),
    ] {
        let steps: Vec<_> = steps.into_iter().chain([Step::End(End::Closed)]).collect();
        check(&steps, &[expected]);
    }
}

#[test]
fn a_half_closed_request_side_still_gets_its_response() {
    check(&[bytes(R, GET_A), Step::End(End::Direction(R)), bytes(S, OK_5)], &["GET /a 0 > 200 5"]);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let requests = "GET /1 HTTP/1.1\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 2\r\n\r\nxyHEAD /3 HTTP/1.1\r\n\r\n";
    let responses = "HTTP/1.1 201 A\r\nContent-Length: 1\r\n\r\naHTTP/1.1 100 C\r\n\r\nHTTP/1.1 202 B\r\n\
        Transfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n\r\nHTTP/1.1 203 C\r\nContent-Length: 8\r\n\r\n";
    check(&[bytes(R, requests), bytes(S, responses)], &["GET /1 0 > 201 1", "POST /2 2 > 202 1", "HEAD /3 0 > 203 0"]);
}

#[test]
fn more_pipelined_requests_than_the_limit_are_given_up_not_mixed_up() {
    let mut feed = Feed::new(Limits { pipeline: 4, ..Limits::default() });
    for _ in 0..9 {
        feed.step(bytes(R, GET_A));
    }
    assert_eq!(feed.lines().len(), 9);
    feed.step(bytes(S, OK_5));
    for line in feed.lines() {
        assert!(line == "GET /a 0 > - abandoned" || line == "- > 200 5 abandoned", "{line}");
    }
}

#[test]
fn a_response_before_the_request_ends_waits_for_it() {
    let head = "POST /p HTTP/1.1\r\nContent-Length: 4\r\n\r\nab";
    check(&[bytes(R, head), bytes(S, OK_5)], &[]);
    check(
        &[bytes(R, head), bytes(S, OK_5), bytes(R, "cd"), bytes(R, GET_A), bytes(S, OK_5)],
        &["POST /p 4 > 200 5", "GET /a 0 > 200 5"],
    );
}

#[test]
fn content_announced_with_expect_may_never_come() {
    let head = "POST /p HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 400\r\n\r\n";
    check_whole(
        &[bytes(R, head), bytes(S, "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"), bytes(R, GET_A), bytes(S, OK_5)],
        &["POST /p ?0 > 401 0", "GET /a 0 > 200 5"],
    );
    check(
        &[
            bytes(R, "POST /p HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"),
            bytes(S, "HTTP/1.1 100 Continue\r\n\r\n"),
            bytes(R, "body"),
            bytes(S, OK_5),
        ],
        &["POST /p 4 > 200 5"],
    );
}

#[test]
fn heads_that_peers_read_differently_are_marked_and_end_the_step() {
    let bad = "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n";
    for (request, expected) in [
        (
            "POST /p HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
            "POST /p ?0 > 400 0 malformed",
        ),
        ("POST /p HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "POST /p ?0 > 400 0 malformed"),
        ("POST /p HTTP/1.1\r\nContent-Length : 3\r\n\r\nabc", "POST /p ?0 > 400 0 malformed"),
        ("POST /p HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", "POST /p ?0 > 400 0 malformed"),
        ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", "GET /a b ?0 > 400 0 malformed"),
        ("GET /a HTTP/1.1\r\n\u{1}bad\r\n\r\n", "GET /a ?0 > 400 0 malformed"),
    ] {
        check_whole(
            &[bytes(R, request), bytes(S, bad), bytes(R, GET_A), bytes(S, OK_5)],
            &[expected, "GET /a 0 > 200 5"],
        );
    }
}

#[test]
fn conflicting_lengths_of_a_response_leave_its_end_to_the_connection() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab";
    check(&[bytes(R, GET_A), bytes(S, response), Step::End(End::Closed)], &["GET /a 0 > 200 2 malformed"]);
}

#[test]
fn an_answer_to_bytes_that_are_no_request_is_told_alone() {
    let bad = "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n";
    check(
        &[bytes(R, GET_A), bytes(S, OK_5), bytes(R, "\u{16}\u{3}garbage\r\n\r\n"), bytes(S, bad)],
        &["GET /a 0 > 200 5", "- > 400 0 malformed"],
    );
    let late = "HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n";
    check(
        &[bytes(R, GET_A), bytes(S, OK_5), bytes(R, "GET /slow HTTP/1.1\r\nHo"), bytes(S, late)],
        &["GET /a 0 > 200 5", "- > 408 0 malformed"],
    );
}

#[test]
fn a_connection_met_in_the_middle_is_in_step_at_the_next_start_line() {
    check_whole(
        &[bytes(R, "tail of a body"), bytes(S, "more"), bytes(S, OK_5), bytes(R, GET_A), bytes(S, OK_5)],
        &["- > 200 5 joined_mid_exchange", "GET /a 0 > 200 5"],
    );
    check_whole(
        &[bytes(S, "content\r\nHTTP/1.1 200 OK\r\n\r\n"), bytes(R, GET_A), bytes(S, OK_5)],
        &["GET /a 0 > 200 5"],
    );
}

#[test]
fn a_pipelining_client_met_in_the_middle_is_not_guessed_at() {
    let mut feed = Feed::new(Limits::default());
    feed.connection = Connection::joined(Limits::default());
    // The response to a request nobody saw comes first.
    for step in [bytes(R, GET_A), bytes(R, GET_A), bytes(S, OK_5), bytes(S, OK_5), bytes(S, OK_5)] {
        feed.step(step);
    }
    assert!(feed.done().all(|done| done.request.is_none() || done.response.is_none()), "{:?}", feed.lines());
    let mut feed = Feed::new(Limits::default());
    feed.connection = Connection::joined(Limits::default());
    for step in [bytes(R, GET_A), bytes(S, OK_5)] {
        feed.step(step);
    }
    assert_eq!(feed.lines(), ["GET /a 0 > 200 5"]);
}

#[test]
fn a_direction_learned_from_content_is_corrected() {
    check_whole(
        &[bytes(S, GET_A), bytes(R, GET_A), bytes(S, OK_5)],
        &["GET /a 0 > - joined_mid_exchange", "GET /a 0 > 200 5"],
    );
}

#[test]
fn loss_gives_up_what_is_in_flight_and_pairs_what_comes_after() {
    check(
        &[bytes(R, GET_A), Step::Loss, bytes(R, "POST /b HTTP/1.1\r\n\r\n"), bytes(S, OK_5)],
        &["GET /a 0 > - records_lost", "POST /b 0 > 200 5"],
    );
    check_whole(
        &[
            bytes(R, GET_A),
            Step::Bytes(S, &OK_5.as_bytes()[..40]),
            Step::Loss,
            bytes(S, OK_5),
            bytes(R, GET_A),
            bytes(S, OK_5),
        ],
        &["GET /a 0 > 200 ?2 records_lost", "- > 200 5 records_lost", "GET /a 0 > 200 5"],
    );
}

#[test]
fn content_that_was_not_copied_costs_nothing() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nfirst";
    check(&[bytes(R, GET_A), bytes(S, head), Step::Gap(S, 999_995)], &["GET /a 0 > 200 1000000"]);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nfirst";
    check(
        &[bytes(R, GET_A), bytes(S, chunked), Step::Gap(S, 0xffff - 5), bytes(S, "\r\n0\r\n\r\n")],
        &["GET /a 0 > 200 65535"],
    );
    let close = "HTTP/1.1 200 OK\r\n\r\n";
    check(&[bytes(R, GET_A), bytes(S, close), Step::Gap(S, 77), Step::End(End::Closed)], &["GET /a 0 > 200 77"]);
}

#[test]
fn chunks_whose_framing_was_not_copied_end_by_inference() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel";
    let expected = "GET /a 0 > 200 ?3 chunked_beyond_budget";
    // The end of the operation.
    let mut feed = Feed::new(Limits::default());
    feed.step(bytes(R, GET_A));
    let operation = feed.operation();
    for segment in [Segment::Bytes(head.as_bytes()), Segment::Gap(500), Segment::Bytes(b"x\r\n0\r\n\r\n")] {
        feed.segment(S, segment, operation);
    }
    assert_eq!(feed.lines().len(), 1);
    assert!(feed.lines()[0].ends_with("chunked_beyond_budget"), "{:?}", feed.lines());
    for last in
        [vec![bytes(R, GET_A)], vec![bytes(S, OK_5)], vec![Step::End(End::Closed)], vec![Step::End(End::Direction(S))]]
    {
        let steps: Vec<_> = [bytes(R, GET_A), bytes(S, head), Step::Gap(S, 500)].into_iter().chain(last).collect();
        assert_eq!(whole(&steps).lines()[0], expected, "{steps:?}");
    }
}

#[test]
fn a_cut_request_head_keeps_its_place_and_what_was_seen() {
    let cut = "GET /big HTTP/1.1\r\nCookie: aaaaaaaaa";
    check(
        &[bytes(R, cut), Step::Gap(R, 5000), bytes(S, OK_5), bytes(R, GET_A), bytes(S, OK_5)],
        &["GET /big ?0 > 200 5 request_head_gap", "GET /a 0 > 200 5"],
    );
    check(
        &[bytes(R, GET_A), bytes(S, OK_5), Step::Gap(R, 400), bytes(S, OK_5), bytes(R, GET_A), bytes(S, OK_5)],
        &["GET /a 0 > 200 5", "- > 200 5 request_head_gap", "GET /a 0 > 200 5"],
    );
}

#[test]
fn a_hole_before_an_operation_does_not_hide_that_a_message_begins_there() {
    let mut feed = whole(&[bytes(R, GET_A), bytes(S, OK_5)]);
    let operation = feed.operation();
    feed.segment(R, Segment::Gap(40), operation);
    feed.segment(R, Segment::Bytes(GET_A.as_bytes()), operation);
    feed.step(bytes(S, OK_5));
    // Two requests may be outstanding: neither gets the response.
    let expected = ["GET /a 0 > 200 5", "GET /a 0 > - request_head_gap", "- > 200 5 request_head_gap"];
    assert_eq!(feed.lines(), expected);
}

#[test]
fn a_cut_response_head_ends_when_the_client_goes_on() {
    let cut = "HTTP/1.1 503 Busy\r\nX: yyyyyy";
    check(
        &[bytes(R, GET_A), bytes(S, cut), Step::Gap(S, 5000), bytes(R, GET_A), bytes(S, OK_5)],
        &["GET /a 0 > 503 ?0 response_head_gap", "GET /a 0 > 200 5"],
    );
    check(
        &[bytes(R, GET_A), Step::Gap(S, 5000), bytes(R, GET_A), bytes(S, OK_5)],
        &["GET /a 0 > - response_head_gap", "GET /a 0 > 200 5"],
    );
}

#[test]
fn heads_longer_than_the_limit_are_dropped_and_the_connection_goes_on() {
    let limits = Limits { head_bytes: 100, ..Limits::default() };
    let long = format!("GET /long HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(5000));
    for size in [1, 7, 64, 6000] {
        let mut feed = Feed::new(limits);
        for piece in long.as_bytes().chunks(size) {
            feed.step(Step::Bytes(R, piece));
            assert!(feed.connection.memory() < 4096, "{}", feed.connection.memory());
        }
        for step in [bytes(S, OK_5), Step::End(End::Closed)] {
            feed.step(step);
        }
        assert_eq!(feed.lines(), ["GET /long ?0 > 200 5 head_too_long"], "pieces of {size}");
    }
}

#[test]
fn fields_beyond_the_limit_are_dropped_and_said_to_be() {
    let many =
        (0..200).fold(String::from("GET /a HTTP/1.1\r\n"), |head, index| format!("{head}X-{index}: {index}\r\n"));
    let feed = whole(&[bytes(R, &format!("{many}Content-Length: 2\r\n\r\nab")), bytes(S, OK_5)]);
    let done = feed.done().next().unwrap();
    let request = done.request.as_ref().unwrap();
    assert_eq!((request.headers.len(), request.headers.truncated, request.body.size), (128, true, Some(2)));
    assert_eq!(request.headers.get("x-127"), Some(&b"127"[..]));
}

#[test]
fn chunk_lines_and_trailers_are_bounded() {
    for (limits, body) in [
        (
            Limits { chunk_line: 16, ..Limits::default() },
            "5;ext=aaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nhello\r\n0\r\n\r\n".to_owned(),
        ),
        (Limits { trailer_bytes: 16, ..Limits::default() }, format!("0\r\nT: {}\r\n\r\n", "t".repeat(100))),
        (Limits::default(), "zz\r\n".to_owned()),
        (Limits::default(), "fffffffffffffffff\r\n".to_owned()),
    ] {
        let mut feed = Feed::new(limits);
        feed.step(bytes(R, GET_A));
        feed.step(bytes(S, &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}")));
        feed.step(Step::End(End::Closed));
        assert!(feed.lines()[0].ends_with(" malformed"), "{:?}", feed.lines());
    }
}

#[test]
fn a_request_that_is_never_answered_times_out_and_keeps_its_place() {
    check_whole(
        &[
            bytes(R, GET_A),
            Step::Tick(299),
            Step::Tick(2),
            bytes(S, OK_5),
            bytes(R, "GET /b HTTP/1.1\r\n\r\n"),
            bytes(S, OK_5),
        ],
        &["GET /a 0 > - Timeout abandoned", "GET /b 0 > 200 5"],
    );
}

#[test]
fn a_slow_response_that_moves_does_not_time_out() {
    let mut feed = whole(&[bytes(R, GET_A), bytes(S, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")]);
    for _ in 0..3 {
        feed.step(Step::Tick(250));
        feed.step(bytes(S, "x"));
    }
    assert_eq!(feed.lines(), [""; 0]);
    feed.step(bytes(S, "x"));
    assert_eq!(feed.lines(), ["GET /a 0 > 200 4"]);
    assert!(feed.connection.is_idle());
}

#[test]
fn times_are_those_of_the_first_and_last_bytes() {
    let feed = whole(&[
        bytes(R, "POST /p HTTP/1.1\r\nConte"),
        bytes(R, "nt-Length: 2\r\n\r\na"),
        bytes(S, "HTTP/1.1 100 Continue\r\n\r\n"),
        bytes(R, "b"),
        bytes(S, "HTTP/1.1 200"),
        bytes(S, " OK\r\nContent-Length: 3\r\n\r\nx"),
        bytes(S, "yz"),
    ]);
    let at = |millis: u64| Timestamp(millis * 1_000_000);
    let done = feed.done().next().unwrap();
    let expected = Timing { start: at(1), request_end: Some(at(4)), response_start: Some(at(5)), end: at(7) };
    assert_eq!(done.timing, expected);
    assert_eq!(done.operation.time, at(2));
    let response = done.response.as_ref().unwrap();
    assert_eq!((response.interim, response.first_byte), (1, at(5)));
}

#[test]
fn the_request_head_tells_what_causality_needs() {
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (fields, found, otlp) in [
        (format!("traceparent: {traceparent}\r\n"), true, false),
        (format!("TraceParent:{traceparent}\r\ncontent-type: application/x-protobuf\r\n"), true, true),
        (format!("traceparent: {traceparent}\r\ntraceparent: {traceparent}\r\n"), false, false),
        (format!("traceparent: {traceparent}0\r\nContent-Type: application/json; charset=utf-8\r\n"), false, true),
    ] {
        let request = format!("\r\nPOST /v1/traces?x HTTP/1.1\r\n{fields}\r\n");
        let feed = whole(&[bytes(S, &request)]);
        let Some(Event::RequestHead(head)) = feed.events.first() else { panic!("no head") };
        assert_eq!((head.traceparent.is_some(), head.exports_otlp, head.position), (found, otlp, 2), "{fields}");
        assert_eq!((head.direction, head.exchange), (S, 0));
    }
}

#[test]
fn first_bytes_of_content_are_kept_up_to_the_limit() {
    let mut feed = Feed::new(Limits { body_prefix: 4, ..Limits::default() });
    let fields = "Content-Type: application/json\r\nTransfer-Encoding: chunked";
    feed.step(bytes(R, &format!("POST /p HTTP/1.1\r\n{fields}\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n")));
    feed.step(bytes(S, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")));
    feed.step(bytes(R, "POST /p HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"));
    feed.step(bytes(S, OK_5));
    let prefixes: Vec<_> = feed
        .done()
        .map(|done| [&done.request.as_ref().unwrap().body.prefix[..], &done.response.as_ref().unwrap().body.prefix])
        .collect();
    // Content of other kinds tells nothing.
    assert_eq!(prefixes, [[&b"abcd"[..], b"hell"], [b"", b""]]);
}

#[test]
fn start_lines_are_told_from_content() {
    for (text, expected) in [
        ("GET / HTTP/1.1\r\n", Start::Request),
        ("M-SEARCH  *  HTTP/1.0\n", Start::Request),
        ("GET /a b HTTP/1.1\r\n", Start::Request),
        ("GET /", Start::Partial),
        ("H", Start::Partial),
        ("HTTP/1.1 20", Start::Partial),
        ("HTTP/1.1 200\r\n", Start::Response),
        ("HTTP/1.1 2000\r\n", Start::No),
        ("HTTP/2.0 200 OK\r\n", Start::No),
        ("PRI * HTTP/2.0\r\n", Start::No),
        ("GET /\r\n", Start::No),
        ("hello, world\r\n", Start::No),
        ("\u{16}\u{3}\u{1}", Start::No),
        ("", Start::Partial),
    ] {
        assert_eq!(looks_like_start(text.as_bytes()), expected, "{text:?}");
    }
}

/// A conversation, and how many of its operations are always seen whole.
type Conversation = (Vec<(Direction, Vec<u8>)>, usize);

/// Conversations with an id in each path and, for the response to it, in the status. Some pipeline, in one operation
/// or in several, some slide. Those that slide show it before anything is lost: a client whose only sign of
/// pipelining is lost cannot be told from one that waits.
fn conversations() -> Vec<Conversation> {
    let get = |id: u16| format!("GET /{id} HTTP/1.1\r\nH: x\r\n\r\n").into_bytes();
    let post = |id: u16| format!("POST /{id} HTTP/1.1\r\nContent-Length: 6\r\n\r\nabcdef").into_bytes();
    let put =
        |id: u16| format!("PUT /{id} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").into_bytes();
    let ok = |id: u16| format!("HTTP/1.1 {id} OK\r\nContent-Length: 9\r\n\r\nresponse!").into_bytes();
    let stream = |id: u16| {
        format!("HTTP/1.1 {id} OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nresponse!\r\n0\r\n\r\n").into_bytes()
    };
    let waits = vec![
        (R, get(201)),
        (S, ok(201)),
        (R, post(202)),
        (S, stream(202)),
        (R, put(203)),
        (S, ok(203)),
        (R, get(205)),
        (S, stream(205)),
        (R, get(206)),
        (S, ok(206)),
    ];
    let batch = vec![
        (R, [get(201), get(202), get(203)].concat()),
        (S, [ok(201), stream(202)].concat()),
        (S, ok(203)),
        (R, post(205)),
        (S, ok(205)),
    ];
    let slides = vec![
        (R, get(301)),
        (R, get(302)),
        (S, ok(301)),
        (R, get(201)),
        (S, ok(302)),
        (R, get(202)),
        (S, ok(201)),
        (R, get(203)),
        (S, stream(202)),
        (R, get(205)),
        (S, ok(203)),
        (S, ok(205)),
        (R, get(206)),
        (S, ok(206)),
    ];
    let mixes = vec![
        (R, get(201)),
        (S, ok(201)),
        (R, get(202)),
        (R, get(203)),
        (S, ok(202)),
        (S, ok(203)),
        (R, [get(205), get(206)].concat()),
        (S, stream(205)),
        (S, ok(206)),
        (R, get(207)),
        (S, ok(207)),
    ];
    vec![(waits, 0), (batch, 0), (slides, 3), (mixes, 4)]
}

/// Whenever both sides are told they belong together, and sizes that are told are right.
#[track_caller]
fn assert_no_wrong_pair(feed: &Feed, context: &str) {
    for done in feed.done() {
        let id = done.request.as_ref().map(|request| String::from_utf8_lossy(&request.target).replace('/', ""));
        if let (Some(id), Some(response)) = (&id, &done.response) {
            assert_eq!(*id, response.status.to_string(), "{context}: {:?}", feed.lines());
        }
        if let Some(response) = &done.response {
            assert!(matches!(response.body.size, None | Some(9)), "{context}: {:?}", feed.lines());
        }
        if let Some(request) = &done.request {
            let expected = match &request.method[..] {
                b"POST" => 6,
                b"PUT" => 3,
                _ => 0,
            };
            assert!(request.body.size.is_none_or(|size| size == expected), "{context}: {:?}", feed.lines());
        }
        assert!(
            (done.request.is_some() && done.response.is_some())
                || done.incomplete.is_some()
                || done.outcome != Outcome::Complete,
            "{context}: {:?}",
            feed.lines()
        );
    }
}

#[test]
fn conversations_without_gaps_pair_whole() {
    for (conversation, _) in conversations() {
        let steps: Vec<_> = conversation.iter().map(|(direction, bytes)| Step::Bytes(*direction, bytes)).collect();
        let feed = whole(&steps);
        assert_no_wrong_pair(&feed, "no gap");
        assert!(feed.done().all(|done| done.incomplete.is_none()), "{:?}", feed.lines());
    }
}

#[test]
fn a_gap_anywhere_never_makes_a_wrong_pair() {
    for (number, (conversation, whole)) in conversations().iter().enumerate() {
        for direction in [R, S] {
            let total: usize = conversation.iter().filter(|(d, _)| *d == direction).map(|(_, bytes)| bytes.len()).sum();
            let seen: usize =
                conversation.iter().take(*whole).filter(|(d, _)| *d == direction).map(|(_, bytes)| bytes.len()).sum();
            for from in seen..total {
                for to in from + 1..=total {
                    let mut feed = Feed::new(Limits::default());
                    let mut at = 0;
                    for (d, bytes) in conversation {
                        let operation = feed.operation();
                        if *d != direction {
                            feed.segment(*d, Segment::Bytes(bytes), operation);
                            continue;
                        }
                        let start = from.clamp(at, at + bytes.len()) - at;
                        let mut end = to.clamp(at, at + bytes.len()) - at;
                        if start == 0 && end > 0 {
                            // An operation whose first bytes were not copied has at most a tail.
                            end = end.max(bytes.len() - 8);
                        }
                        feed.segment(*d, Segment::Bytes(&bytes[..start]), operation);
                        feed.segment(*d, Segment::Gap((end - start) as u64), operation);
                        feed.segment(*d, Segment::Bytes(&bytes[end..]), operation);
                        at += bytes.len();
                    }
                    feed.step(Step::End(End::Closed));
                    assert_no_wrong_pair(&feed, &format!("conversation {number} {direction:?} {from}..{to}"));
                }
            }
        }
    }
}

#[test]
fn operations_copied_in_part_never_make_a_wrong_pair() {
    for (number, (conversation, whole)) in conversations().iter().enumerate() {
        for budget in 0..120 {
            for tail in [0, 8] {
                let mut feed = Feed::new(Limits::default());
                for (index, (direction, bytes)) in conversation.iter().enumerate() {
                    let operation = feed.operation();
                    let head = if index < *whole { bytes.len() } else { budget.min(bytes.len()) };
                    let tail = tail.min(bytes.len() - head);
                    feed.segment(*direction, Segment::Bytes(&bytes[..head]), operation);
                    feed.segment(*direction, Segment::Gap((bytes.len() - head - tail) as u64), operation);
                    feed.segment(*direction, Segment::Bytes(&bytes[bytes.len() - tail..]), operation);
                }
                feed.step(Step::End(End::Closed));
                assert_no_wrong_pair(&feed, &format!("conversation {number}, {budget} bytes, tail {tail}"));
            }
        }
    }
}

#[test]
fn loss_of_any_operations_never_makes_a_wrong_pair() {
    for (number, (conversation, whole)) in conversations().iter().enumerate() {
        for from in *whole..conversation.len() {
            for to in from + 1..=conversation.len() {
                let mut feed = Feed::new(Limits::default());
                for (index, (direction, bytes)) in conversation.iter().enumerate() {
                    if index == to {
                        feed.step(Step::Loss);
                    }
                    if !(from..to).contains(&index) {
                        feed.step(Step::Bytes(*direction, bytes));
                    }
                }
                feed.step(Step::End(End::Closed));
                assert_no_wrong_pair(&feed, &format!("conversation {number}, lost {from}..{to}"));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Anything {
    Bytes(bool, Vec<u8>),
    Gap(bool, u64),
    End(u8),
    Loss,
    Tick(u64),
}

fn anything() -> impl Strategy<Value = Anything> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "GET /201 HTTP/1.1\r\n\r\n",
            "POST /202 HTTP/1.1\r\nContent-Length: 6\r\n\r\n",
            "abcdef",
            "HTTP/1.1 201 OK\r\n",
            "Content-Length: 9\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n",
            "9\r\nresponse!\r\n",
            "0\r\n\r\n",
            "\r\n",
            "HTTP/1.1 100 C\r\n\r\n",
            "CONNECT a HTTP/1.1\r\n",
            "HTTP/1.1 101 U\r\n\r\n",
            "\n",
            " ",
            ":",
            "HEAD / HTTP/1.0\r\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop_oneof![
        12 => (any::<bool>(), prop::collection::vec(piece, 1..5)).prop_map(|(side, pieces)| Anything::Bytes(side, pieces.concat())),
        3 => (any::<bool>(), prop_oneof![0_u64..40, any::<u64>()]).prop_map(|(side, len)| Anything::Gap(side, len)),
        1 => (0_u8..4).prop_map(Anything::End),
        1 => Just(Anything::Loss),
        1 => (0_u64..400).prop_map(Anything::Tick),
    ]
}

proptest! {
    #[test]
    fn any_input_is_survived_in_bounded_memory(steps in prop::collection::vec(anything(), 0..60)) {
        let limits = Limits { head_bytes: 256, headers: 8, pipeline: 4, body_prefix: 16, ..Limits::default() };
        let mut feed = Feed::new(limits);
        let side = |send: bool| if send { S } else { R };
        for step in &steps {
            match step {
                Anything::Bytes(send, bytes) => feed.step(Step::Bytes(side(*send), bytes)),
                Anything::Gap(send, len) => feed.connection.on_segment(side(*send), 0, Segment::Gap(*len), Operation::default(), &mut feed.events),
                Anything::End(0) => feed.step(Step::End(End::Closed)),
                Anything::End(1) => feed.step(Step::End(End::Reset)),
                Anything::End(end) => feed.step(Step::End(End::Direction(side(*end == 2)))),
                Anything::Loss => feed.step(Step::Loss),
                Anything::Tick(seconds) => feed.step(Step::Tick(*seconds)),
            }
            prop_assert!(feed.connection.memory() < 32 * 1024, "{}", feed.connection.memory());
        }
        feed.step(Step::End(End::Closed));
        prop_assert!(feed.connection.is_idle());
        // Every head that was told of is done, once.
        let heads = feed.events.iter().filter(|event| matches!(event, Event::RequestHead(_))).count();
        let mut done: Vec<u64> = feed.done().map(|done| done.exchange).collect();
        prop_assert!(done.len() >= heads);
        if !steps.iter().any(|step| matches!(step, Anything::End(0 | 1))) {
            done.sort_unstable();
            prop_assert!(done.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
