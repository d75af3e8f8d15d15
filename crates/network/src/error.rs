//! What went wrong, said in one sentence.

use std::fmt;
use std::io;
use std::sync::Arc;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can decide on; the sentence itself is in [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself makes no sense: a bad name, an address outside the subnet.
    Invalid,
    /// Somebody else has what was asked for: a port, an address, an interface name.
    Conflict,
    /// Nothing is left: no free address, port, subnet or bridge port.
    Exhausted,
    /// What was named does not exist.
    NotFound,
    /// The process lacks the privilege.
    Permission,
    /// The kernel or this crate cannot do it.
    Unsupported,
    /// The kernel refused for a reason of its own.
    System,
}

/// An error of the network: a kind to decide on, a sentence to show, and the system's own error as the source.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<io::Error>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// `what` is the thing that could not be done, as in "cannot {what}".
    pub(crate) fn io(what: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let code = source.raw_os_error().unwrap_or(0);
        let (kind, hint) = match code {
            libc::EPERM | libc::EACCES => (
                ErrorKind::Permission,
                "; the daemon needs CAP_NET_ADMIN and CAP_SYS_ADMIN in its network namespace",
            ),
            libc::ENODEV | libc::ENOENT => (ErrorKind::NotFound, ""),
            libc::EEXIST | libc::EADDRINUSE | libc::EBUSY => (ErrorKind::Conflict, ""),
            libc::EXFULL => (
                ErrorKind::Exhausted,
                "; a bridge has room for 1023 interfaces: use a second network",
            ),
            libc::EMFILE | libc::ENFILE => (ErrorKind::Exhausted, "; raise the limit of open files"),
            libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT => {
                (ErrorKind::Unsupported, "; this kernel was built without it")
            }
            _ => (ErrorKind::System, ""),
        };
        Self {
            kind,
            message: format!("cannot {what}: {}{hint}", describe(&source)),
            source: Some(Arc::new(source)),
        }
    }

    /// What sort of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The system's error number, when the system was asked.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.as_ref().and_then(|source| source.raw_os_error())
    }

    /// The same, of which `what` says first what it means.
    pub(crate) fn within(&self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self.clone()
        }
    }
}

/// The system's words without "(os error N)", which helps nobody.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_becomes_a_sentence() {
        let error = Error::io(
            "create the bridge `x0`",
            io::Error::from_raw_os_error(libc::EPERM),
        );
        assert_eq!(error.kind(), ErrorKind::Permission);
        assert!(
            error
                .to_string()
                .starts_with("cannot create the bridge `x0`: operation not permitted; "),
            "{error}"
        );
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
