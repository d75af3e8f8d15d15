//! What can go wrong between here and a daemon.

use std::io;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of the daemon makes no sense.
    #[error("invalid host {host:?}: {reason}")]
    Host {
        /// As given.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers at the daemon's address.
    #[error("cannot connect to the daemon at {host}: {}", reason(.source))]
    Connect {
        /// The address.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke while {doing}: {}", reason(.source))]
    Io {
        /// What was under way.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What the caller gave to send could not be read.
    #[error("cannot read what is to be sent: {}", reason(.0))]
    Upload(io::Error),
    /// The daemon refused.
    #[error("{message}")]
    Api {
        /// The HTTP status.
        status: u16,
        /// The daemon's sentence.
        message: String,
    },
    /// A build failed.
    #[error("{0}")]
    Build(Box<crate::build::BuildFailure>),
    /// The peer does not speak HTTP, or more of it than fits.
    #[error("the daemon's answer is not understood: {0}")]
    Protocol(String),
    /// The answer is not the JSON it should be.
    #[error("the daemon's answer is not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// An I/O error in words, without `(os error N)`.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let cut = text.find(" (os error").unwrap_or(text.len());
    let mut words = text[..cut].to_string();
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    words
}

impl Error {
    /// The HTTP status, when the daemon answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the daemon says there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether nobody listens at the address: the socket is missing or refuses.
    pub fn is_dead_socket(&self) -> bool {
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }

    pub(crate) fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}
