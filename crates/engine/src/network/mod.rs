//! The engine's side of the network: the default bridge with its pool, the networks that users make, the ends that containers
//! have of them, and their names.
//!
//! A network is recorded before its bridge is made and forgotten after its bridge is gone: so whatever is killed in between,
//! there is no bridge that no record explains, and the next start makes those again that are missing.

mod attach;
mod connect;
mod create;
mod list;
mod names;
mod parent;
mod record;
mod remove;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vessel_network::dns;
use vessel_network::{
    Bridge, BridgeConfig, Claim, ConfigV6, EndpointRecord, Netns, NetnsConfig, Pool, PoolConfig, Table,
};

pub(crate) use attach::{Attachment, End, Joined};
pub(crate) use list::network_id;
pub(crate) use names::has_names;
pub(crate) use record::NetworkRecord;
use wire::Wire;

use crate::{EngineConfig, Error, Result, Store, state};

/// The name of the bridge of an engine without one.
const NO_BRIDGE: &str = "none";

/// All networks.
pub(crate) struct Networks {
    /// None: containers on the default network have loopback only.
    pool: Option<Pool>,
    created: i64,
    /// The rules and published ports of all bridges.
    table: Table,
    records: state::Table<NetworkRecord>,
    /// Those that users have made, by name.
    user: Mutex<BTreeMap<String, Arc<UserNetwork>>>,
    /// How often `user` has been changed.
    changes: AtomicU64,
    /// Held while a network is made, so that no two get the same subnet or name.
    making: Mutex<()>,
    names: Arc<dns::Names>,
    /// Started for the first container that needs it.
    dns: OnceLock<dns::Server>,
    starting_dns: Mutex<()>,
    /// Dropped last: until then the bridge is nobody else's.
    _claim: Option<Claim>,
}

/// A network that a user has made.
pub(crate) struct UserNetwork {
    pub record: NetworkRecord,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    /// None: it could not be made when the engine was started; that is tried again when somebody needs it.
    wire: Option<Wire>,
    /// The interfaces of endpoints that were given out.
    ends: BTreeSet<String>,
    /// Those that an earlier daemon gave out, until there is a wire that knows of them.
    unknown: Vec<EndpointRecord>,
    /// How many ends are being made.
    coming: usize,
    removed: bool,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one assignment: a panic leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Networks")
            .field("bridge", &self.bridge().map(Bridge::name))
            .finish_non_exhaustive()
    }
}

impl Networks {
    /// Makes all bridges, or takes those there are, and makes them match `ends`. Blocks.
    pub fn open(config: &EngineConfig, store: &Store, id: &str, ends: &[EndpointRecord]) -> Result<Self> {
        Self::open_on(
            default_bridge(config, id, store)?,
            config.ports_behind_input,
            store,
            id,
            ends,
        )
    }

    fn open_on(
        default: Option<BridgeConfig>,
        ports_behind_input: bool,
        store: &Store,
        id: &str,
        ends: &[EndpointRecord],
    ) -> Result<Self> {
        let records = store.table::<NetworkRecord>("networks");
        let user = records.all()?.into_iter().map(|(_, record)| record);
        let (direct, user): (Vec<NetworkRecord>, Vec<NetworkRecord>) =
            user.partition(|record| record.parent.is_some());
        let claim = match &default {
            Some(default) => Some(Claim::take(&default.name).map_err(from_network)?),
            None => None,
        };
        let table = match &default {
            Some(default) => default.table.clone(),
            // Several engines without a bridge of their own may share a host.
            None => format!("vessel-{}", id.get(..8).unwrap_or("none")),
        };
        let table = match ports_behind_input {
            true => Table::open_behind_input(&table),
            false => Table::open(&table),
        };
        let table = table.map_err(from_network)?;
        let mut configs: Vec<BridgeConfig> = default.iter().cloned().collect();
        configs.extend(user.iter().map(|record| record.bridge(&table)));
        let mut bridges = Vec::new();
        if !configs.is_empty() {
            bridges = Bridge::ensure_all(&table, &configs).map_err(from_network)?;
        }
        let mut bridges = bridges.into_iter();
        let default = match default {
            Some(_) => bridges.next().transpose().map_err(from_network)?,
            None => None,
        };
        let bridged = user.into_iter().zip(bridges).map(|(record, bridge)| {
            let wire = bridge.map(Wire::Bridge).map_err(from_network);
            (record, wire)
        });
        let direct = direct.into_iter().map(|record| {
            let wire = Wire::make(&table, &record);
            (record, wire)
        });
        let user: Vec<Arc<UserNetwork>> = bridged
            .chain(direct)
            .map(|(record, wire)| Arc::new(UserNetwork::found(record, wire, ends)))
            .collect();
        let all = default.iter().cloned().chain(
            user.iter()
                .filter_map(|network| held(&network.link).wire.as_ref()?.bridge().cloned()),
        );
        // What of a bridge could not be made takes its ports from nobody.
        for end in user
            .iter()
            .flat_map(|network| held(&network.link).unknown.clone())
        {
            if let Err(error) = table.adopt(&end) {
                tracing::warn!(endpoint = end.id, "{error}");
            }
        }
        settle(&all.collect::<Vec<_>>(), ends)?;
        let pool = default
            .map(|bridge| {
                let config = PoolConfig {
                    netns: namespace_config(),
                    ..PoolConfig::default()
                };
                Pool::start(bridge, config).map_err(from_network)
            })
            .transpose()?;
        Ok(Self {
            pool,
            created: crate::time::now(),
            table,
            records,
            user: Mutex::new(
                user.into_iter()
                    .map(|network| (network.record.name.clone(), network))
                    .collect(),
            ),
            changes: AtomicU64::new(0),
            making: Mutex::default(),
            names: Arc::default(),
            dns: OnceLock::new(),
            starting_dns: Mutex::default(),
            _claim: claim,
        })
    }

    /// The default bridge, when there is one.
    pub fn bridge(&self) -> Option<&Bridge> {
        self.pool.as_ref().map(Pool::bridge)
    }

    /// How often networks have come and gone: what was made of them is good as long as this is the same.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The networks that users have made, by name.
    fn user_networks(&self) -> Vec<Arc<UserNetwork>> {
        held(&self.user).values().cloned().collect()
    }

    /// A network that a user has made, by name, ID, or the beginning of one that is no other's.
    pub fn find_user(&self, name: &str) -> Option<Arc<UserNetwork>> {
        let user = held(&self.user);
        if let Some(network) = user.get(name) {
            return Some(Arc::clone(network));
        }
        let mut found = user
            .values()
            .filter(|network| !name.is_empty() && network.record.id.starts_with(name));
        match (found.next(), found.next()) {
            (Some(network), None) => Some(Arc::clone(network)),
            (Some(_), Some(_)) => user.values().find(|network| network.record.id == name).cloned(),
            (None, _) => None,
        }
    }

    /// The network that an interface's bridge belongs to.
    fn by_bridge(&self, bridge: &str) -> Option<Arc<UserNetwork>> {
        held(&self.user)
            .values()
            .find(|network| network.record.bridge.name == bridge)
            .cloned()
    }

    /// A namespace with loopback only.
    pub fn isolated(&self) -> Result<Attachment> {
        Ok(Attachment {
            netns: self.isolated_namespace()?.into(),
            endpoint: None,
            reservations: Vec::new(),
        })
    }

    fn isolated_namespace(&self) -> Result<Netns> {
        match &self.pool {
            Some(pool) => pool.take_isolated(&namespace_config()),
            None => Netns::new_isolated(&namespace_config()),
        }
        .map_err(from_network)
    }

    /// The bridges there are, with the name of the network of those that users have made.
    pub fn bridges(&self) -> Vec<(String, Option<String>)> {
        let default = self.bridge().map(|bridge| (bridge.name().to_owned(), None));
        let user = self.user_networks();
        // What a network is on in place of a bridge counts when it was made for it.
        let user = user.iter().filter_map(|network| {
            let record = &network.record;
            let interface = match &record.parent {
                Some(parent) => parent.ours.then(|| parent.name.clone())?,
                None => record.bridge.name.clone(),
            };
            Some((interface, Some(record.name.clone())))
        });
        default.into_iter().chain(user).collect()
    }

    /// The interfaces of what was made in advance.
    pub fn prepared(&self) -> Vec<String> {
        self.pool.as_ref().map(Pool::prepared).unwrap_or_default()
    }

    /// The name of the table with all rules.
    pub fn table_name(&self) -> &str {
        self.table.name()
    }

    /// The ports that the table publishes, whoever has them. Blocks.
    pub fn published(&self) -> Result<Vec<vessel_network::PublishedPort>> {
        let config = BridgeConfig {
            table: self.table.name().to_owned(),
            ..BridgeConfig::default()
        };
        let inventory = Bridge::inventory(&config).map_err(from_network)?;
        Ok(inventory.ports.into_iter().map(|(port, _)| port).collect())
    }

    /// Gives back what was made in advance.
    pub fn drain(&self) {
        if let Some(pool) = &self.pool {
            pool.drain();
        }
    }
}

impl UserNetwork {
    /// One that an earlier daemon recorded, with those of all `ends` that are its.
    fn found(record: NetworkRecord, wire: Result<Wire>, ends: &[EndpointRecord]) -> Self {
        let wire = wire.map_err(|error| {
            tracing::warn!(
                network = record.name,
                "{error}; it is tried again when a container needs the network"
            );
        });
        let ends = || ends.iter().filter(|end| end.bridge == record.bridge.name);
        if let Ok(Wire::Direct(direct)) = &wire {
            for end in ends() {
                if let Err(error) = direct.adopt(end) {
                    tracing::warn!(endpoint = end.id, "{error}");
                }
            }
        }
        let link = Link {
            ends: ends().map(|end| end.ifname.clone()).collect(),
            unknown: match &wire {
                Ok(_) => Vec::new(),
                Err(()) => ends().cloned().collect(),
            },
            wire: wire.ok(),
            ..Link::default()
        };
        Self {
            link: Mutex::new(link),
            record,
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        held(&self.link)
    }

    /// Its bridge or its like, which is made now if it could not be before.
    fn wire(&self, table: &Table) -> Result<Wire> {
        let mut link = self.link();
        if link.removed {
            return Err(not_found(&self.record.name));
        }
        if let Some(wire) = &link.wire {
            return Ok(wire.clone());
        }
        let wire = Wire::make(table, &self.record)?;
        match &wire {
            Wire::Bridge(bridge) => settle(std::slice::from_ref(bridge), &link.unknown)?,
            Wire::Direct(direct) => {
                for end in &link.unknown {
                    direct.adopt(end).map_err(from_network)?;
                }
            }
        }
        link.unknown.clear();
        link.wire = Some(wire.clone());
        Ok(wire)
    }
}

/// Makes the kernel match the records of all endpoints: every bridge knows its own before the first rule is touched.
fn settle(bridges: &[Bridge], ends: &[EndpointRecord]) -> Result<()> {
    let of = |bridge: &Bridge| -> Vec<EndpointRecord> {
        ends.iter()
            .filter(|end| end.bridge == bridge.name())
            .cloned()
            .collect()
    };
    for bridge in bridges {
        for end in of(bridge) {
            // Said below.
            let _ = bridge.adopt(&end);
        }
    }
    for bridge in bridges {
        let found = bridge.reconcile(&of(bridge)).map_err(from_network)?;
        if found != vessel_network::Reconciled::default() {
            tracing::info!(
                bridge = bridge.name(),
                ?found,
                "the network was made to match the state"
            );
        }
    }
    Ok(())
}

fn default_bridge(config: &EngineConfig, id: &str, store: &Store) -> Result<Option<BridgeConfig>> {
    if config.bridge == NO_BRIDGE {
        return Ok(None);
    }
    let subnet = config
        .bridge_address
        .map(|(address, prefix)| ipnet::Ipv4Net::new(address, prefix))
        .transpose()
        .map_err(|error| Error::invalid(format!("the bridge's address is not valid: {error}")))?;
    let v6 = match config.bridge_v6 {
        None => None,
        Some(asked) => {
            let there = vessel_network::bridge_subnet_v6(&config.bridge).map_err(from_network)?;
            let subnet = match asked.subnet.or(there) {
                Some(subnet) => subnet.trunc(),
                None => {
                    let others = store.table::<NetworkRecord>("networks").all()?.into_iter();
                    let reserved: Vec<_> = others
                        .filter_map(|(_, record)| Some(record.bridge.v6?.subnet))
                        .collect();
                    create::own_subnet_v6(id, &reserved)?
                }
            };
            Some(ConfigV6 {
                subnet,
                gateway: None,
                range: None,
                taken: Vec::new(),
            })
        }
    };
    Ok(Some(BridgeConfig {
        v6,
        name: config.bridge.clone(),
        table: config.bridge.clone(),
        subnet: subnet.map(|net| net.trunc()),
        gateway: config.bridge_address.map(|(address, _)| address),
        ..BridgeConfig::default()
    }))
}

/// What Docker sets in a container's network namespace: programs may bind low ports and send pings without privilege.
fn namespace_config() -> NetnsConfig {
    NetnsConfig {
        sysctls: vec![
            ("ipv4/ip_unprivileged_port_start".into(), "0".into()),
            ("ipv4/ping_group_range".into(), "0 2147483647".into()),
        ],
    }
}

fn not_found(name: &str) -> Error {
    Error::not_found(format!("network {name} not found"))
}

pub(crate) fn from_network(error: vessel_network::Error) -> Error {
    use vessel_network::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::Invalid => crate::ErrorKind::Invalid,
        _ => crate::ErrorKind::System,
    };
    Error::new(kind, error.to_string())
}
