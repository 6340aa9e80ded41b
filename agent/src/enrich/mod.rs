//! Facts about the processes behind connections, from the outside world to [`Workload`]s.
//!
//! Never waits for anything, never fails: a fact that cannot be had is absent.

pub mod cgroup;
pub mod cgroupfs;
pub mod procfs;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::capture::ProcessSeen;
use crate::model::{Connection, ProcessRef, Timestamp, Workload};
use cgroup::CgroupFacts;
use cgroupfs::CgroupIndex;
use procfs::{Absent, ProcessFacts, Procfs};

/// Programs begun that are remembered, in case their process opens a connection and is gone by then.
const STARTS_MAX: usize = 4096;

/// Look-ups a second for programs that only began: a build begins thousands of compilers.
const EAGER_PER_SECOND: u32 = 200;

const SECOND_NS: u64 = 1_000_000_000;

/// What became of look-ups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnrichCounts {
    pub lookups: u64,
    /// The process was gone; its facts are those of the kernel record alone.
    pub gone: u64,
    /// The pid was another process already.
    pub reused: u64,
    /// Programs that began and were not looked up, because too many began in that second.
    pub deferred: u64,
}

/// Looks up processes.
#[derive(Debug)]
pub struct Enricher {
    procfs: Procfs,
    cgroups: CgroupIndex,
    starts: Starts,
    /// The second in which eager look-ups are counted, and their number.
    eager: (u64, u32),
    counts: EnrichCounts,
}

/// The programs begun most recently, by pid: two halves, so that forgetting the older half costs nothing.
#[derive(Debug, Default)]
struct Starts {
    newer: HashMap<u32, Start>,
    older: HashMap<u32, Start>,
}

#[derive(Clone, Debug)]
struct Start {
    process: ProcessRef,
    filename: Option<Arc<str>>,
    /// Facts read while the process was young.
    workload: Option<Workload>,
}

impl Starts {
    fn get(&self, process: ProcessRef) -> Option<&Start> {
        let start = self.newer.get(&process.pid).or_else(|| self.older.get(&process.pid))?;
        (start.process == process).then_some(start)
    }

    fn insert(&mut self, start: Start) {
        if self.newer.len() >= STARTS_MAX / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(start.process.pid, start);
    }
}

impl Enricher {
    /// `proc` is `/proc` but in tests; the cgroup mount is found by its `self/mountinfo`.
    pub fn new(proc: &Path) -> Self {
        let procfs = Procfs::new(proc);
        let mount = procfs.mountinfo().and_then(|text| cgroupfs::find_mount(&text));
        Self {
            procfs,
            cgroups: CgroupIndex::new(mount),
            starts: Starts::default(),
            eager: (0, 0),
            counts: EnrichCounts::default(),
        }
    }

    pub const fn counts(&self) -> EnrichCounts {
        self.counts
    }

    /// A process was seen. `Some` are facts to keep: it has a connection, or (`known`) had one before it began this
    /// program. A program that merely began is remembered here, for the case that it is gone when it connects.
    pub fn on_process(&mut self, seen: &ProcessSeen, known: bool, now: Timestamp) -> Option<Workload> {
        let begun = seen.filename.is_some();
        if !begun || known {
            return Some(self.workload(seen, now));
        }
        let workload = if self.may_look_up_eagerly(now) {
            Some(self.workload(seen, now))
        } else {
            self.counts.deferred += 1;
            None
        };
        self.starts.insert(Start { process: seen.process, filename: seen.filename.clone(), workload });
        None
    }

    /// Facts of the process behind a connection, when nothing else told of it.
    pub fn of_connection(&mut self, connection: &Connection, now: Timestamp) -> Workload {
        let seen = ProcessSeen {
            process: connection.process,
            comm: Arc::clone(&connection.comm),
            cgroup: connection.cgroup,
            filename: None,
        };
        self.workload(&seen, now)
    }

    fn may_look_up_eagerly(&mut self, now: Timestamp) -> bool {
        let second = now.0 / SECOND_NS;
        if self.eager.0 != second {
            self.eager = (second, 0);
        }
        self.eager.1 += 1;
        self.eager.1 <= EAGER_PER_SECOND
    }

    /// What can be known of a process now, or could be when its program began.
    fn workload(&mut self, seen: &ProcessSeen, now: Timestamp) -> Workload {
        self.counts.lookups += 1;
        let start = self.starts.get(seen.process);
        let facts = match self.procfs.facts(seen.process) {
            Ok(facts) => facts,
            Err(absent) => {
                match absent {
                    Absent::Gone => self.counts.gone += 1,
                    Absent::Reused => self.counts.reused += 1,
                }
                if seen.filename.is_none()
                    && let Some(workload) = start.and_then(|start| start.workload.clone())
                {
                    return workload;
                }
                ProcessFacts::default()
            }
        };
        let filename = seen.filename.clone().or_else(|| start.and_then(|start| start.filename.clone()));
        let cgroup = match &facts.cgroup {
            Some(text) => cgroup::parse(text),
            None => self.cgroups.path(seen.cgroup, now).map(cgroup::of_path).unwrap_or_default(),
        };
        join(seen, filename.as_deref(), facts, cgroup)
    }
}

/// One workload from the kernel's record and what the file systems said.
fn join(seen: &ProcessSeen, filename: Option<&str>, facts: ProcessFacts, cgroup: CgroupFacts) -> Workload {
    let command = facts.command.map(Arc::from).or_else(|| (!seen.comm.is_empty()).then(|| Arc::clone(&seen.comm)));
    // `execve` of an open descriptor names it so; the command name is better.
    let started = filename.filter(|name| !name.is_empty() && !name.starts_with("/dev/fd/"));
    let path = facts.executable_path.as_deref().or(started);
    let name = path.and_then(base_name).map(Arc::from).or_else(|| command.clone());
    Workload {
        process: seen.process,
        executable_name: name.clone(),
        executable_path: path.filter(|path| path.starts_with('/')).map(Arc::from),
        command,
        container_id: cgroup.container_id.map(Arc::from),
        pod_uid: cgroup.pod_uid.map(Arc::from),
        cgroup_path: cgroup.path.map(Arc::from),
        service_name: facts.environment.service_name.map(Arc::from).or(name),
        service_namespace: facts.environment.service_namespace.map(Arc::from),
        opted_out: facts.environment.opted_out,
        self_instrumented: false,
    }
}

fn base_name(path: &str) -> Option<&str> {
    path.rsplit('/').next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::procfs::tests::fixture;
    use super::*;
    use crate::model::ProcessRef;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn seen(pid: u32, start_ns: u64, comm: &str, filename: Option<&str>) -> ProcessSeen {
        ProcessSeen {
            process: ProcessRef { pid, start_ns },
            comm: comm.into(),
            cgroup: 0,
            filename: filename.map(Arc::from),
        }
    }

    #[test]
    fn a_living_process_is_named_by_its_environment_then_its_executable() {
        let (root, directory) = fixture(7, 100);
        symlink("/usr/bin/python3.11", directory.join("exe")).unwrap();
        fs::write(directory.join("comm"), "gunicorn\n").unwrap();
        let id = "a".repeat(64);
        fs::write(directory.join("cgroup"), format!("0::/docker/{id}\n")).unwrap();
        let mut enricher = Enricher::new(root.path());
        let workload = enricher.workload(&seen(7, 1_000_000_000, "python3", Some("/app/run.py")), NOW);
        assert_eq!(workload.executable_name.as_deref(), Some("python3.11"));
        assert_eq!(workload.executable_path.as_deref(), Some("/usr/bin/python3.11"));
        assert_eq!(workload.command.as_deref(), Some("gunicorn"));
        assert_eq!(workload.service_name.as_deref(), Some("python3.11"));
        assert_eq!(workload.container_id.as_deref(), Some(id.as_str()));

        fs::write(directory.join("environ"), "OTEL_RESOURCE_ATTRIBUTES=service.name=shop,service.namespace=eu\0")
            .unwrap();
        let workload = enricher.workload(&seen(7, 1_000_000_000, "python3", None), NOW);
        assert_eq!(workload.service_name.as_deref(), Some("shop"));
        assert_eq!(workload.service_namespace.as_deref(), Some("eu"));
        assert_eq!(workload.executable_name.as_deref(), Some("python3.11"));
        assert_eq!(enricher.counts(), EnrichCounts { lookups: 2, ..EnrichCounts::default() });
    }

    #[test]
    fn a_process_that_is_gone_has_what_the_kernel_said() {
        let root = tempfile::tempdir().unwrap();
        let mut enricher = Enricher::new(root.path());
        for (filename, path, name) in [
            (Some("/usr/bin/curl"), Some("/usr/bin/curl"), "curl"),
            (Some("./bin/curl"), None, "curl"),
            (Some("/dev/fd/3"), None, "worker"),
            (Some(""), None, "worker"),
            (None, None, "worker"),
        ] {
            let workload = enricher.workload(&seen(9, 5, "worker", filename), NOW);
            assert_eq!(workload.executable_path.as_deref(), path, "{filename:?}");
            assert_eq!(workload.executable_name.as_deref(), Some(name), "{filename:?}");
            assert_eq!(workload.service_name.as_deref(), Some(name), "{filename:?}");
            assert_eq!(workload.command.as_deref(), Some("worker"), "{filename:?}");
        }
        assert_eq!(enricher.counts().gone, 5);
    }

    #[test]
    fn a_reused_pid_lends_nothing_to_the_process_before() {
        let (root, directory) = fixture(7, 100);
        symlink("/usr/bin/evil", directory.join("exe")).unwrap();
        fs::write(directory.join("environ"), "OTEL_SERVICE_NAME=evil\0").unwrap();
        let mut enricher = Enricher::new(root.path());
        let workload = enricher.workload(&seen(7, 500_000_000, "curl", Some("/usr/bin/curl")), NOW);
        assert_eq!(workload.service_name.as_deref(), Some("curl"));
        assert_eq!(enricher.counts().reused, 1);
    }

    #[test]
    fn a_short_lived_process_keeps_what_was_read_when_it_began() {
        let (root, directory) = fixture(7, 100);
        symlink("/usr/bin/curl", directory.join("exe")).unwrap();
        fs::write(directory.join("environ"), "OTEL_SERVICE_NAME=probe\0").unwrap();
        let mut enricher = Enricher::new(root.path());
        assert_eq!(enricher.on_process(&seen(7, 1_000_000_000, "sh", Some("curl")), false, NOW), None);
        fs::remove_dir_all(&directory).unwrap();
        let workload = enricher.on_process(&seen(7, 1_000_000_000, "curl", None), false, NOW).unwrap();
        assert_eq!(workload.service_name.as_deref(), Some("probe"));
        assert_eq!(workload.executable_path.as_deref(), Some("/usr/bin/curl"));
        let other = enricher.on_process(&seen(7, 2_000_000_000, "wget", None), false, NOW).unwrap();
        assert_eq!(other.service_name.as_deref(), Some("wget"), "another process with that pid");
    }

    #[test]
    fn a_known_process_that_begins_a_program_is_looked_up_at_once() {
        let (root, directory) = fixture(7, 100);
        symlink("/usr/bin/java", directory.join("exe")).unwrap();
        let workload = Enricher::new(root.path()).on_process(&seen(7, 0, "java", Some("java")), true, NOW);
        assert_eq!(workload.and_then(|workload| workload.executable_name).as_deref(), Some("java"));
    }

    #[test]
    fn a_storm_of_programs_is_remembered_by_name_alone() {
        let root = tempfile::tempdir().unwrap();
        let mut enricher = Enricher::new(root.path());
        for pid in 1..=10_000 {
            enricher.on_process(&seen(pid, 5, "sh", Some("/usr/bin/cc")), false, NOW);
        }
        assert_eq!(enricher.counts().lookups, u64::from(EAGER_PER_SECOND));
        assert_eq!(enricher.counts().deferred, 10_000 - u64::from(EAGER_PER_SECOND));
        assert!(enricher.starts.newer.len() + enricher.starts.older.len() <= STARTS_MAX);
        let last = enricher.on_process(&seen(10_000, 5, "cc", None), false, NOW).unwrap();
        assert_eq!(last.executable_path.as_deref(), Some("/usr/bin/cc"));
        let later = Timestamp(NOW.0 + SECOND_NS);
        enricher.on_process(&seen(1, 5, "sh", Some("/usr/bin/cc")), false, later);
        assert_eq!(enricher.counts().deferred, 10_000 - u64::from(EAGER_PER_SECOND), "a new second, a new allowance");
    }

    #[test]
    fn the_cgroup_of_a_process_that_is_gone_is_found_by_its_inode() {
        let root = tempfile::tempdir().unwrap();
        let mount = tempfile::tempdir().unwrap();
        let id = "b".repeat(64);
        let scope = mount.path().join(format!("system.slice/docker-{id}.scope"));
        fs::create_dir_all(&scope).unwrap();
        fs::create_dir(root.path().join("self")).unwrap();
        let mountinfo = format!("31 23 0:27 / {} rw - cgroup2 cgroup2 rw", mount.path().display());
        fs::write(root.path().join("self/mountinfo"), mountinfo).unwrap();
        let mut short = seen(9, 5, "curl", None);
        short.cgroup = fs::metadata(&scope).unwrap().ino();
        let workload = Enricher::new(root.path()).workload(&short, NOW);
        assert_eq!(workload.container_id.as_deref(), Some(id.as_str()));
        assert_eq!(workload.cgroup_path, Some(format!("/system.slice/docker-{id}.scope").into()));
    }
}
