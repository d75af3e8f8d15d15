//! What registries are asked besides images: logging in, searching, what a name stands for.

use std::sync::Arc;

use serde::Serialize;
use vessel_image::registry::{Credentials, SearchResult};
use vessel_image::{Descriptor, Document, Platform, Reference};

use super::pull::denied;
use crate::{Engine, Error, Filters, Result};

/// `GET /distribution/{name}/json`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DistributionInspect {
    /// What the name stands for.
    pub descriptor: Descriptor,
    /// What it can run on.
    pub platforms: Vec<Platform>,
}

impl Engine {
    /// Shows credentials to a registry. Gives the identity token that replaces the password, or nothing.
    ///
    /// # Errors
    /// A registry that does not want them, or cannot be reached.
    pub async fn registry_login(self: &Arc<Self>, credentials: Credentials) -> Result<String> {
        let address = credentials.serveraddress.clone();
        let token = self.registries().login(&address, &credentials).await?;
        Ok(token.unwrap_or_default())
    }

    /// Searches a registry.
    ///
    /// # Errors
    /// A term, limit or filter that is not valid; a registry that cannot search.
    pub async fn registry_search(
        &self,
        term: &str,
        limit: i64,
        filters: &Filters,
        credentials: &Credentials,
    ) -> Result<Vec<SearchResult>> {
        filters.check(&["is-official", "is-automated", "stars"])?;
        if term.trim().is_empty() {
            return Err(Error::invalid("no term to search for"));
        }
        if term.contains("://") {
            return Err(Error::invalid(format!(
                "invalid repository name: repository name ({term}) should not have a scheme"
            )));
        }
        let limit = match limit {
            0 => 25,
            1..=100 => limit as usize,
            _ => {
                return Err(Error::invalid(format!(
                    "limit {limit} is outside the range of [1, 100]"
                )));
            }
        };
        let official = filters.flag("is-official")?;
        let automated = filters.flag("is-automated")?;
        let mut stars = 0;
        for text in filters.get("stars") {
            let wanted: i64 = text.parse().map_err(|_| {
                Error::invalid(format!("invalid filter 'stars={text}': a number is expected"))
            })?;
            stars = stars.max(wanted);
        }
        let mut results = self.registries().search(term, limit, credentials).await?;
        results.retain(|result| {
            official.is_none_or(|wanted| wanted == result.is_official)
                && automated.is_none_or(|wanted| wanted == result.is_automated)
                && result.star_count >= stars
        });
        Ok(results)
    }

    /// What a name stands for at its registry, without pulling it.
    ///
    /// # Errors
    /// No such image; a registry that refuses.
    pub async fn distribution_inspect(
        &self,
        name: &str,
        credentials: &Credentials,
    ) -> Result<DistributionInspect> {
        let reference = Reference::parse(name)?.with_default_tag();
        let target = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        let repository = self.registries().repository(&reference, credentials).await?;
        let top = repository
            .manifest(&target)
            .await
            .map_err(|error| denied(&reference, error))?;
        let platforms = match top.document()? {
            Document::Index(index) => index
                .manifests
                .into_iter()
                .filter_map(|entry| entry.platform)
                .collect(),
            Document::Manifest(manifest) => {
                let raw = repository.document(&manifest.config).await?;
                match vessel_image::ImageConfig::parse(&raw) {
                    Ok(config) if !config.os.is_empty() => vec![Platform::of(&config)],
                    // An artifact runs nowhere.
                    _ => Vec::new(),
                }
            }
        };
        Ok(DistributionInspect {
            descriptor: top.descriptor(),
            platforms,
        })
    }
}
