//! A decoded instruction.

use crate::state::Cpu;

/// What a handler says about how to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Flow {
    /// With the next instruction of the block.
    Next,
    /// At `Cpu::rip`, which the handler has set: the block is left.
    Jump,
    /// The instruction had no effect; the exception (or the wish to be executed alone) is in `Cpu::fault`.
    Fault,
    /// As [`Flow::Next`], but the block is left: what follows may have to be decoded anew, or interrupts looked at.
    Leave,
}

/// What executes an instruction.
pub(crate) type Handler = unsafe fn(&mut Cpu, &Op) -> Flow;

/// How an effective address becomes a linear one.
pub(crate) mod kind {
    /// 64-bit addresses, segment base zero.
    pub const FLAT: u8 = 0;
    /// 64-bit addresses, base of FS or GS.
    pub const BASED: u8 = 1;
    /// 64-bit code with 32-bit addresses, any base.
    pub const SHORT: u8 = 2;
    /// Other modes: the address is cut to its size, limits and rights are checked, the result has 32 bits.
    pub const SEGMENTED: u8 = 3;
}

/// A memory operand.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Mem {
    pub displacement: u64,
    /// Numbers in `Cpu::regs`.
    pub base: u8,
    pub index: u8,
    /// A shift, 0 to 3.
    pub scale: u8,
    /// One of [`kind`].
    pub kind: u8,
    pub segment: u8,
    /// Bytes of an address: 2, 4, 8.
    pub size: u8,
}

impl Mem {
    pub(crate) const NONE: Self = Self {
        displacement: 0,
        base: crate::state::gpr::ZERO as u8,
        index: crate::state::gpr::ZERO as u8,
        scale: 0,
        kind: kind::FLAT,
        segment: crate::state::seg::DS as u8,
        size: 8,
    };
}

/// A decoded instruction: what executes it and its operands.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Op {
    pub run: Handler,
    pub mem: Mem,
    /// An immediate (extended to 64 bits), the target of a jump relative to the block's start, or what the handler wants.
    pub imm: u64,
    /// Byte offsets in `Cpu::regs`: a register number × 8, or one more for AH, CH, DH, BH. Handlers of vector instructions put register numbers here.
    pub dst: u8,
    pub src: u8,
    /// A third operand.
    pub third: u8,
    /// Bytes of the instruction.
    pub len: u8,
    /// Where it begins, from the block's start.
    pub start: u16,
    /// Free for handlers.
    pub extra: u16,
}

impl Op {
    /// Where the next instruction is.
    pub(crate) fn next(&self, cpu: &Cpu) -> u64 {
        cpu.regs[crate::state::gpr::BLOCK].wrapping_add(u64::from(self.start) + u64::from(self.len))
    }
}
