//! Content digests of trees: what keys of `COPY`, `ADD` and bind mounts are made of.
//!
//! A digest covers names, kinds, modes, owners, link targets, device numbers, extended attributes and contents, not
//! times and not the numbers of links. Contents of files in a context are remembered by what `stat` tells of them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, OFlags, Stat};
use sha2::{Digest as _, Sha256};

use super::copy::{Options, Skipped};
use super::{MAX_DEPTH, kind, list, open_at, open_in, resolve, show, stat_at, xattrs};
use crate::error::{Error, Result};
use crate::solve::Cancelled;

/// A sha256.
pub(crate) type Hash = [u8; 32];

/// A file that changed this shortly before it was read may change again without `stat` telling.
const RACY: i64 = 20_000_000;
/// The most files a memory holds; it begins anew beyond that.
const MAX_REMEMBERED: usize = 4 << 20;
const MAGIC: &[u8; 8] = b"vslmemo1";
/// Bytes of a remembered file: device, inode, size, mtime, ctime, digest.
const RECORD: usize = 5 * 8 + 32;

/// What identifies a file's content without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    mtime: i64,
    ctime: i64,
}

impl Mark {
    fn of(stat: &Stat) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mtime: nanos(stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: nanos(stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

/// Digests of files by what `stat` says of them.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    files: HashMap<Mark, Hash>,
    /// Those asked for since it was read: the rest is forgotten when it is written.
    used: HashMap<Mark, Hash>,
    changed: bool,
}

impl Memory {
    /// Reads a memory; one that is missing or damaged is empty.
    pub fn read(path: &Path) -> Self {
        std::fs::read(path)
            .ok()
            .and_then(|bytes| Self::decode(&bytes))
            .unwrap_or_default()
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let body = bytes.strip_prefix(MAGIC)?;
        let (body, sum) = body.split_at_checked(body.len().checked_sub(32)?)?;
        if Sha256::digest(body).as_slice() != sum || body.len() % RECORD != 0 {
            return None;
        }
        let mut files = HashMap::with_capacity(body.len() / RECORD);
        for record in body.chunks_exact(RECORD) {
            let number = |at: usize| record[at * 8..at * 8 + 8].try_into().map(u64::from_le_bytes).ok();
            let mark = Mark {
                device: number(0)?,
                inode: number(1)?,
                size: number(2)?,
                mtime: number(3)? as i64,
                ctime: number(4)? as i64,
            };
            files.insert(mark, record[40..].try_into().ok()?);
        }
        Some(Self {
            files,
            ..Self::default()
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.used.len() * RECORD);
        for (mark, hash) in &self.used {
            for number in [
                mark.device,
                mark.inode,
                mark.size,
                mark.mtime as u64,
                mark.ctime as u64,
            ] {
                body.extend_from_slice(&number.to_le_bytes());
            }
            body.extend_from_slice(hash);
        }
        let sum = Sha256::digest(&body);
        [&MAGIC[..], &body, sum.as_slice()].concat()
    }

    /// Writes it if there is anything new. A memory that is lost costs reading the files again, nothing else.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        if !self.changed && self.used.len() == self.files.len() {
            return Ok(());
        }
        let new = path.with_extension("new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&self.encode())?;
        std::fs::rename(&new, path)
    }

    fn get(&mut self, mark: &Mark) -> Option<Hash> {
        let hash = *self.used.get(mark).or_else(|| self.files.get(mark))?;
        self.used.insert(*mark, hash);
        Some(hash)
    }

    fn put(&mut self, mark: Mark, hash: Hash) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_nanos() as i64);
        if mark.ctime.max(mark.mtime) + RACY > now {
            return;
        }
        if self.used.len() >= MAX_REMEMBERED {
            self.used.clear();
        }
        self.changed = true;
        self.used.insert(mark, hash);
    }
}

/// Digests trees.
pub(crate) struct Digester<'a> {
    /// Whether owners count: not where the copy gets another.
    pub owners: bool,
    /// What is left out does not count.
    pub options: &'a Options,
    pub memory: Option<&'a mut Memory>,
    pub cancelled: &'a Cancelled,
    /// Files whose content was read.
    pub read: u64,
}

impl Digester<'_> {
    /// Adds what a path leads to: a file's attributes and content, a directory's contents. `name` is hashed, too.
    pub fn path(&mut self, root: BorrowedFd<'_>, path: &[u8], name: &[u8], into: &mut Sha256) -> Result<()> {
        let missing = || Error::not_found(format!("{}: not found", show(path)));
        let place = resolve(root, path)?.ok_or_else(missing)?;
        let stat = place.stat.ok_or_else(missing)?;
        field(into, name);
        self.entry(place.parent.as_fd(), &place.name, &stat, &mut Vec::new(), 0, into)
    }

    /// Adds what a copy with the directories that lead to it from `pivot` takes: these with their attributes, and what
    /// is left out by paths from the pivot. As the copy, it follows links to the pivot and none below.
    pub fn with_parents(
        &mut self,
        root: BorrowedFd<'_>,
        pivot: &[u8],
        path: &[u8],
        into: &mut Sha256,
    ) -> Result<()> {
        let missing = || Error::not_found(format!("{}: not found", show(path)));
        let fail = |error: rustix::io::Errno| Error::io(format!("cannot read {}", show(path)), error);
        let parts: Vec<&[u8]> = path
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        let Some((last, directories)) = parts.split_last() else {
            return self.path(root, pivot, path, into);
        };
        field(into, path);
        let mut from = open_in(root, pivot, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|_| missing())?;
        for part in directories {
            let stat = stat_at(from.as_fd(), part).map_err(fail)?.ok_or_else(missing)?;
            from = open_at(from.as_fd(), part, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
            self.owned(&stat, into);
            attributes(from.as_fd(), into).map_err(fail)?;
        }
        let stat = stat_at(from.as_fd(), last).map_err(fail)?.ok_or_else(missing)?;
        self.entry(from.as_fd(), last, &stat, &mut parts.join(&b'/'), 0, into)
    }

    /// Adds a mode, and owners where they count.
    fn owned(&self, stat: &Stat, into: &mut Sha256) {
        into.update(stat.st_mode.to_le_bytes());
        if self.owners {
            into.update(stat.st_uid.to_le_bytes());
            into.update(stat.st_gid.to_le_bytes());
        }
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        below: &mut Vec<u8>,
        depth: usize,
        into: &mut Sha256,
    ) -> Result<()> {
        let fail = |error: rustix::io::Errno, below: &[u8]| {
            Error::io(
                format!(
                    "cannot read {}",
                    show(if below.is_empty() { name } else { below })
                ),
                error,
            )
        };
        let kind = kind(stat);
        let directory = kind == FileType::Directory;
        self.owned(stat, into);
        match kind {
            FileType::RegularFile => {
                let hash = self
                    .file(parent, name, stat)
                    .map_err(|error| fail(error, below))?;
                into.update(hash);
            }
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(parent, name, Vec::new()).map_err(|error| fail(error, below))?;
                field(into, target.as_bytes());
            }
            FileType::Directory => {
                if depth > MAX_DEPTH {
                    return Err(Error::invalid(format!("{} is too deep", show(below))));
                }
                let fd = open_at(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(|error| fail(error, below))?;
                attributes(fd.as_fd(), into).map_err(|error| fail(error, below))?;
                for name in list(fd.as_fd()).map_err(|error| fail(error, below))? {
                    self.cancelled.check()?;
                    let length = below.len();
                    if length > 0 {
                        below.push(b'/');
                    }
                    below.extend_from_slice(&name);
                    let stat = stat_at(fd.as_fd(), &name).map_err(|error| fail(error, below))?;
                    if let Some(stat) = stat {
                        let is_dir = super::kind(&stat) == FileType::Directory;
                        let skipped = self
                            .options
                            .skip
                            .as_ref()
                            .map_or(Skipped::No, |skip| (skip.0)(below, is_dir));
                        if skipped == Skipped::No || (skipped == Skipped::Itself && is_dir) {
                            field(into, &name);
                            self.entry(fd.as_fd(), &name, &stat, below, depth + 1, into)?;
                        }
                    }
                    below.truncate(length);
                }
            }
            _ => into.update(stat.st_rdev.to_le_bytes()),
        }
        // So that the end of a directory cannot be taken for something in it.
        into.update([if directory { 0xfe } else { 0xff }]);
        Ok(())
    }

    /// The digest of a file's content and extended attributes.
    fn file(&mut self, parent: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<Hash, rustix::io::Errno> {
        let mark = Mark::of(stat);
        if let Some(hash) = self.memory.as_mut().and_then(|memory| memory.get(&mark)) {
            return Ok(hash);
        }
        self.read += 1;
        let fd = open_at(parent, name, OFlags::RDONLY)?;
        let mut hasher = Sha256::new();
        attributes(fd.as_fd(), &mut hasher)?;
        let mut file = std::fs::File::from(fd);
        let mut buffer = vec![0; (stat.st_size as usize).clamp(4096, 1 << 20)];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hasher.update(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO));
                }
            }
        }
        let hash: Hash = hasher.finalize().into();
        if let Some(memory) = &mut self.memory {
            memory.put(mark, hash);
        }
        Ok(hash)
    }
}

fn attributes(fd: BorrowedFd<'_>, into: &mut Sha256) -> Result<(), rustix::io::Errno> {
    for (name, value) in xattrs(fd)? {
        field(into, name.as_bytes());
        field(into, &value);
    }
    into.update([0]);
    Ok(())
}

/// Hashes bytes with their length, so that no two sequences of fields are the same bytes.
pub(crate) fn field(into: &mut Sha256, bytes: &[u8]) {
    into.update((bytes.len() as u64).to_le_bytes());
    into.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::open_root;
    use std::os::unix::fs::PermissionsExt;

    fn digest(root: &Path, memory: Option<&mut Memory>) -> (Hash, u64) {
        let fd = open_root(root).unwrap();
        let cancelled = Cancelled::default();
        let options = Options::default();
        let mut digester = Digester {
            owners: true,
            options: &options,
            memory,
            cancelled: &cancelled,
            read: 0,
        };
        let mut hasher = Sha256::new();
        digester.path(fd.as_fd(), b"/", b"", &mut hasher).unwrap();
        (hasher.finalize().into(), digester.read)
    }

    #[test]
    fn content_counts_and_times_do_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let file = dir.path().join("d/f");
        std::fs::write(&file, "one").unwrap();
        let (first, _) = digest(dir.path(), None);
        std::fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(UNIX_EPOCH)
            .unwrap();
        assert_eq!(digest(dir.path(), None).0, first);
        std::fs::write(&file, "two").unwrap();
        let (second, _) = digest(dir.path(), None);
        assert_ne!(second, first);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        let (third, _) = digest(dir.path(), None);
        assert_ne!(third, second);
        // `d/f` and `d` beside `f` are not the same.
        std::fs::rename(&file, dir.path().join("f")).unwrap();
        assert_ne!(digest(dir.path(), None).0, third);
    }

    #[test]
    fn what_did_not_change_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, store) = (dir.path().join("tree"), dir.path().join("memory"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("a"), "one").unwrap();
        std::fs::write(tree.join("b"), "two").unwrap();
        std::thread::sleep(std::time::Duration::from_nanos(3 * RACY as u64));
        let mut memory = Memory::read(&store);
        let (first, read) = digest(&tree, Some(&mut memory));
        assert_eq!(read, 2);
        memory.write(&store).unwrap();
        let mut memory = Memory::read(&store);
        assert_eq!(digest(&tree, Some(&mut memory)), (first, 0));
        std::fs::write(tree.join("a"), "six").unwrap();
        let (second, read) = digest(&tree, Some(&mut memory));
        assert_eq!(read, 1);
        assert_ne!(second, first);
    }

    proptest::proptest! {
        #[test]
        fn damaged_memories_are_empty(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), magic in proptest::prelude::any::<bool>()) {
            if magic { bytes.splice(0..0, MAGIC.iter().copied()); }
            let _ = Memory::decode(&bytes);
        }
    }
}
