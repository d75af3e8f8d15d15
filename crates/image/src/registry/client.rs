//! Which address a registry's name stands for, and logging in.
//!
//! A name means HTTPS. Registries that may be insecure (loopback, `Settings::insecure`) are tried with TLS first and then
//! in clear, as Docker does; what answered is remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Method, Url};

use super::credentials::Credentials;
use super::repository::Repository;
use super::settings::Settings;
use super::transport::{Call, Transport};
use crate::error::{Error, ErrorKind, Result, show};
use crate::reference::Reference;

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// A registry that answered in clear is tried with TLS again after a while.
const REMEMBERED: Duration = Duration::from_secs(300);
/// To find out whether somebody speaks TLS.
const PROBE: Duration = Duration::from_secs(5);

/// Finds registries. Clones share connections; credentials belong to what is opened with it.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    pub(super) transport: Arc<Transport>,
    clear: Arc<Mutex<HashMap<String, (bool, Instant)>>>,
}

impl RegistryClient {
    /// A client; nothing is connected yet.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn new(settings: Settings) -> Result<Self> {
        settings.check()?;
        Ok(Self {
            transport: Transport::new(settings),
            clear: Arc::default(),
        })
    }

    /// How registries are reached.
    pub fn settings(&self) -> &Settings {
        &self.transport.settings
    }

    /// The repository that a reference names, at the registry itself.
    pub async fn repository(&self, reference: &Reference, credentials: &Credentials) -> Result<Repository> {
        let base = self.base(reference.domain()).await?;
        Ok(Repository::new(
            Arc::clone(&self.transport),
            base,
            reference.domain(),
            reference.path(),
            credentials.clone(),
        ))
    }

    /// A repository of the registry at an address (`https://registry.example`), whatever mirrors and settings say of
    /// names.
    ///
    /// # Errors
    /// What is no address of a registry.
    pub fn repository_at(&self, address: &str, name: &str, credentials: &Credentials) -> Result<Repository> {
        let base = Url::parse(address).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.path() == "/"
                && url.query().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        });
        let base = base.ok_or_else(|| {
            Error::invalid(format!(
                "{} is not the address of a registry, as https://registry.example is",
                show(address.as_bytes())
            ))
        })?;
        let domain = super::transport::authority(&base);
        let transport = Arc::clone(&self.transport);
        Ok(Repository::new(
            transport,
            base,
            &domain,
            name,
            credentials.clone(),
        ))
    }

    /// The places where a repository may be read, mirrors first. Mirrors get no credentials: those that there are belong
    /// to the registry.
    pub(super) async fn sources(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Vec<Repository>> {
        let mut sources = Vec::new();
        if reference.domain() == DOCKER_HUB {
            for mirror in &self.transport.settings.mirrors {
                let mut text = mirror.clone();
                if !text.ends_with('/') {
                    text.push('/');
                }
                let base =
                    Url::parse(&text).map_err(|_| Error::invalid("the mirror's address is not valid"))?;
                sources.push(Repository::new(
                    Arc::clone(&self.transport),
                    base,
                    reference.domain(),
                    reference.path(),
                    Credentials::default(),
                ));
            }
        }
        sources.push(self.repository(reference, credentials).await?);
        Ok(sources)
    }

    /// The address of a registry.
    pub(super) async fn base(&self, domain: &str) -> Result<Url> {
        let host = if domain == DOCKER_HUB {
            DOCKER_HUB_HOST
        } else {
            domain
        };
        let address = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/")).map_err(|_| {
                Error::invalid(format!("{} is not the name of a registry", show(host.as_bytes())))
            })
        };
        let secure = address("https")?;
        let settings = &self.transport.settings;
        // Who has certificates for a registry wants them to be used.
        if !settings.is_insecure(host) || super::tls::directory(&settings.certificates, host).is_some() {
            return Ok(secure);
        }
        let known = self
            .clear
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(host)
            .copied()
            .filter(|(_, when)| when.elapsed() < REMEMBERED);
        let clear = match known {
            Some((clear, _)) => clear,
            None => {
                let probe = Call::new(Method::GET, secure.join("v2/").unwrap_or_else(|_| secure.clone()));
                let answer = tokio::time::timeout(PROBE, self.transport.once(&probe, None)).await;
                let clear = !matches!(answer, Ok(Ok(_)));
                let mut remembered = self.clear.lock().unwrap_or_else(PoisonError::into_inner);
                if remembered.len() >= 1024 {
                    remembered.clear();
                }
                remembered.insert(host.to_owned(), (clear, Instant::now()));
                clear
            }
        };
        if clear { address("http") } else { Ok(secure) }
    }

    /// Shows credentials to a registry (`host[:port]`, or an address in front of a path). Gives the identity token that
    /// replaces the password, if the registry has such a thing.
    ///
    /// # Errors
    /// `Unauthorized` when it does not want them.
    pub async fn login(&self, address: &str, credentials: &Credentials) -> Result<Option<String>> {
        let host = address
            .strip_prefix("https://")
            .or_else(|| address.strip_prefix("http://"))
            .unwrap_or(address);
        let host = match host.split('/').next().unwrap_or_default() {
            "" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            host => host,
        };
        let repository = Repository::new(
            Arc::clone(&self.transport),
            self.base(host).await?,
            host,
            "",
            credentials.clone(),
        );
        repository.ping(true).await.map_err(|error| match error.kind() {
            ErrorKind::Unauthorized | ErrorKind::Permission => Error::new(
                ErrorKind::Unauthorized,
                format!("{host} refuses the credentials: unauthorized: incorrect username or password"),
            ),
            _ => error,
        })
    }
}
