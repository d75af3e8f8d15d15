//! Networks and a container's place in them.

use crate::json::{Map, empty, model, null_if_empty};

model! {
    /// The networks a container joins when it is created.
    pub struct NetworkingConfig {
        pub endpoints_config: Map<EndpointSettings>,
    }

    /// A container's end of a network: first what is asked for, then what is.
    pub struct EndpointSettings {
        #[serde(rename = "IPAMConfig")]
        pub ipam_config: Option<EndpointIpamConfig>,
        #[serde(serialize_with = "null_if_empty")]
        pub links: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        pub aliases: Vec<String>,
        pub mac_address: String,
        #[serde(serialize_with = "null_if_empty")]
        pub driver_opts: Map<String>,
        #[serde(skip_serializing_if = "empty")]
        pub gw_priority: i64,
        #[serde(rename = "NetworkID")]
        pub network_id: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub gateway: String,
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: u32,
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: u32,
        #[serde(rename = "DNSNames", skip_serializing_if = "empty")]
        pub dns_names: Vec<String>,
    }

    /// Addresses asked for.
    pub struct EndpointIpamConfig {
        #[serde(rename = "IPv4Address", skip_serializing_if = "empty")]
        pub ipv4_address: String,
        #[serde(rename = "IPv6Address", skip_serializing_if = "empty")]
        pub ipv6_address: String,
        #[serde(rename = "LinkLocalIPs", skip_serializing_if = "empty")]
        pub link_local_ips: Vec<String>,
    }

    /// A network, in `GET /networks` and `GET /networks/{id}`.
    pub struct Network {
        pub name: String,
        pub id: String,
        pub created: String,
        /// `local`, `global` or `swarm`.
        pub scope: String,
        pub driver: String,
        /// Since 1.48.
        #[serde(rename = "EnableIPv4", skip_serializing_if = "empty")]
        pub enable_ipv4: bool,
        #[serde(rename = "EnableIPv6")]
        pub enable_ipv6: bool,
        #[serde(rename = "IPAM")]
        pub ipam: Ipam,
        pub internal: bool,
        pub attachable: bool,
        pub ingress: bool,
        pub config_from: ConfigReference,
        pub config_only: bool,
        /// By container ID; empty in the list.
        pub containers: Map<EndpointResource>,
        pub options: Map<String>,
        pub labels: Map<String>,
    }

    /// The network a configuration is taken from.
    pub struct ConfigReference {
        pub network: String,
    }

    /// Address management of a network.
    pub struct Ipam {
        pub driver: String,
        #[serde(serialize_with = "null_if_empty")]
        pub options: Map<String>,
        pub config: Vec<IpamConfig>,
    }

    /// One address pool.
    pub struct IpamConfig {
        #[serde(skip_serializing_if = "empty")]
        pub subnet: String,
        #[serde(rename = "IPRange", skip_serializing_if = "empty")]
        pub ip_range: String,
        #[serde(skip_serializing_if = "empty")]
        pub gateway: String,
        #[serde(rename = "AuxiliaryAddresses", skip_serializing_if = "empty")]
        pub auxiliary_addresses: Map<String>,
    }

    /// A container in a network.
    pub struct EndpointResource {
        pub name: String,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub mac_address: String,
        /// With its prefix length.
        #[serde(rename = "IPv4Address")]
        pub ipv4_address: String,
        #[serde(rename = "IPv6Address")]
        pub ipv6_address: String,
    }

    /// The body of `POST /networks/create`.
    pub struct NetworkCreateRequest {
        pub name: String,
        #[serde(skip_serializing_if = "empty")]
        pub check_duplicate: bool,
        pub driver: String,
        #[serde(skip_serializing_if = "empty")]
        pub scope: String,
        /// Since 1.48.
        #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
        pub enable_ipv4: Option<bool>,
        #[serde(rename = "EnableIPv6")]
        pub enable_ipv6: bool,
        #[serde(rename = "IPAM")]
        pub ipam: Option<Ipam>,
        pub internal: bool,
        pub attachable: bool,
        pub ingress: bool,
        pub config_only: bool,
        pub config_from: Option<ConfigReference>,
        pub options: Map<String>,
        pub labels: Map<String>,
    }

    /// The answer to a creation.
    pub struct NetworkCreateResponse {
        pub id: String,
        pub warning: String,
    }

    /// The body of `POST /networks/{id}/connect`.
    pub struct NetworkConnectRequest {
        pub container: String,
        #[serde(skip_serializing_if = "empty")]
        pub endpoint_config: Option<EndpointSettings>,
    }

    /// The body of `POST /networks/{id}/disconnect`.
    pub struct NetworkDisconnectRequest {
        pub container: String,
        pub force: bool,
    }

    /// `POST /networks/prune`.
    pub struct NetworksPruneReport {
        #[serde(serialize_with = "null_if_empty")]
        pub networks_deleted: Vec<String>,
    }
}
