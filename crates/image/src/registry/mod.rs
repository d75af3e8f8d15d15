//! The registry client: the OCI distribution specification 1.1 and what Docker's registry does beside it.
//!
//! ```text
//! RegistryClient          settings, connections, which address a name stands for
//!  ├─ resolve ─► Resolved       a name becomes manifest and platform
//!  ├─ pull ────► PulledImage    into the content store, layers as one stream each
//!  ├─ push                      out of the content store, compressed on the way
//!  ├─ login, search
//!  └─ repository ► Repository   manifests, tags, referrers, blobs: what programs build on
//! ```
//!
//! All of it is asynchronous and needs a tokio runtime with time and I/O. Everything a registry sends is hostile: it is
//! bounded, verified against the digest that was asked for, and never believed about where credentials go.

mod attestation;
mod auth;
mod blob;
mod challenge;
mod client;
mod credentials;
mod download;
mod file;
mod headers;
mod names;
mod pull;
mod push;
mod repository;
mod search;
mod settings;
mod silence;
mod tls;
mod token;
mod transport;
mod trust;
mod upload;

pub use blob::BlobReader;
pub use challenge::Challenge;
pub use client::RegistryClient;
pub use credentials::{Credentials, DOCKER_HUB_KEY, TOKEN_USERNAME, registry_key};
pub use download::Downloaded;
pub use headers::{content_range, next_link, retry_after, upload_offset};
pub use pull::{PullEvent, PullOptions, PulledImage, Resolved};
pub use push::{KnownBlob, PushEvent, PushImage, PushStyle, PushedImage};
pub use repository::{Access, RawManifest, Repository};
pub use search::{MAX_RESULTS, SearchResult};
pub use settings::Settings;
pub use token::Token;
pub use trust::TrustPolicy;
pub use upload::{Mount, Upload};
