//! How an instruction's text falls into a keyword, flags and arguments.

use super::json;

/// What separates arguments: ASCII white space. (Flags and `KEY=value` words are separated by Unicode's.)
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// The keyword, the flags after it, and the rest, trimmed.
pub(crate) fn split_command(line: &str, escape: char) -> (&str, Vec<String>, &str) {
    let line = line.trim();
    let Some(end) = line.find(is_blank) else {
        return (line, Vec::new(), "");
    };
    let (keyword, rest) = line.split_at(end);
    let (flags, rest) = split_flags(rest.trim_start_matches(is_blank), escape);
    (keyword, flags, rest.trim())
}

/// Words beginning with `--`, quotes and escapes removed, up to the first word that does not, or to `--` itself.
fn split_flags(line: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start();
        if !rest.starts_with("--") {
            return (flags, rest);
        }
        let mut word = String::new();
        let mut quote = None;
        let mut end = rest.len();
        let mut chars = rest.char_indices();
        while let Some((at, c)) = chars.next() {
            if quote.is_none() && c.is_whitespace() {
                end = at;
                break;
            }
            if quote == Some(c) {
                quote = None;
            } else if quote.is_none() && matches!(c, '\'' | '"') {
                quote = Some(c);
            } else if c == escape {
                // One at the end of the line is dropped.
                word.extend(chars.next().map(|(_, c)| c));
            } else {
                word.push(c);
            }
        }
        rest = &rest[end..];
        if word == "--" {
            return (flags, rest);
        }
        flags.push(word);
    }
}

/// Words separated by white space outside quotes. Quotes and escapes stay: expansion removes them.
pub(crate) fn quoted_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take().filter(|word| !word.is_empty()));
            continue;
        }
        let word = word.get_or_insert_default();
        if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && matches!(c, '\'' | '"') {
            quote = Some(c);
        }
        if c == escape && quote != Some('\'') {
            // One at the end of the text is dropped.
            if let Some(next) = chars.next() {
                word.push(c);
                word.push(next);
            }
            continue;
        }
        word.push(c);
    }
    words.extend(word.filter(|word| !word.is_empty()));
    words
}

/// Arguments of `FROM`, `EXPOSE`, and of `COPY`, `ADD`, `VOLUME` in their plain form: split at white space, nothing
/// quoted.
pub(crate) fn plain_words(text: &str) -> Vec<String> {
    let words = text.split(is_blank).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// The pairs of `ENV` and `LABEL`: `(key, value, legacy)`.
pub(crate) fn pairs(text: &str, keyword: &str, escape: char) -> Result<Vec<(String, String, bool)>, String> {
    let words = quoted_words(text, escape);
    let Some(first) = words.first() else {
        return Ok(Vec::new());
    };
    if !first.contains('=') {
        let Some(end) = text.find(is_blank) else {
            return Err(format!("{keyword} must have two arguments"));
        };
        let (key, value) = text.split_at(end);
        return Ok(vec![(
            key.to_owned(),
            value.trim_start_matches(is_blank).to_owned(),
            true,
        )]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned(), false)),
        None => Err(format!(
            "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
        )),
    };
    words.iter().map(pair).collect()
}

/// What an argument that may be a JSON array is.
pub(crate) enum Form {
    /// An array of strings.
    Exec(Vec<String>),
    /// Anything else but valid JSON.
    Shell,
}

/// Whether a text is the exec form. What is no valid JSON is a command for the shell; a JSON array of something else
/// than strings is an error.
pub(crate) fn form(text: &str) -> Result<Form, String> {
    match json::array(text.trim_start()) {
        json::Array::Strings(words) => Ok(Form::Exec(words)),
        json::Array::Mixed => {
            Err("when using JSON array syntax, arrays must be comprised of strings only".to_owned())
        }
        json::Array::Not => Ok(Form::Shell),
    }
}
