//! Images: what there is ([`list`](Engine::image_list), inspect, history), names and removal (`remove`), archives
//! (`transfer`).
//!
//! An image is its configuration's digest; names are given and taken away in [`crate::image_index`]. Content belongs
//! to the content store, and what neither an image nor a container uses is collected (`collect`).

mod attestations;
mod changes;
mod collect;
mod commit;
mod diff;
mod explain;
pub(crate) mod flush;
mod glob;
pub(crate) mod platforms;
mod pull;
mod push;
mod registries;
mod remove;
mod transfer;

use std::collections::HashMap;

use serde::Deserialize;
use vessel_api::{
    ContainerConfig, GraphDriver, HistoryItem, ImageInspect, ImageMetadata, ImageSummary, Map, RootFs,
};
use vessel_image::{ChainId, Digest, ImageConfig};

pub use attestations::AttestationOptions;
pub use commit::CommitOptions;
pub use pull::{Place, PullRequest};
pub use push::PushRequest;
pub use registries::DistributionInspect;
pub(crate) use remove::short;
pub use transfer::{ImportOptions, Progress};
pub use vessel_image::Platform;
pub use vessel_image::registry::{Credentials, Settings as RegistrySettings, TrustPolicy};

use crate::image_index::{Found, ImageRecord, no_such_image};
use crate::system::STORAGE_DRIVER;
use crate::{Engine, Error, ErrorKind, Filters, Result, blocking, time};

/// Held while names and records change together: an image that is recorded and not yet named must not look like one
/// that lost its name. Engines in one process share it; changes are rare and short.
pub(crate) static CHANGES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ImageListOptions {
    /// Intermediate images as well; there are none here.
    pub all: bool,
    /// What must match: `dangling`, `label`, `before`, `since`, `until`, `reference`.
    pub filters: Filters,
    /// Whether to measure what images share.
    pub shared_size: bool,
}

impl From<vessel_image::Error> for Error {
    fn from(error: vessel_image::Error) -> Self {
        use vessel_image::ErrorKind as Kind;
        let kind = match error.kind() {
            Kind::Invalid | Kind::Unsupported | Kind::Digest | Kind::Limit | Kind::Input => {
                ErrorKind::Invalid
            }
            Kind::NotFound => ErrorKind::NotFound,
            Kind::Conflict => ErrorKind::Conflict,
            Kind::Permission => ErrorKind::Forbidden,
            Kind::Unauthorized => ErrorKind::Unauthorized,
            _ => ErrorKind::System,
        };
        Self::new(kind, error.to_string())
    }
}

/// An image's configuration document with its `config` in the API's structure.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    config: Option<ContainerConfig>,
    container_config: Option<ContainerConfig>,
    container: Option<String>,
}

impl Engine {
    /// What a user's words mean, among the images that are there: see `ImageIndex::find`.
    pub(crate) fn find_image(&self, words: &str) -> Result<Found> {
        self.images().find(words)?.ok_or_else(|| no_such_image(words))
    }

    /// Whether there is an image by a name or ID.
    pub fn has_image(&self, words: &str) -> bool {
        self.find_image(words).is_ok()
    }

    /// A configuration from the content store.
    pub(crate) async fn image_document(&self, id: &str) -> Result<Vec<u8>> {
        let digest: Digest = id.parse()?;
        let content = self.images().content().clone();
        blocking(move || Ok(content.blob(&digest)?)).await
    }

    /// How many containers use each image.
    fn image_users(&self) -> HashMap<String, i64> {
        let mut users = HashMap::new();
        for container in self.containers() {
            *users.entry(container.record().image_id.clone()).or_default() += 1;
        }
        users
    }

    /// The images, newest first.
    ///
    /// # Errors
    /// A filter that is not known or names an image that is not there; content that cannot be read.
    pub async fn image_list(&self, options: ImageListOptions) -> Result<Vec<ImageSummary>> {
        let filters = &options.filters;
        filters.check(&[
            "dangling",
            "label",
            "label!",
            "before",
            "since",
            "until",
            "reference",
        ])?;
        let dangling = filters.flag("dangling")?;
        let mut images: Vec<(String, ImageRecord, ImageConfig)> = Vec::new();
        for (id, record) in self.images().all() {
            let config = ImageConfig::parse(&self.image_document(&id).await?)?;
            images.push((id, record, config));
        }
        let created: HashMap<String, i64> = images
            .iter()
            .map(|(id, _, config)| (id.clone(), created(config)))
            .collect();
        // Older than every `before`, newer than every `since`.
        let mut bounds = (i64::MIN, i64::MAX);
        for name in filters.get("before") {
            bounds.1 = bounds.1.min(
                created
                    .get(&self.find_image(name)?.id)
                    .copied()
                    .unwrap_or_default(),
            );
        }
        for name in filters.get("since") {
            bounds.0 = bounds.0.max(
                created
                    .get(&self.find_image(name)?.id)
                    .copied()
                    .unwrap_or_default(),
            );
        }
        if let Some(until) = filters.until()? {
            bounds.1 = bounds.1.min(until);
        }
        let shared = if options.shared_size {
            Some(self.shared_layers(&images).await?)
        } else {
            None
        };
        let (users, mut tags) = (self.image_users(), self.tags_by_image());
        let mut summaries = Vec::with_capacity(images.len());
        for (id, record, config) in images {
            let mut repo_tags = tags.remove(&id).unwrap_or_default();
            let mut repo_digests = record.repo_digests.clone();
            let labels = config.config.labels.clone().unwrap_or_default();
            let made = created[&id];
            let unnamed = repo_tags.is_empty() && repo_digests.is_empty();
            if dangling.is_some_and(|dangling| dangling != repo_tags.is_empty())
                || !filters.labels(&labels)
                || (bounds.0 != i64::MIN && made <= bounds.0)
                || (bounds.1 != i64::MAX && made >= bounds.1)
            {
                continue;
            }
            if filters.contains("reference") {
                let wanted = |name: &String| {
                    filters.any("reference", |pattern| glob::matches_reference(pattern, name))
                };
                repo_tags.retain(wanted);
                repo_digests.retain(wanted);
                if unnamed || (repo_tags.is_empty() && repo_digests.is_empty()) {
                    continue;
                }
            }
            let size = record.size as i64;
            summaries.push(ImageSummary {
                // Older versions of the API repeat the size in it.
                virtual_size: 0,
                containers: users.get(&id).copied().unwrap_or_default(),
                created: made.div_euclid(1_000_000_000),
                id,
                labels,
                parent_id: String::new(),
                repo_digests,
                repo_tags,
                shared_size: shared.as_ref().map_or(-1, |shared| {
                    record
                        .chain_ids
                        .iter()
                        .filter_map(|chain| shared.get(chain))
                        .sum::<u64>() as i64
                }),
                size,
            });
        }
        summaries.sort_by(|one, other| {
            other
                .created
                .cmp(&one.created)
                .then_with(|| one.id.cmp(&other.id))
        });
        Ok(summaries)
    }

    /// Layers that more than one image has, with their sizes.
    async fn shared_layers(
        &self,
        images: &[(String, ImageRecord, ImageConfig)],
    ) -> Result<HashMap<String, u64>> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for chain in images.iter().flat_map(|(_, record, _)| &record.chain_ids) {
            *counts.entry(chain.clone()).or_default() += 1;
        }
        let content = self.images().content().clone();
        blocking(move || {
            let mut shared = HashMap::new();
            for (chain, _) in counts.into_iter().filter(|(_, count)| *count > 1) {
                let parsed: ChainId = chain_id(&chain)?;
                shared.insert(chain, content.layer_size(&parsed)?);
            }
            Ok(shared)
        })
        .await
    }

    fn tags_by_image(&self) -> HashMap<String, Vec<String>> {
        let mut tags: HashMap<String, Vec<String>> = HashMap::new();
        for (tag, id) in self.images().tags() {
            tags.entry(id).or_default().push(tag);
        }
        tags.values_mut().for_each(|tags| tags.sort());
        tags
    }

    /// Everything about an image.
    ///
    /// # Errors
    /// No such image; content that cannot be read.
    pub async fn image_inspect(&self, name: &str) -> Result<ImageInspect> {
        let found = self.find_image(name)?;
        let raw = self.image_document(&found.id).await?;
        let config = ImageConfig::parse(&raw)?;
        let document: Document = serde_json::from_slice(&raw).map_err(|error| {
            Error::system(format!(
                "the configuration of image {} cannot be read: {error}",
                found.id
            ))
        })?;
        let record = self.image_record(&found.id)?;
        let content = self.images().content();
        let mut layers: Vec<String> = Vec::with_capacity(record.chain_ids.len());
        for chain in record.chain_ids.iter().rev() {
            layers.push(content.layer_path(&chain_id(chain)?).display().to_string());
        }
        let mut data = Map::new();
        if let Some((top, lower)) = layers.split_first() {
            data.insert("UpperDir".to_owned(), top.clone());
            if !lower.is_empty() {
                data.insert("LowerDir".to_owned(), lower.join(":"));
            }
        }
        let mut repo_tags = self.images().tags_of(&found.id);
        repo_tags.sort();
        let container = document.config.unwrap_or_default();
        let identity = attestations::identity(&record.repo_digests);
        Ok(ImageInspect {
            virtual_size: 0,
            id: found.id,
            repo_tags,
            repo_digests: record.repo_digests,
            parent: self.known_parent(&record.parent),
            comment: config
                .comment
                .or_else(|| config.history.last().and_then(|step| step.comment.clone()))
                .unwrap_or_default(),
            created: config
                .created
                .unwrap_or_else(|| vessel_api::inspect::ZERO_TIME.to_owned()),
            container: document.container.unwrap_or_default(),
            // What no builder tells any more: docker-compose 1 looks for an image's volumes in it.
            container_config: Some(document.container_config.unwrap_or_else(|| container.clone())),
            docker_version: config.docker_version.unwrap_or_default(),
            author: config.author.unwrap_or_default(),
            config: Some(container),
            architecture: config.architecture,
            variant: config.variant.unwrap_or_default(),
            os: config.os,
            os_version: config.os_version.unwrap_or_default(),
            size: record.size as i64,
            graph_driver: GraphDriver {
                data,
                name: STORAGE_DRIVER.to_owned(),
            },
            root_fs: RootFs {
                kind: config.rootfs.kind,
                layers: config.rootfs.diff_ids.iter().map(ToString::to_string).collect(),
            },
            metadata: ImageMetadata {
                last_tag_time: time::rfc3339(record.tagged_at),
            },
            identity,
        })
    }

    pub(crate) fn image_record(&self, id: &str) -> Result<ImageRecord> {
        self.images()
            .record(id)
            .ok_or_else(|| Error::not_found(format!("No such image: {id}")))
    }

    /// How an image came about, newest step first.
    ///
    /// # Errors
    /// No such image, or one for another platform than it must be for; content that cannot be read.
    pub async fn image_history(&self, name: &str, platform: Option<&Platform>) -> Result<Vec<HistoryItem>> {
        let found = self.find_image(name)?;
        let config = ImageConfig::parse(&self.image_document(&found.id).await?)?;
        must_be_for(platform, &config, found.name.as_deref().unwrap_or(name))?;
        let chain = config.chain();
        let content = self.images().content().clone();
        let sizes = blocking(move || {
            chain
                .iter()
                .map(|chain| Ok(content.layer_size(chain)?))
                .collect::<Result<Vec<u64>>>()
        })
        .await?;
        let mut sizes = sizes.into_iter();
        let mut items: Vec<HistoryItem> = config
            .history
            .iter()
            .map(|step| HistoryItem {
                comment: step.comment.clone().unwrap_or_default(),
                created: step
                    .created
                    .as_deref()
                    .map_or(0, |text| parse_created(text).div_euclid(1_000_000_000)),
                created_by: step.created_by.clone().unwrap_or_default(),
                id: "<missing>".to_owned(),
                size: match step.empty_layer.unwrap_or_default() {
                    true => 0,
                    false => sizes.next().unwrap_or_default() as i64,
                },
                tags: Vec::new(),
            })
            .collect();
        // Archives without history still have layers.
        items.extend(sizes.map(|size| HistoryItem {
            id: "<missing>".to_owned(),
            size: size as i64,
            ..HistoryItem::default()
        }));
        items.reverse();
        // As dockerd: one image per step, as far down as it is known what was committed over what.
        let mut id = found.id;
        for item in &mut items {
            item.tags = self.images().tags_of(&id);
            item.tags.sort();
            let parent = self.image_record(&id)?.parent;
            item.id = std::mem::replace(&mut id, self.known_parent(&parent));
            if id.is_empty() {
                break;
            }
        }
        Ok(items)
    }

    /// The image another was committed over, if it is still there.
    fn known_parent(&self, parent: &str) -> String {
        if self.images().contains(parent) {
            parent.to_owned()
        } else {
            String::new()
        }
    }
}

/// Refuses an image that is for another platform than was asked for.
fn must_be_for(platform: Option<&Platform>, config: &ImageConfig, name: &str) -> Result<()> {
    let has = Platform::of(config);
    match platform {
        Some(platform) if !platform.accepts(&has) => Err(Error::not_found(format!(
            "image with reference {name} was found but its platform ({has}) does not match the specified platform ({platform})"
        ))),
        _ => Ok(()),
    }
}

/// A chain ID from a record.
pub(crate) fn chain_id(text: &str) -> Result<ChainId> {
    let digest: Digest = if text.contains(':') {
        text.parse()?
    } else {
        Digest::from_sha256_hex(text)?
    };
    Ok(ChainId(digest))
}

fn created(config: &ImageConfig) -> i64 {
    config.created.as_deref().map_or(0, parse_created)
}

/// Nanoseconds since the epoch of a time in a configuration; one that cannot be read is no time.
fn parse_created(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>()
        .ok()
        .and_then(|time| i64::try_from(time.as_nanosecond()).ok())
        .unwrap_or_default()
}
