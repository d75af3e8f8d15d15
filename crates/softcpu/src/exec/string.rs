//! String instructions, alone and repeated. A repeated one can be interrupted after any element; its registers then say how far it came.

use super::attempt;
use crate::exception::Fault;
use crate::flags::{DF, Width, ZF};
use crate::memory::PAGE;
use crate::mmu::Access;
use crate::op::{Flow, Handler, Mem, Op};
use crate::state::{Cpu, gpr};

/// How an instruction is repeated: `Op::third`.
pub(crate) mod repeat {
    pub const ONCE: u8 = 0;
    /// `rep`, `repe`.
    pub const WHILE_EQUAL: u8 = 1;
    /// `repne`.
    pub const WHILE_DIFFERENT: u8 = 2;
}

/// The part of a register that addresses of `size` bytes have.
fn low(value: u64, size: u8) -> u64 {
    match size {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn set_low(cpu: &mut Cpu, register: usize, size: u8, value: u64) {
    match size {
        2 => cpu.regs[register] = cpu.regs[register] & !0xffff | value & 0xffff,
        4 => cpu.regs[register] = value & 0xffff_ffff,
        _ => cpu.regs[register] = value,
    }
}

/// The linear address of the source: (E/R)SI in a segment that can be chosen.
fn source(cpu: &mut Cpu, op: &Op, bytes: u64) -> Result<u64, Fault> {
    let mem = Mem {
        base: gpr::RSI as u8,
        ..op.mem
    };
    cpu.address(&mem, bytes, Access::Read)
}

/// The linear address of the destination: (E/R)DI in ES.
fn destination(cpu: &mut Cpu, op: &Op, bytes: u64, access: Access) -> Result<u64, Fault> {
    let mut mem = Mem {
        base: gpr::RDI as u8,
        segment: crate::state::seg::ES as u8,
        ..op.mem
    };
    if mem.kind == crate::op::kind::BASED {
        mem.kind = crate::op::kind::FLAT;
    }
    cpu.address(&mem, bytes, access)
}

fn step<W: Width>(cpu: &Cpu) -> u64 {
    if cpu.control & DF != 0 {
        W::BYTES.wrapping_neg()
    } else {
        W::BYTES
    }
}

fn advance(cpu: &mut Cpu, register: usize, size: u8, by: u64) {
    let value = cpu.regs[register].wrapping_add(by);
    set_low(cpu, register, size, value);
}

/// What one element does. True: a repetition that compares goes on looking at ZF.
trait Element: 'static {
    const COMPARES: bool = false;
    /// Registers whose upper halves repetitions with 32-bit addresses clear, even if nothing is done.
    const WRITES: &'static [usize] = &[gpr::RCX];
    /// What is looked at first, even if nothing is to be done.
    fn allowed<W: Width>(_: &mut Cpu) -> Result<(), Fault> {
        Ok(())
    }
    /// One element, registers advanced.
    fn one<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault>;
    /// As many elements as can be done at once, forwards, at most `count`: how many were done (0: do one).
    fn many<W: Width>(_: &mut Cpu, _: &Op, _count: u64) -> Result<u64, Fault> {
        Ok(0)
    }
}

/// Elements of `W` that lie between `address` and its page's end.
fn until_page_end<W: Width>(address: u64) -> u64 {
    (PAGE - (address & (PAGE - 1))) / W::BYTES
}

struct Move;
impl Element for Move {
    const WRITES: &'static [usize] = &[gpr::RCX, gpr::RSI, gpr::RDI];
    fn one<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let from = source(cpu, op, W::BYTES)?;
        let value = cpu.load::<W>(from)?;
        let to = destination(cpu, op, W::BYTES, Access::Write)?;
        cpu.store(to, value)?;
        let step = step::<W>(cpu);
        advance(cpu, gpr::RSI, op.mem.size, step);
        advance(cpu, gpr::RDI, op.mem.size, step);
        Ok(())
    }

    fn many<W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> Result<u64, Fault> {
        if cpu.control & DF != 0 || op.mem.kind == crate::op::kind::SEGMENTED {
            return Ok(0);
        }
        let from = source(cpu, op, 1)?;
        let to = destination(cpu, op, 1, Access::Write)?;
        let count = count.min(until_page_end::<W>(from)).min(until_page_end::<W>(to));
        if count < 2 {
            return Ok(0);
        }
        let user = cpu.user();
        let Ok(source) = cpu.find_quickly(from, Access::Read, user)? else {
            return Ok(0);
        };
        let Ok(target) = cpu.find_quickly(to, Access::Write, user)? else {
            return Ok(0);
        };
        let bytes = count * W::BYTES;
        let distance = (target as u64).wrapping_sub(source as u64);
        if distance < bytes && !distance.is_multiple_of(W::BYTES) {
            return Ok(0);
        }
        // SAFETY: both pages are RAM of the guest to their ends, the target writable. Overlapping forward copies have the guest's meaning: the host's
        // instruction copies element by element in the same order, of a width that divides the distance.
        unsafe {
            if distance < bytes {
                move_elements::<W>(source, target, count);
            } else {
                crate::access::copy(source, target, bytes as usize);
            }
        }
        advance(cpu, gpr::RSI, op.mem.size, bytes);
        advance(cpu, gpr::RDI, op.mem.size, bytes);
        Ok(count)
    }
}

/// Copies element by element, forwards.
///
/// # Safety
/// Both sides are mapped, the target writable.
unsafe fn move_elements<W: Width>(from: *const u8, to: *mut u8, count: u64) {
    for index in 0..count as usize {
        let at = index * W::BYTES as usize;
        // SAFETY: the caller's.
        unsafe { W::store(to.add(at), W::load(from.add(at))) };
    }
}

struct Store;
impl Element for Store {
    const WRITES: &'static [usize] = &[gpr::RCX, gpr::RDI];
    fn one<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let to = destination(cpu, op, W::BYTES, Access::Write)?;
        let value = cpu.reg::<W>(0);
        cpu.store(to, value)?;
        let step = step::<W>(cpu);
        advance(cpu, gpr::RDI, op.mem.size, step);
        Ok(())
    }

    fn many<W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> Result<u64, Fault> {
        if cpu.control & DF != 0 || op.mem.kind == crate::op::kind::SEGMENTED {
            return Ok(0);
        }
        let to = destination(cpu, op, 1, Access::Write)?;
        let count = count.min(until_page_end::<W>(to));
        if count < 2 {
            return Ok(0);
        }
        let user = cpu.user();
        let Ok(target) = cpu.find_quickly(to, Access::Write, user)? else {
            return Ok(0);
        };
        let value = cpu.regs[gpr::RAX];
        macro_rules! fill {
            ($mnemonic:literal) => {
                // SAFETY: RAM of the guest, writable to the page's end.
                unsafe {
                    std::arch::asm!($mnemonic, inout("rcx") count => _, inout("rdi") target => _, in("rax") value,
                        options(nostack, preserves_flags));
                }
            };
        }
        match W::BYTES {
            1 => fill!("rep stosb"),
            2 => fill!("rep stosw"),
            4 => fill!("rep stosd"),
            _ => fill!("rep stosq"),
        }
        advance(cpu, gpr::RDI, op.mem.size, count * W::BYTES);
        Ok(count)
    }
}

struct Load;
impl Element for Load {
    fn one<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let from = source(cpu, op, W::BYTES)?;
        let value = cpu.load::<W>(from)?;
        cpu.set_reg(0, value);
        let step = step::<W>(cpu);
        advance(cpu, gpr::RSI, op.mem.size, step);
        Ok(())
    }
}

struct Scan;
impl Element for Scan {
    const COMPARES: bool = true;
    fn one<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let at = destination(cpu, op, W::BYTES, Access::Read)?;
        let value = cpu.load::<W>(at)?;
        cpu.reg::<W>(0).cmp(value, &mut cpu.status);
        let step = step::<W>(cpu);
        advance(cpu, gpr::RDI, op.mem.size, step);
        Ok(())
    }
}

struct Compare;
impl Element for Compare {
    const COMPARES: bool = true;
    fn one<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        // In the order of processors, which shows when both fault.
        let at = destination(cpu, op, W::BYTES, Access::Read)?;
        let b = cpu.load::<W>(at)?;
        let from = source(cpu, op, W::BYTES)?;
        let a = cpu.load::<W>(from)?;
        a.cmp(b, &mut cpu.status);
        let step = step::<W>(cpu);
        advance(cpu, gpr::RSI, op.mem.size, step);
        advance(cpu, gpr::RDI, op.mem.size, step);
        Ok(())
    }
}

struct Input;
impl Element for Input {
    fn allowed<W: Width>(cpu: &mut Cpu) -> Result<(), Fault> {
        let port = cpu.regs[gpr::RDX] as u16;
        cpu.check_port(port, W::BYTES)
    }

    fn one<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let port = cpu.regs[gpr::RDX] as u16;
        let to = destination(cpu, op, W::BYTES, Access::Write)?;
        // The place is looked at first: what a port gave cannot be put back.
        cpu.place::<W>(to)?;
        let value = cpu.input::<W>(port);
        cpu.store(to, value)?;
        let step = step::<W>(cpu);
        advance(cpu, gpr::RDI, op.mem.size, step);
        Ok(())
    }
}

struct Output;
impl Element for Output {
    fn allowed<W: Width>(cpu: &mut Cpu) -> Result<(), Fault> {
        let port = cpu.regs[gpr::RDX] as u16;
        cpu.check_port(port, W::BYTES)
    }

    fn one<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Fault> {
        let port = cpu.regs[gpr::RDX] as u16;
        let from = source(cpu, op, W::BYTES)?;
        let value = cpu.load::<W>(from)?;
        cpu.output(port, value);
        let step = step::<W>(cpu);
        advance(cpu, gpr::RSI, op.mem.size, step);
        Ok(())
    }
}

unsafe fn run<E: Element, W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(E::allowed::<W>(cpu));
    if op.third == repeat::ONCE {
        attempt!(E::one::<W>(cpu, op));
        return Flow::Next;
    }
    let size = op.mem.size;
    let mut looks = 0_u32;
    let before = cpu.status;
    if size == 4 {
        // Registers of four bytes are written in any case.
        for &register in E::WRITES {
            set_low(cpu, register, size, cpu.regs[register]);
        }
    }
    loop {
        let count = low(cpu.regs[gpr::RCX], size);
        if count == 0 {
            return Flow::Next;
        }
        let many = match E::many::<W>(cpu, op, count) {
            Ok(0) => E::one::<W>(cpu, op).map(|()| 0),
            more => more,
        };
        let Ok(many) = many else {
            // The flags are what they were before the whole instruction (SDM volume 2, "REP").
            cpu.status = before;
            return Flow::Fault;
        };
        let done = many.max(1);
        set_low(cpu, gpr::RCX, size, count - done);
        if E::COMPARES {
            let equal = cpu.status & ZF != 0;
            if equal != (op.third == repeat::WHILE_EQUAL) {
                return Flow::Next;
            }
        }
        looks += 1;
        // Now and then: does somebody want attention? The instruction then goes on afterwards, from its registers.
        if (many != 0 || looks.is_multiple_of(256)) && cpu.attention.any() && count != done {
            cpu.rip = cpu.block_start().wrapping_add(u64::from(op.start));
            return Flow::Jump;
        }
    }
}

/// Which string instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Move,
    Store,
    Load,
    Scan,
    Compare,
    Input,
    Output,
}

pub(crate) fn string(which: Kind, bytes: u64) -> Handler {
    macro_rules! pick {
        ($element:ty) => {
            match bytes {
                1 => run::<$element, u8>,
                2 => run::<$element, u16>,
                4 => run::<$element, u32>,
                _ => run::<$element, u64>,
            }
        };
    }
    match which {
        Kind::Move => pick!(Move),
        Kind::Store => pick!(Store),
        Kind::Load => pick!(Load),
        Kind::Scan => pick!(Scan),
        Kind::Compare => pick!(Compare),
        Kind::Input => pick!(Input),
        Kind::Output => pick!(Output),
    }
}
