//! Where a container's cgroup goes, relative to the mount point of every hierarchy.
//!
//! OCI's `cgroupsPath` when it is given (absolute: from the mount point; relative: below Vessel's own directory; systemd's
//! `slice:prefix:name`: the directory systemd would use), else `PARENT/ID` as Docker's cgroupfs driver does it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The directory that holds the cgroups of containers for which no other parent is asked.
pub const DEFAULT_PARENT: &str = "/vessel";

/// A checked path below the mount point of a hierarchy: never the root itself, never outside of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

impl CgroupPath {
    /// `PARENT/ID`, with [`DEFAULT_PARENT`] when no parent is given.
    ///
    /// # Errors
    /// When the result is not a path below the root of the hierarchies.
    pub fn for_container(parent: Option<&str>, id: &str) -> Result<Self> {
        if id.contains('/') {
            return Err(Error::invalid(format!(
                "container ID {id:?} cannot name a cgroup: it contains a slash"
            )));
        }
        let parent = parent
            .filter(|parent| !parent.is_empty())
            .unwrap_or(DEFAULT_PARENT);
        if parent.ends_with(".slice") && !parent.contains('/') {
            return Self::parse(&format!("{}/vessel-{id}.scope", expand_slice(parent)?));
        }
        if parent.starts_with('/') {
            Self::parse(&format!("{parent}/{id}"))
        } else {
            Self::parse(&format!("{DEFAULT_PARENT}/{parent}/{id}"))
        }
    }

    /// From `linux.cgroupsPath` of a `config.json`; empty means the default place.
    ///
    /// # Errors
    /// When the result is not a path below the root of the hierarchies.
    pub fn from_oci(cgroups_path: &str, id: &str) -> Result<Self> {
        if cgroups_path.is_empty() {
            return Self::for_container(None, id);
        }
        if cgroups_path.starts_with('/') {
            return Self::parse(cgroups_path);
        }
        let parts: Vec<&str> = cgroups_path.split(':').collect();
        if let &[slice, prefix, name] = parts.as_slice()
            && (slice.is_empty() || slice.ends_with(".slice"))
            && !cgroups_path.contains('/')
        {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            let unit = match prefix {
                _ if name.ends_with(".slice") => name.to_owned(),
                "" => format!("{name}.scope"),
                _ => format!("{prefix}-{name}.scope"),
            };
            return Self::parse(&format!("{}/{unit}", expand_slice(slice)?));
        }
        Self::parse(&format!("{DEFAULT_PARENT}/{cgroups_path}"))
    }

    /// A path as `/proc/PID/cgroup` shows it.
    ///
    /// # Errors
    /// When it is the root or leads outside.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| Err(Error::invalid(format!("cgroup path {text:?} is refused: {why}")));
        if text.len() > 3072 {
            return refuse("it is longer than 3072 bytes");
        }
        let mut clean = String::with_capacity(text.len());
        for part in text.split('/') {
            match part {
                "" | "." => continue,
                ".." => return refuse("it contains `..`"),
                _ => {}
            }
            if part.len() > 255 {
                return refuse("a name in it is longer than 255 bytes");
            }
            if part.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
                return refuse("it contains a control character");
            }
            if !clean.is_empty() {
                clean.push('/');
            }
            clean.push_str(part);
        }
        if clean.is_empty() {
            return refuse("it is the root, whose limits are the machine's own");
        }
        Ok(Self(clean))
    }

    /// The path below a mount point.
    pub fn below(&self, mount: &Path) -> PathBuf {
        mount.join(&self.0)
    }

    /// Relative to the mount point, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directories above it and below the mount point, outermost first.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(end, _)| &self.0[..end])
    }
}

/// `a-b.slice` is kept by systemd in `a.slice/a-b.slice`.
fn expand_slice(slice: &str) -> Result<String> {
    let Some(name) = slice.strip_suffix(".slice") else {
        return Err(Error::invalid(format!(
            "{slice:?} is not the name of a systemd slice"
        )));
    };
    if name == "-" {
        return Ok(String::new());
    }
    if name.is_empty() || name.split('-').any(str::is_empty) {
        return Err(Error::invalid(format!(
            "{slice:?} is not the name of a systemd slice"
        )));
    }
    let mut path = String::new();
    for end in name.match_indices('-').map(|(end, _)| end).chain([name.len()]) {
        path.push('/');
        path.push_str(&name[..end]);
        path.push_str(".slice");
    }
    Ok(path)
}

impl TryFrom<String> for CgroupPath {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.to_string()
    }
}

impl std::fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places() {
        let container = |parent, id| CgroupPath::for_container(parent, id).unwrap().to_string();
        assert_eq!(container(None, "ab12"), "/vessel/ab12");
        assert_eq!(container(Some(""), "ab12"), "/vessel/ab12");
        assert_eq!(container(Some("/limits//web/"), "x"), "/limits/web/x");
        assert_eq!(container(Some("web"), "x"), "/vessel/web/x");
        assert_eq!(
            container(Some("a-b.slice"), "x"),
            "/a.slice/a-b.slice/vessel-x.scope"
        );
        let oci = |path| CgroupPath::from_oci(path, "id").unwrap().to_string();
        assert_eq!(oci(""), "/vessel/id");
        assert_eq!(oci("/docker/0123"), "/docker/0123");
        assert_eq!(oci("pod/./c"), "/vessel/pod/c");
        assert_eq!(oci("system.slice:docker:0123"), "/system.slice/docker-0123.scope");
        assert_eq!(oci(":docker:0123"), "/system.slice/docker-0123.scope");
        assert_eq!(oci("-.slice:cri:x"), "/cri-x.scope");
    }

    #[test]
    fn nothing_escapes() {
        for path in [
            "/",
            "",
            "//",
            "/.",
            "/../x",
            "/a/../../x",
            "/a\nb",
            "/a\0",
            "/a/..",
        ] {
            assert!(CgroupPath::parse(path).is_err(), "{path:?}");
        }
        assert!(CgroupPath::for_container(None, "../../x").is_err());
        assert!(CgroupPath::for_container(Some("../x"), "y").is_err());
        assert!(CgroupPath::from_oci("a--b.slice:x:y", "id").is_err());
        assert!(serde_json::from_str::<CgroupPath>("\"/../x\"").is_err());
        assert!(CgroupPath::parse(&"a/".repeat(2000)).is_err());
    }

    #[test]
    fn ancestors_are_outermost_first() {
        let path = CgroupPath::parse("/a/b/c").unwrap();
        assert_eq!(path.ancestors().collect::<Vec<_>>(), ["a", "a/b"]);
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_stays_below(text in "[/.a:\\-\\PC]{0,40}") {
            let paths = [CgroupPath::parse(&text), CgroupPath::from_oci(&text, "i"),
                         CgroupPath::for_container(Some(&text), "i")];
            for path in paths.into_iter().flatten() {
                prop_assert!(!path.as_str().starts_with('/') && !path.as_str().is_empty());
                prop_assert!(path.as_str().split('/').all(|part| !part.is_empty() && part != ".." && part != "."));
                prop_assert_eq!(CgroupPath::parse(&path.to_string()).unwrap(), path);
            }
        }
    }
}
