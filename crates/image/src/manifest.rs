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
    /// OCI layer, gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, Zstandard.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// The configuration of an artifact that has none: `{}`.
    pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
    /// Docker schema 2 manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker layer, uncompressed.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// Docker layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker layer that is fetched from elsewhere and not pushed.
    pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    /// Docker's first manifest with a schema, signed: not read any more.
    pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    /// The same without a signature.
    pub const DOCKER_SCHEMA1_UNSIGNED: &str = "application/vnd.docker.distribution.manifest.v1+json";

    /// Whether content of this type is the layer of an image: OCI's or Docker's, compressed in whatever way.
    pub fn is_layer(media_type: &str) -> bool {
        media_type.starts_with(OCI_LAYER)
            || media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
            || media_type.starts_with(DOCKER_LAYER)
            || media_type == DOCKER_FOREIGN_LAYER
    }

    /// Whether a layer of this type belongs to somebody who does not want it in registries.
    pub fn is_foreign(media_type: &str) -> bool {
        media_type.contains(".nondistributable.") || media_type == DOCKER_FOREIGN_LAYER
    }

    /// Whether it is a list of manifests.
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, OCI_INDEX | DOCKER_INDEX)
    }
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
    /// Where the content may be had besides the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
}

impl Descriptor {
    /// A descriptor with nothing but what each must have.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            annotations: None,
            artifact_type: None,
            urls: None,
        }
    }

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

    /// Reads `os[/architecture[/variant]]`, or an architecture of Linux alone; names are normalised as containerd
    /// does (`x86_64` is `amd64`, `arm64/v8` is `arm64`).
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid(format!(
                "invalid platform {}: linux, linux/amd64, linux/arm/v7 are some",
                crate::error::show(text.as_bytes())
            ))
        };
        let valid = |part: &str| {
            !part.is_empty()
                && part.len() <= 64
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 3 || !parts.iter().all(|part| valid(part)) {
            return Err(bad());
        }
        let host = Self::host();
        let (os, architecture, variant) = match parts.as_slice() {
            [one] if is_os(one) => (*one, host.architecture.as_str(), None),
            [one] => ("linux", *one, None),
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some(*variant)),
            _ => return Err(bad()),
        };
        let (architecture, variant) = normal(&architecture.to_ascii_lowercase(), variant);
        Ok(Self {
            architecture,
            os: os.to_ascii_lowercase(),
            os_version: None,
            variant,
        })
    }

    /// How well an image for `other` runs where `self` is asked for, lower is better; `None`: not at all. The rules are
    /// those of containerd: a processor also runs what was made for its older variants, and amd64 what was made for 386.
    pub fn rank(&self, other: &Platform) -> Option<usize> {
        if !self.os.eq_ignore_ascii_case(&other.os) {
            return None;
        }
        let wanted = normal(&self.architecture.to_ascii_lowercase(), self.variant.as_deref());
        let offered = normal(&other.architecture.to_ascii_lowercase(), other.variant.as_deref());
        if wanted == offered {
            return Some(0);
        }
        let number = |variant: &Option<String>, least: usize| match variant {
            None => Some(least),
            Some(text) => text.strip_prefix('v')?.parse::<usize>().ok(),
        };
        match (wanted.0.as_str(), offered.0.as_str()) {
            ("amd64", "amd64") => {
                let (wanted, offered) = (number(&wanted.1, 1)?, number(&offered.1, 1)?);
                wanted.checked_sub(offered)
            }
            ("amd64", "386") => Some(100),
            ("arm", "arm") => {
                let (wanted, offered) = (number(&wanted.1, 7)?, number(&offered.1, 7)?);
                (offered >= 5).then(|| wanted.checked_sub(offered)).flatten()
            }
            ("arm64", "arm") => {
                let offered = number(&offered.1, 7)?;
                (5..=8).contains(&offered).then(|| 108 - offered)
            }
            ("arm64", "arm64") => {
                let (wanted, offered) = (number(&wanted.1, 8)?, number(&offered.1, 8)?);
                wanted.checked_sub(offered)
            }
            _ => None,
        }
    }

    /// Whether an image for `other` is what is asked for by `self`; a missing variant fits any.
    pub fn accepts(&self, other: &Platform) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || other.variant.is_none() || self.variant == other.variant)
    }
}

fn is_os(name: &str) -> bool {
    [
        "linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "illumos",
    ]
    .iter()
    .any(|os| os.eq_ignore_ascii_case(name))
}

/// An architecture and variant as containerd normalises them.
fn normal(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant
        .map(str::to_ascii_lowercase)
        .filter(|variant| !variant.is_empty());
    let (architecture, variant) = match (architecture, variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64" | "amd64", _) => ("amd64", variant),
        ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386", None),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
        ("aarch64" | "arm64", _) => ("arm64", variant),
        ("armhf", _) => ("arm", Some("v7".to_owned())),
        ("armel", _) => ("arm", Some("v6".to_owned())),
        ("arm", None | Some("7")) => ("arm", Some("v7".to_owned())),
        ("arm", Some(number @ ("5" | "6" | "8"))) => ("arm", Some(format!("v{number}"))),
        (other, _) => (other, variant),
    };
    (architecture.to_owned(), variant)
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
    /// What sort of artifact it is, when it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifest this one says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
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
    /// What sort of artifact it is, when it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifest this one says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Index {
    /// Decodes an index.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        parse(raw, "image index")
    }

    /// The image that runs best on a platform. Entries without a platform are taken when nothing else fits; those that
    /// are no images (attestations) never.
    pub fn select(&self, platform: &Platform) -> Option<&Descriptor> {
        const UNSAID: usize = usize::MAX;
        let rank = |entry: &Descriptor| match &entry.platform {
            Some(offered) => platform.rank(offered),
            None => Some(UNSAID),
        };
        self.manifests
            .iter()
            .filter(|entry| entry.annotation("vnd.docker.reference.type").is_none())
            .filter_map(|entry| Some((rank(entry)?, entry)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, entry)| entry)
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

    #[test]
    fn platforms_are_chosen_as_containerd_does() {
        let rank = |wanted: &str, offered: &str| {
            Platform::parse(wanted)
                .unwrap()
                .rank(&Platform::parse(offered).unwrap())
        };
        assert_eq!(rank("linux/amd64", "linux/x86_64"), Some(0));
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(rank("linux/amd64/v3", "linux/amd64"), Some(2));
        assert_eq!(rank("linux/amd64", "linux/amd64/v2"), None);
        assert_eq!(rank("linux/amd64", "linux/arm64"), None);
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
        assert!(rank("linux/amd64", "linux/386").is_some());
        assert!(rank("linux/arm/v7", "linux/arm/v6") < rank("linux/arm/v7", "linux/arm/v5"));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert!(rank("linux/arm64", "linux/arm/v7").is_some());
        let entry = |platform: Option<&str>, text: &str| Descriptor {
            platform: platform.map(|text| Platform::parse(text).unwrap()),
            ..Descriptor::new("", Digest::sha256(text.as_bytes()), 1)
        };
        let index = Index {
            schema_version: 2,
            media_type: None,
            manifests: vec![
                entry(None, "0"),
                entry(Some("linux/386"), "1"),
                entry(Some("linux/amd64"), "2"),
                entry(Some("linux/arm/v6"), "3"),
                entry(Some("linux/arm/v7"), "4"),
            ],
            artifact_type: None,
            subject: None,
            annotations: None,
        };
        let chosen = |wanted: &str| {
            let found = index.select(&Platform::parse(wanted).unwrap()).unwrap();
            index.manifests.iter().position(|entry| entry == found).unwrap()
        };
        assert_eq!(
            (
                chosen("linux/amd64"),
                chosen("linux/arm/v7"),
                chosen("linux/arm/v6")
            ),
            (2, 4, 3)
        );
        assert_eq!((chosen("linux/arm64"), chosen("linux/riscv64")), (4, 0));
        for bad in ["", "/", "linux/", "linux/amd64/v1/x", "linux/a b", "lin\nux"] {
            assert!(Platform::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Platform::parse("arm64").unwrap().to_string(), "linux/arm64");
    }
}
