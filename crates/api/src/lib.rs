//! The Docker Engine API's structures and Vessel's own extensions, shared by client, daemon and engine.
//!
//! Names, nesting and zero values follow the Docker Engine API reference, 1.24 to the newest; what an older
//! peer does not send reads as its zero value. Input is taken as Go takes it: unknown fields are ignored and
//! `null` is a zero value. Times are RFC 3339 strings with nanoseconds unless a field says otherwise; sizes
//! are bytes, durations nanoseconds.
#![allow(
    missing_docs,
    reason = "a field without a comment means what the field of the same name in Docker's API reference means"
)]

pub mod container;
pub mod describe;
pub mod error;
pub mod events;
pub mod exec;
pub mod host_config;
pub mod image;
pub mod image_explain;
pub mod inspect;
pub mod json;
pub mod mount;
pub mod network;
pub mod operations;
pub mod progress;
pub mod stats;
pub mod system;
pub mod vessel;
pub mod volume;

pub use container::*;
pub use describe::Describe;
pub use error::*;
pub use events::*;
pub use exec::*;
pub use host_config::*;
pub use image::*;
pub use image_explain::*;
pub use inspect::*;
pub use json::{Empty, Map};
pub use mount::*;
pub use network::*;
pub use operations::*;
pub use progress::*;
pub use stats::*;
pub use system::*;
pub use vessel::DiskItem;
pub use volume::*;

/// The newest API version these structures cover.
pub const API_VERSION: &str = "1.51";
/// The oldest API version a server of these structures answers.
pub const MIN_API_VERSION: &str = "1.24";
