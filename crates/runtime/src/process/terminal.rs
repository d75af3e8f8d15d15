//! Pseudo terminals of containers, made in the container's own devpts instance.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::Context;
use crate::rootfs::resolve::{TargetKind, mount_target, open_in_root};
use crate::rootfs::{Recursion, attach, copy_of};
use crate::spec::ConsoleSize;
use crate::{Error, Result};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// The two sides of a terminal.
#[derive(Debug)]
pub struct Terminal {
    /// For whoever holds the container's streams.
    pub master: OwnedFd,
    /// For the container's process.
    pub slave: OwnedFd,
}

/// Makes a terminal in the devpts instance below `root`.
///
/// What `/dev/pts/ptmx` is there is checked: the image or a running container could have put something else.
///
/// # Errors
/// When the container has no devpts.
pub fn open(root: BorrowedFd<'_>, size: Option<ConsoleSize>, uid: u32) -> Result<Terminal> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = open_in_root(root, Path::new("/dev/pts/ptmx"), flags, rustix::fs::ResolveFlags::empty())
        .context(|| "make a terminal: open /dev/pts/ptmx of the container")?;
    let file_system = rustix::fs::fstatfs(&master).context(|| "make a terminal")?;
    if file_system.f_type as i64 != DEVPTS_MAGIC {
        return Err(Error::invalid(
            "/dev/pts/ptmx of the container is not a terminal multiplexer: the container tampered with it",
        ));
    }
    rustix::pty::unlockpt(&master).context(|| "make a terminal: unlock it")?;
    // SAFETY: TIOCGPTPEER takes open flags as its argument and returns a new descriptor or -1.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if slave < 0 {
        return Err(std::io::Error::last_os_error()).context(|| "make a terminal: open its other side");
    }
    // SAFETY: `slave` was just opened and belongs to nobody else.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    if let Some(size) = size {
        resize(master.as_fd(), size)?;
    }
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>).context(|| "make a terminal: give it to the user")?;
    Ok(Terminal { master, slave })
}

/// Sets a terminal's size.
pub fn resize(terminal: BorrowedFd<'_>, size: ConsoleSize) -> Result<()> {
    let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context(|| "set the terminal's size")
}

/// Binds the terminal at `/dev/console` of the container (runtime-spec, config.md, `terminal`).
///
/// The place is made by us on the fresh `/dev` and never followed (CVE-2025-52565).
pub fn bind_console(root: BorrowedFd<'_>, slave: &OwnedFd) -> Result<()> {
    let dev = mount_target(root, Path::new("/dev"), TargetKind::Directory)?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    drop(rustix::fs::openat(&dev, "console", flags, Mode::from_raw_mode(0o600)).context(|| "make /dev/console")?);
    let target = rustix::fs::openat(&dev, "console", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .context(|| "open /dev/console")?;
    let copy = copy_of(slave, Recursion::One).context(|| "bind the terminal at /dev/console")?;
    attach(copy, target).context(|| "bind the terminal at /dev/console")
}

/// Makes the terminal this process's standard streams and controlling terminal, in a new session.
pub fn adopt(slave: &OwnedFd) -> Result<()> {
    rustix::process::setsid().context(|| "start a session")?;
    // SAFETY: TIOCSCTTY takes an integer argument (0: do not steal) and touches no memory.
    if unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        return Err(std::io::Error::last_os_error()).context(|| "make the terminal the controlling one");
    }
    standard_streams(slave.as_fd(), slave.as_fd(), slave.as_fd())
}

/// Makes descriptors this process's standard streams.
pub fn standard_streams(input: BorrowedFd<'_>, output: BorrowedFd<'_>, errors: BorrowedFd<'_>) -> Result<()> {
    let failed = || "set the standard streams";
    rustix::stdio::dup2_stdin(input).context(failed)?;
    rustix::stdio::dup2_stdout(output).context(failed)?;
    rustix::stdio::dup2_stderr(errors).context(failed)
}
