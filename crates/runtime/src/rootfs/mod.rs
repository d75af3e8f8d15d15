//! The container's root: made of detached mounts, attached only inside the container's mount namespace.
//!
//! Order, as the runtime specification asks: root, mounts in their order, devices, `createContainer` hooks (by the
//! caller), `pivot_root`, then what protects it. Nothing here is ever visible to the host: the root is attached over
//! `/` of the new mount namespace and the old root is detached from below it.

mod cgroups;
mod devices;
mod mounts;
mod options;
mod overlay;
mod protect;
pub mod resolve;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

pub use cgroups::mount_cgroup;
pub use devices::{DevOwner, populate as populate_devices};
pub use mounts::{
    attach, bind_source, bind_sources, copy_of, is_bind, mount, new_file_system, settle_source,
};
pub use options::{Options, Recursion};
pub use overlay::overlay;
pub use protect::{Masker, make_readonly};

use crate::error::Context;
use crate::sys::mount_setattr::{MountAttr, Propagation, attr, mount_setattr};
use crate::{Error, Result};

/// Makes `/` of this (new) mount namespace independent of the host as the configuration's `rootfsPropagation` says.
pub fn isolate(propagation: &str) -> Result<()> {
    // Mounts inside never travel outward unless asked for; mounts of the host travel inward only for `slave` volumes,
    // which need the host's side to be a master: so the tree becomes a slave, as runc has it.
    let flags = match propagation {
        "shared" | "rshared" => MountPropagationFlags::SHARED,
        "private" | "rprivate" => MountPropagationFlags::PRIVATE,
        "unbindable" | "runbindable" => MountPropagationFlags::PRIVATE,
        _ => MountPropagationFlags::DOWNSTREAM,
    };
    rustix::mount::mount_change("/", flags | MountPropagationFlags::REC)
        .context(|| "separate the container's mounts from the host's")?;
    if flags == MountPropagationFlags::SHARED {
        // The mount the root is attached to must not be shared, or pivot_root refuses and the root leaks out.
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE)
            .context(|| "separate the container's root from the host's")?;
    }
    Ok(())
}

/// A detached mount of a directory, for roots that are not overlays.
pub fn directory(path: &Path, propagation: &str) -> Result<OwnedFd> {
    let failed = || format!("bind the root file system {}", path.display());
    let fd = rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open the root file system {}", path.display()))?;
    let copy = copy_of(fd, Recursion::All).context(failed)?;
    if matches!(propagation, "shared" | "rshared") {
        // As a peer of the host's mount it would hand on every mount made below it now.
        let change = MountAttr {
            propagation: Some(Propagation::Private),
            ..MountAttr::default()
        };
        mount_setattr(&copy, false, &change).context(failed)?;
    }
    Ok(copy)
}

/// Makes sure that `path` is a directory inside the root, with its parents.
///
/// # Errors
/// When it is something else, or leads through the kernel's links to descriptors (`/proc/PID/fd`, `cwd`, `root`).
pub fn make_directory(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    match resolve::lookup(root, path) {
        Ok(found) if resolve::is_directory(&found).is_ok_and(|is| is) => Ok(()),
        Ok(_) => Err(Error::invalid("it is not a directory in the image")),
        Err(Errno::LOOP) => Err(Error::invalid(
            "it leads out of the container, or its links go round in circles",
        )),
        Err(_) => resolve::mount_target(root, path, resolve::TargetKind::Directory).map(drop),
    }
}

/// Attaches the detached `root` over `/` and returns a descriptor of it to which paths are resolved.
///
/// With `at` it is there, where the host's paths lead to it, until [`cover`] moves it over `/`. A user namespace may not
/// get there; then it lies over `/` at once.
pub fn attach_root(root: &OwnedFd, at: Option<&Path>) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = match at.map(|at| (at, rustix::fs::open(at, flags, Mode::empty()))) {
        Some((_, Ok(place))) => place,
        Some((at, Err(errno))) if errno != Errno::ACCESS => {
            return Err(errno).context(|| format!("open {} for the container's root", at.display()));
        }
        _ => rustix::fs::open("/", flags, Mode::empty()).context(|| "open /")?,
    };
    attach(root, &place).context(|| "attach the container's root")?;
    rustix::fs::openat(
        root,
        ".",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open the container's root")
}

/// Moves an attached root over `/`, where everything after expects it.
pub fn cover(root: BorrowedFd<'_>) -> Result<()> {
    let slash = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open /")?;
    attach(root, &slash).context(|| "move the container's root over /")
}

/// Makes the attached root `/` and detaches the host's tree from this namespace.
pub fn enter(root: BorrowedFd<'_>) -> Result<()> {
    let old = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open /")?;
    rustix::process::fchdir(root).context(|| "enter the container's root")?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            // The old root now lies over the new one, and "." would be the new one: mounts of volumes that are shared with
            // the host must stay so. Copies of the old root elsewhere must not notice its detaching.
            rustix::process::fchdir(&old).context(|| "enter the old root")?;
            rustix::mount::mount_change(
                ".",
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
            )
            .context(|| "separate the old root")?;
            rustix::mount::unmount(".", UnmountFlags::DETACH).context(|| "detach the old root")?;
        }
        // The host's root is the initial ramfs, which cannot be pivoted away: the root was attached over it, which is all
        // that can be had there.
        Err(Errno::INVAL) if on_initial_ramfs() => {
            rustix::process::chroot(".").context(|| "change to the container's root")?;
        }
        Err(errno) => return Err(errno).context(|| "make the container's root the root directory"),
    }
    rustix::process::chdir("/").context(|| "enter the container's root")
}

/// Whether `/` of this process, which is still the host's, is a file system in memory.
fn on_initial_ramfs() -> bool {
    const RAMFS_MAGIC: rustix::fs::FsWord = 0x8584_58f6;
    const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
    rustix::fs::statfs("/").is_ok_and(|found| matches!(found.f_type, RAMFS_MAGIC | TMPFS_MAGIC))
}

/// Applies `root.readonly` and `rootfsPropagation` to the entered root.
pub fn finish(readonly: bool, propagation: &str) -> Result<()> {
    let flags = match propagation {
        "shared" | "rshared" => Some(MountPropagationFlags::SHARED),
        "slave" | "rslave" => Some(MountPropagationFlags::DOWNSTREAM),
        "private" | "rprivate" => Some(MountPropagationFlags::PRIVATE),
        "unbindable" | "runbindable" => Some(MountPropagationFlags::UNBINDABLE),
        _ => None,
    };
    if let Some(flags) = flags {
        let rec = if propagation.starts_with('r') {
            MountPropagationFlags::REC
        } else {
            MountPropagationFlags::empty()
        };
        rustix::mount::mount_change("/", flags | rec).context(|| "set the root's propagation")?;
    }
    if readonly {
        let root =
            rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(|| "open /")?;
        mount_setattr(
            root.as_fd(),
            false,
            &MountAttr {
                set: attr::RDONLY,
                ..MountAttr::default()
            },
        )
        .context(|| "make the root read-only")?;
    }
    Ok(())
}

/// A private view of `/proc` that the container cannot have tampered with, for what has to be written there
/// (CVE-2025-52881).
pub fn private_proc() -> Result<OwnedFd> {
    new_file_system("proc", "proc", &[], attr::NOSUID | attr::NODEV | attr::NOEXEC)
}

/// Writes a kernel parameter of the container's namespaces through [`private_proc`].
pub fn write_sysctl(proc: BorrowedFd<'_>, name: &str, value: &str) -> Result<()> {
    let valid = !name.is_empty()
        && name
            .split(['.', '/'])
            .all(|part| !part.is_empty() && part != "..");
    if !valid {
        return Err(Error::invalid(format!(
            "{name:?} is not the name of a kernel parameter"
        )));
    }
    // As sysctl(8): the separator is the first of '.' and '/' that occurs; the other one stands for itself.
    let path = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    };
    let file = resolve::open_in_root(
        proc,
        &Path::new("sys").join(path),
        OFlags::WRONLY,
        rustix::fs::ResolveFlags::NO_SYMLINKS | rustix::fs::ResolveFlags::NO_XDEV,
    )
    .context(|| format!("there is no kernel parameter {name} to set"))?;
    rustix::io::write(&file, value.as_bytes())
        .context(|| format!("set the kernel parameter {name} to {value:?}"))?;
    Ok(())
}
