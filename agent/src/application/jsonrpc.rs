//! JSON-RPC 2.0: methods from the request, the error's code from the response. Parameters, results, ids and messages
//! are passed over. What is of the Model Context Protocol goes on to [`mcp`].

use std::borrow::Cow;
use std::sync::Arc;

use super::json::{self, Elements, Members, Text, Value};
use super::{Call, Document, identifier, mcp};
use crate::model::{Application, Batch, JsonRpc, Response};
use crate::protocol::content::{is_json, media_type};

/// Beside letters and digits: `orders.sum`, `tools/call`, `$/progress`, `x-y:z`.
const METHOD: &[u8] = b"./-:$";
/// Messages of one response of events that are looked at: progress comes before the answer.
const EVENTS: usize = 16;

/// One message, as far as it was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Message<'a> {
    is_rpc: bool,
    method: Option<Text<'a>>,
    pub(super) params: Option<Members<'a>>,
    has_id: bool,
    result: Option<Value<'a>>,
    error: Option<Value<'a>>,
    whole: bool,
}

pub(super) fn recognise(call: &Call<'_>) -> Option<Application> {
    let Some(document) = call.json().filter(|document| document.has("jsonrpc")) else {
        // What was not kept may be named by the head.
        return mcp::by_head(call).map(Application::JsonRpc);
    };
    let found = match json::value(&document.bytes)? {
        Value::Object(members) => single(call, members),
        Value::Array(elements) => batch(elements),
        _ => None,
    };
    found.map(Application::JsonRpc)
}

fn single(call: &Call<'_>, members: Members<'_>) -> Option<JsonRpc> {
    let message = Message::read(members);
    if !message.is_rpc {
        return None;
    }
    let said = message.method();
    let method = said.as_deref().and_then(name);
    let answer = call.response.and_then(document);
    let answer = answer.as_ref().and_then(|(document, kind)| answer_in(document, kind)).unwrap_or_default();
    Some(JsonRpc {
        notification: message.whole && !message.has_id && message.method.is_some(),
        error_code: answer.error.and_then(Value::object).and_then(|error| error.find("code")).and_then(Value::integer),
        batch: None,
        mcp: said.as_deref().and_then(|method| mcp::recognise(call, method, &message, answer.result)),
        method,
    })
}

fn batch(mut elements: Elements<'_>) -> Option<JsonRpc> {
    let mut size = 0_u32;
    let mut common: Option<Option<Arc<str>>> = None;
    while let Some(element) = elements.step() {
        let message = Message::read(element.object()?);
        if !message.is_rpc {
            // The last one of a cut document may have said it later; any other is something else.
            if message.whole {
                return None;
            }
            size = size.saturating_add(u32::from(size > 0));
            continue;
        }
        size = size.saturating_add(1);
        let method = message.method().as_deref().and_then(name);
        common = Some(match common {
            None => method,
            Some(so_far) => so_far.filter(|so_far| Some(so_far) == method.as_ref()),
        });
    }
    let exact = elements.is_whole();
    // What was not seen may have been another one.
    let method = common.flatten().filter(|_| exact);
    (size > 0).then(|| JsonRpc { method, batch: Some(Batch { size, exact }), ..JsonRpc::default() })
}

/// A method's name, if it is one.
pub(super) fn name(said: &[u8]) -> Option<Arc<str>> {
    identifier(said, METHOD)
}

/// The response's content, and its media type.
fn document(response: &Response) -> Option<(Document<'_>, &[u8])> {
    let kind = media_type(&response.headers)?;
    Some((Document::of(&response.headers, &response.body)?, kind))
}

/// The answer within a response: it is the document, or one event of several.
fn answer_in<'a>(document: &'a Document<'_>, kind: &[u8]) -> Option<Message<'a>> {
    let answer = |bytes: &'a [u8]| {
        let message = Message::read(json::value(bytes)?.object()?);
        (message.result.is_some() || message.error.is_some()).then_some(message)
    };
    if is_json(kind) {
        return answer(&document.bytes);
    }
    if !kind.eq_ignore_ascii_case(b"text/event-stream") {
        return None;
    }
    let lines = document.bytes.split(|&byte| matches!(byte, b'\n' | b'\r'));
    lines.filter_map(|line| line.strip_prefix(b"data:")).take(EVENTS).find_map(answer)
}

impl<'a> Message<'a> {
    fn read(mut members: Members<'a>) -> Self {
        let mut message = Self::default();
        while let Some((key, value)) = members.step() {
            let Cow::Borrowed(key) = key.unescaped() else { continue };
            match key {
                b"jsonrpc" => message.is_rpc = value.text().is_some_and(|version| version.is("2.0")),
                b"method" => message.method = value.text(),
                b"params" => message.params = value.object(),
                b"id" => message.has_id = true,
                b"result" => message.result = Some(value),
                b"error" => message.error = Some(value).filter(|error| !error.is("null")),
                _ => {}
            }
        }
        message.whole = members.is_whole();
        message
    }

    /// Never the beginning of a name alone.
    fn method(&self) -> Option<Cow<'a, [u8]>> {
        self.method.filter(|method| method.whole).map(|method| method.unescaped())
    }
}
