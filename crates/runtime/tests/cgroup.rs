//! Cgroups on the real kernel, as root: limits that limit, events that arrive, nothing left behind.
//!
//! What is tested follows from what the machine has (v1, hybrid or v2); each test says what it leaves out and why. The test
//! binary is its own helper program (see [`helper`]), so it also runs alone in a guest that has nothing else: start it with
//! `--nocapture --test-threads=1`.

#![allow(clippy::print_stdout, reason = "tests talk to whoever runs them")]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use vessel_runtime::ErrorKind;
use vessel_runtime::cgroup::{Cgroup, CgroupPath, Controller, Hierarchies, Mode, Resources};

const HELPER: &str = "VESSEL_CGROUP_TEST_HELPER";
const READY: &str = "READY";
/// Emulated guests and busy machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);
const KILLED: &str = "signal: 9 (SIGKILL)";

static HIERARCHIES: LazyLock<Hierarchies> = LazyLock::new(|| {
    let found = Hierarchies::detect().unwrap();
    println!("cgroup: this machine is {:?}:", found.mode());
    for hierarchy in found.list() {
        println!(
            "cgroup:   {:?} {:?} {:?}",
            hierarchy.version, hierarchy.mount, hierarchy.controllers
        );
    }
    found
});

fn lacks(controller: Controller) -> bool {
    let lacks = !HIERARCHIES.has(controller);
    if lacks {
        println!(
            "cgroup: SKIPPED, this machine has no {} controller",
            controller.name()
        );
    }
    lacks
}

fn resources(text: &str) -> Resources {
    serde_json::from_str(text).unwrap()
}

/// A cgroup of a test's own, gone with it.
struct Scratch {
    cgroup: Option<Cgroup>,
    path: CgroupPath,
    parent: String,
}

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let parent = format!("/vessel-test-{name}-{}", std::process::id());
        let path = CgroupPath::parse(&format!("{parent}/c")).unwrap();
        let mut scratch = Self {
            cgroup: None,
            path,
            parent,
        };
        let (cgroup, lacks) = Cgroup::create(&HIERARCHIES, &scratch.path, &resources(text)).unwrap();
        scratch.cgroup = Some(cgroup);
        assert_eq!(lacks, []);
        scratch
    }

    fn get(&self) -> &Cgroup {
        self.cgroup.as_ref().unwrap()
    }

    fn file(&self, file: &str) -> String {
        let found = self
            .get()
            .directories()
            .map(|dir| dir.join(file))
            .find(|path| path.exists());
        let path = found.unwrap_or_else(|| panic!("no {file}"));
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    fn has(&self, file: &str) -> bool {
        self.get().directories().any(|dir| dir.join(file).exists())
    }

    /// v1's file, or v2's.
    fn file_of(&self, v1: &str, v2: &str) -> String {
        self.file(if self.has(v1) { v1 } else { v2 })
    }

    fn destroy(&mut self) {
        let cgroup = self.cgroup.take().unwrap();
        cgroup.kill_all(Signal::KILL).unwrap();
        cgroup.destroy().unwrap();
        for hierarchy in HIERARCHIES.list() {
            assert!(!self.path.below(&hierarchy.mount).exists(), "{hierarchy:?}");
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.cgroup.is_some() {
            let cgroup = self.cgroup.take().unwrap();
            let _ = cgroup.thaw();
            let _ = cgroup.kill_all(Signal::KILL);
            let _ = cgroup.destroy();
        }
        for hierarchy in HIERARCHIES.list() {
            let _ = std::fs::remove_dir(hierarchy.mount.join(&self.parent[1..]));
        }
    }
}

/// The helper process. It waits for a line, acts, and answers with lines.
struct Actor {
    child: Child,
    lines: Receiver<String>,
}

impl Actor {
    fn command(action: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", "helper", "--nocapture", "--test-threads=1"])
            .env(HELPER, action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }

    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // Its test harness talks first.
            let mut lines = output
                .lines()
                .map_while(Result::ok)
                .skip_while(|line| line != READY);
            while lines.next().is_some_and(|line| sender.send(line).is_ok()) {}
        });
        assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), READY);
        Self { child, lines }
    }

    fn new(action: &str) -> Self {
        Self::start(Self::command(action))
    }

    fn within(scratch: &Scratch, action: &str) -> Self {
        let actor = Self::new(action);
        scratch.get().attach(actor.pid()).unwrap();
        actor
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    fn answer(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| format!("(no answer: {error})"))
    }

    fn ask(&mut self) -> String {
        self.go();
        self.answer()
    }

    fn how_it_ended(&mut self) -> String {
        self.child.wait().unwrap().to_string()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what the helper process does. Does nothing when the suite is run.
#[test]
fn helper() {
    let Ok(action) = std::env::var(HELPER) else { return };
    println!("\n{READY}");
    let mut words = action.split(' ');
    let name = words.next().unwrap();
    let argument = words.next().unwrap_or_default();
    for line in std::io::stdin().lines() {
        line.unwrap();
        match name {
            "sleep" => println!("awake"),
            "spin" => {
                let end = Instant::now() + Duration::from_millis(argument.parse().unwrap());
                std::thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(|| while Instant::now() < end {});
                    }
                });
                println!("done");
            }
            "fork" => {
                let mut children = Vec::new();
                for _ in 0..argument.parse().unwrap() {
                    // SAFETY: the child calls nothing but pause(2), which is async-signal-safe.
                    match unsafe { libc::fork() } {
                        0 => loop {
                            // SAFETY: no arguments, no memory.
                            unsafe { libc::pause() };
                        },
                        -1 => break,
                        child => children.push(child),
                    }
                }
                println!("{}", children.len());
                for child in children {
                    // SAFETY: plain integers; the child is ours and not reaped yet.
                    unsafe {
                        libc::kill(child, libc::SIGKILL);
                        libc::waitpid(child, std::ptr::null_mut(), 0);
                    }
                }
            }
            "eat" => {
                let mut eaten: Vec<Vec<u8>> = Vec::new();
                for _ in 0..argument.parse().unwrap() {
                    eaten.push(std::hint::black_box(vec![1; 1 << 20]));
                }
                println!("ate {}", eaten.len());
            }
            "open" => match std::fs::OpenOptions::new().read(true).open(argument) {
                Ok(_) => println!("opened"),
                Err(error) => println!("{}", error.raw_os_error().unwrap()),
            },
            "mknod" => {
                let path = std::ffi::CString::new(argument).unwrap();
                // SAFETY: the path is a NUL-terminated string that outlives the call.
                let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 5)) };
                let errno = std::io::Error::last_os_error().raw_os_error().unwrap();
                println!("{}", if made == 0 { 0 } else { errno });
            }
            "create" => {
                let path = CgroupPath::parse(argument).unwrap();
                match Cgroup::create(&Hierarchies::detect().unwrap(), &path, &Resources::default()) {
                    Ok(_) => println!("created"),
                    Err(error) => println!("{:?} {}", error.kind(), error.report().message),
                }
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn pids_limit_makes_forks_fail() {
    if lacks(Controller::Pids) {
        return;
    }
    let scratch = Scratch::new("pids", r#"{"pids":{"limit":10}}"#);
    let mut actor = Actor::within(&scratch, "fork 50");
    let forks: u64 = actor.ask().parse().unwrap();
    // The helper itself has two threads.
    assert_eq!(forks, 8);
    let stats = scratch.get().stats().pids.unwrap();
    assert_eq!(stats.limit, Some(10));
    assert!(stats.current >= 1);
    assert_eq!(
        scratch
            .get()
            .update(&resources(r#"{"pids":{"limit":-1}}"#))
            .unwrap(),
        []
    );
    assert_eq!(actor.ask(), "50");
    assert_eq!(scratch.get().stats().pids.unwrap().limit, None);
}

#[test]
fn memory_limit_kills_and_says_so() {
    if lacks(Controller::Memory) {
        return;
    }
    let scratch = Scratch::new("oom", r#"{"memory":{"limit":67108864}}"#);
    let events = scratch.get().oom_events().unwrap();
    assert_eq!(events.acknowledge().unwrap(), 0);
    assert!(
        !wait(&events, Duration::ZERO),
        "an event before anything happened"
    );
    let mut modest = Actor::within(&scratch, "eat 16");
    assert_eq!(modest.ask(), "ate 16");
    // Swap, if there is any, must not help it out.
    let mut glutton = Actor::within(&scratch, "eat 2048");
    glutton.go();
    assert!(wait(&events, Duration::from_secs(30)), "no event");
    let answer = glutton.answer();
    assert!(!answer.starts_with("ate"), "{answer}");
    assert_eq!(glutton.how_it_ended(), KILLED);
    let kills = events.acknowledge().unwrap();
    assert!(kills >= 1 && kills == scratch.get().oom_kills());
    assert!(!wait(&events, Duration::ZERO), "an event that was acknowledged");
    let memory = scratch.get().stats().memory.unwrap();
    assert_eq!(memory.limit, Some(67_108_864));
    assert!(
        memory.failcnt > 0 && memory.oom_kills >= 1 && !memory.stat.is_empty(),
        "{memory:?}"
    );
    assert!(
        memory
            .max_usage
            .is_none_or(|max| max > 60 << 20 && max <= 64 << 20),
        "{memory:?}"
    );
}

fn wait(events: &vessel_runtime::cgroup::OomEvents, timeout: Duration) -> bool {
    let timeout = rustix::event::Timespec {
        tv_sec: timeout.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut fds = [rustix::event::PollFd::new(events, events.interest())];
    rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 1
}

#[test]
fn half_a_processor_is_half_a_processor() {
    if lacks(Controller::Cpu) {
        return;
    }
    let scratch = Scratch::new("cpu", r#"{"cpu":{"quota":50000,"period":100000}}"#);
    // First in line for what it may have, however busy the machine is.
    let parent = Cgroup::open(&HIERARCHIES, &CgroupPath::parse(&scratch.parent).unwrap()).unwrap();
    assert_eq!(
        parent.update(&resources(r#"{"cpu":{"shares":262144}}"#)).unwrap(),
        []
    );
    let mut actor = Actor::within(&scratch, "spin 2000");
    let before = scratch.get().stats().cpu;
    let start = Instant::now();
    assert_eq!(actor.ask(), "done");
    let share = (scratch.get().stats().cpu.total - before.total) as f64 / start.elapsed().as_nanos() as f64;
    let cpu = scratch.get().stats().cpu;
    println!("cgroup: half a processor was {share:.3}; {cpu:?}");
    assert!(share > 0.4 && share < 0.58, "{share}");
    assert!(
        cpu.throttled_periods >= 5 && cpu.throttled_time > 0 && cpu.periods >= cpu.throttled_periods,
        "{cpu:?}"
    );
    assert!(cpu.user > 100_000_000, "{cpu:?}");
}

#[test]
fn frozen_means_nothing_moves() {
    let scratch = Scratch::new("freeze", "{}");
    let mut actor = Actor::within(&scratch, "sleep");
    assert_eq!(actor.ask(), "awake");
    assert!(!scratch.get().is_frozen());
    scratch.get().freeze().unwrap();
    assert!(scratch.get().is_frozen());
    actor.go();
    assert!(
        actor.lines.recv_timeout(Duration::from_millis(300)).is_err(),
        "it moved"
    );
    scratch.get().thaw().unwrap();
    assert!(!scratch.get().is_frozen());
    assert_eq!(actor.answer(), "awake");
    // Frozen processes can be killed.
    scratch.get().freeze().unwrap();
    scratch.get().kill_all(Signal::KILL).unwrap();
    assert_eq!(actor.how_it_ended(), KILLED);
}

#[test]
fn killing_reaches_everything() {
    let mut scratch = Scratch::new("kill", "{}");
    let mut forker = Actor::within(&scratch, "fork 20");
    assert_eq!(forker.ask(), "20");
    let mut sleeper = Actor::within(&scratch, "sleep");
    let processes = scratch.get().processes().unwrap();
    assert!(
        processes.contains(&forker.pid()) && processes.contains(&sleeper.pid()),
        "{processes:?}"
    );
    // A signal that can be ignored, ignored by nobody here.
    scratch.get().kill_all(Signal::TERM).unwrap();
    assert_eq!(sleeper.how_it_ended(), "signal: 15 (SIGTERM)");
    let mut late = Actor::within(&scratch, "sleep");
    scratch.get().kill_all(Signal::KILL).unwrap();
    assert_eq!(late.how_it_ended(), KILLED);
    let _ = forker.how_it_ended();
    // Its orphans have their signal; dying takes a moment.
    let end = Instant::now() + PATIENCE;
    while !scratch.get().processes().unwrap().is_empty() {
        assert!(Instant::now() < end, "{:?}", scratch.get().processes());
        std::thread::sleep(Duration::from_millis(1));
    }
    scratch.destroy();
}

#[test]
fn devices_are_allowed_and_denied() {
    let mut rules = resources(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    rules.allow_default_devices();
    rules.devices.push(
        serde_json::from_str(r#"{"allow":false,"type":"c","major":1,"minor":5,"access":"rw"}"#).unwrap(),
    );
    let scratch = Scratch::new("devices", &serde_json::to_string(&rules).unwrap());
    let denied = libc::EPERM.to_string();
    let mut null = Actor::within(&scratch, "open /dev/null");
    let mut zero = Actor::within(&scratch, "open /dev/zero");
    let mut kmsg = Actor::within(&scratch, "open /dev/kmsg");
    assert_eq!(
        [null.ask(), zero.ask(), kmsg.ask()],
        ["opened", denied.as_str(), denied.as_str()]
    );
    let node = std::env::temp_dir().join(format!("vessel-test-node-{}", std::process::id()));
    let mut mknod = Actor::within(&scratch, &format!("mknod {}", node.display()));
    // Making nodes is allowed in general, opening them is not.
    assert_eq!(mknod.ask(), "0");
    std::fs::remove_file(&node).unwrap();
    // While it runs: /dev/zero comes back, making nodes goes.
    let update = r#"{"devices":[{"allow":false,"access":"rwm"},
        {"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
        {"allow":true,"type":"c","major":1,"minor":5,"access":"rw"}]}"#;
    assert_eq!(scratch.get().update(&resources(update)).unwrap(), []);
    assert_eq!(
        [null.ask(), zero.ask(), kmsg.ask()],
        ["opened", "opened", denied.as_str()]
    );
    assert_eq!(mknod.ask(), denied);
    // Everything, as in a privileged container; an update of something else changes nothing.
    let all = r#"{"devices":[{"allow":true,"access":"rwm"}]}"#;
    assert_eq!(scratch.get().update(&resources(all)).unwrap(), []);
    assert_eq!(
        scratch
            .get()
            .update(&resources(r#"{"pids":{"limit":1000}}"#))
            .unwrap(),
        []
    );
    assert_eq!([null.ask(), zero.ask(), mknod.ask()], ["opened", "opened", "0"]);
    std::fs::remove_file(&node).unwrap();
    let nothing = r#"{"devices":[{"allow":false}]}"#;
    assert_eq!(scratch.get().update(&resources(nothing)).unwrap(), []);
    assert_eq!(
        [null.ask(), zero.ask(), mknod.ask()],
        [denied.as_str(), denied.as_str(), denied.as_str()]
    );
}

#[test]
fn limits_change_up_and_down() {
    if lacks(Controller::Memory) || lacks(Controller::Cpu) || lacks(Controller::Cpuset) {
        return;
    }
    let scratch = Scratch::new("update", r#"{"memory":{"limit":104857600}}"#);
    let update = |text: &str| scratch.get().update(&resources(text)).unwrap();
    let memory = || scratch.file_of("memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), "104857600");
    let swap = ["memory.memsw.limit_in_bytes", "memory.swap.max"]
        .iter()
        .any(|file| scratch.has(file));
    for (limit, both) in [
        (52_428_800, 52_428_800),
        (209_715_200, 314_572_800),
        (104_857_600, 157_286_400),
    ] {
        if swap {
            let text = format!(r#"{{"memory":{{"limit":{limit},"swap":{both}}}}}"#);
            assert_eq!(update(&text), [], "{text}");
            let expected = if scratch.has("memory.swap.max") {
                both - limit
            } else {
                both
            };
            assert_eq!(
                scratch.file_of("memory.memsw.limit_in_bytes", "memory.swap.max"),
                expected.to_string()
            );
        } else {
            assert_eq!(update(&format!(r#"{{"memory":{{"limit":{limit}}}}}"#)), []);
        }
        assert_eq!(memory(), limit.to_string());
    }
    assert_eq!(update(r#"{"memory":{"reservation":20971520}}"#), []);
    assert_eq!(
        scratch.file_of("memory.soft_limit_in_bytes", "memory.low"),
        "20971520"
    );
    assert_eq!(update(r#"{"memory":{"limit":-1}}"#), []);
    let stats = scratch.get().stats().memory.unwrap();
    assert_eq!((stats.limit, stats.swap_limit), (None, None));

    assert_eq!(update(r#"{"cpu":{"shares":2048,"cpus":"0","mems":"0"}}"#), []);
    assert_eq!(scratch.file("cpuset.cpus"), "0");
    if scratch.has("cpu.weight") {
        assert_eq!(scratch.file("cpu.weight"), "174");
    } else {
        assert_eq!(scratch.file("cpu.shares"), "2048");
    }
    // Only a part is given; the burst must stay below the quota at every step.
    for (text, quota, period) in [
        (r#"{"cpu":{"quota":20000,"period":50000}}"#, "20000", "50000"),
        (r#"{"cpu":{"period":40000}}"#, "20000", "40000"),
        (r#"{"cpu":{"quota":30000}}"#, "30000", "40000"),
        (r#"{"cpu":{"quota":80000,"burst":60000}}"#, "80000", "40000"),
        (r#"{"cpu":{"quota":2000,"burst":1000}}"#, "2000", "40000"),
        (r#"{"cpu":{"quota":-1}}"#, "-1", "40000"),
    ] {
        assert_eq!(update(text), [], "{text}");
        if scratch.has("cpu.max") {
            assert_eq!(
                scratch.file("cpu.max"),
                format!("{} {period}", quota.replace("-1", "max"))
            );
        } else {
            assert_eq!(
                [
                    scratch.file("cpu.cfs_quota_us"),
                    scratch.file("cpu.cfs_period_us")
                ],
                [quota, period]
            );
        }
    }
    let refused = scratch
        .get()
        .update(&resources(r#"{"cpu":{"cpus":"4000"}}"#))
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(
        refused.report().message.contains("cpu.cpus"),
        "{}",
        refused.report().message
    );
}

#[test]
fn block_devices_are_throttled() {
    if lacks(Controller::Blkio) {
        return;
    }
    // A whole disk; partitions are not throttled.
    let disks = std::fs::read_dir("/sys/block").unwrap().flatten();
    let disk = disks
        .filter_map(|disk| std::fs::read_to_string(disk.path().join("dev")).ok())
        .next();
    let Some((major, minor)) = disk.as_deref().and_then(|disk| disk.trim().split_once(':')) else {
        println!("cgroup: SKIPPED, no disk to throttle");
        return;
    };
    let text = format!(
        r#"{{"blockIO":{{"throttleReadBpsDevice":[{{"major":{major},"minor":{minor},"rate":1048576}}],
        "throttleWriteIOPSDevice":[{{"major":{major},"minor":{minor},"rate":20}}]}}}}"#
    );
    let scratch = Scratch::new("blkio", &text);
    if scratch.has("io.max") {
        assert_eq!(
            scratch.file("io.max"),
            format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=20")
        );
    } else {
        assert_eq!(
            scratch.file("blkio.throttle.read_bps_device"),
            format!("{major}:{minor} 1048576")
        );
        assert_eq!(
            scratch.file("blkio.throttle.write_iops_device"),
            format!("{major}:{minor} 20")
        );
    }
    assert_eq!(
        scratch
            .get()
            .update(&resources(&text.replace("1048576", "0").replace("20}", "0}")))
            .unwrap(),
        []
    );
    let left = scratch.file_of("blkio.throttle.read_bps_device", "io.max");
    assert_eq!(left, "");
    let missing = r#"{"blockIO":{"throttleReadBpsDevice":[{"major":4000,"minor":7,"rate":1}]}}"#;
    let message = scratch
        .get()
        .update(&resources(missing))
        .unwrap_err()
        .report()
        .message;
    assert!(message.contains("there is no such device"), "{message}");
    // A weight is set, or reported as lacking: never dropped in silence.
    let lacks = scratch
        .get()
        .update(&resources(r#"{"blockIO":{"weight":500}}"#))
        .unwrap();
    let has = ["blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight"]
        .iter()
        .any(|file| scratch.has(file));
    assert_eq!(lacks.is_empty(), has, "{lacks:?}");
    for lack in lacks {
        println!("cgroup: {lack}");
    }
}

#[test]
fn nested_cgroups_go_too() {
    let mut scratch = Scratch::new("nested", "{}");
    let actor = Actor::within(&scratch, "sleep");
    let inner: Vec<_> = scratch
        .get()
        .directories()
        .map(|dir| dir.join("inner/deep"))
        .collect();
    for dir in &inner {
        std::fs::create_dir_all(dir).unwrap();
    }
    for dir in &inner {
        // A process in there; an empty v1 cpuset takes none.
        let _ = std::fs::write(dir.join("cgroup.procs"), actor.pid().as_raw_pid().to_string());
    }
    assert_eq!(scratch.get().processes().unwrap(), [actor.pid()]);
    let place = std::fs::read_to_string(format!("/proc/{}/cgroup", actor.pid().as_raw_pid())).unwrap();
    assert!(place.contains("inner/deep"));
    if scratch.get().clone_into_fd().is_some() {
        let beside = scratch.get().clone_beside_fd(actor.pid()).unwrap();
        let found = std::fs::read_link(format!("/proc/self/fd/{}", beside.as_raw_fd())).unwrap();
        assert!(found.ends_with("inner/deep"), "{found:?}");
        let own = Pid::from_raw(std::process::id().cast_signed()).unwrap();
        let error = scratch.get().clone_beside_fd(own).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    scratch.destroy();
}

#[test]
fn destroying_what_is_alive_names_the_processes() {
    let scratch = Scratch::new("alive", "{}");
    let actor = Actor::within(&scratch, "sleep");
    let again = Cgroup::open(&HIERARCHIES, &scratch.path).unwrap();
    let error = again.destroy().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let message = error.report().message;
    assert!(
        message.contains(&actor.pid().as_raw_pid().to_string()),
        "{message}"
    );
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let path = CgroupPath::parse(&format!("/vessel-test-failed-{}", std::process::id())).unwrap();
    for (text, needle) in [
        (r#"{"blockIO":{"weight":7}}"#, "weight 7"),
        (r#"{"cpu":{"cpus":"9999"}}"#, "cpu.cpus"),
        (r#"{"unified":{"../memory.max":"1"}}"#, "../memory.max"),
        (r#"{"unified":{"cgroup.procs":"1"}}"#, "cgroup.procs"),
        (
            r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#,
            "page size",
        ),
        (r#"{"devices":[{"allow":true,"type":"z"}]}"#, "devices[0]"),
        (r#"{"memory":{"limit":1000,"swap":10}}"#, "memory.swap"),
    ] {
        let error = Cgroup::create(&HIERARCHIES, &path, &resources(text)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{}", error.report().message);
        assert!(
            error.report().message.contains(needle),
            "{}",
            error.report().message
        );
        for hierarchy in HIERARCHIES.list() {
            assert!(!path.below(&hierarchy.mount).exists());
        }
    }
}

#[test]
fn what_is_lived_in_is_not_taken_over() {
    let scratch = Scratch::new("taken", "{}");
    let (again, _) = Cgroup::create(&HIERARCHIES, &scratch.path, &resources("{}")).unwrap();
    drop(again);
    let _actor = Actor::within(&scratch, "sleep");
    let error = Cgroup::create(&HIERARCHIES, &scratch.path, &resources("{}")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(scratch.get().directories().all(|dir| dir.exists()));
    let gone = CgroupPath::parse("/vessel-test-no-such").unwrap();
    assert_eq!(
        Cgroup::open(&HIERARCHIES, &gone).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn without_privilege_it_says_what_to_do() {
    let mut command = Actor::command(&format!("create /vessel-test-user-{}", std::process::id()));
    command.uid(65534).gid(65534);
    let answer = Actor::start(command).ask();
    assert!(
        answer.starts_with("Permission") && answer.contains("run as root"),
        "{answer}"
    );
}

/// Every line of `/proc/PID/cgroup` of a hierarchy that is mounted.
fn is_in_every_hierarchy(pid: Pid, scratch: &Scratch) {
    let places = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_pid())).unwrap();
    for hierarchy in HIERARCHIES.list() {
        let wanted = format!(":{}:{}", hierarchy.label, scratch.path);
        assert!(
            places.lines().any(|line| line.ends_with(&wanted)),
            "{wanted} is not in {places}"
        );
    }
}

#[test]
fn a_process_gets_in_by_every_door() {
    let scratch = Scratch::new("doors", "{}");
    let actor = Actor::within(&scratch, "sleep");
    is_in_every_hierarchy(actor.pid(), &scratch);

    let again = Cgroup::open(&HIERARCHIES, &scratch.path).unwrap();
    let mut command = Actor::command("sleep");
    // SAFETY: moving itself makes system calls on descriptors that are open, with buffers on the stack.
    unsafe {
        command.pre_exec(move || {
            again
                .attach_self(false)
                .map_err(|_| std::io::ErrorKind::Other.into())
        });
    }
    is_in_every_hierarchy(Actor::start(command).pid(), &scratch);

    let Some(fd) = scratch.get().clone_into_fd() else {
        println!("cgroup: SKIPPED, no v2 hierarchy to clone into");
        return;
    };
    use vessel_runtime::sys::clone3::{Clone3, Side};
    // SAFETY: the child calls nothing but pause(2), which is async-signal-safe.
    let child = match unsafe { Clone3::new(0).cgroup(fd).call() }.unwrap() {
        Side::Child => loop {
            // SAFETY: no arguments, no memory.
            unsafe { libc::pause() };
        },
        Side::Parent { pid, .. } => pid,
    };
    scratch.get().attach_rest(child).unwrap();
    is_in_every_hierarchy(child, &scratch);
    scratch.get().kill_all(Signal::KILL).unwrap();
    rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()).unwrap();
}

#[test]
fn a_parent_of_somebody_else_is_used() {
    let scratch = Scratch::new("parent", "{}");
    // Its own parent was made with empty v1 cpusets, as another program would.
    let base = format!("/vessel-test-foreign-{}", std::process::id());
    for hierarchy in HIERARCHIES.list() {
        std::fs::create_dir(hierarchy.mount.join(&base[1..])).unwrap();
    }
    let path = CgroupPath::for_container(Some(&format!("{base}/mid")), "leaf").unwrap();
    let (cgroup, lacks) = Cgroup::create(&HIERARCHIES, &path, &resources(r#"{"pids":{"limit":5}}"#)).unwrap();
    let actor = Actor::new("sleep");
    let attached = cgroup.attach(actor.pid());
    cgroup.kill_all(Signal::KILL).unwrap();
    cgroup.destroy().unwrap();
    for hierarchy in HIERARCHIES.list() {
        std::fs::remove_dir(hierarchy.mount.join(&format!("{base}/mid")[1..])).unwrap();
        std::fs::remove_dir(hierarchy.mount.join(&base[1..])).unwrap();
    }
    attached.unwrap();
    assert_eq!(lacks, []);
    drop(scratch);
}

#[test]
fn unified_files_are_written_where_there_is_v2() {
    let scratch = Scratch::new("unified", "{}");
    let lacks = scratch
        .get()
        .update(&resources(
            r#"{"unified":{"cgroup.max.depth":"7","memory.nonsense":"1"}}"#,
        ))
        .unwrap();
    let missing: Vec<_> = lacks.iter().map(|lack| lack.property.as_str()).collect();
    if HIERARCHIES.mode() == Mode::V1 {
        assert_eq!(
            missing,
            ["unified[\"cgroup.max.depth\"]", "unified[\"memory.nonsense\"]"]
        );
        return;
    }
    assert_eq!(missing, ["unified[\"memory.nonsense\"]"]);
    assert_eq!(scratch.file("cgroup.max.depth"), "7");
    let error = vessel_runtime::cgroup::refuse(&lacks).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Not a judgement, machines differ: prints what the hot path costs.
#[test]
fn timings() {
    let mut rules = resources(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    rules.allow_default_devices();
    let limits = resources(
        r#"{"memory":{"limit":67108864},"pids":{"limit":100},"cpu":{"quota":50000,"period":100000}}"#,
    );
    let mut took: [Vec<Duration>; 6] = Default::default();
    let actors: Vec<_> = (0..20).map(|_| Actor::new("sleep")).collect();
    for (index, actor) in actors.iter().enumerate() {
        let path = CgroupPath::parse(&format!("/vessel-test-timing/{}-{index}", std::process::id())).unwrap();
        let mut last = Instant::now();
        let mut lap = |to: usize| {
            took[to].push(last.elapsed());
            last = Instant::now();
        };
        Hierarchies::detect().unwrap();
        lap(0);
        let (cgroup, _) = Cgroup::create(&HIERARCHIES, &path, &Resources::default()).unwrap();
        lap(1);
        cgroup.update(&rules).unwrap();
        lap(2);
        cgroup.update(&limits).unwrap();
        lap(3);
        cgroup.attach(actor.pid()).unwrap();
        lap(4);
        cgroup.kill_all(Signal::KILL).unwrap();
        rustix::process::waitpid(Some(actor.pid()), rustix::process::WaitOptions::empty()).unwrap();
        last = Instant::now();
        cgroup.destroy().unwrap();
        took[5].push(last.elapsed());
    }
    for hierarchy in HIERARCHIES.list() {
        std::fs::remove_dir(hierarchy.mount.join("vessel-test-timing")).unwrap();
    }
    for (name, mut times) in ["detect", "create", "devices", "limits", "attach", "destroy"]
        .iter()
        .zip(took)
    {
        times.sort();
        println!(
            "cgroup: {name}: median {:?}, least {:?}",
            times[times.len() / 2],
            times[0]
        );
    }
}
