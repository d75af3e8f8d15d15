//! Networks without a bridge: every endpoint is a macvlan or ipvlan interface on one of the host's own.
//!
//! Containers are neighbours of whatever is on the parent's wire. The host's rules do not see their packets: there is nothing to
//! publish, nothing is translated, and the host itself does not reach them (the kernel keeps such interfaces from their parent).
//! Nothing of an endpoint is on the host's side: it lives in the namespace of its container and dies with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::address::{MacAddr, check_name};
use crate::addresses::{Addresses, gateway_of, gateway_v6_of, place_v6};
use crate::bridge::{BridgeConfig, lock, random_id};
use crate::endpoint::{EndpointRecord, EndpointRequest, FIRST};
use crate::error::{Error, ErrorKind, Result};
use crate::interface::remove_interface;
use crate::link::{self, ChildSpec};
use crate::netlink::message::Batch;
use crate::netlink::{Family, Refusal, Socket};
use crate::netns;

/// How long the kernel is given to take down what had an address before.
const TAKEN_DOWN: Duration = Duration::from_secs(5);

/// How endpoints share their parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DirectMode {
    /// macvlan: endpoints reach each other within the parent.
    MacvlanBridge,
    /// macvlan: they do not reach each other.
    MacvlanPrivate,
    /// macvlan: they reach each other by a switch outside that sends back.
    MacvlanVepa,
    /// macvlan: one endpoint has the parent alone.
    MacvlanPassthru,
    /// ipvlan: on the parent's link, with its hardware address.
    IpvlanL2,
    /// ipvlan: routed by the host's stack, without ARP and broadcasts.
    IpvlanL3,
    /// The same, with the host's connection tracking.
    IpvlanL3s,
}

impl DirectMode {
    /// From the names that Docker has for the driver's modes; an empty one is the default.
    ///
    /// # Errors
    /// A mode, or a driver, that is none.
    pub fn new(driver: &str, mode: &str) -> Result<Self> {
        Ok(match (driver, mode) {
            ("macvlan", "" | "bridge") => Self::MacvlanBridge,
            ("macvlan", "private") => Self::MacvlanPrivate,
            ("macvlan", "vepa") => Self::MacvlanVepa,
            ("macvlan", "passthru") => Self::MacvlanPassthru,
            ("ipvlan", "" | "l2") => Self::IpvlanL2,
            ("ipvlan", "l3") => Self::IpvlanL3,
            ("ipvlan", "l3s") => Self::IpvlanL3s,
            _ => {
                let known = match driver {
                    "macvlan" => "bridge, private, vepa or passthru",
                    _ => "l2, l3 or l3s",
                };
                return Err(Error::invalid(format!(
                    "`{}` is not a mode of the driver {driver}: use {known}",
                    mode.escape_debug()
                )));
            }
        })
    }

    /// What the kernel calls the kind of interface.
    pub fn kind(self) -> &'static str {
        match self {
            Self::MacvlanBridge | Self::MacvlanPrivate | Self::MacvlanVepa | Self::MacvlanPassthru => {
                "macvlan"
            }
            Self::IpvlanL2 | Self::IpvlanL3 | Self::IpvlanL3s => "ipvlan",
        }
    }

    /// `MACVLAN_MODE_*` and `IPVLAN_MODE_*` (`linux/if_link.h`).
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::MacvlanPrivate => 1,
            Self::MacvlanVepa => 2,
            Self::MacvlanBridge => 4,
            Self::MacvlanPassthru => 8,
            Self::IpvlanL2 => 0,
            Self::IpvlanL3 => 1,
            Self::IpvlanL3s => 2,
        }
    }

    /// Whether there is a link, on which a gateway could be.
    fn has_link(self) -> bool {
        !matches!(self, Self::IpvlanL3 | Self::IpvlanL3s)
    }
}

/// The interface that endpoints are on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its name.
    pub name: String,
    /// It was made for the network, and goes with it: a VLAN of another interface, or one that leads nowhere.
    pub ours: bool,
    /// How it is shared.
    pub mode: DirectMode,
}

/// A network on a parent. Clones are the same network.
#[derive(Clone)]
pub struct Direct(Arc<Shared>);

struct Shared {
    config: BridgeConfig,
    parent: Parent,
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    v6: Option<(Ipv6Net, Ipv6Addr)>,
    addresses: Mutex<Addresses>,
}

impl Direct {
    /// The network of this configuration, of which the name stands for the network, and neither an interface nor rules. The
    /// parent is made if it is to be.
    ///
    /// # Errors
    /// A parent that is not there, or cannot be made; a configuration without a subnet.
    pub fn ensure(config: &BridgeConfig, parent: &Parent) -> Result<Self> {
        let subnet = config
            .subnet
            .ok_or_else(|| Error::invalid(format!("the network {} has no subnet", config.name)))?;
        let gateway = gateway_of(config, subnet)?;
        let v6 = match &config.v6 {
            Some(v6) => Some((v6.subnet.trunc(), gateway_v6_of(v6)?)),
            None => None,
        };
        parent_index(&mut Socket::open(Family::Route)?, parent)?;
        Ok(Self(Arc::new(Shared {
            addresses: Mutex::new(Addresses::new(config, subnet, gateway, v6.map(|(_, own)| own))?),
            config: config.clone(),
            parent: parent.clone(),
            subnet,
            gateway,
            v6,
        })))
    }

    /// Makes an endpoint of a namespace. `before` is told of it before there is anything of it: nobody finds the interface of
    /// one that was not recorded.
    ///
    /// # Errors
    /// An address that is taken; a kernel without interfaces of the kind.
    pub fn attach_to(
        &self,
        netns: BorrowedFd<'_>,
        request: &EndpointRequest,
        before: &mut dyn FnMut(&EndpointRecord),
    ) -> Result<EndpointRecord> {
        let shared = &*self.0;
        let id = random_id()?;
        let ifname = format!("mv{id}");
        let (address, v6) = lock(&shared.addresses).take(request, &ifname)?;
        let mut record = EndpointRecord {
            id,
            bridge: shared.config.name.clone(),
            ifname,
            address: IpAddr::V4(address),
            prefix: shared.subnet.prefix_len(),
            gateway: IpAddr::V4(shared.gateway),
            v6: place_v6(v6, shared.v6),
            mac: request.mac.unwrap_or_else(|| MacAddr::for_ip(address)),
            inside: request.ifname.as_deref().unwrap_or(FIRST).to_owned(),
            ports: Vec::new(),
        };
        before(&record);
        let made = Socket::open(Family::Route).and_then(|mut outside| {
            netns::within(netns, |netns, inside| {
                shared.plug(&mut outside, netns, inside, request, &record)
            })
        });
        match made {
            Ok(mac) => {
                record.mac = mac;
                Ok(record)
            }
            Err(error) => {
                self.release(&record);
                Err(error)
            }
        }
    }

    /// Takes an endpoint that was recorded by an earlier process into the books.
    ///
    /// # Errors
    /// When its address belongs to another endpoint.
    pub fn adopt(&self, record: &EndpointRecord) -> Result<()> {
        lock(&self.0.addresses).adopt(record)
    }

    /// Takes the interface of an endpoint from a namespace that lives on.
    pub fn unplug(&self, netns: BorrowedFd<'_>, record: &EndpointRecord) -> Result<()> {
        netns::within(netns, |_, inside| remove_interface(inside, &record.inside))
    }

    /// Gives the addresses of an endpoint back, whose namespace is gone or which was unplugged.
    pub fn release(&self, record: &EndpointRecord) {
        lock(&self.0.addresses).free(&record.ifname);
    }
}

/// Removes a parent that was made for a network; another one stays.
pub fn remove_parent(parent: &Parent) -> Result<()> {
    if parent.ours {
        remove_interface(&mut Socket::open(Family::Route)?, &parent.name)?;
    }
    Ok(())
}

/// Whether there is an interface of this name on the host.
pub fn interface_exists(name: &str) -> Result<bool> {
    check_name("an interface", name)?;
    let found = link::find(&mut Socket::open(Family::Route)?, name).map_err(|r| r.on(name))?;
    Ok(found.is_some())
}

impl Shared {
    /// Plugs an endpoint in. One that had the same address may live on for a moment: the kernel takes the namespaces of what has
    /// ended down in the background, and until then refuses to bring up (macvlan) or to address (ipvlan) another.
    fn plug(
        &self,
        outside: &mut Socket,
        netns: BorrowedFd<'_>,
        inside: &mut Socket,
        request: &EndpointRequest,
        record: &EndpointRecord,
    ) -> Result<MacAddr> {
        let begin = Instant::now();
        loop {
            let plugged = self.plug_now(outside, netns, inside, request, record);
            let taken = |error: &Error| error.raw_os_error() == Some(libc::EADDRINUSE);
            if !plugged.as_ref().is_err_and(taken) || begin.elapsed() > TAKEN_DOWN {
                return plugged;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs on a thread inside the endpoint's namespace; `inside` is a socket of it. What hardware address it has.
    fn plug_now(
        &self,
        outside: &mut Socket,
        netns: BorrowedFd<'_>,
        inside: &mut Socket,
        request: &EndpointRequest,
        record: &EndpointRecord,
    ) -> Result<MacAddr> {
        let name = record.inside.as_str();
        let mode = self.parent.mode;
        let mut batch = Batch::new();
        link::add_child(
            &mut batch,
            &ChildSpec {
                name,
                parent_index: parent_index(outside, &self.parent)?,
                netns: netns.as_raw_fd(),
                kind: mode.kind(),
                mode: mode.number(),
                mac: (mode.kind() == "macvlan").then_some(record.mac),
                mtu: self.config.mtu,
            },
        );
        outside
            .request(batch)
            .map_err(|refusal| unsupported(mode.kind(), &self.parent.name, refusal))?;
        let set_up = self.set_up(inside, request, record);
        if set_up.is_err() {
            // The namespace may live on.
            let _ = remove_interface(inside, name);
        }
        set_up
    }

    fn set_up(
        &self,
        inside: &mut Socket,
        request: &EndpointRequest,
        record: &EndpointRecord,
    ) -> Result<MacAddr> {
        let name = record.inside.as_str();
        let off = if record.v6.is_some() { "0" } else { "1" };
        // Routers of the wire, and who claims to be one, have no say in a container's routes.
        netns::write_sysctl_if_there(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        netns::write_sysctl_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), off)?;
        let link = link::find(inside, name).map_err(|r| r.on(name))?;
        let link =
            link.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the interface {name} vanished")))?;
        let index = link.index;
        let internal = self.config.internal;
        let mut batch = Batch::new();
        link::set_loopback_up(&mut batch);
        link::add_address(&mut batch, index, record.address, self.subnet.into());
        link::set_up(&mut batch, index);
        let mut routes = Vec::new();
        if !request.no_default_route && !internal {
            routes.push(record.gateway);
        }
        if let (Some(v6), Some((subnet, _))) = (record.v6, self.v6) {
            link::add_address(&mut batch, index, v6.address.into(), subnet.into());
            if !request.no_default_route_v6 && !internal {
                routes.push(v6.gateway.into());
            }
        }
        for gateway in routes {
            if self.parent.mode.has_link() {
                link::add_default_route(&mut batch, index, gateway);
            } else {
                link::add_link_route(&mut batch, index, gateway);
            }
        }
        link::settle(&mut batch, name);
        inside
            .request(batch)
            .map_err(|r| r.on(format_args!("{name} of the network {}", self.config.name)))?;
        Ok(link.mac.unwrap_or(record.mac))
    }
}

/// The index of the parent, which is made if it is to be and is not there.
fn parent_index(route: &mut Socket, parent: &Parent) -> Result<u32> {
    let name = parent.name.as_str();
    check_name("an interface", name)?;
    if let Some(link) = link::find(route, name).map_err(|r| r.on(name))? {
        return Ok(link.index);
    }
    if !parent.ours {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no interface {name} on this host: name another parent (-o parent=…)"),
        ));
    }
    let mut batch = Batch::new();
    match vlan(name) {
        Some((below, id)) => {
            let below = link::find(route, below)
                .map_err(|r| r.on(below))?
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::NotFound,
                        format!(
                            "there is no interface {below} on this host, of which {name} would be a VLAN"
                        ),
                    )
                })?;
            link::add_vlan(&mut batch, name, below.index, id);
            route
                .request(batch)
                .map_err(|refusal| unsupported("vlan", name, refusal))?;
        }
        None => {
            link::add_dummy(&mut batch, name);
            route
                .request(batch)
                .map_err(|refusal| unsupported("dummy", name, refusal))?;
        }
    }
    let link = link::find(route, name).map_err(|r| r.on(name))?;
    let link =
        link.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the interface {name} vanished")))?;
    let mut batch = Batch::new();
    link::set_up(&mut batch, link.index);
    route.request(batch).map_err(|r| r.on(name))?;
    Ok(link.index)
}

/// `eth0.50` is the VLAN 50 of `eth0`.
fn vlan(name: &str) -> Option<(&str, u16)> {
    let (below, id) = name.rsplit_once('.')?;
    let id = u16::from_str(id).ok().filter(|id| (1..=4094).contains(id))?;
    (!below.is_empty()).then_some((below, id))
}

/// A kernel without a kind of interface says only that it does not support something.
fn unsupported(kind: &str, on: &str, refusal: Refusal) -> Error {
    match refusal.errno {
        Errno::OPNOTSUPP => Error::new(
            ErrorKind::Unsupported,
            format!(
                "this kernel has no interfaces of the kind {kind}, of which one on {on} is wanted; load the module {kind}, or use another driver"
            ),
        ),
        Errno::BUSY => Error::conflict(format!(
            "the interface {on} is used by a bridge, by the other one of the drivers macvlan and ipvlan, or alone by another endpoint; name another parent"
        )),
        _ => refusal.on(on),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_dockers() {
        assert_eq!(DirectMode::new("macvlan", "").unwrap(), DirectMode::MacvlanBridge);
        assert_eq!(DirectMode::new("ipvlan", "l3").unwrap().kind(), "ipvlan");
        for (driver, mode) in [("macvlan", "l2"), ("ipvlan", "bridge"), ("macvlan", "x")] {
            assert!(DirectMode::new(driver, mode).is_err(), "{driver} {mode}");
        }
    }

    #[test]
    fn a_vlan_is_known_by_its_name() {
        assert_eq!(vlan("eth0.50"), Some(("eth0", 50)));
        assert_eq!(vlan("a.b.4094"), Some(("a.b", 4094)));
        for other in ["eth0", "eth0.", "eth0.0", "eth0.4095", ".5", "eth0.x"] {
            assert_eq!(vlan(other), None, "{other}");
        }
    }
}
