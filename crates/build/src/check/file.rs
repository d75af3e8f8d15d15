//! Checks of the file as a whole, before any stage.

use std::collections::BTreeMap;

use super::{Command, Linter, all, rules};
use crate::dockerfile::{Globals, Span, platform as platforms, suggest};

/// Upper or lower case throughout.
fn is_consistent(word: &str) -> bool {
    word == word.to_lowercase() || word == word.to_uppercase()
}

impl Linter<'_> {
    /// What is wrong with an instruction by itself.
    pub(super) fn instructions(&mut self) {
        let dockerfile = self.dockerfile;
        for stage in &dockerfile.stages {
            let (Some(name), Some(keyword)) = (&stage.written_name, &stage.as_keyword) else {
                continue;
            };
            if *name != name.to_lowercase() {
                let message = format!("Stage name '{name}' should be lowercase");
                self.warn(
                    &rules::STAGE_NAME_CASING,
                    message,
                    &stage.span,
                    Some(name),
                    &stage.comments,
                );
            }
            let expected = if stage.keyword == stage.keyword.to_lowercase() {
                keyword.to_lowercase()
            } else {
                keyword.to_uppercase()
            };
            if is_consistent(&stage.keyword) && *keyword != expected {
                let message = format!(
                    "'{keyword}' and '{}' keywords' casing do not match",
                    stage.keyword
                );
                self.warn(
                    &rules::FROM_AS_CASING,
                    message,
                    &stage.span,
                    Some(keyword),
                    &stage.comments,
                );
            }
            let names: Vec<&str> = stage.name.iter().map(String::as_str).collect();
            self.description("FROM", &names, &stage.span, &stage.comments);
        }
        for instruction in all(dockerfile) {
            match &instruction.command {
                Command::Maintainer(_) => {
                    let message = "Maintainer instruction is deprecated in favor of using label".to_owned();
                    self.warn_at(
                        &rules::MAINTAINER_DEPRECATED,
                        message,
                        instruction,
                        &instruction.keyword,
                    );
                }
                Command::Arg(args) => {
                    let names: Vec<&str> = args.iter().map(|arg| arg.name.as_str()).collect();
                    self.description("ARG", &names, &instruction.span, &instruction.comments);
                }
                _ => {}
            }
        }
    }

    fn description(&mut self, instruction: &str, names: &[&str], span: &Span, comments: &[String]) {
        let (Some(last), Some(first)) = (comments.last(), names.first()) else {
            return;
        };
        if names.contains(&last.split(' ').next().unwrap_or_default()) {
            return;
        }
        let example = if names.len() > 1 { "<arg_key>" } else { first };
        let message =
            format!("Comment for {instruction} should follow the format: `# {example} <description>`");
        self.warn(
            &rules::INVALID_DEFINITION_DESCRIPTION,
            message,
            span,
            None,
            comments,
        );
    }

    pub(super) fn stage_names(&mut self) {
        let dockerfile = self.dockerfile;
        let mut seen: Vec<&str> = Vec::new();
        for stage in &dockerfile.stages {
            let (Some(name), word) = (stage.name.as_deref(), stage.written_name.as_deref()) else {
                continue;
            };
            if matches!(name, "context" | "scratch") {
                let message = format!("Stage name should not use the same name as reserved stage {name:?}");
                self.warn(&rules::RESERVED_STAGE_NAME, message, &stage.span, word, &[]);
            }
            if seen.contains(&name) {
                let message = format!("Duplicate stage name {name:?}, stage names should be unique");
                self.warn(&rules::DUPLICATE_STAGE_NAME, message, &stage.span, word, &[]);
            }
            seen.push(name);
        }
    }

    pub(super) fn casing(&mut self) {
        let dockerfile = self.dockerfile;
        let keywords: Vec<(&str, &Span)> = dockerfile
            .stages
            .iter()
            .flat_map(|stage| {
                let own = stage
                    .instructions
                    .iter()
                    .map(|one| (one.keyword.as_str(), &one.span));
                std::iter::once((stage.keyword.as_str(), &stage.span)).chain(own)
            })
            .collect();
        let consistent = || keywords.iter().filter(|(word, _)| is_consistent(word));
        let lower = consistent()
            .filter(|(word, _)| *word == word.to_lowercase())
            .count();
        let is_lower = lower > consistent().count() - lower;
        for (word, span) in keywords {
            let (expected, name) = if is_lower {
                (word.to_lowercase(), "lowercase")
            } else {
                (word.to_uppercase(), "uppercase")
            };
            if word != expected {
                let message =
                    format!("Command '{word}' should match the case of the command majority ({name})");
                self.warn(
                    &rules::CONSISTENT_INSTRUCTION_CASING,
                    message,
                    span,
                    Some(word),
                    &[],
                );
            }
        }
    }

    /// Whether bases are valid without any build argument.
    pub(super) fn default_bases(
        &mut self,
        platform: impl Iterator<Item = (String, String)>,
        build_args: &BTreeMap<String, String>,
    ) {
        let dockerfile = self.dockerfile;
        // Build arguments count only for the platform's.
        let platform = platform.map(|(name, value)| {
            let value = build_args.get(&name).cloned().unwrap_or(value);
            (name, value)
        });
        let Ok(globals) = Globals::of(dockerfile, platform, &BTreeMap::new()) else {
            return;
        };
        for stage in &dockerfile.stages {
            let Ok(base) = globals.expand(dockerfile, &stage.base) else {
                return;
            };
            if vessel_image::Reference::parse(&base.text).is_err() {
                let message = format!(
                    "Default value for ARG {} results in empty or invalid base image name",
                    stage.base
                );
                self.warn(
                    &rules::INVALID_DEFAULT_ARG_IN_FROM,
                    message,
                    &stage.span,
                    Some(&stage.base),
                    &[],
                );
            }
        }
    }

    /// Variables of `FROM`, and its platform.
    pub(super) fn arguments_of_from(&mut self, globals: &Globals) {
        let dockerfile = self.dockerfile;
        for stage in &dockerfile.stages {
            let Ok(base) = globals.expand(dockerfile, &stage.base) else {
                return;
            };
            let platform = match &stage.platform {
                None => None,
                Some(word) => match globals.expand(dockerfile, word) {
                    Ok(expanded) => Some((word, expanded)),
                    Err(_) => return,
                },
            };
            let undefined = base.undefined.iter();
            for name in undefined.chain(platform.iter().flat_map(|(_, expanded)| &expanded.undefined)) {
                if globals.names().any(|known| known == name) {
                    continue;
                }
                let message = format!("FROM argument '{name}' is not declared");
                let message = suggest::with(message, suggest::closest(name, globals.names(), true));
                self.warn(
                    &rules::UNDEFINED_ARG_IN_FROM,
                    message,
                    &stage.span,
                    Some(name),
                    &stage.comments,
                );
            }
            let Some((word, expanded)) = platform else {
                continue;
            };
            let mut used = expanded.used.iter();
            let only_target =
                (used.next().map(String::as_str), used.next()) == (Some("TARGETPLATFORM"), None);
            if only_target
                && expanded.undefined.is_empty()
                && globals.get("TARGETPLATFORM") == Some(expanded.text.as_str())
            {
                let message = format!(
                    "Setting platform to predefined {word} in FROM is redundant as this is the default behavior"
                );
                self.warn(
                    &rules::REDUNDANT_TARGET_PLATFORM,
                    message,
                    &stage.span,
                    Some(word),
                    &stage.comments,
                );
            }
            let name = stage.name.as_deref().unwrap_or_default();
            if expanded.used.is_empty()
                && expanded.undefined.is_empty()
                && let Some((system, architecture)) = platforms::parse(&expanded.text)
                && !name.contains(&system)
                && !name.contains(&architecture)
            {
                let message = format!(
                    "FROM --platform flag should not use constant value {:?}",
                    expanded.text
                );
                let rule = &rules::FROM_PLATFORM_FLAG_CONST_DISALLOWED;
                self.warn(rule, message, &stage.span, Some(word), &stage.comments);
            }
        }
    }
}
