//! Copying a tree as it is: contents, holes, hard links, owners, modes, times, attributes, overlayfs' marks.
//!
//! Where the file system can, contents are shared (`FICLONE`); else the kernel copies them. What disappears or changes
//! its type while it is copied is left out: the source may be in use.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::changes::list;
use super::root::MAX_DEPTH;
use super::xattr::{self, Target, is_opaque};
use crate::error::{Error, Result, show};

/// Copies what is in one directory into another, empty one, and the directory's own attributes. Sockets are left out.
pub(crate) fn copy_tree(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let fail = |e| Error::io("cannot look at the directory", e);
    let mut copier = Copier {
        root: to.as_fd(),
        links: HashMap::new(),
    };
    let stat = rustix::fs::fstat(from).map_err(fail)?;
    copier.directory(from.as_fd(), to.as_fd(), &stat, b"", MAX_DEPTH)
}

struct Copier<'a> {
    root: BorrowedFd<'a>,
    /// Where the first name of a file with several is.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl Copier<'_> {
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Stat,
        path: &[u8],
        depth: usize,
    ) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or_else(|| {
            Error::limit(format!(
                "directories are nested more than {MAX_DEPTH} deep: {}",
                show(path)
            ))
        })?;
        let fail = |e| Error::io(format!("cannot copy directory {}", show(path)), e);
        for name in list(from).map_err(fail)? {
            let child = if path.is_empty() {
                name.clone()
            } else {
                [path, b"/", &name].concat()
            };
            self.item(from, to, &name, &child, depth)?;
        }
        let attributes = xattr::upper(from, b".").map_err(|e| e.context(show(path)))?;
        if is_opaque(from) {
            super::set_opaque(to, path)?;
        }
        finish(to, b".", stat, &attributes.kept, path)
    }

    fn item(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        depth: usize,
    ) -> Result<()> {
        let fail = |e: Errno| Error::io(format!("cannot copy {}", show(path)), e);
        let stat = match rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(fail(e)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mode = Mode::from_raw_mode(0o600);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = match rustix::fs::openat(from, name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                Err(e) => return Err(fail(e)),
            };
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700)).map_err(fail)?;
            let target = rustix::fs::openat(to, name, flags, Mode::empty()).map_err(fail)?;
            return self.directory(source.as_fd(), target.as_fd(), &stat, path, depth);
        }
        // Whiteouts share one inode, which says nothing.
        if stat.st_nlink > 1
            && !super::is_whiteout(&stat)
            && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino))
        {
            return rustix::fs::linkat(self.root, &first[..], to, name, AtFlags::empty()).map_err(fail);
        }
        match kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = match rustix::fs::openat(from, name, flags, Mode::empty()) {
                    Ok(fd) => fd,
                    Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(()),
                    Err(e) => return Err(fail(e)),
                };
                let now = rustix::fs::fstat(&source).map_err(fail)?;
                if FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
                    return Ok(());
                }
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let target = rustix::fs::openat(to, name, flags, mode).map_err(fail)?;
                contents(&source, &target, &now).map_err(fail)?;
            }
            FileType::Symlink => {
                let link = match rustix::fs::readlinkat(from, name, Vec::new()) {
                    Ok(link) => link,
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                    Err(e) => return Err(fail(e)),
                };
                rustix::fs::symlinkat(link, to, name).map_err(fail)?;
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev).map_err(fail)?;
            }
            _ => return Ok(()),
        }
        if super::is_whiteout(&stat) {
            return Ok(());
        }
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let attributes = xattr::upper(from, name).map_err(|e| e.context(show(path)))?;
        finish(to, name, &stat, &attributes.kept, path)
    }
}

/// In this order: a change of owner clears set-user-ID and capabilities.
fn finish(
    to: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    xattrs: &[(Vec<u8>, Vec<u8>)],
    path: &[u8],
) -> Result<()> {
    let fail = |e: Errno| Error::io(format!("cannot set the attributes of {}", show(path)), e);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), nofollow).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // The name is what was just made: nobody else reaches the copy.
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmodat(to, name, mode, AtFlags::empty()).map_err(fail)?;
    }
    xattr::apply(&Target::Name(to, name), xattrs, path)?;
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec.cast_signed(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(to, name, &times, nofollow).map_err(fail)
}

/// The data of a file, without its holes.
fn contents(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    let size = stat.st_size.cast_unsigned();
    if size == 0 || rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size);
        let (mut read, mut write) = (start, start);
        while read < end {
            let length = usize::try_from(end - read).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), length) {
                // Cut off meanwhile; the rest is zeros.
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    copy_by_hand(from, to, &mut read, &mut write, end)?;
                }
                Err(e) => return Err(e),
            }
        }
        at = end.max(start + 1);
    }
    rustix::fs::ftruncate(to, size)
}

fn copy_by_hand(
    from: &OwnedFd,
    to: &OwnedFd,
    read: &mut u64,
    write: &mut u64,
    end: u64,
) -> Result<(), Errno> {
    let mut buffer = vec![0u8; 256 << 10];
    while *read < end {
        let n = buffer
            .len()
            .min(usize::try_from(end - *read).unwrap_or(usize::MAX));
        let n = rustix::io::pread(from, &mut buffer[..n], *read)?;
        if n == 0 {
            *read = end;
            break;
        }
        let mut done = 0;
        while done < n {
            done += rustix::io::pwrite(to, &buffer[done..n], *write + done as u64)?;
        }
        *read += n as u64;
        *write += n as u64;
    }
    Ok(())
}
