//! Go's `filepath.Match`: the wildcards of `COPY` and `ADD` sources.
//!
//! `*` is any text and `?` any character, both without `/`; `[a-z]` and `[^a-z]` are classes; `\` makes a character
//! ordinary. A match is of the whole name. As in Go, what stands behind the first mismatch is not checked.

/// A pattern with an open class or an escape character at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// Whether a text has any wildcard or escape.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

/// Whether a name matches a pattern.
pub fn matches(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    let (mut pattern, mut name) = (pattern, name);
    'pattern: while !pattern.is_empty() {
        let (star, piece, rest) = split(pattern);
        pattern = rest;
        if star && piece.is_empty() {
            return Ok(!name.contains('/'));
        }
        // The last piece has to reach the end.
        let fits = |left: &str| left.is_empty() || !rest.is_empty();
        if let Some(left) = piece_matches(piece, name, true)?.filter(|left| fits(left)) {
            name = left;
            continue;
        }
        if star {
            for (at, c) in name.char_indices() {
                if c == '/' {
                    break;
                }
                let tail = &name[at + c.len_utf8()..];
                if let Some(left) = piece_matches(piece, tail, false)?.filter(|left| fits(left)) {
                    name = left;
                    continue 'pattern;
                }
            }
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Whether stars come first, what follows up to the next star, and the rest.
fn split(pattern: &str) -> (bool, &str, &str) {
    let body = pattern.trim_start_matches('*');
    let mut in_class = false;
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '[' => in_class = true,
            ']' => in_class = false,
            '*' if !in_class => return (body.len() < pattern.len(), &body[..at], &body[at..]),
            _ => {}
        }
    }
    (body.len() < pattern.len(), body, "")
}

/// What is left of a name after a piece without stars; none if it does not match. A piece is well formed or not, whatever
/// the name: it is looked at to its end once.
fn piece_matches<'a>(piece: &str, name: &'a str, check: bool) -> Result<Option<&'a str>, BadPattern> {
    let (mut name, mut piece) = (name.chars(), piece.chars());
    let mut failed = false;
    while let Some(c) = piece.next() {
        if failed && !check {
            return Ok(None);
        }
        let next = if failed { None } else { name.next() };
        failed |= next.is_none();
        match c {
            '[' => {
                let (negated, matched) = class(&mut piece, next)?;
                failed |= matched == negated;
            }
            '?' => failed |= next == Some('/'),
            '\\' => failed |= next != Some(piece.next().ok_or(BadPattern)?),
            c => failed |= next != Some(c),
        }
    }
    Ok((!failed).then_some(name.as_str()))
}

/// Reads a class after its `[`: whether it is negated, and whether one of its ranges has the character.
fn class(piece: &mut std::str::Chars<'_>, c: Option<char>) -> Result<(bool, bool), BadPattern> {
    let negated = piece.as_str().starts_with('^');
    if negated {
        piece.next();
    }
    let (mut matched, mut ranges) = (false, 0);
    loop {
        if ranges > 0 && piece.as_str().starts_with(']') {
            piece.next();
            return Ok((negated, matched));
        }
        let low = end(piece)?;
        let mut high = low;
        if piece.as_str().starts_with('-') {
            piece.next();
            high = end(piece)?;
        }
        matched |= c.is_some_and(|c| low <= c && c <= high);
        ranges += 1;
    }
}

/// One end of a range; something has to follow it.
fn end(piece: &mut std::str::Chars<'_>) -> Result<char, BadPattern> {
    let c = match piece.next() {
        None | Some('-' | ']') => return Err(BadPattern),
        Some('\\') => piece.next().ok_or(BadPattern)?,
        Some(c) => c,
    };
    if piece.as_str().is_empty() {
        Err(BadPattern)
    } else {
        Ok(c)
    }
}
