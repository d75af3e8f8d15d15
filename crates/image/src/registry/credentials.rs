//! What a user shows to a registry. Never printed, never logged.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// The longest header with credentials that is taken.
const MAX_HEADER: usize = 256 << 10;
/// What stands for Docker Hub in `config.json` and in requests.
pub const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The username that marks an identity token, in `docker-credential-*` helpers.
pub const TOKEN_USERNAME: &str = "<token>";

/// Credentials of one registry: `X-Registry-Auth` of the Docker Engine API.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "lowercase")]
pub struct Credentials {
    /// Who.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// With which password.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// Both, as `config.json` has them: `base64(username:password)`.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub auth: String,
    /// The registry.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub serveraddress: String,
    /// A token that is exchanged for others, instead of a password.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub identitytoken: String,
    /// A bearer token to show as it is.
    #[serde(deserialize_with = "text", skip_serializing_if = "String::is_empty")]
    pub registrytoken: String,
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("serveraddress", &self.serveraddress)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// A name and a password.
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: password.into(),
            ..Self::default()
        }
    }

    /// Whether there is nothing to show.
    pub fn is_anonymous(&self) -> bool {
        self.username.is_empty() && self.identitytoken.is_empty() && self.registrytoken.is_empty()
    }

    /// Decodes the header `X-Registry-Auth`: base64 of JSON, with either alphabet, padded or not. An empty header is
    /// anonymous.
    pub fn from_header(value: &str) -> Result<Self> {
        let raw = decode(value)?;
        if raw.is_empty() {
            return Ok(Self::default());
        }
        let mut credentials: Self = serde_json::from_slice(&raw).map_err(|_| bad_header())?;
        credentials.split_auth();
        Ok(credentials)
    }

    /// Encodes the header `X-Registry-Auth`.
    pub fn to_header(&self) -> String {
        let raw = serde_json::to_vec(self).unwrap_or_default();
        base64::engine::general_purpose::URL_SAFE.encode(raw)
    }

    /// Decodes the header `X-Registry-Config` of a build: registries to credentials.
    pub fn map_from_header(value: &str) -> Result<BTreeMap<String, Self>> {
        let raw = decode(value)?;
        if raw.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut map: BTreeMap<String, Self> = serde_json::from_slice(&raw).map_err(|_| bad_header())?;
        map.values_mut().for_each(Self::split_auth);
        Ok(map)
    }

    /// Takes `auth` apart where name and password are not there themselves.
    pub fn split_auth(&mut self) {
        if self.auth.is_empty() || !self.username.is_empty() {
            return;
        }
        if let Some(pair) = lenient(&self.auth)
            && let Ok(pair) = String::from_utf8(pair)
            && let Some((name, password)) = pair.split_once(':')
        {
            name.clone_into(&mut self.username);
            password.trim_end_matches('\0').clone_into(&mut self.password);
        }
        self.auth.clear();
    }
}

/// The host of a registry as keys of `config.json` have it: without scheme and path, Docker Hub by any of its names.
pub fn registry_key(address: &str) -> &str {
    let stripped = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"))
        .unwrap_or(address);
    let host = stripped.split('/').next().unwrap_or(stripped);
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB_KEY,
        host => host,
    }
}

fn decode(value: &str) -> Result<Vec<u8>> {
    if value.len() > MAX_HEADER {
        return Err(Error::limit("the header with credentials is too long"));
    }
    lenient(value).ok_or_else(bad_header)
}

fn lenient(value: &str) -> Option<Vec<u8>> {
    let plain: String = value
        .trim()
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            other => other,
        })
        .collect();
    base64::engine::general_purpose::STANDARD_NO_PAD
        .decode(plain)
        .ok()
}

/// Says nothing of what was in it.
fn bad_header() -> Error {
    Error::invalid("the header with credentials is not base64 of a JSON object, as the Engine API wants it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers() {
        let credentials = Credentials::password("me", "s3cret?>>");
        let header = credentials.to_header();
        assert_eq!(Credentials::from_header(&header).unwrap(), credentials);
        assert_eq!(
            Credentials::from_header(header.trim_end_matches('=')).unwrap(),
            credentials
        );
        assert!(Credentials::from_header("").unwrap().is_anonymous());
        assert!(Credentials::from_header("e30=").unwrap().is_anonymous());
        assert!(!format!("{credentials:?}").contains("s3cret"));
        let error = Credentials::from_header("c2VjcmV0").unwrap_err().to_string();
        assert!(!error.contains("secret") && !error.contains("c2Vj"), "{error}");
        // {"r:5000":{"auth":"bWU6cHc="}}
        let map = Credentials::map_from_header("eyJyOjUwMDAiOnsiYXV0aCI6ImJXVTZjSGM9In19").unwrap();
        assert_eq!(map["r:5000"].password, "pw");
    }

    #[test]
    fn keys() {
        assert_eq!(registry_key("https://index.docker.io/v1/"), DOCKER_HUB_KEY);
        assert_eq!(registry_key("docker.io"), DOCKER_HUB_KEY);
        assert_eq!(registry_key("http://r:5000/v2/"), "r:5000");
        assert_eq!(registry_key("r:5000"), "r:5000");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = Credentials::from_header(&text);
            let _ = Credentials::map_from_header(&text);
        }
    }
}
