//! Volumes: directories under `volumes/NAME/_data` that outlive containers. The driver is `local`.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use vessel_api::{Map, Volume, VolumeCreateRequest, VolumeList, VolumesPruneReport};

use crate::container::record::{MountKind, MountRecord};
use crate::error::Context;
use crate::image_index::from_image;
use crate::oci_spec::mount_points::volume_name;
use crate::paths::remove_tree;
use crate::state::Table;
use crate::{Durability, Engine, Error, Filters, Result, Store, blocking};

/// What is kept of a volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct VolumeRecord {
    /// Nanoseconds since the epoch.
    created: i64,
    labels: Map<String>,
    /// Whether nobody chose its name.
    anonymous: bool,
}

/// The label by which Docker marks volumes nobody named.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// The volumes of an engine.
#[derive(Debug)]
pub(crate) struct Volumes {
    table: Table<VolumeRecord>,
    records: RwLock<BTreeMap<String, VolumeRecord>>,
}

impl Volumes {
    pub fn open(store: &Store) -> Result<Self> {
        let table = store.table("volumes");
        let records = table.all()?.into_iter().collect();
        Ok(Self {
            table,
            records: RwLock::new(records),
        })
    }

    fn get(&self, name: &str) -> Option<VolumeRecord> {
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    fn all(&self) -> BTreeMap<String, VolumeRecord> {
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The names of all volumes.
    pub fn names(&self) -> Vec<String> {
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }
}

impl Engine {
    fn volume(&self, name: &str, record: VolumeRecord) -> Volume {
        Volume {
            created_at: seconds(record.created),
            driver: "local".into(),
            labels: record.labels,
            mountpoint: self.paths.volume(name).to_string_lossy().into_owned(),
            name: name.to_owned(),
            scope: "local".into(),
            ..Volume::default()
        }
    }

    /// Makes a volume, or returns the one of that name.
    ///
    /// # Errors
    /// A bad name, another driver than `local`, the disk.
    pub async fn volume_create(&self, request: VolumeCreateRequest) -> Result<Volume> {
        if !matches!(request.driver.as_str(), "" | "local") {
            return Err(Error::not_found(format!(
                "error looking up volume plugin {}: plugin \"{0}\" not found: only the driver local is built in",
                request.driver
            )));
        }
        if let Some(option) = request.driver_opts.keys().next() {
            return Err(Error::unsupported(format!(
                "the option {option:?} of the local volume driver is not supported: use a bind mount or a tmpfs"
            )));
        }
        let anonymous = request.name.is_empty();
        let name = if anonymous { crate::ids::id() } else { request.name };
        self.ensure_volume(&name, request.labels, anonymous, Durability::Disk)
            .await?;
        let record = self.volumes.get(&name).unwrap_or_default();
        Ok(self.volume(&name, record))
    }

    /// Makes a volume unless it is there. Returns whether it was made.
    pub(crate) async fn ensure_volume(
        &self,
        name: &str,
        mut labels: Map<String>,
        anonymous: bool,
        durability: Durability,
    ) -> Result<bool> {
        volume_name(name)?;
        if self.volumes.get(name).is_some() {
            return Ok(false);
        }
        let data = self.paths.volume(name);
        blocking(move || {
            std::fs::create_dir_all(&data)
                .context(|| format!("create volume directory {}", data.display()))?;
            let mode = |path: &Path, mode| {
                std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                    .context(|| format!("set the mode of {}", path.display()))
            };
            // What is inside belongs to containers; nobody else of the host needs a way in.
            data.parent().map_or(Ok(()), |parent| mode(parent, 0o701))?;
            mode(&data, 0o755)
        })
        .await?;
        if anonymous {
            labels.insert(ANONYMOUS_LABEL.into(), String::new());
        }
        let record = VolumeRecord {
            created: crate::time::now(),
            labels,
            anonymous,
        };
        {
            let mut records = self
                .volumes
                .records
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if records.contains_key(name) {
                return Ok(false);
            }
            self.volumes.table.put_now(name, &record)?;
            records.insert(name.to_owned(), record);
        }
        self.volume_event(name, "create", &[]);
        self.volumes.table.sync(durability).await?;
        Ok(true)
    }

    fn volume_event(&self, name: &str, action: &str, more: &[(&str, &str)]) {
        let mut attributes = Map::from([("driver".to_owned(), "local".to_owned())]);
        attributes.extend(
            more.iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        self.events.publish("volume", action, name, attributes);
    }

    /// The volumes.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn volume_list(&self, filters: &Filters) -> Result<VolumeList> {
        filters.check(&["dangling", "driver", "label", "name"])?;
        let dangling = filters.flag("dangling")?;
        let volumes = self
            .volumes
            .all()
            .into_iter()
            .filter(|(name, record)| {
                filters.any("name", |part| name.contains(part))
                    && filters.matches("driver", "local")
                    && filters.labels(&record.labels)
                    && dangling.is_none_or(|dangling| dangling == (self.volume_references(name) == 0))
            })
            .map(|(name, record)| self.volume(&name, record))
            .collect();
        Ok(VolumeList {
            volumes,
            warnings: Vec::new(),
        })
    }

    /// One volume.
    ///
    /// # Errors
    /// `get NAME: no such volume`.
    pub async fn volume_inspect(&self, name: &str) -> Result<Volume> {
        let record = self.volumes.get(name).ok_or_else(|| missing(name))?;
        Ok(self.volume(name, record))
    }

    /// Removes a volume; with `force` it is no error when there is none.
    ///
    /// # Errors
    /// Not there; in use by a container.
    pub async fn volume_remove(&self, name: &str, force: bool) -> Result<()> {
        if self.volumes.get(name).is_none() {
            return if force { Ok(()) } else { Err(missing(name)) };
        }
        let users: Vec<String> = self
            .volume_users(name)
            .map(|container| container.id().to_owned())
            .collect();
        if !users.is_empty() {
            return Err(Error::conflict(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(", ")
            )));
        }
        self.discard_volume(name).await
    }

    /// Removes a volume nobody uses.
    async fn discard_volume(&self, name: &str) -> Result<()> {
        let directory = self.paths.volumes().join(name);
        self.volumes.table.delete_now(name)?;
        self.volumes
            .records
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        blocking(move || remove_tree(&directory).context(|| format!("remove {}", directory.display())))
            .await?;
        self.volume_event(name, "destroy", &[]);
        Ok(())
    }

    /// Removes anonymous volumes (with `all=true` every volume) that no container uses.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn volume_prune(&self, filters: &Filters) -> Result<VolumesPruneReport> {
        filters.check(&["all", "label", "label!"])?;
        let all = filters.flag("all")?.unwrap_or(false);
        let mut report = VolumesPruneReport::default();
        for (name, record) in self.volumes.all() {
            if !(all || record.anonymous)
                || !filters.labels(&record.labels)
                || self.volume_references(&name) > 0
            {
                continue;
            }
            let data = self.paths.volume(&name);
            let size = blocking(move || Ok(tree_size(&data))).await?;
            self.discard_volume(&name).await?;
            report.space_reclaimed += size;
            report.volumes_deleted.push(name);
        }
        Ok(report)
    }

    fn volume_users(&self, name: &str) -> impl Iterator<Item = std::sync::Arc<crate::Container>> {
        let name = name.to_owned();
        self.containers().into_iter().filter(move |container| {
            container
                .record()
                .mounts
                .iter()
                .any(|mount| mount.kind == MountKind::Volume && mount.name == name)
        })
    }

    /// How many containers use a volume.
    pub fn volume_references(&self, name: &str) -> usize {
        self.volume_users(name).count()
    }

    /// Settles the volumes among a new container's mounts: makes those that are missing, gives anonymous ones their
    /// names, fills empty ones with what the image has at the place. Returns the names of those it made.
    pub(crate) async fn settle_volumes(
        &self,
        mounts: &mut [MountRecord],
        layers: &[PathBuf],
        durability: Durability,
    ) -> Result<Vec<String>> {
        let mut made = Vec::new();
        for mount in mounts.iter_mut().filter(|mount| mount.kind == MountKind::Volume) {
            if mount.name.is_empty() {
                mount.name = crate::ids::id();
            }
            if self
                .ensure_volume(&mount.name, Map::new(), mount.anonymous, durability)
                .await?
            {
                made.push(mount.name.clone());
            }
            let data = self.paths.volume(&mount.name);
            mount.source = data.to_string_lossy().into_owned();
            if !mount.no_copy && mount.subpath.is_empty() {
                let (layers, destination, owned) = (layers.to_vec(), mount.destination.clone(), data.clone());
                blocking(move || copy_up(layers, &destination, &owned))
                    .await
                    .map_err(|error| {
                        error.wrap(format!(
                            "copy the image's {} into volume {}",
                            mount.destination, mount.name
                        ))
                    })?;
            }
        }
        Ok(made)
    }

    /// Removes the anonymous volumes of a container that is removed, as far as no other container uses them.
    pub(crate) async fn discard_anonymous_volumes(&self, mounts: &[MountRecord]) {
        for mount in mounts
            .iter()
            .filter(|mount| mount.kind == MountKind::Volume && mount.anonymous)
        {
            if self.volume_references(&mount.name) == 0
                && self.volumes.get(&mount.name).is_some()
                && let Err(error) = self.discard_volume(&mount.name).await
            {
                tracing::warn!("{error}; `volume prune` removes it");
            }
        }
    }

    /// Takes back volumes made for a container that could not be created.
    pub(crate) async fn undo_volumes(&self, made: &[String]) {
        for name in made {
            if let Err(error) = self.discard_volume(name).await {
                tracing::warn!("{error}; `volume prune --all` removes it");
            }
        }
    }
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("get {name}: no such volume"))
}

/// RFC 3339 to the second, as Docker shows volumes.
fn seconds(nanos: i64) -> String {
    crate::time::rfc3339(nanos - nanos.rem_euclid(1_000_000_000))
}

/// Copies what the image has at `destination`, with its owner and mode, into an empty directory.
fn copy_up(layers: Vec<PathBuf>, destination: &str, data: &Path) -> Result<()> {
    let mut entries = std::fs::read_dir(data).context(|| format!("look into {}", data.display()))?;
    if layers.is_empty() || entries.next().is_some() {
        return Ok(());
    }
    let root = crate::oci_spec::user::stack(layers)?;
    let relative = destination.trim_start_matches('/');
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    let from = match rustix::fs::openat2(&root, relative, flags, Mode::empty(), resolve) {
        Ok(from) => from,
        // The image has nothing there, or a file, which a volume hides.
        Err(_) => return Ok(()),
    };
    let to = rustix::fs::open(
        data,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open {}", data.display()))?;
    let stat = rustix::fs::fstat(&from).context(|| "look at the image's directory")?;
    rustix::fs::fchown(
        &to,
        Some(rustix::fs::Uid::from_raw(stat.st_uid)),
        Some(rustix::fs::Gid::from_raw(stat.st_gid)),
    )
    .context(|| "give the volume its owner")?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))
        .context(|| "give the volume its mode")?;

    // An archive that is never whole: packed on one thread, unpacked on this one.
    let (reader, writer) = std::io::pipe().context(|| "make a pipe")?;
    std::thread::scope(|scope| {
        let packing = scope
            .spawn(|| vessel_image::pack(from.as_fd(), b"", &vessel_image::PackOptions::default(), writer));
        let unpacked =
            vessel_image::unpack_into(to.as_fd(), reader, &vessel_image::ExtractOptions::default());
        let packed = packing
            .join()
            .map_err(|_| Error::system("packing the image's files ended abnormally"))?;
        unpacked.map_err(from_image)?;
        packed.map_err(from_image)
    })
}

/// Bytes that files below a directory take, hard links once; what cannot be read counts nothing.
pub(crate) fn tree_size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut seen = std::collections::HashSet::new();
    let mut pending = vec![path.to_owned()];
    let mut size = 0;
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.nlink() < 2 || seen.insert((meta.dev(), meta.ino())) {
                size += meta.len();
            }
        }
    }
    size
}
