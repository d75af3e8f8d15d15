//! Making networks.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use vessel_api::{Ipam, IpamConfig, Map, NetworkCreateRequest, NetworkCreateResponse};
use vessel_network::{BridgeConfig, ConfigV6, GatewayMode, choose_subnet, choose_subnet_v6};

use super::parent::{self, IPVLAN, MACVLAN, leads_nowhere};
use super::{Link, NetworkRecord, Networks, UserNetwork, Wire, from_network, held};
use crate::removed::taken;
use crate::{Durability, Engine, Error, ErrorKind, Result, blocking};

/// Names that mean something else.
const RESERVED: [&str; 4] = ["bridge", "host", "none", "default"];
/// Where ports are published that name no address of the host.
pub(super) const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
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
        let warning = unused_subnet(&request);
        let record = blocking(move || engine.networks.create(&request, &engine.id)).await?;
        // The bridge exists: the network stays even if the disk refuses.
        self.networks.records.sync(Durability::Disk).await?;
        self.publish_network("create", &record.id, &record.name, record.driver(), None);
        Ok(NetworkCreateResponse {
            id: record.id,
            warning,
        })
    }
}

impl Networks {
    pub(super) fn create(&self, request: &NetworkCreateRequest, engine: &str) -> Result<NetworkRecord> {
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
        let record = self.settle_request(request, engine)?;
        self.establish(&record)?;
        Ok(record)
    }

    /// Makes a network again that was removed. Blocks.
    pub fn restore(&self, record: &NetworkRecord) -> Result<()> {
        let _making = held(&self.making);
        if held(&self.user).contains_key(&record.name) {
            return Err(taken("network", &record.name));
        }
        let others = self.user_networks();
        let bridge = &record.bridge.name;
        if self.bridge().is_some_and(|default| default.name() == bridge)
            || others.iter().any(|other| other.record.bridge.name == *bridge)
        {
            return Err(Error::conflict(format!(
                "the bridge {bridge} is another network's by now"
            )));
        }
        let subnets = record.bridge.subnet.map(IpNet::V4);
        let v6 = record.bridge.v6.as_ref().map(|v6| IpNet::V6(v6.subnet));
        for subnet in subnets.into_iter().chain(v6).filter(|_| !record.foreign) {
            check_overlap(subnet, &others)?;
        }
        let mut record = record.clone();
        if let Some(parent) = &mut record.parent {
            // By now it may be somebody else's.
            parent.ours = parent::is_made(&parent.name, parent.ours, &others)?;
        }
        self.establish(&record)
    }

    /// Records a network and makes its bridge. The caller makes networks.
    fn establish(&self, record: &NetworkRecord) -> Result<()> {
        let name = record.name.as_str();
        let network = UserNetwork {
            record: record.clone(),
            link: Default::default(),
        };
        self.records.put_now(&record.id, record)?;
        match Wire::make(&self.table, record) {
            Ok(wire) => {
                *held(&network.link) = Link {
                    wire: Some(wire),
                    ..Link::default()
                };
            }
            Err(error) => {
                self.undo(record);
                return Err(error.wrap(format!("cannot make the network {name}")));
            }
        }
        held(&self.user).insert(name.to_owned(), Arc::new(network));
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Nothing is left of a network whose bridge could not be made.
    fn undo(&self, record: &NetworkRecord) {
        let bridge = &record.bridge.name;
        let removed = match &record.parent {
            Some(_) => self.remove_parent(record),
            None if record.foreign => Ok(()),
            None => vessel_network::remove_bridge(bridge).map_err(from_network),
        };
        // Of a network without a bridge there are none.
        let removed = removed.and_then(|()| self.table.remove(bridge).map_err(from_network));
        if let Err(error) = removed {
            tracing::warn!("{error}");
        }
        if let Err(error) = self.records.delete_now(&record.id) {
            tracing::warn!("{error}; the next start of the daemon makes the network");
        }
    }

    /// Everything that was left open is chosen.
    fn settle_request(&self, request: &NetworkCreateRequest, engine: &str) -> Result<NetworkRecord> {
        let id = crate::ids::id();
        let others = self.user_networks();
        let reserved: Vec<Ipv4Net> = others
            .iter()
            .filter_map(|other| other.record.bridge.subnet)
            .collect();
        let ipam = request.ipam.clone().unwrap_or_default();
        let (asked, asked_v6) = pools_of(&ipam)?;
        let options = Options::read(&request.options)?;
        let parent = parent::asked(request, &id, &others)?;
        let isolated = [options.mode_v4, options.mode_v6].contains(&GatewayMode::Isolated);
        if isolated && !request.internal && parent.is_none() {
            return Err(Error::invalid(
                "gateway mode 'isolated' can only be used for an internal network (--internal)",
            ));
        }
        let internal = request.internal || parent.as_ref().is_some_and(leads_nowhere);
        let name = match (&parent, &options.name) {
            // No interface has this one.
            (Some(_), _) => format!("mv-{}", &id[..12]),
            (None, Some(name)) => name.clone(),
            (None, None) => format!("br-{}", &id[..12]),
        };
        if self.bridge().is_some_and(|bridge| bridge.name() == name)
            || others.iter().any(|other| other.record.bridge.name == name)
        {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!("the bridge {name} is another network's: networks cannot have the same bridge name"),
            ));
        }
        let foreign = match parent {
            Some(_) => false,
            None => vessel_network::bridge_exists(&name).map_err(from_network)?,
        };
        let subnet = match asked.subnet {
            Some(subnet) => Some(subnet),
            // That of the bridge there is.
            None if foreign => None,
            None => Some(choose_subnet(&reserved).map_err(from_network)?),
        };
        if let Some(wanted) = asked.subnet.filter(|_| !foreign) {
            check_overlap(wanted.into(), &others)?;
        }
        let v6 = match request.enable_ipv6 {
            true => Some(settle_v6(asked_v6.clone(), engine, &others)?),
            false => None,
        };
        let mut bridge = BridgeConfig {
            name,
            table: String::new(),
            subnet,
            gateway: asked.gateway,
            mtu: options.mtu,
            icc: options.icc,
            masquerade: options.masquerade,
            foreign,
            internal,
            range: asked.range,
            taken: asked.taken,
            v6,
            mode_v4: options.mode_v4,
            mode_v6: options.mode_v6,
        };
        if let Some(subnet) = subnet {
            bridge.gateway = Some(vessel_network::gateway_of(&bridge, subnet).map_err(from_network)?);
        }
        let shown = shown(asked.given, subnet, bridge.gateway);
        let shown_v6 = bridge
            .v6
            .as_ref()
            .map(|v6| self::shown(asked_v6.given, Some(v6.subnet), v6.gateway));
        Ok(NetworkRecord {
            id,
            name: request.name.clone(),
            created: crate::time::now(),
            internal,
            attachable: request.attachable,
            options: request.options.clone(),
            labels: request.labels.clone(),
            ipam_driver: match ipam.driver.as_str() {
                "" => "default".into(),
                driver => driver.to_owned(),
            },
            ipam_options: ipam.options,
            ipam: shown,
            ipam_v6: shown_v6,
            bridge,
            parent,
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
        "" | "bridge" | "default" | MACVLAN | IPVLAN => {}
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
        driver => {
            return Err(Error::not_found(format!(
                "could not find plugin {driver} in v1 plugin registry: plugin not found"
            )));
        }
    }
    if request.enable_ipv4 == Some(false) {
        return Err(Error::unsupported(
            "networks without IPv4 are not there: make the network with both, by --ipv6 alone",
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
    mode_v4: GatewayMode,
    mode_v6: GatewayMode,
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
        let mode = |family: &str| match option(&format!("com.docker.network.bridge.gateway_mode_{family}")) {
            None | Some("nat") => Ok(GatewayMode::Nat),
            Some("routed") => Ok(GatewayMode::Routed),
            Some("isolated") => Ok(GatewayMode::Isolated),
            Some("nat-unprotected") => Err(Error::unsupported(
                "the gateway mode nat-unprotected is not there: publish the ports that are to be reached, or use routed",
            )),
            Some(mode) => Err(Error::invalid(format!(
                "unknown gateway mode {mode}: nat, routed or isolated is expected"
            ))),
        };
        if let Some(address) = option(HOST_BINDING)
            && address.parse::<Ipv4Addr>().is_err()
        {
            return Err(bad(HOST_BINDING, address));
        }
        const MTU: &str = "com.docker.network.driver.mtu";
        Ok(Self {
            name: option("com.docker.network.bridge.name").map(str::to_owned),
            mode_v4: mode("ipv4")?,
            mode_v6: mode("ipv6")?,
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

/// What was asked for of the addresses of one family.
#[derive(Debug, Clone)]
struct AddressPool<N, A> {
    subnet: Option<N>,
    gateway: Option<A>,
    range: Option<N>,
    taken: Vec<A>,
    /// As it was said.
    given: IpamConfig,
}

impl<N, A> Default for AddressPool<N, A> {
    fn default() -> Self {
        Self {
            subnet: None,
            gateway: None,
            range: None,
            taken: Vec::new(),
            given: IpamConfig::default(),
        }
    }
}

type PoolV4 = AddressPool<Ipv4Net, Ipv4Addr>;
type PoolV6 = AddressPool<Ipv6Net, Ipv6Addr>;

/// A pool of each family.
fn pools_of(ipam: &Ipam) -> Result<(PoolV4, PoolV6)> {
    if !matches!(ipam.driver.as_str(), "" | "default") {
        return Err(Error::not_found(format!("plugin \"{}\" not found", ipam.driver)));
    }
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for config in &ipam.config {
        if config.subnet.is_empty()
            && !(config.ip_range.is_empty()
                && config.gateway.is_empty()
                && config.auxiliary_addresses.is_empty())
        {
            return Err(Error::invalid(
                "an IP range, a gateway or auxiliary addresses need the subnet that they are in",
            ));
        }
        match config.subnet.parse() {
            Ok(IpNet::V6(_)) => v6.push(config),
            Ok(IpNet::V4(_)) => v4.push(config),
            // Nothing of it was said.
            Err(_) if config.subnet.is_empty() => {}
            Err(_) => {
                return Err(Error::invalid(format!(
                    "invalid subnet {}: it must be written as ADDRESS/LENGTH",
                    config.subnet
                )));
            }
        }
    }
    if v4.len() > 1 || v6.len() > 1 {
        return Err(Error::new(
            ErrorKind::Forbidden,
            "bridge driver doesn't support multiple subnets: a network has one of IPv4 and one of IPv6",
        ));
    }
    let v4 = v4.first().map(|config| pool_of(config, "IPv4"));
    let v6 = v6.first().map(|config| pool_of(config, "IPv6"));
    Ok((
        v4.transpose()?.unwrap_or_default(),
        v6.transpose()?.unwrap_or_default(),
    ))
}

fn pool_of<N: FromStr, A: FromStr>(config: &IpamConfig, family: &str) -> Result<AddressPool<N, A>> {
    let net = |what: &str, text: &str| -> Result<Option<N>> {
        // Without the bits that are not the network's.
        let net = match text {
            "" => return Ok(None),
            text => text.parse::<IpNet>().map(|net| net.trunc().to_string()),
        };
        match net.ok().and_then(|net| net.parse().ok()) {
            Some(net) => Ok(Some(net)),
            None => Err(Error::invalid(format!(
                "invalid {what} {text}: it must be written as ADDRESS/LENGTH, of {family} as the subnet"
            ))),
        }
    };
    let address = |what: &str, text: &str| {
        text.parse::<A>()
            .map_err(|_| Error::invalid(format!("invalid {what} {text}: it must be an {family} address")))
    };
    Ok(AddressPool {
        subnet: net("subnet", &config.subnet)?,
        range: net("IP range", &config.ip_range)?,
        gateway: match config.gateway.as_str() {
            "" => None,
            text => Some(address("gateway", text)?),
        },
        taken: config
            .auxiliary_addresses
            .values()
            .map(|text| address("auxiliary address", text))
            .collect::<Result<_>>()?,
        given: config.clone(),
    })
}

/// What the network shows of a pool: as it was said, with what was chosen.
fn shown(
    mut given: IpamConfig,
    subnet: Option<impl std::fmt::Display>,
    gateway: Option<impl std::fmt::Display>,
) -> IpamConfig {
    if let Some(subnet) = subnet.filter(|_| given.subnet.is_empty()) {
        given.subnet = subnet.to_string();
    }
    if let Some(gateway) = gateway.filter(|_| given.gateway.is_empty()) {
        given.gateway = gateway.to_string();
    }
    given
}

/// The network's IPv6, everything of it chosen. Subnets that nobody asked for are those of this engine's own site (RFC 4193).
fn settle_v6(asked: PoolV6, engine: &str, others: &[Arc<UserNetwork>]) -> Result<ConfigV6> {
    let subnet = match asked.subnet {
        Some(subnet) => {
            check_overlap(subnet.into(), others)?;
            subnet
        }
        None => {
            let reserved: Vec<Ipv6Net> = others
                .iter()
                .filter_map(|other| other.record.bridge.v6.as_ref())
                .map(|v6| v6.subnet)
                .collect();
            own_subnet_v6(engine, &reserved)?
        }
    };
    let mut v6 = ConfigV6 {
        subnet,
        gateway: asked.gateway,
        range: asked.range,
        taken: asked.taken,
    };
    v6.gateway = Some(vessel_network::gateway_v6_of(&v6).map_err(from_network)?);
    Ok(v6)
}

/// A free subnet of this engine's own site.
pub(super) fn own_subnet_v6(engine: &str, reserved: &[Ipv6Net]) -> Result<Ipv6Net> {
    let site = super::network_id(engine, "site");
    let site = u64::from_str_radix(&site[..10], 16).unwrap_or(0);
    choose_subnet_v6(site, reserved).map_err(from_network)
}

/// What is to be said of a subnet that has no effect: Docker passes over it, in silence.
fn unused_subnet(request: &NetworkCreateRequest) -> String {
    let configs = request.ipam.iter().flat_map(|ipam| &ipam.config);
    let unused = configs
        .map(|config| config.subnet.as_str())
        .find(|subnet| matches!(subnet.parse(), Ok(IpNet::V6(_))));
    match unused {
        Some(subnet) if !request.enable_ipv6 => {
            format!("the subnet {subnet} has no effect: the network was not asked to have IPv6 (--ipv6)")
        }
        _ => String::new(),
    }
}

fn check_overlap(wanted: IpNet, others: &[Arc<UserNetwork>]) -> Result<()> {
    let clash = others.iter().find(|other| {
        let bridge = &other.record.bridge;
        let v4 = bridge.subnet.map(IpNet::V4);
        let v6 = bridge.v6.as_ref().map(|v6| IpNet::V6(v6.subnet));
        v4.into_iter()
            .chain(v6)
            .any(|there| there.contains(&wanted.network()) || wanted.contains(&there.network()))
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
        check(&request(|r| r.driver = "macvlan".into())).unwrap();
        assert_eq!(kind("nonsense"), ErrorKind::NotFound);
        assert!(check(&request(|r| r.enable_ipv4 = Some(false))).is_err());
    }

    #[test]
    fn addresses_need_their_subnet() {
        let pool = |subnet: &str, range: &str, gateway: &str| {
            pools_of(&Ipam {
                config: vec![IpamConfig {
                    subnet: subnet.into(),
                    ip_range: range.into(),
                    gateway: gateway.into(),
                    ..Default::default()
                }],
                ..Default::default()
            })
        };
        let (good, none) = pool("172.28.0.0/16", "172.28.5.0/24", "172.28.5.254").unwrap();
        assert!(none.subnet.is_none());
        assert_eq!(good.subnet.unwrap().to_string(), "172.28.0.0/16");
        assert_eq!(good.range.unwrap().to_string(), "172.28.5.0/24");
        assert!(pool("", "", "172.28.5.254").is_err());
        assert!(pool("172.28.0.0", "", "").is_err());
        let (none, good) = pool("2001:db8::/64", "2001:db8::8000/113", "2001:db8::1").unwrap();
        assert!(none.subnet.is_none() && none.given == IpamConfig::default());
        assert_eq!(good.range.unwrap().to_string(), "2001:db8::8000/113");
        assert!(pool("2001:db8::/64", "", "172.28.5.254").is_err());
        assert!(pool("2001:db8::/64", "172.28.5.0/24", "").is_err());
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
        assert!(options(HOST_BINDING, "127.0.0.1").is_ok() && options(HOST_BINDING, "lo").is_err());
        let mode = "com.docker.network.bridge.gateway_mode_ipv6";
        assert_eq!(options(mode, "nat").unwrap().mode_v6, GatewayMode::Nat);
        assert_eq!(options(mode, "routed").unwrap().mode_v6, GatewayMode::Routed);
        assert!(options(mode, "nat-unprotected").is_err() && options(mode, "bridged").is_err());
        assert!(options("com.example.other", "x").unwrap().masquerade);
    }
    #[test]
    fn a_network_has_one_subnet_of_each_family() {
        let ipam = |subnets: &[&str]| Ipam {
            config: subnets
                .iter()
                .map(|subnet| IpamConfig {
                    subnet: (*subnet).into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let (v4, v6) = pools_of(&ipam(&["fd00:1::/64", "172.28.0.0/16"])).unwrap();
        assert!(v4.subnet.is_some() && v6.subnet.is_some());
        for twice in [["172.28.0.0/16", "172.29.0.0/16"], ["fd00:1::/64", "fd00:2::/64"]] {
            assert_eq!(pools_of(&ipam(&twice)).unwrap_err().kind(), ErrorKind::Forbidden);
        }
        let asked = |enable_ipv6| {
            unused_subnet(&request(|r| {
                r.ipam = Some(ipam(&["172.28.0.0/16", "fd00:1::/64"]));
                r.enable_ipv6 = enable_ipv6;
            }))
        };
        assert!(asked(false).contains("fd00:1::/64") && asked(true).is_empty());
    }
}
