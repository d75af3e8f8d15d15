//! The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*` is any text, `?` any character, both within a line; `\` makes
//! them, and itself, ordinary.

use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};

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

fn compile(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex, String> {
    let invalid = |reason: String| {
        let shown: String = pattern.chars().take(200).collect();
        format!("invalid pattern ({shown}) in substitution: {reason}")
    };
    if pattern.len() > MAX_PATTERN {
        return Err(invalid(format!("it is longer than {MAX_PATTERN} bytes")));
    }
    let mut out = String::from(if anchored { "^" } else { "" });
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => out.push_str(if greedy { ".*" } else { ".*?" }),
            '?' => out.push('.'),
            '\\' => match chars.next() {
                Some(c @ ('}' | '/' | '*' | '?' | '\\')) => {
                    out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
                }
                Some(c) => return Err(invalid(format!("invalid escape '\\{c}'"))),
                None => return Err(invalid("nothing follows the escape character".to_owned())),
            },
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    let regex = RegexBuilder::new(&out).build();
    regex.map_err(|error| invalid(error.to_string()))
}

/// `${x#p}`: the value without the shortest beginning that matches, or the longest.
pub(crate) fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, String> {
    let found = compile(pattern, greedy, true)?
        .find(value)
        .map_or(0, |found| found.end());
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

/// `${x/p/r}` and `${x//p/r}`. With the latter, `$0` in the replacement is what matched and other `$n` are empty, as Go's
/// regular expressions have it.
pub(crate) fn replace(
    pattern: &str,
    value: &str,
    replacement: &str,
    all: bool,
    room: usize,
) -> Result<String, String> {
    let regex = compile(pattern, true, false)?;
    let mut out = String::new();
    let mut end = 0;
    for found in regex.find_iter(value) {
        out.push_str(&value[end..found.start()]);
        end = found.end();
        if !all {
            out.push_str(replacement);
            break;
        }
        template(replacement, found.as_str(), &mut out);
        if out.len() > room {
            return Err(format!("the result is longer than {room} bytes"));
        }
    }
    out.push_str(&value[end..]);
    Ok(out)
}

fn template(replacement: &str, matched: &str, out: &mut String) {
    let mut rest = replacement;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let braced = rest.strip_prefix('{');
        let text = braced.unwrap_or(rest);
        let end = text
            .find(|c: char| c != '_' && !is_letter(c) && !is_digit(c))
            .unwrap_or(text.len());
        let (name, after) = text.split_at(end);
        let after = if braced.is_some() {
            after.strip_prefix('}')
        } else {
            Some(after)
        };
        match after {
            Some(after) if !name.is_empty() => {
                rest = after;
                if name == "0" {
                    out.push_str(matched);
                }
            }
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
}
