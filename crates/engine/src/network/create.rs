//! Making networks.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use vessel_api::{Ipam, IpamConfig, Map, NetworkCreateRequest, NetworkCreateResponse};
use vessel_network::{BridgeConfig, choose_subnet};

use super::{Link, NetworkRecord, Networks, UserNetwork, from_network, held, make_bridge};
use crate::{Durability, Engine, Error, ErrorKind, Result, blocking};

/// Names that mean something else.
const RESERVED: [&str; 4] = ["bridge", "host", "none", "default"];
/// What a name may be long: it is part of file names and messages of others.
const MAX_NAME: usize = 255;

impl Engine {
    /// Makes a network.
    ///
    /// # Errors
    /// A name taken; a driver or an address family that is not there; a subnet that overlaps another.
    pub async fn network_create(
        self: &Arc<Self>,
        request: NetworkCreateRequest,
    ) -> Result<NetworkCreateResponse> {
        let engine = Arc::clone(self);
        let record = blocking(move || engine.networks.create(&request)).await?;
        // The bridge exists: the network stays even if the disk refuses.
        self.networks.records.sync(Durability::Disk).await?;
        self.publish_network("create", &record.id, &record.name, "bridge", None);
        Ok(NetworkCreateResponse {
            id: record.id,
            warning: String::new(),
        })
    }
}

impl Networks {
    fn create(&self, request: &NetworkCreateRequest) -> Result<NetworkRecord> {
        check(request)?;
        let name = request.name.as_str();
        let _making = held(&self.making);
        if RESERVED.contains(&name) {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!("operation is not permitted on predefined {name} network"),
            ));
        }
        if held(&self.user).contains_key(name) {
            return Err(Error::conflict(format!(
                "network with name {name} already exists"
            )));
        }
        let record = self.settle_request(request)?;
        let network = UserNetwork {
            record: record.clone(),
            link: Default::default(),
        };
        self.records.put_now(&record.id, &record)?;
        match make_bridge(&self.table, &record.bridge) {
            Ok(bridge) => {
                *held(&network.link) = Link {
                    bridge: Some(bridge),
                    ..Link::default()
                };
            }
            Err(error) => {
                self.undo(&record);
                return Err(error.wrap(format!("cannot make the network {name}")));
            }
        }
        held(&self.user).insert(name.to_owned(), Arc::new(network));
        Ok(record)
    }

    /// Nothing is left of a network whose bridge could not be made.
    fn undo(&self, record: &NetworkRecord) {
        if !record.foreign
            && let Err(error) = vessel_network::remove_bridge(&record.bridge.name)
        {
            tracing::warn!("{error}");
        }
        if let Err(error) = self.records.delete_now(&record.id) {
            tracing::warn!("{error}; the next start of the daemon makes the network");
        }
    }

    /// Everything that was left open is chosen.
    fn settle_request(&self, request: &NetworkCreateRequest) -> Result<NetworkRecord> {
        let id = crate::ids::id();
        let others = self.user_networks();
        let reserved: Vec<Ipv4Net> = others
            .iter()
            .filter_map(|other| other.record.bridge.subnet)
            .collect();
        let ipam = request.ipam.clone().unwrap_or_default();
        let asked = pool_of(&ipam)?;
        let options = Options::read(&request.options)?;
        let name = options
            .name
            .clone()
            .unwrap_or_else(|| format!("br-{}", &id[..12]));
        if self.bridge().is_some_and(|bridge| bridge.name() == name)
            || others.iter().any(|other| other.record.bridge.name == name)
        {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!("the bridge {name} is another network's: networks cannot have the same bridge name"),
            ));
        }
        let foreign = vessel_network::bridge_exists(&name).map_err(from_network)?;
        let subnet = match asked.subnet {
            Some(subnet) => Some(subnet),
            // That of the bridge there is.
            None if foreign => None,
            None => Some(choose_subnet(&reserved).map_err(from_network)?),
        };
        if let Some(wanted) = asked.subnet.filter(|_| !foreign) {
            check_overlap(wanted, &others)?;
        }
        let mut bridge = BridgeConfig {
            name,
            table: String::new(),
            subnet,
            gateway: asked.gateway,
            mtu: options.mtu,
            icc: options.icc,
            masquerade: options.masquerade,
            internal: request.internal,
            range: asked.range,
            taken: asked.taken,
        };
        if let Some(subnet) = subnet {
            bridge.gateway = Some(vessel_network::gateway_of(&bridge, subnet).map_err(from_network)?);
        }
        let mut shown = ipam.config.first().cloned().unwrap_or_default();
        if let Some(subnet) = subnet.filter(|_| shown.subnet.is_empty()) {
            shown.subnet = subnet.to_string();
        }
        if let Some(gateway) = bridge.gateway.filter(|_| shown.gateway.is_empty()) {
            shown.gateway = gateway.to_string();
        }
        Ok(NetworkRecord {
            id,
            name: request.name.clone(),
            created: crate::time::now(),
            internal: request.internal,
            attachable: request.attachable,
            options: request.options.clone(),
            labels: request.labels.clone(),
            ipam_driver: match ipam.driver.as_str() {
                "" => "default".into(),
                driver => driver.to_owned(),
            },
            ipam_options: ipam.options,
            ipam: shown,
            bridge,
            foreign,
        })
    }
}

fn check(request: &NetworkCreateRequest) -> Result<()> {
    let name = request.name.as_str();
    if name.trim().is_empty() {
        return Err(Error::invalid("invalid network name: it must not be empty"));
    }
    if name.len() > MAX_NAME || name.chars().any(char::is_control) || name.contains(['/', ':']) {
        return Err(Error::invalid(format!(
            "invalid network name {}: at most {MAX_NAME} bytes without `/`, `:` and control characters",
            name.escape_debug()
        )));
    }
    match request.driver.as_str() {
        "" | "bridge" | "default" => {}
        driver @ ("host" | "null") => {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!("only one instance of \"{driver}\" network is allowed"),
            ));
        }
        "overlay" => {
            return Err(Error::new(
                ErrorKind::Forbidden,
                "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
            ));
        }
        driver @ ("macvlan" | "ipvlan") => {
            return Err(Error::unsupported(format!(
                "networks of the driver {driver} are not there yet: use the driver bridge"
            )));
        }
        driver => {
            return Err(Error::not_found(format!(
                "could not find plugin {driver} in v1 plugin registry: plugin not found"
            )));
        }
    }
    if request.enable_ipv6 {
        return Err(Error::unsupported(
            "IPv6 networks are not there yet: make the network without --ipv6",
        ));
    }
    if request.ingress
        || request.config_only
        || request
            .config_from
            .as_ref()
            .is_some_and(|from| !from.network.is_empty())
    {
        return Err(Error::unsupported(
            "networks of a swarm (ingress) and networks that are configurations of others are not there: this engine has no swarm mode",
        ));
    }
    if !matches!(request.scope.as_str(), "" | "local") {
        return Err(Error::invalid(format!(
            "the scope {} is not there: networks are local",
            request.scope
        )));
    }
    Ok(())
}

/// Docker's options of bridges.
struct Options {
    name: Option<String>,
    icc: bool,
    masquerade: bool,
    mtu: Option<u32>,
}

impl Options {
    /// Options that are not known are kept and have no effect, as with Docker.
    fn read(options: &Map<String>) -> Result<Self> {
        let option = |key: &str| {
            options
                .get(key)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let bad =
            |key: &str, value: &str| Error::invalid(format!("the option {key}={value} has no such value"));
        let flag = |key: &str| match option(key) {
            None => Ok(true),
            Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
            Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
            Some(value) => Err(bad(key, value)),
        };
        const MTU: &str = "com.docker.network.driver.mtu";
        Ok(Self {
            name: option("com.docker.network.bridge.name").map(str::to_owned),
            icc: flag("com.docker.network.bridge.enable_icc")?,
            masquerade: flag("com.docker.network.bridge.enable_ip_masquerade")?,
            mtu: match option(MTU) {
                None => None,
                Some(value) => match value.parse() {
                    Ok(0) => None,
                    Ok(mtu) => Some(mtu),
                    Err(_) => return Err(bad(MTU, value)),
                },
            },
        })
    }
}

/// What was asked for of the addresses.
#[derive(Default)]
struct AddressPool {
    subnet: Option<Ipv4Net>,
    gateway: Option<Ipv4Addr>,
    range: Option<Ipv4Net>,
    taken: Vec<Ipv4Addr>,
}

fn pool_of(ipam: &Ipam) -> Result<AddressPool> {
    if !matches!(ipam.driver.as_str(), "" | "default") {
        return Err(Error::not_found(format!("plugin \"{}\" not found", ipam.driver)));
    }
    if ipam.config.len() > 1 {
        return Err(Error::unsupported(
            "a network has one subnet here: make several networks and connect containers to each",
        ));
    }
    let Some(config) = ipam.config.first() else {
        return Ok(AddressPool::default());
    };
    let IpamConfig {
        subnet,
        ip_range,
        gateway,
        auxiliary_addresses,
    } = config;
    if subnet.is_empty() && !(ip_range.is_empty() && gateway.is_empty() && auxiliary_addresses.is_empty()) {
        return Err(Error::invalid(
            "an IP range, a gateway or auxiliary addresses need the subnet that they are in",
        ));
    }
    let net = |what: &str, text: &str| -> Result<Option<Ipv4Net>> {
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<ipnet::IpNet>() {
            Ok(ipnet::IpNet::V4(net)) => Ok(Some(net.trunc())),
            Ok(ipnet::IpNet::V6(_)) => Err(Error::unsupported(format!(
                "the {what} {text} is one of IPv6, which is not there yet"
            ))),
            Err(_) => Err(Error::invalid(format!(
                "invalid {what} {text}: it must be written as ADDRESS/LENGTH"
            ))),
        }
    };
    let address = |what: &str, text: &str| {
        text.parse::<Ipv4Addr>()
            .map_err(|_| Error::invalid(format!("invalid {what} {text}: it must be an IPv4 address")))
    };
    Ok(AddressPool {
        subnet: net("subnet", subnet)?,
        range: net("IP range", ip_range)?,
        gateway: match gateway.as_str() {
            "" => None,
            text => Some(address("gateway", text)?),
        },
        taken: auxiliary_addresses
            .values()
            .map(|text| address("auxiliary address", text))
            .collect::<Result<_>>()?,
    })
}

fn check_overlap(wanted: Ipv4Net, others: &[Arc<UserNetwork>]) -> Result<()> {
    let clash = others.iter().find(|other| {
        other
            .record
            .bridge
            .subnet
            .is_some_and(|there| there.contains(&wanted.network()) || wanted.contains(&there.network()))
    });
    match clash {
        Some(other) => Err(Error::new(
            ErrorKind::Forbidden,
            format!(
                "Pool overlaps with other one on this address space: the subnet {wanted} overlaps that of the network {}",
                other.record.name
            ),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut NetworkCreateRequest)) -> NetworkCreateRequest {
        let mut request = NetworkCreateRequest {
            name: "n".into(),
            ..Default::default()
        };
        change(&mut request);
        request
    }

    #[test]
    fn what_is_not_there_is_said() {
        check(&request(|_| ())).unwrap();
        check(&request(|r| r.name = "test 01".into())).unwrap();
        for bad in ["", " ", "a/b", "container:x", "a\nb"] {
            assert!(check(&request(|r| r.name = bad.into())).is_err(), "{bad:?}");
        }
        let kind = |driver: &str| check(&request(|r| r.driver = driver.into())).unwrap_err().kind();
        assert_eq!(kind("host"), ErrorKind::Forbidden);
        assert_eq!(kind("macvlan"), ErrorKind::Unsupported);
        assert_eq!(kind("nonsense"), ErrorKind::NotFound);
        assert!(check(&request(|r| r.enable_ipv6 = true)).is_err());
    }

    #[test]
    fn addresses_need_their_subnet() {
        let pool = |subnet: &str, range: &str, gateway: &str| {
            pool_of(&Ipam {
                config: vec![IpamConfig {
                    subnet: subnet.into(),
                    ip_range: range.into(),
                    gateway: gateway.into(),
                    ..Default::default()
                }],
                ..Default::default()
            })
        };
        let good = pool("172.28.0.0/16", "172.28.5.0/24", "172.28.5.254").unwrap();
        assert_eq!(good.subnet.unwrap().to_string(), "172.28.0.0/16");
        assert_eq!(good.range.unwrap().to_string(), "172.28.5.0/24");
        assert!(pool("", "", "172.28.5.254").is_err());
        assert!(pool("172.28.0.0", "", "").is_err());
        assert!(pool("2001:db8::/64", "", "").is_err());
        assert!(pool("172.28.0.0/16", "", "nobody").is_err());
    }

    #[test]
    fn options_are_dockers() {
        let options =
            |key: &str, value: &str| Options::read(&Map::from([(key.to_owned(), value.to_owned())]));
        assert!(
            !options("com.docker.network.bridge.enable_icc", "false")
                .unwrap()
                .icc
        );
        assert_eq!(
            options("com.docker.network.driver.mtu", "1400").unwrap().mtu,
            Some(1400)
        );
        assert!(options("com.docker.network.driver.mtu", "many").is_err());
        assert!(options("com.example.other", "x").unwrap().masquerade);
    }
}
