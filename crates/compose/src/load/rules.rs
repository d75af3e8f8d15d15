//! What the schema cannot say: attributes that exclude each other, and values that must be addresses.

use std::net::IpAddr;

use crate::yaml::{Fault, Node, Value};

/// Checks a model in its long forms.
pub(super) fn check(model: &Node) -> Result<(), Fault> {
    for (name, volume) in members(model, "volumes") {
        let external = matches!(
            volume.get("external").map(|node| &node.value),
            Some(Value::Bool(true))
        );
        let other = volume
            .as_map()
            .into_iter()
            .flatten()
            .find(|(key, _)| !matches!(key.as_str(), "name" | "external") && !key.starts_with("x-"));
        if let (true, Some((key, node))) = (external, other) {
            let message = format!("conflicting parameters \"external\" and {key:?} specified");
            return Err(Fault::new(node.at, format!("volumes.{name}"), message));
        }
    }
    sources(model, "configs", &["file", "environment", "content"])?;
    sources(model, "secrets", &["file", "environment"])?;
    for (name, service) in members(model, "services") {
        let ports = service.get("ports").and_then(Node::as_list).unwrap_or_default();
        for (index, port) in ports.iter().enumerate() {
            let path = || format!("services.{name}.ports[{index}]");
            if let Some(ip) = port.text("host_ip")
                && !ip.is_empty()
                && ip.parse::<IpAddr>().is_err()
                && !ip.contains('$')
            {
                return Err(Fault::new(port.at, path(), format!("invalid ip address: {ip}")));
            }
        }
        // As the schema has it: somewhere in it a letter or digit with another character behind it.
        if let Some(text) = service.text("container_name")
            && !text.contains('$')
            && !text.as_bytes().windows(2).any(|pair| {
                pair[0].is_ascii_alphanumeric()
                    && (pair[1].is_ascii_alphanumeric() || b"_.-".contains(&pair[1]))
            })
        {
            let message = format!(
                "{text:?} is no name of a container: two letters, digits, dots, hyphens or underscores are needed"
            );
            return Err(Fault::new(
                service.at,
                format!("services.{name}.container_name"),
                message,
            ));
        }
        let volumes = service.get("volumes").and_then(Node::as_list).unwrap_or_default();
        for (index, volume) in volumes.iter().enumerate() {
            let path = format!("services.{name}.volumes[{index}]");
            if volume.text("type") == Some("bind") && volume.get("source").is_none() {
                return Err(Fault::new(volume.at, path, "a bind mount needs a source"));
            }
            let size = volume.get("tmpfs").and_then(|tmpfs| tmpfs.get("size"));
            if matches!(size.map(|size| &size.value), Some(Value::Int(..0))) {
                return Err(Fault::new(
                    volume.at,
                    path,
                    "tmpfs.size must be greater than or equal to 0",
                ));
            }
        }
        let resources = service.get("deploy").and_then(|node| node.get("resources"));
        let reserved = resources.and_then(|node| node.get("reservations"));
        for list in [reserved.and_then(|node| node.get("devices")), service.get("gpus")] {
            for device in list.and_then(Node::as_list).unwrap_or_default() {
                if let Some(count) = device.get("count")
                    && count.as_str().is_some_and(|text| !text.contains('$'))
                {
                    let message = "count must be all or a number";
                    return Err(Fault::new(count.at, format!("services.{name}"), message));
                }
                if device.get("count").is_some_and(|count| !count.is_null())
                    && device.get("device_ids").is_some()
                {
                    let message = "\"count\" and \"device_ids\" attributes are exclusive";
                    return Err(Fault::new(device.at, format!("services.{name}"), message));
                }
            }
        }
        let watch = service.get("develop").and_then(|node| node.get("watch"));
        for rule in watch.and_then(Node::as_list).unwrap_or_default() {
            if rule.text("path") == Some("") {
                let path = format!("services.{name}.develop.watch");
                return Err(Fault::new(rule.at, path, "path: value can't be blank"));
            }
        }
    }
    Ok(())
}

/// Secrets and configs come from exactly one place.
fn sources(model: &Node, section: &str, keys: &[&str]) -> Result<(), Fault> {
    for (name, node) in members(model, section) {
        let count = keys.iter().filter(|key| node.get(key).is_some()).count();
        let path = || format!("{section}.{name}");
        if count > 1 {
            let message = format!("{} attributes are mutually exclusive", keys.join("|"));
            return Err(Fault::new(node.at, path(), message));
        }
        if count == 0 && node.get("driver").is_none() && node.get("external").is_none() {
            let message = format!("one of {} must be set", keys.join("|"));
            return Err(Fault::new(node.at, path(), message));
        }
    }
    Ok(())
}

fn members<'a>(model: &'a Node, section: &str) -> impl Iterator<Item = (&'a String, &'a Node)> {
    model.get(section).and_then(Node::as_map).into_iter().flatten()
}
