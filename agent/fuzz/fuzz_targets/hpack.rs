//! Any header blocks and losses: no panic, bounded memory, ranges that exist, and whoever joined late or lost blocks never
//! says anything but what the decoder says that saw them all.
#![no_main]

use agent::protocol::http2::hpack::{Decoder, Fields};
use libfuzzer_sys::fuzz_target;

/// Twice the largest table and what vectors reserve, and an entry for each 32 bytes of it.
const MEMORY: usize = 4 * 64 * 1024 + 4096 * 16;
/// Kept of one block, and its last string.
const RAW: usize = 256 * 1024 + 2 * 65_536;

// The first bytes: when to join, and which blocks get lost. A step is two bytes of length, and that many bytes of a block;
// the highest bit of the length is a setting of the table's size instead.
fuzz_target!(|input: &[u8]| {
    let [joins_at, lost, rest @ ..] = input else { return };
    let (mut whole, mut joined, mut losing) = (Decoder::new(), Decoder::joined(), Decoder::new());
    let (mut truth, mut fields) = (Fields::default(), Fields::default());
    let mut rest = rest;
    let mut number = 0_u32;
    while let [high, low, after @ ..] = rest {
        let len = u16::from_be_bytes([*high, *low]);
        rest = after;
        if len & 0x8000 != 0 {
            for decoder in [&mut whole, &mut joined, &mut losing] {
                decoder.set_limit(u32::from(len & 0x7fff) << 3);
            }
            continue;
        }
        let (block, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        truth.clear();
        // What follows a block that is none is for the crash and the bounds alone.
        if whole.decode(block, &mut truth).is_err() {
            joined.lose();
            losing.lose();
        } else {
            if number >= u32::from(*joins_at) % 32 {
                check(&mut joined, block, &mut fields, &truth);
            }
            if lost >> (number % 8) & 1 == 1 {
                losing.lose();
            } else {
                check(&mut losing, block, &mut fields, &truth);
            }
        }
        number += 1;
        assert!(truth.raw.len() <= RAW && truth.fields.len() <= 1024);
        assert!([&whole, &joined, &losing].iter().all(|decoder| decoder.memory() <= MEMORY));
    }
});

fn check(decoder: &mut Decoder, block: &[u8], fields: &mut Fields, truth: &Fields) {
    fields.clear();
    // It may believe in a larger table, or in entries that are not there, but not refuse what is lawful.
    assert_eq!(decoder.decode(block, fields), Ok(()));
    for (field, true_field) in fields.fields.iter().zip(&truth.fields) {
        for (range, true_range) in [(field.name, true_field.name), (field.value, true_field.value)] {
            assert_eq!(fields.text(range).is_some(), range.is_some());
            // It may keep longer what the other one no longer has.
            if let (Some(text), Some(true_text)) = (fields.text(range), truth.text(true_range)) {
                assert_eq!(text, true_text);
            }
        }
        assert_eq!(field.sensitive, true_field.sensitive);
    }
}
