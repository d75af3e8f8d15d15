//! The engine's side of the network: the bridge with its pool, and the networks as the API shows them.

use std::os::fd::OwnedFd;

use derived::network_id;
use vessel_api::{EndpointResource, EndpointSettings, Ipam, IpamConfig, Network};
use vessel_network::{
    Bridge, BridgeConfig, Claim, EndpointRecord, EndpointRequest, Netns, NetnsConfig, Pool, PoolConfig,
    PortSpec,
};

use crate::container::record::Record;
use crate::oci_spec::modes::NetworkMode;
use crate::{Engine, EngineConfig, Error, Filters, Result};

/// The name of the bridge of an engine without one.
const NO_BRIDGE: &str = "none";

/// The default bridge and what is made in advance.
pub(crate) struct Networks {
    /// None: containers on the default network have loopback only.
    pool: Option<Pool>,
    created: i64,
    /// Dropped last: until then the bridge is nobody else's.
    _claim: Option<Claim>,
}

impl std::fmt::Debug for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Networks")
            .field("bridge", &self.bridge().map(Bridge::name))
            .finish_non_exhaustive()
    }
}

/// A network namespace for a container, and what goes with it.
pub(crate) struct Attachment {
    pub netns: OwnedFd,
    pub endpoint: Option<EndpointRecord>,
    /// Kept open by the shim.
    pub reservations: Vec<OwnedFd>,
}

impl Networks {
    /// Makes the bridge, or takes the one there is, and makes it match `records`. Blocks.
    pub fn open(config: &EngineConfig, records: &[EndpointRecord]) -> Result<Self> {
        let created = crate::time::now();
        if config.bridge == NO_BRIDGE {
            return Ok(Self {
                pool: None,
                created,
                _claim: None,
            });
        }
        let claim = Claim::take(&config.bridge).map_err(from_network)?;
        let subnet = config
            .bridge_address
            .map(|(address, prefix)| ipnet::Ipv4Net::new(address, prefix))
            .transpose()
            .map_err(|error| Error::invalid(format!("the bridge's address is not valid: {error}")))?;
        let bridge = Bridge::ensure(&BridgeConfig {
            name: config.bridge.clone(),
            table: config.bridge.clone(),
            subnet: subnet.map(|net| net.trunc()),
            gateway: config.bridge_address.map(|(address, _)| address),
            ..BridgeConfig::default()
        })
        .map_err(from_network)?;
        let found = bridge.reconcile(records).map_err(from_network)?;
        if found != vessel_network::Reconciled::default() {
            tracing::info!(?found, "the network was made to match the state");
        }
        let netns = namespace_config();
        let pool = Pool::start(
            bridge,
            PoolConfig {
                netns,
                ..PoolConfig::default()
            },
        )
        .map_err(from_network)?;
        Ok(Self {
            pool: Some(pool),
            created,
            _claim: Some(claim),
        })
    }

    /// The default bridge, when there is one.
    pub fn bridge(&self) -> Option<&Bridge> {
        self.pool.as_ref().map(Pool::bridge)
    }

    /// An end of the bridge with these ports published; without a bridge nothing but loopback, as dockerd has it.
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
        let mut reservations = Vec::new();
        if !ports.is_empty() {
            match pool.bridge().publish(&mut endpoint.record, ports) {
                Ok(made) => {
                    reservations.extend(made.into_iter().filter_map(|reservation| reservation.socket))
                }
                Err(error) => {
                    self.release(&endpoint.record);
                    return Err(from_network(error));
                }
            }
        }
        Ok(Attachment {
            netns: endpoint.netns.into(),
            endpoint: Some(endpoint.record),
            reservations,
        })
    }

    /// A namespace with loopback only.
    pub fn isolated(&self) -> Result<Attachment> {
        let netns = match &self.pool {
            Some(pool) => pool.take_isolated(&namespace_config()),
            None => Netns::new_isolated(&namespace_config()),
        }
        .map_err(from_network)?;
        Ok(Attachment {
            netns: netns.into(),
            endpoint: None,
            reservations: Vec::new(),
        })
    }

    /// Gives an end of the bridge back.
    pub fn release(&self, record: &EndpointRecord) {
        if let Some(bridge) = self.bridge()
            && let Err(error) = bridge.release(record)
        {
            tracing::warn!(
                endpoint = record.id,
                "{error}; the next start of the daemon cleans up"
            );
        }
    }

    /// Gives back what was made in advance.
    pub fn drain(&self) {
        if let Some(pool) = &self.pool {
            pool.drain();
        }
    }
}

/// The default bridge as the API shows it.
fn default_network(bridge: &Bridge, mut network: Network) -> Network {
    network.ipam.config.push(IpamConfig {
        subnet: bridge.subnet().to_string(),
        gateway: bridge.gateway().to_string(),
        ..IpamConfig::default()
    });
    for (key, value) in [
        ("com.docker.network.bridge.default_bridge", "true"),
        ("com.docker.network.bridge.enable_icc", "true"),
        ("com.docker.network.bridge.enable_ip_masquerade", "true"),
        ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
        ("com.docker.network.bridge.name", bridge.name()),
    ] {
        network.options.insert(key.into(), value.into());
    }
    network
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

pub(crate) fn from_network(error: vessel_network::Error) -> Error {
    use vessel_network::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::Invalid => crate::ErrorKind::Invalid,
        _ => crate::ErrorKind::System,
    };
    Error::new(kind, error.to_string())
}

impl Engine {
    /// The networks: `bridge`, `host`, `none`.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn network_list(&self, filters: &Filters) -> Result<Vec<Network>> {
        filters.check(&["id", "name", "driver", "type", "scope", "label", "dangling"])?;
        let mut networks = self.all_networks();
        networks.retain(|network| {
            filters.any("name", |name| network.name.contains(name))
                && filters.any("id", |id| network.id.starts_with(id))
                && filters.matches("driver", &network.driver)
                && filters.matches("scope", &network.scope)
                && filters.matches("type", "builtin")
                && filters.labels(&network.labels)
                && filters.any("dangling", |dangling| matches!(dangling, "false" | "0"))
        });
        for network in &mut networks {
            network.containers.clear();
        }
        Ok(networks)
    }

    /// One network, by name, ID or the beginning of one.
    ///
    /// # Errors
    /// `network … not found`.
    pub async fn network_inspect(&self, name: &str) -> Result<Network> {
        let mut networks = self.all_networks();
        let place = networks
            .iter()
            .position(|network| network.name == name || network.id == name)
            .or_else(|| {
                networks
                    .iter()
                    .position(|network| !name.is_empty() && network.id.starts_with(name))
            });
        match place {
            Some(place) => Ok(networks.swap_remove(place)),
            None => Err(Error::not_found(format!("network {name} not found"))),
        }
    }

    fn all_networks(&self) -> Vec<Network> {
        let bridge = self.networks.bridge();
        let plain = |name: &str, driver: &str| Network {
            name: name.to_owned(),
            id: self.network_id(name),
            created: crate::time::rfc3339(self.networks.created),
            scope: "local".into(),
            driver: driver.to_owned(),
            ipam: Ipam {
                driver: "default".into(),
                ..Ipam::default()
            },
            ..Network::default()
        };
        let mut networks = Vec::with_capacity(3);
        if let Some(bridge) = bridge {
            networks.push(default_network(bridge, plain("bridge", "bridge")));
        }
        networks.extend([plain("host", "host"), plain("none", "null")]);
        for container in self.containers() {
            let (record, state) = (container.record(), container.state());
            if !state.status.has_process() {
                continue;
            }
            let Some(name) = NetworkMode::parse(&record.host.network_mode)
                .ok()
                .and_then(|mode| mode.network_name())
            else {
                continue;
            };
            if let Some(network) = networks.iter_mut().find(|network| network.name == name) {
                let mut resource = EndpointResource {
                    name: record.name.clone(),
                    ..EndpointResource::default()
                };
                if let Some(endpoint) = &state.endpoint {
                    resource.endpoint_id.clone_from(&endpoint.id);
                    resource.mac_address = endpoint.mac.to_string();
                    resource.ipv4_address = format!("{}/{}", endpoint.address, endpoint.prefix);
                }
                network.containers.insert(record.id.clone(), resource);
            }
        }
        networks
    }

    /// The ID of a built-in network: the same at every start, and another for every engine.
    pub(crate) fn network_id(&self, name: &str) -> String {
        network_id(&self.id, name)
    }

    /// A container's place in its network, as `inspect` and `ps` show it.
    pub(crate) fn endpoint_settings(
        &self,
        record: &Record,
        endpoint: Option<&EndpointRecord>,
        running: bool,
    ) -> Option<(String, EndpointSettings)> {
        let mode = NetworkMode::parse(&record.host.network_mode).ok()?;
        let name = mode.network_name()?;
        let mut settings = record.networks.get(name).cloned().unwrap_or_default();
        if running && (name != "bridge" || self.networks.bridge().is_some()) {
            settings.network_id = self.network_id(name);
        }
        if let Some(endpoint) = endpoint {
            settings.endpoint_id = network_id(&endpoint.id, name);
            settings.gateway = endpoint.gateway.to_string();
            settings.ip_address = endpoint.address.to_string();
            settings.ip_prefix_len = u32::from(endpoint.prefix);
            settings.mac_address = endpoint.mac.to_string();
        }
        Some((name.to_owned(), settings))
    }
}

/// IDs derived from others, without a cryptographic hash: they only have to be stable and to look like IDs.
mod derived {
    use std::hash::{DefaultHasher, Hash, Hasher};

    /// 64 hexadecimal digits for a name in a realm.
    pub fn network_id(realm: &str, name: &str) -> String {
        (0..4_u8)
            .map(|part| {
                // `DefaultHasher::new` has fixed keys.
                let mut hasher = DefaultHasher::new();
                (part, realm, name).hash(&mut hasher);
                format!("{:016x}", hasher.finish())
            })
            .collect()
    }
}
