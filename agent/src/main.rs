//! The `weir` command: arguments, logs, exit codes.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use agent::{bpf, cli::Cli, commands, memory};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Not a command: the agent starts itself so, to try on itself what could hurt others.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == bpf::canary::ARGUMENT) {
        bpf::canary::run();
    }
    memory::return_what_is_freed();
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("warn,agent=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match commands::dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            // Standard error that is closed leaves nobody to tell.
            _ = writeln!(std::io::stderr(), "weir: {error:#}");
            ExitCode::FAILURE
        }
    }
}
