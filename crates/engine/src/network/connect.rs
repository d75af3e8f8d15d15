//! Connecting containers to networks, and disconnecting them, while they run or not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use vessel_api::{EndpointSettings, Map, NetworkConnectRequest, NetworkDisconnectRequest};
use vessel_network::{EndpointRecord, Netns};

use super::attach::{DEFAULT, End, Ways};
use super::names::has_names;
use super::{from_network, not_found};
use crate::container::prepare::open_namespace;
use crate::container::record::{Record, Status};
use crate::container::{Container, names as name_files};
use crate::oci_spec::modes::NetworkMode;
use crate::oci_spec::{ports, wall};
use crate::{Durability, Engine, Error, ErrorKind, Result, blocking};

impl Engine {
    /// Connects a container to a network.
    ///
    /// # Errors
    /// No such network or container; connected already; a container that shares its network, or has none.
    pub async fn network_connect(
        self: &Arc<Self>,
        network: &str,
        request: NetworkConnectRequest,
    ) -> Result<()> {
        let network = self.connectable(network)?;
        let container = self.container(&request.container)?;
        let settings = request.endpoint_config.unwrap_or_default();
        check_settings(&network, &settings)?;
        let end = End::new(&network, &settings, "")?;
        let engine = Arc::clone(self);
        // It goes on when the client leaves: what is connected is recorded.
        let task = tokio::spawn(async move { engine.connect(&container, end, settings).await });
        task.await
            .map_err(|error| Error::system(format!("the connection ended abnormally: {error}")))?
    }

    async fn connect(
        self: &Arc<Self>,
        container: &Arc<Container>,
        end: End,
        settings: EndpointSettings,
    ) -> Result<()> {
        let _op = self.lock_op(container).await?;
        let record = container.record();
        check_mode(&record)?;
        let (status, network) = (container.status(), end.network.clone());
        refuse_running_machine(&record, status)?;
        if matches!(status, Status::Removing | Status::Dead) {
            return Err(Error::conflict(format!(
                "container {} is being removed and cannot be connected to the network",
                container.id()
            )));
        }
        let running = status.has_process();
        if running && record.networks.contains_key(&network) {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!(
                    "endpoint with name {} already exists in network {network}",
                    record.name
                ),
            ));
        }
        let mut changed = (*record).clone();
        changed.networks.insert(network.clone(), settings);
        if !running {
            return self.keep(container, changed).await;
        }
        let (engine, owned, name) = (Arc::clone(self), Arc::clone(container), network.clone());
        let netns = blocking(move || {
            let netns = Netns::from(open_namespace(owned.state().pid, "net")?);
            // One that is recorded only with the state was begun by a daemon that was killed.
            if let Some(begun) = owned.state().endpoints.get(&name).cloned() {
                engine.networks.unplug(netns.as_fd(), &begun)?;
                engine.change(&owned, |state| {
                    state.endpoints.remove(&name);
                });
                engine.networks.release(&begun);
                engine.networks.settle_releases(&begun);
            }
            // The end is recorded with the state: a daemon that is killed now leaves an interface that the next one knows.
            let record = |end: &EndpointRecord| {
                engine.change(&owned, |state| {
                    state.endpoints.insert(name.clone(), end.clone());
                });
            };
            let there = owned.state().endpoints;
            match engine.networks.add(&netns, &end, &there, &mut |end| record(end)) {
                Ok(made) => record(&made),
                Err(error) => {
                    engine.change(&owned, |state| {
                        state.endpoints.remove(&name);
                    });
                    return Err(error);
                }
            }
            Ok(netns)
        });
        let netns = netns.await?;
        let kept = self.keep(container, changed).await;
        let (engine, owned, name) = (Arc::clone(self), Arc::clone(container), network.clone());
        let rerouted = blocking(move || {
            engine.reroute(&owned, &netns, &name)?;
            let (record, state) = (owned.record(), owned.state());
            engine
                .networks
                .announce(&record, &state.endpoints, &engine.config.dns);
            if state.endpoints.keys().filter(|name| *name != DEFAULT).count() == 1 && name != DEFAULT {
                engine
                    .networks
                    .serve_names(&record.id, &state.endpoints, netns.as_fd())?;
            }
            engine.renew_name_files(&record, &state.endpoints)
        });
        rerouted.await?;
        kept?;
        self.network_event(&container.record(), &network, "connect");
        Ok(())
    }

    /// Disconnects a container from a network.
    ///
    /// # Errors
    /// No such network or container; not connected; a container that shares its network.
    pub async fn network_disconnect(
        self: &Arc<Self>,
        network: &str,
        request: NetworkDisconnectRequest,
    ) -> Result<()> {
        let network = self.connectable(network)?;
        let container = self.container(&request.container)?;
        let engine = Arc::clone(self);
        let task = tokio::spawn(async move { engine.disconnect(&container, &network).await });
        task.await
            .map_err(|error| Error::system(format!("the disconnection ended abnormally: {error}")))?
    }

    async fn disconnect(self: &Arc<Self>, container: &Arc<Container>, network: &str) -> Result<()> {
        let _op = self.lock_op(container).await?;
        let record = container.record();
        check_mode(&record)?;
        let state = container.state();
        refuse_running_machine(&record, state.status)?;
        if !record.networks.contains_key(network) && !state.endpoints.contains_key(network) {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!(
                    "container {} is not connected to network {network}",
                    container.id()
                ),
            ));
        }
        let mut changed = (*record).clone();
        changed.networks.remove(network);
        self.keep(container, changed).await?;
        let Some(mut gone) = state.endpoints.get(network).cloned() else {
            return Ok(());
        };
        // Before it is forgotten, by whoever is killed in between or cannot do it.
        let (engine, owned, end) = (Arc::clone(self), Arc::clone(container), gone.clone());
        let unplugged = blocking(move || match owned.state().status.has_process() {
            true => match open_namespace(owned.state().pid, "net") {
                Ok(netns) => engine.networks.unplug(netns.as_fd(), &end),
                // It has just ended.
                Err(_) => Ok(()),
            },
            false => Ok(()),
        });
        unplugged.await?;
        let mut left = state.endpoints.clone();
        left.remove(network);
        let next = self.container_ways(&record, &left);
        for (v6, next) in [(false, next.v4), (true, next.v6)] {
            let next = next.filter(|next| self.networks.publishes(next));
            if let Some(next) = next.as_ref().and_then(|next| left.get_mut(next))
                && let Err(error) = self.networks.table.hand_over(&mut gone, next, v6)
            {
                tracing::warn!(
                    container = container.id(),
                    "{error}; the published ports lead nowhere now"
                );
            }
        }
        self.change(container, |state| state.endpoints = left);
        let (engine, owned, name) = (Arc::clone(self), Arc::clone(container), network.to_owned());
        blocking(move || {
            let (record, state) = (owned.record(), owned.state());
            engine.networks.leave(&record.id, &name);
            engine
                .networks
                .announce(&record, &state.endpoints, &engine.config.dns);
            let netns = match state.status.has_process() {
                true => open_namespace(state.pid, "net").ok(),
                false => None,
            };
            engine.networks.release(&gone);
            engine.networks.settle_releases(&gone);
            if let Some(netns) = netns {
                engine.set_default_routes(&Netns::from(netns), &record, &state.endpoints)?;
            }
            engine.renew_name_files(&record, &state.endpoints)
        })
        .await?;
        self.network_event(&record, network, "disconnect");
        Ok(())
    }

    /// The networks of a new container, by their names: those it asks for, or that of its mode.
    ///
    /// # Errors
    /// Settings that make no sense.
    pub(crate) fn settle_networks(
        &self,
        mode: &NetworkMode,
        asked: Map<EndpointSettings>,
        mac: &str,
        links: &[String],
    ) -> Result<Map<EndpointSettings>> {
        let mut networks = Map::new();
        for (name, settings) in asked {
            let name = match name.as_str() {
                // Clients of the default bridge may call it so.
                "default" => DEFAULT.to_owned(),
                _ => self
                    .networks
                    .find_user(&name)
                    .map_or(name, |found| found.record.name.clone()),
            };
            check_settings(&name, &settings)?;
            networks.insert(name, settings);
        }
        match mode {
            NetworkMode::Bridge if networks.is_empty() => {
                networks.insert(DEFAULT.to_owned(), EndpointSettings::default());
            }
            NetworkMode::Named(name) => {
                let settings = networks.entry(name.clone()).or_default();
                if settings.links.is_empty() {
                    settings.links = links.to_vec();
                }
            }
            _ => {}
        }
        for (name, settings) in &networks {
            let mac = if mode.network_name() == Some(name) {
                mac
            } else {
                ""
            };
            End::new(name, settings, mac)?;
        }
        Ok(networks)
    }

    /// The name of a network that containers can be connected to.
    fn connectable(&self, network: &str) -> Result<String> {
        match network {
            DEFAULT => return Ok(DEFAULT.to_owned()),
            "host" | "none" => {
                return Err(Error::invalid(format!(
                    "container cannot be disconnected from {network} network or connected to {network} network"
                )));
            }
            _ => {}
        }
        if let Some(found) = self.networks.find_user(network) {
            return Ok(found.record.name.clone());
        }
        if !network.is_empty() && super::network_id(&self.id, DEFAULT).starts_with(network) {
            return Ok(DEFAULT.to_owned());
        }
        Err(not_found(network))
    }

    /// Writes a container's record. The caller holds `op`.
    async fn keep(&self, container: &Container, record: Record) -> Result<()> {
        self.records
            .put(container.id(), &record, Durability::Disk)
            .await?;
        container.set_record(record);
        Ok(())
    }

    fn container_ways(&self, record: &Record, endpoints: &BTreeMap<String, EndpointRecord>) -> Ways {
        let priority = |name: &str| {
            record
                .networks
                .get(name)
                .map_or(0, |settings| settings.gw_priority)
        };
        let priorities = endpoints.keys().map(|name| (name.as_str(), priority(name)));
        // What cannot be read was refused when the container was made.
        let ports = ports::published(&record.config, &record.host).unwrap_or_default();
        self.networks.ways(priorities, !ports.is_empty())
    }

    fn set_default_routes(
        &self,
        netns: &Netns,
        record: &Record,
        endpoints: &BTreeMap<String, EndpointRecord>,
    ) -> Result<()> {
        let ways = self.container_ways(record, endpoints);
        let end = |way: Option<String>| way.and_then(|way| endpoints.get(&way));
        let v4 = end(ways.v4).and_then(|end| match end.gateway {
            IpAddr::V4(gateway) => Some(gateway),
            IpAddr::V6(_) => None,
        });
        let v6 = end(ways.v6).and_then(|end| end.v6).map(|v6| v6.gateway);
        netns.set_default_routes(v4, v6).map_err(from_network)
    }

    /// After `new` was added: if it is where a default route goes, the route and the published ports follow.
    fn reroute(&self, container: &Container, netns: &Netns, new: &str) -> Result<()> {
        let (record, state) = (container.record(), container.state());
        let ways = self.container_ways(&record, &state.endpoints);
        let here = |way: &Option<String>| way.as_deref() == Some(new);
        if !here(&ways.v4) && !here(&ways.v6) {
            return Ok(());
        }
        self.set_default_routes(netns, &record, &state.endpoints)?;
        let mut endpoints = state.endpoints;
        if !self.networks.publishes(new) {
            return Ok(());
        }
        let Some(mut to) = endpoints.remove(new) else {
            return Ok(());
        };
        for v6 in [false, true] {
            if !here(if v6 { &ways.v6 } else { &ways.v4 }) {
                continue;
            }
            let published =
                |end: &&mut EndpointRecord| end.ports.iter().any(|port| port.host_ip.is_ipv6() == v6);
            if let Some(from) = endpoints.values_mut().find(published) {
                self.networks
                    .table
                    .hand_over(from, &mut to, v6)
                    .map_err(from_network)?;
            }
        }
        endpoints.insert(new.to_owned(), to);
        self.change(container, |state| state.endpoints = endpoints);
        Ok(())
    }

    /// `/etc/hosts` and `/etc/resolv.conf` of a container that runs.
    pub(crate) fn renew_name_files(
        &self,
        record: &Record,
        endpoints: &BTreeMap<String, EndpointRecord>,
    ) -> Result<()> {
        let mode = NetworkMode::parse(&record.host.network_mode)?;
        let around = name_files::Surroundings {
            mode: &mode,
            addresses: endpoints.values().flat_map(EndpointRecord::addresses).collect(),
            links: self.link_hosts(record),
            gateway: self.networks.bridge().map(|bridge| bridge.gateway().into()),
            dns: &self.config.dns,
            own_server: has_names(endpoints),
            owner: None,
        };
        name_files::renew(&self.paths.shim(&record.id), record, &around)
    }
}

/// A machine's interfaces are made with it.
fn refuse_running_machine(record: &Record, status: Status) -> Result<()> {
    if wall::is_machine(&record.host) && status.has_process() {
        return Err(Error::unsupported(format!(
            "container {} is a virtual machine and runs: stop it to change its networks",
            record.short_id()
        )));
    }
    Ok(())
}

fn check_mode(record: &Record) -> Result<()> {
    match NetworkMode::parse(&record.host.network_mode)? {
        NetworkMode::Host | NetworkMode::Container(_) => Err(Error::invalid(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        )),
        NetworkMode::None => Err(Error::invalid(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        )),
        NetworkMode::Bridge | NetworkMode::Named(_) => Ok(()),
    }
}

/// What the settings of a container on a network may not be.
///
/// # Errors
/// Docker's.
pub(crate) fn check_settings(network: &str, settings: &EndpointSettings) -> Result<()> {
    if network == DEFAULT && !settings.aliases.is_empty() {
        return Err(Error::invalid(
            "network-scoped alias is supported only for containers in user defined networks",
        ));
    }
    Ok(())
}
