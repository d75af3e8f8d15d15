//! Network namespaces as descriptors: nothing is mounted, nothing is left on disk.
//!
//! Whatever must run inside a namespace runs on a thread of its own that ends there. No thread that is used again ever
//! changes its namespace.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::{Error, ErrorKind, Result};
use crate::link;
use crate::netlink::message::Batch;
use crate::netlink::{Family, Socket};
use crate::nft::Ip;

/// A network namespace. It lives as long as a descriptor or a process holds it.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.0
    }
}

impl From<OwnedFd> for Netns {
    /// The descriptor must be one of a network namespace; the kernel says so at the first use if it is not.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// Values written below `/proc/sys/net` of a new namespace, such as `ipv4/ip_unprivileged_port_start`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetnsConfig {
    /// Pairs of a path below `/proc/sys/net` and the value.
    pub sysctls: Vec<(String, String)>,
}

impl Netns {
    /// A new namespace in which only loopback exists, up.
    pub fn new_isolated(config: &NetnsConfig) -> Result<Self> {
        create(config, |_, socket| {
            let mut batch = Batch::new();
            link::set_loopback_up(&mut batch);
            socket
                .request(batch)
                .map_err(|r| r.on("lo in a new network namespace"))
        })
        .map(|(netns, ())| netns)
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        open_current()
            .map(Self)
            .map_err(|e| Error::io("open the network namespace of this thread", e))
    }

    /// Makes the default routes go to the gateways, wherever they went before; of a family without one there is none afterwards.
    pub fn set_default_routes(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Result<()> {
        within(self.as_fd(), |_, socket| {
            for (ip, gateway) in [(Ip::V4, v4.map(IpAddr::V4)), (Ip::V6, v6.map(IpAddr::V6))] {
                let mut batch = Batch::new();
                match gateway {
                    Some(gateway) => link::replace_default_route(&mut batch, gateway),
                    None => link::remove_default_route(&mut batch, ip),
                }
                match socket.request(batch) {
                    // There was none, or not even the family.
                    Err(refusal)
                        if gateway.is_none()
                            && matches!(
                                refusal.errno,
                                Errno::SRCH | Errno::NOENT | Errno::AFNOSUPPORT | Errno::OPNOTSUPP
                            ) => {}
                    other => other.map_err(|r| r.on("a container"))?,
                }
            }
            Ok(())
        })
    }

    /// The first name of `eth0`, `eth1`, … that no interface has there, and that is none of `taken`.
    pub fn free_name(&self, taken: &[&str]) -> Result<String> {
        within(self.as_fd(), |_, socket| {
            // More than a namespace has interfaces.
            for index in 0..u32::MAX {
                let name = format!("eth{index}");
                if !taken.contains(&name.as_str())
                    && link::find(socket, &name)
                        .map_err(|r| r.on("a container"))?
                        .is_none()
                {
                    return Ok(name);
                }
            }
            Err(Error::new(
                ErrorKind::Exhausted,
                "a container has no name left for an interface",
            ))
        })
    }

    /// Runs `work` inside the namespace, on a thread that ends afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            enter(self.as_fd())?;
            Ok(work())
        })
    }
}

/// Makes a namespace and runs `setup` inside it, with a netlink socket of that namespace.
pub(crate) fn create<T: Send>(
    config: &NetnsConfig,
    setup: impl FnOnce(BorrowedFd<'_>, &mut Socket) -> Result<T> + Send,
) -> Result<(Netns, T)> {
    on_own_thread(|| {
        // SAFETY: only this thread leaves its network namespace, and it ends right after; CLONE_NEWNET affects neither
        // memory nor descriptors, which is what makes unsharing dangerous to other code.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|e| Error::io("create a network namespace", e))?;
        let fd = open_current().map_err(|e| Error::io("open the new network namespace", e))?;
        let mut socket = Socket::open(Family::Route)?;
        for (path, value) in &config.sysctls {
            write_sysctl(path, value)?;
        }
        let value = setup(fd.as_fd(), &mut socket)?;
        Ok((Netns(fd), value))
    })
}

/// Runs `setup` inside an existing namespace, with a netlink socket of that namespace.
pub(crate) fn within<T: Send>(
    netns: BorrowedFd<'_>,
    setup: impl FnOnce(BorrowedFd<'_>, &mut Socket) -> Result<T> + Send,
) -> Result<T> {
    on_own_thread(|| {
        enter(netns)?;
        let mut socket = Socket::open(Family::Route)?;
        setup(netns, &mut socket)
    })
}

fn enter(netns: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
        .map_err(|e| Error::io("enter the network namespace", e))
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)
            .map_err(|e| Error::io("start a thread for a network namespace", e))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn open_current() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        "/proc/thread-self/ns/net",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Writes a value below `/proc/sys/net` of the calling thread's namespace. `..` and empty components are refused.
pub(crate) fn write_sysctl(path: &str, value: &str) -> Result<()> {
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::invalid(format!(
            "`{}` is not a path below /proc/sys/net",
            path.escape_debug()
        )));
    }
    fs::write(format!("/proc/sys/net/{path}"), value)
        .map_err(|e| Error::io(format_args!("set net/{path} to {value}"), e))
}

/// Writes a value unless it is there already, as it may be where `/proc/sys` is read-only.
pub(crate) fn ensure_sysctl(path: &str, value: &str) -> Result<()> {
    match read_sysctl(path) {
        Ok(current) if current.trim_end() == value => Ok(()),
        _ => write_sysctl(path, value),
    }
}

/// Like `write_sysctl`, where a kernel without the feature is as good.
pub(crate) fn write_sysctl_if_there(path: &str, value: &str) -> Result<()> {
    match write_sysctl(path, value) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// The value of a file below `/proc/sys/net`, in the calling thread's namespace.
pub(crate) fn read_sysctl(path: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/sys/net/{path}"))
}

/// The interfaces of the calling thread's namespace that IPv6 knows; none where there is no IPv6.
pub(crate) fn interfaces() -> Result<Vec<String>> {
    let failed = |error| Error::io("list net/ipv6/conf", error);
    let listing = match fs::read_dir("/proc/sys/net/ipv6/conf") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in listing {
        let name = entry.map_err(failed)?.file_name();
        names.extend(
            name.into_string()
                .ok()
                .filter(|name| name != "all" && name != "default"),
        );
    }
    Ok(names)
}

/// The index of an interface in the calling thread's namespace.
pub(crate) fn interface_index(socket: &Socket, name: &str) -> Result<u32> {
    rustix::net::netdevice::name_to_index(socket, name)
        .map_err(|e| Error::io(format_args!("find the interface {name}"), e))
}
