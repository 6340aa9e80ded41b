//! Everything CI does, runnable by hand. Depends on nothing of the product: it reads files and runs commands.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to its user")]
#![allow(clippy::disallowed_methods, reason = "builds, boots and demos run on the real clock")]

mod artifacts;
mod build;
mod container;
mod demo;
mod ebpf;
mod initramfs;
mod results;
mod setup;
mod shell;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::setup::Purpose;

/// Build, test and show Weir.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what this machine lacks; the other commands call it themselves
    Setup {
        /// What the machine is wanted for
        #[arg(long = "for", value_name = "PURPOSE", value_delimiter = ',', default_value = "build,demo")]
        purposes: Vec<Purpose>,
    },
    /// Build the agent with its kernel object and print its path
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Watch real services on this machine: installs, builds, starts, shows calls live, stops cleanly
    Demo {
        /// End by itself after so many seconds
        #[arg(long, value_name = "N")]
        seconds: Option<u64>,
    },
    /// Check everything that CI checks: format, lints, tidy, unit, property and kernel tests, one machine
    Test {
        /// On every kernel, and under lockdown
        #[arg(long)]
        all: bool,
        /// Only the steps whose name contains this
        #[arg(long, value_name = "NAME")]
        step: Option<String>,
    },
    /// Run the kernel tests in emulated machines
    Vm {
        /// Kernel series; all when none is named
        #[arg(value_name = "KERNEL", value_parser = clap::builder::PossibleValuesParser::new(vm::KERNELS))]
        kernels: Vec<String>,
        /// Boot with the kernel locked down
        #[arg(long, value_name = "MODE", value_parser = ["integrity", "confidentiality"])]
        lockdown: Option<String>,
        /// Only tests whose name contains this
        #[arg(long, value_name = "NAME")]
        test: Option<String>,
    },
    /// Check the rules that no compiler checks
    Tidy,
    /// Measure beside the same without the agent; prints ratios and writes target/bench/NAME.json
    Bench {
        /// Which measurement; all when none is named
        name: Option<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup { purposes } => setup::run(&purposes),
        Task::Build { release } => {
            println!("{}", build::agent(release)?.display());
            Ok(())
        }
        Task::Demo { seconds } => demo::run(seconds),
        Task::Test { all, step } => test::run(all, step.as_deref()),
        Task::Vm { kernels, lockdown, test } => {
            let kernels = if kernels.is_empty() {
                vm::KERNELS.iter().map(|&kernel| kernel.to_owned()).collect()
            } else {
                kernels
            };
            let machines: Vec<_> =
                kernels.into_iter().map(|kernel| vm::Machine { kernel, lockdown: lockdown.clone() }).collect();
            println!("{}", vm::run(&machines, test.as_deref())?);
            Ok(())
        }
        Task::Tidy => tidy::run(),
        Task::Bench { name } => {
            setup::ensure(Purpose::Test)?;
            let agent = build::agent(true)?;
            let mut cargo = ebpf::cargo()?;
            cargo.env("WEIR_BIN", agent);
            cargo.args(["run", "--release", "--package", "weir-tests", "--bin", "weir-bench", "--"]).args(name);
            shell::run(&mut cargo)
        }
    }
}
