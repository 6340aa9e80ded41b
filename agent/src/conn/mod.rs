//! The connection table: one owner, bounded, the one idle for longest goes first.

use std::net::SocketAddr;
use std::sync::Arc;

use hashlink::LinkedHashMap;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::handshake;
use crate::model::{Backend, ConnId, Connection, Direction, Exchange, Role, SocketAddress, Timestamp, TraceContext};
use crate::protocol::Protocol;
use crate::trace::{Link, Thread, Traceparent};

/// Exchanges of one connection that wait at most.
const HELD: usize = 64;
/// What an exchange that waits takes, about: its heads.
const EXCHANGE_BYTES: usize = 4 * 1024;

/// A record of plaintext that is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    pub time: Timestamp,
    pub backend: Backend,
    pub pid: u32,
    pub tid: u32,
    pub direction: Direction,
    pub seq: u32,
    pub position: u64,
    pub len: u32,
    pub head: Box<[u8]>,
    pub tail: Box<[u8]>,
    pub frame: bool,
}

/// One connection that is followed.
pub struct Conn {
    pub info: Arc<Connection>,
    /// `None`: its bytes turned out not to be a protocol we know.
    pub parser: Option<Box<dyn Protocol>>,
    pub receive: Stream,
    pub send: Stream,
    /// Exchanges whose request was seen and that are not done, oldest first.
    pub open: Vec<OpenExchange>,
    /// Bytes since the parser last made anything of them.
    pub fruitless: u64,
    /// A response of its server was looked at for an offer of HTTP/3.
    pub offer_sought: bool,
    pub last: Timestamp,
    /// Its description was lost, or it was evicted: how many records came before is not known.
    pub orphan: bool,
    pub layer: Layer,
    /// What the records of a direction (receive, send) are behind those of the object that this one was before.
    pub shift: [Shift; 2],
}

/// A count of records and bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shift {
    pub seq: u32,
    pub position: u64,
}

/// Where a connection stands to TLS.
#[derive(Debug, Default)]
pub enum Layer {
    /// What the socket moves is what the application said.
    #[default]
    Plain,
    /// A socket that carries TLS: its handshake is read, and it has no parser.
    Socket {
        handshake: Box<handshake::Reader>,
        /// The plaintext above it, when that is HTTP.
        stream: Option<ConnId>,
        /// A plaintext that may be.
        supposed: Option<ConnId>,
        /// A TLS library was seen to yield its plaintext, whatever that is.
        read: bool,
    },
    /// The plaintext side of a TLS connection.
    Stream {
        /// The socket below, if it is known.
        socket: Option<ConnId>,
        /// Exchanges that wait for it to be known, and since when.
        held: Vec<Box<Exchange>>,
        since: Timestamp,
        /// Records until it is known, to be read again behind those of an object that moved; `None`: too many.
        records: Option<Vec<Kept>>,
    },
}

/// One direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream {
    /// Expected number of the next record; `None` before the first.
    pub seq: Option<u32>,
    /// Position behind the last byte.
    pub end: u64,
    /// It ended.
    pub closed: bool,
}

/// What is kept of an exchange between its request's head and its end.
#[derive(Clone, Copy, Debug)]
pub struct OpenExchange {
    pub key: u64,
    /// Where its request began, modulo 2^32: the sequence number, which both ends share.
    pub position: u32,
    pub role: Role,
    pub thread: Thread,
    pub context: TraceContext,
    pub carried: Option<Traceparent>,
    pub link: Link,
    /// Its response is a stream that goes on: it does not hold its thread any more.
    pub left_thread: bool,
}

/// What tells the two ends of a connection apart from all others: the addresses, seen from one end.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Pair {
    local: SocketAddr,
    remote: SocketAddr,
    /// Loopback addresses repeat in every network namespace, and do not leave it. 0 for all others, whose two ends may
    /// be in different ones.
    netns: u32,
}

/// The table.
pub struct Table {
    conns: LinkedHashMap<ConnId, Conn, FxBuildHasher>,
    /// Ends by their addresses, to find the one that mirrors another.
    ends: FxHashMap<Pair, ConnId>,
    capacity: usize,
}

impl Layer {
    /// Plaintext of a TLS library.
    pub const fn stream(socket: Option<ConnId>, now: Timestamp) -> Self {
        Self::Stream { socket, held: Vec::new(), since: now, records: Some(Vec::new()) }
    }
}

impl Conn {
    pub fn stream(&mut self, direction: Direction) -> &mut Stream {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        }
    }

    /// Exchanges that wait for their socket to be known.
    pub const fn held(&self) -> usize {
        match &self.layer {
            Layer::Stream { held, .. } => held.len(),
            Layer::Plain | Layer::Socket { .. } => 0,
        }
    }

    /// Keep an exchange until its socket is known; given back when it is, or when too many wait.
    pub fn hold(&mut self, exchange: Box<Exchange>) -> Option<Box<Exchange>> {
        match &mut self.layer {
            Layer::Stream { socket: None, held, since, .. } if held.len() < HELD => {
                if held.is_empty() {
                    *since = exchange.timing.end;
                }
                held.push(exchange);
                None
            }
            _ => Some(exchange),
        }
    }

    /// Bytes held, about.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + 256
            + self.open.capacity() * size_of::<OpenExchange>()
            + self.parser.as_ref().map_or(0, |parser| parser.memory())
            + match &self.layer {
                Layer::Plain => 0,
                Layer::Socket { handshake, .. } => handshake.memory(),
                Layer::Stream { held, records, .. } => {
                    held.len() * EXCHANGE_BYTES
                        + records.iter().flatten().map(|kept| size_of::<Kept>() + kept.head.len()).sum::<usize>()
                }
            }
    }
}

impl Table {
    pub fn new(capacity: usize) -> Self {
        Self { conns: LinkedHashMap::default(), ends: FxHashMap::default(), capacity: capacity.max(1) }
    }

    pub fn len(&self) -> usize {
        self.conns.len()
    }

    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// The connection, which becomes the last to go.
    pub fn touch(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.to_back(&id)
    }

    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        self.conns.get(&id)
    }

    /// The connection, whose turn to go does not change.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(&id)
    }

    /// Add a connection. Make room first: see [`Self::is_full`].
    pub fn insert(&mut self, id: ConnId, conn: Conn) -> &mut Conn {
        self.index(id, &conn.info);
        self.conns.entry(id).or_insert(conn)
    }

    pub fn is_full(&self) -> bool {
        self.conns.len() >= self.capacity
    }

    /// Describe a connection anew. `None`: it is not in the table.
    pub fn describe(&mut self, id: ConnId, info: &Arc<Connection>) -> Option<&mut Conn> {
        let conn = self.conns.to_back(&id)?;
        let former = std::mem::replace(&mut conn.info, Arc::clone(info));
        self.forget_end(id, &former);
        self.index(id, info);
        self.conns.get_mut(&id)
    }

    /// The end on this machine that talks to this one. Addresses alone do not prove it: compare positions, too.
    pub fn mirror_of(&self, info: &Connection) -> Option<ConnId> {
        let pair = Pair::of(info)?;
        let mirror = Pair { local: pair.remote, remote: pair.local, ..pair };
        self.ends.get(&mirror).copied().filter(|id| *id != info.id)
    }

    pub fn remove(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.conns.remove(&id)?;
        self.forget_end(id, &conn.info);
        Some(conn)
    }

    /// The one idle for longest.
    pub fn pop_oldest(&mut self) -> Option<(ConnId, Conn)> {
        let (id, conn) = self.conns.pop_front()?;
        self.forget_end(id, &conn.info);
        Some((id, conn))
    }

    /// When the one idle for longest was last used.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.conns.front().map(|(_, conn)| conn.last)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&ConnId, &mut Conn)> {
        self.conns.iter_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ConnId, &Conn)> {
        self.conns.iter()
    }

    fn index(&mut self, id: ConnId, info: &Connection) {
        if let Some(pair) = Pair::of(info) {
            self.ends.insert(pair, id);
        }
    }

    fn forget_end(&mut self, id: ConnId, info: &Connection) {
        // A later connection with the same addresses may have taken the place.
        if let Some(pair) = Pair::of(info).filter(|pair| self.ends.get(pair) == Some(&id)) {
            self.ends.remove(&pair);
        }
    }
}

impl Pair {
    /// `None`: the addresses are not known, or do not tell one connection from another.
    fn of(info: &Connection) -> Option<Self> {
        // Below TLS there are no requests: the plaintext above has the same addresses, and is what mirrors.
        if info.tls.is_some() && info.backend.is_socket() {
            return None;
        }
        let (SocketAddress::Ip(local), SocketAddress::Ip(remote)) = (&info.local, &info.remote) else { return None };
        let confined = local.ip().is_loopback() || remote.ip().is_loopback();
        Some(Self { local: *local, remote: *remote, netns: if confined { info.netns } else { 0 } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ProcessRef, Transport};

    fn conn(id: u64, local: &str, remote: &str, netns: u32) -> Conn {
        let ip = |text: &str| SocketAddress::Ip(text.parse().unwrap());
        Conn {
            info: Arc::new(Connection {
                id: ConnId(id),
                transport: Transport::Tcp,
                local: ip(local),
                remote: ip(remote),
                backend: Backend::SockTracepoint,
                tls: None,
                process: ProcessRef::default(),
                comm: Arc::from(""),
                cgroup: 0,
                uid: 0,
                netns,
                first_seen: Timestamp(id),
            }),
            parser: None,
            receive: Stream::default(),
            send: Stream::default(),
            open: Vec::new(),
            fruitless: 0,
            offer_sought: false,
            last: Timestamp(id),
            orphan: false,
            layer: Layer::Plain,
            shift: Default::default(),
        }
    }

    fn add(table: &mut Table, id: u64, local: &str, remote: &str, netns: u32) -> Arc<Connection> {
        Arc::clone(&table.insert(ConnId(id), conn(id, local, remote, netns)).info)
    }

    #[test]
    fn ends_find_each_other_across_namespaces_but_loopback_stays_in_its_own() {
        let mut table = Table::new(10);
        let client = add(&mut table, 1, "10.0.0.1:40000", "10.0.0.2:80", 1);
        let server = add(&mut table, 2, "10.0.0.2:80", "10.0.0.1:40000", 2);
        assert_eq!((table.mirror_of(&client), table.mirror_of(&server)), (Some(ConnId(2)), Some(ConnId(1))));
        let mut pods = Vec::new();
        for netns in [1, 2] {
            let first = u64::from(netns) * 10;
            let client = add(&mut table, first, "127.0.0.1:40000", "127.0.0.1:80", netns);
            pods.push((client, add(&mut table, first + 1, "127.0.0.1:80", "127.0.0.1:40000", netns)));
        }
        for (client, server) in &pods {
            assert_eq!((table.mirror_of(client), table.mirror_of(server)), (Some(server.id), Some(client.id)));
        }
    }

    #[test]
    fn every_end_leaves_the_index_with_its_connection() {
        let mut table = Table::new(10);
        add(&mut table, 1, "10.0.0.1:40000", "10.0.0.2:80", 1);
        let again = add(&mut table, 2, "10.0.0.1:40000", "10.0.0.2:80", 1);
        let server = add(&mut table, 3, "10.0.0.2:80", "10.0.0.1:40000", 1);
        // The addresses belong to the later connection, whatever becomes of the earlier one.
        assert!(table.remove(ConnId(1)).is_some());
        assert_eq!(table.mirror_of(&server), Some(ConnId(2)));
        let moved = conn(2, "10.0.0.9:40000", "10.0.0.2:80", 1).info;
        assert!(table.describe(ConnId(2), &moved).is_some());
        assert_eq!((table.mirror_of(&server), table.ends.len()), (None, 2));
        assert!(table.describe(ConnId(77), &again).is_none());
        while table.pop_oldest().is_some() {}
        assert!(table.is_empty() && table.ends.is_empty());
    }

    #[test]
    fn the_one_not_touched_for_longest_goes_first() {
        let mut table = Table::new(2);
        add(&mut table, 1, "10.0.0.1:1", "10.0.0.2:80", 1);
        add(&mut table, 2, "10.0.0.1:2", "10.0.0.2:80", 1);
        assert!(table.is_full() && table.touch(ConnId(1)).is_some());
        assert_eq!(table.oldest(), Some(Timestamp(2)));
        assert_eq!(table.pop_oldest().map(|(id, _)| id), Some(ConnId(2)));
        assert!(!table.is_full() && table.get(ConnId(1)).is_some() && table.touch(ConnId(2)).is_none());
    }
}
