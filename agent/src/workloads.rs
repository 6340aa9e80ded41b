//! Who is behind a connection: a bounded table of processes. Pure: facts come in as updates; it never reads `/proc`.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{Connection, ProcessRef, Workload};

/// How much [`Workloads`] remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadLimits {
    /// Processes, dead ones included (about 1 KiB each); the one not used for longest makes room.
    pub processes: usize,
    /// How long a process is remembered after its last use: late records of it still find its facts.
    pub keep_ns: u64,
}

/// What [`Workloads`] holds and gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadCounts {
    pub processes: u64,
    /// Forgotten to make room.
    pub evicted: u64,
    /// Look-ups that found nothing.
    pub unknown: u64,
}

/// Processes by pid and start time.
#[derive(Debug)]
pub struct Workloads {
    limits: WorkloadLimits,
    by_process: HashMap<ProcessRef, Entry>,
    /// The latest known process of a pid.
    latest: HashMap<u32, ProcessRef>,
    counts: WorkloadCounts,
}

#[derive(Debug)]
struct Entry {
    workload: Arc<Workload>,
    used_ns: u64,
    /// Made from a connection alone, until facts arrive.
    provisional: bool,
}

impl Default for WorkloadLimits {
    fn default() -> Self {
        Self { processes: 16 * 1024, keep_ns: 600_000_000_000 }
    }
}

impl Workloads {
    pub fn new(limits: WorkloadLimits) -> Self {
        Self { limits, by_process: HashMap::new(), latest: HashMap::new(), counts: WorkloadCounts::default() }
    }

    pub const fn counts(&self) -> WorkloadCounts {
        self.counts
    }

    /// New facts; they replace what was known, except that a process once seen exporting spans stays marked.
    pub fn update(&mut self, mut workload: Workload, now_ns: u64) {
        let process = workload.process;
        if self.find(process).is_some_and(|entry| entry.workload.self_instrumented) {
            workload.self_instrumented = true;
        }
        self.insert(process, Entry { workload: Arc::new(workload), used_ns: now_ns, provisional: false });
    }

    /// The workload of `process`, by pid alone when its start is not known.
    pub fn get(&mut self, process: ProcessRef, now_ns: u64) -> Option<Arc<Workload>> {
        let key = self.key(process)?;
        let entry = self.by_process.get_mut(&key)?;
        entry.used_ns = entry.used_ns.max(now_ns);
        Some(Arc::clone(&entry.workload))
    }

    /// As [`get`](Self::get); an unknown process is entered with what the connection tells of it.
    pub fn of_connection(&mut self, connection: &Connection, now_ns: u64) -> Arc<Workload> {
        if let Some(workload) = self.get(connection.process, now_ns) {
            return workload;
        }
        self.counts.unknown += 1;
        let workload = Arc::new(from_connection(connection));
        self.insert(connection.process, Entry { workload: Arc::clone(&workload), used_ns: now_ns, provisional: true });
        workload
    }

    /// The process exports OTLP spans itself. True when this was not known before.
    pub fn mark_self_instrumented(&mut self, process: ProcessRef, now_ns: u64) -> bool {
        if let Some(key) = self.key(process)
            && let Some(entry) = self.by_process.get_mut(&key)
        {
            if entry.workload.self_instrumented {
                return false;
            }
            Arc::make_mut(&mut entry.workload).self_instrumented = true;
            return true;
        }
        let workload = Arc::new(Workload { process, self_instrumented: true, ..Workload::default() });
        self.insert(process, Entry { workload, used_ns: now_ns, provisional: true });
        true
    }

    /// True when only a connection told of this process, or nothing: facts are worth a look-up.
    pub fn wants_facts(&self, process: ProcessRef) -> bool {
        self.find(process).is_none_or(|entry| entry.provisional)
    }

    /// Forget what was not used for long. Called about once a second.
    pub fn on_tick(&mut self, now_ns: u64) {
        let oldest = now_ns.saturating_sub(self.limits.keep_ns);
        self.retain(|entry| entry.used_ns >= oldest);
    }

    /// Shrink to `processes`, for the memory ceiling; the ones not used for longest go.
    pub fn shrink_to(&mut self, processes: usize) {
        let excess = self.by_process.len().saturating_sub(processes);
        if excess == 0 {
            return;
        }
        let mut used: Vec<u64> = self.by_process.values().map(|entry| entry.used_ns).collect();
        let (_, cut, _) = used.select_nth_unstable(excess - 1);
        let cut = *cut;
        let mut room = excess;
        self.retain(|entry| {
            let goes = room > 0 && entry.used_ns <= cut;
            room -= usize::from(goes);
            !goes
        });
        self.counts.evicted += excess as u64;
    }

    fn insert(&mut self, process: ProcessRef, entry: Entry) {
        if !self.by_process.contains_key(&process) && self.by_process.len() >= self.limits.processes.max(1) {
            // A sixteenth at once, so that a full table is not searched for each new process.
            self.shrink_to(self.limits.processes.saturating_sub(self.limits.processes / 16 + 1));
        }
        let newest = self.latest.entry(process.pid).or_insert(process);
        if process.start_ns >= newest.start_ns {
            *newest = process;
        }
        self.by_process.insert(process, entry);
        self.counts.processes = self.by_process.len() as u64;
    }

    fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        self.by_process.retain(|_, entry| keep(entry));
        self.latest.retain(|_, process| self.by_process.contains_key(process));
        self.counts.processes = self.by_process.len() as u64;
    }

    /// The key under which `process` is held.
    fn key(&self, process: ProcessRef) -> Option<ProcessRef> {
        if self.by_process.contains_key(&process) {
            return Some(process);
        }
        // An entry without a start is of whichever process had the pid: good enough only for one without a start.
        if process.start_ns == 0 { self.latest.get(&process.pid).copied() } else { None }
    }

    fn find(&self, process: ProcessRef) -> Option<&Entry> {
        self.by_process.get(&self.key(process)?)
    }
}

impl Default for Workloads {
    fn default() -> Self {
        Self::new(WorkloadLimits::default())
    }
}

/// What a connection tells of its process: the command name, which is the executable's name unless changed.
fn from_connection(connection: &Connection) -> Workload {
    let name = (!connection.comm.is_empty()).then(|| Arc::clone(&connection.comm));
    Workload {
        process: connection.process,
        executable_name: name.clone(),
        command: name.clone(),
        service_name: name,
        ..Workload::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backend, ConnId, SocketAddress, Timestamp, Transport};

    fn process(pid: u32, start_ns: u64) -> ProcessRef {
        ProcessRef { pid, start_ns }
    }

    fn workload(pid: u32, start_ns: u64, name: &str) -> Workload {
        Workload { process: process(pid, start_ns), service_name: Some(name.into()), ..Workload::default() }
    }

    fn connection(pid: u32, start_ns: u64, comm: &str) -> Connection {
        Connection {
            id: ConnId(1),
            transport: Transport::Tcp,
            local: SocketAddress::Unknown,
            remote: SocketAddress::Unknown,
            backend: Backend::SockTracepoint,
            tls: None,
            process: process(pid, start_ns),
            comm: comm.into(),
            cgroup: 0,
            uid: 0,
            netns: 0,
            first_seen: Timestamp(0),
        }
    }

    fn name(workload: Option<Arc<Workload>>) -> Option<String> {
        workload.and_then(|workload| workload.service_name.as_deref().map(str::to_owned))
    }

    #[test]
    fn a_reused_pid_is_another_workload() {
        let mut table = Workloads::default();
        table.update(workload(7, 100, "old"), 1);
        table.update(workload(7, 200, "new"), 2);
        assert_eq!(name(table.get(process(7, 100), 3)).as_deref(), Some("old"));
        assert_eq!(name(table.get(process(7, 200), 3)).as_deref(), Some("new"));
        assert_eq!(name(table.get(process(7, 0), 3)).as_deref(), Some("new"), "without a start, the latest");
        assert_eq!(table.get(process(7, 300), 3), None);
    }

    #[test]
    fn late_facts_of_an_old_process_do_not_become_the_latest() {
        let mut table = Workloads::default();
        table.update(workload(7, 200, "new"), 1);
        table.update(workload(7, 100, "old"), 2);
        assert_eq!(name(table.get(process(7, 0), 3)).as_deref(), Some("new"));
    }

    #[test]
    fn an_unknown_process_has_what_its_connection_tells_until_facts_arrive() {
        let mut table = Workloads::default();
        let first = table.of_connection(&connection(7, 100, "nginx"), 1);
        assert_eq!(first.service_name.as_deref(), Some("nginx"));
        assert_eq!(first.command.as_deref(), Some("nginx"));
        assert!(table.wants_facts(process(7, 100)));
        assert_eq!(table.counts().unknown, 1);
        table.update(workload(7, 100, "shop"), 2);
        assert!(!table.wants_facts(process(7, 100)));
        assert_eq!(table.of_connection(&connection(7, 100, "nginx"), 3).service_name.as_deref(), Some("shop"));
        assert_eq!(table.counts().unknown, 1);
        assert_eq!(table.of_connection(&connection(8, 100, ""), 3).service_name, None);
    }

    #[test]
    fn a_process_that_exports_spans_stays_marked() {
        let mut table = Workloads::default();
        assert!(table.mark_self_instrumented(process(7, 100), 1));
        assert!(!table.mark_self_instrumented(process(7, 100), 1));
        assert!(!table.mark_self_instrumented(process(7, 0), 1));
        table.update(workload(7, 100, "shop"), 2);
        assert!(table.get(process(7, 100), 2).unwrap().self_instrumented);
        table.update(workload(7, 200, "other"), 3);
        assert!(!table.get(process(7, 200), 3).unwrap().self_instrumented);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_unused() {
        let mut table = Workloads::new(WorkloadLimits { processes: 100, keep_ns: 1000 });
        for pid in 0..1000_u32 {
            table.update(workload(pid, 1, "x"), u64::from(pid));
        }
        assert!(table.counts().processes <= 100);
        assert_eq!(table.counts().processes + table.counts().evicted, 1000);
        assert!(table.get(process(999, 1), 999).is_some());
        assert!(table.get(process(0, 1), 999).is_none());
        assert!(table.latest.len() <= 100);
        table.get(process(950, 0), 3000);
        table.on_tick(3000);
        assert_eq!(table.counts().processes, 1, "only what was used a moment ago");
        assert!(table.get(process(950, 1), 3000).is_some());
    }

    #[test]
    fn a_dead_process_is_remembered_for_a_while() {
        let mut table = Workloads::new(WorkloadLimits { processes: 10, keep_ns: 1000 });
        table.update(workload(7, 100, "curl"), 5000);
        table.on_tick(6000);
        assert!(table.get(process(7, 100), 5000).is_some());
        table.on_tick(6001);
        assert!(table.get(process(7, 100), 6001).is_none());
    }
}
