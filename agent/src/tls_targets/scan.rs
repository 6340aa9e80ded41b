//! Searches of whole sections, piece by piece, so that a large file is not held at once.

use std::ops::ControlFlow;

use memchr::memmem;

use super::elf::{Image, Section};
use super::source::Source;

/// Bytes of a section that are searched.
const MAX_SECTION: u64 = 1 << 30;
const PIECE: u64 = 1 << 20;
/// What is as long is whole in one of the pieces.
pub(super) const OVERLAP: u64 = 512;

/// Shows a section in pieces with the address of each. Each begins with the last [`OVERLAP`] bytes of the one before.
pub(super) fn pieces<'a, R: Source<'a>>(
    image: &Image<'a, R>,
    section: Section,
    show: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>,
) {
    let size = section.size.min(MAX_SECTION);
    let (mut at, mut piece) = (0, Vec::new());
    while at < size {
        let start = at - OVERLAP.min(at);
        let len = (OVERLAP.min(at) + PIECE).min(size - start);
        let Some(address) = section.address.checked_add(start) else { return };
        piece.resize(len as usize, 0);
        if image.copy(address, &mut piece).is_none() || show(address, &piece).is_break() {
            return;
        }
        at += PIECE;
    }
}

/// The register of an argument, as instructions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    Third,
    Fourth,
}

/// Where the code loads one of the addresses as an argument: `lea reg,[rip+..]`, or `mov reg,..` in a program that is not
/// position independent. At most about `max` places; each may be in the middle of an instruction.
pub(super) fn loads<'a, R: Source<'a>>(
    image: &Image<'a, R>,
    text: Section,
    argument: Argument,
    addresses: &[u64],
    max: usize,
) -> Vec<u64> {
    const LEN: usize = 7;
    let (relative, absolute) = match argument {
        Argument::Third => ([0x48, 0x8d, 0x15], 0xba),
        Argument::Fourth => ([0x48, 0x8d, 0x0d], 0xb9),
    };
    let finder = memmem::Finder::new(&relative);
    let absolute: Vec<_> = addresses
        .iter()
        .filter_map(|&address| u32::try_from(address).ok())
        .map(|address| memmem::Finder::new(&[[absolute].as_slice(), &address.to_le_bytes()].concat()).into_owned())
        .collect();
    let mut places = Vec::new();
    pieces(image, text, &mut |address, bytes| {
        for at in finder.find_iter(bytes) {
            let place = address.wrapping_add(at as u64);
            let distance = bytes.get(at + relative.len()..).and_then(|rest| rest.first_chunk());
            let loaded = distance.map(|distance| {
                place.wrapping_add(LEN as u64).wrapping_add_signed(i64::from(i32::from_le_bytes(*distance)))
            });
            if loaded.is_some_and(|loaded| addresses.contains(&loaded)) {
                places.push(place);
            }
        }
        for finder in &absolute {
            places.extend(finder.find_iter(bytes).map(|at| address.wrapping_add(at as u64)));
        }
        if places.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    places
}
