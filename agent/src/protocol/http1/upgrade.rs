//! What a connection speaks after HTTP/1 (RFC 9110 section 7.8).

use super::super::{Done, Limits, Protocol, http2};
use crate::model::{Outcome, Timestamp, Version};

/// The beginning of the HTTP/2 connection preface: no request.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// The protocol that the response to an upgrade says. It takes the exchange over where the response is still to come.
pub(super) fn after(
    exchange: &mut Option<Box<Done>>,
    limits: Limits,
    next: u64,
    time: Timestamp,
) -> Option<Box<dyn Protocol>> {
    let is_h2c = exchange.as_ref()?.response.as_ref().is_some_and(|response| {
        response.status == 101
            && response.headers.get("upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"h2c"))
    });
    if !is_h2c {
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
