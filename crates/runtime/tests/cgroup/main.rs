//! Cgroups on the real kernel, as root: limits that limit, events that arrive, nothing left behind.
//!
//! What is tested follows from what the machine has (v1, hybrid or v2); each test says what it leaves out and why. The test
//! binary is its own helper program (see [`helper`]), so it also runs alone in a guest that has nothing else: start it with
//! `--nocapture --test-threads=1`.

#![allow(clippy::print_stdout, reason = "tests talk to whoever runs them")]

mod harness;
mod helper;

mod blkio;
mod cpu;
mod devices;
mod doors;
mod freezer;
mod life;
mod memory;
mod pids;
mod timings;
mod unified;
mod update;
