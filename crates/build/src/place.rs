//! Places where caches are left for later builds: a repository of a registry, an OCI layout of the client.

use std::path::Path;

use async_trait::async_trait;
use vessel_image::{Descriptor, Digest};

use crate::error::Result;

/// A place with blobs and a manifest. Nothing that is read from it is trusted: the builder bounds it and verifies digests.
#[async_trait]
pub trait CachePlace: Send + Sync {
    /// The manifest this place stands for, or one of a digest.
    async fn manifest(&self, digest: Option<&Digest>) -> Result<Vec<u8>>;

    /// Whether a blob is there.
    async fn has(&self, blob: &Descriptor) -> Result<bool>;

    /// Reads a blob.
    async fn read(&self, blob: &Descriptor) -> Result<Box<dyn BlobPieces>>;

    /// Stores a blob of which a file is the content, unless it is there.
    async fn write(&self, blob: &Descriptor, file: &Path) -> Result<()>;

    /// Stores the manifest of blobs that are there.
    async fn put_manifest(&self, media_type: &str, raw: &[u8]) -> Result<()>;
}

/// The bytes of a blob, front to back.
#[async_trait]
pub trait BlobPieces: Send {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Result<Option<bytes::Bytes>>;
}
