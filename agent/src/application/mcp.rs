//! The Model Context Protocol: JSON-RPC whose methods call tools. The tool is named; its arguments and result, the
//! session, and the names of prompts and resources are passed over, for they may tell of people.

use std::sync::Arc;

use super::json::Value;
use super::jsonrpc::{self, Message};
use super::{Call, identifier};
use crate::model::{JsonRpc, Mcp};
use crate::protocol::content::is_json;

/// Methods that no other protocol has. Others are of it where the head says so.
const OWN: [&[u8]; 14] = [
    b"completion/complete",
    b"elicitation/create",
    b"logging/setLevel",
    b"notifications/",
    b"prompts/get",
    b"prompts/list",
    b"resources/list",
    b"resources/read",
    b"resources/subscribe",
    b"resources/templates/list",
    b"roots/list",
    b"sampling/createMessage",
    b"tools/call",
    b"tools/list",
];
const CALL: &[u8] = b"tools/call";
/// Beside letters and digits, in the name of a tool.
const TOOL: &[u8] = b"-./:";

/// What a message of this method is, beside JSON-RPC; `None` when it is of another protocol. `result` is what came back.
pub(super) fn recognise(
    call: &Call<'_>,
    method: &[u8],
    message: &Message<'_>,
    result: Option<Value<'_>>,
) -> Option<Mcp> {
    let by_head = version_by_head(call);
    let own = OWN.iter().any(|own| if own.ends_with(b"/") { method.starts_with(own) } else { method == *own });
    // Clients name their version here before any head does.
    let begun = || message.params?.find("protocolVersion")?.text().and_then(|said| version(&said.unescaped()));
    let begun = if method == b"initialize" { begun() } else { None };
    if !own && by_head.is_none() && begun.is_none() && call.request.headers.get("mcp-session-id").is_none() {
        return None;
    }
    let params = message.params.filter(|_| method == CALL);
    let tool = params.and_then(|params| params.find("name")?.text()).filter(|tool| tool.whole);
    let failed = || result?.object()?.find("isError").map(|failed| failed.is("true"));
    Some(Mcp {
        tool: tool.and_then(|tool| identifier(&tool.unescaped(), TOOL)),
        tool_failed: method == CALL && failed() == Some(true),
        protocol_version: by_head.or(begun),
    })
}

/// A call whose content was not kept, by what clients repeat of it in the head since version 2026-07-28.
pub(super) fn by_head(call: &Call<'_>) -> Option<JsonRpc> {
    call.kind.filter(|kind| is_json(kind))?;
    let said = call.request.headers.get("mcp-method")?;
    let protocol_version = Some(version_by_head(call)?);
    let tool = call.request.headers.get("mcp-name").filter(|_| said == CALL);
    let tool = tool.and_then(|tool| identifier(tool, TOOL));
    let mcp = Some(Mcp { tool, tool_failed: false, protocol_version });
    Some(JsonRpc { method: jsonrpc::name(said), mcp, ..JsonRpc::default() })
}

fn version_by_head(call: &Call<'_>) -> Option<Arc<str>> {
    version(call.request.headers.get("mcp-protocol-version")?)
}

/// Versions are dates.
fn version(said: &[u8]) -> Option<Arc<str>> {
    let is_date = said.len() == 10
        && said
            .iter()
            .enumerate()
            .all(|(at, byte)| if matches!(at, 4 | 7) { *byte == b'-' } else { byte.is_ascii_digit() });
    str::from_utf8(said).ok().filter(|_| is_date).map(Arc::from)
}
