//! NSS, at the functions of its portable runtime (libnspr4) by which applications send and receive.
//!
//! They serve plain sockets and files too, and nothing in the file tells them apart: the object is a descriptor with
//! layers, and TLS is one of them. Of what a plain socket carries the connection is found by the socket call inside, as for
//! TLS, where those bytes were seen already. There is no accessor of the ClientHello random here. The functions jump through
//! a table at once, so that no instruction of theirs is cheap to probe.

use agent_common::{
    event::direction,
    tls::{Layout, form},
};
use object::ReadRef;

use super::{Effort, Found, Probe, Stack, Target, Unreadable, call_probes, elf::Image, x86::Code};

/// Finds the portable runtime by the functions it defines.
pub fn find<'a, R: ReadRef<'a>>(image: &Image<'a, R>, _effort: Effort, found: &mut Found) {
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
