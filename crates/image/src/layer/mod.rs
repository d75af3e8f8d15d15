//! Unpacking layers and putting their archives together again.

mod ingest;
pub(crate) mod split;

pub(crate) use ingest::{Unpacked, feed, join, spawn};
