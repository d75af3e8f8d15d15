//! The choice of a subnet that collides with nothing on this host.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Error, ErrorKind, Result};
use crate::link;
use crate::netlink::Socket;
use crate::nft::Ip;

/// Docker's default pools, in its order: 172.17/16 to 172.31/16, then 192.168.0.0/20 to 192.168.240.0/20.
pub fn default_pools() -> impl Iterator<Item = Ipv4Net> {
    let large = (17..=31).map(|n| (Ipv4Addr::new(172, n, 0, 0), 16));
    let small = (0..=240).step_by(16).map(|n| (Ipv4Addr::new(192, 168, n, 0), 20));
    large
        .chain(small)
        .filter_map(|(address, prefix)| Ipv4Net::new(address, prefix).ok())
}

/// A subnet for a further network: small, so that there is room for thousands, of the same ranges as [`default_pools`].
///
/// It overlaps no route and no address of the host (other than default routes) and none of `reserved`, which are those of
/// networks that do not exist at the moment.
///
/// # Errors
/// When there is none.
pub fn choose_subnet(reserved: &[Ipv4Net]) -> Result<Ipv4Net> {
    let mut in_use = in_use(&mut Socket::open(crate::netlink::Family::Route)?)?;
    in_use.extend_from_slice(reserved);
    choose_from(small_pools(), &in_use)
}

/// The same for IPv6: one of the 65,536 networks of the site with this global ID of 40 bits (RFC 4193).
///
/// # Errors
/// When there is none.
pub fn choose_subnet_v6(site: u64, reserved: &[Ipv6Net]) -> Result<Ipv6Net> {
    let mut socket = Socket::open(crate::netlink::Family::Route)?;
    let mut in_use = in_use_by_host(&mut socket, Ip::V6)?;
    in_use.extend(reserved.iter().map(|net| IpNet::V6(*net)));
    let site = 0xfd << 120 | u128::from(site & 0xff_ffff_ffff) << 80;
    let free = |net: &Ipv6Net| !in_use.iter().any(|other| overlap(&IpNet::V6(*net), other));
    (0..=u16::MAX)
        .filter_map(|n| Ipv6Net::new(Ipv6Addr::from(site | u128::from(n) << 64), 64).ok())
        .find(free)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Exhausted,
                "every default subnet of IPv6 overlaps a route or an address of this host; name a free subnet for the network",
            )
        })
}

/// The default pools in pieces of 256 addresses.
fn small_pools() -> impl Iterator<Item = Ipv4Net> {
    default_pools().flat_map(|pool| pool.subnets(24).into_iter().flatten())
}

/// The first pool that overlaps none of the networks in use.
pub(crate) fn choose(in_use: &[Ipv4Net]) -> Result<Ipv4Net> {
    choose_from(default_pools(), in_use)
}

fn choose_from(mut pools: impl Iterator<Item = Ipv4Net>, in_use: &[Ipv4Net]) -> Result<Ipv4Net> {
    let free = |pool: &Ipv4Net| !in_use.iter().any(|n| overlap(&(*pool).into(), &(*n).into()));
    pools.find(free).ok_or_else(|| {
        Error::new(ErrorKind::Exhausted, "every default subnet overlaps a route or an address of this host; name a free subnet for the network")
    })
}

/// What the host routes or owns of IPv4, apart from default routes.
pub(crate) fn in_use(socket: &mut Socket) -> Result<Vec<Ipv4Net>> {
    let nets = in_use_by_host(socket, Ip::V4)?;
    Ok(nets
        .into_iter()
        .filter_map(|net| match net {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        })
        .collect())
}

/// What the host routes or owns of one family, apart from default routes.
pub(crate) fn in_use_by_host(socket: &mut Socket, ip: Ip) -> Result<Vec<IpNet>> {
    let host = "of this host";
    let routes = link::destinations(socket, ip).map_err(|r| r.on(host))?;
    let addresses = link::addresses(socket, ip, None).map_err(|r| r.on(host))?;
    Ok(routes
        .into_iter()
        .chain(
            addresses
                .into_iter()
                .filter_map(|(address, prefix)| IpNet::new(address, prefix).ok()),
        )
        .filter(|net| net.prefix_len() > 0)
        .collect())
}

pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn further_networks_are_small() {
        assert_eq!(small_pools().count(), 15 * 256 + 256);
        let chosen = choose_from(small_pools(), &nets(&["172.17.0.0/16", "172.18.0.0/24"]));
        assert_eq!(chosen.unwrap().to_string(), "172.18.1.0/24");
    }

    #[test]
    fn the_first_that_is_free() {
        assert_eq!(choose(&[]).unwrap().to_string(), "172.17.0.0/16");
        assert_eq!(
            choose(&nets(&["172.17.0.0/16", "172.18.5.0/24", "10.0.0.0/8"]))
                .unwrap()
                .to_string(),
            "172.19.0.0/16"
        );
        assert_eq!(
            choose(&nets(&["172.16.0.0/12"])).unwrap().to_string(),
            "192.168.0.0/20"
        );
        assert_eq!(
            choose(&nets(&["172.16.0.0/12", "192.168.1.0/24"]))
                .unwrap()
                .to_string(),
            "192.168.16.0/20"
        );
        assert_eq!(
            choose(&nets(&["172.16.0.0/12", "192.168.0.0/16"]))
                .unwrap_err()
                .kind(),
            ErrorKind::Exhausted
        );
    }
}
