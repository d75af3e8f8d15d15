//! Instructions that are themselves in the host, with their operands replaced.

use std::mem::offset_of;

use iced_x86::{Code as C, Instruction, Mnemonic, OpKind, Register};

use super::super::emit::{Emitted, Unencodable, at, field};
use super::{Flags, Lowering, STATUS_FIELD, Step, flag_bits, mapped, register_field, resident, sized};
use crate::decode::number;
use crate::op::Op;
use crate::state::{Cpu, mode};

use Register::{R13, R13D, R13L, R13W, R14, R14D, R14L, R14W};

impl Lowering<'_> {
    /// `div` of 32 and 64 bits: itself, unless the quotient does not fit. Flags stay what they are.
    pub(super) fn divide(&mut self, step: &Step, op: &Op) -> Emitted {
        let instruction = &step.instruction;
        let wide = instruction.code() == C::Div_rm64;
        let mut slow = vec![];
        if instruction.op0_kind() == OpKind::Memory {
            let bytes = if wide { 8 } else { 4 };
            slow.push(self.memory(instruction, op, bytes, false, step.live)?);
            let code = if wide { C::Mov_r64_rm64 } else { C::Mov_r32_rm32 };
            self.emitter.push(&Instruction::with2(
                code,
                if wide { R14 } else { R14D },
                at(R13, 0),
            )?)?;
        } else {
            self.clobber_flags(step.live)?;
            self.read_register(R14, instruction.op0_register())?;
        }
        // Also catches a divisor of zero.
        let (compare, divide, high, divisor) = if wide {
            (C::Cmp_r64_rm64, C::Div_rm64, Register::RDX, R14)
        } else {
            (C::Cmp_r32_rm32, C::Div_rm32, Register::EDX, R14D)
        };
        self.emitter.push(&Instruction::with2(compare, high, divisor)?)?;
        slow.push(self.emitter.jump(C::Jae_rel32_64)?);
        self.emitter.push(&Instruction::with1(divide, divisor)?)?;
        let back = self.emitter.position();
        for from in slow {
            self.slow(from, back, op, false);
        }
        Ok(())
    }

    /// An instruction that is itself in the host, its operands replaced. False: not here.
    pub(super) fn copy(&mut self, step: &Step, op: &Op) -> Emitted<bool> {
        let guest = &step.instruction;
        let mut host = *guest;
        let count = guest.op_count();
        let vector = self.vector(guest);
        let mut memory = None;
        for operand in 0..count {
            match guest.op_kind(operand) {
                OpKind::Register => {
                    let register = guest.op_register(operand);
                    let high = matches!(
                        register,
                        Register::AH | Register::BH | Register::CH | Register::DH
                    );
                    if high || !(register.is_gpr() || vector && register.is_xmm()) {
                        return Ok(false);
                    }
                }
                OpKind::Memory => memory = Some(operand),
                OpKind::Immediate8
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64 => {}
                _ => return Ok(false),
            }
        }
        if is_moffs(guest.code()) {
            return Ok(false);
        }
        // A string of bits lies around its address.
        let bits = matches!(
            guest.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        );
        if bits && memory.is_some() && guest.op1_kind() == OpKind::Register {
            return Ok(false);
        }
        let wanted = step.live | step.reads;
        let (mut slow, mut unaligned) = (None, None);
        if let Some(operand) = memory {
            let compares = matches!(guest.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt);
            let write = operand == 0 && !compares && !one_source(guest.mnemonic(), count);
            let bytes = guest.memory_size().size() as u32;
            // What the instruction replaces need not be saved, unless it also reads it.
            let keep = wanted & !(step.writes & !step.reads);
            slow = Some(self.memory(guest, op, bytes, write, keep)?);
            if vector && bytes == 16 && !takes_unaligned(guest.mnemonic()) {
                // #GP is the interpreter's to raise.
                self.emitter
                    .push(&Instruction::with2(C::Test_rm8_imm8, R13L, 15)?)?;
                unaligned = Some(self.emitter.jump(C::Jne_rel32_64)?);
            }
            host.set_memory_base(R13);
            host.set_memory_index(Register::None);
            host.set_memory_index_scale(1);
            host.set_memory_displacement64(0);
            host.set_memory_displ_size(0);
            host.set_segment_prefix(Register::None);
        }
        // Registers that stay in memory take R14, and R13 where no address is in it.
        let mut temporaries: [Option<(u8, Register)>; 2] = [None, None];
        for operand in 0..count {
            if guest.op_kind(operand) != OpKind::Register {
                continue;
            }
            let register = guest.op_register(operand);
            if register.is_xmm() {
                continue;
            }
            let replaced = match resident(register) {
                None => mapped(register).ok_or(Unencodable)?,
                Some(number) => {
                    let known = temporaries
                        .iter()
                        .flatten()
                        .find(|(other, _)| *other == number)
                        .map(|(_, full)| *full);
                    let full = match known {
                        Some(full) => full,
                        None => {
                            let full = match (memory.is_some(), temporaries[0].is_some()) {
                                (_, false) => R14,
                                (false, true) => R13,
                                (true, true) => return Err(Unencodable),
                            };
                            self.emitter.load(full, field(register_field(number)))?;
                            let slot = usize::from(temporaries[0].is_some());
                            temporaries[slot] = Some((number, full));
                            full
                        }
                    };
                    if full == R14 {
                        sized(register.size(), [R14L, R14W, R14D, R14])
                    } else {
                        sized(register.size(), [R13L, R13W, R13D, R13])
                    }
                }
            };
            host.try_set_op_register(operand, replaced)?;
        }
        let touches = step.reads | step.writes != 0 || flag_bits(guest.rflags_modified()) != 0;
        if touches && (step.reads != 0 || step.live & !step.writes != 0) && self.flags == Flags::Memory {
            // It needs flags, or leaves some alone that are wanted later. Restoring uses both temporaries.
            if memory.is_some() || temporaries[0].is_some() {
                self.restore_around(&temporaries, memory.is_some())?;
            } else {
                self.want_flags()?;
            }
            self.flags = Flags::Both;
        }
        self.emitter.push(&host)?;
        if flag_bits(guest.rflags_modified()) != 0 {
            self.flags = Flags::Host;
        }
        let stores = !matches!(guest.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt)
            && !one_source(guest.mnemonic(), count);
        if stores {
            let both = matches!(guest.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd);
            for (resident, full) in temporaries.into_iter().flatten() {
                let first = guest.op0_kind() == OpKind::Register && number(guest.op0_register()) == resident;
                if first || both {
                    self.emitter.store(field(register_field(resident)), full)?;
                }
            }
        }
        for from in [slow, unaligned].into_iter().flatten() {
            let back = self.emitter.position();
            let restore = self.flags != Flags::Memory;
            self.slow(from, back, op, restore);
        }
        Ok(true)
    }

    /// Whether this is a vector instruction that is executed as itself: SSE on registers and memory.
    pub(super) fn vector(&self, instruction: &Instruction) -> bool {
        use iced_x86::CpuidFeature as F;
        let known = instruction.cpuid_features().iter().all(|feature| {
            matches!(
                feature,
                F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2
            )
        });
        let vectors = (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Register && instruction.op_register(operand).is_xmm()
        });
        self.user()
            && self.mode & mode::NO_FPU == 0
            && known
            && vectors
            && instruction.mnemonic() != Mnemonic::Maskmovdqu
    }

    /// Restores the flags with R13 and R14 in use.
    pub(super) fn restore_around(
        &mut self,
        temporaries: &[Option<(u8, Register)>; 2],
        address: bool,
    ) -> Emitted {
        let scratch = offset_of!(Cpu, scratch);
        if address || temporaries[1].is_some() {
            self.emitter.store(field(scratch), R13)?;
        }
        self.emitter.restore_flags(STATUS_FIELD)?;
        if address || temporaries[1].is_some() {
            self.emitter.load(R13, field(scratch))?;
        }
        if let Some((number, _)) = temporaries[0] {
            self.emitter.load(R14, field(register_field(number)))?;
        }
        Ok(())
    }
}

/// `mul` and `imul` of one operand: it is only read.
fn one_source(mnemonic: Mnemonic, operands: u32) -> bool {
    operands == 1 && matches!(mnemonic, Mnemonic::Mul | Mnemonic::Imul)
}

/// Vector instructions whose operand of 16 bytes may lie anywhere.
fn takes_unaligned(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpistri
            | M::Pcmpistrm
    )
}

/// Moves between the accumulator and an absolute address of 64 bits.
fn is_moffs(code: C) -> bool {
    matches!(
        code,
        C::Mov_AL_moffs8
            | C::Mov_AX_moffs16
            | C::Mov_EAX_moffs32
            | C::Mov_RAX_moffs64
            | C::Mov_moffs8_AL
            | C::Mov_moffs16_AX
            | C::Mov_moffs32_EAX
            | C::Mov_moffs64_RAX
    )
}

/// What is executed as itself: no fault but of its memory operand, no register but its operands and RAX, RCX, RDX.
pub(super) fn copies(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Add
            | M::Sub
            | M::Adc
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Shld
            | M::Shrd
            | M::Mul
            | M::Imul
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Bswap
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Popcnt
            | M::Movbe
            | M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova
            | M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg
            | M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg
            | M::Clc
            | M::Stc
            | M::Cmc
    )
}
