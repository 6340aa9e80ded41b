//! Tables, cuts at every byte, gaps at every place, and arbitrary input for readers of content. Tests only.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::model::Field;

fn headers(fields: &[(&str, &str)]) -> Headers {
    let mut raw = Vec::new();
    let mut ranges = Vec::new();
    for (name, value) in fields {
        let start = raw.len() as u32;
        raw.extend_from_slice(name.as_bytes());
        let middle = raw.len() as u32;
        raw.extend_from_slice(value.as_bytes());
        ranges.push(Field { name: (start, middle), value: (middle, raw.len() as u32) });
    }
    Headers::new(Bytes::from(raw), ranges.into_boxed_slice())
}

fn response(content_type: &str) -> Reader {
    Reader::for_response(&headers(&[("Content-Type", content_type)])).unwrap()
}

fn grpc_message(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![flags];
    message.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    message.extend_from_slice(payload);
    message
}

fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(bit | len as u8),
        len @ 126..=0xffff => {
            frame.push(bit + 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(bit + 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let key = mask.unwrap_or_default();
    frame.extend(mask.into_iter().flatten());
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
    frame
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { digit } else { b'=' });
        }
    }
    text
}

/// A stream, a fresh reader, and the count and close code at the stream's end.
type Stream = (&'static str, Reader, Vec<u8>, u64, Option<u16>);

fn streams() -> Vec<Stream> {
    let grpc = || response("application/grpc+proto");
    let web = || response("application/grpc-web+proto");
    let text = || response("application/grpc-web-text");
    let events = || response("text/event-stream; charset=utf-8");
    let socket = Reader::websocket;
    let trailers = grpc_message(0x80, b"grpc-status:5\r\ngrpc-message: gone\r\n");
    let messages = [grpc_message(0, b"hello"), grpc_message(1, b""), grpc_message(0, &[7; 300])];
    let mask = Some([1, 2, 3, 200]);
    let mut flushed = base64(&messages[0]);
    flushed.extend(base64(&messages[1]));
    flushed.extend(base64(&trailers));
    vec![
        ("nothing", grpc(), vec![], 0, None),
        ("grpc messages", grpc(), messages.concat(), 3, None),
        ("grpc, the last one cut", grpc(), [&messages.concat()[..], b"\0\0\0\0\x05abcd"].concat(), 3, None),
        ("grpc-web with trailers", web(), [&messages.concat()[..], &trailers].concat(), 3, None),
        ("grpc-web, trailers alone", web(), trailers.clone(), 0, None),
        ("grpc-web text, flushed thrice", text(), flushed, 2, None),
        ("events by LF", events(), b"data: a\n\ndata: b\ndata: c\n\n".to_vec(), 2, None),
        ("events by CR", events(), b"data: a\r\rid: 1\rdata\r\r\r".to_vec(), 2, None),
        ("events by CRLF", events(), b"data: a\r\n\r\nevent: x\r\ndata:\r\n\r\ndata: cut\r\n".to_vec(), 2, None),
        ("events by all three", events(), b"data: a\n\r\ndata: b\r\r\ndata: c\r\n\n".to_vec(), 3, None),
        ("comments are no events", events(), b": ping\n\nevent: x\n\ndatum: 1\n\ndat\n\ndata\n\n".to_vec(), 1, None),
        ("byte order mark", events(), "\u{feff}data: a\n\n".as_bytes().to_vec(), 1, None),
        ("half a byte order mark", events(), b"\xef\xbb\ndata: a\n\n".to_vec(), 1, None),
        (
            "websocket messages",
            socket(),
            [frame(0x81, None, b"hi"), frame(0x82, mask, &[0; 130]), frame(0x82, None, &[0; 70_000])].concat(),
            3,
            None,
        ),
        (
            "websocket fragments with control frames between",
            socket(),
            [
                frame(0x01, mask, b"a"),
                frame(0x89, mask, b"ping"),
                frame(0x00, mask, b""),
                frame(0x8a, None, b""),
                frame(0x80, mask, b"c"),
                frame(0xc1, mask, b"compressed"),
                frame(0x02, None, b"open"),
            ]
            .concat(),
            2,
            None,
        ),
        (
            "websocket closed with a code",
            socket(),
            [frame(0x81, None, b"hi"), frame(0x88, mask, b"\x03\xe9bye"), frame(0x81, None, b"late")].concat(),
            1,
            Some(1001),
        ),
        ("websocket closed without a code", socket(), frame(0x88, mask, b""), 0, Some(1005)),
        ("websocket closed with half a code", socket(), frame(0x88, None, b"\x03"), 0, None),
    ]
}

#[test]
fn messages_are_counted_however_the_bytes_are_cut() {
    for (name, reader, bytes, count, close_code) in streams() {
        let check = |mut reader: Reader, pieces: &[&[u8]]| {
            for piece in pieces {
                reader.on_bytes(piece);
            }
            let messages = reader.summary();
            assert_eq!((messages.count, messages.exact, messages.close_code), (count, true, close_code), "{name}");
        };
        check(reader.clone(), &[&bytes]);
        for at in (0..bytes.len()).take(600) {
            let (before, after) = bytes.split_at(at);
            check(reader.clone(), &[before, after]);
        }
        if bytes.len() < 1000 {
            check(reader, &bytes.chunks(1).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_gap_anywhere_never_makes_a_count_too_high_nor_calls_a_lower_one_exact() {
    for (name, reader, bytes, truth, close_code) in streams() {
        let bytes = &bytes[..bytes.len().min(500)];
        let truth = if bytes.len() == 500 { count_of(&reader, bytes) } else { truth };
        for start in 0..bytes.len() {
            for end in start + 1..=bytes.len() {
                let mut gapped = reader.clone();
                gapped.on_bytes(&bytes[..start]);
                gapped.on_gap((end - start) as u64);
                gapped.on_bytes(&bytes[end..]);
                let messages = gapped.summary();
                assert!(messages.count <= truth, "{name}: {} of {truth}, gap {start}..{end}", messages.count);
                assert!(!messages.exact || messages.count == truth, "{name}: gap {start}..{end}");
                assert!(messages.close_code.is_none() || messages.close_code == close_code, "{name}: {start}..{end}");
            }
        }
    }
}

fn count_of(reader: &Reader, bytes: &[u8]) -> u64 {
    let mut reader = reader.clone();
    reader.on_bytes(bytes);
    reader.summary().count
}

#[test]
fn a_gap_within_a_known_length_costs_nothing() {
    let message = grpc_message(0, &[1; 100]);
    let socket = frame(0x82, Some([9; 4]), &[1; 100]);
    for (mut reader, message) in [
        (response("application/grpc"), &message),
        (response("application/grpc-web"), &message),
        (Reader::websocket(), &socket),
    ] {
        reader.on_bytes(&message[..20]);
        reader.on_gap(message.len() as u64 - 20);
        reader.on_bytes(message);
        reader.on_bytes(&message[..14]);
        reader.on_gap(30);
        reader.on_gap(20);
        reader.on_bytes(&message[64..]);
        let messages = reader.summary();
        assert_eq!((messages.count, messages.exact), (3, true), "{:?}", messages.kind);
    }
}

#[test]
fn events_are_counted_again_behind_a_gap() {
    let mut reader = response("text/event-stream");
    reader.on_bytes(b"data: a\n");
    reader.on_gap(100);
    reader.on_bytes(b"rest of a line\n\ndata: b\n\n");
    let messages = reader.summary();
    // One by the line before the gap, one behind it.
    assert_eq!((messages.count, messages.exact), (2, false));
}

#[test]
fn a_loss_makes_every_count_a_lower_bound() {
    for (name, mut reader, bytes, count, close_code) in streams() {
        reader.on_bytes(&bytes);
        reader.on_loss();
        let messages = reader.summary();
        // Behind a close frame there is nothing to lose.
        assert_eq!((messages.count, messages.exact), (count, reader.is_closed()), "{name}");
        assert_eq!(messages.close_code, close_code, "{name}");
    }
}

#[test]
fn bytes_that_are_no_messages_end_the_count() {
    for (mut reader, bytes) in [
        (response("application/grpc"), &b"\x02\0\0\0\x01a"[..]),
        (response("application/grpc"), b"<html>not found</html>"),
        (response("application/grpc-web"), b"\x40\0\0\0\0"),
        (response("application/grpc-web-text"), b"AAAA*AAAA"),
        (response("application/grpc-web-text"), b"A==="),
        (response("application/grpc-web-text"), b"AA=A"),
        (Reader::websocket(), b"\x83\x01a"),
        (Reader::websocket(), b"\x80\x01a"),
        (Reader::websocket(), b"\x01\x01a\x81\x01a"),
        (Reader::websocket(), b"\x89\x7e\x00\x7ea"),
        (Reader::websocket(), b"\x09\x01a"),
        (Reader::websocket(), b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0"),
    ] {
        reader.on_bytes(bytes);
        let messages = reader.summary();
        assert_eq!((messages.count, messages.exact), (0, false), "{bytes:?}");
    }
}

#[test]
fn the_reader_is_chosen_by_the_content_type_alone() {
    for (content_type, in_request, in_response) in [
        ("application/grpc", Some(MessageKind::Grpc), Some(MessageKind::Grpc)),
        ("Application/gRPC+json; x=y", Some(MessageKind::Grpc), Some(MessageKind::Grpc)),
        ("application/grpc-web", Some(MessageKind::GrpcWeb), Some(MessageKind::GrpcWeb)),
        ("application/grpc-web-text+proto", Some(MessageKind::GrpcWeb), Some(MessageKind::GrpcWeb)),
        ("text/event-stream", None, Some(MessageKind::EventStream)),
        ("text/event-stream;charset=utf-8", None, Some(MessageKind::EventStream)),
        ("application/grpcx", None, None),
        ("application/grpc-websocket", None, None),
        ("application/json", None, None),
        ("text/event-streams", None, None),
        ("", None, None),
    ] {
        let fields = headers(&[("content-type", content_type)]);
        let kind = |reader: Option<Reader>| reader.map(|reader| reader.summary().kind);
        assert_eq!(kind(Reader::for_request(&fields)), in_request, "{content_type}");
        assert_eq!(kind(Reader::for_response(&fields)), in_response, "{content_type}");
    }
    assert!(Reader::for_response(&headers(&[])).is_none());
}

#[test]
fn coded_events_are_known_but_not_counted() {
    let fields = headers(&[("content-type", "text/event-stream"), ("content-encoding", "gzip")]);
    let mut reader = Reader::for_response(&fields).unwrap();
    reader.on_bytes(b"data: a\n\n");
    assert_eq!((reader.summary().count, reader.summary().exact), (0, false));
}

#[test]
fn the_trailers_of_grpc_web_are_fields() {
    let trailers = grpc_message(0x80, b"grpc-status: 5\r\ngrpc-message:not there\r\nno field\r\nx:\r\n");
    let body = [grpc_message(0, b"abc"), trailers.clone()].concat();
    for (mut reader, body) in
        [(response("application/grpc-web"), body.clone()), (response("application/grpc-web-text"), base64(&body))]
    {
        assert!(reader.trailers().is_none());
        for piece in body.chunks(3) {
            reader.on_bytes(piece);
        }
        let found = reader.trailers().unwrap();
        let fields: Vec<_> = found.iter().collect();
        assert_eq!(fields, [(&b"grpc-status"[..], &b"5"[..]), (b"grpc-message", b"not there"), (b"x", b"")]);
    }
    for cut in 8..body.len() {
        let mut reader = response("application/grpc-web");
        reader.on_bytes(&body[..cut]);
        reader.on_gap((body.len() - cut) as u64);
        assert!(reader.trailers().is_none(), "{cut}");
    }
}

#[test]
fn trailers_are_bounded() {
    let mut reader = response("application/grpc-web");
    reader.on_bytes(&[0x80, 0xff, 0xff, 0xff, 0xff]);
    for _ in 0..100 {
        reader.on_bytes(&[b'x'; 1000]);
    }
    assert!(reader.memory() < 20_000);
    assert!(reader.trailers().is_none());
    let mut many = response("application/grpc-web");
    many.on_bytes(&grpc_message(0x80, &b"a:b\r\n".repeat(1000)));
    assert_eq!(many.trailers().unwrap().len(), 64);
}

proptest! {
    #[test]
    fn arbitrary_bytes_and_gaps_never_count_more_than_without_gaps(
        which in 0usize..5,
        seed in prop::collection::vec((any::<u8>(), 0usize..40), 0..20),
        gaps in prop::collection::vec((0usize..400, 1usize..40), 0..4),
    ) {
        let reader = match which {
            0 => response("application/grpc"),
            1 => response("application/grpc-web"),
            2 => response("application/grpc-web-text"),
            3 => response("text/event-stream"),
            _ => Reader::websocket(),
        };
        // Mostly in order, some not.
        let mut bytes = Vec::new();
        for (byte, len) in &seed {
            let payload = vec![*byte; *len];
            match which {
                0 | 1 => bytes.extend(grpc_message(byte & 0x81, &payload)),
                2 => bytes.extend(base64(&grpc_message(byte & 0x81, &payload))),
                3 => bytes.extend_from_slice([&b"data: x\n"[..], b"\r\n", b"\n", b": c\r", b"\r"][usize::from(byte % 5)]),
                _ => bytes.extend(frame([0x81, 0x01, 0x80, 0x89, 0x00, 0x88][usize::from(byte % 6)], None, &payload)),
            }
        }
        let mut whole = reader.clone();
        whole.on_bytes(&bytes);
        let truth = whole.summary();
        let mut hidden = vec![false; bytes.len()];
        for (at, len) in gaps {
            hidden.iter_mut().skip(at).take(len).for_each(|hidden| *hidden = true);
        }
        let mut gapped = reader;
        for (byte, hidden) in bytes.iter().zip(&hidden) {
            if *hidden { gapped.on_gap(1) } else { gapped.on_bytes(&[*byte]) }
        }
        let seen = gapped.summary();
        prop_assert!(seen.count <= truth.count);
        prop_assert!(!seen.exact || (seen.count == truth.count));
    }

    #[test]
    fn arbitrary_bytes_are_survived(which in 0usize..5, pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16)) {
        let mut reader = match which {
            0 => response("application/grpc"),
            1 => response("application/grpc-web"),
            2 => response("application/grpc-web-text"),
            3 => response("text/event-stream"),
            _ => Reader::websocket(),
        };
        for piece in &pieces {
            reader.on_bytes(piece);
            reader.on_gap(piece.len() as u64 / 20);
        }
        prop_assert!(reader.memory() < 16 * 1024);
        drop((reader.summary(), reader.trailers()));
    }
}
