//! Who a container runs as: `user[:group]` looked up in the root's own `/etc/passwd` and `/etc/group`.
//!
//! Behaviour is Docker's: a name is looked up; a number need not exist; a user's supplementary groups are those that
//! list them, unless a group is given, and the group itself. Lines that make no sense are skipped.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use vessel_runtime::rootfs::resolve::open_in_root;

use crate::error::Context;
use crate::{Error, Result};

/// The largest account file that is read.
const MAX_FILE: u64 = 8 << 20;
/// The largest ID Docker takes.
const MAX_ID: u32 = i32::MAX as u32;

/// Account files of a root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// `/etc/passwd`; empty when there is none.
    pub passwd: String,
    /// `/etc/group`; empty when there is none.
    pub group: String,
}

/// Numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
}

impl Accounts {
    /// Reads them below an open root; links are followed inside it only.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn read(root: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            passwd: read(root, "etc/passwd")?,
            group: read(root, "etc/group")?,
        })
    }

    /// What `user[:group]` and the added groups mean.
    ///
    /// # Errors
    /// Names that do not exist, numbers that are too large.
    pub fn identity(&self, user: &str, added: &[String]) -> Result<Identity> {
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (user, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let number = id(user)?;
        let entry = self
            .users()
            .find(|entry| entry.name == user || Some(entry.uid) == number);
        let mut identity = match (&entry, number) {
            (Some(entry), _) => Identity {
                uid: entry.uid,
                gid: entry.gid,
                groups: Vec::new(),
            },
            (None, Some(uid)) => Identity {
                uid,
                ..Identity::default()
            },
            (None, None) => {
                return Err(Error::invalid(format!(
                    "unable to find user {user}: no matching entries in passwd file"
                )));
            }
        };
        match (group, &entry) {
            (Some(group), _) => identity.gid = self.group_id(group)?,
            (None, Some(entry)) => {
                identity.groups = self
                    .groups()
                    .filter(|group| group.has_member(entry.name))
                    .map(|group| group.gid)
                    .collect();
            }
            (None, None) => {}
        }
        for group in added {
            identity.groups.push(self.group_id(group)?);
        }
        // As in Docker since CVE-2022-36109: who takes another group by a set-group-ID program keeps this one, so that
        // files that give the group less than everybody stay closed.
        identity.groups.push(identity.gid);
        identity.groups.sort_unstable();
        identity.groups.dedup();
        Ok(identity)
    }

    fn group_id(&self, group: &str) -> Result<u32> {
        let number = id(group)?;
        match (self.groups().find(|entry| entry.name == group), number) {
            (Some(entry), _) => Ok(entry.gid),
            (None, Some(gid)) => Ok(gid),
            (None, None) => Err(Error::invalid(format!(
                "unable to find group {group}: no matching entries in group file"
            ))),
        }
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            Some(User {
                name,
                uid: fields.next()?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            Some(Group {
                name,
                gid: fields.next()?.parse().ok()?,
                members: fields.next().unwrap_or_default(),
            })
        })
    }
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Group<'_> {
    fn has_member(&self, name: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == name)
    }
}

/// The number a text is, if it is one.
fn id(text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(number) if number <= MAX_ID => Ok(Some(number)),
        _ => Err(Error::invalid(format!(
            "{text} is no user or group: uids and gids must be in range 0-{MAX_ID}"
        ))),
    }
}

fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    use rustix::io::Errno;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in_root(root, path.as_ref(), flags, ResolveFlags::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        Err(errno) => return Err(errno).context(|| format!("open the container's /{path}")),
    };
    let kind = rustix::fs::fstat(&file).context(|| format!("look at the container's /{path}"))?;
    if !rustix::fs::FileType::from_raw_mode(kind.st_mode).is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(
        &mut std::io::Read::take(std::fs::File::from(file), MAX_FILE),
        &mut bytes,
    )
    .context(|| format!("read the container's /{path}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads the accounts of a stack of directories, topmost first, by mounting them together out of sight.
///
/// # Errors
/// When the stack cannot be mounted or read.
pub fn read_stack(layers: Vec<std::path::PathBuf>) -> Result<Accounts> {
    Accounts::read(stack(layers)?.as_fd())
}

/// A read-only view of a stack of directories, topmost first, that nobody else sees.
///
/// # Errors
/// When a layer is missing or the kernel refuses.
pub fn stack(layers: Vec<std::path::PathBuf>) -> Result<std::os::fd::OwnedFd> {
    if let [only] = layers.as_slice() {
        // overlayfs wants two layers, or an upper one.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return rustix::fs::open(only, flags, Mode::empty())
            .context(|| format!("open the layer {}", only.display()));
    }
    let overlay = vessel_runtime::shim::Overlay {
        lower: layers,
        upper: None,
        work: None,
        volatile: false,
    };
    Ok(vessel_runtime::rootfs::overlay(&overlay, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# comment\nbad:x:y:z\napp:x:1000:1001::/home/app:\n7:x:70:70::/:".into(),
            group: "root:x:0:\nwheel:x:10:root,app\nstaff:x:50:app\napp:x:1001:\n".into(),
        }
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let accounts = accounts();
        for (text, uid, gid, groups) in [
            ("", 0, 0, vec![0, 10]),
            ("root", 0, 0, vec![0, 10]),
            ("app", 1000, 1001, vec![10, 50, 1001]),
            ("1000", 1000, 1001, vec![10, 50, 1001]),
            ("app:staff", 1000, 50, vec![50]),
            ("app:", 1000, 1001, vec![10, 50, 1001]),
            ("1234", 1234, 0, vec![0]),
            ("1234:5678", 1234, 5678, vec![5678]),
            (":wheel", 0, 10, vec![10]),
            // A user whose name is a number wins over the number.
            ("7", 70, 70, vec![70]),
        ] {
            assert_eq!(
                accounts.identity(text, &[]).unwrap(),
                Identity { uid, gid, groups },
                "{text:?}"
            );
        }
        let added = accounts.identity("app", &["staff".into(), "999".into()]).unwrap();
        assert_eq!(added.groups, [10, 50, 999, 1001]);
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let accounts = accounts();
        for (text, needle) in [
            ("nobody", "unable to find user nobody"),
            ("app:none", "unable to find group none"),
            ("4294967296", "must be in range"),
            ("2147483648", "must be in range"),
        ] {
            let error = accounts.identity(text, &[]).unwrap_err();
            assert!(error.message().contains(needle), "{error}");
        }
    }

    #[test]
    fn links_stay_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("inside"), "x:x:5:5::/:\n").unwrap();
        std::os::unix::fs::symlink("/inside", root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/group", root.path().join("etc/group")).unwrap();
        let fd = std::fs::File::open(root.path()).unwrap();
        let accounts = Accounts::read(fd.as_fd()).unwrap();
        assert_eq!(accounts.identity("x", &[]).unwrap().uid, 5);
        assert_eq!(accounts.group, "");
    }
}
