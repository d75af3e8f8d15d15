//! What a container sees under `/sys/fs/cgroup`.
//!
//! Data for the code that builds the root. With a cgroup namespace each hierarchy is mounted anew, whose root is then the
//! container's own cgroup; without one the container's directory is bound there, which looks the same.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::hierarchy::{Hierarchies, Mode, Version};
use super::path::CgroupPath;

/// The contents of `/sys/fs/cgroup` in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// v2: this is mounted on `/sys/fs/cgroup` itself.
    Unified(ViewMount),
    /// v1 and hybrid: a tmpfs (mode 0755) with a directory and a mount for each hierarchy, and symbolic links.
    Split {
        /// The mounts; the name is the directory.
        mounts: Vec<ViewMount>,
        /// Name and target: `cpu` to `cpu,cpuacct`.
        links: Vec<(String, String)>,
    },
}

/// A mount of a hierarchy in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewMount {
    /// Directory below `/sys/fs/cgroup`; empty for [`View::Unified`].
    pub name: String,
    /// `cgroup` or `cgroup2`.
    pub fstype: String,
    /// Options of a new mount made in the container's cgroup namespace: `cpu,cpuacct`, `none,name=systemd`.
    pub options: String,
    /// What to bind when the container has no cgroup namespace of its own.
    pub bind_source: PathBuf,
}

impl View {
    /// The view of the container whose cgroup is `path`.
    pub fn new(hierarchies: &Hierarchies, path: &CgroupPath) -> Self {
        let mode = hierarchies.mode();
        let mut links = Vec::new();
        let mut mounts = Vec::new();
        for hierarchy in hierarchies.list() {
            let bind_source = path.below(&hierarchy.mount);
            if hierarchy.version == Version::V2 {
                let name = if mode == Mode::V2 { "" } else { "unified" };
                let mount = ViewMount {
                    name: name.to_owned(),
                    fstype: "cgroup2".to_owned(),
                    options: String::new(),
                    bind_source,
                };
                if mode == Mode::V2 {
                    return Self::Unified(mount);
                }
                mounts.push(mount);
                continue;
            }
            let label = &hierarchy.label;
            let (name, options) = match label.strip_prefix("name=") {
                Some(name) => (name.to_owned(), format!("none,{label}")),
                None => (label.clone(), label.clone()),
            };
            if name.contains(',') {
                links.extend(name.split(',').map(|single| (single.to_owned(), name.clone())));
            }
            mounts.push(ViewMount {
                name,
                fstype: "cgroup".to_owned(),
                options,
                bind_source,
            });
        }
        Self::Split { mounts, links }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hierarchy::Hierarchy;
    use super::*;

    #[test]
    fn split_view() {
        let hierarchy = |label: &str, version| Hierarchy {
            version,
            mount: PathBuf::from("/sys/fs/cgroup").join(label),
            label: label.to_owned(),
            controllers: Vec::new(),
        };
        let path = CgroupPath::parse("/vessel/x").unwrap();
        let hierarchies = Hierarchies::from_list(vec![
            hierarchy("cpu,cpuacct", Version::V1),
            hierarchy("name=systemd", Version::V1),
            hierarchy("", Version::V2),
        ]);
        let View::Split { mounts, links } = View::new(&hierarchies, &path) else {
            panic!()
        };
        let names: Vec<_> = mounts
            .iter()
            .map(|mount| (mount.name.as_str(), mount.options.as_str()))
            .collect();
        assert_eq!(
            names,
            [
                ("cpu,cpuacct", "cpu,cpuacct"),
                ("systemd", "none,name=systemd"),
                ("unified", "")
            ]
        );
        assert_eq!(
            links,
            [
                ("cpu".into(), "cpu,cpuacct".into()),
                ("cpuacct".into(), "cpu,cpuacct".into())
            ]
        );
        assert_eq!(
            mounts[0].bind_source,
            PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/vessel/x")
        );
        let pure = Hierarchies::from_list(vec![hierarchy("", Version::V2)]);
        assert!(matches!(View::new(&pure, &path), View::Unified(mount) if mount.fstype == "cgroup2"));
    }
}
