//! `clone3(2)` (Linux 5.3): a new process, in new namespaces, in a cgroup, with a pidfd, in one call.
//!
//! Only process creation is offered: the flags that share memory or make a thread (`CLONE_VM`, `CLONE_THREAD`,
//! `CLONE_SIGHAND`, `CLONE_SETTLS`, the `…SETTID` family) are refused with `EINVAL`, because with them no safe use
//! from Rust exists without a stack of the child's own.
//!
//! Kernels differ: `CLONE_INTO_CGROUP` needs 5.7 and a cgroup v2 directory, `set_tid` 5.5 and
//! `CAP_CHECKPOINT_RESTORE` (5.9) or `CAP_SYS_ADMIN`, `CLONE_NEWTIME` 5.6. A child of `CLONE_NEWTIME` is in the new
//! time namespace at once and its clock offsets can no longer be set; `unshare(CLONE_NEWTIME)` and then a fork can.

use super::{check, owned_fd};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, Signal};
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Namespace flags for [`Clone3::new`], as in `clone(2)`.
pub mod flags {
    /// New mount namespace.
    pub const NEWNS: u64 = libc::CLONE_NEWNS as u64;
    /// New cgroup namespace.
    pub const NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// New UTS namespace.
    pub const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;
    /// New IPC namespace.
    pub const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
    /// New user namespace.
    pub const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
    /// New PID namespace.
    pub const NEWPID: u64 = libc::CLONE_NEWPID as u64;
    /// New network namespace.
    pub const NEWNET: u64 = libc::CLONE_NEWNET as u64;
    /// New time namespace; see the module's remark on clock offsets.
    pub const NEWTIME: u64 = 0x80;
    /// The new process becomes a sibling: its parent is the caller's parent.
    pub const PARENT: u64 = libc::CLONE_PARENT as u64;
    /// Suspend the caller until the child has executed a program or ended.
    pub const VFORK: u64 = libc::CLONE_VFORK as u64;
    /// All caught signals are back at their default in the child (Linux 5.5); ignored ones stay ignored.
    pub const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
}

const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Flags under which parent and child would share memory or a thread group, or the kernel would write to addresses
/// that this interface does not pass.
const REFUSED: u64 = (libc::CLONE_VM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_PIDFD) as u64
    | CLONE_INTO_CGROUP;

/// `struct clone_args`, version 2 (88 bytes).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// On which side of the fork the code runs now.
#[derive(Debug)]
pub enum Side {
    /// In the new process.
    Child,
    /// In the process that called.
    Parent {
        /// The child, as numbered in the caller's PID namespace.
        pid: Pid,
        /// A pidfd for it (close-on-exec), if [`Clone3::pidfd`] was asked for.
        pidfd: Option<OwnedFd>,
    },
}

/// What the new process shall be. Every descriptor and slice is borrowed until [`Clone3::call`].
#[derive(Clone, Debug)]
pub struct Clone3<'a> {
    args: CloneArgs,
    borrowed: PhantomData<&'a ()>,
}

impl<'a> Clone3<'a> {
    /// A child with these [`flags`], whose end is told by `SIGCHLD`.
    pub fn new(flags: u64) -> Self {
        let args = CloneArgs {
            flags,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        Self {
            args,
            borrowed: PhantomData,
        }
    }

    /// Which signal the parent gets when the child ends; `None` for no signal. Without `SIGCHLD`, `wait` needs
    /// `__WCLONE` or `__WALL`. With [`flags::PARENT`] the caller's own exit signal is used, whatever is given here.
    pub fn exit_signal(mut self, signal: Option<Signal>) -> Self {
        self.args.exit_signal = signal.map_or(0, |s| s.as_raw() as u64);
        self
    }

    /// Asks for a pidfd of the child.
    pub fn pidfd(mut self) -> Self {
        self.args.flags |= CLONE_PIDFD;
        self
    }

    /// Chooses the child's PID in its PID namespace and, going outward, in the enclosing ones.
    pub fn set_tid(mut self, tids: &'a [libc::pid_t]) -> Self {
        self.args.set_tid = tids.as_ptr() as u64;
        self.args.set_tid_size = tids.len() as u64;
        self
    }

    /// Puts the child into this cgroup v2 directory from its first instruction on.
    pub fn cgroup(mut self, dir: BorrowedFd<'a>) -> Self {
        self.args.flags |= CLONE_INTO_CGROUP;
        self.args.cgroup = dir.as_raw_fd() as u64;
        self
    }

    /// Makes the process. Returns twice, once on each [`Side`].
    ///
    /// # Safety
    /// The child is a copy of the calling thread alone, as after `fork(2)`, but libc is not told (no `pthread_atfork`
    /// handlers run, the cached thread id is the parent's). Therefore one of these must hold:
    /// - the calling process has only one thread, and the child does not rely on libc's idea of its thread id
    ///   (recursive or error-checking pthread mutexes) before it executes a program or ends; or
    /// - the child calls only async-signal-safe functions (in particular: it neither allocates nor locks) until it
    ///   executes a program or ends.
    ///
    /// The child owns copies of all descriptors and of all memory: what must happen once only (deleting temporary
    /// files, flushing buffers) the caller has to keep from happening in both.
    pub unsafe fn call(mut self) -> Result<Side> {
        let user = self.args.flags & !(CLONE_PIDFD | CLONE_INTO_CGROUP);
        if user & REFUSED != 0 {
            return Err(Errno::INVAL);
        }
        let mut pidfd: libc::c_int = -1;
        self.args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
        // SAFETY: `args` is a complete `struct clone_args` of the size given. `pidfd` is written to only with
        // CLONE_PIDFD and is a live int; `set_tid` points to `set_tid_size` pid_t that `'a` keeps alive. Without
        // CLONE_VM the child continues on its own copy of this stack, so returning here is sound on both sides.
        // What else the child may do is the caller's promise.
        let pid = check(unsafe {
            libc::syscall(
                libc::SYS_clone3,
                std::ptr::from_ref(&self.args),
                size_of::<CloneArgs>(),
            )
        })?;
        let Some(pid) = Pid::from_raw(pid as i32) else {
            return Ok(Side::Child);
        };
        let pidfd = (self.args.flags & CLONE_PIDFD != 0).then(|| {
            // SAFETY: with CLONE_PIDFD a successful clone3 has stored a new descriptor here.
            unsafe { owned_fd(pidfd as usize) }
        });
        Ok(Side::Parent { pid, pidfd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, WaitOptions, waitid, waitpid};
    use std::os::fd::AsFd;

    /// Runs `child` in a new process and returns its exit status and pid.
    fn run(clone: Clone3<'_>, child: impl FnOnce() -> i32) -> (Option<i32>, Pid) {
        // SAFETY: the test harness has other threads, so the children below make plain system calls and end.
        match unsafe { clone.pidfd().call() }.unwrap() {
            // SAFETY: ends the process at once, running nothing.
            Side::Child => unsafe { libc::_exit(child()) },
            Side::Parent { pid, pidfd } => {
                let pidfd = pidfd.unwrap();
                let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
                    .unwrap()
                    .unwrap();
                (status.exit_status(), pid)
            }
        }
    }

    fn getpid() -> i32 {
        // SAFETY: getpid has no preconditions.
        unsafe { libc::getpid() }
    }

    #[test]
    fn child_and_parent() {
        let parent = getpid();
        let (status, pid) = run(Clone3::new(0), || i32::from(getpid() != parent) + 40);
        assert_eq!(status, Some(41));
        assert_ne!(pid.as_raw_nonzero().get(), parent);
    }

    #[test]
    fn every_namespace_at_once() {
        use flags::*;
        let all = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | NEWTIME | CLEAR_SIGHAND;
        let (status, _) = run(Clone3::new(all), getpid);
        assert_eq!(status, Some(1), "the child is PID 1 of its namespace");
    }

    #[test]
    fn a_chosen_pid() {
        let (status, _) = run(Clone3::new(flags::NEWPID).set_tid(&[1]), getpid);
        assert_eq!(status, Some(1));
        // SAFETY: the child would end at once; the call is expected to fail before there is one.
        let refused = unsafe { Clone3::new(flags::NEWPID).set_tid(&[77]).call() };
        if let Ok(Side::Child) = refused {
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) }
        }
        assert_eq!(
            refused.unwrap_err(),
            Errno::INVAL,
            "the first process of a PID namespace must be 1"
        );
    }

    #[test]
    fn no_exit_signal() {
        // SAFETY: the child ends at once.
        match unsafe { Clone3::new(0).exit_signal(None).call() }.unwrap() {
            // SAFETY: ends the process at once.
            Side::Child => unsafe { libc::_exit(0) },
            Side::Parent { pid, pidfd } => {
                assert!(pidfd.is_none());
                assert_eq!(
                    waitpid(Some(pid), WaitOptions::empty()).unwrap_err(),
                    Errno::CHILD
                );
                let mut status = 0;
                // SAFETY: `status` is a live int.
                let got = unsafe { libc::waitpid(pid.as_raw_nonzero().get(), &mut status, libc::__WALL) };
                assert_eq!(got, pid.as_raw_nonzero().get());
            }
        }
    }

    #[test]
    fn straight_into_a_cgroup() {
        use rustix::fs::{AtFlags, Mode, OFlags};
        use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
        let fs = rustix::mount::fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        rustix::mount::fsconfig_create(fs.as_fd()).unwrap();
        let root = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .unwrap();
        let name = format!("vessel-test-clone3-{}", getpid());
        rustix::fs::mkdirat(&root, &name, Mode::from_raw_mode(0o755)).unwrap();
        let dir =
            rustix::fs::openat(&root, &name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let procs = rustix::fs::openat(&dir, "cgroup.procs", OFlags::RDONLY, Mode::empty()).unwrap();
        let (status, _) = run(Clone3::new(0).cgroup(dir.as_fd()), || {
            let mut buf = [0u8; 32];
            let n = rustix::io::read(&procs, &mut buf).unwrap_or(0);
            let listed = buf[..n]
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .fold(0, |v, b| v * 10 + i32::from(b - b'0'));
            i32::from(listed != getpid())
        });
        for _ in 0..100 {
            if rustix::fs::unlinkat(&root, &name, AtFlags::REMOVEDIR).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(status, Some(0));
    }

    #[test]
    fn sharing_memory_is_refused() {
        for flag in [
            libc::CLONE_VM,
            libc::CLONE_THREAD,
            libc::CLONE_SETTLS,
            libc::CLONE_CHILD_SETTID,
        ] {
            // SAFETY: refused before the system call.
            let refused = unsafe { Clone3::new(flag as u64).call() };
            assert_eq!(refused.unwrap_err(), Errno::INVAL);
        }
    }
}
