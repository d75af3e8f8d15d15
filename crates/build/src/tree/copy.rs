//! Copying from tree to tree, as `COPY` does it: what BuildKit's fsutil does, by descriptors.
//!
//! A directory's contents are copied into the destination; a directory that was there keeps what it has, below the
//! destination itself it takes the source's mode, owner and times. A file replaces a file or a link, never a directory,
//! and a directory never a file. Hard links between copied files stay hard links.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::{
    MAX_DEPTH, Making, chown, kind, list, make_dirs, open_at, open_in, resolve, show, split, stat_at, times,
    trim_slashes, xattrs,
};
use crate::error::{Error, ErrorKind, Result};
use crate::solve::Cancelled;

/// How many files with several links are remembered; links beyond that become files of their own.
const MAX_REMEMBERED: usize = 4096;
/// Bytes copied between two looks at whether the build was cancelled.
const PIECE: usize = 1 << 20;

/// `--chmod`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Chmod {
    /// The mode of everything.
    Octal(u32),
    /// Changes to each file's own (`u+rwX,go=`).
    Symbolic(Vec<Change>),
}

/// A part of a symbolic mode.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Change {
    /// Bits of whom: 0o4700, 0o2070, 0o1007.
    who: u32,
    operator: u8,
    /// Permissions for everybody, `rwxst` spread over all.
    bits: u32,
    /// `X`: execution for directories and what somebody may execute.
    maybe_execute: bool,
    /// Copied from `u`, `g` or `o`.
    from: Option<u32>,
}

impl Chmod {
    /// Reads an octal or a symbolic mode.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid(format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777, or symbolic as in u=rwX,go=rX"
            ))
        };
        if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            return match u32::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o7777 => Ok(Self::Octal(mode)),
                _ => Err(bad()),
            };
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let bytes = clause.as_bytes();
            let first = bytes
                .iter()
                .position(|byte| b"+-=".contains(byte))
                .ok_or_else(bad)?;
            let mut who = 0;
            for byte in &bytes[..first] {
                who |= match byte {
                    b'u' => 0o4700,
                    b'g' => 0o2070,
                    b'o' => 0o1007,
                    b'a' => 0o7777,
                    _ => return Err(bad()),
                };
            }
            if who == 0 {
                who = 0o7777;
            }
            let mut rest = &bytes[first..];
            while let Some((operator, after)) = rest.split_first() {
                if !b"+-=".contains(operator) {
                    return Err(bad());
                }
                let end = after
                    .iter()
                    .position(|byte| b"+-=".contains(byte))
                    .unwrap_or(after.len());
                let mut change = Change {
                    who,
                    operator: *operator,
                    bits: 0,
                    maybe_execute: false,
                    from: None,
                };
                for byte in &after[..end] {
                    match byte {
                        b'r' => change.bits |= 0o444,
                        b'w' => change.bits |= 0o222,
                        b'x' => change.bits |= 0o111,
                        b'X' => change.maybe_execute = true,
                        b's' => change.bits |= 0o6000,
                        b't' => change.bits |= 0o1000,
                        b'u' | b'g' | b'o' if end == 1 => {
                            change.from = Some(match byte {
                                b'u' => 6,
                                b'g' => 3,
                                _ => 0,
                            });
                        }
                        _ => return Err(bad()),
                    }
                }
                changes.push(change);
                rest = &after[end..];
            }
        }
        Ok(Self::Symbolic(changes))
    }

    /// The mode of something whose mode was this.
    pub fn apply(&self, mode: u32, directory: bool) -> u32 {
        let changes = match self {
            Self::Octal(mode) => return *mode,
            Self::Symbolic(changes) => changes,
        };
        let mut mode = mode & 0o7777;
        for change in changes {
            let mut bits = change.bits;
            if change.maybe_execute && (directory || mode & 0o111 != 0) {
                bits |= 0o111;
            }
            if let Some(shift) = change.from {
                let class = (mode >> shift) & 7;
                bits |= class << 6 | class << 3 | class;
            }
            let bits = bits & change.who;
            match change.operator {
                b'+' => mode |= bits,
                b'-' => mode &= !bits,
                _ => mode = (mode & !change.who) | bits,
            }
        }
        mode
    }
}

/// How things are copied.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// Who owns the copies; none: who owns the originals.
    pub owner: Option<(u32, u32)>,
    pub chmod: Option<Chmod>,
    /// The modification time of the copies; none: the originals'.
    pub mtime: Option<i64>,
    /// Whether something is left out, by its path below the copied directory.
    pub skip: Option<Skip>,
}

/// Tells by path and whether it is a directory what is left out.
#[derive(Clone)]
pub(crate) struct Skip(pub Arc<Test>);

type Test = dyn Fn(&[u8], bool) -> Skipped + Send + Sync;

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skipped {
    No,
    /// With everything below.
    All,
    /// But something below may not be.
    Itself,
}

impl Options {
    pub fn making(&self) -> Making {
        let mode = match &self.chmod {
            Some(Chmod::Octal(mode)) => *mode,
            _ => 0o755,
        };
        Making {
            mode,
            owner: self.owner.or(Some((0, 0))),
            mtime: self.mtime,
        }
    }
}

/// Copies into one tree.
pub(crate) struct Copier<'a> {
    root: BorrowedFd<'a>,
    options: Options,
    links: HashMap<(u64, u64), (Arc<OwnedFd>, Vec<u8>)>,
    cancelled: &'a Cancelled,
    buffer: Vec<u8>,
    /// Bytes copied.
    pub bytes: u64,
}

impl<'a> Copier<'a> {
    pub fn new(root: BorrowedFd<'a>, options: Options, cancelled: &'a Cancelled) -> Self {
        Self {
            root,
            options,
            links: HashMap::new(),
            cancelled,
            buffer: Vec::new(),
            bytes: 0,
        }
    }

    /// Copies one source, found by its path in a tree (links followed), to a destination in the root: the contents of a
    /// directory into it; a file to it, or into it when it is a directory.
    pub fn copy(&mut self, source: BorrowedFd<'_>, path: &[u8], destination: &[u8]) -> Result<()> {
        let missing = || Error::not_found(format!("{}: not found", show(path)));
        let place = resolve(source, path)?.ok_or_else(missing)?;
        let stat = place.stat.ok_or_else(missing)?;
        let making = self.options.making();
        let in_directory = destination.ends_with(b"/");
        let ensured = if in_directory {
            destination
        } else {
            split(destination).0
        };
        make_dirs(self.root, ensured, &making)?;
        let target = resolve(self.root, destination)?;
        if kind(&stat) == FileType::Directory {
            if let Some(target) = &target
                && target.stat.is_some()
                && !target.is_dir()
            {
                return Err(Error::invalid(format!(
                    "cannot copy to non-directory: {}",
                    show(destination)
                )));
            }
            make_dirs(self.root, destination, &making)?;
            let into = open_in(self.root, destination, OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|error| Error::io(format!("cannot open {}", show(destination)), error))?;
            let from = open_at(
                place.parent.as_fd(),
                &place.name,
                OFlags::RDONLY | OFlags::DIRECTORY,
            )
            .map_err(|error| Error::io(format!("cannot open {}", show(path)), error))?;
            return self.contents(from.as_fd(), &Arc::new(into), &mut Vec::new(), 0);
        }
        let cannot = |error: Errno| Error::io(format!("cannot open {}", show(destination)), error);
        let (directory, name) = match target {
            Some(target) if target.is_dir() => {
                let fd = open_at(
                    target.parent.as_fd(),
                    &target.name,
                    OFlags::RDONLY | OFlags::DIRECTORY,
                )
                .map_err(cannot)?;
                (fd, split(trim_slashes(path)).1.to_vec())
            }
            Some(target) => (target.parent, target.name),
            None => return Err(cannot(Errno::NOENT)),
        };
        self.entry(
            place.parent.as_fd(),
            &place.name,
            &stat,
            &Arc::new(directory),
            &name,
            path,
        )
    }

    /// Copies something with the directories that lead to it from `pivot` (`--parents`).
    pub fn copy_with_parents(
        &mut self,
        source: BorrowedFd<'_>,
        pivot: &[u8],
        path: &[u8],
        destination: &[u8],
    ) -> Result<()> {
        let missing = || Error::not_found(format!("{}: not found", show(path)));
        make_dirs(self.root, destination, &self.options.making())?;
        let mut into = Arc::new(
            open_in(self.root, destination, OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|error| Error::io(format!("cannot open {}", show(destination)), error))?,
        );
        let mut from = open_in(source, pivot, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|_| missing())?;
        let parts: Vec<&[u8]> = path
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        let mut below = Vec::new();
        if parts.is_empty() {
            // The pivot itself: all that is in it.
            return self.contents(from.as_fd(), &into, &mut below, 0);
        }
        for (at, part) in parts.iter().enumerate() {
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(part);
            let stat = stat_at(from.as_fd(), part).ok().flatten().ok_or_else(missing)?;
            if at + 1 < parts.len() {
                let made = self.directory(from.as_fd(), part, &stat, &into, part, false)?;
                from = open_at(from.as_fd(), part, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(|error| Error::io(format!("cannot open {}", show(&below)), error))?;
                into = Arc::new(made);
            } else if kind(&stat) == FileType::Directory {
                let child = open_at(from.as_fd(), part, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(|error| Error::io(format!("cannot open {}", show(&below)), error))?;
                let made = Arc::new(self.directory(from.as_fd(), part, &stat, &into, part, false)?);
                self.contents(child.as_fd(), &made, &mut below.clone(), 0)?;
                self.times_of(made.as_fd(), &stat)?;
            } else {
                self.entry(from.as_fd(), part, &stat, &into, part, path)?;
            }
        }
        Ok(())
    }

    /// Copies what is in a directory into another, found by descriptors.
    pub(super) fn all_of(&mut self, from: BorrowedFd<'_>, into: &Arc<OwnedFd>) -> Result<()> {
        self.contents(from, into, &mut Vec::new(), 0)
    }

    /// Copies what is in a directory into another.
    fn contents(
        &mut self,
        from: BorrowedFd<'_>,
        into: &Arc<OwnedFd>,
        below: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!(
                "{} is too deep to be copied",
                show(below)
            )));
        }
        let names = list(from).map_err(|error| Error::io(format!("cannot list {}", show(below)), error))?;
        for name in names {
            self.cancelled.check()?;
            let length = below.len();
            if length > 0 {
                below.push(b'/');
            }
            below.extend_from_slice(&name);
            self.child(from, into, &name, below, depth)?;
            below.truncate(length);
        }
        Ok(())
    }

    fn child(
        &mut self,
        from: BorrowedFd<'_>,
        into: &Arc<OwnedFd>,
        name: &[u8],
        below: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        let stat = stat_at(from, name)
            .map_err(|error| Error::io(format!("cannot look at {}", show(below)), error))?
            .ok_or_else(|| Error::not_found(format!("{} vanished while it was copied", show(below))))?;
        let directory = kind(&stat) == FileType::Directory;
        let skipped = self
            .options
            .skip
            .as_ref()
            .map_or(Skipped::No, |skip| (skip.0)(below, directory));
        match skipped {
            Skipped::All => return Ok(()),
            Skipped::Itself if !directory => return Ok(()),
            _ => {}
        }
        if !directory {
            return self.entry(from, name, &stat, into, name, below);
        }
        let source = open_at(from, name, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|error| Error::io(format!("cannot open {}", show(below)), error))?;
        if skipped == Skipped::Itself && !self.keeps_some(source.as_fd(), below, depth)? {
            return Ok(());
        }
        let made = Arc::new(self.directory(from, name, &stat, into, name, true)?);
        self.contents(source.as_fd(), &made, below, depth + 1)?;
        self.times_of(made.as_fd(), &stat)
    }

    /// Whether anything below a directory that itself is left out is not.
    fn keeps_some(&self, from: BorrowedFd<'_>, below: &mut Vec<u8>, depth: usize) -> Result<bool> {
        let Some(skip) = &self.options.skip else {
            return Ok(true);
        };
        if depth > MAX_DEPTH {
            return Ok(false);
        }
        for name in list(from).map_err(|error| Error::io(format!("cannot list {}", show(below)), error))? {
            let length = below.len();
            below.push(b'/');
            below.extend_from_slice(&name);
            let directory = stat_at(from, &name)
                .ok()
                .flatten()
                .is_some_and(|stat| kind(&stat) == FileType::Directory);
            let kept = match (skip.0)(below, directory) {
                Skipped::No => true,
                Skipped::Itself if directory => {
                    match open_at(from, &name, OFlags::RDONLY | OFlags::DIRECTORY) {
                        Ok(child) => self.keeps_some(child.as_fd(), below, depth + 1)?,
                        Err(_) => false,
                    }
                }
                _ => false,
            };
            below.truncate(length);
            if kept {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes or takes over a directory. `over`: one that is there takes the source's attributes.
    fn directory(
        &self,
        from: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        into: &OwnedFd,
        to: &[u8],
        over: bool,
    ) -> Result<OwnedFd> {
        let fail = |error: Errno| Error::io(format!("cannot make the directory {}", show(to)), error);
        let made = match rustix::fs::mkdirat(into, to, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(fail(error)),
        };
        let target = match open_at(into.as_fd(), to, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(target) => target,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(Error::invalid(format!(
                    "cannot copy to non-directory: {}",
                    show(to)
                )));
            }
            Err(error) => return Err(fail(error)),
        };
        if made || over {
            let source = open_at(from, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
            self.attributes(source.as_fd(), target.as_fd(), stat)
                .map_err(|error| Error::io(format!("cannot set the attributes of {}", show(to)), error))?;
        }
        Ok(target)
    }

    /// Copies something that is no directory.
    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        into: &Arc<OwnedFd>,
        to: &[u8],
        shown: &[u8],
    ) -> Result<()> {
        let fail = |error: Errno| Error::io(format!("cannot copy {}", show(shown)), error);
        match stat_at(into.as_fd(), to).map_err(fail)? {
            Some(there) if kind(&there) == FileType::Directory => {
                return Err(Error::invalid(format!(
                    "cannot replace the directory {} with a file",
                    show(to)
                )));
            }
            Some(_) => rustix::fs::unlinkat(&**into, to, AtFlags::empty()).map_err(fail)?,
            None => {}
        }
        match kind(stat) {
            FileType::RegularFile => self.file(from, name, stat, into, to, shown),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).map_err(fail)?;
                rustix::fs::symlinkat(&target, &**into, to).map_err(fail)?;
                self.attributes_at(into, to, stat, false).map_err(fail)
            }
            FileType::Socket => Ok(()),
            kind => {
                rustix::fs::mknodat(&**into, to, kind, Mode::from_raw_mode(0o600), stat.st_rdev)
                    .map_err(fail)?;
                self.attributes_at(into, to, stat, true).map_err(fail)
            }
        }
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        into: &Arc<OwnedFd>,
        to: &[u8],
        shown: &[u8],
    ) -> Result<()> {
        let fail = |error: Errno| Error::io(format!("cannot copy {}", show(shown)), error);
        let inode = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some((directory, first)) = self.links.get(&inode)
            && rustix::fs::linkat(&**directory, &**first, &**into, to, AtFlags::empty()).is_ok()
        {
            return Ok(());
        }
        let source = open_at(from, name, OFlags::RDONLY).map_err(fail)?;
        let target = rustix::fs::openat(
            &**into,
            to,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )
        .map_err(fail)?;
        self.data(&source, &target, shown)?;
        self.attributes(source.as_fd(), target.as_fd(), stat)
            .and_then(|()| rustix::fs::futimens(&target, &self.time(stat)))
            .map_err(fail)?;
        if stat.st_nlink > 1 && self.links.len() < MAX_REMEMBERED {
            self.links.insert(inode, (Arc::clone(into), to.to_vec()));
        }
        Ok(())
    }

    fn data(&mut self, source: &OwnedFd, target: &OwnedFd, shown: &[u8]) -> Result<()> {
        let fail = |error: std::io::Error| {
            Error::with_source(ErrorKind::System, format!("cannot copy {}", show(shown)), error)
        };
        // The kernel shares the blocks where the file system can.
        loop {
            self.cancelled.check()?;
            match rustix::fs::copy_file_range(source, None, target, None, PIECE * 64) {
                Ok(0) => return Ok(()),
                Ok(copied) => self.bytes += copied as u64,
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => break,
                Err(error) => return Err(fail(error.into())),
            }
        }
        if self.buffer.is_empty() {
            self.buffer.resize(PIECE, 0);
        }
        let mut source = std::fs::File::from(source.try_clone().map_err(fail)?);
        let mut target = std::fs::File::from(target.try_clone().map_err(fail)?);
        loop {
            self.cancelled.check()?;
            let read = source.read(&mut self.buffer).map_err(fail)?;
            if read == 0 {
                return Ok(());
            }
            target.write_all(&self.buffer[..read]).map_err(fail)?;
            self.bytes += read as u64;
        }
    }

    fn owner(&self, stat: &Stat) -> (u32, u32) {
        self.options.owner.unwrap_or((stat.st_uid, stat.st_gid))
    }

    fn mode(&self, stat: &Stat) -> u32 {
        let mode = stat.st_mode & 0o7777;
        let directory = kind(stat) == FileType::Directory;
        self.options
            .chmod
            .as_ref()
            .map_or(mode, |chmod| chmod.apply(mode, directory))
    }

    fn time(&self, stat: &Stat) -> rustix::fs::Timestamps {
        match self.options.mtime {
            Some(mtime) => times(mtime, 0),
            None => times(stat.st_mtime, stat.st_mtime_nsec as i64),
        }
    }

    fn times_of(&self, fd: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        rustix::fs::futimens(fd, &self.time(stat))
            .map_err(|error| Error::io("cannot set the times of a directory", error))
    }

    /// Owner, mode and extended attributes: in this order, since a new owner takes set-ID bits and capabilities away.
    fn attributes(&self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
        let (uid, gid) = self.owner(stat);
        chown(target, uid, gid)?;
        rustix::fs::fchmod(target, Mode::from_raw_mode(self.mode(stat)))?;
        for (name, value) in xattrs(source)? {
            match rustix::fs::fsetxattr(target, &name, &value, XattrFlags::empty()) {
                Ok(()) => {}
                // What the destination's file system or this process cannot have is left out, as BuildKit does.
                Err(error) => tracing::debug!(?name, %error, "an extended attribute is not copied"),
            }
        }
        Ok(())
    }

    fn attributes_at(&self, into: &OwnedFd, to: &[u8], stat: &Stat, mode: bool) -> Result<(), Errno> {
        let (uid, gid) = self.owner(stat);
        rustix::fs::chownat(
            into,
            to,
            Some(rustix::fs::Uid::from_raw(uid)),
            Some(rustix::fs::Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if mode {
            // It was just made and is no link.
            rustix::fs::chmodat(into, to, Mode::from_raw_mode(self.mode(stat)), AtFlags::empty())?;
        }
        rustix::fs::utimensat(into, to, &self.time(stat), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Puts a file with this content and these attributes into a directory that is nobody else's.
pub(crate) fn write_file(directory: BorrowedFd<'_>, name: &[u8], content: &[u8], mode: u32) -> Result<()> {
    let fail = |error: std::io::Error| Error::io(format!("cannot write {}", show(name)), error);
    let fd = rustix::fs::openat(
        directory,
        name,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(mode),
    )
    .map_err(|error| fail(error.into()))?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(|error| fail(error.into()))?;
    std::fs::File::from(fd).write_all(content).map_err(fail)
}

/// Removes a tree of ours, which may be gone.
pub(crate) fn remove(path: &std::path::Path) {
    if let Err(error) = std::fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(
            "cannot remove {}: {error}; the next start tries again",
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::open_root;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    fn copy(source: &Path, path: &str, root: &Path, to: &str, options: Options) -> Result<()> {
        let (source, root) = (open_root(source)?, open_root(root)?);
        let cancelled = Cancelled::default();
        let mut copier = Copier::new(root.as_fd(), options, &cancelled);
        copier.copy(source.as_fd(), path.as_bytes(), to.as_bytes())
    }

    #[test]
    fn destinations_are_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let (src, root) = (dir.path().join("src"), dir.path().join("root"));
        std::fs::create_dir_all(src.join("d/sub")).unwrap();
        std::fs::set_permissions(src.join("d"), PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(src.join("d/f"), "1").unwrap();
        std::fs::hard_link(src.join("d/f"), src.join("d/sub/g")).unwrap();
        symlink("f", src.join("d/link")).unwrap();
        std::fs::create_dir_all(root.join("there")).unwrap();
        symlink("/there", root.join("alias")).unwrap();
        let plain = || Options::default();
        copy(&src, "/d", &root, "/new", plain()).unwrap();
        assert_eq!(std::fs::metadata(root.join("new")).unwrap().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_link(root.join("new/link")).unwrap(), Path::new("f"));
        let (one, two) = (
            root.join("new/f").metadata().unwrap(),
            root.join("new/sub/g").metadata().unwrap(),
        );
        assert_eq!(one.ino(), two.ino());
        copy(&src, "/d/f", &root, "/alias", plain()).unwrap();
        assert!(root.join("there/f").is_file());
        copy(&src, "/d/link", &root, "/deep/er/", plain()).unwrap();
        assert!(
            root.join("deep/er/link").symlink_metadata().unwrap().is_file(),
            "a named link is followed"
        );
        copy(&src, "/d/f", &root, "/renamed", plain()).unwrap();
        assert!(root.join("renamed").is_file());
        assert!(copy(&src, "/d", &root, "/renamed", plain()).is_err());
        std::fs::create_dir(root.join("new/x")).unwrap();
        std::fs::write(src.join("d/x"), "").unwrap();
        assert!(
            copy(&src, "/d", &root, "/new", plain()).is_err(),
            "a file over a directory"
        );
        assert!(copy(&src, "/nothing", &root, "/", plain()).is_err());
    }

    #[test]
    fn owners_modes_and_times() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (src, root) = (dir.path().join("src"), dir.path().join("root"));
        std::fs::create_dir_all(&src).unwrap();
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(src.join("f"), "1").unwrap();
        let options = Options {
            owner: Some((7, 8)),
            chmod: Some(Chmod::parse("u=rwx,g=rX,o=").unwrap()),
            mtime: Some(42),
            skip: None,
        };
        copy(&src, "/f", &root, "/a/f", options).unwrap();
        let stat = root.join("a/f").metadata().unwrap();
        assert_eq!(
            (stat.uid(), stat.gid(), stat.mode() & 0o7777, stat.mtime()),
            (7, 8, 0o750, 42)
        );
        assert_eq!(root.join("a").metadata().unwrap().uid(), 7);
    }

    #[test]
    fn modes() {
        let apply = |text: &str, mode, directory| Chmod::parse(text).unwrap().apply(mode, directory);
        assert_eq!(apply("755", 0o600, false), 0o755);
        assert_eq!(apply("u+x", 0o644, false), 0o744);
        assert_eq!(apply("a+X", 0o644, false), 0o644);
        assert_eq!(apply("a+X", 0o644, true), 0o755);
        assert_eq!(apply("go=", 0o777, false), 0o700);
        assert_eq!(apply("g=u", 0o740, false), 0o770);
        assert_eq!(apply("+t,u+s", 0o755, true), 0o5755);
        for bad in ["", "8888", "77777", "u", "u+q", "z+x"] {
            assert!(Chmod::parse(bad).is_err(), "{bad}");
        }
    }
}
