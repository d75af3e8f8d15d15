use super::*;
use crate::dockerfile::Severity;

fn report(text: &str) -> Report {
    with(text, &BTreeMap::new(), None)
}

fn with(text: &str, build_args: &BTreeMap<String, String>, ignore: Option<&Matcher>) -> Report {
    let platform =
        ["BUILDPLATFORM", "TARGETPLATFORM"].map(|name| (name.to_owned(), "linux/amd64".to_owned()));
    let options = Options {
        build_args,
        platform_args: &platform,
        target: None,
        ignore,
        is_context: &|_| false,
        base: &|name, platform| {
            (name == "debian").then(|| BaseImage {
                env: vec!["LANG=C".to_owned()],
                mismatch: platform
                    .filter(|asked| *asked == "linux/s390x")
                    .map(|asked| ("linux/amd64".to_owned(), asked.to_owned())),
                ..BaseImage::default()
            })
        },
    };
    check_bytes(text.as_bytes(), "Dockerfile", &options)
}

/// `LINE RULE: MESSAGE` of each warning.
fn lines(report: &Report) -> Vec<String> {
    let line = |warning: &Diagnostic| {
        assert_eq!(warning.severity, Severity::Warning);
        let (line, rule) = (warning.span.as_ref().unwrap().first, warning.rule.unwrap().name);
        format!("{line} {rule}: {}", warning.message)
    };
    report.warnings.iter().map(line).collect()
}

fn warnings(text: &str) -> Vec<String> {
    let report = report(text);
    assert_eq!(report.error, None, "{text}");
    lines(&report)
}

#[test]
fn each_rule_speaks_in_buildkits_words() {
    for (text, expected) in [
        (
            "FROM scratch AS Base",
            "1 StageNameCasing: Stage name 'Base' should be lowercase",
        ),
        (
            "FROM scratch as base",
            "1 FromAsCasing: 'as' and 'FROM' keywords' casing do not match",
        ),
        (
            "FROM scratch\nLABEL a=1 \\\n\n  b=2",
            "4 NoEmptyContinuation: Empty continuation line",
        ),
        (
            "FROM scratch\nUSER a\nuser b",
            "3 ConsistentInstructionCasing: Command 'user' should match the case of the command majority (uppercase)",
        ),
        (
            "FROM scratch AS a\nFROM scratch AS a",
            "2 DuplicateStageName: Duplicate stage name \"a\", stage names should be unique",
        ),
        (
            "FROM scratch AS context",
            "1 ReservedStageName: Stage name should not use the same name as reserved stage \"context\"",
        ),
        (
            "FROM scratch\nCMD true",
            "2 JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
        ),
        (
            "FROM scratch\nMAINTAINER me",
            "2 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label",
        ),
        (
            "ARG VERSION=1\nFROM debian:1$VERSIO",
            "2 UndefinedArgInFrom: FROM argument 'VERSIO' is not declared (did you mean VERSION?)",
        ),
        (
            "FROM debian\nUSER $LONG",
            "2 UndefinedVar: Usage of undefined variable '$LONG' (did you mean $LANG?)",
        ),
        (
            "FROM scratch\nWORKDIR a",
            "2 WorkdirRelativePath: Relative workdir \"a\" can have unexpected results if the base image changes",
        ),
        (
            "FROM scratch\nCMD []\nCMD []",
            "2 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only \
             the last one will be used",
        ),
        (
            "FROM scratch\nENV a b",
            "2 LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format",
        ),
        (
            "FROM --platform=$TARGETPLATFORM scratch",
            "1 RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the \
             default behavior",
        ),
        (
            "FROM scratch\nARG API_KEY",
            "2 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \"API_KEY\")",
        ),
        (
            "ARG TAG\nFROM debian:$TAG",
            "2 InvalidDefaultArgInFrom: Default value for ARG debian:$TAG results in empty or invalid base image name",
        ),
        (
            "FROM --platform=linux/arm64 scratch AS tools",
            "1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/arm64\"",
        ),
        (
            "FROM scratch\nEXPOSE 80/TCP",
            "2 ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase",
        ),
        (
            "FROM scratch\nEXPOSE 127.0.0.1:80:80",
            "2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found \
             '127.0.0.1:80:80'",
        ),
        (
            "# check=experimental=InvalidDefinitionDescription\n# something else\nFROM scratch AS a",
            "3 InvalidDefinitionDescription: Comment for FROM should follow the format: `# a <description>`",
        ),
    ] {
        // A tag that is empty without its argument fails the build, too, but not the check of it.
        let found = report(text);
        assert_eq!(lines(&found), [expected], "{text}");
    }
}

#[test]
fn what_is_right_is_left_alone() {
    for text in [
        "FROM scratch as base\n",
        "from scratch as base\nuser a\n",
        "FROM --platform=$BUILDPLATFORM debian AS a\nARG TARGETPLATFORM\nARG X\nENV Y=$X$TARGETPLATFORM$LANG$PATH\nUSER $Y\n",
        "FROM --platform=linux/arm64 debian AS tools-arm64\n",
        "FROM debian AS a\nARG v=1\nFROM a\nUSER $v\n",
        "FROM nobody-knows\nUSER $whatever\n",
        "FROM scratch\nSHELL [\"/bin/bash\", \"-c\"]\nCMD true\n",
        "FROM scratch\nWORKDIR /a\nWORKDIR b\n",
        "FROM scratch\nENV PUBLIC_KEY=a TOKEN_FILE=b KEYS=c\n",
        "FROM scratch\nRUN --mount=type=cache,target=/$PATH true\n",
        "# comment\nFROM scratch AS a\n",
    ] {
        let expected: &[&str] = if text.starts_with("FROM scratch as") {
            &["1 FromAsCasing: 'as' and 'FROM' keywords' casing do not match"]
        } else {
            &[]
        };
        assert_eq!(warnings(text), expected, "{text}");
    }
}

#[test]
fn files_that_the_ignore_file_excludes_are_named() {
    let matcher = Matcher::of_file(b"docs\n*.log").unwrap();
    let text = "FROM scratch\nCOPY docs/a ./b.log c /\nADD https://x/a.log docs/../a.log /\nCOPY . /\nCOPY --from=debian docs /\n";
    let none = BTreeMap::new();
    assert_eq!(
        lines(&with(text, &none, Some(&matcher))),
        [
            "2 CopyIgnoredFile: Attempting to Copy file \"docs/a\" that is excluded by .dockerignore",
            "2 CopyIgnoredFile: Attempting to Copy file \"b.log\" that is excluded by .dockerignore",
            "3 CopyIgnoredFile: Attempting to Add file \"a.log\" that is excluded by .dockerignore",
        ]
    );
    let negative = Matcher::of_file(b"docs\n!docs/b").unwrap();
    assert_eq!(lines(&with(text, &none, Some(&negative))), [""; 0]);
}

#[test]
fn comments_and_build_arguments_configure() {
    assert_eq!(
        warnings("# check=skip=JSONArgsRecommended\nFROM scratch\nCMD a"),
        [""; 0]
    );
    assert_eq!(warnings("# check=skip=all\nFROM scratch\nCMD a"), [""; 0]);
    assert_eq!(
        warnings("FROM scratch\n# check=skip=JSONArgsRecommended\nCMD a"),
        [""; 0]
    );
    assert_eq!(
        warnings("FROM scratch\n# check=skip=StageNameCasing\nCMD a").len(),
        1
    );
    let report = report("# check=error=true\nFROM scratch\nCMD a\nENTRYPOINT b");
    assert_eq!(
        report.violation().unwrap(),
        "lint violation found for rules: JSONArgsRecommended"
    );
    let wrong = super::tests::report("# check=nonsense\nFROM scratch\n")
        .error
        .unwrap();
    assert_eq!(
        wrong.message,
        "failed to parse check options: invalid check option \"nonsense\""
    );
    let build_args = [("BUILDKIT_DOCKERFILE_CHECK".to_owned(), "skip=all".to_owned())].into();
    assert_eq!(lines(&with("FROM scratch\nCMD a", &build_args, None)), [""; 0]);
}

#[test]
fn triggers_of_base_stages_are_followed() {
    let text = "FROM scratch AS base\nONBUILD CMD a\nFROM base\n";
    assert_eq!(warnings(text).len(), 1);
    assert!(warnings(text)[0].starts_with("3 JSONArgsRecommended"));
}

#[test]
fn a_base_image_of_another_platform_is_mentioned() {
    assert!(warnings("FROM debian").is_empty());
    assert_eq!(
        warnings("ARG P=linux/s390x\nFROM --platform=$P debian"),
        [
            "2 InvalidBaseImagePlatform: Base image debian was pulled with platform \"linux/amd64\", expected \"linux/s390x\" for current build"
        ]
    );
}

#[test]
fn what_fails_a_build_is_an_error() {
    for (text, message) in [
        (
            "FROM scratch\nRUM a",
            "unknown instruction: RUM (did you mean RUN?)",
        ),
        ("FROM scratch\nEXPOSE x", "invalid containerPort: x"),
        (
            "FROM scratch\nUSER ${",
            "failed to process \"${\": syntax error: missing '}'",
        ),
        ("FROM $x", "base name ($x) should not be blank"),
    ] {
        assert_eq!(report(text).error.unwrap().message, message);
    }
}

#[test]
fn a_warning_reads_as_docker_prints_it() {
    let report = report("FROM scratch\nCMD a\n");
    assert_eq!(
        report.warnings[0].render(false),
        "WARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/\n\
         JSON arguments recommended for CMD to prevent unintended behavior related to OS signals\n\
         Dockerfile:2\n--------------------\n   1 |     FROM scratch\n   2 | >>> CMD a\n     |     ^^^\n--------------------\n"
    );
}
