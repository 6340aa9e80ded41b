//! Any bytes as a record of the kernel: decoding never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    drop(agent::event::decode(bytes));
});
