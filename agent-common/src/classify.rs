//! Which protocol are these first bytes: arithmetic on the first eight bytes, used in the kernel, tested on the host.

use crate::event::protocol;

/// What is known of a connection after some of its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A request-line of a registered method begins here (RFC 9110 section 9, RFC 5789).
    Request {
        /// GET, HEAD, DELETE, OPTIONS, TRACE: content is not expected, so what follows is another request.
        bodyless: bool,
    },
    /// A status-line begins here.
    Response,
    /// The HTTP/2 connection preface (RFC 9113 section 3.4).
    Http2,
    /// A TLS record (RFC 8446 section 5.1): the handshake's first, or one of a connection met later.
    Tls,
    /// Too short to tell, and nothing speaks against HTTP/1.
    Partial,
    /// None of these.
    Other,
}

impl Start {
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Request { .. } | Self::Response => protocol::HTTP1,
            Self::Http2 => protocol::HTTP2,
            Self::Tls => protocol::TLS,
            Self::Partial => protocol::UNKNOWN,
            Self::Other => protocol::OTHER,
        }
    }
}

const fn word(token: &[u8]) -> u64 {
    let mut value = 0_u64;
    let mut at = 0;
    while at < token.len() {
        value |= (token[at] as u64) << (8 * at);
        at += 1;
    }
    value
}

const fn mask(len: u32) -> u64 {
    if len >= 8 { u64::MAX } else { (1 << (8 * len)) - 1 }
}

/// `(first bytes, their number, bodyless)`.
const METHODS: [(u64, u32, bool); 9] = [
    (word(b"GET "), 4, true),
    (word(b"POST "), 5, false),
    (word(b"PUT "), 4, false),
    (word(b"HEAD "), 5, true),
    (word(b"DELETE "), 7, true),
    (word(b"PATCH "), 6, false),
    (word(b"OPTIONS "), 8, true),
    (word(b"CONNECT "), 8, false),
    (word(b"TRACE "), 6, true),
];
const STATUS: (u64, u32) = (word(b"HTTP/1."), 7);
const PREFACE: (u64, u32) = (word(b"PRI * HT"), 8);

/// Classify `first`: the first `len` (at most 8) bytes of a stream, little-endian in a word, the rest zero.
#[inline(always)]
pub fn classify(first: u64, len: u32) -> Start {
    if len >= 8 {
        return classify_word(first);
    }
    if len >= 3 && is_tls_record(first) {
        return Start::Tls;
    }
    let seen = mask(len);
    let mut at = 0;
    while at < METHODS.len() {
        let (token, token_len, bodyless) = METHODS[at];
        if len >= token_len && first & mask(token_len) == token {
            return Start::Request { bodyless };
        }
        if (first ^ token) & seen & mask(token_len) == 0 {
            return Start::Partial;
        }
        at += 1;
    }
    if (first ^ STATUS.0) & seen & mask(STATUS.1) == 0 {
        return if len >= STATUS.1 { Start::Response } else { Start::Partial };
    }
    if (first ^ PREFACE.0) & seen == 0 {
        return Start::Partial;
    }
    Start::Other
}

/// As [`classify`] with all eight bytes there: a handful of comparisons, no loop.
#[inline(always)]
pub fn classify_word(first: u64) -> Start {
    // The lowest byte chooses, so that bytes of a body meet one comparison.
    match first as u8 {
        b'G' if first & mask(4) == METHODS[0].0 => Start::Request { bodyless: true },
        b'H' if first & mask(7) == STATUS.0 => Start::Response,
        b'H' if first & mask(5) == METHODS[3].0 => Start::Request { bodyless: true },
        b'P' if first & mask(5) == METHODS[1].0
            || first & mask(4) == METHODS[2].0
            || first & mask(6) == METHODS[5].0 =>
        {
            Start::Request { bodyless: false }
        }
        b'P' if first == PREFACE.0 => Start::Http2,
        b'D' if first & mask(7) == METHODS[4].0 => Start::Request { bodyless: true },
        b'O' if first == METHODS[6].0 => Start::Request { bodyless: true },
        b'C' if first == METHODS[7].0 => Start::Request { bodyless: false },
        b'T' if first & mask(6) == METHODS[8].0 => Start::Request { bodyless: true },
        0x14..=0x17 if is_tls_record(first) => Start::Tls,
        _ => Start::Other,
    }
}

/// Content type, then a legacy version from SSL 3.0 to TLS 1.3.
#[inline(always)]
pub const fn is_tls_record(first: u64) -> bool {
    let (kind, major, minor) = (first as u8, (first >> 8) as u8, (first >> 16) as u8);
    matches!(kind, 0x14..=0x17) && major == 3 && minor <= 4
}

/// The record at the start of `first` holds application data: the handshake is over in this direction.
#[inline(always)]
pub const fn is_tls_application_data(first: u64) -> bool {
    first as u8 == 0x17
}

/// What encryption adds to a record that carries `plain` bytes could make it `encrypted` bytes long: the tag of TLS
/// 1.3 with its content type, explicit nonces, or CBC padding with a MAC. Longer writes are split into full records.
#[inline(always)]
pub const fn is_tls_expansion(plain: u64, encrypted: u64) -> bool {
    const RECORD: u64 = 16 * 1024;
    if plain >= RECORD { encrypted >= RECORD } else { encrypted >= plain + 16 && encrypted <= plain + 64 }
}

/// Whether sixteen bytes begin with a request-line of a method that is not registered here (RFC 9110 section 16.1.1):
/// capital letters, a space, and the start of a request-target. The target tells HTTP from the text protocols that
/// begin with a word too.
#[inline(always)]
pub fn is_extension_method(first: &[u8; 16]) -> bool {
    let mut letters = true;
    let mut found = false;
    let mut at = 0;
    while at < 15 {
        let byte = first[at];
        let next = first[at + 1];
        if letters && at >= 3 && byte == b' ' && (next == b'/' || next == b'*' || next == b'h') {
            found = true;
        }
        letters = letters && (byte.is_ascii_uppercase() || byte == b'-');
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn of(bytes: &[u8]) -> Start {
        let len = bytes.len().min(8);
        classify(word(&bytes[..len]), len as u32)
    }

    #[test]
    fn whole_starts_are_recognised() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1\r\n"[..], Start::Request { bodyless: true }),
            (b"POST /a HTTP/1.1", Start::Request { bodyless: false }),
            (b"PUT /a", Start::Request { bodyless: false }),
            (b"PATCH /a", Start::Request { bodyless: false }),
            (b"OPTIONS * HTTP/1.1", Start::Request { bodyless: true }),
            (b"CONNECT a:1 HTTP/1.1", Start::Request { bodyless: false }),
            (b"HTTP/1.1 200 OK", Start::Response),
            (b"HTTP/2 200 OK", Start::Other),
            (b"PRI * HTTP/2.0\r\n", Start::Http2),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01", Start::Tls),
            (b"\x16\x03\x01", Start::Tls),
            (b"\x17\x03\x03\x00\x45", Start::Tls),
            (b"\x17\x03\x03\x00\x45\x01\x02\x03", Start::Tls),
            (b"\x18\x03\x03\x00\x45\x01\x02\x03", Start::Other),
            (b"\x16\x03\x07\x00\x45\x01\x02\x03", Start::Other),
            (b"GETX / HTTP/1.1", Start::Other),
            (b"get / HTTP/1.1", Start::Other),
            (b"*1\r\n$4\r\nPING", Start::Other),
            (b"SSH-2.0-OpenSSH", Start::Other),
        ] {
            assert_eq!(of(bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn every_prefix_of_a_start_is_partial_or_decided_alike() {
        for bytes in [&b"GET / HT"[..], b"POST / H", b"DELETE /", b"HTTP/1.1", b"PRI * HT", b"CONNECT "] {
            let whole = of(bytes);
            for len in 1..8 {
                let part = of(&bytes[..len]);
                assert!(part == Start::Partial || part == whole, "{bytes:?} cut at {len}: {part:?}");
            }
        }
    }

    #[test]
    fn the_word_form_agrees_with_the_table() {
        for (token, len, bodyless) in METHODS {
            for fill in [0x00_u64, 0x2f2f_2f2f_2f2f_2f2f, u64::MAX] {
                let first = token | (fill & !mask(len));
                assert_eq!(classify_word(first), Start::Request { bodyless });
            }
        }
    }

    #[test]
    fn a_record_is_a_little_longer_than_its_plaintext() {
        for (plain, encrypted, want) in
            [(100, 117, true), (100, 124, true), (100, 152, true), (100, 100, false), (100, 200, false)]
        {
            assert_eq!(is_tls_expansion(plain, encrypted), want, "{plain} {encrypted}");
        }
        assert!(is_tls_expansion(100_000, 16 * 1024 + 17));
        assert!(!is_tls_expansion(100_000, 500));
    }

    #[test]
    fn extension_methods_need_a_target_behind_them() {
        for (bytes, want) in [
            (b"PROPFIND /a HTTP", true),
            (b"MKCALENDAR /a HT", true),
            (b"M-SEARCH * HTTP/", true),
            (b"QUERY http://a/b", true),
            (b"EHLO example.org", false),
            (b"USER anonymous\r\n", false),
            (b"PUB a.b 5\r\nhello", false),
            (b"NO /short HTTP/1", false),
            (b"PROPFINDPROPFIND", false),
            (b"propfind /a HTTP", false),
            (b"ABC x ABC /abcde", false),
        ] {
            assert_eq!(is_extension_method(bytes), want, "{bytes:?}");
        }
    }
}
