//! One line per call for people. Control characters were escaped by `redact`; this adds only its own colours.

use std::{
    fmt::{self, Write as _},
    io::IsTerminal as _,
    sync::Arc,
    time::Duration,
};

use tokio::io::{AsyncWriteExt as _, Stdout};

use super::{Complaint, Delivery, Exporter, Queue, jsonl::Rfc3339};
use crate::model::{CallReport, Role};

const RESET: &str = "\x1b[0m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const CYAN: &str = "\x1b[36m";

/// Writes to standard output, in colour when that is a terminal.
#[derive(Debug)]
pub struct Console {
    out: Stdout,
    colour: bool,
    complaint: Complaint,
}

impl Console {
    /// `colour` forces or forbids colours; `None` asks the terminal.
    pub fn new(colour: Option<bool>) -> Self {
        let colour = colour.unwrap_or_else(|| std::io::stdout().is_terminal());
        Self { out: tokio::io::stdout(), colour, complaint: Complaint::default() }
    }

    /// Lines are for watching: they come within a tenth of a second.
    pub fn queue() -> Queue {
        Queue { delay: Duration::from_millis(100), ..Queue::default() }
    }
}

impl Exporter for Console {
    fn name(&self) -> &'static str {
        "console"
    }

    async fn export(&mut self, batch: &[Arc<CallReport>]) -> Delivery {
        let mut lines = String::with_capacity(batch.len() * 128);
        for report in batch {
            // Writing to a String cannot fail.
            writeln!(lines, "{}", Line { report, colour: self.colour }).unwrap_or_default();
        }
        let result = match self.out.write_all(lines.as_bytes()).await {
            Ok(()) => self.out.flush().await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => Delivery { exported: batch.len() as u64, ..Delivery::default() },
            Err(error) => {
                self.complaint.raise("console", &error);
                Delivery { failed: batch.len() as u64, ..Delivery::default() }
            }
        }
    }
}

/// `22:13:20.123 <- nginx[42] GET shop.example:8080/users/42 200 12.3ms 1.0KB from 10.0.0.7`.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub report: &'a CallReport,
    pub colour: bool,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let paint = |code: &'static str| if self.colour { code } else { "" };
        let reset = paint(RESET);
        let time = Rfc3339(report.start_unix_ns).to_string();
        write!(f, "{}{}{reset} ", paint(DIM), time.get(11..23).unwrap_or(&time))?;
        f.write_str(match report.role {
            Role::Server => "<- ",
            Role::Client => "-> ",
        })?;
        let workload = &*report.workload;
        let name = workload.service_name.as_deref().or(workload.executable_name.as_deref());
        let name = name.or(workload.command.as_deref()).unwrap_or("?");
        write!(f, "{}{name}{reset}[{}] ", paint(CYAN), report.pid)?;
        let method = report.method_original.as_deref().or(report.method.as_deref()).unwrap_or("?");
        write!(f, "{method} ")?;
        if report.tls.is_some() {
            f.write_str("https://")?;
        }
        if let Some(host) = &report.server_address {
            f.write_str(host)?;
            if let Some(port) = report.server_port {
                write!(f, ":{port}")?;
            }
        }
        f.write_str(report.path.as_deref().unwrap_or(if report.method.is_some() { "" } else { "?" }))?;
        if let Some(query) = &report.query {
            write!(f, "?{query}")?;
        }
        match report.status {
            Some(status) => {
                let colour = match status {
                    500.. => RED,
                    400..=499 => YELLOW,
                    _ => GREEN,
                };
                write!(f, " {}{status}{reset}", paint(colour))?;
            }
            None => write!(f, " {}-{reset}", paint(RED))?,
        }
        write!(f, " {}", Span(report.duration_ns))?;
        if let Some(size) = report.response_body_size {
            write!(f, " {}", Size(size))?;
        }
        if let Some(peer) = report.peer_address.as_deref().filter(|_| report.role == Role::Server) {
            write!(f, " from {peer}")?;
        }
        if let Some(error) =
            report.error_type.as_deref().filter(|error| !error.starts_with(|c: char| c.is_ascii_digit()))
        {
            write!(f, " {}{error}{reset}", paint(RED))?;
        }
        if let Some(incomplete) = report.incomplete {
            write!(f, " {}[{}]{reset}", paint(YELLOW), incomplete.name())?;
        }
        Ok(())
    }
}

/// Nanoseconds in the unit people would choose.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0 as f64;
        match self.0 {
            0..1_000_000 => write!(f, "{:.0}us", nanos / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1}ms", nanos / 1e6),
            _ => write!(f, "{:.2}s", nanos / 1e9),
        }
    }
}

struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{}B", self.0),
            1_000..1_000_000 => write!(f, "{:.1}kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1}MB", bytes / 1e6),
            _ => write!(f, "{:.1}GB", bytes / 1e9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    #[test]
    fn a_line_reads_like_a_sentence() {
        let report = fixture::maximal(Role::Server);
        assert_eq!(
            Line { report: &report, colour: false }.to_string(),
            "22:13:20.123 <- shop[42] PROPFIND https://shop.example:8080/users/42?q=a&sig=REDACTED 503 12.3ms 1.0kB \
             from 10.0.0.7 [records_lost]"
        );
        let mut report = fixture::minimal(Role::Client);
        report.status = None;
        report.error_type = Some(Arc::from("timeout"));
        report.duration_ns = 2_500_000_000;
        assert_eq!(Line { report: &report, colour: false }.to_string(), "22:13:20.123 -> ?[42] GET / - 2.50s timeout");
        report.method = None;
        report.path = None;
        assert!(Line { report: &report, colour: false }.to_string().contains("?[42] ? ? - "));
    }

    #[test]
    fn colours_are_closed() {
        let line = Line { report: &fixture::maximal(Role::Server), colour: true }.to_string();
        assert_eq!(line.matches(RESET).count() * 2, line.matches('\x1b').count());
    }
}
