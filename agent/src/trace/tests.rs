//! Tables over `traceparent`, and every way in which one call can be the cause of another.

use std::collections::HashSet;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const A: Thread = Thread { pid: 1, tid: 10 };
const B: Thread = Thread { pid: 1, tid: 11 };
const ELSEWHERE: Thread = Thread { pid: 2, tid: 20 };

fn carried(number: u8) -> Traceparent {
    Traceparent { trace_id: TraceId([number; 16]), parent_id: SpanId([number; 8]), sampled: true }
}

#[test]
fn only_valid_traceparents_are_read() {
    for (value, want) in [
        (format!("00-{TRACE}-{PARENT}-01"), Some(true)),
        (format!("00-{TRACE}-{PARENT}-00"), Some(false)),
        // Only the lowest flag means sampled; the others are reserved.
        (format!("00-{TRACE}-{PARENT}-ff"), Some(true)),
        (format!("00-{TRACE}-{PARENT}-fe"), Some(false)),
        (format!("cc-{TRACE}-{PARENT}-01"), Some(true)),
        (format!("cc-{TRACE}-{PARENT}-01-what-the-future-will-be"), Some(true)),
        (format!("cc-{TRACE}-{PARENT}-01.what"), None),
        (format!("00-{TRACE}-{PARENT}-01-more"), None),
        (format!("00-{TRACE}-{PARENT}-01 "), None),
        (format!("ff-{TRACE}-{PARENT}-01"), None),
        (format!("0F-{TRACE}-{PARENT}-01"), None),
        (format!("00-{}-{PARENT}-01", TRACE.to_uppercase()), None),
        (format!("00-{TRACE}-{}-01", PARENT.to_uppercase()), None),
        (format!("00-{}-{PARENT}-01", "0".repeat(32)), None),
        (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
        (format!("00_{TRACE}-{PARENT}-01"), None),
        (format!("00-{TRACE}_{PARENT}-01"), None),
        (format!("00-{TRACE}-{PARENT}_01"), None),
        (format!("00-{TRACE}-{PARENT}-0g"), None),
        (format!("00-{TRACE}-{PARENT}"), None),
        (String::new(), None),
    ] {
        assert_eq!(Traceparent::parse(value.as_bytes()).map(|parsed| parsed.sampled), want, "{value}");
    }
    let whole = format!("00-{TRACE}-{PARENT}-01");
    for len in 0..whole.len() {
        assert_eq!(Traceparent::parse(&whole.as_bytes()[..len]), None, "cut at {len}");
    }
    let parsed = Traceparent::parse(whole.as_bytes()).unwrap();
    assert_eq!(parsed.trace_id.0[..2], [0x0a, 0xf7]);
    assert_eq!(parsed.parent_id.0[6..], [0x33, 0x31]);
}

#[test]
fn ids_are_distinct_never_zero_and_follow_the_seed() {
    let ids = |seed| {
        let mut tracer = Tracer::new(seed);
        (0..10_000).map(|_| tracer.root()).collect::<Vec<_>>()
    };
    let first = ids(7);
    assert_eq!(first, ids(7));
    assert_ne!(first, ids(8));
    let spans: HashSet<_> = first.iter().map(|context| context.span_id).collect();
    let traces: HashSet<_> = first.iter().map(|context| context.trace_id).collect();
    assert_eq!((spans.len(), traces.len()), (10_000, 10_000));
    assert!(!spans.contains(&SpanId([0; 8])) && !traces.contains(&TraceId([0; 16])));
}

#[test]
fn a_server_is_the_child_of_the_header_it_received() {
    let mut tracer = Tracer::new(1);
    let given = Traceparent { sampled: false, ..carried(9) };
    let (context, link) = tracer.server(A, Some(given), None);
    assert_eq!(link, Link::Header);
    assert_eq!((context.trace_id, context.parent), (given.trace_id, Some(given.parent_id)));
    assert_ne!(context.span_id, given.parent_id);
    assert!(context.parent_remote);
    assert_eq!(context.sampled, Some(false));
}

#[test]
fn a_server_without_header_is_the_child_of_the_other_end_or_a_root() {
    let mut tracer = Tracer::new(1);
    let client = tracer.root();
    let (context, link) = tracer.server(A, None, Some(client));
    assert_eq!((context.trace_id, context.parent, link), (client.trace_id, Some(client.span_id), Link::Connection));
    let (context, link) = tracer.server(B, None, None);
    assert_eq!((context.parent, context.sampled, link), (None, None, Link::Root));
}

#[test]
fn a_header_of_another_trace_beats_the_other_end() {
    let mut tracer = Tracer::new(1);
    let client = tracer.root();
    let (context, link) = tracer.server(A, Some(carried(9)), Some(client));
    assert_eq!(
        (context.trace_id, context.parent, link),
        (carried(9).trace_id, Some(carried(9).parent_id), Link::Header)
    );
}

#[test]
fn a_header_passed_on_by_a_proxy_puts_the_proxy_between_its_caller_and_its_upstream() {
    let mut tracer = Tracer::new(1);
    let (proxy, _) = tracer.server(A, Some(carried(9)), None);
    // On another thread: the value alone proves it.
    let (call, link) = tracer.client(B, Some(carried(9)));
    assert_eq!((call.trace_id, call.parent, link), (proxy.trace_id, Some(proxy.span_id), Link::Header));
    assert_ne!(call.span_id, carried(9).parent_id);
    let (upstream, _) = tracer.server(ELSEWHERE, Some(carried(9)), Some(call));
    assert_eq!((upstream.trace_id, upstream.parent), (call.trace_id, Some(call.span_id)));
}

#[test]
fn a_header_received_twice_at_once_and_passed_on_has_no_parent() {
    let mut tracer = Tracer::new(1);
    let (first, _) = tracer.server(A, Some(carried(9)), None);
    let (second, _) = tracer.server(B, Some(carried(9)), None);
    let (call, link) = tracer.client(A, Some(carried(9)));
    assert_eq!((call.trace_id, call.parent, link), (first.trace_id, None, Link::Ambiguous));
    tracer.end_server(A, Some(carried(9)), &first);
    tracer.end_server(B, Some(carried(9)), &second);
    // One after the other, as a retry is, they are told apart.
    let (third, _) = tracer.server(A, Some(carried(9)), None);
    assert_eq!(tracer.client(A, Some(carried(9))).0.parent, Some(third.span_id));
    tracer.end_server(A, Some(carried(9)), &third);
    assert_eq!(tracer.client(A, Some(carried(9))).0.parent, Some(third.span_id), "answered first, passed on later");
}

#[test]
fn a_header_made_by_the_process_names_the_call_itself() {
    let mut tracer = Tracer::new(1);
    let (server, _) = tracer.server(A, Some(carried(9)), None);
    let made = Traceparent { parent_id: SpanId([5; 8]), ..carried(9) };
    let (call, link) = tracer.client(B, Some(made));
    assert_eq!((call.trace_id, call.span_id, call.parent), (server.trace_id, made.parent_id, Some(server.span_id)));
    assert_eq!(link, Link::Header);
    // Its server at the far end is then its child by the header alone.
    let (far, _) = tracer.server(ELSEWHERE, Some(made), None);
    assert_eq!(far.parent, Some(call.span_id));
    // A trace that the process did not receive has no parent here.
    let (alone, _) = tracer.client(B, Some(carried(3)));
    assert_eq!((alone.span_id, alone.parent), (carried(3).parent_id, None));
}

#[test]
fn a_header_made_while_two_calls_of_its_trace_are_open_has_no_parent() {
    let mut tracer = Tracer::new(1);
    let second = Traceparent { parent_id: SpanId([4; 8]), ..carried(9) };
    let made = Traceparent { parent_id: SpanId([5; 8]), ..carried(9) };
    let (first, _) = tracer.server(A, Some(carried(9)), None);
    let (newer, _) = tracer.server(B, Some(second), None);
    assert_eq!(tracer.client(A, Some(made)).0.parent, None);
    // The newer one ended: it cannot be the parent of what is sent now.
    tracer.end_server(B, Some(second), &newer);
    assert_ne!(tracer.client(A, Some(made)).0.parent, Some(newer.span_id));
    tracer.end_server(A, Some(carried(9)), &first);
    assert_eq!(tracer.client(A, Some(made)).0.parent, None);
    // And a later call of the trace is told apart again.
    let (later, _) = tracer.server(A, Some(carried(9)), None);
    assert_eq!(tracer.client(A, Some(made)).0.parent, Some(later.span_id));
}

#[test]
fn a_thread_that_serves_one_request_causes_what_it_sends_until_it_answered() {
    let mut tracer = Tracer::new(1);
    assert_eq!(tracer.client(A, None).1, Link::Root);
    let (server, _) = tracer.server(A, Some(carried(9)), None);
    for _ in 0..3 {
        let (call, link) = tracer.client(A, None);
        assert_eq!((call.trace_id, call.parent, link), (server.trace_id, Some(server.span_id), Link::Thread));
        assert_eq!(call.sampled, Some(true));
        assert!(!call.parent_remote);
    }
    // Another thread of the process is not it.
    assert_eq!(tracer.client(B, None).1, Link::Root);
    tracer.end_server(A, Some(carried(9)), &server);
    let (call, link) = tracer.client(A, None);
    assert_eq!((call.parent, link), (None, Link::Root));
}

#[test]
fn a_thread_that_ever_served_two_at_once_is_not_believed_again() {
    let mut tracer = Tracer::new(1);
    let (first, _) = tracer.server(A, None, None);
    let (second, _) = tracer.server(A, None, None);
    assert_eq!(tracer.client(A, None).1, Link::Ambiguous);
    tracer.end_server(A, None, &first);
    assert_eq!(tracer.client(A, None).1, Link::Ambiguous);
    tracer.end_server(A, None, &second);
    assert_eq!(tracer.client(A, None).1, Link::Root, "nothing is open that could be the cause");
    tracer.server(A, None, None);
    let (call, link) = tracer.client(A, None);
    assert_eq!((call.parent, link), (None, Link::Ambiguous));
    // Its neighbour is believed.
    tracer.server(B, None, None);
    assert_eq!(tracer.client(B, None).1, Link::Thread);
}

#[test]
fn tables_stay_bounded_and_count_what_they_give_up() {
    let mut tracer = Tracer::new(1);
    for number in 0..100_000_u32 {
        let mut trace_id = [1; 16];
        trace_id[..4].copy_from_slice(&number.to_be_bytes());
        let given = Traceparent { trace_id: TraceId(trace_id), ..carried(1) };
        tracer.server(Thread { pid: number, tid: number }, Some(given), None);
    }
    let (threads, values) = (100_000 - THREADS as u64, 100_000 - INCOMING as u64);
    assert_eq!(tracer.evicted, threads + 2 * values);
    assert!(tracer.memory() < 16 << 20, "{}", tracer.memory());
}
