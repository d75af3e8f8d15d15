//! What records say there should be, and what each is called by its users.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::container::record::MountKind;
use crate::images::short;
use crate::removed::Thing;
use crate::{Engine, Filters, Result};

/// Who something belongs to, in words, and the command that frees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Owner {
    /// `container web`.
    pub name: String,
    /// `vessel rm web`.
    pub free: String,
}

impl Owner {
    pub fn new(name: impl Into<String>, free: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            free: free.into(),
        }
    }

    /// What is the engine's own.
    pub fn engine() -> Self {
        Self::new("engine", "")
    }
}

/// A container.
#[derive(Debug, Clone, Default)]
pub(super) struct ContainerFacts {
    pub name: String,
    pub running: bool,
    pub pid: i32,
    pub cgroup: String,
}

impl ContainerFacts {
    /// For what goes with its record: files.
    pub fn whole(&self) -> Owner {
        let force = if self.running { " -f" } else { "" };
        Owner::new(self.words(), format!("vessel rm{force} {}", self.name))
    }

    /// For what goes with its run.
    pub fn run(&self) -> Owner {
        Owner::new(self.words(), format!("vessel stop {}", self.name))
    }

    fn words(&self) -> String {
        format!("container {}", self.name)
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// By ID.
    pub containers: BTreeMap<String, ContainerFacts>,
    /// Layers by the hexadecimal digits of their names.
    pub layers: HashMap<String, Owner>,
    /// Blobs by the hexadecimal digits of their digests.
    pub blobs: HashMap<String, Owner>,
    /// Directories of the bin by name.
    pub removed: HashMap<String, Owner>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Owner>,
    /// Interfaces, bridges included, by name, with what they are for.
    pub interfaces: HashMap<String, (Owner, &'static str)>,
    /// Published ports by the host's side, as the API writes them.
    pub ports: HashMap<String, Owner>,
    /// Processes of builds that run, by ID.
    pub steps: BTreeMap<String, Owner>,
}

fn hex(name: &str) -> String {
    name.rsplit(':').next().unwrap_or_default().to_owned()
}

impl Facts {
    pub async fn gather(engine: &Arc<Engine>) -> Result<Self> {
        let mut facts = Self::default();
        facts.containers(engine);
        facts.images(engine);
        if let Ok(builder) = engine.builder() {
            for (chain, description) in builder.cache_layers().await? {
                let owner = Owner::new(format!("build cache: {description}"), "vessel builder prune");
                // An image's name says more, and the layer stays with it.
                facts.layers.entry(hex(&chain.to_string())).or_insert(owner);
            }
        }
        facts.bin(engine);
        for layer in engine.images().content().leased_layers() {
            let owner = Owner::new("a pull or a build that is under way", "");
            facts.layers.entry(hex(&layer.to_string())).or_insert(owner);
        }
        facts.volumes(engine).await?;
        facts.networks(engine);
        for (id, interfaces) in engine.steps.all() {
            let owner = Owner::new("build: a step that runs", "");
            for interface in interfaces {
                let what = (owner.clone(), "connects a step of a build");
                facts.interfaces.insert(interface, what);
            }
            facts.steps.insert(id, owner);
        }
        Ok(facts)
    }

    fn containers(&mut self, engine: &Engine) {
        for container in engine.containers() {
            let (record, state) = (container.record(), container.state());
            let known = ContainerFacts {
                name: record.name.clone(),
                running: state.status.is_running(),
                pid: state.pid,
                cgroup: container.cgroup_path(),
            };
            for end in state.endpoints.values() {
                for port in &end.ports {
                    self.ports.insert(super::kernel::port(port), known.run());
                }
                let what = (known.run(), "connects a container");
                self.interfaces.insert(end.ifname.clone(), what);
            }
            for layer in &record.layers {
                self.layers.entry(hex(layer)).or_insert_with(|| known.whole());
            }
            self.blobs
                .entry(hex(&record.image_id))
                .or_insert_with(|| known.whole());
            self.containers.insert(container.id().to_owned(), known);
        }
    }

    fn images(&mut self, engine: &Engine) {
        for (id, record) in engine.images().all() {
            let names = engine.images().tags_of(&id);
            let name = names.first().cloned().unwrap_or_else(|| short(&id).to_owned());
            let owner = Owner::new(format!("image {name}"), format!("vessel rmi {name}"));
            for blob in record.blobs().chain([id.as_str()]) {
                self.blobs.insert(hex(blob), owner.clone());
            }
            for layer in &record.chain_ids {
                self.layers.insert(hex(layer), owner.clone());
            }
        }
        // A pull that was cut goes on where it was.
        for layer in engine.images().content().unfinished_layers() {
            let owner = Owner::new(
                "a pull that was cut",
                "vessel pull again, or wait for the next start of the daemon",
            );
            self.layers.entry(hex(&layer.to_string())).or_insert(owner);
        }
    }

    /// What is in the bin, and the layers that nothing else needs.
    fn bin(&mut self, engine: &Engine) {
        for (key, entry) in engine.bin.all() {
            let name = format!("bin: {} {}", entry.thing.kind(), entry.thing.name());
            let owner = Owner::new(name, "vessel system bin empty");
            let (layers, blobs) = match &entry.thing {
                Thing::Container { record, .. } => (record.layers.clone(), vec![record.image_id.clone()]),
                Thing::Image { id, record, .. } => {
                    let blobs = record.blobs().chain([id.as_str()]);
                    (record.chain_ids.clone(), blobs.map(str::to_owned).collect())
                }
                Thing::Volume { .. } | Thing::Network { .. } => (Vec::new(), Vec::new()),
            };
            for layer in layers {
                self.layers.entry(hex(&layer)).or_insert_with(|| owner.clone());
            }
            for blob in blobs {
                self.blobs.entry(hex(&blob)).or_insert_with(|| owner.clone());
            }
            self.removed.insert(key, owner);
        }
    }

    async fn volumes(&mut self, engine: &Engine) -> Result<()> {
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for container in engine.containers() {
            let record = container.record();
            let mounts = record
                .mounts
                .iter()
                .filter(|mount| mount.kind == MountKind::Volume);
            for mount in mounts {
                users
                    .entry(mount.name.clone())
                    .or_default()
                    .push(record.name.clone());
            }
        }
        for volume in engine.volume_list(&Filters::default()).await?.volumes {
            let (of, free) = match users.get(&volume.name).map(Vec::as_slice) {
                None | Some([]) => (String::new(), format!("vessel volume rm {}", volume.name)),
                Some(users) => (
                    format!(", used by {}", users.join(", ")),
                    format!(
                        "vessel rm -f {}, then vessel volume rm {}",
                        users.join(" "),
                        volume.name
                    ),
                ),
            };
            let owner = Owner::new(format!("volume {}{of}", volume.name), free);
            self.volumes.insert(volume.name, owner);
        }
        Ok(())
    }

    fn networks(&mut self, engine: &Engine) {
        for (bridge, network) in engine.networks.bridges() {
            let owner = match network {
                Some(name) => Owner::new(format!("network {name}"), format!("vessel network rm {name}")),
                None => Owner::new("network bridge", ""),
            };
            self.interfaces.insert(bridge, (owner, "the bridge of a network"));
        }
        for interface in engine.networks.prepared() {
            let what = (Owner::engine(), "prepared for the next container");
            self.interfaces.insert(interface, what);
        }
    }
}
