//! A connection after its upgrade to WebSocket (RFC 6455): the exchange goes on until both sides have said that they
//! close, or the connection ends. Messages are counted both ways.

use super::super::content::Reader;
use super::super::progress::Due;
use super::super::{Done, End, Event, Operation, Protocol, Segment};
use crate::model::{Direction, Outcome, Timestamp};

/// One upgraded connection.
#[derive(Debug)]
pub(super) struct WebSocket {
    /// `None` when it was told of.
    done: Option<Box<Done>>,
    client: Side,
    server: Side,
    told: Due,
}

#[derive(Debug)]
struct Side {
    reader: Reader,
    /// Its direction of the connection has ended.
    ended: bool,
}

impl WebSocket {
    pub(super) fn new(done: Box<Done>) -> Self {
        let side = || Side { reader: Reader::websocket(), ended: false };
        Self { done: Some(done), client: side(), server: side(), told: Due::default() }
    }

    /// Of the side that sends in `direction`.
    fn side(&mut self, direction: Direction) -> Option<&mut Side> {
        let requests = self.done.as_ref()?.request_direction;
        Some(if requests == direction { &mut self.client } else { &mut self.server })
    }

    fn finish(&mut self, outcome: Outcome, time: Timestamp, out: &mut Vec<Event>) {
        if let Some(mut done) = self.done.take() {
            self.tell(&mut done, outcome, time);
            out.push(Event::Done(done));
        }
    }

    fn tell(&self, done: &mut Done, outcome: Outcome, time: Timestamp) {
        done.outcome = outcome;
        done.timing.end = time;
        if let Some(request) = &mut done.request {
            request.body.messages = Some(self.client.reader.summary());
        }
        if let Some(response) = &mut done.response {
            response.body.messages = Some(self.server.reader.summary());
        }
    }

    pub(super) fn progress(&self, time: Timestamp, out: &mut Vec<Event>) {
        if let Some(mut done) = self.done.clone() {
            self.tell(&mut done, Outcome::Upgraded, time);
            out.push(Event::Progress(done));
        }
    }

    const fn is_closed(&self) -> bool {
        self.client.reader.is_closed() && self.server.reader.is_closed()
    }
}

impl Protocol for WebSocket {
    fn on_segment(
        &mut self,
        direction: Direction,
        _position: u64,
        segment: Segment<'_>,
        operation: Operation,
        out: &mut Vec<Event>,
    ) {
        let Some(side) = self.side(direction) else { return };
        match segment {
            Segment::Bytes(bytes) => side.reader.on_bytes(bytes),
            Segment::Gap(len) => side.reader.on_gap(len),
        }
        if let Some(done) = &mut self.done {
            done.timing.end = done.timing.end.max(operation.time);
        }
        if self.is_closed() {
            self.finish(Outcome::Upgraded, operation.time, out);
        }
    }

    fn on_loss(&mut self, _time: Timestamp, _out: &mut Vec<Event>) {
        self.client.reader.on_loss();
        self.server.reader.on_loss();
    }

    fn on_end(&mut self, end: End, time: Timestamp, out: &mut Vec<Event>) {
        match end {
            End::Direction(direction) => {
                if let Some(side) = self.side(direction) {
                    side.ended = true;
                }
                if self.client.ended && self.server.ended {
                    self.finish(Outcome::Upgraded, time, out);
                }
            }
            End::Closed => self.finish(Outcome::Upgraded, time, out),
            End::Reset => {
                // Who has said goodbye may well be cut off.
                let said = self.client.reader.is_closed() || self.server.reader.is_closed();
                let outcome = if said { Outcome::Upgraded } else { Outcome::ConnectionReset };
                self.finish(outcome, time, out);
            }
        }
    }

    /// A socket may be silent for days: nothing is given up.
    fn on_tick(&mut self, now: Timestamp, out: &mut Vec<Event>) {
        let age = self.done.as_ref().map_or(0, |done| now.since(done.timing.start));
        if self.told.take(age) {
            self.progress(now, out);
        }
    }

    fn memory(&self) -> usize {
        size_of::<Self>() + self.done.as_ref().map_or(0, |done| done.memory())
    }

    fn is_idle(&self) -> bool {
        self.done.is_none()
    }
}
