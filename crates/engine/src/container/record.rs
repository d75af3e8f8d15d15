//! What is kept of a container: the record (what was asked for) and the state (where it is in its life).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vessel_api::{ContainerConfig, EndpointSettings, HostConfig, Map, MountPoint};
use vessel_network::EndpointRecord;

use super::health::Health;
use super::links::Link;

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
    /// Chain IDs of the image's layers, lowest first.
    pub layers: Vec<String>,
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
    /// Links on the default network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// Volumes, bind mounts, tmpfs.
    pub mounts: Vec<MountRecord>,
}

impl Record {
    /// The first twelve digits of the ID.
    pub fn short_id(&self) -> &str {
        &self.id[..12.min(self.id.len())]
    }

    /// Volumes and bind mounts as the API shows them.
    pub fn mount_points(&self) -> Vec<MountPoint> {
        self.mounts.iter().map(MountRecord::to_api).collect()
    }
}

/// The kinds of mounts a user can ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the host.
    #[default]
    Bind,
    /// A volume.
    Volume,
    /// Memory.
    Tmpfs,
}

/// A mount that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountRecord {
    /// Its kind.
    pub kind: MountKind,
    /// The volume's name.
    pub name: String,
    /// The path on the host; a volume's directory.
    pub source: String,
    /// The path inside, absolute and clean.
    pub destination: String,
    /// Whether it is read-only.
    pub read_only: bool,
    /// Whether only the mount itself, not what is mounted below, is read-only.
    pub read_only_top: bool,
    /// Whether what is mounted below the source stays out.
    pub non_recursive: bool,
    /// `rprivate` and so on; empty for volumes.
    pub propagation: String,
    /// The options of `-v`, as given.
    pub mode: String,
    /// Whether the volume was made for this container only, without a name given.
    pub anonymous: bool,
    /// Whether an empty volume stays empty.
    pub no_copy: bool,
    /// Whether a missing source is made, as `-v` does.
    pub create_source: bool,
    /// Whether what the source's owner owns is shown as the container's user's.
    pub idmap: bool,
    /// A path below the volume that is mounted instead of its root.
    pub subpath: String,
    /// A tmpfs's mount options.
    pub options: Vec<String>,
    /// The labels of a volume that is made with the container.
    pub volume_labels: Map<String>,
    /// Its driver's options.
    pub driver_options: Map<String>,
    /// The volume's driver; empty in a request that names none.
    pub driver: String,
}

impl MountRecord {
    /// As the API shows it.
    pub fn to_api(&self) -> MountPoint {
        let (kind, driver) = match self.kind {
            MountKind::Bind => ("bind", ""),
            MountKind::Volume if self.driver.is_empty() => ("volume", "local"),
            MountKind::Volume => ("volume", self.driver.as_str()),
            MountKind::Tmpfs => ("tmpfs", ""),
        };
        MountPoint {
            kind: kind.to_owned(),
            name: self.name.clone(),
            source: self.source.clone(),
            destination: self.destination.clone(),
            driver: driver.to_owned(),
            mode: self.mode.clone(),
            rw: !self.read_only,
            propagation: self.propagation.clone(),
        }
    }
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

impl Status {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether there is a process.
    pub fn has_process(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// What Docker calls running: a process, or one about to be started again.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Docker's state.
    pub status: Status,
    /// Whether a shim was, or is about to be, launched: something of the container may exist beyond its directory.
    pub launched: bool,
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
    /// Its ends of networks while it runs, by the network's name.
    #[serde(alias = "endpoint", deserialize_with = "one_or_many")]
    pub endpoints: BTreeMap<String, EndpointRecord>,
    /// What plug-ins know this run by, if any keeps a volume of it; empty: none is to be told that it is over.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mount_id: String,
    /// The boot it was started in.
    pub boot_id: String,
    /// What the health check found; none without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Box<Health>>,
}

/// Earlier daemons knew of one end at most, which was one of the default network.
fn one_or_many<'de, D: serde::Deserializer<'de>>(
    value: D,
) -> Result<BTreeMap<String, EndpointRecord>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ends {
        One(Box<EndpointRecord>),
        Many(BTreeMap<String, EndpointRecord>),
        None(()),
    }
    Ok(match Ends::deserialize(value)? {
        Ends::One(end) => BTreeMap::from([("bridge".to_owned(), *end)]),
        Ends::Many(ends) => ends,
        Ends::None(()) => BTreeMap::new(),
    })
}

impl State {
    /// When the run began that goes on and is not paused; 0: there is none.
    pub(crate) fn active(&self) -> i64 {
        match self.status {
            Status::Running => self.started_at,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_that_an_earlier_daemon_recorded_is_read() {
        let end = serde_json::json!({
            "id": "0123456789", "bridge": "vessel0", "ifname": "ve0123456789", "address": "172.17.0.2", "prefix": 16,
            "gateway": "172.17.0.1", "mac": "02:42:ac:11:00:02", "ports": [],
        });
        let old = |end: serde_json::Value| -> State {
            serde_json::from_value(serde_json::json!({ "status": "running", "endpoint": end })).unwrap()
        };
        let state = old(end);
        assert_eq!(state.endpoints["bridge"].inside, "eth0");
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        assert!(old(serde_json::Value::Null).endpoints.is_empty());
    }
}
