//! A 64-bit little-endian ELF file, read where it is asked for: segments, sections, functions by name. Reads little of
//! a large file, never all of it. The file is hostile (containers bring their own): every number in it is checked
//! before it is used, every table has a bound.

use std::{cell::OnceCell, fmt};

use memchr::memmem;
use object::elf;

use super::source::Source;

/// Of program and section headers; more is not an executable of this world.
const MAX_HEADERS: u16 = 4096;
/// Entries of the dynamic section that are looked at.
const MAX_DYNAMIC: u64 = 1024;
/// Of one symbol table (a browser with all its symbols has two millions).
const MAX_SYMBOLS: u64 = 4_000_000;
/// Bytes of one string table, and of any other single read.
const MAX_READ: u64 = 256 << 20;
/// Entries of one chain of the hash table; a table that a linker wrote has a handful.
const MAX_CHAIN: u64 = 1024;
/// Places in the string table that end in the name looked for: linkers share tails, so there may be a few.
const MAX_PLACES: usize = 64;
/// Of each table of relocations.
const MAX_RELOCATIONS: u64 = 1 << 18;
/// Bytes of the name of an imported function.
const MAX_NAME: u64 = 256;
/// Bytes of one note segment.
const MAX_NOTES: u64 = 1 << 16;

const SYMBOL_SIZE: u64 = 24;
const RELOCATION_SIZE: u64 = 24;

/// Not a 64-bit little-endian ELF executable or library of x86-64 or arm64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotElf;

impl fmt::Display for NotElf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a 64-bit little-endian ELF file of x86-64 or arm64")
    }
}

impl std::error::Error for NotElf {}

/// Where a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Virtual; 0 for what is not mapped.
    pub address: u64,
    /// In the file, bytes.
    pub offset: u64,
    /// In the file, bytes; 0 for what has no bytes in it.
    pub size: u64,
}

/// Where a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Virtual.
    pub address: u64,
    /// Bytes, never 0.
    pub size: u64,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    /// Bytes in the file.
    size: u64,
}

#[derive(Clone, Copy, Debug)]
struct SectionHeader {
    name: u32,
    kind: u32,
    link: u32,
    section: Section,
}

/// What the dynamic section says, virtual addresses and sizes in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Dynamic {
    hash: u64,
    symbols: u64,
    strings: u64,
    strings_size: u64,
    /// Relocations of procedure linkage, then all others.
    relocations: [(u64, u64); 2],
}

#[derive(Clone, Copy, Debug)]
struct Table<'a> {
    symbols: &'a [u8],
    strings: &'a [u8],
}

/// One file.
pub struct Image<'a, R: Source<'a>> {
    data: R,
    machine: u16,
    segments: Vec<Segment>,
    sections: Vec<SectionHeader>,
    section_names: &'a [u8],
    dynamic: OnceCell<Option<Dynamic>>,
    symtab: OnceCell<Option<Table<'a>>>,
    dynsym: OnceCell<Option<Table<'a>>>,
}

impl<'a, R: Source<'a>> Image<'a, R> {
    /// Reads the headers. A file without section headers is fine, one without segments is not.
    pub fn parse(data: R) -> Result<Self, NotElf> {
        let header = data.read_bytes_at(0, 64).map_err(|()| NotElf)?;
        let is_ours = header.starts_with(&elf::ELFMAG)
            && header.get(4) == Some(&elf::ELFCLASS64)
            && header.get(5) == Some(&elf::ELFDATA2LSB);
        let kind = u16_at(header, 16).ok_or(NotElf)?;
        let machine = u16_at(header, 18).ok_or(NotElf)?;
        if !is_ours
            || !matches!(kind, elf::ET_EXEC | elf::ET_DYN)
            || !matches!(machine, elf::EM_X86_64 | elf::EM_AARCH64)
        {
            return Err(NotElf);
        }
        let len = data.len().map_err(|()| NotElf)?;
        let segments = segments(data, header, len).ok_or(NotElf)?;
        let sections = sections(data, header, len).unwrap_or_default();
        let section_names = u16_at(header, 62)
            .and_then(|index| sections.get(usize::from(index)))
            .filter(|names| names.section.size <= MAX_READ)
            .and_then(|names| data.read_bytes_at(names.section.offset, names.section.size).ok())
            .unwrap_or_default();
        Ok(Self {
            data,
            machine,
            segments,
            sections,
            section_names,
            dynamic: OnceCell::new(),
            symtab: OnceCell::new(),
            dynsym: OnceCell::new(),
        })
    }

    /// Else it is arm64.
    pub fn is_x86_64(&self) -> bool {
        self.machine == elf::EM_X86_64
    }

    /// The first section of this name.
    pub fn section(&self, name: &str) -> Option<Section> {
        let named = |header: &&SectionHeader| string_is(self.section_names, header.name, name.as_bytes());
        self.sections.iter().find(named).map(|header| header.section)
    }

    /// `len` bytes of the file that are mapped at a virtual address; none when any of them is not.
    pub fn bytes(&self, address: u64, len: u64) -> Option<&'a [u8]> {
        if len > MAX_READ {
            return None;
        }
        self.data.read_bytes_at(self.mapped(address, len)?, len).ok()
    }

    /// As [`Image::bytes`], into a buffer of the caller's: nothing is kept.
    pub fn copy(&self, address: u64, into: &mut [u8]) -> Option<()> {
        self.data.copy(self.mapped(address, into.len() as u64)?, into)
    }

    /// Where in the file `len` bytes are that are mapped at a virtual address.
    fn mapped(&self, address: u64, len: u64) -> Option<u64> {
        let (segment, within) = self.segment(address)?;
        if len > segment.size - within {
            return None;
        }
        segment.offset.checked_add(within)
    }

    /// Where in the file the instruction at a virtual address is; only of what is mapped executable.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let (segment, within) = self.segment(address)?;
        if segment.flags & elf::PF_X == 0 {
            return None;
        }
        segment.offset.checked_add(within)
    }

    /// The loaded segment of an address, and how far in it: the first, so that all methods agree on files with several.
    fn segment(&self, address: u64) -> Option<(&Segment, u64)> {
        self.segments.iter().filter(|segment| segment.kind == elf::PT_LOAD).find_map(|segment| {
            let within = address.checked_sub(segment.address)?;
            (within < segment.size).then_some((segment, within))
        })
    }

    /// A function that the file defines: exported, else local. None when two different ones have the name.
    pub fn function(&self, name: &str) -> Option<Function> {
        let exported = match self.dynamic() {
            Some(dynamic) if dynamic.hash != 0 => self.exported(dynamic, name),
            _ => self.dynsym().and_then(|table| table.function(name)),
        };
        exported.or_else(|| self.symtab()?.function(name))
    }

    /// Every function that the file names: of the full symbol table, else of the dynamic one. Unsorted, bounded.
    pub fn functions(&self, pick: &mut dyn FnMut(&[u8], Function)) {
        let Some(table) = self.symtab().or_else(|| self.dynsym()) else { return };
        for symbol in table.symbols.chunks_exact(SYMBOL_SIZE as usize) {
            let Some(function) = function(symbol) else { continue };
            if let Some(name) = u32_at(symbol, 0).and_then(|at| string(table.strings, at)) {
                pick(name, function);
            }
        }
    }

    /// The GNU build id.
    pub fn build_id(&self) -> Option<&'a [u8]> {
        self.segments
            .iter()
            .filter(|segment| segment.kind == elf::PT_NOTE && segment.size <= MAX_NOTES)
            .find_map(|segment| build_id(self.data.read_bytes_at(segment.offset, segment.size).ok()?))
    }

    fn dynamic(&self) -> Option<Dynamic> {
        *self.dynamic.get_or_init(|| {
            let segment = self.segments.iter().find(|segment| segment.kind == elf::PT_DYNAMIC)?;
            let entries = self.data.read_bytes_at(segment.offset, segment.size.min(MAX_DYNAMIC * 16)).ok()?;
            let mut dynamic = Dynamic::default();
            for entry in entries.chunks_exact(16) {
                let (tag, value) = (u64_at(entry, 0)? as i64, u64_at(entry, 8)?);
                if tag == elf::DT_NULL {
                    break;
                } else if tag == elf::DT_GNU_HASH {
                    dynamic.hash = value;
                } else if tag == elf::DT_SYMTAB {
                    dynamic.symbols = value;
                } else if tag == elf::DT_STRTAB {
                    dynamic.strings = value;
                } else if tag == elf::DT_STRSZ {
                    dynamic.strings_size = value;
                } else if tag == elf::DT_JMPREL {
                    dynamic.relocations[0].0 = value;
                } else if tag == elf::DT_PLTRELSZ {
                    dynamic.relocations[0].1 = value;
                } else if tag == elf::DT_RELA {
                    dynamic.relocations[1].0 = value;
                } else if tag == elf::DT_RELASZ {
                    dynamic.relocations[1].1 = value;
                }
            }
            Some(dynamic)
        })
    }

    /// Looks a name up in the GNU hash table: a few small reads, mostly one.
    fn exported(&self, dynamic: Dynamic, name: &str) -> Option<Function> {
        let header = self.bytes(dynamic.hash, 16)?;
        let (buckets, first) = (u64::from(u32_at(header, 0)?), u64::from(u32_at(header, 4)?));
        let (words, shift) = (u64::from(u32_at(header, 8)?), u32_at(header, 12)?);
        let hash = elf::gnu_hash(name.as_bytes());

        let filter = dynamic.hash.checked_add(16)?;
        let word = self.bytes(filter.checked_add(8 * u64::from(hash / 64).checked_rem(words)?)?, 8)?;
        let bits = 1 << (hash % 64) | 1 << (hash.checked_shr(shift).unwrap_or(0) % 64);
        if u64_at(word, 0)? & bits != bits {
            return None;
        }

        let table = filter.checked_add(8 * words)?;
        let bucket = self.bytes(table.checked_add(4 * u64::from(hash).checked_rem(buckets)?)?, 4)?;
        let start = u64::from(u32_at(bucket, 0)?);
        let chains = table.checked_add(4 * buckets)?;
        for index in start..start.checked_add(MAX_CHAIN)? {
            let chain = self.bytes(chains.checked_add(4 * index.checked_sub(first)?)?, 4)?;
            let entry = u32_at(chain, 0)?;
            if entry | 1 == hash | 1
                && let Some(symbol) = self.bytes(dynamic.symbols.checked_add(index * SYMBOL_SIZE)?, SYMBOL_SIZE)
                && self.dynamic_string_is(dynamic, u32_at(symbol, 0)?, name)
                && let Some(function) = function(symbol)
            {
                return Some(function);
            }
            if entry & 1 == 1 {
                return None;
            }
        }
        None
    }

    fn dynamic_string_is(&self, dynamic: Dynamic, at: u32, name: &str) -> bool {
        let (at, len) = (u64::from(at), name.len() as u64 + 1);
        at + len <= dynamic.strings_size
            && dynamic
                .strings
                .checked_add(at)
                .and_then(|address| self.bytes(address, len))
                .and_then(|bytes| bytes.strip_suffix(b"\0"))
                .is_some_and(|bytes| bytes == name.as_bytes())
    }

    /// The name whose address the dynamic linker writes to a slot of the global offset table.
    pub fn imported(&self, slot: u64) -> Option<&'a [u8]> {
        let dynamic = self.dynamic()?;
        dynamic.relocations.into_iter().find_map(|(address, size)| {
            let relocations = self.bytes(address, size.min(MAX_RELOCATIONS * RELOCATION_SIZE))?;
            let relocation = relocations
                .chunks_exact(RELOCATION_SIZE as usize)
                .find(|relocation| u64_at(relocation, 0) == Some(slot) && self.is_address_of_symbol(relocation))?;
            let index = u64::from(u32_at(relocation, 12)?);
            let symbol = self.bytes(dynamic.symbols.checked_add(index * SYMBOL_SIZE)?, SYMBOL_SIZE)?;
            let at = u64::from(u32_at(symbol, 0)?);
            let address = dynamic.strings.checked_add(at)?;
            let len = dynamic.strings_size.checked_sub(at)?.min(MAX_NAME);
            let name = self.bytes(address, len)?;
            name.get(..memchr::memchr(0, name)?)
        })
    }

    fn is_address_of_symbol(&self, relocation: &[u8]) -> bool {
        let kinds = if self.is_x86_64() {
            [elf::R_X86_64_JUMP_SLOT, elf::R_X86_64_GLOB_DAT]
        } else {
            [elf::R_AARCH64_JUMP_SLOT, elf::R_AARCH64_GLOB_DAT]
        };
        u32_at(relocation, 8).is_some_and(|kind| kinds.contains(&kind))
    }

    fn symtab(&self) -> Option<Table<'a>> {
        *self.symtab.get_or_init(|| self.table(elf::SHT_SYMTAB))
    }

    fn dynsym(&self) -> Option<Table<'a>> {
        *self.dynsym.get_or_init(|| self.table(elf::SHT_DYNSYM))
    }

    fn table(&self, kind: u32) -> Option<Table<'a>> {
        let symbols = self.sections.iter().find(|header| header.kind == kind)?;
        let strings = self.sections.get(usize::try_from(symbols.link).ok()?)?;
        if symbols.section.size > MAX_SYMBOLS * SYMBOL_SIZE || strings.section.size > MAX_READ {
            return None;
        }
        Some(Table {
            symbols: self.data.read_bytes_at(symbols.section.offset, symbols.section.size).ok()?,
            strings: self.data.read_bytes_at(strings.section.offset, strings.section.size).ok()?,
        })
    }
}

impl<'a, R: Source<'a>> fmt::Debug for Image<'a, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Table<'_> {
    /// Searches the strings before the symbols: nearly always the name is not there, and this is the fastest way to
    /// know.
    fn function(&self, name: &str) -> Option<Function> {
        let needle: Vec<u8> = name.bytes().chain([0]).collect();
        let places: Vec<u32> = memmem::find_iter(self.strings, &needle)
            .take(MAX_PLACES)
            .filter_map(|place| u32::try_from(place).ok())
            .collect();
        if places.is_empty() {
            return None;
        }
        let mut found: Option<Function> = None;
        for symbol in self.symbols.chunks_exact(SYMBOL_SIZE as usize) {
            if !places.contains(&u32_at(symbol, 0)?) {
                continue;
            }
            match (found, function(symbol)) {
                (Some(known), Some(other)) if known != other => return None,
                (None, other) => found = other,
                _ => {}
            }
        }
        found
    }
}

/// The function that an entry of a symbol table defines.
fn function(symbol: &[u8]) -> Option<Function> {
    let kind = symbol.get(4)? & 0xf;
    let section = u16_at(symbol, 6)?;
    let (address, size) = (u64_at(symbol, 8)?, u64_at(symbol, 16)?);
    (kind == elf::STT_FUNC && section != elf::SHN_UNDEF && address != 0 && size != 0)
        .then_some(Function { address, size })
}

fn segments<'a, R: Source<'a>>(data: R, header: &[u8], len: u64) -> Option<Vec<Segment>> {
    let (offset, count) = (u64_at(header, 32)?, u16_at(header, 56)?);
    if u16_at(header, 54)? != 56 || count > MAX_HEADERS {
        return None;
    }
    let table = data.read_bytes_at(offset, u64::from(count) * 56).ok()?;
    let segment = |entry: &[u8]| {
        let segment = Segment {
            kind: u32_at(entry, 0)?,
            flags: u32_at(entry, 4)?,
            offset: u64_at(entry, 8)?,
            address: u64_at(entry, 16)?,
            size: u64_at(entry, 32)?,
        };
        (segment.offset.checked_add(segment.size)? <= len && segment.size > 0).then_some(segment)
    };
    Some(table.chunks_exact(56).filter_map(segment).collect())
}

fn sections<'a, R: Source<'a>>(data: R, header: &[u8], len: u64) -> Option<Vec<SectionHeader>> {
    let (offset, count) = (u64_at(header, 40)?, u16_at(header, 60)?);
    if u16_at(header, 58)? != 64 || count > MAX_HEADERS {
        return None;
    }
    let table = data.read_bytes_at(offset, u64::from(count) * 64).ok()?;
    // All are kept, those without bytes too: others refer to them by index.
    let section = |entry: &[u8]| {
        let kind = u32_at(entry, 4)?;
        let (offset, size) = (u64_at(entry, 24)?, u64_at(entry, 32)?);
        let in_file = kind != elf::SHT_NOBITS && offset.checked_add(size).is_some_and(|end| end <= len);
        Some(SectionHeader {
            name: u32_at(entry, 0)?,
            kind,
            link: u32_at(entry, 40)?,
            section: Section { address: u64_at(entry, 16)?, offset, size: if in_file { size } else { 0 } },
        })
    };
    table.chunks_exact(64).map(section).collect()
}

/// The description of the GNU build id among notes.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    let padded = |len: u32| usize::try_from(len).ok()?.checked_next_multiple_of(4);
    loop {
        let (name_len, len, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let rest = notes.get(12..)?;
        let (name, rest) = rest.split_at_checked(padded(name_len)?)?;
        if kind == elf::NT_GNU_BUILD_ID && name == b"GNU\0" {
            return rest.get(..usize::try_from(len).ok()?).filter(|id| !id.is_empty());
        }
        notes = rest.get(padded(len)?..)?;
    }
}

/// A string of a string table, without its end.
fn string(strings: &[u8], at: u32) -> Option<&[u8]> {
    let rest = strings.get(usize::try_from(at).ok()?..)?;
    rest.get(..memchr::memchr(0, rest)?)
}

fn string_is(strings: &[u8], at: u32, name: &[u8]) -> bool {
    usize::try_from(at)
        .ok()
        .and_then(|at| strings.get(at..))
        .and_then(|rest| rest.strip_prefix(name))
        .is_some_and(|rest| rest.first() == Some(&0))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests;
