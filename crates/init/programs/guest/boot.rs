//! From the kernel's first process to a system that can serve, or to the system on a disk.

use alloc::format;
use alloc::vec::Vec;

use crate::fault::{Context, Fault, Result, report, show};
use crate::os::{self, Errno, Fd, O_DIRECTORY, O_PATH};

/// Where initramfs has the modules, and their order.
const MODULES: &[u8] = b"/modules";

/// How long a root's device may take to appear.
const PATIENCE: u64 = 10_000;

/// What comes after booting.
pub enum Next {
    /// With the modules that can still be loaded.
    Serve(Option<Modules>),
    HandOver(RootDevice),
}

/// A machine's own root, as the kernel's command line names it.
pub struct RootDevice {
    source: Vec<u8>,
    kind: Vec<u8>,
    options: Vec<u8>,
    readonly: bool,
    init: Vec<u8>,
}

/// Mounts what a system has, loads modules, leaves the initramfs.
pub fn boot() -> Result<Next> {
    // A root that can be left: pivot_root(2) refuses to leave an initramfs.
    let made = [
        &b"/base"[..],
        b"/base/proc",
        b"/base/sys",
        b"/base/dev",
        b"/base/root",
        b"/base/parts",
    ];
    let base = |path: &[u8]| os::make_directory(os::CWD, path, 0o755);
    base(made[0]).context(|| "make /base".into())?;
    os::mount(b"base", made[0], b"tmpfs", 0, b"mode=755").context(|| "mount a tmpfs".into())?;
    for path in &made[1..] {
        base(path).context(|| format!("make {}", show(path)))?;
    }
    let hard = os::MS_NOSUID | os::MS_NODEV | os::MS_NOEXEC;
    let kernel: [(&[u8], &[u8], u64); 3] = [
        (b"proc", b"/base/proc", hard),
        (b"sysfs", b"/base/sys", hard),
        (b"devtmpfs", b"/base/dev", os::MS_NOSUID),
    ];
    for (kind, target, flags) in kernel {
        os::mount(kind, target, kind, flags, b"").context(|| format!("mount {}", show(kind)))?;
    }
    // A kernel without cgroups still runs a container, without limits.
    if let Err(errno) = os::mount(b"cgroup2", b"/base/sys/fs/cgroup", b"cgroup2", hard, b"") {
        report(&format!("no cgroups: {}", errno.text()));
    }
    let modules = Modules::find();
    if let Some(modules) = &modules {
        modules.load(&modules.early);
    }
    os::change_directory(b"/base").context(|| "enter /base".into())?;
    os::mount(b".", b"/", b"", os::MS_MOVE, b"").context(|| "leave the initramfs".into())?;
    os::change_root(b".").context(|| "leave the initramfs".into())?;
    os::change_directory(b"/").context(|| "enter the root".into())?;

    let line = os::read_file(b"/proc/cmdline", 4096).context(|| "read the kernel's command line".into())?;
    let Some(root) = root_of(&line) else {
        return Ok(Next::Serve(modules));
    };
    if let Some(modules) = &modules {
        modules.load(&modules.late);
    }
    Ok(Next::HandOver(root))
}

/// The modules of the initramfs.
pub struct Modules {
    /// Their directory, which stays reachable when the initramfs is left.
    directory: Fd,
    early: Vec<Vec<u8>>,
    late: Vec<Vec<u8>>,
}

impl Modules {
    /// `/modules/order` has one file name per line; what comes after an empty line can wait.
    fn find() -> Option<Self> {
        let directory = os::open(MODULES, O_PATH | O_DIRECTORY).ok()?;
        let order = os::read_all(&os::open_at(directory.raw(), b"order", 0).ok()?, 64 << 10).ok()?;
        let mut parts = order
            .trim_ascii_end()
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec);
        Some(Self {
            early: parts.by_ref().take_while(|name| !name.is_empty()).collect(),
            late: parts.collect(),
            directory,
        })
    }

    /// Loads what is left. In a child and after everything else, while the guest serves.
    pub fn load_late(&self) {
        if !self.late.is_empty() && os::fork(0, None) == Ok(0) {
            os::be_nice();
            self.load(&self.late);
            os::exit(0);
        }
    }

    /// Loads modules; what cannot be loaded is said, and missed when it is needed.
    fn load(&self, names: &[Vec<u8>]) {
        for name in names {
            let loaded = os::open_at(self.directory.raw(), name, 0).and_then(|file| os::load_module(&file));
            match loaded {
                // Built into this kernel, or loaded by another's dependency.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => report(&format!("module {}: {}", show(name), errno.text())),
            }
            // The initramfs is memory.
            let _ = os::remove_at(&self.directory, name);
        }
    }
}

/// Looks for devices that were plugged in.
pub fn rescan() {
    let _ = os::write_file(b"/sys/bus/pci/rescan", b"1");
}

/// `root=`, `rootfstype=`, `rootflags=`, `ro`, `rw`, `init=`, as the kernel itself knows them.
fn root_of(line: &[u8]) -> Option<RootDevice> {
    let value = |name: &[u8]| {
        line.split(u8::is_ascii_whitespace)
            .filter_map(|word| word.strip_prefix(name))
            .next_back()
            .map(<[u8]>::to_vec)
    };
    let access = line
        .split(u8::is_ascii_whitespace)
        .rfind(|word| matches!(*word, b"ro" | b"rw"));
    let source = value(b"root=")?;
    Some(RootDevice {
        source,
        kind: value(b"rootfstype=").unwrap_or_else(|| b"ext4".to_vec()),
        options: value(b"rootflags=").unwrap_or_default(),
        readonly: access == Some(b"ro"),
        init: value(b"init=").unwrap_or_else(|| b"/sbin/init".to_vec()),
    })
}

/// Mounts the machine's root and becomes its init; returns only to say why not.
pub fn hand_over(root: &RootDevice) -> Fault {
    let Err(fault) = become_system(root);
    fault
}

fn become_system(root: &RootDevice) -> Result<core::convert::Infallible> {
    let what = || format!("mount {} ({}) as the root", show(&root.source), show(&root.kind));
    let flags = if root.readonly { os::MS_RDONLY } else { 0 };
    let mut waited = 0;
    loop {
        match os::mount(&root.source, b"/root", &root.kind, flags, &root.options) {
            Ok(()) => break,
            // The device is not there yet: disks are found while the kernel goes on.
            Err(Errno::NOENT | Errno(6 | 15) | Errno::INVAL) if waited < PATIENCE => {
                os::sleep(10);
                waited += 10;
            }
            result => result.context(what)?,
        }
    }
    for directory in [&b"/dev"[..], b"/proc", b"/sys"] {
        let target = [b"/root", directory].concat();
        // A minimal root may lack the directory; its init has to do without then.
        if let Err(errno) = os::mount(directory, &target, b"", os::MS_MOVE, b"") {
            report(&format!("move {} to the root: {}", show(directory), errno.text()));
        }
    }
    os::change_directory(b"/root").context(|| "enter the root".into())?;
    os::mount(b".", b"/", b"", os::MS_MOVE, b"").context(|| "move to the root".into())?;
    os::change_root(b".").context(|| "change to the root".into())?;
    os::change_directory(b"/").context(|| "enter the root".into())?;
    let name = os::terminated(&root.init).context(|| "read init=".into())?;
    let environment = [b"HOME=/\0".as_ptr(), b"TERM=linux\0".as_ptr(), core::ptr::null()];
    let errno = os::execute(&root.init, &[name.as_ptr(), core::ptr::null()], &environment);
    Err(errno).context(|| {
        format!(
            "execute {} of the root; name another with init=",
            show(&root.init)
        )
    })
}
