//! Dockerfiles to images: the language, the stage graph, the cache.
//!
//! - [`request`] is what a build is asked for, [`session`] what it gets from the client, [`progress`] what it tells.
//! - [`worker`] is what it needs from the engine.
//! - [`Builder::build`] does it.

mod answer;
mod builder;
mod cache;
pub mod check;
pub mod dockerfile;
mod error;
pub mod ignore;
mod outline;
pub mod place;
pub mod progress;
pub mod request;
pub mod session;
mod solve;
mod time;
mod tree;
pub mod worker;

pub use builder::{Builder, BuilderConfig, CacheRecord, PruneOptions, Pruned};
pub use error::{Error, ErrorKind, FailedProcess, Located, Location, Result};

/// Runs what blocks on a thread made for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(
            ErrorKind::System,
            format!("a thread of the builder ended abnormally: {error}"),
        ))
    })
}

/// Reads files of the cache from any bytes: for fuzz targets.
#[doc(hidden)]
pub fn read_cache_files(bytes: &[u8]) -> (usize, bool) {
    let lines = cache::index::parse(bytes).len();
    let memory = tree::digest::Memory::decode(bytes).map(|memory| memory.encode());
    (lines, memory.is_some())
}

/// Reads a cache of elsewhere: its document, before the first zero byte, with a manifest, after it; and the same bytes as
/// the configuration of an image. Gives how many records there are. For fuzz targets.
///
/// # Panics
/// When what was read is not what is written.
#[doc(hidden)]
pub fn read_exported_cache(bytes: &[u8]) -> usize {
    use cache::document::{Contents, Document};
    let (document, manifest) = match bytes.iter().position(|&byte| byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &bytes[..0]),
    };
    if let Ok(read) = Document::parse(document) {
        let again = read.encode().and_then(|text| Document::parse(&text));
        assert!(
            again.is_ok_and(|again| again == read),
            "a cache is not what was written"
        );
    }
    let manifest = serde_json::from_slice(manifest).ok();
    let of_manifest = manifest
        .as_ref()
        .and_then(|manifest| Contents::of_manifest(manifest, document).ok());
    let of_image = Contents::of_image(document, manifest.as_ref()).ok().flatten();
    [of_manifest, of_image].iter().flatten().map(Contents::len).sum()
}
