//! Networks and volumes of a project.

use std::collections::BTreeSet;

use vessel_api::{Ipam, IpamConfig, NetworkCreateRequest, VolumeCreateRequest};
use vessel_client::Filters;

use super::convert::texts;
use super::{Engine, labels};
use crate::error::{Error, Result};
use crate::project::{Network, Volume};

impl Engine<'_> {
    /// Makes the networks that services use and that are not there.
    pub(super) fn ensure_networks(&self, services: &BTreeSet<String>) -> Result<()> {
        let mut used: BTreeSet<&String> = BTreeSet::new();
        for service in services.iter().filter_map(|name| self.project.services.get(name)) {
            used.extend(service.networks.keys());
        }
        for key in used {
            let Some(network) = self.project.networks.get(key) else {
                continue;
            };
            self.ensure_network(key, network)?;
        }
        Ok(())
    }

    fn ensure_network(&self, key: &str, network: &Network) -> Result<()> {
        let mut filters = Filters::new();
        filters.add("name", &network.name);
        let known = self
            .client
            .network_list(&filters)
            .map_err(Error::engine("cannot list networks"))?;
        // The filter takes parts of names.
        let known = known.into_iter().find(|known| {
            known.name == network.name || (network.external && known.id.starts_with(&network.name))
        });
        if let Some(known) = known {
            if network.external {
                return Ok(());
            }
            let label = known.labels.get(labels::NETWORK).map_or("", String::as_str);
            let project = known.labels.get(labels::PROJECT).map_or("", String::as_str);
            if label != key {
                return Err(Error::project(format!(
                    "network {} was found but has incorrect label {} set to {label:?} (expected: {key:?}); remove it, or say external: true",
                    network.name,
                    labels::NETWORK
                )));
            }
            if project != self.project.name {
                self.observer.warn(&format!(
                    "a network with name {} exists but was not created for project {:?}.\nSet `external: true` to use an existing network",
                    network.name, self.project.name
                ));
            }
            return Ok(());
        }
        if network.external {
            if matches!(network.name.as_str(), "host" | "none" | "bridge") {
                return Ok(());
            }
            return Err(Error::project(format!(
                "network {} declared as external, but could not be found",
                network.name
            )));
        }
        let request = network_request(&self.project.name, key, network);
        let resource = format!("Network {}", network.name);
        self.step(&resource, "Creating", "Created", || {
            self.client
                .network_create(&request)
                .map_err(Error::engine(format!(
                    "failed to create network {}",
                    network.name
                )))
        })?;
        Ok(())
    }

    /// Makes the volumes that services use and that are not there.
    pub(super) fn ensure_volumes(&self, services: &BTreeSet<String>) -> Result<()> {
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for service in services.iter().filter_map(|name| self.project.services.get(name)) {
            used.extend(
                service
                    .volumes
                    .iter()
                    .filter(|mount| mount.kind == "volume" && !mount.source.is_empty())
                    .map(|mount| mount.source.as_str()),
            );
        }
        for key in used {
            let Some(volume) = self.project.volumes.get(key) else {
                continue;
            };
            self.ensure_volume(key, volume)?;
        }
        Ok(())
    }

    fn ensure_volume(&self, key: &str, volume: &Volume) -> Result<()> {
        match self.client.volume_inspect(&volume.name) {
            Ok(known) => {
                let project = known.labels.get(labels::PROJECT).map_or("", String::as_str);
                if !volume.external && project != self.project.name {
                    let made = if project.is_empty() {
                        "was not created by Docker Compose. Use `external: true` to use an existing volume"
                            .to_owned()
                    } else {
                        format!(
                            "was created for project {project:?} (expected {:?}). Use `external: true` to use an existing volume",
                            self.project.name
                        )
                    };
                    self.observer
                        .warn(&format!("volume {:?} already exists but {made}", volume.name));
                }
                return Ok(());
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                return Err(Error::engine(format!("cannot look at volume {}", volume.name))(
                    error,
                ));
            }
        }
        if volume.external {
            return Err(Error::project(format!(
                "external volume {:?} not found",
                volume.name
            )));
        }
        let mut own = texts(&volume.labels);
        own.insert(labels::PROJECT.into(), self.project.name.clone());
        own.insert(labels::VOLUME.into(), key.to_owned());
        own.insert(labels::VERSION.into(), labels::OUR_VERSION.into());
        let request = VolumeCreateRequest {
            driver: volume.driver.clone(),
            driver_opts: volume.driver_opts.clone(),
            labels: own,
            name: volume.name.clone(),
        };
        let resource = format!("Volume {}", volume.name);
        self.step(&resource, "Creating", "Created", || {
            self.client
                .volume_create(&request)
                .map_err(Error::engine(format!("failed to create volume {}", volume.name)))
        })?;
        Ok(())
    }
}

fn network_request(project: &str, key: &str, network: &Network) -> NetworkCreateRequest {
    let mut own = texts(&network.labels);
    own.insert(labels::PROJECT.into(), project.to_owned());
    own.insert(labels::NETWORK.into(), key.to_owned());
    own.insert(labels::VERSION.into(), labels::OUR_VERSION.into());
    let ipam = &network.ipam;
    let said = !ipam.driver.is_empty() || !ipam.config.is_empty() || !ipam.options.is_empty();
    NetworkCreateRequest {
        name: network.name.clone(),
        check_duplicate: true,
        driver: if network.driver.is_empty() {
            "bridge".to_owned()
        } else {
            network.driver.clone()
        },
        enable_ipv4: network.enable_ipv4,
        enable_ipv6: network.enable_ipv6.unwrap_or(false),
        ipam: said.then(|| Ipam {
            driver: if ipam.driver.is_empty() {
                "default".to_owned()
            } else {
                ipam.driver.clone()
            },
            options: ipam.options.clone(),
            config: ipam
                .config
                .iter()
                .map(|pool| IpamConfig {
                    subnet: pool.subnet.clone(),
                    ip_range: pool.ip_range.clone(),
                    gateway: pool.gateway.clone(),
                    auxiliary_addresses: pool.aux_addresses.clone(),
                })
                .collect(),
        }),
        internal: network.internal,
        attachable: network.attachable,
        options: network.driver_opts.clone(),
        labels: own,
        ..NetworkCreateRequest::default()
    }
}
