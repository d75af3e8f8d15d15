//! Who has a port: asked only after a bind has failed, to say it in the error.
//!
//! From `/proc/thread-self/net/{tcp,tcp6,udp,udp6}` (proc_pid_net(5)) and the descriptors of all processes.

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;

use crate::ports::Protocol;

const TCP_TIME_WAIT: u8 = 6;
/// Enough for some 400,000 sockets; the rest goes unnamed.
const MAX_TABLE: u64 = 64 << 20;

/// A local end in one of the tables.
struct Entry {
    /// `None`: not an IPv4 address, nor the IPv6 wildcard.
    address: Option<Ipv4Addr>,
    port: u16,
    state: u8,
    inode: u64,
}

/// Whether what occupies the port are connections in TIME_WAIT and nothing else.
pub(crate) fn only_closed_connections(host: Ipv4Addr, port: u16) -> bool {
    let entries = occupants(host, port, Protocol::Tcp);
    !entries.is_empty() && entries.iter().all(|e| e.state == TCP_TIME_WAIT)
}

/// A process that has the port, in words.
pub(crate) fn of(host: Ipv4Addr, port: u16, protocol: Protocol) -> Option<String> {
    let inodes: Vec<u64> = occupants(host, port, protocol).iter().map(|e| e.inode).filter(|&i| i != 0).collect();
    let (pid, name) = process_with(&inodes)?;
    Some(format!("process {pid} ({name})"))
}

fn occupants(host: Ipv4Addr, port: u16, protocol: Protocol) -> Vec<Entry> {
    let tables: &[&str] = match protocol {
        Protocol::Tcp => &["tcp", "tcp6"],
        Protocol::Udp => &["udp", "udp6"],
        Protocol::Sctp => &[],
    };
    let mut found = Vec::new();
    for table in tables {
        let mut text = String::new();
        let Ok(file) = fs::File::open(format!("/proc/thread-self/net/{table}")) else { continue };
        if file.take(MAX_TABLE).read_to_string(&mut text).is_err() {
            continue;
        }
        found.extend(text.lines().skip(1).filter_map(parse).filter(|e| {
            e.port == port && e.address.is_some_and(|a| a == host || a.is_unspecified() || host.is_unspecified())
        }));
    }
    found
}

/// `sl local_address rem_address st … uid timeout inode`: the address is hexadecimal words in host byte order.
fn parse(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(|w| Ipv4Addr::from(w.to_ne_bytes()));
    let address = match address.len() {
        8 => Some(word(address)?),
        32 if address.bytes().all(|b| b == b'0') => Some(Ipv4Addr::UNSPECIFIED),
        // ::ffff:a.b.c.d
        32 if address.get(..24)? == "0000000000000000FFFF0000" => Some(word(address.get(24..)?)?),
        _ => None,
    };
    Some(Entry {
        address,
        port: u16::from_str_radix(port, 16).ok()?,
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

fn process_with(inodes: &[u64]) -> Option<(u32, String)> {
    if inodes.is_empty() {
        return None;
    }
    let targets: Vec<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            if let Ok(target) = fs::read_link(descriptor.path())
                && targets.iter().any(|t| target.as_os_str() == t.as_str())
            {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some((pid, name.trim_end().escape_debug().to_string()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_the_table() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 100 0 0 10 0";
        let entry = parse(line).unwrap();
        assert_eq!((entry.address, entry.port, entry.state, entry.inode), (Some(Ipv4Addr::LOCALHOST), 8080, 10, 4242));
        let mapped = line.replace("0100007F:1F90", "0000000000000000FFFF00000100007F:0050");
        assert_eq!(parse(&mapped).unwrap().address, Some(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn the_holder_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = of(Ipv4Addr::LOCALHOST, port, Protocol::Tcp).unwrap();
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
        assert!(!only_closed_connections(Ipv4Addr::LOCALHOST, port));
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in ".{0,200}") {
            let _ = parse(&line);
        }
    }
}
