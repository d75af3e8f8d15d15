//! `-v`, `--mount`, `--tmpfs` and their like.

use std::path::{Component, Path, PathBuf};

use vessel_api::{BindOptions, Empty, HostConfig, ImageOptions, Map, Mount, TmpfsOptions, VolumeOptions};

use super::{csv, parse_bool};
use crate::output::units::parse_size;

/// Volumes and mounts.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Volumes and mounts")]
pub struct MountOptions {
    /// Bind mount a path or a volume: [SOURCE:]TARGET[:OPTIONS]
    #[arg(short = 'v', long, value_name = "list")]
    pub volume: Vec<String>,
    /// Attach a file system: type=bind|volume|tmpfs|image,src=...,dst=...
    #[arg(long, value_name = "mount")]
    pub mount: Vec<String>,
    /// Mount a tmpfs directory: TARGET[:OPTIONS]
    #[arg(long, value_name = "list")]
    pub tmpfs: Vec<String>,
    /// Mount the volumes of other containers: ID[:ro|rw]
    #[arg(long, value_name = "list")]
    pub volumes_from: Vec<String>,
    /// The volume driver of the container
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub volume_driver: String,
    /// Mount the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Options of the storage driver
    #[arg(long, value_name = "list")]
    pub storage_opt: Vec<String>,
}

impl MountOptions {
    /// Fills in its part of the request; the anonymous volumes are returned.
    pub fn fill(&self, host: &mut HostConfig) -> Result<Map<Empty>, String> {
        let mut anonymous = Map::new();
        for spec in &self.volume {
            match volume(spec)? {
                Volume::Anonymous(target) => {
                    anonymous.insert(target, Empty {});
                }
                Volume::Bind(bind) => host.binds.push(bind),
            }
        }
        for spec in &self.mount {
            host.mounts.push(mount(spec)?);
        }
        for spec in &self.tmpfs {
            let (target, options) = spec.split_once(':').unwrap_or((spec, ""));
            host.tmpfs.insert(target.to_string(), options.to_string());
        }
        host.volumes_from = self.volumes_from.clone();
        host.volume_driver = self.volume_driver.clone();
        host.readonly_rootfs = self.read_only;
        for option in &self.storage_opt {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| "invalid storage option".to_string())?;
            host.storage_opt.insert(name.to_string(), value.to_string());
        }
        Ok(anonymous)
    }
}

#[derive(Debug, PartialEq)]
enum Volume {
    Anonymous(String),
    Bind(String),
}

fn volume(spec: &str) -> Result<Volume, String> {
    if spec.is_empty() {
        return Err("invalid empty volume spec".to_string());
    }
    let parts: Vec<&str> = spec.split(':').collect();
    let invalid = |reason: &str| Err(format!("invalid spec: {spec}: {reason}"));
    if parts.iter().any(|part| part.is_empty()) {
        return invalid("empty section between colons");
    }
    match parts.as_slice() {
        [target] => Ok(Volume::Anonymous((*target).to_string())),
        [source, rest @ ..] if rest.len() <= 2 => {
            Ok(Volume::Bind(format!("{}:{}", absolute(source), rest.join(":"))))
        }
        _ => invalid("too many colons"),
    }
}

/// A path that begins with a dot is meant from here on.
fn absolute(source: &str) -> String {
    if !source.starts_with('.') {
        return source.to_string();
    }
    let Ok(here) = std::env::current_dir() else {
        return source.to_string();
    };
    clean(&here.join(source)).to_string_lossy().into_owned()
}

/// Go's `filepath.Clean` of an absolute path.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn mount(spec: &str) -> Result<Mount, String> {
    let mut mount = Mount {
        kind: "volume".to_string(),
        ..Mount::default()
    };
    for field in csv::parse(spec.trim())? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        let flag = || match value {
            None => Ok(true),
            Some(text) => parse_bool(text).ok_or_else(|| format!("invalid value for {key}: {text}")),
        };
        match key.as_str() {
            "readonly" | "ro" => {
                mount.read_only = flag()?;
                continue;
            }
            "volume-nocopy" => {
                volume_options(&mut mount).no_copy = flag()?;
                continue;
            }
            "bind-nonrecursive" => {
                bind_options(&mut mount).non_recursive = flag()?;
                continue;
            }
            "bind-create-src" => {
                bind_options(&mut mount).create_mountpoint = flag()?;
                continue;
            }
            _ => {}
        }
        let Some(value) = value else {
            return Err(format!("invalid field '{field}' must be a key=value pair"));
        };
        set(&mut mount, &key, value, &field)?;
    }
    check(&mount)?;
    Ok(mount)
}

fn set(mount: &mut Mount, key: &str, value: &str, field: &str) -> Result<(), String> {
    let invalid = || format!("invalid value for {key}: {value}");
    let pair = |map: &mut Map<String>| {
        let (name, value) = value.split_once('=').unwrap_or((value, ""));
        map.insert(name.to_string(), value.to_string());
    };
    match key {
        "type" => mount.kind = value.to_ascii_lowercase(),
        "source" | "src" => mount.source = absolute(value),
        "target" | "dst" | "destination" => mount.target = value.to_string(),
        "consistency" => mount.consistency = value.to_ascii_lowercase(),
        "bind-propagation" => bind_options(mount).propagation = value.to_ascii_lowercase(),
        "bind-recursive" => match value {
            "enabled" => {}
            "disabled" => bind_options(mount).non_recursive = true,
            "writable" => bind_options(mount).read_only_non_recursive = true,
            "readonly" => bind_options(mount).read_only_force_recursive = true,
            _ => {
                let choice = "(must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")";
                return Err(format!("{} {choice}", invalid()));
            }
        },
        "volume-subpath" => volume_options(mount).subpath = value.to_string(),
        "volume-label" => pair(&mut volume_options(mount).labels),
        "volume-driver" => {
            volume_options(mount).driver_config.get_or_insert_default().name = value.to_string();
        }
        "volume-opt" => pair(
            &mut volume_options(mount)
                .driver_config
                .get_or_insert_default()
                .options,
        ),
        "image-subpath" => {
            mount
                .image_options
                .get_or_insert_with(ImageOptions::default)
                .subpath = value.to_string();
        }
        "tmpfs-size" => tmpfs_options(mount).size_bytes = parse_size(value).map_err(|_| invalid())?,
        "tmpfs-mode" => {
            tmpfs_options(mount).mode = u32::from_str_radix(value, 8).map_err(|_| invalid())?;
        }
        _ => return Err(format!("unexpected key '{key}' in '{field}'")),
    }
    Ok(())
}

fn check(mount: &Mount) -> Result<(), String> {
    if mount.kind.is_empty() {
        return Err("type is required".to_string());
    }
    if mount.target.is_empty() {
        return Err("target is required".to_string());
    }
    for (present, kind) in [
        (mount.volume_options.is_some(), "volume"),
        (mount.bind_options.is_some(), "bind"),
        (mount.image_options.is_some(), "image"),
        (mount.tmpfs_options.is_some(), "tmpfs"),
    ] {
        if present && mount.kind != kind {
            return Err(format!(
                "cannot mix '{kind}-*' options with mount type '{}'",
                mount.kind
            ));
        }
    }
    let Some(bind) = &mount.bind_options else {
        return Ok(());
    };
    let requires = |option: &str, what: &str| {
        Err(format!(
            "option 'bind-recursive={option}' requires '{what}' to be specified in conjunction"
        ))
    };
    if bind.read_only_non_recursive && !mount.read_only {
        return requires("writable", "readonly");
    }
    if bind.read_only_force_recursive {
        if !mount.read_only {
            return requires("readonly", "readonly");
        }
        if bind.propagation != "rprivate" {
            return requires("readonly", "bind-propagation=rprivate");
        }
    }
    Ok(())
}

fn bind_options(mount: &mut Mount) -> &mut BindOptions {
    mount.bind_options.get_or_insert_default()
}

fn volume_options(mount: &mut Mount) -> &mut VolumeOptions {
    mount.volume_options.get_or_insert_default()
}

fn tmpfs_options(mount: &mut Mount) -> &mut TmpfsOptions {
    mount.tmpfs_options.get_or_insert_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn volumes() {
        assert_eq!(volume("/data").unwrap(), Volume::Anonymous("/data".into()));
        assert_eq!(
            volume("vol:/data:ro").unwrap(),
            Volume::Bind("vol:/data:ro".into())
        );
        let here = std::env::current_dir().unwrap();
        let parent = here.parent().unwrap().join("x");
        assert_eq!(
            volume("./../x:/y").unwrap(),
            Volume::Bind(format!("{}:/y", parent.display()))
        );
        for wrong in ["", ":", "a:", ":a", "a::b", "a:b:c:d"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mounts() {
        let m = mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").unwrap();
        assert_eq!(
            (m.kind.as_str(), m.source.as_str(), m.target.as_str(), m.read_only),
            ("bind", "/a", "/b", true)
        );
        assert_eq!(m.bind_options.unwrap().propagation, "rslave");
        let m =
            mount("src=v,target=/b,volume-opt=o=x,volume-label=a=b,volume-nocopy=false,volume-driver=local")
                .unwrap();
        assert_eq!(m.kind, "volume");
        let options = m.volume_options.unwrap();
        assert_eq!(options.labels["a"], "b");
        assert_eq!(options.driver_config.unwrap().options["o"], "x");
        let m = mount("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap();
        assert_eq!(
            m.tmpfs_options.unwrap(),
            TmpfsOptions {
                size_bytes: 1 << 20,
                mode: 0o1770,
                ..Default::default()
            }
        );
        for (wrong, why) in [
            ("", "must be a key=value pair"),
            ("type=bind", "target is required"),
            ("type=bind,dst=/a,nope=1", "unexpected key 'nope'"),
            ("type=bind,dst=/a,volume-nocopy", "cannot mix 'volume-*'"),
            ("type=bind,dst=/a,readonly=maybe", "invalid value for readonly"),
            ("type=tmpfs,dst=/a,tmpfs-mode=9", "invalid value for tmpfs-mode"),
            (
                "type=bind,dst=/a,bind-recursive=readonly,ro",
                "bind-propagation=rprivate",
            ),
        ] {
            let error = mount(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(spec in "[a-c/:=,0-9\".-]{0,24}") {
            let _ = volume(&spec);
            let _ = mount(&spec);
            let _ = mount(&format!("type=bind,dst=/a,{spec}"));
        }
    }
}
