//! What every command has at hand: the daemon's client, made when it is first asked for.

use std::cell::OnceCell;
use std::path::PathBuf;

use vessel_client::{Client, Host};

use crate::autostart;
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

/// Whether connections have to be encrypted: as in Docker, any value but an empty one says so.
fn wants_tls() -> bool {
    std::env::var_os("DOCKER_TLS_VERIFY").is_some_and(|value| !value.is_empty())
}

/// What every command has at hand.
#[derive(Debug)]
pub struct Context {
    host: Option<String>,
    client: OnceCell<Client>,
}

impl Context {
    /// `host` is the value of `--host`.
    pub fn new(host: Option<String>) -> Self {
        Self {
            host,
            client: OnceCell::new(),
        }
    }

    /// The client of the chosen daemon: `--host`, `DOCKER_HOST`, or the default socket, behind which a
    /// daemon is started when there is none.
    pub fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let variable = || std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        let mut client = match self.host.clone().or_else(variable) {
            Some(host) => {
                let host = Host::parse(&host).map_err(Failure::new)?;
                // Never in clear what was meant to be encrypted.
                if matches!(host, Host::Tcp(_)) && wants_tls() {
                    return Err(Failure::new(
                        "DOCKER_TLS_VERIFY is set, and this version cannot encrypt its connection to the daemon",
                    )
                    .with_hint("use a Unix socket or forward one with ssh -L, or unset DOCKER_TLS_VERIFY"));
                }
                Client::new(host)
            }
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
