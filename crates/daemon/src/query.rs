//! Query strings: decoding and typed values.
//!
//! Values read as dockerd reads them: a boolean is false when it is absent, empty, `0`, `no`, `false` or
//! `none`, and true otherwise; numbers have bounds and a value outside them is the caller's mistake (400).

use std::borrow::Cow;

use crate::error::ApiError;

/// More parameters than any request has use for.
const MAX_PARAMETERS: usize = 256;

/// The decoded parameters of one request, in the order they came.
#[derive(Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Decodes the part of a URI after the `?`.
    pub fn parse(raw: Option<&str>) -> Result<Self, ApiError> {
        let Some(raw) = raw.filter(|raw| !raw.is_empty()) else {
            return Ok(Self::default());
        };
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PARAMETERS {
                return Err(ApiError::bad_request(format!(
                    "more than {MAX_PARAMETERS} query parameters: send fewer"
                )));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((
                decode(name, true)?.into_owned(),
                decode(value, true)?.into_owned(),
            ));
        }
        Ok(Self { pairs })
    }

    /// The first value of a parameter, when it was given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first value of a parameter, empty when it was not given.
    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// Every value of a parameter that may be repeated.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.pairs
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A boolean; absent is false.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(truth)
    }

    /// A boolean with a default for when the parameter is absent.
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        self.get(name).map_or(default, truth)
    }

    /// A whole number within bounds; absent or empty is `None`.
    pub fn number(&self, name: &str, low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        match text.parse::<i64>() {
            Ok(number) if (low..=high).contains(&number) => Ok(Some(number)),
            Ok(_) => Err(ApiError::bad_request(format!(
                "invalid value {text:?} for {name}: a number from {low} to {high} is expected"
            ))),
            Err(_) => Err(ApiError::bad_request(format!(
                "invalid value {text:?} for {name}: a whole number is expected"
            ))),
        }
    }
}

/// What dockerd takes for true.
fn truth(value: &str) -> bool {
    let value = value.trim();
    !(value.is_empty()
        || ["0", "no", "false", "none"]
            .iter()
            .any(|no| value.eq_ignore_ascii_case(no)))
}

/// Decodes percent escapes and, in query strings, `+` for a space.
pub fn decode(text: &str, plus_is_space: bool) -> Result<Cow<'_, str>, ApiError> {
    if !text
        .bytes()
        .any(|byte| byte == b'%' || (plus_is_space && byte == b'+'))
    {
        return Ok(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'%' => {
                let digit = |offset: usize| bytes.get(at + offset).and_then(|&c| char::from(c).to_digit(16));
                let (Some(high), Some(low)) = (digit(0), digit(1)) else {
                    return Err(ApiError::bad_request(format!(
                        "invalid URL escape in {text:?}: two hexadecimal digits must follow a %"
                    )));
                };
                decoded.push((high * 16 + low) as u8);
                at += 2;
            }
            b'+' if plus_is_space => decoded.push(b' '),
            other => decoded.push(other),
        }
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| {
        ApiError::bad_request(format!(
            "invalid URL escape in {text:?}: it does not decode to UTF-8"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(raw: &str) -> Query {
        Query::parse(Some(raw)).unwrap()
    }

    #[test]
    fn booleans_read_as_dockerd_reads_them() {
        for (raw, expected) in [
            ("", false),
            ("a", false),
            ("a=0", false),
            ("a=False", false),
            ("a=no", false),
        ] {
            assert_eq!(query(raw).flag("a"), expected, "{raw}");
        }
        for raw in ["a=1", "a=true", "a=yes", "a=2", "a=+1"] {
            assert!(query(raw).flag("a"), "{raw}");
        }
        assert!(query("b=1").flag_or("a", true));
        assert!(!query("a=0").flag_or("a", true));
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(query("n=7").number("n", 0, 10).unwrap(), Some(7));
        assert_eq!(query("n=").number("n", 0, 10).unwrap(), None);
        for raw in ["n=11", "n=-1", "n=x", "n=99999999999999999999", "n=1.5"] {
            assert_eq!(
                query(raw).number("n", 0, 10).unwrap_err().status().as_u16(),
                400,
                "{raw}"
            );
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(
            query("a=b%2Fc+d&a=%25").all("a").collect::<Vec<_>>(),
            ["b/c d", "%"]
        );
        assert_eq!(decode("a+b", false).unwrap(), "a+b");
        for bad in ["%", "%1", "%zz", "%ff", "%+1"] {
            assert!(decode(bad, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn too_many_parameters_are_refused() {
        assert!(Query::parse(Some(&"a=1&".repeat(MAX_PARAMETERS + 1))).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_decodes_to_itself(name in "\\PC{1,20}", value in "\\PC{0,40}") {
            let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let raw = format!("{}={}", encode(&name), encode(&value));
            let query = Query::parse(Some(&raw)).unwrap();
            prop_assert_eq!(query.get(&name), Some(value.as_str()));
        }

        #[test]
        fn arbitrary_text_never_panics(raw in "\\PC{0,200}") {
            if let Ok(query) = Query::parse(Some(&raw)) {
                let _ = query.number("a", i64::MIN, i64::MAX);
                let _ = query.flag("a");
            }
        }
    }
}
