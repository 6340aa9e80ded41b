//! BoringSSL without symbols (Envoy, gRPC): its functions are known by the errors that they report, each with the name of
//! its source file, a reason and a line. The reasons are a part of BoringSSL's interface and do not change.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::ControlFlow,
};

use agent_common::{
    event::direction,
    tls::{Layout, form},
};
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use memchr::memmem;

use super::{
    Effort, Found, Stack, Target, Unreadable, call_probes,
    eh_frame::Functions,
    elf::{Function, Image},
    scan::{self, Argument},
    source::Source,
    x86::{Code, Value, trace},
};

/// The end of the name of the source file with `SSL_read` and `SSL_write`; the start depends on the build.
const SOURCE: &[u8] = b"ssl/ssl_lib.cc\0";
/// Bytes of such a name.
const MAX_SOURCE: usize = scan::OVERLAP as usize - SOURCE.len();
/// Copies of the name.
const MAX_SOURCES: usize = 16;
/// Places that name it; there are about two hundred.
const MAX_PLACES: usize = 4096;
/// Steps through one function.
const MAX_STEPS: usize = 50_000;

/// Reasons: `ERR_R_SHOULD_NOT_HAVE_BEEN_CALLED` (err.h), and of ssl.h.
const NOT_TO_BE_CALLED: u64 = 66;
const BAD_LENGTH: u64 = 111;
const HANDSHAKE_FAILURE: u64 = 215;
const UNINITIALIZED: u64 = 226;
/// Of `SSL_do_handshake`, which is merged into others by some compilers.
const CONNECTION_TYPE_NOT_SET: u64 = 182;
const CANNOT_PARSE: u64 = 110;

/// Of `SSL.s3`, which points to `SSL3_STATE`: two record numbers, the server's random, the client's.
const STATE: u16 = 0x30;
const CLIENT_RANDOM: u16 = 0x30;

const NO_BOUNDS: &str = "it holds BoringSSL without symbols and without a table of its functions (.eh_frame_hdr); \
                         build it with symbols";
const UNLIKE: &str = "it holds BoringSSL without symbols, and its SSL_read and SSL_write cannot be told by their code; \
                      build it with symbols";
const TWICE: &str = "it holds several copies of BoringSSL without symbols, which cannot be told apart; build it with \
                     symbols";
const MACHINE: &str = "it holds BoringSSL without symbols for arm64, which this agent cannot read yet";

/// A function and the errors that it reports: reasons and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reporter {
    function: Function,
    errors: BTreeSet<(u64, u64)>,
}

/// The two functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    read: Function,
    write: Function,
}

/// Finds BoringSSL by its code in a program or library that does not name its functions.
pub fn find<'a, R: Source<'a>>(image: &Image<'a, R>, effort: Effort, found: &mut Found) {
    let is_known = found.targets.iter().any(|target| matches!(target.stack, Stack::Boringssl | Stack::Openssl));
    if effort != Effort::Code || is_known || image.function("SSL_read").is_some() {
        return;
    }
    let sources = sources(image);
    if sources.is_empty() {
        return;
    }
    match target(image, &sources) {
        Ok(target) => found.targets.push(target),
        Err(reason) => found.unreadable.push(Unreadable { stack: Stack::Boringssl, reason: reason.to_owned() }),
    }
}

fn target<'a, R: Source<'a>>(image: &Image<'a, R>, sources: &[u64]) -> Result<Target, &'static str> {
    if !image.is_x86_64() {
        return Err(MACHINE);
    }
    let functions = Functions::read(image).ok_or(NO_BOUNDS)?;
    let reporters = reporters(image, &functions, sources);
    let Pair { read, write } =
        pair(&reporters, &|function| Code::read(image, function).is_some_and(|code| consumes(&code)))?;
    let probes = |function, direction, name| {
        let code = Code::read(image, function)?;
        call_probes(image, &code, 3, form::INT, direction, name)
    };
    let read = probes(read, direction::RECEIVE, "SSL_read").ok_or(UNLIKE)?;
    let write = probes(write, direction::SEND, "SSL_write").ok_or(UNLIKE)?;
    let layout = Layout { random_base: STATE, random: CLIENT_RANDOM, ..Layout::NONE };
    Ok(Target { stack: Stack::Boringssl, layout, probes: [read, write].concat() })
}

/// Tells the functions by their errors; `consumes` says whether one takes what it read out of the object's buffer.
fn pair(reporters: &[Reporter], consumes: &dyn Fn(Function) -> bool) -> Result<Pair, &'static str> {
    let write = only(reporters.iter().filter(|reporter| {
        reporter.reasons() == BTreeSet::from([NOT_TO_BE_CALLED, BAD_LENGTH, HANDSHAKE_FAILURE, UNINITIALIZED])
    }))?;
    // `ssl_read_impl`, which SSL_read and SSL_peek call; both stand between it and SSL_write in the source.
    let inner = only(reporters.iter().filter(|reporter| {
        let mut reasons = reporter.reasons();
        let both = reasons.remove(&HANDSHAKE_FAILURE) && reasons.remove(&UNINITIALIZED);
        both && reasons.is_subset(&BTreeSet::from([CANNOT_PARSE, CONNECTION_TYPE_NOT_SET]))
    }))?;
    let after = inner.line(HANDSHAKE_FAILURE).ok_or(UNLIKE)?;
    let before = write.errors.iter().map(|error| error.1).min().ok_or(UNLIKE)?;
    let read = only(reporters.iter().filter(|reporter| {
        let is_between = reporter.line(NOT_TO_BE_CALLED).is_some_and(|line| after < line && line < before);
        reporter.errors.len() == 1 && is_between && consumes(reporter.function)
    }))?;
    Ok(Pair { read: read.function, write: write.function })
}

fn only<'r>(mut candidates: impl Iterator<Item = &'r Reporter>) -> Result<&'r Reporter, &'static str> {
    let first = candidates.next().ok_or(UNLIKE)?;
    if candidates.next().is_some() { Err(TWICE) } else { Ok(first) }
}

impl Reporter {
    fn reasons(&self) -> BTreeSet<u64> {
        self.errors.iter().map(|error| error.0).collect()
    }

    fn line(&self, reason: u64) -> Option<u64> {
        self.errors.iter().find(|error| error.0 == reason).map(|error| error.1)
    }
}

/// Does the function write to the object's state? SSL_read does, it moves on in the buffer; SSL_peek does not.
fn consumes(code: &Code<'_>) -> bool {
    let mut writes = false;
    trace(code, &mut |instruction, state| {
        let to_memory = instruction.op0_kind() == OpKind::Memory
            && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push)
            && instruction.flow_control() == FlowControl::Next;
        writes |= to_memory && in_state(state.place(instruction));
    });
    writes
}

fn in_state(place: Value) -> bool {
    matches!(place, Value::Address { argument: 0, base: Some(STATE), .. })
}

/// The addresses of the name of the source file.
fn sources<'a, R: Source<'a>>(image: &Image<'a, R>) -> Vec<u64> {
    let mut found = BTreeSet::new();
    let Some(section) = image.section(".rodata") else { return Vec::new() };
    scan::pieces(image, section, &mut |address, bytes| {
        for end in memmem::find_iter(bytes, SOURCE) {
            let before = bytes.get(end.saturating_sub(MAX_SOURCE)..end).unwrap_or_default();
            if let Some(start) = memchr::memrchr(0, before) {
                let len = before.len() - start - 1;
                found.insert(address.wrapping_add((end - len) as u64));
            }
        }
        if found.len() < MAX_SOURCES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found.into_iter().collect()
}

/// Every function that reports an error with one of these names, and its errors.
fn reporters<'a, R: Source<'a>>(image: &Image<'a, R>, functions: &Functions<'a>, sources: &[u64]) -> Vec<Reporter> {
    let Some(text) = image.section(".text") else { return Vec::new() };
    let starts: BTreeMap<u64, Function> = scan::loads(image, text, Argument::Fourth, sources, MAX_PLACES)
        .into_iter()
        .filter_map(|place| functions.around(image, place))
        .map(|function| (function.address, function))
        .collect();
    starts
        .into_values()
        .filter_map(|function| {
            let errors = errors(&Code::read(image, function)?, sources);
            Some(Reporter { function, errors })
        })
        .collect()
}

/// What the registers of a report are known to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Report {
    reason: Option<u64>,
    file: Option<u64>,
    line: Option<u64>,
}

impl Report {
    fn of(&mut self, register: Register) -> Option<&mut Option<u64>> {
        match register.full_register() {
            Register::RDX => Some(&mut self.reason),
            Register::RCX => Some(&mut self.file),
            Register::R8 => Some(&mut self.line),
            _ => None,
        }
    }

    /// What an instruction makes of it.
    fn step(&mut self, factory: &mut InstructionInfoFactory, instruction: &Instruction) {
        for used in factory.info(instruction).used_registers() {
            let is_read = matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead);
            if !is_read && let Some(value) = self.of(used.register()) {
                *value = None;
            }
        }
        if let Some(value) = constant(instruction)
            && let Some(kept) = self.of(instruction.op0_register())
        {
            *kept = Some(value);
        }
    }
}

/// The constant that an instruction loads.
fn constant(instruction: &Instruction) -> Option<u64> {
    match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op0_kind() == OpKind::Register => instruction.try_immediate(1).ok(),
        Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => Some(instruction.ip_rel_memory_address()),
        _ => None,
    }
}

/// The reasons and lines of all calls that are given one of the names: `ERR_put_error(library, unused, reason, file,
/// line)`. Follows every way through the function; a place is passed again only with other values.
fn errors(code: &Code<'_>, sources: &[u64]) -> BTreeSet<(u64, u64)> {
    let mut factory = InstructionInfoFactory::new();
    let mut errors = BTreeSet::new();
    let mut passed = HashSet::new();
    let mut ways: Vec<(u64, Report)> =
        code.instructions().first().map(|first| (first.ip(), Report::default())).into_iter().collect();
    while let Some((mut address, mut report)) = ways.pop() {
        while let Some(instruction) = code.at(address) {
            if passed.len() >= MAX_STEPS || !passed.insert((address, report)) {
                break;
            }
            address = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Next => report.step(&mut factory, instruction),
                FlowControl::ConditionalBranch => ways.push((instruction.near_branch_target(), report)),
                FlowControl::UnconditionalBranch => address = instruction.near_branch_target(),
                FlowControl::Call | FlowControl::IndirectCall => {
                    if let Report { reason: Some(reason), file: Some(file), line: Some(line) } = report
                        && sources.contains(&file)
                    {
                        errors.insert((reason, line));
                    }
                    report = Report::default();
                }
                _ => break,
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests;
