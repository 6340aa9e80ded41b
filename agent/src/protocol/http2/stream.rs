//! One stream: a request and its response (RFC 9113 section 8.1), and what is known of their content.

use crate::{
    model::{Body, Incomplete, Outcome, Request, Response, Timestamp, Timing, Version},
    protocol::{Done, Event, Operation, content::Reader, progress::Due},
};

/// Where one of the two messages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Awaited,
    Open,
    Ended,
}

/// One of the two messages.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) phase: Phase,
    pub(super) body: Body,
    pub(super) reader: Option<Reader>,
    /// First bytes of content that are kept.
    pub(super) keep: usize,
    /// Content of unknown length went by.
    unsure: bool,
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) done: Box<Done>,
    pub(super) request: Side,
    pub(super) response: Side,
    pub(super) interim: u16,
    pub(super) websocket: bool,
    /// Last byte of either message.
    pub(super) last: Timestamp,
    /// Records of the connection were lost since the stream began: its end may have been among them.
    pub(super) doubtful: bool,
    told: Due,
}

impl Side {
    pub(super) fn awaited() -> Self {
        Self { phase: Phase::Awaited, body: Body::default(), reader: None, keep: 0, unsure: false }
    }

    pub(super) fn on_bytes(&mut self, bytes: &[u8]) {
        self.body.seen = self.body.seen.saturating_add(bytes.len() as u64);
        let room = self.keep.saturating_sub(self.body.prefix.len()).min(bytes.len());
        self.body.prefix.extend_from_slice(bytes.get(..room).unwrap_or_default());
        if let Some(reader) = &mut self.reader {
            reader.on_bytes(bytes);
        }
    }

    pub(super) fn on_gap(&mut self, len: u64) {
        self.body.seen = self.body.seen.saturating_add(len);
        // What comes behind does not continue the prefix.
        self.keep = self.keep.min(self.body.prefix.len());
        if let Some(reader) = &mut self.reader {
            reader.on_gap(len);
        }
    }

    /// An unknown amount of content went by.
    pub(super) fn lose(&mut self) {
        if self.phase == Phase::Ended {
            return;
        }
        self.unsure = true;
        self.keep = self.keep.min(self.body.prefix.len());
        if let Some(reader) = &mut self.reader {
            reader.on_loss();
        }
    }

    /// The body as it stands.
    fn take(&self) -> Body {
        let mut body = self.body.clone();
        body.complete = self.phase == Phase::Ended && !self.unsure;
        body.size = body.complete.then_some(body.seen);
        body.messages = self.reader.as_ref().map(Reader::summary);
        body
    }

    fn memory(&self) -> usize {
        self.body.prefix.capacity() + self.reader.as_ref().map_or(0, Reader::memory)
    }
}

impl Stream {
    /// `start`: first byte of the request, or of what is seen of it.
    pub(super) fn new(mut done: Done, start: Timestamp) -> Self {
        done.timing.start = start;
        Self {
            done: Box::new(done),
            request: Side::awaited(),
            response: Side::awaited(),
            interim: 0,
            websocket: false,
            last: start,
            doubtful: false,
            told: Due::default(),
        }
    }

    pub(super) fn incomplete(&mut self, reason: Incomplete) {
        self.done.incomplete.get_or_insert(reason);
    }

    /// Both messages have ended.
    pub(super) fn is_over(&self) -> bool {
        self.request.phase == Phase::Ended && self.response.phase == Phase::Ended
    }

    /// What there is to say of it at `time`.
    fn snapshot(&self, done: &mut Done, outcome: Outcome, time: Timestamp) {
        done.outcome = outcome;
        done.timing.end = time;
        if let Some(request) = &mut done.request {
            request.body = self.request.take();
        }
        if let Some(response) = &mut done.response {
            response.body = self.response.take();
            response.interim = self.interim;
            if response.trailers.is_empty()
                && let Some(trailers) = self.response.reader.as_ref().and_then(Reader::trailers)
            {
                response.trailers = trailers;
            }
        }
    }

    pub(super) fn report(mut self, outcome: Outcome, time: Timestamp, out: &mut Vec<Event>) {
        let mut done = std::mem::replace(&mut self.done, Box::new(unknown(0, crate::model::Direction::Send)));
        self.snapshot(&mut done, outcome, time);
        out.push(Event::Done(done));
    }

    /// Tell of a stream that is open for long.
    pub(super) fn progress(&mut self, now: Timestamp, out: &mut Vec<Event>) {
        if self.told.take(now.since(self.done.timing.start)) {
            let mut done = self.done.clone();
            self.snapshot(&mut done, Outcome::Complete, now);
            out.push(Event::Progress(done));
        }
    }

    pub(super) fn memory(&self) -> usize {
        let request = self.done.request.as_ref().map_or(0, |request| request.headers.memory());
        let response = self.done.response.as_ref().map_or(0, |response| response.headers.memory());
        size_of::<Self>() + size_of::<Done>() + request + response + self.request.memory() + self.response.memory()
    }
}

/// An exchange of which nothing is known yet.
pub(super) fn unknown(exchange: u64, request_direction: crate::model::Direction) -> Done {
    Done {
        exchange,
        request_direction,
        version: Version::Http2,
        request: None::<Request>,
        response: None::<Response>,
        timing: Timing::default(),
        outcome: Outcome::Complete,
        incomplete: None,
        operation: Operation::default(),
    }
}
