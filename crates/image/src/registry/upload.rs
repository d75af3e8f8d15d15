//! Sending blobs: known ones in one piece, layers as a stream whose digest is known at its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::LOCATION;
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::{mpsc, oneshot};

use super::push::PushStyle;
use super::repository::{Access, Repository};
use super::transport::{Call, complaint, is_connection, is_passing, wanted_pause};
use crate::digest::{Algorithm, ChainId, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Descriptor, media_type};
use crate::{Compression, Store, compress};

/// Pieces between the thread that compresses and the connection.
const DEPTH: usize = 8;

/// What became of the wish to mount a blob from another repository.
#[derive(Debug)]
pub enum Mount {
    /// It is there now.
    Mounted,
    /// The registry wants to have it sent, and has begun an upload for it.
    Upload(Upload),
}

/// An upload that has begun.
#[derive(Debug)]
pub struct Upload {
    pub(super) repository: Repository,
    pub(super) location: Url,
}

impl Repository {
    /// Sends a small blob unless the registry has it.
    pub async fn put_blob(&self, bytes: &[u8], digest: &Digest) -> Result<()> {
        if self.blob_size(digest, Access::Push).await?.is_some() {
            return Ok(());
        }
        let upload = self.begin_upload(None).await?;
        upload.finish(bytes.to_vec(), digest).await
    }

    /// Mounts a blob of another repository of the same registry.
    pub async fn mount(&self, digest: &Digest, from: &str) -> Result<Mount> {
        let mut url = self.url("blobs/uploads/")?;
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from);
        let scope = format!("{} repository:{from}:pull", self.scope(Access::Push));
        let response = match self.send(&Call::new(Method::POST, url.clone()), &scope).await {
            Ok(response)
                if !matches!(
                    response.status(),
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                ) =>
            {
                response
            }
            // One may write here and not read there: then it is sent.
            Ok(_) => return self.begin_upload(None).await.map(Mount::Upload),
            Err(error) if matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Permission) => {
                return self.begin_upload(None).await.map(Mount::Upload);
            }
            Err(error) => return Err(error),
        };
        match response.status() {
            StatusCode::CREATED => Ok(Mount::Mounted),
            StatusCode::ACCEPTED => Ok(Mount::Upload(Upload {
                location: location(&url, &response)?,
                repository: self.clone(),
            })),
            _ => Err(complaint(response, "cannot begin an upload").await),
        }
    }

    /// Begins an upload.
    pub(super) async fn begin_upload(&self, from: Option<Upload>) -> Result<Upload> {
        if let Some(upload) = from {
            return Ok(upload);
        }
        let url = self.url("blobs/uploads/")?;
        let response = self
            .send(&Call::new(Method::POST, url.clone()), &self.scope(Access::Push))
            .await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(complaint(response, "cannot begin an upload").await);
        }
        Ok(Upload {
            location: location(&url, &response)?,
            repository: self.clone(),
        })
    }

    /// Compresses a layer of the store and sends it; gives the blob's descriptor. `begun` is an upload to use. `passed` is
    /// told how many bytes of the layer's archive have been read.
    pub(super) async fn put_layer(
        &self,
        store: &Store,
        chain: &ChainId,
        style: &PushStyle,
        mut begun: Option<Upload>,
        passed: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Descriptor> {
        let mut attempt = 0;
        loop {
            let upload = self.begin_upload(begun.take()).await?;
            let (error, asked) = match upload.stream_layer(store, chain, style, passed).await {
                Ok(descriptor) => return Ok(descriptor),
                Err(failed) => failed,
            };
            // What was sent is the registry's to forget; the archive is compressed again, to the same bytes.
            let passing = error.kind() == ErrorKind::Unavailable || is_connection(&error);
            let pause = self.inner.transport.pause(attempt, asked).filter(|_| passing);
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(layer = %chain, "sending again in {pause:?}: {error}");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }
}

type Failed = (Error, Option<std::time::Duration>);

impl Upload {
    async fn stream_layer(
        self,
        store: &Store,
        chain: &ChainId,
        style: &PushStyle,
        passed: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Descriptor, Failed> {
        let fail = |error| (error, None);
        let archive = store.layer_archive(chain).map_err(fail)?;
        let (pieces, receiver) = mpsc::channel::<std::io::Result<Bytes>>(DEPTH);
        let (done, outcome) = oneshot::channel();
        let read = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&read);
        let (how, level) = (style.compression.unwrap_or(Compression::Gzip), style.level);
        std::thread::Builder::new()
            .name("push".into())
            .spawn(move || {
                let mut hasher = Hasher::new(Algorithm::Sha256);
                let mut size = 0;
                let input = Counting(archive, counter);
                let result = compress(input, how, level, &mut |piece| {
                    hasher.update(&piece);
                    size += piece.len() as u64;
                    let gone =
                        |_| std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the upload has ended");
                    pieces.blocking_send(Ok(piece.into())).map_err(gone)
                });
                if let Err(error) = &result {
                    // A body that ends well would be taken for all of it.
                    let _ = pieces.blocking_send(Err(std::io::Error::other(error.to_string())));
                }
                let _ = done.send(result.map(|()| (hasher.finish(), size)));
            })
            .map_err(|e| fail(Error::io("cannot start a thread to compress a layer", e)))?;
        // The connection keeps a body for a while after the request was given up.
        let receiver = Arc::new(Mutex::new(receiver));
        let taken = Arc::clone(&receiver);
        let body =
            stream::poll_fn(move |cx| taken.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(cx));
        let call = Call::new(Method::PATCH, self.location.clone())
            .header("content-type", "application/octet-stream")
            .map_err(fail)?;
        let scope = self.repository.scope(Access::Push);
        let sending = self.repository.send_stream(&call, &scope, body);
        tokio::pin!(sending);
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(100));
        let response = loop {
            tokio::select! {
                response = &mut sending => break response,
                _ = ticks.tick() => passed(read.load(Ordering::Relaxed)),
            }
        };
        receiver.lock().unwrap_or_else(PoisonError::into_inner).close();
        // A layer that cannot be read explains a request that broke off.
        let made = outcome.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Io,
                "a thread that compresses a layer has died",
            ))
        });
        let response = match (response, made.as_ref().err()) {
            (Ok(response), _) if !response.status().is_success() => {
                let asked = wanted_pause(&response);
                let status = response.status();
                let error = complaint(response, "cannot send a layer").await;
                // A token may have ended meanwhile; the next try has a new one.
                let again = is_passing(status) || status == StatusCode::UNAUTHORIZED;
                return Err((if again { as_passing(error) } else { error }, asked));
            }
            (Ok(response), None) => response,
            (Err(error), None) => return Err(fail(error)),
            (Err(error), Some(_))
                if is_connection(&error) && matches!(&made, Err(e) if e.kind() == ErrorKind::Input) =>
            {
                return Err(fail(error));
            }
            (_, Some(_)) => match made {
                Err(error) => return Err(fail(error)),
                Ok(_) => return Err(fail(Error::new(ErrorKind::Io, "a layer could not be sent"))),
            },
        };
        let (digest, size) = made.map_err(fail)?;
        passed(read.load(Ordering::Relaxed));
        let upload = Upload {
            location: location(&self.location, &response).map_err(fail)?,
            repository: self.repository.clone(),
        };
        upload.finish(Vec::new(), &digest).await.map_err(fail)?;
        let kind = match how {
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
            Compression::None => media_type::DOCKER_LAYER,
            _ => media_type::DOCKER_LAYER_GZIP,
        };
        Ok(Descriptor::new(kind, digest, size))
    }

    /// Sends the last bytes, or all of them, and says what their digest is.
    pub(super) async fn finish(self, bytes: Vec<u8>, digest: &Digest) -> Result<()> {
        let mut url = self.location;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut call = Call::new(Method::PUT, url)
            .header("content-type", "application/octet-stream")?
            .header("content-length", &bytes.len().to_string())?;
        call.body = bytes;
        let response = self
            .repository
            .send(&call, &self.repository.scope(Access::Push))
            .await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            // Another try of the same request came too late: the first one was heard.
            StatusCode::NOT_FOUND if self.repository.blob_size(digest, Access::Push).await?.is_some() => {
                Ok(())
            }
            _ => Err(complaint(response, "cannot complete an upload").await),
        }
    }
}

fn as_passing(error: Error) -> Error {
    Error::new(ErrorKind::Unavailable, error.to_string())
}

/// Where an upload goes on.
pub(super) fn location(from: &Url, response: &Response) -> Result<Url> {
    let bad = || {
        Error::new(
            ErrorKind::Unavailable,
            "the registry does not say where an upload goes on",
        )
    };
    let location = response.headers().get(LOCATION).ok_or_else(bad)?;
    let location = from
        .join(location.to_str().map_err(|_| bad())?)
        .map_err(|_| bad())?;
    match (from.scheme(), location.scheme()) {
        (_, "https") | ("http", "http") => Ok(location),
        _ => Err(Error::new(
            ErrorKind::Unavailable,
            "the registry wants an upload to go on without TLS, which is refused",
        )),
    }
}

/// Counts what is read.
struct Counting<R>(R, Arc<AtomicU64>);

impl<R: std::io::Read> std::io::Read for Counting<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(out)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
