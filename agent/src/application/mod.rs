//! What a finished exchange is above HTTP: one file a protocol, and one line in the registry. Reads heads, counts and
//! kept prefixes of content; a name leaves only as an identifier, for a value could be anybody's.

mod graphql;
mod grpc;
mod json;
mod jsonrpc;
mod mcp;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

use crate::coding;
use crate::model::{Application, Body, Exchange, Headers, Request, Response};
use crate::protocol::content::{is_json, media_type};

/// The registry. Each leaves early where the content type is none of its own.
const PROTOCOLS: [fn(&Call<'_>) -> Option<Application>; 3] = [grpc::recognise, jsonrpc::recognise, graphql::recognise];

/// Longest name kept, bytes.
const NAME_BYTES: usize = 255;
/// Most bytes that a kept prefix is decoded to: what names a call is in the first few hundred.
const DECODED_BYTES: usize = 16 * 1024;

/// What a protocol is asked about.
struct Call<'a> {
    request: &'a Request,
    response: Option<&'a Response>,
    /// Media type of the request's content.
    kind: Option<&'a [u8]>,
    /// The request's content, once somebody asked.
    json: OnceCell<Option<Document<'a>>>,
}

/// The beginning of a message's content, its coding undone.
struct Document<'a> {
    bytes: Cow<'a, [u8]>,
    /// It is all of the content.
    whole: bool,
}

/// What `exchange` is above HTTP; `None` when it is nothing known.
pub fn recognise(exchange: &Exchange) -> Option<Application> {
    let request = exchange.request.as_ref()?;
    let kind = media_type(&request.headers);
    let call = Call { request, response: exchange.response.as_ref(), kind, json: OnceCell::new() };
    PROTOCOLS.iter().find_map(|protocol| protocol(&call))
}

impl<'a> Call<'a> {
    /// The request's content, where it is JSON and was kept.
    fn json(&self) -> Option<&Document<'a>> {
        self.kind.filter(|kind| is_json(kind))?;
        self.json.get_or_init(|| Document::of(&self.request.headers, &self.request.body)).as_ref()
    }
}

impl<'a> Document<'a> {
    fn of(headers: &'a Headers, body: &'a Body) -> Option<Self> {
        if body.prefix.is_empty() {
            return None;
        }
        let kept = body.size == Some(body.prefix.len() as u64);
        let codings = headers.get_all("content-encoding");
        let bytes = coding::decode(codings, &body.prefix, DECODED_BYTES)?;
        let whole = kept && bytes.len() < DECODED_BYTES;
        Some(Self { bytes, whole })
    }

    /// It has these bytes somewhere: what most documents are not of a protocol by.
    fn has(&self, bytes: &str) -> bool {
        memchr::memmem::find(&self.bytes, bytes.as_bytes()).is_some()
    }
}

/// The path of a request-target in any form, without the query.
fn path(target: &[u8]) -> &[u8] {
    target.split(|&byte| byte == b'?').next().unwrap_or_default()
}

/// A name that is an identifier: letters, digits and some of `more`, beginning with neither a digit nor a dash.
fn identifier(name: &[u8], more: &[u8]) -> Option<Arc<str>> {
    let first = name.first()?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || more.contains(byte);
    if first.is_ascii_digit() || *first == b'-' || name.len() > NAME_BYTES || !name.iter().all(plain) {
        return None;
    }
    str::from_utf8(name).ok().map(Arc::from)
}

#[cfg(test)]
mod tests;
