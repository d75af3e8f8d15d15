//! Variables, quotes and escapes in words, as BuildKit's shell lexer reads them.
//!
//! `$x ${x} ${x:-w} ${x-w} ${x:+w} ${x+w} ${x:?w} ${x?w} ${x#p} ${x##p} ${x%p} ${x%%p} ${x/p/r} ${x//p/r}`. Patterns
//! know `*`, `?` and their escapes; neither matches the end of a line. What is expanded into words falls apart at white
//! space unless it is quoted.
//!
//! Limits: [`MAX_EXPANDED`] bytes of result, [`MAX_DEPTH`] substitutions in one another, patterns of 4 KiB.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

use super::pattern;

/// The longest result: variables that repeat each other double with every instruction.
pub const MAX_EXPANDED: usize = 4 << 20;

/// How deep substitutions may nest.
pub const MAX_DEPTH: usize = 64;

/// How to read words; [`Lexer::new`] is what instructions need.
#[derive(Clone, Copy, Debug)]
pub struct Lexer {
    /// The escape character.
    pub escape: char,
    /// Leave quotes in the result.
    pub raw_quotes: bool,
    /// Leave escape characters in the result.
    pub raw_escapes: bool,
    /// Quotes mean nothing: the content of a here-document.
    pub skip_quotes: bool,
    /// Leave references to undefined variables as they are.
    pub keep_undefined: bool,
}

/// What a word became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The result.
    pub text: String,
    /// The defined variables that were asked for.
    pub used: BTreeSet<String>,
    /// The variables that were asked for in vain.
    pub undefined: BTreeSet<String>,
}

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {word:?}: {reason}")]
pub struct ExpandError {
    /// The word.
    pub word: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Where variables come from.
pub type Lookup<'a> = &'a mut dyn FnMut(&str) -> Option<String>;

impl Lexer {
    /// Words of instructions.
    pub fn new(escape: char) -> Self {
        Self {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            skip_quotes: false,
            keep_undefined: false,
        }
    }

    /// Contents of here-documents of `COPY` and `ADD`.
    pub fn heredoc() -> Self {
        Self {
            skip_quotes: true,
            ..Self::new('\\')
        }
    }

    /// Expands one word.
    pub fn word(&self, word: &str, lookup: Lookup<'_>) -> Result<Expanded, ExpandError> {
        self.run(word, lookup).map(|(expanded, _)| expanded)
    }

    /// Expands a text and splits the result into words.
    pub fn words(&self, text: &str, lookup: Lookup<'_>) -> Result<Vec<String>, ExpandError> {
        self.run(text, lookup).map(|(_, words)| words)
    }

    fn run(&self, text: &str, lookup: Lookup<'_>) -> Result<(Expanded, Vec<String>), ExpandError> {
        let mut run = Run {
            lexer: *self,
            chars: text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable(),
            lookup,
            depth: 0,
            found: Expanded::default(),
        };
        match run.until(None, self.raw_escapes) {
            Ok((text, words)) => Ok((Expanded { text, ..run.found }, words)),
            Err(reason) => Err(ExpandError {
                word: shorten(text),
                reason,
            }),
        }
    }
}

/// For messages: a here-document is a word, too.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

struct Run<'a> {
    lexer: Lexer,
    chars: Peekable<Chars<'a>>,
    lookup: Lookup<'a>,
    depth: usize,
    found: Expanded,
}

/// The words a text falls into.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    /// Something that may separate words.
    fn split(&mut self, c: char) {
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

impl Run<'_> {
    /// Reads up to a character that is not quoted, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), String> {
        let outer = std::mem::replace(&mut self.lexer.raw_escapes, raw_escapes);
        let (mut result, mut words) = (String::new(), Words::default());
        while let Some(&c) = self.chars.peek() {
            if Some(c) == stop {
                self.chars.next();
                self.lexer.raw_escapes = outer;
                return Ok((result, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    result.push_str(&value);
                    value.chars().for_each(|c| words.split(c));
                }
                '<' => {
                    let text = self.less();
                    result.push_str(&text);
                    words.word.push_str(&text);
                }
                '\'' | '"' if !self.lexer.skip_quotes => {
                    let text = if c == '"' {
                        self.double_quotes()?
                    } else {
                        self.single_quotes()?
                    };
                    result.push_str(&text);
                    words.word.push_str(&text);
                }
                c if c == self.lexer.escape => {
                    self.chars.next();
                    if self.lexer.raw_escapes {
                        words.word.push(c);
                        result.push(c);
                    }
                    // One at the end of the text is dropped.
                    if let Some(c) = self.chars.next() {
                        words.word.push(c);
                        result.push(c);
                    }
                }
                c => {
                    self.chars.next();
                    words.split(c);
                    result.push(c);
                }
            }
            if result.len() > MAX_EXPANDED {
                return Err(format!("the result is longer than {MAX_EXPANDED} bytes"));
            }
        }
        self.lexer.raw_escapes = outer;
        match stop {
            Some(stop) => Err(format!(
                "unexpected end of statement while looking for matching {stop}"
            )),
            None => Ok((result, words.finish())),
        }
    }

    /// All up to the next `'`; nothing is special in between.
    fn single_quotes(&mut self) -> Result<String, String> {
        let mut result = String::new();
        for (index, c) in self.chars.by_ref().enumerate() {
            if c != '\'' || self.lexer.raw_quotes {
                result.push(c);
            }
            if c == '\'' && index > 0 {
                return Ok(result);
            }
        }
        Err("unexpected end of statement while looking for matching single-quote".to_owned())
    }

    /// All up to the next `"`, variables expanded. The escape character escapes `"`, `$` and itself, and else stays.
    fn double_quotes(&mut self) -> Result<String, String> {
        let mut result = String::new();
        let raw_quotes = self.lexer.raw_quotes;
        self.chars.next();
        if raw_quotes {
            result.push('"');
        }
        while let Some(&c) = self.chars.peek() {
            if c == '$' {
                result.push_str(&self.dollar()?);
                if result.len() > MAX_EXPANDED {
                    return Err(format!("the result is longer than {MAX_EXPANDED} bytes"));
                }
                continue;
            }
            self.chars.next();
            if c == '"' {
                if raw_quotes {
                    result.push('"');
                }
                return Ok(result);
            }
            if c != self.lexer.escape {
                result.push(c);
                continue;
            }
            if self.lexer.raw_escapes {
                result.push(c);
            }
            let special = |&next: &char| matches!(next, '"' | '$') || next == c;
            match self.chars.next_if(special) {
                Some(next) => result.push(next),
                // One at the end of the text is dropped.
                None if self.chars.peek().is_none() => {}
                None => result.push(c),
            }
        }
        Err("unexpected end of statement while looking for matching double-quote".to_owned())
    }

    /// `<<` and what white space follows: with the word after it, it begins a here-document and must stay with it.
    fn less(&mut self) -> String {
        self.chars.next();
        let mut text = "<".to_owned();
        if self.chars.next_if_eq(&'<').is_some() {
            text.push('<');
            while let Some(space) = self.chars.next_if(|c| matches!(c, '\t' | '\r' | ' ')) {
                text.push(space);
            }
        }
        text
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.chars.next();
        if self.chars.next_if_eq(&'{').is_some() {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} substitutions in one another"));
            }
            let value = self.braces();
            self.depth -= 1;
            return value;
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        match self.get(&name) {
            None if self.lexer.keep_undefined => Ok(format!("${name}")),
            value => Ok(value.unwrap_or_default()),
        }
    }

    /// What follows `${`.
    fn braces(&mut self) -> Result<String, String> {
        match self.chars.peek() {
            None => return Err(MISSING.to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        let Some(mut modifier) = self.chars.next() else {
            return Err(MISSING.to_owned());
        };
        let mut written = modifier.to_string();
        let empty_is_unset = modifier == ':';
        match modifier {
            '}' => {
                return match self.get(&name) {
                    None if self.lexer.keep_undefined => Ok(format!("${{{name}}}")),
                    value => Ok(value.unwrap_or_default()),
                };
            }
            '/' => return self.replace(&name),
            ':' => {
                modifier = self.chars.next().ok_or(MISSING)?;
                written.push(modifier);
            }
            _ => {}
        }
        let pattern = matches!(modifier, '#' | '%');
        let known = pattern || matches!(modifier, '+' | '-' | '?');
        if (!known && !empty_is_unset) || (pattern && empty_is_unset) {
            return Err(unsupported(&written));
        }
        let word = self.until_or_missing('}', pattern, MISSING)?;
        let value = self.get(&name);
        if value.is_none() && self.lexer.keep_undefined {
            return Ok(format!("${{{name}{written}{word}}}"));
        }
        let given = value
            .as_deref()
            .filter(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' => Ok(given.map_or(word, str::to_owned)),
            '+' => Ok(given.map(|_| word).unwrap_or_default()),
            '?' => match given {
                Some(value) => Ok(value.to_owned()),
                None if !word.is_empty() => Err(format!("{name}: {word}")),
                None if value.is_none() => Err(format!("{name}: is not allowed to be unset")),
                None => Err(format!("{name}: is not allowed to be empty")),
            },
            '#' | '%' => {
                let value = value.unwrap_or_default();
                let (word, greedy) = match word.strip_prefix(modifier) {
                    Some(rest) => (rest, true),
                    None => (word.as_str(), false),
                };
                if modifier == '#' {
                    pattern::trim_prefix(word, &value, greedy)
                } else {
                    pattern::trim_suffix(word, &value, greedy)
                }
            }
            _ => Err(unsupported(&written)),
        }
    }

    /// What follows `${name/`.
    fn replace(&mut self, name: &str) -> Result<String, String> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let pattern = self.until_or_missing('/', true, "syntax error: missing '/' in ${}")?;
        let replacement = self.until_or_missing('}', true, MISSING)?;
        let value = self.get(name);
        if value.is_none() && self.lexer.keep_undefined {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let room = MAX_EXPANDED;
        pattern::replace(&pattern, &value.unwrap_or_default(), &replacement, all, room)
    }

    fn until_or_missing(&mut self, stop: char, raw_escapes: bool, missing: &str) -> Result<String, String> {
        match self.until(Some(stop), raw_escapes) {
            Ok((word, _)) => Ok(word),
            Err(_) if self.chars.peek().is_none() => Err(missing.to_owned()),
            Err(error) => Err(error),
        }
    }

    /// A name: letters, digits and `_`, or digits only, or one special character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek() {
            Some(&c) if pattern::is_digit(c) => {
                while let Some(c) = self.chars.next_if(|&c| pattern::is_digit(c)) {
                    name.push(c);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.chars.next()),
            _ => {
                let part = |&c: &char| c == '_' || pattern::is_letter(c) || pattern::is_digit(c);
                while let Some(c) = self.chars.next_if(part) {
                    name.push(c);
                }
            }
        }
        name
    }

    fn get(&mut self, name: &str) -> Option<String> {
        let value = (self.lookup)(name);
        let names = if value.is_some() {
            &mut self.found.used
        } else {
            &mut self.found.undefined
        };
        names.insert(name.to_owned());
        value
    }
}

const MISSING: &str = "syntax error: missing '}'";

fn unsupported(modifier: &str) -> String {
    format!("unsupported modifier ({modifier}) in substitution")
}
