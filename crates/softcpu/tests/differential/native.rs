//! Execution by the real processor, in a child process.

use std::arch::global_asm;
use std::ptr;

use crate::case::{CODE, CODE_BYTES, Case, DATA, DATA_BYTES, Outcome, STACK, STACK_BYTES};

/// Where the address to jump to lies, in reach of an absolute address.
const TARGET: usize = 0x0f00_0000;

/// Bytes of the stack that signal handlers run on.
const HANDLER_STACK: usize = 1 << 17;

global_asm!(
    ".data",
    ".balign 8",
    "softcpu_test_stack: .quad 0",
    "softcpu_test_mxcsr: .long 0x1f80",
    ".text",
    // extern "C" fn(case): loads its registers and jumps to the address at TARGET.
    "softcpu_test_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + softcpu_test_stack], rsp",
    "fxrstor64 [rdi + {fx}]",
    "push [rdi + {flags}]",
    "popfq",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rsp, [rdi + 32]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jmp qword ptr [0x0f000000]",
    // The signal handler returns to here.
    "softcpu_test_resume:",
    "mov rsp, [rip + softcpu_test_stack]",
    "cld",
    "fninit",
    "ldmxcsr [rip + softcpu_test_mxcsr]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    fx = const std::mem::offset_of!(Case, fx),
    flags = const std::mem::offset_of!(Case, rflags),
);

unsafe extern "C" {
    fn softcpu_test_enter(case: *const Case);
    fn softcpu_test_resume();
}

/// The outcome that the signal handler fills in. Written and read by the child's only thread.
static mut OUTCOME: *mut Outcome = ptr::null_mut();

extern "C" fn caught(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's context; the child has one thread, and the handler runs while it executes a case.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let outcome = &mut *OUTCOME;
        let registers = &mut context.uc_mcontext.gregs;
        let order = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        for (value, register) in outcome.gpr.iter_mut().zip(order) {
            *value = registers[register as usize] as u64;
        }
        outcome.rip = registers[libc::REG_RIP as usize] as u64;
        outcome.rflags = registers[libc::REG_EFL as usize] as u64;
        outcome.vector = registers[libc::REG_TRAPNO as usize] as u64;
        outcome.error = registers[libc::REG_ERR as usize] as u64;
        outcome.cr2 = registers[libc::REG_CR2 as usize] as u64;
        ptr::copy_nonoverlapping(
            context.uc_mcontext.fpregs.cast::<u8>(),
            outcome.fx.as_mut_ptr(),
            512,
        );
        outcome.done = 1;
        registers[libc::REG_RIP as usize] = softcpu_test_resume as *const () as usize as i64;
    }
}

unsafe fn map(address: usize, bytes: usize) {
    // SAFETY: in a child that maps nothing else there; MAP_FIXED_NOREPLACE makes sure of it.
    let at = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE,
            -1,
            0,
        )
    };
    if at as usize != address {
        // SAFETY: ends the child.
        unsafe { libc::_exit(3) };
    }
}

/// Everything the child does; no allocation, no lock.
unsafe fn child(cases: &[Case], data: &[u8], stack: &[u8], outcomes: *mut Outcome) -> ! {
    // SAFETY: a fresh child of one thread; all pointers are of mappings made here or by the parent.
    unsafe {
        map(TARGET, 4096);
        map(CODE as usize, CODE_BYTES);
        map(DATA as usize, DATA_BYTES);
        map(STACK as usize, STACK_BYTES);
        let handler_stack = libc::mmap(
            ptr::null_mut(),
            HANDLER_STACK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        let alternate = libc::stack_t {
            ss_sp: handler_stack,
            ss_flags: 0,
            ss_size: HANDLER_STACK,
        };
        libc::sigaltstack(&raw const alternate, ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = caught as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        libc::alarm(60);
        for (index, case) in cases.iter().enumerate() {
            ptr::write_bytes(CODE as *mut u8, 0xcc, CODE_BYTES);
            ptr::copy_nonoverlapping(case.code.as_ptr(), case.rip as *mut u8, case.code_bytes as usize);
            ptr::copy_nonoverlapping(data.as_ptr(), DATA as *mut u8, DATA_BYTES);
            ptr::copy_nonoverlapping(stack.as_ptr(), STACK as *mut u8, STACK_BYTES);
            let outcome = &mut *outcomes.add(index);
            OUTCOME = outcome;
            (TARGET as *mut u64).write_volatile(case.rip);
            softcpu_test_enter(case);
            ptr::copy_nonoverlapping(DATA as *const u8, outcome.data.as_mut_ptr(), DATA_BYTES);
            ptr::copy_nonoverlapping(STACK as *const u8, outcome.stack.as_mut_ptr(), STACK_BYTES);
        }
        libc::_exit(0);
    }
}

/// Memory shared with children.
pub struct Shared {
    outcomes: *mut Outcome,
    count: usize,
}

impl Shared {
    pub fn new(count: usize) -> Self {
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * size_of::<Outcome>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self {
            outcomes: at.cast(),
            count,
        }
    }

    /// What the processor makes of `cases`. Those it did not come to the end of (a case that never ends) have `done` 0.
    pub fn run(&mut self, cases: &[Case], data: &[u8], stack: &[u8]) -> &[Outcome] {
        assert!(cases.len() <= self.count && data.len() == DATA_BYTES && stack.len() == STACK_BYTES);
        for index in 0..cases.len() {
            // SAFETY: inside the mapping; no child runs.
            unsafe { (*self.outcomes.add(index)).done = 0 };
        }
        // SAFETY: the child touches only what `child` says.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: in the child.
            unsafe { child(cases, data, stack, self.outcomes) };
        }
        let mut status = 0;
        // SAFETY: our own child.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        // SAFETY: the child is gone; all bytes are initialized (the kernel's zeroes, or the child's).
        unsafe { std::slice::from_raw_parts(self.outcomes, cases.len()) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe { libc::munmap(self.outcomes.cast(), self.count * size_of::<Outcome>()) };
    }
}
