//! Small libraries of the shapes that compilers give OpenSSL and its relatives.

use agent_common::{
    event::direction,
    tls::{Layout, UNKNOWN, form},
};

use proptest::prelude::*;

use crate::tls_targets::{
    Effort, Found, Probe, Program, Stack, Target,
    elf::Image,
    find,
    sample::{BIAS, SLOTS, STRIDE, Sample, TEXT, address, branch},
};

type Functions = Vec<(&'static str, Vec<u8>)>;

/// `int f(object, buffer, int len)`: passes a pointer to a variable in RCX, or 0 and the pointer in R8.
fn plain(at: u64, internal: u64, is_fifth: bool) -> Vec<u8> {
    let mut code = vec![0x48, 0x83, 0xec, 0x18, 0x85, 0xd2, 0x78, 0x00];
    code.extend(if is_fifth { [0x31, 0xc9].as_slice() } else { &[] });
    code.extend(if is_fifth { [0x4c, 0x8d, 0x44, 0x24, 0x08] } else { [0x48, 0x8d, 0x4c, 0x24, 0x08] });
    code.extend([0x48, 0x63, 0xd2]);
    code.extend(branch(0xe8, at + code.len() as u64, internal));
    code.extend([0x85, 0xc0, 0x0f, 0x4f, 0x44, 0x24, 0x08, 0x48, 0x83, 0xc4, 0x18, 0xc3]);
    code
}

/// `int f(object, buffer, len, .., moved)`: passes everything on.
fn wide(at: u64, internal: u64) -> Vec<u8> {
    [vec![0x48, 0x83, 0xec, 0x08], branch(0xe8, at + 4, internal), vec![0x48, 0x83, 0xc4, 0x08, 0xc3]].concat()
}

/// `f(object, buffer, len, moved)`: as `to(object, buffer, len, 0, moved)`.
fn forward(at: u64, to: u64) -> Vec<u8> {
    [vec![0x49, 0x89, 0xc8, 0x31, 0xc9], branch(0xe9, at + 5, to)].concat()
}

/// Begins with a push and calls the protocol's method: where the internal function is inlined. Notes an error first,
/// with the arguments untouched.
fn inlined(at: u64, error: u64) -> Vec<u8> {
    let branch = branch(0xe8, at + 7, error);
    [vec![0x55, 0x83, 0x7f, 0x30, 0x00, 0x75, 0x05], branch, vec![0xff, 0x50, 0x38, 0x5d, 0xc3]].concat()
}

const IS_SERVER: [u8; 4] = [0x8b, 0x47, 0x38, 0xc3];
/// `lea rax, [rdi+0x160]; mov rdx, [rax]; mov [rsi], rdx; ret`.
const RANDOM: [u8; 14] = [0x48, 0x8d, 0x87, 0x60, 0x01, 0, 0, 0x48, 0x8b, 0x10, 0x48, 0x89, 0x16, 0xc3];
/// `mov rdi, [rdi+0xa8]; mov rdx, [rdi+0xb8]; mov [rsi], rdx; ret`.
const RANDOM_BEHIND: [u8; 18] =
    [0x48, 0x8b, 0xbf, 0xa8, 0, 0, 0, 0x48, 0x8b, 0x97, 0xb8, 0, 0, 0, 0x48, 0x89, 0x16, 0xc3];

fn found(sample: &Sample) -> Found {
    let file = sample.build();
    find(&Image::parse(file.as_slice()).unwrap(), Effort::Symbols)
}

fn target(exported: Functions, local: Functions) -> Target {
    let mut found = found(&Sample { exported, local, ..Sample::default() });
    assert_eq!(found.unreadable, []);
    assert_eq!(found.targets.len(), 1);
    found.targets.remove(0)
}

/// Function, form, offset behind the start of the function with this number.
fn of(probes: &[Probe], program: Program) -> Vec<(&'static str, u8, u64, u64)> {
    let of = probes.iter().filter(|probe| probe.program == program);
    of.map(|probe| (probe.function, probe.form, (probe.offset - TEXT) / STRIDE, (probe.offset - TEXT) % STRIDE))
        .collect()
}

#[test]
fn the_internal_pair_covers_all_four_functions() {
    let target = target(
        vec![
            ("SSL_read", plain(address(0), address(4), false)),
            ("SSL_read_ex", wide(address(1), address(4))),
            ("SSL_write", plain(address(2), address(5), false)),
            ("SSL_write_ex", wide(address(3), address(5))),
        ],
        vec![("a", vec![0x41, 0x57, 0xc3]), ("b", vec![0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3])],
    );
    assert_eq!((target.stack, target.layout), (Stack::Openssl, Layout::NONE));
    let expected = [("ssl_read_internal", form::OUT4, 4, 0), ("ssl_write_internal", form::OUT4, 5, 4)];
    assert_eq!(of(&target.probes, Program::Enter), expected);
    assert_eq!(of(&target.probes, Program::Return), expected);
    assert!(target.probes.iter().all(|probe| probe.emulated));
    let directions: Vec<u8> = target.probes.iter().map(|probe| probe.direction).collect();
    assert_eq!(directions, [direction::RECEIVE, direction::RECEIVE, direction::SEND, direction::SEND]);
}

#[test]
fn flags_move_the_pointer_to_the_fifth_argument() {
    let target = target(
        vec![
            ("SSL_read", plain(address(0), address(5), false)),
            ("SSL_read_ex", wide(address(1), address(5))),
            ("SSL_write", plain(address(2), address(6), true)),
            ("SSL_write_ex", forward(address(3), address(4))),
            ("SSL_write_ex2", wide(address(4), address(6))),
        ],
        vec![("a", vec![0x55, 0xc3]), ("b", vec![0x55, 0xc3])],
    );
    let expected = [("ssl_read_internal", form::OUT4, 5, 0), ("ssl_write_internal", form::OUT5, 6, 0)];
    assert_eq!(of(&target.probes, Program::Enter), expected);
}

#[test]
fn an_inlined_internal_function_leaves_the_exported_ones() {
    let exported = vec![
        ("SSL_read", inlined(address(0), address(5))),
        ("SSL_read_ex", inlined(address(1), address(5))),
        ("SSL_write", inlined(address(2), address(5))),
        ("SSL_write_ex", forward(address(3), address(4))),
        ("SSL_write_ex2", inlined(address(4), address(5))),
    ];
    let target = target(exported, vec![("ERR_new", vec![0x55, 0xc3])]);
    let expected = [
        ("SSL_read", form::INT, 0, 0),
        ("SSL_read_ex", form::OUT4, 1, 0),
        ("SSL_write", form::INT, 2, 0),
        ("SSL_write_ex2", form::OUT5, 4, 0),
    ];
    assert_eq!(of(&target.probes, Program::Enter), expected);
    assert_eq!(of(&target.probes, Program::Return), expected);
}

#[test]
fn a_function_that_calls_another_is_not_probed_too() {
    // LibreSSL: SSL_read_ex calls SSL_read, here through a stub: jmp [rip].
    let slot = (BIAS + SLOTS).wrapping_sub(address(4) + 6) as u32;
    let stub = [[0xff, 0x25].as_slice(), &slot.to_le_bytes()].concat();
    let sample = Sample {
        exported: vec![
            ("SSL_read", inlined(address(0), address(5))),
            ("SSL_read_ex", wide(address(1), address(4))),
            ("SSL_write", inlined(address(2), address(5))),
            ("SSL_write_ex", wide(address(3), address(2))),
        ],
        local: vec![("stub", stub), ("ERR_new", vec![0xc3])],
        imported: vec!["SSL_read"],
        ..Sample::default()
    };
    let expected = [("SSL_read", form::INT, 0, 0), ("SSL_write", form::INT, 2, 0)];
    assert_eq!(of(&found(&sample).targets[0].probes, Program::Enter), expected);
}

#[test]
fn what_costs_more_is_taken_only_where_nothing_costs_less() {
    // The internal functions begin with `sub`, the exported ones cannot be probed cheaply at their return either.
    let internal = vec![0x48, 0x83, 0xec, 0x08, 0xc3];
    let target = target(
        vec![
            ("SSL_read", plain(address(0), address(4), false)),
            ("SSL_read_ex", wide(address(1), address(4))),
            ("SSL_write", plain(address(2), address(5), false)),
            ("SSL_write_ex", wide(address(3), address(5))),
        ],
        vec![("a", internal.clone()), ("b", internal)],
    );
    let expected = [("ssl_read_internal", form::OUT4, 4, 0), ("ssl_write_internal", form::OUT4, 5, 0)];
    assert_eq!(of(&target.probes, Program::Return), expected);
    assert!(!target.probes.iter().any(|probe| probe.emulated));
}

#[test]
fn sendfile_moves_bytes_that_are_in_no_buffer() {
    let target = target(
        vec![
            ("SSL_read", inlined(address(0), address(3))),
            ("SSL_write", inlined(address(1), address(3))),
            ("SSL_sendfile", vec![0x41, 0x56, 0xc3]),
        ],
        vec![("ERR_new", vec![0xc3])],
    );
    assert_eq!(of(&target.probes, Program::Return).last(), Some(&("SSL_sendfile", form::NO_BUFFER, 2, 0)));
}

#[test]
fn the_layout_comes_from_the_accessors() {
    let with = |random: &[u8], server: &[u8]| {
        let exported = vec![
            ("SSL_read", inlined(address(0), address(4))),
            ("SSL_write", inlined(address(1), address(4))),
            ("SSL_get_client_random", random.to_vec()),
            ("SSL_is_server", server.to_vec()),
        ];
        target(exported, vec![("ERR_new", vec![0xc3])]).layout
    };
    let layout = Layout { random_base: UNKNOWN, random: 0x160, server: 0x38, server_mask: 0xff, ..Layout::NONE };
    assert_eq!(with(&RANDOM, &IS_SERVER), layout);
    assert_eq!(with(&RANDOM_BEHIND, &IS_SERVER), Layout { random_base: 0xa8, random: 0xb8, ..layout });

    // BoringSSL: mov rax, [rdi+0x30]; add rax, 0x30; mov rdi, rsi; mov rsi, rax; call memcpy; and a bit.
    let at = address(2) + 14;
    let copy = [0x48, 0x8b, 0x47, 0x30, 0x48, 0x83, 0xc0, 0x30, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xc6];
    let boringssl = [copy.as_slice(), &branch(0xe8, at, address(4)), &[0xc3]].concat();
    let bit = [0x0f, 0xb6, 0x87, 0xa4, 0, 0, 0, 0x83, 0xe0, 0x01, 0xc3];
    let expected = Layout { random_base: 0x30, random: 0x30, server: 0xa4, server_mask: 1, ..Layout::NONE };
    assert_eq!(with(&boringssl, &bit), expected);

    // QUIC beside TCP: cmp dword [rdi], 0; je; mov rdi, [rdi+0x40]; then the copy: the direct place is TCP's.
    let quic = [[0x83, 0x3f, 0x00, 0x74, 0x04, 0x48, 0x8b, 0x7f, 0x40].as_slice(), &RANDOM].concat();
    assert_eq!(with(&quic, &IS_SERVER), layout);

    // Nothing that is certain: two places, no copy, the object's own start.
    let two = [[0x83, 0x3f, 0x00, 0x74, 0x07, 0x48, 0x81, 0xc7, 0, 1, 0, 0].as_slice(), &RANDOM].concat();
    for unclear in [two.as_slice(), &[0xc3], &[0x48, 0x8b, 0x17, 0x48, 0x89, 0x16, 0xc3]] {
        assert_eq!(with(unclear, &[0x31, 0xc0, 0xc3]), Layout::NONE);
    }
}

#[test]
fn boringssl_is_told_by_what_openssl_has_not() {
    let mut exported = vec![
        ("SSL_read", inlined(address(0), address(0))),
        ("SSL_write", inlined(address(1), address(1))),
        ("SSL_CTX_set_grease_enabled", vec![0xc3]),
    ];
    assert_eq!(target(exported.clone(), vec![]).stack, Stack::Boringssl);
    exported[2].0 = "SSL_CTX_set_srp_password";
    assert_eq!(target(exported, vec![]).stack, Stack::Openssl);
}

#[test]
fn files_without_both_functions_hold_nothing() {
    for name in ["SSL_read", "SSL_write", "SSL_peek"] {
        let sample = Sample { exported: vec![(name, vec![0x55, 0xc3])], ..Sample::default() };
        assert_eq!(found(&sample), Found::default());
    }
}

#[test]
fn gnutls_in_the_clothes_of_openssl_is_left_to_gnutls() {
    let slot = (BIAS + SLOTS).wrapping_sub(address(0) + 6) as u32;
    let read = [[0xff, 0x25].as_slice(), &slot.to_le_bytes()].concat();
    let sample = Sample {
        exported: vec![("SSL_read", read), ("SSL_write", vec![0x55, 0xc3])],
        imported: vec!["gnutls_record_recv"],
        ..Sample::default()
    };
    assert_eq!(found(&sample), Found::default());
}

#[test]
fn what_cannot_be_read_is_said() {
    let both = |code: &[u8]| vec![("SSL_read", code.to_vec()), ("SSL_write", vec![0x55, 0xc3])];
    let cut = found(&Sample { exported: both(&[0x55, 0xe8, 0]), ..Sample::default() });
    assert_eq!(cut.targets, []);
    assert_eq!(cut.unreadable[0].stack, Stack::Openssl);
    assert!(cut.unreadable[0].reason.contains("SSL_read"), "{}", cut.unreadable[0].reason);

    let arm64 = found(&Sample { exported: both(&[0x55, 0xc3]), is_arm64: true, ..Sample::default() });
    assert_eq!(arm64.targets, []);
    assert!(arm64.unreadable[0].reason.contains("arm64"));
}

proptest! {
    #[test]
    fn a_library_with_some_bytes_changed_yields_probes_in_its_code_or_none(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let sample = Sample {
            exported: vec![
                ("SSL_read", plain(address(0), address(7), false)),
                ("SSL_read_ex", wide(address(1), address(7))),
                ("SSL_write", plain(address(2), address(8), true)),
                ("SSL_write_ex", forward(address(3), address(4))),
                ("SSL_write_ex2", wide(address(4), address(8))),
                ("SSL_get_client_random", RANDOM.to_vec()),
                ("SSL_is_server", IS_SERVER.to_vec()),
            ],
            local: vec![("a", vec![0x55, 0xc3]), ("b", vec![0x55, 0xc3])],
            ..Sample::default()
        };
        let mut file = sample.build();
        // The headers, and the first bytes of the functions.
        let code = (0..9).flat_map(|number| (0..32).map(move |at| (TEXT + number * STRIDE + at) as usize));
        let places: Vec<usize> = (0..0x120).chain(code).collect();
        for (index, value) in changes {
            file[places[index.index(places.len())]] = value;
        }
        let Ok(image) = Image::parse(file.as_slice()) else { return Ok(()) };
        let len = file.len() as u64;
        for target in find(&image, Effort::Code).targets {
            prop_assert!(target.probes.iter().all(|probe| probe.offset < len));
            prop_assert!(target.probes.len() >= 4);
        }
    }
}
