//! Where OpenSSL moves content in and out of records: each byte once, and nothing for a call that moves none. Cheaper than
//! a call's two ends, of which a program that waits for readiness sees many in vain.
//!
//! These functions are not exported. From OpenSSL 3.0 on an error names the function it happened in, so that the code
//! says which it is.

use std::{collections::BTreeMap, ops::ControlFlow};

use agent_common::{
    event::direction,
    tls::{Layout, form, register},
};
use iced_x86::Register;
use memchr::memmem;

use super::super::{
    Probe, Program,
    eh_frame::Functions,
    elf::{Function, Image},
    scan::{self, Argument},
    source::Source,
    x86::{self, Code, Place, To, Value},
};

const READ: &str = "ssl3_read_bytes";
const WRITE: &str = "do_ssl3_write";
const WRITE_CALLER: &str = "ssl3_write_bytes";

/// Arguments of `ssl3_read_bytes(object, type, &received, buffer, len, peek, &moved)`.
const OBJECT: u8 = 0;
const CONTENT_TYPE: u8 = 1;
const BUFFER: u8 = 3;
const PEEK: u8 = 5;

/// Copies of a name, and places that load it.
const MAX_NAMES: usize = 4;
const MAX_PLACES: usize = 256;

/// What there is to probe instead of the calls.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) read: Option<Probe>,
    pub(super) write: Option<Probe>,
}

/// Finds both; adds to the layout what the probe on reading needs.
pub(super) fn find<'a, R: Source<'a>>(image: &Image<'a, R>, layout: &mut Layout) -> Records {
    let Some(functions) = Functions::read(image) else { return Records::default() };
    let named = |name| named(image, &functions, name);
    let read = only(named(READ).iter().filter_map(|code| copy(image, code)));
    if let Some(copy) = read {
        layout.object = copy.object;
        layout.content_type = copy.content_type;
        layout.peek = copy.peek;
    }
    let callers = named(WRITE_CALLER);
    Records {
        read: read.map(|copy| copy.probe),
        write: only(named(WRITE).iter().filter_map(|code| records(image, code, &callers))),
    }
}

fn only<T>(mut candidates: impl Iterator<Item = T>) -> Option<T> {
    let first = candidates.next()?;
    candidates.next().is_none().then_some(first)
}

/// The functions that report errors under a name: parts that a compiler moved away, and what these return to.
fn named<'a, R: Source<'a>>(image: &Image<'a, R>, functions: &Functions<'a>, name: &str) -> Vec<Code<'a>> {
    let (Some(text), names) = (image.section(".text"), names(image, name)) else { return Vec::new() };
    if names.is_empty() {
        return Vec::new();
    }
    let mut found: BTreeMap<u64, Function> = BTreeMap::new();
    for place in scan::loads(image, text, Argument::Third, &names, MAX_PLACES) {
        let Some(function) = functions.around(image, place) else { continue };
        if found.insert(function.address, function).is_some() {
            continue;
        }
        let jumps = Code::read(image, function).map(|code| code.jumps().map(|jump| jump.target).collect::<Vec<_>>());
        let leaving = jumps.unwrap_or_default();
        let targets = leaving.into_iter().take(MAX_PLACES).filter_map(|target| functions.around(image, target));
        found.extend(targets.map(|function| (function.address, function)));
    }
    found.into_values().filter_map(|function| Code::read(image, function)).collect()
}

/// The addresses of a string.
fn names<'a, R: Source<'a>>(image: &Image<'a, R>, name: &str) -> Vec<u64> {
    let pattern = [b"\0", name.as_bytes(), b"\0"].concat();
    let mut found = Vec::new();
    let Some(section) = image.section(".rodata") else { return found };
    scan::pieces(image, section, &mut |address, bytes| {
        for at in memmem::find_iter(bytes, &pattern) {
            let place = address.wrapping_add(at as u64 + 1);
            if !found.contains(&place) {
                found.push(place);
            }
        }
        if found.len() < MAX_NAMES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}

/// The call that copies content to the caller.
#[derive(Clone, Copy, Debug)]
struct Copy {
    probe: Probe,
    object: u16,
    content_type: u16,
    peek: u16,
}

/// What is known at a call of `memcpy`, on all ways that lead there.
struct Seen {
    /// On one of them the copy goes to where the caller's buffer begins.
    to_buffer: bool,
    object: Vec<Place>,
    content_type: Vec<Place>,
    peek: Vec<Place>,
}

fn copy<'a, R: Source<'a>>(image: &Image<'a, R>, code: &Code<'a>) -> Option<Copy> {
    let mut calls: BTreeMap<u64, Seen> = BTreeMap::new();
    x86::trace(code, &mut |instruction, state| {
        if !instruction.is_call_near() {
            return;
        }
        let is_copy = calls.contains_key(&instruction.ip())
            || x86::imported(image, To::Function(instruction.near_branch_target())) == Some(b"memcpy");
        if !is_copy {
            return;
        }
        let to_buffer = state.get(Register::RDI) == Value::argument(BUFFER);
        let object = state.kept(Value::argument(OBJECT), 8);
        let content_type = state.kept(Value::argument(CONTENT_TYPE), 1);
        let peek = state.kept(Value::argument(PEEK), 4);
        match calls.get_mut(&instruction.ip()) {
            None => drop(calls.insert(instruction.ip(), Seen { to_buffer, object, content_type, peek })),
            Some(seen) => {
                seen.to_buffer |= to_buffer;
                seen.object.retain(|place| object.contains(place));
                seen.content_type.retain(|place| content_type.contains(place));
                seen.peek.retain(|place| peek.contains(place));
            }
        }
    });
    let (at, seen) = only(calls.iter().filter(|(_, seen)| seen.to_buffer))?;
    let instruction = code.at(*at)?;
    Some(Copy {
        probe: Probe {
            program: Program::Push,
            offset: image.file_offset(*at)?,
            form: form::READ_COPY,
            direction: direction::RECEIVE,
            function: READ,
            emulated: code.emulates(instruction),
        },
        object: place(&seen.object)?,
        content_type: place(&seen.content_type)?,
        peek: place(&seen.peek)?,
    })
}

/// A register, if there is a choice.
fn place(places: &[Place]) -> Option<u16> {
    let register = places.iter().find(|place| matches!(place, Place::Register(_)));
    Some(match register.or(places.first())? {
        Place::Register(number) => register_place(*number)?,
        Place::Stack(distance) => *distance,
    })
}

fn register_place(number: Register) -> Option<u16> {
    Some(register(u8::try_from(number.number()).ok()?))
}

/// The start of `do_ssl3_write`, if one of its callers passes on its own object and type, and lengths in its frame.
fn records<'a, R: Source<'a>>(image: &Image<'a, R>, code: &Code<'a>, callers: &[Code<'a>]) -> Option<Probe> {
    let is_called = callers.iter().filter(|caller| caller.address() != code.address()).any(|caller| {
        x86::callees(caller).iter().any(|callee| {
            let [object, content_type, _, lengths, ..] = callee.arguments;
            callee.to == To::Function(code.address())
                && object == Value::argument(OBJECT)
                && content_type == Value::argument(CONTENT_TYPE)
                && matches!(lengths, Value::Stack(_))
        })
    });
    let site = code.entry_point(5);
    let offset = image.file_offset(site.address).filter(|_| is_called && code.at(site.address).is_some())?;
    Some(Probe {
        program: Program::Push,
        offset,
        form: form::RECORDS,
        direction: direction::SEND,
        function: WRITE,
        emulated: site.emulated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls_targets::sample::{BIAS, SLOTS, Sample, address, branch};

    /// A file with these functions; the last is a stub of `memcpy`.
    fn file(functions: Vec<Vec<u8>>) -> Vec<u8> {
        const NAMES: [&str; 2] = ["first", "second"];
        let stub_at = address(functions.len() as u64);
        let slot = (BIAS + SLOTS).wrapping_sub(stub_at + 6) as u32;
        let stub = [[0xff, 0x25].as_slice(), &slot.to_le_bytes()].concat();
        let exported = NAMES.into_iter().zip(functions).collect();
        Sample { exported, local: vec![("stub", stub)], imported: vec!["memcpy"], ..Sample::default() }.build()
    }

    fn code<'a>(image: &Image<'a, &'a [u8]>, name: &str) -> Code<'a> {
        Code::read(image, image.function(name).unwrap()).unwrap()
    }

    /// Keeps the object in R13, the type and whether to peek in its frame, and the buffer in R12; then `middle`; then
    /// copies to where `to` (a `mov rdi, ..`) says.
    fn reader(middle: &[u8], to: [u8; 3]) -> (Vec<u8>, u64) {
        let mut code = vec![0x41, 0x54, 0x41, 0x55, 0x53, 0x48, 0x83, 0xec, 0x20, 0x49, 0x89, 0xfd];
        code.extend([0x89, 0x74, 0x24, 0x04, 0x44, 0x89, 0x0c, 0x24, 0x49, 0x89, 0xcc]);
        code.extend(middle);
        code.extend(to);
        code.extend([0x4c, 0x89, 0xc2, 0x49, 0x8b, 0x75, 0x18]);
        let call = code.len() as u64;
        code.extend(branch(0xe8, address(0) + call, address(1)));
        code.extend([0x48, 0x83, 0xc4, 0x20, 0x5b, 0x41, 0x5d, 0x41, 0x5c, 0xc3]);
        (code, call)
    }

    const TO_BUFFER: [u8; 3] = [0x4c, 0x89, 0xe7];
    const TO_OBJECT: [u8; 3] = [0x4c, 0x89, 0xef];

    #[test]
    fn the_copy_to_the_callers_buffer_is_found_with_what_decides_about_it() {
        let (function, call) = reader(&[], TO_BUFFER);
        let file = file(vec![function]);
        let image = Image::parse(file.as_slice()).unwrap();
        let found = copy(&image, &code(&image, "first")).unwrap();
        assert_eq!((found.object, found.content_type, found.peek), (register(13), 4, 0));
        assert_eq!(found.probe.offset, address(0) + call - BIAS);
        assert!(found.probe.emulated, "a call");
    }

    #[test]
    fn a_copy_elsewhere_or_without_what_decides_is_not() {
        // `mov dword [rsp+4], 0`, `mov dword [rsp], 0`, `xor r13d, r13d`.
        for (middle, to) in [
            (&[][..], TO_OBJECT),
            (&[0xc7, 0x44, 0x24, 0x04, 0, 0, 0, 0], TO_BUFFER),
            (&[0xc7, 0x04, 0x24, 0, 0, 0, 0], TO_BUFFER),
            (&[0x45, 0x31, 0xed], TO_BUFFER),
        ] {
            let file = file(vec![reader(middle, to).0]);
            let image = Image::parse(file.as_slice()).unwrap();
            assert!(copy(&image, &code(&image, "first")).is_none(), "{middle:x?}");
        }
    }

    #[test]
    fn records_are_made_by_the_function_that_gets_lengths_in_its_callers_frame() {
        let lea = [0x48, 0x8d, 0x4c, 0x24, 0x08];
        for (middle, is_it) in [(&lea[..], true), (&[], false), (&[0x31, 0xff, 0x48, 0x8d, 0x4c, 0x24, 0x08], false)] {
            let mut caller = vec![0x48, 0x83, 0xec, 0x18];
            caller.extend(middle);
            caller.extend(branch(0xe8, address(0) + caller.len() as u64, address(1)));
            caller.extend([0x48, 0x83, 0xc4, 0x18, 0xc3]);
            let file = file(vec![caller, vec![0x41, 0x57, 0xc3]]);
            let image = Image::parse(file.as_slice()).unwrap();
            let found = records(&image, &code(&image, "second"), &[code(&image, "first")]);
            assert_eq!(found.map(|probe| probe.offset), is_it.then_some(address(1) - BIAS));
        }
    }
}
