//! A queue of a TAP device (`Documentation/networking/tuntap.rst`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::HEADER;

const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;

/// One queue.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// A queue that was opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let tap = Self(fd);
        let mut request = request();
        tap.control(TUNGETIFF, (&raw mut request).cast())?;
        // SAFETY: the kernel has filled in the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags }.cast_unsigned();
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the descriptor's flags are {flags:#x}: open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
                ),
            ));
        }
        let mut size = libc::c_int::try_from(HEADER).unwrap_or(0);
        tap.control(TUNSETVNETHDRSZ, (&raw mut size).cast())?;
        // Ours alone: nobody else minds.
        let flags = rustix::fs::fcntl_getfl(&tap.0)?;
        rustix::fs::fcntl_setfl(&tap.0, flags | OFlags::NONBLOCK)?;
        Ok(tap)
    }

    fn control(&self, request: libc::Ioctl, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: callers pass what the request wants, and it lives across the call; the kernel checks the descriptor.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// What the guest takes off our hands of packets it receives: whole checksums, whole segments.
    pub(super) fn set_offloads(&self, checksum: bool, tso4: bool, tso6: bool) -> io::Result<()> {
        let mut flags = 0;
        if checksum {
            flags |= TUN_F_CSUM;
            flags |= if tso4 { TUN_F_TSO4 } else { 0 };
            flags |= if tso6 { TUN_F_TSO6 } else { 0 };
        }
        // The argument is a number, not a pointer.
        self.control(TUNSETOFFLOAD, std::ptr::without_provenance_mut(flags as usize))
    }

    /// Whether the kernel puts packets into this queue. A queue that is so already is no error.
    pub(super) fn attach(&self, on: bool) -> io::Result<()> {
        let mut request = request();
        let flags = if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flags.cast_signed();
        match self.control(TUNSETQUEUE, (&raw mut request).cast()) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// Receives a packet with its header.
    pub(super) fn read(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the vectors are pieces of the guest's memory that the caller's buffers keep mapped.
        done(unsafe { libc::readv(self.0.as_raw_fd(), vectors.as_ptr(), count) })
    }

    /// Sends a packet with its header.
    pub(super) fn write(&self, vectors: &[libc::iovec]) -> io::Result<usize> {
        let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: as above.
        done(unsafe { libc::writev(self.0.as_raw_fd(), vectors.as_ptr(), count) })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn done(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn request() -> libc::ifreq {
    // SAFETY: integers and arrays of them: zeroes are a value.
    unsafe { std::mem::zeroed() }
}
