//! `seccomp(2)`: installing a classic BPF filter.
//!
//! The caller must have `no_new_privs` set or hold `CAP_SYS_ADMIN` in its user namespace, else `EACCES`.

use super::{check, owned_fd};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;

/// The longest program the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSNS: usize = 4096;

/// Flags of [`set_filter`].
pub mod flags {
    /// All threads of the process get the filter (Linux 3.17).
    pub const TSYNC: u32 = 1;
    /// Actions other than `ALLOW` are logged (Linux 4.14).
    pub const LOG: u32 = 1 << 1;
    /// Leave speculative store bypass enabled (Linux 4.17).
    pub const SPEC_ALLOW: u32 = 1 << 2;
    /// Return a listener for `USER_NOTIF` (Linux 5.0).
    pub const NEW_LISTENER: u32 = 1 << 3;
    /// Report a thread that cannot be synchronised as `ESRCH` (Linux 5.7); needed for `TSYNC` with `NEW_LISTENER`.
    pub const TSYNC_ESRCH: u32 = 1 << 4;
    /// Once the supervisor has received a notification, only a fatal signal interrupts the target (Linux 5.19).
    pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;
}

/// One classic BPF instruction, `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct Fprog {
    len: u16,
    filter: *const Insn,
}

/// Installs `program` as a further filter of this thread (with [`flags::TSYNC`]: of the process); it stays for good
/// and is inherited. Returns the listener (close-on-exec) if [`flags::NEW_LISTENER`] was given.
pub fn set_filter(program: &[Insn], flags: u32) -> Result<Option<OwnedFd>> {
    if program.is_empty() || program.len() > MAX_INSNS {
        return Err(Errno::INVAL);
    }
    let fprog = Fprog {
        len: program.len() as u16,
        filter: program.as_ptr(),
    };
    // SAFETY: `fprog` describes `len` instructions that outlive the call; the kernel copies and verifies them.
    let ret = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&fprog),
        )
    })?;
    if flags & flags::NEW_LISTENER != 0 {
        // SAFETY: with NEW_LISTENER a successful call returns a new descriptor.
        return Ok(Some(unsafe { owned_fd(ret) }));
    }
    // Without TSYNC_ESRCH, TSYNC reports failure by the id of the thread that could not be synchronised.
    if ret != 0 { Err(Errno::SRCH) } else { Ok(None) }
}

/// Whether this kernel knows a filter's return action (`SECCOMP_RET_…`, Linux 4.14).
pub fn action_available(action: u32) -> bool {
    // SAFETY: `action` is a live u32 that the kernel only reads.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0u32,
            std::ptr::from_ref(&action),
        )
    })
    .is_ok()
}

/// Whether this kernel knows these [`flags`].
///
/// The kernel checks the flags before it reads the program, so a missing program tells: `EFAULT` means they are known.
pub fn flags_available(flags: u32) -> bool {
    // SAFETY: a null program is never read but reported as EFAULT, so no filter is installed.
    let ret = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::null::<Fprog>(),
        )
    });
    ret == Err(Errno::FAULT)
}

/// The kernel's sizes of the structures that a listener reads and writes (`SECCOMP_GET_NOTIF_SIZES`, Linux 5.0).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotifSizes {
    /// `struct seccomp_notif`.
    pub notif: u16,
    /// `struct seccomp_notif_resp`.
    pub resp: u16,
    /// `struct seccomp_data`.
    pub data: u16,
}

/// Asks for the [`NotifSizes`].
pub fn notif_sizes() -> Result<NotifSizes> {
    let mut sizes = NotifSizes::default();
    // SAFETY: `sizes` is a live `struct seccomp_notif_sizes` which the kernel fills.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_NOTIF_SIZES,
            0u32,
            std::ptr::from_mut(&mut sizes),
        )
    })?;
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RET: u16 = 0x06;
    const ALLOW: Insn = Insn {
        code: RET,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    };

    #[test]
    fn what_the_kernel_knows() {
        assert!(action_available(libc::SECCOMP_RET_ERRNO));
        assert!(action_available(libc::SECCOMP_RET_USER_NOTIF));
        assert!(!action_available(0x1234_0000));
        assert!(flags_available(flags::LOG | flags::SPEC_ALLOW));
        assert!(!flags_available(1 << 30));
        let sizes = notif_sizes().unwrap();
        assert!(usize::from(sizes.notif) >= size_of::<libc::seccomp_notif>());
        assert!(usize::from(sizes.data) >= size_of::<libc::seccomp_data>());
    }

    #[test]
    fn listener_on_request() {
        // Filters belong to a thread: this one ends with the test.
        std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            assert!(set_filter(&[ALLOW], flags::LOG).unwrap().is_none());
            assert!(set_filter(&[ALLOW], flags::NEW_LISTENER).unwrap().is_some());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn bad_programs() {
        assert_eq!(set_filter(&[], 0).unwrap_err(), Errno::INVAL);
        assert_eq!(
            set_filter(&vec![ALLOW; MAX_INSNS + 1], 0).unwrap_err(),
            Errno::INVAL
        );
        let falls_off = Insn {
            code: 0x05,
            jt: 0,
            jf: 0,
            k: 7,
        };
        assert_eq!(set_filter(&[falls_off], 0).unwrap_err(), Errno::INVAL);
    }
}
