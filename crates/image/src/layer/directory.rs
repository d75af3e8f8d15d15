//! A layer out of a directory: the upper one of an overlay, without an archive in between.
//!
//! The archive that the layer stands for (OCI image specification, "Image Layer Filesystem Changeset") is generated once,
//! only to be hashed and to leave its skeleton; another thread hashes while this one reads. It depends on nothing but the
//! files: entries are sorted, times are cut to seconds as everyone's are, whiteouts carry nothing, holes are zeros
//! because the specification says so.
//!
//! What ends up in the store is exactly what unpacking that archive elsewhere would give. So times are cut on disk too,
//! sockets are removed, and overlayfs' notes to itself taken off.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::ingest::{Unpacked, died};
use super::split::SplitWriter;
use crate::chunk::{Chunk, ChunkWriter, Pool};
use crate::digest::{Algorithm, ChainId, DiffId, Hasher};
use crate::error::{Error, Result, show};
use crate::fs::{Limits, MAX_DEPTH, Recorder, Stats, copy_tree, entry, is_whiteout, list, xattr};
use crate::store::{LayerInfo, Lease, PendingLayer, Store};
use crate::tar::{Kind, TarWriter, Timestamp, plain};

/// Longest name of an entry, as whoever unpacks it accepts.
const MAX_PATH: usize = 4096;
/// The most bytes of extended attributes of one file; they travel in a header that readers keep in memory.
const MAX_XATTRS: usize = 960 << 10;
/// Buffers between reading and hashing.
const BUFFERS: usize = 16;

/// The files of a layer to be.
#[derive(Debug, Clone)]
pub struct LayerDirectory {
    /// An overlay's upper directory: whiteouts are devices 0/0, `trusted.overlay.opaque` hides what is below.
    pub path: PathBuf,
    /// Move the directory into the store instead of copying it. Nobody else may use it any more; it is gone
    /// afterwards, after an error too.
    pub take: bool,
}

/// How [`Store::put_directory`] behaves.
#[derive(Debug, Clone, Default)]
pub struct DirectoryLayerOptions {
    /// Nothing is younger than this, in seconds since 1970 (`SOURCE_DATE_EPOCH`).
    pub clamp: Option<i64>,
    /// Bounds on the layer's archive.
    pub limits: Limits,
    /// Set by whoever does not want the layer any more: the call soon fails then.
    pub cancelled: Option<Arc<AtomicBool>>,
}

impl DirectoryLayerOptions {
    fn is_cancelled(&self) -> bool {
        let cancelled = self.cancelled.as_ref();
        cancelled.is_some_and(|cancelled| cancelled.load(Ordering::Relaxed))
    }
}

/// Files that are in the store already and will be a layer; dropped, they are gone.
pub struct StagedDirectory {
    pending: PendingLayer,
}

impl std::fmt::Debug for StagedDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StagedDirectory")
            .field("path", &self.pending.path())
            .finish()
    }
}

impl StagedDirectory {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> Result<bool> {
        let diff = self.pending.path().join("diff");
        let mut items =
            fs::read_dir(&diff).map_err(|e| Error::io(format!("cannot list {}", diff.display()), e))?;
        Ok(items.next().is_none())
    }
}

impl Store {
    /// Makes a layer of a directory and keeps it by the lease.
    ///
    /// The attributes of the directory itself are not part of it. A name that begins with `.wh.` cannot be in a layer
    /// and is an error. When the same layer exists already, that one stays.
    pub fn put_directory(
        &self,
        directory: LayerDirectory,
        parent: Option<&ChainId>,
        options: &DirectoryLayerOptions,
        lease: &mut Lease,
    ) -> Result<LayerInfo> {
        self.put_staged(self.stage_directory(&directory)?, parent, options, lease)
    }

    /// The first half of [`Self::put_directory`]: when it returns, whatever happens to the directory does not matter any
    /// more. A container need not be paused for longer.
    pub fn stage_directory(&self, directory: &LayerDirectory) -> Result<StagedDirectory> {
        let pending = self.pending_layer()?;
        bring(directory, &pending.path().join("diff"))?;
        Ok(StagedDirectory { pending })
    }

    /// The second half.
    pub fn put_staged(
        &self,
        staged: StagedDirectory,
        parent: Option<&ChainId>,
        options: &DirectoryLayerOptions,
        lease: &mut Lease,
    ) -> Result<LayerInfo> {
        let StagedDirectory { pending } = staged;
        let unpacked = archive(pending.path(), &pending.path().join("diff"), options)?;
        self.commit(pending.with(unpacked), parent, lease)
    }
}

/// Moves or copies the files into the store.
fn bring(directory: &LayerDirectory, diff: &Path) -> Result<()> {
    let source = &directory.path;
    let fail = |e: io::Error| Error::io(format!("cannot make a layer of {}", source.display()), e);
    if directory.take {
        match fs::rename(source, diff) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {}
            Err(e) => return Err(fail(e)),
        }
    }
    let copied = open(source).and_then(|from| copy_tree(&from, &open(diff)?));
    if directory.take {
        fs::remove_dir_all(source).map_err(fail)?;
    }
    copied
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))
}

fn archive(layer: &Path, diff: &Path, options: &DirectoryLayerOptions) -> Result<Unpacked> {
    let root = open(diff)?;
    let split = SplitWriter::create(layer)?;
    std::thread::scope(|scope| {
        let (sender, receiver) = channel::<Chunk>();
        let hasher = std::thread::Builder::new()
            .name("hash".into())
            .spawn_scoped(scope, move || {
                let mut hasher = Hasher::new(Algorithm::Sha256);
                for chunk in receiver {
                    hasher.update(&chunk);
                }
                DiffId(hasher.finish())
            })
            .map_err(|e| Error::io("cannot start a thread to hash a layer", e))?;
        let stream = Stream {
            chunks: ChunkWriter::new(Pool::new(BUFFERS), sender),
            split,
        };
        let result = write(&root, stream, options);
        let diff_id = hasher.join().map_err(|_| died())?;
        let stats = result?;
        Ok(Unpacked {
            digest: diff_id.0.clone(),
            diff_id,
            stats,
        })
    })
}

/// Writes the archive; the hasher is finished when this returns.
fn write(root: &OwnedFd, stream: Stream, options: &DirectoryLayerOptions) -> Result<Stats> {
    let mut archiver = Archiver {
        tar: TarWriter::new(stream),
        options,
        links: HashMap::new(),
        stats: Stats::default(),
    };
    // The directory becomes a container's root directory: it is like that of any other layer.
    let fail = |e: Errno| Error::io("cannot set the mode of the layer's directory", e);
    rustix::fs::fchown(root, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(fail)?;
    rustix::fs::fchmod(root, Mode::from_raw_mode(0o755)).map_err(fail)?;
    let attributes = xattr::upper(root.as_fd(), b".")?;
    let own: Vec<_> = attributes.kept.into_iter().map(|(name, _)| name).collect();
    xattr::remove(root.as_fd(), b".", &[own, attributes.stray].concat())?;
    archiver.children(root.as_fd(), b"", MAX_DEPTH)?;
    let Archiver { tar, mut stats, .. } = archiver;
    let mut stream = tar.finish().map_err(write_failed)?;
    stream.chunks.flush();
    stats.archive_size = stream.chunks.written();
    stream.split.finish()?;
    Ok(stats)
}

fn write_failed(e: io::Error) -> Error {
    Error::input("cannot write the layer's archive", e)
}

/// Where the archive goes: all of it to be hashed, and what is not content of a file into the skeleton.
struct Stream {
    chunks: ChunkWriter,
    split: SplitWriter,
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunks.put(bytes);
        self.split.raw(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Archiver<'a> {
    tar: TarWriter<Stream>,
    options: &'a DirectoryLayerOptions,
    /// Where the first name of a file with several is.
    links: HashMap<(u64, u64), Vec<u8>>,
    stats: Stats,
}

impl Archiver<'_> {
    fn children(&mut self, fd: BorrowedFd<'_>, path: &[u8], depth: usize) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or_else(|| {
            Error::limit(format!(
                "directories are nested more than {MAX_DEPTH} deep: {}",
                show(path)
            ))
        })?;
        if xattr::is_opaque(fd) {
            self.mark(&join(path, b".wh..wh..opq"))?;
        }
        for name in list(fd).map_err(|e| Error::io(format!("cannot read directory {}", show(path)), e))? {
            self.item(fd, &name, join(path, &name), depth)?;
        }
        Ok(())
    }

    fn item(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: Vec<u8>, depth: usize) -> Result<()> {
        let fail = |e: Errno| Error::io(format!("cannot read {}", show(&path)), e);
        if name.starts_with(b".wh.") {
            return Err(Error::invalid(format!(
                "{} cannot be in a layer, where names that begin with \".wh.\" say what is deleted; rename or remove it",
                show(&path)
            )));
        }
        if path.len() + ".wh./".len() > MAX_PATH {
            return Err(Error::limit(format!(
                "a path is longer than {MAX_PATH} bytes: {}",
                show(&path)
            )));
        }
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        if is_whiteout(&stat) {
            let directory = path.strip_suffix(name).unwrap_or_default();
            return self.mark(&[directory, b".wh.", name].concat());
        }
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            FileType::Fifo => Kind::Fifo,
            // No archive has them.
            _ => return rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(fail),
        };
        let mut entry = entry(&stat, kind, path.clone());
        entry.mtime = self.time(&stat);
        if kind != Kind::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                entry.kind = Kind::HardLink;
                entry.link = first.clone();
                return self.header(&entry);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        let attributes = xattr::upper(parent, name).map_err(|e| e.context(show(&path)))?;
        xattr::remove(parent, name, &attributes.stray)?;
        let bytes: usize = attributes.kept.iter().map(|(n, v)| n.len() + v.len()).sum();
        if bytes > MAX_XATTRS {
            return Err(Error::limit(format!(
                "the extended attributes of {} are larger than {MAX_XATTRS} bytes",
                show(&path)
            )));
        }
        entry.xattrs = attributes.kept;
        match kind {
            Kind::Directory => {
                entry.path.push(b'/');
                self.header(&entry)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(fail)?;
                self.children(fd.as_fd(), &path, depth)?;
            }
            Kind::File => {
                entry.size = stat.st_size.cast_unsigned();
                self.header(&entry)?;
                self.content(parent, name, &path, &stat)?;
            }
            _ => {
                if kind == Kind::Symlink {
                    let link = rustix::fs::readlinkat(parent, name, Vec::new());
                    entry.link = link.map_err(fail)?.into_bytes();
                }
                self.header(&entry)?;
            }
        }
        settle(parent, name, &stat, entry.mtime).map_err(fail)
    }

    fn content(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8], stat: &Stat) -> Result<()> {
        let size = stat.st_size.cast_unsigned();
        if size == 0 {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open {}", show(path)), e))?;
        let options = self.options;
        let stream = self.tar.payload();
        let sparse = stat.st_blocks.cast_unsigned() * 512 < size;
        let result = if sparse {
            stream.pieces(&fd, size, options)
        } else {
            stream.data(&fd, 0, size, options)
        };
        result.map_err(|e| Error::io(format!("cannot read {}", show(path)), e))?;
        stream.split.payload(path, 0, size)?;
        self.stats.bytes += size;
        Ok(())
    }

    /// An empty file whose name says what is hidden.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        let mut entry = plain("", Kind::File, 0);
        entry.path = path.to_vec();
        entry.mode = 0o600;
        self.header(&entry)
    }

    fn header(&mut self, entry: &crate::tar::Entry) -> Result<()> {
        let limits = &self.options.limits;
        self.check()?;
        self.stats.entries += 1;
        if self.stats.entries > limits.max_entries {
            return Err(Error::limit(format!(
                "a layer cannot have more than {} files",
                limits.max_entries
            )));
        }
        self.tar.header(entry).map_err(write_failed)?;
        let left = limits.max_bytes.checked_sub(self.tar.payload().chunks.written());
        if left.is_none_or(|left| left < entry.size) {
            return Err(Error::limit(format!(
                "the layer is larger than {} bytes with {}, which has {} (holes count: an archive has them as zeros)",
                limits.max_bytes,
                show(&entry.path),
                entry.size
            )));
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.options.is_cancelled() {
            return Err(Error::io(
                "the layer is not stored",
                io::Error::from_raw_os_error(Errno::CANCELED.raw_os_error()),
            ));
        }
        Ok(())
    }

    fn time(&self, stat: &Stat) -> Timestamp {
        let secs = self
            .options
            .clamp
            .map_or(stat.st_mtime, |clamp| stat.st_mtime.min(clamp));
        Timestamp { secs, nanos: 0 }
    }
}

impl Stream {
    /// All of a file that has holes.
    fn pieces(&mut self, fd: &OwnedFd, size: u64, options: &DirectoryLayerOptions) -> Result<(), Errno> {
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
                Ok(start) => start.min(size),
                Err(Errno::NXIO) => size,
                Err(e) => return Err(e),
            };
            self.zeros(start - at, options)?;
            at = start;
            if at < size {
                let end = rustix::fs::seek(fd, SeekFrom::Hole(at))?.min(size);
                self.data(fd, at, end, options)?;
                at = end;
            }
        }
        Ok(())
    }

    fn data(
        &mut self,
        fd: &OwnedFd,
        mut at: u64,
        end: u64,
        options: &DirectoryLayerOptions,
    ) -> Result<(), Errno> {
        while at < end {
            if options.is_cancelled() {
                return Err(Errno::CANCELED);
            }
            let space = self.chunks.space();
            let max = space.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            match rustix::io::pread(fd, &mut space[..max], at) {
                // Nobody else has the file: the file system has lost something.
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    self.chunks.advance(n);
                    at += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn zeros(&mut self, mut length: u64, options: &DirectoryLayerOptions) -> Result<(), Errno> {
        while length > 0 {
            if options.is_cancelled() {
                return Err(Errno::CANCELED);
            }
            let space = self.chunks.space();
            let n = space.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            space[..n].fill(0);
            self.chunks.advance(n);
            length -= n as u64;
        }
        Ok(())
    }
}

/// Gives what is on disk the time of its entry. Listing and reading it did not change that, removing a socket did.
fn settle(parent: BorrowedFd<'_>, name: &[u8], stat: &Stat, mtime: Timestamp) -> Result<(), Errno> {
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if !directory && stat.st_mtime == mtime.secs && stat.st_mtime_nsec == 0 {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: mtime.secs,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}
