//! `vessel daemon`

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv6Net;
use tracing_subscriber::EnvFilter;
use vessel_daemon::{Config, Listen, PageConfig, TlsFiles};
use vessel_engine::{BinConfig, BridgeV6, DEFAULT_CDI_DIRS, DEFAULT_PLUGIN_DIRS, EngineConfig, IdRange};

use crate::app::Run;
use crate::context::{Context, Places};
use crate::failure::{Failure, Result};
use crate::options::registries::RegistryOptions;
use crate::output;
use crate::output::units::{parse_duration, parse_size};

/// Run the daemon in the foreground
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of images, containers and volumes
    #[arg(long, value_name = "dir")]
    root: Option<PathBuf>,
    /// Directory of sockets and all else that does not survive a reboot
    #[arg(long, value_name = "dir")]
    run: Option<PathBuf>,
    /// Where to listen, several times: unix:///PATH, tcp://ADDRESS:PORT, or fd:// for sockets that systemd passes
    #[arg(short = 'H', long, visible_alias = "host", value_name = "list")]
    socket: Vec<String>,
    /// Use TLS on TCP ports; --tlsverify does, too
    #[arg(long)]
    tls: bool,
    /// Use TLS on TCP ports, and admit clients only with a certificate of --tlscacert
    #[arg(long)]
    tlsverify: bool,
    /// Authority of the clients' certificates
    #[arg(long, value_name = "file", default_value = "/etc/vessel/ca.pem")]
    tlscacert: PathBuf,
    /// Certificate of TCP ports
    #[arg(long, value_name = "file", default_value = "/etc/vessel/cert.pem")]
    tlscert: PathBuf,
    /// Its key
    #[arg(long, value_name = "file", default_value = "/etc/vessel/key.pem")]
    tlskey: PathBuf,
    /// Group that may use the Unix socket
    #[arg(long, value_name = "string", default_value = "vessel")]
    group: String,
    /// Name of the default bridge; none: containers have loopback only
    #[arg(long, value_name = "string", default_value = "vessel0")]
    bridge: String,
    /// The default bridge's address and the length of its prefix
    #[arg(long, visible_alias = "bip", value_name = "ADDRESS/LENGTH", value_parser = bridge_address)]
    subnet: Option<(Ipv4Addr, u8)>,
    /// Give the default bridge IPv6
    #[arg(long)]
    ipv6: bool,
    /// The default bridge's subnet of IPv6; without it one is chosen
    #[arg(long, value_name = "ADDRESS/LENGTH", requires = "ipv6", value_parser = subnet_v6)]
    fixed_cidr_v6: Option<Ipv6Net>,
    /// Who decides about published ports: open (they are reached from everywhere), or input (the host's own firewall rules
    /// for what comes in)
    #[arg(long, value_name = "string", default_value = "open", value_parser = ["open", "input"])]
    published_ports: String,
    /// Parent of the containers' cgroups
    #[arg(long, value_name = "string", default_value = "/vessel")]
    cgroup_parent: String,
    /// Range of user and group IDs that containers are mapped to
    #[arg(long, value_name = "FIRST:COUNT", value_parser = id_range)]
    userns_remap: Option<(u32, u32)>,
    /// Name servers of containers
    #[arg(long, value_name = "list")]
    dns: Vec<IpAddr>,
    /// Run an init in every container
    #[arg(long)]
    init: bool,
    /// Serve a page for browsers: ADDRESS:PORT with a token that is printed at the start, or unix:///PATH without one
    #[arg(long, value_name = "address", value_parser = page_address)]
    page: Option<PageAddress>,
    /// Bytes of what users removed that are kept for `vessel undo`; auto: a tenth of the file system, 10 GB at most; off: none
    #[arg(long, env = "VESSEL_BIN", value_name = "bytes|auto|off", default_value = "auto", value_parser = bin_size)]
    bin: BinSize,
    /// How long it is kept at most
    #[arg(long, value_name = "duration", default_value = "24h", value_parser = age)]
    bin_age: std::time::Duration,
    /// Bytes that the log of operations may have; off: there is none
    #[arg(long, value_name = "bytes|off", default_value = "16m", value_parser = size_or_off)]
    operation_log: u64,
    #[command(flatten)]
    registries: RegistryOptions,
    /// Directories with specifications of devices (CDI); later ones come before earlier ones
    #[arg(long, value_name = "dir", default_values = DEFAULT_CDI_DIRS)]
    cdi_spec_dir: Vec<PathBuf>,
    /// Directories with sockets and addresses of volume plug-ins
    #[arg(long, value_name = "dir", default_values = DEFAULT_PLUGIN_DIRS)]
    plugin_dir: Vec<PathBuf>,
    /// What to log: error, warn, info, debug or trace
    #[arg(short, long, value_name = "string", default_value = "info")]
    log_level: String,
}

impl Run for Args {
    fn run(self, _context: &Context) -> Result {
        let filter = EnvFilter::try_new(&self.log_level)
            .map_err(|_| Failure::usage(format!("there is no log level \"{}\"", self.log_level)))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
        let places = Places::from_environment();
        let run = self.run.unwrap_or(places.run);
        let mut listen = Vec::new();
        for socket in &self.socket {
            match socket.as_str() {
                // Their descriptors can be owned once.
                "fd://" if listen.iter().any(|listen| matches!(listen, Listen::Inherited(_))) => {
                    return Err(Failure::usage("fd:// was given twice")
                        .with_hint("one -H fd:// takes all sockets that were passed"));
                }
                "fd://" => listen.extend(passed_sockets()?),
                socket => listen.push(listen_at(socket)?),
            }
        }
        if listen.is_empty() {
            listen.push(Listen::Unix(run.join("vessel.sock")));
        }
        let tls = (self.tls || self.tlsverify).then(|| TlsFiles {
            certificate: self.tlscert,
            key: self.tlskey,
            clients: self.tlsverify.then_some(self.tlscacert),
        });
        let engine = EngineConfig {
            root: self.root.unwrap_or(places.root),
            run,
            bridge: self.bridge,
            bridge_address: self.subnet,
            bridge_v6: self.ipv6.then_some(BridgeV6 {
                subnet: self.fixed_cidr_v6,
            }),
            ports_behind_input: self.published_ports == "input",
            cgroup_parent: self.cgroup_parent,
            userns_remap: self.userns_remap.map(|(start, size)| IdRange { start, size }),
            dns: self.dns,
            init: self.init,
            trust: self.registries.trust()?,
            bin: match self.bin {
                BinSize::Off => None,
                BinSize::Auto => Some(BinConfig {
                    size: None,
                    age: self.bin_age,
                }),
                BinSize::Bytes(size) => Some(BinConfig {
                    size: Some(size),
                    age: self.bin_age,
                }),
            },
            registries: self.registries.settings(),
            cdi_spec_dirs: self.cdi_spec_dir,
            plugin_dirs: self.plugin_dir,
        };
        let secure = tls.is_some();
        let page = match self.page {
            None => None,
            Some(PageAddress::Unix(path)) => Some((Listen::Unix(path), None)),
            Some(PageAddress::Tcp(address)) => {
                let token = vessel_daemon::page::token()
                    .map_err(|error| Failure::new(format!("the page's token cannot be made: {error}")))?;
                Some((Listen::Tcp(address), Some(token)))
            }
        };
        let token = page.as_ref().and_then(|(_, token)| token.clone());
        let config = Config {
            engine,
            listen,
            tls,
            group: self.group,
            operation_log: self.operation_log,
            page: page.map(|(listen, token)| PageConfig { listen, token }),
        };
        let runtime = vessel_daemon::runtime().map_err(|error| {
            Failure::new(format!("cannot start threads: {}", crate::failure::words(&error)))
        })?;
        runtime
            .block_on(vessel_daemon::serve(config, |page| {
                if let (Some(address), Some(token)) = (page, token) {
                    let scheme = if secure { "https" } else { "http" };
                    output::warn(&format!("The page: {scheme}://{address}/#token={token}"));
                }
            }))
            .map_err(Failure::new)
    }
}

/// The sockets that were passed by socket activation (sd_listen_fds(3)): descriptors from 3 on.
fn passed_sockets() -> Result<Vec<Listen>> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        text.parse::<u32>().ok()
    };
    let none = || {
        Failure::usage("no sockets were passed for fd://")
            .with_hint("start the daemon by a systemd socket unit, or name a socket with -H unix:///PATH")
    };
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count @ 1..=64)) if pid == std::process::id() => count,
        _ => return Err(none()),
    };
    let mut sockets = Vec::new();
    for fd in 3..3 + count {
        let fd = i32::try_from(fd).map_err(|_| none())?;
        // SAFETY: fcntl takes a number; one that is no open descriptor is refused.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(none());
        }
        // SAFETY: the descriptor is open, was passed to this process to be its own, and is taken once: what opened before
        // this took the lowest free numbers, which these are not.
        let socket = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        sockets.push(Listen::Inherited(socket));
    }
    Ok(sockets)
}

fn listen_at(socket: &str) -> Result<Listen> {
    let wrong = || {
        Failure::usage(format!("cannot listen at \"{socket}\""))
            .with_hint("an address looks like unix:///PATH or tcp://127.0.0.1:PORT")
    };
    if socket.starts_with('/') {
        return Ok(Listen::Unix(socket.into()));
    }
    match socket.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(Listen::Unix(path.into())),
        Some(("tcp", address)) => Ok(Listen::Tcp(address.parse::<SocketAddr>().map_err(|_| wrong())?)),
        _ => Err(wrong()),
    }
}

fn subnet_v6(text: &str) -> std::result::Result<Ipv6Net, String> {
    let net = text
        .parse::<Ipv6Net>()
        .ok()
        .filter(|net| (8..=120).contains(&net.prefix_len()));
    net.map(|net| net.trunc())
        .ok_or_else(|| format!("'{text}' does not look like 2001:db8:1::/64"))
}

fn bridge_address(text: &str) -> std::result::Result<(Ipv4Addr, u8), String> {
    let wrong = || format!("'{text}' does not look like 172.30.0.1/16");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let length = length
        .parse()
        .ok()
        .filter(|length| (1..=30).contains(length))
        .ok_or_else(wrong)?;
    Ok((address.parse().map_err(|_| wrong())?, length))
}

/// What `--page` says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PageAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

fn page_address(text: &str) -> std::result::Result<PageAddress, String> {
    if let Some(path) = text
        .strip_prefix("unix://")
        .or(text.starts_with('/').then_some(text))
    {
        return Ok(PageAddress::Unix(path.into()));
    }
    let address = text.strip_prefix("tcp://").unwrap_or(text);
    address
        .parse()
        .map(PageAddress::Tcp)
        .map_err(|_| format!("'{text}' looks neither like 127.0.0.1:8080 nor like unix:///PATH"))
}

/// What `--bin` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BinSize {
    Auto,
    Off,
    Bytes(u64),
}

fn bin_size(text: &str) -> std::result::Result<BinSize, String> {
    match text {
        // Empty: a variable that is set to nothing says nothing.
        "auto" | "on" | "" => Ok(BinSize::Auto),
        "off" => Ok(BinSize::Off),
        text => parse_size(text)
            .ok()
            .and_then(|size| u64::try_from(size).ok())
            .map(BinSize::Bytes)
            .ok_or_else(|| format!("'{text}' is neither auto, off nor a size")),
    }
}

fn age(text: &str) -> std::result::Result<std::time::Duration, String> {
    let nanos = parse_duration(text)?;
    u64::try_from(nanos)
        .ok()
        .filter(|nanos| *nanos > 0)
        .map(std::time::Duration::from_nanos)
        .ok_or_else(|| format!("'{text}' is no duration: use one like 24h; --bin off keeps nothing"))
}

/// A number of bytes; `off` is none.
fn size_or_off(text: &str) -> std::result::Result<u64, String> {
    if text == "off" {
        return Ok(0);
    }
    let size = parse_size(text).ok().and_then(|size| u64::try_from(size).ok());
    size.filter(|size| *size >= 1 << 16)
        .ok_or_else(|| format!("'{text}' is neither off nor a size of at least 64k"))
}

fn id_range(text: &str) -> std::result::Result<(u32, u32), String> {
    let wrong = || format!("'{text}' does not look like 100000:65536");
    let (first, count) = text.split_once(':').ok_or_else(wrong)?;
    let (first, count): (u32, u32) = (
        first.parse().map_err(|_| wrong())?,
        count.parse().map_err(|_| wrong())?,
    );
    if count == 0 || first.checked_add(count).is_none() {
        return Err(wrong());
    }
    Ok((first, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert!(matches!(listen_at("unix:///a").unwrap(), Listen::Unix(_)));
        assert!(matches!(listen_at("tcp://127.0.0.1:1").unwrap(), Listen::Tcp(_)));
        for wrong in ["", "a", "unix://a", "tcp://x", "ssh://x"] {
            assert!(listen_at(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            bridge_address("10.0.0.1/24"),
            Ok((Ipv4Addr::new(10, 0, 0, 1), 24))
        );
        assert_eq!(subnet_v6("fd00:1::5/64").unwrap().to_string(), "fd00:1::/64");
        assert!(
            subnet_v6("10.0.0.0/24").is_err()
                && subnet_v6("fd00::/129").is_err()
                && subnet_v6("fd00::").is_err()
        );
        assert!(bridge_address("10.0.0.1").is_err() && bridge_address("10.0.0.1/33").is_err());
        assert_eq!(id_range("1:2"), Ok((1, 2)));
        assert!(id_range("1:0").is_err() && id_range("4294967295:2").is_err());
    }
}
