//! Images of several platforms: indexes, of which each platform's image is an image here.
//!
//! A name means one image, the one for the platform that was pulled or built last (this host's, where there is one), and
//! the index it was pulled or built with, until the name is given to another image. The index is among the documents of
//! its images' records. A push of the name sends the index with all of its images when all of them are here. Images of an
//! index that a name stands for are in use, though they have no name themselves.

use std::collections::{BTreeMap, BTreeSet};

use vessel_image::registry::Credentials;
use vessel_image::{
    Descriptor, Digest, Document, ImageConfig, Index, Manifest, Platform, Reference, media_type,
};

use super::{CHANGES, Progress};
use crate::{Engine, Error, Result};

/// Images of one index at most.
const MAX_ENTRIES: usize = 100;

/// An index that an image came with.
pub(crate) struct KnownIndex {
    index: Index,
    /// The images that are here, by their entries.
    pub entries: Vec<(Descriptor, String)>,
    /// How many images are not here.
    pub missing: usize,
    /// Whether it was built here, so that its images are nowhere else.
    pub built: bool,
}

impl Engine {
    /// The index a name stands for.
    pub(super) async fn index_of(&self, name: &str) -> Option<KnownIndex> {
        let digest = self.images().index_of_tag(name)?;
        let index = self.kept_index(&digest).await?;
        let by_document = self.images_by_document();
        let (mut entries, mut missing) = (Vec::new(), 0);
        for entry in &index.manifests {
            // What says something about an image (provenance, say) is not kept and not sent.
            if entry.annotation("vnd.docker.reference.type").is_some() || entry.artifact_type.is_some() {
                continue;
            }
            match by_document.get(&entry.digest.to_string()) {
                Some(id) => entries.push((entry.clone(), id.clone())),
                None => missing += 1,
            }
        }
        if entries.len() + missing < 2 {
            return None;
        }
        // What a registry has is known by its digest there.
        let pulled = |known: &String| known.rsplit_once('@').is_some_and(|(_, known)| known == digest);
        let images = self.images().all();
        let built = !images
            .iter()
            .any(|(_, record)| record.repo_digests.iter().any(pulled));
        Some(KnownIndex {
            index,
            entries,
            missing,
            built,
        })
    }

    async fn kept_index(&self, digest: &str) -> Option<Index> {
        match Document::parse(&self.image_document(digest).await.ok()?) {
            Ok(Document::Index(index)) if index.manifests.len() <= MAX_ENTRIES => Some(index),
            _ => None,
        }
    }

    /// The manifests of the indexes that names stand for, whose images `kept` says to stay.
    pub(super) async fn manifests_in_use(&self, kept: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (_, id, index) in self.images().tagged_indexes() {
            if kept(&id)
                && let Some(index) = self.kept_index(&index).await
            {
                found.extend(index.manifests.iter().map(|entry| entry.digest.to_string()));
            }
        }
        found
    }

    fn images_by_document(&self) -> BTreeMap<String, String> {
        let images = self.images().all().into_iter();
        images
            .flat_map(|(id, record)| {
                let documents = record.documents.into_iter();
                documents.map(move |document| (document, id.clone()))
            })
            .collect()
    }

    /// Pushes an index whose images are all here. Gives its digest and size.
    pub(super) async fn push_index(
        &self,
        reference: &Reference,
        known: &KnownIndex,
        credentials: &Credentials,
        progress: &Progress,
    ) -> Result<(Digest, usize)> {
        let target = Reference::parse(&reference.repository())?;
        let mut entries = Vec::with_capacity(known.entries.len());
        for (entry, id) in &known.entries {
            let pushed = self
                .push_image(id, &target, reference, credentials, progress)
                .await?;
            let size = pushed.manifest.len() as u64;
            entries.push(Descriptor {
                media_type: pushed.media_type,
                digest: pushed.digest,
                size,
                ..entry.clone()
            });
        }
        let index = Index {
            manifests: entries,
            ..known.index.clone()
        };
        let raw = encode(index)?;
        let digest = self.put_index(reference, &raw, credentials).await?;
        let content = self.images().content();
        let _change = CHANGES.lock().await;
        let mut lease = content.lease();
        let stored = content.put_blob(&raw.0, &mut lease)?;
        for (_, id) in &known.entries {
            self.keep_documents(
                id,
                std::slice::from_ref(&stored),
                &reference.with_digest(digest.clone()),
            )
            .await?;
        }
        Ok((digest, raw.0.len()))
    }

    /// Stores an index at a registry under a name.
    pub(crate) async fn put_index(
        &self,
        reference: &Reference,
        (raw, kind): &(Vec<u8>, String),
        credentials: &Credentials,
    ) -> Result<Digest> {
        let repository = self.registries().repository(reference, credentials).await?;
        let target = match reference.tag() {
            Some(tag) => tag.to_owned(),
            None => Digest::sha256(raw).to_string(),
        };
        Ok(repository.put_manifest(&target, kind, raw).await?)
    }

    /// Keeps images that were built for several platforms together: they are pushed as one by any of `names`, which one of
    /// them has.
    ///
    /// # Errors
    /// An image that is not here; a name that is none.
    pub(crate) async fn keep_together(&self, ids: &[Digest], names: &[String]) -> Result<()> {
        let content = self.images().content();
        let mut lease = content.lease();
        let mut entries = Vec::with_capacity(ids.len());
        let mut documents = Vec::with_capacity(ids.len());
        for id in ids {
            let raw = content.blob(id)?;
            let config = ImageConfig::parse(&raw)?;
            let mut layers = Vec::new();
            for chain in config.chain() {
                let layer = content.layer(&chain)?;
                // As they are here; a push compresses them and makes another manifest.
                layers.push(Descriptor::new(
                    media_type::OCI_LAYER,
                    layer.diff_id.0,
                    layer.archive_size,
                ));
            }
            let manifest = Manifest {
                schema_version: 2,
                media_type: Some(media_type::OCI_MANIFEST.to_owned()),
                config: Descriptor::new(media_type::OCI_CONFIG, id.clone(), raw.len() as u64),
                layers,
                artifact_type: None,
                subject: None,
                annotations: None,
            };
            let raw = serde_json::to_vec(&manifest)
                .map_err(|error| Error::system(format!("cannot encode a manifest: {error}")))?;
            let digest = content.put_blob(&raw, &mut lease)?;
            let mut entry = Descriptor::new(media_type::OCI_MANIFEST, digest.clone(), raw.len() as u64);
            entry.platform = Some(Platform::of(&config));
            entries.push(entry);
            documents.push(digest);
        }
        let (raw, _) = encode(new_index(entries))?;
        let index = content.put_blob(&raw, &mut lease)?;
        let _change = CHANGES.lock().await;
        for (id, manifest) in ids.iter().zip(documents) {
            let id = id.to_string();
            let mut record = self.image_record(&id)?;
            for document in [manifest.to_string(), index.to_string()] {
                // The latest is the last.
                record.documents.retain(|known| *known != document);
                record.documents.push(document);
            }
            self.images().insert(&id, record).await?;
        }
        for name in names {
            let name = Reference::parse(name)?.with_default_tag().familiar();
            // It may have been given to another image by now.
            let named = self.images().id_of_tag(&name);
            if ids
                .iter()
                .any(|id| named.as_deref() == Some(id.to_string().as_str()))
            {
                self.images().tag_index(&name, &index.to_string()).await?;
            }
        }
        Ok(())
    }
}

/// An index of images.
pub(crate) fn new_index(manifests: Vec<Descriptor>) -> Index {
    Index {
        schema_version: 2,
        media_type: None,
        manifests,
        artifact_type: None,
        subject: None,
        annotations: None,
    }
}

/// An index as it is sent, with its media type: Docker's holds Docker's manifests only.
pub(crate) fn encode(mut index: Index) -> Result<(Vec<u8>, String)> {
    let docker = index
        .manifests
        .iter()
        .all(|entry| entry.media_type == media_type::DOCKER_MANIFEST);
    let kind = match docker && index.annotations.is_none() {
        true => media_type::DOCKER_INDEX,
        false => media_type::OCI_INDEX,
    };
    index.media_type = Some(kind.to_owned());
    let raw = serde_json::to_vec_pretty(&index)
        .map_err(|error| Error::system(format!("cannot encode an index: {error}")))?;
    Ok((raw, kind.to_owned()))
}
