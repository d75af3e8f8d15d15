//! Which images there are: records by ID, names to IDs.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vessel_api::ContainerConfig;

use crate::{Engine, Error, Result};

/// What is kept of an image beside its blobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Bytes of its layers, unpacked.
    pub size: u64,
    /// Chain IDs of its layers, lowest first: names of directories under `layers/`.
    pub chain_ids: Vec<String>,
    /// When it was last given a name, nanoseconds since the epoch.
    pub tagged_at: i64,
    /// `name@sha256:…` it is known by.
    pub repo_digests: Vec<String>,
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

/// Names and records. Tables `images` (ID to [`ImageRecord`]) and `tags` (`docker.io/library/busybox:latest` in
/// familiar form, `busybox:latest`, to ID).
#[derive(Debug)]
pub struct ImageIndex {}

impl ImageIndex {
    /// All images.
    pub fn all(&self) -> Vec<(String, ImageRecord)> {
        Vec::new()
    }

    /// All names (familiar form, with tag) with the image's ID.
    pub fn tags(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The names of an image.
    pub fn tags_of(&self, _id: &str) -> Vec<String> {
        Vec::new()
    }

    /// Adds or changes a record.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn insert(&self, _id: &str, _record: ImageRecord) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }

    /// Forgets a record (names stay; take them away first).
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn remove(&self, _id: &str) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }

    /// Gives an image a name, which another may lose by that. Returns the ID that had it.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn tag(&self, _name: &str, _id: &str) -> Result<Option<String>> {
        Err(Error::unsupported("not written yet"))
    }

    /// Takes a name away. Returns the ID that had it.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn untag(&self, _name: &str) -> Result<Option<String>> {
        Err(Error::unsupported("not written yet"))
    }
}

impl Engine {
    /// The image a user's words mean: a name, `name@digest`, an ID or the beginning of one. The embedded image
    /// `hello` is loaded when it is asked for and absent.
    ///
    /// # Errors
    /// `No such image: …`, and when a short ID means several.
    pub async fn image(&self, name: &str) -> Result<Arc<Image>> {
        Err(Error::not_found(format!("No such image: {name}")))
    }
}
