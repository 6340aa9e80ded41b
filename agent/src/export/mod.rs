//! Exporters: redacted calls leave here. Each has its own bounded queue and task, so a dead collector costs its own
//! reports only, and the caller never waits.

mod application;
pub mod console;
pub mod jsonl;
pub mod otlp;
pub mod prometheus;
mod tls;

use std::{
    collections::VecDeque,
    future::{Future, ready},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use crate::model::CallReport;

/// At most one complaint about a failing exporter in this time; every failure is counted.
const COMPLAINT_EVERY: Duration = Duration::from_secs(10);

/// A sink of calls. Runs in its own task; may wait and retry, must not panic.
pub trait Exporter: Send + 'static {
    /// The `stage` of `weir_lost_total`, and the name in logs.
    fn name(&self) -> &'static str;

    /// Delivers a batch, and tells what became of every report in it.
    fn export(&mut self, batch: &[Arc<CallReport>]) -> impl Future<Output = Delivery> + Send;

    /// Delivers what is buffered. The last call before the task ends.
    fn flush(&mut self) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

/// What became of the reports of one batch; the sum is the batch's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    pub exported: u64,
    /// Left out on purpose: sampled out.
    pub filtered: u64,
    /// Given up after the last retry, or not written.
    pub failed: u64,
    /// The receiver took the batch and refused these.
    pub rejected: u64,
}

/// Bounds of one exporter's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Reports waiting at most; the newest is dropped and counted when full.
    pub len: usize,
    /// Reports in one batch at most.
    pub batch: usize,
    /// A batch that is not full leaves after this long.
    pub delay: Duration,
}

impl Default for Queue {
    /// 16,384 reports hold 1.6 s of 10,000 calls/s, at about 1 KiB each.
    fn default() -> Self {
        Self { len: 16_384, batch: 1_024, delay: Duration::from_secs(1) }
    }
}

/// Counts of one exporter. `offered` is the sum of all others and of what still waits.
#[derive(Debug, Default)]
pub struct Counters {
    pub offered: AtomicU64,
    pub exported: AtomicU64,
    pub filtered: AtomicU64,
    pub queue_full: AtomicU64,
    pub export_failed: AtomicU64,
    pub rejected: AtomicU64,
    pub shutdown: AtomicU64,
}

impl Counters {
    /// `(reason, count)` for `weir_lost_total{stage, reason}`.
    pub fn lost(&self) -> [(&'static str, u64); 4] {
        [
            ("queue_full", self.queue_full.load(Ordering::Relaxed)),
            ("export_failed", self.export_failed.load(Ordering::Relaxed)),
            ("rejected", self.rejected.load(Ordering::Relaxed)),
            ("shutdown", self.shutdown.load(Ordering::Relaxed)),
        ]
    }

    fn add(&self, delivery: Delivery) {
        self.exported.fetch_add(delivery.exported, Ordering::Relaxed);
        self.filtered.fetch_add(delivery.filtered, Ordering::Relaxed);
        self.export_failed.fetch_add(delivery.failed, Ordering::Relaxed);
        self.rejected.fetch_add(delivery.rejected, Ordering::Relaxed);
    }
}

/// The sending end of one exporter. Offering never waits; it wakes the task once per batch, not once per report.
#[derive(Debug)]
pub struct ExportHandle {
    name: &'static str,
    shared: Arc<Shared>,
    /// `None` once closed.
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    bounds: Queue,
    waiting: Mutex<VecDeque<Arc<CallReport>>>,
    /// Reports of the batch that is being exported.
    in_flight: AtomicU64,
    counters: Arc<Counters>,
    closed: AtomicBool,
    /// The queue is no longer empty, or is closed.
    arrived: Notify,
    /// A whole batch waits, or the queue is closed.
    full: Notify,
}

impl Shared {
    fn take(&self) -> (Vec<Arc<CallReport>>, bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.len().min(self.bounds.batch.max(1));
        let batch: Vec<_> = waiting.drain(..count).collect();
        self.in_flight.store(batch.len() as u64, Ordering::Relaxed);
        (batch, waiting.len() >= self.bounds.batch.max(1))
    }

    fn len(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Starts the exporter's task. Must be called within a Tokio runtime.
pub fn spawn<E: Exporter>(exporter: E, bounds: Queue) -> ExportHandle {
    let shared = Arc::new(Shared {
        bounds,
        waiting: Mutex::new(VecDeque::with_capacity(bounds.batch.min(bounds.len))),
        in_flight: AtomicU64::new(0),
        counters: Arc::default(),
        closed: AtomicBool::new(false),
        arrived: Notify::new(),
        full: Notify::new(),
    });
    let name = exporter.name();
    let task = tokio::spawn(run(exporter, Arc::clone(&shared)));
    ExportHandle { name, task: Mutex::new(Some(task)), shared }
}

async fn run<E: Exporter>(mut exporter: E, shared: Arc<Shared>) {
    let mut more = false;
    loop {
        let closed = shared.closed.load(Ordering::Acquire);
        if shared.len() == 0 {
            if closed {
                break;
            }
            shared.arrived.notified().await;
            more = false;
        }
        if !more && !shared.closed.load(Ordering::Acquire) {
            // Elapsed is as good as full: the batch leaves either way.
            timeout(shared.bounds.delay, shared.full.notified()).await.unwrap_or_default();
        }
        let (batch, rest) = shared.take();
        more = rest;
        if batch.is_empty() {
            continue;
        }
        let delivery = exporter.export(&batch).await;
        shared.in_flight.store(0, Ordering::Relaxed);
        shared.counters.add(delivery);
    }
    exporter.flush().await;
}

impl ExportHandle {
    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Reports waiting now.
    pub fn waiting(&self) -> usize {
        self.shared.len()
    }

    /// Queues a report; when the queue is full the report is dropped, counted, and `false` returned.
    pub fn offer(&self, report: Arc<CallReport>) -> bool {
        let shared = &*self.shared;
        shared.counters.offered.fetch_add(1, Ordering::Relaxed);
        if shared.closed.load(Ordering::Acquire) {
            shared.counters.shutdown.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= shared.bounds.len {
            drop(waiting);
            shared.counters.queue_full.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        waiting.push_back(report);
        let len = waiting.len();
        drop(waiting);
        if len == 1 {
            shared.arrived.notify_one();
        }
        if len == shared.bounds.batch {
            shared.full.notify_one();
        }
        true
    }

    /// Drains the queue for at most `limit`; what is left then, and what is offered later, is counted as lost to
    /// `shutdown`. A second call does nothing.
    pub async fn shutdown(&self, limit: Duration) {
        let Some(mut task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.shared.closed.store(true, Ordering::Release);
        self.shared.arrived.notify_one();
        self.shared.full.notify_one();
        if timeout(limit, &mut task).await.is_err() {
            task.abort();
            // Aborting ends the task at its next wait; only then are the counts final.
            if let Err(error) = (&mut task).await
                && error.is_panic()
            {
                tracing::error!(exporter = self.name, "exporter panicked");
            }
        }
        let left = self.shared.len() as u64 + self.shared.in_flight.swap(0, Ordering::Relaxed);
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if left > 0 {
            self.shared.counters.shutdown.fetch_add(left, Ordering::Relaxed);
            tracing::warn!(exporter = self.name, lost = left, "exporter did not drain in time");
        }
    }
}

/// Says that something fails once per [`COMPLAINT_EVERY`], with how often it failed since.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    last: Option<tokio::time::Instant>,
    failures: u64,
}

impl Complaint {
    pub(crate) fn raise(&mut self, exporter: &'static str, error: &dyn std::fmt::Display) {
        self.failures += 1;
        let now = tokio::time::Instant::now();
        if self.last.is_none_or(|last| now.duration_since(last) >= COMPLAINT_EVERY) {
            tracing::warn!(exporter, failures = self.failures, error = %error, "export failed");
            self.last = Some(now);
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::sync::{Semaphore, mpsc};

    use super::*;
    use crate::model::{Role, fixture};

    /// Exports when the test hands out a permit, and tells the length of each batch.
    struct Gated {
        permits: Arc<Semaphore>,
        batches: mpsc::Sender<usize>,
    }

    impl Exporter for Gated {
        fn name(&self) -> &'static str {
            "gated"
        }

        async fn export(&mut self, batch: &[Arc<CallReport>]) -> Delivery {
            self.permits.acquire().await.expect("the semaphore stays open").forget();
            self.batches.send(batch.len()).await.expect("the test listens");
            Delivery { exported: batch.len() as u64, ..Delivery::default() }
        }
    }

    fn gated(bounds: Queue) -> (ExportHandle, Arc<Semaphore>, mpsc::Receiver<usize>) {
        let permits = Arc::new(Semaphore::new(0));
        let (batches, received) = mpsc::channel(1_000);
        (spawn(Gated { permits: Arc::clone(&permits), batches }, bounds), permits, received)
    }

    fn report() -> Arc<CallReport> {
        Arc::new(fixture::minimal(Role::Server))
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_leaves_at_once_and_a_partial_one_after_the_delay() {
        let (handle, permits, mut batches) = gated(Queue { len: 100, batch: 10, delay: Duration::from_hours(1) });
        permits.add_permits(10);
        let start = tokio::time::Instant::now();
        for _ in 0..10 {
            assert!(handle.offer(report()));
        }
        assert_eq!(batches.recv().await, Some(10));
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(handle.offer(report()));
        assert_eq!(batches.recv().await, Some(1));
        assert!(start.elapsed() >= Duration::from_hours(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_the_newest_and_counts_it() {
        let (handle, permits, _batches) = gated(Queue { len: 5, batch: 5, delay: Duration::from_secs(1) });
        let taken = (0..8).filter(|_| handle.offer(report())).count();
        assert_eq!(taken, 5);
        permits.add_permits(10);
        let counters = handle.counters();
        handle.shutdown(Duration::from_secs(5)).await;
        assert_eq!((counters.offered.load(Relaxed), counters.exported.load(Relaxed)), (8, 5));
        assert_eq!(counters.lost(), [("queue_full", 3), ("export_failed", 0), ("rejected", 0), ("shutdown", 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_drains_and_counts_what_it_cannot() {
        let (handle, permits, _batches) = gated(Queue { len: 100, batch: 10, delay: Duration::from_secs(1) });
        for _ in 0..35 {
            handle.offer(report());
        }
        permits.add_permits(2);
        let counters = handle.counters();
        handle.shutdown(Duration::from_secs(5)).await;
        assert_eq!(counters.exported.load(Relaxed), 20);
        assert_eq!(counters.shutdown.load(Relaxed), 15);
        assert_eq!(counters.offered.load(Relaxed), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_exporter_shuts_down_at_once() {
        let (handle, _permits, _batches) = gated(Queue::default());
        let start = tokio::time::Instant::now();
        handle.shutdown(Duration::from_secs(5)).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
