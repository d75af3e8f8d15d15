//! Images: references, digests, the content store, layers and archives.
//!
//! This crate turns archives into verified content on disk and back. It knows nothing of running anything,
//! and nothing of which names images have over time: the caller records that, and says what is in use when
//! it wants the rest collected.
//!
//! - [`Reference`] parses names as Docker does, [`Digest`], [`DiffId`] and [`ChainId`] name content.
//! - [`Store`] keeps blobs and unpacked layers; [`Lease`] protects what is being worked with.
//! - [`load`], [`save`] and [`import`] convert archives.
//! - [`registry`] is the client of registries: pull, push and what they are made of.
//! - [`unpack_into`], [`pack`] and [`changes`] serve `cp`, `export` and `diff` of containers.

mod archive;
mod chunk;
mod compress;
mod compression;
mod config;
mod digest;
mod error;
mod fs;
mod gzip;
mod layer;
mod manifest;
mod reference;
pub mod registry;
mod store;
mod tar;

pub use archive::{
    Format, ImportOptions, LoadOptions, LoadedImage, Progress, SaveImage, import, load, save, save_platforms,
};
pub use compress::compress;
pub use compression::{Compression, decompressed};
pub use config::{
    ContainerConfig, Empty, Healthcheck, History, ImageConfig, MAX_DOCUMENT, MAX_LAYERS, RootFs,
};
pub use digest::{Algorithm, ChainId, DiffId, Digest, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use fs::{
    Amount, Change, ChangeKind, ExtractOptions, FileKind, LayerChanges, LayerStack, Limits, Ownership,
    PackOptions, StackFile, Waste, changes, pack, unpack_into,
};
pub use layer::{DirectoryLayerOptions, LayerDirectory, StagedDirectory};
pub use manifest::{Descriptor, Document, Index, Manifest, Platform, media_type};
pub use reference::{Reference, image_id_prefix};
pub use store::{BlobInfo, Collected, LayerInfo, LayerReader, Lease, LiveSet, Store};
