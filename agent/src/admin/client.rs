//! A client of a running agent: one request, or the live stream of calls as lines for a terminal.
//!
//! What it prints was sent by strangers: no control character reaches the terminal, and every answer has a bound.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST};
use hyper::http::uri::Authority;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::auth::Token;

/// Largest answer to one request; the server's are far below.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Longest line of a stream.
const MAX_LINE: usize = 1024 * 1024;
/// For the connection and for the head of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the agent answers.
#[derive(Clone, Debug)]
pub enum Target {
    /// Its control socket.
    Socket(PathBuf),
    Tcp {
        authority: Authority,
        token: Option<Token>,
    },
}

/// Which calls to show; the empty one shows all.
#[derive(Clone, Debug, Default)]
pub struct TailFilter {
    pub service: Option<String>,
    pub method: Option<String>,
    pub path_prefix: Option<String>,
    /// A code (`404`), a class (`5xx`) or `error`.
    pub status: Option<String>,
    /// `server` or `client`.
    pub role: Option<String>,
    pub trace_id: Option<String>,
    pub pid: Option<u32>,
}

/// How to show them.
#[derive(Clone, Copy, Debug, Default)]
pub struct TailOptions {
    /// ANSI colours.
    pub colour: bool,
    /// The JSON of the calls, as `--export jsonl` writes it.
    pub json: bool,
    /// End after this many calls.
    pub limit: Option<u64>,
}

/// Splits the bytes of a stream into events (WHATWG HTML, section 9.2.6), as far as our server uses them.
#[derive(Debug, Default)]
struct Events {
    line: Vec<u8>,
    event: String,
    data: String,
}

impl Target {
    /// `http://HOST:PORT`, and the token in `token_file`.
    pub fn http(url: &str, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not an address like http://127.0.0.1:9464"))?;
        if uri.scheme_str() != Some("http") {
            bail!("{url} is not an address like http://127.0.0.1:9464 (the admin server speaks no TLS)");
        }
        let Some(authority) = uri.authority().filter(|authority| authority.port().is_some()) else {
            bail!("{url} names no port: the agent's is 9464 by default");
        };
        let token = token_file.map(Token::read).transpose()?;
        Ok(Self::Tcp { authority: authority.clone(), token })
    }
}

impl Default for Target {
    fn default() -> Self {
        Self::Socket(super::DEFAULT_SOCKET.into())
    }
}

/// The body of the answer to a GET of `path` (query included); a refusal is an error with the server's reason.
pub async fn get(target: &Target, path: &str) -> anyhow::Result<Bytes> {
    let response = request(target, path, "application/json").await?;
    collect(response.into_body()).await
}

/// Write one line per call until `limit`, the end of the agent, or an error of `out`.
pub async fn tail(
    target: &Target,
    filter: &TailFilter,
    options: TailOptions,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let path = format!("/api/v1/calls/stream{}", filter.query());
    let mut body = request(target, &path, "text/event-stream").await?.into_body();
    let mut events = Events::default();
    let mut shown = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the agent ended the stream")?;
        let Ok(bytes) = frame.into_data() else { continue };
        let mut lines = String::new();
        for byte in bytes {
            let Some((event, data)) = events.push(byte)? else { continue };
            match event.as_str() {
                "call" if options.json => writeln!(lines, "{data}")?,
                "call" => write_call(&mut lines, &data, options.colour)?,
                "lost" => write_lost(&mut lines, &data, options)?,
                _ => continue,
            }
            shown += u64::from(event == "call");
            if options.limit.is_some_and(|limit| shown >= limit) {
                out.write_all(lines.as_bytes())?;
                return Ok(out.flush()?);
            }
        }
        out.write_all(lines.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}

impl TailFilter {
    fn query(&self) -> String {
        let pid = self.pid.map(|pid| pid.to_string());
        let fields = [
            ("service", &self.service),
            ("method", &self.method),
            ("path", &self.path_prefix),
            ("status", &self.status),
            ("role", &self.role),
            ("trace_id", &self.trace_id),
            ("pid", &pid),
        ];
        let mut query = String::new();
        for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            query.push(if query.is_empty() { '?' } else { '&' });
            query.push_str(name);
            query.push('=');
            for byte in value.bytes() {
                match byte {
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                        query.push(byte.into());
                    }
                    _ => write!(query, "%{byte:02X}").unwrap_or_default(),
                }
            }
        }
        query
    }
}

impl Events {
    /// The next byte; `(event, data)` when it ends one.
    fn push(&mut self, byte: u8) -> anyhow::Result<Option<(String, String)>> {
        if byte != b'\n' {
            if self.line.len() + self.data.len() >= MAX_LINE {
                bail!("the agent sent an event longer than {MAX_LINE} bytes");
            }
            self.line.push(byte);
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        if line.is_empty() {
            let ended = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
            return Ok((!ended.1.is_empty()).then_some(ended));
        }
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut self.event);
        } else if let Some(data) = line.strip_prefix("data: ") {
            self.data.push_str(data);
        }
        Ok(None)
    }
}

async fn request(target: &Target, path: &str, accept: &str) -> anyhow::Result<Response<Incoming>> {
    let mut request = Request::get(path).header(ACCEPT, accept);
    let answer = async {
        match target {
            Target::Socket(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(|error| explain_socket(socket, error))?;
                request = request.header(HOST, "localhost");
                send(stream, request.body(Empty::new())?).await
            }
            Target::Tcp { authority, token } => {
                let stream = TcpStream::connect(authority.as_str())
                    .await
                    .with_context(|| format!("no agent answers at http://{authority}: is `weir run` running?"))?;
                request = request.header(HOST, authority.as_str());
                if let Some(token) = token {
                    request = request.header(AUTHORIZATION, format!("Bearer {}", token.reveal()));
                }
                send(stream, request.body(Empty::new())?).await
            }
        }
    };
    let response = tokio::time::timeout(TIMEOUT, answer).await.context("the agent did not answer in 10 s")??;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = collect(response.into_body()).await.unwrap_or_default();
    let reason = serde_json::from_slice::<Value>(&body).ok();
    let reason = reason.as_ref().and_then(|reason| reason.get("error")?.as_str()).unwrap_or("no reason given");
    bail!("the agent refused: {} ({status})", printable(reason))
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> anyhow::Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("talk to the agent")?;
    // Ends with the response's body; its error shows there.
    tokio::spawn(connection);
    sender.send_request(request).await.context("talk to the agent")
}

async fn collect(body: Incoming) -> anyhow::Result<Bytes> {
    let limited = http_body_util::Limited::new(body, MAX_ANSWER);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => bail!("read the agent's answer: {error}"),
    }
}

fn explain_socket(socket: &Path, error: std::io::Error) -> anyhow::Error {
    let shown = socket.display();
    let text = match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            format!("only root may use the control socket {shown}: use sudo, or --admin URL --token-file FILE")
        }
        _ => format!("no agent answers at {shown}: is `weir run` running on this machine?"),
    };
    anyhow::Error::new(error).context(text)
}

/// One line: time, side, status, method, latency, service, path, peer, trace.
fn write_call(out: &mut String, json: &str, colour: bool) -> std::fmt::Result {
    let Ok(call) = serde_json::from_str::<Value>(json) else {
        return writeln!(out, "{}", printable(json));
    };
    let text = |key: &str| call.get(key).and_then(Value::as_str).unwrap_or_default();
    let number = |key: &str| call.get(key).and_then(Value::as_u64);
    let server = text("span_kind") == "server";

    let time = text("timestamp").get(11..23).unwrap_or("--:--:--.---");
    let service = [text("service.name"), text("process.executable.name")].into_iter().find(|name| !name.is_empty());
    let method = if text("http.request.method") == "_OTHER" && !text("http.request.method_original").is_empty() {
        text("http.request.method_original")
    } else {
        text("http.request.method")
    };
    let status = number("http.response.status_code").map_or_else(|| "---".to_owned(), |status| status.to_string());
    let failed = !text("error.type").is_empty();
    let duration = number("duration_ns").map_or_else(String::new, latency);
    let mut path = printable(if text("url.path").is_empty() { "-" } else { text("url.path") });
    if !text("url.query").is_empty() {
        write!(path, "?{}", printable(text("url.query")))?;
    }
    let (host, port) = match server {
        _ if !text("network.peer.address").is_empty() => ("network.peer.address", "network.peer.port"),
        true => ("client.address", "client.port"),
        false => ("server.address", "server.port"),
    };
    let mut peer = printable(text(host));
    if let Some(port) = number(port) {
        if peer.contains(':') && !peer.starts_with("unix:") {
            peer = format!("[{peer}]");
        }
        write!(peer, ":{port}")?;
    }

    let paint = |code: &str, text: String| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text };
    let status_colour = match status.as_bytes().first() {
        Some(b'2') => "32",
        Some(b'3') => "36",
        Some(b'4') => "33",
        _ => "31",
    };
    write!(
        out,
        "{} {} {} {} {} {} {}",
        paint("2", printable(time)),
        if server { paint("34", "server".into()) } else { paint("35", "client".into()) },
        paint(status_colour, format!("{status:>3}")),
        paint("1", pad(method, 7)),
        paint("2", format!("{duration:>9}")),
        pad(service.unwrap_or("-"), 18),
        path,
    )?;
    let mut tail = String::new();
    if !peer.is_empty() {
        write!(tail, " {} {peer}", if server { "<-" } else { "->" })?;
    }
    if let Some(trace) = text("trace_id").get(..8) {
        write!(tail, " trace={}", printable(trace))?;
    }
    write!(out, "{}", paint("2", tail))?;
    for (name, value) in [("incomplete", text("weir.incomplete")), ("error", text("error.type"))] {
        if !value.is_empty() && (name != "error" || failed && value != status) {
            write!(out, " {}", paint("31", format!("{name}={}", printable(value))))?;
        }
    }
    out.push('\n');
    Ok(())
}

fn write_lost(out: &mut String, json: &str, options: TailOptions) -> std::fmt::Result {
    // The lines of `--json` are calls and nothing else.
    if options.json {
        return Ok(());
    }
    let dropped = serde_json::from_str::<Value>(json).ok().and_then(|lost| lost.get("dropped")?.as_u64()).unwrap_or(0);
    let line = format!("... {dropped} calls not shown: they came faster than they could be printed");
    if options.colour { writeln!(out, "\x1b[33m{line}\x1b[0m") } else { writeln!(out, "{line}") }
}

/// To width `width`, cut with an ellipsis when longer.
fn pad(text: &str, width: usize) -> String {
    let text = printable(text);
    if text.chars().count() > width {
        let mut cut: String = text.chars().take(width - 1).collect();
        cut.push('…');
        return cut;
    }
    format!("{text:<width$}")
}

fn latency(ns: u64) -> String {
    let ns = ns as f64;
    match ns {
        ..1e6 => format!("{:.0} µs", ns / 1e3),
        ..1e7 => format!("{:.2} ms", ns / 1e6),
        ..1e9 => format!("{:.1} ms", ns / 1e6),
        _ => format!("{:.2} s", ns / 1e9),
    }
}

/// Without what a terminal would obey or what would reorder the line: controls, bidirectional marks, separators.
fn printable(text: &str) -> String {
    let harmless = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}')
    };
    if text.chars().all(harmless) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 8), |mut safe, c| {
        if harmless(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_default());
        }
        safe
    })
}
