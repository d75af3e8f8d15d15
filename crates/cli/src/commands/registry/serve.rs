//! `vessel registry serve`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;
use vessel_client::{Client, Filters};
use vessel_image::{Digest, Reference};
use vessel_registry::{
    AuthOptions, CollectOptions, Config, ExternalIssuer, LocalImage, LocalOptions, ProxyOptions, Quota,
    Repository, Server, Settings, StorageOptions, TlsFiles, UpstreamOptions,
};

use super::{bytes, default_root, duration};
use crate::app::Run;
use crate::context::{Context, Places};
use crate::failure::{Failure, Result, words};

/// A client that takes nothing of an answer for so long is dropped.
const SILENCE: Duration = Duration::from_secs(60);

/// Run a registry in the foreground
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Addresses to listen at
    #[arg(short, long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000")]
    listen: Vec<SocketAddr>,
    /// Directory of the registry's content
    #[arg(long, value_name = "dir")]
    root: Option<PathBuf>,
    /// Certificate chain (PEM); read again when it changes
    #[arg(long, value_name = "file", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "file", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authorities (PEM): clients must have a certificate of one of them
    #[arg(long, value_name = "file", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Users and their bcrypt passwords; read again when it changes
    #[arg(long, value_name = "file")]
    htpasswd: Option<PathBuf>,
    /// Rules who may do what where (JSON); read again when it changes
    #[arg(long, value_name = "file")]
    rules: Option<PathBuf>,
    /// Let everybody pull everything
    #[arg(long)]
    anonymous_pull: bool,
    /// Ask clients for a password with each request instead of giving them tokens
    #[arg(long)]
    basic: bool,
    /// URL of an issuer of tokens elsewhere
    #[arg(long, value_name = "url", requires_all = ["token_issuer", "token_key"])]
    token_realm: Option<String>,
    /// Name of that issuer
    #[arg(long, value_name = "string")]
    token_issuer: Option<String>,
    /// Name of this registry in its tokens
    #[arg(long, value_name = "string", default_value = "vessel-registry")]
    token_service: String,
    /// Its public key or certificate (PEM)
    #[arg(long, value_name = "file")]
    token_key: Option<PathBuf>,
    /// URL by which clients reach this registry, if not the one they say
    #[arg(long, value_name = "url")]
    public_url: Option<String>,
    /// Serve the images of the local engine, read-only, instead of content of its own
    #[arg(long, conflicts_with = "proxy")]
    engine: bool,
    /// Directory of that engine
    #[arg(long, value_name = "dir", requires = "engine")]
    store: Option<PathBuf>,
    /// Be a cache of the registry at this URL
    #[arg(long, value_name = "url")]
    proxy: Option<String>,
    /// User at that registry
    #[arg(long, value_name = "string", requires = "proxy_password_file")]
    proxy_user: Option<String>,
    /// File with the password
    #[arg(long, value_name = "file", requires = "proxy_user")]
    proxy_password_file: Option<PathBuf>,
    /// Certificate (PEM) to trust for that registry, beside those of the system
    #[arg(long, value_name = "file", requires = "proxy")]
    proxy_ca: Option<PathBuf>,
    /// How long a tag of that registry is believed
    #[arg(long, value_name = "time", default_value = "5m", value_parser = duration)]
    proxy_ttl: Duration,
    /// Proxy on the way to that registry
    #[arg(long, value_name = "url", requires = "proxy")]
    http_proxy: Option<String>,
    /// Limit of space: SIZE for all, PREFIX=SIZE for the repositories below a name
    #[arg(long, value_name = "[PREFIX=]SIZE", value_parser = quota)]
    quota: Vec<Quota>,
    /// Refuse pushes and deletions
    #[arg(long)]
    read_only: bool,
    /// Refuse deletions
    #[arg(long)]
    no_delete: bool,
    /// Serve no page for browsers
    #[arg(long)]
    no_page: bool,
    /// Serve metrics at this address alone
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Collect garbage so often, as in 12h
    #[arg(long, value_name = "time", value_parser = duration)]
    gc_interval: Option<Duration>,
    /// Collect manifests without a tag, too
    #[arg(long)]
    gc_untagged: bool,
    /// What is younger is no garbage
    #[arg(long, value_name = "time", default_value = "1h", value_parser = duration)]
    gc_grace: Duration,
    /// Forget uploads of which nothing was heard for so long
    #[arg(long, value_name = "time", default_value = "24h", value_parser = duration)]
    upload_expiry: Duration,
    /// Connections at most
    #[arg(long, value_name = "number", default_value_t = 4096)]
    max_connections: usize,
    /// What to log: error, warn, info, debug or trace
    #[arg(long, value_name = "string", default_value = "info")]
    log_level: String,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let level: LevelFilter = self
            .log_level
            .parse()
            .map_err(|_| Failure::usage(format!("there is no log level \"{}\"", self.log_level)))?;
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .init();
        let local = match self.engine {
            true => Some(local(self.store.clone(), context.client()?.clone())),
            false => None,
        };
        let config = Config {
            local,
            ..self.config()?
        };
        let runtime = vessel_registry::runtime()
            .map_err(|error| Failure::new(format!("cannot start threads: {}", words(&error))))?;
        runtime.block_on(serve(config))
    }
}

async fn serve(config: Config) -> Result {
    // Before anything is made: a signal that comes while the registry starts ends it in order.
    let shutdown = vessel_registry::end_of_process()
        .map_err(|error| Failure::new(format!("cannot wait for signals: {}", words(&error))))?;
    tokio::pin!(shutdown);
    let tls = config.tls.is_some();
    let server = tokio::select! {
        server = Server::open(config) => server.map_err(Failure::new)?,
        () = &mut shutdown => return Ok(()),
    };
    for address in server.addresses() {
        crate::output::warn(&format!(
            "vessel registry: listening at {}://{address}",
            if tls { "https" } else { "http" }
        ));
    }
    server.run(shutdown).await;
    Ok(())
}

impl Args {
    fn config(self) -> Result<Config> {
        let external = match (self.token_realm, self.token_issuer, self.token_key) {
            (Some(realm), Some(issuer), Some(key)) => Some(ExternalIssuer {
                realm,
                issuer,
                service: self.token_service,
                key,
            }),
            (None, None, None) => None,
            _ => {
                return Err(Failure::usage(
                    "--token-realm, --token-issuer and --token-key belong together",
                ));
            }
        };
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles {
                certificate,
                key,
                clients: self.tls_client_ca,
            }),
            _ => None,
        };
        let proxy = match self.proxy {
            None => None,
            Some(url) => Some(ProxyOptions {
                upstream: UpstreamOptions {
                    url,
                    credentials: match (self.proxy_user, self.proxy_password_file) {
                        (Some(user), Some(file)) => {
                            let password = String::from_utf8(read(&file)?)
                                .map_err(|_| Failure::new(format!("{} is not text", file.display())))?;
                            Some((user, password.trim_end_matches(['\r', '\n']).to_owned()))
                        }
                        _ => None,
                    },
                    ca: self.proxy_ca.as_deref().map(read).transpose()?,
                    http_proxy: self.http_proxy,
                },
                ttl: self.proxy_ttl,
            }),
        };
        let collect = CollectOptions {
            grace: self.gc_grace,
            untagged: self.gc_untagged,
            dry_run: false,
        };
        Ok(Config {
            listen: self.listen,
            metrics_listen: self.metrics,
            root: self.root.unwrap_or_else(default_root),
            storage: StorageOptions {
                quotas: self.quota,
                upload_expiry: self.upload_expiry,
                ..StorageOptions::default()
            },
            tls,
            auth: AuthOptions {
                htpasswd: self.htpasswd,
                rules: self.rules,
                anonymous_pull: self.anonymous_pull,
                basic: self.basic,
                external,
            },
            proxy,
            local: None,
            settings: Settings {
                read_only: self.read_only,
                delete: !self.no_delete,
                page: !self.no_page,
                metrics: self.metrics.is_none(),
                public_url: self.public_url.map(|url| url.trim_end_matches('/').to_owned()),
            },
            collect: self
                .gc_interval
                .map(|every| (every.max(Duration::from_secs(1)), collect)),
            max_connections: self.max_connections.max(1),
            silence: SILENCE,
        })
    }
}

/// The engine's images by the names that a reference to this registry can have: `docker.io/library/debian` is `debian`
/// and `library/debian`, of others a host with a port is left out.
fn local(store: Option<PathBuf>, client: Client) -> LocalOptions {
    let images = move || {
        let images = client
            .image_list(false, false, &Filters::new())
            .map_err(|error| error.to_string())?;
        let mut named = Vec::new();
        for image in images {
            let Ok(id) = image.id.parse::<Digest>() else {
                continue;
            };
            for name in &image.repo_tags {
                let Ok(reference) = Reference::parse(name) else {
                    continue;
                };
                for repository in repositories(&reference) {
                    let tag = reference.tag().unwrap_or("latest").to_owned();
                    let id = id.clone();
                    named.push(LocalImage { repository, tag, id });
                }
            }
        }
        Ok(named)
    };
    LocalOptions {
        store: store.unwrap_or_else(|| Places::from_environment().root),
        images: Arc::new(images),
    }
}

fn repositories(reference: &Reference) -> Vec<Repository> {
    let (domain, path) = (reference.domain(), reference.path());
    let names = match (domain, path.strip_prefix("library/")) {
        ("docker.io", Some(short)) => vec![short.to_owned(), path.to_owned()],
        ("docker.io", None) => vec![path.to_owned()],
        _ => vec![format!("{domain}/{path}"), path.to_owned()],
    };
    let mut valid = names.iter().filter_map(|name| Repository::parse(name).ok());
    match domain {
        "docker.io" => valid.collect(),
        _ => valid.next().into_iter().collect(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| Failure::new(format!("cannot read {}: {}", path.display(), words(&error))))
}

fn quota(text: &str) -> std::result::Result<Quota, String> {
    let (prefix, limit) = text.rsplit_once('=').unwrap_or(("", text));
    if !prefix.is_empty() {
        Repository::parse(prefix).map_err(|error| error.to_string())?;
    }
    Ok(Quota {
        prefix: prefix.to_owned(),
        limit: bytes(limit)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas() {
        assert_eq!(quota("1kB").unwrap().limit, 1000);
        assert_eq!(quota("team/a=1KiB").unwrap().prefix, "team/a");
        assert!(quota("Team=1kB").is_err() && quota("team=").is_err());
    }
}
