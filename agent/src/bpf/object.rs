//! The kernel object that this binary carries.

use anyhow::{Result, ensure};

#[repr(C, align(8))]
struct Aligned<B: ?Sized>(B);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/agent-ebpf")));

/// ELF bytes of the kernel programs.
pub fn object() -> Result<&'static [u8]> {
    let bytes = &OBJECT.0;
    ensure!(
        !bytes.is_empty(),
        "this binary was built without kernel programs (WEIR_EBPF=stub); build it with `cargo xtask build`"
    );
    Ok(bytes)
}
