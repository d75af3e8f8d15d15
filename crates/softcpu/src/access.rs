//! Loads and stores of the guest: straight to memory where a translation buffer allows it, the long way otherwise.

use crate::exception::{Fault, vector};
use crate::flags::Width;
use crate::memory::PAGE;
use crate::mmu::{Access, Mmu};
use crate::op::{Mem, kind};
use crate::state::{Cpu, Segment, gpr, mode, seg};

/// Where a read-modify-write instruction works.
pub(crate) enum Place {
    /// On memory of this process.
    Host(*mut u8),
    /// Elsewhere: a device, or two pages. Read, then write.
    Elsewhere,
}

impl Cpu {
    /// Whether accesses have the user's rights: an index of `Mmu::entries`.
    #[inline(always)]
    pub(crate) fn user(&self) -> bool {
        self.mode & mode::USER != 0
    }

    /// The linear address of a memory operand of `bytes` bytes.
    #[inline(always)]
    pub(crate) fn address(&mut self, mem: &Mem, bytes: u64, access: Access) -> Result<u64, Fault> {
        let offset = self.offset(mem);
        if mem.kind == kind::FLAT {
            return Ok(offset);
        }
        self.linear(mem, offset, bytes, access)
    }

    /// The effective address: before segmentation, not yet cut to its size.
    #[inline(always)]
    pub(crate) fn offset(&self, mem: &Mem) -> u64 {
        debug_assert!(usize::from(mem.base) < gpr::COUNT && usize::from(mem.index) < gpr::COUNT);
        // SAFETY: the decoder puts numbers below `gpr::COUNT` here.
        let (base, index) = unsafe {
            (
                *self.regs.get_unchecked(usize::from(mem.base)),
                *self.regs.get_unchecked(usize::from(mem.index)),
            )
        };
        mem.displacement
            .wrapping_add(base)
            .wrapping_add(index << mem.scale)
    }

    fn linear(&mut self, mem: &Mem, offset: u64, bytes: u64, access: Access) -> Result<u64, Fault> {
        let segment = self.segments[usize::from(mem.segment)];
        match mem.kind {
            kind::BASED => Ok(offset.wrapping_add(segment.base)),
            kind::SHORT => {
                let base = if usize::from(mem.segment) >= seg::FS {
                    segment.base
                } else {
                    0
                };
                Ok((offset & 0xffff_ffff).wrapping_add(base))
            }
            _ => {
                let offset = offset & if mem.size == 2 { 0xffff } else { 0xffff_ffff };
                self.segmented(usize::from(mem.segment), offset, bytes, access)
            }
        }
    }

    /// Applies a segment outside 64-bit code: rights, limit, base.
    pub(crate) fn segmented(
        &mut self,
        index: usize,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<u64, Fault> {
        let segment = self.segments[index];
        let code = if index == seg::SS { vector::SS } else { vector::GP };
        if self.mode & mode::REAL == 0 {
            if segment.attributes == 0 || !segment.has(Segment::PRESENT) {
                return Err(self.raise_code(code, 0));
            }
            let is_code = segment.has(Segment::CODE);
            let right = segment.has(Segment::READ_WRITE);
            let allowed = match access {
                Access::Read => !is_code || right,
                Access::Write => !is_code && right,
                Access::Execute => is_code,
            };
            if !allowed {
                return Err(self.raise_code(code, 0));
            }
        }
        let last = offset + (bytes - 1);
        let limit = u64::from(segment.limit);
        let expand_down =
            !segment.has(Segment::CODE) && segment.has(Segment::CONFORMING) && self.mode & mode::REAL == 0;
        let inside = if expand_down {
            let top = if segment.has(Segment::BIG) {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        if !inside {
            return Err(self.raise_code(code, 0));
        }
        Ok(offset.wrapping_add(segment.base) & 0xffff_ffff)
    }

    #[inline(always)]
    pub(crate) fn load<W: Width>(&mut self, address: u64) -> Result<W, Fault> {
        self.read_as(address, Access::Read, self.user())
    }

    #[inline(always)]
    pub(crate) fn store<W: Width>(&mut self, address: u64, value: W) -> Result<(), Fault> {
        self.write_as(address, value, self.user())
    }

    /// Where `bytes` bytes are in this process, when a translation buffer says so for all of them.
    #[inline(always)]
    pub(crate) fn direct(&self, address: u64, bytes: u64, access: Access) -> Option<*mut u8> {
        let entry = &self.mmu.entries[usize::from(self.user())][Mmu::index(address)];
        let tag = if access == Access::Write {
            entry.write
        } else {
            entry.read
        };
        // As in `read_as`.
        (address.wrapping_add(bytes - 1) & !(PAGE - 1) == tag)
            .then(|| (entry.host + (address & (PAGE - 1))) as *mut u8)
    }

    /// A load with given rights.
    #[inline(always)]
    pub(crate) fn read_as<W: Width>(&mut self, address: u64, access: Access, user: bool) -> Result<W, Fault> {
        let entry = &self.mmu.entries[usize::from(user)][Mmu::index(address)];
        // The last byte's page: an access across a page's end differs from every tag here.
        if address.wrapping_add(W::BYTES - 1) & !(PAGE - 1) == entry.read {
            // SAFETY: the entry says that this page is RAM of the guest, mapped in this process, and readable.
            return Ok(unsafe { W::load((entry.host + (address & (PAGE - 1))) as *const u8) });
        }
        self.read_slow(address, access, user)
    }

    /// A store with given rights.
    #[inline(always)]
    pub(crate) fn write_as<W: Width>(&mut self, address: u64, value: W, user: bool) -> Result<(), Fault> {
        let entry = &self.mmu.entries[usize::from(user)][Mmu::index(address)];
        if address.wrapping_add(W::BYTES - 1) & !(PAGE - 1) == entry.write {
            // SAFETY: the entry says that this page is RAM of the guest, mapped in this process, and writable.
            unsafe { W::store((entry.host + (address & (PAGE - 1))) as *mut u8, value) };
            return Ok(());
        }
        self.write_slow(address, value, user)
    }

    #[cold]
    #[inline(never)]
    fn read_slow<W: Width>(&mut self, address: u64, access: Access, user: bool) -> Result<W, Fault> {
        let mut bytes = [0_u8; 8];
        let bytes = &mut bytes[..W::BYTES as usize];
        if address & (PAGE - 1) <= PAGE - W::BYTES {
            return match self.find(address, access, user)? {
                // SAFETY: `find` says that the page is RAM of the guest; the access is inside of it.
                Ok(host) => Ok(unsafe { W::load(host) }),
                Err(physical) => {
                    self.with_environment(|environment| environment.read_memory(physical, bytes));
                    Ok(from_bytes(bytes))
                }
            };
        }
        self.read_bytes_as(address, bytes, access, user)?;
        Ok(from_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn write_slow<W: Width>(&mut self, address: u64, value: W, user: bool) -> Result<(), Fault> {
        let bytes = value.to_u64().to_le_bytes();
        let bytes = &bytes[..W::BYTES as usize];
        if address & (PAGE - 1) <= PAGE - W::BYTES {
            match self.find(address, Access::Write, user)? {
                // SAFETY: as in `read_slow`, and `find` was asked for writing.
                Ok(host) => unsafe { W::store(host, value) },
                Err(physical) => {
                    self.with_environment(|environment| environment.write_memory(physical, bytes));
                }
            }
            return Ok(());
        }
        self.write_bytes_as(address, bytes, user)
    }

    /// The host address of a byte with its page's rest, or the physical address of what is no RAM. Non-canonical addresses and writes to the instruction's
    /// own page are found here.
    #[cold]
    pub(crate) fn find(
        &mut self,
        address: u64,
        access: Access,
        user: bool,
    ) -> Result<Result<*mut u8, u64>, Fault> {
        if !self.canonical(address) {
            return Err(self.protection());
        }
        if access == Access::Write {
            let translation = self.translate(address, access, user)?;
            if translation.physical & !(PAGE - 1) == self.block_page {
                return Err(self.raise(vector::ALONE));
            }
        }
        self.fill(address, access, user)
    }

    /// As [`Cpu::find`], looking into the translation buffer first.
    #[inline]
    pub(crate) fn find_quickly(
        &mut self,
        address: u64,
        access: Access,
        user: bool,
    ) -> Result<Result<*mut u8, u64>, Fault> {
        let entry = &self.mmu.entries[usize::from(user)][Mmu::index(address)];
        let tag = if access == Access::Write {
            entry.write
        } else {
            entry.read
        };
        if address & !(PAGE - 1) == tag && access != Access::Execute {
            return Ok(Ok((entry.host + (address & (PAGE - 1))) as *mut u8));
        }
        self.find(address, access, user)
    }

    /// Reads any number of bytes.
    pub(crate) fn read_bytes(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.read_bytes_as(address, bytes, Access::Read, self.user())
    }

    /// Writes any number of bytes, or none of them: all pages are looked at first.
    pub(crate) fn write_bytes(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.write_bytes_as(address, bytes, self.user())
    }

    /// Whether `bytes` bytes could be written: the fault that writing them would be.
    pub(crate) fn probe_write(&mut self, address: u64, bytes: u64) -> Result<(), Fault> {
        let user = self.user();
        self.probe(address, bytes, user)
    }

    /// #GP when the last byte is not at a canonical address: that comes before faults of the first page.
    fn check_end(&mut self, address: u64, bytes: u64) -> Result<(), Fault> {
        if self.canonical(address.wrapping_add(bytes.wrapping_sub(1))) {
            Ok(())
        } else {
            Err(self.protection())
        }
    }

    fn probe(&mut self, address: u64, bytes: u64, user: bool) -> Result<(), Fault> {
        self.check_end(address, bytes)?;
        let mut at = address;
        let mut left = bytes;
        while left > 0 {
            let here = (PAGE - (at & (PAGE - 1))).min(left);
            let _ = self.find(at, Access::Write, user)?;
            at = at.wrapping_add(here);
            left -= here;
        }
        Ok(())
    }

    pub(crate) fn read_bytes_as(
        &mut self,
        address: u64,
        bytes: &mut [u8],
        access: Access,
        user: bool,
    ) -> Result<(), Fault> {
        self.check_end(address, bytes.len() as u64)?;
        let mut address = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let here = (PAGE - (address & (PAGE - 1))).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(here);
            match self.find(address, access, user)? {
                // SAFETY: RAM of the guest to the end of its page. No reference into it is made: it may change while it is copied, as it would
                // under a processor.
                Ok(host) => unsafe { copy(host, part.as_mut_ptr(), here) },
                Err(physical) => self.device_read(physical, part),
            }
            address = address.wrapping_add(here as u64);
            rest = after;
        }
        Ok(())
    }

    fn write_bytes_as(&mut self, address: u64, bytes: &[u8], user: bool) -> Result<(), Fault> {
        self.probe(address, bytes.len() as u64, user)?;
        let mut address = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let here = (PAGE - (address & (PAGE - 1))).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at(here);
            match self.find(address, Access::Write, user)? {
                // SAFETY: as in `read_bytes_as`.
                Ok(host) => unsafe { copy(part.as_ptr(), host, here) },
                Err(physical) => self.device_write(physical, part),
            }
            address = address.wrapping_add(here as u64);
            rest = after;
        }
        Ok(())
    }

    fn device_read(&mut self, physical: u64, part: &mut [u8]) {
        let mut physical = physical;
        for piece in part.chunks_mut(8) {
            self.with_environment(|environment| environment.read_memory(physical, piece));
            physical += piece.len() as u64;
        }
    }

    fn device_write(&mut self, physical: u64, part: &[u8]) {
        let mut physical = physical;
        for piece in part.chunks(8) {
            self.with_environment(|environment| environment.write_memory(physical, piece));
            physical += piece.len() as u64;
        }
    }

    /// Where an instruction that reads and then writes `BYTES` bytes works. Afterwards neither can fault.
    #[inline(always)]
    pub(crate) fn place<W: Width>(&mut self, address: u64) -> Result<Place, Fault> {
        let entry = &self.mmu.entries[usize::from(self.user())][Mmu::index(address)];
        if address.wrapping_add(W::BYTES - 1) & !(PAGE - 1) == entry.write {
            return Ok(Place::Host((entry.host + (address & (PAGE - 1))) as *mut u8));
        }
        self.place_slow(address, W::BYTES)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn place_slow(&mut self, address: u64, bytes: u64) -> Result<Place, Fault> {
        let user = self.user();
        self.check_end(address, bytes)?;
        let first = self.find(address, Access::Write, user)?;
        if address & (PAGE - 1) > PAGE - bytes {
            let _ = self.find(address.wrapping_add(bytes - 1) & !(PAGE - 1), Access::Write, user)?;
            return Ok(Place::Elsewhere);
        }
        Ok(match first {
            Ok(host) => Place::Host(host),
            Err(_) => Place::Elsewhere,
        })
    }

    /// A register operand by its byte offset.
    #[inline(always)]
    pub(crate) fn reg<W: Width>(&self, offset: u8) -> W {
        debug_assert!(usize::from(offset) + W::BYTES as usize <= gpr::COUNT * 8);
        // SAFETY: the decoder puts offsets of registers here: 8 × number, or 1 more for a byte.
        unsafe {
            let pointer = self.regs.as_ptr().cast::<u8>().add(usize::from(offset));
            match W::BYTES {
                1 => W::from_u64(u64::from(pointer.read())),
                2 => W::from_u64(u64::from(pointer.cast::<u16>().read())),
                4 => W::from_u64(u64::from(pointer.cast::<u32>().read())),
                _ => W::from_u64(pointer.cast::<u64>().read()),
            }
        }
    }

    /// Writes a register operand; 32 bits clear the upper half, as the processor does.
    #[inline(always)]
    pub(crate) fn set_reg<W: Width>(&mut self, offset: u8, value: W) {
        debug_assert!(usize::from(offset) + W::BYTES as usize <= gpr::COUNT * 8);
        // SAFETY: as in `reg`.
        unsafe {
            let pointer = self.regs.as_mut_ptr().cast::<u8>().add(usize::from(offset));
            if W::BYTES == 4 {
                pointer.cast::<u64>().write(value.to_u64());
            } else {
                match W::BYTES {
                    1 => pointer.write(value.to_u64() as u8),
                    2 => pointer.cast::<u16>().write(value.to_u64() as u16),
                    _ => pointer.cast::<u64>().write(value.to_u64()),
                }
            }
        }
    }
}

fn from_bytes<W: Width>(bytes: &[u8]) -> W {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    W::from_u64(u64::from_le_bytes(whole))
}

/// Copies bytes of which one side may be written by other threads meanwhile.
///
/// # Safety
/// Both sides are mapped for `count` bytes and do not overlap in the guest's view.
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the caller's; `rep movsb` is one instruction, of which the compiler assumes nothing.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") count => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}
