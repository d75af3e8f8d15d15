//! Cutting text to size.

/// The first 12 digits of an ID, without its algorithm.
pub fn short_id(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}

/// At most `width` characters, the last an ellipsis when something is cut.
pub fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    if width <= 1 {
        return text.chars().take(width).collect();
    }
    let mut out: String = text.chars().take(width - 1).collect();
    out.push('…');
    out
}

/// `s` quoted as Go's `%q` quotes it.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts() {
        assert_eq!(short_id("sha256:1b4864d366d4a894be86"), "1b4864d366d4");
        assert_eq!(short_id("abc"), "abc");
        assert_eq!(ellipsis("\"sleep 1000\"", 20), "\"sleep 1000\"");
        assert_eq!(ellipsis("abcdefgh", 5), "abcd…");
        assert_eq!(ellipsis("äöüä", 3), "äö…");
        assert_eq!(ellipsis("abc", 1), "a");
        assert_eq!(quote("a\"b\n\u{1}"), "\"a\\\"b\\n\\x01\"");
    }
}
