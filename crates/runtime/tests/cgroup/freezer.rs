//! Freezing, and signals to everything.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::Scratch;
use crate::helper::{Actor, KILLED, PATIENCE};

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
