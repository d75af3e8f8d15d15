//! `.dockerignore` and `COPY --exclude`, with the exact meaning that Docker gives them (moby/patternmatcher).
//!
//! A pattern matches a path, relative to the context's root, or a directory above it. `*`, `?` and `[...]` do not go
//! beyond a `/` (a negated class does), `**` does. Patterns count in order, and the last that matches decides; one with `!`
//! takes a path back in. Lines that begin with `#` are comments. Patterns are cleaned as paths are: `/a/./b/` is `a/b`.
//!
//! [`Matcher::enter`] is for walking a tree: it carries what directories above have matched, and
//! [`Matcher::prunes`] says when nothing below a directory can come back. As in Docker, a pattern that could change nothing
//! for a directory is not remembered for what lies in it: of `*`, `!a/b`, `*` the last has no say about `a/b` on a walk, and
//! excludes it for [`Matcher::matches`].

pub mod glob;
mod wildcard;

use std::borrow::Cow;

use wildcard::Wildcard;

/// The largest ignore file.
pub const MAX_SIZE: usize = 4 << 20;

/// The most patterns.
const MAX_PATTERNS: usize = 20_000;

/// The longest pattern.
const MAX_PATTERN: usize = wildcard::MAX_LENGTH;

/// A pattern that makes no sense, or too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPattern(String);

/// The patterns of an ignore file, one per line, cleaned.
pub fn read(bytes: &[u8]) -> Result<Vec<String>, BadPattern> {
    if bytes.len() > MAX_SIZE {
        return Err(BadPattern(format!(
            "the ignore file has {} bytes; it may have {MAX_SIZE}",
            bytes.len()
        )));
    }
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line));
    Ok(lines.filter_map(line).collect())
}

fn line(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let line = line.trim();
    let (mark, pattern) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", line),
    };
    if pattern.is_empty() {
        return (!mark.is_empty()).then(|| mark.to_owned());
    }
    let cleaned = clean(pattern);
    let relative = match cleaned.strip_prefix('/') {
        Some(rest) if !rest.is_empty() => rest,
        _ => &cleaned,
    };
    Some(format!("{mark}{relative}"))
}

/// A path without `.`, `..`, `//` and a `/` at the end, as far as the text alone tells; the empty path is `.`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    /// Whether it takes back in.
    negative: bool,
    wildcard: Wildcard,
}

/// Patterns in order.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
}

/// Which patterns matched a directory or one above it. The default is the root's.
#[derive(Clone, Debug, Default)]
pub struct State {
    matched: Vec<bool>,
}

impl Matcher {
    /// A matcher of these patterns; of an ignore file, those that [`read`] returns.
    pub fn new<T: AsRef<str>>(patterns: impl IntoIterator<Item = T>) -> Result<Self, BadPattern> {
        let mut matcher = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            if pattern.len() > MAX_PATTERN || matcher.patterns.len() == MAX_PATTERNS {
                return Err(BadPattern(format!(
                    "patterns may have {MAX_PATTERN} bytes each, and there may be {MAX_PATTERNS} of them"
                )));
            }
            matcher.patterns.push(Pattern::new(&clean(pattern))?);
        }
        Ok(matcher)
    }

    /// The matcher of an ignore file.
    pub fn of_file(bytes: &[u8]) -> Result<Self, BadPattern> {
        Self::new(read(bytes)?)
    }

    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether any pattern takes paths back in.
    pub fn has_negatives(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.negative)
    }

    /// Whether a pattern excludes all that lies in the root.
    pub(crate) fn excludes_root(&self) -> bool {
        let all =
            |pattern: &Pattern| !pattern.negative && matches!(pattern.text.as_str(), "*" | "**" | "**/*");
        self.patterns.iter().any(all)
    }

    /// Whether a path, relative and cleaned, is excluded, by itself or by a directory above it.
    pub fn matches(&self, path: &str) -> bool {
        self.enter(path, &State::default()).0
    }

    /// Whether a path is excluded, given what the directory it lies in has matched, and the same for what lies in it.
    /// For an entry of the root the state is the default.
    pub fn enter(&self, path: &str, parent: &State) -> (bool, State) {
        let mut excluded = false;
        let mut state = State {
            matched: vec![false; self.patterns.len()],
        };
        let parents_known = parent.matched.len() == self.patterns.len();
        for (index, pattern) in self.patterns.iter().enumerate() {
            let mut found = parents_known && parent.matched[index];
            if !found {
                // It could not change anything.
                if pattern.negative != excluded {
                    continue;
                }
                found = pattern.matches(path) || (!parents_known && pattern.matches_above(path));
            }
            state.matched[index] = found;
            if found {
                excluded = !pattern.negative;
            }
        }
        (excluded, state)
    }

    /// Whether all below an excluded directory is excluded, too, so that nobody has to look.
    pub fn prunes(&self, directory: &str) -> bool {
        let mut negatives = self.patterns.iter().filter(|pattern| pattern.negative);
        !negatives.any(|pattern| pattern.reaches_below(directory))
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, BadPattern> {
        let (text, negative) = match text.strip_prefix('!') {
            Some("") => return Err(BadPattern("illegal exclusion pattern: \"!\"".to_owned())),
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let wrong = || BadPattern(format!("syntax error in pattern {text:?}"));
        glob::matches(text, ".").map_err(|_| wrong())?;
        Ok(Self {
            wildcard: Wildcard::compile(text).ok_or_else(wrong)?,
            text: text.to_owned(),
            negative,
        })
    }

    fn matches(&self, path: &str) -> bool {
        self.wildcard.matches(path)
    }

    fn matches_above(&self, path: &str) -> bool {
        path.match_indices('/').any(|(end, _)| self.matches(&path[..end]))
    }

    /// Whether the pattern may match something below a directory that it does not match already. Errs on the side of yes.
    fn reaches_below(&self, directory: &str) -> bool {
        // Neither a class nor an escape tells where a component ends.
        if self.text.contains(['[', '\\']) {
            return true;
        }
        let mut parts = self.text.split('/');
        for name in directory.split('/') {
            match parts.next() {
                None => return false,
                Some(part) if part.contains("**") => return true,
                Some(part) if glob::matches(part, name) == Ok(false) => return false,
                Some(_) => {}
            }
        }
        parts.next().is_some()
    }
}

/// A file's name as text to match; bytes that are not UTF-8 are U+FFFD.
pub fn path_text(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}

#[cfg(test)]
mod tests;
