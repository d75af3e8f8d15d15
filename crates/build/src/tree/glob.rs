//! Wildcards in sources of `COPY`, `ADD` and `--mount`: Go's `filepath.Match`, one component at a time, and `**`.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags};

use super::{MAX_DEPTH, kind, list, open_at, open_in, show, split, stat_at};
use crate::error::{Error, Result};
use crate::solve::Cancelled;

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

/// The paths below the root that a pattern names, sorted. Links are followed inside the root up to the first component
/// with a wildcard and not behind it, as BuildKit does. What is not there is left out. `deep`: `**` stands for any number
/// of directories, as it does with `--parents`; otherwise it is a `*`.
///
/// Every directory is listed once at most, whatever the pattern: the walk keeps the set of components that may come next.
pub(crate) fn expand(
    root: BorrowedFd<'_>,
    pattern: &[u8],
    deep: bool,
    cancelled: &Cancelled,
) -> Result<Vec<Vec<u8>>> {
    let mut parts: Vec<&[u8]> = pattern
        .split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    parts.dedup_by(|one, other| deep && one == other && *one == b"**");
    let plain = parts.iter().take_while(|part| !is_wild(part)).count();
    let mut found = Vec::new();
    if plain == parts.len() {
        // Only the last may be a link that leads to nothing.
        let whole = [b"/", &parts.join(&b'/')[..]].concat();
        let (parent, name) = split(&whole);
        let there = match open_in(root, parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(parent) => name.is_empty() || stat_at(parent.as_fd(), name).ok().flatten().is_some(),
            Err(_) => false,
        };
        found.extend(there.then_some(whole));
        return Ok(found);
    }
    let start: Vec<u8> = parts[..plain]
        .iter()
        .flat_map(|part| [b"/", *part].concat())
        .collect();
    let Ok(directory) = open_in(root, &start, OFlags::RDONLY | OFlags::DIRECTORY) else {
        return Ok(found);
    };
    let mut walk = Walk {
        parts: &parts[plain..],
        deep,
        cancelled,
        found,
    };
    let mut first = BTreeSet::new();
    walk.enter(0, &mut first);
    if first.contains(&walk.parts.len()) {
        walk.found.push(if start.is_empty() {
            b"/".to_vec()
        } else {
            start.clone()
        });
    }
    walk.directory(directory.as_fd(), &start, &first, 0)?;
    let mut found = walk.found;
    found.sort();
    Ok(found)
}

fn is_wild(part: &[u8]) -> bool {
    part.iter().any(|byte| b"*?[\\".contains(byte))
}

struct Walk<'a> {
    parts: &'a [&'a [u8]],
    deep: bool,
    cancelled: &'a Cancelled,
    found: Vec<Vec<u8>>,
}

impl Walk<'_> {
    fn is_deep(&self, part: &[u8]) -> bool {
        self.deep && part == b"**"
    }

    /// Adds a component that may come next; after `**` also the one behind it, since it stands for none, too.
    fn enter(&self, at: usize, next: &mut BTreeSet<usize>) {
        next.insert(at);
        if self.parts.get(at).is_some_and(|part| self.is_deep(part)) {
            next.insert(at + 1);
        }
    }

    /// Looks at what is in a directory. `next`: the components that may come now.
    fn directory(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &[u8],
        next: &BTreeSet<usize>,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!("{} is too deep", show(path))));
        }
        let names =
            list(directory).map_err(|error| Error::io(format!("cannot list {}", show(path)), error))?;
        for name in names {
            self.cancelled.check()?;
            let is_directory = stat_at(directory, &name)
                .ok()
                .flatten()
                .is_some_and(|stat| kind(&stat) == FileType::Directory);
            let mut behind = BTreeSet::new();
            for &at in next {
                match self.parts.get(at) {
                    Some(part) if self.is_deep(part) && is_directory => self.enter(at, &mut behind),
                    Some(part) if !self.is_deep(part) && matches(part, &name)? => {
                        self.enter(at + 1, &mut behind)
                    }
                    _ => {}
                }
            }
            if behind.is_empty() {
                continue;
            }
            let path = [path, b"/", &name].concat();
            let more = behind.iter().any(|&at| at < self.parts.len());
            if behind.contains(&self.parts.len()) {
                self.found.push(path.clone());
            }
            if is_directory && more {
                let child = open_at(directory, &name, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(|error| Error::io(format!("cannot open {}", show(&path)), error))?;
                self.directory(child.as_fd(), &path, &behind, depth + 1)?;
            }
        }
        Ok(())
    }
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
            let found = expand(root.as_fd(), pattern.as_bytes(), true, &Cancelled::default()).unwrap();
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
        let flat = expand(root.as_fd(), b"**/*.txt", false, &Cancelled::default()).unwrap();
        assert_eq!(flat, [b"/a/x.txt", b"/c/z.txt"]);
        assert!(find("nothing").is_empty());
        assert!(find("nothing/*").is_empty());
        assert_eq!(find("a/**"), ["/a", "/a/b"]);
        assert_eq!(find("**/**/y.txt"), ["/a/b/y.txt"]);
        assert_eq!(find("a/**/b/*"), ["/a/b/y.txt"]);
        // Before the first wildcard a link leads on, behind it none does.
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        assert_eq!(find("link/*.txt"), ["/link/x.txt"]);
        assert_eq!(find("l*/*.txt"), [""; 0]);
        assert_eq!(find("l*"), ["/link"]);
    }

    /// A hundred directories below each other and a dozen `**`: as many ways through as atoms in a body.
    #[test]
    fn hostile_patterns_take_no_time() {
        let directory = tempfile::tempdir().unwrap();
        let mut path = directory.path().to_owned();
        for _ in 0..100 {
            path.push("a");
        }
        std::fs::create_dir_all(&path).unwrap();
        let root = super::super::open_root(directory.path()).unwrap();
        let pattern = "**/a/".repeat(12) + "nothing";
        let begun = std::time::Instant::now();
        let cancelled = Cancelled::default();
        assert!(
            expand(root.as_fd(), pattern.as_bytes(), true, &cancelled)
                .unwrap()
                .is_empty()
        );
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
        cancelled.cancel();
        let error = expand(root.as_fd(), pattern.as_bytes(), true, &cancelled).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Cancelled);
    }

    proptest! {
        #[test]
        fn never_panics_and_literals_match(pattern in "[a-c*?\\[\\]^\\\\-]{0,12}", name in "[a-cé]{0,8}") {
            let _ = matches(pattern.as_bytes(), name.as_bytes());
            prop_assert!(matches(name.as_bytes(), name.as_bytes()).unwrap());
        }
    }
}
