//! The guest's RAM, shared by its processors, and what is known of each of its pages.
//!
//! Two things must be seen when a page is written: that it holds decoded instructions, and that somebody wants to know which pages
//! change. Both cost nothing where they do not matter: a page of which either holds has no entry for writing in the translation buffers,
//! so that its writes come by here ([`Memory::before_write`]). Setting such a mark therefore needs every processor's buffer
//! flushed before it counts: [`Memory::flush_writers`].

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::environment::Attention;

/// Bytes of a page, the unit of everything here.
pub(crate) const PAGE: u64 = 4096;

/// Decoded instructions of this page are somewhere.
const CODE: u8 = 1;
/// It was written since [`Memory::take_dirty_pages`] looked last.
const DIRTY: u8 = 2;

/// A piece of the guest's physical address space that is memory of this process.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRegion {
    /// Its first guest-physical address: a multiple of 4096.
    pub guest_address: u64,
    /// Bytes: a multiple of 4096.
    pub size: u64,
    /// Where it is mapped in this process.
    pub host_address: *mut u8,
    /// Guest writes go to the environment.
    pub read_only: bool,
    /// Writes are recorded.
    pub log_dirty: bool,
}

// SAFETY: the pointer is only an address here; `Memory::map` has the promise that it stays valid.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

/// A region and its pages' marks.
pub(crate) struct Mapped {
    pub slot: u32,
    pub region: MemoryRegion,
    marks: Arc<[Page]>,
}

#[derive(Default)]
struct Page {
    marks: AtomicU8,
    /// Counts the times decoded instructions of the page became wrong.
    generation: AtomicU32,
}

/// All regions at one moment, by address.
pub(crate) struct Snapshot {
    regions: Vec<Arc<Mapped>>,
}

/// A page of RAM, found by its guest-physical address.
#[derive(Clone, Copy)]
pub(crate) struct Ram<'a> {
    mapped: &'a Mapped,
    /// Where the page is in this process.
    pub host: *mut u8,
    index: usize,
}

impl Snapshot {
    /// The page at a guest-physical address, when it is RAM.
    pub(crate) fn page(&self, address: u64) -> Option<Ram<'_>> {
        let after = self
            .regions
            .partition_point(|mapped| mapped.region.guest_address <= address);
        let mapped = &**self.regions.get(after.checked_sub(1)?)?;
        let offset = (address - mapped.region.guest_address) & !(PAGE - 1);
        if offset >= mapped.region.size {
            return None;
        }
        Some(Ram {
            mapped,
            host: mapped.region.host_address.wrapping_add(offset as usize),
            index: (offset / PAGE) as usize,
        })
    }
}

impl Ram<'_> {
    fn state(&self) -> &Page {
        &self.mapped.marks[self.index]
    }

    pub(crate) fn read_only(&self) -> bool {
        self.mapped.region.read_only
    }

    /// What instructions decoded from this page are valid for.
    pub(crate) fn generation(&self) -> &AtomicU32 {
        &self.state().generation
    }

    pub(crate) fn has_code(&self) -> bool {
        self.state().marks.load(Ordering::SeqCst) & CODE != 0
    }

    /// Says that the page is about to hold decoded instructions. True: it did not before, and writers must be flushed.
    pub(crate) fn mark_code(&self) -> bool {
        self.state().marks.fetch_or(CODE, Ordering::SeqCst) & CODE == 0
    }

    /// To be called before a write that no translation buffer allowed: what was decoded of the page becomes wrong, the page dirty.
    /// Afterwards an entry for writing may be made.
    pub(crate) fn before_write(&self) {
        let state = self.state();
        let marks = state.marks.load(Ordering::SeqCst);
        if marks & CODE != 0 {
            // In this order: who reads the new generation sees that the mark is gone, and marks (and flushes) again.
            state.marks.fetch_and(!CODE, Ordering::SeqCst);
            state.generation.fetch_add(1, Ordering::SeqCst);
        }
        if marks & DIRTY == 0 && self.mapped.region.log_dirty {
            state.marks.fetch_or(DIRTY, Ordering::SeqCst);
        }
    }
}

/// A processor's side of a flush.
#[derive(Default)]
struct Flush {
    /// What is wanted: how many flushes there were.
    wanted: AtomicU64,
    /// How many the processor has done.
    done: AtomicU64,
    /// The processor executes instructions (or is about to): it must be waited for.
    running: AtomicBool,
}

struct Member {
    index: u32,
    attention: Arc<Attention>,
    flush: Arc<Flush>,
}

/// The guest's RAM and its processors, as far as they must know of each other.
pub struct Memory {
    snapshot: Mutex<Arc<Snapshot>>,
    members: Mutex<Vec<Member>>,
    /// For accesses that must be alone and that the host cannot do so: locked ones across two pages.
    pub(crate) exclusive: Mutex<()>,
    /// One processor flushes the others at a time.
    flushing: Mutex<()>,
}

/// What a processor keeps to answer flushes.
pub(crate) struct Membership(Arc<Flush>);

impl Memory {
    /// No RAM at all.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            snapshot: Mutex::new(Arc::new(Snapshot { regions: vec![] })),
            members: Mutex::new(vec![]),
            exclusive: Mutex::new(()),
            flushing: Mutex::new(()),
        })
    }

    /// Makes `region` RAM under the number `slot`, in place of what the slot had. False: it overlaps another slot, is empty or not aligned.
    ///
    /// # Safety
    /// The host's memory must stay mapped, readable and writable, until [`Memory::unmap`] or the end of the last processor, and nobody may hold
    /// Rust references into it.
    pub unsafe fn map(&self, slot: u32, region: MemoryRegion) -> bool {
        let aligned = region.guest_address | region.size | region.host_address as u64;
        let Some(end) = region.guest_address.checked_add(region.size) else {
            return false;
        };
        if region.size == 0 || !aligned.is_multiple_of(PAGE) || end > 1 << 52 {
            return false;
        }
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let old = snapshot
            .regions
            .iter()
            .find(|mapped| mapped.slot == slot)
            .cloned();
        let mut regions: Vec<_> = snapshot
            .regions
            .iter()
            .filter(|mapped| mapped.slot != slot)
            .cloned()
            .collect();
        let overlaps = regions.iter().any(|mapped| {
            let other = &mapped.region;
            other.guest_address < end && region.guest_address < other.guest_address + other.size
        });
        if overlaps {
            return false;
        }
        let marks = match old {
            // Only its flags change: what is known of its pages stays true.
            Some(old)
                if (old.region.guest_address, old.region.size, old.region.host_address)
                    == (region.guest_address, region.size, region.host_address) =>
            {
                old.marks.clone()
            }
            _ => (0..region.size / PAGE).map(|_| Page::default()).collect(),
        };
        regions.push(Arc::new(Mapped { slot, region, marks }));
        regions.sort_by_key(|mapped| mapped.region.guest_address);
        *snapshot = Arc::new(Snapshot { regions });
        drop(snapshot);
        self.flush_others(None);
        true
    }

    /// Takes a slot away. No processor touches its memory any more when this has come back. False: there is none.
    pub fn unmap(&self, slot: u32) -> bool {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let regions: Vec<_> = snapshot
            .regions
            .iter()
            .filter(|mapped| mapped.slot != slot)
            .cloned()
            .collect();
        let found = regions.len() != snapshot.regions.len();
        *snapshot = Arc::new(Snapshot { regions });
        drop(snapshot);
        if found {
            self.flush_others(None);
        }
        found
    }

    /// Which pages of a slot were written since the last call, a bit each. `None`: there is no such slot.
    pub fn take_dirty_pages(&self, slot: u32) -> Option<Vec<u64>> {
        let snapshot = self.current();
        let mapped = snapshot.regions.iter().find(|mapped| mapped.slot == slot)?;
        let mut bits = vec![0_u64; mapped.marks.len().div_ceil(64)];
        for (index, page) in mapped.marks.iter().enumerate() {
            if page.marks.load(Ordering::SeqCst) & DIRTY != 0 {
                page.marks.fetch_and(!DIRTY, Ordering::SeqCst);
                bits[index / 64] |= 1 << (index % 64);
            }
        }
        // Until this flush a processor can write a page through an entry that an earlier write made, without a mark. That page is in `bits`
        // (the earlier write marked it), and who copies pages after this call copies this write, too.
        self.flush_others(None);
        Some(bits)
    }

    /// Writes to RAM for somebody who is no processor; what is no RAM, or is read-only, swallows it.
    pub fn write(&self, address: u64, data: &[u8]) {
        let snapshot = self.current();
        let mut at = address;
        let mut rest = data;
        while !rest.is_empty() {
            let offset = (at % PAGE) as usize;
            let (now, later) = rest.split_at(rest.len().min(PAGE as usize - offset));
            if let Some(ram) = snapshot.page(at).filter(|ram| !ram.read_only()) {
                // SAFETY: `Memory::map`'s caller has promised that the page is there; `now` ends within it.
                unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), ram.host.add(offset), now.len()) };
                // Afterwards: who decodes instructions meanwhile does so again.
                ram.before_write();
            }
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
    }

    /// Somebody who is no processor (a device) has written here: what was decoded of it is forgotten.
    pub fn written(&self, address: u64, length: u64) {
        let Some(last) = length.checked_sub(1).and_then(|rest| address.checked_add(rest)) else {
            return;
        };
        let snapshot = self.current();
        for page in address / PAGE..=last / PAGE {
            if let Some(ram) = snapshot.page(page * PAGE) {
                ram.before_write();
            }
        }
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.snapshot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn join(&self, index: u32, attention: &Arc<Attention>) -> Membership {
        let flush = Arc::new(Flush::default());
        self.members
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Member {
                index,
                attention: attention.clone(),
                flush: flush.clone(),
            });
        Membership(flush)
    }

    pub(crate) fn leave(&self, index: u32) {
        self.members
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|member| member.index != index);
    }

    /// Makes every processor but `me` forget its translations, and waits until those that run have done so. `me` answers flushes of others meanwhile.
    pub(crate) fn flush_others(&self, me: Option<(u32, &mut dyn FnMut())>) {
        let (me, mut answer) = match me {
            Some((index, answer)) => (Some(index), Some(answer)),
            None => (None, None),
        };
        let _one = loop {
            if let Ok(guard) = self.flushing.try_lock() {
                break guard;
            }
            // Whoever flushes may be waiting for this processor.
            match &mut answer {
                Some(answer) => answer(),
                None => std::thread::yield_now(),
            }
            std::hint::spin_loop();
        };
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let others = members.iter().filter(|member| Some(member.index) != me);
        for member in others.clone() {
            member.flush.wanted.fetch_add(1, Ordering::SeqCst);
            member.attention.raise(Attention::FLUSH);
        }
        for member in others {
            let mut spins = 0_u32;
            while member.flush.running.load(Ordering::SeqCst)
                && member.flush.done.load(Ordering::SeqCst) != member.flush.wanted.load(Ordering::SeqCst)
            {
                spins += 1;
                if spins > 100 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }
}

impl Membership {
    /// Another processor wants this one's translations forgotten.
    pub(crate) fn wanted(&self) -> Option<u64> {
        let wanted = self.0.wanted.load(Ordering::SeqCst);
        (wanted != self.0.done.load(Ordering::SeqCst)).then_some(wanted)
    }

    /// They are.
    pub(crate) fn done(&self, wanted: u64) {
        self.0.done.store(wanted, Ordering::SeqCst);
    }

    /// From here on (true) others wait for this processor; before it executes anything it must look at [`Membership::wanted`].
    pub(crate) fn running(&self, running: bool) {
        self.0.running.store(running, Ordering::SeqCst);
    }
}
