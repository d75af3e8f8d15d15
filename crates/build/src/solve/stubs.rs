//! Mount points that were made for a process only: taken away again, so that they are in no layer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, OFlags, Stat};

use crate::error::{Error, Result};
use crate::tree::{self, kind, list, open_at, open_in, stat_at};

/// What is there before a process runs.
pub(super) struct Stubs {
    root: OwnedFd,
    targets: Vec<Vec<u8>>,
}

impl Stubs {
    /// `root`: what the process is going to see.
    pub fn new(root: OwnedFd, targets: impl IntoIterator<Item = String>) -> Self {
        Self {
            root,
            targets: targets.into_iter().map(String::into_bytes).collect(),
        }
    }

    /// Removes from the upper directory what the mounts needed and the process left empty: targets that were not there,
    /// the directories that lead to them, and notes of directories that are as they were.
    pub fn clean(&self, upper: &Path) -> Result<()> {
        let upper = tree::open_root(upper)?;
        for target in &self.targets {
            let target = tree::clean(target);
            let mut path: &[u8] = &target;
            while path.len() > 1 {
                if !self.clean_one(upper.as_fd(), path) {
                    break;
                }
                path = tree::split(path).0;
            }
        }
        Ok(())
    }

    /// `/etc` is covered by the engine's own directory, for `hosts` and the like. When something in it was changed, the
    /// copy that this leaves gets the owner and mode it has below, and its time if that is older than the process.
    pub fn uncover(&self, upper: &Path, started: SystemTime) -> Result<()> {
        let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let upper = tree::open_root(upper)?;
        let Ok(etc) = open_at(upper.as_fd(), b"etc", OFlags::RDONLY | OFlags::DIRECTORY) else {
            return Ok(());
        };
        let fail = |error: rustix::io::Errno| Error::io("cannot set the attributes of /etc", error);
        let below = stat_at(self.root.as_fd(), b"etc").map_err(fail)?;
        let Some(below) = below.filter(|below| kind(below) == FileType::Directory) else {
            return Ok(());
        };
        let now = rustix::fs::fstat(&etc).map_err(fail)?;
        if (now.st_mode & 0o7777, now.st_uid, now.st_gid) == (0o755, 0, 0) {
            tree::chown(etc.as_fd(), below.st_uid, below.st_gid).map_err(fail)?;
            let mode = rustix::fs::Mode::from_raw_mode(below.st_mode & 0o7777);
            rustix::fs::fchmod(&etc, mode).map_err(fail)?;
        }
        if u64::try_from(now.st_mtime).is_ok_and(|time| time < started.as_secs()) {
            let times = tree::times(below.st_mtime, below.st_mtime_nsec as i64);
            rustix::fs::futimens(&etc, &times).map_err(fail)?;
        }
        Ok(())
    }

    /// Whether something was taken away, so that the directory it lay in is to be looked at.
    fn clean_one(&self, upper: BorrowedFd<'_>, path: &[u8]) -> bool {
        let (parent, name) = tree::split(path);
        let directory = match open_in(upper, parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(error) => return error == rustix::io::Errno::NOENT,
        };
        let Ok(stat) = stat_at(directory.as_fd(), name) else {
            return false;
        };
        // What is not in the upper directory was there before.
        let Some(stat) = stat else { return true };
        let before = self.before(path);
        let removed = match kind(&stat) {
            FileType::Directory => {
                let empty = open_at(directory.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)
                    .is_ok_and(|fd| list(fd.as_fd()).is_ok_and(|names| names.is_empty()));
                let unchanged = before.is_none_or(|before| same(&before, &stat));
                empty && unchanged && rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR).is_ok()
            }
            FileType::RegularFile if stat.st_size == 0 && before.is_none() => {
                rustix::fs::unlinkat(&directory, name, AtFlags::empty()).is_ok()
            }
            _ => false,
        };
        if removed {
            self.restore_time(upper, parent);
        }
        removed
    }

    fn before(&self, path: &[u8]) -> Option<Stat> {
        let (parent, name) = tree::split(path);
        let directory = open_in(self.root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY).ok()?;
        stat_at(directory.as_fd(), name).ok().flatten()
    }

    /// A directory in which a mount point was made has the time of that; it gets back its own, unless the process has put
    /// something into it.
    fn restore_time(&self, upper: BorrowedFd<'_>, path: &[u8]) {
        if path.is_empty() {
            return;
        }
        let Some(before) = self.before(path) else { return };
        let Ok(fd) = open_in(upper, path, OFlags::RDONLY | OFlags::DIRECTORY) else {
            return;
        };
        if list(fd.as_fd()).is_ok_and(|names| names.is_empty()) {
            let times = tree::times(before.st_mtime, before.st_mtime_nsec as i64);
            let _kept_otherwise = rustix::fs::futimens(&fd, &times);
        }
    }
}

fn same(one: &Stat, other: &Stat) -> bool {
    (
        one.st_mode,
        one.st_uid,
        one.st_gid,
        one.st_mtime,
        one.st_mtime_nsec,
    ) == (
        other.st_mode,
        other.st_uid,
        other.st_gid,
        other.st_mtime,
        other.st_mtime_nsec,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etc_has_what_it_has_below() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let (root, upper) = (dir.path().join("root"), dir.path().join("upper"));
        let old = UNIX_EPOCH + std::time::Duration::from_secs(1000);
        for (tree, mode) in [(&root, 0o711), (&upper, 0o755)] {
            let etc = tree.join("etc");
            std::fs::create_dir_all(&etc).unwrap();
            std::fs::write(etc.join("passwd"), "x").unwrap();
            std::fs::set_permissions(&etc, PermissionsExt::from_mode(mode)).unwrap();
            std::fs::File::open(&etc).unwrap().set_modified(old).unwrap();
        }
        let etc = std::fs::File::open(upper.join("etc")).unwrap();
        etc.set_modified(old + std::time::Duration::from_secs(5)).unwrap();
        let stubs = Stubs::new(tree::open_root(&root).unwrap(), []);
        stubs.uncover(&upper, SystemTime::now()).unwrap();
        let now = etc.metadata().unwrap();
        assert_eq!((now.mtime(), now.mode() & 0o777), (1000, 0o711));
        // What the process did itself stays.
        etc.set_permissions(PermissionsExt::from_mode(0o700)).unwrap();
        etc.set_modified(SystemTime::now()).unwrap();
        stubs
            .uncover(&upper, SystemTime::now() - std::time::Duration::from_secs(60))
            .unwrap();
        let now = etc.metadata().unwrap();
        assert!(now.mtime() > 1000);
        assert_eq!(now.mode() & 0o777, 0o700);
    }

    #[test]
    fn only_what_was_made_for_mounts_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (root, upper) = (dir.path().join("root"), dir.path().join("upper"));
        for path in ["run", "srv"] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        for path in ["run/secrets", "kept/in", "srv"] {
            std::fs::create_dir_all(upper.join(path)).unwrap();
        }
        // As overlayfs copies a directory up: with the attributes it had, and a new time.
        std::fs::write(upper.join("run/secrets/id"), "").unwrap();
        std::fs::write(upper.join("kept/file"), "x").unwrap();
        std::fs::write(upper.join("srv/written"), "").unwrap();
        let targets = ["/run/secrets/id", "/kept/in", "/srv/written/below"].map(str::to_owned);
        let stubs = Stubs::new(tree::open_root(&root).unwrap(), targets);
        stubs.clean(&upper).unwrap();
        assert!(!upper.join("run").exists());
        assert!(upper.join("kept/file").exists() && !upper.join("kept/in").exists());
        assert!(upper.join("srv/written").exists());
    }
}
