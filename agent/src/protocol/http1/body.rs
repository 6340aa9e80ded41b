//! Where the content of an HTTP/1 message ends (RFC 9112 sections 6 and 7). It counts and never keeps content.

use crate::protocol::Limits;

/// Most hexadecimal digits of a chunk size: those of a `u64`.
const CHUNK_SIZE_DIGITS: u8 = 16;
/// The last chunk and an empty trailer section, seen from the line break of the chunk before.
const LAST_CHUNK: [u8; 7] = *b"\r\n0\r\n\r\n";

/// How a message's head says its content is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
    /// The head contradicts itself: peers disagree on where the content ends, so nobody outside can know.
    Unknown,
}

/// Content that is going by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Length {
        left: u64,
    },
    Chunked(Chunk),
    UntilClose,
    /// Chunk framing was lost. The window holds the last bytes seen without a gap.
    Inferred {
        window: [u8; 7],
    },
}

/// Place within the chunked coding (RFC 9112 section 7.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Size {
        size: u64,
        digits: u8,
        /// Bytes of the line so far.
        line: usize,
        /// The digits are over: an extension, white space or the CR.
        past_digits: bool,
    },
    Payload {
        left: u64,
    },
    /// The line break after a chunk's payload.
    PayloadEnd,
    Trailer {
        /// Bytes of the section so far.
        section: usize,
        /// Bytes of the current line, CR not counted.
        line: usize,
    },
}

/// What a piece of content did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) consumed: usize,
    pub(super) ended: bool,
}

/// What a gap did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GapProgress {
    /// All of it was payload.
    Inside,
    /// The content ended within; `payload` bytes of the gap belonged to it, `beyond` did not.
    Ended { payload: u64, beyond: u64 },
    /// It touched chunk framing: the end of the content is no longer known.
    FramingLost,
}

/// The chunked coding is not followed, or is longer than the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl Content {
    /// `None` when there is no content.
    pub(super) fn new(framing: Framing) -> Option<Self> {
        match framing {
            Framing::None | Framing::Unknown | Framing::Length(0) => None,
            Framing::Length(left) => Some(Self::Length { left }),
            Framing::Chunked => Some(Self::Chunked(Chunk::SIZE)),
            Framing::UntilClose => Some(Self::UntilClose),
        }
    }

    pub(super) const fn inferred() -> Self {
        Self::Inferred { window: [0; 7] }
    }

    /// Take what belongs to the content from the front of `bytes`; `payload` gets what is not framing.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
        payload: &mut impl FnMut(&[u8]),
    ) -> Result<Progress, Broken> {
        match self {
            Self::Length { left } => {
                let (content, _) = split(bytes, *left);
                payload(content);
                *left -= content.len() as u64;
                Ok(Progress { consumed: content.len(), ended: *left == 0 })
            }
            Self::UntilClose => {
                payload(bytes);
                Ok(Progress { consumed: bytes.len(), ended: false })
            }
            Self::Inferred { window } => {
                payload(bytes);
                for &byte in bytes.iter().skip(bytes.len().saturating_sub(window.len())) {
                    window.rotate_left(1);
                    window[6] = byte;
                }
                Ok(Progress { consumed: bytes.len(), ended: *window == LAST_CHUNK })
            }
            Self::Chunked(chunk) => chunk.push(bytes, limits, payload),
        }
    }

    pub(super) fn gap(&mut self, len: u64) -> GapProgress {
        match self {
            Self::Length { left } if len < *left => {
                *left -= len;
                GapProgress::Inside
            }
            Self::Length { left } => GapProgress::Ended { payload: *left, beyond: len - *left },
            Self::UntilClose => GapProgress::Inside,
            Self::Chunked(Chunk::Payload { left }) if len <= *left => {
                *left -= len;
                if *left == 0 {
                    *self = Self::Chunked(Chunk::PayloadEnd);
                }
                GapProgress::Inside
            }
            Self::Chunked(_) => GapProgress::FramingLost,
            Self::Inferred { window } => {
                *window = [0; 7];
                GapProgress::Inside
            }
        }
    }
}

impl Chunk {
    const SIZE: Self = Self::Size { size: 0, digits: 0, line: 0, past_digits: false };

    fn push(&mut self, bytes: &[u8], limits: &Limits, payload: &mut impl FnMut(&[u8])) -> Result<Progress, Broken> {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            match self {
                Self::Payload { left } => {
                    let (content, after) = split(rest, *left);
                    payload(content);
                    *left -= content.len() as u64;
                    if *left == 0 {
                        *self = Self::PayloadEnd;
                    }
                    rest = after;
                    continue;
                }
                Self::Size { size, digits, line, past_digits } => {
                    *line += 1;
                    if *line > limits.chunk_line {
                        return Err(Broken);
                    }
                    match (byte, (byte as char).to_digit(16)) {
                        (b'\n', _) if *digits == 0 => return Err(Broken),
                        (b'\n', _) if *size == 0 => *self = Self::Trailer { section: 0, line: 0 },
                        (b'\n', _) => *self = Self::Payload { left: *size },
                        (_, Some(digit)) if !*past_digits => {
                            *digits += 1;
                            if *digits > CHUNK_SIZE_DIGITS {
                                return Err(Broken);
                            }
                            *size = (*size << 4) | u64::from(digit);
                        }
                        (b'\r' | b';' | b' ' | b'\t', _) if *digits > 0 => *past_digits = true,
                        _ if *past_digits => {}
                        _ => return Err(Broken),
                    }
                }
                // A bare LF ends a line for nginx, Node and Go too.
                Self::PayloadEnd => match byte {
                    b'\r' => {}
                    b'\n' => *self = Self::SIZE,
                    _ => return Err(Broken),
                },
                Self::Trailer { section, line } => {
                    *section += 1;
                    if *section > limits.trailer_bytes {
                        return Err(Broken);
                    }
                    match byte {
                        b'\n' if *line == 0 => {
                            return Ok(Progress { consumed: bytes.len() - after.len(), ended: true });
                        }
                        b'\n' => *line = 0,
                        b'\r' => {}
                        _ => *line += 1,
                    }
                }
            }
            rest = after;
        }
        Ok(Progress { consumed: bytes.len(), ended: false })
    }
}

/// The first `len` bytes, or all of them, and what follows.
fn split(bytes: &[u8], len: u64) -> (&[u8], &[u8]) {
    let at = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_checked(at).unwrap_or((bytes, &[]))
}
