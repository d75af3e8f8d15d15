//! Segment registers, descriptors, and the mode that follows from them (SDM volume 3, "Protected-Mode Memory Management").

use crate::exception::{Fault, vector};
use crate::state::{Cpu, Segment, cr0, cr4, efer, gpr, mode, seg};

/// An entry of the GDT or LDT, as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub low: u64,
    /// Where it is, to set its accessed or busy bit.
    pub address: u64,
}

impl Descriptor {
    /// The segment register's hidden part that it stands for.
    pub(crate) fn segment(&self, selector: u16) -> Segment {
        let low = self.low;
        let mut limit = (low & 0xffff | low >> 32 & 0xf_0000) as u32;
        if low >> 55 & 1 != 0 {
            limit = limit << 12 | 0xfff;
        }
        Segment {
            base: low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000,
            limit,
            selector,
            attributes: (low >> 40 & 0xff | low >> 40 & 0xf000) as u16,
        }
    }
}

impl Cpu {
    /// The descriptor of a selector that is not null; a fault with `code` when it is outside its table.
    pub(crate) fn descriptor_or(&mut self, selector: u16, code: u8) -> Result<Descriptor, Fault> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdt.base, u32::from(self.gdt.limit))
        } else {
            if self.ldt.attributes == 0 {
                return Err(self.raise_code(code, u32::from(selector & !3)));
            }
            (self.ldt.base, self.ldt.limit)
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Err(self.raise_code(code, u32::from(selector & !3)));
        }
        let address = base.wrapping_add(u64::from(offset));
        Ok(Descriptor {
            low: self.read_system::<u64>(address)?,
            address,
        })
    }

    /// The second half of a descriptor of 16 bytes (LDT and TSS in long mode): bits 32 to 63 of the base.
    pub(crate) fn upper_base(&mut self, descriptor: &Descriptor, selector: u16) -> Result<u64, Fault> {
        if u32::from(selector & !7) + 15 > u32::from(self.gdt.limit) {
            return Err(self.raise_code(vector::GP, u32::from(selector & !3)));
        }
        let high = self.read_system::<u64>(descriptor.address.wrapping_add(8))?;
        Ok(high << 32)
    }

    /// Sets the accessed bit of a code or data segment where it is not set.
    fn set_accessed(&mut self, descriptor: &Descriptor) -> Result<(), Fault> {
        if descriptor.low >> 40 & 1 == 0 {
            let byte = (descriptor.low >> 40) as u8 | 1;
            self.write_as::<u8>(descriptor.address.wrapping_add(5), byte, false)?;
        }
        Ok(())
    }

    /// `mov` or `pop` to ES, SS, DS, FS, GS.
    pub(crate) fn load_segment(&mut self, index: usize, selector: u16) -> Result<(), Fault> {
        if self.mode & mode::REAL != 0 {
            let segment = &mut self.segments[index];
            segment.selector = selector;
            segment.base = u64::from(selector) << 4;
            if index == seg::SS {
                self.update_mode();
            }
            return Ok(());
        }
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            if index == seg::SS && (!self.long_code() || self.cpl == 3 || rpl != self.cpl) {
                return Err(self.protection());
            }
            let base = self.segments[index].base;
            self.segments[index] = Segment {
                selector,
                // Intel's processors clear the base of FS and GS with the selector.
                base: if index == seg::SS { base } else { 0 },
                ..Segment::default()
            };
            return Ok(());
        }
        let descriptor = self.descriptor(selector)?;
        let segment = descriptor.segment(selector);
        let wrong = u32::from(selector & !3);
        if index == seg::SS {
            if !segment.has(Segment::CODE_OR_DATA | Segment::READ_WRITE)
                || segment.has(Segment::CODE)
                || rpl != self.cpl
                || segment.dpl() != self.cpl
            {
                return Err(self.raise_code(vector::GP, wrong));
            }
            if !segment.has(Segment::PRESENT) {
                return Err(self.raise_code(vector::SS, wrong));
            }
        } else {
            let readable = segment.has(Segment::CODE_OR_DATA)
                && (!segment.has(Segment::CODE) || segment.has(Segment::READ_WRITE));
            let conforming = segment.has(Segment::CODE | Segment::CONFORMING);
            if !readable || (!conforming && segment.dpl() < rpl.max(self.cpl)) {
                return Err(self.raise_code(vector::GP, wrong));
            }
            if !segment.has(Segment::PRESENT) {
                return Err(self.raise_code(vector::NP, wrong));
            }
        }
        self.set_accessed(&descriptor)?;
        self.segments[index] = segment;
        if index == seg::SS {
            self.update_mode();
        }
        Ok(())
    }

    /// Makes a descriptor that was checked the code segment, at privilege `cpl`.
    pub(crate) fn load_code_segment(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
        cpl: u8,
    ) -> Result<(), Fault> {
        self.set_accessed(&descriptor)?;
        let mut segment = descriptor.segment(selector);
        segment.selector = selector & !3 | u16::from(cpl);
        self.segments[seg::CS] = segment;
        self.cpl = cpl;
        self.update_mode();
        Ok(())
    }

    /// Computes [`Cpu::mode`] anew, after a change of CR0, EFER, CS, SS or the privilege.
    pub(crate) fn update_mode(&mut self) {
        let mut new = 0;
        if self.efer & efer::LMA != 0 {
            new |= mode::LONG;
        }
        let code = &self.segments[seg::CS];
        if self.cr0 & cr0::PE == 0 {
            new |= mode::REAL;
            if code.has(Segment::BIG) {
                new |= mode::CODE32;
            }
        } else if new & mode::LONG != 0 && code.has(Segment::LONG) {
            new |= mode::CODE64;
        } else if code.has(Segment::BIG) {
            new |= mode::CODE32;
        }
        if self.segments[seg::SS].has(Segment::BIG) {
            new |= mode::STACK32;
        }
        if self.cpl == 3 {
            new |= mode::USER;
        }
        if self.cr0 & (cr0::TS | cr0::EM) != 0 {
            new |= mode::NO_FPU;
        }
        if self.cr4 & cr4::OSFXSR == 0 {
            new |= mode::NO_SSE;
        }
        self.mode = new;
    }

    /// Bytes of a stack slot and of the stack pointer as the code's mode has them.
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.mode & mode::CODE64 != 0 {
            u64::MAX
        } else if self.mode & mode::STACK32 != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// The linear address of an offset in the stack segment.
    pub(crate) fn stack_address(
        &mut self,
        offset: u64,
        bytes: u64,
        access: crate::mmu::Access,
    ) -> Result<u64, Fault> {
        if self.mode & mode::CODE64 != 0 {
            return Ok(offset);
        }
        let offset = offset & self.stack_mask();
        self.segmented(seg::SS, offset, bytes, access)
    }

    /// Sets the part of RSP that the mode has.
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let old = self.regs[gpr::RSP];
        self.regs[gpr::RSP] = match mask {
            0xffff => old & !0xffff | value & 0xffff,
            _ => value & mask,
        };
    }

    /// Pushes `size` bytes (2, 4, 8).
    pub(crate) fn push_sized(&mut self, size: u64, value: u64) -> Result<(), Fault> {
        let pointer = self.regs[gpr::RSP].wrapping_sub(size);
        let address = self.stack_address(pointer, size, crate::mmu::Access::Write)?;
        match size {
            2 => self.store::<u16>(address, value as u16)?,
            4 => self.store::<u32>(address, value as u32)?,
            _ => self.store::<u64>(address, value)?,
        }
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// What lies `above` bytes above the top of the stack.
    pub(crate) fn peek_sized(&mut self, size: u64, above: u64) -> Result<u64, Fault> {
        let pointer = self.regs[gpr::RSP].wrapping_add(above);
        let address = self.stack_address(pointer, size, crate::mmu::Access::Read)?;
        Ok(match size {
            2 => u64::from(self.load::<u16>(address)?),
            4 => u64::from(self.load::<u32>(address)?),
            _ => self.load::<u64>(address)?,
        })
    }

    pub(crate) fn pop_sized(&mut self, size: u64) -> Result<u64, Fault> {
        let value = self.peek_sized(size, 0)?;
        let pointer = self.regs[gpr::RSP].wrapping_add(size);
        self.set_stack_pointer(pointer);
        Ok(value)
    }

    /// Loads CR0; the mode follows. The caller has checked privilege.
    pub(crate) fn set_cr0(&mut self, value: u64) -> Result<(), Fault> {
        let known = cr0::PE
            | cr0::MP
            | cr0::EM
            | cr0::TS
            | cr0::ET
            | cr0::NE
            | cr0::WP
            | cr0::AM
            | cr0::NW
            | cr0::CD
            | cr0::PG;
        let value = value & known | cr0::ET;
        if (value & cr0::PG != 0 && value & cr0::PE == 0) || (value & cr0::NW != 0 && value & cr0::CD == 0) {
            return Err(self.protection());
        }
        let was = self.cr0;
        if value & cr0::PG != 0 && was & cr0::PG == 0 && self.efer & efer::LME != 0 {
            if self.cr4 & cr4::PAE == 0 || self.segments[seg::CS].has(Segment::LONG) {
                return Err(self.protection());
            }
            self.efer |= efer::LMA;
        }
        if value & cr0::PG == 0 && was & cr0::PG != 0 {
            if self.long_code() {
                return Err(self.protection());
            }
            self.efer &= !efer::LMA;
        }
        self.cr0 = value;
        if (was ^ value) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.mmu.flush();
        }
        if value & cr0::PE == 0 {
            self.cpl = 0;
        }
        self.update_mode();
        Ok(())
    }

    /// Loads CR4.
    pub(crate) fn set_cr4(&mut self, value: u64) -> Result<(), Fault> {
        let known = cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT
            | cr4::FSGSBASE
            | cr4::OSXSAVE
            | cr4::SMEP
            | cr4::LA57
            | 1 << 8;
        if value & !known != 0 && value & !known & !(cr4::UMIP | 3) != 0 {
            return Err(self.protection());
        }
        let long = self.efer & efer::LMA != 0;
        if long && (value & cr4::PAE == 0 || (value ^ self.cr4) & cr4::LA57 != 0) {
            return Err(self.protection());
        }
        let was = self.cr4;
        self.cr4 = value;
        let changed = was ^ value;
        if changed & (cr4::PSE | cr4::PAE | cr4::SMEP | cr4::LA57) != 0 || changed & was & cr4::PGE != 0 {
            self.mmu.flush();
        } else if changed & cr4::PGE != 0 {
            // What was remembered while nothing could be global.
            self.mmu.flush_local();
        }
        Ok(())
    }
}
