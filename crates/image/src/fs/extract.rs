//! Making files from the entries of an archive, inside a root that they cannot leave.
//!
//! Later entries replace earlier ones and what is there, as with tar; a directory merges with a directory.
//! Modes and times of directories are set at the end, because making things in them changes their time and a
//! read-only directory would be in the way. Extended attributes that would mean something to the host are
//! dropped (see the `xattr` module). Nothing is followed at the last component, and directories on the way
//! are resolved inside the root.

use std::io::{BufRead, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::root::{Dir, MAX_DEPTH, Root, clean, split};
use super::xattr::{self, OVERLAY_OPAQUE, OVERLAY_OPAQUE_USER, Target};
use crate::chunk::{ChunkReader, Pool, ReadSource};
use crate::compression;
use crate::error::{Error, ErrorKind, Result, show};
use crate::tar::{Entry, Kind, TarReader, Timestamp};

/// Bounds on what an archive may unpack to.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of the uncompressed archive.
    pub max_bytes: u64,
    /// Number of entries.
    pub max_entries: u64,
}

impl Default for Limits {
    /// 256 GiB and eight million entries: beyond any image, within what a disk can lose.
    fn default() -> Self {
        Self {
            max_bytes: 256 << 30,
            max_entries: 8_000_000,
        }
    }
}

/// Who owns what is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// Who the archive says.
    #[default]
    Archive,
    /// One user and group for everything.
    Fixed {
        /// User ID.
        uid: u32,
        /// Group ID.
        gid: u32,
    },
}

/// How [`unpack_into`] behaves.
#[derive(Debug, Clone, Default)]
pub struct ExtractOptions {
    /// Bounds.
    pub limits: Limits,
    /// Who owns the files.
    pub ownership: Ownership,
    /// Refuse to replace a directory by something else and the other way round (`noOverwriteDirNonDir` of
    /// the Docker API).
    pub keep_types: bool,
}

/// Sees what extraction does with an archive's bytes, so that they can be put together again.
pub(crate) trait Recorder {
    /// Bytes that are not in any file.
    fn raw(&mut self, bytes: &[u8]) -> Result<()>;
    /// The payload went to a piece of a file.
    fn payload(&mut self, path: &[u8], offset: u64, length: u64) -> Result<()>;
    /// Something must give way; says whether it was kept elsewhere (and so is gone).
    fn displace(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<bool>;
}

struct NoRecorder;

impl Recorder for NoRecorder {
    fn raw(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn payload(&mut self, _: &[u8], _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn displace(&mut self, _: BorrowedFd<'_>, _: &[u8], _: &[u8]) -> Result<bool> {
        Ok(false)
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Bytes of file data.
    pub(crate) bytes: u64,
    /// Number of entries.
    pub(crate) entries: u64,
    /// Bytes of the archive itself.
    pub(crate) archive_size: u64,
}

/// Unpacks an archive (compressed or not) into a directory that may be in use, as `docker cp` does.
///
/// Whiteouts have no meaning here. What was unpacked before an error stays.
pub fn unpack_into(root: BorrowedFd<'_>, input: impl Read + Send, options: &ExtractOptions) -> Result<()> {
    let (kind, input) = compression::peek(input).map_err(|e| Error::input("cannot read the archive", e))?;
    let input = ChunkReader::new(ReadSource::new(input, Pool::new(2)));
    let input = kind.reader(input)?;
    let mut tar = TarReader::new(ChunkReader::new(ReadSource::new(input, Pool::new(2))));
    let mut extractor = Extractor::new(root, options.clone(), false, LateMemory::default());
    extractor.run(&mut tar, &mut NoRecorder)?;
    Ok(())
}

/// Memory for directories until then, of all layers that are unpacked into a store at the same time: about a million of
/// them.
const MAX_LATE: usize = 256 << 20;

/// What is left of that memory.
#[derive(Debug, Clone)]
pub(crate) struct LateMemory {
    left: Arc<AtomicUsize>,
}

impl Default for LateMemory {
    fn default() -> Self {
        Self::new(MAX_LATE)
    }
}

impl LateMemory {
    fn new(bytes: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(bytes)),
        }
    }

    fn take(&self, bytes: usize) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(bytes)
            })
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Metadata of a directory, set when everything is in place.
struct LateDirectory {
    path: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    mtime: Timestamp,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) struct Extractor<'a> {
    root: Root<'a>,
    options: ExtractOptions,
    /// A new layer: whiteouts are converted, and everything there was made here.
    layer: bool,
    directories: Vec<LateDirectory>,
    late_memory: LateMemory,
    late_bytes: usize,
    stats: Stats,
    seen_bytes: u64,
    /// New files belong to root already.
    owned_by_root: bool,
}

impl<'a> Extractor<'a> {
    pub(crate) fn new(
        root: BorrowedFd<'a>,
        options: ExtractOptions,
        layer: bool,
        late_memory: LateMemory,
    ) -> Self {
        Self {
            root: Root::new(root),
            options,
            layer,
            directories: Vec::new(),
            late_memory,
            late_bytes: 0,
            stats: Stats::default(),
            seen_bytes: 0,
            // Directories get their set-group-ID bit last, so in a new layer nothing inherits a group.
            owned_by_root: layer
                && rustix::process::geteuid().is_root()
                && rustix::process::getegid().is_root(),
        }
    }

    /// Unpacks everything, to the end of the input.
    pub(crate) fn run<R: BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        recorder: &mut dyn Recorder,
    ) -> Result<Stats> {
        while let Some(entry) =
            tar.next(&mut |bytes| tap(&mut self.seen_bytes, &self.options.limits, recorder, bytes))?
        {
            self.stats.entries += 1;
            if self.stats.entries > self.options.limits.max_entries {
                return Err(Error::limit(format!(
                    "the archive has more than {} entries",
                    self.options.limits.max_entries
                )));
            }
            count(&mut self.seen_bytes, &self.options.limits, entry.size)?;
            // A hole costs no disk, but a file beyond what file systems can hold is nonsense.
            if entry.sparse.as_ref().is_some_and(|s| s.size > 1 << 53) {
                return Err(Error::limit(format!(
                    "the sparse file {} is too large",
                    show(&entry.path)
                )));
            }
            self.entry(entry, tar, recorder)?;
        }
        tar.drain(&mut |bytes| tap(&mut self.seen_bytes, &self.options.limits, recorder, bytes))?;
        self.finish_directories()?;
        self.stats.archive_size = self.seen_bytes;
        Ok(self.stats)
    }

    fn entry<R: BufRead>(
        &mut self,
        entry: Entry,
        tar: &mut TarReader<R>,
        recorder: &mut dyn Recorder,
    ) -> Result<()> {
        // Docker passes over these in archives that are no layers.
        if !self.layer && entry.kind != Kind::Directory && matches!(entry.path.as_slice(), b"" | b"." | b"./")
        {
            return Ok(());
        }
        let path = clean(&entry.path)?;
        if path.is_empty() {
            if entry.kind != Kind::Directory {
                return Err(Error::invalid(
                    "an entry of the archive would replace the root directory",
                ));
            }
            return self.late_directory(path, entry);
        }
        let (parent, name) = split(&path);
        if self.layer
            && let Some(hidden) = name.strip_prefix(b".wh.")
        {
            let parent = self.root.dir(parent, true)?;
            return self.whiteout(&parent, hidden, &path);
        }
        let parent = self.root.dir(parent, true)?;
        let real = parent.join(name);
        match entry.kind {
            Kind::Directory => self.directory(&parent, name, &real, entry, recorder),
            Kind::File => self.file(&parent, name, &real, &entry, tar, recorder),
            Kind::HardLink => self.hard_link(&parent, name, &real, &entry, recorder),
            Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => {
                self.node(&parent, name, &real, &entry, recorder)
            }
        }
    }

    fn directory(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        entry: Entry,
        recorder: &mut dyn Recorder,
    ) -> Result<()> {
        let mut hid = false;
        self.create(parent, name, path, true, recorder, &mut hid, |parent, name| {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))
        })?;
        if hid {
            // A whiteout came first: what lower layers have in the directory stays hidden.
            let fd = self
                .root
                .open_plain(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW);
            let fd = fd.map_err(|e| Error::io(format!("cannot open directory {}", show(path)), e))?;
            set_opaque(fd.as_fd(), path)?;
        }
        self.late_directory(path.to_vec(), entry)
    }

    fn late_directory(&mut self, path: Vec<u8>, entry: Entry) -> Result<()> {
        let attributes: usize = entry.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        let bytes = size_of::<LateDirectory>() + path.len() + attributes;
        if !self.late_memory.take(bytes) {
            return Err(Error::limit(format!(
                "the archive, with others that are unpacked at the same time, has too many directories: their names and attributes take more than {} MiB of memory",
                MAX_LATE >> 20
            )));
        }
        self.late_bytes += bytes;
        let owner = self.owner(&entry);
        self.directories.push(LateDirectory {
            path,
            mode: entry.mode,
            owner,
            mtime: entry.mtime,
            xattrs: entry.xattrs,
        });
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        tar: &mut TarReader<R>,
        recorder: &mut dyn Recorder,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = self.create(parent, name, path, false, recorder, &mut false, |parent, name| {
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
        })?;
        let Some(fd) = made else {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("a directory is in the way of {}", show(path)),
            ));
        };
        match &entry.sparse {
            None => {
                write_piece(&fd, None, entry.size, tar, path)?;
                if entry.size > 0 {
                    recorder.payload(path, 0, entry.size)?;
                }
            }
            Some(sparse) => {
                for &(offset, length) in &sparse.ranges {
                    write_piece(&fd, Some(offset), length, tar, path)?;
                    if length > 0 {
                        recorder.payload(path, offset, length)?;
                    }
                }
                rustix::fs::ftruncate(&fd, sparse.size)
                    .map_err(|e| Error::io(format!("cannot set the size of {}", show(path)), e))?;
            }
        }
        self.stats.bytes += entry.size;
        self.finish_open(
            &fd,
            self.owner(entry),
            entry.mode,
            entry.mtime,
            &entry.xattrs,
            path,
        )
    }

    fn hard_link(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        recorder: &mut dyn Recorder,
    ) -> Result<()> {
        let target = clean(&entry.link).map_err(|e| e.context(format!("hard link {}", show(path))))?;
        let (target_parent, target_name) = split(&target);
        let missing = |e: Error| {
            e.context(format!(
                "cannot make hard link {} to {}",
                show(path),
                show(&entry.link)
            ))
        };
        let target_dir = self.root.dir(target_parent, false).map_err(missing)?;
        if target_dir.join(target_name) == path {
            return Err(Error::invalid(format!("{} is a hard link to itself", show(path))));
        }
        self.create(parent, name, path, false, recorder, &mut false, |parent, name| {
            rustix::fs::linkat(&target_dir.fd, target_name, parent, name, AtFlags::empty())
        })
        .map_err(missing)?;
        Ok(())
    }

    fn node(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        recorder: &mut dyn Recorder,
    ) -> Result<()> {
        if entry.kind == Kind::Symlink && entry.link.is_empty() {
            return Err(Error::invalid(format!(
                "the symbolic link {} has no target",
                show(path)
            )));
        }
        let mode = Mode::from_raw_mode(0o600);
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        self.create(
            parent,
            name,
            path,
            false,
            recorder,
            &mut false,
            |parent, name| match entry.kind {
                Kind::Symlink => rustix::fs::symlinkat(&entry.link[..], parent, name),
                Kind::Char => rustix::fs::mknodat(parent, name, FileType::CharacterDevice, mode, device),
                Kind::Block => rustix::fs::mknodat(parent, name, FileType::BlockDevice, mode, device),
                _ => rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0),
            },
        )?;
        let (uid, gid) = self.owner(entry);
        let fail = |what: &str, e| Error::io(format!("cannot set the {what} of {}", show(path)), e);
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if !(self.owned_by_root && uid == 0 && gid == 0) {
            rustix::fs::chownat(
                &parent.fd,
                name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                nofollow,
            )
            .map_err(|e| fail("owner", e))?;
        }
        if entry.kind != Kind::Symlink {
            // By descriptor: in a container's root, the name may have become a link meanwhile.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd =
                rustix::fs::openat(&parent.fd, name, flags, Mode::empty()).map_err(|e| fail("mode", e))?;
            let kind = rustix::fs::fstat(&fd).map_err(|e| fail("mode", e))?.st_mode;
            if FileType::from_raw_mode(kind) == FileType::Symlink {
                return Err(fail("mode", Errno::LOOP));
            }
            rustix::fs::chmod(
                format!("/proc/self/fd/{}", fd.as_raw_fd()),
                Mode::from_raw_mode(entry.mode),
            )
            .map_err(|e| fail("mode", e))?;
        }
        xattr::apply(&Target::Name(parent.fd.as_fd(), name), &entry.xattrs, path)?;
        rustix::fs::utimensat(&parent.fd, name, &times(entry.mtime), nofollow).map_err(|e| fail("time", e))
    }

    /// Runs `make`; what is in the way gives way, except that a directory stays for a directory (`None`).
    #[allow(clippy::too_many_arguments, reason = "where, what, how, and what was found")]
    fn create<T>(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        directory: bool,
        recorder: &mut dyn Recorder,
        whiteout: &mut bool,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<Option<T>> {
        // More than once only if somebody else makes the name again at the same time.
        for _ in 0..16 {
            match make(parent.fd.as_fd(), name) {
                Ok(made) => return Ok(Some(made)),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::io(format!("cannot make {}", show(path)), e)),
            }
            let stat = match rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(Error::io(format!("cannot look at {}", show(path)), e)),
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let is_directory = kind == FileType::Directory;
            if directory && is_directory {
                return Ok(None);
            }
            if self.options.keep_types && directory != is_directory {
                let (new, old) = if directory {
                    ("directory", "non-directory")
                } else {
                    ("non-directory", "directory")
                };
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("cannot overwrite {old} {} with {new}", show(path)),
                ));
            }
            *whiteout |= self.layer && kind == FileType::CharacterDevice && stat.st_rdev == 0;
            self.root.forget();
            if recorder.displace(parent.fd.as_fd(), name, path)? {
                continue;
            }
            remove(parent.fd.as_fd(), name, is_directory, MAX_DEPTH)
                .map_err(|e| Error::io(format!("cannot replace {}", show(path)), e))?;
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("{} is made again by somebody else all the time", show(path)),
        ))
    }

    /// `.wh.NAME` hides NAME of lower layers, `.wh..wh..opq` everything in its directory.
    fn whiteout(&mut self, parent: &Rc<Dir>, hidden: &[u8], path: &[u8]) -> Result<()> {
        match hidden {
            b".wh..opq" => {
                let fd = rustix::fs::openat(
                    &parent.fd,
                    ".",
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(|e| Error::io(format!("cannot open the directory of {}", show(path)), e))?;
                return set_opaque(fd.as_fd(), path);
            }
            b"" | b"." | b".." => {
                return Err(Error::invalid(format!(
                    "the whiteout {} names nothing that can be hidden",
                    show(path)
                )));
            }
            // Book-keeping of aufs.
            _ if hidden.starts_with(b".wh.") => return Ok(()),
            _ => {}
        }
        match rustix::fs::mknodat(&parent.fd, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            // The layer has the name as well: only lower layers' content is hidden, so only a directory,
            // which would merge with it, needs a mark.
            Err(Errno::EXIST) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(&parent.fd, hidden, flags, Mode::empty()) {
                    Ok(fd) => set_opaque(fd.as_fd(), path),
                    Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(()),
                    Err(e) => Err(Error::io(format!("cannot open what {} hides", show(path)), e)),
                }
            }
            Err(e) => Err(Error::io(format!("cannot make the whiteout {}", show(path)), e)),
        }
    }

    fn finish_open(
        &self,
        fd: &OwnedFd,
        (uid, gid): (u32, u32),
        mode: u32,
        mtime: Timestamp,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        path: &[u8],
    ) -> Result<()> {
        let fail = |what: &str, e| Error::io(format!("cannot set the {what} of {}", show(path)), e);
        // In this order: a change of owner clears set-user-ID and capabilities.
        if !(self.owned_by_root && uid == 0 && gid == 0) {
            rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|e| fail("owner", e))?;
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(|e| fail("mode", e))?;
        if !xattrs.is_empty() {
            xattr::apply(&Target::Open(fd.as_fd()), xattrs, path)?;
        }
        rustix::fs::futimens(fd, &times(mtime)).map_err(|e| fail("time", e))
    }

    fn finish_directories(&mut self) -> Result<()> {
        self.root.forget();
        for dir in std::mem::take(&mut self.directories) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let fd = match self.root.open_plain(&dir.path, flags) {
                Ok(fd) => fd,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(e) => return Err(Error::io(format!("cannot open directory {}", show(&dir.path)), e)),
            };
            self.finish_open(&fd, dir.owner, dir.mode, dir.mtime, &dir.xattrs, &dir.path)?;
        }
        Ok(())
    }

    fn owner(&self, entry: &Entry) -> (u32, u32) {
        match self.options.ownership {
            Ownership::Archive => (entry.uid, entry.gid),
            Ownership::Fixed { uid, gid } => (uid, gid),
        }
    }
}

impl Drop for Extractor<'_> {
    fn drop(&mut self) {
        self.late_memory.give_back(self.late_bytes);
    }
}

fn tap(seen: &mut u64, limits: &Limits, recorder: &mut dyn Recorder, bytes: &[u8]) -> Result<()> {
    count(seen, limits, bytes.len() as u64)?;
    recorder.raw(bytes)
}

fn count(seen: &mut u64, limits: &Limits, bytes: u64) -> Result<()> {
    *seen = seen.saturating_add(bytes);
    if *seen > limits.max_bytes {
        return Err(Error::limit(format!(
            "the archive unpacks to more than {} bytes",
            limits.max_bytes
        )));
    }
    Ok(())
}

/// Writes `length` bytes of payload, in place or at an offset.
fn write_piece<R: BufRead>(
    fd: &OwnedFd,
    at: Option<u64>,
    length: u64,
    tar: &mut TarReader<R>,
    path: &[u8],
) -> Result<()> {
    let mut done = 0;
    while done < length {
        let part = tar.payload()?;
        let part = &part[..part
            .len()
            .min(usize::try_from(length - done).unwrap_or(usize::MAX))];
        let result = match at {
            None => rustix::io::write(fd, part),
            Some(offset) => rustix::io::pwrite(fd, part, offset + done),
        };
        match result {
            Ok(n) => {
                done += n as u64;
                tar.consume(n);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::io(format!("cannot write {}", show(path)), e)),
        }
    }
    Ok(())
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.secs,
        tv_nsec: mtime.nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Marks a directory as hiding what is below it.
pub(crate) fn set_opaque(fd: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    let mut result = rustix::fs::fsetxattr(fd, OVERLAY_OPAQUE, b"y", XattrFlags::empty());
    if result == Err(Errno::PERM) {
        // Only the host's root has trusted attributes; a rootless overlay is mounted with `userxattr`.
        result = rustix::fs::fsetxattr(fd, OVERLAY_OPAQUE_USER, b"y", XattrFlags::empty());
    }
    result.map_err(|e| {
        Error::io(
            format!("cannot mark the directory of {} as opaque", show(path)),
            e,
        )
    })
}

/// Removes a name, with everything below it, following nothing. A container can nest directories deeper than
/// the stack and the descriptors reach: that is an error, not a crash.
fn remove(parent: BorrowedFd<'_>, name: &[u8], directory: bool, depth: usize) -> Result<(), Errno> {
    if !directory {
        return rustix::fs::unlinkat(parent, name, AtFlags::empty());
    }
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&fd)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if child == b"." || child == b".." {
            continue;
        }
        let directory = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(&fd, child, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            kind => kind == FileType::Directory,
        };
        remove(fd.as_fd(), child, directory, depth)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_unpack_at_the_same_time_share_the_memory_for_directories() {
        let mut archive = ::tar::Builder::new(Vec::new());
        for i in 0..40 {
            let mut header = ::tar::Header::new_gnu();
            header.set_entry_type(::tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            header.set_path(format!("directory-{i}")).unwrap();
            header.set_cksum();
            archive.append(&header, &b""[..]).unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let memory = LateMemory::new(60 * size_of::<LateDirectory>());
        let root = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(root.path()).unwrap();
        let unpack = |extractor: &mut Extractor<'_>| {
            let source = ReadSource::new(&archive[..], Pool::new(2));
            extractor.run(&mut TarReader::new(ChunkReader::new(source)), &mut NoRecorder)
        };
        let new = || Extractor::new(root.as_fd(), ExtractOptions::default(), false, memory.clone());
        let mut first = new();
        unpack(&mut first).unwrap();
        assert_eq!(unpack(&mut new()).unwrap_err().kind(), ErrorKind::Limit);
        drop(first);
        unpack(&mut new()).unwrap();
    }
}
