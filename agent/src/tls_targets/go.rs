//! crypto/tls of Go: `(*Conn).Read` and `(*Conn).Write`, called by the register ABI. Goroutines' stacks move, so that a
//! uretprobe would break the program: never one here. Addresses come from decoding both functions whole.

mod pclntab;

use agent_common::{
    event::direction,
    tls::{Layout, form},
};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use object::ReadRef;

use super::{
    Effort, Found, Probe, Program, Stack, Target, Unreadable,
    elf::{Function, Image},
    x86::Code,
};
use pclntab::{Missing, Pclntab};

const READ: &str = "crypto/tls.(*Conn).Read";
const WRITE: &str = "crypto/tls.(*Conn).Write";
const MEMMOVE: &str = "runtime.memmove";
/// `ret`s of one function.
const MAX_RETURNS: usize = 64;
/// Instructions up to the branch of the stack check.
const MAX_CHECK: usize = 6;
/// Of `g.stackguard0` in the goroutine (R14).
const STACK_GUARD: u64 = 16;

const OLD: &str = "it was built by a Go older than 1.17, which passes arguments on the stack; build it with a newer Go";
const MACHINE: &str = "it is a Go program for arm64, whose crypto/tls this agent cannot read yet";
const NO_TABLE: &str = "its functions cannot be found: it has no symbol table and no table of functions (.gopclntab) of \
                        a known version; Go 1.18 and later write one";
const NO_TEXT: &str = "its table of functions does not say where the code begins, and no address that was tried fits";
const FORM: &str = "the code of crypto/tls.(*Conn).Read or Write has a form this agent does not know";

/// Where the functions are.
#[derive(Clone, Copy, Debug)]
struct Functions {
    read: Function,
    write: Function,
    memmove: Option<Function>,
}

/// A function that was decoded whole.
#[derive(Debug, Default, PartialEq, Eq)]
struct Body {
    /// The branch of the stack check.
    branch: u64,
    /// Direct calls of `runtime.memmove`.
    copies: Vec<u64>,
    returns: Vec<u64>,
}

/// Finds crypto/tls in a Go program or library.
pub fn find<'a, R: ReadRef<'a>>(image: &Image<'a, R>, _effort: Effort, found: &mut Found) {
    let is_go = [".go.buildinfo", ".gopclntab", ".data.rel.ro.gopclntab", ".note.go.buildid"]
        .into_iter()
        .any(|name| image.section(name).is_some());
    if !is_go {
        return;
    }
    match target(image) {
        Ok(Some(target)) => found.targets.push(target),
        Ok(None) => {}
        Err(reason) => found.unreadable.push(Unreadable { stack: Stack::Go, reason: reason.to_owned() }),
    }
}

fn target<'a, R: ReadRef<'a>>(image: &Image<'a, R>) -> Result<Option<Target>, &'static str> {
    if !image.is_x86_64() {
        return Err(MACHINE);
    }
    let Some(Functions { read, write, memmove }) = functions(image)? else { return Ok(None) };
    let memmove = memmove.map(|function| function.address);
    let read_code = Code::read(image, read).ok_or(FORM)?;
    let write_code = Code::read(image, write).ok_or(FORM)?;
    let (read, write) = (body(&read_code, memmove)?, body(&write_code, None)?);

    let probe = |program, code: &Code<'_>, address: u64, form, direction, function| {
        let offset = image.file_offset(address)?;
        let emulated = code.emulates(code.at(address)?);
        Some(Probe { program, offset, form, direction, function, emulated })
    };
    let sent = probe(Program::Push, &write_code, write.branch, form::GO_WRITE, direction::SEND, WRITE);
    let received = |program, address, form| probe(program, &read_code, address, form, direction::RECEIVE, READ);
    let mut probes = vec![sent, received(Program::Enter, read.branch, form::GO_READ)];
    if let [copy] = read.copies.as_slice() {
        probes.push(received(Program::Push, *copy, form::GO_READ_COPY));
    } else {
        probes.extend(read.returns.iter().map(|&address| received(Program::ReturnAt, address, form::GO_READ)));
    }
    let probes = probes.into_iter().collect::<Option<_>>().ok_or(FORM)?;
    Ok(Some(Target { stack: Stack::Go, layout: Layout::NONE, probes }))
}

/// None in a program without TLS, or that links only a part of it.
fn functions<'a, R: ReadRef<'a>>(image: &Image<'a, R>) -> Result<Option<Functions>, &'static str> {
    if let (Some(read), Some(write)) = (image.function(READ), image.function(WRITE)) {
        return Ok(Some(Functions { read, write, memmove: image.function(MEMMOVE) }));
    }
    let table = Pclntab::read(image).map_err(|missing| match missing {
        Missing::Table => NO_TABLE,
        Missing::Text => NO_TEXT,
    })?;
    let both = table.function(READ).zip(table.function(WRITE));
    Ok(both.map(|(read, write)| Functions { read, write, memmove: table.function(MEMMOVE) }))
}

/// Reads the body of a function that was decoded from its first byte to its last. The code must agree with itself:
/// every branch meets an instruction, and the way that grows the stack ends at the beginning. Else the bounds are wrong,
/// and so would be every address.
fn body(code: &Code<'_>, memmove: Option<u64>) -> Result<Body, &'static str> {
    let instructions = code.instructions();
    let (first, last) = instructions.first().zip(instructions.last()).ok_or(FORM)?;
    let inside = first.ip()..last.next_ip();
    let branch = stack_check(instructions)?;

    let is_sound = code.jumps().all(|jump| !inside.contains(&jump.target) || code.at(jump.target).is_some())
        && grows_and_begins_again(instructions, branch.near_branch_target(), first.ip());
    let copies = code.direct_calls().filter(|call| Some(call.target) == memmove).map(|call| call.at).collect();
    let returns: Vec<u64> = code.returns().collect();
    (is_sound && (1..=MAX_RETURNS).contains(&returns.len()))
        .then_some(Body { branch: branch.ip(), copies, returns })
        .ok_or(FORM)
}

/// The branch behind `cmp rsp,[r14+16]`: up to there no argument has moved.
fn stack_check(instructions: &[Instruction]) -> Result<Instruction, &'static str> {
    let mut compared = false;
    for instruction in instructions.iter().take(MAX_CHECK) {
        match instruction.mnemonic() {
            // Before registers carried arguments, R14 was not the goroutine: it came from thread local storage.
            Mnemonic::Mov if instruction.segment_prefix() == Register::FS => return Err(OLD),
            Mnemonic::Cmp if compares_guard(instruction) => compared = true,
            Mnemonic::Jbe if compared => return Ok(*instruction),
            Mnemonic::Lea | Mnemonic::Mov | Mnemonic::Sub if instruction.op0_register() == Register::R12 => {}
            // The stack pointer is so small that the frame does not fit below it at all.
            Mnemonic::Jb => {}
            _ => break,
        }
    }
    Err(FORM)
}

fn compares_guard(instruction: &Instruction) -> bool {
    matches!(instruction.op0_register(), Register::RSP | Register::R12)
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_base() == Register::R14
        && instruction.memory_index() == Register::None
        && instruction.memory_displacement64() == STACK_GUARD
}

/// Whether the code at `slow` saves the arguments, calls once (`runtime.morestack`) and jumps to the first instruction.
fn grows_and_begins_again(instructions: &[Instruction], slow: u64, first: u64) -> bool {
    let Ok(index) = instructions.binary_search_by_key(&slow, Instruction::ip) else { return false };
    let mut calls = 0;
    for instruction in instructions.iter().skip(index) {
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Nop | Mnemonic::Xchg => {}
            Mnemonic::Call => calls += 1,
            Mnemonic::Jmp => return calls == 1 && instruction.near_branch_target() == first,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
}
