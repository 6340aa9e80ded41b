//! The reading end of the ring buffer.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};

/// The ring buffer; there is one reader.
pub struct Ring(pub(super) RingBuf<MapData>);

impl Ring {
    /// Calls `each` with every record that is there now, in place. Returns how many.
    pub fn drain(&mut self, each: &mut dyn FnMut(&[u8])) -> usize {
        let mut count = 0;
        while let Some(record) = self.0.next() {
            each(&record);
            count += 1;
        }
        count
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the map's, which `self` owns for at least as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
