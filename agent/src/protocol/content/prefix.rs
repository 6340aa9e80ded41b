//! Of which content the first bytes are kept: what tells calls apart is in documents of JSON and GraphQL alone.

use crate::model::Headers;

/// First bytes to keep of a request with these fields, at most `most`.
pub fn request_prefix(headers: &Headers, most: usize) -> usize {
    if most > 0 && media_type(headers).is_some_and(|kind| is_json(kind) || is_graphql(kind)) { most } else { 0 }
}

/// First bytes to keep of a response with these fields to a request whose prefix is `request`: only JSON-RPC says in its
/// content what came of the call.
pub fn response_prefix(headers: &Headers, request: &[u8], most: usize) -> usize {
    let in_plain = matches!(request.trim_ascii_start().first(), Some(b'{' | b'['));
    if request.is_empty() || (in_plain && memchr::memmem::find(request, b"jsonrpc").is_none()) {
        return 0;
    }
    let told = media_type(headers).is_some_and(|kind| is_json(kind) || kind.eq_ignore_ascii_case(b"text/event-stream"));
    if told { most } else { 0 }
}

/// The media type of content, without parameters.
pub fn media_type(headers: &Headers) -> Option<&[u8]> {
    let value = headers.get("content-type")?;
    Some(value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii())
}

/// `application/json`, every type with that suffix (RFC 6839 section 3.1), and two that JSON-RPC is sent with.
pub fn is_json(kind: &[u8]) -> bool {
    const JSON: &[u8] = b"json";
    let start = kind.len().saturating_sub(JSON.len());
    kind.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(JSON))
        || kind.eq_ignore_ascii_case(b"application/json-rpc")
        || kind.eq_ignore_ascii_case(b"application/jsonrequest")
}

fn is_graphql(kind: &[u8]) -> bool {
    kind.eq_ignore_ascii_case(b"application/graphql")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture::headers;

    #[test]
    fn only_documents_that_may_tell_of_a_call_are_kept() {
        for (content_type, kept) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/graphql-response+json", true),
            ("application/graphql", true),
            ("application/json-rpc", true),
            ("application/jsonrequest", true),
            ("application/grpc+proto", false),
            ("application/jsonl", false),
            ("text/html", false),
            ("js", false),
            ("", false),
        ] {
            let fields = headers(&[("content-type", content_type.as_bytes())]);
            assert_eq!(request_prefix(&fields, 100), if kept { 100 } else { 0 }, "{content_type}");
            assert_eq!(request_prefix(&fields, 0), 0);
        }
        assert_eq!(request_prefix(&headers(&[]), 100), 0);
    }

    #[test]
    fn a_response_is_kept_where_its_request_may_be_json_rpc() {
        for (content_type, request, kept) in [
            ("application/json", &br#"{"jsonrpc":"2.0"}"#[..], true),
            ("text/event-stream", br#" [{"id":1,"jsonrpc":"2.0"}"#, true),
            ("text/html", br#"{"jsonrpc":"2.0"}"#, false),
            ("application/json", br#"{"query":"x"}"#, false),
            ("application/json", b"\x1f\x8b\x08", true),
            ("application/json", b"", false),
        ] {
            let fields = headers(&[("content-type", content_type.as_bytes())]);
            assert_eq!(response_prefix(&fields, request, 9), if kept { 9 } else { 0 }, "{content_type} {request:?}");
        }
    }
}
