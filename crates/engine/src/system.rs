//! The engine and its host: `info`, `version`, `system df`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use vessel_api::{
    ComponentVersion, DiskUsage, IndexInfo, Info, Map, PlatformName, PluginsInfo, RegistryConfig,
    RuntimeInfo, SwarmInfo, Version, VolumeUsage,
};
use vessel_runtime::cgroup::{Controller, Hierarchies, Mode, Version as CgroupVersion};

use crate::container::record::Status;
use crate::images::ImageListOptions;
use crate::{Engine, Filters, ListOptions, Result, blocking, time};

/// The version of the engine.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How roots of containers are stored, in Docker's word for layers joined by overlayfs.
pub const STORAGE_DRIVER: &str = "overlay2";

/// What of the disk usage is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsageOptions {
    /// Containers.
    pub containers: bool,
    /// Images and their layers.
    pub images: bool,
    /// Volumes.
    pub volumes: bool,
    /// The build cache, which whoever has the builder adds.
    pub build_cache: bool,
    /// Everything below the engine's root, which Docker does not tell.
    pub items: bool,
}

impl DiskUsageOptions {
    /// All that Docker tells.
    pub fn everything() -> Self {
        Self {
            containers: true,
            images: true,
            volumes: true,
            build_cache: true,
            items: false,
        }
    }
}

impl Engine {
    /// The versions of the engine and what belongs to it; the API's are the server's to say.
    pub fn version(&self, api: &str, oldest_api: &str) -> Version {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let details = [
            ("ApiVersion", api),
            ("MinAPIVersion", oldest_api),
            ("Arch", go_architecture()),
            ("Os", "linux"),
            ("KernelVersion", &kernel),
            ("Experimental", "false"),
        ];
        let component = |name: &str, details: &[(&str, &str)]| ComponentVersion {
            name: name.to_owned(),
            version: VERSION.to_owned(),
            details: details
                .iter()
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        };
        Version {
            platform: PlatformName {
                name: "Vessel".to_owned(),
            },
            components: vec![
                component("Engine", &details),
                component("runtime", &[]),
                component("shim", &[]),
            ],
            version: VERSION.to_owned(),
            api_version: api.to_owned(),
            min_api_version: oldest_api.to_owned(),
            os: "linux".to_owned(),
            arch: go_architecture().to_owned(),
            kernel_version: kernel,
            ..Version::default()
        }
    }

    /// The engine, the host, and what the one can do on the other.
    pub fn info(&self) -> Info {
        let states: Vec<Status> = self
            .containers()
            .iter()
            .map(|container| container.state().status)
            .collect();
        let count = |wanted: &[Status]| states.iter().filter(|status| wanted.contains(status)).count() as i64;
        let running = count(&[Status::Running, Status::Restarting]);
        let paused = count(&[Status::Paused]);
        let images = self.images().count() as i64;
        let mut info = Info {
            id: self.id().to_owned(),
            containers: states.len() as i64,
            containers_running: running,
            containers_paused: paused,
            containers_stopped: states.len() as i64 - running - paused,
            images,
            driver: STORAGE_DRIVER.to_owned(),
            driver_status: storage_status(&self.config().root),
            plugins: PluginsInfo {
                volume: self.volume_drivers(),
                network: ["bridge", "host", "ipvlan", "macvlan", "null"]
                    .map(str::to_owned)
                    .to_vec(),
                authorization: Vec::new(),
                log: crate::container::log_drivers::DRIVERS.map(str::to_owned).to_vec(),
            },
            n_events_listener: self.events().listeners() as i64,
            system_time: time::rfc3339(time::now()),
            logging_driver: "json-file".to_owned(),
            index_server_address: "https://index.docker.io/v1/".to_owned(),
            registry_config: Some(registry_config()),
            docker_root_dir: self.config().root.display().to_string(),
            server_version: VERSION.to_owned(),
            runtimes: runtimes(),
            default_runtime: "vessel".to_owned(),
            swarm: SwarmInfo {
                local_node_state: "inactive".to_owned(),
                ..SwarmInfo::default()
            },
            live_restore_enabled: true,
            init_binary: "vessel-init".to_owned(),
            security_options: vec![
                "name=seccomp,profile=builtin".to_owned(),
                "name=cgroupns".to_owned(),
            ],
            ..Info::default()
        };
        if self.config().userns_remap.is_some() {
            info.security_options.push("name=userns".to_owned());
        }
        let devices = crate::cdi::Registry::read(&self.config().cdi_spec_dirs);
        info.discovered_devices = devices.list();
        info.warnings.extend_from_slice(devices.faults());
        let directory = |path: &std::path::PathBuf| path.display().to_string();
        info.cdi_spec_dirs = self.config().cdi_spec_dirs.iter().map(directory).collect();
        describe_host(&mut info);
        describe_cgroups(&mut info, &self.hierarchies);
        info
    }

    /// What takes how much of the disk.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub async fn disk_usage(self: &Arc<Self>, wanted: DiskUsageOptions) -> Result<DiskUsage> {
        let mut usage = DiskUsage::default();
        if wanted.images {
            let options = ImageListOptions {
                all: true,
                filters: Filters::default(),
                shared_size: true,
            };
            usage.images = self.image_list(options).await?;
            let engine = Arc::clone(self);
            usage.layers_size = blocking(move || {
                // What only the bin needs is counted there.
                let removed = engine.only_in_bin()?;
                let layers = engine.images().content().layers()?;
                let kept = layers.iter().filter(|layer| !removed.contains(&layer.chain_id));
                Ok(kept.map(|layer| layer.size).sum::<u64>() as i64)
            })
            .await?;
        }
        if wanted.containers {
            let options = ListOptions {
                all: true,
                size: true,
                ..ListOptions::default()
            };
            usage.containers = self.container_list(options).await?;
        }
        if wanted.volumes {
            let mut volumes = self.volume_list(&Filters::default()).await?.volumes;
            for volume in &mut volumes {
                volume.usage_data = Some(VolumeUsage {
                    ref_count: self.volume_references(&volume.name) as i64,
                    size: -1,
                });
            }
            usage.volumes = blocking(move || {
                // What others mount there is not ours, and a server may not answer.
                let plain = |volume: &&mut vessel_api::Volume| {
                    volume.driver == "local" && volume.options.keys().all(|name| name == "size")
                };
                for volume in volumes.iter_mut().filter(plain) {
                    let size = crate::volumes::tree_size(Path::new(&volume.mountpoint)) as i64;
                    if let Some(data) = &mut volume.usage_data {
                        data.size = size;
                    }
                }
                Ok(volumes)
            })
            .await?;
        }
        if wanted.items {
            usage.vessel_items = self.disk_items().await?;
        }
        Ok(usage)
    }
}

/// The memory of the host in bytes.
pub(crate) fn memory_total() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

/// Go's word for this architecture, which images use as well.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn storage_status(root: &Path) -> Vec<[String; 2]> {
    let file_system =
        rustix::fs::statfs(root).map_or("not known", |found| match found.f_type as u64 & 0xffff_ffff {
            0xef53 => "extfs",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x0102_1994 => "tmpfs",
            0x794c_7630 => "overlayfs",
            0x2fc1_2fc1 => "zfs",
            0xf2f5_2010 => "f2fs",
            _ => "other",
        });
    [
        ("Backing Filesystem", file_system),
        ("Supports d_type", "true"),
        ("Native Overlay Diff", "true"),
    ]
    .map(|(name, value)| [name.to_owned(), value.to_owned()])
    .to_vec()
}

fn registry_config() -> RegistryConfig {
    let docker = IndexInfo {
        name: "docker.io".to_owned(),
        mirrors: Vec::new(),
        secure: true,
        official: true,
    };
    RegistryConfig {
        insecure_registry_cidrs: vec!["127.0.0.0/8".to_owned()],
        index_configs: Map::from([("docker.io".to_owned(), docker)]),
        ..RegistryConfig::default()
    }
}

fn describe_host(info: &mut Info) {
    let uname = rustix::system::uname();
    info.kernel_version = uname.release().to_string_lossy().into_owned();
    info.architecture = uname.machine().to_string_lossy().into_owned();
    info.name = uname.nodename().to_string_lossy().into_owned();
    info.os_type = "linux".to_owned();
    let release =
        fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    let release = release.unwrap_or_default();
    info.operating_system = os_release(&release, "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned());
    info.os_version = os_release(&release, "VERSION_ID").unwrap_or_default();
    info.ncpu = rustix::thread::sched_getaffinity(None).map_or(1, |set| i64::from(set.count()));
    info.mem_total = memory_total() as i64;
    info.ipv4_forwarding =
        fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1");
    info.n_fd = fs::read_dir("/proc/self/fd").map_or(-1, |entries| entries.count() as i64);
    // There are no goroutines; the nearest thing that can be counted are threads.
    info.n_goroutines = fs::read_dir("/proc/self/task").map_or(-1, |entries| entries.count() as i64);
    if !info.ipv4_forwarding {
        info.warnings
            .push("WARNING: IPv4 forwarding is disabled".to_owned());
    }
}

/// A value of os-release(5), without its quotes.
fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

fn describe_cgroups(info: &mut Info, hierarchies: &Hierarchies) {
    info.cgroup_driver = "cgroupfs".to_owned();
    let unified = hierarchies.mode() == Mode::V2;
    info.cgroup_version = if unified { "2" } else { "1" }.to_owned();
    let has = |controller| hierarchies.has(controller);
    // Whether the controller's root directory has a file. On v2 limits are not in the root but in every cgroup below.
    let offers = |controller, file: &str| {
        hierarchies.list().iter().any(|hierarchy| {
            hierarchy.controllers.contains(&controller)
                && (hierarchy.version == CgroupVersion::V2 || hierarchy.mount.join(file).exists())
        })
    };
    info.memory_limit = has(Controller::Memory);
    info.swap_limit = offers(Controller::Memory, "memory.memsw.limit_in_bytes");
    info.oom_kill_disable = !unified && offers(Controller::Memory, "memory.oom_control");
    info.cpu_cfs_period = offers(Controller::Cpu, "cpu.cfs_period_us");
    info.cpu_cfs_quota = offers(Controller::Cpu, "cpu.cfs_quota_us");
    info.cpu_shares = has(Controller::Cpu);
    info.cpu_set = has(Controller::Cpuset);
    info.pids_limit = has(Controller::Pids);
    for (there, name) in [
        (info.memory_limit, "memory limit"),
        (info.swap_limit, "swap limit"),
        (info.cpu_cfs_quota, "cpu cfs quota"),
        (info.cpu_cfs_period, "cpu cfs period"),
        (info.cpu_shares, "cpu shares"),
        (info.cpu_set, "cpuset"),
        (info.pids_limit, "pids limit"),
    ] {
        if !there {
            info.warnings.push(format!("WARNING: No {name} support"));
        }
    }
}

/// The names under which the built-in runtime answers: clients and scripts ask for Docker's by name.
fn runtimes() -> Map<RuntimeInfo> {
    crate::oci_spec::validate::RUNTIMES
        .iter()
        .map(|name| {
            let runtime = RuntimeInfo {
                path: "vessel".to_owned(),
                ..RuntimeInfo::default()
            };
            ((*name).to_owned(), runtime)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values() {
        let text = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID='12'\nID=debian\n";
        assert_eq!(
            os_release(text, "PRETTY_NAME").unwrap(),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_release(text, "VERSION_ID").unwrap(), "12");
        assert_eq!(os_release(text, "ID").unwrap(), "debian");
        assert_eq!(os_release(text, "VERSION"), None);
    }
}
