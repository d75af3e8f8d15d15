//! Manifests, indexes and descriptors of the OCI image specification, and Docker's schema 2 equivalents,
//! which have the same shape under other media types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{ImageConfig, MAX_DOCUMENT, MAX_LAYERS};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Media types that are recognized or written.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, uncompressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Docker schema 2 manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
}

/// Annotation with the tag of an image in an OCI layout.
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the full reference, as containerd and Docker write it.
pub const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";

/// Points to content by digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The platform of a manifest in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The type of the artifact, for what is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// An annotation's value.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

/// A platform, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`, …
    pub os: String,
    /// Version of the operating system.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            architecture: architecture.into(),
            os: "linux".into(),
            os_version: None,
            variant: None,
        }
    }

    /// What an image's configuration says it is for.
    pub fn of(config: &ImageConfig) -> Self {
        Self {
            architecture: config.architecture.clone(),
            os: config.os.clone(),
            os_version: config.os_version.clone(),
            variant: config.variant.clone(),
        }
    }

    /// Whether an image for `other` is what is asked for by `self`; a missing variant fits any.
    pub fn accepts(&self, other: &Platform) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || other.variant.is_none() || self.variant == other.variant)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// The manifest of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// OCI or Docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// Decodes a manifest.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let manifest: Self = parse(raw, "image manifest")?;
        if manifest.schema_version != 2 {
            return Err(Error::invalid(format!(
                "the image manifest has schema version {}; only version 2 is supported",
                manifest.schema_version
            )));
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(Error::limit(format!(
                "the image manifest has {} layers; at most {MAX_LAYERS} can be mounted",
                manifest.layers.len()
            )));
        }
        Ok(manifest)
    }
}

/// A list of manifests: `index.json`, or one image for several platforms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// OCI or Docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Index {
    /// Decodes an index.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        parse(raw, "image index")
    }
}

/// A document that is either a manifest or an index.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one at a time, taken apart at once")]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

impl Document {
    /// Decodes by what is inside: descriptors' media types are often missing or wrong.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Probe {
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = parse(raw, "manifest")?;
        match (probe.manifests.is_some(), probe.layers.is_some()) {
            (true, false) => Index::parse(raw).map(Self::Index),
            (false, true) => Manifest::parse(raw).map(Self::Manifest),
            (true, true) => {
                // Two readers could see two different images (CVE-2021-41190).
                Err(Error::invalid(
                    "the document is both an image manifest and an index",
                ))
            }
            (false, false) => Err(Error::invalid(
                "the document is neither an image manifest nor an index",
            )),
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(raw: &'a [u8], what: &str) -> Result<T> {
    if raw.len() > MAX_DOCUMENT {
        return Err(Error::limit(format!("the {what} is larger than 4 MiB")));
    }
    serde_json::from_slice(raw).map_err(|e| Error::json(format!("the {what} is not valid"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_documents_are_refused() {
        let digest = Digest::sha256(b"");
        let config = format!(r#"{{"mediaType":"x","digest":"{digest}","size":0}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
        assert!(matches!(
            Document::parse(manifest.as_bytes()),
            Ok(Document::Manifest(_))
        ));
        let both = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#);
        assert!(Document::parse(both.as_bytes()).is_err());
        assert!(Document::parse(b"{}").is_err());
        assert!(Document::parse(b"[1").is_err());
    }

    #[test]
    fn platforms() {
        let host = Platform {
            architecture: "arm64".into(),
            os: "linux".into(),
            os_version: None,
            variant: None,
        };
        let v8 = Platform {
            variant: Some("v8".into()),
            ..host.clone()
        };
        assert!(host.accepts(&v8) && v8.accepts(&host));
        assert!(!host.accepts(&Platform {
            architecture: "amd64".into(),
            ..host.clone()
        }));
        assert_eq!(v8.to_string(), "linux/arm64/v8");
    }
}
