//! Recorded handshakes with what OpenSSL and Go said of them; the same cut at every byte, mixed and broken; any bytes.
//!
//! The files of `vectors/` are hexadecimal: `>` begins what the client sent at once, `<` what the server sent.

use proptest::prelude::*;

use super::*;
use crate::model::tls::{Certificate, CipherSuite, Key, NamedGroup, Offer, Weakness, Weaknesses};

const CLIENT: Direction = Direction::Send;
const SERVER: Direction = Direction::Receive;

macro_rules! vectors {
    ($($name:ident)*) => {
        const VECTORS: &[(&str, &str)] =
            &[$((stringify!($name), include_str!(concat!("vectors/", stringify!($name), ".hex")))),*];
    };
}

vectors! {
    alert_cipher alert_unknown_ca alert_version tls10 tls11 tls12_anonymous tls12_client_certificate
    tls12_client_certificate_absent tls12_dhe tls12_ecdhe_rsa tls12_ecdsa tls12_expired tls12_null tls12_resumed_id
    tls12_resumed_ticket tls12_rsa_cbc tls12_self_signed tls13 tls13_client_certificate tls13_early_data
    tls13_post_quantum tls13_resumed tls13_retry
}

/// What was sent, in order.
fn recording(name: &str) -> Vec<(Direction, Vec<u8>)> {
    let (_, text) = VECTORS.iter().find(|(known, _)| *known == name).unwrap();
    let mut pieces: Vec<(Direction, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        let (direction, hex) = match line.as_bytes() {
            [b'>', hex @ ..] => (Some(CLIENT), hex),
            [b'<', hex @ ..] => (Some(SERVER), hex),
            hex => (None, hex),
        };
        let bytes = hex.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
        match direction {
            Some(direction) => pieces.push((direction, bytes.collect())),
            None => pieces.last_mut().unwrap().1.extend(bytes),
        }
    }
    pieces
}

/// All bytes of one direction.
fn stream(pieces: &[(Direction, Vec<u8>)], direction: Direction) -> Vec<u8> {
    pieces.iter().filter(|(of, _)| *of == direction).flat_map(|(_, bytes)| bytes.clone()).collect()
}

fn read(pieces: &[(Direction, Vec<u8>)]) -> Reader {
    let mut reader = Reader::new();
    for (direction, bytes) in pieces {
        reader.on_bytes(*direction, bytes);
    }
    reader
}

fn facts(name: &str) -> Handshake {
    read(&recording(name)).into_facts()
}

fn offer(name: &str) -> Offer {
    facts(name).offer.unwrap()
}

fn certificate(name: &str) -> Certificate {
    *facts(name).certificate.unwrap()
}

/// A record around `payload`.
fn record(content: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![content, 3, 1];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A record with one message.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
    bytes.extend(body);
    record(content::HANDSHAKE, &bytes)
}

/// From the body of the first message of a direction on.
fn first_body(name: &str, direction: Direction) -> Vec<u8> {
    stream(&recording(name), direction)[RECORD_HEADER + MESSAGE_HEADER..].to_vec()
}

#[test]
fn what_the_server_chose_is_what_the_libraries_say() {
    use TlsVersion::{Tls10, Tls11, Tls12, Tls13};
    let (x25519, p384, hybrid) = (Some("x25519"), Some("secp384r1"), Some("X25519MLKEM768"));
    let gcm = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    for (name, version, cipher, group, alpn, resumed) in [
        ("tls10", Tls10, "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", x25519, None, false),
        ("tls11", Tls11, "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", x25519, None, false),
        ("tls12_anonymous", Tls12, "TLS_DH_anon_WITH_AES_128_CBC_SHA", None, None, false),
        ("tls12_client_certificate", Tls12, gcm, x25519, None, false),
        ("tls12_client_certificate_absent", Tls12, gcm, x25519, None, false),
        ("tls12_dhe", Tls12, "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384", None, None, false),
        ("tls12_ecdhe_rsa", Tls12, gcm, x25519, Some("http/1.1"), false),
        ("tls12_ecdsa", Tls12, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", x25519, None, false),
        ("tls12_expired", Tls12, gcm, x25519, None, false),
        ("tls12_null", Tls12, "TLS_RSA_WITH_NULL_SHA256", None, None, false),
        ("tls12_resumed_id", Tls12, gcm, None, None, true),
        ("tls12_resumed_ticket", Tls12, gcm, None, None, true),
        ("tls12_rsa_cbc", Tls12, "TLS_RSA_WITH_AES_128_CBC_SHA", None, None, false),
        ("tls12_self_signed", Tls12, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", x25519, None, false),
        ("tls13", Tls13, "TLS_AES_256_GCM_SHA384", x25519, None, false),
        ("tls13_client_certificate", Tls13, "TLS_AES_256_GCM_SHA384", x25519, None, false),
        ("tls13_early_data", Tls13, "TLS_AES_256_GCM_SHA384", x25519, None, true),
        ("tls13_post_quantum", Tls13, "TLS_AES_128_GCM_SHA256", hybrid, None, false),
        ("tls13_resumed", Tls13, "TLS_AES_256_GCM_SHA384", x25519, None, true),
        ("tls13_retry", Tls13, "TLS_AES_256_GCM_SHA384", p384, None, false),
    ] {
        let reader = read(&recording(name));
        assert!(reader.is_done() && !reader.is_refused(), "{name}");
        assert_eq!(reader.client(), Some(CLIENT), "{name}");
        let facts = reader.into_facts();
        assert_eq!(facts.version, Some(version), "{name}");
        assert_eq!(facts.cipher.unwrap().to_string(), cipher, "{name}");
        assert_eq!(facts.group.map(|group| group.to_string()).as_deref(), group, "{name}");
        assert_eq!(facts.alpn.as_deref(), alpn, "{name}");
        assert_eq!((facts.resumed, facts.established, facts.alert), (resumed, true, None), "{name}");
        // Encrypted since TLS 1.3; not sent when a session is taken up; none in an anonymous one.
        let seen = version < Tls13 && !resumed && name != "tls12_anonymous";
        assert_eq!(facts.certificate.is_some(), seen, "{name}");
    }
}

#[test]
fn a_refused_handshake_says_why() {
    for (name, description, chosen) in [
        ("alert_version", "protocol_version", false),
        ("alert_cipher", "handshake_failure", false),
        ("alert_unknown_ca", "unknown_ca", true),
    ] {
        let reader = read(&recording(name));
        assert!(reader.is_done(), "{name}");
        let facts = reader.into_facts();
        assert_eq!(facts.alert.and_then(Alert::name), Some(description), "{name}");
        assert!(!facts.established && facts.cipher.is_some() == chosen, "{name}");
    }
}

/// Found by the fuzz target.
#[test]
fn an_alert_is_the_first_fatal_one_of_its_record_however_it_is_cut() {
    let bytes = record(content::ALERT, &[1, 112, 2, 40, 2, 70, 2]);
    let mut whole = Reader::new();
    whole.on_bytes(SERVER, &bytes);
    let mut single = Reader::new();
    for byte in &bytes {
        single.on_bytes(SERVER, &[*byte]);
    }
    assert_eq!(whole.facts().alert, Some(Alert(40)));
    assert_eq!(single.facts(), whole.facts());
}

#[test]
fn what_the_client_offered_is_kept() {
    use TlsVersion::{Tls10, Tls11, Tls12, Tls13};
    let names = |offer: &Offer| offer.alpn.iter().map(ToString::to_string).collect::<Vec<_>>();
    let modern = offer("tls13");
    assert_eq!(modern.server_name.as_deref(), Some("shop.example"));
    assert_eq!(names(&modern), ["h2", "http/1.1"]);
    assert_eq!((modern.min_version, modern.max_version), (Some(Tls10), Some(Tls13)));
    let go = offer("tls13_post_quantum");
    assert_eq!((go.min_version, go.max_version), (Some(Tls12), Some(Tls13)));
    assert!(!modern.post_quantum && !modern.early_data && !modern.encrypted_hello);
    assert!(modern.weaknesses.contains(Weakness::Cbc) && !modern.weaknesses.contains(Weakness::Rc4));

    assert_eq!(offer("tls12_dhe").server_name, None);
    assert_eq!(offer("tls12_ecdsa").server_name.as_deref(), Some("api.example"), "lower case");
    assert_eq!(offer("alert_version").max_version, Some(Tls11));
    assert_eq!((offer("tls10").min_version, offer("tls10").max_version), (None, Some(Tls10)));
    assert!(offer("tls10").weaknesses.contains(Weakness::NoForwardSecrecy));
    assert_eq!(offer("tls12_null").weaknesses, Weaknesses::NONE.with(Weakness::Null).with(Weakness::NoForwardSecrecy));
    assert!(go.post_quantum);
    assert_eq!(names(&go), ["h2", "http/1.1"]);
    assert!(offer("tls13_early_data").early_data && !offer("tls13_resumed").early_data);
}

#[test]
fn the_certificate_of_the_server_is_read() {
    let rsa = certificate("tls12_ecdhe_rsa");
    assert_eq!(&*rsa.subject, "CN=shop.example,O=Weir Test,C=CH", "the e-mail address is left out");
    assert_eq!(&*rsa.issuer, "CN=Weir Test CA,O=Weir Test,C=CH");
    assert_eq!(
        rsa.names.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["shop.example", "*.shop.example", "127.0.0.1", "::1"]
    );
    assert_eq!(rsa.not_after_unix_s - rsa.not_before_unix_s, 365 * 86_400);
    assert_eq!(rsa.key, Some(Key { kind: "RSA", bits: 2048 }));
    assert_eq!((rsa.signature, rsa.weak_signature, rsa.self_signed), (Some("sha256WithRSAEncryption"), false, false));

    let ec = certificate("tls12_ecdsa");
    assert_eq!(&*ec.subject, r"CN=api.example,OU=A\+B,O=Zürich\, AG");
    assert_eq!(ec.key, Some(Key { kind: "EC", bits: 256 }));

    let old = certificate("tls12_expired");
    assert_eq!((old.not_before_unix_s, old.not_after_unix_s), (1_420_070_400, 1_577_836_800));
    assert_eq!(old.key, Some(Key { kind: "RSA", bits: 1024 }));
    assert_eq!((old.signature, old.weak_signature), (Some("sha1WithRSAEncryption"), true));

    let own = certificate("tls12_self_signed");
    assert!(own.self_signed && own.subject == own.issuer);
    assert_eq!(own.key, Some(Key { kind: "Ed25519", bits: 256 }));
}

#[test]
fn a_client_certificate_is_noticed_and_never_read() {
    for (name, requested, sent) in [
        ("tls12_client_certificate", true, true),
        ("tls12_client_certificate_absent", true, false),
        ("tls12_ecdhe_rsa", false, false),
        ("tls13_client_certificate", false, false),
    ] {
        let facts = facts(name);
        assert_eq!((facts.client_certificate_requested, facts.client_certificate_sent), (requested, sent), "{name}");
        assert!(!format!("{facts:?}").contains("Jane"), "{name}");
    }
}

#[test]
fn every_cut_gives_the_same_facts() {
    for (name, _) in VECTORS {
        let pieces = recording(name);
        let whole = read(&pieces);
        for direction in [CLIENT, SERVER] {
            let bytes = stream(&pieces, direction);
            for cut in 0..=bytes.len() {
                let mut reader = Reader::new();
                reader.on_bytes(direction, &bytes[..cut]);
                reader.on_bytes(direction, &bytes[cut..]);
                reader.on_bytes(direction.opposite(), &stream(&pieces, direction.opposite()));
                assert_eq!(reader.facts(), whole.facts(), "{name} {direction:?} {cut}");
                assert_eq!(reader.is_done(), whole.is_done(), "{name} {direction:?} {cut}");
            }
        }
    }
}

#[test]
fn single_bytes_and_the_reads_of_libssl_give_the_same_facts() {
    for (name, _) in VECTORS {
        let pieces = recording(name);
        let mut single = Reader::new();
        let mut pairs = Reader::new();
        for (direction, bytes) in &pieces {
            for byte in bytes {
                single.on_bytes(*direction, &[*byte]);
            }
            let mut rest = &bytes[..];
            while rest.len() > RECORD_HEADER {
                let len = usize::from(u16::from_be_bytes([rest[3], rest[4]])).min(rest.len() - RECORD_HEADER);
                pairs.on_bytes(*direction, &rest[..RECORD_HEADER]);
                pairs.on_bytes(*direction, &rest[RECORD_HEADER..RECORD_HEADER + len]);
                rest = &rest[RECORD_HEADER + len..];
            }
            pairs.on_bytes(*direction, rest);
        }
        assert_eq!(single.facts(), read(&pieces).facts(), "{name}");
        assert_eq!(pairs.facts(), read(&pieces).facts(), "{name}");
    }
}

#[test]
fn messages_may_be_cut_by_records_of_one_byte() {
    for name in ["tls12_client_certificate", "tls13_retry", "tls13_post_quantum", "tls12_expired", "tls13_early_data"] {
        let pieces = recording(name);
        let mut reader = Reader::new();
        for direction in [CLIENT, SERVER] {
            let bytes = stream(&pieces, direction);
            let mut rest = &bytes[..];
            while rest.len() > RECORD_HEADER {
                let len = usize::from(u16::from_be_bytes([rest[3], rest[4]])).min(rest.len() - RECORD_HEADER);
                let (whole, after) = rest.split_at(RECORD_HEADER + len);
                rest = after;
                if whole[0] == content::HANDSHAKE {
                    for byte in &whole[RECORD_HEADER..] {
                        reader.on_bytes(direction, &record(content::HANDSHAKE, &[*byte]));
                    }
                } else {
                    reader.on_bytes(direction, whole);
                }
            }
        }
        assert_eq!(reader.facts(), read(&pieces).facts(), "{name}");
    }
}

#[test]
fn a_gap_ends_a_direction_and_keeps_what_was_learnt() {
    for (name, _) in VECTORS {
        let pieces = recording(name);
        let whole = facts(name);
        for direction in [CLIENT, SERVER] {
            let bytes = stream(&pieces, direction);
            for cut in [0, 3, 5, 60, 100, bytes.len()] {
                let mut reader = Reader::new();
                reader.on_bytes(direction, &bytes[..cut.min(bytes.len())]);
                reader.on_gap(direction);
                reader.on_bytes(direction, &bytes[cut.min(bytes.len())..]);
                reader.on_bytes(direction.opposite(), &stream(&pieces, direction.opposite()));
                let facts = reader.facts();
                assert!(facts.version.is_none() || facts.version == whole.version, "{name}");
                assert!(facts.offer.is_none() || facts.offer == whole.offer, "{name}");
                assert!(facts.certificate.is_none() || facts.certificate == whole.certificate, "{name}");
                reader.on_gap(direction.opposite());
                assert!(reader.is_done(), "{name}");
            }
        }
    }
}

#[test]
fn the_first_certificate_is_enough() {
    let pieces = recording("tls12_ecdhe_rsa");
    let server = stream(&pieces, SERVER);
    let mut reader = Reader::new();
    reader.on_bytes(CLIENT, &stream(&pieces, CLIENT));
    // In the middle of the second certificate, the authority's.
    reader.on_bytes(SERVER, &server[..1_500]);
    reader.on_gap(SERVER);
    assert_eq!(reader.facts().certificate, facts("tls12_ecdhe_rsa").certificate);
}

#[test]
fn what_is_not_a_handshake_is_refused_at_once() {
    let http = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    let sslv2 = [&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10][..], &[7; 37]].concat();
    let dtls = [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..], &[1; 9]].concat();
    let late = record(content::APPLICATION_DATA, &[0x55; 40]);
    let long = [&[22, 3, 1, 0xff, 0xff][..], &[1; 100]].concat();
    let empty = record(content::HANDSHAKE, &[]);
    let middle = message(kind::CERTIFICATE, &[0; 60]);
    let unknown = record(25, &[1; 9]);
    let short = message(kind::CLIENT_HELLO, &[3, 3, 0]);
    for bytes in [http, sslv2, dtls, late, long, empty, middle, unknown] {
        let mut reader = Reader::new();
        reader.on_bytes(CLIENT, &bytes);
        reader.on_bytes(SERVER, &bytes);
        assert!(reader.is_refused(), "{bytes:02x?}");
        assert_eq!(Handshake { established: false, ..reader.into_facts() }, Handshake::default());
    }
    let mut reader = Reader::new();
    reader.on_bytes(CLIENT, &short);
    assert_eq!(reader.facts(), &Handshake::default());
    reader.on_bytes(SERVER, &short);
    assert!(reader.is_done());
}

#[test]
fn hellos_on_both_sides_are_of_no_connection() {
    let hello = stream(&recording("tls13"), CLIENT);
    let mut reader = Reader::new();
    reader.on_bytes(CLIENT, &hello);
    reader.on_bytes(SERVER, &hello);
    assert_eq!((reader.facts().version, reader.facts().established), (None, false));
}

#[test]
fn a_server_greets_twice_only_after_a_retry() {
    let server = stream(&recording("tls12_rsa_cbc"), SERVER);
    let body = &first_body("tls12_rsa_cbc", SERVER)[..server[8] as usize];
    let mut other = body.to_vec();
    other[0..2].copy_from_slice(&[3, 1]);
    let mut reader = Reader::new();
    reader.on_bytes(SERVER, &message(kind::SERVER_HELLO, body));
    reader.on_bytes(SERVER, &message(kind::SERVER_HELLO, &other));
    assert_eq!(reader.facts().version, Some(TlsVersion::Tls12));
}

#[test]
fn text_of_a_peer_is_made_printable_and_bounded() {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    let name = [b"a\x1b[31m\n\"\xc3\xbc.", &[b'x'; 400][..]].concat();
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, data: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend((data.len() as u16).to_be_bytes());
        extensions.extend(data);
    };
    let list = [&[0][..], &(name.len() as u16).to_be_bytes(), &name].concat();
    extension(0, &[&(list.len() as u16).to_be_bytes(), &list[..]].concat());
    let protocols = [&[2, b'h', b'2', 3, b'a', b'\n', b'b', 1, 0x80, 40][..], &[b'z'; 40]].concat();
    let many: Vec<u8> = protocols.iter().copied().chain([2, b'p', b'q'].repeat(20)).collect();
    extension(16, &[&(many.len() as u16).to_be_bytes(), &many[..]].concat());
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(&extensions);
    let mut reader = Reader::new();
    reader.on_bytes(CLIENT, &message(kind::CLIENT_HELLO, &hello));
    let offer = reader.facts().offer.clone().unwrap();
    let shown = offer.server_name.unwrap();
    assert!(shown.starts_with("a??31m????.xxx") && shown.len() == 253, "{shown}");
    assert_eq!(offer.alpn.len(), 8);
    assert_eq!((&*offer.alpn[0], &*offer.alpn[1]), ("h2", "pq"));
    assert_eq!(reader.facts().memory(), 253 + 8 * (16 + 2));
}

#[test]
fn a_name_without_bound_or_manners_becomes_a_short_line() {
    // The subject `shop.example` of the recorded certificate becomes something else of the same length.
    let bytes = stream(&recording("tls12_ecdhe_rsa"), SERVER);
    let at = bytes.windows(12).position(|window| window == b"shop.example").unwrap();
    for (value, shown) in [
        (&b"#a,b+c\\d\"<>;"[..], r#"CN=\#a\,b\+c\\d\"\<\>\;"#),
        (b"\x1b[31mred\n\r\x07\0", "CN=?[31mred????"),
        (b"\xe2\x80\xaeevil\xff\xfe\xc3\xbcn", "CN=?evil??ün"),
    ] {
        let mut bytes = bytes.clone();
        bytes[at..at + 12].copy_from_slice(value);
        let mut reader = Reader::new();
        reader.on_bytes(SERVER, &bytes);
        let subject = &reader.facts().certificate.as_ref().unwrap().subject;
        assert_eq!(subject.split_once(",O=").unwrap().0, shown);
    }
}

#[test]
fn memory_has_a_ceiling() {
    let mut reader = Reader::new();
    // A hello that says it is 16 MiB long, and one that never ends.
    let mut bytes = vec![kind::CLIENT_HELLO, 0xff, 0xff, 0xff];
    bytes.extend([0; 100]);
    reader.on_bytes(CLIENT, &record(content::HANDSHAKE, &bytes));
    assert!(reader.memory() < size_of::<Reader>() + 64);
    let hello = [&[kind::SERVER_HELLO, 0, 0x3f, 0xf0][..], &[0; 200]].concat();
    reader.on_bytes(SERVER, &record(content::HANDSHAKE, &hello));
    for _ in 0..200 {
        reader.on_bytes(SERVER, &record(content::HANDSHAKE, &[0; 1_000]));
        assert!(reader.memory() < size_of::<Reader>() + 40 * 1024);
    }
    assert!(reader.is_done());
    // Records that tell nothing.
    let mut reader = Reader::new();
    for _ in 0..100 {
        reader.on_bytes(CLIENT, &record(content::HEARTBEAT, &[0; 1_000]));
        reader.on_bytes(SERVER, &record(content::CHANGE_CIPHER_SPEC, &[1]).repeat(500));
    }
    assert!(reader.is_done());
}

#[test]
fn each_suite_that_was_offered_counts() {
    let mut hello = vec![3, 1];
    hello.extend([7; 32]);
    hello.extend([0, 0, 6, 0x00, 0x05, 0x0a, 0x0a, 0x00, 0x17, 1, 0]);
    let mut reader = Reader::new();
    reader.on_bytes(SERVER, &message(kind::CLIENT_HELLO, &hello));
    let offer = reader.facts().offer.clone().unwrap();
    assert_eq!(
        offer.weaknesses.iter().map(Weakness::name).collect::<Vec<_>>(),
        ["anonymous", "export", "rc4", "no_forward_secrecy"]
    );
    assert_eq!(reader.client(), Some(SERVER));
    assert_eq!(offer.max_version, Some(TlsVersion::Tls10));
}

#[test]
fn a_curve_is_read_only_where_the_suite_has_one() {
    assert_eq!(hello::group(CipherSuite(0xC030), &[3, 0, 23]), Some(NamedGroup(23)));
    for (suite, body) in [(0xC030, &[1, 0, 23][..]), (0xC030, &[3, 0]), (0x009F, &[3, 0, 23]), (0xC035, &[3, 0, 23])] {
        assert_eq!(hello::group(CipherSuite(suite), body), None);
    }
}

/// Pieces of any length, in the order of each direction, mixed at will.
fn mixed(pieces: &[(Direction, Vec<u8>)], cuts: &[(bool, usize)]) -> Reader {
    let streams = [stream(pieces, CLIENT), stream(pieces, SERVER)];
    let mut at = [0, 0];
    let mut reader = Reader::new();
    for (index, len) in cuts.iter().map(|(server, len)| (usize::from(*server), *len)).chain([(0, 9_999), (1, 9_999)]) {
        let end = (at[index] + len).min(streams[index].len());
        reader.on_bytes([CLIENT, SERVER][index], &streams[index][at[index]..end]);
        at[index] = end;
    }
    reader
}

proptest! {
    #[test]
    fn how_the_directions_mix_does_not_matter(
        index in 0..VECTORS.len(),
        cuts in prop::collection::vec((any::<bool>(), 0..900_usize), 0..40),
    ) {
        let pieces = recording(VECTORS[index].0);
        prop_assert_eq!(mixed(&pieces, &cuts).into_facts(), read(&pieces).into_facts());
    }

    #[test]
    fn a_broken_recording_does_no_harm(
        index in 0..VECTORS.len(),
        flips in prop::collection::vec((any::<bool>(), 0..3_300_usize, any::<u8>()), 1..8),
        cuts in prop::collection::vec((any::<bool>(), 0..900_usize), 0..10),
    ) {
        let mut pieces =
            [CLIENT, SERVER].map(|direction| (direction, stream(&recording(VECTORS[index].0), direction)));
        for (server, at, value) in flips {
            if let Some(byte) = pieces[usize::from(server)].1.get_mut(at) {
                *byte = value;
            }
        }
        let reader = mixed(&pieces, &cuts);
        prop_assert!(reader.memory() < 64 * 1024);
        let facts = reader.facts();
        for text in facts.server_name().into_iter().chain(facts.alpn.as_deref()) {
            prop_assert!(text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        if let Some(certificate) = &facts.certificate {
            for name in [&certificate.subject, &certificate.issuer] {
                prop_assert!(name.len() <= 256 && !name.chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn any_bytes_do_no_harm(
        pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
        framed in any::<bool>(),
    ) {
        let mut reader = Reader::new();
        for (server, bytes) in pieces {
            let direction = [CLIENT, SERVER][usize::from(server)];
            if framed {
                reader.on_bytes(direction, &record(content::HANDSHAKE, &bytes));
            } else {
                reader.on_bytes(direction, &bytes);
            }
        }
        prop_assert!(reader.memory() < 64 * 1024);
    }

    #[test]
    fn any_bytes_are_no_certificate_or_a_bounded_one(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(certificate::read(&bytes).is_none());
    }
}
