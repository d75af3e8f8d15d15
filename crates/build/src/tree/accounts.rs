//! `--chown`: names looked up in the root's own account files.

use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::OFlags;

use super::open_in;
use crate::error::{Error, Result};

/// The largest account file that is read.
const MAX_FILE: u64 = 8 << 20;

/// What `user[:group]` means in a root. A number without a group is the group, too; a name has that of its entry.
pub(crate) fn owner(root: Option<BorrowedFd<'_>>, text: &str) -> Result<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let (uid, mut gid) = match user.parse::<u32>() {
        _ if user.is_empty() => (0, 0),
        Ok(number) => (number, number),
        Err(_) => entry(root, "etc/passwd", user, |fields| {
            Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
        })?
        .ok_or_else(|| Error::not_found(format!("unable to find user {user}: the root's /etc/passwd does not have it; add it in an earlier RUN, or use a number")))?,
    };
    if let Some(group) = group {
        gid = match group.parse::<u32>() {
            Ok(number) => number,
            Err(_) => entry(root, "etc/group", group, |fields| fields.get(2)?.parse().ok())?
                .ok_or_else(|| Error::not_found(format!("unable to find group {group}: the root's /etc/group does not have it; add it in an earlier RUN, or use a number")))?,
        };
    }
    Ok((uid, gid))
}

fn entry<T>(
    root: Option<BorrowedFd<'_>>,
    file: &str,
    name: &str,
    read: impl Fn(&[&str]) -> Option<T>,
) -> Result<Option<T>> {
    let Some(root) = root else { return Ok(None) };
    let fd = match open_in(root, file.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Error::io(format!("cannot open /{file} of the root"), error)),
    };
    let mut text = Vec::new();
    std::fs::File::from(fd)
        .take(MAX_FILE)
        .read_to_end(&mut text)
        .map_err(|error| Error::io(format!("cannot read /{file} of the root"), error))?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    Ok(lines.find_map(|fields| {
        if fields.first() == Some(&name) {
            read(&fields)
        } else {
            None
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn names_and_numbers() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::fs::write(
            directory.path().join("etc/passwd"),
            "root:x:0:0::/:\nbad\nweb:x:33:44::/:\n",
        )
        .unwrap();
        std::fs::write(directory.path().join("etc/group"), "web:x:55:\n").unwrap();
        let root = super::super::open_root(directory.path()).unwrap();
        let owner = |text: &str| owner(Some(root.as_fd()), text);
        assert_eq!(owner("web").unwrap(), (33, 44));
        assert_eq!(owner("web:web").unwrap(), (33, 55));
        assert_eq!(owner("7").unwrap(), (7, 7));
        assert_eq!(owner("7:8").unwrap(), (7, 8));
        assert!(owner("nobody").is_err());
        assert!(owner("0:nobody").is_err());
    }
}
