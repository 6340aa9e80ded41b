//! `cargo xtask build`: the agent with its kernel object.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    ebpf,
    setup::{self, Purpose},
    shell,
};

/// Build the agent; the path of the program.
pub(crate) fn agent(release: bool) -> Result<PathBuf> {
    setup::ensure(Purpose::Build)?;
    let mut cargo = ebpf::cargo()?;
    cargo.args(["build", "--package", "agent", "--bin", "weir"]);
    if release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    Ok(shell::target_dir().join(if release { "release" } else { "debug" }).join("weir"))
}
