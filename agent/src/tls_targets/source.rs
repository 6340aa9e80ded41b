//! Where the bytes of a program or library come from. What is read in small is kept as long as the file is looked at;
//! what is searched from end to end is not, or one browser would cost the agent its memory.

use object::ReadRef;

/// Bytes that can be lent, or copied without being kept.
pub trait Source<'a>: ReadRef<'a> {
    /// Fill `into` with what is at `offset`. None when it is not all there.
    fn copy(self, offset: u64, into: &mut [u8]) -> Option<()>;
}

impl<'a> Source<'a> for &'a [u8] {
    fn copy(self, offset: u64, into: &mut [u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        into.copy_from_slice(self.get(start..start.checked_add(into.len())?)?);
        Some(())
    }
}
