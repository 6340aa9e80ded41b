//! Exchanges and reports for tests. Never part of the agent.

use std::sync::Arc;

use super::{
    Application, Backend, Batch, Body, CallReport, ConnId, Connection, Exchange, Field, Graphql, Grpc, GrpcStatus,
    Handshake, Headers, Incomplete, JsonRpc, Mcp, MessageKind, Messages, OperationType, Outcome, ProcessRef, Request,
    Response, Role, SocketAddress, SpanId, Streaming, Timestamp, Timing, TraceContext, TraceId, Transport, Version,
    Workload,
    tls::{Certificate, CipherSuite, Key, NamedGroup, Offer, TlsVersion},
};

/// A handshake of TLS 1.2 with every field set.
pub(crate) fn handshake() -> Handshake {
    Handshake {
        version: Some(TlsVersion::Tls12),
        cipher: Some(CipherSuite(0xC02F)),
        group: Some(NamedGroup(29)),
        alpn: Some("http/1.1".into()),
        established: true,
        offer: Some(Offer { server_name: Some("shop.example".into()), ..Offer::default() }),
        certificate: Some(Box::new(Certificate {
            not_before_unix_s: 1_700_000_000,
            not_after_unix_s: 1_731_536_000,
            subject: "CN=shop.example".into(),
            issuer: "CN=Weir Test CA,O=Weir Test".into(),
            names: Box::new(["shop.example".into()]),
            self_signed: false,
            key: Some(Key { kind: "RSA", bits: 2048 }),
            signature: Some("sha256WithRSAEncryption"),
            weak_signature: false,
        })),
        ..Handshake::default()
    }
}

/// Every field set.
pub(crate) fn maximal(role: Role) -> CallReport {
    let text = |text: &str| Some(Arc::from(text));
    CallReport {
        start_unix_ns: 1_700_000_000_123_456_789,
        duration_ns: 12_345_678,
        time_to_first_byte_ns: Some(4_000_000),
        role,
        trace: TraceContext {
            trace_id: TraceId([0xab; 16]),
            span_id: SpanId([0xcd; 8]),
            parent: Some(SpanId([0xef; 8])),
            parent_remote: true,
            sampled: Some(true),
        },
        method: text("_OTHER"),
        method_original: text("PROPFIND"),
        scheme: "https",
        path: text("/users/42"),
        query: text("q=a&sig=REDACTED"),
        route: text("/users/{id}"),
        status: Some(503),
        request_body_size: Some(3),
        response_body_size: Some(1_000),
        request_messages: Some(Messages { kind: MessageKind::Grpc, count: 2, exact: false, close_code: None }),
        response_messages: Some(Messages { kind: MessageKind::Grpc, count: 1, exact: false, close_code: Some(1001) }),
        application: Some(Application::Grpc(Grpc {
            service: text("shop.Cart"),
            method: text("AddItem"),
            status: Some(GrpcStatus(14)),
            streaming: Some(Streaming::Client),
        })),
        server_address: text("shop.example"),
        server_port: Some(8080),
        client_address: (role == Role::Server).then(|| Arc::from("10.0.0.7")),
        client_port: (role == Role::Server).then_some(50_000),
        peer_address: text("10.0.0.7"),
        peer_port: Some(50_000),
        version: Version::Http11,
        transport: Transport::Tcp,
        tls: Some(Arc::new(handshake())),
        user_agent: text("curl/8"),
        error_type: text("503"),
        pid: 42,
        tid: 43,
        workload: Arc::new(Workload {
            process: ProcessRef { pid: 42, start_ns: 9 },
            executable_name: text("nginx"),
            executable_path: text("/usr/sbin/nginx"),
            command: text("nginx"),
            container_id: text("0123456789abcdef"),
            pod_uid: text("6dd2c9fe-6a3d-4d3e-9d6c-5a5b7c9b2f10"),
            cgroup_path: text("/kubepods/x"),
            service_name: text("shop"),
            service_namespace: text("retail"),
            opted_out: false,
            self_instrumented: true,
        }),
        backend: Backend::SockTracepoint,
        incomplete: Some(Incomplete::RecordsLost),
        in_progress: false,
        headers: vec![
            (Arc::from("http.request.header.x-id"), Arc::from("7")),
            (Arc::from("http.request.header.x-id"), Arc::from("8")),
            (Arc::from("http.response.header.x-kind"), Arc::from("plain")),
        ],
        auth_scheme: Some("bearer"),
    }
}

/// Fields in order, names as given.
pub(crate) fn headers(fields: &[(&str, &[u8])]) -> Headers {
    let mut raw = Vec::new();
    let mut ranges = Vec::new();
    for (name, value) in fields {
        let start = raw.len() as u32;
        raw.extend_from_slice(name.as_bytes());
        let middle = raw.len() as u32;
        raw.extend_from_slice(value);
        ranges.push(Field { name: (start, middle), value: (middle, raw.len() as u32) });
    }
    Headers::new(raw.into(), ranges.into_boxed_slice())
}

/// A `POST` to a server at `target` that was answered with 200, without headers or content.
pub(crate) fn exchange(target: &str) -> Exchange {
    let connection = Connection {
        id: ConnId(1),
        transport: Transport::Tcp,
        local: SocketAddress::Unknown,
        remote: SocketAddress::Unknown,
        backend: Backend::SockTracepoint,
        tls: None,
        process: ProcessRef { pid: 7, start_ns: 100 },
        comm: "server".into(),
        cgroup: 0,
        uid: 0,
        netns: 0,
        first_seen: Timestamp(0),
    };
    Exchange {
        connection: Arc::new(connection),
        role: Role::Server,
        version: Version::Http2,
        request: Some(Request {
            method: "POST".into(),
            target: target.to_owned().into(),
            version: Version::Http2,
            headers: Headers::default(),
            body: Body::default(),
        }),
        response: Some(Response {
            status: 200,
            version: Version::Http2,
            headers: Headers::default(),
            trailers: None,
            body: Body::default(),
            interim: 0,
            first_byte: Timestamp(20),
        }),
        timing: Timing { start: Timestamp(10), request_end: None, response_start: None, end: Timestamp(30) },
        outcome: Outcome::Complete,
        incomplete: None,
        pid: 7,
        tid: 7,
        trace: minimal(Role::Server).trace,
    }
}

/// One call of every other kind of application, with all that is known of those.
pub(crate) fn applications() -> [CallReport; 2] {
    let text = |text: &str| Some(Arc::from(text));
    let graphql = Graphql {
        operation_name: text("Basket"),
        operation_type: Some(OperationType::Mutation),
        batch: Some(Batch { size: 2, exact: false }),
    };
    let tool = JsonRpc {
        method: text("tools/call"),
        notification: true,
        error_code: Some(-32_601),
        batch: Some(Batch { size: 3, exact: false }),
        mcp: Some(Mcp { tool: text("search"), tool_failed: true, protocol_version: text("2025-06-18") }),
    };
    [Application::Graphql(graphql), Application::JsonRpc(tool)]
        .map(|application| CallReport { application: Some(application), ..minimal(Role::Server) })
}

/// A plain `GET` that succeeded, with nothing known that need not be.
pub(crate) fn minimal(role: Role) -> CallReport {
    CallReport {
        time_to_first_byte_ns: None,
        trace: TraceContext {
            trace_id: TraceId([1; 16]),
            span_id: SpanId([2; 8]),
            parent: None,
            parent_remote: false,
            sampled: None,
        },
        method: Some(Arc::from("GET")),
        method_original: None,
        scheme: "http",
        path: Some(Arc::from("/")),
        query: None,
        route: None,
        status: Some(200),
        request_body_size: None,
        response_body_size: None,
        request_messages: None,
        response_messages: None,
        application: None,
        server_address: None,
        server_port: None,
        client_address: None,
        client_port: None,
        peer_address: None,
        peer_port: None,
        tls: None,
        user_agent: None,
        error_type: None,
        workload: Arc::default(),
        incomplete: None,
        headers: Vec::new(),
        auth_scheme: None,
        ..maximal(role)
    }
}
