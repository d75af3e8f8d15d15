//! Builds over BuildKit's protocols, with a daemon that has them: Vessel, or dockerd.
//!
//! Two connections are opened at once. On `/grpc` the daemon is told what to build and tells how it gets on; on
//! `/session` it asks for what it needs: files of the context (which are looked at by a walk and read when they are
//! asked for), secrets, SSH agents, credentials, and the places where results go ([`session`]). Everything runs on the
//! calling thread, but for a thread for each tree that is sent.

mod content;
mod failure;
mod filter;
mod follow;
mod session;
mod transport;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1 as api;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;

pub use api::{StatusResponse, UsageRecord, Vertex, VertexLog, VertexStatus, VertexWarning};
pub use bollard_buildkit_proto::google::protobuf::Timestamp;
pub use content::{enter, manifest_of};
pub use failure::{BuildFailure, Excerpt};

use crate::{Client, Error, Result};
use session::Services;
use transport::Channel;

/// How often who shows progress is woken when nothing happens.
const TICK: Duration = Duration::from_millis(100);
/// How long a build that ended may take to tell more.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What is before the path of a layout in the name of its content store.
pub use vessel_filesync::content::LOCAL as STORE_PREFIX;

/// What to build, and what there is for it.
#[derive(Default)]
pub struct Build {
    /// Attributes of BuildKit's Dockerfile front end.
    pub attributes: BTreeMap<String, String>,
    /// What becomes of the result.
    pub outputs: Vec<BuildOutput>,
    /// Where results of earlier builds may be found: type and attributes.
    pub cache_from: Vec<(String, BTreeMap<String, String>)>,
    /// Where results are left for later ones.
    pub cache_to: Vec<(String, BTreeMap<String, String>)>,
    /// What is allowed beyond the default.
    pub entitlements: Vec<String>,
    /// Directories that may be read, by their names in the session.
    pub directories: BTreeMap<String, PathBuf>,
    /// OCI layouts that may be read and written, by the names of their content stores.
    pub stores: BTreeMap<String, PathBuf>,
    /// Secrets by their IDs.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Sockets of SSH agents by their IDs.
    pub agents: BTreeMap<String, PathBuf>,
    /// Archives that the daemon may read once, by the name in `http://buildkit-session/NAME`.
    pub uploads: BTreeMap<String, Box<dyn Read + Send>>,
    /// User name and password for a registry's host; a password without a name is an identity token.
    pub credentials: Option<Lookup>,
    /// Contexts of builds with the same key are the same directory.
    pub shared_key: String,
}

/// Finds the credentials for a registry's host.
pub type Lookup = Arc<dyn Fn(&str) -> Option<(String, String)> + Send + Sync>;

/// One output.
#[derive(Debug)]
pub struct BuildOutput {
    /// `image`, `docker`, `oci`, `tar`, `local`, `cacheonly`.
    pub kind: String,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// Where it goes on this side, if it comes here.
    pub sink: Sink,
}

/// Where an output goes on this side.
#[derive(Debug)]
pub enum Sink {
    /// It stays with the daemon.
    None,
    /// Into a file, as it comes.
    File(File),
    /// Into a directory.
    Directory(PathBuf),
}

/// Where a secret is.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// In a file, which is read when the secret is needed.
    File(PathBuf),
    /// Here.
    Value(Vec<u8>),
}

/// What a build gave back: the daemon's words about the result (`containerimage.digest`, …).
pub type BuildAnswer = HashMap<String, String>;

impl Client {
    /// Builds. `show` is called with what the daemon tells, and with nothing now and then.
    ///
    /// # Errors
    /// [`Error::Build`] when the build failed, others when the daemon cannot be talked to.
    pub fn build(&self, build: Build, show: &mut dyn FnMut(Option<StatusResponse>)) -> Result<BuildAnswer> {
        let id = random_id()?;
        let mut headers = vec![("X-Docker-Expose-Session-Uuid", id.clone())];
        headers.push(("X-Docker-Expose-Session-Sharedkey", build.shared_key.clone()));
        headers.push(("X-Docker-Expose-Session-Name", String::new()));
        for method in session::METHODS {
            headers.push(("X-Docker-Expose-Session-Grpc-Method", (*method).to_owned()));
        }
        // Both requests are under way before either is answered.
        let session = self.begin_upgrade("/session", &headers)?;
        let control = self.begin_upgrade("/grpc", &[])?;
        let (session, control) = (session.hijacked()?, control.hijacked()?);
        let request = api::SolveRequest {
            r#ref: random_id()?,
            session: id,
            frontend: "dockerfile.v0".to_owned(),
            frontend_attrs: build.attributes.clone().into_iter().collect(),
            cache: Some(api::CacheOptions {
                exports: entries(&build.cache_to),
                imports: entries(&build.cache_from),
                ..api::CacheOptions::default()
            }),
            entitlements: build.entitlements.clone(),
            exporter_deprecated: build
                .outputs
                .first()
                .map(|output| output.kind.clone())
                .unwrap_or_default(),
            exporter_attrs_deprecated: build
                .outputs
                .first()
                .map(|output| output.attributes.clone().into_iter().collect())
                .unwrap_or_default(),
            exporters: build
                .outputs
                .iter()
                .map(|output| api::Exporter {
                    r#type: output.kind.clone(),
                    attrs: output.attributes.clone().into_iter().collect(),
                })
                .collect(),
            ..api::SolveRequest::default()
        };
        run(async move {
            let services = Services::new(build);
            let serving = tokio::spawn(transport::serve(session, services.clone()));
            let channel = Channel::open(control).await?;
            let answer = follow(channel, request, show).await;
            serving.abort();
            // The client's own mishap says more than the daemon's echo of it.
            answer.map_err(|error| services.mishap().unwrap_or(error))
        })
    }

    /// The records of the build cache.
    ///
    /// # Errors
    /// The daemon cannot be talked to, or refuses.
    pub fn build_cache(&self, filters: Vec<String>) -> Result<Vec<UsageRecord>> {
        let control = self.begin_upgrade("/grpc", &[])?.hijacked()?;
        run(async move {
            let mut control = control_client(Channel::open(control).await?);
            let request = api::DiskUsageRequest {
                filter: filters,
                ..api::DiskUsageRequest::default()
            };
            let answer = control.disk_usage(request).await.map_err(failure::refused)?;
            Ok(answer.into_inner().record)
        })
    }

    /// Removes records of the build cache and returns them.
    ///
    /// # Errors
    /// The daemon cannot be talked to, or refuses.
    pub fn build_prune(
        &self,
        all: bool,
        keep_bytes: u64,
        unused_for: Duration,
        filters: Vec<String>,
    ) -> Result<Vec<UsageRecord>> {
        let control = self.begin_upgrade("/grpc", &[])?.hijacked()?;
        run(async move {
            let mut control = control_client(Channel::open(control).await?);
            let request = api::PruneRequest {
                filter: filters,
                all,
                keep_duration: i64::try_from(unused_for.as_nanos()).unwrap_or(i64::MAX),
                reserved_space: i64::try_from(keep_bytes).unwrap_or(i64::MAX),
                ..api::PruneRequest::default()
            };
            let mut answer = control
                .prune(request)
                .await
                .map_err(failure::refused)?
                .into_inner();
            let mut records = Vec::new();
            while let Some(record) = answer.message().await.map_err(failure::refused)? {
                records.push(record);
            }
            Ok(records)
        })
    }
}

fn control_client(channel: Channel) -> ControlClient<Channel> {
    ControlClient::with_origin(channel, Channel::origin()).max_decoding_message_size(transport::MAX_MESSAGE)
}

/// Runs a future on this thread.
fn run<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::io("starting a build"))?
        .block_on(future)
}

/// Starts the build and shows how it gets on until it has ended.
async fn follow(
    channel: Channel,
    request: api::SolveRequest,
    show: &mut dyn FnMut(Option<StatusResponse>),
) -> Result<BuildAnswer> {
    let mut control = control_client(channel.clone());
    let reference = request.r#ref.clone();
    let mut solve = tokio::spawn(async move { control.solve(request).await });
    let mut control = control_client(channel);
    let (sender, mut told) = tokio::sync::mpsc::channel(16);
    let listening = tokio::spawn(async move {
        let mut status = control
            .status(api::StatusRequest { r#ref: reference })
            .await?
            .into_inner();
        while let Some(message) = status.message().await? {
            if sender.send(message).await.is_err() {
                break;
            }
        }
        Ok::<(), tonic::Status>(())
    });
    let mut solved = None;
    loop {
        // A build that ended has told everything, or is about to; one that never began tells nothing.
        let patience = if solved.is_some() { LAST_WORDS } else { TICK };
        tokio::select! {
            message = told.recv() => match message {
                Some(message) => show(Some(message)),
                None => break,
            },
            done = &mut solve, if solved.is_none() => solved = Some(done),
            () = tokio::time::sleep(patience) => {
                if solved.is_some() {
                    break;
                }
                show(None);
            }
        }
    }
    let solved = match solved {
        Some(done) => done,
        None => solve.await,
    };
    listening.abort();
    match solved {
        Ok(Ok(answer)) => Ok(answer.into_inner().exporter_response),
        Ok(Err(status)) => Err(failure::failed(status)),
        Err(error) => Err(Error::Protocol(format!("the build ended abnormally: {error}"))),
    }
}

fn entries(given: &[(String, BTreeMap<String, String>)]) -> Vec<api::CacheOptionsEntry> {
    given
        .iter()
        .map(|(kind, attributes)| api::CacheOptionsEntry {
            r#type: kind.clone(),
            attrs: attributes.clone().into_iter().collect(),
        })
        .collect()
}

/// An ID that nobody else has, in letters and digits.
fn random_id() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let mut bytes = [0u8; 25];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Error::io("choosing an ID")(errno.into()))?;
    }
    Ok(bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect())
}
