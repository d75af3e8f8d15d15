//! What is done about every write of a device to the guest's memory: its page is marked for the next pass of a migration, and a processor in
//! software forgets what it has decoded of it.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use vm_memory::bitmap::{AtomicBitmap, Bitmap, RefSlice, WithBitmapSlice};

use super::layout::PAGE_SIZE;
use crate::accel::WriteObserver;

// 4096 fits and is not zero.
#[expect(clippy::cast_possible_truncation)]
const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_SIZE as usize).unwrap();

/// Who is told, once the machine has one.
pub(super) type Observer = Arc<OnceLock<Arc<dyn WriteObserver>>>;

/// The log of one piece of memory. `vm_memory` writes to it.
pub struct WriteLog {
    dirty: AtomicBitmap,
    start: u64,
    observer: Observer,
}

impl WriteLog {
    /// Of `length` bytes at the guest's address `start`.
    pub(super) fn new(start: u64, length: usize, observer: Observer) -> Self {
        Self {
            dirty: AtomicBitmap::new(length, PAGE),
            start,
            observer,
        }
    }

    /// Pages written since the last call, a bit each.
    pub(super) fn take(&self) -> Vec<u64> {
        self.dirty.get_and_reset()
    }
}

impl fmt::Debug for WriteLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WriteLog")
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl<'a> WithBitmapSlice<'a> for WriteLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WriteLog {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.dirty.set_addr_range(offset, length);
        if let Some(observer) = self.observer.get() {
            observer.written(self.start + offset as u64, length as u64);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.dirty.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}
