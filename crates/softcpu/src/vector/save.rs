//! Instructions that store and load the whole vector and floating-point state, and MXCSR (SDM volume 1, "Managing State Using the XSAVE Feature Set").
//! `xsave` has the standard format and the components x87 and SSE.

use crate::exception::{Fault, vector};
use crate::exec::attempt;
use crate::mmu::Access;
use crate::op::{Flow, Op};
use crate::state::{Cpu, ExtendedState, cr0, cr4, gpr};

/// Bits of MXCSR that exist, as `fxsave` says them.
const MXCSR_MASK: u32 = 0xffff;

/// Bytes of the image up to which it is stored: in 64-bit code there are 16 XMM registers.
const fn image_end(long: bool) -> usize {
    if long { 416 } else { 288 }
}

/// Bytes of the `xsave` area that are used: the image and the header.
const AREA: usize = 576;

/// Components.
const X87: u64 = 1;
const SSE: u64 = 2;

/// `ldmxcsr`.
pub(super) unsafe fn load_mxcsr(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = attempt!(cpu.address(&op.mem, 4, Access::Read));
    let value = attempt!(cpu.load::<u32>(address));
    if value & !MXCSR_MASK != 0 {
        cpu.protection();
        return Flow::Fault;
    }
    cpu.extended.set_mxcsr(value);
    Flow::Next
}

/// `stmxcsr`.
pub(super) unsafe fn store_mxcsr(cpu: &mut Cpu, op: &Op) -> Flow {
    let address = attempt!(cpu.address(&op.mem, 4, Access::Write));
    let value = cpu.extended.mxcsr();
    attempt!(cpu.store(address, value));
    Flow::Next
}

impl Cpu {
    /// The address of a state area; #GP when it is not aligned.
    fn area(&mut self, op: &Op, bytes: u64, alignment: u64, access: Access) -> Result<u64, Fault> {
        let address = self.address(&op.mem, bytes, access)?;
        if address % alignment != 0 {
            return Err(self.protection());
        }
        Ok(address)
    }
}

impl ExtendedState {
    /// The image as the guest's instruction stores it: `wide` with 64-bit addresses (REX.W).
    fn image(&self, wide: bool) -> [u8; 512] {
        let mut image = self.legacy;
        if !wide {
            // Selectors of the last instruction and operand are not kept, as CPUID could say (FDP_EXCPTN_ONLY, FCS and FDS deprecated).
            image[12..16].fill(0);
            image[20..24].fill(0);
        }
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        image
    }

    /// Takes the x87 part of an image.
    fn load_x87(&mut self, image: &[u8; 512], wide: bool) {
        self.legacy[..24].copy_from_slice(&image[..24]);
        if !wide {
            self.legacy[12..16].fill(0);
            self.legacy[20..24].fill(0);
        }
        self.legacy[32..160].copy_from_slice(&image[32..160]);
        self.settle();
    }
}

fn mxcsr(image: &[u8; 512]) -> u32 {
    u32::from_le_bytes([image[24], image[25], image[26], image[27]])
}

/// `fxsave`; `extra` 1 with REX.W.
pub(super) unsafe fn fxsave(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.cr0 & (cr0::TS | cr0::EM) != 0 {
        cpu.raise(vector::NM);
        return Flow::Fault;
    }
    let address = attempt!(cpu.area(op, 512, 16, Access::Write));
    let image = cpu.extended.image(op.extra == 1);
    let end = image_end(cpu.long_code());
    // The whole area must be writable, though its end is left alone.
    attempt!(cpu.probe_write(address, 512));
    attempt!(cpu.write_bytes(address, &image[..end]));
    Flow::Next
}

/// `fxrstor`; `extra` 1 with REX.W.
pub(super) unsafe fn fxrstor(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.cr0 & (cr0::TS | cr0::EM) != 0 {
        cpu.raise(vector::NM);
        return Flow::Fault;
    }
    let address = attempt!(cpu.area(op, 512, 16, Access::Read));
    let mut image = [0; 512];
    attempt!(cpu.read_bytes(address, &mut image));
    if mxcsr(&image) & !MXCSR_MASK != 0 {
        cpu.protection();
        return Flow::Fault;
    }
    let end = image_end(cpu.long_code());
    cpu.extended.load_x87(&image, op.extra == 1);
    cpu.extended.set_mxcsr(mxcsr(&image));
    cpu.extended.legacy[160..end].copy_from_slice(&image[160..end]);
    Flow::Next
}

/// What `xsave` and `xrstor` have to look at first. The components that are asked for.
fn components(cpu: &mut Cpu) -> Result<u64, Fault> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.undefined());
    }
    cpu.check_switched()?;
    let asked = cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xffff_ffff;
    Ok(asked & cpu.xcr0)
}

/// `xsave`, `xsaveopt`, which stores everything, too; `extra` 1 with REX.W.
pub(super) unsafe fn xsave(cpu: &mut Cpu, op: &Op) -> Flow {
    let asked = attempt!(components(cpu));
    let address = attempt!(cpu.area(op, AREA as u64, 64, Access::Write));
    let mut area = [0; AREA];
    attempt!(cpu.probe_write(address, AREA as u64));
    attempt!(cpu.read_bytes(address, &mut area));
    let image = cpu.extended.image(op.extra == 1);
    if asked & X87 != 0 {
        area[..24].copy_from_slice(&image[..24]);
        area[32..160].copy_from_slice(&image[32..160]);
    }
    if asked & SSE != 0 {
        area[24..32].copy_from_slice(&image[24..32]);
        let end = image_end(cpu.long_code());
        area[160..end].copy_from_slice(&image[160..end]);
    }
    // No component is ever told as being in its initial state.
    area[512] = (u64::from(area[512]) & !asked | asked) as u8;
    attempt!(cpu.write_bytes(address, &area[..416]));
    attempt!(cpu.write_bytes(address.wrapping_add(512), &area[512..520]));
    Flow::Next
}

/// `xrstor`; `extra` 1 with REX.W.
pub(super) unsafe fn xrstor(cpu: &mut Cpu, op: &Op) -> Flow {
    let asked = attempt!(components(cpu));
    let address = attempt!(cpu.area(op, AREA as u64, 64, Access::Read));
    let mut area = [0; AREA];
    attempt!(cpu.read_bytes(address, &mut area));
    let (image, header) = area.split_at(512);
    let mut legacy = [0; 512];
    legacy.copy_from_slice(image);
    let mut word = [0; 8];
    word.copy_from_slice(&header[..8]);
    let present = u64::from_le_bytes(word);
    // The standard format only; components beyond XCR0 cannot be.
    let wrong = present & !cpu.xcr0 != 0
        || header[8..24].iter().any(|&byte| byte != 0)
        || (asked & SSE != 0 && mxcsr(&legacy) & !MXCSR_MASK != 0);
    if wrong {
        cpu.protection();
        return Flow::Fault;
    }
    if asked & X87 != 0 {
        if present & X87 != 0 {
            cpu.extended.load_x87(&legacy, op.extra == 1);
        } else {
            cpu.extended.initialize_x87();
            cpu.extended.legacy[32..160].fill(0);
        }
    }
    if asked & SSE != 0 {
        cpu.extended.set_mxcsr(mxcsr(&legacy));
        let end = image_end(cpu.long_code());
        if present & SSE != 0 {
            cpu.extended.legacy[160..end].copy_from_slice(&legacy[160..end]);
        } else {
            cpu.extended.legacy[160..end].fill(0);
        }
    }
    Flow::Next
}
