//! The memory controller: limits that kill, and events that say so.

use std::time::Duration;

use vessel_runtime::cgroup::Controller;

use crate::harness::{Scratch, lacks};
use crate::helper::{Actor, KILLED};

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
