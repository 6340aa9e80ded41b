//! Small ELF files for tests: functions at fixed addresses, exported or local, with a hash table, notes and imports.

/// Virtual addresses are this far from offsets in the file.
pub(super) const BIAS: u64 = 0x10_0000;
/// Of the first function; each further one is [`STRIDE`] behind.
pub(super) const TEXT: u64 = 0x2000;
pub(super) const STRIDE: u64 = 0x400;
/// Of the first slot of the global offset table.
pub(super) const SLOTS: u64 = 0x1800;

/// What to put in the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) exported: Vec<(&'static str, Vec<u8>)>,
    pub(super) local: Vec<(&'static str, Vec<u8>)>,
    /// Names for the slots.
    pub(super) imported: Vec<&'static str>,
    pub(super) build_id: Vec<u8>,
    /// `EM_AARCH64` instead of `EM_X86_64`.
    pub(super) is_arm64: bool,
}

/// The virtual address of a function, by its number: exported ones first.
pub(super) const fn address(number: u64) -> u64 {
    BIAS + TEXT + number * STRIDE
}

/// A `call rel32` (0xe8) or `jmp rel32` (0xe9) that lies at an address.
pub(super) fn branch(opcode: u8, at: u64, target: u64) -> Vec<u8> {
    let distance = target.wrapping_sub(at + 5) as u32;
    [&[opcode], distance.to_le_bytes().as_slice()].concat()
}

impl Sample {
    pub(super) fn build(&self) -> Vec<u8> {
        let functions: Vec<_> = self.exported.iter().chain(&self.local).collect();
        let text_size = functions.len() as u64 * STRIDE;
        let mut file = Writer(vec![0; 0x1000]);

        // Dynamic symbols: none, the imported, the exported.
        let mut strings = Strings(vec![0]);
        let mut symbols = vec![[0u8; 24]];
        symbols.extend(self.imported.iter().map(|name| symbol(strings.add(name), 0, 0, 0)));
        let first = symbols.len();
        for (number, (name, code)) in (0..).zip(&self.exported) {
            symbols.push(symbol(strings.add(name), 1, address(number), code.len() as u64));
        }
        let symbols_at = file.put(&symbols.concat());
        let strings_at = file.put(&strings.0);

        // One bucket, a filter that passes everything.
        let mut hash = [1u32, first as u32, 1, 0].map(u32::to_le_bytes).concat();
        hash.extend([0xff; 8]);
        hash.extend((if self.exported.is_empty() { 0 } else { first as u32 }).to_le_bytes());
        for (number, (name, _)) in self.exported.iter().enumerate() {
            let is_last = u32::from(number + 1 == self.exported.len());
            hash.extend((object::elf::gnu_hash(name.as_bytes()) & !1 | is_last).to_le_bytes());
        }
        let hash_at = file.put(&hash);

        let mut relocations = Vec::new();
        for number in 0..self.imported.len() as u64 {
            relocations.extend((BIAS + SLOTS + 8 * number).to_le_bytes());
            relocations.extend((u64::from(object::elf::R_X86_64_JUMP_SLOT) | (number + 1) << 32).to_le_bytes());
            relocations.extend([0; 8]);
        }
        let relocations_at = file.put(&relocations);
        let dynamic: Vec<u8> = [
            (object::elf::DT_SYMTAB as u64, BIAS + symbols_at),
            (object::elf::DT_STRTAB as u64, BIAS + strings_at),
            (object::elf::DT_STRSZ as u64, strings.0.len() as u64),
            (object::elf::DT_GNU_HASH as u64, BIAS + hash_at),
            (object::elf::DT_JMPREL as u64, BIAS + relocations_at),
            (object::elf::DT_PLTRELSZ as u64, relocations.len() as u64),
            (0, 0),
        ]
        .into_iter()
        .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat())
        .collect();
        let dynamic_at = file.put(&dynamic);
        let mut note = [4, self.build_id.len() as u32, object::elf::NT_GNU_BUILD_ID].map(u32::to_le_bytes).concat();
        note.extend(b"GNU\0");
        note.extend(&self.build_id);
        let note_at = file.put(&note);
        assert!(file.0.len() as u64 <= SLOTS);

        file.0.resize(TEXT as usize, 0);
        for (_, code) in &functions {
            assert!(code.len() as u64 <= STRIDE);
            let end = file.0.len() + STRIDE as usize;
            file.0.extend(code);
            file.0.resize(end, 0xcc);
        }

        // The full table: all functions.
        let mut strings = Strings(vec![0]);
        let mut symbols = vec![[0u8; 24]];
        for (number, (name, code)) in (0..).zip(&functions) {
            symbols.push(symbol(strings.add(name), 1, address(number), code.len() as u64));
        }
        let (symtab_at, symtab) = (file.put(&symbols.concat()), symbols.len() as u64 * 24);
        let strtab_at = file.put(&strings.0);
        let names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0";
        let names_at = file.put(names);
        let sections = [
            section(0, object::elf::SHT_NULL, 0, 0, 0, 0),
            section(1, object::elf::SHT_PROGBITS, BIAS + TEXT, TEXT, text_size, 0),
            section(7, object::elf::SHT_SYMTAB, 0, symtab_at, symtab, 3),
            section(15, object::elf::SHT_STRTAB, 0, strtab_at, strings.0.len() as u64, 0),
            section(23, object::elf::SHT_STRTAB, 0, names_at, names.len() as u64, 0),
        ];
        let sections_at = file.put(&sections.concat());

        let segments = [
            segment(object::elf::PT_LOAD, object::elf::PF_R, 0, TEXT),
            segment(object::elf::PT_LOAD, object::elf::PF_R | object::elf::PF_X, TEXT, text_size),
            segment(object::elf::PT_DYNAMIC, object::elf::PF_R, dynamic_at, dynamic.len() as u64),
            segment(object::elf::PT_NOTE, object::elf::PF_R, note_at, note.len() as u64),
        ];
        let machine = if self.is_arm64 { object::elf::EM_AARCH64 } else { object::elf::EM_X86_64 };
        file.header(machine, &segments, sections.len() as u16, sections_at);
        file.0
    }
}

/// A file that is nothing but sections with these names, at these offsets, all of them mapped executable.
pub(super) fn sections(parts: &[(&str, u64, Vec<u8>)]) -> Vec<u8> {
    let mut file = Writer(vec![0; 0x1000]);
    let mut names = Strings(vec![0]);
    let mut headers = vec![section(0, object::elf::SHT_NULL, 0, 0, 0, 0)];
    for (name, offset, bytes) in parts {
        assert!(file.0.len() as u64 <= *offset);
        file.0.resize(*offset as usize, 0);
        file.0.extend(bytes);
        headers.push(section(
            names.add(name),
            object::elf::SHT_PROGBITS,
            BIAS + offset,
            *offset,
            bytes.len() as u64,
            0,
        ));
    }
    let size = file.0.len() as u64;
    let shstrtab = names.add(".shstrtab");
    let names_at = file.put(&names.0);
    headers.push(section(shstrtab, object::elf::SHT_STRTAB, 0, names_at, names.0.len() as u64, 0));
    let sections_at = file.put(&headers.concat());
    let segments = [segment(object::elf::PT_LOAD, object::elf::PF_R | object::elf::PF_X, 0, size)];
    file.header(object::elf::EM_X86_64, &segments, headers.len() as u16, sections_at);
    file.0
}

struct Writer(Vec<u8>);

impl Writer {
    /// The last section has the names of the others.
    fn header(&mut self, machine: u16, segments: &[[u8; 56]], sections: u16, sections_at: u64) {
        let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header.extend([object::elf::ET_DYN, machine, 1, 0].map(u16::to_le_bytes).concat());
        header.extend([0, 64, sections_at].map(u64::to_le_bytes).concat());
        header.extend([0, 0, 64, 56, segments.len() as u16, 64, sections, sections - 1].map(u16::to_le_bytes).concat());
        header.extend(segments.concat());
        assert!(header.len() <= 0x1000);
        self.0.splice(..header.len(), header);
    }

    /// Where it is.
    fn put(&mut self, bytes: &[u8]) -> u64 {
        let at = self.0.len().next_multiple_of(8);
        self.0.resize(at, 0);
        self.0.extend(bytes);
        at as u64
    }
}

struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, name: &str) -> u32 {
        let at = self.0.len() as u32;
        self.0.extend(name.as_bytes());
        self.0.push(0);
        at
    }
}

fn symbol(name: u32, section: u16, address: u64, size: u64) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..4].copy_from_slice(&name.to_le_bytes());
    bytes[4] = object::elf::STB_GLOBAL << 4 | object::elf::STT_FUNC;
    bytes[6..8].copy_from_slice(&section.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..].copy_from_slice(&size.to_le_bytes());
    bytes
}

fn segment(kind: u32, flags: u32, offset: u64, size: u64) -> [u8; 56] {
    let mut bytes = [0; 56];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    for (at, word) in (8..).step_by(8).zip([offset, BIAS + offset, BIAS + offset, size, size, 0x1000]) {
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn section(name: u32, kind: u32, address: u64, offset: u64, size: u64, link: u32) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(&name.to_le_bytes());
    bytes[4..8].copy_from_slice(&kind.to_le_bytes());
    for (at, word) in (16..).step_by(8).zip([address, offset, size]) {
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    bytes[40..44].copy_from_slice(&link.to_le_bytes());
    bytes
}
