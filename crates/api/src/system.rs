//! The daemon and its host: `/info`, `/version`, `/system/df`.

use crate::container::ContainerSummary;
use crate::image::ImageSummary;
use crate::json::{Map, empty, model, null_if_empty};
use crate::vessel::DiskItem;
use crate::volume::Volume;

model! {
    /// `GET /info`.
    pub struct Info {
        #[serde(rename = "ID")]
        pub id: String,
        pub containers: i64,
        pub containers_running: i64,
        pub containers_paused: i64,
        pub containers_stopped: i64,
        pub images: i64,
        pub driver: String,
        /// Pairs of name and value.
        pub driver_status: Vec<[String; 2]>,
        pub plugins: PluginsInfo,
        pub memory_limit: bool,
        pub swap_limit: bool,
        #[serde(skip_serializing_if = "empty")]
        pub kernel_memory: bool,
        #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "empty")]
        pub kernel_memory_tcp: bool,
        #[serde(rename = "CpuCfsPeriod")]
        pub cpu_cfs_period: bool,
        #[serde(rename = "CpuCfsQuota")]
        pub cpu_cfs_quota: bool,
        #[serde(rename = "CPUShares")]
        pub cpu_shares: bool,
        #[serde(rename = "CPUSet")]
        pub cpu_set: bool,
        pub pids_limit: bool,
        #[serde(rename = "IPv4Forwarding")]
        pub ipv4_forwarding: bool,
        pub bridge_nf_iptables: bool,
        #[serde(rename = "BridgeNfIp6tables")]
        pub bridge_nf_ip6tables: bool,
        pub debug: bool,
        #[serde(rename = "NFd")]
        pub n_fd: i64,
        pub oom_kill_disable: bool,
        #[serde(rename = "NGoroutines")]
        pub n_goroutines: i64,
        pub system_time: String,
        pub logging_driver: String,
        pub cgroup_driver: String,
        #[serde(skip_serializing_if = "empty")]
        pub cgroup_version: String,
        #[serde(rename = "NEventsListener")]
        pub n_events_listener: i64,
        pub kernel_version: String,
        pub operating_system: String,
        #[serde(rename = "OSVersion")]
        pub os_version: String,
        #[serde(rename = "OSType")]
        pub os_type: String,
        pub architecture: String,
        pub index_server_address: String,
        pub registry_config: Option<RegistryConfig>,
        #[serde(rename = "NCPU")]
        pub ncpu: i64,
        pub mem_total: i64,
        #[serde(serialize_with = "null_if_empty")]
        pub generic_resources: Vec<serde_json::Value>,
        pub docker_root_dir: String,
        pub http_proxy: String,
        pub https_proxy: String,
        pub no_proxy: String,
        pub name: String,
        pub labels: Vec<String>,
        pub experimental_build: bool,
        pub server_version: String,
        pub runtimes: Map<RuntimeInfo>,
        pub default_runtime: String,
        pub swarm: SwarmInfo,
        pub live_restore_enabled: bool,
        pub isolation: String,
        pub init_binary: String,
        pub containerd_commit: Commit,
        pub runc_commit: Commit,
        pub init_commit: Commit,
        /// `name=seccomp,profile=default` and so on.
        pub security_options: Vec<String>,
        #[serde(skip_serializing_if = "empty")]
        pub product_license: String,
        #[serde(skip_serializing_if = "empty")]
        pub default_address_pools: Vec<AddressPool>,
        #[serde(rename = "CDISpecDirs", skip_serializing_if = "empty")]
        pub cdi_spec_dirs: Vec<String>,
        #[serde(skip_serializing_if = "empty")]
        pub discovered_devices: Vec<DeviceInfo>,
        #[serde(serialize_with = "null_if_empty")]
        pub warnings: Vec<String>,
    }

    /// A device that a driver found.
    pub struct DeviceInfo {
        /// The driver, `cdi`.
        pub source: String,
        /// Its name with that driver: `vendor.com/class=name`.
        #[serde(rename = "ID")]
        pub id: String,
    }

    /// The drivers there are.
    pub struct PluginsInfo {
        pub volume: Vec<String>,
        pub network: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        pub authorization: Vec<String>,
        pub log: Vec<String>,
    }

    /// How registries are reached.
    pub struct RegistryConfig {
        #[serde(rename = "AllowNondistributableArtifactsCIDRs")]
        pub allow_nondistributable_artifacts_cidrs: Vec<String>,
        pub allow_nondistributable_artifacts_hostnames: Vec<String>,
        #[serde(rename = "InsecureRegistryCIDRs")]
        pub insecure_registry_cidrs: Vec<String>,
        pub index_configs: Map<IndexInfo>,
        pub mirrors: Vec<String>,
    }

    /// One registry.
    pub struct IndexInfo {
        pub name: String,
        pub mirrors: Vec<String>,
        pub secure: bool,
        pub official: bool,
    }

    /// An OCI runtime.
    pub struct RuntimeInfo {
        #[serde(rename = "path", skip_serializing_if = "empty")]
        pub path: String,
        #[serde(rename = "runtimeArgs", skip_serializing_if = "empty")]
        pub runtime_args: Vec<String>,
        #[serde(rename = "status", skip_serializing_if = "empty")]
        pub status: Map<String>,
    }

    /// Swarm's state; always `inactive` here.
    pub struct SwarmInfo {
        #[serde(rename = "NodeID")]
        pub node_id: String,
        pub node_addr: String,
        pub local_node_state: String,
        pub control_available: bool,
        pub error: String,
        #[serde(serialize_with = "null_if_empty")]
        pub remote_managers: Vec<serde_json::Value>,
    }

    /// The revision of a program.
    pub struct Commit {
        #[serde(rename = "ID")]
        pub id: String,
        pub expected: String,
    }

    /// Addresses that networks are made from.
    pub struct AddressPool {
        pub base: String,
        pub size: i64,
    }

    /// `GET /version`.
    pub struct Version {
        pub platform: PlatformName,
        pub components: Vec<ComponentVersion>,
        pub version: String,
        pub api_version: String,
        #[serde(rename = "MinAPIVersion")]
        pub min_api_version: String,
        pub git_commit: String,
        pub go_version: String,
        pub os: String,
        pub arch: String,
        pub kernel_version: String,
        #[serde(skip_serializing_if = "empty")]
        pub experimental: bool,
        pub build_time: String,
    }

    /// The product's name.
    pub struct PlatformName {
        pub name: String,
    }

    /// One program the daemon consists of.
    pub struct ComponentVersion {
        pub name: String,
        pub version: String,
        pub details: Map<String>,
    }

    /// `GET /system/df`.
    pub struct DiskUsage {
        /// Bytes of all layers, shared ones once.
        pub layers_size: i64,
        #[serde(serialize_with = "null_if_empty")]
        pub images: Vec<ImageSummary>,
        #[serde(serialize_with = "null_if_empty")]
        pub containers: Vec<ContainerSummary>,
        #[serde(serialize_with = "null_if_empty")]
        pub volumes: Vec<Volume>,
        #[serde(serialize_with = "null_if_empty")]
        pub build_cache: Vec<BuildCache>,
        #[serde(skip_serializing_if = "empty")]
        pub builder_size: i64,
        /// These four from version 1.52.
        #[serde(skip_serializing_if = "empty")]
        pub image_usage: Option<Usage>,
        #[serde(skip_serializing_if = "empty")]
        pub container_usage: Option<Usage>,
        #[serde(skip_serializing_if = "empty")]
        pub volume_usage: Option<Usage>,
        #[serde(skip_serializing_if = "empty")]
        pub build_cache_usage: Option<Usage>,
        /// Only from Vessel, and only when asked for with `vessel=1`.
        #[serde(skip_serializing_if = "empty")]
        pub vessel_items: Vec<DiskItem>,
    }

    /// What things of a kind take.
    pub struct Usage {
        /// How many are in use.
        #[serde(skip_serializing_if = "empty")]
        pub active_count: i64,
        /// All of them, only with `verbose`.
        #[serde(skip_serializing_if = "empty")]
        pub items: Vec<serde_json::Value>,
        /// Bytes of what is not in use.
        #[serde(skip_serializing_if = "empty")]
        pub reclaimable: i64,
        #[serde(skip_serializing_if = "empty")]
        pub total_count: i64,
        /// Bytes of all.
        #[serde(skip_serializing_if = "empty")]
        pub total_size: i64,
    }

    /// One record of the build cache.
    pub struct BuildCache {
        #[serde(rename = "ID")]
        pub id: String,
        #[serde(skip_serializing_if = "empty")]
        pub parent: String,
        #[serde(skip_serializing_if = "empty")]
        pub parents: Vec<String>,
        #[serde(rename = "Type")]
        pub kind: String,
        pub description: String,
        pub in_use: bool,
        pub shared: bool,
        pub size: i64,
        pub created_at: String,
        pub last_used_at: Option<String>,
        pub usage_count: i64,
    }
}
