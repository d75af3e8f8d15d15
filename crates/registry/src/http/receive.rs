//! Bodies that come in.
//!
//! The network is read while the disk is written: one batch is stored by a thread while the next one arrives. No
//! thread is held while a client is slow, and a client that stops sending is given up.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::error::{Code, Error, Result};
use crate::metrics::Counter;
use crate::storage::Upload;

/// A client that sends nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// So much of what is too large anyway is read and dropped.
const DRAIN: usize = 16 << 20;
/// What is stored at once.
const BATCH: usize = 512 << 10;

/// Does what may wait for a disk on a thread that may.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(
            Code::Unknown,
            format!("an operation ended abnormally: {error}"),
        )),
    }
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>> {
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| {
            Error::new(
                Code::BlobUploadInvalid,
                format!("nothing arrived for {} seconds", SILENCE.as_secs()),
            )
        })?;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // Trailers say nothing here.
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
            Some(Err(error)) => {
                return Err(Error::new(
                    Code::BlobUploadInvalid,
                    format!("the connection broke while the body arrived: {error}"),
                ));
            }
        }
    }
}

/// Appends a body to an upload. When it fails, what arrived before is kept.
pub async fn into_upload(mut upload: Upload, mut body: Incoming, received: &Counter) -> Result<Upload> {
    let mut ended = false;
    let mut failure = None;
    let mut batch = Vec::new();
    let mut size = 0;
    // The first is only to have one.
    let mut writing = tokio::spawn(async move { (upload, Ok(())) });
    while !ended {
        match next(&mut body).await {
            Ok(Some(bytes)) => {
                size += bytes.len();
                received.add(bytes.len() as u64);
                batch.push(bytes);
            }
            Ok(None) => ended = true,
            Err(error) => {
                failure = Some(error);
                ended = true;
            }
        }
        if size < BATCH && !ended {
            continue;
        }
        let written;
        (upload, written) = finished(writing).await?;
        written?;
        let full = std::mem::take(&mut batch);
        size = 0;
        writing = tokio::task::spawn_blocking(move || {
            let written = full.iter().try_for_each(|bytes| upload.write(bytes));
            (upload, written)
        });
    }
    let (upload, written) = finished(writing).await?;
    written?;
    failure.map_or(Ok(upload), Err)
}

async fn finished(writing: tokio::task::JoinHandle<(Upload, Result<()>)>) -> Result<(Upload, Result<()>)> {
    writing.await.map_err(|error| {
        Error::new(
            Code::Unknown,
            format!("an upload's thread ended abnormally: {error}"),
        )
    })
}

/// Reads a body that has to fit in memory; `too_large` when it does not.
pub async fn whole(body: &mut Incoming, limit: usize, too_large: fn() -> Error) -> Result<Vec<u8>> {
    use hyper::body::Body as _;
    let mut bytes = Vec::new();
    let announced = body.size_hint().lower();
    let mut over = announced > limit as u64;
    if over && announced > DRAIN as u64 {
        return Err(too_large());
    }
    let mut rest = DRAIN;
    while let Some(piece) = next(body).await? {
        over |= bytes.len() + piece.len() > limit;
        if !over {
            bytes.extend_from_slice(&piece);
            continue;
        }
        // Most clients hear why only when they have said all they have to say.
        bytes = Vec::new();
        rest = rest.saturating_sub(piece.len());
        if rest == 0 {
            break;
        }
    }
    if over { Err(too_large()) } else { Ok(bytes) }
}
