//! Ranges and conditions (RFC 9110, sections 13 and 14) and the upload's `Content-Range` (distribution specification,
//! "Pushing a blob in chunks").

/// What is asked for of something that has a size.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Range {
    /// All of it.
    Whole,
    /// From the first offset up to, not including, the second.
    Part(u64, u64),
    /// Nothing that exists.
    Unsatisfiable,
}

/// Reads `Range`. What is not one range of bytes is ignored, a range that ends before it begins is refused; the RFC
/// allows either for both.
pub fn range(field: Option<&str>, size: u64) -> Range {
    let Some(spec) = field.and_then(|field| field.strip_prefix("bytes=")) else {
        return Range::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Range::Whole;
    };
    match (number(first), number(last)) {
        (Some(_), None) if !last.is_empty() => Range::Whole,
        (Some(first), Some(last)) if last < first => Range::Unsatisfiable,
        (Some(first), _) if first >= size => Range::Unsatisfiable,
        (Some(first), None) => Range::Part(first, size),
        (Some(first), Some(last)) => Range::Part(first, last.saturating_add(1).min(size)),
        (None, Some(0)) if first.is_empty() => Range::Unsatisfiable,
        (None, Some(_)) if first.is_empty() && size == 0 => Range::Unsatisfiable,
        (None, Some(suffix)) if first.is_empty() => Range::Part(size.saturating_sub(suffix), size),
        _ => Range::Whole,
    }
}

/// Reads the `Content-Range` of a chunk: first and last offset. It is `0-99` in the specification; `bytes 0-99/200`,
/// which other requests have, is understood, too.
pub fn content_range(field: &str) -> Option<(u64, u64)> {
    let field = field.trim();
    let field = field.strip_prefix("bytes ").unwrap_or(field);
    let field = field.split('/').next()?;
    let (first, last) = field.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// Whether `If-None-Match` names this digest, which is the entity tag of everything here.
pub fn none_match(field: Option<&str>, digest: &str) -> bool {
    field.is_some_and(|field| {
        field.split(',').map(str::trim).any(|tag| {
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag == "*" || tag.trim_matches('"') == digest
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges() {
        for (field, expected) in [
            ("bytes=0-0", Range::Part(0, 1)),
            ("bytes=2-", Range::Part(2, 10)),
            ("bytes=-3", Range::Part(7, 10)),
            ("bytes=-30", Range::Part(0, 10)),
            ("bytes=5-100", Range::Part(5, 10)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-4", Range::Unsatisfiable),
            ("bytes=5-x", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=-", Range::Whole),
            ("lines=1-2", Range::Whole),
            ("bytes=99999999999999999999-", Range::Whole),
        ] {
            assert_eq!(range(Some(field), 10), expected, "{field}");
        }
        assert_eq!(range(Some("bytes=-1"), 0), Range::Unsatisfiable);
        assert_eq!(range(None, 10), Range::Whole);
    }

    #[test]
    fn chunks() {
        assert_eq!(content_range("0-99"), Some((0, 99)));
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9)));
        for bad in [
            "",
            "-",
            "1-",
            "9-5",
            "a-b",
            "0-99999999999999999999999",
            "-1-2",
            "+0-1",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn conditions() {
        assert!(none_match(Some("\"x\", W/\"sha256:a\""), "sha256:a"));
        assert!(none_match(Some("*"), "sha256:a"));
        assert!(!none_match(Some("\"sha256:b\""), "sha256:a") && !none_match(None, "sha256:a"));
    }

    proptest! {
        #[test]
        fn a_part_lies_within(field in "bytes=[0-9]{0,22}-[0-9]{0,22}", size: u64) {
            if let Range::Part(from, end) = range(Some(&field), size) {
                prop_assert!(from < end && end <= size);
            }
        }

        #[test]
        fn never_panics(field in "\\PC{0,40}") {
            let _ = (range(Some(&field), 7), content_range(&field), none_match(Some(&field), "x"));
        }
    }
}
