//! `--cache-to`: what of a build is left where.

use std::collections::HashSet;
use std::sync::Arc;

use vessel_image::{ChainId, Descriptor};

use super::output::Finished;
use super::{Pending, Solve, as_vertex};
use crate::builder::Builder;
use crate::cache::export::{Export, Taken, inline, room};
use crate::cache::import::{Imports, Teller};
use crate::error::{Error, Result};
use crate::progress::{Event, Progress, Warning};
use crate::request::CacheExport;
use crate::session::Session;

/// What cache exports need.
pub(crate) struct Caches<'a> {
    pub builder: &'a Arc<Builder>,
    pub imports: &'a Imports,
    pub session: &'a Arc<dyn Session>,
    pub progress: &'a Progress,
    pub solves: &'a [Arc<Solve>],
}

impl Caches<'_> {
    fn taken(&self) -> Vec<Taken> {
        self.solves.iter().flat_map(|solve| solve.taken()).collect()
    }

    /// Puts the cache of each result where its configuration is made, if there is room.
    pub async fn inline(&self, finished: &mut [Finished]) -> Result<()> {
        let taken = self.taken();
        for one in finished {
            let most = room(&one.state.config.to_raw()?);
            let cache = self.builder.cache();
            one.cache = inline(cache, self.imports, &taken, &one.state.chain, most)?;
            if one.cache.is_none() {
                let vertex = Pending::new("exporting cache to image");
                let warning = Warning {
                    vertex: vertex.digest.clone(),
                    level: 1,
                    short: "the image has no cache: its configuration would be too large".to_owned(),
                    detail: Vec::new(),
                    url: None,
                    location: None,
                    text: None,
                };
                let work = async {
                    self.progress.send(Event::Warning(warning)).await;
                    Ok(())
                };
                as_vertex(self.progress, &vertex, work).await?;
            }
        }
        Ok(())
    }

    /// Makes all exports that are no part of an image. Gives the manifest of one in a layout of the client.
    pub async fn export(&self, wanted: &[CacheExport], finished: &[Finished]) -> Result<Option<Descriptor>> {
        let taken = self.taken();
        let results: HashSet<ChainId> = finished
            .iter()
            .flat_map(|one| one.state.chain.iter().cloned())
            .collect();
        let mut mounts: Vec<String> = self
            .solves
            .iter()
            .flat_map(|solve| solve.cache_mounts())
            .collect();
        mounts.sort();
        mounts.dedup();
        let worker = self.builder.worker();
        let mut left: Option<Descriptor> = None;
        for export in wanted {
            let (name, options) = match export {
                CacheExport::Inline => continue,
                CacheExport::Registry { options, .. } => ("exporting cache to registry", options),
                CacheExport::Local { options, .. } => ("exporting cache to client directory", options),
            };
            let vertex = Pending::new(name);
            let work = async {
                let place = match export {
                    CacheExport::Registry { reference, .. } => {
                        worker.cache_place(reference, self.session).await?
                    }
                    CacheExport::Local { store, .. } => self.session.content(store, None).await?,
                    CacheExport::Inline => return Ok(None),
                };
                let export = Export {
                    cache: self.builder.cache(),
                    worker,
                    imports: self.imports,
                    steps: &taken,
                    results: &results,
                    mounts: &mounts,
                    options,
                    teller: Teller {
                        progress: self.progress,
                        vertex: &vertex.digest,
                    },
                };
                export.to(&place).await.map(Some)
            };
            match (as_vertex(self.progress, &vertex, work).await, export) {
                (Ok(Some(manifest)), CacheExport::Local { .. }) => {
                    // The client is told one digest, for the indexes of all its layouts.
                    if left.as_ref().is_some_and(|known| known.digest != manifest.digest) {
                        return Err(Error::invalid(
                            "the caches in two directories of the client are not the same: export one of them at a time",
                        ));
                    }
                    left = Some(manifest);
                }
                (Ok(_), _) => {}
                // The vertex says why.
                (Err(error), _) if options.ignore_error => tracing::info!("{name} failed: {error}"),
                (Err(error), _) => return Err(error.context(name)),
            }
        }
        Ok(left)
    }
}
