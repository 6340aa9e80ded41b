//! GnuTLS. The ClientHello random is read from the session; who is the server is not in any accessor, so it is not
//! known.

use agent_common::{
    event::direction,
    tls::{Layout, form},
};
use iced_x86::OpKind;

use super::{
    Effort, Found, Probe, Stack, Target, Unreadable, call_probes,
    elf::Image,
    source::Source,
    x86::{self, Code, Value},
};

/// Of a session; a larger offset is a misunderstanding.
const MAX_OFFSET: i64 = 0x4000;

/// Finds GnuTLS by the functions it defines.
pub fn find<'a, R: Source<'a>>(image: &Image<'a, R>, _effort: Effort, found: &mut Found) {
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

fn probes<'a, R: Source<'a>>(image: &Image<'a, R>) -> Result<Vec<Probe>, String> {
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
fn layout<'a, R: Source<'a>>(image: &Image<'a, R>) -> Layout {
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

#[cfg(test)]
mod tests {
    use crate::tls_targets::{
        Effort, Found, Program, find,
        sample::{BIAS, SLOTS, STRIDE, Sample, TEXT, address, branch},
    };

    use super::*;

    /// `sub rsp, 8; test edi, edi; je; ret`.
    const RECEIVE: [u8; 9] = [0x48, 0x83, 0xec, 0x08, 0x85, 0xff, 0x74, 0x00, 0xc3];

    fn found(sample: &Sample) -> Found {
        let file = sample.build();
        find(&Image::parse(file.as_slice()).unwrap(), Effort::Symbols)
    }

    fn functions(found: &Found) -> Vec<(&'static str, u64)> {
        let probes = &found.targets[0].probes;
        let entered = probes.iter().filter(|probe| probe.program == Program::Enter);
        entered.map(|probe| (probe.function, probe.offset - TEXT)).collect()
    }

    #[test]
    fn a_send_that_calls_the_other_is_not_probed_too() {
        let receive = ("gnutls_record_recv", RECEIVE.to_vec());
        let second = ("gnutls_record_send2", vec![0x41, 0x57, 0xc3]);
        let expected = [("gnutls_record_recv", 6), ("gnutls_record_send2", STRIDE)];

        let direct = ("gnutls_record_send", branch(0xe9, address(2), address(1)));
        let sample = Sample { exported: vec![receive.clone(), second.clone(), direct], ..Sample::default() };
        assert_eq!(functions(&found(&sample)), expected);

        let slot = (BIAS + SLOTS).wrapping_sub(address(2) + 6) as u32;
        let through_slot = ("gnutls_record_send", [[0xff, 0x25].as_slice(), &slot.to_le_bytes()].concat());
        let imported = vec!["gnutls_record_send2"];
        let exported = vec![receive.clone(), second.clone(), through_slot];
        assert_eq!(functions(&found(&Sample { exported, imported, ..Sample::default() })), expected);

        let itself = ("gnutls_record_send", vec![0x55, 0xc3]);
        let sample = Sample { exported: vec![receive.clone(), second, itself.clone()], ..Sample::default() };
        let all = [expected[0], expected[1], ("gnutls_record_send", 2 * STRIDE)];
        assert_eq!(functions(&found(&sample)), all);

        let sample = Sample { exported: vec![receive, itself], ..Sample::default() };
        assert_eq!(functions(&found(&sample)), [expected[0], ("gnutls_record_send", STRIDE)]);
    }

    #[test]
    fn the_result_is_taken_where_the_return_address_is() {
        let exported = vec![("gnutls_record_recv", RECEIVE.to_vec()), ("gnutls_record_send", vec![0x55, 0xc3])];
        let found = found(&Sample { exported, ..Sample::default() });
        let at = |program| found.targets[0].probes.iter().find(|probe| probe.program == program).copied().unwrap();
        assert_eq!((at(Program::Enter).offset, at(Program::Enter).emulated), (TEXT + 6, true));
        assert_eq!((at(Program::Return).offset, at(Program::Return).emulated), (TEXT, false));
        assert_eq!(at(Program::Return).form, form::SIZE);
    }

    #[test]
    fn the_random_is_where_the_accessor_points() {
        // lea rax, [rdi+0x50]; mov [rsi], rax; add rdi, 0x70; mov [rdx], rdi; ret.
        let random = [0x48, 0x8d, 0x47, 0x50, 0x48, 0x89, 0x06, 0x48, 0x83, 0xc7, 0x70, 0x48, 0x89, 0x3a, 0xc3];
        let exported = vec![
            ("gnutls_record_recv", RECEIVE.to_vec()),
            ("gnutls_record_send", vec![0x55, 0xc3]),
            ("gnutls_session_get_random", random.to_vec()),
        ];
        let found = found(&Sample { exported, ..Sample::default() });
        assert_eq!(found.targets[0].layout, Layout { random: 0x50, ..Layout::NONE });
    }

    #[test]
    fn arm64_is_said_and_other_files_are_silent() {
        let exported = vec![("gnutls_record_recv", vec![0xc3]), ("gnutls_record_send", vec![0xc3])];
        let arm64 = found(&Sample { exported, is_arm64: true, ..Sample::default() });
        assert_eq!((arm64.targets.len(), arm64.unreadable[0].stack), (0, Stack::Gnutls));
        let exported = vec![("gnutls_record_recv", vec![0xc3])];
        assert_eq!(found(&Sample { exported, ..Sample::default() }), Found::default());
    }
}
