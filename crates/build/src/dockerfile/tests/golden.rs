//! Dockerfiles with every construct, against what BuildKit's parser makes of them.
//!
//! The expectations in `testdata/dockerfiles/*.json` are dumps of BuildKit's `parser.Parse` and `instructions.Parse`.

use serde_json::{Value, json};

use super::*;

macro_rules! file {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../../testdata/dockerfiles/", $name, ".Dockerfile")).as_slice(),
            include_str!(concat!("../../../testdata/dockerfiles/", $name, ".json")),
        )
    };
}

/// The variables the expectations were made with.
fn variable(name: &str) -> Option<String> {
    let value = match name {
        "a" => "value",
        "p" => "/usr/local/lib/x.tar.gz",
        _ => return None,
    };
    Some(value.to_owned())
}

fn lines(span: &Span) -> Value {
    json!([span.first, span.last])
}

fn or_empty(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

fn pairs(pairs: &[KeyValue]) -> Value {
    pairs
        .iter()
        .map(|pair| json!([pair.key, pair.value, pair.legacy]))
        .collect()
}

fn sources(sources: &Sources) -> Value {
    let files = sources
        .files
        .iter()
        .map(|file| json!([file.name, file.content, file.expand]));
    json!({"paths": sources.paths, "files": files.collect::<Vec<_>>(), "dest": sources.dest})
}

fn line(line: &CommandLine) -> Value {
    json!({"words": line.words, "exec": line.exec})
}

fn healthcheck(check: &Healthcheck) -> Value {
    let (test, options) = match check {
        Healthcheck::None => (vec!["NONE"], HealthcheckOptions::default()),
        Healthcheck::Command { line, options } => {
            let kind = if line.exec { "CMD" } else { "CMD-SHELL" };
            let words = line.words.iter().map(String::as_str);
            (std::iter::once(kind).chain(words).collect(), options.clone())
        }
    };
    let nanos = |duration: std::time::Duration| duration.as_nanos() as u64;
    json!({
        "test": test, "interval": nanos(options.interval), "timeout": nanos(options.timeout),
        "sp": nanos(options.start_period), "si": nanos(options.start_interval), "retries": options.retries,
    })
}

fn mount(mount: &Mount) -> Value {
    let sharing = match mount.sharing {
        None => "",
        Some(Sharing::Shared) => "shared",
        Some(Sharing::Private) => "private",
        Some(Sharing::Locked) => "locked",
    };
    json!({
        "type": mount.kind.name(), "from": or_empty(&mount.from), "source": or_empty(&mount.source),
        "target": or_empty(&mount.target), "ro": mount.read_only, "size": mount.size, "id": or_empty(&mount.id),
        "sharing": sharing, "required": mount.required, "env": mount.env, "mode": mount.mode, "uid": mount.uid,
        "gid": mount.gid,
    })
}

fn run(run: &Run) -> Value {
    let files = run
        .heredocs
        .iter()
        .map(|file| json!([file.name, file.content, file.chomp]));
    let devices = run
        .devices
        .iter()
        .map(|device| json!([device.name, device.required]));
    let mounts = run.mounts(&mut |word| {
        let expanded = Lexer::new('\\').word(word, &mut variable);
        expanded
            .map(|expanded| expanded.text)
            .map_err(|error| error.to_string())
    });
    json!({
        "line": line(&run.line),
        "files": files.collect::<Vec<_>>(),
        "devices": devices.collect::<Vec<_>>(),
        "network": match run.network {
            Network::Default => "default",
            Network::None => "none",
            Network::Host => "host",
        },
        "security": match run.security {
            Security::Sandbox => "sandbox",
            Security::Insecure => "insecure",
        },
        "froms": run.mount_sources().collect::<Vec<_>>(),
        "mounts": mounts.unwrap().iter().map(mount).collect::<Vec<_>>(),
    })
}

fn command(command: &Command) -> Value {
    match command {
        Command::Add(add) => json!({
            "sources": sources(&add.sources), "chown": or_empty(&add.chown), "chmod": or_empty(&add.chmod),
            "link": add.link, "exclude": add.exclude, "keep": add.keep_git_dir, "checksum": or_empty(&add.checksum),
            "unpack": add.unpack,
        }),
        Command::Copy(copy) => json!({
            "sources": sources(&copy.sources), "from": or_empty(&copy.from), "chown": or_empty(&copy.chown),
            "chmod": or_empty(&copy.chmod), "link": copy.link, "exclude": copy.exclude, "parents": copy.parents,
        }),
        Command::Env(list) | Command::Label(list) => pairs(list),
        Command::Arg(args) => args
            .iter()
            .map(|arg| json!([arg.name, arg.value, or_empty(&arg.description)]))
            .collect(),
        Command::Maintainer(text)
        | Command::Onbuild(text)
        | Command::Workdir(text)
        | Command::User(text)
        | Command::StopSignal(text) => json!(text),
        Command::Volume(words) | Command::Expose(words) | Command::Shell(words) => json!(words),
        Command::Cmd(words) | Command::Entrypoint(words) => line(words),
        Command::Healthcheck(check) => healthcheck(check),
        Command::Run(one) => run(one),
    }
}

fn instruction(instruction: &Instruction) -> Value {
    json!({
        "name": instruction.command.name(), "keyword": instruction.keyword, "lines": lines(&instruction.span),
        "comments": instruction.comments, "original": instruction.original, "v": command(&instruction.command),
    })
}

fn stage(stage: &Stage) -> Value {
    json!({
        "name": or_empty(&stage.name), "base": stage.base, "platform": or_empty(&stage.platform),
        "keyword": stage.keyword, "lines": lines(&stage.span), "comments": stage.comments,
        "doc": or_empty(&stage.description), "original": stage.original,
        "commands": stage.instructions.iter().map(instruction).collect::<Vec<_>>(),
    })
}

fn dump(bytes: &[u8]) -> Value {
    let dockerfile = Dockerfile::parse(bytes, "Dockerfile").unwrap();
    let warnings = dockerfile
        .warnings
        .iter()
        .filter_map(|warning| Some(warning.span.as_ref()?.first));
    json!({
        "escape": dockerfile.escape.to_string(),
        "warnings": warnings.collect::<Vec<_>>(),
        "args": dockerfile.global_args.iter().map(instruction).collect::<Vec<_>>(),
        "stages": dockerfile.stages.iter().map(stage).collect::<Vec<_>>(),
        "syntax": detect_syntax(bytes).map(|found| json!([found.value, lines(&found.span)])),
    })
}

#[test]
fn every_construct_reads_as_buildkit_reads_it() {
    for (name, bytes, expected) in [
        file!("crlf"),
        file!("files"),
        file!("heredocs"),
        file!("instructions"),
        file!("lines"),
    ] {
        let expected: Value = serde_json::from_str(expected).unwrap();
        let found = dump(bytes);
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&found[key], value, "{name}: {key}");
        }
    }
}
