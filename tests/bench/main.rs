//! `cargo xtask bench [NAME]`: measures Weir beside the same without it, in one run, and says so when the machine was
//! too noisy to tell. Prints ratios and writes target/bench/NAME.json.

#![expect(clippy::disallowed_methods, reason = "time is what is measured")]

mod driver;
mod floor;
mod http2;
mod kernel;
mod nginx;
mod process;
mod replay;
mod spread;
mod tls;

use std::fmt::Arguments;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

/// A measurement and its name.
type Measurement = (&'static str, fn(usize) -> Result<serde_json::Value>);
const ALL: [Measurement; 5] =
    [("kernel", kernel::run), ("nginx", nginx::run), ("http2", http2::run), ("replay", replay::run), ("tls", tls::run)];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["drive", cpu] => driver::serve(cpu),
        // Weir's programs are loaded in this process: so is their test.
        [agent::bpf::canary::ARGUMENT] => agent::bpf::canary::run(),
        [] => ALL.iter().try_for_each(measure),
        [name] => match ALL.iter().find(|(known, _)| *known == name) {
            Some(measurement) => measure(measurement),
            None => bail!("no measurement {name}: there are kernel, nginx, http2, replay and tls"),
        },
        _ => bail!("usage: weir-bench [kernel|nginx|http2|replay|tls]"),
    }
}

/// Tell the user something.
pub(crate) fn report(line: Arguments<'_>) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write")
}

fn measure(&(name, run): &Measurement) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    ensure!(cpus >= 2, "needs two CPUs: one to measure, one for everything else");
    report(format_args!("== {name}"))?;
    let before = load_average();
    let mut result = run(cpus)?;
    let valid = result.get("valid").and_then(serde_json::Value::as_bool).unwrap_or(false);
    if let Some(fields) = result.as_object_mut() {
        fields.insert("load_average_before".to_owned(), before.clone().into());
        fields.insert("load_average_after".to_owned(), load_average().into());
        fields.insert("cpus".to_owned(), cpus.into());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    fs::create_dir_all(&path)?;
    let path = path.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_string_pretty(&result)?)?;
    report(format_args!(
        "{name}: {} (load average was {before}); target/bench/{name}.json",
        if valid {
            "valid"
        } else {
            "NOT VALID: the machine was too busy, a thing measured against itself differs or records were lost"
        }
    ))
}

fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}
