//! QUIC, by the first bytes of a datagram: enough to say that HTTP/3 may be spoken, which nobody reads.

/// Bytes of the smallest datagram that begins a connection: clients pad it, and servers their answers (RFC 9000 section
/// 14.1).
pub const INITIAL_MIN: u32 = 1200;

/// Versions 1 (RFC 9000) and 2 (RFC 9369), as on the wire.
const VERSIONS: [u32; 2] = [0x0000_0001, 0x6b33_43cf];

/// A datagram of `len` bytes whose first eight are `first` (little-endian in a word) begins a connection of QUIC: it has a
/// long header with the fixed bit and a version that is known (RFC 8999 section 5.1, RFC 9000 section 17.2).
#[inline(always)]
pub const fn is_initial(first: u64, len: u32) -> bool {
    let version = (first >> 8) as u32;
    len >= INITIAL_MIN
        && first as u8 & 0xc0 == 0xc0
        && (version == VERSIONS[0].swap_bytes() || version == VERSIONS[1].swap_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_padded_long_headers_of_known_versions_begin_a_connection() {
        for (bytes, len, want) in [
            (*b"\xc3\x00\x00\x00\x01\x08\x01\x02", 1200, true),
            (*b"\xff\x00\x00\x00\x01\x14\x01\x02", 1472, true),
            (*b"\xd0\x6b\x33\x43\xcf\x08\x01\x02", 12_000, true),
            (*b"\xc3\x00\x00\x00\x01\x08\x01\x02", 1199, false),
            (*b"\x43\x00\x00\x00\x01\x08\x01\x02", 1200, false),
            (*b"\x83\x00\x00\x00\x01\x08\x01\x02", 1200, false),
            (*b"\xc3\x00\x00\x00\x00\x08\x01\x02", 1200, false),
            (*b"\xc3\x01\x00\x00\x00\x08\x01\x02", 1200, false),
            (*b"\xc3\xff\x00\x00\x1d\x08\x01\x02", 1200, false),
            (*b"\x16\xfe\xfd\x00\x00\x00\x00\x00", 1400, false),
        ] {
            assert_eq!(is_initial(u64::from_le_bytes(bytes), len), want, "{bytes:x?} {len}");
        }
    }
}
