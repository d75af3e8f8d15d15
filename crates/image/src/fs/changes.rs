//! What a container changed: the upper directory of its overlay against the layers below.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::root::MAX_DEPTH;
use super::xattr::is_opaque;
use crate::error::{Error, Result, show};

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// `C`: it exists below and was changed.
    Modified,
    /// `A`: it does not exist below.
    Added,
    /// `D`: it exists below only.
    Deleted,
}

/// A changed path, absolute in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path's bytes, beginning with `/`.
    pub path: Vec<u8>,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// Lists the changes, sorted by path, as `docker diff` shows them: a directory above a change counts as
/// modified. `lowers` has the top-most layer first, as overlayfs' `lowerdir` does.
pub fn changes(upper: &Path, lowers: &[impl AsRef<Path>]) -> Result<Vec<Change>> {
    let open = |path: &Path| {
        open_directory(path).map_err(|e| Error::io(format!("cannot open {}", path.display()), e))
    };
    let root = open(upper)?;
    let lowers = lowers
        .iter()
        .map(|lower| open(lower.as_ref()))
        .collect::<Result<Vec<_>>>()?;
    let mut out = Vec::new();
    walk(root.as_fd(), &lowers, b"", MAX_DEPTH, &mut out)?;
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

/// Walks one directory of the upper layer; `lowers` are the directories it merges with.
fn walk(
    upper: BorrowedFd<'_>,
    lowers: &[OwnedFd],
    path: &[u8],
    depth: usize,
    out: &mut Vec<Change>,
) -> Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(|| {
        Error::limit(format!(
            "directories are nested more than {MAX_DEPTH} deep: {}",
            show(path)
        ))
    })?;
    let names = list(upper).map_err(|e| Error::io(format!("cannot list {}", show(path)), e))?;
    for name in &names {
        let child = [path, b"/", name].concat();
        let fail = |e| Error::io(format!("cannot look at {}", show(&child)), e);
        let stat = rustix::fs::statat(upper, &name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        let below = lookup(lowers, name).map_err(fail)?;
        if is_whiteout(&stat) {
            if below.is_some() {
                out.push(Change {
                    path: child,
                    kind: ChangeKind::Deleted,
                });
            }
            continue;
        }
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let at = out.len();
        let kind = if below.is_some() {
            ChangeKind::Modified
        } else {
            ChangeKind::Added
        };
        out.push(Change {
            path: child.clone(),
            kind,
        });
        if !directory {
            continue;
        }
        let fd = open_at(upper, name).map_err(fail)?;
        let merged = merged(lowers, name).map_err(fail)?;
        if is_opaque(fd.as_fd()) {
            hidden(fd.as_fd(), &merged, &child, out)?;
            walk(fd.as_fd(), &merged, &child, depth, out)?;
        } else {
            walk(fd.as_fd(), &merged, &child, depth, out)?;
            // Copied up without any change, by opening something below it for writing.
            if out.len() == at + 1 && below.is_some_and(|below| same(&stat, &below)) {
                out.pop();
            }
        }
    }
    Ok(())
}

/// What an opaque directory hides and does not have itself.
fn hidden(upper: BorrowedFd<'_>, lowers: &[OwnedFd], path: &[u8], out: &mut Vec<Change>) -> Result<()> {
    let fail = |e| Error::io(format!("cannot list {}", show(path)), e);
    let mut names = Vec::new();
    for lower in lowers {
        names.extend(list(lower.as_fd()).map_err(fail)?);
    }
    names.sort();
    names.dedup();
    for name in names {
        let gone =
            rustix::fs::statat(upper, &name[..], AtFlags::SYMLINK_NOFOLLOW).is_err_and(|e| e == Errno::NOENT);
        if gone && lookup(lowers, &name).map_err(fail)?.is_some() {
            out.push(Change {
                path: [path, b"/", &name].concat(),
                kind: ChangeKind::Deleted,
            });
        }
    }
    Ok(())
}

/// A name as the lower layers together show it.
fn lookup(lowers: &[OwnedFd], name: &[u8]) -> Result<Option<Stat>, Errno> {
    for lower in lowers {
        match rustix::fs::statat(lower, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => return Ok(None),
            Ok(stat) => return Ok(Some(stat)),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// The directories of this name that merge.
fn merged(lowers: &[OwnedFd], name: &[u8]) -> Result<Vec<OwnedFd>, Errno> {
    let mut out = Vec::new();
    for lower in lowers {
        match rustix::fs::statat(lower, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let fd = open_at(lower.as_fd(), name)?;
                let opaque = is_opaque(fd.as_fd());
                out.push(fd);
                if opaque {
                    break;
                }
            }
            // Anything else, a whiteout too, hides what is below it.
            Ok(_) => break,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

fn same(a: &Stat, b: &Stat) -> bool {
    (a.st_mode, a.st_uid, a.st_gid, a.st_mtime, a.st_mtime_nsec)
        == (b.st_mode, b.st_uid, b.st_gid, b.st_mtime, b.st_mtime_nsec)
}

/// Whether this hides a name of lower layers.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn open_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
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
    names.sort();
    Ok(names)
}
