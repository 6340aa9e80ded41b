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
    let kept = |(start, end): (u32, u32)| raw.slice(start as usize..(end as usize).min(raw.len()).max(start as usize));
    let mut head = Head::default();
    let mut list = Vec::with_capacity(fields.fields.len().min(most));
    let mut truncated = fields.truncated;
    let mut traceparents = 0;
    let mut media = Media::Other;
    for Field { name, value, .. } in &fields.fields {
        let (Some(name), Some(value)) = (*name, *value) else {
            head.unknown = true;
            continue;
        };
        let key = slice(name);
        let mut name = name;
        match key {
            b":method" => head.method = Some(kept(value)),
            b":path" => head.path = Some(kept(value)),
            b":status" => head.status = std::str::from_utf8(slice(value)).ok().and_then(|text| text.parse().ok()),
            b":protocol" => head.websocket = slice(value) == b"websocket",
            b":authority" => {
                head.authority = Some(kept(value));
                name = (host, host + HOST.len() as u32);
            }
            b"traceparent" => {
                traceparents += 1;
                head.traceparent = slice(value).try_into().ok();
            }
            b"content-type" => media = Media::of(slice(value)),
            _ => {}
        }
        if key.first() == Some(&b':') {
            head.is_request |= key != b":status";
            if key != b":authority" {
                continue;
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
