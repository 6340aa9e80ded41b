//! Decoded header fields to the head of a message (RFC 9113 section 8.3).

use bytes::Bytes;

use super::hpack::{Field, Fields};
use crate::model::{self, Headers};

/// What a header section says. Fields that nobody who joined late can know are left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    pub(super) method: Option<Bytes>,
    pub(super) path: Option<Bytes>,
    pub(super) authority: Option<Bytes>,
    pub(super) status: Option<u16>,
    /// `:protocol` of an extended CONNECT (RFC 8441) is `websocket`.
    pub(super) websocket: bool,
    pub(super) headers: Headers,
    /// A pseudo-header field of requests was there.
    pub(super) is_request: bool,
    /// Some fields are not known: names, values or both.
    pub(super) unknown: bool,
    /// Pseudo-header fields where or as none may be (section 8.3).
    pub(super) malformed: bool,
    pub(super) traceparent: Option<[u8; 55]>,
    pub(super) exports_otlp: bool,
}

/// The name that `:authority` is kept under: it is what `Host` is to HTTP/1 (RFC 9113 section 8.3.1).
const HOST: &[u8] = b"host";

/// Turn the fields into a head; keeps at most `most` of them. Uses up the buffer.
pub(super) fn head(fields: &mut Fields, most: usize) -> Head {
    let host = fields.raw.len() as u32;
    fields.raw.extend_from_slice(HOST);
    let raw = Bytes::copy_from_slice(&fields.raw);
    let slice = |(start, end): (u32, u32)| raw.get(start as usize..end as usize).unwrap_or_default();
    let mut head = Head::default();
    let mut list = Vec::with_capacity(kept(&fields.fields, &raw).min(most));
    let mut truncated = fields.truncated;
    let (mut traceparents, mut in_list) = (0, false);
    let mut media = Media::Other;
    for Field { name, value, .. } in &fields.fields {
        let (Some(name), Some(value)) = (*name, *value) else {
            head.unknown = true;
            continue;
        };
        let mut name = name;
        match slice(name) {
            pseudo @ [b':', ..] => {
                head.malformed |= in_list;
                let text = slice(value);
                head.is_request |= pseudo != b":status";
                head.malformed |= match pseudo {
                    b":method" => once(&mut head.method, known_method(text).unwrap_or_else(|| raw.slice_ref(text))),
                    b":path" => once(&mut head.path, raw.slice_ref(text)),
                    b":status" => status(text).is_none_or(|status| once(&mut head.status, status)),
                    b":authority" => once(&mut head.authority, raw.slice_ref(text)),
                    b":protocol" => {
                        head.websocket = text == b"websocket";
                        false
                    }
                    b":scheme" => false,
                    _ => true,
                };
                if pseudo != b":authority" {
                    continue;
                }
                name = (host, host + HOST.len() as u32);
            }
            name => {
                in_list = true;
                if name == b"traceparent" {
                    traceparents += 1;
                    head.traceparent = slice(value).try_into().ok();
                } else if name == b"content-type" {
                    media = Media::of(slice(value));
                }
            }
        }
        if list.len() < most {
            list.push(model::Field { name, value });
        } else {
            truncated = true;
        }
    }
    head.traceparent = head.traceparent.filter(|_| traceparents == 1);
    head.exports_otlp =
        head.method.as_deref() == Some(b"POST") && head.path.as_deref().is_some_and(|path| media.takes_spans(path));
    head.headers = Headers::new(raw, list.into_boxed_slice());
    // What is not known may be any field: none can be said to be missing.
    head.headers.truncated = truncated || head.unknown;
    head
}

/// How many of the fields are no pseudo-header fields, but for the one that is kept.
fn kept(fields: &[Field], raw: &[u8]) -> usize {
    let is_kept = |field: &&Field| {
        let name = field.name.and_then(|(start, end)| raw.get(start as usize..end as usize));
        field.value.is_some() && name.is_some_and(|name| name.first() != Some(&b':') || name == b":authority")
    };
    fields.iter().filter(is_kept).count()
}

/// The first counts. True: there was one already.
fn once<T>(field: &mut Option<T>, value: T) -> bool {
    let is_second = field.is_some();
    field.get_or_insert(value);
    is_second
}

/// Spares most requests a reference to the buffer.
fn known_method(text: &[u8]) -> Option<Bytes> {
    Some(Bytes::from_static(match text {
        b"GET" => b"GET",
        b"POST" => b"POST",
        b"PUT" => b"PUT",
        b"DELETE" => b"DELETE",
        b"HEAD" => b"HEAD",
        _ => return None,
    }))
}

/// Three digits (RFC 9110 section 15).
fn status(text: &[u8]) -> Option<u16> {
    let &[a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] = text else { return None };
    Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
}

/// What content is, as far as exporters of spans go.
#[derive(Clone, Copy)]
enum Media {
    Grpc,
    Otlp,
    Other,
}

impl Media {
    fn of(value: &[u8]) -> Self {
        let kind = value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        if kind.starts_with(b"application/grpc") {
            Self::Grpc
        } else if kind.eq_ignore_ascii_case(b"application/x-protobuf") || kind.eq_ignore_ascii_case(b"application/json")
        {
            Self::Otlp
        } else {
            Self::Other
        }
    }

    fn takes_spans(self, path: &[u8]) -> bool {
        let path = path.split(|&byte| byte == b'?').next().unwrap_or_default();
        match self {
            Self::Grpc => path == b"/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Otlp => path.ends_with(b"/v1/traces"),
            Self::Other => false,
        }
    }
}
