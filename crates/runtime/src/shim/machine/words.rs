//! An OCI configuration in the words of the guest's init.

use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vessel_init::guest::protocol as guest;

use super::config::MachineConfig;
use super::root::is_ours;
use crate::capabilities::CapSet;
use crate::rlimits::Limit;
use crate::rootfs::{Options, Recursion};
use crate::spec::{CapabilityLists, ConsoleSize, Device, Mount, Process, Spec};
use crate::sys::mount_setattr::{Propagation, attr};
use crate::{Error, Result, seccomp};

/// The tag of the shared directory that becomes the container's root.
pub const ROOT_TAG: &str = "root";

/// What the first process is called between shim and init.
pub const FIRST: &str = "";

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// The container and its first process.
pub fn start(spec: &Spec, process: guest::Process) -> guest::Start {
    let linux = spec.linux();
    let readonly = spec.root.as_ref().is_some_and(|root| root.readonly);
    let setting = |name: &str, value: &str| guest::Setting {
        name: name.as_bytes().to_vec(),
        value: value.as_bytes().to_vec(),
    };
    let pids = linux
        .resources
        .as_ref()
        .and_then(|resources| resources.pids.as_ref());
    let pids = pids.and_then(|pids| pids.limit).filter(|limit| *limit > 0);
    guest::Start {
        root: guest::Root {
            kind: b"virtiofs".to_vec(),
            source: ROOT_TAG.into(),
            readonly,
            ..guest::Root::default()
        },
        mounts: spec
            .mounts
            .iter()
            .filter(|mount| !is_ours(mount))
            .map(mount)
            .collect(),
        devices: linux.devices.iter().filter_map(device).collect(),
        masked: linux.masked_paths.iter().map(|path| bytes(path)).collect(),
        readonly: linux.readonly_paths.iter().map(|path| bytes(path)).collect(),
        hostname: spec.hostname.clone().into_bytes(),
        domainname: spec.domainname.clone().into_bytes(),
        sysctls: linux
            .sysctl
            .iter()
            .map(|(name, value)| setting(name, value))
            .collect(),
        // Memory and processors are the machine's own.
        limits: pids
            .map(|limit| setting("pids.max", &limit.to_string()))
            .into_iter()
            .collect(),
        limits_required: false,
        process,
        ..guest::Start::default()
    }
}

/// A process. With `stdin` its input is a stream; output and errors always are.
///
/// # Errors
/// Capabilities and limits that have no number.
pub fn process(
    name: &str,
    asked: &Process,
    stdin: bool,
    leashed: bool,
    filter: Option<&seccomp::Program>,
) -> Result<guest::Process> {
    asked.validate()?;
    let strings = |list: &[String]| list.iter().map(|text| text.clone().into_bytes()).collect();
    let limit = |limit: &crate::spec::Rlimit| -> Result<guest::Rlimit> {
        let limit = Limit::new(&limit.kind, limit.soft, limit.hard)?;
        Ok(guest::Rlimit {
            resource: limit.number(),
            soft: limit.soft,
            hard: limit.hard,
        })
    };
    Ok(guest::Process {
        name: name.to_owned(),
        args: strings(&asked.args),
        env: strings(&asked.env),
        cwd: bytes(&asked.cwd),
        uid: asked.user.uid,
        gid: asked.user.gid,
        groups: asked.user.additional_gids.clone(),
        umask: asked.user.umask,
        terminal: asked
            .terminal
            .then(|| size(asked.console_size.unwrap_or_default())),
        stdin: stdin || asked.terminal,
        stdout: true,
        stderr: !asked.terminal,
        capabilities: asked.capabilities.as_ref().map(capabilities).transpose()?,
        no_new_privileges: asked.no_new_privileges,
        rlimits: asked.rlimits.iter().map(limit).collect::<Result<_>>()?,
        // The host's preference: it is the monitor's.
        oom_score_adj: None,
        seccomp: filter.map(seccomp::Program::to_bytes).unwrap_or_default(),
        leashed,
    })
}

/// A terminal's size.
pub fn size(size: ConsoleSize) -> guest::Size {
    guest::Size {
        rows: size.height,
        columns: size.width,
    }
}

fn capabilities(lists: &CapabilityLists) -> Result<guest::Capabilities> {
    let bits = |names: &[String]| -> Result<u64> {
        names.iter().try_fold(0, |bits, name| {
            CapSet::named(name)
                .map(|one| bits | one.bits())
                .ok_or_else(|| Error::invalid(format!("unknown capability {name:?}")))
        })
    };
    Ok(guest::Capabilities {
        bounding: bits(&lists.bounding)?,
        effective: bits(&lists.effective)?,
        inheritable: bits(&lists.inheritable)?,
        permitted: bits(&lists.permitted)?,
        ambient: bits(&lists.ambient)?,
    })
}

fn mount(mount: &Mount) -> guest::Mount {
    let options = Options::parse(&mount.options);
    let data: Vec<String> = options
        .data
        .iter()
        .map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => name.clone(),
        })
        .collect();
    let kind = match mount.kind.as_str() {
        // The guest has version 2 only.
        "cgroup" => "cgroup2",
        other => other,
    };
    guest::Mount {
        kind: kind.into(),
        source: mount.source.clone().into_bytes(),
        target: bytes(&mount.destination),
        flags: flags(options.set | options.set_all),
        propagation: options
            .propagation
            .iter()
            .fold(0, |_, change| propagation(*change)),
        options: data.join(",").into_bytes(),
        ..guest::Mount::default()
    }
}

/// Attributes of the new mount interface as flags of mount(2).
fn flags(attributes: u64) -> u64 {
    let atime = match attributes & attr::ATIME {
        attr::NOATIME => libc::MS_NOATIME,
        attr::STRICTATIME => libc::MS_STRICTATIME,
        _ => 0,
    };
    [
        (attr::RDONLY, libc::MS_RDONLY),
        (attr::NOSUID, libc::MS_NOSUID),
        (attr::NODEV, libc::MS_NODEV),
        (attr::NOEXEC, libc::MS_NOEXEC),
        (attr::NODIRATIME, libc::MS_NODIRATIME),
        (attr::NOSYMFOLLOW, libc::MS_NOSYMFOLLOW),
    ]
    .iter()
    .filter(|(attribute, _)| attributes & attribute != 0)
    .fold(atime, |flags, (_, flag)| flags | flag)
}

fn propagation((change, recursion): (Propagation, Recursion)) -> u64 {
    let flag = match change {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    };
    match recursion {
        Recursion::One => flag,
        Recursion::All => flag | libc::MS_REC,
    }
}

fn device(device: &Device) -> Option<guest::Device> {
    let kind = match device.kind.as_str() {
        "c" | "u" => libc::S_IFCHR,
        "b" => libc::S_IFBLK,
        "p" => libc::S_IFIFO,
        _ => return None,
    };
    Some(guest::Device {
        path: bytes(&device.path),
        mode: kind | device.file_mode.unwrap_or(0o666) & 0o7777,
        major: u32::try_from(device.major).ok()?,
        minor: u32::try_from(device.minor).ok()?,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    })
}

/// The guest's interfaces, addresses and routes.
pub fn network(machine: &MachineConfig) -> guest::Network {
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let interfaces = machine.interfaces.iter().map(|interface| guest::Interface {
        hardware: interface.mac.to_vec(),
        name: interface.name.clone().into_bytes(),
        mtu: interface.mtu,
        addresses: interface
            .addresses
            .iter()
            .map(|(address, prefix)| guest::Address {
                address: octets(address),
                prefix: *prefix,
            })
            .collect(),
    });
    let routes = machine.interfaces.iter().flat_map(|interface| {
        interface.gateways.iter().map(|gateway| guest::Route {
            destination: guest::Address {
                address: vec![0; octets(gateway).len()],
                prefix: 0,
            },
            gateway: octets(gateway),
            hardware: interface.mac.to_vec(),
            metric: 0,
        })
    });
    guest::Network {
        interfaces: interfaces.collect(),
        removed: Vec::new(),
        routes: routes.collect(),
        dns: machine.names,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> Spec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_only_a_kernel_can_make_is_left_to_the_guests() {
        let spec = spec(json!({
            "ociVersion": "1.2.0",
            "root": { "path": "/", "readonly": true },
            "hostname": "web",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
                { "destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro"] },
                { "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["strictatime", "mode=755", "size=64k", "tmpcopyup", "rslave"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "noatime"] },
            ],
            "linux": {
                "resources": { "pids": { "limit": 7 }, "memory": { "limit": 1 << 30 } },
                "sysctl": { "vm.swappiness": "1" },
                "maskedPaths": ["/proc/kcore"],
            },
        }));
        let start = start(&spec, guest::Process::default());
        assert_eq!(
            (start.root.source.as_slice(), start.root.readonly),
            (&b"root"[..], true)
        );
        let targets: Vec<&[u8]> = start.mounts.iter().map(|mount| mount.target.as_slice()).collect();
        assert_eq!(targets, [&b"/proc"[..], b"/run", b"/sys/fs/cgroup"]);
        assert_eq!(
            start.mounts[0].flags,
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC
        );
        let tmpfs = &start.mounts[1];
        assert_eq!(tmpfs.flags, libc::MS_STRICTATIME);
        assert_eq!(tmpfs.propagation, libc::MS_SLAVE | libc::MS_REC);
        assert_eq!(tmpfs.options, b"mode=755,size=64k");
        assert_eq!(start.mounts[2].kind, b"cgroup2");
        assert_eq!(start.mounts[2].flags, libc::MS_RDONLY | libc::MS_NOATIME);
        assert_eq!(start.limits.len(), 1);
        assert_eq!(
            (start.limits[0].name.as_slice(), start.limits[0].value.as_slice()),
            (&b"pids.max"[..], &b"7"[..])
        );
        assert_eq!(start.hostname, b"web");
    }

    #[test]
    fn a_process_in_numbers() {
        let asked: Process = serde_json::from_value(json!({
            "args": ["sh"], "cwd": "/", "user": { "uid": 5, "gid": 6, "additionalGids": [7] },
            "terminal": true, "consoleSize": { "height": 24, "width": 80 },
            "capabilities": { "bounding": ["CAP_CHOWN", "CAP_KILL"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 }],
            "oomScoreAdj": 500,
        }))
        .unwrap();
        let made = process("x", &asked, false, true, None).unwrap();
        assert_eq!((made.uid, made.gid, made.groups), (5, 6, vec![7]));
        assert_eq!(
            made.terminal,
            Some(guest::Size {
                rows: 24,
                columns: 80
            })
        );
        assert!(made.stdin && made.stdout && !made.stderr && made.leashed);
        assert_eq!(made.capabilities.unwrap().bounding, 1 | 1 << 5);
        assert_eq!(made.rlimits[0].resource, 7);
        assert_eq!(made.oom_score_adj, None);
        let strange = Process {
            capabilities: Some(CapabilityLists {
                bounding: vec!["CAP_FLY".into()],
                ..CapabilityLists::default()
            }),
            ..asked
        };
        assert!(process("x", &strange, false, false, None).is_err());
    }

    #[test]
    fn default_routes_go_by_their_interface() {
        let interface =
            |name: &str, mac, address: &str, gateway: Option<&str>| super::super::config::Interface {
                name: name.into(),
                mac,
                mtu: 1400,
                addresses: vec![(address.parse().unwrap(), 16)],
                gateways: gateway.iter().map(|text| text.parse().unwrap()).collect(),
            };
        let made = network(&MachineConfig {
            command_line: String::new(),
            accelerator: "auto".into(),
            memory: 0,
            vcpus: 1,
            interfaces: vec![
                interface("eth0", [2; 6], "172.17.0.2", Some("172.17.0.1")),
                interface("eth1", [3; 6], "10.1.0.2", None),
            ],
            names: true,
        });
        assert!(made.dns && made.interfaces.len() == 2);
        assert_eq!(made.interfaces[0].addresses[0].address, [172, 17, 0, 2]);
        let [route] = made.routes.as_slice() else {
            panic!("{:?}", made.routes)
        };
        assert_eq!(
            (route.gateway.as_slice(), route.hardware.as_slice()),
            (&[172, 17, 0, 1][..], &[2; 6][..])
        );
        assert_eq!(route.destination.address, [0; 4]);
    }
}
