//! Who has a port: asked only after a bind has failed, to say it in the error.
//!
//! From `NETLINK_SOCK_DIAG` (sock_diag(7)), which, unlike `/proc/net/tcp`, also knows sockets that are bound and do not
//! listen (Linux 6.8), and from the descriptors of all processes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::message::Batch;
use crate::netlink::{Family, Socket};
use crate::ports::Protocol;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const ALL_STATES: u32 = u32::MAX;
const TCP_TIME_WAIT: u8 = 6;

/// A socket, as `struct inet_diag_msg` tells of it.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// Those that stand for an IPv4 address are one.
    address: IpAddr,
    port: u16,
    state: u8,
    inode: u32,
}

/// Whether what occupies the port are connections in TIME_WAIT and nothing else.
pub(crate) fn only_closed_connections(host: IpAddr, port: u16) -> bool {
    let entries = occupants(host, port, Protocol::Tcp);
    !entries.is_empty() && entries.iter().all(|e| e.state == TCP_TIME_WAIT)
}

/// A process that has the port, in words.
pub(crate) fn of(host: IpAddr, port: u16, protocol: Protocol) -> Option<String> {
    let inodes: Vec<u32> = occupants(host, port, protocol)
        .iter()
        .map(|e| e.inode)
        .filter(|&i| i != 0)
        .collect();
    let (pid, name) = process_with(&inodes)?;
    Some(format!("process {pid} ({name})"))
}

fn occupants(host: IpAddr, port: u16, protocol: Protocol) -> Vec<Entry> {
    let mut found = Vec::new();
    let Ok(mut socket) = Socket::open(Family::SockDiag) else {
        return found;
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        // `struct inet_diag_req_v2` with an empty socket id.
        let mut request = [0u8; 56];
        request[0] = family as u8;
        request[1] = protocol.number();
        request[4..8].copy_from_slice(&ALL_STATES.to_ne_bytes());
        // A kernel that cannot tell leaves the holder unnamed.
        let entries = socket
            .dump(|batch: &mut Batch| batch.push("list sockets", SOCK_DIAG_BY_FAMILY, 0, &request, |_| ()))
            .unwrap_or_default();
        found.extend(entries.iter().filter_map(|e| parse(e)).filter(|e| {
            e.port == port
                && (e.address == host
                    // A socket of `::` has every address, unless it says otherwise.
                    || (e.address.is_unspecified() && (e.address.is_ipv6() || host.is_ipv4()))
                    || (host.is_unspecified() && e.address.is_ipv4() == host.is_ipv4()))
        }));
    }
    found
}

fn parse(message: &[u8]) -> Option<Entry> {
    let message = message.first_chunk::<72>()?;
    let address: &[u8; 16] = message[8..24].first_chunk()?;
    let address = match i32::from(message[0]) {
        libc::AF_INET => Ipv4Addr::new(address[0], address[1], address[2], address[3]).into(),
        _ => IpAddr::V6(Ipv6Addr::from(*address)).to_canonical(),
    };
    Some(Entry {
        address,
        port: u16::from_be_bytes([message[4], message[5]]),
        state: message[1],
        inode: u32::from_ne_bytes([message[68], message[69], message[70], message[71]]),
    })
}

fn process_with(inodes: &[u32]) -> Option<(u32, String)> {
    if inodes.is_empty() {
        return None;
    }
    let targets: Vec<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            if let Ok(target) = fs::read_link(descriptor.path())
                && targets.iter().any(|t| target.as_os_str() == t.as_str())
            {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some((pid, name.trim_end().escape_debug().to_string()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn the_holder_is_named() {
        let me = std::process::id().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(
            of(Ipv4Addr::LOCALHOST.into(), port, Protocol::Tcp)
                .unwrap()
                .contains(&me)
        );
        assert!(of(Ipv4Addr::UNSPECIFIED.into(), port, Protocol::Tcp).is_some());
        assert!(of(Ipv4Addr::new(127, 0, 0, 9).into(), port, Protocol::Tcp).is_none());
        assert!(!only_closed_connections(Ipv4Addr::LOCALHOST.into(), port));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(
            of(
                Ipv4Addr::LOCALHOST.into(),
                socket.local_addr().unwrap().port(),
                Protocol::Udp
            )
            .unwrap()
            .contains(&me)
        );
    }

    proptest! {
        #[test]
        fn any_message_is_survived(message in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(parse(&message).is_some(), message.len() >= 72);
        }
    }
}
