//! `close_range(2)` (Linux 5.9; `CLOSE_RANGE_CLOEXEC` 5.11).

use super::check;
use rustix::io::Result;

/// Closes every descriptor from `first` to `last`, both included. Gaps are no error.
///
/// # Safety
/// Nothing in this process may use a descriptor of that range afterwards: whoever still owns one would act on
/// whatever is opened next under the same number. In practice: call it in a child right before it executes a program.
pub unsafe fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: integers only; that the descriptors are nobody's is the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
}

/// Marks every descriptor from `first` on as close-on-exec. What is open stays usable until a program is executed, so
/// this is safe at any time; it is how a runtime keeps its own descriptors from leaking into a container.
pub fn set_cloexec_from(first: u32) -> Result<()> {
    // SAFETY: integers only; the flag closes nothing now.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
    use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

    // Far above what other tests of this process have open.
    const FAR: i32 = 900;

    #[test]
    fn cloexec_from_a_number_on() {
        let fd = fcntl_dupfd_cloexec(std::io::stdin(), FAR).unwrap();
        fcntl_setfd(&fd, FdFlags::empty()).unwrap();
        set_cloexec_from(FAR as u32).unwrap();
        assert_eq!(fcntl_getfd(&fd).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn closes_a_range() {
        let fd = fcntl_dupfd_cloexec(std::io::stdin(), FAR + 50).unwrap();
        let number = fd.as_raw_fd();
        let number = number.max(fd.into_raw_fd()) as u32;
        // SAFETY: `number` was just given up by its owner; nobody else has descriptors up there.
        unsafe { close_range(number, number) }.unwrap();
        // SAFETY: only asks whether the number is in use; nothing is done through it.
        let probe = unsafe { BorrowedFd::borrow_raw(number as i32) };
        assert_eq!(fcntl_getfd(probe).unwrap_err(), rustix::io::Errno::BADF);
    }
}
