//! One list of everything that was lost, from the counts of every stage, for the metrics, the admin API and `/readyz`.
//! Pure.

use std::sync::atomic::Ordering;

use agent_common::counters::Counter;

use super::{AssessView, CaptureView, Shared};
use crate::export::ExportHandle;
use crate::metrics::{Registry, names};

/// Sums of the kernel's counters, in the order of [`Counter::ALL`].
pub type KernelCounters = [u64; Counter::ALL.len()];

/// What the stages counted, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub kernel: KernelCounters,
    /// Runs that the kernel skipped because the program was at work on that CPU already.
    pub recursion_misses: u64,
    pub capture: CaptureView,
    pub assess: AssessView,
    pub discovery: crate::discover::Counts,
    pub records: u64,
    pub malformed_records: u64,
    pub panics: u64,
    pub assess_queue_full: u64,
    pub assess_facts_dropped: u64,
    pub content_dropped: u64,
    pub queued_batches: usize,
    pub exporters: Vec<Exporter>,
}

/// Counts of one exporter.
#[derive(Clone, Debug)]
pub struct Exporter {
    pub name: &'static str,
    pub exported: u64,
    pub filtered: u64,
    pub lost: [(&'static str, u64); 4],
    pub waiting: usize,
}

/// One kind of loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    pub stage: &'static str,
    pub reason: &'static str,
    pub count: u64,
}

impl Snapshot {
    /// Collect from the threads and exporters.
    pub fn collect(kernel: KernelCounters, recursion_misses: u64, shared: &Shared, exporters: &[ExportHandle]) -> Self {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            kernel,
            recursion_misses,
            capture: shared.capture(),
            assess: shared.assess(),
            discovery: shared.discovery(),
            records: load(&shared.records),
            malformed_records: load(&shared.malformed_records),
            panics: load(&shared.panics),
            assess_queue_full: load(&shared.assess_queue_full),
            assess_facts_dropped: load(&shared.assess_facts_dropped),
            content_dropped: load(&shared.content_dropped),
            queued_batches: shared.queued_batches.load(Ordering::Relaxed),
            exporters: exporters
                .iter()
                .map(|handle| {
                    let counters = handle.counters();
                    Exporter {
                        name: handle.name(),
                        exported: load(&counters.exported),
                        filtered: load(&counters.filtered),
                        lost: counters.lost(),
                        waiting: handle.waiting(),
                    }
                })
                .collect(),
        }
    }

    pub const fn kernel(&self, counter: Counter) -> u64 {
        self.kernel[counter as usize]
    }

    /// Calls that are not reported: their request did not reach us, or was dropped behind capture. A response whose
    /// request was lost is reported, marked, as a fragment: it is not counted as a call here.
    pub fn calls_lost(&self) -> u64 {
        self.kernel(Counter::RequestsLost) + self.assess_queue_full
    }

    /// Share of calls known to have happened that were captured and assessed; `None` before the first.
    pub fn coverage(&self) -> Option<f64> {
        let counts = &self.capture.counts;
        let seen = counts.exchanges.saturating_sub(counts.without_request).saturating_sub(self.assess_queue_full);
        let all = seen + self.calls_lost();
        (all > 0).then(|| seen as f64 / all as f64)
    }

    /// Every loss, zero counts included: a label set that does not come and go.
    pub fn losses(&self) -> Vec<Loss> {
        let counts = &self.capture.counts;
        let mut losses = vec![
            Loss { stage: "kernel", reason: "ring_full", count: self.kernel(Counter::RingFull) },
            Loss { stage: "kernel", reason: "requests_lost", count: self.kernel(Counter::RequestsLost) },
            Loss { stage: "kernel", reason: "unreadable", count: self.kernel(Counter::Unreadable) },
            Loss { stage: "kernel", reason: "state_full", count: self.kernel(Counter::StateFull) },
            Loss { stage: "kernel", reason: "walk_failed", count: self.kernel(Counter::WalkFailed) },
            Loss { stage: "kernel", reason: "tls_busy", count: self.kernel(Counter::TlsBusy) },
            Loss { stage: "kernel", reason: "tls_huge", count: self.kernel(Counter::TlsHuge) },
            Loss { stage: "kernel", reason: "recursion", count: self.recursion_misses },
            Loss { stage: "capture", reason: "records_lost", count: counts.records_lost },
            Loss { stage: "capture", reason: "malformed_record", count: self.malformed_records },
            Loss { stage: "capture", reason: "evicted", count: counts.exchanges_evicted },
            Loss { stage: "capture", reason: "panic", count: self.panics },
            Loss { stage: "discover", reason: "libraries_full", count: self.discovery.no_room },
            Loss { stage: "assess", reason: "queue_full", count: self.assess_queue_full },
            Loss { stage: "assess", reason: "facts_dropped", count: self.assess_facts_dropped },
            Loss { stage: "assess", reason: "content_dropped", count: self.content_dropped },
            Loss { stage: "calls", reason: "unseen", count: self.calls_lost() },
        ];
        for exporter in &self.exporters {
            losses.extend(exporter.lost.iter().map(|&(reason, count)| Loss { stage: exporter.name, reason, count }));
        }
        losses
    }

    /// Traffic that cannot be seen, in words.
    pub fn blind_spots(&self) -> Vec<String> {
        let mut spots = Vec::new();
        let mut add = |count: u64, what: &str| {
            if count > 0 {
                spots.push(format!("{count} {what}"));
            }
        };
        add(
            self.capture.counts.tls_unread,
            "TLS connections ended unread: of other processes than those listed, or before their library was known",
        );
        add(
            self.capture.counts.tls_processes_evicted,
            "processes that use TLS are not listed any more: others came after them",
        );
        add(self.discovery.no_room, "times a TLS library was not probed, because as many as can be are in use already");
        add(
            self.capture.counts.peer_unknown,
            "calls of TLS libraries whose connection could not be told: without peer",
        );
        add(
            self.kernel(Counter::BytesOpaque),
            "bytes moved without a user buffer (sendfile, splice, io_uring): counted, content not seen",
        );
        spots
    }

    /// Write the counts into the registry.
    pub fn publish(&self, registry: &Registry) {
        for loss in self.losses() {
            registry.set_counter(&names::LOST, &[loss.stage, loss.reason], loss.count as f64);
        }
        let counts = &self.capture.counts;
        registry.set_counter(&names::KERNEL_RECORDS, &[], self.records as f64);
        for (table, count) in [
            ("connections", counts.connections_evicted),
            ("tls_processes", counts.tls_processes_evicted),
            ("http3_processes", counts.http3_processes_evicted),
            ("tracer", counts.tracer_evicted),
            ("workloads", self.assess.counts.workloads.evicted),
            ("route_services", self.assess.counts.routes.evicted_services),
        ] {
            registry.set_counter(&names::EVICTED, &[table], count as f64);
        }
        registry.set_counter(&names::UNLINKED, &["ambiguous"], counts.linked_ambiguous as f64);
        registry.set_gauge(&names::TABLE, &["connections"], self.capture.connections as f64);
        registry.set_gauge(&names::TABLE, &["processes"], self.assess.counts.workloads.processes as f64);
        registry.set_gauge(&names::TABLE, &["routes"], self.assess.counts.routes.templates as f64);
        registry.set_gauge(&names::QUEUE, &["assess"], self.queued_batches as f64);
        for exporter in &self.exporters {
            registry.set_counter(&names::EXPORTED, &[exporter.name], exporter.exported as f64);
            registry.set_counter(&names::FILTERED, &[exporter.name], exporter.filtered as f64);
            registry.set_gauge(&names::QUEUE, &[exporter.name], exporter.waiting as f64);
        }
        for (counter, value) in Counter::ALL.iter().zip(self.kernel) {
            registry.set_counter(&names::KERNEL, &[counter.name()], value as f64);
        }
        if let Some(coverage) = self.coverage() {
            registry.set_gauge(&names::COVERAGE, &[], coverage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_response_is_no_call() {
        let mut snapshot = Snapshot::default();
        snapshot.kernel[Counter::RequestsLost as usize] = 3;
        snapshot.capture.counts.without_request = 2;
        snapshot.capture.counts.exchanges = 99;
        assert_eq!(snapshot.calls_lost(), 3);
        assert_eq!(snapshot.coverage(), Some(0.97));
    }

    #[test]
    fn exchanges_dropped_behind_capture_count_as_lost_once() {
        let mut snapshot = Snapshot { assess_queue_full: 10, ..Snapshot::default() };
        snapshot.capture.counts.exchanges = 100;
        assert_eq!((snapshot.calls_lost(), snapshot.coverage()), (10, Some(0.9)));
    }

    #[test]
    fn nothing_seen_is_no_coverage_rather_than_full_coverage() {
        assert_eq!(Snapshot::default().coverage(), None);
    }
}
