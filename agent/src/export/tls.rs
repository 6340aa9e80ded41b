//! The `tls.*` attributes of the semantic conventions, for every exporter. Pure. What is not known is left out, and so is
//! everything about the certificate of a client: it may name a person.

use std::borrow::Cow;

use opentelemetry_semantic_conventions::attribute as semconv;

use super::jsonl::Civil;
use crate::model::{Handshake, Version};

/// The conventions would have this be `server.address`, but that is the host of the request, which may be another.
const SERVER_NAME: &str = "tls.client.server_name";

/// The value of an attribute.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    Bool(bool),
}

/// Calls `each` for every attribute that is known, until it fails. `spoken` is what the connection carries.
pub(super) fn attributes<'a, E>(
    handshake: &'a Handshake,
    spoken: Version,
    mut each: impl FnMut(&'static str, Value<'a>) -> Result<(), E>,
) -> Result<(), E> {
    let text = |text: &'a str| Value::Text(Cow::Borrowed(text));
    let shown = |shown: String| Value::Text(Cow::Owned(shown));
    // Negative is before the epoch; what expired then is as expired as what expired at it.
    let date = |seconds: i64| shown(format!("{}Z", Civil(u64::try_from(seconds).unwrap_or(0))));
    let certificate = handshake.certificate.as_deref();
    let known = [
        (semconv::TLS_PROTOCOL_NAME, Some(text(handshake.protocol()))),
        (semconv::TLS_PROTOCOL_VERSION, handshake.version.map(|version| text(version.number()))),
        (
            semconv::TLS_CIPHER,
            handshake.cipher.map(|cipher| cipher.name().map_or_else(|| shown(cipher.to_string()), text)),
        ),
        (semconv::TLS_CURVE, handshake.group.map(|group| group.name().map_or_else(|| shown(group.to_string()), text))),
        (semconv::TLS_NEXT_PROTOCOL, handshake.next_protocol(spoken).map(text)),
        (semconv::TLS_ESTABLISHED, handshake.established.then_some(Value::Bool(true))),
        (semconv::TLS_RESUMED, handshake.resumption().map(Value::Bool)),
        (SERVER_NAME, handshake.server_name().map(text)),
        (semconv::TLS_SERVER_SUBJECT, certificate.map(|it| text(&it.subject))),
        (semconv::TLS_SERVER_ISSUER, certificate.map(|it| text(&it.issuer))),
        (semconv::TLS_SERVER_NOT_BEFORE, certificate.map(|it| date(it.not_before_unix_s))),
        (semconv::TLS_SERVER_NOT_AFTER, certificate.map(|it| date(it.not_after_unix_s))),
    ];
    known.into_iter().try_for_each(|(key, value)| value.map_or(Ok(()), |value| each(key, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        fixture,
        tls::{CipherSuite, NamedGroup, TlsVersion},
    };

    fn shown(handshake: &Handshake) -> Vec<String> {
        let mut shown = Vec::new();
        attributes::<()>(handshake, Version::Http11, |key, value| {
            shown.push(match value {
                Value::Text(text) => format!("{key}={text}"),
                Value::Bool(truth) => format!("{key}={truth}"),
            });
            Ok(())
        })
        .unwrap();
        shown
    }

    #[test]
    fn a_connection_whose_handshake_nobody_saw_is_tls_and_nothing_more() {
        assert_eq!(shown(&Handshake::default()), ["tls.protocol.name=tls"]);
    }

    #[test]
    fn numbers_without_a_name_are_shown_as_numbers() {
        let odd = Handshake {
            version: Some(TlsVersion::Ssl3),
            cipher: Some(CipherSuite(0xC0FF)),
            group: Some(NamedGroup(0x2A2A)),
            resumed: true,
            ..Handshake::default()
        };
        assert_eq!(
            shown(&odd),
            [
                "tls.protocol.name=ssl",
                "tls.protocol.version=3",
                "tls.cipher=0xC0FF",
                "tls.curve=0x2A2A",
                "tls.resumed=true",
            ]
        );
    }

    #[test]
    fn whether_a_session_was_taken_up_is_not_guessed() {
        let mut handshake = fixture::handshake();
        assert!(shown(&handshake).contains(&"tls.resumed=false".to_owned()));
        let joined = Handshake { established: true, ..Handshake::default() };
        assert_eq!(shown(&joined), ["tls.protocol.name=tls", "tls.established=true"]);
        handshake.established = false;
        assert!(!shown(&handshake).iter().any(|line| line.starts_with("tls.resumed") || line.contains("established")));
    }

    #[test]
    fn a_date_beyond_all_clocks_is_a_date() {
        let mut handshake = fixture::handshake();
        let certificate = handshake.certificate.as_mut().unwrap();
        (certificate.not_before_unix_s, certificate.not_after_unix_s) = (-5, 253_402_300_799);
        let shown = shown(&handshake);
        assert!(shown.contains(&"tls.server.not_before=1970-01-01T00:00:00Z".to_owned()), "{shown:?}");
        assert!(shown.contains(&"tls.server.not_after=9999-12-31T23:59:59Z".to_owned()), "{shown:?}");
    }

    #[test]
    fn what_a_client_certificate_says_has_no_way_out() {
        let handshake = Handshake { client_certificate_sent: true, ..fixture::handshake() };
        assert!(!shown(&handshake).iter().any(|line| line.contains("certificate") || line.contains("tls.client.s=")));
        assert_eq!(shown(&handshake), shown(&fixture::handshake()));
    }
}
