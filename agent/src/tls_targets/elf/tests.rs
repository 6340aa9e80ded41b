//! Files that are right, files that lie, and any bytes at all.

use proptest::prelude::*;

use super::{Function, Image, NotElf, Section};
use crate::tls_targets::{
    Effort, find,
    sample::{BIAS, SLOTS, STRIDE, Sample, TEXT, address},
};

fn sample() -> Sample {
    Sample {
        exported: vec![("first", vec![0x55, 0xc3]), ("second", vec![0x90, 0x90, 0xc3])],
        local: vec![("inner", vec![0xc3]), ("my_first", vec![0xc3])],
        imported: vec!["memcpy", "write"],
        build_id: vec![0xde, 0xad, 0xbe, 0xef, 1, 2, 3],
        is_arm64: false,
    }
}

#[test]
fn functions_are_found_by_the_hash_table_and_else_in_the_full_table() {
    let file = sample().build();
    let image = Image::parse(file.as_slice()).unwrap();
    assert!(image.is_x86_64());
    assert_eq!(image.function("first"), Some(Function { address: address(0), size: 2 }));
    assert_eq!(image.function("second"), Some(Function { address: address(1), size: 3 }));
    assert_eq!(image.function("inner"), Some(Function { address: address(2), size: 1 }));
    for absent in ["", "firs", "first2", "irst", "memcpy", "third"] {
        assert_eq!(image.function(absent), None, "{absent}");
    }
}

#[test]
fn every_function_is_listed_once() {
    let file = sample().build();
    let image = Image::parse(file.as_slice()).unwrap();
    let mut all = Vec::new();
    image.functions(&mut |name, function| all.push((String::from_utf8(name.to_vec()).unwrap(), function.address)));
    let expected = ["first", "second", "inner", "my_first"].map(str::to_owned).into_iter().zip((0..).map(address));
    assert_eq!(all, expected.collect::<Vec<_>>());
}

#[test]
fn two_functions_of_one_name_are_none() {
    let mut sample = sample();
    sample.local.push(("inner", vec![0xc3]));
    let file = sample.build();
    assert_eq!(Image::parse(file.as_slice()).unwrap().function("inner"), None);
}

#[test]
fn addresses_become_offsets_only_in_code() {
    let file = sample().build();
    let image = Image::parse(file.as_slice()).unwrap();
    assert_eq!(image.file_offset(address(1)), Some(TEXT + STRIDE));
    assert_eq!(image.file_offset(BIAS + 0x1000), None, "mapped, not executable");
    assert_eq!(image.file_offset(address(4)), None, "behind the end");
    assert_eq!(image.file_offset(BIAS - 1), None);
    assert_eq!(image.bytes(address(0), 2), Some([0x55, 0xc3].as_slice()));
    assert_eq!(image.bytes(address(3), STRIDE + 1), None);
    assert_eq!(image.bytes(address(0), u64::MAX), None);
    assert_eq!(image.bytes(u64::MAX, 2), None);
}

#[test]
fn sections_build_id_and_imports_are_read() {
    let file = sample().build();
    let image = Image::parse(file.as_slice()).unwrap();
    let text = Section { address: BIAS + TEXT, offset: TEXT, size: 4 * STRIDE };
    assert_eq!(image.section(".text"), Some(text));
    assert_eq!(image.section(".tex"), None);
    assert_eq!(image.section("text"), None);
    assert_eq!(image.build_id(), Some([0xde, 0xad, 0xbe, 0xef, 1, 2, 3].as_slice()));
    assert_eq!(image.imported(BIAS + SLOTS), Some(b"memcpy".as_slice()));
    assert_eq!(image.imported(BIAS + SLOTS + 8), Some(b"write".as_slice()));
    assert_eq!(image.imported(BIAS + SLOTS + 16), None);
}

#[test]
fn a_file_without_section_headers_still_has_its_exported_functions() {
    let mut file = sample().build();
    file[60..62].fill(0);
    let image = Image::parse(file.as_slice()).unwrap();
    assert_eq!(image.function("second").map(|function| function.size), Some(3));
    assert_eq!(image.function("inner"), None);
    assert_eq!(image.section(".text"), None);
}

#[test]
fn what_is_not_such_a_file_is_refused() {
    let file = sample().build();
    for (at, value) in [(0, 0x7e), (4, 1), (5, 2), (16, 1), (18, 3), (54, 57), (57, 0xff), (39, 0xff)] {
        let mut other = file.clone();
        other[at] = value;
        assert_eq!(Image::parse(other.as_slice()).err(), Some(NotElf), "byte {at}");
    }
    for len in [0, 4, 63, 64, 100] {
        assert_eq!(Image::parse(&file[..len]).err(), Some(NotElf), "{len} bytes");
    }
}

#[test]
fn arm64_is_an_image_too() {
    let file = Sample { is_arm64: true, ..sample() }.build();
    assert!(!Image::parse(file.as_slice()).unwrap().is_x86_64());
}

#[test]
fn the_program_of_this_test_is_read() {
    let program = std::fs::read("/proc/self/exe").unwrap();
    let image = Image::parse(program.as_slice()).unwrap();
    let text = image.section(".text").unwrap();
    assert_eq!(image.file_offset(text.address), Some(text.offset));
    let mut here = 0;
    image.functions(&mut |name, function| {
        if name.windows(26).any(|part| part == b"the_program_of_this_test_i") {
            here += 1;
            assert!(image.file_offset(function.address).is_some());
        }
    });
    assert!(here > 0);
}

/// Everything that can be asked.
fn ask(file: &[u8]) {
    let Ok(image) = Image::parse(file) else { return };
    for name in ["first", "second", "inner", "SSL_read", ""] {
        if let Some(function) = image.function(name) {
            assert_ne!(function.size, 0);
            if let Some(offset) = image.file_offset(function.address) {
                assert!(offset < file.len() as u64);
            }
            image.bytes(function.address, function.size);
        }
    }
    image.functions(&mut |_, _| ());
    image.build_id();
    image.section(".text");
    image.imported(BIAS + SLOTS);
    find(&image, Effort::Symbols);
    find(&image, Effort::Code);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        ask(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_right_beginning_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..4096),
        machine in prop::sample::select(vec![62u8, 183]),
    ) {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, machine, 0];
        file.extend(bytes);
        for (at, value) in [(54usize, 56u16), (58, 64)] {
            if let Some(field) = file.get_mut(at..at + 2) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        }
        ask(&file);
    }

    #[test]
    fn a_file_with_some_bytes_changed_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..40),
        len in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut file = sample().build();
        let all = file.len();
        for (index, value, in_header) in changes {
            file[index.index(if in_header { 0x140 } else { all })] = value;
        }
        if is_cut {
            file.truncate(len.index(all));
        }
        ask(&file);
    }
}
