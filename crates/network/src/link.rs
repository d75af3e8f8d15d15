//! rtnetlink: interfaces, addresses, routes (rtnetlink(7), `include/uapi/linux/{rtnetlink,if_link,if_addr}.h`).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rustix::io::Errno;

use crate::address::MacAddr;
use crate::netlink::message::{AttrIter, Batch, text, u32_of};
use crate::netlink::{Refusal, Socket};

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const UP: u32 = libc::IFF_UP as u32;
/// Loopback is the first interface of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    head[12..16].copy_from_slice(&change.to_ne_bytes());
    head
}

/// What is asked of a new veth pair.
pub(crate) struct VethSpec<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) bridge_index: u32,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: MacAddr,
    pub(crate) peer_netns: i32,
    pub(crate) mtu: Option<u32>,
    /// Ports that are isolated reach the bridge itself but not each other.
    pub(crate) isolated: bool,
    pub(crate) host_has_ipv6: bool,
}

/// The pair, with its peer made directly inside the other namespace; the host side is up and a port of the bridge.
///
/// One queue on each side: the default is one per processor, and each of them is a sysfs object.
pub(crate) fn add_veth(batch: &mut Batch, spec: &VethSpec<'_>) {
    batch.push(
        "create the interface pair",
        libc::RTM_NEWLINK,
        CREATE,
        &ifinfo(0, UP, UP),
        |a| {
            a.str(libc::IFLA_IFNAME, spec.host_name);
            a.u32(libc::IFLA_MASTER, spec.bridge_index);
            a.u32(libc::IFLA_NUM_TX_QUEUES, 1);
            a.u32(libc::IFLA_NUM_RX_QUEUES, 1);
            if let Some(mtu) = spec.mtu {
                a.u32(libc::IFLA_MTU, mtu);
            }
            a.nest(libc::IFLA_LINKINFO, |a| {
                a.str(libc::IFLA_INFO_KIND, "veth");
                a.nest(libc::IFLA_INFO_DATA, |a| {
                    a.nest(VETH_INFO_PEER, |a| {
                        a.raw(&ifinfo(0, 0, 0));
                        a.str(libc::IFLA_IFNAME, spec.peer_name);
                        a.put(libc::IFLA_ADDRESS, &spec.peer_mac.0);
                        a.u32(libc::IFLA_NET_NS_FD, spec.peer_netns as u32);
                        a.u32(libc::IFLA_NUM_TX_QUEUES, 1);
                        a.u32(libc::IFLA_NUM_RX_QUEUES, 1);
                        if let Some(mtu) = spec.mtu {
                            a.u32(libc::IFLA_MTU, mtu);
                        }
                    });
                });
            });
        },
    );
    // These attributes are only looked at on an interface that exists.
    batch.push(
        "configure the bridge port",
        libc::RTM_NEWLINK,
        0,
        &ifinfo(0, 0, 0),
        |a| {
            a.str(libc::IFLA_IFNAME, spec.host_name);
            a.nest(libc::IFLA_LINKINFO, |a| {
                a.str(libc::IFLA_INFO_SLAVE_KIND, "bridge");
                a.nest(libc::IFLA_INFO_SLAVE_DATA, |a| {
                    // Hairpin: where bridge netfilter is on, a packet to a port published by its own sender is translated
                    // while it is bridged, and has to leave by the port it came from.
                    a.u8(IFLA_BRPORT_MODE, 1);
                    if spec.isolated {
                        a.u8(IFLA_BRPORT_ISOLATED, 1);
                    }
                });
            });
            // A bridge port needs no link-local address, nor the multicast chatter that comes with one.
            if spec.host_has_ipv6 {
                a.nest(libc::IFLA_AF_SPEC, |a| {
                    a.nest(libc::AF_INET6 as u16, |a| {
                        a.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
                    });
                });
            }
        },
    );
}

pub(crate) fn add_bridge(batch: &mut Batch, name: &str, mac: MacAddr, mtu: Option<u32>) {
    batch.push(
        "create the bridge",
        libc::RTM_NEWLINK,
        CREATE,
        &ifinfo(0, 0, 0),
        |a| {
            a.str(libc::IFLA_IFNAME, name);
            // A fixed address: otherwise the bridge takes the lowest of its ports' and changes whenever one comes or goes.
            a.put(libc::IFLA_ADDRESS, &mac.0);
            if let Some(mtu) = mtu {
                a.u32(libc::IFLA_MTU, mtu);
            }
            a.nest(libc::IFLA_LINKINFO, |a| a.str(libc::IFLA_INFO_KIND, "bridge"));
        },
    );
}

/// Has the bridge's own traffic, from port to port, pass the rules for forwarded packets.
pub(crate) fn filter_bridged(batch: &mut Batch, name: &str) {
    batch.push(
        "filter between the ports of the bridge",
        libc::RTM_NEWLINK,
        0,
        &ifinfo(0, 0, 0),
        |a| {
            a.str(libc::IFLA_IFNAME, name);
            a.nest(libc::IFLA_LINKINFO, |a| {
                a.str(libc::IFLA_INFO_KIND, "bridge");
                a.nest(libc::IFLA_INFO_DATA, |a| a.u8(IFLA_BR_NF_CALL_IPTABLES, 1));
            });
        },
    );
}

pub(crate) fn set_up(batch: &mut Batch, index: u32) {
    batch.push(
        "bring up the interface",
        libc::RTM_NEWLINK,
        0,
        &ifinfo(index, UP, UP),
        |_| (),
    );
}

pub(crate) fn set_loopback_up(batch: &mut Batch) {
    set_up(batch, LOOPBACK_INDEX);
}

pub(crate) fn set_master(batch: &mut Batch, index: u32, bridge_index: u32) {
    batch.push(
        "put back on its bridge the interface",
        libc::RTM_NEWLINK,
        0,
        &ifinfo(index, UP, UP),
        |a| a.u32(libc::IFLA_MASTER, bridge_index),
    );
}

pub(crate) fn delete(batch: &mut Batch, name: &str) {
    batch.push(
        "remove the interface",
        libc::RTM_DELLINK,
        0,
        &ifinfo(0, 0, 0),
        |a| a.str(libc::IFLA_IFNAME, name),
    );
}

pub(crate) fn add_address(batch: &mut Batch, index: u32, address: Ipv4Addr, subnet: Ipv4Net) {
    let mut head = [
        libc::AF_INET as u8,
        subnet.prefix_len(),
        0,
        libc::RT_SCOPE_UNIVERSE,
        0,
        0,
        0,
        0,
    ];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.push("set the address of", libc::RTM_NEWADDR, CREATE, &head, |a| {
        a.put(libc::IFA_LOCAL, &address.octets());
        a.put(libc::IFA_ADDRESS, &address.octets());
        a.put(libc::IFA_BROADCAST, &subnet.broadcast().octets());
    });
}

/// The `rtmsg` of the default route in the main table.
fn default_route() -> [u8; 12] {
    let mut head = [0u8; 12];
    head[0] = libc::AF_INET as u8;
    head[4] = libc::RT_TABLE_MAIN;
    head[5] = libc::RTPROT_BOOT;
    head[6] = libc::RT_SCOPE_UNIVERSE;
    head[7] = libc::RTN_UNICAST;
    head
}

pub(crate) fn add_default_route(batch: &mut Batch, index: u32, gateway: Ipv4Addr) {
    let head = default_route();
    batch.push(
        "set the default route of",
        libc::RTM_NEWROUTE,
        CREATE,
        &head,
        |a| {
            a.put(libc::RTA_GATEWAY, &gateway.octets());
            a.u32(libc::RTA_OIF, index);
        },
    );
}

/// Makes the default route go to `gateway`, wherever it went before; without one there is none afterwards.
pub(crate) fn replace_default_route(batch: &mut Batch, gateway: Option<Ipv4Addr>) {
    let mut head = default_route();
    match gateway {
        Some(gateway) => batch.push(
            "replace the default route of",
            libc::RTM_NEWROUTE,
            (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16,
            &head,
            |a| a.put(libc::RTA_GATEWAY, &gateway.octets()),
        ),
        None => {
            head[5] = 0;
            head[6] = libc::RT_SCOPE_NOWHERE;
            batch.push(
                "remove the default route of",
                libc::RTM_DELROUTE,
                0,
                &head,
                |_| (),
            );
        }
    }
}

/// What the kernel tells of an interface.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) master: Option<u32>,
    pub(crate) kind: Option<String>,
    /// `struct rtnl_link_stats64`.
    pub(crate) stats: Vec<u64>,
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let head = payload.first_chunk::<16>()?;
    let attrs = AttrIter(payload.get(16..)?);
    let mut link = Link {
        index: u32::from_ne_bytes([head[4], head[5], head[6], head[7]]),
        name: String::new(),
        up: u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) & UP != 0,
        mtu: 0,
        master: None,
        kind: None,
        stats: Vec::new(),
    };
    for (kind, value) in attrs {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_of(value).unwrap_or(0),
            libc::IFLA_MASTER => link.master = u32_of(value),
            libc::IFLA_LINKINFO => link.kind = AttrIter(value).find(libc::IFLA_INFO_KIND).map(text),
            libc::IFLA_STATS64 => {
                link.stats = value
                    .chunks_exact(8)
                    .filter_map(|c| c.first_chunk())
                    .map(|c| u64::from_ne_bytes(*c))
                    .collect()
            }
            _ => {}
        }
    }
    Some(link)
}

/// One interface by name; `None` when there is no such.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    let mut batch = Batch::new();
    settle(&mut batch, name);
    let mut found = None;
    match socket.exchange(batch, |_, payload| found = parse_link(payload)) {
        Ok(()) => Ok(found),
        Err(refusal) if refusal.errno == Errno::NODEV => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Asks for an interface, which makes the kernel act at once on a carrier that has just come up.
///
/// Otherwise its link watch does so some time later, and until then the bridge forwards nothing to the port and the
/// interface sends nothing.
pub(crate) fn settle(batch: &mut Batch, name: &str) {
    batch.push(
        "look up the interface",
        libc::RTM_GETLINK,
        0,
        &ifinfo(0, 0, 0),
        |a| a.str(libc::IFLA_IFNAME, name),
    );
}

/// All ports of a bridge.
pub(crate) fn ports(socket: &mut Socket, bridge_index: u32) -> Result<Vec<Link>, Refusal> {
    let entries = socket.dump(|batch| {
        batch.push(
            "list the ports of the bridge",
            libc::RTM_GETLINK,
            0,
            &ifinfo(0, 0, 0),
            |a| a.u32(libc::IFLA_MASTER, bridge_index),
        );
    })?;
    Ok(entries
        .iter()
        .filter_map(|e| parse_link(e))
        .filter(|l| l.master == Some(bridge_index))
        .collect())
}

/// The IPv4 addresses of one interface, or of all.
pub(crate) fn addresses(socket: &mut Socket, index: Option<u32>) -> Result<Vec<(Ipv4Addr, u8)>, Refusal> {
    let head = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
    let entries =
        socket.dump(|batch| batch.push("list the addresses", libc::RTM_GETADDR, 0, &head, |_| ()))?;
    let parse = |payload: &[u8]| {
        let head = payload.first_chunk::<8>()?;
        if index.is_some_and(|i| i.to_ne_bytes() != head[4..8]) {
            return None;
        }
        let attrs = AttrIter(payload.get(8..)?);
        let bytes = attrs
            .find(libc::IFA_LOCAL)
            .or_else(|| attrs.find(libc::IFA_ADDRESS))?;
        Some((Ipv4Addr::from(*bytes.first_chunk::<4>()?), head[1]))
    };
    Ok(entries.iter().filter_map(|e| parse(e)).collect())
}

/// The destinations of all IPv4 routes except default routes, in every table.
pub(crate) fn route_destinations(socket: &mut Socket) -> Result<Vec<Ipv4Net>, Refusal> {
    let mut head = [0u8; 12];
    head[0] = libc::AF_INET as u8;
    let entries = socket.dump(|batch| batch.push("list the routes", libc::RTM_GETROUTE, 0, &head, |_| ()))?;
    let parse = |payload: &[u8]| {
        let prefix = *payload.get(1)?;
        let destination = AttrIter(payload.get(12..)?).find(libc::RTA_DST)?;
        Ipv4Net::new(Ipv4Addr::from(*destination.first_chunk::<4>()?), prefix)
            .ok()
            .filter(|n| n.prefix_len() > 0)
    };
    Ok(entries.iter().filter_map(|e| parse(e)).collect())
}
