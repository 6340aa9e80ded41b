//! Functions as the Go compiler writes them, and the tables that its linker writes.

use proptest::prelude::*;

use super::*;
use crate::tls_targets::{
    find as find_all,
    sample::{BIAS, sections},
};

const ADDRESS: u64 = 0x40_0000;
const MEMMOVE_AT: u64 = 0x40_1000;

/// A function as the Go compiler writes it, around a part of its own.
fn function(middle: &[u8]) -> Vec<u8> {
    let mut code = vec![0x49, 0x3b, 0x66, 0x10, 0x76, (middle.len() + 3) as u8, 0x55];
    code.extend(middle);
    code.extend([0x5d, 0xc3]);
    // Saves rax, calls morestack, loads rax, begins again.
    code.extend([0x48, 0x89, 0x44, 0x24, 0x08, 0xe8, 0, 0x20, 0, 0, 0x48, 0x8b, 0x44, 0x24, 0x08]);
    let back = -(code.len() as i64 + 2);
    code.extend([0xeb, back as u8, 0xcc, 0xcc, 0xcc]);
    code
}

fn body_of(bytes: &[u8], memmove: Option<u64>) -> Result<Body, &'static str> {
    Code::decode(ADDRESS, bytes).ok_or(FORM).and_then(|code| body(&code, memmove))
}

/// `call` at the n-th byte of the function.
fn call(at: u64, target: u64) -> Vec<u8> {
    let distance = target.wrapping_sub(ADDRESS + at + 5) as u32;
    [0xe8].into_iter().chain(distance.to_le_bytes()).collect()
}

#[test]
fn the_branch_of_the_stack_check_the_copy_and_the_return_are_found() {
    let code = function(&call(7, MEMMOVE_AT));
    let expected = Body { branch: ADDRESS + 4, copies: vec![ADDRESS + 7], returns: vec![ADDRESS + 13] };
    assert_eq!(body_of(&code, Some(MEMMOVE_AT)), Ok(expected));
}

#[test]
fn without_the_address_of_memmove_no_call_is_a_copy() {
    let code = function(&call(7, MEMMOVE_AT));
    assert!(body_of(&code, None).unwrap().copies.is_empty());
}

#[test]
fn both_copies_are_found_so_that_neither_is_taken_for_the_only_one() {
    let code = function(&[call(7, MEMMOVE_AT), call(12, MEMMOVE_AT)].concat());
    assert_eq!(body_of(&code, Some(MEMMOVE_AT)).unwrap().copies, [ADDRESS + 7, ADDRESS + 12]);
}

#[test]
fn large_frames_have_a_longer_stack_check() {
    let mut code = vec![0x4c, 0x8d, 0x64, 0x24, 0xc8, 0x4d, 0x3b, 0x66, 0x10, 0x76, 3, 0x55, 0x5d, 0xc3];
    code.extend([0xe8, 0, 0x20, 0, 0]);
    let back = -(code.len() as i64 + 2);
    code.extend([0xeb, back as u8]);
    assert_eq!(body_of(&code, None).unwrap().branch, ADDRESS + 9);
}

#[test]
fn what_does_not_agree_with_itself_is_refused() {
    let good = function(&[0x90]);
    assert!(body_of(&good, None).is_ok());
    let cases: [(&str, Vec<u8>); 6] = [
        ("begins in the middle of an instruction", good[1..].to_vec()),
        ("begins one instruction late", good[4..].to_vec()),
        ("ends inside an instruction", good[..good.len() - 4].to_vec()),
        ("has a branch into an instruction", function(&[0x75, 1, 0xb8, 0, 0, 0, 0])),
        ("does not return", good.iter().map(|&byte| if byte == 0xc3 { 0x90 } else { byte }).collect()),
        ("is empty", Vec::new()),
    ];
    for (what, code) in cases {
        assert_eq!(body_of(&code, None), Err(FORM), "{what}");
    }
}

#[test]
fn the_way_that_grows_the_stack_must_begin_the_function_again() {
    let mut code = function(&[0x90]);
    let at = code.len() - 4;
    code[at] = code[at].wrapping_add(4);
    assert_eq!(body_of(&code, None), Err(FORM));
}

#[test]
fn a_function_of_the_stack_abi_is_refused_with_its_reason() {
    // mov rcx,fs:[-8]; cmp rsp,[rcx+16]; jbe
    let code = [0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff, 0x48, 0x3b, 0x61, 0x10, 0x76, 1, 0xc3, 0xc3];
    assert_eq!(body_of(&code, None), Err(OLD));
}

proptest! {
    #[test]
    fn any_bytes_as_code_never_panic(code in proptest::collection::vec(any::<u8>(), 0..400), at in any::<u64>()) {
        let code = Code::prefix(at, &code);
        prop_assert_eq!(body(&code, Some(at)).is_ok(), body(&code, None).is_ok());
    }

    #[test]
    fn any_change_of_a_function_never_gives_an_address_that_is_not_an_instruction(
        at in 0_usize..34, byte in any::<u8>(),
    ) {
        let mut code = function(&call(7, MEMMOVE_AT));
        if let Some(place) = code.get_mut(at) {
            *place = byte;
        }
        if let Ok(body) = body_of(&code, Some(MEMMOVE_AT)) {
            let code = Code::decode(ADDRESS, &code).unwrap();
            let all = body.copies.iter().chain(&body.returns).chain([&body.branch]);
            for address in all {
                prop_assert!(code.at(*address).is_some());
            }
        }
    }
}

/// Functions are this far apart.
const APART: u32 = 0x100;
const TEXT_AT: u64 = 0x2000;
/// Offsets of the sections behind the code.
const TABLE_AT: u64 = 0x4000;
const MODULE_AT: u64 = 0x6000;
const RELOCATIONS_AT: u64 = 0x7000;
const NAMES: [&str; 4] = ["runtime.memmove", WRITE, READ, "main.main"];

/// Where a program says that its code begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Header(u64),
    Module(u64),
    Relocation(u64),
    Nothing,
}

/// Four functions, the third of which calls the first; `.gopclntab` and what else says where they are.
fn program(magic: u32, section: &str, says: Says) -> Vec<u8> {
    let text = BIAS + TEXT_AT;
    let mut code = Vec::new();
    for number in 0..NAMES.len() as u64 {
        let at = text + number * u64::from(APART);
        let distance = text.wrapping_sub(at + 7 + 5) as u32;
        let copy = [[0xe8].as_slice(), &distance.to_le_bytes()].concat();
        code.extend(function(if number == 2 { &copy } else { &[0x90] }));
        code.resize((number as usize + 1) * APART as usize, 0xcc);
    }

    let names: Vec<u8> = [""].iter().chain(&NAMES).flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
    let name_at = |name: &str| names.windows(name.len()).position(|part| part == name.as_bytes()).unwrap() as u32;
    let functab = NAMES.len() as u32 * 8 + 4;
    let (mut table, mut records) = (Vec::new(), Vec::new());
    for (number, name) in (0..).zip(NAMES) {
        table.extend([number * APART, functab + number * 8].map(u32::to_le_bytes).concat());
        records.extend([number * APART, name_at(name)].map(u32::to_le_bytes).concat());
    }
    table.extend((NAMES.len() as u32 * APART).to_le_bytes());
    table.extend(records);

    let header_text = if let Says::Header(text) = says { text } else { 0 };
    let names_end = 72 + names.len() as u64;
    let mut pclntab = magic.to_le_bytes().to_vec();
    pclntab.extend([0, 0, 1, 8]);
    let words = [NAMES.len() as u64, 1, header_text, 72, names_end, names_end, names_end, names_end];
    pclntab.extend(words.map(u64::to_le_bytes).concat());
    pclntab.extend(names);
    pclntab.extend(table);

    let mut module = vec![0; 184];
    module[..8].copy_from_slice(&(BIAS + TABLE_AT).to_le_bytes());
    if let Says::Module(text) = says {
        module[176..].copy_from_slice(&text.to_le_bytes());
    }
    let mut relocations = vec![0; 24];
    if let Says::Relocation(text) = says {
        relocations = [BIAS + TABLE_AT + 24, 8, text].map(u64::to_le_bytes).concat();
    }
    sections(&[
        (".text", TEXT_AT, code),
        (section, TABLE_AT, pclntab),
        (".go.module", MODULE_AT, module),
        (".rela.dyn", RELOCATIONS_AT, relocations),
        (".go.buildinfo", RELOCATIONS_AT + 0x100, vec![0; 32]),
    ])
}

fn found(file: &[u8]) -> Found {
    find_all(&Image::parse(file).unwrap(), Effort::Symbols)
}

#[test]
fn a_stripped_program_is_read_through_its_own_table_of_functions() {
    let text = BIAS + TEXT_AT;
    for (magic, section, says) in [
        (0xffff_fff0, ".gopclntab", Says::Header(text)),
        (0xffff_fff1, ".gopclntab", Says::Header(text)),
        (0xffff_fff1, ".gopclntab", Says::Module(text)),
        (0xffff_fff0, ".data.rel.ro.gopclntab", Says::Relocation(text)),
        (0xffff_fff1, ".data.rel.ro", Says::Relocation(text)),
    ] {
        let found = found(&program(magic, section, says));
        assert_eq!(found.unreadable, [], "{section} {says:x?}");
        let (write, read) = (TEXT_AT + u64::from(APART), TEXT_AT + 2 * u64::from(APART));
        let probes: Vec<_> = found.targets[0]
            .probes
            .iter()
            .map(|probe| (probe.program, probe.offset, probe.form, probe.direction, probe.emulated))
            .collect();
        let expected = [
            (Program::Push, write + 4, form::GO_WRITE, direction::SEND, true),
            (Program::Enter, read + 4, form::GO_READ, direction::RECEIVE, true),
            (Program::Push, read + 7, form::GO_READ_COPY, direction::RECEIVE, true),
        ];
        assert_eq!(probes, expected, "{section} {says:x?}");
    }
}

#[test]
fn a_text_base_that_does_not_fit_the_code_is_refused() {
    let text = BIAS + TEXT_AT;
    for says in
        [Says::Nothing, Says::Header(text + 1), Says::Header(text + 0x40), Says::Module(text - 0xc0), Says::Header(1)]
    {
        let found = found(&program(0xffff_fff1, ".gopclntab", says));
        assert_eq!(found.targets, [], "{says:x?}");
        assert_eq!(found.unreadable, [Unreadable { stack: Stack::Go, reason: NO_TEXT.into() }], "{says:x?}");
    }
}

#[test]
fn a_table_of_another_version_is_refused() {
    let found = found(&program(0xffff_fffa, ".gopclntab", Says::Header(BIAS + TEXT_AT)));
    assert_eq!(found.unreadable, [Unreadable { stack: Stack::Go, reason: NO_TABLE.into() }]);
}

#[test]
fn a_program_without_tls_is_nothing() {
    let mut file = program(0xffff_fff1, ".gopclntab", Says::Header(BIAS + TEXT_AT));
    let at = file.windows(READ.len()).position(|part| part == READ.as_bytes()).unwrap();
    file[at] = b'x';
    assert_eq!(found(&file), Found::default());
}

proptest! {
    #[test]
    fn a_damaged_table_never_panics_nor_gives_an_address_that_is_not_an_instruction(
        damage in proptest::collection::vec((TABLE_AT..TABLE_AT + 0x180, any::<u8>()), 1..6),
    ) {
        let mut file = program(0xffff_fff1, ".gopclntab", Says::Header(BIAS + TEXT_AT));
        for (at, byte) in damage {
            file[at as usize] = byte;
        }
        for target in found(&file).targets {
            for probe in target.probes {
                let within = probe.offset.checked_sub(TEXT_AT).unwrap() % u64::from(APART);
                prop_assert!([4, 7, 9, 13].contains(&within), "{probe:?}");
            }
        }
    }
}
