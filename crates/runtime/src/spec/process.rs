//! `process`: what runs, as whom, with what rights.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::nullable;
use crate::{Error, Result};

/// The container's process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Whether a pseudo terminal is its standard streams.
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub terminal: bool,
    /// The terminal's first size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// User and groups.
    pub user: User,
    /// Program and arguments, as for execvp(3).
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Working directory, absolute inside the container.
    pub cwd: PathBuf,
    /// Capability sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<CapabilityLists>,
    /// Resource limits.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub rlimits: Vec<Rlimit>,
    /// Sets `no_new_privs`.
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub no_new_privileges: bool,
    /// AppArmor profile name.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub apparmor_profile: String,
    /// Value for `/proc/self/oom_score_adj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// SELinux label.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub selinux_label: String,
    /// I/O priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
    /// Scheduling policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// User and groups, as numbers inside the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// umask of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

/// Capability sets by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CapabilityLists {
    /// Bounding set.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub bounding: Vec<String>,
    /// Effective set.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub effective: Vec<String>,
    /// Inheritable set.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub inheritable: Vec<String>,
    /// Permitted set.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub permitted: Vec<String>,
    /// Ambient set.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub ambient: Vec<String>,
}

/// A resource limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The ceiling.
    pub hard: u64,
    /// The limit in force.
    pub soft: u64,
}

/// I/O priority, as ioprio_set(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// 0 to 7.
    #[serde(default)]
    pub priority: i64,
}

/// Scheduling policy, as sched_setattr(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_OTHER`, `SCHED_FIFO`, `SCHED_RR`, `SCHED_BATCH`, `SCHED_ISO`, `SCHED_IDLE`, `SCHED_DEADLINE`.
    pub policy: String,
    /// Nice value.
    pub nice: i32,
    /// Static priority for FIFO and RR.
    pub priority: i32,
    /// `SCHED_FLAG_…`.
    #[serde(deserialize_with = "nullable")]
    pub flags: Vec<String>,
    /// Nanoseconds, DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, DEADLINE.
    pub period: u64,
}

impl Process {
    /// Checks what can be known from the text alone.
    ///
    /// # Errors
    /// Names the property.
    pub fn validate(&self) -> Result<()> {
        if self.args.is_empty() || self.args[0].is_empty() {
            return Err(Error::invalid("process.args must name a program"));
        }
        if !self.cwd.is_absolute() {
            return Err(Error::invalid(format!(
                "process.cwd {:?} is not an absolute path",
                self.cwd
            )));
        }
        let nul = |text: &String| text.contains('\0');
        if self.args.iter().any(nul) || self.env.iter().any(nul) {
            return Err(Error::invalid(
                "process.args and process.env must not contain NUL characters",
            ));
        }
        let mut seen = std::collections::BTreeSet::new();
        for limit in &self.rlimits {
            if !seen.insert(&limit.kind) {
                return Err(Error::invalid(format!(
                    "process.rlimits lists {} twice",
                    limit.kind
                )));
            }
        }
        if let Some(lists) = &self.capabilities {
            for (set, name, within, limit) in [
                (&lists.inheritable, "inheritable", &lists.bounding, "bounding"),
                (&lists.effective, "effective", &lists.permitted, "permitted"),
            ] {
                if let Some(beyond) = set.iter().find(|capability| !within.contains(capability)) {
                    return Err(Error::invalid(format!(
                        "process.capabilities.{name} has {beyond}, which is not in {limit}: operation not permitted by the kernel"
                    )));
                }
            }
        }
        if let Some(adj) = self.oom_score_adj
            && !(-1000..=1000).contains(&adj)
        {
            return Err(Error::invalid(format!(
                "process.oomScoreAdj {adj} is outside -1000 to 1000"
            )));
        }
        Ok(())
    }
}
