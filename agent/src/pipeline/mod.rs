//! The wiring: kernel records to the capture thread, its exchanges to the assess thread, its reports to the exporters,
//! the store and the metrics. Two threads and a bounded queue; nothing is decided here.

pub mod assess;
pub mod capture;
pub mod discover;
pub mod governor;
pub mod losses;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Mutex, PoisonError};

use crate::assess::AssessCounts;
use crate::capture::{Counts, Http3Use, Output, TlsUse};
use crate::discover::Counts as DiscoveryCounts;
use crate::enrich::EnrichCounts;
use crate::model::{Exchange, ProcessRef};

/// Outputs handed over at a time.
pub const BATCH: usize = 512;

/// Batches waiting for the assess thread: 32,768 exchanges, about 32 MiB.
pub const QUEUE_BATCHES: usize = 64;

/// Bytes of content waiting in them. Calls beyond it are told without what their content would have said.
pub const QUEUE_CONTENT: usize = 16 * 1024 * 1024;

/// Outputs of the capture thread, in order.
pub type Batch = Vec<Output>;

/// What the threads tell each other and the supervisor.
#[derive(Debug, Default)]
pub struct Shared {
    /// The capture thread is to drain the ring buffer a last time and end.
    pub stop: AtomicBool,
    /// The capture thread is to give memory back.
    pub shrink: AtomicBool,
    /// Exchanges dropped because the assess thread was behind.
    pub assess_queue_full: AtomicU64,
    /// Process facts dropped for the same reason.
    pub assess_facts_dropped: AtomicU64,
    /// Records that could not be decoded.
    pub malformed_records: AtomicU64,
    /// Records received.
    pub records: AtomicU64,
    /// Panics caught; the connection, or the exchange, was dropped.
    pub panics: AtomicU64,
    pub queued_batches: AtomicUsize,
    /// Bytes of content in them.
    pub queued_content: AtomicUsize,
    /// Calls whose content was let go because too much of it was waiting.
    pub content_dropped: AtomicU64,
    capture: Mutex<CaptureView>,
    assess: Mutex<AssessView>,
    discovery: Mutex<DiscoveryCounts>,
    /// Processes that the filters exclude, to be muted in the kernel.
    muted: Mutex<Vec<ProcessRef>>,
}

/// Bytes of content kept by the exchanges of a batch.
fn content_bytes(batch: &Batch) -> usize {
    batch.iter().map(|output| output.exchange().map_or(0, Exchange::content_bytes)).sum()
}

/// State of the capture thread, as of its last tick.
#[derive(Clone, Debug, Default)]
pub struct CaptureView {
    pub counts: Counts,
    pub connections: usize,
    pub memory: usize,
    /// Processes that use TLS.
    pub tls: Vec<TlsUse>,
    /// Processes that speak QUIC or offer HTTP/3.
    pub http3: Vec<Http3Use>,
}

/// State of the assess thread, as of its last tick.
#[derive(Clone, Copy, Debug, Default)]
pub struct AssessView {
    pub counts: AssessCounts,
    pub enrich: EnrichCounts,
}

/// Processes waiting to be muted at most; the rest comes with their next call.
const MUTE_BACKLOG: usize = 256;

impl Shared {
    pub fn capture(&self) -> CaptureView {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn assess(&self) -> AssessView {
        *self.assess.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was done to find TLS libraries.
    pub fn discovery(&self) -> DiscoveryCounts {
        *self.discovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_discovery(&self, counts: DiscoveryCounts) {
        *self.discovery.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    fn publish_capture(&self, view: CaptureView) {
        *self.capture.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn publish_assess(&self, view: AssessView) {
        *self.assess.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn mute(&self, process: ProcessRef) {
        let mut muted = self.muted.lock().unwrap_or_else(PoisonError::into_inner);
        if muted.len() < MUTE_BACKLOG && !muted.contains(&process) {
            muted.push(process);
        }
    }

    /// Processes to mute since the last call.
    pub fn take_muted(&self) -> Vec<ProcessRef> {
        std::mem::take(&mut *self.muted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
