//! Manifests, the tags that point to them, and the manifests that refer to others.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use vessel_image::{Algorithm, Digest, Hasher};

use super::blob::{read_small, renew};
use super::{Storage, TEMPORARY, flush, in_directory, list, remove};
use crate::error::{Code, Error, Result};
use crate::manifest::{MAX_MANIFEST, Manifest, Referrer};
use crate::name::{ManifestName, Repository, Tag};

/// A manifest as it was pushed.
#[derive(Debug)]
pub struct StoredManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub raw: Vec<u8>,
}

/// What became of a manifest.
#[derive(Debug)]
pub struct Put {
    /// Its digest.
    pub digest: Digest,
    /// The manifest it says something about.
    pub subject: Option<Digest>,
}

fn unknown(name: &Repository, manifest: &ManifestName) -> Error {
    Error::new(
        Code::ManifestUnknown,
        format!("{name} has no manifest {manifest}"),
    )
}

/// The target of the symbolic links that tags are.
fn target(up: &str, digest: &Digest) -> String {
    format!("{up}manifests/{digest}")
}

impl Storage {
    fn tag_path(&self, name: &Repository, tag: &Tag) -> PathBuf {
        self.repository_path(name).join("tags").join(tag.as_str())
    }

    fn referrers_path(&self, name: &Repository, subject: &Digest) -> PathBuf {
        self.repository_path(name)
            .join("referrers")
            .join(subject.to_string())
    }

    /// What a tag points to.
    pub fn resolve(&self, name: &Repository, tag: &Tag) -> Result<Digest> {
        let path = self.tag_path(name, tag);
        let missing = || unknown(name, &ManifestName::Tag(tag.clone()));
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(e) => return Err(Error::io(format!("cannot read {}", path.display()), e)),
        };
        let digest = target
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.parse().ok());
        digest.ok_or_else(missing)
    }

    /// Reads a manifest.
    pub fn manifest(&self, name: &Repository, which: &ManifestName) -> Result<StoredManifest> {
        let digest = match which {
            ManifestName::Digest(digest) => digest.clone(),
            ManifestName::Tag(tag) => self.resolve(name, tag)?,
        };
        let path = self.manifest_link(name, &digest);
        match read_small(&path, MAX_MANIFEST) {
            Ok(raw) => Ok(StoredManifest { digest, raw }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(unknown(name, which)),
            Err(e) => Err(Error::io(format!("cannot read {}", path.display()), e)),
        }
    }

    /// Whether a repository has a manifest.
    pub fn has_manifest(&self, name: &Repository, digest: &Digest) -> bool {
        self.manifest_link(name, digest).exists()
    }

    /// Stores a manifest and lets tags point to it. What it refers to must be in the repository, unless `sparse`.
    pub fn put_manifest(
        &self,
        name: &Repository,
        which: &ManifestName,
        tags: &[Tag],
        content_type: Option<&str>,
        raw: &[u8],
        sparse: bool,
    ) -> Result<Put> {
        let manifest = Manifest::parse(raw, content_type)?;
        let algorithm = match which {
            ManifestName::Digest(digest) => digest.algorithm(),
            ManifestName::Tag(_) => Algorithm::Sha256,
        };
        let mut hasher = Hasher::new(algorithm);
        hasher.update(raw);
        let digest = hasher.finish();
        if let ManifestName::Digest(expected) = which
            && *expected != digest
        {
            return Err(Error::new(
                Code::DigestInvalid,
                format!("the manifest has the digest {digest}, not {expected}"),
            ));
        }
        let mut lease = self.lease_of(&digest);
        let children = manifest.manifests.iter().map(|child| &child.digest);
        for digest in manifest
            .blobs
            .iter()
            .chain(&manifest.foreign)
            .chain(children.clone())
        {
            lease.add(digest);
        }
        if !sparse {
            let missing = |digest: &Digest| {
                Error::new(
                    Code::ManifestBlobUnknown,
                    format!("the manifest refers to {digest}, which {name} does not have; push it first"),
                )
            };
            if let Some(digest) = manifest.blobs.iter().find(|digest| !self.has_blob(name, digest)) {
                return Err(missing(digest));
            }
            if let Some(digest) = children.clone().find(|digest| !self.has_manifest(name, digest)) {
                return Err(missing(digest));
            }
        }
        self.store_manifest(name, &digest, raw, &lease)?;
        let subject = manifest.subject;
        if let Some(subject) = &subject {
            let directory = self.referrers_path(name, subject);
            self.point(&directory, &digest.to_string(), &target("../../", &digest))?;
        }
        let own = match which {
            ManifestName::Tag(tag) => Some(tag),
            ManifestName::Digest(_) => None,
        };
        let directory = self.repository_path(name).join("tags");
        for tag in own.into_iter().chain(tags) {
            self.point(&directory, tag.as_str(), &target("../", &digest))?;
        }
        Ok(Put { digest, subject })
    }

    fn store_manifest(
        &self,
        name: &Repository,
        digest: &Digest,
        raw: &[u8],
        lease: &super::Lease,
    ) -> Result<()> {
        let link = self.manifest_link(name, digest);
        if let Ok(metadata) = fs::metadata(&link) {
            renew(&link, &metadata);
            return Ok(());
        }
        let usage = &self.0.usage;
        let size = raw.len() as u64;
        usage.charge(name, size)?;
        let stored = (|| {
            let content = self.content_path(digest);
            if !content.exists() {
                usage.charge_disk(size)?;
                let temporary = self.temporary_path();
                let written = File::create_new(&temporary).and_then(|mut file| {
                    file.write_all(raw)?;
                    file.sync_data()
                });
                let adopted = written
                    .map_err(|e| Error::io(format!("cannot write {}", temporary.display()), e))
                    .and_then(|()| self.adopt(&temporary, digest, lease));
                if !matches!(adopted, Ok(true)) {
                    usage.refund_disk(size);
                }
                if adopted.is_err() {
                    let _ = fs::remove_file(&temporary);
                }
                adopted?;
            }
            self.make_link(&content, &link)
        })();
        if !matches!(stored, Ok(true)) {
            usage.refund(name, size);
        }
        stored.map(drop)
    }

    /// Makes or replaces a symbolic link, durably.
    fn point(&self, directory: &Path, name: &str, target: &str) -> Result<()> {
        let path = directory.join(name);
        if fs::read_link(&path).is_ok_and(|old| old.as_os_str() == target) {
            return Ok(());
        }
        let unique = self.temporary_path();
        let unique = unique.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory.join(format!("{TEMPORARY}{unique}"));
        in_directory(directory, || {
            match symlink(target, &temporary) {
                // An earlier process left it.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    fs::remove_file(&temporary)?;
                    symlink(target, &temporary)?;
                }
                result => result?,
            }
            let _tagging = self.0.tagging.lock().unwrap_or_else(PoisonError::into_inner);
            fs::rename(&temporary, &path)
        })
        .and_then(|()| flush(directory))
        .map_err(|e| Error::io(format!("cannot make {}", path.display()), e))
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, name: &Repository) -> Result<Vec<Tag>> {
        self.require(name)?;
        let mut tags: Vec<Tag> = list(&self.repository_path(name).join("tags"))?
            .iter()
            .filter_map(|tag| Tag::parse(tag).ok())
            .collect();
        tags.sort_unstable();
        Ok(tags)
    }

    /// The manifests of a repository, in no order.
    pub fn manifests(&self, name: &Repository) -> Result<Vec<Digest>> {
        let names = list(&self.repository_path(name).join("manifests"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Takes a tag from a repository.
    pub fn delete_tag(&self, name: &Repository, tag: &Tag) -> Result<()> {
        self.require(name)?;
        let path = self.tag_path(name, tag);
        if !remove(&path)? {
            return Err(unknown(name, &ManifestName::Tag(tag.clone())));
        }
        self.flush_repository(name, "tags")
    }

    /// Takes a manifest from a repository, and the tags that point to it. Who is just pushing it, or giving it a tag,
    /// ends first.
    pub fn delete_manifest(&self, name: &Repository, digest: &Digest) -> Result<()> {
        self.0.pins.alone(digest, || self.remove_manifest(name, digest))
    }

    /// Takes it while nobody has it pinned.
    pub(super) fn remove_manifest(&self, name: &Repository, digest: &Digest) -> Result<()> {
        self.require(name)?;
        let link = self.manifest_link(name, digest);
        let raw = match read_small(&link, MAX_MANIFEST) {
            Ok(raw) => raw,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(unknown(name, &ManifestName::Digest(digest.clone())));
            }
            Err(e) => return Err(Error::io(format!("cannot read {}", link.display()), e)),
        };
        // Tags first: one that points to nothing would be listed and not be found.
        for tag in self.tags(name)? {
            // Who gives it another manifest meanwhile is told that it has that one.
            let _tagging = self.0.tagging.lock().unwrap_or_else(PoisonError::into_inner);
            if self.resolve(name, &tag).is_ok_and(|target| target == *digest) {
                remove(&self.tag_path(name, &tag))?;
            }
        }
        if let Some(subject) = Manifest::parse(&raw, None)
            .ok()
            .and_then(|manifest| manifest.subject)
        {
            let directory = self.referrers_path(name, &subject);
            remove(&directory.join(digest.to_string()))?;
            let _ = fs::remove_dir(&directory);
        }
        if remove(&link)? {
            self.0.usage.refund(name, raw.len() as u64);
        }
        self.flush_repository(name, "tags")?;
        self.flush_repository(name, "manifests")
    }

    fn flush_repository(&self, name: &Repository, kind: &str) -> Result<()> {
        let path = self.repository_path(name).join(kind);
        match flush(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("cannot flush {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }

    /// Manifests whose subject is this one, sorted by digest, beginning behind `last`; at most `limit`, and whether
    /// there are more.
    pub fn referrers(
        &self,
        name: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&Digest>,
        limit: usize,
    ) -> Result<(Vec<Referrer>, Option<Digest>)> {
        let mut digests: Vec<Digest> = list(&self.referrers_path(name, subject))?
            .iter()
            .filter_map(|digest| digest.parse().ok())
            .filter(|digest| last.is_none_or(|last| digest > last))
            .collect();
        digests.sort_unstable();
        let mut found = Vec::new();
        let mut next = None;
        for digest in digests {
            if found.len() >= limit {
                return Ok((found, next));
            }
            // One that was just deleted is no referrer any more.
            let Ok(raw) = read_small(&self.manifest_link(name, &digest), MAX_MANIFEST) else {
                continue;
            };
            let Ok(manifest) = Manifest::parse(&raw, None) else {
                continue;
            };
            let wanted = artifact_type.is_none_or(|wanted| manifest.artifact_type.as_deref() == Some(wanted));
            if wanted {
                next = Some(digest.clone());
                found.push(manifest.referrer(digest, raw.len() as u64));
            }
        }
        Ok((found, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StorageOptions;

    #[test]
    fn a_tag_that_moves_on_survives_the_deletion_of_what_it_pointed_to() {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::open(root.path(), StorageOptions::default()).unwrap();
        let name = Repository::parse("a").unwrap();
        let index = |note: &str| {
            format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{{"n":"{note}"}}}}"#
            )
        };
        let latest = Tag::parse("latest").unwrap();
        let which = ManifestName::Tag(latest.clone());
        for round in 0..300 {
            let [old, new] = ["old", "new"].map(|note| index(&format!("{note} {round}")));
            let put = |raw: &str| {
                let raw = raw.as_bytes();
                storage
                    .put_manifest(&name, &which, &[], None, raw, false)
                    .unwrap()
                    .digest
            };
            let old = put(&old);
            let together = std::sync::Barrier::new(2);
            let pushed = std::thread::scope(|scope| {
                scope.spawn(|| {
                    together.wait();
                    storage.delete_manifest(&name, &old).unwrap();
                });
                together.wait();
                put(&new)
            });
            assert_eq!(storage.resolve(&name, &latest).unwrap(), pushed, "round {round}");
        }
    }

    #[test]
    fn a_tag_that_comes_with_a_deletion_leads_somewhere_or_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::open(root.path(), StorageOptions::default()).unwrap();
        let name = Repository::parse("a").unwrap();
        let raw =
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        let digest = Digest::sha256(raw);
        let first = ManifestName::Tag(Tag::parse("first").unwrap());
        for round in 0..300 {
            storage
                .put_manifest(&name, &first, &[], None, raw, false)
                .unwrap();
            let tag = Tag::parse(&format!("t{round}")).unwrap();
            let together = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                let (storage, name, digest, tag, together) = (&storage, &name, &digest, &tag, &together);
                scope.spawn(move || {
                    together.wait();
                    let _ = storage.delete_manifest(name, digest);
                });
                scope.spawn(move || {
                    together.wait();
                    let which = ManifestName::Tag(tag.clone());
                    storage.put_manifest(name, &which, &[], None, raw, false).unwrap();
                });
            });
            for tag in storage.tags(&name).unwrap() {
                let which = ManifestName::Tag(tag.clone());
                assert!(
                    storage.manifest(&name, &which).is_ok(),
                    "round {round}: {tag} leads nowhere"
                );
            }
        }
    }
}
