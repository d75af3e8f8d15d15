//! The state of machines and vCPUs, the same for every accelerator.

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part (SDM volume 3, "Segment Registers").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// What the guest loaded.
    pub selector: u16,
    /// Where the segment begins.
    pub base: u64,
    /// Its last byte, after granularity was applied.
    pub limit: u32,
    /// Bits 8 to 23 of a descriptor's second word, shifted down by eight: type, S, DPL, P, then AVL, L, D/B, G at bits 12 to 15. Bit 16: the segment is unusable (null).
    pub attributes: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Its linear address.
    pub base: u64,
    /// Its last byte.
    pub limit: u16,
}

/// The registers programs and kernels see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuRegisters {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15: in the order of their numbers.
    pub gpr: [u64; 16],
    /// The next instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// es, cs, ss, ds, fs, gs: in the order of their numbers.
    pub segments: [Segment; 6],
    /// The local descriptor table.
    pub ldt: Segment,
    /// The task state segment.
    pub task: Segment,
    /// The global descriptor table.
    pub gdt: DescriptorTable,
    /// The interrupt descriptor table.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// The linear address of the last page fault.
    pub cr2: u64,
    /// The root of the page tables.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The task priority.
    pub cr8: u64,
    /// Debug registers 0 to 3, 6, 7.
    pub debug: [u64; 6],
    /// Extended control register 0.
    pub xcr0: u64,
}

/// What has been begun and not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuEvents {
    /// An exception that is to be delivered first: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// An interrupt that the local APIC has given away and that is to be delivered first.
    pub interrupt: Option<u8>,
    /// A non-maskable interrupt waits.
    pub nmi_pending: bool,
    /// Non-maskable interrupts are held up until the next `iret`.
    pub nmi_masked: bool,
    /// `sti` or `mov ss` was the last instruction: no interrupt before the next has ended.
    pub interrupt_shadow: bool,
    /// It has executed `hlt`.
    pub halted: bool,
    /// It waits for SIPI (it was never started, or had an INIT).
    pub waits_for_start: bool,
}

/// The registers of a local APIC, as they lie in its page: one 32-bit register in every 16 bytes, 64 of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// Registers at offset 16 × index.
    pub registers: Vec<u32>,
}

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// What programs and kernels see.
    pub registers: VcpuRegisters,
    /// Model-specific registers: number, value. Those that a vCPU does not have are passed over when it is set.
    pub msrs: Vec<(u32, u64)>,
    /// The extended state as `xsave` writes it (standard format, at least the 512 legacy bytes and the 64 of the header).
    pub xsave: Vec<u8>,
    /// What waits.
    pub events: VcpuEvents,
    /// The local APIC.
    pub lapic: LapicState,
}

/// What a machine has beside its vCPUs, memory and devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// The redirection table of the I/O APIC.
    pub ioapic: Vec<u64>,
    /// Its pins that are up, a bit each.
    pub ioapic_lines: u32,
    /// The paravirtual clock when it was saved: nanoseconds since the machine's start.
    pub clock: u64,
}
