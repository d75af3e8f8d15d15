//! A file falls into instructions: directives, comments, continuation lines, here-documents; and an instruction into
//! keyword, flags and arguments, by rules that depend on the keyword.

use std::sync::Arc;

use super::ast::Heredoc;
use super::directive::{Directive, Reader};
use super::source::{Source, Span};
use super::words::{self, Form};
use super::{Diagnostic, MAX_INSTRUCTIONS, heredoc};
use crate::check::rules;

/// An instruction before its meaning.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub keyword: String,
    pub flags: Vec<String>,
    pub args: Vec<String>,
    /// Whether the arguments were a JSON array.
    pub json: bool,
    /// Whether `<<` begins a here-document in it.
    pub takes_heredocs: bool,
    pub heredocs: Vec<Heredoc>,
    /// The line, continuation lines joined.
    pub original: String,
    pub span: Span,
    /// The comments above.
    pub comments: Vec<String>,
}

/// All of a file.
#[derive(Debug)]
pub(crate) struct File {
    pub escape: char,
    pub directives: Vec<Directive>,
    pub nodes: Vec<Node>,
    pub warnings: Vec<Diagnostic>,
}

struct Lines<'a> {
    source: &'a Arc<Source>,
    /// How many lines were read.
    read: u32,
}

impl<'a> Lines<'a> {
    /// The next line with its end.
    fn next(&mut self) -> Option<&'a str> {
        let range = self.source.line_range(self.read + 1)?;
        let line = &self.source.text[range];
        if line.is_empty() {
            return None;
        }
        self.read += 1;
        let bom = self.read == 1;
        Some(if bom {
            line.strip_prefix('\u{feff}').unwrap_or(line)
        } else {
            line
        })
    }

    fn span(&self, first: u32) -> Span {
        let start = self.source.line_range(first).map_or(0, |range| range.start);
        let end = self.source.line_range(self.read).map_or(start, |range| range.end);
        Span {
            first,
            last: self.read,
            bytes: start..end,
        }
    }

    fn error(&self, first: u32, message: impl Into<String>, word: Option<&str>) -> Diagnostic {
        Diagnostic::error(message).at(self.source, &self.span(first), word)
    }
}

fn without_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// The line without the escape character that makes it go on: its last character but blanks, not escaped itself.
fn continued(line: &str, escape: char) -> Option<&str> {
    let rest = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!rest.ends_with(escape)).then_some(rest)
}

pub(crate) fn read(source: &Arc<Source>) -> Result<File, Diagnostic> {
    let mut file = File {
        escape: '\\',
        directives: Vec::new(),
        nodes: Vec::new(),
        warnings: Vec::new(),
    };
    let mut lines = Lines { source, read: 0 };
    let mut directives = Reader::default();
    let mut comments: Vec<String> = Vec::new();
    while let Some(raw) = lines.next() {
        let first = lines.read;
        let line = without_end(raw).trim_start();
        if directive(&mut directives, line, &lines, &mut file)? {
            continue;
        }
        if is_comment(raw) {
            // The first character goes, whatever it is.
            let text = raw.char_indices().nth(1).map_or("", |(at, _)| &raw[at..]).trim();
            if text.is_empty() {
                comments.clear();
            } else {
                comments.push(text.to_owned());
            }
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let (text, gap) = logical_line(line, &mut lines, file.escape);
        if gap {
            let rule = &rules::NO_EMPTY_CONTINUATION;
            let warning = Diagnostic::warning(rule, "Empty continuation line");
            file.warnings
                .push(warning.at(source, &lines.span(lines.read), None));
        }
        let mut node = Node::parse(&text, file.escape)
            .map_err(|message| lines.error(first, message, text.split_whitespace().next()))?;
        if text.contains("<<") && node.takes_heredocs {
            let documents = heredoc::of_line(&text).map_err(|message| lines.error(first, message, None))?;
            for document in documents {
                node.heredocs.push(contents(document, first, &mut lines)?);
            }
        }
        node.span = lines.span(first);
        node.comments = std::mem::take(&mut comments);
        file.nodes.push(node);
        if file.nodes.len() > MAX_INSTRUCTIONS {
            let message =
                format!("a Dockerfile may have {MAX_INSTRUCTIONS} instructions, and this is one more");
            return Err(lines.error(first, message, None));
        }
    }
    if file.nodes.is_empty() {
        let error = Diagnostic::error("file with no instructions");
        return Err(error.help("A Dockerfile begins with FROM, such as: FROM debian"));
    }
    Ok(file)
}

/// Whether the line is a parser directive; if so it is obeyed and kept.
fn directive(
    reader: &mut Reader,
    line: &str,
    lines: &Lines<'_>,
    file: &mut File,
) -> Result<bool, Diagnostic> {
    let number = lines.read;
    let found = reader.line(line, "#").map_err(|name| {
        let message = format!("only one {name} parser directive can be used");
        lines.error(number, message, Some(&name))
    })?;
    let Some((name, value)) = found else {
        return Ok(false);
    };
    if name == "escape" {
        file.escape = match value {
            "\\" => '\\',
            "`" => '`',
            _ => {
                let message = format!("invalid escape token '{value}' does not match ` or \\");
                return Err(lines.error(number, message, Some(value)));
            }
        };
    }
    file.directives.push(Directive {
        name,
        value: value.to_owned(),
        span: lines.span(number),
    });
    Ok(true)
}

/// Joins a line with what it goes on with; says whether there was an empty line in between.
fn logical_line(first: &str, lines: &mut Lines<'_>, escape: char) -> (String, bool) {
    let Some(start) = continued(first, escape) else {
        return (first.to_owned(), false);
    };
    let (mut text, mut gap) = (start.to_owned(), false);
    while let Some(raw) = lines.next() {
        let line = without_end(raw);
        if is_comment(raw) {
            continue;
        }
        if line.trim_start().is_empty() {
            gap = true;
            continue;
        }
        match continued(line, escape) {
            Some(part) => text.push_str(part),
            None => {
                text.push_str(line);
                break;
            }
        }
    }
    (text, gap)
}

/// Reads a here-document up to its terminator.
fn contents(mut document: Heredoc, first: u32, lines: &mut Lines<'_>) -> Result<Heredoc, Diagnostic> {
    loop {
        let Some(raw) = lines.next() else {
            let name = &document.name;
            let error = lines.error(first, "unterminated heredoc", Some(name));
            return Err(error.help(format!(
                "The here-document goes on to a line that has nothing but {name}; there is none."
            )));
        };
        let line = without_end(raw);
        let line = if document.chomp {
            line.trim_start_matches('\t')
        } else {
            line
        };
        if line == document.name {
            return Ok(document);
        }
        document.content.push_str(raw);
    }
}

impl Node {
    /// Takes an instruction's line apart.
    pub(crate) fn parse(line: &str, escape: char) -> Result<Self, String> {
        let (keyword, flags, rest) = words::split_command(line, escape);
        let mut node = Self {
            keyword: keyword.to_owned(),
            flags,
            original: line.to_owned(),
            ..Self::default()
        };
        match keyword.to_ascii_lowercase().as_str() {
            "from" | "expose" => node.args = words::plain_words(rest),
            "arg" => node.args = words::quoted_words(rest, escape),
            "env" => node.pairs(rest, "ENV", escape)?,
            "label" => node.pairs(rest, "LABEL", escape)?,
            "maintainer" | "stopsignal" | "user" | "workdir" => node.text(rest),
            "add" | "copy" | "volume" => match words::form(rest)? {
                Form::Exec(words) => node.exec(words),
                Form::Shell => node.args = words::plain_words(rest),
            },
            "cmd" | "entrypoint" | "run" | "shell" => match words::form(rest)? {
                Form::Exec(words) => node.exec(words),
                Form::Shell => node.text(rest),
            },
            "healthcheck" => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                let (kind, rest) = rest.split_at(end);
                node.text(kind);
                match words::form(rest.trim_start())? {
                    Form::Exec(words) => node.exec(words),
                    Form::Shell => node.text(rest.trim_start()),
                }
            }
            "onbuild" if !rest.is_empty() => {
                let inner = Self::inner(rest, escape)?;
                node.takes_heredocs = inner.takes_heredocs;
                node.args.push(inner.keyword);
                node.args.extend(inner.args);
                return Ok(node);
            }
            _ => {}
        }
        let takes = ["add", "copy", "run"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(keyword));
        node.takes_heredocs = takes && !node.json;
        Ok(node)
    }

    /// The instruction after `ONBUILD`. One in another is refused later, and not taken apart: it could go deep.
    fn inner(rest: &str, escape: char) -> Result<Self, String> {
        let (keyword, _, _) = words::split_command(rest, escape);
        if keyword.eq_ignore_ascii_case("onbuild") {
            return Ok(Self {
                keyword: keyword.to_owned(),
                ..Self::default()
            });
        }
        Self::parse(rest, escape)
    }

    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.args.push(text.to_owned());
        }
    }

    fn exec(&mut self, words: Vec<String>) {
        self.args.extend(words);
        self.json = true;
    }

    /// Three arguments for each pair; the third is empty for the old form.
    fn pairs(&mut self, rest: &str, keyword: &str, escape: char) -> Result<(), String> {
        for (key, value, legacy) in words::pairs(rest, keyword, escape)? {
            let delimiter = if legacy { "" } else { "=" };
            self.args.extend([key, value, delimiter.to_owned()]);
        }
        Ok(())
    }
}
