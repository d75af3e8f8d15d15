//! One line of a json-file log.
//!
//! Our shims write the members in a fixed order, which is read without a JSON parser; lines of another make (a log
//! directory taken over from elsewhere) go through one.

use std::borrow::Cow;

use serde_json::Value;

/// A log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What was written, usually a line with its newline.
    pub log: Cow<'a, [u8]>,
    /// Whether it was written to standard error.
    pub errors: bool,
    /// When, as in the file (RFC 3339).
    pub time: Cow<'a, str>,
    /// The `attrs` object as text, when there is one.
    pub attrs: Option<Cow<'a, str>>,
}

impl<'a> Entry<'a> {
    /// Reads a line (without its newline); none when it is not an entry, as a line cut by a crash.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        Self::ours(line).or_else(|| Self::any(line))
    }

    fn ours(line: &'a [u8]) -> Option<Self> {
        let rest = line.strip_prefix(b"{\"log\":\"")?;
        let end = string_end(rest)?;
        let log = unescape(&rest[..end])?;
        let rest = rest[end..].strip_prefix(b"\",\"stream\":\"std")?;
        let (errors, rest) = match rest.split_first_chunk::<3>()? {
            (b"out", rest) => (false, rest),
            (b"err", rest) => (true, rest),
            _ => return None,
        };
        let rest = rest.strip_prefix(b"\"")?;
        let (attrs, rest) = match rest.strip_prefix(b",\"attrs\":") {
            Some(rest) => {
                let end = rest.windows(9).rposition(|window| window == b",\"time\":\"")?;
                (Some(Cow::Borrowed(std::str::from_utf8(&rest[..end]).ok()?)), &rest[end..])
            }
            None => (None, rest),
        };
        let time = rest.strip_prefix(b",\"time\":\"")?.strip_suffix(b"\"}")?;
        if time.contains(&b'"') || time.contains(&b'\\') {
            return None;
        }
        Some(Self { log, errors, time: Cow::Borrowed(std::str::from_utf8(time).ok()?), attrs })
    }

    fn any(line: &[u8]) -> Option<Self> {
        let mut value: Value = serde_json::from_slice(line).ok()?;
        let object = value.as_object_mut()?;
        let mut text = |name: &str| match object.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let (log, stream, time) = (text("log")?, text("stream")?, text("time")?);
        let attrs = object.remove("attrs").filter(Value::is_object).map(|attrs| Cow::Owned(attrs.to_string()));
        Some(Self { log: Cow::Owned(log.into_bytes()), errors: stream == "stderr", time: Cow::Owned(time), attrs })
    }
}

/// Where the string that begins here ends: at the first quote that is not escaped.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut index = 0;
    loop {
        match text.get(index)? {
            b'"' => return Some(index),
            b'\\' => index += 2,
            _ => index += 1,
        }
    }
}

/// The inside of a JSON string.
fn unescape(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = text.iter().position(|byte| *byte == b'\\') else { return Some(Cow::Borrowed(text)) };
    let mut out = Vec::with_capacity(text.len());
    out.extend_from_slice(&text[..first]);
    let mut rest = &text[first..];
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'\\' {
            let end = rest.iter().position(|byte| *byte == b'\\').unwrap_or(rest.len());
            out.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let (&escaped, after) = after.split_first()?;
        rest = after;
        match escaped {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'"' | b'\\' | b'/' => out.push(escaped),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'u' => {
                let (digits, after) = rest.split_first_chunk::<4>()?;
                let code = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
                rest = after;
                // Ours never writes surrogates; a pair by another writer goes through the JSON parser.
                let character = char::from_u32(code)?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return None,
        }
    }
    Some(Cow::Owned(out))
}

/// Nanoseconds since the epoch of an RFC 3339 time.
pub fn nanoseconds(time: &str) -> Option<i64> {
    let stamp: jiff::Timestamp = time.parse().ok()?;
    i64::try_from(stamp.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_makes_are_read() {
        let ours = br#"{"log":"a \"q\" \\ \u0001\n","stream":"stderr","attrs":{"a":"b"},"time":"2023-11-14T22:13:20.123456789Z"}"#;
        let entry = Entry::ours(ours).unwrap();
        assert_eq!(entry, Entry::any(ours).unwrap());
        assert_eq!(&*entry.log, b"a \"q\" \\ \x01\n");
        assert!(entry.errors);
        assert_eq!(entry.attrs.as_deref(), Some(r#"{"a":"b"}"#));
        assert_eq!(nanoseconds(&entry.time), Some(1_700_000_000_123_456_789));
        let other = br#"{"stream":"stdout","time":"2023-11-14T22:13:20Z","log":"x\ud83d\ude00\n"}"#;
        assert_eq!(&*Entry::parse(other).unwrap().log, "x😀\n".as_bytes());
    }

    #[test]
    fn cut_lines_are_not_entries() {
        let line = br#"{"log":"text\n","stream":"stdout","time":"2023-11-14T22:13:20Z"}"#;
        for end in 0..line.len() {
            assert_eq!(Entry::parse(&line[..end]), None);
        }
    }

    proptest! {
        #[test]
        fn the_fast_way_is_the_right_way(text in "\\PC*[\n\t\"\\\\\u{1}]?", stderr: bool) {
            let stream = if stderr { "stderr" } else { "stdout" };
            let line = serde_json::json!({"log": text, "stream": stream, "time": "2023-11-14T22:13:20Z"}).to_string();
            let entry = Entry::ours(line.as_bytes()).unwrap();
            prop_assert_eq!(&*entry.log, text.as_bytes());
            prop_assert_eq!(entry.errors, stderr);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Entry::parse(&bytes);
            let _ = Entry::parse(&[b"{\"log\":\"", &bytes[..]].concat());
        }
    }
}
