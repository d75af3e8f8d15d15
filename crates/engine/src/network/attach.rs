//! The ends that containers have of networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vessel_api::EndpointSettings;
use vessel_network::{EndpointRecord, EndpointRequest, MacAddr, Netns, PortSpec, TapEndpoint};
use vessel_runtime::shim::Interface;

use super::create::HOST_BINDING;
use super::{Networks, UserNetwork, Wire, from_network, namespace_config, not_found};
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
    /// A machine's ends, which are not in the namespace.
    pub taps: Vec<(OwnedFd, Interface)>,
}

/// What is asked for of one end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct End {
    pub network: String,
    address: Option<Ipv4Addr>,
    address_v6: Option<Ipv6Addr>,
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
        let address_v6 = asked.map_or("", |config| config.ipv6_address.as_str());
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
            address_v6: match address_v6 {
                "" => None,
                text => Some(text.parse().map_err(|_| parse("IPv6 address", text))?),
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

    /// The end that becomes `interface`, with the default routes that lead to it.
    fn request(&self, interface: String, ways: &Ways) -> EndpointRequest {
        let leads_here = |way: &Option<String>| way.as_deref() == Some(self.network.as_str());
        EndpointRequest {
            address: self.address,
            address_v6: self.address_v6,
            mac: self.mac,
            ifname: Some(interface),
            no_default_route: !leads_here(&ways.v4),
            no_default_route_v6: !leads_here(&ways.v6),
            netns: namespace_config(),
        }
    }
}

/// The networks that the default routes of a container go to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ways {
    pub v4: Option<String>,
    pub v6: Option<String>,
}

/// What whoever is behind a TAP device is to make of its interface.
fn interface_of(end: &TapEndpoint, request: &EndpointRequest) -> Interface {
    let record = &end.record;
    let v6 = record.v6.iter();
    let addresses = std::iter::once((record.address, record.prefix))
        .chain(v6.clone().map(|v6| (v6.address.into(), v6.prefix)));
    let v4 = (!request.no_default_route).then_some(record.gateway);
    let v6 = v6
        .filter(|_| !request.no_default_route_v6)
        .map(|v6| v6.gateway.into());
    Interface {
        name: record.inside.clone(),
        mac: record.mac.0,
        mtu: end.mtu,
        addresses: addresses.collect(),
        gateways: v4.into_iter().chain(v6).collect(),
    }
}

/// An end that is being made: until it is, its network is not removed.
struct Coming<'a>(&'a UserNetwork);

impl UserNetwork {
    fn coming(&self) -> Result<Coming<'_>> {
        let mut link = self.link();
        if link.removed {
            return Err(not_found(&self.record.name));
        }
        link.coming += 1;
        Ok(Coming(self))
    }
}

impl Coming<'_> {
    /// It was made; none: it was not.
    fn came(self, record: Option<&EndpointRecord>) {
        let mut link = self.0.link();
        link.coming -= 1;
        link.ends.extend(record.map(|record| record.ifname.clone()));
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
        let reservations = match self.publish(&mut endpoint.record, ports) {
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

    fn publish(&self, record: &mut EndpointRecord, ports: &[PortSpec]) -> Result<Vec<OwnedFd>> {
        if ports.is_empty() {
            return Ok(Vec::new());
        }
        let made = self.table.publish(record, ports).map_err(from_network)?;
        Ok(made
            .into_iter()
            .filter_map(|reservation| reservation.socket)
            .collect())
    }

    /// Publishes ports where the default routes go: those of IPv4 and those of IPv6 may go to different networks.
    fn publish_on_ways(
        &self,
        endpoints: &mut BTreeMap<String, EndpointRecord>,
        ways: &Ways,
        ports: &[PortSpec],
    ) -> Result<Vec<OwnedFd>> {
        let Some(record) = ways.v4.as_ref().and_then(|way| endpoints.get_mut(way)) else {
            return Ok(Vec::new());
        };
        if ports.is_empty() {
            return Ok(Vec::new());
        }
        let binding = ways.v4.as_ref().and_then(|way| self.host_binding(way));
        let ports: Vec<PortSpec> = ports
            .iter()
            .map(|spec| PortSpec {
                host_ip: spec.host_ip.or(binding),
                ..spec.clone()
            })
            .collect();
        let ports = ports.as_slice();
        let v6 = ways.v6.as_ref().filter(|way| self.publishes(way));
        if !ways.v4.as_ref().is_some_and(|way| self.publishes(way)) {
            tracing::warn!(
                network = ways.v4,
                "ports are not published: the container's default route goes to a network without published ports; give \
                 another network of it the highest gw-priority"
            );
            return Ok(Vec::new());
        }
        if v6.is_none() || v6 == ways.v4.as_ref() {
            return self.publish(record, ports);
        }
        let on_v4: Vec<PortSpec> = ports
            .iter()
            .filter(|spec| !spec.host_ip.is_some_and(|ip| ip.is_ipv6()))
            .map(|spec| PortSpec {
                host_ip: spec.host_ip.or(Some(Ipv4Addr::UNSPECIFIED.into())),
                ..spec.clone()
            })
            .collect();
        let (before, own) = (record.ports.len(), record.address);
        let mut reservations = self.publish(record, &on_v4)?;
        let mut chosen = record.ports[before..].iter().copied();
        // The same port of the host for both, where it was not said for which.
        let mut on_v6 = Vec::new();
        for spec in ports {
            let mut spec = spec.clone();
            if !spec.host_ip.is_some_and(|ip| ip.is_ipv6()) {
                let port = chosen.next();
                if spec.host_ip.is_some() {
                    continue;
                }
                // One that is reached at the container's own address is none of the host.
                if let Some(port) = port.filter(|port| port.host_ip != own) {
                    spec.host_ports = port.host_port..=port.host_port;
                }
                spec.host_ip = Some(Ipv6Addr::UNSPECIFIED.into());
            }
            on_v6.push(spec);
        }
        if let Some(record) = v6.and_then(|way| endpoints.get_mut(way)) {
            reservations.extend(self.publish(record, &on_v6)?);
        }
        Ok(reservations)
    }

    /// A namespace with an end of each network. Ports are published on the networks that the default routes go to.
    /// Blocks, seldom for long.
    pub fn join(&self, ends: &[End], ports: &[PortSpec]) -> Result<Joined> {
        if let [only] = ends
            && only.network == DEFAULT
        {
            let request = EndpointRequest {
                address: only.address,
                address_v6: only.address_v6,
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
                taps: Vec::new(),
            });
        }
        let networks = self.networks_of(ends)?;
        let netns = self.isolated_namespace()?;
        let mut endpoints = BTreeMap::new();
        let joined = self.join_each(&netns, ends, &networks, ports, &mut endpoints);
        match joined {
            Ok(reservations) => Ok(Joined {
                netns: netns.into(),
                endpoints,
                reservations,
                taps: Vec::new(),
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

    /// The networks of these ends, before anything is made; none: the default one.
    fn networks_of(&self, ends: &[End]) -> Result<Vec<Option<Arc<UserNetwork>>>> {
        ends.iter()
            .map(|end| match end.network.as_str() {
                DEFAULT => Ok(None),
                name => self.find_user(name).map(Some).ok_or_else(|| not_found(name)),
            })
            .collect()
    }

    /// The same for a machine: its ends are TAP devices. In the namespace there is loopback, and on it the DNS server.
    pub fn join_machine(&self, ends: &[End], ports: &[PortSpec]) -> Result<Joined> {
        let networks = self.networks_of(ends)?;
        let mut joined = Joined {
            netns: self.isolated_namespace()?.into(),
            endpoints: BTreeMap::new(),
            reservations: Vec::new(),
            taps: Vec::new(),
        };
        let priorities = ends.iter().map(|end| (end.network.as_str(), end.priority));
        let ways = self.ways(priorities, !ports.is_empty());
        let mut plug = || -> Result<()> {
            for (index, (end, network)) in ends.iter().zip(&networks).enumerate() {
                let request = end.request(format!("eth{index}"), &ways);
                let Some(made) = self.attach_tap(network.as_deref(), &request)? else {
                    continue;
                };
                let interface = interface_of(&made, &request);
                joined.endpoints.insert(end.network.clone(), made.record);
                joined.taps.push((made.tap, interface));
            }
            joined.reservations = self.publish_on_ways(&mut joined.endpoints, &ways, ports)?;
            Ok(())
        };
        match plug() {
            Ok(()) => Ok(joined),
            Err(error) => {
                joined.taps.clear();
                for record in joined.endpoints.values() {
                    self.release(record);
                }
                Err(error)
            }
        }
    }

    /// A machine's end of a network that a user has made, or of the default bridge if there is one.
    fn attach_tap(
        &self,
        network: Option<&UserNetwork>,
        request: &EndpointRequest,
    ) -> Result<Option<TapEndpoint>> {
        let Some(network) = network else {
            return match self.bridge() {
                Some(bridge) => bridge.attach_tap(request).map(Some).map_err(from_network),
                None => Ok(None),
            };
        };
        let wire = network.wire(&self.table)?;
        let coming = network.coming()?;
        let made = wire.attach_tap(request);
        coming.came(made.as_ref().ok().map(|end| &end.record));
        made.map(Some)
    }

    fn join_each(
        &self,
        netns: &Netns,
        ends: &[End],
        networks: &[Option<Arc<UserNetwork>>],
        ports: &[PortSpec],
        endpoints: &mut BTreeMap<String, EndpointRecord>,
    ) -> Result<Vec<OwnedFd>> {
        let priorities = ends.iter().map(|end| (end.network.as_str(), end.priority));
        let ways = self.ways(priorities, !ports.is_empty());
        for (index, (end, network)) in ends.iter().zip(networks).enumerate() {
            let request = end.request(format!("eth{index}"), &ways);
            // A namespace of which nothing is recorded yet dies with this process.
            let made = self.attach_to(network.as_deref(), netns.as_fd(), &request, &mut |_| ())?;
            if let Some(record) = made {
                endpoints.insert(end.network.clone(), record);
            }
        }
        self.publish_on_ways(endpoints, &ways, ports)
    }

    /// One more end for a container that runs; `before` is told of it, see [`Wire::attach_to`].
    pub(super) fn add(
        &self,
        netns: &Netns,
        end: &End,
        there: &BTreeMap<String, EndpointRecord>,
        before: &mut dyn FnMut(&EndpointRecord),
    ) -> Result<EndpointRecord> {
        let network = match end.network.as_str() {
            DEFAULT => None,
            name => Some(self.find_user(name).ok_or_else(|| not_found(name))?),
        };
        let taken: Vec<&str> = there.values().map(|other| other.inside.as_str()).collect();
        // Whoever may do so in the container may have made interfaces of his own.
        let free = netns.free_name(&taken).map_err(from_network)?;
        let request = end.request(free, &Ways::default());
        match self.attach_to(network.as_deref(), netns.as_fd(), &request, before)? {
            Some(record) => Ok(record),
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
        before: &mut dyn FnMut(&EndpointRecord),
    ) -> Result<Option<EndpointRecord>> {
        let Some(network) = network else {
            let Some(bridge) = self.bridge() else {
                return Ok(None);
            };
            let record = bridge.attach_to(netns, request).map_err(from_network)?;
            return Ok(Some(record));
        };
        let wire = network.wire(&self.table)?;
        let coming = network.coming()?;
        let made = wire.attach_to(netns, request, before);
        coming.came(made.as_ref().ok());
        made.map(Some)
    }

    /// What an end is on; none when that is gone.
    fn wire_of(&self, record: &EndpointRecord) -> Option<Wire> {
        match self.bridge().filter(|bridge| bridge.name() == record.bridge) {
            Some(bridge) => Some(Wire::Bridge(bridge.clone())),
            None => self
                .by_bridge(&record.bridge)
                .and_then(|network| network.link().wire.clone()),
        }
    }

    /// Gives an end back.
    pub fn release(&self, record: &EndpointRecord) {
        let wire = self.wire_of(record);
        if let Some(network) = self.by_bridge(&record.bridge) {
            let mut link = network.link();
            link.ends.remove(&record.ifname);
            link.unknown.retain(|end| end.ifname != record.ifname);
        }
        let released = match wire {
            Some(wire) => wire.release(record),
            None => self.table.give_up(record).map_err(from_network),
        };
        if let Err(error) = released {
            tracing::warn!(
                endpoint = record.id,
                "{error}; the next start of the daemon cleans up"
            );
        }
    }

    /// Takes an end from a container that runs on.
    pub(super) fn unplug(&self, netns: BorrowedFd<'_>, record: &EndpointRecord) -> Result<()> {
        match self.wire_of(record) {
            Some(wire) => wire.unplug(netns, record),
            None => Ok(()),
        }
    }

    /// Waits until what was given back is gone.
    pub(super) fn settle_releases(&self, record: &EndpointRecord) {
        if let Some(wire) = self.wire_of(record) {
            wire.flush();
        }
    }

    /// The address of the host that a network publishes ports on which name none; none: all of them.
    fn host_binding(&self, name: &str) -> Option<IpAddr> {
        let network = self.find_user(name)?;
        let address: Ipv4Addr = network.record.options.get(HOST_BINDING)?.parse().ok()?;
        (!address.is_unspecified()).then_some(address.into())
    }

    /// Whether ports of containers on a network are published: of those on a parent they are where everybody reaches them.
    pub(super) fn publishes(&self, name: &str) -> bool {
        name == DEFAULT
            || self
                .find_user(name)
                .is_some_and(|network| network.record.parent.is_none())
    }

    /// The networks that the default routes go to: none that is internal; of the others the one with the highest priority, then,
    /// where a container is to have `published` ports, those on which there are any, since answers go by the route; then the one
    /// whose name comes first. For IPv6 it is one of those that have it.
    pub(super) fn ways<'a>(&self, networks: impl Iterator<Item = (&'a str, i64)>, published: bool) -> Ways {
        let open: Vec<(&str, i64)> = networks.filter(|(name, _)| !self.is_internal(name)).collect();
        let first = |v6: bool| {
            open.iter()
                .filter(|(name, _)| !v6 || self.has_v6(name))
                .min_by_key(|(name, priority)| {
                    let publishes = published && self.publishes(name);
                    (std::cmp::Reverse((*priority, publishes)), *name)
                })
                .map(|(name, _)| (*name).to_owned())
        };
        Ways {
            v4: first(false),
            v6: first(true),
        }
    }

    fn has_v6(&self, name: &str) -> bool {
        match name {
            DEFAULT => self.bridge().is_some_and(|bridge| bridge.v6().is_some()),
            name => self
                .find_user(name)
                .is_some_and(|network| network.record.bridge.v6.is_some()),
        }
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
