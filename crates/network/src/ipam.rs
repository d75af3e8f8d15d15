//! Addresses of one subnet, of either family: which are taken, which comes next.
//!
//! Like Docker, the next free address after the last one given: an address rests as long as possible before it is reused.
//! Never given are the network's address, which in IPv6 is that of any of its routers (RFC 4291, 2.6.1), and the broadcast
//! address, which IPv6 does not have.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::error::{Error, ErrorKind, Result};

/// The widest subnet that is accepted, as a prefix length.
const WIDEST: u8 = 8;

/// The allocator of a subnet's addresses. It holds what is taken, so that a subnet may be as large as those of IPv6 are.
#[derive(Debug)]
pub(crate) struct Ipam {
    subnet: IpNet,
    /// Addresses as their distance from the network's.
    taken: BTreeSet<u128>,
    /// The last one given by `next`.
    last: u128,
    /// What `next` gives.
    range: RangeInclusive<u128>,
}

impl Ipam {
    pub(crate) fn new(subnet: IpNet) -> Result<Self> {
        let subnet = subnet.trunc();
        // The narrowest has room for the gateway and one endpoint.
        let narrowest = subnet.max_prefix_len() - 2;
        if !(WIDEST..=narrowest).contains(&subnet.prefix_len()) {
            return Err(Error::invalid(format!(
                "the subnet {subnet} cannot be used: its prefix must be from /{WIDEST} to /{narrowest}"
            )));
        }
        let end = number(subnet.broadcast()) - number(subnet.network());
        Ok(Self {
            subnet,
            taken: BTreeSet::new(),
            last: 0,
            range: match subnet {
                IpNet::V4(_) => 1..=end - 1,
                IpNet::V6(_) => 1..=end,
            },
        })
    }

    /// The allocator of a subnet that gives addresses of one part of it only; the others must be asked for.
    pub(crate) fn within(subnet: IpNet, range: IpNet) -> Result<Self> {
        let mut ipam = Self::new(subnet)?;
        let range = range.trunc();
        if !ipam.subnet.contains(&range) {
            return Err(Error::invalid(format!(
                "the range {range} is not a part of the subnet {subnet}"
            )));
        }
        let start = number(ipam.subnet.network());
        let (first, last) = (number(range.network()) - start, number(range.broadcast()) - start);
        ipam.range = first.max(*ipam.range.start())..=last.min(*ipam.range.end());
        ipam.last = ipam.range.start() - 1;
        Ok(ipam)
    }

    /// The next free address after the last one given, round and round.
    pub(crate) fn next(&mut self) -> Result<IpAddr> {
        let (first, end) = (*self.range.start(), *self.range.end());
        let found = self
            .find_free(first.max(self.last + 1), end)
            .or_else(|| self.find_free(first, end));
        let Some(offset) = found else {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "no free address is left in the subnet {}, or the range of it that addresses are given from; remove \
                     endpoints, ask for an address outside of the range, or make a network with a larger subnet",
                    self.subnet
                ),
            ));
        };
        self.taken.insert(offset);
        self.last = offset;
        Ok(self.address(offset))
    }

    /// Takes one address; does not move the sequence.
    pub(crate) fn take(&mut self, address: IpAddr) -> Result<()> {
        let offset = self.offset(address)?;
        if !self.taken.insert(offset) {
            return Err(Error::conflict(format!(
                "the address {address} is already in use on the subnet {}; choose another one",
                self.subnet
            )));
        }
        Ok(())
    }

    /// Gives an address back. One that is not taken, or not ours, is ignored.
    pub(crate) fn release(&mut self, address: IpAddr) {
        if let Ok(offset) = self.offset(address) {
            self.taken.remove(&offset);
        }
    }

    /// Whether the address could be given to an endpoint.
    pub(crate) fn offset(&self, address: IpAddr) -> Result<u128> {
        if !self.subnet.contains(&address) {
            return Err(Error::invalid(format!(
                "the address {address} is not in the subnet {}",
                self.subnet
            )));
        }
        if address == self.subnet.network() || (address.is_ipv4() && address == self.subnet.broadcast()) {
            return Err(Error::invalid(format!(
                "the address {address} is the network or broadcast address of the subnet {}",
                self.subnet
            )));
        }
        Ok(number(address) - number(self.subnet.network()))
    }

    fn address(&self, offset: u128) -> IpAddr {
        let number = number(self.subnet.network()) + offset;
        match self.subnet {
            // No offset is larger than the subnet.
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }

    fn find_free(&self, from: u128, end: u128) -> Option<u128> {
        let mut free = from;
        for taken in self.taken.range(from..) {
            if *taken != free {
                break;
            }
            free += 1;
        }
        (free <= end).then_some(free)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn sequence_goes_on_after_a_release_and_wraps() {
        for (subnet, before) in [("10.0.0.0/29", "10.0.0."), ("fd00:0:0:7::/125", "fd00:0:0:7::")] {
            let mut ipam = Ipam::new(net(subnet)).unwrap();
            ipam.take(ip(&format!("{before}1"))).unwrap();
            let first = ipam.next().unwrap();
            assert_eq!(first, ip(&format!("{before}2")));
            ipam.release(first);
            // The last address of an IPv6 subnet is one like others.
            let last = if first.is_ipv6() { vec![7] } else { vec![] };
            for expected in [3, 4, 5, 6].into_iter().chain(last).chain([2]) {
                assert_eq!(ipam.next().unwrap(), ip(&format!("{before}{expected}")));
            }
            assert_eq!(ipam.next().unwrap_err().kind(), ErrorKind::Exhausted);
        }
    }

    #[test]
    fn a_range_is_all_that_is_given() {
        let mut ipam = Ipam::within(net("10.0.0.0/24"), net("10.0.0.128/30")).unwrap();
        ipam.take(ip("10.0.0.1")).unwrap();
        for _ in 0..2 {
            for expected in [128, 129, 130, 131] {
                assert_eq!(ipam.next().unwrap(), Ipv4Addr::new(10, 0, 0, expected));
            }
            assert_eq!(ipam.next().unwrap_err().kind(), ErrorKind::Exhausted);
            for given in [128, 129, 130, 131] {
                ipam.release(Ipv4Addr::new(10, 0, 0, given).into());
            }
        }
        assert!(Ipam::within(net("10.0.0.0/24"), net("10.0.1.0/25")).is_err());
        assert!(Ipam::within(net("10.0.0.0/24"), net("fd00::/64")).is_err());
        let mut six = Ipam::within(net("fd00::/64"), net("fd00::abcd:0/112")).unwrap();
        assert_eq!(six.next().unwrap(), ip("fd00::abcd:0"));
    }

    #[test]
    fn edges_and_strangers_are_refused() {
        let mut ipam = Ipam::new(net("172.17.0.0/16")).unwrap();
        for bad in ["172.17.0.0", "172.17.255.255", "172.18.0.1", "fd00::1"] {
            assert_eq!(
                ipam.take(ip(bad)).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{bad}"
            );
        }
        ipam.take(ip("172.17.0.9")).unwrap();
        assert_eq!(
            ipam.take(ip("172.17.0.9")).unwrap_err().kind(),
            ErrorKind::Conflict
        );
        let mut six = Ipam::new(net("fd00::/64")).unwrap();
        assert!(six.take(ip("fd00::")).is_err());
        six.take(ip("fd00::ffff:ffff:ffff:ffff")).unwrap();
        for bad in ["10.0.0.0/31", "0.0.0.0/0", "fd00::/127", "::/0"] {
            assert!(Ipam::new(net(bad)).is_err(), "{bad}");
        }
        // Their ends are numbers, too.
        assert!(Ipam::new(net("255.0.0.0/8")).unwrap().next().is_ok());
        assert!(Ipam::new(net("ff00::/8")).unwrap().next().is_ok());
    }

    proptest! {
        /// Against a plain set: never the same address twice, never one outside, all of them before "exhausted".
        #[test]
        fn agrees_with_a_set(six in any::<bool>(), narrow in 2u8..=8, ops in proptest::collection::vec((0u8..3, any::<u8>()), 0..400)) {
            let (base, length) = if six { ("fd00::ff00", 128) } else { ("192.168.7.0", 32) };
            let subnet = IpNet::new(ip(base), length - narrow).unwrap();
            let size = (1usize << narrow) - if six { 1 } else { 2 };
            let usable = |a: &IpAddr| subnet.contains(a) && *a != subnet.network() && (six || *a != subnet.broadcast());
            let mut ipam = Ipam::new(subnet).unwrap();
            let mut model = BTreeSet::new();
            for (op, n) in ops {
                let address = if six {
                    ip(&format!("fd00::ff{n:02x}"))
                } else {
                    ip(&format!("192.168.7.{n}"))
                };
                match op {
                    0 => match ipam.next() {
                        Ok(a) => {
                            prop_assert!(usable(&a));
                            prop_assert!(model.insert(a));
                        }
                        Err(_) => prop_assert_eq!(model.len(), size),
                    },
                    1 => prop_assert_eq!(ipam.take(address).is_ok(), usable(&address) && model.insert(address)),
                    _ => {
                        ipam.release(address);
                        model.remove(&address);
                    }
                }
                prop_assert_eq!(ipam.taken.len(), model.len());
            }
        }
    }
}
