//! Errors as BoringSSL's compilers report them, and the functions that are told by them.

use proptest::prelude::*;

use super::*;
use crate::tls_targets::{
    Probe, Program, find as find_all,
    sample::{BIAS, sections},
};

const TEXT_AT: u64 = 0x4000;
const NAME_AT: u64 = 0x2000;
const TABLE_AT: u64 = 0x2800;
const FRAMES_AT: u64 = 0x2c00;
const PATH: &[u8] = b"\0external/boringssl/src/ssl/ssl_lib.cc\0";
const APART: u64 = 0x100;

/// `ERR_put_error(16, 0, reason, file, line)`, in the code at `at`.
fn report(at: u64, reason: u32, line: u32) -> Vec<u8> {
    let name = (BIAS + NAME_AT + 1).wrapping_sub(at + 7) as u32;
    let mut code = [[0x48, 0x8d, 0x0d].as_slice(), &name.to_le_bytes()].concat();
    code.extend([[0xba].as_slice(), &reason.to_le_bytes()].concat());
    code.extend([[0x41, 0xb8].as_slice(), &line.to_le_bytes(), &[0xe8, 0, 0, 0, 0]].concat());
    code
}

/// A function that reports errors, and then moves on in the object's state or not.
fn function(at: u64, errors: &[(u32, u32)], consumes: bool) -> Vec<u8> {
    let mut code = vec![0x53, 0x48, 0x89, 0xfb];
    for &(reason, line) in errors {
        // cmp qword [rbx],0; je over
        code.extend([0x48, 0x83, 0x3b, 0, 0x74, 23]);
        code.extend(report(at + code.len() as u64, reason, line));
    }
    if consumes {
        // mov rax,[rbx+0x30]; add [rax+0x80],rdx
        code.extend([0x48, 0x8b, 0x43, 0x30, 0x48, 0x01, 0x90, 0x80, 0, 0, 0]);
    }
    code.extend([0x5b, 0xc3]);
    code
}

/// What the functions report, and whether they consume.
type Shape = (&'static [(u32, u32)], bool);

const INNER: Shape = (&[(226, 900), (215, 910)], true);
const PEEK: Shape = (&[(66, 940)], false);
const READ: Shape = (&[(66, 940)], true);
const WRITE: Shape = (&[(66, 960), (226, 965), (111, 980), (215, 990)], true);
const OTHER: Shape = (&[(66, 800)], true);

/// A stripped file.
fn file(shapes: &[Shape]) -> Vec<u8> {
    let (mut text, mut table, mut frames) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (errors, consumes)) in (0..).zip(shapes) {
        let at = BIAS + TEXT_AT + number * APART;
        let code = function(at, errors, *consumes);
        let frame = BIAS + FRAMES_AT + number * 16;
        table.extend([at, frame].map(|place| (place.wrapping_sub(BIAS + TABLE_AT) as u32).to_le_bytes()).concat());
        frames.extend([12, 0, at.wrapping_sub(frame + 8) as u32, code.len() as u32].map(u32::to_le_bytes).concat());
        text.extend(code);
        text.resize(((number + 1) * APART) as usize, 0xcc);
    }
    let mut header = vec![1, 0x1b, 3, 0x3b, 0, 0, 0, 0];
    header.extend((shapes.len() as u32).to_le_bytes());
    header.extend(table);
    sections(&[
        (".rodata", NAME_AT, PATH.to_vec()),
        (".eh_frame_hdr", TABLE_AT, header),
        (".eh_frame", FRAMES_AT, frames),
        (".text", TEXT_AT, text),
    ])
}

fn found(file: &[u8]) -> Found {
    find_all(&Image::parse(file).unwrap(), Effort::Code)
}

fn refused(reason: &str) -> Found {
    Found { unreadable: vec![Unreadable { stack: Stack::Boringssl, reason: reason.to_owned() }], ..Found::default() }
}

#[test]
fn read_and_write_are_told_by_the_errors_they_report() {
    let found = found(&file(&[OTHER, PEEK, READ, INNER, WRITE]));
    assert_eq!(found.unreadable, []);
    let target = &found.targets[0];
    assert_eq!(target.stack, Stack::Boringssl);
    assert_eq!((target.layout.random_base, target.layout.random), (0x30, 0x30));
    let (read, write) = (TEXT_AT + 2 * APART, TEXT_AT + 4 * APART);
    let probe = |program, offset, direction, function| Probe {
        program,
        offset,
        form: form::INT,
        direction,
        function,
        emulated: true,
    };
    let expected = [
        probe(Program::Enter, read, direction::RECEIVE, "SSL_read"),
        probe(Program::Return, read, direction::RECEIVE, "SSL_read"),
        probe(Program::Enter, write, direction::SEND, "SSL_write"),
        probe(Program::Return, write, direction::SEND, "SSL_write"),
    ];
    assert_eq!(target.probes, expected);
}

#[test]
fn the_code_is_searched_only_where_that_is_worth_it() {
    let file = file(&[READ, INNER, WRITE]);
    assert_eq!(find_all(&Image::parse(file.as_slice()).unwrap(), Effort::Symbols), Found::default());
}

#[test]
fn whatever_is_not_exactly_one_pair_is_refused() {
    for (shapes, reason) in [
        ([PEEK, INNER, WRITE, OTHER].as_slice(), UNLIKE),
        (&[READ, INNER, OTHER], UNLIKE),
        (&[READ, WRITE], UNLIKE),
        (&[READ, READ, INNER, WRITE], TWICE),
        (&[READ, INNER, WRITE, READ, INNER, WRITE], TWICE),
    ] {
        assert_eq!(found(&file(shapes)), refused(reason), "{shapes:?}");
    }
}

#[test]
fn a_file_without_bounds_of_functions_is_refused() {
    let mut file = file(&[READ, INNER, WRITE]);
    file[TABLE_AT as usize] = 2;
    assert_eq!(found(&file), refused(NO_BOUNDS));
}

#[test]
fn a_report_is_read_on_every_way_to_it() {
    // Two reasons, one call: je over; mov edx,226; jmp on; over: mov edx,215; on: lea rcx; mov r8d,9; call; ret
    let mut code = vec![0x74, 7, 0xba, 226, 0, 0, 0, 0xeb, 5, 0xba, 215, 0, 0, 0];
    let at = BIAS + TEXT_AT;
    let name = (BIAS + NAME_AT + 1).wrapping_sub(at + code.len() as u64 + 7) as u32;
    code.extend([[0x48, 0x8d, 0x0d].as_slice(), &name.to_le_bytes(), &[0x41, 0xb8, 9, 0, 0, 0]].concat());
    code.extend([0xe8, 0, 0, 0, 0, 0xc3]);
    let errors = errors(&Code::decode(at, &code).unwrap(), &[BIAS + NAME_AT + 1]);
    assert_eq!(errors, BTreeSet::from([(215, 9), (226, 9)]));
}

#[test]
fn a_reason_that_was_overwritten_is_not_reported() {
    // mov edx,66; mov r8d,1; xor edx,edx; then the name and the call.
    let mut code = vec![0xba, 66, 0, 0, 0, 0x41, 0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0xb9];
    code.extend(0x1234_u32.to_le_bytes());
    code.extend([0xe8, 0, 0, 0, 0, 0xc3]);
    assert_eq!(errors(&Code::decode(0, &code).unwrap(), &[0x1234]), BTreeSet::new());
}

#[test]
fn a_name_across_the_border_of_two_pieces_is_found() {
    let mut strings = vec![b'x'; 0x10_0000 - 20];
    strings.extend(PATH);
    let file = sections(&[(".rodata", NAME_AT, strings)]);
    let image = Image::parse(file.as_slice()).unwrap();
    assert_eq!(sources(&image), [BIAS + NAME_AT + 0x10_0000 - 19]);
}

proptest! {
    #[test]
    fn a_damaged_file_never_panics_nor_gives_an_address_inside_an_instruction(
        damage in proptest::collection::vec((NAME_AT..TEXT_AT + 3 * APART, any::<u8>()), 1..8),
    ) {
        let mut file = file(&[READ, INNER, WRITE]);
        for (at, byte) in damage {
            if let Some(place) = file.get_mut(at as usize) {
                *place = byte;
            }
        }
        for target in found(&file).targets {
            for probe in target.probes {
                // Damage may move a probe on to a later instruction, never into one.
                let begin = probe.offset - (probe.offset - TEXT_AT) % APART;
                let code = Code::prefix(BIAS + begin, &file[begin as usize..]);
                prop_assert!(code.at(BIAS + probe.offset).is_some(), "{probe:?}");
            }
        }
    }

    #[test]
    fn any_code_never_panics(code in proptest::collection::vec(any::<u8>(), 0..300), source in any::<u64>()) {
        let code = Code::prefix(0x1000, &code);
        prop_assert!(errors(&code, &[source]).len() <= MAX_STEPS);
        prop_assert!(!consumes(&code) || !code.instructions().is_empty());
    }
}
