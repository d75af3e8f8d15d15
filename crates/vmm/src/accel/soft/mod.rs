//! The accelerator for every x86-64 host: instructions are executed by [`vessel_softcpu`], what a processor has around it is here.
//!
//! [`interrupts`] are the local APICs, the I/O APIC and how messages find their way; [`clock`] is the time-stamp counter and the
//! paravirtual clock; [`environment`] is how a processor reaches them and the machine's bus.

mod clock;
mod environment;
mod interrupts;
mod registers;
mod vcpu;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vessel_softcpu::Memory;

use super::{
    Accelerator, Bus, Error, ErrorKind, IOAPIC_PINS, MemoryRegion, Msi, Result, Vcpu, Vm, VmConfig, VmState,
    WriteObserver,
};
use crate::sync::lock;
use clock::Clock;
use interrupts::Interrupts;
use vcpu::SoftVcpu;

/// The accelerator without virtualization.
#[derive(Debug, Default)]
pub struct Soft(());

impl Soft {
    /// It is always there.
    pub fn new() -> Self {
        Self(())
    }
}

impl Accelerator for Soft {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>> {
        if config.vcpus == 0 {
            return Err(invalid("a machine has 1 to 255 vCPUs"));
        }
        let clock = Arc::new(Clock::new());
        Ok(Arc::new(SoftVm {
            interrupts: Interrupts::new(config.vcpus, clock.clone())?,
            memory: Memory::new(),
            clock,
            bus: config.bus,
            slots: Mutex::default(),
            created: (0..config.vcpus).map(|_| AtomicBool::new(false)).collect(),
        }))
    }
}

/// A machine.
struct SoftVm {
    memory: Arc<Memory>,
    clock: Arc<Clock>,
    interrupts: Arc<Interrupts>,
    bus: Arc<dyn Bus>,
    /// Which slots there are, and whether writes to them are recorded.
    slots: Mutex<BTreeMap<u32, bool>>,
    /// Which vCPUs there are.
    created: Box<[AtomicBool]>,
}

impl Vm for SoftVm {
    unsafe fn map_memory(&self, slot: u32, region: MemoryRegion) -> Result<()> {
        let mut slots = lock(&self.slots);
        let described = vessel_softcpu::MemoryRegion {
            guest_address: region.guest_address,
            size: region.size,
            host_address: region.host_address,
            read_only: region.read_only,
            log_dirty: region.log_dirty,
        };
        // SAFETY: this method's caller promises the same.
        if !unsafe { self.memory.map(slot, described) } {
            return Err(invalid(format!(
                "{:#x} bytes at {:#x} cannot be memory of a virtual machine: it begins and ends at pages and does not overlap other memory",
                region.size, region.guest_address
            )));
        }
        slots.insert(slot, region.log_dirty);
        Ok(())
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        let mut slots = lock(&self.slots);
        if slots.remove(&slot).is_none() || !self.memory.unmap(slot) {
            return Err(no_slot(slot));
        }
        Ok(())
    }

    fn take_dirty_pages(&self, slot: u32) -> Result<Vec<u64>> {
        let slots = lock(&self.slots);
        match slots.get(&slot) {
            None => Err(no_slot(slot)),
            Some(false) => Err(invalid(format!("writes to memory slot {slot} are not recorded"))),
            Some(true) => self.memory.take_dirty_pages(slot).ok_or_else(|| no_slot(slot)),
        }
    }

    fn write_observer(&self) -> Option<Arc<dyn WriteObserver>> {
        Some(Arc::new(Written(self.memory.clone())))
    }

    fn create_vcpu(&self, index: u8) -> Result<Box<dyn Vcpu>> {
        let Some(created) = self.created.get(usize::from(index)) else {
            return Err(invalid(format!(
                "this machine has no vCPU {index}: it was made for {}",
                self.created.len()
            )));
        };
        if created.swap(true, Ordering::SeqCst) {
            return Err(invalid(format!("there is a vCPU {index} already")));
        }
        let vcpu = SoftVcpu::new(
            index,
            self.memory.clone(),
            self.interrupts.clone(),
            self.clock.clone(),
            self.bus.clone(),
        );
        // `created` has as many members as there are processors.
        vcpu.map(|vcpu| Box::new(vcpu) as Box<dyn Vcpu>)
            .ok_or_else(|| invalid(format!("this machine has no vCPU {index}")))
    }

    fn set_irq(&self, gsi: u32, level: bool) -> Result<()> {
        if gsi >= IOAPIC_PINS {
            return Err(invalid(format!("the I/O APIC has no pin {gsi}")));
        }
        self.interrupts.set_irq(gsi, level);
        Ok(())
    }

    fn signal_msi(&self, msi: Msi) -> Result<()> {
        self.interrupts.signal_msi(msi);
        Ok(())
    }

    fn save(&self) -> Result<VmState> {
        let (ioapic, ioapic_lines) = self.interrupts.with_ioapic(|ioapic| ioapic.state());
        Ok(VmState {
            ioapic,
            ioapic_lines,
            clock: self.clock.paravirtual(),
        })
    }

    fn restore(&self, state: &VmState) -> Result<()> {
        self.interrupts
            .with_ioapic(|ioapic| ioapic.set_state(&state.ioapic, state.ioapic_lines));
        self.clock.set_paravirtual(state.clock);
        Ok(())
    }
}

/// Instructions that were decoded out of memory are forgotten when a device writes there.
struct Written(Arc<Memory>);

impl WriteObserver for Written {
    fn written(&self, guest_address: u64, length: u64) {
        self.0.written(guest_address, length);
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

fn no_slot(slot: u32) -> Error {
    invalid(format!("the virtual machine has no memory slot {slot}"))
}
