//! The OCI runtime configuration (`config.json`), as the runtime specification 1.2 defines it, with public fields.
//!
//! Only what the runtime acts on is modelled; fields it does not know are ignored, as the specification asks.
//! Property names are the specification's. Values are checked where they are used, since the meaning of most depends
//! on the kernel; [`Spec::validate`] checks what can be known from the text alone.

mod linux;
mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

pub use crate::cgroup::Resources;
pub use crate::seccomp::profile::Seccomp;
pub use linux::*;
pub use process::*;

use crate::{Error, Result};

/// The version of the specification this runtime implements.
pub const OCI_VERSION: &str = "1.2.0";

/// The largest `config.json` that is read: real ones are tens of kilobytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The container configuration: the root object of `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// SemVer of the specification the bundle follows.
    pub oci_version: String,
    /// The process to run; may be absent until `start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The container's root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Host name in the UTS namespace.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub hostname: String,
    /// Domain name in the UTS namespace.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub domainname: String,
    /// Mounts beyond the root, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    /// Programs run at points of the life cycle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Arbitrary metadata.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// What is specific to Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

/// The root file system.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
    /// Whether the root is read-only inside the container.
    pub readonly: bool,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Path inside the container.
    pub destination: PathBuf,
    /// File system type, or empty/`bind` for bind mounts.
    #[serde(
        rename = "type",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub kind: String,
    /// Device, pseudo file system name, or the path to bind.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub source: String,
    /// Mount options as in fstab(5).
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub options: Vec<String>,
    /// User mappings of an idmapped mount.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group mappings of an idmapped mount.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
}

/// The hooks, each list in the order of execution.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Deprecated by the specification, still used: after the namespaces exist, before `pivot_root`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, after the namespaces exist, before `pivot_root`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before `pivot_root`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub create_container: Vec<Hook>,
    /// In the container's namespaces, before the user's program is executed.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, after the program was started.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, after the container was deleted.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub poststop: Vec<Hook>,
}

/// A program run at a point of the life cycle, with the container's state on its standard input.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Absolute path.
    pub path: PathBuf,
    /// Arguments, `argv[0]` included.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// The whole environment.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Seconds until it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

impl Spec {
    /// Checks what can be known from the text alone.
    ///
    /// # Errors
    /// Names the first property that is not valid.
    pub fn validate(&self) -> Result<()> {
        let major = self.oci_version.split('.').next().unwrap_or_default();
        if major != "1" {
            return Err(Error::invalid(format!(
                "ociVersion {:?} is not supported: this runtime implements 1.x, up to {OCI_VERSION}",
                self.oci_version
            )));
        }
        match &self.root {
            Some(root) if !root.path.as_os_str().is_empty() => {}
            _ => return Err(Error::invalid("root.path is required")),
        }
        if let Some(process) = &self.process {
            process.validate()?;
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            if mount.destination.as_os_str().is_empty() {
                return Err(Error::invalid(format!("mounts[{index}].destination is empty")));
            }
            if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
                return Err(Error::invalid(format!(
                    "mounts[{index}] ({}) needs both uidMappings and gidMappings, or neither",
                    mount.destination.display()
                )));
            }
        }
        if let Some(linux) = &self.linux {
            linux.validate(self)?;
        }
        if let Some(hooks) = &self.hooks {
            for hook in hooks.all() {
                if !hook.path.is_absolute() {
                    return Err(Error::invalid(format!(
                        "hook path {:?} is not absolute",
                        hook.path
                    )));
                }
                if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                    return Err(Error::invalid(format!(
                        "hook {:?}: timeout must be greater than zero",
                        hook.path
                    )));
                }
            }
        }
        Ok(())
    }

    /// The Linux section, or an empty one.
    pub fn linux(&self) -> &Linux {
        static EMPTY: std::sync::LazyLock<Linux> = std::sync::LazyLock::new(Linux::default);
        self.linux.as_ref().unwrap_or(&EMPTY)
    }
}

impl Hooks {
    /// All hooks of all points.
    pub fn all(&self) -> impl Iterator<Item = &Hook> {
        [
            &self.prestart,
            &self.create_runtime,
            &self.create_container,
            &self.start_container,
            &self.poststart,
            &self.poststop,
        ]
        .into_iter()
        .flatten()
    }
}

/// `null` reads as the default: Go encoders write it for empty lists and maps.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_fields_are_accepted() {
        let text = r#"{"ociVersion":"1.0.2-dev","root":{"path":"rootfs"},"mounts":null,"annotations":null,"future":{"a":1},
            "process":{"args":["sh"],"cwd":"/","env":null,"user":{"uid":0,"gid":0}},
            "linux":{"namespaces":[{"type":"pid"}],"maskedPaths":null,"sysctl":null}}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        spec.validate().unwrap();
        assert_eq!(spec.linux().namespaces.len(), 1);
    }

    #[test]
    fn invalid_specs_are_refused_with_the_property_named() {
        for (text, needle) in [
            (r#"{"ociVersion":"2.0.0","root":{"path":"r"}}"#, "ociVersion"),
            (r#"{"ociVersion":"1.0.0"}"#, "root.path"),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"},"process":{"args":[],"cwd":"/"}}"#,
                "process.args",
            ),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"},"process":{"args":["a"],"cwd":"x"}}"#,
                "process.cwd",
            ),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"},"linux":{"namespaces":[{"type":"pid"},{"type":"pid"}]}}"#,
                "twice",
            ),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"},"linux":{"namespaces":[],"sysctl":{"net.ipv4.ip_forward":"1"}}}"#,
                "net namespace",
            ),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"},"linux":{"namespaces":[{"type":"ipc"}],"sysctl":{"vm.swappiness":"1"}}}"#,
                "vm.swappiness",
            ),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"},"hostname":"x","linux":{"namespaces":[]}}"#,
                "uts",
            ),
        ] {
            let spec: Spec = serde_json::from_str(text).unwrap();
            let message = spec.validate().unwrap_err().report().message;
            assert!(message.contains(needle), "{message}");
        }
    }
}
