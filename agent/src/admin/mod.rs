//! The admin server: health, metrics, the recent calls, and the page, on TCP and on a root-only Unix socket.
//!
//! Shows everybody's traffic, so it never answers with any of it before [`auth`] has said yes, never trusts a peer to
//! be quick or small, and never makes the observed programs or the pipeline wait.

pub mod api;
pub mod auth;
pub mod client;
mod port;
pub mod store;
mod ui;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

pub use api::{AdminState, Readiness, Status};
use auth::{Decision, Guard, Token};

/// Where the control socket is unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weir/weir.sock";
/// Where a generated token is written unless told otherwise.
pub const DEFAULT_TOKEN: &str = "/run/weir/token";

/// Largest request head. The page's own requests are under 1 KiB; browsers add cookies of other local servers.
const HEAD_BYTES: usize = 16 * 1024;
/// Header fields of a request.
const HEADERS: usize = 64;
/// Pause after a failed accept: descriptors that ran out are not back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// No script but ours, nothing from elsewhere, in nobody's frame.
const SECURITY_HEADERS: [(&str, &str); 6] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// Where to listen and what to demand.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// `None`: no TCP. Default `127.0.0.1:9464`.
    pub tcp: Option<SocketAddr>,
    /// `None`: no Unix socket.
    pub socket: Option<PathBuf>,
    /// Take the token from this file instead of making one.
    pub token_file: Option<PathBuf>,
    /// Where a generated token is written (mode 0600); `None` keeps it in memory.
    pub token_out: Option<PathBuf>,
    /// Names taken in `Host`, besides IP addresses and `localhost`.
    pub hosts: Vec<String>,
    /// `/metrics` without the token.
    pub open_metrics: bool,
    pub limits: Limits,
}

/// What clients may use, per listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones wait in the kernel's queue.
    pub connections: usize,
    /// For a whole request head, and for the next request on an idle connection.
    pub head_timeout: Duration,
    /// A client that takes no bytes for this long is dropped.
    pub write_timeout: Duration,
    /// For open connections when the agent stops.
    pub drain: Duration,
}

/// A bound server that does not answer yet.
pub struct Admin {
    state: AdminState,
    limits: Limits,
    tcp: Option<(TcpListener, SocketAddr, Guard)>,
    socket: Option<(UnixListener, OwnFile)>,
    token: Option<Token>,
    token_file: Option<OwnFile>,
}

/// A file this run made; removed on drop unless another took its place.
#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    inode: u64,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            tcp: Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
            socket: Some(DEFAULT_SOCKET.into()),
            token_file: None,
            token_out: Some(DEFAULT_TOKEN.into()),
            hosts: Vec::new(),
            open_metrics: false,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            head_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(20),
            drain: Duration::from_secs(1),
        }
    }
}

/// Listen. Errors say what is in the way and what to do about it. Needs a running tokio.
pub async fn bind(config: AdminConfig, state: AdminState) -> anyhow::Result<Admin> {
    let socket = match &config.socket {
        Some(path) => Some(bind_unix(path).await?),
        None => None,
    };
    let mut admin = Admin { state, limits: config.limits, tcp: None, socket, token: None, token_file: None };
    let Some(address) = config.tcp else { return Ok(admin) };

    let listener = bind_tcp(address).await?;
    let address = listener.local_addr().context("ask for the address of the admin listener")?;
    let token = match (&config.token_file, &config.token_out) {
        (Some(path), _) => Token::read(path)?,
        (None, None) => Token::generate()?,
        (None, Some(path)) => {
            let token = Token::generate()?;
            private_directory(path)?;
            token.write(path)?;
            admin.token_file = Some(OwnFile::new(path)?);
            token
        }
    };
    let guard = Guard::token(address, token.clone(), config.hosts, config.open_metrics)?;
    admin.tcp = Some((listener, address, guard));
    admin.token = Some(token);
    Ok(admin)
}

impl Admin {
    /// The bound TCP address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, address, _)| *address)
    }

    pub fn socket_path(&self) -> Option<&Path> {
        self.socket.as_ref().map(|(_, file)| file.path.as_path())
    }

    /// The page's address with the token in the fragment, which browsers never send: the page exchanges it for a
    /// cookie and takes it out of the address bar. For the terminal of the user who started the agent, not for logs.
    pub fn page_url(&self) -> Option<String> {
        let (_, address, _) = self.tcp.as_ref()?;
        Some(format!("http://{address}/#token={}", self.token.as_ref()?.reveal()))
    }

    /// Answer until `shutdown` ends, then let open requests finish for [`Limits::drain`].
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let (stop, stopping) = watch::channel(false);
        let mut listeners = JoinSet::new();
        let mut owned = (None, self.token_file);
        if let Some((listener, _, guard)) = self.tcp {
            let router = guarded(self.state.clone(), guard, stopping.clone());
            let accept = Tcp(listener);
            listeners.spawn(run(accept, router, self.limits, stopping.clone()));
        }
        if let Some((listener, file)) = self.socket {
            let router = guarded(self.state.clone(), Guard::peer()?, stopping.clone());
            let accept = Unix { listener, own: own_uid()? };
            listeners.spawn(run(accept, router, self.limits, stopping));
            owned.0 = Some(file);
        }
        shutdown.await;
        stop.send_replace(true);
        while listeners.join_next().await.is_some() {}
        drop(owned);
        Ok(())
    }
}

impl OwnFile {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let metadata = std::fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
        Ok(Self { path: path.to_owned(), inode: metadata.ino() })
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a file of the admin server stays behind");
        }
    }
}

/// A listener whose connections may be served.
trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + 'static;

    /// The next connection; `None` when its peer is refused.
    fn accept(&self) -> impl Future<Output = io::Result<Option<Self::Stream>>> + Send;
}

struct Tcp(TcpListener);

struct Unix {
    listener: UnixListener,
    own: u32,
}

impl Accept for Tcp {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Option<Self::Stream>> {
        let (stream, _) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok(Some(stream))
    }
}

impl Accept for Unix {
    type Stream = UnixStream;

    /// The mode of the socket keeps others out; the kernel's word on the peer holds even if the mode was changed.
    async fn accept(&self) -> io::Result<Option<Self::Stream>> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        if uid == 0 || uid == self.own {
            return Ok(Some(stream));
        }
        tracing::warn!(uid, "a user other than root was refused at the control socket");
        Ok(None)
    }
}

/// Accept and serve until told to stop.
async fn run<A: Accept>(accept: A, router: Router, limits: Limits, mut stopping: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, accept.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(permit), Ok(Some(stream))) => {
                let connection = serve_connection(stream, router.clone(), limits, stopping.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            (_, Ok(None)) => {}
            (_, Err(error)) => {
                // The peer left already, or descriptors ran out: neither goes away by trying at once.
                tracing::debug!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (Err(_), _) => break,
        }
    }
    drop(accept);
    let drained = tokio::time::timeout(limits.drain, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        connections.shutdown().await;
    }
}

/// Ends when the server stops, or is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    if let Err(error) = stopping.wait_for(|stop| *stop).await {
        tracing::debug!(%error, "the admin server is gone");
    }
}

async fn serve_connection<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    router: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.write_timeout));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

/// The routes behind the guard.
fn guarded(state: AdminState, guard: Guard, stopping: watch::Receiver<bool>) -> Router {
    let guard = Arc::new(guard);
    let context = api::Context { admin: state, guard: Arc::clone(&guard), stopping };
    api::router(context).layer(middleware::from_fn_with_state(guard, check))
}

async fn check(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let has_body = request.headers().contains_key(TRANSFER_ENCODING)
        || request.headers().get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    let decision = guard.decide(request.method(), request.uri(), request.headers());
    let (mut response, authorized) = match decision {
        Decision::Allow { .. } if has_body => {
            (api::refusal(StatusCode::PAYLOAD_TOO_LARGE, "no request here takes a body"), false)
        }
        Decision::Allow { authorized } => {
            request.extensions_mut().insert(api::Authorized(authorized));
            (next.run(request).await, authorized)
        }
        Decision::Refuse(status, text) => (api::refusal(status, text), false),
    };
    let unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if unauthorized {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"weir\""));
    }
    if !authorized {
        // Who has shown no token holds no connection.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn bind_tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let error = match TcpListener::bind(address).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = port::holder(address).unwrap_or_else(|| "another process".to_owned());
            format!("{holder} listens there; stop it, or choose another address with --admin HOST:PORT")
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address; choose another with --admin HOST:PORT".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need privileges; choose another with --admin HOST:PORT".to_owned()
        }
        _ => "choose another address with --admin HOST:PORT".to_owned(),
    };
    Err(error).with_context(|| format!("cannot listen on the admin address {address}: {hint}"))
}

/// Bind under another name, make it private, then put it in place: at no moment can another user connect.
async fn bind_unix(path: &Path) -> anyhow::Result<(UnixListener, OwnFile)> {
    let shown = path.display();
    private_directory(path)?;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("look at the control socket {shown}")),
        Ok(metadata) if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => {
            bail!("{shown} is not a socket: remove it, or choose another path for the control socket");
        }
        Ok(_) => {
            if let Ok(stream) = UnixStream::connect(path).await {
                let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                bail!("another agent{pid} answers at the control socket {shown}: stop it, or choose another path");
            }
        }
    }
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", fresh.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&fresh).with_context(|| format!("cannot listen on the control socket {shown}"))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&fresh, path))
        .with_context(|| format!("put the control socket in place at {shown}"))?;
    Ok((listener, OwnFile::new(path)?))
}

/// The directory of `path`: made for the owner only, or one that no other user can write.
fn private_directory(path: &Path) -> anyhow::Result<()> {
    let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    let shown = directory.display();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("cannot make {shown}: run as root, or choose another place for the control socket"))?;
    let metadata = std::fs::metadata(directory).with_context(|| format!("look at {shown}"))?;
    if metadata.mode() & 0o022 != 0 {
        bail!("{shown} can be written by other users: choose a private directory, or chmod go-w {shown}");
    }
    Ok(())
}

/// The user this process acts as: its own credentials as the kernel tells them to a peer.
fn own_uid() -> anyhow::Result<u32> {
    let (stream, _peer) = UnixStream::pair().context("open a socket pair")?;
    Ok(stream.peer_cred().context("ask for the own credentials")?.uid())
}
