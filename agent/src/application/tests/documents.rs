//! What is told by content: GraphQL, JSON-RPC and the Model Context Protocol; what is not taken for them, and what never
//! comes out. Tests only.

use proptest::prelude::*;

use super::super::*;
use crate::model::{Batch, Body, Graphql, JsonRpc, OperationType, fixture};

const JSON: &str = "application/json";

/// A whole body, or the beginning of one.
fn body(content: &[u8], whole: bool) -> Body {
    let seen = content.len() as u64 + u64::from(!whole);
    Body { size: Some(seen), seen, prefix: content.to_vec(), complete: true, messages: None }
}

fn call(kind: &str, content: &[u8], whole: bool) -> Exchange {
    let mut exchange = fixture::exchange("/api");
    let request = exchange.request.as_mut().unwrap();
    request.headers = fixture::headers(&[("content-type", kind.as_bytes())]);
    request.body = body(content, whole);
    exchange
}

fn answered(mut exchange: Exchange, kind: &str, content: &str) -> Exchange {
    let response = exchange.response.as_mut().unwrap();
    response.headers = fixture::headers(&[("content-type", kind.as_bytes())]);
    response.body = body(content.as_bytes(), true);
    exchange
}

fn get(target: &str) -> Exchange {
    let mut exchange = fixture::exchange(target);
    exchange.request.as_mut().unwrap().method = "GET".into();
    exchange
}

fn graphql(exchange: &Exchange) -> Option<Graphql> {
    match recognise(exchange)? {
        Application::Graphql(graphql) => Some(graphql),
        other => panic!("{other:?}"),
    }
}

fn jsonrpc(exchange: &Exchange) -> Option<JsonRpc> {
    match recognise(exchange)? {
        Application::JsonRpc(call) => Some(call),
        other => panic!("{other:?}"),
    }
}

/// Type and name, as `query Basket`.
fn operation(found: Option<Graphql>) -> Option<String> {
    let found = found?;
    let kind = found.operation_type.map_or("?", OperationType::name);
    Some(format!("{kind} {}", found.operation_name.as_deref().unwrap_or("?")))
}

#[test]
fn the_operation_of_a_document_is_the_named_one_or_the_only_one() {
    for (document, name, expected) in [
        ("query Basket { items }", None, Some("query Basket")),
        ("{ items }", None, Some("query ?")),
        ("{...Items}", None, Some("query ?")),
        ("mutation { add(id: 7) { id } }", None, Some("mutation ?")),
        (
            "subscription Prices($ids: [ID!]! = [1, 2]) @live(if: true) { price(of: $ids) { now } }",
            None,
            Some("subscription Prices"),
        ),
        ("\u{feff} # a comment { \n ,, query\nBasket{items}", None, Some("query Basket")),
        ("query A { a } mutation B { b }", Some("B"), Some("mutation B")),
        ("query A { a } mutation B { b }", None, Some("? ?")),
        ("query A { a } mutation B { b }", Some("C"), Some("? C")),
        ("fragment F on Item @x { id } query A { ...F }", None, Some("query A")),
        ("query A { a(text: \"} \\\" {\", more: \"\"\" } \\\"\"\" \" \"\"\") { b } }", None, Some("query A")),
        (
            "query A { a(filter: {name: {eq: \"x\"}, ids: [1, -2.5e3], on: $on}) @skip(if: false) { b } }",
            None,
            Some("query A"),
        ),
        ("\"What it does\" query A { a }", None, Some("query A")),
        ("query A { a }", Some("not a name!"), Some("? ?")),
        // Other languages, and what is none.
        ("SELECT * FROM orders", None, None),
        ("{app=\"shop\"}", None, None),
        ("{\"match\": {}}", None, None),
        ("sum(rate(x[5m]))", None, None),
        ("from(bucket: \"b\") |> range(start: -1h)", None, None),
        ("query", None, None),
        ("query for shoes", None, None),
        ("mutation rates in mice", None, None),
        ("{ items", None, None),
        ("{}", None, None),
        ("{ a } }", None, None),
        ("{ a = b }", None, None),
        ("type Query { a: Int }", None, None),
        ("MATCH (n) RETURN n", None, None),
        ("query A { a(b: \"c) }", None, None),
        ("", None, None),
    ] {
        let name = name.map(|name: &str| serde_json::json!(name));
        let posted = serde_json::json!({ "operationName": name, "query": document, "variables": null });
        let found = operation(graphql(&call(JSON, posted.to_string().as_bytes(), true)));
        assert_eq!(found.as_deref(), expected, "{document} {name:?}");
        if name.is_none() {
            let bare = operation(graphql(&call("application/graphql; charset=utf-8", document.as_bytes(), true)));
            assert_eq!(bare.as_deref(), expected, "{document}");
        }
    }
}

#[test]
fn a_document_tells_what_it_does_however_early_it_is_cut() {
    let document = "query Basket($id: ID! = \"7\") @live { basket(id: $id, text: \"a b\") { items { ...F } } } fragment F on Item { id }";
    for cut in 0..document.len() {
        let start = format!("{{\"query\":\"{}", document.get(..cut).unwrap().replace('"', "\\\""));
        let found = operation(graphql(&call(JSON, start.as_bytes(), false)));
        let expected = match cut {
            0..6 => None,
            // `query` may be the beginning of a longer word.
            6..=12 => Some("query ?"),
            _ => Some("query Basket"),
        };
        assert_eq!(found.as_deref(), expected, "{start}");
    }
}

#[test]
fn a_request_of_graphql_may_keep_its_document_elsewhere() {
    let hash = r#"{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"x"}},"operationName":"Basket"}"#;
    assert_eq!(operation(graphql(&call(JSON, hash.as_bytes(), true))).as_deref(), Some("? Basket"));
    // The document comes behind variables that are longer than what was kept.
    let cut = r#"{"operationName":"Basket","variables":{"text":"aaaaaaaa"#;
    assert_eq!(operation(graphql(&call(JSON, cut.as_bytes(), false))).as_deref(), Some("? Basket"));
    for other in
        [r#"{"operationName":"Basket","variables":{}}"#, r#"{"query":{"match":{}}}"#, r#"{"query":7}"#, r#"["query"]"#]
    {
        assert_eq!(recognise(&call(JSON, other.as_bytes(), true)), None, "{other}");
    }
}

#[test]
fn a_get_tells_its_operation_in_the_query() {
    for (target, expected) in [
        ("/graphql?query=query%20Basket%20%7B%20items%20%7D&variables=%7B%7D", Some("query Basket")),
        ("/graphql?query=%7Bitems%7D", Some("query ?")),
        ("/graphql?query=query+A+{a}+query+B+{b}&operationName=B", Some("query B")),
        ("/g?extensions=%7B%22persistedQuery%22%3A%7B%7D%7D&operationName=Basket", Some("? Basket")),
        ("/search?query=shoes", None),
        ("/search?query=query", None),
        ("/api/v1/query?query=%7Bjob%3D%22x%22%7D", None),
        ("/graphql?query=", None),
        ("/graphql", None),
        ("/graphql?query=%7Bitems%", None),
    ] {
        assert_eq!(operation(graphql(&get(target))).as_deref(), expected, "{target}");
    }
}

#[test]
fn batches_of_graphql_have_a_size_that_is_a_lower_bound_where_they_are_cut() {
    let one = r#"{"query":"query A { a }"}"#;
    for (content, whole, batch) in [
        (format!("[{one},{one}]"), true, Some((2, true))),
        (format!("[{one}, {one}, {one}"), false, Some((3, false))),
        (format!("[{one},{{\"query\":\"que"), false, Some((2, false))),
        (format!("[{one},{{\"x\":1}}]"), true, None),
        ("[]".to_owned(), true, None),
    ] {
        let found = graphql(&call(JSON, content.as_bytes(), whole)).map(|found| found.batch.unwrap());
        assert_eq!(found, batch.map(|(size, exact)| Batch { size, exact }), "{content}");
    }
}

#[test]
fn methods_and_errors_of_json_rpc_are_told_and_nothing_else() {
    let ok = r#"{"jsonrpc":"2.0","id":1,"result":{"code":5}}"#;
    let failed = r#"{"jsonrpc":"2.0","id":1,"error":{"message":"no","code":-32601,"data":{"code":7}}}"#;
    for (request, response, method, notification, error_code) in [
        (r#"{"jsonrpc":"2.0","method":"orders.sum","id":1}"#, ok, Some("orders.sum"), false, None),
        (
            r#" { "method" : "tools\/x" , "jsonrpc" : "2.0", "id" : null }"#,
            failed,
            Some("tools/x"),
            false,
            Some(-32601),
        ),
        (
            r#"{"jsonrpc":"2.0","method":"$/progress","params":{"jsonrpc":"1","method":"x","id":2}}"#,
            "",
            Some("$/progress"),
            true,
            None,
        ),
        (r#"{"jsonrpc":"2.0","method":"\u0061b","id":1}"#, "[]", Some("ab"), false, None),
        (r#"{"jsonrpc":"2.0","method":"ann@example.org","id":1}"#, "nothing", None, false, None),
        (r#"{"jsonrpc":"2.0","method":"a b","id":1}"#, "{", None, false, None),
        (r#"{"jsonrpc":"2.0","method":7,"id":1}"#, r#"{"error":{"code":"7"}}"#, None, false, None),
        (r#"{"jsonrpc":"2.0","method":"a","id":1}"#, r#"{"error":{"code":1.5}}"#, Some("a"), false, None),
        // An answer to the server's own question.
        (r#"{"jsonrpc":"2.0","id":"a","result":{}}"#, "", None, false, None),
    ] {
        let found = jsonrpc(&answered(call(JSON, request.as_bytes(), true), JSON, response)).unwrap();
        let told = (found.method.as_deref(), found.notification, found.error_code, found.batch, found.mcp);
        assert_eq!(told, (method, notification, error_code, None, None), "{request}");
    }
    for other in [
        r#"{"jsonrpc":"1.0","method":"a","id":1}"#,
        r#"{"method":"a","params":{"jsonrpc":"2.0"}}"#,
        r#"{"text":"jsonrpc"}"#,
        r#"[{"method":"a"},{"jsonrpc":"2.0"}]"#,
        r#"["jsonrpc"]"#,
        "jsonrpc",
        r#""jsonrpc""#,
    ] {
        assert_eq!(recognise(&call(JSON, other.as_bytes(), true)), None, "{other}");
    }
}

#[test]
fn the_answer_of_json_rpc_may_be_an_event() {
    let request = call(JSON, br#"{"jsonrpc":"2.0","method":"a","id":1}"#, true);
    let events = "event: message\r\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\r\n\r\n\
                  data:{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-3}}\n\n";
    assert_eq!(jsonrpc(&answered(request.clone(), "text/event-stream", events)).unwrap().error_code, Some(-3));
    assert_eq!(jsonrpc(&answered(request, "text/html", events)).unwrap().error_code, None);
}

#[test]
fn a_batch_of_json_rpc_has_a_method_where_all_of_it_calls_the_same() {
    let (a, b) = (r#"{"jsonrpc":"2.0","method":"a","id":1}"#, r#"{"id":2,"method":"b","jsonrpc":"2.0"}"#);
    for (content, whole, method, size, exact) in [
        (format!("[{a},{a}]"), true, Some("a"), 2, true),
        (format!("[{a},{b},{a}]"), true, None, 3, true),
        (format!("[{a},{a}"), false, None, 2, false),
        (format!("[{a},{{\"id\":7,\"met"), false, None, 2, false),
    ] {
        let found = jsonrpc(&call(JSON, content.as_bytes(), whole)).unwrap();
        assert_eq!((found.method.as_deref(), found.batch), (method, Some(Batch { size, exact })), "{content}");
    }
}

#[test]
fn messages_of_mcp_are_told_by_their_method_or_head() {
    let posted = |fields: &[(&str, &[u8])], content: &str| {
        let mut exchange = call(JSON, content.as_bytes(), true);
        let all = [&[("content-type", JSON.as_bytes())], fields].concat();
        exchange.request.as_mut().unwrap().headers = fixture::headers(&all);
        jsonrpc(&exchange).unwrap().mcp.map(|mcp| {
            let [tool, version] = [mcp.tool, mcp.protocol_version].map(|text| text.unwrap_or_else(|| "-".into()));
            format!("{tool} {version}")
        })
    };
    let version = ("MCP-Protocol-Version", &b"2025-06-18"[..]);
    let with = |rest: &str| format!("{{\"jsonrpc\":\"2.0\",\"id\":1,{rest}}}");
    for (fields, rest, expected) in [
        (
            &[version][..],
            r#""method":"tools/call","params":{"name":"search","arguments":{"name":"x"}}"#,
            Some("search 2025-06-18"),
        ),
        (&[], r#""method":"tools/call","params":{"arguments":{"name":"x"},"name":"a.b-c/d"}"#, Some("a.b-c/d -")),
        (&[], r#""method":"tools/call","params":{"name":"two words"}"#, Some("- -")),
        (&[], r#""method":"tools/call","params":{"arguments":{"name":"x"}}"#, Some("- -")),
        (&[], r#""method":"prompts/get","params":{"name":"of-ann"}"#, Some("- -")),
        (&[], r#""method":"notifications/initialized""#, Some("- -")),
        (&[], r#""method":"initialize","params":{"protocolVersion":"2025-03-26"}"#, Some("- 2025-03-26")),
        (&[("mcp-protocol-version", b"x")], r#""method":"tools/list""#, Some("- -")),
        (&[("mcp-session-id", b"abc")], r#""method":"ping""#, Some("- -")),
        // A language server begins so, too.
        (&[], r#""method":"initialize","params":{"processId":1}"#, None),
        (&[], r#""method":"ping""#, None),
        (&[], r#""method":"tools/search""#, None),
    ] {
        assert_eq!(posted(fields, &with(rest)).as_deref(), expected, "{rest}");
    }
}

#[test]
fn a_tool_that_failed_is_told_by_its_result() {
    let request = call(JSON, br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"}}"#, true);
    for (result, failed) in [
        (r#"{"content":[{"text":"\"isError\":true"}],"isError":true}"#, true),
        (r#"{"content":[{"isError":true}],"isError":false}"#, false),
        (r#"{"content":[]}"#, false),
        ("7", false),
    ] {
        let response = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{result}}}");
        let found = jsonrpc(&answered(request.clone(), JSON, &response)).unwrap();
        assert_eq!(found.mcp.unwrap().tool_failed, failed, "{result}");
    }
}

#[test]
fn a_call_of_mcp_whose_content_was_not_kept_is_told_by_its_head() {
    let mut exchange = call(JSON, b"", true);
    let fields: [(&str, &[u8]); 4] = [
        ("content-type", JSON.as_bytes()),
        ("mcp-protocol-version", b"2026-07-28"),
        ("Mcp-Method", b"tools/call"),
        ("Mcp-Name", b"search"),
    ];
    exchange.request.as_mut().unwrap().headers = fixture::headers(&fields);
    let found = jsonrpc(&exchange).unwrap();
    assert_eq!(found.method.as_deref(), Some("tools/call"));
    assert_eq!(found.mcp.unwrap().tool.as_deref(), Some("search"));
    exchange.request.as_mut().unwrap().headers = fixture::headers(fields.get(..1).unwrap());
    assert_eq!(recognise(&exchange), None);
}

#[test]
fn a_method_is_never_the_beginning_of_one() {
    let content = r#"{"jsonrpc":"2.0","id":1,"method":"orders.sum"}"#;
    for cut in 0..content.len() {
        let method = jsonrpc(&call(JSON, content.get(..cut).unwrap().as_bytes(), false)).and_then(|found| found.method);
        assert!(method.is_none_or(|method| &*method == "orders.sum"), "{cut}");
    }
}

#[test]
fn coded_content_is_read_through_its_coding() {
    // {"jsonrpc":"2.0","method":"coded.gzip","id":1}
    let coded: &[u8] = include_bytes!("call.json.gz");
    let mut exchange = call(JSON, coded, true);
    let fields: [(&str, &[u8]); 2] = [("content-type", JSON.as_bytes()), ("content-encoding", b"gzip")];
    exchange.request.as_mut().unwrap().headers = fixture::headers(&fields);
    assert_eq!(jsonrpc(&exchange).unwrap().method.as_deref(), Some("coded.gzip"));
    exchange.request.as_mut().unwrap().headers =
        fixture::headers(&[("content-type", JSON.as_bytes()), ("content-encoding", b"br")]);
    assert_eq!(recognise(&exchange), None);
}

#[test]
fn nested_and_deep_documents_take_no_stack() {
    for content in [
        "[".repeat(100_000),
        "{\"a\":".repeat(50_000),
        format!("{{\"jsonrpc\":\"2.0\",\"params\":{}", "[{".repeat(50_000)),
    ] {
        recognise(&call(JSON, content.as_bytes(), false));
    }
    let document = format!("{{\"query\":\"query A {}", "{a(".repeat(50_000));
    recognise(&call(JSON, document.as_bytes(), false));
}

/// Pieces that documents of all three are made of, and some that they are not.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u00e4",
        "\"jsonrpc\":\"2.0\"",
        "\"method\":",
        "\"tools/call\"",
        "\"id\":1",
        "\"params\":{\"name\":",
        "\"query\":",
        "\"query A { a }\"",
        "\"operationName\":",
        "query",
        "{ a }",
        "fragment F on",
        "\"\"\"",
        "#",
        "...",
        "-1",
        "null",
        "true",
        "\"error\":{\"code\":-1}",
        "data:",
        "\n",
        " ",
        "\u{feff}",
        "secret",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn any_content_is_survived_and_names_are_bounded_identifiers(
        content in prop_oneof![pieces(), prop::collection::vec(any::<u8>(), 0..300)],
        answer in pieces(),
        kind in 0usize..3,
        whole: bool,
    ) {
        let kind = [JSON, "application/graphql", "text/event-stream"][kind];
        let text = String::from_utf8_lossy(&answer).into_owned();
        let exchange = answered(call(kind, &content, whole), ["text/event-stream", JSON][usize::from(whole)], &text);
        let names = match recognise(&exchange) {
            Some(Application::Graphql(found)) => vec![found.operation_name],
            Some(Application::JsonRpc(found)) => vec![found.method, found.mcp.and_then(|mcp| mcp.tool)],
            _ => Vec::new(),
        };
        for name in names.into_iter().flatten() {
            prop_assert!(name.len() <= 255 && name.chars().all(|char| char.is_ascii_alphanumeric() || "_./-:$".contains(char)));
        }
    }

    #[test]
    fn any_target_is_survived(target in "/[a-z]{0,3}\\?[a-zA-Z0-9=&%+{}\"()]{0,60}") {
        recognise(&get(&target));
        recognise(&get(&target.replace('?', "?query=")));
    }
}
