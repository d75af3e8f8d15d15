//! Variables in instructions: which parts of which instruction they count in.
//!
//! `ADD`, `COPY`, `ENV`, `EXPOSE`, `LABEL`, `STOPSIGNAL`, `USER`, `VOLUME`, `WORKDIR` and the mounts of `RUN` are expanded
//! whole; `CMD`, `ENTRYPOINT`, `RUN`, `SHELL`, `HEALTHCHECK`, `ONBUILD`, `COPY --from` and `--exclude` not at all.
//! `ARG` is expanded name by name, each seeing those before: [`ArgDecl::default`].

use std::collections::BTreeSet;

use super::ast::{ArgDecl, Command, KeyValue, Run, Sources};
use super::expand::{ExpandError, Lexer, Lookup};

/// An instruction with its variables expanded.
#[derive(Clone, Debug)]
pub struct Expansion {
    /// The instruction. Mounts of `RUN` are left to [`Run::mounts`].
    pub command: Command,
    /// The defined variables it asked for.
    pub used: BTreeSet<String>,
    /// The variables it asked for in vain; they expanded to nothing.
    pub undefined: BTreeSet<String>,
}

struct Words<'a> {
    lexer: Lexer,
    lookup: Lookup<'a>,
    used: BTreeSet<String>,
    undefined: BTreeSet<String>,
}

impl Words<'_> {
    fn with(&mut self, lexer: &Lexer, word: &mut String) -> Result<(), ExpandError> {
        let mut expanded = lexer.word(word, self.lookup)?;
        self.used.append(&mut expanded.used);
        self.undefined.append(&mut expanded.undefined);
        *word = expanded.text;
        Ok(())
    }

    fn one(&mut self, word: &mut String) -> Result<(), ExpandError> {
        let lexer = self.lexer;
        self.with(&lexer, word)
    }

    fn all<'w>(&mut self, words: impl IntoIterator<Item = &'w mut String>) -> Result<(), ExpandError> {
        words.into_iter().try_for_each(|word| self.one(word))
    }

    fn pairs(&mut self, pairs: &mut [KeyValue]) -> Result<(), ExpandError> {
        self.all(pairs.iter_mut().flat_map(|pair| [&mut pair.key, &mut pair.value]))
    }

    fn sources(&mut self, sources: &mut Sources) -> Result<(), ExpandError> {
        self.all(sources.paths.iter_mut().chain([&mut sources.dest]))?;
        let mut files = sources.files.iter_mut().filter(|file| file.expand);
        files.try_for_each(|file| self.with(&Lexer::heredoc(), &mut file.content))
    }
}

impl Command {
    /// Expands what is to be expanded in the instruction. All of it sees the same variables: `ENV a=1 b=$a` gives `b` the
    /// `a` of before.
    pub fn expanded(&self, lexer: &Lexer, lookup: Lookup<'_>) -> Result<Expansion, ExpandError> {
        let mut words = Words {
            lexer: *lexer,
            lookup,
            used: BTreeSet::new(),
            undefined: BTreeSet::new(),
        };
        let mut command = self.clone();
        match &mut command {
            Self::Add(add) => {
                words.all(
                    [&mut add.chown, &mut add.chmod, &mut add.checksum]
                        .into_iter()
                        .flatten(),
                )?;
                words.sources(&mut add.sources)?;
            }
            Self::Copy(copy) => {
                words.all([&mut copy.chown, &mut copy.chmod].into_iter().flatten())?;
                words.sources(&mut copy.sources)?;
            }
            Self::Env(pairs) | Self::Label(pairs) => words.pairs(pairs)?,
            Self::Expose(ports) => {
                let mut all = Vec::new();
                for port in ports.iter() {
                    all.extend(lexer.words(port, words.lookup)?);
                }
                *ports = all;
            }
            Self::StopSignal(word) | Self::User(word) | Self::Workdir(word) => words.one(word)?,
            Self::Volume(volumes) => words.all(volumes)?,
            Self::Arg(_)
            | Self::Cmd(_)
            | Self::Entrypoint(_)
            | Self::Healthcheck(_)
            | Self::Maintainer(_)
            | Self::Onbuild(_)
            | Self::Run(_)
            | Self::Shell(_) => {}
        }
        Ok(Expansion {
            command,
            used: words.used,
            undefined: words.undefined,
        })
    }
}

impl ArgDecl {
    /// The default, expanded; none if there is none.
    pub fn default(&self, lexer: &Lexer, lookup: Lookup<'_>) -> Result<Option<super::Expanded>, ExpandError> {
        self.value
            .as_deref()
            .map(|value| lexer.word(value, lookup))
            .transpose()
    }
}

/// What `RUN` runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// These words, without a shell.
    Exec(Vec<String>),
    /// This text, for the stage's shell.
    Shell(String),
    /// This file, which begins with `#!`; BuildKit puts it at `/dev/pipes/NAME`.
    File {
        /// The here-document's name.
        name: String,
        /// Its content.
        content: String,
    },
}

impl Run {
    /// What to run. A shell form that is nothing but a here-document is the document; in any other, documents go below
    /// the text, for the shell to read.
    pub fn script(&self) -> Script {
        if self.line.exec {
            return Script::Exec(self.line.words.clone());
        }
        let mut text = self.line.words.join(" ");
        let Some(first) = self.heredocs.first() else {
            return Script::Shell(text);
        };
        if super::heredoc::parse(&text).is_ok_and(|found| found.is_some()) {
            let content = first.text();
            return if content.starts_with("#!") {
                let name = first.name.clone();
                Script::File { name, content }
            } else {
                Script::Shell(content)
            };
        }
        for document in &self.heredocs {
            text.push('\n');
            text.push_str(&document.content);
            text.push_str(&document.name);
        }
        Script::Shell(text)
    }
}
