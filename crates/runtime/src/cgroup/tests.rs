//! Against directory trees that only look like cgroups (what is written where), and against the v2 hierarchy of this
//! machine if it has one, also where that is not the one with the controllers.

use std::fs;
use std::path::Path;

use super::*;

/// A directory in which every cgroup file that a test names exists, empty.
struct Fake {
    base: tempfile::TempDir,
    hierarchies: Hierarchies,
}

const PLACE: &str = "/vessel/c";

impl Fake {
    fn new(version: Version, label: &str, controllers: &str, files: &[&str]) -> Self {
        let base = tempfile::tempdir().unwrap();
        let leaf = base.path().join(&PLACE[1..]);
        fs::create_dir_all(&leaf).unwrap();
        for dir in [base.path(), leaf.parent().unwrap(), &leaf] {
            fs::write(dir.join("cgroup.procs"), "").unwrap();
            if version == Version::V2 {
                fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
                fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
            }
        }
        for file in files {
            fs::write(leaf.join(file), "").unwrap();
        }
        let hierarchy = match version {
            Version::V2 => hierarchy::unified(base.path().to_owned()),
            Version::V1 => Hierarchy {
                version,
                mount: base.path().to_owned(),
                label: label.to_owned(),
                controllers: label.split(',').filter_map(Controller::from_name).collect(),
            },
        };
        Self {
            hierarchies: Hierarchies::from_list(vec![hierarchy]),
            base,
        }
    }

    fn leaf(&self) -> std::path::PathBuf {
        self.base.path().join(&PLACE[1..])
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.leaf().join(file)).unwrap()
    }

    fn create(&self, resources: &str) -> (Cgroup, Vec<Lack>) {
        let path = CgroupPath::parse(PLACE).unwrap();
        Cgroup::create(
            &self.hierarchies,
            &path,
            &serde_json::from_str(resources).unwrap(),
        )
        .unwrap()
    }
}

/// As the parent of two containers that start at once is for a moment.
#[test]
fn a_cpuset_with_one_list_gets_the_other() {
    let fake = Fake::new(Version::V1, "cpuset", "", &["cpuset.cpus", "cpuset.mems"]);
    let leaf = fake.leaf();
    let parent = leaf.parent().unwrap();
    for (dir, cpus, mems) in [(fake.base.path(), "0-1\n", "0\n"), (parent, "0-1\n", "\n")] {
        fs::write(dir.join("cpuset.cpus"), cpus).unwrap();
        fs::write(dir.join("cpuset.mems"), mems).unwrap();
    }
    fake.create("{}");
    assert_eq!(fs::read_to_string(parent.join("cpuset.mems")).unwrap(), "0");
    assert_eq!(
        (fake.read("cpuset.cpus"), fake.read("cpuset.mems")),
        ("0-1".into(), "0".into())
    );
}

#[test]
fn v2_files() {
    let fake = Fake::new(
        Version::V2,
        "",
        "cpuset cpu io memory hugetlb pids rdma misc",
        &[
            "cpu.weight",
            "cpu.max",
            "cpu.max.burst",
            "cpu.idle",
            "cpuset.cpus",
            "cpuset.mems",
            "memory.max",
            "memory.low",
            "memory.swap.max",
            "pids.max",
            "io.weight",
            "io.max",
            "hugetlb.2MB.max",
            "rdma.max",
            "memory.high",
            "misc.max",
        ],
    );
    let (cgroup, lacks) = fake.create(
        r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"burst":10,"cpus":"0-1","mems":"0","idle":1},
        "memory":{"limit":1000,"swap":3000,"reservation":500,"kernel":1,"swappiness":10,"disableOOMKiller":true},
        "pids":{"limit":9},
        "blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}]},
        "hugepageLimits":[{"pageSize":"2MB","limit":4096}],
        "network":{"classID":7},
        "rdma":{"mlx5":{"hcaHandles":3,"hcaObjects":4}},
        "unified":{"memory.high":"900","misc.max":"a 1\nb 2"}}"#,
    );
    for (file, content) in [
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpu.max.burst", "10"),
        ("cpu.idle", "1"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("memory.max", "1000"),
        ("memory.swap.max", "2000"),
        ("memory.low", "500"),
        ("memory.high", "900"),
        ("pids.max", "9"),
        ("io.weight", "1"),
        ("io.max", "8:0 rbps=600"),
        ("hugetlb.2MB.max", "4096"),
        ("rdma.max", "mlx5 hca_handle=3 hca_object=4"),
        ("misc.max", "b 2"),
    ] {
        assert_eq!(fake.read(file), content, "{file}");
    }
    let missing: Vec<_> = lacks.iter().map(|lack| lack.property.as_str()).collect();
    assert_eq!(
        missing,
        ["memory.swappiness", "memory.disableOOMKiller", "network.classID"]
    );
    assert!(cgroup.clone_into_fd().is_some());
    assert_eq!(cgroup.stats().cpu.total, 0);
}

#[test]
fn v2_controllers_are_handed_down() {
    let fake = Fake::new(Version::V2, "", "cpuset cpu unheard_of memory", &["memory.max"]);
    fs::write(fake.leaf().join("cgroup.controllers"), "memory").unwrap();
    fs::write(fake.base.path().join("vessel/cgroup.subtree_control"), "memory").unwrap();
    fake.create("{}");
    let control = |dir: &Path| fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap();
    assert_eq!(control(fake.base.path()), "+cpuset +cpu +memory");
    // The file is a plain one here, so the write goes over what it held.
    assert_eq!(control(&fake.base.path().join("vessel")), "+cpuset +cpu");
    // The container's own cgroup hands nothing down: it holds processes.
    assert_eq!(control(&fake.leaf()), "");
}

#[test]
fn controllers_on_one_v1_hierarchy() {
    let files = [
        "cpu.shares",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
        "cpuacct.usage",
        "cpu.stat",
    ];
    let fake = Fake::new(Version::V1, "cpu,cpuacct", "", &files);
    fs::write(fake.leaf().join("cpuacct.usage"), "77\n").unwrap();
    fs::write(
        fake.leaf().join("cpu.stat"),
        "nr_periods 3\nnr_throttled 2\nthrottled_time 1\n",
    )
    .unwrap();
    let (cgroup, lacks) = fake
        .create(r#"{"cpu":{"shares":7,"quota":-1,"period":1000},"memory":{"limit":5},"pids":{"limit":5}}"#);
    assert_eq!(
        [
            fake.read("cpu.shares"),
            fake.read("cpu.cfs_quota_us"),
            fake.read("cpu.cfs_period_us")
        ],
        ["7", "-1", "1000"]
    );
    let cpu = cgroup.stats().cpu;
    assert_eq!(
        (cpu.total, cpu.periods, cpu.throttled_periods, cpu.throttled_time),
        (77, 3, 2, 1)
    );
    let missing: Vec<_> = lacks.iter().map(|lack| lack.property.as_str()).collect();
    assert_eq!(missing, ["memory.limit", "pids.limit"]);
    let error = refuse(&lacks).unwrap_err().report().message;
    assert!(
        error.contains("memory.limit") && error.contains("pids.limit"),
        "{error}"
    );
    assert_eq!(cgroup.freeze().unwrap_err().kind(), ErrorKind::Unsupported);
    cgroup.attach(rustix::process::getpid()).unwrap();
    assert_eq!(
        fake.read("cgroup.procs"),
        rustix::process::getpid().as_raw_pid().to_string()
    );
}

/// Docker's `--blkio-weight` where only BFQ has weights: its own scale, not iocost's.
#[test]
fn weights_go_to_the_scheduler_that_has_them() {
    let fake = Fake::new(Version::V2, "", "io", &["io.bfq.weight"]);
    let resources = r#"{"blockIO":{"weight":500,"leafWeight":20}}"#;
    let (_, lacks) = fake.create(resources);
    assert_eq!(fake.read("io.bfq.weight"), "500");
    assert_eq!(lacks.len(), 1);
    let fake = Fake::new(Version::V1, "blkio", "", &[]);
    let (_, lacks) = fake.create(resources);
    let missing: Vec<_> = lacks.iter().map(|lack| lack.property.as_str()).collect();
    assert_eq!(missing, ["blockIO.leafWeight", "blockIO.weight"]);
}

/// The v2 ways of doing things, on a real v2 hierarchy.
#[test]
fn v2_alone() {
    let found = Hierarchies::detect().unwrap();
    let Some(v2) = found
        .list()
        .iter()
        .find(|hierarchy| hierarchy.version == Version::V2)
    else {
        return;
    };
    let only = Hierarchies::from_list(vec![v2.clone()]);
    assert_eq!(only.mode(), Mode::V2);
    let path = CgroupPath::parse(&format!("/vessel-test-v2-{}", std::process::id())).unwrap();
    let rules = |minor: u32| -> Resources {
        let text = format!(
            r#"{{"devices":[{{"allow":false}},{{"allow":true,"type":"c","major":1,"minor":{minor},"access":"rw"}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    };
    let (cgroup, lacks) = Cgroup::create(&only, &path, &rules(3)).unwrap();
    assert_eq!(lacks, []);
    let can_open = |device: &str| {
        let again = Cgroup::open(&only, &path).unwrap();
        let mut command = std::process::Command::new("/bin/sh");
        // The shell has no descriptor on a device that it was denied.
        command
            .args(["-c", &format!(": < {device}")])
            .stderr(std::process::Stdio::piped());
        // SAFETY: moving itself makes system calls on open descriptors, with buffers on the stack.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
                again
                    .attach_self(false)
                    .map_err(|_| std::io::ErrorKind::Other.into())
            });
        }
        command.output().unwrap().status.success()
    };
    let now = (can_open("/dev/null"), can_open("/dev/zero"));
    // Twice: the program is replaced, not joined by another.
    let after: Vec<_> = [5, 3]
        .map(|minor| {
            cgroup.update(&rules(minor)).unwrap();
            (can_open("/dev/null"), can_open("/dev/zero"))
        })
        .into();

    let mut sleeper = std::process::Command::new("/bin/sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let attached = cgroup.attach(Pid::from_child(&sleeper));
    let frozen = cgroup.freeze().map(|()| cgroup.is_frozen());
    let killed = cgroup.kill_all(Signal::KILL);
    let _ = sleeper.kill();
    let ended = sleeper.wait().unwrap();
    let destroyed = cgroup.destroy();

    assert_eq!((now, after), ((true, false), vec![(false, true), (true, false)]));
    attached.unwrap();
    assert!(frozen.unwrap());
    killed.unwrap();
    assert!(!ended.success());
    destroyed.unwrap();
}

/// The v1 ways of killing and freezing, where the v2 ones would be taken.
#[test]
fn v1_alone() {
    let found = Hierarchies::detect().unwrap();
    let list: Vec<_> = found
        .list()
        .iter()
        .filter(|hierarchy| hierarchy.version == Version::V1)
        .cloned()
        .collect();
    if !found.list().iter().any(|hierarchy| {
        hierarchy.version == Version::V1 && hierarchy.controllers.contains(&Controller::Freezer)
    }) {
        return;
    }
    let only = Hierarchies::from_list(list);
    assert_eq!(only.mode(), Mode::V1);
    let path = CgroupPath::parse(&format!("/vessel-test-v1-{}", std::process::id())).unwrap();
    let (cgroup, _) = Cgroup::create(&only, &path, &Resources::default()).unwrap();
    assert!(cgroup.clone_into_fd().is_none());
    // It forks all the time, so a list of its processes is old when it is read.
    let script = "read go; while :; do /bin/sleep 1000 & sleep 0.01; done";
    let mut command = std::process::Command::new("/bin/sh");
    let mut forker = command
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let attached = cgroup.attach(Pid::from_child(&forker));
    std::io::Write::write_all(forker.stdin.as_mut().unwrap(), b"go\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let before = cgroup.processes().map(|list| list.len());
    let frozen = cgroup.freeze().map(|()| cgroup.is_frozen());
    // Also out of a frozen state, as `docker kill` of a paused container.
    let killed = cgroup.kill_all(Signal::KILL);
    let thawed = !cgroup.is_frozen();
    forker.wait().unwrap();
    let destroyed = cgroup.destroy();
    attached.unwrap();
    assert!(before.unwrap() > 2);
    assert!(frozen.unwrap() && thawed);
    killed.unwrap();
    destroyed.unwrap();
}
