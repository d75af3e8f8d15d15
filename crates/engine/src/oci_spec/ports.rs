//! Published and exposed ports: Docker's texts to the network's specifications.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use vessel_api::{ContainerConfig, HostConfig};
use vessel_network::{PortSpec, Protocol};

use crate::{Error, Result};

/// `80/tcp`, `80`, or a range `80-90/udp`.
///
/// # Errors
/// When it is not.
pub fn parse_port(text: &str) -> Result<(RangeInclusive<u16>, Protocol)> {
    let refuse = || Error::invalid(format!("invalid port specification: {text:?}"));
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase().parse().map_err(|_| refuse())?;
    let range = range(ports)
        .filter(|range| *range.start() > 0)
        .ok_or_else(refuse)?;
    Ok((range, protocol))
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

/// What is to be published: `-p`, and with `-P` every exposed port that `-p` does not name.
///
/// # Errors
/// Ports and addresses that make no sense.
pub fn published(config: &ContainerConfig, host: &HostConfig) -> Result<Vec<PortSpec>> {
    let mut specs = Vec::new();
    let mut bound = Vec::new();
    for (port, bindings) in &host.port_bindings {
        let (target, protocol) = parse_port(port)?;
        for binding in bindings.iter().flatten() {
            let host_ip =
                match binding.host_ip.trim() {
                    "" => None,
                    text => {
                        let address = text.trim_matches(['[', ']']).parse::<IpAddr>();
                        Some(address.map_err(|_| {
                            Error::invalid(format!("invalid IP address in port binding: {text}"))
                        })?)
                    }
                };
            let host_ports = match binding.host_port.as_str() {
                "" => 0..=0,
                text => range(text)
                    .ok_or_else(|| Error::invalid(format!("invalid port specification: {text:?}")))?,
            };
            specs.push(PortSpec {
                host_ip,
                host_ports,
                target_port: *target.start(),
                protocol,
            });
            bound.push((*target.start(), protocol));
        }
    }
    if host.publish_all_ports {
        for port in config.exposed_ports.keys() {
            let (targets, protocol) = parse_port(port)?;
            for target_port in targets {
                if !bound.contains(&(target_port, protocol)) {
                    specs.push(PortSpec {
                        host_ip: None,
                        host_ports: 0..=0,
                        target_port,
                        protocol,
                    });
                }
            }
        }
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use vessel_api::PortBinding;

    use super::*;

    #[test]
    fn bindings_become_specifications() {
        let binding = |ip: &str, port: &str| PortBinding {
            host_ip: ip.into(),
            host_port: port.into(),
        };
        let mut host = HostConfig {
            publish_all_ports: true,
            ..HostConfig::default()
        };
        host.port_bindings.insert(
            "80/tcp".into(),
            Some(vec![binding("127.0.0.1", "8080"), binding("", "")]),
        );
        let mut config = ContainerConfig::default();
        for port in ["80/tcp", "53/udp"] {
            config.exposed_ports.entry(port.into()).or_default();
        }
        let specs = published(&config, &host).unwrap();
        assert_eq!(specs.len(), 3);
        assert_eq!(
            (specs[0].host_ports.clone(), specs[0].target_port),
            (8080..=8080, 80)
        );
        assert_eq!(specs[1].host_ports, 0..=0);
        assert_eq!((specs[2].target_port, specs[2].protocol), (53, Protocol::Udp));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "x", "0", "80/xyz", "70000", "90-80", "-1"] {
            assert!(parse_port(bad).is_err(), "{bad}");
        }
        let mut host = HostConfig::default();
        for (ip, port) in [("nowhere", ""), ("", "99999"), ("", "9-1")] {
            let binding = PortBinding {
                host_ip: ip.into(),
                host_port: port.into(),
            };
            host.port_bindings.insert("80/tcp".into(), Some(vec![binding]));
            assert!(published(&ContainerConfig::default(), &host).is_err());
        }
    }
}
