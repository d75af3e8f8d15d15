//! Directories inside a root, opened once and remembered.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result, show};

/// Longest path inside a root.
const MAX_PATH: usize = 4096;
/// Longest name of one component (NAME_MAX).
const MAX_NAME: usize = 255;
/// Deepest directory: removing a tree takes a descriptor for each level.
pub(crate) const MAX_DEPTH: usize = 256;
/// Directories kept open.
const MAX_CACHED: usize = 64;
/// How often a resolution is tried again when renames elsewhere disturb it.
const RETRIES: usize = 128;

/// An open directory, with its path below the root after following links.
pub(crate) struct Dir {
    pub(crate) fd: OwnedFd,
    pub(crate) path: Vec<u8>,
}

impl Dir {
    /// The path of something in this directory.
    pub(crate) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() {
            name.to_vec()
        } else {
            [&self.path, &b"/"[..], name].concat()
        }
    }
}

/// A root directory and what was opened below it.
pub(crate) struct Root<'a> {
    fd: BorrowedFd<'a>,
    cache: HashMap<Vec<u8>, Rc<Dir>>,
}

impl<'a> Root<'a> {
    pub(crate) fn new(fd: BorrowedFd<'a>) -> Self {
        Self {
            fd,
            cache: HashMap::new(),
        }
    }

    /// Makes a directory, after those that lead to it.
    fn make_dir(&mut self, path: &[u8], flags: OFlags) -> Result<Dir> {
        let (parent, name) = split(path);
        let parent = self.dir(parent, true)?;
        match rustix::fs::mkdirat(&parent.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io(format!("cannot make directory {}", show(path)), e)),
        }
        let fd = rustix::fs::openat(&parent.fd, name, flags | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open directory {}", show(path)), e))?;
        Ok(Dir {
            fd,
            path: parent.join(name),
        })
    }

    /// Opens a directory by a clean path, following links inside the root; makes what is missing if asked.
    pub(crate) fn dir(&mut self, path: &[u8], create: bool) -> Result<Rc<Dir>> {
        if let Some(dir) = self.cache.get(path) {
            return Ok(Rc::clone(dir));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match self.open_plain(path, flags) {
            Ok(fd) => Dir {
                fd,
                path: path.to_vec(),
            },
            Err(Errno::LOOP) => match open_in_root(self.fd, path, flags) {
                Ok(fd) => {
                    let path = self.real_path(fd.as_fd(), path)?;
                    Dir { fd, path }
                }
                // It is to be made where a link leads to.
                Err(Errno::NOENT) if create => self.make_dir(path, flags)?,
                Err(e) => return Err(Error::io(format!("cannot open directory {}", show(path)), e)),
            },
            Err(Errno::NOENT) if create => self.make_dir(path, flags)?,
            Err(e) => return Err(Error::io(format!("cannot open directory {}", show(path)), e)),
        };
        if dir.path.len() > MAX_PATH || dir.path.split(|&b| b == b'/').count() > MAX_DEPTH {
            return Err(Error::limit(format!("the directory {} is too deep", show(path))));
        }
        if self.cache.len() >= MAX_CACHED {
            self.cache.clear();
        }
        let dir = Rc::new(dir);
        self.cache.insert(path.to_vec(), Rc::clone(&dir));
        Ok(dir)
    }

    /// Opens by a clean path with no link anywhere on the way.
    pub(crate) fn open_plain(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        retry(|| {
            rustix::fs::openat2(
                self.fd,
                or_dot(path),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            )
        })
    }

    /// Forgets every open directory: something that a path led through was replaced.
    pub(crate) fn forget(&mut self) {
        self.cache.clear();
    }

    /// Where a directory that was reached through a link really is.
    fn real_path(&self, fd: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>> {
        let name = |fd: BorrowedFd<'_>| {
            use std::os::fd::AsRawFd;
            rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
                .map_err(|e| Error::io(format!("cannot find where {} leads", show(path)), e))
        };
        let (root, full) = (name(self.fd)?, name(fd)?);
        let root = root.as_bytes();
        let root = if root == b"/" { b"" } else { root };
        match full.as_bytes().strip_prefix(root) {
            Some([b'/', rest @ ..]) => Ok(rest.to_vec()),
            Some([]) => Ok(Vec::new()),
            _ => Err(Error::invalid(format!("{} leads out of the root", show(path)))),
        }
    }
}

/// Opens a path as a process would whose root directory this is.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    retry(|| {
        rustix::fs::openat2(
            root,
            or_dot(path),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    })
}

/// The kernel answers EAGAIN when a rename or mount elsewhere happened during a scoped resolution.
fn retry<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..RETRIES {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            result => return result,
        }
    }
    open()
}

fn or_dot(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// Parent and last component of a clean path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A name from an archive as a clean relative path; empty is the root itself.
///
/// A leading slash means the root of what is unpacked: honest layers have such names, for links that their builder adds
/// or for all (`tar -P`). `..` is refused, not repaired: no honest archive of a root has it.
pub(crate) fn clean(path: &[u8]) -> Result<Vec<u8>> {
    let refuse = |why: &str| Err(Error::invalid(format!("the path {} {why}", show(path))));
    if path.is_empty() {
        return refuse("in the archive is empty");
    }
    if path.contains(&0) {
        return refuse("in the archive contains a null byte");
    }
    if path.len() > MAX_PATH {
        return refuse("in the archive is longer than 4096 bytes");
    }
    let mut out = Vec::with_capacity(path.len());
    let mut depth = 0;
    for component in path.split(|&b| b == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return refuse("in the archive has a component \"..\""),
            _ if component.len() > MAX_NAME => return refuse("has a component longer than 255 bytes"),
            _ => {}
        }
        depth += 1;
        if depth > MAX_DEPTH {
            return refuse("is nested more than 256 directories deep");
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(component);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cleans_and_refuses() {
        assert_eq!(clean(b"./a//b/./c/").unwrap(), b"a/b/c");
        assert_eq!(clean(b"./").unwrap(), b"");
        assert_eq!(clean(b"/").unwrap(), b"");
        assert_eq!(clean(b"//usr/bin/").unwrap(), b"usr/bin");
        for bad in [
            &b""[..],
            b"../x",
            b"/../x",
            b"a/../b",
            b"a\0b",
            &[b'a'; 256],
            &b"a/".repeat(300),
            &b"a/".repeat(3000),
        ] {
            assert!(clean(bad).is_err(), "{}", show(bad));
        }
    }

    proptest! {
        #[test]
        fn clean_paths_stay_below(path in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..40)) {
            if let Ok(path) = clean(&path) {
                prop_assert!(!path.starts_with(b"/") && !path.ends_with(b"/"));
                prop_assert!(path.split(|&b| b == b'/').all(|c| c != b".." && c != b"."));
                prop_assert_eq!(clean(&[b"./", &path[..]].concat()).unwrap(), path);
            }
        }
    }
}
