//! What a token server answers (Docker's token authentication specification, and its OAuth2 variant).

use std::fmt;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};

/// The largest answer.
pub(super) const MAX_ANSWER: usize = 1 << 20;
/// A token whose life is not told lives so long.
const DEFAULT_LIFE: u64 = 60;
/// No token is kept longer, whatever is said.
const MAX_LIFE: u64 = 24 * 3600;
/// So long before its end a token is not used any more.
const LEEWAY: u64 = 10;

/// A bearer token and when it ends.
#[derive(Clone)]
pub struct Token {
    value: String,
    until: Instant,
    refresh: Option<String>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    refresh_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

impl Token {
    /// Reads an answer that has just arrived.
    pub fn parse(raw: &[u8]) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the token server's answer cannot be used: {why}"),
            )
        };
        if raw.len() > MAX_ANSWER {
            return Err(bad("it is too large"));
        }
        // The parser's complaint may quote the token.
        let answer: Answer =
            serde_json::from_slice(raw).map_err(|_| bad("it is not the JSON it should be"))?;
        let visible = |token: &String| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        let value = answer
            .token
            .filter(|token| !token.is_empty())
            .or(answer.access_token)
            .filter(visible)
            .ok_or_else(|| bad("it holds no token"))?;
        let life = match answer.expires_in {
            Some(seconds) if seconds.is_finite() && seconds >= 1.0 => (seconds as u64).min(MAX_LIFE),
            _ => DEFAULT_LIFE,
        };
        let life = life.saturating_sub(LEEWAY).max(1);
        Ok(Self {
            value,
            until: Instant::now() + Duration::from_secs(life),
            refresh: answer.refresh_token.filter(visible),
        })
    }

    /// The token, as long as it may be used.
    pub fn value(&self) -> Option<&str> {
        (Instant::now() < self.until).then_some(self.value.as_str())
    }

    /// What replaces the password from now on, if it was asked for.
    pub fn refresh(&self) -> Option<&str> {
        self.refresh.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers() {
        let token = Token::parse(br#"{"token":"abc","expires_in":300,"issued_at":"x"}"#).unwrap();
        assert_eq!(token.value(), Some("abc"));
        assert!(token.until > Instant::now() + Duration::from_secs(280));
        let token = Token::parse(br#"{"access_token":"abc","refresh_token":"r"}"#).unwrap();
        assert_eq!((token.value(), token.refresh()), (Some("abc"), Some("r")));
        for bad in [
            &b"{}"[..],
            b"[]",
            br#"{"token":""}"#,
            br#"{"token":"a\nb"}"#,
            br#"{"token":"a b"}"#,
        ] {
            assert!(Token::parse(bad).is_err());
        }
        let huge = Token::parse(br#"{"token":"a","expires_in":1e300}"#).unwrap();
        assert!(huge.until <= Instant::now() + Duration::from_secs(MAX_LIFE));
        let secret = Token::parse(br#"{"token":"hunter2"#).unwrap_err().to_string();
        assert!(!secret.contains("hunter2"));
    }

    proptest! {
        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Token::parse(&raw);
        }

        #[test]
        fn any_life_is_bounded(life in any::<f64>()) {
            let raw = serde_json::json!({"token": "a", "expires_in": life}).to_string();
            if let Ok(token) = Token::parse(raw.as_bytes()) {
                prop_assert!(token.until <= Instant::now() + Duration::from_secs(MAX_LIFE));
            }
        }
    }
}
