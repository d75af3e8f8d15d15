//! What an exported cache says: which step gives which layer, and where that layer and the cache mounts are.
//!
//! It is the configuration of an OCI image manifest whose layers are the blobs ([`MEDIA_TYPE`]), or a member of the
//! configuration of an image ([`INLINE`]): then the image's own layers come first, and its list goes on with layers that
//! are kept nowhere. Why it is a form of our own and not
//! BuildKit's: docs/adr/0008.
//!
//! It is read from anywhere, so it is bounded and checked as a whole before anything of it is used. All it can make a
//! build believe is that a step of some key gives a layer of some diff ID: the key has the layers below in it, the layer
//! is unpacked within the bounds of layers and its digest is compared, and it is put where the build is, not where the
//! document says.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use vessel_image::{Descriptor, DiffId, Digest, MAX_DOCUMENT, Manifest};

use super::Key;
use crate::error::{Error, Result};

/// The media type of the document.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.vessel.buildcache.v1+json";
/// The member of an image's configuration that holds it.
pub(crate) const INLINE: &str = "vessel.buildcache.v1";
const VERSION: u32 = 1;
/// Layers and records at most.
const MAX_LAYERS: usize = 10_000;
const MAX_RECORDS: usize = 50_000;
/// Directories of cache mounts at most.
const MAX_MOUNTS: usize = 1_000;
/// Bytes of a text.
const MAX_TEXT: usize = 4096;
/// Hexadecimal digits of a key.
const KEY: usize = 64;

/// A cache.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document {
    version: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
    #[serde(default)]
    pub records: Vec<Record>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub diff: DiffId,
    /// Its blob; none: it is known what the step gives, but not kept here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
}

/// What a step gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub key: Key,
    /// The place of its layer in the list of layers.
    pub layer: usize,
    /// When it was made, nanoseconds since the epoch: it is in the history of images.
    pub created: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// The contents of a cache mount.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub id: String,
    pub blob: Digest,
}

impl Document {
    /// Reads a document that an image or a manifest has.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(Error::invalid("the cache is larger than a cache can be"));
        }
        let read: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid(format!("the cache cannot be read: {error}")))?;
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<()> {
        if self.version != VERSION {
            return Err(Error::invalid(format!(
                "the cache is of version {}, which this builder does not know",
                self.version
            )));
        }
        if self.layers.len() > MAX_LAYERS
            || self.records.len() > MAX_RECORDS
            || self.mounts.len() > MAX_MOUNTS
        {
            return Err(Error::invalid("the cache has more entries than a cache can have"));
        }
        let is_key = |key: &str| {
            key.len() == KEY
                && key
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let bad =
            self.records.iter().any(|record| {
                !is_key(&record.key) || record.description.len() > MAX_TEXT || record.created < 0
            }) || self.mounts.iter().any(|mount| mount.id.len() > MAX_TEXT);
        if bad {
            return Err(Error::invalid("the cache has a record that is none"));
        }
        Ok(())
    }

    /// Writes it.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::invalid(format!("cannot encode a cache: {error}")))
    }
}

/// A document that is being made.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    document: Document,
    /// Layers that come before those of the document: the image's it is in.
    before: usize,
    keys: HashSet<Key>,
    places: HashMap<DiffId, usize>,
}

impl Draft {
    pub fn new() -> Self {
        let document = Document {
            version: VERSION,
            ..Document::default()
        };
        Self {
            document,
            ..Self::default()
        }
    }

    /// One for the configuration of an image of so many layers, which have the first places.
    pub fn of_image(layers: usize) -> Self {
        Self {
            before: layers,
            ..Self::new()
        }
    }

    /// Writes it into at most so many bytes. What does not fit is left out: descriptions first, then the records of the
    /// last steps, and layers without any. None: not even that helps.
    pub fn encode(mut self, most: usize) -> Result<Option<Vec<u8>>> {
        let mut raw = self.document.encode()?;
        if raw.len() > most {
            for record in &mut self.document.records {
                record.description.clear();
            }
            raw = self.document.encode()?;
        }
        while raw.len() > most {
            let count = self.document.records.len();
            if count == 0 {
                return Ok(None);
            }
            self.document.records.truncate(count / 2);
            let last = self.document.records.iter().map(|record| record.layer + 1).max();
            let layers = last.unwrap_or(0).saturating_sub(self.before);
            self.document.layers.truncate(layers);
            raw = self.document.encode()?;
        }
        Ok(Some(raw))
    }

    /// Adds a record of a layer.
    pub fn record(&mut self, key: &str, layer: usize, created: i64, description: &str) {
        if self.document.records.len() >= MAX_RECORDS || !self.keys.insert(key.to_owned()) {
            return;
        }
        let mut end = description.len().min(MAX_TEXT);
        while !description.is_char_boundary(end) {
            end -= 1;
        }
        self.document.records.push(Record {
            key: key.to_owned(),
            layer,
            created: created.max(0),
            description: description.get(..end).unwrap_or_default().to_owned(),
        });
    }

    /// The place of a layer, which is added if it is not there. None: there is no more room.
    pub fn layer(&mut self, diff: &DiffId) -> Option<usize> {
        if let Some(&at) = self.places.get(diff) {
            return Some(at);
        }
        let at = self.before + self.document.layers.len();
        if at >= MAX_LAYERS {
            return None;
        }
        self.document.layers.push(Layer {
            diff: diff.clone(),
            blob: None,
        });
        self.places.insert(diff.clone(), at);
        Some(at)
    }

    /// Whether the blob of a layer is known.
    pub fn has_blob(&self, layer: usize) -> bool {
        let at = layer.checked_sub(self.before);
        let layer = at.and_then(|at| self.document.layers.get(at));
        layer.is_some_and(|layer| layer.blob.is_some())
    }

    /// Says which blob a layer is.
    pub fn blob(&mut self, layer: usize, blob: Digest) {
        let at = layer.checked_sub(self.before);
        if let Some(layer) = at.and_then(|at| self.document.layers.get_mut(at)) {
            layer.blob = Some(blob);
        }
    }

    /// Adds a mount.
    pub fn mount(&mut self, id: &str, blob: Digest) {
        if self.document.mounts.len() < MAX_MOUNTS && id.len() <= MAX_TEXT {
            self.document.mounts.push(Mount {
                id: id.to_owned(),
                blob,
            });
        }
    }
}

/// A document with where its blobs are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    records: HashMap<Key, Found>,
    mounts: HashMap<String, Descriptor>,
    blobs: HashMap<DiffId, Descriptor>,
}

/// What a step gives, as a cache says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub diff: DiffId,
    pub created: i64,
    pub description: String,
}

impl Contents {
    /// A document that is the configuration of a manifest.
    pub fn of_manifest(manifest: &Manifest, document: &[u8]) -> Result<Self> {
        Ok(Self::of(Document::parse(document)?, &manifest.layers))
    }

    /// The document inside the configuration of an image. `manifest`: where the layers are; none for an image whose layers
    /// are here. Without a document, nothing. There are no cache mounts in it: an image has layers only.
    pub fn of_image(config: &[u8], manifest: Option<&Manifest>) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(rename = "vessel.buildcache.v1")]
            cache: Option<Document>,
            #[serde(default)]
            rootfs: vessel_image::RootFs,
        }
        if config.len() > MAX_DOCUMENT {
            return Err(Error::invalid("the image's configuration is too large"));
        }
        let read: Config = serde_json::from_slice(config)
            .map_err(|error| Error::invalid(format!("the image's configuration cannot be read: {error}")))?;
        let Some(mut document) = read.cache else {
            return Ok(None);
        };
        let blobs = manifest
            .map(|manifest| manifest.layers.as_slice())
            .unwrap_or_default();
        let diffs = read.rootfs.diff_ids;
        if manifest.is_some() && blobs.len() != diffs.len() {
            return Err(Error::invalid(
                "the image's manifest and configuration list different layers",
            ));
        }
        let others = std::mem::take(&mut document.layers);
        document.layers = diffs
            .into_iter()
            .enumerate()
            .map(|(at, diff)| Layer {
                diff,
                blob: blobs.get(at).map(|blob| blob.digest.clone()),
            })
            .chain(others.into_iter().map(|other| Layer { blob: None, ..other }))
            .collect();
        document.check()?;
        document.mounts.clear();
        Ok(Some(Self::of(document, blobs)))
    }

    fn of(document: Document, blobs: &[Descriptor]) -> Self {
        let by_digest: HashMap<&Digest, &Descriptor> =
            blobs.iter().map(|blob| (&blob.digest, blob)).collect();
        let mut contents = Self::default();
        for record in document.records {
            let Some(layer) = document.layers.get(record.layer) else {
                continue;
            };
            let blob = layer.blob.as_ref().and_then(|digest| by_digest.get(digest));
            if let Some(blob) = blob {
                contents
                    .blobs
                    .entry(layer.diff.clone())
                    .or_insert_with(|| bare(blob));
            }
            contents.records.entry(record.key).or_insert(Found {
                diff: layer.diff.clone(),
                created: record.created,
                description: record.description,
            });
        }
        for mount in document.mounts {
            if let Some(blob) = by_digest.get(&mount.blob) {
                contents.mounts.entry(mount.id).or_insert_with(|| bare(blob));
            }
        }
        contents
    }

    /// What a step of a key gives.
    pub fn find(&self, key: &str) -> Option<&Found> {
        self.records.get(key)
    }

    /// The blob of a layer.
    pub fn blob(&self, diff: &DiffId) -> Option<&Descriptor> {
        self.blobs.get(diff)
    }

    /// The blob of a cache mount's contents.
    pub fn mount(&self, id: &str) -> Option<&Descriptor> {
        self.mounts.get(id)
    }

    /// The keys of the step that a key is one of: a step may be known by several.
    pub fn keys_like<'a>(&'a self, key: &str, diff: &DiffId) -> impl Iterator<Item = &'a Key> {
        let step = self.records.get(key).filter(|step| step.diff == *diff);
        let records = self.records.iter().filter(move |_| step.is_some());
        records
            .filter(move |(_, found)| step == Some(found))
            .map(|(key, _)| key)
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }
}

/// What of a descriptor is needed to read a blob: no addresses, annotations or content of others go further.
fn bare(blob: &Descriptor) -> Descriptor {
    Descriptor::new(blob.media_type.clone(), blob.digest.clone(), blob.size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vessel_image::media_type;

    fn diff(text: &str) -> DiffId {
        DiffId(Digest::sha256(text.as_bytes()))
    }

    fn key(text: &str) -> String {
        Digest::sha256(text.as_bytes()).hex().to_owned()
    }

    fn manifest(blobs: &[&str]) -> Manifest {
        let blob =
            |text: &&str| Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::sha256(text.as_bytes()), 1);
        Manifest {
            schema_version: 2,
            media_type: None,
            config: Descriptor::new(MEDIA_TYPE, Digest::sha256(b""), 0),
            layers: blobs.iter().map(blob).collect(),
            artifact_type: None,
            subject: None,
            annotations: None,
        }
    }

    #[test]
    fn is_read_as_it_was_written() {
        let mut draft = Draft::new();
        let one = draft.layer(&diff("one")).unwrap();
        let two = draft.layer(&diff("two")).unwrap();
        assert_eq!(draft.layer(&diff("one")), Some(one));
        draft.blob(one, Digest::sha256(b"blob"));
        draft.record(&key("a"), one, 5, "RUN a");
        draft.record(&key("b"), two, 6, &"ü".repeat(MAX_TEXT));
        draft.mount("id", Digest::sha256(b"mount"));
        let document = draft.document.clone();
        let raw = draft.encode(MAX_DOCUMENT).unwrap().unwrap();
        assert_eq!(Document::parse(&raw).unwrap(), document);
        let contents = Contents::of_manifest(&manifest(&["blob", "mount"]), &raw).unwrap();
        assert_eq!(contents.find(&key("a")).unwrap().diff, diff("one"));
        assert!(contents.blob(&diff("one")).is_some());
        assert!(contents.find(&key("b")).is_some() && contents.blob(&diff("two")).is_none());
        assert!(contents.mount("id").is_some() && contents.mount("other").is_none());
        // Blobs that the manifest does not have are not there.
        let contents = Contents::of_manifest(&manifest(&[]), &raw).unwrap();
        assert!(contents.blob(&diff("one")).is_none() && contents.mount("id").is_none());
    }

    #[test]
    fn an_image_speaks_of_its_own_layers() {
        let mut draft = Draft::new();
        draft.record(&key("a"), 1, 5, "");
        draft.record(&key("b"), 9, 5, "");
        draft.mount("id", Digest::sha256(b"x"));
        let config = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":["{}","{}"]}},"{INLINE}":{}}}"#,
            diff("one"),
            diff("two"),
            String::from_utf8(draft.encode(MAX_DOCUMENT).unwrap().unwrap()).unwrap()
        );
        let found = Contents::of_image(config.as_bytes(), Some(&manifest(&["x", "y"])))
            .unwrap()
            .unwrap();
        assert_eq!(found.find(&key("a")).unwrap().diff, diff("two"));
        assert_eq!(found.blob(&diff("two")).unwrap().digest, Digest::sha256(b"y"));
        assert!(found.find(&key("b")).is_none());
        assert!(found.mount("id").is_none());
        assert!(Contents::of_image(config.as_bytes(), Some(&manifest(&["x"]))).is_err());
        assert!(Contents::of_image(b"{}", None).unwrap().is_none());
    }

    #[test]
    fn an_image_tells_what_other_steps_give() {
        let mut draft = Draft::of_image(1);
        draft.record(&key("own"), 0, 5, "");
        let other = draft.layer(&diff("other")).unwrap();
        draft.record(&key("other"), other, 5, "");
        draft.blob(other, Digest::sha256(b"x"));
        let config = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":["{}"]}},"{INLINE}":{}}}"#,
            diff("one"),
            String::from_utf8(draft.encode(MAX_DOCUMENT).unwrap().unwrap()).unwrap()
        );
        let found = Contents::of_image(config.as_bytes(), Some(&manifest(&["x"])))
            .unwrap()
            .unwrap();
        assert_eq!(found.find(&key("own")).unwrap().diff, diff("one"));
        assert_eq!(found.find(&key("other")).unwrap().diff, diff("other"));
        // Only the image's own layers are anywhere.
        assert!(found.blob(&diff("one")).is_some() && found.blob(&diff("other")).is_none());
        // Where there is no room, the other steps go first, with their layers.
        let mut draft = Draft::of_image(1);
        draft.record(&key("own"), 0, 5, "");
        for number in 0..100 {
            let other = draft.layer(&diff(&number.to_string())).unwrap();
            draft.record(&key(&number.to_string()), other, 5, "");
        }
        let raw = draft.encode(500).unwrap().unwrap();
        let left = Document::parse(&raw).unwrap();
        assert_eq!(left.records[0].key, key("own"));
        assert!(left.layers.len() < left.records.len());
    }

    #[test]
    fn what_is_too_much_is_left_out() {
        let mut draft = Draft::new();
        let layer = draft.layer(&diff("x")).unwrap();
        for number in 0..60_000 {
            draft.record(&key(&number.to_string()), layer, 5, &"\u{1}".repeat(200));
            draft.record(&key("twice"), layer, 5, "");
        }
        let raw = draft.encode(MAX_DOCUMENT).unwrap().unwrap();
        assert!(raw.len() <= MAX_DOCUMENT);
        let contents = Contents::of_manifest(&manifest(&[]), &raw).unwrap();
        assert!(contents.find(&key("0")).is_some() && contents.len() > 10_000);
        assert_eq!(Draft::new().encode(5).unwrap(), None);
    }

    #[test]
    fn steps_of_the_same_layer_are_others() {
        let mut draft = Draft::new();
        let layer = draft.layer(&diff("empty")).unwrap();
        draft.record(&key("content"), layer, 5, "COPY a a");
        draft.record(&key("quick"), layer, 5, "COPY a a");
        draft.record(&key("verify"), layer, 6, "RUN ./verify");
        let raw = draft.encode(MAX_DOCUMENT).unwrap().unwrap();
        let contents = Contents::of_manifest(&manifest(&[]), &raw).unwrap();
        let like = |name: &str, layer: &str| {
            let (key, layer) = (key(name), diff(layer));
            contents.keys_like(&key, &layer).cloned().collect::<HashSet<_>>()
        };
        assert_eq!(
            like("quick", "empty"),
            HashSet::from([key("content"), key("quick")])
        );
        assert_eq!(like("verify", "empty"), HashSet::from([key("verify")]));
        assert!(like("quick", "other").is_empty() && like("none", "empty").is_empty());
    }

    #[test]
    fn what_is_none_is_refused() {
        let key = key("a");
        let diff = diff("x");
        for wrong in [
            r#"{"version":2,"records":[]}"#.to_owned(),
            r#"{"version":1,"records":[{"key":"../x","layer":0,"created":1}]}"#.to_owned(),
            format!(r#"{{"version":1,"records":[{{"key":"{key}","layer":-1,"created":1}}]}}"#),
            format!(r#"{{"version":1,"records":[{{"key":"{key}","layer":0,"created":-1}}]}}"#),
            format!(r#"{{"version":1,"layers":[{{"diff":"{diff}","blob":"x"}}],"records":[]}}"#),
            "[]".to_owned(),
        ] {
            assert!(Document::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Document::parse(&bytes);
            let _ = Contents::of_image(&bytes, None);
        }
    }
}
