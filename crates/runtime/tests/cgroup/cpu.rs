//! The cpu controller.

use std::time::Instant;

use vessel_runtime::cgroup::{Cgroup, CgroupPath, Controller};

use crate::harness::{HIERARCHIES, Scratch, lacks, resources};
use crate::helper::Actor;

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
