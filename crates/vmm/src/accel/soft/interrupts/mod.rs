//! Interrupts of a machine: local APICs, the I/O APIC, messages between them.
//!
//! Followed is SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)" and, for the I/O APIC, Intel's 82093AA datasheet.
//! A local APIC is a state machine without threads ([`lapic::LocalApic`]); [`processor::Processor`] puts it behind a lock, wakes who must know, and
//! waits when a processor halts; [`alarm::Alarm`] is the one thread that interrupts running processors when their timers expire.
//!
//! Locks are taken in this order and never two of a kind: I/O APIC, local APIC, alarm.

mod alarm;
mod ioapic;
mod lapic;
mod message;
mod processor;
mod timer;
mod vectors;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use super::super::{Msi, Result};
use super::clock::Clock;
use crate::sync::lock;
use alarm::Alarm;
pub(super) use ioapic::IoApic;
use lapic::Effect;
use message::{DeliveryMode, Destination, Ipi, Message, Targets};
pub(super) use processor::Processor;

/// All of a machine's interrupt controllers.
pub(super) struct Interrupts {
    processors: Arc<[Processor]>,
    ioapic: Mutex<IoApic>,
    /// Where the search for a processor of lowest priority begins next: equals take turns.
    turn: AtomicU8,
}

impl Interrupts {
    /// For `vcpus` processors, all after reset.
    pub(super) fn new(vcpus: u8, clock: Arc<Clock>) -> Result<Arc<Self>> {
        let alarm = Arc::new(Alarm::new(vcpus)?);
        let processors: Arc<[Processor]> = (0..vcpus)
            .map(|index| Processor::new(index, alarm.clone(), clock.clone()))
            .collect();
        alarm.start(&processors)?;
        Ok(Arc::new(Self {
            processors,
            ioapic: Mutex::new(IoApic::new()),
            turn: AtomicU8::new(0),
        }))
    }

    /// The processor of this index.
    pub(super) fn processor(&self, index: u8) -> Option<&Processor> {
        self.processors.get(usize::from(index))
    }

    /// All of them.
    pub(super) fn processors(&self) -> &[Processor] {
        &self.processors
    }

    /// A device writes a message. One that is not meant for the local APICs does nothing: the guest wrote the address.
    pub(super) fn signal_msi(&self, msi: Msi) {
        if let Some(message) = Message::from_msi(msi) {
            self.deliver(message);
        }
    }

    /// A pin of the I/O APIC is asserted or not any more.
    pub(super) fn set_irq(&self, pin: u32, asserted: bool) {
        lock(&self.ioapic).set_pin(pin, asserted, |message| self.deliver(message));
    }

    /// A register of the I/O APIC's page.
    pub(super) fn read_ioapic(&self, offset: u64) -> u32 {
        lock(&self.ioapic).read(offset)
    }

    /// Writes one.
    pub(super) fn write_ioapic(&self, offset: u64, value: u32) {
        lock(&self.ioapic).write(offset, value, |message| self.deliver(message));
    }

    /// The I/O APIC itself, for snapshots.
    pub(super) fn with_ioapic<R>(&self, with: impl FnOnce(&mut IoApic) -> R) -> R {
        with(&mut lock(&self.ioapic))
    }

    /// Carries out what a register of a processor's local APIC had as effect on others. Its own lock must not be held.
    pub(super) fn apply(&self, effect: Effect, sender: u8) {
        match effect {
            Effect::None => {}
            Effect::Send(ipi) => self.send(ipi, sender),
            Effect::EndOfInterrupt(vector) => {
                lock(&self.ioapic).end_of_interrupt(vector, |message| self.deliver(message));
            }
        }
    }

    fn send(&self, ipi: Ipi, sender: u8) {
        let others = match ipi.targets {
            Targets::Destination => {
                self.deliver(ipi.message);
                return;
            }
            Targets::Own => {
                self.accept(sender, ipi.message);
                return;
            }
            Targets::All => None,
            Targets::Others => Some(sender),
        };
        let message = Message {
            destination: Destination::All,
            ..ipi.message
        };
        self.deliver_except(message, others);
    }

    /// Brings a message to all whom it addresses, or to one of them where its mode says so. True: somebody took it.
    fn deliver(&self, message: Message) -> bool {
        self.deliver_except(message, None)
    }

    fn deliver_except(&self, message: Message, except: Option<u8>) -> bool {
        if let Destination::Physical(id) = message.destination {
            // No broadcast: there is at most one, and which is known.
            let index = u8::try_from(id).ok();
            return index.is_some_and(|index| self.accept(index, message));
        }
        if message.mode == DeliveryMode::LowestPriority {
            return self.deliver_lowest(message, except);
        }
        let mut taken = false;
        for index in (0..self.count()).filter(|index| Some(*index) != except) {
            taken |= self.accept(index, message);
        }
        taken
    }

    /// To the one whose processor priority is lowest; those who are equal take turns.
    fn deliver_lowest(&self, message: Message, except: Option<u8>) -> bool {
        let count = self.count();
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % count.max(1);
        let chosen = (first..count)
            .chain(0..first)
            .filter(|index| Some(*index) != except)
            .filter_map(|index| {
                let priority = self.processor(index)?.with(|apic| {
                    (apic.is_addressed(message.destination) && apic.is_enabled())
                        .then(|| apic.processor_priority() >> 4)
                })?;
                Some((priority, index))
            })
            // The first of several that are equal.
            .min_by_key(|(priority, _)| *priority);
        chosen.is_some_and(|(_, index)| self.accept(index, message))
    }

    fn accept(&self, index: u8, message: Message) -> bool {
        let Some(processor) = self.processor(index) else {
            return false;
        };
        processor.with(|apic| {
            apic.is_addressed(message.destination) && apic.accept(message.mode, message.vector, message.level)
        })
    }

    fn count(&self) -> u8 {
        // Made from a `u8`.
        self.processors.len() as u8
    }
}

#[cfg(test)]
mod tests;
