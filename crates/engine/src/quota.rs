//! Limits on what directories hold: project quotas of the file system.
//!
//! A directory gets a project of its own that everything made in it inherits (`FS_IOC_FSSETXATTR`), and the project a hard
//! limit (`quotactl_fd(2)`, Linux 5.14). ext4 with the features `quota` and `project`, and xfs, can do it, when they are
//! mounted with `prjquota`. The number of a directory's project stands in the directory: there is no other record, and it
//! outlives daemons, moves to the bin and back. Numbers begin where no other tool's do, so that Docker's on the same file
//! system, or an administrator's, are not met.
//!
//! On ext4 a process with `CAP_SYS_RESOURCE` may go beyond a limit: a privileged container in a volume. The root of a
//! container is an overlay, which never does. But root in a container without a user namespace may give its files another
//! project, as with Docker: the limit is against accidents there. So numbers are read where no container reaches.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::Context;
use crate::{Error, Result};

/// The first project number: "V" and zeros.
const FIRST: u32 = 0x5600_0000;
/// So many numbers are tried before it is given up.
const ATTEMPTS: u32 = 4096;

/// The projects of an engine's root.
#[derive(Debug, Default)]
pub(crate) struct Projects {
    /// The next number to try; none until the first is wanted.
    next: Mutex<Option<u32>>,
}

impl Projects {
    /// Limits what directories, which are empty, may hold together.
    ///
    /// # Errors
    /// The file system has no project quotas ([`ErrorKind::Invalid`](crate::ErrorKind::Invalid)), or they fail.
    pub fn limit(&self, directories: &[&Path], bytes: u64) -> Result<()> {
        let opened: Vec<OwnedFd> = directories.iter().map(|path| open(path)).collect::<Result<_>>()?;
        let Some(first) = opened.first() else {
            return Ok(());
        };
        if !enforced(first.as_fd())? {
            return Err(none_here());
        }
        let project = self.number(first.as_fd())?;
        for (directory, path) in opened.iter().zip(directories) {
            set_project(directory.as_fd(), project).map_err(|errno| match errno {
                Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS => none_here(),
                errno => Error::system(format!(
                    "give {} a project for its quota: {}",
                    path.display(),
                    std::io::Error::from(errno)
                )),
            })?;
        }
        set_limit(first.as_fd(), project, bytes)
            .context(|| format!("limit project {project} to {bytes} bytes"))
    }

    /// A number that nothing of the file system has.
    fn number(&self, on: BorrowedFd<'_>) -> Result<u32> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut project = next.unwrap_or(FIRST);
        for _ in 0..ATTEMPTS {
            let this = project;
            project = this.checked_add(1).unwrap_or(FIRST);
            if !in_use(on, this)? {
                *next = Some(project);
                return Ok(this);
            }
        }
        // The next call goes on from here.
        *next = Some(project);
        Err(Error::system(
            "no free project number was found for a quota: the file system has thousands of projects",
        ))
    }
}

/// Takes the limit away that a directory's project has. It is about to be removed: nothing is left of it then.
pub(crate) fn release(directory: &Path) {
    let Ok(directory) = open(directory) else { return };
    if let Ok(attributes) = attributes(directory.as_fd())
        && attributes.project >= FIRST
    {
        // The files are gone either way; a limit that stays limits nothing.
        let _ = set_limit(directory.as_fd(), attributes.project, 0);
    }
}

fn none_here() -> Error {
    Error::invalid(
        "the file system of the daemon's root has no project quotas; xfs mounted with 'pquota' has them, and ext4 with the \
         features quota and project mounted with 'prjquota'",
    )
}

/// A size as Docker reads it (`units.RAMInBytes`): a number and a unit, powers of 1024.
pub(crate) fn size(text: &str) -> Result<u64> {
    let wrong = || Error::invalid(format!("invalid size: '{text}'"));
    let at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let value: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit
        .strip_suffix('b')
        .map_or(unit.as_str(), |unit| unit.strip_suffix('i').unwrap_or(unit));
    let power = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(wrong()),
    };
    let bytes = value * (1_u64 << power) as f64;
    // Beyond this nothing is said exactly, and no file system is that large.
    if bytes.is_finite() && bytes < (1_u64 << 62) as f64 {
        return Ok(bytes as u64);
    }
    Err(wrong())
}

/// What `--storage-opt` asks for in bytes; 0 is no limit.
///
/// # Errors
/// Another option than `size`, a size that is none.
pub(crate) fn storage_option(options: &vessel_api::Map<String>) -> Result<u64> {
    let mut bytes = 0;
    for (name, value) in options {
        match name.to_ascii_lowercase().as_str() {
            "size" => bytes = size(value)?,
            _ => return Err(Error::invalid(format!("unknown option {name}"))),
        }
    }
    Ok(bytes)
}

fn open(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).context(|| format!("open {}", directory.display()))
}

/// `struct fsxattr` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// `FS_XFLAG_PROJINHERIT`.
const INHERIT: u32 = 0x200;

fn attributes(directory: BorrowedFd<'_>) -> rustix::io::Result<Attributes> {
    /// `FS_IOC_FSGETXATTR`.
    const GET: libc::Ioctl = 0x801c_581f;
    let mut attributes = Attributes::default();
    // SAFETY: the structure has the size that the number of the request says, and lives across the call.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), GET, &raw mut attributes) };
    result(done.into()).map(|()| attributes)
}

fn set_project(directory: BorrowedFd<'_>, project: u32) -> rustix::io::Result<()> {
    /// `FS_IOC_FSSETXATTR`.
    const SET: libc::Ioctl = 0x401c_5820;
    let mut attributes = attributes(directory)?;
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: as above; the kernel only reads it.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), SET, &raw const attributes) };
    result(done.into())
}

/// `PRJQUOTA`.
const PROJECT: u32 = 2;
/// `Q_GETQUOTA`.
const GET_QUOTA: u32 = 0x80_0007;
/// `Q_SETQUOTA`.
const SET_QUOTA: u32 = 0x80_0008;
/// `Q_XGETQSTATV`.
const GET_STATE: u32 = ((b'X' as u32) << 8) + 8;

/// `struct fs_quota_statv` of `<linux/dqblk_xfs.h>`, as far as it is looked at.
#[repr(C)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    rest: [u64; 20],
}

fn quotactl<T>(on: BorrowedFd<'_>, command: u32, project: u32, data: &mut T) -> rustix::io::Result<()> {
    // SAFETY: `data` is the structure that belongs to the command, or larger; the kernel keeps no pointer to it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            on.as_raw_fd(),
            (command << 8) | PROJECT,
            project,
            std::ptr::from_mut(data),
        )
    };
    result(done)
}

fn result(done: libc::c_long) -> rustix::io::Result<()> {
    if done < 0 {
        let errno = std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(())
}

/// Whether the file system counts projects and keeps them to their limits.
fn enforced(on: BorrowedFd<'_>) -> Result<bool> {
    /// `FS_QUOTA_PDQ_ACCT` and `FS_QUOTA_PDQ_ENFD`.
    const BOTH: u16 = 1 << 4 | 1 << 5;
    let mut state = State {
        version: 1,
        padding: 0,
        flags: 0,
        rest: [0; 20],
    };
    match quotactl(on, GET_STATE, 0, &mut state) {
        Ok(()) => Ok(state.flags & BOTH == BOTH),
        // No quotas in this kernel or of this file system, none that are on, none of a device.
        Err(
            Errno::NOSYS
            | Errno::SRCH
            | Errno::INVAL
            | Errno::OPNOTSUPP
            | Errno::NOTBLK
            | Errno::NODEV
            | Errno::NOTTY,
        ) => Ok(false),
        Err(errno) => Err(errno).context(|| "ask the file system about its project quotas"),
    }
}

fn empty_limits() -> libc::dqblk {
    // SAFETY: the structure has numbers only, and zeros are numbers.
    unsafe { std::mem::zeroed() }
}

fn in_use(on: BorrowedFd<'_>, project: u32) -> Result<bool> {
    let mut found = empty_limits();
    match quotactl(on, GET_QUOTA, project, &mut found) {
        Ok(()) => Ok(found.dqb_curspace > 0
            || found.dqb_curinodes > 0
            || found.dqb_bhardlimit > 0
            || found.dqb_ihardlimit > 0),
        Err(Errno::NOENT | Errno::SRCH) => Ok(false),
        Err(errno) => Err(errno).context(|| format!("ask the file system about project {project}")),
    }
}

fn set_limit(on: BorrowedFd<'_>, project: u32, bytes: u64) -> rustix::io::Result<()> {
    /// `QIF_BLIMITS`.
    const BLOCK_LIMITS: u32 = 1;
    let mut limits = empty_limits();
    // In blocks of 1024 bytes; less than one would be no limit.
    limits.dqb_bhardlimit = bytes.div_ceil(1024);
    limits.dqb_bsoftlimit = limits.dqb_bhardlimit;
    limits.dqb_valid = BLOCK_LIMITS;
    quotactl(on, SET_QUOTA, project, &mut limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_docker_does() {
        for (text, bytes) in [
            ("10", 10),
            ("1k", 1024),
            ("1.5KB", 1536),
            ("2MiB", 2 << 20),
            ("10G", 10 << 30),
            ("1 tb", 1 << 40),
            ("0", 0),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "x", "-1", "1x", "1.2.3", "9999999999p", "k", "1kk"] {
            assert!(size(text).is_err(), "{text}");
        }
        let options = |name: &str, value: &str| storage_option(&[(name.to_owned(), value.to_owned())].into());
        assert_eq!(options("size", "1m").unwrap(), 1 << 20);
        assert_eq!(
            options("inodes", "1").unwrap_err().message(),
            "unknown option inodes"
        );
    }

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<libc::dqblk>(), 72);
        assert!(size_of::<State>() >= 160);
    }

    #[test]
    fn where_there_are_none_it_is_said() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let error = Projects::default()
            .limit(&[directory.path()], 1 << 20)
            .unwrap_err();
        assert!(error.message().contains("has no project quotas"), "{error}");
        assert_eq!(error.kind(), crate::ErrorKind::Invalid);
        release(directory.path());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[0-9.kKmMgGtTpPiIbB -]{0,12}") {
            let _ = size(&text);
        }
    }
}
