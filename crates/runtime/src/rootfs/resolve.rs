//! Paths inside a root, by descriptor.
//!
//! Everything a container names is looked up with openat2(2) and `RESOLVE_IN_ROOT`: symbolic links and `..` stay
//! inside the root however the container changes its tree meanwhile (CVE-2021-30465), and the result is a descriptor,
//! not a path that could mean something else a moment later.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::Context;
use crate::{Error, Result};

/// How often a look-up that raced with a rename is tried again before it fails.
const ATTEMPTS: usize = 128;

/// How many links to something missing are followed.
const MAX_LINKS: usize = 8;

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A directory.
    Directory,
    /// Anything but a directory.
    File,
}

/// Opens `path` inside `root` as openat2 does with `RESOLVE_IN_ROOT`, plus `extra` restrictions.
pub fn open_in_root(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    extra: ResolveFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new("/")
    } else {
        path
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | extra;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// An `O_PATH` descriptor of `path` inside `root`, links followed.
pub fn lookup(root: impl AsFd, path: &Path) -> std::result::Result<OwnedFd, Errno> {
    open_in_root(root, path, OFlags::PATH, ResolveFlags::empty())
}

/// The place for a mount: `path` inside `root`, made (with its parents) when it does not exist.
///
/// # Errors
/// When it exists and is of the wrong kind, or cannot be made.
pub fn mount_target(root: impl AsFd, path: &Path, kind: TargetKind) -> Result<OwnedFd> {
    let root = root.as_fd();
    let found = match lookup(root, path) {
        Ok(found) => found,
        Err(Errno::NOENT) => {
            create(root, path, kind, 0).context(|| format!("make the mount point {}", path.display()))?
        }
        Err(errno) => return Err(errno).context(|| format!("look up the mount point {}", path.display())),
    };
    let is_dir = is_directory(&found).context(|| format!("look at the mount point {}", path.display()))?;
    match (kind, is_dir) {
        (TargetKind::Directory, false) => Err(Error::invalid(format!(
            "cannot mount a directory over {}, which is not a directory: choose another destination",
            path.display()
        ))),
        (TargetKind::File, true) => Err(Error::invalid(format!(
            "cannot mount a file over {}, which is a directory: choose another destination",
            path.display()
        ))),
        _ => Ok(found),
    }
}

/// Whether the descriptor is a directory's.
pub fn is_directory(fd: impl AsFd) -> std::result::Result<bool, Errno> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_dir())
}

/// Makes the missing part of `path`, step by step. Where a link leads to something missing, that is made.
fn create(
    root: impl AsFd,
    path: &Path,
    kind: TargetKind,
    links: usize,
) -> std::result::Result<OwnedFd, Errno> {
    let root = root.as_fd();
    let path = normal(path);
    let names: Vec<&OsStr> = path.iter().skip(1).collect();
    let mut prefix = PathBuf::from("/");
    let mut here = lookup(root, &prefix)?;
    for (index, name) in names.iter().enumerate() {
        let parent = prefix.clone();
        prefix.push(name);
        here = match lookup(root, &prefix) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                let last = index + 1 == names.len();
                let made = if last && kind == TargetKind::File {
                    let flags =
                        OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
                    rustix::fs::openat(&here, *name, flags, Mode::from_raw_mode(0o644)).map(drop)
                } else {
                    rustix::fs::mkdirat(&here, *name, Mode::from_raw_mode(0o755))
                };
                match made {
                    Ok(()) => {}
                    Err(Errno::EXIST) if links < MAX_LINKS => {
                        // A link to nowhere; or something that was put there just now, which is found the next time.
                        let onward = match rustix::fs::readlinkat(&here, *name, Vec::new()) {
                            Ok(link) => parent.join(OsStr::from_bytes(link.to_bytes())),
                            Err(Errno::INVAL) => prefix,
                            Err(errno) => return Err(errno),
                        };
                        let onward: PathBuf = std::iter::once(onward.as_os_str())
                            .chain(names[index + 1..].iter().copied())
                            .collect();
                        return lookup(root, &onward).or_else(|_| create(root, &onward, kind, links + 1));
                    }
                    Err(errno) => return Err(errno),
                }
                // Not followed: what was just made is no link, and a link put in its place is not wanted.
                rustix::fs::openat(
                    &here,
                    *name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?
            }
            Err(errno) => return Err(errno),
        };
    }
    Ok(here)
}

/// The path without `..`: what is missing cannot be a link, so that `..` means what it says.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn links_and_parents_stay_inside() {
        let (dir, fd) = root();
        std::os::unix::fs::symlink("/../../outside", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("link/deep", dir.path().join("second")).unwrap();
        mount_target(&fd, Path::new("/outside"), TargetKind::Directory).unwrap();
        mount_target(&fd, Path::new("/second/../../x/y"), TargetKind::File).unwrap();
        mount_target(&fd, Path::new("link/a/b"), TargetKind::Directory).unwrap();
        assert!(dir.path().join("outside/a/b").is_dir() && dir.path().join("x/y").is_file());
    }

    #[test]
    fn links_to_something_missing_are_followed() {
        let (dir, fd) = root();
        std::os::unix::fs::symlink("/run/../run", dir.path().join("var")).unwrap();
        std::os::unix::fs::symlink("../../etc", dir.path().join("up")).unwrap();
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        mount_target(&fd, Path::new("/var/lock/x"), TargetKind::File).unwrap();
        mount_target(&fd, Path::new("/up"), TargetKind::Directory).unwrap();
        mount_target(&fd, Path::new("/loop/x"), TargetKind::Directory).unwrap_err();
        assert!(dir.path().join("run/lock/x").is_file() && dir.path().join("etc").is_dir());
    }

    #[test]
    fn kinds_are_told_apart() {
        let (dir, fd) = root();
        mount_target(&fd, Path::new("/etc/hosts"), TargetKind::File).unwrap();
        assert!(dir.path().join("etc/hosts").is_file());
        mount_target(&fd, Path::new("/etc/hosts"), TargetKind::Directory).unwrap_err();
        mount_target(&fd, Path::new("/etc"), TargetKind::File).unwrap_err();
        mount_target(&fd, Path::new("/"), TargetKind::Directory).unwrap();
    }
}
