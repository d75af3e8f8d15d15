//! A registry server: the OCI distribution specification, version 1.1.
//!
//! - [`Storage`] keeps content and names in a directory, survives `kill -9` and power cuts, and collects garbage
//!   while it serves.
//! - [`Registry`] answers requests: rights, routes, errors, metrics.
//! - [`Server`] listens: HTTP/1.1 and HTTP/2, plain or TLS.
//!
//! What a client sends is bounded: names, digests, headers, manifests (4 MiB), uploads in progress, connections.

mod api;
mod auth;
mod control;
mod error;
mod http;
mod local;
mod manifest;
mod metrics;
mod name;
mod page;
mod proxy;
mod registry;
mod route;
mod server;
mod storage;

pub use auth::htpasswd::hash as hash_password;
pub use auth::{AuthOptions, ExternalIssuer};
pub use control::collect_running;
pub use error::{Code, Error, Result};
pub use http::tls::TlsFiles;
pub use local::{ListImages, LocalImage, LocalOptions};
pub use name::Repository;
pub use proxy::{ProxyOptions, UpstreamOptions};
pub use registry::{Registry, Settings};
pub use server::{Config, Server, end_of_process, runtime};
pub use storage::{CollectOptions, Collected, OpenError, Quota, Storage, StorageOptions};

/// For the fuzz targets: parsers of what clients and files say.
pub mod parse {
    pub use crate::auth::htpasswd::parse as htpasswd;
    pub use crate::auth::jwt::Verifier;
    pub use crate::auth::rules::parse as rules;
    pub use crate::http::fields::{Range, content_range, none_match, range};
    pub use crate::http::query;
    pub use crate::manifest::Manifest;
    pub use crate::route::Route;
}
