//! Facts about one process from `/proc`.
//!
//! Reads only, bounded, and never waits. Of the environment it keeps three variables and nothing else. A process may
//! vanish between any two reads: what was read stays, unless the pid turned out to be another process.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::model::ProcessRef;

/// Most bytes read of an environment.
const ENVIRON_MAX: u64 = 256 * 1024;

/// Most bytes read of any other file.
const FILE_MAX: u64 = 64 * 1024;

/// Longest value kept of an environment variable or of one attribute.
const VALUE_MAX: usize = 255;

/// `USER_HZ`, in which `/proc/PID/stat` counts on every architecture that BPF programs run on.
const TICK_NS: u64 = 10_000_000;

/// What `/proc/PID` said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Time since boot, nanoseconds, in steps of 10 ms.
    pub start_ns: u64,
    /// Target of `exe`, without ` (deleted)`.
    pub executable_path: Option<String>,
    pub command: Option<String>,
    /// Text of `cgroup`.
    pub cgroup: Option<String>,
    pub environment: Environment,
}

/// The variables that say how a process wants to be named and observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `OTEL_SERVICE_NAME`, else `service.name` of `OTEL_RESOURCE_ATTRIBUTES`.
    pub service_name: Option<String>,
    /// `service.namespace` of `OTEL_RESOURCE_ATTRIBUTES`.
    pub service_namespace: Option<String>,
    /// `WEIR_OBSERVE=off`.
    pub opted_out: bool,
}

/// Why there are no facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// There is no such process any more.
    Gone,
    /// The pid is another process now.
    Reused,
}

/// A proc file system.
#[derive(Clone, Debug)]
pub struct Procfs {
    root: PathBuf,
}

impl Procfs {
    /// `root` is `/proc` but in tests.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Text of `/proc/self/mountinfo`.
    pub fn mountinfo(&self) -> Option<String> {
        read_text(&self.root.join("self/mountinfo"), 4 * 1024 * 1024)
    }

    /// The process is there still, and the same. Costs one read.
    pub fn is_alive(&self, process: ProcessRef) -> bool {
        start_of(&self.root.join(process.pid.to_string())).is_some_and(|start| same_start(process.start_ns, start))
    }

    /// Facts of `process`, which is told from others with the same pid by its start, if that is known.
    pub fn facts(&self, process: ProcessRef) -> Result<ProcessFacts, Absent> {
        let directory = self.root.join(process.pid.to_string());
        let start_ns = start_of(&directory).ok_or(Absent::Gone)?;
        if !same_start(process.start_ns, start_ns) {
            return Err(Absent::Reused);
        }
        let facts = ProcessFacts {
            start_ns,
            executable_path: executable(&directory),
            command: read_text(&directory.join("comm"), FILE_MAX).map(|text| text.trim_end_matches('\n').to_owned()),
            cgroup: read_text(&directory.join("cgroup"), FILE_MAX),
            environment: read(&directory.join("environ"), ENVIRON_MAX)
                .map(|bytes| parse_environment(&bytes))
                .unwrap_or_default(),
        };
        // The pid cannot have come back: if it is the same process now, it was during each read.
        match start_of(&directory) {
            Some(after) if after != start_ns => Err(Absent::Reused),
            _ => Ok(facts),
        }
    }
}

fn start_of(directory: &Path) -> Option<u64> {
    read(&directory.join("stat"), FILE_MAX).and_then(|bytes| parse_start(&bytes))
}

/// The kernel's `start_boottime` rounds down to the ticks of `stat`.
const fn same_start(kernel_ns: u64, stat_ns: u64) -> bool {
    kernel_ns == 0 || kernel_ns.abs_diff(stat_ns) <= TICK_NS
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)) in nanoseconds. The command name may hold spaces and parentheses.
fn parse_start(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = str::from_utf8(stat.get(after_name + 1..)?).ok()?;
    // Field 3 is the first after the name.
    let ticks: u64 = fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    ticks.checked_mul(TICK_NS)
}

fn executable(directory: &Path) -> Option<String> {
    let target = fs::read_link(directory.join("exe")).ok()?;
    let bytes = target.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    // Kernel threads have none.
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
}

fn read_text(path: &Path, max: u64) -> Option<String> {
    let text = String::from_utf8_lossy(&read(path, max)?).into_owned();
    (!text.is_empty()).then_some(text)
}

/// What could be read, `None` if nothing.
fn read(path: &Path, max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let outcome = File::open(path).and_then(|file| file.take(max).read_to_end(&mut bytes));
    (outcome.is_ok() || !bytes.is_empty()).then_some(bytes)
}

/// `NAME=value` pairs with NUL after each. A process can write anything there, so values are checked and bounded.
fn parse_environment(environ: &[u8]) -> Environment {
    let mut environment = Environment::default();
    let mut named = None;
    for variable in environ.split(|byte| *byte == 0) {
        if let Some(value) = variable.strip_prefix(b"OTEL_SERVICE_NAME=") {
            named = named.or_else(|| clean(value));
        } else if let Some(value) = variable.strip_prefix(b"OTEL_RESOURCE_ATTRIBUTES=") {
            for attribute in value.split(|byte| *byte == b',') {
                let Some(at) = attribute.iter().position(|byte| *byte == b'=') else { continue };
                let (key, value) = attribute.split_at(at);
                let value = decode(value.get(1..).unwrap_or_default().trim_ascii());
                match key.trim_ascii() {
                    b"service.name" => environment.service_name = clean(&value),
                    b"service.namespace" => environment.service_namespace = clean(&value),
                    _ => {}
                }
            }
        } else if let Some(value) = variable.strip_prefix(b"WEIR_OBSERVE=") {
            environment.opted_out = value.eq_ignore_ascii_case(b"off");
        }
    }
    if named.is_some() {
        environment.service_name = named;
    }
    environment
}

/// Values of `OTEL_RESOURCE_ATTRIBUTES` are percent-encoded (W3C Baggage).
fn decode(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'%')
            .then(|| after.get(..2))
            .flatten()
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(code) = code {
            out.push(code);
            rest = after.get(2..).unwrap_or_default();
        } else {
            out.push(byte);
            rest = after;
        }
    }
    out
}

/// A value fit to name something: UTF-8, no control characters, not empty, not too long.
fn clean(value: &[u8]) -> Option<String> {
    let text = str::from_utf8(value).ok()?.trim();
    let fit = !text.is_empty() && text.len() <= VALUE_MAX && !text.chars().any(char::is_control);
    fit.then(|| text.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    /// A directory that looks like `/proc` with one process.
    pub(in crate::enrich) fn fixture(pid: u32, start_ticks: u64) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        let fields = "S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0";
        fs::write(directory.join("stat"), format!("{pid} (a) b) {fields} {start_ticks} 1000 1 184467")).unwrap();
        (root, directory)
    }

    fn process(pid: u32, start_ns: u64) -> ProcessRef {
        ProcessRef { pid, start_ns }
    }

    #[test]
    fn everything_a_process_says_is_read() {
        let (root, directory) = fixture(7, 1234);
        symlink("/usr/sbin/nginx (deleted)", directory.join("exe")).unwrap();
        fs::write(directory.join("comm"), "nginx\n").unwrap();
        fs::write(directory.join("cgroup"), "0::/system.slice/nginx.service\n").unwrap();
        fs::write(directory.join("environ"), "PATH=/bin\0OTEL_SERVICE_NAME=shop\0SECRET=x\0WEIR_OBSERVE=OFF\0")
            .unwrap();
        let facts = Procfs::new(root.path()).facts(process(7, 12_345_678_901)).unwrap();
        assert_eq!(
            facts,
            ProcessFacts {
                start_ns: 12_340_000_000,
                executable_path: Some("/usr/sbin/nginx".into()),
                command: Some("nginx".into()),
                cgroup: Some("0::/system.slice/nginx.service\n".into()),
                environment: Environment {
                    service_name: Some("shop".into()),
                    service_namespace: None,
                    opted_out: true,
                },
            }
        );
    }

    #[test]
    fn a_process_that_vanishes_leaves_what_was_read() {
        let (root, directory) = fixture(7, 1234);
        fs::write(directory.join("comm"), "curl\n").unwrap();
        let facts = Procfs::new(root.path()).facts(process(7, 0)).unwrap();
        assert_eq!(facts.command.as_deref(), Some("curl"));
        assert_eq!(facts.executable_path, None);
        assert_eq!(facts.environment, Environment::default());
    }

    #[test]
    fn another_process_with_the_same_pid_gives_nothing() {
        let (root, _) = fixture(7, 1234);
        let procfs = Procfs::new(root.path());
        for (start_ns, want) in [
            (0, Ok(())),
            (12_340_000_000, Ok(())),
            (12_349_999_999, Ok(())),
            (12_350_000_001, Err(Absent::Reused)),
            (12_320_000_000, Err(Absent::Reused)),
        ] {
            assert_eq!(procfs.facts(process(7, start_ns)).map(|_| ()), want, "{start_ns}");
        }
        assert_eq!(procfs.facts(process(8, 0)), Err(Absent::Gone));
    }

    #[test]
    fn the_start_is_found_behind_any_command_name() {
        let fields = "S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 99 5";
        for name in ["nginx", "a b", ") S 1 2 3", "(", ""] {
            assert_eq!(parse_start(format!("7 ({name}) {fields}").as_bytes()), Some(990_000_000), "{name}");
        }
        for bad in ["", "7 (a) S 1", "7 (a)", "no parenthesis", "7 (a) S 1 7 7 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 x 5"] {
            assert_eq!(parse_start(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn this_process_is_read_from_the_real_proc() {
        let facts = Procfs::new("/proc").facts(process(std::process::id(), 0)).unwrap();
        assert!(facts.start_ns > 0);
        assert_eq!(facts.executable_path, std::env::current_exe().ok().map(|path| path.display().to_string()));
        assert!(facts.command.is_some() && facts.cgroup.is_some());
    }

    #[test]
    fn the_environment_names_the_service() {
        let (shop, other) = (Some("shop"), Some("other"));
        for (environ, name, namespace) in [
            ("OTEL_SERVICE_NAME=shop\0", shop, None),
            ("OTEL_RESOURCE_ATTRIBUTES=service.name=shop,service.namespace=other\0", shop, other),
            ("OTEL_RESOURCE_ATTRIBUTES=a=b, service.name = shop ,c\0OTEL_SERVICE_NAME=other\0", other, None),
            ("OTEL_SERVICE_NAME=other\0OTEL_RESOURCE_ATTRIBUTES=service.name=shop\0", other, None),
            ("OTEL_SERVICE_NAME=\0OTEL_RESOURCE_ATTRIBUTES=service.name=sh%6Fp\0", shop, None),
            ("OTEL_SERVICE_NAME=a\nb\0", None, None),
            ("XOTEL_SERVICE_NAME=shop\0", None, None),
            ("OTEL_SERVICE_NAME", None, None),
            ("", None, None),
        ] {
            let environment = parse_environment(environ.as_bytes());
            assert_eq!(environment.service_name.as_deref(), name, "{environ}");
            assert_eq!(environment.service_namespace.as_deref(), namespace, "{environ}");
        }
        let long = format!("OTEL_SERVICE_NAME={}\0", "x".repeat(VALUE_MAX + 1));
        assert_eq!(parse_environment(long.as_bytes()).service_name, None);
        assert_eq!(parse_environment(b"OTEL_SERVICE_NAME=\xff\0").service_name, None);
    }

    #[test]
    fn only_off_opts_out() {
        for (environ, opted_out) in [
            ("WEIR_OBSERVE=off\0", true),
            ("WEIR_OBSERVE=Off\0", true),
            ("WEIR_OBSERVE=on\0", false),
            ("WEIR_OBSERVE=\0", false),
            ("WEIR_OBSERVE_NOT=off\0", false),
        ] {
            assert_eq!(parse_environment(environ.as_bytes()).opted_out, opted_out, "{environ}");
        }
    }

    proptest! {
        #[test]
        fn any_environment_and_any_stat_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_start(&bytes);
            let mut environ = b"OTEL_RESOURCE_ATTRIBUTES=service.name=".to_vec();
            environ.extend_from_slice(&bytes);
            let name = parse_environment(&environ).service_name;
            prop_assert!(name.is_none_or(|name| name.len() <= VALUE_MAX));
        }
    }
}
