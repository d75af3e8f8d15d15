//! System calls that neither rustix nor libc wraps.
//!
//! Each file holds one call (or one family), typed, with nothing on top: no policy, no retry beyond what the
//! kernel's own contract asks for, no context in the error. A function returns the kernel's [`Errno`]; the caller
//! knows what it was doing and says so. What rustix has (the mount API, `setns`, `openat2`, pidfds, capabilities)
//! is used from there and not repeated here.
//!
//! [`Errno`]: rustix::io::Errno

pub mod bpf;
pub mod clone3;
pub mod close_range;
pub mod keyctl;
pub mod mount_setattr;
pub mod seccomp;

use rustix::io::{Errno, Result};

/// Turns the return value of `libc::syscall` into a result.
///
/// Must be called right after the system call, while `errno` is still its own.
fn check(ret: libc::c_long) -> Result<usize> {
    if ret < 0 {
        // SAFETY: `__errno_location` returns a valid pointer to this thread's errno for as long as the thread lives.
        let raw = unsafe { *libc::__errno_location() };
        return Err(Errno::from_raw_os_error(raw));
    }
    Ok(ret as usize)
}

/// Takes ownership of a descriptor that a system call has just returned.
///
/// # Safety
/// `ret` must be the non-negative result of a call that opened a new descriptor which nobody else owns.
unsafe fn owned_fd(ret: usize) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the caller passes a freshly opened descriptor; descriptors are non-negative `int`s, so the cast is exact.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(ret as libc::c_int) }
}
