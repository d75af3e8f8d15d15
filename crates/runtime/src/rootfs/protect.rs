//! What the container must not read (`maskedPaths`) or write (`readonlyPaths`).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::mounts::{attach, copy_of, exists, new_file_system};
use super::options::Recursion;
use super::resolve::is_directory;
use crate::error::Context;
use crate::sys::mount_setattr::{MountAttr, attr, mount_setattr};
use crate::{Error, Result};

/// Hides paths: files behind the null device, directories behind an empty read-only file system.
///
/// The null device is the host's, opened before anything of the container ran and checked for what it is: a container
/// that replaces its own `/dev/null` gains nothing (CVE-2025-31133).
pub struct Masker {
    null: OwnedFd,
    empty: Option<OwnedFd>,
}

impl Masker {
    /// To be called while the host's `/dev` is still reachable.
    ///
    /// # Errors
    /// When `/dev/null` is not the null device.
    pub fn new() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let null = rustix::fs::open("/dev/null", flags, Mode::empty()).context(|| "open /dev/null")?;
        let stat = rustix::fs::fstat(&null).context(|| "look at /dev/null")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
            || stat.st_rdev != rustix::fs::makedev(1, 3)
        {
            return Err(Error::invalid(
                "the host's /dev/null is not the null device: repair /dev first",
            ));
        }
        Ok(Self { null, empty: None })
    }

    /// Hides `path`; one that does not exist needs no hiding.
    ///
    /// # Errors
    /// When the mount fails.
    pub fn mask(&mut self, root: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let failed = || format!("mask {}", path.display());
        let Some(target) = exists(root, path).context(failed)? else {
            return Ok(());
        };
        let cover = if is_directory(&target).context(failed)? {
            if self.empty.is_none() {
                let few = [
                    ("nr_inodes".to_owned(), Some("2".to_owned())),
                    ("size".to_owned(), Some("4k".to_owned())),
                ];
                self.empty = Some(new_file_system(
                    "tmpfs",
                    "tmpfs",
                    &few,
                    attr::RDONLY | attr::NOSUID | attr::NODEV,
                )?);
            }
            let empty = self
                .empty
                .as_ref()
                .map_or(Err(Errno::INVAL), |empty| copy_of(empty, Recursion::One));
            match empty {
                Ok(copy) => copy,
                // Kernels before 6.15 do not copy a mount that is attached nowhere.
                Err(_) => self.empty.take().ok_or_else(|| Error::invalid(failed()))?,
            }
        } else {
            let copy = copy_of(&self.null, Recursion::One).context(failed)?;
            // It is the host's own node: read-only, so that the container's root cannot change its owner or its mode.
            // The device itself can be written to as ever.
            mount_setattr(
                &copy,
                false,
                &MountAttr {
                    set: attr::RDONLY,
                    ..MountAttr::default()
                },
            )
            .context(failed)?;
            copy
        };
        attach(cover, target).context(failed)
    }
}

/// Makes `path` and what is mounted below it read-only; one that does not exist needs nothing.
///
/// # Errors
/// When the mount fails.
pub fn make_readonly(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let failed = || format!("make {} read-only", path.display());
    let Some(target) = exists(root, path).context(failed)? else {
        return Ok(());
    };
    let copy = copy_of(&target, Recursion::All).context(failed)?;
    mount_setattr(
        &copy,
        true,
        &MountAttr {
            set: attr::RDONLY,
            ..MountAttr::default()
        },
    )
    .context(failed)?;
    attach(copy, target).context(failed)
}
