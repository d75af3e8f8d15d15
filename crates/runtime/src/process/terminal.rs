//! Pseudo terminals of containers, made in the container's own devpts instance.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::Context;
use crate::rootfs::resolve::{TargetKind, mount_target, open_in_root};
use crate::rootfs::{DevOwner, Recursion, attach, copy_of};
use crate::spec::ConsoleSize;
use crate::{Error, Result};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: rustix::fs::FsWord = 0x1cd1;

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
/// What is at `/dev/pts` is checked: the image or a running container could have put something else.
///
/// # Errors
/// When the container has no devpts.
pub fn open(root: BorrowedFd<'_>, size: Option<ConsoleSize>, uid: u32) -> Result<Terminal> {
    // First the directory, then what is in it: nobody can put anything of his own into a devpts.
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let instance = open_in_root(root, Path::new("/dev/pts"), flags, ResolveFlags::empty())
        .context(|| "make a terminal: open /dev/pts of the container")?;
    let file_system = rustix::fs::fstatfs(&instance).context(|| "make a terminal")?;
    if file_system.f_type != DEVPTS_MAGIC {
        return Err(Error::invalid(
            "a terminal needs a devpts file system at /dev/pts of the container: add it to the mounts",
        ));
    }
    // Something may be mounted over it.
    let direct = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let master = open_in_root(
        &instance,
        Path::new("ptmx"),
        OFlags::RDWR | OFlags::NOCTTY,
        direct,
    )
    .context(|| "make a terminal: open /dev/pts/ptmx of the container")?;
    rustix::pty::unlockpt(&master).context(|| "make a terminal: unlock it")?;
    let slave = peer(master.as_fd()).context(|| "make a terminal: open its other side")?;
    if let Some(size) = size {
        resize(master.as_fd(), size)?;
    }
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)
        .context(|| "make a terminal: give it to the user")?;
    Ok(Terminal { master, slave })
}

/// The other side of a terminal, whatever its file system's paths say by now.
pub fn peer(master: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags as its argument and returns a new descriptor or -1.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if slave < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `slave` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(slave) })
}

/// Sets a terminal's size.
pub fn resize(terminal: BorrowedFd<'_>, size: ConsoleSize) -> Result<()> {
    let size = Winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).context(|| "set the terminal's size")
}

/// Binds the terminal at `/dev/console` of the container (runtime-spec, config.md, `terminal`).
///
/// The place is made by us on the fresh `/dev` and never followed (CVE-2025-52565). In a `/dev` that is somebody else's
/// nothing is made, nor mounted where he would see it.
pub fn bind_console(root: BorrowedFd<'_>, owner: DevOwner, slave: &OwnedFd) -> Result<()> {
    if owner == (DevOwner::Other { shared: true }) {
        return Ok(());
    }
    let dev = mount_target(root, Path::new("/dev"), TargetKind::Directory)?;
    if owner == DevOwner::Container {
        // Made, not opened: opening what the image has there could have an effect.
        let mode = Mode::from_raw_mode(0o600);
        match rustix::fs::mknodat(&dev, "console", FileType::RegularFile, mode, 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(|| "make /dev/console"),
        }
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = match rustix::fs::openat(&dev, "console", flags, Mode::empty()) {
        Err(Errno::NOENT) if owner != DevOwner::Container => return Ok(()),
        other => other.context(|| "open /dev/console")?,
    };
    let found = rustix::fs::fstat(&target).context(|| "look at /dev/console")?;
    if FileType::from_raw_mode(found.st_mode).is_symlink() {
        return Err(Error::invalid(
            "/dev/console in the image is a link: mount a tmpfs at /dev, or repair the image",
        ));
    }
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
