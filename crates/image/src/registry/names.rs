//! Names to addresses, as resolv.conf(5) says: by `/etc/hosts` and the name servers of `/etc/resolv.conf`, which is read
//! again when it changes. Where it is missing or names none, the server of this machine is asked, and nobody else's.
//!
//! A [`Names`] with a guard gives only addresses that anybody could reach: see [`Guard`].

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::settings::is_named;

/// What files say is believed until one of them changes.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Resolves names; clones share what is known.
#[derive(Debug, Clone)]
pub(super) struct Names {
    shared: Arc<Shared>,
    guard: Option<Arc<Guard>>,
}

#[derive(Debug)]
struct Shared {
    /// `resolv.conf` and `hosts`.
    files: [PathBuf; 2],
    state: Mutex<Option<(Stamp, TokioResolver)>>,
}

/// Inode, time and size of each file; none where there is no file.
type Stamp = [Option<(u64, i64, i64, u64)>; 2];

impl Default for Names {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                files: FILES.map(PathBuf::from),
                state: Mutex::default(),
            }),
            guard: None,
        }
    }
}

impl Names {
    /// The same, of which only what a guard lets through is given.
    pub(super) fn guarded(&self, guard: Guard) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            guard: Some(Arc::new(guard)),
        }
    }
}

impl Shared {
    fn stamp(&self) -> Stamp {
        self.files.each_ref().map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
        })
    }

    fn resolver(&self) -> Result<TokioResolver, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.stamp();
        if let Some((known, resolver)) = &*state
            && *known == stamp
        {
            return Ok(resolver.clone());
        }
        let (config, options) = configuration(&self.files[0]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let resolver = builder.build()?;
        *state = Some((stamp, resolver.clone()));
        Ok(resolver)
    }
}

/// Name servers and options of a `resolv.conf`.
fn configuration(path: &Path) -> (ResolverConfig, ResolverOpts) {
    let local = || {
        let server = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        (config, ResolverOpts::default())
    };
    let raw = match fs::read(path) {
        Ok(raw) => raw,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no name servers are configured: this machine's own is asked");
            return local();
        }
    };
    parse_resolv_conf(raw).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "no name servers are configured: this machine's own is asked");
        local()
    })
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let resolver = names.shared.resolver()?;
            let found = resolver.lookup_ip(name.as_str()).await?;
            let mut addresses: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            if let Some(guard) = &names.guard
                && !guard.names(name.as_str())
            {
                addresses.retain(|address| guard.allows_address(address.ip()));
                if addresses.is_empty() {
                    return Err(Forbidden(name.as_str().to_owned()).into());
                }
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Keeps what somebody else wrote down, such as the address of a foreign layer, from making this machine ask where its
/// author could not: itself, its networks, a cloud's metadata service. What its owner named may be asked.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Proxies, without ports: they are gone through, and no target.
    pub(super) hosts: Vec<String>,
    /// As in [`super::Settings::insecure`].
    pub(super) insecure: Vec<String>,
}

impl Guard {
    fn is_host(&self, host: &str) -> bool {
        // As addresses have them, those of IPv6 are in brackets.
        let known = |known: &String| {
            let known = known.trim_start_matches('[').trim_end_matches(']');
            known.trim_end_matches('.').eq_ignore_ascii_case(host)
        };
        self.hosts.iter().any(known)
    }

    /// Whether a name may stand for any address: those of proxies are resolved on the way to somebody else.
    fn names(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        self.is_host(host) || is_named(&self.insecure, host)
    }

    fn allows_address(&self, address: IpAddr) -> bool {
        is_public(address) || is_named(&self.insecure, &address.to_string())
    }

    /// Whether a host may be asked, as far as can be told before its name is resolved. Of `hosts` only what is on the way.
    pub(super) fn allows(&self, host: &str) -> bool {
        let bare = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .trim_end_matches('.')
            .to_ascii_lowercase();
        if is_named(&self.insecure, &bare) {
            return true;
        }
        match bare.parse::<IpAddr>() {
            _ if self.is_host(&bare) => false,
            Ok(address) => is_public(address),
            Err(_) => bare != "localhost" && !bare.ends_with(".localhost"),
        }
    }
}

/// A host that somebody else may not make this machine ask.
#[derive(Debug)]
pub(super) struct Forbidden(pub(super) String);

impl std::fmt::Display for Forbidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} is no public address, and an image may not make this machine ask there; if it should, name the host with --insecure-registry",
            self.0
        )
    }
}

impl std::error::Error for Forbidden {}

/// Whether an address is one of the internet at large (IANA's special-purpose registries, RFC 6890).
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a >= 240
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        // Between a provider and its customers; some clouds have their metadata service there.
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, documentation, and what is not global unicast.
        [0x2001, 0, ..] | [0x2001, 0xdb8, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_name_servers_nobody_elses_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let servers = |path: &Path| -> Vec<IpAddr> {
            configuration(path)
                .0
                .name_servers()
                .iter()
                .map(|server| server.ip)
                .collect()
        };
        let local = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        assert_eq!(servers(&path), local, "no file");
        for content in ["", "search example.com\n", "\u{0}nonsense"] {
            fs::write(&path, content).unwrap();
            assert_eq!(servers(&path), local, "{content:?}");
        }
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(servers(&path), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }

    #[tokio::test]
    async fn changed_files_count_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["resolv.conf", "hosts"].map(|name| directory.path().join(name));
        let shared = Shared {
            files: files.clone(),
            state: Mutex::default(),
        };
        let servers = || {
            let _resolver = shared.resolver().unwrap();
            shared.state.lock().unwrap().as_ref().map(|(stamp, _)| *stamp)
        };
        let before = servers();
        assert_eq!(servers(), before);
        fs::write(&files[0], "nameserver 192.0.2.1\n").unwrap();
        assert_ne!(servers(), before);
    }

    #[tokio::test]
    async fn names_of_inner_addresses_are_not_given() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["resolv.conf", "hosts"].map(|name| directory.path().join(name));
        let (config, mut options) = configuration(&files[0]);
        options.ip_strategy = LookupIpStrategy::Ipv4Only;
        let mut hosts = hickory_resolver::Hosts::default();
        hosts
            .read_hosts_conf(
                &b"10.0.0.1 inner.example\n10.0.0.2 proxy.example\n10.0.0.3 named.example\n9.9.9.9 outer.example\n"[..],
            )
            .unwrap();
        let mut resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .unwrap();
        resolver.set_hosts(Arc::new(hosts));
        let names = Names {
            shared: Arc::new(Shared {
                files,
                state: Mutex::new(Some((Stamp::default(), resolver))),
            }),
            guard: None,
        };
        let guarded = names.guarded(Guard {
            hosts: vec!["proxy.example".into()],
            insecure: vec!["named.example".into()],
        });
        let ask = async |names: &Names, name: &str| -> Result<Vec<IpAddr>, Failure> {
            let found = names.resolve(name.parse().unwrap()).await?;
            Ok(found.map(|address| address.ip()).collect())
        };
        for (name, address, given) in [
            ("inner.example", "10.0.0.1", false),
            ("proxy.example", "10.0.0.2", true),
            ("named.example", "10.0.0.3", true),
            ("outer.example", "9.9.9.9", true),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(ask(&names, name).await.unwrap(), [address], "{name}");
            match ask(&guarded, name).await {
                Ok(found) => assert!(given && found == [address], "{name}: {found:?}"),
                Err(error) => assert!(!given && error.is::<Forbidden>(), "{name}: {error}"),
            }
        }
    }

    #[test]
    fn addresses_that_anybody_can_reach() {
        for public in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "127.0.0.1",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:0:1::",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn hosts_that_were_named_may_be_asked() {
        let guard = Guard {
            hosts: ["inside.example", "10.0.0.5", "9.9.9.9", "[2606:4700::2222]"]
                .map(String::from)
                .to_vec(),
            insecure: vec!["named.example".into(), "192.168.7.0/24".into()],
        };
        for yes in [
            "192.168.7.9",
            "named.example",
            "NAMED.example.",
            "outside.example",
            "1.1.1.1",
            "[2606:4700::1111]",
        ] {
            assert!(guard.allows(yes), "{yes}");
        }
        for no in [
            "192.168.8.9",
            "10.0.0.6",
            // Proxies.
            "10.0.0.5",
            "9.9.9.9",
            "inside.example",
            "INSIDE.example.",
            "[2606:4700::2222]",
            "[::1]",
            "localhost",
            "LocalHost.",
            "[::ffff:10.0.0.6]",
        ] {
            assert!(!guard.allows(no), "{no}");
        }
    }
}
