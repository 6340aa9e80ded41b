//! The recent calls: a ring bounded in calls and bytes, figures per endpoint, and live subscribers.
//!
//! One thread appends, any number read. An append never waits for a subscriber, and nothing here grows without a
//! bound: what does not fit is dropped and counted.

mod open;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use self::open::Open;
use crate::model::{CallReport, Handshake, Role, TraceId};

/// Calls looked at per hold of the lock, so that a slow query never makes the writer wait for the whole ring.
const SCAN: u64 = 1_024;

/// Sub-buckets per power of two: a quantile is at most 1/32 off.
const SUB_BITS: u32 = 4;
/// Latencies below 1 µs share the first bucket, those above 2^40 ns (18 minutes) the last.
const MIN_EXPONENT: u32 = 10;
const MAX_EXPONENT: u32 = 40;

/// How much the store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Calls kept.
    pub calls: usize,
    /// Bytes those calls may use, as estimated by their strings.
    pub bytes: usize,
    /// Endpoints with figures; calls of further ones are only counted.
    pub endpoints: usize,
    /// Calls shown before their end; further ones are shown when they are over.
    pub open: usize,
    /// Live streams at a time.
    pub subscribers: usize,
    /// Calls waiting for one subscriber; further ones are dropped for it.
    pub subscriber_queue: usize,
}

/// The recent calls.
#[derive(Debug)]
pub struct Store {
    ring: Mutex<Ring>,
    endpoints: Mutex<Endpoints>,
    open: Mutex<Open>,
    /// Calls in `open`, so that an append takes no lock while there are none.
    open_count: AtomicUsize,
    subscribers: Mutex<Vec<Slot>>,
    /// Length of `subscribers`, so that an append without any takes no lock.
    subscriber_count: AtomicUsize,
    subscriber_dropped: AtomicU64,
    next_subscriber: AtomicU64,
    bounds: Bounds,
}

/// A kept call and its place in the order of arrival.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Counts from 1; never reused while the agent runs.
    pub cursor: u64,
    pub report: Arc<CallReport>,
}

/// Which calls; a field that is `None` lets all pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub service: Option<Box<str>>,
    /// Compared without case.
    pub method: Option<Box<str>>,
    pub path_prefix: Option<Box<str>>,
    pub status: Option<StatusFilter>,
    pub role: Option<Role>,
    pub trace_id: Option<TraceId>,
    pub pid: Option<u32>,
}

/// Which statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    /// First digit of the status code.
    Class(u16),
    Code(u16),
    /// Calls with an `error.type`, those without a response included.
    Error,
}

/// What a query found, oldest first.
#[derive(Debug)]
pub struct Page {
    pub calls: Vec<Kept>,
    /// Give it as `since` to go on from here.
    pub next: u64,
    /// Calls after `since` that had already been evicted.
    pub missed: u64,
    /// `since` was not of this run of the agent and was ignored.
    pub reset: bool,
}

/// Figures of one endpoint since the agent started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub key: EndpointKey,
    pub calls: u64,
    pub errors: u64,
    pub p50_ns: u64,
    pub p95_ns: u64,
    pub p99_ns: u64,
    /// Start of the newest call, nanoseconds since the Unix epoch.
    pub last_seen_unix_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    pub service: Option<Arc<str>>,
    pub role: Role,
    pub method: Option<Arc<str>>,
    pub route: Option<Arc<str>>,
}

/// The store's own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Calls appended since the start.
    pub appended: u64,
    pub kept: usize,
    pub kept_bytes: usize,
    /// Calls that left the ring because of a bound; they were shown while they lasted.
    pub evicted: u64,
    pub endpoints: usize,
    /// Calls whose endpoint did not fit the table.
    pub endpoint_overflow: u64,
    /// Calls that go on and are shown.
    pub open: usize,
    /// Reports of calls that go on that had no room.
    pub open_overflow: u64,
    pub subscribers: usize,
    /// Calls not delivered to a live stream that was too slow.
    pub subscriber_dropped: u64,
}

/// One live stream; dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    store: Arc<Store>,
    id: u64,
    calls: mpsc::Receiver<Kept>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Ring {
    /// `(call, estimated bytes)`, oldest first; cursors are consecutive.
    calls: VecDeque<(Arc<CallReport>, usize)>,
    last: u64,
    bytes: usize,
    bytes_limit: usize,
}

#[derive(Debug, Default)]
struct Endpoints {
    table: HashMap<EndpointKey, Figures>,
    overflow: u64,
}

#[derive(Debug, Default)]
struct Figures {
    calls: u64,
    errors: u64,
    last_seen_unix_ns: u64,
    latency: Sketch,
}

/// Counts by logarithmic bucket; grows only to the largest latency seen.
#[derive(Debug, Default)]
struct Sketch {
    buckets: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    filter: Filter,
    calls: mpsc::Sender<Kept>,
    dropped: Arc<AtomicU64>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            calls: 10_000,
            bytes: 32 * 1024 * 1024,
            endpoints: 2_000,
            open: 1_000,
            subscribers: 16,
            subscriber_queue: 1_024,
        }
    }
}

impl Store {
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            ring: Mutex::new(Ring { calls: VecDeque::new(), last: 0, bytes: 0, bytes_limit: bounds.bytes }),
            endpoints: Mutex::default(),
            open: Mutex::default(),
            open_count: AtomicUsize::new(0),
            subscribers: Mutex::default(),
            subscriber_count: AtomicUsize::new(0),
            subscriber_dropped: AtomicU64::new(0),
            next_subscriber: AtomicU64::new(0),
            bounds,
        })
    }

    /// Keep a call. For one writer: cursors follow the order of these calls.
    pub fn append(&self, report: &Arc<CallReport>) {
        if self.open_count.load(Relaxed) > 0 {
            let mut open = lock(&self.open);
            open.end(report.trace.span_id);
            self.open_count.store(open.len(), Relaxed);
        }
        lock(&self.endpoints).add(report, self.bounds.endpoints);
        let cursor = lock(&self.ring).push(Arc::clone(report), self.bounds.calls);
        if self.subscriber_count.load(Relaxed) == 0 {
            return;
        }
        for slot in lock(&self.subscribers).iter().filter(|slot| slot.filter.matches(report)) {
            if slot.calls.try_send(Kept { cursor, report: Arc::clone(report) }).is_err() {
                slot.dropped.fetch_add(1, Relaxed);
                self.subscriber_dropped.fetch_add(1, Relaxed);
            }
        }
    }

    /// Show a call that goes on, until its end is appended. No figure and no live stream counts it.
    pub fn show(&self, report: &Arc<CallReport>) {
        let mut open = lock(&self.open);
        open.show(report, self.bounds.open);
        self.open_count.store(open.len(), Relaxed);
    }

    /// Forget the calls that go on and were last heard of before `unix_ns`: their end was lost.
    pub fn expire_open(&self, unix_ns: u64) {
        if self.open_count.load(Relaxed) > 0 {
            let mut open = lock(&self.open);
            open.expire(unix_ns);
            self.open_count.store(open.len(), Relaxed);
        }
    }

    /// The newest `limit` calls that go on and pass `filter`, oldest first.
    pub fn open(&self, filter: &Filter, limit: usize) -> Vec<Arc<CallReport>> {
        if self.open_count.load(Relaxed) == 0 {
            return Vec::new();
        }
        let mut all = lock(&self.open).all();
        all.retain(|report| filter.matches(report));
        all.split_off(all.len().saturating_sub(limit))
    }

    /// At most `limit` calls that pass `filter`: those after the cursor `since`, else the newest.
    pub fn query(&self, filter: &Filter, since: Option<u64>, limit: usize) -> Page {
        let (first, last) = lock(&self.ring).range();
        let reset = since.is_some_and(|since| since > last);
        match since.filter(|_| !reset) {
            Some(since) => self.after(filter, since, first, last, limit),
            None => Page { calls: self.newest(filter, first, last, limit), next: last, missed: 0, reset },
        }
    }

    /// Figures of every endpoint, in no particular order, and how many calls had no room in the table.
    pub fn endpoints(&self) -> (Vec<Endpoint>, u64) {
        let endpoints = lock(&self.endpoints);
        let list = endpoints.table.iter().map(|(key, figures)| figures.snapshot(key.clone())).collect();
        (list, endpoints.overflow)
    }

    /// A live stream of the calls that pass `filter` from now on; `None` when there are too many already.
    pub fn subscribe(self: &Arc<Self>, filter: Filter) -> Option<Subscription> {
        let mut subscribers = lock(&self.subscribers);
        if subscribers.len() >= self.bounds.subscribers {
            return None;
        }
        let (sender, calls) = mpsc::channel(self.bounds.subscriber_queue.max(1));
        let id = self.next_subscriber.fetch_add(1, Relaxed);
        let dropped = Arc::new(AtomicU64::new(0));
        subscribers.push(Slot { id, filter, calls: sender, dropped: Arc::clone(&dropped) });
        self.subscriber_count.store(subscribers.len(), Relaxed);
        Some(Subscription { store: Arc::clone(self), id, calls, dropped })
    }

    /// Change the bound in bytes, as the memory ceiling comes nearer or goes away; evicts at once.
    pub fn set_bytes_limit(&self, bytes: usize) {
        let mut ring = lock(&self.ring);
        ring.bytes_limit = bytes.min(self.bounds.bytes);
        ring.evict(self.bounds.calls);
        // What the ring keeps reserved is memory too.
        let kept = ring.calls.len();
        ring.calls.shrink_to(kept.saturating_mul(2));
    }

    pub fn counters(&self) -> StoreCounters {
        let mut counters = StoreCounters {
            subscribers: self.subscriber_count.load(Relaxed),
            subscriber_dropped: self.subscriber_dropped.load(Relaxed),
            ..StoreCounters::default()
        };
        {
            let ring = lock(&self.ring);
            counters.appended = ring.last;
            counters.kept = ring.calls.len();
            counters.kept_bytes = ring.bytes;
            counters.evicted = ring.last.saturating_sub(ring.calls.len() as u64);
        }
        {
            let open = lock(&self.open);
            counters.open = open.len();
            counters.open_overflow = open.overflow();
        }
        let endpoints = lock(&self.endpoints);
        counters.endpoints = endpoints.table.len();
        counters.endpoint_overflow = endpoints.overflow;
        counters
    }

    /// Bytes held, for the memory ceiling: calls, those that go on, and endpoint figures.
    pub fn memory(&self) -> usize {
        let endpoints: usize = lock(&self.endpoints)
            .table
            .values()
            .map(|figures| figures.latency.buckets.capacity() * size_of::<u32>() + size_of::<(EndpointKey, Figures)>())
            .sum();
        lock(&self.ring).bytes + lock(&self.open).bytes() + endpoints
    }

    fn after(&self, filter: &Filter, since: u64, first: u64, last: u64, limit: usize) -> Page {
        let missed = first.saturating_sub(since.saturating_add(1));
        let mut page = Page { calls: Vec::new(), next: since.max(first.saturating_sub(1)), missed, reset: false };
        while page.next < last && page.calls.len() < limit {
            let end = page.next.saturating_add(SCAN).min(last);
            let ring = lock(&self.ring);
            let (oldest, _) = ring.range();
            page.missed += oldest.saturating_sub(page.next.saturating_add(1));
            page.next = page.next.max(oldest.saturating_sub(1));
            while page.next < end && page.calls.len() < limit {
                page.next += 1;
                page.calls.extend(ring.get(page.next).filter(|kept| filter.matches(&kept.report)));
            }
        }
        page
    }

    fn newest(&self, filter: &Filter, first: u64, last: u64, limit: usize) -> Vec<Kept> {
        let mut found = Vec::new();
        let mut next = last;
        while next >= first && next > 0 && found.len() < limit {
            let end = next.saturating_sub(SCAN).max(first.saturating_sub(1));
            let ring = lock(&self.ring);
            while next > end && found.len() < limit {
                found.extend(ring.get(next).filter(|kept| filter.matches(&kept.report)));
                next -= 1;
            }
        }
        found.reverse();
        found
    }
}

impl Filter {
    pub fn matches(&self, report: &CallReport) -> bool {
        let Self { service, method, path_prefix, status, role, trace_id, pid } = self;
        role.is_none_or(|role| role == report.role)
            && trace_id.is_none_or(|id| id == report.trace.trace_id)
            && pid.is_none_or(|pid| pid == report.pid)
            && status.is_none_or(|status| status.matches(report))
            && service.as_deref().is_none_or(|service| service_of(report).is_some_and(|name| **name == *service))
            && method.as_deref().is_none_or(|method| {
                report.method.as_deref().is_some_and(|seen| seen.eq_ignore_ascii_case(method))
                    || report.method_original.as_deref().is_some_and(|seen| seen.eq_ignore_ascii_case(method))
            })
            && path_prefix
                .as_deref()
                .is_none_or(|prefix| report.path.as_deref().is_some_and(|path| path.starts_with(prefix)))
    }
}

impl StatusFilter {
    /// `2xx`, `404` or `error`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.as_bytes() {
            b"error" => Some(Self::Error),
            [class @ b'1'..=b'9', b'x' | b'X', b'x' | b'X'] => Some(Self::Class(u16::from(class - b'0'))),
            [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] => text.parse().ok().map(Self::Code),
            _ => None,
        }
    }

    fn matches(self, report: &CallReport) -> bool {
        match self {
            Self::Class(class) => report.status.is_some_and(|status| status / 100 == class),
            Self::Code(code) => report.status == Some(code),
            Self::Error => report.error_type.is_some(),
        }
    }
}

impl Subscription {
    /// Wait for calls and move up to `limit` of them into `out`; 0 when the store is gone. Cancel safe.
    pub async fn receive(&mut self, out: &mut Vec<Kept>, limit: usize) -> usize {
        self.calls.recv_many(out, limit).await
    }

    /// Calls this stream was too slow for, since the last time asked.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Relaxed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = lock(&self.store.subscribers);
        subscribers.retain(|slot| slot.id != self.id);
        self.store.subscriber_count.store(subscribers.len(), Relaxed);
    }
}

impl Ring {
    fn push(&mut self, report: Arc<CallReport>, calls: usize) -> u64 {
        let bytes = estimated_bytes(&report);
        self.calls.push_back((report, bytes));
        self.bytes += bytes;
        self.last += 1;
        self.evict(calls);
        self.last
    }

    fn evict(&mut self, calls: usize) {
        while self.calls.len() > calls || self.bytes > self.bytes_limit {
            let Some((_, bytes)) = self.calls.pop_front() else { return };
            self.bytes -= bytes;
        }
    }

    /// Cursors of the oldest and the newest call; when empty, the oldest is one more than the newest.
    fn range(&self) -> (u64, u64) {
        (self.last + 1 - self.calls.len() as u64, self.last)
    }

    fn get(&self, cursor: u64) -> Option<Kept> {
        let index = usize::try_from(cursor.checked_sub(self.range().0)?).ok()?;
        self.calls.get(index).map(|(report, _)| Kept { cursor, report: Arc::clone(report) })
    }
}

impl Endpoints {
    fn add(&mut self, report: &CallReport, limit: usize) {
        let key = EndpointKey {
            service: service_of(report).cloned(),
            role: report.role,
            method: report.method.clone(),
            route: report.route.clone(),
        };
        if self.table.len() >= limit && !self.table.contains_key(&key) {
            self.overflow += 1;
            return;
        }
        let figures = self.table.entry(key).or_default();
        figures.calls += 1;
        figures.errors += u64::from(report.error_type.is_some());
        figures.last_seen_unix_ns = figures.last_seen_unix_ns.max(report.start_unix_ns);
        figures.latency.add(report.duration_ns);
    }
}

impl Figures {
    fn snapshot(&self, key: EndpointKey) -> Endpoint {
        let [p50_ns, p95_ns, p99_ns] = self.latency.quantiles([0.50, 0.95, 0.99]);
        Endpoint {
            key,
            calls: self.calls,
            errors: self.errors,
            p50_ns,
            p95_ns,
            p99_ns,
            last_seen_unix_ns: self.last_seen_unix_ns,
        }
    }
}

impl Sketch {
    fn add(&mut self, ns: u64) {
        let index = bucket(ns);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        if let Some(count) = self.buckets.get_mut(index) {
            *count = count.saturating_add(1);
        }
    }

    /// Values at the given ascending ranks (0 to 1), each the middle of its bucket; 0 when empty.
    fn quantiles<const N: usize>(&self, ranks: [f64; N]) -> [u64; N] {
        let total: u64 = self.buckets.iter().map(|count| u64::from(*count)).sum();
        ranks.map(|rank| {
            let wanted = ((total as f64 * rank).ceil() as u64).max(1);
            let mut seen = 0;
            let index = self.buckets.iter().position(|count| {
                seen += u64::from(*count);
                seen >= wanted
            });
            index.map_or(0, middle)
        })
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.clamp(1 << MIN_EXPONENT, (1 << MAX_EXPONENT) - 1);
    let exponent = ns.ilog2();
    let sub = (ns >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    (((exponent - MIN_EXPONENT) << SUB_BITS) as usize) + sub as usize
}

fn middle(bucket: usize) -> u64 {
    let exponent = MIN_EXPONENT + (bucket >> SUB_BITS) as u32;
    let sub = (bucket & ((1 << SUB_BITS) - 1)) as u64;
    let width = 1_u64 << (exponent - SUB_BITS);
    (1 << exponent) + sub * width + width / 2
}

/// `service.name`, else the executable's name.
pub fn service_of(report: &CallReport) -> Option<&Arc<str>> {
    report.workload.service_name.as_ref().or(report.workload.executable_name.as_ref())
}

/// Strings counted as if none were shared, so that the bound holds whatever the traffic.
fn estimated_bytes(report: &CallReport) -> usize {
    /// Reference counts and the allocator's own share, per string.
    const OVERHEAD: usize = 32;
    let strings = [
        &report.method,
        &report.method_original,
        &report.path,
        &report.query,
        &report.route,
        &report.server_address,
        &report.client_address,
        &report.peer_address,
        &report.user_agent,
        &report.error_type,
    ];
    let strings: usize = strings.into_iter().flatten().map(|text| text.len() + OVERHEAD).sum();
    let headers: usize = report.headers.iter().map(|(name, value)| name.len() + value.len() + 3 * OVERHEAD).sum();
    let handshake =
        report.tls.as_ref().map_or(0, |handshake| size_of::<Handshake>() + handshake.memory() + 4 * OVERHEAD);
    size_of::<CallReport>() + size_of::<(Arc<CallReport>, usize)>() + OVERHEAD + strings + headers + handshake
}

/// A panic in another thread leaves whole values behind: every critical section here is a few assignments.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
