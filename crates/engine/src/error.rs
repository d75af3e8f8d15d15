//! The engine's error: a small kind that decides the HTTP status, and one clear sentence.

use vessel_runtime::ErrorKind as RuntimeKind;

/// The result of the engine's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something that was named does not exist (404).
    NotFound,
    /// The object is in a state, or a name is taken, that does not allow the operation (409).
    Conflict,
    /// A value is not valid (400).
    Invalid,
    /// It is not allowed (403).
    Forbidden,
    /// A registry wants credentials, or others (401).
    Unauthorized,
    /// It is so already (304).
    NotModified,
    /// Vessel or this kernel does not have it (501).
    Unsupported,
    /// The program of a container does not exist (Docker answers 400 and the exit code is 127).
    CommandNotFound,
    /// The program of a container cannot be executed (Docker answers 400 and the exit code is 126).
    CommandNotExecutable,
    /// The system refused (500).
    System,
}

/// What failed, why, and what to do about it, in one sentence.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Something that was named does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// A state or a name that does not allow the operation.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// A value that is not valid.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Something that Vessel or the kernel does not have.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A refusal of the system.
    pub fn system(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::System, message)
    }

    /// Puts `context` in front.
    #[must_use]
    pub fn wrap(self, context: impl std::fmt::Display) -> Self {
        Self {
            kind: self.kind,
            message: format!("{context}: {}", self.message),
        }
    }

    /// The same sentence, as the fault of what was asked for.
    #[must_use]
    pub fn as_invalid(self) -> Self {
        Self {
            kind: ErrorKind::Invalid,
            ..self
        }
    }

    /// The exit code Docker records for a start that failed with this.
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            ErrorKind::CommandNotFound => 127,
            ErrorKind::CommandNotExecutable => 126,
            _ => 128,
        }
    }
}

impl From<vessel_runtime::error::Report> for Error {
    fn from(report: vessel_runtime::error::Report) -> Self {
        let kind = match report.kind {
            RuntimeKind::Invalid => ErrorKind::Invalid,
            RuntimeKind::NotFound => ErrorKind::NotFound,
            RuntimeKind::Conflict => ErrorKind::Conflict,
            RuntimeKind::CommandNotFound => ErrorKind::CommandNotFound,
            RuntimeKind::CommandNotExecutable => ErrorKind::CommandNotExecutable,
            RuntimeKind::Permission => ErrorKind::Forbidden,
            RuntimeKind::Unsupported => ErrorKind::Unsupported,
            RuntimeKind::System => ErrorKind::System,
        };
        Self::new(kind, report.message)
    }
}

impl From<vessel_runtime::Error> for Error {
    fn from(error: vessel_runtime::Error) -> Self {
        error.report().into()
    }
}

/// Adds context to what the system answers.
pub trait Context<T> {
    /// Turns the failure into an [`Error`] that begins with `what()`.
    fn context<S: std::fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context<S: std::fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::System,
            };
            Error::new(
                kind,
                format!("{}: {}", what(), vessel_runtime::error::in_words(&error)),
            )
        })
    }
}

impl<T> Context<T> for std::result::Result<T, rustix::io::Errno> {
    fn context<S: std::fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(std::io::Error::from).context(what)
    }
}

impl<T> Context<T> for Result<T> {
    fn context<S: std::fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.wrap(what()))
    }
}

/// Runs what may block, but not for long and never for a client, on one of a bounded number of threads: see
/// [`crate::transfer`].
///
/// # Errors
/// Those of `work`; a panic inside is reported as an error of the system.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::system(format!(
            "an operation of the engine ended abnormally: {error}"
        ))),
    }
}
