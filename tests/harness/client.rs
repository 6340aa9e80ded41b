//! HTTP clients: a raw one that writes exactly the bytes it is told to, and curl.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use super::PATIENCE;

/// A stream to a server.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection, kept alive for as long as the server does.
pub struct Http {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

/// A response, its body without framing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Http {
    /// Connect by TCP, without Nagle's delay: every write is a segment.
    pub fn tcp(address: impl ToSocketAddrs) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::over(stream)
    }

    pub fn unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::over(stream)
    }

    pub fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new() }
    }

    /// Write these bytes in one operation.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Write these bytes one at a time.
    pub fn send_slowly(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(std::slice::from_ref(byte));
        }
    }

    /// GET and read the response.
    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, &[], b"")
    }

    /// Send a request with `Content-Length` where there is a body, and read the response.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.send(&request(method, path, headers, body));
        self.read_response(method == "HEAD")
    }

    /// Read the next final response. `to_head`: it has no body, whatever its fields say.
    pub fn read_response(&mut self, to_head: bool) -> Response {
        let mut ended = false;
        loop {
            if let Some((response, len)) = parse(&self.buffer, to_head, ended) {
                self.buffer.drain(..len);
                if response.status >= 200 || response.status == 101 {
                    return response;
                }
            } else {
                assert!(!ended, "the server closed within {:?}", String::from_utf8_lossy(&self.buffer));
                let mut chunk = [0; 16384];
                let len = self.stream.read(&mut chunk).unwrap();
                self.buffer.extend_from_slice(&chunk[..len]);
                ended = len == 0;
            }
        }
    }

    /// Everything up to the server's close.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        self.stream.read_to_end(&mut self.buffer).unwrap();
        std::mem::take(&mut self.buffer)
    }
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// A response from all bytes of a connection that ended, and where it ends.
pub fn parse_response(bytes: &[u8], to_head: bool) -> Option<(Response, usize)> {
    parse(bytes, to_head, true)
}

fn parse(bytes: &[u8], to_head: bool, ended: bool) -> Option<(Response, usize)> {
    let head_len = find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_len]).into_owned();
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
    let fields = lines.filter_map(|line| line.split_once(':'));
    let headers = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let mut response = Response { status, headers, body: Vec::new() };
    let rest = &bytes[head_len..];
    if to_head || status < 200 || status == 204 || status == 304 {
        return Some((response, head_len));
    }
    if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        let (body, len) = unchunk(rest)?;
        response.body = body;
        return Some((response, head_len + len));
    }
    if let Some(len) = response.header("content-length") {
        let len: usize = len.parse().expect("a length");
        response.body = rest.get(..len)?.to_vec();
        return Some((response, head_len + len));
    }
    if !ended {
        return None;
    }
    response.body = rest.to_vec();
    Some((response, bytes.len()))
}

fn unchunk(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).expect("a chunk size");
        at += line + 2;
        let chunk = bytes.get(at..at + size + 2)?;
        at += size + 2;
        if size == 0 {
            return Some((body, at));
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// curl, quiet and bounded, with these arguments.
pub fn curl(args: &[&str]) -> Output {
    let path = super::find("curl").expect("curl");
    Command::new(path).args(["--silent", "--show-error", "--max-time", "20"]).args(args).output().unwrap()
}
