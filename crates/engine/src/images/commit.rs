//! Commit: what a container changed becomes a layer over its image's.
//!
//! The container is paused only while its changed files are copied (shared, where the file system can); the archive is
//! hashed when it runs again. The configuration is the container's own with the changes asked for, as dockerd has it.
//! What dockerd writes besides, the container's ID and its whole configuration once more, Docker has taken out of its API
//! (1.45); it is left out.

use std::sync::Arc;

use vessel_api::ContainerConfig;
use vessel_image::{
    DirectoryLayerOptions, History, ImageConfig, LayerDirectory, LoadedImage, RootFs, StagedDirectory,
};

use super::transfer::new_name;
use super::{CHANGES, chain_id, changes};
use crate::container::record::{Record, Status};
use crate::oci_spec::merge::merge;
use crate::{Container, Engine, Error, ErrorKind, Result, transfer};

/// What a commit is asked for.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The name to give, without a tag; empty: none.
    pub repository: String,
    /// The tag to give; empty: `latest`.
    pub tag: String,
    /// A remark for the history.
    pub comment: String,
    /// Who did it.
    pub author: String,
    /// Whether the container is paused meanwhile.
    pub pause: bool,
    /// Dockerfile instructions for the configuration.
    pub changes: Vec<String>,
    /// The configuration to begin with, completed by the container's; none: the container's.
    pub config: Option<ContainerConfig>,
}

impl Engine {
    /// Makes an image of a container and returns its ID.
    ///
    /// # Errors
    /// No such container, or one that is being removed; a name or change that is not valid; a file that no layer can
    /// have; a full disk.
    pub async fn container_commit(self: &Arc<Self>, id: &str, options: CommitOptions) -> Result<String> {
        let container = self.container(id)?;
        let engine = Arc::clone(self);
        // It goes on when the client leaves: a container that was paused for it does not stay so.
        let task = tokio::spawn(async move { engine.or_collect(engine.commit(&container, options)).await });
        task.await
            .map_err(|error| Error::system(format!("the commit ended abnormally: {error}")))?
    }

    async fn commit(self: &Arc<Self>, container: &Arc<Container>, options: CommitOptions) -> Result<String> {
        let name = new_name(&options.repository, &options.tag)?;
        let record = container.record();
        match container.status() {
            Status::Dead => {
                return Err(Error::conflict(format!(
                    "You cannot commit container {} which is Dead",
                    record.name
                )));
            }
            Status::Removing => {
                return Err(Error::conflict(format!(
                    "You cannot commit container {} which is being removed",
                    record.name
                )));
            }
            _ => {}
        }
        let config = configuration(&record, &options)?;
        let parent = self.image_document(&record.image_id).await?;
        let parent = ImageConfig::parse(&parent)?;
        // Until the new image is recorded, the container may go and its image with it.
        let content = self.images().content().clone();
        let mut lease = content.lease();
        let mut layers = Vec::with_capacity(record.layers.len() + 1);
        for layer in &record.layers {
            let chain = chain_id(layer)?;
            if !lease.pin_layer(&chain) {
                return Err(Error::not_found(format!(
                    "layer {chain} of the container's image is gone"
                )));
            }
            layers.push(content.layer(&chain)?);
        }

        let staged = self.stage(container, options.pause).await?;
        let author = Some(options.author.clone()).filter(|author| !author.is_empty());
        let comment = Some(options.comment.clone()).filter(|comment| !comment.is_empty());
        let command = record.config.cmd.join(" ");
        let image = transfer::run(move || {
            let created = jiff::Timestamp::now().to_string();
            let empty = staged.is_empty()?;
            if !empty {
                let top = layers.last().map(|layer| layer.chain_id.clone());
                let options = DirectoryLayerOptions::default();
                layers.push(content.put_staged(staged, top.as_ref(), &options, &mut lease)?);
            }
            let step = History {
                created: Some(created.clone()),
                created_by: Some(command).filter(|command| !command.is_empty()),
                author: author.clone(),
                comment,
                empty_layer: empty.then_some(true),
            };
            let config = ImageConfig {
                created: Some(created),
                author,
                comment: None,
                docker_version: None,
                config,
                rootfs: RootFs {
                    diff_ids: layers.iter().map(|layer| layer.diff_id.clone()).collect(),
                    ..RootFs::default()
                },
                history: parent.history.into_iter().chain([step]).collect(),
                ..parent
            };
            let raw = config.to_raw()?;
            // It must be within the bounds of whoever reads it.
            ImageConfig::parse(&raw)?;
            Ok(LoadedImage {
                id: content.put_blob(&raw, &mut lease)?,
                raw_config: raw.into(),
                references: Vec::new(),
                layers,
                lease,
            })
        })
        .await?;

        let _change = CHANGES.lock().await;
        self.record_child(&image, &record.image_id).await?;
        let id = image.id.to_string();
        let mut reference = String::new();
        if let Some(name) = name {
            self.name_image(&name, &id).await?;
            reference = name.familiar();
        }
        let attributes = [
            ("comment", options.comment),
            ("imageID", id.clone()),
            ("imageRef", reference),
        ];
        self.container_event(&record, "commit", &attributes);
        Ok(id)
    }

    /// Copies what the container has written.
    async fn stage(&self, container: &Arc<Container>, pause: bool) -> Result<StagedDirectory> {
        let paths = self.container_root(container).await?;
        let paused = pause && self.pause_if_running(container.id()).await?;
        let content = self.images().content().clone();
        let staged = transfer::run(move || {
            Ok(content.stage_directory(&LayerDirectory {
                path: paths.upper,
                take: false,
            })?)
        })
        .await;
        if paused {
            match self.container_unpause(container.id()).await {
                // It was killed, or somebody has unpaused it.
                Err(error) if [ErrorKind::Conflict, ErrorKind::NotFound].contains(&error.kind()) => {}
                other => other?,
            }
        }
        staged
    }

    /// Whether it was paused by this.
    async fn pause_if_running(&self, id: &str) -> Result<bool> {
        match self.container_pause(id).await {
            Ok(()) => Ok(true),
            // It does not run, or is paused already.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            // It ended just now, and its cgroup with it.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The new image's configuration.
fn configuration(record: &Record, options: &CommitOptions) -> Result<vessel_image::ContainerConfig> {
    let convert = |error: serde_json::Error| {
        Error::system(format!(
            "the container's configuration cannot be written: {error}"
        ))
    };
    let base = options.config.as_ref().unwrap_or(&record.config);
    let mut config: vessel_image::ContainerConfig = serde_json::to_value(base)
        .and_then(serde_json::from_value)
        .map_err(convert)?;
    changes::apply(&mut config, &options.changes)?;
    let mut config: ContainerConfig = serde_json::to_value(&config)
        .and_then(serde_json::from_value)
        .map_err(convert)?;
    merge(&mut config, &record.config);
    serde_json::to_value(&config)
        .and_then(serde_json::from_value)
        .map_err(convert)
}
