//! Layers put over one another, so that one layer remains of several (`--squash`).
//!
//! Layers are directories as overlay keeps them: a character device 0,0 hides what is below, and so does, for all of a
//! directory, the attribute `trusted.overlay.opaque`. What is hidden only among the layers that become one leaves
//! nothing, what the base has stays hidden.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::copy::{Copier, Options};
use super::{MAX_DEPTH, chown, kind, list, open_at, show, stat_at, times};
use crate::error::{Error, Result};
use crate::solve::Cancelled;

const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Puts a layer over what is in a directory already.
pub(crate) fn put_over(layer: BorrowedFd<'_>, into: &Arc<OwnedFd>, cancelled: &Cancelled) -> Result<()> {
    make_way(layer, into.as_fd(), cancelled, 0)?;
    Copier::new(into.as_fd(), Options::default(), cancelled).all_of(layer, into)?;
    let fail = |error| failed("the root of a layer", error);
    let stat = rustix::fs::fstat(layer).map_err(fail)?;
    chown(into.as_fd(), stat.st_uid, stat.st_gid).map_err(fail)?;
    rustix::fs::fchmod(&**into, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(fail)
}

/// Takes away what hides nothing of the base; none: there is no base.
pub(crate) fn forget_hidden(
    directory: BorrowedFd<'_>,
    base: Option<BorrowedFd<'_>>,
    cancelled: &Cancelled,
) -> Result<()> {
    settle(directory, base, cancelled, 0)
}

fn failed(what: &str, error: Errno) -> Error {
    Error::io(format!("cannot put layers together: {what}"), error)
}

fn too_deep(depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::invalid("a layer is too deep to be squashed"));
    }
    Ok(())
}

fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0; 1];
    OPAQUE
        .iter()
        .any(|name| rustix::fs::fgetxattr(directory, *name, &mut value[..]) == Ok(1) && value == *b"y")
}

fn set_opaque(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::fs::fsetxattr(directory, OPAQUE[0], b"y", XattrFlags::empty()) {
        Err(Errno::PERM) => rustix::fs::fsetxattr(directory, OPAQUE[1], b"y", XattrFlags::empty()),
        other => other,
    }
}

/// Removes what is in the way of a layer, and what it hides.
fn make_way(layer: BorrowedFd<'_>, into: BorrowedFd<'_>, cancelled: &Cancelled, depth: usize) -> Result<()> {
    too_deep(depth)?;
    for name in list(layer).map_err(|error| failed("cannot list a directory", error))? {
        cancelled.check()?;
        let fail = |error| failed(&show(&name), error);
        let Some(stat) = stat_at(layer, &name).map_err(fail)? else {
            continue;
        };
        let there = stat_at(into, &name).map_err(fail)?;
        let over = there.as_ref().map(kind);
        if kind(&stat) != FileType::Directory {
            if over == Some(FileType::Directory) {
                remove(into, &name, depth)?;
            }
            continue;
        }
        let source = open_at(layer, &name, DIRECTORY).map_err(fail)?;
        match over {
            Some(FileType::Directory) => {
                let target = open_at(into, &name, DIRECTORY).map_err(fail)?;
                if is_opaque(source.as_fd()) {
                    empty(target.as_fd(), depth)?;
                    set_opaque(target.as_fd()).map_err(fail)?;
                } else {
                    make_way(source.as_fd(), target.as_fd(), cancelled, depth + 1)?;
                }
            }
            // What was there has hidden what the base has, and goes on doing so.
            Some(_) => {
                rustix::fs::unlinkat(into, &name, AtFlags::empty()).map_err(fail)?;
                make_opaque(into, &name).map_err(fail)?;
            }
            None if is_opaque(source.as_fd()) => make_opaque(into, &name).map_err(fail)?,
            // The copy takes no marks of overlay along: those below are made here.
            None => {
                rustix::fs::mkdirat(into, &name, Mode::from_raw_mode(0o700)).map_err(fail)?;
                let target = open_at(into, &name, DIRECTORY).map_err(fail)?;
                make_way(source.as_fd(), target.as_fd(), cancelled, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn make_opaque(into: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mkdirat(into, name, Mode::from_raw_mode(0o700))?;
    set_opaque(open_at(into, name, DIRECTORY)?.as_fd())
}

fn empty(directory: BorrowedFd<'_>, depth: usize) -> Result<()> {
    for name in list(directory).map_err(|error| failed("cannot list a directory", error))? {
        remove(directory, &name, depth)?;
    }
    Ok(())
}

fn remove(parent: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<()> {
    too_deep(depth)?;
    let fail = |error| failed(&show(name), error);
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other.map_err(fail),
    }
    let directory = open_at(parent, name, DIRECTORY).map_err(fail)?;
    empty(directory.as_fd(), depth + 1)?;
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(fail)
}

fn settle(
    directory: BorrowedFd<'_>,
    base: Option<BorrowedFd<'_>>,
    cancelled: &Cancelled,
    depth: usize,
) -> Result<()> {
    too_deep(depth)?;
    let before = rustix::fs::fstat(directory).map_err(|error| failed("a directory", error))?;
    let mut changed = false;
    for name in list(directory).map_err(|error| failed("cannot list a directory", error))? {
        cancelled.check()?;
        let fail = |error| failed(&show(&name), error);
        let Some(stat) = stat_at(directory, &name).map_err(fail)? else {
            continue;
        };
        let below = match base {
            Some(base) => stat_at(base, &name).map_err(fail)?,
            None => None,
        };
        if is_whiteout(&stat) && below.is_none() {
            rustix::fs::unlinkat(directory, &name, AtFlags::empty()).map_err(fail)?;
            changed = true;
        } else if kind(&stat) == FileType::Directory {
            let inner = open_at(directory, &name, DIRECTORY).map_err(fail)?;
            let hides = below.is_some_and(|stat| kind(&stat) == FileType::Directory);
            let base = match base {
                Some(base) if hides => Some(open_at(base, &name, DIRECTORY).map_err(fail)?),
                _ => None,
            };
            if base.is_none() {
                for name in OPAQUE {
                    let _none = rustix::fs::fremovexattr(&inner, name);
                }
            }
            // All that an opaque directory has not is hidden already.
            let seen = base.as_ref().filter(|_| !is_opaque(inner.as_fd()));
            settle(inner.as_fd(), seen.map(AsFd::as_fd), cancelled, depth + 1)?;
        }
    }
    if changed {
        let time = times(before.st_mtime, before.st_mtime_nsec as i64);
        rustix::fs::futimens(directory, &time).map_err(|error| failed("a directory", error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tree::open_root;

    #[test]
    fn what_is_hidden_deep_below_stays_hidden() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for path in [
            "layer/a/b/hides/in",
            "layer/a/b/plain",
            "next/a/b/plain",
            "into",
            "base/a/b/hides",
            "base/a/b/plain",
        ] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        let open = |path: &Path| open_root(path).unwrap();
        let hides = open(&at("layer/a/b/hides"));
        if set_opaque(hides.as_fd()).is_err() {
            return;
        }
        std::fs::write(at("layer/a/b/hides/new"), "new").unwrap();
        let into = Arc::new(open(&at("into")));
        let cancelled = Cancelled::default();
        for layer in ["layer", "next"] {
            put_over(open(&at(layer)).as_fd(), &into, &cancelled).unwrap();
        }
        forget_hidden(into.as_fd(), Some(open(&at("base")).as_fd()), &cancelled).unwrap();
        let opaque = |path: &str| is_opaque(open(&at(path)).as_fd());
        assert!(opaque("into/a/b/hides"));
        assert!(!opaque("into/a") && !opaque("into/a/b") && !opaque("into/a/b/plain"));
        assert_eq!(std::fs::read(at("into/a/b/hides/new")).unwrap(), b"new");
    }
}
