//! Any bytes as content of any codings: no panic, never more output than asked for, and what less of the input gives is
//! the beginning of what more of it gives.
#![no_main]

use agent::coding::decode;
use libfuzzer_sys::fuzz_target;

/// By the bits of the first byte, on top of each other.
const NAMES: [&[u8]; 6] = [b"gzip", b"deflate", b"br", b"zstd", b"identity", b"unknown"];

fuzz_target!(|input: &[u8]| {
    let [first, second, cut, most, coded @ ..] = input else { return };
    let name = |byte: u8| NAMES.get(usize::from(byte % 6)).copied().unwrap_or_default();
    let codings: Vec<&[u8]> = if first & 0x80 == 0 { vec![name(*first)] } else { vec![name(*first), name(*second)] };
    let most = usize::from(*most) * 64;
    let whole = decode(codings.iter().copied(), coded, most);
    assert!(whole.as_ref().is_none_or(|content| content.len() <= most));
    let start = coded.len() * usize::from(*cut) / 256;
    let (Some(less), Some(whole)) = (decode(codings.iter().copied(), &coded[..start], most), whole) else { return };
    assert!(whole.starts_with(&less));
});
