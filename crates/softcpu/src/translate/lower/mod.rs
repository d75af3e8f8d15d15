//! A block's instructions become code of the host.

mod copy;
mod flow;
mod memory;

use std::mem::offset_of;

use iced_x86::{Code as C, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::emit::{Emitted, Emitter, Label, at, field};
use super::{Code, Info, Link};
use crate::block::Block;
use crate::decode::number;
use crate::flags::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::op::Op;
use crate::state::{Cpu, mode};

use Register::{R12, R12D, R12L, R12W, R13, R13D, R14};

const STATUS_FIELD: usize = offset_of!(Cpu, status);
const RIP_FIELD: usize = offset_of!(Cpu, rip);

fn register_field(number: u8) -> usize {
    offset_of!(Cpu, regs) + 8 * usize::from(number)
}

/// Where the guest's arithmetic flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flags {
    /// In `Cpu::status` only.
    Memory,
    /// In the host's flags only.
    Host,
    /// In both.
    Both,
}

/// One instruction and what is known of the flags around it.
struct Step {
    instruction: Instruction,
    /// Arithmetic flags it reads, and those it certainly replaces.
    reads: u64,
    writes: u64,
    /// Those that are read after it before they are replaced.
    live: u64,
}

struct Lowering<'a> {
    emitter: Emitter,
    flags: Flags,
    #[expect(clippy::vec_box, reason = "the code points to them")]
    infos: Vec<Box<Info>>,
    #[expect(clippy::vec_box, reason = "the code points to them")]
    links: Vec<Box<Link>>,
    /// Code that is put behind the block: slow paths.
    slow: Vec<Slow>,
    block: &'a Block,
    rip: u64,
    mode: u8,
    page_start: u64,
}

/// A memory access that was not in the translation buffer: the instruction is left to the interpreter.
struct Slow {
    from: Label,
    back: usize,
    info: *const Info,
    restore: bool,
}

/// The translation of a block at the processor's present address and mode. `None`: not now.
pub(crate) fn translate(cpu: &mut Cpu, block: &Block) -> Option<Code> {
    if cpu.blocks.arena.full() {
        return None;
    }
    let bytes = block.source();
    let mut decoder = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE);
    let instructions: Vec<Instruction> = (0..block.ops.len()).map(|_| decoder.decode()).collect();
    if !block.valid()
        || instructions
            .iter()
            .zip(&block.ops)
            .any(|(a, op)| a.is_invalid() || a.len() != usize::from(op.len))
    {
        return None;
    }
    let base = cpu.blocks.arena.next();
    let mut lowering = Lowering {
        emitter: Emitter::new(base),
        flags: Flags::Memory,
        infos: vec![],
        links: vec![],
        slow: vec![],
        block,
        rip: cpu.rip,
        mode: cpu.mode,
        page_start: cpu.rip & !4095,
    };
    lowering.whole(&steps(instructions)).ok()?;
    let Lowering {
        emitter,
        infos,
        mut links,
        ..
    } = lowering;
    let (entry, offset) = cpu.blocks.arena.put(&emitter.finish())?;
    for link in &mut links {
        link.at += offset;
    }
    Some(Code {
        rip: cpu.rip,
        mode: cpu.mode,
        entry,
        _infos: infos,
        _links: links,
    })
}

/// iced's flag bits as RFLAGS has them.
fn flag_bits(bits: u32) -> u64 {
    use iced_x86::RflagsBits as R;
    [
        (R::OF, OF),
        (R::SF, SF),
        (R::ZF, ZF),
        (R::AF, AF),
        (R::CF, CF),
        (R::PF, PF),
    ]
    .into_iter()
    .filter(|(theirs, _)| bits & theirs != 0)
    .fold(0, |all, (_, ours)| all | ours)
}

fn steps(instructions: Vec<Instruction>) -> Vec<Step> {
    let mut steps: Vec<Step> = instructions
        .into_iter()
        .map(|instruction| {
            let reads = flag_bits(instruction.rflags_read());
            let mut writes = flag_bits(instruction.rflags_modified());
            let shift = matches!(
                instruction.mnemonic(),
                Mnemonic::Shl
                    | Mnemonic::Sal
                    | Mnemonic::Shr
                    | Mnemonic::Sar
                    | Mnemonic::Rol
                    | Mnemonic::Ror
                    | Mnemonic::Rcl
                    | Mnemonic::Rcr
                    | Mnemonic::Shld
                    | Mnemonic::Shrd
            );
            let last = instruction.op_count().wrapping_sub(1);
            // The interpreter and the translation leave flags alone here.
            if matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
                writes = 0;
            }
            if shift
                && instruction
                    .try_op_kind(last)
                    .is_ok_and(|kind| kind == OpKind::Register)
            {
                // A count of zero in CL leaves all flags alone.
                writes = 0;
            }
            Step {
                instruction,
                reads,
                writes,
                live: 0,
            }
        })
        .collect();
    let mut live = STATUS;
    for step in steps.iter_mut().rev() {
        step.live = live;
        live = live & !step.writes | step.reads;
    }
    steps
}

/// A guest register in the host.
fn mapped(register: Register) -> Option<Register> {
    if !register.is_gpr()
        || matches!(
            register,
            Register::AH | Register::BH | Register::CH | Register::DH
        )
    {
        return None;
    }
    match number(register) {
        4 => Some(sized(register.size(), [R12L, R12W, R12D, R12])),
        12..=15 => None,
        _ => Some(register),
    }
}

/// A guest register that stays in memory.
fn resident(register: Register) -> Option<u8> {
    (register.is_gpr() && number(register) >= 12).then(|| number(register))
}

fn sized(bytes: usize, registers: [Register; 4]) -> Register {
    registers[bytes.trailing_zeros() as usize & 3]
}

impl Lowering<'_> {
    fn whole(&mut self, steps: &[Step]) -> Emitted {
        // Somebody wants attention: leave before anything was done.
        self.emitter
            .load(R13, field(offset_of!(Cpu, runtime.attention)))?;
        self.emitter
            .push(&Instruction::with2(C::Cmp_rm32_imm8, at(R13, 0), 0)?)?;
        let attention = self.emitter.jump(C::Jne_rel32_64)?;
        let count = steps.len() as i32;
        self.emitter.add_to_field(offset_of!(Cpu, instructions), count)?;
        let mut ended = false;
        for (index, step) in steps.iter().enumerate() {
            let op = self.block.ops[index];
            ended = self.step(step, &op)?;
            if ended {
                break;
            }
        }
        if !ended {
            let next = self.rip.wrapping_add(u64::from(self.block.bytes));
            self.save_flags()?;
            self.go(next)?;
        }
        self.emitter.bind(attention);
        self.emitter.constant(R13, self.rip)?;
        self.emitter.store(field(RIP_FIELD), R13)?;
        self.leave_plain()?;
        for slow in std::mem::take(&mut self.slow) {
            self.emitter.bind(slow.from);
            self.call(slow.info)?;
            if slow.restore {
                self.emitter.restore_flags(STATUS_FIELD)?;
            }
            self.emitter.jump_to(C::Jmp_rel32_64, slow.back)?;
        }
        Ok(())
    }

    fn leave_plain(&mut self) -> Emitted {
        self.emitter
            .push(&Instruction::with2(C::Xor_r32_rm32, R13D, R13D)?)?;
        self.leave()
    }

    /// Leaves, R13 being what is to be said.
    fn leave(&mut self) -> Emitted {
        let leave = if self.user() {
            offset_of!(Cpu, runtime.leave_user)
        } else {
            offset_of!(Cpu, runtime.leave)
        };
        self.emitter.through(C::Jmp_rm64, leave)
    }

    /// A user program's code: vector registers are the guest's.
    fn user(&self) -> bool {
        self.mode & mode::USER != 0
    }

    fn info(&mut self, op: &Op) -> *const Info {
        let info = Box::new(Info {
            op: *op,
            rip: self.rip,
            page: self.block.page,
        });
        let pointer: *const Info = &*info;
        self.infos.push(info);
        pointer
    }

    fn call(&mut self, info: *const Info) -> Emitted {
        self.emitter.constant(R13, info as u64)?;
        if self.user() {
            self.emitter
                .through(C::Call_rm64, offset_of!(Cpu, runtime.fallback_user))?;
            return self
                .emitter
                .through(C::Call_rm64, offset_of!(Cpu, runtime.reload_user));
        }
        self.emitter
            .through(C::Call_rm64, offset_of!(Cpu, runtime.fallback))
    }

    /// Has the interpreter execute an instruction.
    fn interpret(&mut self, op: &Op) -> Emitted {
        self.save_flags()?;
        let info = self.info(op);
        self.call(info)?;
        self.flags = Flags::Memory;
        Ok(())
    }

    fn save_flags(&mut self) -> Emitted {
        if self.flags == Flags::Host {
            self.emitter.save_flags(STATUS_FIELD)?;
            self.flags = Flags::Both;
        }
        Ok(())
    }

    /// Before code that clobbers the host's flags, of which `live` are still wanted.
    fn clobber_flags(&mut self, live: u64) -> Emitted {
        if live != 0 {
            self.save_flags()?;
        }
        self.flags = Flags::Memory;
        Ok(())
    }

    /// Has the guest's flags in the host's.
    fn want_flags(&mut self) -> Emitted {
        if self.flags == Flags::Memory {
            self.emitter.restore_flags(STATUS_FIELD)?;
            self.flags = Flags::Both;
        }
        Ok(())
    }

    /// One instruction. True: it ended the block.
    fn step(&mut self, step: &Step, op: &Op) -> Emitted<bool> {
        let instruction = &step.instruction;
        let next = self.rip.wrapping_add(u64::from(op.start) + u64::from(op.len));
        use Mnemonic as M;
        match instruction.mnemonic() {
            M::Jmp if instruction.op0_kind() == OpKind::NearBranch64 => {
                self.save_flags()?;
                self.go(self.rip.wrapping_add(op.imm))?;
                return Ok(true);
            }
            M::Call if instruction.op0_kind() == OpKind::NearBranch64 => {
                self.push_constant(step, op, next)?;
                self.save_flags()?;
                self.go(self.rip.wrapping_add(op.imm))?;
                return Ok(true);
            }
            M::Ret if matches!(instruction.code(), C::Retnq | C::Retnq_imm16) => {
                let slow = self.stack_access(step, 0, false)?;
                self.emitter.load(R14, at(R13, 0))?;
                let back = self.emitter.position();
                self.slow(slow, back, op, false);
                let release = 8 + op.imm as usize;
                self.emitter.lea(R12, at(R12, release))?;
                self.save_flags()?;
                self.go_r14()?;
                return Ok(true);
            }
            M::Jmp | M::Call if instruction.is_jmp_near_indirect() || instruction.is_call_near_indirect() => {
                if instruction.op0_kind() == OpKind::Memory {
                    let slow = self.memory(instruction, op, 8, false, step.live)?;
                    self.emitter.load(R14, at(R13, 0))?;
                    let back = self.emitter.position();
                    self.slow(slow, back, op, false);
                } else {
                    self.read_register(R14, instruction.op0_register())?;
                }
                if instruction.mnemonic() == M::Call {
                    let scratch = offset_of!(Cpu, scratch);
                    self.emitter.store(field(scratch), R14)?;
                    self.push_constant(step, op, next)?;
                    self.emitter.load(R14, field(scratch))?;
                }
                self.save_flags()?;
                self.go_r14()?;
                return Ok(true);
            }
            M::Push | M::Pop if instruction.stack_pointer_increment().unsigned_abs() == 8 => {
                let done = self.stack(step, op)?;
                return self.unless(done, op);
            }
            M::Leave if instruction.code() == C::Leaveq => {
                self.clobber_flags(step.live)?;
                self.emitter.mov(R13, Register::RBP)?;
                let slow = self.check(8, false)?;
                self.emitter.lea(R12, at(Register::RBP, 8))?;
                self.emitter.load(Register::RBP, at(R13, 0))?;
                let back = self.emitter.position();
                self.slow(slow, back, op, false);
                return Ok(false);
            }
            M::Nop
            | M::Endbr64
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchnta
            | M::Prefetchw
            | M::Lfence => {
                return Ok(false);
            }
            M::Cli if !self.user() => {
                self.clobber_flags(step.live)?;
                let control = field(offset_of!(Cpu, control));
                self.emitter.push(&Instruction::with2(
                    C::And_rm64_imm32,
                    control,
                    !(crate::flags::IF as i32),
                )?)?;
                return Ok(false);
            }
            M::Pushfq => {
                self.push_flags(step, op)?;
                return Ok(false);
            }
            M::Div if matches!(instruction.code(), C::Div_rm32 | C::Div_rm64) => {
                self.divide(step, op)?;
                return Ok(false);
            }
            M::Lea => {
                let done = self.load_address(instruction)?;
                return self.unless(done, op);
            }
            _ if instruction.is_jcc_short_or_near() => {
                self.conditional(step, op, next)?;
                return Ok(true);
            }
            mnemonic if copy::copies(mnemonic) || self.vector(instruction) => {
                let done = self.copy(step, op)?;
                return self.unless(done, op);
            }
            _ => {}
        }
        self.interpret(op)?;
        Ok(false)
    }

    /// Has the interpreter execute an instruction that was not `done`. It did not end the block.
    fn unless(&mut self, done: bool, op: &Op) -> Emitted<bool> {
        if !done {
            self.interpret(op)?;
        }
        Ok(false)
    }

    fn slow(&mut self, from: Label, back: usize, op: &Op, restore: bool) {
        let info = self.info(op);
        self.slow.push(Slow {
            from,
            back,
            info,
            restore,
        });
    }
}
