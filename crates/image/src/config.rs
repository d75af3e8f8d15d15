//! The image configuration: the OCI image specification's, with the fields Docker adds.
//!
//! Decoding is lenient about `null` (Docker writes it for every empty list) and about members nobody knows.
//! It loses the latter: an image's ID is the digest of the bytes it came with, so whoever stores or sends a
//! configuration keeps those bytes and never encodes it again. Encoding is for images made here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{ChainId, DiffId, Digest};
use crate::error::{Error, Result};

/// The largest configuration, manifest or index that is read, as Docker's own limit for manifests.
pub const MAX_DOCUMENT: usize = 4 << 20;
/// The most layers an image may have: what one overlay mount can hold.
pub const MAX_LAYERS: usize = 500;

fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// An image's configuration document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// CPU architecture, in Go's names (`amd64`).
    #[serde(deserialize_with = "null_default")]
    pub architecture: String,
    /// Variant of the architecture (`v8`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Operating system (`linux`).
    #[serde(deserialize_with = "null_default")]
    pub os: String,
    /// Version of the operating system; Windows images have it.
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system that the image needs.
    #[serde(
        rename = "os.features",
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// When it was made, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What a comment on the commit or import said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Version of Docker that built it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_version: Option<String>,
    /// The defaults for containers.
    #[serde(deserialize_with = "null_default")]
    pub config: ContainerConfig,
    /// The layers.
    #[serde(deserialize_with = "null_default")]
    pub rootfs: RootFs,
    /// How each layer came about, bottom first.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// What a container of the image runs with unless told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[allow(
    missing_docs,
    reason = "the names are Docker's own and documented in its Engine API"
)]
pub struct ContainerConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach_stdin: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach_stdout: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach_stderr: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Empty>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_stdin: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin_once: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_escaped: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, Empty>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_disabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_build: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

/// The empty object that Go's `map[string]struct{}` becomes in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// How to tell whether a container is healthy. Durations are in nanoseconds, zero means inherited.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", args…]` or `["CMD-SHELL", command]`; empty inherits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Vec<String>>,
    /// Time between two checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<i64>,
    /// Time after which a check has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// Time in which failures do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period: Option<i64>,
    /// Time between two checks during the start period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<i64>,
    /// Failures in a row that make it unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The layers, bottom first.
    #[serde(deserialize_with = "null_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self {
            kind: "layers".into(),
            diff_ids: Vec::new(),
        }
    }
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Remarks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_layer: Option<bool>,
}

impl ImageConfig {
    /// Decodes a configuration and checks what the rest relies on.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        if raw.len() > MAX_DOCUMENT {
            return Err(Error::limit("the image configuration is larger than 4 MiB"));
        }
        let config: Self = serde_json::from_slice(raw)
            .map_err(|e| Error::json("the image configuration is not valid", e))?;
        if config.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(Error::limit(format!(
                "the image has {} layers; at most {MAX_LAYERS} can be mounted",
                config.rootfs.diff_ids.len()
            )));
        }
        Ok(config)
    }

    /// Encodes a configuration made here; the digest of the bytes is the image's ID.
    pub fn to_raw(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::json("cannot encode the image configuration", e))
    }

    /// The chain IDs of the layers, bottom first.
    pub fn chain(&self) -> Vec<ChainId> {
        ChainId::chain(&self.rootfs.diff_ids)
    }

    /// The image ID of a configuration's bytes.
    pub fn id(raw: &[u8]) -> Digest {
        Digest::sha256(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_writes() {
        let raw = br#"{"architecture":"amd64","config":{"Hostname":"","Cmd":["sh"],"Volumes":null,"OnBuild":null,
            "Labels":{"a":"b"},"ExposedPorts":{"80/tcp":{}},"Healthcheck":{"Test":["CMD","true"],"Interval":5},
            "Shell":["/bin/sh"],"ArgsEscaped":true,"Unheard":1},"container":"x","history":null,"os":"linux",
            "os.version":"10","rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ImageConfig::parse(raw).unwrap();
        assert_eq!(config.config.cmd.as_deref(), Some(&["sh".to_owned()][..]));
        assert_eq!(config.config.volumes, None);
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval, Some(5));
        assert_eq!(config.os_version.as_deref(), Some("10"));
        assert!(config.rootfs.diff_ids.is_empty());
        let again = ImageConfig::parse(&config.to_raw().unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn refuses_bad_diff_ids_and_too_many_layers() {
        assert!(ImageConfig::parse(br#"{"rootfs":{"type":"layers","diff_ids":["sha256:../x"]}}"#).is_err());
        let id = Digest::sha256(b"").to_string();
        let many = vec![id; MAX_LAYERS + 1];
        let raw = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": many}}).to_string();
        assert_eq!(
            ImageConfig::parse(raw.as_bytes()).unwrap_err().kind(),
            crate::ErrorKind::Limit
        );
    }
}
