//! Files of HTTP servers, for `ADD URL` and contexts: fetched as registries are, with the same proxies and certificates,
//! and no credentials.

use std::io::Write;
use std::path::Path;

use reqwest::header::{CONTENT_LENGTH, LAST_MODIFIED};
use reqwest::{Method, Url};

use super::client::RegistryClient;
use super::transport::{Call, unreachable};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, ErrorKind, Result, show};

/// The largest file that is fetched.
const MAX_FILE: u64 = 64 << 30;

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// The sha256 of its content.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// `Last-Modified`, seconds since 1970.
    pub modified: Option<i64>,
}

impl RegistryClient {
    /// Fetches a file into a new one. `tell` hears how many bytes have come, and of how many (0: not known).
    ///
    /// # Errors
    /// An address that is none, a server that cannot be reached or has no such file; a full disk. A part may remain.
    pub async fn download(
        &self,
        url: &str,
        destination: &Path,
        tell: impl Fn(u64, u64),
    ) -> Result<Downloaded> {
        let address = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        let address = address
            .ok_or_else(|| Error::invalid(format!("{} is not an HTTP address", show(url.as_bytes()))))?;
        let call = Call::new(Method::GET, address.clone());
        let mut response = self.transport.send(&call, None).await?;
        let status = response.status();
        if !status.is_success() {
            let kind = if status.as_u16() == 404 {
                ErrorKind::NotFound
            } else {
                ErrorKind::Input
            };
            return Err(Error::new(
                kind,
                format!("invalid response status {status} for {}", show(url.as_bytes())),
            ));
        }
        let header = |name| response.headers().get(name)?.to_str().ok();
        let modified = header(LAST_MODIFIED).and_then(http_date);
        let total = header(CONTENT_LENGTH)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let fail = |error| Error::io(format!("cannot write {}", destination.display()), error);
        let mut file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .open(destination)
            .map_err(fail)?;
        let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0u64);
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| unreachable(&address, error))?
        {
            size += piece.len() as u64;
            if size > MAX_FILE {
                return Err(Error::limit(format!(
                    "{} is larger than 64 GiB",
                    show(url.as_bytes())
                )));
            }
            hasher.update(&piece);
            file.write_all(&piece).map_err(fail)?;
            tell(size, total);
        }
        Ok(Downloaded {
            digest: hasher.finish(),
            size,
            modified,
        })
    }
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<i64> {
    if let Ok(time) = jiff::fmt::rfc2822::parse(text) {
        return Some(time.timestamp().as_second());
    }
    // The two older forms that RFC 9110 still has: RFC 850's and asctime's, both in UTC.
    [
        "%A, %d-%b-%y %H:%M:%S GMT",
        "%A, %d-%b-%y %H:%M:%S UTC",
        "%a %b %e %H:%M:%S %Y",
    ]
    .into_iter()
    .find_map(|form| jiff::civil::DateTime::strptime(form, text).ok())
    .and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok())
    .map(|time| time.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Sunday, 06-Nov-94 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Sun Nov  6 08:49:37 1994"), Some(784_111_777));
        assert_eq!(http_date("yesterday"), None);
    }

    #[tokio::test]
    async fn files_come_with_digest_and_time() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for answer in [
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nhello",
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            ] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let _read = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let client = RegistryClient::new(Default::default()).unwrap();
        let url = format!("http://127.0.0.1:{port}/file");
        let path = directory.path().join("file");
        let got = client.download(&url, &path, |_, _| {}).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        assert_eq!(
            (got.digest, got.modified),
            (Digest::sha256(b"hello"), Some(784_111_777))
        );
        let missing = client
            .download(&url, &directory.path().join("other"), |_, _| {})
            .await
            .unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        server.join().unwrap();
    }
}
