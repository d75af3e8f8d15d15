//! `/etc/resolv.conf` (resolv.conf(5)).

use std::fmt::Write;
use std::net::IpAddr;

use crate::error::{Error, Result};

/// Where systemd-resolved keeps the real name servers when the host's own file names only its stub on loopback.
pub const UPSTREAM_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// Docker's last resort.
const PUBLIC: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 4, 4)),
];

/// More than any resolver looks at; a longer file is cut, not refused.
const MAX_TEXT: usize = 64 * 1024;
const MAX_LINES: usize = 1000;
/// glibc's limit on one word, generously.
const MAX_WORD: usize = 256;

/// A resolver's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers; an IPv6 one may have a zone.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads what is understood and skips the rest, as resolvers do.
    pub fn parse(text: &str) -> Self {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut conf = Self::default();
        for line in text[..end].lines().take(MAX_LINES) {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line
                .split_ascii_whitespace()
                .filter(|w| w.len() <= MAX_WORD && is_word(w));
            match words.next() {
                Some("nameserver") => conf
                    .nameservers
                    .extend(words.next().filter(|w| address(w).is_some()).map(str::to_owned)),
                // The last one counts.
                Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// The text of the file.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for server in &self.nameservers {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "nameserver {server}");
        }
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }

    /// Replaces what the user gave: `--dns`, `--dns-search` (a lone `.` means none), `--dns-option`.
    pub fn override_with(&mut self, servers: &[String], search: &[String], options: &[String]) -> Result<()> {
        for server in servers {
            if address(server).is_none() {
                return Err(Error::invalid(format!(
                    "`{}` is not the address of a name server",
                    server.escape_debug()
                )));
            }
        }
        for word in search.iter().chain(options) {
            if word.is_empty() || word.len() > MAX_WORD || !is_word(word) || word.contains(['#', ';']) {
                return Err(Error::invalid(format!(
                    "`{}` cannot be used in resolv.conf: it must be one word",
                    word.escape_debug()
                )));
            }
        }
        if !servers.is_empty() {
            self.nameservers = servers.to_vec();
        }
        if !search.is_empty() {
            self.search = search.iter().filter(|s| *s != ".").cloned().collect();
        }
        if !options.is_empty() {
            self.options = options.to_vec();
        }
        Ok(())
    }

    fn drop_loopback(&mut self) {
        self.nameservers
            .retain(|s| address(s).is_some_and(|a| !a.to_canonical().is_loopback()));
    }
}

/// The configuration for an endpoint with a network of its own, from the host's `/etc/resolv.conf` and, when that names
/// nothing but servers on loopback, from the file at [`UPSTREAM_RESOLV_CONF`]; when neither names a server that the
/// endpoint can reach, Google's public ones, as with Docker.
///
/// An endpoint on the host's own network uses [`ResolvConf::parse`] alone.
pub fn for_endpoint(host: &str, upstream: Option<&str>) -> ResolvConf {
    let mut conf = ResolvConf::parse(host);
    conf.drop_loopback();
    if conf.nameservers.is_empty()
        && let Some(upstream) = upstream.map(ResolvConf::parse)
    {
        conf.nameservers = upstream.nameservers;
        conf.drop_loopback();
        if conf.search.is_empty() {
            conf.search = upstream.search;
        }
    }
    if conf.nameservers.is_empty() {
        conf.nameservers = PUBLIC.iter().map(IpAddr::to_string).collect();
    }
    conf
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

fn address(server: &str) -> Option<IpAddr> {
    let (address, zone) = server
        .split_once('%')
        .map_or((server, None), |(a, z)| (a, Some(z)));
    let address: IpAddr = address.parse().ok()?;
    match zone {
        None => Some(address),
        Some(zone) => (address.is_ipv6()
            && !zone.is_empty()
            && zone
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
        .then_some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn loopback_servers_are_of_no_use_in_another_namespace() {
        let host = "# made by hand\nnameserver 127.0.0.53 ; stub\nnameserver ::1\noptions edns0 trust-ad\nsearch example.org\n";
        assert_eq!(ResolvConf::parse(host).nameservers, ["127.0.0.53", "::1"]);
        let conf = for_endpoint(
            host,
            Some("nameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch other.example\n"),
        );
        assert_eq!(
            conf.render(),
            "nameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch example.org\noptions edns0 trust-ad\n"
        );
        assert_eq!(for_endpoint(host, None).nameservers, ["8.8.8.8", "8.8.4.4"]);
        assert_eq!(
            for_endpoint("nameserver ::ffff:127.0.0.1", Some("nameserver 127.0.0.1")).nameservers,
            ["8.8.8.8", "8.8.4.4"]
        );
        assert_eq!(
            for_endpoint("nameserver 10.0.0.1\nnameserver 127.0.0.1", None).nameservers,
            ["10.0.0.1"]
        );
    }

    #[test]
    fn what_the_user_gives_replaces() {
        let mut conf = for_endpoint("nameserver 10.0.0.1\nsearch a b\n", None);
        conf.override_with(&["1.1.1.1".into()], &[".".into()], &["ndots:2".into()])
            .unwrap();
        assert_eq!(conf.render(), "nameserver 1.1.1.1\noptions ndots:2\n");
        assert!(conf.override_with(&["one.one".into()], &[], &[]).is_err());
        assert!(
            conf.override_with(&[], &["a\nnameserver 6.6.6.6".into()], &[])
                .is_err()
        );
        assert!(conf.override_with(&[], &[], &["".into()]).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived_and_rendering_is_stable(text in "(?s).{0,300}") {
            let once = ResolvConf::parse(&text);
            prop_assert_eq!(&ResolvConf::parse(&once.render()), &once);
            prop_assert!(!for_endpoint(&text, Some(&text)).nameservers.is_empty());
        }

        #[test]
        fn lines_of_the_right_kind_survive_a_round(lines in proptest::collection::vec("(nameserver|search|domain|options|x)( [!-~]{1,12}){0,4}", 0..12)) {
            let once = ResolvConf::parse(&lines.join("\n"));
            prop_assert_eq!(ResolvConf::parse(&once.render()), once);
        }
    }
}
