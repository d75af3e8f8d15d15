//! Edits become parts of the OCI configuration (the specification's "OCI Edits").

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path};

use vessel_runtime::cgroup::resources::DeviceRule;
use vessel_runtime::spec as oci;

use super::spec::{Edits, Hook, Mount, Node};
use crate::oci_spec::override_env;
use crate::{Error, Result};

/// Applies edits.
///
/// # Errors
/// A device of the host that is not there; what this engine does not have.
pub(super) fn apply(edits: &Edits, spec: &mut oci::Spec) -> Result<()> {
    if edits.intel_rdt.is_some() {
        return Err(Error::unsupported(
            "the specification asks for Intel RDT (intelRdt), which this engine does not set up",
        ));
    }
    if let Some(device) = edits.net_devices.first() {
        return Err(Error::unsupported(format!(
            "the specification asks for the network interface {} (netDevices), which this engine does not move",
            device.host_interface_name
        )));
    }
    let mut owner = (None, None);
    if let Some(process) = &mut spec.process {
        override_env(&mut process.env, &edits.env);
        let groups = &mut process.user.additional_gids;
        for gid in &edits.additional_gids {
            // The superuser's group is never given by a device.
            if *gid != 0 && !groups.contains(gid) {
                groups.push(*gid);
            }
        }
        let set = |id: u32| (id > 0).then_some(id);
        owner = (set(process.user.uid), set(process.user.gid));
    }
    for asked in &edits.device_nodes {
        let mut device = node(asked)?;
        device.uid = device.uid.or(owner.0);
        device.gid = device.gid.or(owner.1);
        let linux = spec.linux.get_or_insert_default();
        if device.kind != "p" {
            let rule = DeviceRule {
                allow: true,
                kind: Some(if device.kind == "b" { "b" } else { "c" }.to_owned()),
                major: Some(device.major),
                minor: Some(device.minor),
                access: Some(match asked.permissions.as_str() {
                    "" => "rwm".to_owned(),
                    letters => letters.to_owned(),
                }),
            };
            linux.resources.get_or_insert_default().devices.push(rule);
        }
        linux.devices.retain(|other| other.path != device.path);
        linux.devices.push(device);
    }
    if !edits.mounts.is_empty() {
        for asked in &edits.mounts {
            let mount = mount(asked);
            spec.mounts.retain(|other| other.destination != mount.destination);
            spec.mounts.push(mount);
        }
        // What is below another comes after it.
        spec.mounts.sort_by_key(|mount| depth(&mount.destination));
    }
    for asked in &edits.hooks {
        let hooks = spec.hooks.get_or_insert_default();
        let list = match asked.hook_name.as_str() {
            "prestart" => &mut hooks.prestart,
            "createRuntime" => &mut hooks.create_runtime,
            "createContainer" => &mut hooks.create_container,
            "startContainer" => &mut hooks.start_container,
            "poststart" => &mut hooks.poststart,
            "poststop" => &mut hooks.poststop,
            other => return Err(Error::invalid(format!("unknown hook name {other:?}"))),
        };
        list.push(hook(asked));
    }
    Ok(())
}

fn hook(asked: &Hook) -> oci::Hook {
    oci::Hook {
        path: asked.path.clone().into(),
        args: asked.args.clone(),
        env: asked.env.clone(),
        timeout: asked.timeout,
    }
}

fn mount(asked: &Mount) -> oci::Mount {
    oci::Mount {
        destination: asked.container_path.clone().into(),
        kind: asked.kind.clone(),
        source: asked.host_path.clone(),
        options: asked.options.clone(),
        ..oci::Mount::default()
    }
}

fn depth(path: &Path) -> usize {
    let names = |component: &Component<'_>| matches!(component, Component::Normal(_));
    path.components().filter(names).count()
}

/// A node, with what the specification leaves out taken from the host's.
fn node(asked: &Node) -> Result<oci::Device> {
    let mut device = oci::Device {
        kind: asked.kind.clone(),
        path: asked.path.clone().into(),
        major: asked.major,
        minor: asked.minor,
        file_mode: asked.file_mode,
        uid: asked.uid,
        gid: asked.gid,
    };
    let complete = !asked.kind.is_empty() && (asked.major != 0 || asked.kind == "p");
    let outside = match asked.host_path.as_str() {
        "" => &asked.path,
        path => path,
    };
    let found = match std::fs::symlink_metadata(outside) {
        Ok(found) => found,
        Err(_) if complete => return Ok(device),
        Err(error) => {
            return Err(Error::invalid(format!(
                "failed to stat CDI host device {outside:?}: {error}"
            )));
        }
    };
    let kind = match found.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        kind if kind.is_fifo() => "p",
        _ if complete => return Ok(device),
        _ => {
            return Err(Error::invalid(format!(
                "failed to stat CDI host device {outside:?}: not a device node"
            )));
        }
    };
    device.file_mode.get_or_insert(found.mode() & 0o7777);
    if complete {
        return Ok(device);
    }
    if device.kind.is_empty() {
        kind.clone_into(&mut device.kind);
    }
    // A "u" is a "c" by its old name.
    if device.kind != kind && (device.kind.as_str(), kind) != ("u", "c") {
        return Err(Error::invalid(format!(
            "CDI device ({:?}, {outside:?}), host type mismatch ({}, {kind})",
            asked.path, device.kind
        )));
    }
    if kind != "p" && device.major == 0 {
        device.major = i64::from(rustix::fs::major(found.rdev()));
        device.minor = i64::from(rustix::fs::minor(found.rdev()));
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_applied() {
        let edits: Edits = serde_json::from_value(serde_json::json!({
            "env": ["A=new", "B=2"],
            "deviceNodes": [
                {"path": "/dev/own", "hostPath": "/dev/null", "permissions": "rw"},
                {"path": "/dev/made", "type": "c", "major": 99, "minor": 1, "uid": 5},
            ],
            "mounts": [
                {"hostPath": "/usr", "containerPath": "/a/b", "options": ["ro", "bind"]},
                {"hostPath": "/etc", "containerPath": "/a", "options": ["bind"]},
            ],
            "hooks": [{"hookName": "createContainer", "path": "/x", "args": ["x"], "env": ["C=D"]}],
            "additionalGids": [0, 7, 7],
        }))
        .unwrap();
        let mut spec = oci::Spec {
            process: Some(oci::Process {
                env: vec!["A=old".into()],
                user: oci::User {
                    uid: 1000,
                    gid: 1001,
                    ..oci::User::default()
                },
                ..oci::Process::default()
            }),
            mounts: vec![oci::Mount {
                destination: "/a/b".into(),
                ..oci::Mount::default()
            }],
            ..oci::Spec::default()
        };
        apply(&edits, &mut spec).unwrap();
        let process = spec.process.unwrap();
        assert_eq!(process.env, ["A=new", "B=2"]);
        assert_eq!(process.user.additional_gids, [7]);
        let destinations: Vec<_> = spec
            .mounts
            .iter()
            .map(|mount| mount.destination.clone())
            .collect();
        assert_eq!(destinations, [Path::new("/a"), Path::new("/a/b")]);
        assert_eq!(spec.mounts[1].source, "/usr");
        let linux = spec.linux.unwrap();
        let (own, made) = (&linux.devices[0], &linux.devices[1]);
        assert_eq!((own.kind.as_str(), own.major, own.minor), ("c", 1, 3));
        assert_eq!(
            (own.uid, own.gid, own.file_mode),
            (Some(1000), Some(1001), Some(0o666))
        );
        assert_eq!((made.major, made.uid, made.file_mode), (99, Some(5), None));
        let rules = linux.resources.unwrap().devices;
        assert_eq!(rules[0].access.as_deref(), Some("rw"));
        assert_eq!(rules[1].access.as_deref(), Some("rwm"));
        assert_eq!(spec.hooks.unwrap().create_container[0].env, ["C=D"]);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (edits, why) in [
            (serde_json::json!({"intelRdt": {"closID": "x"}}), "Intel RDT"),
            (
                serde_json::json!({"netDevices": [{"hostInterfaceName": "eth9", "name": "x"}]}),
                "eth9",
            ),
            (
                serde_json::json!({"deviceNodes": [{"path": "/dev/no-such"}]}),
                "failed to stat",
            ),
            (
                serde_json::json!({"deviceNodes": [{"path": "/dev/null", "type": "b"}]}),
                "mismatch",
            ),
            (
                serde_json::json!({"deviceNodes": [{"path": "/etc"}]}),
                "not a device",
            ),
        ] {
            let edits: Edits = serde_json::from_value(edits).unwrap();
            let error = apply(&edits, &mut oci::Spec::default()).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
    }
}
