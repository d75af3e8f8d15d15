//! Filters of system calls (`seccomp(2)`): lists of what may be called, by kind of process.
//!
//! All threads of a process have the same one: a vCPU's thread starts those of devices (when the guest's driver says that it is ready), and a
//! thread inherits its starter's filter, so a vCPU's could not be narrower than theirs.
//!
//! What is not on the list raises SIGSYS, which [`report`](super::report) turns into a line and the end of the process. `clone3` alone is
//! answered `ENOSYS`: its flags lie in memory, where a filter cannot look, and the C library falls back to `clone`, whose flags it can see.

use std::io;

use rustix::io::Errno;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It runs vCPUs and devices.
    Machine {
        /// It makes code: the accelerator is `soft`.
        makes_code: bool,
    },
    /// It serves shared directories, and does nothing else.
    Files,
}

/// One instruction of classic BPF (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// An argument's bits under `mask` must be `value`.
#[derive(Clone, Copy)]
struct Condition {
    argument: u32,
    mask: u64,
    value: u64,
}

/// When a call is allowed: when all conditions of one of the lists hold.
struct Rule {
    number: i64,
    alternatives: Vec<Vec<Condition>>,
}

fn when(number: i64, alternatives: &[(u32, u64, u64)]) -> Rule {
    Rule {
        number,
        alternatives: alternatives
            .iter()
            .map(|&(argument, mask, value)| {
                vec![Condition {
                    argument,
                    mask,
                    value,
                }]
            })
            .collect(),
    }
}

const WORD: u64 = 0xffff_ffff;

/// Linux 6.4; `libc` does not have it.
const PR_GET_AUXV: u64 = 0x4155_5856;

/// What every process needs: memory, threads, locks, clocks, descriptors it has.
const COMMON: &[i64] = &[
    libc::SYS_futex,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_getrandom,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // It can only take away.
    libc::SYS_seccomp,
];

/// What a machine needs beside it.
const MACHINE: &[i64] = &[
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_memfd_create,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_signalfd4,
    libc::SYS_sched_setaffinity,
    libc::SYS_getrusage,
    // For the end of the file server.
    libc::SYS_wait4,
    libc::SYS_sync_file_range,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_delete,
    libc::SYS_arch_prctl,
];

/// What the server of shared directories needs: files below descriptors it has.
const FILES: &[i64] = &[
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_openat2,
    libc::SYS_openat,
    libc::SYS_open,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
    libc::SYS_capget,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchownat,
    libc::SYS_fchmodat,
    libc::SYS_chmod,
    libc::SYS_utimensat,
    libc::SYS_copy_file_range,
    libc::SYS_syncfs,
    libc::SYS_fstatfs,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    libc::SYS_fchdir,
    libc::SYS_umask,
    libc::SYS_geteuid,
    libc::SYS_getegid,
];

/// The type of KVM's requests, in bits 8 to 15.
const KVMIO: u64 = 0xae00;
/// Those of TUN devices: offloads, header sizes.
const TUN: u64 = 0x5400;
/// Those of block devices: size, discard.
const BLOCK: u64 = 0x1200;

fn rules(kind: Kind) -> Vec<Rule> {
    let always = |number: &i64| Rule {
        number: *number,
        alternatives: vec![Vec::new()],
    };
    let mut rules: Vec<Rule> = COMMON.iter().map(always).collect();
    let threads = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
    // A new namespace is no thread's business.
    let namespaces = (libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP) as u64;
    rules.push(when(libc::SYS_clone, &[(0, threads | namespaces, threads)]));
    let own = u64::from(std::process::id());
    rules.push(when(libc::SYS_tgkill, &[(0, WORD, own)]));
    rules.push(when(
        libc::SYS_prctl,
        &[
            (0, WORD, libc::PR_SET_NAME as u64),
            (0, WORD, libc::PR_GET_NAME as u64),
            // The C library names its memory.
            (0, WORD, libc::PR_SET_VMA as u64),
            // A clock that wakes on time.
            (0, WORD, libc::PR_SET_TIMERSLACK as u64),
            // The page's size, the first time somebody wants to know it.
            (0, WORD, PR_GET_AUXV),
        ],
    ));
    // Limits are looked at, its own ones.
    let condition = |argument, value| Condition {
        argument,
        mask: u64::MAX,
        value,
    };
    rules.push(Rule {
        number: libc::SYS_prlimit64,
        alternatives: vec![vec![condition(0, 0), condition(2, 0)]],
    });
    let executable = (2, libc::PROT_EXEC as u64, 0);
    match kind {
        Kind::Machine { makes_code: true } => {
            rules.extend([libc::SYS_mmap, libc::SYS_mprotect].iter().map(always));
        }
        _ => {
            rules.push(when(libc::SYS_mmap, &[executable]));
            rules.push(when(libc::SYS_mprotect, &[executable]));
        }
    }
    match kind {
        Kind::Machine { .. } => {
            rules.extend(MACHINE.iter().map(always));
            let types = [KVMIO, TUN, BLOCK].map(|kind| (1, 0xff00, kind));
            rules.push(when(libc::SYS_ioctl, &types));
            // A connection of the guest to the host is a pair, one end of which is given away.
            rules.push(when(libc::SYS_socketpair, &[(0, WORD, libc::AF_UNIX as u64)]));
        }
        Kind::Files => {
            rules.extend(FILES.iter().map(always));
            // Each thread has a working directory of its own.
            rules.push(when(libc::SYS_unshare, &[(0, WORD, libc::CLONE_FS as u64)]));
        }
    }
    rules
}

fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let instruction = |code, yes, no, value| Instruction { code, yes, no, value };
    let load = |offset| instruction(LOAD, 0, 0, offset);
    let end = |value| instruction(RETURN, 0, 0, value);
    let mut program = vec![
        load(OFFSET_ARCH),
        instruction(JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        load(OFFSET_NUMBER),
        instruction(JUMP_EQUAL, 0, 1, libc::SYS_clone3 as u32),
        end(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    for rule in rules {
        let mut body = Vec::new();
        for conditions in &rule.alternatives {
            let mut checks = Vec::new();
            for condition in conditions {
                let low = OFFSET_ARGUMENTS + 8 * condition.argument;
                for (offset, shift) in [(low, 0), (low + 4, 32)] {
                    let mask = (condition.mask >> shift) as u32;
                    if mask != 0 {
                        checks.push((offset, mask, (condition.value >> shift) as u32));
                    }
                }
            }
            for (index, &(offset, mask, value)) in checks.iter().enumerate() {
                // Over what is left of this alternative: three for each check, and its end.
                let left = 3 * (checks.len() - index - 1) + 1;
                body.push(load(offset));
                body.push(instruction(AND, 0, 0, mask));
                body.push(instruction(JUMP_EQUAL, 0, left as u8, value));
            }
            body.push(end(libc::SECCOMP_RET_ALLOW));
        }
        if rule.alternatives.iter().all(|conditions| !conditions.is_empty()) {
            // The number is not in the accumulator any more: it is decided here.
            body.push(end(libc::SECCOMP_RET_TRAP));
        }
        program.push(instruction(JUMP_EQUAL, 0, body.len() as u8, rule.number as u32));
        program.extend(body);
    }
    program.push(end(libc::SECCOMP_RET_TRAP));
    program
}

/// Gives the calling thread, and all it will start, the filter. It stays for good. [`super::report::install`] comes first.
///
/// # Errors
/// When the kernel has no filters, or new privileges were not ruled out.
pub fn install(kind: Kind) -> io::Result<()> {
    let program = compile(&rules(kind));
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = Program {
        length,
        instructions: program.as_ptr(),
    };
    // SAFETY: `program` describes `length` instructions that are there until the call has come back; the kernel copies and checks them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            std::ptr::from_ref(&program),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Executes a program on a call.
    fn decide(program: &[Instruction], number: i64, arguments: [u64; 6]) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let instruction = program[at];
            at += 1;
            match instruction.code {
                LOAD => {
                    accumulator = match instruction.value {
                        OFFSET_NUMBER => number as u32,
                        OFFSET_ARCH => AUDIT_ARCH_X86_64,
                        offset => {
                            let argument = arguments[((offset - OFFSET_ARGUMENTS) / 8) as usize];
                            (argument >> (8 * (offset % 8))) as u32
                        }
                    };
                }
                AND => accumulator &= instruction.value,
                JUMP_EQUAL => {
                    let skip = if accumulator == instruction.value {
                        instruction.yes
                    } else {
                        instruction.no
                    };
                    at += usize::from(skip);
                }
                RETURN => return instruction.value,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn lists_decide() {
        const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
        const TRAP: u32 = libc::SECCOMP_RET_TRAP;
        let kvm = compile(&rules(Kind::Machine { makes_code: false }));
        let soft = compile(&rules(Kind::Machine { makes_code: true }));
        let files = compile(&rules(Kind::Files));
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FS) as u64;
        let rw = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let rx = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let own = u64::from(std::process::id());
        for (number, first, second, third, expected) in [
            (libc::SYS_read, 5, 0, 0, [ALLOW, ALLOW, ALLOW]),
            (libc::SYS_openat, 5, 0, 0, [TRAP, TRAP, ALLOW]),
            (libc::SYS_socket, 1, 0, 0, [TRAP, TRAP, TRAP]),
            (libc::SYS_connect, 1, 0, 0, [TRAP, TRAP, TRAP]),
            (libc::SYS_execve, 1, 0, 0, [TRAP, TRAP, TRAP]),
            (libc::SYS_ptrace, 1, 0, 0, [TRAP, TRAP, TRAP]),
            (libc::SYS_mount, 1, 0, 0, [TRAP, TRAP, TRAP]),
            (libc::SYS_kill, own, 9, 0, [TRAP, TRAP, TRAP]),
            (libc::SYS_tgkill, own, 9, 0, [ALLOW, ALLOW, ALLOW]),
            (libc::SYS_tgkill, 1, 9, 0, [TRAP, TRAP, TRAP]),
            (libc::SYS_clone, thread, 0, 0, [ALLOW, ALLOW, ALLOW]),
            (libc::SYS_clone, libc::SIGCHLD as u64, 0, 0, [TRAP, TRAP, TRAP]),
            (
                libc::SYS_clone,
                thread | libc::CLONE_NEWUSER as u64,
                0,
                0,
                [TRAP, TRAP, TRAP],
            ),
            (libc::SYS_mmap, 0, 0, rw, [ALLOW, ALLOW, ALLOW]),
            (libc::SYS_mmap, 0, 0, rx, [TRAP, ALLOW, TRAP]),
            (libc::SYS_ioctl, 0, 0xae80, 0, [ALLOW, ALLOW, TRAP]),
            (libc::SYS_ioctl, 0, 0x5412, 0, [ALLOW, ALLOW, TRAP]),
            (libc::SYS_ioctl, 0, 0x8912, 0, [TRAP, TRAP, TRAP]),
            (
                libc::SYS_socketpair,
                libc::AF_UNIX as u64,
                0,
                0,
                [ALLOW, ALLOW, TRAP],
            ),
            (
                libc::SYS_socketpair,
                libc::AF_INET as u64,
                0,
                0,
                [TRAP, TRAP, TRAP],
            ),
            (
                libc::SYS_unshare,
                libc::CLONE_FS as u64,
                0,
                0,
                [TRAP, TRAP, ALLOW],
            ),
            (
                libc::SYS_unshare,
                libc::CLONE_NEWUSER as u64,
                0,
                0,
                [TRAP, TRAP, TRAP],
            ),
            (-1, 0, 0, 0, [TRAP, TRAP, TRAP]),
        ] {
            for (program, expected) in [&kvm, &soft, &files].into_iter().zip(expected) {
                let got = decide(program, number, [first, second, third, 0, 0, 0]);
                assert_eq!(
                    got, expected,
                    "call {number} with {first:#x} {second:#x} {third:#x}"
                );
            }
        }
        let clone3 = decide(&kvm, libc::SYS_clone3, [0; 6]);
        assert_eq!(clone3, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    }
}
