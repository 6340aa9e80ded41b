//! NSS, at the functions of its portable runtime (libnspr4) by which applications send and receive.
//!
//! They serve plain sockets and files too, and nothing in the file tells them apart: the object is a descriptor with
//! layers, and TLS is one of them. Of what a plain socket carries the connection is found by the socket call inside, as
//! for TLS, where those bytes were seen already. There is no accessor of the ClientHello random here. The functions
//! jump through a table at once, so that no instruction of theirs is cheap to probe.

use agent_common::{
    event::direction,
    tls::{Layout, form},
};

use super::{Effort, Found, Probe, Stack, Target, Unreadable, call_probes, elf::Image, source::Source, x86::Code};

/// Finds the portable runtime by the functions it defines.
pub fn find<'a, R: Source<'a>>(image: &Image<'a, R>, _effort: Effort, found: &mut Found) {
    if image.function("PR_Recv").is_none() || image.function("PR_Send").is_none() {
        return;
    }
    if !image.is_x86_64() {
        found.unreadable.push(Unreadable { stack: Stack::Nss, reason: super::arm64(Stack::Nss) });
        return;
    }
    let call = |name: &'static str, direction: u8| {
        let code = Code::read(image, image.function(name)?)?;
        call_probes(image, &code, 3, form::INT, direction, name)
    };
    let probes: Option<Vec<Probe>> = call("PR_Recv", direction::RECEIVE)
        .zip(call("PR_Send", direction::SEND))
        .map(|(receive, send)| receive.into_iter().chain(send).collect());
    match probes {
        Some(probes) => found.targets.push(Target { stack: Stack::Nss, layout: Layout::NONE, probes }),
        None => found.unreadable.push(Unreadable {
            stack: Stack::Nss,
            reason: "The code of PR_Recv or PR_Send does not fit its symbol, so neither is probed.".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use crate::tls_targets::{find, sample::Sample};

    use super::*;

    #[test]
    fn both_functions_are_probed_at_their_first_instruction() {
        // mov rax, [rdi]; jmp [rax+0x88].
        let through_table = vec![0x48, 0x8b, 0x07, 0xff, 0xa0, 0x88, 0, 0, 0];
        let exported = vec![("PR_Recv", through_table.clone()), ("PR_Send", through_table)];
        let file = Sample { exported, ..Sample::default() }.build();
        let found = find(&Image::parse(file.as_slice()).unwrap(), Effort::Symbols);
        let [target] = found.targets.as_slice() else { panic!("{found:?}") };
        assert_eq!((target.stack, target.layout), (Stack::Nss, Layout::NONE));
        let probes: Vec<_> = target.probes.iter().map(|probe| (probe.function, probe.form, probe.emulated)).collect();
        let expected = ["PR_Recv", "PR_Recv", "PR_Send", "PR_Send"].map(|name| (name, form::INT, false));
        assert_eq!(probes, expected);
    }
}
