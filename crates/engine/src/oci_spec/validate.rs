//! What can be refused at creation, in Docker's words where it has some, and the defaults that `inspect` shows.

use std::collections::BTreeSet;

use vessel_api::vessel::{ISOLATION_VM, RUNTIME_VM};
use vessel_api::{ContainerConfig, HostConfig, Resources, RestartPolicy};

use super::modes::{Ipc, Namespace, NetworkMode};
use super::wall;
use crate::{Error, Result};

/// What Docker calls the least: a process needs that much to start.
const MIN_MEMORY: i64 = 6 << 20;
/// `/dev/shm` unless told otherwise.
const SHM_SIZE: i64 = 64 << 20;

/// What of this host limits what can be asked for.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// Processors in use.
    pub cpus: BTreeSet<u32>,
    /// Memory nodes in use.
    pub memory_nodes: BTreeSet<u32>,
    /// Whether cgroups are v2.
    pub cgroup_v2: bool,
    /// Whether containers have user namespaces.
    pub userns_remap: bool,
}

/// What the built-in runtime is called: its own name and those that Docker's has, and the name that asks for a machine.
pub const RUNTIMES: [&str; 4] = ["vessel", "runc", "io.containerd.runc.v2", RUNTIME_VM];

/// Paths that are hidden unless told otherwise: what shows or breaks the host.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that are read-only unless told otherwise.
pub const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Fills in the defaults that `inspect` shows.
pub fn fill_defaults(host: &mut HostConfig, facts: &HostFacts, unconfined: bool) {
    let default = |value: &mut String, default: &str| {
        if value.is_empty() {
            default.clone_into(value);
        }
    };
    if matches!(host.network_mode.as_str(), "" | "default") {
        host.network_mode = "bridge".into();
    }
    default(&mut host.ipc_mode, "private");
    wall::fill_defaults(host);
    default(
        &mut host.cgroupns_mode,
        if facts.cgroup_v2 { "private" } else { "host" },
    );
    default(&mut host.restart_policy.name, "no");
    default(&mut host.log_config.kind, "json-file");
    default(&mut host.runtime, "vessel");
    if host.shm_size == 0
        && !matches!(host.ipc_mode.as_str(), "host" | "none")
        && !host.ipc_mode.starts_with("container:")
    {
        host.shm_size = SHM_SIZE;
    }
    let resources = &mut host.resources;
    if resources.memory > 0 && resources.memory_swap == 0 {
        resources.memory_swap = resources.memory.saturating_mul(2);
    }
    if resources.pids_limit.is_some_and(|limit| limit <= 0) {
        resources.pids_limit = None;
    }
    resources.oom_kill_disable.get_or_insert(false);
    let paths = |list: &[&str]| Some(list.iter().map(|path| (*path).to_owned()).collect());
    if unconfined {
        host.masked_paths = Some(Vec::new());
        host.readonly_paths = Some(Vec::new());
    }
    if host.masked_paths.is_none() {
        host.masked_paths = paths(&MASKED_PATHS);
    }
    if host.readonly_paths.is_none() {
        host.readonly_paths = paths(&READONLY_PATHS);
    }
}

/// Checks everything that can be known without looking at the image or at other containers. Returns warnings.
///
/// # Errors
/// The first thing that is wrong, by name.
pub fn check(config: &ContainerConfig, host: &HostConfig, facts: &HostFacts) -> Result<Vec<String>> {
    portable(config)?;
    let network = NetworkMode::parse(&host.network_mode)?;
    conflicts(config, host, &network)?;
    restart_policy(&host.restart_policy)?;
    if host.auto_remove && !host.restart_policy.is_none() {
        return Err(Error::invalid(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    if host.shm_size < 0 {
        return Err(Error::invalid("SHM size can not be less than 0"));
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    if host.privileged && facts.userns_remap && wall::is_remapped(host) {
        return Err(Error::invalid(
            "privileged mode is incompatible with user namespaces: run the container in the host's with --userns=host",
        ));
    }
    Namespace::parse("userns", &host.userns_mode)?;
    let pid = Namespace::parse("PID", &host.pid_mode)?;
    Namespace::parse("UTS", &host.uts_mode)?;
    let ipc = Ipc::parse(&host.ipc_mode)?;
    if !matches!(host.cgroupns_mode.as_str(), "" | "host" | "private") {
        return Err(Error::invalid(format!(
            "invalid cgroup namespace mode: {}",
            host.cgroupns_mode
        )));
    }
    if !matches!(host.isolation.as_str(), "" | "default" | ISOLATION_VM) {
        return Err(Error::unsupported(format!(
            "isolation {:?} is not available: default (namespaces of this host's kernel) and vm (a kernel of its own) are",
            host.isolation
        )));
    }
    wall::check(host)?;
    crate::quota::storage_option(&host.storage_opt)?;
    if !host.runtime.is_empty() && !RUNTIMES.contains(&host.runtime.as_str()) {
        return Err(Error::invalid(format!(
            "unknown or invalid runtime name: {}",
            host.runtime
        )));
    }
    sysctls(host, &network, &ipc)?;
    crate::container::log_drivers::check(host)?;
    for limit in &host.resources.ulimits {
        ulimit(limit)?;
    }
    let _ = pid;
    resources(&host.resources, facts, false)
}

/// What does not depend on the host.
fn portable(config: &ContainerConfig) -> Result<()> {
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    for pair in &config.env {
        if pair.is_empty() || pair.starts_with('=') || pair.contains('\0') {
            return Err(Error::invalid(format!("invalid environment variable: {pair:?}")));
        }
    }
    for (what, name) in [("hostname", &config.hostname), ("domainname", &config.domainname)] {
        if name.len() > 64
            || name
                .bytes()
                .any(|byte| byte <= b' ' || byte == b'/' || byte == 0x7f)
        {
            return Err(Error::invalid(format!(
                "invalid {what} {name:?}: at most 64 characters, no spaces, slashes or control characters"
            )));
        }
    }
    if !config.stop_signal.is_empty() {
        crate::signal::parse(&config.stop_signal)?;
    }
    let words = config.entrypoint.iter().flatten().chain(&config.cmd);
    if words
        .chain([&config.user, &config.working_dir])
        .any(|word| word.contains('\0'))
    {
        return Err(Error::invalid(
            "commands, users and paths must not contain NUL characters",
        ));
    }
    for port in config.exposed_ports.keys() {
        super::ports::parse_port(port)?;
    }
    Ok(())
}

fn conflicts(config: &ContainerConfig, host: &HostConfig, network: &NetworkMode) -> Result<()> {
    let refuse = |what: &str| Err(Error::invalid(format!("conflicting options: {what}")));
    if host.uts_mode == "host" && !config.hostname.is_empty() {
        return refuse("hostname and the UTS mode");
    }
    if let NetworkMode::Container(_) = network {
        if !config.hostname.is_empty() {
            return refuse("hostname and the network mode");
        }
        if !host.dns.is_empty() {
            return refuse("dns and the network mode");
        }
        if !host.extra_hosts.is_empty() {
            return refuse("custom host-to-IP mapping and the network mode");
        }
        if !config.mac_address.is_empty() {
            return refuse("mac-address and the network mode");
        }
        if host.port_bindings.values().flatten().flatten().next().is_some() || host.publish_all_ports {
            return refuse("port publishing and the container type network mode");
        }
        if !config.exposed_ports.is_empty() {
            return refuse("port exposing and the container type network mode");
        }
    }
    Ok(())
}

/// Checks a restart policy.
///
/// # Errors
/// An unknown name, a count where there is none.
pub fn restart_policy(policy: &RestartPolicy) -> Result<()> {
    let count = policy.maximum_retry_count;
    match policy.name.as_str() {
        "always" | "unless-stopped" | "no" | "" if count != 0 => Err(Error::invalid(format!(
            "invalid restart policy: maximum retry count can only be used with 'on-failure', not with '{}'",
            policy.name
        ))),
        "always" | "unless-stopped" | "no" | "" => Ok(()),
        "on-failure" if count < 0 => Err(Error::invalid(
            "invalid restart policy: maximum retry count cannot be negative",
        )),
        "on-failure" => Ok(()),
        other => Err(Error::invalid(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ))),
    }
}

fn sysctls(host: &HostConfig, network: &NetworkMode, ipc: &Ipc) -> Result<()> {
    for (name, value) in &host.sysctls {
        let name = name.as_str();
        if name.is_empty()
            || name
                .split('.')
                .any(|part| part.is_empty() || part.contains('/') || part == "..")
        {
            return Err(Error::invalid(format!("sysctl {name:?} is not a name")));
        }
        if value.contains('\0') {
            return Err(Error::invalid(format!(
                "the value of sysctl {name:?} contains a NUL character"
            )));
        }
        let ipc_names = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
            "kernel.shm_rmid_forced",
        ];
        if name.starts_with("net.") {
            if *network == NetworkMode::Host {
                return Err(Error::invalid(format!(
                    "sysctl \"{name}\" not allowed in host network namespace"
                )));
            }
        } else if name.starts_with("fs.mqueue.") || ipc_names.contains(&name) {
            if matches!(ipc, Ipc::Host) {
                return Err(Error::invalid(format!(
                    "sysctl \"{name}\" not allowed in host ipc namespace"
                )));
            }
        } else if name == "kernel.domainname" {
            if host.uts_mode == "host" {
                return Err(Error::invalid(format!(
                    "sysctl \"{name}\" not allowed in host UTS namespace"
                )));
            }
        } else if name == "kernel.hostname" {
            return Err(Error::invalid(
                "sysctl \"kernel.hostname\" conflicts with --hostname: use that",
            ));
        } else if !wall::is_machine(host) {
            return Err(Error::invalid(format!(
                "sysctl \"{name}\" is not in a separate kernel namespace: it would change the host"
            )));
        }
    }
    Ok(())
}

/// `10m`, `1g`, `512kb`, `1024`: units of 1024, as Docker's.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim().trim_end_matches("ib").trim_end_matches('b');
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let value = number * 1024_f64.powi(power);
    (value < u64::MAX as f64).then_some(value as u64)
}

fn ulimit(limit: &vessel_api::Ulimit) -> Result<()> {
    if !vessel_api::Ulimit::NAMES.contains(&limit.name.as_str()) {
        return Err(Error::invalid(format!("invalid ulimit type: {}", limit.name)));
    }
    if limit.hard >= 0 && (limit.soft > limit.hard || limit.soft < 0) {
        return Err(Error::invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            limit.soft, limit.hard
        )));
    }
    Ok(())
}

/// Checks limits. `update` when they change a container that exists.
///
/// # Errors
/// The first that is out of range.
pub fn resources(asked: &Resources, facts: &HostFacts, update: bool) -> Result<Vec<String>> {
    let refuse = |message: String| Err(Error::invalid(message));
    let mut warnings = Vec::new();
    let memory = asked.memory;
    if memory != 0 && memory < MIN_MEMORY {
        return refuse("Minimum memory limit allowed is 6MB".into());
    }
    if memory > 0 && asked.memory_swap > 0 && asked.memory_swap < memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage".into());
    }
    if memory == 0 && asked.memory_swap > 0 && !update {
        return refuse(
            "You should always set the Memory limit when using Memoryswap limit, see usage".into(),
        );
    }
    if asked.memory_swap < -1 {
        return refuse(format!(
            "invalid memory swap {}: -1 is unlimited",
            asked.memory_swap
        ));
    }
    if let Some(swappiness) = asked.memory_swappiness
        && !(-1..=100).contains(&swappiness)
    {
        return refuse(format!(
            "Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        ));
    }
    if asked.memory_reservation != 0 && asked.memory_reservation < MIN_MEMORY {
        return refuse("Minimum memory reservation allowed is 6MB".into());
    }
    if memory > 0 && asked.memory_reservation > memory {
        return refuse(
            "Minimum memory limit can not be less than memory reservation limit, see usage".into(),
        );
    }
    if asked.oom_kill_disable == Some(true) && memory == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.".into(),
        );
    }
    if asked.kernel_memory != 0 || asked.kernel_memory_tcp != 0 {
        warnings.push("kernel memory limits are ignored: kernels since 5.4 have none".into());
    }
    cpu(asked, facts)?;
    if asked.blkio_weight != 0 && !(10..=1000).contains(&asked.blkio_weight) {
        return refuse("Range of blkio weight is from 10 to 1000".into());
    }
    for device in &asked.blkio_weight_device {
        if device.weight != 0 && !(10..=1000).contains(&device.weight) {
            return refuse(format!(
                "Range of blkio weight is from 10 to 1000: {} of {}",
                device.weight, device.path
            ));
        }
    }
    Ok(warnings)
}

fn cpu(asked: &Resources, facts: &HostFacts) -> Result<()> {
    let refuse = |message: String| Err(Error::invalid(message));
    let count = facts.cpus.len();
    if asked.nano_cpus > 0 && asked.cpu_period > 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Period cannot both be set.".into());
    }
    if asked.nano_cpus > 0 && asked.cpu_quota > 0 {
        return refuse("Conflicting options: Nano CPUs and CPU Quota cannot both be set.".into());
    }
    let most = i64::try_from(count)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000_000);
    // The kernel takes no quota below a millisecond.
    if asked.nano_cpus < 0 || asked.nano_cpus > most || (1..10_000_000).contains(&asked.nano_cpus) {
        return refuse(format!(
            "Range of CPUs is from 0.01 to {count}.00, as there are only {count} CPUs available"
        ));
    }
    if asked.cpu_shares < 0 {
        return refuse(format!(
            "invalid CPU shares ({}): value must be a positive integer",
            asked.cpu_shares
        ));
    }
    if asked.cpu_period != 0 && !(1_000..=1_000_000).contains(&asked.cpu_period) {
        return refuse(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)".into(),
        );
    }
    if asked.cpu_quota > 0 && asked.cpu_quota < 1_000 {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)".into());
    }
    if asked.cpu_quota < -1 {
        return refuse(format!(
            "invalid CPU cfs quota {}: -1 is unlimited",
            asked.cpu_quota
        ));
    }
    let list = |set: &BTreeSet<u32>| {
        let numbers: Vec<String> = set.iter().map(u32::to_string).collect();
        numbers.join(",")
    };
    for (what, name, asked, there) in [
        ("cpuset cpus", "CPUs", &asked.cpuset_cpus, &facts.cpus),
        (
            "cpuset mems",
            "memory nodes",
            &asked.cpuset_mems,
            &facts.memory_nodes,
        ),
    ] {
        let set =
            number_list(asked).ok_or_else(|| Error::invalid(format!("Invalid value {asked} for {what}")))?;
        if !set.is_subset(there) {
            return refuse(format!(
                "Requested {name} are not available - requested {asked}, available: {}",
                list(there)
            ));
        }
    }
    Ok(())
}

/// The kernel's lists of numbers: `0-2,7`. `None` when it is not one.
pub fn number_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut set = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (
            first.trim().parse::<u32>().ok()?,
            last.trim().parse::<u32>().ok()?,
        );
        // No machine has more; a larger range would only fill memory.
        if first > last || last > 65_535 {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vessel_api::Ulimit;

    use super::*;

    fn facts() -> HostFacts {
        HostFacts {
            cpus: [0, 1].into(),
            memory_nodes: [0].into(),
            ..HostFacts::default()
        }
    }

    fn refused(change: impl FnOnce(&mut ContainerConfig, &mut HostConfig)) -> String {
        let (mut config, mut host) = (ContainerConfig::default(), HostConfig::default());
        change(&mut config, &mut host);
        check(&config, &host, &facts())
            .expect_err("it was accepted")
            .message()
            .to_owned()
    }

    #[test]
    fn values_out_of_range_are_refused_in_dockers_words() {
        let ulimit = |name: &str, soft, hard| {
            vec![Ulimit {
                name: name.into(),
                soft,
                hard,
            }]
        };
        for (message, needle) in [
            (
                refused(|_, h| h.resources.memory = 1 << 20),
                "Minimum memory limit allowed is 6MB",
            ),
            (
                refused(|_, h| h.resources.memory_swap = 1 << 30),
                "You should always set the Memory limit",
            ),
            (
                refused(|_, h| h.resources.memory_swappiness = Some(101)),
                "valid memory swappiness range is 0-100",
            ),
            (
                refused(|_, h| h.resources.nano_cpus = 3_000_000_000),
                "Range of CPUs is from 0.01 to 2.00",
            ),
            (
                refused(|_, h| h.resources.nano_cpus = 1),
                "Range of CPUs is from 0.01",
            ),
            (refused(|_, h| h.resources.cpu_period = 1), "CPU cfs period"),
            (refused(|_, h| h.resources.cpu_quota = 1), "CPU cfs quota"),
            (
                refused(|_, h| h.resources.cpuset_cpus = "5".into()),
                "Requested CPUs are not available",
            ),
            (
                refused(|_, h| h.resources.cpuset_cpus = "a".into()),
                "Invalid value a for cpuset cpus",
            ),
            (
                refused(|_, h| h.resources.blkio_weight = 5),
                "Range of blkio weight is from 10 to 1000",
            ),
            (
                refused(|_, h| h.oom_score_adj = 1001),
                "range for oom score adj is [-1000, 1000]",
            ),
            (refused(|_, h| h.shm_size = -1), "SHM size can not be less than 0"),
            (
                refused(|_, h| h.resources.ulimits = ulimit("x", 1, 1)),
                "invalid ulimit type: x",
            ),
            (
                refused(|_, h| h.resources.ulimits = ulimit("nofile", 2, 1)),
                "soft limit must be less than",
            ),
            (
                refused(|_, h| h.restart_policy.name = "maybe".into()),
                "unknown policy 'maybe'",
            ),
            (
                refused(|_, h| {
                    h.restart_policy.name = "always".into();
                    h.auto_remove = true;
                }),
                "can't create 'AutoRemove' container with restart policy",
            ),
            (
                refused(|c, _| c.working_dir = "here".into()),
                "the working directory 'here' is invalid",
            ),
            (
                refused(|c, _| c.env = vec!["=x".into()]),
                "invalid environment variable",
            ),
            (refused(|c, _| c.hostname = "a b".into()), "invalid hostname"),
            (refused(|c, _| c.stop_signal = "SIGNONE".into()), "SIGNONE"),
            (
                refused(|c, h| {
                    c.hostname = "x".into();
                    h.network_mode = "container:y".into();
                }),
                "conflicting options: hostname and the network mode",
            ),
            (
                refused(|_, h| {
                    h.network_mode = "host".into();
                    h.sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
                }),
                "not allowed in host network namespace",
            ),
            (
                refused(|_, h| drop(h.sysctls.insert("vm.swappiness".into(), "1".into()))),
                "is not in a separate kernel namespace",
            ),
            (
                refused(|_, h| h.log_config.kind = "asdf".into()),
                "no log driver named 'asdf'",
            ),
            (
                refused(|_, h| drop(h.log_config.config.insert("max-size".into(), "much".into()))),
                "invalid value for max-size",
            ),
            (refused(|_, h| h.isolation = "hyperv".into()), "not available"),
        ] {
            assert!(message.contains(needle), "{message:?} does not say {needle:?}");
        }
        check(&ContainerConfig::default(), &HostConfig::default(), &facts()).unwrap();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes("10m"), Some(10 << 20));
        assert_eq!(bytes("1.5kb"), Some(1536));
        assert_eq!(bytes("2GiB"), Some(2 << 30));
        assert_eq!(bytes("7"), Some(7));
        assert_eq!(bytes("x"), None);
    }

    proptest! {
        #[test]
        fn any_list_is_survived(text in "[0-9,x -]{0,20}") {
            if let Some(set) = number_list(&text) {
                prop_assert!(set.iter().all(|number| *number <= 65_535));
            }
        }
    }
}
