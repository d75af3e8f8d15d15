//! From a path to what is asked for.
//!
//! Names contain slashes, so the end of the path decides, as the specification has it.

use crate::error::Result;
use crate::name::{ManifestName, Repository, digest};
use vessel_image::Digest;

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: whether this is a registry.
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v1/search`, which `docker search` asks.
    Search,
    /// `/v2/NAME/tags/list`
    Tags(Repository),
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest(Repository, ManifestName),
    /// `/v2/NAME/blobs/DIGEST`
    Blob(Repository, Digest),
    /// `/v2/NAME/blobs/uploads/`
    Uploads(Repository),
    /// `/v2/NAME/blobs/uploads/ID`
    Upload(Repository, String),
    /// `/v2/NAME/referrers/DIGEST`
    Referrers(Repository, Digest),
    /// `/token`
    Token,
    /// `/metrics`
    Metrics,
    /// `/`: the page for a person.
    Home,
    /// `/r/NAME`
    RepositoryPage(Repository),
    /// `/r/NAME/-/REFERENCE`
    ManifestPage(Repository, ManifestName),
}

/// Routes without what is in them, to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the routes")]
pub enum Kind {
    Base,
    Catalog,
    Tags,
    Manifest,
    Blob,
    Upload,
    Referrers,
    Token,
    Metrics,
    Page,
    Other,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Self; 11] = [
        Self::Base,
        Self::Catalog,
        Self::Tags,
        Self::Manifest,
        Self::Blob,
        Self::Upload,
        Self::Referrers,
        Self::Token,
        Self::Metrics,
        Self::Page,
        Self::Other,
    ];

    /// As it is written in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Catalog => "catalog",
            Self::Tags => "tags",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Upload => "upload",
            Self::Referrers => "referrers",
            Self::Token => "token",
            Self::Metrics => "metrics",
            Self::Page => "page",
            Self::Other => "other",
        }
    }
}

impl Route {
    /// Reads a path; none when nothing is there.
    pub fn parse(path: &str) -> Result<Option<Self>> {
        match path {
            "/" => return Ok(Some(Self::Home)),
            "/token" => return Ok(Some(Self::Token)),
            "/metrics" => return Ok(Some(Self::Metrics)),
            "/v2" | "/v2/" => return Ok(Some(Self::Base)),
            "/v2/_catalog" => return Ok(Some(Self::Catalog)),
            "/v1/search" => return Ok(Some(Self::Search)),
            _ => {}
        }
        if let Some(rest) = path.strip_prefix("/r/") {
            return Ok(Some(match rest.rsplit_once("/-/") {
                Some((name, reference)) => {
                    Self::ManifestPage(Repository::parse(name)?, ManifestName::parse(reference)?)
                }
                None => Self::RepositoryPage(Repository::parse(rest)?),
            }));
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return Ok(None);
        };
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Some(Self::Tags(Repository::parse(name)?)));
        }
        if let Some(name) = rest
            .strip_suffix("/blobs/uploads/")
            .or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return Ok(Some(Self::Uploads(Repository::parse(name)?)));
        }
        let Some((before, last)) = rest.rsplit_once('/') else {
            return Ok(None);
        };
        if let Some(name) = before.strip_suffix("/blobs/uploads") {
            return Ok(Some(Self::Upload(Repository::parse(name)?, last.to_owned())));
        }
        let Some((name, kind)) = before.rsplit_once('/') else {
            return Ok(None);
        };
        Ok(Some(match kind {
            "manifests" => Self::Manifest(Repository::parse(name)?, ManifestName::parse(last)?),
            "blobs" => Self::Blob(Repository::parse(name)?, digest(last)?),
            "referrers" => Self::Referrers(Repository::parse(name)?, digest(last)?),
            _ => return Ok(None),
        }))
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Base => Kind::Base,
            Self::Catalog | Self::Search => Kind::Catalog,
            Self::Tags(_) => Kind::Tags,
            Self::Manifest(..) => Kind::Manifest,
            Self::Blob(..) => Kind::Blob,
            Self::Uploads(_) | Self::Upload(..) => Kind::Upload,
            Self::Referrers(..) => Kind::Referrers,
            Self::Token => Kind::Token,
            Self::Metrics => Kind::Metrics,
            Self::Home | Self::RepositoryPage(_) | Self::ManifestPage(..) => Kind::Page,
        }
    }

    /// The repository it is about.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Tags(name)
            | Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Referrers(name, _)
            | Self::RepositoryPage(name)
            | Self::ManifestPage(name, _) => Some(name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_of_the_path_decides() {
        let name = |name| Repository::parse(name).unwrap();
        let digest = Digest::sha256(b"");
        for (path, route) in [
            ("/v2/", Route::Base),
            ("/v2/_catalog", Route::Catalog),
            ("/v1/search", Route::Search),
            ("/v2/a/tags/list", Route::Tags(name("a"))),
            ("/v2/tags/list/tags/list", Route::Tags(name("tags/list"))),
            ("/v2/a/b/blobs/uploads/", Route::Uploads(name("a/b"))),
            ("/v2/a/blobs/uploads/1-2", Route::Upload(name("a"), "1-2".into())),
            (
                "/v2/blobs/uploads/blobs/uploads/x",
                Route::Upload(name("blobs/uploads"), "x".into()),
            ),
            (
                &format!("/v2/manifests/blobs/{digest}"),
                Route::Blob(name("manifests"), digest.clone()),
            ),
            (
                &format!("/v2/a/referrers/{digest}"),
                Route::Referrers(name("a"), digest.clone()),
            ),
            ("/r/a/b", Route::RepositoryPage(name("a/b"))),
        ] {
            assert_eq!(Route::parse(path).unwrap().unwrap(), route, "{path}");
        }
        for path in ["", "/v1/", "/v2/a", "/v2/a/b", "/v2/a/b/c", "/favicon.ico"] {
            assert_eq!(Route::parse(path).unwrap(), None, "{path}");
        }
        for path in [
            "/v2/A/tags/list",
            "/v2/a/manifests/.x",
            "/v2/a/blobs/sha256:1",
            "/v2/../tags/list",
            "/r/..",
        ] {
            assert!(Route::parse(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in "(/v2/|/r/|/)?[a-z0-9/:._-]{0,80}") {
            let _ = Route::parse(&path);
        }
    }
}
