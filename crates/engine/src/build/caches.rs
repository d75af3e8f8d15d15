//! A repository of a registry as the place of a build's cache.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use vessel_build::place::{BlobPieces, CachePlace};
use vessel_build::session::Session;
use vessel_image::registry::{Access, BlobReader, Repository};
use vessel_image::{Descriptor, Digest, Reference};

use super::{EngineWorker, credentials};
use crate::{Error, Result};

/// A name at a registry.
struct Place {
    repository: Repository,
    target: String,
}

struct Pieces(BlobReader);

impl EngineWorker {
    /// The place a name stands for.
    pub(super) async fn place(
        &self,
        reference: &str,
        session: &Arc<dyn Session>,
    ) -> Result<Arc<dyn CachePlace>> {
        let engine = self.engine()?;
        let reference = Reference::parse(reference)?.with_default_tag();
        let given = session
            .credentials(reference.domain())
            .await
            .map_err(Error::from)?;
        let credentials = given.map(credentials).unwrap_or_default();
        let repository = engine.registries().repository(&reference, &credentials).await?;
        let target = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        Ok(Arc::new(Place { repository, target }))
    }
}

#[async_trait]
impl CachePlace for Place {
    async fn manifest(&self, digest: Option<&Digest>) -> vessel_build::Result<Vec<u8>> {
        let target = digest.map_or_else(|| self.target.clone(), ToString::to_string);
        Ok(self.repository.manifest(&target).await?.raw)
    }

    async fn has(&self, blob: &Descriptor) -> vessel_build::Result<bool> {
        Ok(self.repository.blob_size(&blob.digest, Access::Push).await? == Some(blob.size))
    }

    async fn read(&self, blob: &Descriptor) -> vessel_build::Result<Box<dyn BlobPieces>> {
        Ok(Box::new(Pieces(self.repository.blob(blob, 0))))
    }

    async fn write(&self, blob: &Descriptor, file: &Path) -> vessel_build::Result<()> {
        Ok(self.repository.put_file(file, blob).await?)
    }

    async fn put_manifest(&self, media_type: &str, raw: &[u8]) -> vessel_build::Result<()> {
        self.repository
            .put_manifest(&self.target, media_type, raw)
            .await?;
        Ok(())
    }
}

#[async_trait]
impl BlobPieces for Pieces {
    async fn next(&mut self) -> vessel_build::Result<Option<bytes::Bytes>> {
        Ok(self.0.next().await?)
    }
}
