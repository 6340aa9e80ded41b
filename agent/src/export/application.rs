//! Attributes of what rides on HTTP, for every exporter: one list, so that a JSON line and a span say the same.
//!
//! `rpc.system`, `rpc.service`, `rpc.method` and `rpc.grpc.status_code` are promised names; the conventions have newer
//! ones beside them since, which are given too where they do not contradict.

use std::borrow::Cow;

use opentelemetry_semantic_conventions::attribute as semconv;

use crate::model::{Application, Batch, CallReport, Graphql, Grpc, JsonRpc, OperationType, Streaming};

/// Deprecated in the conventions, promised by us.
const RPC_SYSTEM: &str = "rpc.system";
const RPC_SERVICE: &str = "rpc.service";
const RPC_GRPC_STATUS_CODE: &str = "rpc.grpc.status_code";
const RPC_JSONRPC_ERROR_CODE: &str = "rpc.jsonrpc.error_code";
/// Moved to the conventions for generative AI, by the same names.
const MCP_METHOD_NAME: &str = "mcp.method.name";
const MCP_PROTOCOL_VERSION: &str = "mcp.protocol.version";
const GEN_AI_OPERATION_NAME: &str = "gen_ai.operation.name";
const GEN_AI_TOOL_NAME: &str = "gen_ai.tool.name";

/// The value of an attribute.
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    Int(i64),
    Bool(bool),
}

/// Calls `each` with what is known, names first.
pub(super) fn attributes<'a, E>(
    report: &'a CallReport,
    mut each: impl FnMut(&'static str, Value<'a>) -> Result<(), E>,
) -> Result<(), E> {
    if let Some(application) = &report.application {
        if let Some(system) = application.rpc_system() {
            each(RPC_SYSTEM, text(system))?;
            each(semconv::RPC_SYSTEM_NAME, text(system))?;
        }
        match application {
            Application::Grpc(grpc) => of_grpc(grpc, &mut each)?,
            Application::Graphql(graphql) => of_graphql(graphql, &mut each)?,
            Application::JsonRpc(call) => of_jsonrpc(call, &mut each)?,
        }
    }
    let directions = [
        ("weir.request.messages", "weir.request.messages_exact", report.request_messages),
        ("weir.response.messages", "weir.response.messages_exact", report.response_messages),
    ];
    for (count, exact, messages) in directions {
        let Some(messages) = messages else { continue };
        each(count, int(messages.count))?;
        if !messages.exact {
            each(exact, Value::Bool(false))?;
        }
    }
    if let Some(messages) = report.response_messages.or(report.request_messages) {
        each("weir.messages.kind", text(messages.kind.name()))?;
    }
    // Who closed first said why; the other side repeats it.
    let mut codes = [report.request_messages, report.response_messages].into_iter().flatten();
    match codes.find_map(|messages| messages.close_code) {
        Some(code) => each("weir.websocket.close_code", int(u64::from(code))),
        None => Ok(()),
    }
}

fn of_grpc<'a, E>(grpc: &'a Grpc, each: &mut impl FnMut(&'static str, Value<'a>) -> Result<(), E>) -> Result<(), E> {
    known(RPC_SERVICE, grpc.service.as_deref(), each)?;
    known(semconv::RPC_METHOD, grpc.method.as_deref(), each)?;
    if let Some(status) = grpc.status {
        each(RPC_GRPC_STATUS_CODE, int(u64::from(status.0)))?;
        each(semconv::RPC_RESPONSE_STATUS_CODE, text(status.name()))?;
    }
    known("weir.rpc.streaming", grpc.streaming.map(Streaming::name), each)
}

fn of_graphql<'a, E>(
    graphql: &'a Graphql,
    each: &mut impl FnMut(&'static str, Value<'a>) -> Result<(), E>,
) -> Result<(), E> {
    known(semconv::GRAPHQL_OPERATION_NAME, graphql.operation_name.as_deref(), each)?;
    known(semconv::GRAPHQL_OPERATION_TYPE, graphql.operation_type.map(OperationType::name), each)?;
    of_batch("weir.graphql.batch_size", "weir.graphql.batch_size_exact", graphql.batch, each)
}

fn of_jsonrpc<'a, E>(
    call: &'a JsonRpc,
    each: &mut impl FnMut(&'static str, Value<'a>) -> Result<(), E>,
) -> Result<(), E> {
    known(semconv::RPC_METHOD, call.method.as_deref(), each)?;
    if let Some(code) = call.error_code {
        each(RPC_JSONRPC_ERROR_CODE, Value::Int(code))?;
        each(semconv::RPC_RESPONSE_STATUS_CODE, Value::Text(code.to_string().into()))?;
    }
    if call.notification {
        each("weir.jsonrpc.notification", Value::Bool(true))?;
    }
    of_batch("weir.jsonrpc.batch_size", "weir.jsonrpc.batch_size_exact", call.batch, each)?;
    let Some(mcp) = &call.mcp else { return Ok(()) };
    known(MCP_METHOD_NAME, call.method.as_deref(), each)?;
    known(MCP_PROTOCOL_VERSION, mcp.protocol_version.as_deref(), each)?;
    if call.method.as_deref() == Some("tools/call") {
        each(GEN_AI_OPERATION_NAME, text("execute_tool"))?;
        known(GEN_AI_TOOL_NAME, mcp.tool.as_deref(), each)?;
    }
    Ok(())
}

fn of_batch<'a, E>(
    size: &'static str,
    exact: &'static str,
    batch: Option<Batch>,
    each: &mut impl FnMut(&'static str, Value<'a>) -> Result<(), E>,
) -> Result<(), E> {
    let Some(batch) = batch else { return Ok(()) };
    each(size, int(u64::from(batch.size)))?;
    if batch.exact { Ok(()) } else { each(exact, Value::Bool(false)) }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn int<'a>(value: u64) -> Value<'a> {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn known<'a, E>(
    key: &'static str,
    value: Option<&'a str>,
    each: &mut impl FnMut(&'static str, Value<'a>) -> Result<(), E>,
) -> Result<(), E> {
    value.map_or(Ok(()), |value| each(key, text(value)))
}
