//! What nginx's users notice: throughput, latency and CPU of nginx with and without the agent, and what the agent itself
//! needs. A fixed number of requests from one closed loop: a load generator of fixed time measures itself on two CPUs.

use anyhow::Result;
use serde_json::{Value, json};

use crate::driver::{Driver, Load};
use crate::floor::Floor;
use crate::process::{Running, Server, agent, cpu_seconds};
use crate::report;
use crate::spread::{Spread, is_quiet, shuffled};

const ROUNDS: u64 = 7;
const CONNECTIONS: usize = 16;
const REQUESTS: usize = 50_000;
/// Aim: a tenth of a core at 10,000 requests a second.
const AGENT_SECONDS_MAX: f64 = 0.1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Same,
    Floor,
    Weir,
}
const NAMES: [&str; 3] = ["same", "floor", "weir"];

/// One state against the runs around it.
#[derive(Default)]
struct Cost {
    throughput: Spread,
    p99: Spread,
    server_cpu: Spread,
}

/// One run.
struct Run {
    load: Load,
    server_cpu: f64,
}

fn once(driver: &mut Driver, server: &Server) -> Result<Run> {
    let worker = server.worker()?;
    let before = cpu_seconds(worker)?;
    let load = driver.load(server.port, "/item", CONNECTIONS, REQUESTS)?;
    Ok(Run { load, server_cpu: cpu_seconds(worker)? - before })
}

/// Run it; the result as JSON.
pub(crate) fn run(cpus: usize) -> Result<Value> {
    let server = Server::nginx(cpus - 1)?;
    let mut driver = Driver::start(0)?;
    let mut costs: [Cost; 3] = Default::default();
    let (mut base_rate, mut base_p99, mut base_cpu) = (Spread::default(), Spread::default(), Spread::default());
    let (mut agent_seconds, mut idle_kib, mut peak_kib) = (Spread::default(), Spread::default(), Spread::default());
    once(&mut driver, &server)?;
    for round in 1..=ROUNDS {
        for state in shuffled([State::Same, State::Floor, State::Weir], round) {
            let before = once(&mut driver, &server)?;
            let measured = match state {
                State::Same => once(&mut driver, &server)?,
                State::Floor => {
                    let _floor = Floor::attach()?;
                    once(&mut driver, &server)?
                }
                State::Weir => {
                    let agent = start()?;
                    idle_kib.push(agent.memory_kib("VmRSS:")? as f64);
                    let cpu = agent.cpu_seconds()?;
                    let measured = once(&mut driver, &server)?;
                    agent_seconds.push((agent.cpu_seconds()? - cpu) / REQUESTS as f64 * 10_000.0);
                    peak_kib.push(agent.memory_kib("VmHWM:")? as f64);
                    agent.stop()?;
                    measured
                }
            };
            let after = once(&mut driver, &server)?;
            if let Some(cost) = costs.get_mut(state as usize) {
                let around = |of: fn(&Run) -> f64| of(&measured) / f64::midpoint(of(&before), of(&after));
                cost.throughput.push(around(|run| 1.0 / run.load.seconds));
                cost.p99.push(around(|run| run.load.p99_us));
                cost.server_cpu.push(around(|run| run.server_cpu));
            }
            for run in [before, after] {
                base_rate.push(REQUESTS as f64 / run.load.seconds);
                base_p99.push(run.load.p99_us);
                base_cpu.push(run.server_cpu / REQUESTS as f64 * 1e6);
            }
        }
        report(format_args!("round {round} of {ROUNDS}"))?;
    }
    report(format_args!(
        "without the agent: {} requests/s, p99 {} us, nginx CPU {} us a request",
        base_rate.show(0),
        base_p99.show(0),
        base_cpu.show(2)
    ))?;
    let mut states = serde_json::Map::new();
    for (name, cost) in NAMES.iter().zip(&costs) {
        report(format_args!(
            "{name}: throughput x{}, p99 x{}, nginx CPU x{}",
            cost.throughput.show(3),
            cost.p99.show(3),
            cost.server_cpu.show(3)
        ))?;
        states.insert(
            (*name).to_owned(),
            json!({ "throughput": cost.throughput.json(), "p99": cost.p99.json(), "server_cpu": cost.server_cpu.json() }),
        );
    }
    let within = agent_seconds.median() <= AGENT_SECONDS_MAX;
    report(format_args!(
        "agent: {} s of CPU for 10,000 requests ({}), {} KiB resident when idle, {} KiB at most",
        agent_seconds.show(4),
        if within { "within the aim" } else { "above the aim" },
        idle_kib.show(0),
        peak_kib.show(0)
    ))?;
    let [same, ..] = &costs;
    Ok(json!({
        "valid": is_quiet(&same.throughput) && is_quiet(&same.server_cpu),
        "rounds": ROUNDS,
        "connections": CONNECTIONS,
        "requests": REQUESTS,
        "base_requests_per_second": base_rate.json(),
        "base_p99_us": base_p99.json(),
        "base_server_cpu_us": base_cpu.json(),
        "ratios": states,
        "agent_cpu_seconds_per_10000": agent_seconds.json(),
        "agent_rss_idle_kib": idle_kib.json(),
        "agent_rss_peak_kib": peak_kib.json(),
        "within_aim": within,
    }))
}

/// The agent as it runs by default, with its file exporter. The driver is left alone: its CPU time is not a user's.
fn start() -> Result<Running> {
    agent(&["run", "--admin", "off", "--export", "jsonl:/dev/null", "--exclude", "exe:weir-bench"], "ready")
}
