//! The br coding (RFC 7932). Memory: the window that the content asks for, 16 MiB at most; no more is allowed without
//! the extension for large windows.

#![expect(clippy::disallowed_methods, reason = "decoders have their bounds here")]

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};

pub(super) fn decode(coded: &[u8], most: usize) -> Option<Vec<u8>> {
    let allocate = StandardAlloc::default;
    let mut state = BrotliState::new_strict(allocate(), allocate(), allocate());
    let mut content = vec![0; most];
    let (mut left, mut read, mut room, mut written, mut total) = (coded.len(), 0, most, 0, 0);
    let outcome = BrotliDecompressStream(
        &mut left,
        &mut read,
        coded,
        &mut room,
        &mut written,
        &mut content,
        &mut total,
        &mut state,
    );
    content.truncate(written);
    let is_brotli = !matches!(outcome, BrotliResult::ResultFailure) || !content.is_empty();
    is_brotli.then_some(content)
}
