//! Where a daemon is: `unix:///path` or `tcp://host:port`.

use std::fmt;
use std::path::PathBuf;

use crate::tls::Tls;
use crate::{Error, Result};

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`, without encryption.
    Tcp(String),
    /// `host:port`, over TLS.
    Tls(String, Tls),
}

impl Host {
    /// Reads an address as `DOCKER_HOST` and `-H` have it.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::Host {
            host: text.to_string(),
            reason: reason.to_string(),
        };
        let trimmed = text.trim();
        let Some((scheme, rest)) = trimmed.split_once("://") else {
            if trimmed.starts_with('/') {
                return Ok(Self::Unix(PathBuf::from(trimmed)));
            }
            return Err(wrong(
                "it has to look like unix:///path/to/socket or tcp://host:port",
            ));
        };
        match scheme {
            "unix" => {
                if rest.is_empty() {
                    return Err(wrong("the path of the socket is missing"));
                }
                Ok(Self::Unix(PathBuf::from(rest)))
            }
            "tcp" | "http" => {
                let address = rest.trim_end_matches('/');
                if address.is_empty() || address.contains(['/', '\r', '\n', ' ']) {
                    return Err(wrong("host and port are expected after tcp://"));
                }
                let has_port = match address.rsplit_once(':') {
                    Some((host, port)) => {
                        (!host.contains(':') || host.ends_with(']')) && port.parse::<u16>().is_ok()
                    }
                    None => false,
                };
                Ok(Self::Tcp(if has_port {
                    address.to_string()
                } else {
                    format!("{address}:2375")
                }))
            }
            "ssh" | "https" | "npipe" | "fd" => Err(wrong(&format!(
                "{scheme}:// is not supported; use unix:// or tcp://"
            ))),
            _ => Err(wrong("the scheme has to be unix or tcp")),
        }
    }

    /// The value of the `Host` header.
    pub(crate) fn header(&self) -> &str {
        match self {
            Self::Unix(_) => "docker",
            Self::Tcp(address) | Self::Tls(address, _) => address,
        }
    }

    /// The same daemon, over TLS when it is reached by TCP.
    pub fn with_tls(self, tls: Tls) -> Self {
        match self {
            Self::Tcp(address) => Self::Tls(address, tls),
            other => other,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) | Self::Tls(address, _) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(Host::parse("unix:///a/b").unwrap(), Host::Unix("/a/b".into()));
        assert_eq!(Host::parse("/a/b").unwrap(), Host::Unix("/a/b".into()));
        assert_eq!(Host::parse("tcp://h:1").unwrap(), Host::Tcp("h:1".into()));
        assert_eq!(Host::parse("tcp://h").unwrap(), Host::Tcp("h:2375".into()));
        assert_eq!(
            Host::parse("tcp://[::1]:80").unwrap(),
            Host::Tcp("[::1]:80".into())
        );
        assert_eq!(
            Host::parse("tcp://[::1]").unwrap(),
            Host::Tcp("[::1]:2375".into())
        );
        for wrong in ["", "h:1", "unix://", "tcp://", "ssh://h", "x://y", "tcp://a/b"] {
            assert!(Host::parse(wrong).is_err(), "{wrong}");
        }
    }
}
