//! Every metric there is: name, kind, unit, labels. `docs/registry.yaml` says the same to users, and a test compares.

/// How a metric's value behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, since the agent's start.
    Counter,
    Gauge,
    /// Explicit buckets, cumulative since the series' start.
    Histogram,
}

/// One metric. Label sets are closed: a label's values never come from a peer.
#[derive(Debug, PartialEq, Eq)]
pub struct Definition {
    pub name: &'static str,
    pub kind: Kind,
    /// UCUM, as OpenTelemetry writes it.
    pub unit: &'static str,
    pub description: &'static str,
    pub labels: &'static [&'static str],
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    labels: &'static [&'static str],
) -> Definition {
    Definition { name, kind: Kind::Counter, unit, description, labels }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    labels: &'static [&'static str],
) -> Definition {
    Definition { name, kind: Kind::Gauge, unit, description, labels }
}

/// Histograms follow the semantic conventions; their attributes are chosen by side, so no labels are named here.
const fn histogram(name: &'static str, unit: &'static str, description: &'static str) -> Definition {
    Definition { name, kind: Kind::Histogram, unit, description, labels: &[] }
}

pub static SERVER_DURATION: Definition =
    histogram("http.server.request.duration", "s", "Duration of HTTP server requests.");
pub static CLIENT_DURATION: Definition =
    histogram("http.client.request.duration", "s", "Duration of HTTP client requests.");
pub static SERVER_REQUEST_SIZE: Definition =
    histogram("http.server.request.body.size", "By", "Size of HTTP server request bodies.");
pub static SERVER_RESPONSE_SIZE: Definition =
    histogram("http.server.response.body.size", "By", "Size of HTTP server response bodies.");
pub static CLIENT_REQUEST_SIZE: Definition =
    histogram("http.client.request.body.size", "By", "Size of HTTP client request bodies.");
pub static CLIENT_RESPONSE_SIZE: Definition =
    histogram("http.client.response.body.size", "By", "Size of HTTP client response bodies.");

pub static CALLS: Definition = counter(
    "weir_calls_total",
    "{call}",
    "Calls observed, before sampling and export.",
    &["span_kind", "protocol", "tls"],
);
pub static INCOMPLETE: Definition =
    counter("weir_incomplete_total", "{call}", "Calls of which something could not be known.", &["reason"]);
pub static LOST: Definition = counter(
    "weir_lost_total",
    "1",
    "What was lost, in the unit of its stage: kernel records, calls or reports.",
    &["stage", "reason"],
);
pub static KERNEL_RECORDS: Definition =
    counter("weir_kernel_records_total", "{record}", "Records received from the kernel.", &[]);
pub static KERNEL: Definition =
    counter("weir_kernel_total", "1", "What the kernel programs counted, in the unit of its kind.", &["kind"]);
pub static EXPORTED: Definition =
    counter("weir_exported_total", "{call}", "Calls that an exporter delivered.", &["exporter"]);
pub static FILTERED: Definition =
    counter("weir_filtered_total", "{call}", "Calls that an exporter left out on purpose: sampled out.", &["exporter"]);
pub static EVICTED: Definition =
    counter("weir_evicted_total", "{entry}", "Entries that a bounded table gave up.", &["table"]);
pub static UNLINKED: Definition = counter(
    "weir_unlinked_total",
    "{call}",
    "Client calls without a parent because it could not be told for certain.",
    &["reason"],
);
pub static METRIC_OVERFLOW: Definition = counter(
    "weir_metric_overflow_total",
    "{call}",
    "Calls counted in the overflow series because the series limit was reached.",
    &[],
);
pub static METRIC_SERIES: Definition = gauge("weir_metric_series", "{series}", "HTTP metric series held.", &[]);
pub static COVERAGE: Definition =
    gauge("weir_coverage_ratio", "1", "Calls delivered of calls known to have happened, 0 to 1.", &[]);
pub static MEMORY: Definition = gauge("weir_memory_bytes", "By", "Resident memory of the agent.", &[]);
pub static CPU: Definition = counter("weir_cpu_seconds_total", "s", "Processor time used by the agent.", &[]);
pub static QUEUE: Definition = gauge("weir_queue_length", "{item}", "Items waiting in a queue.", &["stage"]);
pub static TABLE: Definition = gauge("weir_table_entries", "{entry}", "Entries in a bounded table.", &["table"]);

/// All of them.
pub static ALL: [&Definition; 22] = [
    &SERVER_DURATION,
    &CLIENT_DURATION,
    &SERVER_REQUEST_SIZE,
    &SERVER_RESPONSE_SIZE,
    &CLIENT_REQUEST_SIZE,
    &CLIENT_RESPONSE_SIZE,
    &CALLS,
    &INCOMPLETE,
    &LOST,
    &KERNEL_RECORDS,
    &KERNEL,
    &EXPORTED,
    &FILTERED,
    &EVICTED,
    &UNLINKED,
    &METRIC_OVERFLOW,
    &METRIC_SERIES,
    &COVERAGE,
    &MEMORY,
    &CPU,
    &QUEUE,
    &TABLE,
];
