//! The container's user, looked up in the container's own files as the runtime does when it starts a program.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::OFlags;

use super::path::open;
use crate::{Error, Result};

/// The most that is read of a container's `passwd` or `group`.
const MAX_FILE: u64 = 4 << 20;

/// The IDs of `user[:group]`, names or numbers. Without a group it is the user's, or root's for a bare number.
pub(super) fn resolve(root: BorrowedFd<'_>, text: &str) -> Result<(u32, u32)> {
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let passwd = read(root, "/etc/passwd");
    let entry = find(&passwd, user);
    let uid = match (&entry, user.parse::<u32>()) {
        (Some(entry), _) => number(entry, 2),
        (None, Ok(uid)) => Some(uid),
        (None, Err(_)) => None,
    };
    let uid = uid.ok_or_else(|| {
        Error::invalid(format!(
            "unable to find user {user}: no matching entries in passwd file"
        ))
    })?;
    let gid = match group.filter(|group| !group.is_empty()) {
        None => entry.and_then(|entry| number(&entry, 3)).unwrap_or_default(),
        Some(group) => {
            let groups = read(root, "/etc/group");
            let found = find(&groups, group)
                .and_then(|entry| number(&entry, 2))
                .or_else(|| group.parse().ok());
            found.ok_or_else(|| {
                Error::invalid(format!(
                    "unable to find group {group}: no matching entries in group file"
                ))
            })?
        }
    };
    Ok((uid, gid))
}

/// The fields of the line with this name or, failing that, this number.
fn find<'a>(text: &'a str, wanted: &str) -> Option<Vec<&'a str>> {
    let lines = || text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines()
        .find(|fields| fields[0] == wanted)
        .or_else(|| lines().find(|fields| fields.get(2) == Some(&wanted)))
}

fn number(fields: &[&str], at: usize) -> Option<u32> {
    fields.get(at)?.parse().ok()
}

/// A file that is missing, special or unreadable has no entries.
fn read(root: BorrowedFd<'_>, path: &str) -> String {
    let mut text = Vec::new();
    let Ok(file) = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) else {
        return String::new();
    };
    let file = File::from(file);
    if file.metadata().is_ok_and(|found| found.is_file()) {
        // What could be read before an error is as good as a shorter file.
        let _ = file.take(MAX_FILE).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn users_and_groups() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::fs::write(
            directory.path().join("etc/passwd"),
            "root:x:0:0::/:/bin/sh\nwww:x:33:34::/:\n7:x:70:71::/:\n",
        )
        .unwrap();
        std::fs::write(directory.path().join("etc/group"), "root:x:0:\nstaff:x:50:\n").unwrap();
        let root = super::super::path::open_directory(directory.path()).unwrap();
        let resolve = |text: &str| resolve(root.as_fd(), text).ok();
        assert_eq!(resolve("www"), Some((33, 34)));
        assert_eq!(resolve("33"), Some((33, 34)));
        assert_eq!(resolve("www:staff"), Some((33, 50)));
        assert_eq!(resolve("1000"), Some((1000, 0)));
        assert_eq!(resolve("1000:2000"), Some((1000, 2000)));
        assert_eq!(resolve("7"), Some((70, 71)));
        assert_eq!(resolve("nobody-here"), None);
        assert_eq!(resolve("www:nobody-here"), None);
    }
}
