//! Moves, exchanges, the stack.

use super::{Destination, Imm, Memory, Reg, Source, attempt, by_width, modify_locked};
use crate::access::Place;
use crate::flags::{self, Width, condition};
use crate::mmu::Access;
use crate::op::{Flow, Handler, Op, kind};
use crate::state::{Cpu, gpr};

unsafe fn move_to<W: Width, D: Destination, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(S::get::<W>(cpu, op));
    attempt!(D::set(cpu, op, value));
    Flow::Next
}

pub(crate) fn mov(to_memory: bool, source: Kind, bytes: u64) -> Handler {
    match (to_memory, source) {
        (false, Kind::Reg) => by_width!(bytes, move_to, Reg, Reg),
        (false, Kind::Imm) => by_width!(bytes, move_to, Reg, Imm),
        (false, Kind::Memory) => by_width!(bytes, move_to, Reg, Memory),
        (true, Kind::Imm) => by_width!(bytes, move_to, Memory, Imm),
        (true, _) => by_width!(bytes, move_to, Memory, Reg),
    }
}

/// What a source operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Reg,
    Imm,
    Memory,
}

/// `movzx`, `movsx`, `movsxd`: a narrow source into a register of `D`.
unsafe fn extend<N: Width, D: Width, const SIGNED: bool, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(S::get::<N>(cpu, op));
    let wide = if SIGNED {
        value.to_i64() as u64
    } else {
        value.to_u64()
    };
    cpu.set_reg(op.dst, D::from_u64(wide));
    Flow::Next
}

pub(crate) fn extension(signed: bool, memory: bool, from: u64, to: u64) -> Handler {
    macro_rules! source {
        ($narrow:ty, $wide:ty) => {
            match (signed, memory) {
                (false, false) => extend::<$narrow, $wide, false, Reg>,
                (false, true) => extend::<$narrow, $wide, false, Memory>,
                (true, false) => extend::<$narrow, $wide, true, Reg>,
                (true, true) => extend::<$narrow, $wide, true, Memory>,
            }
        };
    }
    macro_rules! wide {
        ($narrow:ty) => {
            match to {
                2 => source!($narrow, u16),
                4 => source!($narrow, u32),
                _ => source!($narrow, u64),
            }
        };
    }
    match from {
        1 => wide!(u8),
        2 => wide!(u16),
        _ => wide!(u32),
    }
}

unsafe fn lea<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut offset = cpu.offset(&op.mem);
    if op.mem.kind == kind::SHORT || op.mem.size == 4 {
        offset &= 0xffff_ffff;
    } else if op.mem.size == 2 {
        offset &= 0xffff;
    }
    cpu.set_reg(op.dst, W::from_u64(offset));
    Flow::Next
}

pub(crate) fn load_address(bytes: u64) -> Handler {
    match bytes {
        2 => lea::<u16>,
        4 => lea::<u32>,
        _ => lea::<u64>,
    }
}

/// `push`: 64-bit code's usual form.
unsafe fn push_64<S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(S::get::<u64>(cpu, op));
    let pointer = cpu.regs[gpr::RSP].wrapping_sub(8);
    attempt!(cpu.store(pointer, value));
    cpu.regs[gpr::RSP] = pointer;
    Flow::Next
}

unsafe fn push_any<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(S::get::<W>(cpu, op));
    attempt!(cpu.push_sized(W::BYTES, value.to_u64()));
    Flow::Next
}

pub(crate) fn push(source: Kind, bytes: u64, long: bool) -> Handler {
    match (source, bytes, long) {
        (Kind::Reg, 8, true) => push_64::<Reg>,
        (Kind::Imm, 8, true) => push_64::<Imm>,
        (Kind::Memory, 8, true) => push_64::<Memory>,
        (Kind::Reg, 4, _) => push_any::<u32, Reg>,
        (Kind::Imm, 4, _) => push_any::<u32, Imm>,
        (Kind::Memory, 4, _) => push_any::<u32, Memory>,
        (Kind::Reg, ..) => push_any::<u16, Reg>,
        (Kind::Imm, ..) => push_any::<u16, Imm>,
        (Kind::Memory, ..) => push_any::<u16, Memory>,
    }
}

unsafe fn pop_64(cpu: &mut Cpu, op: &Op) -> Flow {
    let pointer = cpu.regs[gpr::RSP];
    let value = attempt!(cpu.load::<u64>(pointer));
    cpu.regs[gpr::RSP] = pointer.wrapping_add(8);
    cpu.set_reg(op.dst, value);
    Flow::Next
}

unsafe fn pop_reg<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(cpu.pop_sized(W::BYTES));
    cpu.set_reg(op.dst, W::from_u64(value));
    Flow::Next
}

/// `pop` to memory: an address with RSP is that after the pop.
unsafe fn pop_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let before = cpu.regs[gpr::RSP];
    let value = attempt!(cpu.pop_sized(W::BYTES));
    let stored = match cpu.address(&op.mem, W::BYTES, Access::Write) {
        Ok(address) => cpu.store(address, W::from_u64(value)),
        Err(fault) => Err(fault),
    };
    if stored.is_err() {
        cpu.regs[gpr::RSP] = before;
        return Flow::Fault;
    }
    Flow::Next
}

pub(crate) fn pop(memory: bool, bytes: u64, long: bool) -> Handler {
    match (memory, bytes) {
        (false, 8) if long => pop_64,
        (false, 4) => pop_reg::<u32>,
        (false, 2) => pop_reg::<u16>,
        (false, _) => pop_reg::<u64>,
        (true, 2) => pop_mem::<u16>,
        (true, 4) => pop_mem::<u32>,
        (true, _) => pop_mem::<u64>,
    }
}

/// `pusha` and `popa` of 16- and 32-bit code.
pub(crate) unsafe fn push_all<W: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let before = cpu.regs;
    for number in 0..8 {
        if cpu.push_sized(W::BYTES, before[number]).is_err() {
            cpu.regs = before;
            return Flow::Fault;
        }
    }
    Flow::Next
}

pub(crate) unsafe fn pop_all<W: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let before = cpu.regs;
    for number in (0..8).rev() {
        match cpu.pop_sized(W::BYTES) {
            Ok(value) if number != gpr::RSP => cpu.set_reg(number as u8 * 8, W::from_u64(value)),
            Ok(_) => {}
            Err(_) => {
                cpu.regs = before;
                return Flow::Fault;
            }
        }
    }
    Flow::Next
}

/// `leave`.
pub(crate) unsafe fn leave<W: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let before = cpu.regs[gpr::RSP];
    let frame = cpu.regs[gpr::RBP];
    cpu.set_stack_pointer(frame);
    match cpu.pop_sized(W::BYTES) {
        Ok(value) => {
            cpu.set_reg(gpr::RBP as u8 * 8, W::from_u64(value));
            Flow::Next
        }
        Err(_) => {
            cpu.regs[gpr::RSP] = before;
            Flow::Fault
        }
    }
}

/// `enter`: frame size in `imm`, nesting level in `extra`.
pub(crate) unsafe fn enter<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let before = cpu.regs;
    let result = (|| {
        let frame = cpu.regs[gpr::RBP];
        cpu.push_sized(W::BYTES, frame)?;
        let new_frame = cpu.regs[gpr::RSP];
        let level = u64::from(op.extra) & 31;
        for above in 1..level {
            let address = cpu.stack_address(frame.wrapping_sub(above * W::BYTES), W::BYTES, Access::Read)?;
            let value = cpu.load::<W>(address)?;
            cpu.push_sized(W::BYTES, value.to_u64())?;
        }
        if level > 0 {
            cpu.push_sized(W::BYTES, new_frame)?;
        }
        let pointer = cpu.regs[gpr::RSP].wrapping_sub(op.imm);
        // The new top of the stack must be writable, though nothing is written there.
        let top = cpu.stack_address(pointer, W::BYTES, Access::Write)?;
        cpu.probe_write(top, W::BYTES)?;
        cpu.set_reg(gpr::RBP as u8 * 8, W::from_u64(new_frame));
        cpu.set_stack_pointer(pointer);
        Ok::<(), crate::exception::Fault>(())
    })();
    if result.is_err() {
        cpu.regs = before;
        return Flow::Fault;
    }
    Flow::Next
}

unsafe fn exchange_reg<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    cpu.set_reg(op.dst, b);
    cpu.set_reg(op.src, a);
    Flow::Next
}

/// `xchg` with memory is always locked.
unsafe fn exchange_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = attempt!(cpu.address(&op.mem, W::BYTES, Access::Write));
    let new = cpu.reg::<W>(op.src);
    let old = match attempt!(cpu.place::<W>(address)) {
        // SAFETY: `place` found writable RAM of the guest with room for a `W`.
        Place::Host(host) => unsafe { W::lock_xchg(host, new) },
        Place::Elsewhere => {
            let old = attempt!(cpu.load::<W>(address));
            attempt!(cpu.store(address, new));
            old
        }
    };
    cpu.set_reg(op.src, old);
    Flow::Next
}

pub(crate) fn exchange(memory: bool, bytes: u64) -> Handler {
    if memory {
        by_width!(bytes, exchange_mem,)
    } else {
        by_width!(bytes, exchange_reg,)
    }
}

unsafe fn exchange_add_reg<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (a, b) = (cpu.reg::<W>(op.dst), cpu.reg::<W>(op.src));
    let sum = a.add(b, &mut cpu.status);
    cpu.set_reg(op.src, a);
    cpu.set_reg(op.dst, sum);
    Flow::Next
}

unsafe fn exchange_add_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = attempt!(cpu.address(&op.mem, W::BYTES, Access::Write));
    let value = cpu.reg::<W>(op.src);
    let old = match attempt!(cpu.place::<W>(address)) {
        // SAFETY: `place` found writable RAM of the guest with room for a `W`.
        Place::Host(host) => unsafe { W::lock_xadd(host, value, &mut cpu.status) },
        Place::Elsewhere => {
            let old = attempt!(cpu.load::<W>(address));
            let sum = old.add(value, &mut cpu.status);
            attempt!(cpu.store(address, sum));
            old
        }
    };
    cpu.set_reg(op.src, old);
    Flow::Next
}

pub(crate) fn exchange_add(memory: bool, bytes: u64) -> Handler {
    if memory {
        by_width!(bytes, exchange_add_mem,)
    } else {
        by_width!(bytes, exchange_add_reg,)
    }
}

unsafe fn compare_exchange_reg<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let accumulator = cpu.reg::<W>(0);
    let old = cpu.reg::<W>(op.dst);
    accumulator.cmp(old, &mut cpu.status);
    if cpu.status & flags::ZF != 0 {
        let new = cpu.reg::<W>(op.src);
        cpu.set_reg(op.dst, new);
    } else {
        cpu.set_reg(0, old);
    }
    Flow::Next
}

/// With and without `lock`: being atomic hurts nobody.
unsafe fn compare_exchange_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = attempt!(cpu.address(&op.mem, W::BYTES, Access::Write));
    let (expected, new) = (cpu.reg::<W>(0), cpu.reg::<W>(op.src));
    let old = match attempt!(cpu.place::<W>(address)) {
        // SAFETY: `place` found writable RAM of the guest with room for a `W`.
        Place::Host(host) => unsafe { W::lock_cmpxchg(host, expected, new, &mut cpu.status) },
        Place::Elsewhere => {
            let old = attempt!(cpu.load::<W>(address));
            expected.cmp(old, &mut cpu.status);
            let store = if cpu.status & flags::ZF != 0 { new } else { old };
            attempt!(cpu.store(address, store));
            old
        }
    };
    if cpu.status & flags::ZF == 0 {
        cpu.set_reg(0, old);
    }
    Flow::Next
}

pub(crate) fn compare_exchange(memory: bool, bytes: u64) -> Handler {
    if memory {
        by_width!(bytes, compare_exchange_mem,)
    } else {
        by_width!(bytes, compare_exchange_reg,)
    }
}

/// `cmpxchg8b`.
pub(crate) unsafe fn compare_exchange_8(cpu: &mut Cpu, op: &Op) -> Flow {
    let expected = cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xffff_ffff;
    let new = cpu.regs[gpr::RCX] << 32 | cpu.regs[gpr::RBX] & 0xffff_ffff;
    let mut found = 0;
    attempt!(modify_locked::<u64>(cpu, op, |_, old| {
        found = old;
        if old == expected { new } else { old }
    }));
    if found == expected {
        cpu.status |= flags::ZF;
    } else {
        cpu.status &= !flags::ZF;
        cpu.set_reg(0, found as u32);
        cpu.set_reg(gpr::RDX as u8 * 8, (found >> 32) as u32);
    }
    Flow::Next
}

/// `cmpxchg16b`: #GP unless the operand is aligned.
pub(crate) unsafe fn compare_exchange_16(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = attempt!(cpu.address(&op.mem, 16, Access::Write));
    if !address.is_multiple_of(16) {
        cpu.protection();
        return Flow::Fault;
    }
    let expected = u128::from(cpu.regs[gpr::RDX]) << 64 | u128::from(cpu.regs[gpr::RAX]);
    let (low, high) = (cpu.regs[gpr::RBX], cpu.regs[gpr::RCX]);
    let found = match attempt!(cpu.place_slow(address, 16)) {
        Place::Host(host) => {
            let (mut rax, mut rdx) = (cpu.regs[gpr::RAX], cpu.regs[gpr::RDX]);
            // SAFETY: `place_slow` found sixteen writable bytes of RAM, which are aligned as the instruction wants (pages are mapped aligned). RBX is the compiler's, so it
            // is exchanged around the instruction.
            unsafe {
                std::arch::asm!(
                    "xchg rbx, {low}",
                    "lock cmpxchg16b [{p}]",
                    "mov rbx, {low}",
                    low = inout(reg) low => _,
                    p = in(reg) host,
                    in("rcx") high,
                    inout("rax") rax,
                    inout("rdx") rdx,
                    options(nostack)
                );
            }
            u128::from(rdx) << 64 | u128::from(rax)
        }
        Place::Elsewhere => {
            let old = u128::from(attempt!(cpu.load::<u64>(address + 8))) << 64
                | u128::from(attempt!(cpu.load::<u64>(address)));
            if old == expected {
                attempt!(cpu.store(address, low));
                attempt!(cpu.store(address + 8, high));
            }
            old
        }
    };
    if found == expected {
        cpu.status |= flags::ZF;
    } else {
        cpu.status &= !flags::ZF;
        cpu.regs[gpr::RAX] = found as u64;
        cpu.regs[gpr::RDX] = (found >> 64) as u64;
    }
    Flow::Next
}

/// `cmovcc`: the source is read in any case; 32 bits clear the upper half in any case.
unsafe fn move_if<W: Width, S: Source, const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(S::get::<W>(cpu, op));
    let result = if condition::<CODE>(cpu.status) {
        value
    } else {
        cpu.reg(op.dst)
    };
    cpu.set_reg(op.dst, result);
    Flow::Next
}

unsafe fn set_if<D: Destination, const CODE: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = u8::from(condition::<CODE>(cpu.status));
    attempt!(D::set(cpu, op, value));
    Flow::Next
}

/// A table of a handler's sixteen conditions.
macro_rules! conditions {
    ($code:expr, $function:ident $(, $generic:ty)*) => {
        match $code {
            0 => $function::<$($generic,)* 0>,
            1 => $function::<$($generic,)* 1>,
            2 => $function::<$($generic,)* 2>,
            3 => $function::<$($generic,)* 3>,
            4 => $function::<$($generic,)* 4>,
            5 => $function::<$($generic,)* 5>,
            6 => $function::<$($generic,)* 6>,
            7 => $function::<$($generic,)* 7>,
            8 => $function::<$($generic,)* 8>,
            9 => $function::<$($generic,)* 9>,
            10 => $function::<$($generic,)* 10>,
            11 => $function::<$($generic,)* 11>,
            12 => $function::<$($generic,)* 12>,
            13 => $function::<$($generic,)* 13>,
            14 => $function::<$($generic,)* 14>,
            _ => $function::<$($generic,)* 15>,
        }
    };
}
pub(crate) use conditions;

pub(crate) fn conditional_move(code: u8, memory: bool, bytes: u64) -> Handler {
    macro_rules! pick {
        ($width:ty) => {
            if memory {
                conditions!(code, move_if, $width, Memory)
            } else {
                conditions!(code, move_if, $width, Reg)
            }
        };
    }
    match bytes {
        2 => pick!(u16),
        4 => pick!(u32),
        _ => pick!(u64),
    }
}

pub(crate) fn conditional_set(code: u8, memory: bool) -> Handler {
    if memory {
        conditions!(code, set_if, Memory)
    } else {
        conditions!(code, set_if, Reg)
    }
}

/// `bswap`.
pub(crate) unsafe fn byte_swap<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.reg::<W>(op.dst).to_u64();
    let swapped = match W::BYTES {
        // Undefined; processors leave zero.
        2 => 0,
        4 => u64::from((value as u32).swap_bytes()),
        _ => value.swap_bytes(),
    };
    cpu.set_reg(op.dst, W::from_u64(swapped));
    Flow::Next
}

/// `movbe`.
unsafe fn move_swapped<W: Width, const STORE: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let swap = |value: W| W::from_u64(value.to_u64().swap_bytes() >> (64 - W::BITS));
    if STORE {
        let value = swap(cpu.reg(op.src));
        attempt!(Memory::set(cpu, op, value));
    } else {
        let value = attempt!(Memory::get::<W>(cpu, op));
        cpu.set_reg(op.dst, swap(value));
    }
    Flow::Next
}

pub(crate) fn movbe(store: bool, bytes: u64) -> Handler {
    match (store, bytes) {
        (false, 2) => move_swapped::<u16, false>,
        (false, 4) => move_swapped::<u32, false>,
        (false, _) => move_swapped::<u64, false>,
        (true, 2) => move_swapped::<u16, true>,
        (true, 4) => move_swapped::<u32, true>,
        (true, _) => move_swapped::<u64, true>,
    }
}

/// `xlat`: the address is in `mem` with AL as the index (put there by the decoder as a plain base).
pub(crate) unsafe fn translate_byte(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut mem = op.mem;
    mem.displacement = mem.displacement.wrapping_add(cpu.regs[gpr::RAX] & 0xff);
    let address = attempt!(cpu.address(&mem, 1, Access::Read));
    let value = attempt!(cpu.load::<u8>(address));
    cpu.set_reg(0, value);
    Flow::Next
}
