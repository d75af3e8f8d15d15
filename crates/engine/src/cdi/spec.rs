//! The structure of a CDI specification, and what a good one is.
//!
//! As with the reference implementation members that are not known make a file invalid, for they would be an edit that is
//! left out; a file may not use what came after the version it names.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::yaml;

/// The most devices of one file.
const MAX_DEVICES: usize = 4096;
/// The most entries of one list of edits.
const MAX_EDITS: usize = 4096;

/// A specification.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Specification {
    cdi_version: String,
    /// `vendor/class`.
    pub kind: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub devices: Vec<Device>,
    #[serde(default, deserialize_with = "nullable")]
    pub container_edits: Edits,
}

/// A device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    #[serde(deserialize_with = "name")]
    pub name: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "nullable")]
    pub container_edits: Edits,
}

/// What a container gets.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub device_nodes: Vec<Node>,
    #[serde(deserialize_with = "nullable")]
    pub net_devices: Vec<NetDevice>,
    #[serde(deserialize_with = "nullable")]
    pub hooks: Vec<Hook>,
    #[serde(deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    pub intel_rdt: Option<serde_json::Value>,
    #[serde(deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Node {
    /// Inside.
    pub path: String,
    /// Outside, when it is another.
    pub host_path: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// An interface that moves into the container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetDevice {
    pub host_interface_name: String,
    #[serde(rename = "name")]
    _name: String,
}

/// A program run at a point of the life cycle.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Hook {
    pub hook_name: String,
    pub path: String,
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

/// A mount.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(deserialize_with = "nullable")]
    pub options: Vec<String>,
    #[serde(rename = "type")]
    pub kind: String,
}

/// The names of hooks.
const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

impl Specification {
    /// Reads one. JSON is YAML.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).or_else(|_| yaml::parse(text))?
        } else {
            yaml::parse(text)?
        };
        if !value.is_object() {
            return Err("it is not a mapping".into());
        }
        let specification: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        specification.check()?;
        Ok(specification)
    }

    fn check(&self) -> Result<(), String> {
        let version = self.version()?;
        let (vendor, class) = self
            .kind
            .split_once('/')
            .ok_or_else(|| format!("its kind {:?} is not of the form vendor/class", self.kind))?;
        part("vendor", vendor, |byte| byte.is_ascii_alphabetic(), b"_-.")?;
        part("class", class, |byte| byte.is_ascii_alphabetic(), b"_-.")?;
        if self.devices.is_empty() {
            return Err("it has no devices".into());
        }
        if self.devices.len() > MAX_DEVICES {
            return Err(format!("it has more than {MAX_DEVICES} devices"));
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            part(
                "device name",
                &device.name,
                |byte| byte.is_ascii_alphanumeric(),
                b"_-.:",
            )?;
            if !names.insert(&device.name) {
                return Err(format!("it has several devices {:?}", device.name));
            }
            device.container_edits.check()?;
        }
        self.container_edits.check()?;
        let needed = self.needed(class);
        if version < needed {
            let needed = match needed {
                0..10 => format!("0.{needed}.0"),
                later => format!("1.{}.0", later - 10),
            };
            return Err(format!("the spec version must be at least v{needed}"));
        }
        Ok(())
    }

    /// The version as a number that grows: the minor number below 1.0, then 10 and on.
    fn version(&self) -> Result<u32, String> {
        let text = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        match text {
            "1.0.0" => Ok(10),
            "1.1.0" => Ok(11),
            "0.1.0" | "0.2.0" | "0.3.0" | "0.4.0" | "0.5.0" | "0.6.0" | "0.7.0" | "0.8.0" => {
                Ok(u32::from(text.as_bytes()[2] - b'0'))
            }
            _ => Err(format!(
                "its version {:?} is not one from 0.1.0 to 1.1.0",
                self.cdi_version
            )),
        }
    }

    /// The version that first had all that is used.
    fn needed(&self, class: &str) -> u32 {
        let edits = || {
            let of_devices = self.devices.iter().map(|device| &device.container_edits);
            of_devices.chain([&self.container_edits])
        };
        let annotated = |annotations: &Option<BTreeMap<String, String>>| {
            annotations
                .as_ref()
                .is_some_and(|annotations| !annotations.is_empty())
        };
        if edits().any(|edits| !edits.net_devices.is_empty()) {
            // What is refused at the start all the same is told there.
            11
        } else if edits().any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty()) {
            7
        } else if class.contains('.')
            || annotated(&self.annotations)
            || self.devices.iter().any(|device| annotated(&device.annotations))
        {
            6
        } else if self
            .devices
            .iter()
            .any(|device| device.name.starts_with(|c: char| c.is_ascii_digit()))
            || edits().any(|edits| edits.device_nodes.iter().any(|node| !node.host_path.is_empty()))
        {
            5
        } else if edits().any(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty())) {
            4
        } else {
            3
        }
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        let lists = [
            self.env.len(),
            self.device_nodes.len(),
            self.net_devices.len(),
            self.hooks.len(),
            self.mounts.len(),
            self.additional_gids.len(),
        ];
        if lists.iter().any(|length| *length > MAX_EDITS) {
            return Err(format!("it has more than {MAX_EDITS} edits of a kind"));
        }
        variables(&self.env)?;
        for node in &self.device_nodes {
            absolute("device path", &node.path)?;
            if !node.host_path.is_empty() {
                absolute("device's path on the host", &node.host_path)?;
            }
            if !matches!(node.kind.as_str(), "" | "b" | "c" | "u" | "p") {
                return Err(format!("device {:?}: invalid type {:?}", node.path, node.kind));
            }
            if !node.permissions.bytes().all(|byte| b"rwm".contains(&byte)) {
                return Err(format!(
                    "device {:?}: invalid permissions {:?}",
                    node.path, node.permissions
                ));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("invalid hook name {:?}", hook.hook_name));
            }
            absolute("path of a hook", &hook.path)?;
            variables(&hook.env)?;
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(format!("hook {:?}: its timeout is not above zero", hook.path));
            }
            if hook.args.iter().any(|word| word.contains('\0')) {
                return Err(format!(
                    "hook {:?}: its arguments contain NUL characters",
                    hook.path
                ));
            }
        }
        for mount in &self.mounts {
            absolute("container path of a mount", &mount.container_path)?;
            // Of a file system that is none of the host's it is a name.
            if mount.host_path.is_empty() || mount.host_path.contains('\0') {
                return Err("a mount has no path of the host".into());
            }
        }
        Ok(())
    }
}

fn absolute(what: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(());
    }
    Err(format!("the {what}, {path:?}, is not absolute"))
}

fn variables(list: &[String]) -> Result<(), String> {
    let good = |pair: &&String| pair.find('=').is_some_and(|at| at > 0) && !pair.contains('\0');
    match list.iter().find(|pair| !good(pair)) {
        Some(pair) => Err(format!("invalid environment variable {pair:?}")),
        None => Ok(()),
    }
}

/// Checks a part of a device's full name.
fn part(what: &str, text: &str, first: impl Fn(u8) -> bool, also: &[u8]) -> Result<(), String> {
    let bytes = text.as_bytes();
    let good = match (bytes.first(), bytes.last()) {
        (Some(begin), Some(end)) => first(*begin) && end.is_ascii_alphanumeric(),
        _ => false,
    };
    if good
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || also.contains(byte))
    {
        return Ok(());
    }
    Err(format!("the {what} {text:?} is not valid"))
}

/// YAML has names that look like numbers.
fn name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Ok(text),
        serde_json::Value::Number(number) => Ok(number.to_string()),
        _ => Err(serde::de::Error::custom("a device's name is text")),
    }
}

/// `null` reads as nothing.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_by_vendors() {
        let text = r#"---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidia-modeset
    fileMode: 0666
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, rbind, rprivate]
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      major: 195
  name: 0
- name: all
  containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}
kind: nvidia.com/gpu
"#;
        let found = Specification::parse(text).unwrap();
        assert_eq!(found.devices[0].name, "0");
        assert_eq!(found.container_edits.device_nodes[0].file_mode, Some(0o666));
        assert_eq!(found.container_edits.hooks[0].args.len(), 4);
        assert_eq!(found.container_edits.mounts[0].options.len(), 5);
    }

    #[test]
    fn what_is_refused() {
        let with = |edits: &str| {
            format!(
                r#"{{"cdiVersion":"1.0.0","kind":"v.com/c","devices":[{{"name":"a","containerEdits":{edits}}}]}}"#
            )
        };
        assert!(Specification::parse(&with("{}")).is_ok());
        for (text, why) in [
            (with(r#"{"env":["=x"]}"#), "environment"),
            (with(r#"{"env":["a=b\u0000"]}"#), "environment"),
            (with(r#"{"unheardOf":[]}"#), "unknown field"),
            (with(r#"{"deviceNodes":[{"path":"dev/x"}]}"#), "not absolute"),
            (
                with(r#"{"deviceNodes":[{"path":"/dev/x","type":"x"}]}"#),
                "invalid type",
            ),
            (
                with(r#"{"deviceNodes":[{"path":"/dev/x","permissions":"rx"}]}"#),
                "permissions",
            ),
            (with(r#"{"hooks":[{"hookName":"x","path":"/x"}]}"#), "hook name"),
            (
                with(r#"{"hooks":[{"hookName":"poststop","path":"x"}]}"#),
                "not absolute",
            ),
            (
                with(r#"{"hooks":[{"hookName":"poststop","path":"/x","timeout":0}]}"#),
                "timeout",
            ),
            (with(r#"{"mounts":[{"hostPath":"/x"}]}"#), "not absolute"),
            (
                with(r#"{"netDevices":[{"hostInterfaceName":"e","name":"f"}]}"#),
                "at least v1.1.0",
            ),
            (
                r#"{"cdiVersion":"2.0.0","kind":"v.com/c","devices":[]}"#.into(),
                "version",
            ),
            (
                r#"{"cdiVersion":"1.0.0","kind":"v.com/c","devices":[]}"#.into(),
                "no devices",
            ),
            (
                r#"{"cdiVersion":"1.0.0","kind":"c","devices":[]}"#.into(),
                "vendor/class",
            ),
            (
                with("{}").replace("1.0.0", "0.3.0").replace("\"a\"", "\"0\""),
                "at least v0.5.0",
            ),
            ("- a".into(), "not a mapping"),
            (String::new(), "not a mapping"),
        ] {
            let error = Specification::parse(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-zA-Z0-9 \\n:&*<!{}\\[\\],'\"|>%/=._-]{0,300}") {
            let _ = Specification::parse(&text);
        }
    }
}
