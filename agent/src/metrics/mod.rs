//! Aggregation of calls and of the agent's own counts into bounded series. Pure: time comes with the reports; nothing
//! here sends or serves.

pub mod names;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

pub use names::{Definition, Kind};

use crate::model::{CallReport, Incomplete, Role, Version};

/// `http.*.request.duration` by the semantic conventions, seconds.
pub const DURATION_BOUNDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Body sizes, bytes. The conventions advise none; powers of ten from one packet to a large download.
pub const SIZE_BOUNDS: [f64; 8] = [0.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];

/// A full table is searched for idle series at most this often.
const EXPIRY_EVERY_NS: u64 = 60_000_000_000;
/// A series without a call for this long may make room for another.
const IDLE_NS: u64 = 900_000_000_000;
/// Most series of the agent's own metrics: stages times reasons, with room.
const MAX_SCALARS: usize = 1_000;

/// What is aggregated, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// HTTP series held at most; calls beyond it go to one series with `otel.metric.overflow`. Default: 2000.
    pub max_series: usize,
    /// Also record the body size histograms. Default: false.
    pub body_sizes: bool,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { max_series: 2_000, body_sizes: false }
    }
}

/// The resource a series belongs to; each becomes an OTLP `Resource`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    pub service_name: Arc<str>,
    pub service_namespace: Option<Arc<str>>,
    pub container_id: Option<Arc<str>>,
}

/// An attribute of a data point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(Arc<str>),
    Int(i64),
    Bool(bool),
}

/// One histogram series.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramPoint {
    /// `None`: the agent itself (the overflow series).
    pub resource: Option<ResourceKey>,
    pub attributes: Vec<(&'static str, Value)>,
    pub start_unix_ns: u64,
    /// One more than the bounds; not cumulative.
    pub buckets: Vec<u64>,
    pub sum: f64,
    pub count: u64,
}

/// All series of one histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramMetric {
    pub definition: &'static Definition,
    pub bounds: &'static [f64],
    pub points: Vec<HistogramPoint>,
}

/// One value of the agent's own metrics; `labels` go with [`Definition::labels`].
#[derive(Clone, Debug, PartialEq)]
pub struct ScalarPoint {
    pub labels: Vec<Arc<str>>,
    pub value: f64,
}

/// All series of one counter or gauge.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalarMetric {
    pub definition: &'static Definition,
    pub points: Vec<ScalarPoint>,
}

/// Every series at one moment, in a stable order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// When the agent's own counters began.
    pub start_unix_ns: u64,
    pub histograms: Vec<HistogramMetric>,
    pub scalars: Vec<ScalarMetric>,
}

impl Snapshot {
    /// Data points of all metrics.
    pub fn points(&self) -> u64 {
        let histograms = self.histograms.iter().map(|metric| metric.points.len());
        let scalars = self.scalars.iter().map(|metric| metric.points.len());
        histograms.chain(scalars).sum::<usize>() as u64
    }
}

/// Aggregates. Shared by the thread that records and the tasks that read.
#[derive(Debug)]
pub struct Registry {
    config: MetricsConfig,
    start_unix_ns: u64,
    state: Mutex<State>,
}

/// Name and label values.
type ScalarKey = (&'static str, Vec<Arc<str>>);
type Attributes = Vec<(&'static str, Value)>;
/// Buckets, sum and count.
type Read = (Vec<u64>, f64, u64);

#[derive(Debug, Default)]
struct State {
    series: HashMap<SeriesKey, Series>,
    overflow: [Option<Series>; 2],
    overflowed: u64,
    expired_at_ns: u64,
    calls: [u64; 2 * VERSIONS.len() * 2],
    incomplete: [u64; Incomplete::ALL.len()],
    scalars: BTreeMap<ScalarKey, (&'static Definition, f64)>,
}

const VERSIONS: [(Version, &str); 3] =
    [(Version::Http10, "http/1.0"), (Version::Http11, "http/1.1"), (Version::Http2, "http/2")];

const fn role_index(role: Role) -> usize {
    match role {
        Role::Server => 0,
        Role::Client => 1,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    resource: ResourceKey,
    role: Role,
    method: Option<Arc<str>>,
    scheme: &'static str,
    status: Option<u16>,
    route: Option<Arc<str>>,
    version: Version,
    error_type: Option<Arc<str>>,
    /// Of clients only: for a server these are what any peer writes in `Host`.
    server: Option<(Arc<str>, Option<u16>)>,
}

#[derive(Debug)]
struct Series {
    start_unix_ns: u64,
    last_unix_ns: u64,
    duration: Histogram<{ DURATION_BOUNDS.len() + 1 }>,
    sizes: Option<Box<[Histogram<{ SIZE_BOUNDS.len() + 1 }>; 2]>>,
}

#[derive(Clone, Copy, Debug)]
struct Histogram<const N: usize> {
    buckets: [u64; N],
    sum: f64,
    count: u64,
}

impl<const N: usize> Histogram<N> {
    const EMPTY: Self = Self { buckets: [0; N], sum: 0.0, count: 0 };

    /// Bounds are inclusive above, as in OTLP and Prometheus.
    fn record(&mut self, bounds: &[f64], value: f64) {
        if let Some(bucket) = self.buckets.get_mut(bounds.partition_point(|bound| *bound < value)) {
            *bucket += 1;
        }
        self.sum += value;
        self.count += 1;
    }
}

impl Series {
    fn new(start_unix_ns: u64, sizes: bool) -> Self {
        Self {
            start_unix_ns,
            last_unix_ns: start_unix_ns,
            duration: Histogram::EMPTY,
            sizes: sizes.then(|| Box::new([Histogram::EMPTY; 2])),
        }
    }

    fn record(&mut self, report: &CallReport, now: u64) {
        self.last_unix_ns = now;
        self.duration.record(&DURATION_BOUNDS, report.duration_ns as f64 / 1e9);
        if let Some(sizes) = &mut self.sizes {
            let values = [report.request_body_size, report.response_body_size];
            for (histogram, value) in sizes.iter_mut().zip(values) {
                if let Some(value) = value {
                    histogram.record(&SIZE_BOUNDS, value as f64);
                }
            }
        }
    }
}

impl SeriesKey {
    fn of(report: &CallReport) -> Self {
        Self {
            resource: ResourceKey::of(report),
            role: report.role,
            method: report.method.clone(),
            scheme: report.scheme,
            status: report.status,
            route: report.route.clone().filter(|_| report.role == Role::Server),
            version: report.version,
            error_type: report.error_type.clone(),
            server: report
                .server_address
                .clone()
                .filter(|_| report.role == Role::Client)
                .map(|address| (address, report.server_port)),
        }
    }

    fn attributes(&self) -> Attributes {
        let text = |text: &str| Value::Text(Arc::from(text));
        let mut attributes = Vec::with_capacity(9);
        if let Some(error) = &self.error_type {
            attributes.push(("error.type", Value::Text(Arc::clone(error))));
        }
        if let Some(method) = &self.method {
            attributes.push(("http.request.method", Value::Text(Arc::clone(method))));
        }
        if let Some(status) = self.status {
            attributes.push(("http.response.status_code", Value::Int(i64::from(status))));
        }
        if let Some(route) = &self.route {
            attributes.push(("http.route", Value::Text(Arc::clone(route))));
        }
        attributes.push(("network.protocol.name", text("http")));
        attributes.push(("network.protocol.version", text(self.version.name())));
        if let Some((address, port)) = &self.server {
            attributes.push(("server.address", Value::Text(Arc::clone(address))));
            if let Some(port) = port {
                attributes.push(("server.port", Value::Int(i64::from(*port))));
            }
        }
        attributes.push(("url.scheme", text(self.scheme)));
        attributes
    }
}

impl ResourceKey {
    /// The service behind a call: its own name, else its executable.
    pub fn of(report: &CallReport) -> Self {
        let workload = &*report.workload;
        let name = workload.service_name.as_ref().or(workload.executable_name.as_ref()).or(workload.command.as_ref());
        Self {
            service_name: name.map_or_else(|| Arc::from("unknown_service"), Arc::clone),
            service_namespace: workload.service_namespace.clone(),
            container_id: workload.container_id.clone(),
        }
    }
}

impl Registry {
    /// `start_unix_ns` is when the agent's own counters began.
    pub fn new(config: MetricsConfig, start_unix_ns: u64) -> Self {
        Self { config, start_unix_ns, state: Mutex::default() }
    }

    /// Counts one call. Sampling does not concern it.
    pub fn record_call(&self, report: &CallReport) {
        let now = report.start_unix_ns.saturating_add(report.duration_ns);
        let key = SeriesKey::of(report);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if let Some(count) = state.calls.get_mut(calls_index(report.role, report.version, report.tls.is_some())) {
            *count += 1;
        }
        if let Some(reason) = report.incomplete
            && let Some(index) = Incomplete::ALL.iter().position(|known| *known == reason)
            && let Some(count) = state.incomplete.get_mut(index)
        {
            *count += 1;
        }
        if let Some(series) = state.series.get_mut(&key) {
            series.record(report, now);
            return;
        }
        if state.series.len() >= self.config.max_series && now.saturating_sub(state.expired_at_ns) >= EXPIRY_EVERY_NS {
            state.expired_at_ns = now;
            state.series.retain(|_, series| now.saturating_sub(series.last_unix_ns) < IDLE_NS);
        }
        if state.series.len() < self.config.max_series {
            let mut series = Series::new(report.start_unix_ns, self.config.body_sizes);
            series.record(report, now);
            state.series.insert(key, series);
            return;
        }
        state.overflowed += 1;
        if let Some(slot) = state.overflow.get_mut(role_index(report.role)) {
            slot.get_or_insert_with(|| Series::new(report.start_unix_ns, self.config.body_sizes)).record(report, now);
        }
    }

    /// Sets the absolute value of a counter kept elsewhere. `labels` go with [`Definition::labels`].
    pub fn set_counter(&self, definition: &'static Definition, labels: &[&str], value: f64) {
        self.set(definition, labels, value);
    }

    pub fn set_gauge(&self, definition: &'static Definition, labels: &[&str], value: f64) {
        self.set(definition, labels, value);
    }

    fn set(&self, definition: &'static Definition, labels: &[&str], value: f64) {
        debug_assert_eq!(definition.labels.len(), labels.len(), "{} has other labels", definition.name);
        let key = (definition.name, labels.iter().map(|label| Arc::from(*label)).collect());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.scalars.len() < MAX_SCALARS || state.scalars.contains_key(&key) {
            state.scalars.insert(key, (definition, value));
        }
    }

    /// Calls counted since the start.
    pub fn calls(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).calls.iter().sum()
    }

    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<(Option<ResourceKey>, Role, Attributes, &Series)> = state
            .series
            .iter()
            .map(|(key, series)| (Some(key.resource.clone()), key.role, key.attributes(), series))
            .collect();
        for (role, series) in [Role::Server, Role::Client].into_iter().zip(&state.overflow) {
            if let Some(series) = series {
                all.push((None, role, vec![("otel.metric.overflow", Value::Bool(true))], series));
            }
        }
        let mut histograms = Vec::new();
        let mut add = |definition, role, bounds, pick: &dyn Fn(&Series) -> Option<Read>| {
            let mut points: Vec<HistogramPoint> = all
                .iter()
                .filter(|(_, of, ..)| *of == role)
                .filter_map(|(resource, _, attributes, series)| {
                    let (buckets, sum, count) = pick(series)?;
                    let (resource, attributes) = (resource.clone(), attributes.clone());
                    let start_unix_ns = series.start_unix_ns;
                    (count > 0).then_some(HistogramPoint { resource, attributes, start_unix_ns, buckets, sum, count })
                })
                .collect();
            points.sort_by_cached_key(|point| (point.resource.clone(), format!("{:?}", point.attributes)));
            if !points.is_empty() {
                histograms.push(HistogramMetric { definition, bounds, points });
            }
        };
        let duration = |series: &Series| {
            let histogram = series.duration;
            Some((histogram.buckets.to_vec(), histogram.sum, histogram.count))
        };
        let size = |index: usize| {
            move |series: &Series| {
                let histogram = series.sizes.as_ref()?.get(index)?;
                Some((histogram.buckets.to_vec(), histogram.sum, histogram.count))
            }
        };
        add(&names::SERVER_DURATION, Role::Server, &DURATION_BOUNDS[..], &duration);
        add(&names::CLIENT_DURATION, Role::Client, &DURATION_BOUNDS[..], &duration);
        add(&names::SERVER_REQUEST_SIZE, Role::Server, &SIZE_BOUNDS[..], &size(0));
        add(&names::SERVER_RESPONSE_SIZE, Role::Server, &SIZE_BOUNDS[..], &size(1));
        add(&names::CLIENT_REQUEST_SIZE, Role::Client, &SIZE_BOUNDS[..], &size(0));
        add(&names::CLIENT_RESPONSE_SIZE, Role::Client, &SIZE_BOUNDS[..], &size(1));
        Snapshot { start_unix_ns: self.start_unix_ns, histograms, scalars: state.scalars() }
    }
}

impl State {
    fn scalars(&self) -> Vec<ScalarMetric> {
        let mut metrics = Vec::new();
        let mut calls = Vec::new();
        for role in [Role::Server, Role::Client] {
            for (version, protocol) in VERSIONS {
                for tls in [false, true] {
                    let count = self.calls.get(calls_index(role, version, tls)).copied().unwrap_or_default();
                    if count > 0 {
                        let labels = [role.name(), protocol, if tls { "true" } else { "false" }];
                        calls.push(ScalarPoint { labels: labels.map(Arc::from).into(), value: count as f64 });
                    }
                }
            }
        }
        metrics.push(ScalarMetric { definition: &names::CALLS, points: calls });
        let incomplete = Incomplete::ALL.iter().zip(&self.incomplete).filter(|(_, count)| **count > 0);
        metrics.push(ScalarMetric {
            definition: &names::INCOMPLETE,
            points: incomplete
                .map(|(reason, count)| ScalarPoint { labels: vec![Arc::from(reason.name())], value: *count as f64 })
                .collect(),
        });
        let own =
            [(&names::METRIC_OVERFLOW, self.overflowed as f64), (&names::METRIC_SERIES, self.series.len() as f64)];
        for (definition, value) in own {
            metrics.push(ScalarMetric { definition, points: vec![ScalarPoint { labels: Vec::new(), value }] });
        }
        for ((_, labels), (definition, value)) in &self.scalars {
            let point = ScalarPoint { labels: labels.clone(), value: *value };
            match metrics.last_mut().filter(|last| last.definition.name == definition.name) {
                Some(last) => last.points.push(point),
                None => metrics.push(ScalarMetric { definition, points: vec![point] }),
            }
        }
        metrics.retain(|metric| !metric.points.is_empty());
        metrics
    }
}

const fn calls_index(role: Role, version: Version, tls: bool) -> usize {
    let version = match version {
        Version::Http10 => 0,
        Version::Http11 => 1,
        Version::Http2 => 2,
    };
    (role_index(role) * VERSIONS.len() + version) * 2 + tls as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    fn call(path: &str, duration_ns: u64) -> CallReport {
        CallReport { route: Some(Arc::from(path)), duration_ns, ..fixture::minimal(Role::Server) }
    }

    fn scalar(snapshot: &Snapshot, name: &str) -> f64 {
        let metric = snapshot.scalars.iter().find(|metric| metric.definition.name == name);
        metric.map_or(0.0, |metric| metric.points.iter().map(|point| point.value).sum())
    }

    #[test]
    fn buckets_are_inclusive_above() {
        let registry = Registry::new(MetricsConfig::default(), 0);
        for nanos in [0, 5_000_000, 5_000_001, 10_000_000_000, 10_000_000_001] {
            registry.record_call(&call("/", nanos));
        }
        let snapshot = registry.snapshot();
        let point = &snapshot.histograms[0].points[0];
        assert_eq!((point.buckets[0], point.buckets[1]), (2, 1));
        assert_eq!((point.buckets[13], point.buckets[14]), (1, 1));
        assert_eq!(point.count, 5);
        assert!((point.sum - 20.010_000_002).abs() < 1e-9);
    }

    #[test]
    fn series_are_capped_and_no_call_is_uncounted() {
        let registry = Registry::new(MetricsConfig { max_series: 10, body_sizes: false }, 0);
        for route in 0..100 {
            registry.record_call(&call(&format!("/{route}"), 1));
            registry.record_call(&call(&format!("/{route}"), 1));
        }
        let snapshot = registry.snapshot();
        let points = &snapshot.histograms[0].points;
        assert_eq!(points.len(), 11);
        assert_eq!(points.iter().map(|point| point.count).sum::<u64>(), 200);
        let overflow = points.iter().find(|point| point.resource.is_none()).unwrap();
        assert_eq!(overflow.attributes, [("otel.metric.overflow", Value::Bool(true))]);
        assert_eq!(overflow.count, 180);
        assert!((scalar(&snapshot, "weir_metric_overflow_total") - 180.0).abs() < f64::EPSILON);
        assert!((scalar(&snapshot, "weir_calls_total") - 200.0).abs() < f64::EPSILON);
        assert_eq!(registry.calls(), 200);
    }

    #[test]
    fn idle_series_make_room_when_the_table_is_full() {
        let registry = Registry::new(MetricsConfig { max_series: 1, body_sizes: false }, 0);
        registry.record_call(&call("/old", 1));
        let mut late = call("/new", 1);
        late.start_unix_ns += IDLE_NS + 1;
        registry.record_call(&late);
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.histograms[0].points.len(), 1);
        assert!(snapshot.histograms[0].points[0].attributes.contains(&("http.route", Value::Text(Arc::from("/new")))));
    }

    #[test]
    fn attributes_follow_the_side() {
        let registry = Registry::new(MetricsConfig { body_sizes: true, ..MetricsConfig::default() }, 0);
        registry.record_call(&fixture::maximal(Role::Server));
        registry.record_call(&fixture::maximal(Role::Client));
        let snapshot = registry.snapshot();
        let names: Vec<_> = snapshot.histograms.iter().map(|metric| metric.definition.name).collect();
        assert_eq!(names.len(), 6, "{names:?}");
        let keys = |index: usize| -> Vec<&str> {
            snapshot.histograms[index].points[0].attributes.iter().map(|(key, _)| *key).collect()
        };
        let common = ["error.type", "http.request.method", "http.response.status_code"];
        let protocol = ["network.protocol.name", "network.protocol.version"];
        assert_eq!(keys(0), [&common[..], &["http.route"], &protocol, &["url.scheme"]].concat());
        assert_eq!(keys(1), [&common[..], &protocol, &["server.address", "server.port", "url.scheme"]].concat());
        assert_eq!(snapshot.histograms[0].points[0].resource.as_ref().unwrap().service_name.as_ref(), "shop");
        assert!((scalar(&snapshot, "weir_incomplete_total") - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn values_set_twice_are_replaced() {
        let registry = Registry::new(MetricsConfig::default(), 0);
        registry.set_counter(&names::LOST, &["otlp", "queue_full"], 1.0);
        registry.set_counter(&names::LOST, &["otlp", "queue_full"], 3.0);
        registry.set_counter(&names::LOST, &["otlp", "rejected"], 4.0);
        let snapshot = registry.snapshot();
        let lost: Vec<_> = snapshot.scalars.iter().filter(|metric| metric.definition == &names::LOST).collect();
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].points.iter().map(|point| point.value as u64).collect::<Vec<_>>(), [3, 4]);
    }
}
