//! The discovery thread: mappings as they appear, processes that were seen to use TLS, and a sweep now and then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Shared;
use crate::bpf::Mappings;
use crate::capture::TlsUse;
use crate::clock;
use crate::discover::{Discovery, Unread};
use crate::model::ProcessRef;

/// Mappings come in groups: the loader's of a new process.
const LAZY: Duration = Duration::from_millis(1);
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
const TICK_NS: u64 = 1_000_000_000;
/// Without events of new mappings everything is looked at this often at least.
const BLIND_SWEEP: Duration = Duration::from_secs(5);
/// Processes explained in one tick.
const EXPLAIN: usize = 32;

/// The thread's state.
pub struct Worker {
    pub discovery: Discovery,
    /// `None`: the kernel does not tell of mappings.
    pub mappings: Option<Mappings>,
    pub shared: Arc<Shared>,
    /// Between two sweeps.
    sweep: Duration,
    /// Processes that ended before they could be explained, as long as capture knows of them.
    gone: HashSet<ProcessRef>,
    /// Connections of each process at the last tick.
    before: HashMap<ProcessRef, u64>,
}

impl Worker {
    /// `sweep`: between two looks at everything.
    pub fn new(discovery: Discovery, mappings: Option<Mappings>, shared: Arc<Shared>, sweep: Duration) -> Self {
        let sweep = if mappings.is_some() { sweep } else { sweep.min(BLIND_SWEEP) };
        Self { discovery, mappings, shared, gone: HashSet::new(), before: HashMap::new(), sweep }
    }

    /// Run until told to stop. Dropping the worker detaches everything.
    pub fn run(mut self) {
        let (mut last_tick, mut last_sweep) = (clock::now(), clock::now());
        while !self.shared.stop.load(Ordering::Acquire) {
            self.wait();
            self.take_mappings();
            let now = clock::now();
            if now.since(last_tick) >= TICK_NS {
                last_tick = now;
                self.explain();
                self.discovery.publish();
                self.shared.publish_discovery(self.discovery.counts());
            }
            if u128::from(now.since(last_sweep)) >= self.sweep.as_nanos() {
                last_sweep = now;
                self.discovery.sweep();
            }
        }
    }

    fn wait(&self) {
        let Some(mappings) = &self.mappings else {
            thread::sleep(Duration::from_millis(250));
            return;
        };
        let fds: Vec<_> = mappings.fds().collect();
        let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // Interrupted or failed: the events are looked at either way.
        if matches!(poll(&mut fds, Some(&WAIT)), Ok(ready) if ready > 0) {
            thread::sleep(LAZY);
        }
    }

    fn take_mappings(&mut self) {
        let Some(mappings) = &mut self.mappings else { return };
        let discovery = &mut self.discovery;
        if mappings.drain(&mut |mapped| discovery.on_mapped(&mapped)) {
            discovery.on_overflow();
        }
        discovery.publish_news();
    }

    /// Processes that use TLS: by which source are they read, or why not.
    fn explain(&mut self) {
        let known = self.discovery.view();
        let mut left = EXPLAIN;
        let uses = self.shared.capture().tls;
        let now: HashMap<ProcessRef, u64> = uses.iter().map(|used| (used.process, used.sockets)).collect();
        let before = std::mem::replace(&mut self.before, now);
        self.gone.retain(|process| self.before.contains_key(process));
        for used in uses {
            let unread = unread(&used, before.get(&used.process).copied());
            let explained = {
                let view = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                view.processes.get(&used.process).is_some_and(|known| !known.is_open(unread))
            };
            if explained || left == 0 || self.gone.contains(&used.process) {
                continue;
            }
            if self.discovery.explain(used.process, unread) {
                left -= 1;
            } else {
                self.gone.insert(used.process);
            }
        }
    }
}

/// What is not read of a process that had so many connections a while ago.
fn unread(used: &TlsUse, before: Option<u64>) -> Unread {
    if before.is_some_and(|before| used.read < before) {
        Unread::Lasting
    } else if used.read == 0 {
        Unread::All
    } else {
        Unread::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{SocketAddress, Timestamp};

    #[test]
    fn only_connections_that_are_not_new_open_the_search_of_a_process_that_is_read() {
        for (sockets, read, before, want) in [
            (1, 0, None, Unread::All),
            (1, 1, None, Unread::Nothing),
            (1, 0, Some(1), Unread::Lasting),
            (7, 5, Some(5), Unread::Nothing),
            (7, 5, Some(6), Unread::Lasting),
            (3, 2, None, Unread::Nothing),
        ] {
            let used = TlsUse {
                process: ProcessRef { pid: 7, start_ns: 1 },
                comm: Arc::from("x"),
                sockets,
                read,
                backend: None,
                server_name: None,
                local: SocketAddress::Unknown,
                remote: SocketAddress::Unknown,
                last: Timestamp(0),
            };
            assert_eq!(unread(&used, before), want, "{read} of {sockets}, {before:?} before");
        }
    }
}
