//! Paths, query strings and filters.

use std::collections::BTreeMap;
use std::fmt::Display;

/// A query string under construction.
#[derive(Debug, Clone, Default)]
pub struct Query(String);

impl Query {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a member.
    #[must_use]
    pub fn add(mut self, name: &str, value: impl Display) -> Self {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        encode_into(&value.to_string(), false, &mut self.0);
        self
    }

    /// Adds a member when there is a value.
    #[must_use]
    pub fn opt(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.add(name, value),
            None => self,
        }
    }

    /// Adds a member when the value is not empty.
    #[must_use]
    pub fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            self
        } else {
            self.add(name, value)
        }
    }

    /// Adds `name=1` when set.
    #[must_use]
    pub fn flag(self, name: &str, value: bool) -> Self {
        if value { self.add(name, 1) } else { self }
    }

    /// Adds `filters=` when there are any.
    #[must_use]
    pub fn filters(self, filters: &Filters) -> Self {
        if filters.is_empty() {
            self
        } else {
            self.add("filters", filters.to_json())
        }
    }

    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.as_bytes());
    }
}

/// A segment of a path, percent-encoded; slashes are kept, as image names have them.
pub fn encode(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    encode_into(segment, true, &mut out);
    out
}

fn encode_into(text: &str, keep_slash: bool, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'.' | b'~' | b':' | b'@')
            || (keep_slash && byte == b'/');
        if plain {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Filters of a list: names, each with a set of values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeMap<String, bool>>);

impl Filters {
    /// No filter.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value to a name.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.0.entry(name.into()).or_default().insert(value.into(), true);
        self
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `name` is filtered by.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// As the API has them: `{"name":{"value":true}}`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding() {
        let mut filters = Filters::new();
        filters.add("label", "a=b").add("label", "c");
        let query = Query::new()
            .flag("all", true)
            .flag("no", false)
            .filters(&filters)
            .text("x", "")
            .add("y", "ü &");
        let mut out = Vec::new();
        query.append_to(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "?all=1&filters=%7B%22label%22%3A%7B%22a%3Db%22%3Atrue%2C%22c%22%3Atrue%7D%7D&y=%C3%BC%20%26"
                .replace("%3A", ":")
        );
        assert_eq!(encode("reg:5000/a b?#@sha256:1"), "reg:5000/a%20b%3F%23@sha256:1");
    }
}
