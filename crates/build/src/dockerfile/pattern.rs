//! The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*` is any text, `?` any character, both within a line; `\` makes
//! them, and itself, ordinary.

use std::sync::LazyLock;

use regex::Regex;

/// The longest pattern.
const MAX_PATTERN: usize = 4096;

/// The letters and decimal digits that are no ASCII. Rust's `is_alphabetic` and `is_numeric` are wider.
static CLASSES: LazyLock<Option<(Regex, Regex)>> =
    LazyLock::new(|| Some((Regex::new(r"^\p{L}$").ok()?, Regex::new(r"^\p{Nd}$").ok()?)));

fn is_class(c: char, choose: fn(&(Regex, Regex)) -> &Regex) -> bool {
    let classes = CLASSES.as_ref();
    classes.is_some_and(|classes| choose(classes).is_match(c.encode_utf8(&mut [0; 4])))
}

/// Unicode's letters.
pub(crate) fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || (!c.is_ascii() && is_class(c, |classes| &classes.0))
}

/// Unicode's decimal digits.
pub(crate) fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && is_class(c, |classes| &classes.1))
}

/// A pattern as an automaton whose states are bits: state `n` is "the first `n` characters of the pattern are matched".
/// One step over a character of the value takes a few operations for 64 states, so that no pattern takes longer than its
/// length times the value's, and none of the usual ones longer than the value's.
struct Pattern {
    /// How many characters, `?` among them, the pattern has.
    length: usize,
    /// The states in front of a `*`, which any character but a line's end keeps.
    stars: Vec<u64>,
    /// Characters that the pattern names, in order.
    named: Vec<char>,
    /// For each of them, the states it leads on from; at last those that any other character leads on from.
    steps: Vec<u64>,
}

impl Pattern {
    fn parse(pattern: &str) -> Result<Self, String> {
        let invalid = |reason: String| {
            let shown: String = pattern.chars().take(200).collect();
            format!("invalid pattern ({shown}) in substitution: {reason}")
        };
        if pattern.len() > MAX_PATTERN {
            return Err(invalid(format!("it is longer than {MAX_PATTERN} bytes")));
        }
        // None is `?`.
        let (mut wanted, mut starred) = (Vec::new(), Vec::new());
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            match c {
                '*' => starred.push(wanted.len()),
                '?' => wanted.push(None),
                '\\' => match chars.next() {
                    Some(c @ ('}' | '/' | '*' | '?' | '\\')) => wanted.push(Some(c)),
                    Some(c) => return Err(invalid(format!("invalid escape '\\{c}'"))),
                    None => return Err(invalid("nothing follows the escape character".to_owned())),
                },
                c => wanted.push(Some(c)),
            }
        }
        let words = wanted.len() / 64 + 1;
        let mut stars = vec![0; words];
        starred.into_iter().for_each(|state| set(&mut stars, state));
        let mut named: Vec<char> = wanted.iter().copied().flatten().collect();
        named.sort_unstable();
        named.dedup();
        let mut any = vec![0; words];
        let open = wanted.iter().enumerate().filter(|(_, wanted)| wanted.is_none());
        open.for_each(|(state, _)| set(&mut any, state));
        let mut steps = Vec::with_capacity((named.len() + 1) * words);
        for &c in &named {
            steps.extend(any.iter().map(|states| if c == '\n' { 0 } else { *states }));
        }
        for (state, c) in wanted.iter().enumerate() {
            if let Some(at) = c.and_then(|c| named.binary_search(&c).ok()) {
                set(&mut steps[at * words..], state);
            }
        }
        steps.extend(any);
        Ok(Self {
            length: wanted.len(),
            stars,
            named,
            steps,
        })
    }

    /// The states that a character leads on from.
    fn steps(&self, c: char) -> &[u64] {
        let words = self.stars.len();
        match self.named.binary_search(&c) {
            Ok(at) => &self.steps[at * words..(at + 1) * words],
            Err(_) if c == '\n' => &[],
            Err(_) => &self.steps[self.named.len() * words..],
        }
    }

    /// How many bytes at the beginning match: as few as possible, or as many.
    fn prefix(&self, value: &str, greedy: bool) -> Option<usize> {
        let mut states = vec![0; self.stars.len()];
        set(&mut states, 0);
        let mut found = None;
        for (at, c) in value.char_indices() {
            if has(&states, self.length) {
                found = Some(at);
                if !greedy {
                    return found;
                }
            }
            let steps = self.steps(c);
            let (mut carried, mut alive) = (0, 0);
            for (word, states) in states.iter_mut().enumerate() {
                let on = *states & steps.get(word).copied().unwrap_or_default();
                let stay = if c == '\n' { 0 } else { *states & self.stars[word] };
                *states = stay | on << 1 | carried;
                carried = on >> 63;
                alive |= *states;
            }
            if alive == 0 {
                return found;
            }
        }
        if has(&states, self.length) {
            found = Some(value.len());
        }
        found
    }

    /// For each byte of the value, whether a match begins there, found by going backwards: a state is in the set when
    /// the rest of the pattern matches from here on.
    fn starts(&self, value: &str) -> Vec<bool> {
        let mut states = vec![0; self.stars.len()];
        set(&mut states, self.length);
        let mut starts = vec![false; value.len() + 1];
        starts[value.len()] = has(&states, 0);
        for (at, c) in value.char_indices().rev() {
            let steps = self.steps(c);
            let mut carried = 0;
            for (word, states) in states.iter_mut().enumerate().rev() {
                let on = (*states >> 1 | carried) & steps.get(word).copied().unwrap_or_default();
                let stay = if c == '\n' { 0 } else { *states & self.stars[word] };
                carried = *states << 63;
                *states = stay | on;
            }
            // A match may end anywhere.
            set(&mut states, self.length);
            starts[at] = has(&states, 0);
        }
        starts
    }
}

fn set(states: &mut [u64], state: usize) {
    states[state / 64] |= 1 << (state % 64);
}

fn has(states: &[u64], state: usize) -> bool {
    states[state / 64] >> (state % 64) & 1 == 1
}

/// `${x#p}`: the value without the shortest beginning that matches, or the longest.
pub(crate) fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, String> {
    let found = Pattern::parse(pattern)?.prefix(value, greedy).unwrap_or(0);
    Ok(value[found..].to_owned())
}

/// `${x%p}`: the same at the end, by looking at both from behind.
pub(crate) fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, String> {
    let mut pieces = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        pieces.push(match (c, chars.clone().next()) {
            ('\\', Some(next)) => {
                chars.next();
                format!("\\{next}")
            }
            _ => c.to_string(),
        });
    }
    let pattern: String = pieces.into_iter().rev().collect();
    let value: String = value.chars().rev().collect();
    let rest = trim_prefix(&pattern, &value, greedy)?;
    Ok(rest.chars().rev().collect())
}

/// `${x/p/r}` and `${x//p/r}`: the first and longest match, and all such that do not overlap. With the latter, `$0` in the
/// replacement is what matched and other `$n` are empty, as Go's regular expressions have it.
pub(crate) fn replace(
    pattern: &str,
    value: &str,
    replacement: &str,
    all: bool,
    room: usize,
) -> Result<String, String> {
    let pattern = Pattern::parse(pattern)?;
    let template = if all {
        Template::parse(replacement)
    } else {
        Template::of(replacement)
    };
    let starts = pattern.starts(value);
    let mut out = String::new();
    let (mut copied, mut from, mut last) = (0, 0, None);
    while let Some(start) = starts[from..]
        .iter()
        .position(|&begins| begins)
        .map(|skip| from + skip)
        && let Some(length) = pattern.prefix(&value[start..], true)
    {
        let end = start + length;
        // Where the last match ended, nothing does not match once more.
        if length > 0 || last != Some(start) {
            out.push_str(&value[copied..start]);
            template.write(&value[start..end], &mut out);
            copied = end;
            last = Some(end);
            if out.len() > room {
                return Err(format!("the result is longer than {room} bytes"));
            }
            if !all {
                break;
            }
        }
        from = end;
        if length == 0 {
            let Some(c) = value[end..].chars().next() else {
                break;
            };
            from += c.len_utf8();
        }
    }
    out.push_str(&value[copied..]);
    Ok(out)
}

/// A replacement: texts, and between each two of them what matched.
struct Template {
    texts: Vec<String>,
    /// All of it when what matched is nothing.
    joined: String,
}

impl Template {
    fn of(text: &str) -> Self {
        Self {
            texts: vec![text.to_owned()],
            joined: text.to_owned(),
        }
    }

    fn parse(replacement: &str) -> Self {
        let (mut texts, mut text) = (Vec::new(), String::new());
        let mut rest = replacement;
        while let Some((before, after)) = rest.split_once('$') {
            text.push_str(before);
            rest = after;
            if let Some(after) = rest.strip_prefix('$') {
                text.push('$');
                rest = after;
                continue;
            }
            let braced = rest.strip_prefix('{');
            let name = braced.unwrap_or(rest);
            let end = name
                .find(|c: char| c != '_' && !is_letter(c) && !is_digit(c))
                .unwrap_or(name.len());
            let (name, after) = name.split_at(end);
            let after = if braced.is_some() {
                after.strip_prefix('}')
            } else {
                Some(after)
            };
            match after {
                Some(after) if !name.is_empty() => {
                    rest = after;
                    if name == "0" {
                        texts.push(std::mem::take(&mut text));
                    }
                }
                _ => text.push('$'),
            }
        }
        text.push_str(rest);
        texts.push(text);
        Self {
            joined: texts.concat(),
            texts,
        }
    }

    fn write(&self, matched: &str, out: &mut String) {
        if matched.is_empty() {
            out.push_str(&self.joined);
            return;
        }
        for (number, text) in self.texts.iter().enumerate() {
            if number > 0 {
                out.push_str(matched);
            }
            out.push_str(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    /// The same pattern as a regular expression, which is what BuildKit makes of it.
    fn regular(pattern: &str, greedy: bool, anchored: bool) -> Option<Regex> {
        let mut out = String::from(if anchored { "^" } else { "" });
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            match c {
                '*' => out.push_str(if greedy { ".*" } else { ".*?" }),
                '?' => out.push('.'),
                '\\' => out.push_str(&regex::escape(&chars.next()?.to_string())),
                c => out.push_str(&regex::escape(&c.to_string())),
            }
        }
        Regex::new(&out).ok()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn patterns_match_as_regular_expressions_do(
            pattern in r"([abé?*\n]|\\[*?/}\\]){0,7}",
            repeated in 1usize..24,
            value in r"[abé*\n]{0,24}",
        ) {
            // Some longer than a word of states.
            for pattern in [pattern.clone(), pattern.repeat(repeated)] {
                for greedy in [false, true] {
                    let end = regular(&pattern, greedy, true).unwrap().find(&value).map_or(0, |found| found.end());
                    prop_assert_eq!(trim_prefix(&pattern, &value, greedy).unwrap(), &value[end..]);
                }
                let regular = regular(&pattern, true, false).unwrap();
                let replaced = replace(&pattern, &value, "<$0>", true, 1 << 20).unwrap();
                prop_assert_eq!(replaced, regular.replace_all(&value, "<$0>"));
                let replaced = replace(&pattern, &value, "<$0>", false, 1 << 20).unwrap();
                prop_assert_eq!(replaced, regular.replace(&value, regex::NoExpand("<$0>")));
            }
        }
    }

    #[test]
    fn many_patterns_and_long_ones_take_no_time() {
        let start = Instant::now();
        for number in 0..5000 {
            let pattern = format!("*{number}?*x");
            assert_eq!(trim_prefix(&pattern, "/usr/lib", true).as_deref(), Ok("/usr/lib"));
        }
        let value = "a".repeat(50_000);
        let long = "a*".repeat(2000) + "b";
        assert_eq!(
            replace(&long, &value, "x", true, 1 << 20).as_deref(),
            Ok(value.as_str())
        );
        let mut nothing = String::new();
        (0..5000).for_each(|_| nothing.write_str("$1").unwrap());
        let replaced = replace("a", &value, &nothing, true, 1 << 20);
        assert_eq!(replaced.as_deref(), Ok(""));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
