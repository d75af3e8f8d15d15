//! Removal of a volume's files that stops at whatever is mounted among them: those are somebody else's.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, renameat, unlinkat};
use rustix::io::Errno;

use crate::error::Context;
use crate::{Error, Result};

/// So many directories are open at once; what lies deeper is moved up first.
const DEPTH: usize = 128;

/// Removes a directory and what is in it. None is there: nothing to do.
///
/// # Errors
/// Something is mounted in it (that stays, and what leads to it); the disk.
pub(crate) fn remove_files(path: &Path) -> Result<()> {
    let what = || format!("remove {}", path.display());
    crate::quota::release(path);
    let top = match open(CWD, path) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).context(what),
    };
    let mut moved = 0;
    loop {
        let before = moved;
        match empty(top.as_fd(), top.as_fd(), 0, &mut moved) {
            Err(Errno::XDEV | Errno::BUSY) => {
                return Err(Error::conflict(format!(
                    "{}: something is mounted in it: unmount it first",
                    what()
                )));
            }
            done => done.context(what)?,
        }
        if moved == before {
            break;
        }
    }
    unlinkat(CWD, path, AtFlags::REMOVEDIR).context(what)
}

fn open(directory: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Removes what is in a directory. What is too deep goes to `top` under a name of its own, and `moved` counts it.
fn empty(
    directory: BorrowedFd<'_>,
    top: BorrowedFd<'_>,
    depth: usize,
    moved: &mut u64,
) -> rustix::io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if !matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
            unlinkat(directory, name, AtFlags::empty())?;
            continue;
        }
        if depth >= DEPTH {
            loop {
                let aside = CString::new(format!(".vessel-deep-{moved}")).map_err(|_| Errno::INVAL)?;
                *moved += 1;
                match renameat(directory, name, top, &aside) {
                    // Of a removal that was cut off.
                    Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                    done => break done?,
                }
            }
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        match openat2(directory, name, flags, Mode::empty(), resolve) {
            Ok(inner) => {
                empty(inner.as_fd(), top, depth + 1, moved)?;
                unlinkat(directory, name, AtFlags::REMOVEDIR)?;
            }
            // A file system that does not tell kinds.
            Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(directory, name, AtFlags::empty())?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn trees_go_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        let kept = directory.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let mut deep = tree.clone();
        for _ in 0..300 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        remove_files(&tree).unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
        remove_files(&tree).unwrap();
    }

    #[test]
    fn what_is_mounted_inside_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (tree, kept) = (directory.path().join("tree"), directory.path().join("kept"));
        for path in [tree.join("a/mounted"), kept.clone()] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(kept.join("file"), "").unwrap();
        let at = tree.join("a/mounted");
        if let Err(error) = rustix::mount::mount_bind(&kept, &at) {
            println!("left out: nothing can be mounted here: {error}");
            return;
        }
        let error = remove_files(&tree);
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(error.unwrap_err().message().contains("is mounted in it"));
        assert!(kept.join("file").exists());
        remove_files(&tree).unwrap();
        assert!(!tree.exists());
    }
}
