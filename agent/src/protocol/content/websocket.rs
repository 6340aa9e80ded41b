//! One direction of a WebSocket (RFC 6455 section 5): messages counted over their fragments, control frames apart, the
//! code of the close frame. Payload is passed over, its mask undone for that code alone.

use super::Tally;

const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const MASK: u8 = 0x80;
const CLOSE: u8 = 8;
/// Opcodes from here on are those of control frames.
const CONTROL: u8 = 8;
/// Longest payload of a control frame (section 5.5).
const CONTROL_PAYLOAD: u64 = 125;

/// One direction.
#[derive(Clone, Debug, Default)]
pub(super) struct WebSocket {
    tally: Tally,
    place: Place,
    /// A message's first fragment came, its last did not.
    open: bool,
    close: Close,
}

#[derive(Clone, Debug)]
enum Place {
    /// A frame's header so far: at most 14 bytes (section 5.2).
    Header {
        bytes: [u8; 14],
        seen: u8,
    },
    Payload {
        left: u64,
        frame: Frame,
    },
    /// Where the next frame begins is not known.
    Lost,
    /// Behind the close frame nothing counts.
    Closed,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    first: u8,
    mask: [u8; 4],
}

/// What the close frame says.
#[derive(Clone, Copy, Debug, Default)]
struct Close {
    code: [u8; 2],
    seen: u8,
    /// A gap hid some of it.
    cut: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self::Header { bytes: [0; 14], seen: 0 }
    }
}

impl WebSocket {
    pub(super) fn on_bytes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            match &mut self.place {
                Place::Lost | Place::Closed => return,
                Place::Header { bytes, seen } => {
                    if let Some(slot) = bytes.get_mut(usize::from(*seen)) {
                        *slot = byte;
                    }
                    *seen += 1;
                    rest = after;
                    let (header, seen) = (*bytes, *seen);
                    if seen >= 2 && usize::from(seen) == header_len(header[1]) {
                        self.begin(&header);
                    }
                }
                Place::Payload { left, frame } => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    let (payload, after) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
                    let (left, frame) = (*left - payload.len() as u64, *frame);
                    if frame.first & OPCODE == CLOSE {
                        self.close.push(payload, frame.mask);
                    }
                    rest = after;
                    self.go_on(left, frame);
                }
            }
        }
    }

    pub(super) fn on_gap(&mut self, len: u64) {
        match self.place {
            Place::Payload { left, frame } if len <= left => {
                self.close.cut |= frame.first & OPCODE == CLOSE && self.close.seen < 2;
                self.go_on(left - len, frame);
            }
            Place::Payload { frame, .. } => {
                self.close.cut |= frame.first & OPCODE == CLOSE && self.close.seen < 2;
                self.go_on(0, frame);
                self.lose();
            }
            _ => self.lose(),
        }
    }

    /// What was counted stays; behind a close frame there is nothing to lose.
    pub(super) fn lose(&mut self) {
        if !matches!(self.place, Place::Closed) {
            self.place = Place::Lost;
            self.tally.exact = false;
        }
    }

    pub(super) const fn tally(&self) -> Tally {
        self.tally
    }

    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.place, Place::Closed)
    }

    /// 1005 where the close frame is empty (section 7.1.5); `None` before it, or where a gap hid it.
    pub(super) fn close_code(&self) -> Option<u16> {
        match self.close {
            _ if !self.is_closed() => None,
            Close { cut: true, .. } => None,
            Close { seen: 2, code, .. } => Some(u16::from_be_bytes(code)),
            Close { seen: 0, .. } => Some(1005),
            Close { .. } => None,
        }
    }

    /// A frame's header is whole.
    fn begin(&mut self, header: &[u8; 14]) {
        let [first, second, ..] = *header;
        let extended = header_len(second & !MASK);
        let left = match (second & !MASK, header) {
            (126, [_, _, high, low, ..]) => u64::from(u16::from_be_bytes([*high, *low])),
            (127, [_, _, long @ .., _, _, _, _]) => u64::from_be_bytes(*long),
            (len, _) => u64::from(len),
        };
        let mut mask = [0; 4];
        if second & MASK != 0
            && let Some(key) = header.get(extended..extended + mask.len())
        {
            mask.copy_from_slice(key);
        }
        let opcode = first & OPCODE;
        let in_order = match opcode {
            0 => self.open,
            1 | 2 => !self.open,
            8..=10 => first & FIN != 0 && left <= CONTROL_PAYLOAD,
            // Reserved: no peer that follows the protocol goes on.
            _ => false,
        };
        // The highest bit of the length is never set (section 5.2).
        if !in_order || left > u64::MAX >> 1 {
            self.lose();
            return;
        }
        if opcode < CONTROL {
            self.open = true;
        }
        self.go_on(left, Frame { first, mask });
    }

    /// In a frame's payload, or at its end.
    fn go_on(&mut self, left: u64, frame: Frame) {
        if left > 0 {
            self.place = Place::Payload { left, frame };
            return;
        }
        self.place = Place::default();
        match frame.first & OPCODE {
            CLOSE => self.place = Place::Closed,
            opcode if opcode >= CONTROL => {}
            _ if frame.first & FIN != 0 => {
                self.open = false;
                self.tally.add();
            }
            _ => {}
        }
    }
}

impl Close {
    fn push(&mut self, payload: &[u8], mask: [u8; 4]) {
        for &byte in payload {
            let at = usize::from(self.seen);
            let (Some(slot), Some(key)) = (self.code.get_mut(at), mask.get(at)) else {
                return;
            };
            *slot = byte ^ key;
            self.seen += 1;
        }
    }
}

/// Length of a frame's header by its second byte.
const fn header_len(second: u8) -> usize {
    let extended = match second & !MASK {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & MASK == 0 { 0 } else { 4 }
}
