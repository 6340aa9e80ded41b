//! Builds everything from a [`Config`], runs it, and drains it: the composition, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle as Task;

use crate::admin::api::{ExporterStatus, Loss as LossStatus, Probe};
use crate::admin::store::{Bounds, Store};
use crate::admin::{self, AdminConfig, AdminState, Readiness, Status, api};
use crate::assess::{Assessor, Rules};
use crate::bpf::{self, Attached, Attachment, Plan, SocketBackend, Wanted};
use crate::capture::{self, Capture, Http3Use};
use crate::clock;
use crate::config::{self, Backend, Config, Overrides};
use crate::discover::{self, Discovery};
use crate::enrich::procfs::Procfs;
use crate::export::otlp::{self, OtlpSettings, Protocol, Sampler, SignalSettings};
use crate::export::{self, ExportHandle, Queue, console::Console, jsonl::Jsonl};
use crate::inventory::route::{RouteLimits, TypedSegments};
use crate::memory;
use crate::metrics::{MetricsConfig, Registry, names};
use crate::model::{ProcessRef, SocketAddress};
use crate::pipeline::assess::{self as assess_thread, Sinks};
use crate::pipeline::capture as capture_thread;
use crate::pipeline::discover as discover_thread;
use crate::pipeline::governor::Governor;
use crate::pipeline::losses::Snapshot;
use crate::pipeline::{QUEUE_BATCHES, Shared};
use crate::redact::Redactor;
use crate::workloads::{WorkloadLimits, Workloads};

/// The exporters have this long to drain when the agent stops; with the admin server's second it stays under five.
const DRAIN: Duration = Duration::from_secs(3);
/// Probes on TLS libraries have this long to detach, besides.
pub const DETACH: Duration = Duration::from_secs(2);
/// How often the supervisor looks at limits, files and counts.
const TICK: Duration = Duration::from_secs(1);
/// Above this share of the memory limit tables shrink.
const MEMORY_HIGH: f64 = 0.85;
/// Share of the memory limit that the store of recent calls may use.
const STORE_SHARE: u64 = 8;

/// Where the configuration came from, to read it again.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub file: Option<PathBuf>,
    pub overrides: Overrides,
}

/// An agent at work. Dropping it without [`Running::stop`] loses what is in flight, and nothing else.
pub struct Running {
    pub plan: Plan,
    pub attachments: Vec<Attachment>,
    /// Recent calls.
    pub store: Arc<Store>,
    pub metrics: Arc<Registry>,
    /// Address of the page with its token, for the terminal.
    pub page_url: Option<String>,
    shared: Arc<Shared>,
    kernel: Arc<Kernel>,
    exporters: Arc<[ExportHandle]>,
    otlp_metrics: Option<otlp::MetricsHandle>,
    capture: JoinHandle<()>,
    assess: JoinHandle<()>,
    discover: Option<JoinHandle<()>>,
    /// `None`: TLS is not read.
    libraries: Option<Arc<Mutex<discover::View>>>,
    tasks: Vec<Task<()>>,
    stop: watch::Sender<bool>,
    reload: Arc<tokio::sync::Notify>,
}

/// The kernel programs, shared by the supervisor and those who ask for status.
struct Kernel {
    attached: Mutex<Option<Attached>>,
    /// The last counters read: they outlive the programs.
    last: Mutex<(crate::pipeline::losses::KernelCounters, u64)>,
}

impl Kernel {
    fn counters(&self) -> (crate::pipeline::losses::KernelCounters, u64) {
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attached) = &*attached {
            match attached.counters() {
                Ok(counters) => *last = (counters, attached.recursion_misses().values().sum()),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot read the kernel counters"),
            }
        }
        *last
    }

    fn with(&self, act: impl FnOnce(&mut Attached) -> Result<()>) {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attached) = &mut *attached
            && let Err(error) = act(attached)
        {
            tracing::warn!(error = format!("{error:#}"), "the kernel refused a setting");
        }
    }

    /// Detach everything, but for the probes on TLS libraries: those report nothing more.
    fn detach(&self) {
        self.with(Attached::stop);
        self.counters();
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Which backend the configuration asks for.
pub const fn wanted(backend: Backend) -> Wanted {
    match backend {
        Backend::Auto => Wanted::Auto,
        Backend::SockTracepoint => Wanted::Only(SocketBackend::SockTracepoint),
        Backend::SysExit => Wanted::Only(SocketBackend::SysExit),
    }
}

fn rules(config: &Config) -> Rules {
    Rules {
        filter: config.filter.clone(),
        redactor: Redactor::new(config.export.redaction.clone()),
        deduplicate: config.export.deduplicate,
    }
}

/// An assessor with the configuration's bounds.
pub fn assessor(config: &Config) -> Assessor {
    let workloads = Workloads::new(WorkloadLimits { processes: config.limits.processes, ..WorkloadLimits::default() });
    let routes = TypedSegments::new(RouteLimits {
        templates: config.limits.routes,
        templates_per_service: config.limits.routes_per_service,
        ..RouteLimits::default()
    });
    Assessor::new(workloads, routes, rules(config))
}

/// Settings of the capture core.
pub fn capture_settings(config: &Config, seed: u64) -> capture::Settings {
    let mut settings = capture::Settings { max_connections: config.limits.connections, seed, ..Default::default() };
    settings.limits.head_bytes = config.limits.head;
    settings.limits.body_prefix = config.capture.body_prefix;
    settings.limits.response_timeout_ns = config.limits.response_timeout.as_nanos() as u64;
    settings
}

/// The OTLP exporters' settings: what the configuration says, and what only the standard variables say.
pub fn otlp_settings(config: &Config, env: &dyn Fn(&str) -> Option<String>) -> Result<OtlpSettings> {
    let signal = |signal: &config::OtlpSignal| {
        let protocol = match signal.protocol {
            config::OtlpProtocol::Grpc => Protocol::Grpc,
            config::OtlpProtocol::HttpProtobuf => Protocol::Http,
        };
        let headers = signal.headers.iter().map(|(name, value)| (name.as_str(), value.reveal()));
        SignalSettings::new(&signal.url, protocol, headers, signal.timeout, signal.gzip).map_err(anyhow::Error::msg)
    };
    let mut settings = OtlpSettings {
        traces: config.otlp.traces.as_ref().map(signal).transpose()?,
        metrics: config.otlp.metrics.as_ref().map(signal).transpose()?,
        sampler: Sampler::new(config.export.sampler.parent_based, config.export.sampler.ratio),
        export_timeout: config.otlp.batch_timeout,
        metric_interval: config.otlp.interval,
        ..OtlpSettings::default()
    };
    settings.read_env(env).map_err(|errors| anyhow::anyhow!(errors.join("; ")))?;
    Ok(settings)
}

/// A seed that no other run has.
pub fn seed() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("cannot get random bytes: {error}"))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The exporters that the configuration asks for. Must be called within a Tokio runtime.
pub fn exporters(config: &Config, otlp: &OtlpSettings) -> Result<Vec<ExportHandle>> {
    let mut handles = Vec::new();
    if config.export.console {
        handles.push(export::spawn(Console::new(None), Console::queue()));
    }
    if let Some(path) = &config.export.jsonl {
        let jsonl =
            Jsonl::open(path).with_context(|| format!("cannot open {} to append calls to it", path.display()))?;
        handles.push(export::spawn(jsonl, Jsonl::queue()));
    }
    if let Some(traces) = otlp::Traces::new(otlp).context("cannot set up the OTLP trace exporter")? {
        let queue = Queue { len: config.otlp.queue, batch: config.otlp.batch, delay: config.otlp.delay };
        handles.push(export::spawn(traces, queue));
    }
    Ok(handles)
}

/// Attach and start everything. Must be called within a Tokio runtime; returns when every planned probe is attached.
pub async fn start(config: Config, origin: Origin) -> Result<Running> {
    let otlp_settings = otlp_settings(&config, &|key| std::env::var(key).ok())?;
    let features = bpf::detect();
    let plan = bpf::plan(&features, wanted(config.capture.backend))?;
    let kernel_config = agent_common::config::Config {
        budget: config.capture.budget,
        filters: 1,
        ..agent_common::config::Config::default()
    };
    let settings = bpf::Settings::new(config.capture.ring_buffer, kernel_config);
    let (attached, ring) = bpf::attach(&features, &plan, settings)?;
    for attachment in attached.attachments.iter().filter(|attachment| attachment.failure.is_some()) {
        tracing::warn!(
            program = attachment.program,
            error = attachment.failure.as_deref().unwrap_or_default(),
            lost = attachment.lost,
            "an optional program is not attached"
        );
    }
    let attachments = attached.attachments.clone();
    let shared = Arc::new(Shared::default());
    let kernel = Arc::new(Kernel {
        attached: Mutex::new(Some(attached)),
        last: Mutex::new(([0; agent_common::counters::Counter::ALL.len()], 0)),
    });

    let metrics = Arc::new(Registry::new(
        MetricsConfig { max_series: config.limits.metric_series, ..MetricsConfig::default() },
        clock::unix_now_ns(),
    ));
    let store = Store::new(Bounds {
        calls: config.store_calls,
        bytes: (config.memory_limit / STORE_SHARE) as usize,
        ..Bounds::default()
    });
    let exporters: Arc<[ExportHandle]> = exporters(&config, &otlp_settings)?.into();
    let (queue, batches) = sync_channel(QUEUE_BATCHES);
    let new_rules = Arc::new(Mutex::new(None));

    let assess = {
        let worker = assess_thread::Worker {
            assessor: assessor(&config),
            enricher: Some(assess_thread::enricher()),
            sinks: Sinks {
                store: Some(Arc::clone(&store)),
                metrics: Arc::clone(&metrics),
                exporters: Arc::clone(&exporters),
            },
            shared: Arc::clone(&shared),
            rules: Arc::clone(&new_rules),
            wall_offset_ns: clock::wall_offset_ns(),
            own_socket: config.admin.socket.as_deref().map(|path| path.to_string_lossy().into()),
        };
        spawn("assess", move || worker.run(&batches))?
    };
    let capture = {
        let core = Capture::new(capture_settings(&config, seed()?));
        let worker = capture_thread::Worker::new(core, Arc::clone(&shared), queue);
        spawn("capture", move || worker.run(ring))?
    };

    // With the ring buffer being read: probing takes a moment, and traffic does not wait.
    let tls = if config.capture.tls {
        let mut attached = kernel.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached
            .as_mut()
            .ok_or_else(|| "the agent is stopping".to_owned())
            .and_then(|attached| tls(attached, &shared, config.capture.tls_sweep))
    } else {
        Err("`capture.tls` is false".to_owned())
    };
    let (sources, discover) = match tls {
        Ok(worker) => {
            let view = worker.discovery.view();
            (Sources::Watched(view), Some(spawn("discover", move || worker.run())?))
        }
        Err(reason) => (Sources::Off(reason), None),
    };
    let libraries = match &sources {
        Sources::Watched(view) => Some(Arc::clone(view)),
        Sources::Off(_) => None,
    };
    let (stop, stopping) = watch::channel(false);
    let status = Arc::new(Supervisor {
        kernel: Arc::clone(&kernel),
        shared: Arc::clone(&shared),
        exporters: Arc::clone(&exporters),
        metrics: Arc::clone(&metrics),
        attachments: attachments.clone(),
        lost: plan.lost.clone(),
        sources,
        config: Mutex::new(config.clone()),
        started: clock::now(),
    });
    let mut tasks = Vec::new();
    let page_url = serve(&config, &status, &store, &stopping, &mut tasks).await?;
    let reload = Arc::new(tokio::sync::Notify::new());
    let otlp_metrics = {
        let status = Arc::clone(&status);
        otlp::spawn_metrics(&otlp_settings, Arc::clone(&metrics), clock::unix_now_ns, move |_| status.publish())
            .context("cannot set up the OTLP metrics exporter")?
    };
    tasks.push(tokio::spawn(supervise(
        Arc::clone(&status),
        Arc::clone(&store),
        origin,
        new_rules,
        Arc::clone(&reload),
        stopping,
    )));
    Ok(Running {
        plan,
        attachments,
        store,
        metrics,
        page_url,
        shared,
        kernel,
        exporters,
        otlp_metrics,
        capture,
        assess,
        discover,
        libraries,
        tasks,
        stop,
        reload,
    })
}

/// What reads TLS: the programs, loaded, and everything that runs now, probed. `Err`: why TLS is not read.
pub fn tls(attached: &mut Attached, shared: &Arc<Shared>, sweep: Duration) -> Result<discover_thread::Worker, String> {
    let uprobes = attached.uprobes().map_err(|error| {
        tracing::warn!(error = format!("{error:#}"), "TLS libraries cannot be probed");
        format!("{error:#}")
    })?;
    let mut discovery = Discovery::new(uprobes, "/proc");
    // Before the first look, so that nothing appears between the two.
    let mappings = bpf::Mappings::open(&processors())
        .inspect_err(|error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "new processes are looked for every few seconds instead: short ones are missed");
        })
        .ok();
    discovery.scan_linker_cache();
    discovery.scan();
    Ok(discover_thread::Worker::new(discovery, mappings, Arc::clone(shared), sweep))
}

/// Processors that are online, by number.
fn processors() -> Vec<usize> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let mut found = Vec::new();
    for range in online.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            found.extend(first..=last);
        }
    }
    found
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(format!("weir-{name}"))
        .spawn(body)
        .with_context(|| format!("cannot start the {name} thread"))
}

/// Start the admin server, when there is one.
async fn serve(
    config: &Config,
    status: &Arc<Supervisor>,
    store: &Arc<Store>,
    stopping: &watch::Receiver<bool>,
    tasks: &mut Vec<Task<()>>,
) -> Result<Option<String>> {
    if config.admin.address.is_none() && config.admin.socket.is_none() {
        return Ok(None);
    }
    let token_out = config.admin.socket.as_deref().and_then(Path::parent).map(|folder| folder.join("token"));
    let state = AdminState {
        store: Arc::clone(store),
        status: {
            let status = Arc::clone(status);
            Arc::new(move || status.status())
        },
        metrics: {
            let status = Arc::clone(status);
            Arc::new(move || {
                status.publish();
                export::prometheus::render(&status.metrics.snapshot())
            })
        },
        call_json: Arc::new(|report| serde_json::to_string(&export::jsonl::Line(report)).unwrap_or_default()),
    };
    let admin = admin::bind(
        AdminConfig {
            tcp: config.admin.address,
            socket: config.admin.socket.clone(),
            token_file: config.admin.token_file.clone(),
            token_out: token_out.or_else(|| Some(admin::DEFAULT_TOKEN.into())),
            hosts: config.admin.hosts.clone(),
            open_metrics: config.admin.open_metrics,
            ..AdminConfig::default()
        },
        state,
    )
    .await?;
    let page_url = admin.page_url();
    let mut stopping = stopping.clone();
    tasks.push(tokio::spawn(async move {
        let stopped = async move {
            // An error means that the sender is gone, which is a stop as well.
            _ = stopping.wait_for(|stop| *stop).await;
        };
        if let Err(error) = admin.serve(stopped).await {
            tracing::error!(error = format!("{error:#}"), "the admin server failed");
        }
    }));
    Ok(page_url)
}

/// Whether and how TLS is read.
enum Sources {
    Watched(Arc<Mutex<discover::View>>),
    /// Why not.
    Off(String),
}

/// What the supervisor and the admin server share.
struct Supervisor {
    kernel: Arc<Kernel>,
    shared: Arc<Shared>,
    exporters: Arc<[ExportHandle]>,
    metrics: Arc<Registry>,
    attachments: Vec<Attachment>,
    lost: Vec<String>,
    sources: Sources,
    config: Mutex<Config>,
    started: crate::model::Timestamp,
}

impl Supervisor {
    fn snapshot(&self) -> Snapshot {
        let (counters, misses) = self.kernel.counters();
        Snapshot::collect(counters, misses, &self.shared, &self.exporters)
    }

    /// Libraries that are probed, and processes that use TLS with the source they are read by.
    fn tls(&self, snapshot: &Snapshot) -> api::Tls {
        let (view, off) = match &self.sources {
            Sources::Watched(view) => (view.lock().unwrap_or_else(PoisonError::into_inner).clone(), None),
            Sources::Off(reason) => (discover::View::default(), Some(reason.clone())),
        };
        let mut processes: Vec<api::TlsProcess> = snapshot
            .capture
            .tls
            .iter()
            .map(|used| {
                let known = view.processes.get(&used.process).cloned().unwrap_or_default();
                let mut reasons = known.reasons;
                reasons.extend(off.clone());
                api::TlsProcess {
                    pid: used.process.pid,
                    name: used.comm.to_string(),
                    connections: used.sockets,
                    connections_read: used.read,
                    backend: used.backend.map(|backend| backend.name().to_owned()),
                    server_name: used.server_name.as_deref().map(str::to_owned),
                    local: address(&used.local),
                    remote: address(&used.remote),
                    sources: known.sources,
                    reasons,
                }
            })
            .collect();
        processes.sort_by_key(|process| (process.connections_read > 0, process.pid));
        api::Tls {
            libraries: view
                .libraries
                .iter()
                .map(|library| api::TlsLibrary {
                    path: library.path.display().to_string(),
                    backend: library.stack.to_owned(),
                    probes: library.probes,
                })
                .collect(),
            processes,
            discovery: api::TlsDiscovery {
                files: view.counts.files,
                processes: view.counts.processes,
                refused: view.counts.refused,
                attached: view.counts.attached,
                detached: view.counts.detached,
                unopened: view.counts.unopened,
                overflows: view.counts.overflows,
                no_room: view.counts.no_room,
            },
        }
    }

    fn publish(&self) {
        self.snapshot().publish(&self.metrics);
        self.metrics.set_gauge(&names::MEMORY, &[], memory::resident_bytes() as f64);
        self.metrics.set_counter(&names::CPU, &[], clock::cpu_ns() as f64 / 1e9);
    }

    fn status(&self) -> Status {
        let snapshot = self.snapshot();
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let degraded = self.attachments.iter().any(|attachment| attachment.failure.is_some());
        let mut blind_spots = snapshot.blind_spots();
        let tls = self.tls(&snapshot);
        blind_spots.extend(tls.processes.iter().filter_map(api::TlsProcess::blind_spot));
        blind_spots.extend(snapshot.capture.http3.iter().map(Http3Use::blind_spot));
        blind_spots.extend(self.lost.iter().cloned());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: clock::now().since(self.started) as f64 / 1e9,
            mode: config.mode.name().to_owned(),
            readiness: if degraded { Readiness::Degraded } else { Readiness::Ready },
            probes: self
                .attachments
                .iter()
                .map(|attachment| Probe {
                    name: format!("tp_btf/{}", attachment.tracepoint),
                    attached: attachment.failure.is_none(),
                    reason: attachment
                        .failure
                        .as_ref()
                        .map(|failure| format!("{failure}; not seen without it: {}", attachment.lost)),
                })
                .collect(),
            losses: snapshot
                .losses()
                .into_iter()
                .filter(|loss| loss.count > 0)
                .map(|loss| LossStatus {
                    stage: loss.stage.to_owned(),
                    reason: loss.reason.to_owned(),
                    count: loss.count,
                })
                .collect(),
            blind_spots,
            tls,
            coverage_ratio: snapshot.coverage(),
            cpu_seconds: clock::cpu_ns() as f64 / 1e9,
            memory_bytes: memory::resident_bytes(),
            memory_limit_bytes: config.memory_limit,
            exporters: snapshot
                .exporters
                .iter()
                .map(|exporter| ExporterStatus {
                    name: exporter.name.to_owned(),
                    sent: exporter.exported,
                    lost: exporter.lost.iter().map(|(_, count)| count).sum(),
                    last_error: None,
                })
                .collect(),
        }
    }
}

fn address(address: &SocketAddress) -> Option<String> {
    match address {
        SocketAddress::Ip(ip) => Some(ip.to_string()),
        SocketAddress::Unix(_) => Some(address.to_string()),
        SocketAddress::Unknown => None,
    }
}

/// Once a second: limits, exclusions, the configuration file, and a word about losses.
async fn supervise(
    supervisor: Arc<Supervisor>,
    store: Arc<Store>,
    origin: Origin,
    new_rules: Arc<Mutex<Option<Rules>>>,
    reload: Arc<tokio::sync::Notify>,
    mut stopping: watch::Receiver<bool>,
) {
    let (cpu_limit, budget) = {
        let config = supervisor.config.lock().unwrap_or_else(PoisonError::into_inner);
        (config.cpu_limit, config.capture.budget)
    };
    let mut governor = Governor::new(cpu_limit, budget);
    let mut cpu = (clock::cpu_ns(), clock::now());
    let mut modified = modified(&origin);
    let mut muted = Muted::default();
    let mut lost = 0;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            () = reload.notified() => true,
            _ = stopping.wait_for(|stop| *stop) => break,
        };
        let now_modified = self::modified(&origin);
        if asked || now_modified != modified {
            modified = now_modified;
            reconfigure(&supervisor, &origin, &new_rules, &mut governor);
            muted.clear(&supervisor);
        }
        let now = (clock::cpu_ns(), clock::now());
        // A tick right behind another (the first, or one asked for) says nothing of the load.
        if now.1.since(cpu.1) >= TICK.as_nanos() as u64 / 2 {
            if let Some(change) = governor.on_tick(now.0.saturating_sub(cpu.0), now.1.since(cpu.1)) {
                tracing::warn!(
                    budget = change.budget,
                    used_cores = change.used_cores,
                    "processor limit: bytes copied of each message changed"
                );
                apply_budget(&supervisor, change.budget);
            }
            cpu = now;
        }
        limit_memory(&supervisor, &store);
        muted.tick(&supervisor);
        lost = report_losses(&supervisor, lost);
    }
}

/// Processes that the kernel was told to leave alone. A pid is let go when its process is gone: it may be another's
/// next.
#[derive(Default)]
struct Muted(std::collections::HashMap<u32, u64>);

/// Muted processes at most; the filters drop the calls of further ones.
const MUTED_MAX: usize = 8_192;

impl Muted {
    fn tick(&mut self, supervisor: &Supervisor) {
        let procfs = Procfs::new("/proc");
        let gone: Vec<u32> = self
            .0
            .iter()
            .filter(|&(&pid, &start_ns)| !procfs.is_alive(ProcessRef { pid, start_ns }))
            .map(|(&pid, _)| pid)
            .collect();
        for pid in gone {
            self.0.remove(&pid);
            supervisor.kernel.with(|attached| {
                attached.unmute(pid);
                Ok(())
            });
        }
        for process in supervisor.shared.take_muted() {
            if self.0.len() < MUTED_MAX && self.0.insert(process.pid, process.start_ns).is_none() {
                supervisor.kernel.with(|attached| attached.mute(process.pid));
            }
        }
    }

    /// The rules changed: everyone is looked at again.
    fn clear(&mut self, supervisor: &Supervisor) {
        for (pid, _) in self.0.drain() {
            supervisor.kernel.with(|attached| {
                attached.unmute(pid);
                Ok(())
            });
        }
    }
}

fn apply_budget(supervisor: &Supervisor, budget: u32) {
    let config = agent_common::config::Config { budget, filters: 1, ..agent_common::config::Config::default() };
    supervisor.kernel.with(|attached| attached.configure(config));
}

fn limit_memory(supervisor: &Supervisor, store: &Store) {
    let limit = supervisor.config.lock().unwrap_or_else(PoisonError::into_inner).memory_limit;
    let used = memory::resident_bytes();
    if used as f64 > limit as f64 * MEMORY_HIGH {
        tracing::warn!(used, limit, "memory limit near: tables shrink");
        supervisor.shared.shrink.store(true, Ordering::Release);
        store.set_bytes_limit(store.memory() / 2);
    }
}

/// Say that something is lost once per tick at most, with how much.
fn report_losses(supervisor: &Supervisor, before: u64) -> u64 {
    let total: u64 = supervisor.snapshot().losses().iter().map(|loss| loss.count).sum();
    if total > before {
        tracing::warn!(lost = total - before, "something was lost: see weir_lost_total");
    }
    total
}

/// Read the configuration again; the last good one stays when the new one is wrong.
fn reconfigure(supervisor: &Supervisor, origin: &Origin, new_rules: &Mutex<Option<Rules>>, governor: &mut Governor) {
    let new = match load(origin) {
        Ok(new) => new,
        Err(errors) => {
            for error in errors {
                tracing::error!(%error, "the new configuration is wrong; the last good one stays");
            }
            return;
        }
    };
    let mut config = supervisor.config.lock().unwrap_or_else(PoisonError::into_inner);
    for change in config::diff(&config, &new) {
        if change.restart {
            tracing::warn!(key = change.key, "this key takes effect when the agent starts again");
        } else {
            tracing::info!(key = change.key, "configuration changed");
        }
    }
    *new_rules.lock().unwrap_or_else(PoisonError::into_inner) = Some(rules(&new));
    governor.reset(new.cpu_limit, new.capture.budget);
    let budget = new.capture.budget;
    *config = new;
    drop(config);
    apply_budget(supervisor, budget);
}

/// The configuration from its file, the environment and flags.
pub fn load(origin: &Origin) -> Result<Config, Vec<String>> {
    let text = match &origin.file {
        Some(path) => Some(
            fs::read_to_string(path).map_err(|error| vec![format!("{}: cannot be read: {error}", path.display())])?,
        ),
        None => None,
    };
    let name = origin.file.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    Config::load(text.as_deref().map(|text| (name.as_str(), text)), &|key| std::env::var(key).ok(), &origin.overrides)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// When the file changed last; its inode too, because a ConfigMap is replaced by a symbolic link.
fn modified(origin: &Origin) -> Option<(std::time::SystemTime, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(origin.file.as_deref()?).ok()?;
    Some((metadata.modified().ok()?, metadata.ino()))
}

impl Running {
    /// Read the configuration file again, as SIGHUP asks.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// What was lost and seen so far.
    pub fn snapshot(&self) -> Snapshot {
        let (counters, misses) = self.kernel.counters();
        Snapshot::collect(counters, misses, &self.shared, &self.exporters)
    }

    /// TLS libraries that are probed now.
    pub fn tls_libraries(&self) -> usize {
        self.libraries.as_ref().map_or(0, |view| view.lock().unwrap_or_else(PoisonError::into_inner).libraries.len())
    }

    /// Detach, take what the ring buffer still holds, let the exporters drain, and end. Takes under five seconds.
    pub async fn stop(self) -> Snapshot {
        self.kernel.detach();
        self.shared.stop.store(true, Ordering::Release);
        let discover = self.discover;
        let detaching = tokio::task::spawn_blocking(move || discover.map(JoinHandle::join));
        let threads = tokio::task::spawn_blocking(move || {
            for (name, thread) in [("capture", self.capture), ("assess", self.assess)] {
                if thread.join().is_err() {
                    tracing::error!(thread = name, "a thread panicked");
                }
            }
        });
        if threads.await.is_err() {
            tracing::error!("waiting for the threads failed");
        }
        let (counters, misses) = self.kernel.counters();
        if let Some(otlp_metrics) = self.otlp_metrics {
            Snapshot::collect(counters, misses, &self.shared, &self.exporters).publish(&self.metrics);
            otlp_metrics.shutdown(Duration::from_secs(1)).await;
        }
        // The supervisor and the admin server hold the exporters too: they end first.
        self.stop.send_replace(true);
        for task in self.tasks {
            if tokio::time::timeout(DRAIN, task).await.is_err() {
                tracing::warn!("a task did not end in time");
            }
        }
        let snapshot = Snapshot::collect(counters, misses, &self.shared, &self.exporters);
        drain(&self.exporters).await;
        // The kernel detaches what is left when the process ends, one probe after another.
        if tokio::time::timeout(DETACH, detaching).await.is_err() {
            tracing::debug!(
                "some probes on TLS libraries are still attached; the kernel detaches them as the process ends"
            );
        }
        Snapshot { exporters: Snapshot::collect(counters, misses, &self.shared, &self.exporters).exporters, ..snapshot }
    }
}

/// Let all exporters drain at once.
pub async fn drain(exporters: &[ExportHandle]) {
    futures_util::future::join_all(exporters.iter().map(|exporter| exporter.shutdown(DRAIN))).await;
}
