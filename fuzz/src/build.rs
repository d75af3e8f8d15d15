//! Dockerfiles, their words, and ignore files.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use vessel_build::check::{BaseImage, Options, check};
use vessel_build::dockerfile::{Command, Dockerfile, Lexer, detect_syntax, parse_port, parse_trigger};
use vessel_build::ignore::{Matcher, State, clean, glob};

/// A Dockerfile: parsed, checked, and each instruction's span alone parsed again to the same instruction.
pub fn dockerfile(data: &[u8]) {
    let _ = detect_syntax(data);
    let dockerfile = match Dockerfile::parse(data, "Dockerfile") {
        Ok(dockerfile) => dockerfile,
        Err(error) => {
            assert!(!error.render(true).is_empty());
            return;
        }
    };
    for instruction in dockerfile.stages.iter().flat_map(|stage| &stage.instructions) {
        let text = &dockerfile.source.text[instruction.span.bytes.clone()];
        let alone = format!("# escape={}\nFROM scratch\n{text}", dockerfile.escape);
        let again = Dockerfile::parse(alone.as_bytes(), "").expect("it parsed before");
        // Descriptions come from comments above.
        if !matches!(instruction.command, Command::Arg(_)) {
            assert_eq!(again.stages[0].instructions[0].command, instruction.command);
        }
        if let Command::Onbuild(text) = &instruction.command {
            let _ = parse_trigger(text);
        }
        if let Command::Run(run) = &instruction.command {
            let _ = run.script();
        }
    }
    let build_args = BTreeMap::new();
    let ignore = Matcher::new(["*"]).ok();
    let report = check(
        &dockerfile,
        &Options {
            build_args: &build_args,
            platform_args: &[("TARGETPLATFORM".to_owned(), "linux/amd64".to_owned())],
            target: None,
            ignore: ignore.as_ref(),
            is_context: &|name| name == "context",
            base: &|name, _| (name.len() % 2 == 0).then(BaseImage::default),
        },
    );
    for diagnostic in report.warnings.iter().chain(&report.error) {
        assert!(!diagnostic.render(false).is_empty());
    }
}

/// A word with variables, quotes and escapes.
pub fn expand(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lookup = |name: &str| match name.len() {
        1 => Some(name.repeat(100)),
        2 => Some(String::new()),
        3 => Some("/usr/local/lib/x.tar.gz $a\n".to_owned()),
        _ => None,
    };
    // One of them for each input: patterns in substitutions take their time.
    let lexer = match data.len() % 3 {
        0 => Lexer::new('\\'),
        1 => Lexer::new('`'),
        _ => Lexer::heredoc(),
    };
    let _ = lexer.words(&text, &mut lookup);
    if let Ok(expanded) = lexer.word(&text, &mut lookup)
        && !text.contains(['$', '\'', '"', '\u{feff}', lexer.escape])
    {
        assert_eq!(expanded.text, text);
    }
    let _ = parse_port(&text);
}

/// An ignore file: its first half against its lines as paths, whole and step by step.
pub fn ignore(data: &[u8]) {
    let (patterns, paths) = data.split_at(data.len() / 2);
    let paths = String::from_utf8_lossy(paths);
    for line in String::from_utf8_lossy(patterns).lines() {
        let _ = glob::matches(line, &paths);
    }
    let Ok(matcher) = Matcher::of_file(patterns) else {
        return;
    };
    for path in paths
        .lines()
        .map(clean)
        .filter(|path| !path.starts_with(['/', '.']))
        .take(20)
    {
        let (mut state, mut excluded, mut pruned) = (State::default(), false, false);
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            (excluded, state) = matcher.enter(&path[..end], &state);
            assert!(!pruned || excluded, "{path:?} comes back");
            pruned |= excluded && matcher.prunes(&path[..end]);
        }
        // Where patterns take back in, Docker's two ways to ask do not always agree either.
        assert!(
            matcher.has_negatives() || excluded == matcher.matches(&path),
            "{path:?}"
        );
    }
}

/// The build cache's files: the index of steps and the digests of contexts. Checksums are put right first, which no
/// mutation would guess; an odd last byte leaves them as they are.
pub fn build_cache(data: &[u8]) {
    let mut bytes = Vec::with_capacity(data.len() + 64);
    if data.last().is_some_and(|last| last % 2 == 1) {
        bytes.extend_from_slice(data);
    } else if let Some(body) = data.strip_prefix(b"vslmemo1") {
        let body = &body[..body.len().saturating_sub(32)];
        bytes.extend_from_slice(b"vslmemo1");
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(&Sha256::digest(body));
    } else {
        for line in data.split(|&byte| byte == b'\n') {
            let json = line.get(17..).unwrap_or_default();
            let sum = Sha256::digest(json);
            bytes.extend(
                sum[..8]
                    .iter()
                    .flat_map(|byte| format!("{byte:02x}").into_bytes()),
            );
            bytes.push(b' ');
            bytes.extend_from_slice(json);
            bytes.push(b'\n');
        }
    }
    let (lines, _) = vessel_build::read_cache_files(&bytes);
    assert!(lines <= bytes.len());
}

/// Caches of elsewhere: documents, manifests, configurations of images.
pub fn cache_import(data: &[u8]) {
    let records = vessel_build::read_exported_cache(data);
    assert!(records <= data.len());
}
