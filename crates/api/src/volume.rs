//! Volumes.

use crate::json::{Map, empty, model, null_if_empty};

model! {
    /// A volume.
    pub struct Volume {
        pub created_at: String,
        pub driver: String,
        #[serde(serialize_with = "null_if_empty")]
        pub labels: Map<String>,
        pub mountpoint: String,
        pub name: String,
        #[serde(serialize_with = "null_if_empty")]
        pub options: Map<String>,
        pub scope: String,
        /// What a driver says of it.
        #[serde(skip_serializing_if = "empty")]
        pub status: Map<serde_json::Value>,
        /// Only in `GET /system/df`.
        #[serde(skip_serializing_if = "empty")]
        pub usage_data: Option<VolumeUsage>,
    }

    /// What a volume takes; -1 where it was not measured.
    pub struct VolumeUsage {
        pub ref_count: i64,
        pub size: i64,
    }

    /// `GET /volumes`.
    pub struct VolumeList {
        pub volumes: Vec<Volume>,
        #[serde(serialize_with = "null_if_empty")]
        pub warnings: Vec<String>,
    }

    /// The body of `POST /volumes/create`.
    pub struct VolumeCreateRequest {
        pub driver: String,
        pub driver_opts: Map<String>,
        pub labels: Map<String>,
        /// Empty for one made up by the daemon.
        pub name: String,
    }

    /// The body of `POST /volumes/{name}/clone`, an endpoint of our own.
    pub struct VolumeCloneRequest {
        /// In addition to those of the volume that is copied.
        pub labels: Map<String>,
        /// The new volume's name.
        pub name: String,
    }

    /// `POST /volumes/prune`.
    pub struct VolumesPruneReport {
        pub volumes_deleted: Vec<String>,
        pub space_reclaimed: u64,
    }
}
