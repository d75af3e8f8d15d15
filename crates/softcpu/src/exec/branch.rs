//! Near jumps, calls, returns.

use super::{Memory, Reg, Source, attempt};
use crate::flags::{Width, condition};
use crate::op::{Flow, Handler, Op};
use crate::state::{Cpu, gpr};

/// Makes `target` the next instruction, cut to the operand size outside 64-bit code.
#[inline(always)]
fn go(cpu: &mut Cpu, target: u64, bytes: u64) -> Flow {
    cpu.rip = match bytes {
        2 => target & 0xffff,
        4 => target & 0xffff_ffff,
        _ => target,
    };
    Flow::Jump
}

/// The target of a relative jump: `imm` counts from the block's start.
#[inline(always)]
fn target(cpu: &Cpu, op: &Op) -> u64 {
    cpu.block_start().wrapping_add(op.imm)
}

/// In 64-bit code a near target must be canonical: the jump itself faults.
macro_rules! checked {
    ($cpu:expr, $target:expr, $bytes:expr) => {
        if $bytes == 8 && !$cpu.canonical($target) {
            $cpu.protection();
            return Flow::Fault;
        }
    };
}

unsafe fn jump<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = target(cpu, op);
    go(cpu, target, W::BYTES)
}

unsafe fn jump_if<W: Width, const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = if condition::<CODE>(cpu.status) {
        target(cpu, op)
    } else {
        op.next(cpu)
    };
    go(cpu, target, W::BYTES)
}

unsafe fn jump_to<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = attempt!(S::get::<W>(cpu, op)).to_u64();
    checked!(cpu, target, W::BYTES);
    go(cpu, target, W::BYTES)
}

unsafe fn call_64(cpu: &mut Cpu, op: &Op) -> Flow {
    let pointer = cpu.regs[gpr::RSP].wrapping_sub(8);
    let next = op.next(cpu);
    attempt!(cpu.store(pointer, next));
    cpu.regs[gpr::RSP] = pointer;
    cpu.rip = target(cpu, op);
    Flow::Jump
}

unsafe fn call_any<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let next = op.next(cpu);
    attempt!(cpu.push_sized(W::BYTES, next));
    let target = target(cpu, op);
    go(cpu, target, W::BYTES)
}

unsafe fn call_to<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = attempt!(S::get::<W>(cpu, op)).to_u64();
    checked!(cpu, target, W::BYTES);
    let next = op.next(cpu);
    attempt!(cpu.push_sized(W::BYTES, next));
    go(cpu, target, W::BYTES)
}

unsafe fn return_64(cpu: &mut Cpu, op: &Op) -> Flow {
    let pointer = cpu.regs[gpr::RSP];
    let target = attempt!(cpu.load::<u64>(pointer));
    checked!(cpu, target, 8);
    cpu.regs[gpr::RSP] = pointer.wrapping_add(8 + op.imm);
    cpu.rip = target;
    Flow::Jump
}

unsafe fn return_any<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let target = attempt!(cpu.peek_sized(W::BYTES, 0));
    let pointer = cpu.regs[gpr::RSP].wrapping_add(W::BYTES + op.imm);
    cpu.set_stack_pointer(pointer);
    go(cpu, target, W::BYTES)
}

/// `loop`, `loope`, `loopne`, `jcxz`: `W` is the counter's width; kinds 0 to 3 in that order. `extra` is the operand size.
unsafe fn count<W: Width, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    const RCX: u8 = gpr::RCX as u8 * 8;
    let mut counter = cpu.reg::<W>(RCX).to_u64();
    let taken = if KIND == 3 {
        counter == 0
    } else {
        counter = W::from_u64(counter.wrapping_sub(1)).to_u64();
        cpu.set_reg(RCX, W::from_u64(counter));
        let zero = condition::<4>(cpu.status);
        counter != 0 && (KIND == 0 || (KIND == 1) == zero)
    };
    let target = if taken { target(cpu, op) } else { op.next(cpu) };
    go(cpu, target, u64::from(op.extra))
}

pub(crate) fn near_jump(bytes: u64) -> Handler {
    match bytes {
        2 => jump::<u16>,
        4 => jump::<u32>,
        _ => jump::<u64>,
    }
}

pub(crate) fn conditional(code: u8, bytes: u64) -> Handler {
    use super::moves::conditions;
    match bytes {
        2 => conditions!(code, jump_if, u16),
        4 => conditions!(code, jump_if, u32),
        _ => conditions!(code, jump_if, u64),
    }
}

pub(crate) fn indirect_jump(memory: bool, bytes: u64) -> Handler {
    match (memory, bytes) {
        (false, 2) => jump_to::<u16, Reg>,
        (false, 4) => jump_to::<u32, Reg>,
        (false, _) => jump_to::<u64, Reg>,
        (true, 2) => jump_to::<u16, Memory>,
        (true, 4) => jump_to::<u32, Memory>,
        (true, _) => jump_to::<u64, Memory>,
    }
}

pub(crate) fn call(bytes: u64) -> Handler {
    match bytes {
        2 => call_any::<u16>,
        4 => call_any::<u32>,
        _ => call_64,
    }
}

pub(crate) fn indirect_call(memory: bool, bytes: u64) -> Handler {
    match (memory, bytes) {
        (false, 2) => call_to::<u16, Reg>,
        (false, 4) => call_to::<u32, Reg>,
        (false, _) => call_to::<u64, Reg>,
        (true, 2) => call_to::<u16, Memory>,
        (true, 4) => call_to::<u32, Memory>,
        (true, _) => call_to::<u64, Memory>,
    }
}

pub(crate) fn near_return(bytes: u64) -> Handler {
    match bytes {
        2 => return_any::<u16>,
        4 => return_any::<u32>,
        _ => return_64,
    }
}

pub(crate) fn counted(which: u8, counter: u64) -> Handler {
    macro_rules! pick {
        ($width:ty) => {
            match which {
                0 => count::<$width, 0>,
                1 => count::<$width, 1>,
                2 => count::<$width, 2>,
                _ => count::<$width, 3>,
            }
        };
    }
    match counter {
        2 => pick!(u16),
        4 => pick!(u32),
        _ => pick!(u64),
    }
}
