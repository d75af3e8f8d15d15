//! Ports of the host that lead to an endpoint: what is asked for, what was given, and keeping others off it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::holder;

/// A transport protocol whose ports can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    pub(crate) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|p| p.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "sctp" => Ok(Protocol::Sctp),
            _ => Err(Error::invalid(format!(
                "`{}` is not a protocol; use tcp, udp or sctp",
                text.escape_debug()
            ))),
        }
    }
}

/// A wish for one published port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// The address of the host to publish on: `0.0.0.0` is every one of IPv4, `::` every one of IPv6, none is both, as far as
    /// the endpoint has them.
    pub host_ip: Option<IpAddr>,
    /// The first free port of this range is taken; `0..=0` lets the kernel choose one from its ephemeral range.
    pub host_ports: RangeInclusive<u16>,
    /// The port of the endpoint.
    pub target_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// A published port, as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The address of the host; `0.0.0.0` and `::` are every one of their family.
    pub host_ip: IpAddr,
    /// The port of the host.
    pub host_port: u16,
    /// The port of the endpoint.
    pub target_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl PublishedPort {
    /// The port of an endpoint that is reached at its own address, past the host's.
    pub fn direct(address: IpAddr, target_port: u16, protocol: Protocol) -> Self {
        Self {
            host_ip: address,
            host_port: target_port,
            target_port,
            protocol,
        }
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = SocketAddr::new(self.host_ip, self.host_port);
        write!(f, "{host}->{}/{}", self.target_port, self.protocol)
    }
}

/// A port of the host that nobody else can have as long as this lives: a socket that is bound and never listens.
///
/// It takes no part in the traffic: packets are given their new destination before the host looks for a socket. Hand the
/// descriptor to whatever lives as long as the endpoint does.
#[derive(Debug)]
pub struct Reservation {
    /// The port that was reserved.
    pub port: PublishedPort,
    /// Absent for a protocol that this kernel has no sockets of (SCTP, mostly): then there is nobody to keep off.
    pub socket: Option<OwnedFd>,
}

/// Which addresses of the host a wish is for, of an endpoint that may have IPv6.
pub(crate) fn hosts(spec: &PortSpec, has_v6: bool) -> Result<Vec<IpAddr>> {
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    );
    match spec.host_ip {
        None if has_v6 => Ok(vec![v4, v6]),
        None => Ok(vec![v4]),
        // Clients that know nothing of families call every address so.
        Some(host) if host == v6 && !has_v6 => Ok(vec![v4]),
        Some(IpAddr::V6(host)) if !has_v6 => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "cannot publish a port on the IPv6 address {host}: the network has IPv4 only; publish on an IPv4 address, or \
                 use a network that was made with --ipv6"
            ),
        )),
        Some(host) => Ok(vec![host]),
    }
}

/// Reserves the first port of the wish that is free for both the host and `is_ours`, which names the endpoint that has a port
/// already. On all of the addresses it is the same port.
pub(crate) fn reserve(
    spec: &PortSpec,
    hosts: &[IpAddr],
    is_ours: impl Fn(IpAddr, u16) -> Option<String>,
) -> Result<Vec<Reservation>> {
    if spec.target_port == 0
        || spec.host_ports.is_empty()
        || (*spec.host_ports.start() == 0 && *spec.host_ports.end() != 0)
    {
        return Err(Error::invalid(format!(
            "cannot publish port {}/{} on host ports {}-{}: ports go from 1 to 65535",
            spec.target_port,
            spec.protocol,
            spec.host_ports.start(),
            spec.host_ports.end()
        )));
    }
    // The kernel's own choice is free of the first address, and can hit a port of ours only if somebody lost its
    // reservation: a few attempts are plenty.
    const EPHEMERAL_ATTEMPTS: usize = 16;
    let candidates: Box<dyn Iterator<Item = u16>> = if *spec.host_ports.start() == 0 {
        Box::new(std::iter::repeat_n(0, EPHEMERAL_ATTEMPTS))
    } else {
        Box::new(spec.host_ports.clone())
    };
    let mut conflict = None;
    for candidate in candidates {
        match reserve_one(spec, hosts, candidate, &is_ours) {
            Ok(reservations) => return Ok(reservations),
            Err(error) if error.kind() == ErrorKind::Conflict => conflict = Some(error),
            Err(error) => return Err(error),
        }
    }
    let (start, end) = (spec.host_ports.start(), spec.host_ports.end());
    match conflict {
        Some(error) if start == end && *start != 0 => Err(error),
        _ => {
            let on: Vec<String> = hosts.iter().map(IpAddr::to_string).collect();
            Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "no port is free on {} for {} in the range {start}-{end}; name another range",
                    on.join(" and "),
                    spec.protocol
                ),
            ))
        }
    }
}

/// Reserves one port on all addresses, or on none; 0 is one that the kernel chooses.
fn reserve_one(
    spec: &PortSpec,
    hosts: &[IpAddr],
    mut port: u16,
    is_ours: impl Fn(IpAddr, u16) -> Option<String>,
) -> Result<Vec<Reservation>> {
    let free = |host, port| match is_ours(host, port) {
        Some(owner) => Err(taken(
            host,
            port,
            spec.protocol,
            Some(&format!("the endpoint {owner}")),
        )),
        None => Ok(()),
    };
    let mut reservations = Vec::with_capacity(hosts.len());
    for host in hosts {
        if port != 0 {
            free(*host, port)?;
        }
        let (bound, socket) = bind(*host, port, spec.protocol)?;
        if port == 0 {
            free(*host, bound)?;
        }
        port = bound;
        reservations.push(Reservation {
            port: PublishedPort {
                host_ip: *host,
                host_port: port,
                target_port: spec.target_port,
                protocol: spec.protocol,
            },
            socket,
        });
    }
    Ok(reservations)
}

fn taken(host: IpAddr, port: u16, protocol: Protocol, holder: Option<&str>) -> Error {
    let holder = holder.map(|h| format!(" by {h}")).unwrap_or_default();
    let host = SocketAddr::new(host, port);
    Error::conflict(format!(
        "port is already allocated: {host}/{protocol} is in use{holder}; choose another port or stop what uses it"
    ))
}

fn bind(host: IpAddr, port: u16, protocol: Protocol) -> Result<(u16, Option<OwnedFd>)> {
    let address = SocketAddr::new(host, port);
    let what = || format!("reserve {address}/{protocol}");
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let family = match host {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = match rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(number)) {
        // Nobody can listen there, but packets can be translated.
        Err(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT) if protocol == Protocol::Sctp => {
            return match port {
                0 => Ok((random_port()?, None)),
                port => Ok((port, None)),
            };
        }
        other => other.map_err(|e| Error::io(what(), e))?,
    };
    if host.is_ipv6() {
        // IPv4 has a socket of its own.
        sockopt::set_ipv6_v6only(&socket, true).map_err(|e| Error::io(what(), e))?;
    }
    let mut bound = rustix::net::bind(&socket, &address);
    if bound == Err(Errno::ADDRINUSE)
        && protocol == Protocol::Tcp
        && holder::only_closed_connections(host, port)
    {
        // Connections that a former server closed linger for a minute. They do not count, and only for this one call:
        // afterwards the socket keeps everybody off again.
        bound = sockopt::set_socket_reuseaddr(&socket, true)
            .and_then(|()| rustix::net::bind(&socket, &address))
            .and_then(|()| sockopt::set_socket_reuseaddr(&socket, false));
    }
    match bound {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            return Err(taken(
                host,
                port,
                protocol,
                holder::of(host, port, protocol).as_deref(),
            ));
        }
        Err(Errno::ADDRNOTAVAIL) => {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("cannot publish on {address}/{protocol}: {host} is not an address of this host"),
            ));
        }
        Err(errno) => return Err(Error::io(what(), errno)),
    }
    if protocol == Protocol::Udp {
        refuse_datagrams(&socket).map_err(|e| Error::io(what(), e))?;
    }
    let port = match port {
        0 => rustix::net::getsockname(&socket)
            .and_then(SocketAddr::try_from)
            .map_err(|e| Error::io(what(), e))?
            .port(),
        port => port,
    };
    Ok((port, Some(socket)))
}

/// One of the range that kernels choose from by default.
fn random_port() -> Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("draw a random port", e))?;
    Ok(32768 + u16::from_ne_bytes(bytes) % (60999 - 32768 + 1))
}

/// Nobody ever reads a reserved UDP socket: drop what reaches it (a flow older than the publication) instead of queueing it.
fn refuse_datagrams(socket: &OwnedFd) -> std::io::Result<()> {
    // BPF_RET | BPF_K with 0: keep no byte of the packet.
    let mut program = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let filter = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which is alive for the call, and `len` is its number of instructions.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
