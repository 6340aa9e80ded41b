//! Envoy between HTTP/2 and HTTP/2.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{FIXTURES, listening};
use crate::harness::free_port;
use crate::harness::guard::Process;
use crate::harness::tls::Certificates;
use crate::harness::tls::programs;

/// Start it in front of what listens on `backend`, and the port it listens on; `encrypted`: on both sides, or on none.
///
/// # Errors
/// It is not here.
pub(super) fn envoy(
    dir: &Path,
    encrypted: bool,
    backend: u16,
    certificates: &Certificates,
) -> Result<(Process, u16), String> {
    let program = programs::envoy()?;
    let (clear, over_tls) = (free_port(), free_port());
    let mut text = fs::read_to_string(Path::new(FIXTURES).join("envoy.yaml")).unwrap();
    for (word, port) in [("CLEAR_PORT", clear), ("TLS_PORT", over_tls), ("BACKEND", backend)] {
        text = text.replace(word, &port.to_string());
    }
    for (word, path) in [
        ("LOG", dir.join("log.jsonl")),
        ("AUTHORITY", certificates.authority()),
        ("PRIVATE_KEY", certificates.key()),
        ("CERTIFICATE", certificates.certificate()),
    ] {
        text = text.replace(word, &path.display().to_string());
    }
    let conf = dir.join("envoy.yaml");
    fs::write(&conf, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&conf).args(["--concurrency", "2", "--disable-hot-restart", "--log-level", "error"]);
    command.args(["--file-flush-interval-msec", "50"]);
    let port = if encrypted { over_tls } else { clear };
    Ok((listening(&mut command, port), port))
}
