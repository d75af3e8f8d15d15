//! The mounts of a specification: the standard ones, the name files, the user's.

use std::path::{Path, PathBuf};

use vessel_runtime::spec::{IdMapping, Mount};

use super::Inputs;
use super::modes::Ipc;
use crate::container::record::{MountKind, MountRecord};

fn mount(destination: &str, kind: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.to_owned(),
        source: kind.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Mount {
    let mut mount = mount(destination, "bind", options);
    mount.source = source.to_string_lossy().into_owned();
    mount
}

/// All mounts, in the order they are made: a mount below another comes after it.
pub(super) fn mounts(inputs: &Inputs<'_>) -> Vec<Mount> {
    let host = &inputs.record.host;
    let access = if inputs.security.writable_cgroups || host.privileged {
        "rw"
    } else {
        "ro"
    };
    let sys = if host.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        mount("/sys/fs/cgroup", "cgroup", &[access, "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    match &inputs.ipc {
        Ipc::None => {}
        Ipc::Host => {
            mounts.retain(|mount| mount.destination != Path::new("/dev/mqueue"));
            mounts.push(bind(
                Path::new("/dev/mqueue"),
                "/dev/mqueue",
                &["rbind", "nosuid", "noexec", "nodev"],
            ));
            mounts.push(bind(
                Path::new("/dev/shm"),
                "/dev/shm",
                &["rbind", "nosuid", "noexec", "nodev"],
            ));
        }
        // What is mounted is handed over as a descriptor; the source is a name and leads nowhere.
        Ipc::Container(name) => mounts.push(bind(
            Path::new(&format!("container:{name}")),
            "/dev/shm",
            &["bind", "nosuid", "noexec", "nodev"],
        )),
        Ipc::Private | Ipc::Shareable => {
            let size = format!("size={}", host.shm_size);
            mounts.push(mount(
                "/dev/shm",
                "tmpfs",
                &["nosuid", "noexec", "nodev", "mode=1777", &size],
            ));
        }
    }

    let user = |path: &Path| {
        inputs
            .mounts
            .iter()
            .any(|mount| Path::new(&mount.record.destination) == path)
    };
    let user_dev = user(Path::new("/dev"));
    let replaced = |path: &Path| user(path) || user_dev && path.starts_with("/dev");
    mounts.retain(|mount| !replaced(&mount.destination));
    if host.readonly_rootfs {
        const STAY: [&str; 5] = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"];
        for mount in &mut mounts {
            let stays = STAY.iter().any(|path| mount.destination == Path::new(path));
            if !stays && !mount.options.iter().any(|option| option == "ro") {
                mount.options.push("ro".into());
            }
        }
    }
    let files = if host.readonly_rootfs {
        ["bind", "rprivate", "ro"]
    } else {
        ["bind", "rprivate", "rw"]
    };
    let mut own = Vec::new();
    for (source, destination) in [
        (&inputs.names.resolv_conf, "/etc/resolv.conf"),
        (&inputs.names.hostname, "/etc/hostname"),
        (&inputs.names.hosts, "/etc/hosts"),
    ] {
        if let Some(source) = source
            && !user(Path::new(destination))
        {
            own.push(bind(source, destination, &files));
        }
    }
    if let Some(init) = &inputs.init {
        own.push(bind(init, super::INIT_PATH, &["bind", "ro"]));
    }
    for asked in &inputs.mounts {
        let mut mount = user_mount(&asked.record, &asked.source);
        if let Some(owner) = asked.owner {
            mount.options.push("idmap".into());
            mount.uid_mappings = shown_as(owner.uid, inputs.identity.uid);
            mount.gid_mappings = shown_as(owner.gid, inputs.identity.gid);
        }
        if inputs.namespaces.user.is_some() && asked.record.kind == MountKind::Volume {
            // On the disk a volume's owners are those that containers see, as in the layers.
            mount.options.push("idmap".into());
        }
        own.push(mount);
    }
    // A volume over `/etc` comes before the files in it.
    own.sort_by_key(|mount| mount.destination.components().count());
    mounts.extend(own);
    mounts
}

fn user_mount(asked: &MountRecord, source: &Path) -> Mount {
    if asked.kind == MountKind::Tmpfs {
        let mut tmpfs = mount(&asked.destination, "tmpfs", &["noexec", "nosuid", "nodev"]);
        tmpfs.options.extend(asked.options.iter().cloned());
        if asked.read_only {
            tmpfs.options.push("ro".into());
        }
        return tmpfs;
    }
    let mut made = bind(
        source,
        &asked.destination,
        &[if asked.non_recursive { "bind" } else { "rbind" }],
    );
    made.options.push(if asked.propagation.is_empty() {
        "rprivate".into()
    } else {
        asked.propagation.clone()
    });
    if asked.read_only {
        // What is mounted below the source is not to be a way around.
        made.options.push(
            if asked.non_recursive || asked.read_only_top {
                "ro"
            } else {
                "rro"
            }
            .into(),
        );
    }
    made
}

/// The mapping by which what `there` owns on the disk is `here`'s in the container, and the other way round for what is
/// made. All others stay who they are, but those two in the other's place: they own nothing and can make nothing.
fn shown_as(there: u32, here: u32) -> Vec<IdMapping> {
    let line = |container_id, host_id, size| IdMapping {
        container_id,
        host_id,
        size,
    };
    let mut lines = vec![line(there, here, 1)];
    let mut next = 0;
    for taken in [there.min(here), there.max(here), u32::MAX] {
        if taken > next {
            lines.push(line(next, next, taken - next));
        }
        next = taken.saturating_add(1);
    }
    lines
}

/// The propagation the root needs for what the mounts ask: none, `rslave` or `rshared`.
pub(super) fn root_propagation(mounts: &[super::UserMount]) -> &'static str {
    let has = |names: [&str; 2]| {
        mounts
            .iter()
            .any(|mount| names.contains(&mount.record.propagation.as_str()))
    };
    if has(["shared", "rshared"]) {
        "rshared"
    } else if has(["slave", "rslave"]) {
        "rslave"
    } else {
        ""
    }
}

/// Paths as the specification wants them.
pub(super) fn paths(list: &Option<Vec<String>>) -> Vec<PathBuf> {
    list.iter().flatten().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_shown_as_another_and_nobody_twice() {
        let text = |there, here| {
            shown_as(there, here)
                .iter()
                .map(|line| format!("{}>{}+{}", line.container_id, line.host_id, line.size))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(text(1000, 0), "1000>0+1 1>1+999 1001>1001+4294966294");
        assert_eq!(text(0, 33), "0>33+1 1>1+32 34>34+4294967261");
        assert_eq!(text(5, 5), "5>5+1 0>0+5 6>6+4294967289");
        assert_eq!(text(0, 0), "0>0+1 1>1+4294967294");
    }
}
