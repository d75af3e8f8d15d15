//! Paths of clients, and what they mean inside a root.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use vessel_runtime::rootfs::resolve::open_in_root;

/// Links followed before a path is taken for a loop, as the kernel does.
const MAX_LINKS: usize = 40;

/// A path as a client wrote it: cleaned, absolute, with the trailing `/` or `/.` that asks to follow the last link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerPath {
    full: String,
}

impl ContainerPath {
    /// Cleans a path as Go's `path.Clean` does, and keeps what trails.
    pub(super) fn parse(text: &str) -> Self {
        let mut parts: Vec<&str> = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                // Lexically, as Docker does: `/link/..` is `/`.
                ".." => drop(parts.pop()),
                name => parts.push(name),
            }
        }
        let mut full = format!("/{}", parts.join("/"));
        if !parts.is_empty() {
            if text.ends_with("/.") {
                full.push_str("/.");
            } else if text.ends_with('/') {
                full.push('/');
            }
        }
        Self { full }
    }

    /// The path.
    pub(super) fn full(&self) -> &str {
        &self.full
    }

    /// Whether a link at the end is followed.
    pub(super) fn follows(&self) -> bool {
        self.full.ends_with('/') || self.full.ends_with("/.")
    }

    /// The last component as it was written: `.` for `/a/.`, `/` for the root.
    pub(super) fn name(&self) -> &str {
        let trimmed = self.full.trim_end_matches('/');
        match trimmed.rsplit_once('/') {
            Some((_, name)) => name,
            None => "/",
        }
    }
}

/// Opens a path inside a root.
pub(super) fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_in_root(root, Path::new(path), flags, ResolveFlags::empty())
}

/// The path in the root that a link at the end of `path` leads to, all links resolved; it need not exist. Where the
/// container changes its links meanwhile the answer may be of another moment; it is only told to the client.
pub(super) fn target(root: BorrowedFd<'_>, path: &str) -> Result<String, Errno> {
    let mut todo: VecDeque<String> = path.split('/').map(str::to_owned).collect();
    let mut done: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.pop();
                continue;
            }
            _ => {}
        }
        let parent = open(
            root,
            &format!("/{}", done.join("/")),
            OFlags::PATH | OFlags::DIRECTORY,
        );
        let link =
            parent.and_then(|parent| rustix::fs::readlinkat(parent.as_fd(), part.as_str(), Vec::new()));
        match link {
            Ok(link) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let link = link.to_string_lossy().into_owned();
                if link.starts_with('/') {
                    done.clear();
                }
                for part in link.rsplit('/') {
                    todo.push_front(part.to_owned());
                }
            }
            // No link, or nothing there: then the rest is what it says.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => done.push(part),
            Err(errno) => return Err(errno),
        }
    }
    Ok(format!("/{}", done.join("/")))
}

/// A directory of the host that the engine itself made.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_are_cleaned_as_docker_does() {
        for (text, full, name, follows) in [
            ("/", "/", "/", true),
            ("", "/", "/", true),
            ("/.", "/", "/", true),
            ("a", "/a", "a", false),
            ("/a/b", "/a/b", "b", false),
            ("/a/b/", "/a/b/", "b", true),
            ("/a/b/.", "/a/b/.", ".", true),
            ("/a//./b", "/a/b", "b", false),
            ("../../etc/passwd", "/etc/passwd", "passwd", false),
            ("/a/../..", "/", "/", true),
            ("/a/b/..", "/a", "a", false),
        ] {
            let path = ContainerPath::parse(text);
            assert_eq!(
                (path.full(), path.name(), path.follows()),
                (full, name, follows),
                "{text}"
            );
        }
    }

    #[test]
    fn targets_stay_inside() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        symlink("/a/b", at("absolute")).unwrap();
        symlink("../../../a", at("a/up")).unwrap();
        symlink("absolute/missing/x", at("dangling")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let root = open_directory(directory.path()).unwrap();
        let target = |path: &str| target(root.as_fd(), path);
        assert_eq!(target("/absolute").unwrap(), "/a/b");
        assert_eq!(target("/a/up").unwrap(), "/a");
        assert_eq!(target("/dangling").unwrap(), "/a/b/missing/x");
        assert_eq!(target("/absolute/../up").unwrap(), "/a");
        assert_eq!(target("/loop").unwrap_err(), Errno::LOOP);
    }

    proptest! {
        #[test]
        fn a_path_never_leads_up(text in "[a./]{0,30}") {
            let path = ContainerPath::parse(&text);
            prop_assert!(path.full().starts_with('/'));
            prop_assert!(!path.full().split('/').any(|part| part == ".."));
        }
    }
}
