//! `${VARIABLE}` and its forms, as the Compose specification has them.
//!
//! `$NAME`, `${NAME}`, `${NAME:-word}`, `${NAME-word}`, `${NAME:?word}`, `${NAME?word}`, `${NAME:+word}`,
//! `${NAME+word}`, where words may have variables, and `$$` for a dollar sign. A dollar sign before anything else
//! stays.

use crate::yaml::{Fault, Node, Value};

/// How deep words may be nested.
const MAX_DEPTH: usize = 32;
/// The longest text that may come out.
const MAX_TEXT: usize = 4 << 20;

/// Substitutes variables in a text. `unset` is told of those that are missing and have no default.
///
/// # Errors
/// The text is not well formed, or a required variable is missing.
pub fn substitute(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
    unset: &mut dyn FnMut(&str),
) -> Result<String, String> {
    let mut substitution = Substitution {
        lookup,
        unset,
        whole: text,
    };
    substitution.text(text, 0)
}

/// The most that texts with variables become in a project, together.
pub const MAX_TOTAL: usize = 64 << 20;

/// Substitutes variables in all texts of a tree, but in keys. `budget` is how many bytes may come out, and goes down.
pub fn tree(
    node: &mut Node,
    lookup: &dyn Fn(&str) -> Option<String>,
    unset: &mut dyn FnMut(&str),
    budget: &mut usize,
) -> Result<(), Fault> {
    walk(node, &mut String::new(), lookup, unset, budget)
}

fn walk(
    node: &mut Node,
    path: &mut String,
    lookup: &dyn Fn(&str) -> Option<String>,
    unset: &mut dyn FnMut(&str),
    budget: &mut usize,
) -> Result<(), Fault> {
    let length = path.len();
    match &mut node.value {
        Value::String(text) if text.contains('$') => {
            *text = substitute(text, lookup, unset)
                .map_err(|message| Fault::new(node.at, path.as_str(), message))?;
            *budget = budget.checked_sub(text.len()).ok_or_else(|| {
                Fault::new(
                    node.at,
                    path.as_str(),
                    "the project's variables stand for too much text",
                )
            })?;
        }
        Value::List(list) => {
            for (index, item) in list.iter_mut().enumerate() {
                path.push_str(&format!("[{index}]"));
                walk(item, path, lookup, unset, budget)?;
                path.truncate(length);
            }
        }
        Value::Map(map) => {
            for (key, item) in map.iter_mut() {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                walk(item, path, lookup, unset, budget)?;
                path.truncate(length);
            }
        }
        _ => {}
    }
    Ok(())
}

struct Substitution<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    unset: &'a mut dyn FnMut(&str),
    whole: &'a str,
}

impl Substitution<'_> {
    fn invalid(&self) -> String {
        format!(
            "invalid interpolation format: {:?}; write $$ for a dollar sign",
            self.whole
        )
    }

    fn text(&mut self, text: &str, depth: usize) -> Result<String, String> {
        if depth > MAX_DEPTH {
            return Err(format!("variables are nested more than {MAX_DEPTH} levels deep"));
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix('$') {
                out.push('$');
                rest = behind;
            } else if let Some(behind) = rest.strip_prefix('{') {
                let end = closing(behind).ok_or_else(|| self.invalid())?;
                let value = self.braced(&behind[..end], depth)?;
                out.push_str(&value);
                rest = &behind[end + 1..];
            } else {
                let length = name_length(rest);
                if length == 0 {
                    out.push('$');
                } else {
                    out.push_str(&self.value(&rest[..length]));
                    rest = &rest[length..];
                }
            }
            if out.len() > MAX_TEXT {
                return Err("the text becomes too long".to_owned());
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    /// The value of a variable, blank when there is none.
    fn value(&mut self, name: &str) -> String {
        (self.lookup)(name).unwrap_or_else(|| {
            (self.unset)(name);
            String::new()
        })
    }

    /// What stands between braces.
    fn braced(&mut self, body: &str, depth: usize) -> Result<String, String> {
        let length = name_length(body);
        let (name, rest) = body.split_at(length);
        if name.is_empty() {
            return Err(self.invalid());
        }
        if rest.is_empty() {
            return Ok(self.value(name));
        }
        let (strict, operator) = match rest.strip_prefix(':') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let mut chars = operator.chars();
        let kind = chars.next();
        let word = chars.as_str();
        let value = (self.lookup)(name).filter(|value| !strict || !value.is_empty());
        match (kind, value) {
            (Some('-' | '?'), Some(value)) => Ok(value),
            (Some('-'), None) => self.text(word, depth + 1),
            (Some('?'), None) => {
                let reason = self.text(word, depth + 1)?;
                let colon = if reason.is_empty() { "" } else { ": " };
                Err(format!(
                    "required variable {name} is missing a value{colon}{reason}"
                ))
            }
            (Some('+'), Some(_)) => self.text(word, depth + 1),
            (Some('+'), None) => Ok(String::new()),
            _ => Err(self.invalid()),
        }
    }
}

/// Where the brace stands that closes what is open before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn name_length(text: &str) -> usize {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins {
        return 0;
    }
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "FOO" => Some("first".into()),
            "BAR" => Some(String::new()),
            "_x" => Some("$FOO".into()),
            _ => None,
        }
    }

    fn sub(text: &str) -> Result<String, String> {
        substitute(text, &lookup, &mut |_| {})
    }

    #[test]
    fn forms() {
        for (text, expected) in [
            ("ok $FOO", "ok first"),
            ("${FOO}/${BAR}", "first/"),
            ("$$FOO $${FOO}", "$FOO ${FOO}"),
            ("${NO-def}", "def"),
            ("${BAR-def}", ""),
            ("${BAR:-def}", "def"),
            ("${NO:-${FOO}}x", "firstx"),
            ("${NO:-a-${BAR:-${FOO}}-b}}", "a-first-b}"),
            ("${FOO:+yes}${BAR:+no}${BAR+yes}${NO+no}", "yesyes"),
            ("${NO:-{\"a\": 1}}", "{\"a\": 1}"),
            ("${NO:-$$x}", "$x"),
            ("${_x}", "$FOO"),
            ("$1 $ $-", "$1 $ $-"),
            ("${NO:-http://x:80/?a-b}", "http://x:80/?a-b"),
            ("${FOO:?err}", "first"),
        ] {
            assert_eq!(sub(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong() {
        for text in ["${", "${FOO", "${}", "${ FOO}", "${FOO!}", "${1}", "${FOO:}"] {
            assert!(sub(text).unwrap_err().contains("invalid interpolation"), "{text}");
        }
        assert_eq!(
            sub("${NO:?must be set to $FOO}").unwrap_err(),
            "required variable NO is missing a value: must be set to first"
        );
        assert_eq!(
            sub("${BAR:?}").unwrap_err(),
            "required variable BAR is missing a value"
        );
        let deep = format!("{}x{}", "${NO:-".repeat(100), "}".repeat(100));
        assert!(sub(&deep).unwrap_err().contains("nested"));
    }

    #[test]
    fn the_unset_are_told() {
        let mut told = Vec::new();
        substitute("$A ${B} ${C-} ${FOO}", &lookup, &mut |name| {
            told.push(name.to_owned())
        })
        .unwrap();
        assert_eq!(told, ["A", "B"]);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[A-Z${}:?+\\-é ]{0,60}") {
            let _ = sub(&text);
        }
    }
}
