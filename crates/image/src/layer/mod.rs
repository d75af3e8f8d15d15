//! Unpacking layers and putting their archives together again.

mod directory;
mod ingest;
pub(crate) mod split;

pub use directory::{DirectoryLayerOptions, LayerDirectory, StagedDirectory};
pub(crate) use ingest::{Feeder, Unpacked, feed, join, spawn};
