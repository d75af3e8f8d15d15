//! The addresses of a network's endpoints, of both families.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::bridge::{BridgeConfig, ConfigV6};
use crate::endpoint::{AddressV6, EndpointRecord, EndpointRequest};
use crate::error::{Error, Result};
use crate::ipam::Ipam;

/// Who has which address.
pub(crate) struct Addresses {
    ipam: Ipam,
    ipam_v6: Option<Ipam>,
    /// By interface: the addresses that were given out and not released.
    endpoints: HashMap<String, Vec<IpAddr>>,
}

impl Addresses {
    pub(crate) fn new(
        config: &BridgeConfig,
        subnet: Ipv4Net,
        gateway: Ipv4Addr,
        gateway_v6: Option<Ipv6Addr>,
    ) -> Result<Self> {
        Ok(Self {
            ipam: new_ipam(config, subnet, Some(gateway))?,
            ipam_v6: match &config.v6 {
                Some(v6) => Some(new_ipam_v6(v6, gateway_v6)?),
                None => None,
            },
            endpoints: HashMap::new(),
        })
    }

    /// The interfaces of endpoints.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &String> {
        self.endpoints.keys()
    }

    /// An endpoint is gone.
    pub(crate) fn free(&mut self, ifname: &str) {
        for address in self.endpoints.remove(ifname).unwrap_or_default() {
            self.release(address);
        }
    }

    /// The addresses of an endpoint: those it asks for, or the next ones.
    pub(crate) fn take(
        &mut self,
        request: &EndpointRequest,
        ifname: &str,
    ) -> Result<(Ipv4Addr, Option<Ipv6Addr>)> {
        fn one(ipam: &mut Ipam, wanted: Option<IpAddr>) -> Result<IpAddr> {
            match wanted {
                Some(address) => ipam.take(address).map(|()| address),
                None => ipam.next(),
            }
        }
        if let (Some(address), None) = (request.address_v6, &self.ipam_v6) {
            return Err(Error::invalid(format!(
                "the address {address} cannot be given: the network has no IPv6; make it with --ipv6"
            )));
        }
        let v4 = one(&mut self.ipam, request.address.map(IpAddr::V4))?;
        let v6 = self
            .ipam_v6
            .as_mut()
            .map(|ipam| one(ipam, request.address_v6.map(IpAddr::V6)))
            .transpose();
        let v6 = match v6 {
            Ok(v6) => v6,
            Err(error) => {
                self.ipam.release(v4);
                return Err(error);
            }
        };
        self.endpoints
            .insert(ifname.to_owned(), std::iter::once(v4).chain(v6).collect());
        match (v4, v6) {
            (IpAddr::V4(v4), None) => Ok((v4, None)),
            (IpAddr::V4(v4), Some(IpAddr::V6(v6))) => Ok((v4, Some(v6))),
            _ => Err(Error::invalid("an allocator gave an address of the other family")),
        }
    }

    fn release(&mut self, address: IpAddr) {
        // Of the other family they know nothing.
        self.ipam.release(address);
        if let Some(ipam) = &mut self.ipam_v6 {
            ipam.release(address);
        }
    }

    /// Takes an endpoint that somebody else has recorded into the books.
    pub(crate) fn adopt(&mut self, record: &EndpointRecord) -> Result<()> {
        if self.endpoints.contains_key(&record.ifname) {
            return Ok(());
        }
        let addresses: Vec<IpAddr> = record.addresses().collect();
        for (taken, address) in addresses.iter().enumerate() {
            let ipam = match address {
                IpAddr::V4(_) => Some(&mut self.ipam),
                IpAddr::V6(_) => self.ipam_v6.as_mut(),
            };
            // One that is outside the subnet has no place in the allocator, but stays an endpoint.
            if let Some(ipam) = ipam.filter(|ipam| ipam.offset(*address).is_ok())
                && let Err(error) = ipam.take(*address)
            {
                for address in &addresses[..taken] {
                    self.release(*address);
                }
                return Err(error);
            }
        }
        self.endpoints.insert(record.ifname.clone(), addresses);
        Ok(())
    }
}

/// Whether the subnet, the range and the addresses fit together.
pub(crate) fn check(config: &BridgeConfig, subnet: Ipv4Net, gateway: Ipv4Addr) -> Result<()> {
    new_ipam(config, subnet, Some(gateway)).map(drop)
}

/// What an endpoint has of IPv6, on a network with this subnet and gateway.
pub(crate) fn place_v6(address: Option<Ipv6Addr>, network: Option<(Ipv6Net, Ipv6Addr)>) -> Option<AddressV6> {
    let (address, (subnet, gateway)) = address.zip(network)?;
    Some(AddressV6 {
        address,
        prefix: subnet.prefix_len(),
        gateway,
    })
}

/// The address that a bridge gets in a subnet: the one that is configured, or the first that is given.
///
/// # Errors
/// When the subnet, the range and the addresses do not fit together.
pub fn gateway_of(config: &BridgeConfig, subnet: Ipv4Net) -> Result<Ipv4Addr> {
    let gateway = match config.gateway {
        Some(gateway) => gateway,
        None => {
            let mut ipam = new_ipam(config, subnet, None)?;
            match ipam.next()? {
                IpAddr::V4(gateway) => gateway,
                IpAddr::V6(_) => return Err(Error::invalid("a subnet of IPv4 has an address of IPv6")),
            }
        }
    };
    new_ipam(config, subnet, Some(gateway))?;
    Ok(gateway)
}

/// The same for IPv6.
///
/// # Errors
/// When the subnet, the range and the addresses do not fit together.
pub fn gateway_v6_of(config: &ConfigV6) -> Result<Ipv6Addr> {
    let gateway = match config.gateway {
        Some(gateway) => gateway,
        None => match new_ipam_v6(config, None)?.next()? {
            IpAddr::V6(gateway) => gateway,
            IpAddr::V4(_) => return Err(Error::invalid("a subnet of IPv6 has an address of IPv4")),
        },
    };
    new_ipam_v6(config, Some(gateway))?;
    Ok(gateway)
}

fn new_ipam(config: &BridgeConfig, subnet: Ipv4Net, gateway: Option<Ipv4Addr>) -> Result<Ipam> {
    let mut ipam = match config.range {
        Some(range) => Ipam::within(subnet.into(), range.into())?,
        None => Ipam::new(subnet.into())?,
    };
    for address in gateway.iter().chain(&config.taken) {
        ipam.take((*address).into())?;
    }
    Ok(ipam)
}

fn new_ipam_v6(config: &ConfigV6, gateway: Option<Ipv6Addr>) -> Result<Ipam> {
    let mut ipam = match config.range {
        Some(range) => Ipam::within(config.subnet.into(), range.into())?,
        None => Ipam::new(config.subnet.into())?,
    };
    for address in gateway.iter().chain(&config.taken) {
        ipam.take((*address).into())?;
    }
    Ok(ipam)
}
