//! The sockets of one namespace, and the rules that lead port 53 to them.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;

use rustix::net::sockopt;

use super::ADDRESS;
use crate::error::{Error, Result};
use crate::netlink::{Family, Socket};
use crate::netns;
use crate::nft::local_dns::{self, TABLE};

/// Bytes of questions that may wait, by the kernel's counting, which counts each as some 700: with the usual 200 KiB those of a
/// thirtieth of a second were lost at 10,000 per second. They are not taken before there are questions.
const WAITING: usize = 1 << 20;

/// What serves one namespace.
pub(super) struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

/// Opens both and installs the rules, which replace those of an earlier process.
pub(super) fn open(netns: BorrowedFd<'_>) -> Result<Sockets> {
    netns::within(netns, |_, _| {
        let failed = |error| Error::io("open the sockets of the DNS server in the container", error);
        let any = SocketAddr::from((ADDRESS, 0));
        let udp = UdpSocket::bind(any).map_err(failed)?;
        let tcp = TcpListener::bind(any).map_err(failed)?;
        udp.set_nonblocking(true).map_err(failed)?;
        // Beyond what the host allows to anybody, if that may be; otherwise as much as it does.
        let _ = sockopt::set_socket_recv_buffer_size_force(&udp, WAITING)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&udp, WAITING));
        tcp.set_nonblocking(true).map_err(failed)?;
        let ports = (
            udp.local_addr().map_err(failed)?.port(),
            tcp.local_addr().map_err(failed)?.port(),
        );
        Socket::open(Family::Netfilter)?
            .transaction(local_dns::redirect(ADDRESS, ports.0, ports.1))
            .map_err(|refusal| refusal.on(format_args!("table {TABLE} of the container")))?;
        Ok(Sockets { udp, tcp })
    })
}
