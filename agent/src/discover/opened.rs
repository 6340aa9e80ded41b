//! An open executable, read as the search for TLS libraries wants it. Never mapped: somebody else may cut the file short
//! meanwhile, and that would kill who reads a mapping.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use object::{ReadCache, ReadRef};

use crate::tls_targets::source::Source;

/// An open file.
#[derive(Debug)]
pub struct Opened {
    file: File,
    lent: ReadCache<File>,
}

impl Opened {
    /// # Errors
    /// There is no descriptor left.
    pub fn new(file: &File) -> io::Result<Self> {
        Ok(Self { file: file.try_clone()?, lent: ReadCache::new(file.try_clone()?) })
    }
}

impl<'a> ReadRef<'a> for &'a Opened {
    fn len(self) -> Result<u64, ()> {
        (&self.lent).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        (&self.lent).read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        (&self.lent).read_bytes_at_until(range, delimiter)
    }
}

impl<'a> Source<'a> for &'a Opened {
    fn copy(self, offset: u64, into: &mut [u8]) -> Option<()> {
        self.file.read_exact_at(into, offset).ok()
    }
}
