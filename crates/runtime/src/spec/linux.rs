//! `linux`: namespaces, mappings, devices, limits, filters.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Resources, Seccomp, Spec, nullable};
use crate::{Error, Result};

/// What is specific to Linux.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// Namespaces that are made or joined; those not listed are the runtime's own.
    #[serde(deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    /// User mappings of a new user namespace.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group mappings of a new user namespace.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
    /// Offsets of a new time namespace: `monotonic`, `boottime`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// Device nodes beyond the standard ones.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub devices: Vec<Device>,
    /// Where the cgroup goes.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub cgroups_path: String,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Propagation of the root: `shared`, `slave`, `private`, `unbindable` (with or without `r`).
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub rootfs_propagation: String,
    /// System call filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// Kernel parameters of the container's namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub sysctl: BTreeMap<String, String>,
    /// Paths that cannot be read inside.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub masked_paths: Vec<PathBuf>,
    /// Paths that cannot be written inside.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub readonly_paths: Vec<PathBuf>,
    /// SELinux context of the mounts.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub mount_label: String,
    /// Execution domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<Personality>,
}

/// The kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum NamespaceKind {
    User,
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    Cgroup,
    Time,
}

impl NamespaceKind {
    /// All of them, in the order they are joined.
    pub const ALL: [Self; 8] = [
        Self::User,
        Self::Pid,
        Self::Network,
        Self::Ipc,
        Self::Uts,
        Self::Cgroup,
        Self::Time,
        Self::Mount,
    ];

    /// The `CLONE_NEW…` flag.
    pub fn clone_flag(self) -> u64 {
        let flag = match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => libc::CLONE_NEWTIME,
        };
        // The constants are C ints; none is negative.
        flag as u64
    }

    /// Its file under `/proc/PID/ns`.
    pub fn proc_name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Mount => "mnt",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }
}

/// A namespace to make, or to join when `path` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// A namespace file, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// One line of a `uid_map` or `gid_map`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdMapping {
    /// First ID inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First ID outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// An offset of a clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds.
    pub nanosecs: u32,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path inside the container.
    pub path: PathBuf,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// The execution domain, as personality(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// Flags; the specification defines none.
    #[serde(deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

impl Linux {
    /// The namespace of a kind, if it is made or joined.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.kind == kind)
    }

    /// Whether a new namespace of this kind is made.
    pub fn makes(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind)
            .is_some_and(|namespace| namespace.path.is_none())
    }

    pub(super) fn validate(&self, spec: &Spec) -> Result<()> {
        for (index, namespace) in self.namespaces.iter().enumerate() {
            if self.namespaces[..index]
                .iter()
                .any(|other| other.kind == namespace.kind)
            {
                return Err(Error::invalid(format!(
                    "linux.namespaces lists {} twice",
                    namespace.kind.proc_name()
                )));
            }
            if let Some(path) = &namespace.path
                && !path.is_absolute()
            {
                return Err(Error::invalid(format!("namespace path {path:?} is not absolute")));
            }
        }
        if (!spec.hostname.is_empty() || !spec.domainname.is_empty())
            && self.namespace(NamespaceKind::Uts).is_none()
        {
            return Err(Error::invalid("hostname and domainname need a uts namespace"));
        }
        if self.makes(NamespaceKind::User) && (self.uid_mappings.is_empty() || self.gid_mappings.is_empty()) {
            return Err(Error::invalid(
                "a new user namespace needs linux.uidMappings and linux.gidMappings",
            ));
        }
        if !self.time_offsets.is_empty() && !self.makes(NamespaceKind::Time) {
            return Err(Error::invalid("linux.timeOffsets needs a new time namespace"));
        }
        for name in self.time_offsets.keys() {
            if name != "monotonic" && name != "boottime" {
                return Err(Error::invalid(format!(
                    "linux.timeOffsets: there is no clock {name:?}"
                )));
            }
        }
        for name in self.sysctl.keys() {
            self.validate_sysctl(name)?;
        }
        match self.rootfs_propagation.as_str() {
            "" | "shared" | "rshared" | "slave" | "rslave" | "private" | "rprivate" | "unbindable"
            | "runbindable" => Ok(()),
            other => Err(Error::invalid(format!(
                "linux.rootfsPropagation {other:?} is not a propagation mode"
            ))),
        }
    }

    /// A kernel parameter that is not of a namespace of the container would be changed for the whole host.
    fn validate_sysctl(&self, name: &str) -> Result<()> {
        // Of the two separators, the first that occurs is the one; the other stands for itself.
        let dotted = match name.find(['.', '/']).map(|at| &name[at..=at]) {
            Some("/") => name.replace('/', "."),
            _ => name.to_owned(),
        };
        let kind = if dotted == "kernel.domainname" || dotted == "kernel.hostname" {
            NamespaceKind::Uts
        } else if dotted.starts_with("net.") {
            NamespaceKind::Network
        } else if IPC_SYSCTLS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            NamespaceKind::Ipc
        } else if dotted.starts_with("user.") {
            NamespaceKind::User
        } else {
            return Err(Error::invalid(format!(
                "linux.sysctl: {name} belongs to no namespace: setting it would change the host"
            )));
        };
        match self.namespace(kind) {
            Some(_) => Ok(()),
            None => Err(Error::invalid(format!(
                "linux.sysctl: {name} needs a {} namespace: without one it would change the host's",
                kind.proc_name()
            ))),
        }
    }
}

/// The parameters of IPC namespaces outside of `fs.mqueue` (ipc_namespaces(7)).
const IPC_SYSCTLS: [&str; 11] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.msg_next_id",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
];
