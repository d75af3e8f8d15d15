//! The walls around a machine's processes: namespaces, an empty root, no capabilities, a filter of system calls.
//!
//! A process enters before it has threads, with every descriptor it will ever need in its hands. Afterwards it can open no file (there is none: the root is an
//! empty, read-only file system), make no socket but pairs, execute nothing, gain nothing. What it does all the same that its [filter](filter) does
//! not allow ends it by SIGSYS, with a line about it on the control socket (see [`report`]).
//!
//! There is no PID namespace: the processes have no `/proc`, and their filters let them signal nobody but themselves.

pub mod filter;
pub mod report;
#[cfg(test)]
mod tests;

use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags};

/// Who a process is in its jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jail {
    /// User and group to become; a process that keeps capabilities stays who it is.
    pub user: Option<(u32, u32)>,
    /// A network namespace of its own, with nothing in it. Descriptors of TAP devices work all the same.
    pub network: bool,
    /// Capabilities to keep.
    pub capabilities: CapabilitySet,
}

impl Default for Jail {
    /// Nobody, with nothing.
    fn default() -> Self {
        Self {
            user: Some((65534, 65534)),
            network: true,
            capabilities: CapabilitySet::empty(),
        }
    }
}

/// What the server of shared directories needs to act for a guest's users.
pub fn file_capabilities() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
}

/// A wall that could not be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot jail the machine's process: {what}")]
pub struct Error {
    what: &'static str,
    #[source]
    source: io::Error,
}

trait Step<T> {
    fn step(self, what: &'static str) -> Result<T, Error>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|errno| Error {
            what,
            source: errno.into(),
        })
    }
}

impl Jail {
    /// Builds the walls around the calling process, which must have one thread only. The filter comes last and separately ([`filter::install`]):
    /// after it nothing can be set up any more.
    ///
    /// # Errors
    /// When the kernel refuses a step: the process should end then.
    pub fn enter(&self) -> Result<(), Error> {
        let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        if self.network {
            flags |= UnshareFlags::NEWNET;
        }
        // SAFETY: descriptors stay shared with nobody but threads, of which there is one.
        unsafe { rustix::thread::unshare_unsafe(flags) }.step("it gets no namespaces of its own")?;
        empty_root().step("it gets no empty root")?;
        // A core file would have the guest's memory in it.
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        rustix::process::setrlimit(Resource::Core, none).step("core files cannot be switched off")?;
        self.drop_privileges()
    }

    fn drop_privileges(&self) -> Result<(), Error> {
        let held = rustix::thread::capabilities(None).step("its capabilities cannot be read")?;
        if held.effective.contains(CapabilitySet::SETPCAP) {
            for capability in CapabilitySet::all() - self.capabilities {
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // One that this kernel does not know.
                    Ok(()) | Err(Errno::INVAL) => {}
                    other => other.step("its bounding set cannot be emptied")?,
                }
            }
        }
        match rustix::thread::clear_ambient_capability_set() {
            Ok(()) | Err(Errno::INVAL) => {}
            other => other.step("its ambient capabilities cannot be dropped")?,
        }
        if let Some((uid, gid)) = self.user
            && held
                .effective
                .contains(CapabilitySet::SETUID | CapabilitySet::SETGID)
        {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::thread::set_thread_groups(&[]).step("its groups cannot be left")?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).step("its group cannot be changed")?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).step("its user cannot be changed")?;
        }
        let kept = self.capabilities & held.permitted;
        let kept = if self.user.is_some() {
            CapabilitySet::empty()
        } else {
            kept
        };
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).step("its capabilities cannot be dropped")?;
        rustix::thread::set_no_new_privs(true).step("new privileges cannot be ruled out")
    }
}

/// Makes an empty file system the root, and lets go of every other mount.
fn empty_root() -> Result<(), Errno> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "size", "4096")?;
    rustix::mount::fsconfig_set_string(&context, "mode", "0555")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let slash = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::mount::move_mount(
        &root,
        "",
        &slash,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root lies over the new one now.
    rustix::process::fchdir(&slash)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}
