//! The pids controller.

use vessel_runtime::cgroup::Controller;

use crate::harness::{Scratch, lacks, resources};
use crate::helper::Actor;

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
