//! Sending a blob that lies in a file.

use std::path::Path;

use bytes::Bytes;
use futures_util::stream;
use reqwest::{Method, StatusCode};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::repository::{Access, Repository};
use super::transport::{Call, complaint, is_connection, is_passing, wanted_pause};
use super::upload::{Upload, location};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Descriptor;

/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// Pieces between the file and the connection.
const DEPTH: usize = 8;

impl Repository {
    /// Sends a blob of which a file is the content, unless the registry has it.
    ///
    /// # Errors
    /// A file that cannot be read; a registry that refuses or keeps failing.
    pub async fn put_file(&self, path: &Path, descriptor: &Descriptor) -> Result<()> {
        if self.blob_size(&descriptor.digest, Access::Push).await?.is_some() {
            return Ok(());
        }
        let mut attempt = 0;
        loop {
            let upload = self.begin_upload(None).await?;
            let (error, asked) = match upload.send_file(path, descriptor).await {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            let passing = error.kind() == ErrorKind::Unavailable || is_connection(&error);
            let pause = self.inner.transport.pause(attempt, asked).filter(|_| passing);
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(digest = %descriptor.digest, "sending again in {pause:?}: {error}");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }
}

impl Upload {
    async fn send_file(
        self,
        path: &Path,
        descriptor: &Descriptor,
    ) -> Result<(), (Error, Option<std::time::Duration>)> {
        let fail = |error| (error, None);
        let mut file = tokio::fs::File::open(path)
            .await
            .map_err(|e| fail(Error::io(format!("cannot open {}", path.display()), e)))?;
        let (pieces, mut receiver) = mpsc::channel(DEPTH);
        // It ends with the file, or when nobody takes its pieces any more.
        tokio::spawn(async move {
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                let piece = match (&mut file).take(PIECE as u64).read_to_end(&mut piece).await {
                    Ok(0) => break,
                    Ok(_) => Ok(Bytes::from(piece)),
                    // A body that ends well would be taken for all of it.
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                if pieces.send(piece).await.is_err() || failed {
                    break;
                }
            }
        });
        let body = stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let call = Call::new(Method::PATCH, self.location.clone())
            .header("content-type", "application/octet-stream")
            .map_err(fail)?;
        let scope = self.repository.scope(Access::Push);
        let response = self
            .repository
            .send_stream(&call, &scope, body)
            .await
            .map_err(fail)?;
        let status = response.status();
        if !status.is_success() {
            let asked = wanted_pause(&response);
            let error = complaint(response, "cannot send a blob").await;
            // A token may have ended meanwhile; the next try has a new one.
            let again = is_passing(status) || status == StatusCode::UNAUTHORIZED;
            let error = match again {
                true => Error::new(ErrorKind::Unavailable, error.to_string()),
                false => error,
            };
            return Err((error, asked));
        }
        let upload = Upload {
            location: location(&self.location, &response).map_err(fail)?,
            repository: self.repository.clone(),
        };
        upload.finish(Vec::new(), &descriptor.digest).await.map_err(fail)
    }
}
