//! Directories that are watched, with those below them.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// However much changes, it is told after so long.
const LONGEST: Duration = Duration::from_secs(2);
/// The deepest directory that is looked into.
const MAX_DEPTH: usize = 64;

/// What changed.
#[derive(Debug)]
pub enum Changes {
    /// These paths.
    Some(BTreeSet<PathBuf>),
    /// More than could be told.
    Everything,
}

/// Watched directories.
pub struct Tree {
    inotify: OwnedFd,
    directories: HashMap<i32, PathBuf>,
    /// Single files, of which the directory is watched and nothing else in it counts.
    files: BTreeSet<PathBuf>,
    roots: BTreeSet<PathBuf>,
}

impl Tree {
    /// None yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            directories: HashMap::new(),
            files: BTreeSet::new(),
            roots: BTreeSet::new(),
        })
    }

    /// Watches a file, or a directory with those below it, but what is ignored.
    pub fn add(&mut self, root: &Path, ignored: &dyn Fn(&Path) -> bool) -> io::Result<()> {
        if root.is_dir() {
            self.roots.insert(root.to_owned());
            return self.descend(root, ignored, &mut BTreeSet::new(), 0);
        }
        self.files.insert(root.to_owned());
        match root.parent() {
            Some(parent) => self.watch(parent),
            None => Ok(()),
        }
    }

    fn watch(&mut self, directory: &Path) -> io::Result<()> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        let wd = inotify::add_watch(&self.inotify, directory, flags)?;
        self.directories.insert(wd, directory.to_owned());
        Ok(())
    }

    /// Watches a directory and those below it; what is in them already is gathered.
    fn descend(
        &mut self,
        directory: &Path,
        ignored: &dyn Fn(&Path) -> bool,
        found: &mut BTreeSet<PathBuf>,
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH || ignored(directory) {
            return Ok(());
        }
        match self.watch(directory) {
            // It went meanwhile, or may not be read.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                return Ok(());
            }
            other => other?,
        }
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.descend(&path, ignored, found, depth + 1)?;
            } else {
                found.insert(path);
            }
        }
        Ok(())
    }

    /// All files below a root.
    pub fn files(&self, root: &Path) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        if root.is_file() {
            found.insert(root.to_owned());
        }
        for directory in self
            .directories
            .values()
            .filter(|directory| directory.starts_with(root))
        {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
                    found.insert(entry.path());
                }
            }
        }
        found
    }

    /// Waits for changes, and then until there were none for a moment.
    pub fn next(&mut self, quiet: Duration, ignored: &dyn Fn(&Path) -> bool) -> io::Result<Changes> {
        let mut found = BTreeSet::new();
        let mut begun: Option<Instant> = None;
        loop {
            let timeout = begun.map(|_| Timespec {
                tv_sec: i64::try_from(quiet.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(quiet.subsec_nanos()),
            });
            let ready = {
                let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
                match poll(&mut fds, timeout.as_ref()) {
                    Err(rustix::io::Errno::INTR) => continue,
                    other => other?,
                }
            };
            let late = begun.is_some_and(|begun| begun.elapsed() > LONGEST);
            if (ready == 0 || late) && !found.is_empty() {
                return Ok(Changes::Some(found));
            }
            if ready == 0 {
                begun = None;
                continue;
            }
            if self.read(&mut found, ignored)? {
                return Ok(Changes::Everything);
            }
            if !found.is_empty() {
                begun.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Reads what is there; `true` when the kernel could not keep all.
    fn read(&mut self, found: &mut BTreeSet<PathBuf>, ignored: &dyn Fn(&Path) -> bool) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 << 10];
        let mut seen: Vec<(i32, ReadFlags, Option<PathBuf>)> = Vec::new();
        {
            let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let name = event
                            .file_name()
                            .map(|name| PathBuf::from(OsStr::from_bytes(name.to_bytes())));
                        seen.push((event.wd(), event.events(), name));
                    }
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        for (wd, flags, name) in seen {
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                return Ok(true);
            }
            if flags.contains(ReadFlags::IGNORED) {
                self.directories.remove(&wd);
                continue;
            }
            let Some(path) = self
                .directories
                .get(&wd)
                .zip(name)
                .map(|(directory, name)| directory.join(name))
            else {
                continue;
            };
            if flags.contains(ReadFlags::ISDIR) && flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
                self.descend(&path, ignored, found, 0)?;
                continue;
            }
            // A file that is made is told of again when it is written.
            let is_ours = self.files.contains(&path) || self.roots.iter().any(|root| path.starts_with(root));
            if is_ours {
                found.insert(path);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir_all(root.join("skip")).unwrap();
        let mut tree = Tree::new().unwrap();
        let ignored = |path: &Path| path.ends_with("skip");
        tree.add(&root, &ignored).unwrap();
        std::fs::write(root.join("a/b/one"), "1").unwrap();
        std::fs::write(root.join("skip/no"), "1").unwrap();
        let next = |tree: &mut Tree| match tree.next(Duration::from_millis(50), &ignored).unwrap() {
            Changes::Some(paths) => paths,
            Changes::Everything => panic!("an overflow"),
        };
        assert_eq!(next(&mut tree), BTreeSet::from([root.join("a/b/one")]));
        // Directories that come later are watched, too, with what is in them.
        std::fs::create_dir_all(root.join("new/deep")).unwrap();
        std::fs::write(root.join("new/deep/two"), "2").unwrap();
        assert_eq!(next(&mut tree), BTreeSet::from([root.join("new/deep/two")]));
        std::fs::remove_file(root.join("a/b/one")).unwrap();
        assert_eq!(next(&mut tree), BTreeSet::from([root.join("a/b/one")]));
        assert_eq!(tree.files(&root), BTreeSet::from([root.join("new/deep/two")]));
    }
}
