//! A driver for tests: it finds a device's registers by its PCI capabilities, negotiates, lays rings out in guest memory, sends requests
//! and waits for interrupts, as a kernel does. Hostile tests write to the rings by hand.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::{F_RING_EVENT_IDX, VirtioDevice, VirtioPci};
use crate::accel::Msi;
use crate::memory::{Memory, Ram};
use crate::pci::{Function, MsiSink};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where buffers begin; what lies before is rings.
const BUFFERS: u64 = 0x10_0000;
const MEMORY: u64 = 32 << 20;

/// A buffer of a request.
#[derive(Clone, Copy)]
pub(crate) enum Buffer<'a> {
    /// For the device to read.
    Out(&'a [u8]),
    /// For the device to write.
    In(usize),
}

/// A request that was sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) head: u16,
    /// Where its buffers for the device are, in order.
    pub(crate) inputs: Vec<(u64, usize)>,
}

/// Vectors of interrupts that have come.
#[derive(Default)]
pub(crate) struct Interrupts {
    seen: Mutex<Vec<u32>>,
    came: Condvar,
}

impl Interrupts {
    fn sink(self: &Arc<Self>) -> MsiSink {
        let seen = self.clone();
        Arc::new(move |msi: Msi| {
            seen.seen.lock().unwrap().push(msi.data);
            seen.came.notify_all();
        })
    }

    /// How often `vector` has come.
    pub(crate) fn count(&self, vector: u32) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| **seen == vector)
            .count()
    }
}

/// The driver's side of a queue.
pub(crate) struct FakeQueue {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    notify: u64,
    next_available: u16,
    seen_used: u16,
    next_descriptor: u16,
}

/// The driver.
pub(crate) struct FakeDriver {
    pub(crate) device: Arc<VirtioPci>,
    pub(crate) memory: Arc<Ram>,
    pub(crate) interrupts: Arc<Interrupts>,
    pub(crate) queues: Vec<FakeQueue>,
    common: u64,
    config: u64,
    next_buffer: u64,
    features: u64,
}

/// Interrupts that only change of configuration make have this vector; queue `n` has `n + 1`.
pub(crate) const CONFIG_VECTOR: u32 = 0;

impl FakeDriver {
    /// Finds the device; nothing is negotiated yet.
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = Memory::new(MEMORY).unwrap().ram().clone();
        let interrupts = Arc::new(Interrupts::default());
        let device = VirtioPci::new(device, "test", memory.clone(), interrupts.sink()).unwrap();
        let mut driver = Self {
            device,
            memory,
            interrupts,
            queues: Vec::new(),
            common: 0,
            config: 0,
            next_buffer: BUFFERS,
            features: 0,
        };
        driver.common = driver.capability(1).0;
        driver.config = driver.capability(4).0;
        driver
    }

    /// Finds it and starts it, with everything it offers.
    pub(crate) fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Self::new(device);
        let offered = driver.offered();
        assert!(driver.negotiate(offered));
        driver.set_up();
        driver
    }

    /// The offset of a kind of registers in the BAR, and the multiplier of notifications.
    fn capability(&self, kind: u8) -> (u64, u64) {
        let mut at = usize::from(self.pci::<1>(0x34)[0]);
        while at != 0 {
            let head: [u8; 4] = self.pci(at);
            if head[0] == 9 && head[3] == kind {
                return (
                    u32::from_le_bytes(self.pci(at + 8)).into(),
                    u32::from_le_bytes(self.pci(at + 16)).into(),
                );
            }
            at = head[1].into();
        }
        panic!("the device has no registers of kind {kind}");
    }

    fn pci<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut data = [0; N];
        self.device.read_config(at, &mut data);
        data
    }

    fn load<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0xff; N];
        self.device.read_bar(0, at, &mut data);
        data
    }

    /// A load from the common registers.
    pub(crate) fn common<const N: usize>(&self, at: u64) -> [u8; N] {
        self.load(self.common + at)
    }

    /// A store to the common registers.
    pub(crate) fn set_common(&self, at: u64, data: &[u8]) {
        self.device.write_bar(0, self.common + at, data);
    }

    /// A load from the device's own configuration.
    pub(crate) fn config<const N: usize>(&self, at: u64) -> [u8; N] {
        self.load(self.config + at)
    }

    /// A store to it.
    pub(crate) fn set_config(&self, at: u64, data: &[u8]) {
        self.device.write_bar(0, self.config + at, data);
    }

    pub(crate) fn status(&self) -> u8 {
        self.common::<1>(0x14)[0]
    }

    pub(crate) fn set_status(&self, status: u8) {
        self.set_common(0x14, &[status]);
    }

    /// All features it offers.
    pub(crate) fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.set_common(0, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.common(4)))
        };
        half(0) | half(1) << 32
    }

    /// Resets it and goes up to `FEATURES_OK`: whether the device agreed.
    pub(crate) fn negotiate(&mut self, features: u64) -> bool {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        for select in 0..2_u32 {
            self.set_common(8, &select.to_le_bytes());
            let half = u32::try_from(features >> (32 * select) & 0xffff_ffff).unwrap();
            self.set_common(0xc, &half.to_le_bytes());
        }
        self.set_status(3 | 8);
        self.features = features;
        self.status() & 8 != 0
    }

    /// Sets all queues and their interrupts up and says that the driver is ready.
    pub(crate) fn set_up(&mut self) {
        self.set_up_queues();
        self.set_status(3 | 8 | 4);
    }

    /// Sets all queues and their interrupts up.
    pub(crate) fn set_up_queues(&mut self) {
        self.enable_msix();
        self.set_common(0x10, &0_u16.to_le_bytes());
        let count = u16::from_le_bytes(self.common(0x12));
        self.queues.clear();
        let mut at = 0x1000;
        for index in 0..count {
            self.set_common(0x16, &index.to_le_bytes());
            let size = u16::from_le_bytes(self.common(0x18));
            let descriptors = at;
            let available = descriptors + 16 * u64::from(size);
            let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
            at = (used + 6 + 8 * u64::from(size)).next_multiple_of(4096);
            assert!(at <= BUFFERS, "rings do not fit");
            self.memory
                .write_slice(
                    &vec![0; usize::try_from(at - descriptors).unwrap()],
                    GuestAddress(descriptors),
                )
                .unwrap();
            let queue = FakeQueue {
                size,
                descriptors,
                available,
                used,
                notify: u16::from_le_bytes(self.common(0x1e)).into(),
                next_available: 0,
                seen_used: 0,
                next_descriptor: 0,
            };
            self.enable_queue(index, &queue);
            self.queues.push(queue);
        }
    }

    /// Tells the device where a queue is and switches it on.
    pub(crate) fn enable_queue(&self, index: u16, queue: &FakeQueue) {
        self.set_common(0x16, &index.to_le_bytes());
        self.set_common(0x1a, &(index + 1).to_le_bytes());
        for (field, address) in [
            (0x20, queue.descriptors),
            (0x28, queue.available),
            (0x30, queue.used),
        ] {
            self.set_common(field, &address.to_le_bytes()[..4]);
            self.set_common(field + 4, &address.to_le_bytes()[4..]);
        }
        self.set_common(0x1c, &1_u16.to_le_bytes());
    }

    /// Every vector gets its number as its message.
    fn enable_msix(&self) {
        let mut at = usize::from(self.pci::<1>(0x34)[0]);
        while self.pci::<1>(at)[0] != 0x11 {
            at = self.pci::<2>(at)[1].into();
            assert_ne!(at, 0, "the device has no MSI-X");
        }
        let vectors = (u16::from_le_bytes(self.pci(at + 2)) & 0x7ff) + 1;
        let table = u64::from(u32::from_le_bytes(self.pci(at + 4)) & !7);
        for vector in 0..vectors {
            let entry = table + 16 * u64::from(vector);
            self.device.write_bar(0, entry, &0xfee0_0000_u64.to_le_bytes());
            self.device
                .write_bar(0, entry + 8, &u64::from(vector).to_le_bytes());
        }
        self.device.write_config(at + 2, &0x8000_u16.to_le_bytes());
    }

    /// Memory for buffers; it is never given back.
    pub(crate) fn allocate(&mut self, length: usize) -> u64 {
        let at = self.next_buffer;
        self.next_buffer = (at + length as u64).next_multiple_of(64);
        assert!(
            self.next_buffer <= MEMORY,
            "the test has used up the guest's memory"
        );
        at
    }

    /// Starts over with buffers: nothing may be in flight.
    pub(crate) fn free_buffers(&mut self) {
        self.next_buffer = BUFFERS;
    }

    /// Writes a descriptor.
    pub(crate) fn describe(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Puts buffers into memory and descriptors for them into `table` from `first` on, wrapping at `size`.
    fn lay_out(&mut self, table: u64, first: u16, size: u16, buffers: &[Buffer<'_>]) -> Vec<(u64, usize)> {
        let mut inputs = Vec::new();
        for (n, buffer) in (0..).zip(buffers) {
            let (length, write) = match buffer {
                Buffer::Out(bytes) => (bytes.len(), 0),
                Buffer::In(length) => (*length, 2),
            };
            let address = self.allocate(length);
            match buffer {
                Buffer::Out(bytes) => self.memory.write_slice(bytes, GuestAddress(address)).unwrap(),
                Buffer::In(length) => {
                    self.memory
                        .write_slice(&vec![0xee; *length], GuestAddress(address))
                        .unwrap();
                    inputs.push((address, *length));
                }
            }
            let more = u16::from(usize::from(n) + 1 < buffers.len());
            let (index, next) = ((first + n) % size, (first + n + 1) % size);
            self.describe(
                table,
                index,
                address,
                u32::try_from(length).unwrap(),
                write | more,
                next,
            );
        }
        inputs
    }

    /// Offers a request without ringing.
    pub(crate) fn offer(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Sent {
        let FakeQueue {
            size,
            descriptors,
            next_descriptor: head,
            ..
        } = self.queues[queue];
        let inputs = self.lay_out(descriptors, head, size, buffers);
        self.queues[queue].next_descriptor = (head + u16::try_from(buffers.len()).unwrap()) % size;
        self.make_available(queue, head);
        Sent { head, inputs }
    }

    /// Offers a request by a table of its own, without ringing.
    pub(crate) fn offer_indirect(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Sent {
        let length = 16 * buffers.len();
        let table = self.allocate(length);
        let inputs = self.lay_out(table, 0, u16::MAX, buffers);
        let FakeQueue {
            size,
            descriptors,
            next_descriptor: head,
            ..
        } = self.queues[queue];
        self.describe(descriptors, head, table, u32::try_from(length).unwrap(), 4, 0);
        self.queues[queue].next_descriptor = (head + 1) % size;
        self.make_available(queue, head);
        Sent { head, inputs }
    }

    /// Puts a head into the ring of what is available.
    pub(crate) fn make_available(&mut self, queue: usize, head: u16) {
        let queue = &mut self.queues[queue];
        let slot = u64::from(queue.next_available % queue.size);
        self.memory
            .write_obj(head, GuestAddress(queue.available + 4 + 2 * slot))
            .unwrap();
        queue.next_available = queue.next_available.wrapping_add(1);
        let index = GuestAddress(queue.available + 2);
        self.memory
            .store(queue.next_available, index, std::sync::atomic::Ordering::SeqCst)
            .unwrap();
    }

    /// Rings.
    pub(crate) fn ring(&self, queue: usize) {
        let (notify, stride) = self.capability(2);
        let at = notify + stride * self.queues[queue].notify;
        self.device
            .write_bar(0, at, &u16::try_from(queue).unwrap().to_le_bytes());
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Sent {
        let sent = self.offer(queue, buffers);
        self.ring(queue);
        sent
    }

    /// The next request that was given back, and how much was written, if there is one by now.
    pub(crate) fn poll(&mut self, queue: usize) -> Option<(u16, u32)> {
        let event_index = self.features & F_RING_EVENT_IDX != 0;
        let queue = &mut self.queues[queue];
        let index: u16 = self
            .memory
            .load(GuestAddress(queue.used + 2), std::sync::atomic::Ordering::SeqCst)
            .unwrap();
        if index == queue.seen_used {
            return None;
        }
        let slot = u64::from(queue.seen_used % queue.size);
        let head: u32 = self
            .memory
            .read_obj(GuestAddress(queue.used + 4 + 8 * slot))
            .unwrap();
        let length: u32 = self
            .memory
            .read_obj(GuestAddress(queue.used + 8 + 8 * slot))
            .unwrap();
        queue.seen_used = queue.seen_used.wrapping_add(1);
        if event_index {
            let event = queue.available + 4 + 2 * u64::from(queue.size);
            self.memory
                .store(
                    queue.seen_used,
                    GuestAddress(event),
                    std::sync::atomic::Ordering::SeqCst,
                )
                .unwrap();
        }
        Some((u16::try_from(head).unwrap(), length))
    }

    /// Waits for an interrupt of the queue until a request was given back.
    pub(crate) fn wait(&mut self, queue: usize) -> (u16, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = self.interrupts.clone();
            let guard = seen.seen.lock().unwrap();
            if let Some(used) = self.poll(queue) {
                return used;
            }
            let left = end
                .checked_duration_since(Instant::now())
                .expect("the device has not answered");
            drop(seen.came.wait_timeout(guard, left).unwrap());
        }
    }

    /// Sends a request and waits for its answer: how much was written, and what is in the buffers for the device, one after the other.
    pub(crate) fn request(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> (u32, Vec<u8>) {
        let sent = self.send(queue, buffers);
        let (head, length) = self.wait(queue);
        assert_eq!(head, sent.head);
        (length, self.inputs(&sent))
    }

    /// What is in the buffers for the device.
    pub(crate) fn inputs(&self, sent: &Sent) -> Vec<u8> {
        let mut all = Vec::new();
        for (address, length) in &sent.inputs {
            let mut bytes = vec![0; *length];
            self.memory
                .read_slice(&mut bytes, GuestAddress(*address))
                .unwrap();
            all.extend(bytes);
        }
        all
    }

    /// Waits until the device says that it needs a reset.
    pub(crate) fn wait_for_needs_reset(&self) {
        self.wait_until("the device does not say that it needs a reset", || {
            self.status() & 64 != 0
        });
    }

    /// Waits until something is so.
    pub(crate) fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lays a queue's rings out anew and switches it on, after a reset of that queue.
    pub(crate) fn renew_queue(&mut self, index: u16) {
        let queue = &mut self.queues[usize::from(index)];
        (queue.next_available, queue.seen_used, queue.next_descriptor) = (0, 0, 0);
        let size = usize::from(queue.size);
        for (at, length) in [(queue.available, 6 + 2 * size), (queue.used, 6 + 8 * size)] {
            self.memory
                .write_slice(&vec![0; length], GuestAddress(at))
                .unwrap();
        }
        self.enable_queue(index, &self.queues[usize::from(index)]);
    }

    /// Where another device's interrupts go to be this driver's.
    pub(crate) fn sink(&self) -> MsiSink {
        self.interrupts.sink()
    }
}
