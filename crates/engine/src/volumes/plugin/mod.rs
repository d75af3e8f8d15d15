//! Volume plug-ins: drivers of volumes that are other processes, found by their sockets and asked by Docker's protocol
//! (<https://docs.docker.com/engine/extend/plugins_volume/>, and `plugin_api` for how they are found).
//!
//! In each of the directories a plug-in `NAME` is a socket `NAME.sock` or `NAME/NAME.sock`, or a file `NAME.spec` with an
//! address (`unix://PATH` or `tcp://IP:PORT`) or `NAME.json` (`{"Addr": …}`). Plug-ins that are images, and TLS, are not there.
//!
//! They are root's programs, and slow ones: every call has a time limit and an answer a bound, no lock of other containers
//! or volumes is held and no thread is taken while one answers, and a plug-in has [`CALLS`] calls at a time at most. So one that hangs delays
//! what is about its volumes, and nothing else. One that did not answer to a question that is for everybody (what volumes it
//! has) is not asked again for [`SILENCE`].

mod wire;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use vessel_api::Map;

use crate::{Error, Result};
use wire::{Address, Fault};

/// Where plug-ins are looked for unless the daemon is told otherwise.
pub const DEFAULT_DIRS: [&str; 3] = [
    "/run/docker/plugins",
    "/etc/docker/plugins",
    "/usr/lib/docker/plugins",
];
/// Calls of one plug-in at a time; others wait, within their own limits.
const CALLS: usize = 16;
/// For making and mounting a volume.
const LONG: Duration = Duration::from_secs(120);
/// For everything else that is about one volume.
const SHORT: Duration = Duration::from_secs(60);
/// For what holds up the list of all volumes.
const GLANCE: Duration = Duration::from_secs(2);
/// How long a plug-in that was silent then is left alone.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a plug-in that nobody listens for is waited for: it may be starting, as this daemon may.
const ARRIVES: Duration = Duration::from_secs(5);
/// The longest file with an address.
const MAX_SPEC: u64 = 64 << 10;
/// The most plug-ins that are looked at.
const MAX_PLUGINS: usize = 128;

/// The plug-ins of an engine.
#[derive(Debug, Default)]
pub(crate) struct Plugins {
    directories: Vec<PathBuf>,
    /// Those that were found once.
    known: Mutex<BTreeMap<String, Arc<Plugin>>>,
}

/// One plug-in.
#[derive(Debug)]
pub(crate) struct Plugin {
    name: String,
    address: Address,
    slots: Semaphore,
    activated: AtomicBool,
    scope: OnceLock<&'static str>,
    silent_until: Mutex<Option<Instant>>,
}

/// What a plug-in says of a volume.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Remote {
    name: Option<String>,
    mountpoint: Option<String>,
    created_at: Option<String>,
    status: Option<Map<Value>>,
}

/// All answers there are.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Reply {
    err: Option<String>,
    implements: Option<Vec<String>>,
    mountpoint: Option<String>,
    volume: Option<Remote>,
    volumes: Option<Vec<Remote>>,
    capabilities: Option<Capabilities>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Capabilities {
    scope: Option<String>,
}

/// What a plug-in says, as part of a message: one line of it, not all of a page.
fn said(text: &str) -> String {
    let line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(1000)
        .collect();
    line
}

impl Remote {
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    pub fn mountpoint(&self) -> String {
        self.mountpoint.clone().unwrap_or_default()
    }

    pub fn created_at(&self) -> String {
        self.created_at.clone().unwrap_or_default()
    }

    pub fn status(&self) -> Map<Value> {
        self.status.clone().unwrap_or_default()
    }
}

impl Plugins {
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            known: Mutex::default(),
        }
    }

    /// The names of all there are.
    pub fn names(&self) -> Vec<String> {
        let mut names = std::collections::BTreeSet::new();
        for directory in &self.directories {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            for entry in entries.take(MAX_PLUGINS) {
                let file = PathBuf::from(entry.file_name());
                let Some(name) = file.file_stem().and_then(|stem| stem.to_str()) else {
                    continue;
                };
                if self.find(name).is_ok_and(|found| found.is_some()) {
                    names.insert(name.to_owned());
                }
            }
        }
        names.into_iter().collect()
    }

    /// Where a plug-in listens.
    fn find(&self, name: &str) -> Result<Option<Address>> {
        let first = |c: char| c.is_ascii_alphanumeric();
        let other = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !name.starts_with(first) || !name.chars().all(other) || name.len() > 128 {
            return Ok(None);
        }
        let candidates = |extension: &str| {
            let file = format!("{name}.{extension}");
            let both = |directory: &PathBuf| [directory.join(&file), directory.join(name).join(&file)];
            self.directories.iter().flat_map(both).collect::<Vec<_>>()
        };
        for path in candidates("sock") {
            if std::fs::metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
                return Ok(Some(Address::Unix(path)));
            }
        }
        for extension in ["spec", "json"] {
            for path in candidates(extension) {
                if let Some(text) = read(&path) {
                    return address(&text, extension == "json").map(Some).map_err(|why| {
                        Error::invalid(format!("plugin {name:?}: {}: {why}", path.display()))
                    });
                }
            }
        }
        Ok(None)
    }

    /// A plug-in that drives volumes.
    ///
    /// # Errors
    /// There is none of that name, it does not answer, or it drives something else.
    pub async fn get(&self, name: &str) -> Result<Arc<Plugin>> {
        let found = self.look_up(name, false).await?;
        found.ok_or_else(|| {
            Error::invalid(format!(
                "error looking up volume plugin {name}: Plugin does not implement the requested driver: plugin={name:?}, requested implementation=\"VolumeDriver\""
            ))
        })
    }

    /// None for one that drives something else. `briefly`: for a question that holds up everybody.
    async fn look_up(&self, name: &str, briefly: bool) -> Result<Option<Arc<Plugin>>> {
        let looking = |error: Error| error.wrap(format!("error looking up volume plugin {name}"));
        let not_found = || looking(Error::not_found(format!("plugin \"{name}\" not found")));
        let address = self.find(name).map_err(looking)?.ok_or_else(not_found)?;
        let plugin = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            match known.get(name).filter(|plugin| plugin.address == address) {
                Some(plugin) => Arc::clone(plugin),
                None => {
                    let plugin = Arc::new(Plugin::new(name, address));
                    known.insert(name.to_owned(), Arc::clone(&plugin));
                    plugin
                }
            }
        };
        if !plugin.activated.load(Ordering::Acquire) {
            let reply = match briefly {
                true => plugin.glance("Plugin.Activate", None).await,
                false => plugin.call("Plugin.Activate", None, SHORT).await,
            };
            let reply = reply.map_err(looking)?;
            let implements = reply.implements.unwrap_or_default();
            if !implements.iter().any(|what| what == "VolumeDriver") {
                return Ok(None);
            }
            plugin.activated.store(true, Ordering::Release);
        }
        Ok(Some(plugin))
    }

    /// Asks all plug-ins that drive volumes at once, none for long. Returns the answers by plug-in, and what is to be said of
    /// those that gave none.
    async fn ask_all(
        self: &Arc<Self>,
        method: &'static str,
        body: Option<Value>,
    ) -> Vec<(String, Result<Reply>)> {
        let mut asked = tokio::task::JoinSet::new();
        for name in self.names() {
            let (plugins, body) = (Arc::clone(self), body.clone());
            asked.spawn(async move {
                let answer = match plugins.look_up(&name, true).await {
                    Ok(Some(plugin)) => plugin.glance(method, body).await,
                    Ok(None) => return None,
                    Err(error) => Err(error),
                };
                Some((name, answer))
            });
        }
        let mut answers: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
        answers.sort_by(|one, other| one.0.cmp(&other.0));
        answers
    }

    /// The volumes of all plug-ins, with their drivers; and warnings.
    pub async fn list(self: &Arc<Self>) -> (Vec<(String, Remote)>, Vec<String>) {
        let (mut volumes, mut warnings) = (Vec::new(), Vec::new());
        for (driver, answer) in self.ask_all("VolumeDriver.List", None).await {
            match answer {
                Ok(reply) => {
                    let found = reply.volumes.unwrap_or_default();
                    volumes.extend(found.into_iter().map(|volume| (driver.clone(), volume)));
                }
                Err(error) => warnings.push(format!("volume plugin {driver}: {error}")),
            }
        }
        (volumes, warnings)
    }

    /// The plug-in that has a volume that nobody made here.
    pub async fn with_volume(self: &Arc<Self>, name: &str) -> Option<(String, Remote)> {
        let answers = self
            .ask_all("VolumeDriver.Get", Some(json!({ "Name": name })))
            .await;
        answers
            .into_iter()
            .find_map(|(driver, answer)| Some((driver, answer.ok()?.volume?)))
    }
}

fn read(path: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = String::new();
    let read = std::fs::File::from(file).take(MAX_SPEC).read_to_string(&mut text);
    read.ok().map(|_| text)
}

/// The address in a file.
fn address(text: &str, as_json: bool) -> std::result::Result<Address, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Described {
        addr: String,
        #[serde(rename = "TLSConfig")]
        tls: Option<Value>,
    }
    let described = match as_json {
        true => serde_json::from_str(text).map_err(|error| error.to_string())?,
        false => Described {
            addr: text.trim().to_owned(),
            tls: None,
        },
    };
    let tls = described.tls.as_ref().and_then(Value::as_object);
    if tls.is_some_and(|tls| tls.iter().any(|(name, _)| name != "InsecureSkipVerify"))
        || described.addr.starts_with("https://")
    {
        return Err("plug-ins are not reached over TLS: give it a socket on this host".into());
    }
    match described.addr.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(Address::Unix(path.into())),
        Some(("tcp" | "http", address)) => {
            let address = address.strip_prefix("localhost:").map_or_else(
                || address.trim_end_matches('/').to_owned(),
                |port| format!("127.0.0.1:{}", port.trim_end_matches('/')),
            );
            let parsed = address.parse().map(Address::Tcp);
            parsed.map_err(|_| format!("{address:?} is not an IP address and a port"))
        }
        _ => Err(format!(
            "{:?} is neither unix://PATH nor tcp://IP:PORT",
            said(&described.addr)
        )),
    }
}

impl Plugin {
    fn new(name: &str, address: Address) -> Self {
        Self {
            name: name.to_owned(),
            address,
            slots: Semaphore::new(CALLS),
            activated: AtomicBool::new(false),
            scope: OnceLock::new(),
            silent_until: Mutex::new(None),
        }
    }

    /// Calls a method and waits for its answer.
    async fn call(&self, method: &str, body: Option<Value>, limit: Duration) -> Result<Reply> {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let answered = async {
            let _slot = self.slots.acquire().await;
            let begin = tokio::time::Instant::now();
            loop {
                match wire::call(&self.address, method, body.clone()).await {
                    Err(Fault::NotReached(_)) if limit > GLANCE && begin.elapsed() < ARRIVES => {
                        tokio::time::sleep(ARRIVES / 20).await;
                    }
                    answered => break answered,
                }
            }
        };
        let failed = |why: &str| Error::system(format!("{method}: {why}"));
        let answer = match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(Fault::NotReached(why))) => {
                return Err(failed(&format!(
                    "nobody listens for the volume plugin {} ({why}): is it running?",
                    self.name
                )));
            }
            Ok(Err(Fault::Failed(why))) => return Err(failed(&why)),
            Err(_) => {
                return Err(failed(&format!(
                    "the volume plugin {} did not answer within {} s",
                    self.name,
                    limit.as_secs()
                )));
            }
        };
        let reply: Reply = match answer.is_empty() {
            true => Reply::default(),
            false => serde_json::from_slice(&answer)
                .map_err(|error| failed(&format!("the answer makes no sense: {error}")))?,
        };
        match &reply.err {
            Some(err) if !err.is_empty() => Err(Error::system(said(err))),
            _ => Ok(reply),
        }
    }

    /// Asks what holds up everybody: not for long, and not again soon when there is no answer.
    async fn glance(&self, method: &str, body: Option<Value>) -> Result<Reply> {
        if self.is_silent() {
            return Err(Error::system("it did not answer a moment ago"));
        }
        let begin = Instant::now();
        let answer = self.call(method, body, GLANCE).await;
        if begin.elapsed() >= GLANCE {
            *self.silent_until() = Some(Instant::now() + SILENCE);
        }
        answer
    }

    fn silent_until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.silent_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_silent(&self) -> bool {
        self.silent_until().is_some_and(|until| Instant::now() < until)
    }

    async fn about(&self, method: &str, volume: &str, limit: Duration) -> Result<Reply> {
        self.call(method, Some(json!({ "Name": volume })), limit).await
    }

    /// Makes a volume unless it is there.
    pub async fn create(&self, volume: &str, options: &Map<String>) -> Result<()> {
        if let Ok(Reply { volume: Some(_), .. }) = self.about("VolumeDriver.Get", volume, SHORT).await {
            return Ok(());
        }
        let body = json!({ "Name": volume, "Opts": options });
        self.call("VolumeDriver.Create", Some(body), LONG).await.map(drop)
    }

    /// Removes one.
    pub async fn remove(&self, volume: &str) -> Result<()> {
        self.about("VolumeDriver.Remove", volume, SHORT).await.map(drop)
    }

    /// What the plug-in says of one.
    pub async fn inspect(&self, volume: &str) -> Result<Remote> {
        let reply = self.about("VolumeDriver.Get", volume, SHORT).await?;
        reply
            .volume
            .ok_or_else(|| Error::not_found(format!("get {volume}: no such volume")))
    }

    /// Mounts one for a user; returns where it is.
    pub async fn mount(&self, volume: &str, id: &str) -> Result<PathBuf> {
        let body = json!({ "Name": volume, "ID": id });
        let reply = self.call("VolumeDriver.Mount", Some(body), LONG).await?;
        let path = PathBuf::from(reply.mountpoint.unwrap_or_default());
        if path.is_absolute() && !path.as_os_str().to_string_lossy().contains('\0') {
            return Ok(path);
        }
        Err(Error::system(format!(
            "VolumeDriver.Mount: the volume plugin {} names {path:?} as the place of volume {volume}, which is no absolute path",
            self.name
        )))
    }

    /// Ends a user's use.
    pub async fn unmount(&self, volume: &str, id: &str) -> Result<()> {
        let body = json!({ "Name": volume, "ID": id });
        self.call("VolumeDriver.Unmount", Some(body), SHORT)
            .await
            .map(drop)
    }

    /// `local`, or `global` when its volumes are those of several hosts. Plug-ins need not say.
    pub async fn scope(&self) -> &'static str {
        if let Some(scope) = self.scope.get() {
            return scope;
        }
        let said = match self.glance("VolumeDriver.Capabilities", None).await {
            Ok(reply) => reply.capabilities.unwrap_or_default().scope.unwrap_or_default(),
            Err(_) if self.is_silent() => return "local",
            // It need not know the question.
            Err(_) => String::new(),
        };
        self.scope
            .get_or_init(|| match said.eq_ignore_ascii_case("global") {
                true => "global",
                false => "local",
            })
    }
}

#[cfg(test)]
mod tests;
