//! User namespaces made only for their mappings, for idmapped mounts.

use std::os::fd::OwnedFd;

use rustix::process::{WaitOptions, waitpid};

use crate::error::Context;
use crate::spec::IdMapping;
use crate::sys::clone3::{Clone3, Side, flags};
use crate::{Error, ErrorKind, Result};

/// A user namespace with these mappings. It lives as long as the descriptor.
///
/// # Errors
/// When the mappings are not valid, or this process may not make them.
pub fn user_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    let failed = || "make a user namespace for an idmapped mount";
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: the child makes plain system calls only.
    let (pid, pidfd) = match unsafe { Clone3::new(flags::NEWUSER).pidfd().call() }.context(failed)? {
        Side::Child => loop {
            // SAFETY: these take integers, end this process or wait for its end; no memory is touched.
            unsafe {
                // It must not outlive its parent, nor keep what that has open.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() != parent {
                    libc::_exit(1);
                }
                libc::pause();
            }
        },
        Side::Parent { pid, pidfd } => (pid, pidfd),
    };
    let raw = pid.as_raw_nonzero().get();
    let text = |mappings: &[IdMapping]| -> String {
        mappings
            .iter()
            .map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size))
            .collect()
    };
    let made = (|| {
        std::fs::write(format!("/proc/{raw}/gid_map"), text(gids))
            .context(|| "write the group mappings of an idmapped mount")?;
        std::fs::write(format!("/proc/{raw}/uid_map"), text(uids))
            .context(|| "write the user mappings of an idmapped mount")?;
        rustix::fs::open(
            format!("/proc/{raw}/ns/user"),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .context(failed)
    })();
    let ended = pidfd.map(|pidfd| rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL));
    let _ = waitpid(Some(pid), WaitOptions::empty());
    match ended {
        Some(Ok(())) => made,
        _ => Err(Error::new(ErrorKind::System, failed())),
    }
}
