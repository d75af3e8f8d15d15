//! How the daemon reaches registries: options, and the proxies of the environment.

use vessel_engine::images::{RegistrySettings, TrustPolicy};

use crate::failure::{Failure, Result, words};

/// Options of the daemon about registries.
#[derive(Debug, clap::Args)]
pub struct RegistryOptions {
    /// Registries that may be spoken to without TLS or with any certificate: HOST[:PORT] or a network
    #[arg(long, value_name = "list")]
    insecure_registry: Vec<String>,
    /// Addresses to ask before Docker Hub
    #[arg(long, value_name = "list")]
    registry_mirror: Vec<String>,
    /// Layers of an image to download at the same time
    #[arg(long, value_name = "int", default_value_t = 3)]
    max_concurrent_downloads: usize,
    /// Layers of an image to upload at the same time
    #[arg(long, value_name = "int", default_value_t = 5)]
    max_concurrent_uploads: usize,
    /// Proxy for http addresses, instead of HTTP_PROXY
    #[arg(long, value_name = "string")]
    http_proxy: Option<String>,
    /// Proxy for https addresses, instead of HTTPS_PROXY
    #[arg(long, value_name = "string")]
    https_proxy: Option<String>,
    /// What is reached without a proxy, instead of NO_PROXY
    #[arg(long, value_name = "string")]
    no_proxy: Option<String>,
    /// Images below a prefix must be signed (cosign) by the owner of a public key; * stands for all images
    #[arg(long, value_name = "PREFIX=FILE")]
    trust: Vec<String>,
}

impl RegistryOptions {
    /// The signatures they require.
    pub fn trust(&self) -> Result<TrustPolicy> {
        let mut policy = TrustPolicy::default();
        for rule in &self.trust {
            let (prefix, path) = rule
                .split_once('=')
                .filter(|(prefix, _)| !prefix.is_empty())
                .ok_or_else(|| {
                    Failure::usage(format!(
                        "--trust {rule} does not look like registry.example/team=cosign.pub"
                    ))
                })?;
            let key = std::fs::read(path)
                .map_err(|error| Failure::new(format!("cannot read the key {path}: {}", words(&error))))?;
            policy.require(prefix, &key).map_err(Failure::new)?;
        }
        Ok(policy)
    }

    /// The settings they mean.
    pub fn settings(self) -> RegistrySettings {
        RegistrySettings {
            insecure: self.insecure_registry,
            mirrors: self.registry_mirror,
            downloads: self.max_concurrent_downloads.max(1),
            uploads: self.max_concurrent_uploads.max(1),
            ..from_environment(self.http_proxy, self.https_proxy, self.no_proxy)
        }
    }
}

/// The defaults with the proxies of the environment, where none is given.
pub fn from_environment(
    http: Option<String>,
    https: Option<String>,
    direct: Option<String>,
) -> RegistrySettings {
    let variable = |name: &str| {
        [name.to_ascii_uppercase(), name.to_owned()]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    };
    RegistrySettings {
        http_proxy: http.or_else(|| variable("http_proxy")),
        https_proxy: https.or_else(|| variable("https_proxy")),
        no_proxy: direct.or_else(|| variable("no_proxy")),
        ..RegistrySettings::default()
    }
}
