//! Mounts as asked for (`--mount`) and as they are (`inspect`).

use crate::json::{Map, empty, model};

model! {
    /// A mount as asked for.
    pub struct Mount {
        /// `bind`, `volume`, `tmpfs`, `image`, `npipe` or `cluster`.
        #[serde(rename = "Type", skip_serializing_if = "empty")]
        pub kind: String,
        #[serde(skip_serializing_if = "empty")]
        pub source: String,
        #[serde(skip_serializing_if = "empty")]
        pub target: String,
        #[serde(skip_serializing_if = "empty")]
        pub read_only: bool,
        #[serde(skip_serializing_if = "empty")]
        pub consistency: String,
        #[serde(skip_serializing_if = "empty")]
        pub bind_options: Option<BindOptions>,
        #[serde(skip_serializing_if = "empty")]
        pub volume_options: Option<VolumeOptions>,
        #[serde(skip_serializing_if = "empty")]
        pub image_options: Option<ImageOptions>,
        #[serde(skip_serializing_if = "empty")]
        pub tmpfs_options: Option<TmpfsOptions>,
    }

    /// Options of a bind mount.
    pub struct BindOptions {
        /// `private`, `rprivate`, `shared`, `rshared`, `slave`, `rslave`.
        #[serde(skip_serializing_if = "empty")]
        pub propagation: String,
        #[serde(skip_serializing_if = "empty")]
        pub non_recursive: bool,
        /// Make a missing source a directory.
        #[serde(skip_serializing_if = "empty")]
        pub create_mountpoint: bool,
        #[serde(skip_serializing_if = "empty")]
        pub read_only_non_recursive: bool,
        #[serde(skip_serializing_if = "empty")]
        pub read_only_force_recursive: bool,
    }

    /// Options of a volume mount.
    pub struct VolumeOptions {
        /// Do not copy what the image has at the target into an empty volume.
        #[serde(skip_serializing_if = "empty")]
        pub no_copy: bool,
        #[serde(skip_serializing_if = "empty")]
        pub labels: Map<String>,
        #[serde(skip_serializing_if = "empty")]
        pub subpath: String,
        #[serde(skip_serializing_if = "empty")]
        pub driver_config: Option<Driver>,
    }

    /// Options of an image mount.
    pub struct ImageOptions {
        #[serde(skip_serializing_if = "empty")]
        pub subpath: String,
    }

    /// A volume driver and its options.
    pub struct Driver {
        #[serde(skip_serializing_if = "empty")]
        pub name: String,
        #[serde(skip_serializing_if = "empty")]
        pub options: Map<String>,
    }

    /// Options of a tmpfs mount.
    pub struct TmpfsOptions {
        #[serde(skip_serializing_if = "empty")]
        pub size_bytes: i64,
        /// Permission bits; 0 for 01777.
        #[serde(skip_serializing_if = "empty")]
        pub mode: u32,
        /// Each a key and, when it has one, a value.
        #[serde(skip_serializing_if = "empty")]
        pub options: Vec<Vec<String>>,
    }

    /// A mount as it is, in `inspect` and `ps`.
    pub struct MountPoint {
        #[serde(rename = "Type", skip_serializing_if = "empty")]
        pub kind: String,
        /// The volume's name.
        #[serde(skip_serializing_if = "empty")]
        pub name: String,
        pub source: String,
        pub destination: String,
        #[serde(skip_serializing_if = "empty")]
        pub driver: String,
        pub mode: String,
        #[serde(rename = "RW")]
        pub rw: bool,
        pub propagation: String,
    }
}
