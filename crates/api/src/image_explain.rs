//! Vessel's extensions about what is in images: `GET /images/{name}/explain` and `GET /images/{name}/diff?to=NAME`.

use crate::json::{empty, model};

model! {
    /// What an image's layers hold, and what of it is of use.
    pub struct ImageExplanation {
        pub id: String,
        pub tags: Vec<String>,
        /// `os/architecture[/variant]`.
        pub platform: String,
        /// Bytes of files in all layers.
        pub size: u64,
        /// Bytes of the files that a container sees.
        pub visible: u64,
        /// Bytes that layers hold and no container sees: replaced or deleted by layers above.
        pub wasted: u64,
        /// `visible` by `size`; 1 for an image without files.
        pub efficiency: f64,
        /// Bytes of layers that other images have too.
        pub shared: u64,
        /// How it was made, first step first.
        pub steps: Vec<ImageStep>,
        /// What is held in vain, the largest first.
        pub waste: Vec<WastedFile>,
        /// How many more there are.
        pub waste_omitted: u64,
    }

    /// A step of an image's making.
    pub struct ImageStep {
        pub created_by: String,
        /// RFC 3339; empty if it is not known.
        pub created: String,
        #[serde(skip_serializing_if = "empty")]
        pub comment: String,
        /// None for a step that changed the configuration only.
        pub layer: Option<LayerExplanation>,
    }

    /// What a layer does.
    pub struct LayerExplanation {
        /// Digest of its archive.
        pub diff_id: String,
        /// Its name in the store.
        pub chain_id: String,
        /// Bytes of files.
        pub size: u64,
        /// Bytes of its uncompressed archive.
        pub archive_size: u64,
        pub added: FileAmount,
        /// What replaced files of layers below.
        pub changed: FileAmount,
        /// Those among them of which only owner, mode or attributes changed.
        pub attributes_only: FileAmount,
        /// What is hidden of layers below; the bytes are still there.
        pub deleted: FileAmount,
        /// Bytes of this layer that layers above replaced or deleted.
        pub wasted: u64,
        /// Names (or IDs) of the other images that have it.
        pub shared_by: Vec<String>,
        pub largest: Vec<SizedFile>,
    }

    /// A number of files.
    pub struct FileAmount {
        pub files: u64,
        pub bytes: u64,
    }

    /// A file.
    pub struct SizedFile {
        pub path: String,
        pub size: u64,
    }

    /// A path that layers hold in vain.
    pub struct WastedFile {
        pub path: String,
        /// Over all layers.
        pub size: u64,
        /// In how many layers.
        pub times: u64,
        /// Whether it is gone in the end; if not, it was replaced.
        pub deleted: bool,
    }

    /// What differs between two images.
    pub struct ImageDifference {
        pub from: ComparedImage,
        pub to: ComparedImage,
        /// Layers, counted from the bottom, that are the same.
        pub common_layers: u64,
        /// Bytes of them.
        pub common_size: u64,
        pub files: FileDifferences,
        pub config: Vec<ConfigDifference>,
    }

    /// One of two images.
    pub struct ComparedImage {
        pub name: String,
        pub id: String,
        /// Bytes of files in all layers.
        pub size: u64,
        pub layers: u64,
    }

    /// Sorted by path.
    pub struct FileDifferences {
        pub added: Vec<SizedFile>,
        pub deleted: Vec<SizedFile>,
        pub changed: Vec<ChangedFile>,
    }

    /// A path that is in both images.
    pub struct ChangedFile {
        pub path: String,
        /// Sizes before and after.
        pub from: u64,
        pub to: u64,
        /// What differs: `type`, `content`, `mode`, `owner`, `attributes`.
        pub what: Vec<String>,
    }

    /// A part of the configuration that differs.
    pub struct ConfigDifference {
        /// `Cmd`, `Env.PATH`, `Labels.version` ...
        pub field: String,
        /// JSON; null: not there.
        pub from: serde_json::Value,
        /// JSON; null: not there.
        pub to: serde_json::Value,
    }
}
