//! MMX and SSE instructions.

use iced_x86::{Instruction, Mnemonic};

use super::thunk::{self, Frame, Operand, Thunk, Traits};
use super::{Buffer, Group, ST, XMM, register};
use crate::exception::{Fault, vector};
use crate::exec::attempt;
use crate::flags;
use crate::mmu::Access;
use crate::op::{Flow, Handler, Mem, Op};
use crate::state::{Cpu, cr0, cr4, gpr};

/// `Op::extra` of handlers here: what the instruction needs.
mod needs {
    /// It depends on MXCSR and sets its flags.
    pub const MXCSR: u16 = 1;
    pub const FLAGS: u16 = 1 << 1;
    /// MMX registers: no x87 exception may be pending; x87 goes into MMX mode.
    pub const MMX: u16 = 1 << 2;
    /// Its memory operand must be aligned.
    pub const ALIGNED: u16 = 1 << 3;
    /// XMM0 is a third operand.
    pub const BLEND: u16 = 1 << 4;
    /// `pcmpestri` and its relatives.
    pub const TEXT: u16 = 1 << 5;
    /// The result of such is a mask in XMM0.
    pub const MASK: u16 = 1 << 6;
    /// Shifts of the kinds of the operands (`what`).
    pub const FIRST: u32 = 8;
    pub const SECOND: u32 = 11;
}

/// `Op::imm`: where the code is, and of operations whose results can be too small for their format, what their elements are.
const ADDRESS: u64 = (1 << 56) - 1;
const SINGLE: u64 = 1 << 56;
const DOUBLE: u64 = 1 << 57;
/// Only the first element is a result.
const SCALAR: u64 = 1 << 58;

/// The elements of a result that can be denormal without being inexact.
fn elements(mnemonic: Mnemonic) -> u64 {
    use Mnemonic as M;
    match mnemonic {
        M::Addps
        | M::Subps
        | M::Mulps
        | M::Divps
        | M::Cvtpd2ps
        | M::Dpps
        | M::Addsubps
        | M::Haddps
        | M::Hsubps => SINGLE,
        M::Addss | M::Subss | M::Mulss | M::Divss | M::Cvtsd2ss => SINGLE | SCALAR,
        M::Addpd | M::Subpd | M::Mulpd | M::Divpd | M::Dppd | M::Addsubpd | M::Haddpd | M::Hsubpd => DOUBLE,
        M::Addsd | M::Subsd | M::Mulsd | M::Divsd => DOUBLE | SCALAR,
        _ => 0,
    }
}

/// Whether a result has a denormal element.
fn tiny(result: [u8; 16], elements: u64) -> bool {
    let count = if elements & SCALAR != 0 { 1 } else { 4 };
    if elements & SINGLE != 0 {
        let (words, _) = result.as_chunks::<4>();
        return words
            .iter()
            .take(count)
            .any(|&word| f32::from_le_bytes(word).is_subnormal());
    }
    let (words, _) = result.as_chunks::<8>();
    elements & DOUBLE != 0
        && words
            .iter()
            .take(count)
            .any(|&word| f64::from_le_bytes(word).is_subnormal())
}

/// Kinds of operands in `Op::extra`.
mod what {
    pub const XMM: u16 = 0;
    pub const MM: u16 = 1;
    pub const GENERAL: u16 = 2;
    pub const MEMORY: u16 = 3;
    pub const NONE: u16 = 4;
}

fn kind(operand: Operand) -> (u16, u8) {
    match operand {
        Operand::Xmm(number) => (what::XMM, XMM + number),
        Operand::Mm(number) => (what::MM, ST + number),
        Operand::General(number, _) => (what::GENERAL, number),
        Operand::Memory => (what::MEMORY, 0),
        Operand::None => (what::NONE, XMM),
    }
}

fn uses_mxcsr(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Addps
            | M::Addpd
            | M::Addss
            | M::Addsd
            | M::Subps
            | M::Subpd
            | M::Subss
            | M::Subsd
            | M::Mulps
            | M::Mulpd
            | M::Mulss
            | M::Mulsd
            | M::Divps
            | M::Divpd
            | M::Divss
            | M::Divsd
            | M::Sqrtps
            | M::Sqrtpd
            | M::Sqrtss
            | M::Sqrtsd
            | M::Minps
            | M::Minpd
            | M::Minss
            | M::Minsd
            | M::Maxps
            | M::Maxpd
            | M::Maxss
            | M::Maxsd
            | M::Cmpps
            | M::Cmppd
            | M::Cmpss
            | M::Cmpsd
            | M::Comiss
            | M::Comisd
            | M::Ucomiss
            | M::Ucomisd
            | M::Cvtdq2ps
            | M::Cvtdq2pd
            | M::Cvtpd2dq
            | M::Cvttpd2dq
            | M::Cvtpd2ps
            | M::Cvtps2pd
            | M::Cvtps2dq
            | M::Cvttps2dq
            | M::Cvtsd2si
            | M::Cvttsd2si
            | M::Cvtss2si
            | M::Cvttss2si
            | M::Cvtsi2sd
            | M::Cvtsi2ss
            | M::Cvtss2sd
            | M::Cvtsd2ss
            | M::Cvtpi2ps
            | M::Cvtpi2pd
            | M::Cvtps2pi
            | M::Cvttps2pi
            | M::Cvtpd2pi
            | M::Cvttpd2pi
            | M::Roundps
            | M::Roundpd
            | M::Roundss
            | M::Roundsd
            | M::Dpps
            | M::Dppd
            | M::Addsubps
            | M::Addsubpd
            | M::Haddps
            | M::Haddpd
            | M::Hsubps
            | M::Hsubpd
    )
}

/// Memory operands of 16 bytes must be aligned, but for these.
fn unaligned(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
    )
}

/// The handler of an instruction, and what it is refused by.
pub(super) fn lower(instruction: &Instruction, op: &mut Op, mode: u8) -> Option<(Group, Handler)> {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    match mnemonic {
        M::Emms => return Some((Group::Mmx, leave_mmx)),
        M::Maskmovdqu | M::Maskmovq => return mask_move(instruction, op, mode),
        _ => {}
    }
    let first = Operand::of(instruction, 0)?;
    let second = Operand::of(instruction, 1)?;
    let memory = first == Operand::Memory || second == Operand::Memory;
    // `cvtpi2ps` and `cvtpi2pd` with memory have nothing to do with MMX.
    let mmx = matches!(first, Operand::Mm(_)) || matches!(second, Operand::Mm(_));
    let group = if mmx { Group::Mmx } else { Group::Sse };
    let bytes = if memory {
        instruction.memory_size().size()
    } else {
        0
    };
    if bytes > 16 {
        return None;
    }
    let aligned = bytes == 16 && !unaligned(instruction);
    let ((first_kind, dst), (second_kind, src)) = (kind(first), kind(second));
    (op.dst, op.src, op.third) = (dst, src, bytes as u8);
    op.extra = if aligned { needs::ALIGNED } else { 0 };
    if let Some(handler) = super::moves::lower(instruction, first, second, op) {
        return Some((group, handler));
    }
    let traits = Traits {
        mxcsr: uses_mxcsr(mnemonic),
        flags: matches!(
            mnemonic,
            M::Comiss | M::Comisd | M::Ucomiss | M::Ucomisd | M::Ptest
        ),
        blend: matches!(mnemonic, M::Blendvps | M::Blendvpd | M::Pblendvb),
        text: matches!(
            mnemonic,
            M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm | M::Pcmpestri64 | M::Pcmpestrm64
        ),
    };
    op.imm = thunk::vector(instruction, first, second, traits)? as u64 | elements(mnemonic);
    let bit = |set: bool, bit: u16| if set { bit } else { 0 };
    op.extra |= bit(traits.mxcsr, needs::MXCSR)
        | bit(traits.flags, needs::FLAGS)
        | bit(mmx, needs::MMX)
        | bit(traits.blend, needs::BLEND)
        | bit(traits.text, needs::TEXT)
        | bit(
            matches!(mnemonic, M::Pcmpestrm | M::Pcmpistrm | M::Pcmpestrm64),
            needs::MASK,
        )
        | first_kind << needs::FIRST
        | second_kind << needs::SECOND;
    let plain = !traits.framed() && !traits.blend && !mmx;
    let handler: Handler = match (plain, first_kind, second_kind) {
        (true, what::XMM, what::XMM | what::NONE) => registers,
        (true, what::XMM, what::MEMORY) => load,
        _ => general,
    };
    Some((group, handler))
}

/// The code of an instruction.
///
/// # Safety
/// `op.imm` is what `thunk` made.
#[inline(always)]
unsafe fn code(op: &Op) -> Thunk {
    // SAFETY: the caller's. Addresses of programs end below bit 48.
    unsafe { std::mem::transmute::<usize, Thunk>((op.imm & ADDRESS) as usize) }
}

/// Two XMM registers, nothing else.
unsafe fn registers(cpu: &mut Cpu, op: &Op) -> Flow {
    let (dst, src) = (register(cpu, op.dst), register(cpu, op.src));
    // SAFETY: `lower` made the code for operands like these; both are sixteen bytes of the image.
    unsafe { code(op)(dst, src, std::ptr::null_mut()) };
    Flow::Next
}

/// An XMM register and memory, nothing else.
unsafe fn load(cpu: &mut Cpu, op: &Op) -> Flow {
    let mut buffer = Buffer([0; 16]);
    let src = attempt!(cpu.vector_source(op, &mut buffer));
    let dst = register(cpu, op.dst);
    // SAFETY: as above; the source has as many readable bytes as the instruction reads, aligned if it wants that.
    unsafe { code(op)(dst, src, std::ptr::null_mut()) };
    Flow::Next
}

impl Cpu {
    /// The linear address of a vector instruction's memory operand (`third` bytes); #GP where it must be aligned and is not.
    #[inline(always)]
    fn vector_address(&mut self, op: &Op, access: Access) -> Result<u64, Fault> {
        let address = self.address(&op.mem, u64::from(op.third), access)?;
        if op.extra & needs::ALIGNED != 0 && address & 15 != 0 {
            return Err(self.protection());
        }
        Ok(address)
    }

    /// Where the memory operand can be read: in the guest's RAM, or out of `buffer`.
    #[inline(always)]
    pub(super) fn vector_source(&mut self, op: &Op, buffer: &mut Buffer) -> Result<*const u8, Fault> {
        let address = self.vector_address(op, Access::Read)?;
        match self.direct(address, u64::from(op.third), Access::Read) {
            Some(host) => Ok(host),
            None => self.vector_source_slow(op, address, buffer),
        }
    }

    #[cold]
    #[inline(never)]
    fn vector_source_slow(&mut self, op: &Op, address: u64, buffer: &mut Buffer) -> Result<*const u8, Fault> {
        self.read_bytes(address, &mut buffer.0[..usize::from(op.third)])?;
        Ok(buffer.0.as_ptr())
    }

    /// Where the memory operand can be written: in the guest's RAM, or, with an address, in `buffer`, from which it is to be written there.
    #[inline(always)]
    pub(super) fn vector_target(
        &mut self,
        op: &Op,
        buffer: &mut Buffer,
    ) -> Result<(*mut u8, Option<u64>), Fault> {
        let address = self.vector_address(op, Access::Write)?;
        match self.direct(address, u64::from(op.third), Access::Write) {
            Some(host) => Ok((host, None)),
            None => self.vector_target_slow(op, address, buffer),
        }
    }

    /// Faults come before the instruction does anything; afterwards, the translation may be known.
    #[cold]
    #[inline(never)]
    fn vector_target_slow(
        &mut self,
        op: &Op,
        address: u64,
        buffer: &mut Buffer,
    ) -> Result<(*mut u8, Option<u64>), Fault> {
        self.probe_write(address, u64::from(op.third))?;
        Ok(match self.direct(address, u64::from(op.third), Access::Write) {
            Some(host) => (host, None),
            None => (buffer.0.as_mut_ptr(), Some(address)),
        })
    }

    /// Puts x87 into the mode that MMX instructions leave: registers in their physical order, all of them valid.
    fn enter_mmx(&mut self) {
        self.extended.clear_top();
        self.extended.legacy[4] = 0xff;
    }

    /// The exceptions that a floating-point operation had: they are kept in MXCSR; those that are not masked are raised.
    #[inline(always)]
    fn take_exceptions(&mut self, after: u32) -> Result<(), Fault> {
        let had = after & 0x3f;
        let mxcsr = self.extended.mxcsr();
        if had & !(mxcsr & mxcsr >> 7) == 0 {
            return Ok(());
        }
        self.take_new_exceptions(had, mxcsr)
    }

    #[cold]
    fn take_new_exceptions(&mut self, had: u32, mxcsr: u32) -> Result<(), Fault> {
        let unmasked = had & !(mxcsr >> 7) & 0x3f;
        // An unmasked exception of the operands ends the instruction before there is a result to have exceptions of its own.
        let had = if unmasked & 7 != 0 { had & 7 } else { had };
        self.extended.set_mxcsr(mxcsr | had);
        if unmasked == 0 {
            return Ok(());
        }
        Err(if self.cr4 & cr4::OSXMMEXCPT != 0 {
            self.raise(vector::XM)
        } else {
            self.undefined()
        })
    }
}

/// Everything that is not so plain.
unsafe fn general(cpu: &mut Cpu, op: &Op) -> Flow {
    let extra = op.extra;
    let (first, second) = (extra >> needs::FIRST & 7, extra >> needs::SECOND & 7);
    if extra & needs::MMX != 0 {
        attempt!(cpu.check_x87());
    }
    let mut buffer = Buffer([0; 16]);
    let mut elsewhere = None;
    let mut memory = std::ptr::null_mut();
    if first == what::MEMORY {
        if second == what::MM {
            // Even if the store faults.
            cpu.extended.clear_top();
        }
        (memory, elsewhere) = attempt!(cpu.vector_target(op, &mut buffer));
    } else if second == what::MEMORY {
        memory = attempt!(cpu.vector_source(op, &mut buffer)).cast_mut();
    }
    if extra & needs::MMX != 0 {
        cpu.enter_mmx();
    }
    let mut place = |kind: u16, number: u8| match kind {
        what::MEMORY => memory,
        // SAFETY: a general register's number.
        what::GENERAL => unsafe { cpu.regs.as_mut_ptr().add(usize::from(number)).cast() },
        _ => register(cpu, number),
    };
    let (dst, src) = (place(first, op.dst), place(second, op.src));
    if extra & (needs::MXCSR | needs::FLAGS | needs::TEXT) == 0 {
        let third = if extra & needs::BLEND != 0 {
            register(cpu, XMM)
        } else {
            std::ptr::null_mut()
        };
        // SAFETY: `lower` made the code for operands of these kinds.
        unsafe { code(op)(dst, src, third) };
    } else {
        let mut frame = Frame::new();
        let mxcsr = cpu.extended.mxcsr();
        // All masked, no flags; results are flushed to zero only while underflow is masked.
        frame.before = mxcsr & !0x3f | 0x1f80;
        if mxcsr & 0x800 == 0 {
            frame.before &= !0x8000;
        }
        (frame.rax, frame.rdx) = (cpu.regs[gpr::RAX], cpu.regs[gpr::RDX]);
        // SAFETY: as above, and the code is one that wants a frame.
        unsafe { code(op)(dst, src, (&raw mut frame).cast()) };
        if extra & needs::MXCSR != 0 {
            if mxcsr & 0x800 == 0 && tiny(frame.result, op.imm) {
                // Masked, underflow is told only of what is inexact; unmasked, of everything too small.
                frame.after |= 0x10;
            }
            attempt!(cpu.take_exceptions(frame.after));
        }
        if extra & needs::TEXT != 0 {
            if extra & needs::MASK != 0 {
                cpu.extended.legacy[160..176].copy_from_slice(&frame.result);
            } else {
                cpu.regs[gpr::RCX] = frame.rcx;
            }
        } else if extra & needs::FLAGS == 0 {
            let bytes = if first == what::XMM { 16 } else { 8 };
            // SAFETY: the first operand is a register of at least so many bytes.
            unsafe { std::ptr::copy_nonoverlapping(frame.result.as_ptr(), dst, bytes) };
        }
        if extra & (needs::FLAGS | needs::TEXT) != 0 {
            cpu.status = frame.flags & flags::STATUS;
        }
    }
    if first == what::MM {
        // What is written to an MMX register has the exponent of a NaN.
        // SAFETY: an MMX register is the first eight of sixteen bytes.
        unsafe { dst.add(8).cast::<u16>().write_unaligned(0xffff) };
    }
    if let Some(address) = elsewhere {
        attempt!(cpu.write_bytes(address, &buffer.0[..usize::from(op.third)]));
    }
    Flow::Next
}

/// `emms`.
unsafe fn leave_mmx(cpu: &mut Cpu, _: &Op) -> Flow {
    attempt!(cpu.check_x87());
    cpu.extended.legacy[4] = 0;
    Flow::Next
}

/// An SSE instruction while CR4.OSFXSR is clear, or CR0.EM or CR0.TS is set.
pub(super) unsafe fn refused(cpu: &mut Cpu, _: &Op) -> Flow {
    let undefined = cpu.cr0 & cr0::EM != 0 || cpu.cr4 & cr4::OSFXSR == 0;
    cpu.raise(if undefined { vector::UD } else { vector::NM });
    Flow::Fault
}

/// An MMX instruction while CR0.EM or CR0.TS is set.
pub(super) unsafe fn refused_mmx(cpu: &mut Cpu, _: &Op) -> Flow {
    let undefined = cpu.cr0 & cr0::EM != 0;
    cpu.raise(if undefined { vector::UD } else { vector::NM });
    Flow::Fault
}

fn mask_move(instruction: &Instruction, op: &mut Op, mode: u8) -> Option<(Group, Handler)> {
    let mmx = instruction.mnemonic() == Mnemonic::Maskmovq;
    (op.dst, op.src) = (
        kind(Operand::of(instruction, 1)?).1,
        kind(Operand::of(instruction, 2)?).1,
    );
    op.mem = Mem {
        base: gpr::RDI as u8,
        ..crate::decode::string_memory(instruction, mode)
    };
    op.third = if mmx { 8 } else { 16 };
    op.extra = if mmx { needs::MMX } else { 0 };
    Some((if mmx { Group::Mmx } else { Group::Sse }, move_masked))
}

/// `maskmovdqu` and `maskmovq`: bytes of `dst` are stored where bit 7 of the same byte of `src` is set.
unsafe fn move_masked(cpu: &mut Cpu, op: &Op) -> Flow {
    let mmx = op.extra & needs::MMX != 0;
    if mmx {
        attempt!(cpu.check_x87());
    }
    let bytes = u64::from(op.third);
    let address = attempt!(cpu.address(&op.mem, bytes, Access::Write));
    if mmx {
        cpu.enter_mmx();
    }
    // All bytes or none. Eight at a time are looked at, the upper ones first, whatever the mask says, as processors do.
    for half in (0..bytes / 8).rev() {
        attempt!(cpu.probe_write(address.wrapping_add(half * 8), 8));
    }
    let read = |cpu: &mut Cpu, number: u8| {
        // SAFETY: sixteen bytes of the image.
        unsafe { register(cpu, number).cast::<[u8; 16]>().read() }
    };
    let (values, mask) = (read(cpu, op.dst), read(cpu, op.src));
    let chosen = |&index: &u64| mask[index as usize] & 0x80 != 0;
    for index in (0..bytes).filter(chosen) {
        attempt!(cpu.store(address.wrapping_add(index), values[index as usize]));
    }
    Flow::Next
}
