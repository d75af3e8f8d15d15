//! What goes wrong: for a client ([`ApiError`], a status and a sentence) and for the daemon itself ([`Error`]).

use hyper::StatusCode;
use vessel_engine::{Error as EngineError, ErrorKind};

/// A refused request: the status and the sentence of `{"message": ...}`.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    /// An answer with `status`.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// 400: the caller's mistake.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404 for a path that leads nowhere.
    pub fn page_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "page not found")
    }

    /// 501: what this version does not have.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 500: the system refused.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let status = match error.kind() {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Invalid | ErrorKind::CommandNotFound | ErrorKind::CommandNotExecutable => {
                StatusCode::BAD_REQUEST
            }
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorKind::NotModified => StatusCode::NOT_MODIFIED,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::System => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.message())
    }
}

/// Why the daemon does not start or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of the configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// A socket cannot be had.
    #[error("cannot listen on {address}: {source}; {advice}")]
    Listen {
        /// The socket.
        address: String,
        /// What the system says.
        source: std::io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Somebody answers on the socket already.
    #[error("another daemon already answers on {0}: stop it first, or choose another socket with --socket")]
    InUse(String),
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The engine does not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
