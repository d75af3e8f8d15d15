//! Jumps: to known addresses, to addresses in a register, on conditions.

use std::mem::offset_of;

use iced_x86::{Code as C, Instruction, MemoryOperand, Register};

use super::super::emit::{Emitted, Emitter, Label, at, field};
use super::{Flags, Link, Lowering, RIP_FIELD, STATUS_FIELD, Step};
use crate::block::Recent;
use crate::flags::{CF, OF, PF, SF, ZF};
use crate::mmu::Mmu;
use crate::op::Op;
use crate::state::Cpu;

use Register::{R13, R13D, R14, R14D, R15};

impl Lowering<'_> {
    pub(super) fn conditional(&mut self, step: &Step, op: &Op, next: u64) -> Emitted {
        let target = self.rip.wrapping_add(op.imm);
        let condition = crate::decode::condition_number(step.instruction.condition_code());
        let taken = if self.flags == Flags::Memory {
            self.test_condition(condition)?
        } else {
            self.save_flags()?;
            self.emitter.jump(jcc(condition))?
        };
        self.go(next)?;
        self.emitter.bind(taken);
        self.go(target)
    }

    /// A jump if `condition` holds for the flags in memory.
    pub(super) fn test_condition(&mut self, condition: u8) -> Emitted<Label> {
        let mask = match condition >> 1 {
            0 => OF,
            1 => CF,
            2 => ZF,
            3 => CF | ZF,
            4 => SF,
            5 => PF,
            signed => {
                // SF differs from OF: bit 7 of status ^ status >> 4; for the last also ZF.
                self.emitter.load32(R13D, field(STATUS_FIELD))?;
                self.emitter
                    .push(&Instruction::with2(C::Mov_r32_rm32, R14D, R13D)?)?;
                self.emitter
                    .push(&Instruction::with2(C::Shr_rm32_imm8, R14D, 4)?)?;
                self.emitter
                    .push(&Instruction::with2(C::Xor_r32_rm32, R14D, R13D)?)?;
                self.emitter
                    .push(&Instruction::with2(C::And_rm32_imm32, R14D, 0x80)?)?;
                if signed == 7 {
                    self.emitter
                        .push(&Instruction::with2(C::And_rm32_imm32, R13D, ZF as i32)?)?;
                    self.emitter
                        .push(&Instruction::with2(C::Or_r32_rm32, R14D, R13D)?)?;
                }
                return self.emitter.jump(if condition & 1 == 0 {
                    C::Jne_rel32_64
                } else {
                    C::Je_rel32_64
                });
            }
        };
        self.emitter.push(&Instruction::with2(
            C::Test_rm32_imm32,
            field(STATUS_FIELD),
            mask as i32,
        )?)?;
        self.emitter.jump(if condition & 1 == 0 {
            C::Jne_rel32_64
        } else {
            C::Je_rel32_64
        })
    }

    /// Goes on at a known address; flags are in memory.
    pub(super) fn go(&mut self, target: u64) -> Emitted {
        if target & !4095 == self.page_start {
            // Leaves until it is linked.
            let label = self.emitter.jump(C::Jmp_rel32_64)?;
            self.emitter.bind(label);
            let link = Box::new(Link {
                at: Emitter::displacement(label),
                page: self.block.page,
                generation: self.block.generation(),
            });
            let pointer: *const Link = &*link;
            self.links.push(link);
            self.emitter.constant(R13, target)?;
            self.emitter.store(field(RIP_FIELD), R13)?;
            self.emitter.constant(R13, pointer as u64)?;
            return self.leave();
        }
        self.emitter.constant(R14, target)?;
        self.go_r14()
    }

    /// Goes on at the address in R14: through the cache by linear address.
    pub(super) fn go_r14(&mut self) -> Emitted {
        const SHIFT: u32 = size_of::<Recent>().trailing_zeros();
        self.emitter.store(field(RIP_FIELD), R14)?;
        self.emitter.mov(R13, R14)?;
        self.emitter
            .push(&Instruction::with2(C::Shr_rm64_imm8, R13, 12)?)?;
        self.emitter
            .push(&Instruction::with2(C::Xor_r64_rm64, R13, R14)?)?;
        self.emitter.push(&Instruction::with2(
            C::And_rm32_imm32,
            R13D,
            crate::block::RECENT as i32 - 1,
        )?)?;
        self.emitter
            .push(&Instruction::with2(C::Shl_rm32_imm8, R13D, SHIFT)?)?;
        self.emitter.push(&Instruction::with2(
            C::Add_r64_rm64,
            R13,
            field(offset_of!(Cpu, runtime.recent)),
        )?)?;
        let mut misses = vec![];
        self.emitter.push(&Instruction::with2(
            C::Cmp_r64_rm64,
            R14,
            at(R13, offset_of!(Recent, linear)),
        )?)?;
        misses.push(self.emitter.jump(C::Jne_rel32_64)?);
        self.emitter.push(&Instruction::with2(
            C::Cmp_rm8_imm8,
            at(R13, offset_of!(Recent, mode)),
            u32::from(self.mode),
        )?)?;
        misses.push(self.emitter.jump(C::Jne_rel32_64)?);
        self.emitter
            .push(&Instruction::with2(C::Shr_rm64_imm8, R14, 63)?)?;
        let epochs = offset_of!(Cpu, mmu) + offset_of!(Mmu, epochs);
        let epoch = MemoryOperand::new(R15, R14, 4, epochs as i64, 8, false, Register::None);
        self.emitter.load32(R14D, epoch)?;
        self.emitter.push(&Instruction::with2(
            C::Cmp_r32_rm32,
            R14D,
            at(R13, offset_of!(Recent, epoch)),
        )?)?;
        misses.push(self.emitter.jump(C::Jne_rel32_64)?);
        // Without a translation `code` is null and so is `current`'s entry: tested by code.
        self.emitter.load(R14, at(R13, offset_of!(Recent, current)))?;
        self.emitter.load32(R14D, at(R14, 0))?;
        self.emitter.push(&Instruction::with2(
            C::Cmp_r32_rm32,
            R14D,
            at(R13, offset_of!(Recent, generation)),
        )?)?;
        misses.push(self.emitter.jump(C::Jne_rel32_64)?);
        self.emitter.load(R13, at(R13, offset_of!(Recent, code)))?;
        self.emitter
            .push(&Instruction::with2(C::Test_rm64_r64, R13, R13)?)?;
        misses.push(self.emitter.jump(C::Je_rel32_64)?);
        self.emitter.push(&Instruction::with1(C::Jmp_rm64, R13)?)?;
        for miss in misses {
            self.emitter.bind(miss);
        }
        self.leave_plain()
    }
}

fn jcc(condition: u8) -> C {
    const CODES: [C; 16] = [
        C::Jo_rel32_64,
        C::Jno_rel32_64,
        C::Jb_rel32_64,
        C::Jae_rel32_64,
        C::Je_rel32_64,
        C::Jne_rel32_64,
        C::Jbe_rel32_64,
        C::Ja_rel32_64,
        C::Js_rel32_64,
        C::Jns_rel32_64,
        C::Jp_rel32_64,
        C::Jnp_rel32_64,
        C::Jl_rel32_64,
        C::Jge_rel32_64,
        C::Jle_rel32_64,
        C::Jg_rel32_64,
    ];
    CODES[usize::from(condition)]
}
