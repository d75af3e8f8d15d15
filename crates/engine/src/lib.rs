//! The engine: containers, volumes, images, their state and events, and the reconciler that makes the world match.
//!
//! [`Engine`] is the facade; its methods have Docker's vocabulary and take and return the structures of `vessel-api`.
//! The engine knows nothing of HTTP, terminals or the environment. All of it is asynchronous: what takes the kernel
//! more than a moment runs on tokio's blocking threads, no lock is held across such a call, and each container has a
//! state and an order of operations of its own, so a container that hangs delays nobody else.

mod build;
mod cdi;
pub mod container;
mod disk;
mod error;
pub mod events;
mod explain;
pub mod files;
pub mod filters;
mod ids;
pub mod image_index;
pub mod images;
pub mod logs;
mod mountinfo;
mod network;
pub mod oci_spec;
pub mod operation;
mod paths;
mod quota;
mod reconcile;
mod removed;
pub mod signal;
pub mod state;
pub mod stats;
pub mod system;
pub mod time;
mod top;
pub mod transfer;
mod volumes;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vessel_runtime::capabilities::CapSet;
use vessel_runtime::cgroup::{Hierarchies, Mode};
use vessel_runtime::shim::Launcher;

use container::record::{Record, State};
use oci_spec::validate::HostFacts;
use paths::Paths;
use state::Table;

pub use cdi::DEFAULT_DIRS as DEFAULT_CDI_DIRS;
pub use container::Container;
pub use container::attach::{AttachOptions, Attached, Ended};
pub use container::list::ListOptions;
pub use container::remove::RemoveOptions;
pub use container::stop::StopOptions;
pub use container::wait::{WaitCondition, Waiter};
pub use error::{Context, Error, ErrorKind, Result, blocking};
pub use events::{Events, EventsOptions};
pub use filters::Filters;
pub use image_index::{Image, ImageIndex};
pub use logs::{LogStream, LogsOptions};
pub use removed::BinConfig;
pub use state::{Durability, Store};
pub use volumes::plugin::DEFAULT_DIRS as DEFAULT_PLUGIN_DIRS;

/// What the default bridge has of IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgeV6 {
    /// Its subnet; none: that of the bridge there is, or a free one of this engine's own site.
    pub subnet: Option<ipnet::Ipv6Net>,
}

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where state, images, containers and volumes are kept, e.g. `/var/lib/vessel`.
    pub root: PathBuf,
    /// Where sockets and shims' directories are; must not survive a reboot, e.g. `/run/vessel`.
    pub run: PathBuf,
    /// The default bridge's name, which no other daemon may use; `none`: no bridge, and loopback only for containers.
    pub bridge: String,
    /// The default bridge's own address and prefix length; none: a free one is chosen.
    pub bridge_address: Option<(Ipv4Addr, u8)>,
    /// What the default bridge has of IPv6; none: nothing.
    pub bridge_v6: Option<BridgeV6>,
    /// Whether the host's own firewall rules for what comes in decide who reaches published ports.
    pub ports_behind_input: bool,
    /// The cgroup under which containers' cgroups are made, absolute in every hierarchy, e.g. `/vessel`.
    pub cgroup_parent: String,
    /// The range of host IDs containers are mapped to; none: no user namespaces.
    pub userns_remap: Option<IdRange>,
    /// Name servers of containers that name none; empty: the host's.
    pub dns: Vec<std::net::IpAddr>,
    /// Whether containers run under a small init unless they say otherwise.
    pub init: bool,
    /// How registries are reached.
    pub registries: vessel_image::registry::Settings,
    /// Which signatures images must have.
    pub trust: vessel_image::registry::TrustPolicy,
    /// What becomes of what users remove; none: it is gone.
    pub bin: Option<BinConfig>,
    /// Where specifications of devices (CDI) are, those of later directories before those of earlier ones.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Where volume plug-ins are found.
    pub plugin_dirs: Vec<PathBuf>,
}

/// A range of IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first.
    pub start: u32,
    /// How many.
    pub size: u32,
}

/// The engine.
pub struct Engine {
    config: EngineConfig,
    paths: Paths,
    /// Made up at the first start; what Docker calls the daemon's ID.
    id: String,
    /// Which boot of the machine this is.
    boot_id: String,
    store: Store,
    records: Table<Record>,
    states: Table<State>,
    containers: container::table::Containers,
    execs: container::exec::Execs,
    events: Events,
    images: ImageIndex,
    registries: vessel_image::registry::RegistryClient,
    /// Where layers are known to be, by diff ID: see [`images`].
    places: Table<Vec<images::Place>>,
    volumes: volumes::Volumes,
    projects: Arc<quota::Projects>,
    bin: removed::Bin,
    networks: network::Networks,
    launcher: Launcher,
    hierarchies: Hierarchies,
    /// What this process may do, and so give to containers.
    capabilities: CapSet,
    facts: HostFacts,
    accounts: container::prepare::AccountCache,
    filters: container::prepare::FilterCache,
    log_watcher: logs::Watcher,
    builder: std::sync::OnceLock<Arc<vessel_build::Builder>>,
    steps: build::Steps,
    ending: AtomicBool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the engine's state, adopts what runs, cleans up what nobody owns, restarts what is to be restarted.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the root is held by another engine, cannot be read, or the network cannot be set up.
    pub async fn open(config: EngineConfig) -> Result<Arc<Self>> {
        let engine = blocking(move || Self::build(config)).await?;
        let engine = Arc::new(engine);
        engine.open_builder().await?;
        engine.adopt_all().await?;
        engine.collect_after_start();
        engine.watch_bin();
        Ok(engine)
    }

    fn build(config: EngineConfig) -> Result<Self> {
        let paths = Paths {
            root: config.root.clone(),
            run: config.run.clone(),
        };
        std::fs::create_dir_all(&paths.root).context(|| format!("create {}", paths.root.display()))?;
        if let Err(error) = vessel_runtime::rlimits::raise_descriptors() {
            tracing::warn!("{error}: what the limit allows has to do");
        }
        let (store, recovery) = Store::open(&paths.root)?;
        if recovery.torn > 0 {
            tracing::info!(
                bytes = recovery.torn,
                "the last change of an earlier daemon was not finished and is dropped"
            );
        }
        if let Some(aside) = &recovery.set_aside {
            tracing::error!(
                bytes = recovery.damaged,
                copy = %aside.display(),
                "the state journal was damaged: what could be read is in use, the damaged file was kept"
            );
        }
        for directory in paths.directories() {
            std::fs::create_dir_all(&directory).context(|| format!("create {}", directory.display()))?;
        }
        // Layers and volumes hold what containers made, programs that run as root for whoever starts them among it
        // (CVE-2021-41091): no user of the host gets there. Containers need no path to them, whatever their root is mapped
        // to. Only the way to the sockets is open.
        let private = [
            &paths.root,
            &paths.volumes(),
            &paths.containers(),
            &paths.removed(),
            &paths.shims(),
        ];
        for (directory, mode) in private
            .map(|path| (path, 0o700))
            .into_iter()
            .chain([(&paths.run, 0o711)])
        {
            std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .context(|| format!("set the mode of {}", directory.display()))?;
        }
        let layer = paths.init_layer();
        paths::make_init_layer(&layer).context(|| format!("create {}", layer.display()))?;
        install_init(&paths)?;

        let meta = store.table::<String>("engine");
        let id = match meta.get("id")? {
            Some(id) => id,
            None => {
                let uuid =
                    std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_else(|_| ids::id());
                let id = uuid.trim().to_owned();
                meta.put_now("id", &id)?;
                id
            }
        };
        let content = vessel_image::Store::open(&paths.root).map_err(image_index::from_image)?;
        content.sweep_temporary().map_err(image_index::from_image)?;
        removed::settle(&paths, &store)?;
        let bin = removed::Bin::open(config.bin, &paths, &store)?;
        let images = ImageIndex::open(&store, content)?;
        let registries = vessel_image::registry::RegistryClient::new(config.registries.clone())
            .map_err(image_index::from_image)?;
        let places = store.table("places");
        let volumes =
            volumes::Volumes::open(&store, volumes::plugin::Plugins::new(config.plugin_dirs.clone()))?;
        let (records, states) = (
            store.table::<Record>("containers"),
            store.table::<State>("states"),
        );
        let endpoints: Vec<_> = states
            .all()?
            .into_iter()
            .flat_map(|(_, state)| state.endpoints.into_values())
            .collect();
        let networks = network::Networks::open(&config, &store, &id, &endpoints)?;
        let hierarchies = Hierarchies::detect()?;
        let facts = HostFacts {
            cpus: number_file("/sys/devices/system/cpu/online"),
            memory_nodes: number_file("/sys/devices/system/node/online"),
            cgroup_v2: hierarchies.mode() == Mode::V2,
            userns_remap: config.userns_remap.is_some(),
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context(|| "read the boot ID")?
            .trim()
            .to_owned();
        Ok(Self {
            paths,
            id,
            boot_id,
            records,
            states,
            containers: Default::default(),
            execs: Default::default(),
            events: Events::default(),
            images,
            registries,
            places,
            volumes,
            projects: Arc::default(),
            bin,
            networks,
            launcher: Launcher::new()?,
            hierarchies,
            capabilities: CapSet::own()?,
            facts,
            accounts: Default::default(),
            filters: Default::default(),
            log_watcher: Default::default(),
            builder: Default::default(),
            steps: Default::default(),
            ending: AtomicBool::new(false),
            config,
            store,
        })
    }

    /// Prepares for the end of the process: what is prepared but not used is given back, what was loaded reaches the
    /// disk. Containers keep running.
    pub async fn shutdown(self: &Arc<Self>) {
        self.ending.store(true, Ordering::Release);
        let engine = Arc::clone(self);
        let drained = blocking(move || {
            engine.networks.drain();
            engine.images.content().sync().map_err(image_index::from_image)
        });
        for result in [drained.await, self.store.sync().await] {
            if let Err(error) = result {
                tracing::warn!("{error}");
            }
        }
    }

    /// Whether the process is about to end: nothing new is begun then.
    fn ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// How it is set up.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// What Docker calls the daemon's ID: the same at every start.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The state store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What happened and happens.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The client of registries.
    pub fn registries(&self) -> &vessel_image::registry::RegistryClient {
        &self.registries
    }

    /// Names and records of images.
    pub fn images(&self) -> &ImageIndex {
        &self.images
    }
}

/// Puts the init program where containers find it, unless it is there.
fn install_init(paths: &Paths) -> Result<()> {
    let path = paths.init();
    if std::fs::read(&path).is_ok_and(|there| there == vessel_init::INIT) {
        return Ok(());
    }
    let new = path.with_extension("new");
    std::fs::write(&new, vessel_init::INIT)
        .and_then(|()| std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)))
        .and_then(|()| std::fs::rename(&new, &path))
        .context(|| format!("write {}", path.display()))
}

/// A kernel list of numbers; 0 when there is none.
fn number_file(path: &str) -> std::collections::BTreeSet<u32> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    match oci_spec::validate::number_list(&text) {
        Some(set) if !set.is_empty() => set,
        _ => [0].into(),
    }
}
