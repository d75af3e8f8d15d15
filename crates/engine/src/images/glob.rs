//! Patterns of the `reference` filter: those of Go's `path.Match`, tried on the name with and without its tag.

/// Whether a pattern matches a name in familiar form, as a whole or without tag and digest.
pub(super) fn matches_reference(pattern: &str, name: &str) -> bool {
    let bare = name.split_once('@').map_or(name, |(bare, _)| bare);
    let bare = match bare.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => bare,
    };
    matches(pattern.as_bytes(), name.as_bytes()) || matches(pattern.as_bytes(), bare.as_bytes())
}

/// `*` is any run without `/`, `?` one character other than `/`, `[a-z]` and `[^a-z]` classes, `\` takes the next
/// character literally. A malformed pattern matches nothing.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // Where to go on when the last `*` must take one character more.
    let mut retry: Option<(usize, usize)> = None;
    let (mut at, mut position) = (0, 0);
    loop {
        if pattern.get(at) == Some(&b'*') {
            retry = Some((at, position));
            at += 1;
            continue;
        }
        if position == name.len() && at == pattern.len() {
            return true;
        }
        if let Some(&byte) = name.get(position)
            && let Some(length) = one(&pattern[at..], byte)
        {
            at += length;
            position += 1;
            continue;
        }
        match retry {
            Some((star, taken)) if name.get(taken).is_some_and(|&byte| byte != b'/') => {
                retry = Some((star, taken + 1));
                at = star + 1;
                position = taken + 1;
            }
            _ => return false,
        }
    }
}

/// The length of the pattern's first element when it matches a character.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => (byte != b'/').then_some(1),
        b'\\' => (*pattern.get(1)? == byte).then_some(2),
        b'[' => class(pattern, byte),
        literal => (literal == byte).then_some(1),
    }
}

fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    if negated {
        at += 1;
    }
    let first = at;
    let mut found = false;
    let next = |at: &mut usize| {
        if pattern.get(*at) == Some(&b'\\') {
            *at += 1;
        }
        let byte = *pattern.get(*at)?;
        *at += 1;
        Some(byte)
    };
    loop {
        if pattern.get(at) == Some(&b']') && at > first {
            at += 1;
            break;
        }
        let low = next(&mut at)?;
        let high = match pattern.get(at) {
            Some(b'-') => {
                at += 1;
                next(&mut at)?
            }
            _ => low,
        };
        found |= (low..=high).contains(&byte);
    }
    (found != negated && byte != b'/').then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references() {
        for (pattern, name) in [
            ("busybox", "busybox:latest"),
            ("busy*", "busybox:latest"),
            ("busybox:la*", "busybox:latest"),
            ("*", "busybox:1"),
            ("*/app:?1", "user/app:v1"),
            ("b[a-u]sybox", "busybox:1"),
            ("b[^v]sybox", "busybox:1"),
            ("b\\usybox", "busybox:1"),
            ("localhost:5000/app", "localhost:5000/app:v1"),
            ("a*b*c", "axbxbc:1"),
        ] {
            assert!(matches_reference(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("busy", "busybox:latest"),
            ("*", "user/app:v1"),
            ("b[", "busybox"),
            ("", "busybox"),
            ("?", "ab"),
        ] {
            assert!(!matches_reference(pattern, name), "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn every_name_matches_itself(name in "[a-z0-9/._-]{1,30}(:[a-z0-9]{1,5})?") {
            prop_assert!(matches_reference(&name, &name));
        }

        #[test]
        fn never_panics(pattern in "[a*?\\[\\]^\\\\/-]{0,20}", name in "[a/-]{0,20}") {
            matches_reference(&pattern, &name);
        }
    }
}
