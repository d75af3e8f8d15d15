//! The way between Rust and translated code.

use std::arch::naked_asm;
use std::mem::offset_of;

use super::{Info, Link};
use crate::op::Flow;
use crate::state::{Cpu, gpr};

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
    // SAFETY: the caller's; `cpu` is exclusively borrowed while the code executes.
    match unsafe { enter_code(cpu, code) } {
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
