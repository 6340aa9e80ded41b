//! What each command does: reads its inputs, builds on the library, prints. Exit codes are those of the contract.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::client::{self, TailFilter, TailOptions, Target};
use crate::bpf::{self, Wanted};
use crate::capture::{Capture, Output};
use crate::cli::{Cli, Command, Run, Tail};
use crate::config::{Config, Overrides};
use crate::metrics::{MetricsConfig, Registry};
use crate::pipeline::assess::{self as assess_thread, Sinks};
use crate::pipeline::{BATCH, QUEUE_BATCHES, Shared};
use crate::record::{Recorder, Recording};
use crate::run::{self, Origin};
use crate::{clock, doctor, event};

/// Bad configuration (`EX_USAGE` of sysexits.h).
const EXIT_CONFIG: u8 = 64;

/// Run a command.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(args) => observe(&args),
        Command::Doctor { json } => diagnose(json),
        Command::Check { file } => check(&file),
        Command::Tail(args) => tail(args),
        Command::Record { path, duration, max_bytes } => record(&path, duration, max_bytes),
        Command::Replay { path, export, time } => replay(&path, export, time),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weir-io")
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Run to the end, and wait for no thread that is left: one may be detaching probes, which the kernel does as well when
/// the process ends.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}

fn say(line: std::fmt::Arguments<'_>) {
    // Standard error that is closed leaves nobody to tell.
    _ = writeln!(std::io::stderr(), "{line}");
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// All errors, one a line.
fn config_errors(errors: &[String]) -> ExitCode {
    for error in errors {
        say(format_args!("{error}"));
    }
    ExitCode::from(EXIT_CONFIG)
}

fn observe(args: &Run) -> Result<ExitCode> {
    let origin = Origin { file: args.config.clone(), overrides: args.overrides() };
    let config = match run::load(&origin) {
        Ok(config) => config,
        Err(errors) => return Ok(config_errors(&errors)),
    };
    for warning in &config.warnings {
        say(format_args!("warning: {warning}"));
    }
    let duration = args.duration;
    block_on(async move {
        // Before anything is attached: a signal during the start is not lost.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let running = run::start(config, origin).await?;
        say(format_args!(
            "observing HTTP/1 and HTTP/2: sockets by {} ({} programs), TLS by {} libraries",
            running.plan.backend.name(),
            running.attachments.iter().filter(|attachment| attachment.failure.is_none()).count(),
            running.tls_libraries()
        ));
        if let Some(url) = &running.page_url {
            // The token opens everybody's traffic: it goes to the terminal of who started the agent, never to a log.
            match url.split_once('#') {
                Some((page, _)) if !std::io::stderr().is_terminal() => {
                    say(format_args!("page: {page} (its token is in the file `token` beside the control socket)"));
                }
                _ => say(format_args!("page: {url}")),
            }
        }
        say(format_args!("ready"));
        let end = async {
            match duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => running.reload(),
            }
        }
        let snapshot = running.stop().await;
        say(format_args!(
            "{} calls, {} known lost{}",
            snapshot.assess.counts.reported,
            snapshot.calls_lost(),
            snapshot.coverage().map(|share| format!(", coverage {:.4} %", share * 100.0)).unwrap_or_default()
        ));
        for loss in snapshot.losses().iter().filter(|loss| loss.count > 0) {
            say(format_args!("  lost: {} {}: {}", loss.stage, loss.reason, loss.count));
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn diagnose(json: bool) -> Result<ExitCode> {
    let diagnosis = doctor::diagnose();
    if json {
        print(&(serde_json::to_string_pretty(&diagnosis)? + "\n"))?;
    } else {
        print(&doctor::text(&diagnosis))?;
    }
    Ok(ExitCode::from(diagnosis.verdict.exit_code()))
}

fn check(file: &Path) -> Result<ExitCode> {
    match run::load(&Origin { file: Some(file.to_owned()), overrides: Overrides::default() }) {
        Ok(config) => {
            for warning in &config.warnings {
                say(format_args!("warning: {warning}"));
            }
            print(&format!("{}: good\n", file.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(errors) => Ok(config_errors(&errors)),
    }
}

fn tail(args: Tail) -> Result<ExitCode> {
    let target = match (&args.admin, args.socket) {
        (Some(url), _) => Target::http(url, args.token_file.as_deref())?,
        (None, Some(path)) => Target::Socket(path),
        (None, None) => Target::default(),
    };
    let filter = TailFilter {
        service: args.service,
        method: args.method,
        path_prefix: args.path,
        status: args.status,
        role: args.role,
        trace_id: None,
        pid: args.pid,
    };
    let mut out = std::io::stdout();
    let options = TailOptions { colour: out.is_terminal(), json: args.json, limit: args.limit };
    block_on(client::tail(&target, &filter, options, &mut out))?;
    Ok(ExitCode::SUCCESS)
}

/// As `capture.tlsSweep` has it where nothing is configured.
const SWEEP: Duration = Duration::from_mins(1);

fn record(path: &Path, duration: Option<Duration>, max_bytes: u64) -> Result<ExitCode> {
    let features = bpf::detect();
    let plan = bpf::plan(&features, Wanted::Auto)?;
    let settings = bpf::Settings::new(agent_common::limits::RING_BYTES, agent_common::config::Config::default());
    let mut recorder = Recorder::create(path, clock::wall_offset_ns(), run::seed()?, max_bytes)?;
    let (mut attached, mut ring) = bpf::attach(&features, &plan, settings)?;
    let shared = Arc::new(Shared::default());
    // Why not, if not, is logged.
    let (detaching, detached) = sync_channel::<()>(0);
    let discover = run::tls(&mut attached, &shared, SWEEP).ok().map(|worker| {
        std::thread::spawn(move || {
            // Dropped when everything is detached.
            let _detaching = detaching;
            worker.run();
        })
    });
    say(format_args!("recording to {}; it will hold what processes exchange, secrets included", path.display()));
    let stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let runtime = runtime()?;
    let flag = Arc::clone(&stopped);
    // From here on a signal ends the recording, not the process.
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    runtime.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        flag.store(true, std::sync::atomic::Ordering::Release);
    });
    say(format_args!("ready"));
    let start = clock::now();
    let over = || {
        stopped.load(std::sync::atomic::Ordering::Acquire)
            || duration.is_some_and(|duration| clock::now().since(start) >= duration.as_nanos() as u64)
    };
    while !over() && !recorder.is_full() {
        if ring.drain(&mut |record| recorder.push(record)) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    attached.stop()?;
    shared.stop.store(true, std::sync::atomic::Ordering::Release);
    ring.drain(&mut |record| recorder.push(record));
    let (written, refused) = recorder.finish()?;
    // It may be reading a large library; the kernel detaches what is left when the process ends.
    if detached.recv_timeout(run::DETACH) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
        && discover.is_some_and(|discover| discover.join().is_err())
    {
        tracing::error!("the discovery thread panicked");
    }
    say(format_args!("{written} records written, {refused} did not fit"));
    Ok(ExitCode::SUCCESS)
}

fn replay(path: &Path, export: Vec<String>, time: Option<u32>) -> Result<ExitCode> {
    let recording = Recording::open(path)?;
    let export = if export.is_empty() && time.is_none() { vec!["console".to_owned()] } else { export };
    let overrides = Overrides { export, ..Overrides::default() };
    let config = match Config::load(None, &|_| None, &overrides) {
        Ok(config) => config,
        Err(errors) => return Ok(config_errors(&errors.iter().map(ToString::to_string).collect::<Vec<_>>())),
    };
    if let Some(times) = time {
        return measure(&recording, &config, times);
    }
    block_on(async {
        let exporters: Arc<[_]> = run::exporters(&config, &crate::export::otlp::OtlpSettings::default())?.into();
        let (queue, batches) = sync_channel(QUEUE_BATCHES);
        let shared = Arc::new(Shared::default());
        let worker = assess_thread::Worker {
            assessor: run::assessor(&config),
            enricher: None,
            sinks: Sinks {
                store: None,
                metrics: Arc::new(Registry::new(MetricsConfig::default(), clock::unix_now_ns())),
                exporters: Arc::clone(&exporters),
            },
            shared: Arc::clone(&shared),
            rules: Arc::new(Mutex::new(None)),
            wall_offset_ns: recording.wall_offset_ns,
            own_socket: None,
        };
        let assess = std::thread::spawn(move || worker.run(&batches));
        let (mut core, mut malformed) = (Capture::new(run::capture_settings(&config, recording.seed)), 0_u64);
        let mut outputs = Vec::new();
        for record in recording.iter() {
            match event::decode(record) {
                Ok(event) => core.on_event(event, &mut outputs),
                Err(_) => malformed += 1,
            }
            if outputs.len() >= BATCH {
                shared.queued_batches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                queue.send(std::mem::take(&mut outputs)).context("the assess thread is gone")?;
            }
        }
        core.shrink(0, &mut outputs);
        shared.queued_batches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        queue.send(outputs).context("the assess thread is gone")?;
        drop(queue);
        tokio::task::spawn_blocking(move || assess.join())
            .await
            .context("waiting failed")?
            .map_err(|_| anyhow::anyhow!("assessing panicked"))?;
        run::drain(&exporters).await;
        say(format_args!(
            "{} records, {} calls, {malformed} records that are not this version's",
            recording.len(),
            core.counts().exchanges
        ));
        Ok(ExitCode::SUCCESS)
    })
}

/// Send a recording through the capture core over and over, on one core, and say how fast that was.
fn measure(recording: &Recording, config: &Config, times: u32) -> Result<ExitCode> {
    let (mut calls, mut records, mut bytes, mut spent) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut outputs: Vec<Output> = Vec::new();
    for _ in 0..times {
        let mut core = Capture::new(run::capture_settings(config, recording.seed));
        let start = clock::cpu_ns();
        for record in recording.iter() {
            if let Ok(event) = event::decode(record) {
                core.on_event(event, &mut outputs);
            }
            if outputs.len() >= BATCH {
                outputs.clear();
            }
        }
        spent += clock::cpu_ns().saturating_sub(start);
        calls += core.counts().exchanges;
        records += recording.len() as u64;
        bytes += recording.iter().map(|record| record.len() as u64).sum::<u64>();
    }
    let seconds = spent as f64 / 1e9;
    print(&format!(
        "{{\"calls\":{calls},\"records\":{records},\"bytes\":{bytes},\"seconds\":{seconds:.6},\"calls_per_second\":{:.0}}}\n",
        calls as f64 / seconds.max(1e-9)
    ))?;
    Ok(ExitCode::SUCCESS)
}
