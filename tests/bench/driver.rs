//! The driver: another process of this program, so that it is not taken for the agent's own. It answers one line of
//! standard output to each line of standard input, and ends with it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _, stdin, stdout};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::spread::Spread;

/// Chunks of one measurement; the tenth percentile of their cost is the result.
const CHUNKS: usize = 60;
const EXCHANGES_PER_CHUNK: usize = 300;

/// What two ends say to each other, over and over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    pub(crate) name: &'static str,
    pub(crate) is_http: bool,
    pub(crate) request: usize,
    pub(crate) response: usize,
}

/// A driver process.
pub(crate) struct Driver {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a load on a server measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Driver {
    /// Start one on a CPU.
    pub(crate) fn start(cpu: usize) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        let mut child = Command::new(program)
            .args(["drive", &cpu.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the driver")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the driver has no pipes");
        };
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    /// Nanoseconds of CPU for one exchange, on a new connection.
    pub(crate) fn exchange(&mut self, exchange: Exchange) -> Result<f64> {
        let Exchange { is_http, request, response, .. } = exchange;
        let numbers = self.ask(&format!("exchange {is_http} {request} {response}"))?;
        numbers.first().copied().context("the driver said nothing")
    }

    /// Nanoseconds of the cheapest system call.
    pub(crate) fn system_call(&mut self) -> Result<f64> {
        self.ask("call")?.first().copied().context("the driver said nothing")
    }

    /// Requests to a server on loopback, over a number of connections at once.
    pub(crate) fn load(&mut self, port: u16, path: &str, connections: usize, requests: usize) -> Result<Load> {
        match self.ask(&format!("load {port} {path} {connections} {requests}"))?.as_slice() {
            &[seconds, p50_us, p99_us] => Ok(Load { seconds, p50_us, p99_us }),
            other => bail!("the driver said {other:?}"),
        }
    }

    fn ask(&mut self, line: &str) -> Result<Vec<f64>> {
        writeln!(self.input, "{line}").context("the driver is gone")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "the driver ended at: {line}");
        answer.split_whitespace().map(|number| number.parse().context("not a number")).collect()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Ended or not is the same here.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Keep a process (0: this thread) on one CPU.
pub(crate) fn pin(pid: i32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(pid), &set).with_context(|| format!("cannot pin to CPU {cpu}"))
}

/// The driver process itself.
pub(crate) fn serve(cpu: &str) -> Result<()> {
    pin(0, cpu.parse()?)?;
    for line in stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match *words.as_slice() {
            ["exchange", is_http, request, response] => {
                format!("{:.1}", measure(is_http == "true", request.parse()?, response.parse()?)?)
            }
            ["call"] => format!("{:.1}", system_call()?),
            ["load", port, path, connections, requests] => {
                let load = load(port.parse()?, path, connections.parse()?, requests.parse()?)?;
                format!("{} {} {}", load.seconds, load.p50_us, load.p99_us)
            }
            _ => bail!("unknown: {line}"),
        };
        writeln!(stdout(), "{answer}")?;
    }
    Ok(())
}

/// CPU time of this thread, nanoseconds.
fn cpu_ns() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

fn system_call() -> Result<f64> {
    let mut costs = Spread::default();
    for _ in 0..CHUNKS {
        let start = cpu_ns()?;
        for _ in 0..EXCHANGES_PER_CHUNK {
            std::hint::black_box(nix::unistd::getppid());
        }
        costs.push((cpu_ns()? - start) / EXCHANGES_PER_CHUNK as f64);
    }
    Ok(costs.quantile(0.1))
}

fn measure(is_http: bool, request: usize, response: usize) -> Result<f64> {
    let (request, response) = (message(is_http, true, request), message(is_http, false, response));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut chunk = |count: usize| -> Result<()> {
        for _ in 0..count {
            pass(&mut client, &mut server, &request, &mut buffer)?;
            pass(&mut server, &mut client, &response, &mut buffer)?;
        }
        Ok(())
    };
    // Congestion windows open, caches fill, the kernel programs recognise the connection.
    chunk(EXCHANGES_PER_CHUNK)?;
    let mut costs = Spread::default();
    for _ in 0..CHUNKS {
        let start = cpu_ns()?;
        chunk(EXCHANGES_PER_CHUNK)?;
        costs.push((cpu_ns()? - start) / EXCHANGES_PER_CHUNK as f64);
    }
    Ok(costs.quantile(0.1))
}

/// One send and (on loopback, but for a rare split) one receive.
fn pass(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8], buffer: &mut [u8]) -> Result<()> {
    from.write_all(bytes)?;
    let mut left = bytes.len();
    while left > 0 {
        let count = to.read(buffer)?;
        ensure!(count > 0, "the other end closed");
        left -= count;
    }
    Ok(())
}

/// A message of exactly this length.
fn message(is_http: bool, is_request: bool, len: usize) -> Vec<u8> {
    if !is_http {
        return vec![1; len];
    }
    let (start, end) = if is_request {
        (
            "GET /api/items/4711?page=2 HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nX-Fill: ".to_owned(),
            "\r\n\r\n",
        )
    } else {
        // Two digits more or fewer would shift the length: fixed width by leading zeros.
        let head = |body: usize| {
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {body:06}\r\n\r\n")
        };
        (head(len.saturating_sub(head(0).len())), "")
    };
    let fill = len.saturating_sub(start.len() + end.len());
    [start.as_bytes(), &vec![b'x'; fill], end.as_bytes()].concat()
}

/// A closed loop: each connection asks again when it was answered.
fn load(port: u16, path: &str, connections: usize, requests: usize) -> Result<Load> {
    struct Connection {
        stream: TcpStream,
        asked: Instant,
        got: Vec<u8>,
    }
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: */*\r\n\r\n");
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let mut all = Vec::new();
    for index in 0..connections {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        all.push(Connection { stream, asked: Instant::now(), got: Vec::new() });
    }
    let start = Instant::now();
    let (mut asked, mut answered) = (0, 0);
    let mut latencies = Vec::with_capacity(requests);
    for connection in &mut all {
        connection.asked = Instant::now();
        connection.stream.write_all(request.as_bytes())?;
        asked += 1;
    }
    let mut buffer = vec![0; 64 * 1024];
    let mut events = vec![EpollEvent::empty(); connections];
    while answered < asked {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in events.iter().take(ready) {
            let Some(connection) = all.get_mut(event.data() as usize) else { continue };
            let count = connection.stream.read(&mut buffer)?;
            ensure!(count > 0, "the server closed a connection");
            connection.got.extend(buffer.iter().take(count));
            if !is_whole(&connection.got)? {
                continue;
            }
            connection.got.clear();
            latencies.push(connection.asked.elapsed().as_secs_f64() * 1e6);
            answered += 1;
            if asked < requests {
                connection.asked = Instant::now();
                connection.stream.write_all(request.as_bytes())?;
                asked += 1;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let latencies: Spread = latencies.into_iter().collect();
    Ok(Load { seconds, p50_us: latencies.median(), p99_us: latencies.quantile(0.99) })
}

/// Whether a response with a Content-Length is complete; it must be a success.
fn is_whole(got: &[u8]) -> Result<bool> {
    let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
    let head = String::from_utf8_lossy(got.get(..end).unwrap_or_default()).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "the server answered: {head}");
    let len = head.lines().find_map(|line| line.strip_prefix("content-length:")).context("no Content-Length")?;
    Ok(got.len() >= end + 4 + len.trim().parse::<usize>()?)
}
