//! How fast the capture core is: recordings of real traffic, made here, sent through it over and over on one core.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use crate::driver::Driver;
use crate::http2;
use crate::process::{Server, agent, weir};
use crate::report;
use crate::spread::{Spread, is_quiet};

const CONNECTIONS: usize = 16;
const REQUESTS: usize = 5000;
/// Runs of the core, and how often each sends the recording.
const RUNS: usize = 11;
const TIMES: usize = 20;
/// Aims, calls a second and core: of HTTP/1, and of HTTP/2 with its compressed heads.
const CALLS_MIN: f64 = 1e6;
const STREAMS_MIN: f64 = 5e5;

/// Run it; the result as JSON.
pub(crate) fn run(cpus: usize) -> Result<Value> {
    let mut driver = Driver::start(0)?;
    let mut recordings = Map::new();
    let mut valid = true;
    type Start = fn(usize) -> Result<Server>;
    // Without a path: over HTTP/2, several streams at a time.
    let servers: [(&str, Start, Option<&str>, f64); 3] = [
        ("nginx", Server::nginx, Some("/item"), CALLS_MIN),
        ("fastapi", Server::fastapi, Some("/api/orders/4711?page=2"), CALLS_MIN),
        ("http2", |cpu| Server::nginx_http2(cpu, false), None, STREAMS_MIN),
    ];
    for (name, start, path, aim) in servers {
        let server = start(cpus - 1)?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("recording");
        let file = file.to_str().context("not UTF-8")?;
        let recorder = agent(&["record", file], "ready")?;
        match path {
            Some(path) => _ = driver.load(server.port, path, CONNECTIONS, REQUESTS)?,
            None => _ = http2::load(&server, false, REQUESTS)?,
        }
        recorder.stop()?;
        drop(server);
        let (mut rates, mut same) = (Spread::default(), Spread::default());
        let mut previous = None;
        let (mut calls, mut records, mut bytes) = (0.0, 0.0, 0.0);
        for _ in 0..RUNS {
            let output = Command::new(weir()?).args(["replay", file, "--time", &TIMES.to_string()]).output()?;
            ensure!(output.status.success(), "replay: {}", String::from_utf8_lossy(&output.stderr));
            let line: Value = serde_json::from_slice(&output.stdout)?;
            let number = |field: &str| line.get(field).and_then(Value::as_f64).with_context(|| field.to_owned());
            let rate = number("calls_per_second")?;
            (calls, records, bytes) = (number("calls")?, number("records")?, number("bytes")?);
            if let Some(previous) = previous.replace(rate) {
                same.push(rate / previous);
            }
            rates.push(rate);
        }
        let times = TIMES as f64;
        ensure!(calls / times >= REQUESTS as f64, "{REQUESTS} requests became {} calls", calls / times);
        valid &= is_quiet(&same);
        let within = rates.median() >= aim;
        report(format_args!(
            "{name}: {} calls/s and core ({}); {} calls of both ends, {} records, {} bytes ({:.0} a call); run to run {}",
            rates.show(0),
            if within { "within the aim" } else { "below the aim" },
            calls / times,
            records / times,
            bytes / times,
            bytes / calls,
            same.show(3)
        ))?;
        recordings.insert(
            name.to_owned(),
            json!({
                "calls_per_second": rates.json(),
                "calls": calls / times,
                "records": records / times,
                "bytes": bytes / times,
                "run_to_run": same.json(),
                "within_aim": within,
            }),
        );
    }
    Ok(json!({ "valid": valid, "runs": RUNS, "times": TIMES, "recordings": recordings }))
}
