//! Everything CI does, runnable by hand. Depends on nothing of the product: it reads files and runs commands.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to its user")]
#![allow(clippy::disallowed_methods, reason = "builds, boots and demos run on the real clock")]

mod build;
mod ebpf;
mod setup;
mod shell;

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
    }
}
