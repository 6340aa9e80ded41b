//! Hand-assembled functions, and any bytes at all.

use proptest::prelude::*;

use super::*;
use crate::tls_targets::sample::branch;

const AT: u64 = 0x1000;

#[test]
fn only_plain_forms_are_emulated() {
    let cases: [(&[u8], bool, &str); 20] = [
        (&[0x55], true, "push rbp"),
        (&[0x41, 0x57], true, "push r15"),
        (&[0x40, 0x55], false, "push rbp with an empty REX"),
        (&[0x49, 0x57], false, "push r15 with REX.W"),
        (&[0x66, 0x55], false, "push bp"),
        (&[0xff, 0xf0], false, "push rax, long form"),
        (&[0x6a, 1], false, "push 1"),
        (&[0xe8, 0, 0, 0, 0], true, "call"),
        (&[0x67, 0xe8, 0, 0, 0, 0], false, "call with an address prefix"),
        (&[0xe9, 0, 0, 0, 0], true, "jmp"),
        (&[0xeb, 0], true, "jmp short"),
        (&[0x74, 0], true, "je short"),
        (&[0x0f, 0x84, 0, 0, 0, 0], true, "je"),
        (&[0x66, 0x0f, 0x84, 0, 0, 0, 0], false, "je with an operand prefix"),
        (&[0xe3, 0], false, "jrcxz"),
        (&[0xff, 0xe0], false, "jmp rax"),
        (&[0x90], true, "nop"),
        (&[0x0f, 0x1f, 0x44, 0, 0], false, "nop of five bytes"),
        (&[0xf3, 0x0f, 0x1e, 0xfa], false, "endbr64"),
        (&[0xc3], false, "ret"),
    ];
    for (bytes, expected, name) in cases {
        assert_eq!(emulated(bytes), expected, "{name}");
        assert_eq!(Code::decode(AT, bytes).unwrap().instructions().len(), 1, "{name}");
    }
}

#[test]
fn a_function_is_decoded_to_its_very_end_or_not_at_all() {
    assert!(Code::decode(AT, &[0x55, 0xc3]).is_some());
    assert!(Code::decode(AT, &[0x55, 0xe8, 0, 0]).is_none(), "cut");
    assert!(Code::decode(AT, &[0x55, 0x06, 0xc3]).is_none(), "invalid in 64-bit mode");
    assert!(Code::decode(AT, &[]).is_none());
    assert!(Code::decode(AT, &vec![0x90; MAX_FUNCTION as usize + 1]).is_none());
    assert_eq!(Code::prefix(AT, &[0x55, 0x55, 0xe8, 0]).instructions().len(), 2);
}

#[test]
fn probes_go_where_they_cost_little() {
    let site = |at: u64, emulated| Site { address: AT + at, emulated };
    // Bytes, arguments, where they are read, where the result is.
    type Case = (&'static str, Vec<u8>, usize, Site, Site);
    let cases: [Case; 8] = [
        ("push first", vec![0x55, 0xc3], 3, site(0, true), site(0, true)),
        ("endbr64, push", vec![0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3], 3, site(4, true), site(4, true)),
        (
            "test rdi; je; push: nothing is touched before the branch",
            vec![0x48, 0x85, 0xff, 0x74, 0x01, 0x55, 0xc3],
            5,
            site(3, true),
            site(3, true),
        ),
        (
            "sub rsp; test edx; js: the return address has moved",
            vec![0x48, 0x83, 0xec, 0x18, 0x85, 0xd2, 0x78, 0x00, 0xc3],
            3,
            site(6, true),
            site(0, false),
        ),
        (
            "mov rcx, rdx before the branch: the fourth argument is gone",
            vec![0x48, 0x89, 0xd1, 0x74, 0x00, 0xc3],
            4,
            site(0, false),
            site(3, true),
        ),
        ("mov rcx, rdx: three are left", vec![0x48, 0x89, 0xd1, 0x74, 0x00, 0xc3], 3, site(3, true), site(3, true)),
        ("mov dl, 1: a part of it", vec![0xb2, 0x01, 0x74, 0x00, 0xc3], 3, site(0, false), site(2, true)),
        ("jmp through memory", vec![0x48, 0x8b, 0x07, 0xff, 0xa0, 0x88, 0, 0, 0], 3, site(0, false), site(0, false)),
    ];
    for (name, bytes, arguments, entry, result) in cases {
        let code = Code::decode(AT, &bytes).unwrap();
        assert_eq!(code.entry_point(arguments), entry, "{name}");
        assert_eq!(code.return_point(), result, "{name}");
    }
}

#[test]
fn an_instruction_that_is_passed_twice_is_not_taken() {
    // cmp rdi, rsi; je +0; dec rax; jne to the je.
    let code = [0x48, 0x39, 0xf7, 0x74, 0x00, 0x48, 0xff, 0xc8, 0x75, 0xf9, 0xc3];
    let code = Code::decode(AT, &code).unwrap();
    assert_eq!(code.jumps().last().map(|jump| jump.target), Some(AT + 3));
    assert_eq!(code.entry_point(3), Site { address: AT, emulated: false });
    // A loop over the whole function, of which the branch is a part.
    let whole = Code::decode(AT, &[0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0xff, 0xcf, 0x75, 0xf6, 0xc3]).unwrap();
    assert_eq!(whole.jumps().last().map(|jump| jump.target), Some(AT));
    assert_eq!(whole.entry_point(3), Site { address: AT, emulated: false });
    // The first instruction itself is the loop: there is no better place, and it is as cheap as it is.
    let alone = Code::decode(AT, &[0x75, 0xfe, 0xc3]).unwrap();
    assert_eq!(alone.entry_point(3), Site { address: AT, emulated: true });
    // Back to a push: the function calls itself.
    let itself = Code::decode(AT, &[0x55, 0x5d, 0x75, 0xfc, 0xc3]).unwrap();
    assert_eq!(itself.entry_point(3), Site { address: AT, emulated: true });
    // Behind a table of jumps, which may lead anywhere.
    let table = Code::decode(AT, &[0x48, 0x39, 0xf7, 0x74, 0x00, 0xff, 0xe0]).unwrap();
    assert_eq!(table.entry_point(3), Site { address: AT, emulated: false });
}

#[test]
fn calls_jumps_and_returns_are_listed() {
    let bytes = [branch(0xe8, AT, 0x5000), vec![0x74, 0x05], branch(0xe9, AT + 7, 0x900), vec![0xc3, 0xc3]].concat();
    let code = Code::decode(AT, &bytes).unwrap();
    assert_eq!(code.direct_calls().collect::<Vec<_>>(), [Branch { at: AT, target: 0x5000, next: AT + 5 }]);
    assert_eq!(code.jumps().map(|jump| jump.target).collect::<Vec<_>>(), [AT + 12, 0x900]);
    assert_eq!(code.returns().collect::<Vec<_>>(), [AT + 12, AT + 13]);
    assert!(!code.has_indirect_calls());
    assert!(Code::decode(AT, &[0xff, 0x50, 0x38, 0xc3]).unwrap().has_indirect_calls());
    assert!(!Code::decode(AT, &[0xff, 0x15, 0, 0, 0, 0, 0xc3]).unwrap().has_indirect_calls());
}

#[test]
fn callees_tell_what_is_passed() {
    let argument = Value::argument;
    // mov r8, rcx; xor ecx, ecx; jmp: as OpenSSL's SSL_write_ex.
    let tail = [vec![0x49, 0x89, 0xc8, 0x31, 0xc9], branch(0xe9, AT + 5, 0x5000)].concat();
    let code = Code::decode(AT, &tail).unwrap();
    let callee = callees(&code)[0];
    assert_eq!(callee.to, To::Function(0x5000));
    let passed = [argument(0), argument(1), argument(2), Value::Constant(0), argument(3), argument(5)];
    assert_eq!(callee.arguments, passed);

    // push rbp; mov rbp, rsp; sub rsp, 32; mov [rbp-8], rdi; lea rcx, [rbp-16]; mov rdi, [rbp-8]; call; mov rdi,
    // [rbp-8]; call.
    let frame = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x20, 0x48, 0x89, 0x7d, 0xf8, 0x48, 0x8d, 0x4d, 0xf0, 0x48];
    let spilled = [frame.as_slice(), &[0x8b, 0x7d, 0xf8]].concat();
    let at = AT + spilled.len() as u64;
    let bytes =
        [spilled, branch(0xe8, at, 0x5000), vec![0x48, 0x8b, 0x7d, 0xf8], branch(0xe8, at + 9, 0x6000)].concat();
    let code = Code::decode(AT, &bytes).unwrap();
    let [first, second] = callees(&code).try_into().unwrap();
    assert_eq!((first.arguments[0], first.arguments[3]), (argument(0), Value::Stack(-24)));
    assert_eq!((second.arguments[0], second.arguments[1]), (argument(0), Value::Unknown), "a call clobbers");
}

/// What is in RAX at each `ret`.
fn results(bytes: &[u8]) -> Vec<Value> {
    let mut results = Vec::new();
    trace(&Code::decode(AT, bytes).unwrap(), &mut |instruction, state| {
        if instruction.mnemonic() == Mnemonic::Ret {
            results.push(state.get(Register::RAX));
        }
    });
    results
}

#[test]
fn accessors_are_understood() {
    let data = |base, offset, mask, shift| Value::Data { argument: 0, base, offset, mask, shift };
    let cases: [(&str, &[u8], &[Value]); 7] = [
        ("mov eax, [rdi+0x38]", &[0x8b, 0x47, 0x38, 0xc3], &[data(None, 0x38, 0xffff_ffff, 0)]),
        (
            "movzx eax, byte [rdi+0xa4]; and eax, 1",
            &[0x0f, 0xb6, 0x87, 0xa4, 0, 0, 0, 0x83, 0xe0, 0x01, 0xc3],
            &[data(None, 0xa4, 1, 0)],
        ),
        (
            "movzx eax, byte [rdi+0xa4]; shr al, 2; and eax, 1",
            &[0x0f, 0xb6, 0x87, 0xa4, 0, 0, 0, 0xc0, 0xe8, 0x02, 0x83, 0xe0, 0x01, 0xc3],
            &[data(None, 0xa4, 4, 2)],
        ),
        (
            "mov rax, [rdi+0x30]; mov eax, [rax+8]",
            &[0x48, 0x8b, 0x47, 0x30, 0x8b, 0x40, 0x08, 0xc3],
            &[data(Some(0x30), 8, 0xffff_ffff, 0)],
        ),
        (
            "test rdi, rdi; je; lea rax, [rdi+0x50]; ret; xor eax, eax",
            &[0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0x8d, 0x47, 0x50, 0xc3, 0x31, 0xc0, 0xc3],
            &[Value::Address { argument: 0, base: None, offset: 0x50 }, Value::Constant(0)],
        ),
        ("mov al, [rdi+4]: a part of it", &[0x8a, 0x47, 0x04, 0xc3], &[Value::Unknown]),
        ("mov rax, fs:[0x28]", &[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0, 0xc3], &[Value::Unknown]),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(results(bytes), expected, "{name}");
    }
}

#[test]
fn a_loop_ends() {
    // dec rdi; jne back; ret: each instruction is shown a few times.
    assert!(results(&[0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3]).len() <= usize::from(MAX_VISITS));
    assert!(results(&[0xeb, 0xfe, 0xc3]).is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), address: u64) {
        let code = Code::prefix(address, &bytes);
        for site in [code.entry_point(0), code.entry_point(5), code.entry_point(9), code.return_point()] {
            if let Some(instruction) = code.at(site.address) {
                prop_assert_eq!(site.emulated, code.emulates(instruction));
            } else {
                prop_assert!(!site.emulated);
            }
        }
        for callee in callees(&code) {
            prop_assert_ne!(callee.arguments.len(), 0);
        }
        prop_assert!(code.jumps().count() <= code.instructions().len());
    }
}
