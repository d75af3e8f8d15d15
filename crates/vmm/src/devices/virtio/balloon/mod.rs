//! virtio-balloon (virtio 1.2, section 5.5): memory that the guest gives back.
//!
//! Three ways: the host asks for an amount ([`Balloon::set_target`]) and the driver inflates; the driver deflates on its own rather than run out of memory
//! (`DEFLATE_ON_OOM`: the balloon is a wish, not a wall); and the driver reports what is free anyway (`PAGE_REPORTING`), which goes back to the host without being
//! asked for. What was given back is punched out of the memory's file: every process that maps it sees zeroes, and pays again when the guest
//! touches it.
//!
//! Queues follow each other without gaps, as drivers count them: inflate, deflate, statistics and reporting where they were agreed on.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::FallocateFlags;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::bell::{bell, ring, silence};
use super::{
    Chain, DeviceKind, Interrupt, Poller, QueueError, QueueHandle, Ready, Start, VirtioDevice, Worker,
    WorkerThread, read_from,
};
use crate::control::BalloonStats;
use crate::memory::Ram;
use crate::sync::lock;

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_REPORTING: u64 = 1 << 5;

const QUEUE_SIZE: u16 = 128;
/// The balloon's own unit, whatever the guest's pages are.
const PAGE: u64 = 4096;
/// Page numbers looked at together: a Linux driver sends 256 at a time.
const BATCH: usize = 1024;
/// Statistics that are looked at: a driver that knows more than there are tags repeats itself.
const STATS_MAX: usize = 64;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const TOKEN_STATS: u64 = 0;

struct State {
    target: u32,
    actual: u32,
    stats: BalloonStats,
    interrupt: Option<Interrupt>,
}

struct Shared {
    state: Mutex<State>,
    /// Somebody wants new statistics.
    bell: OwnedFd,
}

/// The host's hold on a balloon.
#[derive(Clone)]
pub struct Balloon(Arc<Shared>);

impl Balloon {
    /// How much the guest is to give up, in all.
    pub fn set_target(&self, bytes: u64) {
        let interrupt = {
            let mut state = lock(&self.0.state);
            state.target = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
            state.interrupt.clone()
        };
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// What the driver said last. It is asked again, for the next call.
    pub fn stats(&self) -> BalloonStats {
        ring(&self.0.bell);
        let state = lock(&self.0.state);
        BalloonStats {
            inflated: u64::from(state.actual) * PAGE,
            ..state.stats
        }
    }
}

/// The balloon device.
pub struct VirtioBalloon {
    shared: Arc<Shared>,
}

impl VirtioBalloon {
    /// A balloon with nothing in it.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    target: 0,
                    actual: 0,
                    stats: BalloonStats::default(),
                    interrupt: None,
                }),
                bell: bell()?,
            }),
        })
    }

    /// The host's hold on it.
    pub fn balloon(&self) -> Balloon {
        Balloon(self.shared.clone())
    }
}

impl VirtioDevice for VirtioBalloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            id: 5,
            name: "virtio-balloon",
            class: 0x05_00_00,
        }
    }

    fn features(&self) -> u64 {
        F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.shared.state);
        let mut space = [0; 8];
        space[..4].copy_from_slice(&state.target.to_le_bytes());
        space[4..].copy_from_slice(&state.actual.to_le_bytes());
        read_from(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) {
            lock(&self.shared.state).actual = u32::from_le_bytes(actual);
        }
    }

    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        lock(&self.shared.state).interrupt = Some(start.interrupt.clone());
        let stats = start.has(F_STATS_VQ).then_some(2);
        let reporting = start
            .has(F_PAGE_REPORTING)
            .then_some(if stats.is_some() { 3 } else { 2 });
        Ok(vec![WorkerThread {
            queues: start.queues.clone(),
            worker: Box::new(Thread {
                shared: self.shared.clone(),
                memory: start.memory,
                queues: start.queues,
                stats,
                reporting,
                held: None,
            }),
        }])
    }

    fn reset(&mut self) {
        let mut state = lock(&self.shared.state);
        // A driver that begins has given nothing up; what it is asked for stays.
        state.actual = 0;
        state.stats = BalloonStats::default();
        state.interrupt = None;
    }

    fn save(&self) -> serde_json::Value {
        let state = lock(&self.shared.state);
        serde_json::json!({ "target": state.target, "actual": state.actual })
    }

    fn restore(&mut self, saved: &serde_json::Value) -> io::Result<()> {
        let number = |name: &str| {
            saved[name]
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| io::Error::other(format!("the balloon's state has no {name}")))
        };
        let mut state = lock(&self.shared.state);
        (state.target, state.actual) = (number("target")?, number("actual")?);
        Ok(())
    }
}

struct Thread {
    shared: Arc<Shared>,
    memory: Arc<Ram>,
    queues: Vec<QueueHandle>,
    stats: Option<usize>,
    reporting: Option<usize>,
    /// The statistics' buffer: the driver fills it anew when it gets it back.
    held: Option<Chain>,
}

impl Thread {
    fn inflate(&self, chain: &mut Chain) {
        let mut bytes = [0; 4 * BATCH];
        loop {
            let read = chain.readable.read(&mut bytes);
            let mut pages: Vec<u64> = bytes[..read]
                .chunks_exact(4)
                .map(|number| u64::from(u32::from_le_bytes([number[0], number[1], number[2], number[3]])))
                .collect();
            pages.sort_unstable();
            pages.dedup();
            for run in pages.chunk_by(|page, next| page + 1 == *next) {
                release(&self.memory, run[0] * PAGE, run.len() as u64 * PAGE);
            }
            if read < bytes.len() {
                return;
            }
        }
    }

    fn reported(&self, chain: &Chain) {
        for (address, length) in chain.writable.places() {
            // Only whole pages: what is around them is somebody's.
            let start = address.next_multiple_of(PAGE);
            let end = (address + length as u64) / PAGE * PAGE;
            if start < end {
                release(&self.memory, start, end - start);
            }
        }
    }

    fn statistics(&mut self, mut chain: Chain) -> Result<(), QueueError> {
        let mut stats = BalloonStats::default();
        for _ in 0..STATS_MAX {
            let mut entry = [0; 10];
            if chain.readable.read(&mut entry) < entry.len() {
                break;
            }
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let mut value = [0; 8];
            value.copy_from_slice(&entry[2..]);
            let value = Some(u64::from_le_bytes(value));
            // VIRTIO_BALLOON_S_*, section 5.5.6.4.
            match tag {
                0 => stats.swap_in = value,
                1 => stats.swap_out = value,
                2 => stats.major_faults = value,
                3 => stats.minor_faults = value,
                4 => stats.free = value,
                5 => stats.total = value,
                6 => stats.available = value,
                7 => stats.caches = value,
                _ => {}
            }
        }
        lock(&self.shared.state).stats = stats;
        // A driver has one; of one that sends more the last is kept.
        match (self.held.replace(chain), self.stats) {
            (Some(before), Some(index)) => self.queues[index].push(before, 0),
            _ => Ok(()),
        }
    }
}

impl Worker for Thread {
    fn start(&mut self, poller: &Poller) -> Result<(), QueueError> {
        poller.add(&self.shared.bell, TOKEN_STATS, Ready::READ)?;
        Ok(())
    }

    fn queue(&mut self, index: usize, _: &Poller) -> Result<(), QueueError> {
        let Some(queue) = self.queues.get(index).cloned() else {
            return Ok(());
        };
        queue.for_each(|mut chain| {
            if Some(index) == self.stats {
                self.statistics(chain)?;
                return Ok(None);
            }
            match index {
                INFLATE => self.inflate(&mut chain),
                // The guest takes its pages back by touching them.
                DEFLATE => {}
                _ if Some(index) == self.reporting => self.reported(&chain),
                _ => {}
            }
            Ok(Some((chain, 0)))
        })
    }

    fn event(&mut self, _: u64, _: Ready, _: &Poller) -> Result<(), QueueError> {
        silence(&self.shared.bell);
        match (self.held.take(), self.stats) {
            (Some(chain), Some(index)) => self.queues[index].push(chain, 0),
            _ => Ok(()),
        }
    }

    fn stop(&mut self) {
        // Before a pause the driver gets its buffer back, and sends it again.
        if let (Some(chain), Some(index)) = (self.held.take(), self.stats)
            && let Err(error) = self.queues[index].push(chain, 0)
        {
            tracing::debug!(%error, "the balloon's statistics end");
        }
    }
}

/// Gives whole pages back to the host, as far as they are RAM.
fn release(memory: &Ram, address: u64, length: u64) {
    let Some(end) = address.checked_add(length) else {
        return;
    };
    for region in memory.iter() {
        let start = region.start_addr().0;
        let (from, to) = (address.max(start), end.min(start + region.len()));
        let Some(file) = region.file_offset().filter(|_| from < to) else {
            continue;
        };
        debug_assert!(memory.check_range(GuestAddress(from), 1));
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let offset = file.start() + (from - start);
        if let Err(error) = rustix::fs::fallocate(file.file(), hole, offset, to - from) {
            tracing::debug!(%error, "memory of the guest cannot be given back");
            continue;
        }
        // It is zeroes now. An offset in a region of this process's memory fits.
        if let (Ok(offset), Ok(length)) = (usize::try_from(from - start), usize::try_from(to - from)) {
            region.bitmap().mark_dirty(offset, length);
        }
    }
}
