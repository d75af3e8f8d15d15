//! The mounts of a configuration, each made detached and moved onto a descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::options::{Options, Recursion};
use super::resolve::{TargetKind, is_directory, lookup, mount_target, open_in_root};
use crate::error::Context;
use crate::spec::Mount;
use crate::sys::mount_setattr::{MountAttr, Propagation, attr, mount_setattr};
use crate::{Error, ErrorKind, Result};

/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// Makes one mount below `root`, the attached root of the container. `source` is what [`bind_source`] made for a bind mount.
///
/// # Errors
/// Names the mount's destination, and what can be done where that is known.
pub fn mount(root: BorrowedFd<'_>, mount: &Mount, source: Option<BorrowedFd<'_>>) -> Result<()> {
    let options = Options::parse(&mount.options);
    let made = match source {
        Some(source) => bind(root, mount, &options, source),
        None if is_bind(mount, &options) => {
            Err(Error::new(ErrorKind::System, "nothing was taken as its source"))
        }
        None => file_system(root, mount, &options),
    };
    made.map_err(|error| error.wrap(format!("mount {}", mount.destination.display())))
}

/// Whether it is a bind mount.
pub fn is_bind(mount: &Mount, options: &Options) -> bool {
    mount.kind == "bind" || options.bind.is_some()
}

/// A detached mount of a new file system instance.
pub fn new_file_system(
    kind: &str,
    source: &str,
    data: &[(String, Option<String>)],
    attributes: u64,
) -> Result<OwnedFd> {
    let context = match fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("this kernel has no {kind:?} file system"),
            ));
        }
        other => other.context(|| format!("open the {kind} file system"))?,
    };
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source)
            .context(|| format!("use {source} as the source of a {kind} file system"))?;
    }
    for (name, value) in data {
        match value {
            Some(value) => fsconfig_set_string(&context, name.as_str(), value.as_str())
                .context(|| format!("the {kind} file system does not take the option {name}={value}"))?,
            None => fsconfig_set_flag(&context, name.as_str())
                .context(|| format!("the {kind} file system does not take the option {name}"))?,
        }
    }
    fsconfig_create(&context).context(|| format!("make a {kind} file system"))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(attributes as u32),
    )
    .context(|| format!("mount a {kind} file system"))
}

/// Moves a detached mount onto `target`.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> std::result::Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// A detached copy of the mount at a descriptor.
pub fn copy_of(fd: impl AsFd, recursion: Recursion) -> std::result::Result<OwnedFd, Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursion == Recursion::All {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, c"", flags)
}

fn file_system(root: BorrowedFd<'_>, mount: &Mount, options: &Options) -> Result<()> {
    let kernel_view = matches!(mount.kind.as_str(), "proc" | "sysfs");
    let mut data = options.data.clone();
    let mut copy_wanted = options.copy_up;
    if mount.kind == "tmpfs" {
        // Over a directory of the image it looks like that directory, unless the configuration says otherwise.
        let hidden = exists(root, &mount.destination).context(|| "look at the mount point")?;
        copy_wanted &= hidden.is_some();
        if let Some(hidden) = hidden
            && !data.iter().any(|(name, _)| name == "mode")
        {
            let stat = rustix::fs::fstat(&hidden).context(|| "look at the mount point")?;
            data.push(("mode".to_owned(), Some(format!("{:o}", stat.st_mode & 0o7777))));
        }
    }
    let target = if kernel_view {
        // A link here would put the kernel's files where the image wants them, and what is masked below with them
        // (CVE-2019-19921, CVE-2023-27561): the path has to be what it says.
        plain_directory(root, &mount.destination)?
    } else {
        mount_target(root, &mount.destination, TargetKind::Directory)?
    };
    let attributes = options.set | options.set_all;
    let on_device = Path::new(&mount.source).is_absolute();
    if on_device && options.readonly() {
        data.push(("ro".to_owned(), None));
    }
    let source = if mount.source.is_empty() {
        mount.kind.as_str()
    } else {
        mount.source.as_str()
    };
    let made = match new_file_system(&mount.kind, source, &data, attributes) {
        Ok(made) => made,
        // Without a network namespace of its own, a user namespace may not mount sysfs: the host's, read-only.
        Err(error) if mount.kind == "sysfs" && error.kind() == ErrorKind::Permission => {
            let host = rustix::fs::open("/sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .context(|| "open /sys")?;
            let copy = copy_of(host, Recursion::All).context(|| "copy the mount of /sys")?;
            set_attributes(
                &copy,
                true,
                MountAttr {
                    set: attributes | attr::RDONLY,
                    ..MountAttr::default()
                },
            )?;
            copy
        }
        Err(error) => return Err(error),
    };
    if copy_wanted {
        copy_up(&target, &made)?;
    }
    if mount.kind != "proc" {
        guard_proc(&target, &mount.destination, None)?;
    }
    attach(&made, &target).context(|| "attach the mount")?;
    propagate(made.as_fd(), options)
}

/// The directory at `path`, no link on the way, made when missing.
fn plain_directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_in_root(root, path, flags, ResolveFlags::NO_SYMLINKS) {
        Ok(fd) => Ok(fd),
        Err(Errno::NOENT) => {
            mount_target(root, path, TargetKind::Directory)?;
            open_in_root(root, path, flags, ResolveFlags::NO_SYMLINKS)
                .context(|| format!("open {}", path.display()))
        }
        Err(errno @ (Errno::LOOP | Errno::NOTDIR)) => Err(Error::with_source(
            ErrorKind::Invalid,
            format!(
                "{} must be mounted on ordinary directory: in the image it is a link or a file",
                path.display()
            ),
            std::io::Error::from(errno),
        )),
        Err(errno) => Err(errno).context(|| format!("open {}", path.display())),
    }
}

/// The detached copy a bind mount attaches, with its attributes, its owners mapped by `idmap`. A source that is no
/// absolute path is relative to the bundle.
///
/// `outside`: it is made in the host's mount namespace, where it must not stay a peer of the host's mount.
///
/// # Errors
/// When the source does not exist, or its file system cannot do what is asked.
pub fn bind_source(
    mount: &Mount,
    options: &Options,
    bundle: &Path,
    idmap: Option<BorrowedFd<'_>>,
    outside: bool,
) -> Result<OwnedFd> {
    let source = bundle.join(&mount.source);
    let opened = rustix::fs::open(&source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("the mount source {} cannot be opened", source.display()))?;
    let recursion = options.bind.unwrap_or(Recursion::One);
    let copy = copy_of(&opened, recursion).context(|| format!("copy the mount of {}", source.display()))?;
    settle_source(&copy, mount, options, idmap, outside)?;
    Ok(copy)
}

/// The sources of the bind mounts of which none is `given`.
///
/// They must be taken before the container's root is attached over `/`: from then on `..` at the host's `/` leads into the
/// container's root, and with it every relative link that climbs so far (`/etc/localtime` is one on many hosts) to where
/// the image wants it; and a copy of `/` with all below it would have the container's root on top.
///
/// # Errors
/// As [`bind_source`].
pub fn bind_sources(
    mounts: &[Mount],
    given: &[Option<OwnedFd>],
    bundle: &Path,
) -> Result<Vec<Option<OwnedFd>>> {
    let one = |(at, mount): (usize, &Mount)| {
        let options = Options::parse(&mount.options);
        let is_given = given.get(at).is_some_and(Option::is_some);
        let is_cgroup = matches!(mount.kind.as_str(), "cgroup" | "cgroup2");
        (!is_given && !is_cgroup && is_bind(mount, &options))
            .then(|| bind_source(mount, &options, bundle, None, false))
            .transpose()
            .map_err(|error| error.wrap(format!("mount {}", mount.destination.display())))
    };
    mounts.iter().enumerate().map(one).collect()
}

/// Gives the detached `copy` a bind mount attaches what [`bind_source`] gives it.
///
/// # Errors
/// When its file system cannot do what is asked.
pub fn settle_source(
    copy: &OwnedFd,
    mount: &Mount,
    options: &Options,
    idmap: Option<BorrowedFd<'_>>,
    outside: bool,
) -> Result<()> {
    if outside {
        set_attributes(
            copy,
            true,
            MountAttr {
                propagation: Some(Propagation::Slave),
                ..MountAttr::default()
            },
        )?;
    }
    if options.set != 0 || options.clear != 0 {
        let change = MountAttr {
            set: options.set,
            clear: options.clear,
            ..MountAttr::default()
        };
        set_attributes(copy, false, change)?;
    }
    if options.set_all != 0 || options.clear_all != 0 {
        let change = MountAttr {
            set: options.set_all,
            clear: options.clear_all,
            ..MountAttr::default()
        };
        set_attributes(copy, true, change)?;
    }
    if let Some(user) = idmap {
        let all = options.idmap == Some(Recursion::All);
        mount_setattr(
            copy,
            all,
            &MountAttr {
                idmap: Some(user),
                ..MountAttr::default()
            },
        )
        .context(|| {
            format!(
                "map the owners of {} (its file system may not support idmapped mounts)",
                mount.source
            )
        })?;
    }
    Ok(())
}

fn bind(root: BorrowedFd<'_>, mount: &Mount, options: &Options, source: BorrowedFd<'_>) -> Result<()> {
    let directory = is_directory(source).context(|| "look at the mount source")?;
    let kind = if directory {
        TargetKind::Directory
    } else {
        TargetKind::File
    };
    let target = mount_target(root, &mount.destination, kind)?;
    guard_proc(&target, &mount.destination, Some(source))?;
    attach(source, &target).context(|| "attach the mount")?;
    propagate(source, options)
}

/// What may be put over files of the container's `/proc`: what tells the container of its own resources (LXCFS).
const OVER_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Refuses mounts that would give the container a `/proc` of its own making: programs, and the runtime itself, trust what
/// is written there to reach the kernel (CVE-2019-16884, CVE-2019-19921). It is the place that counts, not its name: a
/// link in the image leads there as well.
fn guard_proc(target: &OwnedFd, destination: &Path, source: Option<BorrowedFd<'_>>) -> Result<()> {
    let on_proc = |fd: BorrowedFd<'_>| rustix::fs::fstatfs(fd).map(|found| found.f_type == PROC_MAGIC);
    if !on_proc(target.as_fd()).context(|| "look at the mount point")?
        || OVER_PROC.iter().any(|allowed| destination == Path::new(allowed))
    {
        return Ok(());
    }
    match source {
        Some(source) if on_proc(source).context(|| "look at the mount source")? => Ok(()),
        _ => Err(Error::invalid(format!(
            "{} is inside /proc, where nothing may be mounted: choose another destination",
            destination.display()
        ))),
    }
}

fn set_attributes(mount: &OwnedFd, recursive: bool, change: MountAttr<'_>) -> Result<()> {
    mount_setattr(mount, recursive, &change).context(|| "set the mount's attributes (read-only, nosuid, …)")
}

/// Changes propagation of an attached mount.
fn propagate(mount: BorrowedFd<'_>, options: &Options) -> Result<()> {
    options.propagation.iter().try_for_each(|(change, recursion)| {
        let change = MountAttr {
            propagation: Some(*change),
            ..MountAttr::default()
        };
        mount_setattr(mount, *recursion == Recursion::All, &change).context(|| "set the mount's propagation")
    })
}

/// Copies what lies at `target` into the fresh file system, so that the mount does not hide it (`tmpcopyup`).
fn copy_up(target: &OwnedFd, made: &OwnedFd) -> Result<()> {
    copy_tree(target.as_fd(), made.as_fd(), 0).context(|| "copy the image's files into the tmpfs")
}

/// Deeper trees than this are not made by honest images.
const MAX_DEPTH: usize = 256;

fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> std::result::Result<(), Errno> {
    use rustix::fs::{AtFlags, FileType};
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let listing = rustix::fs::openat(
        from,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | nofollow,
        Mode::empty(),
    )?;
    for entry in rustix::fs::Dir::new(listing)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, mode)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | nofollow;
                let inner_from = rustix::fs::openat(from, name, flags, Mode::empty())?;
                let inner_to = rustix::fs::openat(to, name, flags, Mode::empty())?;
                copy_tree(inner_from.as_fd(), inner_to.as_fd(), depth + 1)?;
            }
            FileType::RegularFile => {
                let source = rustix::fs::openat(from, name, OFlags::RDONLY | nofollow, Mode::empty())?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | nofollow;
                let copy = rustix::fs::openat(to, name, flags, mode)?;
                std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(copy))
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(link, to, name)?;
            }
            kind => rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?,
        }
        let owner = (
            rustix::fs::Uid::from_raw(stat.st_uid),
            rustix::fs::Gid::from_raw(stat.st_gid),
        );
        rustix::fs::chownat(to, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
    }
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::chownat(
        to,
        c"",
        Some(rustix::fs::Uid::from_raw(stat.st_uid)),
        Some(rustix::fs::Gid::from_raw(stat.st_gid)),
        AtFlags::EMPTY_PATH,
    )?;
    rustix::fs::chmodat(to, c".", Mode::from_raw_mode(stat.st_mode), AtFlags::empty())
}

/// Whether something exists at `path` inside the root.
pub fn exists(root: BorrowedFd<'_>, path: &Path) -> std::result::Result<Option<OwnedFd>, Errno> {
    match lookup(root, path) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
