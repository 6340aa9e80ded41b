//! Content codings (RFC 9110 section 8.4.1): the beginning of coded content in, the beginning of the content out. The
//! only place that undoes them.
//!
//! Input is cut as a rule, and what can be had of it is given. Whatever the input, the output is at most what was asked
//! for, and the memory taken meanwhile is bounded by the windows that the codings are allowed here.

mod brotli;
mod inflate;
mod zstd;

use std::borrow::Cow;

/// Codings on top of each other that are undone; more than one is an oddity.
const LAYERS: usize = 2;

/// A coding that can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// The beginning of the content whose `content-encoding` is `codings`, in wire order, and whose first bytes are
/// `coded`: at most `most` bytes. `None` where a coding is not known, or `coded` is not of it.
pub fn decode<'a, 'h>(codings: impl Iterator<Item = &'h [u8]>, coded: &'a [u8], most: usize) -> Option<Cow<'a, [u8]>> {
    let mut layers = Vec::new();
    for name in codings.flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii) {
        match Coding::named(name) {
            Ok(None) => {}
            Ok(Some(coding)) if layers.len() < LAYERS => layers.push(coding),
            _ => return None,
        }
    }
    let mut content = Cow::Borrowed(coded.get(..most).unwrap_or(coded));
    // The last one applied is the first to undo.
    for (undone, coding) in layers.iter().rev().enumerate() {
        let coded = if undone == 0 { coded } else { &content };
        content = Cow::Owned(coding.undo(coded, most)?);
    }
    Some(content)
}

impl Coding {
    /// `None` for those that change nothing.
    fn named(name: &[u8]) -> Result<Option<Self>, ()> {
        const NAMES: [(&[u8], Option<Coding>); 8] = [
            (b"", None),
            (b"identity", None),
            (b"gzip", Some(Coding::Gzip)),
            (b"x-gzip", Some(Coding::Gzip)),
            (b"deflate", Some(Coding::Deflate)),
            (b"br", Some(Coding::Brotli)),
            (b"zstd", Some(Coding::Zstd)),
            (b"x-deflate", Some(Coding::Deflate)),
        ];
        NAMES.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, coding)| *coding).ok_or(())
    }

    fn undo(self, coded: &[u8], most: usize) -> Option<Vec<u8>> {
        match self {
            Self::Gzip => inflate::gzip(coded, most),
            Self::Deflate => inflate::deflate(coded, most),
            Self::Brotli => brotli::decode(coded, most),
            Self::Zstd => zstd::decode(coded, most),
        }
    }
}

#[cfg(test)]
mod tests;
