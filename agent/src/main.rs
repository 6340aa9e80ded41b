//! The `weir` command: arguments, logs, exit codes.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use agent::{cli::Cli, commands};
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
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
