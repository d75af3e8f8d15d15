//! From Docker's words to an OCI configuration.
//!
//! [`merge`] completes what the user asked for with what the image says, [`validate`] refuses what cannot be, and
//! [`compose`] makes the specification the runtime executes. All of it is a function of its arguments; what must be looked
//! up (users, devices, volumes, other containers) is looked up by the caller and handed in. See Docker's
//! `daemon/oci_linux.go` for the behaviour followed, and the OCI runtime specification 1.2 for the result.

pub mod devices;
pub mod merge;
pub mod modes;
pub mod mount_points;
mod mounts;
pub mod ports;
pub mod resources;
pub mod security;
pub mod user;
pub mod validate;
pub mod wall;

use std::path::PathBuf;

use vessel_runtime::capabilities::{CapSet, Sets};
use vessel_runtime::cgroup::resources::DeviceRule;
use vessel_runtime::spec::{
    CapabilityLists, ConsoleSize, IdMapping, Linux, Namespace, NamespaceKind, OCI_VERSION, Process, Rlimit,
    Root, Spec, User,
};

use crate::container::record::{MountRecord, Record};
use crate::{IdRange, Result};
use devices::Devices;
use modes::Ipc;
use security::{Filter, Security};
use user::Identity;

/// Where `--init` finds its program inside.
pub const INIT_PATH: &str = "/sbin/docker-init";

/// The search path of containers whose image names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Files that are mounted over the image's.
#[derive(Debug, Clone, Default)]
pub struct NameFiles {
    /// `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
}

/// A mount with its source settled.
#[derive(Debug, Clone)]
pub struct UserMount {
    /// What was asked for.
    pub record: MountRecord,
    /// The path on the host; unused for tmpfs.
    pub source: PathBuf,
    /// Whose files are shown as the container's user's, where that was asked for.
    pub owner: Option<Owner>,
}

/// The owner of a mount's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// Which namespaces a container has; a path joins another's.
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    /// None: the host's.
    pub network: Option<Option<PathBuf>>,
    /// None: the host's.
    pub pid: Option<Option<PathBuf>>,
    /// None: the host's.
    pub ipc: Option<Option<PathBuf>>,
    /// Whether it has its own.
    pub uts: bool,
    /// Whether it has its own.
    pub cgroup: bool,
    /// The IDs it is mapped to.
    pub user: Option<IdRange>,
}

/// Everything a specification is made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// What was asked for.
    pub record: &'a Record,
    /// Who it runs as.
    pub identity: Identity,
    /// Rights and filters.
    pub security: &'a Security,
    /// Device nodes and rules.
    pub devices: Devices,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// `--ipc`.
    pub ipc: Ipc,
    /// `/etc` files.
    pub names: NameFiles,
    /// Volumes, binds, tmpfs.
    pub mounts: Vec<UserMount>,
    /// The init program on the host, when it runs under one.
    pub init: Option<PathBuf>,
    /// Variables that links bring.
    pub link_environment: Vec<String>,
    /// Where its cgroup goes.
    pub cgroup: String,
}

/// Makes the specification.
///
/// # Errors
/// When a limit names a device that does not exist.
pub fn compose(inputs: Inputs<'_>) -> Result<Spec> {
    let record = inputs.record;
    let host = &record.host;
    let mounts = mounts::mounts(&inputs);
    let uts = inputs.namespaces.uts;
    let mut rules = vec![DeviceRule {
        allow: false,
        access: Some("rwm".into()),
        ..DeviceRule::default()
    }];
    let mut resources = resources::resources(&host.resources, Vec::new())?;
    if !host.privileged {
        resources.allow_default_devices();
        rules.append(&mut resources.devices);
    }
    rules.extend(inputs.devices.rules.iter().cloned());
    resources.devices = rules;
    let mappings: Vec<IdMapping> = inputs
        .namespaces
        .user
        .map(|range| IdMapping {
            container_id: 0,
            host_id: range.start,
            size: range.size,
        })
        .into_iter()
        .collect();
    Ok(Spec {
        oci_version: OCI_VERSION.to_owned(),
        root: Some(Root {
            path: "/".into(),
            readonly: host.readonly_rootfs,
        }),
        hostname: if uts {
            record.config.hostname.clone()
        } else {
            String::new()
        },
        domainname: if uts {
            record.config.domainname.clone()
        } else {
            String::new()
        },
        process: Some(process(&inputs)),
        mounts,
        hooks: None,
        annotations: host.annotations.clone(),
        linux: Some(Linux {
            namespaces: namespaces(&inputs.namespaces),
            uid_mappings: mappings.clone(),
            gid_mappings: mappings,
            devices: inputs.devices.nodes,
            cgroups_path: inputs.cgroup,
            resources: Some(resources),
            rootfs_propagation: mounts::root_propagation(&inputs.mounts).to_owned(),
            seccomp: match &inputs.security.filter {
                Filter::Custom(profile) => Some((**profile).clone()),
                Filter::Default | Filter::Unconfined => None,
            },
            sysctl: host.sysctls.clone(),
            masked_paths: mounts::paths(&host.masked_paths),
            readonly_paths: mounts::paths(&host.readonly_paths),
            ..Linux::default()
        }),
    })
}

fn process(inputs: &Inputs<'_>) -> Process {
    let record = inputs.record;
    let mut args = Vec::with_capacity(3 + record.args.len());
    if inputs.init.is_some() {
        args.extend([INIT_PATH.to_owned(), "--".to_owned()]);
    }
    args.push(record.path.clone());
    args.extend(record.args.iter().cloned());
    let [height, width] = record.host.console_size;
    let fits = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let size = ConsoleSize {
        height: fits(height),
        width: fits(width),
    };
    Process {
        terminal: record.config.tty,
        console_size: (record.config.tty && size != ConsoleSize::default()).then_some(size),
        user: user(&inputs.identity),
        args,
        env: environment(record, &inputs.link_environment),
        cwd: match record.config.working_dir.as_str() {
            "" => "/".into(),
            path => mount_points::clean(path).into(),
        },
        capabilities: Some(capabilities(inputs.security.capabilities, inputs.identity.uid)),
        rlimits: rlimits(record),
        no_new_privileges: inputs.security.no_new_privileges,
        apparmor_profile: inputs.security.apparmor.clone(),
        // In range: it was checked when the container was created.
        oom_score_adj: i32::try_from(record.host.oom_score_adj)
            .ok()
            .filter(|adj| *adj != 0),
        ..Process::default()
    }
}

/// An identity as the specification has it.
pub fn user(identity: &Identity) -> User {
    User {
        uid: identity.uid,
        gid: identity.gid,
        umask: None,
        additional_gids: identity.groups.clone(),
    }
}

/// The capability sets of a process of this user.
pub fn capabilities(bounding: CapSet, uid: u32) -> CapabilityLists {
    let sets = Sets::for_user(bounding, uid);
    CapabilityLists {
        bounding: sets.bounding.names(),
        effective: sets.effective.names(),
        permitted: sets.permitted.names(),
        inheritable: Vec::new(),
        ambient: Vec::new(),
    }
}

/// The environment: a search path, the host name, the terminal, what links say; then what was asked for. A name without a
/// value takes the variable away.
pub fn environment(record: &Record, links: &[String]) -> Vec<String> {
    let mut env = vec![
        format!("PATH={DEFAULT_PATH}"),
        format!("HOSTNAME={}", record.config.hostname),
    ];
    if record.config.tty {
        env.push("TERM=xterm".into());
    }
    env.extend_from_slice(links);
    override_env(&mut env, &record.config.env);
    env
}

/// Sets variables in an environment, in place where they are there.
pub fn override_env(env: &mut Vec<String>, changes: &[String]) {
    for change in changes {
        let name = change.split('=').next().unwrap_or_default();
        let same = |pair: &String| pair.split('=').next() == Some(name);
        if !change.contains('=') {
            env.retain(|pair| !same(pair));
        } else if let Some(pair) = env.iter_mut().find(|pair| same(pair)) {
            pair.clone_from(change);
        } else {
            env.push(change.clone());
        }
    }
}

fn rlimits(record: &Record) -> Vec<Rlimit> {
    // -1 is no limit, in two's complement the kernel's RLIM_INFINITY.
    record
        .host
        .resources
        .ulimits
        .iter()
        .map(|limit| Rlimit {
            kind: format!("RLIMIT_{}", limit.name.to_ascii_uppercase()),
            hard: limit.hard as u64,
            soft: limit.soft as u64,
        })
        .collect()
}

fn namespaces(asked: &Namespaces) -> Vec<Namespace> {
    let mut list = vec![Namespace {
        kind: NamespaceKind::Mount,
        path: None,
    }];
    for (kind, wanted) in [
        (NamespaceKind::Network, &asked.network),
        (NamespaceKind::Pid, &asked.pid),
        (NamespaceKind::Ipc, &asked.ipc),
    ] {
        if let Some(path) = wanted {
            list.push(Namespace {
                kind,
                path: path.clone(),
            });
        }
    }
    for (kind, wanted) in [
        (NamespaceKind::Uts, asked.uts),
        (NamespaceKind::Cgroup, asked.cgroup),
        (NamespaceKind::User, asked.user.is_some()),
    ] {
        if wanted {
            list.push(Namespace { kind, path: None });
        }
    }
    list
}

#[cfg(test)]
mod tests;
