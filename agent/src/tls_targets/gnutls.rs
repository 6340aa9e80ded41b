//! GnuTLS. The ClientHello random is read from the session; who is the server is not in any accessor, so it is not known.

use agent_common::{
    event::direction,
    tls::{Layout, form},
};
use iced_x86::OpKind;
use object::ReadRef;

use super::{
    Effort, Found, Probe, Stack, Target, Unreadable, call_probes,
    elf::Image,
    x86::{self, Code, Value},
};

/// Of a session; a larger offset is a misunderstanding.
const MAX_OFFSET: i64 = 0x4000;

/// Finds GnuTLS by the functions it defines.
pub fn find<'a, R: ReadRef<'a>>(image: &Image<'a, R>, _effort: Effort, found: &mut Found) {
    if image.function("gnutls_record_recv").is_none() || image.function("gnutls_record_send").is_none() {
        return;
    }
    if !image.is_x86_64() {
        found.unreadable.push(Unreadable { stack: Stack::Gnutls, reason: super::arm64(Stack::Gnutls) });
        return;
    }
    match probes(image) {
        Ok(probes) => found.targets.push(Target { stack: Stack::Gnutls, layout: layout(image), probes }),
        Err(reason) => found.unreadable.push(Unreadable { stack: Stack::Gnutls, reason }),
    }
}

fn probes<'a, R: ReadRef<'a>>(image: &Image<'a, R>) -> Result<Vec<Probe>, String> {
    let code = |name: &str| Code::read(image, image.function(name)?);
    let call = |name: &'static str, direction: u8| {
        code(name)
            .and_then(|code| call_probes(image, &code, 3, form::SIZE, direction, name))
            .ok_or_else(|| format!("The code of {name} does not fit its symbol, so nothing in this file is probed."))
    };
    let mut probes = call("gnutls_record_recv", direction::RECEIVE)?.to_vec();
    // gnutls_record_send is gnutls_record_send2 with two zeros: where it calls that, one of them is enough.
    let second = image.function("gnutls_record_send2");
    if second.is_some() {
        probes.extend(call("gnutls_record_send2", direction::SEND)?);
    }
    let is_second = |callee: &x86::Callee| {
        second.is_some_and(|second| callee.to == x86::To::Function(second.address))
            || x86::imported(image, callee.to) == Some(b"gnutls_record_send2")
    };
    if !code("gnutls_record_send").is_some_and(|code| x86::callees(&code).iter().any(is_second)) {
        probes.extend(call("gnutls_record_send", direction::SEND)?);
    }
    Ok(probes)
}

/// `gnutls_session_get_random(session, client, server)` gives a pointer into the session.
fn layout<'a, R: ReadRef<'a>>(image: &Image<'a, R>) -> Layout {
    let code = image.function("gnutls_session_get_random").and_then(|function| Code::read(image, function));
    let mut places = Vec::new();
    if let Some(code) = code {
        x86::trace(&code, &mut |instruction, state| {
            let is_store = instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register;
            if is_store
                && instruction.op1_register().size() == 8
                && state.place(instruction) == Value::argument(1)
                && let Value::Address { argument: 0, base: None, offset } = state.get(instruction.op1_register())
                && (1..MAX_OFFSET).contains(&offset)
                && !places.contains(&(offset as u16))
            {
                places.push(offset as u16);
            }
        });
    }
    match places.as_slice() {
        [random] => Layout { random: *random, ..Layout::NONE },
        _ => Layout::NONE,
    }
}
