//! Lists in pages: tags, repositories, referrers, results of a search.

use std::collections::BTreeSet;

use hyper::header;
use serde::Serialize;
use vessel_image::Digest;

use super::{OCI_FILTERS, document, value};
use crate::error::{Code, Error, Result};
use crate::http::{Response, query};
use crate::manifest::{OCI_INDEX, Referrer};
use crate::name::{self, Repository};
use crate::storage::Storage;

/// The longest page of names.
const MAX_PAGE: usize = 10_000;
/// Repositories in a page, if the client does not say.
const CATALOG_PAGE: usize = 1_000;
/// Each of them is a file to be read.
const MAX_REFERRERS: usize = 1_000;
/// Results of a search in a page, if the client does not say, and at most: as on Docker Hub.
const FOUND_PAGE: usize = 25;
const MAX_FOUND: usize = 100;
/// Words of a search; further ones are passed over.
const MAX_WORDS: usize = 16;

/// What part of a list is asked for.
struct Page {
    /// Names at most.
    n: usize,
    /// The last name that the client has.
    last: Option<String>,
}

impl Page {
    fn parse(text: Option<&str>, default: usize) -> Result<Self> {
        Ok(Self {
            n: number(text, "n", default)?.min(MAX_PAGE),
            last: query::get(text, "last").filter(|last| !last.is_empty()),
        })
    }

    /// The part, and the last name in it when there are more.
    fn cut(&self, sorted: Vec<String>) -> (Vec<String>, Option<String>) {
        let begin = match &self.last {
            None => 0,
            Some(last) => sorted.partition_point(|name| name <= last),
        };
        let mut page: Vec<String> = sorted.into_iter().skip(begin).collect();
        let more = page.len() > self.n;
        page.truncate(self.n);
        let next = page.last().filter(|_| more).cloned();
        (page, next)
    }
}

/// A number that the client may give.
fn number(text: Option<&str>, field: &str, default: usize) -> Result<usize> {
    let Some(given) = query::get(text, field) else {
        return Ok(default);
    };
    given.parse().map_err(|_| {
        Error::new(
            Code::PaginationNumberInvalid,
            format!("{} is not a number of results", name::show(&given)),
        )
    })
}

fn json(content: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(content).map_err(|error| Error::new(Code::Unknown, error.to_string()))
}

fn link(response: &mut Response, target: &str) {
    response
        .headers_mut()
        .insert(header::LINK, value(format!("<{target}>; rel=\"next\"")));
}

/// `GET /v2/NAME/tags/list`
pub fn tags(storage: &Storage, text: Option<&str>, name: &Repository) -> Result<Response> {
    list_tags(
        storage.tags(name)?.iter().map(ToString::to_string).collect(),
        text,
        name,
    )
}

/// A page of tags, wherever they come from.
pub fn list_tags(sorted: Vec<String>, text: Option<&str>, name: &Repository) -> Result<Response> {
    #[derive(Serialize)]
    struct Tags<'a> {
        name: &'a str,
        tags: Vec<String>,
    }
    let page = Page::parse(text, MAX_PAGE)?;
    let (tags, next) = page.cut(sorted);
    let mut response = document(
        "application/json",
        json(&Tags {
            name: name.as_str(),
            tags,
        })?,
    );
    if let Some(last) = next {
        link(
            &mut response,
            &format!("/v2/{name}/tags/list?n={}&last={}", page.n, query::encode(&last)),
        );
    }
    Ok(response)
}

/// A page of repositories, wherever they come from.
pub fn list_repositories(sorted: &[Repository], text: Option<&str>) -> Result<Response> {
    #[derive(Serialize)]
    struct Catalog {
        repositories: Vec<String>,
    }
    let page = Page::parse(text, CATALOG_PAGE)?;
    let (repositories, next) = page.cut(sorted.iter().map(ToString::to_string).collect());
    let mut response = document("application/json", json(&Catalog { repositories })?);
    if let Some(last) = next {
        link(
            &mut response,
            &format!("/v2/_catalog?n={}&last={}", page.n, query::encode(&last)),
        );
    }
    Ok(response)
}

/// `GET /v1/search`: the repositories with all the words in their names, however they are spelled.
///
/// It is no part of the distribution specification, but all that `docker search REGISTRY/WORDS` knows.
pub fn search(sorted: &[Repository], text: Option<&str>) -> Result<Response> {
    #[derive(Serialize)]
    struct Found<'a> {
        name: &'a str,
        description: &'static str,
        star_count: u32,
        is_official: bool,
        is_automated: bool,
    }
    #[derive(Serialize)]
    struct Answer<'a> {
        query: &'a str,
        num_results: usize,
        num_pages: usize,
        page: usize,
        page_size: usize,
        results: Vec<Found<'a>>,
    }
    let wanted = query::get(text, "q").unwrap_or_default();
    // Each is looked for in all names.
    let words: BTreeSet<String> = wanted
        .split_whitespace()
        .take(MAX_WORDS)
        .map(str::to_lowercase)
        .collect();
    let page_size = number(text, "n", FOUND_PAGE)?.clamp(1, MAX_FOUND);
    let page = number(text, "page", 1)?.max(1);
    let found: Vec<&str> = sorted
        .iter()
        .map(Repository::as_str)
        .filter(|name| words.iter().all(|word| name.contains(word.as_str())))
        .collect();
    let results = found
        .iter()
        .skip((page - 1).saturating_mul(page_size))
        .take(page_size)
        .map(|name| Found {
            name,
            description: "",
            star_count: 0,
            is_official: false,
            is_automated: false,
        })
        .collect();
    let answer = Answer {
        query: &wanted,
        num_results: found.len(),
        num_pages: found.len().div_ceil(page_size),
        page,
        page_size,
        results,
    };
    Ok(document("application/json", json(&answer)?))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Referrer>,
}

/// Where nothing refers to anything.
pub fn no_referrers() -> Result<Response> {
    let index = Index {
        schema_version: 2,
        media_type: OCI_INDEX,
        manifests: Vec::new(),
    };
    Ok(document(OCI_INDEX, json(&index)?))
}

/// `GET /v2/NAME/referrers/DIGEST`
pub fn referrers(
    storage: &Storage,
    text: Option<&str>,
    name: &Repository,
    subject: &Digest,
) -> Result<Response> {
    let artifact_type = query::get(text, "artifactType");
    let last = query::get(text, "last")
        .map(|last| name::digest(&last))
        .transpose()?;
    let (manifests, next) = storage.referrers(
        name,
        subject,
        artifact_type.as_deref(),
        last.as_ref(),
        MAX_REFERRERS,
    )?;
    let index = Index {
        schema_version: 2,
        media_type: OCI_INDEX,
        manifests,
    };
    let mut response = document(OCI_INDEX, json(&index)?);
    if artifact_type.is_some() {
        response.headers_mut().insert(OCI_FILTERS, value("artifactType"));
    }
    if let Some(next) = next {
        let filter = artifact_type
            .map(|text| format!("&artifactType={}", query::encode(&text)))
            .unwrap_or_default();
        link(
            &mut response,
            &format!("/v2/{name}/referrers/{subject}?last={next}{filter}"),
        );
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other() {
        let names = || ["a", "b", "c", "d"].map(String::from).to_vec();
        let page = |query| Page::parse(Some(query), 3).unwrap().cut(names());
        assert_eq!(
            page(""),
            (vec!["a".into(), "b".into(), "c".into()], Some("c".into()))
        );
        assert_eq!(page("last=c"), (vec!["d".into()], None));
        assert_eq!(page("n=2&last=b"), (vec!["c".into(), "d".into()], None));
        assert_eq!(page("n=1&last=bb").0, ["c"]);
        assert_eq!(page("n=0"), (vec![], None));
        for bad in ["n=-1", "n=x", "n="] {
            assert!(Page::parse(Some(bad), 3).is_err(), "{bad}");
        }
    }
}
