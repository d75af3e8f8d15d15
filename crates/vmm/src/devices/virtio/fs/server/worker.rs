//! The thread that answers requests: whose files it makes, and by which names it reaches open descriptors.
//!
//! What a request makes belongs to the user who asked. The thread takes on that user's file system identity (`setfsuid(2)`, `setfsgid(2)`: they are
//! a thread's own) while it makes it, so the new file never belongs to anybody else, directories that hand down their group do
//! so, and quotas count right: `fchownat` afterwards has none of these. The identity alone would take capabilities away, and with them the right to write
//! where the guest's kernel has already allowed it; so they are raised again.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

/// The directory in which every open descriptor of this process has a name. It must be opened before the process is jailed.
pub struct Descriptors(OwnedFd);

impl Descriptors {
    /// That of the calling process: a child of it needs its own.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn open() -> Result<Self, Errno> {
        rustix::fs::open(
            c"/proc/self/fd",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map(Self)
    }
}

/// A descriptor's name in the directory that is every worker's working directory.
pub struct FdName {
    bytes: [u8; 12],
}

impl FdName {
    /// The name of `file`, valid as long as it is open.
    pub fn of(file: &impl AsFd) -> Self {
        // The kernel's descriptors are not negative.
        let mut number = file.as_fd().as_raw_fd().unsigned_abs();
        let mut bytes = [0; 12];
        let mut digits = 1;
        let mut rest = number;
        while rest >= 10 {
            rest /= 10;
            digits += 1;
        }
        for at in (0..digits).rev() {
            bytes[at] = b'0' + (number % 10) as u8;
            number /= 10;
        }
        Self { bytes }
    }

    /// As a path.
    pub fn path(&self) -> &CStr {
        // Ten digits at most, so there is always a zero.
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

/// The calling thread, made fit for answering requests. On another thread it would act with that thread's working directory: names of descriptors
/// would not be found there.
pub struct Worker {
    capabilities: CapabilitySets,
    uid: u32,
    gid: u32,
}

impl Worker {
    /// Gives the calling thread a working directory and a mask of its own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(descriptors: &Descriptors) -> Result<Self, Errno> {
        // SAFETY: only the working directory, root and mask of this thread are separated from the others'.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        rustix::process::fchdir(&descriptors.0)?;
        // The guest's kernel has applied its process's mask.
        rustix::process::umask(Mode::empty());
        Ok(Self {
            capabilities: rustix::thread::capabilities(None)?,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        })
    }

    /// Opens what an `O_PATH` descriptor names. Only for regular files and directories: devices and pipes would do something.
    pub fn reopen(&self, file: &impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let name = FdName::of(file);
        let flags = (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::open(name.path(), flags, Mode::empty())
    }

    /// Does `what` as a user of the guest.
    ///
    /// # Errors
    /// `EPERM` when this process may not take on that identity.
    pub fn as_user<T>(
        &self,
        uid: u32,
        gid: u32,
        what: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if uid == self.uid && gid == self.gid {
            return what();
        }
        let _restored = Identity(self);
        // `-1` only asks; as an identity it is nobody's.
        if !set_fs_ids(uid, gid) || uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::PERM);
        }
        rustix::thread::set_capabilities(None, self.capabilities)?;
        what()
    }

    /// Does `what` without the right to keep set-user-ID and set-group-ID bits of a file that changes, if `without`; as a member of `gid`, for a
    /// set-group-ID bit without the right to execute stays when a member of the file's group changes it.
    pub fn without_fsetid<T>(
        &self,
        gid: u32,
        without: bool,
        what: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if !without || !self.capabilities.effective.contains(CapabilitySet::FSETID) {
            return what();
        }
        let _restored = Identity(self);
        if gid != self.gid {
            set_fs_ids(self.uid, gid);
        }
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: self.capabilities.effective - CapabilitySet::FSETID,
                ..self.capabilities
            },
        )?;
        what()
    }
}

/// Puts the thread's own identity and capabilities back.
struct Identity<'a>(&'a Worker);

impl Drop for Identity<'_> {
    fn drop(&mut self) {
        set_fs_ids(self.0.uid, self.0.gid);
        // Cannot fail: it is within what is permitted.
        let _ = rustix::thread::set_capabilities(None, self.0.capabilities);
    }
}

/// Whether the thread has these identities now.
fn set_fs_ids(uid: u32, gid: u32) -> bool {
    // They answer with what was before, whether or not they did anything; -1 changes nothing.
    // SAFETY: no memory is involved.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        libc::setfsgid(u32::MAX) as u32 == gid && libc::setfsuid(u32::MAX) as u32 == uid
    }
}

/// `preadv2(2)` into memory of the guest.
pub fn read_vectored(file: BorrowedFd<'_>, buffers: &super::Buffers, offset: u64) -> Result<usize, Errno> {
    let vectors = buffers.iovecs();
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: the vectors are the guest's memory, which `buffers` keeps, and that may be written at any time.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            vectors.as_ptr(),
            // A chain has 1024 pieces at most, and so has a call (`UIO_MAXIOV`).
            vectors.len().min(1024) as libc::c_int,
            offset,
            0,
        )
    };
    usize::try_from(read).map_err(|_| last_error())
}

/// `pwritev2(2)` from memory of the guest.
pub fn write_vectored(
    file: BorrowedFd<'_>,
    buffers: &super::Buffers,
    offset: u64,
    append: bool,
) -> Result<usize, Errno> {
    let vectors = buffers.iovecs();
    let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    let flags = if append { libc::RWF_APPEND } else { 0 };
    // SAFETY: the vectors are the guest's memory, which `buffers` keeps; that the guest may change it meanwhile is its own affair.
    let written = unsafe {
        libc::pwritev2(
            file.as_raw_fd(),
            vectors.as_ptr(),
            // A chain has 1024 pieces at most, and so has a call (`UIO_MAXIOV`).
            vectors.len().min(1024) as libc::c_int,
            offset,
            flags,
        )
    };
    usize::try_from(written).map_err(|_| last_error())
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_their_numbers_as_names() {
        for file in [
            std::fs::File::open("/dev/null").unwrap(),
            std::fs::File::open("/").unwrap(),
        ] {
            let expected = file.as_raw_fd().to_string();
            assert_eq!(FdName::of(&file).path().to_str().unwrap(), expected);
        }
    }

    #[test]
    fn an_identity_is_put_back() {
        std::thread::spawn(|| {
            let worker = Worker::enter(&Descriptors::open().unwrap()).unwrap();
            let before = rustix::thread::capabilities(None).unwrap();
            worker
                .as_user(1234, 567, || {
                    let inside = rustix::thread::capabilities(None).unwrap();
                    assert_eq!(inside.effective, before.effective);
                    Ok(())
                })
                .unwrap();
            assert!(worker.as_user(u32::MAX, 0, || Ok(())).is_err());
            let after = rustix::thread::capabilities(None).unwrap();
            assert_eq!(after.effective, before.effective);
            let uid = rustix::process::geteuid().as_raw();
            // SAFETY: asks only.
            assert_eq!(unsafe { libc::setfsuid(u32::MAX) } as u32, uid);
        })
        .join()
        .unwrap();
    }
}
