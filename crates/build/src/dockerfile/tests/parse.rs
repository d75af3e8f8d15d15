use super::*;

#[test]
fn what_is_wrong_is_shown_with_a_caret_and_what_to_do() {
    let error = error("FROM scratch\nRUM echo hello\nCMD [\"true\"]\n");
    assert_eq!(
        error.to_string(),
        "Dockerfile:2: unknown instruction: RUM (did you mean RUN?)"
    );
    let expected = "Dockerfile:2\n--------------------\n   1 |     FROM scratch\n   2 | >>> RUM echo hello\n     \
                    |     ^^^\n   3 |     CMD [\"true\"]\n--------------------\n";
    assert!(
        error.excerpt(false).starts_with(expected),
        "{}",
        error.excerpt(false)
    );
    assert!(error.excerpt(true).contains("\x1b[1;31m^^^\x1b[0m"));
    let flag = super::error("FROM scratch\nCOPY --form=a \\\n  b c\n");
    assert_eq!(flag.message, "unknown flag: --form (did you mean from?)");
    assert!(
        flag.excerpt(false)
            .contains("| >>> COPY --form=a \\\n     |          ^^^^^^\n"),
        "{}",
        flag.excerpt(false)
    );
}

#[test]
fn errors_are_worded_as_buildkit_words_them() {
    let long = format!("ADD {}", "a ".repeat(3));
    for (text, expected) in [
        ("", "the Dockerfile cannot be empty"),
        ("# only a comment\n", "file with no instructions"),
        ("ARG a\n", "dockerfile contains no stages to build"),
        ("RUN true\nFROM a\n", "no build stage in current context"),
        (
            "#escape=x\nFROM a\n",
            "invalid escape token 'x' does not match ` or \\",
        ),
        (
            "#escape=`\n#escape=`\nFROM a\n",
            "only one escape parser directive can be used",
        ),
        ("FROM\n", "FROM requires either one or three arguments"),
        ("FROM a AS\n", "FROM requires either one or three arguments"),
        (
            "FROM a AS 1\n",
            "invalid name for build stage: \"1\", name can't start with a number or contain symbols",
        ),
        (
            "FROM a\nRUM true\n",
            "unknown instruction: RUM (did you mean RUN?)",
        ),
        ("FROM a\nnonsense\n", "unknown instruction: nonsense"),
        (
            "FROM a\nCOPY --chwon=x a b\n",
            "unknown flag: --chwon (did you mean chown?)",
        ),
        (
            "FROM a\nCOPY --from=x --from=y a b\n",
            "duplicate flag specified: --from",
        ),
        ("FROM a\nCOPY --from a b\n", "missing a value on flag: --from"),
        (
            "FROM a\nCOPY --link=maybe a b\n",
            "expecting boolean value for flag --link, not: maybe",
        ),
        (
            "FROM a\nCOPY a\n",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "FROM a\nCOPY a <<EOF\nEOF\n",
            "COPY cannot accept a heredoc as a destination",
        ),
        ("FROM a\nCOPY <<EOF /a\n", "unterminated heredoc"),
        (
            "FROM a\nRUN [\"a\", 1]\n",
            "when using JSON array syntax, arrays must be comprised of strings only",
        ),
        ("FROM a\nENV a\n", "ENV must have two arguments"),
        (
            "FROM a\nENV a=b c\n",
            "Syntax error - can't find = in \"c\". Must be of the form: name=value",
        ),
        ("FROM a\nENV =b\n", "ENV names can not be blank"),
        ("FROM a\nENV\n", "ENV requires at least one argument"),
        ("FROM a\nARG =b\n", "ARG names can not be blank"),
        ("FROM a\nWORKDIR\n", "WORKDIR requires exactly one argument"),
        (
            "FROM a\nSHELL bash\n",
            "SHELL requires the arguments to be in JSON form",
        ),
        (
            "FROM a\nVOLUME [\" \"]\n",
            "VOLUME specified can not be an empty string",
        ),
        (
            "FROM a\nHEALTHCHECK NONE x\n",
            "HEALTHCHECK NONE takes no arguments",
        ),
        (
            "FROM a\nHEALTHCHECK CMD\n",
            "Missing command after HEALTHCHECK CMD",
        ),
        (
            "FROM a\nHEALTHCHECK curl\n",
            "Unknown type \"CURL\" in HEALTHCHECK (try CMD)",
        ),
        (
            "FROM a\nHEALTHCHECK --interval=1 CMD x\n",
            "time: missing unit in duration \"1\"",
        ),
        (
            "FROM a\nHEALTHCHECK --timeout=1us CMD x\n",
            "Interval \"timeout\" cannot be less than 1ms",
        ),
        (
            "FROM a\nHEALTHCHECK --retries=-1 CMD x\n",
            "--retries cannot be negative (-1)",
        ),
        (
            "FROM a\nONBUILD ONBUILD RUN a\n",
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        ),
        (
            "FROM a\nONBUILD FROM a\n",
            "FROM isn't allowed as an ONBUILD trigger",
        ),
        (
            "FROM a\nRUN --mount=from=$x,target=/y true\n",
            "'from' doesn't support variable expansion, define alias stage instead",
        ),
        (
            "FROM a\nRUN --network=bridge true\n",
            "invalid network mode \"bridge\"",
        ),
        (
            "FROM a\nRUN --security=none true\n",
            "security \"none\" is not valid",
        ),
        ("FROM a\nCMD --flag\n", "unknown flag: --flag"),
    ] {
        assert_eq!(error(text).message, expected, "{text}");
    }
    assert_eq!(commands(&long).len(), 1);
}

#[test]
fn mounts_are_checked_when_their_variables_are_known() {
    for (mount, expected) in [
        ("type=bnd", "unsupported mount type \"bnd\" (did you mean bind?)"),
        ("type=bind,mode=0700", "mode not allowed for \"bind\" type mounts"),
        (
            "type=cache,sharing=shard",
            "unsupported sharing value \"shard\" (did you mean shared?)",
        ),
        ("type=bind,size=1m", "unexpected key 'size' for mount type 'bind'"),
        ("type=tmpfs,size=lots", "invalid value for size: lots"),
        (
            "type=cache,required",
            "unexpected key 'required' for mount type 'cache'",
        ),
        ("type=secret,from=a", "secret mount should not have a from"),
        (
            "type=secret",
            "invalid secret mount. one of source, target required",
        ),
        (
            "type=ssh,sharing=locked",
            "invalid cache sharing set for ssh mount",
        ),
        (
            "type=bind,tagret=/x",
            "unexpected key 'tagret' in 'tagret=/x' (did you mean target?)",
        ),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("type=cache,uid=-1", "invalid value -1 for uid"),
    ] {
        let list = commands(&format!("RUN --mount={mount} true"));
        let [Command::Run(run)] = list.as_slice() else {
            panic!("{list:?}");
        };
        let error = run.mounts(&mut |word| Ok(word.to_owned())).unwrap_err();
        assert_eq!(error, expected, "{mount}");
    }
}

#[test]
fn a_script_is_a_document_or_has_documents_below() {
    let script = |text: &str| match commands(text).as_slice() {
        [Command::Run(run)] => run.script(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        script("RUN <<-EOF\n\ta\n\tb\n\tEOF\n"),
        Script::Shell("a\nb\n".to_owned())
    );
    assert_eq!(
        script("RUN <<EOF\n#!/bin/x\nEOF\n"),
        Script::File {
            name: "EOF".to_owned(),
            content: "#!/bin/x\n".to_owned(),
        }
    );
    assert_eq!(
        script("RUN cat <<A <<B\na\nA\nb\nB\n"),
        Script::Shell("cat <<A <<B\na\nA\nb\nB".to_owned())
    );
    assert_eq!(script("RUN [\"a\"]\n"), Script::Exec(vec!["a".to_owned()]));
}

#[test]
fn what_is_too_large_is_refused() {
    let many = format!("FROM a\n{}", "USER a\n".repeat(MAX_INSTRUCTIONS));
    assert!(error(&many).message.contains("this is one more"));
    assert!(Dockerfile::parse(&vec![b'#'; MAX_SIZE + 1], "Dockerfile").is_err());
    // Neither depth nor length of what is refused anyway costs a stack.
    assert!(Dockerfile::parse(format!("FROM a\n{}", "ONBUILD ".repeat(100_000)).as_bytes(), "").is_err());
    let nested = format!("FROM a\nRUN {}{}\n", "[".repeat(9_000), "]".repeat(9_000));
    assert!(error(&nested).message.contains("JSON array"));
}

#[test]
fn the_front_end_is_found_in_all_its_forms() {
    for (text, expected) in [
        (
            "# syntax=docker/dockerfile:1\nFROM a",
            Some(("docker/dockerfile:1", 1)),
        ),
        ("#!/usr/bin/x\n# syntax = a b\n", Some(("a b", 2))),
        ("// syntax=x", Some(("x", 1))),
        ("{\"syntax\": \"x\"}", Some(("x", 1))),
        ("FROM a\n# syntax=x", None),
        ("\u{feff}# escape=`\n# SYNTAX=x", Some(("x", 2))),
    ] {
        let found = detect_syntax(text.as_bytes());
        let found = found
            .as_ref()
            .map(|found| (found.value.as_str(), found.span.first));
        assert_eq!(found, expected, "{text}");
    }
}
