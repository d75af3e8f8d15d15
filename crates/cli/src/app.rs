//! The tree of commands. Only the command that is asked for is built, since building all takes longer than
//! many a container runs; help, completions and manual pages build the whole.

use clap::{ArgAction, ArgMatches, Args, Command};

use crate::commands as c;
use crate::context::{Chosen, Context, TlsOptions};
use crate::failure::{Failure, Result};

/// A command: its arguments, and what it does with them.
pub trait Run: Args {
    /// Does it.
    fn run(self, context: &Context) -> Result;
}

/// A command in the tree.
pub struct Entry {
    name: &'static str,
    aliases: &'static [&'static str],
    augment: fn(Command) -> Command,
    run: fn(&ArgMatches, &Context) -> Result,
}

/// A group of commands: `container`, `image` and so on.
pub struct Group {
    name: &'static str,
    about: &'static str,
    entries: &'static [Entry],
}

const fn entry<T: Run>(name: &'static str, aliases: &'static [&'static str]) -> Entry {
    Entry {
        name,
        aliases,
        augment: |command| T::augment_args(command),
        run: |matches, context| match T::from_arg_matches(matches) {
            Ok(args) => args.run(context),
            Err(error) => Err(Failure::usage(error)),
        },
    }
}

static COMMANDS: &[Entry] = &[
    entry::<c::run::Args>("run", &[]),
    entry::<c::exec::Args>("exec", &[]),
    entry::<c::ps::Args>("ps", &[]),
    entry::<c::create::Args>("create", &[]),
    entry::<c::start::Args>("start", &[]),
    entry::<c::stop::Args>("stop", &[]),
    entry::<c::restart::Args>("restart", &[]),
    entry::<c::kill::Args>("kill", &[]),
    entry::<c::pause::Args>("pause", &[]),
    entry::<c::unpause::Args>("unpause", &[]),
    entry::<c::wait::Args>("wait", &[]),
    entry::<c::rm::Args>("rm", &[]),
    entry::<c::attach::Args>("attach", &[]),
    entry::<c::logs::Args>("logs", &[]),
    entry::<c::inspect::Args>("inspect", &[]),
    entry::<c::top::Args>("top", &[]),
    entry::<c::stats::Args>("stats", &[]),
    entry::<c::cp::Args>("cp", &[]),
    entry::<c::diff::Args>("diff", &[]),
    entry::<c::rename::Args>("rename", &[]),
    entry::<c::update::Args>("update", &[]),
    entry::<c::bin::UndoArgs>("undo", &[]),
    entry::<c::port::Args>("port", &[]),
    entry::<c::export::Args>("export", &[]),
    entry::<c::build::Args>("build", &[]),
    entry::<c::images::Args>("images", &[]),
    entry::<c::rmi::Args>("rmi", &[]),
    entry::<c::tag::Args>("tag", &[]),
    entry::<c::pull::Args>("pull", &[]),
    entry::<c::push::Args>("push", &[]),
    entry::<c::search::Args>("search", &[]),
    entry::<c::login::LoginArgs>("login", &[]),
    entry::<c::login::LogoutArgs>("logout", &[]),
    entry::<c::load::Args>("load", &[]),
    entry::<c::save::Args>("save", &[]),
    entry::<c::import::Args>("import", &[]),
    entry::<c::commit::Args>("commit", &[]),
    entry::<c::compose::Args>("compose", &[]),
    entry::<c::history::Args>("history", &[]),
    entry::<c::info::Args>("info", &[]),
    entry::<c::version::Args>("version", &[]),
    entry::<c::events::Args>("events", &[]),
    entry::<c::daemon::Args>("daemon", &[]),
    entry::<c::completion::Args>("completion", &[]),
    entry::<c::man::Args>("man", &[]),
];

static GROUPS: &[Group] = &[
    Group {
        name: "container",
        about: "Manage containers",
        entries: &[
            entry::<c::attach::Args>("attach", &[]),
            entry::<c::commit::Args>("commit", &[]),
            entry::<c::cp::Args>("cp", &[]),
            entry::<c::create::Args>("create", &[]),
            entry::<c::diff::Args>("diff", &[]),
            entry::<c::exec::Args>("exec", &[]),
            entry::<c::export::Args>("export", &[]),
            entry::<c::inspect::ContainerArgs>("inspect", &[]),
            entry::<c::kill::Args>("kill", &[]),
            entry::<c::logs::Args>("logs", &[]),
            entry::<c::ps::Args>("ls", &["ps", "list"]),
            entry::<c::pause::Args>("pause", &[]),
            entry::<c::port::Args>("port", &[]),
            entry::<c::prune::ContainerArgs>("prune", &[]),
            entry::<c::rename::Args>("rename", &[]),
            entry::<c::restart::Args>("restart", &[]),
            entry::<c::rm::Args>("rm", &["remove"]),
            entry::<c::run::Args>("run", &[]),
            entry::<c::start::Args>("start", &[]),
            entry::<c::stats::Args>("stats", &[]),
            entry::<c::stop::Args>("stop", &[]),
            entry::<c::top::Args>("top", &[]),
            entry::<c::unpause::Args>("unpause", &[]),
            entry::<c::update::Args>("update", &[]),
            entry::<c::wait::Args>("wait", &[]),
        ],
    },
    Group {
        name: "image",
        about: "Manage images",
        entries: &[
            entry::<c::build::Args>("build", &[]),
            entry::<c::image_diff::Args>("diff", &[]),
            entry::<c::image_explain::Args>("explain", &[]),
            entry::<c::history::Args>("history", &[]),
            entry::<c::import::Args>("import", &[]),
            entry::<c::inspect::ImageArgs>("inspect", &[]),
            entry::<c::load::Args>("load", &[]),
            entry::<c::images::Args>("ls", &["list"]),
            entry::<c::prune::ImageArgs>("prune", &[]),
            entry::<c::pull::Args>("pull", &[]),
            entry::<c::push::Args>("push", &[]),
            entry::<c::rmi::Args>("rm", &["remove"]),
            entry::<c::save::Args>("save", &[]),
            entry::<c::tag::Args>("tag", &[]),
        ],
    },
    Group {
        name: "builder",
        about: "Manage builds",
        entries: &[
            entry::<c::build::Args>("build", &[]),
            entry::<c::builder::UsageArgs>("du", &[]),
            entry::<c::builder::PruneArgs>("prune", &[]),
        ],
    },
    Group {
        name: "context",
        about: "Manage daemons by name",
        entries: &[
            entry::<c::context::CreateArgs>("create", &[]),
            entry::<c::context::InspectArgs>("inspect", &[]),
            entry::<c::context::ListArgs>("ls", &["list"]),
            entry::<c::context::RemoveArgs>("rm", &["remove"]),
            entry::<c::context::ShowArgs>("show", &[]),
            entry::<c::context::UseArgs>("use", &[]),
        ],
    },
    Group {
        name: "kernel",
        about: "Manage kernels of virtual machines",
        entries: &[
            entry::<c::kernel::BuildArgs>("build", &[]),
            entry::<c::kernel::DefaultArgs>("default", &[]),
            entry::<c::kernel::ImportArgs>("import", &[]),
            entry::<c::kernel::ListArgs>("ls", &["list"]),
            entry::<c::kernel::RemoveArgs>("rm", &["remove"]),
        ],
    },
    Group {
        name: "manifest",
        about: "Manage lists of manifests",
        entries: &[
            entry::<c::manifest::AnnotateArgs>("annotate", &[]),
            entry::<c::manifest::CreateArgs>("create", &[]),
            entry::<c::manifest::InspectArgs>("inspect", &[]),
            entry::<c::manifest::PushArgs>("push", &[]),
            entry::<c::manifest::RemoveArgs>("rm", &[]),
        ],
    },
    Group {
        name: "network",
        about: "Manage networks",
        entries: &[
            entry::<c::network::ConnectArgs>("connect", &[]),
            entry::<c::network::CreateArgs>("create", &[]),
            entry::<c::network::DisconnectArgs>("disconnect", &[]),
            entry::<c::inspect::NetworkArgs>("inspect", &[]),
            entry::<c::network::ListArgs>("ls", &["list"]),
            entry::<c::prune::NetworkArgs>("prune", &[]),
            entry::<c::network::RemoveArgs>("rm", &["remove"]),
        ],
    },
    Group {
        name: "volume",
        about: "Manage volumes",
        entries: &[
            entry::<c::volume_archive::CloneArgs>("clone", &[]),
            entry::<c::volume::CreateArgs>("create", &[]),
            entry::<c::volume_archive::ExportArgs>("export", &[]),
            entry::<c::volume_archive::ImportArgs>("import", &[]),
            entry::<c::inspect::VolumeArgs>("inspect", &[]),
            entry::<c::volume::ListArgs>("ls", &["list"]),
            entry::<c::prune::VolumeArgs>("prune", &[]),
            entry::<c::volume::RemoveArgs>("rm", &["remove"]),
            entry::<c::volume_archive::SnapshotArgs>("snapshot", &[]),
        ],
    },
    Group {
        name: "registry",
        about: "Serve images to others",
        entries: &[
            entry::<c::registry::collect::Args>("garbage-collect", &["gc"]),
            entry::<c::registry::serve::Args>("serve", &[]),
            entry::<c::registry::user::Args>("user", &[]),
        ],
    },
    Group {
        name: "system",
        about: "Manage Vessel",
        entries: &[
            entry::<c::bin::Args>("bin", &[]),
            entry::<c::df::Args>("df", &[]),
            entry::<c::events::Args>("events", &[]),
            entry::<c::explain::Args>("explain", &[]),
            entry::<c::info::Args>("info", &[]),
            entry::<c::operation_log::Args>("log", &[]),
            entry::<c::prune::SystemArgs>("prune", &[]),
        ],
    },
];

fn built(entry: &Entry) -> Command {
    let command = (entry.augment)(Command::new(entry.name).visible_aliases(entry.aliases));
    command.args_override_self(true).mut_args(|arg| {
        // As Docker has it: what follows an option that takes a value is the value, whatever it looks like.
        let takes = !arg.is_positional() && arg.get_action().takes_values();
        if takes { arg.allow_hyphen_values(true) } else { arg }
    })
}

fn built_group(group: &Group) -> Command {
    Command::new(group.name)
        .about(group.about)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(group.entries.iter().map(built))
}

fn root() -> Command {
    Command::new("vessel")
        .about("One engine for containers and virtual machines")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args_override_self(true)
        .arg(
            clap::Arg::new("host")
                .short('H')
                .long("host")
                .value_name("string")
                .help("Daemon to talk to: unix:///PATH or tcp://HOST:PORT"),
        )
        .arg(
            clap::Arg::new("context")
                .short('c')
                .long("context")
                .value_name("string")
                .help("Daemon to talk to, by the name of its context"),
        )
        .arg(
            clap::Arg::new("tls")
                .long("tls")
                .action(ArgAction::SetTrue)
                .help("Use TLS, whatever certificate the daemon shows"),
        )
        .arg(
            clap::Arg::new("tlsverify")
                .long("tlsverify")
                .action(ArgAction::SetTrue)
                .help("Use TLS, and check the daemon's certificate"),
        )
        .arg(
            clap::Arg::new("tlscacert")
                .long("tlscacert")
                .value_name("file")
                .help("Authority of the daemon's certificate [default: ca.pem in DOCKER_CERT_PATH or ~/.docker]"),
        )
        .arg(
            clap::Arg::new("tlscert")
                .long("tlscert")
                .value_name("file")
                .help("Own certificate [default: cert.pem there]"),
        )
        .arg(
            clap::Arg::new("tlskey")
                .long("tlskey")
                .value_name("file")
                .help("Its key [default: key.pem there]"),
        )
        .arg(
            clap::Arg::new("version")
                .short('v')
                .long("version")
                .action(ArgAction::Version)
                .help("Print the version"),
        )
}

/// The whole tree, for help, completions and manual pages.
pub fn whole() -> Command {
    let groups = GROUPS.iter().map(built_group);
    root().subcommands(COMMANDS.iter().map(built)).subcommands(groups)
}

/// The tree with the asked-for command alone, when there is one of that name.
fn narrow(arguments: &[String]) -> Option<Command> {
    let at = first_word(arguments)?;
    let name = arguments[at].as_str();
    if let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) {
        return Some(root().subcommand(built(entry)));
    }
    let group = GROUPS.iter().find(|group| group.name == name)?;
    let name = arguments.get(at + 1)?.as_str();
    let entry = group
        .entries
        .iter()
        .find(|entry| entry.name == name || entry.aliases.contains(&name))?;
    Some(root().subcommand(Command::new(group.name).subcommand(built(entry))))
}

/// Where the command's name is, behind the options of the root.
fn first_word(arguments: &[String]) -> Option<usize> {
    let mut at = 1;
    while let Some(word) = arguments.get(at) {
        match word.as_str() {
            "-H" | "--host" | "-c" | "--context" | "--tlscacert" | "--tlscert" | "--tlskey" => at += 2,
            word if word.starts_with('-') => at += 1,
            _ => return Some(at),
        }
    }
    None
}

/// `--rm=false` and the like, which Docker's flags take and clap's do not.
fn with_values(command: Command) -> Command {
    command
        .mut_args(|arg| {
            if !matches!(arg.get_action(), ArgAction::SetTrue) {
                return arg;
            }
            arg.action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .default_value("false")
                .value_parser(|text: &str| {
                    crate::options::parse_bool(text)
                        .ok_or_else(|| format!("'{text}' is neither true nor false"))
                })
        })
        .mut_subcommands(with_values)
}

fn has_value_of_flag(arguments: &[String]) -> bool {
    arguments.iter().any(|word| {
        word.starts_with('-')
            && word
                .split_once('=')
                .is_some_and(|(_, value)| crate::options::parse_bool(value).is_some())
    })
}

/// Reads the arguments and runs the command.
pub fn run(arguments: Vec<String>) -> Result {
    let mut command = narrow(&arguments).unwrap_or_else(whole);
    if has_value_of_flag(&arguments) {
        command = with_values(command);
    }
    let matches = match command.try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return usage(&error, &arguments),
    };
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let context = Context::new(Chosen {
        host: text("host"),
        context: text("context"),
        tls: TlsOptions {
            tls: matches.get_flag("tls"),
            verify: matches.get_flag("tlsverify"),
            authority: text("tlscacert"),
            certificate: text("tlscert"),
            key: text("tlskey"),
        },
    });
    let nothing = || Failure::usage("there is no such command");
    let (name, inner) = matches.subcommand().ok_or_else(nothing)?;
    if let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) {
        return (entry.run)(inner, &context);
    }
    let group = GROUPS
        .iter()
        .find(|group| group.name == name)
        .ok_or_else(nothing)?;
    let (name, inner) = inner.subcommand().ok_or_else(nothing)?;
    let entry = group
        .entries
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(nothing)?;
    (entry.run)(inner, &context)
}

/// What clap has to say: help and versions as they are, errors in one sentence.
fn usage(error: &clap::Error, arguments: &[String]) -> Result {
    use clap::error::ErrorKind as K;
    if matches!(error.kind(), K::DisplayHelp | K::DisplayVersion) {
        crate::output::print(&error.to_string())?;
        return Ok(());
    }
    if error.kind() == K::DisplayHelpOnMissingArgumentOrSubcommand {
        // As Docker has it: a group of commands by itself is a question, not a mistake.
        crate::output::warn(error.to_string().trim_end());
        return Ok(());
    }
    let text = error.to_string();
    let paragraph = text.strip_prefix("error: ").unwrap_or(&text);
    let end = paragraph.find("\n\n").unwrap_or(paragraph.len());
    let sentence: Vec<&str> = paragraph[..end].lines().map(str::trim).collect();
    let unknown = unknown_flag(error);
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "))
        .filter(|tip| unknown.is_none() || tip.contains("exist"));
    let named: Vec<&str> = match first_word(arguments) {
        Some(at) => {
            let group = GROUPS.iter().any(|group| group.name == arguments[at]);
            arguments[at..]
                .iter()
                .take(1 + usize::from(group))
                .map(String::as_str)
                .collect()
        }
        None => Vec::new(),
    };
    // As Docker has it: a missing argument or an unknown command is 1, a wrong option 125.
    let code = match error.kind() {
        K::MissingRequiredArgument | K::InvalidSubcommand | K::MissingSubcommand | K::TooFewValues => 1,
        K::UnknownArgument if unknown.is_none() => 1,
        _ => 125,
    };
    let see = match (error.kind(), named.as_slice()) {
        (K::InvalidSubcommand, _) | (_, []) => "see 'vessel --help'".to_string(),
        (_, named) => format!("see 'vessel {} --help'", named.join(" ")),
    };
    let hint = tip.map_or(see.clone(), |tip| format!("{tip}; {see}"));
    let message = unknown.unwrap_or_else(|| plain(&sentence.join(" ")));
    Err(Failure::new(message).with_code(code).with_hint(hint))
}

/// What parsers of numbers say, in the users' words.
fn plain(sentence: &str) -> String {
    sentence
        .replace("invalid digit found in string", "it must be an integer")
        .replace("cannot parse integer from empty string", "it must be an integer")
        .replace("number too large to fit in target type", "it is too large")
        .replace("number too small to fit in target type", "it is too small")
        .replace(" found; no more were expected", ": it must be true or false")
        .replace(" [possible values: true, false]", ": it must be true or false")
}

/// An option that does not exist, in the words scripts know from Docker.
fn unknown_flag(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    if error.kind() != ErrorKind::UnknownArgument || !word.starts_with('-') {
        return None;
    }
    Some(match word.strip_prefix("--") {
        Some(_) => format!("unknown flag: {}", word.split('=').next().unwrap_or(word)),
        None => format!("unknown shorthand flag: '{}' in {word}", word.chars().nth(1)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(String::from).collect()
    }

    #[test]
    fn the_tree_is_sound() {
        whole().debug_assert();
        with_values(whole()).debug_assert();
    }

    #[test]
    fn the_narrow_tree_has_what_is_asked_for() {
        for line in [
            "vessel run x",
            "vessel -H unix:///x ps",
            "vessel --host=x container ls",
            "vessel container ps",
        ] {
            assert!(narrow(&words(line)).is_some(), "{line}");
        }
        for line in [
            "vessel",
            "vessel nope",
            "vessel container",
            "vessel --help",
            "vessel container nope",
        ] {
            assert!(narrow(&words(line)).is_none(), "{line}");
        }
    }

    #[test]
    fn every_command_says_what_it_is() {
        fn check(command: &Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                let silent = argument.get_help().is_none() && argument.get_id() != "help";
                assert!(!silent, "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&whole());
    }

    #[test]
    fn unknown_options_are_told_as_docker_tells_them() {
        for (line, expected) in [
            ("vessel run --nope=1 image", "unknown flag: --nope"),
            ("vessel exec --rn c true", "unknown flag: --rn"),
            ("vessel ps -qx", "unknown shorthand flag: 'x' in -x"),
        ] {
            let failure = run(words(line)).unwrap_err();
            assert_eq!(
                (failure.message.as_deref(), failure.code),
                (Some(expected), 125),
                "{line}"
            );
            assert!(!failure.hint.unwrap_or_default().contains("as a value"), "{line}");
        }
    }

    #[test]
    fn wrong_values_are_told_in_plain_words() {
        for (line, expected) in [
            ("vessel run --cpus -1 x", "must not be negative"),
            ("vessel run --stop-timeout x y", "must be an integer"),
            ("vessel run --pids-limit x y", "must be an integer"),
            ("vessel run --init=maybe x", "must be true or false"),
            ("vessel run --rm=maybe x", "must be true or false"),
        ] {
            let failure = run(words(line)).unwrap_err();
            let message = failure.message.unwrap_or_default();
            assert!(
                message.contains(expected) && failure.code == 125,
                "{line}: {message}"
            );
        }
    }

    #[test]
    fn flags_take_values() {
        let matches = |line: &str| with_values(whole()).try_get_matches_from(words(line)).unwrap();
        let ps = matches("vessel ps --all=false -q");
        let (_, ps) = ps.subcommand().unwrap();
        assert!(!ps.get_flag("all") && ps.get_flag("quiet"));
        let run = matches("vessel run -it --rm=true --sig-proxy=false x");
        let (_, run) = run.subcommand().unwrap();
        assert!(run.get_flag("interactive") && run.get_flag("tty") && run.get_flag("rm"));
        let run = matches("vessel run -d=false -it=false x");
        let (_, run) = run.subcommand().unwrap();
        assert!(run.get_flag("interactive") && !run.get_flag("tty") && !run.get_flag("detach"));
    }
}
