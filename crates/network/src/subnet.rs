//! The choice of a subnet that collides with nothing on this host.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::error::{Error, ErrorKind, Result};
use crate::link;
use crate::netlink::Socket;

/// Docker's default pools, in its order: 172.17/16 to 172.31/16, then 192.168.0.0/20 to 192.168.240.0/20.
pub fn default_pools() -> impl Iterator<Item = Ipv4Net> {
    let large = (17..=31).map(|n| (Ipv4Addr::new(172, n, 0, 0), 16));
    let small = (0..=240).step_by(16).map(|n| (Ipv4Addr::new(192, 168, n, 0), 20));
    large
        .chain(small)
        .filter_map(|(address, prefix)| Ipv4Net::new(address, prefix).ok())
}

/// The first pool that overlaps none of the networks in use.
pub(crate) fn choose(in_use: &[Ipv4Net]) -> Result<Ipv4Net> {
    default_pools().find(|pool| !in_use.iter().any(|n| overlap(pool, n))).ok_or_else(|| {
        Error::new(ErrorKind::Exhausted, "every default subnet overlaps a route or an address of this host; name a free subnet for the network")
    })
}

/// What the host routes or owns, apart from default routes.
pub(crate) fn in_use(socket: &mut Socket) -> Result<Vec<Ipv4Net>> {
    let host = "of this host";
    let mut nets = link::route_destinations(socket).map_err(|r| r.on(host))?;
    let addresses = link::addresses(socket, None).map_err(|r| r.on(host))?;
    nets.extend(
        addresses
            .into_iter()
            .filter_map(|(address, prefix)| Ipv4Net::new(address, prefix).ok()),
    );
    Ok(nets)
}

pub(crate) fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|n| n.parse().unwrap()).collect()
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
