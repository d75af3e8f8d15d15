//! What was said about an image where it was pulled: in-toto statements of its provenance, of what is in it.

use std::collections::BTreeSet;

use vessel_api::{AttestationStatement, ImageIdentity, PullIdentity};
use vessel_image::{Digest, Document, Manifest, Platform, Reference};

use super::must_be_for;
use crate::image_index::ImageRecord;
use crate::{Engine, Error, Result};

/// Which statements.
#[derive(Debug, Clone, Default)]
pub struct AttestationOptions {
    /// About the image for this platform, not for the name's own.
    pub platform: Option<Platform>,
    /// Only those that say one of these (URIs); none: all.
    pub predicate_types: Vec<String>,
    /// With the statements themselves.
    pub statements: bool,
}

impl Engine {
    /// The statements about an image that came with it.
    ///
    /// # Errors
    /// No such image, or none for the platform; statements that its index names but that were not pulled.
    pub async fn image_attestations(
        &self,
        name: &str,
        options: &AttestationOptions,
    ) -> Result<Vec<AttestationStatement>> {
        let id = self.image_for(name, options.platform.as_ref()).await?;
        let record = self.image_record(&id)?;
        let mut found = Vec::new();
        for manifest in self.attestation_manifests(&record).await {
            let raw = self.said(&record, &manifest, name).await?;
            let manifest = Manifest::parse(&raw)?;
            for (descriptor, predicate) in manifest.statements() {
                let wanted = &options.predicate_types;
                if !wanted.is_empty() && !wanted.iter().any(|kind| kind == predicate) {
                    continue;
                }
                let statement = match options.statements {
                    true => Some(parse(&self.said(&record, &descriptor.digest, name).await?)?),
                    false => None,
                };
                found.push(AttestationStatement {
                    descriptor: serde_json::to_value(descriptor)
                        .map_err(|error| Error::system(format!("cannot encode a descriptor: {error}")))?,
                    predicate_type: predicate.to_owned(),
                    statement,
                });
            }
        }
        Ok(found)
    }

    /// The image a name means, or that of its index for another platform.
    async fn image_for(&self, name: &str, platform: Option<&Platform>) -> Result<String> {
        let found = self.find_image(name)?;
        let Some(wanted) = platform else {
            return Ok(found.id);
        };
        let tag = found.name.clone().unwrap_or_default();
        let mut ids = vec![found.id];
        if let Some(index) = self.index_of(&tag).await {
            ids.extend(index.entries.into_iter().map(|(_, id)| id));
        }
        let mut refused = Ok(());
        for id in ids {
            let config = vessel_image::ImageConfig::parse(&self.image_document(&id).await?)?;
            match must_be_for(Some(wanted), &config, name) {
                Ok(()) => return Ok(id),
                Err(error) => refused = refused.and(Err(error)),
            }
        }
        refused.and_then(|()| self.find_image(name).map(|found| found.id))
    }

    /// The manifests with statements about an image, by the last index it came with that has any.
    async fn attestation_manifests(&self, record: &ImageRecord) -> Vec<Digest> {
        let documents: BTreeSet<&String> = record.documents.iter().collect();
        for document in record.documents.iter().rev() {
            let Ok(raw) = self.image_document(document).await else {
                continue;
            };
            let Ok(Document::Index(index)) = Document::parse(&raw) else {
                continue;
            };
            let entries = index.manifests.iter().map(|entry| &entry.digest);
            let ours = entries.filter(|digest| documents.contains(&digest.to_string()));
            let about: Vec<Digest> = ours
                .flat_map(|digest| index.attestations(digest))
                .map(|entry| entry.digest.clone())
                .collect();
            if !about.is_empty() {
                return about;
            }
        }
        Vec::new()
    }

    async fn said(&self, record: &ImageRecord, blob: &Digest, name: &str) -> Result<Vec<u8>> {
        let digest = blob.to_string();
        if !record.attestations.contains(&digest) {
            return Err(Error::not_found(format!(
                "what {digest} says about the image {name} is not here: it was too large or could not be had when the image was pulled; pull it again"
            )));
        }
        self.image_document(&digest).await
    }
}

fn parse(raw: &[u8]) -> Result<serde_json::Value> {
    serde_json::from_slice(raw)
        .map_err(|error| Error::system(format!("a statement about the image is not JSON: {error}")))
}

/// Where an image comes from, by the digests that registries know it by.
pub(super) fn identity(repo_digests: &[String]) -> Option<ImageIdentity> {
    let names = repo_digests.iter().filter_map(|name| Reference::parse(name).ok());
    let repositories: BTreeSet<String> = names.map(|name| name.repository()).collect();
    let pull = repositories
        .into_iter()
        .map(|repository| PullIdentity { repository });
    let pull: Vec<_> = pull.collect();
    (!pull.is_empty()).then_some(ImageIdentity { pull })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_comes_from_each_repository_once() {
        let digest = Digest::sha256(b"x");
        let names = [
            format!("busybox@{digest}"),
            format!("busybox@{}", Digest::sha256(b"y")),
            format!("localhost:5000/app@{digest}"),
        ];
        let found = identity(&names).unwrap();
        let repositories: Vec<_> = found.pull.iter().map(|pull| pull.repository.as_str()).collect();
        assert_eq!(repositories, ["docker.io/library/busybox", "localhost:5000/app"]);
        assert_eq!(identity(&[]), None);
    }
}
