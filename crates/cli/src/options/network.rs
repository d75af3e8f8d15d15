//! `--network` and what belongs to it.

use std::net::IpAddr;

use vessel_api::{ContainerConfig, EndpointIpamConfig, EndpointSettings, HostConfig, NetworkingConfig};

use super::{csv, ports};

/// Networks, names and ports.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkOptions {
    /// Connect to a network: bridge, host, none, container:ID or a name
    #[arg(long, visible_alias = "net", value_name = "network")]
    pub network: Vec<String>,
    /// Another name in the network
    #[arg(long, visible_alias = "net-alias", value_name = "list")]
    pub network_alias: Vec<String>,
    /// Publish ports: [[ADDRESS:][PORT]:]PORT[/PROTOCOL]
    #[arg(short = 'p', long, value_name = "list")]
    pub publish: Vec<String>,
    /// Publish all exposed ports to free ports of the host
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Expose ports: PORT[-PORT][/PROTOCOL]
    #[arg(long, value_name = "list")]
    pub expose: Vec<String>,
    /// Host name
    #[arg(
        short = 'h',
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub hostname: String,
    /// NIS domain name
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub domainname: String,
    /// Add a line to /etc/hosts: NAME:ADDRESS
    #[arg(long, value_name = "list")]
    pub add_host: Vec<String>,
    /// DNS servers
    #[arg(long, value_name = "list")]
    pub dns: Vec<String>,
    /// DNS options
    #[arg(long, visible_alias = "dns-opt", value_name = "list")]
    pub dns_option: Vec<String>,
    /// DNS search domains
    #[arg(long, value_name = "list")]
    pub dns_search: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "ip", default_value = "", hide_default_value = true)]
    pub ip: String,
    /// IPv6 address
    #[arg(long, value_name = "ip", default_value = "", hide_default_value = true)]
    pub ip6: String,
    /// Link-local addresses
    #[arg(long, value_name = "list")]
    pub link_local_ip: Vec<String>,
    /// Link to another container: NAME[:ALIAS]
    #[arg(long, value_name = "list")]
    pub link: Vec<String>,
    /// MAC address
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub mac_address: String,
}

impl NetworkOptions {
    /// Fills in its part of the request.
    pub fn fill(
        &self,
        config: &mut ContainerConfig,
        host: &mut HostConfig,
        networking: &mut NetworkingConfig,
    ) -> Result<(), String> {
        let ports = ports::parse(&self.publish, &self.expose)?;
        config.exposed_ports = ports.exposed;
        config.hostname = self.hostname.clone();
        config.domainname = self.domainname.clone();
        if !self.mac_address.is_empty() {
            check_mac(&self.mac_address)?;
        }
        host.port_bindings = ports.bindings;
        host.publish_all_ports = self.publish_all;
        host.extra_hosts = self
            .add_host
            .iter()
            .map(|spec| extra_host(spec))
            .collect::<Result<_, _>>()?;
        for server in &self.dns {
            address(server)?;
        }
        host.dns = self.dns.clone();
        host.dns_options = self.dns_option.clone();
        host.dns_search = self.dns_search.clone();
        host.links = self
            .link
            .iter()
            .map(|spec| link(spec))
            .collect::<Result<_, _>>()?;
        self.fill_endpoints(config, host, networking)
    }

    /// The first network is the container's mode; options without a network of their own belong to it.
    fn fill_endpoints(
        &self,
        config: &mut ContainerConfig,
        host: &mut HostConfig,
        networking: &mut NetworkingConfig,
    ) -> Result<(), String> {
        let mut networks = self
            .network
            .iter()
            .map(|spec| network(spec))
            .collect::<Result<Vec<_>, _>>()?;
        if networks.is_empty() {
            networks.push(("default".to_string(), EndpointSettings::default()));
        }
        let several = networks.len() > 1;
        for (index, (name, mut endpoint)) in networks.into_iter().enumerate() {
            let user_defined = is_user_defined(&name);
            if index == 0 {
                host.network_mode = name.clone();
                self.add_to_first(&name, user_defined, &mut endpoint)?;
                if !endpoint.mac_address.is_empty() {
                    config.mac_address = endpoint.mac_address.clone();
                }
            } else if !user_defined {
                return Err(format!(
                    "conflicting options: cannot attach both {} and {name}",
                    host.network_mode
                ));
            }
            if several && name == host.network_mode && index > 0 {
                return Err(format!("network \"{name}\" is specified multiple times"));
            }
            if endpoint != EndpointSettings::default() || user_defined {
                networking.endpoints_config.insert(name, endpoint);
            }
        }
        Ok(())
    }

    fn add_to_first(
        &self,
        name: &str,
        user_defined: bool,
        endpoint: &mut EndpointSettings,
    ) -> Result<(), String> {
        let has_addresses = !self.ip.is_empty() || !self.ip6.is_empty() || !self.link_local_ip.is_empty();
        let may_have_addresses = user_defined || matches!(name, "default" | "bridge");
        if has_addresses && !may_have_addresses {
            return Err(format!("conflicting options: an address and the network {name}"));
        }
        if has_addresses && endpoint.ipam_config.is_some() {
            return Err(
                "conflicting options: cannot specify both --ip and per-network addresses".to_string(),
            );
        }
        if !self.network_alias.is_empty() && !endpoint.aliases.is_empty() {
            return Err(
                "conflicting options: cannot specify both --network-alias and per-network alias".to_string(),
            );
        }
        if !self.network_alias.is_empty() && !user_defined {
            return Err("network-scoped aliases are only supported for user-defined networks".to_string());
        }
        for text in [&self.ip, &self.ip6]
            .into_iter()
            .filter(|text| !text.is_empty())
            .chain(&self.link_local_ip)
        {
            address(text)?;
        }
        if has_addresses {
            endpoint.ipam_config = Some(EndpointIpamConfig {
                ipv4_address: self.ip.clone(),
                ipv6_address: self.ip6.clone(),
                link_local_ips: self.link_local_ip.clone(),
            });
        }
        endpoint.aliases.extend(self.network_alias.iter().cloned());
        if user_defined {
            endpoint.links = self
                .link
                .iter()
                .map(|spec| link(spec))
                .collect::<Result<_, _>>()?;
        }
        if !self.mac_address.is_empty() {
            endpoint.mac_address = self.mac_address.clone();
        }
        Ok(())
    }
}

/// Whether a network is none of those every engine has.
fn is_user_defined(name: &str) -> bool {
    !matches!(name, "default" | "bridge" | "host" | "none") && !name.starts_with("container:")
}

/// `name`, or `name=NAME,alias=NAME,ip=ADDRESS,...`
fn network(spec: &str) -> Result<(String, EndpointSettings), String> {
    let mut endpoint = EndpointSettings::default();
    if !spec.contains('=') {
        if spec.is_empty() {
            return Err("network name/id is not specified".to_string());
        }
        return Ok((spec.to_string(), endpoint));
    }
    let mut name = String::new();
    for field in csv::parse(spec)? {
        let (key, value) = field
            .split_once('=')
            .filter(|(key, value)| !key.is_empty() && !value.is_empty())
            .ok_or_else(|| format!("invalid field {field}"))?;
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "name" => name = value.to_string(),
            "alias" => endpoint.aliases.push(value.to_string()),
            "ip" => {
                address(value)?;
                endpoint.ipam_config.get_or_insert_default().ipv4_address = value.to_string();
            }
            "ip6" => {
                address(value)?;
                endpoint.ipam_config.get_or_insert_default().ipv6_address = value.to_string();
            }
            "link-local-ip" => {
                address(value)?;
                endpoint
                    .ipam_config
                    .get_or_insert_default()
                    .link_local_ips
                    .push(value.to_string());
            }
            "mac-address" => {
                check_mac(value)?;
                endpoint.mac_address = value.to_string();
            }
            "driver-opt" => {
                let (option, value) = value
                    .split_once('=')
                    .ok_or_else(|| "invalid key value pair format in driver options".to_string())?;
                endpoint.driver_opts.insert(option.to_string(), value.to_string());
            }
            "gw-priority" => {
                endpoint.gw_priority = value
                    .parse()
                    .map_err(|_| format!("invalid gw-priority: {value}"))?;
            }
            _ => return Err(format!("invalid field key {key}")),
        }
    }
    if name.is_empty() {
        return Err("network name/id is not specified".to_string());
    }
    Ok((name, endpoint))
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text} is not an ip address"))
}

fn check_mac(text: &str) -> Result<(), String> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let parts: Vec<&str> = text.split(separator).collect();
    let hex = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    if matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(hex) {
        return Ok(());
    }
    Err(format!("{text} is not a valid mac address"))
}

fn extra_host(spec: &str) -> Result<String, String> {
    let (name, target) = spec
        .split_once('=')
        .or_else(|| spec.split_once(':'))
        .filter(|(name, _)| !name.is_empty() && !name.contains(':'))
        .ok_or_else(|| format!("bad format for add-host: \"{spec}\""))?;
    let target = target
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(target);
    if target != "host-gateway" && target.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address in add-host: \"{target}\""));
    }
    Ok(format!("{name}:{target}"))
}

fn link(spec: &str) -> Result<String, String> {
    let parts: Vec<&str> = spec.split(':').collect();
    match parts.as_slice() {
        [name] if !name.is_empty() => Ok(format!("{name}:{name}")),
        [name, alias] if !name.is_empty() && !alias.is_empty() => Ok(spec.to_string()),
        _ => Err(format!("bad format for links: {spec}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill(options: &NetworkOptions) -> Result<(ContainerConfig, HostConfig, NetworkingConfig), String> {
        let mut parts = (
            ContainerConfig::default(),
            HostConfig::default(),
            NetworkingConfig::default(),
        );
        options.fill(&mut parts.0, &mut parts.1, &mut parts.2)?;
        Ok(parts)
    }

    #[test]
    fn networks() {
        let (_, host, networking) = fill(&NetworkOptions::default()).unwrap();
        assert_eq!(
            (host.network_mode.as_str(), networking.endpoints_config.len()),
            ("default", 0)
        );
        let options = NetworkOptions {
            network: vec!["name=mine,alias=a,ip=10.0.0.2".into(), "other".into()],
            mac_address: "02:42:ac:11:00:02".into(),
            ..Default::default()
        };
        let (config, host, networking) = fill(&options).unwrap();
        assert_eq!(host.network_mode, "mine");
        assert_eq!(config.mac_address, "02:42:ac:11:00:02");
        let mine = &networking.endpoints_config["mine"];
        assert_eq!(
            (
                mine.aliases[0].as_str(),
                mine.ipam_config.as_ref().unwrap().ipv4_address.as_str()
            ),
            ("a", "10.0.0.2")
        );
        assert!(networking.endpoints_config.contains_key("other"));
        let wrong = |set: fn(&mut NetworkOptions)| {
            let mut options = NetworkOptions::default();
            set(&mut options);
            fill(&options).unwrap_err()
        };
        wrong(|o| o.network = vec!["mine".into(), "host".into()]);
        wrong(|o| o.network = vec!["alias=x".into()]);
        wrong(|o| o.ip = "x".into());
        wrong(|o| (o.network, o.ip) = (vec!["host".into()], "1.2.3.4".into()));
        wrong(|o| o.network_alias = vec!["x".into()]);
        wrong(|o| o.mac_address = "x".into());
        wrong(|o| o.dns = vec!["x".into()]);
    }

    #[test]
    fn hosts_and_links() {
        assert_eq!(extra_host("a:1.2.3.4").unwrap(), "a:1.2.3.4");
        assert_eq!(extra_host("a=[::1]").unwrap(), "a:::1");
        assert_eq!(extra_host("a:host-gateway").unwrap(), "a:host-gateway");
        for wrong in ["", "a", ":1.2.3.4", "a:b", "a:b=1.2.3.4"] {
            assert!(extra_host(wrong).is_err(), "{wrong}");
        }
        assert_eq!(link("a").unwrap(), "a:a");
        assert!(link("a:").is_err() && link("").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(spec in "[a-c/:=,0-9\".\\[\\]-]{0,24}") {
            let _ = (network(&spec), extra_host(&spec), link(&spec), check_mac(&spec));
        }
    }
}
