//! One line of a json-file log.
//!
//! Lines are written by our shim in one order of members, and almost none has an escape but the final `\n`: those are
//! taken apart by searching. Everything else (Docker's own files, other members, other escapes) goes through the JSON
//! parser. Both ways give the same bytes, which a property test holds them to.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;

/// A line taken apart.
#[derive(Debug, PartialEq)]
pub(super) struct Entry<'a> {
    pub text: Cow<'a, [u8]>,
    /// 1 or 2, as Docker numbers the streams.
    pub stream: u8,
    /// RFC 3339.
    pub time: Cow<'a, str>,
    pub attrs: BTreeMap<String, String>,
}

/// Takes a line (without its newline) apart. `None` when it is no entry.
pub(super) fn parse(line: &[u8]) -> Option<Entry<'_>> {
    fast(line).or_else(|| slow(line))
}

fn fast(line: &[u8]) -> Option<Entry<'_>> {
    let rest = line.strip_prefix(b"{\"log\":\"")?;
    // The first quote that is not escaped ends the text; any escape but the common ones is left to the parser.
    let mut end = 0;
    let mut escapes = false;
    let text = loop {
        let step = rest
            .get(end..)?
            .iter()
            .position(|byte| matches!(byte, b'"' | b'\\'))?;
        end += step;
        if rest[end] == b'"' {
            break &rest[..end];
        }
        escapes = true;
        if !matches!(rest.get(end + 1)?, b'n' | b'"' | b'\\' | b'r' | b't') {
            return None;
        }
        end += 2;
    };
    let rest = rest[end..].strip_prefix(b"\",\"stream\":\"std")?;
    let (stream, rest) = match rest {
        [b'o', b'u', b't', rest @ ..] => (1, rest),
        [b'e', b'r', b'r', rest @ ..] => (2, rest),
        _ => return None,
    };
    let time = rest.strip_prefix(b"\",\"time\":\"")?.strip_suffix(b"\"}")?;
    if time.len() > 40
        || !time
            .iter()
            .all(|byte| byte.is_ascii_digit() || b"-:.TZ+".contains(byte))
    {
        return None;
    }
    std::str::from_utf8(text).ok()?;
    Some(Entry {
        text: if escapes {
            Cow::Owned(unescape(text))
        } else {
            Cow::Borrowed(text)
        },
        stream,
        time: Cow::Borrowed(std::str::from_utf8(time).ok()?),
        attrs: BTreeMap::new(),
    })
}

/// Only the escapes that [`fast`] lets through.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => out.push(b'\n'),
                Some(b'r') => out.push(b'\r'),
                Some(b't') => out.push(b'\t'),
                Some(&other) => out.push(other),
                None => {}
            },
            byte => out.push(byte),
        }
    }
    out
}

#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    log: String,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    time: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

fn slow(line: &[u8]) -> Option<Entry<'static>> {
    let json: Json = serde_json::from_slice(line).ok()?;
    let stream = if json.stream == "stderr" { 2 } else { 1 };
    Some(Entry {
        text: Cow::Owned(json.log.into_bytes()),
        stream,
        time: Cow::Owned(json.time),
        attrs: json.attrs,
    })
}

/// Nanoseconds since the epoch of `YYYY-MM-DDTHH:MM:SS[.fraction]Z`; other forms the long way.
pub(super) fn nanos(time: &str) -> Option<i64> {
    utc(time.as_bytes()).or_else(|| {
        let time: jiff::Timestamp = time.parse().ok()?;
        i64::try_from(time.as_nanosecond()).ok()
    })
}

fn utc(time: &[u8]) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        time.get(range)?.iter().try_fold(0_i64, |sum, byte| {
            byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0'))
        })
    };
    let rest = time.strip_suffix(b"Z")?.get(19..)?;
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let fraction = match rest {
        [] => 0,
        [b'.', digits @ ..] if (1..=9).contains(&digits.len()) => {
            let value = number(20..20 + digits.len())?;
            value * 10_i64.pow(9 - digits.len() as u32)
        }
        _ => return None,
    };
    // Days since the epoch in the proleptic Gregorian calendar, years beginning in March.
    let (y, m) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + day_of_era - 719_468;
    (days * 86_400 + hour * 3600 + minute * 60 + second)
        .checked_mul(1_000_000_000)?
        .checked_add(fraction)
}

/// The time with nine digits of fraction, as Docker prints it before lines.
pub(super) fn fixed(time: &str) -> String {
    let Some(body) = time.strip_suffix('Z') else {
        return time.to_owned();
    };
    match body.split_once('.') {
        Some((whole, fraction)) => format!("{whole}.{fraction:0<9}Z"),
        None => format!("{body}.000000000Z"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str, stream: &str, time: &str) -> Vec<u8> {
        let text = serde_json::to_string(text).unwrap();
        format!("{{\"log\":{text},\"stream\":\"{stream}\",\"time\":\"{time}\"}}").into_bytes()
    }

    #[test]
    fn common_lines_go_the_fast_way() {
        let bytes = line("hello \"you\"\t\\ \n", "stderr", "2026-11-21T10:30:03.9Z");
        let entry = fast(&bytes).unwrap();
        assert_eq!((&*entry.text, entry.stream), (&b"hello \"you\"\t\\ \n"[..], 2));
        assert_eq!(fixed(&entry.time), "2026-11-21T10:30:03.900000000Z");
    }

    #[test]
    fn other_lines_are_parsed() {
        let odd = br#"{"stream":"stdout","attrs":{"k":"v"},"time":"2026-01-01T00:00:00Z","log":"\u00e4\n"}"#;
        let entry = parse(odd).unwrap();
        assert_eq!((&*entry.text, entry.attrs["k"].as_str()), ("ä\n".as_bytes(), "v"));
        assert!(parse(b"{\"log\":\"cut off").is_none());
        assert!(parse(b"not json").is_none());
    }

    proptest! {
        #[test]
        fn both_ways_agree(text in ".*", err: bool) {
            let bytes = line(&text, if err { "stderr" } else { "stdout" }, "2026-11-21T10:30:03.123456789Z");
            let slow = slow(&bytes).unwrap();
            prop_assert_eq!(&*slow.text, text.as_bytes());
            if let Some(fast) = fast(&bytes) {
                prop_assert_eq!(fast, slow);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&bytes);
            let _ = fast(&[b"{\"log\":\"".as_slice(), &bytes].concat());
        }

        #[test]
        fn times_agree_with_the_calendar(nanos_since in 0..i64::MAX / 2) {
            let text = jiff::Timestamp::from_nanosecond(i128::from(nanos_since)).unwrap().to_string();
            prop_assert_eq!(utc(text.as_bytes()), Some(nanos_since), "{}", text);
        }
    }
}
