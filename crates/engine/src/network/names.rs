//! The names that containers have on networks, and the DNS server that knows them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use vessel_network::dns::{self, Asker};
use vessel_network::files::ResolvConf;
use vessel_network::{EndpointRecord, Netns};
use vessel_runtime::shim::Held;

use super::attach::DEFAULT;
use super::{Networks, from_network, held};
use crate::container::Container;
use crate::container::prepare::open_namespace;
use crate::container::record::Record;
use crate::oci_spec::wall;
use crate::{Engine, Result};

/// Docker's last resort.
const PUBLIC: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 4, 4)),
];

/// Whether the DNS server is what a container with these ends asks: the default network has no names.
pub(crate) fn has_names<T>(endpoints: &BTreeMap<String, T>) -> bool {
    endpoints.keys().any(|network| network != DEFAULT)
}

/// Everything that leads to a container on a network, its name first.
pub(super) fn names_of(record: &Record, network: &str) -> Vec<String> {
    let aliases = record
        .networks
        .get(network)
        .map_or(&[][..], |settings| settings.aliases.as_slice());
    let mut names = Vec::new();
    for name in std::iter::once(record.name.as_str())
        .chain(aliases.iter().map(String::as_str))
        .chain([record.short_id(), record.config.hostname.as_str()])
    {
        if !name.is_empty() && !names.iter().any(|there| there == name) {
            names.push(name.to_owned());
        }
    }
    names
}

impl Networks {
    /// The server, started now if it is not yet.
    fn dns(&self) -> Result<&dns::Server> {
        if let Some(server) = self.dns.get() {
            return Ok(server);
        }
        let _starting = held(&self.starting_dns);
        if self.dns.get().is_none() {
            let server = dns::Server::start(std::sync::Arc::clone(&self.names)).map_err(from_network)?;
            let _ = self.dns.set(server);
        }
        match self.dns.get() {
            Some(server) => Ok(server),
            None => Err(crate::Error::system("the DNS server was not started")),
        }
    }

    /// Makes the names of a container known to others, and theirs to it.
    pub(crate) fn announce(
        &self,
        record: &Record,
        endpoints: &BTreeMap<String, EndpointRecord>,
        daemon_servers: &[IpAddr],
    ) {
        if !has_names(endpoints) {
            return;
        }
        for (network, end) in endpoints.iter().filter(|(network, _)| *network != DEFAULT) {
            let addresses: Vec<IpAddr> = end.addresses().collect();
            self.names
                .join(network, &record.id, &addresses, &names_of(record, network));
        }
        let closed = endpoints.keys().all(|network| self.is_internal(network));
        let links = record.networks.values().flat_map(|settings| &settings.links);
        let asker = Asker {
            networks: endpoints
                .keys()
                .filter(|network| *network != DEFAULT)
                .cloned()
                .collect(),
            links: links
                .map(|link| match link.split_once(':') {
                    Some((target, alias)) => (alias.to_owned(), target.to_owned()),
                    None => (link.clone(), link.clone()),
                })
                .collect(),
            // Who has no way out does not get one by names.
            servers: if closed {
                Vec::new()
            } else {
                servers(&record.host.dns, daemon_servers)
            },
        };
        self.names.set_asker(&record.id, asker);
    }

    /// Serves names inside a container's namespace, if it has any.
    pub(crate) fn serve_names(
        &self,
        id: &str,
        endpoints: &BTreeMap<String, EndpointRecord>,
        netns: BorrowedFd<'_>,
    ) -> Result<()> {
        if !has_names(endpoints) {
            return Ok(());
        }
        self.dns()?.serve(id, netns).map_err(from_network)
    }

    /// A container is not on a network any more.
    pub(super) fn leave(&self, id: &str, network: &str) {
        self.names.leave(network, id);
        // Said anew if there are others.
        self.names.remove_asker(id);
    }

    /// A container is on no network any more.
    pub(crate) fn forget(&self, id: &str, networks: impl Iterator<Item = impl AsRef<str>>) {
        let mut any = false;
        for network in networks.filter(|network| network.as_ref() != DEFAULT) {
            self.names.leave(network.as_ref(), id);
            any = true;
        }
        self.names.remove_asker(id);
        if any && let Some(server) = self.dns.get() {
            server.stop(id);
        }
    }
}

impl Engine {
    /// Takes up the names of a container that an earlier daemon started.
    pub(crate) fn adopt_names(&self, container: &Container) {
        let (record, state) = (container.record(), container.state());
        if !has_names(&state.endpoints) {
            return;
        }
        self.networks
            .announce(&record, &state.endpoints, &self.config.dns);
        let netns = match wall::is_machine(&record.host) {
            true => self.of_machine(&record.id, Held::Network),
            false => open_namespace(state.pid, "net"),
        };
        let served = netns.and_then(|netns| {
            let netns = Netns::from(netns);
            self.networks
                .serve_names(&record.id, &state.endpoints, netns.as_fd())
        });
        if let Err(error) = served {
            tracing::warn!(
                container = record.id,
                "{error}; the container finds no names until it is restarted"
            );
        }
    }

    /// Says the names of a container anew that has another name, or other networks.
    pub(crate) fn renew_names(&self, container: &Container) {
        let (record, state) = (container.record(), container.state());
        if state.status.has_process() {
            self.networks
                .announce(&record, &state.endpoints, &self.config.dns);
        }
    }
}

/// Whom to ask for what no network knows: asked by the daemon, so that servers on the host's loopback are as good as others.
fn servers(of_container: &[String], of_daemon: &[IpAddr]) -> Vec<IpAddr> {
    let parse =
        |list: &[String]| -> Vec<IpAddr> { list.iter().filter_map(|text| text.parse().ok()).collect() };
    let own = parse(of_container);
    if !own.is_empty() {
        return own;
    }
    if !of_daemon.is_empty() {
        return of_daemon.to_vec();
    }
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let host = parse(&ResolvConf::parse(&host).nameservers);
    if host.is_empty() { PUBLIC.to_vec() } else { host }
}

/// What the API calls `DNSNames`.
pub(super) fn dns_names(record: &Record, network: &str) -> Vec<String> {
    if network == DEFAULT {
        Vec::new()
    } else {
        names_of(record, network)
    }
}
