//! The running kernel's type information (BTF), read for member offsets. Pure: bytes in, offsets out.
//!
//! Format: Documentation/bpf/btf.rst. Only what offsets need is read; an unknown kind ends the reading with an error,
//! because its length is unknown.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
/// Anonymous members nest a few levels; a cycle would be malformed.
const DEPTH_MAX: usize = 16;

/// An index over BTF bytes.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`; type 1 is at index 0.
    offsets: Vec<u32>,
    /// Structures by name; the first of a name wins.
    structures: HashMap<&'a [u8], u32>,
    typedefs: HashMap<&'a [u8], u32>,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    members: u32,
    bitfields: bool,
    /// Size, or the type referred to.
    referred: u32,
    body: usize,
}

impl<'a> Btf<'a> {
    /// Index `bytes` (`/sys/kernel/btf/vmlinux`, native byte order).
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let magic = bytes.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        ensure!(magic == Some(MAGIC), "not BTF of this machine's byte order");
        let header = |at: usize| word(bytes, at).map(|value| value as usize).context("BTF header is cut short");
        let (len, type_at, type_len, string_at, string_len) =
            (header(4)?, header(8)?, header(12)?, header(16)?, header(20)?);
        let section = |at: usize, size: usize| {
            let start = len.checked_add(at)?;
            bytes.get(start..start.checked_add(size)?)
        };
        let types = section(type_at, type_len).context("BTF types are cut short")?;
        let strings = section(string_at, string_len).context("BTF strings are cut short")?;
        let mut btf = Self {
            types,
            strings,
            offsets: Vec::with_capacity(types.len() / 24),
            structures: HashMap::new(),
            typedefs: HashMap::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let found = btf.read(at).with_context(|| format!("BTF type at byte {at} is cut short"))?;
            btf.offsets.push(at as u32);
            let id = btf.offsets.len() as u32;
            match found.kind {
                STRUCT => _ = btf.structures.entry(btf.name(found.name)).or_insert(id),
                TYPEDEF => _ = btf.typedefs.entry(btf.name(found.name)).or_insert(id),
                _ => {}
            }
            let count = found.members as usize;
            at = found.body
                + match found.kind {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    STRUCT | UNION | 15 | 19 => count * 12,
                    6 | 13 => count * 8,
                    2 | 7..=12 | 16 | 18 => 0,
                    other => bail!("BTF kind {other} is not known to this version of Weir"),
                };
        }
        Ok(btf)
    }

    /// Whether a tracepoint can be attached through BTF.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.typedefs.contains_key(format!("btf_trace_{name}").as_bytes())
    }

    /// Byte offset of a member, given as a path through named members; anonymous ones are searched.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32> {
        let mut id = *self
            .structures
            .get(structure.as_bytes())
            .with_context(|| format!("this kernel's BTF has no struct {structure}"))?;
        let mut bits = 0;
        for name in path.split('.') {
            let (at, member) = self
                .member(id, name.as_bytes(), DEPTH_MAX)
                .with_context(|| format!("struct {structure} of this kernel has no member {path}"))?;
            bits += at;
            id = member;
        }
        ensure!(bits % 8 == 0, "member {path} of struct {structure} is a bit field on this kernel");
        Ok(bits / 8)
    }

    /// Offset in bits and type of a member.
    fn member(&self, id: u32, name: &[u8], depth: usize) -> Option<(u32, u32)> {
        let owner = self.resolve(id)?;
        if depth == 0 || !matches!(owner.kind, STRUCT | UNION) {
            return None;
        }
        for index in 0..owner.members as usize {
            let at = owner.body + index * 12;
            let (member, kind, offset) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let offset = if owner.bitfields { offset & 0x00ff_ffff } else { offset };
            let member = self.name(member);
            if member == name {
                return Some((offset, kind));
            }
            if member.is_empty()
                && let Some((inner, found)) = self.member(kind, name, depth - 1)
            {
                return Some((offset + inner, found));
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..DEPTH_MAX {
            let at = *self.offsets.get((id as usize).checked_sub(1)?)?;
            let found = self.read(at as usize)?;
            if !matches!(found.kind, TYPEDEF | 9..=11 | 18) {
                return Some(found);
            }
            id = found.referred;
        }
        None
    }

    fn read(&self, at: usize) -> Option<Type> {
        let info = word(self.types, at + 4)?;
        Some(Type {
            name: word(self.types, at)?,
            kind: info >> 24 & 0x1f,
            members: info & 0xffff,
            bitfields: info >> 31 == 1,
            referred: word(self.types, at + 8)?,
            body: at + 12,
        })
    }

    fn name(&self, at: u32) -> &'a [u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    bytes.get(at..end)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct a { int x; union { struct { char p[4]; int q; }; long r; }; struct b in; }; struct b { int y; int z:3; }`
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0x\0q\0r\0in\0b\0y\0z\0btf_trace_t\0";
        let at = |name: &str| {
            let want = format!("\0{name}\0");
            strings.windows(want.len()).position(|w| w == want.as_bytes()).unwrap() as u32 + 1
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([at("int"), 1 << 24, 4, 0x20]); // 1
        types.extend([0, STRUCT << 24 | 1, 8, at("q"), 1, 32]); // 2
        types.extend([0, UNION << 24 | 2, 8, 0, 2, 0, at("r"), 1, 0]); // 3
        types.extend([at("b"), 1 << 31 | STRUCT << 24 | 2, 8, at("y"), 1, 0, at("z"), 1, (3 << 24) + 35]); // 4
        types.extend([at("a"), STRUCT << 24 | 3, 24, at("x"), 1, 0, 0, 3, 64, at("in"), 4, 128]); // 5
        types.extend([at("btf_trace_t"), TYPEDEF << 24, 1]); // 6
        let types: Vec<u8> = types.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for value in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(value.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_through_names_and_anonymous_structures() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("a", "x").unwrap(), 0);
        assert_eq!(btf.offset("a", "q").unwrap(), 12);
        assert_eq!(btf.offset("a", "r").unwrap(), 8);
        assert_eq!(btf.offset("a", "in.y").unwrap(), 16);
        assert!(btf.offset("a", "in.z").unwrap_err().to_string().contains("bit field"));
        assert!(btf.offset("a", "none").unwrap_err().to_string().contains("no member none"));
        assert!(btf.offset("none", "x").unwrap_err().to_string().contains("no struct none"));
        assert!(btf.has_tracepoint("t") && !btf.has_tracepoint("u"));
    }

    #[test]
    fn a_cut_or_foreign_file_is_an_error_and_never_a_panic() {
        let bytes = sample();
        for len in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..len]).is_err(), "cut at {len}");
        }
        assert!(Btf::parse(b"\x7fELF....").is_err());
    }
}
