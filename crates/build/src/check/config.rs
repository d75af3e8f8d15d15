//! `# check=`: which rules count.

use std::collections::{BTreeMap, BTreeSet};

use crate::dockerfile::{Diagnostic, Dockerfile, Rule};

/// Which rules count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Rules that do not.
    pub skip: BTreeSet<String>,
    /// No rule counts but experimental ones that are asked for.
    pub skip_all: bool,
    /// Experimental rules that do.
    pub experimental: BTreeSet<String>,
    /// All experimental rules do.
    pub experimental_all: bool,
    /// A warning fails the build.
    pub error: bool,
}

impl Config {
    /// Reads `skip=A,B;error=true;experimental=all`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        for part in text.splitn(3, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {part:?}"));
            };
            let (key, value) = (key.trim(), value.trim());
            let names = || value.split(',').map(|name| name.trim().to_owned()).collect();
            match (key, value) {
                ("skip", "all") => config.skip_all = true,
                ("skip", _) => config.skip = names(),
                ("experimental", "all") => config.experimental_all = true,
                ("experimental", _) => config.experimental = names(),
                ("error", "1" | "t" | "T" | "TRUE" | "true" | "True") => config.error = true,
                ("error", "0" | "f" | "F" | "FALSE" | "false" | "False") => config.error = false,
                ("error", _) => {
                    return Err(format!(
                        "failed to parse check option {part:?}: it takes true or false"
                    ));
                }
                _ => return Err(format!("invalid check option {key:?}")),
            }
        }
        Ok(config)
    }

    /// The configuration of a build: the build argument's, else the file's.
    pub(crate) fn of(
        dockerfile: &Dockerfile,
        build_args: &BTreeMap<String, String>,
    ) -> Result<Self, Diagnostic> {
        if let Some(text) = build_args.get("BUILDKIT_DOCKERFILE_CHECK") {
            return Self::parse(text).map_err(|error| {
                Diagnostic::error(format!("failed to parse BUILDKIT_DOCKERFILE_CHECK: {error}"))
            });
        }
        let Some(directive) = dockerfile.directive("check") else {
            return Ok(Self::default());
        };
        let text = directive.value.split(' ').next().unwrap_or_default();
        Self::parse(text).map_err(|error| {
            let message = format!("failed to parse check options: {error}");
            let error = dockerfile.error(&directive.span, message, Some(text));
            error.help("Write: # check=skip=RULE,RULE;error=true")
        })
    }

    /// The configuration in comments above an instruction.
    pub(super) fn of_comments(comments: &[String]) -> Option<Self> {
        let value = comments.iter().find_map(|comment| {
            let (name, value) = comment.split_once('=')?;
            name.trim().eq_ignore_ascii_case("check").then_some(value.trim())
        })?;
        Self::parse(value.split(' ').next().unwrap_or_default()).ok()
    }

    /// With what stands above an instruction.
    pub(super) fn merged(&self, above: &Self) -> Self {
        Self {
            skip: self.skip.union(&above.skip).cloned().collect(),
            skip_all: self.skip_all || above.skip_all,
            experimental: self.experimental.union(&above.experimental).cloned().collect(),
            experimental_all: self.experimental_all || above.experimental_all,
            error: self.error,
        }
    }

    pub(super) fn wants(&self, rule: &Rule) -> bool {
        if rule.experimental {
            self.experimental_all || self.experimental.contains(rule.name)
        } else {
            !self.skip_all && !self.skip.contains(rule.name)
        }
    }
}
