//! The options of the driver `local`: `type`, `device` and `o`, as mount(8) takes them. A volume that has them is mounted on
//! its directory while it is used ([`super::uses`]).
//!
//! The rules and words are those of Docker's driver. `size` limits a plain directory by a quota of its file system
//! ([`crate::quota`]). An NFS server's `addr`
//! must be an address: the kernel does not look names up.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_change, mount_remount};
use vessel_api::Map;

use crate::error::Context;
use crate::mountinfo::mount_points;
use crate::{Error, Result};

/// What each option needs beside it.
const NEEDS: [(&str, &[&str]); 3] = [
    ("device", &["type"]),
    ("type", &["device"]),
    ("o", &["device", "type"]),
];

/// The words of `o` that are flags of a mount: set, or cleared.
const FLAGS: [(&str, MountFlags, bool); 21] = [
    ("defaults", MountFlags::empty(), true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("suid", MountFlags::NOSUID, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("dev", MountFlags::NODEV, false),
    ("nodev", MountFlags::NODEV, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("atime", MountFlags::NOATIME, false),
    ("noatime", MountFlags::NOATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("bind", MountFlags::BIND, true),
    ("rbind", MountFlags::BIND.union(MountFlags::REC), true),
];

const PROPAGATIONS: [(&str, MountPropagationFlags); 8] = [
    ("private", MountPropagationFlags::PRIVATE),
    (
        "rprivate",
        MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC),
    ),
    ("shared", MountPropagationFlags::SHARED),
    (
        "rshared",
        MountPropagationFlags::SHARED.union(MountPropagationFlags::REC),
    ),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    (
        "rslave",
        MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC),
    ),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
    (
        "runbindable",
        MountPropagationFlags::UNBINDABLE.union(MountPropagationFlags::REC),
    ),
];

/// Refuses options that cannot be mounted.
pub(super) fn check(options: &Map<String>) -> Result<()> {
    for (option, value) in options {
        match option.as_str() {
            "type" | "o" | "device" => {}
            "size" if limit(options)? > 0 && is_mount(options) => {
                return Err(Error::invalid(
                    "the option \"size\" limits a directory of this host: what is mounted is limited by o=size=…, if its file system can do that",
                ));
            }
            "size" => {}
            _ => return Err(Error::invalid(format!("invalid option: {option:?}"))),
        }
        if value.contains('\0') {
            return Err(Error::invalid(format!(
                "the option {option:?} has a zero byte in it"
            )));
        }
    }
    for (option, needs) in NEEDS {
        if let Some(missing) = needs
            .iter()
            .find(|needed| options.contains_key(option) && !options.contains_key(**needed))
        {
            return Err(Error::invalid(format!("missing required option: {missing:?}")));
        }
    }
    let split = Split::of(option(options, "o"));
    if matches!(option(options, "type"), "nfs" | "nfs4")
        && let Some(server) = split.data.iter().find_map(|word| word.strip_prefix("addr="))
        && server.parse::<std::net::IpAddr>().is_err()
    {
        return Err(Error::invalid(format!(
            "addr={server}: the kernel looks no names up, give the server's IP address"
        )));
    }
    Ok(())
}

/// Whether options make a mount.
pub(super) fn is_mount(options: &Map<String>) -> bool {
    options.keys().any(|name| name != "size")
}

/// The limit of a plain directory in bytes; 0: none.
pub(super) fn limit(options: &Map<String>) -> Result<u64> {
    options.get("size").map_or(Ok(0), |size| crate::quota::size(size))
}

fn option<'a>(options: &'a Map<String>, name: &str) -> &'a str {
    options.get(name).map_or("", String::as_str)
}

/// The words of `o`, by what becomes of them.
#[derive(Debug, PartialEq)]
struct Split<'a> {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    /// For the file system.
    data: Vec<&'a str>,
}

impl<'a> Split<'a> {
    fn of(words: &'a str) -> Self {
        let mut split = Self {
            flags: MountFlags::empty(),
            propagation: None,
            data: Vec::new(),
        };
        for word in words.split(',').filter(|word| !word.is_empty()) {
            if let Some((_, flag, set)) = FLAGS.iter().find(|(name, ..)| *name == word) {
                split.flags.set(*flag, *set);
            } else if let Some((_, kind)) = PROPAGATIONS.iter().find(|(name, _)| *name == word) {
                split.propagation = Some(*kind);
            } else {
                split.data.push(word);
            }
        }
        split
    }
}

/// Mounts what the options say on a volume's directory.
pub(super) fn mount(options: &Map<String>, at: &Path) -> Result<()> {
    let (kind, device, words) = (
        option(options, "type"),
        option(options, "device"),
        option(options, "o"),
    );
    let what = || {
        format!(
            "failed to mount local volume: mount {device}:{}, type {kind:?}, options {:?}",
            at.display(),
            without_passwords(words)
        )
    };
    let split = Split::of(words);
    let data = std::ffi::CString::new(split.data.join(",")).map_err(|_| Error::invalid(what()))?;
    rustix::mount::mount(device, at, kind, split.flags, Some(data.as_c_str())).context(what)?;
    // A bind mount takes its other flags, and any mount its propagation, once it is there.
    let bound = split.flags.contains(MountFlags::BIND);
    let rest = split.flags.difference(MountFlags::REC);
    let more = || {
        if bound && rest != MountFlags::BIND {
            mount_remount(at, rest, "")?;
        }
        split.propagation.map_or(Ok(()), |kind| mount_change(at, kind))
    };
    more().context(what).inspect_err(|_| {
        let _ = unmount(at);
    })
}

/// Passwords of CIFS are no part of a message.
fn without_passwords(words: &str) -> String {
    let hide = |word: &str| match word.split_once('=') {
        Some((key @ ("password" | "pass"), _)) => format!("{key}=********"),
        _ => word.to_owned(),
    };
    words.split(',').map(hide).collect::<Vec<_>>().join(",")
}

/// Whether something is mounted on a directory. None is mounted where there is none.
pub(super) fn is_mounted(at: &Path) -> Result<bool> {
    // Not asked of a server that may not answer.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    match statx(CWD, at, flags, StatxFlags::empty()) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error).context(|| format!("look whether {} is mounted", at.display())),
    }
}

/// Whether something is mounted below a directory.
pub(super) fn has_mounts_below(at: &Path) -> Result<bool> {
    let at = match std::fs::canonicalize(at) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        found => found.context(|| format!("look below {}", at.display()))?,
    };
    let list = std::fs::read("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo")?;
    let mut points = mount_points(&list).into_iter();
    Ok(points.any(|point| point != at && point.starts_with(&at)))
}

/// Takes off what is mounted on a directory. Who has files open keeps them.
pub(super) fn unmount(at: &Path) -> Result<()> {
    // What is mounted below a bind mount would go at its source, too.
    let _ = mount_change(at, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
    match rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error).context(|| format!("unmount {}", at.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[(&str, &str)]) -> Map<String> {
        list.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn options_are_checked_as_docker_does() {
        let error = |list: &[(&str, &str)]| check(&options(list)).unwrap_err().to_string();
        assert!(check(&options(&[])).is_ok());
        assert!(
            check(&options(&[
                ("type", "tmpfs"),
                ("device", "tmpfs"),
                ("o", "size=1m")
            ]))
            .is_ok()
        );
        assert_eq!(error(&[("colour", "red")]), "invalid option: \"colour\"");
        assert_eq!(error(&[("device", "/x")]), "missing required option: \"type\"");
        assert_eq!(
            error(&[("type", "none"), ("o", "bind")]),
            "missing required option: \"device\""
        );
        assert!(check(&options(&[("size", "1g")])).is_ok());
        assert!(error(&[("size", "1g"), ("type", "tmpfs"), ("device", "x")]).contains("o=size="));
        assert!(error(&[("size", "much")]).contains("invalid size"));
        let server = |addr| check(&options(&[("type", "nfs"), ("device", ":/x"), ("o", addr)]));
        assert!(server("addr=192.0.2.1,nfsvers=4").is_ok());
        assert!(server("addr=2001:db8::1").is_ok());
        assert!(
            server("addr=files.example")
                .unwrap_err()
                .to_string()
                .contains("IP address")
        );
    }

    #[test]
    fn words_are_flags_propagation_or_data() {
        let split = Split::of("bind,ro,nosuid,suid,rslave,uid=1000,,size=1m");
        assert_eq!(split.flags, MountFlags::BIND | MountFlags::RDONLY);
        assert_eq!(
            split.propagation,
            Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        );
        assert_eq!(split.data, ["uid=1000", "size=1m"]);
        assert_eq!(
            without_passwords("username=me,password=secret,ro"),
            "username=me,password=********,ro"
        );
    }

    #[test]
    fn what_is_mounted_is_taken_off() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("_data");
        std::fs::create_dir(&at).unwrap();
        let tmpfs = options(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=64k,noexec")]);
        if let Err(error) = mount(&tmpfs, &at) {
            println!("left out: nothing can be mounted here: {error}");
            return;
        }
        assert!(is_mounted(&at).unwrap());
        std::fs::write(at.join("file"), vec![1; 128 << 10]).unwrap_err();
        unmount(&at).unwrap();
        assert!(!is_mounted(&at).unwrap());
        // A read-only bind mount of a directory.
        let source = directory.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), "").unwrap();
        let bind = options(&[
            ("type", "none"),
            ("device", source.to_str().unwrap()),
            ("o", "bind,ro"),
        ]);
        mount(&bind, &at).unwrap();
        assert!(at.join("file").exists());
        std::fs::write(at.join("other"), "").unwrap_err();
        assert!(has_mounts_below(directory.path()).unwrap() && !has_mounts_below(&at).unwrap());
        unmount(&at).unwrap();
        unmount(&at).unwrap();
        assert!(!has_mounts_below(directory.path()).unwrap());
        let missing = options(&[("type", "none"), ("device", "/no/such"), ("o", "bind")]);
        let error = mount(&missing, &at).unwrap_err().to_string();
        assert!(error.contains("failed to mount local volume"), "{error}");
        assert!(!is_mounted(&at).unwrap());
    }
}
