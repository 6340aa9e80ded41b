//! rustls 0.23: the two functions through which all plaintext of its buffered connections passes, by their symbols
//! (`cargo build --release` keeps them). How the compiler lays out what they are given is not promised to anyone: it is
//! read from their code.

use std::ops::ControlFlow;

use agent_common::{
    event::direction,
    tls::{Layout, form},
};
use iced_x86::{FlowControl, Instruction, Mnemonic, Register};
use memchr::memmem;

use super::{
    Effort, Found, Probe, Program, Stack, Target, Unreadable, call_probes,
    elf::{Function, Image},
    scan,
    source::Source,
    x86::{Code, Site, State, Value, trace},
};

/// `CommonState::take_received_plaintext(&mut self, Payload)`, for people.
const RECEIVE: &str = "CommonState::take_received_plaintext";
/// `CommonState::buffer_plaintext(&mut self, OutboundChunks, &mut ChunkVecBuffer) -> usize`, for people.
const SEND: &str = "CommonState::buffer_plaintext";
/// Copies of one function: of several versions of the crate, or of several units of code.
const MAX_COPIES: usize = 8;
/// Of `Payload` and of the single form of `OutboundChunks`, bytes: a word that tells the form, pointer, length.
const POINTER: u16 = 8;
const LENGTH: u16 = 16;
/// Of the other form of `OutboundChunks`: pointer and number of slices, start, end.
const START: i64 = 16;
const END: i64 = 24;
/// A message of every version since 0.20, in no other library.
const MESSAGE: &[u8] = b"received plaintext buffer full";
/// What the paths of its source begin with, in messages of panics.
const PATH: &[u8] = b"/rustls-0.";
/// Bytes of a version number.
const MAX_VERSION: usize = 16;

const MACHINE: &str = "it uses rustls on arm64, which this agent cannot read yet";
const OLDER: &str = "it uses a rustls older than 0.23, whose functions are others; build it with rustls 0.23";
const INLINED: &str = "the compiler merged the functions of rustls that see plaintext into others; a release build with \
                       Cargo's defaults (opt-level 3, no link-time optimisation) keeps them";
const SHAPE: &str = "it was built by a compiler that lays out what rustls hands on in a way this agent does not know";

/// What a symbol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Receive,
    Send,
    /// `send_some_plaintext` of 0.20 to 0.22.
    OldSend,
}

/// The functions that a file names.
#[derive(Debug, Default)]
struct Named {
    receive: Vec<Function>,
    send: Vec<Function>,
    is_old: bool,
    /// Any symbol of the crate.
    is_there: bool,
}

/// Finds rustls in a program or library.
pub fn find<'a, R: Source<'a>>(image: &Image<'a, R>, effort: Effort, found: &mut Found) {
    let named = named(image);
    let refuse = |reason: &str| Unreadable { stack: Stack::Rustls, reason: reason.to_owned() };
    if named.is_there && !image.is_x86_64() {
        found.unreadable.push(refuse(MACHINE));
    } else if !named.receive.is_empty() && !named.send.is_empty() {
        match target(image, &named) {
            Some(target) => found.targets.push(target),
            None => found.unreadable.push(refuse(SHAPE)),
        }
    } else if named.is_old {
        found.unreadable.push(refuse(OLDER));
    } else if effort == Effort::Code
        && let Some(version) = version(image)
    {
        found.unreadable.push(if named.is_there { refuse(INLINED) } else { refuse(&stripped(&version)) });
    }
}

fn stripped(version: &str) -> String {
    format!(
        "it uses rustls{version}, whose functions cannot be found because its symbols were stripped; build it with \
         `strip = \"debuginfo\"` or `strip = false`"
    )
}

fn named<'a, R: Source<'a>>(image: &Image<'a, R>) -> Named {
    let mut named = Named::default();
    image.functions(&mut |name, function| {
        named.is_there |= name.starts_with(LEGACY_CRATE);
        match method(name) {
            Some(Method::Receive) => push(&mut named.receive, function),
            Some(Method::Send) => push(&mut named.send, function),
            Some(Method::OldSend) => named.is_old = true,
            None => return,
        }
        named.is_there = true;
    });
    named
}

fn push(functions: &mut Vec<Function>, function: Function) {
    if functions.len() < MAX_COPIES && !functions.contains(&function) {
        functions.push(function);
    }
}

const LEGACY_CRATE: &[u8] = b"_ZN6rustls";

/// Reads a mangled name: the legacy form, and the v0 form of a method of a type (RFC 2603).
fn method(name: &[u8]) -> Option<Method> {
    if let Some(rest) = name.strip_prefix(LEGACY_CRATE) {
        let (method, rest) = known(after(rest, b"11CommonState")?)?;
        // The hash; what else comes here belongs to a closure or another item inside the function.
        return rest.starts_with(b"17h").then_some(method);
    }
    let rest = name.strip_prefix(b"_RNvM")?;
    let rest = after(rest, b"_6rustls")?;
    let (method, rest) = known(after(rest, b"11CommonState")?)?;
    // The crate that the code was made for may follow, and the compiler's own suffix.
    matches!(rest.first(), None | Some(b'.' | b'B' | b'C')).then_some(method)
}

fn known(rest: &[u8]) -> Option<(Method, &[u8])> {
    let methods: [(&[u8], Method); 3] = [
        (b"23take_received_plaintext", Method::Receive),
        (b"16buffer_plaintext", Method::Send),
        (b"19send_some_plaintext", Method::OldSend),
    ];
    methods.into_iter().find_map(|(ident, method)| Some((method, rest.strip_prefix(ident)?)))
}

fn after<'n>(name: &'n [u8], part: &[u8]) -> Option<&'n [u8]> {
    name.get(memmem::find(name, part)? + part.len()..)
}

/// A target of all copies: none when one of them is not what it should be.
fn target<'a, R: Source<'a>>(image: &Image<'a, R>, named: &Named) -> Option<Target> {
    let probe = |program, site: Site, form, direction, function| {
        let offset = image.file_offset(site.address)?;
        Some(Probe { program, offset, form, direction, function, emulated: site.emulated })
    };
    let mut probes = Vec::new();
    for &function in &named.receive {
        let code = Code::read(image, function)?;
        if !takes_payload(&code) {
            return None;
        }
        probes.push(probe(Program::Push, code.entry_point(2), form::PAYLOAD, direction::RECEIVE, RECEIVE)?);
    }
    for &function in &named.send {
        let code = Code::read(image, function)?;
        if !takes_chunks(&code) {
            return None;
        }
        // What it is given is accepted in part, and the rest presented again: only the result says how much.
        probes.extend(call_probes(image, &code, 2, form::CHUNKS, direction::SEND, SEND)?);
    }
    Some(Target { stack: Stack::Rustls, layout: Layout::NONE, probes })
}

/// The word at `offset` of where the second argument points.
const fn word(offset: u16) -> Value {
    Value::Address { argument: 1, base: Some(offset), offset: 0 }
}

/// Does the function copy from the pointer, as many bytes as the length says? It must when the payload is borrowed.
fn takes_payload(code: &Code<'_>) -> bool {
    let mut copies = false;
    trace(code, &mut |instruction, state| {
        let is_call = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        copies |= is_call && state.get(Register::RSI) == word(POINTER) && state.get(Register::RDX) == word(LENGTH);
    });
    copies
}

/// Does the function tell the forms by the first word, and read start and end?
fn takes_chunks(code: &Code<'_>) -> bool {
    let (mut tells, mut starts, mut ends) = (false, false, false);
    trace(code, &mut |instruction, state| {
        tells |= compares_with_zero(instruction, state);
        starts |= reads(instruction, state, START);
        ends |= reads(instruction, state, END);
    });
    tells && starts && ends
}

fn compares_with_zero(instruction: &Instruction, state: &State) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Cmp => reads(instruction, state, 0) && instruction.try_immediate(1).is_ok_and(|value| value == 0),
        Mnemonic::Test => {
            instruction.op0_register() == instruction.op1_register() && state.get(instruction.op0_register()) == word(0)
        }
        _ => false,
    }
}

/// Is a memory operand the word at `offset` of where the second argument points?
fn reads(instruction: &Instruction, state: &State, offset: i64) -> bool {
    instruction.memory_base() != Register::None
        && state.place(instruction) == (Value::Address { argument: 1, base: None, offset })
}

/// Whether the file holds rustls: a space and its version, where the paths of its source say one.
fn version<'a, R: Source<'a>>(image: &Image<'a, R>) -> Option<String> {
    let section = image.section(".rodata")?;
    let (mut is_there, mut version) = (false, String::new());
    scan::pieces(image, section, &mut |_, bytes| {
        is_there |= memmem::find(bytes, MESSAGE).is_some();
        if version.is_empty() {
            version = memmem::find_iter(bytes, PATH).find_map(|at| version_at(bytes, at)).unwrap_or_default();
        }
        if is_there && !version.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    is_there.then_some(version)
}

fn version_at(bytes: &[u8], at: usize) -> Option<String> {
    let start = at + PATH.len() - 2;
    let rest = bytes.get(start..)?;
    let end = rest.iter().take(MAX_VERSION).position(|byte| !byte.is_ascii_digit() && *byte != b'.')?;
    Some(format!(" {}", String::from_utf8_lossy(rest.get(..end)?)))
}

#[cfg(test)]
mod tests;
