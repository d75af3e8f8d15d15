//! Everything about a container.

use std::collections::BTreeMap;

use vessel_api::{
    ContainerInspect, ContainerState, EndpointSettings, GraphDriver, Map, NetworkSettings, Port, PortBinding,
    PortMap,
};
use vessel_network::EndpointRecord;

use super::record::{Record, State, Status};
use crate::oci_spec::modes::NetworkMode;
use crate::time::rfc3339;
use crate::volumes::tree_size;
use crate::{Engine, Result, blocking};

impl Engine {
    /// Everything about a container; with `size` also how large it is.
    ///
    /// # Errors
    /// No such container.
    pub async fn container_inspect(&self, id: &str, size: bool) -> Result<ContainerInspect> {
        let container = self.container(id)?;
        let (record, state, execs) = (container.record(), container.state(), container.execs());
        let (size_rw, size_root_fs) = match size {
            true => {
                let (rw, total) = self.sizes(&record).await?;
                (Some(rw), Some(total))
            }
            false => (None, None),
        };
        let root = self.root_paths(&record)?;
        let layers: Vec<String> = root
            .lower
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        let data = Map::from([
            ("LowerDir".to_owned(), layers.join(":")),
            ("UpperDir".to_owned(), root.upper.to_string_lossy().into_owned()),
            ("WorkDir".to_owned(), root.work.to_string_lossy().into_owned()),
            // The merged view exists inside the container only.
            ("MergedDir".to_owned(), String::new()),
        ]);
        let shim = self.paths.shim(&record.id);
        let file = |name: &str| shim.join(name).to_string_lossy().into_owned();
        let log = match record.host.log_config.kind.as_str() {
            "none" | "local" | "syslog" | "journald" => String::new(),
            _ => self.paths.log(&record.id).to_string_lossy().into_owned(),
        };
        let mut host_config = record.host.clone();
        if !record.links.is_empty() {
            host_config.links = self.shown_links(&record);
        }
        Ok(ContainerInspect {
            id: record.id.clone(),
            created: rfc3339(record.created),
            path: record.path.clone(),
            args: record.args.clone(),
            state: container_state(&state),
            image: record.image_id.clone(),
            resolv_conf_path: file("resolv.conf"),
            hostname_path: file("hostname"),
            hosts_path: file("hosts"),
            log_path: log,
            name: format!("/{}", record.name),
            restart_count: i64::from(state.restart_count),
            driver: crate::system::STORAGE_DRIVER.to_owned(),
            platform: "linux".into(),
            exec_ids: execs,
            host_config,
            graph_driver: GraphDriver {
                data,
                name: crate::system::STORAGE_DRIVER.to_owned(),
            },
            size_rw,
            size_root_fs,
            mounts: record.mount_points(),
            config: record.config.clone(),
            network_settings: self.network_settings(&record, &state),
            ..ContainerInspect::default()
        })
    }

    /// Bytes of the writable layer, and of everything.
    pub(crate) async fn sizes(&self, record: &Record) -> Result<(i64, i64)> {
        let upper = self.root_paths(record)?.upper;
        let rw = blocking(move || Ok(tree_size(&upper))).await?;
        let image = self
            .image_by_id(&record.image_id)
            .await
            .map_or(0, |image| image.record.size);
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok((number(rw), number(rw.saturating_add(image))))
    }

    fn network_settings(&self, record: &Record, state: &State) -> NetworkSettings {
        let running = state.status.has_process();
        let endpoints = &state.endpoints;
        let networks: Map<EndpointSettings> = self.endpoint_settings(record, endpoints, running);
        let mut settings = NetworkSettings {
            ports: if running {
                port_map(record, endpoints)
            } else {
                PortMap::new()
            },
            ..NetworkSettings::default()
        };
        if running
            && NetworkMode::parse(&record.host.network_mode).is_ok_and(|mode| mode != NetworkMode::Host)
        {
            settings.sandbox_id.clone_from(&record.id);
            settings.sandbox_key = format!("/proc/{}/ns/net", state.pid);
        }
        if let Some(bridge) = networks.get("bridge") {
            settings.endpoint_id.clone_from(&bridge.endpoint_id);
            settings.gateway.clone_from(&bridge.gateway);
            settings.ip_address.clone_from(&bridge.ip_address);
            settings.ip_prefix_len = bridge.ip_prefix_len;
            settings
                .global_ipv6_address
                .clone_from(&bridge.global_ipv6_address);
            settings.global_ipv6_prefix_len = bridge.global_ipv6_prefix_len;
            settings.ipv6_gateway.clone_from(&bridge.ipv6_gateway);
            settings.mac_address.clone_from(&bridge.mac_address);
        }
        settings.networks = networks;
        settings
    }
}

/// Exposed ports with where they are published.
fn port_map(record: &Record, endpoints: &BTreeMap<String, EndpointRecord>) -> PortMap {
    let mut map: PortMap = record
        .config
        .exposed_ports
        .keys()
        .map(|port| (port.clone(), None))
        .collect();
    let ports = endpoints
        .values()
        .flat_map(|endpoint| endpoint.ports.iter().map(move |port| (endpoint, port)));
    for (endpoint, port) in ports {
        let bindings = map
            .entry(format!("{}/{}", port.target_port, port.protocol))
            .or_default();
        // As Docker: one that is reached at the container's own address has no port of the host.
        let direct = endpoint.addresses().any(|own| own == port.host_ip);
        bindings
            .get_or_insert_default()
            .push(match (direct, port.host_ip) {
                (false, host) => PortBinding {
                    host_ip: host.to_string(),
                    host_port: port.host_port.to_string(),
                },
                (true, host) => PortBinding {
                    host_ip: if host.is_ipv4() { "0.0.0.0" } else { "::" }.to_owned(),
                    host_port: String::new(),
                },
            });
    }
    map
}

/// Ports as the list shows them.
pub(super) fn ports(record: &Record, state: &State) -> Vec<Port> {
    if !state.status.has_process() {
        return Vec::new();
    }
    let mut list = Vec::new();
    for (port, bindings) in port_map(record, &state.endpoints) {
        let Some((number, kind)) = port.split_once('/') else {
            continue;
        };
        let Ok(private_port) = number.parse() else {
            continue;
        };
        let port = |ip: String, public_port| Port {
            ip,
            private_port,
            public_port,
            kind: kind.to_owned(),
        };
        match bindings {
            Some(bindings) => {
                let (direct, published): (Vec<_>, Vec<_>) = bindings
                    .into_iter()
                    .partition(|binding| binding.host_port.is_empty());
                if !direct.is_empty() {
                    list.push(port(String::new(), 0));
                }
                list.extend(
                    published
                        .into_iter()
                        .map(|binding| port(binding.host_ip, binding.host_port.parse().unwrap_or(0))),
                );
            }
            None => list.push(port(String::new(), 0)),
        }
    }
    list
}

fn container_state(state: &State) -> ContainerState {
    ContainerState {
        status: state.status.as_str().to_owned(),
        running: state.status.is_running(),
        paused: state.status == Status::Paused,
        restarting: state.status == Status::Restarting,
        oom_killed: state.oom_killed,
        dead: state.status == Status::Dead,
        pid: i64::from(state.pid),
        exit_code: i64::from(state.exit_code),
        error: state.error.clone(),
        started_at: rfc3339(state.started_at),
        finished_at: rfc3339(state.finished_at),
        health: state.health.as_ref().map(|health| health.to_api()),
    }
}
