//! The first half of the core: kernel events and time in, exchanges out. Pure and synchronous; never panics on any
//! input; every table is bounded, and what does not fit is counted.

mod http3;
mod tls;

use std::sync::Arc;

use hashlink::LruCache;
use rustc_hash::{FxBuildHasher, FxHashMap};

pub use self::http3::Http3Use;
pub use self::tls::TlsUse;
use self::tls::{Uses, held_too_long, release};
use crate::conn::{Conn, Layer, OpenExchange, Stream, Table};
use crate::event::{Close, Comm, Data, Exec, FirstBytes, KernelEvent, Open};
use crate::model::{
    ConnId, Connection, Direction, Exchange, Incomplete, ProcessRef, Role, SocketAddress, Timestamp, TraceContext,
    Transport,
};
use crate::protocol::{self, Done, End, Event, Limits, Operation, RequestHead, Segment, Wire};
use crate::trace::{Link, Thread, Traceparent, Tracer};

/// Processes of which the assess half was told.
const ANNOUNCED: usize = 16_384;
/// Command names shared; a machine has a few hundred.
const COMMS: usize = 4_096;
/// Bytes that a parser may make nothing of before its connection is taken for something else.
const FRUITLESS: u64 = 256 * 1024;

/// What the core is told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub limits: Limits,
    /// Connections followed at most.
    pub max_connections: usize,
    /// Makes trace ids differ between runs.
    pub seed: u64,
    /// A connection without records for this long, and without an open exchange, is forgotten.
    pub idle_timeout_ns: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { limits: Limits::default(), max_connections: 65_536, seed: 0, idle_timeout_ns: 3_600_000_000_000 }
    }
}

/// What leaves the core.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// A process appeared, or began a new program: its facts are wanted.
    Process(ProcessSeen),
    Exchange(Box<Exchange>),
    /// An exchange that is still open, as it stands. Its end comes as [`Output::Exchange`].
    Progress(Box<Exchange>),
    /// The process exports OTLP spans itself.
    SelfInstrumented(ProcessRef),
}

impl Output {
    /// The exchange, over or not.
    pub fn exchange(&self) -> Option<&Exchange> {
        match self {
            Self::Exchange(exchange) | Self::Progress(exchange) => Some(exchange),
            Self::Process(_) | Self::SelfInstrumented(_) => None,
        }
    }

    pub fn exchange_mut(&mut self) -> Option<&mut Exchange> {
        match self {
            Self::Exchange(exchange) | Self::Progress(exchange) => Some(exchange),
            Self::Process(_) | Self::SelfInstrumented(_) => None,
        }
    }
}

/// A process as the kernel told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSeen {
    pub process: ProcessRef,
    pub comm: Arc<str>,
    /// Inode of the cgroup v2 directory; 0 when not known.
    pub cgroup: u64,
    /// As given to `execve`, when the start of the program was seen.
    pub filename: Option<Arc<str>>,
}

/// What happened, in numbers since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Exchanges put out.
    pub exchanges: u64,
    /// Of these, incomplete ones by [`Incomplete::ALL`].
    pub incomplete: [u64; Incomplete::ALL.len()],
    /// Exchanges put out without their request.
    pub without_request: u64,
    /// Kernel records that did not arrive, or too late, by their sequence numbers.
    pub records_lost: u64,
    /// Bytes of followed connections that went by unseen, by their positions.
    pub gap_bytes: u64,
    /// Records that came late or overlap what was seen: two threads used one direction at once.
    pub overlaps: u64,
    /// Connections whose description was lost.
    pub orphans: u64,
    pub connections: u64,
    pub connections_evicted: u64,
    /// Exchanges cut short by that.
    pub exchanges_evicted: u64,
    /// Connections whose bytes were not HTTP after all.
    pub not_http: u64,
    /// Sockets that carry TLS.
    pub tls_sockets: u64,
    /// Of these, the ones that ended without a TLS library having yielded their plaintext.
    pub tls_unread: u64,
    /// Processes that use TLS and went from the list for others.
    pub tls_processes_evicted: u64,
    /// The same of the list of processes that use HTTP/3.
    pub http3_processes_evicted: u64,
    /// Exchanges whose socket was not found in time.
    pub peer_unknown: u64,
    /// Exchanges put out by how they were linked.
    pub linked_header: u64,
    pub linked_connection: u64,
    pub linked_thread: u64,
    pub linked_ambiguous: u64,
    pub roots: u64,
    /// Entries given up by the tracer's tables.
    pub tracer_evicted: u64,
}

impl Counts {
    fn note(&mut self, reason: Incomplete) {
        if let Some(at) = Incomplete::ALL.iter().position(|known| *known == reason)
            && let Some(count) = self.incomplete.get_mut(at)
        {
            *count += 1;
        }
    }
}

/// The core.
pub struct Capture {
    settings: Settings,
    table: Table,
    tracer: Tracer,
    announced: LruCache<ProcessRef, (), FxBuildHasher>,
    comms: FxHashMap<Comm, Arc<str>>,
    uses: Uses,
    http3: http3::Uses,
    counts: Counts,
    /// Kept to save their allocations.
    events: Vec<Event>,
    heads: Vec<u64>,
    memory: usize,
}

impl Capture {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            table: Table::new(settings.max_connections),
            tracer: Tracer::new(settings.seed),
            announced: LruCache::with_hasher(ANNOUNCED, FxBuildHasher),
            comms: FxHashMap::default(),
            uses: Uses::default(),
            http3: http3::Uses::default(),
            counts: Counts::default(),
            events: Vec::new(),
            heads: Vec::new(),
            memory: 0,
        }
    }

    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Connections followed now.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Bytes held, about, as of the last tick.
    pub const fn memory(&self) -> usize {
        self.memory
    }

    /// Processes that use TLS, and whether their plaintext is read.
    pub fn tls_uses(&self) -> Vec<TlsUse> {
        self.uses.all()
    }

    /// Processes that speak QUIC or offer HTTP/3.
    pub fn http3_uses(&self) -> Vec<Http3Use> {
        self.http3.all()
    }

    /// Take one record.
    pub fn on_event(&mut self, event: KernelEvent<'_>, out: &mut Vec<Output>) {
        match event {
            KernelEvent::Data(data) => self.on_data(&data, out),
            KernelEvent::Open(open) => self.on_open(open, out),
            KernelEvent::Close(close) => self.on_close(&close, out),
            KernelEvent::Exec(exec) => self.on_exec(exec, out),
        }
    }

    /// Give up what waited too long. Called about once a second.
    pub fn on_tick(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let Self { table, tracer, http3, counts, events, .. } = self;
        let mut memory = 0;
        for (_, conn) in table.iter_mut() {
            if let Some(parser) = &mut conn.parser {
                parser.on_tick(now, events);
            }
            if !events.is_empty() {
                settle(conn, None, tracer, http3, counts, events, out);
            }
            if held_too_long(conn, now) {
                release(conn, counts, out);
            }
            memory += conn.memory();
        }
        while let Some(last) = self.table.oldest() {
            let idle = now.since(last) > self.settings.idle_timeout_ns;
            if !idle || !self.evict_oldest(out) {
                break;
            }
        }
        self.memory = memory + self.tracer.memory() + self.announced.len() * 64 + self.comms.len() * 96;
        self.counts.tracer_evicted = self.tracer.evicted;
        self.counts.http3_processes_evicted = self.http3.evicted();
    }

    /// Give memory back until about `target` bytes are held: the connections idle for longest go. With 0, all; their
    /// open exchanges are put out as they stand.
    pub fn shrink(&mut self, target: usize, out: &mut Vec<Output>) {
        let mut memory: usize = self.table.iter().map(|(_, conn)| conn.memory()).sum();
        while memory > target {
            let Some((_, conn)) = self.table.pop_oldest() else { break };
            memory = memory.saturating_sub(conn.memory());
            self.give_up(conn, out);
        }
        self.memory = memory;
    }

    /// Drop a connection without a word: its parser cannot be trusted any more.
    pub fn forget(&mut self, id: ConnId) {
        self.events.clear();
        if let Some(conn) = self.table.remove(id) {
            self.counts.exchanges_evicted += (conn.open.len() + conn.held()) as u64;
            for open in &conn.open {
                end_open(&mut self.tracer, open);
            }
        }
    }

    /// Tell of every process again when it is next seen: what was told got lost.
    pub fn announce_again(&mut self) {
        self.announced.clear();
    }

    fn on_open(&mut self, open: Open, out: &mut Vec<Output>) {
        let comm = self.comm(open.comm);
        if !open.backend.is_socket() {
            self.on_stream(&open, &comm, out);
            return;
        }
        match open.protocol {
            FirstBytes::Http1 | FirstBytes::Http2 | FirstBytes::Unknown | FirstBytes::Tls => {}
            FirstBytes::Quic => return self.http3.met(&open, &comm),
            FirstBytes::Other => return,
        }
        self.announce(open.process, &comm, open.cgroup, None, out);
        if open.protocol == FirstBytes::Tls {
            self.on_tls_socket(&open, comm, out);
            return;
        }
        let info = Arc::new(Connection {
            id: open.conn,
            transport: open.transport,
            local: open.local,
            remote: open.remote,
            backend: open.backend,
            tls: None,
            process: open.process,
            comm,
            cgroup: open.cgroup,
            uid: open.uid,
            netns: open.netns,
            first_seen: open.time,
        });
        if self.table.describe(open.conn, &info).is_none() {
            let parser = protocol::start(wire(open.protocol), open.joined, self.settings.limits);
            self.insert(info, Some(parser), Layer::Plain, false, out);
        }
    }

    fn on_data(&mut self, data: &Data<'_>, out: &mut Vec<Output>) {
        if self.table.touch(data.conn).is_none() {
            self.counts.orphans += 1;
            let info = Arc::new(Connection {
                id: data.conn,
                transport: Transport::Tcp,
                local: SocketAddress::Unknown,
                remote: SocketAddress::Unknown,
                backend: data.backend,
                tls: (!data.backend.is_socket()).then(Arc::default),
                process: ProcessRef { pid: data.pid, start_ns: 0 },
                comm: self.comm(Comm::default()),
                cgroup: 0,
                uid: 0,
                netns: 0,
                first_seen: data.time,
            });
            let wire = if data.frame { Wire::Http2 } else { Wire::Http1 };
            let parser = protocol::start(wire, true, self.settings.limits);
            let layer = if data.backend.is_socket() { Layer::Plain } else { Layer::stream(None, data.time) };
            self.insert(info, Some(parser), layer, true, out);
        }
        if self.on_handshake(data) {
            return;
        }
        let Self { table, counts, events, .. } = self;
        let Some(conn) = table.touch(data.conn) else { return };
        conn.last = data.time;
        tls::keep(conn, data);
        feed(conn, data, counts, events);
        self.on_fed(data.conn, data.len, out);
    }

    /// What came of a record's bytes.
    fn on_fed(&mut self, id: ConnId, len: u32, out: &mut Vec<Output>) {
        let Self { table, tracer, http3, counts, events, heads, .. } = self;
        let Some(conn) = table.touch(id) else { return };
        if events.is_empty() {
            conn.fruitless = conn.fruitless.saturating_add(u64::from(len));
            if conn.fruitless > FRUITLESS && conn.open.is_empty() && conn.parser.as_ref().is_some_and(|p| p.is_idle()) {
                conn.parser = None;
                counts.not_http += 1;
            }
            return;
        }
        conn.fruitless = 0;
        let mirror = mirror_requests(table, id, events);
        if let Some(conn) = table.touch(id) {
            if mirror.is_none() {
                heads.extend(events.iter().filter_map(Event::request));
            }
            settle(conn, mirror.as_deref(), tracer, http3, counts, events, out);
            for exchange in heads.drain(..) {
                join_late(table, id, exchange, tracer);
            }
        }
    }

    fn on_close(&mut self, close: &Close, out: &mut Vec<Output>) {
        if let Some(stream) = self.on_tls_close(close) {
            self.end(&Close { conn: stream, ..*close }, out);
        }
        self.end(close, out);
    }

    /// One or both directions of a connection ended.
    fn end(&mut self, close: &Close, out: &mut Vec<Output>) {
        let Self { table, tracer, http3, counts, events, .. } = self;
        let Some(conn) = table.touch(close.conn) else { return };
        conn.last = close.time;
        conn.receive.closed |= close.receive;
        conn.send.closed |= close.send;
        let gone = close.reset || (conn.receive.closed && conn.send.closed);
        if let Some(parser) = &mut conn.parser {
            if close.reset {
                parser.on_end(End::Reset, close.time, events);
            } else if gone {
                parser.on_end(End::Closed, close.time, events);
            } else if close.receive {
                parser.on_end(End::Direction(Direction::Receive), close.time, events);
            } else if close.send {
                parser.on_end(End::Direction(Direction::Send), close.time, events);
            }
        }
        settle(conn, None, tracer, http3, counts, events, out);
        if gone {
            release(conn, counts, out);
            self.table.remove(close.conn);
        }
    }

    fn on_exec(&mut self, exec: Exec, out: &mut Vec<Output>) {
        let comm = self.comm(exec.comm);
        self.announced.remove(&exec.process);
        self.announce(exec.process, &comm, exec.cgroup, Some(Arc::from(exec.filename)), out);
    }

    fn announce(
        &mut self,
        process: ProcessRef,
        comm: &Arc<str>,
        cgroup: u64,
        filename: Option<Arc<str>>,
        out: &mut Vec<Output>,
    ) {
        if self.announced.insert(process, ()).is_none() {
            out.push(Output::Process(ProcessSeen { process, comm: Arc::clone(comm), cgroup, filename }));
        }
    }

    fn comm(&mut self, comm: Comm) -> Arc<str> {
        if let Some(known) = self.comms.get(&comm) {
            return Arc::clone(known);
        }
        if self.comms.len() >= COMMS {
            self.comms.clear();
        }
        let text: Arc<str> = comm.to_text().into();
        self.comms.insert(comm, Arc::clone(&text));
        text
    }

    /// `orphan`: its description was lost.
    fn insert(
        &mut self,
        info: Arc<Connection>,
        parser: Option<Box<dyn protocol::Protocol>>,
        layer: Layer,
        orphan: bool,
        out: &mut Vec<Output>,
    ) {
        while self.table.is_full() && self.evict_oldest(out) {}
        self.counts.connections += 1;
        let (id, last) = (info.id, info.first_seen);
        self.table.insert(
            id,
            Conn {
                info,
                parser,
                receive: Stream::default(),
                send: Stream::default(),
                open: Vec::new(),
                fruitless: 0,
                offer_sought: false,
                last,
                orphan,
                layer,
                shift: Default::default(),
            },
        );
    }

    fn evict_oldest(&mut self, out: &mut Vec<Output>) -> bool {
        let Some((_, conn)) = self.table.pop_oldest() else { return false };
        self.give_up(conn, out);
        true
    }

    /// A connection leaves the table early: its open exchanges are put out as they stand.
    fn give_up(&mut self, mut conn: Conn, out: &mut Vec<Output>) {
        self.counts.connections_evicted += 1;
        self.counts.exchanges_evicted += conn.open.len() as u64;
        let last = conn.last;
        if let Some(parser) = &mut conn.parser {
            parser.on_end(End::Closed, last, &mut self.events);
        }
        for event in &mut self.events {
            if let Event::Done(done) = event {
                done.incomplete.get_or_insert(Incomplete::Abandoned);
            }
        }
        settle(&mut conn, None, &mut self.tracer, &mut self.http3, &mut self.counts, &mut self.events, out);
        release(&mut conn, &mut self.counts, out);
        for open in &conn.open {
            end_open(&mut self.tracer, open);
        }
    }
}

/// What reads a connection that begins like that.
fn wire(first: FirstBytes) -> Wire {
    if first == FirstBytes::Http2 { Wire::Http2 } else { Wire::Http1 }
}

/// Give one record's bytes to the parser, with what is missing before them as a gap.
fn feed(conn: &mut Conn, data: &Data<'_>, counts: &mut Counts, events: &mut Vec<Event>) {
    let shift = conn.shift[usize::from(data.direction == Direction::Send)];
    let data =
        &Data { seq: data.seq.wrapping_add(shift.seq), position: data.position.wrapping_add(shift.position), ..*data };
    if conn.orphan && conn.receive.seq.is_none() && conn.send.seq.is_none() {
        // Numbers count from the first record: one that begins with 0 lost its description and nothing else.
        conn.orphan = data.seq != 0;
        conn.stream(data.direction).seq = Some(data.seq);
        conn.stream(data.direction).end = data.position;
    }
    let orphan = conn.orphan;
    let stream = conn.stream(data.direction);
    let first = stream.seq.is_none();
    let missing = data.seq.wrapping_sub(stream.seq.unwrap_or_default());
    // A number below the expected one is two threads in one direction, not four thousand million lost records.
    if missing > u32::MAX / 2 && !(orphan && first) {
        // Its bytes were taken for a gap when its successor came.
        counts.overlaps += 1;
        return;
    }
    stream.seq = Some(data.seq.wrapping_add(1));
    let expected = if first { data.position } else { stream.end };
    stream.end = data.position.wrapping_add(u64::from(data.len));
    let Some(parser) = &mut conn.parser else { return };
    if missing > 0 {
        if !(orphan && first) {
            counts.records_lost += u64::from(missing);
        }
        // Where the position tells how much is missing, it is a gap like any other.
        if first || data.position <= expected {
            parser.on_loss(data.time, events);
        }
    }
    let operation = Operation { time: data.time, pid: data.pid, tid: data.tid };
    let direction = data.direction;
    if let Some(ahead) = data.position.checked_sub(expected) {
        if ahead > 0 {
            counts.gap_bytes = counts.gap_bytes.saturating_add(ahead);
            parser.on_segment(direction, expected, Segment::Gap(ahead), operation, events);
        }
    } else {
        counts.overlaps += 1;
        parser.on_loss(data.time, events);
    }
    let mut position = data.position;
    if data.frame {
        parser.on_boundary(direction);
    }
    if !data.head.is_empty() {
        parser.on_segment(direction, position, Segment::Bytes(data.head), operation, events);
        position = position.wrapping_add(data.head.len() as u64);
    }
    let skipped = u64::from(data.len).saturating_sub((data.head.len() + data.tail.len()) as u64);
    if skipped > 0 {
        counts.gap_bytes = counts.gap_bytes.saturating_add(skipped);
        parser.on_segment(direction, position, Segment::Gap(skipped), operation, events);
        position = position.wrapping_add(skipped);
    }
    if !data.tail.is_empty() {
        parser.on_segment(direction, position, Segment::Bytes(data.tail), operation, events);
    }
}

/// The other end's open client exchanges, when these events hold a server's request and that end is on this machine.
fn mirror_requests(table: &Table, id: ConnId, events: &[Event]) -> Option<Vec<OpenExchange>> {
    let wanted =
        events.iter().any(|event| matches!(event, Event::RequestHead(head) if role_of(head.direction) == Role::Server));
    if !wanted {
        return None;
    }
    let conn = table.get(id)?;
    let mirror = table.get(table.mirror_of(&conn.info)?)?;
    Some(mirror.open.iter().filter(|open| open.role == Role::Client).copied().collect())
}

/// A client's request just began: the server that it goes to may have been heard before, and taken for a root.
fn join_late(table: &mut Table, id: ConnId, exchange: u64, tracer: &mut Tracer) {
    let Some(conn) = table.get(id) else { return };
    let is_it = |open: &&OpenExchange| open.key == exchange && open.role == Role::Client && open.carried.is_none();
    let Some(client) = conn.open.iter().rev().find(is_it) else { return };
    let (position, context) = (client.position, client.context);
    let Some(mirror) = table.mirror_of(&conn.info) else { return };
    let Some(end) = table.touch(mirror) else { return };
    let Some(server) = end.open.iter_mut().find(|open| {
        open.role == Role::Server && open.link == Link::Root && open.carried.is_none() && open.position == position
    }) else {
        return;
    };
    let Some((server_context, client_context)) = tracer.join(server.thread, server.context, context) else { return };
    server.context = server_context;
    server.link = Link::Connection;
    let open = table.touch(id).and_then(|conn| conn.open.iter_mut().rev().find(|open| open.key == exchange));
    if let Some(client) = open {
        client.context = client_context;
    }
}

const fn role_of(request_direction: Direction) -> Role {
    match request_direction {
        Direction::Receive => Role::Server,
        Direction::Send => Role::Client,
    }
}

/// Turn the parser's events into outputs.
fn settle(
    conn: &mut Conn,
    mirror: Option<&[OpenExchange]>,
    tracer: &mut Tracer,
    http3: &mut http3::Uses,
    counts: &mut Counts,
    events: &mut Vec<Event>,
    out: &mut Vec<Output>,
) {
    for event in events.drain(..) {
        match event {
            Event::RequestHead(head) => on_request(conn, &head, mirror, tracer, out),
            Event::Progress(done) => {
                // Before its socket is known nobody can say whose it is; without its request it has no identity yet.
                let known = !matches!(conn.layer, Layer::Stream { socket: None, .. });
                let Some(open) = conn.open.iter_mut().find(|open| open.key == done.exchange) else { continue };
                if done.response.is_some() && open.role == Role::Server && !open.left_thread {
                    open.left_thread = true;
                    tracer.leave_thread(open.thread);
                }
                let context = open.context;
                if known {
                    out.push(Output::Progress(Box::new(exchange(conn, *done, context))));
                }
            }
            Event::Done(done) => {
                let context = closed(conn, &done, tracer, counts);
                let exchange = Box::new(exchange(conn, *done, context));
                // A server says the same with each response: once a connection is enough.
                if !conn.offer_sought && exchange.response.is_some() {
                    conn.offer_sought = true;
                    http3.look(&exchange);
                }
                if let Some(exchange) = conn.hold(exchange) {
                    out.push(Output::Exchange(exchange));
                }
            }
        }
    }
}

fn on_request(
    conn: &mut Conn,
    head: &RequestHead,
    mirror: Option<&[OpenExchange]>,
    tracer: &mut Tracer,
    out: &mut Vec<Output>,
) {
    let role = role_of(head.direction);
    let thread = Thread { pid: head.operation.pid, tid: head.operation.tid };
    let carried = head.traceparent.as_ref().and_then(|value| Traceparent::parse(value));
    let position = head.position as u32;
    let (context, link) = match role {
        Role::Server => {
            let client =
                mirror.and_then(|open| open.iter().find(|open| open.position == position)).map(|open| open.context);
            tracer.server(thread, carried, client)
        }
        Role::Client => tracer.client(thread, carried),
    };
    let key = head.exchange;
    conn.open.push(OpenExchange { key, position, role, thread, context, carried, link, left_thread: false });
    if head.exports_otlp && role == Role::Client {
        out.push(Output::SelfInstrumented(conn.info.process));
    }
}

/// Count an exchange that is over, and end its part in the trace.
fn closed(conn: &mut Conn, done: &Done, tracer: &mut Tracer, counts: &mut Counts) -> TraceContext {
    let open = conn.open.iter().position(|open| open.key == done.exchange).map(|at| conn.open.remove(at));
    let (context, link) = if let Some(open) = &open {
        end_open(tracer, open);
        (open.context, open.link)
    } else {
        (tracer.root(), Link::Root)
    };
    match link {
        Link::Header => counts.linked_header += 1,
        Link::Connection => counts.linked_connection += 1,
        Link::Thread => counts.linked_thread += 1,
        Link::Ambiguous => counts.linked_ambiguous += 1,
        Link::Root => counts.roots += 1,
    }
    counts.exchanges += 1;
    counts.without_request += u64::from(done.request.is_none());
    if let Some(reason) = done.incomplete {
        counts.note(reason);
    }
    context
}

fn exchange(conn: &Conn, done: Done, trace: TraceContext) -> Exchange {
    Exchange {
        connection: Arc::clone(&conn.info),
        role: role_of(done.request_direction),
        version: done.version,
        request: done.request,
        response: done.response,
        timing: done.timing,
        outcome: done.outcome,
        incomplete: done.incomplete,
        pid: done.operation.pid,
        tid: done.operation.tid,
        trace,
    }
}

fn end_open(tracer: &mut Tracer, open: &OpenExchange) {
    if open.role == Role::Server {
        if open.left_thread {
            tracer.end_left(open.thread.pid, open.carried, &open.context);
        } else {
            tracer.end_server(open.thread, open.carried, &open.context);
        }
    }
}

#[cfg(test)]
mod tests;
