//! A cursor over bytes of a peer (RFC 8446 section 3): every step says whether there was enough.

/// What is left to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire<'a>(pub(super) &'a [u8]);

impl<'a> Wire<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    /// A vector whose length is one byte.
    pub(super) fn vector8(&mut self) -> Option<Self> {
        let len = self.u8()?;
        self.bytes(len.into()).map(Wire)
    }

    /// A vector whose length is two bytes.
    pub(super) fn vector16(&mut self) -> Option<Self> {
        let len = self.u16()?;
        self.bytes(len.into()).map(Wire)
    }

    /// All of it as numbers of two bytes; an odd byte at the end is left out.
    pub(super) fn numbers(self) -> impl Iterator<Item = u16> {
        self.0.chunks_exact(2).filter_map(|pair| pair.try_into().ok().map(u16::from_be_bytes))
    }
}
