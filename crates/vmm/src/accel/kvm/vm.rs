//! A machine of KVM: memory slots, the I/O APIC, messages, the clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    CpuId, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY, KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_clock_data, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irqchip, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;

use super::super::{
    Bus, Error, ErrorKind, IOAPIC_PINS, KVM_TSS_BASE, MemoryRegion, Msi, Result, Vcpu, Vm, VmConfig, VmState,
};
use super::vcpu::KvmVcpu;
use super::{Kvm, cpuid, failed};
use crate::sync::lock;

const PAGE: u64 = 4096;

/// A machine.
pub(super) struct KvmVm {
    fd: VmFd,
    bus: Arc<dyn Bus>,
    vcpus: u8,
    slots: Mutex<BTreeMap<u32, MemoryRegion>>,
    cpuid: CpuId,
    msrs: Arc<[u32]>,
}

impl KvmVm {
    pub(super) fn new(kvm: &Kvm, config: VmConfig) -> Result<Self> {
        let most = kvm.system.get_max_vcpus();
        if config.vcpus == 0 || usize::from(config.vcpus) > most {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("a machine has 1 to {} vCPUs on this host", most.min(255)),
            ));
        }
        let fd = create(&kvm.system)?;
        fd.set_identity_map_address(KVM_TSS_BASE - PAGE)
            .and_then(|()| fd.set_tss_address(KVM_TSS_BASE as usize))
            .and_then(|()| fd.create_irq_chip())
            .map_err(|error| failed("cannot give a virtual machine its interrupt controllers", error))?;
        let mut wide = kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            ..Default::default()
        };
        // The numbers of local APICs in x2APIC mode are saved as 32 bits. Broadcasts of devices to 255 stay broadcasts.
        wide.args[0] = KVM_X2APIC_API_USE_32BIT_IDS.into();
        fd.enable_cap(&wide)
            .and_then(|()| fd.set_gsi_routing(&routing()?))
            .map_err(|error| failed("cannot set up the interrupts of a virtual machine", error))?;
        Ok(Self {
            fd,
            bus: config.bus,
            vcpus: config.vcpus,
            slots: Mutex::default(),
            cpuid: kvm.cpuid.clone(),
            msrs: kvm.msrs.clone(),
        })
    }

    fn set_slot(&self, slot: u32, region: &MemoryRegion) -> Result<()> {
        let mut flags = 0;
        if region.read_only {
            flags |= KVM_MEM_READONLY;
        }
        if region.log_dirty {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.guest_address,
            memory_size: region.size,
            userspace_addr: region.host_address as u64,
        };
        // SAFETY: `Vm::map_memory`'s caller has promised that the memory stays; an empty region takes away what was promised before.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(|error| failed("cannot give memory to the virtual machine", error))
    }
}

/// Sometimes interrupted when the host is short of memory.
fn create(system: &kvm_ioctls::Kvm) -> Result<VmFd> {
    loop {
        match system.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(|error| failed("cannot create a virtual machine", error)),
        }
    }
}

/// Each pin is the global system interrupt of its number; KVM's own table lets interrupts 0 to 15 go to a PIC, too.
fn routing() -> Result<KvmIrqRouting, kvm_ioctls::Error> {
    let entries: Vec<_> = (0..IOAPIC_PINS)
        .map(|pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = pin;
            entry
        })
        .collect();
    KvmIrqRouting::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

impl Vm for KvmVm {
    unsafe fn map_memory(&self, slot: u32, region: MemoryRegion) -> Result<()> {
        let numbers = region.guest_address | region.size | region.host_address as u64;
        let end = region.guest_address.checked_add(region.size);
        if region.size == 0 || !numbers.is_multiple_of(PAGE) || end.is_none() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "memory of a virtual machine begins and ends at pages",
            ));
        }
        let mut slots = lock(&self.slots);
        let end = end.unwrap_or(u64::MAX);
        let overlaps = slots.iter().any(|(other, taken)| {
            *other != slot
                && taken.guest_address < end
                && region.guest_address < taken.guest_address + taken.size
        });
        if overlaps {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("memory at {:#x} is there already", region.guest_address),
            ));
        }
        if let Some(old) = slots.get(&slot) {
            let same = |region: &MemoryRegion| {
                (
                    region.guest_address,
                    region.size,
                    region.host_address,
                    region.read_only,
                )
            };
            // KVM changes only whether writes are recorded.
            if same(old) != same(&region) {
                self.set_slot(slot, &MemoryRegion { size: 0, ..*old })?;
                slots.remove(&slot);
            }
        }
        self.set_slot(slot, &region)?;
        slots.insert(slot, region);
        Ok(())
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        let mut slots = lock(&self.slots);
        let region = *slots.get(&slot).ok_or_else(|| no_slot(slot))?;
        self.set_slot(slot, &MemoryRegion { size: 0, ..region })?;
        slots.remove(&slot);
        Ok(())
    }

    fn take_dirty_pages(&self, slot: u32) -> Result<Vec<u64>> {
        let slots = lock(&self.slots);
        let region = slots.get(&slot).ok_or_else(|| no_slot(slot))?;
        if !region.log_dirty {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("writes to memory slot {slot} are not recorded"),
            ));
        }
        self.fd
            .get_dirty_log(slot, region.size as usize)
            .map_err(|error| failed("cannot ask which pages the virtual machine has written", error))
    }

    fn create_vcpu(&self, index: u8) -> Result<Box<dyn Vcpu>> {
        if index >= self.vcpus {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("this machine has no vCPU {index}: it was made for {}", self.vcpus),
            ));
        }
        let fd = self
            .fd
            .create_vcpu(index.into())
            .map_err(|error| failed("cannot create a vCPU", error))?;
        fd.set_cpuid2(&cpuid::of_vcpu(&self.cpuid, index, self.vcpus))
            .map_err(|error| failed("cannot tell a vCPU what processor it is", error))?;
        Ok(Box::new(KvmVcpu::new(fd, self.bus.clone(), self.msrs.clone())?))
    }

    fn set_irq(&self, gsi: u32, level: bool) -> Result<()> {
        if gsi >= IOAPIC_PINS {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the I/O APIC has no pin {gsi}"),
            ));
        }
        self.fd
            .set_irq_line(gsi, level)
            .map_err(|error| failed("cannot set an interrupt line", error))
    }

    fn signal_msi(&self, msi: Msi) -> Result<()> {
        if msi.address >> 20 != 0xfee {
            return Ok(());
        }
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: 0,
            data: msi.data,
            ..Default::default()
        };
        match self.fd.signal_msi(message) {
            Ok(_) => Ok(()),
            // -1 of the kernel's delivery: it addresses nobody, or what is no interrupt. The guest wrote it so.
            Err(error) if error.errno() == libc::EPERM => Ok(()),
            Err(error) => Err(failed("cannot deliver an interrupt message", error)),
        }
    }

    fn save(&self) -> Result<VmState> {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        self.fd
            .get_irqchip(&mut chip)
            .map_err(|error| failed("cannot read the I/O APIC", error))?;
        let clock = self
            .fd
            .get_clock()
            .map_err(|error| failed("cannot read the paravirtual clock", error))?;
        // SAFETY: the kernel has filled in the union for the chip that was asked for.
        let ioapic = unsafe { chip.chip.ioapic };
        Ok(VmState {
            // SAFETY: every bit pattern is valid for either member of this union of integers.
            ioapic: ioapic
                .redirtbl
                .iter()
                .map(|entry| unsafe { entry.bits })
                .collect(),
            ioapic_lines: ioapic.irr,
            clock: clock.clock,
        })
    }

    fn restore(&self, state: &VmState) -> Result<()> {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        // Whatever is not in a state stays as it is: the page's address, the selected register.
        self.fd
            .get_irqchip(&mut chip)
            .map_err(|error| failed("cannot read the I/O APIC", error))?;
        // SAFETY: as in `save`.
        let ioapic = unsafe { &mut chip.chip.ioapic };
        for (entry, saved) in ioapic.redirtbl.iter_mut().zip(&state.ioapic) {
            entry.bits = *saved;
        }
        ioapic.irr = state.ioapic_lines;
        self.fd
            .set_irqchip(&chip)
            .map_err(|error| failed("cannot write the I/O APIC", error))?;
        let clock = kvm_clock_data {
            clock: state.clock,
            ..Default::default()
        };
        self.fd
            .set_clock(&clock)
            .map_err(|error| failed("cannot set the paravirtual clock", error))
    }
}

fn no_slot(slot: u32) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("the virtual machine has no memory slot {slot}"),
    )
}
