//! The bridge as an interface of the host: made, repaired, removed; and what the host needs to forward for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use crate::address::{MacAddr, check_name};
use crate::addresses::{check, gateway_of, gateway_v6_of};
use crate::bridge::{BridgeConfig, ConfigV6, GatewayMode, is_endpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::netlink::message::Batch;
use crate::netlink::{Family, Refusal, Socket};
use crate::nft::Ip;
use crate::{detour, link, netns, subnet};

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

/// The subnet of IPv6 that a bridge has now; none: there is no such bridge, or it has none.
///
/// # Errors
/// When the kernel does not tell.
pub fn bridge_subnet_v6(name: &str) -> Result<Option<Ipv6Net>> {
    check_name("a bridge", name)?;
    let mut route = Socket::open(Family::Route)?;
    let Some(link) = link::find(&mut route, name).map_err(|r| r.on(name))? else {
        return Ok(None);
    };
    let there = link::addresses(&mut route, Ip::V6, Some(link.index)).map_err(|r| r.on(name))?;
    let mut subnets = there.into_iter().filter_map(|(address, prefix)| match address {
        IpAddr::V6(address) if !address.is_unicast_link_local() => Ipv6Net::new(address, prefix).ok(),
        _ => None,
    });
    Ok(subnets.next().map(|net| net.trunc()))
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

/// Has the host forward IPv6, without making it deaf to its routers: a host that forwards takes no advertisements of them,
/// unless an interface is told to. So every interface is told to that takes them now, whether or not one has come yet: after a
/// start of the host that may be later. What is ours, the bridges and what ends on them, is not.
pub(crate) fn forward_v6(bridges: &[String]) -> Result<()> {
    const ALL: &str = "ipv6/conf/all/forwarding";
    let is = |path: &str, value: &str| netns::read_sysctl(path).is_ok_and(|read| read.trim_end() == value);
    if is(ALL, "1") {
        return Ok(());
    }
    for name in netns::interfaces()? {
        let ours = bridges.contains(&name) || is_endpoint(&name) || detour::is_end(&name);
        // Where forwarding is on already, advertisements are passed over already.
        let taken = !ours
            && is(&format!("ipv6/conf/{name}/forwarding"), "0")
            && is(&format!("ipv6/conf/{name}/accept_ra"), "1");
        if taken {
            netns::write_sysctl_if_there(&format!("ipv6/conf/{name}/accept_ra"), "2")?;
        }
    }
    netns::write_sysctl(ALL, "1")
}

/// Switches IPv6 on for an interface whose addresses and routes are given: routers are not listened to, since every neighbour can
/// play one (CVE-2020-13401), and duplicates are not looked for.
pub(crate) fn enable_v6(interface: &str) -> Result<()> {
    set_v6(
        interface,
        &[("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")],
    )
}

fn set_v6(interface: &str, settings: &[(&str, &str)]) -> Result<()> {
    for (what, value) in settings {
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
    let isolated_v6 = config.mode_v6 == GatewayMode::Isolated;
    match &config.v6 {
        // Endpoints have it; the host does not.
        Some(_) if isolated_v6 && !config.foreign => {
            netns::write_sysctl_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        }
        Some(_) if isolated_v6 => {}
        Some(v6) => add_v6(route, &mut batch, config, index, v6)?,
        // Who made it may have IPv6 there for other things.
        None if config.foreign => {}
        // Only IPv4 lives here: no link-local address, through which the host could be reached around the rules.
        None => netns::write_sysctl_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?,
    }
    if ours != Some(gateway) && config.mode_v4 != GatewayMode::Isolated {
        link::add_address(&mut batch, index, gateway.into(), subnet.into());
    }
    if existing.as_ref().is_none_or(|l| !l.up) {
        link::set_up(&mut batch, index);
    }
    if config.v6.is_some() && !isolated_v6 {
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

/// What is missing of the bridge's IPv6. One that is somebody else's keeps the link-local address that it has, and goes on
/// listening to whom it listens.
fn add_v6(
    route: &mut Socket,
    batch: &mut Batch,
    config: &BridgeConfig,
    index: u32,
    v6: &ConfigV6,
) -> Result<()> {
    let name = config.name.as_str();
    if config.foreign {
        set_v6(name, &[("disable_ipv6", "0")])?;
    } else {
        enable_v6(name)?;
        link::no_link_local(batch, name);
    }
    let there = link::addresses(route, Ip::V6, Some(index)).map_err(|r| r.on(name))?;
    let has = |wanted: Ipv6Addr| {
        there.iter().any(|(address, _)| match address {
            IpAddr::V6(address) if wanted == LINK_LOCAL && config.foreign => address.is_unicast_link_local(),
            address => *address == wanted,
        })
    };
    let own = gateway_v6_of(v6)?;
    let link: IpNet = Ipv6Net::new_assert(LINK_LOCAL, 64).into();
    for (address, subnet) in [(LINK_LOCAL, link), (own, v6.subnet.into())] {
        if !has(address) {
            link::add_address(batch, index, address.into(), subnet);
        }
    }
    Ok(())
}

/// Takes from a bridge that is somebody else's what nobody would expect there. Addresses stay, as what listens on them may.
pub(crate) fn give_back(route: &mut Socket, name: &str) -> Result<()> {
    let Some(link) = link::find(route, name).map_err(|r| r.on(name))? else {
        return Ok(());
    };
    let mut batch = Batch::new();
    link::unroute_loopback(&mut batch, link.index);
    match route.request(batch) {
        Err(refusal) if !matches!(refusal.errno, Errno::SRCH | Errno::NODEV) => Err(refusal.on(name)),
        _ => Ok(()),
    }
}
