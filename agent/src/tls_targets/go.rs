//! crypto/tls of Go: `(*Conn).Read` and `(*Conn).Write`, called by the register ABI. Goroutines' stacks move, so that a
//! uretprobe would break the program: never one here. Addresses come from decoding both functions whole.

mod pclntab;

use agent_common::{
    event::direction,
    tls::{Layout, form},
};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::{
    Effort, Found, Probe, Program, Stack, Target, Unreadable,
    elf::{Function, Image},
    source::Source,
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
pub fn find<'a, R: Source<'a>>(image: &Image<'a, R>, _effort: Effort, found: &mut Found) {
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

fn target<'a, R: Source<'a>>(image: &Image<'a, R>) -> Result<Option<Target>, &'static str> {
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
    let mut layout = Layout::NONE;
    let mut probes = vec![sent];
    if let [copy] = read.copies.as_slice() {
        // Without an entry, calls that wait already when the probes come are seen too: a server's usual state.
        match kept_object(read_code.instructions(), read.branch, *copy) {
            Some(offset) => layout.object = offset,
            None => probes.push(received(Program::Enter, read.branch, form::GO_READ)),
        }
        probes.push(received(Program::Push, *copy, form::GO_READ_COPY));
    } else {
        probes.push(received(Program::Enter, read.branch, form::GO_READ));
        probes.extend(read.returns.iter().map(|&address| received(Program::ReturnAt, address, form::GO_READ)));
    }
    let probes = probes.into_iter().collect::<Option<_>>().ok_or(FORM)?;
    Ok(Some(Target { stack: Stack::Go, layout, probes }))
}

/// None in a program without TLS, or that links only a part of it.
fn functions<'a, R: Source<'a>>(image: &Image<'a, R>) -> Result<Option<Functions>, &'static str> {
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

/// Where the function keeps its first argument (RAX of ABIInternal) on the stack, from the stack pointer at `copy`: the
/// one store of it behind the stack check at `branch`, which nothing overwrites before the stack grows.
fn kept_object(instructions: &[Instruction], branch: u64, copy: u64) -> Option<u16> {
    let is_slot = |instruction: &Instruction| {
        instruction.op0_kind() == OpKind::Memory
            && instruction.memory_base() == Register::RSP
            && instruction.memory_index() == Register::None
    };
    let slow = instructions.iter().find(|instruction| instruction.ip() == branch)?.near_branch_target();
    let body = instructions.iter().filter(|instruction| (branch + 1..slow).contains(&instruction.ip()));
    let mut factory = InstructionInfoFactory::new();
    let mut kept = None;
    let mut leaving = false;
    for instruction in body {
        let Some(offset) = kept else {
            if instruction.mnemonic() == Mnemonic::Mov
                && is_slot(instruction)
                && instruction.op1_register() == Register::RAX
            {
                kept = Some(instruction.memory_displacement64());
            } else if is_call(instruction) || writes_first_argument(&mut factory, instruction) {
                return None;
            }
            continue;
        };
        if is_slot(instruction)
            && instruction.memory_displacement64() == offset
            && factory.info(instruction).op0_access() != OpAccess::Read
        {
            return None;
        }
        // The frame has one size between here and the ends: `add rsp`, `pop rbp`, `ret`.
        match instruction.mnemonic() {
            Mnemonic::Ret => leaving = false,
            Mnemonic::Add if instruction.op0_register() == Register::RSP => leaving = true,
            Mnemonic::Pop if leaving => {}
            Mnemonic::Call => {}
            _ if leaving || instruction.stack_pointer_increment() != 0 => return None,
            _ if instruction.op0_register() == Register::RSP && instruction.mnemonic() != Mnemonic::Cmp => return None,
            _ => {}
        }
    }
    (copy < slow).then_some(kept?).and_then(|offset| u16::try_from(offset).ok())
}

fn writes_first_argument(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    factory.info(instruction).used_registers().iter().any(|used| {
        used.register().full_register() == Register::RAX
            && matches!(
                used.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            )
    })
}

fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Call)
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
mod tests;
