//! A function's configuration space: 256 bytes, of which the driver can write some bits.

use serde::{Deserialize, Serialize};

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;
const SIZE: usize = 256;

/// The function answers at the addresses in its BARs.
const COMMAND_MEMORY: u8 = 1 << 1;
/// Memory, bus master, parity, SERR, INTx off: what a driver can switch.
const COMMAND_WRITABLE: u16 = 0x0546;
const STATUS_CAPABILITIES: u8 = 1 << 4;

const BAR_64BIT: u32 = 1 << 2;
const BAR_PREFETCHABLE: u32 = 1 << 3;
const BAR_COUNT: usize = 6;

/// Who a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The vendor.
    pub vendor: u16,
    /// The device.
    pub device: u16,
    /// The revision.
    pub revision: u8,
    /// Base class, sub-class, programming interface: `0xBBSSPP`.
    pub class: u32,
    /// The subsystem's vendor.
    pub subsystem_vendor: u16,
    /// The subsystem.
    pub subsystem: u16,
}

/// A memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its length: a power of two, at least 4096.
    pub size: u64,
    /// It takes two registers, and can be above 4 GiB. Those are prefetchable.
    pub wide: bool,
}

/// What of a configuration space changes while a machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    bytes: Vec<u8>,
}

/// The configuration space of a function, header type 0.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: [Option<Bar>; BAR_COUNT],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// One without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: [None; BAR_COUNT],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        config.put(0, &identity.vendor.to_le_bytes());
        config.put(2, &identity.device.to_le_bytes());
        config.bytes[8] = identity.revision;
        config.put(9, &identity.class.to_le_bytes()[..3]);
        config.put(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.put(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Adds a BAR, at no address yet. Only called while a device is built: numbers and sizes are the device's own.
    ///
    /// # Panics
    /// If the register is taken or the size is none for a BAR.
    pub fn add_bar(&mut self, number: usize, bar: Bar) {
        assert!(bar.size.is_power_of_two() && bar.size >= 4096 && self.bars[number].is_none());
        let mask = !(bar.size - 1);
        let at = BARS + 4 * number;
        self.bars[number] = Some(bar);
        let [low, high] = halves(mask);
        self.allow(at, &(low & !0xf).to_le_bytes());
        if bar.wide {
            self.put(at, &(BAR_64BIT | BAR_PREFETCHABLE).to_le_bytes());
            self.allow(at + 4, &high.to_le_bytes());
        }
    }

    /// Adds a capability: its ID, what follows the link, which of those bits a driver can write. Returns where it begins. Only called
    /// while a device is built.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        assert!(at + 2 + body.len() <= SIZE && writable.len() <= body.len());
        self.bytes[at] = id;
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.bytes[self.last_link] = u8::try_from(at).unwrap_or(0);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// A load. What is beyond the 256 bytes reads as ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// A store, of those bits that can be written. True if the function answers at other addresses now.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let before = self.addressing();
        for (at, byte) in (offset..).zip(data) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
        before != self.addressing()
    }

    /// The bytes that say where BARs are.
    fn addressing(&self) -> (bool, [u8; 4 * BAR_COUNT]) {
        let mut bars = [0; 4 * BAR_COUNT];
        bars.copy_from_slice(&self.bytes[BARS..BARS + 4 * BAR_COUNT]);
        (self.bytes[COMMAND] & COMMAND_MEMORY != 0, bars)
    }

    /// BARs there are.
    pub fn bars(&self) -> Vec<(usize, Bar)> {
        let all = self.bars.iter().enumerate();
        all.filter_map(|(number, bar)| bar.map(|bar| (number, bar)))
            .collect()
    }

    /// Where a BAR is.
    fn address(&self, number: usize, bar: Bar) -> u64 {
        let at = BARS + 4 * number;
        let low = u64::from(self.word(at) & !0xf);
        if bar.wide {
            low | u64::from(self.word(at + 4)) << 32
        } else {
            low
        }
    }

    fn word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    /// BARs the function answers to: number, address, length. None if memory decoding is off.
    pub fn decoded(&self) -> Vec<(usize, u64, u64)> {
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let bars = self.bars().into_iter();
        bars.map(|(number, bar)| (number, self.address(number, bar), bar.size))
            .collect()
    }

    /// Gives a BAR an address and switches memory decoding on.
    pub fn place_bar(&mut self, number: usize, address: u64) {
        let Some(Some(bar)) = self.bars.get(number).copied() else {
            return;
        };
        let [low, high] = halves(address);
        self.write(BARS + 4 * number, &low.to_le_bytes());
        if bar.wide {
            self.write(BARS + 4 * number + 4, &high.to_le_bytes());
        }
        self.bytes[COMMAND] |= COMMAND_MEMORY;
    }

    /// Changes bytes of a capability that only the device changes.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Some(old) = self.bytes.get_mut(at) {
                *old = *byte;
            }
        }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> ConfigState {
        ConfigState {
            bytes: self.bytes.to_vec(),
        }
    }

    /// Puts it back; bits no driver could have written stay as they are.
    pub fn restore(&mut self, state: &ConfigState) {
        self.write(0, &state.bytes);
    }
}

/// A number as its low and its high word.
fn halves(value: u64) -> [u32; 2] {
    // The halves are what is wanted.
    #[expect(clippy::cast_possible_truncation)]
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> ConfigSpace {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.add_bar(
            0,
            Bar {
                size: 0x4000,
                wide: false,
            },
        );
        config.add_bar(
            2,
            Bar {
                size: 1 << 33,
                wide: true,
            },
        );
        config.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        config.add_capability(0x09, &[16, 1, 2, 3], &[]);
        config
    }

    fn word(config: &ConfigSpace, at: usize) -> u32 {
        let mut bytes = [0; 4];
        config.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_driver_finds_out_sizes() {
        let mut config = sample();
        for at in [0x10, 0x14, 0x18, 0x1c] {
            config.write(at, &[0xff; 4]);
        }
        assert_eq!(word(&config, 0x10), 0xffff_c000);
        assert_eq!(word(&config, 0x14), 0, "there is no such BAR");
        assert_eq!(word(&config, 0x18), 0x0000_000c, "64 bits, prefetchable");
        assert_eq!(word(&config, 0x1c), 0xffff_fffe);
    }

    #[test]
    fn bars_move_and_are_switched_off() {
        let mut config = sample();
        assert!(config.decoded().is_empty());
        config.place_bar(0, 0xc000_4000);
        config.place_bar(2, 0x12_0000_0000);
        assert_eq!(
            config.decoded(),
            [(0, 0xc000_4000, 0x4000), (2, 0x12_0000_0000, 1 << 33)]
        );
        assert!(config.write(0x10, &0xc123_4567_u32.to_le_bytes()));
        assert_eq!(config.decoded()[0], (0, 0xc123_4000, 0x4000));
        assert!(!config.write(0x3c, &[5]));
        assert!(config.write(4, &[0, 0]));
        assert!(config.decoded().is_empty());
    }

    #[test]
    fn capabilities_are_a_list() {
        let config = sample();
        assert_eq!(word(&config, 4) >> 16 & 0x10, 0x10);
        assert_eq!(word(&config, 0x34), 0x40);
        assert_eq!(word(&config, 0x40) & 0xffff, 0x4c11);
        assert_eq!(word(&config, 0x4c) & 0xffff, 0x0009);
    }

    proptest! {
        #[test]
        fn whatever_is_written_the_rest_stays(writes in prop::collection::vec((0_usize..300, prop::collection::vec(any::<u8>(), 1..9)), 0..50)) {
            let mut config = sample();
            let fresh = sample();
            for (at, data) in &writes {
                config.write(*at, data);
                config.read(*at, &mut [0; 8]);
            }
            for at in 0..256 {
                let mask = fresh.writable[at];
                prop_assert_eq!(config.bytes[at] & !mask, fresh.bytes[at] & !mask);
            }
            for (_, address, size) in config.decoded() {
                prop_assert_eq!(address % size.min(1 << 32), 0);
            }
            let mut restored = sample();
            restored.restore(&config.state());
            prop_assert_eq!(restored.bytes, config.bytes);
        }
    }
}
