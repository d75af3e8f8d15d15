//! `vessel manifest push`

use vessel_image::Document;
use vessel_image::registry::{Access, Mount, Repository};

use super::{Registries, parse, target};
use crate::app::Run;
use crate::commands::manifest::draft::Draft;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;

/// Upload a list of manifests
#[derive(Debug, clap::Args)]
pub struct PushArgs {
    /// Allow a registry without TLS or with any certificate
    #[arg(long)]
    insecure: bool,
    /// Forget the list afterwards
    #[arg(short, long)]
    purge: bool,
    /// The list's name
    #[arg(value_name = "LIST")]
    list: String,
}

impl Run for PushArgs {
    fn run(self, _context: &Context) -> Result {
        let list = parse(&self.list)?;
        let draft = Draft::load(&list)?;
        let registries = Registries::new(self.insecure, &[&self.list])?;
        let repository = registries.repository(&list)?;
        for entry in &draft.entries {
            if entry.reference.domain() != list.domain() {
                return Err(Failure::new(format!(
                    "{} is at another registry than the list: push it to {} first",
                    entry.reference.familiar(),
                    list.domain()
                )));
            }
            if entry.reference.path() != list.path() {
                copy(
                    &registries,
                    &repository,
                    entry.reference.path(),
                    &entry.descriptor.digest.to_string(),
                    &entry.reference,
                )?;
            }
        }
        let index = draft.index();
        let raw = serde_json::to_vec_pretty(&index).map_err(Failure::new)?;
        let kind = index.media_type.clone().unwrap_or_default();
        let digest = registries.run(repository.put_manifest(&target(&list), &kind, &raw))?;
        output::print_line(&digest.to_string())?;
        if self.purge {
            draft.remove()?;
        }
        Ok(())
    }
}

/// Makes a manifest of another repository one of the list's, without sending its blobs.
fn copy(
    registries: &Registries,
    to: &Repository,
    from: &str,
    digest: &str,
    reference: &vessel_image::Reference,
) -> Result {
    let source = registries.repository(reference)?;
    let manifest = registries.run(source.manifest(digest))?;
    let Document::Manifest(document) = manifest.document().map_err(Failure::new)? else {
        return Err(Failure::new("a list cannot hold another list"));
    };
    for blob in std::iter::once(&document.config).chain(&document.layers) {
        let foreign = vessel_image::media_type::is_foreign(&blob.media_type);
        if foreign
            || registries
                .run(to.blob_size(&blob.digest, Access::Push))?
                .is_some()
        {
            continue;
        }
        if let Mount::Upload(_) = registries.run(to.mount(&blob.digest, from))? {
            return Err(Failure::new(format!(
                "{} does not take the blob {} over from {from}: push the image to the list's repository first",
                to.origin(),
                blob.digest
            )));
        }
    }
    registries
        .run(to.put_manifest(digest, &manifest.media_type, &manifest.raw))
        .map(drop)
}
