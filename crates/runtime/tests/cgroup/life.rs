//! Making, opening and destroying cgroups.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

use rustix::process::{Pid, Signal};
use vessel_runtime::ErrorKind;
use vessel_runtime::cgroup::{Cgroup, CgroupPath};

use crate::harness::{HIERARCHIES, Scratch, resources};
use crate::helper::Actor;

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
fn what_is_left_of_a_container_that_is_over_is_killed() {
    let scratch = Scratch::new("over", "{}");
    let _actor = Actor::within(&scratch, "sleep");
    let begun = std::time::Instant::now();
    Cgroup::open(&HIERARCHIES, &scratch.path)
        .unwrap()
        .clear()
        .unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_secs(3));
    assert!(Cgroup::open(&HIERARCHIES, &scratch.path).is_err());
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
