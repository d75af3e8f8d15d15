//! `mount_setattr(2)` (Linux 5.12) and `open_tree_attr(2)` (Linux 6.15).
//!
//! What the old `mount(2)` cannot do: change the attributes of a whole tree at once (`AT_RECURSIVE`), set some flags
//! without touching the others, and map the owners of files by a user namespace (idmapped mounts; the filesystem must
//! support it, otherwise `EINVAL`).

use super::{check, owned_fd};
use rustix::io::Result;
use std::ffi::CStr;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Mount attributes to set or clear.
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id bits and file capabilities have no effect.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x4;
    /// Programs cannot be executed.
    pub const NOEXEC: u64 = 0x8;
    /// The mask of the three access-time modes; clear it together with setting one of them.
    pub const ATIME: u64 = 0x70;
    /// Access times as with `relatime` (no bit: it is the default).
    pub const RELATIME: u64 = 0x0;
    /// Access times are never updated.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are never updated.
    pub const NODIRATIME: u64 = 0x80;
    /// Idmapped; set by [`MountAttr::idmap`](super::MountAttr::idmap).
    pub const IDMAP: u64 = 0x10_0000;
    /// Symbolic links are not followed (Linux 5.14).
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// How mount events travel between copies of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// In neither direction.
    Private,
    /// In both.
    Shared,
    /// Inward only.
    Slave,
    /// In neither, and the mount cannot be bind-mounted.
    Unbindable,
}

/// `open_tree` flags for [`open_tree_attr`].
pub mod tree {
    /// Copy the mount instead of opening it: a detached bind mount.
    pub const CLONE: u32 = 1;
    /// The descriptor is close-on-exec.
    pub const CLOEXEC: u32 = libc::O_CLOEXEC as u32;
    /// The whole tree of mounts, not only the topmost.
    pub const RECURSIVE: u32 = super::AT_RECURSIVE;
    /// The path may be empty: the descriptor itself is meant.
    pub const EMPTY_PATH: u32 = super::AT_EMPTY_PATH;
    /// Do not follow a symbolic link at the end of the path.
    pub const SYMLINK_NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW as u32;
}

const AT_RECURSIVE: u32 = 0x8000;
const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;

/// `struct mount_attr`, version 0 (32 bytes).
#[repr(C)]
#[derive(Debug)]
struct RawAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A change of mount attributes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr<'a> {
    /// Bits of [`attr`] to set.
    pub set: u64,
    /// Bits of [`attr`] to clear.
    pub clear: u64,
    /// A new propagation, if any.
    pub propagation: Option<Propagation>,
    /// Map file owners by this user namespace.
    pub idmap: Option<BorrowedFd<'a>>,
}

impl MountAttr<'_> {
    fn raw(&self) -> RawAttr {
        RawAttr {
            set: self.set | if self.idmap.is_some() { attr::IDMAP } else { 0 },
            clear: self.clear,
            propagation: self.propagation.map_or(0, |p| match p {
                Propagation::Private => libc::MS_PRIVATE,
                Propagation::Shared => libc::MS_SHARED,
                Propagation::Slave => libc::MS_SLAVE,
                Propagation::Unbindable => libc::MS_UNBINDABLE,
            }),
            userns_fd: self.idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
        }
    }
}

/// Changes the mount that `mount` stands for (a descriptor from `fsmount`, `open_tree`, or `O_PATH` of its root), and
/// with `recursive` all mounts below it, all or none.
pub fn mount_setattr(mount: impl AsFd, recursive: bool, change: &MountAttr<'_>) -> Result<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let raw = change.raw();
    // SAFETY: the path is a constant NUL-terminated string, `raw` a complete `struct mount_attr` of the size given;
    // both outlive the call, which only reads them.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&raw),
            size_of::<RawAttr>(),
        )
    })
    .map(drop)
}

/// `open_tree` and `mount_setattr` in one call; also the only way to give an idmapped mount another mapping.
/// `flags` are those of [`tree`]. Kernels before 6.15 answer `ENOSYS`.
pub fn open_tree_attr(dir: impl AsFd, path: &CStr, flags: u32, change: &MountAttr<'_>) -> Result<OwnedFd> {
    /// `__NR_open_tree_attr`; new system calls have one number on all architectures (but alpha).
    const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
    let raw = change.raw();
    // SAFETY: `path` is NUL-terminated, `raw` a complete `struct mount_attr` of the size given; both outlive the call,
    // which only reads them.
    let fd = check(unsafe {
        libc::syscall(
            SYS_OPEN_TREE_ATTR,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&raw),
            size_of::<RawAttr>(),
        )
    })?;
    // SAFETY: a successful open_tree_attr returns a new descriptor.
    Ok(unsafe { owned_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clone3::{Clone3, Side, flags};
    use rustix::fs::{CWD, Mode, OFlags, openat, statat};
    use rustix::io::Errno;
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

    /// A tmpfs that is mounted nowhere.
    fn tmpfs() -> OwnedFd {
        let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        rustix::mount::fsconfig_create(fs.as_fd()).unwrap();
        rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
    }

    fn create(dir: &OwnedFd, name: &str) -> Result<OwnedFd> {
        openat(
            dir,
            name,
            OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )
    }

    /// A user namespace in which 0 is 1000 outside, made by a child that only waits to be killed.
    fn userns() -> OwnedFd {
        // SAFETY: the child makes one system call and nothing else.
        match unsafe { Clone3::new(flags::NEWUSER).call() }.unwrap() {
            Side::Child => loop {
                // SAFETY: pause has no preconditions.
                unsafe { libc::pause() };
            },
            Side::Parent { pid, .. } => {
                let proc = format!("/proc/{}", pid.as_raw_nonzero());
                std::fs::write(format!("{proc}/uid_map"), "0 1000 1000").unwrap();
                std::fs::write(format!("{proc}/gid_map"), "0 1000 1000").unwrap();
                let fd = std::fs::File::open(format!("{proc}/ns/user")).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
                fd.into()
            }
        }
    }

    #[test]
    fn read_only_and_back() {
        let fs = tmpfs();
        drop(create(&fs, "a").unwrap());
        mount_setattr(
            &fs,
            true,
            &MountAttr {
                set: attr::RDONLY | attr::NOSUID,
                ..Default::default()
            },
        )
        .unwrap();
        assert_eq!(create(&fs, "b").unwrap_err(), Errno::ROFS);
        mount_setattr(
            &fs,
            false,
            &MountAttr {
                clear: attr::RDONLY,
                ..Default::default()
            },
        )
        .unwrap();
        drop(create(&fs, "b").unwrap());
    }

    #[test]
    fn owners_are_mapped() {
        let fs = tmpfs();
        drop(create(&fs, "file").unwrap());
        let tree = rustix::mount::open_tree(
            &fs,
            "",
            OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .unwrap();
        let ns = userns();
        mount_setattr(
            &tree,
            true,
            &MountAttr {
                idmap: Some(ns.as_fd()),
                ..Default::default()
            },
        )
        .unwrap();
        let stat = statat(&tree, "file", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (1000, 1000));
    }

    #[test]
    fn propagation_is_accepted_and_nonsense_is_not() {
        let fs = tmpfs();
        for propagation in [Propagation::Private, Propagation::Slave, Propagation::Unbindable] {
            mount_setattr(
                &fs,
                true,
                &MountAttr {
                    propagation: Some(propagation),
                    ..Default::default()
                },
            )
            .unwrap();
        }
        let nonsense = MountAttr {
            set: 1 << 40,
            ..Default::default()
        };
        assert_eq!(mount_setattr(&fs, true, &nonsense).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn tree_with_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let path = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
        let change = MountAttr {
            set: attr::RDONLY | attr::NODEV,
            ..Default::default()
        };
        match open_tree_attr(CWD, &path, tree::CLONE | tree::CLOEXEC | tree::RECURSIVE, &change) {
            Ok(mount) => assert_eq!(create(&mount, "x").unwrap_err(), Errno::ROFS),
            Err(errno) => assert_eq!(errno, Errno::NOSYS),
        }
    }
}
