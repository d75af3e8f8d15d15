//! Reaching a container's root by descriptor.
//!
//! A running container's root is its first process's, `/proc/PID/root`: what the container sees, volumes and all. The
//! process's directory is opened first and must belong to the container's cgroup, so that a process ID that was used
//! again does not lead into another root.
//!
//! A virtual machine's root is put together on this side of the wall by its shim, which hands it out.
//!
//! The root of a container that does not run is put together on a thread of its own, in a mount namespace that goes
//! away with it: the overlay, and over it the volumes. Nobody else ever sees those mounts. For reading the overlay is
//! made without a writable layer, so that it cannot disturb a container that starts at the same moment.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, mount_remount,
    move_mount, open_tree,
};
use rustix::thread::UnshareFlags;
use tokio::sync::OwnedMutexGuard;
use vessel_runtime::rootfs::overlay;
use vessel_runtime::rootfs::resolve::{TargetKind, is_directory, lookup, mount_target};
use vessel_runtime::shim::Overlay;

use super::path::open_directory;
use crate::container::RootPaths;
use crate::container::record::{MountKind, MountRecord};
use crate::oci_spec::wall;
use crate::volumes::Held;
use crate::{Context, Engine, Error, ErrorKind, Result};

/// How long a container whose process has ended may take to be recorded as ended.
const ENDS: Duration = Duration::from_secs(10);

/// A way to a container's root.
#[derive(Debug)]
pub(super) enum Root {
    /// The root of a process.
    Running {
        /// By descriptor.
        root: OwnedFd,
        /// The host's ID of its root user, when it is another than root.
        shift: Option<u32>,
    },
    /// Layers, a writable one among them, and volumes.
    Stopped {
        /// The layers.
        paths: RootPaths,
        /// Volumes and bind mounts.
        mounts: Vec<MountRecord>,
        /// Whether the root can be written to.
        writable: bool,
        /// Keeps it from being started, or removed, while it is written to: two overlays must not share a writable layer.
        _op: Option<OwnedMutexGuard<()>>,
        /// Keeps the volumes mounted that are only while they are used.
        _held: Option<Held>,
    },
}

impl Root {
    /// The root as the container sees it. With `write`, to write to it.
    pub(super) async fn of(engine: &Engine, id: &str, write: bool) -> Result<Self> {
        let container = engine.container(id)?;
        let record = container.record();
        let writable = write && !record.host.readonly_rootfs;
        // Through the map of a container with IDs of its own, everything read would carry the host's: its layers say
        // who owns what in the container's terms. Written it must be where the container finds it.
        let remapped = engine.config().userns_remap.is_some() && wall::is_remapped(&record.host);
        let paths = engine.container_root(&container).await?;
        loop {
            let state = container.state();
            if state.status.has_process() && state.pid != 0 && (write || !remapped) {
                let found = match wall::is_machine(&record.host) {
                    true => engine.machine_root(&container).await,
                    false => running(state.pid, &container.cgroup_path()),
                };
                match found {
                    Ok(root) => {
                        let range = engine.config().userns_remap.filter(|_| remapped);
                        return Ok(Self::Running {
                            root,
                            shift: range.map(|range| range.start),
                        });
                    }
                    // It has ended since: then its layers are what there is, as soon as it lets go of them.
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        if writable && !container.wait_for_end(Some(ENDS)).await {
                            return Err(error);
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            let op = match writable {
                true => Some(engine.lock_op(&container).await?),
                false => None,
            };
            // Started meanwhile, or started once more.
            if writable && container.status().has_process() {
                continue;
            }
            let mut mounts = record.mounts.clone();
            let held = engine.hold_volumes(&mut mounts).await?;
            return Ok(Self::Stopped {
                paths,
                mounts,
                writable,
                _op: op,
                _held: held,
            });
        }
    }

    /// The layers only, to read, whether the container runs or not.
    pub(super) async fn layers(engine: &Engine, id: &str) -> Result<Self> {
        let container = engine.container(id)?;
        let paths = engine.container_root(&container).await?;
        Ok(Self::Stopped {
            paths,
            mounts: Vec::new(),
            writable: false,
            _op: None,
            _held: None,
        })
    }

    /// Works in the root. May block.
    pub(super) fn enter<T: Send>(&self, work: impl FnOnce(BorrowedFd<'_>) -> Result<T> + Send) -> Result<T> {
        match self {
            Self::Running { root, shift: None } => work(root.as_fd()),
            Self::Running {
                root,
                shift: Some(id),
            } => on_a_thread(|| {
                act_as(*id)?;
                work(root.as_fd())
            }),
            Self::Stopped {
                paths,
                mounts,
                writable,
                _op: _,
                _held: _,
            } => on_a_thread(|| {
                let root = assemble(paths, mounts, *writable)?;
                work(root.as_fd())
            }),
        }
    }
}

/// Runs what changes a thread for good on one that ends with it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("vessel-root".to_owned());
        let thread = thread
            .spawn_scoped(scope, work)
            .context(|| "cannot start a thread to look into the container")?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::system("looking into the container ended abnormally")))
    })
}

/// Makes files as a user that the container's map of IDs knows; the host's root is not among them, and the kernel
/// refuses to make anything for it there. What this thread may do stays.
fn act_as(id: u32) -> Result<()> {
    let context = || "cannot act as the container's root";
    // SAFETY: both are plain system calls that change the calling thread only.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
    // They report nothing; asked with an ID that none has, they tell the current one.
    // SAFETY: as above.
    if unsafe { libc::setfsuid(u32::MAX) }.cast_unsigned() != id {
        return Err(Error::system(format!(
            "{}: the kernel refused the user ID {id}",
            context()
        )));
    }
    // Leaving root's ID took the file capabilities out of effect.
    let mut sets = rustix::thread::capabilities(None).context(context)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).context(context)
}

/// The root of a process that belongs to a cgroup.
fn running(pid: i32, cgroup: &str) -> Result<OwnedFd> {
    let gone = || Error::not_found(format!("the container's process {pid} is gone"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).map_err(|_| gone())?;
    let file = rustix::fs::openat(
        &process,
        "cgroup",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|_| gone())?;
    let groups = std::io::read_to_string(std::fs::File::from(file)).map_err(|_| gone())?;
    let cgroup = Path::new("/").join(cgroup.trim_start_matches('/'));
    let member = groups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|path| Path::new(path).starts_with(&cgroup));
    if !member {
        return Err(gone());
    }
    // The directory stays this process's: when it ends first, this fails.
    rustix::fs::openat(&process, "root", flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => gone(),
        other => Error::system(format!(
            "cannot open the root of process {pid}: {}",
            std::io::Error::from(other)
        )),
    })
}

/// Puts a root together in a mount namespace of this thread.
fn assemble(paths: &RootPaths, mounts: &[MountRecord], writable: bool) -> Result<OwnedFd> {
    let context = || "cannot put the container's root together";
    // SAFETY: this thread was made for this and shares neither its file system attributes nor its mount namespace
    // with any other afterwards; no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.context(context)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context(context)?;
    let root = if writable {
        let (upper, work) = (Some(paths.upper.clone()), Some(paths.work.clone()));
        overlay(
            &Overlay {
                lower: paths.lower.clone(),
                upper,
                work,
                volatile: paths.volatile,
            },
            None,
        )?
    } else {
        let lower: Vec<PathBuf> = std::iter::once(paths.upper.clone())
            .chain(paths.lower.iter().cloned())
            .collect();
        overlay(
            &Overlay {
                lower,
                upper: None,
                work: None,
                volatile: false,
            },
            None,
        )?
    };
    let mut mounts: Vec<&MountRecord> = mounts
        .iter()
        .filter(|mount| mount.kind != MountKind::Tmpfs)
        .collect();
    // Those that lie in others come after them.
    mounts.sort_by_key(|mount| Path::new(&mount.destination).components().count());
    // All sources are opened before anything is attached, which may cover where they are.
    let sources = mounts
        .iter()
        .map(|mount| source(mount))
        .collect::<Result<Vec<_>>>()?;
    let place = open_directory(paths.upper.parent().unwrap_or(&paths.upper)).context(context)?;
    attach(root.as_fd(), place.as_fd()).context(context)?;
    for (mount, source) in mounts.into_iter().zip(sources) {
        let what = || {
            format!(
                "cannot mount {} at {} to look into the container",
                mount.source, mount.destination
            )
        };
        let kind = match is_directory(&source).context(what)? {
            true => TargetKind::Directory,
            false => TargetKind::File,
        };
        let target = match mount_target(root.as_fd(), Path::new(&mount.destination), kind) {
            Ok(target) => target,
            // The image has no place for it, and a read-only view cannot make one: there is nothing to see there.
            Err(_) if !writable => continue,
            Err(error) => return Err(Error::from(error).wrap(what())),
        };
        attach(source.as_fd(), target.as_fd()).context(what)?;
        if mount.read_only {
            let path = format!(
                "/proc/thread-self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&source)
            );
            mount_remount(path, MountFlags::BIND | MountFlags::RDONLY, "").context(what)?;
        }
    }
    Ok(root)
}

/// A detached copy of what a mount shows.
fn source(mount: &MountRecord) -> Result<OwnedFd> {
    let path = Path::new(&mount.source);
    if mount.subpath.is_empty() {
        return copy(rustix::fs::CWD, path);
    }
    // What the volume's own links say must not lead out of it.
    let volume = open_directory(path).context(|| format!("cannot open {}", mount.source))?;
    let inside = lookup(&volume, Path::new(&mount.subpath))
        .context(|| format!("cannot open {} in the volume {}", mount.subpath, mount.name))?;
    copy(inside.as_fd(), Path::new(""))
}

/// A detached copy of the mounts at a path.
fn copy(directory: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, path, flags).context(|| format!("cannot open {}", path.display()))
}

fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    use vessel_image::{ExtractOptions, PackOptions};

    /// Two layers, a writable one and a volume below a directory.
    fn stopped(directory: &Path, writable: bool, read_only: bool) -> Root {
        let at = |name: &str| directory.join(name);
        for name in [
            "low/etc",
            "low/data",
            "high/etc",
            "upper",
            "work",
            "volume/deep/other",
            "other",
        ] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("low/etc/one"), "low").unwrap();
        fs::write(at("high/etc/one"), "high").unwrap();
        fs::write(at("volume/deep/file"), "volume").unwrap();
        fs::write(at("other/file"), "other").unwrap();
        let mount = |source: &str, destination: &str| MountRecord {
            kind: MountKind::Volume,
            source: at(source).display().to_string(),
            destination: destination.to_owned(),
            read_only,
            ..MountRecord::default()
        };
        Root::Stopped {
            paths: RootPaths {
                lower: vec![at("high"), at("low")],
                upper: at("upper"),
                work: at("work"),
                volatile: false,
            },
            // The second lies in the first, and both where the root is put together.
            mounts: vec![mount("other", "/data/deep/other"), mount("volume", "/data")],
            writable,
            _op: None,
            _held: None,
        }
    }

    fn read(root: &Root, path: &str) -> Result<String> {
        root.enter(|root| {
            let file = super::super::path::open(root, path, OFlags::RDONLY).context(|| path.to_owned())?;
            Ok(std::io::read_to_string(fs::File::from(file)).unwrap())
        })
    }

    fn archive(name: &str, content: &[u8]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content).unwrap();
        archive.into_inner().unwrap()
    }

    fn unpack(root: &Root, path: &str, name: &str, content: &[u8]) -> Result<()> {
        root.enter(|root| {
            let target = super::super::path::open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
                .context(|| path.to_owned())?;
            Ok(vessel_image::unpack_into(
                target.as_fd(),
                archive(name, content).as_slice(),
                &ExtractOptions::default(),
            )?)
        })
    }

    #[test]
    fn layers_and_volumes_are_one_tree_that_nobody_else_sees() {
        let directory = tempfile::tempdir().unwrap();
        let root = stopped(directory.path(), false, false);
        assert_eq!(read(&root, "/etc/one").unwrap(), "high");
        assert_eq!(read(&root, "/data/deep/file").unwrap(), "volume");
        root.enter(|_| {
            let host = fs::read_to_string(format!("/proc/{}/mountinfo", std::process::id())).unwrap();
            assert!(!host.contains(&directory.path().display().to_string()), "{host}");
            Ok(())
        })
        .unwrap();
        let mut packed = Vec::new();
        root.enter(|root| {
            Ok(vessel_image::pack(
                root,
                b"/",
                &PackOptions::default(),
                &mut packed,
            )?)
        })
        .unwrap();
        let mut names: Vec<String> = tar::Archive::new(packed.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "data/",
                "data/deep/",
                "data/deep/file",
                "data/deep/other/",
                "data/deep/other/file",
                "etc/",
                "etc/one"
            ]
        );
    }

    #[test]
    fn what_is_written_goes_where_the_container_will_find_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = stopped(directory.path(), true, false);
        unpack(&root, "/etc", "two", b"new").unwrap();
        unpack(&root, "/data/deep", "three", b"new").unwrap();
        assert_eq!(
            fs::read_to_string(directory.path().join("upper/etc/two")).unwrap(),
            "new"
        );
        assert_eq!(
            fs::read_to_string(directory.path().join("volume/deep/three")).unwrap(),
            "new"
        );
        assert!(!directory.path().join("low/etc/two").exists());
    }

    #[test]
    fn what_is_read_only_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        let root = stopped(directory.path(), false, false);
        assert!(unpack(&root, "/etc", "two", b"new").is_err());
        // A volume of a read-only root can be written to.
        unpack(&root, "/data", "two", b"new").unwrap();
        let root = stopped(directory.path(), true, true);
        assert!(unpack(&root, "/data", "three", b"new").is_err());
        assert!(!directory.path().join("volume/three").exists());
    }

    /// CVE-2018-15664 and its kind: links of the container's making do not lead out of it.
    #[test]
    fn links_do_not_lead_out() {
        let directory = tempfile::tempdir().unwrap();
        let root = stopped(directory.path(), true, false);
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        let upper = directory.path().join("upper");
        symlink(&outside, upper.join("absolute")).unwrap();
        symlink("../../../../../../../..", upper.join("up")).unwrap();
        symlink("/proc/self/root", upper.join("magic")).unwrap();
        let outside = outside.display().to_string();
        for path in [
            "/absolute/secret".to_owned(),
            format!("/up{outside}/secret"),
            format!("/magic{outside}/secret"),
        ] {
            assert!(read(&root, &path).is_err(), "{path}");
        }
        assert!(unpack(&root, "/absolute", "planted", b"x").is_err());
        // A component inside the archive, too.
        let _ = unpack(&root, "/", "absolute/planted", b"x");
        let _ = unpack(&root, "/", &format!("up{outside}/planted"), b"x");
        assert!(!Path::new(&outside).join("planted").exists());
    }

    #[test]
    fn a_process_of_another_cgroup_is_not_the_containers() {
        let error = running(std::process::id() as i32, "/vessel/no-such-container").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(running(i32::MAX, "/").unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn acting_as_another_root_stays_on_its_thread() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        let root = Root::Running {
            root: open_directory(directory.path()).unwrap(),
            shift: Some(100_000),
        };
        root.enter(|root| {
            let flags = OFlags::CREATE | OFlags::WRONLY;
            // The directory is another's and closed: what root may do is kept.
            rustix::fs::openat(root, "theirs", flags, Mode::RUSR).context(|| "make a file")?;
            Ok(())
        })
        .unwrap();
        fs::write(directory.path().join("mine"), "").unwrap();
        let owner = |name: &str| fs::metadata(directory.path().join(name)).unwrap().uid();
        assert_eq!(
            (owner("theirs"), owner("mine")),
            (100_000, rustix::process::geteuid().as_raw())
        );
    }
}
