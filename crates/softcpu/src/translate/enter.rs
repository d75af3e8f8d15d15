//! The way between Rust and translated code.

use std::arch::naked_asm;
use std::mem::offset_of;

use super::{Info, Link};
use crate::op::Flow;
use crate::state::{Cpu, gpr, mode};

/// Why translated code was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// `Cpu::rip` is where to go on.
    Jump,
    /// The instruction at `Cpu::rip` faulted; what it is, is in `Cpu::fault`.
    Fault,
    /// As `Jump`, by a jump that can be linked.
    Link(*const Link),
}

/// # Safety
/// `code` is a translation made for this processor in its present mode and at its present address.
pub(crate) unsafe fn enter(cpu: &mut Cpu, code: *const u8) -> Left {
    let user = cpu.mode & mode::USER != 0;
    // SAFETY: the caller's; `cpu` is exclusively borrowed while the code executes.
    match unsafe {
        if user {
            enter_user(cpu, code)
        } else {
            enter_code(cpu, code)
        }
    } {
        0 => Left::Jump,
        1 => Left::Fault,
        link => Left::Link(link as *const Link),
    }
}

macro_rules! slot {
    ($number:expr) => {
        offset_of!(Cpu, regs) + 8 * $number
    };
}

/// Loads the guest's registers and jumps to `code`; comes back through [`leave`] or from [`fallback_entry`].
///
/// # Safety
/// As [`enter`].
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_code(cpu: *mut Cpu, code: *const u8) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov r15, rdi",
        "mov r14, rsi",
        "mov rax, [r15 + {rax}]",
        "mov rcx, [r15 + {rcx}]",
        "mov rdx, [r15 + {rdx}]",
        "mov rbx, [r15 + {rbx}]",
        "mov r12, [r15 + {rsp}]",
        "mov rbp, [r15 + {rbp}]",
        "mov rsi, [r15 + {rsi}]",
        "mov rdi, [r15 + {rdi}]",
        "mov r8, [r15 + {r8}]",
        "mov r9, [r15 + {r9}]",
        "mov r10, [r15 + {r10}]",
        "mov r11, [r15 + {r11}]",
        "jmp r14",
        rax = const slot!(gpr::RAX),
        rcx = const slot!(gpr::RCX),
        rdx = const slot!(gpr::RDX),
        rbx = const slot!(gpr::RBX),
        rsp = const slot!(gpr::RSP),
        rbp = const slot!(gpr::RBP),
        rsi = const slot!(gpr::RSI),
        rdi = const slot!(gpr::RDI),
        r8 = const slot!(8),
        r9 = const slot!(9),
        r10 = const slot!(10),
        r11 = const slot!(11),
    )
}

/// Jumped to out of translated code, R13 being what [`enter_code`] returns.
///
/// # Safety
/// Only to be jumped to by translated code.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn leave() {
    naked_asm!(
        "mov [r15 + {rax}], rax",
        "mov [r15 + {rcx}], rcx",
        "mov [r15 + {rdx}], rdx",
        "mov [r15 + {rbx}], rbx",
        "mov [r15 + {rsp}], r12",
        "mov [r15 + {rbp}], rbp",
        "mov [r15 + {rsi}], rsi",
        "mov [r15 + {rdi}], rdi",
        "mov [r15 + {r8}], r8",
        "mov [r15 + {r9}], r9",
        "mov [r15 + {r10}], r10",
        "mov [r15 + {r11}], r11",
        "mov rax, r13",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        rax = const slot!(gpr::RAX),
        rcx = const slot!(gpr::RCX),
        rdx = const slot!(gpr::RDX),
        rbx = const slot!(gpr::RBX),
        rsp = const slot!(gpr::RSP),
        rbp = const slot!(gpr::RBP),
        rsi = const slot!(gpr::RSI),
        rdi = const slot!(gpr::RDI),
        r8 = const slot!(8),
        r9 = const slot!(9),
        r10 = const slot!(10),
        r11 = const slot!(11),
    )
}

/// Called out of translated code, R13 pointing to an [`Info`]: executes its instruction in the interpreter. Comes back when the block goes on; leaves otherwise.
///
/// # Safety
/// Only to be called by translated code.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn fallback_entry() {
    naked_asm!(
        "mov [r15 + {rax}], rax",
        "mov [r15 + {rcx}], rcx",
        "mov [r15 + {rdx}], rdx",
        "mov [r15 + {rbx}], rbx",
        "mov [r15 + {rsp}], r12",
        "mov [r15 + {rbp}], rbp",
        "mov [r15 + {rsi}], rsi",
        "mov [r15 + {rdi}], rdi",
        "mov [r15 + {r8}], r8",
        "mov [r15 + {r9}], r9",
        "mov [r15 + {r10}], r10",
        "mov [r15 + {r11}], r11",
        "mov rdi, r15",
        "mov rsi, r13",
        "sub rsp, 8",
        "cld",
        "call {fallback}",
        "add rsp, 8",
        "cmp rax, 2",
        "jne 2f",
        "mov rax, [r15 + {rax}]",
        "mov rcx, [r15 + {rcx}]",
        "mov rdx, [r15 + {rdx}]",
        "mov rbx, [r15 + {rbx}]",
        "mov r12, [r15 + {rsp}]",
        "mov rbp, [r15 + {rbp}]",
        "mov rsi, [r15 + {rsi}]",
        "mov rdi, [r15 + {rdi}]",
        "mov r8, [r15 + {r8}]",
        "mov r9, [r15 + {r9}]",
        "mov r10, [r15 + {r10}]",
        "mov r11, [r15 + {r11}]",
        "ret",
        "2:",
        // The return address and the alignment.
        "add rsp, 16",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        fallback = sym fallback,
        rax = const slot!(gpr::RAX),
        rcx = const slot!(gpr::RCX),
        rdx = const slot!(gpr::RDX),
        rbx = const slot!(gpr::RBX),
        rsp = const slot!(gpr::RSP),
        rbp = const slot!(gpr::RBP),
        rsi = const slot!(gpr::RSI),
        rdi = const slot!(gpr::RDI),
        r8 = const slot!(8),
        r9 = const slot!(9),
        r10 = const slot!(10),
        r11 = const slot!(11),
    )
}

/// One instruction in the interpreter. 0 and 1 leave the code as [`enter_code`] says; 2: the block goes on.
unsafe extern "sysv64" fn fallback(cpu: *mut Cpu, info: *const Info) -> u64 {
    // SAFETY: R15 is the processor that `enter` borrowed exclusively, and the code uses none of it meanwhile; the info lives as long as the code.
    let (cpu, info) = unsafe { (&mut *cpu, &*info) };
    cpu.regs[gpr::BLOCK] = info.rip;
    cpu.block_page = info.page;
    // SAFETY: the decoder made the operands that this handler expects.
    match unsafe { (info.op.run)(cpu, &info.op) } {
        Flow::Next if cpu.mode & mode::USER != 0 && !cpu.masks_exceptions() => {
            // Vector instructions could fault now: they are the interpreter's.
            cpu.rip = info.op.next(cpu);
            0
        }
        Flow::Next => 2,
        Flow::Jump => 0,
        Flow::Leave => {
            cpu.rip = info.op.next(cpu);
            0
        }
        Flow::Fault => {
            cpu.rip = info.rip.wrapping_add(u64::from(info.op.start));
            1
        }
    }
}

/// What the host's code expects MXCSR to be.
static HOST_MXCSR: u32 = 0x1f80;

/// As [`enter_code`], with the guest's XMM registers and MXCSR in the host's: for code of user programs.
///
/// # Safety
/// As [`enter`].
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_user(cpu: *mut Cpu, code: *const u8) -> u64 {
    naked_asm!(
        "mov rax, [rdi + {extended}]",
        "movups xmm0, [rax + 160]",
        "movups xmm1, [rax + 176]",
        "movups xmm2, [rax + 192]",
        "movups xmm3, [rax + 208]",
        "movups xmm4, [rax + 224]",
        "movups xmm5, [rax + 240]",
        "movups xmm6, [rax + 256]",
        "movups xmm7, [rax + 272]",
        "movups xmm8, [rax + 288]",
        "movups xmm9, [rax + 304]",
        "movups xmm10, [rax + 320]",
        "movups xmm11, [rax + 336]",
        "movups xmm12, [rax + 352]",
        "movups xmm13, [rax + 368]",
        "movups xmm14, [rax + 384]",
        "movups xmm15, [rax + 400]",
        "ldmxcsr [rax + 24]",
        "jmp {enter}",
        extended = const offset_of!(Cpu, extended),
        enter = sym enter_code,
    )
}

/// As [`leave`], for code of user programs.
///
/// # Safety
/// Only to be jumped to by translated code.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn leave_user() {
    naked_asm!(
        "mov r14, [r15 + {extended}]",
        "movups [r14 + 160], xmm0",
        "movups [r14 + 176], xmm1",
        "movups [r14 + 192], xmm2",
        "movups [r14 + 208], xmm3",
        "movups [r14 + 224], xmm4",
        "movups [r14 + 240], xmm5",
        "movups [r14 + 256], xmm6",
        "movups [r14 + 272], xmm7",
        "movups [r14 + 288], xmm8",
        "movups [r14 + 304], xmm9",
        "movups [r14 + 320], xmm10",
        "movups [r14 + 336], xmm11",
        "movups [r14 + 352], xmm12",
        "movups [r14 + 368], xmm13",
        "movups [r14 + 384], xmm14",
        "movups [r14 + 400], xmm15",
        "stmxcsr [r14 + 24]",
        "ldmxcsr [{host}]",
        "jmp {leave}",
        extended = const offset_of!(Cpu, extended),
        host = sym HOST_MXCSR,
        leave = sym leave,
    )
}

/// As [`fallback_entry`], for code of user programs. When it comes back, the vector registers are those of the host's code: [`reload_user`] is to be called.
///
/// # Safety
/// Only to be called by translated code.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn fallback_user() {
    naked_asm!(
        "mov r14, [r15 + {extended}]",
        "movups [r14 + 160], xmm0",
        "movups [r14 + 176], xmm1",
        "movups [r14 + 192], xmm2",
        "movups [r14 + 208], xmm3",
        "movups [r14 + 224], xmm4",
        "movups [r14 + 240], xmm5",
        "movups [r14 + 256], xmm6",
        "movups [r14 + 272], xmm7",
        "movups [r14 + 288], xmm8",
        "movups [r14 + 304], xmm9",
        "movups [r14 + 320], xmm10",
        "movups [r14 + 336], xmm11",
        "movups [r14 + 352], xmm12",
        "movups [r14 + 368], xmm13",
        "movups [r14 + 384], xmm14",
        "movups [r14 + 400], xmm15",
        "stmxcsr [r14 + 24]",
        "ldmxcsr [{host}]",
        "jmp {fallback}",
        extended = const offset_of!(Cpu, extended),
        host = sym HOST_MXCSR,
        fallback = sym fallback_entry,
    )
}

/// Has the guest's vector registers in the host's again.
///
/// # Safety
/// Only to be called by translated code.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn reload_user() {
    naked_asm!(
        "mov r14, [r15 + {extended}]",
        "movups xmm0, [r14 + 160]",
        "movups xmm1, [r14 + 176]",
        "movups xmm2, [r14 + 192]",
        "movups xmm3, [r14 + 208]",
        "movups xmm4, [r14 + 224]",
        "movups xmm5, [r14 + 240]",
        "movups xmm6, [r14 + 256]",
        "movups xmm7, [r14 + 272]",
        "movups xmm8, [r14 + 288]",
        "movups xmm9, [r14 + 304]",
        "movups xmm10, [r14 + 320]",
        "movups xmm11, [r14 + 336]",
        "movups xmm12, [r14 + 352]",
        "movups xmm13, [r14 + 368]",
        "movups xmm14, [r14 + 384]",
        "movups xmm15, [r14 + 400]",
        "ldmxcsr [r14 + 24]",
        "ret",
        extended = const offset_of!(Cpu, extended),
    )
}
