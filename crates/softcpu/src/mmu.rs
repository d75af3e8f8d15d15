//! Address translation: page tables and the buffers that remember them (SDM volume 3, "Paging").

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::exception::{Exception, Fault, vector};
use crate::memory::{Membership, PAGE};
use crate::state::{Cpu, cr0, cr4, efer};

/// What is wanted of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// Width of physical addresses, as CPUID says.
pub(crate) const PHYSICAL_BITS: u32 = 46;

/// Entries of a translation buffer, a power of two.
pub(crate) const ENTRIES: usize = 1024;

/// What is remembered of one page. A tag is the page's linear address when the access may go straight to the page's place in this process, and
/// [`never`] otherwise.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    pub read: u64,
    pub write: u64,
    pub execute: u64,
    /// Where the page is in this process.
    pub host: u64,
}

/// A tag that no page looked for in entry `index` has, nor the page after it: the address of a page that belongs into another entry.
const fn never(index: usize) -> u64 {
    (index as u64 ^ 2) * PAGE
}

impl Entry {
    const fn empty(index: usize) -> Self {
        Self {
            read: never(index),
            write: never(index),
            execute: never(index),
            host: 0,
        }
    }
}

/// A buffer without entries.
static EMPTY: [Entry; ENTRIES] = {
    let mut entries = [Entry::empty(0); ENTRIES];
    let mut index = 0;
    while index < ENTRIES {
        entries[index] = Entry::empty(index);
        index += 1;
    }
    entries
};

/// The translation buffers: one for the supervisor's rights, one for the user's.
#[repr(C)]
pub(crate) struct Mmu {
    pub entries: [[Entry; ENTRIES]; 2],
    /// Entries of the supervisor's buffer that a load of CR3 removes.
    local: Vec<u16>,
    /// Counts changes of the translation of instruction addresses: [lower half, upper half].
    pub epochs: [u32; 2],
    /// Pages of which instruction addresses were remembered since their half's epoch began: a bit each, by a hash.
    code: Box<[[u64; FILTER]; 2]>,
    /// Instructions were fetched from a page of the upper half that is not global.
    upper_local: bool,
    pub membership: Membership,
}

/// A translated address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    pub physical: u64,
    global: bool,
}

impl Mmu {
    pub(crate) fn new(membership: Membership) -> Self {
        Self {
            entries: [EMPTY; 2],
            local: Vec::with_capacity(LOCAL_MAX),
            epochs: [0; 2],
            code: Box::new([[0; FILTER]; 2]),
            upper_local: false,
            membership,
        }
    }

    pub(crate) fn index(address: u64) -> usize {
        (address / PAGE) as usize & (ENTRIES - 1)
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        self.entries = [EMPTY; 2];
        self.local.clear();
        self.upper_local = false;
        self.next_epoch(0);
        self.next_epoch(1);
    }

    /// Forgets what is not global, as a load of CR3 does.
    pub(crate) fn flush_local(&mut self) {
        self.entries[1] = EMPTY;
        if self.local.len() >= LOCAL_MAX {
            self.entries[0] = EMPTY;
        } else {
            for &index in &self.local {
                let index = usize::from(index);
                self.entries[0][index] = Entry::empty(index);
            }
        }
        self.local.clear();
        self.next_epoch(0);
        if self.upper_local {
            self.upper_local = false;
            self.next_epoch(1);
        }
    }

    /// Forgets one page.
    pub(crate) fn flush_page(&mut self, address: u64) {
        for entries in &mut self.entries {
            let index = Self::index(address);
            let entry = &mut entries[index];
            let page = address & !(PAGE - 1);
            if [entry.read, entry.write, entry.execute].contains(&page) {
                *entry = Entry::empty(index);
            }
        }
        let (half, word, bit) = Self::filter(address);
        if self.code[half][word] & bit != 0 {
            self.next_epoch(half);
        }
    }

    /// Everything remembered of instruction addresses of a half counts no more.
    fn next_epoch(&mut self, half: usize) {
        self.epochs[half] = self.epochs[half].wrapping_add(1);
        self.code[half] = [0; FILTER];
    }

    /// An instruction address is about to be remembered with its half's epoch.
    pub(crate) fn note_code(&mut self, address: u64) {
        let (half, word, bit) = Self::filter(address);
        self.code[half][word] |= bit;
    }

    fn filter(address: u64) -> (usize, usize, u64) {
        let page = address / PAGE;
        let hash = (page ^ page >> 13) as usize;
        ((address >> 63) as usize, hash / 64 % FILTER, 1 << (hash % 64))
    }

    /// Takes away the right to write to a page of RAM at this place in the process, under whatever address.
    pub(crate) fn forget_writes(&mut self, host: *mut u8) {
        for entries in &mut self.entries {
            for (index, entry) in entries.iter_mut().enumerate() {
                if entry.host == host as u64 {
                    entry.write = never(index);
                }
            }
        }
    }
}

/// Words of the filter of pages with remembered instructions, for each half: 4,096 bits.
const FILTER: usize = 64;

/// Beyond this many, all entries are removed instead.
const LOCAL_MAX: usize = 256;

mod pte {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// Where the next table or the page is.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

impl Cpu {
    /// Whether an address has all bits above the implemented ones equal.
    #[inline(always)]
    pub(crate) fn canonical(&self, address: u64) -> bool {
        let unused = if self.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        (((address << unused) as i64) >> unused) as u64 == address
    }

    fn page_fault(
        &mut self,
        address: u64,
        access: Access,
        user: bool,
        present: bool,
        reserved: bool,
    ) -> Fault {
        let mut code = u32::from(present);
        if access == Access::Write {
            code |= 2;
        }
        if user {
            code |= 4;
        }
        if reserved {
            code |= 8;
        }
        if access == Access::Execute && (self.efer & efer::NXE != 0 || self.cr4 & cr4::SMEP != 0) {
            code |= 16;
        }
        self.fault = Exception {
            vector: vector::PF,
            error: Some(code),
            address,
            ..Exception::default()
        };
        Fault
    }

    /// What a linear address stands for, with the rights of the user or the supervisor. Accessed and dirty bits are set.
    pub(crate) fn translate(
        &mut self,
        address: u64,
        access: Access,
        user: bool,
    ) -> Result<Translation, Fault> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(Translation {
                physical: address & 0xffff_ffff,
                global: true,
            });
        }
        if self.cr4 & cr4::PAE == 0 {
            return self.walk_32(address, access, user);
        }
        loop {
            if let Some(translation) = self.walk(address, access, user)? {
                return Ok(translation);
            }
        }
    }

    /// Tables of 64-bit entries: four or five levels in long mode, three otherwise. `None`: an entry changed under the walk.
    fn walk(&mut self, address: u64, access: Access, user: bool) -> Result<Option<Translation>, Fault> {
        let long = self.efer & efer::LMA != 0;
        let levels = match (long, self.cr4 & cr4::LA57 != 0) {
            (true, true) => 5,
            (true, false) => 4,
            (false, _) => 3,
        };
        let no_execute = self.efer & efer::NXE != 0;
        let mut reserved = (pte::ADDRESS >> PHYSICAL_BITS) << PHYSICAL_BITS;
        if !no_execute {
            reserved |= pte::NO_EXECUTE;
        }
        let mut table = self.cr3 & if long { pte::ADDRESS } else { 0xffff_ffe0 };
        // Every level must allow it.
        let mut allowed = pte::WRITE | pte::USER;
        let mut forbidden = 0;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let slot = table + (address >> shift & 0x1ff & if !long && level == 2 { 3 } else { 0x1ff }) * 8;
            // A table that is no RAM reads as ones, whose reserved bits are wrong.
            let Some(page) = self.snapshot.page(slot) else {
                return Err(self.page_fault(address, access, user, true, true));
            };
            // SAFETY: the page is RAM of the guest, which stays mapped (`Memory::map`); the slot is eight aligned bytes of it. Other threads
            // may write it at any time, which is why it is atomic.
            let entry = unsafe { &*(page.host.add((slot & (PAGE - 1)) as usize).cast::<AtomicU64>()) };
            let value = entry.load(Ordering::Relaxed);
            if value & pte::PRESENT == 0 {
                return Err(self.page_fault(address, access, user, false, false));
            }
            let root_of_three = !long && level == 2;
            let large = level > 0 && value & pte::LARGE != 0 && !root_of_three;
            let mut wrong = value & reserved;
            if large {
                // A page of 2 MiB or 1 GiB; bit 12 is its PAT bit.
                wrong |= value & ((1 << shift) - 1) & !0x1fff;
                if level > 2 {
                    wrong |= pte::LARGE;
                }
            } else if level > 2 {
                wrong |= value & pte::LARGE;
            }
            if wrong != 0 && !root_of_three {
                return Err(self.page_fault(address, access, user, true, true));
            }
            if !root_of_three {
                allowed &= value;
                forbidden |= value;
            }
            let leaf = large || level == 0;
            if !leaf {
                if value & pte::ACCESSED == 0 && !root_of_three {
                    // A read-only region (firmware) keeps its bits.
                    if !page.read_only() {
                        page.before_write();
                        if entry
                            .compare_exchange(
                                value,
                                value | pte::ACCESSED,
                                Ordering::SeqCst,
                                Ordering::Relaxed,
                            )
                            .is_err()
                        {
                            return Ok(None);
                        }
                    }
                }
                table = value & pte::ADDRESS;
                continue;
            }
            let writable = allowed & pte::WRITE != 0 || (!user && self.cr0 & cr0::WP == 0);
            let refused = (user && allowed & pte::USER == 0)
                || (access == Access::Write && !writable)
                || (access == Access::Execute
                    && ((no_execute && forbidden & pte::NO_EXECUTE != 0)
                        || (!user && allowed & pte::USER != 0 && self.cr4 & cr4::SMEP != 0)));
            if refused {
                return Err(self.page_fault(address, access, user, true, false));
            }
            let mut bits = pte::ACCESSED;
            if access == Access::Write {
                bits |= pte::DIRTY;
            }
            if value & bits != bits && !page.read_only() {
                page.before_write();
                if entry
                    .compare_exchange(value, value | bits, Ordering::SeqCst, Ordering::Relaxed)
                    .is_err()
                {
                    return Ok(None);
                }
            }
            let offset = (1_u64 << shift) - 1;
            return Ok(Some(Translation {
                physical: value & pte::ADDRESS & !offset | address & offset,
                global: value & pte::GLOBAL != 0 && self.cr4 & cr4::PGE != 0,
            }));
        }
        Err(self.page_fault(address, access, user, false, false))
    }

    /// Two levels of 32-bit entries, pages of 4 MiB with CR4.PSE.
    fn walk_32(&mut self, address: u64, access: Access, user: bool) -> Result<Translation, Fault> {
        let mut table = self.cr3 & 0xffff_f000;
        let mut allowed = pte::WRITE | pte::USER;
        for level in [1_u32, 0] {
            let shift = 12 + 10 * level;
            let slot = table + (address >> shift & 0x3ff) * 4;
            let Some(page) = self.snapshot.page(slot) else {
                return Err(self.page_fault(address, access, user, true, true));
            };
            // SAFETY: as in `walk`, with four bytes.
            let entry = unsafe { &*(page.host.add((slot & (PAGE - 1)) as usize).cast::<AtomicU32>()) };
            let value = u64::from(entry.load(Ordering::Relaxed));
            if value & pte::PRESENT == 0 {
                return Err(self.page_fault(address, access, user, false, false));
            }
            allowed &= value;
            let leaf = level == 0 || (value & pte::LARGE != 0 && self.cr4 & cr4::PSE != 0);
            let writable = allowed & pte::WRITE != 0 || (!user && self.cr0 & cr0::WP == 0);
            let refused = (user && allowed & pte::USER == 0)
                || (access == Access::Write && !writable)
                || (access == Access::Execute
                    && !user
                    && allowed & pte::USER != 0
                    && self.cr4 & cr4::SMEP != 0);
            if leaf && refused {
                return Err(self.page_fault(address, access, user, true, false));
            }
            let mut bits = pte::ACCESSED;
            if leaf && access == Access::Write {
                bits |= pte::DIRTY;
            }
            if value & bits != bits && !page.read_only() {
                page.before_write();
                entry.fetch_or(bits as u32, Ordering::SeqCst);
            }
            if !leaf {
                table = value & 0xffff_f000;
                continue;
            }
            let offset = (1_u64 << shift) - 1;
            let high = if level == 1 { (value >> 13 & 0xff) << 32 } else { 0 };
            return Ok(Translation {
                physical: high | value & 0xffff_f000 & !offset | address & offset,
                global: value & pte::GLOBAL != 0 && self.cr4 & cr4::PGE != 0,
            });
        }
        Err(self.page_fault(address, access, user, false, false))
    }

    /// Translates, and remembers it when it is RAM that the access may go to directly. The host address of the byte, or its physical one.
    pub(crate) fn fill(
        &mut self,
        address: u64,
        access: Access,
        user: bool,
    ) -> Result<Result<*mut u8, u64>, Fault> {
        let translation = self.translate(address, access, user)?;
        let snapshot = self.snapshot.clone();
        let Some(page) = snapshot.page(translation.physical) else {
            return Ok(Err(translation.physical));
        };
        if access == Access::Write {
            if page.read_only() {
                return Ok(Err(translation.physical));
            }
            page.before_write();
        }
        let linear = address & !(PAGE - 1);
        let host = page.host as u64;
        let index = Mmu::index(address);
        let entry = &mut self.mmu.entries[usize::from(user)][index];
        let same = entry.host == host && [entry.read, entry.write, entry.execute].contains(&linear);
        if !same {
            *entry = Entry {
                host,
                ..Entry::empty(index)
            };
        }
        match access {
            Access::Read => entry.read = linear,
            Access::Write => {
                entry.write = linear;
                // Pages cannot be written but not read.
                entry.read = linear;
            }
            Access::Execute => entry.execute = linear,
        }
        if !translation.global {
            if !user && self.mmu.local.len() < LOCAL_MAX {
                self.mmu.local.push(index as u16);
            }
            if access == Access::Execute && address >> 63 != 0 {
                self.mmu.upper_local = true;
            }
        }
        Ok(Ok(page.host.wrapping_add((address & (PAGE - 1)) as usize)))
    }
}
