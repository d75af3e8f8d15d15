//! Split virtqueues, the device's side (virtio 1.2, 2.7).
//!
//! `virtio-queue` is not used here: it ends a chain silently where a descriptor is wrong, so that half a request looks like a whole one, and
//! it does not know `VIRTQ_AVAIL_F_NO_INTERRUPT`.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::chain::{Buffers, Chain};
use super::interrupt::Interrupt;
use crate::memory::Ram;
use crate::sync::lock;

/// Descriptors a chain can have, with those of an indirect table. Drivers keep to the size of the queue, or go a little beyond it.
const CHAIN_MAX: u32 = 1024;
/// Bytes a chain can have (2.7.5.2).
const CHAIN_BYTES_MAX: u64 = 1 << 32;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const DESC_SIZE: u64 = 16;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// What a driver did wrong with a ring. The device needs a reset after it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// An index has jumped.
    #[error("the driver offers {0} buffers in a queue of {1}")]
    Index(u16, u16),
    /// A descriptor that is not there.
    #[error("the driver names descriptor {0} of a table of {1}")]
    Descriptor(u32, u32),
    /// A chain without end.
    #[error("the driver offers a chain of more than {CHAIN_MAX} descriptors or 4 GiB")]
    Endless,
    /// A table within a table, or of no whole number of descriptors.
    #[error("the driver offers a table of {0} bytes where none may be, or of such a length")]
    Table(u32),
    /// A buffer to read after one to write.
    #[error("the driver offers a buffer to read behind one to write")]
    Order,
    /// A buffer that is no memory.
    #[error("the driver offers {length} bytes at {address:#x}, which is not all memory")]
    Outside {
        /// Where it begins.
        address: u64,
        /// Its length.
        length: usize,
    },
    /// A ring that is no memory, or not aligned.
    #[error("the driver puts a ring at {0:#x}, which is not all memory or not aligned")]
    Ring(u64),
    /// The host refused what the device cannot do without.
    #[error("the device cannot go on: {0}")]
    Device(#[from] std::io::Error),
}

/// What of a queue a snapshot keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Its size.
    pub size: u16,
    /// The driver has switched it on.
    pub ready: bool,
    /// The descriptor table.
    pub descriptors: u64,
    /// The ring of what is available.
    pub available: u64,
    /// The ring of what was used.
    pub used: u64,
    /// The next entry to take.
    pub next_available: u16,
    /// The next entry to give back.
    pub next_used: u16,
    /// The next entry to give back when the driver was last interrupted, or not because it wanted none.
    pub signalled: u16,
}

/// One queue.
#[derive(Debug)]
pub struct Queue {
    memory: Arc<Ram>,
    max_size: u16,
    state: QueueState,
    event_index: bool,
    generation: u32,
    in_flight: Arc<AtomicU32>,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Queue {
    pub(super) fn new(memory: Arc<Ram>, max_size: u16) -> Self {
        let mut queue = Self {
            memory,
            max_size,
            state: QueueState::default(),
            event_index: false,
            generation: 0,
            in_flight: Arc::new(AtomicU32::new(0)),
        };
        queue.reset();
        queue
    }

    /// As it was in the beginning. Chains that are still out are never given back.
    pub(super) fn reset(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.state = QueueState {
            size: self.max_size,
            ..QueueState::default()
        };
        // Chains that are still out belong to the old life.
        self.event_index = false;
    }

    /// Whether chains are out that were not given back or dropped.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) != 0
    }

    pub(super) fn state(&self) -> &QueueState {
        &self.state
    }

    /// What a driver can change while the queue is off.
    pub(super) fn setup(&mut self) -> Option<&mut QueueState> {
        (!self.state.ready).then_some(&mut self.state)
    }

    /// The largest size it can have.
    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Sets the size, if it is one.
    pub(super) fn set_size(&mut self, size: u16) {
        if !self.state.ready && size.is_power_of_two() && size <= self.max_size {
            self.state.size = size;
        }
    }

    pub(super) fn set_event_index(&mut self, on: bool) {
        self.event_index = on;
    }

    /// Switches it on, if its rings are memory.
    pub(super) fn enable(&mut self) -> Result<(), QueueError> {
        let size = usize::from(self.state.size);
        for (start, align, length) in [
            (self.state.descriptors, 16, 16 * size),
            (self.state.available, 2, 6 + 2 * size),
            (self.state.used, 4, 6 + 8 * size),
        ] {
            if start % align != 0
                || !GuestMemoryBackend::check_range(&*self.memory, GuestAddress(start), length)
            {
                return Err(QueueError::Ring(start));
            }
        }
        self.state.ready = true;
        Ok(())
    }

    pub(super) fn restore(&mut self, state: &QueueState) -> Result<(), QueueError> {
        self.reset();
        self.set_size(state.size);
        let size = self.state.size;
        self.state = QueueState {
            size,
            ready: false,
            ..state.clone()
        };
        if state.ready { self.enable() } else { Ok(()) }
    }

    /// The driver uses it.
    pub fn is_ready(&self) -> bool {
        self.state.ready
    }

    fn load(&self, address: u64) -> Result<u16, QueueError> {
        let value = self.memory.load::<u16>(GuestAddress(address), Ordering::Acquire);
        value.map_err(|_| QueueError::Ring(address))
    }

    fn store(&self, value: u16, address: u64) -> Result<(), QueueError> {
        let stored = self.memory.store(value, GuestAddress(address), Ordering::Release);
        stored.map_err(|_| QueueError::Ring(address))
    }

    /// How many chains wait.
    pub fn waiting(&self) -> Result<u16, QueueError> {
        if !self.state.ready {
            return Ok(0);
        }
        let waiting = self
            .load(self.state.available + 2)?
            .wrapping_sub(self.state.next_available);
        if waiting > self.state.size {
            return Err(QueueError::Index(waiting, self.state.size));
        }
        Ok(waiting)
    }

    /// Takes the next chain, if one waits.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        if self.waiting()? == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.state.next_available % self.state.size);
        let head = self.load(self.state.available + 4 + 2 * slot)?;
        let chain = self.walk(head)?;
        self.state.next_available = self.state.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts the chain that was taken last back, as the first that waits.
    pub fn undo(&mut self, chain: Chain) {
        if chain.generation == self.generation {
            self.state.next_available = self.state.next_available.wrapping_sub(1);
        }
    }

    /// Reads a chain. Every descriptor is read once.
    fn walk(&self, head: u16) -> Result<Chain, QueueError> {
        let mut readable = Buffers::new(self.memory.clone());
        let mut writable = Buffers::new(self.memory.clone());
        let mut table = self.state.descriptors;
        let mut table_size = u32::from(self.state.size);
        let mut indirect = false;
        let mut index = u32::from(head);
        let mut bytes = 0;
        let mut write_seen = false;
        for _ in 0..CHAIN_MAX {
            if index >= table_size {
                return Err(QueueError::Descriptor(index, table_size));
            }
            let descriptor = self.descriptor(table + u64::from(index) * DESC_SIZE)?;
            if descriptor.flags & DESC_INDIRECT != 0 {
                let size = descriptor.length / 16;
                if indirect || size == 0 || descriptor.length % 16 != 0 || descriptor.flags & DESC_NEXT != 0 {
                    return Err(QueueError::Table(descriptor.length));
                }
                // It must be memory as a whole: no addition to it can overflow then.
                if !GuestMemoryBackend::check_range(
                    &*self.memory,
                    GuestAddress(descriptor.address),
                    descriptor.length as usize,
                ) {
                    return Err(QueueError::Ring(descriptor.address));
                }
                (indirect, table, table_size, index) = (true, descriptor.address, size, 0);
                continue;
            }
            bytes += u64::from(descriptor.length);
            if bytes > CHAIN_BYTES_MAX {
                return Err(QueueError::Endless);
            }
            if descriptor.flags & DESC_WRITE != 0 {
                write_seen = true;
                writable.push(descriptor.address, descriptor.length)?;
            } else if write_seen {
                return Err(QueueError::Order);
            } else {
                readable.push(descriptor.address, descriptor.length)?;
            }
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok(Chain::new(
                    head,
                    self.generation,
                    readable,
                    writable,
                    &self.in_flight,
                ));
            }
            index = u32::from(descriptor.next);
        }
        Err(QueueError::Endless)
    }

    fn descriptor(&self, address: u64) -> Result<Descriptor, QueueError> {
        let mut bytes = [0; 16];
        let read = self.memory.read_slice(&mut bytes, GuestAddress(address));
        read.map_err(|_| QueueError::Ring(address))?;
        let [a, b] = [&bytes[..8], &bytes[8..]].map(|half| {
            let mut word = [0; 8];
            word.copy_from_slice(half);
            u64::from_le_bytes(word)
        });
        // The fields are pieces of the second word.
        #[expect(clippy::cast_possible_truncation)]
        Ok(Descriptor {
            address: a,
            length: b as u32,
            flags: (b >> 32) as u16,
            next: (b >> 48) as u16,
        })
    }

    /// Gives a chain back; the device has written `length` bytes from the start of what it may write. Of an earlier life of the queue it is
    /// dropped.
    pub fn push(&mut self, chain: Chain, length: u32) -> Result<(), QueueError> {
        self.push_all([(chain, length)])
    }

    /// Gives several chains back so that the driver sees all of them or none: a packet in several buffers.
    pub fn push_all(&mut self, chains: impl IntoIterator<Item = (Chain, u32)>) -> Result<(), QueueError> {
        for (mut chain, length) in chains {
            chain.mark_dirty();
            if !self.is_current(&chain) {
                continue;
            }
            let slot = u64::from(self.state.next_used % self.state.size);
            let at = self.state.used + 4 + 8 * slot;
            let element = u64::from(chain.head) | u64::from(length) << 32;
            let written = self.memory.write_obj(element.to_le(), GuestAddress(at));
            written.map_err(|_| QueueError::Ring(at))?;
            self.state.next_used = self.state.next_used.wrapping_add(1);
        }
        if self.state.ready {
            self.store(self.state.next_used, self.state.used + 2)?;
        }
        Ok(())
    }

    /// Whether a chain is of this life of the queue. One that is not is to be dropped: nobody waits for it.
    pub fn is_current(&self, chain: &Chain) -> bool {
        self.state.ready && chain.generation == self.generation
    }

    /// Asks the driver not to ring. It may all the same.
    pub fn disable_notifications(&mut self) -> Result<(), QueueError> {
        if !self.state.ready || self.event_index {
            // With event indices it rings once and then not until the index is moved.
            return Ok(());
        }
        self.store(USED_NO_NOTIFY, self.state.used)
    }

    /// Asks the driver to ring for the next chain. True if one waits already, for which it may not ring.
    pub fn enable_notifications(&mut self) -> Result<bool, QueueError> {
        if !self.state.ready {
            return Ok(false);
        }
        if self.event_index {
            let at = self.state.used + 4 + 8 * u64::from(self.state.size);
            self.store(self.state.next_available, at)?;
        } else {
            self.store(0, self.state.used)?;
        }
        // The driver writes its index and reads ours; we did it the other way round. One of both sees the other's.
        fence(Ordering::SeqCst);
        Ok(self.waiting()? != 0)
    }

    /// Whether the driver wants to hear of what was given back since this was last asked.
    fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        let (old, new) = (self.state.signalled, self.state.next_used);
        if !self.state.ready || old == new {
            return Ok(false);
        }
        self.state.signalled = new;
        fence(Ordering::SeqCst);
        if self.event_index {
            let event = self.load(self.state.available + 4 + 2 * u64::from(self.state.size))?;
            // The event is among those entries that were given back since (2.7.10).
            return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
        }
        Ok(self.load(self.state.available)? & AVAIL_NO_INTERRUPT == 0)
    }
}

/// A worker's way to a queue that it shares with the transport.
#[derive(Clone)]
pub struct QueueHandle {
    pub(super) index: usize,
    pub(super) queue: Arc<Mutex<Queue>>,
    pub(super) interrupt: Interrupt,
    pub(super) bell: Arc<OwnedFd>,
}

impl QueueHandle {
    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Locks it, for several steps at once. The transport waits for it: do no I/O meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Takes the next chain, if one waits.
    pub fn pop(&self) -> Result<Option<Chain>, QueueError> {
        self.lock().pop()
    }

    /// Gives a chain back and interrupts the driver if it wants that.
    pub fn push(&self, chain: Chain, length: u32) -> Result<(), QueueError> {
        self.lock().push(chain, length)?;
        self.signal()
    }

    /// Interrupts the driver if it wants to hear of what was given back.
    pub fn signal(&self) -> Result<(), QueueError> {
        let wanted = self.lock().wants_interrupt()?;
        if wanted {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Has the queue's worker called again, as if the driver had rung.
    pub fn ring(&self) {
        super::bell::ring(&self.bell);
    }

    /// Calls `f` with every chain that waits. What `f` returns is given back: the chain, and how many bytes were written; `None` if the
    /// device keeps it for now. The driver is interrupted once at the end. A driver that never stops is left after some rounds, and
    /// the worker is called again: other queues and the machine's end get their turn.
    pub fn for_each(
        &self,
        mut f: impl FnMut(Chain) -> Result<Option<(Chain, u32)>, QueueError>,
    ) -> Result<(), QueueError> {
        let mut rounds = 2 * u32::from(self.lock().max_size());
        loop {
            self.lock().disable_notifications()?;
            while rounds > 0
                && let Some(chain) = self.pop()?
            {
                rounds -= 1;
                if let Some((chain, length)) = f(chain)? {
                    self.lock().push(chain, length)?;
                }
            }
            self.signal()?;
            if rounds == 0 {
                self.ring();
                return Ok(());
            }
            if !self.lock().enable_notifications()? {
                return Ok(());
            }
        }
    }
}
