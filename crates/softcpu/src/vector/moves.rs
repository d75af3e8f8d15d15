//! The most frequent of vector instructions, moves between registers and memory, without calling out.

use iced_x86::{Instruction, Mnemonic};

use super::thunk::Operand;
use super::{Buffer, register};
use crate::exec::attempt;
use crate::op::{Flow, Handler, Op};
use crate::state::Cpu;

/// The handler of a move; the caller has filled in `op`'s operands.
pub(super) fn lower(instruction: &Instruction, first: Operand, second: Operand, op: &Op) -> Option<Handler> {
    use Mnemonic as M;
    let whole = matches!(
        instruction.mnemonic(),
        M::Movaps
            | M::Movups
            | M::Movapd
            | M::Movupd
            | M::Movdqa
            | M::Movdqu
            | M::Lddqu
            | M::Movntdqa
            | M::Movntdq
            | M::Movntps
            | M::Movntpd
    );
    let part = matches!(instruction.mnemonic(), M::Movq | M::Movd | M::Movss | M::Movsd);
    let low_half = matches!(instruction.mnemonic(), M::Movlps | M::Movlpd);
    Some(match (first, second, op.third) {
        (Operand::Xmm(_), Operand::Xmm(_), _) if whole => copy,
        (Operand::Xmm(_), Operand::Memory, 16) if whole => load_16,
        (Operand::Memory, Operand::Xmm(_), 16) if whole => store::<16>,
        (Operand::Xmm(_), Operand::Memory, 8) if part => load_8,
        (Operand::Xmm(_), Operand::Memory, 4) if part => load_4,
        (Operand::Memory, Operand::Xmm(_), 8) if part || low_half => store::<8>,
        (Operand::Memory, Operand::Xmm(_), 4) if part => store::<4>,
        (Operand::Xmm(_), Operand::General(_, 8), _) if part => from_general::<8>,
        (Operand::Xmm(_), Operand::General(_, 4), _) if part => from_general::<4>,
        (Operand::General(_, 8), Operand::Xmm(_), _) if part => to_general::<8>,
        (Operand::General(_, 4), Operand::Xmm(_), _) if part => to_general::<4>,
        _ => return None,
    })
}

unsafe fn copy(cpu: &mut Cpu, op: &Op) -> Flow {
    let (dst, src) = (register(cpu, op.dst), register(cpu, op.src));
    // SAFETY: both are sixteen bytes of the image.
    unsafe { dst.cast::<u128>().write(src.cast::<u128>().read()) };
    Flow::Next
}

/// One load of sixteen bytes, as the guest's instruction makes it.
///
/// # Safety
/// The bytes are mapped.
#[inline(always)]
unsafe fn read_16(pointer: *const u8) -> std::arch::x86_64::__m128i {
    let value;
    // SAFETY: the caller's.
    unsafe {
        std::arch::asm!("movups {v}, [{p}]", v = lateout(xmm_reg) value, p = in(reg) pointer,
            options(nostack, preserves_flags, readonly));
    }
    value
}

unsafe fn load_16(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut buffer = Buffer([0; 16]);
    let src = attempt!(cpu.vector_source(op, &mut buffer));
    // SAFETY: sixteen bytes that can be read, and sixteen of the image.
    unsafe {
        register(cpu, op.dst)
            .cast::<std::arch::x86_64::__m128i>()
            .write(read_16(src))
    };
    Flow::Next
}

unsafe fn load_8(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut buffer = Buffer([0; 16]);
    let src = attempt!(cpu.vector_source(op, &mut buffer));
    // SAFETY: eight bytes that can be read; the register's upper half becomes zero.
    unsafe {
        let value = <u64 as crate::flags::Width>::load(src);
        register(cpu, op.dst).cast::<[u64; 2]>().write([value, 0]);
    }
    Flow::Next
}

unsafe fn load_4(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut buffer = Buffer([0; 16]);
    let src = attempt!(cpu.vector_source(op, &mut buffer));
    // SAFETY: four bytes that can be read; the register's rest becomes zero.
    unsafe {
        let value = <u32 as crate::flags::Width>::load(src);
        register(cpu, op.dst)
            .cast::<[u64; 2]>()
            .write([u64::from(value), 0]);
    }
    Flow::Next
}

unsafe fn store<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut buffer = Buffer([0; 16]);
    let (dst, elsewhere) = attempt!(cpu.vector_target(op, &mut buffer));
    let src = register(cpu, op.src);
    // SAFETY: `BYTES` bytes that can be written, out of a register. One store, as the guest's instruction makes it.
    unsafe {
        match BYTES {
            16 => {
                let value = src.cast::<std::arch::x86_64::__m128i>().read();
                std::arch::asm!("movups [{p}], {v}", v = in(xmm_reg) value, p = in(reg) dst, options(nostack, preserves_flags));
            }
            8 => <u64 as crate::flags::Width>::store(dst, src.cast::<u64>().read()),
            _ => <u32 as crate::flags::Width>::store(dst, src.cast::<u32>().read()),
        }
    }
    if let Some(address) = elsewhere {
        attempt!(cpu.write_bytes(address, &buffer.0[..BYTES]));
    }
    Flow::Next
}

unsafe fn from_general<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.regs[usize::from(op.src)];
    let value = if BYTES == 8 { value } else { value & 0xffff_ffff };
    // SAFETY: sixteen bytes of the image.
    unsafe { register(cpu, op.dst).cast::<[u64; 2]>().write([value, 0]) };
    Flow::Next
}

unsafe fn to_general<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Flow {
    // SAFETY: sixteen bytes of the image.
    let value = unsafe { register(cpu, op.src).cast::<u64>().read() };
    cpu.regs[usize::from(op.dst)] = if BYTES == 8 { value } else { value & 0xffff_ffff };
    Flow::Next
}
