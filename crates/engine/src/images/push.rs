//! Pushing images to registries. The messages are Docker's.

use std::sync::Arc;

use serde_json::json;
use vessel_api::JsonMessage;
use vessel_image::registry::{Credentials, KnownBlob, PushEvent, PushImage, PushStyle, PushedImage};
use vessel_image::{Descriptor, DiffId, Digest, ImageConfig, Reference};

use super::pull::{Place, Teller};
use super::transfer::give_back_memory;
use super::{CHANGES, Progress};
use crate::{Engine, Error, Result};

/// What to push, and where.
#[derive(Debug, Clone, Default)]
pub struct PushRequest {
    /// The repository.
    pub image: String,
    /// The tag; empty: all that are here.
    pub tag: String,
    /// What to show to the registry.
    pub credentials: Credentials,
}

impl Engine {
    /// Pushes an image, or all tags of a repository.
    ///
    /// # Errors
    /// No such image; a registry that refuses or fails.
    pub async fn image_push(self: &Arc<Self>, request: PushRequest, progress: Progress) -> Result<()> {
        let result = tokio::select! {
            result = self.push_images(&request, &progress) => result,
            () = progress.closed() => Err(Error::system("the push was given up: its client went away")),
        };
        give_back_memory();
        result
    }

    async fn push_images(&self, request: &PushRequest, progress: &Progress) -> Result<()> {
        let mut reference = Reference::parse(&request.image)?;
        if reference.digest().is_some() {
            return Err(Error::invalid("cannot push a digest reference"));
        }
        if !request.tag.is_empty() {
            reference = reference.with_tag(&request.tag)?;
        }
        let references = match reference.tag() {
            Some(_) => vec![reference.clone()],
            None => self.tags_of_repository(&reference)?,
        };
        for reference in &references {
            let name = reference.familiar();
            if self.images().id_of_tag(&name).is_none() {
                return Err(Error::not_found(format!(
                    "An image does not exist locally with the tag: {}",
                    reference.familiar_name()
                )));
            }
        }
        progress.tell(JsonMessage::status(format!(
            "The push refers to repository [{}]",
            reference.repository()
        )));
        for reference in &references {
            self.push_one(reference, &request.credentials, progress).await?;
        }
        Ok(())
    }

    fn tags_of_repository(&self, reference: &Reference) -> Result<Vec<Reference>> {
        let name = reference.familiar_name();
        let mut found = Vec::new();
        for (tag, _) in self.images().tags() {
            if tag
                .rsplit_once(':')
                .is_some_and(|(repository, _)| repository == name)
            {
                found.push(Reference::parse(&tag)?);
            }
        }
        if found.is_empty() {
            return Err(Error::not_found(format!(
                "An image does not exist locally with the tag: {name}"
            )));
        }
        Ok(found)
    }

    async fn push_one(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: &Progress,
    ) -> Result<()> {
        let name = reference.familiar();
        let id = self.find_image(&name)?.id;
        let index = self.index_of(&name).await;
        let (digest, size) = match &index {
            Some(index) if index.missing > 0 && index.built => {
                return Err(Error::conflict(format!(
                    "{name} was built for {} platforms, and the images of {} of them are not here any more: build it again, or give the ID of the image that is to be pushed alone a name of its own",
                    index.entries.len() + index.missing,
                    index.missing
                )));
            }
            Some(index) if index.missing == 0 => {
                self.push_index(reference, index, credentials, progress).await?
            }
            _ => {
                let pushed = self
                    .push_image(&id, reference, reference, credentials, progress)
                    .await?;
                (pushed.digest, pushed.manifest.len())
            }
        };
        self.image_event("push", &name, &reference.familiar_name());
        let tag = reference.tag().unwrap_or_default();
        progress.tell(JsonMessage::status(format!(
            "{tag}: digest: {digest} size: {size}"
        )));
        progress.tell(JsonMessage {
            aux: Some(json!({"Tag": tag, "Digest": digest.to_string(), "Size": size})),
            ..JsonMessage::default()
        });
        if let Some(index) = index.filter(|index| index.missing > 0) {
            progress.tell(JsonMessage::status(format!(
                "Only this platform's image was pushed: of the {} platforms of its index {} are not here; pull them with --platform to push all",
                index.entries.len() + index.missing,
                index.missing
            )));
        }
        Ok(())
    }

    /// Pushes the image of an ID under `target`, which may have no tag; it is known as one of `reference` afterwards.
    pub(super) async fn push_image(
        &self,
        id: &str,
        target: &Reference,
        reference: &Reference,
        credentials: &Credentials,
        progress: &Progress,
    ) -> Result<PushedImage> {
        // It must not go while it is read.
        let _held = self
            .images()
            .hold(id)
            .ok_or_else(|| Error::not_found(format!("No such image: {id}")))?;
        let image = self.push_content(id).await?;
        let teller = Teller::new(progress.clone());
        let tell = |event| push_message(&teller, event);
        let content = self.images().content();
        let pushed = self
            .registries()
            .push(content, &image, target, credentials, tell)
            .await?;
        let config = ImageConfig::parse(&image.raw_config)?;
        self.remember_pushed(&config.rootfs.diff_ids, &pushed, reference);
        let _change = CHANGES.lock().await;
        let mut lease = content.lease();
        let stored = content.put_blob(&pushed.manifest, &mut lease)?;
        self.keep_documents(id, &[stored], &reference.with_digest(pushed.digest.clone()))
            .await?;
        Ok(pushed)
    }

    /// What a push of an image needs.
    async fn push_content(&self, id: &str) -> Result<PushImage> {
        let raw_config = self.image_document(id).await?;
        let config = ImageConfig::parse(&raw_config)?;
        let mut known = Vec::with_capacity(config.rootfs.diff_ids.len());
        for diff_id in &config.rootfs.diff_ids {
            known.push(self.known_blobs(diff_id));
        }
        Ok(PushImage {
            manifest: self.manifest_of(id).await,
            raw_config,
            known,
            style: PushStyle::default(),
        })
    }

    /// Where a layer is known to be.
    pub(crate) fn known_blobs(&self, diff_id: &DiffId) -> Vec<KnownBlob> {
        let places = self.places_of(&diff_id.to_string());
        places.iter().rev().filter_map(known_blob).collect()
    }

    /// Remembers where the layers of a pushed image are.
    pub(crate) fn remember_pushed(&self, layers: &[DiffId], pushed: &PushedImage, reference: &Reference) {
        for (diff_id, blob) in layers.iter().zip(&pushed.blobs) {
            let place = Place {
                repository: reference.repository(),
                digest: blob.digest.to_string(),
                size: blob.size,
                media_type: blob.media_type.clone(),
            };
            self.remember_place(&diff_id.to_string(), place);
        }
    }

    /// Keeps documents with an image, which is known by a digest from now on.
    pub(super) async fn keep_documents(
        &self,
        id: &str,
        documents: &[Digest],
        digested: &Reference,
    ) -> Result<()> {
        let mut record = self.image_record(id)?;
        let digested = digested.familiar();
        if !record.repo_digests.contains(&digested) {
            record.repo_digests.push(digested);
        }
        for document in documents {
            let document = document.to_string();
            if !record.documents.contains(&document) {
                record.documents.push(document);
            }
        }
        self.images().insert(id, record).await
    }

    /// The manifest an image came with, if it is kept.
    async fn manifest_of(&self, id: &str) -> Option<Vec<u8>> {
        let record = self.image_record(id).ok()?;
        for document in record.documents.iter().rev() {
            let Ok(raw) = self.image_document(document).await else {
                continue;
            };
            if let Ok(vessel_image::Document::Manifest(manifest)) = vessel_image::Document::parse(&raw)
                && manifest.config.digest.to_string() == id
            {
                return Some(raw);
            }
        }
        None
    }
}

fn known_blob(place: &Place) -> Option<KnownBlob> {
    let digest: Digest = place.digest.parse().ok()?;
    Some(KnownBlob {
        repository: place.repository.clone(),
        descriptor: Descriptor::new(place.media_type.clone(), digest, place.size),
    })
}

fn push_message(teller: &Teller, event: PushEvent) {
    match event {
        PushEvent::Preparing(layer) => teller.state(&layer.0, "Preparing"),
        PushEvent::Exists(layer) => teller.state(&layer.0, "Layer already exists"),
        PushEvent::Mounted(layer, from) => teller.state(&layer.0, &format!("Mounted from {from}")),
        PushEvent::Pushing(layer, sent, total) => teller.bytes(&layer.0, "Pushing", sent, total),
        PushEvent::Pushed(layer) => teller.state(&layer.0, "Pushed"),
    }
}
