//! Failures as the host hears of them: a kind and a sentence.

use alloc::format;
use alloc::string::String;

use crate::os::{self, Errno};
use crate::protocol::Failure;

#[derive(Debug)]
pub struct Fault {
    pub kind: Failure,
    pub message: String,
}

pub type Result<T> = core::result::Result<T, Fault>;

impl Fault {
    pub fn new(kind: Failure, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Failure::Invalid, message)
    }
}

/// Says what was tried when the kernel refuses.
pub trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for os::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| {
            let kind = match errno {
                Errno::NOENT | Errno(3) => Failure::NotFound,
                Errno::PERM | Errno::ACCES => Failure::Permission,
                Errno(19 | 38 | 95) => Failure::Unsupported,
                _ => Failure::System,
            };
            Fault::new(kind, format!("{}: {} (error {})", what(), errno.text(), errno.0))
        })
    }
}

/// Bytes as text for a sentence.
pub fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A line on the console, where the monitor's log takes it up.
pub fn report(text: &str) {
    crate::sys::write(2, format!("vessel-init: {text}\n").as_bytes());
}
