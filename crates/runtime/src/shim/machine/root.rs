//! The root that a machine sees, put together on this side of the wall.
//!
//! The overlay and over it all bind mounts are attached in a mount namespace of their own, as for a container, and the machine
//! gets the whole of it as one shared directory. So what is read-only is so by the host's kernel, single files can be mounted,
//! a mount below another needs nothing of the guest, and `cp` finds what the machine finds. What only a kernel can make (proc,
//! sysfs, devices, tmpfs) is mounted by the guest's.
//!
//! Nobody lives in the namespace: its descriptor keeps it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use crate::error::Context;
use crate::process::set_namespace;
use crate::rootfs::{self, Options};
use crate::shim::RootSource;
use crate::spec::{Mount, NamespaceKind, Spec};
use crate::{Error, Result};

/// A root that is complete.
#[derive(Debug)]
pub struct Root {
    /// Its directory, with everything that is mounted below.
    pub directory: OwnedFd,
    /// The mount namespace all of it is in, which ends with this descriptor.
    _namespace: OwnedFd,
}

/// Whether a mount is made here rather than by the guest.
pub fn is_ours(mount: &Mount) -> bool {
    rootfs::is_bind(mount, &Options::parse(&mount.options))
}

impl Root {
    /// Makes it. `given` are detached mounts for some of the destinations.
    ///
    /// The calling process must be single-threaded; it is back in its own mount namespace afterwards.
    ///
    /// # Errors
    /// As for a container's root, each with the mount's destination.
    pub fn make(
        spec: &Spec,
        source: &RootSource,
        bundle: &Path,
        given: &[(PathBuf, OwnedFd)],
    ) -> Result<Self> {
        let failed = || "put the machine's root together apart from the host's mounts";
        let open = |path: &str| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(failed)
        };
        let own = open("/proc/thread-self/ns/mnt")?;
        let here = open(".")?;
        // SAFETY: mounts, working directory, root and umask stop being shared with other threads, of which there are none.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.context(failed)?;
        let made = assemble(spec, source, bundle, given);
        set_namespace(own.as_fd(), NamespaceKind::Mount).map_err(|error| error.wrap(failed()))?;
        rustix::process::fchdir(&here).context(failed)?;
        made
    }
}

fn assemble(spec: &Spec, source: &RootSource, bundle: &Path, given: &[(PathBuf, OwnedFd)]) -> Result<Root> {
    let umask = rustix::process::umask(Mode::empty());
    let made = assemble_bare(spec, source, bundle, given);
    rustix::process::umask(umask);
    made
}

fn assemble_bare(
    spec: &Spec,
    source: &RootSource,
    bundle: &Path,
    given: &[(PathBuf, OwnedFd)],
) -> Result<Root> {
    // Before the host's /proc is gone.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty())
        .context(|| "open the machine's mount namespace")?;
    rootfs::isolate("")?;
    let root = match source {
        RootSource::Overlay(overlay) => rootfs::overlay(overlay, None)?,
        RootSource::Directory(path) => rootfs::directory(&bundle.join(path), "")?,
    };
    let binds: Vec<&Mount> = spec.mounts.iter().filter(|mount| is_ours(mount)).collect();
    let sources = binds
        .iter()
        .map(|mount| bind_source(mount, bundle, given))
        .collect::<Result<Vec<_>>>()?;
    let root = rootfs::attach_root(&root, None)?;
    for (mount, source) in binds.iter().zip(&sources) {
        rootfs::mount(root.as_fd(), mount, Some(source.as_fd()))?;
    }
    // What the guest mounts needs its places, also where the root is read-only.
    for mount in spec.mounts.iter().filter(|mount| !is_ours(mount)) {
        place(&root, &mount.destination, spec)?;
    }
    if let Some(process) = &spec.process {
        rootfs::make_directory(root.as_fd(), &process.cwd)
            .map_err(|error| error.wrap(format!("process.cwd {}", process.cwd.display())))?;
    }
    rootfs::enter(root.as_fd())?;
    rootfs::finish(spec.root.as_ref().is_some_and(|root| root.readonly), "")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open("/", flags, Mode::empty()).context(|| "open the machine's root")?;
    Ok(Root {
        directory,
        _namespace: namespace,
    })
}

fn bind_source(mount: &Mount, bundle: &Path, given: &[(PathBuf, OwnedFd)]) -> Result<OwnedFd> {
    let options = Options::parse(&mount.options);
    let made = match given.iter().find(|(at, _)| *at == mount.destination) {
        Some((_, fd)) => fd
            .try_clone()
            .context(|| "copy a descriptor")
            .and_then(|copy| rootfs::settle_source(&copy, mount, &options, None, true).map(|()| copy)),
        None => rootfs::bind_source(mount, &options, bundle, None, false),
    };
    made.map_err(|error| error.wrap(format!("mount {}", mount.destination.display())))
}

/// Makes the directory that the guest mounts on. One below another of the guest's mounts is made there, by the guest.
fn place(root: &OwnedFd, destination: &Path, spec: &Spec) -> Result<()> {
    let below_another = spec.mounts.iter().any(|other| {
        !is_ours(other) && other.destination != destination && destination.starts_with(&other.destination)
    });
    if below_another {
        return Ok(());
    }
    rootfs::make_directory(root.as_fd(), destination)
        .map_err(|error: Error| error.wrap(format!("mount {}", destination.display())))
}
