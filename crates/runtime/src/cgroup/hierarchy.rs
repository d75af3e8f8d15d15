//! Which cgroup hierarchies this machine has, and where they are mounted.
//!
//! The usual places are asked first: `/proc/self/cgroup` names the hierarchies, statfs(2) confirms each mount point below
//! `/sys/fs/cgroup`. Only for what is mounted elsewhere `/proc/self/mountinfo` is read, which grows with the mounts of
//! the machine. The answer is plain data, so that a daemon hands it to its shims.
//!
//! See cgroups(7) and the kernel's `Documentation/admin-guide/cgroup-v1/` and `cgroup-v2.rst`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Where every distribution mounts cgroups.
pub const DEFAULT_BASE: &str = "/sys/fs/cgroup";

const CGROUP_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// A controller, or what acts like one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum Controller {
    Blkio,
    Cpu,
    Cpuacct,
    Cpuset,
    Devices,
    Freezer,
    Hugetlb,
    Io,
    Memory,
    Misc,
    NetCls,
    NetPrio,
    PerfEvent,
    Pids,
    Rdma,
}

impl Controller {
    const NAMES: [(&'static str, Self); 15] = [
        ("blkio", Self::Blkio),
        ("cpu", Self::Cpu),
        ("cpuacct", Self::Cpuacct),
        ("cpuset", Self::Cpuset),
        ("devices", Self::Devices),
        ("freezer", Self::Freezer),
        ("hugetlb", Self::Hugetlb),
        ("io", Self::Io),
        ("memory", Self::Memory),
        ("misc", Self::Misc),
        ("net_cls", Self::NetCls),
        ("net_prio", Self::NetPrio),
        ("perf_event", Self::PerfEvent),
        ("pids", Self::Pids),
        ("rdma", Self::Rdma),
    ];

    /// By the kernel's name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, controller)| controller)
    }

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        // Every variant is in the table, in the order of its declaration.
        Self::NAMES[self as usize].0
    }
}

/// The two generations of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum Version {
    V1,
    V2,
}

/// How the machine is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Only v1 hierarchies.
    V1,
    /// v1 hierarchies for most controllers, and a v2 hierarchy beside them.
    Hybrid,
    /// One v2 hierarchy for everything.
    V2,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Its generation.
    pub version: Version,
    /// Its mount point.
    pub mount: PathBuf,
    /// What it is called among mount options: `memory`, `cpu,cpuacct`, `name=systemd`; empty for v2.
    pub label: String,
    /// Those of its controllers that are known here.
    pub controllers: Vec<Controller>,
}

/// The hierarchies of a machine. Found once by [`Hierarchies::detect`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchies {
    /// v1 hierarchies first, the v2 hierarchy last.
    list: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Looks at this machine.
    ///
    /// # Errors
    /// When no cgroup hierarchy is mounted, or `/proc` cannot be read.
    pub fn detect() -> Result<Self> {
        Self::detect_at(Path::new(DEFAULT_BASE))
    }

    pub(super) fn detect_at(base: &Path) -> Result<Self> {
        if magic(base) == Some(CGROUP2_MAGIC) {
            return Ok(Self {
                list: vec![unified(base.to_owned())],
            });
        }
        let own = read("/proc/self/cgroup")?;
        let mut list = Vec::new();
        let mut elsewhere: Vec<&str> = Vec::new();
        for label in v1_labels(&own) {
            let name = label.strip_prefix("name=").unwrap_or(label);
            let first = name.split(',').next().unwrap_or(name);
            if magic(&base.join(name)) == Some(CGROUP_MAGIC) {
                list.push(v1(base.join(name), label));
                continue;
            }
            // Controllers that are mounted together have symbolic links from the single names, in whatever order the
            // directory lists them.
            let path = base.join(first);
            match std::fs::canonicalize(&path)
                .ok()
                .filter(|path| magic(path) == Some(CGROUP_MAGIC))
            {
                Some(path) => list.push(v1(path, label)),
                None => elsewhere.push(label),
            }
        }
        let mut second = [base.join("unified"), base.join("systemd")]
            .into_iter()
            .find(|path| magic(path) == Some(CGROUP2_MAGIC));
        let has_v2 = own.lines().any(|line| line.starts_with("0::"));
        if !elsewhere.is_empty() || (has_v2 && second.is_none()) {
            let mounts = read("/proc/self/mountinfo")?;
            let found = parse_mountinfo(&mounts);
            for label in elsewhere {
                if let Some((path, _)) = found
                    .iter()
                    .find(|(_, options)| options.as_deref().is_some_and(|o| serves(o, label)))
                {
                    list.push(v1(path.clone(), label));
                }
            }
            second = second.or_else(|| {
                found
                    .iter()
                    .find(|(_, options)| options.is_none())
                    .map(|(path, _)| path.clone())
            });
        }
        list.extend(second.map(unified));
        if list.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "no cgroup hierarchy is mounted, so limits and statistics are impossible: mount one with \
                 `mount -t cgroup2 none /sys/fs/cgroup`",
            ));
        }
        Ok(Self { list })
    }

    /// How the machine is set up.
    pub fn mode(&self) -> Mode {
        let v2 = self.list.iter().any(|hierarchy| hierarchy.version == Version::V2);
        match (
            self.list.iter().any(|hierarchy| hierarchy.version == Version::V1),
            v2,
        ) {
            (true, true) => Mode::Hybrid,
            (true, false) => Mode::V1,
            _ => Mode::V2,
        }
    }

    /// All of them; v1 hierarchies first, the v2 hierarchy last.
    pub fn list(&self) -> &[Hierarchy] {
        &self.list
    }

    /// Whether some hierarchy has this controller. `Devices` and `Freezer` are part of every v2 hierarchy; `Blkio` and
    /// `Io` are the same.
    pub fn has(&self, controller: Controller) -> bool {
        let same = match controller {
            Controller::Blkio => Controller::Io,
            Controller::Io => Controller::Blkio,
            other => other,
        };
        self.list.iter().any(|hierarchy| {
            hierarchy.controllers.contains(&controller)
                || hierarchy.controllers.contains(&same)
                || (hierarchy.version == Version::V2
                    && matches!(controller, Controller::Devices | Controller::Freezer))
        })
    }

    #[cfg(test)]
    pub(super) fn from_list(list: Vec<Hierarchy>) -> Self {
        Self { list }
    }
}

/// The v2 hierarchy mounted at a path; its controllers are those that its root offers.
pub(super) fn unified(mount: PathBuf) -> Hierarchy {
    let controllers = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    Hierarchy {
        version: Version::V2,
        mount,
        label: String::new(),
        controllers: controllers
            .split_whitespace()
            .filter_map(Controller::from_name)
            .collect(),
    }
}

fn v1(mount: PathBuf, label: &str) -> Hierarchy {
    Hierarchy {
        version: Version::V1,
        mount,
        label: label.to_owned(),
        controllers: label.split(',').filter_map(Controller::from_name).collect(),
    }
}

fn magic(path: &Path) -> Option<u64> {
    // The field is signed or not by architecture; the magic numbers fit 32 bits.
    rustix::fs::statfs(path)
        .ok()
        .map(|stat| stat.f_type as u64 & 0xffff_ffff)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Error::with_source(ErrorKind::System, format!("cannot read {path}"), error))
}

/// The v1 hierarchies in `/proc/self/cgroup`: lines `4:memory:/path`.
fn v1_labels(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|label| !label.is_empty())
}

/// Whether the super block options of a v1 mount are those of the hierarchy `label`.
fn serves(options: &str, label: &str) -> bool {
    label
        .split(',')
        .all(|wanted| options.split(',').any(|option| option == wanted))
}

/// Mount points of cgroups, with the super block options of v1 mounts (none for v2).
fn parse_mountinfo(text: &str) -> Vec<(PathBuf, Option<String>)> {
    text.lines()
        .filter_map(|line| {
            let (mount, super_block) = line.split_once(" - ")?;
            let mut super_block = super_block.split(' ');
            let kind = super_block.next()?;
            let options = super_block.nth(1).unwrap_or_default();
            let point = unescape(mount.split(' ').nth(4)?);
            match kind {
                "cgroup" => Some((point, Some(options.to_owned()))),
                "cgroup2" => Some((point, None)),
                _ => None,
            }
        })
        .collect()
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let octal = (bytes[index] == b'\\')
            .then(|| bytes.get(index + 1..index + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(bytes[index]));
        index += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(
        plain,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_the_variants() {
        for (index, (name, controller)) in Controller::NAMES.iter().enumerate() {
            assert_eq!(*controller as usize, index);
            assert_eq!(controller.name(), *name);
            assert_eq!(serde_json::to_value(controller).unwrap(), *name);
        }
    }

    #[test]
    fn what_the_kernel_lists_is_understood() {
        let own = "12:cpu,cpuacct:/a\n5:name=systemd:/\n3:memory:/x:y\n0::/init.scope\n";
        assert_eq!(
            v1_labels(own).collect::<Vec<_>>(),
            ["cpu,cpuacct", "name=systemd", "memory"]
        );
        assert_eq!(
            v1(PathBuf::from("/x"), "cpu,cpuacct").controllers,
            [Controller::Cpu, Controller::Cpuacct]
        );
        let mounts = "\
            30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /mnt/my\\040cgroups/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
            34 30 0:30 / /mnt/cpu,cpuacct rw,nosuid shared:14 - cgroup cgroup rw,cpu,cpuacct\n\
            35 30 0:31 / /mnt/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            garbage\n";
        let found = parse_mountinfo(mounts);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], (PathBuf::from("/mnt/my cgroups/unified"), None));
        let by = |label| {
            found
                .iter()
                .find(|(_, o)| o.as_deref().is_some_and(|o| serves(o, label)))
                .map(|(p, _)| p.clone())
        };
        assert_eq!(by("cpu,cpuacct").unwrap(), Path::new("/mnt/cpu,cpuacct"));
        assert_eq!(by("name=systemd").unwrap(), Path::new("/mnt/systemd"));
        assert_eq!(by("memory"), None);
    }

    #[test]
    fn this_machine_has_hierarchies_that_survive_serialization() {
        let here = Hierarchies::detect().unwrap();
        let text = serde_json::to_string(&here).unwrap();
        assert_eq!(serde_json::from_str::<Hierarchies>(&text).unwrap(), here);
        for hierarchy in here.list() {
            let expected = if hierarchy.version == Version::V1 {
                CGROUP_MAGIC
            } else {
                CGROUP2_MAGIC
            };
            assert_eq!(magic(&hierarchy.mount), Some(expected), "{hierarchy:?}");
        }
        // The slow way finds the same.
        let slow = Hierarchies::detect_at(Path::new("/nonexistent")).unwrap();
        let labels = |list: &Hierarchies| {
            let mut labels: Vec<_> = list.list().iter().map(|h| h.label.clone()).collect();
            labels.sort();
            labels
        };
        assert_eq!(labels(&slow), labels(&here));
        assert_eq!(slow.mode(), here.mode());
    }
}
