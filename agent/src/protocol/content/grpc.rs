//! Length-prefixed messages of gRPC (its PROTOCOL-HTTP2 document) and of gRPC-Web (PROTOCOL-WEB), whose last frame
//! holds the trailers. Messages are passed over by their length.

use bytes::Bytes;

use super::Tally;
use crate::model::{Field, Headers};

/// One byte of flags and four of length.
const PREFIX: usize = 5;
/// In the flags of gRPC-Web: the frame holds trailers.
const TRAILERS: u8 = 0x80;
/// Longest trailers kept, bytes; gRPC implementations take 8 KiB of metadata by default.
const TRAILER_BYTES: usize = 8 * 1024;
/// Most trailer fields kept: `grpc-status` and `grpc-message` come first everywhere.
const TRAILER_FIELDS: usize = 64;

/// One direction of a gRPC call.
#[derive(Clone, Debug, Default)]
pub(super) struct Grpc {
    tally: Tally,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// Bytes of the prefix so far: flags, then the length.
    Prefix {
        seen: u8,
        flags: u8,
        len: u32,
    },
    Message {
        left: u32,
        flags: u8,
    },
    /// Where the next message begins is not known.
    Lost,
}

/// What a piece of content brought.
enum Step<'a> {
    /// Bytes of a message.
    Payload { flags: u8, bytes: &'a [u8] },
    /// The last byte of a message with these flags has gone by.
    End { flags: u8 },
}

impl Default for Place {
    fn default() -> Self {
        Self::Prefix { seen: 0, flags: 0, len: 0 }
    }
}

impl Place {
    /// Walk over `bytes`; `accepted` are the flags that a frame may have.
    fn walk<'a>(&mut self, bytes: &'a [u8], accepted: u8, mut each: impl FnMut(Step<'a>)) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            match self {
                Self::Lost => return,
                Self::Prefix { seen, flags, len } => {
                    if *seen == 0 {
                        *flags = byte;
                    } else {
                        *len = *len << 8 | u32::from(byte);
                    }
                    *seen += 1;
                    rest = after;
                    if *flags & !accepted != 0 {
                        *self = Self::Lost;
                    } else if usize::from(*seen) == PREFIX {
                        let (left, flags) = (*len, *flags);
                        *self = Self::message(left, flags, &mut each);
                    }
                }
                Self::Message { left, flags } => {
                    let taken = rest.len().min(*left as usize);
                    let (payload, after) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
                    let (left, flags) = (*left - payload.len() as u32, *flags);
                    each(Step::Payload { flags, bytes: payload });
                    rest = after;
                    *self = Self::message(left, flags, &mut each);
                }
            }
        }
    }

    fn message<'a>(left: u32, flags: u8, each: &mut impl FnMut(Step<'a>)) -> Self {
        if left > 0 {
            return Self::Message { left, flags };
        }
        each(Step::End { flags });
        Self::default()
    }

    /// Pass over a gap; returns the flags of the message that it ended, if it ended one and nothing more.
    fn skip(&mut self, len: u64) -> Option<u8> {
        match self {
            Self::Message { left, flags } if len < u64::from(*left) => {
                *self = Self::Message { left: *left - len as u32, flags: *flags };
                None
            }
            Self::Message { left, flags } => {
                let flags = *flags;
                *self = if len == u64::from(*left) { Self::default() } else { Self::Lost };
                Some(flags)
            }
            _ => {
                *self = Self::Lost;
                None
            }
        }
    }
}

impl Grpc {
    pub(super) fn on_bytes(&mut self, bytes: &[u8]) {
        let Self { tally, place } = self;
        place.walk(bytes, 1, |step| {
            if matches!(step, Step::End { .. }) {
                tally.add();
            }
        });
        self.settle();
    }

    pub(super) fn on_gap(&mut self, len: u64) {
        if self.place.skip(len).is_some() {
            self.tally.add();
        }
        self.settle();
    }

    pub(super) fn lose(&mut self) {
        self.place = Place::Lost;
        self.settle();
    }

    pub(super) const fn tally(&self) -> Tally {
        self.tally
    }

    fn settle(&mut self) {
        self.tally.exact &= !matches!(self.place, Place::Lost);
    }
}

/// One direction of a gRPC-Web call.
#[derive(Clone, Debug)]
pub(super) struct Web {
    tally: Tally,
    place: Place,
    /// Present where the content is base64 text.
    text: Option<Base64>,
    trailers: Trailers,
}

#[derive(Clone, Debug, Default)]
struct Trailers {
    block: Vec<u8>,
    /// The frame has gone by, all of it seen and kept.
    whole: bool,
    /// Not all of it can be known.
    cut: bool,
}

impl Web {
    pub(super) fn new(text: bool) -> Self {
        Self {
            tally: Tally::default(),
            place: Place::default(),
            text: text.then(Base64::default),
            trailers: Trailers::default(),
        }
    }

    pub(super) fn on_bytes(&mut self, bytes: &[u8]) {
        let Some(text) = &mut self.text else {
            self.on_binary(bytes);
            return;
        };
        if matches!(self.place, Place::Lost) {
            return;
        }
        let mut decoded = Vec::with_capacity(bytes.len() / 4 * 3 + 3);
        let clean = text.decode(bytes, &mut decoded);
        self.on_binary(&decoded);
        if !clean {
            self.lose();
        }
    }

    pub(super) fn on_gap(&mut self, len: u64) {
        if self.text.is_some() {
            // Padding may stand anywhere, so the length says nothing exact.
            self.lose();
            return;
        }
        match (self.place.skip(len), &self.place) {
            (Some(flags), _) if flags & TRAILERS == 0 => self.tally.add(),
            (Some(_), _) | (None, Place::Message { flags: TRAILERS.., .. }) => self.trailers.cut = true,
            (None, _) => {}
        }
        self.settle();
    }

    pub(super) fn lose(&mut self) {
        self.place = Place::Lost;
        self.settle();
    }

    pub(super) const fn tally(&self) -> Tally {
        self.tally
    }

    /// The trailers as fields, names in lower case as they are sent.
    pub(super) fn trailers(&self) -> Option<Headers> {
        if !self.trailers.whole {
            return None;
        }
        let block = Bytes::copy_from_slice(&self.trailers.block);
        let mut fields = Vec::new();
        let mut start = 0;
        for line in block.split_inclusive(|&byte| byte == b'\n') {
            let end = start + line.len();
            let Some(colon) = memchr::memchr(b':', line) else {
                start = end;
                continue;
            };
            if fields.len() == TRAILER_FIELDS {
                break;
            }
            let value = line.get(colon + 1..).unwrap_or_default();
            let from = start + colon + 1 + (value.len() - value.trim_ascii_start().len());
            let to = from + value.trim_ascii().len();
            let name = (start as u32, (start + colon) as u32);
            fields.push(Field { name, value: (from as u32, to as u32) });
            start = end;
        }
        Some(Headers::new(block, fields.into_boxed_slice()))
    }

    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + self.trailers.block.capacity()
    }

    fn on_binary(&mut self, bytes: &[u8]) {
        let Self { tally, place, trailers, .. } = self;
        place.walk(bytes, TRAILERS | 1, |step| match step {
            Step::Payload { flags, bytes } if flags & TRAILERS != 0 => trailers.push(flags, bytes),
            Step::End { flags } if flags & TRAILERS != 0 => trailers.whole = !trailers.cut,
            Step::Payload { .. } => {}
            Step::End { .. } => tally.add(),
        });
        self.settle();
    }

    fn settle(&mut self) {
        self.tally.exact &= !matches!(self.place, Place::Lost);
    }
}

impl Trailers {
    fn push(&mut self, flags: u8, bytes: &[u8]) {
        // Compressed ones (nobody sends them) stay closed, and a second frame is none.
        if flags & 1 != 0 || self.whole || self.block.len() + bytes.len() > TRAILER_BYTES {
            self.cut = true;
            self.whole = false;
        } else {
            self.block.extend_from_slice(bytes);
        }
    }
}

/// Base64 (RFC 4648 section 4) in pieces. Every flush of a server may be padded on its own.
#[derive(Clone, Debug, Default)]
struct Base64 {
    bits: u32,
    digits: u8,
    padding: u8,
}

impl Base64 {
    /// Append what is decoded; false when `text` is not base64 from some place on.
    fn decode(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in text {
            let digit = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' if self.digits >= 2 => {
                    self.padding += 1;
                    if self.digits + self.padding == 4 {
                        let [_, first, second, _] = (self.bits << (6 * self.padding)).to_be_bytes();
                        out.push(first);
                        if self.padding == 1 {
                            out.push(second);
                        }
                        *self = Self::default();
                    }
                    continue;
                }
                _ => return false,
            };
            if self.padding > 0 {
                return false;
            }
            self.bits = self.bits << 6 | u32::from(digit);
            self.digits += 1;
            if self.digits == 4 {
                let [_, rest @ ..] = self.bits.to_be_bytes();
                out.extend_from_slice(&rest);
                *self = Self::default();
            }
        }
        true
    }
}
