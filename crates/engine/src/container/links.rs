//! Links: what `--link NAME:ALIAS` gave before there were networks with names.
//!
//! They exist on the default bridge only, as with dockerd: the linked container has to run when the other one starts; its
//! address, ports and environment become variables there, and its names lines of `/etc/hosts`, which follow it when it is
//! started again. Variables do not. On networks that users make a link is an alias for the DNS server, see `network`.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vessel_network::EndpointRecord;

use super::Container;
use super::record::Record;
use crate::oci_spec::modes::NetworkMode;
use crate::oci_spec::ports::parse_port;
use crate::{Durability, Engine, Error, ErrorKind, Result};

/// The network that links are of.
const NETWORK: &str = "bridge";

/// A container that another one is linked to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its ID.
    pub child: String,
    /// What it is called there.
    pub alias: String,
}

/// Takes `NAME:ALIAS`, `NAME`, or `/NAME:/PARENT/ALIAS`, which `inspect` shows, apart.
///
/// # Errors
/// Anything else.
pub fn parse(text: &str) -> Result<(&str, &str)> {
    if text.is_empty() {
        return Err(Error::invalid("empty string specified for links"));
    }
    let Some((name, alias)) = text.split_once(':') else {
        return Ok((text, text));
    };
    if alias.contains(':') || name.is_empty() || alias.is_empty() {
        return Err(Error::invalid(format!("bad format for links: {text}")));
    }
    match name.strip_prefix('/') {
        Some(name) => Ok((name, alias.rsplit('/').next().unwrap_or(alias))),
        None => Ok((name, alias)),
    }
}

impl Engine {
    /// The links of a new container that is not on a network of a user's.
    ///
    /// # Errors
    /// A text that is no link, a container that does not exist or has the host's network.
    pub(super) fn settle_links(&self, mode: &NetworkMode, links: &[String]) -> Result<Vec<Link>> {
        let conflict = |what: &str| {
            Err(Error::invalid(format!(
                "conflicting options: {what} can't be used with links. This would result in undefined behavior"
            )))
        };
        if links.is_empty() {
            return Ok(Vec::new());
        }
        match mode {
            NetworkMode::Host => return conflict("host type networking"),
            NetworkMode::Container(_) => return conflict("container type network"),
            NetworkMode::Bridge | NetworkMode::None | NetworkMode::Named(_) => {}
        }
        let mut settled: Vec<Link> = Vec::with_capacity(links.len());
        for text in links {
            let (name, alias) = parse(text)?;
            let found = |name: &str| {
                self.container(name).map_err(|error| {
                    // A missing image is what clients would take "not found" for.
                    Error::invalid(format!("could not get container for {name}: {}", error.message()))
                })
            };
            let mut child = found(name)?;
            // Who shares another's network is reached at its address. What joins is known by a name, which another
            // container may have taken since: they may go round in a circle.
            let mut seen = HashSet::new();
            while let NetworkMode::Container(other) = NetworkMode::parse(&child.record().host.network_mode)? {
                if !seen.insert(child.id().to_owned()) {
                    return Err(Error::invalid(format!(
                        "cannot link to {name}: its network is that of a container that joins its own"
                    )));
                }
                child = found(&other)?;
            }
            if NetworkMode::parse(&child.record().host.network_mode)? == NetworkMode::Host {
                return conflict("host type networking");
            }
            settled.retain(|link| link.alias != alias);
            settled.push(Link {
                child: child.id().to_owned(),
                alias: alias.to_owned(),
            });
        }
        Ok(settled)
    }

    /// Links as `inspect` shows them; those whose container is gone are gone.
    pub(super) fn shown_links(&self, record: &Record) -> Vec<String> {
        let shown = record.links.iter().filter_map(|link| {
            let child = self.containers.get(&link.child)?;
            Some(format!(
                "{}:/{}/{}",
                child.display_name(),
                record.name,
                link.alias
            ))
        });
        shown.collect()
    }

    /// The names that links give to containers, by the container's ID: `/PARENT/ALIAS`.
    pub(super) fn link_names(&self) -> BTreeMap<String, Vec<String>> {
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        if !self.containers.has_links() {
            return names;
        }
        for parent in self.containers() {
            let record = parent.record();
            for link in &record.links {
                let name = format!("/{}/{}", record.name, link.alias);
                names.entry(link.child.clone()).or_default().push(name);
            }
        }
        names
    }

    /// The linked containers with their addresses, and the container's own: what a start needs.
    ///
    /// # Errors
    /// One that does not run, or is not on the default bridge.
    pub(super) fn link_environment(
        &self,
        record: &Record,
        endpoints: &BTreeMap<String, EndpointRecord>,
    ) -> Result<Vec<String>> {
        let mut variables = Vec::new();
        if record.links.is_empty() || !endpoints.contains_key(NETWORK) {
            return Ok(variables);
        }
        for link in &record.links {
            let Some(child) = self.containers.get(&link.child) else {
                continue;
            };
            let name = format!("/{}/{}", record.name, link.alias);
            if !child.status().has_process() {
                return Err(Error::system(format!(
                    "Cannot link to a non running container: {} AS {name}",
                    child.display_name()
                )));
            }
            let Some(address) = address(&child) else {
                return Err(Error::system(format!(
                    "Cannot link to {}, as it does not belong to the default network",
                    child.display_name()
                )));
            };
            environment(&name, &link.alias, address, &child.record(), &mut variables);
        }
        Ok(variables)
    }

    /// The same for another process in a container that runs: what is gone meanwhile has no variables.
    pub(super) fn link_environment_now(&self, record: &Record) -> Vec<String> {
        let mut variables = Vec::new();
        for link in &record.links {
            if let Some(child) = self.containers.get(&link.child)
                && let Some(address) = address(&child)
            {
                let name = format!("/{}/{}", record.name, link.alias);
                environment(&name, &link.alias, address, &child.record(), &mut variables);
            }
        }
        variables
    }

    /// What links put into `/etc/hosts`: addresses with their names, as far as the linked containers run.
    pub(crate) fn link_hosts(&self, record: &Record) -> Vec<(IpAddr, Vec<String>)> {
        let entries = record.links.iter().filter_map(|link| {
            let child = self.containers.get(&link.child)?;
            let address = address(&child)?;
            let child = child.record();
            let mut names = vec![link.alias.clone()];
            for name in [&child.config.hostname, &child.name] {
                if !name.is_empty() && !names.contains(name) {
                    names.push(name.clone());
                }
            }
            Some((address, names))
        });
        entries.collect()
    }

    /// After a container was started: those that are linked to it learn its new address.
    pub(super) fn renew_links_to(&self, child: &Container) {
        if !self.containers.has_links() {
            return;
        }
        for parent in self.containers() {
            let record = parent.record();
            if !record.links.iter().any(|link| link.child == child.id()) {
                continue;
            }
            let state = parent.state();
            if state.status.has_process()
                && let Err(error) = self.renew_name_files(&record, &state.endpoints)
            {
                tracing::warn!(container = record.id, "{error}");
            }
        }
    }

    /// Removes a link by its name, `PARENT/ALIAS`.
    pub(super) async fn remove_link(&self, name: &str) -> Result<()> {
        let word = name.strip_prefix('/').unwrap_or(name);
        let Some((parent, alias)) = word.rsplit_once('/') else {
            self.container(name)?;
            return Err(Error::conflict(
                "Conflict, cannot remove the default link name of the container",
            ));
        };
        let container = self
            .container(parent)
            .map_err(|_| Error::not_found(format!("Cannot get parent /{parent} for link name /{word}")))?;
        let _op = self.lock_op(&container).await?;
        let mut changed = Record::clone(&container.record());
        let before = changed.links.len();
        changed.links.retain(|link| link.alias != alias);
        if changed.links.len() == before {
            return Err(Error::new(ErrorKind::NotFound, format!("No such link: /{word}")));
        }
        self.records
            .put(container.id(), &changed, Durability::Disk)
            .await?;
        container.set_record(changed);
        let (record, state) = (container.record(), container.state());
        if state.status.has_process() {
            self.renew_name_files(&record, &state.endpoints)?;
        }
        Ok(())
    }

    /// The container that a link's name, `PARENT/ALIAS`, leads to.
    pub(super) fn linked(&self, name: &str) -> Option<Arc<Container>> {
        let (parent, alias) = name.strip_prefix('/').unwrap_or(name).split_once('/')?;
        let record = self.containers.find(parent).ok()?.record();
        let link = record.links.iter().find(|link| link.alias == alias)?;
        self.containers.get(&link.child)
    }
}

/// The address on the default bridge of a container that runs.
fn address(container: &Container) -> Option<IpAddr> {
    let state = container.state();
    let end = state.endpoints.get(NETWORK)?;
    state.status.has_process().then_some(end.address)
}

/// The variables of one link, in dockerd's order: ports by protocol (TCP first) and number, runs of ports, the link's name,
/// the linked container's own variables.
fn environment(name: &str, alias: &str, address: IpAddr, child: &Record, out: &mut Vec<String>) {
    let prefix = alias.to_uppercase().replace('-', "_");
    let mut ports: Vec<(String, u16)> = child
        .config
        .exposed_ports
        .keys()
        .filter_map(|port| parse_port(port).ok())
        .flat_map(|(range, protocol)| range.map(move |number| (protocol.to_string(), number)))
        .collect();
    ports.sort_by(|a, b| (a.0 != "tcp", a).cmp(&(b.0 != "tcp", b)));
    ports.dedup();
    let variable =
        |(protocol, number): &(String, u16)| format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
    let url = |(protocol, number): &(String, u16)| format!("{protocol}://{address}:{number}");
    if let Some(first) = ports.first() {
        out.push(format!("{prefix}_PORT={}", url(first)));
    }
    let mut start = 0;
    for (index, port) in ports.iter().enumerate() {
        let this = variable(port);
        out.push(format!("{this}={}", url(port)));
        out.push(format!("{this}_ADDR={address}"));
        out.push(format!("{this}_PORT={}", port.1));
        out.push(format!("{this}_PROTO={}", port.0));
        let goes_on = ports
            .get(index + 1)
            .is_some_and(|next| next.0 == port.0 && Some(next.1) == port.1.checked_add(1));
        if goes_on {
            continue;
        }
        if index > start {
            let first = &ports[start];
            let run = variable(first);
            out.push(format!("{run}_START={}", url(first)));
            out.push(format!("{run}_PORT_START={}", first.1));
            out.push(format!("{run}_END={}", url(port)));
            out.push(format!("{run}_PORT_END={}", port.1));
        }
        start = index + 1;
    }
    out.push(format!("{prefix}_NAME={name}"));
    for pair in &child.config.env {
        if let Some((key, value)) = pair.split_once('=')
            && !matches!(key, "HOME" | "PATH")
        {
            out.push(format!("{prefix}_ENV_{key}={value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_written_in_three_ways() {
        assert_eq!(parse("db").unwrap(), ("db", "db"));
        assert_eq!(parse("db:data").unwrap(), ("db", "data"));
        assert_eq!(parse("/db:/web/data").unwrap(), ("db", "data"));
        for bad in ["", "a:b:c", ":a", "a:"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_variables_are_dockers() {
        let mut child = Record::default();
        for port in ["6381/tcp", "6379/tcp", "6380/tcp", "53/udp"] {
            child.config.exposed_ports.insert(port.into(), Default::default());
        }
        child.config.env = vec!["PATH=/bin".into(), "PASSWORD=gordon".into(), "EMPTY".into()];
        let mut variables = Vec::new();
        let address = "172.0.17.2".parse().unwrap();
        environment("/web/the-db", "the-db", address, &child, &mut variables);
        let expected = "THE_DB_PORT=tcp://172.0.17.2:6379
THE_DB_PORT_6379_TCP=tcp://172.0.17.2:6379
THE_DB_PORT_6379_TCP_ADDR=172.0.17.2
THE_DB_PORT_6379_TCP_PORT=6379
THE_DB_PORT_6379_TCP_PROTO=tcp
THE_DB_PORT_6380_TCP=tcp://172.0.17.2:6380
THE_DB_PORT_6380_TCP_ADDR=172.0.17.2
THE_DB_PORT_6380_TCP_PORT=6380
THE_DB_PORT_6380_TCP_PROTO=tcp
THE_DB_PORT_6381_TCP=tcp://172.0.17.2:6381
THE_DB_PORT_6381_TCP_ADDR=172.0.17.2
THE_DB_PORT_6381_TCP_PORT=6381
THE_DB_PORT_6381_TCP_PROTO=tcp
THE_DB_PORT_6379_TCP_START=tcp://172.0.17.2:6379
THE_DB_PORT_6379_TCP_PORT_START=6379
THE_DB_PORT_6379_TCP_END=tcp://172.0.17.2:6381
THE_DB_PORT_6379_TCP_PORT_END=6381
THE_DB_PORT_53_UDP=udp://172.0.17.2:53
THE_DB_PORT_53_UDP_ADDR=172.0.17.2
THE_DB_PORT_53_UDP_PORT=53
THE_DB_PORT_53_UDP_PROTO=udp
THE_DB_NAME=/web/the-db
THE_DB_ENV_PASSWORD=gordon";
        assert_eq!(variables.join("\n"), expected);
    }
}
