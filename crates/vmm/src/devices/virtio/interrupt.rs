//! From a device to its driver: a queue has used buffers, the configuration has changed, the device needs a reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use super::metrics::Metrics;
use crate::pci::Msix;

/// No vector: the driver wants no interrupt (4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What the transport and the workers share.
pub(super) struct Signals {
    pub(super) msix: Msix,
    /// Why it would have interrupted if it had INTx (4.1.4.5); drivers that poll read it.
    isr: AtomicU8,
    pub(super) config_vector: AtomicU16,
    pub(super) queue_vectors: Vec<AtomicU16>,
    generation: AtomicU8,
    pub(super) needs_reset: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Signals {
    pub(super) fn new(msix: Msix, queues: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            msix,
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            metrics,
        }
    }

    fn raise(&self, isr: u8, vector: u16) {
        self.isr.fetch_or(isr, Ordering::AcqRel);
        if vector != NO_VECTOR {
            self.metrics.interrupted();
            self.msix.signal(vector);
        }
    }

    /// The register that is empty after it was read.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// As it was in the beginning. The table of messages stays: it is PCI's, not virtio's.
    pub(super) fn reset(&self) {
        self.isr.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
    }
}

/// The way to a device's driver.
#[derive(Clone)]
pub struct Interrupt(pub(super) Arc<Signals>);

impl Interrupt {
    /// Buffers of queue `index` were used.
    pub(super) fn queue(&self, index: usize) {
        if let Some(vector) = self.0.queue_vectors.get(index) {
            self.0.raise(ISR_QUEUE, vector.load(Ordering::Acquire));
        }
    }

    /// The device's configuration space has changed: call it after the change.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::AcqRel);
        self.0
            .raise(ISR_CONFIG, self.0.config_vector.load(Ordering::Acquire));
    }

    /// The device cannot go on until the driver resets it (2.1.2).
    pub(super) fn needs_reset(&self) {
        self.0.needs_reset.store(true, Ordering::Release);
        self.config_changed();
    }
}
