//! Files in and out of containers, as tar archives.

use std::io::Read;

use vessel_api::PathStat;

use crate::request::{Method, Response};
use crate::{Client, Error, Query, Result, encode};

fn stat(response: &Response) -> Result<PathStat> {
    let header = response
        .header("x-docker-container-path-stat")
        .ok_or_else(|| Error::Protocol("it does not say what the path is".into()))?;
    let json =
        decode_base64(header).ok_or_else(|| Error::Protocol("what the path is is not base64".into()))?;
    Ok(serde_json::from_slice(&json)?)
}

impl Client {
    /// `HEAD /containers/{id}/archive`: what a path is.
    pub fn container_stat_path(&self, id: &str, path: &str) -> Result<PathStat> {
        let url = format!("/containers/{}/archive", encode(id));
        match self.request(Method::Head, &url, &Query::new().add("path", path)) {
            Ok(response) => stat(&response),
            // The answer to a HEAD has no body, so no sentence of the daemon's.
            Err(Error::Api { status: 404, .. }) => Err(Error::Api {
                status: 404,
                message: format!("Could not find the file {path} in container {id}"),
            }),
            Err(other) => Err(other),
        }
    }

    /// `GET /containers/{id}/archive`: a tar archive of the path, named by its last component.
    pub fn container_archive(&self, id: &str, path: &str) -> Result<(PathStat, Response)> {
        let url = format!("/containers/{}/archive", encode(id));
        let response = self.request(Method::Get, &url, &Query::new().add("path", path))?;
        Ok((stat(&response)?, response))
    }

    /// `PUT /containers/{id}/archive`: unpacks a tar archive into the directory `path`.
    pub fn container_extract(
        &self,
        id: &str,
        path: &str,
        copy_uid_gid: bool,
        archive: impl Read + Send + 'static,
    ) -> Result<()> {
        let url = format!("/containers/{}/archive", encode(id));
        let query = Query::new()
            .add("path", path)
            .add("noOverwriteDirNonDir", "true")
            .flag("copyUIDGID", copy_uid_gid);
        self.upload(Method::Put, &url, &query, "application/x-tar", archive)?
            .discard()
    }
}

/// Decodes standard base64; `None` when it is none.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64() {
        for (text, expected) in [
            ("", ""),
            ("TQ==", "M"),
            ("TWE=", "Ma"),
            ("TWFu", "Man"),
            ("eyJhIjoxfQ", "{\"a\":1}"),
        ] {
            assert_eq!(decode_base64(text).unwrap(), expected.as_bytes());
        }
        assert_eq!(decode_base64("a b"), None);
    }
}
