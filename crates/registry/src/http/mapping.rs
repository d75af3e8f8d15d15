//! A file as memory: never read through here when it can be helped.
//!
//! hyper wants bytes. These are a file's bytes, so that whoever writes them to a socket may do it from memory, or, as
//! [`super::wire`] does, look the address up and let the kernel send the file itself.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A whole file, mapped for reading.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    file: File,
}

// SAFETY: the memory is only ever read, and stays where it is until the mapping is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a file whose content never changes.
    pub fn new(file: File, size: u64) -> std::io::Result<Self> {
        let length = usize::try_from(size)
            .ok()
            .filter(|length| *length > 0)
            .ok_or_else(|| std::io::Error::other("its size cannot be mapped"))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        let start =
            NonNull::new(start.cast()).ok_or_else(|| std::io::Error::other("it was mapped nowhere"))?;
        Ok(Self { start, length, file })
    }

    /// A part of it as bytes, which keep the mapping.
    pub fn bytes(self: &Arc<Self>, from: usize, length: usize) -> Bytes {
        Bytes::from_owner(Owner(Arc::clone(self))).slice(from..from + length)
    }

    /// The offset in the file of memory that belongs to it.
    pub fn offset_of(&self, memory: &[u8]) -> Option<u64> {
        let offset = memory.as_ptr().addr().checked_sub(self.start.as_ptr().addr())?;
        (offset < self.length && memory.len() <= self.length - offset).then_some(offset as u64)
    }

    /// The file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A second handle of the file.
    pub fn try_clone(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    /// Whether a part of it is in memory, so that sending it does not wait for a disk.
    pub fn is_resident(&self, from: usize, length: usize) -> bool {
        const PAGE: usize = 4096;
        let first = from / PAGE * PAGE;
        let mut pages = vec![
            0u8;
            (from + length)
                .min(self.length)
                .saturating_sub(first)
                .div_ceil(PAGE)
        ];
        if pages.is_empty() {
            return true;
        }
        let span = (self.length - first).min(pages.len() * PAGE);
        // SAFETY: the range begins at a page of this mapping and lies within it; there is one byte for each page.
        let result =
            unsafe { libc::mincore(self.start.as_ptr().add(first).cast(), span, pages.as_mut_ptr()) };
        result == 0 && pages.iter().all(|page| page & 1 == 1)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more: all bytes hold the mapping.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.length) } {
            tracing::error!(%error, "a blob stays mapped");
        }
    }
}

struct Owner(Arc<Mapping>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the mapping is readable for this length and lives as long as `self`. Blobs are never written or cut
        // once they have their name, so the memory does not change.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn bytes_are_the_files_and_know_their_offset() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        file.write_all(&content).unwrap();
        let mapping = Arc::new(Mapping::new(file, 10_000).unwrap());
        assert!(mapping.is_resident(5000, 5000));
        let bytes = mapping.bytes(4097, 100);
        assert_eq!(bytes, content[4097..4197]);
        assert_eq!(mapping.offset_of(&bytes[3..]), Some(4100));
        assert_eq!(mapping.offset_of(&content), None);
        let weak = Arc::downgrade(&mapping);
        drop(mapping);
        assert!(weak.upgrade().is_some());
        drop(bytes);
        assert!(weak.upgrade().is_none());
    }
}
