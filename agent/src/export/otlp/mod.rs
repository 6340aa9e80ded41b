//! OpenTelemetry: redacted calls as spans, the registry as metrics, over gRPC or HTTP/protobuf.
//!
//! `map` and `settings` are pure; only `send` talks to a collector.

pub mod map;
pub mod sampler;
mod send;
pub mod settings;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use opentelemetry_proto::tonic::common::v1::KeyValue;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval_at, timeout},
};

pub use sampler::Sampler;
pub use settings::{OtlpSettings, Protocol, SignalSettings};

use self::send::{Client, Sent};
use super::{Complaint, Counters, Delivery, Exporter};
use crate::{metrics::Registry, model::CallReport};

/// Sends calls as spans.
#[derive(Debug)]
pub struct Traces {
    client: Client,
    sampler: Sampler,
    host: Vec<KeyValue>,
    limit: Duration,
    complaint: Complaint,
}

impl Traces {
    /// `None` when the settings ask for no traces. Reads certificate files; connects when the first batch leaves.
    pub fn new(settings: &OtlpSettings) -> anyhow::Result<Option<Self>> {
        let Some(signal) = &settings.traces else { return Ok(None) };
        Ok(Some(Self {
            client: Client::new(signal)?,
            sampler: settings.sampler,
            host: map::host_attributes(&settings.resource),
            limit: settings.export_timeout,
            complaint: Complaint::default(),
        }))
    }
}

impl Exporter for Traces {
    fn name(&self) -> &'static str {
        "otlp"
    }

    async fn export(&mut self, batch: &[Arc<CallReport>]) -> Delivery {
        let wanted: Vec<&CallReport> =
            batch.iter().map(|report| &**report).filter(|report| self.sampler.samples(&report.trace)).collect();
        let (all, count) = (batch.len() as u64, wanted.len() as u64);
        let filtered = all - count;
        if wanted.is_empty() {
            return Delivery { filtered, ..Delivery::default() };
        }
        let request = || map::spans(&wanted, &self.host);
        match self.client.send_traces(request, self.limit, &mut self.complaint).await {
            Ok(Sent { rejected, message }) => {
                let rejected = rejected.min(count);
                if rejected > 0 {
                    self.complaint.raise("otlp", &format_args!("{rejected} spans rejected: {message}"));
                }
                Delivery { exported: count - rejected, filtered, rejected, ..Delivery::default() }
            }
            Err(_) => Delivery { failed: count, filtered, ..Delivery::default() },
        }
    }
}

/// The task that sends the registry's metrics at an interval.
#[derive(Debug)]
pub struct MetricsHandle {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    counters: Arc<Counters>,
}

/// Starts sending the registry's metrics; `None` when the settings ask for none. `unix_now_ns` reads the wall clock,
/// `refresh` is called before each snapshot so that counts kept elsewhere are current.
pub fn spawn_metrics(
    settings: &OtlpSettings,
    registry: Arc<Registry>,
    unix_now_ns: impl Fn() -> u64 + Send + 'static,
    refresh: impl Fn(&Registry) + Send + 'static,
) -> anyhow::Result<Option<MetricsHandle>> {
    let Some(signal) = &settings.metrics else { return Ok(None) };
    let mut client = Client::new(signal)?;
    let (interval, limit) = (settings.metric_interval, settings.export_timeout);
    let (host, own) = (map::host_attributes(&settings.resource), map::own_attributes(settings));
    let counters = Arc::<Counters>::default();
    let (stop, mut stopped) = watch::channel(false);
    let counts = Arc::clone(&counters);
    let task = tokio::spawn(async move {
        let mut complaint = Complaint::default();
        let mut ticks = interval_at(tokio::time::Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                _ = ticks.tick() => false,
                // An error means that the handle is gone, which is a stop as well.
                _ = stopped.changed() => true,
            };
            refresh(&registry);
            let (snapshot, now) = (registry.snapshot(), unix_now_ns());
            let points = snapshot.points();
            let request = || map::metrics(&snapshot, now, &host, &own);
            counts.offered.fetch_add(points, Ordering::Relaxed);
            match client.send_metrics(request, limit, &mut complaint).await {
                Ok(Sent { rejected, message }) => {
                    let rejected = rejected.min(points);
                    if rejected > 0 {
                        complaint.raise("otlp_metrics", &format_args!("{rejected} points rejected: {message}"));
                    }
                    counts.add(Delivery { exported: points - rejected, rejected, ..Delivery::default() });
                }
                Err(_) => counts.add(Delivery { failed: points, ..Delivery::default() }),
            }
            if last {
                break;
            }
        }
    });
    Ok(Some(MetricsHandle { stop, task, counters }))
}

impl MetricsHandle {
    /// Counts of data points.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Sends the metrics a last time, for at most `limit`.
    pub async fn shutdown(mut self, limit: Duration) {
        self.stop.send_replace(true);
        if timeout(limit, &mut self.task).await.is_err() {
            self.task.abort();
            let counts = &self.counters;
            let settled = [&counts.exported, &counts.export_failed, &counts.rejected];
            let settled: u64 = settled.iter().map(|count| count.load(Ordering::Relaxed)).sum();
            counts.shutdown.store(counts.offered.load(Ordering::Relaxed).saturating_sub(settled), Ordering::Relaxed);
            tracing::warn!(exporter = "otlp_metrics", "the last metrics were not sent in time");
        }
    }
}
