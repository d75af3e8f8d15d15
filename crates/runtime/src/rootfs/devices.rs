//! `/dev`: the standard nodes, the configured ones, and the links programs expect.

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::mounts::{attach, copy_of, is_bind};
use super::options::{Options, Recursion};
use super::resolve::{TargetKind, lookup, mount_target, normal};
use crate::error::Context;
use crate::spec::{Device, Mount};
use crate::sys::mount_setattr::{MountAttr, Propagation, attr, mount_setattr};
use crate::{Error, Result};

/// The devices every container has (runtime-spec, config-linux.md, "Default Devices").
const STANDARD: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
];

/// Whose the container's `/dev` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevOwner {
    /// The container's: it is filled.
    Container,
    /// Somebody's who gave it (`-v /dev:/dev`): nothing is made or removed in it, as runc has it.
    Other {
        /// What is mounted in it can appear there too.
        shared: bool,
    },
}

impl DevOwner {
    /// Reads the mounts; the last one at `/dev` counts.
    pub fn of(mounts: &[Mount]) -> Self {
        let at_dev = |mount: &&Mount| normal(&mount.destination) == Path::new("/dev");
        let Some(mount) = mounts.iter().rev().find(at_dev) else {
            return Self::Container;
        };
        let options = Options::parse(&mount.options);
        if !is_bind(mount, &options) {
            return Self::Container;
        }
        Self::Other {
            shared: options
                .propagation
                .iter()
                .any(|(change, _)| *change == Propagation::Shared),
        }
    }
}

/// Fills `/dev` of the container. When nodes cannot be made (a user namespace), the host's are bound instead.
///
/// # Errors
/// Names the device.
pub fn populate(root: BorrowedFd<'_>, devices: &[Device]) -> Result<()> {
    let dev = mount_target(root, Path::new("/dev"), TargetKind::Directory)?;
    let mode = Mode::from_raw_mode(0o666);
    for (name, major, minor) in STANDARD {
        let configured = |device: &Device| device.path == Path::new("/dev").join(name);
        if devices.iter().any(configured) {
            continue;
        }
        let number = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, number) {
            Ok(()) => {}
            // The image brought one, or /dev is bound from elsewhere.
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(&dev, name, AtFlags::SYMLINK_NOFOLLOW)
                    .context(|| format!("look at /dev/{name}"))?;
                if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice
                    || found.st_rdev != number
                {
                    return Err(Error::invalid(format!(
                        "/dev/{name} exists and is not that device: mount a tmpfs at /dev, or repair the image"
                    )));
                }
            }
            Err(Errno::PERM) => bind_host(
                root,
                &Path::new("/dev").join(name),
                FileType::CharacterDevice,
                number,
            )?,
            Err(errno) => return Err(errno).context(|| format!("make the device /dev/{name}")),
        }
    }
    for (target, name) in LINKS {
        if target == "/proc/kcore" && !Path::new(target).exists() {
            continue;
        }
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(|| format!("make the link /dev/{name}")),
        }
    }
    // The multiplexer is that of the container's own devpts instance, never the host's.
    if lookup(root, Path::new("/dev/pts/ptmx")).is_ok() {
        match rustix::fs::unlinkat(&dev, "ptmx", AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR | Errno::BUSY) => {}
            Err(errno) => return Err(errno).context(|| "replace /dev/ptmx"),
        }
        match rustix::fs::symlinkat("pts/ptmx", &dev, "ptmx") {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(|| "make the link /dev/ptmx"),
        }
    }
    for device in devices {
        make(root, device).map_err(|error| error.wrap(format!("device {}", device.path.display())))?;
    }
    Ok(())
}

fn make(root: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => {
            return Err(Error::invalid(format!(
                "{other:?} is not a device type (c, b, u or p)"
            )));
        }
    };
    let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(Error::invalid("a device needs a path below /"));
    };
    let number = |value: i64, what: &str| {
        u32::try_from(value).map_err(|_| Error::invalid(format!("{value} is not a {what} number")))
    };
    let rdev = if kind == FileType::Fifo {
        0
    } else {
        rustix::fs::makedev(number(device.major, "major")?, number(device.minor, "minor")?)
    };
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    let parent = mount_target(root, parent, TargetKind::Directory)?;
    match rustix::fs::mknodat(&parent, name, kind, mode, rdev) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let found =
                rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).context(|| "look at it")?;
            if FileType::from_raw_mode(found.st_mode) == kind && found.st_rdev == rdev {
                return Ok(());
            }
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())
                .context(|| "replace what the image has there")?;
            rustix::fs::mknodat(&parent, name, kind, mode, rdev).context(|| "make the node")?;
        }
        Err(Errno::PERM) => return bind_host(root, &device.path, kind, rdev),
        Err(errno) => return Err(errno).context(|| "make the node"),
    }
    // mknod obeys the umask, which is 0 here, but not the owner.
    if device.uid.is_some() || device.gid.is_some() {
        rustix::fs::chownat(
            &parent,
            name,
            device.uid.map(Uid::from_raw),
            device.gid.map(Gid::from_raw),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .context(|| "set its owner")?;
    }
    Ok(())
}

/// Opens the host's node of a device: what is at `path`, or where the kernel says that the node of this number is, which is
/// elsewhere when the container has it under another name.
fn host_node(path: &Path, kind: FileType, rdev: u64) -> Result<OwnedFd> {
    // No links: the container's root lies over `/` by now, and one that climbs there would lead into it.
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let node = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        let found = rustix::fs::fstat(&node)?;
        match FileType::from_raw_mode(found.st_mode) == kind && found.st_rdev == rdev {
            true => Ok(node),
            false => Err(Errno::NODEV),
        }
    };
    open(path)
        .or_else(|errno| match name_in_sysfs(kind, rdev) {
            Some(name) => open(&Path::new("/dev").join(name)),
            None => Err(errno),
        })
        .context(|| format!("open the host's node of {}", path.display()))
}

/// The name below `/dev` that the kernel gives a device (`/sys/dev`, sysfs-dev in the kernel's ABI documents).
fn name_in_sysfs(kind: FileType, rdev: u64) -> Option<String> {
    let class = match kind {
        FileType::CharacterDevice => "char",
        FileType::BlockDevice => "block",
        _ => return None,
    };
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let sys = rustix::fs::open("/sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let file = rustix::fs::openat2(
        sys,
        format!("dev/{class}/{major}:{minor}/uevent"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH,
    )
    .ok()?;
    let mut text = String::new();
    File::from(file).take(4096).read_to_string(&mut text).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(name.to_owned())
}

fn bind_host(root: BorrowedFd<'_>, path: &Path, kind: FileType, rdev: u64) -> Result<()> {
    let host = host_node(path, kind, rdev)?;
    let target = mount_target(root, path, TargetKind::File)?;
    let failed = || format!("bind the host's {}", path.display());
    let copy = copy_of(host, Recursion::One).context(failed)?;
    // Its owner and mode are the host's business; devices can be written to through read-only mounts.
    mount_setattr(
        &copy,
        false,
        &MountAttr {
            set: attr::RDONLY,
            ..MountAttr::default()
        },
    )
    .context(failed)?;
    attach(copy, target).context(failed)
}
