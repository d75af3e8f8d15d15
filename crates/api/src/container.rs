//! Containers: what is asked for, what the list shows, and the small answers.

use serde::{Deserialize, Serialize};

use crate::host_config::HostConfig;
use crate::json::{Empty, Map, empty, model, null_if_empty, optional_strings, strings};
use crate::mount::MountPoint;
use crate::network::{EndpointSettings, NetworkingConfig};

model! {
    /// The portable settings of a container; also the `config` of an image.
    pub struct ContainerConfig {
        pub hostname: String,
        pub domainname: String,
        /// `user[:group]`, names or numbers.
        pub user: String,
        pub attach_stdin: bool,
        pub attach_stdout: bool,
        pub attach_stderr: bool,
        /// `80/tcp` and so on.
        #[serde(skip_serializing_if = "empty")]
        pub exposed_ports: Map<Empty>,
        pub tty: bool,
        /// Keep stdin open even when nobody is attached.
        pub open_stdin: bool,
        /// Close stdin after the first attached client goes.
        pub stdin_once: bool,
        /// `NAME=value`; a `NAME` alone removes the image's variable.
        #[serde(serialize_with = "null_if_empty")]
        pub env: Vec<String>,
        #[serde(skip_serializing_if = "empty")]
        pub healthcheck: Option<HealthConfig>,
        #[serde(skip_serializing_if = "empty")]
        pub args_escaped: bool,
        /// The image, as the user named it.
        pub image: String,
        #[serde(serialize_with = "null_if_empty")]
        pub volumes: Map<Empty>,
        pub working_dir: String,
        #[serde(skip_serializing_if = "empty")]
        pub network_disabled: bool,
        #[serde(skip_serializing_if = "empty")]
        pub mac_address: String,
        #[serde(serialize_with = "null_if_empty")]
        pub on_build: Vec<String>,
        pub labels: Map<String>,
        #[serde(skip_serializing_if = "empty")]
        pub stop_signal: String,
        /// Seconds; `None` for the daemon's default of 10, -1 for no limit.
        #[serde(skip_serializing_if = "empty")]
        pub stop_timeout: Option<i64>,
        /// The shell of the shell forms of `RUN`, `CMD` and `ENTRYPOINT`.
        #[serde(skip_serializing_if = "empty")]
        pub shell: Vec<String>,
    }
    raw {
        #[serde(serialize_with = "null_if_empty", deserialize_with = "strings")]
        pub cmd: Vec<String>,
        /// `None` takes the image's; `[""]` removes it.
        #[serde(deserialize_with = "optional_strings")]
        pub entrypoint: Option<Vec<String>>,
    }

    /// How the health of a container is probed. Durations in nanoseconds, 0 to inherit.
    pub struct HealthConfig {
        /// Empty to inherit, `["NONE"]` to disable, `["CMD", ...]` or `["CMD-SHELL", command]`.
        #[serde(skip_serializing_if = "empty")]
        pub test: Vec<String>,
        #[serde(skip_serializing_if = "empty")]
        pub interval: i64,
        #[serde(skip_serializing_if = "empty")]
        pub timeout: i64,
        #[serde(skip_serializing_if = "empty")]
        pub start_period: i64,
        #[serde(skip_serializing_if = "empty")]
        pub start_interval: i64,
        #[serde(skip_serializing_if = "empty")]
        pub retries: i64,
    }

    /// The body of `POST /containers/create`.
    pub struct ContainerCreateRequest {
        pub host_config: HostConfig,
        pub networking_config: NetworkingConfig,
    }
    flatten {
        pub config: ContainerConfig,
    }

    /// The answer to a creation.
    pub struct ContainerCreateResponse {
        pub id: String,
        pub warnings: Vec<String>,
    }

    /// One element of `GET /containers/json`.
    pub struct ContainerSummary {
        pub id: String,
        /// Each with a leading `/`; links have more than one.
        pub names: Vec<String>,
        pub image: String,
        #[serde(rename = "ImageID")]
        pub image_id: String,
        pub command: String,
        /// Seconds since the epoch.
        pub created: i64,
        pub ports: Vec<Port>,
        #[serde(skip_serializing_if = "empty")]
        pub size_rw: i64,
        #[serde(skip_serializing_if = "empty")]
        pub size_root_fs: i64,
        pub labels: Map<String>,
        /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
        pub state: String,
        /// For people: `Up 2 hours (healthy)`.
        pub status: String,
        pub host_config: SummaryHostConfig,
        pub network_settings: SummaryNetworkSettings,
        pub mounts: Vec<MountPoint>,
    }

    /// What the list shows of [`HostConfig`].
    pub struct SummaryHostConfig {
        #[serde(skip_serializing_if = "empty")]
        pub network_mode: String,
        #[serde(skip_serializing_if = "empty")]
        pub annotations: Map<String>,
    }

    /// What the list shows of a container's networks.
    pub struct SummaryNetworkSettings {
        pub networks: Map<EndpointSettings>,
    }

    /// A port in the list. Field order as Docker has it.
    pub struct Port {
        #[serde(rename = "IP", skip_serializing_if = "empty")]
        pub ip: String,
        pub private_port: u16,
        #[serde(skip_serializing_if = "empty")]
        pub public_port: u16,
        /// `tcp`, `udp` or `sctp`.
        #[serde(rename = "Type")]
        pub kind: String,
    }

    /// `GET /containers/{id}/top`.
    pub struct TopResponse {
        pub processes: Vec<Vec<String>>,
        pub titles: Vec<String>,
    }

    /// One element of `GET /containers/{id}/changes`.
    pub struct Change {
        pub path: String,
        pub kind: ChangeKind,
    }

    /// `POST /containers/{id}/wait`.
    pub struct WaitResponse {
        pub error: Option<WaitError>,
        pub status_code: i64,
    }

    /// Why a wait failed.
    pub struct WaitError {
        pub message: String,
    }

    /// `POST /containers/prune`.
    pub struct ContainersPruneReport {
        #[serde(serialize_with = "null_if_empty")]
        pub containers_deleted: Vec<String>,
        pub space_reclaimed: u64,
    }
}

/// How a path of a container differs from its image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum ChangeKind {
    /// Content or metadata changed: `C`.
    #[default]
    Modified,
    /// New: `A`.
    Added,
    /// Gone: `D`.
    Deleted,
}

impl TryFrom<u8> for ChangeKind {
    type Error = String;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        match value {
            0 => Ok(Self::Modified),
            1 => Ok(Self::Added),
            2 => Ok(Self::Deleted),
            other => Err(format!("{other} is no kind of change: 0, 1 or 2 expected")),
        }
    }
}

impl From<ChangeKind> for u8 {
    fn from(value: ChangeKind) -> Self {
        match value {
            ChangeKind::Modified => 0,
            ChangeKind::Added => 1,
            ChangeKind::Deleted => 2,
        }
    }
}

/// What the `X-Docker-Container-Path-Stat` header of the archive endpoints carries, in base64.
/// The mode is Go's `os.FileMode`: see [`PathStat::GO_DIR`] and [`PathStat::GO_SYMLINK`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathStat {
    pub name: String,
    pub size: i64,
    pub mode: u32,
    /// RFC 3339.
    pub mtime: String,
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}

impl PathStat {
    /// Go's `os.ModeDir`.
    pub const GO_DIR: u32 = 1 << 31;
    /// Go's `os.ModeSymlink`.
    pub const GO_SYMLINK: u32 = 1 << 27;

    /// Whether the path is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & Self::GO_DIR != 0
    }

    /// Whether the path is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & Self::GO_SYMLINK != 0
    }
}
