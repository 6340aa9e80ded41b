//! What to probe in a file that may hold a TLS library: pure, bytes of an ELF file in, probe addresses out. One file per
//! stack and one word in [`find`]. Never guesses: an address that is not proven by the file itself is not given.

pub mod boringssl;
mod eh_frame;
pub mod elf;
pub mod gnutls;
pub mod go;
pub mod nss;
pub mod openssl;
pub mod rustls;
#[cfg(test)]
mod sample;
mod scan;
pub mod source;
pub mod x86;

use std::fmt;

use agent_common::tls::Layout;

use elf::Image;
use source::Source;
use x86::{Code, Site};

/// A TLS implementation (`weir.capture.backend` of what it yields).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stack {
    Openssl,
    Boringssl,
    Go,
    Gnutls,
    Rustls,
    Nss,
}

/// The kernel program a probe belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// Keeps the arguments of a call. At the function's entry, or at a later instruction that still has them in place.
    Enter,
    /// Reports what the call moved: a uretprobe, at the function's first instruction.
    Return,
    /// The same as a plain probe, where the result is in its register: behind the call, or at each `ret`.
    ReturnAt,
    /// Reports at once: arguments are all that is needed.
    Push,
}

/// One probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub program: Program,
    /// Where in the file the instruction is, bytes.
    pub offset: u64,
    /// One of [`agent_common::tls::form`].
    pub form: u8,
    /// One of [`agent_common::event::direction`].
    pub direction: u8,
    /// The function, for people.
    pub function: &'static str,
    /// The kernel emulates the instruction: the probe is cheap. Else it is single-stepped.
    pub emulated: bool,
}

/// A TLS implementation in a file, and how to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub stack: Stack,
    pub layout: Layout,
    /// Attached all or none, in this order.
    pub probes: Vec<Probe>,
}

/// Why a file that holds a TLS implementation yields no plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub stack: Stack,
    /// A whole sentence for people, with the way out where there is one.
    pub reason: String,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub targets: Vec<Target>,
    pub unreadable: Vec<Unreadable>,
}

/// How much work a file is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Symbols, sections and tables that name functions: every mapped file gets this.
    Symbols,
    /// The code too: for a process that was seen to speak TLS and has no other target.
    Code,
}

/// What to probe in a file. Every stack that is in it is found, the ones that cannot be read too.
pub fn find<'a, R: Source<'a>>(image: &Image<'a, R>, effort: Effort) -> Found {
    let stacks: [Find<'a, R>; 6] = [openssl::find, go::find, gnutls::find, nss::find, rustls::find, boringssl::find];
    let mut found = Found::default();
    for stack in stacks {
        stack(image, effort, &mut found);
    }
    found
}

/// Looks for one stack.
type Find<'a, R> = fn(&Image<'a, R>, Effort, &mut Found);

/// The probes of a function whose call is reported when it returns: at the arguments and at the result, in this order.
fn call_probes<'a, R: Source<'a>>(
    image: &Image<'a, R>,
    code: &Code<'_>,
    arguments: usize,
    form: u8,
    direction: u8,
    function: &'static str,
) -> Option<[Probe; 2]> {
    let probe = |program, site: Site| {
        code.at(site.address)?;
        let offset = image.file_offset(site.address)?;
        Some(Probe { program, offset, form, direction, function, emulated: site.emulated })
    };
    Some([probe(Program::Enter, code.entry_point(arguments))?, probe(Program::Return, code.return_point())?])
}

fn arm64(stack: Stack) -> String {
    format!("The {stack} in this file is for arm64, which is not yet supported by the finder of probes.")
}

impl Stack {
    pub const ALL: [Self; 6] = [Self::Openssl, Self::Boringssl, Self::Go, Self::Gnutls, Self::Rustls, Self::Nss];

    /// `weir.capture.backend`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Openssl => "openssl",
            Self::Boringssl => "boringssl",
            Self::Go => "go",
            Self::Gnutls => "gnutls",
            Self::Rustls => "rustls",
            Self::Nss => "nss",
        }
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
