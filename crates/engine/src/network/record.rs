//! What is kept of a network that a user has made.

use serde::{Deserialize, Serialize};
use vessel_api::{IpamConfig, Map};
use vessel_network::{BridgeConfig, Parent, Table};

/// A network, as it was asked for, with what was chosen for it. It never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name, which no other network has.
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// Whether there is no way out.
    pub internal: bool,
    /// Accepted and shown; it has a meaning in a swarm only.
    pub attachable: bool,
    /// Options, as given.
    pub options: Map<String>,
    /// Labels.
    pub labels: Map<String>,
    /// The driver of address management, as given.
    pub ipam_driver: String,
    /// Its options, as given.
    pub ipam_options: Map<String>,
    /// The subnet, as given or chosen.
    pub ipam: IpamConfig,
    /// The same of IPv6, if the network has it.
    #[serde(default)]
    pub ipam_v6: Option<IpamConfig>,
    /// The bridge; its subnet and gateway are settled. Of a network on a parent: its addresses, and a name in place of the
    /// bridge's.
    pub bridge: BridgeConfig,
    /// What its containers are on in place of a bridge.
    #[serde(default)]
    pub parent: Option<Parent>,
    /// The bridge was there before the network, and stays.
    pub foreign: bool,
}

impl NetworkRecord {
    /// The driver that was asked for.
    pub fn driver(&self) -> &'static str {
        self.parent.as_ref().map_or("bridge", |parent| parent.mode.kind())
    }

    /// Its bridge, with rules in this table.
    pub fn bridge(&self, table: &Table) -> BridgeConfig {
        BridgeConfig {
            table: table.name().to_owned(),
            // Records of earlier versions say it of the network only.
            foreign: self.foreign,
            ..self.bridge.clone()
        }
    }
}
