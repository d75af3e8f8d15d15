//! How registries are reached. The caller reads environment and options; nothing here does.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result, show};

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is said of who asks.
    pub user_agent: String,
    /// Registries that may be spoken to without TLS, or with a certificate nobody vouches for: `host`, `host:port` or
    /// `address/length`. Loopback addresses always may.
    pub insecure: Vec<String>,
    /// Addresses that are asked before Docker Hub.
    pub mirrors: Vec<String>,
    /// Directories in which `HOST[:PORT]/` holds `*.crt` (authorities), `*.cert` and `*.key` (client certificates).
    pub certificates: Vec<PathBuf>,
    /// Authorities (PEM) to trust beside the system's, whatever the registry.
    pub authorities: Option<Vec<u8>>,
    /// The proxy for `http:`.
    pub http_proxy: Option<String>,
    /// The proxy for `https:`.
    pub https_proxy: Option<String>,
    /// What is reached without a proxy, as in `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// How often something is tried again that may succeed then.
    pub retries: u32,
    /// Time to establish a connection.
    pub connect_timeout: Duration,
    /// Time without a single byte, in either direction, after which a transfer is considered cut.
    pub read_timeout: Duration,
    /// Time to answer after a body was sent whole: a registry may have much to do with it.
    pub answer_timeout: Duration,
    /// Layers of an image that are downloaded at the same time.
    pub downloads: usize,
    /// Layers of an image that are uploaded at the same time.
    pub uploads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            user_agent: concat!("vessel/", env!("CARGO_PKG_VERSION")).to_owned(),
            insecure: Vec::new(),
            mirrors: Vec::new(),
            certificates: vec!["/etc/vessel/certs.d".into(), "/etc/docker/certs.d".into()],
            authorities: None,
            http_proxy: None,
            https_proxy: None,
            no_proxy: None,
            retries: 5,
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(60),
            answer_timeout: Duration::from_secs(300),
            downloads: 3,
            uploads: 5,
        }
    }
}

impl Settings {
    /// Whether a registry (`host[:port]`) may be spoken to in clear.
    pub fn is_insecure(&self, authority: &str) -> bool {
        let (host, _) = split_port(authority);
        let address: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        is_named(&self.insecure, authority)
    }

    /// Whether the values can be used: an error names the one that cannot.
    pub fn check(&self) -> Result<()> {
        for entry in &self.insecure {
            let bare = entry
                .strip_prefix("http://")
                .or_else(|| entry.strip_prefix("https://"))
                .unwrap_or(entry);
            let valid = match bare.split_once('/') {
                Some((network, length)) => network
                    .parse::<IpAddr>()
                    .is_ok_and(|address| within(address, network, length).is_some()),
                None => !bare.is_empty() && !bare.contains(char::is_whitespace),
            };
            if !valid {
                return Err(Error::invalid(format!(
                    "invalid insecure registry {}: registry.example:5000 and 10.0.0.0/8 are some",
                    show(entry.as_bytes())
                )));
            }
        }
        for mirror in &self.mirrors {
            let url = reqwest::Url::parse(mirror).ok().filter(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.query().is_none()
                    && url.username().is_empty()
                    && url.password().is_none()
            });
            if url.is_none() {
                return Err(Error::invalid(format!(
                    "invalid mirror {}: https://mirror.example is one; credentials belong to `login`",
                    show(mirror.as_bytes())
                )));
            }
        }
        Ok(())
    }
}

/// Whether entries as in [`Settings::insecure`] name a registry (`host[:port]`).
pub(super) fn is_named(entries: &[String], authority: &str) -> bool {
    // An address of IPv6 without brackets has colons that lead to no port.
    let address: Option<IpAddr> = authority.parse().ok();
    let (host, _) = match address {
        Some(_) => (authority, None),
        None => split_port(authority),
    };
    let address = address.or_else(|| host.parse().ok());
    entries.iter().any(|entry| {
        let entry = entry
            .strip_prefix("http://")
            .or_else(|| entry.strip_prefix("https://"))
            .unwrap_or(entry);
        match entry.split_once('/') {
            Some((network, length)) => {
                address.is_some_and(|address| within(address, network, length).unwrap_or(false))
            }
            None => entry.eq_ignore_ascii_case(authority) || entry.eq_ignore_ascii_case(host),
        }
    })
}

/// Host and port; brackets of IPv6 addresses come off.
pub(super) fn split_port(authority: &str) -> (&str, Option<&str>) {
    if let Some(rest) = authority.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => (rest, None),
        };
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    }
}

fn within(address: IpAddr, network: &str, length: &str) -> Option<bool> {
    let network: IpAddr = network.parse().ok()?;
    let length: u32 = length.parse().ok()?;
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            Some(address.to_bits() & mask == network.to_bits() & mask)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            Some(address.to_bits() & mask == network.to_bits() & mask)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_spoken_to_in_clear() {
        let settings = Settings {
            insecure: vec![
                "reg.example:5000".into(),
                "10.0.0.0/8".into(),
                "fd00::/16".into(),
                "any.example".into(),
            ],
            ..Settings::default()
        };
        settings.check().unwrap();
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]:5000",
            "reg.example:5000",
            "10.1.2.3:5000",
            "[fd00::1]",
            "any.example:1",
        ] {
            assert!(settings.is_insecure(yes), "{yes}");
        }
        for no in [
            "reg.example",
            "11.0.0.1",
            "docker.io",
            "localhost.example",
            "127.0.0.1.example",
            "[fd01::1]",
        ] {
            assert!(!settings.is_insecure(no), "{no}");
        }
    }

    #[test]
    fn bad_values_are_named() {
        for bad in ["", "10.0.0.0/33", "x/8", "a b"] {
            let settings = Settings {
                insecure: vec![bad.into()],
                ..Settings::default()
            };
            assert!(settings.check().is_err(), "{bad}");
        }
        for bad in ["mirror", "ftp://x", "https://u:p@x"] {
            let settings = Settings {
                mirrors: vec![bad.into()],
                ..Settings::default()
            };
            assert!(settings.check().is_err(), "{bad}");
        }
    }
}
