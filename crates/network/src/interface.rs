//! The bridge as an interface of the host: made, repaired, removed; and what the host needs to forward for it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use crate::address::{MacAddr, check_name};
use crate::addresses::{check, gateway_of, gateway_v6_of};
use crate::bridge::{BridgeConfig, ConfigV6};
use crate::error::{Error, ErrorKind, Result};
use crate::netlink::message::Batch;
use crate::netlink::{Family, Refusal, Socket};
use crate::nft::Ip;
use crate::{link, netns, subnet};

/// Whether there is a bridge of this name on the host.
///
/// # Errors
/// When there is something else of this name.
pub fn bridge_exists(name: &str) -> Result<bool> {
    check_name("a bridge", name)?;
    let link = link::find(&mut Socket::open(Family::Route)?, name).map_err(|r| r.on(name))?;
    match link.as_ref().map(|link| link.kind.as_deref()) {
        None => Ok(false),
        Some(Some("bridge")) => Ok(true),
        Some(kind) => Err(no_bridge(name, kind)),
    }
}

/// Removes a bridge that has no endpoints yet; one that does not exist is fine.
pub fn remove_bridge(name: &str) -> Result<()> {
    remove_interface(&mut Socket::open(Family::Route)?, name)
}

fn no_bridge(name: &str, kind: Option<&str>) -> Error {
    let kind = kind.unwrap_or("physical");
    Error::conflict(format!(
        "the interface {name} exists and is no bridge but {kind}; choose another name for the bridge"
    ))
}

/// Removes an interface; one that is gone already is fine.
pub(crate) fn remove_interface(route: &mut Socket, name: &str) -> Result<()> {
    let mut batch = Batch::new();
    link::delete(&mut batch, name);
    match route.request(batch) {
        Err(refusal) if refusal.errno != Errno::NODEV => Err(refusal.on(name)),
        _ => Ok(()),
    }
}

/// Has the host forward IPv6, without forgetting what routers tell it: a host that forwards takes no advertisements of them,
/// unless an interface is told to.
pub(crate) fn forward_v6() -> Result<()> {
    const ALL: &str = "ipv6/conf/all/forwarding";
    if netns::read_sysctl(ALL).is_ok_and(|value| value.trim_end() == "1") {
        return Ok(());
    }
    let mut route = Socket::open(Family::Route)?;
    let routes = link::routes(&mut route, Ip::V6).map_err(|r| r.on("of this host"))?;
    let advertised: BTreeSet<u32> = routes
        .into_iter()
        .filter(|route| route.protocol == RTPROT_RA)
        .map(|route| route.interface)
        .collect();
    for index in advertised {
        let Ok(name) = rustix::net::netdevice::index_to_name(&route, index) else {
            continue;
        };
        let accept = format!("ipv6/conf/{name}/accept_ra");
        if netns::read_sysctl(&accept).is_ok_and(|value| value.trim_end() == "1") {
            netns::write_sysctl(&accept, "2")?;
        }
    }
    netns::write_sysctl(ALL, "1")
}

/// `RTPROT_RA` (`linux/rtnetlink.h`): a route that a router's advertisement made.
const RTPROT_RA: u8 = 9;

/// Switches IPv6 on for an interface whose addresses and routes are given: routers are not listened to, since every neighbour can
/// play one (CVE-2020-13401), and duplicates are not looked for.
pub(crate) fn enable_v6(interface: &str) -> Result<()> {
    for (what, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")] {
        let path = format!("ipv6/conf/{interface}/{what}");
        match netns::ensure_sysctl(&path, value) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "there is no IPv6 in this kernel, or it was switched off when it was booted (ipv6.disable=1): make the \
                     network without --ipv6",
                ));
            }
            other => other?,
        }
    }
    Ok(())
}

/// Whether bridged packets can be made to pass the IPv4 rules.
///
/// If so, that is how endpoints are kept apart without `icc`: isolated ports would also keep them from each other's published
/// ports, because what bridge netfilter translates is then bridged instead of routed. If not, the ports are isolated.
pub(crate) fn has_bridge_netfilter() -> bool {
    netns::read_sysctl("bridge/bridge-nf-call-iptables").is_ok()
}

/// Creates the bridge when it is missing, gives it its address, brings it up.
pub(crate) fn ensure_interface(
    route: &mut Socket,
    config: &BridgeConfig,
) -> Result<(u32, Ipv4Net, Ipv4Addr)> {
    let name = config.name.as_str();
    let existing = link::find(route, name).map_err(|r| r.on(name))?;
    let index = match &existing {
        Some(link) if link.kind.as_deref() == Some("bridge") => link.index,
        Some(link) => return Err(no_bridge(name, link.kind.as_deref())),
        None => 0,
    };
    let has = match index {
        0 => Vec::new(),
        index => addresses_v4(route, index).map_err(|r| r.on(name))?,
    };
    let subnet = match (config.subnet, has.first()) {
        (Some(subnet), _) => subnet.trunc(),
        (None, Some((address, prefix))) => Ipv4Net::new(*address, *prefix)
            .map_err(|_| Error::invalid(format!("the address of {name} has a bad prefix")))?
            .trunc(),
        (None, None) => subnet::choose(&subnet::in_use(route)?)?,
    };
    let ours = has.iter().map(|(a, _)| *a).find(|a| subnet.contains(a));
    let gateway = match config.gateway.or(ours) {
        Some(gateway) => gateway,
        None => gateway_of(config, subnet)?,
    };
    check(config, subnet, gateway)?;
    if index == 0
        && let Some(other) = subnet::in_use(route)?
            .iter()
            .find(|n| config.subnet.is_some() && subnet::overlap(&(**n).into(), &subnet.into()))
    {
        return Err(Error::conflict(format!(
            "the subnet {subnet} of the bridge {name} overlaps {other}, which this host uses; choose another subnet"
        )));
    }
    if let Some(v6) = config.v6.as_ref().filter(|_| index == 0)
        && let Some(other) = subnet::in_use_by_host(route, Ip::V6)?
            .iter()
            .find(|n| subnet::overlap(n, &v6.subnet.into()))
    {
        return Err(Error::conflict(format!(
            "the subnet {} of the bridge {name} overlaps {other}, which this host uses; choose another subnet",
            v6.subnet
        )));
    }
    let mut batch = Batch::new();
    let index = if index == 0 {
        link::add_bridge(&mut batch, name, MacAddr::for_ip(gateway), config.mtu);
        route.request(batch).map_err(|r| r.on(name))?;
        batch = Batch::new();
        let link = link::find(route, name).map_err(|r| r.on(name))?;
        link.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("the bridge {name} vanished while it was set up"),
            )
        })?
        .index
    } else {
        index
    };
    if !config.icc && has_bridge_netfilter() {
        link::filter_bridged(&mut batch, name);
    }
    match &config.v6 {
        Some(v6) => {
            link::no_link_local(&mut batch, name);
            add_v6(route, &mut batch, name, index, v6)?;
        }
        // Only IPv4 lives here: no link-local address, through which the host could be reached around the rules.
        None => netns::write_sysctl_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?,
    }
    if ours != Some(gateway) {
        link::add_address(&mut batch, index, gateway.into(), subnet.into());
    }
    if existing.as_ref().is_none_or(|l| !l.up) {
        link::set_up(&mut batch, index);
    }
    if config.v6.is_some() {
        link::route_loopback(&mut batch, index);
    }
    if !batch.is_empty() {
        route.request(batch).map_err(|r| r.on(name))?;
    }
    Ok((index, subnet, gateway))
}

fn addresses_v4(route: &mut Socket, index: u32) -> Result<Vec<(Ipv4Addr, u8)>, Refusal> {
    let all = link::addresses(route, Ip::V4, Some(index))?;
    Ok(all
        .into_iter()
        .filter_map(|(address, prefix)| match address {
            IpAddr::V4(address) => Some((address, prefix)),
            IpAddr::V6(_) => None,
        })
        .collect())
}

/// Every bridge has this address: the kernel asks for neighbours from a link-local one only (RFC 4861, 7.2.2), and this is the
/// one that Docker gives.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What is missing of the bridge's IPv6.
fn add_v6(route: &mut Socket, batch: &mut Batch, name: &str, index: u32, config: &ConfigV6) -> Result<()> {
    enable_v6(name)?;
    let there = link::addresses(route, Ip::V6, Some(index)).map_err(|r| r.on(name))?;
    let own = gateway_v6_of(config)?;
    let link: IpNet = Ipv6Net::new_assert(LINK_LOCAL, 64).into();
    for (address, subnet) in [(LINK_LOCAL, link), (own, config.subnet.into())] {
        if !there.iter().any(|(other, _)| *other == address) {
            link::add_address(batch, index, address.into(), subnet);
        }
    }
    Ok(())
}
