//! Tables of what rides on HTTP, and what must not leave. Tests only.

mod documents;

use super::*;
use crate::model::{Body, Grpc, GrpcStatus, MessageKind, Messages, Streaming, fixture};

/// A gRPC call of that path, with these fields in the response's head and trailers.
fn grpc(target: &str, content_type: &str, head: &[(&str, &[u8])], trailers: &[(&str, &[u8])]) -> Exchange {
    let mut exchange = fixture::exchange(target);
    exchange.request.as_mut().unwrap().headers = fixture::headers(&[("Content-Type", content_type.as_bytes())]);
    let response = exchange.response.as_mut().unwrap();
    response.headers = fixture::headers(head);
    response.trailers = Some(Box::new(fixture::headers(trailers)));
    exchange
}

fn as_grpc(exchange: &Exchange) -> Option<Grpc> {
    match recognise(exchange)? {
        Application::Grpc(grpc) => Some(grpc),
        other => panic!("{other:?}"),
    }
}

#[test]
fn service_and_method_are_the_last_segments_of_the_path_and_identifiers() {
    for (target, service, method) in [
        ("/shop.v1.Cart/AddItem", Some("shop.v1.Cart"), Some("AddItem")),
        ("/Cart/add_item", Some("Cart"), Some("add_item")),
        ("/api/grpc/shop.Cart/AddItem?x=1", Some("shop.Cart"), Some("AddItem")),
        ("/shop.Cart/", None, None),
        ("/AddItem", None, None),
        ("", None, None),
        ("//AddItem", None, None),
        ("/shop.Cart/Add Item", None, None),
        ("/shop.Cart/ann@example.org", None, None),
        ("/shop.Cart/%41dd", None, None),
        ("/2024.Cart/AddItem", None, None),
    ] {
        let found = as_grpc(&grpc(target, "application/grpc", &[], &[])).unwrap();
        assert_eq!((found.service.as_deref(), found.method.as_deref()), (service, method), "{target}");
    }
    let long = format!("/shop.Cart/{}", "a".repeat(300));
    assert_eq!(as_grpc(&grpc(&long, "application/grpc", &[], &[])).unwrap().method, None);
}

#[test]
fn the_status_is_in_the_trailers_or_in_a_head_without_content() {
    type Fields = &'static [(&'static str, &'static [u8])];
    let cases: [(Fields, Fields, Option<u16>); 6] = [
        (&[], &[("grpc-status", b"0")], Some(0)),
        (&[("grpc-status", b"5")], &[], Some(5)),
        (&[("grpc-status", b"5")], &[("grpc-status", b"14")], Some(14)),
        (&[], &[("grpc-status", b"99")], Some(99)),
        (&[], &[("grpc-status", b"1x")], None),
        (&[], &[], None),
    ];
    for (head, trailers, status) in cases {
        let found = as_grpc(&grpc("/a.B/C", "application/grpc+proto", head, trailers)).unwrap();
        assert_eq!(found.status, status.map(GrpcStatus));
    }
}

#[test]
fn the_content_type_of_either_side_says_grpc() {
    for (content_type, expected) in [
        ("application/grpc", true),
        ("application/grpc+json; charset=x", true),
        ("Application/GRPC-web-text", true),
        ("application/grpcx", false),
        ("application/json", false),
        ("", false),
    ] {
        assert_eq!(as_grpc(&grpc("/a.B/C", content_type, &[], &[])).is_some(), expected, "{content_type}");
    }
    let mut joined = grpc("/a.B/C", "", &[("content-type", b"application/grpc")], &[]);
    joined.request.as_mut().unwrap().headers = Headers::default();
    assert!(as_grpc(&joined).is_some());
    joined.request = None;
    assert!(recognise(&joined).is_none());
}

#[test]
fn the_kind_of_streaming_is_known_as_far_as_the_counts_are() {
    let messages = |count, exact| Some(Messages { kind: MessageKind::Grpc, count, exact, close_code: None });
    for (requests, responses, streaming) in [
        (messages(1, true), messages(1, true), Some(Streaming::Unary)),
        (messages(1, true), messages(0, true), Some(Streaming::Unary)),
        (messages(9, false), messages(1, true), Some(Streaming::Client)),
        (messages(1, true), messages(2, false), Some(Streaming::Server)),
        (messages(2, true), messages(2, true), Some(Streaming::Bidirectional)),
        (messages(1, false), messages(2, true), None),
        (messages(1, true), messages(1, false), None),
        (messages(1, true), None, None),
    ] {
        let mut exchange = grpc("/a.B/C", "application/grpc", &[], &[]);
        exchange.request.as_mut().unwrap().body = Body { messages: requests, ..Body::default() };
        exchange.response.as_mut().unwrap().body = Body { messages: responses, ..Body::default() };
        assert_eq!(as_grpc(&exchange).unwrap().streaming, streaming, "{requests:?} {responses:?}");
    }
}
