//! The one error type of this crate: a kind for programs, a sentence for people, and where in the Dockerfile.

use std::fmt;

/// A result whose error is this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The Dockerfile, the request or the context is wrong.
    Invalid,
    /// Something named does not exist: a stage, a file, an image.
    NotFound,
    /// It is well formed, but this host or build cannot do it.
    Unsupported,
    /// The client did not allow it (entitlements).
    Denied,
    /// A step's process failed.
    Process,
    /// The build was cancelled.
    Cancelled,
    /// A registry, a remote source or the client's session failed.
    Remote,
    /// This host failed: files, memory, the kernel.
    System,
}

/// A place in a file of the build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Location {
    /// The file's name, as the request names it.
    pub file: String,
    /// First line, from 1.
    pub start_line: u32,
    /// Last line.
    pub end_line: u32,
    /// First column in bytes from 0 and one past the last, where something narrower than the lines is meant.
    pub columns: Option<(u32, u32)>,
}

/// A failure.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    location: Option<Box<Located>>,
    process: Option<Box<FailedProcess>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A step's process that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedProcess {
    /// Its words, with spaces between them.
    pub command: String,
    /// Its exit code.
    pub code: i32,
}

/// Where an error is, with the text of the file it is in.
#[derive(Debug, Clone)]
pub struct Located {
    /// The place.
    pub location: Location,
    /// The file's text, for a rendering with a caret.
    pub text: std::sync::Arc<[u8]>,
}

impl Error {
    /// An error without a further cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            location: None,
            process: None,
            source: None,
        }
    }

    /// An error with its cause, which is printed after it.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(kind, message)
        }
    }

    /// Something wrong with the Dockerfile, the request or the context.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Something that does not exist.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// A failure of this host's files.
    pub(crate) fn io(message: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::with_source(ErrorKind::System, message, source.into())
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The process that failed.
    pub fn process(&self) -> Option<&FailedProcess> {
        self.process.as_deref()
    }

    /// Where in the Dockerfile, with the file's text.
    pub fn located(&self) -> Option<&Located> {
        self.location.as_deref()
    }

    /// The same error with the process that failed.
    #[must_use]
    pub fn of_process(mut self, process: FailedProcess) -> Self {
        self.process = Some(Box::new(process));
        self
    }

    /// The same error with a place, unless it has one already.
    #[must_use]
    pub fn at(mut self, location: Location, text: std::sync::Arc<[u8]>) -> Self {
        self.location
            .get_or_insert_with(|| Box::new(Located { location, text }));
        self
    }

    /// The same error, said in a wider context: "context: message".
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            None => Ok(()),
            Some(source) => match source
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::raw_os_error)
            {
                // Without the "(os error N)" that Rust appends.
                Some(_) => {
                    let text = source.to_string();
                    let end = text.find(" (os error").unwrap_or(text.len());
                    let mut chars = text[..end].chars();
                    let first = chars.next().map(|c| c.to_ascii_lowercase());
                    write!(f, ": {}{}", first.unwrap_or(' '), chars.as_str())
                }
                None => write!(f, ": {source}"),
            },
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<vessel_image::Error> for Error {
    fn from(error: vessel_image::Error) -> Self {
        use vessel_image::ErrorKind as Image;
        let kind = match error.kind() {
            Image::Invalid | Image::Digest | Image::Limit | Image::Conflict => ErrorKind::Invalid,
            Image::Unsupported => ErrorKind::Unsupported,
            Image::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::System,
        };
        // Its text is a whole sentence.
        Self::new(kind, error.to_string())
    }
}
