//! The two functions as compilers write them, under the names that they give them.

use proptest::prelude::*;

use super::*;
use crate::tls_targets::{
    find as find_all,
    sample::{STRIDE, Sample, TEXT, sections},
};

const RECEIVE_LEGACY: &str = "_ZN6rustls12common_state11CommonState23take_received_plaintext17ha035a9133f8e990dE";
const SEND_LEGACY: &str = "_ZN6rustls12common_state11CommonState16buffer_plaintext17h6b52206d95e6fb6eE.llvm.1434997";
const RECEIVE_V0: &str = "_RNvMs3_NtCs7qcGWYmVZGa_6rustls12common_stateNtB5_11CommonState23take_received_plaintext";
const SEND_V0: &str = "_RNvMs4_NtCs7qcGWYmVZGa_6rustls12common_stateNtB5_11CommonState16buffer_plaintext";

/// Copies from the word at `pointer` of the payload, as much as the word at `length` says.
fn receive(pointer: u8, length: u8) -> Vec<u8> {
    // push rbx; mov rdx,[rsi+..]; mov rsi,[rsi+..]; call; pop rbx; ret
    vec![0x53, 0x48, 0x8b, 0x56, length, 0x48, 0x8b, 0x76, pointer, 0xe8, 0, 0, 0, 0, 0x5b, 0xc3]
}

/// Compares the first word of the chunks with `0`, and reads `start` and `end`.
fn send(start: u8, end: u8) -> Vec<u8> {
    // push rbx; mov rax,[rsi+..]; mov rcx,[rsi+..]; cmp qword [rsi],0; pop rbx; ret
    vec![0x53, 0x48, 0x8b, 0x46, start, 0x48, 0x8b, 0x4e, end, 0x48, 0x83, 0x3e, 0, 0x5b, 0xc3]
}

fn found(local: Vec<(&'static str, Vec<u8>)>) -> Found {
    let file = Sample { local, ..Sample::default() }.build();
    find_all(&Image::parse(file.as_slice()).unwrap(), Effort::Code)
}

fn refused(reason: &str) -> Found {
    Found { unreadable: vec![Unreadable { stack: Stack::Rustls, reason: reason.to_owned() }], ..Found::default() }
}

#[test]
fn both_functions_are_found_under_both_manglings() {
    for (receives, sends) in [(RECEIVE_LEGACY, SEND_LEGACY), (RECEIVE_V0, SEND_V0)] {
        let found = found(vec![(receives, receive(8, 16)), (sends, send(16, 24))]);
        let probe = |program, offset, form, direction, function| Probe {
            program,
            offset,
            form,
            direction,
            function,
            emulated: true,
        };
        let probes = vec![
            probe(Program::Push, TEXT, form::PAYLOAD, direction::RECEIVE, RECEIVE),
            probe(Program::Enter, TEXT + STRIDE, form::CHUNKS, direction::SEND, SEND),
            probe(Program::Return, TEXT + STRIDE, form::CHUNKS, direction::SEND, SEND),
        ];
        let target = Target { stack: Stack::Rustls, layout: Layout::NONE, probes };
        assert_eq!(found, Found { targets: vec![target], ..Found::default() });
    }
}

#[test]
fn another_layout_of_what_the_functions_are_given_is_refused() {
    for (received, sent) in [
        (receive(0, 16), send(16, 24)),
        (receive(16, 8), send(16, 24)),
        (receive(8, 16), send(8, 24)),
        (receive(8, 16), send(16, 32)),
    ] {
        assert_eq!(found(vec![(RECEIVE_LEGACY, received), (SEND_LEGACY, sent)]), refused(SHAPE));
    }
}

#[test]
fn every_copy_of_a_function_is_probed() {
    let other = "_ZN6rustls12common_state11CommonState16buffer_plaintext17h0000000000000000E";
    let found = found(vec![(RECEIVE_LEGACY, receive(8, 16)), (SEND_LEGACY, send(16, 24)), (other, send(16, 24))]);
    let offsets: Vec<u64> = found.targets[0].probes.iter().map(|probe| probe.offset).collect();
    assert_eq!(offsets, [TEXT, TEXT + STRIDE, TEXT + STRIDE, TEXT + 2 * STRIDE, TEXT + 2 * STRIDE]);
}

#[test]
fn an_older_rustls_is_named() {
    let old = "_ZN6rustls12common_state11CommonState19send_some_plaintext17h0000000000000000E";
    assert_eq!(found(vec![(RECEIVE_LEGACY, receive(8, 16)), (old, send(16, 24))]), refused(OLDER));
}

#[test]
fn a_file_for_arm64_is_refused() {
    let local = vec![(RECEIVE_LEGACY, receive(8, 16)), (SEND_LEGACY, send(16, 24))];
    let file = Sample { local, is_arm64: true, ..Sample::default() }.build();
    assert_eq!(find_all(&Image::parse(file.as_slice()).unwrap(), Effort::Symbols), refused(MACHINE));
}

#[test]
fn names_of_other_items_are_not_taken() {
    for name in [
        // A closure in it, in both forms.
        "_ZN6rustls12common_state11CommonState16buffer_plaintext28_$u7b$$u7b$closure$u7d$$u7d$17h6b52206d95e6fb6eE",
        "_RNCNvMs4_NtCs7qcGWYmVZGa_6rustls12common_stateNtB7_11CommonState16buffer_plaintext0B9_",
        "_RNvMs4_NtCs7qcGWYmVZGa_6rustls12common_stateNtB5_11CommonState16buffer_plaintexts_0",
        // Of another type: early data of the server.
        "_ZN6rustls6server11server_conn14EarlyDataState23take_received_plaintext17ha035a9133f8e990dE",
        // Of another crate.
        "_ZN5other12common_state11CommonState16buffer_plaintext17h6b52206d95e6fb6eE",
        "_ZN6rustls",
        "_RNvM",
        "",
    ] {
        assert_eq!(method(name.as_bytes()), None, "{name}");
    }
}

#[test]
fn a_stripped_program_is_recognised_by_its_strings() {
    let mut strings = b"\0/registry/rustls-0.23.46/src/conn.rs\0".to_vec();
    strings.resize(0x18_0000 - 10, b'x');
    strings.extend(b"received plaintext buffer full");
    let file = sections(&[(".rodata", 0x2000, strings)]);
    let image = Image::parse(file.as_slice()).unwrap();
    assert_eq!(find_all(&image, Effort::Code), refused(&stripped(" 0.23.46")));
    assert_eq!(find_all(&image, Effort::Symbols), Found::default());
}

#[test]
fn a_path_alone_is_not_the_library() {
    let file = sections(&[(".rodata", 0x2000, b"/rustls-0.23.46/README".to_vec())]);
    assert_eq!(find_all(&Image::parse(file.as_slice()).unwrap(), Effort::Code), Found::default());
}

proptest! {
    #[test]
    fn any_name_never_panics(name in "(_ZN6rustls|_RNvM|_6rustls|11CommonState|16buffer_plaintext|17h|[a-zA-Z0-9_.]){0,8}") {
        let is_whole = name.contains("11CommonState16buffer_plaintext");
        prop_assert!(is_whole || method(name.as_bytes()) != Some(Method::Send));
    }

    #[test]
    fn any_code_never_panics(code in proptest::collection::vec(any::<u8>(), 1..200)) {
        let found = found(vec![(RECEIVE_LEGACY, code.clone()), (SEND_LEGACY, code)]);
        prop_assert_eq!(found.targets.len() + found.unreadable.len(), 1);
    }

    #[test]
    fn any_bytes_have_at_most_a_version(bytes in proptest::collection::vec(any::<u8>(), 0..60), at in 0_usize..80) {
        let version = version_at(&bytes, at).unwrap_or_default();
        prop_assert!(version.trim().chars().all(|c| c.is_ascii_digit() || c == '.'));
    }
}
