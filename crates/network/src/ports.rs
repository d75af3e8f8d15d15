//! Ports of the host that lead to an endpoint: what is asked for, what was given, and keeping others off it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
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
    /// The address of the host to publish on; `0.0.0.0` is every one of them.
    pub host_ip: IpAddr,
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
    /// The address of the host; `0.0.0.0` is every one of them.
    pub host_ip: IpAddr,
    /// The port of the host.
    pub host_port: u16,
    /// The port of the endpoint.
    pub target_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}->{}/{}",
            self.host_ip, self.host_port, self.target_port, self.protocol
        )
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

pub(crate) fn ipv4(host_ip: IpAddr) -> Result<Ipv4Addr> {
    match host_ip {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "cannot publish a port on the IPv6 address {ip}: the bridge has IPv4 only; publish on an IPv4 address"
            ),
        )),
    }
}

/// Reserves the first port of the wish that is free for both the host and `is_ours`, which names the endpoint of this
/// bridge that has a port already.
pub(crate) fn reserve(
    spec: &PortSpec,
    is_ours: impl Fn(Ipv4Addr, u16) -> Option<String>,
) -> Result<Reservation> {
    let host = ipv4(spec.host_ip)?;
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
    // The kernel's own choice can hit a port of ours only if somebody lost its reservation: a few attempts are plenty.
    const EPHEMERAL_ATTEMPTS: usize = 16;
    let candidates: Box<dyn Iterator<Item = u16>> = if *spec.host_ports.start() == 0 {
        Box::new(std::iter::repeat_n(0, EPHEMERAL_ATTEMPTS))
    } else {
        Box::new(spec.host_ports.clone())
    };
    let mut conflict = None;
    for candidate in candidates {
        let taken_by_us = |port| {
            is_ours(host, port)
                .map(|owner| taken(host, port, spec.protocol, Some(&format!("the endpoint {owner}"))))
        };
        if candidate != 0
            && let Some(error) = taken_by_us(candidate)
        {
            conflict = Some(error);
            continue;
        }
        match bind(host, candidate, spec.protocol) {
            Ok((port, socket)) => {
                if let Some(error) = taken_by_us(port) {
                    conflict = Some(error);
                    continue;
                }
                let port = PublishedPort {
                    host_ip: spec.host_ip,
                    host_port: port,
                    target_port: spec.target_port,
                    protocol: spec.protocol,
                };
                return Ok(Reservation { port, socket });
            }
            Err(error) if error.kind() == ErrorKind::Conflict => conflict = Some(error),
            Err(error) => return Err(error),
        }
    }
    let (start, end) = (spec.host_ports.start(), spec.host_ports.end());
    match conflict {
        Some(error) if start == end && *start != 0 => Err(error),
        _ => Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "no port is free on {host} for {} in the range {start}-{end}; name another range",
                spec.protocol
            ),
        )),
    }
}

fn taken(host: Ipv4Addr, port: u16, protocol: Protocol, holder: Option<&str>) -> Error {
    let holder = holder.map(|h| format!(" by {h}")).unwrap_or_default();
    Error::conflict(format!(
        "port is already allocated: {host}:{port}/{protocol} is in use{holder}; choose another port or stop what uses it"
    ))
}

fn bind(host: Ipv4Addr, port: u16, protocol: Protocol) -> Result<(u16, Option<OwnedFd>)> {
    let what = || format!("reserve {host}:{port}/{protocol}");
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = match rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, Some(number))
    {
        Err(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT) if protocol == Protocol::Sctp && port != 0 => {
            return Ok((port, None));
        }
        other => other.map_err(|e| Error::io(what(), e))?,
    };
    let address = SocketAddrV4::new(host, port);
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
                format!("cannot publish on {host}:{port}/{protocol}: {host} is not an address of this host"),
            ));
        }
        Err(errno) => return Err(Error::io(what(), errno)),
    }
    if protocol == Protocol::Udp {
        refuse_datagrams(&socket).map_err(|e| Error::io(what(), e))?;
    }
    let port = match port {
        0 => rustix::net::getsockname(&socket)
            .and_then(SocketAddrV4::try_from)
            .map_err(|e| Error::io(what(), e))?
            .port(),
        port => port,
    };
    Ok((port, Some(socket)))
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
