//! `ClientHello` and `ServerHello` (RFC 8446 section 4.1, RFC 5246 section 7.4.1): bodies of messages to facts. A message
//! that does not parse gives nothing, never a half.

use super::wire::Wire;
use crate::model::tls::{CipherSuite, NamedGroup, Offer, TlsVersion, Weaknesses};

/// Suites looked at; OpenSSL offers 180 when all are enabled.
const MAX_SUITES: usize = 256;
/// Extensions looked at. Browsers send some 20.
const MAX_EXTENSIONS: usize = 64;
/// Protocols kept of the client's list. Browsers offer two.
const MAX_PROTOCOLS: usize = 8;
/// Longest protocol name kept; the longest registered one has 25 bytes.
const MAX_PROTOCOL: usize = 32;
/// A DNS name has at most 253 characters.
const MAX_HOST: usize = 253;

/// `ServerHello.random` of a `HelloRetryRequest`: the SHA-256 of that word.
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Of the registry "TLS ExtensionType Values".
mod extension {
    pub(super) const SERVER_NAME: u16 = 0;
    pub(super) const SUPPORTED_GROUPS: u16 = 10;
    pub(super) const ALPN: u16 = 16;
    pub(super) const PRE_SHARED_KEY: u16 = 41;
    pub(super) const EARLY_DATA: u16 = 42;
    pub(super) const SUPPORTED_VERSIONS: u16 = 43;
    pub(super) const KEY_SHARE: u16 = 51;
    pub(super) const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
}

/// What the server chose.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) version: Option<TlsVersion>,
    pub(super) cipher: CipherSuite,
    pub(super) group: Option<NamedGroup>,
    pub(super) alpn: Option<Box<str>>,
    /// A pre-shared key was taken: that of an earlier connection, or one agreed on elsewhere.
    pub(super) resumed: bool,
    /// It is a `HelloRetryRequest`.
    pub(super) retry: bool,
}

/// The body of a `ClientHello`.
pub(super) fn client(body: &[u8]) -> Option<Offer> {
    let mut wire = Wire(body);
    let legacy_version = wire.u16()?;
    wire.bytes(32)?;
    wire.vector8()?;
    let suites = wire.vector16()?;
    wire.vector8()?;
    let mut offer = Offer {
        max_version: TlsVersion::from_wire(legacy_version),
        weaknesses: suites
            .numbers()
            .take(MAX_SUITES)
            .fold(Weaknesses::NONE, |all, suite| all.union(CipherSuite(suite).weaknesses())),
        ..Offer::default()
    };
    extensions(wire, |kind, mut data| {
        match kind {
            extension::SERVER_NAME => offer.server_name = server_name(data.vector16()?),
            extension::SUPPORTED_GROUPS => {
                offer.post_quantum |= data.vector16()?.numbers().any(|group| NamedGroup(group).is_post_quantum());
            }
            extension::ALPN => {
                let mut list = data.vector16()?;
                let mut kept = Vec::new();
                while !list.0.is_empty() && kept.len() < MAX_PROTOCOLS {
                    kept.extend(protocol(list.vector8()?.0));
                }
                offer.alpn = kept.into();
            }
            extension::EARLY_DATA => offer.early_data = true,
            extension::SUPPORTED_VERSIONS => {
                let versions = data.vector8()?;
                let known = || versions.numbers().filter_map(TlsVersion::from_wire);
                offer.min_version = known().min();
                offer.max_version = known().max();
            }
            extension::ENCRYPTED_CLIENT_HELLO => offer.encrypted_hello = true,
            _ => {}
        }
        Some(())
    })?;
    Some(offer)
}

/// The body of a `ServerHello`.
pub(super) fn server(body: &[u8]) -> Option<Choice> {
    let mut wire = Wire(body);
    let legacy_version = wire.u16()?;
    let retry = wire.bytes(32)? == RETRY;
    wire.vector8()?;
    let cipher = CipherSuite(wire.u16()?);
    wire.u8()?;
    let version = TlsVersion::from_wire(legacy_version);
    let mut choice = Choice { version, cipher, group: None, alpn: None, resumed: false, retry };
    extensions(wire, |kind, mut data| {
        match kind {
            extension::SUPPORTED_VERSIONS => choice.version = TlsVersion::from_wire(data.u16()?),
            extension::KEY_SHARE => choice.group = Some(NamedGroup(data.u16()?)),
            extension::PRE_SHARED_KEY => choice.resumed = true,
            extension::ALPN => choice.alpn = protocol(data.vector16()?.vector8()?.0),
            _ => {}
        }
        Some(())
    })?;
    Some(choice)
}

/// The curve of a `ServerKeyExchange` (RFC 8422 section 5.4), by the beginning of its body.
pub(super) fn group(cipher: CipherSuite, body: &[u8]) -> Option<NamedGroup> {
    const NAMED_CURVE: u8 = 3;
    let name = cipher.name()?;
    if !["TLS_ECDHE_RSA_", "TLS_ECDHE_ECDSA_", "TLS_ECDH_anon_"].iter().any(|start| name.starts_with(start)) {
        return None;
    }
    let mut wire = Wire(body);
    let kind = wire.u8()?;
    let group = wire.u16()?;
    (kind == NAMED_CURVE).then_some(NamedGroup(group))
}

/// Calls `each` for every extension; `None` when one does not parse. A hello without extensions is whole.
fn extensions<'a>(mut wire: Wire<'a>, mut each: impl FnMut(u16, Wire<'a>) -> Option<()>) -> Option<()> {
    if wire.0.is_empty() {
        return Some(());
    }
    let mut list = wire.vector16()?;
    for _ in 0..MAX_EXTENSIONS {
        if list.0.is_empty() {
            break;
        }
        let kind = list.u16()?;
        each(kind, list.vector16()?)?;
    }
    Some(())
}

/// The first host name of `server_name` (RFC 6066 section 3), lower case; the name is not known when it is malformed.
fn server_name(mut list: Wire<'_>) -> Option<Box<str>> {
    const HOST_NAME: u8 = 0;
    let kind = list.u8()?;
    let name = list.vector16()?.0;
    (kind == HOST_NAME).then(|| host(name))?
}

/// A host name, lower case; `?` stands for what no host name has.
pub(super) fn host(name: &[u8]) -> Option<Box<str>> {
    let show = |byte: &u8| match byte.to_ascii_lowercase() {
        byte @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b':' | b'*') => byte as char,
        _ => '?',
    };
    (!name.is_empty()).then(|| name.iter().take(MAX_HOST).map(show).collect::<String>().into())
}

/// A protocol name; GREASE (RFC 8701) and other unprintable ones are left out.
fn protocol(name: &[u8]) -> Option<Box<str>> {
    let printable = (1..=MAX_PROTOCOL).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    str::from_utf8(name).ok().filter(|_| printable).map(Box::from)
}
