//! Here-documents in an instruction's line: `<<EOF`, `<<-EOF`, `3<<EOF`, `<<"EOF"`.

use super::ast::Heredoc;
use super::expand::Lexer;

fn lexer() -> Lexer {
    Lexer {
        raw_quotes: true,
        keep_undefined: true,
        ..Lexer::new('\\')
    }
}

/// The here-document a word begins, its content empty; none if the word is something else.
pub(crate) fn parse(word: &str) -> Result<Option<Heredoc>, String> {
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let Some(rest) = word[digits..].strip_prefix("<<") else {
        return Ok(None);
    };
    let (rest, chomp) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let words = |raw_quotes| {
        let lexer = Lexer {
            raw_quotes,
            ..lexer()
        };
        lexer
            .words(rest, &mut |_| None)
            .map_err(|error| error.to_string())
    };
    let (plain, raw) = (words(false)?, words(true)?);
    let ([name], [written]) = (plain.as_slice(), raw.as_slice()) else {
        return Ok(None);
    };
    let quotes = |word: &str| word.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        expand: quotes(name) == quotes(written),
        name: name.clone(),
        descriptor: match &word[..digits] {
            "" => 0,
            number => number.parse().unwrap_or(u32::MAX),
        },
        chomp,
        content: String::new(),
    }))
}

/// The here-documents that a line begins, in order.
pub(crate) fn of_line(line: &str) -> Result<Vec<Heredoc>, String> {
    let lexer = Lexer {
        raw_escapes: true,
        ..lexer()
    };
    // A line with an open quote has none: a shell will complain about it.
    let words = lexer.words(line, &mut |_| None).unwrap_or_default();
    words.iter().filter_map(|word| parse(word).transpose()).collect()
}
