//! What the two ends of a TLS connection said in the clear before they encrypted: facts for exporters and detectors.
//!
//! Every text in here came from a peer and is bounded and printable already; nothing in here is a secret. Who a client
//! certificate names is never kept, only that there was one.

mod suites;

use std::fmt;

use suites::SUITES;

use super::Version;

/// The handshake of a connection, as far as it was seen. The default knows only that the connection is TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// What the server chose.
    pub version: Option<TlsVersion>,
    /// What the server chose.
    pub cipher: Option<CipherSuite>,
    /// The key exchange: a curve, a finite field or a hybrid with ML-KEM.
    pub group: Option<NamedGroup>,
    /// The protocol that the server chose (RFC 7301). TLS 1.3 encrypts it; see [`Offer::alpn`].
    pub alpn: Option<Box<str>>,
    /// The session of an earlier connection was taken up, so that no certificate was sent.
    pub resumed: bool,
    /// Encrypted records went both ways, or the cipher was switched on both ways before the copy ended.
    pub established: bool,
    pub offer: Option<Offer>,
    /// The server's own certificate. TLS 1.3 encrypts it.
    pub certificate: Option<Box<Certificate>>,
    /// TLS 1.2 and older; encrypted since.
    pub client_certificate_requested: bool,
    /// TLS 1.2 and older; encrypted since.
    pub client_certificate_sent: bool,
    /// The first alert in the clear (RFC 8446 section 6): why a handshake failed.
    pub alert: Option<Alert>,
}

/// What the client offered (`ClientHello`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The host it asked for (RFC 6066 section 3), lower case; `None` when it named none.
    pub server_name: Option<Box<str>>,
    /// In the order of preference (RFC 7301).
    pub alpn: Box<[Box<str>]>,
    pub min_version: Option<TlsVersion>,
    pub max_version: Option<TlsVersion>,
    /// Over all suites it would accept.
    pub weaknesses: Weaknesses,
    /// It sent or would accept a key exchange that withstands a quantum computer.
    pub post_quantum: bool,
    /// It sent data before the server answered (RFC 8446 section 2.3): can be replayed.
    pub early_data: bool,
    /// `encrypted_client_hello` was there: [`Self::server_name`] may be the front's name (RFC 9849).
    pub encrypted_hello: bool,
}

/// A version of the protocol, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    Ssl3,
    Tls10,
    Tls11,
    Tls12,
    Tls13,
}

/// A number of the IANA registry "TLS Cipher Suites".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CipherSuite(pub u16);

/// A number of the IANA registry "TLS Supported Groups".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamedGroup(pub u16);

/// Of the registry "TLS Alerts".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alert(pub u8);

/// Why a cipher suite should not be used any more (RFC 9325 section 4.2), worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weakness {
    /// Nothing is encrypted.
    Null,
    /// Neither end is authenticated.
    Anonymous,
    /// 40 or 56 bits by decree.
    Export,
    Rc4,
    /// Blocks of 64 bits: DES, 3DES, RC2, IDEA (CVE-2016-2183).
    SmallBlock,
    /// RSA, or Diffie-Hellman with a fixed key: who gets the key later reads what was recorded.
    NoForwardSecrecy,
    /// CBC with the MAC before the encryption (CVE-2013-0169).
    Cbc,
}

/// A set of [`Weakness`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weaknesses(u8);

/// An X.509 certificate of a server (RFC 5280), read, not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Seconds since the Unix epoch.
    pub not_before_unix_s: i64,
    /// Seconds since the Unix epoch.
    pub not_after_unix_s: i64,
    /// Distinguished name as RFC 4514 writes it; organisations and hosts only.
    pub subject: Box<str>,
    pub issuer: Box<str>,
    /// DNS names and IP addresses of `subjectAltName`, as many as are kept.
    pub names: Box<[Box<str>]>,
    /// Subject and issuer are the same.
    pub self_signed: bool,
    pub key: Option<Key>,
    /// What the issuer signed with.
    pub signature: Option<&'static str>,
    /// The signature is over MD5 or SHA-1, which can be forged.
    pub weak_signature: bool,
}

/// Kind and size of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// `RSA`, `EC`, `Ed25519`, ..
    pub kind: &'static str,
    pub bits: u32,
}

impl TlsVersion {
    /// By the number on the wire; `None` for drafts, GREASE (RFC 8701) and what does not exist.
    pub const fn from_wire(wire: u16) -> Option<Self> {
        match wire {
            0x0300 => Some(Self::Ssl3),
            0x0301 => Some(Self::Tls10),
            0x0302 => Some(Self::Tls11),
            0x0303 => Some(Self::Tls12),
            0x0304 => Some(Self::Tls13),
            _ => None,
        }
    }

    /// `tls.protocol.version`.
    pub const fn number(self) -> &'static str {
        match self {
            Self::Ssl3 => "3",
            Self::Tls10 => "1.0",
            Self::Tls11 => "1.1",
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        }
    }

    /// `tls.protocol.name`.
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::Ssl3 => "ssl",
            _ => "tls",
        }
    }
}

impl Handshake {
    /// `tls.protocol.name`.
    pub fn protocol(&self) -> &'static str {
        self.version.map_or("tls", TlsVersion::protocol)
    }

    /// Whether an earlier session was taken up; `None` while the handshake was not seen to its end.
    pub fn resumption(&self) -> Option<bool> {
        (self.resumed || (self.established && self.version.is_some())).then_some(self.resumed)
    }

    /// The protocol above (RFC 7301), where it is known that the server chose one. TLS 1.3 encrypts the choice, but HTTP/2 is
    /// spoken over TLS only where it was offered and chosen (RFC 9113 section 3.2); HTTP/1.1 also where nothing was.
    pub fn next_protocol(&self, spoken: Version) -> Option<&str> {
        let offer = self.offer.as_ref().filter(|_| spoken == Version::Http2);
        self.alpn.as_deref().or_else(|| offer?.alpn.iter().map(|name| &**name).find(|name| *name == "h2"))
    }

    /// The host that the client named.
    pub fn server_name(&self) -> Option<&str> {
        self.offer.as_ref()?.server_name.as_deref()
    }

    /// Bytes on the heap, about.
    pub fn memory(&self) -> usize {
        let list = |list: &[Box<str>]| list.iter().map(|text| size_of::<Box<str>>() + text.len()).sum::<usize>();
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let offer = self.offer.as_ref().map_or(0, |offer| text(&offer.server_name) + list(&offer.alpn));
        let certificate = self.certificate.as_ref().map_or(0, |certificate| {
            size_of::<Certificate>() + certificate.subject.len() + certificate.issuer.len() + list(&certificate.names)
        });
        text(&self.alpn) + offer + certificate
    }
}

impl CipherSuite {
    /// The registered name.
    pub fn name(self) -> Option<&'static str> {
        self.index().and_then(|index| SUITES.get(index)).map(|(_, name)| *name)
    }

    /// What speaks against it; nothing for a suite that is not registered.
    pub fn weaknesses(self) -> Weaknesses {
        self.index().and_then(|index| WEAKNESSES.get(index)).copied().unwrap_or_default()
    }

    fn index(self) -> Option<usize> {
        SUITES.binary_search_by_key(&self.0, |(number, _)| *number).ok()
    }
}

/// The registered name, else the number: `0xC0FF`.
impl fmt::Display for CipherSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "0x{:04X}", self.0),
        }
    }
}

impl fmt::Debug for CipherSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CipherSuite({self})")
    }
}

impl NamedGroup {
    /// The registered name.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            19 => "secp192r1",
            21 => "secp224r1",
            22 => "secp256k1",
            23 => "secp256r1",
            24 => "secp384r1",
            25 => "secp521r1",
            26 => "brainpoolP256r1",
            27 => "brainpoolP384r1",
            28 => "brainpoolP512r1",
            29 => "x25519",
            30 => "x448",
            31 => "brainpoolP256r1tls13",
            32 => "brainpoolP384r1tls13",
            33 => "brainpoolP512r1tls13",
            41 => "curveSM2",
            256 => "ffdhe2048",
            257 => "ffdhe3072",
            258 => "ffdhe4096",
            259 => "ffdhe6144",
            260 => "ffdhe8192",
            512 => "MLKEM512",
            513 => "MLKEM768",
            514 => "MLKEM1024",
            4587 => "SecP256r1MLKEM768",
            4588 => "X25519MLKEM768",
            4589 => "SecP384r1MLKEM1024",
            4590 => "curveSM2MLKEM768",
            25497 => "X25519Kyber768Draft00",
            25498 => "SecP256r1Kyber768Draft00",
            _ => return None,
        })
    }

    /// Withstands a quantum computer: ML-KEM, alone or in a hybrid.
    pub const fn is_post_quantum(self) -> bool {
        matches!(self.0, 512..=514 | 4587..=4590 | 25497 | 25498)
    }
}

/// The registered name, else the number: `0x2A2A`.
impl fmt::Display for NamedGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "0x{:04X}", self.0),
        }
    }
}

impl Alert {
    /// The registered name, of those that end a handshake.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            10 => "unexpected_message",
            20 => "bad_record_mac",
            22 => "record_overflow",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            121 => "ech_required",
            _ => return None,
        })
    }
}

impl Weakness {
    /// Worst first.
    pub const ALL: [Self; 7] =
        [Self::Null, Self::Anonymous, Self::Export, Self::Rc4, Self::SmallBlock, Self::NoForwardSecrecy, Self::Cbc];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Anonymous => "anonymous",
            Self::Export => "export",
            Self::Rc4 => "rc4",
            Self::SmallBlock => "small_block",
            Self::NoForwardSecrecy => "no_forward_secrecy",
            Self::Cbc => "cbc",
        }
    }
}

impl Weaknesses {
    pub const NONE: Self = Self(0);

    pub const fn contains(self, weakness: Weakness) -> bool {
        self.0 & 1 << weakness as u8 != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub const fn with(self, weakness: Weakness) -> Self {
        Self(self.0 | 1 << weakness as u8)
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Worst first.
    pub fn iter(self) -> impl Iterator<Item = Weakness> {
        Weakness::ALL.into_iter().filter(move |weakness| self.contains(*weakness))
    }
}

/// Of each entry of [`SUITES`], by its name: the names say all of it.
const WEAKNESSES: [Weaknesses; SUITES.len()] = {
    let mut all = [Weaknesses::NONE; SUITES.len()];
    let mut index = 0;
    while index < SUITES.len() {
        all[index] = weaknesses(SUITES[index].1);
        index += 1;
    }
    all
};

const fn weaknesses(name: &str) -> Weaknesses {
    /// Parts of names, and what they mean.
    const PARTS: [(&str, Weakness); 19] = [
        ("_NULL_", Weakness::Null),
        ("TLS_SHA256_", Weakness::Null),
        ("TLS_SHA384_", Weakness::Null),
        ("_anon_", Weakness::Anonymous),
        ("_EXPORT_", Weakness::Export),
        ("_RC4_", Weakness::Rc4),
        ("_DES_", Weakness::SmallBlock),
        ("_3DES_", Weakness::SmallBlock),
        ("_DES40_", Weakness::SmallBlock),
        ("_RC2_", Weakness::SmallBlock),
        ("_IDEA_", Weakness::SmallBlock),
        ("TLS_NULL_", Weakness::NoForwardSecrecy),
        ("TLS_RSA_", Weakness::NoForwardSecrecy),
        ("TLS_DH_RSA_", Weakness::NoForwardSecrecy),
        ("TLS_DH_DSS_", Weakness::NoForwardSecrecy),
        ("TLS_ECDH_RSA_", Weakness::NoForwardSecrecy),
        ("TLS_ECDH_ECDSA_", Weakness::NoForwardSecrecy),
        ("TLS_PSK_", Weakness::NoForwardSecrecy),
        ("_CBC_", Weakness::Cbc),
    ];
    let mut found = Weaknesses::NONE;
    let mut index = 0;
    while index < PARTS.len() {
        if has(name.as_bytes(), PARTS[index].0.as_bytes()) {
            found = found.with(PARTS[index].1);
        }
        index += 1;
    }
    found
}

const fn has(text: &[u8], part: &[u8]) -> bool {
    let mut start = 0;
    while start + part.len() <= text.len() {
        let mut len = 0;
        while len < part.len() && text[start + len] == part[len] {
            len += 1;
        }
        if len == part.len() {
            return true;
        }
        start += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_sorted_and_named_as_registered() {
        assert!(SUITES.is_sorted_by(|(number, _), (next, _)| number < next));
        for (number, name) in [
            (0x1301, "TLS_AES_128_GCM_SHA256"),
            (0x1303, "TLS_CHACHA20_POLY1305_SHA256"),
            (0xC02F, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
            (0x000A, "TLS_RSA_WITH_3DES_EDE_CBC_SHA"),
            (0xC0FF, "0xC0FF"),
            (0x0A0A, "0x0A0A"),
        ] {
            assert_eq!(CipherSuite(number).to_string(), name);
        }
    }

    #[test]
    fn the_weaknesses_of_a_suite_are_those_of_its_parts() {
        use Weakness::{Anonymous, Cbc, Export, NoForwardSecrecy, Null, Rc4, SmallBlock};
        for (number, expected) in [
            (0x1301, &[][..]),
            (0x1303, &[]),
            (0x00FF, &[]),
            (0xC02F, &[]),
            (0xCCA8, &[]),
            (0xC013, &[Cbc]),
            (0x002F, &[NoForwardSecrecy, Cbc]),
            (0x009C, &[NoForwardSecrecy]),
            (0x0005, &[Rc4, NoForwardSecrecy]),
            (0xC011, &[Rc4]),
            (0x000A, &[SmallBlock, NoForwardSecrecy, Cbc]),
            (0xC012, &[SmallBlock, Cbc]),
            (0x0007, &[SmallBlock, NoForwardSecrecy, Cbc]),
            (0x0003, &[Export, Rc4, NoForwardSecrecy]),
            (0x0014, &[Export, SmallBlock, Cbc]),
            (0x0034, &[Anonymous, Cbc]),
            (0xC015, &[Null, Anonymous]),
            (0x0000, &[Null, NoForwardSecrecy]),
            (0x003B, &[Null, NoForwardSecrecy]),
            (0xC0B4, &[Null]),
            (0xC004, &[NoForwardSecrecy, Cbc]),
            (0x00A8, &[NoForwardSecrecy]),
            (0xC037, &[Cbc]),
            (0xFFFF, &[]),
        ] {
            let found: Vec<_> = CipherSuite(number).weaknesses().iter().collect();
            assert_eq!(found, expected, "{}", CipherSuite(number));
        }
    }

    #[test]
    fn a_set_of_weaknesses_keeps_each_apart() {
        for (index, weakness) in Weakness::ALL.into_iter().enumerate() {
            let one = Weaknesses::NONE.with(weakness);
            assert_eq!(one.iter().collect::<Vec<_>>(), [weakness]);
            assert_eq!(Weakness::ALL.iter().filter(|other| one.contains(**other)).count(), 1);
            let next = Weakness::ALL[(index + 1) % Weakness::ALL.len()];
            assert_eq!(one.union(Weaknesses::NONE.with(next)).iter().count(), 2);
        }
        assert!(Weaknesses::NONE.is_empty() && Weaknesses::NONE.iter().next().is_none());
    }

    #[test]
    fn versions_are_ordered_and_drafts_are_none() {
        let known: Vec<_> = (0x0300..=0x0304).filter_map(TlsVersion::from_wire).collect();
        assert!(known.is_sorted() && known.len() == 5);
        assert_eq!(known.iter().map(|version| version.number()).collect::<Vec<_>>(), ["3", "1.0", "1.1", "1.2", "1.3"]);
        for wire in [0x0002, 0x0305, 0x7f1c, 0x1a1a, 0xfefd] {
            assert_eq!(TlsVersion::from_wire(wire), None);
        }
    }

    #[test]
    fn the_next_protocol_is_the_servers_choice_or_what_follows_from_what_is_spoken() {
        let offer =
            |names: &[&str]| Offer { alpn: names.iter().map(|name| Box::from(*name)).collect(), ..Offer::default() };
        let both = Some(offer(&["h2", "http/1.1"]));
        for (chosen, offer, spoken, expected) in [
            (Some("http/1.1"), both.clone(), Version::Http11, Some("http/1.1")),
            (Some("h2"), both.clone(), Version::Http2, Some("h2")),
            (None, both.clone(), Version::Http2, Some("h2")),
            (None, both, Version::Http11, None),
            (None, Some(offer(&["http/1.1"])), Version::Http11, None),
            (None, Some(offer(&["http/1.1"])), Version::Http2, None),
            (None, None, Version::Http2, None),
        ] {
            let handshake = Handshake { alpn: chosen.map(Box::from), offer, ..Handshake::default() };
            assert_eq!(handshake.next_protocol(spoken), expected, "{handshake:?} {spoken:?}");
        }
    }

    #[test]
    fn groups_are_named_and_the_quantum_safe_ones_are_known() {
        assert_eq!(NamedGroup(23).to_string(), "secp256r1");
        assert_eq!(NamedGroup(0x2a2a).to_string(), "0x2A2A");
        for (number, safe) in [(29, false), (4588, true), (0x11eb, true), (512, true), (256, false), (4591, false)] {
            assert_eq!(NamedGroup(number).is_post_quantum(), safe);
        }
    }
}
