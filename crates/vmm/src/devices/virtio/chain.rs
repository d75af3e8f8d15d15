//! Buffers of one request: what the driver wrote, then what the device may write.
//!
//! A chain is read from the ring once, with every descriptor checked to lie in memory; from then on the guest can change what is in the
//! buffers, not where they are. What a device decides on it must therefore copy first, and read once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::queue::QueueError;
use crate::memory::Ram;

/// A piece of the guest's memory, contiguous here.
#[derive(Clone, Copy, Debug)]
struct Segment {
    host: *mut u8,
    guest: u64,
    length: usize,
}

/// Pieces of the guest's memory, read or written from front to back.
#[derive(Debug)]
pub struct Buffers {
    memory: Arc<Ram>,
    segments: Vec<Segment>,
    /// The first segment that is not used up, and how much of it is.
    index: usize,
    offset: usize,
    left: usize,
}

// SAFETY: `host` of every segment points into the mapping `memory` keeps, which is shared memory for any number of threads (and vCPUs);
// it is only accessed by copies through raw pointers and by the kernel.
unsafe impl Send for Buffers {}

impl Buffers {
    pub(super) fn new(memory: Arc<Ram>) -> Self {
        Self {
            memory,
            segments: Vec::new(),
            index: 0,
            offset: 0,
            left: 0,
        }
    }

    /// Adds what a descriptor says.
    pub(super) fn push(&mut self, address: u64, length: u32) -> Result<(), QueueError> {
        let outside = QueueError::Outside {
            address,
            length: length as usize,
        };
        let length = length as usize;
        let mut guest = address;
        for slice in self.memory.get_slices(GuestAddress(address), length) {
            let Ok(slice) = slice else {
                return Err(outside);
            };
            self.segments.push(Segment {
                host: slice.ptr_guard_mut().as_ptr(),
                guest,
                length: slice.len(),
            });
            guest = guest.wrapping_add(slice.len() as u64);
        }
        self.left += length;
        Ok(())
    }

    /// Bytes that were not read or written yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Copies out of the guest's memory; returns how much there was.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        self.each(to.len(), |host, length| {
            // SAFETY: `host` has `length` bytes in the mapping `memory` keeps; `to` has them after `done`, and is no guest memory. The guest may
            // write at the same time; what is copied is bytes of any value.
            unsafe { std::ptr::copy_nonoverlapping(host, to[done..].as_mut_ptr(), length) };
            done += length;
        });
        done
    }

    /// Copies into the guest's memory; returns how much there was room for.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        self.each(from.len(), |host, length| {
            // SAFETY: as in `read`, the other way.
            unsafe { std::ptr::copy_nonoverlapping(from[done..].as_ptr(), host, length) };
            done += length;
        });
        done
    }

    /// Reads a structure. `None` if there is not enough.
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> Option<T> {
        let mut value = T::default();
        (self.left >= size_of::<T>()).then(|| self.read(value.as_mut_slice()))?;
        Some(value)
    }

    /// Writes a structure. `None` if there is no room for all of it.
    pub fn write_obj<T: ByteValued>(&mut self, value: T) -> Option<()> {
        (self.left >= size_of::<T>()).then(|| self.write(value.as_slice()))?;
        Some(())
    }

    /// Fills what is left, at most `length` bytes, with zeroes.
    pub fn zero(&mut self, length: usize) -> usize {
        let mut done = 0;
        self.each(length, |host, length| {
            // SAFETY: as in `write`.
            unsafe { std::ptr::write_bytes(host, 0, length) };
            done += length;
        });
        done
    }

    /// Passes over bytes; returns how many there were.
    pub fn skip(&mut self, length: usize) -> usize {
        let mut done = 0;
        self.each(length, |_, length| done += length);
        done
    }

    /// Takes the first `length` bytes of what is left away. `None`, and nothing happens, if there are fewer.
    pub fn split_front(&mut self, length: usize) -> Option<Buffers> {
        if length > self.left {
            return None;
        }
        let mut front = Buffers::new(self.memory.clone());
        let mut rest = length;
        while rest > 0 {
            let segment = self.segments[self.index];
            let here = rest.min(segment.length - self.offset);
            front.segments.push(Segment {
                host: segment.host.wrapping_add(self.offset),
                guest: segment.guest + self.offset as u64,
                length: here,
            });
            self.advance(here);
            rest -= here;
        }
        front.left = length;
        Some(front)
    }

    /// Takes the last `length` bytes away, as for a status that follows the data. `None`, and nothing happens, if there are fewer.
    pub fn split_back(&mut self, length: usize) -> Option<Buffers> {
        let front = self.split_front(self.left.checked_sub(length)?)?;
        Some(std::mem::replace(self, front))
    }

    /// What is left, for `readv`, `writev` and the like. The pointers are good as long as this or its chain is; the kernel may read or write
    /// through them, Rust code must not make references of them.
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        let mut all: Vec<libc::iovec> = self.segments[self.index..]
            .iter()
            .map(|segment| libc::iovec {
                iov_base: segment.host.cast(),
                iov_len: segment.length,
            })
            .collect();
        if let Some(first) = all.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(self.offset);
            first.iov_len -= self.offset;
        }
        all
    }

    /// Where in the guest's memory what is left lies: addresses and lengths.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, usize)> {
        let rest = &self.segments[self.index..];
        rest.iter().enumerate().map(|(number, segment)| {
            let used = if number == 0 { self.offset } else { 0 };
            (segment.guest + used as u64, segment.length - used)
        })
    }

    /// Calls `f` with each piece of the next `length` bytes, and passes over them.
    fn each(&mut self, length: usize, mut f: impl FnMut(*mut u8, usize)) {
        let mut rest = length.min(self.left);
        while rest > 0 {
            let segment = self.segments[self.index];
            let here = rest.min(segment.length - self.offset);
            f(segment.host.wrapping_add(self.offset), here);
            self.advance(here);
            rest -= here;
        }
    }

    /// Passes over bytes of one segment.
    fn advance(&mut self, length: usize) {
        self.offset += length;
        self.left -= length;
        if self.offset == self.segments[self.index].length {
            self.index += 1;
            self.offset = 0;
        }
    }

    /// Marks all of it as written, for the next pass of a migration.
    fn mark_dirty(&self) {
        for segment in &self.segments {
            if let Some((region, at)) = self.memory.to_region_addr(GuestAddress(segment.guest)) {
                // An offset in a region of this process's memory fits.
                #[expect(clippy::cast_possible_truncation)]
                region.bitmap().mark_dirty(at.0 as usize, segment.length);
            }
        }
    }
}

impl std::io::Read for Buffers {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        Ok(Buffers::read(self, to))
    }
}

impl std::io::Write for Buffers {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        Ok(Buffers::write(self, from))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One request: buffers the device reads, buffers it writes. It is given back with [`Queue::push`](super::Queue::push); one that is
/// dropped instead is never given back, as after a reset of its queue.
#[derive(Debug)]
pub struct Chain {
    pub(super) head: u16,
    /// Which life of the queue it is from: none is given back to a later one.
    pub(super) generation: u32,
    /// What the driver wrote.
    pub readable: Buffers,
    /// What the device may write.
    pub writable: Buffers,
    /// Where what may be written was in the beginning: `writable` may be split up.
    written: Vec<Segment>,
    in_flight: Arc<AtomicU32>,
}

// SAFETY: `written` is only looked at for guest addresses; the rest is `Send`.
unsafe impl Send for Chain {}

impl Chain {
    pub(super) fn new(
        head: u16,
        generation: u32,
        readable: Buffers,
        writable: Buffers,
        in_flight: &Arc<AtomicU32>,
    ) -> Self {
        in_flight.fetch_add(1, Ordering::AcqRel);
        Self {
            head,
            generation,
            readable,
            written: writable.segments.clone(),
            writable,
            in_flight: in_flight.clone(),
        }
    }

    /// Everything a device may have written counts as written.
    pub(super) fn mark_dirty(&mut self) {
        self.writable.segments = std::mem::take(&mut self.written);
        self.writable.mark_dirty();
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
