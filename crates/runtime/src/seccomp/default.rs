//! The profile a container gets unless told otherwise: an allow-list of the breadth of Docker's.
//!
//! What it leaves out by default, and why, follows Docker's documentation ("Seccomp security profiles for Docker"):
//! calls that act on the host as a whole (modules, clocks, reboot, swap, quotas, accounting, kexec), that make or enter
//! namespaces or change mounts, that reach kernel interfaces with a record of escapes (bpf, perf, keyrings, io_uring,
//! userfaultfd), and obsolete ones. Capabilities open again what they are about: a container that has
//! `CAP_SYS_ADMIN` may mount. Sockets of the families `AF_ALG` and `AF_VSOCK` are refused: the first exposes the
//! kernel's crypto code, the second talks to the hypervisor past every network namespace. Not so for 32-bit programs that
//! call socketcall(2), whose arguments lie in memory, where no filter sees them: it stays allowed, as in Docker's.
//!
//! The lists hold names of all supported ABIs; the compiler skips what an ABI does not have.

use std::borrow::Cow;

use super::arch::Machine;
use super::docker::{Host, KernelVersion};
use super::profile::{Action, Architecture, Arg, Operator, Seccomp, Syscall};
use crate::capabilities::{CapSet, cap};

/// The default profile for a container on this host.
pub fn default_profile(host: &Host) -> Seccomp {
    let mut syscalls = vec![allow(ALWAYS.iter().copied().flatten())];
    if host.kernel
        >= (KernelVersion {
            version: 4,
            revision: 8,
        })
    {
        // Before 4.8 a tracer could change a call after the filter had seen it.
        syscalls.push(allow(&TRACING));
    }
    for family in ALLOWED_FAMILIES {
        syscalls.push(allow_if(&["socket"], family));
    }
    for persona in ALLOWED_PERSONAS {
        let condition = Arg {
            index: 0,
            value: persona,
            value_two: 0,
            op: Operator::Equal,
        };
        syscalls.push(allow_if(&["personality"], condition));
    }
    syscalls.push(allow(match host.machine {
        Machine::X86_64 => &["arch_prctl", "modify_ldt"][..],
        Machine::Aarch64 => &[
            "arm_fadvise64_64",
            "arm_sync_file_range",
            "breakpoint",
            "cacheflush",
            "set_tls",
            "sync_file_range2",
        ][..],
    }));
    for (capability, names) in BY_CAPABILITY {
        if host.bounding.contains(*capability) {
            syscalls.push(allow(*names));
        }
    }
    if !host.bounding.contains(cap::SYS_ADMIN) {
        let no_namespaces = Arg {
            index: 0,
            value: NAMESPACE_FLAGS,
            value_two: 0,
            op: Operator::MaskedEqual,
        };
        syscalls.push(allow_if(&["clone"], no_namespaces));
        // Its flags are in memory, which a filter cannot read. ENOSYS makes C libraries fall back to clone.
        syscalls.push(Syscall {
            names: vec![Cow::Borrowed("clone3")],
            action: Action::Errno,
            errno_ret: Some(libc::ENOSYS as u32),
            args: Vec::new(),
        });
    }
    Seccomp {
        default_action: Action::Errno,
        default_errno_ret: Some(libc::EPERM as u32),
        architectures: match host.machine {
            Machine::X86_64 => vec![Architecture::X86_64, Architecture::X86, Architecture::X32],
            Machine::Aarch64 => vec![Architecture::Aarch64, Architecture::Arm],
        },
        flags: None,
        listener_path: String::new(),
        listener_metadata: String::new(),
        syscalls,
    }
}

fn allow<'a>(names: impl IntoIterator<Item = &'a &'static str>) -> Syscall {
    Syscall {
        names: names.into_iter().map(|name| Cow::Borrowed(*name)).collect(),
        action: Action::Allow,
        errno_ret: None,
        args: Vec::new(),
    }
}

fn allow_if(names: &[&'static str], condition: Arg) -> Syscall {
    Syscall {
        args: vec![condition],
        ..allow(names)
    }
}

/// `CLONE_NEW…`, all but `CLONE_NEWTIME`, which clone(2) does not take.
const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Socket families: all up to 63 (the kernel has 46) but `AF_ALG` (38) and `AF_VSOCK` (40). The kernel looks at the lower 32
/// bits of the argument only, and so must the filter.
const ALLOWED_FAMILIES: [Arg; 8] = [
    families(0, 32),
    families(32, 4),
    families(36, 2),
    families(39, 1),
    families(41, 1),
    families(42, 2),
    families(44, 4),
    families(48, 16),
];

/// `count` families from `first` on; `count` is a power of two, `first` a multiple of it.
const fn families(first: u64, count: u64) -> Arg {
    Arg {
        index: 0,
        value: 0xffff_ffff & !(count - 1),
        value_two: first,
        op: Operator::MaskedEqual,
    }
}

/// `PER_LINUX`, `PER_LINUX32`, either with `UNAME26`, and the query.
const ALLOWED_PERSONAS: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const TRACING: [&str; 3] = ["process_vm_readv", "process_vm_writev", "ptrace"];

/// What a capability in the bounding set opens.
const BY_CAPABILITY: &[(CapSet, &[&str])] = &[
    (cap::DAC_READ_SEARCH, &["open_by_handle_at"]),
    (
        cap::SYS_ADMIN,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (cap::SYS_BOOT, &["reboot"]),
    (cap::SYS_CHROOT, &["chroot"]),
    (cap::SYS_MODULE, &["delete_module", "finit_module", "init_module"]),
    (cap::SYS_PACCT, &["acct"]),
    (
        cap::SYS_PTRACE,
        &[
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
    ),
    (cap::SYS_RAWIO, &["ioperm", "iopl"]),
    (
        cap::SYS_TIME,
        &["clock_settime", "clock_settime64", "settimeofday", "stime"],
    ),
    (cap::SYS_TTY_CONFIG, &["vhangup"]),
    (
        cap::SYS_NICE,
        &[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
    (cap::SYSLOG, &["syslog"]),
    (cap::BPF, &["bpf"]),
    (cap::PERFMON, &["perf_event_open"]),
];

/// What every container may do.
const ALWAYS: [&[&str]; 12] = [
    PATHS, ATTRIBUTES, FILES, WAITING, MEMORY, PROCESSES, SIGNALS, IDENTITY, SCHEDULING, TIME, SOCKETS, IPC,
];

/// Names in the file system.
#[rustfmt::skip]
const PATHS: &[&str] = &[
    "access", "chdir", "chmod", "chown", "chown32", "creat", "faccessat", "faccessat2", "fchdir", "fchmod",
    "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "futimesat", "getcwd", "inotify_add_watch",
    "inotify_init", "inotify_init1", "inotify_rm_watch", "fanotify_mark", "lchown", "lchown32", "link", "linkat",
    "listmount", "mkdir", "mkdirat", "mknod", "mknodat", "name_to_handle_at", "open", "openat", "openat2",
    "readlink", "readlinkat", "rename", "renameat", "renameat2", "rmdir", "statmount", "symlink", "symlinkat",
    "umask", "unlink", "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes",
];

/// What is known of a file: status, extended attributes, limits of its file system.
#[rustfmt::skip]
const ATTRIBUTES: &[&str] = &[
    "fgetxattr", "flistxattr", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64",
    "getxattr", "getxattrat", "lgetxattr", "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lsetxattr",
    "lstat", "lstat64", "newfstatat", "removexattr", "removexattrat", "setxattr", "setxattrat", "stat", "stat64",
    "statfs", "statfs64", "statx",
];

/// Descriptors, and what is read and written through them.
#[rustfmt::skip]
const FILES: &[&str] = &[
    "_llseek", "close", "close_range", "copy_file_range", "dup", "dup2", "dup3", "fadvise64", "fadvise64_64",
    "fallocate", "fcntl", "fcntl64", "fdatasync", "flock", "fsync", "ftruncate", "ftruncate64", "getdents",
    "getdents64", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup",
    "io_submit", "ioctl", "lseek", "memfd_create", "memfd_secret", "pipe", "pipe2", "pread64", "preadv", "preadv2",
    "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readv", "sendfile", "sendfile64", "splice", "sync",
    "sync_file_range", "syncfs", "tee", "truncate", "truncate64", "vmsplice", "write", "writev",
];

/// Waiting for descriptors.
#[rustfmt::skip]
const WAITING: &[&str] = &[
    "_newselect", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "poll", "ppoll", "ppoll_time64", "pselect6",
    "pselect6_time64", "select",
];

/// Memory of one's own.
#[rustfmt::skip]
const MEMORY: &[&str] = &[
    "brk", "cachestat", "madvise", "map_shadow_stack", "membarrier", "mincore", "mlock", "mlock2", "mlockall",
    "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc",
    "pkey_free", "pkey_mprotect", "process_mrelease", "remap_file_pages",
];

/// Processes and threads.
#[rustfmt::skip]
const PROCESSES: &[&str] = &[
    "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue",
    "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getpgid",
    "getpgrp", "getpid", "getppid", "getrandom", "getrlimit", "getrusage", "getsid", "gettid",
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "pidfd_open", "prctl", "prlimit64",
    "rseq", "seccomp", "set_robust_list", "set_thread_area", "set_tid_address", "setpgid", "setrlimit", "setsid",
    "sysinfo", "ugetrlimit", "uname", "uretprobe", "vfork", "wait4", "waitid", "waitpid",
];

/// Signals.
#[rustfmt::skip]
const SIGNALS: &[&str] = &[
    "kill", "pause", "pidfd_send_signal", "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo", "sigaltstack", "signalfd", "signalfd4", "sigprocmask", "sigreturn", "tgkill", "tkill",
];

/// Users and groups.
#[rustfmt::skip]
const IDENTITY: &[&str] = &[
    "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32", "getresgid",
    "getresgid32", "getresuid", "getresuid32", "getuid", "getuid32", "setfsgid", "setfsgid32", "setfsuid",
    "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setregid", "setregid32", "setresgid",
    "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setuid", "setuid32",
];

/// Shares of processor and disk.
#[rustfmt::skip]
const SCHEDULING: &[&str] = &[
    "getcpu", "getpriority", "ioprio_get", "ioprio_set", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
    "sched_yield", "setpriority",
];

/// Clocks and timers; the kernel itself lets only the privileged set them.
#[rustfmt::skip]
const TIME: &[&str] = &[
    "adjtimex", "alarm", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64",
    "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getitimer", "gettimeofday",
    "nanosleep", "setitimer", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_gettime64", "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime",
    "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "times",
];

/// Sockets; making one depends on its family.
#[rustfmt::skip]
const SOCKETS: &[&str] = &[
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recv",
    "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt",
    "shutdown", "socketcall", "socketpair",
];

/// System V IPC and POSIX message queues.
#[rustfmt::skip]
const IPC: &[&str] = &[
    "ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop",
    "semtimedop", "semtimedop_time64", "shmat", "shmctl", "shmdt", "shmget",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::arch::Abi;

    #[test]
    fn no_name_twice_and_none_misspelt() {
        let mut all: Vec<&str> = ALWAYS.iter().copied().flatten().copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        all.extend(TRACING);
        all.extend(BY_CAPABILITY.iter().flat_map(|(_, names)| names.iter()));
        // Calls of other machines, or that no kernel ever had under this name but Docker's list has.
        let foreign = ["fstatat64", "clock_adjtime64"];
        for name in all {
            let known = [Abi::X86_64, Abi::I386, Abi::Aarch64, Abi::Arm]
                .iter()
                .any(|abi| abi.number(name).is_some());
            assert!(known || foreign.contains(&name), "{name}");
        }
    }

    #[test]
    fn namespace_flags() {
        assert_eq!(NAMESPACE_FLAGS, 0x7e02_0000);
    }
}
