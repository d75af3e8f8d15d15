//! From keyword, flags and arguments to what an instruction means, with everything checked that can be without
//! variables.

use std::sync::Arc;

use super::ast::{
    Add, ArgDecl, Command, CommandLine, Copy, Healthcheck, HealthcheckOptions, InlineFile, KeyValue, Network,
    Run, Security, Sources, Stage,
};
use super::flags::{Flags, Kind, Wrong};
use super::node::Node;
use super::source::Source;
use super::{Diagnostic, duration, heredoc, mount, suggest};

/// All keywords.
pub(crate) const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
]; // fmt: skip

const ADD: &[(&str, Kind)] = &[
    ("chown", Kind::One),
    ("chmod", Kind::One),
    ("link", Kind::Bool),
    ("keep-git-dir", Kind::Bool),
    ("checksum", Kind::One),
    ("unpack", Kind::Bool),
    ("exclude", Kind::Many),
];
const COPY: &[(&str, Kind)] = &[
    ("chown", Kind::One),
    ("from", Kind::One),
    ("chmod", Kind::One),
    ("link", Kind::Bool),
    ("exclude", Kind::Many),
    ("parents", Kind::Bool),
];
const RUN: &[(&str, Kind)] = &[
    ("mount", Kind::Many),
    ("network", Kind::One),
    ("security", Kind::One),
    ("device", Kind::Many),
];
const HEALTHCHECK: &[(&str, Kind)] = &[
    ("interval", Kind::One),
    ("timeout", Kind::One),
    ("start-period", Kind::One),
    ("start-interval", Kind::One),
    ("retries", Kind::One),
];

/// A message, and the word to point at.
struct Fault {
    message: String,
    help: Option<String>,
    word: Option<String>,
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self {
            message,
            help: None,
            word: None,
        }
    }
}

impl From<&str> for Fault {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

impl From<Wrong> for Fault {
    fn from(wrong: Wrong) -> Self {
        Self {
            message: wrong.message,
            help: wrong.help,
            word: Some(wrong.word),
        }
    }
}

impl Fault {
    fn at(mut self, word: &str) -> Self {
        self.word = Some(word.to_owned());
        self
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    fn place(self, source: &Arc<Source>, node: &Node) -> Diagnostic {
        let word = self.word.as_deref().unwrap_or(&node.keyword);
        let mut diagnostic = Diagnostic::error(self.message).at(source, &node.span, Some(word));
        diagnostic.help = self.help.map(Into::into);
        diagnostic
    }
}

fn at_least_one(keyword: &str) -> Fault {
    format!("{keyword} requires at least one argument").into()
}

/// What an instruction other than `FROM` means.
pub(crate) fn command(node: &Node, source: &Arc<Source>) -> Result<Command, Diagnostic> {
    parse(node).map_err(|fault| fault.place(source, node))
}

fn parse(node: &Node) -> Result<Command, Fault> {
    let args = || node.args.clone();
    let no_flags = |keyword: &str| Flags::parse(&node.flags, &[], keyword).map(drop);
    let keyword = node.keyword.to_uppercase();
    Ok(match keyword.as_str() {
        "ADD" => Command::Add(add(node)?),
        "ARG" => Command::Arg(arg(node)?),
        "CMD" => {
            no_flags("CMD")?;
            Command::Cmd(line(&node.args, node.json))
        }
        "COPY" => Command::Copy(copy(node)?),
        "ENTRYPOINT" => {
            no_flags("ENTRYPOINT")?;
            Command::Entrypoint(line(&node.args, node.json))
        }
        "ENV" => {
            no_flags("ENV")?;
            Command::Env(pairs(node, "ENV")?)
        }
        "EXPOSE" => {
            if node.args.is_empty() {
                return Err(at_least_one("EXPOSE"));
            }
            no_flags("EXPOSE")?;
            let mut ports = args();
            ports.sort();
            Command::Expose(ports)
        }
        "HEALTHCHECK" => Command::Healthcheck(healthcheck(node)?),
        "LABEL" => {
            no_flags("LABEL")?;
            Command::Label(pairs(node, "LABEL")?)
        }
        "MAINTAINER" => Command::Maintainer(one(node, "MAINTAINER")?),
        "ONBUILD" => Command::Onbuild(onbuild(node)?),
        "RUN" => Command::Run(run(node)?),
        "SHELL" => {
            no_flags("SHELL")?;
            match (node.json, node.args.is_empty()) {
                (_, true) => return Err(at_least_one("SHELL")),
                (true, _) => Command::Shell(args()),
                (false, _) => {
                    let fault = Fault::from("SHELL requires the arguments to be in JSON form");
                    return Err(fault.help(r#"Write it as an array of strings: SHELL ["/bin/bash", "-c"]"#));
                }
            }
        }
        // Flags of this one and of ARG are overlooked, as BuildKit does.
        "STOPSIGNAL" => match node.args.as_slice() {
            [signal] => Command::StopSignal(signal.clone()),
            _ => return Err("STOPSIGNAL requires exactly one argument".into()),
        },
        "USER" => Command::User(one(node, "USER")?),
        "VOLUME" => {
            if node.args.is_empty() {
                return Err(at_least_one("VOLUME"));
            }
            no_flags("VOLUME")?;
            let volumes: Vec<String> = node.args.iter().map(|volume| volume.trim().to_owned()).collect();
            if volumes.iter().any(String::is_empty) {
                return Err("VOLUME specified can not be an empty string".into());
            }
            Command::Volume(volumes)
        }
        "WORKDIR" => Command::Workdir(one(node, "WORKDIR")?),
        _ => {
            let message = format!("unknown instruction: {}", node.keyword);
            let suggestion = suggest::closest(&node.keyword, KEYWORDS, false);
            let fault = Fault::from(suggest::with(message, suggestion));
            let continued = "A command that goes on from the line above needs a \\ at the end of that line.";
            return Err(fault.help(format!("Instructions are {}. {continued}", KEYWORDS.join(", "))));
        }
    })
}

fn one(node: &Node, keyword: &str) -> Result<String, Fault> {
    let [argument] = node.args.as_slice() else {
        return Err(format!("{keyword} requires exactly one argument").into());
    };
    Flags::parse(&node.flags, &[], keyword)?;
    Ok(argument.clone())
}

/// The exec form's words, or the shell form's text.
fn line(args: &[String], exec: bool) -> CommandLine {
    let words = if exec || args.is_empty() {
        args.to_vec()
    } else {
        vec![args.join(" ")]
    };
    CommandLine { words, exec }
}

fn pairs(node: &Node, keyword: &str) -> Result<Vec<KeyValue>, Fault> {
    if node.args.is_empty() {
        return Err(at_least_one(keyword));
    }
    let triples = node.args.chunks_exact(3);
    let pair = |triple: &[String]| match triple {
        [key, value, delimiter] if !key.is_empty() => Ok(KeyValue {
            key: key.clone(),
            value: value.clone(),
            legacy: delimiter.is_empty(),
        }),
        _ => Err(format!("{keyword} names can not be blank").into()),
    };
    triples.map(pair).collect()
}

/// The comment that begins with a name, without the name.
fn description(comments: &[String], name: &str) -> Option<String> {
    let mut rest = comments
        .iter()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    rest.next().map(str::to_owned).filter(|text| !text.is_empty())
}

fn arg(node: &Node) -> Result<Vec<ArgDecl>, Fault> {
    if node.args.is_empty() {
        return Err(at_least_one("ARG"));
    }
    let declare = |arg: &String| {
        let (name, value) = match arg.split_once('=') {
            Some(("", _)) => return Err("ARG names can not be blank".into()),
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        Ok(ArgDecl {
            name: name.to_owned(),
            value,
            description: description(&node.comments, name),
        })
    };
    node.args.iter().map(declare).collect()
}

fn sources(node: &Node, keyword: &str) -> Result<Sources, Fault> {
    let mut sources = Sources::default();
    let Some((dest, paths)) = node.args.split_last() else {
        return Ok(sources);
    };
    // One whose name cannot be read is a path.
    let document = |word: &str| heredoc::parse(word).ok().flatten();
    if document(dest).is_some() {
        let fault = Fault::from(format!("{keyword} cannot accept a heredoc as a destination"));
        return Err(fault.at(dest));
    }
    sources.dest.clone_from(dest);
    for path in paths {
        let Some(found) = document(path) else {
            sources.paths.push(path.clone());
            continue;
        };
        // Of several with one name, the last has the content.
        let content = node
            .heredocs
            .iter()
            .rev()
            .find(|document| document.name == found.name);
        let content = content
            .map(|document| document.content.clone())
            .unwrap_or_default();
        let (name, expand) = (found.name.clone(), found.expand);
        let content = super::ast::Heredoc { content, ..found }.text();
        sources.files.push(InlineFile {
            name,
            content,
            expand,
        });
    }
    Ok(sources)
}

fn two_arguments(node: &Node, keyword: &str) -> Result<(), Fault> {
    if node.args.len() >= 2 {
        return Ok(());
    }
    let fault = Fault::from(format!(
        "{keyword} requires at least two arguments, but only one was provided. Destination could not be determined"
    ));
    Err(fault.help(format!("Write: {keyword} SOURCE... DESTINATION")))
}

fn add(node: &Node) -> Result<Add, Fault> {
    two_arguments(node, "ADD")?;
    let flags = Flags::parse(&node.flags, ADD, "ADD")?;
    Ok(Add {
        sources: sources(node, "ADD")?,
        chown: flags.one("chown"),
        chmod: flags.one("chmod"),
        link: flags.switch("link").unwrap_or_default(),
        exclude: flags.many("exclude"),
        keep_git_dir: flags.switch("keep-git-dir"),
        checksum: flags.one("checksum"),
        unpack: flags.switch("unpack"),
    })
}

fn copy(node: &Node) -> Result<Copy, Fault> {
    two_arguments(node, "COPY")?;
    let flags = Flags::parse(&node.flags, COPY, "COPY")?;
    Ok(Copy {
        sources: sources(node, "COPY")?,
        from: flags.one("from"),
        chown: flags.one("chown"),
        chmod: flags.one("chmod"),
        link: flags.switch("link").unwrap_or_default(),
        parents: flags.switch("parents").unwrap_or_default(),
        exclude: flags.many("exclude"),
    })
}

fn run(node: &Node) -> Result<Run, Fault> {
    let flags = Flags::parse(&node.flags, RUN, "RUN")?;
    let mount_flags = flags.many("mount");
    for flag in &mount_flags {
        mount::parse(flag, None).map_err(|message| Fault::from(message).at(flag))?;
    }
    let value = |name: &str| {
        let mut given = flags.many(name);
        given.pop()
    };
    let network = match value("network").as_deref() {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => {
            let fault = Fault::from(format!("invalid network mode {other:?}"));
            return Err(fault
                .at("--network")
                .help("RUN --network is default, none or host."));
        }
    };
    let security = match value("security").as_deref() {
        None | Some("sandbox") => Security::Sandbox,
        Some("insecure") => Security::Insecure,
        Some(other) => {
            let fault = Fault::from(format!("security {other:?} is not valid"));
            return Err(fault
                .at("--security")
                .help("RUN --security is sandbox or insecure."));
        }
    };
    let device = |flag: &String| mount::device(flag).map_err(|message| Fault::from(message).at(flag));
    Ok(Run {
        line: line(&node.args, node.json),
        heredocs: node.heredocs.clone(),
        mount_flags,
        network,
        security,
        devices: flags
            .many("device")
            .iter()
            .map(device)
            .collect::<Result<_, _>>()?,
    })
}

fn healthcheck(node: &Node) -> Result<Healthcheck, Fault> {
    let Some((kind, args)) = node.args.split_first() else {
        return Err(at_least_one("HEALTHCHECK"));
    };
    match kind.to_uppercase().as_str() {
        "NONE" if args.is_empty() => return Ok(Healthcheck::None),
        "NONE" => return Err("HEALTHCHECK NONE takes no arguments".into()),
        _ => {}
    }
    let flags = Flags::parse(&node.flags, HEALTHCHECK, "HEALTHCHECK")?;
    if !kind.eq_ignore_ascii_case("CMD") {
        let kind_upper = kind.to_uppercase();
        let fault = Fault::from(format!("Unknown type {kind_upper:?} in HEALTHCHECK (try CMD)"));
        return Err(fault.at(kind));
    }
    if args.is_empty() {
        return Err("Missing command after HEALTHCHECK CMD".into());
    }
    let interval = |name: &str| {
        let interval = duration::interval(name, flags.one(name).as_deref());
        interval.map_err(|message| Fault::from(message).at(&format!("--{name}")))
    };
    let options = HealthcheckOptions {
        interval: interval("interval")?,
        timeout: interval("timeout")?,
        start_period: interval("start-period")?,
        start_interval: interval("start-interval")?,
        retries: retries(flags.one("retries"))?,
    };
    Ok(Healthcheck::Command {
        line: line(args, node.json),
        options,
    })
}

fn retries(value: Option<String>) -> Result<u32, Fault> {
    let Some(value) = value else {
        return Ok(0);
    };
    match value.parse::<i32>() {
        Ok(number) => u32::try_from(number)
            .map_err(|_| Fault::from(format!("--retries cannot be negative ({number})")).at("--retries")),
        Err(_) => Err(
            Fault::from(format!("invalid value {value:?} of --retries: it takes a number")).at("--retries"),
        ),
    }
}

fn onbuild(node: &Node) -> Result<String, Fault> {
    let Some(trigger) = node.args.first() else {
        return Err(at_least_one("ONBUILD"));
    };
    Flags::parse(&node.flags, &[], "ONBUILD")?;
    let trigger = trigger.trim().to_uppercase();
    match trigger.as_str() {
        "ONBUILD" => return Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".into()),
        "MAINTAINER" | "FROM" => {
            return Err(Fault::from(format!("{trigger} isn't allowed as an ONBUILD trigger")).at(&trigger));
        }
        _ => {}
    }
    let text = node.original.trim_start();
    let mut text = text
        .get("ONBUILD".len()..)
        .unwrap_or(text)
        .trim_start()
        .to_owned();
    for document in &node.heredocs {
        text.push('\n');
        text.push_str(&document.content);
        text.push_str(&document.name);
    }
    Ok(text)
}

/// What `FROM` means.
pub(crate) fn stage(node: Node, index: usize, source: &Arc<Source>) -> Result<Stage, Diagnostic> {
    let (base, written) = match from(&node) {
        Ok(names) => names,
        Err(fault) => return Err(fault.place(source, &node)),
    };
    let flags = Flags::parse(&node.flags, &[("platform", Kind::One)], "FROM")
        .map_err(|wrong| Fault::from(wrong).place(source, &node))?;
    let name = written.as_deref().map(str::to_lowercase);
    Ok(Stage {
        index,
        description: name.as_deref().and_then(|name| description(&node.comments, name)),
        name,
        written_name: written,
        base,
        platform: flags.one("platform"),
        as_keyword: node.args.get(1).cloned(),
        keyword: node.keyword,
        original: node.original.trim().to_owned(),
        span: node.span,
        comments: node.comments,
        instructions: Vec::new(),
    })
}

/// The base and the stage's name.
fn from(node: &Node) -> Result<(String, Option<String>), Fault> {
    match node.args.as_slice() {
        [base] => Ok((base.clone(), None)),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            if is_stage_name(&name.to_lowercase()) {
                return Ok((base.clone(), Some(name.clone())));
            }
            let message = format!(
                "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
            );
            Err(Fault::from(message).at(name))
        }
        _ => {
            let fault = Fault::from("FROM requires either one or three arguments");
            Err(fault.help("Write: FROM IMAGE, or: FROM IMAGE AS NAME"))
        }
    }
}

fn is_stage_name(name: &str) -> bool {
    let part = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(part)
}
