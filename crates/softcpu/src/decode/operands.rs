//! Registers, addresses and targets of an instruction, as handlers want them.

use iced_x86::{Instruction, OpKind, Register};

use crate::op::{Mem, kind};
use crate::state::{gpr, mode, seg};

/// The number of a general register, of whatever width (AH and its like: that of the whole).
pub(crate) fn number(register: Register) -> u8 {
    let full = register.full_register();
    (full as u32).wrapping_sub(Register::RAX as u32) as u8
}

/// A register operand's byte offset in `Cpu::regs`.
pub(crate) fn offset(register: Register) -> u8 {
    let high = matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    );
    number(register) * 8 + u8::from(high)
}

pub(crate) fn segment_number(register: Register) -> u8 {
    match register {
        Register::ES => seg::ES as u8,
        Register::CS => seg::CS as u8,
        Register::SS => seg::SS as u8,
        Register::FS => seg::FS as u8,
        Register::GS => seg::GS as u8,
        _ => seg::DS as u8,
    }
}

/// Where the decoder's relative targets count from: blocks are decoded as if they began at zero.
pub(super) fn relative(instruction: &Instruction, long: bool) -> u64 {
    let target = instruction.near_branch_target();
    match instruction.op0_kind() {
        OpKind::NearBranch16 => i64::from(target as i16) as u64,
        OpKind::NearBranch32 if !long => i64::from(target as i32) as u64,
        _ => target,
    }
}

/// The memory operand of an instruction.
pub(crate) fn memory(instruction: &Instruction, mode: u8) -> Mem {
    let long = mode & mode::CODE64 != 0;
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    let register = |register: Register| {
        if register == Register::None {
            gpr::ZERO as u8
        } else {
            number(register)
        }
    };
    let segment = segment_number(instruction.memory_segment());
    let (base_number, displacement, size) = match base {
        // The decoder has added the address of the next instruction, counted from the block's start.
        Register::RIP => (gpr::BLOCK as u8, instruction.memory_displacement64(), 8),
        Register::EIP => (gpr::BLOCK as u8, instruction.memory_displacement64(), 4),
        _ => {
            let size = address_size(instruction, long);
            (register(base), instruction.memory_displacement64(), size)
        }
    };
    let kind = match (long, size) {
        (true, 8) if usize::from(segment) >= seg::FS => kind::BASED,
        (true, 8) => kind::FLAT,
        (true, _) => kind::SHORT,
        (false, _) => kind::SEGMENTED,
    };
    Mem {
        displacement,
        base: base_number,
        index: register(index),
        scale: instruction.memory_index_scale().trailing_zeros() as u8,
        kind,
        segment,
        size,
    }
}

/// Bytes of the addresses of an instruction's memory operand.
pub(super) fn address_size(instruction: &Instruction, long: bool) -> u8 {
    let of = |register: Register| match register.size() {
        0 => None,
        size => Some(size as u8),
    };
    of(instruction.memory_base())
        .or(of(instruction.memory_index()))
        .unwrap_or(match instruction.memory_displ_size() {
            2 => 2,
            4 if !long => 4,
            8 => 8,
            // 64-bit code without registers: a 32-bit displacement is extended, unless the address-size prefix is there.
            4 => 4,
            _ => {
                if long {
                    8
                } else {
                    4
                }
            }
        })
}

/// Address size of a string instruction, from its register operands.
pub(super) fn string_size(instruction: &Instruction) -> (u8, Register) {
    for operand in 0..instruction.op_count() {
        let size = match instruction.op_kind(operand) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => 2,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => 4,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => 8,
            _ => continue,
        };
        return (size, instruction.memory_segment());
    }
    (8, Register::DS)
}

/// A string instruction's addresses: segment of the source, size.
pub(crate) fn string_memory(instruction: &Instruction, mode: u8) -> Mem {
    let long = mode & mode::CODE64 != 0;
    let (size, segment) = string_size(instruction);
    let segment = segment_number(segment);
    let kind = match (long, size) {
        (true, 8) if usize::from(segment) >= seg::FS => kind::BASED,
        (true, 8) => kind::FLAT,
        (true, _) => kind::SHORT,
        (false, _) => kind::SEGMENTED,
    };
    Mem {
        kind,
        segment,
        size,
        ..Mem::NONE
    }
}
