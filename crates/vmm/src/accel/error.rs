//! What can go wrong with an accelerator.

use std::io;

/// The result of everything in [`crate::accel`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can decide on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This host does not have it, or its version cannot run guests.
    Unavailable,
    /// The call makes no sense: a slot that is not there, a misaligned region.
    Invalid,
    /// The guest did what the accelerator cannot execute.
    Guest,
    /// The kernel refused.
    System,
}

/// An error of an accelerator: a kind to decide on, a sentence, the system's error as the source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    /// An error that has no other behind it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error with the system's behind it.
    pub fn with_source(kind: ErrorKind, message: impl Into<String>, source: io::Error) -> Self {
        Self {
            kind,
            message: message.into(),
            source: Some(source),
        }
    }

    /// The kernel's refusal of `what`.
    pub fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::with_source(ErrorKind::System, what, source)
    }

    /// What a caller can decide on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
