//! Extended attributes of files that come from or go into archives.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::error::{Error, Result, show};

/// What marks a directory whose lower directories overlayfs does not show.
pub(super) const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";
/// The same without privileges.
pub(super) const OVERLAY_OPAQUE_USER: &str = "user.overlay.opaque";
/// The kernel's limit for one value (XATTR_SIZE_MAX).
const MAX_VALUE: usize = 64 << 10;

/// Whether an attribute from an archive is taken over.
///
/// `trusted.*` is the host administrator's and overlayfs's own (an archive could redirect a directory to
/// another part of a lower layer); `user.overlay.*` is the same for rootless overlays; labels of security
/// modules belong to the host's policy.
pub(crate) fn accepted(name: &[u8]) -> bool {
    name == b"security.capability"
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// What an attribute is set on.
pub(crate) enum Target<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// Something in a directory, never followed.
    Name(BorrowedFd<'a>, &'a [u8]),
}

/// Sets the accepted ones of an entry's attributes.
pub(crate) fn apply(target: &Target<'_>, xattrs: &[(Vec<u8>, Vec<u8>)], path: &[u8]) -> Result<()> {
    for (name, value) in xattrs {
        if !accepted(name) {
            tracing::debug!(
                path = show(path),
                name = show(name),
                "extended attribute from an archive dropped"
            );
            continue;
        }
        let result = match target {
            Target::Open(fd) => rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()),
            Target::Name(dir, file) => {
                rustix::fs::lsetxattr(by_name(*dir, file), &name[..], value, XattrFlags::empty())
            }
        };
        match result {
            Ok(()) => {}
            // The file system has none, or this type of file cannot (user.* on a symlink): no reason to fail.
            Err(Errno::OPNOTSUPP) => {}
            Err(Errno::PERM) if matches!(target, Target::Name(..)) => {}
            Err(e) => {
                return Err(Error::io(
                    format!("cannot set attribute {} of {}", show(name), show(path)),
                    e,
                ));
            }
        }
    }
    Ok(())
}

/// The attributes of something in a directory, sorted, without those that never leave this host.
pub(crate) fn read(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = by_name(dir, name);
    // Nearly always there are none or few; the large buffer (XATTR_LIST_MAX) is for the rest.
    let mut list = vec![0u8; 512];
    let mut listed = rustix::fs::llistxattr(&path[..], &mut list[..]);
    if listed == Err(Errno::RANGE) {
        list = vec![0u8; 64 << 10];
        listed = rustix::fs::llistxattr(&path[..], &mut list[..]);
    }
    let length = match listed {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(Vec::new()),
        Err(e) => {
            return Err(Error::io(
                format!("cannot list the attributes of {}", show(name)),
                e,
            ));
        }
    };
    let mut out = Vec::new();
    for attribute in list[..length]
        .split(|&b| b == 0)
        .filter(|n| !n.is_empty() && accepted(n))
    {
        let mut value = vec![0u8; MAX_VALUE];
        match rustix::fs::lgetxattr(&path[..], attribute, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                out.push((attribute.to_vec(), value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => {
                return Err(Error::io(
                    format!("cannot read attribute {} of {}", show(attribute), show(name)),
                    e,
                ));
            }
        }
    }
    out.sort();
    Ok(out)
}

/// Whether a directory hides what is below it.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    [OVERLAY_OPAQUE, OVERLAY_OPAQUE_USER].iter().any(|name| {
        let mut value = [0u8; 4];
        let path = by_name(dir, b".");
        matches!(rustix::fs::lgetxattr(&path[..], *name, &mut value[..]), Ok(1) if value[0] == b'y')
    })
}

/// Attributes of links and devices can only be reached by path; the parent is pinned by its descriptor and
/// the last component is a single name that the `l…` calls do not follow.
fn by_name(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat()
}

#[cfg(test)]
mod tests {
    use super::accepted;

    #[test]
    fn overlay_and_host_attributes_are_not_accepted() {
        assert!(
            accepted(b"user.a") && accepted(b"security.capability") && accepted(b"system.posix_acl_access")
        );
        for name in [
            "trusted.overlay.opaque",
            "trusted.overlay.redirect",
            "trusted.x",
            "user.overlay.opaque",
            "security.selinux",
            "security.ima",
        ] {
            assert!(!accepted(name.as_bytes()), "{name}");
        }
    }
}
