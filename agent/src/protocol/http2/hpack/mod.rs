//! HPACK (RFC 7541): header blocks of one direction to fields. Met in the middle of a connection, or after a block that was
//! not seen whole, it goes on with what it can know: a field is right, or unknown.

mod huffman;
mod table;

#[cfg(test)]
mod tests;

use self::table::Table;

/// Decoded bytes of one block that are kept; a block of a few bytes can stand for megabytes.
const MAX_BYTES: usize = 256 * 1024;
/// Fields of one block that are kept.
const MAX_FIELDS: usize = 1024;
/// Largest integer believed in: a string of that length fits no block.
const MAX_INTEGER: usize = 1 << 28;

/// One direction's compression state.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// The largest table that the receiver of the blocks ever allowed.
    allowed: usize,
}

/// Decoded fields in order: ranges into one buffer.
#[derive(Debug, Default)]
pub struct Fields {
    pub raw: Vec<u8>,
    pub fields: Vec<Field>,
    /// Some were left out: the block is too large.
    pub truncated: bool,
}

/// A field; `None`: it named an entry that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: Option<(u32, u32)>,
    pub value: Option<(u32, u32)>,
    /// Its sender forbids to compress it (section 6.2.3): a secret, or it should be.
    pub sensitive: bool,
}

/// Why a block cannot be read. What came before is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Truncated,
    InvalidIndex,
    InvalidHuffman,
    IntegerOverflow,
    InvalidSizeUpdate,
}

impl Fields {
    /// Empty, with its allocations kept.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.fields.clear();
        self.truncated = false;
    }

    /// A range of the buffer.
    pub fn text(&self, range: Option<(u32, u32)>) -> Option<&[u8]> {
        let (start, end) = range?;
        self.raw.get(start as usize..end as usize)
    }

    /// Whether one more field is kept, with that many bytes that are not here yet. Nothing is after one that is not.
    fn has_room(&mut self, bytes: usize) -> bool {
        self.truncated |= self.fields.len() >= MAX_FIELDS || self.raw.len() + bytes > MAX_BYTES;
        !self.truncated
    }

    fn append(&mut self, bytes: &[u8]) -> (u32, u32) {
        let start = self.raw.len();
        self.raw.extend_from_slice(bytes);
        (start as u32, self.raw.len() as u32)
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// From the connection's first byte.
    pub fn new() -> Self {
        Self { table: Table::new(), allowed: 4096 }
    }

    /// In the middle of a connection: entries exist that are not known.
    pub fn joined() -> Self {
        Self { table: Table::joined(), allowed: MAX_INTEGER }
    }

    /// `SETTINGS_HEADER_TABLE_SIZE` of the receiver of these blocks.
    pub fn set_limit(&mut self, bytes: u32) {
        self.allowed = self.allowed.max(bytes as usize);
    }

    /// A block was not seen, or not whole: what it inserted is not known.
    pub fn lose(&mut self) {
        self.table.lose();
        self.allowed = MAX_INTEGER;
    }

    /// Decode a block and append its fields.
    ///
    /// # Errors
    /// The block is not a whole number of fields, or none at all; the table is then as after [`Self::lose`].
    pub fn decode(&mut self, block: &[u8], fields: &mut Fields) -> Result<(), Error> {
        let mut rest = block;
        while !rest.is_empty() {
            if let Err(error) = self.field(&mut rest, fields) {
                self.lose();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.table.memory()
    }

    /// One representation (section 6).
    fn field(&mut self, rest: &mut &[u8], fields: &mut Fields) -> Result<(), Error> {
        let Some(&first) = rest.first() else { return Err(Error::Truncated) };
        if first & 0x80 != 0 {
            let (name, value) = self.table.get(integer(rest, 7)?).ok_or(Error::InvalidIndex)?;
            // Before it is copied: one byte of a block stands for a whole entry.
            if fields.has_room(name.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len)) {
                let name = name.map(|name| fields.append(name));
                let value = value.map(|value| fields.append(value));
                fields.fields.push(Field { name, value, sensitive: false });
            }
            return Ok(());
        }
        if first & 0xe0 == 0x20 {
            let size = integer(rest, 5)?;
            if size > self.allowed {
                return Err(Error::InvalidSizeUpdate);
            }
            self.table.resize(size);
            return Ok(());
        }
        let inserts = first & 0x40 != 0;
        let before = fields.raw.len();
        let name = match integer(rest, if inserts { 6 } else { 4 })? {
            0 => Some(string(rest, &mut fields.raw)?),
            index => self.table.get(index).ok_or(Error::InvalidIndex)?.0.map(|name| fields.append(name)),
        };
        let value = string(rest, &mut fields.raw)?;
        if inserts {
            self.table.insert(fields.text(name), fields.text(Some(value)).unwrap_or_default());
        }
        if fields.has_room(0) {
            fields.fields.push(Field { name, value: Some(value), sensitive: first & 0xf0 == 0x10 });
        } else {
            fields.raw.truncate(before);
        }
        Ok(())
    }
}

/// An integer whose first `bits` bits share a byte with something else (section 5.1).
fn integer(rest: &mut &[u8], bits: u8) -> Result<usize, Error> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(take(rest)?) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21, 28] {
        let byte = take(rest)?;
        value += usize::from(byte & 0x7f) << shift;
        if value > MAX_INTEGER {
            break;
        }
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::IntegerOverflow)
}

/// A string (section 5.2), appended to `raw`.
fn string(rest: &mut &[u8], raw: &mut Vec<u8>) -> Result<(u32, u32), Error> {
    let Some(&first) = rest.first() else { return Err(Error::Truncated) };
    let len = integer(rest, 7)?;
    let Some((bytes, behind)) = rest.split_at_checked(len) else { return Err(Error::Truncated) };
    *rest = behind;
    let start = raw.len();
    if first & 0x80 != 0 {
        huffman::decode(bytes, raw)?;
    } else {
        raw.extend_from_slice(bytes);
    }
    Ok((start as u32, raw.len() as u32))
}

fn take(rest: &mut &[u8]) -> Result<u8, Error> {
    let (&first, behind) = rest.split_first().ok_or(Error::Truncated)?;
    *rest = behind;
    Ok(first)
}
