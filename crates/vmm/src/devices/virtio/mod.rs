//! Virtio devices, after the Virtual I/O Device specification 1.2, on PCI.
//!
//! A new device is one directory. It implements [`VirtioDevice`] (who it is, its features, its configuration space) and one
//! [`Worker`] for each thread it needs (what happens when a queue has buffers). Everything else is here, once: registers and the
//! status machine ([`VirtioPci`]), rings ([`Queue`]), buffers ([`Chain`]), interrupts, threads, counters, state for snapshots.
//!
//! What a guest does wrong with a ring (an index beyond its end, a loop, a descriptor outside memory) breaks that device until the
//! driver resets it: `DEVICE_NEEDS_RESET`, as the specification has it (2.1.2). What it does wrong within a request is answered by the
//! device's own means.
//!
//! # Threads
//! A register access runs on the vCPU's thread and only wakes a worker. Workers run while the driver's status is `DRIVER_OK` and the
//! machine is not paused; they are started and joined by the transport. A reset waits until they have finished what is in flight.

pub mod balloon;
pub(crate) mod bell;
pub mod block;
mod chain;
pub mod console;
pub mod fs;
mod interrupt;
mod metrics;
pub mod net;
mod pci;
mod queue;
pub mod rate;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod timer;
pub mod vsock;
mod worker;

use std::io;
use std::sync::Arc;

pub use chain::{Buffers, Chain};
pub use interrupt::Interrupt;
pub use metrics::{Metrics, MetricsSnapshot};
pub use pci::{VirtioPci, VirtioState};
pub use queue::{Queue, QueueError, QueueHandle, QueueState};
pub use worker::{Poller, Ready, Worker, WorkerThread};

use crate::memory::Ram;

/// The ring has event indices (2.7.7.1).
pub const F_RING_EVENT_IDX: u64 = 1 << 29;
/// Descriptors can refer to tables of descriptors (2.7.5.3).
pub const F_RING_INDIRECT_DESC: u64 = 1 << 28;
/// The device follows version 1 of the specification; there are no others here.
pub const F_VERSION_1: u64 = 1 << 32;
/// Single queues can be reset (2.6.1).
pub const F_RING_RESET: u64 = 1 << 40;

/// What a kind of device is called and how a driver finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKind {
    /// Its number (5).
    pub id: u16,
    /// For threads and messages.
    pub name: &'static str,
    /// The PCI class, `0xBBSSPP`.
    pub class: u32,
}

/// A virtio device above its transport.
///
/// All calls come one at a time. Workers run beside them: what both need is shared by an `Arc` of the device's own.
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// Features it offers beside those of rings and transport.
    fn features(&self) -> u64;

    /// Whether it can work with what the driver chose: a subset of what was offered. `false` refuses `FEATURES_OK`.
    fn accepts(&self, _features: u64) -> bool {
        true
    }

    /// The largest size of each queue: powers of two, at most 1024.
    fn queues(&self) -> Vec<u16>;

    /// A load from its configuration space: 1, 2, 4 or 8 bytes. `data` holds zeroes before; what is beyond the space stays zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// A store to it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready, or the machine goes on after a pause: the workers to run. On an error the device needs a reset.
    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>>;

    /// The driver has reset it, workers have ended: forget everything it had set.
    fn reset(&mut self) {}

    /// What of it a snapshot keeps, beside rings and registers. It is only called while no worker runs.
    fn save(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Puts that back, before the first `start`.
    fn restore(&mut self, _state: &serde_json::Value) -> io::Result<()> {
        Ok(())
    }
}

/// What a device gets when it starts.
pub struct Start {
    /// Features that were agreed on, of the rings, too.
    pub features: u64,
    /// All its queues; those the driver does not use never have buffers.
    pub queues: Vec<QueueHandle>,
    /// For changes of its configuration.
    pub interrupt: Interrupt,
    /// The guest's memory.
    pub memory: Arc<Ram>,
    /// Its counters.
    pub metrics: Arc<Metrics>,
}

impl Start {
    /// Whether a feature was agreed on.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// A load from a configuration space that lies in `space`, for [`VirtioDevice::read_config`].
pub fn read_from(space: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..));
    for (byte, value) in data.iter_mut().zip(from.unwrap_or_default()) {
        *byte = *value;
    }
}
