//! HTTP/2 frame headers: what the kernel programs must know to find the frames of an operation, and how likely it is
//! that some bytes are one. Arithmetic on nine bytes, used on both sides, tested on the host. Payloads are not looked at.

/// Bytes of a frame header (RFC 9113 section 4.1).
pub const FRAME_HEADER: usize = 9;
/// The connection preface of a client (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest frame that [`FrameHeader::is_plausible`] believes in. The protocol allows 16 MiB, but only to a peer whose
/// `SETTINGS_MAX_FRAME_SIZE` says so: 16 KiB is the default, 1 MiB (Go) the most that well-known ones ask for.
pub const PLAUSIBLE_FRAME: u32 = 1 << 20;
/// Longest SETTINGS frame believed in: each of its parameters is six bytes, seven are registered with RFC 9113 and 8441.
const PLAUSIBLE_SETTINGS: u32 = 6 * 32;
/// Longest GOAWAY frame believed in: eight bytes and debug text.
const PLAUSIBLE_GOAWAY: u32 = 4096;

/// Frame types (RFC 9113 section 6; the last three RFC 7838, 8336 and 9218).
pub mod kind {
    pub const DATA: u8 = 0x0;
    pub const HEADERS: u8 = 0x1;
    pub const PRIORITY: u8 = 0x2;
    pub const RST_STREAM: u8 = 0x3;
    pub const SETTINGS: u8 = 0x4;
    pub const PUSH_PROMISE: u8 = 0x5;
    pub const PING: u8 = 0x6;
    pub const GOAWAY: u8 = 0x7;
    pub const WINDOW_UPDATE: u8 = 0x8;
    pub const CONTINUATION: u8 = 0x9;
    pub const ALTSVC: u8 = 0xa;
    pub const ORIGIN: u8 = 0xc;
    pub const PRIORITY_UPDATE: u8 = 0x10;
}

/// Flags of frames; what a bit means depends on the type.
pub mod flags {
    /// DATA, HEADERS: the last frame of its message.
    pub const END_STREAM: u8 = 0x1;
    /// SETTINGS, PING.
    pub const ACK: u8 = 0x1;
    /// HEADERS, PUSH_PROMISE, CONTINUATION: the header block ends here.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS, PUSH_PROMISE: a byte with the number of bytes of padding comes first.
    pub const PADDED: u8 = 0x8;
    /// HEADERS: five bytes of priority come before the block.
    pub const PRIORITY: u8 = 0x20;
}

/// How much of a frame is worth copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// All of it: without its bytes later frames cannot be understood, or it is short.
    Whole,
    /// Its first bytes: content of a message.
    Content,
    /// Its first bytes, no more than a glance: a type that is not known here and that receivers ignore (section 5.5).
    Glance,
}

/// The first nine bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of payload, below 2^24.
    pub len: u32,
    /// One of [`kind`], or one that is not known here.
    pub kind: u8,
    /// See [`flags`].
    pub flags: u8,
    /// Below 2^31; 0 is the connection itself.
    pub stream: u32,
    /// The reserved bit in front of the stream, which senders leave unset.
    pub reserved: bool,
}

impl FrameHeader {
    pub const fn parse(bytes: &[u8; FRAME_HEADER]) -> Self {
        let [first @ .., last] = *bytes;
        Self::from_word(u64::from_le_bytes(first), last)
    }

    /// From the first eight bytes, little-endian in a word, and the ninth.
    #[inline(always)]
    pub const fn from_word(word: u64, last: u8) -> Self {
        let stream = (word >> 40) as u8 as u32;
        let stream = stream << 24 | ((word >> 48) as u8 as u32) << 16 | ((word >> 56) as u8 as u32) << 8 | last as u32;
        Self {
            len: (word as u8 as u32) << 16 | ((word >> 8) as u8 as u32) << 8 | (word >> 16) as u8 as u32,
            kind: (word >> 24) as u8,
            flags: (word >> 32) as u8,
            stream: stream & 0x7fff_ffff,
            reserved: stream >> 31 != 0,
        }
    }

    /// Bytes of the whole frame.
    #[inline(always)]
    pub const fn total(&self) -> u32 {
        FRAME_HEADER as u32 + self.len
    }

    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// A conforming peer may send this frame where a frame is known to begin: the fixed lengths and the streams are
    /// right. Unknown types are lawful, and so are flags that have no meaning (section 4.1): both are ignored.
    #[inline(always)]
    pub const fn is_lawful(&self) -> bool {
        match self.kind {
            kind::DATA | kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => self.stream != 0,
            kind::PRIORITY => self.stream != 0 && self.len == 5,
            kind::RST_STREAM => self.stream != 0 && self.len == 4,
            kind::SETTINGS => {
                self.stream == 0 && self.len.is_multiple_of(6) && (!self.has(flags::ACK) || self.len == 0)
            }
            kind::PING => self.stream == 0 && self.len == 8,
            kind::GOAWAY => self.stream == 0 && self.len >= 8,
            kind::WINDOW_UPDATE => self.len == 4,
            _ => true,
        }
    }

    /// Bytes that may be anything look like a frame that peers really send. Stricter than [`Self::is_lawful`]: registered
    /// types with their own flags only, streams opened by the client, lengths that occur. About one in a hundred thousand
    /// random headers passes; a caller wants a second one where the first frame ends, or the operation to end there.
    #[inline(always)]
    pub const fn is_plausible(&self) -> bool {
        if self.reserved || self.len > PLAUSIBLE_FRAME || !self.is_lawful() {
            return false;
        }
        // Even streams are those a server pushes: gone from browsers, never the first thing met on a connection.
        let request = self.stream & 1 == 1;
        match self.kind {
            kind::DATA => {
                self.flags & !(flags::END_STREAM | flags::PADDED) == 0
                    && request
                    // An empty frame has no other purpose.
                    && (self.len > 0 || self.has(flags::END_STREAM))
            }
            kind::HEADERS => {
                const ALL: u8 = flags::END_STREAM | flags::END_HEADERS | flags::PADDED | flags::PRIORITY;
                // A block has at least one byte, behind what the flags announce.
                let before =
                    if self.has(flags::PADDED) { 1 } else { 0 } + if self.has(flags::PRIORITY) { 5 } else { 0 };
                self.flags & !ALL == 0 && request && self.len > before
            }
            kind::PUSH_PROMISE => {
                let before = if self.has(flags::PADDED) { 5 } else { 4 };
                self.flags & !(flags::END_HEADERS | flags::PADDED) == 0 && request && self.len > before
            }
            kind::CONTINUATION => self.flags & !flags::END_HEADERS == 0 && request && self.len > 0,
            kind::PRIORITY | kind::RST_STREAM => self.flags == 0 && request,
            kind::SETTINGS => self.flags & !flags::ACK == 0 && self.len <= PLAUSIBLE_SETTINGS,
            kind::PING => self.flags & !flags::ACK == 0,
            kind::GOAWAY => self.flags == 0 && self.len <= PLAUSIBLE_GOAWAY,
            kind::WINDOW_UPDATE => self.flags == 0 && (self.stream == 0 || request),
            _ => false,
        }
    }

    /// How much of the frame is worth copying.
    #[inline(always)]
    pub const fn interest(&self) -> Interest {
        match self.kind {
            kind::DATA => Interest::Content,
            kind::HEADERS..=kind::CONTINUATION => Interest::Whole,
            _ => Interest::Glance,
        }
    }
}

/// The first bytes of an operation, little-endian in a word, may begin a frame that is plausible: the cheap part of
/// [`FrameHeader::is_plausible`], one comparison for text.
#[inline(always)]
pub const fn may_begin(word: u64) -> bool {
    // The highest byte of a length of 1 MiB at most.
    (word as u8) <= (PLAUSIBLE_FRAME >> 16) as u8 && (word >> 24) as u8 <= kind::CONTINUATION
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn header(len: u32, kind: u8, flags: u8, stream: u32) -> [u8; FRAME_HEADER] {
        let (len, stream) = (len.to_be_bytes(), stream.to_be_bytes());
        [len[1], len[2], len[3], kind, flags, stream[0], stream[1], stream[2], stream[3]]
    }

    fn word(bytes: &[u8; FRAME_HEADER]) -> u64 {
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    }

    /// As the kernel does: a plausible header, and another one where it ends, or nothing.
    fn is_chain(bytes: &[u8]) -> bool {
        let Some(first) = bytes.first_chunk().map(FrameHeader::parse) else { return false };
        if !first.is_plausible() {
            return false;
        }
        let rest = bytes.get(first.total() as usize..);
        first.total() as usize == bytes.len()
            || rest.and_then(<[u8]>::first_chunk).is_some_and(|next| FrameHeader::parse(next).is_plausible())
    }

    #[test]
    fn nine_bytes_are_parsed_as_the_rfc_lays_them_out() {
        let bytes = [0x01, 0x02, 0x03, 0x04, 0x05, 0x86, 0x07, 0x08, 0x09];
        let want = FrameHeader { len: 0x01_0203, kind: 4, flags: 5, stream: 0x0607_0809, reserved: true };
        assert_eq!(FrameHeader::parse(&bytes), want);
        assert_eq!(FrameHeader::from_word(word(&bytes), 9), want);
        assert_eq!(want.total(), 0x01_0203 + 9);
    }

    #[test]
    fn frames_that_peers_send_are_lawful_and_plausible() {
        for (len, kind, flags, stream) in [
            (0, kind::SETTINGS, flags::ACK, 0),
            (18, kind::SETTINGS, 0, 0),
            (4, kind::WINDOW_UPDATE, 0, 0),
            (4, kind::WINDOW_UPDATE, 0, 7),
            (8, kind::PING, 0, 0),
            (8, kind::PING, flags::ACK, 0),
            (8, kind::GOAWAY, 0, 0),
            (40, kind::GOAWAY, 0, 0),
            (4, kind::RST_STREAM, 0, 3),
            (5, kind::PRIORITY, 0, 3),
            (33, kind::HEADERS, flags::END_HEADERS | flags::END_STREAM, 1),
            (33, kind::HEADERS, 0x2d, 0x7fff_ffff),
            (1, kind::HEADERS, flags::END_HEADERS, 1),
            (16_384, kind::CONTINUATION, 0, 1),
            (12, kind::PUSH_PROMISE, flags::END_HEADERS, 1),
            (0, kind::DATA, flags::END_STREAM, 9),
            (16_384, kind::DATA, 0, 9),
            (1 << 20, kind::DATA, flags::PADDED, 9),
        ] {
            let bytes = header(len, kind, flags, stream);
            let parsed = FrameHeader::parse(&bytes);
            assert!(parsed.is_lawful(), "{parsed:?}");
            assert!(parsed.is_plausible(), "{parsed:?}");
            assert!(may_begin(word(&bytes)), "{parsed:?}");
        }
    }

    #[test]
    fn what_no_peer_sends_is_not_plausible() {
        for (len, kind, flags, stream, lawful) in [
            (0, kind::DATA, 0, 0, false),
            (0, kind::DATA, 0, 1, true),
            (5, kind::DATA, flags::END_HEADERS, 1, true),
            (5, kind::DATA, 0, 2, true),
            ((1 << 20) + 1, kind::DATA, 0, 1, true),
            (0, kind::HEADERS, flags::END_HEADERS, 1, true),
            (6, kind::HEADERS, flags::PADDED | flags::PRIORITY, 1, true),
            (6, kind::HEADERS, 0x40, 1, true),
            (6, kind::HEADERS, 0, 0, false),
            (4, kind::PRIORITY, 0, 1, false),
            (5, kind::RST_STREAM, 0, 1, false),
            (4, kind::RST_STREAM, 0, 0, false),
            (7, kind::SETTINGS, 0, 0, false),
            (6, kind::SETTINGS, flags::ACK, 0, false),
            (6, kind::SETTINGS, 0, 1, false),
            (600, kind::SETTINGS, 0, 0, true),
            (9, kind::PING, 0, 0, false),
            (8, kind::PING, 0, 1, false),
            (7, kind::GOAWAY, 0, 0, false),
            (5, kind::WINDOW_UPDATE, 0, 0, false),
            (0, kind::CONTINUATION, flags::END_HEADERS, 1, true),
            (100, 0x1f, 0xff, 12, true),
        ] {
            let parsed = FrameHeader::parse(&header(len, kind, flags, stream));
            assert_eq!(parsed.is_lawful(), lawful, "{parsed:?}");
            assert!(!parsed.is_plausible(), "{parsed:?}");
        }
        assert!(!FrameHeader::parse(&header(8, kind::PING, 0, 1 << 31)).is_plausible());
    }

    #[test]
    fn all_that_is_plausible_may_begin_and_is_lawful() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2_000_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Small numbers are what makes headers plausible.
            let word = random.rotate_left(29) & 0x00ff_ffff_3f0f_ffff;
            let parsed = FrameHeader::from_word(word, (random >> 7) as u8);
            if parsed.is_plausible() {
                assert!(may_begin(word) && parsed.is_lawful(), "{parsed:?}");
            }
        }
    }

    #[test]
    fn random_bytes_are_no_chain() {
        let mut random = 1_u64;
        let mut plausible = 0;
        for _ in 0..400_000 {
            let bytes: Vec<u8> = core::iter::repeat_with(|| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random >> 24) as u8
            })
            .take(64)
            .collect();
            plausible += u32::from(FrameHeader::parse(bytes.first_chunk().unwrap()).is_plausible());
            assert!(!is_chain(&bytes), "{bytes:?}");
        }
        assert!(plausible < 40, "{plausible} of 400000 random headers pass");
    }

    #[test]
    fn other_protocols_are_no_chain() {
        let long = |start: &[u8]| {
            let mut bytes = start.to_vec();
            bytes.resize(300_000, 0);
            bytes
        };
        for bytes in [
            // MySQL: greeting, COM_QUERY, COM_PING, OK, column count.
            b"\x4a\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00\x00abcdefgh\x00".to_vec(),
            b"\x09\x00\x00\x00\x03SELECT 1".to_vec(),
            b"\x01\x00\x00\x00\x0e".to_vec(),
            b"\x07\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00".to_vec(),
            long(b"\x01\x00\x00\x01\x01\x17\x00\x00\x02\x03def\x00\x00\x00\x011\x00"),
            // PostgreSQL: startup, query, ready.
            b"\x00\x00\x00\x29\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00".to_vec(),
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f".to_vec(),
            b"Q\x00\x00\x00\x0dSELECT 1\x00".to_vec(),
            b"Z\x00\x00\x00\x05I".to_vec(),
            // Kafka: ApiVersions, Metadata and a request whose length reads as a PRIORITY frame.
            b"\x00\x00\x00\x1a\x00\x12\x00\x03\x00\x00\x00\x01\x00\x08consumer\x00\x08librdkaf".to_vec(),
            long(b"\x00\x00\x05\x02\x00\x03\x00\x09\x00\x00\x00\x07\x00\x08consumer\x00"),
            long(b"\x00\x00\x04\x08\x00\x01\x00\x0b\x00\x00\x00\x07\x00\x08consumer\x00"),
            // MongoDB: OP_MSG of several lengths.
            long(b"\x10\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00\x00\x00\x00\x00"),
            long(b"\x00\x01\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00"),
            // AMQP 0-9-1: header, method frame, body frame.
            b"AMQP\x00\x00\x09\x01".to_vec(),
            b"\x01\x00\x01\x00\x00\x00\x0e\x00\x3c\x00\x28\x00\x00\x00\x00\x05queue\x00\xce".to_vec(),
            long(b"\x03\x00\x01\x00\x01\xff\xf8"),
            // MQTT: CONNECT, PUBLISH, PINGREQ.
            b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd".to_vec(),
            b"\x30\x0c\x00\x05topicvalue".to_vec(),
            b"\xc0\x00".to_vec(),
            // Cassandra: STARTUP, RESULT.
            long(b"\x04\x00\x00\x01\x01\x00\x00\x00\x16\x00\x01\x00\x0bCQL_VERSION\x00\x053.0.0"),
            long(b"\x84\x00\x00\x01\x08\x00\x00\x00\x04\x00\x00\x00\x01"),
            // Redis, memcached (text and binary), NATS, SMTP, SSH, ZooKeeper, Thrift (framed), LDAP, DNS, RDP, ZMTP.
            b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".to_vec(),
            b"get a\r\n".to_vec(),
            b"\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00a".to_vec(),
            b"PUB a.b 5\r\nhello\r\n".to_vec(),
            b"EHLO example.org\r\n".to_vec(),
            b"\x00\x00\x05\xdc\x0a\x14abcdefghijklmnopqrstuvwxyz".to_vec(),
            b"\x00\x00\x00\x2d\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x75\x30".to_vec(),
            b"\x00\x00\x00\x08\xff\xff\xff\xfe\x00\x00\x00\x0b".to_vec(),
            b"\x00\x00\x00\x1d\x80\x01\x00\x01\x00\x00\x00\x04ping\x00\x00\x00\x01\x00".to_vec(),
            b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00".to_vec(),
            b"\x00\x1d\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01".to_vec(),
            b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x0b\x00\x00\x00".to_vec(),
            b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL".to_vec(),
            // TLS, HTTP/1, zeros.
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            long(b""),
            std::vec![0; 9],
        ] {
            assert!(!is_chain(&bytes), "{:?}", &bytes[..bytes.len().min(40)]);
        }
    }

    #[test]
    fn operations_of_http2_are_chains() {
        let settings = header(6, kind::SETTINGS, 0, 0);
        let ack = header(0, kind::SETTINGS, flags::ACK, 0);
        let block = header(3, kind::HEADERS, flags::END_HEADERS, 1);
        let data = header(70_000, kind::DATA, 0, 1);
        let body = std::vec![0xff_u8; 70_000];
        for parts in [
            std::vec![&settings[..], &[0; 6], &ack[..]],
            std::vec![&ack[..]],
            std::vec![&block[..], b"\x82\x84\x86"],
            std::vec![&block[..], b"\x82\x84\x86", &data[..], &body[..1000]],
            std::vec![&data[..], &body[..]],
            std::vec![&data[..], &body[..], &block[..]],
        ] {
            assert!(is_chain(&parts.concat()), "{parts:?}");
        }
    }

    #[test]
    fn only_content_is_cut() {
        for kind in 0..=u8::MAX {
            let want = match kind {
                0 => Interest::Content,
                1..=9 => Interest::Whole,
                _ => Interest::Glance,
            };
            assert_eq!(FrameHeader::parse(&header(1, kind, 0, 1)).interest(), want);
        }
    }
}
