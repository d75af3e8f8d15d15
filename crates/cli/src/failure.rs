//! How a command fails: an exit code, and one sentence for the user.

use std::fmt;
use std::io;

/// Why a command ends with another code than 0.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: i32,
    /// What to tell; nothing when the code says it all, as a container's does.
    pub message: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What a command returns.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// An ordinary failure, code 1.
    pub fn new(message: impl fmt::Display) -> Self {
        Self {
            code: 1,
            message: Some(message.to_string()),
            hint: None,
        }
    }

    /// Wrong use of the command line, code 125.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(message).with_code(125)
    }

    /// A code without words.
    pub fn silent(code: i32) -> Self {
        Self {
            code,
            message: None,
            hint: None,
        }
    }

    /// The same with another code.
    #[must_use]
    pub fn with_code(mut self, code: i32) -> Self {
        self.code = code;
        self
    }

    /// The same with advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// An operating system's error in words, without its number.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let cut = text.find(" (os error").unwrap_or(text.len());
    let mut words = text[..cut].to_string();
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    words
}

impl From<vessel_client::Error> for Failure {
    fn from(error: vessel_client::Error) -> Self {
        let failure = Self::new(&error);
        match &error {
            vessel_client::Error::Connect { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    failure.with_hint("run it as root, or join the group that owns the socket")
                }
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    failure.with_hint("is the daemon running, and are --host and DOCKER_HOST right?")
                }
                _ => failure,
            },
            _ => failure,
        }
    }
}

/// Standard output failed. When its reader went away there is nobody to tell.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(141);
        }
        Self::new(format!("input or output failed: {}", words(&error)))
    }
}
