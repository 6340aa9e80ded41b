//! The connection table: one owner, bounded, the one idle for longest goes first.

use std::sync::Arc;

use hashlink::LinkedHashMap;
use rustc_hash::FxBuildHasher;

use crate::model::{ConnId, Connection, Direction, Role, SocketAddress, Timestamp, TraceContext};
use crate::protocol::Protocol;
use crate::trace::{Link, Thread, Traceparent};

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
    pub last: Timestamp,
    /// Its description was lost, or it was evicted: how many records came before is not known.
    pub orphan: bool,
    /// The other end, when it was found on this machine.
    pub mirror: Option<ConnId>,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream {
    /// Expected number of the next record; `None` before the first.
    pub seq: Option<u32>,
    /// Position behind the last byte.
    pub end: u64,
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
}

/// Two ends share it: local and remote address of the client's end.
pub type Pair = (SocketAddress, SocketAddress);

/// The table.
pub struct Table {
    conns: LinkedHashMap<ConnId, Conn, FxBuildHasher>,
    /// Ends by their addresses, to find the one that mirrors another.
    ends: std::collections::HashMap<Pair, ConnId, FxBuildHasher>,
    capacity: usize,
}

impl Conn {
    pub fn stream(&mut self, direction: Direction) -> &mut Stream {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        }
    }

    /// Bytes held, about.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + 256
            + self.open.capacity() * size_of::<OpenExchange>()
            + self.parser.as_ref().map_or(0, |parser| parser.memory())
    }
}

impl Table {
    pub fn new(capacity: usize) -> Self {
        Self { conns: LinkedHashMap::default(), ends: std::collections::HashMap::default(), capacity: capacity.max(1) }
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

    /// Add a connection. Make room first: see [`Self::is_full`].
    pub fn insert(&mut self, id: ConnId, conn: Conn) -> &mut Conn {
        self.index(id, &conn.info);
        self.conns.entry(id).or_insert(conn)
    }

    pub fn is_full(&self) -> bool {
        self.conns.len() >= self.capacity
    }

    /// Describe a connection anew. `None`: it is not in the table.
    pub fn describe(&mut self, id: ConnId, info: Arc<Connection>) -> Option<&mut Conn> {
        let conn = self.conns.to_back(&id)?;
        let pair = (conn.info.local.clone(), conn.info.remote.clone());
        if self.ends.get(&pair) == Some(&id) {
            self.ends.remove(&pair);
        }
        conn.info = info;
        conn.mirror = None;
        let info = Arc::clone(&conn.info);
        self.index(id, &info);
        self.conns.get_mut(&id)
    }

    fn index(&mut self, id: ConnId, info: &Connection) {
        if let (SocketAddress::Ip(_), SocketAddress::Ip(_)) = (&info.local, &info.remote) {
            self.ends.insert((info.local.clone(), info.remote.clone()), id);
        }
    }

    /// The end on this machine that talks to this one.
    pub fn mirror_of(&self, info: &Connection) -> Option<ConnId> {
        self.ends.get(&(info.remote.clone(), info.local.clone())).copied().filter(|id| *id != info.id)
    }

    pub fn remove(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.conns.remove(&id)?;
        self.forget_end(id, &conn);
        Some(conn)
    }

    /// The one idle for longest.
    pub fn pop_oldest(&mut self) -> Option<(ConnId, Conn)> {
        let (id, conn) = self.conns.pop_front()?;
        self.forget_end(id, &conn);
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

    fn forget_end(&mut self, id: ConnId, conn: &Conn) {
        let pair = (conn.info.local.clone(), conn.info.remote.clone());
        // A later connection with the same addresses may have taken the place.
        if self.ends.get(&pair) == Some(&id) {
            self.ends.remove(&pair);
        }
    }
}
