//! A machine's memory: one memfd, mapped here and given to the accelerator.
//!
//! Devices reach it as [`Ram`] (`vm_memory`'s), which checks every address and marks what they write in a bitmap. The accelerator knows
//! what vCPUs write; [`Memory::take_dirty_pages`] is both together.

pub mod layout;
mod log;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::accel::{self, MemoryRegion, Vm};
use layout::PAGE_SIZE;
pub use log::WriteLog;

/// A guest's memory as devices see it.
pub type Ram = GuestMemoryMmap<WriteLog>;

/// What is wrong with a machine's memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The size is none a machine can have.
    #[error(
        "a machine cannot have {0} bytes of memory: it takes whole pages of 4096 bytes, at least 1 MiB and at most 512 GiB"
    )]
    Size(u64),
    /// The kernel gave none.
    #[error("cannot get {0} bytes of memory for the guest")]
    Allocate(u64, #[source] io::Error),
    /// It could not be mapped.
    #[error("cannot map the guest's memory")]
    Map(#[from] vm_memory::mmap::FromRangesError),
}

/// A machine's memory, and the file it is.
pub struct Memory {
    ram: Arc<Ram>,
    file: Arc<File>,
    size: u64,
    observer: log::Observer,
}

impl Memory {
    /// `size` bytes of zeroes, taken from the host as they are touched.
    pub fn new(size: u64) -> Result<Self, Error> {
        if !size.is_multiple_of(PAGE_SIZE) || !(1 << 20..=layout::RAM_MAX).contains(&size) {
            return Err(Error::Size(size));
        }
        let file = memfd(size).map_err(|e| Error::Allocate(size, e))?;
        Self::from_file(File::from(file), size)
    }

    /// The memory that another process has made: its [file](Self::file), of `size` bytes. It must not become shorter.
    pub fn from_file(file: File, size: u64) -> Result<Self, Error> {
        if !size.is_multiple_of(PAGE_SIZE) || !(1 << 20..=layout::RAM_MAX).contains(&size) {
            return Err(Error::Size(size));
        }
        let file = Arc::new(file);
        let observer = log::Observer::default();
        let mut offset = 0;
        let mut regions = Vec::new();
        for (start, length) in layout::ram_ranges(size) {
            let length_here = usize::try_from(length).map_err(|_| Error::Size(size))?;
            let log = WriteLog::new(start, length_here, observer.clone());
            let mapping = MmapRegionBuilder::new_with_bitmap(length_here, log)
                .with_file_offset(FileOffset::from_arc(file.clone(), offset))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .build()
                .map_err(vm_memory::mmap::FromRangesError::from)?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(start));
            regions.push(region.ok_or(Error::Size(size))?);
            offset += length;
        }
        let ram = Ram::from_regions(regions).map_err(vm_memory::mmap::FromRangesError::from)?;
        Ok(Self {
            ram: Arc::new(ram),
            file,
            size,
            observer,
        })
    }

    /// What devices work on.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The file that is the memory: pieces of RAM lie in it one behind the other.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Gives it to an accelerator: piece `n` is slot `n`. Called again to change `log_dirty`.
    pub fn attach(&self, vm: &dyn Vm, log_dirty: bool) -> accel::Result<()> {
        for (slot, region) in (0..).zip(self.ram.iter()) {
            let region = MemoryRegion {
                guest_address: region.start_addr().0,
                size: region.len(),
                host_address: region.as_ptr(),
                read_only: false,
                log_dirty,
            };
            // SAFETY: the machine keeps this mapping until its `Vm` is gone, and `vm_memory` gives out no references into it.
            unsafe { vm.map_memory(slot, region)? };
        }
        if let Some(observer) = vm.write_observer() {
            // The first is the machine's: there is one accelerator.
            let _ = self.observer.set(observer);
        }
        Ok(())
    }

    /// Pages that vCPUs or devices have written since the last call: for each piece of RAM a bit for every page, the lowest first.
    pub fn take_dirty_pages(&self, vm: &dyn Vm) -> accel::Result<Vec<Vec<u64>>> {
        let mut all = Vec::new();
        for (slot, region) in (0..).zip(self.ram.iter()) {
            let mut pages = vm.take_dirty_pages(slot)?;
            let ours = region.get_mmap().bitmap().take();
            pages.resize(pages.len().max(ours.len()), 0);
            for (page, own) in pages.iter_mut().zip(ours) {
                *page |= own;
            }
            all.push(pages);
        }
        Ok(all)
    }
}

/// A file in memory whose length nobody can change: a page that went away under us would be a SIGBUS.
fn memfd(size: u64) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, size)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_is_one_file_with_a_hole_for_devices() {
        let size = layout::LOW_RAM_END + (64 << 20);
        let memory = Memory::new(size).unwrap();
        let high = GuestAddress(layout::HIGH_RAM_START + 5);
        memory.ram().write_obj(0x1234_5678_u32, high).unwrap();
        let mut seen = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&**memory.file(), &mut seen, layout::LOW_RAM_END + 5)
            .unwrap();
        assert_eq!(u32::from_le_bytes(seen), 0x1234_5678);
        for address in [
            layout::LOW_RAM_END,
            layout::HIGH_RAM_START - 1,
            layout::HIGH_RAM_START + (64 << 20),
        ] {
            assert!(
                memory.ram().write_obj(1_u8, GuestAddress(address)).is_err(),
                "{address:#x}"
            );
        }
        assert!(
            rustix::fs::ftruncate(&**memory.file(), 0).is_err(),
            "nobody can make it shorter"
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 4096, (1 << 20) + 1, layout::RAM_MAX + PAGE_SIZE, u64::MAX] {
            assert!(matches!(Memory::new(size), Err(Error::Size(_))), "{size}");
        }
    }

    #[test]
    fn the_window_for_large_bars_is_behind_all_memory() {
        for size in [
            1 << 20,
            layout::LOW_RAM_END,
            layout::LOW_RAM_END + 4096,
            layout::RAM_MAX,
        ] {
            let start = layout::pci_window64_start(size);
            assert!(
                layout::ram_ranges(size)
                    .iter()
                    .all(|(at, length)| at + length <= start)
            );
            assert_eq!(start % (1 << 30), 0);
        }
    }
}
