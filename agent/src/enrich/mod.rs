//! Facts about the processes behind connections, from the outside world to [`Workload`]s.
//!
//! Never waits for anything, never fails: a fact that cannot be had is absent.

pub mod cgroup;
pub mod cgroupfs;
pub mod procfs;

use std::path::Path;
use std::sync::Arc;

use crate::capture::ProcessSeen;
use crate::model::{Timestamp, Workload};
use cgroup::CgroupFacts;
use cgroupfs::CgroupIndex;
use procfs::{Absent, ProcessFacts, Procfs};

/// What became of look-ups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnrichCounts {
    pub lookups: u64,
    /// The process was gone; its facts are those of the kernel record alone.
    pub gone: u64,
    /// The pid was another process already.
    pub reused: u64,
}

/// Looks up processes.
#[derive(Debug)]
pub struct Enricher {
    procfs: Procfs,
    cgroups: CgroupIndex,
    counts: EnrichCounts,
}

impl Enricher {
    /// `proc` is `/proc` but in tests; the cgroup mount is found by its `self/mountinfo`.
    pub fn new(proc: &Path) -> Self {
        let procfs = Procfs::new(proc);
        let mount = procfs.mountinfo().and_then(|text| cgroupfs::find_mount(&text));
        Self { procfs, cgroups: CgroupIndex::new(mount), counts: EnrichCounts::default() }
    }

    pub const fn counts(&self) -> EnrichCounts {
        self.counts
    }

    /// What can be known of a process now. Costs about seven reads of `/proc`.
    pub fn workload(&mut self, seen: &ProcessSeen, now: Timestamp) -> Workload {
        self.counts.lookups += 1;
        let facts = match self.procfs.facts(seen.process) {
            Ok(facts) => facts,
            Err(absent) => {
                match absent {
                    Absent::Gone => self.counts.gone += 1,
                    Absent::Reused => self.counts.reused += 1,
                }
                ProcessFacts::default()
            }
        };
        let cgroup = match &facts.cgroup {
            Some(text) => cgroup::parse(text),
            None => self.cgroups.path(seen.cgroup, now).map(cgroup::of_path).unwrap_or_default(),
        };
        join(seen, facts, cgroup)
    }
}

/// One workload from the kernel's record and what the file systems said.
fn join(seen: &ProcessSeen, facts: ProcessFacts, cgroup: CgroupFacts) -> Workload {
    let command = facts.command.map(Arc::from).or_else(|| (!seen.comm.is_empty()).then(|| Arc::clone(&seen.comm)));
    // `execve` of an open descriptor names it so; the command name is better.
    let started = seen.filename.as_deref().filter(|name| !name.is_empty() && !name.starts_with("/dev/fd/"));
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
        assert_eq!(enricher.counts(), EnrichCounts { lookups: 2, gone: 0, reused: 0 });
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
