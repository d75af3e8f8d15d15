//! Who answers at which port and at which physical address.
//!
//! Ranges never overlap. A device is looked up under a lock that is let go before the device is called, so devices may change the bus,
//! and vCPUs do not wait for each other here.

use std::sync::{Arc, RwLock};

use crate::accel;
use crate::sync::{read, write};

/// A device with registers. It is called by any vCPU's thread at any time, several at once.
pub trait Device: Send + Sync {
    /// A load of 1, 2, 4 or 8 bytes; all of it is within the device's range. `data` holds ones before.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// A store.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two ranges would overlap, or one is empty or beyond the address space.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{length:#x} bytes at {start:#x} cannot be given to a device: they are taken, or are no range")]
pub struct Taken {
    start: u64,
    length: u64,
}

struct Range {
    start: u64,
    last: u64,
    device: Arc<dyn Device>,
}

/// One address space: that of ports, or that of memory.
#[derive(Default)]
pub struct AddressSpace {
    ranges: RwLock<Vec<Range>>,
}

impl AddressSpace {
    /// Gives `length` addresses from `start` on to `device`.
    pub fn insert(&self, start: u64, length: u64, device: Arc<dyn Device>) -> Result<(), Taken> {
        let taken = Taken { start, length };
        let Some(last) = length.checked_sub(1).and_then(|rest| start.checked_add(rest)) else {
            return Err(taken);
        };
        let mut ranges = write(&self.ranges);
        let at = ranges.partition_point(|range| range.last < start);
        if ranges.get(at).is_some_and(|range| range.start <= last) {
            return Err(taken);
        }
        ranges.insert(at, Range { start, last, device });
        Ok(())
    }

    /// Takes away the range that begins at `start`.
    pub fn remove(&self, start: u64) {
        write(&self.ranges).retain(|range| range.start != start);
    }

    /// Takes all ranges away.
    pub fn clear(&self) {
        write(&self.ranges).clear();
    }

    /// The device that has all of an access, and the access's offset in it.
    fn find(&self, address: u64, length: usize) -> Option<(Arc<dyn Device>, u64)> {
        let last = address.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        let ranges = read(&self.ranges);
        let at = ranges.partition_point(|range| range.last < address);
        let range = ranges.get(at)?;
        (range.start <= address && last <= range.last).then(|| (range.device.clone(), address - range.start))
    }

    /// A load: ones where nobody answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// A store: nothing happens where nobody answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }
}

/// Both address spaces of a machine.
#[derive(Default)]
pub struct SystemBus {
    /// What `in` and `out` reach.
    pub ports: AddressSpace,
    /// Physical addresses that are no RAM.
    pub memory: AddressSpace,
}

impl accel::Bus for SystemBus {
    fn read_port(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) {
        self.memory.read(address, data);
    }

    fn write_memory(&self, address: u64, data: &[u8]) {
        self.memory.write(address, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Answers with the offset, remembers what was written.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn load(space: &AddressSpace, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        space.read(address, &mut data);
        data
    }

    #[test]
    fn an_access_reaches_the_device_that_has_all_of_it() {
        let space = AddressSpace::default();
        let device = Arc::new(Recorder::default());
        space.insert(0x1000, 0x10, device.clone()).unwrap();
        space.insert(0x1010, 0x10, Arc::new(Recorder::default())).unwrap();
        assert_eq!(load(&space, 0x1004, 4), [4; 4]);
        assert_eq!(load(&space, 0x1010, 1), [0]);
        assert_eq!(load(&space, 0x100e, 4), [0xff; 4], "half of it is another's");
        assert_eq!(load(&space, 0xfff, 1), [0xff]);
        assert_eq!(load(&space, u64::MAX, 8), [0xff; 8]);
        space.write(0x1008, &[1, 2]);
        space.write(0x101e, &[1, 2, 3, 4]);
        assert_eq!(*device.0.lock().unwrap(), [(8, vec![1, 2])]);
    }

    #[test]
    fn ranges_do_not_overlap() {
        let space = AddressSpace::default();
        let device = || Arc::new(Recorder::default());
        space.insert(0x1000, 0x1000, device()).unwrap();
        for (start, length) in [
            (0x1000, 1),
            (0xfff, 2),
            (0x1fff, 1),
            (0, 0x10000),
            (0x5000, 0),
            (u64::MAX, 2),
        ] {
            assert!(space.insert(start, length, device()).is_err(), "{start:#x}");
        }
        space.insert(0x2000, 1, device()).unwrap();
        space.insert(u64::MAX, 1, device()).unwrap();
        space.remove(0x1000);
        space.insert(0xfff, 0x1001, device()).unwrap();
    }
}
