//! What was asked and this kernel cannot do.
//!
//! A limit that cannot be had is not an error of this module: an OCI runtime refuses the container ([`refuse`]), Docker
//! goes on with a warning. The caller decides.

use crate::{Error, ErrorKind, Result};

/// A property of [`Resources`](super::Resources) that this kernel has no means for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lack {
    /// Its name in the OCI specification, from `linux.resources` on: `memory.swap`.
    pub property: String,
    /// What is missing.
    pub reason: String,
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "this kernel does not support {}, so it was not applied: {}",
            self.property, self.reason
        )
    }
}

/// Turns lacks into the error an OCI runtime must answer with.
///
/// # Errors
/// When there is any.
pub fn refuse(lacks: &[Lack]) -> Result<()> {
    let Some(first) = lacks.first() else { return Ok(()) };
    let mut message = format!(
        "this kernel does not support linux.resources.{}: {}",
        first.property, first.reason
    );
    if lacks.len() > 1 {
        let others: Vec<&str> = lacks[1..].iter().map(|lack| lack.property.as_str()).collect();
        message.push_str(&format!(" (nor {})", others.join(", ")));
    }
    Err(Error::new(ErrorKind::Unsupported, message))
}

#[derive(Debug, Default)]
pub(super) struct Lacks {
    list: Vec<Lack>,
    /// Why a controller that exists is not there in our cgroup, if that happened.
    pub note: Option<String>,
}

impl Lacks {
    pub fn add(&mut self, property: &str, reason: impl Into<String>) {
        if self.list.iter().any(|lack| lack.property == property) {
            return;
        }
        let mut reason = reason.into();
        if let Some(note) = &self.note {
            reason.push_str("; ");
            reason.push_str(note);
        }
        self.list.push(Lack {
            property: property.to_owned(),
            reason,
        });
    }

    pub fn into_list(self) -> Vec<Lack> {
        self.list
    }
}
