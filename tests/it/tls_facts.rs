//! What a TLS handshake says in the clear is on each call of its connection, as the client asked for it and as the
//! certificate has it: in the file, over the API and at both ends. What TLS 1.3 encrypts is absent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, Options, brief};
use weir_tests::harness::client::curl;
use weir_tests::harness::tls::servers::Server;
use weir_tests::harness::tls::{Certificates, FIXTURES};
use weir_tests::harness::{PATIENCE, find, http2, python, skip, wait_until};

use crate::otlp;

/// The name that clients ask for; the certificate has another.
const NAME: &str = "orders.weir.test";

/// How a client is told to connect, and what has to be said of it.
#[derive(Clone, Copy, Debug)]
struct Case {
    id: &'static str,
    /// Speaks HTTP/2, else HTTP/1.1.
    http2: bool,
    /// What the server of HTTP/1.1 chooses, if it does.
    chooses: Option<&'static str>,
    /// `tls.protocol.version`.
    version: &'static str,
    /// As curl's options name it, and as it is registered.
    cipher: (&'static str, &'static str),
    curve: (&'static str, &'static str),
    /// It asks for [`NAME`], else for an address.
    named: bool,
    /// `tls.next_protocol`.
    next: Option<&'static str>,
}

const ECDSA: (&str, &str) = ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256");
const CHACHA: (&str, &str) = ("TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256");
const AES: (&str, &str) = ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384");
const X25519: (&str, &str) = ("X25519", "x25519");
const P384: (&str, &str) = ("P-384", "secp384r1");
/// Of the certificate: before TLS 1.3 a client that does not name it cannot use the certificate.
const P256: (&str, &str) = ("P-256", "secp256r1");

#[rustfmt::skip]
const CASES: [Case; 6] = [
    Case { id: "plain-12", http2: false, chooses: None, version: "1.2", cipher: ECDSA, curve: P256, named: true, next: None },
    Case { id: "alpn-12", http2: false, chooses: Some("http/1.1"), version: "1.2", cipher: ECDSA, curve: P256, named: false, next: Some("http/1.1") },
    Case { id: "plain-13", http2: false, chooses: None, version: "1.3", cipher: CHACHA, curve: P384, named: false, next: None },
    // Chosen, and encrypted.
    Case { id: "alpn-13", http2: false, chooses: Some("http/1.1"), version: "1.3", cipher: AES, curve: X25519, named: true, next: None },
    Case { id: "h2-12", http2: true, chooses: None, version: "1.2", cipher: ECDSA, curve: P256, named: true, next: Some("h2") },
    // Encrypted, and told by what is spoken.
    Case { id: "h2-13", http2: true, chooses: None, version: "1.3", cipher: AES, curve: X25519, named: true, next: Some("h2") },
];

impl Case {
    /// Make the call.
    fn call(&self, port: u16) {
        let (host, resolve) = (if self.named { NAME } else { "127.0.0.1" }, format!("{NAME}:{port}:127.0.0.1"));
        let (url, max) = (format!("https://{host}:{port}/id/{}", self.id), self.version);
        let ciphers = if max == "1.3" { "--tls13-ciphers" } else { "--ciphers" };
        let http = if self.http2 { "--http2" } else { "--http1.1" };
        let least = format!("--tlsv{max}");
        let output = curl(&[
            "--insecure",
            "--resolve",
            &resolve,
            http,
            &least,
            "--tls-max",
            max,
            ciphers,
            self.cipher.0,
            "--curves",
            self.curve.0,
            "--fail",
            &url,
        ]);
        assert!(output.status.success(), "{self:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// All `tls.*` attributes of the call.
    fn facts(&self, certificate: &BTreeMap<&'static str, String>) -> BTreeMap<String, Value> {
        let mut facts = BTreeMap::from([
            ("tls.protocol.name", Value::from("tls")),
            ("tls.protocol.version", Value::from(self.version)),
            ("tls.cipher", Value::from(self.cipher.1)),
            ("tls.curve", Value::from(self.curve.1)),
            ("tls.established", Value::from(true)),
            ("tls.resumed", Value::from(false)),
        ]);
        facts.extend(self.next.map(|next| ("tls.next_protocol", Value::from(next))));
        facts.extend(self.named.then_some(("tls.client.server_name", Value::from(NAME))));
        if self.version == "1.2" {
            facts.extend(certificate.iter().map(|(name, value)| (*name, Value::from(value.as_str()))));
        }
        facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// What openssl says of the certificate.
fn certificate(path: &Path) -> BTreeMap<&'static str, String> {
    let mut command = Command::new(find("openssl").unwrap());
    command.args(["x509", "-noout", "-subject", "-issuer", "-dates", "-nameopt", "RFC2253", "-dateopt", "iso_8601"]);
    let output = command.arg("-in").arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let date = |name: &str| lines[name].replace(' ', "T").replace("TZ", "Z");
    BTreeMap::from([
        ("tls.server.subject", lines["subject"].to_owned()),
        ("tls.server.issuer", lines["issuer"].to_owned()),
        ("tls.server.not_before", date("notBefore")),
        ("tls.server.not_after", date("notAfter")),
    ])
}

/// A server for each way to choose a protocol.
struct Servers {
    plain: Server,
    choosing: Server,
    http2: http2::Server,
}

impl Servers {
    fn start(python: &PathBuf, certificates: &Certificates) -> Result<Self, String> {
        let script = || {
            let mut command = Command::new(python);
            command.arg(Path::new(FIXTURES).join("blocking.py")).env_remove("ALPN");
            command
        };
        Ok(Self {
            plain: Server::scripted(&mut script(), certificates),
            choosing: Server::scripted(script().env("ALPN", "http/1.1"), certificates),
            http2: http2::Server::start(http2::Kind::Nginx, true, certificates)?,
        })
    }

    fn port(&self, case: &Case) -> u16 {
        match case.chooses {
            _ if case.http2 => self.http2.port(),
            Some(_) => self.choosing.port(),
            None => self.plain.port(),
        }
    }
}

fn tls_attributes(call: &Value) -> BTreeMap<String, Value> {
    let all = call.as_object().unwrap();
    all.iter().filter(|(name, _)| name.starts_with("tls.")).map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[test]
fn facts_of_the_handshake_are_on_each_call_of_both_ends() {
    let name = "facts_of_the_handshake_are_on_each_call_of_both_ends";
    let Some(python) = python() else { return skip(name, "no python3") };
    if find("curl").is_none() {
        return skip(name, "no curl");
    }
    let started = Certificates::make().and_then(|c| Servers::start(python, &c).map(|servers| (c, servers)));
    let (certificates, servers) = match started {
        Ok(started) => started,
        Err(why) => return skip(name, &why),
    };
    let certificate = certificate(&certificates.certificate());
    let agent = Agent::start(&Options::default());
    for case in &CASES {
        case.call(servers.port(case));
    }
    let is_ours = |call: &&Value| call.path().starts_with("/id/");
    let calls = agent.wait_for(|calls| calls.iter().filter(is_ours).count() >= 2 * CASES.len(), PATIENCE);
    let shown: Value = serde_json::from_str(&agent.get("/api/v1/calls?limit=100")).unwrap();
    let shown = shown["calls"].as_array().unwrap_or_else(|| panic!("{shown:#}"));
    for case in &CASES {
        let path = format!("/id/{}", case.id);
        for kind in ["server", "client"] {
            for (place, calls) in [("the file", &calls), ("the API", shown)] {
                let found = calls.iter().find(|call| call.path() == path && call.text("span_kind") == kind);
                let call = found.unwrap_or_else(|| panic!("{path} by the {kind} is not in {place}"));
                assert_eq!(call.text("url.scheme"), "https", "{}", brief(call));
                assert_eq!(tls_attributes(call), case.facts(&certificate), "{} in {place}", brief(call));
            }
        }
    }
    agent.stop();
}

#[test]
fn facts_of_the_handshake_arrive_at_a_collector() {
    let name = "facts_of_the_handshake_arrive_at_a_collector";
    let Some(python) = python() else { return skip(name, "no python3") };
    if find("curl").is_none() {
        return skip(name, "no curl");
    }
    let Some(program) = otlp::rotel() else { return skip(name, "rotel is not installed: cargo xtask setup") };
    let started = Certificates::make().and_then(|c| Servers::start(python, &c).map(|servers| (c, servers)));
    let (certificates, servers) = match started {
        Ok(started) => started,
        Err(why) => return skip(name, &why),
    };
    let case = &CASES[0];
    let port = servers.port(case);
    let (collector, grpc, _) = otlp::collector(&program);
    let agent = Agent::start(&otlp::to_collector("grpc", grpc, port));
    case.call(port);
    let wanted: Vec<String> = case
        .facts(&certificate(&certificates.certificate()))
        .iter()
        .map(|(name, value)| match value {
            Value::Bool(truth) => format!("-> {name}: Bool({truth})"),
            text => format!("-> {name}: Str({})", text.as_str().unwrap()),
        })
        .collect();
    let printed = || [collector.stdout(), collector.stderr()].concat().join("\n");
    // Once by each end.
    let missing = || -> Vec<String> {
        let text = printed();
        wanted.iter().filter(|line| text.matches(line.as_str()).count() < 2).cloned().collect()
    };
    assert!(wait_until(|| missing().is_empty(), PATIENCE), "{:?} did not arrive: {}", missing(), printed());
    agent.stop();
}
