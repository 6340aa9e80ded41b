//! Trace contexts: who caused whom. Read from `traceparent` where there is one, from the two ends of one connection,
//! and from the thread that serves a request; where none of them is certain, the parent is absent.

use std::hash::Hash;

use hashlink::LruCache;
use rustc_hash::FxBuildHasher;

use crate::model::{SpanId, TraceContext, TraceId};

/// Threads remembered. A thread's past decides whether it can be trusted; one forgotten starts over as trusted, so the
/// table is larger than the threads of a busy node.
const THREADS: usize = 65_536;
/// Incoming `traceparent` values remembered, to know one that is passed on.
const INCOMING: usize = 16_384;

/// A W3C `traceparent` (Trace Context, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traceparent {
    pub trace_id: TraceId,
    pub parent_id: SpanId,
    pub sampled: bool,
}

/// How a span got its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A `traceparent` field.
    Header,
    /// The other end of the connection is on this machine.
    Connection,
    /// The thread was serving exactly one request.
    Thread,
    /// Several requests could have been the cause.
    Ambiguous,
    /// Nothing caused it, as far as can be seen.
    Root,
}

/// A thread of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thread {
    pub pid: u32,
    pub tid: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// Server exchanges open on this thread.
    open: u32,
    /// The newest of them.
    context: Option<(TraceId, SpanId, Option<bool>)>,
    /// It once had two open at a time: it multiplexes, and proves nothing.
    multiplexes: bool,
    /// A call was already put down to the newest of them.
    caused: bool,
}

/// Server exchanges of one process that have something in common.
#[derive(Clone, Copy, Debug)]
struct Alike {
    open: u32,
    /// The one that began last.
    span_id: SpanId,
    /// Others were open with it: which of them causes a call cannot be told, not even when only one is left.
    shared: bool,
}

/// Assigns contexts.
#[derive(Debug)]
pub struct Tracer {
    state: u64,
    threads: LruCache<Thread, Served, FxBuildHasher>,
    /// `traceparent` values that a process received, with the span that received them.
    incoming: LruCache<(u32, Traceparent), Alike, FxBuildHasher>,
    /// Open server exchanges by process and trace.
    by_trace: LruCache<(u32, TraceId), Alike, FxBuildHasher>,
    pub evicted: u64,
}

impl Traceparent {
    /// `None` unless the value is valid. A version above 00 may be longer, but keeps this start.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (version, rest) = value.split_at_checked(2)?;
        if !version.iter().all(|byte| is_lower_hex(*byte)) || version == b"ff" {
            return None;
        }
        let [b'-', rest @ ..] = rest else { return None };
        let (trace, rest) = rest.split_at_checked(32)?;
        let [b'-', rest @ ..] = rest else { return None };
        let (parent, rest) = rest.split_at_checked(16)?;
        let [b'-', rest @ ..] = rest else { return None };
        let (flags, rest) = rest.split_at_checked(2)?;
        if !rest.is_empty() && (version == b"00" || rest.first() != Some(&b'-')) {
            return None;
        }
        let trace_id: [u8; 16] = hex(trace)?;
        let parent_id: [u8; 8] = hex(parent)?;
        let [flags] = hex::<1>(flags)?;
        if trace_id == [0; 16] || parent_id == [0; 8] {
            return None;
        }
        Some(Self { trace_id: TraceId(trace_id), parent_id: SpanId(parent_id), sampled: flags & 1 == 1 })
    }
}

const fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let mut pairs = text.chunks_exact(2);
    for byte in &mut bytes {
        let [high, low] = pairs.next()? else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

impl Tracer {
    /// `seed` makes ids differ between runs and machines; the same seed gives the same ids.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            threads: LruCache::with_hasher(THREADS, FxBuildHasher),
            incoming: LruCache::with_hasher(INCOMING, FxBuildHasher),
            by_trace: LruCache::with_hasher(INCOMING, FxBuildHasher),
            evicted: 0,
        }
    }

    /// A context for an exchange that nothing is known of.
    pub fn root(&mut self) -> TraceContext {
        let trace_id = self.trace_id();
        TraceContext { trace_id, span_id: self.span_id(), parent: None, parent_remote: false, sampled: None }
    }

    /// A server's request. `client` is the context of the same request at the other end of the connection, when that
    /// end is on this machine, and the `traceparent` that it carried.
    pub fn server(
        &mut self,
        thread: Thread,
        carried: Option<Traceparent>,
        client: Option<TraceContext>,
    ) -> (TraceContext, Link) {
        let span_id = self.span_id();
        let (context, link) = match (carried, client) {
            // The client's span stands between the header's parent and us, or is that parent.
            (Some(carried), Some(client)) if client.trace_id == carried.trace_id => (
                TraceContext {
                    trace_id: client.trace_id,
                    span_id,
                    parent: Some(client.span_id),
                    parent_remote: true,
                    sampled: Some(carried.sampled),
                },
                Link::Header,
            ),
            (Some(carried), _) => (
                TraceContext {
                    trace_id: carried.trace_id,
                    span_id,
                    parent: Some(carried.parent_id),
                    parent_remote: true,
                    sampled: Some(carried.sampled),
                },
                Link::Header,
            ),
            (None, Some(client)) => (
                TraceContext {
                    trace_id: client.trace_id,
                    span_id,
                    parent: Some(client.span_id),
                    parent_remote: true,
                    sampled: client.sampled,
                },
                Link::Connection,
            ),
            (None, None) => {
                let trace_id = self.trace_id();
                (TraceContext { trace_id, span_id, parent: None, parent_remote: false, sampled: None }, Link::Root)
            }
        };
        self.begin(thread, carried, &context);
        (context, link)
    }

    /// A client's request.
    pub fn client(&mut self, thread: Thread, carried: Option<Traceparent>) -> (TraceContext, Link) {
        if let Some(carried) = carried {
            if let Some(received) = self.incoming.get(&(thread.pid, carried)).copied() {
                // Passed on as it came: the process added no span of its own, so ours stands between.
                let span_id = self.span_id();
                let context = TraceContext {
                    trace_id: carried.trace_id,
                    span_id,
                    parent: (!received.shared).then_some(received.span_id),
                    parent_remote: false,
                    sampled: Some(carried.sampled),
                };
                return (context, if received.shared { Link::Ambiguous } else { Link::Header });
            }
            // The process made it for this call: the id it carries is this call's, so that the server is its child.
            let serving = self.by_trace.peek(&(thread.pid, carried.trace_id));
            let parent = serving.filter(|serving| !serving.shared).map(|serving| serving.span_id);
            let context = TraceContext {
                trace_id: carried.trace_id,
                span_id: carried.parent_id,
                parent,
                parent_remote: false,
                sampled: Some(carried.sampled),
            };
            return (context, Link::Header);
        }
        let served = self.threads.get(&thread).copied().unwrap_or_default();
        match served {
            Served { open: 1, context: Some((trace_id, parent, sampled)), multiplexes: false, .. } => {
                if let Some(served) = self.threads.get_mut(&thread) {
                    served.caused = true;
                }
                let span_id = self.span_id();
                let context = TraceContext { trace_id, span_id, parent: Some(parent), parent_remote: false, sampled };
                (context, Link::Thread)
            }
            Served { open: 0, .. } => (self.root(), Link::Root),
            Served { .. } => (self.root(), Link::Ambiguous),
        }
    }

    /// A root of a server turns out to be the child of `client`: the other end of its connection was heard later, as
    /// happens when the two run on different processors. Returns the contexts of both, in one trace. `None`: calls
    /// were already put down to the server in a trace other than the client's.
    pub fn join(
        &mut self,
        thread: Thread,
        server: TraceContext,
        client: TraceContext,
    ) -> Option<(TraceContext, TraceContext)> {
        let parent = Some(client.span_id);
        if client.parent.is_none() {
            let client = TraceContext { trace_id: server.trace_id, ..client };
            return Some((TraceContext { parent, parent_remote: true, ..server }, client));
        }
        let served = self.threads.get_mut(&thread)?;
        let (_, newest, _) = served.context?;
        if served.caused || newest != server.span_id {
            return None;
        }
        served.context = Some((client.trace_id, server.span_id, client.sampled));
        self.leave_trace(thread.pid, server.trace_id);
        self.evicted += u64::from(join(&mut self.by_trace, (thread.pid, client.trace_id), server.span_id));
        let server =
            TraceContext { trace_id: client.trace_id, parent, parent_remote: true, sampled: client.sampled, ..server };
        Some((server, client))
    }

    /// A server's exchange goes on without holding the thread that took its request: that is free for others, and what
    /// it calls from here on is not known to be for this one.
    pub fn leave_thread(&mut self, thread: Thread) {
        if let Some(served) = self.threads.get_mut(&thread) {
            served.open = served.open.saturating_sub(1);
            if served.open == 0 {
                served.context = None;
            }
        }
    }

    /// A server's exchange ended; `carried` is what its request carried.
    pub fn end_server(&mut self, thread: Thread, carried: Option<Traceparent>, context: &TraceContext) {
        self.leave_thread(thread);
        self.end_left(thread.pid, carried, context);
    }

    /// A server's exchange ended that had left its thread before.
    pub fn end_left(&mut self, pid: u32, carried: Option<Traceparent>, context: &TraceContext) {
        self.leave_trace(pid, context.trace_id);
        // Remembered beyond its end: a process may answer first and pass the value on afterwards.
        if let Some(received) = carried.and_then(|carried| self.incoming.get_mut(&(pid, carried))) {
            received.open = received.open.saturating_sub(1);
        }
    }

    /// Bytes held, about.
    pub fn memory(&self) -> usize {
        self.threads.len() * 96 + self.incoming.len() * 96 + self.by_trace.len() * 80
    }

    fn leave_trace(&mut self, pid: u32, trace_id: TraceId) {
        let key = (pid, trace_id);
        if let Some(serving) = self.by_trace.get_mut(&key) {
            serving.open = serving.open.saturating_sub(1);
            if serving.open == 0 {
                self.by_trace.remove(&key);
            }
        }
    }

    fn begin(&mut self, thread: Thread, carried: Option<Traceparent>, context: &TraceContext) {
        let mut served = self.threads.get(&thread).copied().unwrap_or_default();
        served.open += 1;
        served.caused = false;
        served.multiplexes |= served.open > 1;
        served.context = Some((context.trace_id, context.span_id, context.sampled));
        self.evicted += u64::from(insert(&mut self.threads, thread, served));
        if let Some(carried) = carried {
            self.evicted += u64::from(join(&mut self.incoming, (thread.pid, carried), context.span_id));
        }
        self.evicted += u64::from(join(&mut self.by_trace, (thread.pid, context.trace_id), context.span_id));
    }

    fn trace_id(&mut self) -> TraceId {
        let (high, low) = (self.next(), self.next());
        let mut bytes = [0; 16];
        let (first, second) = bytes.split_at_mut(8);
        first.copy_from_slice(&high.to_be_bytes());
        second.copy_from_slice(&low.to_be_bytes());
        TraceId(bytes)
    }

    fn span_id(&mut self) -> SpanId {
        SpanId(self.next().to_be_bytes())
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), never 0.
    fn next(&mut self) -> u64 {
        loop {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            if mixed != 0 {
                return mixed;
            }
        }
    }
}

/// One more server exchange of that kind; true when something else had to go.
fn join<K: Eq + Hash>(table: &mut LruCache<K, Alike, FxBuildHasher>, key: K, span_id: SpanId) -> bool {
    let before = table.get(&key).copied().filter(|alike| alike.open > 0);
    let open = before.map_or(0, |alike| alike.open) + 1;
    insert(table, key, Alike { open, span_id, shared: before.is_some() })
}

/// Insert; true when something else had to go.
fn insert<K: Eq + Hash, V>(table: &mut LruCache<K, V, FxBuildHasher>, key: K, value: V) -> bool {
    let full = table.len() >= table.capacity() && !table.contains_key(&key);
    table.insert(key, value);
    full
}

#[cfg(test)]
mod tests;
