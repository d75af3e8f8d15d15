//! From the decoder's instruction to an [`Op`]: which handler, which operands.

mod control;
mod operands;

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};

pub(crate) use control::condition_number;
use control::{branch_bytes, conditional, control, counter};
use operands::relative;
pub(crate) use operands::{memory, number, offset, segment_number, string_memory};

use crate::exception::vector;
use crate::exec::arith::{self, Form};
use crate::exec::bits::{self, Scan};
use crate::exec::moves::{self, Kind};
use crate::exec::string::{self, repeat};
use crate::exec::{Memory, Reg, branch, far, nothing, protection, system, undefined};
use crate::op::{Handler, Mem, Op};
use crate::state::{gpr, mode, seg};

/// What the decoder needs of an instruction, looked at once.
struct Operands<'a> {
    instruction: &'a Instruction,
    /// Bytes of the operands.
    bytes: u64,
    /// Which operand is memory, if any.
    memory: Option<u32>,
}

impl Operands<'_> {
    fn of(instruction: &Instruction) -> Operands<'_> {
        let count = instruction.op_count();
        let memory = (0..count).find(|&operand| instruction.op_kind(operand) == OpKind::Memory);
        let register = (0..count).find(|&operand| instruction.op_kind(operand) == OpKind::Register);
        let bytes = match (memory, register) {
            (Some(0), _) | (Some(_), None) => instruction.memory_size().size() as u64,
            (_, Some(operand)) => instruction.op_register(operand).size() as u64,
            _ => 0,
        };
        Operands {
            instruction,
            bytes,
            memory,
        }
    }

    fn is_memory(&self, operand: u32) -> bool {
        self.memory == Some(operand)
    }

    fn is_register(&self, operand: u32) -> bool {
        operand < self.instruction.op_count() && self.instruction.op_kind(operand) == OpKind::Register
    }

    /// The form of an instruction with destination and source.
    fn form(&self) -> Form {
        let lock = self.instruction.has_lock_prefix();
        match (self.is_memory(0), self.is_memory(1), self.is_register(1)) {
            (true, _, true) if lock => Form::LockReg,
            (true, _, false) if lock => Form::LockImm,
            (true, _, true) => Form::MemReg,
            (true, _, false) => Form::MemImm,
            (false, true, _) => Form::RegMem,
            (false, false, true) => Form::RegReg,
            (false, false, false) => Form::RegImm,
        }
    }

    fn source_kind(&self, operand: u32) -> Kind {
        if self.is_memory(operand) {
            Kind::Memory
        } else if self.is_register(operand) {
            Kind::Reg
        } else {
            Kind::Imm
        }
    }
}

/// Locked forms exist for these only, with memory as the destination; anything else with `lock` is #UD, which the decoder sees.
///
/// What executes `instruction`, and whether it ends a block.
pub(crate) fn lower(instruction: &Instruction, mode: u8) -> (Op, bool) {
    let long = mode & mode::CODE64 != 0;
    let operands = Operands::of(instruction);
    let mut op = Op {
        run: undefined,
        mem: if operands.memory.is_some() {
            memory(instruction, mode)
        } else {
            Mem::NONE
        },
        imm: 0,
        dst: 0,
        src: 0,
        third: 0,
        len: instruction.len() as u8,
        start: 0,
        extra: 0,
    };
    if instruction.is_invalid() {
        return (op, true);
    }
    // Registers in the order of operands: destination, source, third; memory takes the place of one. Segment and other special registers have their own
    // numbers.
    for operand in 0..instruction.op_count().min(4) {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                if register.is_gpr() {
                    let offset = offset(register);
                    match operand {
                        0 => op.dst = offset,
                        1 => op.src = offset,
                        _ => op.third = offset,
                    }
                }
            }
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => op.imm = instruction.immediate(operand),
            _ => {}
        }
    }
    let ends = choose(instruction, &operands, &mut op, mode, long);
    (op, ends)
}

fn choose(instruction: &Instruction, operands: &Operands<'_>, op: &mut Op, mode: u8, long: bool) -> bool {
    use Mnemonic as M;
    let bytes = operands.bytes;
    let first_memory = operands.is_memory(0);
    let lock = instruction.has_lock_prefix();
    let source_memory = operands.is_memory(1);
    let mut ends = false;
    let mnemonic = instruction.mnemonic();
    op.run = match mnemonic {
        M::Add => arith::binary::<arith::Add>(operands.form(), bytes),
        M::Sub => arith::binary::<arith::Sub>(operands.form(), bytes),
        M::Adc => arith::binary::<arith::Adc>(operands.form(), bytes),
        M::Sbb => arith::binary::<arith::Sbb>(operands.form(), bytes),
        M::And => arith::binary::<arith::And>(operands.form(), bytes),
        M::Or => arith::binary::<arith::Or>(operands.form(), bytes),
        M::Xor => arith::binary::<arith::Xor>(operands.form(), bytes),
        M::Cmp => arith::compare(operands.form(), bytes),
        M::Test => arith::test(operands.form(), bytes),
        M::Inc => arith::unary::<arith::Inc>(first_memory, lock, bytes),
        M::Dec => arith::unary::<arith::Dec>(first_memory, lock, bytes),
        M::Neg => arith::unary::<arith::Neg>(first_memory, lock, bytes),
        M::Not => arith::unary::<arith::Not>(first_memory, lock, bytes),
        M::Shl | M::Sal => arith::shift::<arith::Shl>(first_memory, operands.is_register(1), bytes),
        M::Shr => arith::shift::<arith::Shr>(first_memory, operands.is_register(1), bytes),
        M::Sar => arith::shift::<arith::Sar>(first_memory, operands.is_register(1), bytes),
        M::Rol => arith::shift::<arith::Rol>(first_memory, operands.is_register(1), bytes),
        M::Ror => arith::shift::<arith::Ror>(first_memory, operands.is_register(1), bytes),
        M::Rcl => arith::shift::<arith::Rcl>(first_memory, operands.is_register(1), bytes),
        M::Rcr => arith::shift::<arith::Rcr>(first_memory, operands.is_register(1), bytes),
        M::Shld | M::Shrd => {
            // The second operand gives the bits, the third the count.
            (op.third, op.src) = (op.src, op.third);
            arith::shld(first_memory, operands.is_register(2), mnemonic == M::Shld, bytes)
        }
        M::Mul => {
            op.src = op.dst;
            arith::multiplication(false, first_memory, bytes)
        }
        M::Imul if instruction.op_count() == 1 => {
            op.src = op.dst;
            arith::multiplication(true, first_memory, bytes)
        }
        M::Imul => {
            let bytes = instruction.op0_register().size() as u64;
            arith::imul(source_memory, instruction.op_count() == 3, bytes)
        }
        M::Div => {
            op.src = op.dst;
            arith::division(false, first_memory, bytes)
        }
        M::Idiv => {
            op.src = op.dst;
            arith::division(true, first_memory, bytes)
        }
        M::Cbw => arith::extend_accumulator::<u16>,
        M::Cwde => arith::extend_accumulator::<u32>,
        M::Cdqe => arith::extend_accumulator::<u64>,
        M::Cwd => arith::extend_into_dx::<u16>,
        M::Cdq => arith::extend_into_dx::<u32>,
        M::Cqo => arith::extend_into_dx::<u64>,
        M::Daa | M::Das | M::Aaa | M::Aas | M::Aam | M::Aad => {
            op.extra = mnemonic as u16;
            arith::decimal
        }
        M::Mov => return mov(instruction, operands, op),
        M::Movzx | M::Movsx | M::Movsxd => {
            let to = instruction.op0_register().size() as u64;
            let from = if source_memory {
                instruction.memory_size().size() as u64
            } else {
                instruction.op1_register().size() as u64
            };
            if from == to {
                // `movsxd` without REX.W.
                moves::mov(false, operands.source_kind(1), to)
            } else {
                moves::extension(mnemonic != M::Movzx, source_memory, from, to)
            }
        }
        M::Lea => moves::load_address(instruction.op0_register().size() as u64),
        M::Push => return push(instruction, operands, op, long),
        M::Pop => {
            if operands.is_register(0) && instruction.op0_register().is_segment_register() {
                op.third = segment_number(instruction.op0_register());
                op.extra = instruction.stack_pointer_increment().unsigned_abs() as u16;
                op.run = far::pop_segment;
                return false;
            }
            let bytes = instruction.stack_pointer_increment().unsigned_abs() as u64;
            moves::pop(first_memory, bytes, long)
        }
        M::Pusha => moves::push_all::<u16>,
        M::Pushad => moves::push_all::<u32>,
        M::Popa => moves::pop_all::<u16>,
        M::Popad => moves::pop_all::<u32>,
        M::Leave => match instruction.code() {
            Code::Leavew => moves::leave::<u16>,
            Code::Leaved => moves::leave::<u32>,
            _ => moves::leave::<u64>,
        },
        M::Enter => {
            op.imm = u64::from(instruction.immediate16());
            op.extra = u16::from(instruction.immediate8_2nd());
            match instruction.code() {
                Code::Enterw_imm16_imm8 => moves::enter::<u16>,
                Code::Enterd_imm16_imm8 => moves::enter::<u32>,
                _ => moves::enter::<u64>,
            }
        }
        M::Xchg => {
            if source_memory {
                // Memory is put first; the register is the source.
                op.src = op.dst;
            }
            moves::exchange(operands.memory.is_some(), bytes.max(register_bytes(instruction)))
        }
        M::Xadd => moves::exchange_add(first_memory, bytes),
        M::Cmpxchg => moves::compare_exchange(first_memory, bytes),
        M::Cmpxchg8b => moves::compare_exchange_8,
        M::Cmpxchg16b => moves::compare_exchange_16,
        M::Bswap => match bytes {
            2 => moves::byte_swap::<u16>,
            4 => moves::byte_swap::<u32>,
            _ => moves::byte_swap::<u64>,
        },
        M::Movbe => moves::movbe(first_memory, register_bytes(instruction)),
        M::Xlatb => {
            op.mem = memory(instruction, mode);
            op.mem.base = gpr::RBX as u8;
            op.mem.index = gpr::ZERO as u8;
            moves::translate_byte
        }
        M::Bt => bits::bit::<bits::Keep>(first_memory, operands.is_register(1), false, bytes),
        M::Bts => bits::bit::<bits::Set>(first_memory, operands.is_register(1), lock, bytes),
        M::Btr => bits::bit::<bits::Clear>(first_memory, operands.is_register(1), lock, bytes),
        M::Btc => bits::bit::<bits::Flip>(first_memory, operands.is_register(1), lock, bytes),
        M::Bsf => bits::scan(Scan::Bsf, source_memory, register_bytes(instruction)),
        M::Bsr => bits::scan(Scan::Bsr, source_memory, register_bytes(instruction)),
        M::Popcnt => bits::scan(Scan::Popcnt, source_memory, register_bytes(instruction)),
        M::Lzcnt => bits::scan(Scan::Lzcnt, source_memory, register_bytes(instruction)),
        // Offered as `bsf`, which is what its encoding is without BMI1: what programs that do not ask expect is the same for values that are not zero.
        M::Tzcnt => bits::scan(Scan::Tzcnt, source_memory, register_bytes(instruction)),
        M::Crc32 => {
            let bytes = if source_memory {
                instruction.memory_size().size()
            } else {
                instruction.op1_register().size()
            };
            bits::crc32(source_memory, bytes as u64)
        }
        M::Rdrand | M::Rdseed => match bytes {
            2 => bits::random::<u16>,
            4 => bits::random::<u32>,
            _ => bits::random::<u64>,
        },
        M::Lahf => bits::load_flags,
        M::Sahf => bits::store_flags,
        M::Clc | M::Stc | M::Cmc | M::Cld | M::Std => {
            op.extra = match mnemonic {
                M::Clc => 0,
                M::Stc => 1,
                M::Cmc => 2,
                M::Cld => 3,
                _ => 4,
            };
            bits::flag
        }
        M::Jmp | M::Call | M::Ret | M::Retf | M::Iret | M::Iretd | M::Iretq => {
            control(instruction, operands, op, long);
            return true;
        }
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
            op.imm = relative(instruction, long);
            op.extra = branch_bytes(instruction, long) as u16;
            let (which, counter) = counter(instruction);
            op.run = branch::counted(which, counter);
            return true;
        }
        M::Int => {
            op.imm = u64::from(instruction.immediate8());
            ends = true;
            far::interrupt
        }
        M::Int3 => {
            op.imm = u64::from(vector::BP);
            ends = true;
            far::interrupt
        }
        M::Into => {
            op.imm = u64::from(vector::OF);
            op.extra = 2;
            ends = true;
            far::interrupt
        }
        M::Int1 => {
            op.imm = u64::from(vector::DB);
            op.extra = 1;
            ends = true;
            far::interrupt
        }
        M::Syscall => {
            ends = true;
            far::syscall
        }
        M::Sysret | M::Sysretq => {
            op.extra = if instruction.code() == Code::Sysretq { 8 } else { 4 };
            ends = true;
            far::sysret
        }
        M::Sysenter => {
            ends = true;
            far::sysenter
        }
        M::Sysexit | M::Sysexitq => {
            op.extra = if instruction.code() == Code::Sysexitq {
                8
            } else {
                4
            };
            ends = true;
            far::sysexit
        }
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            op.third = match mnemonic {
                M::Lds => seg::DS,
                M::Les => seg::ES,
                M::Lfs => seg::FS,
                M::Lgs => seg::GS,
                _ => seg::SS,
            } as u8;
            match instruction.op0_register().size() {
                2 => far::load_far_pointer::<u16>,
                4 => far::load_far_pointer::<u32>,
                _ => far::load_far_pointer::<u64>,
            }
        }
        M::Pushf | M::Pushfd | M::Pushfq => {
            op.extra = flags_bytes(mnemonic);
            far::push_flags
        }
        M::Popf | M::Popfd | M::Popfq => {
            op.extra = flags_bytes(mnemonic);
            ends = true;
            far::pop_flags
        }
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
            op.third = if matches!(mnemonic, M::Rdfsbase | M::Wrfsbase) {
                seg::FS
            } else {
                seg::GS
            } as u8;
            op.extra = u16::from(matches!(mnemonic, M::Wrfsbase | M::Wrgsbase));
            if bytes == 4 {
                far::segment_base::<u32>
            } else {
                far::segment_base::<u64>
            }
        }
        M::Nop
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1
        | M::Endbr64
        | M::Endbr32
        | M::Lfence
        | M::Clflush
        | M::Clflushopt
        | M::Clwb
        | M::Reservednop
        | M::Cldemote => nothing,
        M::Wait => crate::vector::wait,
        M::Mfence | M::Sfence => system::fence,
        M::Pause => {
            ends = true;
            system::pause
        }
        M::Hlt => {
            ends = true;
            system::halt
        }
        M::Cli => system::clear_interrupts,
        M::Sti => {
            ends = true;
            system::set_interrupts
        }
        M::In | M::Out => {
            let port = if mnemonic == M::In { 1 } else { 0 };
            op.extra = u16::from(instruction.op_kind(port) == OpKind::Register);
            if op.extra == 0 {
                op.imm = u64::from(instruction.immediate8());
            }
            let bytes = instruction.op_register(1 - port).size();
            ends = true;
            match (mnemonic == M::In, bytes) {
                (true, 1) => system::input::<u8>,
                (true, 2) => system::input::<u16>,
                (true, _) => system::input::<u32>,
                (false, 1) => system::output::<u8>,
                (false, 2) => system::output::<u16>,
                (false, _) => system::output::<u32>,
            }
        }
        M::Rdmsr => system::read_msr,
        M::Wrmsr => {
            ends = true;
            system::write_msr
        }
        M::Rdtsc => system::time_stamp,
        M::Rdtscp => {
            op.extra = 1;
            system::time_stamp
        }
        M::Rdpid => {
            op.extra = 2;
            system::time_stamp
        }
        M::Rdpmc | M::Rsm => protection,
        M::Cpuid => system::identify,
        M::Swapgs => system::swap_gs,
        M::Invlpg => {
            ends = true;
            system::invalidate_page
        }
        M::Invd | M::Wbinvd | M::Wbnoinvd => system::invalidate_caches,
        M::Clts => {
            ends = true;
            system::clear_task_switched
        }
        M::Lmsw => {
            ends = true;
            op.src = op.dst;
            if first_memory {
                system::load_machine_status::<Memory>
            } else {
                system::load_machine_status::<Reg>
            }
        }
        M::Smsw => match (first_memory, bytes) {
            (true, _) => system::store_machine_status::<u16, Memory>,
            (false, 2) => system::store_machine_status::<u16, Reg>,
            (false, 4) => system::store_machine_status::<u32, Reg>,
            (false, _) => system::store_machine_status::<u64, Reg>,
        },
        M::Lgdt | M::Lidt => {
            op.extra = u16::from(mnemonic == M::Lidt);
            op.third = if matches!(instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
                2
            } else {
                4
            };
            system::load_table
        }
        M::Sgdt | M::Sidt => {
            op.extra = u16::from(mnemonic == M::Sidt);
            system::store_table
        }
        M::Lldt | M::Ltr => {
            op.src = op.dst;
            match (mnemonic == M::Lldt, first_memory) {
                (true, true) => system::load_ldt::<Memory>,
                (true, false) => system::load_ldt::<Reg>,
                (false, true) => system::load_task::<Memory>,
                (false, false) => system::load_task::<Reg>,
            }
        }
        M::Sldt | M::Str => {
            op.extra = u16::from(mnemonic == M::Str);
            match (first_memory, bytes) {
                (true, _) => system::store_selector::<u16, Memory>,
                (false, 2) => system::store_selector::<u16, Reg>,
                (false, 4) => system::store_selector::<u32, Reg>,
                (false, _) => system::store_selector::<u64, Reg>,
            }
        }
        M::Lar | M::Lsl => {
            op.extra = u16::from(mnemonic == M::Lsl);
            match (source_memory, instruction.op0_register().size()) {
                (true, 2) => system::inspect::<u16, Memory>,
                (true, 4) => system::inspect::<u32, Memory>,
                (true, _) => system::inspect::<u64, Memory>,
                (false, 2) => system::inspect::<u16, Reg>,
                (false, 4) => system::inspect::<u32, Reg>,
                (false, _) => system::inspect::<u64, Reg>,
            }
        }
        M::Verr | M::Verw => {
            op.extra = if mnemonic == M::Verr { 2 } else { 3 };
            op.src = op.dst;
            if first_memory {
                system::inspect::<u16, Memory>
            } else {
                system::inspect::<u16, Reg>
            }
        }
        M::Arpl => {
            op.third = op.src;
            op.src = op.dst;
            if first_memory {
                system::adjust_privilege::<Memory, Memory>
            } else {
                system::adjust_privilege::<Reg, Reg>
            }
        }
        M::Bound => match instruction.op0_register().size() {
            2 => system::bound::<u16>,
            _ => system::bound::<u32>,
        },
        M::Xgetbv => system::get_extended_control,
        M::Xsetbv => {
            ends = true;
            system::set_extended_control
        }
        M::Vmcall | M::Vmmcall => system::hypercall,
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if instruction.is_string_instruction() => {
            strings(instruction, op, mode, string::Kind::Move)
        }
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => strings(instruction, op, mode, string::Kind::Store),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => strings(instruction, op, mode, string::Kind::Load),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => strings(instruction, op, mode, string::Kind::Scan),
        M::Cmpsb | M::Cmpsw | M::Cmpsq => strings(instruction, op, mode, string::Kind::Compare),
        M::Cmpsd if instruction.is_string_instruction() => {
            strings(instruction, op, mode, string::Kind::Compare)
        }
        M::Insb | M::Insw | M::Insd => strings(instruction, op, mode, string::Kind::Input),
        M::Outsb | M::Outsw | M::Outsd => strings(instruction, op, mode, string::Kind::Output),
        M::Ud2 | M::Ud1 | M::Ud0 => {
            ends = true;
            undefined
        }
        _ => {
            let code = instruction.condition_code();
            if code != ConditionCode::None {
                return conditional(instruction, operands, op, code, mode);
            }
            match crate::vector::lower(instruction, op, mode) {
                Some(handler) => handler,
                None => {
                    ends = true;
                    undefined
                }
            }
        }
    };
    ends
}

/// The width of an instruction's first register operand.
fn register_bytes(instruction: &Instruction) -> u64 {
    (0..instruction.op_count())
        .find(|&operand| instruction.op_kind(operand) == OpKind::Register)
        .map_or(0, |operand| instruction.op_register(operand).size() as u64)
}

fn flags_bytes(mnemonic: Mnemonic) -> u16 {
    match mnemonic {
        Mnemonic::Pushf | Mnemonic::Popf => 2,
        Mnemonic::Pushfd | Mnemonic::Popfd => 4,
        _ => 8,
    }
}

fn mov(instruction: &Instruction, operands: &Operands<'_>, op: &mut Op) -> bool {
    let first = operands.is_register(0).then(|| instruction.op0_register());
    let second = operands.is_register(1).then(|| instruction.op1_register());
    let special = |register: Register| register.is_cr() || register.is_dr() || register.is_segment_register();
    if let Some(register) = first
        && special(register)
    {
        if register.is_segment_register() {
            op.third = segment_number(register);
            op.run = if register == Register::CS {
                undefined
            } else if operands.is_memory(1) {
                far::mov_to_segment::<Memory>
            } else {
                far::mov_to_segment::<Reg>
            };
            return register == Register::SS;
        }
        op.run = if register.is_cr() {
            op.third = (register as u32 - Register::CR0 as u32) as u8;
            system::write_control
        } else {
            op.third = (register as u32 - Register::DR0 as u32) as u8;
            system::write_debug
        };
        return true;
    }
    if let Some(register) = second
        && special(register)
    {
        if register.is_segment_register() {
            op.third = segment_number(register);
            op.run = match (operands.is_memory(0), first.map_or(2, Register::size)) {
                (true, _) => far::mov_from_segment::<u16, Memory>,
                (false, 2) => far::mov_from_segment::<u16, Reg>,
                (false, 4) => far::mov_from_segment::<u32, Reg>,
                (false, _) => far::mov_from_segment::<u64, Reg>,
            };
        } else if register.is_cr() {
            op.third = (register as u32 - Register::CR0 as u32) as u8;
            op.run = system::read_control;
        } else {
            op.third = (register as u32 - Register::DR0 as u32) as u8;
            op.run = system::read_debug;
        }
        return false;
    }
    op.run = moves::mov(
        operands.is_memory(0),
        operands.source_kind(1),
        operands.bytes.max(match first {
            Some(register) => register.size() as u64,
            None => 0,
        }),
    );
    false
}

fn push(instruction: &Instruction, operands: &Operands<'_>, op: &mut Op, long: bool) -> bool {
    let bytes = instruction.stack_pointer_increment().unsigned_abs() as u64;
    if operands.is_register(0) && instruction.op0_register().is_segment_register() {
        op.third = segment_number(instruction.op0_register());
        op.extra = bytes as u16;
        op.run = far::push_segment;
        return false;
    }
    op.src = op.dst;
    op.run = moves::push(operands.source_kind(0), bytes, long);
    false
}

fn strings(instruction: &Instruction, op: &mut Op, mode: u8, which: string::Kind) -> Handler {
    op.mem = string_memory(instruction, mode);
    op.third = if instruction.has_repne_prefix() {
        repeat::WHILE_DIFFERENT
    } else if instruction.has_rep_prefix() {
        repeat::WHILE_EQUAL
    } else {
        repeat::ONCE
    };
    use Mnemonic as M;
    let bytes = match instruction.mnemonic() {
        M::Movsb | M::Stosb | M::Lodsb | M::Scasb | M::Cmpsb | M::Insb | M::Outsb => 1,
        M::Movsw | M::Stosw | M::Lodsw | M::Scasw | M::Cmpsw | M::Insw | M::Outsw => 2,
        M::Movsd | M::Stosd | M::Lodsd | M::Scasd | M::Cmpsd | M::Insd | M::Outsd => 4,
        _ => 8,
    };
    string::string(which, bytes)
}
