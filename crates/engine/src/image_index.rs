//! Which images there are: records by ID, names to IDs.
//!
//! Held in memory and journaled. A name is the familiar form with a tag, `busybox:latest`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use vessel_api::{ContainerConfig, HealthConfig};
use vessel_image::{ChainId, Digest, ImageConfig, LoadOptions, Reference, image_id_prefix};

use crate::images::flush::Flusher;
use crate::images::short;
use crate::state::Table;
use crate::{Durability, Engine, Error, Result, Store, blocking};

/// What is kept of an image beside its blobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Bytes of its layers, unpacked.
    pub size: u64,
    /// Chain IDs of its layers, lowest first.
    pub chain_ids: Vec<String>,
    /// When it was last given a name, nanoseconds since the epoch.
    pub tagged_at: i64,
    /// `name@sha256:…` it is known by.
    pub repo_digests: Vec<String>,
    /// The image it was committed over; empty for any other.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// Digests of indexes and manifests it came with, which are kept as blobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<String>,
    /// Digests of what was said about it where it was pulled, which are kept as blobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attestations: Vec<String>,
}

impl ImageRecord {
    /// Digests of all blobs it needs beside its configuration.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &str> {
        let digests = self.repo_digests.iter();
        let manifests = digests.filter_map(|digest| Some(digest.split_once('@')?.1));
        let documents = self.documents.iter().chain(&self.attestations);
        manifests.chain(documents.map(String::as_str))
    }
}

/// An image that was looked up.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    /// The record.
    pub record: ImageRecord,
    /// The `config` of its configuration.
    pub config: ContainerConfig,
    /// `architecture` of its configuration.
    pub architecture: String,
    /// `os` of its configuration.
    pub os: String,
    /// Directories of its layers, topmost first, as overlayfs wants them.
    pub lower: Vec<PathBuf>,
}

/// Names and records.
pub struct ImageIndex {
    content: vessel_image::Store,
    images: Table<ImageRecord>,
    tags: Table<String>,
    indexes: Table<String>,
    flusher: Flusher,
    /// How often a name was given or taken away.
    changes: AtomicU64,
    state: RwLock<Index>,
}

#[derive(Default)]
struct Index {
    records: BTreeMap<String, ImageRecord>,
    tags: BTreeMap<String, String>,
    /// The indexes of several platforms that names stand for, too.
    indexes: BTreeMap<String, String>,
    /// Those looked up since their record last changed.
    resolved: BTreeMap<String, Arc<Image>>,
    /// Those that containers are being made from, with how many.
    held: BTreeMap<String, usize>,
}

/// An image that cannot be removed as long as this lives: what was looked up is there until a container's record says
/// that it is needed.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    index: &'a ImageIndex,
    id: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.index.write(|index| {
            if let Some(count) = index.held.get_mut(&self.id) {
                *count -= 1;
                if *count == 0 {
                    index.held.remove(&self.id);
                }
            }
        });
    }
}

impl std::fmt::Debug for ImageIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageIndex").finish_non_exhaustive()
    }
}

impl ImageIndex {
    /// Reads the index; `content` is where blobs and layers are. Images whose layers a power failure may have damaged
    /// are forgotten.
    pub(crate) fn open(store: &Store, content: vessel_image::Store) -> Result<Self> {
        let (images, tags, indexes) = (
            store.table::<ImageRecord>("images"),
            store.table::<String>("tags"),
            store.table::<String>("tag_indexes"),
        );
        let mut state = Index {
            records: images.all()?.into_iter().collect(),
            tags: tags.all()?.into_iter().collect(),
            indexes: indexes.all()?.into_iter().collect(),
            resolved: BTreeMap::new(),
            held: BTreeMap::new(),
        };
        let lost = content.discard_unflushed().map_err(from_image)?;
        let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
        let damaged = |record: &ImageRecord| record.chain_ids.iter().any(|chain| lost.contains(chain));
        for (id, _) in state.records.extract_if(.., |_, record| damaged(record)) {
            images.delete_now(&id)?;
            let mut names = Vec::new();
            for (name, _) in state.tags.extract_if(.., |_, of| *of == id) {
                tags.delete_now(&name)?;
                indexes.delete_now(&name)?;
                state.indexes.remove(&name);
                names.push(name);
            }
            tracing::warn!(
                image = id,
                names = names.join(", "),
                "the machine went down before this image was on the disk: it is forgotten, load it again"
            );
        }
        let flusher = Flusher::default();
        flusher.later(&content);
        Ok(Self {
            content,
            images,
            tags,
            indexes,
            flusher,
            changes: AtomicU64::new(0),
            state: RwLock::new(state),
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut Index) -> T) -> T {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The content store with blobs and layers.
    pub fn content(&self) -> &vessel_image::Store {
        &self.content
    }

    /// Layers were loaded: they reach the disk in the background.
    pub(crate) fn flush_later(&self) {
        self.flusher.later(&self.content);
    }

    /// The record of one image.
    pub(crate) fn record(&self, id: &str) -> Option<ImageRecord> {
        self.read(|index| index.records.get(id).cloned())
    }

    /// Whether there is an image with this ID.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.read(|index| index.records.contains_key(id))
    }

    /// How many images there are.
    pub(crate) fn count(&self) -> usize {
        self.read(|index| index.records.len())
    }

    /// All images.
    pub fn all(&self) -> Vec<(String, ImageRecord)> {
        self.read(|index| {
            index
                .records
                .iter()
                .map(|(id, record)| (id.clone(), record.clone()))
                .collect()
        })
    }

    /// How often a name has been given or taken away: what names meant is what they mean as long as this is the same.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// All names (familiar form, with tag) with the image's ID.
    pub fn tags(&self) -> Vec<(String, String)> {
        self.read(|index| {
            index
                .tags
                .iter()
                .map(|(name, id)| (name.clone(), id.clone()))
                .collect()
        })
    }

    /// The names of an image.
    pub fn tags_of(&self, id: &str) -> Vec<String> {
        self.read(|index| {
            index
                .tags
                .iter()
                .filter(|(_, of)| *of == id)
                .map(|(name, _)| name.clone())
                .collect()
        })
    }

    /// Adds or changes a record.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn insert(&self, id: &str, record: ImageRecord) -> Result<()> {
        self.images.put_now(id, &record)?;
        self.write(|index| {
            index.resolved.remove(id);
            index.records.insert(id.to_owned(), record);
        });
        self.images.sync(Durability::Disk).await
    }

    /// Keeps an image from being removed. `None` when it has been.
    pub(crate) fn hold(&self, id: &str) -> Option<Held<'_>> {
        self.write(|index| {
            index.records.contains_key(id).then(|| {
                *index.held.entry(id.to_owned()).or_default() += 1;
                Held {
                    index: self,
                    id: id.to_owned(),
                }
            })
        })
    }

    /// Forgets a record (names stay; take them away first). `unused` is asked when nobody can begin to use the image any
    /// more: whoever held it until then has a container by now.
    ///
    /// # Errors
    /// When it is held or `unused` says no; when the journal cannot be written.
    pub(crate) async fn remove(&self, id: &str, unused: impl FnOnce() -> Result<()>) -> Result<()> {
        self.write(|index| {
            if index.held.contains_key(id) {
                return Err(Error::conflict(format!(
                    "conflict: unable to delete {} (cannot be forced) - a container is being made from it",
                    short(id)
                )));
            }
            unused()?;
            self.images.delete_now(id)?;
            index.resolved.remove(id);
            index.records.remove(id);
            Ok(())
        })?;
        self.images.sync(Durability::Disk).await
    }

    /// Gives an image a name, which another may lose by that. Returns the ID that had it. The name stands for no index any
    /// more.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn tag(&self, name: &str, id: &str) -> Result<Option<String>> {
        self.forget_index(name)?;
        self.tags.put_now(name, &id.to_owned())?;
        let before = self.write(|index| index.tags.insert(name.to_owned(), id.to_owned()));
        self.changes.fetch_add(1, Ordering::Release);
        self.tags.sync(Durability::Disk).await?;
        Ok(before)
    }

    /// Takes a name away. Returns the ID that had it.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn untag(&self, name: &str) -> Result<Option<String>> {
        self.forget_index(name)?;
        self.tags.delete_now(name)?;
        let before = self.write(|index| index.tags.remove(name));
        self.changes.fetch_add(1, Ordering::Release);
        self.tags.sync(Durability::Disk).await?;
        Ok(before)
    }

    /// Remembers which index a name stands for, until it is given to another image.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub(crate) async fn tag_index(&self, name: &str, index: &str) -> Result<()> {
        self.indexes.put_now(name, &index.to_owned())?;
        self.write(|state| state.indexes.insert(name.to_owned(), index.to_owned()));
        self.indexes.sync(Durability::Disk).await
    }

    fn forget_index(&self, name: &str) -> Result<()> {
        self.indexes.delete_now(name)?;
        self.write(|state| state.indexes.remove(name));
        Ok(())
    }

    /// The indexes names stand for: name, image, index.
    pub(crate) fn tagged_indexes(&self) -> Vec<(String, String, String)> {
        self.read(|state| {
            let known = state.indexes.iter();
            known
                .filter_map(|(name, index)| {
                    Some((name.clone(), state.tags.get(name)?.clone(), index.clone()))
                })
                .collect()
        })
    }

    /// The index a name stands for.
    pub(crate) fn index_of_tag(&self, name: &str) -> Option<String> {
        self.read(|state| state.indexes.get(name).cloned())
    }

    /// The ID a name stands for, if it is one.
    pub(crate) fn id_of_tag(&self, name: &str) -> Option<String> {
        let name = Reference::parse(name).ok()?.with_default_tag().familiar();
        self.read(|index| index.tags.get(&name).cloned())
    }

    /// What a user's words mean, among the images that are there: first as a name, with tag or digest (with both, the digest
    /// decides), then as an ID or the beginning of one.
    ///
    /// # Errors
    /// When several IDs begin so. As with dockerd that is no different from an image that is not there.
    pub(crate) fn find(&self, words: &str) -> Result<Option<Found>> {
        let reference = Reference::parse(words).ok();
        self.read(|index| {
            if let Some(reference) = reference {
                let name = match reference.digest() {
                    Some(digest) => reference.with_digest(digest.clone()),
                    None => reference.with_default_tag(),
                };
                let familiar = name.familiar();
                let id = match name.digest() {
                    Some(_) => index
                        .records
                        .iter()
                        .find(|(_, record)| record.repo_digests.contains(&familiar))
                        .map(|(id, _)| id),
                    None => index.tags.get(&familiar),
                };
                if let Some(id) = id {
                    return Ok(Some(Found {
                        id: id.clone(),
                        name: Some(familiar),
                    }));
                }
            }
            let Some(prefix) = image_id_prefix(words).map(|hex| format!("sha256:{hex}")) else {
                return Ok(None);
            };
            let mut ids = index
                .records
                .range(prefix.clone()..)
                .map(|(id, _)| id)
                .take_while(|id| id.starts_with(&prefix));
            match (ids.next(), ids.next()) {
                (Some(_), Some(_)) => Err(Error::not_found(format!(
                    "multiple images found with the same prefix: {words}: give more of the ID"
                ))),
                (id, _) => Ok(id.map(|id| Found {
                    id: id.clone(),
                    name: None,
                })),
            }
        })
    }
}

/// What a user's words were found to mean.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// The image's ID.
    pub(crate) id: String,
    /// The name, in familiar form with its tag or digest, when it was named and not identified.
    pub(crate) name: Option<String>,
}

/// What is said of an image that is not there, or of words that can mean none.
pub(crate) fn no_such_image(words: &str) -> Error {
    match Reference::parse(words) {
        Ok(reference) => Error::not_found(format!(
            "No such image: {}",
            reference.with_default_tag().familiar()
        )),
        Err(_) if image_id_prefix(words).is_some() => Error::not_found(format!("No such image: {words}")),
        Err(error) => Error::invalid(error.to_string()),
    }
}

impl Engine {
    /// The image a user's words mean: a name, `name@digest`, an ID or the beginning of one. The embedded image
    /// `hello` is loaded when it is asked for and absent.
    ///
    /// # Errors
    /// `No such image: …`, and when a short ID means several.
    pub async fn image(&self, name: &str) -> Result<Arc<Image>> {
        let id = match self.images.find(name)? {
            Some(found) => found.id,
            None if matches!(name, "hello" | vessel_init::HELLO_REFERENCE) => self.load_hello().await?,
            None => return Err(no_such_image(name)),
        };
        self.image_by_id(&id).await
    }

    /// The image with this full ID.
    ///
    /// # Errors
    /// When there is none, or its configuration is gone or damaged.
    pub(crate) async fn image_by_id(&self, id: &str) -> Result<Arc<Image>> {
        let (resolved, record) = self
            .images
            .read(|index| (index.resolved.get(id).cloned(), index.records.get(id).cloned()));
        if let Some(image) = resolved {
            return Ok(image);
        }
        let record = record.ok_or_else(|| Error::not_found(format!("No such image: {id}")))?;
        let (content, owned) = (self.images.content.clone(), id.to_owned());
        let image = blocking(move || read_image(&content, owned, record)).await?;
        let image = Arc::new(image);
        self.images.write(|index| {
            // Unless it was removed meanwhile.
            if index.records.contains_key(id) {
                index.resolved.insert(id.to_owned(), Arc::clone(&image));
            }
        });
        Ok(image)
    }

    /// Directories of layers, given lowest first, topmost first.
    pub(crate) fn layer_paths(&self, chain_ids: &[String]) -> Result<Vec<PathBuf>> {
        layer_paths(&self.images.content, chain_ids)
    }

    async fn load_hello(&self) -> Result<String> {
        let content = self.images.content.clone();
        let (loaded, content) = blocking(move || {
            let archive = vessel_init::hello_archive();
            let loaded =
                vessel_image::load(&content, archive.as_slice(), &LoadOptions::default(), &mut |_| {})
                    .map_err(from_image)?;
            Ok((loaded, content))
        })
        .await?;
        drop(content);
        let image = loaded
            .into_iter()
            .next()
            .ok_or_else(|| Error::system("the embedded image is damaged: its archive holds no image"))?;
        let id = image.id.to_string();
        let record = ImageRecord {
            size: image.size(),
            chain_ids: image
                .layers
                .iter()
                .map(|layer| layer.chain_id.to_string())
                .collect(),
            tagged_at: crate::time::now(),
            ..ImageRecord::default()
        };
        // The lease in `image` keeps the content until the record does.
        self.images.insert(&id, record).await?;
        self.images.flush_later();
        self.images.tag(vessel_init::HELLO_REFERENCE, &id).await?;
        Ok(id)
    }
}

fn layer_paths(content: &vessel_image::Store, chain_ids: &[String]) -> Result<Vec<PathBuf>> {
    chain_ids
        .iter()
        .rev()
        .map(|chain| Ok(content.layer_path(&chain.parse::<ChainId>().map_err(from_image)?)))
        .collect()
}

fn read_image(content: &vessel_image::Store, id: String, record: ImageRecord) -> Result<Image> {
    let digest: Digest = id.parse().map_err(from_image)?;
    let raw = content.blob(&digest).map_err(from_image)?;
    let config = ImageConfig::parse(&raw).map_err(from_image)?;
    let lower = layer_paths(content, &record.chain_ids)?;
    Ok(Image {
        id,
        record,
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        config: container_config(config.config),
        lower,
    })
}

/// An image's defaults in the API's structure.
fn container_config(image: vessel_image::ContainerConfig) -> ContainerConfig {
    let keys = |map: Option<BTreeMap<String, vessel_image::Empty>>| {
        map.unwrap_or_default()
            .into_keys()
            .map(|key| (key, vessel_api::Empty {}))
            .collect()
    };
    ContainerConfig {
        hostname: image.hostname.unwrap_or_default(),
        domainname: image.domainname.unwrap_or_default(),
        user: image.user.unwrap_or_default(),
        exposed_ports: keys(image.exposed_ports),
        tty: image.tty.unwrap_or_default(),
        env: image.env.unwrap_or_default(),
        healthcheck: image.healthcheck.map(|health| HealthConfig {
            test: health.test.unwrap_or_default(),
            interval: health.interval.unwrap_or_default(),
            timeout: health.timeout.unwrap_or_default(),
            start_period: health.start_period.unwrap_or_default(),
            start_interval: health.start_interval.unwrap_or_default(),
            retries: health.retries.unwrap_or_default(),
        }),
        args_escaped: image.args_escaped.unwrap_or_default(),
        image: image.image.unwrap_or_default(),
        volumes: keys(image.volumes),
        working_dir: image.working_dir.unwrap_or_default(),
        on_build: image.on_build.unwrap_or_default(),
        labels: image.labels.unwrap_or_default(),
        stop_signal: image.stop_signal.unwrap_or_default(),
        stop_timeout: image.stop_timeout,
        shell: image.shell.unwrap_or_default(),
        cmd: image.cmd.unwrap_or_default(),
        entrypoint: image.entrypoint,
        ..ContainerConfig::default()
    }
}

/// An image error as the engine's.
pub(crate) fn from_image(error: vessel_image::Error) -> Error {
    use vessel_image::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::NotFound => crate::ErrorKind::NotFound,
        Kind::Invalid => crate::ErrorKind::Invalid,
        _ => crate::ErrorKind::System,
    };
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        let text = next.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = next.source();
    }
    Error::new(kind, message)
}
