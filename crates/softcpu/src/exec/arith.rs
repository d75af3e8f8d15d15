//! Integer arithmetic and logic.

use super::{Imm, Memory, Reg, Source, attempt, by_width, modify, modify_locked};
use crate::exception::vector;
use crate::flags::{self, Width};
use crate::op::{Flow, Handler, Op};
use crate::state::{Cpu, gpr};

/// An operation of two operands.
pub(crate) trait Binary: 'static {
    fn apply<W: Width>(a: W, b: W, status: &mut u64) -> W;
}

/// An operation of one operand.
pub(crate) trait Unary: 'static {
    fn apply<W: Width>(a: W, status: &mut u64) -> W;
}

/// A shift or rotate.
pub(crate) trait Shift: 'static {
    fn apply<W: Width>(a: W, count: u8, status: &mut u64) -> W;
}

macro_rules! operations {
    ($trait:ident: $($name:ident = $method:ident ($($argument:ident: $type:ty),*)),* $(,)?) => {
        $(
            pub(crate) struct $name;
            impl $trait for $name {
                #[inline(always)]
                fn apply<W: Width>(a: W, $($argument: $type,)* status: &mut u64) -> W {
                    a.$method($($argument,)* status)
                }
            }
        )*
    };
}

operations!(Binary: Add = add(b: W), Sub = sub(b: W), Adc = adc(b: W), Sbb = sbb(b: W), And = and(b: W), Or = or(b: W), Xor = xor(b: W));
operations!(Unary: Inc = inc(), Dec = dec(), Neg = neg());
operations!(Shift: Shl = shl(count: u8), Shr = shr(count: u8), Sar = sar(count: u8), Rol = rol(count: u8), Ror = ror(count: u8), Rcl = rcl(count: u8), Rcr = rcr(count: u8));

pub(crate) struct Not;
impl Unary for Not {
    #[inline(always)]
    fn apply<W: Width>(a: W, _: &mut u64) -> W {
        a.not()
    }
}

unsafe fn binary_reg<W: Width, O: Binary, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    let a = cpu.reg::<W>(op.dst);
    let result = O::apply(a, b, &mut cpu.status);
    cpu.set_reg(op.dst, result);
    Flow::Next
}

unsafe fn binary_mem<W: Width, O: Binary, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    attempt!(modify::<W>(cpu, op, |cpu, a| O::apply(a, b, &mut cpu.status)));
    Flow::Next
}

unsafe fn binary_lock<W: Width, O: Binary, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    let carry = cpu.status;
    attempt!(modify_locked::<W>(cpu, op, |cpu, a| {
        cpu.status = carry;
        O::apply(a, b, &mut cpu.status)
    }));
    Flow::Next
}

unsafe fn compare_reg<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    cpu.reg::<W>(op.dst).cmp(b, &mut cpu.status);
    Flow::Next
}

unsafe fn compare_mem<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    let a = attempt!(Memory::get::<W>(cpu, op));
    a.cmp(b, &mut cpu.status);
    Flow::Next
}

unsafe fn test_reg<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    cpu.reg::<W>(op.dst).test(b, &mut cpu.status);
    Flow::Next
}

unsafe fn test_mem<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    let a = attempt!(Memory::get::<W>(cpu, op));
    a.test(b, &mut cpu.status);
    Flow::Next
}

unsafe fn unary_reg<W: Width, O: Unary>(cpu: &mut Cpu, op: &Op) -> Flow {
    let a = cpu.reg::<W>(op.dst);
    let result = O::apply(a, &mut cpu.status);
    cpu.set_reg(op.dst, result);
    Flow::Next
}

unsafe fn unary_mem<W: Width, O: Unary>(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(modify::<W>(cpu, op, |cpu, a| O::apply(a, &mut cpu.status)));
    Flow::Next
}

unsafe fn unary_lock<W: Width, O: Unary>(cpu: &mut Cpu, op: &Op) -> Flow {
    let carry = cpu.status;
    attempt!(modify_locked::<W>(cpu, op, |cpu, a| {
        cpu.status = carry;
        O::apply(a, &mut cpu.status)
    }));
    Flow::Next
}

unsafe fn shift_reg<W: Width, O: Shift, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = attempt!(S::get::<u8>(cpu, op));
    let a = cpu.reg::<W>(op.dst);
    let result = O::apply(a, count, &mut cpu.status);
    cpu.set_reg(op.dst, result);
    Flow::Next
}

unsafe fn shift_mem<W: Width, O: Shift, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let count = attempt!(S::get::<u8>(cpu, op));
    attempt!(modify::<W>(cpu, op, |cpu, a| O::apply(a, count, &mut cpu.status)));
    Flow::Next
}

/// The form of the operands: what is the destination, what the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
    LockReg,
    LockImm,
}

pub(crate) fn binary<O: Binary>(form: Form, bytes: u64) -> Handler {
    match form {
        Form::RegReg => by_width!(bytes, binary_reg, O, Reg),
        Form::RegImm => by_width!(bytes, binary_reg, O, Imm),
        Form::RegMem => by_width!(bytes, binary_reg, O, Memory),
        Form::MemReg => by_width!(bytes, binary_mem, O, Reg),
        Form::MemImm => by_width!(bytes, binary_mem, O, Imm),
        Form::LockReg => by_width!(bytes, binary_lock, O, Reg),
        Form::LockImm => by_width!(bytes, binary_lock, O, Imm),
    }
}

pub(crate) fn compare(form: Form, bytes: u64) -> Handler {
    match form {
        Form::RegReg => by_width!(bytes, compare_reg, Reg),
        Form::RegImm => by_width!(bytes, compare_reg, Imm),
        Form::RegMem => by_width!(bytes, compare_reg, Memory),
        Form::MemReg | Form::LockReg => by_width!(bytes, compare_mem, Reg),
        Form::MemImm | Form::LockImm => by_width!(bytes, compare_mem, Imm),
    }
}

pub(crate) fn test(form: Form, bytes: u64) -> Handler {
    match form {
        Form::RegReg => by_width!(bytes, test_reg, Reg),
        Form::RegImm => by_width!(bytes, test_reg, Imm),
        Form::RegMem => by_width!(bytes, test_reg, Memory),
        Form::MemReg | Form::LockReg => by_width!(bytes, test_mem, Reg),
        Form::MemImm | Form::LockImm => by_width!(bytes, test_mem, Imm),
    }
}

pub(crate) fn unary<O: Unary>(memory: bool, lock: bool, bytes: u64) -> Handler {
    match (memory, lock) {
        (false, _) => by_width!(bytes, unary_reg, O),
        (true, false) => by_width!(bytes, unary_mem, O),
        (true, true) => by_width!(bytes, unary_lock, O),
    }
}

pub(crate) fn shift<O: Shift>(memory: bool, by_register: bool, bytes: u64) -> Handler {
    match (memory, by_register) {
        (false, false) => by_width!(bytes, shift_reg, O, Imm),
        (false, true) => by_width!(bytes, shift_reg, O, Reg),
        (true, false) => by_width!(bytes, shift_mem, O, Imm),
        (true, true) => by_width!(bytes, shift_mem, O, Reg),
    }
}

/// `shld` and `shrd`: destination register or memory, `third` the register whose bits come in, the count in `imm` or CL.
unsafe fn double_shift<W: Width, const LEFT: bool, const MEMORY: bool, S: Source>(
    cpu: &mut Cpu,
    op: &Op,
) -> Flow {
    let count = attempt!(S::get::<u8>(cpu, op)) & if W::BYTES == 8 { 63 } else { 31 };
    if count == 0 {
        // What is there is written as it is.
        if MEMORY {
            attempt!(modify::<W>(cpu, op, |_, value| value));
        } else if W::BYTES == 4 {
            let same = cpu.reg::<W>(op.dst);
            cpu.set_reg(op.dst, same);
        }
        return Flow::Next;
    }
    let other = cpu.reg::<W>(op.third).to_u64();
    let apply = |cpu: &mut Cpu, value: W| {
        W::from_u64(double_shifted::<LEFT>(
            W::BITS,
            value.to_u64(),
            other,
            count,
            &mut cpu.status,
        ))
    };
    if MEMORY {
        attempt!(modify::<W>(cpu, op, apply));
    } else {
        let value = cpu.reg::<W>(op.dst);
        let result = apply(cpu, value);
        cpu.set_reg(op.dst, result);
    }
    Flow::Next
}

/// One `shld` or `shrd` by a count that is not zero.
fn double_shifted<const LEFT: bool>(bits: u32, value: u64, other: u64, count: u8, status: &mut u64) -> u64 {
    use std::arch::asm;
    macro_rules! run {
        ($mnemonic:literal, $format:literal) => {{
            let mut value = value;
            // SAFETY: arithmetic on registers; the stack is used as declared.
            unsafe {
                asm!(concat!($mnemonic, " {a", $format, "}, {b", $format, "}, cl"), "pushfq", "pop {f}",
                    a = inout(reg) value, b = in(reg) other, in("cl") count, f = lateout(reg) *status, options(nomem));
            }
            value
        }};
    }
    match (LEFT, bits) {
        (true, 16) => run!("shld", ":x"),
        (true, 32) => run!("shld", ":e"),
        (true, _) => run!("shld", ":r"),
        (false, 16) => run!("shrd", ":x"),
        (false, 32) => run!("shrd", ":e"),
        (false, _) => run!("shrd", ":r"),
    }
}

pub(crate) fn shld(memory: bool, by_register: bool, left: bool, bytes: u64) -> Handler {
    macro_rules! pick {
        ($width:ty) => {
            match (left, memory, by_register) {
                (true, false, false) => double_shift::<$width, true, false, Imm>,
                (true, false, true) => double_shift::<$width, true, false, Reg>,
                (true, true, false) => double_shift::<$width, true, true, Imm>,
                (true, true, true) => double_shift::<$width, true, true, Reg>,
                (false, false, false) => double_shift::<$width, false, false, Imm>,
                (false, false, true) => double_shift::<$width, false, false, Reg>,
                (false, true, false) => double_shift::<$width, false, true, Imm>,
                (false, true, true) => double_shift::<$width, false, true, Reg>,
            }
        };
    }
    match bytes {
        2 => pick!(u16),
        4 => pick!(u32),
        _ => pick!(u64),
    }
}

/// `mul` and `imul` of one operand: the accumulator times the source into the accumulator's double.
unsafe fn multiply<W: Width, const SIGNED: bool, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    let a = cpu.reg::<W>(0);
    let (low, high, overflow) = if SIGNED {
        let product = i128::from(a.to_i64()) * i128::from(b.to_i64());
        let low = W::from_u64(product as u64);
        let high = W::from_u64((product >> W::BITS) as u64);
        (low, high, i128::from(low.to_i64()) != product)
    } else {
        let product = u128::from(a.to_u64()) * u128::from(b.to_u64());
        let high = W::from_u64((product >> W::BITS) as u64);
        (W::from_u64(product as u64), high, high.to_u64() != 0)
    };
    if W::BYTES == 1 {
        cpu.set_reg(0, (high.to_u64() << 8 | low.to_u64()) as u16);
    } else {
        cpu.set_reg(0, low);
        cpu.set_reg(gpr::RDX as u8 * 8, high);
    }
    multiplied(cpu, low.to_i64() as u64, overflow);
    Flow::Next
}

/// Flags after a multiplication: CF and OF as defined, SF and PF of the low half, ZF and AF as Intel's processors leave them.
fn multiplied(cpu: &mut Cpu, low: u64, overflow: bool) {
    cpu.status &= !flags::STATUS;
    if overflow {
        cpu.status |= flags::CF | flags::OF;
    }
    if (low as i64) < 0 {
        cpu.status |= flags::SF;
    }
    if (low as u8).count_ones().is_multiple_of(2) {
        cpu.status |= flags::PF;
    }
}

pub(crate) fn multiplication(signed: bool, memory: bool, bytes: u64) -> Handler {
    macro_rules! pick {
        ($width:ty) => {
            match (signed, memory) {
                (false, false) => multiply::<$width, false, Reg>,
                (false, true) => multiply::<$width, false, Memory>,
                (true, false) => multiply::<$width, true, Reg>,
                (true, true) => multiply::<$width, true, Memory>,
            }
        };
    }
    match bytes {
        1 => pick!(u8),
        2 => pick!(u16),
        4 => pick!(u32),
        _ => pick!(u64),
    }
}

/// `imul` of two operands: `dst *= source`.
unsafe fn imul_two<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let b = attempt!(S::get::<W>(cpu, op));
    let a = cpu.reg::<W>(op.dst);
    imul_into(cpu, op.dst, a, b);
    Flow::Next
}

/// `imul` of three operands: `dst = source * imm`.
unsafe fn imul_three<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let a = attempt!(S::get::<W>(cpu, op));
    imul_into(cpu, op.dst, a, W::from_u64(op.imm));
    Flow::Next
}

#[inline(always)]
fn imul_into<W: Width>(cpu: &mut Cpu, dst: u8, a: W, b: W) {
    let (low, overflow) = if W::BYTES == 8 {
        let (low, overflow) = a.to_i64().overflowing_mul(b.to_i64());
        (W::from_u64(low as u64), overflow)
    } else {
        let product = a.to_i64() * b.to_i64();
        let low = W::from_u64(product as u64);
        (low, low.to_i64() != product)
    };
    cpu.set_reg(dst, low);
    multiplied(cpu, low.to_i64() as u64, overflow);
}

pub(crate) fn imul(memory: bool, three: bool, bytes: u64) -> Handler {
    match (memory, three) {
        (false, false) => by_width!(bytes, imul_two, Reg),
        (true, false) => by_width!(bytes, imul_two, Memory),
        (false, true) => by_width!(bytes, imul_three, Reg),
        (true, true) => by_width!(bytes, imul_three, Memory),
    }
}

/// `div` and `idiv`.
unsafe fn divide<W: Width, const SIGNED: bool, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let divisor = attempt!(S::get::<W>(cpu, op));
    let (low, high) = if W::BYTES == 1 {
        let both = cpu.reg::<u16>(0);
        (u64::from(both as u8), u64::from(both >> 8))
    } else {
        (
            cpu.reg::<W>(0).to_u64(),
            cpu.reg::<W>(gpr::RDX as u8 * 8).to_u64(),
        )
    };
    let dividend = u128::from(high) << W::BITS | u128::from(low);
    let result = if SIGNED {
        let shift = 128 - 2 * W::BITS;
        let dividend = (dividend << shift) as i128 >> shift;
        let divisor = i128::from(divisor.to_i64());
        dividend
            .checked_div(divisor)
            .filter(|&quotient| i128::from(W::from_u64(quotient as u64).to_i64()) == quotient)
            .map(|quotient| (quotient as u64, (dividend % divisor) as u64))
    } else if high == 0 && divisor.to_u64() != 0 {
        let divisor = divisor.to_u64();
        Some((low / divisor, low % divisor))
    } else {
        let divisor = u128::from(divisor.to_u64());
        dividend
            .checked_div(divisor)
            .filter(|&quotient| quotient >> W::BITS == 0)
            .map(|quotient| (quotient as u64, (dividend % divisor) as u64))
    };
    let Some((quotient, remainder)) = result else {
        cpu.raise(vector::DE);
        return Flow::Fault;
    };
    if W::BYTES == 1 {
        cpu.set_reg(0, ((remainder & 0xff) << 8 | quotient & 0xff) as u16);
    } else {
        cpu.set_reg(0, W::from_u64(quotient));
        cpu.set_reg(gpr::RDX as u8 * 8, W::from_u64(remainder));
    }
    Flow::Next
}

pub(crate) fn division(signed: bool, memory: bool, bytes: u64) -> Handler {
    macro_rules! pick {
        ($width:ty) => {
            match (signed, memory) {
                (false, false) => divide::<$width, false, Reg>,
                (false, true) => divide::<$width, false, Memory>,
                (true, false) => divide::<$width, true, Reg>,
                (true, true) => divide::<$width, true, Memory>,
            }
        };
    }
    match bytes {
        1 => pick!(u8),
        2 => pick!(u16),
        4 => pick!(u32),
        _ => pick!(u64),
    }
}

/// `cbw`, `cwde`, `cdqe`: the accumulator's lower half extended into the whole.
pub(crate) unsafe fn extend_accumulator<W: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let rax = cpu.regs[gpr::RAX];
    let half = match W::BYTES {
        2 => rax as i8 as i64,
        4 => i64::from(rax as i16),
        _ => i64::from(rax as i32),
    };
    cpu.set_reg(0, W::from_u64(half as u64));
    Flow::Next
}

/// `cwd`, `cdq`, `cqo`: the accumulator's sign in all of (E/R)DX.
pub(crate) unsafe fn extend_into_dx<W: Width>(cpu: &mut Cpu, _: &Op) -> Flow {
    let sign = cpu.reg::<W>(0).to_i64() >> 63;
    cpu.set_reg(gpr::RDX as u8 * 8, W::from_u64(sign as u64));
    Flow::Next
}

/// BCD adjustments of 16- and 32-bit code, done as the manual's pseudocode has them (SDM volume 2).
pub(crate) unsafe fn decimal(cpu: &mut Cpu, op: &Op) -> Flow {
    use iced_x86::Mnemonic;
    let [al, ah, ..] = cpu.regs[gpr::RAX].to_le_bytes();
    let carry = cpu.status & flags::CF != 0;
    let adjust = cpu.status & flags::AF != 0;
    let low = al & 15 > 9 || adjust;
    let which = op.extra;
    let mut status = cpu.status & !flags::STATUS;
    let (mut new_al, mut new_ah) = (al, ah);
    if which == Mnemonic::Daa as u16 || which == Mnemonic::Das as u16 {
        let add = which == Mnemonic::Daa as u16;
        let step = |value: u8, by: u8| {
            if add {
                value.wrapping_add(by)
            } else {
                value.wrapping_sub(by)
            }
        };
        if low {
            let borrow = if add { al.checked_add(6).is_none() } else { al < 6 };
            new_al = step(new_al, 6);
            status |= flags::AF;
            if carry || borrow {
                status |= flags::CF;
            }
        }
        if al > 0x99 || carry {
            new_al = step(new_al, 0x60);
            status |= flags::CF;
        } else if add {
            status &= !flags::CF;
        }
    } else if which == Mnemonic::Aaa as u16 || which == Mnemonic::Aas as u16 {
        if low {
            let whole = u16::from_le_bytes([al, ah]);
            let whole = if which == Mnemonic::Aaa as u16 {
                whole.wrapping_add(0x106)
            } else {
                whole.wrapping_sub(6).wrapping_sub(0x100)
            };
            [new_al, new_ah] = whole.to_le_bytes();
            status |= flags::AF | flags::CF;
        }
        new_al &= 15;
    } else if which == Mnemonic::Aam as u16 {
        let base = op.imm as u8;
        if base == 0 {
            cpu.raise(vector::DE);
            return Flow::Fault;
        }
        (new_ah, new_al) = (al / base, al % base);
    } else {
        new_al = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
        new_ah = 0;
    }
    cpu.set_reg(0, u16::from_le_bytes([new_al, new_ah]));
    if new_al == 0 {
        status |= flags::ZF;
    }
    if new_al >> 7 != 0 {
        status |= flags::SF;
    }
    if new_al.count_ones().is_multiple_of(2) {
        status |= flags::PF;
    }
    cpu.status = status;
    Flow::Next
}
