//! The registry behind this one, through the registry client that everything else uses: its retries, resumed downloads,
//! tokens, bounds and certificates.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vessel_image::registry::{
    BlobReader, Credentials, RawManifest, RegistryClient, Repository as Source, Settings,
};
use vessel_image::{Descriptor, Digest, ErrorKind};

use crate::error::{Code, Error, Result};
use crate::name::Repository;

const CONNECT: Duration = Duration::from_secs(10);
/// Clients wait meanwhile.
const RETRIES: u32 = 2;
/// Repositories whose tokens are kept.
const MAX_REPOSITORIES: usize = 1000;

/// Where the other registry is and how it knows us.
#[derive(Clone)]
pub struct UpstreamOptions {
    /// `https://registry-1.docker.io`
    pub url: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// A certificate (PEM) to trust beside those of the system.
    pub ca: Option<Vec<u8>>,
    /// A proxy on the way there.
    pub http_proxy: Option<String>,
}

impl std::fmt::Debug for UpstreamOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamOptions")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// The client.
#[derive(Debug)]
pub struct Upstream {
    client: RegistryClient,
    address: String,
    host: String,
    credentials: Credentials,
    /// Each knows its tokens.
    repositories: Mutex<HashMap<Repository, Source>>,
}

fn wrong(error: &vessel_image::Error) -> Error {
    Error::new(Code::Unknown, error.to_string())
}

impl Upstream {
    /// Prepares to talk to it; nothing is sent yet.
    pub fn new(options: &UpstreamOptions) -> Result<Self> {
        let settings = Settings {
            authorities: options.ca.clone(),
            http_proxy: options.http_proxy.clone(),
            https_proxy: options.http_proxy.clone(),
            retries: RETRIES,
            connect_timeout: CONNECT,
            ..Settings::default()
        };
        let credentials = match &options.credentials {
            Some((user, password)) => Credentials::password(user, password),
            None => Credentials::default(),
        };
        let client = RegistryClient::new(settings).map_err(|e| wrong(&e))?;
        let probe = client
            .repository_at(&options.url, "", &credentials)
            .map_err(|e| wrong(&e))?;
        Ok(Self {
            client,
            address: options.url.clone(),
            host: probe.domain().to_owned(),
            credentials,
            repositories: Mutex::default(),
        })
    }

    /// Its name, for messages.
    pub fn host(&self) -> &str {
        &self.host
    }

    fn source(&self, name: &Repository) -> Result<Source> {
        let mut repositories = self.repositories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = repositories.get(name) {
            return Ok(source.clone());
        }
        if repositories.len() >= MAX_REPOSITORIES {
            repositories.clear();
        }
        let source = self
            .client
            .repository_at(&self.address, name.as_str(), &self.credentials)
            .map_err(|e| wrong(&e))?;
        repositories.insert(name.clone(), source.clone());
        Ok(source)
    }

    /// What an error of the client means to those who ask this registry. `unknown` is what is missing if it is missing.
    pub fn failed(&self, error: &vessel_image::Error, unknown: Code, what: impl FnOnce() -> String) -> Error {
        match error.kind() {
            ErrorKind::NotFound => Error::new(unknown, what()),
            // What is private there does not exist here.
            ErrorKind::Unauthorized | ErrorKind::Permission => Error::new(
                unknown,
                format!(
                    "{}, or the registry {} does not show it to this one",
                    what(),
                    self.host
                ),
            ),
            _ => Error::new(
                Code::Unavailable,
                format!("the registry {} behind this one failed: {error}", self.host),
            ),
        }
    }

    /// What a tag or digest stands for, without its content, if the other registry tells that.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn head(&self, name: &Repository, which: &str) -> Result<Option<Digest>> {
        match self.source(name)?.head_manifest(which).await {
            Ok(found) => Ok(found.map(|descriptor| descriptor.digest)),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                Err(self.no_manifest(&error, name, which))
            }
            // Not every server knows this kind of question.
            Err(_) => Ok(None),
        }
    }

    /// A manifest; its digest is right.
    pub async fn manifest(&self, name: &Repository, which: &str) -> Result<RawManifest> {
        let found = self.source(name)?.manifest(which).await;
        found.map_err(|e| self.no_manifest(&e, name, which))
    }

    fn no_manifest(&self, error: &vessel_image::Error, name: &Repository, which: &str) -> Error {
        self.failed(error, Code::ManifestUnknown, || {
            format!("{name} has no manifest {which}")
        })
    }

    /// A blob's size.
    pub async fn blob_size(&self, name: &Repository, digest: &Digest) -> Result<u64> {
        let found = self.source(name)?.blob_length(digest).await;
        let found = found.map_err(|e| self.no_blob(&e, name, digest))?;
        found.ok_or_else(|| crate::storage::unknown_blob(name, digest))
    }

    /// A blob's bytes, of which the digest is not checked.
    pub fn blob(&self, name: &Repository, digest: &Digest, size: u64) -> Result<BlobReader> {
        let descriptor = Descriptor::new("application/octet-stream", digest.clone(), size);
        Ok(self.source(name)?.blob(&descriptor, 0))
    }

    /// A blob cannot be had.
    pub fn no_blob(&self, error: &vessel_image::Error, name: &Repository, digest: &Digest) -> Error {
        self.failed(error, Code::BlobUnknown, || {
            format!("{name} has no blob {digest}")
        })
    }

    /// A page of tags, and where the next one begins.
    pub async fn tags(
        &self,
        name: &Repository,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<(Vec<String>, Option<String>)> {
        let found = self.source(name)?.tags_page(n, last).await;
        found.map_err(|e| self.failed(&e, Code::NameUnknown, || format!("there is no repository {name}")))
    }

    /// What says something about a manifest.
    pub async fn referrers(
        &self,
        name: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let found = self.source(name)?.referrers(subject, artifact_type).await;
        found.map_err(|e| self.no_manifest(&e, name, &subject.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_of_registries() {
        let new = |url: &str| {
            Upstream::new(&UpstreamOptions {
                url: url.into(),
                credentials: None,
                ca: None,
                http_proxy: None,
            })
        };
        assert!(new("https://registry.example.com").is_ok() && new("http://127.0.0.1:5000/").is_ok());
        for bad in ["", "registry", "ftp://x", "https://x/path", "file:///etc"] {
            assert!(new(bad).is_err(), "{bad}");
        }
    }
}
