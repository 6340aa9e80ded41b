//! `weir doctor`: what this kernel and these privileges allow, by trying it.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::bpf::{self, Wanted};
use crate::discover;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    pub verdict: Verdict,
    pub version: &'static str,
    pub kernel: String,
    pub lockdown: String,
    /// `weir.capture.backend` of plaintext sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<&'static str>,
    pub programs: Vec<Program>,
    /// Why no TLS library can be read, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_refused: Option<String>,
    /// Files with TLS that processes execute now, as far as symbols tell.
    pub tls_libraries: Vec<TlsLibrary>,
    /// Processes that execute one of these.
    pub tls_processes: Vec<TlsProcess>,
    /// What cannot be seen here.
    pub lost: Vec<String>,
    /// Why nothing can be observed, each with what to do.
    pub obstacles: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    Degraded,
    CannotRun,
}

/// One kernel program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    pub name: &'static str,
    pub attach_point: String,
    pub attached: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A file with TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsLibrary {
    pub path: String,
    /// `weir.capture.backend` of its plaintext.
    pub backend: &'static str,
    /// Processes that execute it now.
    pub processes: usize,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// A process that has TLS in it, which it may use or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsProcess {
    pub pid: u32,
    pub executable: String,
    /// What its TLS is read by: `weir.capture.backend` and file.
    pub sources: Vec<String>,
    /// Why other TLS in it is not read.
    pub reasons: Vec<String>,
}

impl Verdict {
    /// The exit code of `weir doctor`.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Degraded => 1,
            Self::CannotRun => 2,
        }
    }
}

/// Attach everything for a moment, and say what came of it.
pub fn diagnose() -> Diagnosis {
    let features = bpf::detect();
    let mut diagnosis = Diagnosis {
        verdict: Verdict::Ok,
        version: env!("CARGO_PKG_VERSION"),
        kernel: features.kernel.clone(),
        lockdown: features.lockdown.clone(),
        backend: None,
        programs: Vec::new(),
        tls_refused: None,
        tls_libraries: Vec::new(),
        tls_processes: Vec::new(),
        lost: Vec::new(),
        obstacles: Vec::new(),
    };
    let plan = match bpf::plan(&features, Wanted::Auto) {
        Ok(plan) => plan,
        Err(refused) => {
            diagnosis.verdict = Verdict::CannotRun;
            diagnosis.obstacles = refused.0;
            return diagnosis;
        }
    };
    diagnosis.backend = Some(plan.backend.name());
    diagnosis.lost.clone_from(&plan.lost);
    if plan.backend != bpf::SocketBackend::ALL[0] {
        diagnosis.verdict = Verdict::Degraded;
    }
    let settings = bpf::Settings::new(64 * 1024, agent_common::config::Config::default());
    match bpf::attach(&features, &plan, settings) {
        Ok((mut attached, _ring)) => {
            match attached.uprobes() {
                Ok(uprobes) => {
                    if let Some(reason) = uprobes.returns_refused() {
                        diagnosis.verdict = Verdict::Degraded;
                        diagnosis.lost.push(reason.to_owned());
                    }
                }
                Err(error) => {
                    diagnosis.verdict = Verdict::Degraded;
                    diagnosis.tls_refused = Some(format!("{error:#}"));
                }
            }
            let survey = discover::survey(Path::new("/proc"));
            diagnosis.tls_processes = survey
                .processes
                .into_iter()
                .map(|found| TlsProcess {
                    pid: found.pid,
                    executable: found.executable.display().to_string(),
                    sources: found.sources,
                    reasons: found.reasons,
                })
                .collect();
            diagnosis.tls_libraries = survey
                .files
                .into_iter()
                .map(|found| TlsLibrary {
                    path: found.path.display().to_string(),
                    backend: found.stack,
                    processes: found.processes,
                    obstacle: found.obstacle,
                })
                .collect();
            for attachment in &attached.attachments {
                if attachment.failure.is_some() {
                    diagnosis.verdict = Verdict::Degraded;
                    diagnosis.lost.push(format!("{}: {}", attachment.program, attachment.lost));
                }
                diagnosis.programs.push(Program {
                    name: attachment.program,
                    attach_point: format!("tp_btf/{}", attachment.tracepoint),
                    attached: attachment.failure.is_none(),
                    reason: attachment.failure.clone(),
                });
            }
        }
        Err(error) => {
            diagnosis.verdict = Verdict::CannotRun;
            diagnosis.obstacles.push(format!("{error:#}"));
        }
    }
    diagnosis
}

/// Processes that are listed for people; programs get all.
const LISTED: usize = 40;

/// The same for people.
pub fn text(diagnosis: &Diagnosis) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| writeln!(out, "{text}").unwrap_or_default();
    line(format_args!("weir {} on Linux {}, lockdown {}", diagnosis.version, diagnosis.kernel, diagnosis.lockdown));
    if let Some(backend) = diagnosis.backend {
        line(format_args!("plaintext HTTP/1 of TCP and Unix sockets: {backend}"));
    }
    for program in &diagnosis.programs {
        let mark = if program.attached { "ok     " } else { "refused" };
        line(format_args!("  {mark} {}", program.attach_point));
        if let Some(reason) = &program.reason {
            line(format_args!("          {}", reason.lines().next().unwrap_or_default()));
        }
    }
    match &diagnosis.tls_refused {
        Some(reason) => line(format_args!("plaintext of TLS libraries: not read: {reason}")),
        None => line(format_args!("plaintext of TLS libraries: by probes on their functions")),
    }
    for library in &diagnosis.tls_libraries {
        let mark = if library.obstacle.is_none() { "ok     " } else { "blind  " };
        line(format_args!("  {mark} {} {} ({} processes)", library.backend, library.path, library.processes));
        if let Some(obstacle) = &library.obstacle {
            line(format_args!("          {obstacle}"));
        }
    }
    line(format_args!("HTTP/3 over QUIC: not read; who speaks it, and who offers it, is told while the agent runs"));
    if !diagnosis.tls_processes.is_empty() {
        line(format_args!("processes with TLS in them:"));
    }
    // Those that are not read first.
    let (read, blind): (Vec<_>, Vec<_>) =
        diagnosis.tls_processes.iter().partition(|process| !process.sources.is_empty());
    for process in blind.iter().chain(&read).take(LISTED) {
        let mark = if process.sources.is_empty() { "blind  " } else { "ok     " };
        line(format_args!("  {mark} {} {} {}", process.pid, process.executable, process.sources.join(", ")));
        for reason in &process.reasons {
            line(format_args!("          {reason}"));
        }
    }
    if diagnosis.tls_processes.len() > LISTED {
        line(format_args!("  and {} more: `weir doctor --json`", diagnosis.tls_processes.len() - LISTED));
    }
    if !diagnosis.lost.is_empty() {
        line(format_args!("not seen on this machine:"));
        for lost in &diagnosis.lost {
            line(format_args!("  - {lost}"));
        }
    }
    if !diagnosis.obstacles.is_empty() {
        line(format_args!("nothing can be observed:"));
        for obstacle in &diagnosis.obstacles {
            line(format_args!("  - {obstacle}"));
        }
    }
    line(format_args!(
        "{}",
        match diagnosis.verdict {
            Verdict::Ok => "verdict: ok",
            Verdict::Degraded => "verdict: degraded, see above",
            Verdict::CannotRun => "verdict: cannot run",
        }
    ));
    out
}
