//! Ports of `EXPOSE`: `80`, `80/udp`, `8000-8010`, and the forms of `docker run -p` that old files have.

use std::net::IpAddr;

/// What a word of `EXPOSE` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
    /// The protocol as written; `tcp` if none was.
    pub protocol: String,
    /// Whether an address or a port of the host stands before it. Neither has a meaning here.
    pub mapping: bool,
}

impl Exposed {
    /// The ports as the image's configuration has them: `80/tcp`.
    pub fn ports(&self) -> impl Iterator<Item = String> {
        let protocol = self.protocol.to_lowercase();
        (self.first..=self.last).map(move |port| format!("{port}/{protocol}"))
    }
}

/// Reads one word of `EXPOSE`, already expanded.
pub fn parse_port(word: &str) -> Result<Exposed, String> {
    let (before, container) = word
        .rsplit_once(':')
        .map_or((None, word), |(before, port)| (Some(before), port));
    let (address, host) = match before.map(|before| before.rsplit_once(':').unwrap_or(("", before))) {
        Some((address, host)) => (address, host),
        None => ("", ""),
    };
    let (port, protocol) = container.split_once('/').unwrap_or((container, ""));
    if port.is_empty() {
        return Err(format!("invalid port: {word:?}: no port specified"));
    }
    let protocol = match protocol.to_lowercase().as_str() {
        "" => "tcp",
        "tcp" | "udp" | "sctp" => protocol,
        _ => return Err(format!("invalid port: {word:?}: invalid proto: {protocol}")),
    };
    let bare = address
        .strip_prefix('[')
        .and_then(|address| address.strip_suffix(']'))
        .unwrap_or(address);
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {address}"));
    }
    let (first, last) = range(port).ok_or_else(|| format!("invalid containerPort: {port}"))?;
    if !host.is_empty() {
        let (from, to) = range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if first != last && last - first != to - from {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {port} and {host}"
            ));
        }
    }
    Ok(Exposed {
        first,
        last,
        protocol: protocol.to_owned(),
        mapping: !address.is_empty() || !host.is_empty(),
    })
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}
