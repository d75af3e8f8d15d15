//! rtnetlink: interfaces, addresses, routes (rtnetlink(7), `include/uapi/linux/{rtnetlink,if_link,if_addr}.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::address::MacAddr;
use crate::netlink::message::{AttrIter, Attrs, Batch, text, u32_of};
use crate::netlink::{Refusal, Socket};
use crate::nft::Ip;

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;
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
    let port = PortSettings {
        isolated: spec.isolated,
        host_has_ipv6: spec.host_has_ipv6,
    };
    configure_port(batch, spec.host_name, port);
}

/// Puts a TAP device that was just made on the bridge, up.
pub(crate) fn plug_tap(batch: &mut Batch, name: &str, bridge_index: u32, mtu: u32, port: PortSettings) {
    batch.push(
        "put on its bridge the interface",
        libc::RTM_NEWLINK,
        0,
        &ifinfo(0, UP, UP),
        |a| {
            a.str(libc::IFLA_IFNAME, name);
            a.u32(libc::IFLA_MASTER, bridge_index);
            a.u32(libc::IFLA_MTU, mtu);
        },
    );
    configure_port(batch, name, port);
}

/// How a port of a bridge is set up.
#[derive(Clone, Copy)]
pub(crate) struct PortSettings {
    /// See [`VethSpec::isolated`].
    pub(crate) isolated: bool,
    pub(crate) host_has_ipv6: bool,
}

/// The kernel looks at these attributes only on an interface that exists and is a port.
fn configure_port(batch: &mut Batch, name: &str, port: PortSettings) {
    batch.push(
        "configure the bridge port",
        libc::RTM_NEWLINK,
        0,
        &ifinfo(0, 0, 0),
        |a| {
            a.str(libc::IFLA_IFNAME, name);
            a.nest(libc::IFLA_LINKINFO, |a| {
                a.str(libc::IFLA_INFO_SLAVE_KIND, "bridge");
                a.nest(libc::IFLA_INFO_SLAVE_DATA, |a| {
                    // Hairpin: where bridge netfilter is on, a packet to a port published by its own sender is translated
                    // while it is bridged, and has to leave by the port it came from.
                    a.u8(IFLA_BRPORT_MODE, 1);
                    if port.isolated {
                        a.u8(IFLA_BRPORT_ISOLATED, 1);
                    }
                });
            });
            // A bridge port needs no link-local address, nor the multicast chatter that comes with one.
            if port.host_has_ipv6 {
                a.nest(libc::IFLA_AF_SPEC, |a| {
                    a.nest(libc::AF_INET6 as u16, |a| {
                        a.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
                    });
                });
            }
        },
    );
}

/// A pair with both ends here, down, without ARP: each is the only neighbour that the other has.
pub(crate) fn add_pair(batch: &mut Batch, name: &str, peer: &str, mac: MacAddr) {
    const NOARP: u32 = libc::IFF_NOARP as u32;
    let head = ifinfo(0, NOARP, NOARP);
    batch.push(
        "create the interface pair",
        libc::RTM_NEWLINK,
        CREATE,
        &head,
        |a| {
            a.str(libc::IFLA_IFNAME, name);
            a.put(libc::IFLA_ADDRESS, &mac.0);
            a.nest(libc::IFLA_LINKINFO, |a| {
                a.str(libc::IFLA_INFO_KIND, "veth");
                a.nest(libc::IFLA_INFO_DATA, |a| {
                    a.nest(VETH_INFO_PEER, |a| {
                        a.raw(&head);
                        a.str(libc::IFLA_IFNAME, peer);
                        a.put(libc::IFLA_ADDRESS, &mac.0);
                    });
                });
            });
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

/// What is asked of a new interface on another one.
pub(crate) struct ChildSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) parent_index: u32,
    pub(crate) netns: i32,
    /// `macvlan` or `ipvlan`.
    pub(crate) kind: &'a str,
    pub(crate) mode: u16,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: Option<u32>,
}

/// The interface, made directly inside the other namespace.
pub(crate) fn add_child(batch: &mut Batch, spec: &ChildSpec<'_>) {
    /// `IFLA_MACVLAN_MODE` and `IFLA_IPVLAN_MODE`.
    const MODE: u16 = 1;
    batch.push(
        "create an interface on",
        libc::RTM_NEWLINK,
        CREATE,
        &ifinfo(0, 0, 0),
        |a| {
            a.str(libc::IFLA_IFNAME, spec.name);
            a.u32(libc::IFLA_LINK, spec.parent_index);
            a.u32(libc::IFLA_NET_NS_FD, spec.netns as u32);
            if let Some(mac) = spec.mac {
                a.put(libc::IFLA_ADDRESS, &mac.0);
            }
            if let Some(mtu) = spec.mtu {
                a.u32(libc::IFLA_MTU, mtu);
            }
            a.nest(libc::IFLA_LINKINFO, |a| {
                a.str(libc::IFLA_INFO_KIND, spec.kind);
                a.nest(libc::IFLA_INFO_DATA, |a| match spec.kind {
                    "macvlan" => a.u32(MODE, u32::from(spec.mode)),
                    _ => a.put(MODE, &spec.mode.to_ne_bytes()),
                });
            });
        },
    );
}

pub(crate) fn add_vlan(batch: &mut Batch, name: &str, below: u32, id: u16) {
    const IFLA_VLAN_ID: u16 = 1;
    batch.push(
        "create the VLAN",
        libc::RTM_NEWLINK,
        CREATE,
        &ifinfo(0, 0, 0),
        |a| {
            a.str(libc::IFLA_IFNAME, name);
            a.u32(libc::IFLA_LINK, below);
            a.nest(libc::IFLA_LINKINFO, |a| {
                a.str(libc::IFLA_INFO_KIND, "vlan");
                a.nest(libc::IFLA_INFO_DATA, |a| {
                    a.put(IFLA_VLAN_ID, &id.to_ne_bytes());
                });
            });
        },
    );
}

/// An interface that leads nowhere.
pub(crate) fn add_dummy(batch: &mut Batch, name: &str) {
    batch.push(
        "create the interface",
        libc::RTM_NEWLINK,
        CREATE,
        &ifinfo(0, 0, 0),
        |a| {
            a.str(libc::IFLA_IFNAME, name);
            a.nest(libc::IFLA_LINKINFO, |a| a.str(libc::IFLA_INFO_KIND, "dummy"));
        },
    );
}

/// Has the kernel give the interface no link-local address by itself.
pub(crate) fn no_link_local(batch: &mut Batch, name: &str) {
    batch.push(
        "keep from a link-local address the interface",
        libc::RTM_NEWLINK,
        0,
        &ifinfo(0, 0, 0),
        |a| {
            a.str(libc::IFLA_IFNAME, name);
            a.nest(libc::IFLA_AF_SPEC, |a| {
                a.nest(libc::AF_INET6 as u16, |a| {
                    a.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
                });
            });
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
                a.nest(libc::IFLA_INFO_DATA, |a| {
                    a.u8(IFLA_BR_NF_CALL_IPTABLES, 1);
                    a.u8(IFLA_BR_NF_CALL_IP6TABLES, 1);
                });
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

fn put_address(a: &mut Attrs<'_>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => a.put(kind, &address.octets()),
        IpAddr::V6(address) => a.put(kind, &address.octets()),
    }
}

/// `subnet` says how long the prefix is. No duplicate of an IPv6 address is looked for: who gives it knows that there is none.
pub(crate) fn add_address(batch: &mut Batch, index: u32, address: IpAddr, subnet: IpNet) {
    let ip = Ip::of(address);
    let flags = match ip {
        Ip::V4 => 0,
        Ip::V6 => libc::IFA_F_NODAD as u8,
    };
    let mut head = [
        ip.number(),
        subnet.prefix_len(),
        flags,
        libc::RT_SCOPE_UNIVERSE,
        0,
        0,
        0,
        0,
    ];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.push("set the address of", libc::RTM_NEWADDR, CREATE, &head, |a| {
        put_address(a, libc::IFA_LOCAL, address);
        put_address(a, libc::IFA_ADDRESS, address);
        if ip == Ip::V4 {
            put_address(a, libc::IFA_BROADCAST, subnet.broadcast());
        }
    });
}

/// The `rtmsg` of the default route in the main table.
fn default_route(ip: Ip) -> [u8; 12] {
    let mut head = [0u8; 12];
    head[0] = ip.number();
    head[4] = libc::RT_TABLE_MAIN;
    head[5] = libc::RTPROT_BOOT;
    head[6] = libc::RT_SCOPE_UNIVERSE;
    head[7] = libc::RTN_UNICAST;
    head
}

pub(crate) fn add_default_route(batch: &mut Batch, index: u32, gateway: IpAddr) {
    let head = default_route(Ip::of(gateway));
    batch.push(
        "set the default route of",
        libc::RTM_NEWROUTE,
        CREATE,
        &head,
        |a| {
            put_address(a, libc::RTA_GATEWAY, gateway);
            a.u32(libc::RTA_OIF, index);
        },
    );
}

/// A default route without a gateway, of the family of `of`: everybody is behind the interface.
pub(crate) fn add_link_route(batch: &mut Batch, index: u32, of: IpAddr) {
    let mut head = default_route(Ip::of(of));
    head[6] = libc::RT_SCOPE_LINK;
    batch.push(
        "set the default route of",
        libc::RTM_NEWROUTE,
        CREATE,
        &head,
        |a| a.u32(libc::RTA_OIF, index),
    );
}

/// Makes the default route of a family go to `gateway`, wherever it went before.
pub(crate) fn replace_default_route(batch: &mut Batch, gateway: IpAddr) {
    batch.push(
        "replace the default route of",
        libc::RTM_NEWROUTE,
        (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16,
        &default_route(Ip::of(gateway)),
        |a| put_address(a, libc::RTA_GATEWAY, gateway),
    );
}

pub(crate) fn remove_default_route(batch: &mut Batch, ip: Ip) {
    let mut head = default_route(ip);
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

/// Lets `::1` be an address that packets may have which came in by this interface.
///
/// None can have it on the wire: the kernel discards those. But an answer from behind a bridge to one of the host's own clients
/// at `::1`, whose connection was translated, has it when it has been translated back; in IPv4 that is what `route_localnet`
/// is for. Each interface has a route of its own: the kernel takes the one by which the packet came.
pub(crate) fn route_loopback(batch: &mut Batch, index: u32) {
    batch.push(
        "route the loopback address by",
        libc::RTM_NEWROUTE,
        (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16,
        &loopback_route(),
        |a| loopback_by(a, index),
    );
}

/// The opposite of [`route_loopback`].
pub(crate) fn unroute_loopback(batch: &mut Batch, index: u32) {
    batch.push(
        "route the loopback address no longer by",
        libc::RTM_DELROUTE,
        0,
        &loopback_route(),
        |a| loopback_by(a, index),
    );
}

fn loopback_route() -> [u8; 12] {
    let mut head = default_route(Ip::V6);
    head[1] = 128;
    head[4] = libc::RT_TABLE_LOCAL;
    head[7] = libc::RTN_LOCAL;
    head
}

fn loopback_by(a: &mut Attrs<'_>, index: u32) {
    /// Behind the route of the loopback interface, which the host's packets to itself take. Routes of one metric would replace
    /// each other.
    const METRIC: u32 = 4096;
    put_address(a, libc::RTA_DST, Ipv6Addr::LOCALHOST.into());
    a.u32(libc::RTA_OIF, index);
    a.u32(libc::RTA_PRIORITY, METRIC.saturating_add(index));
}

/// What the kernel tells of an interface.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    /// None: an address of another kind than Ethernet's.
    pub(crate) mac: Option<MacAddr>,
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
        mac: None,
        mtu: 0,
        master: None,
        kind: None,
        stats: Vec::new(),
    };
    for (kind, value) in attrs {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddr),
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

fn address(ip: Ip, bytes: &[u8]) -> Option<IpAddr> {
    Some(match ip {
        Ip::V4 => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        Ip::V6 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(),
    })
}

/// The addresses of one interface, or of all, with the lengths of their prefixes.
pub(crate) fn addresses(
    socket: &mut Socket,
    ip: Ip,
    index: Option<u32>,
) -> Result<Vec<(IpAddr, u8)>, Refusal> {
    let head = [ip.number(), 0, 0, 0, 0, 0, 0, 0];
    let listing = socket.dump(|batch| batch.push("list the addresses", libc::RTM_GETADDR, 0, &head, |_| ()));
    let parse = |payload: &[u8]| {
        let head = payload.first_chunk::<8>()?;
        if index.is_some_and(|i| i.to_ne_bytes() != head[4..8]) {
            return None;
        }
        let attrs = AttrIter(payload.get(8..)?);
        let bytes = attrs
            .find(libc::IFA_LOCAL)
            .or_else(|| attrs.find(libc::IFA_ADDRESS))?;
        Some((address(ip, bytes)?, head[1]))
    };
    Ok(of_family(ip, listing)?.iter().filter_map(|e| parse(e)).collect())
}

/// Where all routes of a family lead, in every table; default routes may be left out.
pub(crate) fn destinations(socket: &mut Socket, ip: Ip) -> Result<Vec<IpNet>, Refusal> {
    let mut head = [0u8; 12];
    head[0] = ip.number();
    let listing = socket.dump(|batch| batch.push("list the routes", libc::RTM_GETROUTE, 0, &head, |_| ()));
    let parse = |payload: &[u8]| {
        let prefix = *payload.get(1)?;
        let destination = AttrIter(payload.get(12..)?).find(libc::RTA_DST)?;
        IpNet::new(address(ip, destination)?, prefix).ok()
    };
    Ok(of_family(ip, listing)?.iter().filter_map(|e| parse(e)).collect())
}

/// A kernel without IPv6 has none of it.
fn of_family(ip: Ip, listing: Result<Vec<Vec<u8>>, Refusal>) -> Result<Vec<Vec<u8>>, Refusal> {
    match listing {
        Err(refusal) if ip == Ip::V6 && matches!(refusal.errno, Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => {
            Ok(Vec::new())
        }
        other => other,
    }
}
