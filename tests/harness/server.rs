//! A small HTTP/1.1 server of threads in the test's own process: for machines that have no other.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

/// One call as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub method: String,
    pub target: String,
    pub headers: HashMap<String, String>,
    pub body: usize,
}

/// What was served, in the order of completion.
pub type Log = Arc<Mutex<Vec<Served>>>;

/// Either stream.
pub trait Stream: Read + Write + Send + 'static {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

/// Answers one request: writes the whole response.
pub type Answer = Arc<dyn Fn(&Served, &mut dyn Stream) -> io::Result<()> + Send + Sync>;

/// Answer 200 with a body that repeats the target, and the target's last segment in `X-Id`.
pub fn echo() -> Answer {
    Arc::new(|served, stream| {
        let id = served.target.rsplit('/').next().unwrap_or_default();
        let body = if served.method == "HEAD" { "" } else { served.target.as_str() };
        stream.write_all(
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Id: {id}\r\n\r\n{body}", served.target.len())
                .as_bytes(),
        )
    })
}

/// Serve `listener` until the test ends; one thread a connection.
pub fn tcp(listener: TcpListener, answer: Answer) -> Log {
    let log = Log::default();
    let shared = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            stream.set_nodelay(true).unwrap();
            let (answer, log) = (Arc::clone(&answer), Arc::clone(&shared));
            std::thread::spawn(move || connection(stream, &answer, &log));
        }
    });
    log
}

/// The same on a Unix socket.
pub fn unix(listener: UnixListener, answer: Answer) -> Log {
    let log = Log::default();
    let shared = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (answer, log) = (Arc::clone(&answer), Arc::clone(&shared));
            std::thread::spawn(move || connection(stream, &answer, &log));
        }
    });
    log
}

fn connection(mut stream: impl Stream, answer: &Answer, log: &Log) {
    let mut buffer = Vec::new();
    while let Ok(Some(served)) = request(&mut stream, &mut buffer) {
        let done = answer(&served, &mut stream);
        log.lock().unwrap().push(served);
        if done.is_err() {
            break;
        }
    }
}

/// The next request; `None` at the end of the stream. Bytes behind it stay in `buffer`.
pub fn request(stream: &mut dyn Read, buffer: &mut Vec<u8>) -> io::Result<Option<Served>> {
    let mut chunk = vec![0; 64 * 1024];
    let head = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&chunk[..read]);
    };
    let text = String::from_utf8_lossy(&buffer[..head]).into_owned();
    buffer.drain(..head);
    let mut lines = text.split("\r\n");
    let mut line = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (line.next().unwrap_or_default().to_owned(), line.next().unwrap_or_default().to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = headers.get("content-length").map_or(0, |len| len.parse().unwrap_or(0));
    let mut left = body - buffer.len().min(body);
    buffer.drain(..buffer.len().min(body));
    while left > 0 {
        let want = chunk.len().min(left);
        let read = stream.read(&mut chunk[..want])?;
        if read == 0 {
            return Ok(None);
        }
        left -= read;
    }
    Ok(Some(Served { method, target, headers, body }))
}
