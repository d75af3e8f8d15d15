//! One blob on its way from the other registry: stored once, read by everybody who asked for it meanwhile.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout_at};
use vessel_image::Digest;
use vessel_image::registry::BlobReader;

use super::Proxy;
use crate::error::{Code, Error, Result};
use crate::http::receive::blocking;
use crate::name::Repository;
use crate::storage::Upload;

/// Blobs on their way at once.
const AT_ONCE: usize = 64;
/// How long a client waits until it can be one of them.
const PLACE_TIME: Duration = Duration::from_secs(30);
/// Whose uploads these are.
const OWNER: &str = "this cache";
/// What is written or read at once.
const BATCH: usize = 256 << 10;

/// How far it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Progress {
    /// So many bytes are stored.
    Stored(u64),
    /// All of it, with the right digest.
    Complete(u64),
    /// It broke off.
    Failed(String),
}

/// All blobs on their way.
#[derive(Debug)]
pub(super) struct Fetches {
    running: Arc<Mutex<HashMap<(Repository, Digest), Fetched>>>,
    room: Arc<Semaphore>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self {
            running: Arc::default(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

/// A blob on its way, as who asked for it sees it.
#[derive(Debug, Clone)]
pub(super) enum Fetched {
    /// It is stored.
    Stored {
        file: Arc<File>,
        length: u64,
        progress: watch::Receiver<Progress>,
    },
    /// There is no room for it: it is only passed on.
    Passed {
        pieces: Arc<Mutex<Option<mpsc::Receiver<io::Result<Bytes>>>>>,
        length: u64,
    },
}

impl Proxy {
    /// Begins to fetch a blob, or joins who does.
    pub(super) async fn fetch(self: &Arc<Self>, name: &Repository, digest: &Digest) -> Result<Fetched> {
        let patience = Instant::now() + PLACE_TIME;
        let key = (name.clone(), digest.clone());
        let turn = self.turn(name, &digest.to_string());
        let _turn = turn.lock().await;
        if let Some(running) = self.running().get(&key) {
            return Ok(running.clone());
        }
        // Who was waiting for this turn may find it stored by now.
        if let Ok(content) = self.storage.blob(name, digest) {
            let (_, progress) = watch::channel(Progress::Complete(content.size));
            return Ok(Fetched::Stored {
                file: Arc::new(content.file),
                length: content.size,
                progress,
            });
        }
        let room = Arc::clone(&self.fetches.room);
        let place = timeout_at(patience, room.acquire_owned())
            .await
            .map_err(|_| {
                Error::new(
                    Code::TooManyRequests,
                    format!("{AT_ONCE} blobs are on their way here, which is the limit; try again later"),
                )
            })?
            .map_err(|_| Error::new(Code::Unavailable, "the registry ends"))?;
        let length = self.upstream.blob_size(name, digest).await?;
        let mut source = self.upstream.blob(name, digest, length)?;
        // What cannot be had is known before anything is promised.
        let first = source
            .next()
            .await
            .map_err(|e| self.upstream.no_blob(&e, name, digest))?;
        if !self.storage.usage().has_room(name, length) {
            let (send, receive) = mpsc::channel(2);
            // Its client decides how long it takes, and is counted among the connections.
            drop(place);
            tokio::spawn(async move {
                let mut piece = Ok(first);
                loop {
                    let next = match piece {
                        Ok(Some(piece)) => Ok(piece),
                        Ok(None) => return,
                        Err(error) => Err(io::Error::other(error)),
                    };
                    let failed = next.is_err();
                    if send.send(next).await.is_err() || failed {
                        return;
                    }
                    piece = source.next().await;
                }
            });
            return Ok(Fetched::Passed {
                pieces: Arc::new(Mutex::new(Some(receive))),
                length,
            });
        }
        let (storage, to, algorithm) = (self.storage.clone(), name.clone(), digest.algorithm());
        let (upload, file) = blocking(move || {
            let upload = storage.begin_upload(&to, OWNER, algorithm)?.fleeting();
            let file = upload.reader()?;
            Ok((upload, file))
        })
        .await?;
        let (tell, progress) = watch::channel(Progress::Stored(0));
        let fetched = Fetched::Stored {
            file: Arc::new(file),
            length,
            progress,
        };
        self.running().insert(key.clone(), fetched.clone());
        let proxy = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            let digest = key.1.clone();
            let end = match proxy.store(source, first, upload, &key, &tell).await {
                Ok(size) => Progress::Complete(size),
                Err(error) => {
                    tracing::warn!(%error, name = %key.0, %digest, "a blob cannot be fetched");
                    Progress::Failed(error.to_string())
                }
            };
            proxy.running().remove(&key);
            tell.send_replace(end);
        });
        Ok(fetched)
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<(Repository, Digest), Fetched>> {
        self.fetches
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn store(
        &self,
        source: BlobReader,
        first: Option<Bytes>,
        upload: Upload,
        key: &(Repository, Digest),
        tell: &watch::Sender<Progress>,
    ) -> Result<u64> {
        let mut upload = Some(upload);
        let stored = self.receive(source, first, &mut upload, key, tell).await;
        let Some(upload) = upload else {
            return stored.map(|()| 0);
        };
        let wanted = key.1.clone();
        match stored {
            Ok(()) => blocking(move || upload.commit(&wanted)).await,
            Err(error) => {
                // A cache does not resume: who asks next begins anew.
                let _ = blocking(move || upload.cancel()).await;
                Err(error)
            }
        }
    }

    async fn receive(
        &self,
        mut source: BlobReader,
        first: Option<Bytes>,
        upload: &mut Option<Upload>,
        key: &(Repository, Digest),
        tell: &watch::Sender<Progress>,
    ) -> Result<()> {
        let ended = || Error::new(Code::Unknown, "a thread that stores a blob ended abnormally");
        let mut next = first;
        loop {
            let mut batch = Vec::new();
            let mut size = 0;
            while size < BATCH
                && let Some(piece) = next
            {
                size += piece.len();
                batch.push(piece);
                let more = source.next().await;
                next = more.map_err(|e| self.upstream.no_blob(&e, &key.0, &key.1))?;
            }
            let last = next.is_none();
            let mut taken = upload.take().ok_or_else(ended)?;
            let (taken, written) = tokio::task::spawn_blocking(move || {
                let written = batch.iter().try_for_each(|piece| taken.write(piece));
                (taken, written)
            })
            .await
            .map_err(|_| ended())?;
            let stored = taken.size();
            *upload = Some(taken);
            written?;
            tell.send_replace(Progress::Stored(stored));
            if last {
                return Ok(());
            }
        }
    }
}

impl Fetched {
    /// Its size.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Stored { length, .. } | Self::Passed { length, .. } => *length,
        }
    }

    /// Waits until it is here.
    pub(super) async fn complete(&self) -> Result<()> {
        let Self::Stored { progress, .. } = self else {
            return Err(Error::new(
                Code::Denied,
                "the quota has no room for this blob, and without storing it no part of it can be served",
            ));
        };
        let mut progress = progress.clone();
        let end = progress
            .wait_for(|progress| !matches!(progress, Progress::Stored(_)))
            .await
            .map(|end| end.clone());
        match end {
            Ok(Progress::Complete(_)) => Ok(()),
            Ok(Progress::Failed(why)) => Err(Error::new(Code::Unavailable, why)),
            _ => Err(Error::new(Code::Unavailable, "the blob's way here broke off")),
        }
    }

    /// Its bytes, as they come.
    pub(super) fn follow(self) -> mpsc::Receiver<io::Result<Bytes>> {
        let (send, receive) = mpsc::channel(2);
        let (file, mut progress) = match self {
            Self::Passed { pieces, .. } => {
                let pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner).take();
                return pieces.unwrap_or(receive);
            }
            Self::Stored { file, progress, .. } => (file, progress),
        };
        tokio::spawn(async move {
            let mut at = 0;
            loop {
                let now = progress.borrow_and_update().clone();
                let (end, complete) = match now {
                    // Who has all bytes believes that all is well: the last one waits for the digest.
                    Progress::Stored(stored) => (stored.saturating_sub(1), false),
                    Progress::Complete(size) => (size, true),
                    Progress::Failed(why) => {
                        let _ = send.send(Err(io::Error::other(why))).await;
                        return;
                    }
                };
                while at < end {
                    let length = usize::try_from(end - at).unwrap_or(BATCH).min(BATCH);
                    let file = Arc::clone(&file);
                    let read = tokio::task::spawn_blocking(move || {
                        let mut piece = vec![0; length];
                        file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
                    });
                    let piece = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
                    let failed = piece.is_err();
                    if send.send(piece).await.is_err() || failed {
                        return;
                    }
                    at += length as u64;
                }
                if complete {
                    return;
                }
                if progress.changed().await.is_err() {
                    let _ = send
                        .send(Err(io::Error::other("the blob's way here broke off")))
                        .await;
                    return;
                }
            }
        });
        receive
    }
}
