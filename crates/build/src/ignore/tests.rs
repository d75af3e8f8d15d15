use super::*;

fn matcher(patterns: &str) -> Matcher {
    Matcher::of_file(patterns.as_bytes()).unwrap()
}

#[test]
fn the_last_pattern_that_matches_decides() {
    for (patterns, path, excluded) in [
        ("*.md\n!README.md", "a.md", true),
        ("*.md\n!README.md", "README.md", false),
        ("!README.md\n*.md", "README.md", true),
        ("*.md", "docs/a.md", false),
        ("**/*.md", "docs/a.md", true),
        ("**/*.md", "a.md", true),
        ("docs", "docs/a/b", true),
        ("docs\n!docs/a", "docs/a/b", false),
        ("docs/*\n!docs/a", "docs/b/c", true),
        ("/docs/./x/..//", "docs/b", true),
        ("**", "a/b", true),
        ("a/**", "a", false),
        ("a/**", "a/b/c", true),
        ("**/a", "x/y/a/z", true),
        ("**a", "x/ba", true),
        ("a**", "ab/c", true),
        ("a/**/b", "a/b", true),
        ("a/**/b", "a/x/y/b", true),
        ("?.c", "a.c", true),
        ("[a-c].c", "d.c", false),
        ("[^a-c].c", "d.c", true),
        ("[[:digit:]].c", "7.c", true),
        ("a\\*", "a*", true),
        ("a\\*", "ab", false),
        ("#a", "#a", false),
        (" a \r\n", "a", true),
        ("\u{feff}a", "a", true),
        ("a.c", "abc", false),
        (".", "a", false),
        ("..", "a", false),
    ] {
        assert_eq!(matcher(patterns).matches(path), excluded, "{patterns:?} {path:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for patterns in ["!", "! ", "[", "a[", "[a", "[]a]", "[z-a]", "a\\"] {
        assert!(Matcher::of_file(patterns.as_bytes()).is_err(), "{patterns:?}");
    }
    assert!(read(&vec![b'a'; MAX_SIZE + 1]).is_err());
    assert!(Matcher::new(["a".repeat(MAX_PATTERN + 1)]).is_err());
}

#[test]
fn a_directory_is_pruned_unless_something_below_can_come_back() {
    for (patterns, directory, prunes) in [
        ("node_modules", "node_modules", true),
        ("*\n!src", "target", true),
        ("*\n!src/lib", "src", false),
        ("*\n!src/*/lib", "src/a", false),
        ("*\n!src/*/lib", "src/a/b", true),
        ("*\n!**/keep", "any/where", false),
        ("*\n!s?c/x", "src", false),
        ("*\n![st]rc/x", "target", false),
    ] {
        assert_eq!(
            matcher(patterns).prunes(directory),
            prunes,
            "{patterns:?} {directory:?}"
        );
    }
}

#[test]
fn walking_gives_the_same_answers() {
    let matcher = matcher("a\n!a/b\na/b/c\n**/d\n!**/d/e\n");
    for path in ["a/x", "a/b/x", "a/b/c/x", "a/b/c/d/e", "q/d/e/f", "q/d/g", "q"] {
        let mut state = State::default();
        let mut excluded = false;
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            (excluded, state) = matcher.enter(&path[..end], &state);
        }
        assert_eq!(excluded, matcher.matches(path), "{path}");
    }
}

#[test]
fn a_walk_forgets_what_changed_nothing() {
    let matcher = matcher("*\n!a/b\n*");
    let (_, state) = matcher.enter("a", &State::default());
    assert!(!matcher.enter("a/b", &state).0);
    assert!(matcher.matches("a/b"));
}

#[test]
fn wildcards_of_sources() {
    for (pattern, name, matched) in [
        ("*.txt", "a.txt", Ok(true)),
        ("*.txt", "d/a.txt", Ok(false)),
        ("*/a.txt", "d/a.txt", Ok(true)),
        ("a*b*c", "axxbyyc", Ok(true)),
        ("a*b*c", "axxbyyd", Ok(false)),
        ("a?c", "a/c", Ok(false)),
        ("[^a]", "b", Ok(true)),
        ("[a-c]x", "bx", Ok(true)),
        ("\\*", "*", Ok(true)),
        ("é?", "éü", Ok(true)),
        ("[", "a", Err(glob::BadPattern)),
        ("a*[", "ab", Err(glob::BadPattern)),
        ("b*[", "ab", Ok(false)),
        ("[]a]", "a", Err(glob::BadPattern)),
    ] {
        assert_eq!(glob::matches(pattern, name), matched, "{pattern:?} {name:?}");
    }
}
