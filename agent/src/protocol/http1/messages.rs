//! What is read of the content of an exchange's two messages beside its length: messages within, and a prefix.

use super::super::content::{self, Reader};
use crate::model::{Body, Headers, Response};

/// The readers of one exchange; most have none.
#[derive(Debug, Default)]
pub(super) struct Readers {
    request: Content,
    response: Content,
}

#[derive(Debug, Default)]
struct Content {
    reader: Option<Reader>,
    /// First bytes that are kept.
    keep: usize,
    /// Chunk framing was lost: what comes is not payload alone.
    lost: bool,
}

impl Readers {
    /// For a request with these fields.
    pub(super) fn of_request(headers: &Headers, most: usize) -> Option<Box<Self>> {
        let keep = content::request_prefix(headers, most);
        let reader = Reader::for_request(headers);
        (keep > 0 || reader.is_some())
            .then(|| Box::new(Self { request: Content { reader, keep, lost: false }, response: Content::default() }))
    }

    /// For the response; `request` is the content that it answers.
    pub(super) fn on_response(this: &mut Option<Box<Self>>, headers: &Headers, request: Option<&Body>, most: usize) {
        let keep = request.map_or(0, |request| content::response_prefix(headers, &request.prefix, most));
        let reader = Reader::for_response(headers);
        if keep > 0 || reader.is_some() {
            this.get_or_insert_default().response = Content { reader, keep, lost: false };
        }
    }

    /// Payload went by; it is counted already.
    pub(super) fn on_bytes(&mut self, of_request: bool, body: &mut Body, payload: &[u8]) {
        let content = self.content(of_request);
        if content.lost {
            return;
        }
        let room = content.keep.saturating_sub(body.prefix.len()).min(payload.len());
        body.prefix.extend_from_slice(payload.get(..room).unwrap_or_default());
        if let Some(reader) = &mut content.reader {
            reader.on_bytes(payload);
        }
    }

    pub(super) fn on_gap(&mut self, of_request: bool, len: u64) {
        let content = self.content(of_request);
        // What comes behind does not continue the prefix.
        content.keep = 0;
        if let Some(reader) = &mut content.reader {
            reader.on_gap(len);
        }
    }

    /// Where payload begins and ends is not known any more.
    pub(super) fn on_loss(&mut self, of_request: bool) {
        let content = self.content(of_request);
        content.lost = true;
        if let Some(reader) = &mut content.reader {
            reader.on_loss();
        }
    }

    /// The response is a stream that may be silent for long.
    pub(super) const fn is_stream(&self) -> bool {
        self.response.reader.is_some()
    }

    /// Tell what was counted.
    pub(super) fn summarize(&self, request: Option<&mut Body>, response: Option<&mut Response>) {
        if let Some(body) = request {
            body.messages = self.request.reader.as_ref().map(Reader::summary);
        }
        if let Some(response) = response
            && let Some(reader) = &self.response.reader
        {
            response.body.messages = Some(reader.summary());
            if let Some(trailers) = reader.trailers() {
                response.trailers = Some(Box::new(trailers));
            }
        }
    }

    pub(super) fn memory(&self) -> usize {
        let readers = [&self.request, &self.response].into_iter().filter_map(|content| content.reader.as_ref());
        size_of::<Self>() + readers.map(Reader::memory).sum::<usize>()
    }

    const fn content(&mut self, of_request: bool) -> &mut Content {
        if of_request { &mut self.request } else { &mut self.response }
    }
}
