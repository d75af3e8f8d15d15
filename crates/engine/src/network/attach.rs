//! The ends that containers have of networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vessel_api::EndpointSettings;
use vessel_network::{Bridge, EndpointRecord, EndpointRequest, MacAddr, Netns, PortSpec};

use super::{Networks, UserNetwork, from_network, namespace_config, not_found};
use crate::container::record::Record;
use crate::oci_spec::modes::NetworkMode;
use crate::{Error, Result};

/// The name of the default network.
pub(super) const DEFAULT: &str = "bridge";

/// A network namespace, and what goes with it.
pub(crate) struct Attachment {
    pub netns: OwnedFd,
    pub endpoint: Option<EndpointRecord>,
    /// Kept open by the shim.
    pub reservations: Vec<OwnedFd>,
}

/// The network namespace of a container, with all of its ends.
pub(crate) struct Joined {
    pub netns: OwnedFd,
    /// By the name of the network.
    pub endpoints: BTreeMap<String, EndpointRecord>,
    /// Kept open by the shim.
    pub reservations: Vec<OwnedFd>,
}

/// What is asked for of one end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct End {
    pub network: String,
    address: Option<Ipv4Addr>,
    mac: Option<MacAddr>,
    /// Whose default route it is: the highest of them.
    priority: i64,
}

impl End {
    /// From the settings of a container on a network.
    ///
    /// # Errors
    /// Addresses that are none.
    pub fn new(network: &str, settings: &EndpointSettings, mac: &str) -> Result<Self> {
        let asked = settings.ipam_config.as_ref();
        let address = asked.map_or("", |config| config.ipv4_address.as_str());
        if let Some(v6) = asked
            .map(|config| &config.ipv6_address)
            .filter(|text| !text.is_empty())
        {
            return Err(Error::unsupported(format!(
                "the address {v6} cannot be given: IPv6 networks are not there yet"
            )));
        }
        let mac = if mac.is_empty() {
            settings.mac_address.as_str()
        } else {
            mac
        };
        let parse = |what: &str, text: &str| Error::invalid(format!("invalid {what}: {text}"));
        Ok(Self {
            network: network.to_owned(),
            address: match address {
                "" => None,
                text => Some(text.parse().map_err(|_| parse("IPv4 address", text))?),
            },
            mac: match mac {
                "" => None,
                text => Some(text.parse().map_err(|_| parse("MAC address", text))?),
            },
            priority: settings.gw_priority,
        })
    }

    /// All ends that a container is to have, that of its mode first.
    ///
    /// # Errors
    /// Addresses that are none.
    pub fn all(record: &Record) -> Result<Vec<Self>> {
        let mode = NetworkMode::parse(&record.host.network_mode)?;
        let first = mode.network_name().unwrap_or_default();
        if record.networks.is_empty() {
            let settings = EndpointSettings::default();
            return Ok(vec![Self::new(first, &settings, &record.config.mac_address)?]);
        }
        let mut ends = record
            .networks
            .iter()
            .map(|(name, settings)| {
                let mac = if name == first {
                    record.config.mac_address.as_str()
                } else {
                    ""
                };
                Self::new(name, settings, mac)
            })
            .collect::<Result<Vec<_>>>()?;
        ends.sort_by_key(|end| end.network != first);
        Ok(ends)
    }

    fn request(&self, index: usize, default_route: bool) -> EndpointRequest {
        EndpointRequest {
            address: self.address,
            mac: self.mac,
            ifname: Some(format!("eth{index}")),
            no_default_route: !default_route,
            netns: namespace_config(),
        }
    }
}

impl Networks {
    /// An end of the default bridge with these ports published; without a bridge nothing but loopback, as dockerd has it.
    /// Blocks, seldom for long.
    pub fn attach(&self, request: &EndpointRequest, ports: &[PortSpec]) -> Result<Attachment> {
        let Some(pool) = &self.pool else {
            return self.isolated();
        };
        let request = EndpointRequest {
            netns: namespace_config(),
            ..request.clone()
        };
        let mut endpoint = pool.take(&request).map_err(from_network)?;
        let reservations = match self.publish(pool.bridge(), &mut endpoint.record, ports) {
            Ok(reservations) => reservations,
            Err(error) => {
                self.release(&endpoint.record);
                return Err(error);
            }
        };
        Ok(Attachment {
            netns: endpoint.netns.into(),
            endpoint: Some(endpoint.record),
            reservations,
        })
    }

    fn publish(
        &self,
        bridge: &Bridge,
        record: &mut EndpointRecord,
        ports: &[PortSpec],
    ) -> Result<Vec<OwnedFd>> {
        if ports.is_empty() {
            return Ok(Vec::new());
        }
        let made = bridge.publish(record, ports).map_err(from_network)?;
        Ok(made
            .into_iter()
            .filter_map(|reservation| reservation.socket)
            .collect())
    }

    /// A namespace with an end of each network. Ports are published on the network that the default route goes to.
    /// Blocks, seldom for long.
    pub fn join(&self, ends: &[End], ports: &[PortSpec]) -> Result<Joined> {
        if let [only] = ends
            && only.network == DEFAULT
        {
            let request = EndpointRequest {
                address: only.address,
                mac: only.mac,
                ..EndpointRequest::default()
            };
            let made = self.attach(&request, ports)?;
            return Ok(Joined {
                netns: made.netns,
                endpoints: made
                    .endpoint
                    .into_iter()
                    .map(|end| (DEFAULT.to_owned(), end))
                    .collect(),
                reservations: made.reservations,
            });
        }
        // Before anything is made.
        let networks: Vec<Option<Arc<UserNetwork>>> = ends
            .iter()
            .map(|end| match end.network.as_str() {
                DEFAULT => Ok(None),
                name => self.find_user(name).map(Some).ok_or_else(|| not_found(name)),
            })
            .collect::<Result<_>>()?;
        let netns = self.isolated_namespace()?;
        let mut endpoints = BTreeMap::new();
        let joined = self.join_each(&netns, ends, &networks, ports, &mut endpoints);
        match joined {
            Ok(reservations) => Ok(Joined {
                netns: netns.into(),
                endpoints,
                reservations,
            }),
            Err(error) => {
                drop(netns);
                for record in endpoints.values() {
                    self.release(record);
                }
                Err(error)
            }
        }
    }

    fn join_each(
        &self,
        netns: &Netns,
        ends: &[End],
        networks: &[Option<Arc<UserNetwork>>],
        ports: &[PortSpec],
        endpoints: &mut BTreeMap<String, EndpointRecord>,
    ) -> Result<Vec<OwnedFd>> {
        let way_out = self.way_out(ends.iter().map(|end| (end.network.as_str(), end.priority)));
        let mut reservations = Vec::new();
        for (index, (end, network)) in ends.iter().zip(networks).enumerate() {
            let is_way_out = way_out.as_deref() == Some(end.network.as_str());
            let request = end.request(index, is_way_out);
            let Some((bridge, record)) = self.attach_to(network.as_deref(), netns.as_fd(), &request)? else {
                continue;
            };
            let record = endpoints.entry(end.network.clone()).or_insert(record);
            if is_way_out {
                reservations = self.publish(&bridge, record, ports)?;
            }
        }
        Ok(reservations)
    }

    /// One more end for a container that runs.
    pub(super) fn add(
        &self,
        netns: BorrowedFd<'_>,
        end: &End,
        there: &BTreeMap<String, EndpointRecord>,
    ) -> Result<EndpointRecord> {
        let network = match end.network.as_str() {
            DEFAULT => None,
            name => Some(self.find_user(name).ok_or_else(|| not_found(name))?),
        };
        let free = (0..).find(|index| there.values().all(|other| other.inside != format!("eth{index}")));
        let request = end.request(free.unwrap_or(there.len()), false);
        match self.attach_to(network.as_deref(), netns, &request)? {
            Some((_, record)) => Ok(record),
            None => Err(Error::unsupported(
                "this daemon runs without a default bridge: connect to another network",
            )),
        }
    }

    /// An end of a network that a user has made, or of the default bridge if there is one.
    fn attach_to(
        &self,
        network: Option<&UserNetwork>,
        netns: BorrowedFd<'_>,
        request: &EndpointRequest,
    ) -> Result<Option<(Bridge, EndpointRecord)>> {
        let Some(network) = network else {
            let Some(bridge) = self.bridge() else {
                return Ok(None);
            };
            let record = bridge.attach_to(netns, request).map_err(from_network)?;
            return Ok(Some((bridge.clone(), record)));
        };
        let bridge = network.bridge(&self.table)?;
        // From here on it is not removed.
        {
            let mut link = network.link();
            if link.removed {
                return Err(not_found(&network.record.name));
            }
            link.coming += 1;
        }
        let made = bridge.attach_to(netns, request);
        let mut link = network.link();
        link.coming -= 1;
        let record = made.map_err(from_network)?;
        link.ends.insert(record.ifname.clone());
        drop(link);
        Ok(Some((bridge, record)))
    }

    /// Gives an end back.
    pub fn release(&self, record: &EndpointRecord) {
        let bridge = match self.bridge().filter(|bridge| bridge.name() == record.bridge) {
            Some(bridge) => Some(bridge.clone()),
            None => self.by_bridge(&record.bridge).and_then(|network| {
                let mut link = network.link();
                link.ends.remove(&record.ifname);
                link.bridge.clone()
            }),
        };
        if let Some(bridge) = bridge
            && let Err(error) = bridge.release(record)
        {
            tracing::warn!(
                endpoint = record.id,
                "{error}; the next start of the daemon cleans up"
            );
        }
    }

    /// Waits until what was given back is gone.
    pub(super) fn settle_releases(&self, record: &EndpointRecord) {
        let bridge = match self.bridge().filter(|bridge| bridge.name() == record.bridge) {
            Some(bridge) => Some(bridge.clone()),
            None => self
                .by_bridge(&record.bridge)
                .and_then(|network| network.link().bridge.clone()),
        };
        if let Some(bridge) = bridge {
            bridge.flush();
        }
    }

    /// The network that the default route goes to: none that is internal; of the others the one with the highest priority,
    /// then the one whose name comes first.
    pub(super) fn way_out<'a>(&self, networks: impl Iterator<Item = (&'a str, i64)>) -> Option<String> {
        networks
            .filter(|(name, _)| !self.is_internal(name))
            .min_by_key(|(name, priority)| (std::cmp::Reverse(*priority), (*name).to_owned()))
            .map(|(name, _)| name.to_owned())
    }

    /// Whether a network has no way out.
    pub(super) fn is_internal(&self, name: &str) -> bool {
        match name {
            DEFAULT => self.bridge().is_none(),
            name => self
                .find_user(name)
                .is_some_and(|network| network.record.internal),
        }
    }
}

/// An address of the kind that networks have.
pub(super) fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
