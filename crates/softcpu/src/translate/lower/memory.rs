//! Accesses to memory and the stack, and effective addresses.

use std::mem::offset_of;

use iced_x86::{Code as C, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use super::super::emit::{Emitted, Label, at, field};
use super::{Lowering, STATUS_FIELD, Step, mapped, register_field};
use crate::decode::{number, segment_number};
use crate::flags::STATUS;
use crate::mmu::{ENTRIES, Entry, Mmu};
use crate::op::Op;
use crate::state::{Cpu, Segment, seg};

use Register::{R12, R12D, R13, R13D, R14, R14D};

impl Lowering<'_> {
    /// R13 becomes the place of `bytes` bytes at the linear address in it. The host's flags are clobbered.
    pub(super) fn check(&mut self, bytes: u32, write: bool) -> Emitted<Label> {
        let user = usize::from(self.user());
        let table = offset_of!(Cpu, mmu) + offset_of!(Mmu, entries) + user * ENTRIES * size_of::<Entry>();
        let tag = if write {
            offset_of!(Entry, write)
        } else {
            offset_of!(Entry, read)
        };
        self.emitter.translate(table, tag, bytes)
    }

    /// An access at RSP + `offset`.
    pub(super) fn stack_access(&mut self, step: &Step, offset: i64, write: bool) -> Emitted<Label> {
        self.clobber_flags(step.live | step.reads)?;
        self.emitter
            .lea(R13, MemoryOperand::with_base_displ(R12, offset))?;
        self.check(8, write)
    }

    pub(super) fn push_constant(&mut self, step: &Step, op: &Op, value: u64) -> Emitted {
        let slow = self.stack_access(step, -8, true)?;
        match i32::try_from(value as i64) {
            Ok(value) => self
                .emitter
                .push(&Instruction::with2(C::Mov_rm64_imm32, at(R13, 0), value)?)?,
            Err(_) => {
                self.emitter.constant(R14, value)?;
                self.emitter.store(at(R13, 0), R14)?;
            }
        }
        self.emitter.lea(R12, MemoryOperand::with_base_displ(R12, -8))?;
        // The interpreter's call has set RIP and comes back by leaving: `back` is never reached.
        let back = self.emitter.position();
        self.slow(slow, back, op, false);
        Ok(())
    }

    /// `pushfq`.
    pub(super) fn push_flags(&mut self, step: &Step, op: &Op) -> Emitted {
        const HIDDEN: u64 = crate::flags::RF | crate::flags::VM;
        self.save_flags()?;
        let slow = self.stack_access(step, -8, true)?;
        self.emitter.load32(R14D, field(STATUS_FIELD))?;
        self.emitter
            .push(&Instruction::with2(C::And_rm32_imm32, R14D, STATUS as i32)?)?;
        self.emitter.push(&Instruction::with2(
            C::Or_r64_rm64,
            R14,
            field(offset_of!(Cpu, control)),
        )?)?;
        self.emitter
            .push(&Instruction::with2(C::And_rm32_imm32, R14D, !(HIDDEN as i32))?)?;
        self.emitter
            .push(&Instruction::with2(C::Or_rm32_imm32, R14D, 2)?)?;
        self.emitter.store(at(R13, 0), R14)?;
        self.emitter.lea(R12, MemoryOperand::with_base_displ(R12, -8))?;
        let back = self.emitter.position();
        self.slow(slow, back, op, false);
        Ok(())
    }

    /// `push` and `pop`. False: not here.
    pub(super) fn stack(&mut self, step: &Step, op: &Op) -> Emitted<bool> {
        let instruction = &step.instruction;
        let push = instruction.mnemonic() == Mnemonic::Push;
        match instruction.op0_kind() {
            OpKind::Register if instruction.op0_register().is_gpr() => {}
            OpKind::Memory | OpKind::Register => return Ok(false),
            _ => {
                // An immediate.
                let value = instruction.immediate(0);
                self.push_constant(step, op, value)?;
                return Ok(true);
            }
        }
        let register = instruction.op0_register();
        let slow = self.stack_access(step, if push { -8 } else { 0 }, push)?;
        let there = at(R13, 0);
        if push {
            match mapped(register) {
                Some(host) => self.emitter.store(there, host)?,
                None => {
                    self.emitter.load(R14, field(register_field(number(register))))?;
                    self.emitter.store(there, R14)?;
                }
            }
            self.emitter.lea(R12, MemoryOperand::with_base_displ(R12, -8))?;
        } else {
            match mapped(register) {
                Some(R12) => self.emitter.load(R12, there)?,
                host => {
                    self.emitter.lea(R12, at(R12, 8))?;
                    match host {
                        Some(host) => self.emitter.load(host, there)?,
                        None => {
                            self.emitter.load(R14, there)?;
                            self.emitter.store(field(register_field(number(register))), R14)?;
                        }
                    }
                }
            }
        }
        let back = self.emitter.position();
        self.slow(slow, back, op, false);
        Ok(true)
    }

    /// A guest register's 64 bits into `to`.
    pub(super) fn read_register(&mut self, to: Register, register: Register) -> Emitted {
        match mapped(register.full_register()) {
            Some(host) => self.emitter.mov(to, host),
            None => self.emitter.load(to, field(register_field(number(register)))),
        }
    }

    /// The effective address into R13 (without segment base). Uses R14; leaves flags alone.
    pub(super) fn effective(&mut self, instruction: &Instruction) -> Emitted {
        let displacement = instruction.memory_displacement64();
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if matches!(base, Register::RIP | Register::EIP) {
            return self.emitter.constant(R13, self.rip.wrapping_add(displacement));
        }
        if base == Register::None && index == Register::None {
            return self.emitter.constant(R13, displacement);
        }
        let mut host = |register: Register, temporary: Register| -> Emitted<Register> {
            if register == Register::None {
                return Ok(register);
            }
            match mapped(register.full_register()) {
                Some(host) => Ok(host),
                None => {
                    self.emitter
                        .load(temporary, field(register_field(number(register))))?;
                    Ok(temporary)
                }
            }
        };
        let base = host(base, R13)?;
        let index = host(index, R14)?;
        let displacement = displacement as i64;
        let size = u32::from(displacement != 0 || base == Register::None);
        let size = if base == Register::None { 8 } else { size };
        let operand = MemoryOperand::new(
            base,
            index,
            instruction.memory_index_scale(),
            displacement,
            size,
            false,
            Register::None,
        );
        self.emitter.lea(R13, operand)
    }

    /// R13 becomes the place of an instruction's memory operand. The host's flags are clobbered; `live` are still wanted.
    pub(super) fn memory(
        &mut self,
        instruction: &Instruction,
        op: &Op,
        bytes: u32,
        write: bool,
        live: u64,
    ) -> Emitted<Label> {
        self.clobber_flags(live)?;
        self.effective(instruction)?;
        if op.mem.size == 4 {
            self.emitter
                .push(&Instruction::with2(C::Mov_r32_rm32, R13D, R13D)?)?;
        }
        let segment = usize::from(segment_number(instruction.memory_segment()));
        if segment >= seg::FS {
            let base = offset_of!(Cpu, segments) + segment * size_of::<Segment>() + offset_of!(Segment, base);
            self.emitter
                .push(&Instruction::with2(C::Add_r64_rm64, R13, field(base))?)?;
        }
        self.check(bytes, write)
    }

    /// `lea`. False: not here.
    pub(super) fn load_address(&mut self, instruction: &Instruction) -> Emitted<bool> {
        let to = instruction.op0_register();
        if to.size() == 2 {
            return Ok(false);
        }
        self.effective(instruction)?;
        let narrow = to.size() == 4
            || (instruction.memory_base().size() == 4 || instruction.memory_index().size() == 4);
        let code = if narrow { C::Mov_r32_rm32 } else { C::Mov_r64_rm64 };
        match mapped(to.full_register()) {
            Some(host) => {
                let (to, from) = if narrow {
                    (narrowed(host), R13D)
                } else {
                    (host, R13)
                };
                self.emitter.push(&Instruction::with2(code, to, from)?)?;
            }
            None => {
                if narrow {
                    self.emitter.push(&Instruction::with2(code, R13D, R13D)?)?;
                }
                self.emitter.store(field(register_field(number(to))), R13)?;
            }
        }
        Ok(true)
    }
}

fn narrowed(register: Register) -> Register {
    match register {
        R12 => R12D,
        R13 => R13D,
        other => {
            // The 64-bit registers and their lower halves are numbered alike.
            let offset = other as u32 - Register::RAX as u32;
            Register::values()
                .nth((Register::EAX as u32 + offset) as usize)
                .unwrap_or(other)
        }
    }
}
