//! The gzip and deflate codings: DEFLATE (RFC 1951) bare, in zlib (RFC 1950) and in gzip (RFC 1952). Memory: a window
//! of 32 KiB.

#![expect(clippy::disallowed_methods, reason = "decoders have their bounds here")]

use flate2::{Decompress, FlushDecompress};

const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// Magic, flags, time, extra flags, system.
const HEADER: usize = 10;
const HAS_CHECKSUM: u8 = 2;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;

/// The first member of a gzip file; further ones are no more than a curiosity in HTTP.
pub(super) fn gzip(coded: &[u8], most: usize) -> Option<Vec<u8>> {
    if !coded.starts_with(&MAGIC) {
        return None;
    }
    let flags = *coded.get(MAGIC.len())?;
    let mut rest = coded.get(HEADER..)?;
    if flags & HAS_EXTRA != 0 {
        let len = u16::from_le_bytes(*rest.first_chunk()?);
        rest = rest.get(2 + usize::from(len)..)?;
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        if flags & text != 0 {
            rest = rest.get(memchr::memchr(0, rest)? + 1..)?;
        }
    }
    if flags & HAS_CHECKSUM != 0 {
        rest = rest.get(2..)?;
    }
    inflate(rest, false, most)
}

/// zlib as the standard says, or bare as some servers send (RFC 9110 section 8.4.1.2).
pub(super) fn deflate(coded: &[u8], most: usize) -> Option<Vec<u8>> {
    let is_zlib = matches!(coded, [first, second, ..]
        if first & 15 == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31));
    inflate(coded, is_zlib, most).or_else(|| if is_zlib { inflate(coded, false, most) } else { None })
}

/// `None` when the first bytes are wrong already.
fn inflate(coded: &[u8], is_zlib: bool, most: usize) -> Option<Vec<u8>> {
    let mut state = Decompress::new(is_zlib);
    let mut content = Vec::with_capacity(most);
    let outcome = state.decompress_vec(coded, &mut content, FlushDecompress::Sync);
    if outcome.is_err() && content.is_empty() { None } else { Some(content) }
}
