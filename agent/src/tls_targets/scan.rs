//! Searches of whole sections, piece by piece, so that a large file is not held at once.

use std::ops::ControlFlow;

use object::ReadRef;

use super::elf::{Image, Section};

/// Bytes of a section that are searched.
const MAX_SECTION: u64 = 1 << 30;
const PIECE: u64 = 1 << 20;
/// What is as long is whole in one of the pieces. One number for all, so that a cache below has each piece once.
pub(super) const OVERLAP: u64 = 512;

/// Shows a section in pieces with the address of each. Each begins with the last [`OVERLAP`] bytes of the one before.
pub(super) fn pieces<'a, R: ReadRef<'a>>(
    image: &Image<'a, R>,
    section: Section,
    show: &mut dyn FnMut(u64, &'a [u8]) -> ControlFlow<()>,
) {
    let size = section.size.min(MAX_SECTION);
    let mut at = 0;
    while at < size {
        let start = at - OVERLAP.min(at);
        let len = (OVERLAP.min(at) + PIECE).min(size - start);
        let Some(address) = section.address.checked_add(start) else { return };
        let Some(bytes) = image.bytes(address, len) else { return };
        if show(address, bytes).is_break() {
            return;
        }
        at += PIECE;
    }
}
