//! The ABIs that rules are compiled for, and their system call numbers.
//!
//! The tables come from the `syscalls` crate (the kernel's `.tbl` files), with what they lack added here: x32, which is
//! x86_64 with a bit and 36 exceptions, the private calls of 32-bit ARM, and the multiplexed calls of 32-bit x86.

use std::sync::OnceLock;

use super::profile::Architecture;

/// `AUDIT_ARCH_…`, what the kernel puts into `seccomp_data.arch`.
pub(super) mod audit {
    pub const X86_64: u32 = 0xc000_003e;
    pub const I386: u32 = 0x4000_0003;
    pub const AARCH64: u32 = 0xc000_00b7;
    pub const ARM: u32 = 0x4000_0028;
}

/// `__X32_SYSCALL_BIT`: x32 calls arrive as x86_64 with this bit set in the number.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// A machine that filters are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// 64-bit x86, whose kernel also runs i386 and (rarely) x32 programs.
    X86_64,
    /// 64-bit ARM, whose kernel may also run 32-bit ARM programs.
    Aarch64,
}

impl Machine {
    /// The one this program was built for.
    pub const NATIVE: Self = {
        #[cfg(target_arch = "x86_64")]
        {
            Self::X86_64
        }
        #[cfg(target_arch = "aarch64")]
        {
            Self::Aarch64
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        compile_error!("seccomp: no system call table for this architecture")
    };

    /// Its own ABI.
    pub(super) fn abi(self) -> Abi {
        match self {
            Self::X86_64 => Abi::X86_64,
            Self::Aarch64 => Abi::Aarch64,
        }
    }

    /// Its name in the specification.
    pub fn architecture(self) -> Architecture {
        match self {
            Self::X86_64 => Architecture::X86_64,
            Self::Aarch64 => Architecture::Aarch64,
        }
    }

    /// Its name in the `arches` conditions of Docker's profiles.
    pub fn docker_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Which ABI an architecture of a profile means here; `None` if no program here can use it.
    pub(super) fn abi_of(self, architecture: Architecture) -> Option<Abi> {
        match (self, architecture) {
            (Self::X86_64, Architecture::X86_64) => Some(Abi::X86_64),
            (Self::X86_64, Architecture::X32) => Some(Abi::X32),
            (Self::X86_64, Architecture::X86) => Some(Abi::I386),
            (Self::Aarch64, Architecture::Aarch64) => Some(Abi::Aarch64),
            (Self::Aarch64, Architecture::Arm) => Some(Abi::Arm),
            _ => None,
        }
    }
}

/// A system call ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    X32,
    I386,
    Aarch64,
    Arm,
}

impl Abi {
    /// Whether arguments are compared as 32-bit numbers.
    pub(super) fn is_32_bit(self) -> bool {
        matches!(self, Self::X32 | Self::I386 | Self::Arm)
    }

    /// The number of a system call, as `seccomp_data.nr` shows it; `None` if this ABI has no such call.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let table = self.table();
        let found = table.binary_search_by_key(&name, |&(name, _)| name).ok()?;
        Some(table[found].1)
    }

    /// All names and numbers, sorted by name.
    pub(super) fn table(self) -> &'static [(&'static str, u32)] {
        fn sorted(calls: impl Iterator<Item = (&'static str, u32)>) -> Vec<(&'static str, u32)> {
            let mut table: Vec<_> = calls.collect();
            table.sort_unstable();
            table
        }
        static X86_64: OnceLock<Vec<(&str, u32)>> = OnceLock::new();
        static X32: OnceLock<Vec<(&str, u32)>> = OnceLock::new();
        static I386: OnceLock<Vec<(&str, u32)>> = OnceLock::new();
        static AARCH64: OnceLock<Vec<(&str, u32)>> = OnceLock::new();
        static ARM: OnceLock<Vec<(&str, u32)>> = OnceLock::new();
        let x86_64 = || syscalls::x86_64::Sysno::iter().map(|call| (call.name(), call.id() as u32));
        match self {
            Self::X86_64 => X86_64.get_or_init(|| sorted(x86_64())),
            Self::X32 => X32.get_or_init(|| {
                let own = X32_OWN.iter().map(|&(name, number)| (name, X32_BIT | number));
                let shared = x86_64()
                    .filter(|(name, _)| {
                        !X32_ABSENT.contains(name) && !X32_OWN.iter().any(|(own, _)| own == name)
                    })
                    .map(|(name, number)| (name, X32_BIT | number));
                sorted(own.chain(shared))
            }),
            Self::I386 => I386.get_or_init(|| {
                sorted(syscalls::x86::Sysno::iter().map(|call| (call.name(), call.id() as u32)))
            }),
            Self::Aarch64 => AARCH64.get_or_init(|| {
                sorted(syscalls::aarch64::Sysno::iter().map(|call| (call.name(), call.id() as u32)))
            }),
            Self::Arm => ARM.get_or_init(|| {
                let table = syscalls::arm::Sysno::iter().map(|call| (call.name(), call.id() as u32));
                sorted(table.chain(ARM_PRIVATE))
            }),
        }
    }

    /// For 32-bit x86: the multiplexer and the code in its first argument through which older programs make this
    /// call.
    pub(super) fn multiplexed(self, name: &str) -> Option<(u32, u64)> {
        const SOCKETCALL: u32 = 102;
        const IPC: u32 = 117;
        if self != Self::I386 {
            return None;
        }
        let code = |table: &[(&str, u64)]| {
            table
                .iter()
                .find(|(call, _)| *call == name)
                .map(|&(_, code)| code)
        };
        code(&SOCKETCALLS)
            .map(|code| (SOCKETCALL, code))
            .or_else(|| code(&IPC_CALLS).map(|code| (IPC, code)))
    }
}

/// x32 calls with a number of their own (`arch/x86/entry/syscalls/syscall_64.tbl`, ABI `x32`).
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// x86_64 calls that x32 does not have (ABI `64` in the same table).
const X32_ABSENT: [&str; 13] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uprobe",
    "uretprobe",
    "uselib",
    "vserver",
];

/// `arch/arm/include/uapi/asm/unistd.h`.
const ARM_PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", 0x0f_0001),
    ("cacheflush", 0x0f_0002),
    ("usr26", 0x0f_0003),
    ("usr32", 0x0f_0004),
    ("set_tls", 0x0f_0005),
    ("get_tls", 0x0f_0006),
];

/// `include/uapi/linux/net.h`.
const SOCKETCALLS: [(&str, u64); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// `include/uapi/linux/ipc.h`.
const IPC_CALLS: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(Abi::X86_64.number("read"), Some(0));
        assert_eq!(Abi::X86_64.number("clone3"), Some(435));
        assert_eq!(Abi::X86_64.number("chown32"), None);
        assert_eq!(Abi::I386.number("chown32"), Some(212));
        assert_eq!(Abi::I386.number("read"), Some(3));
        assert_eq!(Abi::X32.number("read"), Some(X32_BIT));
        assert_eq!(Abi::X32.number("execve"), Some(X32_BIT | 520));
        assert_eq!(Abi::X32.number("uselib"), None);
        assert_eq!(Abi::Aarch64.number("read"), Some(63));
        assert_eq!(Abi::Arm.number("set_tls"), Some(0x0f_0005));
        assert_eq!(Abi::X86_64.number(""), None);
    }

    #[test]
    fn names_are_unique() {
        for abi in [Abi::X86_64, Abi::X32, Abi::I386, Abi::Aarch64, Abi::Arm] {
            let table = abi.table();
            assert!(table.len() > 300, "{abi:?}");
            assert!(table.windows(2).all(|pair| pair[0].0 < pair[1].0), "{abi:?}");
        }
    }

    #[test]
    fn multiplexers() {
        assert_eq!(Abi::I386.number("socketcall"), Some(102));
        assert_eq!(Abi::I386.number("ipc"), Some(117));
        assert_eq!(Abi::I386.multiplexed("socket"), Some((102, 1)));
        assert_eq!(Abi::I386.multiplexed("shmctl"), Some((117, 24)));
        assert_eq!(Abi::X86_64.multiplexed("socket"), None);
        for (name, _) in SOCKETCALLS.iter().chain(&IPC_CALLS) {
            // Each exists as a call of its own on some ABI: none is misspelt.
            assert!(Abi::Arm.number(name).is_some() || Abi::X86_64.number(name).is_some());
        }
    }
}
