//! A bridge: its interface, its subnet, its table of rules, its endpoints.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::{Ipv4Net, Ipv6Net};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::address::{MacAddr, check_name};
use crate::addresses::{Addresses, gateway_v6_of, place_v6};
use crate::endpoint::{AddressV6, Endpoint, EndpointRecord, EndpointRequest, TapEndpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::interface::{
    enable_v6, ensure_interface, forward_v6, give_back, has_bridge_netfilter, remove_interface,
};
use crate::link::{self, PortSettings, VethSpec};
use crate::netlink::message::Batch;
use crate::netlink::{Family, Socket};
use crate::nft::Ip;
use crate::nft::elements;
use crate::nft::ruleset::BridgeRules;
use crate::ports::{PortSpec, Protocol, PublishedPort, Reservation};
use crate::reaper::Reaper;
use crate::table::Table;
use crate::{netns, nft, tap};

/// How every interface of an endpoint begins on the host's side.
const HOST_PREFIX: &str = "ve";

/// What a bridge is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeConfig {
    /// The interface.
    pub name: String,
    /// The nftables table that belongs to this bridge.
    pub table: String,
    /// The subnet; without it that of the existing bridge, or the first default one that collides with nothing.
    pub subnet: Option<Ipv4Net>,
    /// The bridge's own address; without it the first of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// The MTU of the bridge and of its endpoints; without it the kernel's default.
    pub mtu: Option<u32>,
    /// Whether endpoints may talk to each other directly.
    pub icc: bool,
    /// Whether packets that leave the host get its address.
    pub masquerade: bool,
    /// The interface is somebody else's, there before and after: it gets what the network needs, and keeps the rest.
    #[serde(default)]
    pub foreign: bool,
    /// Whether there is no way from the bridge to the outside, nor to other bridges, nor back.
    #[serde(default)]
    pub internal: bool,
    /// The part of the subnet that addresses are given from; the others must be asked for.
    #[serde(default)]
    pub range: Option<Ipv4Net>,
    /// Addresses of the subnet that are given to no endpoint.
    #[serde(default)]
    pub taken: Vec<Ipv4Addr>,
    /// What it has of IPv6; without it IPv6 is switched off.
    #[serde(default)]
    pub v6: Option<ConfigV6>,
    /// What the host is to addresses of IPv4 behind it.
    #[serde(default)]
    pub mode_v4: GatewayMode,
    /// The same of IPv6.
    #[serde(default)]
    pub mode_v6: GatewayMode,
}

/// What the host is to the addresses of one family behind a bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewayMode {
    /// It translates: the outside sees the host's address, and published ports are ports of the host.
    #[default]
    Nat,
    /// It only routes: the outside reaches published ports at the endpoints' own addresses, to which it must have a route.
    Routed,
    /// It has no address there. For internal bridges.
    Isolated,
}

/// What a bridge is to have of IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigV6 {
    /// The subnet.
    pub subnet: Ipv6Net,
    /// The bridge's own address; without it the first of the subnet.
    pub gateway: Option<Ipv6Addr>,
    /// The part of the subnet that addresses are given from; the others must be asked for.
    pub range: Option<Ipv6Net>,
    /// Addresses of the subnet that are given to no endpoint.
    pub taken: Vec<Ipv6Addr>,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            name: "vessel0".into(),
            table: "vessel".into(),
            subnet: None,
            gateway: None,
            mtu: None,
            icc: true,
            masquerade: true,
            foreign: false,
            internal: false,
            range: None,
            taken: Vec::new(),
            v6: None,
            mode_v4: GatewayMode::Nat,
            mode_v6: GatewayMode::Nat,
        }
    }
}

/// What `reconcile` found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Interfaces that no record explained; removed.
    pub removed_interfaces: Vec<String>,
    /// Published ports that no record explained; withdrawn.
    pub removed_ports: usize,
    /// Published ports that were missing; put back.
    pub restored_ports: usize,
    /// Interfaces that had left the bridge; put back.
    pub reattached: Vec<String>,
    /// Records whose interface no longer exists: those endpoints have no network any more.
    pub lost: Vec<String>,
    /// Records that cannot be honoured, such as two with one address, and why. Their interfaces are left alone.
    pub rejected: Vec<(String, String)>,
}

/// Everything of a bridge that can be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The bridge, if it exists.
    pub bridge: Option<String>,
    /// The interfaces of endpoints on it.
    pub interfaces: Vec<String>,
    /// The published ports in its table: the host's side, the address and port they lead to.
    pub ports: Vec<(PublishedPort, IpAddr)>,
}

/// A bridge that exists. Clones are the same bridge.
#[derive(Clone)]
pub struct Bridge {
    shared: Arc<Shared>,
    reaper: Arc<Reaper>,
}

pub(crate) struct Shared {
    config: BridgeConfig,
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    v6: Option<(Ipv6Net, Ipv6Addr)>,
    host_has_ipv6: bool,
    table: Table,
    /// Ports are kept apart by the bridge itself, not by the rules.
    isolate_ports: bool,
    pub(crate) route: Mutex<Socket>,
    state: Mutex<State>,
}

struct State {
    index: u32,
    addresses: Addresses,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data behind these locks is consistent between any two statements that can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bridge {
    /// Makes the bridge be as configured, in the table that the configuration names: creates what is missing, replaces the
    /// rules, leaves endpoints and published ports.
    ///
    /// Switches on the host's forwarding, that of IPv6 if the bridge has it. When it was off, the host forwards for bridges only.
    pub fn ensure(config: &BridgeConfig) -> Result<Self> {
        let table = Table::open(&config.table)?;
        let mut made = Self::ensure_all(&table, std::slice::from_ref(config))?;
        match made.pop() {
            Some(bridge) => bridge,
            None => Err(Error::invalid("no bridge was asked for")),
        }
    }

    /// The same for several bridges that share a table: their rules become effective together, so that at no time there are
    /// those of some only. A bridge that cannot be made does not keep the others from it; where there can be no rules for IPv6,
    /// those bridges cannot be made that have it, and there are their rules for IPv4.
    ///
    /// # Errors
    /// When the rules cannot be installed.
    pub fn ensure_all(table: &Table, configs: &[BridgeConfig]) -> Result<Vec<Result<Self>>> {
        let mut made: Vec<Result<Self>> = configs
            .iter()
            .map(|config| Self::prepare(table, config))
            .collect();
        let rules: Vec<BridgeRules> = made
            .iter()
            .flatten()
            .map(|bridge| bridge.shared.rules())
            .collect();
        let has_v6 = rules.iter().any(|rules| rules.v6.is_some());
        // The rules first: the host is at no time a router for everybody.
        let refused = match table.add(rules.iter().cloned()) {
            Err(error) if has_v6 => {
                table.add(rules.into_iter().map(|rules| BridgeRules { v6: None, ..rules }))?;
                Some(error)
            }
            Err(error) => return Err(error),
            Ok(()) if has_v6 => forward_v6(&table.bridges()).err(),
            Ok(()) => None,
        };
        if let Some(error) = refused {
            for bridge in &mut made {
                if bridge.as_ref().is_ok_and(|bridge| bridge.shared.v6.is_some()) {
                    *bridge = Err(error
                        .within("there is no IPv6 for the network: make it without --ipv6, or see to this"));
                }
            }
        }
        netns::ensure_sysctl("ipv4/ip_forward", "1")?;
        for bridge in &mut made {
            let localnet = bridge.as_ref().map_or(Ok(()), |bridge| {
                netns::ensure_sysctl(&format!("ipv4/conf/{}/route_localnet", bridge.name()), "1")
            });
            if let Err(error) = localnet {
                *bridge = Err(error);
            }
        }
        Ok(made)
    }

    /// The bridge without its rules.
    fn prepare(table: &Table, config: &BridgeConfig) -> Result<Self> {
        check_name("a bridge", &config.name)?;
        if config.mtu.is_some_and(|mtu| !(68..=65535).contains(&mtu)) {
            return Err(Error::invalid(format!(
                "the MTU {} is not between 68 and 65535",
                config.mtu.unwrap_or(0)
            )));
        }
        if let Some(mtu) = config.mtu.filter(|mtu| config.v6.is_some() && *mtu < 1280) {
            // RFC 8200, 5: the kernel has no IPv6 on such a link.
            return Err(Error::invalid(format!(
                "the MTU {mtu} is too small for IPv6, which needs 1280: make the network without --ipv6, or with a larger one"
            )));
        }
        let mut route = Socket::open(Family::Route)?;
        let (index, subnet, gateway) = ensure_interface(&mut route, config)?;
        let v6 = match &config.v6 {
            Some(v6) => Some((v6.subnet.trunc(), gateway_v6_of(v6)?)),
            None => None,
        };
        let shared = Shared {
            config: config.clone(),
            subnet,
            gateway,
            v6,
            host_has_ipv6: netns::read_sysctl("ipv6/conf/all/disable_ipv6").is_ok(),
            table: table.clone(),
            isolate_ports: !config.icc && !has_bridge_netfilter(),
            route: Mutex::new(route),
            state: Mutex::new(State {
                index,
                addresses: Addresses::new(config, subnet, gateway, v6.map(|(_, gateway)| gateway))?,
            }),
        };
        let reaper = Arc::new(Reaper::start()?);
        Ok(Self {
            shared: Arc::new(shared),
            reaper,
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.shared.config.name
    }

    /// The subnet in use; store it to get the same one after a reboot.
    pub fn subnet(&self) -> Ipv4Net {
        self.shared.subnet
    }

    /// The bridge's own address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.shared.gateway
    }

    /// Its subnet of IPv6 and its own address there, if it has any.
    pub fn v6(&self) -> Option<(Ipv6Net, Ipv6Addr)> {
        self.shared.v6
    }

    /// Makes an endpoint with a new namespace.
    pub fn attach(&self, request: &EndpointRequest) -> Result<Endpoint> {
        self.make(request, |shared, ifname, inside| {
            let plug =
                |netns: BorrowedFd<'_>, socket: &mut Socket| shared.plug(netns, socket, ifname, inside);
            netns::create(&request.netns, plug).map(|(netns, ())| netns)
        })
        .map(|(netns, record)| Endpoint { netns, record })
    }

    /// Makes an endpoint of an existing namespace, such as one that belongs to a user namespace.
    pub fn attach_to(&self, netns: BorrowedFd<'_>, request: &EndpointRequest) -> Result<EndpointRecord> {
        self.make(request, |shared, ifname, inside| {
            netns::within(netns, |netns, socket| shared.plug(netns, socket, ifname, inside))
        })
        .map(|((), record)| record)
    }

    /// Makes an endpoint without a namespace: a TAP device in the calling thread's, which must be the bridge's own. Of the request,
    /// the interface's name and the routes are for whoever is behind the descriptor to heed.
    pub fn attach_tap(&self, request: &EndpointRequest) -> Result<TapEndpoint> {
        /// What interfaces have unless told otherwise.
        const ETHERNET: u32 = 1500;
        let mtu = self.shared.config.mtu.unwrap_or(ETHERNET);
        self.make(request, |shared, ifname, _| {
            let tap = tap::create(ifname)?;
            let port = PortSettings {
                isolated: shared.isolate_ports,
                host_has_ipv6: shared.host_has_ipv6,
            };
            let mut batch = Batch::new();
            link::plug_tap(&mut batch, ifname, lock(&shared.state).index, mtu, port);
            link::settle(&mut batch, ifname);
            lock(&shared.route).request(batch).map_err(|r| r.on(ifname))?;
            Ok(tap)
        })
        .map(|(tap, record)| TapEndpoint { tap, record, mtu })
    }

    fn make<T>(
        &self,
        request: &EndpointRequest,
        create: impl FnOnce(&Shared, &str, &Inside<'_>) -> Result<T>,
    ) -> Result<(T, EndpointRecord)> {
        let shared = &*self.shared;
        let id = random_id()?;
        let ifname = format!("{HOST_PREFIX}{id}");
        let (address, v6) = self.take_addresses(request, &ifname)?;
        let v6 = place_v6(v6, shared.v6);
        let mac = request.mac.unwrap_or_else(|| MacAddr::for_ip(address));
        let inside = Inside {
            name: request.ifname.as_deref().unwrap_or(crate::endpoint::FIRST),
            address,
            v6,
            mac,
            default_route: !request.no_default_route && !shared.config.internal,
            default_route_v6: !request.no_default_route_v6 && !shared.config.internal,
        };
        match create(shared, &ifname, &inside) {
            Ok(value) => {
                let record = EndpointRecord {
                    id,
                    bridge: shared.config.name.clone(),
                    ifname,
                    address: IpAddr::V4(address),
                    prefix: shared.subnet.prefix_len(),
                    gateway: IpAddr::V4(shared.gateway),
                    v6,
                    mac,
                    inside: inside.name.to_owned(),
                    ports: Vec::new(),
                };
                Ok((value, record))
            }
            Err(error) => {
                self.reaper.bury(&self.shared, ifname, Vec::new());
                Err(error)
            }
        }
    }

    fn take_addresses(
        &self,
        request: &EndpointRequest,
        ifname: &str,
    ) -> Result<(Ipv4Addr, Option<Ipv6Addr>)> {
        let take = || lock(&self.shared.state).addresses.take(request, ifname);
        match take() {
            // Addresses of endpoints that are being removed come back when their interface is gone: do not fail for those.
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Exhausted) => {
                self.reaper.flush();
                take()
            }
            other => other,
        }
    }

    /// Publishes ports: all of them or none. The record gets them; the reservations are to be kept as long as the endpoint.
    pub fn publish(&self, record: &mut EndpointRecord, specs: &[PortSpec]) -> Result<Vec<Reservation>> {
        lock(&self.shared.state).addresses.adopt(record)?;
        self.shared.table.publish(record, specs)
    }

    /// Withdraws all published ports of the endpoint. The record loses them.
    pub fn unpublish(&self, record: &mut EndpointRecord) -> Result<()> {
        self.shared.table.withdraw(record)?;
        record.ports.clear();
        Ok(())
    }

    /// Gives an endpoint up: its ports are withdrawn at once, its interface and address shortly after, in the background.
    ///
    /// The kernel removes the interface by itself when the namespace dies; one whose namespace lives on is removed
    /// explicitly. The address is given to nobody else before the interface is gone.
    pub fn release(&self, record: &EndpointRecord) -> Result<()> {
        let withdrawn = self.shared.table.withdraw(record);
        let udp = match &withdrawn {
            Ok(mappings) => mappings
                .iter()
                .filter(|m| m.protocol == Protocol::Udp)
                .copied()
                .collect(),
            Err(_) => Vec::new(),
        };
        self.reaper.bury(&self.shared, record.ifname.clone(), udp);
        withdrawn.map(drop)
    }

    /// Waits until everything that was released is gone.
    pub fn flush(&self) {
        self.reaper.flush();
    }

    /// Makes the kernel match the records: call it with every live endpoint's record after a start, and whenever in doubt.
    ///
    /// Endpoints that this bridge has made or been told of and that were not released count as explained, too: those in
    /// the pool, and those whose record is not yet stored.
    pub fn reconcile(&self, records: &[EndpointRecord]) -> Result<Reconciled> {
        let shared = &*self.shared;
        let config = &shared.config;
        let mut report = Reconciled::default();
        for record in records {
            if let Err(error) = self.adopt(record) {
                report.rejected.push((record.ifname.clone(), error.to_string()));
            }
        }
        {
            let mut route = lock(&shared.route);
            let (index, ..) = ensure_interface(
                &mut route,
                &BridgeConfig {
                    subnet: Some(shared.subnet),
                    gateway: Some(shared.gateway),
                    ..config.clone()
                },
            )?;
            netns::ensure_sysctl(&format!("ipv4/conf/{}/route_localnet", config.name), "1")?;
            let ports = link::ports(&mut route, index).map_err(|r| r.on(&config.name))?;
            let explained: Vec<String> = {
                let mut state = lock(&shared.state);
                state.index = index;
                state.addresses.interfaces().cloned().collect()
            };
            let explained: BTreeSet<&str> = explained
                .iter()
                .chain(records.iter().map(|r| &r.ifname))
                .map(String::as_str)
                .collect();
            let present: BTreeSet<&str> = ports.iter().map(|p| p.name.as_str()).collect();
            for port in &ports {
                if is_ours(&port.name, port.kind.as_deref()) && !explained.contains(port.name.as_str()) {
                    remove_interface(&mut route, &port.name)?;
                    report.removed_interfaces.push(port.name.clone());
                }
            }
            for record in records.iter().filter(|r| !present.contains(r.ifname.as_str())) {
                match link::find(&mut route, &record.ifname).map_err(|r| r.on(&record.ifname))? {
                    None => report.lost.push(record.ifname.clone()),
                    Some(stray) => {
                        let mut batch = Batch::new();
                        link::set_master(&mut batch, stray.index, index);
                        route.request(batch).map_err(|r| r.on(&record.ifname))?;
                        report.reattached.push(record.ifname.clone());
                    }
                }
            }
        }
        (report.removed_ports, report.restored_ports) = shared.table.restore()?;
        Ok(report)
    }

    /// Takes an endpoint that was recorded by an earlier process into the books. Where several bridges share a table, each is
    /// told of all of its endpoints before any of them is reconciled: ports that nobody claims are withdrawn.
    ///
    /// # Errors
    /// When its address or its ports belong to another endpoint.
    pub fn adopt(&self, record: &EndpointRecord) -> Result<()> {
        lock(&self.shared.state).addresses.adopt(record)?;
        self.shared.table.adopt(record)
    }

    /// Lists what exists of a bridge, whether or not anybody manages it.
    pub fn inventory(config: &BridgeConfig) -> Result<Inventory> {
        let mut route = Socket::open(Family::Route)?;
        let mut nft = Socket::open(Family::Netfilter)?;
        let mut inventory = Inventory::default();
        if let Some(bridge) = link::find(&mut route, &config.name).map_err(|r| r.on(&config.name))? {
            let ports = link::ports(&mut route, bridge.index).map_err(|r| r.on(&config.name))?;
            inventory.interfaces = ports
                .into_iter()
                .filter(|p| is_ours(&p.name, p.kind.as_deref()))
                .map(|p| p.name)
                .collect();
            inventory.bridge = Some(bridge.name);
        }
        let mappings = elements::dump(&mut nft, &config.table)
            .map_err(|r| r.on(format_args!("table {}", config.table)))?;
        inventory.ports = mappings
            .into_iter()
            .map(|m| {
                let port = PublishedPort {
                    host_ip: m.host,
                    host_port: m.host_port,
                    target_port: m.target_port,
                    protocol: m.protocol,
                };
                (port, m.target)
            })
            .collect();
        Ok(inventory)
    }

    /// Removes the bridge, unless it is somebody else's, the interfaces of its endpoints and its rules. The table stays.
    pub fn retire(&self) -> Result<()> {
        self.reaper.flush();
        let config = &self.shared.config;
        let inventory = Self::inventory(config)?;
        let bridge = inventory.bridge.iter().filter(|_| !config.foreign);
        for name in inventory.interfaces.iter().chain(bridge) {
            remove_interface(&mut lock(&self.shared.route), name)?;
        }
        if config.foreign && config.v6.is_some() {
            give_back(&mut lock(&self.shared.route), &config.name)?;
        }
        self.shared.table.remove(&config.name)
    }

    /// Removes the bridge, its endpoints' interfaces and its table, with the administrator's rules in it.
    pub fn remove(self) -> Result<()> {
        self.reaper.flush();
        Self::remove_leftovers(&self.shared.config)
    }

    /// The same for a bridge that nobody manages. What does not exist is fine.
    pub fn remove_leftovers(config: &BridgeConfig) -> Result<()> {
        let inventory = Self::inventory(config)?;
        let mut route = Socket::open(Family::Route)?;
        for name in inventory.interfaces.iter().chain(&inventory.bridge) {
            remove_interface(&mut route, name)?;
        }
        crate::detour::remove(&mut route, &config.table)?;
        let mut nft = Socket::open(Family::Netfilter)?;
        for ip in Ip::ALL {
            match nft.transaction(nft::delete_table(ip, &config.table)) {
                Err(refusal) if refusal.errno != Errno::NOENT => return Err(refusal.on(&config.table)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// What an interface is to be in its endpoint.
struct Inside<'a> {
    name: &'a str,
    address: Ipv4Addr,
    v6: Option<AddressV6>,
    mac: MacAddr,
    default_route: bool,
    default_route_v6: bool,
}

impl Shared {
    /// What the table is to know of this bridge.
    fn rules(&self) -> BridgeRules {
        BridgeRules {
            bridge: self.config.name.clone(),
            subnet: self.subnet,
            v6: self.v6.map(|(subnet, _)| subnet),
            icc: self.config.icc,
            masquerade: self.config.masquerade && !self.config.internal,
            internal: self.config.internal,
            routed_v4: self.config.mode_v4 == GatewayMode::Routed,
            routed_v6: self.config.mode_v6 == GatewayMode::Routed,
        }
    }

    /// Runs on a thread inside the endpoint's namespace; `inside` is a socket of that namespace.
    fn plug(
        &self,
        netns: BorrowedFd<'_>,
        inside: &mut Socket,
        ifname: &str,
        wanted: &Inside<'_>,
    ) -> Result<()> {
        let peer = wanted.name;
        let spec = VethSpec {
            host_name: ifname,
            bridge_index: lock(&self.state).index,
            peer_name: peer,
            peer_mac: wanted.mac,
            peer_netns: netns.as_raw_fd(),
            mtu: self.config.mtu,
            isolated: self.isolate_ports,
            host_has_ipv6: self.host_has_ipv6,
        };
        let mut batch = Batch::new();
        link::add_veth(&mut batch, &spec);
        lock(&self.route).request(batch).map_err(|r| r.on(ifname))?;
        // Before the interface is up, or the kernel starts on a link-local address.
        if wanted.v6.is_some() {
            enable_v6(peer)?;
        } else if self.host_has_ipv6 {
            netns::write_sysctl_if_there(&format!("ipv6/conf/{peer}/disable_ipv6"), "1")?;
        }
        let index = netns::interface_index(inside, peer)?;
        let mut batch = Batch::new();
        link::set_loopback_up(&mut batch);
        link::add_address(&mut batch, index, wanted.address.into(), self.subnet.into());
        link::set_up(&mut batch, index);
        if wanted.default_route {
            link::add_default_route(&mut batch, index, self.gateway.into());
        }
        link::settle(&mut batch, peer);
        // On a link that is ready; before, the kernel would put it off.
        if let (Some(v6), Some((subnet, gateway))) = (wanted.v6, self.v6) {
            link::add_address(&mut batch, index, v6.address.into(), subnet.into());
            if wanted.default_route_v6 {
                link::add_default_route(&mut batch, index, gateway.into());
            }
        }
        inside
            .request(batch)
            .map_err(|r| r.on(format_args!("{peer} of the endpoint {ifname}")))?;
        let mut batch = Batch::new();
        link::settle(&mut batch, ifname);
        lock(&self.route).request(batch).map_err(|r| r.on(ifname))
    }

    /// The interface is gone: forget the endpoint, free its address.
    pub(crate) fn buried(&self, ifname: &str) {
        lock(&self.state).addresses.free(ifname);
    }
}

fn is_ours(name: &str, kind: Option<&str>) -> bool {
    matches!(kind, Some("veth" | "tun")) && is_endpoint(name)
}

/// Whether an interface of the host is called as those of endpoints are.
pub(crate) fn is_endpoint(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX)
        .is_some_and(|id| id.len() == ID_LEN && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

const ID_LEN: usize = 10;

pub(crate) fn random_id() -> Result<String> {
    let mut bytes = [0u8; ID_LEN / 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("draw a random interface name", e))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
