//! What a connection speaks after HTTP/1 (RFC 9110 section 7.8).

use super::super::{Done, Event, Limits, Protocol, http2};
use super::websocket::WebSocket;
use crate::model::{Outcome, Timestamp, Version};

/// The beginning of the HTTP/2 connection preface: no request.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// The protocol that the response to an upgrade says. It takes the exchange over where that goes on.
pub(super) fn after(
    exchange: &mut Option<Box<Done>>,
    limits: Limits,
    next: u64,
    time: Timestamp,
    out: &mut Vec<Event>,
) -> Option<Box<dyn Protocol>> {
    let response = exchange.as_ref()?.response.as_ref().filter(|response| response.status == 101)?;
    let protocol = response.headers.get("upgrade")?;
    if protocol.eq_ignore_ascii_case(b"websocket") {
        let socket = WebSocket::new(exchange.take()?);
        // Whoever serves it is free for other requests from here on.
        socket.progress(time, out);
        return Some(Box::new(socket));
    }
    if !protocol.eq_ignore_ascii_case(b"h2c") {
        return None;
    }
    let mut done = exchange.take()?;
    done.response = None;
    done.version = Version::Http2;
    done.outcome = Outcome::Complete;
    done.timing.response_start = None;
    Some(Box::new(http2::Connection::upgraded(limits, done, next, time)))
}

/// HTTP/2 from the first byte.
pub(super) fn prior_knowledge(limits: Limits, next: u64) -> Box<dyn Protocol> {
    Box::new(http2::Connection::new(limits).counting_from(next))
}
