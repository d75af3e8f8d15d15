//! Exceptions, and the way into the handlers of exceptions and interrupts (SDM volume 3, "Interrupt and Exception Handling").

use crate::mmu::Access;
use crate::segment::Descriptor;
use crate::state::{Cpu, Segment, cr0, efer, gpr, mode, seg};

/// An instruction had no effect: why is in `Cpu::fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

pub(crate) mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const XM: u8 = 19;
    /// No vector: the instruction writes to the page it is in, and is to be executed alone.
    pub const ALONE: u8 = 0xff;
}

/// Where an exception comes from: it decides about return address and privilege checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// An instruction that had no effect.
    #[default]
    Fault,
    /// `int n`, `int3`, `into`: the gate's privilege is checked; the instruction is over.
    Software,
    /// From outside, or `int1`.
    External,
}

/// An exception or interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
    /// What CR2 becomes (page faults).
    pub address: u64,
    pub source: Source,
}

impl Exception {
    pub(crate) fn external(vector: u8) -> Self {
        Self {
            vector,
            source: Source::External,
            ..Self::default()
        }
    }

    /// Divide error, and what comes of segments and tables: two of them in a row are a double fault.
    fn contributory(&self) -> bool {
        self.source == Source::Fault
            && matches!(
                self.vector,
                vector::DE | vector::TS | vector::NP | vector::SS | vector::GP
            )
    }

    fn page_fault(&self) -> bool {
        self.source == Source::Fault && self.vector == vector::PF
    }
}

/// The machine cannot go on: a fault on the way to the handler of a double fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TripleFault;

impl Cpu {
    /// The instruction raises an exception without an error code.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8) -> Fault {
        self.fault = Exception {
            vector,
            ..Exception::default()
        };
        Fault
    }

    /// The instruction raises an exception with an error code.
    #[cold]
    pub(crate) fn raise_code(&mut self, vector: u8, code: u32) -> Fault {
        self.fault = Exception {
            vector,
            error: Some(code),
            ..Exception::default()
        };
        Fault
    }

    /// #GP(0).
    #[cold]
    pub(crate) fn protection(&mut self) -> Fault {
        self.raise_code(vector::GP, 0)
    }

    /// #UD.
    #[cold]
    pub(crate) fn undefined(&mut self) -> Fault {
        self.raise(vector::UD)
    }

    /// Goes into the handler of `exception`; `Cpu::rip` is the address to return to. Faults on the way become double and triple faults.
    #[cold]
    pub(crate) fn deliver(&mut self, exception: Exception) -> Result<(), TripleFault> {
        let mut current = exception;
        loop {
            if current.page_fault() {
                self.cr2 = current.address;
            }
            let before = (self.regs, self.segments, self.status, self.control);
            let (rip, cpl, mode) = (self.rip, self.cpl, self.mode);
            self.halted = false;
            let attempt = if self.cr0 & cr0::PE == 0 {
                self.enter_real(current)
            } else if self.efer & efer::LMA != 0 {
                self.enter_long(current)
            } else {
                self.enter_protected(current)
            };
            if attempt.is_ok() {
                return Ok(());
            }
            (self.regs, self.segments, self.status, self.control) = before;
            (self.rip, self.cpl, self.mode) = (rip, cpl, mode);
            let second = self.fault;
            if current.vector == vector::DF {
                return Err(TripleFault);
            }
            let double = (current.contributory() && second.contributory())
                || (current.page_fault() && (second.contributory() || second.page_fault()));
            current = if double {
                Exception {
                    vector: vector::DF,
                    error: Some(0),
                    ..Exception::default()
                }
            } else {
                second
            };
        }
    }

    /// Error code of a fault at an IDT entry: its index, "in the IDT", and whether something external caused it.
    fn gate_fault(&mut self, code: u8, exception: Exception) -> Fault {
        let external = u32::from(exception.source != Source::Software);
        self.raise_code(code, u32::from(exception.vector) << 3 | 2 | external)
    }

    /// RFLAGS as pushed.
    pub(crate) fn rflags(&self) -> u64 {
        self.control | self.status & crate::flags::STATUS | 2
    }

    fn enter_real(&mut self, exception: Exception) -> Result<(), Fault> {
        let offset = u64::from(exception.vector) * 4;
        if offset + 3 > u64::from(self.idt.limit) {
            return Err(self.protection());
        }
        let entry = self.read_system::<u32>(self.idt.base.wrapping_add(offset))?;
        let flags = self.rflags();
        self.push_sized(2, flags)?;
        self.push_sized(2, u64::from(self.segments[seg::CS].selector))?;
        self.push_sized(2, self.rip)?;
        self.control &= !(crate::flags::IF | crate::flags::TF | crate::flags::AC);
        let selector = (entry >> 16) as u16;
        self.segments[seg::CS].selector = selector;
        self.segments[seg::CS].base = u64::from(selector) << 4;
        self.rip = u64::from(entry & 0xffff);
        Ok(())
    }

    pub(crate) fn enter_long(&mut self, exception: Exception) -> Result<(), Fault> {
        let offset = u64::from(exception.vector) * 16;
        if offset + 15 > u64::from(self.idt.limit) {
            return Err(self.gate_fault(vector::GP, exception));
        }
        let low = self.read_system::<u64>(self.idt.base.wrapping_add(offset))?;
        let high = self.read_system::<u64>(self.idt.base.wrapping_add(offset + 8))?;
        let kind = low >> 40 & 0x1f;
        if !matches!(kind, 0xe | 0xf) {
            return Err(self.gate_fault(vector::GP, exception));
        }
        let dpl = (low >> 45 & 3) as u8;
        if exception.source == Source::Software && dpl < self.cpl {
            return Err(self.gate_fault(vector::GP, exception));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.gate_fault(vector::NP, exception));
        }
        let target = (low & 0xffff) | (low >> 32 & 0xffff_0000) | high << 32;
        let selector = (low >> 16) as u16;
        if selector & !3 == 0 {
            return Err(self.protection());
        }
        let code = self.descriptor(selector)?;
        let segment = code.segment(selector);
        let wrong = u32::from(selector & !3);
        if !segment.has(Segment::CODE_OR_DATA | Segment::CODE) || segment.dpl() > self.cpl {
            return Err(self.raise_code(vector::GP, wrong));
        }
        if !segment.has(Segment::PRESENT) {
            return Err(self.raise_code(vector::NP, wrong));
        }
        if !segment.has(Segment::LONG) || segment.has(Segment::BIG) {
            return Err(self.raise_code(vector::GP, wrong));
        }
        let ist = low >> 32 & 7;
        let cpl = if segment.has(Segment::CONFORMING) {
            self.cpl
        } else {
            segment.dpl()
        };
        let mut stack = if ist != 0 {
            self.task_word(0x24 + (ist - 1) * 8)?
        } else if cpl != self.cpl {
            self.task_word(4 + u64::from(cpl) * 8)?
        } else {
            self.regs[gpr::RSP]
        };
        if !self.canonical(stack) {
            return Err(self.raise_code(vector::SS, 0));
        }
        stack &= !15;
        let frame = [
            Some(u64::from(self.segments[seg::SS].selector)),
            Some(self.regs[gpr::RSP]),
            Some(self.rflags()),
            Some(u64::from(self.segments[seg::CS].selector)),
            Some(self.rip),
            exception.error.map(u64::from),
        ];
        for value in frame.into_iter().flatten() {
            stack = stack.wrapping_sub(8);
            self.write_as::<u64>(stack, value, cpl == 3)?;
        }
        if !self.canonical(target) {
            return Err(self.protection());
        }
        if cpl != self.cpl {
            self.segments[seg::SS] = Segment {
                selector: u16::from(cpl),
                ..Segment::default()
            };
        }
        self.regs[gpr::RSP] = stack;
        self.load_code_segment(selector, code, cpl)?;
        self.rip = target;
        self.mask_flags(kind == 0xe);
        Ok(())
    }

    /// What every gate does to RFLAGS; an interrupt gate also clears IF.
    fn mask_flags(&mut self, interrupt_gate: bool) {
        use crate::flags::{IF, NT, RF, TF, VM};
        self.control &= !(TF | NT | RF | VM);
        if interrupt_gate {
            self.control &= !IF;
        }
        self.shadow = false;
    }

    /// A stack pointer out of the 64-bit task state segment.
    fn task_word(&mut self, offset: u64) -> Result<u64, Fault> {
        if offset + 7 > u64::from(self.task.limit) {
            let selector = u32::from(self.task.selector & !3);
            return Err(self.raise_code(vector::TS, selector));
        }
        self.read_system::<u64>(self.task.base.wrapping_add(offset))
    }

    pub(crate) fn enter_protected(&mut self, exception: Exception) -> Result<(), Fault> {
        let offset = u64::from(exception.vector) * 8;
        if offset + 7 > u64::from(self.idt.limit) {
            return Err(self.gate_fault(vector::GP, exception));
        }
        let gate = self.read_system::<u64>(self.idt.base.wrapping_add(offset))?;
        let kind = gate >> 40 & 0x1f;
        // 16-bit and task gates: nothing that is run here has them.
        if !matches!(kind, 0x6 | 0x7 | 0xe | 0xf) {
            return Err(self.gate_fault(vector::GP, exception));
        }
        let dpl = (gate >> 45 & 3) as u8;
        if exception.source == Source::Software && dpl < self.cpl {
            return Err(self.gate_fault(vector::GP, exception));
        }
        if gate >> 47 & 1 == 0 {
            return Err(self.gate_fault(vector::NP, exception));
        }
        let size: u64 = if kind & 8 != 0 { 4 } else { 2 };
        let mut target = gate & 0xffff;
        if size == 4 {
            target |= gate >> 32 & 0xffff_0000;
        }
        let selector = (gate >> 16) as u16;
        if selector & !3 == 0 {
            return Err(self.protection());
        }
        let code = self.descriptor(selector)?;
        let segment = code.segment(selector);
        let wrong = u32::from(selector & !3);
        if !segment.has(Segment::CODE_OR_DATA | Segment::CODE) || segment.dpl() > self.cpl {
            return Err(self.raise_code(vector::GP, wrong));
        }
        if !segment.has(Segment::PRESENT) {
            return Err(self.raise_code(vector::NP, wrong));
        }
        let cpl = if segment.has(Segment::CONFORMING) {
            self.cpl
        } else {
            segment.dpl()
        };
        let (flags, old) = (self.rflags(), self.segments);
        let (esp, rip) = (self.regs[gpr::RSP], self.rip);
        if flags & crate::flags::VM != 0 {
            // Virtual-8086 mode is not offered (see `flags`), so this cannot be.
            return Err(self.gate_fault(vector::GP, exception));
        }
        if cpl < self.cpl {
            let (stack, ss) = self.protected_stack(cpl)?;
            let descriptor = self.descriptor(ss)?;
            self.cpl = cpl;
            self.segments[seg::SS] = descriptor.segment(ss);
            self.update_mode();
            self.regs[gpr::RSP] = u64::from(stack);
            self.push_sized(size, u64::from(old[seg::SS].selector))?;
            self.push_sized(size, esp)?;
        }
        self.push_sized(size, flags)?;
        self.push_sized(size, u64::from(old[seg::CS].selector))?;
        self.push_sized(size, rip)?;
        if let Some(error) = exception.error {
            self.push_sized(size, u64::from(error))?;
        }
        self.load_code_segment(selector, code, cpl)?;
        self.rip = target;
        self.mask_flags(kind & 1 == 0);
        Ok(())
    }

    /// ESP and SS for a privilege level out of the 32- or 16-bit task state segment.
    pub(crate) fn protected_stack(&mut self, cpl: u8) -> Result<(u32, u16), Fault> {
        let wide = self.task.attributes & 8 != 0;
        let offset = if wide {
            4 + u64::from(cpl) * 8
        } else {
            2 + u64::from(cpl) * 4
        };
        if offset + 7 > u64::from(self.task.limit) {
            let selector = u32::from(self.task.selector & !3);
            return Err(self.raise_code(vector::TS, selector));
        }
        let address = self.task.base.wrapping_add(offset);
        Ok(if wide {
            (
                self.read_system::<u32>(address)?,
                self.read_system::<u16>(address + 4)?,
            )
        } else {
            (
                u32::from(self.read_system::<u16>(address)?),
                self.read_system::<u16>(address + 2)?,
            )
        })
    }

    /// Reads a table of the system's: with the supervisor's rights, whatever the privilege.
    pub(crate) fn read_system<W: crate::flags::Width>(&mut self, address: u64) -> Result<W, Fault> {
        self.read_as::<W>(address, Access::Read, false)
    }

    /// The descriptor of a selector, or #GP(selector) when it is outside its table.
    pub(crate) fn descriptor(&mut self, selector: u16) -> Result<Descriptor, Fault> {
        self.descriptor_or(selector, vector::GP)
    }

    /// Whether CPU mode bits say 64-bit code.
    pub(crate) fn long_code(&self) -> bool {
        self.mode & mode::CODE64 != 0
    }
}
