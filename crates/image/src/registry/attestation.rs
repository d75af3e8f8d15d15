//! What an index says about its images: provenance, bills of materials.
//!
//! BuildKit puts a manifest beside that of an image in the index, of platform `unknown/unknown`, whose annotations name the
//! image's manifest and whose layers are in-toto statements. A pull brings those of its image along, so that they can be
//! shown later (`GET /images/{name}/attestations`). They are a remark on an image, not a part of it: an image whose remarks
//! cannot be had, or are larger than a document may be, is pulled without them.

use std::time::Duration;

use super::repository::{RawManifest, Repository};
use crate::Store;
use crate::config::MAX_DOCUMENT;
use crate::digest::Digest;
use crate::error::Result;
use crate::manifest::{Descriptor, Document, Index, Manifest};
use crate::store::Lease;

/// The annotation with what an entry of an index is.
const TYPE: &str = "vnd.docker.reference.type";
/// The annotation with the manifest it is about.
const ABOUT: &str = "vnd.docker.reference.digest";
/// The annotation with what a statement says.
const PREDICATE: &str = "in-toto.io/predicate-type";
/// Manifests about one image, and statements of each, at most.
const MAX_MANIFESTS: usize = 4;
const MAX_STATEMENTS: usize = 16;
/// An image is not kept waiting for longer.
const PATIENCE: Duration = Duration::from_secs(30);

impl Index {
    /// The entries whose manifests hold statements about the manifest `about`.
    pub fn attestations(&self, about: &Digest) -> impl Iterator<Item = &Descriptor> {
        let about = about.to_string();
        self.manifests
            .iter()
            .filter(move |entry| {
                entry.annotation(TYPE) == Some("attestation-manifest")
                    && entry.annotation(ABOUT) == Some(about.as_str())
            })
            .take(MAX_MANIFESTS)
    }
}

impl Manifest {
    /// The statements of an attestation manifest, each with the URI of what it says.
    pub fn statements(&self) -> impl Iterator<Item = (&Descriptor, &str)> {
        self.layers
            .iter()
            .filter_map(|layer| Some((layer, layer.annotation(PREDICATE)?)))
            .filter(|(_, predicate)| !predicate.is_empty())
            .take(MAX_STATEMENTS)
    }
}

/// Brings what is said about an image into the store. `documents` are the indexes on the way to its manifest, and that.
pub(super) async fn fetch(
    repository: &Repository,
    store: &Store,
    documents: &[RawManifest],
) -> (Vec<Digest>, Lease) {
    let mut lease = store.lease();
    let mut kept = Vec::new();
    if let [.., index, manifest] = documents {
        let all = fetch_all(repository, store, index, manifest, &mut kept, &mut lease);
        match tokio::time::timeout(PATIENCE, all).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!("what is said about the image is not complete here: {error}"),
            Err(_) => tracing::info!("what is said about the image does not arrive: it is not waited for"),
        }
    }
    (kept, lease)
}

async fn fetch_all(
    repository: &Repository,
    store: &Store,
    index: &RawManifest,
    manifest: &RawManifest,
    kept: &mut Vec<Digest>,
    lease: &mut Lease,
) -> Result<()> {
    let Document::Index(index) = index.document()? else {
        return Ok(());
    };
    for entry in index.attestations(&manifest.digest) {
        let raw = match lease.pin_blob(&entry.digest) {
            true => store.blob(&entry.digest)?,
            false => repository.manifest(&entry.digest.to_string()).await?.raw,
        };
        let said = Manifest::parse(&raw)?;
        kept.push(store.put_blob(&raw, lease)?);
        for (statement, _) in said.statements() {
            if statement.size > MAX_DOCUMENT as u64 {
                continue;
            }
            if !lease.pin_blob(&statement.digest) {
                let raw = repository.document(statement).await?;
                store.put_blob(&raw, lease)?;
            }
            kept.push(statement.digest.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_found_by_their_annotations() {
        let (about, other) = (Digest::sha256(b"image"), Digest::sha256(b"other"));
        let entry = |about: &Digest, kind: &str| {
            let mut entry = Descriptor::new("m", Digest::sha256(kind.as_bytes()), 1);
            entry.annotations = Some(
                [
                    (TYPE.to_owned(), kind.to_owned()),
                    (ABOUT.to_owned(), about.to_string()),
                ]
                .into_iter()
                .collect(),
            );
            entry
        };
        let index = Index {
            schema_version: 2,
            media_type: None,
            manifests: vec![
                Descriptor::new("m", about.clone(), 1),
                entry(&about, "attestation-manifest"),
                entry(&other, "attestation-manifest"),
                entry(&about, "something-else"),
            ],
            artifact_type: None,
            subject: None,
            annotations: None,
        };
        let found: Vec<_> = index.attestations(&about).map(|entry| &entry.digest).collect();
        assert_eq!(found, [&index.manifests[1].digest]);
    }
}
