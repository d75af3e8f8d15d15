//! What `-v`, `--mount`, `--tmpfs`, `--volumes-from` and the image's `VOLUME` ask for, as records.
//!
//! Later ones replace earlier ones at the same destination, in Docker's order: volumes-from, binds, mounts, tmpfs; the
//! image's volumes only where nothing else is.

use std::collections::BTreeMap;

use vessel_api::{ContainerConfig, HostConfig, Mount};

use crate::container::record::{MountKind, MountRecord};
use crate::{Error, Result};

/// How `-v` may spell a propagation.
const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// Everything asked for. `others` gives the mounts of a container named by `--volumes-from`. Anonymous volumes have an
/// empty name.
///
/// # Errors
/// Texts that make no sense, destinations named twice.
pub fn mount_points(
    config: &ContainerConfig,
    host: &HostConfig,
    others: impl Fn(&str) -> Result<Vec<MountRecord>>,
) -> Result<Vec<MountRecord>> {
    let mut found: BTreeMap<String, MountRecord> = BTreeMap::new();
    for from in &host.volumes_from {
        let (name, mode) = from.split_once(':').unwrap_or((from, "rw"));
        let read_only = match mode {
            "ro" => true,
            "rw" | "z" | "Z" => false,
            _ => return Err(Error::invalid(format!("invalid mode for volumes-from: {from}"))),
        };
        for mut mount in others(name)? {
            if mount.kind == MountKind::Tmpfs {
                continue;
            }
            mount.read_only |= read_only;
            // It stays the other container's: removed with that one only.
            mount.anonymous = false;
            mount.no_copy = true;
            found.insert(mount.destination.clone(), mount);
        }
    }
    let mut named = std::collections::BTreeSet::new();
    let mut add = |mount: MountRecord, found: &mut BTreeMap<String, MountRecord>| {
        if !named.insert(mount.destination.clone()) {
            return Err(Error::invalid(format!(
                "Duplicate mount point: {}",
                mount.destination
            )));
        }
        found.insert(mount.destination.clone(), mount);
        Ok(())
    };
    for bind in &host.binds {
        let mut mount = bind_text(bind)?;
        if mount.kind == MountKind::Volume {
            mount.driver.clone_from(&host.volume_driver);
        }
        add(mount, &mut found)?;
    }
    for mount in &host.mounts {
        add(mount_request(mount)?, &mut found)?;
    }
    for (destination, options) in &host.tmpfs {
        let destination = destination_path(destination, destination)?;
        let options: Vec<String> = options
            .split(',')
            .filter(|o| !o.is_empty())
            .map(str::to_owned)
            .collect();
        for option in &options {
            tmpfs_option(option)?;
        }
        let mount = MountRecord {
            kind: MountKind::Tmpfs,
            destination,
            options,
            ..MountRecord::default()
        };
        add(mount, &mut found)?;
    }
    for destination in config.volumes.keys() {
        let destination = destination_path(destination, destination)?;
        found.entry(destination.clone()).or_insert_with(|| MountRecord {
            kind: MountKind::Volume,
            destination,
            anonymous: true,
            driver: host.volume_driver.clone(),
            ..MountRecord::default()
        });
    }
    Ok(found.into_values().collect())
}

/// `[source:]destination[:options]`.
fn bind_text(text: &str) -> Result<MountRecord> {
    let refuse = |why: &str| Error::invalid(format!("invalid volume specification: '{text}': {why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts.as_slice() {
        [destination] => ("", *destination, ""),
        [source, destination] if destination.starts_with('/') => (*source, *destination, ""),
        [destination, options] if options.split(',').all(is_mode) => ("", *destination, *options),
        [source, destination] => (*source, *destination, ""),
        [source, destination, options] => (*source, *destination, *options),
        _ => return Err(refuse("source:destination[:options] expected")),
    };
    let destination = destination_path(destination, text)?;
    let mut mount = MountRecord {
        destination,
        mode: options.to_owned(),
        ..MountRecord::default()
    };
    let mut access = None;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "rw" | "readonly" if access.replace(option).is_some() => {
                return Err(refuse(&format!("invalid mode: {options}")));
            }
            "ro" | "readonly" => mount.read_only = true,
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "nocopy" => mount.no_copy = true,
            "idmap" => mount.idmap = true,
            propagation if PROPAGATIONS.contains(&propagation) => {
                propagation.clone_into(&mut mount.propagation)
            }
            _ => return Err(refuse(&format!("invalid mode: {options}"))),
        }
    }
    if source.starts_with('/') {
        mount.kind = MountKind::Bind;
        mount.source = clean(source);
        mount.create_source = true;
        if mount.propagation.is_empty() {
            mount.propagation = "rprivate".into();
        }
    } else {
        mount.kind = MountKind::Volume;
        mount.anonymous = source.is_empty();
        if !source.is_empty() {
            volume_name(source)?;
        }
        source.clone_into(&mut mount.name);
        if !mount.propagation.is_empty() {
            return Err(refuse("propagation is for bind mounts"));
        }
        if mount.idmap {
            return Err(refuse("idmap is for bind mounts"));
        }
    }
    Ok(mount)
}

/// Whether a word is one of the options of `-v`.
fn is_mode(word: &str) -> bool {
    const OTHERS: [&str; 10] = [
        "ro",
        "rw",
        "readonly",
        "z",
        "Z",
        "nocopy",
        "idmap",
        "consistent",
        "cached",
        "delegated",
    ];
    OTHERS.contains(&word) || PROPAGATIONS.contains(&word)
}

/// One of `HostConfig.Mounts`.
fn mount_request(asked: &Mount) -> Result<MountRecord> {
    let refuse =
        |why: String| Error::invalid(format!("invalid mount config for type \"{}\": {why}", asked.kind));
    if asked.target.is_empty() {
        return Err(refuse("field Target must not be empty".into()));
    }
    let mut mount = MountRecord {
        destination: destination_path(&asked.target, &asked.target)?,
        read_only: asked.read_only,
        ..MountRecord::default()
    };
    let foreign = |what: &str, present: bool| match present {
        true => Err(refuse(format!("field {what} must not be specified"))),
        false => Ok(()),
    };
    match asked.kind.as_str() {
        "bind" => {
            foreign("VolumeOptions", asked.volume_options.is_some())?;
            foreign("TmpfsOptions", asked.tmpfs_options.is_some())?;
            if asked.source.is_empty() {
                return Err(refuse("field Source must not be empty".into()));
            }
            if !asked.source.starts_with('/') {
                return Err(refuse(format!(
                    "invalid mount path: '{}' mount path must be absolute",
                    asked.source
                )));
            }
            let options = asked.bind_options.clone().unwrap_or_default();
            mount.kind = MountKind::Bind;
            mount.source = clean(&asked.source);
            mount.create_source = options.create_mountpoint;
            mount.non_recursive = options.non_recursive;
            mount.read_only_top = options.read_only_non_recursive;
            mount.propagation = match options.propagation.as_str() {
                "" => "rprivate".into(),
                propagation if PROPAGATIONS.contains(&propagation) => propagation.to_owned(),
                other => return Err(refuse(format!("invalid propagation mode: {other}"))),
            };
        }
        "volume" => {
            foreign("BindOptions", asked.bind_options.is_some())?;
            foreign("TmpfsOptions", asked.tmpfs_options.is_some())?;
            let options = asked.volume_options.clone().unwrap_or_default();
            let driver = options.driver_config.unwrap_or_default();
            if !asked.source.is_empty() {
                volume_name(&asked.source)?;
            }
            if options.subpath.split('/').any(|part| part == "..") || options.subpath.starts_with('/') {
                return Err(refuse(format!(
                    "the subpath {:?} must stay inside the volume",
                    options.subpath
                )));
            }
            mount.kind = MountKind::Volume;
            mount.name.clone_from(&asked.source);
            mount.anonymous = asked.source.is_empty();
            mount.no_copy = options.no_copy;
            mount.subpath = options.subpath;
            mount.volume_labels = options.labels;
            mount.driver_options = driver.options;
            mount.driver = driver.name;
            mount.mode = "z".into();
        }
        "tmpfs" => {
            foreign("BindOptions", asked.bind_options.is_some())?;
            foreign("VolumeOptions", asked.volume_options.is_some())?;
            foreign("Source", !asked.source.is_empty())?;
            let options = asked.tmpfs_options.clone().unwrap_or_default();
            if options.size_bytes < 0 {
                return Err(refuse("the size must not be negative".into()));
            }
            mount.kind = MountKind::Tmpfs;
            if options.size_bytes > 0 {
                mount.options.push(format!("size={}", options.size_bytes));
            }
            if options.mode != 0 {
                mount.options.push(format!("mode={:o}", options.mode & 0o7777));
            }
            for option in &options.options {
                let option = option.join("=");
                tmpfs_option(&option)?;
                mount.options.push(option);
            }
        }
        other => {
            return Err(Error::invalid(format!(
                "mount type {other:?} is not supported: bind, volume or tmpfs"
            )));
        }
    }
    Ok(mount)
}

/// Absolute, without `.`, `..` and doubled slashes, and not the root.
fn destination_path(path: &str, text: &str) -> Result<String> {
    if !path.starts_with('/') {
        return Err(Error::invalid(format!(
            "invalid volume specification: '{text}': invalid mount path: '{path}' mount path must be absolute"
        )));
    }
    if path.contains('\0') {
        return Err(Error::invalid(format!(
            "invalid mount path: {path:?} contains a NUL character"
        )));
    }
    let clean = clean(path);
    if clean == "/" {
        return Err(Error::invalid(format!(
            "invalid volume specification: '{text}': invalid specification: destination can't be '/'"
        )));
    }
    Ok(clean)
}

/// An absolute path without `.`, `..` and doubled slashes, as Go's `path.Clean`.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Checks a volume's name.
///
/// # Errors
/// When it has other characters than Docker allows.
pub fn volume_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first
        && name.len() > 1
        && name.len() <= 255
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}

fn tmpfs_option(option: &str) -> Result<()> {
    const FLAGS: [&str; 27] = [
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "bind",
        "rbind",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "defaults",
        "private",
        "rprivate",
    ];
    const PARAMETERS: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];
    let known = match option.split_once('=') {
        Some((name, value)) => PARAMETERS.contains(&name) && !value.is_empty(),
        None => FLAGS.contains(&option),
    };
    if known {
        Ok(())
    } else {
        Err(Error::invalid(format!("Invalid tmpfs option \"{option}\"")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binds(texts: &[&str]) -> Result<Vec<MountRecord>> {
        let host = HostConfig {
            binds: texts.iter().map(|t| (*t).to_owned()).collect(),
            ..HostConfig::default()
        };
        mount_points(&ContainerConfig::default(), &host, |_| Ok(Vec::new()))
    }

    #[test]
    fn binds_and_volumes_are_told_apart() {
        let found = binds(&[
            "/src//x/../y:/a:ro",
            "data:/b",
            "/c",
            "more:/d:nocopy,ro",
            "/e:/e:rslave",
        ])
        .unwrap();
        let of = |destination: &str| {
            found
                .iter()
                .find(|mount| mount.destination == destination)
                .unwrap()
        };
        assert_eq!(
            (of("/a").kind, of("/a").source.as_str(), of("/a").read_only),
            (MountKind::Bind, "/src/y", true)
        );
        assert!(of("/a").create_source);
        assert_eq!(
            (of("/b").kind, of("/b").name.as_str()),
            (MountKind::Volume, "data")
        );
        assert!(of("/c").anonymous);
        assert!(of("/d").no_copy && of("/d").read_only);
        assert_eq!(of("/e").propagation, "rslave");
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, needle) in [
            ("/a:/", "destination can't be '/'"),
            ("/a:b", "must be absolute"),
            ("a:/b:ro,rw", "invalid mode"),
            ("a:/b:what", "invalid mode"),
            ("../x:/b", "invalid characters"),
            ("a:b:c:d", "expected"),
            ("vol:/x:shared", "propagation is for bind mounts"),
            ("vol:/x:idmap", "idmap is for bind mounts"),
        ] {
            let error = binds(&[text]).unwrap_err();
            assert!(error.message().contains(needle), "{text}: {error}");
        }
        assert!(
            binds(&["/a:/x", "/b:/x/"])
                .unwrap_err()
                .message()
                .contains("Duplicate mount point")
        );
    }

    #[test]
    fn image_volumes_fill_what_is_left() {
        let mut config = ContainerConfig::default();
        for path in ["/data", "/other"] {
            config.volumes.entry(path.into()).or_default();
        }
        let host = HostConfig {
            binds: vec!["/host:/data".into()],
            ..HostConfig::default()
        };
        let found = mount_points(&config, &host, |_| Ok(Vec::new())).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].kind, MountKind::Bind);
        assert!(found[1].anonymous);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[a-z/:.,]{0,24}") {
            for mount in binds(&[&text]).unwrap_or_default() {
                prop_assert!(mount.destination.starts_with('/') && mount.destination.len() > 1);
                prop_assert!(!mount.destination.split('/').any(|part| part == ".."));
            }
        }
    }
}
