//! The command line as a user meets it: help, diagnosis, errors, recordings, and who may ask a running agent.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use weir_tests::harness::agent::{Agent, Call as _, Options, binary, command, read_calls};
use weir_tests::harness::client::{Http, Response};
use weir_tests::harness::guard::Process;
use weir_tests::harness::{PATIENCE, server, wait_until};

fn serve() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    server::tcp(listener, server::echo());
    port
}

fn weir(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `weir` as a user without privileges. The program is copied to where that user can reach it.
fn as_nobody(args: &[&str]) -> Output {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("weir");
    fs::copy(binary(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Command::new(&program).args(args).current_dir("/").uid(65534).gid(65534).output().unwrap()
}

#[test]
fn help_names_every_command_and_flag() {
    let general = weir(&["--help"]);
    assert!(general.status.success());
    for (name, flags) in [
        (
            "run",
            &[
                "--config",
                "--mode",
                "--otlp-endpoint",
                "--otlp-protocol",
                "--export",
                "--admin",
                "--target",
                "--exclude",
                "--duration",
            ][..],
        ),
        ("doctor", &["--json"]),
        ("check", &["<FILE>"]),
        ("tail", &["--service", "--status", "--role", "--json", "--limit"]),
        ("record", &["<PATH>", "--duration", "--max-bytes"]),
        ("replay", &["<PATH>", "--export"]),
    ] {
        assert!(out(&general).contains(&format!("\n  {name} ")), "{name} is not in {}", out(&general));
        let help = weir(&[name, "--help"]);
        assert!(help.status.success(), "{name}");
        for flag in flags {
            assert!(out(&help).contains(flag), "{name} {flag}: {}", out(&help));
        }
    }
    assert!(out(&weir(&["--version"])).starts_with("weir "));
    for wrong in [&["nonsense"][..], &["run", "--nonsense"], &["run", "--duration", "soon"], &["check"]] {
        assert_eq!(weir(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn doctor_says_what_this_machine_allows() {
    let output = weir(&["doctor", "--json"]);
    let diagnosis: Value = serde_json::from_slice(&output.stdout).unwrap();
    let code = match diagnosis.text("verdict") {
        "ok" => 0,
        "degraded" => 1,
        other => panic!("{other}: {diagnosis:#}"),
    };
    assert_eq!(output.status.code(), Some(code));
    let programs = diagnosis["programs"].as_array().unwrap();
    assert!(!programs.is_empty());
    assert!(code == 1 || programs.iter().all(|program| program["attached"] == true), "{programs:#?}");
    assert!(diagnosis["tls_refused"].is_null(), "{}", diagnosis["tls_refused"]);
    assert!(["sock_tracepoint", "sys_exit"].contains(&diagnosis.text("backend")));
    assert!(out(&weir(&["doctor"])).contains("verdict: "));
}

#[test]
fn without_privileges_it_says_what_is_missing_and_how_to_get_it() {
    let doctor = as_nobody(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(2), "{}", out(&doctor));
    let run = as_nobody(&["run", "--admin", "off", "--duration", "1s"]);
    assert_eq!(run.status.code(), Some(1), "{}", err(&run));
    for text in [out(&doctor), err(&run)] {
        assert!(text.contains("CAP_BPF is missing") && text.contains("setcap cap_bpf"), "{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn check_tells_all_errors_at_once_with_their_places() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.yaml");
    let name = file.to_str().unwrap();
    fs::write(&file, "mode: watch\nmemoryLimit: 1\nbogus: 3\ncapture:\n  budget: 1GiB\n").unwrap();
    for args in [&["check", name][..], &["run", "--config", name]] {
        let output = weir(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        let places: Vec<_> = err(&output).lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        let wanted: Vec<_> = ["1:7", "2:14", "3:1", "5:11"].iter().map(|place| format!("{name}:{place}:")).collect();
        assert_eq!(places, wanted, "{}", err(&output));
    }
    fs::write(&file, "memoryLimit: 64MiB\n").unwrap();
    assert_eq!(weir(&["check", name]).status.code(), Some(0));
    fs::write(&file, "a: [\n").unwrap();
    let output = weir(&["check", name]);
    assert_eq!(output.status.code(), Some(64));
    assert!(err(&output).starts_with(&format!("{name}:")), "{}", err(&output));
    assert_eq!(weir(&["check", "/nonexistent/weir.yaml"]).status.code(), Some(64));
}

/// What a live call and a replayed one have in common. Agent and recorder have kernel programs of their own, which take
/// the time one after the other, and seeds of their own for trace ids.
fn facts(calls: &[Value], port: u16) -> Vec<String> {
    let keys = [
        "span_kind",
        "http.request.method",
        "url.path",
        "url.query",
        "http.response.status_code",
        "http.request.body.size",
        "http.response.body.size",
        "client.port",
        "process.pid",
        "weir.incomplete",
    ];
    let ours = calls.iter().filter(|call| call.number("server.port") == Some(u64::from(port)));
    let mut facts: Vec<_> =
        ours.map(|call| keys.map(|key| call.get(key).map_or_else(String::new, Value::to_string)).join(" ")).collect();
    facts.sort();
    facts
}

#[test]
fn a_recording_replays_the_calls_that_an_agent_saw_live() {
    let port = serve();
    let dir = tempfile::tempdir().unwrap();
    let (recording, replayed) = (dir.path().join("kernel.rec"), dir.path().join("replayed.jsonl"));
    let agent = Agent::start(&Options::config(&format!("targets: [\"port:{port}\"]\n")));
    let mut recorder = Process::spawn(&mut command(&["record", recording.to_str().unwrap()]));
    recorder.wait_for_stderr("ready", PATIENCE);
    assert_eq!(fs::metadata(&recording).unwrap().permissions().mode() & 0o777, 0o600, "others can read the recording");
    let mut http = Http::tcp(("127.0.0.1", port));
    for index in 0..50 {
        http.request("POST", &format!("/orders/{index}?page={index}"), &[], b"some body");
    }
    let of_port = |calls: &[Value]| facts(calls, port).len() >= 100;
    let live = agent.wait_for(of_port, PATIENCE);
    agent.stop();
    recorder.signal(Signal::SIGTERM);
    let ended = recorder.wait(PATIENCE).expect("the recorder ends");
    assert!(ended.success(), "{:#?}", recorder.stderr());

    // No privileges are needed to replay; the file's owner is root, so root does it.
    let export = format!("jsonl:{}", replayed.display());
    let replay = weir(&["replay", recording.to_str().unwrap(), "--export", &export]);
    assert!(replay.status.success(), "{}", err(&replay));
    let live = facts(&live, port);
    assert_eq!(live.len(), 100);
    assert_eq!(live, facts(&read_calls(&replayed), port));

    let refused = weir(&["record", recording.to_str().unwrap(), "--duration", "1s"]);
    assert_eq!(refused.status.code(), Some(1), "an existing recording was overwritten");
    fs::write(&recording, b"not a recording").unwrap();
    let replay = weir(&["replay", recording.to_str().unwrap()]);
    assert_eq!(replay.status.code(), Some(1));
    assert!(!err(&replay).contains("panicked"), "{}", err(&replay));
}

#[test]
fn only_the_token_opens_the_admin_address() {
    let agent = Agent::start(&Options::default());
    let port = agent.admin_port();
    let token = fs::read_to_string(agent.dir().join("token")).unwrap();
    let token = token.trim();
    let mode = fs::metadata(agent.dir().join("token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others can read the token");
    let ask = |path: &str, headers: &[(&str, &str)]| -> Response {
        Http::tcp(("127.0.0.1", port)).request("GET", path, headers, b"")
    };
    let right = format!("Bearer {token}");
    let shorter = format!("Bearer {}", &token[..token.len() - 1]);
    for path in ["/metrics", "/api/v1/status", "/api/v1/calls", "/api/v1/endpoints"] {
        for headers in [
            &[][..],
            &[("Authorization", "Bearer wrong")],
            &[("Authorization", &shorter)],
            &[("Authorization", "Bearer ")],
            &[("Cookie", "weir=1")],
        ] {
            let status = ask(path, headers).status;
            assert!([401, 403].contains(&status), "{path} {headers:?}: {status}");
        }
        assert_eq!(ask(path, &[("Authorization", &right)]).status, 200, "{path}");
        let foreign = ask(path, &[("Authorization", &right), ("Sec-Fetch-Site", "cross-site")]).status;
        assert_eq!(foreign, 403, "{path}: asked by a foreign page");
    }
    assert_eq!(ask("/livez", &[]).status, 200);
    let mut rebound = Http::tcp(("127.0.0.1", port));
    rebound.send(format!("GET /metrics HTTP/1.1\r\nHost: evil.example\r\nAuthorization: {right}\r\n\r\n").as_bytes());
    assert!([400, 403, 421].contains(&rebound.read_response(false).status), "DNS rebinding");
    let stopped = agent.stop();
    // It is shown once, in the address of the page, for whoever started the agent.
    let shown = stopped.stderr.iter().filter(|line| line.contains(token)).count();
    assert!(shown <= 1, "{:#?}", stopped.stderr);
}

#[test]
fn secrets_of_the_traffic_never_come_out() {
    const SECRETS: [&str; 6] =
        ["s3cr3tBearer0xyz", "hunter2hunter2", "c00kieValue99", "k3yOfTheApi77", "b0dySecret55", "setC00kie88"];
    let [bearer, password, cookie, key, body, set_cookie] = SECRETS;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    server::tcp(
        listener,
        std::sync::Arc::new(move |_, stream| {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: sid={set_cookie}\r\nX-Id: 1\r\n\r\n");
            stream.write_all(head.as_bytes())
        }),
    );
    // Even when the fields that carry them are asked for.
    let extra = format!(
        "targets: [\"port:{port}\"]\nexport:\n  requestHeaders: [authorization, cookie, x-api-key, proxy-authorization]\n  \
         responseHeaders: [set-cookie]\n"
    );
    let agent = Agent::start(&Options { args: vec!["--export".into(), "console".into()], ..Options::config(&extra) });
    let mut http = Http::tcp(("127.0.0.1", port));
    let (authorization, cookies) = (format!("Bearer {bearer}"), format!("sid={cookie}"));
    let fields = [
        ("Authorization", authorization.as_str()),
        ("Proxy-Authorization", &authorization),
        ("Cookie", &cookies),
        ("X-Api-Key", key),
        ("User-Agent", "plain"),
    ];
    let path = format!("/login?user=ann&password={password}&api_key={key}");
    http.request("POST", &path, &fields, format!("password={body}").as_bytes());
    http.request("GET", "/after", &[], b"");
    let ours = |calls: &[Value]| {
        calls
            .iter()
            .filter(|call| call.number("server.port") == Some(u64::from(port)) && call.path() == "/after")
            .count()
            >= 2
    };
    let calls = agent.wait_for(ours, PATIENCE);
    assert!(calls.iter().any(|call| call.path() == "/login" && call.text("url.query").contains("user=")), "{calls:#?}");
    assert!(wait_until(|| agent.stdout().iter().any(|line| line.contains("/after")), Duration::from_secs(5)));
    let mut seen = vec![("metrics", agent.metrics())];
    for path in ["/api/v1/status", "/api/v1/calls", "/api/v1/endpoints"] {
        seen.push((path, agent.get(path)));
    }
    let file = agent.dir().join("calls.jsonl");
    seen.push(("jsonl", fs::read_to_string(file).unwrap()));
    let stopped = agent.stop();
    seen.push(("console", stopped.stdout.join("\n")));
    seen.push(("stderr", stopped.stderr.join("\n")));
    for (place, text) in &seen {
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} in {place}: {text}");
        }
    }
    assert!(seen.iter().any(|(place, text)| *place == "/api/v1/calls" && text.contains("/login")));
}
