//! What a program without libc needs from x86-64 Linux: the entry point, system calls, the memory
//! functions the compiler calls, and text on stderr.
//!
//! System call numbers and register use: `arch/x86/entry/syscalls/syscall_64.tbl` and
//! `syscall(2)`. Structures are the kernel's own, not libc's.

#![allow(dead_code)]

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("programs/sys.rs has the entry point and the system calls of x86-64 Linux only");

pub const ENOENT: isize = 2;
pub const ENOEXEC: isize = 8;
pub const EACCES: isize = 13;
pub const ENOTDIR: isize = 20;
pub const EAGAIN: isize = 11;
pub const EINTR: isize = 4;

// At program start the stack pointer holds argc, argv, NULL, envp, NULL (System V ABI, 3.4.1).
// The ABI wants it 16-byte aligned at a call.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    entry = sym entry,
);

unsafe extern "Rust" {
    /// Every program defines this; it is called once, with the stack the kernel made.
    safe fn main(args: Args) -> i32;
}

unsafe extern "C" fn entry(stack: *mut usize) -> ! {
    // SAFETY: the kernel put argc and then argc + 1 pointers at the stack pointer; envp follows.
    let args = unsafe {
        let argc = *stack;
        let argv = stack.add(1).cast::<*const c_char>();
        Args {
            argc,
            argv,
            envp: argv.add(argc + 1).cast_const(),
        }
    };
    exit(main(args))
}

/// The arguments and the environment as the kernel left them.
#[derive(Clone, Copy)]
pub struct Args {
    pub argc: usize,
    pub argv: *mut *const c_char,
    pub envp: *const *const c_char,
}

impl Args {
    /// Argument `index`, when there is one.
    pub fn get(&self, index: usize) -> Option<&'static CStr> {
        if index >= self.argc {
            return None;
        }
        // SAFETY: index < argc, and the kernel's strings end with NUL and live as long as the process.
        Some(unsafe { CStr::from_ptr(*self.argv.add(index)) })
    }

    /// The value of environment variable `name`.
    pub fn env(&self, name: &[u8]) -> Option<&'static [u8]> {
        let mut at = self.envp;
        loop {
            // SAFETY: the loop stops at the NULL that ends envp; entries are NUL-terminated strings.
            let entry = unsafe {
                if (*at).is_null() {
                    return None;
                }
                CStr::from_ptr(*at).to_bytes()
            };
            if let Some(rest) = entry.strip_prefix(name)
                && let Some(value) = rest.strip_prefix(b"=")
            {
                return Some(value);
            }
            // SAFETY: the entry just read was not the terminating NULL, so there is a next one.
            at = unsafe { at.add(1) };
        }
    }
}

/// A system call with up to five arguments; a negative result is `-errno`.
///
/// # Safety
/// The arguments must be what system call `number` expects.
pub unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers rcx and r11 only; memory is treated as clobbered by default.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: exit_group takes an integer and does not return.
        unsafe { syscall(231, code as usize, 0, 0, 0, 0) };
    }
}

/// Writes all of `text`, or as much as the descriptor takes.
pub fn write(fd: i32, mut text: &[u8]) {
    while !text.is_empty() {
        // SAFETY: pointer and length are those of a live slice.
        let written = unsafe { syscall(1, fd as usize, text.as_ptr() as usize, text.len(), 0, 0) };
        match written {
            n if n > 0 => text = text.get(n as usize..).unwrap_or(&[]),
            n if n == -EINTR => {}
            _ => return,
        }
    }
}

pub fn getpid() -> i32 {
    // SAFETY: getpid takes nothing and cannot fail.
    unsafe { syscall(39, 0, 0, 0, 0, 0) as i32 }
}

/// Writes `value` in decimal.
pub fn write_number(fd: i32, value: u32) {
    let mut digits = [0u8; 10];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    write(fd, &digits[at..]);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    write(2, b"vessel-init: internal error, please report it\n");
    exit(125)
}

// The compiler emits calls to these for copies, fills and comparisons. String instructions and
// volatile-free loops written in assembly, so that they are not turned into calls to themselves.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges, as for C's memcpy.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // Forwards when the start of the target is not inside the source.
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the caller vouches for both ranges; each byte is read before anything is written over it.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: as above, from the last byte (there is one) to the first; the direction flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") to.add(count - 1) => _,
            inout("rsi") from.add(count - 1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range, as for C's memset.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    let mut left = count;
    let (mut at_a, mut at_b) = (a, b);
    while left > 0 {
        let (x, y): (u8, u8);
        // SAFETY: the caller vouches for `count` bytes at both; `left` keeps the pointers inside.
        unsafe {
            asm!("mov {x}, [{a}]", "mov {y}, [{b}]", x = out(reg_byte) x, y = out(reg_byte) y,
                a = in(reg) at_a, b = in(reg) at_b, options(nostack, readonly, preserves_flags));
            at_a = at_a.add(1);
            at_b = at_b.add(1);
        }
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        left -= 1;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract as memcmp.
    unsafe { memcmp(a, b, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    loop {
        let byte: u8;
        // SAFETY: the caller vouches for a NUL-terminated string; the loop stops at the NUL.
        unsafe {
            asm!("mov {byte}, [{at}]", byte = out(reg_byte) byte, at = in(reg) text.add(length),
                options(nostack, readonly, preserves_flags));
        }
        if byte == 0 {
            return length;
        }
        length += 1;
    }
}
