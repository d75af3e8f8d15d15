//! MSI-X (PCI Local Bus specification 3.0, section 6.8.2): a table of messages, a mask for each and for all, bits of those that wait.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::accel::Msi;
use crate::sync::lock;

/// Bytes of an entry of the table.
pub const MSIX_ENTRY_SIZE: u64 = 16;

/// Messages go to local APICs: the first mebibyte at this address. What a driver aims elsewhere would be a write to memory on real
/// hardware; here it is dropped.
const INTERRUPT_ADDRESSES: u64 = 0xfee;

/// Takes messages to the vCPUs.
pub type MsiSink = Arc<dyn Fn(Msi) + Send + Sync>;

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Where the message goes.
    pub address: u64,
    /// What it is.
    pub data: u32,
    /// It is held back.
    pub masked: bool,
}

/// The state of a function's MSI-X.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Switched on.
    pub enabled: bool,
    /// All messages are held back.
    pub masked: bool,
    /// The table.
    pub entries: Vec<MsixEntry>,
    /// Those that wait for their mask, a bit each.
    pub pending: Vec<u64>,
}

impl MsixState {
    fn is_pending(&self, vector: usize) -> bool {
        self.pending[vector / 64] >> (vector % 64) & 1 != 0
    }

    fn set_pending(&mut self, vector: usize, pending: bool) {
        let bit = 1 << (vector % 64);
        if pending {
            self.pending[vector / 64] |= bit;
        } else {
            self.pending[vector / 64] &= !bit;
        }
    }

    /// The message of a vector that waits and need not any more.
    fn take(&mut self, vector: usize) -> Option<Msi> {
        let entry = self.entries[vector];
        if !self.enabled || self.masked || entry.masked || !self.is_pending(vector) {
            return None;
        }
        self.set_pending(vector, false);
        Some(Msi {
            address: entry.address,
            data: entry.data,
        })
    }
}

/// MSI-X of one function.
pub struct Msix {
    state: Mutex<MsixState>,
    sink: MsiSink,
}

impl Msix {
    /// `vectors` messages, all masked.
    pub fn new(vectors: u16, sink: MsiSink) -> Self {
        let empty = MsixEntry {
            address: 0,
            data: 0,
            masked: true,
        };
        let state = MsixState {
            enabled: false,
            masked: false,
            entries: vec![empty; vectors.into()],
            pending: vec![0; usize::from(vectors).div_ceil(64)],
        };
        Self {
            state: Mutex::new(state),
            sink,
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        u16::try_from(lock(&self.state).entries.len()).unwrap_or(u16::MAX)
    }

    /// Sends the message of `vector`, now or when it is unmasked. Nothing is sent while MSI-X is off.
    pub fn signal(&self, vector: u16) {
        let vector = usize::from(vector);
        let message = {
            let mut state = lock(&self.state);
            if !state.enabled || vector >= state.entries.len() {
                return;
            }
            state.set_pending(vector, true);
            state.take(vector)
        };
        self.send(message);
    }

    fn send(&self, messages: impl IntoIterator<Item = Msi>) {
        for message in messages {
            if message.address >> 20 == INTERRUPT_ADDRESSES {
                (self.sink)(message);
            }
        }
    }

    /// What message control says: on or off, all masked.
    pub fn set_control(&self, enabled: bool, masked: bool) {
        let due: Vec<Msi> = {
            let mut state = lock(&self.state);
            state.enabled = enabled;
            state.masked = masked;
            (0..state.entries.len())
                .filter_map(|vector| state.take(vector))
                .collect()
        };
        self.send(due);
    }

    /// A load from the table: 4 or 8 bytes, aligned. Others read as zeroes.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((vector, at)) = place(offset, data.len()) else {
            return;
        };
        let state = lock(&self.state);
        let Some(entry) = state.entries.get(vector) else {
            return;
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
        bytes[12] = u8::from(entry.masked);
        data.copy_from_slice(&bytes[at..at + data.len()]);
    }

    /// A store to the table: 4 or 8 bytes, aligned. Others are dropped.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let Some((vector, at)) = place(offset, data.len()) else {
            return;
        };
        let message = {
            let mut state = lock(&self.state);
            let Some(entry) = state.entries.get_mut(vector) else {
                return;
            };
            for (at, word) in (at..).step_by(4).zip(data.chunks_exact(4)) {
                let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                match at {
                    // The lowest two bits of an address are always zero.
                    0 => entry.address = entry.address & !0xffff_ffff | u64::from(word & !3),
                    4 => entry.address = entry.address & 0xffff_ffff | u64::from(word) << 32,
                    8 => entry.data = word,
                    _ => entry.masked = word & 1 != 0,
                }
            }
            state.take(vector)
        };
        self.send(message);
    }

    /// A load from the bits of those that wait.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (at, byte) in (offset..).zip(data) {
            let word = usize::try_from(at / 8)
                .ok()
                .and_then(|index| state.pending.get(index));
            *byte = word.map_or(0, |word| word.to_le_bytes()[(at % 8) as usize]);
        }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> MsixState {
        lock(&self.state).clone()
    }

    /// Puts it back, if it is one of a function with as many vectors.
    pub fn restore(&self, state: &MsixState) -> bool {
        let mut own = lock(&self.state);
        let fits = own.entries.len() == state.entries.len() && own.pending.len() == state.pending.len();
        if fits {
            *own = state.clone();
        }
        fits
    }

    /// As after a reset of the function: off, all masked, nothing waits.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        state.enabled = false;
        state.masked = false;
        state.pending.fill(0);
        for entry in &mut state.entries {
            entry.masked = true;
        }
    }
}

/// Which entry an access is about, and the offset in it.
fn place(offset: u64, length: usize) -> Option<(usize, usize)> {
    let at = usize::try_from(offset % MSIX_ENTRY_SIZE).ok()?;
    let vector = usize::try_from(offset / MSIX_ENTRY_SIZE).ok()?;
    (matches!(length, 4 | 8) && at % length == 0).then_some((vector, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recorded(vectors: u16) -> (Msix, Arc<Mutex<Vec<u32>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = seen.clone();
        let sink: MsiSink = Arc::new(move |msi: Msi| record.lock().unwrap().push(msi.data));
        (Msix::new(vectors, sink), seen)
    }

    fn fill(msix: &Msix, vector: u64, data: u32, masked: bool) {
        msix.write_table(vector * 16, &0xfee0_1000_u64.to_le_bytes());
        msix.write_table(vector * 16 + 8, &data.to_le_bytes());
        msix.write_table(vector * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    #[test]
    fn masked_messages_wait_and_come_once() {
        let (msix, seen) = recorded(70);
        fill(&msix, 69, 7, false);
        msix.signal(69);
        assert!(seen.lock().unwrap().is_empty(), "it is off");
        msix.set_control(true, false);
        msix.signal(69);
        assert_eq!(*seen.lock().unwrap(), [7]);
        fill(&msix, 69, 8, true);
        msix.signal(69);
        msix.signal(69);
        let mut pending = [0; 8];
        msix.read_pending(8, &mut pending);
        assert_eq!(u64::from_le_bytes(pending), 1 << 5);
        msix.set_control(true, true);
        msix.write_table(69 * 16 + 12, &[0; 4]);
        assert_eq!(*seen.lock().unwrap(), [7], "all are masked");
        msix.set_control(true, false);
        assert_eq!(*seen.lock().unwrap(), [7, 8]);
        msix.read_pending(8, &mut pending);
        assert_eq!(u64::from_le_bytes(pending), 0);
        msix.signal(70);
        msix.signal(u16::MAX);
    }

    #[test]
    fn messages_to_memory_are_dropped() {
        let (msix, seen) = recorded(1);
        msix.set_control(true, false);
        msix.write_table(0, &0x1000_u64.to_le_bytes());
        msix.write_table(8, &[0; 8]);
        msix.signal(0);
        assert!(seen.lock().unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_access_to_any_place(accesses in prop::collection::vec((0_u64..200, prop::sample::select(vec![1_usize, 2, 4, 8]), any::<u64>(), 0_u16..20), 0..60)) {
            let (msix, seen) = recorded(9);
            msix.set_control(true, false);
            let mut signals = 0;
            for (offset, length, value, vector) in accesses {
                msix.write_table(offset, &value.to_le_bytes()[..length]);
                let mut data = [0; 8];
                msix.read_table(offset, &mut data[..length]);
                msix.read_pending(offset, &mut data[..length]);
                msix.signal(vector);
                signals += 1;
            }
            prop_assert!(seen.lock().unwrap().len() <= signals);
        }
    }
}
