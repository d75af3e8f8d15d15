//! Query strings and forms.

/// The first value of a parameter, decoded; none when it is missing or is not text.
pub fn get(query: Option<&str>, name: &str) -> Option<String> {
    all(query, name).next()
}

/// All values of a parameter.
pub fn all<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = String> + 'a {
    query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('=').or((!pair.is_empty()).then_some((pair, ""))))
        .filter(move |(key, _)| decode(key).as_deref() == Some(name))
        .filter_map(|(_, value)| decode(value))
}

/// `%41` is `A`, `+` is a space.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

/// What may stand in a query as it is, the rest as `%41`.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                out.push(byte.into())
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values() {
        let query = Some("n=3&last=a%2Fb&tag=x&tag=y+z&empty&bad=%zz");
        assert_eq!(get(query, "n").as_deref(), Some("3"));
        assert_eq!(get(query, "last").as_deref(), Some("a/b"));
        assert_eq!(all(query, "tag").collect::<Vec<_>>(), ["x", "y z"]);
        assert_eq!(get(query, "empty").as_deref(), Some(""));
        assert_eq!(
            (get(query, "bad"), get(query, "none"), get(None, "n")),
            (None, None, None)
        );
    }

    proptest! {
        #[test]
        fn encoded_reads_back(text in "\\PC{0,40}") {
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }
    }
}
