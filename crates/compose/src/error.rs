//! What can go wrong with a project.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// What every call here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Compose file, or an environment file, says something that cannot be.
    #[error("{0}")]
    File(Box<FileFault>),
    /// A file cannot be read.
    #[error("cannot read {}: {}", path.display(), words(source))]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no Compose file where one is expected.
    #[error("no configuration file provided: not found (looked for compose.yaml, compose.yml, docker-compose.yml and docker-compose.yaml in {} and the directories above)", .0.display())]
    NoFile(PathBuf),
    /// What is asked for does not fit the project.
    #[error("{0}")]
    Project(String),
    /// The daemon cannot be talked to, or refuses.
    #[error("{doing}: {source}")]
    Engine {
        /// What was under way.
        doing: String,
        /// Why.
        source: vessel_client::Error,
    },
    /// Whoever started it gave up.
    #[error("interrupted")]
    Interrupted,
}

/// A fault in a file, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFault {
    /// The file, as it was named.
    pub file: String,
    /// Line and column from 1, when there is a place.
    pub place: Option<(u32, u32)>,
    /// Where in the model: `services.web.ports[0]`; empty for the whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl Error {
    /// What is asked for does not fit the project.
    pub(crate) fn project(message: impl Into<String>) -> Self {
        Self::Project(message.into())
    }

    /// Names what was under way when the daemon failed.
    pub(crate) fn engine(doing: impl Into<String>) -> impl FnOnce(vessel_client::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Engine { doing, source }
    }

    /// The daemon's answer, when it was one that refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Engine { source, .. } => source.status(),
            _ => None,
        }
    }
}

/// An I/O error in words, without its number.
pub(crate) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let cut = text.find(" (os error").unwrap_or(text.len());
    let mut words = text[..cut].to_string();
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    words
}
