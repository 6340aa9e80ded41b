//! The zstd coding (RFC 8878). A block is decoded whole or not at all: cut content yields what comes before the cut
//! block. Memory: the window, as far as RFC 9659 lets the coding go, and a few blocks.

#![expect(clippy::disallowed_methods, reason = "decoders have their bounds here")]

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// RFC 9659 section 3.
const WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Blocks decoded at most, of up to 128 KiB each: a prefix is in the first unless a server flushes after every word.
const BLOCKS: usize = 8;
/// A block without content, the last of its frame.
const LAST_BLOCK: [u8; 3] = [1, 0, 0];
/// In the frame header's descriptor.
const SINGLE_SEGMENT: u8 = 0x20;
const CHECKSUM: u8 = 0x04;

pub(super) fn decode(coded: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut frame = whole_blocks(coded)?;
    frame.extend_from_slice(&LAST_BLOCK);
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(WINDOW_BYTES);
    let mut rest = &frame[..];
    decoder.reset(&mut rest).ok()?;
    decoder.decode_blocks(&mut rest, BlockDecodingStrategy::All).ok()?;
    let mut content = decoder.collect()?;
    content.truncate(most);
    Some(content)
}

/// The frame's header and those of its first blocks that are whole, none of them the last, without a checksum.
fn whole_blocks(coded: &[u8]) -> Option<Vec<u8>> {
    let descriptor = *coded.strip_prefix(&MAGIC)?.first()?;
    let single = descriptor & SINGLE_SEGMENT != 0;
    let window = usize::from(!single);
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = [usize::from(single), 2, 4, 8][usize::from(descriptor >> 6)];
    let header = coded.get(..MAGIC.len() + 1 + window + dictionary + size)?;
    let mut frame = header.to_vec();
    *frame.get_mut(MAGIC.len())? &= !CHECKSUM;
    let mut rest = coded.get(header.len()..)?;
    for _ in 0..BLOCKS {
        let Some([low, middle, high]) = rest.first_chunk().copied() else { break };
        let [is_last, kind] = [low & 1, low >> 1 & 3];
        let size = u32::from_le_bytes([low, middle, high, 0]) >> 3;
        // A repeated byte stands once.
        let len = if kind == 1 { 1 } else { size as usize };
        let Some(block) = rest.get(LAST_BLOCK.len()..LAST_BLOCK.len() + len) else { break };
        frame.extend_from_slice(&[low & !1, middle, high]);
        frame.extend_from_slice(block);
        rest = rest.get(LAST_BLOCK.len() + len..).unwrap_or_default();
        if is_last == 1 {
            break;
        }
    }
    Some(frame)
}
