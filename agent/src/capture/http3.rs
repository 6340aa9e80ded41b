//! HTTP/3: which processes speak QUIC, and which servers offer it. Nothing of it is read; it is a blind spot that must be
//! told.

use std::fmt::Write as _;
use std::sync::Arc;

use hashlink::LruCache;
use rustc_hash::FxBuildHasher;

use crate::event::Open;
use crate::model::{Exchange, ProcessRef, Role, SocketAddress};

/// Processes kept in mind.
const PROCESSES: usize = 1_024;
/// Bytes of an `Alt-Svc` field looked at; what follows the first alternatives is of no interest.
const FIELD: usize = 512;

/// A process that speaks QUIC, or offers HTTP/3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http3Use {
    pub process: ProcessRef,
    pub comm: Arc<str>,
    /// Its UDP sockets that carried QUIC. 0: it only offers HTTP/3.
    pub sockets: u64,
    /// Addresses of the last of them; a socket that serves many peers names none.
    pub local: SocketAddress,
    pub remote: SocketAddress,
    /// Ports of TCP on which its responses offered HTTP/3 (`Alt-Svc`, RFC 7838, RFC 9114 section 3.1.1).
    pub offers: Vec<u16>,
}

/// Ports kept of one process.
const OFFERS: usize = 8;

impl Http3Use {
    /// The sentence for people.
    pub fn blind_spot(&self) -> String {
        let Self { comm, process, sockets, .. } = self;
        let mut text = format!("{comm} (pid {})", process.pid);
        // Writing to a string cannot fail.
        if *sockets == 0 {
            _ = write!(text, " offers HTTP/3");
        } else {
            let port = match (&self.local, &self.remote) {
                (_, SocketAddress::Ip(remote)) if remote.port() != 0 => format!("to {remote}"),
                (SocketAddress::Ip(local), _) => format!("on UDP port {}", local.port()),
                _ => String::from("on UDP"),
            };
            _ = write!(text, " speaks QUIC {port}, {sockets} sockets");
        }
        if !self.offers.is_empty() {
            let ports: Vec<String> = self.offers.iter().map(u16::to_string).collect();
            _ = write!(text, " (Alt-Svc on TCP port {})", ports.join(", "));
        }
        text.push_str(": HTTP/3 over QUIC is not read");
        text
    }
}

/// Who uses HTTP/3; bounded, the one idle for longest goes first.
#[derive(Debug)]
pub(super) struct Uses {
    known: LruCache<ProcessRef, Http3Use, FxBuildHasher>,
    evicted: u64,
}

impl Default for Uses {
    fn default() -> Self {
        Self { known: LruCache::with_hasher(PROCESSES, FxBuildHasher), evicted: 0 }
    }
}

impl Uses {
    pub(super) fn all(&self) -> Vec<Http3Use> {
        self.known.iter().map(|(_, known)| known.clone()).collect()
    }

    /// Processes that are not kept in mind any more.
    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A UDP socket carries QUIC.
    pub(super) fn met(&mut self, open: &Open, comm: &Arc<str>) {
        let known = self.of(open.process, comm);
        known.sockets += 1;
        known.local = open.local.clone();
        known.remote = open.remote.clone();
    }

    /// Note what an exchange offers.
    pub(super) fn look(&mut self, exchange: &Exchange) {
        if let Some(port) = offered(exchange) {
            let known = self.of(exchange.connection.process, &exchange.connection.comm);
            if !known.offers.contains(&port) && known.offers.len() < OFFERS {
                known.offers.push(port);
            }
        }
    }

    fn of(&mut self, process: ProcessRef, comm: &Arc<str>) -> &mut Http3Use {
        if self.known.len() >= PROCESSES && !self.known.contains_key(&process) {
            // `entry` would let one more in.
            _ = self.known.remove_lru();
            self.evicted += 1;
        }
        self.known.entry(process).or_insert_with(|| Http3Use {
            process,
            comm: Arc::clone(comm),
            sockets: 0,
            local: SocketAddress::Unknown,
            remote: SocketAddress::Unknown,
            offers: Vec::new(),
        })
    }
}

/// The port on which a server of this machine offered HTTP/3 with its response.
fn offered(exchange: &Exchange) -> Option<u16> {
    if exchange.role != Role::Server {
        return None;
    }
    let field = exchange.response.as_ref()?.headers.get("alt-svc")?;
    let field = field.get(..field.len().min(FIELD))?;
    field.windows(3).any(|window| window == b"h3=").then_some(())?;
    match &exchange.connection.local {
        SocketAddress::Ip(local) => Some(local.port()),
        SocketAddress::Unix(_) | SocketAddress::Unknown => Some(0),
    }
}
