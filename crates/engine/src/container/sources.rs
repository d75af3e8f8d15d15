//! What is mounted into a container and must not be looked up by its path, since containers write where the path leads:
//! found here, once, and handed to the shim as a detached copy of the mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use vessel_runtime::rootfs::{Recursion, copy_of};

use super::prepare::open_namespace;
use super::record::MountRecord;
use crate::error::Context;
use crate::{Error, Result};

/// Where POSIX shared memory is.
pub(super) const SHM: &str = "/dev/shm";

/// What lies at a mount's subpath in its volume, whose files are at `data`. No link is followed: between a look and the
/// mount, a container could exchange a directory for a link that leads out of the volume.
pub(super) fn subpath(mount: &MountRecord, data: &Path) -> Result<OwnedFd> {
    let what = || format!("cannot access path {} in volume {}", mount.subpath, mount.name);
    let root = rustix::fs::open(
        data,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open volume {}", mount.name))?;
    let inside = beneath(root.as_fd(), &mount.subpath).context(what)?;
    let recursion = if mount.non_recursive {
        Recursion::One
    } else {
        Recursion::All
    };
    copy_of(inside, recursion).context(what)
}

fn beneath(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

/// The `/dev/shm` in the mount namespace of a process. Mounts can be copied inside their namespace only: a thread made
/// for this enters it.
pub(super) fn shared_memory(pid: i32) -> Result<OwnedFd> {
    let namespace = open_namespace(pid, "mnt")?;
    let copy = || -> Result<OwnedFd> {
        let context = || format!("enter the mount namespace of process {pid}");
        // SAFETY: this thread was made for this and ends right after; no descriptor table is unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.context(context)?;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
            .context(context)?;
        let directory = rustix::fs::openat2(
            rustix::fs::CWD,
            SHM,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )
        .context(|| format!("open its {SHM}"))?;
        copy_of(directory, Recursion::One).context(|| format!("copy the mount of its {SHM}"))
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("shm".into())
            .spawn_scoped(scope, copy)
            .context(|| "start a thread")?
            .join()
            .unwrap_or_else(|_| Err(Error::system("the thread that copies mounts ended abnormally")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::record::MountKind;

    #[test]
    fn a_subpath_that_becomes_a_link_stays_what_it_was() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (volume, outside) = (directory.path().join("volume"), directory.path().join("outside"));
        std::fs::create_dir_all(volume.join("a")).unwrap();
        std::fs::write(volume.join("a/mine"), "").unwrap();
        std::fs::create_dir(&outside).unwrap();
        let mount = MountRecord {
            kind: MountKind::Volume,
            name: "volume".into(),
            subpath: "a".into(),
            ..MountRecord::default()
        };
        let copy = subpath(&mount, &volume).unwrap();
        std::fs::rename(volume.join("a"), volume.join("b")).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("a")).unwrap();
        rustix::fs::statat(&copy, "mine", rustix::fs::AtFlags::empty()).unwrap();
        assert!(subpath(&mount, &volume).is_err(), "a link was followed");
        for bad in ["../outside", "/etc", "missing"] {
            let mount = MountRecord {
                subpath: bad.into(),
                ..mount.clone()
            };
            assert!(subpath(&mount, &volume).is_err(), "{bad}");
        }
    }
}
