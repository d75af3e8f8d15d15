//! `vessel network`

use std::net::IpAddr;

use ipnet::IpNet;
use vessel_api::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, Network, NetworkConnectRequest,
    NetworkCreateRequest, NetworkDisconnectRequest,
};

use super::{filters, for_each, ps};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::options::env;
use crate::output;
use crate::output::format::{Headers, Row, render};
use crate::output::text::short_id;

/// List networks
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only some: NAME=VALUE
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// table, json, or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Do not cut anything short
    #[arg(long)]
    no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: &Headers = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

impl Run for ListArgs {
    fn run(self, context: &Context) -> Result {
        let mut list = context.client()?.network_list(&filters(&self.filter)?)?;
        list.sort_by(|a, b| a.name.cmp(&b.name));
        let format = match &self.format {
            Some(format) if !format.is_empty() => format.as_str(),
            _ if self.quiet => "{{.ID}}",
            _ => "table",
        };
        let rows = list.iter().map(|network| row(network, !self.no_trunc)).collect();
        output::print(&render(
            format,
            "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
            HEADERS,
            rows,
        )?)?;
        Ok(())
    }
}

fn row(network: &Network, truncate: bool) -> Row {
    let created = network.created.parse::<jiff::Timestamp>().map(|time| {
        let time = time.to_zoned(jiff::tz::TimeZone::system());
        time.strftime("%Y-%m-%d %H:%M:%S.%f %z %Z").to_string()
    });
    Row::default()
        .text(
            "ID",
            if truncate {
                short_id(&network.id)
            } else {
                &network.id
            },
        )
        .text("Name", &network.name)
        .text("Driver", &network.driver)
        .text("Scope", &network.scope)
        .text("IPv4", "true")
        .text("IPv6", network.enable_ipv6.to_string())
        .text("Internal", network.internal.to_string())
        .text("Labels", ps::labels(&network.labels))
        .text("CreatedAt", created.unwrap_or_default())
        .labels(&network.labels)
}

/// Create a network
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Let containers be attached by hand
    #[arg(long)]
    attachable: bool,
    /// Addresses that are taken: NAME=ADDRESS
    #[arg(long, value_name = "map")]
    aux_address: Vec<String>,
    /// Network driver
    #[arg(short, long, value_name = "string", default_value = "bridge")]
    driver: String,
    /// Gateways of the subnets
    #[arg(long, value_name = "list")]
    gateway: Vec<String>,
    /// No way out of the network
    #[arg(long)]
    internal: bool,
    /// Ranges to allocate from
    #[arg(long, value_name = "list")]
    ip_range: Vec<String>,
    /// Driver of address management
    #[arg(long, value_name = "string", default_value = "default")]
    ipam_driver: String,
    /// Use IPv4; networks without it are not there
    #[arg(long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv4: Option<bool>,
    /// Use IPv6
    #[arg(long, value_name = "bool", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set, hide_default_value = true)]
    ipv6: bool,
    /// Set labels: NAME=VALUE
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Options of the driver: NAME=VALUE
    #[arg(short, long, value_name = "map")]
    opt: Vec<String>,
    /// Subnets, as ADDRESS/LENGTH
    #[arg(long, value_name = "list")]
    subnet: Vec<String>,
    /// Its name
    #[arg(value_name = "NETWORK")]
    name: String,
}

impl Run for CreateArgs {
    fn run(self, context: &Context) -> Result {
        let config = pools(&self.subnet, &self.ip_range, &self.gateway, &self.aux_address)?;
        let ipam = Ipam {
            driver: self.ipam_driver.clone(),
            config,
            ..Ipam::default()
        };
        let request = NetworkCreateRequest {
            name: self.name.clone(),
            check_duplicate: true,
            driver: self.driver.clone(),
            enable_ipv4: self.ipv4,
            enable_ipv6: self.ipv6,
            ipam: Some(ipam),
            internal: self.internal,
            attachable: self.attachable,
            options: env::to_map(&self.opt),
            labels: env::labels(&[], &self.label).map_err(Failure::usage)?,
            ..NetworkCreateRequest::default()
        };
        let created = context.client()?.network_create(&request)?;
        if !created.warning.is_empty() {
            output::warn(&format!("WARNING: {}", created.warning));
        }
        output::print_line(&created.id)?;
        Ok(())
    }
}

/// The subnets, each with the range, the gateway and the addresses that are in it.
fn pools(
    subnets: &[String],
    ranges: &[String],
    gateways: &[String],
    taken: &[String],
) -> Result<Vec<IpamConfig>> {
    let mut pools: Vec<(Option<IpNet>, IpamConfig)> = subnets
        .iter()
        .map(|subnet| {
            let config = IpamConfig {
                subnet: subnet.clone(),
                ..IpamConfig::default()
            };
            // What is no subnet is for the daemon to refuse.
            (subnet.parse().ok(), config)
        })
        .collect();
    let twice = |what: &str, text: &str| {
        Failure::new(format!(
            "cannot configure multiple {what} ({text}) on the same subnet"
        ))
    };
    if subnets.is_empty() && !(gateways.is_empty() && ranges.is_empty()) {
        return Err(Failure::new(
            "every ip-range or gateway must have a corresponding subnet",
        ));
    }
    for range in ranges {
        let config = pool_of(&mut pools, range)?;
        if !config.ip_range.is_empty() {
            return Err(twice("ranges", range));
        }
        config.ip_range.clone_from(range);
    }
    for gateway in gateways {
        let config = pool_of(&mut pools, gateway)?;
        if !config.gateway.is_empty() {
            return Err(twice("gateways", gateway));
        }
        config.gateway.clone_from(gateway);
    }
    for (name, address) in env::to_map(taken) {
        let config = pool_of(&mut pools, &address)?;
        config.auxiliary_addresses.insert(name, address);
    }
    Ok(pools.into_iter().map(|(_, config)| config).collect())
}

/// The subnet that an address, or a range, is in; the only one there is takes whatever it is, for the daemon to refuse.
fn pool_of<'a>(pools: &'a mut [(Option<IpNet>, IpamConfig)], text: &str) -> Result<&'a mut IpamConfig> {
    let address = text
        .split('/')
        .next()
        .and_then(|text| text.parse::<IpAddr>().ok());
    let one = pools.len() == 1;
    let within = pools.iter_mut().find(|(subnet, _)| {
        one || subnet
            .zip(address)
            .is_some_and(|(subnet, address)| subnet.contains(&address))
    });
    within
        .map(|(_, config)| config)
        .ok_or_else(|| Failure::new(format!("no matching subnet for {text}")))
}

/// Remove networks
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// No error when one is gone already
    #[arg(short, long)]
    force: bool,
    /// Networks
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
}

impl Run for RemoveArgs {
    fn run(self, context: &Context) -> Result {
        let client = context.client()?;
        for_each(&self.networks, |name| match client.network_remove(name) {
            Err(error) if self.force && error.is_not_found() => Ok(()),
            other => other,
        })
    }
}

/// Connect a container to a network
#[derive(Debug, clap::Args)]
pub struct ConnectArgs {
    /// Another name in the network
    #[arg(long, value_name = "list")]
    alias: Vec<String>,
    /// Options of the driver: NAME=VALUE
    #[arg(long, value_name = "list")]
    driver_opt: Vec<String>,
    /// The container's default route goes to the network that has the highest
    #[arg(
        long,
        value_name = "int",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    gw_priority: i64,
    /// IPv4 address
    #[arg(long, value_name = "ip", default_value = "", hide_default_value = true)]
    ip: String,
    /// IPv6 address
    #[arg(long, value_name = "ip", default_value = "", hide_default_value = true)]
    ip6: String,
    /// Link to another container
    #[arg(long, value_name = "list")]
    link: Vec<String>,
    /// The network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Run for ConnectArgs {
    fn run(self, context: &Context) -> Result {
        let ipam = EndpointIpamConfig {
            ipv4_address: self.ip,
            ipv6_address: self.ip6,
            ..Default::default()
        };
        let endpoint = EndpointSettings {
            ipam_config: (ipam != EndpointIpamConfig::default()).then_some(ipam),
            links: self.link,
            aliases: self.alias,
            driver_opts: env::to_map(&self.driver_opt),
            gw_priority: self.gw_priority,
            ..EndpointSettings::default()
        };
        let request = NetworkConnectRequest {
            container: self.container,
            endpoint_config: Some(endpoint),
        };
        Ok(context.client()?.network_connect(&self.network, &request)?)
    }
}

/// Disconnect a container from a network
#[derive(Debug, clap::Args)]
pub struct DisconnectArgs {
    /// Even when the container is gone
    #[arg(short, long)]
    force: bool,
    /// The network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Run for DisconnectArgs {
    fn run(self, context: &Context) -> Result {
        let request = NetworkDisconnectRequest {
            container: self.container,
            force: self.force,
        };
        Ok(context.client()?.network_disconnect(&self.network, &request)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn what_is_in_a_subnet_goes_with_it() {
        let found = pools(
            &list(&["172.28.0.0/16", "fd00:1::/64"]),
            &list(&["fd00:1::8000/113"]),
            &list(&["fd00:1::1", "172.28.0.1"]),
            &list(&["router=fd00:1::2"]),
        )
        .unwrap();
        assert_eq!(
            (found[0].gateway.as_str(), found[0].ip_range.as_str()),
            ("172.28.0.1", "")
        );
        assert_eq!(found[1].gateway, "fd00:1::1");
        assert_eq!(found[1].ip_range, "fd00:1::8000/113");
        assert_eq!(found[1].auxiliary_addresses["router"], "fd00:1::2");
        let two = list(&["172.28.0.0/16", "fd00:1::/64"]);
        assert!(pools(&two, &[], &list(&["10.0.0.1"]), &[]).is_err());
        assert!(pools(&two, &[], &list(&["172.28.0.1", "172.28.0.2"]), &[]).is_err());
        assert!(pools(&[], &[], &list(&["172.28.0.1"]), &[]).is_err());
    }
}
