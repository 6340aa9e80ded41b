//! What users of HTTP/2 notice: throughput and CPU of nginx and nghttpd under h2load, several streams at a time on each
//! connection, in the clear and over TLS, with and without the agent.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};
use weir_tests::harness::find;

use crate::driver::pin;
use crate::process::{Server, agent, cpu_seconds};
use crate::report;
use crate::spread::{Spread, is_quiet, shuffled};

const ROUNDS: u64 = 5;
pub(crate) const CONNECTIONS: usize = 4;
pub(crate) const STREAMS: usize = 10;
const REQUESTS: usize = 50_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Same,
    Weir,
}
const NAMES: [&str; 2] = ["same", "weir"];

/// One run.
struct Run {
    /// A second.
    requests: f64,
    /// Of the server, microseconds a request.
    cpu_us: f64,
}

#[derive(Default)]
struct Cost {
    throughput: Spread,
    cpu: Spread,
}

/// Requests by h2load, kept on the first CPU; how many were answered in a second.
pub(crate) fn load(server: &Server, encrypted: bool, requests: usize) -> Result<f64> {
    let scheme = if encrypted { "https" } else { "http" };
    let child = Command::new(find("h2load").context("h2load is not installed")?)
        .args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-m", &STREAMS.to_string(), "-n", &requests.to_string()])
        .arg(format!("{scheme}://127.0.0.1:{}/item", server.port))
        .stdout(Stdio::piped())
        .spawn()?;
    pin(child.id() as i32, 0)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    // finished in 1.05s, 47619.05 req/s, 3.51MB/s
    let rate = text.lines().find_map(|line| {
        let (_, rest) = line.split_once("finished in ")?;
        rest.split(", ").nth(1)?.strip_suffix(" req/s")?.parse().ok()
    });
    ensure!(text.contains(&format!("{requests} succeeded")), "not all were answered:\n{text}");
    rate.context("h2load told no rate")
}

fn once(server: &Server, encrypted: bool) -> Result<Run> {
    let worker = server.worker()?;
    let before = cpu_seconds(worker)?;
    let requests = load(server, encrypted, REQUESTS)?;
    Ok(Run { requests, cpu_us: (cpu_seconds(worker)? - before) / REQUESTS as f64 * 1e6 })
}

/// Run it; the result as JSON.
pub(crate) fn run(cpus: usize) -> Result<Value> {
    let (mut servers, mut valid) = (Map::new(), true);
    for name in ["nginx", "nghttpd"] {
        for (transport, encrypted) in [("clear", false), ("tls", true)] {
            let server = match name {
                "nginx" => Server::nginx_http2(cpus - 1, encrypted)?,
                "nghttpd" => Server::nghttpd(cpus - 1, encrypted)?,
                other => bail!("no server {other}"),
            };
            let (result, quiet) = measure(&format!("{name} {transport}"), &server, encrypted)?;
            valid &= quiet;
            servers.insert(format!("{name}_{transport}"), result);
        }
    }
    Ok(json!({
        "valid": valid,
        "rounds": ROUNDS,
        "connections": CONNECTIONS,
        "streams": STREAMS,
        "requests": REQUESTS,
        "servers": servers,
    }))
}

fn measure(name: &str, server: &Server, encrypted: bool) -> Result<(Value, bool)> {
    let mut costs: [Cost; 2] = Default::default();
    let (mut base_rate, mut base_cpu) = (Spread::default(), Spread::default());
    let (mut agent_seconds, mut peak_kib) = (Spread::default(), Spread::default());
    once(server, encrypted)?;
    for round in 1..=ROUNDS {
        for state in shuffled([State::Same, State::Weir], round) {
            let before = once(server, encrypted)?;
            let measured = match state {
                State::Same => once(server, encrypted)?,
                State::Weir => {
                    let agent = agent(&["run", "--admin", "off", "--export", "jsonl:/dev/null"], "ready")?;
                    let cpu = agent.cpu_seconds()?;
                    let measured = once(server, encrypted)?;
                    agent_seconds.push((agent.cpu_seconds()? - cpu) / REQUESTS as f64 * 10_000.0);
                    peak_kib.push(agent.memory_kib("VmHWM:")? as f64);
                    agent.stop()?;
                    measured
                }
            };
            let after = once(server, encrypted)?;
            if let Some(cost) = costs.get_mut(state as usize) {
                let around = |of: fn(&Run) -> f64| of(&measured) / f64::midpoint(of(&before), of(&after));
                cost.throughput.push(around(|run| run.requests));
                cost.cpu.push(around(|run| run.cpu_us));
            }
            for run in [before, after] {
                base_rate.push(run.requests);
                base_cpu.push(run.cpu_us);
            }
        }
    }
    report(format_args!(
        "{name}, without the agent: {} requests/s, server {} us of CPU a request",
        base_rate.show(0),
        base_cpu.show(2)
    ))?;
    let mut states = Map::new();
    for (state, cost) in NAMES.iter().zip(&costs) {
        report(format_args!("{name}, {state}: throughput x{}, CPU x{}", cost.throughput.show(3), cost.cpu.show(3)))?;
        states.insert((*state).to_owned(), json!({ "throughput": cost.throughput.json(), "cpu": cost.cpu.json() }));
    }
    report(format_args!(
        "{name}, agent: {} s of CPU for 10,000 requests seen at both ends, {} KiB resident at most",
        agent_seconds.show(3),
        peak_kib.show(0)
    ))?;
    let [same, _] = &costs;
    let quiet = is_quiet(&same.cpu);
    let result = json!({
        "valid": quiet,
        "base_requests_per_second": base_rate.json(),
        "base_cpu_us": base_cpu.json(),
        "ratios": states,
        "agent_cpu_seconds_per_10000": agent_seconds.json(),
        "agent_rss_peak_kib": peak_kib.json(),
    });
    Ok((result, quiet))
}
