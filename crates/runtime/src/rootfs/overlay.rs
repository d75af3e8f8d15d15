//! Overlay roots as detached mounts: made with the new mount API, named nowhere.
//!
//! `lowerdir+` (Linux 6.7) takes one layer at a time and has no limit on the total length. Older kernels get the classic
//! colon list, of which fsconfig(2) passes at most 255 bytes: the layers are named by their descriptors' numbers, relative
//! to `/proc/self/fd`, which is enough for some 80 of them. Layers with mapped owners are taken as detached mounts (Linux
//! 6.15); older kernels, from 5.19 on, want them attached, which happens in a mount namespace that nobody else sees.
//! See Documentation/filesystems/overlayfs.rst.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree,
};
use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitiesSecureBits, LinkNameSpaceType, UnshareFlags, capabilities_secure_bits,
    move_into_link_name_space, set_capabilities_secure_bits, unshare_unsafe,
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
    let Some(user) = idmap else {
        return plain(overlay, None);
    };
    match mapped(overlay, user)? {
        Some(mount) => Ok(mount),
        None => with_private_mounts(|| {
            let owner = attach_mapped(overlay, user)?;
            plain(overlay, owner)
        }),
    }
}

fn failed() -> String {
    "make the container's overlay root".to_owned()
}

fn context() -> Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context(failed)?;
    fsconfig_set_string(&context, "source", "overlay").context(failed)?;
    Ok(context)
}

/// The superblock of a complete context as a mount.
fn mounted(context: &OwnedFd, overlay: &Overlay) -> Result<OwnedFd> {
    let attributes = if overlay.upper.is_none() {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context(failed)
}

/// An overlay of the directories as this mount namespace shows them.
fn plain(overlay: &Overlay, owner: Option<Owner>) -> Result<OwnedFd> {
    let context = context()?;
    let mut held = Vec::new();
    // Relative names are looked up when the superblock is made.
    let _near = set_layers(&context, overlay, &mut held)?;
    let _acting = owner.map(Acting::start).transpose()?;
    fsconfig_create(&context).map_err(|errno| explain(errno, overlay))?;
    mounted(&context, overlay)
}

/// An overlay of detached mounts; `None` when this kernel does not take those.
fn mapped(overlay: &Overlay, user: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let context = context()?;
    // Held until the superblock exists.
    let mut held = Vec::new();
    let mut owner = None;
    for lower in &overlay.lower {
        let layer = idmapped(lower, user)?;
        match fsconfig_set_fd(&context, "lowerdir+", &layer) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            other => other.context(failed)?,
        }
        held.push(layer);
    }
    if let Some((parent, dirs)) = writable(overlay)? {
        // Both must be on one mount: their common parent is mapped and they are opened below it.
        let parent = idmapped(parent, user)?;
        for (key, dir) in [("upperdir", dirs[0]), ("workdir", dirs[1])] {
            let name = dir.file_name().unwrap_or_default();
            let dir = rustix::fs::openat(&parent, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .context(failed)?;
            fsconfig_set_fd(&context, key, &dir).context(failed)?;
            owner = Some(Owner::of(&dir)?);
            held.push(dir);
        }
        held.push(parent);
    }
    if overlay.volatile {
        make_volatile(&context, overlay)?;
    }
    let _acting = owner.map(Acting::start).transpose()?;
    match fsconfig_create(&context) {
        Err(Errno::INVAL) => return Ok(None),
        other => other.map_err(|errno| explain(errno, overlay))?,
    }
    mounted(&context, overlay).map(Some)
}

/// The writable layer and its work directory, behind the directory that holds both.
fn writable(overlay: &Overlay) -> Result<Option<(&Path, [&Path; 2])>> {
    let (Some(upper), Some(work)) = (&overlay.upper, &overlay.work) else {
        return Ok(None);
    };
    let parent = upper
        .parent()
        .filter(|parent| work.parent() == Some(parent))
        .ok_or_else(|| {
            Error::invalid("the writable layer and its work directory must lie side by side to be idmapped")
        })?;
    Ok(Some((parent, [upper, work])))
}

/// Covers every directory of the overlay with itself, owners mapped. Tells who then owns the writable layer.
fn attach_mapped(overlay: &Overlay, user: BorrowedFd<'_>) -> Result<Option<Owner>> {
    let writable = writable(overlay)?;
    for dir in overlay
        .lower
        .iter()
        .map(AsRef::as_ref)
        .chain(writable.map(|(parent, _)| parent))
    {
        let copy = idmapped(dir, user)?;
        move_mount(&copy, c"", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .context(|| format!("cover {} with mapped owners", dir.display()))?;
    }
    let Some((_, [upper, _])) = writable else {
        return Ok(None);
    };
    let upper = rustix::fs::open(upper, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(failed)?;
    Owner::of(&upper).map(Some)
}

/// Who owns a file, as a mapped mount shows it.
#[derive(Clone, Copy)]
struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    fn of(file: &OwnedFd) -> Result<Self> {
        let stat = rustix::fs::fstat(file).context(failed)?;
        Ok(Self {
            user: stat.st_uid,
            group: stat.st_gid,
        })
    }
}

/// The calling thread making files as somebody else, with all its capabilities. What an overlay does to its layers, it
/// does as who made it; on a mapped mount that must be one of the mapped owners, or the overlay is read-only.
struct Acting {
    before: CapabilitiesSecureBits,
}

impl Acting {
    fn start(owner: Owner) -> Result<Self> {
        let before = capabilities_secure_bits().context(failed)?;
        set_capabilities_secure_bits(before | CapabilitiesSecureBits::NO_SETUID_FIXUP).context(failed)?;
        act_as(owner);
        Ok(Self { before })
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        act_as(Owner {
            user: geteuid().as_raw(),
            group: getegid().as_raw(),
        });
        // They were these before; nothing keeps them from being so again.
        let _ = set_capabilities_secure_bits(self.before);
    }
}

fn act_as(owner: Owner) {
    // SAFETY: changes whom the calling thread is to file systems; touches no memory and does not fail for root.
    unsafe {
        libc::setfsuid(owner.user);
        libc::setfsgid(owner.group);
    }
}

/// Calls `run` with the calling thread in a mount namespace of its own, which is gone afterwards.
fn with_private_mounts<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    let failed = || "map owners apart from the host's mounts".to_owned();
    let open =
        |path: &str| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(failed);
    let (namespace, directory) = (open("/proc/thread-self/ns/mnt")?, open(".")?);
    // SAFETY: mounts, working directory, root and umask stop being shared with other threads, nothing else.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context(failed)?;
    let result = mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context(failed)
        .and_then(|()| run());
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).context(failed)?;
    rustix::process::fchdir(&directory).context(failed)?;
    result
}

/// Names the layers. What is returned must be kept until the superblock exists, as must `held`.
fn set_layers(context: &OwnedFd, overlay: &Overlay, held: &mut Vec<OwnedFd>) -> Result<Option<Near>> {
    let mut near = None;
    if takes_single_layers() {
        for lower in &overlay.lower {
            fsconfig_set_string(context, "lowerdir+", lower)
                .context(|| format!("use the layer {}", lower.display()))?;
        }
    } else {
        let list = list(overlay, held)?;
        near = Some(Near::descriptors()?);
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
    if overlay.volatile {
        make_volatile(context, overlay)?;
    }
    Ok(near)
}

/// Mounts without syncing. An earlier such mount left a mark that keeps the kernel from mounting the layers again, for it
/// does not know whether the machine crashed meanwhile. Who asks for this says that it does not matter.
fn make_volatile(context: &OwnedFd, overlay: &Overlay) -> Result<()> {
    let Some(work) = &overlay.work else { return Ok(()) };
    if !kernel_is_at_least((5, 10)) {
        return Ok(());
    }
    let incompat = work.join("work/incompat");
    let mark = incompat.join("volatile");
    for (path, flags) in [
        (mark.join("dirty"), AtFlags::empty()),
        (mark, AtFlags::REMOVEDIR),
        (incompat, AtFlags::REMOVEDIR),
    ] {
        match rustix::fs::unlinkat(CWD, &path, flags) {
            Err(Errno::NOENT) | Ok(()) => {}
            Err(errno) => return Err(errno).context(|| format!("remove {}", path.display())),
        }
    }
    fsconfig_set_flag(context, "volatile").context(failed)
}

/// Whether this kernel knows `lowerdir+`. Its version is asked, not the overlay: one before 6.5 would accept anything
/// now and complain later, and a later one logs a name it does not find, which takes a millisecond on a serial console.
fn takes_single_layers() -> bool {
    kernel_is_at_least((6, 7))
}

fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    is_at_least(&rustix::system::uname().release().to_string_lossy(), wanted)
}

/// Whether a kernel's release, such as `6.1.0-28-amd64`, is `wanted` (major, minor) or later. What cannot be read is old.
fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => false,
    }
}

/// The layers as `lowerdir` takes them: numbers of open descriptors.
fn list(overlay: &Overlay, held: &mut Vec<OwnedFd>) -> Result<String> {
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
        list.push_str(&fd.as_raw_fd().to_string());
        held.push(fd);
    }
    if list.len() > MAX_VALUE {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the image has {} layers, more than kernels before 6.7 can stack: squash the image or use a newer kernel",
                overlay.lower.len()
            ),
        ));
    }
    Ok(list)
}

/// The calling thread, with `/proc/self/fd` as its working directory; back where it was when dropped.
struct Near {
    back: OwnedFd,
}

impl Near {
    fn descriptors() -> Result<Self> {
        let failed = || "look up layers by their descriptors".to_owned();
        // Other threads of the process keep their working directory.
        // SAFETY: only the working directory, the root and the umask stop being shared with other threads.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.context(failed)?;
        let back = rustix::fs::open(
            ".",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(failed)?;
        rustix::process::chdir("/proc/self/fd").context(failed)?;
        Ok(Self { back })
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        // Nothing but a directory that vanished is in the way, and then any other is as good.
        let _ = rustix::process::fchdir(&self.back);
    }
}

/// A detached copy of the mount at `dir` whose owners are mapped by the user namespace.
fn idmapped(dir: &Path, user: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = open_tree(CWD, dir, flags).context(|| format!("copy the mount of {}", dir.display()))?;
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

#[cfg(test)]
mod tests {
    use super::is_at_least;

    #[test]
    fn releases_compare_by_number() {
        assert!(is_at_least("6.7.0", (6, 7)));
        assert!(is_at_least("6.18.5-cloud-amd64", (6, 7)));
        assert!(is_at_least("10.0", (6, 7)));
        assert!(!is_at_least("6.1.0-28-amd64", (6, 7)));
        assert!(!is_at_least("5.15-rc3", (6, 7)));
        assert!(!is_at_least("", (6, 7)));
        assert!(!is_at_least("mainline", (6, 7)));
    }
}
