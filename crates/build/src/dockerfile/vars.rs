//! Variables that exist without being declared, and the `ARG`s before the first `FROM`.

use std::collections::BTreeMap;

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
                    globals.values.insert(arg.name.clone(), value);
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
