//! What is wrong in a Dockerfile, where, and what to do about it.

use std::fmt;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use super::source::{Source, Span};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The build cannot go on.
    Error,
    /// A build check objects.
    Warning,
}

/// A build check, as BuildKit's linter knows it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The name, for `# check=skip=`.
    pub name: &'static str,
    /// What the rule asks for.
    pub description: &'static str,
    /// The page about it; empty when there is none.
    pub url: &'static str,
    /// Whether it has to be asked for.
    pub experimental: bool,
}

/// One error or warning.
///
/// [`fmt::Display`] gives one line, [`Diagnostic::render`] the lines of the Dockerfile, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The check that speaks, if it is one.
    pub rule: Option<&'static Rule>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<Box<str>>,
    /// The lines in question.
    pub span: Option<Span>,
    /// The word in question, as bytes of the source.
    pub word: Option<Range<usize>>,
    /// The Dockerfile it is about.
    pub source: Option<Arc<Source>>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            rule: None,
            message: message.into(),
            help: None,
            span: None,
            word: None,
            source: None,
        }
    }

    /// The finding of a check.
    pub fn warning(rule: &'static Rule, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            rule: Some(rule),
            ..Self::error(message)
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into().into());
        self
    }

    /// At these lines of this Dockerfile; the word it is about gets the caret when the lines have it.
    #[must_use]
    pub fn at(mut self, source: &Arc<Source>, span: &Span, word: Option<&str>) -> Self {
        self.word = word.and_then(|word| find(source, span, word));
        self.source = Some(Arc::clone(source));
        self.span = Some(span.clone());
        self
    }

    /// The excerpt as BuildKit prints it, with a caret under the word in question, and below it what to do. Nothing for
    /// a diagnostic without a place.
    ///
    /// ```text
    /// Dockerfile:2
    /// --------------------
    ///    1 |     FROM alpine
    ///    2 | >>> RUM true
    ///      |     ^^^
    ///    3 |     CMD ["true"]
    /// --------------------
    /// ```
    pub fn excerpt(&self, color: bool) -> String {
        let mut out = String::new();
        let (Some(source), Some(span)) = (&self.source, &self.span) else {
            return out;
        };
        let all = source.lines();
        if span.first < 1 || span.first > all {
            return out;
        }
        let (first, last) = (span.first, span.last.clamp(span.first, all));
        let (mut start, mut end) = (first, last);
        let (pad, mut padded) = (if first == last { 4 } else { 2 }, 0);
        while padded < pad {
            if start > 1 {
                start -= 1;
                padded += 1;
            }
            if end < all {
                end += 1;
                padded += 1;
            }
            padded += 1;
        }
        let (mark, caret, off) = match (color, self.severity) {
            (false, _) => ("", "", ""),
            (true, Severity::Error) => ("\x1b[31m", "\x1b[1;31m", "\x1b[0m"),
            (true, Severity::Warning) => ("\x1b[33m", "\x1b[1;33m", "\x1b[0m"),
        };
        let rule = "--------------------";
        let _ = writeln!(out, "{}:{first}\n{rule}", source.name);
        for number in start..=end {
            let line = printable(source.line(number).unwrap_or_default());
            if !(first..=last).contains(&number) {
                let _ = writeln!(out, " {number:3} |     {line}");
                continue;
            }
            let _ = writeln!(out, " {number:3} | {mark}>>>{off} {line}");
            if let Some((before, under)) = self.underline(source, number) {
                let _ = writeln!(out, "     |     {before}{caret}{under}{off}");
            }
        }
        let _ = writeln!(out, "{rule}");
        if let Some(help) = &self.help {
            let _ = writeln!(out, "{help}");
        }
        out
    }

    /// Everything: for an error the message and the excerpt, for a check what `docker build --check` prints.
    pub fn render(&self, color: bool) -> String {
        let head = match (self.rule, self.severity) {
            (Some(rule), _) if rule.url.is_empty() => format!("WARNING: {}", rule.name),
            (Some(rule), _) => format!("WARNING: {} - {}", rule.name, rule.url),
            (None, severity) => {
                let severity = match severity {
                    Severity::Error => "ERROR",
                    Severity::Warning => "WARNING",
                };
                return format!("{severity}: {}\n{}", self.message, self.excerpt(color));
            }
        };
        format!("{head}\n{}\n{}", self.message, self.excerpt(color))
    }

    /// White space up to the word in question, and carets under it, for the line that it is in.
    fn underline(&self, source: &Source, number: u32) -> Option<(String, String)> {
        let (word, range) = (self.word.as_ref()?, source.line_range(number)?);
        let line = source.line(number)?;
        if !range.contains(&word.start) {
            return None;
        }
        let start = word.start - range.start;
        let end = (word.end - range.start).min(line.len());
        let (before, under) = (line.get(..start)?, line.get(start..end)?);
        let before = before.chars().map(|c| if c == '\t' { '\t' } else { ' ' });
        Some((before.collect(), "^".repeat(under.chars().count().max(1))))
    }
}

/// Where a word stands in lines of a Dockerfile: as a whole word if there is such a place. Comment lines do not count.
fn find(source: &Source, span: &Span, word: &str) -> Option<Range<usize>> {
    let first_line = word.lines().next().filter(|line| !line.is_empty())?;
    let mut within = None;
    for number in span.first..=span.last {
        let range = source.line_range(number)?;
        let line = source.line(number)?;
        if line.trim_start().starts_with('#') {
            continue;
        }
        for (at, _) in line.match_indices(first_line) {
            let place = range.start + at..range.start + at + first_line.len();
            let edge = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || "_-./".contains(c));
            let (before, after) = (&line[..at], &line[at + first_line.len()..]);
            if edge(before.chars().next_back()) && edge(after.chars().next()) {
                return Some(place);
            }
            within.get_or_insert(place);
        }
    }
    within
}

/// A line of somebody's file on its way to a terminal: no control characters but tabs.
fn printable(line: &str) -> String {
    line.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(source), Some(span)) = (&self.source, &self.span) {
            write!(f, "{}:{}: ", source.name, span.first)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diagnostic {}
