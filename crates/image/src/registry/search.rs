//! Searching a registry: the index of Docker Hub (`/v1/search`), or the names in the catalog of a registry that has no
//! search of its own.

use std::sync::Arc;

use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};

use super::client::RegistryClient;
use super::credentials::{Credentials, DOCKER_HUB_KEY, registry_key};
use super::repository::Repository;
use super::transport::{Call, read_all};
use crate::error::{Error, ErrorKind, Result};

/// Where Docker Hub's index is.
const DOCKER_INDEX: &str = "https://index.docker.io/";
/// What a token must be for to see a catalog.
const CATALOG: &str = "registry:catalog:*";
/// The largest answer.
const MAX_ANSWER: usize = 8 << 20;
/// The most results that can be asked for, as Docker has it.
pub const MAX_RESULTS: usize = 100;

/// A repository that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchResult {
    /// Stars on Docker Hub.
    pub star_count: i64,
    /// Whether Docker vouches for it.
    pub is_official: bool,
    /// Its name.
    pub name: String,
    /// Whether it was built by Docker Hub; always false these days.
    pub is_automated: bool,
    /// What its owner says it is.
    #[serde(deserialize_with = "text")]
    pub description: String,
}

fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    results: Vec<SearchResult>,
}

#[derive(Deserialize)]
struct Catalog {
    #[serde(default)]
    repositories: Option<Vec<String>>,
}

impl RegistryClient {
    /// Searches for a term, `[REGISTRY/]WORDS`; at most `limit` results.
    pub async fn search(
        &self,
        term: &str,
        limit: usize,
        credentials: &Credentials,
    ) -> Result<Vec<SearchResult>> {
        let limit = limit.clamp(1, MAX_RESULTS);
        let (registry, words) = match term.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (registry_key(first), rest)
            }
            _ => (DOCKER_HUB_KEY, term),
        };
        // Docker Hub's own images have a name without their directory there.
        let words = words.strip_prefix("library/").unwrap_or(words);
        let hub = registry == DOCKER_HUB_KEY;
        let base = match hub {
            true => Url::parse(DOCKER_INDEX).map_err(|_| Error::invalid("no address"))?,
            false => self.base(registry).await?,
        };
        let repository = Repository::new(
            Arc::clone(&self.transport),
            base,
            registry,
            words,
            credentials.clone(),
        );
        let mut url = repository.at("v1/search")?;
        url.query_pairs_mut()
            .append_pair("q", words)
            .append_pair("n", &limit.to_string());
        // Registries with a search of their own show in it what they show in their catalog.
        let scope = if hub { "" } else { CATALOG };
        let response = repository.send(&Call::new(Method::GET, url), scope).await?;
        let status = response.status();
        let is_json = response
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .is_some_and(|kind| kind.contains("json"));
        let mut results = if status.is_success() && is_json {
            let raw = read_all(response, MAX_ANSWER, "the results of a search").await?;
            serde_json::from_slice::<Answer>(&raw)
                .map_err(|e| Error::json("the results of the search are not valid", e))?
                .results
        } else if hub {
            return Err(super::transport::complaint(response, "cannot search").await);
        } else {
            catalog(&repository, words).await?
        };
        results.truncate(limit);
        for result in &mut results {
            // They go to a terminal.
            for text in [&mut result.name, &mut result.description] {
                text.retain(|c| !c.is_control());
            }
        }
        Ok(results)
    }
}

/// The names that contain all the words.
async fn catalog(repository: &Repository, words: &str) -> Result<Vec<SearchResult>> {
    let words: Vec<String> = words.split_whitespace().map(str::to_lowercase).collect();
    let mut results = Vec::new();
    let first = repository.at("v2/_catalog?n=1000")?;
    let mut seen = 0;
    let taken = repository
        .pages(first, CATALOG, |raw| {
            let page: Catalog = serde_json::from_slice(raw)
                .map_err(|e| Error::json("the registry's catalog is not valid", e))?;
            for name in page.repositories.unwrap_or_default() {
                seen += 1;
                if words.iter().all(|word| name.contains(word.as_str())) {
                    results.push(SearchResult {
                        name,
                        ..SearchResult::default()
                    });
                }
            }
            Ok(seen)
        })
        .await;
    match taken {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => {
            Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} can neither search nor list what it has", repository.origin()),
            ))
        }
        Err(error) => Err(error),
        Ok(()) => Ok(results),
    }
}
