//! The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B).
//!
//! It is canonical: codes of one length are consecutive in the order of their bytes, and follow from the shorter ones. So
//! the lengths are all there is to know, and the tables that decode two bytes at once are made of them.

use super::Error;

/// Bits of the code of each byte, and of the end of the string (256).
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
const LONGEST: u32 = 30;
/// Bits that are looked up at once: two bytes of nearly all that fields are made of.
const LOOKUP: u32 = 12;

/// What the next bits stand for.
#[derive(Clone, Copy)]
struct Step {
    bytes: [u8; 2],
    /// Bits of the first byte; none: its code is longer than what is looked up.
    first: u8,
    /// Bits of both, or of the first if the second is not whole.
    both: u8,
}

/// The codes of one length.
#[derive(Clone, Copy)]
struct Group {
    /// The first code behind them, left-aligned.
    end: u64,
    /// The first of them, right-aligned.
    code: u32,
    /// Where their bytes begin in `ORDER`.
    start: usize,
}

const GROUPS: [Group; LONGEST as usize + 1] = groups();
/// Bytes in the order of their codes.
const ORDER: [u16; 257] = order();
static STEPS: [Step; 1 << LOOKUP] = steps();

const fn groups() -> [Group; LONGEST as usize + 1] {
    let mut groups = [Group { end: 0, code: 0, start: 0 }; LONGEST as usize + 1];
    let (mut code, mut start, mut length) = (0, 0, 1);
    while length <= LONGEST as usize {
        let mut count = 0;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            count += (LENGTHS[symbol] as usize == length) as u32;
            symbol += 1;
        }
        let end = ((code + count) as u64) << (32 - length);
        groups[length] = Group { end, code, start };
        code = (code + count) << 1;
        start += count as usize;
        length += 1;
    }
    groups
}

const fn order() -> [u16; 257] {
    let mut order = [0; 257];
    let (mut at, mut length) = (0, 1);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as u32 == length {
                order[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    order
}

const fn steps() -> [Step; 1 << LOOKUP] {
    let mut steps = [Step { bytes: [0; 2], first: 0, both: 0 }; 1 << LOOKUP];
    let mut bits = 0;
    while bits < steps.len() {
        let window = (bits as u32) << (32 - LOOKUP);
        if let Some((first, length)) = symbol(window, LOOKUP) {
            let mut step = Step { bytes: [first as u8, 0], first: length as u8, both: length as u8 };
            if let Some((second, more)) = symbol(window << length, LOOKUP - length) {
                step.bytes[1] = second as u8;
                step.both += more as u8;
            }
            steps[bits] = step;
        }
        bits += 1;
    }
    steps
}

/// What left-aligned bits begin with, and its bits, if those are at most `most`.
const fn symbol(window: u32, most: u32) -> Option<(u16, u32)> {
    let mut length = 5;
    while length <= most && length <= LONGEST {
        let group = GROUPS[length as usize];
        if (window as u64) < group.end {
            let at = group.start + ((window >> (32 - length)) - group.code) as usize;
            return Some((ORDER[at], length));
        }
        length += 1;
    }
    None
}

/// Append the decoded bytes; none if there is an error.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    // Five bits are the least a byte takes; two bytes are written at once.
    out.resize(start + bytes.len() * 8 / 5 + 2, 0);
    let written = expand(bytes, out.get_mut(start..).unwrap_or_default());
    out.truncate(start + written.unwrap_or_default());
    written.map(|_| ()).ok_or(Error::InvalidHuffman)
}

/// `None`: not a code, or padding that is none.
fn expand(mut rest: &[u8], out: &mut [u8]) -> Option<usize> {
    // The next bits, left-aligned: `held` of them count, what is behind is either zero or right as well.
    let (mut window, mut held, mut at) = (0_u64, 0_u32, 0);
    loop {
        if let Some(word) = rest.first_chunk() {
            window |= u64::from_be_bytes(*word) >> held;
            let taken = (63 - held) / 8;
            rest = rest.get(taken as usize..)?;
            held += taken * 8;
        } else {
            while held <= 56
                && let Some((&byte, behind)) = rest.split_first()
            {
                window |= u64::from(byte) << (56 - held);
                held += 8;
                rest = behind;
            }
            if held < LONGEST {
                break;
            }
        }
        while held >= LONGEST {
            let step = STEPS.get((window >> (64 - LOOKUP)) as usize)?;
            let mut length = u32::from(step.both);
            if length > 0 {
                *out.get_mut(at..)?.first_chunk_mut()? = step.bytes;
                at += 1 + usize::from(step.both != step.first);
            } else {
                let long = symbol((window >> 32) as u32, LONGEST)?;
                *out.get_mut(at)? = u8::try_from(long.0).ok()?;
                at += 1;
                length = long.1;
            }
            window <<= length;
            held -= length;
        }
    }
    // What is left may end with the first bits of the end of the string, which is all ones.
    window |= u64::MAX >> held;
    loop {
        let step = STEPS.get((window >> (64 - LOOKUP)) as usize)?;
        let (first, both) = (u32::from(step.first), u32::from(step.both));
        let length = if both > 0 && both <= held {
            *out.get_mut(at..)?.first_chunk_mut()? = step.bytes;
            at += 1 + usize::from(both != first);
            both
        } else {
            let (byte, length) = symbol((window >> 32) as u32, LONGEST)?;
            if length > held {
                break;
            }
            *out.get_mut(at)? = u8::try_from(byte).ok()?;
            at += 1;
            length
        };
        window = !(!window << length);
        held -= length;
    }
    (held < 8 && window == u64::MAX).then_some(at)
}

#[cfg(test)]
pub(super) fn encode(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut held, mut count) = (Vec::new(), 0_u64, 0);
    for &byte in bytes {
        let length = u32::from(LENGTHS[usize::from(byte)]);
        let group = GROUPS[length as usize];
        let at = ORDER.iter().position(|&it| it == u16::from(byte)).unwrap();
        held = held << length | (u64::from(group.code) + (at - group.start) as u64);
        count += length;
        while count >= 8 {
            count -= 8;
            out.push((held >> count) as u8);
        }
    }
    if count > 0 {
        out.push((held << (8 - count)) as u8 | (0xff >> count));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_complete_and_without_prefixes() {
        // Kraft's sum of a code in which every string of bits means something is one.
        let sum: u64 = LENGTHS.iter().map(|length| 1_u64 << (32 - length)).sum();
        assert_eq!(sum, 1 << 32);
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        // The first and the last code of each length (appendix B).
        for (symbol, code, length) in [
            (usize::from(b'0'), 0x0, 5),
            (usize::from(b't'), 0x9, 5),
            (usize::from(b' '), 0x14, 6),
            (usize::from(b'u'), 0x2d, 6),
            (usize::from(b':'), 0x5c, 7),
            (usize::from(b'z'), 0x7b, 7),
            (usize::from(b'&'), 0xf8, 8),
            (usize::from(b'Z'), 0xfd, 8),
            (usize::from(b'!'), 0x3f8, 10),
            (usize::from(b'?'), 0x3fc, 10),
            (usize::from(b'\''), 0x7fa, 11),
            (usize::from(b'|'), 0x7fc, 11),
            (usize::from(b'#'), 0xffa, 12),
            (usize::from(b'>'), 0xffb, 12),
            (0, 0x1ff8, 13),
            (usize::from(b'~'), 0x1ffd, 13),
            (usize::from(b'^'), 0x3ffc, 14),
            (usize::from(b'}'), 0x3ffd, 14),
            (usize::from(b'<'), 0x7ffc, 15),
            (usize::from(b'{'), 0x7ffe, 15),
            (usize::from(b'\\'), 0x7_fff0, 19),
            (208, 0x7_fff2, 19),
            (128, 0xf_ffe6, 20),
            (226, 0xf_ffed, 20),
            (153, 0x1f_ffdc, 21),
            (230, 0x1f_ffe8, 21),
            (129, 0x3f_ffd2, 22),
            (233, 0x3f_ffeb, 22),
            (1, 0x7f_ffd8, 23),
            (239, 0x7f_fff4, 23),
            (9, 0xff_ffea, 24),
            (237, 0xff_fff5, 24),
            (199, 0x1ff_ffec, 25),
            (235, 0x1ff_ffef, 25),
            (192, 0x3ff_ffe0, 26),
            (255, 0x3ff_ffee, 26),
            (203, 0x7ff_ffde, 27),
            (254, 0x7ff_fff0, 27),
            (2, 0xfff_ffe2, 28),
            (249, 0xfff_fffe, 28),
            (10, 0x3fff_fffc, 30),
            (256, 0x3fff_ffff, 30),
        ] {
            assert_eq!(super::symbol(code << (32 - length), LONGEST), Some((symbol as u16, length)), "{code:x}");
        }
    }

    #[test]
    fn every_byte_survives_in_every_company() {
        for first in 0..=255_u8 {
            for second in 0..=255_u8 {
                let text = [first, second, first];
                let mut out = Vec::new();
                assert_eq!(decode(&encode(&text), &mut out), Ok(()));
                assert_eq!(out, text);
            }
        }
    }

    #[test]
    fn examples_of_the_standard_decode() {
        for (bytes, text) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x64, 0x02], "302"),
        ] {
            let mut out = Vec::new();
            assert_eq!(decode(bytes, &mut out), Ok(()));
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn padding_is_up_to_seven_ones() {
        // `0` is 00000.
        for (bytes, good) in [
            (&[0b0000_0111][..], true),
            (&[0b0000_0110], false),
            (&[0b0000_0111, 0xff], false),
            (&[0xff], false),
            (&[0xff, 0xff, 0xff, 0xff], false),
            (&[], true),
        ] {
            assert_eq!(decode(bytes, &mut Vec::new()).is_ok(), good, "{bytes:?}");
        }
    }
}
