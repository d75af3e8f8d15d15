//! The container's file system, made in a mount namespace of its own.
//!
//! Every mount is made detached and moved onto a descriptor; paths in the container are resolved without leaving its root,
//! whatever links the image has.

use alloc::format;
use alloc::vec::Vec;

use crate::fault::{Context, Fault, Result, show};
use crate::os::{self, Errno, Fd, O_DIRECTORY, O_PATH};
use crate::protocol::{Device, Mount, Start};

/// Where the container's root is mounted before it is entered.
const ROOT: &[u8] = b"/root";

const DEV: &[u8] = b"/dev";

/// How long the device of a mount that is added later may take to appear, in milliseconds.
const PATIENCE: u64 = 2000;

const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// Makes the root and everything in it; what is left is to [`enter`] it.
pub fn make(start: &Start) -> Result<Fd> {
    os::mount(b"", b"/", b"", os::MS_REC | os::MS_PRIVATE, b"").context(|| "make mounts private".into())?;
    let source = Mount {
        kind: start.root.kind.clone(),
        source: start.root.source.clone(),
        options: start.root.options.clone(),
        flags: os::MS_REC,
        ..Mount::default()
    };
    let below = os::open(ROOT, O_PATH | O_DIRECTORY).context(|| "open the root".into())?;
    let made = detached(&source, 0).map_err(|fault| prefix("mount the root", fault))?;
    os::attach(&made, &below).context(|| "mount the root".into())?;
    let root = os::open(ROOT, O_PATH | O_DIRECTORY).context(|| "open the root".into())?;
    for mount in &start.mounts {
        add(&root, mount)?;
    }
    let own_dev = |mount: &Mount| mount.kind == b"tmpfs" && trimmed(&mount.target) == DEV;
    if start.mounts.iter().any(own_dev) {
        devices(&root, &start.devices)?;
    }
    Ok(root)
}

/// Hides and protects what the configuration says, and makes `root` the root of this mount namespace.
pub fn enter(root: &Fd, start: &Start) -> Result<()> {
    for path in &start.readonly {
        protect(root, path)?;
    }
    mask(root, &start.masked)?;
    os::change_to(root).context(|| "enter the root".into())?;
    os::pivot_here().context(|| "change the root".into())?;
    os::unmount(b".").context(|| "leave the old root".into())?;
    os::change_directory(b"/").context(|| "enter the root".into())?;
    let root = os::open(b"/", O_PATH | O_DIRECTORY).context(|| "open the root".into())?;
    if start.root.readonly {
        os::set_mount(&root, os::MS_RDONLY, 0, false).context(|| "make the root read-only".into())?;
    }
    if start.propagation != 0 {
        os::set_mount(&root, 0, start.propagation & !os::MS_REC, true)
            .context(|| "set the propagation of mounts".into())?;
    }
    Ok(())
}

/// Makes one mount in the container.
fn add(root: &Fd, mount: &Mount) -> Result<()> {
    detached(mount, 0)
        .and_then(|made| place(root, mount, &made))
        .map_err(|fault| prefix(&format!("mount {}", show(&mount.target)), fault))
}

fn place(root: &Fd, mount: &Mount, made: &Fd) -> Result<()> {
    let directory = os::is_directory(made).context(|| "look at what is mounted".into())?;
    // A link here would put the kernel's files where the image wants them, and what is masked below with them.
    let plain = matches!(&mount.kind[..], b"proc" | b"sysfs");
    let target = target(root, &mount.target, directory, plain)?;
    os::attach(made, &target).context(|| "put it in its place".into())
}

/// Makes a mount in a running container, whose first process is `first`. Runs in a child: it moves to another namespace.
pub fn add_running(first: &Fd, mount: &Mount) -> Result<()> {
    os::unshare(os::CLONE_NEWNS).context(|| "leave this mount namespace".into())?;
    os::mount(b"", b"/", b"", os::MS_REC | os::MS_PRIVATE, b"").context(|| "make mounts private".into())?;
    let what = || format!("mount {}", show(&mount.target));
    let made = detached(mount, PATIENCE).map_err(|fault| prefix(&what(), fault))?;
    let root = enter_running(first)?;
    place(&root, mount, &made).map_err(|fault| prefix(&what(), fault))
}

/// The opposite, in a child too.
pub fn remove_running(first: &Fd, path: &[u8]) -> Result<()> {
    let root = enter_running(first)?;
    let what = || format!("unmount {}", show(path));
    let target = os::open_in(&root, path, O_PATH, os::RESOLVE_IN_ROOT).context(what)?;
    if os::is_directory(&target).context(what)? {
        os::change_to(&target).context(what)?;
        return os::unmount(b".").context(what);
    }
    // A file, by its name in its directory.
    let (parent, name) = split(path);
    let parent = os::open_in(&root, parent, O_PATH | O_DIRECTORY, os::RESOLVE_IN_ROOT).context(what)?;
    os::change_to(&parent).context(what)?;
    os::unmount(name).context(what)
}

/// A path's directory and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let at = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let (parent, name) = path.split_at_checked(at).unwrap_or_default();
    (parent, name.strip_prefix(b"/").unwrap_or(name))
}

fn enter_running(first: &Fd) -> Result<Fd> {
    os::enter(first, os::CLONE_NEWNS).context(|| "enter the container's mount namespace".into())?;
    os::open(b"/", O_PATH | O_DIRECTORY).context(|| "open the container's root".into())
}

fn prefix(what: &str, fault: Fault) -> Fault {
    Fault::new(fault.kind, format!("{what}: {}", fault.message))
}

fn trimmed(path: &[u8]) -> &[u8] {
    match path {
        [b'/'] => path,
        [rest @ .., b'/'] => trimmed(rest),
        _ => path,
    }
}

/// A mount that is nowhere yet.
fn detached(mount: &Mount, patience: u64) -> Result<Fd> {
    let attributes = attributes(mount.flags);
    let whole = if mount.kind == b"bind" {
        let source = os::open(&mount.source, O_PATH).context(|| show(&mount.source))?;
        os::copy_tree(&source, mount.flags & os::MS_REC != 0)
            .context(|| format!("bind {}", show(&mount.source)))?
    } else {
        new_file_system(mount, attributes, patience)?
    };
    let made = if mount.part.is_empty() {
        whole
    } else {
        part(&whole, &mount.part)?
    };
    let changed = mount.kind == b"bind" || !mount.part.is_empty();
    if (changed && attributes != 0) || mount.propagation != 0 {
        let set = if changed { attributes } else { 0 };
        let recursive = mount.flags & os::MS_REC != 0;
        os::set_mount(&made, set, mount.propagation & !os::MS_REC, recursive)
            .context(|| "set the mount's attributes".into())?;
    }
    Ok(made)
}

fn new_file_system(mount: &Mount, attributes: u64, patience: u64) -> Result<Fd> {
    // What the OCI configuration calls by its v1 name is the one hierarchy a guest has.
    let kind = match &mount.kind[..] {
        b"cgroup" => b"cgroup2",
        kind => kind,
    };
    let what = || format!("a {} file system", show(kind));
    // Of other kinds, the module may still be on its way, and the device.
    let everywhere: [&[u8]; 7] = [
        b"virtiofs",
        b"tmpfs",
        b"proc",
        b"sysfs",
        b"devpts",
        b"mqueue",
        b"cgroup2",
    ];
    let patience = if everywhere.contains(&kind) {
        patience
    } else {
        PATIENCE
    };
    let mut waited = 0;
    loop {
        let context = match os::fs_open(kind) {
            Err(Errno(19)) if waited < patience => {
                os::sleep(10);
                waited += 10;
                continue;
            }
            result => result.context(what)?,
        };
        let made = configure(&context, mount).and_then(|()| os::fs_create(&context));
        match made {
            Ok(()) => return os::fs_mount(&context, attributes).context(what),
            // A device that was just plugged in.
            Err(Errno::INVAL | Errno::NOENT | Errno(6)) if waited < patience => {
                os::sleep(10);
                waited += 10;
            }
            Err(errno) => {
                let said = reason(&context);
                return Err(errno).context(|| match said.is_empty() {
                    true => what(),
                    false => format!("{}: {said}", what()),
                });
            }
        }
    }
}

fn configure(context: &Fd, mount: &Mount) -> os::Result<()> {
    if !mount.source.is_empty() {
        os::fs_set(context, b"source", Some(&mount.source))?;
    }
    // A disk may be read-only itself.
    if mount.flags & os::MS_RDONLY != 0 && mount.source.starts_with(b"/") {
        os::fs_set(context, b"ro", None)?;
    }
    for option in mount
        .options
        .split(|byte| *byte == b',')
        .filter(|option| !option.is_empty())
    {
        match option.iter().position(|byte| *byte == b'=') {
            Some(at) => os::fs_set(
                context,
                option.get(..at).unwrap_or_default(),
                option.get(at + 1..),
            )?,
            None => os::fs_set(context, option, None)?,
        }
    }
    Ok(())
}

/// What the file system says about its refusal.
fn reason(context: &Fd) -> alloc::string::String {
    let mut line = [0; 256];
    let count = os::read(context, &mut line).unwrap_or(0);
    // "e " begins an error.
    show(line.get(2..count).unwrap_or_default().trim_ascii())
}

/// A file or directory of a mount as a mount of its own. The whole is mounted aside, in this mount namespace only.
fn part(whole: &Fd, path: &[u8]) -> Result<Fd> {
    let what = || format!("find {} in it", show(path));
    let aside = b"/parts";
    let place = os::open(aside, O_PATH | O_DIRECTORY).context(what)?;
    os::attach(whole, &place).context(what)?;
    let found = os::open_in(
        &os::open(aside, O_PATH | O_DIRECTORY).context(what)?,
        path,
        O_PATH,
        os::RESOLVE_IN_ROOT,
    )
    .and_then(|found| os::copy_tree(&found, false))
    .context(what);
    let _ = os::unmount(aside);
    found
}

/// `MOUNT_ATTR_...` for `MS_...`; the first four are the same bits.
fn attributes(flags: u64) -> u64 {
    let mut attributes = flags & (os::MS_RDONLY | os::MS_NOSUID | os::MS_NODEV | os::MS_NOEXEC);
    for (flag, attribute) in [
        (os::MS_NOATIME, 0x10),
        (os::MS_STRICTATIME, 0x20),
        (os::MS_NODIRATIME, 0x80),
    ] {
        if flags & flag != 0 {
            attributes |= attribute;
        }
    }
    attributes
}

/// The place for a mount, made with its parents when it is missing.
pub fn target(root: &Fd, path: &[u8], directory: bool, plain: bool) -> Result<Fd> {
    let what = || format!("make {} in the container", show(path));
    let resolve = os::RESOLVE_IN_ROOT | if plain { os::RESOLVE_NO_SYMLINKS } else { 0 };
    match os::open_in(root, path, O_PATH, resolve) {
        Err(Errno::NOENT) => {}
        result => {
            return result.context(|| match plain {
                true => format!("{} must be a directory in the image, not a link", show(path)),
                false => show(path),
            });
        }
    }
    let mut reached = Vec::new();
    let mut parent = os::open_in(root, b"/", O_PATH | O_DIRECTORY, resolve).context(what)?;
    let mut names = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .peekable();
    while let Some(name) = names.next() {
        reached.push(b'/');
        reached.extend_from_slice(name);
        let last = names.peek().is_none();
        parent = match os::open_in(root, &reached, O_PATH, resolve) {
            Err(Errno::NOENT) => {
                let made = match last && !directory {
                    true => os::make_node(&parent, name, S_IFREG | 0o644, 0, 0),
                    false => os::make_directory(parent.raw(), name, 0o755),
                };
                made.context(what)?;
                os::open_in(root, &reached, O_PATH, resolve).context(what)?
            }
            result => result.context(what)?,
        };
    }
    Ok(parent)
}

/// The standard nodes and links of `/dev`, and those of the configuration (OCI runtime specification, "Default Devices").
fn devices(root: &Fd, more: &[Device]) -> Result<()> {
    let dev = target(root, DEV, true, false)?;
    let standard: [(&[u8], u32, u32); 6] = [
        (b"null", 1, 3),
        (b"zero", 1, 5),
        (b"full", 1, 7),
        (b"random", 1, 8),
        (b"urandom", 1, 9),
        (b"tty", 5, 0),
    ];
    for (name, major, minor) in standard {
        match os::make_node(&dev, name, S_IFCHR | 0o666, major, minor) {
            Ok(()) | Err(Errno::EXIST) => {}
            result => result.context(|| format!("make /dev/{}", show(name)))?,
        }
    }
    let links: [(&[u8], &[u8]); 5] = [
        (b"fd", b"/proc/self/fd"),
        (b"stdin", b"/proc/self/fd/0"),
        (b"stdout", b"/proc/self/fd/1"),
        (b"stderr", b"/proc/self/fd/2"),
        (b"ptmx", b"pts/ptmx"),
    ];
    for (name, to) in links {
        match os::make_link(&dev, name, to) {
            Ok(()) | Err(Errno::EXIST) => {}
            result => result.context(|| format!("make /dev/{}", show(name)))?,
        }
    }
    for device in more {
        let what = || format!("make the device {}", show(&device.path));
        let (parent, name) = split(&device.path);
        let parent = target(root, parent, true, false)?;
        match os::make_node(&parent, name, device.mode, device.major, device.minor) {
            Ok(()) => {}
            Err(Errno::EXIST) => continue,
            result => result.context(what)?,
        }
        os::change_owner_at(&parent, name, device.uid, device.gid).context(what)?;
        os::change_mode_at(&parent, name, device.mode & 0o7777).context(what)?;
    }
    Ok(())
}

fn protect(root: &Fd, path: &[u8]) -> Result<()> {
    let what = || format!("make {} read-only", show(path));
    let found = match os::open_in(root, path, O_PATH, os::RESOLVE_IN_ROOT) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        result => result.context(what)?,
    };
    let copy = os::copy_tree(&found, true).context(what)?;
    os::set_mount(&copy, os::MS_RDONLY, 0, true).context(what)?;
    os::attach(&copy, &found).context(what)
}

/// Files become the null device, directories an empty one.
fn mask(root: &Fd, paths: &[Vec<u8>]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let empty = detached(
        &Mount {
            kind: b"tmpfs".to_vec(),
            source: b"tmpfs".to_vec(),
            flags: os::MS_RDONLY,
            options: b"mode=755,size=0".to_vec(),
            ..Mount::default()
        },
        0,
    )?;
    // A detached mount can be moved only once: it is put aside, and copied.
    let aside = os::open(b"/parts", O_PATH | O_DIRECTORY).context(|| "mask paths".into())?;
    os::attach(&empty, &aside).context(|| "mask paths".into())?;
    let empty = os::open(b"/parts", O_PATH | O_DIRECTORY).context(|| "mask paths".into())?;
    let null = os::open(b"/dev/null", O_PATH).context(|| "open /dev/null".into())?;
    for path in paths {
        let what = || format!("mask {}", show(path));
        let found = match os::open_in(root, path, O_PATH, os::RESOLVE_IN_ROOT) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            result => result.context(what)?,
        };
        let directory = os::is_directory(&found).context(what)?;
        let cover = os::copy_tree(if directory { &empty } else { &null }, false).context(what)?;
        os::attach(&cover, &found).context(what)?;
    }
    Ok(())
}

/// Binds the container's terminal to `/dev/console`.
pub fn console(root: &Fd, terminal: &Fd) -> Result<()> {
    let what = || "bind the terminal to /dev/console".into();
    let place = target(root, b"/dev/console", false, false)?;
    let copy = os::copy_tree(terminal, false).context(what)?;
    os::attach(&copy, &place).context(what)
}
