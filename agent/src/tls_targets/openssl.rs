//! OpenSSL, and BoringSSL and LibreSSL where their symbols are left: shared, in a wheel under any name, or linked
//! statically. Found by what a file defines, never by its name. `SSL_peek` is not probed: what it shows is read later.

mod record;

use agent_common::{
    event::direction,
    tls::{Layout, UNKNOWN, form},
};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{
    Effort, Found, Probe, Stack, Target, Unreadable, call_probes,
    elf::Image,
    source::Source,
    x86::{self, Code, State, To, Value},
};

/// Functions that BoringSSL and its descendants have and OpenSSL has not; any of them tells.
const BORINGSSL: [&str; 6] = [
    "SSL_CTX_set_grease_enabled",
    "SSL_set_early_data_enabled",
    "SSL_in_false_start",
    "SSL_process_quic_post_handshake",
    "SSL_early_callback_ctx_extension_get",
    "_ZN4bssl9SSLBuffer15DiscardConsumedEv",
];

/// Bytes at the start of a function whose end is not known.
const PREFIX: u64 = 64;
/// Of the objects that hold what is looked for; a larger offset is a misunderstanding.
const MAX_OFFSET: i64 = 0x4000;

/// A function that applications call.
struct Exported<'a> {
    name: &'static str,
    form: u8,
    /// The number of the argument that points to where the number of bytes is written.
    moved: Option<u8>,
    code: Code<'a>,
}

/// One direction.
struct Half {
    direction: u8,
    /// The function that all of `exported` come to.
    internal: &'static str,
    exported: &'static [(&'static str, u8, Option<u8>)],
}

const READ: Half = Half {
    direction: direction::RECEIVE,
    internal: "ssl_read_internal",
    exported: &[("SSL_read", form::INT, None), ("SSL_read_ex", form::OUT4, Some(3))],
};

const WRITE: Half = Half {
    direction: direction::SEND,
    internal: "ssl_write_internal",
    exported: &[
        ("SSL_write", form::INT, None),
        ("SSL_write_ex", form::OUT4, Some(3)),
        ("SSL_write_ex2", form::OUT5, Some(4)),
    ],
};

/// Finds a library by the functions it defines.
pub fn find<'a, R: Source<'a>>(image: &Image<'a, R>, _effort: Effort, found: &mut Found) {
    if image.function("SSL_read").is_none() || image.function("SSL_write").is_none() {
        return;
    }
    let is_boringssl =
        image.function("SSL_read_ex").is_none() && BORINGSSL.iter().any(|name| image.function(name).is_some());
    let stack = if is_boringssl { Stack::Boringssl } else { Stack::Openssl };
    match target(image, stack) {
        Ok(Some(target)) => found.targets.push(target),
        Ok(None) => {}
        Err(reason) => found.unreadable.push(Unreadable { stack, reason }),
    }
}

fn target<'a, R: Source<'a>>(image: &Image<'a, R>, stack: Stack) -> Result<Option<Target>, String> {
    if !image.is_x86_64() {
        return Err(super::arm64(stack));
    }
    let (read, write) = (exported(image, &READ)?, exported(image, &WRITE)?);
    if read.first().is_some_and(|read| is_gnutls(image, &read.code)) {
        return Ok(None);
    }
    let mut layout = layout(image);
    let records = record::find(image, &mut layout);
    let instead = |probe: Option<Probe>| probe.filter(|probe| probe.emulated).map(|probe| vec![probe]);
    let mut probes = instead(records.read).map_or_else(|| half(image, &READ, &read), Ok)?;
    probes.extend(instead(records.write).map_or_else(|| half(image, &WRITE, &write), Ok)?);
    let sendfile = image.function("SSL_sendfile").and_then(|function| Code::read(image, function));
    if let Some(code) = sendfile {
        let sendfile = call_probes(image, &code, 1, form::NO_BUFFER, direction::SEND, "SSL_sendfile");
        probes.extend(sendfile.into_iter().flatten());
    }
    Ok(Some(Target { stack, layout, probes }))
}

fn exported<'a, R: Source<'a>>(image: &Image<'a, R>, half: &Half) -> Result<Vec<Exported<'a>>, String> {
    let mut functions = Vec::new();
    for &(name, form, moved) in half.exported {
        let Some(function) = image.function(name) else { continue };
        let code = Code::read(image, function)
            .ok_or_else(|| format!("The code of {name} does not fit its symbol, so nothing in this file is probed."))?;
        functions.push(Exported { name, form, moved, code });
    }
    Ok(functions)
}

/// GnuTLS has a library that offers a few functions of OpenSSL; its own functions are probed.
fn is_gnutls<'a, R: Source<'a>>(image: &Image<'a, R>, read: &Code<'a>) -> bool {
    x86::callees(read)
        .into_iter()
        .filter_map(|callee| x86::imported(image, callee.to))
        .any(|name| name.starts_with(b"gnutls_"))
}

/// Probes that see each call of a direction once.
fn half<'a, R: Source<'a>>(image: &Image<'a, R>, half: &Half, all: &[Exported<'a>]) -> Result<Vec<Probe>, String> {
    let callees: Vec<Vec<x86::Callee>> = all.iter().map(|exported| x86::callees(&exported.code)).collect();
    // SSL_write_ex calls SSL_write_ex2 since OpenSSL 3.3, LibreSSL's SSL_read_ex calls SSL_read: one of them is enough.
    let is_forwarded = |callee: &x86::Callee| {
        passes(callee, 2)
            && all.iter().any(|other| {
                callee.to == To::Function(other.code.address())
                    || x86::imported(image, callee.to) == Some(other.name.as_bytes())
            })
    };
    let kept: Vec<(&Exported<'a>, &Vec<x86::Callee>)> =
        all.iter().zip(&callees).filter(|(_, callees)| !callees.iter().any(is_forwarded)).collect();

    let internal = internal(&kept).and_then(|(address, form)| {
        let bytes = (8..=PREFIX).rev().step_by(8).find_map(|len| image.bytes(address, len))?;
        let arguments = if form == form::OUT4 { 4 } else { 5 };
        call_probes(image, &Code::prefix(address, bytes), arguments, form, half.direction, half.internal)
    });
    let is_cheap = |probes: &[Probe]| probes.iter().all(|probe| probe.emulated);
    if let Some(probes) = internal.filter(|probes| is_cheap(probes)) {
        return Ok(probes.to_vec());
    }
    let mut probes = Vec::new();
    for (exported, _) in &kept {
        let arguments = 3 + usize::from(exported.moved.map_or(0, |moved| moved - 2));
        let pair = call_probes(image, &exported.code, arguments, exported.form, half.direction, exported.name);
        probes.extend(pair.ok_or_else(|| format!("{} is not in code that is mapped executable.", exported.name))?);
    }
    if !is_cheap(&probes)
        && let Some(internal) = internal
    {
        return Ok(internal.to_vec());
    }
    Ok(probes)
}

/// Does a call pass the first arguments on in their places?
fn passes(callee: &x86::Callee, count: u8) -> bool {
    (0..count).zip(callee.arguments).all(|(number, value)| value == Value::argument(number))
}

/// The one function that each of the exported ones calls with object, buffer and length in their places, and its form:
/// by where they pass the pointer that the number of bytes is written through, of a variable or their own argument.
/// (Where a check failed, functions that note the error are called with most registers untouched, too.) None where the
/// compiler put its body into one of them, which is then seen to call the protocol's method: what else they all call is
/// for QUIC.
fn internal(exported: &[(&Exported<'_>, &Vec<x86::Callee>)]) -> Option<(u64, u8)> {
    if exported.len() < 2 || exported.iter().any(|(exported, _)| exported.code.has_indirect_calls()) {
        return None;
    }
    let mut common: Option<Vec<(To, usize)>> = None;
    for (exported, callees) in exported {
        let is_moved = |value: &Value| match exported.moved {
            Some(moved) => *value == Value::argument(moved),
            None => matches!(value, Value::Stack(_)),
        };
        let calls: Vec<(To, usize)> = callees
            .iter()
            .filter(|callee| passes(callee, 3))
            .filter_map(|callee| Some((callee.to, callee.arguments.iter().skip(3).position(is_moved)?)))
            .collect();
        common = Some(match common {
            None => calls,
            Some(common) => common.into_iter().filter(|call| calls.contains(call)).collect(),
        });
    }
    let common = common?;
    let (To::Function(target), place) = *common.first()? else { return None };
    let is_only = common.iter().all(|call| *call == (To::Function(target), place));
    match place {
        0 if is_only => Some((target, form::OUT4)),
        1 if is_only => Some((target, form::OUT5)),
        _ => None,
    }
}

/// Decoded from the library's own accessors.
fn layout<'a, R: Source<'a>>(image: &Image<'a, R>) -> Layout {
    let code = |name: &str| Code::read(image, image.function(name)?);
    let mut layout = Layout::NONE;
    if let Some((base, offset)) = code("SSL_get_client_random").and_then(|code| random(&code)) {
        layout.random_base = base.unwrap_or(UNKNOWN);
        layout.random = offset;
    }
    if let Some((offset, mask)) = code("SSL_is_server").and_then(|code| server(&code)) {
        layout.server = offset;
        layout.server_mask = mask;
    }
    layout
}

/// Where `SSL_get_client_random(object, out, len)` copies from.
fn random(code: &Code<'_>) -> Option<(Option<u16>, u16)> {
    let mut sources = Vec::new();
    x86::trace(code, &mut |instruction, state| {
        if let Some((base, offset)) = copied(code, instruction, state)
            && (base.is_some() || offset > 0)
            && (0..MAX_OFFSET).contains(&offset)
            && !sources.contains(&(base, offset as u16))
        {
            sources.push((base, offset as u16));
        }
    });
    only(&sources)
}

/// The source of a copy of bytes of the object to the start of the second argument: an inlined one, or a call.
fn copied(code: &Code<'_>, instruction: &Instruction, state: &State) -> Option<(Option<u16>, i64)> {
    let is_call = instruction.is_call_near() || instruction.is_call_near_indirect();
    let leaves = instruction.is_jmp_short_or_near() && code.at(instruction.near_branch_target()).is_none();
    let is_string = instruction.has_rep_prefix()
        && matches!(instruction.mnemonic(), Mnemonic::Movsb | Mnemonic::Movsd | Mnemonic::Movsq);
    let out = Value::argument(1);
    if is_call || leaves || is_string {
        let source = (state.get(Register::RDI) == out).then(|| state.get(Register::RSI))?;
        let Value::Address { argument: 0, base, offset } = source else { return None };
        return Some((base, offset));
    }
    let is_store = instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register;
    if !is_store || state.place(instruction) != out {
        return None;
    }
    match state.get(instruction.op1_register()) {
        Value::Data { argument: 0, base, offset, .. } => Some((base, offset)),
        // Eight bytes that could have been a pointer, and are not.
        Value::Address { argument: 0, base: Some(base), offset: 0 } => Some((None, i64::from(base))),
        _ => None,
    }
}

/// The byte that `SSL_is_server(object)` returns, and the bits of it.
fn server(code: &Code<'_>) -> Option<(u16, u8)> {
    let mut results = Vec::new();
    x86::trace(code, &mut |instruction, state| {
        if instruction.mnemonic() == Mnemonic::Ret
            && let Value::Data { argument: 0, base: None, offset, mask, .. } = state.get(Register::RAX)
            && (1..MAX_OFFSET).contains(&offset)
            && mask != 0
        {
            let byte = mask.trailing_zeros() / 8;
            let result = ((offset as u16).saturating_add(byte as u16), (mask >> (8 * byte)) as u8);
            if !results.contains(&result) {
                results.push(result);
            }
        }
    });
    match results.as_slice() {
        [result] => Some(*result),
        _ => None,
    }
}

/// The only place in the object itself, else the only one behind a pointer. Since OpenSSL 3.2 the object may be a QUIC
/// connection, which has a pointer to the object of its handshake: that is not the one on TCP.
fn only(places: &[(Option<u16>, u16)]) -> Option<(Option<u16>, u16)> {
    let of = |is_direct: bool| {
        let mut these = places.iter().filter(move |place| place.0.is_none() == is_direct);
        let first = these.next().copied();
        (first, these.next().is_none())
    };
    match (of(true), of(false)) {
        ((Some(place), true), _) | ((None, _), (Some(place), true)) => Some(place),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
