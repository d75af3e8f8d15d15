//! Writing a file or directory inside a root as an archive, for `cp` out of a container, `export`, and the
//! copy of an image's directory into a new volume.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::changes::list;
use super::root::{MAX_DEPTH, open_in_root};
use super::xattr;
use crate::error::{Error, Result, show};
use crate::tar::{Entry, Kind, TarWriter, Timestamp};

/// How [`pack`] behaves.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// The name of the packed file or directory in the archive; empty packs a directory's contents under
    /// their own names, without an entry for the directory itself.
    pub name: Vec<u8>,
    /// Follow a symbolic link at the last component of the path (inside the root).
    pub follow: bool,
    /// Do not go into other file systems: `export` leaves volumes and `/proc` out.
    pub one_file_system: bool,
    /// Leave out the end of the archive: another that is packed after this one becomes part of it.
    pub continued: bool,
}

/// Streams what is at `path` inside a root as a tar archive.
///
/// The path is resolved inside the root; links below it are packed as links. Hard links among the packed
/// files are kept. A file that shrinks meanwhile is filled up with zeros, one that grows is cut, as tar does.
/// Sockets are left out. Holes of sparse files are written as zeros.
pub fn pack(root: BorrowedFd<'_>, path: &[u8], options: &PackOptions, output: impl Write) -> Result<()> {
    let relative: Vec<u8> = path.iter().copied().skip_while(|&b| b == b'/').collect();
    let fail = |e: Errno| Error::io(format!("cannot open {}", show(path)), e);
    let mut flags = OFlags::PATH;
    if !options.follow {
        flags |= OFlags::NOFOLLOW;
    }
    let target = open_in_root(root, &relative, flags).map_err(fail)?;
    let stat = rustix::fs::fstat(&target).map_err(fail)?;
    let buffered = io::BufWriter::with_capacity(256 << 10, output);
    let mut packer = Packer {
        tar: TarWriter::new(buffered),
        links: HashMap::new(),
        device: options.one_file_system.then_some(stat.st_dev),
    };
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let fd = open_in_root(target.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
        packer.directory(fd, options.name.clone(), MAX_DEPTH)?;
    } else {
        // Its parent and name are needed for attributes and link targets.
        let trimmed = relative.strip_suffix(b"/").unwrap_or(&relative);
        let (parent, name) = super::root::split(trimmed);
        let (parent, name) = if options.follow && is_link(root, parent, name) {
            follow(root, trimmed)?
        } else {
            (
                open_in_root(root, parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?,
                name.to_vec(),
            )
        };
        let archive_name = if options.name.is_empty() {
            name.clone()
        } else {
            options.name.clone()
        };
        packer.item(parent.as_fd(), &name, archive_name, MAX_DEPTH)?;
    }
    let ended = if options.continued {
        packer.tar.pause()
    } else {
        packer.tar.finish().map(drop)
    };
    ended.map_err(|e| Error::input("cannot write the archive", e))
}

fn is_link(root: BorrowedFd<'_>, parent: &[u8], name: &[u8]) -> bool {
    open_in_root(root, parent, OFlags::PATH | OFlags::DIRECTORY)
        .and_then(|parent| rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW))
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// The directory and name that a chain of links at the end of a path leads to.
fn follow(root: BorrowedFd<'_>, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
    let fail = |e: Errno| Error::io(format!("cannot follow {}", show(path)), e);
    let mut path = path.to_vec();
    for _ in 0..40 {
        let (parent, name) = super::root::split(&path);
        let fd = open_in_root(root, parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fail)?;
        match rustix::fs::readlinkat(&fd, name, Vec::new()) {
            Ok(link) => {
                let link = link.as_bytes();
                path = match link.strip_prefix(b"/") {
                    Some(absolute) => absolute.to_vec(),
                    None => [parent, b"/", link].concat(),
                };
                while path.last() == Some(&b'/') {
                    path.pop();
                }
            }
            Err(Errno::INVAL) => {
                let name = name.to_vec();
                return Ok((fd, name));
            }
            Err(e) => return Err(fail(e)),
        }
    }
    Err(fail(Errno::LOOP))
}

struct Packer<W: Write> {
    tar: TarWriter<W>,
    /// Where the first name of a file with several is.
    links: HashMap<(u64, u64), Vec<u8>>,
    device: Option<u64>,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, fd: OwnedFd, path: Vec<u8>, depth: usize) -> Result<()> {
        // Each level takes a descriptor and stack, and a container can nest without end.
        let depth = depth.checked_sub(1).ok_or_else(|| {
            Error::limit(format!(
                "directories are nested more than {MAX_DEPTH} deep: {}",
                show(&path)
            ))
        })?;
        let fail = |e| Error::io(format!("cannot read directory {}", show(&path)), e);
        if !path.is_empty() {
            let stat = rustix::fs::fstat(&fd).map_err(fail)?;
            let mut entry = entry(&stat, Kind::Directory, [&path[..], b"/"].concat());
            entry.xattrs = xattr::read(fd.as_fd(), b".")?;
            self.header(&entry)?;
        }
        for name in list(fd.as_fd()).map_err(fail)? {
            let child = if path.is_empty() {
                name.clone()
            } else {
                [&path[..], b"/", &name].concat()
            };
            self.item(fd.as_fd(), &name, child, depth)?;
        }
        Ok(())
    }

    fn item(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: Vec<u8>, depth: usize) -> Result<()> {
        let fail = |e: Errno| Error::io(format!("cannot read {}", show(&path)), e);
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed since the directory was listed.
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(fail(e)),
        };
        if self.device.is_some_and(|device| device != stat.st_dev) {
            return Ok(());
        }
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(fail)?;
                return self.directory(fd, path, depth);
            }
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            FileType::Fifo => Kind::Fifo,
            _ => return Ok(()),
        };
        let mut entry = entry(&stat, kind, path.clone());
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                entry.kind = Kind::HardLink;
                entry.link = first.clone();
                return self.header(&entry);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        if kind == Kind::Symlink {
            entry.link = rustix::fs::readlinkat(parent, name, Vec::new())
                .map_err(fail)?
                .into_bytes();
        }
        entry.xattrs = xattr::read(parent, name)?;
        if kind != Kind::File {
            return self.header(&entry);
        }
        // Should the name have become a pipe since, this does not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(fail)?;
        let now = rustix::fs::fstat(&fd).map_err(fail)?;
        if FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        entry.size = now.st_size.cast_unsigned();
        self.header(&entry)?;
        let size = entry.size;
        let written = io::copy(&mut File::from(fd).take(size), self.tar.payload())
            .map_err(|e| Error::io(format!("cannot copy {}", show(&path)), e))?;
        io::copy(&mut io::repeat(0).take(size - written), self.tar.payload())
            .map_err(|e| Error::input("cannot write the archive", e))?;
        Ok(())
    }

    fn header(&mut self, entry: &Entry) -> Result<()> {
        self.tar
            .header(entry)
            .map_err(|e| Error::input("cannot write the archive", e))
    }
}

/// The entry of a file with these properties.
pub(crate) fn entry(stat: &rustix::fs::Stat, kind: Kind, path: Vec<u8>) -> Entry {
    let device = match kind {
        Kind::Char | Kind::Block => (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        _ => (0, 0),
    };
    Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: 0,
        mtime: Timestamp {
            secs: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
        link: Vec::new(),
        device,
        xattrs: Vec::new(),
        sparse: None,
    }
}
