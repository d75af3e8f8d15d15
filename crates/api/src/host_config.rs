//! `HostConfig`: how a container meets its host. The part of a container that is not portable.

use crate::json::{Map, empty, model, null_if_empty};
use crate::mount::Mount;

/// Container ports (`80/tcp`) to the host's addresses; `null` for a port that is exposed but not published.
pub type PortMap = Map<Option<Vec<PortBinding>>>;

model! {
    /// Host-dependent settings of a container.
    pub struct HostConfig {
        /// `source:destination[:options]`, as given to `-v`.
        #[serde(serialize_with = "null_if_empty")]
        pub binds: Vec<String>,
        #[serde(rename = "ContainerIDFile")]
        pub container_id_file: String,
        pub log_config: LogConfig,
        /// `default`, `bridge`, `host`, `none`, `container:ID` or a network's name.
        pub network_mode: String,
        pub port_bindings: PortMap,
        pub restart_policy: RestartPolicy,
        pub auto_remove: bool,
        pub volume_driver: String,
        /// Containers whose volumes are mounted as well: `ID[:ro|rw]`.
        #[serde(serialize_with = "null_if_empty")]
        pub volumes_from: Vec<String>,
        /// The terminal's first size, height then width.
        pub console_size: [u32; 2],
        #[serde(skip_serializing_if = "empty")]
        pub annotations: Map<String>,
        #[serde(serialize_with = "null_if_empty")]
        pub cap_add: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        pub cap_drop: Vec<String>,
        /// `host`, `private`, or empty for the daemon's default.
        pub cgroupns_mode: String,
        pub dns: Vec<String>,
        pub dns_options: Vec<String>,
        pub dns_search: Vec<String>,
        /// Lines for `/etc/hosts`, `name:address`.
        #[serde(serialize_with = "null_if_empty")]
        pub extra_hosts: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        pub group_add: Vec<String>,
        /// `none`, `private`, `shareable`, `host`, `container:ID`, or empty for the daemon's default.
        pub ipc_mode: String,
        /// A cgroup to join; not used by Linux containers today.
        pub cgroup: String,
        #[serde(serialize_with = "null_if_empty")]
        pub links: Vec<String>,
        pub oom_score_adj: i64,
        /// Empty, `host` or `container:ID`.
        pub pid_mode: String,
        pub privileged: bool,
        pub publish_all_ports: bool,
        pub readonly_rootfs: bool,
        #[serde(serialize_with = "null_if_empty")]
        pub security_opt: Vec<String>,
        #[serde(skip_serializing_if = "empty")]
        pub storage_opt: Map<String>,
        /// Destinations to tmpfs mount options.
        #[serde(skip_serializing_if = "empty")]
        pub tmpfs: Map<String>,
        /// Empty or `host`.
        #[serde(rename = "UTSMode")]
        pub uts_mode: String,
        /// Empty or `host`.
        pub userns_mode: String,
        /// Bytes of `/dev/shm`; 0 for the daemon's default.
        pub shm_size: i64,
        #[serde(skip_serializing_if = "empty")]
        pub sysctls: Map<String>,
        #[serde(skip_serializing_if = "empty")]
        pub runtime: String,
        /// The wall: empty or `default` for a container, `vm` for a machine.
        pub isolation: String,
        #[serde(skip_serializing_if = "empty")]
        pub mounts: Vec<Mount>,
        /// Paths to hide; `None` for the default set, an empty list for none.
        pub masked_paths: Option<Vec<String>>,
        /// Paths to make read-only; `None` for the default set, an empty list for none.
        pub readonly_paths: Option<Vec<String>>,
        /// Run a small init as PID 1; `None` for the daemon's default.
        #[serde(skip_serializing_if = "empty")]
        pub init: Option<bool>,
    }
    flatten {
        pub resources: Resources,
    }

    /// Limits of a container; embedded in [`HostConfig`] and [`UpdateRequest`].
    pub struct Resources {
        pub cpu_shares: i64,
        pub memory: i64,
        #[serde(rename = "NanoCpus")]
        pub nano_cpus: i64,
        pub cgroup_parent: String,
        pub blkio_weight: u16,
        pub blkio_weight_device: Vec<WeightDevice>,
        #[serde(serialize_with = "null_if_empty")]
        pub blkio_device_read_bps: Vec<ThrottleDevice>,
        #[serde(serialize_with = "null_if_empty")]
        pub blkio_device_write_bps: Vec<ThrottleDevice>,
        #[serde(rename = "BlkioDeviceReadIOps", serialize_with = "null_if_empty")]
        pub blkio_device_read_iops: Vec<ThrottleDevice>,
        #[serde(rename = "BlkioDeviceWriteIOps", serialize_with = "null_if_empty")]
        pub blkio_device_write_iops: Vec<ThrottleDevice>,
        pub cpu_period: i64,
        pub cpu_quota: i64,
        pub cpu_realtime_period: i64,
        pub cpu_realtime_runtime: i64,
        pub cpuset_cpus: String,
        pub cpuset_mems: String,
        pub devices: Vec<DeviceMapping>,
        /// `c 42:* rmw` lines for the device cgroup.
        #[serde(serialize_with = "null_if_empty")]
        pub device_cgroup_rules: Vec<String>,
        #[serde(serialize_with = "null_if_empty")]
        pub device_requests: Vec<DeviceRequest>,
        #[serde(skip_serializing_if = "empty")]
        pub kernel_memory: i64,
        #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "empty")]
        pub kernel_memory_tcp: i64,
        pub memory_reservation: i64,
        /// Memory and swap together; -1 for no limit on swap.
        pub memory_swap: i64,
        /// 0 to 100; `None` or -1 for the kernel's default.
        pub memory_swappiness: Option<i64>,
        pub oom_kill_disable: Option<bool>,
        /// `None` leaves it unchanged; 0 or -1 is no limit.
        pub pids_limit: Option<i64>,
        #[serde(serialize_with = "null_if_empty")]
        pub ulimits: Vec<Ulimit>,
        /// Windows only; kept because `inspect` shows it.
        pub cpu_count: i64,
        /// Windows only; kept because `inspect` shows it.
        pub cpu_percent: i64,
        /// Windows only; kept because `inspect` shows it.
        #[serde(rename = "IOMaximumIOps")]
        pub io_maximum_iops: u64,
        /// Windows only; kept because `inspect` shows it.
        #[serde(rename = "IOMaximumBandwidth")]
        pub io_maximum_bandwidth: u64,
    }

    /// The body of `POST /containers/{id}/update`.
    ///
    /// Limits of block devices stand here once more: `None` leaves those of a kind as they are, an empty list lifts them.
    pub struct UpdateRequest {
        pub restart_policy: RestartPolicy,
        #[serde(skip_serializing_if = "empty")]
        pub blkio_weight_device: Option<Vec<WeightDevice>>,
        #[serde(skip_serializing_if = "empty")]
        pub blkio_device_read_bps: Option<Vec<ThrottleDevice>>,
        #[serde(skip_serializing_if = "empty")]
        pub blkio_device_write_bps: Option<Vec<ThrottleDevice>>,
        #[serde(rename = "BlkioDeviceReadIOps", skip_serializing_if = "empty")]
        pub blkio_device_read_iops: Option<Vec<ThrottleDevice>>,
        #[serde(rename = "BlkioDeviceWriteIOps", skip_serializing_if = "empty")]
        pub blkio_device_write_iops: Option<Vec<ThrottleDevice>>,
    }
    flatten {
        pub resources: Resources,
    }

    /// The answer to an update.
    pub struct UpdateResponse {
        #[serde(serialize_with = "null_if_empty")]
        pub warnings: Vec<String>,
    }

    /// Where a container port is published.
    pub struct PortBinding {
        #[serde(rename = "HostIp")]
        pub host_ip: String,
        /// A port, a range, or empty for any free one.
        pub host_port: String,
    }

    /// What to do when the container exits: `no`, `always`, `unless-stopped`, `on-failure`.
    pub struct RestartPolicy {
        pub name: String,
        pub maximum_retry_count: i64,
    }

    /// The logging driver and its options.
    pub struct LogConfig {
        #[serde(rename = "Type")]
        pub kind: String,
        pub config: Map<String>,
    }

    /// A block device and its weight.
    pub struct WeightDevice {
        pub path: String,
        pub weight: u16,
    }

    /// A block device and its rate, in bytes or operations per second.
    pub struct ThrottleDevice {
        pub path: String,
        pub rate: u64,
    }

    /// A host device made present in the container.
    pub struct DeviceMapping {
        pub path_on_host: String,
        pub path_in_container: String,
        /// Any of `r`, `w`, `m`.
        pub cgroup_permissions: String,
    }

    /// Devices asked of a driver (`--gpus`, CDI).
    pub struct DeviceRequest {
        pub driver: String,
        /// -1 for all.
        pub count: i64,
        #[serde(rename = "DeviceIDs", serialize_with = "null_if_empty")]
        pub device_ids: Vec<String>,
        /// An OR of ANDs.
        #[serde(serialize_with = "null_if_empty")]
        pub capabilities: Vec<Vec<String>>,
        pub options: Map<String>,
    }

    /// A resource limit of the container's first process, by the name without `RLIMIT_`.
    pub struct Ulimit {
        pub name: String,
        pub hard: i64,
        pub soft: i64,
    }
}

impl Ulimit {
    /// The names there are.
    pub const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
}

impl RestartPolicy {
    /// Whether the container is never restarted by the daemon.
    pub fn is_none(&self) -> bool {
        self.name.is_empty() || self.name == "no"
    }

    /// `always`.
    pub fn is_always(&self) -> bool {
        self.name == "always"
    }

    /// `on-failure`.
    pub fn is_on_failure(&self) -> bool {
        self.name == "on-failure"
    }

    /// `unless-stopped`.
    pub fn is_unless_stopped(&self) -> bool {
        self.name == "unless-stopped"
    }
}
