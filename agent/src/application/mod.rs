//! What a finished exchange is above HTTP: one file a protocol, and one line in the registry. Reads heads, counts and
//! kept prefixes of content; a name leaves only as an identifier, for a value could be anybody's.

mod grpc;

use std::sync::Arc;

use crate::model::{Application, Exchange, Headers, Request};

/// The registry. Each leaves early where the content type is none of its own.
const PROTOCOLS: [fn(&Exchange, &Request) -> Option<Application>; 1] = [grpc::recognise];

/// Longest name kept, bytes.
const NAME_BYTES: usize = 255;

/// What `exchange` is above HTTP; `None` when it is nothing known.
pub fn recognise(exchange: &Exchange) -> Option<Application> {
    let request = exchange.request.as_ref()?;
    PROTOCOLS.iter().find_map(|protocol| protocol(exchange, request))
}

/// The media type of the content, without parameters.
fn media_type(headers: &Headers) -> Option<&[u8]> {
    let value = headers.get("content-type")?;
    Some(value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii())
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
