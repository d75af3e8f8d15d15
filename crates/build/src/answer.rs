//! What a Dockerfile itself answers, without a build: the findings of the checks, and its stages. The documents are those
//! of BuildKit's subrequests `frontend.lint` and `frontend.targets`.

use std::fmt::Write as _;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::check::{Options, check_bytes};
use crate::dockerfile::{Dockerfile, Globals, Span};
use crate::error::Result;
use crate::ignore::Matcher;
use crate::request::{Answer, BuildRequest};
use crate::solve::lint::Bases;
use crate::solve::{build_args, from_diagnostic};

/// Beyond so many bytes, findings are told without the lines they are about.
const MAX_SHOWN: usize = 1 << 20;

/// The findings of the checks.
pub(crate) fn check(
    request: &BuildRequest,
    name: &str,
    text: &[u8],
    platform_args: &[(String, String)],
    ignore: Option<&Matcher>,
    bases: &Bases,
) -> Answer {
    let args = build_args(request);
    let options = Options {
        build_args: &args,
        platform_args,
        target: request.target.as_deref(),
        ignore,
        is_context: &|name| request.contexts.contains_key(name),
        base: &|name, platform| bases.get(name, platform),
    };
    let report = check_bytes(text, name, &options);
    let mut shown = String::new();
    let mut warnings = Vec::new();
    for warning in &report.warnings {
        let (rule, description, url) = warning
            .rule
            .map_or(("", "", ""), |rule| (rule.name, rule.description, rule.url));
        let _ = write!(shown, "\nWARNING: {rule}");
        if !url.is_empty() {
            let _ = write!(shown, " - {url}");
        }
        let _ = writeln!(shown, "\n{}", warning.message);
        if shown.len() < MAX_SHOWN {
            shown.push_str(&warning.excerpt(false));
        }
        warnings.push(json!({
            "ruleName": rule,
            "description": description,
            "url": url,
            "detail": warning.message,
            "location": warning.span.as_ref().map(location),
        }));
    }
    let mut document = json!({
        "warnings": warnings,
        "sources": [{
            "filename": name,
            "language": "Dockerfile",
            "data": base64::engine::general_purpose::STANDARD.encode(text),
        }],
    });
    if let Some(error) = &report.error {
        let _ = write!(shown, "\nERROR: {}\n{}", error.message, error.excerpt(false));
        document["buildError"] = json!({
            "message": error.message,
            "location": error.span.as_ref().map(location),
        });
    } else if let Some(message) = report.violation() {
        // With `error=true` a build fails; clients show it below the warnings.
        let of_rules = report.warnings.iter().filter(|warning| warning.rule.is_some());
        let first = of_rules.filter_map(|warning| warning.span.as_ref()).next();
        document["buildError"] = json!({
            "message": message,
            "location": first.map(location),
        });
    }
    let findings = report.warnings.len() + usize::from(report.error.is_some());
    let summary = match findings {
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        many => format!("Check complete, {many} warnings have been found!\n"),
    };
    Answer {
        json: document.to_string(),
        text: format!("{summary}{shown}"),
        findings,
    }
}

/// The stages.
pub(crate) fn targets(
    request: &BuildRequest,
    dockerfile: &Dockerfile,
    platform_args: Vec<(String, String)>,
) -> Result<Answer> {
    let args = build_args(request);
    let globals = Globals::of(dockerfile, platform_args, &args).map_err(from_diagnostic)?;
    let expand = |word: &str| {
        let lexer = dockerfile.lexer();
        let expanded = lexer.word(word, &mut |name| globals.get(name).map(str::to_owned));
        expanded.map_or_else(|_| word.to_owned(), |expanded| expanded.text)
    };
    let last = dockerfile.stages.len().saturating_sub(1);
    let mut rows = vec![("TARGET".to_owned(), "DESCRIPTION".to_owned())];
    let mut list: Vec<Value> = Vec::new();
    for stage in &dockerfile.stages {
        let name = stage.name.clone().unwrap_or_default();
        let description = stage.description.clone().unwrap_or_default();
        let shown = match (name.as_str(), stage.index == last) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push((shown, description.clone()));
        list.push(json!({
            "name": name,
            "default": stage.index == last,
            "description": description,
            "base": expand(&stage.base),
            "platform": stage.platform.as_deref().map(expand).unwrap_or_default(),
            "location": location(&stage.span),
        }));
    }
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let lines = rows
        .iter()
        .map(|(name, description)| format!("{name:width$} {description}").trim_end().to_owned() + "\n");
    let text = dockerfile.source.text.as_bytes();
    let source = base64::engine::general_purpose::STANDARD.encode(text);
    Ok(Answer {
        text: lines.collect(),
        json: json!({"targets": list, "sources": [source]}).to_string(),
        findings: 0,
    })
}

/// A place, as BuildKit's documents have it.
pub(crate) fn location(span: &Span) -> Value {
    json!({"ranges": [{
        "start": {"line": span.first, "character": 0},
        "end": {"line": span.last, "character": 0},
    }]})
}
