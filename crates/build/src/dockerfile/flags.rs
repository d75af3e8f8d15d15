//! Flags of instructions: `--name=value`, and `--name` for those that are on or off.

use super::suggest;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `true`, `false` or nothing.
    Bool,
    /// A value, once.
    One,
    /// A value each time.
    Many,
}

/// A flag that is wrong, and the word to point at.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub message: String,
    pub help: Option<String>,
    pub word: String,
}

/// The flags of one instruction.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    given: Vec<(&'static str, String)>,
}

impl Flags {
    /// Reads flags; `known` are those of the instruction.
    pub(crate) fn parse(
        words: &[String],
        known: &[(&'static str, Kind)],
        instruction: &str,
    ) -> Result<Self, Wrong> {
        let mut flags = Self::default();
        for word in words {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.as_str(), None),
            };
            let wrong = |message: String, help: Option<String>| Wrong {
                message,
                help,
                word: name.to_owned(),
            };
            let Some(bare) = name.strip_prefix("--") else {
                return Err(wrong(format!("arg should start with -- : {word}"), None));
            };
            let Some(&(flag, kind)) = known.iter().find(|(flag, _)| *flag == bare) else {
                let names = known.iter().map(|(flag, _)| *flag);
                let message = format!("unknown flag: {name}");
                let message = suggest::with(message, suggest::closest(bare, names.clone(), true));
                let names: Vec<String> = names.map(|flag| format!("--{flag}")).collect();
                let help = if names.is_empty() {
                    format!("{instruction} has no flags.")
                } else {
                    format!("{instruction} has {}.", names.join(", "))
                };
                return Err(wrong(message, Some(help)));
            };
            if kind != Kind::Many && flags.given.iter().any(|(given, _)| *given == flag) {
                return Err(wrong(format!("duplicate flag specified: {name}"), None));
            }
            let value = match (kind, value) {
                (Kind::Bool, None) => "true".to_owned(),
                (Kind::Bool, Some("")) | (Kind::One | Kind::Many, None) => {
                    let message = format!("missing a value on flag: {name}");
                    return Err(wrong(message, Some(format!("Write {name}=VALUE."))));
                }
                (Kind::Bool, Some(value)) => match value.to_lowercase().as_str() {
                    value @ ("true" | "false") => value.to_owned(),
                    _ => {
                        let message = format!("expecting boolean value for flag {name}, not: {value}");
                        return Err(wrong(message, None));
                    }
                },
                (_, Some(value)) => value.to_owned(),
            };
            flags.given.push((flag, value));
        }
        Ok(flags)
    }

    /// The value of a flag that is given once, if it is not empty.
    pub(crate) fn one(&self, name: &str) -> Option<String> {
        let given = self.given.iter().find(|(given, _)| *given == name);
        given
            .map(|(_, value)| value.clone())
            .filter(|value| !value.is_empty())
    }

    /// The values of a flag that may be repeated.
    pub(crate) fn many(&self, name: &str) -> Vec<String> {
        let given = self.given.iter().filter(|(given, _)| *given == name);
        given.map(|(_, value)| value.clone()).collect()
    }

    /// Whether a flag is on, off or not given.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.one(name).map(|value| value == "true")
    }
}
