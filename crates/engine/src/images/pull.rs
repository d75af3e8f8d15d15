//! Pulling images from registries.
//!
//! The messages are Docker's. A pull ends when its client goes away; what has arrived by then serves the next one.
//! Where a layer is at a registry is remembered by its diff ID ([`Place`]), so that a push need not send it again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vessel_api::{JsonMessage, ProgressDetail};
use vessel_image::registry::{Credentials, PullEvent, PullOptions, PulledImage};
use vessel_image::{ChainId, Digest, Platform, Reference};

use super::remove::short;
use super::transfer::{give_back_memory, human};
use super::{CHANGES, Progress};
use crate::image_index::ImageRecord;
use crate::{Engine, Error, Result, time};

/// Between two messages about the same layer's bytes.
const INTERVAL: Duration = Duration::from_millis(100);
/// Places that are remembered for one layer; the oldest are forgotten.
const MAX_PLACES: usize = 50;

/// What to pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// The repository, perhaps with tag or digest.
    pub image: String,
    /// A tag or digest; empty: the one in `image`, or all tags.
    pub tag: String,
    /// `os[/architecture[/variant]]`; empty: the host's.
    pub platform: String,
    /// What to show to the registry.
    pub credentials: Credentials,
}

/// A compressed layer at a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Registry and repository.
    pub repository: String,
    /// The blob's digest.
    pub digest: String,
    /// Its size.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
}

impl Engine {
    /// Pulls an image, or all tags of a repository.
    ///
    /// # Errors
    /// A name that is not valid; no such image; a registry that refuses, fails or lies, of which nothing remains.
    pub async fn image_pull(self: &Arc<Self>, request: PullRequest, progress: Progress) -> Result<()> {
        let work = async {
            tokio::select! {
                result = self.pull_images(&request, &progress) => result,
                () = progress.closed() => Err(Error::system("the pull was given up: its client went away")),
            }
        };
        let result = self.or_collect(work).await;
        if let Err(error) = self.images().content().sweep_partial(false) {
            tracing::warn!("{error}");
        }
        give_back_memory();
        result
    }

    async fn pull_images(self: &Arc<Self>, request: &PullRequest, progress: &Progress) -> Result<()> {
        let mut reference = Reference::parse(&request.image)?;
        if !request.tag.is_empty() {
            reference = match request.tag.contains(':') {
                true => reference.with_digest(request.tag.parse()?),
                false => reference.with_tag(&request.tag)?,
            };
        }
        let mut options = PullOptions {
            trust: self.config().trust.clone(),
            ..PullOptions::default()
        };
        if !request.platform.is_empty() {
            options.platform = Some(Platform::parse(&request.platform)?);
        }
        if reference.tag().is_some() || reference.digest().is_some() {
            return self.pull_one(&reference, &options, request, progress).await;
        }
        let repository = self
            .registries()
            .repository(&reference, &request.credentials)
            .await?;
        let tags = repository.tags().await?;
        if tags.is_empty() {
            return Err(Error::not_found(format!(
                "no tags found for {}",
                reference.familiar_name()
            )));
        }
        for tag in tags {
            let reference = reference.with_tag(&tag)?;
            self.pull_one(&reference, &options, request, progress).await?;
        }
        Ok(())
    }

    async fn pull_one(
        self: &Arc<Self>,
        reference: &Reference,
        options: &PullOptions,
        request: &PullRequest,
        progress: &Progress,
    ) -> Result<()> {
        let name = reference.familiar();
        if name == vessel_init::HELLO_REFERENCE {
            // It is part of the program.
            self.image(&name).await?;
            progress.tell(JsonMessage::status(format!(
                "Status: Image is up to date for {name}"
            )));
            return Ok(());
        }
        let pulled = self
            .pull_content(reference, options, &request.credentials, progress)
            .await?;
        let id = pulled.id.to_string();
        let digested = reference.with_digest(pulled.digest.clone());
        let before = {
            let _change = CHANGES.lock().await;
            // What the name stood for, be it a tag or a digest.
            let before = self.images().find(&name)?.map(|found| found.id);
            self.record_pulled(&pulled, &digested).await?;
            if reference.digest().is_none() {
                self.name_pulled(reference, &pulled).await?;
            }
            before
        };
        self.image_event("pull", &name, &reference.familiar_name());
        progress.tell(JsonMessage::status(format!("Digest: {}", pulled.digest)));
        let unchanged = before == Some(id);
        progress.tell(JsonMessage::status(if unchanged {
            format!("Status: Image is up to date for {name}")
        } else {
            format!("Status: Downloaded newer image for {name}")
        }));
        Ok(())
    }

    /// Brings an image into the content store and tells how it gets on. It is not recorded: its lease keeps it.
    ///
    /// # Errors
    /// As [`Engine::image_pull`].
    pub async fn pull_content(
        &self,
        reference: &Reference,
        options: &PullOptions,
        credentials: &Credentials,
        progress: &Progress,
    ) -> Result<PulledImage> {
        let resolved = self
            .registries()
            .resolve(reference, options.platform.as_ref(), credentials)
            .await
            .map_err(|error| denied(reference, error))?;
        options.trust.check(reference, &resolved).await?;
        let target = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        progress.tell(JsonMessage {
            status: format!("Pulling from {}", reference.path()),
            id: target,
            ..JsonMessage::default()
        });
        let teller = Teller::new(progress.clone());
        let pulled = self
            .registries()
            .pull_resolved(self.images().content(), &resolved, options, |event| {
                teller.tell(event)
            })
            .await?;
        self.remember_places(reference, &pulled);
        Ok(pulled)
    }

    /// Names a pulled image, and remembers the index it came with.
    pub(crate) async fn name_pulled(&self, reference: &Reference, pulled: &PulledImage) -> Result<()> {
        self.name_image(reference, &pulled.id.to_string()).await?;
        if pulled.documents.len() > 1 {
            let (name, index) = (reference.familiar(), pulled.digest.to_string());
            self.images().tag_index(&name, &index).await?;
        }
        Ok(())
    }

    /// Records a pulled image. Its lease may be dropped afterwards.
    pub(crate) async fn record_pulled(&self, pulled: &PulledImage, digested: &Reference) -> Result<()> {
        let id = pulled.id.to_string();
        let before = self.image_record(&id).ok();
        let mut record = ImageRecord {
            size: pulled.layers.iter().map(|layer| layer.size).sum(),
            chain_ids: pulled
                .layers
                .iter()
                .map(|layer| layer.chain_id.to_string())
                .collect(),
            tagged_at: time::now(),
            ..before.unwrap_or_default()
        };
        let digested = digested.familiar();
        if !record.repo_digests.contains(&digested) {
            record.repo_digests.push(digested);
        }
        for document in pulled.documents.iter().map(Digest::to_string) {
            if !record.documents.contains(&document) {
                record.documents.push(document);
            }
        }
        for blob in pulled.attestations.iter().map(Digest::to_string) {
            if !record.attestations.contains(&blob) {
                record.attestations.push(blob);
            }
        }
        self.images().insert(&id, record).await?;
        let chain: Vec<ChainId> = pulled.layers.iter().map(|layer| layer.chain_id.clone()).collect();
        self.images().content().finished(&chain);
        self.images().flush_later();
        Ok(())
    }

    fn remember_places(&self, reference: &Reference, pulled: &PulledImage) {
        for (layer, blob) in pulled.layers.iter().zip(&pulled.blobs) {
            let place = Place {
                repository: reference.repository(),
                digest: blob.digest.to_string(),
                size: blob.size,
                media_type: blob.media_type.clone(),
            };
            self.remember_place(&layer.diff_id.to_string(), place);
        }
    }

    /// Remembers where a layer is. It is a convenience: what cannot be remembered is sent again.
    pub(super) fn remember_place(&self, diff_id: &str, place: Place) {
        let mut known = self.places.get(diff_id).ok().flatten().unwrap_or_default();
        if known.last() == Some(&place) {
            return;
        }
        known.retain(|other| other.repository != place.repository || other.digest != place.digest);
        known.push(place);
        let excess = known.len().saturating_sub(MAX_PLACES);
        known.drain(..excess);
        if let Err(error) = self.places.put_now(diff_id, &known) {
            tracing::warn!("where the layer {diff_id} is was not remembered: {error}");
        }
    }

    /// Where a layer is known to be, latest last.
    pub(super) fn places_of(&self, diff_id: &str) -> Vec<Place> {
        self.places.get(diff_id).ok().flatten().unwrap_or_default()
    }
}

/// Docker's words for an image one may not see, or that is not there: registries do not tell the difference.
pub(super) fn denied(reference: &Reference, error: vessel_image::Error) -> Error {
    use vessel_image::ErrorKind as Kind;
    match error.kind() {
        Kind::Unauthorized | Kind::Permission => Error::not_found(format!(
            "pull access denied for {}, repository does not exist or may require 'login': {error}",
            reference.familiar_name()
        )),
        _ => error.into(),
    }
}

/// Turns events into messages, not too many of them.
pub(super) struct Teller {
    progress: Progress,
    told: Mutex<HashMap<Digest, Instant>>,
}

impl Teller {
    pub(super) fn new(progress: Progress) -> Self {
        Self {
            progress,
            told: Mutex::default(),
        }
    }

    fn tell(&self, event: PullEvent) {
        match event {
            PullEvent::Exists(digest) => self.state(&digest, "Already exists"),
            PullEvent::Waiting(digest) => self.state(&digest, "Pulling fs layer"),
            PullEvent::Downloading(digest, current, total) => {
                self.bytes(&digest, "Downloading", current, total)
            }
            PullEvent::Extracting(digest, total) => {
                self.state(&digest, "Download complete");
                self.bar(&digest, "Extracting", total, total);
            }
            PullEvent::Complete(digest) => self.state(&digest, "Pull complete"),
        }
    }

    pub(super) fn state(&self, digest: &Digest, status: &str) {
        self.progress.tell(JsonMessage {
            status: status.to_owned(),
            id: short(&digest.to_string()).to_owned(),
            progress_detail: Some(ProgressDetail::default()),
            ..JsonMessage::default()
        });
    }

    /// How many bytes have passed, now and then.
    pub(super) fn bytes(&self, digest: &Digest, status: &str, current: u64, total: u64) {
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if told
                .get(digest)
                .is_some_and(|last| now.duration_since(*last) < INTERVAL)
            {
                return;
            }
            told.insert(digest.clone(), now);
        }
        self.bar(digest, status, current, total);
    }

    fn bar(&self, digest: &Digest, status: &str, current: u64, total: u64) {
        let done = match total {
            0 => 0,
            total => (u128::from(current.min(total)) * 50 / u128::from(total)) as usize,
        };
        let bar = match done {
            50 => "=".repeat(50) + ">",
            done => format!("{}>{}", "=".repeat(done), " ".repeat(50 - done)),
        };
        self.progress.tell(JsonMessage {
            status: status.to_owned(),
            id: short(&digest.to_string()).to_owned(),
            progress_detail: Some(ProgressDetail {
                current: i64::try_from(current).unwrap_or(i64::MAX),
                total: i64::try_from(total).unwrap_or(i64::MAX),
                ..ProgressDetail::default()
            }),
            progress: format!("[{bar}]  {}/{}", human(current), human(total)),
            ..JsonMessage::default()
        });
    }
}
