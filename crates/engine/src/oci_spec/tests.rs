use std::path::Path;

use vessel_api::Ulimit;

use super::*;
use crate::container::record::MountKind;

fn record() -> Record {
    let mut record = Record {
        id: "0123456789abcdef".into(),
        path: "sh".into(),
        args: vec!["-c".into()],
        ..Record::default()
    };
    record.config.hostname = "box".into();
    record.host.shm_size = 64 << 20;
    validate::fill_defaults(&mut record.host, &validate::HostFacts::default(), false);
    record
}

fn made(record: &Record, change: impl FnOnce(&mut Inputs<'_>)) -> Spec {
    let security = security::security(&record.host, CapSet::KNOWN).unwrap();
    let mut inputs = Inputs {
        record,
        identity: Identity::default(),
        security: &security,
        devices: Devices::default(),
        namespaces: Namespaces {
            network: Some(None),
            pid: Some(None),
            ipc: Some(None),
            uts: true,
            ..Namespaces::default()
        },
        ipc: Ipc::Private,
        names: NameFiles {
            hosts: Some("/run/x/hosts".into()),
            ..NameFiles::default()
        },
        mounts: Vec::new(),
        init: None,
        link_environment: Vec::new(),
        cgroup: "/vessel/0123456789abcdef".into(),
    };
    change(&mut inputs);
    compose(inputs).unwrap()
}

fn options<'a>(spec: &'a Spec, destination: &str) -> Option<&'a [String]> {
    spec.mounts
        .iter()
        .find(|mount| mount.destination == Path::new(destination))
        .map(|mount| mount.options.as_slice())
}

#[test]
fn the_default_container_is_dockers() {
    let record = record();
    let spec = made(&record, |_| {});
    spec.validate().unwrap();
    let process = spec.process.as_ref().unwrap();
    assert_eq!(process.args, ["sh", "-c"]);
    assert_eq!(process.env, [&format!("PATH={DEFAULT_PATH}"), "HOSTNAME=box"]);
    assert_eq!(process.cwd, Path::new("/"));
    assert_eq!(process.capabilities.as_ref().unwrap().bounding.len(), 14);
    assert!(process.capabilities.as_ref().unwrap().inheritable.is_empty());
    let linux = spec.linux();
    assert!(
        linux
            .masked_paths
            .iter()
            .any(|path| path == Path::new("/proc/kcore"))
    );
    assert!(
        linux
            .readonly_paths
            .iter()
            .any(|path| path == Path::new("/proc/sys"))
    );
    for path in [
        "/proc",
        "/dev",
        "/dev/pts",
        "/sys",
        "/sys/fs/cgroup",
        "/dev/mqueue",
        "/dev/shm",
        "/etc/hosts",
    ] {
        assert!(options(&spec, path).is_some(), "{path}");
    }
    for path in ["/sys", "/sys/fs/cgroup"] {
        assert!(options(&spec, path).unwrap().contains(&"ro".to_owned()), "{path}");
    }
    let first = &linux.resources.as_ref().unwrap().devices[0];
    assert!(!first.allow && first.kind.is_none(), "everything is denied first");
}

#[test]
fn environment_is_set_and_taken_away() {
    let mut record = record();
    record.config.tty = true;
    record.config.env = ["PATH=/x", "A=1", "TERM", "A=2"].map(String::from).to_vec();
    let spec = made(&record, |_| {});
    assert_eq!(spec.process.unwrap().env, ["PATH=/x", "HOSTNAME=box", "A=2"]);
}

#[test]
fn a_user_other_than_root_holds_nothing() {
    let record = record();
    let spec = made(&record, |inputs| inputs.identity.uid = 1000);
    let lists = spec.process.unwrap().capabilities.unwrap();
    assert!(lists.effective.is_empty() && lists.permitted.is_empty() && !lists.bounding.is_empty());
}

#[test]
fn privileged_opens_everything() {
    let mut record = record();
    record.host = HostConfigOf::privileged();
    let spec = made(&record, |inputs| {
        inputs.devices = devices::devices(&inputs.record.host).unwrap()
    });
    assert!(spec.linux().masked_paths.is_empty() && spec.linux().readonly_paths.is_empty());
    assert!(options(&spec, "/sys").unwrap().contains(&"rw".to_owned()));
    let rules = &spec.linux().resources.as_ref().unwrap().devices;
    assert!(rules.last().unwrap().allow && rules.last().unwrap().kind.is_none());
}

struct HostConfigOf;

impl HostConfigOf {
    fn privileged() -> vessel_api::HostConfig {
        let mut host = vessel_api::HostConfig {
            privileged: true,
            ..Default::default()
        };
        validate::fill_defaults(&mut host, &validate::HostFacts::default(), true);
        host
    }
}

#[test]
fn a_read_only_root_leaves_the_users_mounts_alone() {
    let mut record = record();
    record.host.readonly_rootfs = true;
    let spec = made(&record, |inputs| {
        inputs.mounts = ["/data/below", "/data"]
            .map(|destination| UserMount {
                record: MountRecord {
                    destination: destination.into(),
                    ..MountRecord::default()
                },
                source: "/srv".into(),
                owner: None,
            })
            .to_vec();
    });
    assert!(spec.root.as_ref().unwrap().readonly);
    assert!(options(&spec, "/etc/hosts").unwrap().contains(&"ro".to_owned()));
    assert!(!options(&spec, "/dev/shm").unwrap().contains(&"ro".to_owned()));
    assert!(
        !options(&spec, "/data")
            .unwrap()
            .iter()
            .any(|option| option == "ro" || option == "rro")
    );
    let place = |path: &str| {
        spec.mounts
            .iter()
            .position(|mount| mount.destination == Path::new(path))
            .unwrap()
    };
    assert!(place("/data") < place("/data/below"), "the outer one comes first");
    assert!(
        place("/data") < place("/etc/hosts"),
        "files come after what may be mounted over their directory"
    );
}

#[test]
fn the_users_mounts_replace_the_standard_ones() {
    let record = record();
    let spec = made(&record, |inputs| {
        inputs.mounts = vec![UserMount {
            record: MountRecord {
                kind: MountKind::Tmpfs,
                destination: "/dev/shm".into(),
                options: vec!["size=1m".into()],
                ..MountRecord::default()
            },
            source: PathBuf::new(),
            owner: None,
        }];
    });
    let shm: Vec<_> = spec
        .mounts
        .iter()
        .filter(|mount| mount.destination == Path::new("/dev/shm"))
        .collect();
    assert_eq!(shm.len(), 1);
    assert_eq!(shm[0].options, ["noexec", "nosuid", "nodev", "size=1m"]);
}

#[test]
fn limits_of_processes_keep_their_infinity() {
    let mut record = record();
    record.host.resources.ulimits = vec![Ulimit {
        name: "nofile".into(),
        soft: 10,
        hard: -1,
    }];
    let limits = made(&record, |_| {}).process.unwrap().rlimits;
    assert_eq!(
        (limits[0].kind.as_str(), limits[0].soft, limits[0].hard),
        ("RLIMIT_NOFILE", 10, u64::MAX)
    );
}

#[test]
fn init_comes_before_the_program() {
    let record = record();
    let spec = made(&record, |inputs| {
        inputs.init = Some("/var/lib/vessel/bin/init".into())
    });
    assert_eq!(spec.process.as_ref().unwrap().args, [INIT_PATH, "--", "sh", "-c"]);
    assert!(options(&spec, INIT_PATH).unwrap().contains(&"ro".to_owned()));
}
