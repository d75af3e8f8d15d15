//! Networks, and a container's place in them, as the API shows them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use vessel_api::{EndpointResource, EndpointSettings, Ipam, IpamConfig, Map, Network};
use vessel_network::{Bridge, EndpointRecord};

use super::attach::DEFAULT;
use super::names::dns_names;
use super::{NetworkRecord, not_found};
use crate::container::record::Record;
use crate::oci_spec::modes::NetworkMode;
use crate::{Engine, Error, Filters, Result};

impl Engine {
    /// The networks: `bridge`, `host`, `none`, and those that users have made.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn network_list(&self, filters: &Filters) -> Result<Vec<Network>> {
        filters.check(&["id", "name", "driver", "type", "scope", "label", "dangling"])?;
        let dangling = filters.flag("dangling")?;
        if let Some(kind) = filters
            .get("type")
            .find(|kind| !matches!(*kind, "builtin" | "custom"))
        {
            return Err(Error::invalid(format!("invalid filter: 'type'='{kind}'")));
        }
        let mut networks = self.all_networks();
        networks.retain(|network| {
            let builtin = is_builtin(&network.name);
            filters.any("name", |name| network.name.contains(name))
                && filters.any("id", |id| network.id.contains(id))
                && filters.matches("driver", &network.driver)
                && filters.matches("scope", &network.scope)
                && filters.matches("type", if builtin { "builtin" } else { "custom" })
                && filters.labels(&network.labels)
                && dangling.is_none_or(|wanted| wanted == (!builtin && network.containers.is_empty()))
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
        let exact = networks
            .iter()
            .position(|network| network.name == name)
            .or_else(|| networks.iter().position(|network| network.id == name));
        if let Some(place) = exact {
            return Ok(networks.swap_remove(place));
        }
        let mut found = networks
            .iter()
            .enumerate()
            .filter(|(_, network)| !name.is_empty() && network.id.starts_with(name))
            .map(|(place, _)| place);
        match (found.next(), found.next()) {
            (Some(place), None) => Ok(networks.swap_remove(place)),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "network {name} is ambiguous (several networks have IDs that begin so)"
            ))),
            (None, _) => Err(not_found(name)),
        }
    }

    fn all_networks(&self) -> Vec<Network> {
        let plain = |name: &str, driver: &str| Network {
            name: name.to_owned(),
            id: self.network_id(name),
            created: crate::time::rfc3339(self.networks.created),
            scope: "local".into(),
            driver: driver.to_owned(),
            enable_ipv4: true,
            ipam: Ipam {
                driver: "default".into(),
                ..Ipam::default()
            },
            ..Network::default()
        };
        let mut networks = Vec::new();
        if let Some(bridge) = self.networks.bridge() {
            networks.push(default_network(bridge, plain(DEFAULT, "bridge")));
        }
        networks.extend([plain("host", "host"), plain("none", "null")]);
        networks.extend(
            self.networks
                .user_networks()
                .iter()
                .map(|network| user_network(&network.record)),
        );
        let places: BTreeMap<String, usize> = networks
            .iter()
            .enumerate()
            .map(|(place, network)| (network.name.clone(), place))
            .collect();
        for container in self.containers() {
            let (record, state) = (container.record(), container.state());
            if !state.status.has_process() {
                continue;
            }
            let mut show = |network: &str, end: Option<&EndpointRecord>| {
                let Some(network) = places.get(network).and_then(|place| networks.get_mut(*place)) else {
                    return;
                };
                let mut resource = EndpointResource {
                    name: record.name.clone(),
                    ..EndpointResource::default()
                };
                if let Some(end) = end {
                    resource.endpoint_id = network_id(&end.id, &network.name);
                    resource.mac_address = end.mac.to_string();
                    resource.ipv4_address = format!("{}/{}", end.address, end.prefix);
                    if let Some(v6) = end.v6 {
                        resource.ipv6_address = format!("{}/{}", v6.address, v6.prefix);
                    }
                }
                network.containers.insert(record.id.clone(), resource);
            };
            for (network, end) in &state.endpoints {
                show(network, Some(end));
            }
            if state.endpoints.is_empty()
                && let Ok(mode @ (NetworkMode::Host | NetworkMode::None)) =
                    NetworkMode::parse(&record.host.network_mode)
            {
                show(mode.network_name().unwrap_or_default(), None);
            }
        }
        networks
    }

    /// The ID of a network, by its name. Those of the built-in ones are the same at every start, and others for every engine.
    pub(crate) fn network_id(&self, name: &str) -> String {
        match self.networks.find_user(name) {
            Some(network) => network.record.id.clone(),
            None => network_id(&self.id, name),
        }
    }

    /// A container's places in its networks, as `inspect` and `ps` show them.
    pub(crate) fn endpoint_settings(
        &self,
        record: &Record,
        endpoints: &BTreeMap<String, EndpointRecord>,
        running: bool,
    ) -> Map<EndpointSettings> {
        let Ok(mode) = NetworkMode::parse(&record.host.network_mode) else {
            return Map::new();
        };
        let mut names: Vec<&str> = match &mode {
            NetworkMode::Host | NetworkMode::None => mode.network_name().into_iter().collect(),
            NetworkMode::Container(_) => Vec::new(),
            NetworkMode::Bridge | NetworkMode::Named(_) => record
                .networks
                .keys()
                .chain(endpoints.keys())
                .map(String::as_str)
                .collect(),
        };
        if names.is_empty() && !running {
            names.extend(mode.network_name());
        }
        let settings = names.into_iter().map(|name| {
            let mut settings = record.networks.get(name).cloned().unwrap_or_default();
            settings.dns_names = dns_names(record, name);
            if (running && (name != DEFAULT || self.networks.bridge().is_some()))
                || self.networks.find_user(name).is_some()
            {
                settings.network_id = self.network_id(name);
            }
            if let Some(end) = endpoints.get(name) {
                settings.endpoint_id = network_id(&end.id, name);
                let internal = self.networks.is_internal(name);
                if !internal {
                    settings.gateway = end.gateway.to_string();
                }
                if let Some(v6) = end.v6 {
                    settings.global_ipv6_address = v6.address.to_string();
                    settings.global_ipv6_prefix_len = u32::from(v6.prefix);
                    if !internal {
                        settings.ipv6_gateway = v6.gateway.to_string();
                    }
                }
                settings.ip_address = end.address.to_string();
                settings.ip_prefix_len = u32::from(end.prefix);
                settings.mac_address = end.mac.to_string();
            }
            (name.to_owned(), settings)
        });
        settings.collect()
    }

    /// Publishes an event of a network.
    pub(crate) fn publish_network(
        &self,
        action: &str,
        id: &str,
        name: &str,
        driver: &str,
        container: Option<&str>,
    ) {
        let mut attributes = Map::from([
            ("name".to_owned(), name.to_owned()),
            ("type".to_owned(), driver.to_owned()),
        ]);
        if let Some(container) = container {
            attributes.insert("container".into(), container.to_owned());
        }
        self.events.publish("network", action, id, attributes);
    }

    /// Publishes that a container came to a network, or left it.
    pub(crate) fn network_event(&self, record: &Record, network: &str, action: &str) {
        let driver = match network {
            "none" => "null",
            "host" => "host",
            name => match self.networks.find_user(name) {
                Some(network) => network.record.driver(),
                None => "bridge",
            },
        };
        self.publish_network(
            action,
            &self.network_id(network),
            network,
            driver,
            Some(&record.id),
        );
    }
}

/// Whether a network is one of those that every engine has.
pub(super) fn is_builtin(name: &str) -> bool {
    matches!(name, DEFAULT | "host" | "none")
}

/// The default bridge as the API shows it.
fn default_network(bridge: &Bridge, mut network: Network) -> Network {
    network.ipam.config.push(IpamConfig {
        subnet: bridge.subnet().to_string(),
        gateway: bridge.gateway().to_string(),
        ..IpamConfig::default()
    });
    if let Some((subnet, gateway)) = bridge.v6() {
        network.enable_ipv6 = true;
        network.ipam.config.push(IpamConfig {
            subnet: subnet.to_string(),
            gateway: gateway.to_string(),
            ..IpamConfig::default()
        });
    }
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

fn user_network(record: &NetworkRecord) -> Network {
    Network {
        name: record.name.clone(),
        id: record.id.clone(),
        created: crate::time::rfc3339(record.created),
        scope: "local".into(),
        driver: record.driver().into(),
        enable_ipv4: true,
        enable_ipv6: record.bridge.v6.is_some(),
        ipam: Ipam {
            driver: record.ipam_driver.clone(),
            options: record.ipam_options.clone(),
            config: std::iter::once(&record.ipam)
                .chain(&record.ipam_v6)
                .cloned()
                .collect(),
        },
        internal: record.internal,
        attachable: record.attachable,
        options: record.options.clone(),
        labels: record.labels.clone(),
        ..Network::default()
    }
}

/// 64 hexadecimal digits for a name in a realm, without a cryptographic hash: they only have to be stable and to look like IDs.
pub(crate) fn network_id(realm: &str, name: &str) -> String {
    // `DefaultHasher::new` has fixed keys.
    let mut named = DefaultHasher::new();
    (realm, name).hash(&mut named);
    let mut id = String::with_capacity(64);
    for part in 0..4_u8 {
        let mut hasher = named.clone();
        hasher.write_u8(part);
        for byte in hasher.finish().to_be_bytes() {
            for digit in [byte >> 4, byte & 15] {
                id.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
    }
    id
}
