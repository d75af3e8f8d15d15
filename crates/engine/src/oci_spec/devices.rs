//! Devices: those asked for with `--device`, the rules that go with them, and block devices named in limits.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use vessel_api::{DeviceMapping, HostConfig};
use vessel_runtime::cgroup::resources::DeviceRule;
use vessel_runtime::spec::Device;

use crate::{Error, Result};

/// More device nodes than this below one directory are not added.
const MAX_NODES: usize = 4096;

/// Nodes to make, and rules that let them be used.
#[derive(Debug, Default, PartialEq)]
pub struct Devices {
    /// Nodes beyond the standard ones.
    pub nodes: Vec<Device>,
    /// Rules, in order; everything is denied before.
    pub rules: Vec<DeviceRule>,
}

/// What a container's settings come to on this host.
///
/// # Errors
/// Devices that do not exist, permissions and rules that make no sense.
pub fn devices(host: &HostConfig) -> Result<Devices> {
    let mut found = Devices::default();
    if host.privileged {
        let mut nodes = Vec::new();
        walk(Path::new("/dev"), Path::new("/dev"), &mut nodes);
        // These the runtime makes itself, and a pseudoterminal of the host is of no use inside.
        nodes.retain(|device| !STANDARD.contains(&device.path.to_string_lossy().as_ref()));
        found.nodes = nodes;
        found.rules.push(DeviceRule {
            allow: true,
            access: Some("rwm".into()),
            ..DeviceRule::default()
        });
        // It has the host's already, and may use each of them; what remains are other names for them.
        for mapping in &host.resources.devices {
            let inside = mapping.path_in_container.as_str();
            if inside.is_empty() || inside == mapping.path_on_host {
                continue;
            }
            let mut renamed = Devices::default();
            add(mapping, &mut renamed)?;
            found
                .nodes
                .retain(|node| renamed.nodes.iter().all(|other| other.path != node.path));
            found.nodes.append(&mut renamed.nodes);
        }
        return Ok(found);
    }
    for mapping in &host.resources.devices {
        add(mapping, &mut found)?;
    }
    for rule in &host.resources.device_cgroup_rules {
        found.rules.push(rule_line(rule)?);
    }
    Ok(found)
}

const STANDARD: [&str; 9] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
    "/dev/core",
];

fn add(mapping: &DeviceMapping, found: &mut Devices) -> Result<()> {
    let access = match mapping.cgroup_permissions.as_str() {
        "" => "rwm",
        text if text.bytes().all(|byte| b"rwm".contains(&byte)) => text,
        other => {
            return Err(Error::invalid(format!(
                "invalid device mode: {other}: the permissions of {} are letters of rwm",
                mapping.path_on_host
            )));
        }
    };
    let host = Path::new(&mapping.path_on_host);
    let inside = match mapping.path_in_container.as_str() {
        "" => host,
        path => Path::new(path),
    };
    if !inside.is_absolute() {
        return Err(Error::invalid(format!(
            "{} is not an absolute path",
            inside.display()
        )));
    }
    let gathering = |why: &dyn std::fmt::Display| {
        Error::invalid(format!(
            "error gathering device information while adding custom device \"{}\": {why}",
            host.display()
        ))
    };
    let meta = std::fs::metadata(host).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => gathering(&"no such file or directory"),
        _ => gathering(&error),
    })?;
    let mut nodes = Vec::new();
    if meta.is_dir() {
        walk(host, inside, &mut nodes);
    } else {
        nodes.push(node(&meta, inside).ok_or_else(|| gathering(&"not a device node"))?);
    }
    for device in nodes {
        found.rules.push(DeviceRule {
            allow: true,
            kind: Some(device.kind.clone()),
            major: Some(device.major),
            minor: Some(device.minor),
            access: Some(access.to_owned()),
        });
        found.nodes.push(device);
    }
    Ok(())
}

fn node(meta: &std::fs::Metadata, inside: &Path) -> Option<Device> {
    let kind = meta.file_type();
    let kind = if kind.is_char_device() {
        "c"
    } else if kind.is_block_device() {
        "b"
    } else {
        return None;
    };
    Some(Device {
        kind: kind.to_owned(),
        path: inside.to_owned(),
        major: i64::from(rustix::fs::major(meta.rdev())),
        minor: i64::from(rustix::fs::minor(meta.rdev())),
        file_mode: Some(meta.mode() & 0o7777),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
    })
}

/// Device nodes below a directory of the host, as they would be below `inside`. What cannot be read is left out.
fn walk(host: &Path, inside: &Path, nodes: &mut Vec<Device>) {
    let Ok(entries) = std::fs::read_dir(host) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        // Not the host's: they belong to mounts of their own.
        if ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"]
            .iter()
            .any(|skip| name == *skip)
        {
            continue;
        }
        let (Ok(meta), inside) = (std::fs::symlink_metadata(entry.path()), inside.join(&name)) else {
            continue;
        };
        if meta.is_dir() {
            walk(&entry.path(), &inside, nodes);
        } else if let Some(device) = node(&meta, &inside)
            && nodes.len() < MAX_NODES
        {
            nodes.push(device);
        }
    }
}

/// `c 1:3 rwm`, with `*` for any number.
fn rule_line(text: &str) -> Result<DeviceRule> {
    let refuse = || Error::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let mut words = text.split(' ');
    let (Some(kind), Some(numbers), Some(access), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(refuse());
    };
    let number = |text: &str| match text {
        "*" => Ok(None),
        text => text
            .parse::<u32>()
            .map(|number| Some(i64::from(number)))
            .map_err(|_| refuse()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(refuse)?;
    let valid = ["a", "b", "c"].contains(&kind)
        && (1..=3).contains(&access.len())
        && access.bytes().all(|byte| b"rwm".contains(&byte));
    if !valid {
        return Err(refuse());
    }
    Ok(DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major: number(major)?,
        minor: number(minor)?,
        access: Some(access.to_owned()),
    })
}

/// The numbers of a block device that a limit names.
///
/// # Errors
/// When there is none at the path.
pub fn block_device(path: &str) -> Result<(i64, i64)> {
    let meta = std::fs::metadata(path).map_err(|error| {
        let why = if error.kind() == std::io::ErrorKind::NotFound {
            "no such file or directory".into()
        } else {
            error.to_string()
        };
        Error::invalid(format!("cannot limit the device {path:?}: {why}"))
    })?;
    if !meta.file_type().is_block_device() {
        return Err(Error::invalid(format!(
            "cannot limit {path:?}: it is not a block device"
        )));
    }
    Ok((
        i64::from(rustix::fs::major(meta.rdev())),
        i64::from(rustix::fs::minor(meta.rdev())),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(devices: &[(&str, &str, &str)], rules: &[&str]) -> HostConfig {
        let mut host = HostConfig::default();
        host.resources.devices = devices
            .iter()
            .map(|(host, inside, access)| DeviceMapping {
                path_on_host: (*host).into(),
                path_in_container: (*inside).into(),
                cgroup_permissions: (*access).into(),
            })
            .collect();
        host.resources.device_cgroup_rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
        host
    }

    #[test]
    fn a_device_brings_its_node_and_its_rule() {
        let found = devices(&host(&[("/dev/null", "/dev/nothing", "r")], &["c 10:* rwm"])).unwrap();
        assert_eq!(found.nodes.len(), 1);
        let node = &found.nodes[0];
        assert_eq!((node.kind.as_str(), node.major, node.minor), ("c", 1, 3));
        assert_eq!(node.path, Path::new("/dev/nothing"));
        assert_eq!(found.rules[0].access.as_deref(), Some("r"));
        assert_eq!((found.rules[1].major, found.rules[1].minor), (Some(10), None));
    }

    #[test]
    fn privileged_containers_have_devices_by_other_names() {
        let mut asked = host(&[("/dev/null", "/dev/nothing", "r"), ("/dev/zero", "", "")], &[]);
        asked.privileged = true;
        let found = devices(&asked).unwrap();
        let named = |path: &str| {
            found
                .nodes
                .iter()
                .filter(|node| node.path == Path::new(path))
                .count()
        };
        assert_eq!((named("/dev/nothing"), named("/dev/zero")), (1, 0));
        assert_eq!(found.rules.len(), 1);
        assert!(found.rules[0].kind.is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        for (config, needle) in [
            (
                host(&[("/dev/there-is-none", "", "")], &[]),
                "no such file or directory",
            ),
            (host(&[("/etc/passwd", "", "")], &[]), "not a device node"),
            (host(&[("/dev/null", "", "rx")], &[]), "invalid device mode"),
            (
                host(&[("/dev/null", "relative", "")], &[]),
                "not an absolute path",
            ),
            (host(&[], &["c 1:3"]), "invalid device cgroup rule"),
            (host(&[], &["x 1:3 r"]), "invalid device cgroup rule"),
            (host(&[], &["c 1:x r"]), "invalid device cgroup rule"),
            (host(&[], &["c 1:3 rwmr"]), "invalid device cgroup rule"),
        ] {
            let error = devices(&config).unwrap_err();
            assert!(error.message().contains(needle), "{error}");
        }
        assert!(block_device("/dev/null").is_err());
    }
}
