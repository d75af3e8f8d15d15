//! The exec form's JSON array, as Go's `encoding/json` reads it: lone surrogates become U+FFFD instead of an error.

/// What a text is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Array {
    /// An array of strings.
    Strings(Vec<String>),
    /// An array with something else in it.
    Mixed,
    /// No JSON array.
    Not,
}

/// Go's limit on nesting.
const DEPTH: usize = 10_000;

pub(crate) fn array(text: &str) -> Array {
    if !text.starts_with('[') {
        return Array::Not;
    }
    let mut reader = Reader { rest: text };
    match reader.document() {
        Some(Some(words)) => Array::Strings(words),
        Some(None) => Array::Mixed,
        None => Array::Not,
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// The whole text: none if it is no JSON, no words if not all elements are strings.
    fn document(&mut self) -> Option<Option<Vec<String>>> {
        let mut words: Option<Vec<String>> = Some(Vec::new());
        self.eat("[");
        self.space();
        if !self.eat("]") {
            loop {
                self.space();
                if self.rest.starts_with('"') {
                    let word = self.string()?;
                    if let Some(words) = &mut words {
                        words.push(word);
                    }
                } else {
                    self.value()?;
                    words = None;
                }
                self.space();
                if self.eat("]") {
                    break;
                }
                self.eat(",").then_some(())?;
            }
        }
        self.space();
        self.rest.is_empty().then_some(words)
    }

    /// Any value; nested ones without recursion.
    fn value(&mut self) -> Option<()> {
        // Whether each open bracket is an object's.
        let mut open: Vec<bool> = Vec::new();
        loop {
            self.space();
            if self.rest.starts_with('"') {
                self.string()?;
            } else if self.rest.starts_with(['[', '{']) {
                let object = self.rest.starts_with('{');
                self.rest = &self.rest[1..];
                // The array around all is open already.
                if open.len() + 2 > DEPTH {
                    return None;
                }
                self.space();
                if !self.eat(if object { "}" } else { "]" }) {
                    open.push(object);
                    if object {
                        self.key()?;
                    }
                    continue;
                }
            } else if !(self.eat("true") || self.eat("false") || self.eat("null")) {
                self.number()?;
            }
            loop {
                let Some(&object) = open.last() else {
                    return Some(());
                };
                self.space();
                if self.eat(",") {
                    if object {
                        self.key()?;
                    }
                    break;
                }
                self.eat(if object { "}" } else { "]" }).then_some(())?;
                open.pop();
            }
        }
    }

    fn key(&mut self) -> Option<()> {
        self.space();
        self.string()?;
        self.space();
        self.eat(":").then_some(())
    }

    fn digits(&mut self) -> Option<()> {
        let rest = self.rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let some = rest.len() < self.rest.len();
        self.rest = rest;
        some.then_some(())
    }

    fn number(&mut self) -> Option<()> {
        let text = self.rest;
        self.eat("-");
        if !self.eat("0") {
            self.digits()?;
        }
        if self.eat(".") {
            self.digits()?;
        }
        if self.eat("e") || self.eat("E") {
            let _ = self.eat("+") || self.eat("-");
            self.digits()?;
        }
        // One too large for a double is an error.
        let number: f64 = text[..text.len() - self.rest.len()].parse().ok()?;
        number.is_finite().then_some(())
    }

    fn string(&mut self) -> Option<String> {
        self.eat("\"").then_some(())?;
        let mut out = String::new();
        loop {
            let mut chars = self.rest.chars();
            let c = chars.next()?;
            self.rest = chars.as_str();
            match c {
                '"' => return Some(out),
                '\\' => {
                    let c = chars.next()?;
                    self.rest = chars.as_str();
                    out.push(match c {
                        '"' | '\\' | '/' => c,
                        'b' => '\u{8}',
                        'f' => '\u{c}',
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        'u' => self.unicode()?,
                        _ => return None,
                    });
                }
                c if (c as u32) < 0x20 => return None,
                c => out.push(c),
            }
        }
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.rest.get(..4)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        self.rest = &self.rest[4..];
        u32::from_str_radix(digits, 16).ok()
    }

    /// What follows `\u`: a second half of a pair is taken only if it fits the first.
    fn unicode(&mut self) -> Option<char> {
        let high = self.hex()?;
        if (0xd800..0xdc00).contains(&high) && self.rest.starts_with("\\u") {
            let before = self.rest;
            self.rest = &self.rest[2..];
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                return char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
            }
            self.rest = before;
        }
        Some(char::from_u32(high).unwrap_or('\u{fffd}'))
    }
}
