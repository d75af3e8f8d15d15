//! TAP devices: an interface whose other side is a descriptor instead of a namespace (`Documentation/networking/tuntap.rst`).
//!
//! They are made without `TUNSETPERSIST`: the kernel removes the interface when the last copy of the descriptor is closed, so
//! that a machine that dies takes its end of the network with it, however it dies.
//!
//! Frames carry a `virtio_net_hdr` in front (`IFF_VNET_HDR`) and nothing else (`IFF_NO_PI`). How long it is and which
//! offloads there are (`TUNSETVNETHDRSZ`, `TUNSETOFFLOAD`) is for whoever reads the descriptor to settle.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, ErrorKind, Result};

/// What the kernel reads and writes at `TUNSETIFF`: the part of `struct ifreq` that it looks at, in its full length.
#[repr(C)]
struct Ifreq {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes the interface in the calling thread's network namespace. It is down, and on no bridge.
pub(crate) fn create(name: &str) -> Result<OwnedFd> {
    let failed = |what: &str, error: std::io::Error| Error::io(format_args!("{what} {name}"), error);
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT | rustix::io::Errno::NODEV => Error::new(
            ErrorKind::Unsupported,
            "virtual machines cannot be connected to networks: this kernel has no /dev/net/tun (modprobe tun)",
        ),
        other => failed("open /dev/net/tun for the interface", other.into()),
    })?;
    let mut request = Ifreq {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        rest: [0; 22],
    };
    // One byte stays zero: the name's end.
    let Some(place) = request.name[..libc::IFNAMSIZ - 1].get_mut(..name.len()) else {
        return Err(Error::invalid(format!(
            "{name} is too long for an interface's name"
        )));
    };
    place.copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads and writes one `struct ifreq`, which `request` is in size and in the fields used here.
    let made = unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if made < 0 {
        return Err(failed("create the interface", std::io::Error::last_os_error()));
    }
    Ok(tap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<Ifreq>(), size_of::<libc::ifreq>());
    }

    #[test]
    fn names_that_are_too_long_are_refused() {
        let error = create("sixteen-letters-").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
