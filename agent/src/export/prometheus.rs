//! The metrics as Prometheus text, format 0.0.4. Names map as OpenTelemetry's compatibility document says: dots become
//! underscores, the unit and `_total` are appended.

use std::fmt::{self, Write as _};

use crate::metrics::{Definition, HistogramPoint, Kind, Snapshot, Value};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every series as text. Series order is stable.
pub fn render(snapshot: &Snapshot) -> String {
    let mut text = String::with_capacity(64 * 1024);
    // Writing to a String cannot fail.
    write_all(&mut text, snapshot).unwrap_or_default();
    text
}

fn write_all(text: &mut String, snapshot: &Snapshot) -> fmt::Result {
    for metric in &snapshot.histograms {
        let name = metric_name(metric.definition);
        head(text, &name, metric.definition)?;
        for point in &metric.points {
            let labels = labels(point);
            let mut cumulative = 0;
            let bounds = metric.bounds.iter().copied().chain([f64::INFINITY]);
            for (bound, count) in bounds.zip(&point.buckets) {
                cumulative += count;
                let separator = if labels.is_empty() { "" } else { "," };
                writeln!(text, "{name}_bucket{{{labels}{separator}le=\"{}\"}} {cumulative}", Number(bound))?;
            }
            let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            writeln!(text, "{name}_sum{braces} {}", Number(point.sum))?;
            writeln!(text, "{name}_count{braces} {}", point.count)?;
        }
    }
    for metric in &snapshot.scalars {
        let name = metric_name(metric.definition);
        head(text, &name, metric.definition)?;
        for point in &metric.points {
            let mut labels = String::new();
            for (label, value) in metric.definition.labels.iter().zip(&point.labels) {
                push_label(&mut labels, label, value);
            }
            let braces = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            writeln!(text, "{name}{braces} {}", Number(point.value))?;
        }
    }
    Ok(())
}

fn head(text: &mut String, name: &str, definition: &Definition) -> fmt::Result {
    let kind = match definition.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let help = definition.description.replace('\\', "\\\\").replace('\n', "\\n");
    write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n")
}

/// `http.server.request.duration` in `s` is `http_server_request_duration_seconds`; Weir's own names are Prometheus
/// names already.
fn metric_name(definition: &Definition) -> String {
    let mut name = definition.name.replace('.', "_");
    if definition.kind == Kind::Histogram {
        name.push_str(match definition.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            _ => "",
        });
    }
    name
}

/// The attributes of a point, and the resource as labels, since a scrape has one target for all services.
fn labels(point: &HistogramPoint) -> String {
    let mut labels = String::new();
    if let Some(resource) = &point.resource {
        push_label(&mut labels, "service_name", &resource.service_name);
        if let Some(namespace) = &resource.service_namespace {
            push_label(&mut labels, "service_namespace", namespace);
        }
        if let Some(container) = &resource.container_id {
            push_label(&mut labels, "container_id", container);
        }
    }
    for (key, value) in &point.attributes {
        let name = key.replace('.', "_");
        match value {
            Value::Text(text) => push_label(&mut labels, &name, text),
            Value::Int(number) => push_label(&mut labels, &name, &number.to_string()),
            Value::Bool(flag) => push_label(&mut labels, &name, if *flag { "true" } else { "false" }),
        }
    }
    labels
}

fn push_label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    labels.push_str(name);
    labels.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            _ => labels.push(character),
        }
    }
    labels.push('"');
}

struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == f64::INFINITY { f.write_str("+Inf") } else { self.0.fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use super::*;
    use crate::{
        metrics::{MetricsConfig, Registry, names},
        model::{Role, fixture},
    };

    fn sample() -> String {
        let registry = Registry::new(MetricsConfig { max_series: 3, body_sizes: true }, 0);
        let mut odd = fixture::maximal(Role::Server);
        odd.route = Some(Arc::from("/a\\b\"c\nd"));
        for report in [odd, fixture::maximal(Role::Server), fixture::maximal(Role::Client)] {
            registry.record_call(&report);
        }
        registry.record_call(&fixture::minimal(Role::Client));
        registry.set_counter(&names::LOST, &["otlp", "queue_full"], 3.0);
        registry.set_gauge(&names::COVERAGE, &[], 0.995);
        registry.set_counter(&names::CPU, &[], 1.25);
        render(&registry.snapshot())
    }

    type Sample = (String, Vec<(String, String)>, f64);

    /// The sample lines as (name, labels, value); fails on anything format 0.0.4 does not allow.
    fn parse(text: &str) -> Vec<Sample> {
        let mut typed: HashMap<&str, &str> = HashMap::new();
        let mut samples = Vec::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind));
                assert!(typed.insert(name, kind).is_none(), "{name} twice");
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let name_end = line.find(['{', ' ']).unwrap();
            let (name, mut rest) = line.split_at(name_end);
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(typed.contains_key(base) || typed.contains_key(name), "{name} has no type");
            let mut labels: Vec<(String, String)> = Vec::new();
            if let Some(inside) = rest.strip_prefix('{') {
                rest = inside;
                while !rest.starts_with('}') {
                    rest = rest.strip_prefix(',').unwrap_or(rest);
                    let (label, tail) = rest.split_once("=\"").unwrap();
                    assert!(!labels.iter().any(|(known, _)| known == label), "{label} twice");
                    let mut value = String::new();
                    let mut chars = tail.char_indices();
                    let end = loop {
                        match chars.next().unwrap() {
                            (at, '"') => break at,
                            (_, '\\') => value.push(match chars.next().unwrap().1 {
                                'n' => '\n',
                                other => {
                                    assert!(['\\', '"'].contains(&other));
                                    other
                                }
                            }),
                            (_, other) => value.push(other),
                        }
                    };
                    labels.push((label.to_owned(), value));
                    rest = tail.get(end + 1..).unwrap();
                }
                rest = rest.strip_prefix('}').unwrap();
            }
            let value = rest.strip_prefix(' ').unwrap().parse().unwrap();
            samples.push((name.to_owned(), labels, value));
        }
        samples
    }

    #[test]
    fn the_text_is_valid_and_keeps_every_character_of_a_label() {
        let text = sample();
        let samples = parse(&text);
        let odd = samples.iter().any(|(_, labels, _)| {
            labels.contains(&("http_route".to_owned(), "/a\\b\"c\nd".to_owned()))
                && labels.contains(&("service_name".to_owned(), "shop".to_owned()))
        });
        assert!(odd, "{text}");
        assert!(text.contains("http_server_request_duration_seconds_bucket{service_name=\"shop\""));
        assert!(text.contains("http_client_response_body_size_bytes_sum"));
        assert!(text.contains("weir_lost_total{stage=\"otlp\",reason=\"queue_full\"} 3\n"));
        for tls in [false, true] {
            let line = format!("weir_calls_total{{span_kind=\"client\",protocol=\"http/1.1\",tls=\"{tls}\"}} 1\n");
            assert!(text.contains(&line), "{line}");
        }
        assert!(text.contains("otel_metric_overflow=\"true\""));
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let samples = parse(&sample());
        let mut last: HashMap<String, f64> = HashMap::new();
        for (name, labels, value) in &samples {
            let Some(base) = name.strip_suffix("_bucket") else { continue };
            let rest: Vec<_> = labels.iter().filter(|(label, _)| label != "le").collect();
            let key = format!("{base} {rest:?}");
            let previous = last.insert(key, *value).unwrap_or(0.0);
            assert!(*value >= previous);
        }
        for (name, labels, value) in &samples {
            if let Some(base) = name.strip_suffix("_count") {
                let key = format!("{base} {:?}", labels.iter().collect::<Vec<_>>());
                assert!((last[&key] - value).abs() < f64::EPSILON, "{key}");
            }
        }
    }
}
