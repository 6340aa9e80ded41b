//! Bounded reads of user memory: the only home of verifier clamps.

use core::arch::asm;

use agent_common::limits::{IOVEC_MAX, RECORD_PAYLOAD_MAX, TAIL};
use aya_ebpf::helpers::generated::bpf_probe_read_user;

use crate::arch::{Kind, Source, Vector};
use crate::maps::{Scratch, forget};

/// `limit` at most, in a form that LLVM can neither remove nor move behind the use: the verifier must see the
/// comparison on the very register that the helper gets.
#[inline(always)]
pub(crate) fn clamp(value: u32, limit: u32) -> u32 {
    let mut value = value as u64;
    // SAFETY: an identity; it only hides the value's history from the optimiser.
    unsafe { asm!("{0} = {0}", inout(reg) value) };
    if value > limit as u64 { limit } else { value as u32 }
}

/// A small value from user memory.
#[inline(always)]
pub(crate) fn user<T: Copy + Default>(address: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the destination is ours and as long as said; the helper checks the source.
    let status = unsafe { bpf_probe_read_user((&raw mut value).cast(), size_of::<T>() as u32, address as *const _) };
    (status == 0).then_some(value)
}

/// `len` bytes (`limit` at most) from user memory.
///
/// # Safety
/// There is room for `limit` bytes at `target`: the verifier checks it.
#[inline(always)]
pub(crate) unsafe fn bytes(target: *mut u8, len: u32, limit: u32, address: u64) -> bool {
    // SAFETY: as above.
    unsafe { bpf_probe_read_user(target.cast(), clamp(len, limit), address as *const _) == 0 }
}

/// The first bytes (at most eight) of an operation that moved `moved` bytes, little-endian in a word, and their number.
#[inline(always)]
pub(crate) fn first_word(source: &Source, moved: u32) -> Option<(u64, u32)> {
    let (mut address, mut available) = (source.base, moved);
    if source.kind == Kind::Vectors {
        let vector: Vector = user(source.base)?;
        address = vector.base;
        if vector.len < moved as u64 {
            available = vector.len as u32;
        }
    } else if source.kind == Kind::Opaque {
        return None;
    }
    if available >= 8 {
        return user::<u64>(address).map(|word| (word, 8));
    }
    let len = clamp(available, 8);
    if len == 0 {
        return None;
    }
    let mut word = 0_u64;
    // SAFETY: at most eight bytes into eight bytes.
    let status = unsafe { bpf_probe_read_user((&raw mut word).cast(), len, address as *const _) };
    (status == 0).then_some((word, len))
}

/// Copy `wanted` bytes (at most a record's payload) at `address` into the scratch payload, `at` bytes in.
#[inline(always)]
pub(crate) fn piece(scratch: *mut Scratch, at: u32, wanted: u32, address: u64) -> bool {
    let at = clamp(at, RECORD_PAYLOAD_MAX as u32);
    let wanted = clamp(wanted, RECORD_PAYLOAD_MAX as u32);
    if wanted == 0 {
        return true;
    }
    // SAFETY: the payload has room for an offset and a piece of a record's payload each.
    unsafe {
        let target = (&raw mut (*scratch).payload).cast::<u8>().add(at as usize);
        bpf_probe_read_user(target.cast(), wanted, address as *const _) == 0
    }
}

/// Copy the first `wanted` bytes of an operation to the start of the scratch payload. Returns how many were copied;
/// fewer when vectors ran out or memory could not be read.
#[inline(never)]
pub(crate) fn head(scratch: *mut Scratch, source: &Source, wanted: u32) -> u32 {
    match source.kind {
        Kind::Buffer => further(scratch, source.base, wanted),
        Kind::Vectors => gather(scratch, source.base, source.count, wanted),
        Kind::Opaque => 0,
    }
}

/// Copy `wanted` bytes from a buffer to the start of the scratch payload. Returns how many were copied: all or none.
#[inline(always)]
pub(crate) fn further(scratch: *mut Scratch, address: u64, wanted: u32) -> u32 {
    if piece(scratch, 0, wanted, address) { wanted } else { 0 }
}

#[inline(always)]
fn gather(scratch: *mut Scratch, base: u64, count: u64, wanted: u32) -> u32 {
    // SAFETY: a field of a map value.
    let slot = unsafe { &raw mut (*scratch).locals.at };
    let mut at = forget(slot, 0) as u32;
    for index in 0..IOVEC_MAX as u64 {
        if index >= count || at >= wanted {
            break;
        }
        let Some(vector) = user::<Vector>(base.wrapping_add(index * size_of::<Vector>() as u64)) else { break };
        let left = wanted - at;
        let len = if vector.len < left as u64 { vector.len as u32 } else { left };
        if !piece(scratch, at, len, vector.base) {
            break;
        }
        at = forget(slot, u64::from(at + len)) as u32;
    }
    at
}

/// Copy the last bytes of an operation behind `head` copied ones, when `rest` bytes follow the first `skip`. Returns
/// how many.
#[inline(never)]
pub(crate) fn tail(scratch: *mut Scratch, source: &Source, head: u32, rest: u32, skip: u32) -> u32 {
    if source.kind != Kind::Buffer || rest < head + TAIL as u32 {
        return 0;
    }
    let at = clamp(head, RECORD_PAYLOAD_MAX as u32);
    // SAFETY: as in `piece`; the tail is shorter than a record's payload.
    unsafe {
        let target = (&raw mut (*scratch).payload).cast::<u8>().add(at as usize);
        let from = source.base.wrapping_add((skip + rest - TAIL as u32) as u64);
        if bpf_probe_read_user(target.cast(), TAIL as u32, from as *const _) == 0 { TAIL as u32 } else { 0 }
    }
}
