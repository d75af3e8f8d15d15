//! What the registry reads of a manifest: its type, what it refers to, and what a list of referrers shows of it.
//!
//! Image manifests and indexes of the OCI image specification and their Docker schema 2 equivalents. Everything else
//! in a manifest is the clients' business and is stored as it came.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vessel_image::Digest;
pub use vessel_image::media_type::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

use crate::error::{Code, Error, Result};
use crate::name::show;

/// The largest manifest that is accepted; the specification wants at least this.
pub const MAX_MANIFEST: usize = 4 << 20;
/// More descriptors than any image has; each is looked up when a manifest is pushed.
const MAX_DESCRIPTORS: usize = 10_000;

/// A manifest as far as the registry understands it.
#[derive(Debug)]
pub struct Manifest {
    /// Its media type.
    pub media_type: &'static str,
    /// What it is a manifest of, when it says so; for an image without, its configuration's media type.
    pub artifact_type: Option<String>,
    /// Blobs that it needs.
    pub blobs: Vec<Digest>,
    /// Blobs that may be elsewhere: foreign layers.
    pub foreign: Vec<Digest>,
    /// Manifests that it lists.
    pub manifests: Vec<Child>,
    /// The manifest it says something about.
    pub subject: Option<Digest>,
    /// Free-form annotations.
    pub annotations: Option<BTreeMap<String, String>>,
    /// The descriptors of configuration and layers, for display.
    pub config: Option<Descriptor>,
    /// Layers, bottom first, for display.
    pub layers: Vec<Descriptor>,
}

/// A manifest in an index.
#[derive(Debug, Clone)]
pub struct Child {
    /// Its digest.
    pub digest: Digest,
    /// `linux/amd64`, when the index says so.
    pub platform: Option<String>,
    /// Its size.
    pub size: u64,
}

/// Points to content by digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// A descriptor in the answer to a query for referrers.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    media_type: String,
    size: u64,
    digest: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

/// Only what decides about the type.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe<'a> {
    #[serde(borrow)]
    media_type: Option<std::borrow::Cow<'a, str>>,
    manifests: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Reads a manifest that is pushed with this `Content-Type`.
    pub fn parse(raw: &[u8], content_type: Option<&str>) -> Result<Self> {
        let wrong = |why: String| Error::new(Code::ManifestInvalid, why);
        if raw.len() > MAX_MANIFEST {
            return Err(too_large());
        }
        let document: Document = serde_json::from_slice(raw)
            .map_err(|error| wrong(format!("the manifest cannot be read: {error}")))?;
        if document.schema_version != Some(2) {
            return Err(wrong(
                "the manifest's schemaVersion is not 2; older manifests are not stored, push with a newer client".into(),
            ));
        }
        let index = match (&document.manifests, &document.layers, &document.config) {
            (Some(_), None, None) => true,
            (None, Some(_), Some(_)) => false,
            // Two readers could see two different images (CVE-2021-41190).
            (Some(_), _, _) => return Err(wrong("the manifest is both an image and an index".into())),
            (None, _, _) => {
                return Err(wrong(
                    "the manifest is neither an image (config, layers) nor an index (manifests)".into(),
                ));
            }
        };
        let media_type = media_type(document.media_type.as_deref(), index).map_err(wrong)?;
        let sent = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
        if let Some(sent) = sent
            && sent != media_type
        {
            return Err(wrong(format!(
                "the manifest is {media_type}, but it was sent as {}",
                show(sent)
            )));
        }
        let count =
            document.layers.as_ref().map_or(0, Vec::len) + document.manifests.as_ref().map_or(0, Vec::len);
        if count > MAX_DESCRIPTORS {
            return Err(wrong(format!(
                "the manifest lists {count} things; {MAX_DESCRIPTORS} are accepted"
            )));
        }
        let layers = document.layers.unwrap_or_default();
        let artifact_type = document
            .artifact_type
            .filter(|text| !text.is_empty())
            .or_else(|| document.config.as_ref().map(|config| config.media_type.clone()));
        let (foreign, own): (Vec<_>, Vec<_>) = layers.iter().partition(|layer| layer.is_foreign());
        let blobs = document
            .config
            .iter()
            .chain(own)
            .map(|layer| layer.digest.clone())
            .collect();
        let foreign = foreign.into_iter().map(|layer| layer.digest.clone()).collect();
        Ok(Self {
            media_type,
            artifact_type,
            blobs,
            foreign,
            manifests: document
                .manifests
                .unwrap_or_default()
                .into_iter()
                .map(Child::from)
                .collect(),
            subject: document.subject.map(|subject| subject.digest),
            annotations: document.annotations,
            config: document.config,
            layers,
        })
    }

    /// Whether it lists manifests.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type, OCI_INDEX | DOCKER_INDEX)
    }

    /// What a list of referrers says of it.
    pub fn referrer(self, digest: Digest, size: u64) -> Referrer {
        Referrer {
            media_type: self.media_type.to_owned(),
            size,
            digest,
            artifact_type: self.artifact_type,
            annotations: self.annotations,
        }
    }

    /// The media type of a manifest that was accepted before.
    pub fn media_type_of(raw: &[u8]) -> Result<&'static str> {
        let damaged =
            |why: String| Error::new(Code::Unknown, format!("a stored manifest cannot be read: {why}"));
        let probe: Probe<'_> = serde_json::from_slice(raw).map_err(|error| damaged(error.to_string()))?;
        media_type(probe.media_type.as_deref(), probe.manifests.is_some()).map_err(damaged)
    }
}

impl Descriptor {
    /// Layers whose licence forbids to distribute them, or that say where else they are.
    fn is_foreign(&self) -> bool {
        !self.urls.is_empty()
            || self.media_type == "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
            || self
                .media_type
                .starts_with("application/vnd.oci.image.layer.nondistributable.")
    }
}

impl From<Descriptor> for Child {
    fn from(descriptor: Descriptor) -> Self {
        let platform = descriptor.platform.map(|platform| {
            let variant = platform.variant.filter(|variant| !variant.is_empty());
            let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
            format!("{}/{}{variant}", platform.os, platform.architecture)
        });
        Self {
            digest: descriptor.digest,
            platform,
            size: descriptor.size,
        }
    }
}

/// What a manifest that says and has this is.
fn media_type(said: Option<&str>, index: bool) -> Result<&'static str, String> {
    let known = match said {
        None | Some("") => return Ok(if index { OCI_INDEX } else { OCI_MANIFEST }),
        Some(said) => [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX]
            .into_iter()
            .find(|known| *known == said)
            .ok_or_else(|| format!("the manifest's media type {} is not supported", show(said)))?,
    };
    if matches!(known, OCI_INDEX | DOCKER_INDEX) != index {
        return Err(format!(
            "the manifest says that it is {known}, but has not the members of one"
        ));
    }
    Ok(known)
}

/// A manifest beyond the limit.
pub fn too_large() -> Error {
    Error::new(
        Code::ManifestTooLarge,
        format!("the manifest is larger than {} MiB", MAX_MANIFEST >> 20),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str, more: &str) -> String {
        let digest = Digest::sha256(media_type.as_bytes());
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":3{more}}}"#)
    }

    #[test]
    fn images_and_indexes() {
        let (config, layer) = (descriptor("c/c", ""), descriptor("l/l", ""));
        let foreign = descriptor("f/f", r#","urls":["https://example.com"]"#);
        let raw = format!(
            r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{foreign}],"subject":{layer},"x":1}}"#
        );
        let manifest = Manifest::parse(
            raw.as_bytes(),
            Some("application/vnd.oci.image.manifest.v1+json; a=b"),
        )
        .unwrap();
        assert_eq!((manifest.blobs.len(), manifest.foreign.len()), (2, 1));
        assert_eq!(manifest.artifact_type.as_deref(), Some("c/c"));
        assert!(manifest.subject.is_some() && !manifest.is_index());
        assert_eq!(Manifest::media_type_of(raw.as_bytes()).unwrap(), OCI_MANIFEST);

        let child = descriptor(
            "m/m",
            r#","platform":{"os":"linux","architecture":"arm","variant":"v7"}"#,
        );
        let raw = format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_INDEX}","manifests":[{child}]}}"#);
        let index = Manifest::parse(raw.as_bytes(), Some(DOCKER_INDEX)).unwrap();
        assert_eq!(index.manifests[0].platform.as_deref(), Some("linux/arm/v7"));
        assert!(index.is_index() && index.artifact_type.is_none());
        assert_eq!(Manifest::media_type_of(raw.as_bytes()).unwrap(), DOCKER_INDEX);
        assert!(Manifest::parse(raw.as_bytes(), Some(OCI_INDEX)).is_err());
    }

    #[test]
    fn what_is_ambiguous_or_unknown_is_refused() {
        let config = descriptor("c/c", "");
        for raw in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":1,"manifests":[]}"#,
            r#"{"schemaVersion":2,"mediaType":"text/plain","manifests":[]}"#,
            &format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#),
            &format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#),
            r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:x","size":1}]}"#,
            r#"{"schemaVersion":2,"manifests":[],"subject":{"digest":"../x","size":1}}"#,
        ] {
            assert!(Manifest::parse(raw.as_bytes(), None).is_err(), "{raw}");
        }
        let deep = format!(
            r#"{{"schemaVersion":2,"manifests":[],"x":{}}}"#,
            "[".repeat(100_000)
        );
        assert!(Manifest::parse(deep.as_bytes(), None).is_err());
        assert_eq!(
            Manifest::parse(&vec![b' '; MAX_MANIFEST + 1], None)
                .unwrap_err()
                .code(),
            Code::ManifestTooLarge
        );
    }
}
