//! Variables that exist without being declared, and the `ARG`s before the first `FROM`.

use std::collections::{BTreeMap, HashMap};

use super::ast::{Command, Dockerfile};
use super::{Diagnostic, Expanded};

/// Platform arguments: known in `FROM`, and in a stage once it declares them with `ARG`.
pub const PLATFORM_ARGS: [&str; 11] = [
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDOSVERSION",
    "BUILDARCH",
    "BUILDVARIANT",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETOSVERSION",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
]; // fmt: skip

/// Build arguments that need no `ARG`: they are in the environment of `RUN`, and neither in the image, nor in its
/// history, nor in the cache's key.
pub const PROXY_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
]; // fmt: skip

/// Whether a build argument is one of [`PROXY_ARGS`], in whatever case.
pub fn is_proxy_arg(name: &str) -> bool {
    PROXY_ARGS.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The most variables a stage may have.
pub const MAX_VARIABLES: usize = 10_000;

/// The most bytes that a stage's variables may have, names and values.
pub const MAX_VARIABLE_BYTES: usize = 4 << 20;

/// The most bytes of variables and history that all stages of a Dockerfile may have: each has those of the stage it is
/// `FROM`, too.
pub const MAX_STAGE_BYTES: usize = 256 << 20;

/// The variables of a stage in the order in which they came, within [`MAX_VARIABLES`] and [`MAX_VARIABLE_BYTES`].
#[derive(Clone, Debug, Default)]
pub struct Variables {
    list: Vec<(String, String)>,
    places: HashMap<String, usize>,
    bytes: usize,
}

impl Variables {
    /// A variable's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.list.get(*self.places.get(name)?)?;
        Some(value)
    }

    /// Sets a variable.
    ///
    /// # Errors
    /// When there would be too many, or they would be too long.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let count = self.list.len();
        let place = self.places.get(name).copied();
        let there = place.and_then(|place| self.list.get_mut(place));
        let bytes = match &there {
            Some((_, old)) => self.bytes - old.len() + value.len(),
            None => self.bytes + name.len() + value.len(),
        };
        if bytes > MAX_VARIABLE_BYTES {
            return Err(format!(
                "the variables of a stage may have {MAX_VARIABLE_BYTES} bytes, and with {} they have more",
                short(name)
            ));
        }
        match there {
            Some((_, old)) => value.clone_into(old),
            None if count >= MAX_VARIABLES => {
                let name = short(name);
                return Err(format!(
                    "a stage may have {MAX_VARIABLES} variables, and {name} is one more"
                ));
            }
            None => {
                self.places.insert(name.to_owned(), count);
                self.list.push((name.to_owned(), value.to_owned()));
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.list
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The bytes of names and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A name for a message.
fn short(name: &str) -> String {
    name.chars().take(100).collect()
}

/// Adds up what stages take with them.
///
/// # Errors
/// When it is more than [`MAX_STAGE_BYTES`].
pub fn charge(sum: &mut usize, bytes: usize) -> Result<(), String> {
    *sum = sum.saturating_add(bytes);
    if *sum > MAX_STAGE_BYTES {
        return Err(format!(
            "the variables and the history of all stages have more than {MAX_STAGE_BYTES} bytes: each stage has those of \
             the one it is FROM, too"
        ));
    }
    Ok(())
}

/// The variables that count in `FROM`, in order of their declaration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globals {
    values: BTreeMap<String, String>,
    declared: Vec<String>,
}

impl Globals {
    /// Of a Dockerfile: platform arguments (with their values, which build arguments override), then its global `ARG`s,
    /// each default expanded with those before.
    pub fn of(
        dockerfile: &Dockerfile,
        platform: impl IntoIterator<Item = (String, String)>,
        build_args: &BTreeMap<String, String>,
    ) -> Result<Self, Diagnostic> {
        let mut globals = Self::default();
        for (name, value) in platform {
            let value = build_args.get(&name).cloned().unwrap_or(value);
            globals.values.insert(name, value);
        }
        let lexer = dockerfile.lexer();
        let mut bytes = 0usize;
        for instruction in &dockerfile.global_args {
            let Command::Arg(args) = &instruction.command else {
                continue;
            };
            for arg in args {
                let value = match build_args.get(&arg.name) {
                    Some(value) => Some(value.clone()),
                    None => arg
                        .default(&lexer, &mut |name| globals.values.get(name).cloned())
                        .map_err(|error| {
                            dockerfile.error(&instruction.span, error.to_string(), Some(&arg.name))
                        })?
                        .map(|expanded| expanded.text),
                };
                if let Some(value) = value {
                    bytes += value.len();
                    let old = globals.values.insert(arg.name.clone(), value);
                    bytes = bytes.saturating_sub(old.map_or(0, |old| old.len()));
                }
                if bytes > MAX_VARIABLE_BYTES {
                    let message = format!(
                        "the arguments before the first FROM may have {MAX_VARIABLE_BYTES} bytes, and have more"
                    );
                    return Err(dockerfile.error(&instruction.span, message, Some(&arg.name)));
                }
                globals.declared.push(arg.name.clone());
            }
        }
        Ok(globals)
    }

    /// A variable's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// All names that are declared, with a value or without.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let values = self.values.keys().chain(&self.declared);
        values.map(String::as_str)
    }

    /// Expands a word of `FROM`.
    pub fn expand(&self, dockerfile: &Dockerfile, word: &str) -> Result<Expanded, super::ExpandError> {
        dockerfile
            .lexer()
            .word(word, &mut |name| self.values.get(name).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_bounded() {
        let mut variables = Variables::default();
        variables.set("A", "1").unwrap();
        variables.set("B", "2").unwrap();
        variables.set("A", "3").unwrap();
        assert_eq!(variables.iter().collect::<Vec<_>>(), [("A", "3"), ("B", "2")]);
        assert_eq!((variables.get("A"), variables.get("C")), (Some("3"), None));
        assert!(variables.set("C", &"x".repeat(MAX_VARIABLE_BYTES)).is_err());
        assert_eq!(variables.bytes(), 4);
        for number in 2..MAX_VARIABLES {
            variables.set(&number.to_string(), "").unwrap();
        }
        variables.set("A", "4").unwrap();
        assert!(variables.set("Z", "").unwrap_err().contains("Z is one more"));
    }
}
