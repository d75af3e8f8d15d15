//! Everything is killed at random moments while several users work: the daemon, the next daemon while it takes over, shims,
//! clients, containers' first processes. Afterwards no container is lost and nothing is left behind.
//!
//! Each worker makes and uses containers, an image and a volume of its own and knows what must be true of them: what was
//! acknowledged holds, what was not touched goes on with the same process, exit codes and logs are right. A kill excuses only
//! the operation it disturbed and the container it hit. After every few hundred operations all is removed, and the machine is
//! compared with what it was before: mounts, interfaces, rules, cgroups, processes, files.
//!
//! `VESSEL_TORTURE_SEED` repeats the choices of a run (the moments vary), `VESSEL_TORTURE_OPERATIONS` says how many
//! operations there are. It needs root and a static busybox; without either it says so and passes.

#![allow(clippy::print_stderr, reason = "tests talk to whoever runs them")]

mod arena;
mod census;
mod checkpoint;
mod container;
#[path = "../e2e/harness.rs"]
#[allow(dead_code, reason = "shared with other tests, which need more of it")]
mod harness;
mod random;
mod things;
mod worker;

use std::sync::atomic::Ordering;

use arena::Arena;
use checkpoint::{Baseline, Veteran};
use random::Random;
use worker::Worker;

/// How many users there are.
const WORKERS: usize = 4;
/// Operations between two checkpoints.
const PHASE: u64 = 250;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")),
    )
}

#[test]
fn nothing_is_lost_and_nothing_is_left() {
    let seed = number("VESSEL_TORTURE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| {
            u64::from(now.subsec_micros()) + now.as_secs() % 1000 * 1_000_000
        })
    });
    let operations = number("VESSEL_TORTURE_OPERATIONS").unwrap_or(2000);
    eprintln!("torture: VESSEL_TORTURE_SEED={seed} VESSEL_TORTURE_OPERATIONS={operations}");
    let Some(daemon) = harness::daemon() else { return };
    let arena = Arena::new(daemon);
    let mut random = Random::new(seed);
    let names: Vec<String> = (0..WORKERS).map(|number| format!("worker{number}")).collect();
    let mut workers: Vec<Worker> = names
        .iter()
        .map(|name| Worker::new(&arena, name, random.next()))
        .collect();
    let baseline = Baseline::take(&arena);

    let mut planned = 0;
    while planned < operations && !arena.failed() {
        planned = (planned + PHASE).min(operations);
        let veteran = Veteran::enlist(&arena);
        std::thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(|| {
                    while arena.operations.load(Ordering::Relaxed) < planned && !arena.failed() {
                        worker.step();
                    }
                });
            }
        });
        if !arena.failed() {
            let crash = random.chance(50);
            checkpoint::check(&arena, &mut workers, &veteran, &baseline, crash);
        }
        eprintln!(
            "torture: {} operations; killed: {}",
            arena.operations.load(Ordering::Relaxed),
            arena.toll()
        );
    }
    if let Some(report) = arena.report() {
        panic!("VESSEL_TORTURE_SEED={seed} VESSEL_TORTURE_OPERATIONS={operations}\n{report}");
    }
}
