//! Which compiler builds the kernel crate, and what `agent/build.rs` has to be told about it.
//!
//! The kernel crate needs `core` built from source (`-Z build-std`), so a compiler with its library's source: a nightly
//! with rust-src, or a distribution's compiler with its source package, which takes the unstable flag by
//! `RUSTC_BOOTSTRAP`. `agent/build.rs` sets that variable for the kernel crate alone.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::shell;

/// Name of the rustup toolchain that `setup` links to a distribution's compiler.
pub(crate) const LINKED: &str = "bpf";

/// A compiler that can build the kernel crate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// A rustup toolchain, by name.
    Rustup(&'static str),
    /// No rustup: the `cargo` and `rustc` of this directory.
    Plain(PathBuf),
}

/// The best compiler there is; nightly first, because it is what the aya project tests with.
pub(crate) fn find() -> Option<Compiler> {
    if shell::find("rustup").is_some() {
        return ["nightly", LINKED].into_iter().find(|name| rustup_has_source(name)).map(Compiler::Rustup);
    }
    let on_path = shell::find("rustc").and_then(|rustc| rustc.parent().map(Path::to_path_buf));
    on_path
        .into_iter()
        .chain([PathBuf::from("/usr/bin")])
        .find(|dir| dir.join("rustc").is_file() && dir.join("cargo").is_file() && has_source(dir))
        .map(Compiler::Plain)
}

/// A `cargo` invocation in the workspace, with the environment that every invocation shares: a difference would make
/// cargo build the kernel object again.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(shell::root());
    command.env("WEIR_EBPF", "build");
    match find() {
        Some(Compiler::Rustup(name)) => command.env("WEIR_EBPF_TOOLCHAIN", name).env("PATH", shell::path_with(None)?),
        // Without rustup the name selects nothing; it says that this compiler needs `RUSTC_BOOTSTRAP`.
        Some(Compiler::Plain(dir)) => {
            command.env("WEIR_EBPF_TOOLCHAIN", LINKED).env("PATH", shell::path_with(Some(&dir))?)
        }
        None => command.env("PATH", shell::path_with(None)?),
    };
    Ok(command)
}

fn rustup_has_source(name: &str) -> bool {
    // `rustup which` looks the file up; asking the compiler itself would cost 0.3 s.
    let output = Command::new("rustup").args(["which", "--toolchain", name, "rustc"]).output();
    let Ok(output) = output else { return false };
    if !output.status.success() {
        return false;
    }
    let rustc = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    rustc.parent().is_some_and(has_source)
}

/// Does the compiler in this directory come with the source of `core`?
fn has_source(bin_dir: &Path) -> bool {
    bin_dir.parent().is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file())
}
