//! Containers that attack, and containers that fail half-way.
//!
//! The runtime has to be a program here: a process of its own, single-threaded, whose executable a container may try to
//! overwrite. So this test is its own runtime (`runtime …`), its own shim (`shim …`), its own container program (`inside …`, from a copy of itself
//! in the container's root) and its own harness (anything else: filters, as for `cargo test`).
//!
//! Root is required. Everything is made below one temporary directory and removed again.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    reason = "it is a program as well"
)]

mod bundle;
mod escapes;
mod inside;
mod leftovers;
mod runtime;
mod shims;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("runtime") => runtime::main(&arguments[2..]),
        Some("shim") => std::process::exit(vessel_runtime::shim::run()),
        Some("inside") => inside::main(&arguments[2..]),
        // A script whose interpreter is /proc/self/exe: this is the runtime's executable inside the container.
        Some("/entry") => inside::interpreter(),
        Some("--list") => {}
        _ => harness(&arguments[1..]),
    }
}

fn harness(filters: &[String]) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: containers with cgroups need root");
        return;
    }
    let filters: Vec<&String> = filters
        .iter()
        .filter(|filter| !filter.starts_with("--"))
        .collect();
    let mut failed = Vec::new();
    for (name, test) in escapes::TESTS.iter().chain(leftovers::TESTS).chain(shims::TESTS) {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        match std::panic::catch_unwind(test) {
            Ok(()) => println!("test {name} ... ok"),
            Err(_) => {
                println!("test {name} ... FAILED");
                failed.push(*name);
            }
        }
    }
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}
