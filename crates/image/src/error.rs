//! The one error type of this crate.
//!
//! An error prints as one sentence: what was being done, and why it failed. The kind is for programs: the
//! engine maps it to an HTTP status, the command line to an exit code.

use std::fmt;
use std::io;

/// A result whose error is this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input (an archive, a reference, a digest, a JSON document) is malformed or hostile.
    Invalid,
    /// The input is well formed but uses something that is not supported.
    Unsupported,
    /// Content does not have the digest it was announced with.
    Digest,
    /// The input exceeds a configured limit.
    Limit,
    /// A blob, layer or path does not exist.
    NotFound,
    /// Something of another type is in the way.
    Conflict,
    /// The file system has no space, inodes or quota left.
    NoSpace,
    /// The operation is not permitted to this process.
    Permission,
    /// Reading the caller's input failed.
    Input,
    /// A registry wants credentials, or others than it was given.
    Unauthorized,
    /// A registry cannot be reached, is overloaded, or does not speak as it should.
    Unavailable,
    /// Any other failure of the file system.
    Io,
}

/// A failure: its kind, a sentence, and the cause if there is one.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a further cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error with a cause that is no failure of input or output.
    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            source: Some(Box::new(source)),
        }
    }

    /// Malformed or hostile input.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// An input beyond a limit.
    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }

    /// A failed file system operation; the kind follows from the cause.
    pub(crate) fn io(message: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self {
            kind: kind_of(&source),
            message: message.into(),
            source: Some(Box::new(source)),
        }
    }

    /// A failure to read the caller's input. An error of this crate that travelled through
    /// [`io::Error`] (from a reader made here) is taken out again.
    pub(crate) fn input(message: impl Into<String>, source: io::Error) -> Self {
        match source.downcast::<Error>() {
            Ok(inner) => inner,
            Err(source) => Self {
                kind: ErrorKind::Input,
                message: message.into(),
                source: Some(Box::new(source)),
            },
        }
    }

    /// A malformed document, with the parser's complaint.
    pub(crate) fn json(message: impl Into<String>, source: serde_json::Error) -> Self {
        Self {
            kind: ErrorKind::Invalid,
            message: message.into(),
            source: Some(Box::new(source)),
        }
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was being done, without the cause.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The same error, said in a wider context: "context: message".
    pub(crate) fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            None => Ok(()),
            Some(source) => match source.downcast_ref::<io::Error>() {
                Some(error) => write!(f, ": {}", describe(error)),
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

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
        Some(libc::EPERM | libc::EACCES | libc::EROFS) => ErrorKind::Permission,
        Some(libc::ENOENT) => ErrorKind::NotFound,
        Some(libc::EEXIST | libc::ENOTDIR | libc::EISDIR) => ErrorKind::Conflict,
        Some(libc::ENAMETOOLONG | libc::ELOOP) => ErrorKind::Invalid,
        _ => ErrorKind::Io,
    }
}

/// The cause in words, without the "(os error N)" that Rust appends.
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => {
            "no space is left on the file system; free some (`system prune` removes unused images) and try again".into()
        }
        Some(libc::EDQUOT) => "the disk quota is used up".into(),
        Some(libc::EPERM) => "the kernel does not permit it to this process".into(),
        Some(libc::ELOOP) => "too many symbolic links on the way".into(),
        Some(_) => {
            let text = error.to_string();
            let end = text.find(" (os error").unwrap_or(text.len());
            let mut text = text[..end].to_owned();
            if let Some(first) = text.get_mut(..1) {
                first.make_ascii_lowercase();
            }
            text
        }
        None => error.to_string(),
    }
}

/// Shows bytes from an archive in a message: lossy, control characters escaped, never longer than a line.
pub(crate) fn show(bytes: &[u8]) -> String {
    const MAX: usize = 200;
    let shown = &bytes[..bytes.len().min(MAX)];
    let mut out = String::with_capacity(shown.len() + 5);
    out.push('"');
    for c in String::from_utf8_lossy(shown).chars() {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    if bytes.len() > MAX {
        out.push('…');
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_one_sentence_without_errno_numbers() {
        let error = Error::io(
            "cannot create layers/x",
            io::Error::from_raw_os_error(libc::ENOTDIR),
        );
        assert_eq!(error.to_string(), "cannot create layers/x: not a directory");
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }

    #[test]
    fn survives_the_journey_through_io_error() {
        let error: io::Error = Error::limit("too big").into();
        let error = Error::input("cannot read the archive", error);
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert_eq!(error.to_string(), "too big");
    }

    #[test]
    fn hostile_names_are_escaped() {
        assert_eq!(show(b"a\x1b[31m\n"), "\"a\\u{1b}[31m\\n\"");
        assert!(show(&[b'x'; 5000]).len() < 300);
    }
}
