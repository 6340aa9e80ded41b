//! Builds the kernel programs into the agent, or an empty stub when `WEIR_EBPF=stub`.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=WEIR_EBPF");
    println!("cargo:rerun-if-env-changed=WEIR_EBPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed=../agent-common/src");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    if env::var_os("WEIR_EBPF").is_some_and(|value| value == "stub") {
        return fs::write(out.join("agent-ebpf"), []).context("cannot write the stub");
    }
    let toolchain = env::var("WEIR_EBPF_TOOLCHAIN");
    let toolchain = match toolchain.as_deref() {
        Ok(name) => {
            // SAFETY: a build script has one thread. Set here and not by the caller, so that no other crate is built
            // with unstable features: a distribution's compiler needs it for `-Z build-std`.
            unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
            Toolchain::Custom(name)
        }
        Err(_) => Toolchain::Nightly,
    };
    aya_build::build_ebpf([Package { name: "agent-ebpf", root_dir: "../agent-ebpf", ..Package::default() }], toolchain)
        .context("cannot build the kernel programs; `cargo xtask setup` installs what they need")
}
