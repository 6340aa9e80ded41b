//! The assess thread: exchanges and process facts in; reports to the store, the metrics and the exporters.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{AssessView, Batch, Shared, content_bytes};
use crate::admin::store::Store;
use crate::assess::{Assessor, Rules};
use crate::capture::{Output, ProcessSeen};
use crate::clock;
use crate::enrich::Enricher;
use crate::export::ExportHandle;
use crate::metrics::Registry;
use crate::model::{CallReport, Exchange, SocketAddress, Timestamp};
use crate::protocol::progress::Due;

const TICK: Duration = Duration::from_secs(1);

/// Where reports go.
#[derive(Clone)]
pub struct Sinks {
    pub store: Option<Arc<Store>>,
    pub metrics: Arc<Registry>,
    pub exporters: Arc<[ExportHandle]>,
}

/// The thread's state.
pub struct Worker {
    pub assessor: Assessor,
    /// `None`: processes of a recording, which are not looked up on this machine.
    pub enricher: Option<Enricher>,
    pub sinks: Sinks,
    pub shared: Arc<Shared>,
    /// New rules from a changed configuration.
    pub rules: Arc<Mutex<Option<Rules>>>,
    pub wall_offset_ns: u64,
    /// Path of the agent's control socket: calls to it are not reported. (Its TCP ends are left alone in the kernel.)
    pub own_socket: Option<Box<str>>,
}

impl Sinks {
    fn take(&self, report: CallReport) {
        self.metrics.record_call(&report);
        let report = Arc::new(report);
        if let Some(store) = &self.store {
            store.append(&report);
        }
        for exporter in self.exporters.iter() {
            // A full queue is counted there.
            exporter.offer(Arc::clone(&report));
        }
    }
}

impl Worker {
    /// Run until the capture thread hangs up.
    pub fn run(mut self, queue: &Receiver<Batch>) {
        let mut last_tick = clock::now();
        loop {
            let next = queue.recv_timeout(TICK);
            match next {
                Ok(batch) => {
                    self.shared.queued_batches.fetch_sub(1, Ordering::Relaxed);
                    self.shared.queued_content.fetch_sub(content_bytes(&batch), Ordering::Relaxed);
                    for output in batch {
                        self.on_output(output);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = clock::now();
            if now.since(last_tick) >= TICK.as_nanos() as u64 {
                last_tick = now;
                self.tick(now);
            }
        }
        self.publish();
    }

    fn tick(&mut self, now: Timestamp) {
        if self.enricher.is_some() {
            self.wall_offset_ns = clock::wall_offset_ns();
        }
        if let Some(rules) = self.rules.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.assessor.set_rules(rules);
        }
        self.assessor.on_tick(now);
        if let Some(store) = &self.sinks.store {
            store.expire_open(now.0.wrapping_add(self.wall_offset_ns).saturating_sub(Due::SILENCE_NS));
        }
        self.publish();
    }

    fn publish(&self) {
        self.shared.publish_assess(AssessView {
            counts: self.assessor.counts(),
            enrich: self.enricher.as_ref().map(Enricher::counts).unwrap_or_default(),
        });
    }

    fn on_output(&mut self, output: Output) {
        match output {
            Output::Process(seen) => self.on_process(&seen),
            Output::SelfInstrumented(process) => {
                self.assessor.on_self_instrumented(process, clock::now());
            }
            Output::Exchange(exchange) => self.on_exchange(&exchange, true),
            // Nothing but the store shows calls that go on.
            Output::Progress(exchange) if self.sinks.store.is_some() => self.on_exchange(&exchange, false),
            Output::Progress(_) => {}
        }
    }

    fn on_process(&mut self, seen: &ProcessSeen) {
        let Some(enricher) = &mut self.enricher else { return };
        let now = clock::now();
        let known = !self.assessor.wants_facts(seen.process);
        if let Some(workload) = enricher.on_process(seen, known, now) {
            self.assessor.on_process(workload, now);
        }
    }

    /// `over`: the exchange is; otherwise it goes on.
    fn on_exchange(&mut self, exchange: &Exchange, over: bool) {
        if let Some(own) = &self.own_socket {
            let is_own = |end: &SocketAddress| matches!(end, SocketAddress::Unix(path) if path == own);
            if is_own(&exchange.connection.local) || is_own(&exchange.connection.remote) {
                return;
            }
        }
        let process = exchange.connection.process;
        if let Some(enricher) = &mut self.enricher
            && self.assessor.wants_facts(process)
        {
            let now = clock::now();
            let workload = enricher.of_connection(&exchange.connection, now);
            self.assessor.on_process(workload, now);
        }
        let offset = self.wall_offset_ns;
        let (assessor, sinks, shared) = (&mut self.assessor, &self.sinks, &self.shared);
        let wall = |time: Timestamp| time.0.wrapping_add(offset);
        let done = catch_unwind(AssertUnwindSafe(|| {
            if !over {
                let report = assessor.on_progress(exchange, wall);
                if let Some((report, store)) = report.zip(sinks.store.as_deref()) {
                    store.show(&Arc::new(report));
                }
            } else if let Some(report) = assessor.on_exchange(exchange, wall) {
                sinks.take(report);
            } else if assessor.excludes_process(process, exchange.timing.end) {
                shared.mute(process);
            }
        }));
        if done.is_err() {
            self.shared.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!("assessing an exchange panicked; it is dropped");
        }
    }
}

/// An enricher of this machine.
pub fn enricher() -> Enricher {
    Enricher::new(Path::new("/proc"))
}
