//! `WWW-Authenticate` (RFC 9110, section 11): what a registry wants to be shown.
//!
//! The header is hostile. It is bounded, a quoted string may hold anything printable, and what cannot be read ends
//! the list: challenges before it still count.

/// Longest header that is looked at.
const MAX_HEADER: usize = 8 << 10;
/// Challenges, and parameters of each.
const MAX_CHALLENGES: usize = 16;
const MAX_PARAMETERS: usize = 32;

/// One way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// `basic`, `bearer`, …, in lower case.
    pub scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Reads every challenge of one header's value.
    pub fn parse_all(header: &str) -> Vec<Self> {
        let mut scanner = Scanner {
            rest: header.get(..MAX_HEADER).unwrap_or(header),
        };
        if header.len() > MAX_HEADER {
            return Vec::new();
        }
        let mut challenges: Vec<Self> = Vec::new();
        loop {
            scanner.skip(|c| matches!(c, ' ' | '\t' | ','));
            let Some(word) = scanner.token() else {
                return challenges;
            };
            let spaces = scanner.skip(|c| matches!(c, ' ' | '\t'));
            if scanner.rest.starts_with('=')
                && let Some(current) = challenges.last_mut()
            {
                // A parameter of the challenge before; or token68 padding, which ends the list.
                scanner.rest = &scanner.rest[1..];
                scanner.skip(|c| matches!(c, ' ' | '\t'));
                let Some(value) = scanner.value() else {
                    return challenges;
                };
                if current.parameters.len() == MAX_PARAMETERS {
                    return challenges;
                }
                let name = word.to_ascii_lowercase();
                // A name that comes twice could mean two things to two readers: the first counts.
                if current.get(&name).is_none() {
                    current.parameters.push((name, value));
                }
                continue;
            }
            let ends = spaces > 0 || scanner.rest.is_empty() || scanner.rest.starts_with(',');
            if !ends || challenges.len() == MAX_CHALLENGES {
                return challenges;
            }
            challenges.push(Self {
                scheme: word.to_ascii_lowercase(),
                parameters: Vec::new(),
            });
        }
    }

    /// A parameter by its name in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, what: impl Fn(char) -> bool) -> usize {
        let trimmed = self.rest.trim_start_matches(what);
        let skipped = self.rest.len() - trimmed.len();
        self.rest = trimmed;
        skipped
    }

    fn token(&mut self) -> Option<&'a str> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.rest.find(|c| !is_token(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    /// A token or a quoted string without control characters.
    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            // Some registries leave the quotes away around addresses.
            let end = self.rest.find([',', ' ', '\t', '"']).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return (!word.is_empty() && !word.contains(char::is_control)).then(|| word.to_owned());
        };
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next().filter(|(_, c)| !c.is_control())?.1),
                control if control.is_control() => return None,
                other => value.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_registries_send() {
        let all = Challenge::parse_all(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].scheme, "bearer");
        assert_eq!(all[0].get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(all[0].get("scope"), Some("repository:a/b:pull,push"));
        let all = Challenge::parse_all(
            "Basic realm=\"a \\\"b\\\"\", Negotiate, BEARER realm=http://x/y , service=z",
        );
        let schemes: Vec<&str> = all.iter().map(|one| one.scheme.as_str()).collect();
        assert_eq!(schemes, ["basic", "negotiate", "bearer"]);
        assert_eq!(all[0].get("realm"), Some("a \"b\""));
        assert_eq!(all[2].get("realm"), Some("http://x/y"));
        assert_eq!(all[2].get("service"), Some("z"));
    }

    #[test]
    fn nonsense_ends_the_list() {
        assert!(Challenge::parse_all("").is_empty());
        assert!(Challenge::parse_all("=x").is_empty());
        assert_eq!(
            Challenge::parse_all("Bearer realm=\"unfinished")[0].get("realm"),
            None
        );
        assert_eq!(
            Challenge::parse_all("Bearer realm=\"a\nb\"")[0].get("realm"),
            None
        );
        assert_eq!(
            Challenge::parse_all("Bearer realm=\"a\",realm=\"b\"")[0].get("realm"),
            Some("a")
        );
        assert!(Challenge::parse_all(&format!("Bearer realm=\"{}\"", "x".repeat(MAX_HEADER))).is_empty());
        assert!(Challenge::parse_all(&"Basic,".repeat(1000)).len() <= MAX_CHALLENGES);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            let _ = Challenge::parse_all(&text);
        }

        #[test]
        fn quoted_values_read_back(value in "[ -~]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let all = Challenge::parse_all(&format!("Bearer realm=\"{quoted}\", service=x"));
            prop_assert_eq!(all[0].get("realm"), Some(value.as_str()));
            prop_assert_eq!(all[0].get("service"), Some("x"));
        }
    }
}
