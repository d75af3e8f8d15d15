//! What it costs.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use vessel_runtime::cgroup::{Cgroup, CgroupPath, Hierarchies, Resources};

use crate::harness::{HIERARCHIES, resources};
use crate::helper::Actor;

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
