//! Single bits, bit counts, checksums, random numbers.

use std::arch::asm;

use super::{Imm, Memory, Reg, Source, attempt, modify_at, modify_locked_at};
use crate::flags::{self, CF, Width, ZF};
use crate::mmu::Access;
use crate::op::{Flow, Handler, Op};
use crate::state::{Cpu, gpr};

/// What a bit instruction does to the bit.
pub(crate) trait Change: 'static {
    const WRITES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}

pub(crate) struct Keep;
pub(crate) struct Set;
pub(crate) struct Clear;
pub(crate) struct Flip;

impl Change for Keep {
    const WRITES: bool = false;
    fn apply(value: u64, _: u64) -> u64 {
        value
    }
}
impl Change for Set {
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}
impl Change for Clear {
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}
impl Change for Flip {
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

fn carry(cpu: &mut Cpu, set: bool) {
    cpu.status = cpu.status & !CF | u64::from(set);
}

unsafe fn bit_reg<W: Width, C: Change, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let index = attempt!(S::get::<W>(cpu, op)).to_u64() & u64::from(W::BITS - 1);
    let value = cpu.reg::<W>(op.dst).to_u64();
    carry(cpu, value >> index & 1 != 0);
    if C::WRITES {
        cpu.set_reg(op.dst, W::from_u64(C::apply(value, 1 << index)));
    }
    Flow::Next
}

/// With a register as index, the operand is a string of bits around its address.
unsafe fn bit_mem<W: Width, C: Change, S: Source, const STRING: bool, const LOCK: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Flow {
    let index = attempt!(S::get::<W>(cpu, op));
    let mut mem = op.mem;
    if STRING {
        let words = index.to_i64() >> W::BITS.trailing_zeros();
        mem.displacement = mem.displacement.wrapping_add((words * W::BYTES as i64) as u64);
    }
    let bit = 1_u64 << (index.to_u64() & u64::from(W::BITS - 1));
    if !C::WRITES {
        let address = attempt!(cpu.address(&mem, W::BYTES, Access::Read));
        let value = attempt!(cpu.load::<W>(address)).to_u64();
        carry(cpu, value & bit != 0);
        return Flow::Next;
    }
    let address = attempt!(cpu.address(&mem, W::BYTES, Access::Write));
    let mut was = false;
    let change = |_: &mut Cpu, value: W| {
        was = value.to_u64() & bit != 0;
        W::from_u64(C::apply(value.to_u64(), bit))
    };
    if LOCK {
        attempt!(modify_locked_at::<W>(cpu, address, change));
    } else {
        attempt!(modify_at::<W>(cpu, address, change));
    }
    carry(cpu, was);
    Flow::Next
}

pub(crate) fn bit<C: Change>(memory: bool, by_register: bool, lock: bool, bytes: u64) -> Handler {
    macro_rules! pick {
        ($width:ty) => {
            match (memory, by_register, lock) {
                (false, false, _) => bit_reg::<$width, C, Imm>,
                (false, true, _) => bit_reg::<$width, C, Reg>,
                (true, false, false) => bit_mem::<$width, C, Imm, false, false>,
                (true, true, false) => bit_mem::<$width, C, Reg, true, false>,
                (true, false, true) => bit_mem::<$width, C, Imm, false, true>,
                (true, true, true) => bit_mem::<$width, C, Reg, true, true>,
            }
        };
    }
    match bytes {
        2 => pick!(u16),
        4 => pick!(u32),
        _ => pick!(u64),
    }
}

/// Instructions of one source and one destination register, executed as themselves with the guest's flags going in and out.
macro_rules! native {
    ($name:ident, $mnemonic:literal, $keeps:literal) => {
        unsafe fn $name<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
            let source = attempt!(S::get::<W>(cpu, op)).to_u64();
            let mut value = cpu.reg::<W>(op.dst).to_u64();
            let mut status = cpu.status & flags::STATUS;
            macro_rules! run {
                ($format:literal) => {
                    // SAFETY: registers only; the flags that go in are arithmetic ones.
                    unsafe {
                        asm!(
                            "push {f}", "popfq",
                            concat!($mnemonic, " {a", $format, "}, {b", $format, "}"),
                            "pushfq", "pop {f}",
                            a = inout(reg) value, b = in(reg) source, f = inout(reg) status, options(nomem)
                        )
                    }
                };
            }
            match W::BYTES {
                2 => run!(":x"),
                4 => run!(":e"),
                _ => run!(":r"),
            }
            cpu.status = status;
            // Of zero, `bsf` and `bsr` find nothing, and leave all of the register as it was.
            if !$keeps || source != 0 {
                cpu.set_reg(op.dst, W::from_u64(value));
            }
            Flow::Next
        }
    };
}

native!(bsf, "bsf", true);
native!(bsr, "bsr", true);
native!(popcnt, "popcnt", false);

/// `lzcnt` and `tzcnt`, in terms of what every host has.
unsafe fn count_zeros<W: Width, const LEADING: bool, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(S::get::<W>(cpu, op)).to_u64();
    let count = match (LEADING, value) {
        (_, 0) => W::BITS,
        (true, _) => value.leading_zeros() - (64 - W::BITS),
        (false, _) => value.trailing_zeros(),
    };
    cpu.status &= !(CF | ZF);
    if value == 0 {
        cpu.status |= CF;
    }
    if count == 0 {
        cpu.status |= ZF;
    }
    cpu.set_reg(op.dst, W::from_u64(u64::from(count)));
    Flow::Next
}

/// Which of the scans and counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scan {
    Bsf,
    Bsr,
    Popcnt,
    Lzcnt,
    Tzcnt,
}

pub(crate) fn scan(which: Scan, memory: bool, bytes: u64) -> Handler {
    macro_rules! pick {
        ($width:ty, $source:ty) => {
            match which {
                Scan::Bsf => bsf::<$width, $source>,
                Scan::Bsr => bsr::<$width, $source>,
                Scan::Popcnt => popcnt::<$width, $source>,
                Scan::Lzcnt => count_zeros::<$width, true, $source>,
                Scan::Tzcnt => count_zeros::<$width, false, $source>,
            }
        };
    }
    macro_rules! width {
        ($width:ty) => {
            if memory {
                pick!($width, Memory)
            } else {
                pick!($width, Reg)
            }
        };
    }
    match bytes {
        2 => width!(u16),
        4 => width!(u32),
        _ => width!(u64),
    }
}

/// `crc32` (CRC-32C) of a source of `W` into a 32-bit register.
unsafe fn checksum<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let source = attempt!(S::get::<W>(cpu, op)).to_u64();
    let mut value = cpu.reg::<u32>(op.dst);
    for byte in &source.to_le_bytes()[..W::BYTES as usize] {
        value ^= u32::from(*byte);
        for _ in 0..8 {
            value = value >> 1 ^ if value & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    cpu.set_reg(op.dst, value);
    Flow::Next
}

pub(crate) fn crc32(memory: bool, bytes: u64) -> Handler {
    match (memory, bytes) {
        (false, 1) => checksum::<u8, Reg>,
        (false, 2) => checksum::<u16, Reg>,
        (false, 4) => checksum::<u32, Reg>,
        (false, _) => checksum::<u64, Reg>,
        (true, 1) => checksum::<u8, Memory>,
        (true, 2) => checksum::<u16, Memory>,
        (true, 4) => checksum::<u32, Memory>,
        (true, _) => checksum::<u64, Memory>,
    }
}

/// `rdrand` and `rdseed`: the host's random numbers.
pub(crate) unsafe fn random<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer has eight bytes. Without GRND_RANDOM and with so few bytes the call neither blocks nor is cut short, once the host has booted.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    cpu.status &= !flags::STATUS;
    if got == 8 {
        cpu.status |= CF;
        cpu.set_reg(op.dst, W::from_u64(u64::from_le_bytes(bytes)));
    } else {
        cpu.set_reg(op.dst, W::from_u64(0));
    }
    Flow::Next
}

/// `lahf`.
pub(crate) unsafe fn load_flags(cpu: &mut Cpu, _: &Op) -> Flow {
    let flags = cpu.rflags() as u8;
    cpu.set_reg(gpr::RAX as u8 * 8 + 1, flags);
    Flow::Next
}

/// `sahf`.
pub(crate) unsafe fn store_flags(cpu: &mut Cpu, _: &Op) -> Flow {
    const SET: u64 = flags::SF | flags::ZF | flags::AF | flags::PF | flags::CF;
    let value = u64::from(cpu.reg::<u8>(1));
    cpu.status = cpu.status & !SET | value & SET;
    Flow::Next
}

/// `clc`, `stc`, `cmc`, `cld`, `std`: told apart by `extra`.
pub(crate) unsafe fn flag(cpu: &mut Cpu, op: &Op) -> Flow {
    match op.extra {
        0 => cpu.status &= !CF,
        1 => cpu.status |= CF,
        2 => cpu.status ^= CF,
        3 => cpu.control &= !flags::DF,
        _ => cpu.control |= flags::DF,
    }
    Flow::Next
}
