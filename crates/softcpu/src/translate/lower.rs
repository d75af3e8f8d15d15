//! A block's instructions become code of the host.

use std::mem::offset_of;

use iced_x86::{Code as C, Decoder, DecoderOptions, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use super::emit::{Emitted, Emitter, Label, Unencodable, at, field};
use super::{Code, Info, Link};
use crate::block::{Block, Recent};
use crate::decode::{number, segment_number};
use crate::flags::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::mmu::{ENTRIES, Entry, Mmu};
use crate::op::Op;
use crate::state::{Cpu, Segment, mode, seg};

use Register::{R12, R12D, R12L, R12W, R13, R13D, R13L, R13W, R14, R14D, R14L, R14W, R15};

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
            mnemonic if copies(mnemonic) || self.vector(instruction) => {
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

    /// R13 becomes the place of `bytes` bytes at the linear address in it. The host's flags are clobbered.
    fn check(&mut self, bytes: u32, write: bool) -> Emitted<Label> {
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
    fn stack_access(&mut self, step: &Step, offset: i64, write: bool) -> Emitted<Label> {
        self.clobber_flags(step.live | step.reads)?;
        self.emitter
            .lea(R13, MemoryOperand::with_base_displ(R12, offset))?;
        self.check(8, write)
    }

    fn push_constant(&mut self, step: &Step, op: &Op, value: u64) -> Emitted {
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
    fn push_flags(&mut self, step: &Step, op: &Op) -> Emitted {
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

    /// `div` of 32 and 64 bits: itself, unless the quotient does not fit. Flags stay what they are.
    fn divide(&mut self, step: &Step, op: &Op) -> Emitted {
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

    /// `push` and `pop`. False: not here.
    fn stack(&mut self, step: &Step, op: &Op) -> Emitted<bool> {
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
    fn read_register(&mut self, to: Register, register: Register) -> Emitted {
        match mapped(register.full_register()) {
            Some(host) => self.emitter.mov(to, host),
            None => self.emitter.load(to, field(register_field(number(register)))),
        }
    }

    /// The effective address into R13 (without segment base). Uses R14; leaves flags alone.
    fn effective(&mut self, instruction: &Instruction) -> Emitted {
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
    fn memory(
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
    fn load_address(&mut self, instruction: &Instruction) -> Emitted<bool> {
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

    /// An instruction that is itself in the host, its operands replaced. False: not here.
    fn copy(&mut self, step: &Step, op: &Op) -> Emitted<bool> {
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
            for (number, full) in temporaries.into_iter().flatten() {
                let first =
                    guest.op0_kind() == OpKind::Register && self::number(guest.op0_register()) == number;
                if first || both {
                    self.emitter.store(field(register_field(number)), full)?;
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
    fn vector(&self, instruction: &Instruction) -> bool {
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
    fn restore_around(&mut self, temporaries: &[Option<(u8, Register)>; 2], address: bool) -> Emitted {
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

    fn conditional(&mut self, step: &Step, op: &Op, next: u64) -> Emitted {
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
    fn test_condition(&mut self, condition: u8) -> Emitted<Label> {
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
    fn go(&mut self, target: u64) -> Emitted {
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
    fn go_r14(&mut self) -> Emitted {
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
fn copies(mnemonic: Mnemonic) -> bool {
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
