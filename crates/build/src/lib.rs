//! Dockerfiles to images: the language, the stage graph, the cache.
//!
//! - [`request`] is what a build is asked for, [`session`] what it gets from the client, [`progress`] what it tells.
//! - [`worker`] is what it needs from the engine.
//! - [`Builder::build`] does it.

mod builder;
pub mod check;
pub mod dockerfile;
mod error;
pub mod ignore;
pub mod progress;
pub mod request;
pub mod session;
pub mod worker;

pub use builder::{Builder, BuilderConfig, CacheRecord, PruneOptions, Pruned};
pub use error::{Error, ErrorKind, Located, Location, Result};
