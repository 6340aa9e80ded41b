//! Any bytes as a file of a container: looking for TLS libraries in it never panics, and no probe lies outside of it.
#![no_main]

use agent::tls_targets::{Effort, elf::Image, find};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::parse(bytes) else { return };
    image.build_id();
    image.functions(&mut |_, function| assert_ne!(function.size, 0));
    for effort in [Effort::Symbols, Effort::Code] {
        let found = find(&image, effort);
        let mut probes = found.targets.iter().flat_map(|target| &target.probes);
        assert!(probes.all(|probe| probe.offset < bytes.len() as u64));
    }
});
