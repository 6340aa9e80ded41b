//! The HTTP API: its wire types and routes. Own types, not the model's, so that a renamed field breaks no user.
//!
//! Knows nothing of sockets and nothing of who may ask: [`super::auth`] decided before a route runs.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::auth::Guard;
use super::store::{Filter, Kept, StatusFilter, Store, StoreCounters, Subscription};
use super::ui;
use crate::model::{CallReport, Role, TraceId};

/// Calls in one answer: about a megabyte.
const MAX_LIMIT: usize = 1_000;
const DEFAULT_LIMIT: usize = 100;
/// Calls written to a stream at a time.
const STREAM_BATCH: usize = 64;
/// A comment is sent on a silent stream this often, so that a dead peer is noticed.
const STREAM_SILENCE: Duration = Duration::from_secs(15);

/// What the agent gives the admin server.
#[derive(Clone)]
pub struct AdminState {
    pub store: Arc<Store>,
    /// Called per request: cheap, or cached by the giver.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// Prometheus text exposition.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// One call as one JSON object without line breaks; the same mapping as `--export jsonl`.
    pub call_json: Arc<dyn Fn(&CallReport) -> String + Send + Sync>,
}

/// `/api/v1/status`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub version: String,
    pub uptime_seconds: f64,
    /// `observe` | `audit` | `enforce`.
    pub mode: String,
    pub readiness: Readiness,
    /// What was planned to be attached on this kernel.
    pub probes: Vec<Probe>,
    /// What the agent gave up, by stage and reason (`weir_lost_total`); zero counts may be left out.
    pub losses: Vec<Loss>,
    /// Traffic that cannot be seen, in words for the user.
    pub blind_spots: Vec<String>,
    pub tls: Tls,
    /// Share of calls that were captured whole; `None` before the first.
    pub coverage_ratio: Option<f64>,
    pub cpu_seconds: f64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    pub exporters: Vec<ExporterStatus>,
}

/// What reads TLS, and who uses it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tls {
    /// Probed files.
    pub libraries: Vec<TlsLibrary>,
    /// Processes with TLS connections, those that are not read first.
    pub processes: Vec<TlsProcess>,
    pub discovery: TlsDiscovery,
}

/// What was done to find `libraries`, since the start.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TlsDiscovery {
    /// Files looked at.
    pub files: u64,
    /// Times that a process's mappings were read.
    pub processes: u64,
    /// Files with TLS that cannot be read.
    pub refused: u64,
    /// Libraries probed, and those let go because nobody used them any more.
    pub attached: u64,
    pub detached: u64,
    /// Files that were gone, or could not be opened, before they were looked at.
    pub unopened: u64,
    /// Times that so much was mapped at once that everything was looked at again.
    pub overflows: u64,
    /// Times that a library was not probed because as many as can be were in use.
    pub no_room: u64,
}

/// A probed file.
#[derive(Clone, Debug, Serialize)]
pub struct TlsLibrary {
    pub path: String,
    /// `weir.capture.backend` of what it yields.
    pub backend: String,
    pub probes: usize,
}

/// A process with TLS connections.
#[derive(Clone, Debug, Serialize)]
pub struct TlsProcess {
    pub pid: u32,
    pub name: String,
    pub connections: u64,
    /// Of these, the ones whose plaintext was read. 0: a blind spot.
    pub connections_read: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// That a client asked for last (SNI).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// Probed files that it maps.
    pub sources: Vec<String>,
    /// Why it is not read, or not by something else it maps.
    pub reasons: Vec<String>,
}

impl TlsProcess {
    /// The sentence for people, when none of its connections is read.
    pub fn blind_spot(&self) -> Option<String> {
        if self.connections_read > 0 {
            return None;
        }
        let mut text = format!("TLS of {} (pid {}), {} connections", self.name, self.pid, self.connections);
        if let Some(peer) = self.server_name.as_ref().or(self.remote.as_ref()) {
            _ = write!(text, ", last with {peer}");
        }
        if self.reasons.is_empty() && !self.sources.is_empty() {
            _ = write!(text, ": no plaintext yet from {}", self.sources.join(", "));
        } else if !self.reasons.is_empty() {
            _ = write!(text, ": {}", self.reasons.join("; "));
        }
        Some(text)
    }
}

/// Whether the agent does what it was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// Probes are being attached.
    Starting,
    Ready,
    /// Something planned is not attached, something is.
    Degraded,
    /// Nothing can be observed.
    Blind,
}

/// A planned probe.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    pub name: String,
    pub attached: bool,
    /// Why it is not attached, and what is lost without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Loss {
    pub stage: String,
    pub reason: String,
    pub count: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ExporterStatus {
    pub name: String,
    pub sent: u64,
    pub lost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The request proved its right to see traffic; else only what is open to all is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Authorized(pub(super) bool);

/// What the routes share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) admin: AdminState,
    pub(super) guard: Arc<Guard>,
    /// Turns true when the server stops: open streams end.
    pub(super) stopping: watch::Receiver<bool>,
}

#[derive(Serialize)]
struct StatusAnswer {
    #[serde(flatten)]
    status: Status,
    store: StoreAnswer,
}

#[derive(Serialize)]
struct StoreAnswer {
    calls: u64,
    kept: usize,
    kept_bytes: usize,
    evicted: u64,
    endpoints: usize,
    endpoint_overflow: u64,
    /// Calls that go on and are shown, and reports of such that had no room.
    open: usize,
    open_overflow: u64,
    subscribers: usize,
    subscriber_dropped: u64,
}

#[derive(Serialize)]
struct ReadyAnswer {
    status: Readiness,
    #[serde(flatten)]
    detail: Option<ReadyDetail>,
}

#[derive(Serialize)]
struct ReadyDetail {
    probes: Vec<Probe>,
    losses: Vec<Loss>,
}

#[derive(Serialize)]
struct EndpointsAnswer<'a> {
    endpoints: Vec<EndpointAnswer<'a>>,
    /// Calls whose endpoint did not fit the table.
    overflow: u64,
}

#[derive(Serialize)]
struct EndpointAnswer<'a> {
    #[serde(rename = "service.name", skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    span_kind: &'static str,
    #[serde(rename = "http.request.method", skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(rename = "http.route", skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    calls: u64,
    errors: u64,
    duration_p50_ns: u64,
    duration_p95_ns: u64,
    duration_p99_ns: u64,
    last_seen_unix_ms: u64,
}

/// Query of `/api/v1/calls` and of the stream; unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallsQuery {
    limit: Option<usize>,
    since: Option<u64>,
    service: Option<Box<str>>,
    method: Option<Box<str>>,
    path: Option<Box<str>>,
    status: Option<Box<str>>,
    role: Option<Box<str>>,
    trace_id: Option<Box<str>>,
    pid: Option<u32>,
    /// Calls a second; of the stream only.
    rate: Option<u32>,
}

/// A refusal that says what to do.
struct Refusal(StatusCode, String);

/// What a stream sends next.
struct Stream {
    context: Context,
    filter: Filter,
    subscription: Subscription,
    opened: bool,
    /// Goes on from `last` through what the store keeps, before it turns to what is live.
    replaying: bool,
    /// Cursor of the last call looked at.
    last: u64,
    rate: Option<Rate>,
}

/// At most so many calls a second; what is more is left out and counted.
struct Rate {
    limit: u64,
    sent: u64,
    skipped: u64,
    until: Instant,
}

pub(super) fn router(context: Context) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/session", post(session))
        .route("/api/v1/status", get(status))
        .route("/api/v1/calls", get(calls))
        .route("/api/v1/calls/open", get(open))
        .route("/api/v1/calls/stream", get(stream))
        .route("/api/v1/endpoints", get(endpoints))
        .route("/api/v1/traces/{trace_id}", get(trace))
        .merge(ui::router())
        .fallback(|| async { Refusal(StatusCode::NOT_FOUND, "there is nothing at this path".into()) })
        .method_not_allowed_fallback(|| async {
            Refusal(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method".into())
        })
        .with_state(context)
}

/// An error as JSON, the form of every refusal of the API.
pub(super) fn refusal(status: StatusCode, text: &str) -> Response {
    #[derive(Serialize)]
    struct Answer<'a> {
        error: &'a str,
    }
    (status, [(CACHE_CONTROL, "no-store")], Json(Answer { error: text })).into_response()
}

async fn ready(State(context): State<Context>, Extension(authorized): Extension<Authorized>) -> Response {
    let status = (context.admin.status)();
    let code = match status.readiness {
        Readiness::Ready | Readiness::Degraded => StatusCode::OK,
        Readiness::Starting | Readiness::Blind => StatusCode::SERVICE_UNAVAILABLE,
    };
    let detail = authorized.0.then_some(ReadyDetail { probes: status.probes, losses: status.losses });
    (code, Json(ReadyAnswer { status: status.readiness, detail })).into_response()
}

async fn metrics(State(context): State<Context>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (context.admin.metrics)()).into_response()
}

/// The token was shown in `Authorization`: a cookie takes its place, so that the page need not keep it.
async fn session(State(context): State<Context>) -> Response {
    (StatusCode::NO_CONTENT, [(SET_COOKIE, context.guard.set_cookie())]).into_response()
}

async fn status(State(context): State<Context>) -> Response {
    let store = context.admin.store.counters().into();
    Json(StatusAnswer { status: (context.admin.status)(), store }).into_response()
}

async fn calls(State(context): State<Context>, query: Query<CallsQuery>) -> Result<Response, Refusal> {
    let (filter, since, limit) = query.0.validate()?;
    let page = context.admin.store.query(&filter, since, limit.clamp(1, MAX_LIMIT));
    let mut json = context.calls_array(&kept(page.calls));
    json.insert_str(0, "{\"calls\":");
    // Writing to a string does not fail.
    write!(json, ",\"next\":{},\"missed\":{},\"reset\":{}}}", page.next, page.missed, page.reset).unwrap_or_default();
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

/// Calls that go on, with what they came to so far. They are in no other answer but that of their trace.
async fn open(State(context): State<Context>, query: Query<CallsQuery>) -> Result<Response, Refusal> {
    let (filter, _, limit) = query.0.validate()?;
    let calls = context.admin.store.open(&filter, limit.clamp(1, MAX_LIMIT));
    let json = format!("{{\"calls\":{}}}", context.calls_array(&calls));
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

async fn trace(State(context): State<Context>, Path(trace_id): Path<String>) -> Result<Response, Refusal> {
    let id = parse_trace_id(&trace_id)?;
    let filter = Filter { trace_id: Some(id), ..Filter::default() };
    let mut calls = kept(context.admin.store.query(&filter, None, MAX_LIMIT).calls);
    calls.extend(context.admin.store.open(&filter, MAX_LIMIT));
    if calls.is_empty() {
        let text = "no call of this trace is among the recent ones";
        return Err(Refusal(StatusCode::NOT_FOUND, text.into()));
    }
    let calls = context.calls_array(&calls);
    let json = format!("{{\"trace_id\":\"{}\",\"calls\":{calls}}}", hex(&id.0));
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

async fn endpoints(State(context): State<Context>) -> Response {
    let (endpoints, overflow) = context.admin.store.endpoints();
    let endpoints = endpoints
        .iter()
        .map(|endpoint| EndpointAnswer {
            service: endpoint.key.service.as_deref(),
            span_kind: endpoint.key.role.name(),
            method: endpoint.key.method.as_deref(),
            route: endpoint.key.route.as_deref(),
            calls: endpoint.calls,
            errors: endpoint.errors,
            duration_p50_ns: endpoint.p50_ns,
            duration_p95_ns: endpoint.p95_ns,
            duration_p99_ns: endpoint.p99_ns,
            last_seen_unix_ms: endpoint.last_seen_unix_ns / 1_000_000,
        })
        .collect();
    Json(EndpointsAnswer { endpoints, overflow }).into_response()
}

/// Server-sent events: `call` with one call, `lost` with `{"dropped":n}` for calls that were left out because this
/// stream was too slow or asked for a `rate`. `since` or `Last-Event-ID` replays what came after that cursor.
async fn stream(
    State(context): State<Context>,
    headers: HeaderMap,
    query: Query<CallsQuery>,
) -> Result<Response, Refusal> {
    let rate = query.0.rate.map(Rate::new);
    let (filter, since, _) = query.0.validate()?;
    let resumed = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let since = resumed.or(since);
    let Some(subscription) = context.admin.store.subscribe(filter.clone()) else {
        let text = "too many live streams are open: close one, or poll /api/v1/calls?since=N";
        return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, text.into()));
    };
    let (replaying, last) = (since.is_some(), since.unwrap_or(0));
    let stream = Stream { context, filter, subscription, opened: false, replaying, last, rate };
    let body = Body::from_stream(futures_util::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<_, Infallible>(chunk), stream))
    }));
    Ok(([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")], body).into_response())
}

impl Stream {
    /// The next piece of the body; `None` when the server stops.
    async fn next(&mut self) -> Option<Bytes> {
        let mut text = String::new();
        if !self.opened {
            self.opened = true;
            // Something at once, so that the reader knows the stream is open.
            text.push_str("retry: 1000\n: open\n\n");
            return Some(text.into());
        }
        while self.replaying && text.is_empty() {
            self.replay(&mut text);
        }
        while text.is_empty() {
            let mut batch = Vec::new();
            let received = tokio::select! {
                () = super::stopped(&mut self.context.stopping) => return None,
                received = timeout(STREAM_SILENCE, self.subscription.receive(&mut batch, STREAM_BATCH)) => received,
            };
            match received {
                Ok(0) => return None,
                Ok(_) => self.follow(&mut text, &batch),
                Err(_) => text.push_str(": still here\n\n"),
            }
        }
        Some(text.into())
    }

    fn replay(&mut self, text: &mut String) {
        let page = self.context.admin.store.query(&self.filter, Some(self.last), STREAM_BATCH);
        write_lost(text, page.missed);
        for kept in &page.calls {
            self.write_call(text, kept);
        }
        // Fewer than asked for: this was the end of the ring, and what comes after is in the subscription.
        self.replaying = page.calls.len() >= STREAM_BATCH;
        self.last = page.next;
    }

    fn follow(&mut self, text: &mut String, batch: &[Kept]) {
        let mut lost = self.subscription.take_dropped();
        if let Some(rate) = &mut self.rate {
            lost = rate.begin(Instant::now(), lost);
        }
        write_lost(text, lost);
        for kept in batch.iter().filter(|kept| kept.cursor > self.last) {
            if self.rate.as_mut().is_none_or(Rate::take) {
                self.write_call(text, kept);
            }
        }
    }

    fn write_call(&self, text: &mut String, kept: &Kept) {
        let json = (self.context.admin.call_json)(&kept.report);
        write!(text, "id: {}\nevent: call\ndata: {}\n\n", kept.cursor, json.trim_end()).unwrap_or_default();
    }
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(1);

    fn new(limit: u32) -> Self {
        Self { limit: limit.into(), sent: 0, skipped: 0, until: Instant::now() + Self::WINDOW }
    }

    /// Count `dropped` calls; once a second, the number that was left out since it was last told.
    fn begin(&mut self, now: Instant, dropped: u64) -> u64 {
        self.skipped += dropped;
        if now < self.until {
            return 0;
        }
        self.until = now + Self::WINDOW;
        self.sent = 0;
        std::mem::take(&mut self.skipped)
    }

    fn take(&mut self) -> bool {
        let room = self.sent < self.limit;
        self.sent += u64::from(room);
        self.skipped += u64::from(!room);
        room
    }
}

impl Context {
    fn calls_array(&self, calls: &[Arc<CallReport>]) -> String {
        let mut json = String::from("[");
        for (index, call) in calls.iter().enumerate() {
            if index > 0 {
                json.push(',');
            }
            json.push_str((self.admin.call_json)(call).trim_end());
        }
        json.push(']');
        json
    }
}

impl CallsQuery {
    fn validate(self) -> Result<(Filter, Option<u64>, usize), Refusal> {
        let bad = |text: &str| Refusal(StatusCode::BAD_REQUEST, text.into());
        let status = match self.status.as_deref().map(StatusFilter::parse) {
            Some(None) => return Err(bad("status is a code (404), a class (5xx) or `error`")),
            status => status.flatten(),
        };
        let role = match self.role.as_deref() {
            None => None,
            Some("server") => Some(Role::Server),
            Some("client") => Some(Role::Client),
            Some(_) => return Err(bad("role is `server` or `client`")),
        };
        let trace_id = self.trace_id.as_deref().map(parse_trace_id).transpose()?;
        let filter = Filter {
            service: self.service,
            method: self.method,
            path_prefix: self.path,
            status,
            role,
            trace_id,
            pid: self.pid,
        };
        Ok((filter, self.since, self.limit.unwrap_or(DEFAULT_LIMIT)))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = refusal(self.0, &self.1);
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

impl From<StoreCounters> for StoreAnswer {
    fn from(counters: StoreCounters) -> Self {
        Self {
            calls: counters.appended,
            kept: counters.kept,
            kept_bytes: counters.kept_bytes,
            evicted: counters.evicted,
            endpoints: counters.endpoints,
            endpoint_overflow: counters.endpoint_overflow,
            open: counters.open,
            open_overflow: counters.open_overflow,
            subscribers: counters.subscribers,
            subscriber_dropped: counters.subscriber_dropped,
        }
    }
}

fn kept(calls: Vec<Kept>) -> Vec<Arc<CallReport>> {
    calls.into_iter().map(|kept| kept.report).collect()
}

fn write_lost(text: &mut String, dropped: u64) {
    if dropped > 0 {
        write!(text, "event: lost\ndata: {{\"dropped\":{dropped}}}\n\n").unwrap_or_default();
    }
}

fn parse_trace_id(text: &str) -> Result<TraceId, Refusal> {
    let bad = || Refusal(StatusCode::BAD_REQUEST, "a trace id is 32 hexadecimal digits".into());
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad());
    }
    u128::from_str_radix(text, 16).map(|id| TraceId(id.to_be_bytes())).map_err(|_| bad())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}
