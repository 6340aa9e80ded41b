//! The program of `fixtures/tls/forms.c`, which calls OpenSSL in the forms that few applications use, and what it says
//! about the calls it made.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use super::programs::{built, run};
use super::{Certificates, FIXTURES};
use crate::harness::find;

/// A call that was made and answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub form: String,
    pub method: String,
    pub path: String,
    pub status: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Of the connection, as the server has it.
    pub client_port: u64,
    pub server_port: u64,
    /// Where the client's own connection goes, if that is not the server.
    pub proxy_port: Option<u64>,
}

/// How the program gets at OpenSSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    Shared,
    /// The library is in the program, which needs nothing else to run.
    Static,
}

/// The program, built.
///
/// # Errors
/// There is no compiler here, or not what it needs of OpenSSL.
pub fn program(linked: Linked) -> Result<PathBuf, String> {
    static BUILT: [OnceLock<Result<PathBuf, String>>; 2] = [const { OnceLock::new() }; 2];
    BUILT[linked as usize].get_or_init(|| build(linked)).clone()
}

fn build(linked: Linked) -> Result<PathBuf, String> {
    let compiler = find("cc").ok_or("no cc")?;
    let headers = ["/usr/include/openssl/ssl.h", "/usr/local/include/openssl/ssl.h"];
    if !headers.iter().any(|header| Path::new(header).exists()) {
        return Err("no headers of OpenSSL".to_owned());
    }
    let program = built("forms").join(format!("{linked:?}").to_lowercase());
    let mut command = Command::new(compiler);
    command.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
    if linked == Linked::Static {
        command.arg("-static");
    }
    command.arg(Path::new(FIXTURES).join("forms.c")).args(["-lssl", "-lcrypto", "-lpthread"]);
    // A compiler that is there and cannot build is no reason to skip.
    run(&mut command).unwrap_or_else(|error| panic!("{error}"));
    Ok(program)
}

/// Run these forms and return the process, and the calls that were made.
pub fn make(program: &Path, certificates: &Certificates, forms: &[&str]) -> (u32, Vec<Made>) {
    let mut command = Command::new(program);
    command.arg(certificates.certificate()).arg(certificates.key()).args(forms);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{forms:?}: {}", String::from_utf8_lossy(&output.stderr));
    let lines = crate::harness::agent::parse_lines(&String::from_utf8_lossy(&output.stdout));
    (pid, lines.iter().map(made).collect())
}

fn made(line: &Value) -> Made {
    let text = |key: &str| line[key].as_str().unwrap().to_owned();
    let number = |key: &str| line[key].as_u64().unwrap();
    Made {
        form: text("form"),
        method: text("method"),
        path: text("path"),
        status: number("status"),
        request_bytes: number("request_bytes"),
        response_bytes: number("response_bytes"),
        client_port: number("client_port"),
        server_port: number("server_port"),
        proxy_port: line["proxy_port"].as_u64(),
    }
}
