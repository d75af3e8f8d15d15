//! Privileged instructions, ports, model-specific registers.

use super::{Destination, Source, attempt};
use crate::exception::{Fault, vector};
use crate::flags::{self, Width};
use crate::mmu::Access;
use crate::op::{Flow, Op};
use crate::state::{Cpu, Segment, cr0, cr4, efer, gpr, mode, seg};

impl Cpu {
    /// #GP(0) unless at privilege 0.
    pub(crate) fn privileged(&mut self) -> Result<(), Fault> {
        if self.cpl == 0 {
            Ok(())
        } else {
            Err(self.protection())
        }
    }

    /// Whether the privilege or the task's bitmap allows ports `port` to `port + bytes - 1`.
    pub(crate) fn check_port(&mut self, port: u16, bytes: u64) -> Result<(), Fault> {
        if self.mode & mode::REAL != 0 || u64::from(self.cpl) <= (self.control & flags::IOPL) >> 12 {
            return Ok(());
        }
        if self.task.limit < 103 || self.task.attributes == 0 {
            return Err(self.protection());
        }
        let map = u64::from(self.read_system::<u16>(self.task.base.wrapping_add(102))?);
        let first = map + u64::from(port) / 8;
        if first + 1 > u64::from(self.task.limit) {
            return Err(self.protection());
        }
        let bits = self.read_system::<u16>(self.task.base.wrapping_add(first))?;
        let wanted = ((1_u16 << bytes) - 1) << (port % 8);
        if bits & wanted != 0 {
            Err(self.protection())
        } else {
            Ok(())
        }
    }

    pub(crate) fn input<W: Width>(&mut self, port: u16) -> W {
        let mut bytes = [0_u8; 8];
        let part = &mut bytes[..W::BYTES as usize];
        self.with_environment(|environment| environment.read_port(port, part));
        W::from_u64(u64::from_le_bytes(bytes))
    }

    pub(crate) fn output<W: Width>(&mut self, port: u16, value: W) {
        let bytes = value.to_u64().to_le_bytes();
        let part = &bytes[..W::BYTES as usize];
        self.with_environment(|environment| environment.write_port(port, part));
    }

    /// Writes a control register.
    fn set_control_register(&mut self, number: u8, value: u64) -> Result<(), Fault> {
        match number {
            0 => self.set_cr0(value),
            2 => {
                self.cr2 = value;
                Ok(())
            }
            3 => {
                if self.efer & efer::LMA != 0 && value >> crate::mmu::PHYSICAL_BITS != 0 {
                    return Err(self.protection());
                }
                self.cr3 = value;
                self.mmu.flush_local();
                Ok(())
            }
            4 => self.set_cr4(value),
            8 => {
                if value > 15 {
                    return Err(self.protection());
                }
                self.with_environment(|environment| environment.set_cr8(value));
                self.interrupt_waits = true;
                Ok(())
            }
            _ => Err(self.undefined()),
        }
    }
}

/// `in`: the port in `imm` or DX (`extra` = 1).
pub(crate) unsafe fn input<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = if op.extra == 1 { cpu.regs[gpr::RDX] } else { op.imm } as u16;
    attempt!(cpu.check_port(port, W::BYTES));
    let value = cpu.input::<W>(port);
    cpu.set_reg(0, value);
    Flow::Leave
}

/// `out`.
pub(crate) unsafe fn output<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = if op.extra == 1 { cpu.regs[gpr::RDX] } else { op.imm } as u16;
    attempt!(cpu.check_port(port, W::BYTES));
    let value = cpu.reg::<W>(0);
    cpu.output(port, value);
    Flow::Leave
}

/// `mov` from a control register: number in `third`.
pub(crate) unsafe fn read_control(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let value = match op.third {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.with_environment(|environment| environment.cr8()),
        _ => {
            cpu.undefined();
            return Flow::Fault;
        }
    };
    let value = if cpu.long_code() {
        value
    } else {
        value & 0xffff_ffff
    };
    cpu.set_reg(op.dst, value);
    Flow::Next
}

/// `mov` to a control register.
pub(crate) unsafe fn write_control(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let value = cpu.reg::<u64>(op.src);
    let value = if cpu.long_code() {
        value
    } else {
        value & 0xffff_ffff
    };
    attempt!(cpu.set_control_register(op.third, value));
    Flow::Leave
}

/// `mov` from a debug register.
pub(crate) unsafe fn read_debug(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let number = attempt!(debug_number(cpu, op.third));
    let fixed = match number {
        6 => 0xffff_0ff0,
        7 => 0x400,
        _ => 0,
    };
    let value = cpu.debug[number] | fixed;
    cpu.set_reg(op.dst, value);
    Flow::Next
}

/// `mov` to a debug register. Breakpoints are kept and never hit.
pub(crate) unsafe fn write_debug(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let number = attempt!(debug_number(cpu, op.third));
    let value = cpu.reg::<u64>(op.src);
    if number >= 6 && value >> 32 != 0 {
        cpu.protection();
        return Flow::Fault;
    }
    cpu.debug[number] = value;
    Flow::Next
}

/// DR4 and DR5 are DR6 and DR7 unless CR4.DE says that there are none.
fn debug_number(cpu: &mut Cpu, number: u8) -> Result<usize, Fault> {
    match number {
        4 | 5 if cpu.cr4 & cr4::DE != 0 => Err(cpu.undefined()),
        4 | 5 => Ok(usize::from(number) + 2),
        0..=7 => Ok(usize::from(number)),
        _ => Err(cpu.undefined()),
    }
}

/// `clts`.
pub(crate) unsafe fn clear_task_switched(cpu: &mut Cpu, _: &Op) -> Flow {
    attempt!(cpu.privileged());
    cpu.cr0 &= !cr0::TS;
    cpu.update_mode();
    Flow::Leave
}

/// `lmsw`.
pub(crate) unsafe fn load_machine_status<S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let value = u64::from(attempt!(S::get::<u16>(cpu, op)));
    // It can set PE but not clear it.
    let new = cpu.cr0 & !0xe | value & 0xf;
    attempt!(cpu.set_cr0(new));
    Flow::Leave
}

/// `smsw`.
pub(crate) unsafe fn store_machine_status<W: Width, D: Destination>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = W::from_u64(cpu.cr0);
    attempt!(D::set(cpu, op, value));
    Flow::Next
}

/// `invlpg`.
pub(crate) unsafe fn invalidate_page(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let offset = cpu.offset(&op.mem);
    let address = if cpu.long_code() {
        let segment = usize::from(op.mem.segment);
        let base = if segment >= seg::FS {
            cpu.segments[segment].base
        } else {
            0
        };
        offset.wrapping_add(base)
    } else {
        offset.wrapping_add(cpu.segments[usize::from(op.mem.segment)].base) & 0xffff_ffff
    };
    cpu.mmu.flush_page(address);
    Flow::Leave
}

/// `invd`, `wbinvd`: there are no caches. `extra` 1: nothing to be privileged for.
pub(crate) unsafe fn invalidate_caches(cpu: &mut Cpu, _: &Op) -> Flow {
    attempt!(cpu.privileged());
    Flow::Next
}

/// `hlt`.
pub(crate) unsafe fn halt(cpu: &mut Cpu, _: &Op) -> Flow {
    attempt!(cpu.privileged());
    cpu.halted = true;
    Flow::Leave
}

/// `cli`.
pub(crate) unsafe fn clear_interrupts(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.mode & mode::REAL == 0 && u64::from(cpu.cpl) > (cpu.control & flags::IOPL) >> 12 {
        cpu.protection();
        return Flow::Fault;
    }
    cpu.control &= !flags::IF;
    Flow::Next
}

/// `sti`: interrupts are taken after the next instruction.
pub(crate) unsafe fn set_interrupts(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.mode & mode::REAL == 0 && u64::from(cpu.cpl) > (cpu.control & flags::IOPL) >> 12 {
        cpu.protection();
        return Flow::Fault;
    }
    if cpu.control & flags::IF == 0 {
        cpu.control |= flags::IF;
        cpu.shadow = true;
    }
    Flow::Leave
}

/// `rdmsr`.
pub(crate) unsafe fn read_msr(cpu: &mut Cpu, _: &Op) -> Flow {
    attempt!(cpu.privileged());
    let value = attempt!(cpu.rdmsr(cpu.regs[gpr::RCX] as u32));
    cpu.regs[gpr::RAX] = value & 0xffff_ffff;
    cpu.regs[gpr::RDX] = value >> 32;
    Flow::Next
}

/// `wrmsr`.
pub(crate) unsafe fn write_msr(cpu: &mut Cpu, _: &Op) -> Flow {
    attempt!(cpu.privileged());
    let value = cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xffff_ffff;
    attempt!(cpu.wrmsr(cpu.regs[gpr::RCX] as u32, value));
    Flow::Leave
}

/// `rdtsc`; with `extra` 1 `rdtscp`, with `extra` 2 `rdpid`.
pub(crate) unsafe fn time_stamp(cpu: &mut Cpu, op: &Op) -> Flow {
    if op.extra == 2 {
        let aux = cpu.msrs.tsc_aux;
        cpu.set_reg(op.dst, aux);
        return Flow::Next;
    }
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        cpu.protection();
        return Flow::Fault;
    }
    let value = cpu.with_environment(|environment| environment.tsc());
    cpu.regs[gpr::RAX] = value & 0xffff_ffff;
    cpu.regs[gpr::RDX] = value >> 32;
    if op.extra == 1 {
        cpu.regs[gpr::RCX] = cpu.msrs.tsc_aux & 0xffff_ffff;
    }
    Flow::Next
}

/// `cpuid`.
pub(crate) unsafe fn identify(cpu: &mut Cpu, _: &Op) -> Flow {
    let [eax, ebx, ecx, edx] = cpu.cpuid(cpu.regs[gpr::RAX] as u32, cpu.regs[gpr::RCX] as u32);
    cpu.regs[gpr::RAX] = u64::from(eax);
    cpu.regs[gpr::RBX] = u64::from(ebx);
    cpu.regs[gpr::RCX] = u64::from(ecx);
    cpu.regs[gpr::RDX] = u64::from(edx);
    Flow::Next
}

/// `swapgs`.
pub(crate) unsafe fn swap_gs(cpu: &mut Cpu, _: &Op) -> Flow {
    attempt!(cpu.privileged());
    std::mem::swap(&mut cpu.segments[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    Flow::Next
}

/// `lgdt`, `lidt` (`extra` 1).
pub(crate) unsafe fn load_table(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let long = cpu.long_code();
    let address = attempt!(cpu.address(&op.mem, if long { 10 } else { 6 }, Access::Read));
    let limit = attempt!(cpu.load::<u16>(address));
    let base = if long {
        attempt!(cpu.load::<u64>(address.wrapping_add(2)))
    } else {
        let base = u64::from(attempt!(cpu.load::<u32>(address.wrapping_add(2))));
        // With 16-bit operands only 24 bits count.
        if op.third == 2 { base & 0xff_ffff } else { base }
    };
    if long && !cpu.canonical(base) {
        cpu.protection();
        return Flow::Fault;
    }
    let table = if op.extra == 1 { &mut cpu.idt } else { &mut cpu.gdt };
    (table.base, table.limit) = (base, limit);
    Flow::Next
}

/// `sgdt`, `sidt` (`extra` 1).
pub(crate) unsafe fn store_table(cpu: &mut Cpu, op: &Op) -> Flow {
    let long = cpu.long_code();
    let table = if op.extra == 1 { cpu.idt } else { cpu.gdt };
    let size = if long { 10 } else { 6 };
    let address = attempt!(cpu.address(&op.mem, size, Access::Write));
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    attempt!(cpu.write_bytes(address, &bytes[..size as usize]));
    Flow::Next
}

/// `lldt`.
pub(crate) unsafe fn load_ldt<S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let selector = attempt!(S::get::<u16>(cpu, op));
    if selector & !3 == 0 {
        cpu.ldt = Segment {
            selector,
            ..Segment::default()
        };
        return Flow::Next;
    }
    let segment = attempt!(system_segment(cpu, selector, &[2]));
    cpu.ldt = segment.0;
    Flow::Next
}

/// `ltr`.
pub(crate) unsafe fn load_task<S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    attempt!(cpu.privileged());
    let selector = attempt!(S::get::<u16>(cpu, op));
    if selector & !3 == 0 {
        cpu.protection();
        return Flow::Fault;
    }
    let available: &[u16] = if cpu.efer & efer::LMA != 0 { &[9] } else { &[1, 9] };
    let (mut segment, address) = attempt!(system_segment(cpu, selector, available));
    segment.attributes |= 2;
    let busy = segment.attributes as u8;
    attempt!(cpu.write_as::<u8>(address.wrapping_add(5), busy, false));
    cpu.task = segment;
    Flow::Next
}

/// A present system segment of one of `types` out of the GDT, and where its descriptor is.
fn system_segment(cpu: &mut Cpu, selector: u16, types: &[u16]) -> Result<(Segment, u64), Fault> {
    let wrong = u32::from(selector & !3);
    if selector & 4 != 0 {
        return Err(cpu.raise_code(vector::GP, wrong));
    }
    let descriptor = cpu.descriptor(selector)?;
    let mut segment = descriptor.segment(selector);
    if segment.has(Segment::CODE_OR_DATA) || !types.contains(&(segment.attributes & 15)) {
        return Err(cpu.raise_code(vector::GP, wrong));
    }
    if !segment.has(Segment::PRESENT) {
        return Err(cpu.raise_code(vector::NP, wrong));
    }
    if cpu.efer & efer::LMA != 0 {
        segment.base |= cpu.upper_base(&descriptor, selector)?;
    }
    Ok((segment, descriptor.address))
}

/// `sldt`, `str` (`extra` 1).
pub(crate) unsafe fn store_selector<W: Width, D: Destination>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.mode & mode::REAL != 0 {
        cpu.undefined();
        return Flow::Fault;
    }
    let selector = if op.extra == 1 {
        cpu.task.selector
    } else {
        cpu.ldt.selector
    };
    attempt!(D::set(cpu, op, W::from_u64(u64::from(selector))));
    Flow::Next
}

/// `lar`, `lsl`, `verr`, `verw`: what a descriptor says, without faults. `extra` is 0 to 3 in that order.
pub(crate) unsafe fn inspect<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.mode & mode::REAL != 0 {
        cpu.undefined();
        return Flow::Fault;
    }
    let selector = attempt!(S::get::<u16>(cpu, op));
    cpu.status &= !flags::ZF;
    if selector & !3 == 0 {
        return Flow::Next;
    }
    let descriptor = match cpu.descriptor(selector) {
        Ok(descriptor) => descriptor,
        // Outside its table: not an exception here. One of paging is.
        Err(Fault) if cpu.fault.vector == vector::PF => return Flow::Fault,
        Err(Fault) => return Flow::Next,
    };
    let segment = descriptor.segment(selector);
    let is_data = segment.has(Segment::CODE_OR_DATA);
    let code = segment.has(Segment::CODE);
    let conforming = is_data && segment.has(Segment::CODE | Segment::CONFORMING);
    let rpl = (selector & 3) as u8;
    if !conforming && segment.dpl() < cpu.cpl.max(rpl) {
        return Flow::Next;
    }
    let long = cpu.efer & efer::LMA != 0;
    let kind = segment.attributes & 15;
    let known = is_data
        || match (op.extra, long) {
            (0, true) => matches!(kind, 2 | 9 | 11 | 12),
            (0, false) => matches!(kind, 1..=5 | 9 | 11 | 12),
            (1, true) => matches!(kind, 2 | 9 | 11),
            (1, false) => matches!(kind, 1..=3 | 9 | 11),
            _ => false,
        };
    let readable = is_data && (!code || segment.has(Segment::READ_WRITE));
    let writable = is_data && !code && segment.has(Segment::READ_WRITE);
    let holds = match op.extra {
        2 => readable,
        3 => writable,
        _ => known,
    };
    if !holds {
        return Flow::Next;
    }
    match op.extra {
        0 => cpu.set_reg(op.dst, W::from_u64(descriptor.low >> 32 & 0xf0_ff00)),
        1 => cpu.set_reg(op.dst, W::from_u64(u64::from(segment.limit))),
        _ => {}
    }
    cpu.status |= flags::ZF;
    Flow::Next
}

/// `mfence`, and whatever else orders loads after stores: the host must do it, too.
pub(crate) unsafe fn fence(_: &mut Cpu, _: &Op) -> Flow {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Flow::Next
}

/// `pause`: who spins lets others run.
pub(crate) unsafe fn pause(_: &mut Cpu, _: &Op) -> Flow {
    std::hint::spin_loop();
    Flow::Leave
}

/// `xgetbv`.
pub(crate) unsafe fn get_extended_control(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        cpu.undefined();
        return Flow::Fault;
    }
    if cpu.regs[gpr::RCX] as u32 != 0 {
        cpu.protection();
        return Flow::Fault;
    }
    cpu.regs[gpr::RAX] = cpu.xcr0 & 0xffff_ffff;
    cpu.regs[gpr::RDX] = cpu.xcr0 >> 32;
    Flow::Next
}

/// `xsetbv`.
pub(crate) unsafe fn set_extended_control(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        cpu.undefined();
        return Flow::Fault;
    }
    attempt!(cpu.privileged());
    let value = cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xffff_ffff;
    let wrong = value & 1 == 0 || value & !crate::cpuid::XCR0 != 0 || value & 6 == 4;
    if cpu.regs[gpr::RCX] as u32 != 0 || wrong {
        cpu.protection();
        return Flow::Fault;
    }
    cpu.xcr0 = value;
    Flow::Next
}

/// `vmcall`: a hypercall of KVM's. The only ones offered need no answer but "not here".
pub(crate) unsafe fn hypercall(cpu: &mut Cpu, _: &Op) -> Flow {
    const KVM_ENOSYS: i64 = -1000;
    cpu.regs[gpr::RAX] = KVM_ENOSYS as u64;
    Flow::Next
}

/// `bound` of 16- and 32-bit code.
pub(crate) unsafe fn bound<W: Width>(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = attempt!(cpu.address(&op.mem, 2 * W::BYTES, Access::Read));
    let lower = attempt!(cpu.load::<W>(address)).to_i64();
    let upper = attempt!(cpu.load::<W>(address.wrapping_add(W::BYTES))).to_i64();
    let index = cpu.reg::<W>(op.dst).to_i64();
    if index < lower || index > upper {
        cpu.raise(vector::BR);
        return Flow::Fault;
    }
    Flow::Next
}

/// `arpl` of 16- and 32-bit code.
pub(crate) unsafe fn adjust_privilege<S: Source, D: Destination>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.mode & mode::REAL != 0 {
        cpu.undefined();
        return Flow::Fault;
    }
    let selector = attempt!(S::get::<u16>(cpu, op));
    let wanted = cpu.reg::<u16>(op.third) & 3;
    if selector & 3 < wanted {
        attempt!(D::set(cpu, op, selector & !3 | wanted));
        cpu.status |= flags::ZF;
    } else {
        cpu.status &= !flags::ZF;
    }
    Flow::Next
}
