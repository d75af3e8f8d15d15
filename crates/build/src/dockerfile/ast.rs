//! What a Dockerfile says, instruction by instruction, before any variable is expanded.

use std::sync::Arc;
use std::time::Duration;

use super::Diagnostic;
use super::directive::Directive;
use super::mount::Device;
use super::source::{Source, Span};

/// A parsed Dockerfile.
#[derive(Clone, Debug, PartialEq)]
pub struct Dockerfile {
    /// The text it came from.
    pub source: Arc<Source>,
    /// The escape character, `\` or `` ` ``.
    pub escape: char,
    /// `# syntax=`, `# escape=` and `# check=`.
    pub directives: Vec<Directive>,
    /// The `ARG`s before the first `FROM`; each instruction is a [`Command::Arg`].
    pub global_args: Vec<Instruction>,
    /// The stages, one per `FROM`.
    pub stages: Vec<Stage>,
    /// What the parser itself objects to: empty continuation lines.
    pub warnings: Vec<Diagnostic>,
}

/// A stage: `FROM` and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its place in [`Dockerfile::stages`], by which `COPY --from=0` means it.
    pub index: usize,
    /// The name after `AS`, in lower case.
    pub name: Option<String>,
    /// The name after `AS` as written.
    pub written_name: Option<String>,
    /// The base image or stage, not expanded.
    pub base: String,
    /// `--platform`, not expanded.
    pub platform: Option<String>,
    /// `AS` as written.
    pub as_keyword: Option<String>,
    /// `FROM` as written.
    pub keyword: String,
    /// The text of `FROM` with continuation lines joined.
    pub original: String,
    /// Where `FROM` stands.
    pub span: Span,
    /// The comments right above `FROM`.
    pub comments: Vec<String>,
    /// The comment that begins with the stage's name: its description.
    pub description: Option<String>,
    /// What follows.
    pub instructions: Vec<Instruction>,
}

/// An instruction with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it says.
    pub command: Command,
    /// The keyword as written.
    pub keyword: String,
    /// Where it stands, heredocs included.
    pub span: Span,
    /// Its text with continuation lines joined, without the contents of heredocs.
    pub original: String,
    /// The comments right above it.
    pub comments: Vec<String>,
}

/// What an instruction says. Texts are as written: quotes, escapes and variables are expanded by
/// [`Command::expand`] and [`super::expand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `ADD`
    Add(Add),
    /// `ARG`, one or several.
    Arg(Vec<ArgDecl>),
    /// `CMD`
    Cmd(CommandLine),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `ENV`
    Env(Vec<KeyValue>),
    /// `EXPOSE`, sorted as BuildKit sorts them.
    Expose(Vec<String>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Vec<KeyValue>),
    /// `MAINTAINER`
    Maintainer(String),
    /// `ONBUILD`: the instruction, heredocs included, for [`super::parse_trigger`] when another image builds on this one.
    Onbuild(String),
    /// `RUN`
    Run(Run),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `USER`
    User(String),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `WORKDIR`
    Workdir(String),
}

impl Command {
    /// The instruction's keyword in upper case.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Arg(_) => "ARG",
            Self::Cmd(_) => "CMD",
            Self::Copy(_) => "COPY",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Env(_) => "ENV",
            Self::Expose(_) => "EXPOSE",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Label(_) => "LABEL",
            Self::Maintainer(_) => "MAINTAINER",
            Self::Onbuild(_) => "ONBUILD",
            Self::Run(_) => "RUN",
            Self::Shell(_) => "SHELL",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::User(_) => "USER",
            Self::Volume(_) => "VOLUME",
            Self::Workdir(_) => "WORKDIR",
        }
    }
}

/// `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Whether it was written `KEY value`, the old form.
    pub legacy: bool,
}

/// One name of `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDecl {
    /// The name.
    pub name: String,
    /// The default.
    pub value: Option<String>,
    /// The comment above `ARG` that begins with the name: its description.
    pub description: Option<String>,
}

/// A command to run, in either form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The exec form's words, or the shell form's one text (none if the instruction had no arguments).
    pub words: Vec<String>,
    /// Whether it is the exec form: a JSON array. If not, `SHELL` goes before it.
    pub exec: bool,
}

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The terminator, and the file's name in `COPY` and `ADD`.
    pub name: String,
    /// The number before `<<`.
    pub descriptor: u32,
    /// Whether the name was free of quotes, so that variables in the content count.
    pub expand: bool,
    /// `<<-`: tabs at the beginnings of lines do not count. [`Heredoc::text`] removes them.
    pub chomp: bool,
    /// The lines between as they are.
    pub content: String,
}

impl Heredoc {
    /// The content, leading tabs removed for `<<-`.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        let lines = self.content.split_inclusive('\n');
        lines.map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// `RUN`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub line: CommandLine,
    /// Its here-documents. A shell form that is nothing but one of them, `RUN <<EOF`, is a script: see
    /// [`Run::script`].
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, not expanded: [`Run::mounts`] does that.
    pub mount_flags: Vec<String>,
    /// `--network`
    pub network: Network,
    /// `--security`
    pub security: Security,
    /// `--device`
    pub devices: Vec<Device>,
}

/// `RUN --network`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// The builder's.
    #[default]
    Default,
    /// None but loopback.
    None,
    /// The host's; needs an entitlement.
    Host,
}

/// `RUN --security`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Security {
    /// As a container.
    #[default]
    Sandbox,
    /// Without restrictions; needs an entitlement.
    Insecure,
}

/// Where `COPY` and `ADD` take from and put to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Paths and addresses, with wildcards.
    pub paths: Vec<String>,
    /// Files that stand in the Dockerfile.
    pub files: Vec<InlineFile>,
    /// The destination.
    pub dest: String,
}

/// A file made from a here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineFile {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: String,
    /// Whether variables in it are expanded.
    pub expand: bool,
}

/// `COPY`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// What to where.
    pub sources: Sources,
    /// `--from`; never expanded.
    pub from: Option<String>,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`
    pub exclude: Vec<String>,
}

/// `ADD`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Add {
    /// What to where.
    pub sources: Sources,
    /// `--chown`
    pub chown: Option<String>,
    /// `--chmod`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--exclude`
    pub exclude: Vec<String>,
    /// `--keep-git-dir`
    pub keep_git_dir: Option<bool>,
    /// `--checksum`
    pub checksum: Option<String>,
    /// `--unpack`; without it, local archives are unpacked and downloaded ones are not.
    pub unpack: Option<bool>,
}

/// `HEALTHCHECK`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `NONE`: not even the base image's.
    None,
    /// `CMD`
    Command {
        /// The command.
        line: CommandLine,
        /// The options.
        options: HealthcheckOptions,
    },
}

/// Options of `HEALTHCHECK CMD`; zero means unset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthcheckOptions {
    /// `--interval`
    pub interval: Duration,
    /// `--timeout`
    pub timeout: Duration,
    /// `--start-period`
    pub start_period: Duration,
    /// `--start-interval`
    pub start_interval: Duration,
    /// `--retries`
    pub retries: u32,
}
