//! Bridges, addresses, published ports: the network data path.
//!
//! An *endpoint* is a network namespace with one interface on a bridge, or a TAP device with its descriptor; who lives in it is
//! not known here. Everything is
//! done in process over netlink; no helper program is executed and no file is written. What must survive a restart of the
//! daemon is an [`EndpointRecord`], which the caller stores and hands back to [`Bridge::reconcile`].
//!
//! All calls block for at most the time of a few system calls and are safe from any thread. They act on the network
//! namespace of the calling thread at [`Bridge::ensure`]; that one is "the host".
//!
//! Limits: every bridge has a subnet of IPv4, and one of IPv6 if it is asked for; a bridge has at most 1023 endpoints, as many as
//! the kernel's.

mod address;
mod addresses;
mod bridge;
mod claim;
mod conntrack;
mod detour;
mod direct;
pub mod dns;
mod endpoint;
mod error;
pub mod files;
mod holder;
mod interface;
mod ipam;
mod link;
mod netlink;
mod netns;
mod nft;
mod pool;
mod ports;
mod publish;
mod reaper;
mod stats;
mod subnet;
mod table;
mod tap;

pub use address::MacAddr;
pub use addresses::{gateway_of, gateway_v6_of};
pub use bridge::{Bridge, BridgeConfig, ConfigV6, GatewayMode, Inventory, Reconciled};
pub use claim::Claim;
pub use direct::{Direct, DirectMode, Parent, interface_exists, remove_parent};
pub use endpoint::{AddressV6, Endpoint, EndpointRecord, EndpointRequest, TapEndpoint};
pub use error::{Error, ErrorKind, Result};
pub use interface::{bridge_exists, bridge_subnet_v6, remove_bridge};
pub use netns::{Netns, NetnsConfig};
pub use nft::listing::{Rule, rules};
pub use pool::{Pool, PoolConfig};
pub use ports::{PortSpec, Protocol, PublishedPort, Reservation};
pub use publish::parse_publish;
pub use stats::{InterfaceStats, StatsReader};
pub use subnet::{choose_subnet, choose_subnet_v6, default_pools};
pub use table::Table;
