//! The programs that are built for the tests or come with their Python packages: Go's, rustls', Envoy. Built once into the
//! target directory and never from the network, apart from the crates that the lock file names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::FIXTURES;
use crate::harness::{find, python_with_packages};

/// Which toolchain a Go program is from, and what is left in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// That of the Python packages: current.
    Current,
    /// The same without symbols (`-s -w`).
    Stripped,
    /// The distribution's: older.
    Distribution,
}

/// Below the target directory of the workspace.
pub(super) fn built(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(target).join("fixtures").join(name);
    fs::create_dir_all(&dir).unwrap();
    dir.canonicalize().unwrap()
}

pub(super) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The first line of what a program says about its version.
pub(super) fn version_of(program: &Path, args: &[&str]) -> String {
    let text = run(Command::new(program).args(args)).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Where a Python package of the tests lies.
fn package(name: &str) -> Result<PathBuf, String> {
    let python = python_with_packages().ok_or("no python3 with the tests' packages")?;
    let script = format!("import importlib.util as u; print(u.find_spec('{name}').submodule_search_locations[0])");
    run(Command::new(python).args(["-c", &script])).map(PathBuf::from).map_err(|_| format!("no Python package {name}"))
}

impl Go {
    /// The `go` command of this toolchain.
    fn tool(self) -> Result<PathBuf, String> {
        match self {
            Self::Current | Self::Stripped => Ok(package("go")?.join("bin/go")),
            Self::Distribution => find("go").ok_or_else(|| "no go".to_owned()),
        }
    }

    /// A `go` command that uses nothing but itself and our directories.
    fn command(self) -> Result<Command, String> {
        let mut command = Command::new(self.tool()?);
        let toolchain = if self == Self::Distribution { "go-distribution" } else { "go-current" };
        command.env_remove("GOROOT").env_remove("GOFLAGS").envs([("GOTOOLCHAIN", "local"), ("GOPROXY", "off")]);
        command.envs([("GOTELEMETRY", "off"), ("GOENV", "off"), ("CGO_ENABLED", "0")]);
        command.env("GOCACHE", built(toolchain).join("cache")).env("GOPATH", built(toolchain).join("path"));
        Ok(command)
    }

    /// `1.27.3`.
    pub fn version(self) -> String {
        let text = self.command().and_then(|mut go| run(go.arg("version"))).unwrap_or_default();
        text.split(' ').nth(2).unwrap_or_default().trim_start_matches("go").to_owned()
    }

    /// The program of `fixtures/tls/go`, built.
    ///
    /// # Errors
    /// This toolchain is not here.
    pub fn program(self) -> Result<PathBuf, String> {
        static BUILT: [OnceLock<Result<PathBuf, String>>; 3] = [const { OnceLock::new() }; 3];
        BUILT[self as usize].get_or_init(|| self.build()).clone()
    }

    fn build(self) -> Result<PathBuf, String> {
        self.build_in(&Path::new(FIXTURES).join("go"), &format!("{self:?}").to_lowercase())
    }

    fn build_in(self, source: &Path, name: &str) -> Result<PathBuf, String> {
        let mut go = self.command()?;
        let program = built("go").join(name);
        let flags = if self == Self::Stripped { "-s -w" } else { "" };
        go.current_dir(source);
        go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o"]).arg(&program).arg(".");
        // A toolchain that is there and cannot build is no reason to skip.
        run(&mut go).unwrap_or_else(|error| panic!("{error}"));
        Ok(program)
    }
}

/// The program of `fixtures/http2/go`, built.
///
/// # Errors
/// The current toolchain is not here.
pub fn go_http2() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/http2/go");
    BUILT.get_or_init(|| Go::Current.build_in(Path::new(source), "http2")).clone()
}

/// The program of `fixtures/tls/rustls`, built for release as `cargo build --release` leaves it.
///
/// # Errors
/// There is no cargo here.
pub fn rustls() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let cargo = std::env::var_os("CARGO").map(PathBuf::from).or_else(|| find("cargo")).ok_or("no cargo")?;
        let target = built("rustls");
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--locked", "--quiet", "--target-dir"]).arg(&target);
        command.current_dir(Path::new(FIXTURES).join("rustls"));
        command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        run(&mut command).unwrap_or_else(|error| panic!("{error}"));
        Ok(target.join("release/weir-tls-rustls"))
    };
    BUILT.get_or_init(build).clone()
}

/// The same program without symbols, as many images ship such programs.
///
/// # Errors
/// There is no cargo or no `strip` here.
pub fn rustls_stripped() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let (program, strip) = (rustls()?, find("strip").ok_or("no strip")?);
        let stripped = program.with_file_name("weir-tls-rustls-stripped");
        run(Command::new(strip).arg("--strip-all").arg("-o").arg(&stripped).arg(&program))
            .unwrap_or_else(|error| panic!("{error}"));
        Ok(stripped)
    };
    BUILT.get_or_init(build).clone()
}

/// The version of rustls in the lock file of its program.
pub fn rustls_version() -> String {
    let lock = fs::read_to_string(Path::new(FIXTURES).join("rustls/Cargo.lock")).unwrap_or_default();
    let mut lines = lock.lines().skip_while(|line| *line != "name = \"rustls\"").skip(1);
    let version = lines.next().unwrap_or_default();
    version.trim_start_matches("version = ").trim_matches('"').to_owned()
}

/// Envoy itself, without the script in front of it.
///
/// # Errors
/// Its package is not here.
pub fn envoy() -> Result<PathBuf, String> {
    let program = package("envoy")?.join("_bin/envoy");
    if program.is_file() { Ok(program) } else { Err("no envoy".to_owned()) }
}
