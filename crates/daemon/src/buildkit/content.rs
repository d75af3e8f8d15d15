//! A content store of the client, such as an OCI layout (`--cache-to type=local`): containerd's content service, called.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use vessel_build::place::{BlobPieces, CachePlace};
use vessel_build::{Error, ErrorKind, Result};
use vessel_filesync::content::{
    InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse, SERVICE, STORE, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use vessel_image::{Descriptor, Digest, MAX_DOCUMENT};

use super::session::put;
use super::sessions::Connected;
use super::transport::{Channel, MAX_MESSAGE};

/// Bytes of a message: below the limit of old clients.
const PIECE: usize = 1 << 20;
/// Messages on their way.
const DEPTH: usize = 4;
/// How long a client may say nothing when it is asked for something: others may wait for the same.
const IDLE: Duration = Duration::from_secs(60);

/// A store of a client.
pub struct Content {
    connected: Arc<Connected>,
    store: String,
    manifest: Option<Digest>,
}

fn path(method: &str) -> Result<PathAndQuery> {
    PathAndQuery::try_from(format!("/{SERVICE}/{method}"))
        .map_err(|error| Error::with_source(ErrorKind::System, "no such method", error))
}

/// Waits for a client's answer, but not for ever.
async fn answered<T>(
    answer: impl Future<Output = std::result::Result<T, Status>>,
) -> std::result::Result<T, Status> {
    match tokio::time::timeout(IDLE, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let said = format!("the client has not answered for {} seconds", IDLE.as_secs());
            Err(Status::deadline_exceeded(said))
        }
    }
}

impl Content {
    /// A store by its name. `manifest`: the one it stands for.
    ///
    /// # Errors
    /// The client has no stores.
    pub fn new(connected: Arc<Connected>, store: &str, manifest: Option<&Digest>) -> Result<Self> {
        if !connected.supports(&format!("/{SERVICE}/Info")) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the client offers no content store {store:?}"),
            ));
        }
        Ok(Self {
            connected,
            store: store.to_owned(),
            manifest: manifest.cloned(),
        })
    }

    fn failed(&self, status: &Status) -> Error {
        let kind = match status.code() {
            Code::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Remote,
        };
        let said = match status.message() {
            "" => "the client is gone",
            said => said,
        };
        Error::new(kind, format!("the client's store {}: {said}", self.store))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        put(request.metadata_mut(), STORE, std::slice::from_ref(&self.store));
        request
    }

    async fn client(&self) -> Result<Grpc<Channel>> {
        let mut client = Grpc::with_origin(self.connected.channel.clone(), Channel::origin())
            .max_decoding_message_size(MAX_MESSAGE);
        let ready = client.ready().await;
        ready.map_err(|error| {
            Error::with_source(ErrorKind::Remote, "the client does not answer any more", error)
        })?;
        Ok(client)
    }

    async fn unary<Q, A>(&self, method: &str, message: Q) -> Result<std::result::Result<A, Status>>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client().await?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = answered(client.unary(self.request(message), path(method)?, codec)).await;
        Ok(answer.map(tonic::Response::into_inner))
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let request = InfoRequest {
            digest: digest.to_string(),
        };
        match self.unary::<_, InfoResponse>("Info", request).await? {
            Ok(answer) => {
                let size = answer.info.map(|info| info.size);
                Ok(size.and_then(|size| u64::try_from(size).ok()))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed(&status)),
        }
    }

    async fn open(&self, digest: &Digest) -> Result<Streaming<ReadContentResponse>> {
        let request = self.request(ReadContentRequest {
            digest: digest.to_string(),
            ..ReadContentRequest::default()
        });
        let codec = ProstCodec::<ReadContentRequest, ReadContentResponse>::default();
        let mut client = self.client().await?;
        let answer = answered(client.server_streaming(request, path("Read")?, codec)).await;
        Ok(answer.map_err(|status| self.failed(&status))?.into_inner())
    }

    fn piece(
        &self,
        blob: &Descriptor,
        action: WriteAction,
        offset: u64,
        data: Vec<u8>,
    ) -> WriteContentRequest {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        WriteContentRequest {
            action: action.into(),
            r#ref: format!("vessel-{}", blob.digest),
            total: number(blob.size),
            expected: blob.digest.to_string(),
            offset: number(offset),
            data,
        }
    }

    /// Reads all of a blob into messages, until all of them are sent or nobody takes them any more.
    async fn feed(
        &self,
        blob: &Descriptor,
        mut from: impl AsyncRead + Unpin,
        sender: mpsc::Sender<WriteContentRequest>,
    ) -> std::io::Result<()> {
        let mut offset = 0;
        loop {
            let mut data = Vec::with_capacity(PIECE);
            (&mut from).take(PIECE as u64).read_to_end(&mut data).await?;
            let (action, count) = match data.len() {
                0 => (WriteAction::Commit, 0),
                count => (WriteAction::Write, count as u64),
            };
            let piece = self.piece(blob, action, offset, data);
            offset += count;
            if sender.send(piece).await.is_err() || action == WriteAction::Commit {
                return Ok(());
            }
        }
    }

    /// Sends a blob, unless it is there.
    async fn send(&self, blob: &Descriptor, from: impl AsyncRead + Unpin + Send) -> Result<()> {
        if self.has(blob).await? {
            return Ok(());
        }
        let (sender, receiver) = mpsc::channel(DEPTH);
        let requests = stream::unfold(receiver, |mut receiver| async move {
            let piece: WriteContentRequest = receiver.recv().await?;
            Some((piece, receiver))
        });
        let call = async {
            let codec = ProstCodec::<WriteContentRequest, WriteContentResponse>::default();
            let mut client = self.client().await?;
            let answer = client
                .streaming(self.request(requests), path("Write")?, codec)
                .await;
            let mut answers = match answer {
                Ok(answers) => answers.into_inner(),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
                Err(status) => return Err(self.failed(&status)),
            };
            loop {
                match answers.message().await {
                    Ok(Some(answer)) if answer.action == i32::from(WriteAction::Commit) => return Ok(()),
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        return Err(Error::new(
                            ErrorKind::Remote,
                            format!(
                                "the client's store {} does not keep the blob {}",
                                self.store, blob.digest
                            ),
                        ));
                    }
                    Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
                    Err(status) => return Err(self.failed(&status)),
                }
            }
        };
        let (called, fed) = tokio::join!(call, self.feed(blob, from, sender));
        fed.map_err(|error| {
            Error::with_source(
                ErrorKind::System,
                "cannot read what is to be sent to the client",
                error,
            )
        })?;
        called
    }
}

#[async_trait::async_trait]
impl CachePlace for Content {
    async fn manifest(&self, digest: Option<&Digest>) -> Result<Vec<u8>> {
        let digest = digest.or(self.manifest.as_ref()).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "the client does not say which manifest of {} is meant",
                    self.store
                ),
            )
        })?;
        let mut raw = Vec::new();
        let mut pieces = self.open(digest).await?;
        while let Some(piece) = answered(pieces.message())
            .await
            .map_err(|status| self.failed(&status))?
        {
            raw.extend_from_slice(&piece.data);
            if raw.len() > MAX_DOCUMENT {
                break;
            }
        }
        if raw.len() > MAX_DOCUMENT || !digest.verify(&raw) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the client's store {} has something else than {digest}",
                    self.store
                ),
            ));
        }
        Ok(raw)
    }

    async fn has(&self, blob: &Descriptor) -> Result<bool> {
        Ok(self.size(&blob.digest).await? == Some(blob.size))
    }

    async fn read(&self, blob: &Descriptor) -> Result<Box<dyn BlobPieces>> {
        Ok(Box::new(Pieces {
            pieces: self.open(&blob.digest).await?,
            store: self.store.clone(),
        }))
    }

    async fn write(&self, blob: &Descriptor, file: &Path) -> Result<()> {
        let file = tokio::fs::File::open(file).await.map_err(|error| {
            Error::with_source(
                ErrorKind::System,
                "cannot read what is to be sent to the client",
                error,
            )
        })?;
        self.send(blob, file).await
    }

    async fn put_manifest(&self, media_type: &str, raw: &[u8]) -> Result<()> {
        let blob = Descriptor::new(media_type, Digest::sha256(raw), raw.len() as u64);
        self.send(&blob, raw).await
    }
}

struct Pieces {
    pieces: Streaming<ReadContentResponse>,
    store: String,
}

#[async_trait::async_trait]
impl BlobPieces for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = answered(self.pieces.message()).await.map_err(|status| {
            Error::new(
                ErrorKind::Remote,
                format!("the client's store {}: {}", self.store, status.message()),
            )
        })?;
        Ok(piece.map(|piece| piece.data))
    }
}
