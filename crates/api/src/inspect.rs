//! `GET /containers/{id}/json`.

use crate::container::ContainerConfig;
use crate::host_config::{HostConfig, PortMap};
use crate::json::{Map, empty, model, null_if_empty};
use crate::mount::MountPoint;
use crate::network::EndpointSettings;

/// Go's zero time, which Docker shows for what has not happened.
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

model! {
    /// Everything about a container.
    pub struct ContainerInspect {
        pub id: String,
        pub created: String,
        pub path: String,
        pub args: Vec<String>,
        pub state: ContainerState,
        /// The image's ID.
        pub image: String,
        pub resolv_conf_path: String,
        pub hostname_path: String,
        pub hosts_path: String,
        pub log_path: String,
        /// With a leading `/`.
        pub name: String,
        pub restart_count: i64,
        pub driver: String,
        pub platform: String,
        pub mount_label: String,
        pub process_label: String,
        pub app_armor_profile: String,
        #[serde(rename = "ExecIDs", serialize_with = "null_if_empty")]
        pub exec_ids: Vec<String>,
        pub host_config: HostConfig,
        pub graph_driver: GraphDriver,
        /// Only with `size=1`.
        #[serde(skip_serializing_if = "empty")]
        pub size_rw: Option<i64>,
        /// Only with `size=1`.
        #[serde(skip_serializing_if = "empty")]
        pub size_root_fs: Option<i64>,
        pub mounts: Vec<MountPoint>,
        pub config: ContainerConfig,
        pub network_settings: NetworkSettings,
    }

    /// Where a container is in its life.
    pub struct ContainerState {
        /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
        pub status: String,
        pub running: bool,
        pub paused: bool,
        pub restarting: bool,
        #[serde(rename = "OOMKilled")]
        pub oom_killed: bool,
        pub dead: bool,
        pub pid: i64,
        pub exit_code: i64,
        /// Why the last start failed.
        pub error: String,
        pub started_at: String,
        pub finished_at: String,
        /// Only when there is a health check.
        #[serde(skip_serializing_if = "empty")]
        pub health: Option<Health>,
    }

    /// What the health check found.
    pub struct Health {
        /// `none`, `starting`, `healthy` or `unhealthy`.
        pub status: String,
        pub failing_streak: i64,
        /// The last five results.
        pub log: Vec<HealthcheckResult>,
    }

    /// One run of the health check.
    pub struct HealthcheckResult {
        pub start: String,
        pub end: String,
        pub exit_code: i64,
        pub output: String,
    }

    /// How a root file system is stored.
    pub struct GraphDriver {
        pub data: Map<String>,
        pub name: String,
    }

    /// A container's networks; the flat fields repeat the default bridge's endpoint.
    pub struct NetworkSettings {
        pub bridge: String,
        #[serde(rename = "SandboxID")]
        pub sandbox_id: String,
        pub hairpin_mode: bool,
        #[serde(rename = "LinkLocalIPv6Address")]
        pub link_local_ipv6_address: String,
        #[serde(rename = "LinkLocalIPv6PrefixLen")]
        pub link_local_ipv6_prefix_len: u32,
        pub ports: PortMap,
        pub sandbox_key: String,
        #[serde(rename = "SecondaryIPAddresses", serialize_with = "null_if_empty")]
        pub secondary_ip_addresses: Vec<Address>,
        #[serde(rename = "SecondaryIPv6Addresses", serialize_with = "null_if_empty")]
        pub secondary_ipv6_addresses: Vec<Address>,
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        pub gateway: String,
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: u32,
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: u32,
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        pub mac_address: String,
        pub networks: Map<EndpointSettings>,
    }

    /// An address and its prefix.
    pub struct Address {
        pub addr: String,
        pub prefix_len: u32,
    }
}
