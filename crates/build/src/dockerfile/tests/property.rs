//! Whatever the bytes: no panic, errors that can be shown, and spans that hold an instruction whole.

use proptest::prelude::*;

use super::*;

/// An exec form, or a shell form that is none.
fn line() -> impl Strategy<Value = CommandLine> {
    prop_oneof![
        prop::collection::vec("[ -~é]{0,8}", 0..4).prop_map(|words| CommandLine { words, exec: true }),
        "[a-z][a-z $&|'\"]{0,20}[a-z]".prop_map(|text| CommandLine {
            words: vec![text],
            exec: false,
        }),
    ]
}

fn value() -> impl Strategy<Value = String> + Clone {
    prop_oneof!["[a-z0-9/.:$]{0,8}", "\"[a-z $']{0,8}\"", "'[a-z $\"]{0,8}'"]
}

fn command() -> impl Strategy<Value = Command> {
    let pair = ("[a-zA-Z_]{1,6}", value(), any::<bool>());
    let pairs = prop::collection::vec(pair, 1..4).prop_map(|pairs| {
        let alone = pairs.len() == 1;
        let pair = |(key, value, legacy): (String, String, bool)| KeyValue {
            legacy: legacy && alone && !value.is_empty(),
            key,
            value,
        };
        pairs.into_iter().map(pair).collect::<Vec<_>>()
    });
    let path = "[a-z/.]{1,8}";
    let option = || prop::option::of("[a-z0-9:]{1,6}");
    let copy = (
        prop::collection::vec("[a-z*?/ .]{1,8}", 1..3),
        "/[a-z ]{0,8}",
        (option(), option(), option()),
        (any::<bool>(), any::<bool>()),
        prop::collection::vec("[a-z*]{1,5}", 0..3),
    );
    prop_oneof![
        pairs.clone().prop_map(Command::Env),
        pairs.prop_map(Command::Label),
        line().prop_map(Command::Cmd),
        line().prop_map(Command::Entrypoint),
        path.prop_map(Command::Workdir),
        path.prop_map(Command::User),
        prop::collection::vec("[a-z0-9/]{1,6}", 1..4).prop_map(|mut ports| {
            ports.sort();
            Command::Expose(ports)
        }),
        prop::collection::vec("/[a-z ]{0,5}[a-z]", 1..3).prop_map(Command::Volume),
        (line(), 0..9u64).prop_map(|(line, seconds)| Command::Healthcheck(Healthcheck::Command {
            line: CommandLine {
                words: if line.words.is_empty() {
                    vec!["x".to_owned()]
                } else {
                    line.words
                },
                ..line
            },
            options: HealthcheckOptions {
                interval: std::time::Duration::from_millis(seconds * 250),
                ..HealthcheckOptions::default()
            },
        })),
        copy.prop_map(|(paths, dest, (from, chown, chmod), (link, parents), exclude)| {
            let sources = Sources {
                paths,
                dest,
                ..Sources::default()
            };
            Command::Copy(Copy {
                sources,
                from,
                chown,
                chmod,
                link,
                parents,
                exclude,
            })
        }),
        (
            line(),
            prop::collection::vec("type=tmpfs,target=/[a-z]{1,5}", 0..3)
        )
            .prop_map(|(line, mount_flags)| {
                Command::Run(Run {
                    line,
                    mount_flags,
                    ..Run::default()
                })
            }),
    ]
}

fn json(words: &[String]) -> String {
    serde_json::to_string(words).unwrap()
}

fn print_line(line: &CommandLine) -> String {
    if line.exec {
        json(&line.words)
    } else {
        line.words.concat()
    }
}

/// The instruction as somebody would write it.
fn print(command: &Command) -> String {
    let flag = |name: &str, value: &Option<String>| {
        value
            .as_ref()
            .map(|value| format!("--{name}={value} "))
            .unwrap_or_default()
    };
    let rest = match command {
        Command::Env(pairs) | Command::Label(pairs) => {
            let pair = |pair: &KeyValue| {
                format!(
                    "{}{}{}",
                    pair.key,
                    if pair.legacy { " " } else { "=" },
                    pair.value
                )
            };
            pairs.iter().map(pair).collect::<Vec<_>>().join(" \\\n  ")
        }
        Command::Cmd(line) | Command::Entrypoint(line) => print_line(line),
        Command::Workdir(text) | Command::User(text) => text.clone(),
        Command::Expose(ports) => ports.join(" "),
        Command::Volume(volumes) => json(volumes),
        Command::Healthcheck(Healthcheck::Command { line, options }) => {
            format!(
                "--interval={}ms CMD {}",
                options.interval.as_millis(),
                print_line(line)
            )
        }
        Command::Copy(copy) => {
            let mut words = copy.sources.paths.clone();
            words.push(copy.sources.dest.clone());
            let exclude: String = copy
                .exclude
                .iter()
                .map(|pattern| format!("--exclude={pattern} "))
                .collect();
            let switch = |name: &str, on: bool| if on { format!("--{name} ") } else { String::new() };
            [
                flag("from", &copy.from),
                flag("chown", &copy.chown),
                flag("chmod", &copy.chmod),
                switch("link", copy.link),
                switch("parents", copy.parents),
                exclude,
                json(&words),
            ]
            .concat()
        }
        Command::Run(run) => {
            let mounts: String = run
                .mount_flags
                .iter()
                .map(|mount| format!("--mount={mount} "))
                .collect();
            format!("{mounts}{}", print_line(&run.line))
        }
        other => unreachable!("{other:?}"),
    };
    format!("{} {rest}", command.name())
}

/// Pieces of Dockerfiles, put together at random.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("FROM a AS b\n".to_owned()),
        Just("RUN ".to_owned()),
        Just("ONBUILD ".to_owned()),
        Just("COPY <<EOF /x\n".to_owned()),
        Just("RUN <<-'E F' 3<<B\n".to_owned()),
        Just("\tE F\nB\n".to_owned()),
        Just("EOF\n".to_owned()),
        Just("\\\n".to_owned()),
        Just("# escape=`\n".to_owned()),
        Just("\r\n# c\n".to_owned()),
        Just("ENV a=\"b ".to_owned()),
        Just("--mount=type=cache,".to_owned()),
        Just("[\"a\", \"\\ud800\"]\n".to_owned()),
        Just("HEALTHCHECK --interval=1.5s CMD ".to_owned()),
        "[ -~\n\té\u{2003}]{0,10}",
    ];
    prop::collection::vec(piece, 0..15).prop_map(|pieces| format!("FROM x\n{}", pieces.concat()))
}

proptest! {
    #[test]
    fn what_is_printed_reads_the_same(list in prop::collection::vec(command(), 0..6)) {
        let text: Vec<String> = list.iter().map(print).collect();
        prop_assert_eq!(commands(&text.join("\n")), list);
    }

    #[test]
    fn any_bytes_are_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Err(error) = Dockerfile::parse(&bytes, "Dockerfile") {
            prop_assert!(error.render(true).contains(&error.message));
        }
        let _ = detect_syntax(&bytes);
    }

    #[test]
    fn a_span_holds_its_instruction_whole(text in pieces()) {
        match Dockerfile::parse(text.as_bytes(), "Dockerfile") {
            Err(error) => prop_assert!(!error.excerpt(false).contains("\x1b")),
            Ok(dockerfile) => {
                for instruction in dockerfile.stages.iter().flat_map(|stage| &stage.instructions) {
                    let part = &dockerfile.source.text[instruction.span.bytes.clone()];
                    let alone = parse(&format!("# escape={}\nFROM x\n{part}", dockerfile.escape));
                    prop_assert_eq!(&alone.stages[0].instructions[0].command, &instruction.command);
                }
            }
        }
    }

    #[test]
    fn any_word_expands_or_says_why(word in "[ab$<{}:+?#%/\\\\\"' *-]{0,30}") {
        let _ = Lexer::new('\\').word(&word, &mut |name| (name == "a").then(|| "b/a".to_owned()));
    }
}
