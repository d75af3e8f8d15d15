//! `--isolation`: which wall a container is behind, and what that changes of what can be asked for.
//!
//! With `vm` the same image runs under a kernel of its own. What shares something of this host's kernel (its namespaces, its
//! devices, its mount propagation) has no meaning there and is refused when the container is created, in a sentence. Limits are
//! those of the machine: memory is what its kernel finds, processors are virtual ones.

use vessel_api::vessel::{ACCELERATOR, ISOLATION_VM, KERNEL, RUNTIME_VM};
use vessel_api::{HostConfig, Resources};

use super::modes::{Ipc, Namespace, NetworkMode};
use super::validate::number_list;
use crate::{Error, Result};

/// Memory of a machine unless told otherwise.
const MEMORY: u64 = 512 << 20;
/// What a stock kernel and its initramfs need to start.
const MIN_MEMORY: i64 = 64 << 20;
/// The most virtual processors that the monitor has.
const MAX_VCPUS: u64 = 255;

/// Whether a container is a virtual machine. Holds for what was [`settled`](settle).
pub fn is_machine(host: &HostConfig) -> bool {
    host.isolation == ISOLATION_VM
}

/// How large a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes of memory, a multiple of a page.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u8,
}

impl Size {
    /// From the limits: memory as it is limited, as many processors as are paid for, one unless told otherwise. A share of
    /// processors is rounded up; the cgroup caps what they use together.
    pub fn of(resources: &Resources) -> Self {
        let memory = u64::try_from(resources.memory).unwrap_or(0);
        let memory = if memory == 0 { MEMORY } else { memory };
        let positive = |number: i64| u64::try_from(number).unwrap_or(0);
        let quota = match (positive(resources.nano_cpus), positive(resources.cpu_quota)) {
            (0, 0) => 0,
            (0, quota) => match positive(resources.cpu_period) {
                // The kernel's own.
                0 => quota.div_ceil(100_000),
                period => quota.div_ceil(period),
            },
            (nano, _) => nano.div_ceil(1_000_000_000),
        };
        let pinned = number_list(&resources.cpuset_cpus).map_or(0, |set| set.len() as u64);
        let vcpus = match (quota, pinned) {
            (0, 0) => 1,
            (0, pinned) => pinned,
            (quota, 0) => quota,
            (quota, pinned) => quota.min(pinned),
        };
        Self {
            memory: memory & !0xfff,
            // In range: it was just made so.
            vcpus: vcpus.min(MAX_VCPUS) as u8,
        }
    }
}

/// Makes one of the two ways to ask for a machine (`--isolation vm`, `--runtime vessel-vm`) out of both, and one name out of those
/// of namespaces.
///
/// # Errors
/// The two contradict each other.
pub fn settle(host: &mut HostConfig) -> Result<()> {
    let by_runtime = host.runtime == RUNTIME_VM;
    match host.isolation.as_str() {
        ISOLATION_VM if by_runtime || host.runtime.is_empty() => RUNTIME_VM.clone_into(&mut host.runtime),
        ISOLATION_VM => {
            return Err(Error::invalid(format!(
                "conflicting options: --isolation vm and --runtime {}: leave one of them out",
                host.runtime
            )));
        }
        "" | "default" if by_runtime => ISOLATION_VM.clone_into(&mut host.isolation),
        other if by_runtime => {
            return Err(Error::invalid(format!(
                "conflicting options: --isolation {other} and --runtime {RUNTIME_VM}: leave one of them out"
            )));
        }
        // Docker's name for it on hosts that know both.
        "container" | "process" => "default".clone_into(&mut host.isolation),
        _ => {}
    }
    Ok(())
}

/// Refuses what has no meaning behind the wall that was asked for.
///
/// # Errors
/// The first such thing, by the option's name.
pub fn check(host: &HostConfig) -> Result<()> {
    if !is_machine(host) {
        return match [ACCELERATOR, KERNEL]
            .iter()
            .find(|key| host.annotations.contains_key(**key))
        {
            Some(key) => Err(Error::invalid(format!(
                "{key} has a meaning with --isolation vm only: containers have this host's kernel"
            ))),
            None => Ok(()),
        };
    }
    let meaningless = |what: &str, why: &str| {
        Err(Error::invalid(format!(
            "{what} has no meaning with --isolation vm: {why}"
        )))
    };
    let own_kernel = "the machine has a kernel of its own, and no other process is in it";
    match NetworkMode::parse(&host.network_mode)? {
        NetworkMode::Host => {
            return meaningless(
                "--network host",
                "the host's interfaces are not those of the machine's kernel",
            );
        }
        NetworkMode::Container(_) => {
            return meaningless(
                "--network container:",
                "interfaces belong to one kernel; put both on one network instead",
            );
        }
        NetworkMode::Bridge | NetworkMode::None | NetworkMode::Named(_) => {}
    }
    if Namespace::parse("PID", &host.pid_mode)? != Namespace::Private {
        return meaningless(&format!("--pid {}", host.pid_mode), own_kernel);
    }
    if !matches!(Ipc::parse(&host.ipc_mode)?, Ipc::Private | Ipc::None) {
        return meaningless(&format!("--ipc {}", host.ipc_mode), own_kernel);
    }
    if host.uts_mode == "host" {
        return meaningless("--uts host", "the machine's kernel has a name of its own");
    }
    if host.cgroupns_mode == "host" {
        return meaningless(
            "--cgroupns host",
            "the host's cgroups are not those of the machine's kernel",
        );
    }
    if !host.userns_mode.is_empty() {
        return meaningless(
            &format!("--userns {}", host.userns_mode),
            "users inside are nobody of the host without it",
        );
    }
    if let Some(device) = host.resources.devices.first() {
        return meaningless(
            &format!("--device {}", device.path_on_host),
            "the host's devices are not in reach of the machine's kernel",
        );
    }
    if !host.resources.device_requests.is_empty() {
        return meaningless(
            "--gpus",
            "the host's devices are not in reach of the machine's kernel",
        );
    }
    if !host.resources.device_cgroup_rules.is_empty() {
        return meaningless(
            "--device-cgroup-rule",
            "the host's devices are not in reach of the machine's kernel",
        );
    }
    if host.resources.memory != 0 && host.resources.memory < MIN_MEMORY {
        return Err(Error::invalid(format!(
            "--memory {} is too little with --isolation vm: the machine's kernel needs {} MiB to start",
            host.resources.memory,
            MIN_MEMORY >> 20
        )));
    }
    match host.annotations.get(ACCELERATOR).map(String::as_str) {
        None | Some("auto" | "kvm" | "soft") => Ok(()),
        Some(other) => Err(Error::invalid(format!(
            "{other:?} is no accelerator: kvm (the processor's virtualization), soft (a processor in software) or auto"
        ))),
    }
}

/// Refuses mounts that cannot be what they say behind the wall.
///
/// # Errors
/// The first such mount, by its destination.
pub fn check_mounts(host: &HostConfig, mounts: &[crate::container::record::MountRecord]) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    if !is_machine(host) {
        return Ok(());
    }
    for mount in mounts {
        let at = &mount.destination;
        if !matches!(mount.propagation.as_str(), "" | "private" | "rprivate") {
            return Err(Error::invalid(format!(
                "the mount at {at} cannot be {} with --isolation vm: mounts do not travel between kernels",
                mount.propagation
            )));
        }
        if mount.idmap {
            return Err(Error::invalid(format!(
                "the mount at {at} cannot have idmap with --isolation vm: leave it out"
            )));
        }
        if std::fs::metadata(&mount.source).is_ok_and(|found| found.file_type().is_socket()) {
            return Err(Error::invalid(format!(
                "the socket {} cannot be mounted with --isolation vm: nobody listens to it in the machine's kernel",
                mount.source
            )));
        }
    }
    Ok(())
}

/// The defaults of a machine that `inspect` shows.
pub fn fill_defaults(host: &mut HostConfig) {
    if is_machine(host) && host.cgroupns_mode.is_empty() {
        host.cgroupns_mode = "private".into();
    }
}

/// Whether a container has user IDs of its own where the daemon gives them a range. A machine has all of them anyway, and its
/// files have the owners that it sees.
pub fn is_remapped(host: &HostConfig) -> bool {
    host.userns_mode != "host" && !is_machine(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_api::DeviceMapping;

    fn machine() -> HostConfig {
        HostConfig {
            isolation: ISOLATION_VM.into(),
            ..HostConfig::default()
        }
    }

    #[test]
    fn there_are_two_ways_to_ask_for_it() {
        let settled = |isolation: &str, runtime: &str| {
            let mut host = HostConfig {
                isolation: isolation.into(),
                runtime: runtime.into(),
                ..HostConfig::default()
            };
            settle(&mut host).map(|()| (host.isolation, host.runtime))
        };
        let vm = (ISOLATION_VM.to_owned(), RUNTIME_VM.to_owned());
        assert_eq!(settled("vm", "").unwrap(), vm);
        assert_eq!(settled("", "vessel-vm").unwrap(), vm);
        assert_eq!(settled("default", "vessel-vm").unwrap(), vm);
        // As somebody sends it who read it of another container.
        assert_eq!(settled("vm", "vessel-vm").unwrap(), vm);
        assert!(settled("vm", "runc").is_err());
        assert!(settled("container", "vessel-vm").is_err());
        assert_eq!(settled("container", "").unwrap().0, "default");
        assert_eq!(settled("", "").unwrap().0, "");
    }

    #[test]
    fn what_has_no_meaning_is_refused_in_a_sentence() {
        check(&machine()).unwrap();
        check(&HostConfig::default()).unwrap();
        let refused = |change: fn(&mut HostConfig)| {
            let mut host = machine();
            change(&mut host);
            check(&host).unwrap_err().to_string()
        };
        for (message, option) in [
            (refused(|h| h.network_mode = "host".into()), "--network host"),
            (
                refused(|h| h.network_mode = "container:x".into()),
                "--network container:",
            ),
            (refused(|h| h.pid_mode = "host".into()), "--pid host"),
            (
                refused(|h| h.pid_mode = "container:x".into()),
                "--pid container:x",
            ),
            (refused(|h| h.ipc_mode = "host".into()), "--ipc host"),
            (refused(|h| h.ipc_mode = "shareable".into()), "--ipc shareable"),
            (refused(|h| h.uts_mode = "host".into()), "--uts host"),
            (refused(|h| h.userns_mode = "host".into()), "--userns host"),
            (refused(|h| h.cgroupns_mode = "host".into()), "--cgroupns host"),
            (
                refused(|h| {
                    h.resources.devices.push(DeviceMapping {
                        path_on_host: "/dev/fuse".into(),
                        ..DeviceMapping::default()
                    });
                }),
                "--device /dev/fuse",
            ),
            (
                refused(|h| h.resources.device_requests.push(Default::default())),
                "--gpus",
            ),
            (
                refused(|h| h.resources.device_cgroup_rules.push("c 1:3 r".into())),
                "--device-cgroup-rule",
            ),
        ] {
            assert!(
                message.starts_with(&format!("{option} has no meaning with --isolation vm: ")),
                "{message}"
            );
        }
        assert!(refused(|h| h.resources.memory = 32 << 20).contains("needs 64 MiB"));
        assert!(refused(|h| drop(h.annotations.insert(ACCELERATOR.into(), "tcg".into()))).contains("soft"));
        let mut container = HostConfig::default();
        container.annotations.insert(KERNEL.into(), "small".into());
        assert!(check(&container).unwrap_err().to_string().contains(KERNEL));
    }

    #[test]
    fn processors_are_rounded_up_and_memory_down_to_pages() {
        let size = |change: fn(&mut Resources)| {
            let mut resources = Resources::default();
            change(&mut resources);
            let size = Size::of(&resources);
            (size.memory >> 10, size.vcpus)
        };
        assert_eq!(size(|_| ()), (512 << 10, 1));
        assert_eq!(size(|r| r.memory = (96 << 20) + 5), (96 << 10, 1));
        assert_eq!(size(|r| r.nano_cpus = 1_500_000_000).1, 2);
        assert_eq!(size(|r| r.nano_cpus = 10_000_000).1, 1);
        assert_eq!(size(|r| r.cpu_quota = 250_000).1, 3);
        assert_eq!(
            size(|r| {
                r.cpu_quota = 5_000;
                r.cpu_period = 1_000;
            })
            .1,
            5
        );
        assert_eq!(size(|r| r.cpuset_cpus = "0-2,7".into()).1, 4);
        assert_eq!(
            size(|r| {
                r.cpuset_cpus = "1".into();
                r.nano_cpus = 4_000_000_000;
            })
            .1,
            1
        );
        assert_eq!(size(|r| r.nano_cpus = i64::MAX).1, 255);
    }
}
