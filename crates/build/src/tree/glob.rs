//! Wildcards in sources of `COPY`, `ADD` and `--mount`: Go's `filepath.Match`, one component at a time, and `**`.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags};

use super::{MAX_DEPTH, kind, list, open_in, show, stat_at};
use crate::error::{Error, Result};

/// Whether a path has wildcards.
pub(crate) fn has_wildcards(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// Whether a name matches a pattern without slashes. A malformed pattern is an error.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> Result<bool> {
    let bad = || Error::invalid(format!("the pattern {} is malformed", show(pattern)));
    // Where to go on after the last star when what follows does not match.
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            None if n == name.len() => return Ok(true),
            None => None,
            Some(_) if n == name.len() => None,
            Some(b'?') => Some((1, width(&name[n..]))),
            Some(b'[') => {
                let (end, inside) = class(&pattern[p..], &name[n..]).ok_or_else(bad)?;
                inside.then(|| (end, width(&name[n..])))
            }
            Some(b'\\') => {
                let literal = pattern.get(p + 1).ok_or_else(bad)?;
                (*literal == name[n]).then_some((2, 1))
            }
            Some(byte) => (*byte == name[n]).then_some((1, 1)),
        };
        match (step, star) {
            (Some((dp, dn)), _) => {
                p += dp;
                n += dn;
            }
            (None, Some((after, from))) if from < name.len() => {
                star = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            _ => return Ok(false),
        }
    }
}

/// Bytes of the first character.
fn width(text: &[u8]) -> usize {
    let end = text.len().min(4);
    (1..=end)
        .find(|&end| std::str::from_utf8(&text[..end]).is_ok())
        .unwrap_or(1)
}

fn character(text: &[u8]) -> u32 {
    let width = width(text);
    std::str::from_utf8(&text[..width.min(text.len())])
        .ok()
        .and_then(|text| text.chars().next())
        .map_or_else(|| text.first().copied().map_or(0, u32::from), u32::from)
}

/// The length of a class and whether the first character of the name is in it. None: it has no end.
fn class(pattern: &[u8], name: &[u8]) -> Option<(usize, bool)> {
    let wanted = character(name);
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let (mut inside, mut first) = (false, true);
    let next = |at: &mut usize| -> Option<u32> {
        if pattern.get(*at) == Some(&b'\\') {
            *at += 1;
        }
        let rest = pattern.get(*at..).filter(|rest| !rest.is_empty())?;
        *at += width(rest);
        Some(character(rest))
    };
    loop {
        if pattern.get(at) == Some(&b']') && !first {
            return Some((at + 1, inside != negated));
        }
        first = false;
        let low = next(&mut at)?;
        let high = if pattern.get(at) == Some(&b'-') {
            at += 1;
            next(&mut at)?
        } else {
            low
        };
        inside |= (low..=high).contains(&wanted);
    }
}

/// The paths below the root that a pattern names, sorted; links in directories are followed inside the root. What is
/// not there is left out. `**` stands for any number of directories.
pub(crate) fn expand(root: BorrowedFd<'_>, pattern: &[u8]) -> Result<Vec<Vec<u8>>> {
    let parts: Vec<&[u8]> = pattern
        .split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    let mut found = Vec::new();
    walk(root, b"", &parts, 0, &mut found)?;
    found.sort();
    found.dedup();
    Ok(found)
}

fn walk(
    root: BorrowedFd<'_>,
    at: &[u8],
    parts: &[&[u8]],
    depth: usize,
    found: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let Some((part, rest)) = parts.split_first() else {
        found.push(if at.is_empty() { b"/".to_vec() } else { at.to_vec() });
        return Ok(());
    };
    if depth > MAX_DEPTH {
        return Err(Error::invalid(format!("{} is too deep", show(at))));
    }
    let join = |name: &[u8]| [at, b"/", name].concat();
    let wild = part.iter().any(|byte| b"*?[\\".contains(byte));
    if !wild {
        // Only the last may be a link that leads to nothing.
        let path = join(part);
        let there = if rest.is_empty() {
            match open_in(root, at, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(parent) => stat_at(parent.as_fd(), part).ok().flatten().is_some(),
                Err(_) => false,
            }
        } else {
            open_in(root, &path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
        };
        return if there {
            walk(root, &path, rest, depth + 1, found)
        } else {
            Ok(())
        };
    }
    if *part == b"**" {
        walk(root, at, rest, depth + 1, found)?;
    }
    let Ok(directory) = open_in(root, at, OFlags::RDONLY | OFlags::DIRECTORY) else {
        return Ok(());
    };
    let names =
        list(directory.as_fd()).map_err(|error| Error::io(format!("cannot list {}", show(at)), error))?;
    for name in names {
        if *part == b"**" {
            let stat = stat_at(directory.as_fd(), &name).ok().flatten();
            if stat.is_some_and(|stat| kind(&stat) == FileType::Directory) {
                walk(root, &join(&name), parts, depth + 1, found)?;
            }
        } else if matches(part, &name)? {
            let path = join(&name);
            if rest.is_empty() || open_in(root, &path, OFlags::PATH | OFlags::DIRECTORY).is_ok() {
                walk(root, &path, rest, depth + 1, found)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn matches_as_go_does() {
        for (pattern, name, want) in [
            ("*.go", "a.go", true),
            ("*.go", "a.goo", false),
            ("a*b*c", "axxbxxbc", true),
            ("a?c", "aéc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("", "", true),
            ("*", "", true),
            ("[]a]", "]", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()).unwrap(),
                want,
                "{pattern} {name}"
            );
        }
        assert!(matches(b"[a", b"a").is_err());
        assert!(matches(b"\\", b"a").is_err());
    }

    #[test]
    fn finds_paths() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["a/x.txt", "a/b/y.txt", "c/z.txt", "top.txt"] {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let root = super::super::open_root(directory.path()).unwrap();
        let find = |pattern: &str| -> Vec<String> {
            let found = expand(root.as_fd(), pattern.as_bytes()).unwrap();
            found
                .into_iter()
                .map(|path| String::from_utf8(path).unwrap())
                .collect()
        };
        assert_eq!(find("*.txt"), ["/top.txt"]);
        assert_eq!(find("*/*.txt"), ["/a/x.txt", "/c/z.txt"]);
        assert_eq!(
            find("**/*.txt"),
            ["/a/b/y.txt", "/a/x.txt", "/c/z.txt", "/top.txt"]
        );
        assert_eq!(find("a"), ["/a"]);
        assert_eq!(find("/"), ["/"]);
        assert!(find("nothing").is_empty());
    }

    proptest! {
        #[test]
        fn never_panics_and_literals_match(pattern in "[a-c*?\\[\\]^\\\\-]{0,12}", name in "[a-cé]{0,8}") {
            let _ = matches(pattern.as_bytes(), name.as_bytes());
            prop_assert!(matches(name.as_bytes(), name.as_bytes()).unwrap());
        }
    }
}
