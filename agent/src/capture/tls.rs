//! TLS: sockets whose bytes are encrypted, and the plaintext streams above them.

use std::sync::Arc;

use hashlink::LruCache;
use rustc_hash::FxBuildHasher;

use super::{Capture, Counts, Output, end_open, feed, wire};
use crate::conn::{Conn, Kept, Layer};
use crate::event::{Association, Close, Data, FirstBytes, Open};
use crate::handshake::Reader;
use crate::model::{
    Backend, ConnId, Connection, Handshake, Incomplete, ProcessRef, SocketAddress, Timestamp, Transport,
};
use crate::protocol;

/// An exchange waits this long for its socket to be known.
const HOLD_NS: u64 = 2_000_000_000;
/// Records kept of a plaintext whose socket is not known: two messages, in pieces.
const KEPT: usize = 16;
/// Where the kernel begins to count the bytes of a plaintext.
const STREAM_START: u64 = 1 << 32;
/// Processes that use TLS and are kept in mind.
const PROCESSES: usize = 1_024;

/// A process that uses TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsUse {
    pub process: ProcessRef,
    pub comm: Arc<str>,
    /// Its sockets that carried TLS.
    pub sockets: u64,
    /// Of these, the ones whose plaintext a TLS library yielded. 0: a blind spot.
    pub read: u64,
    /// The library that did.
    pub backend: Option<Backend>,
    /// Of the last connection whose client named one.
    pub server_name: Option<Box<str>>,
    /// Addresses of its last connection.
    pub local: SocketAddress,
    pub remote: SocketAddress,
    pub last: Timestamp,
}

/// Who uses TLS; bounded, the one idle for longest goes first.
#[derive(Debug)]
pub(super) struct Uses(LruCache<ProcessRef, TlsUse, FxBuildHasher>);

impl Default for Uses {
    fn default() -> Self {
        Self(LruCache::with_hasher(PROCESSES, FxBuildHasher))
    }
}

impl Uses {
    pub(super) fn all(&self) -> Vec<TlsUse> {
        self.0.iter().map(|(_, known)| known.clone()).collect()
    }

    /// True: another process is forgotten for it.
    fn met(&mut self, info: &Connection) -> bool {
        let evicts = self.0.len() >= PROCESSES && !self.0.contains_key(&info.process);
        if evicts {
            // `entry` would let one more in.
            _ = self.0.remove_lru();
        }
        let known = self.0.entry(info.process).or_insert_with(|| TlsUse {
            process: info.process,
            comm: Arc::clone(&info.comm),
            sockets: 0,
            read: 0,
            backend: None,
            server_name: None,
            local: SocketAddress::Unknown,
            remote: SocketAddress::Unknown,
            last: info.first_seen,
        });
        known.sockets += 1;
        known.local = info.local.clone();
        known.remote = info.remote.clone();
        known.last = info.first_seen;
        evicts
    }

    fn named(&mut self, process: ProcessRef, facts: &Handshake) {
        if let Some(offer) = &facts.offer
            && let Some(known) = self.0.get_mut(&process)
        {
            known.server_name.clone_from(&offer.server_name);
        }
    }

    fn read(&mut self, process: ProcessRef, backend: Backend) {
        if let Some(known) = self.0.get_mut(&process) {
            known.read += 1;
            known.backend = Some(backend);
        }
    }
}

impl Capture {
    /// A socket carries TLS.
    pub(super) fn on_tls_socket(&mut self, open: &Open, comm: Arc<str>, out: &mut Vec<Output>) {
        let info = Arc::new(Connection {
            id: open.conn,
            transport: open.transport,
            local: open.local.clone(),
            remote: open.remote.clone(),
            backend: open.backend,
            tls: Some(Arc::default()),
            process: open.process,
            comm,
            cgroup: open.cgroup,
            uid: open.uid,
            netns: open.netns,
            first_seen: open.time,
        });
        if self.table.describe(open.conn, &info).is_none() {
            self.counts.tls_sockets += 1;
            self.counts.tls_processes_evicted += u64::from(self.uses.met(&info));
            let layer =
                Layer::Socket { handshake: Box::new(Reader::default()), stream: None, supposed: None, read: false };
            self.insert(info, None, layer, false, out);
        }
    }

    /// A TLS library yields plaintext, or its socket became known.
    pub(super) fn on_stream(&mut self, open: &Open, comm: &Arc<str>, out: &mut Vec<Output>) {
        let is_http = matches!(open.protocol, FirstBytes::Http1 | FirstBytes::Http2 | FirstBytes::Unknown);
        let bound = open.socket.filter(|_| open.association != Association::None);
        if let Some(supposed) = open.socket.filter(|_| bound.is_none()) {
            self.suppose(open.conn, supposed);
        }
        let below = bound.and_then(|socket| self.table.get(socket));
        let known = below.is_some();
        let info = Arc::new(Connection {
            id: open.conn,
            transport: below.map_or(Transport::Tcp, |below| below.info.transport),
            local: below.map_or(SocketAddress::Unknown, |below| below.info.local.clone()),
            remote: below.map_or(SocketAddress::Unknown, |below| below.info.remote.clone()),
            backend: open.backend,
            tls: Some(below.map_or_else(Arc::default, facts)),
            process: open.process,
            comm: Arc::clone(comm),
            cgroup: open.cgroup,
            uid: open.uid,
            netns: below.map_or(0, |below| below.info.netns),
            first_seen: open.time,
        });
        let mut before = None;
        if let Some(socket) = bound
            && let Some(below) = self.table.touch(socket)
            && let Layer::Socket { stream, supposed, read, .. } = &mut below.layer
        {
            if is_http {
                *stream = Some(open.conn);
                before = supposed.take().filter(|id| *id != open.conn);
            }
            if !std::mem::replace(read, true) {
                let process = below.info.process;
                self.uses.read(process, open.backend);
            }
        }
        if !is_http {
            return;
        }
        self.announce(open.process, comm, open.cgroup, None, out);
        if self.table.describe(open.conn, &info).is_none() {
            let parser = protocol::start(wire(open.protocol), open.joined, self.settings.limits);
            // A socket whose description was lost is as good as none: its peer is not known.
            let layer = Layer::stream(bound.filter(|_| known), open.time);
            self.insert(info, Some(parser), layer, false, out);
        } else if known
            && let Some(conn) = self.table.touch(open.conn)
            && let Layer::Stream { socket, records, .. } = &mut conn.layer
        {
            *socket = bound;
            let records = records.take();
            match before.zip(records) {
                Some((before, records)) => self.join_moved(before, open.conn, &info, &records, out),
                None => release(conn, &mut self.counts, out),
            }
        }
    }

    /// A plaintext may belong to a socket: one observation spoke for it.
    fn suppose(&mut self, stream: ConnId, socket: ConnId) {
        if let Some(below) = self.table.get_mut(socket)
            && let Layer::Socket { stream: None, supposed, .. } = &mut below.layer
        {
            *supposed = Some(stream);
        }
    }

    /// An object that is moved in memory (rustls' are values) has another address, and its plaintext goes on as another
    /// stream. That both have one socket proves it: `now` is read again behind `before`, whose socket was only supposed.
    fn join_moved(
        &mut self,
        before: ConnId,
        now: ConnId,
        info: &Arc<Connection>,
        records: &[Kept],
        out: &mut Vec<Output>,
    ) {
        let is_unbound = |conn: &Conn| matches!(conn.layer, Layer::Stream { socket: None, .. });
        let first = records.first().map_or(info.first_seen, |kept| kept.time);
        let joined = self
            .table
            .get(before)
            .is_some_and(|conn| is_unbound(conn) && conn.info.process == info.process && conn.last <= first);
        let Some(mut conn) = joined.then(|| self.table.remove(before)).flatten() else {
            if let Some(conn) = self.table.touch(now) {
                release(conn, &mut self.counts, out);
            }
            return;
        };
        let Some(apart) = self.table.remove(now) else { return };
        for open in &apart.open {
            end_open(&mut self.tracer, open);
        }
        for (shift, stream) in conn.shift.iter_mut().zip([conn.receive, conn.send]) {
            if let Some(seq) = stream.seq {
                shift.seq = seq;
                shift.position = stream.end.wrapping_sub(STREAM_START);
            }
        }
        let held = match apart.layer {
            Layer::Stream { socket, since, .. } => Layer::Stream { socket, held: Vec::new(), since, records: None },
            other => other,
        };
        if let Layer::Stream { held, .. } = std::mem::replace(&mut conn.layer, held)
            && let Layer::Stream { held: kept, .. } = &mut conn.layer
        {
            *kept = held;
        }
        conn.info = Arc::clone(info);
        release(&mut conn, &mut self.counts, out);
        self.table.insert(now, conn);
        for kept in records {
            let data = kept.data(now);
            let Self { table, counts, events, .. } = self;
            let Some(conn) = table.touch(now) else { return };
            conn.last = data.time;
            feed(conn, &data, counts, events);
            self.on_fed(now, data.len, out);
        }
    }

    /// Bytes of a socket that carries TLS: its handshake. False: it is another kind of connection.
    pub(super) fn on_handshake(&mut self, data: &Data<'_>) -> bool {
        let Some(conn) = self.table.touch(data.conn) else { return false };
        match &conn.layer {
            Layer::Plain => return false,
            Layer::Stream { socket, .. } => {
                // Used as long as the plaintext above it is.
                if let Some(socket) = *socket {
                    _ = self.table.touch(socket);
                }
                return false;
            }
            Layer::Socket { .. } => {}
        }
        let end = conn.stream(data.direction).end;
        let gap = end != 0 && data.position != end;
        conn.stream(data.direction).end = data.position.wrapping_add(u64::from(data.len));
        conn.last = data.time;
        let process = conn.info.process;
        let Layer::Socket { handshake, stream, .. } = &mut conn.layer else { return true };
        if handshake.is_done() {
            return true;
        }
        if gap {
            handshake.on_gap(data.direction);
        }
        handshake.on_bytes(data.direction, data.head);
        if (data.head.len() as u64) < u64::from(data.len) {
            handshake.on_gap(data.direction);
        }
        self.uses.named(process, handshake.facts());
        // The plaintext came before the end of the handshake: data sent early, or records out of order.
        if let Some(stream) = *stream {
            let facts = Arc::new(handshake.facts().clone());
            if let Some(above) = self.table.get(stream) {
                let info = Arc::new(Connection { tls: Some(facts), ..(*above.info).clone() });
                _ = self.table.describe(stream, &info);
            }
        }
        true
    }

    /// The plaintext stream that ends with this socket.
    pub(super) fn on_tls_close(&mut self, close: &Close) -> Option<ConnId> {
        let conn = self.table.get(close.conn)?;
        let Layer::Socket { stream, read, .. } = &conn.layer else { return None };
        let gone = close.reset || ((conn.receive.closed || close.receive) && (conn.send.closed || close.send));
        if gone && !read {
            self.counts.tls_unread += 1;
        }
        *stream
    }
}

impl Kept {
    fn data(&self, conn: ConnId) -> Data<'_> {
        Data {
            conn,
            time: self.time,
            backend: self.backend,
            pid: self.pid,
            tid: self.tid,
            direction: self.direction,
            seq: self.seq,
            position: self.position,
            len: self.len,
            head: &self.head,
            tail: &self.tail,
            opaque: false,
            unreadable: false,
            frame: self.frame,
        }
    }
}

/// Keep the records of plaintext whose socket is not known, while they are few.
pub(super) fn keep(conn: &mut Conn, data: &Data<'_>) {
    let Layer::Stream { socket: None, records, .. } = &mut conn.layer else { return };
    let Some(kept) = records else { return };
    if kept.len() >= KEPT {
        *records = None;
        return;
    }
    kept.push(Kept {
        time: data.time,
        backend: data.backend,
        pid: data.pid,
        tid: data.tid,
        direction: data.direction,
        seq: data.seq,
        position: data.position,
        len: data.len,
        head: data.head.into(),
        tail: data.tail.into(),
        frame: data.frame,
    });
}

/// What is known of the handshake on a socket.
fn facts(socket: &Conn) -> Arc<Handshake> {
    match &socket.layer {
        Layer::Socket { handshake, .. } => Arc::new(handshake.facts().clone()),
        Layer::Plain | Layer::Stream { .. } => Arc::default(),
    }
}

/// The socket of held exchanges will not become known any more. Records kept for it go with the wait.
pub(super) fn held_too_long(conn: &mut Conn, now: Timestamp) -> bool {
    if let Layer::Stream { socket: None, records, .. } = &mut conn.layer
        && now.since(conn.info.first_seen) > HOLD_NS
    {
        *records = None;
    }
    matches!(&conn.layer, Layer::Stream { held, since, .. } if !held.is_empty() && now.since(*since) > HOLD_NS)
}

/// Put out the exchanges that waited for their socket; without one they say so.
pub(super) fn release(conn: &mut Conn, counts: &mut Counts, out: &mut Vec<Output>) {
    let Layer::Stream { socket, held, .. } = &mut conn.layer else { return };
    for mut exchange in held.drain(..) {
        exchange.connection = Arc::clone(&conn.info);
        if socket.is_none() {
            counts.peer_unknown += 1;
            if exchange.incomplete.is_none() {
                exchange.incomplete = Some(Incomplete::PeerUnknown);
                counts.note(Incomplete::PeerUnknown);
            }
        }
        out.push(Output::Exchange(exchange));
    }
}
