//! Parser directives: `# syntax=`, `# escape=`, `# check=`, before anything else in the file.

use super::source::{Source, Span};

/// A directive as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    /// What follows `=`, trimmed.
    pub value: String,
    /// Its line.
    pub span: Span,
}

const NAMES: [&str; 3] = ["syntax", "escape", "check"];

/// Go's `\s` in a regular expression.
fn is_space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{c}' | '\r' | ' ')
}

/// Reads directives line by line until the first line that is none.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    seen: Vec<String>,
    done: bool,
}

impl Reader {
    /// The name and value on a line, if it is a directive where directives count. `prefix` begins a comment. An error
    /// is the name of a directive that was given twice.
    pub(crate) fn line<'a>(
        &mut self,
        line: &'a str,
        prefix: &str,
    ) -> Result<Option<(String, &'a str)>, String> {
        if self.done {
            return Ok(None);
        }
        let Some((name, value)) = split(line, prefix) else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(name);
        }
        self.seen.push(name.clone());
        Ok(Some((name, value)))
    }
}

fn split<'a>(line: &'a str, prefix: &str) -> Option<(String, &'a str)> {
    let rest = line.strip_prefix(prefix)?.trim_start();
    let end = rest
        .find(|c: char| !c.is_ascii_alphanumeric())
        .unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let value = rest.trim_start_matches(is_space).strip_prefix('=')?;
    let value = value.trim_matches(is_space);
    let name = name.to_ascii_lowercase();
    (NAMES.contains(&name.as_str()) && !value.is_empty() && !value.contains('\n')).then_some((name, value))
}

/// The front end a Dockerfile asks for, as `docker build` finds it: `# syntax=`, also `// syntax=` and
/// `{"syntax": ...}`, after a `#!` line or not. The image is the value's first word.
pub fn detect_syntax(bytes: &[u8]) -> Option<Directive> {
    let source = Source::new("", bytes);
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    let (shebang, body) = match text.split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") => (1, rest),
        None if text.starts_with("#!") => return None,
        _ => (0, text),
    };
    let found = ["#", "//"].into_iter().find_map(|prefix| {
        let mut reader = Reader::default();
        for (line, number) in body.split('\n').zip(1 + shebang..) {
            match reader.line(line.trim_end_matches('\r'), prefix) {
                Ok(Some((name, value))) if name == "syntax" => return Some((value.to_owned(), number)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
        None
    });
    let (value, line) = found.or_else(|| {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(body).ok()?;
        Some((object.get("syntax")?.as_str()?.to_owned(), 1 + shebang))
    })?;
    let span = Span {
        first: line,
        last: line,
        bytes: source.line_range(line).unwrap_or_default(),
    };
    Some(Directive {
        name: "syntax".to_owned(),
        value,
        span,
    })
}
