//! Namespace modes as users write them.

use crate::{Error, Result};

/// `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkMode {
    /// The default bridge.
    Bridge,
    /// The host's namespace.
    Host,
    /// Only loopback.
    None,
    /// Another container's, by name or ID.
    Container(String),
    /// A network that a user has made, by name. Whether it exists is seen when a container is started.
    Named(String),
}

impl NetworkMode {
    /// Reads it.
    ///
    /// # Errors
    /// A container without a name.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "default" | "bridge" => Ok(Self::Bridge),
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            other => match other.strip_prefix("container:") {
                Some("") => Err(Error::invalid(
                    "invalid network mode: container: needs a container's name",
                )),
                Some(name) => Ok(Self::Container(name.to_owned())),
                None => Ok(Self::Named(other.to_owned())),
            },
        }
    }

    /// The name of the network the container is in, as `inspect` shows it; none when it is another's.
    pub fn network_name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Bridge => Some("bridge"),
            Self::Host => Some("host"),
            Self::None => Some("none"),
            Self::Container(_) => None,
        }
    }
}

/// `--pid`, `--uts`, `--userns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespace {
    /// One of its own.
    Private,
    /// The host's.
    Host,
    /// Another container's, by name or ID.
    Container(String),
}

impl Namespace {
    /// Reads it; `what` is for the message.
    ///
    /// # Errors
    /// Anything that is not a mode.
    pub fn parse(what: &str, text: &str) -> Result<Self> {
        match text {
            "" | "private" => Ok(Self::Private),
            "host" => Ok(Self::Host),
            other => match other.strip_prefix("container:") {
                Some(name) if !name.is_empty() && what == "PID" => Ok(Self::Container(name.to_owned())),
                _ => Err(Error::invalid(format!("{what}: invalid {what} mode: {other}"))),
            },
        }
    }
}

/// `--ipc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ipc {
    /// One of its own.
    Private,
    /// One of its own that others may join.
    Shareable,
    /// One of its own without `/dev/shm`.
    None,
    /// The host's.
    Host,
    /// Another container's, by name or ID.
    Container(String),
}

impl Ipc {
    /// Reads it.
    ///
    /// # Errors
    /// Anything that is not a mode.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "private" => Ok(Self::Private),
            "shareable" => Ok(Self::Shareable),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            other => match other.strip_prefix("container:") {
                Some(name) if !name.is_empty() => Ok(Self::Container(name.to_owned())),
                _ => Err(Error::invalid(format!("IPC: invalid IPC mode: {other}"))),
            },
        }
    }
}
