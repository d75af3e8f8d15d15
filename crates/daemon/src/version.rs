//! API versions: the `/v1.NN` prefix of a path and what is answered to those too old or too new.

use std::fmt;

use crate::error::ApiError;

/// A version of the Docker Engine API. The major number has always been 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// 1.
    pub major: u32,
    /// The number that counts.
    pub minor: u32,
}

impl ApiVersion {
    /// The oldest version answered.
    pub const OLDEST: Self = Self::new(24);
    /// The newest version answered; what a request without a prefix gets.
    pub const NEWEST: Self = Self::new(55);
    /// The newest version as text.
    pub const NEWEST_TEXT: &str = "1.55";
    /// The oldest version as text.
    pub const OLDEST_TEXT: &str = "1.24";

    /// Version 1.`minor`.
    pub const fn new(minor: u32) -> Self {
        Self { major: 1, minor }
    }

    /// Takes the version prefix off a path. The second part is the rest of the path with its leading `/`.
    pub fn strip(path: &str) -> Result<(Self, &str), ApiError> {
        let Some(rest) = path.strip_prefix("/v") else {
            return Ok((Self::NEWEST, path));
        };
        let (text, rest) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            // Not a version: `/volumes` begins like one.
            return Ok((Self::NEWEST, path));
        }
        let invalid = || {
            ApiError::bad_request(format!(
                "invalid API version {text:?}: 1.{} is one",
                Self::NEWEST.minor
            ))
        };
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        let version = Self {
            major: major.parse().map_err(|_| invalid())?,
            minor: minor.parse().map_err(|_| invalid())?,
        };
        if version < Self::OLDEST {
            return Err(ApiError::bad_request(format!(
                "client version {version} is too old. Minimum supported API version is {}, please upgrade your client to a newer version",
                Self::OLDEST
            )));
        }
        if version > Self::NEWEST {
            return Err(ApiError::bad_request(format!(
                "client version {version} is too new. Maximum supported API version is {}",
                Self::NEWEST
            )));
        }
        Ok((version, rest))
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!(ApiVersion::strip("/info").unwrap(), (ApiVersion::NEWEST, "/info"));
        assert_eq!(
            ApiVersion::strip("/v1.41/info").unwrap(),
            (ApiVersion::new(41), "/info")
        );
        assert_eq!(
            ApiVersion::strip("/volumes/x").unwrap(),
            (ApiVersion::NEWEST, "/volumes/x")
        );
        assert_eq!(ApiVersion::strip("/v1.24").unwrap(), (ApiVersion::new(24), ""));
        for bad in [
            "/v1.23/info",
            "/v1.56/info",
            "/v2/info",
            "/v0.99/info",
            "/v1.2.3/info",
            "/v1.99999999999/info",
        ] {
            assert_eq!(
                ApiVersion::strip(bad).unwrap_err().status().as_u16(),
                400,
                "{bad}"
            );
        }
    }

    #[test]
    fn texts_match_the_numbers() {
        assert_eq!(ApiVersion::NEWEST.to_string(), ApiVersion::NEWEST_TEXT);
        assert_eq!(ApiVersion::OLDEST.to_string(), ApiVersion::OLDEST_TEXT);
    }

    #[test]
    fn newest_matches_the_text_docker_gives() {
        let error = ApiVersion::strip("/v1.99/info").unwrap_err();
        assert_eq!(
            error.message(),
            "client version 1.99 is too new. Maximum supported API version is 1.55"
        );
    }
}
