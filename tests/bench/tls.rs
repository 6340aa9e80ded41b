//! What probes on a TLS library cost: nginx over TLS under wrk, both of which use it, so that each call has both ends
//! probed. CPU time a request, and throughput, with nothing attached, with empty programs at the same places, with Weir's
//! programs, and with the whole agent, which then shares these processors.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::bpf::SocketBackend;
use agent::tls_targets::{self, Effort, Stack, Target, elf::Image};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weir_tests::harness::find;

use crate::floor::Floor;
use crate::kernel::Reader;
use crate::process::{Server, agent, cpu_seconds};
use crate::report;
use crate::spread::{Spread, is_quiet, shuffled};

const ROUNDS: u64 = 7;
const SECONDS: &str = "2s";
/// Aim: what nginx keeps of its throughput with Weir's programs on both ends, a reader beside them.
const THROUGHPUT_MIN: f64 = 0.65;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Same,
    Floor,
    Programs,
    Weir,
}
const NAMES: [&str; 4] = ["same", "floor", "programs", "weir"];

/// One run.
struct Run {
    /// A second.
    requests: f64,
    /// Of nginx, microseconds a request.
    cpu_us: f64,
}

#[derive(Default)]
struct Cost {
    throughput: Spread,
    cpu: Spread,
    added_us: Spread,
}

/// nginx's and wrk's library.
fn library() -> Result<(PathBuf, Target)> {
    let wrk = find("wrk").context("wrk is not installed")?;
    let output = Command::new("ldd").arg(wrk).output()?;
    let text = String::from_utf8(output.stdout)?;
    let path = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("libssl.so.3 => ")?.split(' ').next().map(PathBuf::from))
        .context("wrk does not use libssl.so.3")?;
    let bytes = std::fs::read(&path)?;
    let image = Image::parse(bytes.as_slice()).ok().context("libssl is no ELF file")?;
    let found = tls_targets::find(&image, Effort::Symbols);
    let target = found.targets.into_iter().find(|target| target.stack == Stack::Openssl);
    Ok((path, target.context("libssl cannot be probed")?))
}

fn once(server: &Server) -> Result<Run> {
    let worker = server.worker()?;
    let before = cpu_seconds(worker)?;
    let output = Command::new(find("wrk").context("wrk is not installed")?)
        .args(["-t1", "-c16", "-d", SECONDS])
        .arg(format!("https://127.0.0.1:{}/item", server.port))
        .output()?;
    let cpu = cpu_seconds(worker)? - before;
    let text = String::from_utf8(output.stdout)?;
    let number = |name: &str| -> Option<f64> {
        text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().parse().ok())
    };
    let total: f64 = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .context("wrk counted no requests")?;
    ensure!(!text.contains("Socket errors"), "wrk had errors:\n{text}");
    Ok(Run { requests: number("Requests/sec:").context("wrk told no rate")?, cpu_us: cpu / total * 1e6 })
}

/// Run it; the result as JSON.
pub(crate) fn run(cpus: usize) -> Result<Value> {
    let (path, target) = library()?;
    let server = Server::nginx_tls(cpus - 1)?;
    let mut costs: [Cost; 4] = Default::default();
    let (mut base_rate, mut base_cpu) = (Spread::default(), Spread::default());
    let (mut read, mut lost) = (0, 0);
    once(&server)?;
    for round in 1..=ROUNDS {
        for state in shuffled([State::Same, State::Floor, State::Programs, State::Weir], round) {
            let before = once(&server)?;
            let measured = match state {
                State::Same => once(&server)?,
                State::Floor => {
                    let _floor = Floor::attach_library(&path, &target)?;
                    once(&server)?
                }
                State::Programs => programs(&server, &path, &target, &mut read, &mut lost)?,
                State::Weir => {
                    let agent = agent(&["run", "--admin", "off", "--export", "jsonl:/dev/null"], "ready")?;
                    let measured = once(&server)?;
                    agent.stop()?;
                    measured
                }
            };
            let after = once(&server)?;
            if let Some(cost) = costs.get_mut(state as usize) {
                let around = |of: fn(&Run) -> f64| f64::midpoint(of(&before), of(&after));
                cost.throughput.push(measured.requests / around(|run| run.requests));
                cost.cpu.push(measured.cpu_us / around(|run| run.cpu_us));
                cost.added_us.push(measured.cpu_us - around(|run| run.cpu_us));
            }
            for run in [before, after] {
                base_rate.push(run.requests);
                base_cpu.push(run.cpu_us);
            }
        }
        report(format_args!("round {round} of {ROUNDS}"))?;
    }
    tell(&costs, &base_rate, &base_cpu, read, lost)
}

fn programs(server: &Server, path: &Path, target: &Target, read: &mut u64, lost: &mut u64) -> Result<Run> {
    let mut reader = Reader::start(SocketBackend::SockTracepoint)?;
    let uprobes = reader.attached.uprobes()?;
    let library = uprobes.attach(File::open(path)?.as_fd(), target)?;
    let measured = once(server)?;
    let counts = reader.counts()?;
    ensure!(counts.0 > 0, "the programs reported nothing");
    *read += counts.0;
    *lost += counts.1;
    drop(library);
    Ok(measured)
}

fn tell(costs: &[Cost; 4], base_rate: &Spread, base_cpu: &Spread, read: u64, lost: u64) -> Result<Value> {
    let [same, floor, programs, _] = costs;
    report(format_args!(
        "nothing attached: {} requests/s, nginx {} us of CPU a request (one read and one write of the library)",
        base_rate.show(0),
        base_cpu.show(2)
    ))?;
    let mut states = serde_json::Map::new();
    for (name, cost) in NAMES.iter().zip(costs) {
        report(format_args!(
            "{name}: throughput x{}, nginx CPU x{} ({} us added)",
            cost.throughput.show(3),
            cost.cpu.show(3),
            cost.added_us.show(2)
        ))?;
        states.insert(
            (*name).to_owned(),
            json!({ "throughput": cost.throughput.json(), "cpu": cost.cpu.json(), "added_us": cost.added_us.json() }),
        );
    }
    let to_floor = programs.cpu.median() / floor.cpu.median();
    let kept = programs.throughput.median();
    report(format_args!(
        "weir's programs cost x{to_floor:.3} of empty probes at the same places; {:.0} % of the throughput is kept ({})",
        kept * 100.0,
        if kept >= THROUGHPUT_MIN { "within the aim" } else { "below the aim" }
    ))?;
    report(format_args!("{read} records read, {lost} lost to a full ring buffer"))?;
    Ok(json!({
        "valid": is_quiet(&same.cpu) && lost * 1000 <= read,
        "rounds": ROUNDS,
        "base_requests_per_second": base_rate.json(),
        "base_cpu_us": base_cpu.json(),
        "ratios": states,
        "programs_to_floor": to_floor,
        "throughput_kept": kept,
        "within_aim": kept >= THROUGHPUT_MIN,
    }))
}
