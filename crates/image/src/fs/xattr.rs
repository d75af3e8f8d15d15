//! Extended attributes of files that come from or go into archives.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result, show};

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
    let mut names = names(dir, name)?;
    names.retain(|name| accepted(name));
    values(dir, name, names)
}

/// What is in an overlay's upper directory, by its attributes.
#[derive(Default)]
pub(crate) struct Upper {
    /// Those that belong into an archive, sorted.
    pub(crate) kept: Vec<(Vec<u8>, Vec<u8>)>,
    /// Notes of overlayfs and of the host's administrator, which a layer does not have.
    pub(crate) stray: Vec<Vec<u8>>,
}

/// The attributes of something in an overlay's upper directory.
///
/// What refers to a lower layer by name (a directory that was renamed with `redirect_dir`, a file copied up with
/// `metacopy`) is no content of its own and refused.
pub(crate) fn upper(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Upper> {
    let (kept, other): (Vec<_>, Vec<_>) = names(dir, name)?.into_iter().partition(|name| accepted(name));
    let mut stray = Vec::new();
    for attribute in other {
        if attribute.ends_with(b".overlay.redirect") || attribute.ends_with(b".overlay.metacopy") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} has only a reference to a lower layer ({}); mount the overlay with redirect_dir=off,metacopy=off",
                    show(name),
                    show(&attribute)
                ),
            ));
        }
        let opaque = [OVERLAY_OPAQUE, OVERLAY_OPAQUE_USER].map(str::as_bytes);
        let host = attribute.starts_with(b"trusted.") || attribute.starts_with(b"user.");
        if host && !opaque.contains(&&attribute[..]) {
            stray.push(attribute);
        }
    }
    Ok(Upper {
        kept: values(dir, name, kept)?,
        stray,
    })
}

/// Removes attributes.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &[u8], attributes: &[Vec<u8>]) -> Result<()> {
    for attribute in attributes {
        match rustix::fs::lremovexattr(by_name(dir, name), &attribute[..]) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => {
                return Err(Error::io(
                    format!("cannot remove attribute {} of {}", show(attribute), show(name)),
                    e,
                ));
            }
        }
    }
    Ok(())
}

fn names(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<Vec<u8>>> {
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
    let names = list[..length].split(|&b| b == 0).filter(|n| !n.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

fn values(dir: BorrowedFd<'_>, name: &[u8], mut attributes: Vec<Vec<u8>>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = by_name(dir, name);
    attributes.sort();
    let mut out = Vec::new();
    for attribute in attributes {
        let mut value = vec![0u8; MAX_VALUE];
        match rustix::fs::lgetxattr(&path[..], &attribute[..], &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                out.push((attribute, value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => {
                return Err(Error::io(
                    format!("cannot read attribute {} of {}", show(&attribute), show(name)),
                    e,
                ));
            }
        }
    }
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
