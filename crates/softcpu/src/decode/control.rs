//! Jumps, calls, returns, and what else depends on a condition.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};

use super::Operands;
use super::operands::relative;
use crate::exec::moves;
use crate::exec::{branch, far, undefined};
use crate::op::Op;
use crate::state::mode;

/// Bytes of the instruction pointer after a near branch.
pub(super) fn branch_bytes(instruction: &Instruction, long: bool) -> u64 {
    match instruction.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 if !long => 4,
        _ => 8,
    }
}

/// Which of the counted jumps, and the counter's width.
pub(super) fn counter(instruction: &Instruction) -> (u8, u64) {
    let which = match instruction.mnemonic() {
        Mnemonic::Loop => 0,
        Mnemonic::Loope => 1,
        Mnemonic::Loopne => 2,
        Mnemonic::Jcxz => return (3, 2),
        Mnemonic::Jecxz => return (3, 4),
        _ => return (3, 8),
    };
    let name = format!("{:?}", instruction.code());
    // Loop_rel8_64_RCX and its like: the counter is the last part of the name.
    let width = match name.rsplit('_').next() {
        Some("CX") => 2,
        Some("ECX") => 4,
        _ => 8,
    };
    (which, width)
}

/// A condition's number, as in the encoding of `jcc`.
pub(crate) fn condition_number(code: ConditionCode) -> u8 {
    match code {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        _ => 15,
    }
}

pub(super) fn conditional(
    instruction: &Instruction,
    operands: &Operands<'_>,
    op: &mut Op,
    code: ConditionCode,
    mode: u8,
) -> bool {
    let long = mode & mode::CODE64 != 0;
    let code = condition_number(code);
    if instruction.is_jcc_short_or_near() {
        op.imm = relative(instruction, long);
        op.run = branch::conditional(code, branch_bytes(instruction, long));
        return true;
    }
    let one_operand = instruction.op_count() == 1;
    if one_operand {
        op.run = moves::conditional_set(code, operands.is_memory(0));
        return false;
    }
    if instruction.op0_register().is_gpr() {
        let bytes = instruction.op0_register().size() as u64;
        op.run = moves::conditional_move(code, operands.is_memory(1), bytes);
        return false;
    }
    // `fcmovcc` and what else has a condition.
    match crate::vector::lower(instruction, op, mode) {
        Some(handler) => {
            op.run = handler;
            false
        }
        None => {
            op.run = undefined;
            true
        }
    }
}

/// `jmp`, `call`, `ret` in all their forms.
pub(super) fn control(instruction: &Instruction, operands: &Operands<'_>, op: &mut Op, long: bool) {
    use Mnemonic as M;
    let stack = instruction.stack_pointer_increment().unsigned_abs() as u64;
    op.run = match instruction.mnemonic() {
        M::Ret => {
            let bytes = match instruction.code() {
                Code::Retnw | Code::Retnw_imm16 => 2,
                Code::Retnd | Code::Retnd_imm16 => 4,
                _ => 8,
            };
            op.imm = if instruction.op_count() == 1 {
                u64::from(instruction.immediate16())
            } else {
                0
            };
            branch::near_return(bytes)
        }
        M::Retf => {
            op.extra = match instruction.code() {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            };
            op.imm = if instruction.op_count() == 1 {
                u64::from(instruction.immediate16())
            } else {
                0
            };
            far::retf
        }
        M::Iret => {
            op.extra = 2;
            far::iret
        }
        M::Iretd => {
            op.extra = 4;
            far::iret
        }
        M::Iretq => {
            op.extra = 8;
            far::iret
        }
        call_or_jump => {
            let call = call_or_jump == M::Call;
            match instruction.op0_kind() {
                OpKind::FarBranch16 | OpKind::FarBranch32 => {
                    let wide = instruction.op0_kind() == OpKind::FarBranch32;
                    let offset = if wide {
                        u64::from(instruction.far_branch32())
                    } else {
                        u64::from(instruction.far_branch16())
                    };
                    op.imm = offset | u64::from(instruction.far_branch_selector()) << 32;
                    op.extra = if wide { 4 } else { 2 };
                    op.third = 1;
                    if call { far::far::<true> } else { far::far::<false> }
                }
                OpKind::Memory if instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect() => {
                    op.extra = (instruction.memory_size().size() - 2) as u16;
                    op.third = 0;
                    if call { far::far::<true> } else { far::far::<false> }
                }
                OpKind::Memory | OpKind::Register => {
                    op.src = op.dst;
                    let bytes = if operands.is_memory(0) {
                        instruction.memory_size().size() as u64
                    } else {
                        instruction.op0_register().size() as u64
                    };
                    if call {
                        branch::indirect_call(operands.is_memory(0), bytes)
                    } else {
                        branch::indirect_jump(operands.is_memory(0), bytes)
                    }
                }
                _ => {
                    op.imm = relative(instruction, long);
                    if call {
                        branch::call(stack)
                    } else {
                        branch::near_jump(branch_bytes(instruction, long))
                    }
                }
            }
        }
    };
}
