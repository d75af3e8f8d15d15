//! One pattern, compiled: tokens, walked through by all the ways a path may match at once. Neither memory nor time is
//! more than the pattern's length times the path's.

/// The longest pattern in bytes, which is more than it has tokens.
pub(super) const MAX_LENGTH: usize = 4096;

const WORDS: usize = MAX_LENGTH / 64 + 1;

/// How a pattern is compared.
#[derive(Clone, Debug)]
pub(super) enum Wildcard {
    /// Nothing is special.
    Exact(String),
    /// `a**`: the text before the stars.
    Prefix(String),
    /// `**a`: the text after the stars; with a `/` before it, it may be all.
    Suffix(String),
    /// Anything else.
    Tokens(Vec<Token>),
}

#[derive(Clone, Debug)]
pub(super) enum Token {
    Char(char),
    /// `?`: any character but `/`.
    One,
    /// `*`: any number of them.
    Star,
    /// `**` at the end: any characters of a line.
    Any,
    /// `**/`: nothing, or what [`Token::Inside`] takes, which always follows.
    Maybe,
    /// Any characters of a line and a `/`.
    Inside,
    Class(Box<Class>),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Class {
    negated: bool,
    items: Vec<Item>,
}

#[derive(Clone, Debug)]
enum Item {
    Range(char, char),
    /// `[:name:]`, negated as `[:^name:]`.
    Named(fn(char) -> bool, bool),
}

impl Class {
    fn has(&self, c: char) -> bool {
        let any = self.items.iter().any(|item| match item {
            Item::Range(low, high) => (*low..=*high).contains(&c),
            Item::Named(has, negated) => has(c) != *negated,
        });
        any != self.negated
    }
}

/// Named classes, all of them ASCII's.
fn named(name: &str) -> Option<fn(char) -> bool> {
    Some(match name {
        "alnum" => |c| c.is_ascii_alphanumeric(),
        "alpha" => |c| c.is_ascii_alphabetic(),
        "ascii" => |c| c.is_ascii(),
        "blank" => |c| matches!(c, '\t' | ' '),
        "cntrl" => |c| c.is_ascii_control(),
        "digit" => |c| c.is_ascii_digit(),
        "graph" => |c| c.is_ascii_graphic(),
        "lower" => |c| c.is_ascii_lowercase(),
        "print" => |c| c == ' ' || c.is_ascii_graphic(),
        "punct" => |c| c.is_ascii_punctuation(),
        "space" => |c| matches!(c, '\t'..='\r' | ' '),
        "upper" => |c| c.is_ascii_uppercase(),
        "word" => |c| c == '_' || c.is_ascii_alphanumeric(),
        "xdigit" => |c| c.is_ascii_hexdigit(),
        _ => return None,
    })
}

impl Wildcard {
    /// None for what is no pattern, or one that is too long.
    pub fn compile(pattern: &str) -> Option<Self> {
        if pattern.len() > MAX_LENGTH {
            return None;
        }
        let mut tokens = Vec::new();
        // Whether stars at the beginning or the end are all that is special.
        let (mut at_start, mut at_end, mut special) = (false, false, false);
        let mut rest = pattern;
        while let Some(c) = rest.chars().next() {
            let first = rest.len() == pattern.len();
            rest = &rest[c.len_utf8()..];
            match c {
                '*' if rest.starts_with('*') => {
                    rest = &rest[1..];
                    rest = rest.strip_prefix('/').unwrap_or(rest);
                    if first {
                        at_start = true;
                    } else if rest.is_empty() && !at_start && !special {
                        at_end = true;
                    } else {
                        special = true;
                    }
                    if rest.is_empty() {
                        tokens.push(Token::Any);
                    } else {
                        tokens.extend([Token::Maybe, Token::Inside]);
                    }
                    continue;
                }
                '*' => tokens.push(Token::Star),
                '?' => tokens.push(Token::One),
                '\\' => {
                    let c = rest.chars().next()?;
                    rest = &rest[c.len_utf8()..];
                    tokens.push(Token::Char(c));
                }
                '[' => tokens.push(Token::Class(Box::new(class(&mut rest)?))),
                c => {
                    tokens.push(Token::Char(c));
                    // Alone it is nothing special, but it is no part of a class here.
                    special |= c == ']';
                    continue;
                }
            }
            special = true;
        }
        Some(if special {
            Self::Tokens(tokens)
        } else if at_start {
            Self::Suffix(pattern.strip_prefix("**")?.to_owned())
        } else if at_end {
            Self::Prefix(pattern.strip_suffix("**")?.to_owned())
        } else {
            Self::Exact(pattern.to_owned())
        })
    }

    /// Whether the whole path matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => text == path,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path),
            Self::Tokens(tokens) => walk(tokens, path),
        }
    }
}

/// The places in a pattern that the path so far may have led to.
struct Places([u64; WORDS]);

impl Places {
    /// Adds a place, and those that need no character to get to.
    fn add(&mut self, tokens: &[Token], mut place: usize) {
        loop {
            self.0[place / 64] |= 1 << (place % 64);
            match tokens.get(place) {
                Some(Token::Star | Token::Any) => place += 1,
                Some(Token::Maybe) => {
                    self.0[(place + 1) / 64] |= 1 << ((place + 1) % 64);
                    place += 2;
                }
                _ => return,
            }
        }
    }
}

fn walk(tokens: &[Token], path: &str) -> bool {
    let words = tokens.len() / 64 + 1;
    let (mut here, mut next) = (Places([0; WORDS]), Places([0; WORDS]));
    here.add(tokens, 0);
    for c in path.chars() {
        let mut any = 0;
        for word in 0..words {
            let mut bits = here.0[word];
            while bits != 0 {
                let place = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(token) = tokens.get(place) else {
                    continue;
                };
                let (stays, goes) = match token {
                    Token::Char(wanted) => (false, *wanted == c),
                    Token::One => (false, c != '/'),
                    Token::Star => (c != '/', false),
                    Token::Any => (c != '\n', false),
                    Token::Maybe => (false, false),
                    Token::Inside => (c != '\n', c == '/'),
                    Token::Class(class) => (false, class.has(c)),
                };
                if stays {
                    next.add(tokens, place);
                }
                if goes {
                    next.add(tokens, place + 1);
                }
                any |= u64::from(stays || goes);
            }
        }
        if any == 0 {
            return false;
        }
        here.0[..words].copy_from_slice(&next.0[..words]);
        next.0[..words].fill(0);
    }
    here.0[tokens.len() / 64] >> (tokens.len() % 64) & 1 == 1
}

/// A class after its `[`.
fn class(rest: &mut &str) -> Option<Class> {
    let mut class = Class::default();
    if let Some(after) = rest.strip_prefix('^') {
        class.negated = true;
        *rest = after;
    }
    let next = |rest: &mut &str| {
        let c = rest.chars().next()?;
        *rest = &rest[c.len_utf8()..];
        Some(c)
    };
    loop {
        let c = next(rest)?;
        if c == ']' && !class.items.is_empty() {
            return Some(class);
        }
        if c == '['
            && let Some((name, after)) = rest.strip_prefix(':').and_then(|rest| rest.split_once(":]"))
        {
            let (name, negated) = name.strip_prefix('^').map_or((name, false), |name| (name, true));
            if let Some(has) = named(name) {
                class.items.push(Item::Named(has, negated));
                *rest = after;
                continue;
            }
        }
        let low = if c == '\\' { next(rest)? } else { c };
        let mut high = low;
        if rest
            .strip_prefix('-')
            .is_some_and(|after| !after.is_empty() && !after.starts_with(']'))
        {
            *rest = &rest[1..];
            high = next(rest)?;
            if high == '\\' {
                high = next(rest)?;
            }
        }
        if high < low {
            return None;
        }
        class.items.push(Item::Range(low, high));
    }
}
