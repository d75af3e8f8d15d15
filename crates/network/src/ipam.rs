//! Addresses of one subnet: which are taken, which comes next.
//!
//! Like Docker, the next free address after the last one given: an address rests as long as possible before it is reused.
//! The network and broadcast addresses are never given.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::error::{Error, ErrorKind, Result};

/// The widest subnet that is accepted, as a prefix length; the bitmap of a /8 takes 2 MiB.
const WIDEST: u8 = 8;
/// The narrowest: a /30 has room for the gateway and one endpoint.
const NARROWEST: u8 = 30;

/// The allocator of a subnet's addresses.
#[derive(Debug)]
pub(crate) struct Ipam {
    subnet: Ipv4Net,
    /// One bit per address of the subnet.
    taken: Vec<u64>,
    /// Offset of the last address given by `next`.
    last: u32,
    free: u32,
    /// The offsets that `next` gives: those of the range, or all.
    range: std::ops::Range<u32>,
}

impl Ipam {
    pub(crate) fn new(subnet: Ipv4Net) -> Result<Self> {
        if !(WIDEST..=NARROWEST).contains(&subnet.prefix_len()) {
            return Err(Error::invalid(format!(
                "the subnet {subnet} cannot be used: its prefix must be from /{WIDEST} to /{NARROWEST}"
            )));
        }
        let subnet = subnet.trunc();
        let size = 1u32 << (32 - subnet.prefix_len());
        let mut ipam = Self {
            subnet,
            taken: vec![0; size.div_ceil(64) as usize],
            last: 0,
            free: size - 2,
            range: 0..size,
        };
        ipam.set(0, true);
        ipam.set(size - 1, true);
        // A subnet smaller than a word: the bits past its end are not addresses.
        for beyond in size..size.next_multiple_of(64) {
            ipam.set(beyond, true);
        }
        Ok(ipam)
    }

    /// The allocator of a subnet that gives addresses of one part of it only; the others must be asked for.
    pub(crate) fn within(subnet: Ipv4Net, range: Ipv4Net) -> Result<Self> {
        let mut ipam = Self::new(subnet)?;
        let range = range.trunc();
        if !ipam.subnet.contains(&range) {
            return Err(Error::invalid(format!(
                "the range {range} is not a part of the subnet {subnet}"
            )));
        }
        let first = u32::from(range.network()) - u32::from(ipam.subnet.network());
        ipam.range = first..first + (u32::from(range.broadcast()) - u32::from(range.network())) + 1;
        ipam.last = first.saturating_sub(1);
        Ok(ipam)
    }

    /// The next free address after the last one given, round and round.
    pub(crate) fn next(&mut self) -> Result<Ipv4Addr> {
        if self.free == 0 {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "no free address is left in the subnet {}; remove endpoints or make a network with a larger subnet",
                    self.subnet
                ),
            ));
        }
        let within = |offset: &u32| self.range.contains(offset);
        let offset = self
            .find_free(self.last.saturating_add(1))
            .filter(within)
            .or_else(|| self.find_free(self.range.start).filter(within));
        let Some(offset) = offset else {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "no free address is left in the range of the subnet {} that addresses are given from; remove endpoints or \
                     ask for an address outside of it",
                    self.subnet
                ),
            ));
        };
        self.set(offset, true);
        self.free -= 1;
        self.last = offset;
        Ok(self.address(offset))
    }

    /// Takes one address; does not move the sequence.
    pub(crate) fn take(&mut self, address: Ipv4Addr) -> Result<()> {
        let offset = self.offset(address)?;
        if self.get(offset) {
            return Err(Error::conflict(format!(
                "the address {address} is already in use on the subnet {}; choose another one",
                self.subnet
            )));
        }
        self.set(offset, true);
        self.free -= 1;
        Ok(())
    }

    /// Gives an address back. One that is not taken, or not ours, is ignored.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        if let Ok(offset) = self.offset(address)
            && self.get(offset)
        {
            self.set(offset, false);
            self.free += 1;
        }
    }

    /// Whether the address could be given to an endpoint.
    pub(crate) fn offset(&self, address: Ipv4Addr) -> Result<u32> {
        if !self.subnet.contains(&address) {
            return Err(Error::invalid(format!(
                "the address {address} is not in the subnet {}",
                self.subnet
            )));
        }
        if address == self.subnet.network() || address == self.subnet.broadcast() {
            return Err(Error::invalid(format!(
                "the address {address} is the network or broadcast address of the subnet {}",
                self.subnet
            )));
        }
        Ok(u32::from(address) - u32::from(self.subnet.network()))
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + offset)
    }

    fn find_free(&self, from: u32) -> Option<u32> {
        let first = (from / 64) as usize;
        for (i, word) in self.taken.iter().enumerate().skip(first) {
            let mut free = !word;
            if i == first {
                free &= u64::MAX << (from % 64);
            }
            if free != 0 {
                return Some(i as u32 * 64 + free.trailing_zeros());
            }
        }
        None
    }

    fn get(&self, offset: u32) -> bool {
        self.taken
            .get((offset / 64) as usize)
            .is_none_or(|w| w & (1 << (offset % 64)) != 0)
    }

    fn set(&mut self, offset: u32, taken: bool) {
        if let Some(word) = self.taken.get_mut((offset / 64) as usize) {
            let bit = 1 << (offset % 64);
            *word = if taken { *word | bit } else { *word & !bit };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn sequence_goes_on_after_a_release_and_wraps() {
        let mut ipam = Ipam::new(net("10.0.0.0/29")).unwrap();
        ipam.take("10.0.0.1".parse().unwrap()).unwrap();
        let first = ipam.next().unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 0, 0, 2));
        ipam.release(first);
        for expected in [3, 4, 5, 6, 2] {
            assert_eq!(ipam.next().unwrap(), Ipv4Addr::new(10, 0, 0, expected));
        }
        assert_eq!(ipam.next().unwrap_err().kind(), ErrorKind::Exhausted);
    }

    #[test]
    fn a_range_is_all_that_is_given() {
        let mut ipam = Ipam::within(net("10.0.0.0/24"), net("10.0.0.128/30")).unwrap();
        ipam.take("10.0.0.1".parse().unwrap()).unwrap();
        for _ in 0..2 {
            for expected in [128, 129, 130, 131] {
                assert_eq!(ipam.next().unwrap(), Ipv4Addr::new(10, 0, 0, expected));
            }
            assert_eq!(ipam.next().unwrap_err().kind(), ErrorKind::Exhausted);
            for given in [128, 129, 130, 131] {
                ipam.release(Ipv4Addr::new(10, 0, 0, given));
            }
        }
        assert!(Ipam::within(net("10.0.0.0/24"), net("10.0.1.0/25")).is_err());
    }

    #[test]
    fn edges_and_strangers_are_refused() {
        let mut ipam = Ipam::new(net("172.17.0.0/16")).unwrap();
        for bad in ["172.17.0.0", "172.17.255.255", "172.18.0.1"] {
            assert_eq!(
                ipam.take(bad.parse().unwrap()).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{bad}"
            );
        }
        ipam.take("172.17.0.9".parse().unwrap()).unwrap();
        assert_eq!(
            ipam.take("172.17.0.9".parse().unwrap()).unwrap_err().kind(),
            ErrorKind::Conflict
        );
        assert!(Ipam::new(net("10.0.0.0/31")).is_err());
        assert!(Ipam::new(net("0.0.0.0/0")).is_err());
    }

    proptest! {
        /// Against a plain set: never the same address twice, never one outside, all of them before "exhausted".
        #[test]
        fn agrees_with_a_set(prefix in 24u8..=30, ops in proptest::collection::vec((0u8..3, any::<u8>()), 0..400)) {
            let subnet = Ipv4Net::new(Ipv4Addr::new(192, 168, 7, 0), prefix).unwrap();
            let size = 1u32 << (32 - prefix);
            let mut ipam = Ipam::new(subnet).unwrap();
            let mut model = BTreeSet::new();
            for (op, n) in ops {
                let address = Ipv4Addr::new(192, 168, 7, n);
                match op {
                    0 => match ipam.next() {
                        Ok(a) => {
                            prop_assert!(subnet.contains(&a) && a != subnet.network() && a != subnet.broadcast());
                            prop_assert!(model.insert(a));
                        }
                        Err(_) => prop_assert_eq!(model.len() as u32, size - 2),
                    },
                    1 => {
                        let usable = subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast();
                        prop_assert_eq!(ipam.take(address).is_ok(), usable && model.insert(address));
                    }
                    _ => {
                        ipam.release(address);
                        model.remove(&address);
                    }
                }
                prop_assert_eq!(ipam.free as usize, size as usize - 2 - model.len());
            }
        }
    }
}
