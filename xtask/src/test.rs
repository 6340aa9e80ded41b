//! `cargo xtask test`: everything CI checks, in the order in which it fails soonest.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    artifacts::{self, Artifact},
    container, ebpf,
    results::{Count, Results},
    setup::{self, Purpose},
    shell, tidy,
    vm::{self, Machine},
};

/// Name of the package whose tests need root and a kernel; its one binary has the name `it`.
const KERNEL_TESTS: &str = "it";

struct Step {
    name: String,
    took: Duration,
    /// What it says when it went well, or why it did not.
    result: Result<String>,
}

/// The step that builds, and those that run what it built.
const BUILD: &str = "build";
const UNIT: &str = "unit and property tests";
const KERNEL: &str = "kernel tests";

/// Run all; with `all` on every kernel and under lockdown, else in one machine. With `only`, the steps whose name has it.
///
/// # Errors
/// Any step failed, or none was run; a table of the steps is printed in any case.
pub(crate) fn run(all: bool, only: Option<&str>) -> Result<()> {
    let wanted = |name: &str| {
        let named = |name: &str| only.is_none_or(|only| name.contains(only));
        named(name) || (name == BUILD && (named(UNIT) || named(KERNEL)))
    };
    let start = Instant::now();
    let mut steps = Vec::new();
    let mut sum = Count::default();
    let mut step = |name: &str, work: &mut dyn FnMut() -> Result<String>| {
        // What does not compile has nothing to run.
        if !wanted(name) || steps.iter().any(|step: &Step| step.name == BUILD && step.result.is_err()) {
            return;
        }
        println!("\n== {name}");
        let start = Instant::now();
        let result = work();
        if let Err(error) = &result {
            println!("{name} failed: {error:#}");
        }
        steps.push(Step { name: name.to_owned(), took: start.elapsed(), result });
    };

    step("setup", &mut || setup::ensure(Purpose::Test).map(|()| String::new()));
    step("format", &mut || {
        shell::run(ebpf::cargo()?.args(["fmt", "--all", "--check"])).context("`cargo fmt --all` puts it right")?;
        Ok(String::new())
    });
    step("tidy", &mut || tidy::run().map(|()| String::new()));
    step("clippy", &mut || {
        let lint = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        shell::run(ebpf::cargo()?.args(lint)).map(|()| String::new())
    });
    let mut built = Vec::new();
    step(BUILD, &mut || {
        let build = ["build", "--workspace", "--all-targets", "--message-format=json-render-diagnostics"];
        built = artifacts::build(ebpf::cargo()?.args(build))?;
        Ok(format!("{} programs", built.len()))
    });
    step(UNIT, &mut || {
        let count = unit(&built)?;
        sum += count;
        Ok(count.to_string())
    });
    step("documentation tests", &mut || {
        let transcript = shell::tee(ebpf::cargo()?.args(["test", "--workspace", "--doc", "--quiet"]))?;
        if !transcript.status.success() {
            bail!("an example in the documentation does not work");
        }
        Ok(String::new())
    });
    step(KERNEL, &mut || {
        let count = kernel(&built)?;
        sum += count;
        Ok(count.to_string())
    });
    step("container", &mut || {
        let seen = container::run()?;
        sum.passed += 1;
        Ok(seen)
    });
    for (machine, filter) in machines(all) {
        step(&format!("machine with kernel {}", machine.name()), &mut || {
            let count = vm::run(std::slice::from_ref(&machine), filter)?;
            sum += count;
            Ok(count.to_string())
        });
    }
    summary(&steps, sum, start.elapsed())
}

/// Tests that say whether a kernel takes the programs.
const ACCEPTANCE: &str = "doctor_says";

/// Emulated machines and which tests run there. The oldest kernel has limits of its own: that it takes the programs is
/// always asked.
fn machines(all: bool) -> Vec<(Machine, Option<&'static str>)> {
    let machine = |kernel: &str, lockdown: Option<&str>| Machine {
        kernel: kernel.to_owned(),
        lockdown: lockdown.map(str::to_owned),
    };
    if !all {
        return vec![(machine("6.1", None), Some(ACCEPTANCE)), (machine("6.12", None), None)];
    }
    let plain = vm::KERNELS.iter().map(|kernel| (machine(kernel, None), None));
    plain.chain([(machine("6.12", Some("integrity")), None)]).collect()
}

/// Run the tests that need nothing, as cargo would: in the directory of their package.
fn unit(built: &[Artifact]) -> Result<Count> {
    ensure!(!built.is_empty(), "nothing was built");
    let mut results = Results::default();
    let mut failed = Vec::new();
    for test in built.iter().filter(|artifact| artifact.is_test && artifact.target != KERNEL_TESTS) {
        println!("\n   {} ({})", test.target, test.package_dir.display());
        let mut command = Command::new(&test.executable);
        command.current_dir(&test.package_dir).env("CARGO_MANIFEST_DIR", &test.package_dir);
        let transcript = shell::tee(&mut command)?;
        transcript.stdout.lines().for_each(|line| results.line(line));
        if !transcript.status.success() {
            failed.push(test.target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("{} in {}", results.count(), failed.join(", "));
    }
    Ok(results.count())
}

/// Run the kernel tests here, as root, one after another: they share the kernel.
fn kernel(built: &[Artifact]) -> Result<Count> {
    let find = |name: &str, is_test| {
        let found = built.iter().find(|artifact| artifact.target == name && artifact.is_test == is_test);
        found.with_context(|| format!("cargo built no `{name}`"))
    };
    let (tests, agent) = (find(KERNEL_TESTS, true)?, find("weir", false)?);
    let mut command = shell::as_root("env")?;
    command
        .arg(format!("WEIR_BIN={}", agent.executable.display()))
        .arg(format!("WEIR_PYTHON={}", setup::python_dir().join("bin/python3").display()))
        .arg(&tests.executable)
        .arg("--test-threads=1")
        .current_dir(&tests.package_dir);
    let transcript = shell::tee(&mut command)?;
    let mut results = Results::default();
    transcript.stdout.lines().chain(transcript.stderr.lines()).for_each(|line| results.line(line));
    let count = results.count();
    let faults = vm::skip_faults(host_kernel(), &vm::expected_skips()?, &results, false);
    if !transcript.status.success() {
        bail!("{count}");
    }
    if count.passed == 0 {
        bail!("no kernel test ran");
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("; "));
    }
    Ok(count)
}

/// The name of this machine's kernel in the list of expected skips: what it can do matters, not its version.
fn host_kernel() -> &'static str {
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let has_kprobes = symbols.lines().any(|line| line.split(' ').nth(2) == Some("register_kprobe"));
    if has_kprobes { "host" } else { "host-nokprobes" }
}

fn summary(steps: &[Step], sum: Count, took: Duration) -> Result<()> {
    ensure!(!steps.is_empty(), "no step has such a name");
    println!("\n{:<36} {:<8} {:>8}", "step", "result", "seconds");
    for step in steps {
        let (word, detail) = match &step.result {
            Ok(detail) => ("ok", detail.clone()),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        println!("{:<36} {:<8} {:>8.1}  {detail}", step.name, word, step.took.as_secs_f32());
    }
    println!("{:<36} {:<8} {:>8.1}", "all", "", took.as_secs_f32());
    let failed: Vec<_> = steps.iter().filter(|step| step.result.is_err()).map(|step| step.name.as_str()).collect();
    // A step without tests of its own that fails is one more failure.
    let failures = sum.failed.max(failed.len());
    println!("\n{} passed, {failures} failed, {} skipped", sum.passed, sum.skipped);
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{} failed", failed.join(", "))
}
