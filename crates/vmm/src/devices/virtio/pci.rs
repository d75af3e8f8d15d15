//! Virtio over PCI (virtio 1.2, 4.1), the modern interface only: registers, the status machine, life and end of workers.
//!
//! One 32-bit BAR of 16 KiB holds all registers:
//!
//! | offset | what |
//! |---|---|
//! | `0` | common configuration |
//! | `0x100` | ISR status |
//! | `0x1000` | the device's own configuration |
//! | `0x2000` | notifications, 4 bytes for each queue |
//! | `0x3000` | MSI-X table |
//! | `0x3800` | MSI-X pending bits |

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::bell::{bell, ring};
use super::interrupt::{Interrupt, NO_VECTOR, Signals};
use super::metrics::Metrics;
use super::queue::{Queue, QueueHandle, QueueState};
use super::worker::Running;
use super::{
    DeviceKind, F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_RING_RESET, F_VERSION_1, Start, VirtioDevice,
};
use crate::memory::Ram;
use crate::pci::{Bar, ConfigSpace, ConfigState, Function, Identity, MsiSink, Msix, MsixState};
use crate::sync::lock;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;

const BAR: usize = 0;
const BAR_SIZE: u64 = 0x4000;
const COMMON: u64 = 0;
const COMMON_SIZE: u64 = 0x3c;
const ISR: u64 = 0x100;
const DEVICE: u64 = 0x1000;
const NOTIFY: u64 = 0x2000;
const NOTIFY_STRIDE: u64 = 4;
const TABLE: u64 = 0x3000;
const PENDING: u64 = 0x3800;
/// Vectors the table has room for.
const VECTORS_MAX: usize = ((PENDING - TABLE) / crate::pci::MSIX_ENTRY_SIZE) as usize;
const QUEUES_MAX: usize = 256;
const QUEUE_SIZE_MAX: u16 = 1024;

const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;

/// Status bits (2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// Everything of a device that a snapshot keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VirtioState {
    /// The device's number: state is never put into another kind.
    id: u16,
    config: ConfigState,
    msix: MsixState,
    status: u8,
    needs_reset: bool,
    device_feature_select: u32,
    driver_feature_select: u32,
    features: u64,
    queue_select: u16,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    queues: Vec<QueueState>,
    device: serde_json::Value,
}

/// What the registers are about, beside what workers share.
struct Registers {
    device: Box<dyn VirtioDevice>,
    device_feature_select: u32,
    driver_feature_select: u32,
    /// What the driver chose.
    features: u64,
    queue_select: u16,
    status: u8,
    running: Vec<Running>,
    paused: bool,
}

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    kind: DeviceKind,
    label: String,
    offered: u64,
    memory: Arc<Ram>,
    config: Mutex<ConfigSpace>,
    registers: Mutex<Registers>,
    queues: Vec<Arc<Mutex<Queue>>>,
    bells: Vec<Arc<OwnedFd>>,
    signals: Arc<Signals>,
    metrics: Arc<Metrics>,
    msix_capability: usize,
    pci_capability: usize,
}

impl VirtioPci {
    /// Puts `device` behind PCI registers. `label` names it in messages and its threads.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        label: &str,
        memory: Arc<Ram>,
        sink: MsiSink,
    ) -> io::Result<Arc<Self>> {
        let kind = device.kind();
        let sizes = device.queues();
        if sizes.len() > QUEUES_MAX
            || sizes
                .iter()
                .any(|size| !size.is_power_of_two() || *size > QUEUE_SIZE_MAX)
        {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + kind.id,
            revision: 1,
            class: kind.class,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE_BASE + kind.id,
        });
        config.add_bar(
            BAR,
            Bar {
                size: BAR_SIZE,
                wide: false,
            },
        );
        let notify_size = NOTIFY_STRIDE * sizes.len().max(1) as u64;
        add_region(&mut config, TYPE_COMMON, COMMON, COMMON_SIZE, &[]);
        add_region(&mut config, TYPE_ISR, ISR, 1, &[]);
        add_region(&mut config, TYPE_DEVICE, DEVICE, 0x1000, &[]);
        add_region(
            &mut config,
            TYPE_NOTIFY,
            NOTIFY,
            notify_size,
            &4_u32.to_le_bytes(),
        );
        let pci_capability = add_region(&mut config, TYPE_PCI, 0, 0, &[0; 4]);
        let vectors = (sizes.len() + 1).min(VECTORS_MAX);
        // Fits: at most 128.
        #[expect(clippy::cast_possible_truncation)]
        let vectors = vectors as u16;
        let msix_capability = add_msix(&mut config, vectors);
        let metrics = Arc::new(Metrics::default());
        let signals = Arc::new(Signals::new(
            Msix::new(vectors, sink),
            sizes.len(),
            metrics.clone(),
        ));
        let bells = sizes
            .iter()
            .map(|_| bell().map(Arc::new))
            .collect::<io::Result<_>>()?;
        let queues = sizes.iter().map(|size| Queue::new(memory.clone(), *size));
        Ok(Arc::new(Self {
            kind,
            label: label.to_owned(),
            offered: device.features() | F_VERSION_1 | F_RING_EVENT_IDX | F_RING_INDIRECT_DESC | F_RING_RESET,
            config: Mutex::new(config),
            queues: queues.map(|queue| Arc::new(Mutex::new(queue))).collect(),
            registers: Mutex::new(Registers {
                device,
                device_feature_select: 0,
                driver_feature_select: 0,
                features: 0,
                queue_select: 0,
                status: 0,
                running: Vec::new(),
                paused: false,
            }),
            memory,
            bells,
            signals,
            metrics,
            msix_capability,
            pci_capability,
        }))
    }

    /// What kind of device it is.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// What it was called.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What it has done.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Ends its threads, after what is in flight. The driver sees nothing of it.
    pub fn pause(&self) {
        let mut registers = lock(&self.registers);
        registers.paused = true;
        registers.stop();
    }

    /// Goes on after [`VirtioPci::pause`].
    pub fn resume(&self) {
        let mut registers = lock(&self.registers);
        registers.paused = false;
        self.start(&mut registers);
    }

    /// What a snapshot keeps. It must be paused.
    pub fn save(&self) -> VirtioState {
        let registers = lock(&self.registers);
        let vectors = self.signals.queue_vectors.iter();
        VirtioState {
            id: self.kind.id,
            config: lock(&self.config).state(),
            msix: self.signals.msix.state(),
            status: registers.status,
            needs_reset: self.signals.needs_reset.load(Ordering::Acquire),
            device_feature_select: registers.device_feature_select,
            driver_feature_select: registers.driver_feature_select,
            features: registers.features,
            queue_select: registers.queue_select,
            config_vector: self.signals.config_vector.load(Ordering::Acquire),
            queue_vectors: vectors.map(|vector| vector.load(Ordering::Acquire)).collect(),
            queues: self
                .queues
                .iter()
                .map(|queue| lock(queue).state().clone())
                .collect(),
            device: registers.device.save(),
        }
    }

    /// Puts it back into a device of the same kind that is paused and was never used.
    pub fn restore(&self, state: &VirtioState) -> io::Result<()> {
        let wrong = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the saved state of {} is not one of this device: {what}",
                    self.label
                ),
            )
        };
        let mut registers = lock(&self.registers);
        if state.id != self.kind.id {
            return Err(wrong("it is of another kind"));
        }
        if state.queues.len() != self.queues.len() || state.queue_vectors.len() != self.queues.len() {
            return Err(wrong("it has another number of queues"));
        }
        if state.features & !self.offered != 0 {
            return Err(wrong("its driver uses features that are not offered here"));
        }
        if !self.signals.msix.restore(&state.msix) {
            return Err(wrong("it has another number of interrupts"));
        }
        registers.device.restore(&state.device)?;
        lock(&self.config).restore(&state.config);
        for (queue, state) in self.queues.iter().zip(&state.queues) {
            let mut queue = lock(queue);
            queue.restore(state).map_err(|error| wrong(&error.to_string()))?;
        }
        registers.status = state.status;
        registers.device_feature_select = state.device_feature_select;
        registers.driver_feature_select = state.driver_feature_select;
        registers.features = state.features;
        registers.queue_select = state.queue_select;
        self.signals
            .config_vector
            .store(state.config_vector, Ordering::Release);
        for (vector, state) in self.signals.queue_vectors.iter().zip(&state.queue_vectors) {
            vector.store(*state, Ordering::Release);
        }
        self.signals
            .needs_reset
            .store(state.needs_reset, Ordering::Release);
        self.agree(&registers);
        Ok(())
    }

    /// Tells the queues what was agreed on.
    fn agree(&self, registers: &Registers) {
        for queue in &self.queues {
            lock(queue).set_event_index(registers.features & F_RING_EVENT_IDX != 0);
        }
    }

    /// Starts the workers, if the driver is ready and nothing speaks against it.
    fn start(&self, registers: &mut Registers) {
        let broken = self.signals.needs_reset.load(Ordering::Acquire);
        if registers.status & (DRIVER_OK | FAILED) != DRIVER_OK
            || registers.paused
            || broken
            || !registers.running.is_empty()
        {
            return;
        }
        let interrupt = Interrupt(self.signals.clone());
        let queues = self.queues.iter().zip(&self.bells).enumerate();
        let handles = queues.map(|(index, (queue, bell))| QueueHandle {
            index,
            queue: queue.clone(),
            interrupt: interrupt.clone(),
            bell: bell.clone(),
        });
        let start = Start {
            features: registers.features,
            queues: handles.collect(),
            interrupt: interrupt.clone(),
            memory: self.memory.clone(),
            metrics: self.metrics.clone(),
        };
        let started = registers.device.start(start).and_then(|threads| {
            for thread in threads {
                let running = Running::spawn(&self.label, thread, interrupt.clone())?;
                registers.running.push(running);
            }
            Ok(())
        });
        if let Err(error) = started {
            tracing::warn!(device = self.label, %error, "the device cannot start");
            registers.stop();
            interrupt.needs_reset();
        }
    }

    /// Everything as it was in the beginning (2.4), but for PCI's own registers.
    fn reset(&self, registers: &mut Registers) {
        registers.stop();
        for queue in &self.queues {
            lock(queue).reset();
        }
        self.signals.reset();
        registers.device.reset();
        registers.status = 0;
        registers.features = 0;
        registers.device_feature_select = 0;
        registers.driver_feature_select = 0;
        registers.queue_select = 0;
    }

    fn set_status(&self, registers: &mut Registers, value: u8) {
        if value == 0 {
            self.reset(registers);
            return;
        }
        // A driver never clears a bit but by a reset, and never sets what is the device's.
        let mut new = value & !registers.status & !NEEDS_RESET;
        let before = registers.status;
        if new & FEATURES_OK != 0 {
            let features = registers.features;
            let known = features & !self.offered == 0 && features & F_VERSION_1 != 0;
            if !known || !registers.device.accepts(features) {
                new &= !FEATURES_OK;
            }
        }
        let needed = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        if (before | new) & needed != needed {
            new &= !DRIVER_OK;
        }
        registers.status |= new;
        if new & FEATURES_OK != 0 {
            self.agree(registers);
        }
        if new & FAILED != 0 {
            registers.stop();
        } else if new & DRIVER_OK != 0 {
            self.start(registers);
        }
    }

    fn queue(&self, registers: &Registers) -> Option<(usize, &Mutex<Queue>)> {
        let index = usize::from(registers.queue_select);
        Some((index, self.queues.get(index)?))
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let registers = lock(&self.registers);
        let mut bytes = [0; COMMON_SIZE as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &registers.device_feature_select.to_le_bytes());
        put(
            0x04,
            &half(self.offered, registers.device_feature_select).to_le_bytes(),
        );
        put(0x08, &registers.driver_feature_select.to_le_bytes());
        put(
            0x0c,
            &half(registers.features, registers.driver_feature_select).to_le_bytes(),
        );
        put(
            0x10,
            &self.signals.config_vector.load(Ordering::Acquire).to_le_bytes(),
        );
        put(0x12, &u16::try_from(self.queues.len()).unwrap_or(0).to_le_bytes());
        let broken = self.signals.needs_reset.load(Ordering::Acquire);
        put(0x14, &[registers.status | if broken { NEEDS_RESET } else { 0 }]);
        put(0x15, &[self.signals.generation()]);
        put(0x16, &registers.queue_select.to_le_bytes());
        if let Some((index, queue)) = self.queue(&registers) {
            let queue = lock(queue);
            let state = queue.state();
            put(0x18, &state.size.to_le_bytes());
            put(
                0x1a,
                &self.signals.queue_vectors[index]
                    .load(Ordering::Acquire)
                    .to_le_bytes(),
            );
            put(0x1c, &u16::from(state.ready).to_le_bytes());
            put(0x1e, &registers.queue_select.to_le_bytes());
            put(0x20, &state.descriptors.to_le_bytes());
            put(0x28, &state.available.to_le_bytes());
            put(0x30, &state.used.to_le_bytes());
            // A reset of the queue is done when nothing of it is in flight.
            let resetting = !state.ready && queue.is_busy();
            put(0x3a, &u16::from(resetting).to_le_bytes());
        } else {
            put(0x1a, &NO_VECTOR.to_le_bytes());
        }
        super::read_from(&bytes, offset, data);
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut registers = lock(&self.registers);
        let registers = &mut *registers;
        let mut word = [0; 8];
        let Some(low) = word.get_mut(..data.len()) else {
            return;
        };
        low.copy_from_slice(data);
        let value = u64::from_le_bytes(word);
        // The fields are as wide as the access says.
        #[expect(clippy::cast_possible_truncation)]
        let (byte, short, long) = (value as u8, value as u16, value as u32);
        match (offset, data.len()) {
            (0x00, 4) => registers.device_feature_select = long,
            (0x08, 4) => registers.driver_feature_select = long,
            (0x0c, 4) if registers.status & FEATURES_OK == 0 => {
                let select = registers.driver_feature_select;
                if select < 2 {
                    let shift = 32 * select;
                    registers.features =
                        registers.features & !(0xffff_ffff << shift) | u64::from(long) << shift;
                } else if long != 0 {
                    // Features beyond 64 bits do not exist: who wants one cannot be served.
                    registers.features |= !self.offered;
                }
            }
            (0x10, 2) => self
                .signals
                .config_vector
                .store(self.vector(short), Ordering::Release),
            (0x14, 1) => self.set_status(registers, byte),
            (0x16, 2) => registers.queue_select = short,
            (0x18.., _) => {
                if let Some((index, queue)) = self.queue(registers) {
                    self.write_queue(registers, index, queue, offset, data.len(), value);
                }
            }
            _ => {}
        }
    }

    /// A store to what `queue_select` is about.
    fn write_queue(
        &self,
        registers: &Registers,
        index: usize,
        queue: &Mutex<Queue>,
        offset: u64,
        length: usize,
        value: u64,
    ) {
        // The fields are as wide as the access says.
        #[expect(clippy::cast_possible_truncation)]
        let short = value as u16;
        let mut queue = lock(queue);
        match (offset, length) {
            (0x18, 2) => queue.set_size(short),
            (0x1a, 2) => {
                self.signals.queue_vectors[index].store(self.vector(short), Ordering::Release);
            }
            (0x1c, 2) if short == 1 && !queue.is_ready() && registers.status & FEATURES_OK != 0 => {
                queue.set_event_index(registers.features & F_RING_EVENT_IDX != 0);
                if let Err(error) = queue.enable() {
                    tracing::warn!(device = self.label, %error, "the device needs a reset");
                    drop(queue);
                    Interrupt(self.signals.clone()).needs_reset();
                } else {
                    // A queue that is switched on again while the device runs may have chains already.
                    ring(&self.bells[index]);
                }
            }
            (0x20..0x38, 4 | 8) if offset.is_multiple_of(length as u64) => {
                if let Some(state) = queue.setup() {
                    let field = match offset / 8 {
                        4 => &mut state.descriptors,
                        5 => &mut state.available,
                        _ => &mut state.used,
                    };
                    *field = match (length, offset % 8) {
                        (8, _) => value,
                        (_, 0) => *field & !0xffff_ffff | value,
                        _ => *field & 0xffff_ffff | value << 32,
                    };
                }
            }
            (0x3a, 2) if short == 1 && registers.features & F_RING_RESET != 0 => {
                queue.reset();
                self.signals.queue_vectors[index].store(NO_VECTOR, Ordering::Release);
                // The worker lets go of chains it keeps.
                ring(&self.bells[index]);
            }
            _ => {}
        }
    }

    /// A vector as the driver reads it back: none, if there is no such.
    fn vector(&self, wanted: u16) -> u16 {
        if wanted < self.signals.msix.vectors() {
            wanted
        } else {
            NO_VECTOR
        }
    }

    /// The access that the capability for access by configuration space stands for (4.1.4.9): BAR offset and length.
    fn window(&self) -> Option<(u64, usize)> {
        let mut fields = [0; 16];
        lock(&self.config).read(self.pci_capability, &mut fields);
        let number =
            |at: usize| u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
        let (offset, length) = (number(8), number(12));
        let fits = u64::from(offset) + u64::from(length) <= BAR_SIZE;
        let sound =
            usize::from(fields[4]) == BAR && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        (fits && sound).then_some((offset.into(), length as usize))
    }
}

impl Registers {
    /// Ends the workers. All are told before one is waited for.
    fn stop(&mut self) {
        for running in self.running.drain(..) {
            running.stop();
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        lock(&self.registers).stop();
    }
}

impl Function for VirtioPci {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        lock(&self.config).read(offset, data);
        if offset == self.pci_capability + 16
            && let Some((at, length)) = self.window()
            && length == data.len()
        {
            self.read_bar(BAR, at, data);
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> bool {
        let mut control = [0; 2];
        let moved = {
            let mut config = lock(&self.config);
            let moved = config.write(offset, data);
            config.read(self.msix_capability + 2, &mut control);
            moved
        };
        if (self.msix_capability..self.msix_capability + 4).contains(&offset) {
            self.signals
                .msix
                .set_control(control[1] & 0x80 != 0, control[1] & 0x40 != 0);
        }
        if offset == self.pci_capability + 16
            && let Some((at, length)) = self.window()
            && length == data.len()
        {
            self.write_bar(BAR, at, data);
        }
        moved
    }

    fn bars(&self) -> Vec<(usize, Bar)> {
        lock(&self.config).bars()
    }

    fn decoded(&self) -> Vec<(usize, u64, u64)> {
        lock(&self.config).decoded()
    }

    fn place_bar(&self, bar: usize, address: u64) {
        lock(&self.config).place_bar(bar, address);
    }

    fn read_bar(&self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            ISR => data[0] = self.signals.take_isr(),
            DEVICE..NOTIFY => lock(&self.registers).device.read_config(offset - DEVICE, data),
            TABLE..PENDING => self.signals.msix.read_table(offset - TABLE, data),
            PENDING.. => self.signals.msix.read_pending(offset - PENDING, data),
            COMMON..COMMON_SIZE => self.read_common(offset, data),
            _ => {}
        }
    }

    fn write_bar(&self, _: usize, offset: u64, data: &[u8]) {
        match offset {
            NOTIFY..TABLE => {
                let index = usize::try_from((offset - NOTIFY) / NOTIFY_STRIDE).unwrap_or(usize::MAX);
                if let Some(bell) = self.bells.get(index) {
                    self.metrics.notified();
                    ring(bell);
                }
            }
            DEVICE..NOTIFY => lock(&self.registers).device.write_config(offset - DEVICE, data),
            TABLE..PENDING => self.signals.msix.write_table(offset - TABLE, data),
            COMMON..COMMON_SIZE => self.write_common(offset, data),
            _ => {}
        }
    }
}

/// A word of a 64-bit mask.
fn half(mask: u64, select: u32) -> u32 {
    // The halves are what is wanted.
    #[expect(clippy::cast_possible_truncation)]
    match select {
        0 => mask as u32,
        1 => (mask >> 32) as u32,
        _ => 0,
    }
}

/// A capability that says where registers are (4.1.4).
fn add_region(config: &mut ConfigSpace, kind: u8, offset: u64, length: u64, more: &[u8]) -> usize {
    let mut body = vec![
        u8::try_from(16 + more.len()).unwrap_or(16),
        kind,
        BAR as u8,
        0,
        0,
        0,
    ];
    body.extend(half(offset, 0).to_le_bytes());
    body.extend(half(length, 0).to_le_bytes());
    body.extend(more);
    // The one for access by configuration space is for the driver to fill in.
    let writable: &[u8] = if kind == TYPE_PCI {
        &[
            0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ]
    } else {
        &[]
    };
    config.add_capability(CAPABILITY_VENDOR, &body, writable)
}

fn add_msix(config: &mut ConfigSpace, vectors: u16) -> usize {
    let mut body = Vec::new();
    body.extend((vectors - 1).to_le_bytes());
    body.extend((half(TABLE, 0) | BAR as u32).to_le_bytes());
    body.extend((half(PENDING, 0) | BAR as u32).to_le_bytes());
    config.add_capability(CAPABILITY_MSIX, &body, &[0, 0xc0])
}
