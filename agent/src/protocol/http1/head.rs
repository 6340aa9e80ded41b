//! Heads of HTTP/1 messages: start-line and fields, on httparse. It reads one whole head, keeps one copy of it, and
//! never decides where one begins in a stream.

use std::mem::MaybeUninit;

use bytes::Bytes;
use httparse::{Header, ParserConfig, Status};

use super::body::Framing;
use crate::model::{Body, Field, Headers, Request, Response, Timestamp, Version};

/// Fields that httparse gets room for on the stack. Heads with more take the slow path.
const FIELDS_ON_STACK: usize = 64;
/// Longest method taken for one when it is not certain that a message begins here; registered ones have up to 17
/// bytes (IANA HTTP method registry: UPDATEREDIRECTREF).
const METHOD_BYTES: usize = 32;

/// What the first bytes of a message could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Request,
    Response,
    /// More bytes decide.
    Partial,
    No,
}

/// A head, and where it leads.
#[derive(Debug)]
pub(super) struct Head<T> {
    pub(super) message: T,
    pub(super) framing: Framing,
    /// The head breaks RFC 9112 in a way that peers read differently.
    pub(super) malformed: bool,
}

/// What the request's head says beside the message.
#[derive(Debug)]
pub(super) struct RequestLead {
    pub(super) request: Request,
    pub(super) traceparent: Option<[u8; 55]>,
    pub(super) exports_otlp: bool,
    pub(super) method: Method,
}

/// Methods that change how the messages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Head,
    Connect,
    /// Without content as a rule, and safe to pipeline (RFC 9112 section 9.3.2).
    Get,
    Other,
    Unknown,
}

/// How a head is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// As nearly every peer reads it.
    Usual,
    /// Field lines that are not valid are left out. What peers make of such a head differs.
    Salvage,
}

/// Result of one look at a head.
#[derive(Debug)]
pub(super) enum Parsed<T> {
    /// The head and its length.
    Whole(Head<T>, usize),
    Partial,
    Invalid,
}

/// What the fields say about framing, collected while they are indexed.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    length_conflict: bool,
    coded: bool,
    chunked: bool,
    traceparent: Option<[u8; 55]>,
    traceparents: u32,
    otlp: bool,
}

/// Whether a message begins at the front of `bytes`. Empty lines before it are the caller's to skip.
pub fn looks_like_start(bytes: &[u8]) -> Start {
    const RESPONSE: &[u8] = b"HTTP/";
    if bytes.starts_with(RESPONSE) {
        return looks_like_status_line(bytes);
    }
    if RESPONSE.starts_with(bytes) {
        return Start::Partial;
    }
    let line_end = memchr::memchr(b'\n', bytes);
    let line = bytes.get(..line_end.unwrap_or(bytes.len())).unwrap_or_default();
    let method = line.iter().take(METHOD_BYTES + 1).take_while(|&&byte| is_token(byte)).count();
    if method == line.len() && line_end.is_none() && method <= METHOD_BYTES {
        return Start::Partial;
    }
    if method == 0 || method > METHOD_BYTES || line.get(method) != Some(&b' ') {
        return Start::No;
    }
    // CR may only be the last byte, all other controls end the hope.
    let control = line.iter().position(|&byte| byte < b' ' || byte == 0x7f);
    let clean = control.is_none_or(|at| at + 1 == line.len() && line.ends_with(b"\r"));
    match line_end {
        _ if !clean => Start::No,
        None => Start::Partial,
        Some(_) if request_line(line).is_some() => Start::Request,
        Some(_) => Start::No,
    }
}

fn looks_like_status_line(bytes: &[u8]) -> Start {
    const VERSION: &[u8] = b"HTTP/1.";
    let shared = VERSION.iter().zip(bytes).take_while(|(expected, byte)| expected == byte).count();
    if shared < VERSION.len() {
        return if shared == bytes.len() { Start::Partial } else { Start::No };
    }
    let rest = match bytes.get(VERSION.len()..).unwrap_or_default() {
        [] | [b'0' | b'1'] => return Start::Partial,
        [b'0' | b'1', b' ', rest @ ..] => rest.trim_ascii_start(),
        _ => return Start::No,
    };
    match rest {
        [a, b, c, b' ' | b'\r' | b'\n', ..] if [a, b, c].iter().all(|byte| byte.is_ascii_digit()) => Start::Response,
        short if short.len() <= 3 && short.iter().all(u8::is_ascii_digit) => Start::Partial,
        _ => Start::No,
    }
}

/// Method, target and version of a request-line, spaces within the target allowed: only a shape, not a validation.
fn request_line(line: &[u8]) -> Option<(&[u8], &[u8], Version)> {
    let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_end();
    let (rest, version) = if let Some(rest) = line.strip_suffix(b" HTTP/1.1") {
        (rest, Version::Http11)
    } else {
        (line.strip_suffix(b" HTTP/1.0")?, Version::Http10)
    };
    let space = memchr::memchr(b' ', rest)?;
    let (method, target) = rest.split_at_checked(space)?;
    let target = target.trim_ascii();
    let shaped = !method.is_empty() && method.iter().all(|&byte| is_token(byte)) && !target.is_empty();
    shaped.then_some((method, target, version))
}

/// Whether `more` continues the start-line that `cut` begins, rather than beginning one of its own.
pub(super) fn continues_line(cut: &[u8], more: &[u8]) -> bool {
    if memchr::memchr(b'\n', cut).is_some() {
        return true;
    }
    let more = more.split_inclusive(|&byte| byte == b'\n').next().unwrap_or_default();
    let line: Vec<u8> = [cut, more].concat();
    match looks_like_start(&line) {
        // Two start-lines in one have more words.
        Start::Request => line.split(|&byte| byte == b' ').filter(|word| !word.is_empty()).count() == 3,
        Start::Response | Start::Partial => true,
        Start::No => false,
    }
}

/// Length of the head at the front of `bytes`, its empty line included. `scanned` bytes are known to hold no end.
pub(super) fn head_end(bytes: &[u8], scanned: usize) -> Option<usize> {
    let from = scanned.saturating_sub(3);
    for at in memchr::memchr_iter(b'\n', bytes.get(from..)?) {
        let next = from + at + 1;
        match bytes.get(next..) {
            Some([b'\n', ..]) => return Some(next + 1),
            Some([b'\r', b'\n', ..]) => return Some(next + 2),
            _ => {}
        }
    }
    None
}

/// Read a request's head at the front of `bytes`. `wire` is what is kept of it: `bytes`, or what [`mask`] made `bytes`
/// from.
pub(super) fn request(bytes: &[u8], wire: &[u8], most: usize, reading: Reading) -> Parsed<RequestLead> {
    let mut config = ParserConfig::default();
    // RFC 9112 section 3 allows it, and Apache, Node and Go's proxies accept it.
    config.allow_multiple_spaces_in_request_line_delimiters(true);
    config.ignore_invalid_headers_in_requests(reading == Reading::Salvage);
    let mut stack = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
    let mut parsed = httparse::Request::new(&mut []);
    let mut result = config.parse_request_with_uninit_headers(&mut parsed, bytes, &mut stack);
    let mut heap;
    if result == Err(httparse::Error::TooManyHeaders) {
        heap = vec![MaybeUninit::uninit(); lines(bytes)];
        parsed = httparse::Request::new(&mut []);
        result = config.parse_request_with_uninit_headers(&mut parsed, bytes, &mut heap);
    }
    let len = match result {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Invalid,
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Parsed::Invalid;
    };
    let raw = Bytes::copy_from_slice(wire.get(..len).unwrap_or_default());
    let kind = method_kind(method.as_bytes());
    let (fields, headers) = index(bytes, raw.clone(), parsed.headers, most);
    let target_range = range_in(bytes, target.as_bytes());
    let target = raw.slice(target_range.0 as usize..target_range.1 as usize);
    let version = version_of(version);
    let framing = match (fields.coded, fields.chunked, fields.length) {
        _ if fields.length_conflict || reading == Reading::Salvage => Framing::Unknown,
        _ if kind == Method::Connect => Framing::None,
        // RFC 9112 section 6.3: a request whose last coding is not chunked has no length that can be known.
        (true, true, _) => Framing::Chunked,
        (true, false, _) => Framing::Unknown,
        (false, _, Some(length)) => Framing::Length(length),
        (false, _, None) => Framing::None,
    };
    let malformed = framing == Framing::Unknown || (fields.coded && fields.length.is_some());
    let exports_otlp = fields.otlp && method == "POST" && path(&target).ends_with(b"/v1/traces");
    let method = method_bytes(method, bytes, &raw);
    let request = Request { method, target, version, headers, body: Body::default() };
    let traceparent = fields.traceparent.filter(|_| fields.traceparents == 1);
    let message = RequestLead { request, traceparent, exports_otlp, method: kind };
    Parsed::Whole(Head { message, framing, malformed }, len)
}

/// Read a response's head at the front of `bytes`. The framing is that of an answer to neither HEAD nor CONNECT.
pub(super) fn response(bytes: &[u8], most: usize, reading: Reading, first_byte: Timestamp) -> Parsed<Response> {
    let mut config = ParserConfig::default();
    // Clients accept both (curl, Node, Go); old servers send them.
    config.allow_multiple_spaces_in_response_status_delimiters(true);
    // RFC 9112 section 5.1: removed by whoever forwards it.
    config.allow_spaces_after_header_name_in_responses(true);
    config.ignore_invalid_headers_in_responses(reading == Reading::Salvage);
    let mut stack = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
    let mut parsed = httparse::Response::new(&mut []);
    let mut result = config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut stack);
    let mut heap;
    if result == Err(httparse::Error::TooManyHeaders) {
        heap = vec![MaybeUninit::uninit(); lines(bytes)];
        parsed = httparse::Response::new(&mut []);
        result = config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut heap);
    }
    let len = match result {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Invalid,
    };
    let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
        return Parsed::Invalid;
    };
    let raw = Bytes::copy_from_slice(bytes.get(..len).unwrap_or_default());
    let (fields, headers) = index(bytes, raw, parsed.headers, most);
    let framing = match (fields.coded, fields.chunked, fields.length) {
        _ if matches!(status, 100..=199 | 204 | 304) => Framing::None,
        _ if fields.length_conflict || reading == Reading::Salvage => Framing::Unknown,
        (true, true, _) => Framing::Chunked,
        (true, false, _) | (false, _, None) => Framing::UntilClose,
        (false, _, Some(length)) => Framing::Length(length),
    };
    let malformed = fields.length_conflict || reading == Reading::Salvage || (fields.coded && fields.length.is_some());
    let version = version_of(version);
    let body = Body::default();
    let message = Response { status, version, headers, trailers: None, body, interim: 0, first_byte };
    Parsed::Whole(Head { message, framing, malformed }, len)
}

/// What a request-line tells that httparse refuses, when nothing else can be known.
pub(super) fn request_line_only(head: &[u8]) -> Option<Request> {
    let line = head.get(..memchr::memchr(b'\n', head)?)?;
    let (method, target, version) = request_line(line)?;
    let raw = Bytes::copy_from_slice(line);
    let mut headers = Headers::new(Bytes::new(), Box::default());
    headers.truncated = true;
    let (start, end) = range_in(line, target);
    let target = raw.slice(start as usize..end as usize);
    let (start, end) = range_in(line, method);
    let method = raw.slice(start as usize..end as usize);
    Some(Request { method, target, version, headers, body: Body::default() })
}

/// The lines of a cut head that are whole, ended as a head: `None` when not even the start-line is.
pub(super) fn whole_lines(cut: &[u8]) -> Option<Vec<u8>> {
    let end = memchr::memrchr(b'\n', cut)?;
    let mut lines = cut.get(..=end)?.to_vec();
    lines.extend_from_slice(b"\r\n");
    Some(lines)
}

/// A copy of the head whose folded lines are joined by spaces (RFC 9112 section 5.2), `None` when none is folded.
/// The length stays the same.
pub(super) fn unfold(head: &[u8]) -> Option<Vec<u8>> {
    let mut copy: Option<Vec<u8>> = None;
    let first = memchr::memchr(b'\n', head)?;
    let fields = head.get(first + 1..)?;
    for at in memchr::memchr_iter(b'\n', fields) {
        let at = first + 1 + at;
        if matches!(head.get(at + 1), Some(b' ' | b'\t')) {
            let copy = copy.get_or_insert_with(|| head.to_vec());
            if let Some(byte) = copy.get_mut(at) {
                *byte = b' ';
            }
            if let Some(byte) = copy.get_mut(at - 1).filter(|byte| **byte == b'\r') {
                *byte = b' ';
            }
        }
    }
    copy
}

/// A copy of the head whose request-line is ASCII, `None` when it is anyway. httparse wants UTF-8 in the target, nginx
/// and Apache take any byte above 0x7f. The length stays the same.
pub(super) fn mask(head: &[u8]) -> Option<Vec<u8>> {
    let line = head.get(..memchr::memchr(b'\n', head)?)?;
    if line.is_ascii() {
        return None;
    }
    let mut copy = head.to_vec();
    copy.iter_mut().take(line.len()).filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'x');
    Some(copy)
}

/// Index the fields and note what they say.
fn index(head: &[u8], raw: Bytes, headers: &[Header<'_>], most: usize) -> (Fields, Headers) {
    let mut seen = Fields::default();
    let mut fields = Vec::with_capacity(headers.len().min(most));
    for header in headers {
        let name = header.name.as_bytes();
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => seen.content_length(header.value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => seen.transfer_encoding(header.value),
            11 if name.eq_ignore_ascii_case(b"traceparent") => {
                seen.traceparents += 1;
                seen.traceparent = header.value.try_into().ok();
            }
            12 if name.eq_ignore_ascii_case(b"content-type") => {
                let kind = header.value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
                seen.otlp = kind.eq_ignore_ascii_case(b"application/x-protobuf")
                    || kind.eq_ignore_ascii_case(b"application/json");
            }
            _ => {}
        }
        if fields.len() < most {
            fields.push(Field { name: range_in(head, name), value: range_in(head, header.value) });
        }
    }
    let mut kept = Headers::new(raw, fields.into_boxed_slice());
    kept.truncated = headers.len() > most;
    (seen, kept)
}

impl Fields {
    /// RFC 9112 section 6.3 and RFC 9110 section 8.6: equal values may be repeated, anything else is an error.
    fn content_length(&mut self, value: &[u8]) {
        for member in value.split(|&byte| byte == b',') {
            let length = decimal(member.trim_ascii());
            match (length, self.length) {
                (Some(new), None) => self.length = Some(new),
                (Some(new), Some(old)) if new == old => {}
                _ => self.length_conflict = true,
            }
        }
    }

    /// Only the last coding decides on framing (RFC 9112 section 6.3).
    fn transfer_encoding(&mut self, value: &[u8]) {
        for coding in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|coding| !coding.is_empty()) {
            self.coded = true;
            self.chunked = coding.eq_ignore_ascii_case(b"chunked");
        }
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Where `part`, a slice of `whole`, lies in it.
fn range_in(whole: &[u8], part: &[u8]) -> (u32, u32) {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    let end = start.wrapping_add(part.len());
    // An empty value may point to static memory.
    if end > whole.len() || start > end { (0, 0) } else { (start as u32, end as u32) }
}

/// Common methods need no share of the head.
fn method_bytes(method: &str, head: &[u8], raw: &Bytes) -> Bytes {
    match method {
        "GET" => Bytes::from_static(b"GET"),
        "POST" => Bytes::from_static(b"POST"),
        "PUT" => Bytes::from_static(b"PUT"),
        "DELETE" => Bytes::from_static(b"DELETE"),
        "HEAD" => Bytes::from_static(b"HEAD"),
        "PATCH" => Bytes::from_static(b"PATCH"),
        "OPTIONS" => Bytes::from_static(b"OPTIONS"),
        _ => {
            let (start, end) = range_in(head, method.as_bytes());
            raw.slice(start as usize..end as usize)
        }
    }
}

pub(super) fn method_kind(method: &[u8]) -> Method {
    match method {
        b"HEAD" => Method::Head,
        b"CONNECT" => Method::Connect,
        b"GET" | b"DELETE" | b"OPTIONS" | b"TRACE" => Method::Get,
        _ => Method::Other,
    }
}

fn path(target: &[u8]) -> &[u8] {
    target.split(|&byte| byte == b'?').next().unwrap_or_default()
}

fn version_of(minor: u8) -> Version {
    if minor == 0 { Version::Http10 } else { Version::Http11 }
}

fn lines(bytes: &[u8]) -> usize {
    let end = head_end(bytes, 0).unwrap_or(bytes.len());
    memchr::memchr_iter(b'\n', bytes.get(..end).unwrap_or_default()).count()
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
