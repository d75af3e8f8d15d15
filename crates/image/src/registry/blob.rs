//! Reading a blob of any size: in pieces, resumed where a connection was cut, never longer than announced.

use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, Response, StatusCode, Url};

use super::headers::content_range;
use super::repository::{Access, Repository};
use super::transport::{Call, complaint, is_connection, is_passing, origin, unreachable, wanted_pause};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Descriptor, media_type};

/// After so many bytes a connection was good for something, and failures are counted anew.
const PROGRESS: u64 = 1 << 20;

/// The bytes of a blob, front to back from some offset.
#[derive(Debug)]
pub struct BlobReader {
    repository: Repository,
    descriptor: Descriptor,
    offset: u64,
    response: Option<Response>,
    /// To be read and dropped: the server does not know ranges.
    skip: u64,
    failures: u32,
    progress: u64,
}

impl Repository {
    /// Reads a blob from an offset. Nothing is sent before the first piece is asked for; the digest is the reader's to
    /// check.
    pub fn blob(&self, descriptor: &Descriptor, offset: u64) -> BlobReader {
        BlobReader {
            repository: self.clone(),
            descriptor: descriptor.clone(),
            offset,
            response: None,
            skip: 0,
            failures: 0,
            progress: 0,
        }
    }
}

impl BlobReader {
    /// The next piece; `None` when all of it was there.
    ///
    /// # Errors
    /// A blob that is longer than announced; a registry that keeps failing.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>> {
        loop {
            if self.response.is_none() {
                if self.offset == self.descriptor.size {
                    return Ok(None);
                }
                match self.open().await {
                    Ok(response) => self.response = Some(response),
                    Err((error, asked)) => {
                        self.pause(error, asked).await?;
                        continue;
                    }
                }
            }
            let Some(response) = &mut self.response else {
                continue;
            };
            match response.chunk().await {
                Ok(Some(mut piece)) => {
                    if self.skip > 0 {
                        let skipped = self.skip.min(piece.len() as u64);
                        self.skip -= skipped;
                        piece = piece.slice(usize::try_from(skipped).unwrap_or(piece.len())..);
                    }
                    if piece.is_empty() {
                        continue;
                    }
                    self.offset += piece.len() as u64;
                    self.progress += piece.len() as u64;
                    if self.offset > self.descriptor.size {
                        return Err(Error::new(
                            ErrorKind::Digest,
                            format!(
                                "the blob {} does not end after the {} bytes it should have",
                                self.descriptor.digest, self.descriptor.size
                            ),
                        ));
                    }
                    if self.progress > PROGRESS {
                        (self.progress, self.failures) = (0, 0);
                    }
                    return Ok(Some(piece));
                }
                Ok(None) if self.offset == self.descriptor.size => {
                    self.response = None;
                    return Ok(None);
                }
                Ok(None) => {
                    let error = Error::new(
                        ErrorKind::Unavailable,
                        format!(
                            "the blob {} ends after {} of {} bytes",
                            self.descriptor.digest, self.offset, self.descriptor.size
                        ),
                    );
                    self.response = None;
                    self.pause(error, None).await?;
                }
                Err(error) => {
                    let error = unreachable(response.url(), error);
                    self.response = None;
                    self.pause(error, None).await?;
                }
            }
        }
    }

    async fn pause(&mut self, error: Error, asked: Option<std::time::Duration>) -> Result<()> {
        if error.kind() != ErrorKind::Unavailable {
            return Err(error);
        }
        let transport = &self.repository.inner.transport;
        let Some(pause) = transport.pause(self.failures, asked) else {
            return Err(error);
        };
        self.failures += 1;
        tracing::debug!(digest = %self.descriptor.digest, offset = self.offset, "resuming in {pause:?}: {error}");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Asks for what is missing. An error comes with the pause that was asked for.
    async fn open(&mut self) -> Result<Response, (Error, Option<std::time::Duration>)> {
        let path = format!("blobs/{}", self.descriptor.digest);
        let url = self.repository.url(&path).map_err(|e| (e, None))?;
        let foreign = self.foreign();
        let mut last = None;
        for place in &foreign {
            // Somebody else's layer is fetched from where its owner has it, showing nothing to anybody.
            match self.get(place, false).await {
                Ok(response) => return Ok(response),
                Err(error) => last = Some(error),
            }
        }
        let own = self.get(&url, true).await;
        own.map_err(|error| last.unwrap_or(error))
    }

    fn foreign(&self) -> Vec<Url> {
        if !media_type::is_foreign(&self.descriptor.media_type) {
            return Vec::new();
        }
        self.descriptor
            .urls
            .iter()
            .flatten()
            .take(8)
            .filter_map(|url| Url::parse(url).ok())
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .collect()
    }

    async fn get(&mut self, url: &Url, own: bool) -> Result<Response, (Error, Option<std::time::Duration>)> {
        let fail = |error| (error, None);
        let mut call = Call::new(Method::GET, url.clone())
            .header("accept-encoding", "identity")
            .map_err(fail)?;
        if self.offset > 0 {
            let range = format!("bytes={}-", self.offset);
            call = call.header("range", &range).map_err(fail)?;
        }
        let response = match own {
            true => {
                let scope = self.repository.scope(Access::Pull);
                self.repository.send(&call, &scope).await
            }
            false => {
                call.foreign = Some(super::transport::authority(&self.repository.inner.base));
                self.repository.inner.transport.send(&call, None).await
            }
        };
        let response = response.map_err(|error| {
            // It was tried again as often as it may be.
            if is_connection(&error) {
                self.failures = u32::MAX;
            }
            (error, None)
        })?;
        let left = self.descriptor.size - self.offset;
        let wrong = |why: String| {
            let message = format!("{} gives {why}", origin(response.url()));
            (Error::new(ErrorKind::Digest, message), None)
        };
        match response.status() {
            StatusCode::OK => {
                self.skip = self.offset;
                match response.content_length() {
                    Some(length) if length != self.descriptor.size => Err(wrong(format!(
                        "{length} bytes for the blob {}, which should have {}",
                        self.descriptor.digest, self.descriptor.size
                    ))),
                    _ => Ok(response),
                }
            }
            StatusCode::PARTIAL_CONTENT => {
                self.skip = 0;
                let range = response
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|value| content_range(value.to_str().ok()?));
                let size = self.descriptor.size;
                let length_fits = response.content_length().is_none_or(|length| length <= left);
                match range {
                    Some((first, _, total))
                        if first == self.offset && total.is_none_or(|total| total == size) && length_fits =>
                    {
                        Ok(response)
                    }
                    _ => Err(wrong(format!(
                        "another part of the blob {} than it was asked for",
                        self.descriptor.digest
                    ))),
                }
            }
            status => {
                let asked = wanted_pause(&response);
                let error = complaint(
                    response,
                    &format!("cannot get the blob {}", self.descriptor.digest),
                )
                .await;
                if is_passing(status) {
                    self.failures = u32::MAX;
                }
                Err((error, asked))
            }
        }
    }
}
