//! What a processor in software finds around it: the APICs' pages and MSRs, the clocks, and the machine's bus.

use std::sync::Arc;

use vessel_softcpu::{Attention, Environment, Reset};

use super::super::{Bus, IOAPIC_BASE, LapicState, VcpuHandle};
use super::clock::Clock;
use super::interrupts::{Interrupts, Processor};

/// How the clock's pages are written.
pub(super) trait GuestMemory: Send + Sync {
    /// Writes to RAM; what is no RAM swallows it.
    fn write(&self, address: u64, data: &[u8]);
}

impl GuestMemory for vessel_softcpu::Memory {
    fn write(&self, address: u64, data: &[u8]) {
        self.write(address, data);
    }
}

/// What others can do to a vCPU.
pub(super) struct Handle {
    index: u8,
    interrupts: Arc<Interrupts>,
}

impl VcpuHandle for Handle {
    fn kick(&self) {
        if let Some(processor) = self.interrupts.processor(self.index) {
            processor.raise(Attention::KICK);
        }
    }
}

mod msr {
    pub(super) const TSC: u32 = 0x10;
    pub(super) const APIC_BASE: u32 = 0x1b;
    pub(super) const TSC_ADJUST: u32 = 0x3b;
    pub(super) const TSC_DEADLINE: u32 = 0x6e0;
    pub(super) const X2APIC_FIRST: u32 = 0x800;
    pub(super) const X2APIC_LAST: u32 = 0x8ff;
    pub(super) const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    pub(super) const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
}

/// The MSRs of a snapshot that are kept here, in the order in which they are put back: the mode of the local APIC before its timer's deadline, the counter before
/// what depends on it.
const SAVED: [u32; 6] = [
    msr::APIC_BASE,
    msr::TSC,
    msr::TSC_ADJUST,
    msr::TSC_DEADLINE,
    msr::KVM_WALL_CLOCK,
    msr::KVM_SYSTEM_TIME,
];

/// Bytes of the pages, less one.
const PAGE: u64 = 0xfff;

/// One processor's surroundings.
pub(super) struct Surroundings {
    index: u8,
    interrupts: Arc<Interrupts>,
    clock: Arc<Clock>,
    bus: Arc<dyn Bus>,
    memory: Arc<dyn GuestMemory>,
    /// Where the local APIC's page is, if it has one.
    apic_page: Option<u64>,
    tsc_adjust: u64,
    wall_clock: u64,
    system_time: u64,
    /// Of the clock's page: even when it is complete.
    version: u32,
    /// The boot processor was sent INIT.
    reset: bool,
}

impl Surroundings {
    /// Those of the processor `index`. `None`: the machine has fewer.
    pub(super) fn new(
        index: u8,
        interrupts: Arc<Interrupts>,
        clock: Arc<Clock>,
        bus: Arc<dyn Bus>,
        memory: Arc<dyn GuestMemory>,
    ) -> Option<Self> {
        let apic_page = interrupts.processor(index)?.with(|apic| apic.page());
        Some(Self {
            index,
            interrupts,
            clock,
            bus,
            memory,
            apic_page,
            tsc_adjust: 0,
            wall_clock: 0,
            system_time: 0,
            version: 0,
            reset: false,
        })
    }

    /// The processor's local APIC.
    pub(super) fn processor(&self) -> &Processor {
        // `new` has found it, and machines keep their processors.
        &self.interrupts.processors()[usize::from(self.index)]
    }

    /// The boot processor was sent INIT. There is no firmware at its reset vector: the machine is to be reset.
    pub(super) fn is_reset(&self) -> bool {
        self.reset
    }

    /// A handle for other threads.
    pub(super) fn handle(&self) -> Handle {
        Handle {
            index: self.index,
            interrupts: self.interrupts.clone(),
        }
    }

    /// The MSRs of a snapshot that are kept here.
    pub(super) fn msrs(&self) -> Vec<(u32, u64)> {
        SAVED
            .into_iter()
            .filter_map(|number| Some((number, self.msr(number)?)))
            .collect()
    }

    /// Reads a model-specific register. `None`: it is not one of these.
    fn msr(&self, number: u32) -> Option<u64> {
        let processor = self.processor();
        Some(match number {
            msr::TSC => processor.tsc(),
            msr::TSC_ADJUST => self.tsc_adjust,
            msr::APIC_BASE => processor.with(|apic| apic.base()),
            msr::TSC_DEADLINE => processor.with(|apic| apic.tsc_deadline()),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let now = processor.now();
                return processor.with(|apic| apic.read_msr(number, now));
            }
            msr::KVM_WALL_CLOCK => self.wall_clock,
            msr::KVM_SYSTEM_TIME => self.system_time,
            _ => return None,
        })
    }

    /// Puts those of them back that `msrs` has, and then the local APIC's registers, which come between its mode and its deadline.
    pub(super) fn restore(&mut self, msrs: &[(u32, u64)], lapic: &LapicState) {
        for number in SAVED {
            let Some((_, value)) = msrs.iter().find(|(saved, _)| *saved == number) else {
                continue;
            };
            match number {
                msr::APIC_BASE => self.processor().with(|apic| apic.restore_base(*value)),
                msr::TSC_ADJUST => self.tsc_adjust = *value,
                msr::TSC_DEADLINE => {
                    let now = self.processor().now();
                    self.processor().with(|apic| {
                        apic.set_state(lapic, now);
                        apic.set_tsc_deadline(*value, now);
                    });
                }
                number => {
                    self.write_msr(number, *value);
                }
            }
        }
        if !msrs.iter().any(|(number, _)| *number == msr::TSC_DEADLINE) {
            let now = self.processor().now();
            self.processor().with(|apic| apic.set_state(lapic, now));
        }
        self.apic_page = self.processor().with(|apic| apic.page());
    }

    fn set_tsc(&mut self, value: u64) {
        let delta = value.wrapping_sub(self.processor().tsc());
        self.add_to_tsc(delta);
        self.tsc_adjust = self.tsc_adjust.wrapping_add(delta);
    }

    fn add_to_tsc(&mut self, delta: u64) {
        let processor = self.processor();
        processor.set_tsc_offset(processor.tsc_offset().wrapping_add(delta));
        self.write_system_time();
    }

    /// Writes the page of the paravirtual clock, if the guest has one: an odd version, the content, the next even version.
    fn write_system_time(&mut self) {
        if self.system_time & 1 == 0 {
            return;
        }
        let address = self.system_time & !1;
        let odd = self.version | 1;
        self.version = odd.wrapping_add(1);
        let page = self.clock.page(self.version, self.processor().tsc_offset());
        self.memory.write(address, &odd.to_le_bytes());
        self.memory.write(address.wrapping_add(4), &page[4..]);
        self.memory.write(address, &page[..4]);
    }

    fn write_wall_clock(&self, address: u64) {
        if address == 0 {
            return;
        }
        let (seconds, nanoseconds) = self.clock.wall_clock();
        self.memory.write(address, &1_u32.to_le_bytes());
        self.memory.write(address.wrapping_add(4), &seconds.to_le_bytes());
        self.memory
            .write(address.wrapping_add(8), &nanoseconds.to_le_bytes());
        self.memory.write(address, &2_u32.to_le_bytes());
    }

    fn read_apic(&self, offset: u64, data: &mut [u8]) {
        // Registers have 32 bits at multiples of 16; nothing is between them.
        let processor = self.processor();
        let now = processor.now();
        let register = processor.with(|apic| apic.read_page(offset as u32 & !0xf, now));
        copy_register(register, (offset & 0xf) as usize, data);
    }

    fn write_apic(&self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(data) else {
            return;
        };
        if offset & 0xf != 0 {
            return;
        }
        let processor = self.processor();
        let now = processor.now();
        let value = u32::from_le_bytes(value);
        let effect = processor.with(|apic| apic.write_page(offset as u32, value, now));
        self.interrupts.apply(effect, self.index);
    }
}

/// A part of a 32-bit register and the zeros behind it.
fn copy_register(register: u32, at: usize, data: &mut [u8]) {
    let bytes = register.to_le_bytes();
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = bytes.get(at + index).copied().unwrap_or(0);
    }
}

impl Environment for Surroundings {
    fn read_port(&mut self, port: u16, data: &mut [u8]) {
        self.bus.read_port(port, data);
    }

    fn write_port(&mut self, port: u16, data: &[u8]) {
        self.bus.write_port(port, data);
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) {
        let page = address & !PAGE;
        if self.apic_page == Some(page) {
            self.read_apic(address & PAGE, data);
        } else if page == IOAPIC_BASE {
            let register = self.interrupts.read_ioapic(address & PAGE & !0xf);
            copy_register(register, (address & 0xf) as usize, data);
        } else {
            self.bus.read_memory(address, data);
        }
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) {
        let page = address & !PAGE;
        if self.apic_page == Some(page) {
            self.write_apic(address & PAGE, data);
        } else if page == IOAPIC_BASE {
            let mut value = [0; 4];
            for (to, from) in value.iter_mut().zip(data) {
                *to = *from;
            }
            self.interrupts
                .write_ioapic(address & PAGE, u32::from_le_bytes(value));
        } else {
            self.bus.write_memory(address, data);
        }
    }

    fn read_msr(&mut self, number: u32) -> Option<u64> {
        self.msr(number)
    }

    fn write_msr(&mut self, number: u32, value: u64) -> bool {
        match number {
            msr::TSC => self.set_tsc(value),
            msr::TSC_ADJUST => {
                self.add_to_tsc(value.wrapping_sub(self.tsc_adjust));
                self.tsc_adjust = value;
            }
            msr::APIC_BASE => {
                let processor = self.processor();
                let (done, page) = processor.with(|apic| (apic.set_base(value), apic.page()));
                self.apic_page = page;
                return done;
            }
            msr::TSC_DEADLINE => {
                let processor = self.processor();
                let now = processor.now();
                processor.with(|apic| apic.set_tsc_deadline(value, now));
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let processor = self.processor();
                let now = processor.now();
                let Some(effect) = processor.with(|apic| apic.write_msr(number, value, now)) else {
                    return false;
                };
                self.interrupts.apply(effect, self.index);
            }
            msr::KVM_WALL_CLOCK => {
                self.wall_clock = value;
                self.write_wall_clock(value);
            }
            msr::KVM_SYSTEM_TIME => {
                self.system_time = value;
                self.write_system_time();
            }
            _ => return false,
        }
        true
    }

    fn cr8(&mut self) -> u64 {
        self.processor().with(|apic| apic.task_priority_class())
    }

    fn set_cr8(&mut self, value: u64) {
        self.processor().with(|apic| apic.set_task_priority_class(value));
    }

    fn take_interrupt(&mut self) -> Option<u8> {
        self.processor().take_interrupt()
    }

    fn take_nmi(&mut self) -> bool {
        self.processor().take_nmi()
    }

    fn take_reset(&mut self) -> Option<Reset> {
        let reset = self.processor().take_reset()?;
        if self.index == 0 && reset == Reset::Init {
            self.reset = true;
            self.processor().raise(Attention::KICK);
            return None;
        }
        Some(reset)
    }

    fn tsc(&mut self) -> u64 {
        self.processor().tsc()
    }
}

#[cfg(test)]
mod tests;
