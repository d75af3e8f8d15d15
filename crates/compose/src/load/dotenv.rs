//! Environment files: `.env`, `--env-file` and `env_file`.
//!
//! A line is `NAME=value` or `NAME: value`, perhaps after `export`; a `NAME` alone takes the caller's value. Values
//! without quotes end before ` #`; single quotes keep everything; double quotes know the escapes of a shell and may, as
//! single ones, span lines. Variables are substituted but in single quotes. In the format `raw` everything behind `=`
//! is the value.

use super::{Environment, interpolate};

/// Something wrong on a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineFault {
    /// The line, from 1.
    pub line: u32,
    /// What.
    pub message: String,
}

/// The most that the values of a file take together.
const MAX_VALUES: usize = 16 << 20;

/// The variables of a file. `lookup` knows the caller's variables, which win in substitutions.
///
/// # Errors
/// It is not such a file.
pub fn parse(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Environment, LineFault> {
    let text = text
        .strip_prefix('\u{feff}')
        .unwrap_or(text)
        .replace("\r\n", "\n");
    let mut reader = Reader {
        rest: &text,
        line: 1,
        found: Environment::new(),
        taken: 0,
        lookup,
    };
    while reader.statement()? {}
    Ok(reader.found)
}

/// The variables of a file in the format `raw`.
pub fn parse_raw(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Environment {
    let mut found = Environment::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((name, value)) => {
                found.insert(name.trim_end().to_owned(), value.to_owned());
            }
            None => {
                if let Some(value) = lookup(line) {
                    found.insert(line.to_owned(), value);
                }
            }
        }
    }
    found
}

struct Reader<'a> {
    rest: &'a str,
    line: u32,
    found: Environment,
    /// How many bytes values took so far.
    taken: usize,
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn fault(&self, message: impl Into<String>) -> LineFault {
        LineFault {
            line: self.line,
            message: message.into(),
        }
    }

    fn advance(&mut self, count: usize) {
        let (passed, rest) = self.rest.split_at(count);
        self.line += u32::try_from(passed.matches('\n').count()).unwrap_or(u32::MAX);
        self.rest = rest;
    }

    /// Reads one statement; `false` at the end.
    fn statement(&mut self) -> Result<bool, LineFault> {
        loop {
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.advance(blank);
            if !self.rest.starts_with('#') {
                break;
            }
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.advance(end);
        }
        if self.rest.is_empty() {
            return Ok(false);
        }
        if let Some(behind) = self.rest.strip_prefix("export")
            && behind.starts_with([' ', '\t'])
        {
            let blank = self.rest.len() - behind.trim_start_matches([' ', '\t']).len();
            self.advance(blank);
        }
        let end = self.rest.find(['=', ':', '\n']).unwrap_or(self.rest.len());
        let name = self.rest[..end].trim().to_owned();
        let fits = |c: char| c.is_alphanumeric() || "_.-[] \t".contains(c);
        if let Some(wrong) = name.chars().find(|c| !fits(*c)) {
            return Err(self.fault(format!(
                "unexpected character {wrong:?} in variable name {name:?}"
            )));
        }
        if name.contains([' ', '\t']) {
            return Err(self.fault(format!("key cannot contain a space: {name:?}")));
        }
        if name.is_empty() {
            return Err(self.fault("a variable without a name"));
        }
        if matches!(self.rest.as_bytes().get(end), None | Some(b'\n')) {
            self.advance(end);
            if let Some(value) = (self.lookup)(&name) {
                self.taken = self.taken.saturating_add(value.len());
                self.found.insert(name, value);
            }
            return Ok(true);
        }
        self.advance(end + 1);
        let blank = self.rest.len() - self.rest.trim_start_matches([' ', '\t']).len();
        self.advance(blank);
        let value = match self.rest.as_bytes().first() {
            Some(quote @ (b'\'' | b'"')) => self.quoted(*quote)?,
            _ => self.unquoted()?,
        };
        self.taken = self.taken.saturating_add(value.len());
        if self.taken > MAX_VALUES {
            return Err(self.fault("the values become too long together"));
        }
        self.found.insert(name, value);
        Ok(true)
    }

    fn unquoted(&mut self) -> Result<String, LineFault> {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let line = &self.rest[..end];
        let value = line.find(" #").map_or(line, |at| &line[..at]);
        let value = if value.starts_with('#') { "" } else { value }.trim_end();
        let value = self.expanded(value)?;
        self.advance(end);
        Ok(value)
    }

    fn quoted(&mut self, quote: u8) -> Result<String, LineFault> {
        let body = &self.rest[1..];
        let mut value = String::new();
        let mut chars = body.char_indices();
        let end = loop {
            let Some((at, c)) = chars.next() else {
                let first = self.rest.lines().next().unwrap_or_default();
                return Err(self.fault(format!("unterminated quoted value {first}")));
            };
            if c == char::from(quote) {
                break at;
            }
            if c != '\\' {
                value.push(c);
                continue;
            }
            let Some((_, escaped)) = chars.next() else {
                continue;
            };
            if escaped == char::from(quote) {
                value.push(escaped);
                continue;
            }
            if quote == b'\'' {
                value.push('\\');
                value.push(escaped);
                continue;
            }
            match escaped {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                'a' => value.push('\u{7}'),
                'b' => value.push('\u{8}'),
                'f' => value.push('\u{c}'),
                'v' => value.push('\u{b}'),
                '\\' => value.push('\\'),
                '$' => value.push_str("$$"),
                other => {
                    value.push('\\');
                    value.push(other);
                }
            }
        };
        let value = if quote == b'"' {
            self.expanded(&value)?
        } else {
            value
        };
        self.advance(end + 2);
        // Nothing but a comment may follow; what else does is passed over, as Docker does.
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        if self.rest[..end].trim_start().starts_with('#') || self.rest[..end].trim().is_empty() {
            self.advance(end);
        }
        Ok(value)
    }

    fn expanded(&self, value: &str) -> Result<String, LineFault> {
        let lookup = |name: &str| (self.lookup)(name).or_else(|| self.found.get(name).cloned());
        interpolate::substitute(value, &lookup, &mut |_| {}).map_err(|message| self.fault(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, LineFault> {
        let lookup = |name: &str| (name == "HOST").then(|| "outer".to_owned());
        Ok(parse(text, &lookup)?.into_iter().collect())
    }

    fn one(text: &str) -> String {
        read(text).unwrap().remove(0).1
    }

    #[test]
    fn values() {
        for (text, expected) in [
            ("A=b", "b"),
            ("A = b", "b"),
            ("A: b", "b"),
            ("export A=b", "b"),
            ("A=b # c", "b"),
            ("A=b#c", "b#c"),
            ("A=", ""),
            ("A='b # $HOST'", "b # $HOST"),
            ("A=\"b # $HOST\"", "b # outer"),
            ("A=\"x\\ny\"", "x\ny"),
            ("A=\"x\ny\"", "x\ny"),
            ("A='x\\'y'", "x'y"),
            ("A=\"\\$HOST\"", "$HOST"),
            ("A=${NO:-d}", "d"),
            ("A=$$x", "$x"),
            ("\u{feff}A=b\r\n", "b"),
            ("# c\n\n  A=b", "b"),
            ("A={\"x\": \"y\"}", "{\"x\": \"y\"}"),
            ("A=#c", ""),
        ] {
            assert_eq!(one(text), expected, "{text}");
        }
        let pairs = read("B=1\nA=$B$HOST\nHOST\nNONE\n").unwrap();
        let names: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(names, [("A", "1outer"), ("B", "1"), ("HOST", "outer")]);
        assert_eq!(parse_raw("A='x' # $y\n#c\n", &|_| None)["A"], "'x' # $y");
    }

    #[test]
    fn what_is_wrong() {
        for (text, line) in [
            ("A=b\nA B=c", 2),
            ("A=\"x\n", 1),
            ("\n%=c", 2),
            ("=c", 1),
            ("A=${", 1),
        ] {
            assert_eq!(read(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn values_are_bounded_together() {
        let mut text = format!("A={}\n", "x".repeat(1 << 20));
        for number in 0..40 {
            text.push_str(&format!("B{number}=$A\n"));
        }
        assert!(read(&text).unwrap_err().message.contains("too long"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[A-Z=:'\"\\\\${}# \\né]{0,80}") {
            let _ = read(&text);
        }
    }
}
