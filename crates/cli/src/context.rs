//! What every command has at hand: the daemon's client, made when it is first asked for.

use std::cell::OnceCell;
use std::path::PathBuf;

use vessel_client::{Client, Host, Tls, TlsFiles};

use crate::autostart;
use crate::contexts::{self, Contexts};
use crate::failure::{Failure, Result};

/// Where Vessel's own things are, unless options say otherwise.
#[derive(Debug, Clone)]
pub struct Places {
    /// State that survives a reboot.
    pub root: PathBuf,
    /// Sockets and state that does not.
    pub run: PathBuf,
    /// Whether the environment moved either.
    pub moved: bool,
}

impl Places {
    /// The defaults, moved by `VESSEL_ROOT` and `VESSEL_RUN`.
    pub fn from_environment() -> Self {
        let place = |name: &str, default: &str| match std::env::var_os(name) {
            Some(path) if !path.is_empty() => (PathBuf::from(path), true),
            _ => (PathBuf::from(default), false),
        };
        let (root, root_moved) = place("VESSEL_ROOT", "/var/lib/vessel");
        let (run, run_moved) = place("VESSEL_RUN", "/run/vessel");
        Self {
            root,
            run,
            moved: root_moved || run_moved,
        }
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("vessel.sock")
    }
}

/// The daemon that was chosen on the command line.
#[derive(Debug, Default)]
pub struct Chosen {
    /// `--host`.
    pub host: Option<String>,
    /// `--context`.
    pub context: Option<String>,
    /// How its connection is encrypted.
    pub tls: TlsOptions,
}

/// `--tls` and what belongs to it.
#[derive(Debug, Default)]
pub struct TlsOptions {
    /// Encrypted, whoever is there.
    pub tls: bool,
    /// Encrypted, with a certificate that is checked.
    pub verify: bool,
    /// The authority.
    pub authority: Option<String>,
    /// The client's certificate.
    pub certificate: Option<String>,
    /// And its key.
    pub key: Option<String>,
}

impl TlsOptions {
    /// Whether the command line has any.
    fn is_given(&self) -> bool {
        let files = [&self.authority, &self.certificate, &self.key];
        self.tls || self.verify || files.into_iter().any(Option::is_some)
    }

    /// The daemon, over TLS when options or, as in Docker, any `DOCKER_TLS_VERIFY` but an empty one say so.
    fn apply(&self, host: Host) -> Result<Host> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let verify = self.verify || set("DOCKER_TLS_VERIFY").is_some();
        let tls = self.tls || set("DOCKER_TLS").is_some();
        if !matches!(host, Host::Tcp(_)) || !(verify || tls) {
            return Ok(host);
        }
        let directory = set("DOCKER_CERT_PATH").map_or_else(crate::credentials::directory, PathBuf::from);
        let file = |option: &Option<String>, name: &str| match option {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(directory.join(name)).filter(|path| path.exists()),
        };
        let certificate = file(&self.certificate, "cert.pem").zip(file(&self.key, "key.pem"));
        let tls = Tls::open(&TlsFiles {
            authority: file(&self.authority, "ca.pem"),
            certificate,
            trust_any: !verify,
        });
        Ok(host.with_tls(tls.map_err(Failure::new)?))
    }
}

/// What every command has at hand.
#[derive(Debug)]
pub struct Context {
    chosen: Chosen,
    client: OnceCell<Client>,
}

impl Context {
    /// A daemon that is not talked to yet.
    pub fn new(chosen: Chosen) -> Self {
        Self {
            chosen,
            client: OnceCell::new(),
        }
    }

    /// `--context`.
    pub fn name(&self) -> Option<&str> {
        self.chosen.context.as_deref()
    }

    /// Where the daemon is, if anything says so.
    fn host(&self) -> Result<Option<Host>> {
        if self.chosen.host.is_some() && self.chosen.context.is_some() {
            return Err(Failure::usage(
                "conflicting options: either specify --host or --context, not both",
            ));
        }
        let variable = || std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        let named = match &self.chosen.context {
            Some(_) => None,
            None => self.chosen.host.clone().or_else(variable),
        };
        if let Some(host) = named {
            let host = Host::parse(&host).map_err(Failure::new)?;
            return self.chosen.tls.apply(host).map(Some);
        }
        match contexts::current(self.name())?.as_str() {
            contexts::DEFAULT => Ok(None),
            _ if self.chosen.tls.is_given() => Err(Failure::usage(
                "conflicting options: --tls and its certificates go with --host; a context has its own",
            )),
            name => Contexts::of_user().find(name)?.host().map(Some),
        }
    }

    /// Whether the chosen daemon is on this host, as far as its address tells.
    pub fn is_here(&self) -> Result<bool> {
        Ok(matches!(self.host()?, None | Some(Host::Unix(_))))
    }

    /// The client of the chosen daemon: `--host` or `--context`, `DOCKER_HOST`, `DOCKER_CONTEXT`, the context in use, or the
    /// default socket, behind which a daemon is started when there is none.
    pub fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let mut client = match self.host()? {
            Some(host) => Client::new(host),
            None => {
                let places = Places::from_environment();
                let client = Client::new(Host::Unix(places.socket()));
                match client.connect() {
                    Err(error) if error.is_dead_socket() => autostart::start(&places, &client)?,
                    other => other?,
                }
                client
            }
        };
        client.set_version(
            std::env::var("DOCKER_API_VERSION")
                .ok()
                .filter(|version| !version.is_empty()),
        );
        Ok(self.client.get_or_init(|| client))
    }
}
