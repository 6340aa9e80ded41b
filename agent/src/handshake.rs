//! Reads the part of a TLS handshake that is in the clear: raw bytes of both directions in, [`Handshake`] out.
//!
//! A push parser over RFC 8446 section 5.1 records, from the first byte of the connection: pieces may end anywhere. Keeps
//! at most [`MAX_MESSAGE`] bytes of each direction. Decrypts nothing, verifies nothing, never panics.

mod certificate;
mod hello;
#[cfg(test)]
mod tests;
mod wire;

use crate::model::{
    Direction, Handshake,
    tls::{Alert, TlsVersion},
};
use wire::Wire;

/// Longest message kept whole. The hello of a client with a key share of ML-KEM has about 1.8 KiB; of a chain of
/// certificates the first is enough.
const MAX_MESSAGE: usize = 16 * 1024;
/// Bytes of one direction after which nothing more is learnt. The longest chains of certificates have some 10 KiB.
const MAX_STREAM: usize = 64 * 1024;
/// 2^14 bytes and what encryption may add to them (RFC 5246 section 6.2.3).
const MAX_RECORD: usize = 16 * 1024 + 2048;
/// Type, version, length.
const RECORD_HEADER: usize = 5;
/// Type and length.
const MESSAGE_HEADER: usize = 4;

/// Content types (RFC 8446 appendix B.1).
mod content {
    pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
    pub(super) const ALERT: u8 = 21;
    pub(super) const HANDSHAKE: u8 = 22;
    pub(super) const APPLICATION_DATA: u8 = 23;
    pub(super) const HEARTBEAT: u8 = 24;
}

/// Handshake types (RFC 5246 section 7.4, RFC 8446 appendix B.3).
mod kind {
    pub(super) const HELLO_REQUEST: u8 = 0;
    pub(super) const CLIENT_HELLO: u8 = 1;
    pub(super) const SERVER_HELLO: u8 = 2;
    pub(super) const CERTIFICATE: u8 = 11;
    pub(super) const SERVER_KEY_EXCHANGE: u8 = 12;
    pub(super) const CERTIFICATE_REQUEST: u8 = 13;
    pub(super) const SERVER_HELLO_DONE: u8 = 14;
}

/// Reads one connection's handshake. Each direction comes in its own order; how the two mix does not matter.
#[derive(Debug, Default)]
pub struct Reader {
    facts: Handshake,
    receive: Side,
    send: Side,
    /// Who sent the `ClientHello`, or did not send the `ServerHello`.
    client: Option<Direction>,
    /// The server answered with a `HelloRetryRequest`: another pair of hellos follows.
    retried: bool,
    /// `ServerHelloDone`: the handshake of TLS 1.2 was a full one.
    full: bool,
}

/// One direction.
#[derive(Debug, Default)]
struct Side {
    /// Bytes seen.
    position: usize,
    header: [u8; RECORD_HEADER],
    header_len: usize,
    /// Content type of the record that `record_left` bytes are still to come of.
    content: u8,
    record_left: usize,
    /// Of an alert whose description is still to come.
    alert_level: Option<u8>,
    /// The message that is being gathered, with its header.
    message: Vec<u8>,
    /// Bytes of a message that are still to come and of no use.
    skip: usize,
    /// A hello was read.
    greeted: bool,
    cipher_changed: bool,
    /// A handshake record came after the change of the cipher: `Finished`, under TLS 1.2 and older.
    finished: bool,
    application_data: bool,
    over: bool,
}

impl Reader {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of `direction`.
    pub fn on_bytes(&mut self, direction: Direction, bytes: &[u8]) {
        let room = MAX_STREAM.saturating_sub(self.side(direction).position);
        let (mut bytes, beyond) = bytes.split_at(bytes.len().min(room));
        while !bytes.is_empty() {
            let side = self.side(direction);
            if side.over {
                return;
            }
            if side.record_left == 0 {
                bytes = side.take_header(bytes);
                if side.header_len == RECORD_HEADER {
                    self.begin_record(direction);
                }
                continue;
            }
            let (payload, rest) = bytes.split_at(side.record_left.min(bytes.len()));
            bytes = rest;
            side.record_left -= payload.len();
            side.position += payload.len();
            match side.content {
                content::HANDSHAKE if !side.finished => self.on_handshake(direction, payload),
                content::ALERT if !side.cipher_changed => self.on_alert(direction, payload),
                _ => {}
            }
        }
        if !beyond.is_empty() {
            self.side(direction).give_up();
        }
    }

    /// Bytes of `direction` went by that are not known: nothing after them can be read.
    pub fn on_gap(&mut self, direction: Direction) {
        self.side(direction).give_up();
    }

    /// Nothing more can be learnt.
    pub fn is_done(&self) -> bool {
        let failed = self.facts.alert.is_some() && self.facts.offer.is_some();
        failed || [&self.receive, &self.send].into_iter().all(|side| side.over || self.is_encrypted(side))
    }

    /// Nothing more can be learnt, and nothing was: these were not the first bytes of a TLS connection.
    pub fn is_refused(&self) -> bool {
        self.client.is_none() && self.is_done()
    }

    /// The direction in which the client sends, once a hello told.
    pub fn client(&self) -> Option<Direction> {
        self.client
    }

    /// What is known so far.
    pub fn facts(&self) -> &Handshake {
        &self.facts
    }

    pub fn into_facts(self) -> Handshake {
        self.facts
    }

    /// Bytes held.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.receive.message.capacity() + self.send.message.capacity() + self.facts.memory()
    }

    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        }
    }

    /// The version is one before TLS 1.3.
    fn is_classic(&self) -> bool {
        self.facts.version.is_some_and(|version| version < TlsVersion::Tls13)
    }

    fn is_encrypted(&self, side: &Side) -> bool {
        side.application_data || (side.finished && self.is_classic())
    }

    fn settle(&mut self) {
        self.facts.established = self.is_encrypted(&self.receive) && self.is_encrypted(&self.send);
    }

    fn begin_record(&mut self, direction: Direction) {
        let is_server = self.client == Some(direction.opposite());
        let retried = self.retried;
        let side = self.side(direction);
        let [content, major, _, high, low] = side.header;
        side.header_len = 0;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let known = matches!(content, content::CHANGE_CIPHER_SPEC..=content::HEARTBEAT);
        // Only application data may be empty (RFC 8446 section 5.1).
        if !known || major != 3 || len > MAX_RECORD || (len == 0 && content != content::APPLICATION_DATA) {
            side.give_up();
            return;
        }
        side.content = content;
        side.record_left = len;
        match content {
            content::CHANGE_CIPHER_SPEC => {
                side.cipher_changed = true;
                if is_server && self.is_classic() && !self.full {
                    self.facts.resumed = true;
                }
            }
            // After its retry a server of TLS 1.3 greets in the clear once more; all that a client could say again is
            // known (RFC 8446 appendix D.4).
            content::HANDSHAKE if side.cipher_changed && !(is_server && retried) => {
                side.finished = true;
                side.message = Vec::new();
                self.settle();
            }
            content::APPLICATION_DATA => {
                side.application_data = true;
                side.give_up();
                self.settle();
            }
            _ => {}
        }
    }

    fn on_alert(&mut self, direction: Direction, payload: &[u8]) {
        const FATAL: u8 = 2;
        for byte in payload {
            let side = self.side(direction);
            match side.alert_level.take() {
                None => side.alert_level = Some(*byte),
                Some(FATAL) => {
                    side.give_up();
                    self.facts.alert.get_or_insert(Alert(*byte));
                    return;
                }
                Some(_) => {}
            }
        }
    }

    fn on_handshake(&mut self, direction: Direction, mut payload: &[u8]) {
        loop {
            let is_client = self.client == Some(direction);
            let side = self.side(direction);
            let (_, rest) = payload.split_at(side.skip.min(payload.len()));
            side.skip -= payload.len() - rest.len();
            payload = rest;
            if payload.is_empty() || side.over {
                return;
            }
            let missing = wanted(&side.message, is_client).saturating_sub(side.message.len());
            let (piece, rest) = payload.split_at(missing.min(payload.len()));
            side.message.extend_from_slice(piece);
            payload = rest;
            let wanted = wanted(&side.message, is_client);
            if wanted > MAX_MESSAGE {
                side.give_up();
            } else if wanted <= side.message.len() {
                let mut message = std::mem::take(&mut side.message);
                side.skip = total(&message).saturating_sub(message.len());
                self.on_message(direction, &message);
                // The room is used again by the next message.
                message.clear();
                let side = self.side(direction);
                if !side.over {
                    side.message = message;
                }
            }
        }
    }

    /// A message, as much of it as [`wanted`].
    fn on_message(&mut self, direction: Direction, message: &[u8]) {
        let Some((header, body)) = message.split_at_checked(MESSAGE_HEADER) else { return };
        let kind = header.first().copied().unwrap_or_default();
        let is_client = self.client == Some(direction);
        let greeted = self.side(direction).greeted;
        match kind {
            kind::CLIENT_HELLO if is_client || self.client.is_none() => self.on_client_hello(direction, body),
            kind::SERVER_HELLO if !is_client => self.on_server_hello(direction, body),
            // A server may ask for a hello at any time; nobody does so first.
            kind::HELLO_REQUEST => {}
            _ if !greeted => self.side(direction).give_up(),
            kind::CERTIFICATE if is_client => self.facts.client_certificate_sent |= body.iter().any(|len| *len != 0),
            kind::CERTIFICATE if self.facts.certificate.is_none() => {
                self.facts.certificate = certificate_of(body).and_then(certificate::read).map(Box::new);
            }
            kind::SERVER_KEY_EXCHANGE if !is_client => {
                self.facts.group = self.facts.cipher.and_then(|cipher| hello::group(cipher, body));
            }
            kind::CERTIFICATE_REQUEST if !is_client => self.facts.client_certificate_requested = true,
            kind::SERVER_HELLO_DONE if !is_client => self.full = true,
            _ => {}
        }
    }

    fn on_client_hello(&mut self, direction: Direction, body: &[u8]) {
        self.client = Some(direction);
        let Some(offer) = hello::client(body) else {
            self.side(direction).give_up();
            return;
        };
        self.side(direction).greeted = true;
        // The second one, after a retry, says the same (RFC 8446 section 4.1.2).
        self.facts.offer.get_or_insert(offer);
    }

    fn on_server_hello(&mut self, direction: Direction, body: &[u8]) {
        self.client = Some(direction.opposite());
        let side = self.side(direction);
        let again = side.greeted;
        let Some(choice) = hello::server(body).filter(|_| !again || self.retried) else {
            self.side(direction).give_up();
            return;
        };
        self.side(direction).greeted = true;
        self.retried = choice.retry;
        self.facts.version = choice.version;
        self.facts.cipher = Some(choice.cipher);
        self.facts.group = choice.group;
        self.facts.alpn = choice.alpn;
        self.facts.resumed = choice.resumed;
        self.settle();
    }
}

impl Side {
    /// Fills the record header; what is left of `bytes`.
    fn take_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let missing = RECORD_HEADER.saturating_sub(self.header_len);
        let (piece, rest) = bytes.split_at(missing.min(bytes.len()));
        for (place, byte) in self.header.iter_mut().skip(self.header_len).zip(piece) {
            *place = *byte;
        }
        self.header_len += piece.len();
        self.position += piece.len();
        rest
    }

    fn give_up(&mut self) {
        self.over = true;
        self.message = Vec::new();
    }
}

/// Bytes of the message that are worth having, as far as its beginning tells.
fn wanted(message: &[u8], is_client: bool) -> usize {
    let Some(kind) = message.first().filter(|_| message.len() >= MESSAGE_HEADER) else { return MESSAGE_HEADER };
    let total = total(message);
    match *kind {
        kind::CLIENT_HELLO | kind::SERVER_HELLO => total,
        // Who a client is stays unread.
        kind::CERTIFICATE if is_client => total.min(MESSAGE_HEADER + 3),
        kind::CERTIFICATE => {
            let first = MESSAGE_HEADER + 2 * 3;
            match message.get(first - 3..first) {
                Some([a, b, c]) => total.min(first + length(*a, *b, *c)),
                _ => total.min(first),
            }
        }
        kind::SERVER_KEY_EXCHANGE => total.min(MESSAGE_HEADER + 3),
        _ => MESSAGE_HEADER,
    }
}

/// Length of the message whose header this begins with.
fn total(message: &[u8]) -> usize {
    match message {
        [_, a, b, c, ..] => MESSAGE_HEADER + length(*a, *b, *c),
        _ => MESSAGE_HEADER,
    }
}

const fn length(a: u8, b: u8, c: u8) -> usize {
    u32::from_be_bytes([0, a, b, c]) as usize
}

/// The first certificate of a `Certificate` message before TLS 1.3 (RFC 5246 section 7.4.2).
fn certificate_of(body: &[u8]) -> Option<&[u8]> {
    let mut wire = Wire(body);
    wire.bytes(3)?;
    let len = wire.bytes(3)?;
    let [a, b, c] = *len else { return None };
    wire.bytes(length(a, b, c))
}
