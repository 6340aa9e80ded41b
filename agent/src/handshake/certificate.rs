//! An X.509 certificate (RFC 5280) to the facts that are kept of it. Read, not verified; the text of its names is bounded
//! and printable, and those attributes that name persons are left out.

use std::net::{Ipv4Addr, Ipv6Addr};

use x509_cert::{
    certificate::{CertificateInner, Raw},
    der::{
        Decode as _, SliceReader, Tag, Tagged as _,
        asn1::{AnyRef, UintRef},
        oid::ObjectIdentifier,
    },
    ext::pkix::{SubjectAltName, name::GeneralName},
    name::Name,
    spki::SubjectPublicKeyInfoOwned,
};

use super::hello::host;
use crate::model::tls::{Certificate, Key};

/// Names kept of `subjectAltName`.
const MAX_NAMES: usize = 8;
/// Longest value of a name's attribute, characters; RFC 5280 allows 64.
const MAX_VALUE: usize = 64;
/// Longest distinguished name, bytes.
const MAX_NAME: usize = 256;

/// The attributes of names that are kept, as RFC 4514 section 3 calls them. Not `emailAddress`, `serialNumber`, `UID`,
/// `givenName` and the like.
const ATTRIBUTES: [(ObjectIdentifier, &str); 7] = [
    (ObjectIdentifier::new_unwrap("2.5.4.3"), "CN"),
    (ObjectIdentifier::new_unwrap("2.5.4.6"), "C"),
    (ObjectIdentifier::new_unwrap("2.5.4.7"), "L"),
    (ObjectIdentifier::new_unwrap("2.5.4.8"), "ST"),
    (ObjectIdentifier::new_unwrap("2.5.4.10"), "O"),
    (ObjectIdentifier::new_unwrap("2.5.4.11"), "OU"),
    (ObjectIdentifier::new_unwrap("0.9.2342.19200300.100.1.25"), "DC"),
];

/// Signature algorithms: name, and whether it can be forged.
const SIGNATURES: [(ObjectIdentifier, &str, bool); 20] = [
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.2"), "md2WithRSAEncryption", true),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4"), "md5WithRSAEncryption", true),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"), "sha1WithRSAEncryption", true),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10"), "RSASSA-PSS", false),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11"), "sha256WithRSAEncryption", false),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12"), "sha384WithRSAEncryption", false),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13"), "sha512WithRSAEncryption", false),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.14"), "sha224WithRSAEncryption", false),
    (ObjectIdentifier::new_unwrap("1.2.840.10040.4.3"), "dsa-with-sha1", true),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.2"), "dsa-with-sha256", false),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"), "ecdsa-with-SHA1", true),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.1"), "ecdsa-with-SHA224", false),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"), "ecdsa-with-SHA256", false),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"), "ecdsa-with-SHA384", false),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4"), "ecdsa-with-SHA512", false),
    (ObjectIdentifier::new_unwrap("1.3.101.112"), "Ed25519", false),
    (ObjectIdentifier::new_unwrap("1.3.101.113"), "Ed448", false),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.17"), "ML-DSA-44", false),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.18"), "ML-DSA-65", false),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.19"), "ML-DSA-87", false),
];

/// Kinds of keys that are of one size, or whose size is their modulus (0).
const KEYS: [(ObjectIdentifier, &str, u32); 4] = [
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1"), "RSA", 0),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10"), "RSA-PSS", 0),
    (ObjectIdentifier::new_unwrap("1.3.101.112"), "Ed25519", 256),
    (ObjectIdentifier::new_unwrap("1.3.101.113"), "Ed448", 456),
];
const EC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const CURVES: [(ObjectIdentifier, u32); 9] = [
    (ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.1"), 192),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"), 256),
    (ObjectIdentifier::new_unwrap("1.3.132.0.10"), 256),
    (ObjectIdentifier::new_unwrap("1.3.132.0.33"), 224),
    (ObjectIdentifier::new_unwrap("1.3.132.0.34"), 384),
    (ObjectIdentifier::new_unwrap("1.3.132.0.35"), 521),
    (ObjectIdentifier::new_unwrap("1.3.36.3.3.2.8.1.1.7"), 256),
    (ObjectIdentifier::new_unwrap("1.3.36.3.3.2.8.1.1.11"), 384),
    (ObjectIdentifier::new_unwrap("1.3.36.3.3.2.8.1.1.13"), 512),
];

/// The facts of a certificate in DER; `None` when it does not parse.
pub(super) fn read(der: &[u8]) -> Option<Certificate> {
    // `Raw` takes serial numbers that RFC 5280 forbids: those are met, and are not judged here.
    let certificate = CertificateInner::<Raw>::from_der(der).ok()?;
    let body = certificate.tbs_certificate();
    let signature = SIGNATURES.iter().find(|(oid, ..)| *oid == certificate.signature_algorithm().oid);
    let seconds = |time: x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    Some(Certificate {
        not_before_unix_s: seconds(body.validity().not_before),
        not_after_unix_s: seconds(body.validity().not_after),
        subject: show_name(body.subject()),
        issuer: show_name(body.issuer()),
        names: names(body.get_extension().ok().flatten().map(|(_, names)| names)),
        self_signed: body.subject() == body.issuer(),
        key: key(body.subject_public_key_info()),
        signature: signature.map(|(_, name, _)| *name),
        weak_signature: signature.is_some_and(|(.., weak)| *weak),
    })
}

fn names(found: Option<SubjectAltName>) -> Box<[Box<str>]> {
    let Some(SubjectAltName(found)) = found else { return Box::default() };
    let shown = found.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => host(name.as_bytes()),
        GeneralName::IpAddress(address) => show_address(address.as_bytes()),
        _ => None,
    });
    shown.take(MAX_NAMES).collect()
}

fn show_address(bytes: &[u8]) -> Option<Box<str>> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).to_string());
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).to_string());
    v4.or_else(v6).map(String::into_boxed_str)
}

fn key(info: &SubjectPublicKeyInfoOwned) -> Option<Key> {
    let oid = info.algorithm.oid;
    if oid == EC_KEY {
        let curve = info.algorithm.parameters.as_ref()?.decode_as::<ObjectIdentifier>().ok()?;
        let (_, bits) = CURVES.iter().find(|(known, _)| *known == curve)?;
        return Some(Key { kind: "EC", bits: *bits });
    }
    let (_, kind, bits) = KEYS.iter().find(|(known, ..)| *known == oid)?;
    match bits {
        0 => modulus_bits(info.subject_public_key.raw_bytes()).map(|bits| Key { kind, bits }),
        bits => Some(Key { kind, bits: *bits }),
    }
}

/// Of an `RSAPublicKey` (RFC 8017 appendix A.1.1): bits of its first integer.
fn modulus_bits(der: &[u8]) -> Option<u32> {
    let body = AnyRef::from_der(der).ok().filter(|sequence| sequence.tag() == Tag::Sequence)?.value();
    let modulus = UintRef::decode(&mut SliceReader::new(body).ok()?).ok()?;
    let bytes = modulus.as_bytes();
    let bits = u32::try_from(bytes.len()).ok()?.checked_mul(8)?;
    Some(bits - bytes.first()?.leading_zeros())
}

/// A distinguished name as RFC 4514 writes it: the last attribute first.
fn show_name(name: &Name) -> Box<str> {
    let mut shown = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (attribute, separator) in parts
        .iter()
        .rev()
        .flat_map(|part| part.iter().enumerate().map(|(index, it)| (it, if index == 0 { ',' } else { '+' })))
    {
        let Some((_, label)) = ATTRIBUTES.iter().find(|(oid, _)| *oid == attribute.oid) else { continue };
        let value = show_value(attribute.value.tag(), attribute.value.value());
        if value.is_empty() || shown.len() + label.len() + value.len() + 2 > MAX_NAME {
            continue;
        }
        if !shown.is_empty() {
            shown.push(separator);
        }
        shown.push_str(label);
        shown.push('=');
        shown.push_str(&value);
    }
    shown.into()
}

/// The text of an attribute: letters of any script and printable ASCII, with RFC 4514's escapes; `?` for the rest.
fn show_value(tag: Tag, value: &[u8]) -> String {
    let text: String = match tag {
        Tag::BmpString => {
            let units = value.chunks_exact(2).filter_map(|pair| pair.try_into().ok().map(u16::from_be_bytes));
            char::decode_utf16(units).map(|c| c.unwrap_or('?')).take(MAX_VALUE).collect()
        }
        // Latin 1, as it is used in practice (RFC 5280 appendix B).
        Tag::TeletexString => value.iter().map(|byte| *byte as char).take(MAX_VALUE).collect(),
        _ => String::from_utf8_lossy(value).chars().take(MAX_VALUE).collect(),
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.trim().chars() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => shown.extend(['\\', c]),
            '#' if shown.is_empty() => shown.push_str("\\#"),
            ' ' | '!'..='~' => shown.push(c),
            c if c.is_alphanumeric() => shown.push(c),
            _ => shown.push('?'),
        }
    }
    shown
}
