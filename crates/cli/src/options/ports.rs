//! `-p [[address:][host port]:]container port[/protocol]`, with ranges, and `--expose`.

use std::net::IpAddr;

use vessel_api::{Empty, Map, PortBinding, PortMap};

/// What is published and exposed.
#[derive(Debug, Default, PartialEq)]
pub struct Ports {
    /// `80/tcp` and so on.
    pub exposed: Map<Empty>,
    /// Where they are published.
    pub bindings: PortMap,
}

/// Reads `--publish` and `--expose`.
pub fn parse(publish: &[String], expose: &[String]) -> Result<Ports, String> {
    let mut ports = Ports::default();
    for spec in publish {
        let spec = if spec.contains('=') {
            long_form(spec)?
        } else {
            spec.clone()
        };
        for (port, binding) in parse_spec(&spec)? {
            ports.exposed.insert(port.clone(), Empty {});
            ports
                .bindings
                .entry(port)
                .or_default()
                .get_or_insert_default()
                .push(binding);
        }
    }
    for spec in expose {
        if spec.contains(':') {
            return Err(format!("invalid port format for --expose: {spec}"));
        }
        let (port, protocol) = split_protocol(spec);
        let (start, end) =
            range(port).map_err(|e| format!("invalid range format for --expose: {spec}, error: {e}"))?;
        let protocol = known_protocol(protocol)?;
        for port in start..=end {
            ports.exposed.insert(format!("{port}/{protocol}"), Empty {});
        }
    }
    Ok(ports)
}

/// `target=80,published=8080,protocol=tcp`
fn long_form(spec: &str) -> Result<String, String> {
    let (mut target, mut published, mut protocol) = ("", "", "tcp");
    for part in spec.split(',') {
        match part.split_once('=') {
            Some(("target", value)) => target = value,
            Some(("published", value)) => published = value,
            Some(("protocol", value)) => protocol = value,
            Some((name, _)) if !name.is_empty() => {}
            _ => {
                return Err(format!(
                    "invalid publish opts format (should be name=value but got '{part}')"
                ));
            }
        }
    }
    Ok(format!("{published}:{target}/{protocol}"))
}

fn parse_spec(spec: &str) -> Result<Vec<(String, PortBinding)>, String> {
    let parts: Vec<&str> = spec.split(':').collect();
    let (ip, host, container) = match parts.as_slice() {
        [container] => (String::new(), "", *container),
        [host, container] => (String::new(), *host, *container),
        [ip @ .., host, container] => (ip.join(":"), *host, *container),
        [] => return Err(format!("no port specified: {spec}<empty>")),
    };
    let (container, protocol) = split_protocol(container);
    let ip = match ip.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .ok_or_else(|| format!("invalid IP address: {ip}"))?
            .to_string(),
        None => ip,
    };
    if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {ip}"));
    }
    if container.is_empty() {
        return Err(format!("no port specified: {spec}<empty>"));
    }
    let (start, end) = range(container).map_err(|_| format!("invalid containerPort: {container}"))?;
    let host_range = match host {
        "" => None,
        host => Some(range(host).map_err(|_| format!("invalid hostPort: {host}"))?),
    };
    if let Some((host_start, host_end)) = host_range
        && end - start != host_end - host_start
        && end != start
    {
        return Err(format!(
            "invalid ranges specified for container and host Ports: {container} and {host}"
        ));
    }
    let protocol = known_protocol(protocol)?;
    Ok((start..=end)
        .map(|port| {
            let host_port = match host_range {
                None => String::new(),
                // One container port takes any free port of the host's range.
                Some((first, last)) if start == end && first != last => format!("{first}-{last}"),
                Some((first, _)) => (u32::from(first) + u32::from(port - start)).to_string(),
            };
            (
                format!("{port}/{protocol}"),
                PortBinding {
                    host_ip: ip.clone(),
                    host_port,
                },
            )
        })
        .collect())
}

fn split_protocol(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((port, protocol)) if !protocol.is_empty() => (port, protocol),
        Some((port, _)) => (port, "tcp"),
        None => (text, "tcp"),
    }
}

fn known_protocol(protocol: &str) -> Result<String, String> {
    let lower = protocol.to_ascii_lowercase();
    match lower.as_str() {
        "tcp" | "udp" | "sctp" => Ok(lower),
        _ => Err(format!("invalid proto: {protocol}")),
    }
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| -> Result<u16, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("invalid port: '{text}'"));
        }
        text.parse().map_err(|_| format!("port out of range: {text}"))
    };
    if text.is_empty() {
        return Err("empty string specified for ports".to_string());
    }
    match text.split_once('-') {
        None => port(text).map(|port| (port, port)),
        Some((start, end)) => {
            let (start, end) = (port(start)?, port(end)?);
            if end < start {
                return Err(format!("invalid range specified for port: {text}"));
            }
            Ok((start, end))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn published(spec: &str) -> Result<Vec<String>, String> {
        let ports = parse(&[spec.to_string()], &[])?;
        Ok(ports
            .bindings
            .iter()
            .flat_map(|(port, bindings)| {
                bindings
                    .iter()
                    .flatten()
                    .map(move |b| format!("{}|{}|{port}", b.host_ip, b.host_port))
            })
            .collect())
    }

    #[test]
    fn publish() {
        for (spec, expected) in [
            ("80", vec!["||80/tcp"]),
            ("8080:80", vec!["|8080|80/tcp"]),
            ("8080:80/udp", vec!["|8080|80/udp"]),
            ("8080:80/UDP", vec!["|8080|80/udp"]),
            ("127.0.0.1:8080:80", vec!["127.0.0.1|8080|80/tcp"]),
            ("127.0.0.1::80", vec!["127.0.0.1||80/tcp"]),
            ("[::1]:8080:80", vec!["::1|8080|80/tcp"]),
            ("::1:8080:80", vec!["::1|8080|80/tcp"]),
            ("8000-8001:80-81", vec!["|8000|80/tcp", "|8001|81/tcp"]),
            ("8000-8005:80", vec!["|8000-8005|80/tcp"]),
            ("80-81", vec!["||80/tcp", "||81/tcp"]),
            ("published=8080,target=80", vec!["|8080|80/tcp"]),
            ("65535:65535", vec!["|65535|65535/tcp"]),
        ] {
            assert_eq!(published(spec).unwrap(), expected, "{spec}");
        }
        for wrong in [
            "",
            ":",
            "a",
            "80/x",
            "65536",
            "-1",
            "80-",
            "81-80",
            "8000-8005:80-81",
            "x:80:80",
            "1.2.3:1:2",
            "[::1:80:80",
            "80:80:80",
            "target",
            "+80",
        ] {
            assert!(published(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn expose() {
        let ports = parse(&["80".into()], &["81-82".into(), "83/udp".into(), "80".into()]).unwrap();
        assert_eq!(
            ports.exposed.keys().collect::<Vec<_>>(),
            ["80/tcp", "81/tcp", "82/tcp", "83/udp"]
        );
        assert_eq!(ports.bindings.len(), 1);
        assert!(parse(&[], &["1:2".into()]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(spec in "[0-9:./a\\[\\]=,-]{0,20}") {
            let specs = [spec];
            let _ = parse(&specs, &specs);
        }
    }
}
