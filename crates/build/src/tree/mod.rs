//! Trees of files by descriptor: contexts, the roots of stages, what is exported.
//!
//! A path in a tree is looked up by the kernel below the tree's root (`openat2` with `RESOLVE_IN_ROOT`): a link leads
//! where it would for a process whose root this is, never out of it. Walks go down by descriptors and follow no link.

pub(crate) mod accounts;
pub(crate) mod copy;
pub(crate) mod digest;
pub(crate) mod glob;
pub(crate) mod squash;
pub(crate) mod unpack;

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// How many links a path may lead through.
const MAX_LINKS: usize = 40;
/// How often a lookup is tried again when renames elsewhere disturb it.
const RETRIES: usize = 128;
/// The longest path.
pub(crate) const MAX_PATH: usize = 4096;
/// The deepest tree that is walked: a walk holds a descriptor for each level.
pub(crate) const MAX_DEPTH: usize = 512;

/// Shows a path in a message.
pub(crate) fn show(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&path[..path.len().min(300)]))
}

/// Opens a directory of this host as the root of a tree.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| Error::io(format!("cannot open {}", path.display()), error))
}

fn retry<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..RETRIES {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            result => return result,
        }
    }
    open()
}

/// A path without the slashes before it; the root itself is `.`.
fn below(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
    if start == path.len() { b"." } else { &path[start..] }
}

/// Opens a path, following links inside the root.
pub(crate) fn open_in(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    retry(|| rustix::fs::openat2(root, below(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve))
}

/// Opens something in a directory, following no link.
pub(crate) fn open_at(parent: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        parent,
        name,
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

pub(crate) fn stat_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Where a path leads when every link on the way, the last too, has been followed.
pub(crate) struct Place {
    pub parent: OwnedFd,
    /// `.` for the root.
    pub name: Vec<u8>,
    /// None: nothing is there, but its directory is.
    pub stat: Option<Stat>,
}

impl Place {
    pub fn is_dir(&self) -> bool {
        self.stat
            .as_ref()
            .is_some_and(|stat| kind(stat) == FileType::Directory)
    }
}

/// Follows a path to its end. None: a directory on the way is not there.
pub(crate) fn resolve(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Place>> {
    let mut path = path.to_vec();
    for _ in 0..MAX_LINKS {
        if path.len() > MAX_PATH {
            break;
        }
        let trimmed = trim_slashes(&path);
        let (parent_path, name) = split(trimmed);
        let fail = |error: Errno| Error::io(format!("cannot look at {}", show(trimmed)), error);
        if matches!(name, b"" | b"." | b"..") {
            // The parent of a directory is a directory: found by the whole path.
            return match open_in(root, trimmed, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(parent) => {
                    let stat = stat_at(parent.as_fd(), b".").map_err(fail)?;
                    Ok(Some(Place {
                        parent,
                        name: b".".to_vec(),
                        stat,
                    }))
                }
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(fail(error)),
            };
        }
        let parent = match open_in(root, parent_path, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let stat = stat_at(parent.as_fd(), name).map_err(fail)?;
        match &stat {
            Some(found) if kind(found) == FileType::Symlink => {
                let target = rustix::fs::readlinkat(&parent, name, Vec::new()).map_err(fail)?;
                path = if target.as_bytes().starts_with(b"/") {
                    target.into_bytes()
                } else {
                    [parent_path, b"/", target.as_bytes()].concat()
                };
            }
            _ => {
                let name = name.to_vec();
                return Ok(Some(Place { parent, name, stat }));
            }
        }
    }
    Err(Error::invalid(format!(
        "{} leads through too many links",
        show(&path)
    )))
}

/// A path from the root without links: where `path` leads. None: nothing is there.
pub(crate) fn canonical(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let Some(place) = resolve(root, path)?.filter(|place| place.stat.is_some()) else {
        return Ok(None);
    };
    let of = |fd: BorrowedFd<'_>| {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::readlink(link, Vec::new())
            .map(CString::into_bytes)
            .map_err(|error| Error::io(format!("cannot tell where {} leads", show(path)), error))
    };
    let (above, parent) = (of(root)?, of(place.parent.as_fd())?);
    let above: &[u8] = if above == b"/" { b"" } else { &above };
    let below = parent.strip_prefix(above).unwrap_or(&parent);
    Ok(Some(clean(&[below, b"/", &place.name].concat())))
}

/// How directories that are missing are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Making {
    pub mode: u32,
    pub owner: Option<(u32, u32)>,
    pub mtime: Option<i64>,
}

/// Opens a directory by its path, making what is missing.
pub(crate) fn make_dirs(root: BorrowedFd<'_>, path: &[u8], making: &Making) -> Result<OwnedFd> {
    let fail = |error: Errno| Error::io(format!("cannot make the directory {}", show(path)), error);
    match open_in(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(fail(error)),
    }
    let trimmed = trim_slashes(path);
    let (parent, name) = split(trimmed);
    if name.is_empty() || parent.len() >= trimmed.len() {
        return Err(fail(Errno::NOENT));
    }
    let parent_fd = make_dirs(root, parent, making)?;
    if matches!(name, b"." | b"..") {
        return open_in(root, trimmed, OFlags::PATH | OFlags::DIRECTORY).map_err(fail);
    }
    match rustix::fs::mkdirat(&parent_fd, name, Mode::from_raw_mode(making.mode)) {
        Ok(()) => {
            let fd = open_at(parent_fd.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
            if let Some((uid, gid)) = making.owner {
                chown(fd.as_fd(), uid, gid).map_err(fail)?;
            }
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(making.mode)).map_err(fail)?;
            if let Some(mtime) = making.mtime {
                rustix::fs::futimens(&fd, &times(mtime, 0)).map_err(fail)?;
            }
            Ok(fd)
        }
        Err(Errno::EXIST) => {
            // A link that leads to nothing, or somebody else was faster.
            match resolve(root, trimmed)? {
                Some(place) if place.is_dir() => open_at(
                    place.parent.as_fd(),
                    &place.name,
                    OFlags::PATH | OFlags::DIRECTORY,
                )
                .map_err(fail),
                Some(place) if place.stat.is_none() => {
                    rustix::fs::mkdirat(&place.parent, &*place.name, Mode::from_raw_mode(making.mode))
                        .map_err(fail)?;
                    open_at(
                        place.parent.as_fd(),
                        &place.name,
                        OFlags::PATH | OFlags::DIRECTORY,
                    )
                    .map_err(fail)
                }
                None => {
                    // A link into a directory that is not there yet either.
                    let target = rustix::fs::readlinkat(&parent_fd, name, Vec::new()).map_err(fail)?;
                    let target = match target.as_bytes() {
                        absolute @ [b'/', ..] => absolute.to_vec(),
                        relative => [parent, b"/", relative].concat(),
                    };
                    if target.len() > MAX_PATH {
                        return Err(fail(Errno::NAMETOOLONG));
                    }
                    make_dirs(root, &target, making)
                }
                Some(_) => Err(fail(Errno::NOTDIR)),
            }
        }
        Err(error) => Err(fail(error)),
    }
}

pub(crate) fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    rustix::fs::fchown(
        fd,
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
    )
}

/// Sets the modification time; the access time is the same.
pub(crate) fn times(seconds: i64, nanos: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// The names in a directory, sorted.
pub(crate) fn list(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The extended attributes of an open file (not `O_PATH`), sorted, without those of overlayfs and of labels of this host.
pub(crate) fn xattrs(fd: BorrowedFd<'_>) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    let mut names = vec![0u8; 4096];
    let length = loop {
        match rustix::fs::flistxattr(fd, &mut names[..]) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < 1 << 20 => names.resize(names.len() * 4, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    };
    let mut out = Vec::new();
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(b"trusted.overlay.")
            || name.starts_with(b"user.overlay.")
            || name == b"security.selinux"
        {
            continue;
        }
        let Ok(name) = CString::new(name) else { continue };
        let mut value = vec![0u8; 256];
        loop {
            match rustix::fs::fgetxattr(fd, &name, &mut value[..]) {
                Ok(length) => {
                    value.truncate(length);
                    out.push((name, value));
                    break;
                }
                Err(Errno::RANGE) if value.len() < 1 << 20 => {
                    let larger = value.len() * 8;
                    value.resize(larger, 0);
                }
                Err(Errno::NODATA) => break,
                Err(error) => return Err(error),
            }
        }
    }
    out.sort();
    Ok(out)
}

pub(crate) fn trim_slashes(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |at| at + 1);
    &path[..end]
}

/// Directory and last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A path from the root without `.`, `..` and doubled slashes, as Go's `path.Clean("/" + p)` makes it.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    [b"/", &parts.join(&b'/')[..]].concat()
}

/// What a directory tree takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    Bytes(u64),
    /// More than was asked about.
    More,
    /// Something lies deeper than [`MAX_DEPTH`] directories.
    Deep,
}

/// Bytes of the files of a directory tree on disk; what cannot be read, or lies too deep, counts nothing.
pub(crate) fn disk_usage(path: &Path) -> u64 {
    measure(path, u64::MAX).0
}

/// The same as far as it matters: it is not looked further than where it is more, or too deep.
pub(crate) fn disk_usage_to(path: &Path, limit: u64) -> Usage {
    match measure(path, limit) {
        (bytes, _) if bytes > limit => Usage::More,
        (_, true) => Usage::Deep,
        (bytes, false) => Usage::Bytes(bytes),
    }
}

/// Bytes, and whether something was too deep to be looked at.
fn measure(path: &Path, limit: u64) -> (u64, bool) {
    #[derive(Default)]
    struct Walk {
        limit: u64,
        bytes: u64,
        deep: bool,
        seen: HashSet<u64>,
    }
    fn add(walk: &mut Walk, fd: BorrowedFd<'_>, depth: usize) {
        for name in list(fd).unwrap_or_default() {
            if walk.bytes > walk.limit {
                return;
            }
            let Ok(Some(stat)) = stat_at(fd, &name) else {
                continue;
            };
            let directory = kind(&stat) == FileType::Directory;
            if stat.st_nlink > 1 && !directory && !walk.seen.insert(stat.st_ino) {
                continue;
            }
            walk.bytes = walk.bytes.saturating_add(stat.st_blocks as u64 * 512);
            if directory && depth >= MAX_DEPTH {
                walk.deep = true;
            } else if directory && let Ok(child) = open_at(fd, &name, OFlags::RDONLY | OFlags::DIRECTORY) {
                add(walk, child.as_fd(), depth + 1);
            }
        }
    }
    let mut walk = Walk {
        limit,
        ..Walk::default()
    };
    if let Ok(fd) = open_root(path) {
        add(&mut walk, fd.as_fd(), 0);
    }
    (walk.bytes, walk.deep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_in_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("/a", root.join("abs")).unwrap();
        symlink("../../..", root.join("a/up")).unwrap();
        symlink("/missing/place", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let fd = open_root(&root).unwrap();
        let fd = fd.as_fd();
        let making = Making {
            mode: 0o755,
            owner: None,
            mtime: None,
        };
        make_dirs(fd, b"/abs/new/deep", &making).unwrap();
        assert!(root.join("a/new/deep").is_dir());
        make_dirs(fd, b"/a/up/here", &making).unwrap();
        assert!(root.join("here").is_dir());
        assert!(!directory.path().join("here").exists());
        assert!(resolve(fd, b"/dangling").unwrap().is_none());
        make_dirs(fd, b"/missing", &making).unwrap();
        make_dirs(fd, b"/dangling/x", &making).unwrap();
        assert!(root.join("missing/place/x").is_dir());
        assert!(resolve(fd, b"/loop").is_err());
        let place = resolve(fd, b"/abs/file").unwrap().unwrap();
        assert_eq!(place.name, b"file");
        assert!(place.stat.is_none());
        assert!(resolve(fd, b"/").unwrap().unwrap().is_dir());
        let canonical = |path: &[u8]| canonical(fd, path).unwrap();
        assert_eq!(canonical(b"/abs/b").as_deref(), Some(&b"/a/b"[..]));
        assert_eq!(canonical(b"/a/up/a/../a").as_deref(), Some(&b"/a"[..]));
        assert_eq!(canonical(b"/").as_deref(), Some(&b"/"[..]));
        assert_eq!(canonical(b"/abs/file"), None);
    }

    #[test]
    fn usage_is_looked_at_as_far_as_it_matters() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), vec![1; 64 << 10]).unwrap();
        let bytes = disk_usage(directory.path());
        assert!(bytes >= 64 << 10);
        assert_eq!(disk_usage_to(directory.path(), bytes), Usage::Bytes(bytes));
        assert_eq!(disk_usage_to(directory.path(), bytes - 1), Usage::More);
        let mut at = open_root(directory.path()).unwrap();
        for _ in 0..=MAX_DEPTH {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open_at(at.as_fd(), b"d", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        }
        assert_eq!(disk_usage_to(directory.path(), u64::MAX), Usage::Deep);
    }

    #[test]
    fn cleans_as_go_does() {
        assert_eq!(clean(b"a//b/./../c/"), b"/a/c");
        assert_eq!(clean(b"../../x"), b"/x");
        assert_eq!(clean(b""), b"/");
    }
}
