//! Filters, as `--filter key=value` of Docker's lists, prunes and events.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Error, Result, time};

/// Keys to the values asked for. Values of one key are alternatives; keys must all match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Parses the `filters` parameter: a map of lists, or of maps to `true` as old and new clients send.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if let Ok(lists) = serde_json::from_str::<BTreeMap<String, BTreeSet<String>>>(text) {
            return Ok(Self(lists));
        }
        let maps: BTreeMap<String, BTreeMap<String, bool>> =
            serde_json::from_str(text).map_err(|error| Error::invalid(format!("invalid filter: {error}")))?;
        Ok(Self(
            maps.into_iter()
                .map(|(key, values)| {
                    (
                        key,
                        values
                            .into_iter()
                            .filter(|(_, on)| *on)
                            .map(|(value, _)| value)
                            .collect(),
                    )
                })
                .collect(),
        ))
    }

    /// Adds a value.
    pub fn add(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.entry(key.into()).or_default().insert(value.into());
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values of a key; nothing when the key is absent.
    pub fn get(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    /// Whether the key is asked for.
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Refuses keys other than those known.
    ///
    /// # Errors
    /// Names the first that is not known.
    pub fn check(&self, known: &[&str]) -> Result<()> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(Error::invalid(format!(
                "invalid filter '{key}': the filters here are {}",
                known.join(", ")
            ))),
            None => Ok(()),
        }
    }

    /// Whether the key is absent, or one of its values equals `value`.
    pub fn matches(&self, key: &str, value: &str) -> bool {
        self.0.get(key).is_none_or(|values| values.contains(value))
    }

    /// Whether the key is absent, or `test` holds for one of its values.
    pub fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        self.0
            .get(key)
            .is_none_or(|values| values.iter().any(|value| test(value)))
    }

    /// The boolean value of a key: `true`, `1`, `false`, `0`.
    ///
    /// # Errors
    /// When the value is none of those.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let mut answer = None;
        for value in self.get(key) {
            answer = match value {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                other => {
                    return Err(Error::invalid(format!(
                        "invalid filter '{key}={other}': true or false expected"
                    )));
                }
            };
        }
        Ok(answer)
    }

    /// The earliest time that the `until` filters name, in nanoseconds since the epoch.
    ///
    /// # Errors
    /// A value that is neither a time (RFC 3339, seconds since 1970) nor a duration before now (`24h`).
    pub fn until(&self) -> Result<Option<i64>> {
        let mut earliest = None;
        for text in self.get("until") {
            let time = time::parse(text).ok_or_else(|| {
                Error::invalid(format!(
                    "invalid filter 'until={text}': a time (RFC 3339, seconds since 1970) or a duration (24h) is expected"
                ))
            })?;
            earliest = Some(earliest.map_or(time, |other: i64| other.min(time)));
        }
        Ok(earliest)
    }

    /// Whether labels satisfy all `label` filters (`key` or `key=value`) and none of the `label!` ones.
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        };
        self.get("label").all(has) && !self.get("label!").any(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_read() {
        let lists = Filters::parse(r#"{"label":["a","b=c"],"status":["running"]}"#).unwrap();
        let maps = Filters::parse(r#"{"label":{"a":true,"b=c":true,"off":false},"status":{"running":true}}"#)
            .unwrap();
        assert_eq!(lists, maps);
        assert!(Filters::parse("").unwrap().is_empty());
        assert!(Filters::parse("[1]").is_err());
    }

    #[test]
    fn labels_must_all_match() {
        let filters = Filters::parse(r#"{"label":["a","b=c"],"label!":["no"]}"#).unwrap();
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        assert!(filters.labels(&labels(&[("a", "x"), ("b", "c")])));
        assert!(!filters.labels(&labels(&[("a", "x"), ("b", "d")])));
        assert!(!filters.labels(&labels(&[("a", "x"), ("b", "c"), ("no", "")])));
    }
}
