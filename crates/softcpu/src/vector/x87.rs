//! x87 instructions: the guest's whole x87 state is loaded, the instruction executed, and the state taken out again.
//!
//! Slow (some hundred cycles), exact, and rare in what is run here. The host never has an exception: instructions that wait are executed only when none is pending, and
//! one that arises is pending in the guest's state alone, as `fninit` follows at once.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::thunk::{self, Frame, Thunk};
use crate::exception::vector;
use crate::exec::attempt;
use crate::flags::{self, Width};
use crate::mmu::Access;
use crate::op::{Flow, Handler, Op};
use crate::state::{Cpu, ExtendedState, cr0, gpr};

/// `Op::extra` of handlers here.
mod needs {
    /// It waits: a pending exception comes first.
    pub const WAIT: u16 = 1;
    /// It writes its memory operand (otherwise, it reads it).
    pub const STORE: u16 = 1 << 1;
    /// It leaves the addresses of the last instruction and operand alone.
    pub const CONTROL: u16 = 1 << 2;
    /// It changes these addresses itself.
    pub const POINTERS: u16 = 1 << 3;
}

/// Where the image has the last instruction's code and address and its operand's address.
const POINTERS: std::ops::Range<usize> = 6..24;

/// The largest memory operand: that of `fnsave`.
const LARGEST: usize = 108;

/// The `fxsave` image by itself.
#[repr(C, align(16))]
struct Image([u8; 512]);

pub(super) fn lower(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    let waits = !matches!(
        mnemonic,
        M::Fninit
            | M::Fnclex
            | M::Fnstcw
            | M::Fnstsw
            | M::Fnstenv
            | M::Fnsave
            | M::Fneni
            | M::Fndisi
            | M::Fnsetpm
    );
    op.extra = if waits { needs::WAIT } else { 0 };
    match mnemonic {
        M::Fninit | M::Finit => return Some(initialize),
        M::Fnclex | M::Fclex => return Some(clear_exceptions),
        M::Fnstsw | M::Fstsw if instruction.op0_kind() == OpKind::Register => return Some(status_to_ax),
        M::Fnstsw | M::Fstsw => return Some(store_word::<2>),
        M::Fnstcw | M::Fstcw => return Some(store_word::<0>),
        // Of the 8087 and 80287: nothing since.
        M::Fneni | M::Feni | M::Fndisi | M::Fdisi | M::Fnsetpm | M::Fsetpm => {
            return Some(crate::exec::nothing);
        }
        M::Frstpm | M::Fstdw | M::Fstsg | M::Fnstdw | M::Fnstsg => return None,
        _ => {}
    }
    if matches!(
        mnemonic,
        M::Fldcw | M::Fldenv | M::Frstor | M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave
    ) {
        op.extra |= needs::CONTROL;
    }
    if matches!(mnemonic, M::Fldenv | M::Frstor | M::Fnsave | M::Fsave) {
        op.extra |= needs::POINTERS;
    }
    if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory {
        let bytes = instruction.memory_size().size();
        if bytes > LARGEST {
            return None;
        }
        op.third = bytes as u8;
        let stores = matches!(
            mnemonic,
            M::Fst
                | M::Fstp
                | M::Fist
                | M::Fistp
                | M::Fisttp
                | M::Fbstp
                | M::Fnstenv
                | M::Fstenv
                | M::Fnsave
                | M::Fsave
        );
        if stores {
            op.extra |= needs::STORE;
        }
    }
    // The forms that wait differ by a prefix, for which this handler does.
    let mut plain = *instruction;
    match instruction.code() {
        Code::Fstenv_m14byte => plain.set_code(Code::Fnstenv_m14byte),
        Code::Fstenv_m28byte => plain.set_code(Code::Fnstenv_m28byte),
        Code::Fsave_m94byte => plain.set_code(Code::Fnsave_m94byte),
        Code::Fsave_m108byte => plain.set_code(Code::Fnsave_m108byte),
        _ => {}
    }
    op.imm = thunk::x87(&plain)? as u64;
    Some(if op.third == 0 { registers } else { memory })
}

/// Executes the instruction on an image; what the guest sees of addresses is its own.
///
/// # Safety
/// `op.imm` is what `thunk::x87` made; `operand` has as many bytes as the instruction wants.
unsafe fn execute(cpu: &mut Cpu, op: &Op, image: *mut u8, operand: *mut u8, address: Option<u64>) {
    let mut frame = Frame::new();
    frame.flags = cpu.status & flags::STATUS;
    let mut before = [0_u8; POINTERS.end - POINTERS.start];
    // SAFETY: the image has 512 bytes.
    unsafe { std::ptr::copy_nonoverlapping(image.add(POINTERS.start), before.as_mut_ptr(), before.len()) };
    // SAFETY: the caller's; the image is aligned, and its MXCSR has no reserved bits (see `ExtendedState::set_mxcsr`).
    unsafe {
        std::mem::transmute::<usize, Thunk>(op.imm as usize)(image, operand, (&raw mut frame).cast());
    }
    cpu.status = frame.flags & flags::STATUS;
    if op.extra & needs::POINTERS != 0 {
        return;
    }
    if op.extra & needs::CONTROL == 0 {
        // The code of a memory operand's form is that of `[rsi]`.
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(image.add(POINTERS.start), before.as_mut_ptr(), 2) };
        let at = cpu.block_start().wrapping_add(u64::from(op.start));
        before[2..10].copy_from_slice(&at.to_le_bytes());
        // As CPUID says (FDP_EXCPTN_ONLY): the operand's address is kept only for an exception that is not masked.
        // SAFETY: as above.
        let summary = unsafe { image.add(2).read() } & 0x80 != 0;
        if let Some(address) = address
            && summary
        {
            before[10..18].copy_from_slice(&address.to_le_bytes());
        }
    }
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(before.as_ptr(), image.add(POINTERS.start), before.len()) };
}

unsafe fn registers(cpu: &mut Cpu, op: &Op) -> Flow {
    if op.extra & needs::WAIT != 0 {
        attempt!(cpu.check_x87());
    }
    let image = cpu.extended.legacy.as_mut_ptr();
    // SAFETY: `lower` made the code; there is no memory operand.
    unsafe { execute(cpu, op, image, std::ptr::null_mut(), None) };
    Flow::Next
}

unsafe fn memory(cpu: &mut Cpu, op: &Op) -> Flow {
    if op.extra & needs::WAIT != 0 {
        attempt!(cpu.check_x87());
    }
    let bytes = usize::from(op.third);
    let mut operand = [0_u8; LARGEST];
    let offset = cpu.offset(&op.mem);
    if op.extra & needs::STORE == 0 {
        let address = attempt!(cpu.address(&op.mem, bytes as u64, Access::Read));
        attempt!(cpu.read_bytes(address, &mut operand[..bytes]));
        let image = cpu.extended.legacy.as_mut_ptr();
        // SAFETY: `lower` made the code; the operand is in the buffer.
        unsafe { execute(cpu, op, image, operand.as_mut_ptr(), Some(offset)) };
        return Flow::Next;
    }
    let address = attempt!(cpu.address(&op.mem, bytes as u64, Access::Write));
    // On a copy, as the store may fault. An exception that is not masked may keep the instruction from storing at all, which shows in that the buffer stays as
    // it was: whatever that is.
    let status = cpu.status;
    let mut image = Image(cpu.extended.legacy);
    let mut stored = false;
    for pattern in [0x5a, 0xa5] {
        image = Image(cpu.extended.legacy);
        cpu.status = status;
        operand[..bytes].fill(pattern);
        // SAFETY: as above.
        unsafe { execute(cpu, op, image.0.as_mut_ptr(), operand.as_mut_ptr(), Some(offset)) };
        stored = operand[..bytes].iter().any(|&byte| byte != pattern);
        if stored {
            break;
        }
    }
    if stored {
        attempt!(cpu.write_bytes(address, &operand[..bytes]));
    }
    cpu.extended.legacy = image.0;
    Flow::Next
}

/// `fninit`, `finit`.
unsafe fn initialize(cpu: &mut Cpu, op: &Op) -> Flow {
    if op.extra & needs::WAIT != 0 {
        attempt!(cpu.check_x87());
    }
    cpu.extended.initialize_x87();
    Flow::Next
}

/// `fnclex`, `fclex`.
unsafe fn clear_exceptions(cpu: &mut Cpu, op: &Op) -> Flow {
    if op.extra & needs::WAIT != 0 {
        attempt!(cpu.check_x87());
    }
    let status = cpu.extended.status_word();
    cpu.extended.set_word(2, status & 0x7f00);
    Flow::Next
}

/// `fnstsw ax`.
unsafe fn status_to_ax(cpu: &mut Cpu, op: &Op) -> Flow {
    if op.extra & needs::WAIT != 0 {
        attempt!(cpu.check_x87());
    }
    let status = cpu.extended.status_word();
    cpu.set_reg(gpr::RAX as u8 * 8, status);
    Flow::Next
}

/// `fnstcw`, `fnstsw` to memory: the word at `AT` in the image.
unsafe fn store_word<const AT: usize>(cpu: &mut Cpu, op: &Op) -> Flow {
    if op.extra & needs::WAIT != 0 {
        attempt!(cpu.check_x87());
    }
    let address = attempt!(cpu.address(&op.mem, u16::BYTES, Access::Write));
    let value = cpu.extended.word(AT);
    attempt!(cpu.store(address, value));
    Flow::Next
}

/// `wait`.
pub(crate) unsafe fn wait(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        cpu.raise(vector::NM);
        return Flow::Fault;
    }
    attempt!(cpu.check_x87());
    Flow::Next
}

impl ExtendedState {
    /// Makes the x87 part what a processor would have after loading it: reserved bits as they are, summary bits as exceptions and masks say.
    pub(crate) fn settle(&mut self) {
        let host = 0x1f80_u32;
        let image = self.legacy.as_mut_ptr();
        // SAFETY: the image is aligned and its MXCSR has no reserved bits; afterwards x87 and MXCSR are as the ABI wants them.
        unsafe {
            std::arch::asm!("fxrstor64 [{image}]", "fxsave64 [{image}]", "fninit", "ldmxcsr [{host}]",
                image = in(reg) image, host = in(reg) &raw const host, clobber_abi("sysv64"), options(nostack));
        }
    }
}
