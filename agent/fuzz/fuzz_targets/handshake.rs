//! Any bytes and gaps in both directions: no panic, bounded memory, printable text, the same facts however it is cut.
#![no_main]

use agent::handshake::Reader;
use agent::model::Direction;
use libfuzzer_sys::fuzz_target;

/// Two messages of 16 KiB, the facts, and what a vector reserves beyond its length.
const MEMORY: usize = 96 * 1024;

// A step is one byte of direction, two of length, and that many bytes; a length of 65535 is a gap. Streams, not records:
// the corpus has whole handshakes.
fuzz_target!(|input: &[u8]| {
    let mut whole = Reader::new();
    let mut single = Reader::new();
    let mut rest = input;
    while let [direction, high, low, after @ ..] = rest {
        let direction = if direction & 1 == 0 { Direction::Receive } else { Direction::Send };
        let len = u16::from_be_bytes([*high, *low]);
        if len == u16::MAX {
            rest = after;
            whole.on_gap(direction);
            single.on_gap(direction);
            continue;
        }
        let (bytes, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        whole.on_bytes(direction, bytes);
        for byte in bytes {
            single.on_bytes(direction, &[*byte]);
        }
        assert!(whole.memory() < MEMORY);
    }
    assert_eq!((whole.facts(), whole.is_done()), (single.facts(), single.is_done()));
    let facts = whole.facts();
    let names = facts.certificate.iter().flat_map(|it| it.names.iter().chain([&it.subject, &it.issuer]));
    let texts = names.chain(&facts.alpn).chain(facts.offer.iter().flat_map(|it| it.alpn.iter().chain(&it.server_name)));
    for text in texts {
        assert!(text.len() <= 256 && !text.chars().any(char::is_control));
    }
});
