//! Short forms: `8080:80/udp`, `data:/var/lib:ro`.

use std::net::IpAddr;

use super::files::clean;
use crate::yaml::{At, Map, Node, Value};

/// The most ports that one range may have.
const MAX_RANGE: u32 = 65_536;

fn put(map: &mut Map, at: At, key: &str, text: &str) {
    map.insert(key.to_owned(), Node::string(at, text));
}

/// A volume in its long form: `[SOURCE:]TARGET[:OPTIONS]`.
pub(super) fn volume(text: &str, at: At) -> Result<Node, String> {
    if text.is_empty() {
        return Err("invalid empty volume spec".to_owned());
    }
    let parts = split(text);
    let wrong = |why: &str| format!("invalid spec: {text}: {why}");
    if parts.iter().any(|part| part.is_empty()) {
        return Err(wrong("empty section between colons"));
    }
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(wrong("too many colons")),
    };
    let bind_source = is_path(source);
    let mut map = Map::new();
    put(&mut map, at, "type", if bind_source { "bind" } else { "volume" });
    if !source.is_empty() {
        put(&mut map, at, "source", source);
    }
    let cleaned = clean(std::path::Path::new(target));
    put(&mut map, at, "target", &cleaned.to_string_lossy());
    let (mut bind, mut kind) = (Map::new(), Map::new());
    for option in options.split(',') {
        match option {
            "ro" => {
                map.insert("read_only".to_owned(), Node::new(at, Value::Bool(true)));
            }
            "nocopy" => {
                kind.insert("nocopy".to_owned(), Node::new(at, Value::Bool(true)));
            }
            "rprivate" | "private" | "rshared" | "shared" | "rslave" | "slave" => {
                put(&mut bind, at, "propagation", option);
            }
            "z" | "Z" => put(&mut bind, at, "selinux", option),
            // Docker passes over what it does not know (`cached`, `delegated`, …).
            _ => {}
        }
    }
    if bind_source {
        bind.insert("create_host_path".to_owned(), Node::new(at, Value::Bool(true)));
    }
    if !bind.is_empty() {
        map.insert("bind".to_owned(), Node::new(at, Value::Map(bind)));
    }
    if !bind_source || !kind.is_empty() {
        map.insert("volume".to_owned(), Node::new(at, Value::Map(kind)));
    }
    Ok(Node::new(at, Value::Map(map)))
}

/// Splits at colons, but those of a drive letter and those between the braces of a variable.
fn split(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let (mut parts, mut start, mut open) = (Vec::new(), 0, 0usize);
    for at in 0..bytes.len() {
        match bytes[at] {
            b'$' if bytes.get(at + 1) == Some(&b'{') => open += 1,
            b'}' => open = open.saturating_sub(1),
            b':' if open == 0 => {
                let drive = at == start + 1
                    && bytes[start].is_ascii_alphabetic()
                    && bytes.get(at + 1) == Some(&b'\\');
                if !drive {
                    parts.push(&text[start..at]);
                    start = at + 1;
                }
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Whether the source of a volume is a path, and not a volume's name.
fn is_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~'])
        || source.starts_with("\\\\")
        || matches!(source.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic())
}

/// Ports in their long form, one for each of a range: `[[IP:]PUBLISHED:]TARGET[/PROTOCOL]`.
pub(super) fn ports(text: &str, at: At) -> Result<Vec<Node>, String> {
    let wrong = |why: &str| format!("invalid port {text:?}: {why}");
    let (body, protocol) = match text.rsplit_once('/') {
        Some((body, protocol)) => (body, protocol.to_ascii_lowercase()),
        None => (text, "tcp".to_owned()),
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong("the protocol must be tcp, udp or sctp"));
    }
    let (front, target) = match body.rsplit_once(':') {
        Some((front, target)) => (Some(front), target),
        None => (None, body),
    };
    let (ip, published) = match front.map(|front| (front, front.rsplit_once(':'))) {
        None => (None, ""),
        Some((published, None)) => (None, published),
        Some((_, Some((ip, published)))) => (Some(ip), published),
    };
    let ip = ip
        .map(|ip| {
            let bare = ip
                .strip_prefix('[')
                .and_then(|ip| ip.strip_suffix(']'))
                .unwrap_or(ip);
            bare.parse::<IpAddr>()
                .map(|_| bare.to_owned())
                .map_err(|_| wrong(&format!("{ip:?} is not an IP address")))
        })
        .transpose()?;
    if target.is_empty() {
        return Err(wrong("no port specified"));
    }
    let (first, last) =
        range(target).ok_or_else(|| wrong("the container's port must be 1 to 65535, or a range"))?;
    let outer = match published {
        "" => None,
        published => {
            Some(range(published).ok_or_else(|| wrong("the host's port must be 0 to 65535, or a range"))?)
        }
    };
    let count = last - first + 1;
    let outer_count = outer.map_or(count, |(first, last)| last - first + 1);
    if count > MAX_RANGE || (outer_count != count && count != 1) {
        return Err(wrong("invalid ranges specified for container and host ports"));
    }
    let mut nodes = Vec::new();
    for step in 0..count {
        let mut map = Map::new();
        put(&mut map, at, "mode", "ingress");
        if let Some(ip) = &ip {
            put(&mut map, at, "host_ip", ip);
        }
        map.insert(
            "target".to_owned(),
            Node::new(at, Value::Int(i64::from(first + step))),
        );
        match outer {
            Some((first, last)) if outer_count != count => {
                // One port of the container's, any of the host's.
                put(&mut map, at, "published", &format!("{first}-{last}"));
            }
            Some((first, _)) => put(&mut map, at, "published", &(first + step).to_string()),
            None => {}
        }
        put(&mut map, at, "protocol", &protocol);
        nodes.push(Node::new(at, Value::Map(map)));
    }
    Ok(nodes)
}

/// A port or a range of them.
fn range(text: &str) -> Option<(u32, u32)> {
    let port = |text: &str| text.trim().parse::<u16>().ok().map(u32::from);
    match text.split_once('-') {
        None => port(text).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then_some((first, last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> At {
        At::file(0)
    }

    #[test]
    fn volumes() {
        let long = |text: &str| volume(text, at()).map(|node| node.to_json());
        assert_eq!(
            long("data:/var/lib/:ro").unwrap(),
            serde_json::json!({"type": "volume", "source": "data", "target": "/var/lib", "read_only": true, "volume": {}})
        );
        assert_eq!(
            long("./x:/y:Z,rslave").unwrap(),
            serde_json::json!({"type": "bind", "source": "./x", "target": "/y",
                "bind": {"selinux": "Z", "propagation": "rslave", "create_host_path": true}})
        );
        assert_eq!(long("/y").unwrap()["type"], "volume");
        assert_eq!(long("${A:-b}:/y").unwrap()["source"], "${A:-b}");
        assert_eq!(long("C:\\x:/y").unwrap()["source"], "C:\\x");
        for wrong in ["", "a::b", "a:b:ro:x"] {
            assert!(long(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn port_forms() {
        let long =
            |text: &str| ports(text, at()).map(|nodes| nodes.iter().map(Node::to_json).collect::<Vec<_>>());
        let one = |text: &str| long(text).unwrap().remove(0);
        assert_eq!(
            one("127.0.0.1:8080:80/udp"),
            serde_json::json!({"mode": "ingress", "host_ip": "127.0.0.1", "target": 80, "published": "8080", "protocol": "udp"})
        );
        assert_eq!(one("80").get("published"), None);
        assert_eq!(one("127.0.0.1::80").get("published"), None);
        assert_eq!(one("[::1]:1:2")["host_ip"], "::1");
        assert_eq!(one("8000-8010:80")["published"], "8000-8010");
        let range = long("3000-3002:4000-4002").unwrap();
        assert_eq!(
            (range.len(), &range[2]["published"]),
            (3, &serde_json::json!("3002"))
        );
        for wrong in [
            "", "x", "1:2:3:4", "80/foo", "99999", "1-2:1-3", "3-2", "host:1:2",
        ] {
            assert!(long(wrong).is_err(), "{wrong}");
        }
    }
}
