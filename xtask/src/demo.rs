//! `cargo xtask demo`: the agent watching real services on loopback, with its page and a real Jaeger page beside it.
//! Whatever it starts it stops, by process id.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::{
    artifacts, ebpf,
    setup::{self, Purpose},
    shell,
};

/// Where the agent leaves its token. It shows everybody's traffic, so the agent itself prints it to terminals only.
const TOKEN: &str = "/run/weir/token";

/// Where the agent's page is unless that port is taken.
const PAGE: &str = "127.0.0.1:9464";

/// The load, bounded in rate and number: a demo must not be a benchmark, and must end even when left alone.
const CALLS_PER_SECOND: u32 = 8;
const MOST_CALLS: u32 = CALLS_PER_SECOND * 3600;

const START_DEADLINE: Duration = Duration::from_mins(1);
/// The agent promises to end within 5 s of SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(7);

/// A process of the demo; stopped when dropped.
struct Service {
    name: &'static str,
    child: Child,
}

impl Service {
    /// Start it in a process group of its own, so that Ctrl-C reaches xtask alone and the order of stopping is ours.
    fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {name}: {}", shell::line(command)))?;
        Ok(Self { name, child })
    }

    /// Has it ended by itself?
    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn stop(&mut self) {
        if self.ended() {
            return;
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        if kill(pid, Signal::SIGTERM).is_err() {
            // A root process behind sudo: only root may signal it.
            drop(shell::as_root("kill").and_then(|mut kill| shell::run(kill.args(["-TERM", &pid.to_string()]))));
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        while !self.ended() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        if !self.ended() {
            println!("demo: {} did not stop in time; killed", self.name);
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Show it until Ctrl-C, or for so many seconds.
///
/// # Errors
/// Something could not be installed, built or started; or no call was seen.
pub(crate) fn run(seconds: Option<u64>) -> Result<()> {
    setup::ensure(Purpose::Demo)?;
    println!("demo: build (unoptimised, so that the first run is quick; measure with `cargo xtask bench`)");
    let (agent, jaeger) = build()?;
    let dir = shell::target_dir().join("demo");
    fs::create_dir_all(dir.join("www")).with_context(|| format!("cannot make {}", dir.display()))?;
    if !shell::is_root() {
        println!("demo: the agent runs as root");
        shell::run(&mut shell::as_root("true")?)?;
    }
    // From here on Ctrl-C is an event of ours; before, it ended xtask.
    let stop = stop_signals()?;
    show(&agent, &jaeger, &dir, &stop, seconds.map(Duration::from_secs))
}

fn show(agent: &Path, jaeger: &Path, dir: &Path, stop: &AtomicBool, lasts: Option<Duration>) -> Result<()> {
    let [shop, stock, web, web_tls] = free_ports()?;
    let fixtures = shell::root().join("tests/fixtures/demo");

    // Dropped in reverse order: the agent sees the last call of its clients and sends it before its receiver ends.
    let (_jaeger, otlp, jaeger_page) = start_jaeger(jaeger)?;
    let mut services = start_services(&fixtures, dir, shop, stock, web, web_tls)?;
    for port in [shop, web, web_tls] {
        wait_for(&mut services, port)?;
    }

    let page = page_address();
    let calls = dir.join("calls.jsonl");
    if calls.exists() {
        shell::run(shell::as_root("rm")?.arg("--").arg(&calls))?;
    }
    // Jaeger takes traces only. `env`, because sudo hands no environment on.
    let mut weir = shell::as_root("env")?;
    weir.args(["OTEL_METRICS_EXPORTER=none", "setpriv", "--pdeathsig", "TERM", "--"])
        .arg(agent)
        .args(["run", "--export", "console", "--export"])
        .arg(format!("jsonl:{}", calls.display()))
        .args(["--admin", &page, "--otlp-protocol", "grpc", "--otlp-endpoint", &format!("http://{otlp}")])
        .stderr(Stdio::piped());
    let mut weir = Service::start("weir", &mut weir)?;
    wait_until_ready(&mut weir)?;

    match fs::read_to_string(TOKEN) {
        Ok(token) => println!("demo: weir's page     http://{page}/#token={}", token.trim()),
        Err(_) => println!("demo: weir's page     http://{page}/ (it asks for the token, which root finds in {TOKEN})"),
    }
    println!("demo: Jaeger's page   http://{jaeger_page}/");
    println!("demo: shop            http://127.0.0.1:{web}/ -> nginx -> python -> node");
    println!("demo: shop over TLS   https://127.0.0.1:{web_tls}/");
    match lasts {
        Some(lasts) => println!("demo: the calls that weir sees, for {} s:", lasts.as_secs()),
        None => println!("demo: the calls that weir sees, until Ctrl-C:"),
    }
    let client_log = dir.join("client.log");
    let log = fs::File::create(&client_log).context("cannot make the client's log")?;
    let mut client = shell::bound("python3");
    client
        .arg(fixtures.join("client.py"))
        .env("OTEL_SERVICE_NAME", "customer")
        .args([web.to_string(), web_tls.to_string(), CALLS_PER_SECOND.to_string(), MOST_CALLS.to_string()])
        .stdout(log);
    let mut client = Service::start("client", &mut client)?;

    let deadline = lasts.map(|lasts| Instant::now() + lasts);
    while !over(stop, deadline) {
        if weir.ended() {
            bail!("weir ended by itself; its last words are above");
        }
    }
    println!("demo: stop");
    client.stop();
    // What was on its way is a call too.
    thread::sleep(Duration::from_millis(500));
    weir.stop();
    drop(services);
    report(&calls, &client_log, web_tls)
}

/// Wait a moment; is it time to stop?
fn over(stop: &AtomicBool, deadline: Option<Instant>) -> bool {
    thread::sleep(Duration::from_millis(100));
    stop.load(Ordering::Relaxed) || deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

fn build() -> Result<(PathBuf, PathBuf)> {
    let mut cargo = ebpf::cargo()?;
    cargo.args(["build", "--message-format=json-render-diagnostics", "--package", "agent", "--bin", "weir"]);
    cargo.args(["--package", "weir-tests", "--bin", "weir-demo-jaeger"]);
    let built = artifacts::build(&mut cargo)?;
    let find = |name: &str| {
        let found = built.iter().find(|artifact| artifact.target == name);
        found.map(|artifact| artifact.executable.clone()).with_context(|| format!("cargo built no `{name}`"))
    };
    Ok((find("weir")?, find("weir-demo-jaeger")?))
}

/// Set by Ctrl-C and SIGTERM. Handlers, unlike a blocked signal, are not inherited by what is started.
fn stop_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot catch Ctrl-C")?;
    }
    Ok(stop)
}

fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All held until all are known, so that no two are the same.
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("no free port on loopback")?;
        *port = listener.local_addr().context("no free port on loopback")?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

fn page_address() -> String {
    if TcpListener::bind(PAGE).is_ok() {
        return PAGE.to_owned();
    }
    free_ports::<1>().map_or_else(|_| PAGE.to_owned(), |[port]| format!("127.0.0.1:{port}"))
}

fn start_jaeger(program: &Path) -> Result<(Service, SocketAddr, SocketAddr)> {
    let mut command = shell::bound(program);
    command.args(["127.0.0.1:0", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut service = Service::start("Jaeger's page", &mut command)?;
    let stdout = service.child.stdout.take().context("no pipe to Jaeger's page")?;
    let line = shell::lines(stdout).recv_timeout(START_DEADLINE).context("Jaeger's page did not start")?;
    let mut words = line.split(' ').skip(1).map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(otlp)), Some(Ok(page))) => Ok((service, otlp, page)),
        _ => bail!("Jaeger's page said `{line}`"),
    }
}

fn start_services(fixtures: &Path, dir: &Path, shop: u16, stock: u16, web: u16, web_tls: u16) -> Result<Vec<Service>> {
    let mut services = Vec::new();
    let mut python = shell::bound("python3");
    // Two Python programs: their names tell them apart. nginx goes by its executable.
    python.arg(fixtures.join("shop.py")).arg(shop.to_string()).env("OTEL_SERVICE_NAME", "shop");
    if let Some(node) = shell::find("node") {
        let mut node = shell::bound(node);
        node.arg(fixtures.join("stock.js")).arg(stock.to_string()).env("OTEL_SERVICE_NAME", "stock");
        services.push(Service::start("stock (node)", &mut node)?);
        wait_for(&mut services, stock)?;
        python.arg(stock.to_string());
    }
    services.push(Service::start("shop (python)", &mut python)?);

    certificate(dir)?;
    fs::write(
        dir.join("www/index.html"),
        "<!doctype html><title>Shop</title><link rel=stylesheet href=style.css>Shop\n",
    )
    .context("cannot write the shop's page")?;
    fs::write(dir.join("www/style.css"), "body { font: 1rem sans-serif }\n").context("cannot write the shop's page")?;
    let config = dir.join("nginx.conf");
    fs::write(&config, nginx_config(dir, shop, web, web_tls)).context("cannot write nginx.conf")?;
    let mut nginx = shell::bound(shell::find("nginx").context("no nginx")?);
    // `-e`: before it has read its configuration it would write to a log of the system's.
    nginx.args(["-e", "stderr", "-c"]).arg(config);
    services.push(Service::start("nginx", &mut nginx)?);
    Ok(services)
}

/// An nginx that touches nothing outside its directory.
fn nginx_config(dir: &Path, shop: u16, web: u16, web_tls: u16) -> String {
    let dir = dir.display();
    // Its workers may not be able to read a checkout below /root; as another user they keep that user.
    let user = if shell::is_root() { "user root;\n" } else { "" };
    format!(
        "{user}daemon off;\nworker_processes 1;\npid {dir}/nginx.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  access_log off;\n  types {{ text/html html; text/css css; }}\n  root {dir}/www;\n  sendfile on;\n\
         client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  fastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n\
         upstream shop {{ server 127.0.0.1:{shop}; keepalive 4; }}\n\
         server {{\n    listen 127.0.0.1:{web};\n    listen 127.0.0.1:{web_tls} ssl;\n\
         ssl_certificate {dir}/certificate.pem;\n    ssl_certificate_key {dir}/key.pem;\n\
         location / {{ }}\n    location /api/ {{ proxy_pass http://shop; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }}\n  }}\n}}\n"
    )
}

/// A certificate for this run's port, signed by itself.
fn certificate(dir: &Path) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-keyout"])
        .arg(dir.join("key.pem"))
        .arg("-out")
        .arg(dir.join("certificate.pem"))
        .stderr(Stdio::null());
    shell::run(&mut openssl)
}

/// Wait until somebody listens.
fn wait_for(services: &mut [Service], port: u16) -> Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(ended) = services.iter_mut().find_map(|service| service.ended().then_some(service.name)) {
            bail!("{ended} ended at its start; its last words are above");
        }
        ensure!(Instant::now() < deadline, "nobody listens on port {port} after {} s", START_DEADLINE.as_secs());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Pass on what the agent says on standard error; return when it has said that it is ready.
fn wait_until_ready(weir: &mut Service) -> Result<()> {
    let stderr = weir.child.stderr.take().context("no pipe to weir")?;
    let lines = shell::lines(stderr);
    let (ready, is_ready) = mpsc::sync_channel(1);
    thread::spawn(move || {
        while let Ok(line) = lines.recv() {
            eprintln!("weir: {line}");
            if line.trim() == "ready" {
                // Nobody waits for a second one.
                ready.try_send(()).ok();
            }
        }
    });
    is_ready.recv_timeout(START_DEADLINE).context("weir did not become ready; its last words are above")
}

/// Say how many calls were made and how many were seen.
fn report(calls: &Path, client_log: &Path, web_tls: u16) -> Result<()> {
    let made = fs::read_to_string(client_log).unwrap_or_default();
    let mut numbers = made.split_whitespace().skip(1).filter_map(|number| number.parse::<usize>().ok());
    let (plain, tls) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let seen = shell::output(shell::as_root("cat")?.arg(calls)).unwrap_or_default();
    let encrypted = seen.lines().filter(|call| call.contains("\"url.scheme\":\"https\"")).count();
    let seen = seen.lines().count();
    println!("demo: the client made {plain} calls in clear and {tls} over TLS (port {web_tls})");
    println!("demo: weir saw {seen} calls, both ends of every hop; as JSON in {}", calls.display());
    println!("demo: of these {encrypted} over TLS, read in the libraries of the client and of nginx: no key, no proxy");
    ensure!(seen > 0, "weir saw no call at all: `weir doctor` says what this kernel allows");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_stopped_when_it_goes_out_of_scope() {
        let service = Service::start("sleep", Command::new("sleep").arg("60")).unwrap();
        let process = PathBuf::from(format!("/proc/{}", service.child.id()));
        assert!(process.exists());
        drop(service);
        assert!(!process.exists());
    }

    #[test]
    fn ports_are_different_and_free() {
        let [one, two] = free_ports().unwrap();
        assert_ne!(one, two);
        TcpListener::bind(("127.0.0.1", one)).unwrap();
    }

    #[test]
    fn the_demo_ends_on_a_signal_or_in_time_and_not_before() {
        let stop = AtomicBool::new(false);
        assert!(!over(&stop, None));
        assert!(!over(&stop, Some(Instant::now() + Duration::from_mins(1))));
        assert!(over(&stop, Some(Instant::now())));
        stop.store(true, Ordering::Relaxed);
        assert!(over(&stop, None));
    }

    #[test]
    fn nginx_writes_nowhere_but_into_its_directory() {
        let config = nginx_config(Path::new("/tmp/demo"), 1, 2, 3);
        for path in config.split_whitespace().filter(|word| word.starts_with('/') && word.len() > 2) {
            assert!(path.starts_with("/tmp/demo/") || path == "/api/", "{path}");
        }
        assert_eq!(config.matches("127.0.0.1:").count(), 3);
    }
}
