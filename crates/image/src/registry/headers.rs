//! Headers that say where in something one is: `Content-Range`, `Range` of uploads, `Link`, `Retry-After`.

use std::time::Duration;

/// Longest address that a `Link` may have.
const MAX_LINK: usize = 4096;
/// The longest that a registry can make a client wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// `bytes FIRST-LAST/TOTAL` of a `Content-Range` (RFC 9110, section 14.4); the total may be `*`.
pub fn content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let rest = value.trim().strip_prefix("bytes")?.trim_start();
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = match total.trim() {
        "*" => None,
        text => Some(number(text)?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, last, total))
}

/// How many bytes an upload's `Range: 0-LAST` says have arrived (OCI distribution specification, "pushing a blob in
/// chunks"). `0-0` is ambiguous, registries say it of an upload that has begun: it is taken as nothing.
pub fn upload_offset(value: &str) -> Option<u64> {
    let value = value.trim();
    let (first, last) = value.strip_prefix("bytes=").unwrap_or(value).split_once('-')?;
    match (number(first)?, number(last)?) {
        (0, 0) => Some(0),
        (0, last) => last.checked_add(1),
        _ => None,
    }
}

/// The target of the link to the next page (RFC 8288).
pub fn next_link(value: &str) -> Option<&str> {
    let mut rest = value.get(..MAX_LINK.min(value.len()))?;
    while let Some(start) = rest.find('<') {
        let after = &rest[start + 1..];
        let end = after.find('>')?;
        let (target, parameters) = (&after[..end], &after[end + 1..]);
        // Up to the next link; a comma within a quoted parameter is not worth more: it only ends the search early.
        let until = parameters.find(",<").or_else(|| parameters.find(", <"));
        let own = &parameters[..until.unwrap_or(parameters.len())];
        let next = own.split(';').any(|parameter| {
            parameter.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("rel")
                    && value
                        .trim()
                        .trim_matches('"')
                        .split_whitespace()
                        .any(|relation| relation.eq_ignore_ascii_case("next"))
            })
        });
        if next {
            return (!target.is_empty()).then_some(target);
        }
        rest = &parameters[until?..];
    }
    None
}

/// The seconds of a `Retry-After`, bounded. Dates are not understood: they need a clock that agrees.
pub fn retry_after(value: &str) -> Option<Duration> {
    let seconds = number(value)?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    // `parse` would take a sign.
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 9, None)));
        for bad in [
            "",
            "bytes",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes +5-9/10",
            "bytes */10",
            "items 0-1/2",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
        assert_eq!(upload_offset("0-99"), Some(100));
        assert_eq!(upload_offset("bytes=0-99"), Some(100));
        assert_eq!(upload_offset("0-0"), Some(0));
        assert_eq!(upload_offset("5-9"), None);
        assert_eq!(upload_offset("0-18446744073709551615"), None);
    }

    #[test]
    fn links() {
        assert_eq!(
            next_link("</v2/_catalog?last=b&n=2>; rel=\"next\""),
            Some("/v2/_catalog?last=b&n=2")
        );
        assert_eq!(next_link("<a>; rel=prev, <b>; rel=next"), Some("b"));
        assert_eq!(next_link("<a>; rel=\"prev next\""), Some("a"));
        for bad in ["", "<a>", "<a", "a; rel=next", "<>; rel=next"] {
            assert_eq!(next_link(bad), None, "{bad}");
        }
        assert_eq!(retry_after(" 3 "), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,120}") {
            let _ = (content_range(&text), upload_offset(&text), retry_after(&text));
            let _ = next_link(&text);
        }

        #[test]
        fn links_of_anything(text in "[<>;, =a-z\"]{0,60}") {
            let _ = next_link(&text);
        }
    }
}
