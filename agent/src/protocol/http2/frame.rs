//! One frame on its way: which of its payload's bytes are content, and which are padding or come before (RFC 9113
//! sections 4.1 and 6). Keeps no bytes.

use agent_common::http2::{FrameHeader, flags, kind};

/// A frame whose header was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) header: FrameHeader,
    /// Bytes of payload that have not gone by.
    left: u32,
    /// Of these, the ones before the content: pad length, priority, promised stream.
    before: u32,
    /// Of these, the ones behind the content.
    padding: u32,
    /// The first byte of the payload says how long the padding is, and is still to come.
    padded: bool,
    /// That byte went by unseen.
    pub(super) unsure: bool,
}

/// What became of some bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step<T> {
    /// Bytes used up.
    pub(super) used: usize,
    pub(super) content: T,
}

impl Frame {
    /// `Err`: no conforming peer sends such a header.
    pub(super) fn new(header: FrameHeader) -> Result<Self, ()> {
        if !header.is_lawful() {
            return Err(());
        }
        let may_pad = matches!(header.kind, kind::DATA | kind::HEADERS | kind::PUSH_PROMISE);
        let padded = may_pad && header.has(flags::PADDED);
        let fields = match header.kind {
            kind::HEADERS if header.has(flags::PRIORITY) => 5,
            kind::PUSH_PROMISE => 4,
            _ => 0,
        };
        let before = u32::from(padded) + fields;
        if header.len < before {
            return Err(());
        }
        Ok(Self { header, left: header.len, before, padding: 0, padded, unsure: false })
    }

    pub(super) const fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Bytes of content still to come, if the padding is known.
    pub(super) const fn content_left(&self) -> u32 {
        self.left.saturating_sub(self.before).saturating_sub(self.padding)
    }

    /// Take the next bytes: at most this frame's. `Err`: the padding is longer than the frame.
    pub(super) fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<Step<&'a [u8]>, ()> {
        let most = (self.left as usize).min(bytes.len());
        let bytes = bytes.get(..most).unwrap_or_default();
        if self.padded
            && let Some(&padding) = bytes.first()
        {
            self.padded = false;
            self.padding = u32::from(padding);
            if self.padding > self.left - self.before {
                return Err(());
            }
        }
        let skipped = (self.before as usize).min(most);
        let content = (self.content_left() as usize).min(most - skipped);
        let content = bytes.get(skipped..skipped + content).unwrap_or_default();
        self.before -= skipped as u32;
        self.left -= most as u32;
        Ok(Step { used: most, content })
    }

    /// Pass over bytes that were not seen; the content is their number.
    pub(super) fn skip(&mut self, len: u64) -> Step<u64> {
        let most = u64::from(self.left).min(len) as u32;
        if self.padded && most > 0 {
            self.padded = false;
            self.unsure = true;
        }
        let skipped = self.before.min(most);
        let content = self.content_left().min(most - skipped);
        self.before -= skipped;
        self.left -= most;
        Step { used: most as usize, content: u64::from(content) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, flags: u8, len: u32) -> FrameHeader {
        FrameHeader { len, kind, flags, stream: 1, reserved: false }
    }

    #[test]
    fn padding_and_priority_are_no_content() {
        for (kind, flags, payload, want) in [
            (kind::DATA, 0, &b"abc"[..], &b"abc"[..]),
            (kind::DATA, flags::PADDED, b"\x02abc\0\0", b"abc"),
            (kind::DATA, flags::PADDED, b"\x05\0\0\0\0\0", b""),
            (kind::HEADERS, flags::PRIORITY, b"\0\0\0\0\x10abc", b"abc"),
            (kind::HEADERS, flags::PRIORITY | flags::PADDED, b"\x01\0\0\0\0\x10abc\0", b"abc"),
            (kind::PUSH_PROMISE, 0, b"\0\0\0\x02abc", b"abc"),
        ] {
            for cut in 0..=payload.len() {
                let mut frame = Frame::new(header(kind, flags, payload.len() as u32)).unwrap();
                let mut content = frame.take(&payload[..cut]).unwrap().content.to_vec();
                assert_eq!(frame.is_over(), cut == payload.len());
                content.extend(frame.take(&payload[cut..]).unwrap().content);
                assert_eq!((content.as_slice(), frame.is_over()), (want, true), "{kind} {flags} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_gap_counts_the_content_that_it_hides() {
        let mut frame = Frame::new(header(kind::DATA, flags::PADDED, 100)).unwrap();
        assert_eq!(frame.take(b"\x0aab").unwrap(), Step { used: 3, content: &b"ab"[..] });
        assert_eq!(frame.skip(50), Step { used: 50, content: 50 });
        assert_eq!(frame.skip(1000), Step { used: 47, content: 37 });
        assert!(frame.is_over() && !frame.unsure);
        let mut frame = Frame::new(header(kind::DATA, flags::PADDED, 100)).unwrap();
        frame.skip(1);
        assert!(frame.unsure);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(Frame::new(header(kind::HEADERS, flags::PRIORITY, 4)).is_err());
        assert!(Frame::new(header(kind::RST_STREAM, 0, 5)).is_err());
        let mut frame = Frame::new(header(kind::DATA, flags::PADDED, 3)).unwrap();
        assert!(frame.take(b"\x03ab").is_err());
    }
}
