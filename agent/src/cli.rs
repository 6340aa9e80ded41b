//! The command line: what can be typed, and nothing about what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::Overrides;

/// API traffic measured from inside the Linux kernel.
///
/// Weir sees the HTTP calls of every process on this machine, on both sides, without a proxy and without changing any
/// application, and exports them as OpenTelemetry spans and metrics.
#[derive(Debug, Parser)]
#[command(name = "weir", version, max_term_width = 100, arg_required_else_help = true, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observe this machine until told to stop.
    Run(Run),
    /// Say what this kernel and these privileges allow, what is lost, and how to get it.
    ///
    /// Exit code: 0 everything, 1 something is lost, 2 nothing can be observed.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a configuration file: all errors at once, each with its line and column.
    ///
    /// Exit code: 0 good, 64 wrong.
    Check {
        /// YAML file, as for `run --config`.
        file: PathBuf,
    },
    /// Show calls as they happen, one line each, from a running agent.
    Tail(Tail),
    /// Write the kernel's records to a file, for `replay` and for bug reports.
    ///
    /// The file holds the bytes that processes exchanged, passwords and tokens included: keep it as secret as those.
    Record {
        /// File to write; it must not exist. Created readable by its owner only.
        path: PathBuf,
        /// Stop after this long, such as 30s or 5m.
        #[arg(long, value_parser = duration)]
        duration: Option<Duration>,
        /// Stop when the file has this many bytes.
        #[arg(long, default_value_t = 1 << 30)]
        max_bytes: u64,
    },
    /// Send a recording through the same core as live records. Needs no privileges.
    Replay {
        /// File that `record` wrote.
        path: PathBuf,
        /// console, or jsonl:PATH. May be given several times. Default: console.
        #[arg(long, value_name = "SINK")]
        export: Vec<String>,
        /// Send it this many times and print how fast that was.
        #[arg(long, value_name = "TIMES")]
        time: Option<u32>,
    },
}

#[derive(Args, Debug, Default)]
pub struct Run {
    /// YAML configuration. Flags and OTEL_* variables win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Most that the agent may do: observe, audit or enforce.
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
    /// Send spans and metrics to this OpenTelemetry endpoint, such as http://localhost:4317.
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// grpc or http/protobuf.
    #[arg(long, value_name = "PROTOCOL")]
    pub otlp_protocol: Option<String>,
    /// console, or jsonl:PATH. May be given several times.
    #[arg(long, value_name = "SINK")]
    pub export: Vec<String>,
    /// Address of the page, API and metrics; `off` for none. Default: 127.0.0.1:9464.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// Observe only these: pid:N, exe:GLOB, cgroup:GLOB or port:N. May be given several times.
    #[arg(long, value_name = "TARGET")]
    pub target: Vec<String>,
    /// Do not observe these; wins over --target.
    #[arg(long, value_name = "TARGET")]
    pub exclude: Vec<String>,
    /// Stop after this long, such as 30s or 5m.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
}

#[derive(Args, Debug, Default)]
pub struct Tail {
    /// Address of the agent, such as http://127.0.0.1:9464. Default: its control socket.
    #[arg(long, value_name = "URL", requires = "token_file", conflicts_with = "socket")]
    pub admin: Option<String>,
    /// File with the agent's token.
    #[arg(long, value_name = "FILE", requires = "admin")]
    pub token_file: Option<PathBuf>,
    /// Control socket of the agent. Default: /run/weir/weir.sock.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Only this service.
    #[arg(long)]
    pub service: Option<String>,
    /// Only this method.
    #[arg(long)]
    pub method: Option<String>,
    /// Only paths that begin so.
    #[arg(long, value_name = "PREFIX")]
    pub path: Option<String>,
    /// Only this status: 404, 5xx, or `error`.
    #[arg(long)]
    pub status: Option<String>,
    /// Only this side: server or client.
    #[arg(long)]
    pub role: Option<String>,
    /// Only this process.
    #[arg(long)]
    pub pid: Option<u32>,
    /// As JSON lines.
    #[arg(long)]
    pub json: bool,
    /// Stop after this many calls.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
}

impl Run {
    pub fn overrides(&self) -> Overrides {
        Overrides {
            mode: self.mode.clone(),
            otlp_endpoint: self.otlp_endpoint.clone(),
            otlp_protocol: self.otlp_protocol.clone(),
            export: self.export.clone(),
            admin: self.admin.clone(),
            targets: self.target.clone(),
            exclude: self.exclude.clone(),
        }
    }
}

/// `90s`, `5m`, `2h`, `500ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no duration; write 30s, 5m or 2h"))?;
    let duration = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    };
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("{text:?} is no duration; write 30s, 5m or 2h"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        for (text, want) in [
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("7", Some(7_000)),
            ("0", None),
            ("", None),
            ("s", None),
            ("5d", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(duration(text).ok(), want.map(Duration::from_millis), "{text:?}");
        }
    }
}
