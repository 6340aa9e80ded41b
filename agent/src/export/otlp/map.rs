//! The mapping to OTLP: model in, wire types out. Pure. Names and rules are those of the semantic conventions for HTTP
//! whose version [`SCHEMA_URL`] says; what they do not know is under `weir.` and in `docs/registry.yaml`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    fmt::Write as _,
    sync::Arc,
};

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};
use opentelemetry_semantic_conventions::attribute as semconv;

use super::OtlpSettings;
use crate::{
    export::{application, tls},
    metrics::{Kind, ResourceKey, Snapshot, Value},
    model::{Application, CallReport, Role},
    redact::{OTHER_METHOD, is_error_status},
};

pub use opentelemetry_semantic_conventions::SCHEMA_URL;

/// Name of the instrumentation scope.
pub const SCOPE: &str = "weir";

/// W3C flags in the low byte, then "the parent's remoteness is known" and "the parent is remote" (trace.proto).
const FLAG_SAMPLED: u32 = 0x01;
const FLAG_HAS_IS_REMOTE: u32 = 0x100;
const FLAG_IS_REMOTE: u32 = 0x200;

/// Resource attributes of the agent that are true of every process on its machine.
const HOST_PREFIXES: [&str; 5] = ["host.", "cloud.", "deployment.environment", "k8s.cluster.", "k8s.node."];

/// One request for all reports, one resource for each workload.
pub fn spans(reports: &[&CallReport], host: &[KeyValue]) -> ExportTraceServiceRequest {
    let mut groups: Vec<(&CallReport, Vec<Span>)> = Vec::new();
    let mut index: HashMap<(usize, u32), usize> = HashMap::new();
    for report in reports {
        let at = *index.entry((Arc::as_ptr(&report.workload) as usize, pid(report))).or_insert_with(|| {
            groups.push((report, Vec::new()));
            groups.len() - 1
        });
        if let Some((_, spans)) = groups.get_mut(at) {
            spans.push(span(report));
        }
    }
    let resource_spans = groups
        .into_iter()
        .map(|(first, spans)| ResourceSpans {
            resource: Some(resource(first, host)),
            scope_spans: vec![ScopeSpans { scope: Some(scope()), spans, schema_url: SCHEMA_URL.to_owned() }],
            schema_url: SCHEMA_URL.to_owned(),
        })
        .collect();
    ExportTraceServiceRequest { resource_spans }
}

/// The span of one call.
pub fn span(report: &CallReport) -> Span {
    let trace = &report.trace;
    let mut flags = FLAG_HAS_IS_REMOTE | if trace.sampled == Some(false) { 0 } else { FLAG_SAMPLED };
    if trace.parent.is_some() && trace.parent_remote {
        flags |= FLAG_IS_REMOTE;
    }
    let failed =
        report.error_type.is_some() || report.status.is_some_and(|status| is_error_status(report.role, status));
    Span {
        trace_id: trace.trace_id.0.to_vec(),
        span_id: trace.span_id.0.to_vec(),
        parent_span_id: trace.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        flags,
        name: name(report),
        kind: match report.role {
            Role::Server => SpanKind::Server,
            Role::Client => SpanKind::Client,
        } as i32,
        start_time_unix_nano: report.start_unix_ns,
        end_time_unix_nano: report.start_unix_ns.saturating_add(report.duration_ns),
        attributes: attributes(report),
        // Left unset where nothing failed: "ok" is for the application to say. No description, `error.type` says it.
        status: failed.then(|| Status { message: String::new(), code: StatusCode::Error as i32 }),
        ..Span::default()
    }
}

/// `{method} {target}`, `{method}` without a low-cardinality target; `HTTP` for methods that are not known. Of gRPC,
/// `{service}/{method}`.
fn name(report: &CallReport) -> String {
    if let (Some(Application::Grpc(_)), Some(route)) = (&report.application, &report.route) {
        return route.trim_start_matches('/').to_owned();
    }
    let method = report.method.as_deref().filter(|method| *method != OTHER_METHOD).unwrap_or("HTTP");
    match &report.route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    }
}

fn attributes(report: &CallReport) -> Vec<KeyValue> {
    let mut list = List(Vec::with_capacity(28));
    list.text(semconv::HTTP_REQUEST_METHOD, report.method.as_deref());
    list.text(semconv::HTTP_REQUEST_METHOD_ORIGINAL, report.method_original.as_deref());
    list.text(semconv::URL_SCHEME, Some(report.scheme));
    match report.role {
        Role::Server => {
            list.text(semconv::URL_PATH, report.path.as_deref());
            list.text(semconv::URL_QUERY, report.query.as_deref());
            list.text(semconv::HTTP_ROUTE, report.route.as_deref());
            list.text(semconv::CLIENT_ADDRESS, report.client_address.as_deref());
            list.int(semconv::CLIENT_PORT, report.client_port);
        }
        Role::Client => {
            list.text(semconv::URL_FULL, full_url(report).as_deref());
            list.text(semconv::URL_TEMPLATE, report.route.as_deref());
        }
    }
    list.int(semconv::HTTP_RESPONSE_STATUS_CODE, report.status);
    list.long(semconv::HTTP_REQUEST_BODY_SIZE, report.request_body_size);
    list.long(semconv::HTTP_RESPONSE_BODY_SIZE, report.response_body_size);
    list.text(semconv::SERVER_ADDRESS, report.server_address.as_deref());
    list.int(semconv::SERVER_PORT, report.server_port);
    list.text(semconv::NETWORK_PEER_ADDRESS, report.peer_address.as_deref());
    list.int(semconv::NETWORK_PEER_PORT, report.peer_port);
    list.text(semconv::NETWORK_PROTOCOL_NAME, Some("http"));
    list.text(semconv::NETWORK_PROTOCOL_VERSION, Some(report.version.name()));
    list.text(semconv::NETWORK_TRANSPORT, Some(report.transport.name()));
    if let Some(handshake) = &report.tls {
        let each = |key, value| {
            let value = match value {
                tls::Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
                tls::Value::Bool(truth) => any_value::Value::BoolValue(truth),
            };
            list.add(Cow::Borrowed(key), value);
            Ok::<(), Infallible>(())
        };
        let Ok(()) = tls::attributes(handshake, report.version, each);
    }
    let each = |key, value| {
        let value = match value {
            application::Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
            application::Value::Int(int) => any_value::Value::IntValue(int),
            application::Value::Bool(truth) => any_value::Value::BoolValue(truth),
        };
        list.add(Cow::Borrowed(key), value);
        Ok::<(), Infallible>(())
    };
    let Ok(()) = application::attributes(report, each);
    list.text(semconv::USER_AGENT_ORIGINAL, report.user_agent.as_deref());
    list.text(semconv::ERROR_TYPE, report.error_type.as_deref());
    list.int(semconv::THREAD_ID, Some(report.tid));
    for group in report.headers.chunk_by(|(name, _), (next, _)| name == next) {
        if let Some((name, _)) = group.first() {
            let values = group.iter().map(|(_, value)| AnyValue { value: Some(text(value)) }).collect();
            list.add(Cow::Owned(name.to_string()), any_value::Value::ArrayValue(ArrayValue { values }));
        }
    }
    list.text("weir.capture.backend", Some(report.backend.name()));
    list.text("weir.auth.scheme", report.auth_scheme);
    list.text("weir.incomplete", report.incomplete.map(crate::model::Incomplete::name));
    list.long("weir.time_to_first_byte_ns", report.time_to_first_byte_ns);
    if report.workload.self_instrumented {
        list.add(Cow::Borrowed("weir.instrumented"), any_value::Value::BoolValue(true));
    }
    list.0
}

/// The absolute URL, rebuilt from parts that are redacted already. `None` when the host is not known.
fn full_url(report: &CallReport) -> Option<String> {
    let host = report.server_address.as_deref()?;
    let mut url = String::with_capacity(64);
    // Writing to a String cannot fail.
    if host.contains(':') && !host.starts_with("unix:") {
        write!(url, "{}://[{host}]", report.scheme).unwrap_or_default();
    } else {
        write!(url, "{}://{host}", report.scheme).unwrap_or_default();
    }
    let default_port = if report.scheme == "https" { 443 } else { 80 };
    if let Some(port) = report.server_port.filter(|port| *port != default_port) {
        write!(url, ":{port}").unwrap_or_default();
    }
    // The asterisk form means the server as a whole (RFC 9110 section 9.3.7).
    if let Some(path) = report.path.as_deref().filter(|path| *path != "*") {
        url.push_str(path);
    }
    if let Some(query) = &report.query {
        url.push('?');
        url.push_str(query);
    }
    Some(url)
}

/// The process behind a call.
fn resource(report: &CallReport, host: &[KeyValue]) -> Resource {
    let workload = &*report.workload;
    let mut list = service(&ResourceKey::of(report));
    list.int(semconv::PROCESS_PID, Some(pid(report)));
    list.text(semconv::PROCESS_EXECUTABLE_NAME, workload.executable_name.as_deref());
    list.text(semconv::PROCESS_EXECUTABLE_PATH, workload.executable_path.as_deref());
    list.text(semconv::K8S_POD_UID, workload.pod_uid.as_deref());
    list.0.extend_from_slice(host);
    Resource { attributes: list.0, ..Resource::default() }
}

fn service(key: &ResourceKey) -> List {
    let mut list = List(Vec::with_capacity(12));
    list.text(semconv::SERVICE_NAME, Some(&key.service_name));
    list.text(semconv::SERVICE_NAMESPACE, key.service_namespace.as_deref());
    list.text(semconv::CONTAINER_ID, key.container_id.as_deref());
    list
}

/// Those of the agent's resource attributes that every process here shares.
pub fn host_attributes(resource: &BTreeMap<String, String>) -> Vec<KeyValue> {
    let shared = |key: &str| HOST_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    let mut list = List(Vec::new());
    for (key, value) in resource.iter().filter(|(key, _)| shared(key)) {
        list.add(Cow::Owned(key.clone()), text(value));
    }
    list.0
}

/// The agent's own resource, for metrics about itself.
pub fn own_attributes(settings: &OtlpSettings) -> Vec<KeyValue> {
    let mut list = List(Vec::new());
    list.text(semconv::SERVICE_NAME, Some(&settings.service_name));
    list.text(semconv::SERVICE_VERSION, Some(env!("CARGO_PKG_VERSION")));
    for (key, value) in settings.resource.iter().filter(|(key, _)| *key != semconv::SERVICE_NAME) {
        list.add(Cow::Owned(key.clone()), text(value));
    }
    list.0
}

/// The request for a snapshot.
pub fn metrics(
    snapshot: &Snapshot,
    now_unix_ns: u64,
    host: &[KeyValue],
    own: &[KeyValue],
) -> ExportMetricsServiceRequest {
    let mut own_metrics = Vec::new();
    let mut services: Vec<(&ResourceKey, Vec<Metric>)> = Vec::new();
    let mut index: HashMap<&ResourceKey, usize> = HashMap::new();
    for metric in &snapshot.histograms {
        for group in metric.points.chunk_by(|point, next| point.resource == next.resource) {
            let data_points = group
                .iter()
                .map(|point| HistogramDataPoint {
                    attributes: point.attributes.iter().map(|(key, value)| key_value(key, value)).collect(),
                    start_time_unix_nano: point.start_unix_ns,
                    time_unix_nano: now_unix_ns,
                    count: point.count,
                    sum: Some(point.sum),
                    bucket_counts: point.buckets.clone(),
                    explicit_bounds: metric.bounds.to_vec(),
                    ..HistogramDataPoint::default()
                })
                .collect();
            let aggregation_temporality = AggregationTemporality::Cumulative as i32;
            let histogram = metric::Data::Histogram(Histogram { data_points, aggregation_temporality });
            let mapped = describe(metric.definition, histogram);
            match group.first().and_then(|point| point.resource.as_ref()) {
                None => own_metrics.push(mapped),
                Some(key) => {
                    let at = *index.entry(key).or_insert_with(|| {
                        services.push((key, Vec::new()));
                        services.len() - 1
                    });
                    if let Some((_, metrics)) = services.get_mut(at) {
                        metrics.push(mapped);
                    }
                }
            }
        }
    }
    for metric in &snapshot.scalars {
        let data_points = metric
            .points
            .iter()
            .map(|point| NumberDataPoint {
                attributes: metric
                    .definition
                    .labels
                    .iter()
                    .zip(&point.labels)
                    .map(|(key, value)| key_value(key, &Value::Text(Arc::clone(value))))
                    .collect(),
                start_time_unix_nano: if metric.definition.kind == Kind::Counter { snapshot.start_unix_ns } else { 0 },
                time_unix_nano: now_unix_ns,
                value: Some(number_data_point::Value::AsDouble(point.value)),
                ..NumberDataPoint::default()
            })
            .collect();
        let mapped = if metric.definition.kind == Kind::Counter {
            metric::Data::Sum(Sum {
                data_points,
                aggregation_temporality: AggregationTemporality::Cumulative as i32,
                is_monotonic: true,
            })
        } else {
            metric::Data::Gauge(Gauge { data_points })
        };
        own_metrics.push(describe(metric.definition, mapped));
    }
    let own_resource = Resource { attributes: own.to_vec(), ..Resource::default() };
    let resources = services.into_iter().map(|(key, metrics)| {
        let mut attributes = service(key).0;
        attributes.extend_from_slice(host);
        (Resource { attributes, ..Resource::default() }, metrics)
    });
    let resource_metrics = [(own_resource, own_metrics)]
        .into_iter()
        .chain(resources)
        .filter(|(_, metrics)| !metrics.is_empty())
        .map(|(resource, metrics)| ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: SCHEMA_URL.to_owned() }],
            schema_url: SCHEMA_URL.to_owned(),
        })
        .collect();
    ExportMetricsServiceRequest { resource_metrics }
}

fn describe(definition: &crate::metrics::Definition, data: metric::Data) -> Metric {
    Metric {
        name: definition.name.to_owned(),
        description: definition.description.to_owned(),
        unit: definition.unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: SCOPE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn pid(report: &CallReport) -> u32 {
    match report.workload.process.pid {
        0 => report.pid,
        pid => pid,
    }
}

fn text(value: &str) -> any_value::Value {
    any_value::Value::StringValue(value.to_owned())
}

fn key_value(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Text(value) => text(value),
        Value::Int(value) => any_value::Value::IntValue(*value),
        Value::Bool(value) => any_value::Value::BoolValue(*value),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Attributes; what is not known is left out.
struct List(Vec<KeyValue>);

impl List {
    fn add(&mut self, key: Cow<'static, str>, value: any_value::Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.into_owned(), value, ..KeyValue::default() });
    }

    fn text(&mut self, key: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.add(Cow::Borrowed(key), text(value));
        }
    }

    fn int(&mut self, key: &'static str, value: Option<impl Into<i64>>) {
        if let Some(value) = value {
            self.add(Cow::Borrowed(key), any_value::Value::IntValue(value.into()));
        }
    }

    fn long(&mut self, key: &'static str, value: Option<u64>) {
        self.int(key, value.and_then(|value| i64::try_from(value).ok()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        metrics::{MetricsConfig, Registry, names},
        model::{Incomplete, fixture},
    };

    const REGISTRY: &str = include_str!("../../../docs/registry.yaml");

    /// Attributes of the conventions that are emitted, by the constants of the crate, with their types there.
    const CONVENTIONS: [(&str, &str); 54] = [
        (semconv::CLIENT_ADDRESS, "string"),
        (semconv::CLIENT_PORT, "int"),
        (semconv::CONTAINER_ID, "string"),
        (semconv::ERROR_TYPE, "string"),
        (semconv::GRAPHQL_OPERATION_NAME, "string"),
        (semconv::GRAPHQL_OPERATION_TYPE, "string"),
        (semconv::HOST_NAME, "string"),
        (semconv::HTTP_REQUEST_BODY_SIZE, "int"),
        (semconv::HTTP_REQUEST_METHOD, "string"),
        (semconv::HTTP_REQUEST_METHOD_ORIGINAL, "string"),
        (semconv::HTTP_RESPONSE_BODY_SIZE, "int"),
        (semconv::HTTP_RESPONSE_STATUS_CODE, "int"),
        (semconv::HTTP_ROUTE, "string"),
        (semconv::K8S_POD_UID, "string"),
        (semconv::NETWORK_PEER_ADDRESS, "string"),
        (semconv::NETWORK_PEER_PORT, "int"),
        (semconv::NETWORK_PROTOCOL_NAME, "string"),
        (semconv::NETWORK_PROTOCOL_VERSION, "string"),
        (semconv::NETWORK_TRANSPORT, "string"),
        (semconv::PROCESS_EXECUTABLE_NAME, "string"),
        (semconv::PROCESS_EXECUTABLE_PATH, "string"),
        (semconv::PROCESS_PID, "int"),
        (semconv::RPC_METHOD, "string"),
        (semconv::RPC_RESPONSE_STATUS_CODE, "string"),
        (semconv::RPC_SYSTEM_NAME, "string"),
        (semconv::SERVER_ADDRESS, "string"),
        (semconv::SERVER_PORT, "int"),
        (semconv::SERVICE_NAME, "string"),
        (semconv::SERVICE_NAMESPACE, "string"),
        (semconv::SERVICE_VERSION, "string"),
        (semconv::THREAD_ID, "int"),
        (semconv::TLS_CIPHER, "string"),
        ("tls.client.server_name", "string"),
        (semconv::TLS_CURVE, "string"),
        (semconv::TLS_ESTABLISHED, "boolean"),
        (semconv::TLS_NEXT_PROTOCOL, "string"),
        (semconv::TLS_PROTOCOL_NAME, "string"),
        (semconv::TLS_PROTOCOL_VERSION, "string"),
        (semconv::TLS_RESUMED, "boolean"),
        (semconv::TLS_SERVER_ISSUER, "string"),
        (semconv::TLS_SERVER_NOT_AFTER, "string"),
        (semconv::TLS_SERVER_NOT_BEFORE, "string"),
        (semconv::TLS_SERVER_SUBJECT, "string"),
        (semconv::URL_FULL, "string"),
        (semconv::URL_PATH, "string"),
        (semconv::URL_QUERY, "string"),
        (semconv::URL_SCHEME, "string"),
        (semconv::URL_TEMPLATE, "string"),
        (semconv::USER_AGENT_ORIGINAL, "string"),
        ("http.request.header.x-id", "string[]"),
        ("http.response.header.x-kind", "string[]"),
        ("k8s.cluster.name", "string"),
        ("cloud.region", "string"),
        ("deployment.environment.name", "string"),
    ];

    fn type_of(attribute: &KeyValue) -> &'static str {
        use any_value::Value as V;
        match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(V::StringValue(_)) => "string",
            Some(V::IntValue(_)) => "int",
            Some(V::BoolValue(_)) => "boolean",
            Some(V::ArrayValue(list)) => {
                assert!(list.values.iter().all(|item| matches!(item.value, Some(V::StringValue(_)))));
                "string[]"
            }
            other => panic!("{}: {other:?}", attribute.key),
        }
    }

    fn show(attributes: &[KeyValue], key: &str) -> Option<String> {
        let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
        Some(match value {
            any_value::Value::StringValue(text) => text,
            any_value::Value::IntValue(number) => number.to_string(),
            other => format!("{other:?}"),
        })
    }

    fn settings() -> OtlpSettings {
        let resource = [
            ("host.name", "node-1"),
            ("k8s.cluster.name", "c"),
            ("cloud.region", "r"),
            ("deployment.environment.name", "test"),
        ];
        let resource = resource.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        OtlpSettings { resource, ..OtlpSettings::default() }
    }

    /// Every metric and every kind of point.
    fn snapshot() -> Snapshot {
        let registry = Registry::new(MetricsConfig { max_series: 2, body_sizes: true }, 5);
        for role in [Role::Server, Role::Client, Role::Server] {
            registry.record_call(&fixture::maximal(role));
        }
        registry.record_call(&fixture::minimal(Role::Server));
        for definition in names::ALL {
            let labels = vec!["x"; definition.labels.len()];
            match definition.kind {
                Kind::Counter
                    if ![&names::CALLS, &names::INCOMPLETE, &names::METRIC_OVERFLOW].contains(&definition) =>
                {
                    registry.set_counter(definition, &labels, 1.0);
                }
                Kind::Gauge if definition != &names::METRIC_SERIES => registry.set_gauge(definition, &labels, 0.5),
                _ => {}
            }
        }
        registry.snapshot()
    }

    /// The entries of one section of the registry: name to (key to value).
    fn registry(section: &str) -> Vec<(String, HashMap<String, String>)> {
        let mut entries: Vec<(String, HashMap<String, String>)> = Vec::new();
        let mut inside = false;
        for line in REGISTRY.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            if !line.starts_with(' ') {
                inside = line == format!("{section}:");
            } else if inside {
                let (key, value) = line.trim_start_matches([' ', '-']).split_once(": ").unwrap();
                let value = value.trim_matches('"').to_owned();
                if line.starts_with("  - ") {
                    assert_eq!(key, "name");
                    entries.push((value, HashMap::new()));
                } else {
                    entries.last_mut().unwrap().1.insert(key.to_owned(), value);
                }
            }
        }
        entries
    }

    #[test]
    fn every_attribute_is_of_the_conventions_or_in_the_registry_and_every_entry_is_emitted() {
        let host = host_attributes(&settings().resource);
        let mut reports = vec![fixture::maximal(Role::Server), fixture::maximal(Role::Client)];
        reports.extend(fixture::applications());
        let traces = spans(&reports.iter().collect::<Vec<_>>(), &host);
        let mut attributes: Vec<KeyValue> = Vec::new();
        for group in &traces.resource_spans {
            attributes.extend(group.resource.as_ref().unwrap().attributes.clone());
            attributes.extend(group.scope_spans[0].spans.iter().flat_map(|span| span.attributes.clone()));
        }
        let snapshot = snapshot();
        let request = metrics(&snapshot, 9, &host, &own_attributes(&settings()));
        for group in &request.resource_metrics {
            attributes.extend(group.resource.as_ref().unwrap().attributes.clone());
            for metric in &group.scope_metrics[0].metrics {
                if let Some(metric::Data::Histogram(histogram)) = &metric.data {
                    attributes.extend(histogram.data_points.iter().flat_map(|point| point.attributes.clone()));
                }
            }
        }
        let registered = registry("attributes");
        let known: HashMap<&str, &str> = CONVENTIONS
            .into_iter()
            .chain(registered.iter().map(|(name, entry)| (name.as_str(), entry["type"].as_str())))
            .collect();
        for attribute in &attributes {
            assert_eq!(known.get(attribute.key.as_str()), Some(&type_of(attribute)), "{}", attribute.key);
        }
        let emitted: BTreeSet<&str> = attributes.iter().map(|attribute| attribute.key.as_str()).collect();
        // Calls that go on are never exported.
        let of_the_api: BTreeSet<&str> = registered
            .iter()
            .filter(|(_, entry)| entry.get("scope").is_some_and(|scope| scope == "api"))
            .map(|(name, _)| name.as_str())
            .collect();
        let unsaid = |key: &&&str| !emitted.contains(**key) && !of_the_api.contains(**key);
        let missing: Vec<_> = known.keys().filter(unsaid).collect();
        assert!(missing.is_empty(), "never emitted: {missing:?}");
        for (name, entry) in &registered {
            assert!(entry.contains_key("description") && entry.contains_key("stability"), "{name}");
        }
        let text = REGISTRY.to_owned();
        for reason in Incomplete::ALL {
            assert!(text.contains(reason.name()), "{}", reason.name());
        }
    }

    #[test]
    fn the_metrics_are_those_of_the_registry_and_all_are_emitted() {
        let described: Vec<_> = registry("metrics")
            .into_iter()
            .map(|(name, entry)| {
                [&name, &entry["type"], &entry["unit"], &entry["labels"], &entry["description"]].map(String::clone)
            })
            .collect();
        let defined: Vec<_> = names::ALL
            .iter()
            .map(|definition| {
                let kind = format!("{:?}", definition.kind).to_lowercase();
                let labels = format!("[{}]", definition.labels.join(", "));
                [definition.name, &kind, definition.unit, &labels, definition.description].map(str::to_owned)
            })
            .collect();
        assert_eq!(described, defined);
        let snapshot = snapshot();
        let request = metrics(&snapshot, 9, &[], &own_attributes(&settings()));
        let emitted: Vec<&Metric> =
            request.resource_metrics.iter().flat_map(|group| &group.scope_metrics[0].metrics).collect();
        for definition in names::ALL {
            assert!(emitted.iter().any(|metric| metric.name == definition.name), "{}", definition.name);
        }
        let counted: usize = emitted
            .iter()
            .map(|metric| match metric.data.as_ref().unwrap() {
                metric::Data::Histogram(data) => {
                    assert_eq!(data.aggregation_temporality, AggregationTemporality::Cumulative as i32);
                    for point in &data.data_points {
                        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                        assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
                    }
                    data.data_points.len()
                }
                metric::Data::Sum(data) => {
                    assert!(data.is_monotonic && data.data_points.iter().all(|point| point.start_time_unix_nano == 5));
                    data.data_points.len()
                }
                metric::Data::Gauge(data) => data.data_points.len(),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(counted as u64, snapshot.points());
    }

    #[test]
    fn span_names_never_hold_a_path_or_an_unknown_method() {
        for (method, route, expected) in [
            (Some("GET"), Some("/users/{id}"), "GET /users/{id}"),
            (Some("GET"), None, "GET"),
            (Some("_OTHER"), Some("/x"), "HTTP /x"),
            (Some("_OTHER"), None, "HTTP"),
            (None, None, "HTTP"),
        ] {
            let report = CallReport {
                method: method.map(Arc::from),
                route: route.map(Arc::from),
                ..fixture::minimal(Role::Server)
            };
            assert_eq!(span(&report).name, expected);
        }
    }

    #[test]
    fn the_status_is_error_by_side_and_never_ok() {
        for (role, status, error, failed) in [
            (Role::Server, Some(200), None, false),
            (Role::Server, Some(404), None, false),
            (Role::Server, Some(503), Some("503"), true),
            (Role::Client, Some(301), None, false),
            (Role::Client, Some(404), Some("404"), true),
            (Role::Client, None, Some("timeout"), true),
            (Role::Server, Some(200), Some("connection_reset"), true),
        ] {
            let report = CallReport { status, error_type: error.map(Arc::from), ..fixture::minimal(role) };
            let span = span(&report);
            assert_eq!(span.status.map(|status| status.code), failed.then_some(StatusCode::Error as i32));
            assert_eq!(show(&span.attributes, "error.type").as_deref(), error);
        }
    }

    #[test]
    fn clients_carry_the_whole_url_and_servers_its_parts() {
        let server = span(&fixture::maximal(Role::Server));
        assert_eq!(server.kind, SpanKind::Server as i32);
        assert_eq!(show(&server.attributes, "url.path").as_deref(), Some("/users/42"));
        assert_eq!(show(&server.attributes, "url.full"), None);
        let client = span(&fixture::maximal(Role::Client));
        assert_eq!(show(&client.attributes, "url.path"), None);
        let mut report = fixture::maximal(Role::Client);
        for (scheme, host, port, path, query, url) in [
            ("http", "h", Some(8080), Some("/a"), Some("b=c"), "http://h:8080/a?b=c"),
            ("http", "h", Some(80), Some("/"), None, "http://h/"),
            ("https", "h", Some(443), Some("/"), None, "https://h/"),
            ("https", "h", Some(80), Some("/"), None, "https://h:80/"),
            ("http", "::1", Some(81), Some("/"), None, "http://[::1]:81/"),
            ("http", "h", None, Some("*"), None, "http://h"),
            ("http", "h", Some(443), None, None, "http://h:443"),
        ] {
            report.scheme = scheme;
            report.server_address = Some(Arc::from(host));
            report.server_port = port;
            report.path = path.map(Arc::from);
            report.query = query.map(Arc::from);
            assert_eq!(show(&span(&report).attributes, "url.full").as_deref(), Some(url));
        }
    }

    #[test]
    fn flags_say_whether_the_parent_is_remote_and_the_trace_sampled() {
        let mut report = fixture::maximal(Role::Server);
        assert_eq!(span(&report).flags, 0x301);
        report.trace.parent_remote = false;
        report.trace.sampled = Some(false);
        assert_eq!(span(&report).flags, 0x100);
        report.trace.parent = None;
        report.trace.sampled = None;
        let span = span(&report);
        assert_eq!((span.flags, span.parent_span_id.is_empty()), (0x101, true));
    }

    #[test]
    fn each_workload_is_one_resource_and_weirs_own_pod_is_not_on_it() {
        let mut own = settings();
        own.resource.insert("k8s.pod.name".to_owned(), "weir-x".to_owned());
        let first = fixture::maximal(Role::Server);
        let second = CallReport { workload: Arc::default(), ..fixture::maximal(Role::Client) };
        let request = spans(&[&first, &second, &first], &host_attributes(&own.resource));
        assert_eq!(
            request.resource_spans.iter().map(|group| group.scope_spans[0].spans.len()).collect::<Vec<_>>(),
            [2, 1]
        );
        let attributes = &request.resource_spans[0].resource.as_ref().unwrap().attributes;
        assert_eq!(show(attributes, "host.name").as_deref(), Some("node-1"));
        assert_eq!(show(attributes, "k8s.pod.name"), None);
        assert_eq!(request.resource_spans[0].schema_url, SCHEMA_URL);
        let unknown = &request.resource_spans[1].resource.as_ref().unwrap().attributes;
        assert_eq!(show(unknown, "service.name").as_deref(), Some("unknown_service"));
        assert_eq!(show(unknown, "process.pid").as_deref(), Some("42"));
    }

    proptest! {
        #[test]
        fn a_span_never_ends_before_it_starts(start in any::<u64>(), duration in any::<u64>()) {
            let report = CallReport { start_unix_ns: start, duration_ns: duration, ..fixture::minimal(Role::Server) };
            let span = span(&report);
            prop_assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        }
    }
}
