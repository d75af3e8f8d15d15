//! Transfers between segments and privilege levels (SDM volume 2, and volume 3 "Privilege Levels").

use super::attempt;
use crate::exception::{Exception, Fault, Source, vector};
use crate::flags::{self, Width};
use crate::mmu::Access;
use crate::op::{Flow, Op};
use crate::segment::Descriptor;
use crate::state::{Cpu, Segment, cr0, cr4, efer, gpr, mode, seg};

/// A flat segment, as `syscall` and its relatives make them.
fn flat(selector: u16, attributes: u16) -> Segment {
    Segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        attributes,
    }
}

/// Present, 4 KiB granularity, accessed; then type and privilege.
const FLAT: u16 = 1 << 15 | Segment::PRESENT | Segment::CODE_OR_DATA | 1;

fn flat_code(selector: u16, dpl: u16, long: bool) -> Segment {
    let size = if long { Segment::LONG } else { Segment::BIG };
    flat(
        selector,
        FLAT | Segment::CODE | Segment::READ_WRITE | size | dpl << 5,
    )
}

fn flat_stack(selector: u16, dpl: u16) -> Segment {
    flat(selector, FLAT | Segment::READ_WRITE | Segment::BIG | dpl << 5)
}

/// `syscall`.
pub(crate) unsafe fn syscall(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.efer & efer::SCE == 0 || !cpu.long_code() {
        // Intel's processors have it in 64-bit code only.
        cpu.undefined();
        return Flow::Fault;
    }
    cpu.regs[gpr::RCX] = op.next(cpu);
    cpu.regs[gpr::R11] = cpu.rflags() & !flags::RF;
    let kept = cpu.rflags() & !cpu.msrs.sfmask;
    cpu.set_rflags_raw(kept);
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.segments[seg::CS] = flat_code(selector, 0, true);
    cpu.segments[seg::SS] = flat_stack(selector.wrapping_add(8), 0);
    cpu.cpl = 0;
    cpu.update_mode();
    cpu.rip = cpu.msrs.lstar;
    Flow::Jump
}

/// `sysret`; `extra` is 8 with REX.W.
pub(crate) unsafe fn sysret(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.efer & efer::SCE == 0 || !cpu.long_code() {
        cpu.undefined();
        return Flow::Fault;
    }
    let target = cpu.regs[gpr::RCX];
    if cpu.cpl != 0 || (op.extra == 8 && !cpu.canonical(target)) {
        cpu.protection();
        return Flow::Fault;
    }
    let selector = (cpu.msrs.star >> 48) as u16;
    let flags = cpu.regs[gpr::R11];
    cpu.set_rflags_raw(flags);
    if op.extra == 8 {
        cpu.segments[seg::CS] = flat_code(selector.wrapping_add(16) | 3, 3, true);
        cpu.rip = target;
    } else {
        cpu.segments[seg::CS] = flat_code(selector | 3, 3, false);
        cpu.rip = target & 0xffff_ffff;
    }
    cpu.segments[seg::SS] = flat_stack(selector.wrapping_add(8) | 3, 3);
    cpu.cpl = 3;
    cpu.update_mode();
    Flow::Jump
}

/// `sysenter`.
pub(crate) unsafe fn sysenter(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cr0 & cr0::PE == 0 || cpu.msrs.sysenter_cs & 0xfffc == 0 {
        cpu.protection();
        return Flow::Fault;
    }
    let long = cpu.efer & efer::LMA != 0;
    let selector = cpu.msrs.sysenter_cs as u16 & !3;
    cpu.control &= !(flags::IF | flags::VM | flags::RF);
    cpu.segments[seg::CS] = flat_code(selector, 0, long);
    cpu.segments[seg::SS] = flat_stack(selector.wrapping_add(8), 0);
    cpu.cpl = 0;
    cpu.update_mode();
    let cut = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs[gpr::RSP] = cpu.msrs.sysenter_esp & cut;
    cpu.rip = cpu.msrs.sysenter_eip & cut;
    Flow::Jump
}

/// `sysexit`; `extra` is 8 with REX.W.
pub(crate) unsafe fn sysexit(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.cpl != 0 || cpu.cr0 & cr0::PE == 0 || cpu.msrs.sysenter_cs & 0xfffc == 0 {
        cpu.protection();
        return Flow::Fault;
    }
    let selector = cpu.msrs.sysenter_cs as u16;
    let (rip, rsp) = (cpu.regs[gpr::RDX], cpu.regs[gpr::RCX]);
    if op.extra == 8 {
        if !cpu.canonical(rip) || !cpu.canonical(rsp) {
            cpu.protection();
            return Flow::Fault;
        }
        cpu.segments[seg::CS] = flat_code(selector.wrapping_add(32) | 3, 3, true);
        cpu.segments[seg::SS] = flat_stack(selector.wrapping_add(40) | 3, 3);
        (cpu.rip, cpu.regs[gpr::RSP]) = (rip, rsp);
    } else {
        cpu.segments[seg::CS] = flat_code(selector.wrapping_add(16) | 3, 3, false);
        cpu.segments[seg::SS] = flat_stack(selector.wrapping_add(24) | 3, 3);
        (cpu.rip, cpu.regs[gpr::RSP]) = (rip & 0xffff_ffff, rsp & 0xffff_ffff);
    }
    cpu.cpl = 3;
    cpu.update_mode();
    Flow::Jump
}

/// `int n` (`imm`), `int3`, `into`, `int1` (`extra` = 1: as if from outside).
pub(crate) unsafe fn interrupt(cpu: &mut Cpu, op: &Op) -> Flow {
    let number = op.imm as u8;
    if number == vector::OF && op.extra == 2 && cpu.status & flags::OF == 0 {
        return Flow::Next;
    }
    let source = if op.extra == 1 {
        Source::External
    } else {
        Source::Software
    };
    // The return address is the next instruction. A fault on the way is one of this instruction, whose address is put back by `deliver` then.
    let exception = Exception {
        vector: number,
        source,
        ..Exception::default()
    };
    let at = cpu.block_start().wrapping_add(u64::from(op.start));
    cpu.rip = op.next(cpu);
    cpu.cut_rip();
    let entered = if cpu.cr0 & cr0::PE == 0 {
        cpu.deliver(exception).map_err(|_| Fault)
    } else {
        cpu.try_enter(exception)
    };
    if entered.is_err() {
        cpu.rip = at;
        return Flow::Fault;
    }
    Flow::Jump
}

/// A far pointer's checked target in protected mode.
struct Target {
    selector: u16,
    descriptor: Descriptor,
    cpl: u8,
}

impl Cpu {
    /// Sets RFLAGS to `value` where bits exist, whatever the privilege. Only what is not offered (virtual-8086 mode) stays clear.
    pub(crate) fn set_rflags_raw(&mut self, value: u64) {
        const KNOWN: u64 =
            flags::TF | flags::IF | flags::DF | flags::IOPL | flags::NT | flags::AC | flags::ID | flags::RF;
        self.status = value & flags::STATUS;
        self.control = value & KNOWN;
    }

    /// Sets the bits of RFLAGS that `popf` and `iret` may change at this privilege, of an operand of `bytes` bytes.
    pub(crate) fn set_rflags(&mut self, value: u64, bytes: u64, cpl: u8) {
        let mut changes = flags::STATUS | flags::TF | flags::DF | flags::NT;
        if bytes > 2 {
            changes |= flags::AC | flags::ID | flags::RF;
        }
        if cpl == 0 {
            changes |= flags::IOPL;
        }
        if u64::from(cpl) <= (self.control & flags::IOPL) >> 12 {
            changes |= flags::IF;
        }
        self.trap_flag_was_set = self.control & flags::TF != 0;
        let new = self.rflags() & !changes | value & changes;
        self.set_rflags_raw(new);
    }

    /// Enters a handler; what goes wrong on the way is left in `fault`, with the registers as they were.
    pub(crate) fn try_enter(&mut self, exception: Exception) -> Result<(), Fault> {
        let before = (self.regs, self.segments, self.status, self.control);
        let (rip, cpl, mode) = (self.rip, self.cpl, self.mode);
        let result = if self.efer & efer::LMA != 0 {
            self.enter_long(exception)
        } else {
            self.enter_protected(exception)
        };
        if result.is_err() {
            (self.regs, self.segments, self.status, self.control) = before;
            (self.rip, self.cpl, self.mode) = (rip, cpl, mode);
        }
        result
    }

    /// Checks the code segment of a far jump or call without a gate.
    fn far_target(&mut self, selector: u16) -> Result<Target, Fault> {
        if selector & !3 == 0 {
            return Err(self.protection());
        }
        let descriptor = self.descriptor(selector)?;
        let segment = descriptor.segment(selector);
        let wrong = u32::from(selector & !3);
        let rpl = (selector & 3) as u8;
        if !segment.has(Segment::CODE_OR_DATA | Segment::CODE) {
            // Call gates and task gates: nothing that is run here uses them.
            return Err(self.raise_code(vector::GP, wrong));
        }
        let refused = if segment.has(Segment::CONFORMING) {
            segment.dpl() > self.cpl
        } else {
            rpl > self.cpl || segment.dpl() != self.cpl
        };
        if refused || (self.efer & efer::LMA != 0 && segment.has(Segment::LONG | Segment::BIG)) {
            return Err(self.raise_code(vector::GP, wrong));
        }
        if !segment.has(Segment::PRESENT) {
            return Err(self.raise_code(vector::NP, wrong));
        }
        Ok(Target {
            selector,
            descriptor,
            cpl: self.cpl,
        })
    }

    fn far_jump(&mut self, selector: u16, offset: u64) -> Result<(), Fault> {
        if self.mode & mode::REAL != 0 {
            self.segments[seg::CS].selector = selector;
            self.segments[seg::CS].base = u64::from(selector) << 4;
            self.rip = offset;
            return Ok(());
        }
        let target = self.far_target(selector)?;
        self.load_code_segment(target.selector, target.descriptor, target.cpl)?;
        self.rip = offset;
        self.cut_rip();
        Ok(())
    }

    fn far_call(&mut self, selector: u16, offset: u64, bytes: u64, next: u64) -> Result<(), Fault> {
        let old = u64::from(self.segments[seg::CS].selector);
        let before = self.regs[gpr::RSP];
        let target = if self.mode & mode::REAL == 0 {
            Some(self.far_target(selector)?)
        } else {
            None
        };
        self.push_sized(bytes, old)?;
        if let Err(fault) = self.push_sized(bytes, next) {
            self.regs[gpr::RSP] = before;
            return Err(fault);
        }
        match target {
            Some(target) => {
                self.load_code_segment(target.selector, target.descriptor, target.cpl)?;
                self.rip = offset;
                self.cut_rip();
                Ok(())
            }
            None => self.far_jump(selector, offset),
        }
    }

    /// Checks the code segment a far return or `iret` goes to.
    fn return_target(&mut self, selector: u16) -> Result<Target, Fault> {
        if selector & !3 == 0 {
            return Err(self.protection());
        }
        let descriptor = self.descriptor(selector)?;
        let segment = descriptor.segment(selector);
        let wrong = u32::from(selector & !3);
        let rpl = (selector & 3) as u8;
        let right = if segment.has(Segment::CONFORMING) {
            segment.dpl() <= rpl
        } else {
            segment.dpl() == rpl
        };
        if !segment.has(Segment::CODE_OR_DATA | Segment::CODE) || rpl < self.cpl || !right {
            return Err(self.raise_code(vector::GP, wrong));
        }
        if !segment.has(Segment::PRESENT) {
            return Err(self.raise_code(vector::NP, wrong));
        }
        Ok(Target {
            selector,
            descriptor,
            cpl: rpl,
        })
    }

    /// Loads SS for a return to privilege `cpl`, to code that is `long` or not.
    fn return_stack(&mut self, selector: u16, cpl: u8, long: bool) -> Result<Segment, Fault> {
        if selector & !3 == 0 {
            if long && cpl != 3 {
                return Ok(Segment {
                    selector,
                    ..Segment::default()
                });
            }
            return Err(self.protection());
        }
        let descriptor = self.descriptor(selector)?;
        let segment = descriptor.segment(selector);
        let wrong = u32::from(selector & !3);
        if !segment.has(Segment::CODE_OR_DATA | Segment::READ_WRITE)
            || segment.has(Segment::CODE)
            || (selector & 3) as u8 != cpl
            || segment.dpl() != cpl
        {
            return Err(self.raise_code(vector::GP, wrong));
        }
        if !segment.has(Segment::PRESENT) {
            return Err(self.raise_code(vector::SS, wrong));
        }
        Ok(segment)
    }

    /// Data segments that the outer privilege may not have become null.
    fn drop_privileged_segments(&mut self) {
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &self.segments[index];
            let conforming = segment.has(Segment::CODE | Segment::CONFORMING);
            if segment.attributes != 0 && !conforming && segment.dpl() < self.cpl {
                self.segments[index] = Segment {
                    base: segment.base,
                    ..Segment::default()
                };
            }
        }
    }

    fn far_return(&mut self, bytes: u64, release: u64) -> Result<(), Fault> {
        let offset = self.peek_sized(bytes, 0)?;
        let selector = self.peek_sized(bytes, bytes)? as u16;
        if self.mode & mode::REAL != 0 {
            let pointer = self.regs[gpr::RSP].wrapping_add(2 * bytes + release);
            self.set_stack_pointer(pointer);
            return self.far_jump(selector, offset);
        }
        let target = self.return_target(selector)?;
        let long = target.descriptor.segment(selector).has(Segment::LONG);
        if target.cpl == self.cpl {
            let pointer = self.regs[gpr::RSP].wrapping_add(2 * bytes + release);
            self.load_code_segment(selector, target.descriptor, target.cpl)?;
            self.set_stack_pointer(pointer);
        } else {
            let pointer = self.peek_sized(bytes, 2 * bytes + release)?;
            let stack = self.peek_sized(bytes, 3 * bytes + release)? as u16;
            let stack = self.return_stack(stack, target.cpl, long)?;
            self.load_code_segment(selector, target.descriptor, target.cpl)?;
            self.segments[seg::SS] = stack;
            self.update_mode();
            self.set_stack_pointer(pointer.wrapping_add(release));
            self.drop_privileged_segments();
        }
        self.rip = offset;
        self.cut_rip();
        Ok(())
    }

    fn interrupt_return(&mut self, bytes: u64) -> Result<(), Fault> {
        if self.mode & mode::REAL != 0 {
            let offset = self.peek_sized(bytes, 0)?;
            let selector = self.peek_sized(bytes, bytes)? as u16;
            let value = self.peek_sized(bytes, 2 * bytes)?;
            let pointer = self.regs[gpr::RSP].wrapping_add(3 * bytes);
            self.set_stack_pointer(pointer);
            self.set_rflags(value, bytes, 0);
            return self.far_jump(selector, offset);
        }
        if self.control & flags::NT != 0 {
            // Returns to another task: long mode has none; outside of it nothing here uses them.
            return Err(self.protection());
        }
        let offset = self.peek_sized(bytes, 0)?;
        let selector = self.peek_sized(bytes, bytes)? as u16;
        let value = self.peek_sized(bytes, 2 * bytes)?;
        let target = self.return_target(selector)?;
        let long = target.descriptor.segment(selector).has(Segment::LONG);
        let old_cpl = self.cpl;
        let from_long = self.long_code();
        if target.cpl == self.cpl && !from_long {
            let pointer = self.regs[gpr::RSP].wrapping_add(3 * bytes);
            self.load_code_segment(selector, target.descriptor, target.cpl)?;
            self.set_stack_pointer(pointer);
        } else {
            let pointer = self.peek_sized(bytes, 3 * bytes)?;
            let stack = self.peek_sized(bytes, 4 * bytes)? as u16;
            let stack = self.return_stack(stack, target.cpl, long)?;
            if long && !self.canonical(offset) {
                return Err(self.protection());
            }
            self.load_code_segment(selector, target.descriptor, target.cpl)?;
            self.segments[seg::SS] = stack;
            self.update_mode();
            if bytes == 8 {
                self.regs[gpr::RSP] = pointer;
            } else {
                self.set_stack_pointer(pointer);
            }
            if target.cpl != old_cpl {
                self.drop_privileged_segments();
            }
        }
        self.rip = if bytes == 2 { offset & 0xffff } else { offset };
        self.cut_rip();
        self.set_rflags(value, bytes, old_cpl);
        Ok(())
    }

    /// Reads a far pointer: offset of `bytes` bytes, then the selector.
    fn far_pointer(&mut self, op: &Op, bytes: u64) -> Result<(u16, u64), Fault> {
        let address = self.address(&op.mem, bytes + 2, Access::Read)?;
        let offset = match bytes {
            2 => u64::from(self.load::<u16>(address)?),
            4 => u64::from(self.load::<u32>(address)?),
            _ => self.load::<u64>(address)?,
        };
        Ok((self.load::<u16>(address.wrapping_add(bytes))?, offset))
    }
}

/// `iret`; `extra` is the operand size.
pub(crate) unsafe fn iret(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.interrupt_return(u64::from(op.extra)));
    cpu.nmi_masked = false;
    Flow::Jump
}

/// `retf`; `extra` is the operand size, `imm` what is released.
pub(crate) unsafe fn retf(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.far_return(u64::from(op.extra), op.imm));
    Flow::Jump
}

/// `jmp` and `call` to a far pointer: in the instruction (selector in bits 32 to 47 of `imm`, with `third` 1), or in memory.
pub(crate) unsafe fn far<const CALL: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let bytes = u64::from(op.extra);
    let (selector, offset) = if op.third == 1 {
        ((op.imm >> 32) as u16, op.imm & 0xffff_ffff)
    } else {
        attempt!(cpu.far_pointer(op, bytes))
    };
    if CALL {
        let next = op.next(cpu);
        attempt!(cpu.far_call(selector, offset, bytes, next));
    } else {
        attempt!(cpu.far_jump(selector, offset));
    }
    Flow::Jump
}

/// `lds`, `les`, `lfs`, `lgs`, `lss`: segment register in `third`.
pub(crate) unsafe fn load_far_pointer<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (selector, offset) = attempt!(cpu.far_pointer(op, W::BYTES));
    attempt!(cpu.load_segment(usize::from(op.third), selector));
    cpu.set_reg(op.dst, W::from_u64(offset));
    if usize::from(op.third) == seg::SS {
        Flow::Leave
    } else {
        Flow::Next
    }
}

/// `mov` to a segment register (`third`) from a register or memory.
pub(crate) unsafe fn mov_to_segment<S: super::Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = attempt!(S::get::<u16>(cpu, op));
    attempt!(cpu.load_segment(usize::from(op.third), selector));
    if usize::from(op.third) == seg::SS {
        cpu.shadow = true;
        return Flow::Leave;
    }
    Flow::Next
}

/// `mov` from a segment register to a register of `W` or 16 bits of memory.
pub(crate) unsafe fn mov_from_segment<W: Width, D: super::Destination>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = u64::from(cpu.segments[usize::from(op.third)].selector);
    attempt!(D::set(cpu, op, W::from_u64(selector)));
    Flow::Next
}

/// `push` of a segment register, as `extra` bytes.
pub(crate) unsafe fn push_segment(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = u64::from(cpu.segments[usize::from(op.third)].selector);
    attempt!(cpu.push_sized(u64::from(op.extra), selector));
    Flow::Next
}

/// `pop` of a segment register.
pub(crate) unsafe fn pop_segment(cpu: &mut Cpu, op: &Op) -> Flow {
    let bytes = u64::from(op.extra);
    let selector = attempt!(cpu.peek_sized(bytes, 0)) as u16;
    let pointer = cpu.regs[gpr::RSP].wrapping_add(bytes);
    attempt!(cpu.load_segment(usize::from(op.third), selector));
    cpu.set_stack_pointer(pointer);
    if usize::from(op.third) == seg::SS {
        cpu.shadow = true;
        return Flow::Leave;
    }
    Flow::Next
}

/// `pushf`; `extra` is the operand size.
pub(crate) unsafe fn push_flags(cpu: &mut Cpu, op: &Op) -> Flow {
    let flags = cpu.rflags() & !(flags::RF | flags::VM);
    attempt!(cpu.push_sized(u64::from(op.extra), flags));
    Flow::Next
}

/// `popf`.
pub(crate) unsafe fn pop_flags(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = attempt!(cpu.pop_sized(u64::from(op.extra)));
    let cpl = cpu.cpl;
    cpu.set_rflags(value & !flags::RF, u64::from(op.extra), cpl);
    // IF or TF may have come.
    Flow::Leave
}

/// Whether CR4 allows `rdfsbase` and its relatives.
pub(crate) unsafe fn segment_base<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        cpu.undefined();
        return Flow::Fault;
    }
    let index = usize::from(op.third);
    if op.extra == 0 {
        let base = cpu.segments[index].base;
        cpu.set_reg(op.dst, W::from_u64(base));
        return Flow::Next;
    }
    let base = cpu.reg::<W>(op.dst).to_u64();
    if !cpu.canonical(base) {
        cpu.protection();
        return Flow::Fault;
    }
    cpu.segments[index].base = base;
    Flow::Next
}
