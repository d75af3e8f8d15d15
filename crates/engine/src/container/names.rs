//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container: files in its shim's directory that are mounted
//! over the image's.

use std::net::IpAddr;
use std::path::Path;

use vessel_network::dns;
use vessel_network::files::{Hosts, ResolvConf, UPSTREAM_RESOLV_CONF, for_endpoint, hostname};

use super::record::Record;
use crate::error::Context;
use crate::oci_spec::NameFiles;
use crate::oci_spec::modes::NetworkMode;
use crate::{Error, Result};

/// What the names of a container depend on beside its record.
pub(crate) struct Surroundings<'a> {
    pub mode: &'a NetworkMode,
    /// Its addresses on its networks.
    pub addresses: Vec<IpAddr>,
    /// Addresses of linked containers, with their names.
    pub links: Vec<(IpAddr, Vec<String>)>,
    /// Whether it asks the engine's own server, which knows the names of containers.
    pub own_server: bool,
    /// What `host-gateway` means, when there is a bridge.
    pub gateway: Option<IpAddr>,
    /// The daemon's name servers.
    pub dns: &'a [IpAddr],
    /// Who is root inside, when it is not the host's.
    pub owner: Option<u32>,
}

/// Writes the files into `directory`.
pub(crate) fn write(directory: &Path, record: &Record, around: &Surroundings<'_>) -> Result<NameFiles> {
    let write = |file: &str, text: &str| {
        let path = directory.join(file);
        std::fs::write(&path, text).context(|| format!("write {}", path.display()))?;
        if let Some(owner) = around.owner {
            std::os::unix::fs::chown(&path, Some(owner), Some(owner))
                .context(|| format!("set the owner of {}", path.display()))?;
        }
        Ok::<_, Error>(Some(path))
    };
    Ok(NameFiles {
        hosts: write("hosts", &hosts(record, around)?)?,
        hostname: write("hostname", &hostname(&record.config.hostname).map_err(invalid)?)?,
        resolv_conf: write("resolv.conf", &resolv_conf(record, around)?)?,
    })
}

/// Writes those files anew that depend on the networks, in place: they are mounted. What the container has written into them is
/// lost.
pub(crate) fn renew(directory: &Path, record: &Record, around: &Surroundings<'_>) -> Result<()> {
    for (file, text) in [
        ("hosts", hosts(record, around)?),
        ("resolv.conf", resolv_conf(record, around)?),
    ] {
        let path = directory.join(file);
        std::fs::write(&path, text).context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn hosts(record: &Record, around: &Surroundings<'_>) -> Result<String> {
    let host = &record.host;
    let name = &record.config.hostname;
    let full = match record.config.domainname.as_str() {
        "" => name.clone(),
        domain => format!("{name}.{domain}"),
    };
    Ok(if *around.mode == NetworkMode::Host {
        // The host's own, since it is the host's network; then what was added.
        let mut text = read("/etc/hosts");
        if !host.extra_hosts.is_empty() {
            let extra = Hosts {
                own: Vec::new(),
                extra: host.extra_hosts.clone(),
                host_gateway: around.gateway,
            };
            let rendered = extra.render().map_err(invalid)?;
            text.extend(
                rendered
                    .lines()
                    .rev()
                    .take(host.extra_hosts.len())
                    .map(|line| format!("{line}\n")),
            );
        }
        text
    } else {
        let names: Vec<String> = if full == *name {
            vec![name.clone()]
        } else {
            vec![full, name.clone()]
        };
        Hosts {
            // dockerd has the links first.
            own: around
                .links
                .iter()
                .cloned()
                .chain(around.addresses.iter().map(|address| (*address, names.clone())))
                .collect(),
            extra: host.extra_hosts.clone(),
            host_gateway: around.gateway,
        }
        .render()
        .map_err(invalid)?
    })
}

fn resolv_conf(record: &Record, around: &Surroundings<'_>) -> Result<String> {
    let host = &record.host;
    let mut resolv = if *around.mode == NetworkMode::Host {
        ResolvConf::parse(&read("/etc/resolv.conf"))
    } else {
        let upstream = std::fs::read_to_string(UPSTREAM_RESOLV_CONF).ok();
        for_endpoint(&read("/etc/resolv.conf"), upstream.as_deref())
    };
    let servers = if host.dns.is_empty() {
        around.dns.iter().map(IpAddr::to_string).collect()
    } else {
        host.dns.clone()
    };
    resolv
        .override_with(&servers, &host.dns_search, &host.dns_options)
        .map_err(invalid)?;
    if around.own_server {
        resolv.nameservers = vec![dns::ADDRESS.to_string()];
        // A name without dots is a container's before it is one of a search domain, as Docker has it.
        if !resolv.options.iter().any(|option| option.starts_with("ndots:")) {
            resolv.options.push("ndots:0".into());
        }
    }
    Ok(resolv.render())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn invalid(error: vessel_network::Error) -> Error {
    Error::invalid(error.to_string())
}
