//! Loads the object and attaches the programs of a plan. Nothing is pinned: when the agent ends, however it ends, the
//! kernel detaches and frees everything.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::{Arc, Mutex, PoisonError};

use agent_common::config::{Config, paused};
use agent_common::counters::Counter;
use agent_common::limits::LAYOUTS;
use agent_common::tls::Watched;
use anyhow::{Context as _, Result, anyhow};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::tp_btf::BtfTracePointLink;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};

use super::features::Features;
use super::object::object;
use super::plan::{Plan, Program, SocketBackend};
use super::ring::Ring;
use super::uprobes::Uprobes;

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub program: &'static str,
    pub tracepoint: &'static str,
    /// `None` when attached.
    pub failure: Option<String>,
    pub lost: &'static str,
}

/// Programs at work; dropping it detaches them.
pub struct Attached {
    /// Dropped first: nothing more is reported.
    links: Vec<BtfTracePointLink>,
    /// Owns the programs; those on TLS libraries are attached by another thread.
    ebpf: Arc<Mutex<Ebpf>>,
    pub attachments: Vec<Attachment>,
    config: Array<MapData, Config>,
    counters: PerCpuArray<MapData, [u64; Counter::ALL.len()]>,
    muted: HashMap<MapData, u32, u8>,
    /// Until taken.
    libraries: Option<Array<MapData, Watched>>,
    library_limit: u16,
}

/// Sizes and settings of the kernel side.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of the ring buffer; a power of two, at least a page.
    pub ring_bytes: u32,
    /// TLS libraries that are probed at once, up to [`LAYOUTS`].
    pub libraries: u16,
    pub config: Config,
}

impl Settings {
    /// With room for as many TLS libraries as there can be.
    pub const fn new(ring_bytes: u32, config: Config) -> Self {
        Self { ring_bytes, libraries: LAYOUTS as u16, config }
    }
}

/// Load and attach. Fails when a required program does; optional failures are in [`Attached::attachments`].
pub fn attach(features: &Features, plan: &Plan, settings: Settings) -> Result<(Attached, Ring)> {
    let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
    let own_pid = std::process::id();
    let probe_read_kernel = u32::from(features.probe_read_kernel);
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&btf))
        .map_max_entries("RECORDS", settings.ring_bytes)
        .override_global("AGENT_TGID", &own_pid, true)
        .override_global("PROBE_READ_KERNEL", &probe_read_kernel, true);
    for (name, offset) in &features.offsets {
        loader.override_global(name, offset, true);
    }
    if plan.backend == SocketBackend::SockTracepoint {
        // Only the other backend keeps sockets in it.
        loader.map_max_entries("WALKED_SOCKETS", 1);
    }
    let mut ebpf = loader.load(object()?).map_err(|error| {
        let hint = hint(&format!("{error:?}"));
        anyhow!(error).context(format!("cannot create the kernel maps{hint}"))
    })?;

    let mut config = Array::try_from(take(&mut ebpf, "CONFIG")?)?;
    // Attaching takes a moment a program: whoever saw only one direction meanwhile would distrust the connection.
    config
        .set(0, Config { paused: paused::MEET_NONE, ..settings.config }, 0)
        .context("cannot write the kernel configuration")?;
    let counters = PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?)?;
    let muted = HashMap::try_from(take(&mut ebpf, "MUTED")?)?;
    let ring = Ring(RingBuf::try_from(take(&mut ebpf, "RECORDS")?)?);
    let libraries = Some(Array::try_from(take(&mut ebpf, "LIBRARIES")?)?);

    let (mut attachments, mut links) = (Vec::new(), Vec::new());
    for program in &plan.programs {
        let failure = attach_one(&mut ebpf, program, &btf).map(|link| links.push(link)).err();
        if let (Some(error), true) = (&failure, program.required) {
            return Err(anyhow!("{error:#}")
                .context(format!("program {} (tp_btf/{}) was refused", program.name, program.tracepoint)));
        }
        attachments.push(Attachment {
            program: program.name,
            tracepoint: program.tracepoint,
            failure: failure.map(|error| format!("{error:#}")),
            lost: program.lost,
        });
    }
    config.set(0, settings.config, 0).context("cannot write the kernel configuration")?;
    let ebpf = Arc::new(Mutex::new(ebpf));
    let library_limit = settings.libraries;
    Ok((Attached { links, ebpf, attachments, config, counters, muted, libraries, library_limit }, ring))
}

fn attach_one(ebpf: &mut Ebpf, wanted: &Program, btf: &Btf) -> Result<BtfTracePointLink> {
    let program: &mut BtfTracePoint = ebpf
        .program_mut(wanted.name)
        .with_context(|| format!("the kernel object has no program {}", wanted.name))?
        .try_into()?;
    program.load(wanted.tracepoint, btf).map_err(explain)?;
    let link = program.attach().context("attach failed")?;
    program.take_link(link).context("attach failed")
}

/// Why a program did not load.
pub(super) fn explain(error: ProgramError) -> anyhow::Error {
    match &error {
        // The verifier's log is thousands of lines; its end names the instruction that was refused.
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().rev().filter(|line| !line.trim().is_empty()).take(40).collect();
            let tail: Vec<&str> = lines.into_iter().rev().collect();
            anyhow!("load failed: {io_error}{}\n{}", hint(&io_error.to_string()), tail.join("\n"))
        }
        _ => anyhow!(error).context("load failed"),
    }
}

/// What to do about a refusal.
fn hint(error: &str) -> &'static str {
    if error.contains("PermissionDenied") || error.contains("not permitted") {
        "; CAP_BPF and CAP_PERFMON are needed, and in a container a seccomp profile that allows bpf(2)"
    } else {
        ""
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    ebpf.take_map(name).with_context(|| format!("the kernel object has no map {name}"))
}

impl Attached {
    /// Replace the settings that the programs read.
    pub fn configure(&mut self, config: Config) -> Result<()> {
        self.config.set(0, config, 0).context("cannot write the kernel configuration")
    }

    /// Report nothing more, from now on.
    pub fn stop(&mut self) -> Result<()> {
        self.links.clear();
        self.configure(Config { paused: paused::STOP, ..Config::default() })
    }

    /// Sum of each counter over all CPUs, in the order of [`Counter::ALL`].
    pub fn counters(&self) -> Result<[u64; Counter::ALL.len()]> {
        let mut sum = [0_u64; Counter::ALL.len()];
        for slot in 0..self.counters.len() {
            let per_cpu = self.counters.get(&slot, 0).context("cannot read the kernel counters")?;
            for values in per_cpu.iter() {
                for (total, value) in sum.iter_mut().zip(values) {
                    *total = total.wrapping_add(*value);
                }
            }
        }
        Ok(sum)
    }

    /// Load the programs on TLS libraries; once.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn uprobes(&mut self) -> Result<Arc<Uprobes>> {
        let libraries = self.libraries.take().context("the programs on TLS libraries are loaded already")?;
        Uprobes::load(Arc::clone(&self.ebpf), libraries, self.library_limit).map(Arc::new)
    }

    /// Leave new connections of a process alone.
    pub fn mute(&mut self, pid: u32) -> Result<()> {
        self.muted.insert(pid, 1, 0).context("cannot exclude a process")
    }

    /// Follow its connections again: the process is gone, its number may be somebody else's.
    pub fn unmute(&mut self, pid: u32) {
        // Not there is as good.
        _ = self.muted.remove(&pid);
    }

    /// Runs that the kernel skipped because the program was already running on that CPU, by program.
    pub fn recursion_misses(&self) -> BTreeMap<&'static str, u64> {
        let mut misses = BTreeMap::new();
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        for attachment in self.attachments.iter().filter(|attachment| attachment.failure.is_none()) {
            if let Some(Ok(fd)) = ebpf.program(attachment.program).map(aya::programs::Program::fd)
                && let Ok(text) = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))
                && let Some(count) = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))
            {
                _ = misses.insert(attachment.program, count.trim().parse().unwrap_or(0));
            }
        }
        misses
    }
}
