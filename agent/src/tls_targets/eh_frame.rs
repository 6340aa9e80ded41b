//! `.eh_frame_hdr`: where functions begin and end, for unwinding (Linux Standard Base, "Exception Frames"). It is mapped
//! and survives `strip`, so that a file without symbols still has its functions' bounds.

use super::elf::{Function, Image, Section};
use super::source::Source;

const HEADER_SIZE: u64 = 12;
const ENTRY_SIZE: u64 = 8;
/// Functions of one file; the largest browsers have a million.
const MAX_ENTRIES: u64 = 8_000_000;
/// Version, then how the pointer, the count and the table are written: the only form that linkers write.
const FORM: [u8; 4] = [1, 0x1b, 0x03, 0x3b];

/// The sorted table of a file.
pub(super) struct Functions<'a> {
    /// Pairs of 32-bit distances from the header: a function, its frame description.
    table: &'a [u8],
    header: u64,
}

impl<'a> Functions<'a> {
    pub(super) fn read<R: Source<'a>>(image: &Image<'a, R>) -> Option<Self> {
        let Section { address: header, size, .. } = image.section(".eh_frame_hdr")?;
        let bytes = image.bytes(header, HEADER_SIZE)?;
        let count = u64::from(u32_at(bytes, 8)?);
        let fits = count <= MAX_ENTRIES && HEADER_SIZE + count * ENTRY_SIZE <= size;
        if !bytes.starts_with(&FORM) || !fits {
            return None;
        }
        let table = image.bytes(header.checked_add(HEADER_SIZE)?, count * ENTRY_SIZE)?;
        Some(Self { table, header })
    }

    /// The function that an address lies in.
    pub(super) fn around<R: Source<'a>>(&self, image: &Image<'a, R>, address: u64) -> Option<Function> {
        let (entries, _) = self.table.as_chunks::<{ ENTRY_SIZE as usize }>();
        let place = |at: Option<u32>| Some(self.header.wrapping_add_signed(i64::from(at? as i32)));
        let start = |entry: &[u8; 8]| place(u32_at(entry, 0));
        let behind = entries.partition_point(|entry| start(entry).is_some_and(|start| start <= address));
        let entry = entries.get(behind.checked_sub(1)?)?;
        let function = frame(image, place(u32_at(entry, 4))?, start(entry)?)?;
        (address < function.address.checked_add(function.size)?).then_some(function)
    }
}

/// The bounds in a frame description; it must be of the function that the table says.
fn frame<'a, R: Source<'a>>(image: &Image<'a, R>, description: u64, start: u64) -> Option<Function> {
    // Length, place of what is common, then the start from here and the size.
    let bytes = image.bytes(description, 16)?;
    let from = description.checked_add(8)?;
    let address = from.wrapping_add_signed(i64::from(u32_at(bytes, 8)? as i32));
    let size = u64::from(u32_at(bytes, 12)?);
    (address == start && size != 0).then_some(Function { address, size })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
