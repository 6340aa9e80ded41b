//! Server-Sent Events (WHATWG HTML section 9.2.6): an event is what a blank line ends, if a `data` field came before.
//! Comments that keep a connection alive are no events.

use super::Tally;

/// The name of the field that makes an event.
const DATA: &[u8] = b"data";
/// May come before the first line.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// One stream of events.
#[derive(Clone, Debug)]
pub(super) struct EventStream {
    tally: Tally,
    line: Line,
    /// A `data` field came since the last blank line.
    data: bool,
    /// The last byte was a CR: an LF belongs to it.
    after_cr: bool,
    /// The content is coded: nothing can be read.
    unreadable: bool,
}

/// What is known of the current line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Bytes of a byte order mark so far, before the first line.
    First(u8),
    /// Nothing of it yet.
    Start,
    /// Bytes of [`DATA`] that it begins with.
    Name(u8),
    /// It is another field, a comment, or its beginning was not seen.
    Other,
}

impl Default for EventStream {
    fn default() -> Self {
        Self { tally: Tally::default(), line: Line::First(0), data: false, after_cr: false, unreadable: false }
    }
}

impl EventStream {
    /// A stream in a content coding.
    pub(super) fn unreadable() -> Self {
        Self { unreadable: true, tally: Tally { count: 0, exact: false }, ..Self::default() }
    }

    pub(super) fn on_bytes(&mut self, bytes: &[u8]) {
        if self.unreadable {
            return;
        }
        let mut rest = bytes;
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while !rest.is_empty() {
            let end = memchr::memchr2(b'\r', b'\n', rest);
            let (text, after) = rest.split_at_checked(end.unwrap_or(rest.len())).unwrap_or((rest, &[]));
            self.on_text(text);
            match after {
                [b'\r', b'\n', after @ ..] | [b'\n' | b'\r', after @ ..] => {
                    self.after_cr = after.is_empty() && rest.ends_with(b"\r");
                    self.end_line();
                    rest = after;
                }
                _ => return,
            }
        }
    }

    pub(super) fn on_gap(&mut self) {
        // A `data` field that was seen makes an event with the next blank line, wherever that is.
        self.line = Line::Other;
        self.after_cr = false;
        self.tally.exact = false;
    }

    pub(super) const fn tally(&self) -> Tally {
        self.tally
    }

    /// More of the current line.
    fn on_text(&mut self, text: &[u8]) {
        for &byte in text {
            self.line = match self.line {
                Line::First(seen) if BYTE_ORDER_MARK.get(usize::from(seen)) == Some(&byte) => {
                    let seen = seen + 1;
                    if usize::from(seen) == BYTE_ORDER_MARK.len() { Line::Start } else { Line::First(seen) }
                }
                Line::First(0) | Line::Start if DATA.first() == Some(&byte) => Line::Name(1),
                Line::Name(seen) if DATA.get(usize::from(seen)) == Some(&byte) => Line::Name(seen + 1),
                Line::Name(seen) if usize::from(seen) == DATA.len() && byte == b':' => {
                    self.data = true;
                    Line::Other
                }
                _ => Line::Other,
            };
            if self.line == Line::Other {
                return;
            }
        }
    }

    fn end_line(&mut self) {
        match self.line {
            Line::Start | Line::First(0) if self.data => {
                self.tally.add();
                self.data = false;
            }
            // A field without a colon is one with an empty value.
            Line::Name(seen) => self.data |= usize::from(seen) == DATA.len(),
            Line::Start | Line::First(_) | Line::Other => {}
        }
        self.line = Line::Start;
    }
}
