//! `.gopclntab`: the table of functions that the Go runtime itself reads, so that it survives `strip` (runtime/symtab.go,
//! debug/gosym/pclntab.go). Never answers from a text base that it cannot prove: an address that is off by a little is
//! inside an instruction.

use memchr::memmem;

use crate::tls_targets::elf::{Function, Image, Section};
use crate::tls_targets::source::Source;

/// Of Go 1.18 and 1.19.
const MAGIC_118: u32 = 0xffff_fff0;
/// Of Go 1.20 and later.
const MAGIC_120: u32 = 0xffff_fff1;
/// Padding, smallest instruction and size of a pointer, as on x86-64: between the magic and the counts.
const SHAPE: [u8; 4] = [0, 0, 1, 8];
const HEADER_SIZE: u64 = 72;
/// Of `moduledata.text`, Go 1.20 and later: behind the header's address, six slices and three words.
const MODULE_TEXT: u64 = 176;
const FUNCTION_SIZE: u64 = 8;
/// A program with all of Kubernetes in it has two hundred thousand.
const MAX_FUNCTIONS: u64 = 4_000_000;
/// Bytes of `.data.rel.ro` that are searched for a table that a C linker put there.
const MAX_SEARCH: u64 = 64 << 20;
/// Relocations that are looked at.
const MAX_RELOCATIONS: u64 = 4_000_000;
const RELOCATION_SIZE: u64 = 24;
/// Functions whose first instructions must agree with the text base.
const SAMPLE: u64 = 512;
/// Bytes of a function that hold its stack check.
const CHECK_SIZE: u64 = 16;

/// The table of one program.
pub(super) struct Pclntab<'a> {
    /// Names, each ended by 0.
    names: &'a [u8],
    /// What `pclnOffset` points to: the sorted functions, and what is known of each.
    functions: &'a [u8],
    count: u64,
    /// Virtual address that the functions' offsets count from.
    text: u64,
}

/// Why there is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// No table of a known version.
    Table,
    /// A table whose addresses are not certain.
    Text,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    address: u64,
    /// Virtual.
    end: u64,
    count: u64,
    names: u64,
    names_end: u64,
    functions: u64,
}

impl<'a> Pclntab<'a> {
    pub(super) fn read<R: Source<'a>>(image: &Image<'a, R>) -> Result<Self, Missing> {
        let header = header(image).ok_or(Missing::Table)?;
        let len = header.end.saturating_sub(header.functions);
        let names = image.bytes(header.names, header.names_end - header.names).ok_or(Missing::Table)?;
        let functions = image.bytes(header.functions, len).ok_or(Missing::Table)?;
        let table = Self { names, functions, count: header.count, text: 0 };
        let mut bases = [word(image, header.address + 24), module_text(image, header)].into_iter().flatten();
        let text = bases.find(|&text| text != 0 && table.fits(image, text)).ok_or(Missing::Text)?;
        Ok(Self { text, ..table })
    }

    /// The function of this name, padding behind it included.
    pub(super) fn function(&self, name: &str) -> Option<Function> {
        let needle: Vec<u8> = [0].into_iter().chain(name.bytes()).chain([0]).collect();
        let place = memmem::find(self.names, &needle)?;
        let name = u32::try_from(place + 1).ok()?;
        let index = (0..self.count).find(|&index| self.name(index) == Some(name))?;
        let (start, end) = (self.entry(index)?, self.entry(index + 1)?);
        let size = u64::from(end.checked_sub(start)?);
        let address = self.text.checked_add(u64::from(start))?;
        (size > 0).then_some(Function { address, size })
    }

    /// Bytes behind the text base. The entry behind the last function is where that one ends.
    fn entry(&self, index: u64) -> Option<u32> {
        u32_at(self.functions, usize::try_from(index.checked_mul(FUNCTION_SIZE)?).ok()?)
    }

    /// Where in the names a function's is.
    fn name(&self, index: u64) -> Option<u32> {
        let at = usize::try_from(index.checked_mul(FUNCTION_SIZE)?).ok()?;
        let record = usize::try_from(u32_at(self.functions, at.checked_add(4)?)?).ok()?;
        let is_its = u32_at(self.functions, record)? == u32_at(self.functions, at)?;
        is_its.then(|| u32_at(self.functions, record.checked_add(4)?))?
    }

    /// Whether functions begin where a text base says: at the right one about four of five check their stack first, at
    /// a wrong one hardly any.
    fn fits<R: Source<'a>>(&self, image: &Image<'a, R>, text: u64) -> bool {
        let step = (self.count / SAMPLE).max(1);
        let (mut seen, mut good) = (0_u32, 0_u32);
        for index in (0..self.count).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            let Some(address) = self.entry(index).and_then(|entry| text.checked_add(u64::from(entry))) else {
                return false;
            };
            let Some(code) = image.bytes(address, CHECK_SIZE) else { return false };
            if image.file_offset(address).is_none() {
                return false;
            }
            seen += 1;
            good += u32::from(checks_stack(code));
        }
        good >= 1 && good * 2 >= seen
    }
}

/// Begins with `cmp rsp,[r14+16]`, or with the `lea r12,[rsp-..]; cmp r12,[r14+16]` of larger frames.
fn checks_stack(code: &[u8]) -> bool {
    const SMALL: [u8; 4] = [0x49, 0x3b, 0x66, 0x10];
    const LARGE: [u8; 4] = [0x4d, 0x3b, 0x66, 0x10];
    let at = |offset: usize| code.get(offset..);
    code.starts_with(&SMALL)
        || code.starts_with(&[0x4c, 0x8d, 0x64, 0x24]) && at(5).is_some_and(|rest| rest.starts_with(&LARGE))
        || code.starts_with(&[0x4c, 0x8d, 0xa4, 0x24]) && at(8).is_some_and(|rest| rest.starts_with(&LARGE))
}

fn header<'a, R: Source<'a>>(image: &Image<'a, R>) -> Option<Header> {
    let section = |name| image.section(name).filter(|section| section.address != 0 && section.size != 0);
    [".gopclntab", ".data.rel.ro.gopclntab"]
        .into_iter()
        .filter_map(section)
        .find_map(|section| header_at(image, section.address, end(section)?))
        .or_else(|| search(image, section(".data.rel.ro")?))
}

fn end(section: Section) -> Option<u64> {
    section.address.checked_add(section.size)
}

/// A C linker that makes a position independent program merges the table into `.data.rel.ro`, aligned as it was.
fn search<'a, R: Source<'a>>(image: &Image<'a, R>, section: Section) -> Option<Header> {
    let bytes = image.bytes(section.address, section.size.min(MAX_SEARCH))?;
    let end = end(section)?;
    let mut magic = [0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
    for first in [0xf1, 0xf0] {
        magic[0] = first;
        let mut places = memmem::find_iter(bytes, &magic).filter_map(|place| section.address.checked_add(place as u64));
        if let Some(header) = places.find_map(|place| header_at(image, place, end)) {
            return Some(header);
        }
    }
    None
}

/// Checks all that a header says: its parts lie one behind the other.
fn header_at<'a, R: Source<'a>>(image: &Image<'a, R>, address: u64, end: u64) -> Option<Header> {
    let bytes = image.bytes(address, HEADER_SIZE)?;
    let known = matches!(u32_at(bytes, 0)?, MAGIC_118 | MAGIC_120) && bytes.get(4..8)? == SHAPE.as_slice();
    let count = u64_at(bytes, 8)?;
    let part = |at| address.checked_add(u64_at(bytes, at)?);
    let (names, units, files) = (part(32)?, part(40)?, part(48)?);
    let (positions, functions) = (part(56)?, part(64)?);
    let ordered = address < names && names < units && units <= files && files <= positions && positions <= functions;
    let fits = functions.checked_add((count.checked_add(1)?).checked_mul(FUNCTION_SIZE)?)? <= end;
    let is_good = known && (1..=MAX_FUNCTIONS).contains(&count) && address.is_multiple_of(8) && ordered && fits;
    is_good.then_some(Header { address, end, count, names, names_end: units, functions })
}

/// The text base that the runtime itself uses. Since Go 1.26 the table does not say it.
fn module_text<'a, R: Source<'a>>(image: &Image<'a, R>, header: Header) -> Option<u64> {
    let module = image.section(".go.module")?.address;
    let names_table = word(image, module)? == header.address;
    names_table.then(|| word(image, module.checked_add(MODULE_TEXT)?))?
}

/// An address in data, as it is in a program that was loaded where the file says: position independent programs keep it
/// in a relocation.
fn word<'a, R: Source<'a>>(image: &Image<'a, R>, address: u64) -> Option<u64> {
    relocated(image, address).or_else(|| u64_at(image.bytes(address, 8)?, 0))
}

/// The addend of the `R_X86_64_RELATIVE` of an address.
fn relocated<'a, R: Source<'a>>(image: &Image<'a, R>, address: u64) -> Option<u64> {
    const RELATIVE: u64 = object::elf::R_X86_64_RELATIVE as u64;
    let section = [".rela.dyn", ".rela"].into_iter().find_map(|name| image.section(name))?;
    let size = section.size.min(MAX_RELOCATIONS * RELOCATION_SIZE);
    let relocations = image.bytes(section.address, size)?;
    relocations
        .chunks_exact(RELOCATION_SIZE as usize)
        .find(|entry| u64_at(entry, 0) == Some(address) && u64_at(entry, 8) == Some(RELATIVE))
        .and_then(|entry| u64_at(entry, 16))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
