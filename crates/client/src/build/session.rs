//! What the daemon may ask of this side while it builds.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bollard_buildkit_proto::health::health_check_response::ServingStatus;
use bollard_buildkit_proto::health::health_server::{Health, HealthServer};
use bollard_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::{Secrets, SecretsServer};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use bollard_buildkit_proto::moby::filesync::packet::file_send_server::{
    FileSend as DirectorySend, FileSendServer as DirectorySendServer,
};
use bollard_buildkit_proto::moby::filesync::v1 as api;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::{Auth, AuthServer};
use bollard_buildkit_proto::moby::filesync::v1::file_send_server::{FileSend, FileSendServer};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::{FileSync, FileSyncServer};
use bollard_buildkit_proto::moby::sshforward::v1 as ssh;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::{Ssh, SshServer};
use bollard_buildkit_proto::moby::upload::v1 as upload;
use bollard_buildkit_proto::moby::upload::v1::upload_server::{Upload, UploadServer};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::codegen::http::{HeaderMap, Response as HttpResponse};
use tonic::codegen::tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tower::Service;
use vessel_filesync::{Owner, Packet, ReceiveOptions, SendOptions};

use super::filter::Patterns;
use super::transport::MAX_MESSAGE;
use super::{Build, Lookup, SecretSource, Sink};
use crate::Error;

/// What is answered, for the daemon to know.
pub const METHODS: &[&str] = &[
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/moby.upload.v1.Upload/Pull",
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/Read",
    "/containerd.services.content.v1.Content/Write",
];

/// The most bytes a secret may have, as in BuildKit.
const MAX_SECRET: u64 = 500 << 10;
const EXPORTER: &str = "buildkit-attachable-exporter-id";
const PACKETS: usize = 256;
/// Batches of packets on their way to the connection.
const BATCHES: usize = 8;
/// Pieces of an archive.
const PIECE: usize = 128 * 1024;

pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Offer {
    directories: BTreeMap<String, PathBuf>,
    destinations: BTreeMap<String, PathBuf>,
    stores: BTreeMap<String, PathBuf>,
    sinks: Mutex<HashMap<String, File>>,
    secrets: BTreeMap<String, SecretSource>,
    agents: BTreeMap<String, PathBuf>,
    uploads: Mutex<BTreeMap<String, Box<dyn Read + Send>>>,
    credentials: Option<Lookup>,
    /// The first thing that went wrong on this side.
    mishap: Mutex<Option<Error>>,
}

/// The services of one build.
#[derive(Clone)]
pub struct Services(Arc<Offer>);

impl Services {
    /// Those that a build offers.
    pub fn new(build: Build) -> Self {
        let mut destinations = BTreeMap::new();
        let mut sinks = HashMap::new();
        for (index, output) in build.outputs.into_iter().enumerate() {
            match output.sink {
                Sink::None => {}
                Sink::File(file) => drop(sinks.insert(index.to_string(), file)),
                Sink::Directory(path) => drop(destinations.insert(index.to_string(), path)),
            }
        }
        Self(Arc::new(Offer {
            directories: build.directories,
            destinations,
            stores: build.stores,
            sinks: Mutex::new(sinks),
            secrets: build.secrets,
            agents: build.agents,
            uploads: Mutex::new(build.uploads),
            credentials: build.credentials,
            mishap: Mutex::new(None),
        }))
    }

    /// The layout that a content store's name stands for.
    pub fn store(&self, name: &str) -> Option<PathBuf> {
        self.0.stores.get(name).cloned()
    }

    /// What went wrong on this side, if anything did.
    pub fn mishap(&self) -> Option<Error> {
        self.0
            .mishap
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Keeps what went wrong, and says it to the daemon.
    fn wrong(&self, error: Error) -> Status {
        let status = Status::unknown(error.to_string());
        self.0
            .mishap
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        status
    }
}

fn text<'a>(metadata: &'a MetadataMap, name: &str) -> &'a str {
    metadata
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// All values of a header, decoded when they are said to be encoded.
pub fn texts(metadata: &MetadataMap, name: &str) -> Vec<String> {
    let encoded = matches!(text(metadata, &format!("{name}-encoded")), "1" | "true");
    metadata
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(|value| {
            if encoded {
                unescape(value)
            } else {
                value.to_owned()
            }
        })
        .collect()
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digit = |offset: usize| bytes.get(at + offset).and_then(|c| char::from(*c).to_digit(16));
        match (byte, digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (other, ..) => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn answers<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> Answers<T> {
    Box::pin(Receiver(receiver))
}

/// A channel's end as a stream.
struct Receiver<T>(mpsc::Receiver<T>);

impl<T> Stream for Receiver<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|item| item.map(Ok))
    }
}

/// Packets that come several at a time, so that several go into one write.
struct Batches {
    receiver: mpsc::Receiver<Vec<Packet>>,
    batch: std::vec::IntoIter<Packet>,
}

impl Stream for Batches {
    type Item = Result<Packet, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(packet) = self.batch.next() {
                return Poll::Ready(Some(Ok(packet)));
            }
            match std::task::ready!(self.receiver.poll_recv(cx)) {
                Some(batch) => self.batch = batch.into_iter(),
                None => return Poll::Ready(None),
            }
        }
    }
}

#[tonic::async_trait]
impl FileSync for Services {
    type DiffCopyStream = Answers<Packet>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let metadata = request.metadata();
        let name = texts(metadata, "dir-name").into_iter().next().unwrap_or_default();
        let root = self
            .0
            .directories
            .get(&name)
            .ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let patterns = Patterns::new(
            root,
            &texts(metadata, "include-patterns"),
            &texts(metadata, "exclude-patterns"),
            &texts(metadata, "followpaths"),
        );
        let mut patterns = patterns.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let directory = File::open(root).map_err(|source| {
            self.wrong(Error::Build(Box::new(super::BuildFailure {
                message: format!("cannot open {}: {source}", root.display()),
                excerpt: None,
                cancelled: false,
            })))
        })?;
        let (out, packets) = mpsc::channel(BATCHES);
        let (requests, mut wanted) = mpsc::unbounded_channel();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(packet)) = incoming.message().await {
                if requests.send(packet).is_err() {
                    break;
                }
            }
        });
        let services = self.clone();
        std::thread::spawn(move || {
            let options = SendOptions {
                owner: Owner::Root,
                prefix: String::new(),
                latest: None,
            };
            let sent = vessel_filesync::send(directory.as_fd(), &mut patterns, &options, &mut wanted, &out);
            if let Err(error) = sent {
                // The daemon says it with its own words around.
                let _ = out.blocking_send(vec![vessel_filesync::failure(&error)]);
                if matches!(
                    error,
                    vessel_filesync::Error::Io { .. } | vessel_filesync::Error::Name(_)
                ) {
                    services.wrong(Error::Build(Box::new(super::BuildFailure {
                        message: error.to_string(),
                        excerpt: None,
                        cancelled: false,
                    })));
                }
            }
        });
        Ok(Response::new(Box::pin(Batches {
            receiver: packets,
            batch: Vec::new().into_iter(),
        })))
    }

    type TarStreamStream = Answers<Packet>;

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("directories are sent by DiffCopy"))
    }
}

/// Results that come as one stream of bytes.
#[tonic::async_trait]
impl FileSend for Services {
    type DiffCopyStream = Answers<api::BytesMessage>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<api::BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let name = text(request.metadata(), EXPORTER).to_owned();
        let file = self
            .0
            .sinks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&name);
        let mut file = file.ok_or_else(|| Status::not_found(format!("exporter {name:?} not found")))?;
        let mut incoming = request.into_inner();
        while let Some(message) = incoming.message().await? {
            file.write_all(&message.data)
                .map_err(|source| self.wrong(Error::io("writing the result")(source)))?;
        }
        Ok(Response::new(Box::pin(tonic::codegen::tokio_stream::empty())))
    }
}

/// Results that come as a tree of files.
#[tonic::async_trait]
impl DirectorySend for Services {
    type DiffCopyStream = Answers<Packet>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let name = text(request.metadata(), EXPORTER).to_owned();
        let path = self
            .0
            .destinations
            .get(&name)
            .ok_or_else(|| Status::not_found(format!("exporter {name:?} not found")))?;
        let opened = std::fs::create_dir_all(path).and_then(|()| File::open(path));
        let directory =
            opened.map_err(|source| self.wrong(Error::io("making the directory for the result")(source)))?;
        let (out, mut requests) = mpsc::unbounded_channel();
        let (sender, mut packets) = mpsc::channel(PACKETS);
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(packet)) = incoming.message().await {
                if sender.send(packet).await.is_err() {
                    break;
                }
            }
        });
        let (answer, answered) = mpsc::channel(PACKETS);
        tokio::spawn(async move {
            while let Some(packet) = requests.recv().await {
                if answer.send(packet).await.is_err() {
                    break;
                }
            }
        });
        let services = self.clone();
        std::thread::spawn(move || {
            let options = ReceiveOptions {
                mirror: false,
                owner: Some((
                    rustix::process::geteuid().as_raw(),
                    rustix::process::getegid().as_raw(),
                )),
            };
            let received =
                vessel_filesync::receive(directory.as_fd(), options, &mut packets, &out, &mut |_| {});
            if let Err(error) = received {
                let _ = out.send(vessel_filesync::failure(&error));
                services.wrong(Error::Build(Box::new(super::BuildFailure {
                    message: format!("cannot write the result: {error}"),
                    excerpt: None,
                    cancelled: false,
                })));
            }
        });
        Ok(Response::new(answers(answered)))
    }
}

#[tonic::async_trait]
impl Auth for Services {
    async fn credentials(
        &self,
        request: Request<api::CredentialsRequest>,
    ) -> Result<Response<api::CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let found = self.0.credentials.as_ref().and_then(|lookup| lookup(&host));
        let (username, secret) = found.unwrap_or_default();
        Ok(Response::new(api::CredentialsResponse { username, secret }))
    }

    async fn fetch_token(
        &self,
        _: Request<api::FetchTokenRequest>,
    ) -> Result<Response<api::FetchTokenResponse>, Status> {
        Err(Status::unimplemented("the daemon fetches its tokens itself"))
    }

    async fn get_token_authority(
        &self,
        _: Request<api::GetTokenAuthorityRequest>,
    ) -> Result<Response<api::GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("the daemon fetches its tokens itself"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<api::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<api::VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("the daemon fetches its tokens itself"))
    }
}

#[tonic::async_trait]
impl Secrets for Services {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let data = match self.0.secrets.get(&id) {
            None => return Err(Status::not_found(format!("secret {id}: not found"))),
            Some(SecretSource::Value(value)) => value.clone(),
            Some(SecretSource::File(path)) => {
                let mut data = Vec::new();
                let read = File::open(path).and_then(|file| file.take(MAX_SECRET + 1).read_to_end(&mut data));
                if let Err(source) = read {
                    return Err(Status::unknown(format!(
                        "cannot read the secret {id}: {}: {source}",
                        path.display()
                    )));
                }
                data
            }
        };
        if data.len() as u64 > MAX_SECRET {
            return Err(Status::invalid_argument(format!(
                "the secret {id} has more than {MAX_SECRET} bytes, the most a secret may have"
            )));
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}

impl Services {
    fn agent(&self, id: &str) -> Result<PathBuf, Status> {
        let id = if id.is_empty() { "default" } else { id };
        self.0
            .agents
            .get(id)
            .cloned()
            .ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for Services {
    async fn check_agent(
        &self,
        request: Request<ssh::CheckAgentRequest>,
    ) -> Result<Response<ssh::CheckAgentResponse>, Status> {
        self.agent(&request.into_inner().id)?;
        Ok(Response::new(ssh::CheckAgentResponse {}))
    }

    type ForwardAgentStream = Answers<ssh::BytesMessage>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<ssh::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let path = self.agent(text(request.metadata(), "buildkit.ssh.id"))?;
        let agent = UnixStream::connect(&path).await.map_err(|error| {
            Status::unavailable(format!(
                "cannot reach the SSH agent at {}: {error}",
                path.display()
            ))
        })?;
        let (mut read, mut write) = agent.into_split();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if write.write_all(&message.data).await.is_err() {
                    break;
                }
            }
        });
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(count @ 1..) = read.read(&mut buffer).await {
                let data = buffer.get(..count).unwrap_or_default().to_vec();
                if sender.send(ssh::BytesMessage { data }).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(answers(receiver)))
    }
}

#[tonic::async_trait]
impl Upload for Services {
    type PullStream = Answers<upload::BytesMessage>;

    async fn pull(
        &self,
        request: Request<Streaming<upload::BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let path = text(request.metadata(), "urlpath");
        let name = path.rsplit('/').next().unwrap_or_default();
        let archive = self
            .0
            .uploads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        let mut archive = archive.ok_or_else(|| Status::not_found(format!("no such upload {name:?}")))?;
        let (sender, pieces) = mpsc::channel(4);
        let services = self.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; PIECE];
            loop {
                match archive.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => {
                        let data = buffer.get(..count).unwrap_or_default().to_vec();
                        if sender.blocking_send(Ok(upload::BytesMessage { data })).is_err() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        let _ = sender.blocking_send(Err(services.wrong(Error::Upload(error))));
                        break;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(Pieces(pieces))))
    }
}

/// The pieces of an archive, or why there are no more.
struct Pieces(mpsc::Receiver<Result<upload::BytesMessage, Status>>);

impl Stream for Pieces {
    type Item = Result<upload::BytesMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

#[tonic::async_trait]
impl Health for Services {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(serving()))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = [(String::new(), serving())].into();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Answers<HealthCheckResponse>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("ask with Check"))
    }
}

fn serving() -> HealthCheckResponse {
    HealthCheckResponse {
        status: ServingStatus::Serving.into(),
    }
}

impl Services {
    /// Whether a result comes as files; otherwise it comes as bytes, over the same method.
    fn takes_files(&self, headers: &HeaderMap) -> bool {
        let name = headers.get(EXPORTER).and_then(|value| value.to_str().ok());
        name.is_some_and(|name| self.0.destinations.contains_key(name))
    }
}

impl hyper::service::Service<hyper::Request<Incoming>> for Services {
    type Response = HttpResponse<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        let services = self.clone();
        let path = request.uri().path();
        let name = path
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        match name.as_str() {
            "moby.filesync.v1.FileSync" => FileSyncServer::new(services)
                .max_decoding_message_size(MAX_MESSAGE)
                .call(request),
            "moby.filesync.v1.FileSend" if self.takes_files(request.headers()) => {
                DirectorySendServer::new(services)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .call(request)
            }
            "moby.filesync.v1.FileSend" => FileSendServer::new(services)
                .max_decoding_message_size(MAX_MESSAGE)
                .call(request),
            "moby.filesync.v1.Auth" => AuthServer::new(services).call(request),
            "moby.buildkit.secrets.v1.Secrets" => SecretsServer::new(services).call(request),
            "moby.sshforward.v1.SSH" => SshServer::new(services)
                .max_decoding_message_size(MAX_MESSAGE)
                .call(request),
            vessel_filesync::content::SERVICE => super::content::serve(services, request),
            "moby.upload.v1.Upload" => UploadServer::new(services).call(request),
            "grpc.health.v1.Health" => HealthServer::new(services).call(request),
            _ => Box::pin(
                async move { Ok(Status::unimplemented(format!("{name} is not offered")).into_http()) },
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_header_panics(text in "[ -~]{0,40}") {
            let _ = unescape(&text);
        }
    }

    #[test]
    fn encoded_headers() {
        assert_eq!(unescape("a%C3%A9+b%"), "aé b%");
    }
}
