//! What a container's process has open before it executes its program.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{FdFlags, fcntl_getfd};

use crate::error::Context;
use crate::sys::close_range::close_range;
use crate::{Error, Result};

/// Where the standard streams end.
const FIRST: u32 = 3;

/// Closes every descriptor of this process but its standard streams, those its caller passed on (`preserved` many, from
/// 3 on) and `kept`.
///
/// The runtime has directories of the host open (cgroups, the shim's own), and a path in a container may run through
/// `/proc/self/fd/N/..`. Close-on-exec is too late for that: the program's path, its interpreter's and all that is
/// looked up before are resolved while they are open (CVE-2024-21626). So this comes as soon as the container's root is
/// `/`, and before anything is looked up there.
///
/// # Errors
/// `Invalid` when what should be preserved was not passed: then it would be something of the runtime's.
///
/// # Safety
/// Nobody in this process may use or drop the owner of another descriptor afterwards: whatever is opened next has its
/// number. So this is for children that end with execve(2) or _exit(2).
pub(super) unsafe fn close_all_but(preserved: u32, kept: &[BorrowedFd<'_>]) -> Result<()> {
    let end = FIRST.saturating_add(preserved);
    for number in FIRST..end {
        // SAFETY: only asks for its flags, which fails when it is not open.
        let fd = unsafe { BorrowedFd::borrow_raw(number as i32) };
        // What the caller passed on came through an execve(2); everything of ours is close-on-exec.
        if !fcntl_getfd(fd).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC)) {
            return Err(Error::invalid(format!(
                "descriptor {number} is to be preserved for the container's process, but was not passed to the runtime"
            )));
        }
    }
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    numbers.sort_unstable();
    let mut first = end;
    for number in numbers.into_iter().filter(|number| *number >= end) {
        if number > first {
            // SAFETY: the caller's promise.
            unsafe { close_range(first, number - 1) }.context(|| "close the runtime's descriptors")?;
        }
        first = number + 1;
    }
    // SAFETY: as above.
    unsafe { close_range(first, u32::MAX) }.context(|| "close the runtime's descriptors")
}
