//! Content of every kind that has messages, in pieces and with gaps: no panic, bounded memory, and a count that is never
//! higher than what was counted with all bytes in sight.
#![no_main]

use agent::model::{Field, Headers};
use agent::protocol::content::Reader;
use libfuzzer_sys::fuzz_target;

const KINDS: [&str; 4] =
    ["application/grpc", "application/grpc-web+proto", "application/grpc-web-text", "text/event-stream"];
/// The trailers of gRPC-Web, twice, and the reader itself.
const MEMORY: usize = 64 * 1024;

fn reader(kind: u8) -> Option<Reader> {
    let Some(name) = KINDS.get(usize::from(kind % 5)) else { return Some(Reader::websocket()) };
    let raw = [b"content-type", name.as_bytes()].concat();
    let field = Field { name: (0, 12), value: (12, raw.len() as u32) };
    Reader::for_response(&Headers::new(raw.into(), Box::new([field])))
}

// A step is one byte of length and that many bytes; where its highest bit is set, the second reader does not see them.
fuzz_target!(|input: &[u8]| {
    let [kind, rest @ ..] = input else { return };
    let (Some(mut all), Some(mut some)) = (reader(*kind), reader(*kind)) else { return };
    let mut rest = rest;
    while let [step, after @ ..] = rest {
        let (bytes, after) = after.split_at(usize::from(step & 0x7f).min(after.len()));
        rest = after;
        all.on_bytes(bytes);
        if step & 0x80 == 0 {
            some.on_bytes(bytes)
        } else {
            some.on_gap(bytes.len() as u64)
        }
        assert!(all.memory() < MEMORY && some.memory() < MEMORY);
    }
    let (all, some) = (all.summary(), some.summary());
    assert!(some.count <= all.count, "{some:?} of {all:?}");
    assert!(!some.exact || some.count == all.count, "{some:?} of {all:?}");
});
