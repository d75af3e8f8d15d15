//! `/etc/hosts` (hosts(5)) and `/etc/hostname` (hostname(5)).

use std::fmt::Write;
use std::net::IpAddr;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// The word of `--add-host NAME:host-gateway` that stands for the host's address.
const HOST_GATEWAY: &str = "host-gateway";
const MAX_NAME: usize = 253;

/// What a hosts file is made of.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// The container's own address and the names it has there, its hostname first.
    pub own: Vec<(IpAddr, Vec<String>)>,
    /// Further entries, as `NAME:ADDRESS` or `NAME=ADDRESS`, where the address may be `host-gateway`.
    pub extra: Vec<String>,
    /// What `host-gateway` stands for: the bridge's address.
    pub host_gateway: Option<IpAddr>,
}

impl Hosts {
    /// The text of `/etc/hosts`: the local names of IPv4 and IPv6 as Docker writes them, the extra entries, the own address.
    pub fn render(&self) -> Result<String> {
        let mut text = String::from(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
        );
        for entry in &self.extra {
            let (name, address) = self.parse_extra(entry)?;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{address}\t{name}");
        }
        for (address, names) in &self.own {
            for name in names {
                check_hostname(name)?;
            }
            let _ = writeln!(text, "{address}\t{}", names.join(" "));
        }
        Ok(text)
    }

    fn parse_extra<'a>(&self, entry: &'a str) -> Result<(&'a str, IpAddr)> {
        let bad = || {
            Error::invalid(format!(
                "`{}` is not a host entry; write it as NAME:ADDRESS",
                entry.escape_debug()
            ))
        };
        // With `=` the address may be an IPv6 one without ambiguity; with `:` the name ends at the first.
        let (name, address) = entry
            .split_once('=')
            .or_else(|| entry.split_once(':'))
            .ok_or_else(bad)?;
        check_hostname(name)?;
        if address == HOST_GATEWAY {
            let gateway = self.host_gateway.ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, format!("`{entry}` needs the address of a bridge, and this network has none; write the address itself"))
            })?;
            return Ok((name, gateway));
        }
        let address = address
            .strip_prefix('[')
            .and_then(|a| a.strip_suffix(']'))
            .unwrap_or(address);
        Ok((name, IpAddr::from_str(address).map_err(|_| bad())?))
    }
}

/// The text of `/etc/hostname`.
pub fn hostname(name: &str) -> Result<String> {
    check_hostname(name)?;
    Ok(format!("{name}\n"))
}

/// Nothing that ends a line or a word of the file, nothing longer than a DNS name.
fn check_hostname(name: &str) -> Result<()> {
    let ok = (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with(['-', '.']);
    if ok {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "`{}` is not a host name; use letters, digits, `-`, `_` and `.`, at most {MAX_NAME}",
        name.escape_debug()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_docker_writes_it() {
        let hosts = Hosts {
            own: vec![("172.17.0.2".parse().unwrap(), vec!["web".into()])],
            extra: vec![
                "db:10.0.0.5".into(),
                "six=fd00::1".into(),
                "six2:[fd00::2]".into(),
                "seven:::1".into(),
                "host.docker.internal:host-gateway".into(),
            ],
            host_gateway: Some("172.17.0.1".parse().unwrap()),
        };
        let text = hosts.render().unwrap();
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"));
        assert!(text.ends_with("10.0.0.5\tdb\nfd00::1\tsix\nfd00::2\tsix2\n::1\tseven\n172.17.0.1\thost.docker.internal\n172.17.0.2\tweb\n"), "{text}");
        assert_eq!(hostname("web").unwrap(), "web\n");
    }

    #[test]
    fn bad_entries() {
        for bad in [
            "",
            "x",
            "x:",
            ":1.2.3.4",
            "a b:1.2.3.4",
            "x:1.2.3",
            "x:host-gateway",
            "a\nb:1.2.3.4",
            "-x:1.2.3.4",
        ] {
            let hosts = Hosts {
                extra: vec![bad.into()],
                ..Hosts::default()
            };
            assert!(hosts.render().is_err(), "{bad:?}");
        }
        assert!(hostname("a\nb").is_err());
        assert!(hostname(&"a".repeat(254)).is_err());
    }

    proptest! {
        /// No entry, however odd, adds more than its own line.
        #[test]
        fn one_entry_is_one_line(entry in ".{0,80}") {
            let empty = Hosts::default().render().unwrap().lines().count();
            if let Ok(text) = (Hosts { extra: vec![entry], ..Hosts::default() }).render() {
                prop_assert_eq!(text.lines().count(), empty + 1);
                prop_assert!(text.is_ascii());
            }
        }
    }
}
