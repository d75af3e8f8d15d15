//! `/sys/fs/cgroup` of a container.

use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};

use super::mounts::{attach, copy_of, new_file_system};
use super::options::{Options, Recursion};
use super::resolve::{TargetKind, mount_target};
use crate::Result;
use crate::cgroup::{CgroupPath, Hierarchies, View, ViewMount};
use crate::error::Context;
use crate::spec::Mount;
use crate::sys::mount_setattr::{MountAttr, attr, mount_setattr};

/// Mounts the container's view of its cgroup. It must be in its cgroup (and cgroup namespace) already.
///
/// # Errors
/// Names the hierarchy that cannot be mounted.
pub fn mount_cgroup(
    root: BorrowedFd<'_>,
    mount: &Mount,
    hierarchies: &Hierarchies,
    path: &CgroupPath,
    namespace: bool,
) -> Result<()> {
    let options = Options::parse(&mount.options);
    let attributes = options.set | options.set_all;
    match View::new(hierarchies, path) {
        View::Unified(view) => one(root, &mount.destination, &view, attributes, namespace),
        View::Split { mounts, links } => {
            let size = [("mode".to_owned(), Some("755".to_owned()))];
            let tmpfs = new_file_system("tmpfs", "tmpfs", &size, attributes & !attr::RDONLY)?;
            let target = mount_target(root, &mount.destination, TargetKind::Directory)?;
            attach(&tmpfs, target).context(|| format!("attach the mount {}", mount.destination.display()))?;
            for view in mounts {
                one(
                    root,
                    &mount.destination.join(&view.name),
                    &view,
                    attributes,
                    namespace,
                )?;
            }
            for (name, target) in links {
                rustix::fs::symlinkat(target, &tmpfs, name.as_str())
                    .context(|| format!("make the link {name} in {}", mount.destination.display()))?;
            }
            if attributes & attr::RDONLY != 0 {
                mount_setattr(
                    &tmpfs,
                    false,
                    &MountAttr {
                        set: attr::RDONLY,
                        ..MountAttr::default()
                    },
                )
                .context(|| format!("make {} read-only", mount.destination.display()))?;
            }
            Ok(())
        }
    }
}

/// The container's own directory of a hierarchy: bound, which a cgroup namespace shows as its root; on v2 with a
/// namespace mounted anew, so that the mount's root is the namespace's also for those who look at mountinfo.
fn one(
    root: BorrowedFd<'_>,
    destination: &std::path::Path,
    view: &ViewMount,
    attributes: u64,
    namespace: bool,
) -> Result<()> {
    let failed = || format!("mount the {} hierarchy at {}", view.fstype, destination.display());
    let made = if namespace && view.name.is_empty() {
        new_file_system("cgroup2", "cgroup2", &[], attributes)?
    } else {
        let source = rustix::fs::open(&view.bind_source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .context(failed)?;
        let copy = copy_of(source, Recursion::One).context(failed)?;
        mount_setattr(
            &copy,
            false,
            &MountAttr {
                set: attributes,
                ..MountAttr::default()
            },
        )
        .context(failed)?;
        copy
    };
    let target = mount_target(root, destination, TargetKind::Directory)?;
    attach(made, target).context(failed)
}
