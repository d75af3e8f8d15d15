//! Endpoints: a network namespace with one foot on a bridge, and the record that outlives the daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::address::MacAddr;
use crate::netns::{Netns, NetnsConfig};
use crate::ports::PublishedPort;

/// What the first interface of an endpoint is called.
pub(crate) const FIRST: &str = "eth0";

/// What an endpoint is to have; the default is the next free address and everything derived from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointRequest {
    /// This address, of the bridge's subnet.
    pub address: Option<Ipv4Addr>,
    /// This address of IPv6, of the bridge's subnet.
    pub address_v6: Option<Ipv6Addr>,
    /// This hardware address instead of the one derived from the address.
    pub mac: Option<MacAddr>,
    /// What the interface is called inside; `eth0` unless said otherwise.
    pub ifname: Option<String>,
    /// Whether the endpoint's packets of IPv4 to the outside go another way.
    pub no_default_route: bool,
    /// The same for IPv6.
    pub no_default_route_v6: bool,
    /// How the new namespace is set up.
    pub netns: NetnsConfig,
}

/// An endpoint that exists: its namespace, and what to store about it.
#[derive(Debug)]
pub struct Endpoint {
    /// The namespace. When the last descriptor and process are gone, the kernel removes the interfaces.
    pub netns: Netns,
    /// What the engine stores, and gives back to [`Bridge::reconcile`](crate::Bridge::reconcile) and
    /// [`Bridge::release`](crate::Bridge::release).
    pub record: EndpointRecord,
}

/// An endpoint without a namespace: what it receives and sends are frames on a descriptor.
#[derive(Debug)]
pub struct TapEndpoint {
    /// The TAP device, with a `virtio_net_hdr` before each frame, not blocking. When the last copy is closed, the kernel removes the
    /// interface.
    pub tap: OwnedFd,
    /// As that of any other endpoint. Whoever is behind the descriptor is to have these addresses, and `mac`.
    pub record: EndpointRecord,
    /// The longest packet that the bridge passes on.
    pub mtu: u32,
}

/// Everything that must be known about an endpoint after a restart of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// Names the endpoint: the unique part of `ifname`.
    pub id: String,
    /// The bridge it is on.
    pub bridge: String,
    /// The interface on the host's side.
    pub ifname: String,
    /// The endpoint's address.
    pub address: IpAddr,
    /// The length of the subnet's prefix.
    pub prefix: u8,
    /// Where its default route goes.
    pub gateway: IpAddr,
    /// What it has of IPv6, if the bridge has a subnet of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<AddressV6>,
    /// Its hardware address.
    pub mac: MacAddr,
    /// The interface inside.
    #[serde(default = "first")]
    pub inside: String,
    /// Its published ports.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
}

/// An endpoint's place in the subnet of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressV6 {
    /// The endpoint's address.
    pub address: Ipv6Addr,
    /// The length of the subnet's prefix.
    pub prefix: u8,
    /// Where its default route goes.
    pub gateway: Ipv6Addr,
}

impl EndpointRecord {
    /// Its addresses, that of IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address).chain(self.v6.map(|v6| IpAddr::V6(v6.address)))
    }
}

/// What records of earlier versions do not say: there was one interface only.
fn first() -> String {
    FIRST.to_owned()
}
