//! What a connection makes of its blocks, content and resets: exchanges (RFC 9113 sections 5.1 and 8).

use super::{
    Begun, Block, Connection, drained,
    message::{self, Head},
    stream::{Phase, Side, Stream, unknown},
};
use crate::{
    model::{Body, Direction, Headers, Incomplete, Outcome, Request, Response, Timestamp, Version},
    protocol::{Event, Operation, RequestHead, content::Reader},
};

/// Error codes (RFC 9113 section 7).
const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;

impl Connection {
    /// A header block is whole, or as whole as it will be.
    pub(super) fn on_block(&mut self, direction: Direction, bytes: &[u8], operation: Operation, out: &mut Vec<Event>) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        let half = self.half(direction);
        let Some(mut block) = half.block.take() else {
            // A CONTINUATION of nothing.
            half.decoder.lose();
            self.fields = fields;
            return;
        };
        let decoded = half.decoder.decode(bytes, &mut fields);
        if block.broken.is_some() {
            half.decoder.lose();
        } else if decoded.is_err() {
            block.broken = Some(Incomplete::Malformed);
        }
        self.recognised = true;
        // Even numbers are streams that the server pushes: their requests never travelled.
        if !block.promise && block.stream & 1 == 1 {
            let head = message::head(&mut fields, self.limits.headers);
            self.on_head(direction, block, head, operation, out);
        }
        self.fields = fields;
    }

    fn on_head(&mut self, direction: Direction, block: Block, head: Head, operation: Operation, out: &mut Vec<Event>) {
        let Some(requests) = self.requests.or_else(|| {
            let told = if head.is_request { Some(direction) } else { head.status.map(|_| direction.opposite()) };
            self.requests = told;
            told
        }) else {
            return;
        };
        let number = block.stream;
        if direction == requests {
            match self.streams.get_mut(&number) {
                Some(stream) if stream.request.phase == Phase::Open => stream.on_trailers(head, operation, true),
                Some(_) => return,
                None if number > self.highest || (self.unseen.is_some() && head.is_request) => {
                    self.on_request(block, head, operation, out);
                }
                None => return,
            }
        } else {
            self.on_response(block, head, operation);
        }
        if block.end_stream {
            self.end_message(direction, number, operation.time, out);
        }
    }

    fn on_request(&mut self, block: Block, head: Head, operation: Operation, out: &mut Vec<Event>) {
        if self.streams.len() >= self.limits.streams
            && let Some(oldest) = self.streams.keys().min().copied()
            && let Some(mut stream) = self.streams.remove(&oldest)
        {
            stream.incomplete(Incomplete::Abandoned);
            stream.report(Outcome::Timeout, operation.time, out);
        }
        self.highest = self.highest.max(block.stream);
        let exchange = self.next;
        self.next = self.next.wrapping_add(1);
        let Some(direction) = self.requests else { return };
        let Begun { position, operation: first } = block.begun;
        let mut stream = Stream::new(unknown(exchange, direction), first.time);
        let is_connect = head.method.as_deref() == Some(b"CONNECT");
        let target = if is_connect && !head.websocket { head.authority.clone() } else { head.path.clone() };
        if let Some(reason) = incomplete(&block, &head) {
            stream.incomplete(reason);
        }
        stream.websocket = is_connect && head.websocket;
        stream.request.reader =
            if stream.websocket { Some(Reader::websocket()) } else { Reader::for_request(&head.headers) };
        stream.request.keep = self.limits.body_prefix;
        stream.request.phase = Phase::Open;
        stream.last = operation.time;
        stream.done.operation = operation;
        stream.done.request = Some(Request {
            method: head.method.unwrap_or_default(),
            target: target.unwrap_or_default(),
            version: Version::Http2,
            headers: head.headers,
            trailers: Headers::default(),
            body: Body::default(),
        });
        out.push(Event::RequestHead(RequestHead {
            exchange,
            direction,
            position,
            start: first.time,
            operation,
            traceparent: head.traceparent,
            exports_otlp: head.exports_otlp,
        }));
        self.streams.insert(block.stream, stream);
    }

    fn on_response(&mut self, block: Block, head: Head, operation: Operation) {
        if head.is_request {
            return;
        }
        let first = block.begun.operation.time;
        if !self.streams.contains_key(&block.stream) {
            self.on_lone_response(&block, &head, operation);
        }
        let body_prefix = self.limits.body_prefix;
        let Some(stream) = self.streams.get_mut(&block.stream) else { return };
        stream.last = operation.time;
        if head.status.is_some_and(|status| (100..200).contains(&status)) {
            stream.interim = stream.interim.saturating_add(1);
            return;
        }
        match stream.response.phase {
            Phase::Ended => return,
            Phase::Open if head.status.is_none() => return stream.on_trailers(head, operation, false),
            Phase::Open => return,
            Phase::Awaited => {}
        }
        if let Some(reason) = incomplete(&block, &head) {
            stream.incomplete(reason);
        }
        stream.response.phase = Phase::Open;
        stream.response.keep = body_prefix;
        stream.response.reader =
            if stream.websocket { Some(Reader::websocket()) } else { Reader::for_response(&head.headers) };
        stream.done.timing.response_start = Some(first);
        stream.done.response = Some(Response {
            status: head.status.unwrap_or_default(),
            version: Version::Http2,
            headers: head.headers,
            trailers: Headers::default(),
            body: Body::default(),
            interim: 0,
            first_byte: first,
        });
    }

    /// A response whose request was not seen: of a stream that is older than the agent, or whose request was lost.
    fn on_lone_response(&mut self, block: &Block, head: &Head, operation: Operation) {
        let (Some(reason), Some(_), Some(direction)) = (self.unseen, head.status, self.requests) else { return };
        // A number above all requests seen is of one that went by in between; one below that is not open has ended.
        if self.streams.len() >= self.limits.streams
            || (reason == Incomplete::RecordsLost && block.stream <= self.highest)
        {
            return;
        }
        let mut stream = Stream::new(unknown(self.next, direction), block.begun.operation.time);
        self.next = self.next.wrapping_add(1);
        stream.incomplete(reason);
        stream.request.phase = Phase::Ended;
        stream.done.operation = operation;
        self.streams.insert(block.stream, stream);
    }

    /// Content, or that much of it that was not seen.
    pub(super) fn on_content(
        &mut self,
        direction: Direction,
        number: u32,
        operation: Operation,
        content: Result<&[u8], u64>,
    ) {
        self.side(direction, number, |side| match content {
            Ok(bytes) => side.on_bytes(bytes),
            Err(len) => side.on_gap(len),
        });
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.last = operation.time;
        }
    }

    /// The message of a stream that travels in `direction`.
    pub(super) fn side(&mut self, direction: Direction, number: u32, change: impl FnOnce(&mut Side)) {
        let Some(requests) = self.requests else { return };
        if let Some(stream) = self.streams.get_mut(&number) {
            change(if direction == requests { &mut stream.request } else { &mut stream.response });
        }
    }

    pub(super) fn end_message(&mut self, direction: Direction, number: u32, time: Timestamp, out: &mut Vec<Event>) {
        let (Some(requests), Some(stream)) = (self.requests, self.streams.get_mut(&number)) else { return };
        stream.last = time;
        if direction == requests {
            stream.request.phase = Phase::Ended;
            stream.done.timing.request_end.get_or_insert(time);
        } else {
            stream.response.phase = Phase::Ended;
        }
        if stream.is_over()
            && let Some(stream) = self.streams.remove(&number)
        {
            // The client may have ended last.
            stream.report(Outcome::Complete, time, out);
        }
    }

    pub(super) fn on_reset(&mut self, number: u32, code: u32, time: Timestamp, out: &mut Vec<Event>) {
        let Some(stream) = self.streams.remove(&number) else { return };
        // Whoever has the whole response may stop the request (RFC 9113 section 8.1).
        let is_whole = stream.response.phase == Phase::Ended || (code == NO_ERROR && stream.done.response.is_some());
        stream.report(if is_whole { Outcome::Complete } else { Outcome::StreamReset(code) }, time, out);
    }

    /// The server says which request was the last that it looks at; those behind may be sent again elsewhere.
    pub(super) fn on_goaway(&mut self, direction: Direction, last: u32, time: Timestamp, out: &mut Vec<Event>) {
        if self.requests != Some(direction.opposite()) {
            return;
        }
        for (_, stream) in drained(&mut self.streams, |number, _| number > last) {
            stream.report(Outcome::StreamReset(REFUSED_STREAM), time, out);
        }
    }
}

impl Stream {
    fn on_trailers(&mut self, head: Head, operation: Operation, is_request: bool) {
        self.last = operation.time;
        if is_request {
            if let Some(request) = &mut self.done.request {
                request.trailers = head.headers;
            }
        } else if let Some(response) = &mut self.done.response {
            response.trailers = head.headers;
        }
    }
}

/// What is missing of a head.
fn incomplete(block: &Block, head: &Head) -> Option<Incomplete> {
    block.broken.or_else(|| head.unknown.then_some(Incomplete::HeaderTableUnknown))
}
