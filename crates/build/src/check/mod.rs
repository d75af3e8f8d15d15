//! Build checks: what `vessel build --check` objects to, under the names and in the words of BuildKit's linter.
//!
//! `# check=skip=RULE,...;error=true;experimental=RULE,...` at the top of a Dockerfile configures them, the same in a
//! comment above an instruction only for it, and the build argument `BUILDKIT_DOCKERFILE_CHECK` instead of the file. Where
//! a stage's base image is not at hand, nothing is said about variables that it might define.

mod config;
mod file;
pub mod rules;
mod stages;

use std::collections::BTreeMap;

pub use config::Config;

use crate::dockerfile::{Command, Diagnostic, Dockerfile, Globals, Instruction, Rule, Span};
use crate::ignore::Matcher;

/// The most warnings of one Dockerfile that are told.
pub const MAX_WARNINGS: usize = 1000;

/// What checks need to know of a base image.
#[derive(Clone, Debug, Default)]
pub struct BaseImage {
    /// Its environment, `NAME=VALUE`.
    pub env: Vec<String>,
    /// Whether it sets a shell.
    pub shell: bool,
    /// Its `ONBUILD` triggers.
    pub on_build: Vec<String>,
    /// What it is for and what was asked for, when they differ.
    pub mismatch: Option<(String, String)>,
}

/// What a build is asked for, as far as checks care.
pub struct Options<'a> {
    /// `--build-arg`
    pub build_args: &'a BTreeMap<String, String>,
    /// The platform arguments with their values.
    pub platform_args: &'a [(String, String)],
    /// `--target`; without it, all stages are checked.
    pub target: Option<&'a str>,
    /// The context's ignore file.
    pub ignore: Option<&'a Matcher>,
    /// Names of named contexts.
    pub is_context: &'a dyn Fn(&str) -> bool,
    /// The base image of a name and the `--platform` of its `FROM`; none if it is not known.
    pub base: &'a dyn Fn(&str, Option<&str>) -> Option<BaseImage>,
}

/// What checks found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The warnings, by line.
    pub warnings: Vec<Diagnostic>,
    /// What would make a build fail.
    pub error: Option<Diagnostic>,
    /// Whether a build has to fail because of the warnings: `error=true`.
    pub fatal: bool,
}

impl Report {
    /// What fails a build with `error=true`, in one sentence.
    pub fn violation(&self) -> Option<String> {
        let mut names: Vec<&str> = self
            .warnings
            .iter()
            .filter_map(|warning| Some(warning.rule?.name))
            .collect();
        names.sort_unstable();
        names.dedup();
        (self.fatal && !names.is_empty())
            .then(|| format!("lint violation found for rules: {}", names.join(", ")))
    }
}

/// Checks a Dockerfile's bytes: as [`check`], with an error for what is none.
pub fn check_bytes(bytes: &[u8], name: &str, options: &Options<'_>) -> Report {
    match Dockerfile::parse(bytes, name) {
        Ok(dockerfile) => check(&dockerfile, options),
        Err(error) => Report {
            error: Some(error),
            ..Report::default()
        },
    }
}

/// Checks a Dockerfile.
pub fn check(dockerfile: &Dockerfile, options: &Options<'_>) -> Report {
    let mut report = Report::default();
    let config = match Config::of(dockerfile, options.build_args) {
        Ok(config) => config,
        Err(error) => {
            report.error = Some(error);
            return report;
        }
    };
    report.fatal = config.error;
    let mut linter = Linter {
        dockerfile,
        config: &config,
        report: &mut report,
    };
    if let Err(error) = linter.run(options) {
        report.error = Some(error);
    }
    let line = |warning: &Diagnostic| warning.span.as_ref().map_or(0, |span| span.first);
    report.warnings.sort_by_key(line);
    report
}

struct Linter<'a> {
    dockerfile: &'a Dockerfile,
    config: &'a Config,
    report: &'a mut Report,
}

impl Linter<'_> {
    fn run(&mut self, options: &Options<'_>) -> Result<(), Diagnostic> {
        for warning in &self.dockerfile.warnings {
            if warning.rule.is_some_and(|rule| self.config.wants(rule)) {
                self.report.warnings.push(warning.clone());
            }
        }
        self.instructions();
        self.stage_names();
        self.casing();
        let platform = || options.platform_args.iter().cloned();
        self.default_bases(platform(), options.build_args);
        let globals = Globals::of(self.dockerfile, platform(), options.build_args)?;
        self.arguments_of_from(&globals);
        let graph = self
            .dockerfile
            .graph(&globals, options.target, options.is_context)?;
        self.stages(&graph, &globals, options)
    }

    /// Reports, unless the file's configuration or that above the instruction skips the rule.
    fn warn(
        &mut self,
        rule: &'static Rule,
        message: String,
        span: &Span,
        word: Option<&str>,
        comments: &[String],
    ) {
        let wanted = match Config::of_comments(comments) {
            Some(above) => self.config.merged(&above).wants(rule),
            None => self.config.wants(rule),
        };
        if wanted && self.report.warnings.len() < MAX_WARNINGS {
            let warning = Diagnostic::warning(rule, message);
            self.report
                .warnings
                .push(warning.at(&self.dockerfile.source, span, word));
        }
    }

    fn warn_at(&mut self, rule: &'static Rule, message: String, instruction: &Instruction, word: &str) {
        self.warn(
            rule,
            message,
            &instruction.span,
            Some(word),
            &instruction.comments,
        );
    }
}

/// All instructions of a Dockerfile, global arguments first.
fn all(dockerfile: &Dockerfile) -> impl Iterator<Item = &Instruction> {
    let stages = dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
    dockerfile.global_args.iter().chain(stages)
}

#[cfg(test)]
mod tests;
