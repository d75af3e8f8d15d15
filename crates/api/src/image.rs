//! Images.

use serde_json::Value;

use crate::container::ContainerConfig;
use crate::inspect::GraphDriver;
use crate::json::{Map, empty, model, null_if_empty};

model! {
    /// One element of `GET /images/json`.
    pub struct ImageSummary {
        /// How many containers use it; -1 where it was not counted.
        pub containers: i64,
        /// Seconds since the epoch.
        pub created: i64,
        pub id: String,
        #[serde(serialize_with = "null_if_empty")]
        pub labels: Map<String>,
        pub parent_id: String,
        pub repo_digests: Vec<String>,
        pub repo_tags: Vec<String>,
        /// Bytes shared with other images; -1 where it was not measured.
        pub shared_size: i64,
        pub size: i64,
        #[serde(skip_serializing_if = "empty")]
        pub virtual_size: i64,
    }

    /// `GET /images/{name}/json`.
    pub struct ImageInspect {
        pub id: String,
        pub repo_tags: Vec<String>,
        pub repo_digests: Vec<String>,
        pub parent: String,
        pub comment: String,
        pub created: String,
        pub container: String,
        pub container_config: Option<ContainerConfig>,
        pub docker_version: String,
        pub author: String,
        pub config: Option<ContainerConfig>,
        pub architecture: String,
        #[serde(skip_serializing_if = "empty")]
        pub variant: String,
        pub os: String,
        #[serde(skip_serializing_if = "empty")]
        pub os_version: String,
        pub size: i64,
        #[serde(skip_serializing_if = "empty")]
        pub virtual_size: i64,
        pub graph_driver: GraphDriver,
        #[serde(rename = "RootFS")]
        pub root_fs: RootFs,
        pub metadata: ImageMetadata,
        /// Where it comes from.
        #[serde(skip_serializing_if = "empty")]
        pub identity: Option<ImageIdentity>,
    }

    /// Where an image comes from, as far as the engine has seen it itself.
    pub struct ImageIdentity {
        #[serde(skip_serializing_if = "empty")]
        pub pull: Vec<PullIdentity>,
    }

    /// A repository that an image was pulled from or pushed to.
    pub struct PullIdentity {
        pub repository: String,
    }

    /// One element of `GET /images/{name}/attestations`: an in-toto statement about an image.
    pub struct AttestationStatement {
        /// The statement's descriptor, as the OCI image specification has it.
        pub descriptor: Value,
        /// The URI of what it says.
        pub predicate_type: String,
        /// The statement itself, where it was asked for.
        #[serde(skip_serializing_if = "empty")]
        pub statement: Option<Value>,
    }

    /// The layers of an image.
    pub struct RootFs {
        #[serde(rename = "Type")]
        pub kind: String,
        /// Diff IDs, lowest first.
        #[serde(skip_serializing_if = "empty")]
        pub layers: Vec<String>,
    }

    /// What an engine knows of an image beyond its content.
    pub struct ImageMetadata {
        pub last_tag_time: String,
    }

    /// One element of `GET /images/{name}/history`, newest first.
    pub struct HistoryItem {
        pub comment: String,
        /// Seconds since the epoch.
        pub created: i64,
        pub created_by: String,
        /// `<missing>` for what is not an image of its own.
        pub id: String,
        pub size: i64,
        #[serde(serialize_with = "null_if_empty")]
        pub tags: Vec<String>,
    }

    /// One element of the answer to `DELETE /images/{name}`: one of the two.
    pub struct ImageDeleteItem {
        #[serde(skip_serializing_if = "empty")]
        pub deleted: String,
        #[serde(skip_serializing_if = "empty")]
        pub untagged: String,
    }

    /// The answer to `POST /commit`.
    pub struct CommitResponse {
        pub id: String,
    }

    /// `POST /images/prune`.
    pub struct ImagesPruneReport {
        #[serde(serialize_with = "null_if_empty")]
        pub images_deleted: Vec<ImageDeleteItem>,
        pub space_reclaimed: u64,
    }
}
