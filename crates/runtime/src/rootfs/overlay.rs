//! Overlay roots as detached mounts: made with the new mount API, named nowhere.
//!
//! `lowerdir+` (Linux 6.5) takes one layer at a time and has no limit on the total length. Older kernels get the classic
//! comma list, kept short by naming the layers `/proc/self/fd/N`; fsconfig(2) passes at most 255 bytes of it, which
//! is 14 layers. See Documentation/filesystems/overlayfs.rst.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::error::Context;
use crate::shim::Overlay;
use crate::sys::mount_setattr::{MountAttr, mount_setattr};
use crate::{Error, ErrorKind, Result};

/// The longest string fsconfig(2) takes.
const MAX_VALUE: usize = 255;

/// Mounts `overlay` without attaching it anywhere; dropping the descriptor unmounts it.
///
/// With `idmap`, a user namespace, the layers' owners are mapped by it.
///
/// # Errors
/// When a layer is missing, or the kernel or the file system below cannot do overlays.
pub fn overlay(overlay: &Overlay, idmap: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let failed = || "make the container's overlay root".to_owned();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context(failed)?;
    fsconfig_set_string(&context, "source", "overlay").context(failed)?;
    // Held until the superblock exists.
    let mut mapped = Vec::new();
    if let Some(user) = idmap {
        for lower in &overlay.lower {
            let layer = idmapped(lower, user)?;
            fsconfig_set_fd(&context, "lowerdir+", &layer).context(failed)?;
            mapped.push(layer);
        }
        if let (Some(upper), Some(work)) = (&overlay.upper, &overlay.work) {
            // Both must be on one mount: their common parent is mapped and they are opened below it.
            let parent = upper
                .parent()
                .filter(|parent| work.parent() == Some(parent))
                .ok_or_else(|| {
                    Error::invalid(
                        "the writable layer and its work directory must lie side by side to be idmapped",
                    )
                })?;
            let parent = idmapped(parent, user)?;
            for (key, dir) in [("upperdir", upper), ("workdir", work)] {
                let name = dir.file_name().unwrap_or_default();
                let dir = rustix::fs::openat(&parent, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .context(failed)?;
                fsconfig_set_fd(&context, key, &dir).context(failed)?;
                mapped.push(dir);
            }
            mapped.push(parent);
        }
    } else {
        set_layers(&context, overlay, &mut mapped)?;
    }
    fsconfig_create(&context).map_err(|errno| explain(errno, overlay))?;
    let attributes = if overlay.upper.is_none() {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context(failed)
}

fn set_layers(context: &OwnedFd, overlay: &Overlay, held: &mut Vec<OwnedFd>) -> Result<()> {
    let failed = || "make the container's overlay root".to_owned();
    let mut plus = true;
    for lower in &overlay.lower {
        match fsconfig_set_string(context, "lowerdir+", lower) {
            Ok(()) => {}
            Err(Errno::INVAL) if held.is_empty() => {
                plus = false;
                break;
            }
            Err(errno) => {
                return Err(errno).context(|| format!("use the layer {}", lower.display()));
            }
        }
    }
    if !plus {
        let mut list = String::new();
        for lower in &overlay.lower {
            let fd = rustix::fs::open(
                lower,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .context(|| format!("open the layer {}", lower.display()))?;
            if !list.is_empty() {
                list.push(':');
            }
            list.push_str(&format!("/proc/self/fd/{}", fd.as_raw_fd()));
            held.push(fd);
        }
        if list.len() > MAX_VALUE {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the image has {} layers, more than kernels before 6.5 can stack: squash the image or use a newer kernel",
                    overlay.lower.len()
                ),
            ));
        }
        fsconfig_set_string(context, "lowerdir", list.as_str()).context(failed)?;
    }
    for (key, dir) in [("upperdir", &overlay.upper), ("workdir", &overlay.work)] {
        let Some(dir) = dir else { continue };
        if dir.as_os_str().len() <= MAX_VALUE {
            fsconfig_set_string(context, key, dir).context(|| format!("use {} as {key}", dir.display()))?;
        } else {
            let fd = rustix::fs::open(
                dir,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .context(|| format!("open {}", dir.display()))?;
            let short = format!("/proc/self/fd/{}", fd.as_raw_fd());
            fsconfig_set_string(context, key, short.as_str()).context(failed)?;
            held.push(fd);
        }
    }
    Ok(())
}

/// A detached copy of the mount at `dir` whose owners are mapped by the user namespace.
fn idmapped(dir: &Path, user: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy =
        open_tree(rustix::fs::CWD, dir, flags).context(|| format!("copy the mount of {}", dir.display()))?;
    mount_setattr(
        copy.as_fd(),
        false,
        &MountAttr {
            idmap: Some(user),
            ..MountAttr::default()
        },
    )
    .context(|| {
        format!(
            "map the owners of {} (the file system may not support idmapped mounts)",
            dir.display()
        )
    })?;
    Ok(copy)
}

fn explain(errno: Errno, overlay: &Overlay) -> Error {
    if errno == Errno::NOENT {
        let missing = overlay
            .lower
            .iter()
            .chain(&overlay.upper)
            .chain(&overlay.work)
            .find(|dir| !dir.exists());
        if let Some(dir) = missing {
            return Error::new(
                ErrorKind::NotFound,
                format!(
                    "the layer {} is missing: load or pull the image again",
                    dir.display()
                ),
            );
        }
    }
    Error::with_source(
        ErrorKind::System,
        "mount the container's overlay root (is the state directory on a file system that supports overlays?)",
        std::io::Error::from(errno),
    )
}
