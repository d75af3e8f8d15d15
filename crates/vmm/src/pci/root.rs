//! The root of the PCI bus: slots, configuration accesses, and which function answers at which address.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use super::config::{ConfigSpace, Identity};
use super::{Bar, Function};
use crate::bus::{Device, SystemBus, Taken};
use crate::memory::layout::{
    PCI_CONFIG_PORT, PCI_ECAM_SIZE, PCI_ECAM_START, PCI_WINDOW32_SIZE, PCI_WINDOW32_START, PCI_WINDOW64_SIZE,
    pci_window64_start,
};
use crate::sync::{lock, read, write};

/// Slots for devices: 1 to 31. In slot 0 is the host bridge.
pub const DEVICE_SLOTS: std::ops::RangeInclusive<u8> = 1..=31;
const SLOTS: usize = 32;

const ADDRESS_ENABLE: u32 = 1 << 31;

/// Why a device cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// All slots have devices.
    #[error("the machine has no free PCI slot: it takes 31 devices")]
    Full,
    /// The slot is none, or not free.
    #[error("PCI slot {0} is taken or does not exist: devices have slots 1 to 31")]
    Slot(u8),
    /// No addresses are left.
    #[error("no room is left in the PCI windows for {0} bytes of registers")]
    NoRoom(u64),
    /// The addresses of PCI itself are taken.
    #[error("PCI cannot be put on the bus")]
    Bus(#[from] Taken),
}

/// A piece of the address space that a BAR answers to.
#[derive(Clone)]
struct Mapping {
    start: u64,
    last: u64,
    bar: usize,
    function: Arc<dyn Function>,
}

/// A piece of the address space that was given to a device in the beginning.
#[derive(Clone, Copy)]
struct Placed {
    slot: u8,
    start: u64,
    size: u64,
}

/// The bus: bus 0 of segment 0.
pub struct PciRoot {
    /// What was last written to `0xcf8`.
    address: AtomicU32,
    slots: RwLock<[Option<Arc<dyn Function>>; SLOTS]>,
    /// Sorted by start. A driver may let BARs overlap while it moves them: the first wins.
    mappings: RwLock<Vec<Mapping>>,
    placed: Mutex<Vec<Placed>>,
    window64: u64,
}

impl PciRoot {
    /// A bus with nothing but its host bridge, for a machine with `ram` bytes.
    pub fn new(ram: u64) -> Arc<Self> {
        let mut slots: [Option<Arc<dyn Function>>; SLOTS] = Default::default();
        slots[0] = Some(Arc::new(HostBridge::new()));
        Arc::new(Self {
            address: AtomicU32::new(0),
            slots: RwLock::new(slots),
            mappings: RwLock::new(Vec::new()),
            placed: Mutex::new(Vec::new()),
            window64: pci_window64_start(ram),
        })
    }

    /// Makes it answer on the machine's bus.
    pub fn attach(self: &Arc<Self>, bus: &SystemBus) -> Result<(), Error> {
        let window = |start| {
            Arc::new(Window {
                root: self.clone(),
                start,
            })
        };
        bus.ports
            .insert(PCI_CONFIG_PORT.into(), 8, Arc::new(Ports(self.clone())))?;
        bus.memory
            .insert(PCI_ECAM_START, PCI_ECAM_SIZE, Arc::new(Ecam(self.clone())))?;
        bus.memory
            .insert(PCI_WINDOW32_START, PCI_WINDOW32_SIZE, window(PCI_WINDOW32_START))?;
        bus.memory
            .insert(self.window64, PCI_WINDOW64_SIZE, window(self.window64))?;
        Ok(())
    }

    /// Where the window for 64-bit BARs begins.
    pub fn window64(&self) -> u64 {
        self.window64
    }

    /// Puts a device into a slot, the first free one if none is named, and gives its BARs addresses. Returns the slot.
    pub fn insert(&self, slot: Option<u8>, function: Arc<dyn Function>) -> Result<u8, Error> {
        let slot = {
            let mut slots = write(&self.slots);
            let free = |slot: &u8| slots[usize::from(*slot)].is_none();
            let slot = match slot {
                Some(slot) if DEVICE_SLOTS.contains(&slot) && free(&slot) => slot,
                Some(slot) => return Err(Error::Slot(slot)),
                None => DEVICE_SLOTS.into_iter().find(free).ok_or(Error::Full)?,
            };
            for (number, bar) in function.bars() {
                match self.place(slot, bar) {
                    Some(address) => function.place_bar(number, address),
                    None => {
                        lock(&self.placed).retain(|placed| placed.slot != slot);
                        return Err(Error::NoRoom(bar.size));
                    }
                }
            }
            slots[usize::from(slot)] = Some(function);
            slot
        };
        self.map();
        Ok(slot)
    }

    /// Takes the device out of a slot. It answers to nothing when this has come back, but for accesses that are being answered.
    pub fn remove(&self, slot: u8) -> Option<Arc<dyn Function>> {
        if !DEVICE_SLOTS.contains(&slot) {
            return None;
        }
        let function = write(&self.slots)[usize::from(slot)].take()?;
        lock(&self.placed).retain(|placed| placed.slot != slot);
        self.map();
        Some(function)
    }

    /// Finds room for a BAR: the lowest there is.
    fn place(&self, slot: u8, bar: Bar) -> Option<u64> {
        let (window, length) = if bar.wide {
            (self.window64, PCI_WINDOW64_SIZE)
        } else {
            (PCI_WINDOW32_START, PCI_WINDOW32_SIZE)
        };
        let mut placed = lock(&self.placed);
        let mut start = window.next_multiple_of(bar.size);
        while let Some(other) = placed
            .iter()
            .find(|other| other.start < start.saturating_add(bar.size) && start < other.start + other.size)
        {
            start = (other.start + other.size).next_multiple_of(bar.size);
        }
        if start.checked_add(bar.size)? > window + length {
            return None;
        }
        placed.push(Placed {
            slot,
            start,
            size: bar.size,
        });
        Some(start)
    }

    /// Finds out anew which function answers where.
    fn map(&self) {
        // The list is made while it is locked: of two drivers that move BARs at once, the second sees what the first did.
        let mut mappings = write(&self.mappings);
        mappings.clear();
        for function in read(&self.slots).iter().flatten() {
            for (bar, start, size) in function.decoded() {
                if let Some(last) = start.checked_add(size - 1) {
                    mappings.push(Mapping {
                        start,
                        last,
                        bar,
                        function: function.clone(),
                    });
                }
            }
        }
        mappings.sort_by_key(|mapping| mapping.start);
    }

    /// The BAR that has all of an access.
    fn find(&self, address: u64, length: usize) -> Option<(Arc<dyn Function>, usize, u64)> {
        let last = address.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        let mappings = read(&self.mappings);
        // Looked through from the start because they may overlap; there are at most some dozens.
        let mapping = mappings
            .iter()
            .find(|mapping| mapping.start <= address && last <= mapping.last)?;
        Some((mapping.function.clone(), mapping.bar, address - mapping.start))
    }

    fn function(&self, slot: usize) -> Option<Arc<dyn Function>> {
        read(&self.slots).get(slot)?.clone()
    }

    /// A configuration load, at an address as ECAM has it: bus, slot, function, register.
    fn read_config(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, register)) = config_place(address, data.len())
            && let Some(function) = self.function(slot)
        {
            function.read_config(register, data);
        }
    }

    /// A configuration store.
    fn write_config(&self, address: u64, data: &[u8]) {
        if let Some((slot, register)) = config_place(address, data.len())
            && let Some(function) = self.function(slot)
            && function.write_config(register, data)
        {
            self.map();
        }
    }

    /// What `0xcf8` selects, for an access to byte `offset` of `0xcfc`.
    fn selected(&self, offset: u64) -> Option<u64> {
        let address = self.address.load(Ordering::Relaxed);
        if address & ADDRESS_ENABLE == 0 {
            return None;
        }
        let bus_slot_function = u64::from(address >> 8 & 0xffff);
        let register = u64::from(address & 0xfc);
        Some(bus_slot_function << 12 | register | offset)
    }
}

/// Slot and register of a configuration access, if it is one for function 0 of a slot of bus 0, of 256 bytes, within a word of 4.
fn config_place(address: u64, length: usize) -> Option<(usize, usize)> {
    let register = usize::try_from(address & 0xfff).ok()?;
    let slot = usize::try_from(address >> 15).ok()?;
    let function = address >> 12 & 7;
    let within = register % 4 + length <= 4;
    (within && function == 0 && slot < SLOTS && register < 256).then_some((slot, register))
}

/// `0xcf8` and `0xcfc`.
struct Ports(Arc<PciRoot>);

impl Device for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.0.address.load(Ordering::Relaxed).to_le_bytes()),
            (4.., _) => {
                if let Some(address) = self.0.selected(offset - 4) {
                    self.0.read_config(address, data);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= 4 {
            if let Some(address) = self.0.selected(offset - 4) {
                self.0.write_config(address, data);
            }
        } else if let (0, Ok(word)) = (offset, data.try_into()) {
            self.0.address.store(u32::from_le_bytes(word), Ordering::Relaxed);
        }
    }
}

/// The memory-mapped configuration space.
struct Ecam(Arc<PciRoot>);

impl Device for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write_config(offset, data);
    }
}

/// A window in which BARs are.
struct Window {
    root: Arc<PciRoot>,
    start: u64,
}

impl Device for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, bar, offset)) = self.root.find(self.start + offset, data.len()) {
            function.read_bar(bar, offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, bar, offset)) = self.root.find(self.start + offset, data.len()) {
            function.write_bar(bar, offset, data);
        }
    }
}

/// Slot 0: kernels want a host bridge there before they believe in a bus.
struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    fn new() -> Self {
        // The vendor is Intel, the device its generic host bridge for virtual machines, as other monitors have it, too.
        Self(Mutex::new(ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        })))
    }
}

impl Function for HostBridge {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        lock(&self.0).read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> bool {
        lock(&self.0).write(offset, data)
    }

    fn bars(&self) -> Vec<(usize, Bar)> {
        Vec::new()
    }

    fn decoded(&self) -> Vec<(usize, u64, u64)> {
        Vec::new()
    }

    fn place_bar(&self, _: usize, _: u64) {}

    fn read_bar(&self, _: usize, _: u64, _: &mut [u8]) {}

    fn write_bar(&self, _: usize, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Bus;

    /// One BAR that reads as its offset and remembers the last store.
    struct Probe {
        config: Mutex<ConfigSpace>,
        last: Mutex<Option<(usize, u64, Vec<u8>)>>,
    }

    impl Probe {
        fn new(bars: &[(usize, Bar)]) -> Arc<Self> {
            let mut config = ConfigSpace::new(Identity {
                vendor: 0x1234,
                device: 0x5678,
                revision: 0,
                class: 0xff_0000,
                subsystem_vendor: 0,
                subsystem: 0,
            });
            for (number, bar) in bars {
                config.add_bar(*number, *bar);
            }
            Arc::new(Self {
                config: Mutex::new(config),
                last: Mutex::new(None),
            })
        }
    }

    impl Function for Probe {
        fn read_config(&self, offset: usize, data: &mut [u8]) {
            lock(&self.config).read(offset, data);
        }
        fn write_config(&self, offset: usize, data: &[u8]) -> bool {
            lock(&self.config).write(offset, data)
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
            data.fill(u8::try_from(offset & 0xff).unwrap());
        }
        fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
            *lock(&self.last) = Some((bar, offset, data.to_vec()));
        }
    }

    const SMALL: Bar = Bar {
        size: 0x4000,
        wide: false,
    };

    fn machine() -> (SystemBus, Arc<PciRoot>) {
        let bus = SystemBus::default();
        let root = PciRoot::new(64 << 20);
        root.attach(&bus).unwrap();
        (bus, root)
    }

    fn memory(bus: &SystemBus, address: u64) -> u32 {
        let mut data = [0; 4];
        bus.read_memory(address, &mut data);
        u32::from_le_bytes(data)
    }

    fn config(bus: &SystemBus, slot: u64, register: u64) -> u32 {
        memory(bus, PCI_ECAM_START + (slot << 15) + register)
    }

    fn set(bus: &SystemBus, slot: u64, register: u64, value: u32) {
        bus.write_memory(PCI_ECAM_START + (slot << 15) + register, &value.to_le_bytes());
    }

    #[test]
    fn both_ways_reach_the_same_registers() {
        let (bus, root) = machine();
        assert_eq!(root.insert(None, Probe::new(&[])).unwrap(), 1);
        assert_eq!(config(&bus, 1, 0), 0x5678_1234);
        assert_eq!(config(&bus, 0, 8) >> 16, 0x0600);
        assert_eq!(config(&bus, 2, 0), u32::MAX);
        assert_eq!(config(&bus, 1, 0x100), u32::MAX, "there are 256 bytes");
        assert_eq!(
            memory(&bus, PCI_ECAM_START + (1 << 15) + (1 << 12)),
            u32::MAX,
            "there is one function"
        );
        bus.write_port(0xcf8, &0x8000_0800_u32.to_le_bytes());
        let mut word = [0; 2];
        bus.read_port(0xcfe, &mut word);
        assert_eq!(u16::from_le_bytes(word), 0x5678);
        bus.write_port(0xcf8, &0x0000_0800_u32.to_le_bytes());
        bus.read_port(0xcfc, &mut word);
        assert_eq!(word, [0xff; 2], "not enabled");
        bus.write_port(0xcf8, &0x8001_0800_u32.to_le_bytes());
        bus.read_port(0xcfc, &mut word);
        assert_eq!(word, [0xff; 2], "another bus");
    }

    #[test]
    fn bars_answer_where_the_driver_puts_them() {
        let (bus, root) = machine();
        let (first, second) = (Probe::new(&[(0, SMALL)]), Probe::new(&[(0, SMALL)]));
        root.insert(None, first.clone()).unwrap();
        root.insert(None, second.clone()).unwrap();
        let at = |slot| u64::from(config(&bus, slot, 0x10));
        assert_eq!((at(1), at(2)), (PCI_WINDOW32_START, PCI_WINDOW32_START + 0x4000));
        assert_eq!(memory(&bus, at(2) + 8), 0x0808_0808);
        // They change places; on the way both are at one.
        let (one, two) = (config(&bus, 1, 0x10), config(&bus, 2, 0x10));
        set(&bus, 1, 0x10, two);
        set(&bus, 2, 0x10, one);
        bus.write_memory(u64::from(two) + 4, &[7]);
        assert_eq!(*lock(&first.last), Some((0, 4, vec![7])));
        assert_eq!(*lock(&second.last), None);
        set(&bus, 1, 4, 0);
        assert_eq!(memory(&bus, u64::from(two)), u32::MAX);
        // Outside the windows nothing answers, wherever a driver puts it.
        set(&bus, 2, 0x10, 0xfee0_0000);
        assert_eq!(memory(&bus, u64::from(one)), u32::MAX);
        assert_eq!(memory(&bus, 0xfee0_0000), u32::MAX);
    }

    #[test]
    fn slots_are_taken_and_become_free() {
        let (bus, root) = machine();
        assert!(matches!(
            root.insert(Some(0), Probe::new(&[])),
            Err(Error::Slot(0))
        ));
        assert!(matches!(
            root.insert(Some(32), Probe::new(&[])),
            Err(Error::Slot(32))
        ));
        root.insert(Some(5), Probe::new(&[])).unwrap();
        assert!(matches!(
            root.insert(Some(5), Probe::new(&[])),
            Err(Error::Slot(5))
        ));
        for _ in 0..30 {
            root.insert(None, Probe::new(&[(0, SMALL)])).unwrap();
        }
        assert!(matches!(root.insert(None, Probe::new(&[])), Err(Error::Full)));
        let address = u64::from(config(&bus, 9, 0x10));
        assert!(root.remove(9).is_some());
        assert!(root.remove(9).is_none());
        assert_eq!(memory(&bus, address), u32::MAX);
        root.insert(None, Probe::new(&[(0, SMALL)])).unwrap();
        assert_eq!(
            u64::from(config(&bus, 9, 0x10)),
            address,
            "its addresses are free again, too"
        );
    }

    #[test]
    fn large_bars_are_above_memory_and_have_an_end() {
        let (bus, root) = machine();
        let large = Bar {
            size: 1 << 35,
            wide: true,
        };
        root.insert(None, Probe::new(&[(2, large)])).unwrap();
        let address = u64::from(config(&bus, 1, 0x18) & !0xf) | u64::from(config(&bus, 1, 0x1c)) << 32;
        assert!(address >= root.window64());
        assert_eq!(memory(&bus, address + 0x11), 0x1111_1111);
        let too_large = Probe::new(&[
            (0, SMALL),
            (
                2,
                Bar {
                    size: 1 << 40,
                    wide: true,
                },
            ),
        ]);
        assert!(matches!(root.insert(None, too_large), Err(Error::NoRoom(_))));
        root.insert(
            None,
            Probe::new(&[(
                0,
                Bar {
                    size: 1 << 28,
                    wide: false,
                },
            )]),
        )
        .unwrap();
    }
}
