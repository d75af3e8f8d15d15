//! Garbage collection while serving.
//!
//! First within each repository: blobs that no manifest of it refers to, and, if asked for, manifests that no tag
//! leads to. Then among the content: what no repository has. Whatever was made, mounted or asked for within the grace
//! period stays, because a push may be about to refer to it; what a request pinned while the collection ran stays,
//! too (see `lease`).

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;
use std::time::Duration;

use vessel_image::Digest;

use super::blob::{age, read_small};
use super::{Storage, list, remove};
use crate::error::{Code, Error, Result};
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::name::Repository;

/// What to collect.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct CollectOptions {
    /// Younger things stay.
    pub grace: Duration,
    /// Manifests that no tag leads to go, too.
    pub untagged: bool,
    /// Nothing is removed, only counted.
    pub dry_run: bool,
}

/// What was collected.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Collected {
    /// Manifests that repositories lost.
    pub manifests: u64,
    /// Blobs that repositories lost.
    pub blobs: u64,
    /// Content that left the disk.
    pub contents: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Repositories of which nothing was collected, because a manifest of theirs cannot be read: what it needs is not
    /// known.
    #[serde(default)]
    pub skipped: u64,
}

/// Ends the collection whatever happens.
struct Running<'a>(&'a super::lease::Pins);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Storage {
    /// Collects what nobody needs. Requests are served meanwhile; one collection runs at a time.
    pub fn collect(&self, options: &CollectOptions) -> Result<Collected> {
        let _one = self.0.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut collected = Collected::default();
        for name in self.repositories()? {
            // For each repository anew, so that what is remembered of pins stays short.
            self.0.pins.begin();
            let running = Running(&self.0.pins);
            if let Err(error) = self.collect_repository(&name, options, &mut collected) {
                tracing::error!(%name, %error, "nothing of this repository is collected");
                collected.skipped += 1;
            }
            drop(running);
        }
        self.0.pins.begin();
        let _running = Running(&self.0.pins);
        let mut orphans = Vec::new();
        self.each_content(|digest, metadata| {
            if metadata.nlink() == 1 && age(metadata) >= options.grace {
                orphans.push(digest);
            }
        })?;
        for digest in orphans {
            self.collect_content(&digest, options, &mut collected)?;
        }
        Ok(collected)
    }

    fn collect_content(
        &self,
        digest: &Digest,
        options: &CollectOptions,
        collected: &mut Collected,
    ) -> Result<()> {
        let path = self.content_path(digest);
        let removed = self.0.pins.condemn(digest, || {
            // Looked at again, now that nobody can link to it.
            let Ok(metadata) = fs::metadata(&path) else {
                return Ok(None);
            };
            if metadata.nlink() != 1 {
                return Ok(None);
            }
            let gone = options.dry_run || remove(&path)?;
            Ok::<_, Error>(gone.then_some(metadata.len()))
        });
        if let Some(size) = removed.transpose()?.flatten() {
            collected.contents += 1;
            collected.bytes += size;
            if !options.dry_run {
                self.0.usage.refund_disk(size);
            }
        }
        Ok(())
    }

    fn collect_repository(
        &self,
        name: &Repository,
        options: &CollectOptions,
        collected: &mut Collected,
    ) -> Result<()> {
        let mut digests = self.manifests(name)?;
        if options.untagged {
            let reachable = self.reachable(name)?;
            let (kept, untagged): (Vec<_>, Vec<_>) =
                digests.into_iter().partition(|digest| reachable.contains(digest));
            digests = kept;
            for digest in untagged {
                let path = self.manifest_link(name, &digest);
                let young = fs::metadata(&path).is_ok_and(|metadata| age(&metadata) < options.grace);
                let take = || self.remove_manifest(name, &digest);
                let removed = match options.dry_run {
                    _ if young => None,
                    true => Some(Ok(())),
                    false => self.0.pins.condemn(&digest, take),
                };
                match removed {
                    Some(Ok(())) => collected.manifests += 1,
                    // A client has deleted it meanwhile.
                    Some(Err(error)) if matches!(error.code(), Code::ManifestUnknown | Code::NameUnknown) => {
                    }
                    Some(Err(error)) => return Err(error),
                    None => digests.push(digest),
                }
            }
        }
        let mut needed = HashSet::new();
        for digest in &digests {
            // What cannot be read needs we do not know what: then nothing of this repository may go.
            let path = self.manifest_link(name, digest);
            let raw = match read_small(&path, MAX_MANIFEST) {
                Ok(raw) => raw,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(format!("cannot read {}", path.display()), e)),
            };
            let manifest = Manifest::parse(&raw, None)?;
            needed.extend(manifest.blobs);
            needed.extend(manifest.foreign);
        }
        for entry in list(&self.repository_path(name).join("blobs"))? {
            let Ok(digest) = entry.parse::<Digest>() else {
                continue;
            };
            if needed.contains(&digest) {
                continue;
            }
            let path = self.blob_link(name, &digest);
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if age(&metadata) < options.grace {
                continue;
            }
            let removed = match options.dry_run {
                true => Some(Ok(true)),
                false => self.0.pins.condemn(&digest, || remove(&path)),
            };
            if removed.transpose()? == Some(true) {
                collected.blobs += 1;
                if !options.dry_run {
                    self.0.usage.refund(name, metadata.len());
                }
            }
        }
        if !options.dry_run {
            self.remove_if_empty(name);
        }
        Ok(())
    }

    /// The manifests that a tag leads to: itself, what its index lists, and what says something about any of them.
    fn reachable(&self, name: &Repository) -> Result<HashSet<Digest>> {
        let mut reachable = HashSet::new();
        let mut open: Vec<Digest> = self
            .tags(name)?
            .iter()
            .filter_map(|tag| self.resolve(name, tag).ok())
            .collect();
        while let Some(digest) = open.pop() {
            if !reachable.insert(digest.clone()) {
                continue;
            }
            match read_small(&self.manifest_link(name, &digest), MAX_MANIFEST) {
                Ok(raw) => {
                    let manifest = Manifest::parse(&raw, None)?;
                    open.extend(manifest.manifests.into_iter().map(|child| child.digest));
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                // What cannot be read now may name what must stay.
                Err(e) => return Err(Error::io(format!("cannot read the manifest {digest}"), e)),
            }
            let referrers = list(
                &self
                    .repository_path(name)
                    .join("referrers")
                    .join(digest.to_string()),
            )?;
            open.extend(referrers.iter().filter_map(|digest| digest.parse().ok()));
        }
        Ok(reachable)
    }

    /// Directories that others fill at the same time cannot be removed, and what makes a name in one makes it again.
    fn remove_if_empty(&self, name: &Repository) {
        let path = self.repository_path(name);
        for directory in ["blobs", "manifests", "tags", "referrers"] {
            let _ = fs::remove_dir(path.join(directory));
        }
        let _ = fs::remove_dir(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ManifestName;
    use crate::storage::StorageOptions;

    #[test]
    fn what_a_client_deletes_meanwhile_is_no_damage() {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::open(root.path(), StorageOptions::default()).unwrap();
        let name = Repository::parse("a").unwrap();
        let options = CollectOptions {
            grace: Duration::ZERO,
            untagged: true,
            dry_run: false,
        };
        for round in 0..20 {
            let digests: Vec<Digest> = (0..20)
                .map(|n| {
                    let raw = format!(
                        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{{"n":"{round} {n}"}}}}"#
                    );
                    let digest = Digest::sha256(raw.as_bytes());
                    let which = ManifestName::Digest(digest.clone());
                    storage
                        .put_manifest(&name, &which, &[], None, raw.as_bytes(), false)
                        .unwrap();
                    digest
                })
                .collect();
            let together = std::sync::Barrier::new(2);
            let collected = std::thread::scope(|scope| {
                scope.spawn(|| {
                    together.wait();
                    for digest in digests.iter().rev() {
                        let _ = storage.delete_manifest(&name, digest);
                    }
                });
                together.wait();
                storage.collect(&options).unwrap()
            });
            assert_eq!(collected.skipped, 0, "round {round}");
            storage.collect(&options).unwrap();
            assert_eq!(storage.usage().disk(), 0, "round {round}");
        }
    }
}
