//! The error of this crate: a small stable kind, the context, and the source.
//!
//! The context says what was being done to what; the source says why it failed; [`Error::hint`] says what to do
//! where there is something to do. Errors cross process boundaries (container child to shim, shim to daemon) as
//! [`Report`], so a failure inside the namespaces reads the same at the command line.

use serde::{Deserialize, Serialize};

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is: what a caller may branch on. It decides exit codes and HTTP status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The configuration asks for something that is not valid.
    Invalid,
    /// A file or an object that was named does not exist.
    NotFound,
    /// The object is in a state that does not allow the operation.
    Conflict,
    /// The program to be executed does not exist in the root (Docker's exit code 127).
    CommandNotFound,
    /// The program exists and cannot be executed (Docker's exit code 126).
    CommandNotExecutable,
    /// This process lacks a privilege.
    Permission,
    /// The kernel lacks a feature.
    Unsupported,
    /// Anything else the system answered.
    System,
}

/// What failed, why, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` without a deeper cause.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// An error whose cause is `source`.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(source.into()),
        }
    }

    /// A configuration error.
    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }

    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The whole chain as one sentence: context, then each cause.
    pub fn report(&self) -> Report {
        let mut message = self.context.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            message.push_str(": ");
            message.push_str(&in_words(cause));
            next = cause.source();
        }
        Report {
            kind: self.kind,
            message,
        }
    }

    /// Puts `context` in front of an error.
    pub fn wrap(self, context: impl std::fmt::Display) -> Self {
        Self {
            kind: self.kind,
            context: format!("{context}: {}", self.context),
            source: self.source,
        }
    }
}

/// An [`Error`] in a form that can be sent to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its kind.
    pub kind: ErrorKind,
    /// The whole sentence.
    pub message: String,
}

impl From<Report> for Error {
    fn from(report: Report) -> Self {
        Self::new(report.kind, report.message)
    }
}

/// The words of a cause, without the "(os error N)" that Rust appends to the system's.
pub fn in_words(cause: impl std::fmt::Display) -> String {
    let mut text = cause.to_string();
    if let Some(end) = text.rfind(" (os error ").filter(|_| text.ends_with(')')) {
        text.truncate(end);
    }
    text
}

/// Adds context to system call results.
pub trait Context<T> {
    /// Turns the failure into an [`Error`] whose context is `what()`.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, rustix::io::Errno> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|errno| Error::with_source(kind_of(errno), what(), std::io::Error::from(errno)))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| {
            let kind = rustix::io::Errno::from_io_error(&error).map_or(ErrorKind::System, kind_of);
            Error::with_source(kind, what(), error)
        })
    }
}

fn kind_of(errno: rustix::io::Errno) -> ErrorKind {
    use rustix::io::Errno;
    match errno {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::PERM | Errno::ACCESS => ErrorKind::Permission,
        Errno::NOSYS | Errno::OPNOTSUPP => ErrorKind::Unsupported,
        _ => ErrorKind::System,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_one_sentence_with_each_cause_once() {
        let failed: std::result::Result<(), _> = Err(rustix::io::Errno::NOENT);
        let error = failed
            .context(|| "open /x")
            .unwrap_err()
            .wrap("mount volume data");
        let report = error.report();
        assert_eq!(report.kind, ErrorKind::NotFound);
        assert_eq!(
            report.message,
            "mount volume data: open /x: No such file or directory"
        );
        assert_eq!(Error::from(report.clone()).report(), report);
    }
}
