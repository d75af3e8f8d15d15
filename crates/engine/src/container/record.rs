//! What is kept of a container: the record (what was asked for) and the state (where it is in its life).

use serde::{Deserialize, Serialize};
use vessel_api::{ContainerConfig, HostConfig, Map, EndpointSettings, MountPoint};

/// What was asked for, settled at creation; changed by rename and update only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created: i64,
    /// The image's ID.
    pub image_id: String,
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// As asked for, merged with the image's.
    pub config: ContainerConfig,
    /// As asked for, with defaults filled in.
    pub host: HostConfig,
    /// Networks asked for.
    pub networks: Map<EndpointSettings>,
    /// Volumes and bind mounts.
    pub mounts: Vec<MountPoint>,
}

/// Docker's states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are Docker's")]
pub enum Status {
    #[default]
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
    Dead,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Docker's state.
    pub status: Status,
    /// The first process's ID on the host, 0 when there is none.
    pub pid: i32,
    /// Of the last run.
    pub exit_code: i32,
    /// Why the last start failed.
    pub error: String,
    /// Whether the last run was ended for lack of memory.
    pub oom_killed: bool,
    /// Nanoseconds since the epoch, 0: never.
    pub started_at: i64,
    /// Nanoseconds since the epoch, 0: never.
    pub finished_at: i64,
    /// How often it was restarted by its policy since it was started by a user.
    pub restart_count: u32,
    /// Whether a user stopped it (what `unless-stopped` asks).
    pub stopped_by_user: bool,
}
