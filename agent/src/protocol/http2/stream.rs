//! One stream: a request and its response (RFC 9113 section 8.1), and what is known of their content.

use crate::{
    model::{Body, Direction, Headers, Incomplete, Outcome, Response, Timestamp, Timing, Version},
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
    /// An unknown part of the message went by.
    pub(super) unsure: bool,
    /// First bytes of content that are kept.
    pub(super) keep: usize,
    /// Bytes of content.
    seen: u64,
    pub(super) prefix: Vec<u8>,
    /// Boxed because most content has none.
    pub(super) reader: Option<Box<Reader>>,
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// Its bodies are filled at the end.
    pub(super) done: Box<Done>,
    pub(super) request: Side,
    pub(super) response: Side,
    pub(super) interim: u16,
    pub(super) websocket: bool,
    /// Last byte of either message.
    pub(super) last: Timestamp,
    /// Records of the connection were lost since the stream was last heard of: its end may have been among them.
    pub(super) doubtful: bool,
    told: Due,
}

impl Side {
    const AWAITED: Self =
        Self { phase: Phase::Awaited, unsure: false, keep: 0, seen: 0, prefix: Vec::new(), reader: None };

    /// A message that is over, of which another parser kept this.
    pub(super) fn ended(body: Body) -> Self {
        Self { phase: Phase::Ended, unsure: !body.complete, seen: body.seen, prefix: body.prefix, ..Self::AWAITED }
    }

    pub(super) fn on_bytes(&mut self, bytes: &[u8]) {
        // A conforming peer sends nothing behind the end.
        if self.phase == Phase::Ended {
            return;
        }
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        let room = self.keep.saturating_sub(self.prefix.len()).min(bytes.len());
        self.prefix.extend_from_slice(bytes.get(..room).unwrap_or_default());
        if let Some(reader) = &mut self.reader {
            reader.on_bytes(bytes);
        }
    }

    pub(super) fn on_gap(&mut self, len: u64) {
        if self.phase == Phase::Ended || len == 0 {
            return;
        }
        self.seen = self.seen.saturating_add(len);
        self.cut();
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
        self.cut();
        if let Some(reader) = &mut self.reader {
            reader.on_loss();
        }
    }

    /// All of the content that these fields announce is here (RFC 9113 section 8.1.1): only the end itself is not.
    fn is_whole(&self, headers: &Headers) -> bool {
        let mut lengths = headers.get_all("content-length");
        let digits = lengths.next().filter(|value| value.iter().all(u8::is_ascii_digit));
        let told = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
        self.phase == Phase::Open && !self.unsure && told == Some(self.seen) && lengths.next().is_none()
    }

    /// What comes does not continue the prefix.
    fn cut(&mut self) {
        self.keep = self.prefix.len();
    }

    /// The body as it stands; the prefix moves.
    fn body(&self, prefix: Vec<u8>) -> Body {
        let complete = self.phase == Phase::Ended && !self.unsure;
        Body {
            size: complete.then_some(self.seen),
            seen: self.seen,
            prefix,
            complete,
            messages: self.reader.as_ref().map(|reader| reader.summary()),
        }
    }

    fn memory(&self) -> usize {
        let reader = self.reader.as_ref().map_or(0, |reader| size_of::<Reader>() + reader.memory());
        self.prefix.capacity() + reader
    }
}

impl Stream {
    /// A stream whose request began, or which is known by its response alone, at `start`.
    pub(super) fn new(exchange: u64, request_direction: Direction, start: Timestamp, operation: Operation) -> Self {
        Self::of(Box::new(Done {
            exchange,
            request_direction,
            version: Version::Http2,
            request: None,
            response: None,
            timing: Timing { start, ..Timing::default() },
            outcome: Outcome::Complete,
            incomplete: None,
            operation,
        }))
    }

    /// A stream of which another parser knows this much.
    pub(super) fn of(done: Box<Done>) -> Self {
        Self {
            last: done.timing.start,
            done,
            request: Side::AWAITED,
            response: Side::AWAITED,
            interim: 0,
            websocket: false,
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

    /// The response is over; a client may have more to say (RFC 9113 section 8.1).
    pub(super) fn is_answered(&self) -> bool {
        self.response.phase == Phase::Ended
    }

    /// The client goes away. Some do as soon as they have all of the content that was announced, before the end is sent.
    pub(super) fn leave(&mut self) {
        let is_whole = self.done.response.as_ref().is_some_and(|response| self.response.is_whole(&response.headers));
        if is_whole {
            self.response.phase = Phase::Ended;
            self.done.timing.end = self.last;
        }
    }

    /// The stream is over at `time`, one way or another. What is answered is so, whatever happens to its stream.
    pub(super) fn report(mut self, outcome: Outcome, time: Timestamp, out: &mut Vec<Event>) {
        if self.is_answered() && self.done.response.is_none() {
            self.incomplete(Incomplete::ResponseHeadGap);
        }
        let mut done = self.done;
        if self.response.phase == Phase::Ended {
            done.outcome = Outcome::Complete;
        } else {
            done.outcome = outcome;
            done.timing.end = time;
        }
        if let Some(request) = &mut done.request {
            let prefix = std::mem::take(&mut self.request.prefix);
            request.body = self.request.body(prefix);
        }
        if let Some(response) = &mut done.response {
            let prefix = std::mem::take(&mut self.response.prefix);
            response.body = self.response.body(prefix);
        }
        fill(&mut done, &self.response, self.interim);
        out.push(Event::Done(done));
    }

    /// Tell of a stream that is open for long.
    pub(super) fn progress(&mut self, now: Timestamp, out: &mut Vec<Event>) {
        if !self.told.take(now.since(self.done.timing.start)) {
            return;
        }
        let mut done = self.done.clone();
        done.timing.end = now;
        if let Some(request) = &mut done.request {
            request.body = self.request.body(self.request.prefix.clone());
        }
        if let Some(response) = &mut done.response {
            response.body = self.response.body(self.response.prefix.clone());
        }
        fill(&mut done, &self.response, self.interim);
        out.push(Event::Progress(done));
    }

    /// Bytes held beside its own size.
    pub(super) fn memory(&self) -> usize {
        let request = self.done.request.as_ref().map_or(0, |it| it.headers.memory());
        let response = self.done.response.as_ref().map_or(0, Response::heads_memory);
        size_of::<Done>() + request + response + self.request.memory() + self.response.memory()
    }
}

/// What the response's content says beside its body.
fn fill(done: &mut Done, side: &Side, interim: u16) {
    let Some(response) = &mut done.response else { return };
    response.interim = interim;
    if response.trailers.is_none()
        && let Some(trailers) = side.reader.as_ref().and_then(|reader| reader.trailers())
    {
        response.trailers = Some(Box::new(trailers));
    }
}
