//! What a connection makes of its blocks, content and resets: exchanges (RFC 9113 sections 5.1 and 8).

use super::{
    Begun, Block, Connection, drained,
    message::{self, Head},
    stream::{Phase, Side, Stream},
};
use crate::{
    model::{Body, Direction, Headers, Incomplete, Outcome, Request, Response, Timestamp, Version},
    protocol::{
        Event, Operation, RequestHead,
        content::{self, Reader},
    },
};

/// Error codes (RFC 9113 section 7).
const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
/// A request that the server did not look at.
pub(super) const REFUSED: Outcome = Outcome::StreamReset(REFUSED_STREAM);
/// Decoded fields leave their buffers for the next block, up to these sizes.
const FIELDS_KEPT: usize = 128;
const TEXT_KEPT: usize = 8 * 1024;

impl Connection {
    /// A header block is whole, or as whole as it will be.
    pub(super) fn on_block(&mut self, direction: Direction, bytes: &[u8], operation: Operation, out: &mut Vec<Event>) {
        let half = self.half(direction);
        // Without one, this is a CONTINUATION of nothing.
        let Some(mut block) = half.block.take() else { return };
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        let half = self.half(direction);
        let decoded = half.decoder.decode(bytes, &mut fields);
        if block.broken.is_some() {
            half.decoder.lose();
        } else if decoded.is_err() {
            block.broken = Some(Incomplete::Malformed);
        }
        // Even numbers are streams that the server pushes: their requests never travelled.
        if !block.promise && block.stream & 1 == 1 {
            let mut head = message::head(&mut fields, self.limits.headers);
            head.headers.truncated |= block.broken.is_some();
            self.on_head(direction, block, head, operation, out);
        }
        if fields.raw.capacity() <= TEXT_KEPT && fields.fields.capacity() <= FIELDS_KEPT {
            self.fields = fields;
        }
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
        if direction != requests {
            self.on_response(block, head, operation);
        } else if let Some(stream) = self.streams.get_mut(&number) {
            if stream.request.phase != Phase::Open {
                return;
            }
            stream.on_trailers(&block, head, operation, true);
        } else if self.begins_request(&block, &head) {
            self.on_request(block, head, operation, out);
        } else {
            return;
        }
        if block.end_stream {
            self.end_message(direction, number, operation.time, out);
        }
    }

    /// The block of a stream that is not open begins one, as far as can be told.
    fn begins_request(&self, block: &Block, head: &Head) -> bool {
        if self.unseen.is_none() {
            return block.stream > self.highest;
        }
        // It may be the trailers of a request that was not seen. What was taken for a higher number may have been none.
        head.is_request || (block.stream > self.highest && (head.unknown || block.broken.is_some()))
    }

    fn on_request(&mut self, block: Block, head: Head, operation: Operation, out: &mut Vec<Event>) {
        let Some(direction) = self.requests else { return };
        if self.streams.len() >= self.limits.streams
            && let Some(oldest) = self.streams.keys().min().copied()
            && let Some(mut stream) = self.streams.remove(&oldest)
        {
            stream.incomplete(Incomplete::Abandoned);
            stream.report(Outcome::Timeout, operation.time, out);
        }
        self.highest = self.highest.max(block.stream);
        let exchange = self.key();
        let Begun { position, operation: first } = block.begun;
        let mut stream = Stream::new(exchange, direction, first.time, operation);
        let is_connect = head.method.as_deref() == Some(b"CONNECT");
        let target = if is_connect && !head.websocket { head.authority } else { head.path };
        if let Some(reason) = block.broken {
            stream.incomplete(reason);
        } else if head.unknown {
            stream.incomplete(Incomplete::HeaderTableUnknown);
        } else if head.malformed || head.method.is_none() || target.is_none() {
            stream.incomplete(Incomplete::Malformed);
        }
        stream.websocket = is_connect && head.websocket;
        let reader = if stream.websocket { Some(Reader::websocket()) } else { Reader::for_request(&head.headers) };
        stream.request.reader = reader.map(Box::new);
        stream.request.keep = content::request_prefix(&head.headers, self.limits.body_prefix);
        stream.request.phase = Phase::Open;
        stream.last = operation.time;
        stream.done.request = Some(Request {
            method: head.method.unwrap_or_default(),
            target: target.unwrap_or_default(),
            version: Version::Http2,
            headers: head.headers,
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
        if !self.streams.contains_key(&block.stream) {
            self.on_lone_response(&block, &head, operation);
        }
        let body_prefix = self.limits.body_prefix;
        let Some(stream) = self.streams.get_mut(&block.stream) else { return };
        stream.last = operation.time;
        stream.doubtful = false;
        let is_interim = head.status.is_some_and(|status| status < 200);
        match stream.response.phase {
            Phase::Ended => return,
            _ if is_interim => {
                stream.interim = stream.interim.saturating_add(1);
                return;
            }
            Phase::Awaited if head.status.is_none() && block.end_stream && stream.response.unsure => {
                // Trailers, or a response of these fields alone, behind something that was not seen.
                stream.incomplete(Incomplete::ResponseHeadGap);
                let mut response = response(Headers::default(), block.begun.operation.time);
                response.headers.truncated = true;
                stream.done.response = Some(response);
                return stream.on_trailers(&block, head, operation, false);
            }
            Phase::Awaited => {}
            Phase::Open => {
                let is_known = stream.done.response.as_ref().is_none_or(|response| response.status != 0);
                if head.status.is_none() && (is_known || block.end_stream) {
                    stream.on_trailers(&block, head, operation, false);
                    return;
                }
                if is_known {
                    return;
                }
                // Trailers end the stream (RFC 9113 section 8.1), so what came before was an interim response, of a status
                // that is not known.
                stream.interim = stream.interim.saturating_add(1);
            }
        }
        if let Some(reason) = block.broken {
            stream.incomplete(reason);
        } else if head.unknown {
            stream.incomplete(Incomplete::HeaderTableUnknown);
        } else if head.malformed || head.status.is_none() {
            stream.incomplete(Incomplete::Malformed);
        }
        let reader = if stream.websocket { Some(Reader::websocket()) } else { Reader::for_response(&head.headers) };
        stream.response.reader = reader.map(Box::new);
        stream.response.phase = Phase::Open;
        stream.response.keep = content::response_prefix(&head.headers, &stream.request.prefix, body_prefix);
        let first = block.begun.operation.time;
        stream.done.timing.response_start = Some(first);
        let status = head.status.unwrap_or_default();
        stream.done.response = Some(Response { status, ..response(head.headers, first) });
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
        let exchange = self.key();
        let mut stream = Stream::new(exchange, direction, block.begun.operation.time, operation);
        stream.incomplete(reason);
        stream.request.phase = Phase::Ended;
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
        let Some((stream, is_request)) = self.stream(direction, number) else { return };
        stream.last = operation.time;
        stream.doubtful &= is_request;
        let side = stream.side(is_request);
        match content {
            Ok(bytes) => side.on_bytes(bytes),
            Err(len) => side.on_gap(len),
        }
    }

    /// An unknown part of what was taken for content was padding.
    pub(super) fn lose_content(&mut self, direction: Direction, number: u32) {
        if let Some((stream, is_request)) = self.stream(direction, number) {
            stream.side(is_request).lose();
        }
    }

    /// An open stream, and whether what moves in `direction` is its request.
    fn stream(&mut self, direction: Direction, number: u32) -> Option<(&mut Stream, bool)> {
        let is_request = self.requests? == direction;
        Some((self.streams.get_mut(&number)?, is_request))
    }

    pub(super) fn end_message(&mut self, direction: Direction, number: u32, time: Timestamp, out: &mut Vec<Event>) {
        let Some((stream, is_request)) = self.stream(direction, number) else { return };
        stream.last = time;
        let side = stream.side(is_request);
        if side.phase == Phase::Ended {
            return;
        }
        side.phase = Phase::Ended;
        if is_request {
            stream.done.timing.request_end = Some(time);
        } else {
            stream.done.timing.end = time;
        }
        if stream.is_over()
            && let Some(stream) = self.streams.remove(&number)
        {
            stream.report(Outcome::Complete, time, out);
        }
    }

    pub(super) fn on_reset(
        &mut self,
        direction: Direction,
        number: u32,
        code: u32,
        time: Timestamp,
        out: &mut Vec<Event>,
    ) {
        let Some(mut stream) = self.streams.remove(&number) else { return };
        if self.requests == Some(direction) {
            stream.leave();
        }
        // Some clients leave a stream that way when they have what they wanted of it.
        let is_left = code == NO_ERROR && stream.done.response.is_some();
        stream.report(if is_left { Outcome::Complete } else { Outcome::StreamReset(code) }, time, out);
    }

    /// The server says which request was the last that it looks at; those behind may be sent again elsewhere.
    pub(super) fn on_goaway(&mut self, direction: Direction, last: u32, time: Timestamp, out: &mut Vec<Event>) {
        if self.requests != Some(direction.opposite()) {
            return;
        }
        self.last = Some(last);
        for (_, stream) in drained(&mut self.streams, |number, _| number > last) {
            stream.report(REFUSED, time, out);
        }
    }

    /// Of a new exchange.
    fn key(&mut self) -> u64 {
        let key = self.next;
        self.next = key.wrapping_add(1);
        key
    }
}

/// A response whose status is not known.
fn response(headers: Headers, first_byte: Timestamp) -> Response {
    Response {
        status: 0,
        version: Version::Http2,
        headers,
        trailers: None,
        body: Body::default(),
        interim: 0,
        first_byte,
    }
}

impl Stream {
    fn side(&mut self, is_request: bool) -> &mut Side {
        if is_request { &mut self.request } else { &mut self.response }
    }

    fn on_trailers(&mut self, block: &Block, head: Head, operation: Operation, is_request: bool) {
        self.last = operation.time;
        if let Some(reason) = block.broken.or_else(|| head.unknown.then_some(Incomplete::HeaderTableUnknown)) {
            self.incomplete(reason);
        }
        // Nobody asks for those of a request.
        if !is_request && let Some(response) = &mut self.done.response {
            response.trailers = Some(Box::new(head.headers));
        }
    }
}
