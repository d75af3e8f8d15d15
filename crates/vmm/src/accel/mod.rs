//! What executes guest instructions, behind traits: [`Accelerator`], [`Vm`], [`Vcpu`].
//!
//! An accelerator brings the processor's local part: vCPUs, local APICs, the I/O APIC, the time-stamp counter and the
//! paravirtual clock (`KVM_FEATURE_CLOCKSOURCE2`). It brings no PIC and no PIT: machines here are "hardware-reduced" in ACPI's sense and
//! their kernels need neither. (KVM has a PIC all the same, connected to nothing: no device can have its ports, 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1.) Ports and memory that are no RAM go to the machine's [`Bus`].

use std::sync::Arc;

mod choice;
mod error;
mod kvm;
mod soft;
mod state;

pub use choice::{Choice, Chosen, choose};
pub use error::{Error, ErrorKind, Result};
pub use kvm::Kvm;
pub use soft::Soft;
pub use state::{DescriptorTable, LapicState, Segment, VcpuEvents, VcpuRegisters, VcpuState, VmState};

/// Where the I/O APIC's registers are (as on every PC): a page that belongs to the accelerator.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;

/// Where the local APICs' registers are: a page that belongs to the accelerator.
pub const LAPIC_BASE: u64 = 0xfee0_0000;

/// Input pins of the I/O APIC: global system interrupts 0 to 23.
pub const IOAPIC_PINS: u32 = 24;

/// Three pages that KVM on Intel needs for itself, and an identity map before them; no RAM is put here.
pub const KVM_TSS_BASE: u64 = 0xfffb_d000;

/// What answers accesses of the guest to ports and to physical addresses that are no RAM.
///
/// It is called on the vCPU's thread in the middle of an instruction: every call must come back soon, whatever the guest sent. Addresses
/// that nothing answers read as ones and swallow writes. `data` has 1, 2, 4 or 8 bytes.
pub trait Bus: Send + Sync {
    /// `in`: fills `data` with what the port says.
    fn read_port(&self, port: u16, data: &mut [u8]);
    /// `out`.
    fn write_port(&self, port: u16, data: &[u8]);
    /// A load of a physical address that is no RAM.
    fn read_memory(&self, address: u64, data: &mut [u8]);
    /// A store to one.
    fn write_memory(&self, address: u64, data: &[u8]);
}

/// A way to execute guest instructions.
pub trait Accelerator: Send + Sync {
    /// `kvm` or `soft`: what `--accel` says.
    fn name(&self) -> &'static str;

    /// An empty machine: no memory, no vCPU.
    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>>;
}

/// What must be known of a machine before it is made.
pub struct VmConfig {
    /// vCPUs it will ever have: 1 to 255. Their local APIC's number is their index.
    pub vcpus: u8,
    /// Where ports and memory-mapped devices are.
    pub bus: Arc<dyn Bus>,
}

/// A piece of the guest's physical address space that is memory of this process.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRegion {
    /// Its first guest-physical address: a multiple of 4096.
    pub guest_address: u64,
    /// Bytes: a multiple of 4096.
    pub size: u64,
    /// Where it is mapped in this process.
    pub host_address: *mut u8,
    /// Guest writes are refused (they go to the [`Bus`]).
    pub read_only: bool,
    /// Writes of vCPUs are recorded for [`Vm::take_dirty_pages`].
    pub log_dirty: bool,
}

// SAFETY: the pointer is only an address here; who maps a region promises that it stays valid (see `Vm::map_memory`).
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

/// A message-signalled interrupt: what a device would write where (SDM volume 3, "Message Signalled Interrupts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// The address, `0xfeeX_XXXX`.
    pub address: u64,
    /// The data: vector and delivery mode.
    pub data: u32,
}

/// One machine of an accelerator. All calls can come from any thread while its vCPUs run.
pub trait Vm: Send + Sync {
    /// Makes `region` the guest's memory under the number `slot`, or changes what that slot has (same size, other flags).
    ///
    /// # Safety
    /// The host's memory must stay mapped, readable and writable, until [`Vm::unmap_memory`] or the machine's end, and nobody may hold Rust references into it.
    unsafe fn map_memory(&self, slot: u32, region: MemoryRegion) -> Result<()>;

    /// Takes a slot away. Its host memory is not touched any more when this has come back.
    fn unmap_memory(&self, slot: u32) -> Result<()>;

    /// Which pages of `slot` vCPUs have written since the last call: one bit for each 4096 bytes, the lowest first. Writes after this call count for the next.
    /// There may be bits of pages that were only read.
    fn take_dirty_pages(&self, slot: u32) -> Result<Vec<u64>>;

    /// Who is to be told of every write to the guest's RAM that is not a vCPU's, after it: a processor in software keeps what it has
    /// decoded. `None`: nobody needs to know.
    fn write_observer(&self) -> Option<Arc<dyn WriteObserver>> {
        None
    }

    /// A vCPU in the state after reset (SDM volume 3, "Processor State After Reset"). vCPU 0 can run; the others wait for INIT and SIPI.
    fn create_vcpu(&self, index: u8) -> Result<Box<dyn Vcpu>>;

    /// Raises or lowers a pin of the I/O APIC (`gsi` below [`IOAPIC_PINS`]).
    fn set_irq(&self, gsi: u32, level: bool) -> Result<()>;

    /// Delivers an interrupt by message.
    fn signal_msi(&self, msi: Msi) -> Result<()>;

    /// The machine's part of a snapshot: I/O APIC, clock. All vCPUs must be stopped.
    fn save(&self) -> Result<VmState>;

    /// Puts it back, before any vCPU has run.
    fn restore(&self, state: &VmState) -> Result<()>;
}

/// See [`Vm::write_observer`].
pub trait WriteObserver: Send + Sync {
    /// A device has written `length` bytes of RAM.
    fn written(&self, guest_address: u64, length: u64);
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Somebody called [`VcpuHandle::kick`].
    Kicked,
    /// A triple fault: the machine is to be reset.
    Shutdown,
}

/// One processor of the guest. It belongs to the thread that runs it.
pub trait Vcpu: Send {
    /// Executes the guest until something happens that only the caller can decide. A halted vCPU waits in here for its next interrupt; so does one that
    /// waits for its start by another.
    fn run(&mut self) -> Result<Exit>;

    /// Everything of it that a snapshot needs.
    fn state(&self) -> Result<VcpuState>;

    /// Makes it what [`Vcpu::state`] said, of this accelerator or another.
    fn set_state(&mut self, state: &VcpuState) -> Result<()>;

    /// A handle for other threads.
    fn handle(&self) -> Arc<dyn VcpuHandle>;
}

/// What other threads can do to a vCPU.
pub trait VcpuHandle: Send + Sync {
    /// Makes the current call of [`Vcpu::run`], or else the next, come back with [`Exit::Kicked`] soon.
    fn kick(&self);
}
