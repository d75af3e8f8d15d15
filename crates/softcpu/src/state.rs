//! The registers of a processor.

use std::sync::Arc;

use crate::block::BlockCache;
use crate::environment::{Attention, Environment};
use crate::exception::Exception;
use crate::memory::{Memory, Snapshot};
use crate::mmu::Mmu;
use crate::translate::Runtime;

/// Numbers of the general registers in [`Cpu::regs`].
pub(crate) mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R11: usize = 11;
    /// Always zero: the base or index of an address that has none.
    pub const ZERO: usize = 16;
    /// The address of the current block's first instruction: the base of RIP-relative addresses.
    pub const BLOCK: usize = 17;
    /// How many there are.
    pub const COUNT: usize = 18;
}

/// Numbers of the segment registers.
pub(crate) mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// A segment register with its hidden part (SDM volume 3, "Segment Registers").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Where the segment begins.
    pub base: u64,
    /// Its last byte (granularity already applied).
    pub limit: u32,
    /// What the guest loaded.
    pub selector: u16,
    /// Descriptor bits 40 to 55 without the limit: type, S, DPL, P in bits 0 to 7; AVL, L, D/B, G in bits 12 to 15. Zero: unusable (null).
    pub attributes: u16,
}

impl Segment {
    pub(crate) const PRESENT: u16 = 1 << 7;
    pub(crate) const CODE_OR_DATA: u16 = 1 << 4;
    pub(crate) const CODE: u16 = 1 << 3;
    pub(crate) const CONFORMING: u16 = 1 << 2;
    pub(crate) const READ_WRITE: u16 = 1 << 1;
    pub(crate) const LONG: u16 = 1 << 13;
    pub(crate) const BIG: u16 = 1 << 14;

    /// The descriptor's privilege level.
    pub(crate) fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    pub(crate) fn has(&self, bits: u16) -> bool {
        self.attributes & bits == bits
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Its linear address.
    pub base: u64,
    /// Its last byte.
    pub limit: u16,
}

/// What `xsave` writes in standard format: x87, SSE, the upper halves of the AVX registers.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct ExtendedState {
    /// The `fxsave` image: x87 and MMX, MXCSR at byte 24, XMM registers from byte 160.
    pub legacy: [u8; 512],
    /// XSTATE_BV and what follows it.
    pub header: [u8; 64],
    /// Bits 128 to 255 of the YMM registers.
    pub ymm_high: [[u8; 16]; 16],
}

impl ExtendedState {
    /// After `finit` and reset of MXCSR.
    pub(crate) fn initial() -> Self {
        let mut legacy = [0; 512];
        legacy[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        legacy[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        legacy[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
        Self {
            legacy,
            header: [0; 64],
            ymm_high: [[0; 16]; 16],
        }
    }

    /// What `xsave` writes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(832);
        bytes.extend_from_slice(&self.legacy);
        bytes.extend_from_slice(&self.header);
        for register in &self.ymm_high {
            bytes.extend_from_slice(register);
        }
        // The components that are there: x87 and SSE. AVX is not offered.
        bytes[512] = 3;
        bytes
    }

    /// Takes what `xsave` wrote; what is missing is as after reset.
    pub(crate) fn set_bytes(&mut self, bytes: &[u8]) {
        *self = Self::initial();
        if let Some(legacy) = bytes.get(..512) {
            self.legacy.copy_from_slice(legacy);
            // Reserved bits of MXCSR would fault on the host.
            self.legacy[26..28].fill(0);
        }
        self.settle();
        for (register, saved) in self
            .ymm_high
            .iter_mut()
            .zip(bytes.get(576..).unwrap_or(&[]).chunks_exact(16))
        {
            register.copy_from_slice(saved);
        }
    }
}

pub(crate) mod cr0 {
    pub const PE: u64 = 1;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

pub(crate) mod cr4 {
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
}

pub(crate) mod efer {
    pub const SCE: u64 = 1;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// How instructions are to be read and executed: part of a block's identity.
pub(crate) mod mode {
    /// Code is 64-bit.
    pub const CODE64: u8 = 1;
    /// Code is 32-bit (neither bit: 16-bit).
    pub const CODE32: u8 = 1 << 1;
    /// The stack pointer is 32-bit (64-bit code: always 64; neither: 16-bit).
    pub const STACK32: u8 = 1 << 2;
    /// Paging protection as user.
    pub const USER: u8 = 1 << 3;
    /// Real or virtual-8086 mode.
    pub const REAL: u8 = 1 << 4;
    /// `EFER.LMA`.
    pub const LONG: u8 = 1 << 5;
    /// x87 and SSE instructions trap (`CR0.TS` or `CR0.EM`).
    pub const NO_FPU: u8 = 1 << 6;
    /// SSE instructions are undefined (`CR4.OSFXSR` is clear).
    pub const NO_SSE: u8 = 1 << 7;
}

/// Registers that only `rdmsr` and `wrmsr` see and that the processor itself uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    pub mtrr_default: u64,
    pub misc_enable: u64,
}

/// One processor. It belongs to the thread that calls [`Cpu::run`]. It is large: keep it in a box.
#[repr(C)]
pub struct Cpu {
    /// The general registers by number, then [`gpr::ZERO`] and [`gpr::BLOCK`].
    pub(crate) regs: [u64; gpr::COUNT],
    /// The next instruction; inside a block it is behind (see `op::Op::start`).
    pub(crate) rip: u64,
    /// CF, PF, AF, ZF, SF, OF where RFLAGS has them; its other bits mean nothing here.
    pub(crate) status: u64,
    /// Everything else of RFLAGS.
    pub(crate) control: u64,
    pub(crate) mode: u8,
    pub(crate) cpl: u8,
    /// `sti` or `mov ss` was the last instruction.
    pub(crate) shadow: bool,
    /// The instruction began with TF set and cleared it itself (`popf`, `iret`): it still traps.
    pub(crate) trap_flag_was_set: bool,
    /// The environment may have an interrupt, NMI, INIT or SIPI.
    pub(crate) interrupt_waits: bool,
    pub(crate) halted: bool,
    pub(crate) waits_for_start: bool,
    pub(crate) nmi_masked: bool,
    pub(crate) segments: [Segment; 6],
    pub(crate) fault: Exception,
    pub(crate) mmu: Mmu,
    pub(crate) attention: Arc<Attention>,
    pub(crate) environment: Option<std::ptr::NonNull<dyn Environment>>,
    pub(crate) extended: Box<ExtendedState>,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) xcr0: u64,
    pub(crate) debug: [u64; 8],
    pub(crate) ldt: Segment,
    pub(crate) task: Segment,
    pub(crate) gdt: DescriptorTable,
    pub(crate) idt: DescriptorTable,
    pub(crate) msrs: Msrs,
    pub(crate) memory: Arc<Memory>,
    /// What the memory was when this processor last looked.
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) blocks: BlockCache,
    /// The physical page that the block being executed is in.
    pub(crate) block_page: u64,
    /// An exception or interrupt that is to be delivered before the next instruction (of a restored state).
    pub(crate) pending: Option<Exception>,
    pub(crate) index: u32,
    /// What translated code finds here.
    pub(crate) runtime: Runtime,
    /// A place for translated code to put a register away.
    pub(crate) scratch: u64,
    /// Blocks that are executed often are translated.
    pub(crate) translates: bool,
    /// How often.
    pub(crate) hot: u32,
    pub(crate) tsc_khz: u64,
    /// Instructions executed, counted by whole blocks.
    pub(crate) instructions: u64,
}

// SAFETY: the pointer to the environment is set only while `run` executes, on the thread that runs; everything else is owned or shared by `Arc`.
unsafe impl Send for Cpu {}
