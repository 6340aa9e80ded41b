//! The capture thread: ring buffer in, exchanges out. Sleeps briefly after each wake-up, because waking a reader costs
//! the observed process more than the copy.

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{BATCH, Batch, CaptureView, QUEUE_CONTENT, Shared, content_bytes};
use crate::bpf::Ring;
use crate::capture::{Capture, Output};
use crate::clock;
use crate::event::{self, KernelEvent};
use crate::model::{ConnId, Timestamp};

/// Pause after a wake-up: records gather, and the kernel sees no reader to wake.
const LAZY: Duration = Duration::from_millis(1);
/// Longest wait for a record, so that ticks and stopping are seen.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const TICK_NS: u64 = 1_000_000_000;

/// Where records come from: the ring buffer, or a recording.
pub trait Records: Send {
    /// Readable when records wait; `None` never waits.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Calls `each` for the records that are there now. Returns how many there were.
    fn drain(&mut self, each: &mut dyn FnMut(&[u8])) -> usize;
}

impl Records for Ring {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn drain(&mut self, each: &mut dyn FnMut(&[u8])) -> usize {
        Self::drain(self, each)
    }
}

/// The thread's state.
pub struct Worker {
    pub capture: Capture,
    pub shared: Arc<Shared>,
    pub queue: SyncSender<Batch>,
    pending: Batch,
    last_tick: Timestamp,
}

impl Worker {
    pub fn new(capture: Capture, shared: Arc<Shared>, queue: SyncSender<Batch>) -> Self {
        Self { capture, shared, queue, pending: Vec::with_capacity(BATCH), last_tick: Timestamp(0) }
    }

    /// Run until told to stop, then drain what is left.
    pub fn run(mut self, mut records: impl Records) {
        loop {
            let stopping = self.shared.stop.load(Ordering::Acquire);
            let count = records.drain(&mut |record| {
                self.on_record(record);
            });
            self.shared.records.fetch_add(count as u64, Ordering::Relaxed);
            self.hand_over();
            self.tick();
            if stopping && count == 0 {
                break;
            }
            if let Some(fd) = records.fd()
                && !stopping
            {
                wait(fd, count > 0);
            }
        }
        self.finish();
    }

    fn on_record(&mut self, record: &[u8]) {
        let decoded = match event::decode(record) {
            Ok(decoded) => decoded,
            Err(error) => {
                // Both sides are built together: this is a defect worth a word, but not a flood of them.
                if self.shared.malformed_records.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!(%error, "a kernel record cannot be decoded");
                }
                return;
            }
        };
        let conn = connection(&decoded);
        let (capture, pending) = (&mut self.capture, &mut self.pending);
        if catch_unwind(AssertUnwindSafe(|| capture.on_event(decoded, pending))).is_err() {
            self.shared.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!("a parser panicked; its connection is dropped");
            if let Some(conn) = conn {
                self.capture.forget(conn);
            }
        }
        if self.pending.len() >= BATCH {
            self.hand_over();
        }
    }

    /// Give the pending outputs to the assess thread; when it is behind they are dropped and counted.
    fn hand_over(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut batch = std::mem::replace(&mut self.pending, Vec::with_capacity(BATCH));
        let content = self.bound_content(&mut batch);
        match self.queue.try_send(batch) {
            Ok(()) => _ = self.shared.queued_batches.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => {
                self.shared.queued_content.fetch_sub(content, Ordering::Relaxed);
                let (mut exchanges, mut facts) = (0, 0);
                for output in &batch {
                    match output {
                        Output::Exchange(_) => exchanges += 1,
                        Output::Process(_) | Output::SelfInstrumented(_) => facts += 1,
                        // Told again, or over.
                        Output::Progress(_) => {}
                    }
                }
                self.shared.assess_queue_full.fetch_add(exchanges, Ordering::Relaxed);
                self.shared.assess_facts_dropped.fetch_add(facts, Ordering::Relaxed);
                // Facts are told once; forget that, so that they are told again.
                self.capture.announce_again();
            }
        }
    }

    /// Count the content of a batch that is to wait, or let go of it where too much is waiting. Returns its bytes.
    fn bound_content(&self, batch: &mut Batch) -> usize {
        let bytes = content_bytes(batch);
        let waiting = self.shared.queued_content.fetch_add(bytes, Ordering::Relaxed);
        if bytes == 0 || waiting.saturating_add(bytes) <= QUEUE_CONTENT {
            return bytes;
        }
        self.shared.queued_content.fetch_sub(bytes, Ordering::Relaxed);
        for exchange in batch.iter_mut().filter_map(Output::exchange_mut) {
            let dropped = u64::from(exchange.content_bytes() > 0);
            self.shared.content_dropped.fetch_add(dropped, Ordering::Relaxed);
            exchange.forget_content();
        }
        0
    }

    fn tick(&mut self) {
        let now = clock::now();
        if now.since(self.last_tick) < TICK_NS {
            return;
        }
        self.last_tick = now;
        if self.shared.shrink.swap(false, Ordering::AcqRel) {
            self.capture.shrink(self.capture.memory() / 2, &mut self.pending);
        }
        self.capture.on_tick(now, &mut self.pending);
        self.hand_over();
        self.publish();
    }

    fn publish(&self) {
        self.shared.publish_capture(CaptureView {
            counts: self.capture.counts().clone(),
            connections: self.capture.connections(),
            memory: self.capture.memory(),
            tls: self.capture.tls_uses(),
            http3: self.capture.http3_uses(),
        });
    }

    /// What is still open is reported as it stands. Waits for the queue: nobody is behind us any more.
    fn finish(mut self) {
        self.capture.shrink(0, &mut self.pending);
        self.publish();
        while !self.pending.is_empty() {
            let rest = self.pending.split_off(self.pending.len().min(BATCH));
            let mut batch = std::mem::replace(&mut self.pending, rest);
            self.bound_content(&mut batch);
            if self.queue.send(batch).is_err() {
                break;
            }
            self.shared.queued_batches.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Wait for records: after some were found sleep first, so that more gather.
fn wait(fd: BorrowedFd<'_>, found: bool) {
    if found {
        thread::sleep(LAZY);
        return;
    }
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    // Interrupted or failed: the loop looks at the ring again either way.
    if matches!(poll(&mut fds, Some(&WAIT)), Ok(ready) if ready > 0) {
        thread::sleep(LAZY);
    }
}

fn connection(event: &KernelEvent<'_>) -> Option<ConnId> {
    event.conn()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::capture::Settings;
    use crate::model::fixture;

    #[test]
    fn calls_whose_content_waits_for_too_long_go_on_without_it() {
        let (queue, batches) = sync_channel(3);
        let shared = Arc::new(Shared::default());
        let mut worker = Worker::new(Capture::new(Settings::default()), Arc::clone(&shared), queue);
        let half = QUEUE_CONTENT / 2;
        let call = |bytes: usize| {
            let mut exchange = fixture::exchange("/rpc");
            exchange.request.as_mut().unwrap().body.prefix = vec![b'{'; bytes];
            Output::Exchange(Box::new(exchange))
        };
        for bytes in [half, half, 1, 0] {
            worker.pending.push(call(bytes));
            worker.hand_over();
        }
        assert_eq!(shared.queued_content.load(Ordering::Relaxed), QUEUE_CONTENT);
        assert_eq!(shared.content_dropped.load(Ordering::Relaxed), 1);
        // The fourth found no room at all, and takes nothing with it.
        assert_eq!(shared.assess_queue_full.load(Ordering::Relaxed), 1);
        let kept: Vec<usize> = batches.try_iter().map(|batch| content_bytes(&batch)).collect();
        assert_eq!(kept, [half, half, 0]);
    }
}
