//! Dockerfiles, their words, and ignore files.

use std::collections::BTreeMap;

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
    let report = check(&dockerfile, &Options {
        build_args: &build_args,
        platform_args: &[("TARGETPLATFORM".to_owned(), "linux/amd64".to_owned())],
        target: None,
        ignore: ignore.as_ref(),
        is_context: &|name| name == "context",
        base: &|name, _| (name.len() % 2 == 0).then(BaseImage::default),
    });
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
    for lexer in [Lexer::new('\\'), Lexer::new('`'), Lexer::heredoc()] {
        let _ = lexer.words(&text, &mut lookup);
        let Ok(expanded) = lexer.word(&text, &mut lookup) else {
            continue;
        };
        if !text.contains(['$', '\'', '"', '\u{feff}', lexer.escape]) {
            assert_eq!(expanded.text, text);
        }
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
    for path in paths.lines().map(clean).filter(|path| !path.starts_with(['/', '.'])).take(20) {
        let (mut state, mut excluded, mut pruned) = (State::default(), false, false);
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            (excluded, state) = matcher.enter(&path[..end], &state);
            assert!(!pruned || excluded, "{path:?} comes back");
            pruned |= excluded && matcher.prunes(&path[..end]);
        }
        // Where patterns take back in, Docker's two ways to ask do not always agree either.
        assert!(matcher.has_negatives() || excluded == matcher.matches(&path), "{path:?}");
    }
}

/// The build cache's files: the index of steps and the digests of contexts.
pub fn build_cache(data: &[u8]) {
    let (lines, _) = vessel_build::read_cache_files(data);
    assert!(lines <= data.len());
}
