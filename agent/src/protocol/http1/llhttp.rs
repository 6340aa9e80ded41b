//! llhttp's cases against ours: the messages and content it finds, or the reason why we find others. Tests only.

use super::super::{End, Event, Limits, Operation, Protocol, Segment};
use super::Connection;
use crate::model::{Direction, Timestamp};

/// The case files (tests/fixtures/http1/README.md).
const FILES: &[(&str, &str)] = &[
    ("request/connection", include_str!("../../../../tests/fixtures/http1/request/connection.md")),
    ("request/content-length", include_str!("../../../../tests/fixtures/http1/request/content-length.md")),
    ("request/finish", include_str!("../../../../tests/fixtures/http1/request/finish.md")),
    ("request/method", include_str!("../../../../tests/fixtures/http1/request/method.md")),
    ("request/sample", include_str!("../../../../tests/fixtures/http1/request/sample.md")),
    ("request/uri", include_str!("../../../../tests/fixtures/http1/request/uri.md")),
    ("response/connection", include_str!("../../../../tests/fixtures/http1/response/connection.md")),
    ("response/content-length", include_str!("../../../../tests/fixtures/http1/response/content-length.md")),
    ("response/finish", include_str!("../../../../tests/fixtures/http1/response/finish.md")),
    ("response/sample", include_str!("../../../../tests/fixtures/http1/response/sample.md")),
];
/// Why the response to an upgrade to HTTP/2 is none.
const H2C: &str = "the response comes in HTTP/2";
/// `(file, case, what we find, why)`, where llhttp finds something else.
const DIFFERENCES: &[(&str, &str, &str, &str)] = &[
    ("response/connection", "HTTP 101 response with Upgrade and Content-Length header", "", H2C),
    ("response/connection", "HTTP 101 response with Upgrade and Transfer-Encoding header", "", H2C),
    (
        "request/connection",
        "`keep-alive`: No restart when keep-alive is off (1.0)",
        "/url 0, /url 0",
        "persistence is the peers' affair: what is sent is told",
    ),
    ("request/connection", "`keep-alive`: Not treating `\\r` as `-`", "/url 0", REFUSED),
    (
        "request/connection",
        "Parsing multiple tokens: Invalid whitespace token with `Connection` header field",
        "/url 0",
        REFUSED,
    ),
    (
        "request/connection",
        "Parsing multiple tokens: Invalid whitespace token with `Connection` header field (lenient)",
        "/url 0",
        "RFC 9112 section 5.1: a server must refuse it, so where the content ends is not known",
    ),
    (
        "request/content-length",
        "Error on simultaneous `Content-Length` and `Transfer-Encoding: identity`",
        "/url 0",
        REFUSED,
    ),
    ("request/content-length", "Invalid whitespace token with `Content-Length` header field", "/url 0", REFUSED),
    (
        "request/content-length",
        "Invalid whitespace token with `Content-Length` header field (lenient)",
        "/url 0",
        "RFC 9112 section 5.1: a server must refuse it, so where the content ends is not known",
    ),
    (
        "request/content-length",
        "Spaces in `Content-Length` (surrounding): Spaces in `Content-Length` #2",
        "/ 0",
        REFUSED,
    ),
    (
        "request/content-length",
        "Spaces in `Content-Length` (surrounding): Spaces in `Content-Length` #3",
        "/ 0",
        REFUSED,
    ),
    ("request/content-length", "Spaces in `Content-Length` (surrounding): Empty `Content-Length`", "/ 0", REFUSED),
    ("request/content-length", "`Content-Length` with CR instead of dash", "/url 0", REFUSED),
    (
        "request/content-length",
        "Content-Length reset when no body is received",
        "/url 43",
        "the case tells llhttp to skip content; the wire says 123 bytes follow",
    ),
    (
        "request/content-length",
        "Missing CRLF-CRLF before body (lenient)",
        "",
        "a lone CR ends no line (RFC 9112 section 2.2): the head never ends",
    ),
    ("request/method", ": SOURCE request with ICE", "", "not HTTP"),
    ("request/method", ": OPTIONS request with RTSP", "", "not HTTP"),
    ("request/method", ": ANNOUNCE request with RTSP", "", "not HTTP"),
    (
        "request/method",
        ": PRI request HTTP2",
        "* 0",
        "a method like any other in HTTP/1.1; the preface of HTTP/2 says HTTP/2.0",
    ),
    ("request/sample", "No HTTP version", "", "HTTP/0.9 has no heads to pair"),
    ("request/sample", "Line folding in header value with LF", "/ 0", "a bare LF ends a line (RFC 9112 section 2.2)"),
    (
        "request/uri",
        "Disallow UTF-8 in URI path in strict mode",
        "/δ¶/δt/pope?q=1#narf 0",
        "nginx, Apache and Go take it",
    ),
    ("request/uri", "Space in URI", "/foo bar/ 0", REFUSED),
    ("response/sample", "RTSP response", "", "not HTTP"),
    ("response/sample", "ICE response", "", "not HTTP"),
    ("response/sample", "No carriage ret", "200 51", "a bare LF ends a line (RFC 9112 section 2.2)"),
    ("response/sample", "Spaces in header name", "200 16", "clients drop the line; told and marked malformed"),
    ("response/sample", "HTTP version 0.9", "", "HTTP/0.9 has no status-line"),
];

const REFUSED: &str = "llhttp refuses it; a server's 400 answers this request, which is told and marked malformed";

struct Case {
    file: String,
    name: String,
    wire: Vec<u8>,
    is_request: bool,
    skips_content: bool,
    expected: String,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (file, text) in FILES {
        let mut section = String::new();
        let mut name = String::new();
        let mut meta = String::new();
        let mut wire = Vec::new();
        let mut block: Option<(String, String)> = None;
        for line in text.lines() {
            if let Some((kind, content)) = &mut block {
                if line == "```" {
                    match kind.as_str() {
                        "http" => wire = unescape(content),
                        "log" => cases.push(Case {
                            file: (*file).to_owned(),
                            name: name.clone(),
                            is_request: meta.contains("\"request"),
                            skips_content: meta.contains("skipBody"),
                            expected: expectation(content),
                            wire: std::mem::take(&mut wire),
                        }),
                        _ => {}
                    }
                    block = None;
                } else {
                    content.push_str(line);
                    content.push('\n');
                }
            } else if let Some(kind) = line.strip_prefix("```") {
                block = Some((kind.to_owned(), String::new()));
            } else if line.starts_with("<!-- meta=") {
                meta = line.to_owned();
            } else if let Some(title) = line.strip_prefix("## ") {
                title.clone_into(&mut section);
                title.clone_into(&mut name);
            } else if let Some(title) = line.strip_prefix("### ") {
                name = format!("{section}: {title}");
            }
        }
    }
    cases
}

/// The escapes of llhttp's test format (its `test/md-test.ts`).
fn unescape(block: &str) -> Vec<u8> {
    let text = block.strip_suffix('\n').unwrap_or(block).replace("\\\n", "").replace('\n', "\r\n");
    let text = text.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t").replace("\\f", "\u{c}");
    let mut wire = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("\\x") {
        wire.extend_from_slice(before.as_bytes());
        let (digits, after) = after.split_at(2);
        wire.push(u8::from_str_radix(digits, 16).unwrap());
        rest = after;
    }
    wire.extend_from_slice(rest.as_bytes());
    wire
}

/// Heads that llhttp completed and the bytes of content it saw: `/url 3, /b 0`; interim responses left out.
fn expectation(log: &str) -> String {
    let mut messages: Vec<(String, usize)> = Vec::new();
    let mut url = String::new();
    let mut interim = false;
    for line in log.lines() {
        if line.contains(" message begin") {
            url.clear();
        } else if let Some((_, span)) = line.split_once("span[url]=") {
            url.push_str(span.strip_prefix('"').and_then(|span| span.strip_suffix('"')).unwrap());
        } else if let Some((_, head)) = line.split_once("headers complete ") {
            let status = head.strip_prefix("status=").map(|rest| rest.split(' ').next().unwrap_or_default().to_owned());
            interim = status.as_ref().is_some_and(|status| status.starts_with('1') && status != "101");
            if !interim {
                messages.push((status.unwrap_or_else(|| url.clone()), 0));
            }
        } else if line.contains("span[body]=") && !interim {
            let len = line.split_once("len=").unwrap().1.split(' ').next().unwrap();
            messages.last_mut().unwrap().1 += len.parse::<usize>().unwrap();
        }
    }
    show(&messages)
}

fn show(messages: &[(String, usize)]) -> String {
    messages.iter().map(|(what, size)| format!("{what} {size}")).collect::<Vec<_>>().join(", ")
}

/// What we find in the case, in pieces of `size` bytes.
fn found(case: &Case, size: usize) -> String {
    let mut connection = Connection::new(Limits::default());
    let mut events = Vec::new();
    let mut time = 0;
    let mut feed = |direction, position, bytes: &[u8], events: &mut Vec<Event>| {
        time += 1;
        let operation = Operation { time: Timestamp(time), pid: 1, tid: 1 };
        connection.on_segment(direction, position, Segment::Bytes(bytes), operation, events);
    };
    if case.is_request {
        for (index, piece) in case.wire.chunks(size).enumerate() {
            feed(Direction::Receive, (index * size) as u64, piece, &mut events);
        }
    } else {
        let method = if case.skips_content { "HEAD" } else { "GET" };
        for _ in 0..2 {
            feed(Direction::Receive, 0, format!("{method} / HTTP/1.1\r\n\r\n").as_bytes(), &mut events);
        }
        for piece in case.wire.chunks(size) {
            feed(Direction::Send, 0, piece, &mut events);
        }
    }
    connection.on_end(End::Closed, Timestamp(time), &mut events);
    let mut messages = Vec::new();
    for event in &events {
        let Event::Done(done) = event else { continue };
        match (&done.request, &done.response) {
            (Some(request), _) if case.is_request => {
                messages.push((String::from_utf8_lossy(&request.target).into_owned(), request.body.seen as usize));
            }
            (_, Some(response)) if !case.is_request => {
                messages.push((response.status.to_string(), response.body.seen as usize));
            }
            _ => {}
        }
    }
    show(&messages)
}

#[test]
fn the_cases_of_llhttp_give_its_messages_or_a_reason() {
    let cases = cases();
    assert!(cases.len() > 100, "{}", cases.len());
    let mut wrong = Vec::new();
    let mut used = 0;
    for case in &cases {
        let known = DIFFERENCES.iter().find(|(file, name, ..)| *file == case.file && *name == case.name);
        let expected = known.map_or(case.expected.as_str(), |(_, _, ours, _)| ours);
        used += usize::from(known.is_some());
        for size in [usize::MAX, 1] {
            let found = found(case, size.min(case.wire.len().max(1)));
            if found != expected || known.is_some_and(|_| found == case.expected) {
                wrong.push(format!(
                    "({:?}, {:?}, {found:?}), pieces of {size}, llhttp {:?}",
                    case.file, case.name, case.expected
                ));
            }
        }
    }
    assert!(DIFFERENCES.iter().all(|(.., why)| !why.is_empty()));
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(used, DIFFERENCES.len(), "a difference names no case");
}
