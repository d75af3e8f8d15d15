//! The I/O APIC: 24 pins, each with an entry of the redirection table (Intel 82093AA).
//!
//! Polarity is passed over: a pin is asserted or it is not, and who drives it says so. A pin of mode "edge" sends on assertion unless it is masked (then
//! the edge is lost); one of mode "level" sends while it is asserted and its last interrupt has been ended.

use super::super::super::IOAPIC_PINS;
use super::message::Message;

const PINS: usize = IOAPIC_PINS as usize;

/// What KVM's says, too: without an EOI register.
const VERSION: u32 = 0x11;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// What software can write of an entry.
const WRITABLE: u64 = 0xff00_0000_0001_ffff & !(DELIVERY_STATUS | REMOTE_IRR);

/// The I/O APIC.
#[derive(Debug)]
pub(in super::super) struct IoApic {
    /// The register that the window shows.
    selected: u8,
    id: u32,
    entries: [u64; PINS],
    /// Pins that are asserted.
    lines: u32,
}

impl IoApic {
    pub(super) fn new() -> Self {
        Self {
            selected: 0,
            id: 0,
            entries: [MASKED; PINS],
            lines: 0,
        }
    }

    /// A 32-bit register of the page: IOREGSEL, IOWIN; nothing else.
    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => self.selected.into(),
            0x10 => self.read_selected(),
            _ => 0,
        }
    }

    fn read_selected(&self) -> u32 {
        match self.selected {
            // Identification and arbitration.
            0 | 2 => self.id,
            1 => VERSION | (IOAPIC_PINS - 1) << 16,
            register => match self.entries.get(entry_of(register)) {
                Some(entry) if register & 1 == 0 => *entry as u32,
                Some(entry) => (*entry >> 32) as u32,
                None => 0,
            },
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32, send: impl FnMut(Message) -> bool) {
        match offset {
            0x00 => self.selected = value as u8,
            0x10 => self.write_selected(value, send),
            _ => {}
        }
    }

    fn write_selected(&mut self, value: u32, send: impl FnMut(Message) -> bool) {
        if self.selected == 0 {
            self.id = value & 0x0f00_0000;
        }
        let pin = entry_of(self.selected);
        let Some(entry) = self.entries.get_mut(pin) else {
            return;
        };
        let value = if self.selected & 1 == 0 {
            *entry & !0xffff_ffff | u64::from(value)
        } else {
            *entry & 0xffff_ffff | u64::from(value) << 32
        };
        *entry = value & WRITABLE | *entry & REMOTE_IRR;
        if *entry & LEVEL == 0 {
            // So software ends an interrupt of level mode where there is no EOI register: edge and back.
            *entry &= !REMOTE_IRR;
        }
        self.service_level(pin, send);
    }

    /// A pin is asserted or not.
    pub(super) fn set_pin(&mut self, pin: u32, asserted: bool, mut send: impl FnMut(Message) -> bool) {
        let Some(entry) = self.entries.get(pin as usize) else {
            return;
        };
        let bit = 1 << pin;
        let rises = asserted && self.lines & bit == 0;
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if entry & LEVEL != 0 {
            self.service_level(pin as usize, send);
        } else if rises && entry & MASKED == 0 {
            send(Message::from_redirection(*entry));
        }
    }

    /// A local APIC ended an interrupt that it had got as level-triggered.
    pub(super) fn end_of_interrupt(&mut self, vector: u8, mut send: impl FnMut(Message) -> bool) {
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if *entry & LEVEL != 0 && *entry & REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
                self.service_level(pin, &mut send);
            }
        }
    }

    fn service_level(&mut self, pin: usize, mut send: impl FnMut(Message) -> bool) {
        let entry = &mut self.entries[pin];
        let waits = self.lines >> pin & 1 != 0 && *entry & LEVEL != 0;
        if waits && *entry & (MASKED | REMOTE_IRR) == 0 && send(Message::from_redirection(*entry)) {
            *entry |= REMOTE_IRR;
        }
    }

    /// For snapshots: the entries and the pins that are asserted.
    pub(in super::super) fn state(&self) -> (Vec<u64>, u32) {
        (self.entries.to_vec(), self.lines)
    }

    /// Puts them back. Entries that are missing stay masked.
    pub(in super::super) fn set_state(&mut self, entries: &[u64], lines: u32) {
        *self = Self::new();
        for (entry, saved) in self.entries.iter_mut().zip(entries) {
            *entry = *saved & (WRITABLE | REMOTE_IRR);
        }
        self.lines = lines & ((1 << IOAPIC_PINS) - 1);
    }
}

/// Which entry a register belongs to; for the others, one that is not there.
fn entry_of(register: u8) -> usize {
    usize::from(register)
        .checked_sub(0x10)
        .map_or(usize::MAX, |register| register / 2)
}

#[cfg(test)]
mod tests {
    use super::super::message::{DeliveryMode, Destination};
    use super::*;
    use proptest::prelude::*;

    /// An I/O APIC and what it sent.
    struct Bench {
        ioapic: IoApic,
        sent: Vec<Message>,
        /// Whether somebody takes what is sent.
        taken: bool,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                ioapic: IoApic::new(),
                sent: vec![],
                taken: true,
            }
        }

        fn write(&mut self, register: u8, value: u32) {
            let (sent, taken) = (&mut self.sent, self.taken);
            let mut send = |message| {
                sent.push(message);
                taken
            };
            self.ioapic.write(0x00, register.into(), &mut send);
            self.ioapic.write(0x10, value, &mut send);
        }

        fn read(&mut self, register: u8) -> u32 {
            self.ioapic.write(0x00, register.into(), |_| true);
            self.ioapic.read(0x10)
        }

        fn pin(&mut self, pin: u32, asserted: bool) -> usize {
            let before = self.sent.len();
            let (sent, taken) = (&mut self.sent, self.taken);
            self.ioapic.set_pin(pin, asserted, |message| {
                sent.push(message);
                taken
            });
            self.sent.len() - before
        }

        fn end(&mut self, vector: u8) -> usize {
            let before = self.sent.len();
            let (sent, taken) = (&mut self.sent, self.taken);
            self.ioapic.end_of_interrupt(vector, |message| {
                sent.push(message);
                taken
            });
            self.sent.len() - before
        }
    }

    #[test]
    fn registers() {
        let mut bench = Bench::new();
        assert_eq!(bench.read(1), 0x0017_0011);
        assert_eq!(bench.read(0x10 + 2 * 23), 1 << 16, "masked after reset");
        bench.write(0x12, 0xffff_ffff);
        bench.write(0x13, 0xffff_ffff);
        assert_eq!(bench.read(0x12), 0x0001_afff, "status bits are not written");
        assert_eq!(bench.read(0x13), 0xff00_0000);
        bench.write(0, 0xffff_ffff);
        assert_eq!(bench.read(0), 0x0f00_0000);
        assert_eq!(bench.read(0x10 + 2 * 24), 0, "there is no pin 24");
        bench.write(0x10 + 2 * 24, 0x31);
        assert_eq!(bench.pin(24, true), 0);
        assert_eq!(bench.pin(u32::MAX, true), 0);
    }

    #[test]
    fn an_edge_sends_once_and_is_lost_when_masked() {
        let mut bench = Bench::new();
        bench.write(0x10 + 2 * 4, 0x31);
        bench.write(0x11 + 2 * 4, 2 << 24);
        assert_eq!(bench.pin(4, true), 1);
        assert_eq!(
            bench.sent[0],
            Message {
                destination: Destination::Physical(2),
                mode: DeliveryMode::Fixed,
                vector: 0x31,
                level: false
            }
        );
        assert_eq!(bench.pin(4, true), 0, "it is up already");
        assert_eq!(bench.pin(4, false), 0);
        bench.write(0x10 + 2 * 4, 0x31 | 1 << 16);
        assert_eq!(bench.pin(4, true), 0);
        bench.write(0x10 + 2 * 4, 0x31);
        assert_eq!(bench.sent.len(), 1, "an edge while masked is lost");
        bench.pin(4, false);
        assert_eq!(bench.pin(4, true), 1);
    }

    #[test]
    fn a_level_sends_until_it_falls() {
        let mut bench = Bench::new();
        bench.write(0x10 + 2 * 9, 0x41 | 1 << 15);
        assert_eq!(bench.pin(9, true), 1);
        assert!(bench.sent[0].level);
        assert_ne!(bench.read(0x10 + 2 * 9) & 1 << 14, 0, "remote IRR");
        assert_eq!(bench.pin(9, false), 0);
        assert_eq!(bench.pin(9, true), 0, "the first is not ended");
        assert_eq!(bench.end(0x42), 0, "another vector");
        assert_eq!(bench.end(0x41), 1, "still asserted");
        bench.pin(9, false);
        assert_eq!(bench.end(0x41), 0);
        assert_eq!(bench.read(0x10 + 2 * 9) & 1 << 14, 0);
        assert_eq!(bench.end(0x41), 0, "ended already");
    }

    #[test]
    fn a_masked_level_waits() {
        let mut bench = Bench::new();
        bench.write(0x10, 0x41 | 1 << 15 | 1 << 16);
        assert_eq!(bench.pin(0, true), 0);
        bench.write(0x10, 0x41 | 1 << 15);
        assert_eq!(bench.sent.len(), 1);
        // Software's way to end it without an EOI register.
        bench.write(0x10, 0x41 | 1 << 16);
        assert_eq!(bench.read(0x10) & 1 << 14, 0);
        bench.write(0x10, 0x41 | 1 << 15);
        assert_eq!(bench.sent.len(), 2);
    }

    #[test]
    fn a_level_that_nobody_takes_is_sent_again() {
        let mut bench = Bench::new();
        bench.taken = false;
        bench.write(0x10, 0x41 | 1 << 15);
        assert_eq!(bench.pin(0, true), 1);
        assert_eq!(bench.read(0x10) & 1 << 14, 0);
        bench.taken = true;
        bench.write(0x11, 1 << 24);
        assert_eq!(bench.sent.len(), 2);
        assert_eq!(bench.sent[1].destination, Destination::Physical(1));
    }

    #[test]
    fn its_state_is_saved() {
        let mut bench = Bench::new();
        bench.write(0x10 + 2 * 9, 0x41 | 1 << 15);
        bench.pin(9, true);
        let (entries, lines) = bench.ioapic.state();
        let mut other = Bench::new();
        other.ioapic.set_state(&entries, lines);
        assert_eq!(other.pin(9, true), 0);
        assert_eq!(other.end(0x41), 1);
        other.ioapic.set_state(&entries[..3], u32::MAX);
        assert_eq!(other.ioapic.state().1, 0xff_ffff);
    }

    proptest! {
        /// Whatever a guest writes: no panic, and no interrupt from a pin that is masked.
        #[test]
        fn garbage(writes in prop::collection::vec((any::<u8>(), any::<u32>(), any::<u8>()), 0..60)) {
            let mut bench = Bench::new();
            for (register, value, pin) in writes {
                bench.write(register, value);
                bench.pin(u32::from(pin % 30), value & 1 != 0);
                bench.end(value as u8);
            }
            for pin in 0..IOAPIC_PINS {
                bench.write(0x10 + 2 * pin as u8, 1 << 16);
                bench.pin(pin, false);
                prop_assert_eq!(bench.pin(pin, true), 0);
            }
        }
    }
}
