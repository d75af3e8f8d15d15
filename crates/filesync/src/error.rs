//! What goes wrong with a transfer.

use std::io;

/// What every call here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a transfer broke off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something on this side.
    #[error("{what}: {}", reason(.source))]
    Io {
        /// What was attempted.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The other side does not keep to the protocol.
    #[error("the file transfer is not understood: {0}")]
    Protocol(String),
    /// The other side gave up.
    #[error("{0}")]
    Peer(String),
    /// A name that cannot be transferred.
    #[error("{0}")]
    Name(String),
    /// The connection ended in the middle.
    #[error("the connection ended in the middle of a file transfer")]
    Closed,
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let what = what.into();
        move |errno| Self::Io {
            what,
            source: errno.into(),
        }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol(what.into())
    }
}

/// A system's error in words, without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let cut = text.find(" (os error").unwrap_or(text.len());
    text[..cut].to_lowercase()
}
