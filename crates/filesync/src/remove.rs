//! Removing a tree by descriptors.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::tree::{Entry, list, open_dir};
use crate::{Error, MAX_DEPTH, Result};

/// Removes whatever `name` is in `dir`, with everything below it, and follows no link. Nothing there is no error.
///
/// # Errors
/// When the system refuses, or the tree is deeper than any that was received.
pub fn remove_tree(dir: impl AsFd, name: &str) -> Result<()> {
    remove(dir, name).map_err(Error::io(format!("cannot remove {name:?}")))
}

fn remove(dir: impl AsFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error),
    }
    let top = open_dir(&dir, name)?;
    let entries = list(&top)?;
    let mut open: Vec<(OwnedFd, Vec<Entry>)> = vec![(top, entries)];
    while let Some((fd, entries)) = open.last_mut() {
        let Some(entry) = entries.last() else {
            open.pop();
            if let Some((parent, entries)) = open.last_mut()
                && let Some(done) = entries.pop()
            {
                rustix::fs::unlinkat(parent, &done.name, AtFlags::REMOVEDIR)?;
            }
            continue;
        };
        if entry.kind != FileType::Directory {
            match rustix::fs::unlinkat(&*fd, &entry.name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {
                    entries.pop();
                    continue;
                }
                Err(Errno::ISDIR) => {}
                Err(error) => return Err(error),
            }
        }
        let inner = open_dir(&*fd, &entry.name)?;
        let inside = list(&inner)?;
        if open.len() > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        open.push((inner, inside));
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}
