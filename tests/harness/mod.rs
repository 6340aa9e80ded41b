//! The parts of the harness, and what all of them need: free ports, bounded waiting, and skips that are told.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub mod agent;
pub mod client;
pub mod guard;
pub mod http2;
pub mod recording;
pub mod server;
pub mod servers;
pub mod tls;

/// How long anything that should happen at once may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A TCP port of 127.0.0.1 that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Ask until it is true; false when `limit` passed.
pub fn wait_until(mut condition: impl FnMut() -> bool, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Say that a test cannot run here. `cargo xtask test` fails unless `expected-skips.txt` lists it for this kernel.
pub fn skip(name: &str, why: &str) {
    // Straight to the descriptor: the test runner swallows what the macros print.
    _ = writeln!(std::io::stderr(), "\nskipped: {name}: {why}");
}

/// The full path of a program, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let folders = std::env::var("PATH").unwrap_or_default();
    let folders = folders.split(':').chain(["/usr/sbin", "/sbin"]);
    folders.map(|folder| PathBuf::from(folder).join(program)).find(|path| path.is_file())
}

/// The Python interpreter itself: what the path names may be a script that starts a dozen programs first.
pub fn python() -> Option<&'static PathBuf> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(|| resolve(&find("python3")?)).as_ref()
}

/// The Python interpreter that has the packages of `requirements.txt`, if they are installed.
pub fn python_with_packages() -> Option<&'static PathBuf> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/python/bin/python3");
            let path = PathBuf::from(std::env::var("WEIR_PYTHON").unwrap_or_else(|_| default.to_owned()));
            let has = Command::new(&path).args(["-c", "import requests"]).output().ok()?.status.success();
            has.then_some(path)
        })
        .as_ref()
}

fn resolve(python: &PathBuf) -> Option<PathBuf> {
    let output = Command::new(python).args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
